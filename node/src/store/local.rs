//! A local directory as under-store: a disk, or whatever is mounted there (NFS, FUSE).
//!
//! How a path is opened, and which content a file has, is `millrace_client::source`, because clients
//! that read a source themselves use the same rules. The version is taken before and after the bytes are
//! read; if it is not the one asked for both times the bytes are thrown away. A file that changed a
//! moment ago may change again and keep its times: it is left to settle before what is read of it is kept.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use millrace_client::source::{self, DeviceRule, Look, Root};
use millrace_proto::FileId;
use millrace_proto::message::Kind;
use rustix::fs::OFlags;
use rustix::io::Errno;

use self::write::{LocalFile, LocalUpload, Swept, Target};
use super::listing::{Name, Windows};
use super::machine::Machine;
use super::threads::LaneId;
use super::write::is_temporary;
use super::{
    Condition, Errand, FillError, Found, Page, Part, StoreError, StoreFuture, UnderStore, Upload,
    check_path, file_id,
};
use crate::memory::Blank;

mod directories;
mod rename;
mod write;

/// A local directory.
pub(crate) struct LocalStore {
    machine: Arc<Machine>,
    root: Arc<Root>,
    /// Where that is, by name.
    directory: PathBuf,
    identity: String,
    rule: DeviceRule,
    swept: Arc<Swept>,
}

impl LocalStore {
    /// Serves the files below `root`, under a name that all nodes of a cluster use: the real path may
    /// differ between machines. Nothing is opened before something is asked for, so a source that hangs
    /// blocks only its own requests, and one that comes later is found.
    pub(crate) fn new(
        machine: &Arc<Machine>,
        root: Root,
        identity: &str,
        rule: DeviceRule,
    ) -> LocalStore {
        let (machine, directory) = (Arc::clone(machine), root.path());
        let (root, identity, swept) = (Arc::new(root), identity.to_owned(), Arc::default());
        LocalStore { machine, root, directory, identity, rule, swept }
    }

    /// Returns what is to be written.
    fn target(&self, path: Arc<str>, condition: Condition) -> Result<Target, StoreError> {
        check_path(&path)?;
        if path.is_empty() {
            return Err(StoreError::WrongKind("the root of the source is a directory"));
        }
        if is_temporary(path.rsplit('/').next().unwrap_or_default()) {
            return Err(directories::reserved());
        }
        Ok(Target { root: Arc::clone(&self.root), rule: self.rule, path, condition })
    }

    /// Returns the lane of a path: of the file system which it leads to.
    fn lane(&self, path: &str) -> LaneId {
        let root = self.directory.to_str().unwrap_or_default();
        self.machine.lane(&self.identity, root.trim_end_matches('/'), path)
    }
}

impl UnderStore for LocalStore {
    fn identify(&self, path: &str) -> FileId {
        file_id(&self.identity, path)
    }

    fn stat(&self, path: Arc<str>) -> StoreFuture<'_, Result<Found, StoreError>> {
        Box::pin(async move {
            check_path(&path)?;
            let place = self.machine.lookups.enter(self.lane(&path)).await?;
            let (root, rule) = (Arc::clone(&self.root), self.rule);
            place.ask(move || stat(&root, rule, &path)).await
        })
    }

    fn list(
        &self,
        path: Arc<str>,
        after: Arc<str>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Page, StoreError>> {
        Box::pin(async move {
            check_path(&path)?;
            let place = self.machine.lists.enter(self.lane(&path)).await?;
            let (root, rule) = (Arc::clone(&self.root), self.rule);
            let machine = Arc::clone(&self.machine);
            let whole = self.directory.join(&*path).to_string_lossy().into_owned();
            // This is asked here, because the threads that list have low priority, and must not hold
            // what others wait for.
            let mounted = machine.mounts.names_in(&whole);
            let listed = ListedDirectory { path, whole, mounted };
            place.ask(move || list(&machine.windows, &root, rule, &listed, &after, limit)).await
        })
    }

    fn fill(
        &self,
        wanted: Part,
        mut blank: Blank,
        errand: Arc<Errand>,
    ) -> StoreFuture<'_, (Blank, Result<(), FillError>)> {
        Box::pin(async move {
            if let Err(error) = check_path(&wanted.path) {
                return (blank, Err(error.into()));
            }
            let place = match self.machine.reads.enter(self.lane(&wanted.path)).await {
                Ok(place) => place,
                Err(error) => return (blank, Err(error.into())),
            };
            if !errand.begin(place.patience()) {
                return (blank, Err(FillError::Unwanted));
            }
            let (root, rule) = (Arc::clone(&self.root), self.rule);
            let call = move || {
                let result = fill(&root, rule, &wanted, &mut blank);
                (blank, result.map_err(FillError::from))
            };
            // The blank is part of the arena: it has to come back whatever happens, so a panic in the
            // thread is not turned into an error here but stops the node.
            place.run(call).await
        })
    }

    fn compare(&self, _part: &Part, _blank: &Blank) -> Result<(), StoreError> {
        // A directory remembers no contents.
        Ok(())
    }

    fn put(
        &self,
        path: Arc<str>,
        condition: Condition,
    ) -> StoreFuture<'_, Result<Box<dyn Upload>, StoreError>> {
        Box::pin(async move {
            let target = self.target(path, condition)?;
            let lane = self.lane(&target.path);
            let place = self.machine.writes.enter(lane.clone()).await?;
            let swept = Arc::clone(&self.swept);
            let file = place.ask(move || LocalFile::begin(target, &swept)).await?;
            let upload: Box<dyn Upload> = Box::new(LocalUpload::new(&self.machine, lane, file));
            Ok(upload)
        })
    }

    fn delete(
        &self,
        path: Arc<str>,
        condition: Condition,
    ) -> StoreFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let target = self.target(path, condition)?;
            let place = self.machine.writes.enter(self.lane(&target.path)).await?;
            // Its outcome is waited for however long it takes: it may be done later.
            place.run(move || write::delete(&target)).await
        })
    }

    fn rename(
        &self,
        path: Arc<str>,
        to: Arc<str>,
        condition: Condition,
    ) -> StoreFuture<'_, Result<Found, StoreError>> {
        Box::pin(async move {
            let target = self.target(path, Condition::None)?;
            let to = self.target(to, condition)?;
            let place = self.machine.writes.enter(self.lane(&target.path)).await?;
            // Its outcome is waited for however long it takes: it may be done later.
            place.run(move || rename::rename(&target, &to)).await
        })
    }
}

/// Opens the directory of a source. For a client it is gone, whatever the reason.
fn open(root: &Root) -> Result<OwnedFd, StoreError> {
    root.open().map_err(|errno| match errno {
        Errno::XDEV | Errno::LOOP => StoreError::Denied(
            "a symbolic link leads the source out of the node's mount root: mount where it leads, and \
             name that with --mount-root",
        ),
        other => io::Error::from(other).into(),
    })
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
    /// Returns the error of the root itself: for a client the source is gone, whatever the reason.
    fn from(error: io::Error) -> StoreError {
        StoreError::Failed(format!("the served directory cannot be opened: {error}"))
    }
}

/// Returns what a look found of a file or a directory; `None` for anything else.
fn found(look: &Look) -> Option<Found> {
    let Look { version, length, modified_ms, .. } = *look;
    Some(Found { kind: look.kind?, version, length, modified_ms })
}

fn stat(root: &Root, rule: DeviceRule, path: &str) -> Result<Found, StoreError> {
    let (_, look) = source::find(open(root)?, path, rule)?;
    found(&look).ok_or(StoreError::WrongKind("neither a file nor a directory"))
}

fn fill(root: &Root, rule: DeviceRule, wanted: &Part, blank: &mut Blank) -> Result<(), StoreError> {
    let path = &wanted.path;
    let judge = |look: &Look| match look {
        look if look.kind == Some(Kind::File) && look.version == wanted.version => Ok(()),
        _ => Err(StoreError::Changed),
    };
    let root = open(root)?;
    let (place, look) = source::find(&root, path, rule)?;
    judge(&look)?;
    let is_fresh = !look.settle.is_zero() && !wanted.is_settled;
    match look.shows_after {
        None if is_fresh => return Err(StoreError::Settling(look.settle)),
        Some(time) if is_fresh && !time.is_zero() => return Err(StoreError::NotShowing(time)),
        _ => (),
    }
    let gone = |errno| match errno {
        // The path led to one file, and then to another.
        Errno::STALE => StoreError::Changed,
        other => other.into(),
    };
    let file = source::open_to_read(&root, path, (&place, &look)).map_err(gone)?;
    let read = blank.fill_with(|position, target| {
        loop {
            match rustix::io::pread(&file, &mut *target, wanted.offset + u64::from(position)) {
                Err(Errno::INTR) => (),
                other => return other.map_err(io::Error::from),
            }
        }
    });
    // A file that shrank ends early: that is a change, and the better answer of the two.
    judge(&source::look(&place, rule).map_err(gone)?)?;
    read.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => StoreError::Failed(format!(
            "read {path}: it ends before the length that its source tells"
        )),
        _ => StoreError::Failed(format!("read {path}: {error}")),
    })?;
    if is_fresh { Err(StoreError::Fresh(look.settle)) } else { Ok(()) }
}

/// A directory that is listed.
struct ListedDirectory {
    path: Arc<str>,
    /// Its path with the root.
    whole: String,
    /// Names in it where something else is mounted.
    mounted: Vec<String>,
}

fn list(
    windows: &Windows,
    root: &Root,
    rule: DeviceRule,
    listed: &ListedDirectory,
    after: &str,
    limit: usize,
) -> Result<Page, StoreError> {
    let root = open(root)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
    let directory =
        source::open_beneath(&root, &*listed.path, flags).map_err(|errno| match errno {
            Errno::NOTDIR => StoreError::WrongKind("not a directory"),
            other => other.into(),
        })?;
    let (names, more, mut left_out) = windows.page(&directory, &listed.whole, after, limit)?;
    let next = if more { names.last().map(|last| last.name.to_string()) } else { None };
    let entries = names
        .into_iter()
        .filter_map(|Name { name, is_directory }| {
            // A file system that is mounted there may hang, and must not take the listing of its parent
            // with it.
            let is_mount = is_directory && listed.mounted.iter().any(|other| **other == *name);
            let found = match is_mount {
                true => Found { kind: Kind::Directory, version: 0, length: 0, modified_ms: 0 },
                false => match look(&root, rule, &listed.path, &name) {
                    Ok(found) => found?,
                    Err(error) => {
                        left_out.named.push((name.into_string(), error.to_string()));
                        return None;
                    }
                },
            };
            Some((name.into_string(), found))
        })
        .collect();
    let directory = source::directory_number(&directory);
    Ok(Page { entries, is_by_key: false, next, directory, left_out })
}

/// Looks what an entry of a directory is, as a look-up of its path would, because a page is noted as
/// look-ups are. `None` if it vanished, leads out of the root or nowhere, or is neither file nor directory.
///
/// # Errors
/// If it is there, and cannot be looked at.
fn look(
    root: &OwnedFd,
    rule: DeviceRule,
    path: &str,
    name: &str,
) -> Result<Option<Found>, StoreError> {
    let whole = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
    check_path(&whole)?;
    match source::find(root, &whole, rule) {
        Ok((_, look)) => Ok(found(&look)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
