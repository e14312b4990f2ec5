//! Groups: what has earned to be written, gathered and handed to a disk.
//!
//! Owns what waits to be written, and the one operation of each log that is under way. Always holds: a block is pinned
//! while a disk reads it from memory; the index points to a group when it is written, and to nothing of a file that was
//! dropped meanwhile; a drop is answered when each disk that could know the file has it for good.

use std::io;

use millrace_proto::FileId;
use millrace_proto::checksum::{CHUNK_SIZE, PAGE_SIZE};

use super::format::{DROPS_MAX, Head, RECORDS_MAX, Stored, head_pages};
use super::index::Spot;
use super::{Candidate, Flash, FlashEvent, offset_of, runs};
use crate::cache::{Cache, EntryIndex};
use crate::chunks::{Chunks, Runs};
use crate::mailbox::DropJob;
use crate::memory::{Blank, Block, Segment};
use crate::ring::{DiskJob, DiskWork};

/// Blocks that are written at once when as many wait, at most. Guessed: 16 MiB of large blocks.
const CANDIDATES_WANTED: u64 = 16;
/// Fewer are written when one has waited for so long, in milliseconds. Guessed: little is lost with the node.
const WAIT_MS: u64 = 100;
/// Pages of one group at most, unless it is one block. Derived: what the sums in a head of one page allow.
const GROUP_PAGES_MAX: usize = 900;
/// Share of the memory that a group holds at most, one in this many.
const GROUP_SHARE: u64 = 16;

/// Returns how many blocks are written at once in a shard with this memory: few, if it is little, because they would
/// leave it before.
pub(super) fn candidates_wanted(memory: u64, block_size: u32) -> usize {
    (memory / GROUP_SHARE / u64::from(block_size)).clamp(1, CANDIDATES_WANTED) as usize
}

/// A run that is in no cache, to be written again.
pub(super) struct Loose {
    pub(super) stored: Stored,
    pub(super) block: Block,
    /// Of its pages, with the block's identity.
    pub(super) sums: Vec<u32>,
}

/// A file of which all is void from now on, as soon as the disks know.
pub(super) struct PendingDrop {
    job: DropJob,
    /// Disks that do not know yet, and those among them that are being told, a bit each.
    waits: u32,
    told: u32,
}

/// A group that is being written.
pub(super) struct Group {
    head: Head,
    entries: Vec<EntryIndex>,
    blocks: Vec<Block>,
    /// Files that were dropped meanwhile.
    void: Vec<FileId>,
}

/// What a log is doing.
pub(super) enum Doing {
    Nothing,
    /// It makes the old footer of this region void.
    Opening(u32),
    Group(Group),
    Sealing,
    /// It reads the footer of its oldest region.
    Footer,
    /// It reads a run of that, to be written again.
    Keeping {
        stored: Stored,
        spot: Spot,
        /// True if its file was dropped meanwhile.
        is_void: bool,
    },
}

/// What a disk is to do next.
enum Next {
    Group { head: Head, entries: Vec<EntryIndex>, blocks: Vec<Block>, segments: Vec<Segment> },
    Seal,
    Nothing,
}

impl Flash {
    /// True if something waits to be written, or is under way on a log.
    pub(super) fn has_to_write(&self) -> bool {
        !self.candidates.is_empty()
            || !self.loose.is_empty()
            || self.drops.iter().any(|drop| drop.waits & !self.out_disks() != 0)
            || self
                .logs
                .iter()
                .any(|log| log.fault.is_none() && (log.recycling.is_some() || log.should_recycle()))
            || self.doing.iter().any(|doing| !matches!(doing, Doing::Nothing))
    }

    /// Returns the next job for a disk that has time for it. Call until `None`.
    pub(crate) fn next_job(&mut self, now: u64, cache: &mut Cache) -> Option<Box<DiskJob>> {
        if self.logs.iter().all(|log| log.fault.is_some()) {
            self.give_all_up(cache);
            return None;
        }
        (0..self.logs.len()).find_map(|disk| {
            let is_free =
                self.logs[disk].fault.is_none() && matches!(self.doing[disk], Doing::Nothing);
            let job = if is_free { self.step(disk, now, cache) } else { None };
            if job.is_some() {
                self.doing_since[disk] = now;
            }
            job
        })
    }

    /// Forgets what waits to be written, because no disk is left.
    fn give_all_up(&mut self, cache: &mut Cache) {
        self.counts.passed_over_count += self.candidates.len() as u64;
        self.candidates.clear();
        self.waiting_since = None;
        for loose in self.loose.drain(..) {
            cache.release(loose.block);
        }
    }

    fn step(&mut self, disk: usize, now: u64, cache: &mut Cache) -> Option<Box<DiskJob>> {
        loop {
            if self.logs[disk].recycling.is_some()
                && let Some(job) = self.recycle(disk, cache)
            {
                return Some(job);
            }
            if !self.wants_to_write(disk, now) {
                if !self.logs[disk].should_recycle() {
                    return None;
                }
                self.logs[disk].recycle();
                continue;
            }
            if !self.logs[disk].is_open() {
                if let Some((region, last_page)) = self.logs[disk].next_free() {
                    let own = own_blank(cache, &[0; PAGE_SIZE as usize])?;
                    self.doing[disk] = Doing::Opening(region);
                    return Some(self.write_job(disk, last_page, own, Vec::new(), false));
                }
                if self.logs[disk].recycling.is_some() {
                    return None;
                }
                self.logs[disk].recycle();
                self.logs[disk].recycling.as_ref()?;
                continue;
            }
            return match self.gather(disk, cache) {
                Next::Nothing => None,
                Next::Seal => {
                    let (page, footer) = self.logs[disk].footer()?;
                    let own = own_blank(cache, &footer)?;
                    self.doing[disk] = Doing::Sealing;
                    Some(self.write_job(disk, page, own, Vec::new(), false))
                }
                Next::Group { head, entries, blocks, segments } => {
                    let (page, region) = self.logs[disk].place();
                    let is_durable = !head.drops.is_empty();
                    let group = Group { head, entries, blocks, void: Vec::new() };
                    let Some(own) = own_blank(cache, &group.head.encode(&region, page)) else {
                        self.counts.passed_over_count += group.entries.len() as u64;
                        release(cache, group);
                        return None;
                    };
                    self.doing[disk] = Doing::Group(group);
                    Some(self.write_job(disk, page, own, segments, is_durable))
                }
            };
        }
    }

    fn wants_to_write(&self, disk: usize, now: u64) -> bool {
        let bit = 1 << disk;
        let is_due = self.waiting_since.is_some_and(|since| now.saturating_sub(since) >= WAIT_MS);
        !self.loose.is_empty()
            || is_due
            || self.candidates.len() >= self.candidates_wanted
            || self.drops.iter().any(|drop| drop.waits & bit != 0)
    }

    pub(super) fn write_job(
        &mut self,
        disk: usize,
        page: u32,
        own: Blank,
        pinned: Vec<Segment>,
        is_durable: bool,
    ) -> Box<DiskJob> {
        let pinned_bytes: usize = pinned.iter().map(|segment| segment.length).sum();
        self.counts.written_bytes += own.held_bytes() + pinned_bytes as u64;
        let work = DiskWork::Write { offset: offset_of(page), own, pinned, is_durable };
        Box::new(DiskJob { number: disk as u64, file: self.logs[disk].file(), work })
    }

    /// Gathers the next group of a disk.
    fn gather(&mut self, disk: usize, cache: &mut Cache) -> Next {
        let bit = 1 << disk;
        let due = self.drops.iter_mut().filter(|drop| drop.waits & bit != 0);
        let due: Vec<&mut PendingDrop> = due.take(DROPS_MAX).collect();
        if !due.is_empty() {
            let drops: Vec<FileId> = due.iter().map(|drop| drop.job.file).collect();
            if !self.logs[disk].fits(head_pages(0, drops.len(), 0), drops.len()) {
                return Next::Seal;
            }
            due.into_iter().for_each(|drop| drop.told |= bit);
            let head = Head { drops, ..Head::default() };
            return Next::Group { head, entries: vec![], blocks: vec![], segments: vec![] };
        }
        let share = cache.capacity_bytes() / u64::from(PAGE_SIZE) / GROUP_SHARE;
        let pages_max = GROUP_PAGES_MAX.min(share as usize);
        let mut head = Head::default();
        let (mut entries, mut blocks, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        let mut is_full = false;
        while let Some(loose) = self.loose.front() {
            if !self.can_add(disk, &head, loose.stored.page_count(), pages_max) {
                is_full = true;
                break;
            }
            let Some(Loose { stored, block, sums }) = self.loose.pop_front() else { break };
            block.whole_pages(0, block.length(), |segment| segments.push(segment));
            head.records.push(stored);
            head.sums.extend(sums);
            blocks.push(block);
        }
        while !is_full && let Some(candidate) = self.candidates.pop_front() {
            if cache.find(&candidate.key) != Some((candidate.entry, candidate.version)) {
                // It has left memory before its turn came.
                self.counts.passed_over_count += 1;
                continue;
            }
            let missing = self.missing(&candidate, cache);
            for chunks in missing {
                let Candidate { entry, key, version } = candidate;
                let block_length = cache.length(entry);
                let code = cache.code(entry).copied();
                let code = code.filter(|_| chunks == Chunks::all(block_length));
                let stored = Stored { key, version, block_length, chunks, payload: 1, code };
                if !self.can_add(disk, &head, stored.page_count(), pages_max) {
                    is_full = true;
                    break;
                }
                cache.pin_chunks(entry, chunks, &mut head.sums, &mut segments);
                head.records.push(stored);
                entries.push(entry);
            }
            if is_full {
                self.candidates.push_front(candidate);
            }
        }
        if self.candidates.is_empty() {
            self.waiting_since = None;
        }
        if head.records.is_empty() {
            return if is_full { Next::Seal } else { Next::Nothing };
        }
        let mut payload = head.page_counts().0;
        for record in &mut head.records {
            record.payload = payload;
            payload += record.page_count();
        }
        Next::Group { head, entries, blocks, segments }
    }

    /// Returns the runs of a candidate, which is in memory, that are in memory and on no disk.
    fn missing(&self, candidate: &Candidate, cache: &Cache) -> Runs {
        let Candidate { entry, key, version } = candidate;
        let is_missing = |chunk: u32| {
            cache.holds(*entry, chunk * CHUNK_SIZE, 1) && self.find(key, *version, chunk).is_none()
        };
        runs(Chunks::all(cache.length(*entry)), is_missing)
    }

    /// True if a run of this many pages may go into a group with this head.
    fn can_add(&self, disk: usize, head: &Head, page_count: u32, pages_max: usize) -> bool {
        let (records, sums) = (head.records.len() + 1, head.sums.len() + page_count as usize);
        let head_pages = head_pages(records, 0, sums);
        let is_first = head.records.is_empty();
        (is_first || records <= RECORDS_MAX && head_pages == 1 && sums <= pages_max)
            && self.logs[disk].fits(head_pages + sums as u32, records)
    }

    /// Goes on with a log whose operation has ended.
    pub(super) fn on_log_done(
        &mut self,
        cache: &mut Cache,
        disk: usize,
        work: DiskWork,
        result: io::Result<()>,
    ) -> FlashEvent {
        let doing = std::mem::replace(&mut self.doing[disk], Doing::Nothing);
        let mut parts = Vec::new();
        match work {
            DiskWork::Write { own, .. } => cache.release_blank(own),
            DiskWork::Read(read) => parts = read,
        }
        match (doing, result) {
            (Doing::Keeping { stored, spot, is_void }, result) => {
                self.on_kept(cache, stored, spot, is_void, parts, result);
            }
            (Doing::Footer, result) => self.on_footer(cache, disk, parts, result),
            (doing, Err(error)) => {
                if let Doing::Group(group) = doing {
                    release(cache, group);
                }
                self.take_out(disk, &format!("write to it: {error}"));
            }
            // The disk was taken out meanwhile, and the index with it.
            (doing, Ok(())) if self.logs[disk].fault.is_some() => {
                if let Doing::Group(group) = doing {
                    release(cache, group);
                }
            }
            (Doing::Opening(region), Ok(())) => self.logs[disk].open_region(region),
            (Doing::Sealing, Ok(())) => self.logs[disk].seal(),
            (Doing::Group(group), Ok(())) => self.on_group(cache, disk, group),
            (Doing::Nothing, Ok(())) => (),
        }
        FlashEvent::Nothing
    }

    fn on_group(&mut self, cache: &mut Cache, disk: usize, group: Group) {
        let page = self.logs[disk].place().0;
        self.logs[disk].note(&group.head);
        // What is remembered of this page is what was there before.
        self.heads.remove(&(disk as u8, page));
        for stored in &group.head.records {
            if group.void.contains(&stored.key.file) {
                continue;
            }
            self.counts.stored_bytes += u64::from(stored.length());
            let spot = Spot::of(disk as u8, page, stored);
            if !spot.is_some_and(|spot| self.index.insert(&stored.key, stored.version, spot)) {
                self.counts.passed_over_count += 1;
            }
        }
        if !group.head.drops.is_empty() {
            let bit = 1 << disk;
            for drop in self.drops.iter_mut().filter(|drop| drop.told & bit != 0) {
                drop.waits &= !bit;
                drop.told &= !bit;
            }
        }
        release(cache, group);
    }

    /// Has all of a file void for good. Gives the job back at once if no disk can know the file.
    pub(crate) fn drop_for_good(&mut self, job: DropJob) -> Option<DropJob> {
        let mut waits = 0;
        for (disk, log) in self.logs.iter().enumerate() {
            match &mut self.doing[disk] {
                Doing::Group(group) => group.void.push(job.file),
                Doing::Keeping { stored, is_void, .. } => *is_void |= stored.key.file == job.file,
                _ => (),
            }
            if log.fault.is_none() && !log.is_empty() {
                waits |= 1 << disk;
            }
        }
        if waits == 0 {
            return Some(job);
        }
        self.drops.push(PendingDrop { job, waits, told: 0 });
        None
    }

    /// Returns the disks that are out, a bit each.
    fn out_disks(&self) -> u32 {
        let out = self.logs.iter().enumerate().filter(|(_, log)| log.fault.is_some());
        out.map(|(disk, _)| 1 << disk).sum()
    }

    /// Returns the drops that every disk knows now which answers.
    pub(crate) fn take_dropped(&mut self) -> Vec<DropJob> {
        if self.drops.is_empty() {
            return Vec::new();
        }
        let out = self.out_disks();
        let drops = std::mem::take(&mut self.drops).into_iter();
        let (done, waiting) = drops.partition(|drop: &PendingDrop| drop.waits & !out == 0);
        self.drops = waiting;
        done.into_iter().map(|drop: PendingDrop| drop.job).collect()
    }

    /// Returns the bytes of memory that disks read from now.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        let pages = self.doing.iter().map(|doing| match doing {
            Doing::Group(group) => group.head.sums.len() as u64,
            _ => 0,
        });
        pages.sum::<u64>() * u64::from(PAGE_SIZE)
    }

    /// Forgets what of a file is to be written again.
    pub(crate) fn forget_loose(&mut self, cache: &mut Cache, file: FileId) {
        let (gone, kept) = std::mem::take(&mut self.loose)
            .into_iter()
            .partition::<Vec<_>, _>(|loose| loose.stored.key.file == file);
        self.loose = kept.into();
        gone.into_iter().for_each(|loose| cache.release(loose.block));
    }
}

/// Gives back what a group held in memory.
fn release(cache: &mut Cache, group: Group) {
    group.entries.into_iter().for_each(|entry| cache.unpin(entry));
    group.blocks.into_iter().for_each(|block| cache.release(block));
}

/// Takes memory for these bytes, and puts them there. None if memory is short.
fn own_blank(cache: &mut Cache, bytes: &[u8]) -> Option<Blank> {
    let mut blank = cache.allocate(bytes.len() as u32)?;
    blank.write(bytes);
    Some(blank)
}
