//! Reads of a disk: runs of chunks that go to memory, and small ranges that go to their reader alone.
//!
//! Owns what is read, and heads that were read before. Always holds: nothing that was read is given out before it was
//! compared with its head; a head that is remembered is forgotten when its page is written.
//!
//! A small range brings its pages and not its chunk, because most reads of a working set larger than memory would
//! otherwise push out sixteen times what they want. A second one of the same chunk, before long, brings the chunk.

use std::io;
use std::sync::Arc;

use millrace_proto::checksum::{self, CHUNK_SIZE, Grain, PAGE_SIZE, pieces};
use millrace_proto::message::Range;
use quick_cache::Weighter;
use quick_cache::unsync::Cache as BoundedCache;

use super::format::Head;
use super::index::Spot;
use super::{Flash, FlashEvent, head_length, offset_of};
use crate::cache::{BlockKey, Cache};
use crate::chunks::Chunks;
use crate::mailbox::{Arrival, Filling, Requester, Run};
use crate::memory::{Blank, Block, PAGES_PER_CHUNK, Sums};
use crate::ring::{DiskJob, DiskWork};

/// Longest range that is read by itself. Guessed: a quarter of a chunk; longer ones come with their chunk.
const SMALL_MAX: u32 = CHUNK_SIZE / 4;
/// Odd, so that no two chunks become one; 2^64 divided by the golden ratio, which spreads them.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
/// Small ranges that are read at once. Guessed: twice what a quick disk has under way.
const SMALLS_MAX: usize = 512;
/// Share of the memory that heads may take beside it, one in this many: those of blocks of 1 MiB are 1/900 of them.
const HEADS_SHARE: u64 = 64;
/// Bytes of heads at least.
const HEADS_MIN: u64 = 256 << 10;

/// Heads that were read, by disk and page.
pub(super) type Heads = BoundedCache<(u8, u32), Arc<Head>, HeadWeight>;

/// Weighs heads by their bytes.
#[derive(Clone)]
pub(super) struct HeadWeight;

impl Weighter<(u8, u32), Arc<Head>> for HeadWeight {
    fn weight(&self, _: &(u8, u32), head: &Arc<Head>) -> u64 {
        let records = head.records.len() * size_of::<super::format::Stored>();
        (128 + records + head.sums.len() * 4) as u64
    }
}

/// Returns the bytes that heads may take of a node with this memory.
pub(super) fn heads_bytes(memory: u64) -> u64 {
    (memory / HEADS_SHARE).max(HEADS_MIN)
}

/// Makes room for heads, of a shard with this memory.
pub(super) fn heads(memory: u64) -> Heads {
    let bytes = heads_bytes(memory);
    BoundedCache::with_weighter((bytes / 1200) as usize, bytes, HeadWeight)
}

/// A small range that a request wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Small {
    /// What waits for it.
    pub requester: Requester,
    /// The range in its file.
    pub range: Range,
    /// Its block.
    pub key: BlockKey,
    /// Where it begins in the block.
    pub offset: u32,
    /// Its length, as far as the block goes.
    pub length: u32,
}

/// What a read is for.
pub(super) enum Purpose {
    /// Memory.
    Fill,
    /// One request.
    Small(Small),
    /// Nothing any more, because it hangs.
    GivenUp,
}

/// A read under way.
pub(super) struct FlashRead {
    /// The block, and the chunks that hold what is read.
    pub(super) run: Run,
    pub(super) spot: Spot,
    /// The first page that is read, in the block.
    first_page: u32,
    /// The head, if it is remembered; else it is read, too.
    head: Option<Arc<Head>>,
    pub(super) since: u64,
    pub(super) purpose: Purpose,
}

impl Flash {
    /// Makes the job that reads a part of a run that lies there, into a blank of its length.
    pub(crate) fn read(
        &mut self,
        now: u64,
        cache: &mut Cache,
        run: Run,
        spot: Spot,
        blank: Blank,
    ) -> Result<Box<DiskJob>, Blank> {
        let first_page = run.chunks.first_page();
        let purpose = Purpose::Fill;
        let read = FlashRead { run, spot, first_page, head: None, since: now, purpose };
        self.begin_read(cache, read, blank)
    }

    /// Makes the job that reads a small range by itself. None if it is better read with its chunk, because it is not
    /// small or its chunk was read before, or if it cannot be read here.
    pub(crate) fn read_small(
        &mut self,
        now: u64,
        cache: &mut Cache,
        small: Small,
        block_length: u32,
    ) -> Option<Box<DiskJob>> {
        let Small { key, offset, length, range, .. } = small;
        let chunks = Chunks::covering(offset, length, block_length);
        let is_small =
            length <= SMALL_MAX && length < block_length && chunks.end == chunks.first + 1;
        if !is_small || self.small_count >= SMALLS_MAX {
            return None;
        }
        let spot = self.find(&key, range.version, chunks.first)?;
        // Chunks differ in all bits, because the ghost looks at the upper ones, too.
        let hash = key.hash().wrapping_add(u64::from(chunks.first).wrapping_mul(SPREAD));
        if self.touched.contains(hash, self.touched_max) {
            return None;
        }
        self.touched.insert(hash);
        let first_page = offset / PAGE_SIZE;
        let end = (offset + length).next_multiple_of(PAGE_SIZE).min(block_length);
        let blank = cache.allocate(end - first_page * PAGE_SIZE)?;
        let run = Run { key, version: range.version, chunks, block_length };
        let purpose = Purpose::Small(small);
        let read = FlashRead { run, spot, first_page, head: None, since: now, purpose };
        match self.begin_read(cache, read, blank) {
            Ok(job) => {
                self.small_count += 1;
                Some(job)
            }
            Err(blank) => {
                cache.release_blank(blank);
                None
            }
        }
    }

    fn begin_read(
        &mut self,
        cache: &mut Cache,
        mut read: FlashRead,
        blank: Blank,
    ) -> Result<Box<DiskJob>, Blank> {
        let FlashRead { run, spot, first_page, .. } = read;
        let whole = Chunks { first: u32::from(spot.first), end: u32::from(spot.last) + 1 };
        let mut parts = Vec::with_capacity(2);
        read.head = self.heads.get(&(spot.disk, spot.head)).cloned();
        if read.head.is_none() {
            let length = head_length(whole.length(run.block_length));
            let Some(head) = cache.allocate(length) else { return Err(blank) };
            parts.push((offset_of(spot.head), head));
        }
        let page = spot.head + u32::from(spot.payload) + first_page - whole.first_page();
        parts.push((offset_of(page), blank));
        let file = self.logs[usize::from(spot.disk)].file();
        self.read_count += 1;
        self.reads.insert(self.read_count, read);
        Ok(Box::new(DiskJob { number: self.read_count, file, work: DiskWork::Read(parts) }))
    }

    pub(super) fn on_read(
        &mut self,
        cache: &mut Cache,
        read: FlashRead,
        mut parts: Vec<(u64, Blank)>,
        result: io::Result<()>,
    ) -> FlashEvent {
        let FlashRead { run, spot, first_page, head: known, purpose, .. } = read;
        let (_, mut blank) = parts.pop().expect("a read has a part");
        let head = match (known, parts.pop()) {
            (Some(head), _) => Some(head),
            (None, Some((_, head))) => self.take_head(spot, head, cache, &result),
            (None, None) => None,
        };
        let code = self.check(spot, &run, first_page, head.as_deref(), &mut blank, result);
        if code.is_some() && !matches!(purpose, Purpose::GivenUp) {
            self.counts.read_count += 1;
            self.counts.read_bytes += u64::from(blank.length());
            self.index.note_use(&run.key, run.version, spot);
        }
        match purpose {
            Purpose::GivenUp => {
                cache.release_blank(blank);
                FlashEvent::Nothing
            }
            Purpose::Fill => {
                let result = match code {
                    None => Err(blank),
                    Some(code) => {
                        let (block, sums) = coded(blank, code.filter(|_| run.is_whole()));
                        Ok(Arrival { block, sums, filling: Filling::Disk })
                    }
                };
                FlashEvent::Read { run, result }
            }
            Purpose::Small(small) => {
                self.small_count -= 1;
                let bytes = code.map(|_| of_small(&small, &run, first_page, &blank));
                cache.release_blank(blank);
                FlashEvent::Small { small, bytes }
            }
        }
    }

    /// Takes a head that was read, and remembers it. None if it is not sound.
    pub(super) fn take_head(
        &mut self,
        spot: Spot,
        mut head: Blank,
        cache: &mut Cache,
        result: &io::Result<()>,
    ) -> Option<Arc<Head>> {
        let log = &self.logs[usize::from(spot.disk)];
        let decoded = result.is_ok().then(|| {
            head.filled_by_disk();
            Head::decode(&head.to_vec(), &log.disk.superblock.disk, log.shard(), spot.head)
        });
        cache.release_blank(head);
        let head = Arc::new(decoded??.0);
        self.heads.insert((spot.disk, spot.head), Arc::clone(&head));
        Some(head)
    }

    /// Compares what was read, from a page of its block on, with its head. Returns the code of the block, if it has
    /// one; None if it does not fit: then it is forgotten.
    #[expect(clippy::option_option, reason = "whether it fits, and then whether there is a code")]
    pub(super) fn check(
        &mut self,
        spot: Spot,
        run: &Run,
        first_page: u32,
        head: Option<&Head>,
        blank: &mut Blank,
        result: io::Result<()>,
    ) -> Option<Option<[u8; 32]>> {
        let disk = usize::from(spot.disk);
        let is_read = result.is_ok();
        match result {
            Ok(()) => blank.filled_by_disk(),
            Err(error) => self.on_read_error(disk, &error),
        }
        let head = head.filter(|_| is_read);
        let code = head.and_then(|head| fits(head, spot, run, first_page, blank));
        if code.is_some() {
            return code;
        }
        self.heads.remove(&(spot.disk, spot.head));
        // What is not known any more was written over while it was read.
        if self.index.remove(&run.key, run.version, spot) && is_read {
            self.counts.damaged_count += 1;
            tracing::warn!(
                "disk {}: a stored part of a block did not match its checksums, and was forgotten: is the disk \
                 faulty?",
                self.logs[disk].disk.directory.display()
            );
        }
        None
    }

    pub(super) fn on_read_error(&mut self, disk: usize, error: &io::Error) {
        self.counts.error_count += 1;
        if self.logs[disk].fault.is_none() {
            let directory = self.logs[disk].disk.directory.display();
            tracing::warn!(
                "disk {directory}: read a part of a block: {error}; it is read from its source"
            );
        }
    }
}

/// Ends a blank, as a block with this code.
pub(super) fn coded(blank: Blank, code: Option<[u8; 32]>) -> (Block, Sums) {
    let (mut block, sums) = blank.freeze();
    if let Some(code) = code {
        block.note_code(code);
    }
    (block, sums)
}

/// Returns which record of a head is the run that is wanted, or has it.
fn place_of(head: &Head, spot: Spot, run: &Run) -> Option<usize> {
    let payload = u32::from(spot.payload);
    let place = head.records.iter().position(|stored| stored.payload == payload)?;
    let stored = &head.records[place];
    let is_it = stored.key == run.key
        && stored.version == run.version
        && stored.block_length == run.block_length
        && stored.chunks.first <= run.chunks.first
        && run.chunks.end <= stored.chunks.end;
    is_it.then_some(place)
}

/// Compares pages of a block with its head.
#[expect(clippy::option_option, reason = "whether it fits, and then whether there is a code")]
fn fits(
    head: &Head,
    spot: Spot,
    run: &Run,
    first_page: u32,
    blank: &Blank,
) -> Option<Option<[u8; 32]>> {
    let place = place_of(head, spot, run)?;
    let stored = &head.records[place];
    let skipped = first_page.checked_sub(stored.chunks.first * PAGES_PER_CHUNK)?;
    let wanted = head.sums_of(place).get(skipped as usize..)?;
    let found = blank.page_sums();
    let tag = checksum::tag(run.key.file, run.version, run.key.block);
    let is_right = wanted.len() >= found.len()
        && found.iter().zip(wanted).all(|(found, wanted)| found ^ tag == *wanted);
    is_right.then_some(stored.code)
}

/// Returns the bytes of a small range out of its pages, and the checksums that cover it.
fn of_small(small: &Small, run: &Run, first_page: u32, blank: &Blank) -> (Vec<u8>, Vec<u32>) {
    let tag = checksum::tag(run.key.file, run.version, run.key.block);
    let start = first_page * PAGE_SIZE;
    let pages = blank.to_vec();
    let of = |offset: u32, length: u32| {
        let at = (offset - start) as usize;
        &pages[at..at + length as usize]
    };
    let sums = pieces(small.offset, small.length, run.block_length).map(|piece| {
        let sum = match piece.grain {
            Grain::Page => blank.page_sums()[(piece.offset / PAGE_SIZE - first_page) as usize],
            Grain::Part | Grain::Chunk | Grain::Block => {
                checksum::of(of(piece.offset, piece.length))
            }
        };
        sum ^ tag
    });
    let sums = sums.collect();
    (of(small.offset, small.length).to_vec(), sums)
}
