//! Ids of the files of a source, and versions of their contents: the rules that nodes, and clients that
//! read a source themselves, compute alike.
//!
//! Pure functions: the numbers come from the caller, which asked the source.

use std::time::Duration;

use crate::FileId;

/// A change younger than this may be followed by another one with the same timestamp: a file that
/// changed so recently is left to settle before it is read. Derived: two ticks of the slowest usual
/// kernel are 20 ms, but one long `write` sets the time when it begins, and 200 ms are some hundred
/// megabytes of it. Twice the granularity of the file's times is added; see [`granularity`].
pub const SETTLE: Duration = Duration::from_millis(200);

/// What a local file reports of its content, as `statx` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// When the inode was made, seconds and nanoseconds, where that is part of the version.
    pub born: Option<(u64, u64)>,
    /// A number of the file system, where that is part of the version.
    pub device: Option<u64>,
}

/// Computes the version of a local file: XXH3-64 of inode, size, mtime and ctime, each as 8 bytes
/// little-endian; then, if the version has the birth time, the byte 1 and its two numbers; then, if it
/// has the file system, the byte 2 and its number. The type of the file system alone decides which of
/// them it has, so nodes and clients that see the same source compute the same version.
pub fn local_version(stat: &LocalStat) -> u64 {
    let numbers =
        [stat.inode, stat.size, stat.modified_s, stat.modified_ns, stat.changed_s, stat.changed_ns];
    let mut bytes = Vec::with_capacity(48 + 17 + 9);
    bytes.extend(numbers.into_iter().flat_map(u64::to_le_bytes));
    if let Some((seconds, nanoseconds)) = stat.born {
        bytes.push(1);
        bytes.extend([seconds, nanoseconds].into_iter().flat_map(u64::to_le_bytes));
    }
    if let Some(device) = stat.device {
        bytes.push(2);
        bytes.extend(device.to_le_bytes());
    }
    twox_hash::XxHash3_64::oneshot(&bytes)
}

/// Guesses from a timestamp how coarse those like it are, at least: the largest power of ten of
/// nanoseconds that divides it. For whole seconds it is 1 s, and 2 s where the second is even, because
/// FAT counts so. Zero stands for a nanosecond. A fine time that is round by chance is taken for a
/// coarse one, at the cost of a wait.
pub fn granularity(seconds: u64, nanoseconds: u64) -> Duration {
    if nanoseconds == 0 {
        return Duration::from_secs(2 - seconds % 2);
    }
    let mut power = 1;
    while nanoseconds.is_multiple_of(power * 10) {
        power *= 10;
    }
    if power == 1 { Duration::ZERO } else { Duration::from_nanos(power) }
}

/// Computes a number from the name of a device or a mount: XXH3-64 of its bytes.
pub fn device_number(name: &str) -> u64 {
    twox_hash::XxHash3_64::oneshot(name.as_bytes())
}

/// Computes a number of a directory from those of its device and its inode: XXH3-64 of both, each as 8 bytes
/// little-endian.
pub fn directory_hash(device: u64, inode: u64) -> u64 {
    twox_hash::XxHash3_64::oneshot(&[device.to_le_bytes(), inode.to_le_bytes()].concat())
}

/// Computes the id of a file: XXH3-128 of the identity of its source (what its mount calls it:
/// `file:///data`), a zero byte, and the path below the source's root. It is the same after a restart,
/// and on every node that serves the same source.
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
            ..LocalStat::default()
        };
        let bytes: Vec<u8> = (1u64..=6).flat_map(u64::to_le_bytes).collect();
        assert_eq!(local_version(&stat), twox_hash::XxHash3_64::oneshot(&bytes));
        let others = [
            LocalStat { changed_ns: 7, ..stat },
            LocalStat { born: Some((0, 0)), ..stat },
            LocalStat { born: Some((0, 1)), ..stat },
            LocalStat { device: Some(0), ..stat },
            LocalStat { device: Some(1), ..stat },
            LocalStat { born: Some((0, 0)), device: Some(0), ..stat },
        ];
        let mut versions: Vec<u64> = others.iter().map(local_version).collect();
        versions.push(local_version(&stat));
        versions.sort_unstable();
        versions.dedup();
        assert_eq!(versions.len(), 7);
    }

    #[test]
    fn coarse_times_are_known_by_their_zeros() {
        let nanoseconds = |nanoseconds| granularity(7, nanoseconds);
        assert_eq!(nanoseconds(123_456_789), Duration::ZERO);
        assert_eq!(nanoseconds(123_456_700), Duration::from_nanos(100));
        assert_eq!(nanoseconds(123_000_000), Duration::from_millis(1));
        assert_eq!(nanoseconds(900_000_000), Duration::from_millis(100));
        assert_eq!(nanoseconds(0), Duration::from_secs(1));
        assert_eq!(granularity(8, 0), Duration::from_secs(2));
        assert_eq!(granularity(u64::MAX, 0), Duration::from_secs(1));
    }
}
