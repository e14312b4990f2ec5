//! Checksums of a block at every grain, each pass over the bytes made once.
//!
//! Owns how the values of larger grains follow from those of smaller ones.

use millrace_proto::checksum::{CHUNK_SIZE, PAGE_SIZE};

use super::PAGES_PER_CHUNK;

/// Checksums of a block at every grain of [`millrace_proto::checksum`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Of each 4 KiB page, the last one maybe short.
    pub pages: Vec<u32>,
    /// Of each 64 KiB chunk, the last one maybe short.
    pub chunks: Vec<u32>,
    /// Of the block.
    pub block: u32,
}

impl Sums {
    /// Derives chunk and block values from those of the pages, without another pass over the bytes:
    /// `crc(a ++ b)` follows from `crc(a)`, `crc(b)` and the length of `b`. A step is at
    /// most 32 shifts and exclusive ors for each set bit of that length, one bit for a whole page.
    pub(super) fn combine(pages: Vec<u32>, length: u32) -> Sums {
        let chunks: Vec<u32> = pages
            .chunks(PAGES_PER_CHUNK as usize)
            .enumerate()
            .map(|(index, parts)| {
                let start = index as u32 * CHUNK_SIZE;
                join(parts.iter().copied(), PAGE_SIZE, CHUNK_SIZE.min(length - start))
            })
            .collect();
        let block = of_chunks(chunks.iter().copied(), length);
        Sums { pages, chunks, block }
    }
}

/// Returns the CRC-32 of `length` bytes from those of their chunks of 64 KiB.
pub(crate) fn of_chunks(chunks: impl Iterator<Item = u32>, length: u32) -> u32 {
    join(chunks, CHUNK_SIZE, length)
}

/// Returns the CRC-32 of `length` bytes from those of their parts of `part_size`.
fn join(parts: impl Iterator<Item = u32>, part_size: u32, length: u32) -> u32 {
    let mut joined = 0;
    let mut position = 0;
    for part in parts {
        let size = part_size.min(length - position);
        position += size;
        let mut head = crc32fast::Hasher::new_with_initial(joined);
        head.combine(&crc32fast::Hasher::new_with_initial_len(part, u64::from(size)));
        joined = head.finalize();
    }
    joined
}
