//! What is asked of a coordination service: keys, values, and the workloads made of them.
//!
//! Owns the draw of operations. The same seed gives the same sequence, so every server of a comparison
//! is asked for the same keys. A value is a function of its key, so every read is compared byte by byte,
//! whichever writer was last. How an operation looks on the wire is left to [`super::session`].

use std::fmt::Write as _;

use serde::Serialize;

/// Longest value in bytes. Guessed: a request still fits in one HTTP/2 frame of 16 KiB.
pub const VALUE_LENGTH_MAX: usize = 15 << 10;

/// What one request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Creates a key, refused where it exists.
    Create,
    /// Deletes a key, refused where there is none.
    Delete,
    /// Writes the value of a key that exists.
    Set,
    /// Reads the value of a key that exists.
    Get,
}

/// A key, by its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// The parent of all others.
    Root,
    /// A key that is read and written.
    Kept(u32),
    /// A key that a workload creates, and that is deleted again afterwards.
    Fresh(u32),
}

impl Key {
    /// Puts the path of this key into `path`.
    pub(crate) fn path(self, path: &mut String) -> &str {
        path.clear();
        // Writing to a String cannot fail.
        let _ = match self {
            Key::Root => write!(path, "/bench"),
            Key::Kept(number) => write!(path, "/bench/kept-{number:08}"),
            Key::Fresh(number) => write!(path, "/bench/new-{number:08}"),
        };
        path
    }
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) action: Action,
    pub(crate) key: Key,
}

/// The value of every key: as many bytes of one pool as a value has, from a place of its own.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    pool: Vec<u8>,
    length: usize,
}

impl Values {
    /// Returns values of `length` bytes, the same for the same `seed`.
    pub(crate) fn new(length: usize, seed: u64) -> Values {
        // Neighbouring keys start a byte apart, so a reply for another key never compares equal.
        const PLACES: usize = 4096;
        let mut pool = vec![0; length + PLACES];
        fastrand::Rng::with_seed(seed).fill(&mut pool);
        Values { pool, length }
    }

    /// Returns the length of every value in bytes.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Returns the value of a key.
    pub(crate) fn of(&self, key: Key) -> &[u8] {
        let place = match key {
            Key::Root => 0,
            Key::Kept(number) | Key::Fresh(number) => {
                number as usize % (self.pool.len() - self.length)
            }
        };
        &self.pool[place..place + self.length]
    }
}

/// What a server is loaded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Creates of new keys, deleted again between the rounds.
    Create,
    /// Writes of keys that exist.
    Set,
    /// Reads of keys that exist.
    Get,
    /// 90 reads to 10 writes, in random order.
    Mixed,
}

impl Workload {
    /// All workloads, in the order of reports.
    pub const ALL: [Workload; 4] =
        [Workload::Create, Workload::Set, Workload::Get, Workload::Mixed];

    /// Returns the name as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Create => "create",
            Workload::Set => "set",
            Workload::Get => "get",
            Workload::Mixed => "mixed",
        }
    }
}

/// The endless sequence of a workload's operations.
pub(crate) struct Requests {
    workload: Workload,
    kept_count: u32,
    fresh_next: u32,
    random: fastrand::Rng,
}

impl Requests {
    /// Begins a sequence over `kept_count` keys that exist; new keys count from `fresh_next`.
    pub(crate) fn new(workload: Workload, kept_count: u32, fresh_next: u32, seed: u64) -> Self {
        Requests { workload, kept_count, fresh_next, random: fastrand::Rng::with_seed(seed) }
    }

    /// Returns the first new key that was not created yet.
    pub(crate) fn fresh_next(&self) -> u32 {
        self.fresh_next
    }
}

impl Iterator for Requests {
    type Item = Operation;

    #[inline]
    fn next(&mut self) -> Option<Operation> {
        let action = match self.workload {
            Workload::Create => {
                let key = Key::Fresh(self.fresh_next);
                self.fresh_next += 1;
                return Some(Operation { action: Action::Create, key });
            }
            Workload::Set => Action::Set,
            Workload::Get => Action::Get,
            Workload::Mixed if self.random.u32(0..10) == 0 => Action::Set,
            Workload::Mixed => Action::Get,
        };
        let key = Key::Kept(self.random.u32(0..self.kept_count));
        Some(Operation { action, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixed_is_nine_reads_to_one_write() {
        let mut requests = Requests::new(Workload::Mixed, 100, 0, 7);
        let writes = (0..10_000)
            .filter(|_| requests.next().is_some_and(|operation| operation.action == Action::Set));
        let count = writes.count();
        assert!((900..1100).contains(&count), "{count} of 10000 were writes");
    }

    #[test]
    fn created_keys_are_never_created_again() {
        let mut requests = Requests::new(Workload::Create, 100, 5, 7);
        let keys: Vec<Key> = requests.by_ref().take(3).map(|operation| operation.key).collect();
        assert_eq!(keys, [Key::Fresh(5), Key::Fresh(6), Key::Fresh(7)]);
        assert_eq!(requests.fresh_next(), 8);
    }

    #[test]
    fn values_differ_from_key_to_key_and_not_from_run_to_run() {
        let values = Values::new(128, 1);
        assert_eq!(values.of(Key::Kept(3)), Values::new(128, 1).of(Key::Kept(3)));
        assert_ne!(values.of(Key::Kept(3)), values.of(Key::Kept(4)));
        assert_eq!(values.of(Key::Fresh(4_000_000_000)).len(), 128);
    }
}
