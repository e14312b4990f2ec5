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
use crate::mailbox::{Arrival, Filling, Run};
use crate::memory::{Blank, Block, PAGES_PER_CHUNK};
use crate::ring::{DiskJob, DiskWork};

pub(crate) mod directory;
pub(crate) mod format;
mod index;
mod log;
pub(crate) mod recover;
mod recycle;
mod write;

use directory::Disk;
pub use directory::{DiskError, DiskSize};
use format::{FooterEntry, Head, Stored, head_pages};
pub(crate) use index::DISKS_MAX;
use index::FlashIndex;
pub(crate) use index::Spot;
use log::DiskLog;
use write::{Doing, Loose, PendingDrop};

/// Blocks that wait to be written at most; further ones are passed over. Guessed: a second of a quick disk.
const CANDIDATES_MAX: usize = 4096;
/// A read that takes longer is given up, and its disk with it, in milliseconds. Guessed: a disk of flash answers
/// within a few, and a source within seconds.
const HANGS_MS: u64 = 2_000;

/// Pieces of a run, each with where it lies, if it is on a disk.
pub(crate) type Pieces = SmallVec<[(Chunks, Option<Spot>); 2]>;

/// A block that has earned to be written.
struct Candidate {
    entry: EntryIndex,
    key: BlockKey,
    version: u64,
}

/// A read under way.
struct FlashRead {
    run: Run,
    spot: Spot,
    since: u64,
    /// True if nothing waits for it any more, because it hangs.
    is_given_up: bool,
}

/// What was counted since this was asked last.
#[derive(Clone, Copy, Debug, Default)]
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
}

/// See the module.
pub(crate) struct Flash {
    logs: Vec<DiskLog>,
    doing: Vec<Doing>,
    index: FlashIndex,
    /// Blocks that were filled once.
    seen: Ghost,
    seen_max: u32,
    candidates: VecDeque<Candidate>,
    /// Since when one waits.
    waiting_since: Option<u64>,
    /// Runs that are to be written again, and are in no cache.
    loose: VecDeque<Loose>,
    drops: Vec<PendingDrop>,
    reads: HashMap<u64, FlashRead>,
    read_count: u64,
    counts: FlashCounts,
}

/// Returns the runs that the index of a shard has room for: with these bytes on disk, one for each 64 KiB.
fn runs_max(bytes: u64) -> usize {
    (bytes / u64::from(checksum::CHUNK_SIZE)) as usize
}

/// Returns the bytes of memory that the tables of a node's flash tier hold, with these bytes on its disks.
pub(crate) fn memory_bytes(disk_bytes: u64, block_size: u32) -> u64 {
    let blocks = disk_bytes / u64::from(block_size);
    runs_max(disk_bytes) as u64 * index::RUN_COST as u64 + blocks * SEEN_COST
}

/// Bytes for each block that was filled once: its slots, up to the next power of two.
const SEEN_COST: u64 = 2 * 8 * SEEN_SLOTS as u64;

/// Slots for each block that was filled once. Guessed: a block has one alone, most of the time.
const SEEN_SLOTS: usize = 4;

impl Flash {
    /// Makes the tier of a shard, with what lies on its disks. A disk that cannot be read is left out.
    pub(crate) fn open(disks: &[Arc<Disk>], shard: u16, block_size: u32) -> Flash {
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
        Flash {
            doing: logs.iter().map(|_| Doing::Nothing).collect(),
            logs,
            index,
            seen: Ghost::new((seen_max as usize * SEEN_SLOTS).max(SEEN_SLOTS)),
            seen_max,
            candidates: VecDeque::new(),
            waiting_since: None,
            loose: VecDeque::new(),
            drops: Vec::new(),
            reads: HashMap::new(),
            read_count: DISKS_MAX as u64 * 2,
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

    /// Makes the job that reads a part of a run that lies there, into a blank of its length.
    pub(crate) fn read(
        &mut self,
        now: u64,
        cache: &mut Cache,
        run: Run,
        spot: Spot,
        blank: Blank,
    ) -> Result<Box<DiskJob>, Blank> {
        let whole = Chunks { first: u32::from(spot.first), end: u32::from(spot.last) + 1 };
        let length = whole.length(run.block_length);
        let head_length = head_length(length);
        let Some(head) = cache.allocate(head_length) else { return Err(blank) };
        let skipped = (run.chunks.first - whole.first) * PAGES_PER_CHUNK;
        let page = spot.head + u32::from(spot.payload) + skipped;
        let parts = vec![(offset_of(spot.head), head), (offset_of(page), blank)];
        self.read_count += 1;
        let read = FlashRead { run, spot, since: now, is_given_up: false };
        self.reads.insert(self.read_count, read);
        let file = self.logs[usize::from(spot.disk)].file();
        Ok(Box::new(DiskJob { number: self.read_count, file, work: DiskWork::Read(parts) }))
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

    fn on_read(
        &mut self,
        cache: &mut Cache,
        read: FlashRead,
        parts: Vec<(u64, Blank)>,
        result: io::Result<()>,
    ) -> FlashEvent {
        let FlashRead { run, spot, is_given_up, .. } = read;
        let [(_, head), (_, blank)]: [(u64, Blank); 2] =
            parts.try_into().expect("a read has a head and a part");
        let checked = self.check(spot, &run, head, blank, cache, result);
        if is_given_up {
            match checked {
                Ok((block, _)) => cache.release(block),
                Err(blank) => cache.release_blank(blank),
            }
            return FlashEvent::Nothing;
        }
        let result = checked.map(|(block, sums)| {
            self.counts.read_count += 1;
            self.counts.read_bytes += u64::from(block.length());
            self.index.note_use(&run.key, run.version, spot);
            Arrival { block, sums, filling: Filling::Disk }
        });
        FlashEvent::Read { run, result }
    }

    /// Compares what was read with its head. If it does not fit it is forgotten, and the blank comes back.
    fn check(
        &mut self,
        spot: Spot,
        run: &Run,
        mut head: Blank,
        mut blank: Blank,
        cache: &mut Cache,
        result: io::Result<()>,
    ) -> Result<(Block, crate::memory::Sums), Blank> {
        let disk = usize::from(spot.disk);
        let mut verdict = None;
        match result {
            Ok(()) => {
                head.filled_by_disk();
                blank.filled_by_disk();
                let log = &self.logs[disk];
                let identity = &log.disk.superblock.disk;
                let decoded = Head::decode(&head.to_vec(), identity, log.shard(), spot.head);
                verdict = decoded.and_then(|(head, _)| matches(&head, spot, run, &blank));
                if verdict.is_none() {
                    self.counts.damaged_count += 1;
                    tracing::warn!(
                        "disk {}: a stored part of a block did not match its checksums, and was forgotten: is the \
                         disk faulty?",
                        log.disk.directory.display()
                    );
                }
            }
            Err(error) => self.on_read_error(disk, &error),
        }
        cache.release_blank(head);
        let Some(code) = verdict else {
            self.index.remove(&run.key, run.version, spot);
            return Err(blank);
        };
        let (mut block, sums) = blank.freeze();
        if let Some(code) = code.filter(|_| run.is_whole()) {
            block.note_code(code);
        }
        Ok((block, sums))
    }

    fn on_read_error(&mut self, disk: usize, error: &io::Error) {
        self.counts.error_count += 1;
        if self.logs[disk].fault.is_none() {
            let directory = self.logs[disk].disk.directory.display();
            tracing::warn!(
                "disk {directory}: read a part of a block: {error}; it is read from its source"
            );
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

    /// Gives up what hangs. Returns the runs that something waits for, which are to be had elsewhere.
    pub(crate) fn give_up(&mut self, now: u64) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut hanging = Vec::new();
        for read in self.reads.values_mut() {
            let hangs = now.saturating_sub(read.since) > HANGS_MS;
            if !read.is_given_up && hangs {
                read.is_given_up = true;
                runs.push(read.run);
                hanging.push(usize::from(read.spot.disk));
            }
        }
        for disk in hanging {
            self.take_out(disk, &format!("a read has not ended for {HANGS_MS} ms"));
        }
        runs
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

/// Compares a part of a stored run with its head. Returns the code of its block, if it has one; None if it is not what
/// was wanted.
#[expect(clippy::option_option, reason = "whether it matches, and then whether there is a code")]
fn matches(head: &Head, spot: Spot, run: &Run, blank: &Blank) -> Option<Option<[u8; 32]>> {
    let payload = u32::from(spot.payload);
    let place = head.records.iter().position(|stored| stored.payload == payload)?;
    let stored = &head.records[place];
    let is_it = stored.key == run.key
        && stored.version == run.version
        && stored.block_length == run.block_length
        && stored.chunks.first <= run.chunks.first
        && run.chunks.end <= stored.chunks.end;
    let tag = checksum::tag(run.key.file, run.version, run.key.block);
    let skipped =
        ((run.chunks.first - stored.chunks.first.min(run.chunks.first)) * PAGES_PER_CHUNK) as usize;
    let wanted = head.sums_of(place).get(skipped..)?;
    let found = blank.page_sums();
    let is_right = is_it
        && wanted.len() >= found.len()
        && found.iter().zip(wanted).all(|(found, wanted)| found ^ tag == *wanted);
    is_right.then_some(stored.code)
}

#[cfg(test)]
mod tests;
