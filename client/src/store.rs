//! Reading a file from its source, when no member of a cluster answers and the source is a directory
//! of this machine.
//!
//! Nodes say which directory that is, but the client does not believe them. Always holds: nothing is
//! opened outside of the directories that the client's own configuration names, nor outside of the
//! source. A file is read from the source it was looked up in. Bytes count only if the file had the
//! version that was asked for before they were read and after. A source that hangs holds a bounded
//! number of threads.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use millrace_proto::cluster::mount_of;
use millrace_proto::source::file_id;
use millrace_proto::terms::bare;
use millrace_proto::{Status, message};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::client::Client;
use crate::connection::Landed;
use crate::error::Error;
use crate::failover::Rescue;
use crate::file::{File, FileId, Kind};
use crate::piece::Piece;
use crate::reply;
use crate::source::{self, DeviceRule, Look};

/// A path below a source, which is a directory of this machine.
struct Spot {
    /// What the source is called.
    source: String,
    /// The directory of the client's configuration that the source lies below.
    root: PathBuf,
    /// The source, below the root.
    directory: PathBuf,
    /// The file, below the source.
    path: String,
}

impl Client {
    /// Returns how many reads the source itself answered because no member of the cluster did; see
    /// [`ClientConfig::fallback_roots`](crate::ClientConfig::fallback_roots).
    pub fn fallback_count(&self) -> u64 {
        self.fallbacks().load(Ordering::Relaxed)
    }

    /// Returns where the source of a path is on this machine, if it may be used.
    fn spot(&self, path: &str) -> Option<Spot> {
        let roots = &self.config().fallback_roots;
        if roots.is_empty() {
            return None;
        }
        let topology = self.topology();
        let view = topology.cluster.as_ref()?;
        let (index, below) = mount_of(&view.layout.mounts, path)?;
        let source = bare(&view.layout.mounts[index].source);
        let (root, directory) = root_of(roots, Path::new(source.strip_prefix("file://")?))?;
        Some(Spot { source: source.to_owned(), root, directory, path: below.to_owned() })
    }

    /// Runs work that may hang on a thread of its own, and not too many at once. None if it cannot be
    /// run.
    async fn at_source<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let permit = self.fallback_permits().acquire_owned().await.ok()?;
        let done = tokio::task::spawn_blocking(move || {
            // The permit is given back when the work is done, whether a caller still waits for it or
            // not.
            let _permit = permit;
            work()
        });
        done.await.ok()
    }

    /// Reads a piece from the source; None if that cannot be.
    pub(crate) fn read_source<'a>(&'a self, file: &'a File, piece: Piece) -> Rescue<'a, Landed> {
        Box::pin(async move {
            let spot = self.spot(&file.path)?;
            if FileId::from(file_id(&spot.source, &spot.path)) != file.id {
                // Another source is mounted there by now.
                return Some(Err(reply::stale(&file.path)));
            }
            let version = file.version;
            match self.at_source(move || read(&spot, version, piece)).await? {
                Ok(Some(bytes)) => {
                    self.fallbacks().fetch_add(1, Ordering::Relaxed);
                    Some(Ok(Landed::Buffer(bytes)))
                }
                Ok(None) => Some(Err(reply::stale(&file.path))),
                // The source cannot be had here.
                Err(_) => None,
            }
        })
    }

    /// Looks a path up in the source; None if that cannot be.
    pub(crate) fn stat_source(&self, path: Arc<str>) -> Rescue<'_, File> {
        Box::pin(async move {
            let spot = self.spot(&path)?;
            let block_size = self.network().hello().block_size;
            let found = match self.at_source(move || stat(&spot, path, block_size)).await? {
                Ok(found) => found,
                // If the source is not mounted here, there is nothing in its place.
                Err(_) => return None,
            };
            self.fallbacks().fetch_add(1, Ordering::Relaxed);
            Some(found)
        })
    }
}

/// Returns the root that a directory lies below, the nearest one of several, and the path from there to
/// it.
fn root_of(roots: &[PathBuf], directory: &Path) -> Option<(PathBuf, PathBuf)> {
    let below = roots.iter().filter_map(|root| Some((root, directory.strip_prefix(root).ok()?)));
    let is_plain = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    let (root, path) = below
        .filter(|(_, path)| is_plain(path))
        .min_by_key(|(_, path)| path.components().count())?;
    Some((root.clone(), path.to_owned()))
}

/// Opens the source of a spot, which may not leave the root, if the path below it is one that may be.
fn open(spot: &Spot) -> io::Result<OwnedFd> {
    let is_whole = |part: &str| !part.is_empty() && part != "." && part != "..";
    if !spot.path.is_empty() && !spot.path.split('/').all(is_whole) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let root = source::open_root(&spot.root)?;
    Ok(source::open_beneath(root, &spot.directory, OFlags::PATH | OFlags::DIRECTORY)?)
}

/// Looks a path up.
///
/// # Errors The error of the system. The inner result is what a node would answer.
fn stat(spot: &Spot, path: Arc<str>, block_size: u32) -> io::Result<Result<File, Error>> {
    let (_, look) = source::find(open(spot)?, &spot.path, DeviceRule::ByType)?;
    let Look { kind, version, length, modified_ms, .. } = look;
    let Some(kind) = kind else {
        let message = format!("'{path}' is neither a file nor a directory");
        return Ok(Err(Error::Status { status: Status::WrongKind, message }));
    };
    let kind = kind.into();
    let id = match kind {
        Kind::File => file_id(&spot.source, &spot.path).into(),
        Kind::Directory => FileId(0),
    };
    Ok(Ok(File { path, id, version, length, block_size, kind, modified_ms }))
}

/// Reads a piece of a version of a file; None if the file has another version.
fn read(spot: &Spot, version: u64, piece: Piece) -> io::Result<Option<BytesMut>> {
    let root = open(spot)?;
    let (place, found) = source::find(&root, &spot.path, DeviceRule::ByType)?;
    let is_wanted = |look: &Look| look.kind == Some(message::Kind::File) && look.version == version;
    if !is_wanted(&found) {
        return Ok(None);
    }
    if !found.settle.is_zero() {
        std::thread::sleep(found.settle);
        if !is_wanted(&source::look(&place, DeviceRule::ByType)?) {
            return Ok(None);
        }
    }
    let file = source::open_to_read(&root, &spot.path, (&place, &found))?;
    let length = piece.length as usize;
    let mut bytes = BytesMut::zeroed(length);
    let mut position = 0;
    while position < length {
        match rustix::io::pread(&file, &mut bytes[position..], piece.offset + position as u64) {
            Ok(0) => break,
            Ok(count) => position += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    // A file that shrank ends early: that is a change.
    let is_unchanged = is_wanted(&source::look(&place, DeviceRule::ByType)?);
    Ok((is_unchanged && position == length).then_some(bytes))
}
