//! Under-stores: where blocks come from. One trait, whatever is behind it.
//!
//! Owns the vocabulary: what a store tells of a path, and how it fails. Always holds: a store never
//! reports a blank as filled unless every byte belongs to the version that was asked for.
//! Calls come from the side runtime only; an implementation may wait there, and hands blocking system
//! calls to its thread pool.

use std::pin::Pin;
use std::sync::Arc;

use millrace_proto::message::Kind;
use millrace_proto::{FileId, Status};

pub(crate) use millrace_proto::source::file_id;

use crate::memory::Blank;

pub(crate) mod local;
pub(crate) mod mounts;

/// A future that a store returns.
pub(crate) type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a store tells of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
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
pub(crate) struct Page {
    /// Names and what they are, sorted by the bytes of the names.
    pub entries: Vec<(String, Found)>,
    /// The last name that was looked at, if more follow it. It need not be among the entries.
    pub next: Option<String>,
}

/// Why a store cannot do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// No such path.
    #[error("no such file or directory")]
    NotFound,
    /// The path is something else than the operation needs.
    #[error("{0}")]
    WrongKind(&'static str),
    /// The source refuses, or the path leaves the root.
    #[error("{0}")]
    Denied(&'static str),
    /// The path is not one that a store can have.
    #[error("{0}")]
    InvalidPath(&'static str),
    /// The file is not in the version that was asked for.
    #[error("the file changed since it was looked up; look it up again")]
    Changed,
    /// Something else, or nothing, is mounted where the file was looked up last.
    #[error("what is mounted has changed since the file was looked up; look it up again")]
    Remounted,
    /// The node that was said to have it does not.
    #[error("the node that had it has it no more")]
    NotCached,
    /// What is mounted is not known yet.
    #[error("the node has not joined its cluster yet: try again")]
    NotYet,
    /// The store failed; it may work later.
    #[error("{0}")]
    Failed(String),
}

impl StoreError {
    /// The status that tells a client.
    pub(crate) fn status(&self) -> Status {
        match self {
            StoreError::NotFound => Status::NotFound,
            StoreError::WrongKind(_) => Status::WrongKind,
            StoreError::Denied(_) => Status::PermissionDenied,
            StoreError::InvalidPath(_) => Status::InvalidArgument,
            StoreError::Changed => Status::StaleVersion,
            StoreError::Remounted => Status::UnknownFile,
            StoreError::NotCached => Status::NotCached,
            StoreError::NotYet => Status::Busy,
            StoreError::Failed(_) => Status::SourceError,
        }
    }
}

/// A place that blocks come from.
pub(crate) trait UnderStore: Send + Sync + 'static {
    /// The id of a path, the same after a restart and on every node that serves the same source.
    fn identify(&self, path: &str) -> FileId;

    /// What a path is now.
    fn stat(&self, path: Arc<str>) -> StoreFuture<'_, Result<Found, StoreError>>;

    /// Up to `limit` entries of a directory whose names come after `after`.
    fn list(
        &self,
        path: Arc<str>,
        after: Arc<str>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Page, StoreError>>;

    /// Fills the blank with the bytes from `offset` of this version of the file. The blank comes back
    /// either way.
    fn fill(
        &self,
        path: Arc<str>,
        version: u64,
        offset: u64,
        blank: Blank,
    ) -> StoreFuture<'_, (Blank, Result<(), StoreError>)>;
}

/// Judges a path: relative, `/` between parts, no part empty, `.` or `..`. The empty path is the root.
///
/// # Errors
/// [`StoreError::InvalidPath`], [`StoreError::Denied`] for paths that lead out of the root.
pub(crate) fn check_path(path: &str) -> Result<(), StoreError> {
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
