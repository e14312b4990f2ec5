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
mod failure;
mod gather;
mod lengths;
mod open;
mod reads;
mod remote;
mod tag;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use millrace_node::under_store::{RemoteStores, StoreError, StoreLimits, UnderStore};
use tokio::runtime::Runtime;

use remote::Remote;

/// Threads that talk to stores. Guessed: one does TLS at some 500 MB/s, and a node has cores for its shards.
const THREADS_MAX: usize = 4;

/// Opens sources by their URLs, all with the same options.
pub struct Stores {
    options: Vec<(String, String)>,
    /// None once this is dropped.
    runtime: Option<Runtime>,
    /// A source that is mounted again keeps its connections and tags.
    opened: Mutex<HashMap<String, Arc<Remote>>>,
}

impl Stores {
    /// Starts the threads that talk to stores. `options` are keys of the store library with their values.
    ///
    /// # Errors
    /// If there are no threads to be had.
    pub fn start(options: Vec<(String, String)>) -> std::io::Result<Stores> {
        // The library asks the process which cryptography to use; a second answer changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.min(THREADS_MAX))
            .thread_name("stores")
            .enable_all()
            .build()?;
        Ok(Stores { options, runtime: Some(runtime), opened: Mutex::default() })
    }
}

impl RemoteStores for Stores {
    fn open(&self, source: &str, limits: StoreLimits) -> Result<Arc<dyn UnderStore>, StoreError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remote) = opened.get(source) {
            return Ok(remote.clone());
        }
        let opening = open::open(source, &self.options, limits)?;
        let runtime = self.runtime.as_ref().expect("it is there until this is dropped");
        let remote = Arc::new(Remote::new(source, opening, limits, runtime.handle().clone()));
        opened.insert(source.to_owned(), Arc::clone(&remote));
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
