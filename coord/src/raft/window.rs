//! The end of the Raft log in memory, and access to the entries before it.
//!
//! The crate `raft` calls this its storage. Entries are here as soon as the log thread gets them, so
//! replication never reads the disk. Older ones, which only a follower that is far behind asks for, come
//! through [`LogReader`]. An entry leaves memory once it is durable, applied and beyond the budget, so the
//! reader never returns an entry that is replaced later.

use std::collections::VecDeque;

use ::raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use ::raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use crate::store::{self, Applied, Continuity, LogReader, StoreError};

/// Most bytes of durable, applied entries kept in memory, for followers that lag a little.
const WINDOW_BYTES_MAX: usize = 32 << 20;
/// Bytes of entries between two marks, which say how much log lies behind an index.
const MARK_BYTES: u64 = 1 << 20;
/// Estimated bytes that an entry costs beside its data.
const ENTRY_OVERHEAD: usize = 96;

/// The log as Raft sees it.
pub(super) struct Window {
    hard_state: HardState,
    conf_state: ConfState,
    /// The entry before the first: index and term.
    compacted: (u64, u64),
    /// Consecutive entries up to the last of the log.
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Bytes of all entries ever taken, and the index at the end of each mebibyte of them.
    taken_bytes: u64,
    marks: VecDeque<(u64, u64)>,
    /// The durable state, which a snapshot would hold.
    checkpoint: Applied,
    reader: Box<dyn LogReader>,
}

fn size_of(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + ENTRY_OVERHEAD
}

fn store_error(error: StoreError) -> Error {
    Error::Store(StorageError::Other(Box::new(error)))
}

impl Window {
    /// Opens the log behind `reader`, for a state that is applied up to `applied`.
    pub(super) fn open(reader: Box<dyn LogReader>, applied: Applied) -> Result<Window, StoreError> {
        let initial = reader.initial()?;
        let mut hard_state = initial.hard_state;
        // The state is durable, so its entries were committed, even if the log does not say it.
        hard_state.commit = hard_state.commit.max(applied.index);
        let mut window = Window {
            hard_state,
            conf_state: applied.conf_state.clone(),
            compacted: (initial.compacted_index, initial.compacted_term),
            entries: VecDeque::new(),
            bytes: 0,
            taken_bytes: 0,
            marks: VecDeque::new(),
            checkpoint: applied.clone(),
            reader,
        };
        // An installed snapshot replaces the log, even if a crash came in between. Then the log ends before
        // the snapshot, or holds other entries that were never agreed on.
        if store::continuity(window.reader.as_ref(), &applied)? != Continuity::Whole {
            window.compacted = (applied.index, applied.term);
        } else {
            // The last applied entry is kept, because nothing replaces it. So memory always knows the end
            // of the log.
            let first = applied.index.max(initial.compacted_index + 1);
            let entries = window.reader.entries(first, initial.last_index + 1, u64::MAX)?;
            window.bytes = entries.iter().map(size_of).sum();
            window.entries = entries.into();
        }
        if window.hard_state.term < applied.term {
            window.hard_state.term = applied.term;
            window.hard_state.vote = 0;
        }
        Ok(window)
    }

    /// Returns the index of the last entry that left the log.
    pub(super) fn compacted_index(&self) -> u64 {
        self.compacted.0
    }

    pub(super) fn conf_state(&self) -> &ConfState {
        &self.conf_state
    }

    pub(super) fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    pub(super) fn checkpoint(&self) -> &Applied {
        &self.checkpoint
    }

    pub(super) fn set_checkpoint(&mut self, checkpoint: Applied) {
        self.checkpoint = checkpoint;
    }

    pub(super) fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    pub(super) fn last(&self) -> u64 {
        match self.entries.back() {
            Some(entry) => entry.index,
            None => self.compacted.0.max(self.memory_first() - 1),
        }
    }

    /// Returns the first index that memory holds, or would hold next.
    fn memory_first(&self) -> u64 {
        self.entries.front().map_or(self.compacted.0 + 1, |entry| entry.index)
    }

    /// Takes entries. They replace all from the first one's index on.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.entries.back().is_some_and(|entry| entry.index >= first.index) {
            let dropped = self.entries.pop_back().expect("there is a last one");
            self.bytes -= size_of(&dropped);
        }
        assert!(first.index == self.last() + 1, "entries leave no hole");
        while self.marks.back().is_some_and(|&(index, _)| index >= first.index) {
            self.marks.pop_back();
        }
        for entry in entries {
            self.bytes += size_of(entry);
            self.taken_bytes += size_of(entry) as u64;
            let marked = self.marks.back().map_or(0, |&(_, bytes)| bytes);
            if self.taken_bytes >= marked + MARK_BYTES {
                self.marks.push_back((entry.index, self.taken_bytes));
            }
            self.entries.push_back(entry.clone());
        }
    }

    /// Forgets everything, because a snapshot replaced it.
    pub(super) fn reset(&mut self, applied: Applied) {
        self.entries.clear();
        self.marks.clear();
        self.bytes = 0;
        self.compacted = (applied.index, applied.term);
        self.conf_state = applied.conf_state.clone();
        self.checkpoint = applied;
    }

    /// Frees memory. The entries up to `index` are durable and applied.
    pub(super) fn shrink(&mut self, index: u64) {
        // The entry at `index` stays, because all behind it may be replaced.
        while self.bytes > WINDOW_BYTES_MAX {
            if self.entries.front().is_none_or(|entry| entry.index >= index) {
                return;
            }
            let dropped = self.entries.pop_front().expect("there is a first one");
            self.bytes -= size_of(&dropped);
        }
    }

    /// Returns the last index that is at least `bytes` behind the end of the log; 0 if none is known.
    pub(super) fn index_behind(&self, bytes: u64) -> u64 {
        let end = self.taken_bytes.saturating_sub(bytes);
        let behind = self.marks.partition_point(|&(_, marked)| marked <= end);
        behind.checked_sub(1).map_or(0, |place| self.marks[place].0)
    }

    /// Forgets entries up to `index`. Returns the term of that entry, or `None` if it is unknown or already
    /// forgotten.
    pub(super) fn compact(&mut self, index: u64) -> Option<u64> {
        if index <= self.compacted.0 || index > self.last() {
            return None;
        }
        let term = self.term(index).ok()?;
        self.compacted = (index, term);
        while self.marks.front().is_some_and(|&(marked, _)| marked < index) {
            self.marks.pop_front();
        }
        while self.entries.front().is_some_and(|entry| entry.index <= index) {
            let dropped = self.entries.pop_front().expect("there is a first one");
            self.bytes -= size_of(&dropped);
        }
        Some(term)
    }
}

impl Storage for Window {
    fn initial_state(&self) -> ::raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> ::raft::Result<Vec<Entry>> {
        if low <= self.compacted.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        let memory_first = self.memory_first();
        if low < memory_first {
            let high = high.min(memory_first);
            return self.reader.entries(low, high, bytes_max).map_err(store_error);
        }
        let start = (low - memory_first) as usize;
        let mut taken = Vec::with_capacity((high - low).min(64) as usize);
        let mut bytes = 0;
        for entry in self.entries.range(start..).take((high - low) as usize) {
            bytes += size_of(entry) as u64;
            if bytes > bytes_max && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }

    fn term(&self, index: u64) -> ::raft::Result<u64> {
        if index == self.compacted.0 {
            return Ok(self.compacted.1);
        }
        if index < self.compacted.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let memory_first = self.memory_first();
        if index >= memory_first {
            return match self.entries.get((index - memory_first) as usize) {
                Some(entry) => Ok(entry.term),
                None => Err(Error::Store(StorageError::Unavailable)),
            };
        }
        match self.reader.term(index).map_err(store_error)? {
            Some(term) => Ok(term),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> ::raft::Result<u64> {
        Ok(self.compacted.0 + 1)
    }

    fn last_index(&self) -> ::raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> ::raft::Result<Snapshot> {
        if self.checkpoint.index < request_index || self.checkpoint.index == 0 {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = self.checkpoint.index;
        metadata.term = self.checkpoint.term;
        metadata.set_conf_state(self.checkpoint.conf_state.clone());
        Ok(snapshot)
    }
}
