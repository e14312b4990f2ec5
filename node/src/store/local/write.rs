//! Writes to a directory: a file of another name in the same directory, which then takes its place.
//!
//! ```text
//!  .millrace-RANDOM.tmp ── write ── fsync ── rename ──► NAME ── fsync of the directory
//! ```
//!
//! Always holds: readers see the file before or the new one, whole; nothing outside of the root is written.
//! Writers of this machine that rename in a directory lock it (flock(2)), so that a condition still holds when
//! the name changes. A file that is being written is locked too: one that no process locks was left behind by
//! a node that died, and goes at the next write to its directory.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use millrace_client::source::{self, DeviceRule, Look, Root};
use millrace_proto::message::Kind;
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::super::machine::Machine;
use super::super::threads::LaneId;
use super::super::write::{Condition, Upload, is_temporary, temporary_name};
use super::super::{Found, StoreError, StoreFuture};
use super::{found, open};

/// Tries to lock a directory, and the pause between two. Guessed: a lock is held for one rename.
const LOCK_TRIES: u32 = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// How old a file without a lock is before it counts as left behind. Derived: an upload of which nothing comes
/// for a minute ends, and some file systems know no locks between machines.
const LEFT_AFTER: Duration = Duration::from_secs(600);
/// Directories that are remembered as rid of what was left behind.
const SWEPT_MAX: usize = 4096;
/// Why a path cannot be written.
const IS_DIRECTORY: StoreError = StoreError::WrongKind("a directory is there: name a file");
const NOT_A_FILE: StoreError =
    StoreError::WrongKind("something is there that is neither a file nor a directory");

/// Directories from which what was left behind is gone.
#[derive(Default)]
pub(super) struct Swept(Mutex<HashSet<String>>);

impl Swept {
    /// True if this directory is looked at for the first time.
    fn is_first(&self, directory: &str) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= SWEPT_MAX {
            known.clear();
        }
        known.insert(directory.to_owned())
    }
}

/// A path below a root that is to be written.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) root: Arc<Root>,
    pub(super) rule: DeviceRule,
    pub(super) path: Arc<str>,
    pub(super) condition: Condition,
}

impl Target {
    /// Returns the directory and the name in it.
    fn split(&self) -> (&str, &str) {
        self.path.rsplit_once('/').unwrap_or(("", &self.path))
    }

    /// Looks what is there, and whether it may be written.
    fn check(&self, root: &OwnedFd) -> Result<Option<Look>, StoreError> {
        let there = match source::find(root, &self.path, self.rule) {
            Ok((_, look)) => Some(look),
            Err(Errno::NOENT) => None,
            Err(Errno::NOTDIR) => return Err(in_a_file()),
            Err(other) => return Err(other.into()),
        };
        match there.as_ref().map(|look| look.kind) {
            Some(Some(Kind::Directory)) => return Err(IS_DIRECTORY),
            Some(None) => return Err(NOT_A_FILE),
            _ => (),
        }
        let version = there.as_ref().map(|look| look.version);
        match (self.condition, version) {
            (Condition::Absent, Some(_)) => Err(exists()),
            (Condition::Version(_), None) => Err(StoreError::Condition("nothing has this path")),
            (Condition::Version(wanted), Some(is)) if wanted != is => {
                Err(StoreError::Condition("the file is in another version: look it up again"))
            }
            _ => Ok(there),
        }
    }
}

fn exists() -> StoreError {
    StoreError::Condition("the path is taken already")
}

fn in_a_file() -> StoreError {
    StoreError::WrongKind("a part of the path is a file, and no directory")
}

/// A file that is being written. It goes when it is dropped, unless it took its place.
pub(super) struct LocalFile {
    target: Target,
    directory: OwnedFd,
    temporary: String,
    file: OwnedFd,
    is_placed: bool,
}

impl Drop for LocalFile {
    fn drop(&mut self) {
        if !self.is_placed {
            // A file that cannot be removed now is removed as one that was left behind.
            let _ = rustix::fs::unlinkat(&self.directory, &*self.temporary, AtFlags::empty());
        }
    }
}

impl LocalFile {
    /// Makes the file beside its place, and the directories above it.
    pub(super) fn begin(target: Target, swept: &Swept) -> Result<LocalFile, StoreError> {
        let root = open(&target.root)?;
        target.check(&root)?;
        let (above, _) = target.split();
        let directory = open_directory(&root, above)?;
        if swept.is_first(&format!("{}/{above}", target.root.path().display())) {
            sweep(&directory);
        }
        let random = millrace_client::peer::random()?;
        let random = random.first_chunk().copied().map(u64::from_le_bytes).unwrap_or_default();
        let temporary = temporary_name(random);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory, &*temporary, flags, Mode::from_raw_mode(0o666))
            .map_err(|errno| failed("make a file", &target.path, errno))?;
        // Where there are no locks age alone tells what was left behind.
        let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        Ok(LocalFile { target, directory, temporary, file, is_placed: false })
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.file, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => (),
                Err(errno) => return Err(failed("write", &self.target.path, errno)),
            }
        }
        Ok(())
    }

    /// Puts the file in its place.
    fn place(mut self) -> Result<Found, StoreError> {
        let path = Arc::clone(&self.target.path);
        let step =
            |what, result: Result<(), Errno>| result.map_err(|errno| failed(what, &path, errno));
        step("keep", rustix::fs::fsync(&self.file))?;
        lock(&self.directory, self.target.condition)?;
        let root = open(&self.target.root)?;
        if self.target.check(&root)?.is_some() {
            self.keep_mode(&root);
        }
        let (_, name) = self.target.split();
        match self.target.condition {
            Condition::Absent => self.link(name)?,
            _ => {
                let done =
                    rustix::fs::renameat(&self.directory, &*self.temporary, &self.directory, name);
                match done {
                    Err(Errno::ISDIR | Errno::NOTEMPTY) => return Err(IS_DIRECTORY),
                    done => step("rename", done)?,
                }
            }
        }
        self.is_placed = true;
        let unknown = |errno: Errno| {
            StoreError::Unknown(format!("it is in its place, and may be lost in a crash: {errno}"))
        };
        rustix::fs::fsync(&self.directory).map_err(unknown)?;
        let look = source::look(&self.file, self.target.rule).map_err(unknown)?;
        found(&look).ok_or(NOT_A_FILE)
    }

    /// Gives the file its name unless that is taken.
    fn link(&self, name: &str) -> Result<(), StoreError> {
        let (from, to) = (&self.directory, &self.directory);
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(from, &*self.temporary, to, name, flags) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => return Err(exists()),
            // This file system cannot do it: a second name that is not taken does the same.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => (),
            Err(errno) => return Err(failed("rename", &self.target.path, errno)),
        }
        match rustix::fs::linkat(from, &*self.temporary, to, name, AtFlags::empty()) {
            Ok(()) => {
                let _ = rustix::fs::unlinkat(from, &*self.temporary, AtFlags::empty());
                Ok(())
            }
            Err(Errno::EXIST) => Err(exists()),
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => Err(StoreError::Denied(
                "this file system cannot tell whether a name is taken when a file gets it: write without \
                 the condition",
            )),
            Err(errno) => Err(failed("link", &self.target.path, errno)),
        }
    }

    /// Gives the file the permissions of the one that it replaces, which may be a secret.
    fn keep_mode(&self, root: &OwnedFd) {
        let place = source::open_beneath(root, &*self.target.path, OFlags::PATH);
        if let Ok(stat) = place.and_then(rustix::fs::fstat) {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
            let _ = rustix::fs::fchmod(&self.file, mode);
        }
    }
}

/// Deletes a file.
pub(super) fn delete(target: &Target) -> Result<(), StoreError> {
    let root = open(&target.root)?;
    let (above, name) = target.split();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let directory = source::open_beneath(&root, above, flags)?;
    lock(&directory, target.condition)?;
    if target.check(&root)?.is_none() {
        return Err(StoreError::NotFound);
    }
    match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
        Ok(()) => (),
        Err(Errno::ISDIR) => return Err(IS_DIRECTORY),
        Err(Errno::NOENT) => return Err(StoreError::NotFound),
        Err(errno) => return Err(failed("delete", &target.path, errno)),
    }
    rustix::fs::fsync(&directory).map_err(|errno| {
        StoreError::Unknown(format!("it is gone, and may be back after a crash: {errno}"))
    })
}

fn failed(what: &str, path: &str, errno: Errno) -> StoreError {
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

/// Opens a directory for what is written into it, and makes it if it is not there.
fn open_directory(root: &OwnedFd, path: &str) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match source::open_beneath(root, path, flags) {
        Err(Errno::NOENT) if !path.is_empty() => {
            let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
            if is_temporary(name) {
                return Err(reserved());
            }
            let parent = open_directory(root, above)?;
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o777)) {
                Ok(()) => {
                    let kept = rustix::fs::fsync(&parent);
                    kept.map_err(|errno| failed("make the directory", path, errno))?;
                }
                Err(Errno::EXIST) => (),
                Err(errno) => return Err(failed("make the directory", path, errno)),
            }
            source::open_beneath(root, path, flags).map_err(StoreError::from)
        }
        Err(Errno::NOTDIR) => Err(in_a_file()),
        other => Ok(other?),
    }
}

/// Returns the refusal of a name that this module uses itself.
pub(super) fn reserved() -> StoreError {
    StoreError::InvalidPath(
        "the node gives names of this form to files that it writes: choose another one",
    )
}

/// Locks a directory until it is closed, for the moment in which a name changes.
fn lock(directory: &OwnedFd, condition: Condition) -> Result<(), StoreError> {
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(LOCK_PAUSE),
            // The kernel itself judges whether a name is taken.
            Err(_) if !matches!(condition, Condition::Version(_)) => return Ok(()),
            Err(_) => {
                return Err(StoreError::Denied(
                    "this file system has no locks, so that a file could change between the condition and \
                     the write: write without the condition",
                ));
            }
        }
    }
    Err(StoreError::Busy("another program holds a lock of the directory".to_owned()))
}

/// Removes files from a directory that no process writes any more.
fn sweep(directory: &OwnedFd) {
    let Ok(entries) = Dir::read_from(directory) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().to_str() else { continue };
        if is_temporary(name) && is_left(directory, name) {
            tracing::warn!("remove {name}, which a node that died has left behind");
            let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
        }
    }
}

/// True if a file is old, and no process has it locked.
fn is_left(directory: impl AsFd, name: &str) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::openat(directory, name, flags, Mode::empty()) else { return false };
    let Ok(stat) = rustix::fs::fstat(&file) else { return false };
    let modified = UNIX_EPOCH + Duration::from_secs(stat.st_mtime.max(0) as u64);
    let age = SystemTime::now().duration_since(modified).unwrap_or_default();
    age > LEFT_AFTER
        && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            != Err(Errno::WOULDBLOCK)
}

/// A file that is being written by the threads of its file system.
pub(super) struct LocalUpload {
    machine: Arc<Machine>,
    lane: LaneId,
    /// None after a call that was not waited for.
    file: Option<LocalFile>,
}

impl LocalUpload {
    pub(super) fn new(machine: &Arc<Machine>, lane: LaneId, file: LocalFile) -> LocalUpload {
        LocalUpload { machine: Arc::clone(machine), lane, file: Some(file) }
    }
}

fn given_up() -> StoreError {
    StoreError::Failed("an earlier write to it failed; nothing was written".to_owned())
}

impl Upload for LocalUpload {
    fn write(&mut self, bytes: Bytes) -> StoreFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let mut file = self.file.take().ok_or_else(given_up)?;
            let place = self.machine.writes.enter(self.lane.clone()).await?;
            let call = move || {
                file.write(&bytes)?;
                Ok(file)
            };
            self.file = Some(place.ask(call).await?);
            Ok(())
        })
    }

    fn finish(mut self: Box<Self>) -> StoreFuture<'static, Result<Found, StoreError>> {
        Box::pin(async move {
            let file = self.file.take().ok_or_else(given_up)?;
            let place = self.machine.writes.enter(self.lane.clone()).await?;
            // Its outcome is waited for however long it takes: it may be done later.
            place.run(move || file.place()).await
        })
    }

    fn abort(mut self: Box<Self>) -> StoreFuture<'static, ()> {
        Box::pin(async move {
            let Some(file) = self.file.take() else { return };
            match self.machine.writes.enter(self.lane.clone()).await {
                Ok(place) => place.run(move || drop(file)).await,
                // Its lane hangs or is full: this may take a moment of the side thread.
                Err(_) => drop(file),
            }
        })
    }
}
