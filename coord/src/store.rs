//! The data of a replica on disk: the Raft log and the applied state, each behind a small trait.
//!
//! ```text
//!  DIR/lock             held while a process uses the directory
//!  DIR/log/             segments: the log, its hard state, where it begins   [`LogStore`]
//!  DIR/state/           LMDB: the applied state as records, and its index    [`StateStore`]
//!  DIR/state.incoming/  a snapshot that is being received; removed at open
//! ```
//!
//! Always holds: when a call returns `Ok`, its data is on stable storage. A record is returned only if its
//! CRC-32 is right. A missing or old record is noticed: appends form a chain, the state keeps the count and
//! the sum of its records, and both know the transaction that wrote them. After a failed write or sync a
//! store answers [`StoreError::Failed`] to every later write. The callers decide which thread calls, when
//! to commit, and what the bytes mean. If `Applied::index` is beyond the log's last entry, the replica
//! stopped after a snapshot was installed and before its log was reset. It must reset the log to `Applied`
//! before it starts.

use std::path::{Path, PathBuf};

use raft::eraftpb::{ConfState, Entry, HardState};

mod directory;
mod files;
mod place;
mod state;
mod wal;

mod lmdb;
mod pages;
mod record;
mod snapshot;

pub mod checkpoint;
pub mod memory;

pub use directory::{Sizes, Stores, open, open_existing};
pub use place::{has_state, place_log};
pub use record::KEY_SIZE_MAX;
pub use snapshot::write_backup;
pub use state::LmdbState;
pub use wal::Wal;

#[cfg(test)]
mod tests;

/// The owner of the data. Both parts get it at creation, and each open compares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreIdentity {
    /// 0 before the replica joins an ensemble; then `adopt` sets it once.
    pub cluster_id: u64,
    pub replica_id: u64,
    /// Random at creation. It distinguishes a directory from an earlier one of the same replica.
    pub store_id: u64,
}

/// The writes of one Raft `Ready`, in this order: reset, entries, hard state.
#[derive(Debug, Clone, Default)]
pub struct Append {
    /// The caller's number for it, which the store ignores.
    pub number: u64,
    /// Forgets the whole log, because a snapshot up to this (index, term) replaced it.
    pub reset: Option<(u64, u64)>,
    /// Consecutive entries. They replace all from the first one's index on.
    pub entries: Vec<Entry>,
    pub hard_state: Option<HardState>,
}

/// The ends of a log.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LogState {
    pub hard_state: HardState,
    /// The last forgotten entry; 0 in a log that was never compacted or reset.
    pub compacted_index: u64,
    pub compacted_term: u64,
    /// The last entry, or the compacted one without one.
    pub last_index: u64,
    pub last_term: u64,
}

/// The Raft log, for its one writer.
///
/// A gap between entries, an entry at or before the compacted one, and a compaction beyond the last entry
/// are mistakes of the caller: the call panics.
pub trait LogStore: Send {
    /// Makes the whole batch durable in one commit; on an error, nothing.
    ///
    /// # Errors
    /// [`StoreError::Full`] if there is no room: compact, then try again. [`StoreError::Failed`] if the
    /// disk failed; from then on every write fails like this.
    fn append(&mut self, batch: &[Append]) -> Result<(), StoreError>;

    /// Forgets entries up to `to`, whose term is `term`. Returns the index of the last one forgotten so
    /// far.
    ///
    /// One call forgets at most [`COMPACT_ENTRIES_MAX`] entries, in one commit, so that appends do not wait
    /// long. Call again until it returns `to`. Does nothing if that is done already.
    ///
    /// # Errors
    /// As [`LogStore::append`].
    fn compact(&mut self, to: u64, term: u64) -> Result<u64, StoreError>;

    /// Returns a reader that sees each commit as soon as it is durable; it works in any thread.
    fn reader(&self) -> Box<dyn LogReader>;

    /// Returns the bytes in use, without free space inside files.
    fn used_bytes(&self) -> u64;

    /// Returns the bytes that the log may grow to.
    fn limit_bytes(&self) -> u64;
}

/// Most entries that one call of [`LogStore::compact`] forgets.
pub const COMPACT_ENTRIES_MAX: u64 = 4096;

/// The Raft log, for reading.
pub trait LogReader: Send {
    /// Returns the ends of the log, and the hard state.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if the data is damaged.
    fn initial(&self) -> Result<LogState, StoreError>;

    /// Returns entries from `low` on, before `high`: as many as fit `bytes_max`, and at least one if there
    /// is one.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if `low` was forgotten, [`StoreError::Corrupt`] if an entry is
    /// damaged.
    fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, StoreError>;

    /// Returns the term of the entry at `index`, also of the compacted one; `None` if unknown.
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

/// How a log fits the state that was applied from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continuity {
    /// The log continues from the state, or ends with it.
    Whole,
    /// The log is older than a snapshot, or than the first start: it ends before the state, or holds other
    /// entries that were never agreed on. It must be reset to the state.
    Replaced,
    /// The entries between the state and the first one are lost.
    Gap,
}

/// Compares a log with the state that was applied from it, which every start must do.
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
pub type RecordChanges<'a, 'b> = dyn Iterator<Item = (&'b [u8], Option<&'b [u8]>)> + 'a;

/// The applied state, as records of a key (1 to [`KEY_SIZE_MAX`] bytes) and a value.
pub trait StateStore: Send {
    /// Pushes every record, in the order of keys, and returns the point that they belong to; `None` if
    /// nothing was ever committed. If this fails, the caller must drop the pushed records.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a record is damaged or missing; errors of `push`.
    fn load(&self, push: &mut Push<'_>) -> Result<Option<Applied>, StoreError>;

    /// Makes the changes and `applied` durable in one transaction: all or nothing.
    ///
    /// # Errors
    /// [`StoreError::Full`] if there is no room, [`StoreError::Failed`] if the disk failed; from then on
    /// every write fails like this.
    fn commit(
        &mut self,
        records: &mut RecordChanges<'_, '_>,
        applied: &Applied,
    ) -> Result<(), StoreError>;

    /// Opens a view of the state as it is now. Space that later commits free is not reused while the view
    /// lives, so limit its time.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if nothing was committed yet or too many snapshots are open.
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotReader>, StoreError>;

    /// Begins to receive a snapshot, and forgets the chunks of an earlier one.
    ///
    /// # Errors
    /// [`StoreError::Io`] or [`StoreError::Failed`] if the disk failed.
    fn begin_install(&mut self) -> Result<(), StoreError>;

    /// Stores the next chunk that [`SnapshotReader::next_chunk`] made.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if the chunk is damaged or not the next one. After any error only
    /// [`StateStore::begin_install`] may follow; the state itself is unchanged.
    fn install_chunk(&mut self, chunk: &[u8]) -> Result<(), StoreError>;

    /// Replaces the state with the received one, atomically and durably. Open snapshots of the old state
    /// end with [`StoreError::SnapshotGone`].
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if it is not complete; the old state is then unchanged.
    fn finish_install(&mut self) -> Result<Applied, StoreError>;

    /// Writes a snapshot of the state to a new file at `path`, which appears when complete.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file exists or cannot be written, or as [`StateStore::snapshot`].
    fn copy_to(&mut self, path: &Path) -> Result<Applied, StoreError> {
        let mut reader = self.snapshot()?;
        snapshot::write_backup(reader.as_mut(), path)?;
        Ok(reader.applied().clone())
    }

    /// Replaces the state with a file of [`StateStore::copy_to`].
    ///
    /// # Errors
    /// [`StoreError::Io`] if it cannot be read, [`StoreError::Snapshot`] if it is damaged.
    fn install_from(&mut self, path: &Path) -> Result<Applied, StoreError> {
        self.begin_install()?;
        snapshot::read_backup(path, &mut |chunk| self.install_chunk(chunk))?;
        self.finish_install()
    }

    /// Returns the bytes in use, without free space inside the file.
    fn used_bytes(&self) -> u64;

    /// Returns the bytes that the state may grow to.
    fn limit_bytes(&self) -> u64;
}

/// Most snapshots of one state that are open at a time.
pub const SNAPSHOTS_MAX: usize = 16;

/// An unchanging view of the state, read in chunks.
pub trait SnapshotReader: Send {
    /// Returns the point that the view belongs to.
    fn applied(&self) -> &Applied;

    /// Returns the next chunk, `None` after the last. A chunk is at most `bytes_max` bytes, or one record
    /// and some tens of bytes more. Every chunk has its own checksum and number, and the last one the count
    /// and digest of all records.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a record is damaged, [`StoreError::SnapshotGone`] if the state
    /// was replaced.
    fn next_chunk(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, StoreError>;
}

/// The reason that a store cannot do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Bytes on disk are not what was written. None of them are used.
    #[error(
        "{what} is damaged: {at}. Check the disk, and keep the data directory. If others of the \
         ensemble run, remove this replica from them and add it again with a new directory; else \
         restore a backup (millrace coord restore)"
    )]
    Corrupt { what: String, at: String },
    /// The store reached its largest size. Nothing of the failed call is written.
    #[error(
        "{what} is full: it may use {limit_bytes} bytes. Let it be compacted, or raise its limit \
         and restart"
    )]
    Full { what: String, limit_bytes: u64 },
    /// A write or sync failed. All acknowledged data is safe, and no more writes are accepted.
    #[error("{what} takes no more writes: {reason}. Repair the disk, then restart")]
    Failed { what: String, reason: String },
    /// The requested entries were forgotten.
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
    /// The directory belongs to another replica, or its two halves to different ones.
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
