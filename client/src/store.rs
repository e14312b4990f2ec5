//! Reading a file from its source, when no member of a cluster answers and the source is a directory
//! of this machine.
//!
//! Always holds: nothing outside of the directory is opened; bytes count only if the file had the
//! version that was asked for before they were read and after.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use millrace_proto::cluster::mount_of;
use millrace_proto::message::Kind;
use millrace_proto::source::{LocalStat, SETTLE, file_id, local_version};
use millrace_proto::{FileId, Status};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::client::Client;
use crate::connection::Landed;
use crate::error::Error;
use crate::failover::Rescue;
use crate::file::File;
use crate::read::Piece;
use crate::reply;

/// `openat2` answers EAGAIN when something was renamed meanwhile; so often it is asked again.
const OPEN_TRIES: usize = 16;

/// A directory of this machine, and a path below it.
struct Spot {
    /// What the source is called.
    source: String,
    directory: PathBuf,
    path: String,
}

impl Client {
    /// Reads that no member of the cluster answered, and that were answered by the source itself; see
    /// [`ClientConfig::store_fallback`](crate::ClientConfig::store_fallback).
    pub fn fallback_count(&self) -> u64 {
        self.fallbacks().load(Ordering::Relaxed)
    }

    /// Where the source of a path is on this machine, if it may be used.
    fn spot(&self, path: &str) -> Option<Spot> {
        if !self.config().store_fallback {
            return None;
        }
        let topology = self.topology();
        let view = topology.cluster.as_ref()?;
        let (index, below) = mount_of(&view.mounts, path)?;
        let source = &view.mounts[index].source;
        let directory = PathBuf::from(source.strip_prefix("file://")?);
        Some(Spot { source: source.clone(), directory, path: below.to_owned() })
    }

    /// Reads a piece from the source; None if that cannot be.
    pub(crate) fn read_source<'a>(&'a self, file: &'a File, piece: Piece) -> Rescue<'a, Landed> {
        Box::pin(async move {
            let spot = self.spot(&file.path)?;
            let version = file.version;
            let read = tokio::task::spawn_blocking(move || read(&spot, version, piece));
            match read.await.ok()? {
                Ok(Some(bytes)) => {
                    self.fallbacks().fetch_add(1, Ordering::Relaxed);
                    Some(Ok(Landed::Buffer(bytes)))
                }
                Ok(None) => Some(Err(reply::stale(&file.path))),
                // The source is not to be had here.
                Err(_) => None,
            }
        })
    }

    /// Looks a path up in the source; None if that cannot be.
    pub(crate) fn stat_source(&self, path: Arc<str>) -> Rescue<'_, File> {
        Box::pin(async move {
            let spot = self.spot(&path)?;
            let block_size = self.network().hello().block_size;
            let found = tokio::task::spawn_blocking(move || stat(&spot, path, block_size));
            let found = match found.await.ok()? {
                Ok(found) => found,
                // Should the source not be mounted here, there is nothing in its place.
                Err(_) => return None,
            };
            self.fallbacks().fetch_add(1, Ordering::Relaxed);
            Some(found)
        })
    }
}

/// Opens a path that may not leave the directory.
fn open(spot: &Spot, flags: OFlags) -> io::Result<OwnedFd> {
    let is_whole = |part: &str| !part.is_empty() && part != "." && part != "..";
    if !spot.path.is_empty() && !spot.path.split('/').all(is_whole) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let root_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&spot.directory, root_flags, Mode::empty())?;
    let path = if spot.path.is_empty() { "." } else { &spot.path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut result = Err(Errno::AGAIN);
    for _ in 0..OPEN_TRIES {
        result = rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
        if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    Ok(result?)
}

fn version_of(stat: &Stat) -> u64 {
    local_version(&LocalStat {
        inode: stat.st_ino,
        size: stat.st_size as u64,
        modified_s: stat.st_mtime as u64,
        modified_ns: stat.st_mtime_nsec,
        changed_s: stat.st_ctime as u64,
        changed_ns: stat.st_ctime_nsec,
    })
}

/// Looks a path up.
///
/// # Errors
/// What the system says; inside it is what a node would answer.
fn stat(spot: &Spot, path: Arc<str>, block_size: u32) -> io::Result<Result<File, Error>> {
    let stat = rustix::fs::fstat(open(spot, OFlags::PATH)?)?;
    let modified_ms =
        stat.st_mtime.saturating_mul(1000).saturating_add(stat.st_mtime_nsec as i64 / 1_000_000);
    let (kind, id, version, length) = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let length = u64::try_from(stat.st_size).unwrap_or(0);
            (Kind::File, file_id(&spot.source, &spot.path), version_of(&stat), length)
        }
        FileType::Directory => (Kind::Directory, FileId(0), 0, 0),
        _ => {
            let message = format!("'{path}' is neither a file nor a directory");
            return Ok(Err(Error::Status { status: Status::WrongKind, message }));
        }
    };
    Ok(Ok(File { path, id, version, length, block_size, kind, modified_ms }))
}

/// Reads a piece of a version of a file; None if the file has another version.
fn read(spot: &Spot, version: u64, piece: Piece) -> io::Result<Option<BytesMut>> {
    // NONBLOCK: a FIFO that took the file's place must not hang the thread.
    let file = open(spot, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
    let check = || -> io::Result<Option<Stat>> {
        let stat = rustix::fs::fstat(&file)?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok((is_file && version_of(&stat) == version).then_some(stat))
    };
    let Some(stat) = check()? else { return Ok(None) };
    let settle = settle_time(&stat);
    if !settle.is_zero() {
        std::thread::sleep(settle);
        if check()?.is_none() {
            return Ok(None);
        }
    }
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
    Ok((check()?.is_some() && position == length).then_some(bytes))
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
