//! A source that does not show every change: what is read of it is compared with what was read before.
//!
//! Owns what versions are called from outside. Always holds: a block whose bytes differ from those of the same
//! version before is not given out as that version, wherever they come from.

use std::sync::Arc;

use millrace_proto::FileId;
use millrace_proto::message::Kind;

use super::contents::{Contents, Seen};
use super::{
    Condition, Errand, FillError, Found, Page, Part, StoreError, StoreFuture, UnderStore, Upload,
};
use crate::memory::Blank;

/// A store whose contents are compared.
pub(crate) struct Compared {
    inner: Arc<dyn UnderStore>,
    contents: Arc<Contents>,
    /// The name of the source, for the alarm.
    name: String,
}

impl Compared {
    /// Compares what comes from `inner` by what `contents` remembers.
    pub(crate) fn new(
        inner: Arc<dyn UnderStore>,
        contents: &Arc<Contents>,
        name: &str,
    ) -> Compared {
        Compared { inner, contents: Arc::clone(contents), name: name.to_owned() }
    }

    /// Returns what the source reported, in the version that its content has.
    fn named(&self, found: Found, path: &str) -> Found {
        match found.kind {
            Kind::File => {
                let version = self.contents.version(self.identify(path), found.version);
                Found { version, ..found }
            }
            Kind::Directory => found,
        }
    }

    /// Returns a condition as the source understands it.
    fn based(&self, path: &str, condition: Condition) -> Condition {
        match condition {
            Condition::Version(version) => {
                Condition::Version(self.contents.base(self.identify(path), version))
            }
            other => other,
        }
    }
}

impl UnderStore for Compared {
    fn identify(&self, path: &str) -> FileId {
        self.inner.identify(path)
    }

    /// True if a block may lie on a disk: none, because what was seen of the contents is forgotten with the node.
    fn is_stored(&self, _path: &str) -> bool {
        false
    }

    fn stat(&self, path: Arc<str>) -> StoreFuture<'_, Result<Found, StoreError>> {
        Box::pin(async move {
            let found = self.inner.stat(Arc::clone(&path)).await?;
            Ok(self.named(found, &path))
        })
    }

    fn list(
        &self,
        path: Arc<str>,
        after: Arc<str>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Page, StoreError>> {
        Box::pin(async move {
            let page = self.inner.list(Arc::clone(&path), after, limit).await?;
            let named = |(name, found): (String, Found)| {
                let whole = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                (name, self.named(found, &whole))
            };
            Ok(Page { entries: page.entries.into_iter().map(named).collect(), ..page })
        })
    }

    fn fill(
        &self,
        part: Part,
        blank: Blank,
        errand: Arc<Errand>,
    ) -> StoreFuture<'_, (Blank, Result<(), FillError>)> {
        Box::pin(async move {
            let version = self.contents.base(part.file, part.version);
            let base = Part { version, ..part.clone() };
            let (blank, result) = self.inner.fill(base, blank, errand).await;
            let result = match result {
                // What is not kept cannot be compared later.
                Err(FillError::Store(StoreError::Fresh(time))) => {
                    Err(StoreError::Settling(time).into())
                }
                result => result.and_then(|()| Ok(self.compare(&part, &blank)?)),
            };
            (blank, result)
        })
    }

    fn compare(&self, part: &Part, blank: &Blank) -> Result<(), StoreError> {
        let Part { file, version, offset, .. } = *part;
        let seen = Seen { file, version, offset };
        let result = self.contents.compare(seen, blank.digest());
        if result == Err(StoreError::Differs) {
            tracing::error!(
                "'{}' of {} changed at byte {offset} or behind it, and the source tells the length and times that it \
                 had: it has a new version now; what was read of it before may have been a mixture",
                part.path,
                self.name
            );
        }
        result
    }

    fn put(
        &self,
        path: Arc<str>,
        condition: Condition,
    ) -> StoreFuture<'_, Result<Box<dyn Upload>, StoreError>> {
        let condition = self.based(&path, condition);
        self.inner.put(path, condition)
    }

    fn delete(
        &self,
        path: Arc<str>,
        condition: Condition,
    ) -> StoreFuture<'_, Result<(), StoreError>> {
        let condition = self.based(&path, condition);
        self.inner.delete(path, condition)
    }

    fn rename(
        &self,
        path: Arc<str>,
        to: Arc<str>,
        condition: Condition,
    ) -> StoreFuture<'_, Result<Found, StoreError>> {
        Box::pin(async move {
            let found = self.inner.rename(path, Arc::clone(&to), condition).await?;
            Ok(self.named(found, &to))
        })
    }
}
