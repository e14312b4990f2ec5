//! `CachedStore`: a cache around a store that a program has already.
//!
//! Always holds: an object is read in the version that the store itself named last, from the cache only
//! where that has the very same one; writes, listings, heads and conditions go to the store, with the
//! program's own credentials. Without any node a program works as it did before.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use millrace_client::ClientConfig;
use millrace_proto::version;

use super::api::path::Path;
use super::api::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    OBJECT_STORE_COALESCE_DEFAULT, ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result, coalesce_ranges,
};
use super::{failure, results};
use crate::known::{BELIEVED_FOR, Known};
use crate::mounted::{CacheCounts, Mounted};

/// Bytes of a piece of a long read. Derived: four blocks of the default size.
const PIECE: u64 = 4 << 20;
/// Looks at an object that changes, before one read of the store decides, or its change is the answer. Guessed.
const LOOKS_MAX: u32 = 3;
/// Pieces of one object that are read ahead. Guessed.
const PIECES_AHEAD: usize = 2;

/// A store whose objects are read through a cache where that has them.
#[derive(Clone)]
pub struct CachedStore {
    inner: Arc<dyn ObjectStore>,
    mounted: Arc<Mounted>,
    heads: Arc<Known<ObjectMeta>>,
}

impl CachedStore {
    /// Puts the nodes at an address, as `Client::connect` takes it, around a store that they have mounted at
    /// a path. The nodes are connected to at the first read, and need not be there.
    pub fn new(inner: Arc<dyn ObjectStore>, address: &str, mount: &str) -> CachedStore {
        CachedStore::with_config(inner, address, mount, ClientConfig::new())
    }

    /// As [`CachedStore::new`], with other settings of the client.
    pub fn with_config(
        inner: Arc<dyn ObjectStore>,
        address: &str,
        mount: &str,
        config: ClientConfig,
    ) -> CachedStore {
        let parts = vec![(String::new(), mount.to_owned())];
        CachedStore::of_parts(inner, address, parts, config)
    }

    /// As [`CachedStore::with_config`], for a store of which nodes have mounted parts: of each a prefix of its
    /// keys, and the path of the mount. The longest prefix of a key counts; what has none is read from the store.
    pub fn of_parts(
        inner: Arc<dyn ObjectStore>,
        address: &str,
        parts: Vec<(String, String)>,
        config: ClientConfig,
    ) -> CachedStore {
        let mounted = Arc::new(Mounted::new(address.to_owned(), config, parts));
        CachedStore { inner, mounted, heads: Arc::new(Known::new(BELIEVED_FOR)) }
    }

    /// Returns this store with another time that nodes have for a read before the store is asked. Default 5 s.
    /// Call it before the store is cloned: it begins with fresh connections and counts.
    pub fn with_patience(self, patience: Duration) -> CachedStore {
        let mounted = Arc::new(self.mounted.with_patience(patience));
        CachedStore { mounted, ..self }
    }

    /// Returns this store with another time for which reads believe what the store said of an object last.
    /// Default 1 s; with zero each read asks the store for the object's head first.
    pub fn with_believed_for(self, time: Duration) -> CachedStore {
        CachedStore { heads: Arc::new(Known::new(time)), ..self }
    }

    /// Returns what was read so far, and where.
    pub fn counts(&self) -> CacheCounts {
        self.mounted.counts()
    }

    /// Returns what the store says of an object, or said a moment ago.
    async fn head_of(&self, location: &Path) -> Result<ObjectMeta> {
        if let Some(meta) = self.heads.get(location.as_ref()) {
            return Ok(meta);
        }
        let began = Instant::now();
        let meta = self.inner.head(location).await?;
        self.heads.note(location.as_ref(), began, meta.clone());
        Ok(meta)
    }

    /// Reads ranges of one version from the cache.
    async fn read(&self, meta: &ObjectMeta, ranges: &[Range<u64>]) -> Option<Vec<Bytes>> {
        self.mounted.read(meta.location.as_ref(), version_of(meta), ranges).await
    }

    /// Reads a range of one version, from the cache or the store.
    async fn piece(&self, meta: &ObjectMeta, range: Range<u64>) -> Result<Bytes> {
        if let Some(bytes) = self.read(meta, std::slice::from_ref(&range)).await
            && let [bytes] = &bytes[..]
        {
            return Ok(bytes.clone());
        }
        self.piece_of_store(meta, range).await
    }

    /// Reads a range of one version from the store.
    ///
    /// # Errors
    /// `Precondition` if the store has another version by now.
    async fn piece_of_store(&self, meta: &ObjectMeta, range: Range<u64>) -> Result<Bytes> {
        let options = GetOptions {
            range: Some(range.into()),
            // A weak tag matches nothing here (RFC 9110, section 13.1.1).
            if_match: version::strong_tag(meta.e_tag.as_deref()),
            ..GetOptions::default()
        };
        let result = self.inner.get_opts(&meta.location, options).await?;
        if version_of(&result.meta) != version_of(meta) {
            let path = meta.location.to_string();
            return Err(Error::Precondition { path, source: "it has changed meanwhile".into() });
        }
        result.bytes().await
    }

    /// Reads all or a part of an object.
    async fn get(&self, meta: ObjectMeta, options: &GetOptions) -> Result<GetResult> {
        let range = match &options.range {
            Some(range) => range
                .as_range(meta.size)
                .map_err(|error| failure::refused(format!("'{}': {error}", meta.location)))?,
            None => 0..meta.size,
        };
        if range.is_empty() {
            let payload = GetResultPayload::Stream(stream::empty().boxed());
            return Ok(results::got(payload, meta, range));
        }
        let first_end = range.end.min(range.start - range.start % PIECE + PIECE);
        let first = self.piece(&meta, range.start..first_end).await?;
        let (store, its, end) = (self.clone(), meta.clone(), range.end);
        let rest = stream::iter((first_end..end).step_by(PIECE as usize)).map(move |start| {
            let (store, meta) = (store.clone(), its.clone());
            async move { store.piece(&meta, start..end.min(start + PIECE)).await }
        });
        let bytes = stream::iter([Ok(first)]).chain(rest.buffered(PIECES_AHEAD)).boxed();
        Ok(results::got(GetResultPayload::Stream(bytes), meta, range))
    }

    /// Notes what a listing says of an object.
    fn note(&self, began: Instant, meta: &ObjectMeta) {
        self.heads.note(meta.location.as_ref(), began, meta.clone());
    }

    fn forget(&self, location: &Path) {
        self.heads.forget(location.as_ref());
    }
}

/// Returns the version that nodes give to what the store says of an object.
fn version_of(meta: &ObjectMeta) -> u64 {
    version::of_object(meta.e_tag.as_deref(), meta.size, meta.last_modified.timestamp())
}

/// True if any version will do, and the bytes are wanted.
fn is_plain(options: &GetOptions) -> bool {
    let GetOptions { if_match, if_none_match, version, head, .. } = options;
    let has_time = options.if_modified_since.is_some() || options.if_unmodified_since.is_some();
    let has_tag = if_match.is_some() || if_none_match.is_some() || version.is_some();
    !head && !has_tag && !has_time
}

#[async_trait]
impl ObjectStore for CachedStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.forget(location);
        let result = self.inner.put_opts(location, payload, opts).await;
        // A read may have noted the old object meanwhile.
        self.forget(location);
        result
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.forget(location);
        let upload = self.inner.put_multipart_opts(location, opts).await?;
        let (heads, path) = (Arc::clone(&self.heads), location.to_string());
        Ok(Box::new(Forgetting { upload, heads, path }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if !is_plain(&options) {
            let began = Instant::now();
            let is_latest = options.version.is_none();
            let result = self.inner.get_opts(location, options).await?;
            if is_latest {
                self.note(began, &result.meta);
            }
            return Ok(result);
        }
        for _ in 0..LOOKS_MAX {
            let meta = self.head_of(location).await?;
            match self.get(meta, &options).await {
                // The object has changed since its head was looked at; nothing of the old one was returned.
                Err(Error::Precondition { .. }) => self.forget(location),
                result => return result,
            }
        }
        // It changes faster than it is looked at.
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let mut looks = 0;
        loop {
            let meta = &self.head_of(location).await?;
            looks += 1;
            let fits = |range: &Range<u64>| range.start <= range.end && range.end <= meta.size;
            if !ranges.iter().all(fits) {
                // The store has words for this.
                return self.inner.get_ranges(location, ranges).await;
            }
            if let Some(bytes) = self.read(meta, ranges).await {
                return Ok(bytes);
            }
            let fetch = |range| self.piece_of_store(meta, range);
            match coalesce_ranges(ranges, fetch, OBJECT_STORE_COALESCE_DEFAULT).await {
                Err(Error::Precondition { .. }) if looks < LOOKS_MAX => self.forget(location),
                result => return result,
            }
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (before, after) = (self.clone(), self.clone());
        let locations = locations.inspect_ok(move |location| before.forget(location)).boxed();
        self.inner.delete_stream(locations).inspect_ok(move |it| after.forget(it)).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, began) = (self.clone(), Instant::now());
        self.inner.list(prefix).inspect_ok(move |meta| store.note(began, meta)).boxed()
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let began = Instant::now();
        let result = self.inner.list_with_delimiter(prefix).await?;
        result.objects.iter().for_each(|meta| self.note(began, meta));
        Ok(result)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.forget(to);
        let result = self.inner.copy_opts(from, to, options).await;
        self.forget(to);
        result
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        [from, to].into_iter().for_each(|path| self.forget(path));
        let result = self.inner.rename_opts(from, to, options).await;
        [from, to].into_iter().for_each(|path| self.forget(path));
        result
    }
}

/// An upload after which the head of its object is another.
#[derive(Debug)]
struct Forgetting {
    upload: Box<dyn MultipartUpload>,
    heads: Arc<Known<ObjectMeta>>,
    path: String,
}

#[async_trait]
impl MultipartUpload for Forgetting {
    fn put_part(&mut self, data: PutPayload) -> super::api::UploadPart {
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.upload.complete().await;
        self.heads.forget(&self.path);
        result
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}

impl fmt::Display for CachedStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Cached({})", self.inner)
    }
}

impl fmt::Debug for CachedStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("CachedStore").field("inner", &self.inner).finish_non_exhaustive()
    }
}
