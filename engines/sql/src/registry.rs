//! A cache around all buckets of a context at once.
//!
//! A program that has a `SessionContext` of its own names each bucket that nodes have mounted. Every store that
//! is registered for one of them, sooner or later, is read through the cache: it is wrapped in a [`CachedStore`].
//! All other stores stay what they are. Always holds: a bucket has one wrapper, as long as its store is the same.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry};
use millrace_client::ClientConfig;
use millrace_object_store::CacheCounts;
use millrace_object_store::v0_13::CachedStore;
use object_store_0_13::ObjectStore;
use url::Url;

/// A registry of stores that reads some of them through nodes.
pub struct CachedRegistry {
    address: String,
    config: ClientConfig,
    inner: Arc<dyn ObjectStoreRegistry>,
    /// By bucket, the parts of it that are mounted: a prefix of keys and the path of the mount.
    parts: HashMap<String, Vec<(String, String)>>,
    wrapped: Mutex<HashMap<String, Wrapped>>,
}

struct Wrapped {
    inner: Arc<dyn ObjectStore>,
    store: CachedStore,
}

impl CachedRegistry {
    /// Makes a registry for the nodes at an address, as `Client::connect` takes it, around DataFusion's own. The
    /// nodes are connected to at the first read, and need not be there.
    pub fn new(address: &str) -> CachedRegistry {
        let inner = Arc::new(DefaultObjectStoreRegistry::new());
        CachedRegistry::around(inner, address, ClientConfig::new())
    }

    /// As [`CachedRegistry::new`], around another registry and with other settings of the client.
    pub fn around(
        inner: Arc<dyn ObjectStoreRegistry>,
        address: &str,
        config: ClientConfig,
    ) -> CachedRegistry {
        let (parts, wrapped) = (HashMap::new(), Mutex::default());
        CachedRegistry { address: address.to_owned(), config, inner, parts, wrapped }
    }

    /// Returns this registry with a bucket, or what is below a prefix in it, that the nodes have mounted at a
    /// path: `s3://lake` at `lake`, or `s3://lake/2026` at `this-year`. The longest prefix of a key counts.
    ///
    /// # Errors
    /// If the bucket is not a URL.
    pub fn with_bucket(mut self, bucket: &str, mount: &str) -> Result<CachedRegistry> {
        let url = Url::parse(bucket).map_err(|error| {
            DataFusionError::Configuration(format!(
                "'{bucket}' is not the URL of a bucket: {error}"
            ))
        })?;
        let prefix = url.path().trim_matches('/').to_owned();
        self.parts.entry(key_of(&url)).or_default().push((prefix, mount.to_owned()));
        Ok(self)
    }

    /// Returns what was read of each bucket so far, and where, sorted by bucket. One that was not used yet is not
    /// there.
    pub fn counts(&self) -> Vec<(String, CacheCounts)> {
        let wrapped = self.wrapped();
        let counts = wrapped.iter().map(|(key, it)| (key.clone(), it.store.counts()));
        let mut counts: Vec<_> = counts.collect();
        counts.sort_by(|(first, _), (second, _)| first.cmp(second));
        counts
    }

    fn wrapped(&self) -> MutexGuard<'_, HashMap<String, Wrapped>> {
        self.wrapped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns scheme and host of a URL, by which DataFusion tells stores apart.
fn key_of(url: &Url) -> String {
    let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
    format!("{}://{host}", url.scheme())
}

impl ObjectStoreRegistry for CachedRegistry {
    fn register_store(
        &self,
        url: &Url,
        store: Arc<dyn ObjectStore>,
    ) -> Option<Arc<dyn ObjectStore>> {
        self.inner.register_store(url, store)
    }

    fn deregister_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        self.wrapped().remove(&key_of(url));
        self.inner.deregister_store(url)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        let store = self.inner.get_store(url)?;
        let key = key_of(url);
        let Some(parts) = self.parts.get(&key) else { return Ok(store) };
        let mut all = self.wrapped();
        if let Some(known) = all.get(&key).filter(|known| Arc::ptr_eq(&known.inner, &store)) {
            return Ok(Arc::new(known.store.clone()));
        }
        let (inner, config) = (Arc::clone(&store), self.config.clone());
        let store = CachedStore::of_parts(store, &self.address, parts.clone(), config);
        all.insert(key, Wrapped { inner, store: store.clone() });
        Ok(Arc::new(store))
    }
}

impl fmt::Debug for CachedRegistry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, parts) = (&self.address, &self.parts);
        out.debug_struct("CachedRegistry")
            .field("address", address)
            .field("parts", parts)
            .finish_non_exhaustive()
    }
}
