//! What one statement sees of a store, and what it has read through it, counted where DataFusion asks for it.
//!
//! Always holds: a byte counts when it has come, and a batch of ranges is one read. Files and directories whose
//! names begin with `_` or `.` are not in listings, because jobs leave them beside their results, and DataFusion
//! would take them for data.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store_0_13::path::Path;
use object_store_0_13::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

/// Counters of one statement.
#[derive(Debug, Default)]
pub struct Reads {
    looks: AtomicU64,
    reads: AtomicU64,
    ranges: AtomicU64,
    bytes: AtomicU64,
}

/// What they say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadCounts {
    /// Look-ups of files and listings.
    pub looks: u64,
    /// Reads; a batch of ranges is one.
    pub reads: u64,
    /// Ranges in them.
    pub ranges: u64,
    /// Bytes that they brought.
    pub bytes: u64,
}

impl Reads {
    /// Returns what was counted so far.
    pub fn counts(&self) -> ReadCounts {
        ReadCounts {
            looks: self.looks.load(Relaxed),
            reads: self.reads.load(Relaxed),
            ranges: self.ranges.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
        }
    }

    fn note_look(&self) {
        self.looks.fetch_add(1, Relaxed);
    }

    fn note_read(&self, range_count: usize) {
        self.reads.fetch_add(1, Relaxed);
        self.ranges.fetch_add(range_count as u64, Relaxed);
    }

    fn note_bytes(&self, bytes: &Bytes) {
        self.bytes.fetch_add(bytes.len() as u64, Relaxed);
    }
}

/// A store whose reads are counted.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    pub(crate) store: S,
    pub(crate) reads: Arc<Reads>,
}

impl<S: ObjectStore> fmt::Display for Counted<S> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.store, out)
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Counted<S> {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.store.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head {
            self.reads.note_look();
            return self.store.get_opts(location, options).await;
        }
        self.reads.note_read(1);
        let result = self.store.get_opts(location, options).await?;
        let (meta, range) = (result.meta.clone(), result.range.clone());
        let attributes = result.attributes.clone();
        let reads = Arc::clone(&self.reads);
        let bytes = result.into_stream().inspect_ok(move |bytes| reads.note_bytes(bytes)).boxed();
        Ok(GetResult { payload: GetResultPayload::Stream(bytes), meta, range, attributes })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.reads.note_read(ranges.len());
        let bytes = self.store.get_ranges(location, ranges).await?;
        bytes.iter().for_each(|bytes| self.reads.note_bytes(bytes));
        Ok(bytes)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.reads.note_look();
        let above = prefix.map_or(0, |prefix| prefix.parts().count());
        let is_data = move |meta: &ObjectMeta| {
            let mut names = meta.location.parts().skip(above);
            std::future::ready(!names.any(|name| name.as_ref().starts_with(['_', '.'])))
        };
        self.store.list(prefix).try_filter(is_data).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.reads.note_look();
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.store.rename_opts(from, to, options).await
    }
}
