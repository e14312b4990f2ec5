//! What the kernel has mounted where, so that a path is known to lead to another file system before
//! anything on that is touched: one that hangs would not let go of a thread that looks at it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};

/// Where the kernel lists it, see proc_pid_mountinfo(5).
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// The table, read again when it has changed.
#[derive(Default)]
pub(crate) struct KernelMounts {
    known: Mutex<Option<MountTable>>,
}

struct MountTable {
    file: File,
    /// Number of each mount by the path of its directory.
    mounts: BTreeMap<String, u64>,
}

impl KernelMounts {
    /// Returns the mount that an absolute path lies in: its directory and its number. None if the table
    /// cannot be read. Symbolic links are taken for what they look like.
    pub(crate) fn mount_of(&self, path: &str) -> Option<(String, u64)> {
        self.with(|mounts| {
            let mut directory = path.trim_end_matches('/');
            loop {
                let name = if directory.is_empty() { "/" } else { directory };
                if let Some(number) = mounts.get(name) {
                    return Some((name.to_owned(), *number));
                }
                directory = &directory[..directory.rfind('/')?];
            }
        })
        .flatten()
    }

    /// Names in a directory, by its absolute path, at which something is mounted.
    pub(crate) fn names_in(&self, directory: &str) -> Vec<String> {
        let prefix = format!("{}/", directory.trim_end_matches('/'));
        self.with(|mounts| {
            let below = mounts.range(prefix.clone()..).map(|(path, _)| path);
            let below = below.map_while(|path| path.strip_prefix(&prefix));
            below
                .filter(|name| !name.is_empty() && !name.contains('/'))
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default()
    }

    fn with<T>(&self, look: impl FnOnce(&BTreeMap<String, u64>) -> T) -> Option<T> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(has_changed) {
            let file = known.take().map(|known| known.file);
            *known = file.map_or_else(|| File::open(MOUNTINFO), Ok).and_then(read).ok();
        }
        known.as_ref().map(|known| look(&known.mounts))
    }
}

/// True if something was mounted or unmounted since the last look: the kernel says so by POLLPRI, once.
fn has_changed(known: &MountTable) -> bool {
    let mut files = [PollFd::new(&known.file, PollFlags::PRI)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut files, Some(&now)).is_ok_and(|count| count > 0)
}

fn read(mut file: File) -> io::Result<MountTable> {
    let mut text = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    // Of several at one directory the last one is seen.
    let mounts = text.lines().filter_map(parse).collect();
    Ok(MountTable { file, mounts })
}

/// Returns directory and number of a line: `36 35 98:0 /root /directory options`.
fn parse(line: &str) -> Option<(String, u64)> {
    let mut fields = line.split(' ');
    let number = fields.next()?.parse().ok()?;
    Some((unescape(fields.nth(3)?)?, number))
}

/// Undoes `\040` and the like; None if the result is not text.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let code =
            code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read_as_they_are_meant() {
        let line = "36 35 98:0 /mnt1 /mnt/a\\040b\\134c rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(parse(line), Some(("/mnt/a b\\c".to_owned(), 36)));
        assert_eq!(parse("not a line"), None);
    }

    #[test]
    fn every_path_lies_in_a_mount_and_the_nearest_one_counts() {
        let mounts = KernelMounts::default();
        let (root, number) = mounts.mount_of("/").expect("a root");
        assert_eq!(root, "/");
        let (proc, of_proc) = mounts.mount_of("/proc/self/no/such/file").expect("a mount");
        assert_eq!(proc, "/proc");
        assert_ne!(number, of_proc);
        assert_eq!(mounts.mount_of("/process").map(|(path, _)| path), Some("/".to_owned()));
        assert!(mounts.names_in("/").contains(&"proc".to_owned()));
        assert!(mounts.names_in("/").iter().all(|name| !name.contains('/')));
        // The second time the table is not read again, and says the same.
        assert_eq!(mounts.mount_of("/").map(|(_, number)| number), Some(number));
    }
}
