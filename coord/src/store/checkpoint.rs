//! Changes of the state on their way to disk: merged by key, so that many batches become one
//! commit.
//!
//! Apart from the store this is pure: the caller has the time, and decides when to look. Always holds: a
//! commit now would make everything durable that waits, in one transaction, up to the last batch. Losing
//! what waits loses nothing, because the log has the entries after the last commit.

use std::collections::BTreeMap;

use super::{Applied, StateStore, StoreError};

/// Estimated bytes that a waiting record costs beside its key and value, for the overhead of the tree.
const RECORD_COST: usize = 96;

/// When a commit is due: at the first of these limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Milliseconds that the oldest waiting change may wait.
    pub wait_ms_max: u64,
    /// Bytes that may wait. A checkpoint has at most this much and one batch more.
    pub bytes_max: usize,
}

/// Changes that wait for their commit.
#[derive(Debug)]
pub struct MergedCheckpoint {
    limits: Limits,
    /// The records, in the order of their keys, which is the cheapest order for the store.
    records: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    bytes: usize,
    applied: Option<Applied>,
    /// The time of the oldest batch, in the caller's milliseconds.
    since_ms: u64,
}

impl MergedCheckpoint {
    pub fn new(limits: Limits) -> MergedCheckpoint {
        MergedCheckpoint { limits, records: BTreeMap::new(), bytes: 0, applied: None, since_ms: 0 }
    }

    /// Adds the changes of the entries up to `applied`, in the order of the log. A later value of a
    /// key replaces an earlier one, `None` deletes it.
    ///
    /// # Panics
    /// Panics if `applied` goes back, or if a commit is due because of bytes: commit first.
    pub fn add(&mut self, records: Vec<(Vec<u8>, Option<Vec<u8>>)>, applied: Applied, now_ms: u64) {
        assert!(self.bytes < self.limits.bytes_max, "a checkpoint is full and was not committed");
        match &self.applied {
            Some(earlier) => assert!(earlier.index <= applied.index, "a checkpoint goes back"),
            None => self.since_ms = now_ms,
        }
        for (key, value) in records {
            let key_size = key.len();
            self.bytes += RECORD_COST + key_size + size(&value);
            if let Some(earlier) = self.records.insert(key, value) {
                self.bytes -= RECORD_COST + key_size + size(&earlier);
            }
        }
        self.applied = Some(applied);
    }

    /// Returns when the next commit is due, in the caller's milliseconds: now if there are many bytes,
    /// `None` if nothing waits.
    pub fn due_ms(&self) -> Option<u64> {
        self.applied.as_ref()?;
        match self.bytes < self.limits.bytes_max {
            true => Some(self.since_ms + self.limits.wait_ms_max),
            false => Some(self.since_ms),
        }
    }

    /// True if a commit is due.
    pub fn is_due(&self, now_ms: u64) -> bool {
        self.due_ms().is_some_and(|due_ms| due_ms <= now_ms)
    }

    /// Returns the count of waiting bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes durable what waits, and returns the index that is now durable; `None` if nothing waited. After
    /// an error everything still waits.
    ///
    /// # Errors
    /// As [`StateStore::commit`].
    pub fn commit(&mut self, store: &mut dyn StateStore) -> Result<Option<u64>, StoreError> {
        let Some(applied) = &self.applied else { return Ok(None) };
        let mut changes = self.records.iter().map(|(key, value)| (&key[..], value.as_deref()));
        store.commit(&mut changes, applied)?;
        let index = applied.index;
        self.clear();
        Ok(Some(index))
    }

    /// Forgets what waits, because a snapshot replaced the state.
    pub fn clear(&mut self) {
        self.records.clear();
        self.bytes = 0;
        self.applied = None;
    }
}

fn size(value: &Option<Vec<u8>>) -> usize {
    value.as_ref().map_or(0, Vec::len)
}
