//! What blocks held when they were read last, for sources that do not show every change.
//!
//! Owns a hash for each block of the mounts with `verify = content`, and the versions that were made up
//! because a hash was another one the next time. It is bounded: what is forgotten is not compared.
//! Always holds: a block whose bytes differ from those of the same version before is not given out as
//! that version.
//!
//! ```text
//!  source says B ──► version(file, B) = B, or made up (B') once a block of B had other bytes
//!  fill of B' ─────► base(file, B') = B is what the source has to say, then compare
//! ```

use std::sync::{Mutex, PoisonError};

use millrace_proto::FileId;
use quick_cache::unsync::Cache;

use super::StoreError;

/// Fewest blocks that are remembered. Guessed: 4 MiB of hashes.
const BLOCKS_MIN: usize = 1 << 16;
/// Most blocks that are remembered. Guessed: 256 MiB of hashes, 4 TiB of blocks of 1 MiB.
const BLOCKS_MAX: usize = 1 << 22;
/// Blocks that are remembered for each that fits in memory. Guessed: a hash serves once its block has been
/// evicted, so there are more of them.
const BLOCKS_FOR_EACH: usize = 4;
/// Files whose versions are made up at a time. Guessed: each is an alarm that an operator sees to.
const RENEWED_MAX: usize = 1 << 14;

/// A block of a version of a file, by where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) file: FileId,
    pub(crate) version: u64,
    /// Offset in the file in bytes.
    pub(crate) offset: u64,
}

/// A version that was made up.
#[derive(Clone, Copy, Debug)]
struct Renewed {
    /// What the source says.
    base: u64,
    /// The version that it has instead.
    version: u64,
}

#[derive(Debug)]
struct Tables {
    hashes: Cache<Seen, u64>,
    renewed: Cache<FileId, Renewed>,
    /// Versions that were made up, and left for another one.
    left: Cache<(FileId, u64), ()>,
}

/// The hashes of blocks, and the versions that were made up.
#[derive(Debug)]
pub(crate) struct Contents {
    tables: Mutex<Tables>,
}

impl Contents {
    /// Remembers some times the blocks that `memory` bytes hold, at about 64 bytes each.
    pub(crate) fn new(memory: usize, block_size: u32) -> Contents {
        let fitting = memory / block_size as usize;
        Contents::with_room((fitting * BLOCKS_FOR_EACH).clamp(BLOCKS_MIN, BLOCKS_MAX))
    }

    fn with_room(blocks_max: usize) -> Contents {
        let (hashes, renewed) = (Cache::new(blocks_max), Cache::new(RENEWED_MAX));
        let left = Cache::new(RENEWED_MAX);
        Contents { tables: Mutex::new(Tables { hashes, renewed, left }) }
    }

    fn tables(&self) -> std::sync::MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the version of a file whose source says `base`.
    pub(crate) fn version(&self, file: FileId, base: u64) -> u64 {
        match self.tables().renewed.get(&file) {
            Some(renewed) if renewed.base == base => renewed.version,
            _ => base,
        }
    }

    /// Returns what the source has to say of a file that is in this version.
    pub(crate) fn base(&self, file: FileId, version: u64) -> u64 {
        match self.tables().renewed.get(&file) {
            Some(renewed) if renewed.version == version => renewed.base,
            _ => version,
        }
    }

    /// Compares what was read of a block with what was read before, and remembers it if nothing was.
    ///
    /// # Errors
    /// [`StoreError::Differs`] if it is something else: the file has a new version from now on.
    /// [`StoreError::Changed`] if that was found of another block of the version before.
    pub(crate) fn compare(&self, seen: Seen, hash: u64) -> Result<(), StoreError> {
        let Seen { file, version, .. } = seen;
        let mut tables = self.tables();
        let renewed = tables.renewed.get(&file).copied();
        let is_left = tables.left.get(&(file, version)).is_some();
        if is_left || renewed.is_some_and(|renewed| renewed.base == version) {
            return Err(StoreError::Changed);
        }
        match tables.hashes.get(&seen).copied() {
            Some(before) if before != hash => {
                let base = renewed.filter(|it| it.version == version).map_or(version, |it| it.base);
                let mut new = next(version, hash);
                // The source may say an earlier version again, whose block is again what it was then.
                while tables.left.get(&(file, new)).is_some() {
                    new = next(new, hash);
                }
                // What the source says stays out: it may say so again, and means another content then.
                if version != base {
                    tables.left.insert((file, version), ());
                }
                tables.renewed.insert(file, Renewed { base, version: new });
                Err(StoreError::Differs)
            }
            Some(_) => Ok(()),
            None => {
                tables.hashes.insert(seen, hash);
                Ok(())
            }
        }
    }
}

/// Returns the version after one whose block has another hash than before.
fn next(version: u64, hash: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&version.to_le_bytes());
    bytes[8..].copy_from_slice(&hash.to_le_bytes());
    twox_hash::XxHash3_64::oneshot(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId(7);

    fn block(version: u64, offset: u64) -> Seen {
        Seen { file: FILE, version, offset }
    }

    #[test]
    fn a_block_with_other_bytes_makes_a_new_version() {
        let contents = Contents::with_room(100);
        assert_eq!(contents.compare(block(1, 0), 10), Ok(()));
        assert_eq!(contents.compare(block(1, 64), 11), Ok(()));
        assert_eq!(contents.compare(block(1, 0), 10), Ok(()), "the same again");
        assert_eq!(contents.version(FILE, 1), 1);
        assert_eq!(contents.compare(block(1, 64), 12), Err(StoreError::Differs));
        let second = contents.version(FILE, 1);
        assert!(second != 1);
        assert_eq!(contents.base(FILE, second), 1, "the source says what it said");
        assert_eq!(contents.compare(block(1, 0), 10), Err(StoreError::Changed), "the old one");
        assert_eq!(contents.compare(block(second, 64), 12), Ok(()));
        assert_eq!(contents.compare(block(second, 64), 13), Err(StoreError::Differs));
        let third = contents.version(FILE, 1);
        assert!(third != second && third != 1);
        assert_eq!(contents.base(FILE, third), 1);
        assert_eq!(contents.version(FILE, 5), 5, "the source tells of a change again");
        assert_eq!(contents.version(FileId(8), 1), 1, "another file");
    }

    #[test]
    fn a_version_that_was_made_up_and_left_takes_no_block_any_more() {
        let contents = Contents::with_room(100);
        let differs = |version, hash| {
            assert_eq!(contents.compare(block(version, 0), hash), Err(StoreError::Differs));
            contents.version(FILE, 1)
        };
        assert_eq!(contents.compare(block(1, 0), 10), Ok(()));
        let second = differs(1, 11);
        assert_eq!(contents.compare(block(second, 0), 11), Ok(()));
        let third = differs(second, 12);
        let late = contents.compare(block(second, 64), 77);
        assert_eq!(late, Err(StoreError::Changed), "read before the third, and never seen before");
        // The source shows a change, and then says again what it said first.
        assert_eq!(contents.compare(block(5, 0), 20), Ok(()));
        assert_eq!(contents.compare(block(5, 0), 21), Err(StoreError::Differs));
        let again = differs(1, 11);
        assert!(again != second && again != third, "a version that was left does not come back");
        assert_eq!(contents.compare(block(again, 0), 11), Ok(()));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let contents = Contents::with_room(100);
        for offset in 0..10_000 {
            assert_eq!(contents.compare(block(1, offset), offset), Ok(()));
        }
        assert!(contents.tables().hashes.len() <= 100);
    }
}
