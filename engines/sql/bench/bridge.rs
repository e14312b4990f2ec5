//! A store of `object_store` 0.14 for an engine that has 0.13: reads and listings, and nothing that writes.
//!
//! So the engine and the node read a store by one and the same client, and the build has that client once.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store as new;
use object_store_0_13 as old;
use old::path::Path;
use old::{Error, Result};

/// The store.
#[derive(Debug)]
pub(crate) struct Bridge(pub(crate) Arc<dyn new::ObjectStore>);

impl fmt::Display for Bridge {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, out)
    }
}

fn error(error: new::Error) -> Error {
    match error {
        new::Error::NotFound { path, source } => Error::NotFound { path, source },
        new::Error::Precondition { path, source } => Error::Precondition { path, source },
        new::Error::NotModified { path, source } => Error::NotModified { path, source },
        error => Error::Generic { store: "bridge", source: Box::new(error) },
    }
}

fn refused(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: "Bridge".to_owned() }
}

fn key(path: &Path) -> new::path::Path {
    new::path::Path::from(path.as_ref())
}

fn meta(meta: new::ObjectMeta) -> old::ObjectMeta {
    old::ObjectMeta {
        location: Path::from(meta.location.as_ref()),
        last_modified: meta.last_modified,
        size: meta.size,
        e_tag: meta.e_tag,
        version: meta.version,
    }
}

fn range(range: old::GetRange) -> new::GetRange {
    match range {
        old::GetRange::Bounded(range) => new::GetRange::Bounded(range),
        old::GetRange::Offset(offset) => new::GetRange::Offset(offset),
        old::GetRange::Suffix(length) => new::GetRange::Suffix(length),
    }
}

#[async_trait]
impl old::ObjectStore for Bridge {
    async fn put_opts(
        &self,
        _: &Path,
        _: old::PutPayload,
        _: old::PutOptions,
    ) -> Result<old::PutResult> {
        Err(refused("put"))
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: old::PutMultipartOptions,
    ) -> Result<Box<dyn old::MultipartUpload>> {
        Err(refused("put in parts"))
    }

    async fn get_opts(&self, location: &Path, options: old::GetOptions) -> Result<old::GetResult> {
        let options = new::GetOptions {
            if_match: options.if_match,
            if_none_match: options.if_none_match,
            if_modified_since: options.if_modified_since,
            if_unmodified_since: options.if_unmodified_since,
            range: options.range.map(range),
            version: options.version,
            head: options.head,
            ..new::GetOptions::default()
        };
        let result = self.0.get_opts(&key(location), options).await.map_err(error)?;
        let (found, range) = (meta(result.meta.clone()), result.range.clone());
        let bytes = result.into_stream().map_err(error).boxed();
        let payload = old::GetResultPayload::Stream(bytes);
        Ok(old::GetResult { payload, meta: found, range, attributes: old::Attributes::default() })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.0.get_ranges(&key(location), ranges).await.map_err(error)
    }

    fn delete_stream(
        &self,
        _: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        stream::once(async { Err(refused("delete")) }).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<old::ObjectMeta>> {
        let listed = self.0.list(prefix.map(key).as_ref());
        listed.map_ok(meta).map_err(error).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<old::ListResult> {
        let listed = self.0.list_with_delimiter(prefix.map(key).as_ref()).await.map_err(error)?;
        let prefixes = listed.common_prefixes.iter().map(|path| Path::from(path.as_ref()));
        let (common_prefixes, objects) = (prefixes.collect(), listed.objects);
        Ok(old::ListResult { common_prefixes, objects: objects.into_iter().map(meta).collect() })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: old::CopyOptions) -> Result<()> {
        Err(refused("copy"))
    }
}
