//! Blocks that are here in part: runs of pages, and holes between them.
//!
//! Owns which pages of a block are missing. Always holds: a hole is never read, because it has no
//! address; a page that is here stays where it is while more come in, so what is being sent stays good.

use millrace_proto::checksum::PAGE_SIZE;

use super::{Block, Extent, Extents, HOLE, OwnedPages, ShardMemory};

impl Block {
    /// Returns a block of `length` bytes of which only `part` is here, from page `first_page` on.
    ///
    /// # Panics
    /// If the part does not lie in the block.
    pub(crate) fn around(part: Block, first_page: u32, length: u32) -> Block {
        let page_count = ShardMemory::pages_for(length);
        let hole = Extent { page: HOLE, page_count };
        let arena = part.pages.arena.clone();
        let pages = OwnedPages { arena, extents: Extents::from_elem(hole, 1), length };
        let mut block = Block { pages, missing_pages: page_count, code: None };
        block.adopt(part, first_page);
        block
    }

    /// Takes the pages of `part` in, from page `first_page` on.
    ///
    /// # Panics
    /// If one of these pages is here already, or past the end.
    pub(crate) fn adopt(&mut self, part: Block, first_page: u32) {
        let count = part.pages.page_count();
        let end = first_page + count;
        let mut extents = Extents::new();
        let mut position = 0;
        let mut added = Some(part.pages.extents);
        for extent in std::mem::take(&mut self.pages.extents) {
            let (start, stop) = (position, position + extent.page_count);
            position = stop;
            let holds_part = extent.page == HOLE && start <= first_page && end <= stop;
            match added.take_if(|_| holds_part) {
                None => extents.push(extent),
                Some(new) => {
                    let hole = |page_count| Extent { page: HOLE, page_count };
                    let holes = [hole(first_page - start), hole(stop - end)];
                    let [before, after] = holes.map(|hole| (hole.page_count > 0).then_some(hole));
                    extents.extend(before);
                    extents.extend(new);
                    extents.extend(after);
                }
            }
        }
        assert!(added.is_none(), "pages come into a hole of their block");
        self.pages.extents = extents;
        self.missing_pages -= count;
    }

    /// True if every page is here.
    #[inline]
    pub(crate) fn is_whole(&self) -> bool {
        self.missing_pages == 0
    }

    /// True if all bytes of this range that the block has are here.
    #[inline]
    pub(crate) fn holds(&self, offset: u32, length: u32) -> bool {
        self.is_whole() || self.holds_pages(offset, length)
    }

    fn holds_pages(&self, offset: u32, length: u32) -> bool {
        let end = offset.saturating_add(length).min(self.pages.length);
        let (first, end) = (offset / PAGE_SIZE, end.div_ceil(PAGE_SIZE));
        let mut position = 0;
        self.pages.extents.iter().all(|extent| {
            let start = position;
            position += extent.page_count;
            extent.page != HOLE || end <= start || position <= first
        })
    }

    /// Returns the pages that are here.
    pub(crate) fn held_pages(&self) -> u32 {
        ShardMemory::pages_for(self.pages.length) - self.missing_pages
    }
}

impl OwnedPages {
    fn page_count(&self) -> u32 {
        self.extents.iter().map(|extent| extent.page_count).sum()
    }
}
