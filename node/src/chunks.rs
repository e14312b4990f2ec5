//! Parts of a block: runs of its chunks of 64 KiB, the unit in which bytes come in.
//!
//! Owns what such a run is, in chunks and in bytes.

use millrace_proto::checksum::{CHUNK_SIZE, PAGE_SIZE};
use smallvec::SmallVec;

/// Chunks of a block that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Chunks {
    /// Number of the first one in the block.
    pub first: u32,
    /// Number after the last one.
    pub end: u32,
}

/// Runs of chunks, in order, with gaps between them.
pub(crate) type Runs = SmallVec<[Chunks; 2]>;

impl Chunks {
    /// Returns all chunks of a block of `block_length` bytes.
    pub(crate) fn all(block_length: u32) -> Chunks {
        Chunks { first: 0, end: block_length.div_ceil(CHUNK_SIZE) }
    }

    /// Returns the chunks that hold these bytes of a block, as far as it goes; at least one.
    pub(crate) fn covering(offset: u32, length: u32, block_length: u32) -> Chunks {
        let first = offset / CHUNK_SIZE;
        let end = offset.saturating_add(length).min(block_length).div_ceil(CHUNK_SIZE);
        Chunks { first, end: end.max(first + 1) }
    }

    /// Returns where they begin in the block, in bytes.
    pub(crate) fn offset(self) -> u32 {
        self.first * CHUNK_SIZE
    }

    /// Returns where they begin in the block, in pages.
    pub(crate) fn first_page(self) -> u32 {
        self.offset() / PAGE_SIZE
    }

    /// Returns the bytes that they hold of a block of this length.
    pub(crate) fn length(self, block_length: u32) -> u32 {
        self.end.saturating_mul(CHUNK_SIZE).min(block_length) - self.offset()
    }

    /// True if some chunk is in both.
    pub(crate) fn overlaps(self, other: Chunks) -> bool {
        self.first < other.end && other.first < self.end
    }
}

/// Returns the runs of those chunks for which `is_missing` is true.
pub(crate) fn runs(chunks: Chunks, is_missing: impl Fn(u32) -> bool) -> Runs {
    let mut runs = Runs::new();
    for chunk in (chunks.first..chunks.end).filter(|chunk| is_missing(*chunk)) {
        match runs.last_mut() {
            Some(last) if last.end == chunk => last.end += 1,
            _ => runs.push(Chunks { first: chunk, end: chunk + 1 }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u32 = 1024;

    #[test]
    fn chunks_hold_the_bytes_that_are_asked_for_and_no_more() {
        assert_eq!(Chunks::covering(0, 1, 1024 * K), Chunks { first: 0, end: 1 });
        assert_eq!(Chunks::covering(64 * K - 1, 2, 1024 * K), Chunks { first: 0, end: 2 });
        assert_eq!(Chunks::covering(64 * K, 64 * K, 1024 * K), Chunks { first: 1, end: 2 });
        assert_eq!(Chunks::covering(100 * K, u32::MAX, 150 * K), Chunks { first: 1, end: 3 });
        assert_eq!(Chunks::all(150 * K), Chunks { first: 0, end: 3 });
        let last = Chunks { first: 2, end: 3 };
        assert_eq!((last.offset(), last.length(150 * K), last.first_page()), (128 * K, 22 * K, 32));
        assert_eq!(last.length(1024 * K), 64 * K);
    }

    #[test]
    fn runs_are_what_is_missing() {
        let all = Chunks { first: 0, end: 8 };
        let missing = |chunk| ![2, 3, 7].contains(&chunk);
        let expected = [Chunks { first: 0, end: 2 }, Chunks { first: 4, end: 7 }];
        assert_eq!(runs(all, missing).as_slice(), expected);
        assert!(runs(all, |_| false).is_empty());
        assert!(expected[0].overlaps(all) && !expected[0].overlaps(expected[1]));
    }
}
