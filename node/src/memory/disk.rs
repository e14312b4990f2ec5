//! Pages as a disk reads and writes them: whole ones, where they lie.
//!
//! Owns which pieces of memory an operation on a file refers to. Always holds: a blank that the kernel writes to is
//! with the operation, so nothing else sees it; it is full only when the operation has ended.

use millrace_proto::checksum::PAGE_SIZE;

use super::{Blank, Block, OwnedPages, Segment, visit};

impl OwnedPages {
    /// Calls `see` with each piece of whole pages that hold `length` bytes from `offset`, where a page begins.
    fn whole_pages(&self, offset: u32, length: u32, mut see: impl FnMut(Segment)) {
        debug_assert_eq!(offset % PAGE_SIZE, 0);
        self.segments(offset, length, |address, length| {
            // A piece ends within a page only where the block does; the rest of that page is the block's, too.
            let length = length.next_multiple_of(PAGE_SIZE as usize);
            see(Segment { address: address.as_ptr().expose_provenance(), length });
        });
    }
}

impl Block {
    /// Describes whole pages of the block for a disk to write: those that hold `length` bytes from `offset`, where a
    /// page begins.
    pub(crate) fn whole_pages(&self, offset: u32, length: u32, see: impl FnMut(Segment)) {
        self.pages.whole_pages(offset, length, see);
    }
}

impl Blank {
    /// Describes all its pages, for a disk to read to or to write from.
    pub(crate) fn whole_pages(&mut self, see: impl FnMut(Segment)) {
        self.pages.whole_pages(0, self.pages.length, see);
    }

    /// Notes that a disk has filled it, whatever was written before; its pages are summed now.
    pub(crate) fn filled_by_disk(&mut self) {
        self.empty();
        self.written = self.pages.length;
        self.sum_written_pages();
    }

    /// Returns the CRC-32 of each page that is written.
    pub(crate) fn page_sums(&self) -> &[u32] {
        &self.page_sums
    }

    /// Returns a copy of what is written.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.written as usize);
        visit(&self.pages, 0, self.written, |piece| bytes.extend_from_slice(piece));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Arena, peek};

    #[test]
    fn a_disk_sees_whole_pages() {
        let mut memory = Arena::new(8).unwrap().cut(1).pop().unwrap();
        let mut blank = memory.allocate(5000).unwrap();
        let mut lengths = Vec::new();
        blank.whole_pages(|segment| lengths.push(segment.length));
        assert_eq!(lengths.iter().sum::<usize>(), 8192);
        blank.write(&[3; 5000]);
        assert_eq!(blank.to_vec(), [3; 5000]);
        let (block, sums) = blank.freeze();
        let mut pieces = Vec::new();
        block.whole_pages(4096, 904, |segment| pieces.push(peek(segment)));
        assert_eq!((pieces.len(), pieces[0].len()), (1, 4096));
        assert_eq!(pieces[0][..904], [3; 904]);
        // As a disk would fill it: what was there before does not count.
        memory.release(block);
        let mut blank = memory.allocate(5000).unwrap();
        blank.write(&[9; 100]);
        blank.filled_by_disk();
        assert!(blank.is_full());
        assert_eq!(blank.page_sums().len(), sums.pages.len());
        memory.release_blank(blank);
    }
}
