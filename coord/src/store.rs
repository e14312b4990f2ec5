//! What a replica keeps on disk: the Raft log and the applied state, each behind a small trait.
//!
//! ```text
//!  DIR/lock             held while a process uses the directory
//!  DIR/log/             segments: the log, its hard state, where it begins   [`LogStore`]
//!  DIR/state/           LMDB: the applied state as records, and its index    [`StateStore`]
//!  DIR/state.incoming/  a snapshot that is being received; removed at open
//! ```
//!
//! Always holds: what a call said `Ok` to is on stable storage. A record is given out only if its
//! CRC-32 is right, and no record can be missing or old without notice: appends form a chain, the
//! state keeps the count and the sum of its records, both know the transaction that wrote them.
//! After a failed write or sync a store answers [`StoreError::Failed`] to every later write.
//! Leaves to its callers which thread calls it, when to commit, and what the bytes mean. A replica
//! whose `Applied::index` is beyond the log's last entry stopped between the install of a snapshot
//! and the reset of its log, and has to reset the log to `Applied` before it starts.

use std::path::{Path, PathBuf};

use raft::eraftpb::{ConfState, Entry, HardState};

mod directory;
mod files;
mod state;
mod wal;

mod lmdb;
mod pages;
mod record;
mod snapshot;

pub mod checkpoint;
pub mod memory;

pub use directory::{Sizes, Stores, open, open_existing};
pub use record::KEY_SIZE_MAX;
pub use snapshot::write_backup;
pub use state::LmdbState;
pub use wal::Wal;

#[cfg(test)]
mod tests;

/// Who data belongs to. Written into both parts at creation, compared at each open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// 0 while the replica has not yet joined a cluster; then set once, by `adopt`.
    pub cluster_id: u64,
    pub replica_id: u64,
    /// Random at creation: tells a directory from an earlier one of the same replica.
    pub store_id: u64,
}

/// What one Raft `Ready` wants on disk, in this order: reset, entries, hard state.
#[derive(Debug, Clone, Default)]
pub struct Append {
    /// The caller's number for it; the store does not look at it.
    pub number: u64,
    /// Forget the whole log: a snapshot up to this (index, term) replaced it.
    pub reset: Option<(u64, u64)>,
    /// Consecutive entries. What the log had from the first one's index on is replaced.
    pub entries: Vec<Entry>,
    pub hard_state: Option<HardState>,
}

/// Where a log begins and ends.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LogState {
    pub hard_state: HardState,
    /// The last entry that was forgotten; 0 in a log that never was compacted or reset.
    pub compacted_index: u64,
    pub compacted_term: u64,
    /// The last entry there is, or the compacted one if there is none.
    pub last_index: u64,
    pub last_term: u64,
}

/// The Raft log, for its one writer.
///
/// Breaking the rules of a log (a gap between entries, an entry at or before the compacted one,
/// a compaction beyond the last entry) is a mistake of the caller and panics.
pub trait LogStore: Send {
    /// Makes the whole batch durable in one commit: all of it or, on an error, nothing.
    ///
    /// # Errors
    /// [`StoreError::Full`] if it has no room: compact, then try again.
    /// [`StoreError::Failed`] if the disk refused; from then on every write answers so.
    fn append(&mut self, batch: &[Append]) -> Result<(), StoreError>;

    /// Forgets entries up to `to`, whose term is `term`, and gives the last index it did forget.
    ///
    /// One call forgets at most [`COMPACT_ENTRIES_MAX`] entries, in one commit, so that appends
    /// need not wait long: call again until it gives `to`. Does nothing if that is done already.
    ///
    /// # Errors
    /// As [`LogStore::append`].
    fn compact(&mut self, to: u64, term: u64) -> Result<u64, StoreError>;

    /// A reader that sees each commit as soon as it is durable; works in any thread.
    fn reader(&self) -> Box<dyn LogReader>;

    /// Bytes in use, free space inside files not counted.
    fn used_bytes(&self) -> u64;

    /// Bytes that it can grow to.
    fn limit_bytes(&self) -> u64;
}

/// Entries that one call of [`LogStore::compact`] forgets.
pub const COMPACT_ENTRIES_MAX: u64 = 4096;

/// The Raft log, for reading.
pub trait LogReader: Send {
    /// Where the log begins and ends, and the hard state.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if what was read is damaged.
    fn initial(&self) -> Result<LogState, StoreError>;

    /// Entries from `low` up to, without, `high`: as many as fit `bytes_max`, but at least one if
    /// there is one.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if `low` was forgotten, [`StoreError::Corrupt`] if an entry is
    /// damaged.
    fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, StoreError>;

    /// The term of the entry at `index`, also of the compacted one; `None` if it is not known.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if the entry is damaged.
    fn term(&self, index: u64) -> Result<Option<u64>, StoreError>;
}

/// The point in the log that a state belongs to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Applied {
    pub index: u64,
    pub term: u64,
    pub conf_state: ConfState,
}

/// How a log stands to the state that was applied from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continuity {
    /// The log goes on from the state, or ends with it.
    Whole,
    /// The log is that of before a snapshot, or of before the first start: it ends before the state
    /// or holds other entries that were not agreed on. It has to be reset to the state.
    Replaced,
    /// What is between the state and the first entry is lost.
    Gap,
}

/// Looks how a log stands to the state that was applied from it: what every start has to know.
///
/// # Errors
/// As [`LogReader::initial`].
pub fn continuity(log: &dyn LogReader, applied: &Applied) -> Result<Continuity, StoreError> {
    let LogState { compacted_index, last_index, .. } = log.initial()?;
    if applied.index < compacted_index {
        return Ok(Continuity::Gap);
    }
    let is_replaced = applied.index > last_index
        || (applied.index > compacted_index && log.term(applied.index)? != Some(applied.term));
    Ok(if is_replaced { Continuity::Replaced } else { Continuity::Whole })
}

/// Takes one record, a key and its value.
pub type Push<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), StoreError> + 'a;

/// Changed records, each key at most once: a key and its new value, `None` for a deleted one.
pub type Changes<'a, 'b> = dyn Iterator<Item = (&'b [u8], Option<&'b [u8]>)> + 'a;

/// The applied state, as records of a key (1 to [`KEY_SIZE_MAX`] bytes) and a value.
pub trait StateStore: Send {
    /// Hands out every record, in order of the keys, and says what they belong to; `None` if
    /// nothing was ever committed. The caller must drop what it was handed if this fails.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a record is damaged or missing; errors of `push`.
    fn load(&self, push: &mut Push<'_>) -> Result<Option<Applied>, StoreError>;

    /// Makes the changes and `applied` durable in one transaction: all or nothing.
    ///
    /// # Errors
    /// [`StoreError::Full`] if the environment has no room, [`StoreError::Failed`] if the disk
    /// refused; from then on every write answers so.
    fn commit(
        &mut self,
        records: &mut Changes<'_, '_>,
        applied: &Applied,
    ) -> Result<(), StoreError>;

    /// A view of the state as it is now. Space that later commits free is not used again while it
    /// lives, so its time should be bounded.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if nothing was committed yet or too many snapshots are open.
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotReader>, StoreError>;

    /// Begins to receive a snapshot, and forgets what was received of an earlier one.
    ///
    /// # Errors
    /// [`StoreError::Io`] or [`StoreError::Failed`] if the disk refused.
    fn begin_install(&mut self) -> Result<(), StoreError>;

    /// Stores the next chunk of a snapshot, as [`SnapshotReader::next_chunk`] made it.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if the chunk is damaged or not the next one. After any error only
    /// [`StateStore::begin_install`] can follow; the state itself is untouched.
    fn install_chunk(&mut self, chunk: &[u8]) -> Result<(), StoreError>;

    /// Replaces the state by what was received, atomically and durably. Open snapshots of the old
    /// state end with [`StoreError::SnapshotGone`].
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if it is not complete; the old state is then untouched.
    fn finish_install(&mut self) -> Result<Applied, StoreError>;

    /// Writes a snapshot of the state into a new file at `path`, which appears when complete.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file exists or cannot be written, or as [`StateStore::snapshot`].
    fn copy_to(&mut self, path: &Path) -> Result<Applied, StoreError> {
        let mut reader = self.snapshot()?;
        snapshot::write_backup(reader.as_mut(), path)?;
        Ok(reader.applied().clone())
    }

    /// Replaces the state by a file that [`StateStore::copy_to`] wrote.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it cannot be read, [`StoreError::Snapshot`] if it is damaged.
    fn install_from(&mut self, path: &Path) -> Result<Applied, StoreError> {
        self.begin_install()?;
        snapshot::read_backup(path, &mut |chunk| self.install_chunk(chunk))?;
        self.finish_install()
    }

    /// Bytes in use, free space inside the file not counted.
    fn used_bytes(&self) -> u64;

    /// Bytes that it can grow to.
    fn limit_bytes(&self) -> u64;
}

/// Snapshots of one state that may be open at a time.
pub const SNAPSHOTS_MAX: usize = 16;

/// An unchanging view of the state, read in chunks.
pub trait SnapshotReader: Send {
    /// What the view belongs to.
    fn applied(&self) -> &Applied;

    /// The next chunk, `None` after the last. A chunk is at most `bytes_max` bytes, or one record
    /// and some tens of bytes more. Every chunk carries its own checksum and number, the last one
    /// the count and digest of all records.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a record is damaged, [`StoreError::SnapshotGone`] if the state
    /// was replaced.
    fn next_chunk(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, StoreError>;
}

/// Why a store cannot do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Bytes on disk are not what was written. Nothing of them is used.
    #[error(
        "{what} is damaged: {at}. Check the disk, and keep the data directory. If others of the \
         ensemble run, remove this replica from them and add it again with a new directory; else \
         restore a backup (millrace coord restore)"
    )]
    Corrupt { what: String, at: String },
    /// It reached its size. Nothing of what was to be written is.
    #[error(
        "{what} is full: it may use {limit_bytes} bytes. Let it be compacted, or raise its limit \
         and restart"
    )]
    Full { what: String, limit_bytes: u64 },
    /// A write or sync failed. What was acknowledged before is safe; nothing more is taken.
    #[error("{what} takes no more writes: {reason}. Mend the disk, then restart")]
    Failed { what: String, reason: String },
    /// The entries asked for are no longer there.
    #[error("the log was compacted up to entry {index}")]
    Compacted { index: u64 },
    /// A snapshot cannot be made or used.
    #[error("the snapshot cannot be used: {reason}")]
    Snapshot { reason: String },
    /// The state that a snapshot was read from has been replaced.
    #[error("the state was replaced while a snapshot of it was read: begin a new one")]
    SnapshotGone,
    /// Another process uses the directory.
    #[error("{} is in use by another process: stop that one first", path.display())]
    Locked { path: PathBuf },
    /// The directory belongs to somebody else, or its two halves to different replicas.
    #[error("{} {reason}", path.display())]
    Foreign { path: PathBuf, reason: String },
    /// A part of the directory is missing.
    #[error("{} {reason}", path.display())]
    Incomplete { path: PathBuf, reason: String },
    /// A file or directory could not be opened, read or written.
    #[error("cannot {doing} {}: {reason}", path.display())]
    Io { doing: &'static str, path: PathBuf, reason: String },
}

impl StoreError {
    fn corrupt(what: &str, at: impl Into<String>) -> StoreError {
        StoreError::Corrupt { what: what.to_owned(), at: at.into() }
    }

    fn io(doing: &'static str, path: &Path, error: impl std::fmt::Display) -> StoreError {
        StoreError::Io { doing, path: path.to_owned(), reason: error.to_string() }
    }
}
