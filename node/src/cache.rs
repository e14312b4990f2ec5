//! One shard's cached blocks: the index, their checksums, and which one leaves when memory is short.
//!
//! Owns the blocks. Always holds: an entry is in the index, or it is doomed and waits for its last pin;
//! a pinned block's pages are never given to another block; at most one version of a block is here. All
//! tables are made at start for the most blocks that memory could hold, one for each page. The order of
//! eviction is left to [`evict`], [`queue`] and [`ghost`], the blocks of a file to [`chains`], filling
//! to the worker.

use millrace_proto::checksum::{self, Grain, PAGE_SIZE, pieces};
use millrace_proto::proof::Mac;
use millrace_proto::{FileId, placement};

use crate::memory::{self, Blank, Block, Segment, ShardMemory, Sums};

mod chains;
mod evict;
mod ghost;
mod index;
mod parts;
mod queue;
mod secret;
use chains::Chains;
use evict::{QueuePlace, Queues, REUSE_MAX};
pub(crate) use ghost::Ghost;
use index::Index;
use queue::Links;
use secret::Secret;

/// Block number `block` (offset / block size) of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BlockKey {
    /// The file.
    pub file: FileId,
    /// Number of the block in the file.
    pub block: u32,
}

impl BlockKey {
    /// Returns the hash that places the block on a shard. Clients know it, so the index has another one.
    #[inline]
    pub(crate) fn hash(&self) -> u64 {
        placement::block_hash(self.file, u64::from(self.block))
    }
}

/// Place of a block in the shard's table of entries; good while the block is pinned or indexed.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) struct EntryIndex(u32);

impl EntryIndex {
    /// Returns its number, for [`Cache::enumerate`].
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// Reads that are looked ahead for at once. Guessed: what a receive buffer holds is about 100, and the
/// processor has no more than some ten loads from memory under way.
pub(crate) const WARM_MAX: usize = 32;

struct Entry {
    key: BlockKey,
    version: u64,
    block: Block,
    block_sum: u32,
    /// Value of the block's identity, which every stored checksum of it is combined with.
    tag: u32,
    pin_count: u32,
    /// Where the last read began, see [`Cache::touch`].
    last_offset: u32,
    reuse_count: u8,
    place: QueuePlace,
    links: Links,
}

/// Bytes of bookkeeping for each page of memory, at the worst case of one block for each page.
pub(crate) const PAGE_COST: usize = memory::PAGE_COST
    + 2 * size_of::<u32>()                      // checksums of the page and of its chunk
    + size_of::<Option<Entry>>()
    + size_of::<Mac>() + 16                     // code of the block, and what its allocation costs
    + size_of::<u32>()                          // free list
    + index::ENTRY_COST
    + chains::ENTRY_COST
    + ghost::ENTRY_COST;

/// What happened to the bytes that were asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// A stored checksum did not match; the block has been dropped.
    Found,
}

/// The shard's cache.
pub(crate) struct Cache {
    memory: ShardMemory,
    secret: Secret,
    index: Index,
    entries: Vec<Option<Entry>>,
    free_entries: Vec<u32>,
    page_sums: Vec<u32>,
    chunk_sums: Vec<u32>,
    queues: Queues,
    chains: Chains,
    kept_pages_max: u32,
    ghost: Ghost,
    evicted_count: u64,
    /// Pages of blocks that have a pin.
    in_use_pages: u32,
    block_count: u32,
    summed_bytes: u64,
}

/// A block of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its entry.
    pub entry: EntryIndex,
    /// The block.
    pub key: BlockKey,
    /// Its version.
    pub version: u64,
    /// True if it is kept from being evicted.
    pub is_kept: bool,
    /// True if all its bytes are here.
    pub is_whole: bool,
}

/// Some of the blocks of a shard.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// The blocks, in the order of their entries.
    pub blocks: Vec<Listed>,
    /// The entry to go on from, if there are more.
    pub next: Option<u32>,
}

impl Cache {
    /// Makes a cache over this memory. Blocks that are kept hold at most `kept_percent` of it, 0 to 100.
    pub(crate) fn new(memory: ShardMemory, kept_percent: u32) -> Cache {
        let entries_max = memory.page_count() as usize;
        Cache {
            secret: Secret::random(),
            index: Index::new(entries_max),
            entries: Vec::with_capacity(entries_max),
            free_entries: Vec::with_capacity(entries_max),
            page_sums: vec![0; entries_max],
            chunk_sums: vec![0; entries_max],
            queues: Queues::new(),
            chains: Chains::new(entries_max),
            kept_pages_max: (u64::from(memory.page_count()) * u64::from(kept_percent) / 100) as u32,
            ghost: Ghost::new(entries_max),
            evicted_count: 0,
            in_use_pages: 0,
            block_count: 0,
            summed_bytes: 0,
            memory,
        }
    }

    /// Takes the memory of all tables from the system now, by writing to each page of them.
    pub(crate) fn populated(mut self) -> Cache {
        self.entries.resize_with(self.entries.capacity(), || None);
        self.entries.clear();
        self.free_entries.resize(self.free_entries.capacity(), 0);
        self.free_entries.clear();
        self.page_sums.fill(0);
        self.chunk_sums.fill(0);
        self.ghost.populate();
        self.chains.populate();
        self
    }

    /// Returns the block with this key, and its version.
    #[inline]
    pub(crate) fn find(&self, key: &BlockKey) -> Option<(EntryIndex, u64)> {
        let index =
            self.index.find(self.secret.hash(key), |index| self.entry(index).key == *key)?;
        Some((EntryIndex(index), self.entry(index).version))
    }

    /// Touches what serving these reads (block, offset in it) will need: first all slots of
    /// the index, then all entries, then the first bytes of all payloads. Each step waits for memory
    /// once for all reads, where serving them one by one would wait several times for each.
    #[inline]
    pub(crate) fn warm(&self, reads: &[(BlockKey, u32)]) {
        let mut entries = [None; WARM_MAX];
        for (entry, (key, _)) in entries.iter_mut().zip(reads) {
            *entry = self.index.warm(self.secret.hash(key));
        }
        let mut sum = 0;
        for index in entries.iter().flatten() {
            sum ^= self.entry(*index).version;
        }
        for (index, (_, offset)) in entries.iter().zip(reads) {
            if let Some(index) = index {
                sum ^= u64::from(self.entry(*index).block.first_byte(*offset));
            }
        }
        std::hint::black_box(sum);
    }

    /// Counts a read that begins at `offset` of the block as a reuse, unless it goes on where an
    /// earlier one was: a scan in small steps is one use, not many. True if it is the first one.
    #[inline]
    pub(crate) fn touch(&mut self, index: EntryIndex, offset: u32) -> bool {
        let entry = self.entry_mut(index.0);
        let is_reuse = offset <= entry.last_offset && entry.reuse_count < REUSE_MAX;
        entry.reuse_count += u8::from(is_reuse);
        entry.last_offset = offset;
        is_reuse && entry.reuse_count == 1
    }

    /// Returns the blocks among `count` entries from number `first` on.
    pub(crate) fn enumerate(&self, first: u32, count: u32) -> Listing {
        let end = first.saturating_add(count).min(self.entries.len() as u32);
        let entries = self.entries.get(first as usize..end as usize).unwrap_or_default();
        let blocks = (first..end).zip(entries).filter_map(|(index, entry)| {
            let entry = entry.as_ref().filter(|entry| entry.place != QueuePlace::Doomed)?;
            let is_kept = entry.place.is_kept();
            Some(Listed {
                entry: EntryIndex(index),
                key: entry.key,
                version: entry.version,
                is_kept,
                is_whole: entry.block.is_whole(),
            })
        });
        let next = ((end as usize) < self.entries.len()).then_some(end);
        Listing { blocks: blocks.collect(), next }
    }

    /// Returns the memory that blocks lie in.
    pub(crate) fn memory(&self) -> &ShardMemory {
        &self.memory
    }

    /// Returns which block this is, and its version.
    pub(crate) fn describe(&self, index: EntryIndex) -> (BlockKey, u64) {
        let entry = self.entry(index.0);
        (entry.key, entry.version)
    }

    /// Returns the length of the block in bytes.
    #[inline]
    pub(crate) fn length(&self, index: EntryIndex) -> u32 {
        self.entry(index.0).block.length()
    }

    /// Returns the bytes of the block that are here.
    fn held_bytes(&self, index: EntryIndex) -> u64 {
        let block = &self.entry(index.0).block;
        let pages = u64::from(block.held_pages()) * u64::from(PAGE_SIZE);
        pages.min(u64::from(block.length()))
    }

    /// Returns the code of the block, if it has one: see section 16 of PROTOCOL.md.
    pub(crate) fn code(&self, index: EntryIndex) -> Option<&Mac> {
        self.entry(index.0).block.code()
    }

    /// Returns the value of the block's identity: [`checksum::tag`].
    #[inline]
    pub(crate) fn tag(&self, index: EntryIndex) -> u32 {
        self.entry(index.0).tag
    }

    /// Pins the block and describes a range of it: the pieces of memory that hold it, and the
    /// checksums that cover it, with its identity, by the rule of the protocol. Costs a pass over bytes
    /// only for parts of pages: their page is verified first, so that damage is found and never summed
    /// over.
    ///
    /// # Errors
    /// [`Damage::Found`]: nothing is pinned, and the block is no longer in the cache.
    #[inline]
    pub(crate) fn pin_range(
        &mut self,
        index: EntryIndex,
        offset: u32,
        length: u32,
        mut sum: impl FnMut(u32),
        segment: impl FnMut(Segment),
    ) -> Result<(), Damage> {
        let entry = self.entries[index.0 as usize].as_mut().expect("the entry is in use");
        let block_length = entry.block.length();
        for piece in pieces(offset, length, block_length) {
            let value = match piece.grain {
                Grain::Block => entry.block_sum,
                Grain::Chunk => {
                    let page = self.memory.shard_page(&entry.block, piece.offset / PAGE_SIZE);
                    self.chunk_sums[page as usize]
                }
                Grain::Page => {
                    let page = self.memory.shard_page(&entry.block, piece.offset / PAGE_SIZE);
                    self.page_sums[page as usize]
                }
                Grain::Part => {
                    let page_index = piece.offset / PAGE_SIZE;
                    let page_start = page_index * PAGE_SIZE;
                    let page_length = PAGE_SIZE.min(block_length - page_start);
                    let page = self.memory.shard_page(&entry.block, page_index);
                    self.summed_bytes += u64::from(page_length + piece.length);
                    let tag = entry.tag;
                    let found = entry.block.sum(page_start, page_length) ^ tag;
                    if found != self.page_sums[page as usize] {
                        self.remove_entry(index);
                        return Err(Damage::Found);
                    }
                    entry.block.sum(piece.offset, piece.length) ^ tag
                }
            };
            sum(value);
        }
        entry.block.segments(offset, length, segment);
        if entry.pin_count == 0 {
            self.in_use_pages += entry.block.held_pages();
        }
        entry.pin_count += 1;
        Ok(())
    }

    /// Describes a range as [`Cache::pin_range`] does, and calls `copy` with each piece of memory that
    /// holds it. Nothing stays pinned.
    ///
    /// # Errors
    /// As [`Cache::pin_range`].
    pub(crate) fn copy_range(
        &mut self,
        index: EntryIndex,
        offset: u32,
        length: u32,
        sum: impl FnMut(u32),
        bytes: &mut Vec<u8>,
    ) -> Result<(), Damage> {
        self.pin_range(index, offset, length, sum, |_| ())?;
        self.entry(index.0).block.copy(offset, length, bytes);
        self.unpin(index);
        Ok(())
    }

    /// Takes one pin away. The last one of a doomed block frees its memory; the last one of a held block
    /// makes it evictable.
    #[inline]
    pub(crate) fn unpin(&mut self, index: EntryIndex) {
        let entry = self.entry_mut(index.0);
        assert!(entry.pin_count > 0, "a block is unpinned as often as it was pinned");
        entry.pin_count -= 1;
        if entry.pin_count == 0 {
            let waits_for_unpin = entry.place.waits_for_unpin();
            let page_count = entry.block.held_pages();
            self.in_use_pages -= page_count;
            if waits_for_unpin {
                self.on_last_unpin(index.0);
            }
        }
    }

    /// Takes memory for a block of `length` bytes, and evicts for it if need be. `None` when what is
    /// evictable is not enough, because pinned blocks and blanks hold the rest.
    pub(crate) fn allocate(&mut self, length: u32) -> Option<Blank> {
        while self.memory.free_page_count() < ShardMemory::pages_for(length) {
            if !self.evict_one() {
                return None;
            }
        }
        self.memory.allocate(length)
    }

    /// Gives a blank back that did not become a block.
    pub(crate) fn release_blank(&mut self, blank: Blank) {
        self.memory.release_blank(blank);
    }

    /// Gives the memory of a block back that is not added.
    pub(crate) fn release(&mut self, block: Block) {
        self.memory.release(block);
    }

    /// Adds a block. One with the same key, of any version, is removed first.
    pub(crate) fn insert(
        &mut self,
        key: BlockKey,
        version: u64,
        block: Block,
        sums: &Sums,
    ) -> EntryIndex {
        let index = self.add(key, version, block, sums.block);
        self.note_sums(index, sums, 0);
        index
    }

    /// Makes an entry for a block, whose checksums are noted later. One with the same key is removed.
    fn add(&mut self, key: BlockKey, version: u64, block: Block, block_sum: u32) -> EntryIndex {
        let hash = self.secret.hash(&key);
        if let Some((old, _)) = self.find(&key) {
            self.remove_entry(old);
        }
        let page_count = block.held_pages();
        let tag = checksum::tag(key.file, version, key.block);
        let place = if self.ghost.contains(key.hash(), self.block_count) {
            QueuePlace::Main
        } else {
            QueuePlace::Small
        };
        let entry = Entry {
            key,
            version,
            block,
            block_sum: block_sum ^ tag,
            tag,
            pin_count: 0,
            last_offset: 0,
            reuse_count: 0,
            place,
            links: Links::NONE,
        };
        let index = match self.free_entries.pop() {
            Some(index) => {
                self.entries[index as usize] = Some(entry);
                index
            }
            None => {
                self.entries.push(Some(entry));
                self.entries.len() as u32 - 1
            }
        };
        self.push(place, index, page_count);
        self.chains.link(index, key.file, |index| self.entries[index as usize].as_ref());
        self.index.insert(hash, index);
        self.block_count += 1;
        EntryIndex(index)
    }

    /// Removes a block, if it is here; returns its bytes here. Memory that is still being sent is freed
    /// when that is done.
    pub(crate) fn remove(&mut self, key: &BlockKey) -> Option<u64> {
        let (index, _) = self.find(key)?;
        let bytes = self.held_bytes(index);
        self.remove_entry(index);
        Some(bytes)
    }

    /// Removes at most `count_max` blocks of a file; returns how many, and their bytes. If fewer were
    /// removed no more are left. The cost follows what is removed, whatever else is here.
    pub(crate) fn remove_of_file(&mut self, file: FileId, count_max: u32) -> (u32, u64) {
        let (mut block_count, mut byte_count) = (0, 0);
        while block_count < count_max
            && let Some(index) =
                self.chains.first(file, |index| self.entries[index as usize].as_ref())
        {
            block_count += 1;
            byte_count += self.held_bytes(EntryIndex(index));
            self.remove_entry(EntryIndex(index));
        }
        (block_count, byte_count)
    }

    /// Keeps a block from being evicted, or no longer, if it is still the one at this entry. Without
    /// room in the share it stays as evictable as it is.
    pub(crate) fn keep(&mut self, index: EntryIndex, key: &BlockKey, wanted: bool) {
        let Some(Some(entry)) = self.entries.get(index.0 as usize) else { return };
        let is_kept = entry.place.is_kept();
        if entry.key != *key || entry.place == QueuePlace::Doomed || is_kept == wanted {
            return;
        }
        let page_count = entry.block.held_pages();
        if wanted && self.queues.kept_page_count() + page_count > self.kept_pages_max {
            return;
        }
        self.unlink(index.0, page_count);
        // It begins again as a block that was seen once. Uses while it could not be evicted say little,
        // and would hold it in main, where a scan does not reach it.
        self.entry_mut(index.0).reuse_count = 0;
        self.push(if wanted { QueuePlace::Kept } else { QueuePlace::Small }, index.0, page_count);
    }

    fn remove_entry(&mut self, index: EntryIndex) {
        let entry = self.entry(index.0);
        let (place, key, pinned) = (entry.place, entry.key, entry.pin_count > 0);
        let page_count = entry.block.held_pages();
        if place == QueuePlace::Doomed {
            return;
        }
        self.unlink(index.0, page_count);
        self.chains.unlink(index.0, key.file, |index| self.entries[index as usize].as_ref());
        self.index.remove(self.secret.hash(&key), index.0);
        self.block_count -= 1;
        if pinned {
            self.entry_mut(index.0).place = QueuePlace::Doomed;
        } else {
            self.free_entry(index.0);
        }
    }

    fn free_entry(&mut self, index: u32) {
        let entry = self.entries[index as usize].take().expect("the entry is in use");
        self.memory.release(entry.block);
        self.free_entries.push(index);
    }

    #[inline]
    fn entry(&self, index: u32) -> &Entry {
        self.entries[index as usize].as_ref().expect("the entry is in use")
    }

    #[inline]
    fn entry_mut(&mut self, index: u32) -> &mut Entry {
        self.entries[index as usize].as_mut().expect("the entry is in use")
    }

    /// Returns the number of blocks in the cache.
    pub(crate) fn block_count(&self) -> u32 {
        self.block_count
    }

    /// Returns the number of blocks that are kept.
    pub(crate) fn kept_count(&self) -> u32 {
        self.queues.kept_length()
    }

    /// Returns the bytes of memory that those hold, whole pages.
    pub(crate) fn kept_bytes(&self) -> u64 {
        u64::from(self.queues.kept_page_count()) * u64::from(PAGE_SIZE)
    }

    /// Returns the bytes of memory that blocks and blanks hold, whole pages.
    pub(crate) fn used_bytes(&self) -> u64 {
        u64::from(self.memory.page_count() - self.memory.free_page_count()) * u64::from(PAGE_SIZE)
    }

    /// Returns the bytes of memory that blocks with a pin hold, whole pages: they cannot be evicted now.
    #[inline]
    pub(crate) fn in_use_bytes(&self) -> u64 {
        u64::from(self.in_use_pages) * u64::from(PAGE_SIZE)
    }

    /// Returns the bytes of memory for blocks.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        u64::from(self.memory.page_count()) * u64::from(PAGE_SIZE)
    }

    /// Returns how many blocks were evicted since start.
    pub(crate) fn evicted_count(&self) -> u64 {
        self.evicted_count
    }

    /// Returns the bytes summed since start to serve ranges that cut a page; 0 as long as all were
    /// aligned.
    pub(crate) fn summed_bytes(&self) -> u64 {
        self.summed_bytes
    }

    /// Flips one bit of a cached block, as failing memory would.
    #[cfg(test)]
    pub(crate) fn damage(&mut self, index: EntryIndex, offset: u32) {
        self.entry_mut(index.0).block.damage(offset);
    }
}

#[cfg(test)]
mod tests;
