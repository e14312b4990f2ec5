//! The flash tier of a shard: blocks on disks that left memory, or will, and are there after a restart.
//!
//! ```text
//!  memory ── second use ──► candidates ─┐
//!  oldest region ── what was read ──────┼─► group ──► log of each disk     (`write`, `recycle`)
//!                                       │
//!  miss ──► index ──► head and bytes ──► verified ──► memory               (this file)
//! ```
//!
//! Owns the index, the logs and what is under way on them. Nothing here waits or makes a system call: jobs are handed
//! to the ring, and come back. Always holds: bytes that are read are compared with the checksums in their head, which
//! have file, version and block in them, before anything sees them; what does not fit is forgotten, counted, and read
//! from the source; memory that a job refers to is a blank in the job, or pinned.
//! Modules: `format` is what lies on a disk, `directory` its files, `recover` what they held at start, `log` where the
//! next group goes, `write` makes groups, `recycle` keeps what is used of the oldest ones, `index` says where runs lie.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use millrace_proto::FileId;
use millrace_proto::checksum::{self, PAGE_SIZE};
use smallvec::SmallVec;

use crate::cache::{BlockKey, Cache, EntryIndex, Ghost};
use crate::chunks::{Chunks, runs};
use crate::mailbox::{Arrival, Run};
use crate::memory::Blank;
use crate::ring::{DiskJob, DiskWork};

pub(crate) mod directory;
pub(crate) mod format;
mod index;
mod log;
mod read;
pub(crate) mod recover;
mod recycle;
mod write;

use directory::Disk;
pub use directory::{DiskError, DiskSize};
use format::{FooterEntry, Stored, head_pages};
pub(crate) use index::DISKS_MAX;
use index::FlashIndex;
pub(crate) use index::Spot;
use log::DiskLog;
pub(crate) use read::Small;
use read::{FlashRead, Heads, Purpose};
use write::{Doing, Loose, PendingDrop};

/// Blocks that wait to be written at most; further ones are passed over. Guessed: a second of a quick disk.
const CANDIDATES_MAX: usize = 4096;
/// A read that takes longer is given up, and its disk with it, in milliseconds. Guessed: a disk of flash answers
/// within a few, and a source within seconds.
const HANGS_MS: u64 = 2_000;
/// The same of a write. Guessed: a disk that clears its cache may take seconds, and nothing waits for it but a drop.
const WRITE_HANGS_MS: u64 = 15_000;

/// Pieces of a run, each with where it lies, if it is on a disk.
pub(crate) type Pieces = SmallVec<[(Chunks, Option<Spot>); 2]>;

/// A block that has earned to be written.
struct Candidate {
    entry: EntryIndex,
    key: BlockKey,
    version: u64,
}

/// What was counted since this was asked last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlashCounts {
    /// Runs read, and their bytes.
    pub read_count: u64,
    pub read_bytes: u64,
    /// Bytes of blocks written, those among them that were written again, and all bytes written.
    pub stored_bytes: u64,
    pub kept_bytes: u64,
    pub written_bytes: u64,
    /// Blocks that had earned to be written and were not.
    pub passed_over_count: u64,
    /// Runs that did not match their checksums, and were forgotten.
    pub damaged_count: u64,
    /// Operations that failed.
    pub error_count: u64,
}

/// What a job brought.
pub(crate) enum FlashEvent {
    /// Nothing that others wait for.
    Nothing,
    /// A run was read, or could not be: then it is forgotten, and its blank comes back.
    Read { run: Run, result: Result<Arrival, Blank> },
    /// A small range was read: its bytes, and the checksums that cover it, with the block's identity in them. None if
    /// it could not be; then it is forgotten.
    Small { small: Small, bytes: Option<(Vec<u8>, Vec<u32>)> },
}

/// See the module.
pub(crate) struct Flash {
    logs: Vec<DiskLog>,
    doing: Vec<Doing>,
    /// When that began.
    doing_since: Vec<u64>,
    index: FlashIndex,
    /// Blocks that were filled once.
    seen: Ghost,
    seen_max: u32,
    candidates: VecDeque<Candidate>,
    /// Candidates that are written at once when as many wait.
    candidates_wanted: usize,
    /// Since when one waits.
    waiting_since: Option<u64>,
    /// Runs that are to be written again, and are in no cache.
    loose: VecDeque<Loose>,
    drops: Vec<PendingDrop>,
    reads: HashMap<u64, FlashRead>,
    read_count: u64,
    small_count: usize,
    heads: Heads,
    /// Chunks that small ranges were read of.
    touched: Ghost,
    touched_max: u32,
    counts: FlashCounts,
}

/// Returns the runs that the index of a shard has room for: with these bytes on disk, one for each 64 KiB.
fn runs_max(bytes: u64) -> usize {
    (bytes / u64::from(checksum::CHUNK_SIZE)) as usize
}

/// Returns the bytes of memory that the tables of a node's flash tier hold beside `memory`.
pub(crate) fn memory_bytes(disks: &[DiskSize], block_size: u32, memory: u64) -> u64 {
    let bytes: u64 = disks.iter().map(|disk| disk.bytes).sum();
    let seen = bytes / u64::from(block_size) * SEEN_COST;
    match bytes {
        0 => 0,
        _ => runs_max(bytes) as u64 * index::RUN_COST as u64 + seen + read::heads_bytes(memory),
    }
}

/// Bytes for each block that was filled once: its slots, up to the next power of two.
const SEEN_COST: u64 = 2 * 8 * SEEN_SLOTS as u64;

/// Slots for each block that was filled once. Guessed: a block has one alone, most of the time.
const SEEN_SLOTS: usize = 4;

impl Flash {
    /// Makes the tier of a shard, with what lies on its disks. A disk that cannot be read is left out.
    ///
    /// `memory` is the bytes of the shard's memory, by which the tables beside it are sized.
    pub(crate) fn open(disks: &[Arc<Disk>], shard: u16, block_size: u32, memory: u64) -> Flash {
        let mut logs = Vec::with_capacity(disks.len());
        let mut found = Vec::new();
        for (number, disk) in disks.iter().enumerate() {
            let path = disk.directory.join(directory::file_name(usize::from(shard)));
            let regions = std::fs::File::open(path).and_then(|file| {
                let regions = recover::recover(&file, &disk.superblock, shard, disk.region_count);
                // The pages that were read for it are of no more use.
                let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
                regions
            });
            let (regions, fault) = match regions {
                Ok(regions) => (regions, None),
                Err(error) => (Vec::new(), Some(format!("read what it holds: {error}"))),
            };
            let runs = recover::living(&regions).filter_map(|entry| match entry {
                FooterEntry::Run { head, stored } => Some((number as u8, *head, *stored)),
                FooterEntry::Drop(_) => None,
            });
            found.extend(runs);
            let mut log = DiskLog::new(Arc::clone(disk), shard, regions);
            log.fault = fault;
            logs.push(log);
        }
        let bytes: u64 = logs.iter().map(DiskLog::capacity_bytes).sum();
        let mut index = FlashIndex::new(runs_max(bytes));
        for (disk, head, stored) in &found {
            let Stored { key, version, .. } = stored;
            if let Some(spot) = Spot::of(*disk, *head, stored)
                && !index.insert(key, *version, spot)
            {
                break;
            }
        }
        let seen_max = (bytes / u64::from(block_size)).min(u64::from(u32::MAX)) as u32;
        let touched_max = (memory / u64::from(checksum::CHUNK_SIZE) / 4).clamp(1, 1 << 24) as u32;
        Flash {
            doing: logs.iter().map(|_| Doing::Nothing).collect(),
            doing_since: vec![0; logs.len()],
            logs,
            index,
            seen: Ghost::new((seen_max as usize * SEEN_SLOTS).max(SEEN_SLOTS)),
            seen_max,
            candidates: VecDeque::new(),
            candidates_wanted: write::candidates_wanted(memory, block_size),
            waiting_since: None,
            loose: VecDeque::new(),
            drops: Vec::new(),
            reads: HashMap::new(),
            read_count: DISKS_MAX as u64 * 2,
            small_count: 0,
            heads: read::heads(memory),
            touched: Ghost::new(touched_max as usize * SEEN_SLOTS),
            touched_max,
            counts: FlashCounts::default(),
        }
    }

    /// Returns a run in pieces: what lies on a disk, and what does not.
    pub(crate) fn pieces(&self, run: &Run) -> Pieces {
        let mut pieces = Pieces::new();
        let mut first = run.chunks.first;
        while first < run.chunks.end {
            let spot = self.find(&run.key, run.version, first);
            let end = match spot {
                Some(spot) => (u32::from(spot.last) + 1).min(run.chunks.end),
                None => first + 1,
            };
            match pieces.last_mut() {
                Some((chunks, None)) if spot.is_none() => chunks.end = end,
                _ => pieces.push((Chunks { first, end }, spot)),
            }
            first = end;
        }
        pieces
    }

    /// Returns where a chunk lies, on a disk that answers.
    fn find(&self, key: &BlockKey, version: u64, chunk: u32) -> Option<Spot> {
        let spot = self.index.find(key, version, chunk)?;
        self.logs[usize::from(spot.disk)].fault.is_none().then_some(spot)
    }

    /// Takes a job back.
    pub(crate) fn on_done(
        &mut self,
        cache: &mut Cache,
        job: DiskJob,
        result: io::Result<()>,
    ) -> FlashEvent {
        let DiskJob { number, work, .. } = job;
        match (self.reads.remove(&number), work) {
            (Some(read), DiskWork::Read(parts)) => self.on_read(cache, read, parts, result),
            (_, work) => self.on_log_done(cache, number as usize, work, result),
        }
    }

    /// Notes that a block came in that was on no disk. True if it had come in before, not too long ago: then it has
    /// earned to be written.
    pub(crate) fn note_fill(&mut self, key: &BlockKey) -> bool {
        let hash = key.hash();
        let is_second = self.seen.contains(hash, self.seen_max);
        if !is_second {
            self.seen.insert(hash);
        }
        is_second
    }

    /// Has a block written that has earned it, if there is room among those that wait.
    pub(crate) fn offer(&mut self, now: u64, entry: EntryIndex, key: BlockKey, version: u64) {
        if self.candidates.len() == CANDIDATES_MAX {
            self.counts.passed_over_count += 1;
            return;
        }
        self.candidates.push_back(Candidate { entry, key, version });
        self.waiting_since.get_or_insert(now);
    }

    /// Gives up what hangs. Returns what something waits for, which is to be had elsewhere.
    pub(crate) fn give_up(&mut self, now: u64) -> (Vec<Run>, Vec<Small>) {
        let (mut runs, mut smalls, mut hanging) = (Vec::new(), Vec::new(), Vec::new());
        for read in self.reads.values_mut() {
            if now.saturating_sub(read.since) <= HANGS_MS {
                continue;
            }
            match std::mem::replace(&mut read.purpose, Purpose::GivenUp) {
                Purpose::Fill => runs.push(read.run),
                Purpose::Small(small) => {
                    self.small_count -= 1;
                    smalls.push(small);
                }
                Purpose::GivenUp => continue,
            }
            hanging.push(usize::from(read.spot.disk));
        }
        for disk in hanging {
            self.take_out(disk, &format!("a read has not ended for {HANGS_MS} ms"));
        }
        for disk in 0..self.doing.len() {
            let hangs = now.saturating_sub(self.doing_since[disk]) > WRITE_HANGS_MS;
            if hangs && !matches!(self.doing[disk], Doing::Nothing) {
                self.take_out(disk, &format!("a write has not ended for {WRITE_HANGS_MS} ms"));
            }
        }
        (runs, smalls)
    }

    /// Takes a disk out: nothing is read from it or written to it any more.
    fn take_out(&mut self, disk: usize, reason: &str) {
        let log = &mut self.logs[disk];
        if log.fault.is_some() {
            return;
        }
        tracing::error!(
            "disk {}: {reason}; it is out, and the node goes on without it",
            log.disk.directory.display()
        );
        log.fault = Some(reason.to_owned());
        self.index.remove_pages(disk as u8, 0..u32::MAX);
        self.counts.error_count += 1;
    }

    /// Returns what was counted since the last call.
    pub(crate) fn take_counts(&mut self) -> FlashCounts {
        std::mem::take(&mut self.counts)
    }

    /// Returns the runs that are on disks.
    pub(crate) fn run_count(&self) -> u64 {
        self.index.count() as u64
    }

    /// Returns the bytes of its disks that are used or may be, of those that answer.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        let answering = self.logs.iter().filter(|log| log.fault.is_none());
        answering.map(DiskLog::capacity_bytes).sum()
    }

    /// Returns the bytes of memory of its index.
    pub(crate) fn index_bytes(&self) -> u64 {
        self.index.bytes() as u64
    }

    /// Returns how many disks are out.
    pub(crate) fn out_count(&self) -> u64 {
        self.logs.iter().filter(|log| log.fault.is_some()).count() as u64
    }

    /// True if something waits for time to pass, or for a disk.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.reads.is_empty() || self.has_to_write()
    }

    /// Forgets the runs of a file among `slot_count` slots of the index before this one; None to begin. Returns how
    /// many, and where to go on.
    pub(crate) fn forget(
        &mut self,
        file: FileId,
        before: Option<usize>,
        slot_count: usize,
    ) -> (u32, Option<usize>) {
        self.index.remove_of_file(file, before.unwrap_or(self.index.end()), slot_count)
    }
}

/// Returns the bytes of the head that a run of this length has: one that takes more than a page has no other beside it.
fn head_length(run_length: u32) -> u32 {
    head_pages(1, 0, run_length.div_ceil(PAGE_SIZE) as usize) * PAGE_SIZE
}

fn offset_of(page: u32) -> u64 {
    u64::from(page) * u64::from(PAGE_SIZE)
}

#[cfg(test)]
mod tests;
