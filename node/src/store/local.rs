//! A local directory as under-store: a disk, or whatever is mounted there (NFS, FUSE).
//!
//! Paths are opened with `openat2(RESOLVE_BENEATH)` (Linux 5.6): the kernel itself refuses every `..`
//! and every symbolic link that leads out of the root, also while somebody moves things about.
//!
//! A version is a hash of inode, size, mtime and ctime. It is taken before and after the bytes are
//! read; if it is not the one asked for both times the bytes are thrown away. Timestamps advance in
//! ticks (4 to 10 ms before Linux 6.13), and a second write within the tick of the first leaves no
//! trace, so a file that changed a moment ago is left to settle before it is read.

use std::collections::BinaryHeap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millrace_proto::FileId;
use millrace_proto::message::Kind;
use millrace_proto::source::{LocalStat, SETTLE, local_version};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::{Found, Page, StoreError, StoreFuture, UnderStore, check_path, file_id};
use crate::memory::Blank;

/// `openat2` answers EAGAIN when something was renamed meanwhile; so often it is asked again.
const OPEN_TRIES: usize = 16;

/// A local directory.
pub(crate) struct LocalStore {
    root: Arc<PathBuf>,
    identity: String,
}

impl LocalStore {
    /// Serves the files below `root`, under a name that all nodes of a cluster use: the real path may
    /// differ between machines. Nothing is opened before something is asked for, so that a source that
    /// hangs holds nobody up who does not want it, and one that comes later is found.
    pub(crate) fn new(root: &Path, identity: &str) -> LocalStore {
        LocalStore { root: Arc::new(root.to_owned()), identity: identity.to_owned() }
    }

    /// Runs system calls that may block on the side runtime's thread pool.
    fn blocking<T, F>(
        &self,
        call: F,
    ) -> impl Future<Output = Result<T, StoreError>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&Path) -> T + Send + 'static,
    {
        let root = Arc::clone(&self.root);
        async move {
            let task = tokio::task::spawn_blocking(move || call(&root));
            task.await.map_err(|error| StoreError::Failed(format!("reading thread: {error}")))
        }
    }
}

impl UnderStore for LocalStore {
    fn identify(&self, path: &str) -> FileId {
        file_id(&self.identity, path)
    }

    fn stat(&self, path: Arc<str>) -> StoreFuture<'_, Result<Found, StoreError>> {
        let task = self.blocking(move |root| {
            check_path(&path)?;
            let file = open_beneath(&open_root(root)?, &path, OFlags::PATH)?;
            found(&rustix::fs::fstat(&file)?)
                .ok_or(StoreError::WrongKind("neither a file nor a directory"))
        });
        Box::pin(async { task.await? })
    }

    fn list(
        &self,
        path: Arc<str>,
        after: Arc<str>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Page, StoreError>> {
        let task = self.blocking(move |root| list(root, &path, &after, limit));
        Box::pin(async { task.await? })
    }

    fn fill(
        &self,
        path: Arc<str>,
        version: u64,
        offset: u64,
        mut blank: Blank,
    ) -> StoreFuture<'_, (Blank, Result<(), StoreError>)> {
        let root = Arc::clone(&self.root);
        Box::pin(async move {
            // The blank is part of the arena: it has to come back whatever happens, so a panic in the
            // thread is not turned into an error here but stops the node.
            let task = tokio::task::spawn_blocking(move || {
                let result = fill(&root, &path, version, offset, &mut blank);
                (blank, result)
            });
            task.await.expect("the reading thread does not panic")
        })
    }
}

fn open_root(root: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(root, flags, Mode::empty())?)
}

/// Opens a path that may not leave the root.
fn open_beneath(root: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { "." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut result = Err(Errno::AGAIN);
    for _ in 0..OPEN_TRIES {
        result = rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
        if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    result
}

impl From<Errno> for StoreError {
    fn from(errno: Errno) -> StoreError {
        match errno {
            Errno::NOENT | Errno::NOTDIR => StoreError::NotFound,
            Errno::ACCESS | Errno::PERM => {
                StoreError::Denied("the node may not read it: check its permissions")
            }
            Errno::XDEV => StoreError::Denied("the path leads out of the served root"),
            Errno::LOOP => {
                StoreError::Denied("too many symbolic links, or one that may not be followed")
            }
            Errno::NAMETOOLONG => StoreError::InvalidPath("a part of the path is too long"),
            other => StoreError::Failed(io::Error::from(other).to_string()),
        }
    }
}

impl From<io::Error> for StoreError {
    /// Errors of the root itself: for a client the source is gone, whatever the reason.
    fn from(error: io::Error) -> StoreError {
        StoreError::Failed(format!("the served directory cannot be opened: {error}"))
    }
}

/// What a file is, unless it is neither a file nor a directory.
fn found(stat: &Stat) -> Option<Found> {
    let modified_ms =
        stat.st_mtime.saturating_mul(1000).saturating_add(stat.st_mtime_nsec as i64 / 1_000_000);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Some(Found {
            kind: Kind::File,
            version: version(stat),
            length: u64::try_from(stat.st_size).unwrap_or(0),
            modified_ms,
        }),
        FileType::Directory => {
            Some(Found { kind: Kind::Directory, version: 0, length: 0, modified_ms })
        }
        _ => None,
    }
}

/// The version of a file, see [`local_version`].
fn version(stat: &Stat) -> u64 {
    local_version(&LocalStat {
        inode: stat.st_ino,
        size: stat.st_size as u64,
        modified_s: stat.st_mtime as u64,
        modified_ns: stat.st_mtime_nsec,
        changed_s: stat.st_ctime as u64,
        changed_ns: stat.st_ctime_nsec,
    })
}

/// How long to wait until a change of the file would show in its timestamps.
fn settle_time(stat: &Stat) -> Duration {
    let changed = UNIX_EPOCH
        + Duration::from_secs(stat.st_ctime.max(0) as u64)
        + Duration::from_nanos(stat.st_ctime_nsec);
    // A server's clock may be ahead of ours: then, too, at most SETTLE.
    let age = SystemTime::now().duration_since(changed).unwrap_or_default();
    SETTLE.saturating_sub(age)
}

fn fill(
    root: &Path,
    path: &str,
    version_wanted: u64,
    offset: u64,
    blank: &mut Blank,
) -> Result<(), StoreError> {
    check_path(path)?;
    // NONBLOCK: a FIFO that took the file's place must not hang the thread.
    let file =
        open_beneath(&open_root(root)?, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
    let check = || -> Result<Stat, StoreError> {
        let stat = rustix::fs::fstat(&file)?;
        match found(&stat) {
            Some(found) if found.kind == Kind::File && found.version == version_wanted => Ok(stat),
            _ => Err(StoreError::Changed),
        }
    };
    let settle = settle_time(&check()?);
    if !settle.is_zero() {
        std::thread::sleep(settle);
        check()?;
    }
    let read = blank.fill_with(|position, target| {
        loop {
            match rustix::io::pread(&file, &mut *target, offset + u64::from(position)) {
                Err(Errno::INTR) => (),
                other => return other.map_err(io::Error::from),
            }
        }
    });
    // A file that shrank ends early: that is a change, and the better answer of the two.
    check()?;
    read.map_err(|error| StoreError::Failed(format!("read {path}: {error}")))
}

fn list(root: &Path, path: &str, after: &str, limit: usize) -> Result<Page, StoreError> {
    check_path(path)?;
    let root = open_root(root)?;
    let directory =
        open_beneath(&root, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK).map_err(
            |errno| match errno {
                Errno::NOTDIR => StoreError::WrongKind("not a directory"),
                other => other.into(),
            },
        )?;
    // The smallest names after `after`, in memory bounded by the page and not by the directory.
    let mut names: BinaryHeap<String> = BinaryHeap::with_capacity(limit + 2);
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        // Names that are not UTF-8 cannot be asked for in this protocol, so they are not listed.
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name == "." || name == ".." || name <= after {
            continue;
        }
        names.push(name.to_owned());
        if names.len() > limit + 1 {
            names.pop();
        }
    }
    let more = names.len() > limit;
    let mut names = names.into_sorted_vec();
    names.truncate(limit);
    let next = if more { names.last().cloned() } else { None };
    let entries = names
        .into_iter()
        .filter_map(|name| {
            let found = look(&root, &directory, path, &name)?;
            Some((name, found))
        })
        .collect();
    Ok(Page { entries, next })
}

/// What an entry is. `None` if it vanished, leads out of the root, or cannot be served.
fn look(root: &OwnedFd, directory: &OwnedFd, path: &str, name: &str) -> Option<Found> {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        return found(&stat);
    }
    let whole = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
    let target = open_beneath(root, &whole, OFlags::PATH).ok()?;
    found(&rustix::fs::fstat(&target).ok()?)
}

#[cfg(test)]
mod tests;
