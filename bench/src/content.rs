//! The objects of a comparison: equal in size, their bytes a function of seed, size and index.
//!
//! Owns names and content. Because content follows from the index, a reply with the bytes of another
//! object, or with bytes shifted within one, is found.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// A set of equal objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectSet {
    /// Number of objects, at least 1.
    pub count: u64,
    /// Size of each in bytes, at least 1.
    pub size: usize,
    /// Seed of the content.
    pub seed: u64,
}

impl ObjectSet {
    /// Returns the set of objects of `size` bytes that takes about `total_bytes`, at least one object.
    pub fn with_total(size: usize, total_bytes: u64, seed: u64) -> ObjectSet {
        ObjectSet { count: (total_bytes / size as u64).max(1), size, seed }
    }

    /// Returns the size of all objects in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.count * self.size as u64
    }

    /// Returns the path of an object below the source directory. Each object is a file of its own, so
    /// that it costs a node one block look-up as it costs a rival one key look-up.
    pub fn path(&self, index: u64) -> String {
        format!("objects/{}/{index}", self.size)
    }

    /// Returns the key of an object in a key-value rival.
    pub fn key(&self, index: u64) -> String {
        format!("{}:{index}", self.size)
    }

    /// Puts the content of an object into `out`, replacing what was there.
    pub fn fill(&self, index: u64, out: &mut Vec<u8>) {
        out.clear();
        out.reserve(self.size + 8);
        let mut state = mix(self.seed ^ mix(index ^ ((self.size as u64) << 40)));
        while out.len() < self.size {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            out.extend_from_slice(&mix(state).to_le_bytes());
        }
        out.truncate(self.size);
    }

    /// Compares `payload` with the content of an object; `scratch` is overwritten.
    ///
    /// # Errors
    /// Naming the first byte that differs.
    pub fn check(&self, index: u64, payload: &[u8], scratch: &mut Vec<u8>) -> Result<()> {
        self.fill(index, scratch);
        if payload == scratch.as_slice() {
            return Ok(());
        }
        let same = payload.iter().zip(&*scratch).take_while(|(a, b)| a == b);
        bail!(
            "object {index} of {} bytes came back with wrong content from byte {} on",
            self.size,
            same.count()
        );
    }

    /// Writes every object as a file below `directory`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_files(&self, directory: &Path) -> Result<()> {
        let parent = directory.join(format!("objects/{}", self.size));
        std::fs::create_dir_all(&parent).with_context(|| format!("create {}", parent.display()))?;
        let mut content = Vec::new();
        for index in 0..self.count {
            self.fill(index, &mut content);
            let path = directory.join(self.path(index));
            std::fs::write(&path, &content).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Computes the finaliser of SplitMix64.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_differ_by_index_size_and_seed() {
        let content = |size, seed, index| {
            let mut out = Vec::new();
            let set = ObjectSet { count: 9, size, seed };
            set.fill(index, &mut out);
            assert_eq!(out.len(), size);
            out
        };
        assert_eq!(content(100, 1, 2), content(100, 1, 2));
        assert_ne!(content(100, 1, 2), content(100, 1, 3));
        assert_ne!(content(100, 1, 2), content(100, 2, 2));
        assert_ne!(content(100, 1, 2)[..50], content(50, 1, 2));
    }

    #[test]
    fn check_names_the_first_wrong_byte() {
        let set = ObjectSet::with_total(64, 1024, 5);
        assert_eq!((set.count, set.total_bytes()), (16, 1024));
        let (mut content, mut scratch) = (Vec::new(), Vec::new());
        set.fill(3, &mut content);
        set.check(3, &content, &mut scratch).unwrap();
        assert!(set.check(4, &content, &mut scratch).is_err());
        content[40] ^= 1;
        let error = set.check(3, &content, &mut scratch).unwrap_err();
        assert!(error.to_string().contains("byte 40"), "{error}");
    }
}
