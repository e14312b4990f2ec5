//! A store on another machine as the node sees it.
//!
//! Owns which tag each file had when it was looked up last. A node that is asked for a version whose tag it does
//! not have (another node looked it up, or it was forgotten) asks the store, and goes on if the tag there gives
//! that version.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace_node::under_store::{
    Blank, Condition, Errand, FillError, Found, LeftOut, Page, Part, StoreError, StoreFuture,
    StoreLimits, UnderStore, Upload, check_path, file_id,
};
use millrace_proto::FileId;
use millrace_proto::message::Kind;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{ListResult, ObjectMeta, ObjectStore, ObjectStoreExt as _};
use quick_cache::sync::Cache;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::breaker::Breaker;
use crate::failure::Failure;
use crate::gather::{Asked, Line, Waiting};
use crate::hedge::Hedge;
use crate::key::{key, location};
use crate::open::Opening;
use crate::pace::Pace;
use crate::tag::Tag;

mod rename;
mod write;

/// Files whose tags are kept; of a further one the store is asked again. Guessed: some 20 MB.
const TAGS_MAX: usize = 100_000;
/// Most keys that one request lists: S3's own bound.
const KEYS_MAX: usize = 1000;
/// Comes after every other character, so after all that is in a directory.
const LAST: char = char::MAX;

/// A store, or a part of one.
pub(crate) struct Remote {
    inner: Arc<Inner>,
    handle: Handle,
}

/// What the requests to a store share. Look-ups are here, reads in `reads.rs`.
pub(crate) struct Inner {
    /// What the source is called in the cluster.
    pub(crate) identity: Arc<str>,
    pub(crate) store: Arc<dyn ObjectStore>,
    /// The same, for requests that must not be sent twice.
    once: Arc<dyn ObjectStore>,
    pages: Option<Arc<dyn PaginatedListStore>>,
    prefix: String,
    /// True if the store judges a condition when an object in parts becomes complete.
    judges_completion: bool,
    pub(crate) tags: Cache<FileId, Tag>,
    pub(crate) reads: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
    /// Reads that have no place yet.
    pub(crate) line: Line<Waiting>,
    /// None for a store that is read as fast as it goes.
    pub(crate) pace: Option<Pace>,
    /// None for a store that is asked once for each read.
    pub(crate) hedge: Option<Hedge>,
    pub(crate) patience: Duration,
    pub(crate) breaker: Breaker,
    /// False while the store answers reads of parts with whole objects.
    pub(crate) serves_ranges: AtomicBool,
}

impl Remote {
    /// Serves a store under the name that it has in the cluster. Requests run on the threads of `handle`.
    pub(crate) fn new(
        identity: &str,
        Opening { store, once, pages, prefix, judges_completion }: Opening,
        limits: StoreLimits,
        handle: Handle,
    ) -> Remote {
        let inner = Inner {
            identity: identity.into(),
            store,
            once,
            pages,
            prefix,
            judges_completion,
            tags: Cache::new(TAGS_MAX),
            reads: Arc::new(Semaphore::new(limits.concurrency)),
            lookups: Arc::new(Semaphore::new(limits.concurrency)),
            line: Line::default(),
            pace: limits.bandwidth.map(Pace::new),
            hedge: limits.is_hedged.then(Hedge::default),
            patience: limits.patience,
            breaker: Breaker::default(),
            serves_ranges: AtomicBool::new(true),
        };
        Remote { inner: Arc::new(inner), handle }
    }

    /// Runs a request on the threads of the stores.
    fn run<T: Send + 'static>(
        &self,
        request: impl Future<Output = T> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        let mut task = Task(self.handle.spawn(request));
        Box::pin(async move {
            match (&mut task.0).await {
                Ok(done) => done,
                // A blank is part of the arena and has to come back, so that a panic stops the node.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        })
    }
}

/// A request that ends with the future that waits for it. One with a blank is always waited for.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl UnderStore for Remote {
    fn identify(&self, path: &str) -> FileId {
        file_id(&self.inner.identity, path)
    }

    fn is_read_in_parts(&self, _path: &str) -> bool {
        self.inner.serves_ranges.load(Ordering::Relaxed)
    }

    fn stat(&self, path: Arc<str>) -> StoreFuture<'_, Result<Found, StoreError>> {
        let inner = Arc::clone(&self.inner);
        self.run(async move { inner.bounded(inner.stat(&path)).await })
    }

    fn list(
        &self,
        path: Arc<str>,
        after: Arc<str>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Page, StoreError>> {
        let inner = Arc::clone(&self.inner);
        self.run(async move { inner.bounded(inner.list(&path, &after, limit)).await })
    }

    fn fill(
        &self,
        part: Part,
        blank: Blank,
        errand: Arc<Errand>,
    ) -> StoreFuture<'_, (Blank, Result<(), FillError>)> {
        let inner = Arc::clone(&self.inner);
        // It waits from now on, so that those that are asked for in one turn find each other.
        let wait = inner.join(Asked { part, blank, written: 0, errand }, false);
        self.run(async move { inner.fill(wait).await })
    }

    fn compare(&self, _part: &Part, _blank: &Blank) -> Result<(), StoreError> {
        // A tag is the store's own word for a content.
        Ok(())
    }

    fn put(
        &self,
        path: Arc<str>,
        condition: Condition,
    ) -> StoreFuture<'_, Result<Box<dyn Upload>, StoreError>> {
        Box::pin(async move {
            let upload = self.inner.begin(&self.handle, path, condition).await?;
            let upload: Box<dyn Upload> = Box::new(upload);
            Ok(upload)
        })
    }

    fn delete(
        &self,
        path: Arc<str>,
        condition: Condition,
    ) -> StoreFuture<'_, Result<(), StoreError>> {
        let inner = Arc::clone(&self.inner);
        self.run(async move { inner.remove(&path, condition).await })
    }

    fn rename(
        &self,
        path: Arc<str>,
        to: Arc<str>,
        condition: Condition,
    ) -> StoreFuture<'_, Result<Found, StoreError>> {
        let inner = Arc::clone(&self.inner);
        self.run(async move { inner.rename(&path, &to, condition).await })
    }
}

impl Inner {
    /// Waits for a place among the requests under way.
    pub(crate) async fn enter(
        &self,
        places: &Arc<Semaphore>,
    ) -> Result<OwnedSemaphorePermit, StoreError> {
        if !self.breaker.admits(Instant::now()) {
            return Err(StoreError::Hangs(Arc::clone(&self.identity)));
        }
        match timeout(self.patience, Arc::clone(places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(StoreError::Busy(format!(
                "{} has as many requests under way as it may (fill_concurrency, or --concurrency of its mount)",
                self.identity
            ))),
        }
    }

    /// Gives a request its time, and notes whether the store answered.
    async fn timed<T>(
        &self,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, StoreError> {
        let done = timeout(self.patience, request).await.unwrap_or_else(|_| {
            Err(Failure { error: StoreError::Hangs(Arc::clone(&self.identity)), is_outage: true })
        });
        self.breaker.note(done.as_ref().err().is_some_and(|failure| failure.is_outage));
        done.map_err(|failure| failure.error)
    }

    async fn bounded<T>(
        &self,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, StoreError> {
        let _place = self.enter(&self.lookups).await?;
        self.timed(request).await
    }

    /// Returns the id of a path.
    fn file(&self, path: &str) -> FileId {
        file_id(&self.identity, path)
    }

    /// Returns the key of a path.
    fn key(&self, path: &str) -> String {
        key(&self.prefix, path)
    }

    pub(crate) fn location(&self, path: &str) -> Result<Path, StoreError> {
        location(&self.prefix, path)
    }

    /// Notes the tag of a file and says what it is.
    fn found(&self, path: &str, meta: &ObjectMeta) -> Result<Found, Failure> {
        let tag = Tag::of(meta);
        if tag.is_blind() {
            return Err(StoreError::Unusable(format!(
                "{} says neither ETag nor Last-Modified, so no change would be seen: have it say one",
                self.identity
            ))
            .into());
        }
        let (version, length) = (tag.version(), tag.size);
        self.tags.insert(file_id(&self.identity, path), tag);
        let modified_ms = meta.last_modified.timestamp_millis();
        Ok(Found { kind: Kind::File, version, length, modified_ms })
    }

    async fn stat(&self, path: &str) -> Result<Found, Failure> {
        check_path(path)?;
        if !path.is_empty() {
            match self.store.head(&self.location(path)?).await {
                Ok(meta) => return self.found(path, &meta),
                Err(object_store::Error::NotFound { .. }) if self.pages.is_some() => (),
                Err(error) => return Err(error.into()),
            }
        }
        let Some(pages) = &self.pages else { return Ok(directory()) };
        let prefix = below(self.key(path));
        let options = PaginatedListOptions { max_keys: Some(1), ..Default::default() };
        let page = pages.list_paginated(Some(&prefix), options).await;
        let page = page?.result;
        // The root of a bucket is there, though it be empty.
        match path.is_empty() || !page.objects.is_empty() {
            true => Ok(directory()),
            false => Err(StoreError::NotFound.into()),
        }
    }

    /// Lists in the order of the store: names by their bytes, each directory as if a `/` followed its name.
    async fn list(&self, path: &str, after: &str, limit: usize) -> Result<Page, Failure> {
        check_path(path)?;
        let Some(pages) = &self.pages else {
            return Err(StoreError::WrongKind("this source has no listings").into());
        };
        let prefix = below(self.key(path));
        // A directory that was the last one is left behind with all that is in it.
        let end = if after.ends_with('/') { LAST.to_string() } else { String::new() };
        let mut options = PaginatedListOptions {
            offset: (!after.is_empty()).then(|| format!("{prefix}{after}{end}")),
            delimiter: Some("/".into()),
            max_keys: Some(limit.clamp(1, KEYS_MAX)),
            ..Default::default()
        };
        loop {
            let listed = pages.list_paginated(Some(&prefix), options.clone()).await?;
            let entries = self.entries(path, &prefix, &listed.result)?;
            let mut page = Page {
                entries,
                is_by_key: true,
                next: None,
                directory: None,
                left_out: LeftOut::default(),
            };
            let Some(token) = listed.page_token else {
                let is_alone = page.entries.is_empty() && after.is_empty() && !path.is_empty();
                if is_alone && self.stat(path).await?.kind == Kind::File {
                    return Err(StoreError::WrongKind("not a directory").into());
                }
                return Ok(page);
            };
            // A page may hold the object alone that stands for the directory.
            if let Some((name, found)) = page.entries.last() {
                page.next = Some(page.token(name, found.kind));
                return Ok(page);
            }
            options.page_token = Some(token);
        }
    }

    /// Returns the entries of one answer in their order.
    fn entries(
        &self,
        path: &str,
        prefix: &str,
        listed: &ListResult,
    ) -> Result<Vec<(String, Found)>, Failure> {
        let mut entries = BTreeMap::new();
        for meta in &listed.objects {
            // The object that stands for the directory itself has no name in it.
            if let Some(name) = meta.location.as_ref().strip_prefix(prefix) {
                let whole =
                    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
                entries.insert(name.to_owned(), (name.to_owned(), self.found(&whole, meta)?));
            }
        }
        for location in &listed.common_prefixes {
            let name = location.as_ref().strip_prefix(prefix).unwrap_or_default();
            // An object of that name hides it.
            if !name.is_empty() && !entries.contains_key(name) {
                entries.insert(format!("{name}/"), (name.to_owned(), directory()));
            }
        }
        Ok(entries.into_values().collect())
    }
}

/// Returns what all keys in a directory begin with.
fn below(key: String) -> String {
    if key.is_empty() { key } else { format!("{key}/") }
}

fn directory() -> Found {
    Found { kind: Kind::Directory, version: 0, length: 0, modified_ms: 0 }
}
