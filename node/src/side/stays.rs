//! How long blocks stay: those of mounts with a time to live leave when it is over.
//!
//! Owns since when each file of such a mount has blocks here. Always holds: all blocks of a file leave when the
//! first one of them has been here as long as its mount says; nothing is deleted at a source. When the mounts
//! change all files that are known are judged again, and those of a source that is not mounted any more leave.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millrace_proto::FileId;
use millrace_proto::cluster::{Mount, mount_of};
use tokio::sync::{Notify, watch};
use tokio::time::sleep_until;

use super::{Context, FOREVER};
use crate::cluster::View;

/// Files that have an end.
#[derive(Default)]
struct Ends {
    /// Since when each has blocks here, and until when.
    known: HashMap<FileId, (Instant, Instant)>,
    in_order: BTreeSet<(Instant, FileId)>,
}

impl Ends {
    fn remove(&mut self, file: FileId) -> Option<Instant> {
        let (since, end) = self.known.remove(&file)?;
        self.in_order.remove(&(end, file));
        Some(since)
    }

    fn insert(&mut self, file: FileId, since: Instant, ttl: Duration) {
        let end = since.checked_add(ttl).unwrap_or(since + FOREVER);
        self.known.insert(file, (since, end));
        self.in_order.insert((end, file));
    }
}

/// See the module.
pub(super) struct Stays {
    table: Mutex<Ends>,
    files_max: usize,
    /// Rung when the first end may be another one.
    changed: Notify,
}

impl Stays {
    /// Makes a table for at most `files_max` files.
    pub(super) fn new(files_max: usize) -> Stays {
        Stays { table: Mutex::default(), files_max, changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Ends> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that blocks of a file are here, which stay for `ttl` since the first one. Returns a file whose blocks
    /// have to go at once, because there is no room to note more.
    fn note(&self, file: FileId, ttl: Duration, now: Instant) -> Option<FileId> {
        let mut table = self.lock();
        if table.known.contains_key(&file) {
            return None;
        }
        table.insert(file, now, ttl);
        self.changed.notify_one();
        match table.known.len() > self.files_max {
            true => table.in_order.pop_first().map(|(_, first)| {
                table.known.remove(&first);
                first
            }),
            false => None,
        }
    }

    /// Notes that a file has another time to live, since its first block.
    fn judge(&self, file: FileId, ttl: Duration, now: Instant) {
        let mut table = self.lock();
        let since = table.remove(file).unwrap_or(now);
        if ttl < Duration::MAX {
            table.insert(file, since, ttl);
        }
        self.changed.notify_one();
    }

    /// Forgets a file, because its blocks leave.
    pub(super) fn forget(&self, file: FileId) {
        self.lock().remove(file);
    }

    /// Returns when the next file leaves.
    fn next_end(&self) -> Option<Instant> {
        self.lock().in_order.first().map(|(end, _)| *end)
    }

    /// Takes a file out whose time is over.
    fn take_due(&self, now: Instant) -> Option<FileId> {
        let mut table = self.lock();
        let (_, file) = *table.in_order.first().filter(|(end, _)| *end <= now)?;
        table.remove(file);
        Some(file)
    }
}

/// Has blocks leave in time, for as long as the node runs. `changes` brings new views.
pub(super) async fn run(context: &Context, mut changes: watch::Receiver<Arc<View>>) {
    let mut seen = Arc::clone(&changes.borrow_and_update());
    loop {
        while let Some(file) = context.stays.take_due(Instant::now()) {
            context.free_blocks(file).await;
        }
        let next = context.stays.next_end().unwrap_or_else(|| Instant::now() + FOREVER);
        tokio::select! {
            () = sleep_until(next.into()) => (),
            () = context.stays.changed.notified() => (),
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                let view = Arc::clone(&changes.borrow_and_update());
                if view.layout.mounts != seen.layout.mounts {
                    context.judge_all(&seen.layout.mounts, &view.layout.mounts).await;
                }
                seen = view;
            }
        }
    }
}

impl Context {
    /// Notes that blocks of a file are here, which stay for this long.
    pub(super) async fn count_down(&self, file: FileId, ttl: Duration) {
        if ttl < Duration::MAX
            && let Some(first) = self.stays.note(file, ttl, Instant::now())
        {
            self.free_blocks(first).await;
        }
    }

    /// True if a file, which is known by a path where nothing leads to it any more, is still reached by another one:
    /// its source may be mounted a second time.
    fn is_elsewhere(&self, file: FileId, path: &str, before: &[Mount], now: &[Mount]) -> bool {
        let Some((_, rest)) = mount_of(before, path) else { return false };
        let join = |prefix: &str| match (prefix, rest) {
            ("", rest) => rest.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, rest) => format!("{prefix}/{rest}"),
        };
        now.iter().any(|mount| self.store.identify(&join(&mount.prefix)) == file)
    }

    /// Judges all files that are known by what is mounted now, and was before.
    async fn judge_all(&self, before: &[Mount], now: &[Mount]) {
        for (file, path) in self.files.all() {
            if self.store.identify(&path) != file {
                if self.is_elsewhere(file, &path, before, now) {
                    continue;
                }
                // No path leads to it any more, so `Free` would not find it either.
                self.files.forget(file);
                self.free_blocks(file).await;
                continue;
            }
            match self.store.kept_for(&path) {
                Duration::ZERO => drop(self.free_blocks(file).await),
                ttl => self.stays.judge(file, ttl, Instant::now()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn due(stays: &Stays, now: Instant) -> Vec<u128> {
        std::iter::from_fn(|| stays.take_due(now)).map(|file| file.0).collect()
    }

    #[test]
    fn a_file_leaves_when_its_first_block_has_been_here_so_long() {
        let (stays, start) = (Stays::new(10), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(stays.note(FileId(1), TTL, at(0)), None);
        stays.note(FileId(1), TTL, at(9));
        stays.note(FileId(2), TTL, at(1));
        assert_eq!(stays.next_end(), Some(at(10)));
        assert_eq!(due(&stays, at(9)), [0; 0]);
        assert_eq!(due(&stays, at(10)), [1]);
        stays.forget(FileId(2));
        assert_eq!((due(&stays, at(20)), stays.next_end()), (vec![], None));
        stays.note(FileId(1), Duration::MAX - TTL, at(0));
        assert_eq!(due(&stays, at(1 << 30)), [0; 0], "a time that never comes");
    }

    #[test]
    fn another_time_counts_from_the_first_block_too() {
        let (stays, start) = (Stays::new(10), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        stays.note(FileId(1), TTL, at(0));
        stays.judge(FileId(1), 2 * TTL, at(5));
        stays.judge(FileId(2), TTL, at(5));
        assert_eq!((due(&stays, at(15)), due(&stays, at(20))), (vec![2], vec![1]));
        stays.note(FileId(1), TTL, at(20));
        stays.judge(FileId(1), Duration::MAX, at(21));
        assert_eq!(due(&stays, at(99)), [0; 0]);
    }

    #[test]
    fn where_too_many_are_known_the_first_one_leaves_at_once() {
        let (stays, start) = (Stays::new(2), Instant::now());
        let note = |file, ttl| stays.note(FileId(file), ttl, start);
        assert_eq!((note(1, 2 * TTL), note(2, TTL)), (None, None));
        assert_eq!(note(3, 3 * TTL), Some(FileId(2)));
        assert_eq!(due(&stays, start + 3 * TTL), [1, 3]);
    }
}
