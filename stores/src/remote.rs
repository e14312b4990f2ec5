//! A store on another machine as the node sees it.
//!
//! Owns which tag each file had when it was looked up last. A node that is asked for a version whose tag it does
//! not have (another node looked it up, or it was forgotten) asks the store, and goes on if the tag there gives
//! that version.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use millrace_node::under_store::{
    Blank, Errand, FillError, Found, Page, Part, StoreError, StoreFuture, StoreLimits, UnderStore,
    check_path, file_id,
};
use millrace_proto::FileId;
use millrace_proto::message::Kind;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _};
use quick_cache::sync::Cache;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::breaker::Breaker;
use crate::failure::{failure, is_outage};
use crate::open::Opening;
use crate::tag::Tag;

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

struct Inner {
    /// What the source is called in the cluster.
    identity: Arc<str>,
    store: Arc<dyn ObjectStore>,
    pages: Option<Arc<dyn PaginatedListStore>>,
    prefix: String,
    tags: Cache<FileId, Tag>,
    /// For reads and look-ups together.
    places: Semaphore,
    patience: Duration,
    breaker: Breaker,
}

impl Remote {
    /// Serves a store under the name that it has in the cluster. Requests run on the threads of `handle`.
    pub(crate) fn new(
        identity: &str,
        Opening { store, pages, prefix }: Opening,
        limits: StoreLimits,
        handle: Handle,
    ) -> Remote {
        let inner = Inner {
            identity: identity.into(),
            store,
            pages,
            prefix,
            tags: Cache::new(TAGS_MAX),
            places: Semaphore::new(limits.concurrency),
            patience: limits.patience,
            breaker: Breaker::default(),
        };
        Remote { inner: Arc::new(inner), handle }
    }

    /// Runs a request on the threads of the stores.
    fn run<T: Send + 'static>(
        &self,
        request: impl Future<Output = T> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        let task = self.handle.spawn(request);
        Box::pin(async move {
            match task.await {
                Ok(done) => done,
                // A blank is part of the arena and has to come back, so that a panic stops the node.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        })
    }
}

impl UnderStore for Remote {
    fn identify(&self, path: &str) -> FileId {
        file_id(&self.inner.identity, path)
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
        mut blank: Blank,
        errand: Arc<Errand>,
    ) -> StoreFuture<'_, (Blank, Result<(), FillError>)> {
        let inner = Arc::clone(&self.inner);
        self.run(async move {
            let result = inner.fill(&part, &mut blank, &errand).await;
            (blank, result)
        })
    }

    fn compare(&self, _part: &Part, _blank: &Blank) -> Result<(), StoreError> {
        // A tag is the store's own word for a content.
        Ok(())
    }
}

impl Inner {
    /// Waits for a place among the requests under way.
    async fn enter(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        if !self.breaker.admits(Instant::now()) {
            return Err(StoreError::Hangs(Arc::clone(&self.identity)));
        }
        match timeout(self.patience, self.places.acquire()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(StoreError::Busy(format!(
                "{} has as many requests under way as it may (fill_concurrency)",
                self.identity
            ))),
        }
    }

    /// Gives a request its time, and notes whether the store answered.
    async fn timed<T>(
        &self,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let done = timeout(self.patience, request).await;
        let done = done.unwrap_or_else(|_| Err(StoreError::Hangs(Arc::clone(&self.identity))));
        self.breaker.note(done.as_ref().err().is_some_and(is_outage));
        done
    }

    async fn bounded<T>(
        &self,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let _place = self.enter().await?;
        self.timed(request).await
    }

    /// Returns the key of a path.
    fn key(&self, path: &str) -> String {
        match (self.prefix.as_str(), path) {
            (prefix, "") => prefix.to_owned(),
            ("", path) => path.to_owned(),
            (prefix, path) => format!("{prefix}/{path}"),
        }
    }

    fn location(&self, path: &str) -> Result<Path, StoreError> {
        let invalid =
            |_| StoreError::InvalidPath("a part of the path is one that stores do not take");
        Path::parse(self.key(path)).map_err(invalid)
    }

    /// Notes the tag of a file and says what it is.
    fn found(&self, path: &str, meta: &ObjectMeta) -> Found {
        let tag = Tag::of(meta);
        let (version, length) = (tag.version(), tag.size);
        self.tags.insert(file_id(&self.identity, path), tag);
        let modified_ms = meta.last_modified.timestamp_millis();
        Found { kind: Kind::File, version, length, modified_ms }
    }

    async fn stat(&self, path: &str) -> Result<Found, StoreError> {
        check_path(path)?;
        if !path.is_empty() {
            match self.store.head(&self.location(path)?).await {
                Ok(meta) => return Ok(self.found(path, &meta)),
                Err(object_store::Error::NotFound { .. }) if self.pages.is_some() => (),
                Err(error) => return Err(failure(&error)),
            }
        }
        let Some(pages) = &self.pages else { return Ok(directory()) };
        let prefix = below(self.key(path));
        let options = PaginatedListOptions { max_keys: Some(1), ..Default::default() };
        let page = pages.list_paginated(Some(&prefix), options).await;
        let page = page.map_err(|error| failure(&error))?.result;
        // The root of a bucket is there, though it be empty.
        match path.is_empty() || !page.objects.is_empty() {
            true => Ok(directory()),
            false => Err(StoreError::NotFound),
        }
    }

    /// Lists in the order of the store: names by their bytes, each directory as if a `/` followed its name.
    async fn list(&self, path: &str, after: &str, limit: usize) -> Result<Page, StoreError> {
        check_path(path)?;
        let Some(pages) = &self.pages else {
            return Err(StoreError::WrongKind("this source has no listings"));
        };
        let prefix = below(self.key(path));
        // A directory that was the last one is left behind with all that is in it.
        let end = if after.ends_with('/') { LAST.to_string() } else { String::new() };
        let options = PaginatedListOptions {
            offset: (!after.is_empty()).then(|| format!("{prefix}{after}{end}")),
            delimiter: Some("/".into()),
            max_keys: Some(limit.clamp(1, KEYS_MAX)),
            ..Default::default()
        };
        let listed = pages.list_paginated(Some(&prefix), options).await;
        let listed = listed.map_err(|error| failure(&error))?;
        let mut entries: Vec<(String, Found)> = Vec::new();
        for meta in &listed.result.objects {
            // The object that stands for the directory itself has no name in it.
            if let Some(name) = meta.location.as_ref().strip_prefix(&prefix) {
                let whole =
                    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
                entries.push((name.to_owned(), self.found(&whole, meta)));
            }
        }
        for location in &listed.result.common_prefixes {
            let name = location.as_ref().strip_prefix(&prefix).unwrap_or_default();
            // An object of that name hides it.
            if !name.is_empty() && !entries.iter().any(|(other, _)| other == name) {
                entries.push((name.to_owned(), directory()));
            }
        }
        entries.sort_by_cached_key(|(name, found)| in_order(name, found));
        if entries.is_empty() && after.is_empty() && listed.page_token.is_none() && !path.is_empty()
        {
            return Err(match self.stat(path).await?.kind {
                Kind::File => StoreError::WrongKind("not a directory"),
                Kind::Directory => return Ok(Page { entries, next: None }),
            });
        }
        let last = entries.last().map(|(name, found)| in_order(name, found));
        let next = listed.page_token.and(last);
        Ok(Page { entries, next })
    }

    async fn fill(&self, part: &Part, blank: &mut Blank, errand: &Errand) -> Result<(), FillError> {
        let _place = self.enter().await?;
        if !errand.begin(self.patience) {
            return Err(FillError::Unwanted);
        }
        Ok(self.timed(self.read(part, blank)).await?)
    }

    /// Finds the tag of the version that a part is of.
    async fn tag(&self, part: &Part, location: &Path) -> Result<Tag, StoreError> {
        let known = self.tags.get(&part.file).filter(|tag| tag.version() == part.version);
        if let Some(tag) = known {
            return Ok(tag);
        }
        let meta = self.store.head(location).await.map_err(|error| failure(&error))?;
        let tag = Tag::of(&meta);
        self.tags.insert(part.file, tag.clone());
        if tag.version() == part.version { Ok(tag) } else { Err(StoreError::Changed) }
    }

    async fn read(&self, part: &Part, blank: &mut Blank) -> Result<(), StoreError> {
        check_path(&part.path)?;
        let location = self.location(&part.path)?;
        let tag = self.tag(part, &location).await?;
        let end = part.offset + u64::from(blank.length());
        if end > tag.size {
            return Err(StoreError::Changed);
        }
        // An origin that does not serve ranges serves whole objects.
        let is_whole = part.offset == 0 && end == tag.size;
        let range = (!is_whole).then_some(GetRange::Bounded(part.offset..end));
        let options = GetOptions { if_match: tag.etag.clone(), range, ..Default::default() };
        let answer = self.store.get_opts(&location, options).await;
        let answer = answer.map_err(|error| self.judged(part, failure(&error)))?;
        if !Tag::of(&answer.meta).is(&tag) {
            return Err(self.judged(part, StoreError::Changed));
        }
        let mut stream = answer.into_stream();
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(|error| self.judged(part, failure(&error)))?;
            if !blank.write(&bytes).is_empty() {
                return Err(StoreError::Failed("the store sent more than it was asked for".into()));
            }
        }
        if !blank.is_full() {
            return Err(StoreError::Failed("the store sent less than it was asked for".into()));
        }
        if tag.etag.is_none() {
            // Nothing tied the bytes to the look-up: they count if it would say the same now.
            let meta = self.store.head(&location).await.map_err(|error| failure(&error))?;
            if !Tag::of(&meta).is(&tag) {
                return Err(self.judged(part, StoreError::Changed));
            }
        }
        Ok(())
    }

    /// Forgets the tag of a file whose content is another one by now.
    fn judged(&self, part: &Part, error: StoreError) -> StoreError {
        if error.is_version_gone() {
            self.tags.remove(&part.file);
        }
        error
    }
}

/// Returns what all keys in a directory begin with.
fn below(key: String) -> String {
    if key.is_empty() { key } else { format!("{key}/") }
}

/// Returns an entry by the key that it has in the store.
fn in_order(name: &str, found: &Found) -> String {
    match found.kind {
        Kind::File => name.to_owned(),
        Kind::Directory => format!("{name}/"),
    }
}

fn directory() -> Found {
    Found { kind: Kind::Directory, version: 0, length: 0, modified_ms: 0 }
}
