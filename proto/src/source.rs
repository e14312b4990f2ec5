//! What a file of a source is called, and which of its contents it is: the rules that nodes, and clients
//! that read a source themselves, compute alike.
//!
//! Pure functions: the numbers come from whoever asked the source.

use std::time::Duration;

use crate::FileId;

/// A change younger than this may be followed by another one with the same timestamp: a file that
/// changed so recently is left to settle before it is read. Derived: two ticks of the slowest usual
/// kernel are 20 ms, but one long `write` sets the time when it begins, and 200 ms are some hundred
/// megabytes of it.
pub const SETTLE: Duration = Duration::from_millis(200);

/// What a local file tells of its content, as `stat` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalStat {
    /// Number of the inode.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Last change of the content: seconds, in two's complement before 1970.
    pub modified_s: u64,
    /// Its nanoseconds.
    pub modified_ns: u64,
    /// Last change of the inode: seconds, in two's complement before 1970.
    pub changed_s: u64,
    /// Its nanoseconds.
    pub changed_ns: u64,
}

/// The version of a local file: XXH3-64 of inode, size, mtime and ctime, each as 8 bytes little-endian.
/// The device is left out: it changes when NFS is remounted.
pub fn local_version(stat: &LocalStat) -> u64 {
    let mut bytes = [0; 48];
    let numbers =
        [stat.inode, stat.size, stat.modified_s, stat.modified_ns, stat.changed_s, stat.changed_ns];
    for (target, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        target.copy_from_slice(&number.to_le_bytes());
    }
    twox_hash::XxHash3_64::oneshot(&bytes)
}

/// The id of a file: XXH3-128 of the identity of its source (what its mount calls it: `file:///data`), a
/// zero byte, and the path below the source's root. The same after a restart, and on every node that
/// serves the same source.
pub fn file_id(identity: &str, path: &str) -> FileId {
    let mut text = Vec::with_capacity(identity.len() + 1 + path.len());
    text.extend_from_slice(identity.as_bytes());
    text.push(0);
    text.extend_from_slice(path.as_bytes());
    FileId(twox_hash::XxHash3_128::oneshot(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_versions_are_those_of_nodes_before() {
        assert_eq!(
            file_id("file:///data", "a/b").0,
            twox_hash::XxHash3_128::oneshot(b"file:///data\0a/b")
        );
        let stat = LocalStat {
            inode: 1,
            size: 2,
            modified_s: 3,
            modified_ns: 4,
            changed_s: 5,
            changed_ns: 6,
        };
        let bytes: Vec<u8> = (1u64..=6).flat_map(u64::to_le_bytes).collect();
        assert_eq!(local_version(&stat), twox_hash::XxHash3_64::oneshot(&bytes));
        assert_ne!(local_version(&LocalStat { changed_ns: 7, ..stat }), local_version(&stat));
    }
}
