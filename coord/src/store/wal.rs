//! The Raft log: segments that are appended to, with one flush for each append.
//!
//! ```text
//!  append ─► Builder ─► write ─► sync ─► Mark ─► Index ─► readers
//!            a batch    into a segment   not synced       see it
//! ```
//!
//! Always holds: a batch is durable before it is in the index, and so before any reader sees it; a replaced
//! entry stays where it is, so a reader that found it before reads the old one; a segment without entries
//! is removed. Every segment repeats at its beginning all other facts about the log, so the first segments
//! can be removed. After a failed write or sync nothing more is written. The next open may find the failed
//! batch complete, which Raft allows.
//!
//! LMDB is not used here, because its commit is two flushes and some pages of a tree (measured: 2.5 times
//! the time of one small append). [`recover`] handles the results of a crash or a bad disk.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::files::Lock;
use super::{Append, COMPACT_ENTRIES_MAX, LogReader, LogStore, StoreError, StoreIdentity};

mod batch;
mod index;
mod reader;
mod recover;
mod segment;

#[cfg(test)]
mod tests;

use batch::{Begin, Builder};
use index::{Header, Index, Live, Op, Position};
use reader::WalReader;
use recover::Recovered;
pub(super) use segment::is_name_of_log;
use segment::{Mark, Pace, Segment, Spare};

/// Most bytes of a segment, unless one batch needs more: at 25 MB/s it fills in three seconds.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Bytes of the first segment. Each is twice as large as the one before.
const SEGMENT_BYTES_FIRST: u64 = 256 << 10;
/// Segments that a log always has room for, so that compaction frees some of it.
const SEGMENTS_MIN: u64 = 16;
/// Most entries: 96 MiB of memory for the index. A checkpoint comes long before.
const ENTRIES_MAX: usize = 4 << 20;
/// Most bytes of a batch, because places in segments have 32 bits.
const BATCH_BYTES_MAX: u64 = 1 << 30;
/// Bytes of memory kept for the next batch.
const BUILDER_BYTES_MAX: usize = 4 << 20;

/// The part that the writer and its readers share.
#[derive(Debug)]
struct Shared {
    /// Its name in errors: what it is and where.
    name: String,
    index: Mutex<Index>,
    /// Released with the last reader.
    _lock: Arc<Lock>,
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        // The index changes only by operations that were accepted before.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn corrupt(&self, path: &Path, offset: u64, reason: &str) -> StoreError {
        let at = format!("{reason} (file {}, offset {offset})", path.display());
        StoreError::corrupt(&self.name, at)
    }
}

/// The log of a replica, with one writer.
#[derive(Debug)]
pub struct Wal {
    /// The next segment, which is made while this one is written. This is the first field, so that its
    /// thread ends before the directory's lock is released.
    spare: Option<Spare>,
    shared: Arc<Shared>,
    directory: PathBuf,
    limit_bytes: u64,
    segment_bytes_max: u64,
    /// The current segment, and where its batches end.
    current: Arc<Segment>,
    offset: u64,
    mark: Mark,
    /// The number of the last batch.
    number: u64,
    link: u32,
    /// The header after the last batch.
    header: Header,
    builder: Builder,
    ops: Vec<Op>,
    /// The error of the first failed write.
    failed: Option<StoreError>,
}

/// The room that a batch may use when the log is nearly full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Not the last segment, which is kept for compaction.
    Room,
    /// The last segment too, because the batch is small and makes room.
    Mark,
    /// Any room, because the batch removes all other segments.
    Reset,
}

impl Wal {
    /// Makes an empty log in a directory that has none.
    pub(super) fn create(
        directory: &Path,
        identity: StoreIdentity,
        limit_bytes: u64,
        lock: Arc<Lock>,
    ) -> Result<Wal, StoreError> {
        let mark = Mark::create(directory, identity.store_id)?;
        let header = Header::new(identity);
        let size = segment_bytes_max(limit_bytes).min(SEGMENT_BYTES_FIRST);
        let mut builder = Builder::default();
        builder.clear();
        let begin = Begin { segment: 1, size, header: header.clone() };
        let built = builder.finish(Some(&begin), 1, 0, identity.store_id);
        let (link, used_bytes) = (built.crc, built.bytes.len() as u64);
        let made = segment::make(directory, 1, size, built.bytes, &Pace::hurry());
        let segment =
            made.map_err(|error| StoreError::io("make the first segment in", directory, error))?;
        let mut index = Index::new(header);
        index.segments.push_back(Live { segment: Arc::new(segment), used_bytes });
        let recovered = Recovered { index, mark, number: 1, link, offset: used_bytes };
        Ok(Wal::new(directory, recovered, limit_bytes, lock))
    }

    /// Opens the log in a directory and reads all of it; `None` without one.
    pub(super) fn open(
        directory: &Path,
        limit_bytes: u64,
        lock: Arc<Lock>,
    ) -> Result<Option<Wal>, StoreError> {
        let recovered = recover::recover(directory, &name(directory))?;
        let Some(recovered) = recovered else { return Ok(None) };
        let mut wal = Wal::new(directory, recovered, limit_bytes, lock);
        wal.remove_dead();
        Ok(Some(wal))
    }

    fn new(directory: &Path, found: Recovered, limit_bytes: u64, lock: Arc<Lock>) -> Wal {
        let Recovered { index, mark, number, link, offset } = found;
        let last = index.segments.back().expect("a log has a segment");
        let (current, header) = (last.segment.clone(), index.header.clone());
        let name = name(directory);
        Wal {
            shared: Arc::new(Shared { name, index: Mutex::new(index), _lock: lock }),
            directory: directory.to_owned(),
            limit_bytes,
            segment_bytes_max: segment_bytes_max(limit_bytes),
            current,
            offset,
            spare: None,
            mark,
            number,
            link,
            header,
            builder: Builder::default(),
            ops: Vec::new(),
            failed: None,
        }
    }

    /// Returns the owner of the log.
    pub fn identity(&self) -> StoreIdentity {
        self.header.identity
    }

    /// True if nothing was ever stored.
    pub(super) fn is_pristine(&self) -> bool {
        self.header == Header::new(self.header.identity)
    }

    /// Sets the cluster id of a log that has none yet, durably.
    ///
    /// # Errors
    /// As [`LogStore::append`].
    ///
    /// # Panics
    /// Panics if it has another cluster id already.
    pub fn adopt(&mut self, cluster_id: u64) -> Result<(), StoreError> {
        self.begin()?;
        self.add(Op::Adopt(cluster_id));
        self.commit(Need::Mark)
    }

    /// Begins a batch, if the log takes one.
    fn begin(&mut self) -> Result<(), StoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.builder.shrink_to(BUILDER_BYTES_MAX);
        self.builder.clear();
        self.ops.clear();
        Ok(())
    }

    fn add(&mut self, op: Op) {
        self.builder.add(&op);
        self.ops.push(op);
    }

    /// Makes the batch durable, then visible.
    fn commit(&mut self, need: Need) -> Result<(), StoreError> {
        let mut header = self.header.clone();
        for op in &self.ops {
            header.follow(op).unwrap_or_else(|reason| panic!("{reason}"));
        }
        let begins = self.offset + self.builder.size(false) > self.current.size;
        if begins {
            self.check_room(need)?;
        }
        self.write(begins).map_err(|error| self.fail(&error))?;
        self.header = header;
        self.remove_dead();
        self.prepare();
        Ok(())
    }

    /// Checks that there is room for one more segment, which begins with this batch.
    fn check_room(&self, need: Need) -> Result<(), StoreError> {
        let size = self.next_size(self.builder.size(true));
        let reserve = if need == Need::Room { self.segment_bytes_max } else { 0 };
        let has_room =
            need == Need::Reset || self.disk_bytes() + size + reserve <= self.limit_bytes;
        if has_room && size <= BATCH_BYTES_MAX { Ok(()) } else { Err(self.full()) }
    }

    fn full(&self) -> StoreError {
        StoreError::Full { what: self.shared.name.clone(), limit_bytes: self.limit_bytes }
    }

    /// Returns the bytes of the segments with batches.
    fn disk_bytes(&self) -> u64 {
        self.shared.index().segments.iter().map(|live| live.segment.size).sum()
    }

    /// Returns the size in bytes of the next segment, if it must hold a batch of `batch_size`.
    fn next_size(&self, batch_size: u64) -> u64 {
        (2 * self.current.size).min(self.segment_bytes_max).max(batch_size)
    }

    /// Writes and syncs the batch, to the next segment if it `begins` one.
    fn write(&mut self, begins: bool) -> io::Result<()> {
        if begins {
            self.current = Arc::new(self.next_segment(self.builder.size(true))?);
            self.offset = 0;
        }
        let Segment { number: segment, size, .. } = *self.current;
        let begin = begins.then(|| Begin { segment, size, header: self.header.clone() });
        let store_id = self.mark.store_id();
        let built = self.builder.finish(begin.as_ref(), self.number + 1, self.link, store_id);
        self.current.file.write_all_at(built.bytes, self.offset)?;
        self.current.file.sync_data()?;
        self.number += 1;
        self.link = built.crc;
        self.mark.set(self.number, self.link)?;

        let mut index = self.shared.index();
        if begins {
            index.segments.push_back(Live { segment: self.current.clone(), used_bytes: 0 });
        }
        let base = (self.offset + built.items_at as u64) as u32;
        for op in &self.ops {
            index.apply(op, segment, base);
        }
        let live = index.segments.back_mut().expect("a log has a segment");
        live.used_bytes += built.bytes.len() as u64;
        self.offset += built.bytes.len() as u64;
        Ok(())
    }

    /// Returns the segment after the current one, with room for a batch of `batch_size`.
    fn next_segment(&mut self, batch_size: u64) -> io::Result<Segment> {
        match self.spare.take() {
            Some(spare) if spare.size >= batch_size => match spare.finish() {
                Ok(segment) => return Ok(segment),
                // The disk may have been full then.
                Err(error) => tracing::warn!("making a segment of the log: {error}"),
            },
            // Dropping it ends its thread. The larger segment takes its name.
            other => drop(other),
        }
        let size = self.next_size(batch_size);
        segment::make(&self.directory, self.current.number + 1, size, &[], &Pace::hurry())
    }

    /// Starts to make the next segment if it will be needed and is allowed, or speeds it up.
    fn prepare(&mut self) {
        let is_soon = self.offset >= self.current.size / 2;
        match &self.spare {
            Some(spare) if is_soon => return spare.hurry(),
            Some(_) => return,
            // A log that stays small needs no second one.
            None if !is_soon && self.current.number == 1 => return,
            None => {}
        }
        let size = self.next_size(0);
        if self.disk_bytes() + size > self.limit_bytes {
            return;
        }
        match Spare::start(&self.directory, self.current.number + 1, size) {
            Ok(spare) => self.spare = Some(spare),
            Err(error) => tracing::warn!("starting to make a segment of the log: {error}"),
        }
    }

    /// Removes the segments without entries.
    fn remove_dead(&mut self) {
        let dead = self.shared.index().take_dead();
        for segment in dead {
            // It only takes room until the next open removes it.
            if let Err(error) = segment.remove() {
                tracing::warn!("removing a segment of the log: {error}");
            }
        }
    }

    /// Keeps the reason that nothing more is written.
    fn fail(&mut self, error: &io::Error) -> StoreError {
        let (what, reason) = (self.shared.name.clone(), error.to_string());
        let error = StoreError::Failed { what, reason };
        tracing::error!("{error}");
        self.failed = Some(error.clone());
        error
    }
}

fn name(directory: &Path) -> String {
    format!("the log in {}", directory.display())
}

fn segment_bytes_max(limit_bytes: u64) -> u64 {
    let share = limit_bytes / SEGMENTS_MIN;
    share.clamp(64 << 10, SEGMENT_BYTES_MAX).next_multiple_of(batch::SECTOR as u64)
}

impl LogStore for Wal {
    fn append(&mut self, batch: &[Append]) -> Result<(), StoreError> {
        self.begin()?;
        let mut need = Need::Room;
        for append in batch {
            if let Some((index, term)) = append.reset {
                self.add(Op::Reset(Position { index, term }));
                need = Need::Reset;
            }
            let added = append.entries.len() + self.ops.len();
            if self.shared.index().entry_count() + added > ENTRIES_MAX {
                return Err(self.full());
            }
            for entry in &append.entries {
                let op = self.builder.add_entry(entry);
                self.ops.push(op);
            }
            if let Some(hard_state) = &append.hard_state {
                self.add(Op::HardState(hard_state.clone()));
            }
            if self.builder.size(true) > BATCH_BYTES_MAX {
                return Err(self.full());
            }
        }
        if self.ops.is_empty() {
            return Ok(());
        }
        self.commit(need)
    }

    fn compact(&mut self, to: u64, term: u64) -> Result<u64, StoreError> {
        let Header { compacted, last, .. } = self.header;
        assert!(to <= last.index, "compaction to {to}, but the log ends with {}", last.index);
        if to <= compacted.index {
            return Ok(compacted.index);
        }
        self.begin()?;
        let step = to.min(compacted.index + COMPACT_ENTRIES_MAX);
        let step_term = self.shared.index().term(step).expect("an entry of the log has a term");
        assert!(step < to || step_term == term, "compaction to an entry of another term");
        self.add(Op::Compact(Position { index: step, term: step_term }));
        self.commit(Need::Mark)?;
        Ok(step)
    }

    fn reader(&self) -> Box<dyn LogReader> {
        Box::new(WalReader::new(self.shared.clone()))
    }

    fn used_bytes(&self) -> u64 {
        self.shared.index().segments.iter().map(|live| live.used_bytes).sum()
    }

    fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }
}
