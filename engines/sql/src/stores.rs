//! Which store a URL leads to: the nodes of the session, other nodes, and files of this machine.
//!
//! Owns connections, and what one statement sees of them: a view with one version of each file and with
//! counters. Statements run one after the other. A view goes on to the next statement if all files in it have
//! still the versions that they had; what DataFusion has kept of them may be used then, and else not.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::object_store::ObjectStoreRegistry;
use millrace_client::ClientConfig;
use millrace_object_store::v0_13::MillraceStore;
use object_store_0_13::ObjectStore;
use object_store_0_13::local::LocalFileSystem;
use url::Url;

use crate::place::{self, SCHEME};
use crate::reads::{Counted, Reads};

/// Most other nodes or clusters of a session. Guessed: more than a person writes.
const OTHERS_MAX: usize = 64;

/// Most files that are looked up again so that what was kept of them can be used. Guessed: a few milliseconds.
const KEPT_MAX: usize = 256;
/// Longest wait for that. Guessed.
const KEPT_WAIT: Duration = Duration::from_millis(500);

/// The stores of a session.
pub(crate) struct Stores {
    config: ClientConfig,
    /// By their authority in URLs; empty for the nodes of the session.
    nodes: Mutex<HashMap<String, MillraceStore>>,
    files: Arc<LocalFileSystem>,
    statement: Mutex<Statement>,
}

/// What one statement sees.
#[derive(Default)]
struct Statement {
    reads: Arc<Reads>,
    /// By authority.
    views: HashMap<String, MillraceStore>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn authority(url: &Url) -> String {
    url[url::Position::BeforeHost..url::Position::AfterPort].to_owned()
}

impl Stores {
    pub(crate) fn new(store: MillraceStore, config: ClientConfig) -> Stores {
        Stores {
            config,
            nodes: Mutex::new(HashMap::from([(String::new(), store)])),
            files: Arc::new(LocalFileSystem::new()),
            statement: Mutex::default(),
        }
    }

    /// Begins a statement; returns its counters, and true if what was kept of files may be used in it.
    pub(crate) async fn begin(&self) -> (Arc<Reads>, bool) {
        let views: Vec<_> = lock(&self.statement).views.clone().into_iter().collect();
        let holds = match &views[..] {
            [] => true,
            [(_, view)] => {
                let look = view.first_versions_hold(KEPT_MAX);
                tokio::time::timeout(KEPT_WAIT, look).await.unwrap_or(false)
            }
            // DataFusion knows files by their paths alone, which may be the same at two places.
            _ => false,
        };
        let views = if holds { views.into_iter().collect() } else { HashMap::new() };
        let statement = Statement { reads: Arc::default(), views };
        let reads = Arc::clone(&statement.reads);
        *lock(&self.statement) = statement;
        (reads, holds)
    }

    /// Connects to the nodes that a URL names, unless that was done before.
    ///
    /// # Errors
    /// If they cannot be reached, or are too many.
    pub(crate) async fn connect(&self, url: &Url) -> Result<()> {
        let Some(address) = place::address(url).filter(|_| url.scheme() == SCHEME) else {
            return Ok(());
        };
        {
            let nodes = lock(&self.nodes);
            if nodes.contains_key(&authority(url)) {
                return Ok(());
            }
            if nodes.len() > OTHERS_MAX {
                let text = format!("a session reads from at most {OTHERS_MAX} other nodes");
                return Err(DataFusionError::Plan(text));
            }
        }
        let address = format!("{SCHEME}://{address}");
        let store = MillraceStore::connect_with(&address, self.config.clone()).await?;
        lock(&self.nodes).insert(authority(url), store);
        Ok(())
    }

    /// Returns the store of the nodes of the session.
    pub(crate) fn home(&self) -> Option<MillraceStore> {
        lock(&self.nodes).get("").cloned()
    }

    /// Returns all nodes that the session is connected to.
    pub(crate) fn nodes(&self) -> Vec<MillraceStore> {
        lock(&self.nodes).values().cloned().collect()
    }
}

impl fmt::Debug for Stores {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<String> = lock(&self.nodes).keys().cloned().collect();
        out.debug_struct("Stores").field("nodes", &nodes).finish_non_exhaustive()
    }
}

impl ObjectStoreRegistry for Stores {
    fn register_store(&self, _: &Url, _: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        // A session has the stores that its URLs name, and no others.
        None
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        if url.scheme() == "file" {
            return Ok(Arc::clone(&self.files) as Arc<dyn ObjectStore>);
        }
        let authority = authority(url);
        let nodes = lock(&self.nodes);
        let store = nodes.get(&authority).filter(|_| url.scheme() == SCHEME);
        let store = store.ok_or_else(|| {
            DataFusionError::Plan(format!("'{url}' is not read here; name a path of the nodes"))
        })?;
        let mut statement = lock(&self.statement);
        let reads = Arc::clone(&statement.reads);
        let views = &mut statement.views;
        let view = views.entry(authority).or_insert_with(|| store.with_first_versions());
        Ok(Arc::new(Counted { store: view.clone(), reads }))
    }
}
