//! Under-stores: where blocks come from. One trait, whatever is behind it.
//!
//! Owns the vocabulary: what a store reports of a path, and how it fails. Always holds: a store never
//! reports a blank as filled unless every byte belongs to the version that was asked for. Calls come
//! from the side runtime only; an implementation may wait there, and hands blocking system calls to
//! threads of its own.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millrace_proto::message::Kind;
use millrace_proto::{FileId, Status};
use tokio::sync::Notify;

pub use millrace_proto::source::file_id;

use crate::memory::Blank;
pub use left_out::LeftOut;
pub use write::{Condition, Upload, Written};

mod compared;
pub(crate) mod contents;
mod filtered;
mod kernel_mounts;
mod left_out;
mod listing;
pub(crate) mod local;
pub(crate) mod machine;
pub(crate) mod mounts;
pub(crate) mod roots;
pub(crate) mod threads;
pub(crate) mod write;

/// A future that a store returns.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a store reports of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// File or directory.
    pub kind: Kind,
    /// Version of the content; 0 for a directory.
    pub version: u64,
    /// Length in bytes; 0 for a directory.
    pub length: u64,
    /// Time of the last change in milliseconds since the Unix epoch.
    pub modified_ms: i64,
}

/// One page of a directory.
#[derive(Debug)]
pub struct Page {
    /// Names and what they are, sorted by the bytes of their tokens.
    pub entries: Vec<(String, Found)>,
    /// True if the order is that of an object store's keys: a directory as if a `/` followed its name.
    pub is_by_key: bool,
    /// The last name that was looked at, if more follow it. It need not be among the entries.
    pub next: Option<String>,
    /// Which directory it is, whatever path led to it: two directories of a machine have different numbers. `None`
    /// where no directory can be another one above it, because the source has no symbolic links.
    pub directory: Option<u64>,
    /// Names that are there and are not among the entries.
    pub left_out: LeftOut,
}

impl Page {
    /// Returns what an entry is sorted by, from which a listing goes on after it.
    pub fn token(&self, name: &str, kind: Kind) -> String {
        match kind {
            Kind::Directory if self.is_by_key => format!("{name}/"),
            _ => name.to_owned(),
        }
    }
}

/// A part of a file that is to be read.
#[derive(Clone, Debug)]
pub struct Part {
    /// The file that the path led to when the part was asked for.
    pub file: FileId,
    /// Path of the file.
    pub path: Arc<str>,
    /// Version it has to be of.
    pub version: u64,
    /// Offset in the file in bytes.
    pub offset: u64,
    /// True if it has been left to settle since it was asked for.
    pub is_settled: bool,
}

/// Why a store cannot do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No such path.
    #[error("no such file or directory")]
    NotFound,
    /// The path is something else than the operation needs.
    #[error("{0}")]
    WrongKind(&'static str),
    /// The source refuses, or the path leaves the root.
    #[error("{0}")]
    Denied(&'static str),
    /// The source cannot be used as it is configured.
    #[error("{0}")]
    Unusable(String),
    /// The path is not one that a store can have.
    #[error("{0}")]
    InvalidPath(&'static str),
    /// The file is not in the version that was asked for.
    #[error("the file changed since it was looked up; look it up again")]
    Changed,
    /// The source says that the file is in the version that was asked for, and its bytes differ.
    #[error("the file changed without a trace since it was read; look it up again")]
    Differs,
    /// The file changed so recently that a further change might not show. It has to be left alone for
    /// this long.
    #[error("the file changed a moment ago, and too many such files are waited for: try again")]
    Settling(Duration),
    /// The same, where a further change shows after this long already: then it can be read, if not kept.
    #[error("the file changed a moment ago: try again")]
    NotShowing(Duration),
    /// The bytes were read whole, and a change would have shown, but for one that was under way before. To be kept
    /// the file has to be left alone for this long, and to be read again.
    #[error("the file changed a moment ago: try again")]
    Fresh(Duration),
    /// Another source, or none, is mounted where the file was looked up last.
    #[error("what is mounted has changed since the file was looked up; look it up again")]
    Remounted,
    /// What is mounted is not known yet.
    #[error("the node has not joined its cluster yet: try again")]
    NotYet,
    /// Too much is asked of it at the moment.
    #[error("{0}")]
    Busy(String),
    /// The source of this name has not answered for long.
    #[error("{0} does not answer")]
    Hangs(Arc<str>),
    /// The store failed; it may work later.
    #[error("{0}")]
    Failed(String),
    /// The condition of a write does not hold; nothing was written.
    #[error("{0}")]
    Condition(&'static str),
    /// A write was made or not: the store did not say.
    #[error("it may be written or not, look the path up: {0}")]
    Unknown(String),
}

impl StoreError {
    /// Returns the status that reports this to a client.
    pub(crate) fn status(&self) -> Status {
        match self {
            StoreError::NotFound => Status::NotFound,
            StoreError::WrongKind(_) => Status::WrongKind,
            StoreError::Denied(_) | StoreError::Unusable(_) => Status::PermissionDenied,
            StoreError::InvalidPath(_) => Status::InvalidArgument,
            StoreError::Changed | StoreError::Differs => Status::StaleVersion,
            StoreError::Remounted => Status::UnknownFile,
            StoreError::NotYet
            | StoreError::Settling(_)
            | StoreError::NotShowing(_)
            | StoreError::Fresh(_)
            | StoreError::Busy(_) => Status::Busy,
            StoreError::Hangs(_) | StoreError::Failed(_) => Status::SourceError,
            StoreError::Condition(_) => Status::ConditionFailed,
            StoreError::Unknown(_) => Status::DeadlineExceeded,
        }
    }

    /// True if the version that was asked for is not there (any more).
    pub fn is_version_gone(&self) -> bool {
        matches!(self, StoreError::Changed | StoreError::Differs | StoreError::NotFound)
    }
}

/// Why a block was not brought in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FillError {
    /// The store says so.
    Store(StoreError),
    /// It was to be pulled from a member, which does not have it any more.
    NotThere,
    /// Nothing waited for the block any more when its turn came.
    Unwanted,
    /// Other nodes are asked first, and they give whole blocks: this was to be a part of one.
    IsShared,
}

impl From<StoreError> for FillError {
    fn from(error: StoreError) -> FillError {
        FillError::Store(error)
    }
}

/// What the waiters for a block and the fill that brings it share meanwhile.
#[derive(Debug, Default)]
pub struct Errand {
    is_unwanted: AtomicBool,
    is_urgent: AtomicBool,
    is_hedged: AtomicBool,
    urged: Notify,
    /// When the source began to be read, and when that has taken too long.
    reading: Mutex<Option<(Instant, Instant)>>,
}

impl Errand {
    /// Says whether anything waits for the block.
    pub(crate) fn want(&self, is_wanted: bool) {
        self.is_unwanted.store(!is_wanted, Ordering::Relaxed);
    }

    /// Has the block read from the source at once: another node may wait for what is waited for here.
    pub(crate) fn urge(&self) {
        self.is_urgent.store(true, Ordering::Release);
        self.urged.notify_one();
    }

    /// Waits until the block is to come from the source.
    pub(crate) async fn urged(&self) {
        while !self.is_urgent.load(Ordering::Acquire) {
            self.urged.notified().await;
        }
    }

    /// Notes that the source was asked a second time.
    pub fn hedge(&self) {
        self.is_hedged.store(true, Ordering::Relaxed);
    }

    /// True if the source was asked a second time.
    pub(crate) fn is_hedged(&self) -> bool {
        self.is_hedged.load(Ordering::Relaxed)
    }

    /// Begins to read the source, which may take this long. True if something still waits for it.
    pub fn begin(&self, patience: Duration) -> bool {
        let is_wanted = !self.is_unwanted.load(Ordering::Relaxed);
        if is_wanted {
            let now = Instant::now();
            self.set_reading(Some((now, now + patience)));
        }
        is_wanted
    }

    /// Ends to read the source for a while.
    pub(crate) fn rest(&self) {
        self.set_reading(None);
    }

    /// Returns when the source has been read for longer than it may take, if that has begun.
    pub(crate) fn overdue_at(&self) -> Option<Instant> {
        self.reading().map(|(_, overdue_at)| overdue_at)
    }

    /// Returns when the source began to be read, if it did.
    pub(crate) fn reading_since(&self) -> Option<Instant> {
        self.reading().map(|(since, _)| since)
    }

    fn reading(&self) -> Option<(Instant, Instant)> {
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_reading(&self, times: Option<(Instant, Instant)>) {
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = times;
    }
}

/// Opens sources that are not directories of this machine.
pub trait RemoteStores: Send + Sync + 'static {
    /// Opens the source with this URL, with the credential of this name, or without one with what the node has
    /// for all sources. Nothing is asked of the store yet.
    ///
    /// # Errors
    /// [`StoreError::InvalidPath`] for a URL that names no store here, [`StoreError::Unusable`] for options that
    /// the store does not take, and for a credential that the node does not have.
    fn open(
        &self,
        source: &str,
        credential: Option<&str>,
        limits: StoreLimits,
    ) -> Result<Arc<dyn UnderStore>, StoreError>;
}

/// What one source may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreLimits {
    /// Requests under way at once.
    pub concurrency: usize,
    /// How long one read or look-up may take, with all its retries.
    pub patience: Duration,
    /// Bytes a second that are read at most; None for as many as come.
    pub bandwidth: Option<u64>,
    /// True if a read that takes longer than nearly all before it is asked for a second time.
    pub is_hedged: bool,
}

/// A node without sources on other machines.
#[derive(Debug)]
pub struct NoRemoteStores;

impl RemoteStores for NoRemoteStores {
    fn open(
        &self,
        _: &str,
        _: Option<&str>,
        _: StoreLimits,
    ) -> Result<Arc<dyn UnderStore>, StoreError> {
        Err(StoreError::InvalidPath("this program serves directories alone: file:///DIR"))
    }
}

/// A place that blocks come from.
pub trait UnderStore: Send + Sync + 'static {
    /// Returns the id of a path, the same after a restart and on every node that serves the same source.
    fn identify(&self, path: &str) -> FileId;

    /// True if a part of a block of this path costs less than the whole block.
    fn is_read_in_parts(&self, _path: &str) -> bool {
        false
    }

    /// Looks up what a path is now.
    fn stat(&self, path: Arc<str>) -> StoreFuture<'_, Result<Found, StoreError>>;

    /// Returns for how long what was found at a path is believed; zero to ask at each look-up.
    fn stale_after(&self, _path: &str) -> Duration {
        Duration::ZERO
    }

    /// Returns for how long blocks of a path stay after the first one of its file came in. Zero if they go as soon
    /// as those that wait have them; [`Duration::MAX`] if time plays no part.
    fn kept_for(&self, _path: &str) -> Duration {
        Duration::MAX
    }

    /// True if blocks of a path may lie on disks and outlive the node: their version says what is in them.
    fn is_stored(&self, _path: &str) -> bool {
        true
    }

    /// True if what is written to a path is kept in memory.
    fn caches_writes(&self, _path: &str) -> bool {
        false
    }

    /// Returns up to `limit` entries of a directory whose names come after `after`.
    fn list(
        &self,
        path: Arc<str>,
        after: Arc<str>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Page, StoreError>>;

    /// Fills the blank with this part of the file. The blank comes back either way. A caller that is told that
    /// the file is [`StoreError::Settling`] waits so long and asks again, with `is_settled`. Does not begin
    /// once the errand is [`FillError::Unwanted`].
    fn fill(
        &self,
        part: Part,
        blank: Blank,
        errand: Arc<Errand>,
    ) -> StoreFuture<'_, (Blank, Result<(), FillError>)>;

    /// Compares a filled blank, which came from elsewhere, with what was read of this part before.
    ///
    /// # Errors
    /// [`StoreError::Differs`], [`StoreError::Changed`], and [`StoreError::Remounted`] if the path leads to
    /// another file by now, or to none: it must not be used.
    fn compare(&self, part: &Part, blank: &Blank) -> Result<(), StoreError>;

    /// Begins to write a file.
    ///
    /// # Errors
    /// [`StoreError::Condition`] if the condition does not hold already, and [`StoreError::Denied`] or
    /// [`StoreError::Unusable`] from a store that takes no writes, or none with this condition.
    fn put(
        &self,
        _path: Arc<str>,
        _condition: Condition,
    ) -> StoreFuture<'_, Result<Box<dyn Upload>, StoreError>> {
        Box::pin(async { Err(READ_ONLY) })
    }

    /// Deletes a file.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] if the store may have done it or not. After every other error it has not.
    fn delete(
        &self,
        _path: Arc<str>,
        _condition: Condition,
    ) -> StoreFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Err(READ_ONLY) })
    }

    /// Gives a file another path, or a directory with all that is below it; returns what the new path is by it. A
    /// file at the new path is replaced, unless the condition is [`Condition::Absent`].
    ///
    /// # Errors
    /// [`StoreError::WrongKind`] for a directory that the store cannot move in one step, and if the new path is a
    /// directory; [`StoreError::Unknown`] if the store may have done it, a part of it, or nothing. After every other
    /// error it has not.
    fn rename(
        &self,
        _path: Arc<str>,
        _to: Arc<str>,
        _condition: Condition,
    ) -> StoreFuture<'_, Result<Found, StoreError>> {
        Box::pin(async { Err(READ_ONLY) })
    }
}

/// The answer of a store that takes no writes.
const READ_ONLY: StoreError = StoreError::Denied("this kind of source takes no writes");

/// Checks a path: relative, `/` between parts, no part empty, `.` or `..`. The empty path is the root.
///
/// # Errors
/// [`StoreError::InvalidPath`], [`StoreError::Denied`] for paths that lead out of the root.
pub fn check_path(path: &str) -> Result<(), StoreError> {
    if path.is_empty() {
        return Ok(());
    }
    if path.len() > millrace_proto::message::PATH_LENGTH_MAX {
        return Err(StoreError::InvalidPath("the path is longer than 4096 bytes"));
    }
    if path.starts_with('/') {
        return Err(StoreError::Denied(
            "paths are relative to the served root: leave the leading '/' out",
        ));
    }
    for part in path.split('/') {
        match part {
            "" | "." => return Err(StoreError::InvalidPath("the path has an empty part or a '.'")),
            ".." => return Err(StoreError::Denied("'..' is not allowed in a path")),
            _ if part.contains('\0') => {
                return Err(StoreError::InvalidPath("the path has a zero byte"));
            }
            _ => (),
        }
    }
    Ok(())
}
