//! The oldest region of a log: what of it is read is written again, the rest is forgotten, and its room is free.
//!
//! Always holds: a run that is not kept is out of the index before its page may be written; what is kept never takes
//! room that is not there.

use std::io;

use millrace_proto::checksum::{self, PAGE_SIZE};

use super::format::{FooterEntry, Stored, decode_footer, decode_trailer};
use super::index::Spot;
use super::write::{Doing, Loose};
use super::{Flash, head_length, offset_of};
use crate::cache::Cache;
use crate::mailbox::Run;
use crate::memory::Blank;
use crate::ring::{DiskJob, DiskWork};

/// Runs that are looked at in one turn. Derived: some 100 ns each.
const SLICE: usize = 256;
/// Runs that wait in memory to be written again, at most. Guessed: one is read while another is written.
const LOOSE_MAX: usize = 4;

impl Flash {
    /// Goes on with the oldest region of a log. Returns what is to be read for it.
    pub(super) fn recycle(&mut self, disk: usize, cache: &mut Cache) -> Option<Box<DiskJob>> {
        let log = &mut self.logs[disk];
        let recycling = log.recycling.as_mut()?;
        let region = recycling.region;
        if recycling.runs.is_none() {
            let pages = log.pages(region.number);
            if region.footer_pages == 0 {
                self.forget_region(disk);
                return None;
            }
            let blank = cache.allocate(region.footer_pages * PAGE_SIZE)?;
            self.doing[disk] = Doing::Footer;
            let parts = vec![(offset_of(pages.end - region.footer_pages), blank)];
            return Some(self.read_job(disk, parts));
        }
        for _ in 0..SLICE {
            let Some((head, stored)) = self.next_run(disk) else {
                self.logs[disk].recycled();
                return None;
            };
            let Some(spot) = Spot::of(disk as u8, head, &stored) else { continue };
            let Stored { key, version, .. } = stored;
            if !self.index.take_use(&key, version, spot) {
                self.index.remove(&key, version, spot);
                continue;
            }
            let waiting: u32 = self.loose.iter().map(|loose| loose.stored.page_count()).sum();
            if !self.logs[disk].has_room(waiting, stored.page_count()) {
                self.index.remove(&key, version, spot);
                continue;
            }
            if self.loose.len() >= LOOSE_MAX {
                self.put_back(disk, head, stored, spot);
                return None;
            }
            self.index.remove(&key, version, spot);
            // Where memory is short, what waits for it now comes first.
            let Some(head_blank) = cache.allocate(head_length(stored.length())) else { continue };
            let Some(blank) = cache.allocate(stored.length()) else {
                cache.release_blank(head_blank);
                continue;
            };
            self.doing[disk] = Doing::Keeping { stored, spot, is_void: false };
            let page = head + stored.payload;
            return Some(
                self.read_job(disk, vec![(offset_of(head), head_blank), (offset_of(page), blank)]),
            );
        }
        None
    }

    fn next_run(&mut self, disk: usize) -> Option<(u32, Stored)> {
        self.logs[disk].recycling.as_mut()?.runs.as_mut()?.pop_front()
    }

    /// Looks at a run once more later.
    fn put_back(&mut self, disk: usize, head: u32, stored: Stored, spot: Spot) {
        self.index.note_use(&stored.key, stored.version, spot);
        if let Some(recycling) = &mut self.logs[disk].recycling
            && let Some(runs) = &mut recycling.runs
        {
            runs.push_front((head, stored));
        }
    }

    fn read_job(&self, disk: usize, parts: Vec<(u64, Blank)>) -> Box<DiskJob> {
        let file = self.logs[disk].file();
        Box::new(DiskJob { number: disk as u64, file, work: DiskWork::Read(parts) })
    }

    /// Forgets all of the region whose room is wanted.
    fn forget_region(&mut self, disk: usize) {
        let log = &mut self.logs[disk];
        if let Some(recycling) = &log.recycling {
            self.index.remove_pages(disk as u8, log.pages(recycling.region.number));
        }
        log.recycled();
    }

    /// Takes the footer of the oldest region.
    pub(super) fn on_footer(
        &mut self,
        cache: &mut Cache,
        disk: usize,
        parts: Vec<(u64, Blank)>,
        result: io::Result<()>,
    ) {
        let mut entries = None;
        for (_, mut blank) in parts {
            if result.is_ok() {
                blank.filled_by_disk();
                let bytes = blank.to_vec();
                let log = &self.logs[disk];
                let superblock = &log.disk.superblock;
                let last = &bytes[bytes.len() - PAGE_SIZE as usize..];
                let trailer =
                    decode_trailer(last, &superblock.disk, log.shard(), superblock.region_pages);
                entries = trailer.and_then(|trailer| decode_footer(&bytes, &trailer));
            }
            cache.release_blank(blank);
        }
        if let Err(error) = &result {
            self.on_read_error(disk, error);
        }
        let runs = entries.map(|entries| {
            let runs = entries.into_iter().filter_map(|entry| match entry {
                FooterEntry::Run { head, stored } => Some((head, stored)),
                FooterEntry::Drop(_) => None,
            });
            runs.collect()
        });
        match (runs, &mut self.logs[disk].recycling) {
            (Some(runs), Some(recycling)) => recycling.runs = Some(runs),
            _ => self.forget_region(disk),
        }
    }

    /// Takes a run that is to be written again, unless its file was dropped meanwhile.
    pub(super) fn on_kept(
        &mut self,
        cache: &mut Cache,
        stored: Stored,
        spot: Spot,
        is_void: bool,
        parts: Vec<(u64, Blank)>,
        result: io::Result<()>,
    ) {
        let Ok([(_, head), (_, mut blank)]) = <[(u64, Blank); 2]>::try_from(parts) else { return };
        let Stored { key, version, chunks, block_length, .. } = stored;
        let run = Run { key, version, chunks, block_length };
        let first_page = chunks.first_page();
        let head = self.take_head(spot, head, cache, &result);
        let code = self.check(spot, &run, first_page, head.as_deref(), &mut blank, result);
        let Some(code) = code.filter(|_| !is_void) else { return cache.release_blank(blank) };
        let (block, sums) = blank.freeze();
        let tag = checksum::tag(key.file, version, key.block);
        let sums = sums.pages.iter().map(|sum| sum ^ tag).collect();
        self.counts.kept_bytes += u64::from(stored.length());
        self.loose.push_back(Loose { stored: Stored { code, ..stored }, block, sums });
    }
}
