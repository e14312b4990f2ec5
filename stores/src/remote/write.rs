//! Writes to a store on another machine: one request for a small object, an upload in parts for a large one.
//!
//! ```text
//!  write ── 8 MiB ──► part 1 ┐
//!        ── 8 MiB ──► part 2 ┴ two under way at once ── finish: the rest, then complete ──► the object
//! ```
//!
//! Always holds: the store shows the object before or the new one, whole; what is given up is aborted at the store,
//! so that no parts of it are kept and paid for. The store itself judges a condition, with the one request that
//! makes the object visible.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use millrace_node::under_store::{Condition, StoreError, StoreFuture, Upload, Written, check_path};
use millrace_proto::message::Kind;
use object_store::path::Path;
use object_store::{
    Error, MultipartUpload, ObjectMeta, ObjectStoreExt as _, PutMode, PutOptions, PutPayload,
    PutResult, UpdateVersion,
};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Inner;
use crate::completion::{Needed, on_condition};
use crate::failure::Failure;
use crate::tag::Tag;

/// Bytes of a part, except of the last one. Guessed: more than the 5 MiB that S3 wants; some stores want all of them
/// alike.
const PART_SIZE: usize = 8 << 20;
/// Parts of an object under way at once.
const PARTS_IN_FLIGHT: usize = 2;
/// Most parts that S3 takes.
const PARTS_MAX: u64 = 10_000;
/// Most bytes of an object that is written on a condition with one request. Guessed: conditions are for the small
/// files by which tables are committed, and more stores judge them at such a request than at the end of parts.
const CONDITIONAL_MAX: u64 = 16 << 20;

/// Why a path cannot be written.
pub(super) const IS_DIRECTORY: StoreError =
    StoreError::WrongKind("a directory is there: name a file");
/// Why a condition does not hold.
const TAKEN: StoreError = StoreError::Condition("the path is taken already");
const OTHER_VERSION: StoreError =
    StoreError::Condition("the object is in another version, or gone: look it up again");

/// An object that is being written.
pub(super) struct RemoteUpload {
    inner: Arc<Inner>,
    handle: Handle,
    path: Arc<str>,
    location: Path,
    condition: Condition,
    /// Bytes of the next part, copied together, because a client may send them one by one.
    buffer: BytesMut,
    /// Bytes that came.
    length: u64,
    /// None as long as one request has room for all.
    multipart: Option<Box<dyn MultipartUpload>>,
    /// The request that begins an upload in parts, while it is under way.
    beginning: Option<JoinHandle<Result<Box<dyn MultipartUpload>, StoreError>>>,
    /// Parts under way.
    parts: VecDeque<JoinHandle<Result<(), StoreError>>>,
}

impl Inner {
    /// Begins to write an object, unless a directory is there.
    pub(super) async fn begin(
        self: &Arc<Self>,
        handle: &Handle,
        path: Arc<str>,
        condition: Condition,
    ) -> Result<RemoteUpload, StoreError> {
        let location = self.target(&path)?;
        let (inner, asked) = (Arc::clone(self), Arc::clone(&path));
        let there = async move { inner.timed(inner.stat(&asked)).await };
        match on(handle, there).await {
            Ok(found) if found.kind == Kind::Directory => return Err(IS_DIRECTORY),
            Ok(_) | Err(StoreError::NotFound) => (),
            Err(error) => return Err(error),
        }
        Ok(RemoteUpload {
            inner: Arc::clone(self),
            handle: handle.clone(),
            path,
            location,
            condition,
            buffer: BytesMut::new(),
            length: 0,
            multipart: None,
            beginning: None,
            parts: VecDeque::new(),
        })
    }

    /// Returns the place of a path that is to be written, if the store is asked now.
    pub(super) fn target(&self, path: &str) -> Result<Path, StoreError> {
        let place = self.place_of(path)?;
        if !self.breaker.admits(Instant::now()) {
            return Err(StoreError::Hangs(Arc::clone(&self.identity)));
        }
        Ok(place)
    }

    /// Returns the place of a path that could be written.
    pub(super) fn place_of(&self, path: &str) -> Result<Path, StoreError> {
        check_path(path)?;
        if self.pages.is_none() {
            return Err(StoreError::Denied(
                "a source over HTTP is only read: mount the store by its own protocol to write to it",
            ));
        }
        if path.is_empty() {
            return Err(IS_DIRECTORY);
        }
        self.location(path)
    }

    /// Deletes an object.
    pub(super) async fn remove(&self, path: &str, condition: Condition) -> Result<(), StoreError> {
        let location = self.target(path)?;
        if self.timed(self.stat(path)).await?.kind == Kind::Directory {
            return Err(IS_DIRECTORY);
        }
        match condition {
            Condition::None => (),
            Condition::Absent => return Err(TAKEN),
            Condition::Version(_) => {
                return Err(StoreError::Denied(
                    "the store deletes whatever version is there: delete without the condition",
                ));
            }
        }
        let deleted = self.commit(self.store.delete(&location)).await;
        self.tags.remove(&self.file(path));
        deleted
    }

    /// Makes the one request by which a change is seen.
    pub(super) async fn commit<T>(
        &self,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        self.commit_within(self.patience, request).await
    }

    /// As [`Inner::commit`], for a request that may take so long.
    pub(super) async fn commit_within<T>(
        &self,
        patience: Duration,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        let Ok(done) = timeout(patience, request).await else {
            self.breaker.note(true);
            return Err(StoreError::Unknown("the store does not answer".to_owned()));
        };
        let failure = match done {
            Ok(done) => {
                self.breaker.note(false);
                return Ok(done);
            }
            Err(Error::AlreadyExists { .. }) => return Err(TAKEN),
            Err(Error::Precondition { .. }) => return Err(OTHER_VERSION),
            Err(error) => Failure::from(error),
        };
        self.breaker.note(failure.is_outage);
        Err(match failure.error {
            error if failure.is_outage => StoreError::Unknown(error.to_string()),
            StoreError::Changed => OTHER_VERSION,
            StoreError::NotFound => StoreError::Failed(
                "the store does not know what it was sent; nothing was written".into(),
            ),
            StoreError::Denied(_) => StoreError::Denied(
                "the store refuses: the node's credentials may not write this; check the policy of the bucket",
            ),
            error => error,
        })
    }

    /// Returns what the store has to compare a condition with.
    async fn mode(&self, location: &Path, condition: Condition) -> Result<PutMode, StoreError> {
        match condition {
            Condition::None => Ok(PutMode::Overwrite),
            Condition::Absent => Ok(PutMode::Create),
            Condition::Version(version) => {
                let looked = async { Ok(self.store.head(location).await?) };
                let meta = match self.timed(looked).await {
                    Err(StoreError::NotFound) => return Err(OTHER_VERSION),
                    looked => looked?,
                };
                let tag = Tag::of(&meta);
                if tag.version() != version {
                    return Err(OTHER_VERSION);
                }
                if tag.etag.is_none() {
                    return Err(StoreError::Denied(
                        "the store has no tags to compare with: write without the condition",
                    ));
                }
                Ok(PutMode::Update(UpdateVersion { e_tag: meta.e_tag, version: meta.version }))
            }
        }
    }

    /// Returns what must be at a place for an upload in parts to become complete; None if anything may be.
    async fn needed(
        &self,
        location: &Path,
        condition: Condition,
    ) -> Result<Option<Needed>, StoreError> {
        match self.mode(location, condition).await? {
            PutMode::Overwrite => Ok(None),
            PutMode::Create => Ok(Some(Needed::Absence)),
            PutMode::Update(UpdateVersion { e_tag: Some(tag), .. }) => Ok(Some(Needed::Tag(tag))),
            PutMode::Update(_) => Err(OTHER_VERSION),
        }
    }

    /// Writes an object in one request; returns what it is then.
    async fn put_whole(
        &self,
        path: &str,
        location: &Path,
        condition: Condition,
        bytes: Bytes,
    ) -> Result<Written, StoreError> {
        let mode = self.mode(location, condition).await?;
        let length = bytes.len() as u64;
        let payload = PutPayload::from(bytes);
        let options = PutOptions { mode, ..Default::default() };
        // Sent again after an answer that means trouble, it could meet what its first try has written.
        let store = if condition == Condition::None { &self.store } else { &self.once };
        let result = self.commit(store.put_opts(location, payload, options)).await?;
        self.written(path, location, length, result).await
    }

    /// Returns what an object is that was just written, in the version that look-ups will say.
    async fn written(
        &self,
        path: &str,
        location: &Path,
        length: u64,
        result: PutResult,
    ) -> Result<Written, StoreError> {
        let own = ObjectMeta {
            location: location.clone(),
            last_modified: SystemTime::now().into(),
            size: length,
            e_tag: result.e_tag,
            version: result.version,
        };
        // A tag that came with the answer to the write itself belongs to this write.
        let is_certain = Tag::of(&own).etag.is_some();
        let looked = async { Ok(self.store.head(location).await?) };
        let unknown =
            || StoreError::Unknown("the store took it, and does not say its tag".to_owned());
        let meta = match self.timed(looked).await {
            // Another writer may have been here since.
            Ok(meta) if own.e_tag.is_none() || Tag::of(&meta).is(&Tag::of(&own)) => meta,
            _ if is_certain => own,
            _ => return Err(unknown()),
        };
        let found = self.found(path, &meta).map_err(|_| unknown())?;
        Ok(Written { found, is_certain })
    }
}

impl RemoteUpload {
    async fn take(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        self.length += bytes.len() as u64;
        let is_conditional = self.condition != Condition::None;
        if is_conditional && self.length > CONDITIONAL_MAX && !self.inner.judges_completion {
            return Err(StoreError::Unusable(format!(
                "at this store an object that is written on a condition has at most {CONDITIONAL_MAX} bytes: \
                 write it without the condition"
            )));
        }
        if self.length > PARTS_MAX * PART_SIZE as u64 {
            let most = PARTS_MAX * PART_SIZE as u64;
            return Err(StoreError::Unusable(format!("an object has at most {most} bytes here")));
        }
        while !bytes.is_empty() {
            let is_one_request = is_conditional && self.multipart.is_none();
            let most = if is_one_request { CONDITIONAL_MAX as usize } else { PART_SIZE };
            if self.buffer.len() >= most {
                self.send_part().await?;
                continue;
            }
            let room = most - self.buffer.len();
            self.buffer.extend_from_slice(&bytes.split_to(bytes.len().min(room)));
        }
        Ok(())
    }

    /// Sends the first of the bytes that were gathered as the next part, once there is room for it.
    async fn send_part(&mut self) -> Result<(), StoreError> {
        if self.multipart.is_none() {
            let (inner, location) = (Arc::clone(&self.inner), self.location.clone());
            let begin = async move {
                let begun = async {
                    Ok(inner.store.put_multipart_opts(&location, Default::default()).await?)
                };
                inner.timed(begun).await
            };
            // A client that goes away meanwhile leaves this to `give_up`.
            let beginning = self.beginning.get_or_insert_with(|| self.handle.spawn(begin));
            let begun = beginning.await;
            self.beginning = None;
            self.multipart = Some(begun.unwrap_or_else(|_| Err(given_up()))?);
        }
        while self.parts.len() >= PARTS_IN_FLIGHT {
            self.take_part().await?;
        }
        let payload = self.buffer.split_to(self.buffer.len().min(PART_SIZE)).freeze();
        let payload = PutPayload::from(payload);
        let Some(multipart) = &mut self.multipart else { return Ok(()) };
        let (part, inner) = (multipart.put_part(payload), Arc::clone(&self.inner));
        let sent = async move { inner.timed(async { Ok(part.await?) }).await };
        self.parts.push_back(self.handle.spawn(sent));
        Ok(())
    }

    /// Waits for the part that was sent first.
    async fn take_part(&mut self) -> Result<(), StoreError> {
        let Some(part) = self.parts.front_mut() else { return Ok(()) };
        // It stays in the list until it has ended, for `give_up`.
        let sent = part.await.unwrap_or_else(|_| Err(given_up()));
        self.parts.pop_front();
        sent
    }

    async fn end(&mut self) -> Result<Written, StoreError> {
        if self.multipart.is_none() {
            let (inner, path) = (Arc::clone(&self.inner), Arc::clone(&self.path));
            let (location, condition) = (self.location.clone(), self.condition);
            let bytes = self.buffer.split().freeze();
            let put = async move { inner.put_whole(&path, &location, condition, bytes).await };
            return on(&self.handle, put).await;
        }
        while !self.buffer.is_empty() {
            self.send_part().await?;
        }
        while !self.parts.is_empty() {
            self.take_part().await?;
        }
        let (inner, location) = (Arc::clone(&self.inner), self.location.clone());
        let condition = self.condition;
        let needed = async move { inner.needed(&location, condition).await };
        let needed = on(&self.handle, needed).await?;
        let Some(mut multipart) = self.multipart.take() else { return Err(given_up()) };
        let inner = Arc::clone(&self.inner);
        let complete = async move {
            let done = match &needed {
                Some(needed) => {
                    inner.commit(on_condition(needed.clone(), multipart.complete())).await
                }
                None => inner.commit(multipart.complete()).await,
            };
            let done = match done {
                // The first try of a request that was sent again may have ended the upload.
                Err(StoreError::Failed(text)) => Err(StoreError::Unknown(text)),
                Err(OTHER_VERSION) if needed == Some(Needed::Absence) => Err(TAKEN),
                done => done,
            };
            (multipart, done)
        };
        let (multipart, done) = on(&self.handle, complete).await;
        let result = match done {
            Ok(result) => result,
            // Aborted it would be gone, if it is not there yet.
            Err(error @ StoreError::Unknown(_)) => return Err(error),
            Err(error) => {
                self.multipart = Some(multipart);
                return Err(error);
            }
        };
        let (inner, path) = (Arc::clone(&self.inner), Arc::clone(&self.path));
        let (location, length) = (self.location.clone(), self.length);
        let look = async move { inner.written(&path, &location, length, result).await };
        on(&self.handle, look).await
    }

    /// Has the store remove its parts, and waits for that.
    fn give_up(&mut self) -> Option<JoinHandle<()>> {
        let (begun, beginning) = (self.multipart.take(), self.beginning.take());
        if begun.is_none() && beginning.is_none() {
            return None;
        }
        let parts = std::mem::take(&mut self.parts);
        let inner = Arc::clone(&self.inner);
        Some(self.handle.spawn(async move {
            let begun = match (begun, beginning) {
                (Some(begun), _) => Some(begun),
                (None, Some(beginning)) => beginning.await.ok().and_then(Result::ok),
                (None, None) => None,
            };
            let Some(mut multipart) = begun else { return };
            for part in &parts {
                part.abort();
            }
            for part in parts {
                // A part that comes after the abort would stay.
                let _ = part.await;
            }
            let aborted = inner.timed(async { Ok(multipart.abort().await?) }).await;
            if let Err(error) = aborted {
                tracing::warn!(
                    "{} keeps parts of an object that was given up, until the bucket's own rule removes \
                     them: {error}",
                    inner.identity
                );
            }
        }))
    }
}

fn given_up() -> StoreError {
    StoreError::Failed("the upload was given up; nothing was written".to_owned())
}

/// Runs a request on the threads of the stores, to its end though it is not waited for.
async fn on<T: Send + 'static>(
    handle: &Handle,
    request: impl Future<Output = T> + Send + 'static,
) -> T {
    match handle.spawn(request).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

impl Drop for RemoteUpload {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl Upload for RemoteUpload {
    fn write(&mut self, bytes: Bytes) -> StoreFuture<'_, Result<(), StoreError>> {
        Box::pin(self.take(bytes))
    }

    fn finish(mut self: Box<Self>) -> StoreFuture<'static, Result<Written, StoreError>> {
        Box::pin(async move {
            let done = self.end().await;
            if let (Err(_), Some(given_up)) = (&done, self.give_up()) {
                let _ = given_up.await;
            }
            done
        })
    }

    fn abort(mut self: Box<Self>) -> StoreFuture<'static, ()> {
        Box::pin(async move {
            if let Some(given_up) = self.give_up() {
                let _ = given_up.await;
            }
        })
    }
}
