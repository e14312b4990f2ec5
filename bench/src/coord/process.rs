//! What the kernel reports of servers and of the disk under them.
//!
//! Owns reading memory from `/proc` and the kind of a file system, and the one measurement of the disk
//! that is needed to read every result with durable writes.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::report::median;

/// Memory of a process, or of several, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All that is resident, pages of mapped files included: `VmRSS`.
    pub rss_bytes: u64,
    /// What is not backed by a file: `RssAnon`.
    pub anonymous_bytes: u64,
}

impl Memory {
    /// Reads the memory of a process.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn of(pid: u32) -> Result<Memory> {
        let path = format!("/proc/{pid}/status");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        Memory::parse(&text).with_context(|| format!("{path} tells no memory: did it end?"))
    }

    fn parse(text: &str) -> Option<Memory> {
        let kib = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        };
        Some(Memory { rss_bytes: kib("VmRSS:")? * 1024, anonymous_bytes: kib("RssAnon:")? * 1024 })
    }

    /// Adds the two.
    #[must_use]
    pub fn plus(self, other: Memory) -> Memory {
        Memory {
            rss_bytes: self.rss_bytes + other.rss_bytes,
            anonymous_bytes: self.anonymous_bytes + other.anonymous_bytes,
        }
    }
}

/// Returns the name of the file system that holds `path`; its magic number in hexadecimal if it is not a
/// usual one.
///
/// # Errors
/// If there is no such path.
pub(super) fn file_system(path: &Path) -> Result<String> {
    let stat = rustix::fs::statfs(path).with_context(|| format!("look at {}", path.display()))?;
    let magic = stat.f_type as u32;
    // Numbers of linux/magic.h.
    let name = match magic {
        0xEF53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0x2FC1_2FC1 => "zfs",
        0x794C_7630 => "overlay",
        0x0102_1994 => TMPFS,
        _ => return Ok(format!("{magic:#x}")),
    };
    Ok(name.to_owned())
}

/// Name of the file system that is not a disk: a sync costs nothing there.
pub(super) const TMPFS: &str = "tmpfs";

/// Returns the microseconds that `fdatasync` takes after an append of 4 KiB in `directory`: the median
/// of fifty.
///
/// # Errors
/// If the directory cannot be written to.
pub(super) fn sync_us(directory: &Path) -> Result<f64> {
    const SYNCS: usize = 50;
    let mut file = tempfile::tempfile_in(directory)
        .with_context(|| format!("write to {}", directory.display()))?;
    let mut times_us = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        file.write_all(&[0x5A; 4096])?;
        let start = Instant::now();
        file.sync_data()?;
        times_us.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&times_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t    1024 kB\nRssFile:\t 1 kB\n";
        let expected = Memory { rss_bytes: 2 << 20, anonymous_bytes: 1 << 20 };
        assert_eq!(Memory::parse(text), Some(expected));
        assert_eq!(Memory::parse("Name:\tended\n"), None);
        assert!(Memory::of(std::process::id()).unwrap().rss_bytes > 1 << 20);
    }

    #[test]
    fn a_file_system_has_a_name() {
        assert_eq!(file_system(Path::new("/proc")).unwrap(), "0x9fa0");
        assert!(file_system(Path::new("/no/such/place")).is_err());
    }

    #[test]
    fn a_sync_takes_time() {
        let directory = tempfile::tempdir().unwrap();
        assert!(sync_us(directory.path()).unwrap() > 0.0);
    }
}
