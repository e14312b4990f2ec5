//! What lies on a disk of the flash tier, byte by byte: see FORMAT.md.
//!
//! Owns how the superblock, the head of a group and the footer of a region are written and read. Always holds:
//! what is read here was written by this format, of this disk, by its checksum, or is refused; no length that is
//! read is used before it was checked against the place it describes.

use millrace_proto::FileId;
use millrace_proto::checksum::PAGE_SIZE;

use crate::cache::BlockKey;
use crate::chunks::Chunks;
use crate::memory::ShardMemory;

/// Version of the format. Another one is not read, and begins again.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Size of the superblock in bytes.
pub(crate) const SUPERBLOCK_LENGTH: usize = PAGE_SIZE as usize;

const SUPERBLOCK_MAGIC: [u8; 8] = *b"MILLDISK";
const HEAD_MAGIC: [u8; 4] = *b"MRGH";
const FOOTER_MAGIC: [u8; 4] = *b"MRFT";
/// Bytes of the fixed part of a head, and of the last page of a footer.
const FIXED_LENGTH: usize = 64;
/// Bytes of a record in a head.
const RECORD_LENGTH: usize = 80;
/// Bytes of a dropped file in a head.
const DROP_LENGTH: usize = 16;
/// Bytes of an entry in a footer.
const ENTRY_LENGTH: usize = 48;
/// Records in one group at most. Derived: what one page holds of records with one page each.
pub(crate) const RECORDS_MAX: usize = 48;
/// Dropped files in one group at most. Derived: what one page holds.
pub(crate) const DROPS_MAX: usize = 128;

/// What a disk was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Drawn when the disk was made: nothing of another one is taken for its own.
    pub disk: [u8; 16],
    /// Size of a block in bytes.
    pub block_size: u32,
    /// Shards of the node: each has a file.
    pub shard_count: u32,
    /// Pages of a region.
    pub region_pages: u32,
}

/// Why a superblock is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoSuperblock {
    /// It is of this version of the format, which this program does not read.
    Version(u32),
    /// It is damaged, or something else.
    Foreign,
}

/// A region as the shard that writes it names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// The disk.
    pub disk: [u8; 16],
    /// The shard.
    pub shard: u16,
    /// Number of its use: a later one is greater, over all regions of the file.
    pub sequence: u64,
}

/// A run of chunks that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The block.
    pub key: BlockKey,
    /// Its version.
    pub version: u64,
    /// Length of the block in bytes.
    pub block_length: u32,
    /// The chunks.
    pub chunks: Chunks,
    /// Where the bytes begin, in pages from the head of the group.
    pub payload: u32,
    /// The code of the block, if it has one: section 16 of PROTOCOL.md.
    pub code: Option<[u8; 32]>,
}

impl Stored {
    /// Returns the bytes of the run.
    pub(crate) fn length(&self) -> u32 {
        self.chunks.length(self.block_length)
    }

    /// Returns the pages of the run.
    pub(crate) fn page_count(&self) -> u32 {
        ShardMemory::pages_for(self.length())
    }
}

/// The head of a group: what lies behind it, and the checksums of its pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// The runs, in the order of their bytes.
    pub records: Vec<Stored>,
    /// Files of which all that was written before is void.
    pub drops: Vec<FileId>,
    /// Of each page of each record, with the block's identity in it.
    pub sums: Vec<u32>,
}

/// Returns the pages of a head with this much in it.
pub(crate) fn head_pages(record_count: usize, drop_count: usize, sum_count: usize) -> u32 {
    (head_length(record_count, drop_count, sum_count) as u32).div_ceil(PAGE_SIZE)
}

fn head_length(record_count: usize, drop_count: usize, sum_count: usize) -> usize {
    FIXED_LENGTH + record_count * RECORD_LENGTH + drop_count * DROP_LENGTH + sum_count * 4
}

/// Something that a region holds, as its footer lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FooterEntry {
    /// A run of chunks, of the group with its head at this page of the file.
    Run {
        /// Page of the head.
        head: u32,
        /// The run. Its code stands in the head alone.
        stored: Stored,
    },
    /// All of this file that was written before is void.
    Drop(FileId),
}

/// Returns the pages of a footer with this many entries.
pub(crate) fn footer_pages(entry_count: usize) -> u32 {
    ((entry_count * ENTRY_LENGTH) as u32).div_ceil(PAGE_SIZE) + 1
}

/// The last page of a footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    /// Number of the region's use.
    pub sequence: u64,
    /// Entries before it.
    entry_count: u32,
    entries_sum: u32,
}

impl Trailer {
    /// Returns the pages of the whole footer.
    pub(crate) fn footer_pages(&self) -> u32 {
        footer_pages(self.entry_count as usize)
    }
}

impl Superblock {
    /// Returns it as it is written.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SUPERBLOCK_LENGTH);
        bytes.extend_from_slice(&SUPERBLOCK_MAGIC);
        let numbers = [FORMAT_VERSION, self.block_size, self.shard_count, self.region_pages];
        numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        bytes.extend_from_slice(&self.disk);
        bytes.resize(SUPERBLOCK_LENGTH - 4, 0);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`NoSuperblock`].
    pub(crate) fn decode(bytes: &[u8]) -> Result<Superblock, NoSuperblock> {
        if bytes.len() < SUPERBLOCK_LENGTH || bytes[..8] != SUPERBLOCK_MAGIC {
            return Err(NoSuperblock::Foreign);
        }
        let (body, sum) = bytes[..SUPERBLOCK_LENGTH].split_at(SUPERBLOCK_LENGTH - 4);
        if crc32fast::hash(body) != u32_at(sum, 0) {
            return Err(NoSuperblock::Foreign);
        }
        match u32_at(bytes, 8) {
            FORMAT_VERSION => Ok(Superblock {
                block_size: u32_at(bytes, 12),
                shard_count: u32_at(bytes, 16),
                region_pages: u32_at(bytes, 20),
                disk: array_at(bytes, 24),
            }),
            version => Err(NoSuperblock::Version(version)),
        }
    }
}

impl Head {
    /// Returns the pages of the head, and of the group with it.
    pub(crate) fn page_counts(&self) -> (u32, u32) {
        let head = head_pages(self.records.len(), self.drops.len(), self.sums.len());
        (head, head + self.records.iter().map(Stored::page_count).sum::<u32>())
    }

    /// Returns it as it is written at page `page` of the file, whole pages.
    pub(crate) fn encode(&self, region: &Region, page: u32) -> Vec<u8> {
        let (head_pages, page_count) = self.page_counts();
        let length = head_length(self.records.len(), self.drops.len(), self.sums.len());
        let mut bytes = Vec::with_capacity(head_pages as usize * PAGE_SIZE as usize);
        bytes.extend_from_slice(&HEAD_MAGIC);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(length as u32).to_le_bytes());
        bytes.extend_from_slice(&region.shard.to_le_bytes());
        bytes.extend_from_slice(&(self.records.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&region.disk);
        bytes.extend_from_slice(&region.sequence.to_le_bytes());
        bytes.extend_from_slice(&page.to_le_bytes());
        bytes.extend_from_slice(&page_count.to_le_bytes());
        bytes.extend_from_slice(&(head_pages as u16).to_le_bytes());
        bytes.extend_from_slice(&(self.drops.len() as u16).to_le_bytes());
        bytes.resize(FIXED_LENGTH, 0);
        for record in &self.records {
            let start = bytes.len();
            put_run(&mut bytes, record);
            bytes.extend_from_slice(&u32::from(record.code.is_some()).to_le_bytes());
            bytes.extend_from_slice(&record.code.unwrap_or_default());
            bytes.resize(start + RECORD_LENGTH, 0);
        }
        self.drops.iter().for_each(|file| bytes.extend_from_slice(&file.0.to_le_bytes()));
        self.sums.iter().for_each(|sum| bytes.extend_from_slice(&sum.to_le_bytes()));
        let sum = crc32fast::hash(&bytes[8..]);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes.resize(head_pages as usize * PAGE_SIZE as usize, 0);
        bytes
    }

    /// Returns how many pages a head claims to have, if its first page may be one: 1 at least.
    pub(crate) fn claimed_pages(bytes: &[u8]) -> Option<u32> {
        let is_head = bytes.len() >= FIXED_LENGTH && bytes[..4] == HEAD_MAGIC;
        is_head.then(|| u32::from(u16_at(bytes, 48)).max(1))
    }

    /// True if the first page of a head of this disk seems to have been written at page `page`, even if some of its
    /// bits are not what they were.
    pub(crate) fn is_likely(bytes: &[u8], disk: &[u8; 16], page: u32) -> bool {
        if bytes.len() < FIXED_LENGTH {
            return false;
        }
        let found = array_at::<16>(bytes, 16);
        let other_bits: u32 = found.iter().zip(disk).map(|(a, b)| (a ^ b).count_ones()).sum();
        // Two identities that were drawn differ in 64 bits, more or less.
        other_bits <= 8 && (bytes[..4] == HEAD_MAGIC || u32_at(bytes, 40) == page)
    }

    /// Reads a head that lies at page `page` of the file, of the region in any use of it; returns that use, too.
    pub(crate) fn decode(
        bytes: &[u8],
        disk: &[u8; 16],
        shard: u16,
        page: u32,
    ) -> Option<(Head, u64)> {
        Head::claimed_pages(bytes)?;
        let length = u32_at(bytes, 8) as usize;
        if !(FIXED_LENGTH..=bytes.len()).contains(&length)
            || crc32fast::hash(&bytes[8..length]) != u32_at(bytes, 4)
            || u16_at(bytes, 12) != shard
            || array_at::<16>(bytes, 16) != *disk
            || u32_at(bytes, 40) != page
        {
            return None;
        }
        let sequence = u64_at(bytes, 32);
        let (record_count, drop_count) =
            (usize::from(u16_at(bytes, 14)), usize::from(u16_at(bytes, 50)));
        let records_end = FIXED_LENGTH + record_count * RECORD_LENGTH;
        let drops_end = records_end + drop_count * DROP_LENGTH;
        if drops_end > length {
            return None;
        }
        let records = bytes[FIXED_LENGTH..records_end].chunks(RECORD_LENGTH).map(|record| {
            let code = (u32_at(record, 44) != 0).then(|| array_at(record, 48));
            Stored { code, ..run_at(record) }
        });
        let drops = bytes[records_end..drops_end].chunks(DROP_LENGTH);
        let drops = drops.map(|drop| FileId(u128::from_le_bytes(array_at(drop, 0))));
        let sums = bytes[drops_end..length].chunks_exact(4).map(|sum| u32_at(sum, 0));
        let head =
            Head { records: records.collect(), drops: drops.collect(), sums: sums.collect() };
        let is_sound = head.records.iter().all(is_run)
            && head.sums.len() as u64
                == head.records.iter().map(|record| u64::from(record.page_count())).sum::<u64>()
            && head.page_counts() == (u32::from(u16_at(bytes, 48)), u32_at(bytes, 44));
        is_sound.then_some((head, sequence))
    }

    /// Returns the checksums of the pages of a record.
    pub(crate) fn sums_of(&self, record: usize) -> &[u32] {
        let before: u32 = self.records[..record].iter().map(Stored::page_count).sum();
        let (start, count) = (before as usize, self.records[record].page_count() as usize);
        &self.sums[start..start + count]
    }
}

/// Returns the footer of a region with these entries as it is written, whole pages.
pub(crate) fn encode_footer(region: &Region, entries: &[FooterEntry]) -> Vec<u8> {
    let pages = footer_pages(entries.len()) as usize;
    let mut bytes = Vec::with_capacity(pages * PAGE_SIZE as usize);
    for entry in entries {
        let start = bytes.len();
        match entry {
            FooterEntry::Run { head, stored } => {
                put_run(&mut bytes, stored);
                bytes.extend_from_slice(&head.to_le_bytes());
            }
            // No run has no chunks.
            FooterEntry::Drop(file) => bytes.extend_from_slice(&file.0.to_le_bytes()),
        }
        bytes.resize(start + ENTRY_LENGTH, 0);
    }
    let entries_sum = crc32fast::hash(&bytes);
    bytes.resize((pages - 1) * PAGE_SIZE as usize, 0);
    let start = bytes.len();
    bytes.extend_from_slice(&FOOTER_MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&region.disk);
    bytes.extend_from_slice(&region.sequence.to_le_bytes());
    bytes.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&entries_sum.to_le_bytes());
    bytes.extend_from_slice(&u32::from(region.shard).to_le_bytes());
    bytes.resize(start + FIXED_LENGTH, 0);
    let sum = crc32fast::hash(&bytes[start + 8..]);
    bytes[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
    bytes.resize(pages * PAGE_SIZE as usize, 0);
    bytes
}

/// Reads the last page of a region.
pub(crate) fn decode_trailer(
    page: &[u8],
    disk: &[u8; 16],
    shard: u16,
    region_pages: u32,
) -> Option<Trailer> {
    let page = page.get(..FIXED_LENGTH)?;
    let trailer = Trailer {
        sequence: u64_at(page, 24),
        entry_count: u32_at(page, 32),
        entries_sum: u32_at(page, 36),
    };
    let is_sound = page[..4] == FOOTER_MAGIC
        && crc32fast::hash(&page[8..]) == u32_at(page, 4)
        && array_at::<16>(page, 8) == *disk
        && u32_at(page, 40) == u32::from(shard)
        && u64::from(trailer.entry_count) * (ENTRY_LENGTH as u64)
            <= u64::from(region_pages) * u64::from(PAGE_SIZE)
        && trailer.footer_pages() <= region_pages;
    is_sound.then_some(trailer)
}

/// Reads the entries of a footer, whole or from its first page on.
pub(crate) fn decode_footer(bytes: &[u8], trailer: &Trailer) -> Option<Vec<FooterEntry>> {
    let bytes = bytes.get(..trailer.entry_count as usize * ENTRY_LENGTH)?;
    if crc32fast::hash(bytes) != trailer.entries_sum {
        return None;
    }
    let entries = bytes.chunks(ENTRY_LENGTH).map(|bytes| {
        let stored = run_at(bytes);
        match stored.chunks.end {
            0 => Some(FooterEntry::Drop(stored.key.file)),
            _ => is_run(&stored).then(|| FooterEntry::Run { head: u32_at(bytes, 44), stored }),
        }
    });
    entries.collect()
}

/// True if the numbers of a run fit each other.
fn is_run(stored: &Stored) -> bool {
    let Stored { chunks, block_length, payload, .. } = stored;
    *payload > 0
        && *block_length > 0
        && chunks.first < chunks.end
        && chunks.end <= Chunks::all(*block_length).end
}

/// Appends the 44 bytes of a run.
fn put_run(bytes: &mut Vec<u8>, stored: &Stored) {
    let Stored { key, version, block_length, chunks, payload, code: _ } = stored;
    bytes.extend_from_slice(&key.file.0.to_le_bytes());
    bytes.extend_from_slice(&version.to_le_bytes());
    for number in [key.block, *block_length, chunks.first, chunks.end, *payload] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
}

fn run_at(bytes: &[u8]) -> Stored {
    let file = FileId(u128::from_le_bytes(array_at(bytes, 0)));
    Stored {
        key: BlockKey { file, block: u32_at(bytes, 24) },
        version: u64_at(bytes, 16),
        block_length: u32_at(bytes, 28),
        chunks: Chunks { first: u32_at(bytes, 32), end: u32_at(bytes, 36) },
        payload: u32_at(bytes, 40),
        code: None,
    }
}

/// Returns these bytes, which the caller knows to be there.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod document;

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const DISK: [u8; 16] = [7; 16];
    pub(super) const REGION: Region = Region { disk: DISK, shard: 3, sequence: 41 };

    pub(super) fn run(block: u32, first: u32, end: u32, payload: u32) -> Stored {
        let key = BlockKey { file: FileId(1 << 90 | 5), block };
        let chunks = Chunks { first, end };
        Stored { key, version: 77, block_length: 1 << 20, chunks, payload, code: None }
    }

    pub(super) fn head() -> Head {
        let mut records = vec![run(0, 0, 1, 1), run(4, 3, 5, 17)];
        records[1].code = Some([9; 32]);
        Head { records, drops: vec![FileId(3), FileId(u128::MAX)], sums: (0..48).collect() }
    }

    #[test]
    fn what_is_written_is_read() {
        let superblock =
            Superblock { disk: DISK, block_size: 1 << 20, shard_count: 2, region_pages: 256 };
        assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
        let bytes = head().encode(&REGION, 12);
        assert_eq!(bytes.len(), 4096);
        assert_eq!(Head::decode(&bytes, &DISK, 3, 12), Some((head(), 41)));
        assert_eq!(head().page_counts(), (1, 1 + 48));
        assert_eq!(head().sums_of(1), (16..48).collect::<Vec<u32>>());
        let entries: Vec<FooterEntry> = (0..500)
            .map(|block| FooterEntry::Run { head: block * 20, stored: run(block, 0, 16, 1) })
            .chain([FooterEntry::Drop(FileId(8))])
            .collect();
        let footer = encode_footer(&REGION, &entries);
        assert_eq!(footer.len(), footer_pages(501) as usize * 4096);
        let trailer = decode_trailer(&footer[footer.len() - 4096..], &DISK, 3, 4096).unwrap();
        assert_eq!((trailer.sequence, trailer.footer_pages()), (41, footer_pages(501)));
        assert_eq!(decode_footer(&footer, &trailer), Some(entries));
    }

    // A flipped bit anywhere in what is summed is noticed, and what is of another place is refused.
    #[test]
    fn nothing_else_is_taken() {
        let bytes = head().encode(&REGION, 12);
        let length = u32_at(&bytes, 8) as usize;
        for bit in 0..length * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::decode(&flipped, &DISK, 3, 12), None, "bit {bit}");
        }
        assert_eq!(Head::decode(&bytes, &DISK, 3, 13), None, "another place");
        assert_eq!(Head::decode(&bytes, &DISK, 2, 12), None, "another shard");
        assert_eq!(Head::decode(&bytes, &[8; 16], 3, 12), None, "another disk");
        for cut in 0..length {
            assert_eq!(Head::decode(&bytes[..cut], &DISK, 3, 12), None, "cut at {cut}");
        }
        let footer =
            encode_footer(&REGION, &[FooterEntry::Run { head: 2, stored: run(1, 0, 1, 1) }]);
        let last = footer.len() - 4096;
        for bit in 0..FIXED_LENGTH * 8 {
            let mut flipped = footer[last..].to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_trailer(&flipped, &DISK, 3, 4096), None, "bit {bit}");
        }
        let trailer = decode_trailer(&footer[last..], &DISK, 3, 4096).unwrap();
        for bit in 0..ENTRY_LENGTH * 8 {
            let mut flipped = footer.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_footer(&flipped, &trailer), None, "bit {bit}");
        }
        let superblock = Superblock { disk: DISK, block_size: 1, shard_count: 2, region_pages: 3 };
        for bit in 0..SUPERBLOCK_LENGTH * 8 {
            let mut flipped = superblock.encode();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&flipped).is_err(), "bit {bit}");
        }
    }

    /// Numbers that do not fit each other are refused even with a checksum that fits.
    #[test]
    fn impossible_numbers_are_refused() {
        // Chunks that are none, chunks past the end of the block, and bytes in the head.
        for (place, value) in [(36, 0_u32), (36, 17), (32, 1), (40, 0), (28, 0)] {
            let head = Head { records: vec![run(0, 0, 1, 1)], drops: vec![], sums: vec![0; 16] };
            let mut bytes = head.encode(&REGION, 0);
            assert!(Head::decode(&bytes, &DISK, 3, 0).is_some());
            bytes[FIXED_LENGTH + place..][..4].copy_from_slice(&value.to_le_bytes());
            let length = u32_at(&bytes, 8) as usize;
            let sum = crc32fast::hash(&bytes[8..length]);
            bytes[4..8].copy_from_slice(&sum.to_le_bytes());
            assert_eq!(Head::decode(&bytes, &DISK, 3, 0), None, "{value} at {place}");
        }
    }
}
