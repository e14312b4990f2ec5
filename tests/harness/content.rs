//! File content that follows from path and offset, so that any range can be checked alone.
//!
//! ```text
//!  file "a/b"   = pool[(hash("a/b") + offset) % POOL_SIZE]
//!  versioned    = words of 8 bytes: version (u32), number of the word in the file (u32)
//! ```
//!
//! The pool's size is prime, so that blocks of one file never look alike, nor do those of two.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use tempfile::TempDir;

/// Block size in bytes that nodes of the tests have unless a test says otherwise.
pub const BLOCK: u32 = 64 << 10;
/// Bytes of the pool: a prime near 1 MiB.
const POOL_SIZE: usize = 1_048_573;

static POOL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = fastrand::Rng::with_seed(0x4D49_4C52);
    let mut pool = vec![0; POOL_SIZE];
    random.fill(&mut pool);
    pool
});

fn pool_start(path: &str, offset: u64) -> usize {
    // FNV-1a: any hash does, as long as it is the same in every run.
    let hash = path.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    ((hash % POOL_SIZE as u64 + offset % POOL_SIZE as u64) % POOL_SIZE as u64) as usize
}

/// Returns the bytes that the file at `path` has from `offset`.
pub fn bytes(path: &str, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    let mut start = pool_start(path, offset);
    while bytes.len() < length {
        let count = (POOL_SIZE - start).min(length - bytes.len());
        bytes.extend_from_slice(&POOL[start..start + count]);
        start = 0;
    }
    bytes
}

/// Compares bytes that were read from the file at `path` with what they should be.
///
/// # Panics
/// If one is not what it should be.
pub fn check(path: &str, offset: u64, read: &[u8]) {
    let expected = bytes(path, offset, read.len());
    if read != expected {
        let first = read.iter().zip(&expected).position(|(read, expected)| read != expected);
        panic!("{path}: wrong byte at {}", offset + first.unwrap_or(0) as u64);
    }
}

/// Returns content of `length` bytes, a multiple of 8, that has its version in every word.
pub fn versioned(version: u32, length: usize) -> Vec<u8> {
    assert_eq!(length % 8, 0);
    let words = (0..length as u32 / 8).map(|word| u64::from(version) << 32 | u64::from(word));
    words.flat_map(u64::to_le_bytes).collect()
}

/// Returns the one version of versioned bytes from `offset`, a multiple of 8; None for no bytes.
///
/// # Panics
/// If versions are mixed, or bytes are not where they belong.
pub fn version_of(offset: u64, read: &[u8]) -> Option<u32> {
    let mut version = None;
    for (index, word) in read.chunks(8).enumerate() {
        let word = u64::from_le_bytes(word.try_into().expect("whole words are read"));
        assert_eq!(u64::from(word as u32), offset / 8 + index as u64, "a word of another place");
        let found = (word >> 32) as u32;
        let first = *version.get_or_insert(found);
        assert_eq!(first, found, "two versions in one read, at byte {}", offset + index as u64 * 8);
    }
    version
}

/// A directory to serve. It is gone with its handle.
#[derive(Debug)]
pub struct Scratch {
    directory: TempDir,
}

impl Scratch {
    /// Creates an empty directory.
    ///
    /// # Panics
    /// If there is no room for one.
    pub fn new() -> Scratch {
        let directory = tempfile::Builder::new().prefix("millrace-e2e-").tempdir();
        Scratch { directory: directory.expect("make a scratch directory") }
    }

    /// Returns the directory that is served.
    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    /// Returns where `path` lies on disk.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    /// Writes a file of `length` bytes with the content of its path.
    pub fn file(&self, path: &str, length: usize) {
        self.write(path, &bytes(path, 0, length));
    }

    /// Writes a file with these bytes, in place; directories above it are made.
    ///
    /// # Panics
    /// If the disk refuses.
    pub fn write(&self, path: &str, bytes: &[u8]) {
        let target = self.at(path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).expect("make a directory");
        }
        std::fs::write(target, bytes).expect("write a file");
    }

    /// Replaces a file by rename, as careful writers do.
    ///
    /// # Panics
    /// If the disk refuses.
    pub fn replace(&self, path: &str, bytes: &[u8]) {
        let next = self.at(&format!("{path}.next"));
        std::fs::write(&next, bytes).expect("write a file");
        std::fs::rename(next, self.at(path)).expect("rename a file");
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}
