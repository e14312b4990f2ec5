//! Both stores in memory, for simulation: deterministic, with a disk that can be crashed.
//!
//! A write becomes part of the disk's image when it is synced, which normally is at once. With
//! [`MemoryDisk::hold`] writes wait until [`MemoryDisk::sync`], no reader sees them before, and
//! [`MemoryDisk::crash`] drops them. Always holds: the image is what [`super::Wal`] and
//! [`super::LmdbState`] would have on disk after the same calls. The simulator decides how long a sync
//! takes, because it calls `sync`.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use protobuf::Message;
use raft::eraftpb::{Entry, HardState};

use super::snapshot::{Decoder, Encoder};
use super::{
    Append, Applied, COMPACT_ENTRIES_MAX, KEY_SIZE_MAX, LogReader, LogState, LogStore, Push,
    RecordChanges, SnapshotReader, StateStore, StoreError,
};

/// One of the two stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Log,
    State,
}

/// A disk with the two stores of one replica. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    inner: Arc<Mutex<DiskState>>,
    store_id: u64,
}

#[derive(Debug, Default)]
struct DiskState {
    log: Device<LogImage>,
    state: Device<StateImage>,
    is_held: bool,
}

impl MemoryDisk {
    /// Builds an empty disk. `store_id` only distinguishes its snapshots from others.
    pub fn new(store_id: u64) -> MemoryDisk {
        MemoryDisk { inner: Arc::default(), store_id }
    }

    /// Opens the log on this disk. As with a directory, there should be one at a time.
    pub fn log(&self) -> MemoryLog {
        MemoryLog { disk: self.clone() }
    }

    /// Opens the state on this disk.
    pub fn state(&self) -> MemoryState {
        MemoryState { disk: self.clone(), incoming: None }
    }

    /// Makes writes wait for [`MemoryDisk::sync`], or not. Turning it off syncs nothing.
    pub fn hold(&self, is_held: bool) {
        self.lock().is_held = is_held;
    }

    /// Makes the writes to a part durable.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if the part failed before, or if this sync was set to fail.
    pub fn sync(&self, part: Part) -> Result<(), StoreError> {
        let mut disk = self.lock();
        match part {
            Part::Log => disk.log.sync(),
            Part::State => disk.state.sync(),
        }
    }

    /// Makes the `nth` sync of a part from now on fail (1 is the next). It makes nothing durable, and the
    /// part takes no more writes.
    pub fn fail_sync(&self, part: Part, nth: u64) {
        let mut disk = self.lock();
        match part {
            Part::Log => disk.log.syncs_to_failure = Some(nth),
            Part::State => disk.state.syncs_to_failure = Some(nth),
        }
    }

    /// Drops what was not synced, and repairs what failed, as a restart of the machine does. Stores and
    /// readers of the time before must not be used any more.
    pub fn crash(&self) {
        let mut disk = self.lock();
        disk.log.crash();
        disk.state.crash();
    }

    fn lock(&self) -> MutexGuard<'_, DiskState> {
        // A panic in the middle of a change fails the simulation anyway.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type UnsyncedWrite<T> = Box<dyn FnOnce(&mut T) + Send>;

/// An image, and the writes that are not in it yet.
struct Device<T> {
    image: T,
    waiting: Vec<UnsyncedWrite<T>>,
    syncs_to_failure: Option<u64>,
    failed: Option<StoreError>,
}

impl<T: Default> Default for Device<T> {
    fn default() -> Device<T> {
        let image = T::default();
        Device { image, waiting: Vec::new(), syncs_to_failure: None, failed: None }
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Device<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = self.waiting.len();
        formatter.debug_struct("Device").field("waiting", &waiting).finish_non_exhaustive()
    }
}

impl<T> Device<T> {
    fn write(
        &mut self,
        is_held: bool,
        write: impl FnOnce(&mut T) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.check()?;
        self.waiting.push(Box::new(write));
        if is_held { Ok(()) } else { self.sync() }
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.check()?;
        self.syncs_to_failure = self.syncs_to_failure.map(|left| left.saturating_sub(1));
        if self.syncs_to_failure == Some(0) {
            let (what, reason) = ("the disk in memory".to_owned(), "its sync failed".to_owned());
            self.failed = Some(StoreError::Failed { what, reason });
            return self.check();
        }
        for write in self.waiting.drain(..) {
            write(&mut self.image);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), StoreError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn crash(&mut self) {
        self.waiting.clear();
        self.syncs_to_failure = None;
        self.failed = None;
    }
}

#[derive(Debug, Default)]
struct LogImage {
    hard_state: HardState,
    compacted: (u64, u64),
    /// The entries after the compacted one.
    entries: VecDeque<Entry>,
}

impl LogImage {
    fn last_index(&self) -> u64 {
        self.compacted.0 + self.entries.len() as u64
    }

    fn get(&self, index: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(index.checked_sub(self.compacted.0 + 1)?).ok()?)
    }

    fn append(&mut self, append: Append) {
        if let Some(reset) = append.reset {
            self.entries.clear();
            self.compacted = reset;
        }
        if let Some(first) = append.entries.first() {
            let kept = first.index.checked_sub(self.compacted.0 + 1);
            let kept = kept.expect("an appended entry is after the compacted one");
            assert!(kept <= self.entries.len() as u64, "an appended entry leaves no gap");
            self.entries.truncate(kept as usize);
        }
        for entry in append.entries {
            assert_eq!(entry.index, self.last_index() + 1, "entries of an append are consecutive");
            self.entries.push_back(entry);
        }
        if let Some(hard_state) = append.hard_state {
            self.hard_state = hard_state;
        }
    }

    fn compact(&mut self, to: u64, term: u64) {
        // A write in between may have reset the log to a later entry.
        while self.compacted.0 < to
            && let Some(entry) = self.entries.pop_front()
        {
            self.compacted = (entry.index, entry.term);
        }
        assert!(
            self.compacted.0 > to || self.compacted == (to, term),
            "compaction to another term"
        );
    }
}

/// The log of a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryLog {
    disk: MemoryDisk,
}

impl LogStore for MemoryLog {
    fn append(&mut self, batch: &[Append]) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let batch = batch.to_vec();
        let disk = &mut *self.disk.lock();
        disk.log.write(disk.is_held, move |image| {
            for append in batch {
                image.append(append);
            }
        })
    }

    fn compact(&mut self, to: u64, term: u64) -> Result<u64, StoreError> {
        let disk = &mut *self.disk.lock();
        let image = &disk.log.image;
        assert!(disk.is_held || to <= image.last_index(), "compaction beyond the end");
        if to <= image.compacted.0 {
            return Ok(image.compacted.0);
        }
        let step = to.min(image.compacted.0 + COMPACT_ENTRIES_MAX);
        let Some(term) = (if step == to { Some(term) } else { image.get(step).map(|e| e.term) })
        else {
            // The compaction waits behind writes that are not in the image: try again after the sync.
            return Ok(image.compacted.0);
        };
        disk.log.write(disk.is_held, move |image| image.compact(step, term))?;
        Ok(step)
    }

    fn reader(&self) -> Box<dyn LogReader> {
        Box::new(MemoryLog { disk: self.disk.clone() })
    }

    fn used_bytes(&self) -> u64 {
        let disk = self.disk.lock();
        disk.log.image.entries.iter().map(|entry| u64::from(entry.compute_size())).sum()
    }

    fn limit_bytes(&self) -> u64 {
        u64::MAX
    }
}

impl LogReader for MemoryLog {
    fn initial(&self) -> Result<LogState, StoreError> {
        let disk = self.disk.lock();
        let LogImage { hard_state, compacted, entries } = &disk.log.image;
        Ok(LogState {
            hard_state: hard_state.clone(),
            compacted_index: compacted.0,
            compacted_term: compacted.1,
            last_index: disk.log.image.last_index(),
            last_term: entries.back().map_or(compacted.1, |entry| entry.term),
        })
    }

    fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, StoreError> {
        let disk = self.disk.lock();
        let image = &disk.log.image;
        if low <= image.compacted.0 {
            return Err(StoreError::Compacted { index: image.compacted.0 });
        }
        let mut bytes = 0;
        let mut entries: Vec<Entry> = Vec::new();
        for entry in (low..high).map_while(|index| image.get(index)) {
            bytes += u64::from(entry.compute_size());
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<Option<u64>, StoreError> {
        let disk = self.disk.lock();
        let image = &disk.log.image;
        Ok(match index == image.compacted.0 {
            true => Some(image.compacted.1),
            false => image.get(index).map(|entry| entry.term),
        })
    }
}

type RecordMap = BTreeMap<Vec<u8>, Bytes>;

#[derive(Debug, Default)]
struct StateImage {
    /// Shared with snapshots, and copied when it changes while one is open.
    records: Arc<RecordMap>,
    applied: Option<Applied>,
}

/// The state of a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryState {
    disk: MemoryDisk,
    incoming: Option<(Decoder, RecordMap)>,
}

impl StateStore for MemoryState {
    fn load(&self, push: &mut Push<'_>) -> Result<Option<Applied>, StoreError> {
        // `push` may do anything, so the lock is not held.
        let (records, applied) = {
            let disk = self.disk.lock();
            (disk.state.image.records.clone(), disk.state.image.applied.clone())
        };
        records.iter().try_for_each(|(key, value)| push(key, value))?;
        Ok(applied)
    }

    fn commit(
        &mut self,
        changes: &mut RecordChanges<'_, '_>,
        applied: &Applied,
    ) -> Result<(), StoreError> {
        let mut owned = Vec::new();
        for (key, value) in changes {
            assert!(!key.is_empty() && key.len() <= KEY_SIZE_MAX, "a key of {} bytes", key.len());
            owned.push((key.to_vec(), value.map(Bytes::copy_from_slice)));
        }
        let applied = applied.clone();
        let disk = &mut *self.disk.lock();
        disk.state.write(disk.is_held, move |image| {
            let records = Arc::make_mut(&mut image.records);
            for (key, value) in owned {
                match value {
                    Some(value) => records.insert(key, value),
                    None => records.remove(&key),
                };
            }
            image.applied = Some(applied);
        })
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotReader>, StoreError> {
        let disk = self.disk.lock();
        let image = &disk.state.image;
        let Some(applied) = image.applied.clone() else {
            return Err(StoreError::Snapshot { reason: "nothing was committed yet".to_owned() });
        };
        let encoder = Encoder::new(self.disk.store_id, applied.index);
        Ok(Box::new(MemorySnapshot { records: image.records.clone(), applied, encoder }))
    }

    fn begin_install(&mut self) -> Result<(), StoreError> {
        self.disk.lock().state.check()?;
        self.incoming = Some((Decoder::default(), RecordMap::new()));
        Ok(())
    }

    fn install_chunk(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        let (mut decoder, mut records) = self.incoming.take().ok_or_else(not_begun)?;
        decoder.accept(chunk, &mut |key, value| {
            records.insert(key.to_vec(), Bytes::copy_from_slice(value));
            Ok(())
        })?;
        self.incoming = Some((decoder, records));
        Ok(())
    }

    fn finish_install(&mut self) -> Result<Applied, StoreError> {
        let (decoder, records) = self.incoming.take().ok_or_else(not_begun)?;
        let (applied, _) = decoder.finish()?;
        let disk = &mut *self.disk.lock();
        let image = StateImage { records: Arc::new(records), applied: Some(applied.clone()) };
        disk.state.write(disk.is_held, move |current| *current = image)?;
        Ok(applied)
    }

    fn used_bytes(&self) -> u64 {
        let disk = self.disk.lock();
        let records = disk.state.image.records.iter();
        records.map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }

    fn limit_bytes(&self) -> u64 {
        u64::MAX
    }
}

fn not_begun() -> StoreError {
    StoreError::Snapshot { reason: "its installation was not begun, or failed".to_owned() }
}

/// A snapshot of a state in memory. It stays readable after the state is replaced.
struct MemorySnapshot {
    records: Arc<RecordMap>,
    applied: Applied,
    encoder: Encoder,
}

impl SnapshotReader for MemorySnapshot {
    fn applied(&self) -> &Applied {
        &self.applied
    }

    fn next_chunk(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, StoreError> {
        let after = self.encoder.last_key().to_vec();
        let range = (Bound::Excluded(&after[..]), Bound::Unbounded);
        let records = self.records.range::<[u8], _>(range);
        self.encoder.next(
            &self.applied,
            records.map(|(key, value)| Ok((&key[..], &value[..]))),
            bytes_max,
        )
    }
}
