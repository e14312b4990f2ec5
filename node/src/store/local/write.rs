//! Writes to a directory: a file of another name in the same directory, which then takes its place.
//!
//! ```text
//!  .millrace-RANDOM.tmp ── write ── fsync ── rename ──► NAME ── fsync of the directory
//! ```
//!
//! Always holds: readers see the file before or the new one, whole; nothing outside of the root is written.
//! Writers of this machine that rename in a directory lock it (flock(2)), so that a condition still holds when
//! the name changes. A file that is being written is locked too: one that no process locks was left behind by
//! a node that died, and goes at the next write to its directory. Only the node's user reads a file before it
//! is in its place, because the one that it replaces may be a secret.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use millrace_client::source::{self, DeviceRule, Look, Root};
use millrace_proto::message::Kind;
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::super::machine::Machine;
use super::super::threads::LaneId;
use super::super::write::{Condition, Upload, Written, is_temporary, temporary_name};
use super::super::{Found, StoreError, StoreFuture};
use super::directories::{
    MadeDirectories, failed, in_a_file, is_still_at, open_or_make, open_without_links, split,
};
use super::{found, open};

/// Tries to lock a directory, and the pause between two. Guessed: a lock is held for one rename.
const LOCK_TRIES: u32 = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// How old a file without a lock is before it counts as left behind. Derived: an upload of which nothing comes
/// for a minute ends, and some file systems know no locks between machines.
const LEFT_AFTER: Duration = Duration::from_secs(600);
/// How often a write makes its directories again that a write which was given up took away.
const MAKE_TRIES: usize = 16;
/// The permissions of a file that is not in its place yet.
const PRIVATE: u32 = 0o600;
/// Directories that are remembered as rid of what was left behind.
const SWEPT_MAX: usize = 4096;
/// Why a path cannot be written.
pub(super) const IS_DIRECTORY: StoreError =
    StoreError::WrongKind("a directory is there: name a file");
pub(super) const NOT_A_FILE: StoreError =
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
    pub(super) fn split(&self) -> (&str, &str) {
        split(&self.path)
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

pub(super) fn exists() -> StoreError {
    StoreError::Condition("the path is taken already")
}

/// A file that is being written. It goes when it is dropped, unless it took its place.
pub(super) struct LocalFile {
    target: Target,
    directory: OwnedFd,
    temporary: String,
    file: OwnedFd,
    is_placed: bool,
    /// The permissions that it gets if nothing is in its place.
    mode: u32,
    /// This is dropped last, because some file systems keep the name of a file until it is closed.
    made: MadeDirectories,
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
        let is_new = target.check(&root)?.is_none();
        let (above, _) = target.split();
        let random = millrace_client::peer::random()?;
        let random = random.first_chunk().copied().map(u64::from_le_bytes).unwrap_or_default();
        let temporary = temporary_name(random);
        // Of a new file the kernel says which permissions it has by the umask, or by the directory.
        let mode = Mode::from_raw_mode(if is_new { 0o666 } else { PRIVATE });
        let mut made = MadeDirectories::none(&target.root);
        let mut tries = 0;
        let (directory, file) = loop {
            match make_file(&root, &target.path, &temporary, mode, &mut made) {
                Err(StoreError::NotFound) if tries < MAKE_TRIES => tries += 1,
                other => break other?,
            }
        };
        // Where there are no locks age alone tells what was left behind.
        let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        if swept.is_first(&format!("{}/{above}", target.root.path().display())) {
            sweep(&directory);
        }
        let mut it =
            LocalFile { target, directory, temporary, file, is_placed: false, mode: PRIVATE, made };
        let stat = it.stat()?;
        it.mode = it.mode_in_place(&root, &stat)?.unwrap_or(stat.st_mode & 0o777);
        // Where this fails all files have the same permissions, whatever they are given.
        let _ = rustix::fs::fchmod(&it.file, Mode::from_raw_mode(PRIVATE));
        Ok(it)
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
        self.set_mode(&open(&self.target.root)?)?;
        step("keep", rustix::fs::fsync(&self.file))?;
        lock(&self.directory, self.target.condition)?;
        let root = open(&self.target.root)?;
        let (above, name) = self.target.split();
        if !is_still_at(&root, above, &self.directory)? {
            return Err(StoreError::Failed(
                "the directory was moved while the file was written: write again".to_owned(),
            ));
        }
        self.target.check(&root)?;
        if self.set_mode(&root)? {
            step("keep", rustix::fs::fsync(&self.file))?;
        }
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
        self.made.keep();
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

    fn stat(&self) -> Result<Stat, StoreError> {
        let cannot = |errno| failed("look at the file for", &self.target.path, errno);
        rustix::fs::fstat(&self.file).map_err(cannot)
    }

    /// Returns the permissions of the file that this one is to replace, as this one may have them; `None` if
    /// nothing is there. Another group gets nothing, because it is not the one that they were given to.
    fn mode_in_place(&self, root: &OwnedFd, own: &Stat) -> Result<Option<u32>, StoreError> {
        let cannot = |errno| failed("look at", &self.target.path, errno);
        let there = match source::open_beneath(root, &*self.target.path, OFlags::PATH) {
            Ok(place) => rustix::fs::fstat(place).map_err(cannot)?,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(cannot(errno)),
        };
        let allowed = if there.st_gid == own.st_gid { 0o777 } else { 0o707 };
        Ok(Some(there.st_mode & allowed))
    }

    /// Gives the file the permissions that it has in its place. True if they have changed.
    fn set_mode(&self, root: &OwnedFd) -> Result<bool, StoreError> {
        let own = self.stat()?;
        let mode = self.mode_in_place(root, &own)?.unwrap_or(self.mode);
        if own.st_mode & 0o7777 == mode {
            return Ok(false);
        }
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode)).map_err(|errno| {
            StoreError::Failed(format!(
                "the new file of '{}' cannot be given the permissions {mode:o}: {}; nothing was written",
                self.target.path,
                std::io::Error::from(errno)
            ))
        })?;
        Ok(true)
    }
}

/// Makes the directories of a path and, in the last one, a file.
///
/// # Errors
/// [`StoreError::NotFound`] if a directory went away meanwhile.
fn make_file(
    root: &OwnedFd,
    path: &str,
    temporary: &str,
    mode: Mode,
    made: &mut MadeDirectories,
) -> Result<(OwnedFd, OwnedFd), StoreError> {
    let directory = open_or_make(root, split(path).0, made)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&directory, temporary, flags, mode) {
        Ok(file) => Ok((directory, file)),
        Err(Errno::NOENT) => Err(StoreError::NotFound),
        Err(errno) => Err(failed("make a file", path, errno)),
    }
}

/// Deletes a file.
pub(super) fn delete(target: &Target) -> Result<(), StoreError> {
    let root = open(&target.root)?;
    let (above, name) = target.split();
    let directory = open_without_links(&root, above)?;
    lock(&directory, target.condition)?;
    // The lock was waited for: what is looked at must be in the directory that is locked.
    let root = open(&target.root)?;
    if !is_still_at(&root, above, &directory)? {
        return Err(StoreError::Failed(
            "the directory was moved before the file was deleted: delete again".to_owned(),
        ));
    }
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

/// Locks a directory until it is closed, for the moment in which a name changes.
pub(super) fn lock(directory: &OwnedFd, condition: Condition) -> Result<(), StoreError> {
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

    fn finish(mut self: Box<Self>) -> StoreFuture<'static, Result<Written, StoreError>> {
        Box::pin(async move {
            let file = self.file.take().ok_or_else(given_up)?;
            let place = self.machine.writes.enter(self.lane.clone()).await?;
            // Its outcome is waited for however long it takes: it may be done later.
            let found = place.run(move || file.place()).await?;
            // Another program may write to the file within the same tick of its times.
            Ok(Written { found, is_certain: false })
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
