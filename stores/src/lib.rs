//! Sources on other machines: S3 and its kin, Google Cloud Storage, Azure, HTTP, by the crate `object_store`.
//!
//! ```text
//!  node: side thread ── UnderStore ──► Remote ──► threads of this crate ──► object_store ──► the store
//!                                        │  tag of each file, by its version
//!                                        └─ every read says which tag it wants (If-Match)
//! ```
//!
//! Owns the connections to stores and the tags of their objects. Always holds: a block is filled with bytes of
//! the one tag that its version was computed from, or not at all; TLS and copies take no time of the node's
//! own threads. `docs/STORES.md` says what each store can.

mod breaker;
mod completion;
mod direct;
mod failure;
mod gather;
mod hedge;
mod key;
mod lengths;
mod open;
mod pace;
mod profile;
mod reads;
mod remote;
mod tag;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use millrace_node::config::Credentials;
use millrace_node::under_store::{RemoteStores, StoreError, StoreLimits, UnderStore};
use tokio::runtime::Runtime;

pub use direct::Direct;
use open::Access;
use remote::Remote;

/// Threads that talk to stores. Guessed: one does TLS at some 500 MB/s, and a node has cores for its shards.
const THREADS_MAX: usize = 4;

/// Sources that are remembered though they are mounted no more. Derived: twice as many as mounts.
const OPENED_MAX: usize = 128;

/// Opens sources by their URLs, with options of their credential, or else with those of the node.
pub struct Stores {
    options: Vec<(String, String)>,
    credentials: Credentials,
    /// None once this is dropped.
    runtime: Option<Runtime>,
    /// A source that is mounted again keeps its connections and tags.
    opened: Mutex<HashMap<Place, Arc<Remote>>>,
}

/// A source, the credential with which it is opened, and what it may take.
type Place = (String, Option<String>, StoreLimits);

impl Stores {
    /// Starts the threads that talk to stores. `options` are keys of the store library with their values, for
    /// sources without a credential.
    ///
    /// # Errors
    /// If there are no threads to be had; of the kind `InvalidInput` for a credential with a key that no store
    /// takes.
    pub fn start(
        options: Vec<(String, String)>,
        credentials: Credentials,
    ) -> std::io::Result<Stores> {
        for (name, keys) in credentials.iter() {
            if let Some((key, _)) = keys.iter().find(|(key, _)| !open::is_known(key)) {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::InvalidInput,
                    format!(
                        "key {key} of [credential.{name}] is not one of any store; see docs/STORES.md"
                    ),
                ));
            }
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.min(THREADS_MAX))
            .thread_name("stores")
            .enable_all()
            .build()?;
        Ok(Stores { options, credentials, runtime: Some(runtime), opened: Mutex::default() })
    }

    /// Returns the options for a source with a credential of this name, or without one.
    fn access<'a>(&'a self, credential: Option<&'a str>) -> Result<Access<'a>, StoreError> {
        let Some(name) = credential else { return Ok(Access::Common(&self.options)) };
        match self.credentials.get(name) {
            Some(options) => Ok(Access::Named(name, options)),
            None => Err(StoreError::Unusable(format!(
                "it needs the credential {name}, which this node does not have: add a table \
                 [credential.{name}] to its configuration file (docs/STORES.md)"
            ))),
        }
    }
}

impl RemoteStores for Stores {
    fn open(
        &self,
        source: &str,
        credential: Option<&str>,
        limits: StoreLimits,
    ) -> Result<Arc<dyn UnderStore>, StoreError> {
        let place = (source.to_owned(), credential.map(str::to_owned), limits);
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remote) = opened.get(&place) {
            return Ok(remote.clone());
        }
        let opening = open::open(source, self.access(credential)?, limits)?;
        let runtime = self.runtime.as_ref().expect("it is there until this is dropped");
        let remote = Arc::new(Remote::new(source, opening, limits, runtime.handle().clone()));
        if opened.len() >= OPENED_MAX {
            // Those that are mounted stay: there are fewer.
            opened.retain(|_, remote| Arc::strong_count(remote) > 1);
        }
        opened.insert(place, Arc::clone(&remote));
        Ok(remote)
    }
}

impl Drop for Stores {
    fn drop(&mut self) {
        // This may happen in a task, where threads cannot be waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
