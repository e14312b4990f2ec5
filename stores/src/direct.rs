//! A store as it answers by itself, past every node: the other side of a comparison.
//!
//! Owns its own connections. Requests run on the runtime of the caller. Nothing is remembered: each answer is
//! what the store says at that moment.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use millrace_node::under_store::{StoreError, StoreLimits, check_path};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use crate::failure::Failure;
use crate::key::location;
use crate::open::{self, Access};

/// A store, or a part of one, to compare with.
pub struct Direct {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    has_listings: bool,
}

impl Direct {
    /// Makes a client of the store that a URL names. Nothing is asked of the store yet. `options` are keys of
    /// the store library with their values.
    ///
    /// # Errors
    /// [`StoreError::InvalidPath`] for a URL that names no store here, [`StoreError::Unusable`] for options that
    /// the store does not take.
    pub fn open(
        source: &str,
        options: &[(String, String)],
        limits: StoreLimits,
    ) -> Result<Direct, StoreError> {
        let opening = open::open(source, Access::Common(options), limits)?;
        let has_listings = opening.pages.is_some();
        Ok(Direct { store: opening.store, prefix: opening.prefix, has_listings })
    }

    /// True if the store can say what is in a directory. A plain web server cannot.
    pub fn has_listings(&self) -> bool {
        self.has_listings
    }

    /// Counts the names in a directory, those of objects and of directories.
    ///
    /// # Errors
    /// What the store says.
    pub async fn name_count(&self, path: &str) -> Result<usize, StoreError> {
        let directory = self.location(path)?;
        let listed = self.store.list_with_delimiter(Some(&directory)).await.map_err(told)?;
        let objects = listed.objects.iter().map(|object| &object.location);
        // The object that stands for the directory itself has no name in it.
        let objects = objects.filter(|it| **it != directory);
        Ok(objects.chain(&listed.common_prefixes).collect::<BTreeSet<_>>().len())
    }

    /// Reads a range of an object. It is shorter where the object ends first.
    ///
    /// # Errors
    /// What the store says.
    pub async fn read(&self, path: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let location = self.location(path)?;
        self.store.get_range(&location, range).await.map_err(told)
    }

    fn location(&self, path: &str) -> Result<Path, StoreError> {
        check_path(path)?;
        location(&self.prefix, path)
    }
}

fn told(error: object_store::Error) -> StoreError {
    Failure::from(error).error
}
