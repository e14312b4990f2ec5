//! Names of a directory, a page at a time.
//!
//! A page is the smallest names after the one before, so that a directory has to be read whole for it,
//! in whatever order the file system keeps it. What is read then is more than a page, a *window*, and is
//! kept for the pages that follow. Always holds: memory is bounded by the window and not by the
//! directory; a directory that shows a change is read again; a listing that begins reads it again.

use std::collections::{BinaryHeap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Dir, FileType};

use super::write::is_temporary;
use super::{LeftOut, StoreError};

/// Bytes of names in a window: some ten thousand names.
const WINDOW_BYTES: usize = 1 << 20;
/// Windows that are kept: 16 MiB of names at most.
const WINDOWS_MAX: usize = 16;
/// How long a window is good for if the directory's times say nothing. Guessed: what a network file
/// system keeps of a directory itself.
const WINDOW_AGE: Duration = Duration::from_secs(10);
/// What a name costs besides its bytes.
const NAME_COST: usize = size_of::<Name>();

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub name: Box<str>,
    /// True if the directory itself says that it is a directory. Some say nothing.
    pub is_directory: bool,
}

/// What shows that a directory has changed: device, inode, times of change.
type Stamp = (u64, u64, i64, u64, i64, u64);

struct Window {
    /// Path of the directory.
    directory: Arc<str>,
    stamp: Stamp,
    read_at: Instant,
    /// The names are those that come after this one.
    after: String,
    names: Arc<[Name]>,
    /// True if no further names follow.
    is_end: bool,
}

/// Windows of directories that are being listed, the one used last in front.
#[derive(Default)]
pub(crate) struct Windows {
    kept: Mutex<VecDeque<Window>>,
}

/// Names of one page, whether more follow, and what is left out.
pub(super) type Names = (Vec<Name>, bool, LeftOut);

impl Windows {
    /// Returns up to `limit` names after `after` of an open directory.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn page(
        &self,
        directory: &OwnedFd,
        path: &str,
        after: &str,
        limit: usize,
    ) -> Result<Names, StoreError> {
        let stat = rustix::fs::fstat(directory)?;
        let stamp = (
            stat.st_dev,
            stat.st_ino,
            stat.st_mtime,
            stat.st_mtime_nsec,
            stat.st_ctime,
            stat.st_ctime_nsec,
        );
        if !after.is_empty()
            && let Some(names) = self.find(path, stamp, after, limit)
        {
            return Ok(names);
        }
        let read_at = Instant::now();
        let (names, is_end, left_out) = read(directory, after, limit)?;
        let mut page = page_of(&names, is_end, limit);
        if after.is_empty() {
            if let Some(line) = left_out.not_utf8_text() {
                tracing::warn!("in '{path}': {line}");
            }
            page.2 = left_out;
        }
        if page.1 {
            let (directory, after) = (path.into(), after.to_owned());
            self.keep(Window { directory, stamp, read_at, after, names: names.into(), is_end });
        }
        Ok(page)
    }

    /// Returns a page out of a window, if one has it.
    fn find(&self, path: &str, stamp: Stamp, after: &str, limit: usize) -> Option<Names> {
        let (names, is_end) = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.retain(|window| window.read_at.elapsed() < WINDOW_AGE);
            let place = kept.iter().position(|window| {
                &*window.directory == path
                    && window.stamp == stamp
                    && window.after.as_str() <= after
                    && window.names.last().is_some_and(|last| &*last.name > after)
            })?;
            let window = kept.remove(place)?;
            let found = (Arc::clone(&window.names), window.is_end);
            kept.push_front(window);
            found
        };
        let start = names.partition_point(|name| &*name.name <= after);
        let rest = &names[start..];
        (is_end || rest.len() > limit).then(|| page_of(rest, is_end, limit))
    }

    fn keep(&self, window: Window) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|other| other.directory != window.directory || other.after != window.after);
        kept.push_front(window);
        kept.truncate(WINDOWS_MAX);
    }
}

fn page_of(names: &[Name], is_end: bool, limit: usize) -> Names {
    let count = names.len().min(limit);
    (names[..count].to_vec(), !is_end || names.len() > limit, LeftOut::default())
}

/// Reads the smallest names after `after`, as many as a window holds and more than a page in any case;
/// also returns whether these are all, and what is left out of all names.
fn read(directory: &OwnedFd, after: &str, limit: usize) -> Result<Names, StoreError> {
    let mut names: BinaryHeap<Name> = BinaryHeap::new();
    let (mut bytes, mut is_end, mut left_out) = (0, true, LeftOut::default());
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            left_out.add_not_utf8(entry.file_name());
            continue;
        };
        if name == "." || name == ".." || name <= after || is_temporary(name) {
            continue;
        }
        if !is_end && names.peek().is_some_and(|last| &*last.name <= name) {
            // It comes after the end of a window that was cut already.
            continue;
        }
        let is_directory = entry.file_type() == FileType::Directory;
        names.push(Name { name: name.into(), is_directory });
        bytes += name.len() + NAME_COST;
        while bytes > WINDOW_BYTES && names.len() > limit + 1 {
            let Some(last) = names.pop() else { break };
            bytes -= last.name.len() + NAME_COST;
            is_end = false;
        }
    }
    Ok((names.into_sorted_vec(), is_end, left_out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};

    fn open(path: &std::path::Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    fn names(page: &Names) -> Vec<&str> {
        page.0.iter().map(|name| &*name.name).collect()
    }

    #[test]
    fn further_pages_come_from_the_window_until_the_directory_changes() {
        let folder = tempfile::tempdir().unwrap();
        for index in 0..100 {
            std::fs::write(folder.path().join(format!("{index:02}")), "").unwrap();
        }
        let (windows, directory) = (Windows::default(), open(folder.path()));
        let page = |after: &str| windows.page(&directory, "d", after, 10).unwrap();
        let mut after = String::new();
        for start in 0..10 {
            let page = page(&after);
            let expected: Vec<_> = (0..10).map(|index| format!("{start}{index}")).collect();
            assert_eq!(names(&page), expected);
            assert_eq!(page.1, start < 9);
            after = page.0[9].name.to_string();
        }
        let held = windows.kept.lock().unwrap().len();
        assert_eq!(held, 1, "one window served all pages");
        // The times of the directory have to show it; some file systems count in ticks.
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(folder.path().join("055"), "").unwrap();
        assert_eq!(names(&page("05"))[..2], ["055", "06"]);
        std::fs::remove_file(folder.path().join("10")).unwrap();
        assert_eq!(names(&page("09"))[..1], ["11"]);
        assert_eq!(names(&page(""))[..1], ["00"]);
    }

    #[test]
    fn a_directory_larger_than_a_window_is_listed_whole() {
        let folder = tempfile::tempdir().unwrap();
        let long = "x".repeat(240);
        for index in 0..6000 {
            std::fs::write(folder.path().join(format!("{index:05}{long}")), "").unwrap();
        }
        let (windows, directory) = (Windows::default(), open(folder.path()));
        let (mut after, mut count) = (String::new(), 0);
        loop {
            let (names, more, _) = windows.page(&directory, "d", &after, 500).unwrap();
            for name in names {
                assert!(name.name.starts_with(&format!("{count:05}")), "{count}: {}", name.name);
                count += 1;
                after = name.name.to_string();
            }
            if !more {
                break;
            }
        }
        assert_eq!(count, 6000);
        assert!(windows.kept.lock().unwrap().len() <= 3, "each window served several pages");
    }
}
