//! Renames in a directory: one step of the file system, for files and for directories alike.
//!
//! Always holds: nothing outside of the root is renamed; both directories are locked meanwhile, as for writes, so
//! that a condition still holds when the names change; a directory takes no path that something has. A symbolic
//! link is neither followed nor moved, because what it leads to would be another thing elsewhere. A name is removed
//! only if the same file has another name for certain.

use std::os::fd::OwnedFd;

use millrace_client::source;
use rustix::fs::{AtFlags, Dir, FileType, RenameFlags, Stat};
use rustix::io::Errno;

use super::super::write::Condition;
use super::super::{Found, StoreError};
use super::directories::{
    MadeDirectories, failed, identity, is_still_at, open_or_make, open_without_links,
};
use super::write::{IS_DIRECTORY, NOT_A_FILE, Target, exists, lock};
use super::{found, open};

/// How often the directories of the new path are made again that a write which was given up took away.
const MAKE_TRIES: usize = 16;
/// Why a link keeps its path.
const IS_LINK: StoreError =
    StoreError::WrongKind("a symbolic link is not renamed: name the file by its real path");
/// Why the old name of a file that the new path leads to as well is not removed.
const MAY_BE_ONE_NAME: StoreError = StoreError::Denied(
    "the new path leads to the same file, and it is not certain that this is another of its names; nothing was \
     changed: if the two names are one in another spelling, rename the file to a third name first",
);
const MOVED: &str = "a directory of the paths was moved meanwhile: rename again";

/// Gives what one path has the other path.
pub(super) fn rename(from: &Target, to: &Target) -> Result<Found, StoreError> {
    let root = open(&from.root)?;
    let ((above, name), (above_new, new_name)) = (from.split(), to.split());
    let directory = open_without_links(&root, above)?;
    entry(&directory, name, &from.path)?.ok_or(StoreError::NotFound)?;
    let mut made = MadeDirectories::none(&from.root);
    let new_directory = open_new(&root, above_new, &mut made)?;
    let is_one = lock_both(&directory, &new_directory, to.condition)?;
    let is_here = is_still_at(&root, above, &directory)?;
    if !is_here || !is_still_at(&root, above_new, &new_directory)? {
        return Err(StoreError::Failed(MOVED.to_owned()));
    }
    if is_one && name == new_name {
        return Err(StoreError::InvalidPath("both paths are the same"));
    }
    // What had the name before the lock may have been replaced since.
    let there = entry(&directory, name, &from.path)?.ok_or(StoreError::NotFound)?;
    let taken = entry(&new_directory, new_name, &to.path)?;
    let kind = FileType::from_raw_mode(there.st_mode);
    let is_free = judge(kind, taken.as_ref(), to.condition)?;
    let is_same = taken.is_some_and(|taken| identity(&taken) == identity(&there));
    if is_same && there.st_nlink > 1 {
        // Two names of one file: the system call would leave both.
        if !has_name(&directory, name, &there) || !has_name(&new_directory, new_name, &there) {
            return Err(MAY_BE_ONE_NAME);
        }
        rustix::fs::unlinkat(&directory, name, AtFlags::empty())
            .map_err(|errno| failed("rename", &from.path, errno))?;
    } else {
        // Also where both paths are one name in two spellings: this never removes the file.
        change((&directory, name), (&new_directory, new_name), is_free, to)?;
    }
    made.keep();
    let unknown = |errno: Errno| {
        StoreError::Unknown(format!("it has its new path, and may lose it in a crash: {errno}"))
    };
    rustix::fs::fsync(&new_directory).and(rustix::fs::fsync(&directory)).map_err(unknown)?;
    let look = source::find(&root, &to.path, to.rule).map_err(unknown)?.1;
    found(&look).ok_or(NOT_A_FILE)
}

/// Returns what a directory has under a name, and not where a link leads.
fn entry(directory: &OwnedFd, name: &str, path: &str) -> Result<Option<Stat>, StoreError> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(failed("look at", path, errno)),
    }
}

fn open_new(root: &OwnedFd, path: &str, made: &mut MadeDirectories) -> Result<OwnedFd, StoreError> {
    let mut tries = 0;
    loop {
        match open_or_make(root, path, made) {
            Err(StoreError::NotFound) if tries < MAKE_TRIES => tries += 1,
            other => return other,
        }
    }
}

/// True if a directory lists a file under a name in this very spelling. A look-up does not tell that, because some
/// file systems find a name in several spellings, and what is mounted at a name has that name in no directory.
fn has_name(directory: &OwnedFd, name: &str, file: &Stat) -> bool {
    let Ok(entries) = Dir::read_from(directory) else { return false };
    entries
        .flatten()
        .any(|entry| entry.file_name().to_bytes() == name.as_bytes() && entry.ino() == file.st_ino)
}

/// Locks two directories, or the one that both are; returns true if they are one.
fn lock_both(first: &OwnedFd, second: &OwnedFd, condition: Condition) -> Result<bool, StoreError> {
    let inode = |directory: &OwnedFd| {
        rustix::fs::fstat(directory)
            .map(|stat| identity(&stat))
            .map_err(|errno| failed("look at the directory of", "the path", errno))
    };
    let (inode_first, inode_second) = (inode(first)?, inode(second)?);
    // All that lock two do it in one order.
    let order = if inode_first <= inode_second { [first, second] } else { [second, first] };
    lock(order[0], condition)?;
    let is_one = inode_first == inode_second;
    if !is_one {
        lock(order[1], condition)?;
    }
    Ok(is_one)
}

/// Judges whether what has the new path lets the rename happen; returns true if the path has to be free.
fn judge(kind: FileType, taken: Option<&Stat>, condition: Condition) -> Result<bool, StoreError> {
    match kind {
        FileType::RegularFile | FileType::Directory => (),
        FileType::Symlink => return Err(IS_LINK),
        _ => return Err(NOT_A_FILE),
    }
    let is_free = kind == FileType::Directory || condition == Condition::Absent;
    match taken.map(|taken| FileType::from_raw_mode(taken.st_mode)) {
        None => Ok(is_free),
        Some(_) if condition == Condition::Absent => Err(exists()),
        Some(FileType::Directory) => Err(IS_DIRECTORY),
        Some(_) if kind == FileType::Directory => {
            Err(StoreError::WrongKind("a file has the new path, and a directory replaces nothing"))
        }
        Some(FileType::RegularFile | FileType::Symlink) => Ok(is_free),
        Some(_) => Err(NOT_A_FILE),
    }
}

/// Makes the system call.
fn change(
    (directory, name): (&OwnedFd, &str),
    (new_directory, new_name): (&OwnedFd, &str),
    is_free: bool,
    to: &Target,
) -> Result<(), StoreError> {
    let flags = if is_free { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
    match rustix::fs::renameat_with(directory, name, new_directory, new_name, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST | Errno::NOTEMPTY) if to.condition == Condition::Absent => Err(exists()),
        Err(Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR) => Err(IS_DIRECTORY),
        Err(Errno::NOENT) => Err(StoreError::NotFound),
        Err(Errno::BUSY) => {
            Err(StoreError::WrongKind("a file system is mounted at one of the paths"))
        }
        Err(Errno::XDEV) => Err(StoreError::InvalidPath(
            "the two paths are on different file systems, between which nothing is renamed: copy it with get \
             and put, then delete it",
        )),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if is_free => Err(StoreError::Denied(
            "this file system cannot tell whether a name is taken when something gets it: a file can be renamed \
             without the condition, a directory cannot",
        )),
        Err(errno) => Err(failed("rename", &to.path, errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_counts_in_the_spelling_and_for_the_file_that_the_directory_lists() {
        let place = tempfile::tempdir().unwrap();
        for name in ["it", "other"] {
            std::fs::write(place.path().join(name), name).unwrap();
        }
        let directory = OwnedFd::from(std::fs::File::open(place.path()).unwrap());
        let it = entry(&directory, "it", "it").unwrap().unwrap();
        assert!(has_name(&directory, "it", &it));
        assert!(!has_name(&directory, "IT", &it), "another spelling");
        assert!(!has_name(&directory, "other", &it), "another file");
    }
}
