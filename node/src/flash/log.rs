//! One shard's file on one disk: a log of regions, written from front to end, the oldest one written over next.
//!
//! ```text
//!  file    │ region 0 │ region 1 │ region 2 │ …
//!  region  │ group │ group │ group │ …  free  … │ footer │
//!  group   │ head │ bytes of its runs, whole pages │
//! ```
//!
//! Owns which regions are free, sealed, written now or given up, and where the next group goes. Always holds: a page
//! that the index points to is not written before the index has let go of it; one operation of the log is under way at
//! a time.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use millrace_proto::checksum::PAGE_SIZE;

use super::directory::Disk;
use super::format::{FooterEntry, Head, Region, Stored, footer_pages};
use super::recover::FoundRegion;

/// A region that is written whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sealed {
    /// Its number in the file.
    pub(super) number: u32,
    /// Pages of its footer; 0 if it has none.
    pub(super) footer_pages: u32,
}

/// The region that is written now.
#[derive(Debug)]
struct OpenRegion {
    number: u32,
    sequence: u64,
    /// The page in it where the next group goes.
    next: u32,
    entries: Vec<FooterEntry>,
}

/// A region whose room is wanted: what of it is read is to be kept, and has not been looked at yet.
#[derive(Debug)]
pub(super) struct Recycling {
    pub(super) region: Sealed,
    /// None before its footer is read.
    pub(super) runs: Option<VecDeque<(u32, Stored)>>,
}

/// See the module.
pub(super) struct DiskLog {
    pub(super) disk: Arc<Disk>,
    shard: u16,
    free: VecDeque<u32>,
    sealed: VecDeque<Sealed>,
    open: Option<OpenRegion>,
    next_sequence: u64,
    pub(super) recycling: Option<Recycling>,
    /// Why nothing is read or written any more, if that is so.
    pub(super) fault: Option<String>,
}

impl DiskLog {
    /// Makes the log of a shard, with what was found in its file.
    pub(super) fn new(disk: Arc<Disk>, shard: u16, found: Vec<FoundRegion>) -> DiskLog {
        let is_found = |number: &u32| found.iter().any(|region| region.number == *number);
        let free = (0..disk.region_count).filter(|number| !is_found(number)).collect();
        let next_sequence = found.last().map_or(1, |last| last.sequence + 1);
        let mut log = DiskLog {
            disk,
            shard,
            free,
            sealed: VecDeque::new(),
            open: None,
            next_sequence,
            recycling: None,
            fault: None,
        };
        for region in found {
            // The youngest is written on. Another one without a footer was given up.
            if let Some(open) = log.open.take() {
                log.sealed.push_back(Sealed { number: open.number, footer_pages: 0 });
            }
            let FoundRegion { number, sequence, entries, footer_pages, next } = region;
            match footer_pages {
                0 => log.open = Some(OpenRegion { number, sequence, next, entries }),
                _ => log.sealed.push_back(Sealed { number, footer_pages }),
            }
        }
        log
    }

    /// Returns the file.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.disk.files[usize::from(self.shard)])
    }

    fn region_pages(&self) -> u32 {
        self.disk.superblock.region_pages
    }

    /// Returns the shard, for what is written.
    pub(super) fn shard(&self) -> u16 {
        self.shard
    }

    /// Returns the first page of a region.
    pub(super) fn first_page(&self, region: u32) -> u32 {
        region * self.region_pages()
    }

    /// Returns the pages of a region.
    pub(super) fn pages(&self, region: u32) -> std::ops::Range<u32> {
        self.first_page(region)..self.first_page(region) + self.region_pages()
    }

    /// Returns the bytes of the file.
    pub(super) fn capacity_bytes(&self) -> u64 {
        u64::from(self.disk.region_count) * u64::from(self.region_pages()) * u64::from(PAGE_SIZE)
    }

    /// True if nothing was ever written that is still there.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_none() && self.sealed.is_empty() && self.recycling.is_none()
    }

    /// True if a region is written now.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// True if a group of this many pages, with this many entries in a footer, fits into the region that is open.
    pub(super) fn fits(&self, page_count: u32, entry_count: usize) -> bool {
        self.open.as_ref().is_some_and(|open| {
            let footer = footer_pages(open.entries.len() + entry_count);
            open.next + page_count + footer <= self.region_pages()
        })
    }

    /// True if a run of this many pages could be written without a region that is not free yet, after `before` pages.
    pub(super) fn has_room(&self, before: u32, page_count: u32) -> bool {
        // Each run may be a group of its own, with a head of a page or two.
        !self.free.is_empty() || self.fits(before + page_count + 8, 8)
    }

    /// Returns the page where the next group goes, and what its head names.
    ///
    /// # Panics
    /// If no region is open.
    pub(super) fn place(&self) -> (u32, Region) {
        let open = self.open.as_ref().expect("a region is open");
        let region =
            Region { disk: self.disk.superblock.disk, shard: self.shard, sequence: open.sequence };
        (self.first_page(open.number) + open.next, region)
    }

    /// Notes a group that was written.
    pub(super) fn note(&mut self, head: &Head) {
        let page = self.place().0;
        let open = self.open.as_mut().expect("a region is open");
        open.entries.extend(head.drops.iter().map(|file| FooterEntry::Drop(*file)));
        open.entries.extend(head.records.iter().map(|record| {
            let stored = Stored { code: None, ..*record };
            FooterEntry::Run { head: page, stored }
        }));
        open.next += head.page_counts().1;
    }

    /// Returns a region that is free, its last page first to be made void, because an old footer may stand there.
    pub(super) fn next_free(&self) -> Option<(u32, u32)> {
        let number = *self.free.front()?;
        Some((number, self.pages(number).end - 1))
    }

    /// Begins to write a region that was free.
    pub(super) fn open_region(&mut self, number: u32) {
        self.free.retain(|free| *free != number);
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.open = Some(OpenRegion { number, sequence, next: 0, entries: Vec::new() });
    }

    /// Returns the footer of the region that is open, and the page where it goes.
    pub(super) fn footer(&self) -> Option<(u32, Vec<u8>)> {
        let open = self.open.as_ref()?;
        let bytes = super::format::encode_footer(&self.place().1, &open.entries);
        let pages = footer_pages(open.entries.len());
        Some((self.pages(open.number).end - pages, bytes))
    }

    /// Ends the region that is open: its footer is written.
    pub(super) fn seal(&mut self) {
        if let Some(open) = self.open.take() {
            let footer_pages = footer_pages(open.entries.len());
            self.sealed.push_back(Sealed { number: open.number, footer_pages });
        }
    }

    /// True if the oldest region is to be looked through now: while the region that is open has room for what is kept
    /// of it, and so that another one is free when it is full.
    pub(super) fn should_recycle(&self) -> bool {
        self.free.is_empty() && self.recycling.is_none() && !self.sealed.is_empty()
    }

    /// Begins to free the oldest region.
    pub(super) fn recycle(&mut self) {
        let region = self.sealed.pop_front();
        self.recycling = region.map(|region| Recycling { region, runs: None });
    }

    /// Ends that: the index points to nothing in the region any more.
    pub(super) fn recycled(&mut self) {
        if let Some(Recycling { region, .. }) = self.recycling.take() {
            self.free.push_back(region.number);
        }
    }
}
