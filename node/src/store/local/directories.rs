//! Directories that writes go through: opened, made where they are missing, and removed again if nothing
//! comes of the write.
//!
//! Always holds: nothing outside of the root is opened, made or removed. A directory is removed only if it is
//! the one that was made, and empty. No function calls itself, because a path has up to 2048 parts and the
//! threads that write have small stacks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use millrace_client::source::{self, Root};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::super::StoreError;
use super::super::write::is_temporary;

/// Directories that one write makes at most, one in the other. Guessed: no tree of data is as deep.
const NEW_LEVELS_MAX: usize = 128;
/// How often an open is tried again, as openat2(2) answers EAGAIN when something was renamed meanwhile.
const OPEN_TRIES: usize = 16;

/// Device and inode: what a file or a directory is, whatever its name.
pub(super) type Inode = (u64, u64);

/// Directories that were made for a file. They go when this is dropped, as far as they are empty.
pub(super) struct MadeDirectories {
    root: Arc<Root>,
    /// Their paths beneath the root, the deepest last.
    made: Vec<(String, Inode)>,
}

impl MadeDirectories {
    pub(super) fn none(root: &Arc<Root>) -> MadeDirectories {
        MadeDirectories { root: Arc::clone(root), made: Vec::new() }
    }

    /// Lets them stay.
    pub(super) fn keep(&mut self) {
        self.made.clear();
    }
}

impl Drop for MadeDirectories {
    fn drop(&mut self) {
        if self.made.is_empty() {
            return;
        }
        let Ok(root) = self.root.open() else { return };
        while let Some((path, made)) = self.made.pop() {
            // One in which something else lies by now stays, and so do those above it.
            let _ = remove(&root, &path, made);
        }
    }
}

fn remove(root: &OwnedFd, path: &str, made: Inode) -> Result<(), Errno> {
    let (above, name) = split(path);
    let parent = source::open_beneath(root, above, OFlags::PATH | OFlags::DIRECTORY)?;
    if identity(&rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?) != made {
        return Err(Errno::STALE);
    }
    rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)
}

pub(super) fn identity(stat: &Stat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

/// Returns the directory of a path and the name in it.
pub(super) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Opens a directory for what is written into it, and makes it if it is not there.
///
/// # Errors
/// [`StoreError::NotFound`] if a directory went away meanwhile: another write that was given up has made it.
pub(super) fn open_or_make(
    root: &OwnedFd,
    path: &str,
    made: &mut MadeDirectories,
) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    // The deepest first.
    let mut missing = Vec::new();
    let mut rest = path;
    let mut directory = loop {
        match source::open_beneath(root, rest, flags) {
            Ok(directory) => break directory,
            Err(Errno::NOENT) if !rest.is_empty() => (),
            Err(Errno::NOTDIR) => return Err(in_a_file()),
            Err(other) => return Err(other.into()),
        }
        if missing.len() == NEW_LEVELS_MAX {
            return Err(StoreError::InvalidPath(
                "more than 128 directories of the path are not there, and a write makes at most 128: make them \
                 first, or choose a shorter path",
            ));
        }
        let (above, name) = split(rest);
        if is_temporary(name) {
            return Err(reserved());
        }
        missing.push(rest);
        rest = above;
    };
    while let Some(path) = missing.pop() {
        let (_, name) = split(path);
        let cannot = |errno| failed("make the directory", path, errno);
        match rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o777)) {
            Ok(()) => {
                let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW);
                made.made.push((path.to_owned(), identity(&stat.map_err(cannot)?)));
                rustix::fs::fsync(&directory).map_err(cannot)?;
            }
            Err(Errno::EXIST) => (),
            Err(Errno::NOENT) => return Err(StoreError::NotFound),
            Err(errno) => return Err(cannot(errno)),
        }
        directory = source::open_beneath(root, path, flags)?;
    }
    Ok(directory)
}

/// Opens a directory for what is deleted from it. A link on the way is refused, because it leads to files
/// that have another path, and what deletes a tree does not mean those.
pub(super) fn open_without_links(root: &OwnedFd, path: &str) -> Result<OwnedFd, StoreError> {
    let path = if path.is_empty() { "." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut result = Err(Errno::AGAIN);
    for _ in 0..OPEN_TRIES {
        result = rustix::fs::openat2(root, Path::new(path), flags, Mode::empty(), resolve);
        if !matches!(result, Err(Errno::AGAIN | Errno::INTR | Errno::STALE)) {
            break;
        }
    }
    result.map_err(|errno| match errno {
        Errno::LOOP => StoreError::WrongKind(
            "a part of the path is a symbolic link: name the file by its real path",
        ),
        other => other.into(),
    })
}

/// Compares an open directory with the one at its path; returns true if it is still that one.
pub(super) fn is_still_at(
    root: &OwnedFd,
    path: &str,
    directory: impl AsFd,
) -> Result<bool, StoreError> {
    let cannot = |errno| failed("open the directory", path, errno);
    let there = match source::open_beneath(root, path, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(there) => rustix::fs::fstat(there).map_err(cannot)?,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
        Err(errno) => return Err(cannot(errno)),
    };
    let before = rustix::fs::fstat(directory).map_err(cannot)?;
    Ok(identity(&there) == identity(&before))
}

/// Returns the refusal of a path that goes on below a file.
pub(super) fn in_a_file() -> StoreError {
    StoreError::WrongKind("a part of the path is a file, and no directory")
}

/// Returns the refusal of a name that writes use themselves.
pub(super) fn reserved() -> StoreError {
    StoreError::InvalidPath(
        "the node gives names of this form to files that it writes: choose another one",
    )
}

/// Returns why a step of a write failed, after which nothing is written.
pub(super) fn failed(what: &str, path: &str, errno: Errno) -> StoreError {
    match errno {
        Errno::ACCESS | Errno::PERM | Errno::ROFS => StoreError::Denied(
            "the node may not write there: check the permissions of the directory for the node's user",
        ),
        Errno::NAMETOOLONG => StoreError::InvalidPath("a part of the path is too long"),
        Errno::NOSPC | Errno::DQUOT => StoreError::Failed(format!(
            "the file system of '{path}' is full; nothing was written: make room, then write again"
        )),
        other => StoreError::Failed(format!(
            "{what} '{path}': {}; nothing was written",
            io::Error::from(other)
        )),
    }
}
