//! A disk of the flash tier that no node uses: what it holds, and whether all of that is sound.
//!
//! Owns no format: it reads as a node does at its start. Always holds: nothing is written; the directory is locked as
//! long as it is looked at; a page that cannot be read is a fault like one that is damaged, and the rest is looked at.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use millrace_proto::checksum::{self, PAGE_SIZE};

use crate::cache::BlockKey;
use crate::chunks::Chunks;
use crate::flash::DiskError;
use crate::flash::directory::{SUPERBLOCK_NAME, file_name, take_lock};
use crate::flash::format::{
    FORMAT_VERSION, FooterEntry, Head, NoSuperblock, SUPERBLOCK_LENGTH, Stored, Superblock,
    decode_trailer,
};
use crate::flash::recover::{FoundRegion, RegionReader, living, recover};

/// A disk that is locked, so that no node uses it.
#[derive(Debug)]
pub struct OfflineDisk {
    directory: PathBuf,
    superblock: Superblock,
    _lock: File,
}

/// What a disk holds.
#[derive(Clone, Debug)]
pub struct DiskContents {
    /// Version of the format.
    pub format: u32,
    /// Drawn when the disk was made; every head and footer names it.
    pub identity: [u8; 16],
    /// Size of a block in bytes.
    pub block_size: u32,
    /// Size of a region in bytes.
    pub region_bytes: u64,
    /// What the file of each shard holds, in order.
    pub shards: Vec<ShardContents>,
}

/// What the file of one shard holds.
#[derive(Clone, Debug)]
pub struct ShardContents {
    /// Name of the file.
    pub file: String,
    /// Its length in bytes.
    pub file_bytes: u64,
    /// Its regions.
    pub region_count: u32,
    /// Those among them that hold something, the oldest first.
    pub regions: Vec<RegionContents>,
    /// Runs of chunks that a node finds at its start, and their bytes: no later drop voids them, and of two copies
    /// one counts.
    pub live_run_count: u64,
    /// See there.
    pub live_bytes: u64,
}

/// What a region holds.
#[derive(Clone, Debug)]
pub struct RegionContents {
    /// Its number in the file.
    pub number: u32,
    /// How far it was written.
    pub state: RegionState,
    /// Number of its use: a later one is greater.
    pub sequence: u64,
    /// Runs of chunks in it, and their bytes, also of those that are void by now.
    pub run_count: u64,
    /// See there.
    pub run_bytes: u64,
    /// Files of which all that was written before is void.
    pub drop_count: u64,
}

/// How far a region was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionState {
    /// It is full, and has its footer.
    Sealed,
    /// It is the youngest, and is written on.
    Open,
    /// It has no footer that is sound, and is not written on: its heads say what it holds.
    Unsealed,
}

/// Something that is damaged, or cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFault {
    /// Name of the file.
    pub file: String,
    /// The page in it, of 4096 bytes.
    pub page: u32,
    /// What is wrong with it.
    pub what: String,
    /// What is lost by it.
    pub lost: String,
}

/// What a look at every page that is in use found.
#[derive(Clone, Debug, Default)]
pub struct DiskCheck {
    /// Regions that hold something.
    pub region_count: u64,
    /// Groups whose heads are sound.
    pub group_count: u64,
    /// Runs of those groups whose bytes match their checksums, and these bytes.
    pub run_count: u64,
    /// See there.
    pub run_bytes: u64,
    /// All that is wrong.
    pub faults: Vec<DiskFault>,
}

impl OfflineDisk {
    /// Locks the directory of a disk, and reads its superblock.
    ///
    /// # Errors
    /// [`DiskError`]: a node uses it, it is not a disk, or it has a format that this version does not read.
    pub fn open(directory: &Path) -> Result<OfflineDisk, DiskError> {
        let directory = directory.to_owned();
        let failed = |what, error| DiskError::Io { directory: directory.clone(), what, error };
        let lock = File::open(directory.join(SUPERBLOCK_NAME))
            .map_err(|error| failed("open its superblock", error))?;
        take_lock(&directory, &lock)?;
        let mut bytes = vec![0; SUPERBLOCK_LENGTH];
        match lock.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(failed("read its superblock", error));
            }
            _ => (),
        }
        let why = match Superblock::decode(&bytes) {
            Ok(superblock) if superblock.region_pages > 0 => {
                return Ok(OfflineDisk { directory, superblock, _lock: lock });
            }
            Ok(_) | Err(NoSuperblock::Foreign) => "its superblock is damaged".to_owned(),
            Err(NoSuperblock::Version(version)) => {
                format!("it has format {version}, and this version reads format {FORMAT_VERSION}")
            }
        };
        Err(DiskError::NoDisk { directory, why })
    }

    /// Returns the bytes of all its files.
    pub fn file_bytes(&self) -> u64 {
        let length = |shard| std::fs::metadata(self.path(shard)).map_or(0, |file| file.len());
        (0..self.superblock.shard_count).map(length).sum()
    }

    fn path(&self, shard: u32) -> PathBuf {
        self.directory.join(file_name(shard as usize))
    }

    fn region_bytes(&self) -> u64 {
        u64::from(self.superblock.region_pages) * u64::from(PAGE_SIZE)
    }

    /// Returns the regions that a file of this length has, the last of which may be cut.
    fn region_count(&self, file_bytes: u64) -> u32 {
        let count = u32::try_from(file_bytes.div_ceil(self.region_bytes())).unwrap_or(u32::MAX);
        // Pages of a file are counted in 32 bits.
        count.min(u32::MAX / self.superblock.region_pages)
    }

    /// Reads what the disk holds, from footers and heads, as a node does at its start.
    ///
    /// # Errors
    /// [`DiskError::Io`] if a file cannot be read.
    pub fn inspect(&self) -> Result<DiskContents, DiskError> {
        let shards = (0..self.superblock.shard_count).map(|shard| {
            self.inspect_shard(shard).map_err(|error| DiskError::Io {
                directory: self.directory.clone(),
                what: "read a shard's file",
                error: io::Error::new(
                    error.kind(),
                    format!("{}: {error}", file_name(shard as usize)),
                ),
            })
        });
        Ok(DiskContents {
            format: FORMAT_VERSION,
            identity: self.superblock.disk,
            block_size: self.superblock.block_size,
            region_bytes: self.region_bytes(),
            shards: shards.collect::<Result<_, _>>()?,
        })
    }

    fn inspect_shard(&self, shard: u32) -> io::Result<ShardContents> {
        let file = File::open(self.path(shard))?;
        let file_bytes = file.metadata()?.len();
        let region_count = self.region_count(file_bytes);
        let found = recover(&file, &self.superblock, shard as u16, region_count)?;
        let mut live: HashMap<(BlockKey, u64, Chunks), u32> = HashMap::new();
        for entry in living(&found) {
            if let FooterEntry::Run { stored, .. } = entry {
                live.insert((stored.key, stored.version, stored.chunks), stored.length());
            }
        }
        let youngest = found.last().map(|region| region.sequence);
        let regions = found.iter().map(|region| contents(region, youngest)).collect();
        Ok(ShardContents {
            file: file_name(shard as usize),
            file_bytes,
            region_count,
            regions,
            live_run_count: live.len() as u64,
            live_bytes: live.values().map(|length| u64::from(*length)).sum(),
        })
    }

    /// Reads every head, footer and run of chunks, and compares them with their checksums. Calls `on_read` with the
    /// bytes of each region that was looked at.
    pub fn verify(&self, mut on_read: impl FnMut(u64)) -> DiskCheck {
        let mut check = DiskCheck::default();
        let lengths: Vec<io::Result<u64>> = (0..self.superblock.shard_count)
            .map(|shard| std::fs::metadata(self.path(shard)).map(|file| file.len()))
            .collect();
        // The files of a disk have one length.
        let longest = lengths.iter().flatten().max().copied().unwrap_or(0);
        for (shard, length) in lengths.into_iter().enumerate() {
            let file = length.and_then(|length| Ok((length, File::open(self.path(shard as u32))?)));
            let name = file_name(shard);
            let (length, file) = match file {
                Ok(found) => found,
                Err(error) => {
                    let what = format!("open the file: {error}");
                    check.note(&name, 0, what, "all that it held".to_owned());
                    continue;
                }
            };
            if length < longest {
                let what = format!("the file ends after {length} bytes, and another has {longest}");
                let page = (length / u64::from(PAGE_SIZE)) as u32;
                check.note(&name, page, what, "what it held behind that".to_owned());
            }
            let superblock = &self.superblock;
            let reader = RegionReader { file: &file, superblock, shard: shard as u16 };
            let mut verifier = ShardVerifier { reader, name: &name, check: &mut check };
            for number in 0..self.region_count(length) {
                let start = number * superblock.region_pages;
                if let Err(error) = verifier.region(number) {
                    let lost = "what the region held".to_owned();
                    verifier.check.note(&name, start, format!("read the region: {error}"), lost);
                }
                on_read(self.region_bytes());
            }
            // The pages that were read for it are of no more use.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        }
        check
    }
}

/// Says what a region holds, in a file whose youngest region has this sequence.
fn contents(region: &FoundRegion, youngest: Option<u64>) -> RegionContents {
    let runs = || runs_of(region).map(|(_, stored)| u64::from(stored.length()));
    let run_count = runs().count() as u64;
    RegionContents {
        number: region.number,
        state: match region.footer_pages {
            0 if Some(region.sequence) == youngest => RegionState::Open,
            0 => RegionState::Unsealed,
            _ => RegionState::Sealed,
        },
        sequence: region.sequence,
        run_count,
        run_bytes: runs().sum(),
        drop_count: region.entries.len() as u64 - run_count,
    }
}

/// Returns the runs of a region, each with the page of its head.
fn runs_of(region: &FoundRegion) -> impl Iterator<Item = (u32, &Stored)> {
    region.entries.iter().filter_map(|entry| match entry {
        FooterEntry::Run { head, stored } => Some((*head, stored)),
        FooterEntry::Drop(_) => None,
    })
}

impl DiskCheck {
    fn note(&mut self, file: &str, page: u32, what: impl Into<String>, lost: String) {
        self.faults.push(DiskFault { file: file.to_owned(), page, what: what.into(), lost });
    }
}

/// Looks at one file.
struct ShardVerifier<'a> {
    reader: RegionReader<'a>,
    name: &'a str,
    check: &'a mut DiskCheck,
}

impl ShardVerifier<'_> {
    fn note(&mut self, page: u32, what: impl Into<String>, lost: String) {
        self.check.note(self.name, page, what, lost);
    }

    /// Looks at a region.
    fn region(&mut self, number: u32) -> io::Result<()> {
        let region_pages = self.reader.superblock.region_pages;
        let start = number * region_pages;
        let Some(region) = self.reader.region(number)? else {
            if self.reader.is_head_damaged(start)? {
                let lost = "all that the region held".to_owned();
                self.note(start, "the head of the only group is damaged", lost);
            }
            return Ok(());
        };
        self.check.region_count += 1;
        let last = start + region_pages - 1;
        if region.footer_pages == 0 && self.is_footer_damaged(last, region.sequence)? {
            let lost = "nothing that the heads of the region's groups do not say".to_owned();
            self.note(last, "the footer is damaged, or was not written whole", lost);
        }
        self.groups(&region, start, last + 1 - region.footer_pages);
        Ok(())
    }

    /// Returns whether a region in this use, which is not sealed, has a footer that is not sound: its last page is
    /// neither void nor of an earlier use.
    fn is_footer_damaged(&self, last: u32, sequence: u64) -> io::Result<bool> {
        let Superblock { disk, region_pages, .. } = *self.reader.superblock;
        let page = self.reader.pages(last, 1)?.unwrap_or_default();
        let is_void = page.iter().all(|byte| *byte == 0);
        let trailer = decode_trailer(&page, &disk, self.reader.shard, region_pages);
        Ok(!is_void && trailer.is_none_or(|trailer| trailer.sequence >= sequence))
    }

    /// Looks at the groups of a region, one behind the other.
    fn groups(&mut self, region: &FoundRegion, start: u32, end: u32) {
        let mut known: BTreeMap<u32, Vec<&Stored>> = BTreeMap::new();
        for (head, stored) in runs_of(region) {
            known.entry(head).or_default().push(stored);
        }
        let mut page = start;
        while page < end {
            let runs = known.remove(&page).unwrap_or_default();
            let head = self.reader.head(page);
            match head {
                Ok(Some((head, sequence))) if sequence == region.sequence => {
                    self.group(page, &head, &runs);
                    page += head.page_counts().1;
                    continue;
                }
                Err(error) => self.note(page, format!("read a head: {error}"), lost(&runs)),
                Ok(_) if !runs.is_empty() => {
                    self.note(page, "the head of a group is damaged", lost(&runs));
                }
                Ok(_) => {
                    // Behind the last group may be one of an earlier use of the region.
                    let is_between = known.range(page..).next().is_some();
                    let is_open = region.footer_pages == 0;
                    if is_between || is_open && self.reader.is_head_damaged(page).unwrap_or(true) {
                        self.note(page, "the head of a group is damaged", lost(&runs));
                    }
                }
            }
            match known.range(page..).next() {
                Some((next, _)) => page = *next,
                None => return,
            }
        }
    }

    /// Looks at a group with a head that is sound. Its footer, if it has one, names these runs.
    fn group(&mut self, page: u32, head: &Head, named: &[&Stored]) {
        self.check.group_count += 1;
        let is_named = |stored: &Stored| named.contains(&&Stored { code: None, ..*stored });
        if named.len() != head.records.len() || !head.records.iter().all(is_named) {
            let what = "the footer of the region names other runs than this head";
            self.note(page, what, lost(named));
        }
        for (place, stored) in head.records.iter().enumerate() {
            let first = page.saturating_add(stored.payload);
            let fault = match self.reader.pages(first, stored.page_count()) {
                Ok(Some(bytes)) => {
                    let bad = first_bad_page(&bytes, stored, head.sums_of(place));
                    let what = "the bytes do not match their checksum";
                    bad.map(|bad| (first + bad, what.to_owned()))
                }
                Ok(None) => Some((first, "the file ends before these bytes do".to_owned())),
                Err(error) => Some((first, format!("read: {error}"))),
            };
            match fault {
                Some((page, what)) => self.note(page, what, lost(&[stored])),
                None => {
                    self.check.run_count += 1;
                    self.check.run_bytes += u64::from(stored.length());
                }
            }
        }
    }
}

/// Returns the first page of a run that does not match its checksum, counted from its beginning.
fn first_bad_page(bytes: &[u8], stored: &Stored, sums: &[u32]) -> Option<u32> {
    let Stored { key, version, .. } = stored;
    let tag = checksum::tag(key.file, *version, key.block);
    let pages = bytes[..stored.length() as usize].chunks(PAGE_SIZE as usize);
    let bad = pages.zip(sums).position(|(page, sum)| checksum::of(page) ^ tag != *sum);
    bad.map(|bad| bad as u32)
}

/// Says what is lost with these runs.
fn lost(runs: &[&Stored]) -> String {
    match runs {
        [] => "what the group held".to_owned(),
        [Stored { key, version, .. }] => format!(
            "{} bytes of block {} of file {:032x}, version {version:016x}",
            runs[0].length(),
            key.block,
            key.file.0
        ),
        runs => {
            let bytes: u64 = runs.iter().map(|stored| u64::from(stored.length())).sum();
            format!("{bytes} bytes of {} runs of chunks", runs.len())
        }
    }
}

#[cfg(test)]
mod tests;
