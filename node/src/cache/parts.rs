//! Blocks that are in memory in part.
//!
//! Owns how parts become one entry. Always holds: an entry has the chunks of one version alone; its
//! checksums are valid for the chunks that are here; the block's own is made when the last chunk comes,
//! from those of the chunks.

use std::ops::Range;

use millrace_proto::FileId;
use millrace_proto::checksum::CHUNK_SIZE;

use super::{BlockKey, Cache, EntryIndex};
use crate::chunks::{Chunks, Runs, runs};
use crate::memory::{Block, PAGES_PER_CHUNK, Segment, ShardMemory, Sums, of_chunks};

impl Cache {
    /// True if all bytes of this range that the block has are here.
    #[inline]
    pub(crate) fn holds(&self, index: EntryIndex, offset: u32, length: u32) -> bool {
        self.entry(index.0).block.holds(offset, length)
    }

    /// True if the block is here with all its bytes.
    #[inline]
    pub(crate) fn is_whole(&self, index: EntryIndex) -> bool {
        self.entry(index.0).block.is_whole()
    }

    /// Returns which of these blocks of a file are here with all their bytes, in this version.
    pub(crate) fn whole_blocks(&self, file: FileId, version: u64, blocks: Range<u32>) -> Vec<u32> {
        let is_here = |block: &u32| {
            let found = self.find(&BlockKey { file, block: *block });
            found.is_some_and(|(index, found)| found == version && self.is_whole(index))
        };
        blocks.filter(is_here).collect()
    }

    /// Notes where the last read of a block began that is here in part.
    pub(crate) fn note_place(&mut self, index: EntryIndex, offset: u32) {
        let entry = self.entry_mut(index.0);
        if !entry.block.is_whole() {
            entry.last_offset = offset;
        }
    }

    /// Returns the chunk in which the last read of a block began, if the block is here.
    pub(crate) fn last_chunk(&self, key: &BlockKey, version: u64) -> Option<u32> {
        let (index, _) = self.find(key).filter(|(_, found)| *found == version)?;
        Some(self.entry(index.0).last_offset / CHUNK_SIZE)
    }

    /// Returns which of these chunks of a block are not here.
    pub(crate) fn missing(&self, key: &BlockKey, version: u64, chunks: Chunks) -> Runs {
        match self.find(key) {
            Some((entry, found)) if found == version => {
                let block = &self.entry(entry.0).block;
                runs(chunks, |chunk| !block.holds(chunk * CHUNK_SIZE, 1))
            }
            _ => Runs::from_slice(&[chunks]),
        }
    }

    /// Adds some chunks of a block of `block_length` bytes. What is here of another version is removed
    /// first. A part of which something is here already is given back to the memory: that is as good.
    pub(crate) fn insert_part(
        &mut self,
        key: BlockKey,
        version: u64,
        block_length: u32,
        chunks: Chunks,
        part: Block,
        sums: &Sums,
    ) -> EntryIndex {
        let first_page = chunks.first_page();
        let index = match self.find(&key) {
            Some((index, found)) if found == version => {
                if self.missing(&key, version, chunks).as_slice() != [chunks] {
                    self.memory.release(part);
                    return index;
                }
                self.grow(index, part, first_page);
                index
            }
            _ => self.add(key, version, Block::around(part, first_page, block_length), 0),
        };
        self.note_sums(index, sums, first_page);
        if self.is_whole(index) {
            let (block, tag) = (&self.entry(index.0).block, self.tag(index));
            let chunks = (0..block_length.div_ceil(CHUNK_SIZE)).map(|chunk| {
                let page = self.memory.shard_page(block, chunk * PAGES_PER_CHUNK);
                self.chunk_sums[page as usize] ^ tag
            });
            let block_sum = of_chunks(chunks, block_length) ^ tag;
            self.entry_mut(index.0).block_sum = block_sum;
        }
        index
    }

    /// Pins the block, and describes chunks of it, which are here, for a disk: the checksums of their pages as they are
    /// kept, and the whole pages that hold them.
    pub(crate) fn pin_chunks(
        &mut self,
        index: EntryIndex,
        chunks: Chunks,
        sums: &mut Vec<u32>,
        segments: &mut Vec<Segment>,
    ) {
        let Cache { memory, entries, page_sums, in_use_pages, .. } = self;
        let entry = entries[index.0 as usize].as_mut().expect("the entry is in use");
        let length = chunks.length(entry.block.length());
        let first = chunks.first_page();
        for page in first..first + ShardMemory::pages_for(length) {
            sums.push(page_sums[memory.shard_page(&entry.block, page) as usize]);
        }
        entry.block.whole_pages(chunks.offset(), length, |segment| segments.push(segment));
        if entry.pin_count == 0 {
            *in_use_pages += entry.block.held_pages();
        }
        entry.pin_count += 1;
    }

    /// Has an entry take a part in. One that is kept stays so while there is room in the share of those.
    fn grow(&mut self, index: EntryIndex, part: Block, first_page: u32) {
        let entry = self.entry_mut(index.0);
        let before = entry.block.held_pages();
        entry.block.adopt(part, first_page);
        let (place, key, is_pinned) = (entry.place, entry.key, entry.pin_count > 0);
        let added = entry.block.held_pages() - before;
        if is_pinned {
            self.in_use_pages += added;
        }
        self.queues.get(place).grow(added);
        if place.is_kept() && self.queues.kept_page_count() > self.kept_pages_max {
            self.keep(index, &key, false);
        }
    }

    /// Stores the checksums of pages that have come, with the identity of their block in them.
    pub(super) fn note_sums(&mut self, index: EntryIndex, sums: &Sums, first_page: u32) {
        let Cache { memory, entries, page_sums, chunk_sums, .. } = self;
        let entry = entries[index.0 as usize].as_ref().expect("the entry is in use");
        let page_of = |page| memory.shard_page(&entry.block, first_page + page) as usize;
        for (page, sum) in (0..).zip(&sums.pages) {
            page_sums[page_of(page)] = *sum ^ entry.tag;
        }
        for (chunk, sum) in (0..).zip(&sums.chunks) {
            chunk_sums[page_of(chunk * PAGES_PER_CHUNK)] = *sum ^ entry.tag;
        }
    }
}
