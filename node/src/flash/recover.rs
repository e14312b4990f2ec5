//! What a shard's file held when its node ended.
//!
//! Owns the reading of footers and heads at start. Always holds: only what the format's checksums vouch for is found;
//! what was dropped stays dropped; of two copies of a run the younger one is found.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use millrace_proto::FileId;
use millrace_proto::checksum::PAGE_SIZE;

use super::format::{FooterEntry, Head, Superblock, Trailer, decode_footer, decode_trailer};

/// Heads of more pages are not read. Derived: one of the largest block has 5.
const HEAD_PAGES_MAX: u32 = 16;

/// A region that holds something.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FoundRegion {
    /// Its number in the file.
    pub number: u32,
    /// Number of its use.
    pub sequence: u64,
    /// What it holds, in order.
    pub entries: Vec<FooterEntry>,
    /// Pages of its footer; 0 if it has none, because it was being written.
    pub footer_pages: u32,
    /// Its first page that is not written, if it has no footer.
    pub next: u32,
}

/// Reads what a file holds: its regions, the oldest first.
///
/// # Errors
/// As pread(2). A file that ends early holds nothing there.
pub(crate) fn recover(
    file: &File,
    superblock: &Superblock,
    shard: u16,
    region_count: u32,
) -> io::Result<Vec<FoundRegion>> {
    let reader = RegionReader { file, superblock, shard };
    let mut regions = Vec::new();
    for number in 0..region_count {
        regions.extend(reader.region(number)?);
    }
    regions.sort_by_key(|region| region.sequence);
    Ok(regions)
}

/// Returns what of all this is good: each run that no later drop of its file voids.
pub(crate) fn living(regions: &[FoundRegion]) -> impl Iterator<Item = &FooterEntry> {
    let mut dropped: HashMap<FileId, usize> = HashMap::new();
    let all = || regions.iter().flat_map(|region| &region.entries).enumerate();
    for (place, entry) in all() {
        if let FooterEntry::Drop(file) = entry {
            dropped.insert(*file, place);
        }
    }
    all().filter_map(move |(place, entry)| match entry {
        FooterEntry::Run { stored, .. } => {
            let is_void = dropped.get(&stored.key.file).is_some_and(|drop| *drop > place);
            (!is_void).then_some(entry)
        }
        FooterEntry::Drop(_) => None,
    })
}

/// Reads one shard's file.
pub(crate) struct RegionReader<'a> {
    pub file: &'a File,
    pub superblock: &'a Superblock,
    pub shard: u16,
}

impl RegionReader<'_> {
    /// Reads pages. None where the file ends.
    pub(crate) fn pages(&self, page: u32, count: u32) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; count as usize * PAGE_SIZE as usize];
        match self.file.read_exact_at(&mut bytes, u64::from(page) * u64::from(PAGE_SIZE)) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads what a region holds. None if nothing of this disk is found in it.
    pub(crate) fn region(&self, number: u32) -> io::Result<Option<FoundRegion>> {
        let Superblock { region_pages, disk, .. } = *self.superblock;
        let start = number * region_pages;
        let first = self.head(start)?;
        let last = self.pages(start + region_pages - 1, 1)?;
        let trailer = last.and_then(|page| decode_trailer(&page, &disk, self.shard, region_pages));
        let begun = first.as_ref().map(|(_, sequence)| *sequence);
        if let Some(trailer) = trailer
            && begun.is_none_or(|sequence| sequence <= trailer.sequence)
            && let Some(entries) = self.footer(start, &trailer)?
        {
            let (sequence, footer_pages) = (trailer.sequence, trailer.footer_pages());
            return Ok(Some(FoundRegion { number, sequence, entries, footer_pages, next: 0 }));
        }
        let begun = match begun {
            None if self.is_head_damaged(start)? => self.last_sequence(start)?,
            begun => begun,
        };
        let Some(sequence) = begun else { return Ok(None) };
        let (mut entries, mut page) = (Vec::new(), start);
        let end = start + region_pages;
        let mut next = page;
        while page < end {
            let found = self.head(page)?.filter(|(_, found)| *found == sequence);
            let Some((head, _)) = found else {
                // If this head is damaged, there are others behind it.
                page += 1;
                continue;
            };
            entries.extend(head.drops.iter().map(|file| FooterEntry::Drop(*file)));
            entries.extend(head.records.iter().map(|record| {
                let stored = super::format::Stored { code: None, ..*record };
                FooterEntry::Run { head: page, stored }
            }));
            page += head.page_counts().1;
            next = page.min(end);
        }
        let next = next - start;
        Ok(Some(FoundRegion { number, sequence, entries, footer_pages: 0, next }))
    }

    /// Returns the number of the last use of a region from the heads that are in it, whose first one is damaged.
    fn last_sequence(&self, start: u32) -> io::Result<Option<u64>> {
        let mut last = None;
        for page in start..start + self.superblock.region_pages {
            last = last.max(self.head(page)?.map(|(_, sequence)| sequence));
        }
        Ok(last)
    }

    /// Returns whether a page seems to be the first one of a head that was written there, and is not sound.
    pub(crate) fn is_head_damaged(&self, page: u32) -> io::Result<bool> {
        let first = self.pages(page, 1)?;
        let is_head = first.is_some_and(|it| Head::is_likely(&it, &self.superblock.disk, page));
        Ok(is_head && self.head(page)?.is_none())
    }

    /// Reads a head, with the number of its region's use. None if no sound head lies there.
    pub(crate) fn head(&self, page: u32) -> io::Result<Option<(Head, u64)>> {
        let Some(mut bytes) = self.pages(page, 1)? else { return Ok(None) };
        match Head::claimed_pages(&bytes) {
            None => return Ok(None),
            Some(1) => (),
            Some(count) if count <= HEAD_PAGES_MAX => match self.pages(page, count)? {
                Some(all) => bytes = all,
                None => return Ok(None),
            },
            Some(_) => return Ok(None),
        }
        Ok(Head::decode(&bytes, &self.superblock.disk, self.shard, page))
    }

    fn footer(&self, start: u32, trailer: &Trailer) -> io::Result<Option<Vec<FooterEntry>>> {
        let (pages, region_pages) = (trailer.footer_pages(), self.superblock.region_pages);
        let bytes = self.pages(start + region_pages - pages, pages)?;
        Ok(bytes.and_then(|bytes| decode_footer(&bytes, trailer)))
    }
}
