//! The data directory: its lock, its owner, and its two halves. The log may be elsewhere ([`super::place`]).
//!
//! The log is created first, then the state. Nothing is stored before both have the identity. If the state
//! is missing and the log is untouched, the creation was cut short, so the directory is created again. If
//! the log has anything, the state is lost and the directory is refused, because a replica that lost its
//! log or state and started empty would break its promises.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::files::{Lock, create_directory, remove_directory, sync_directory, sync_parent};
use super::lmdb::{self, Environment};
use super::place::{STATE, log_path, refuse_others};
use super::record::StateHeader;
use super::state::LmdbState;
use super::wal::Wal;
use super::{StoreError, StoreIdentity};

/// Limits of the two stores, in bytes. For the state this is also address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub log_bytes_max: u64,
    pub state_bytes_max: u64,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes { log_bytes_max: 16 << 30, state_bytes_max: 64 << 30 }
    }
}

/// Both stores of a directory, open. The directory is locked while either of them is open.
pub struct Stores {
    pub identity: StoreIdentity,
    pub log: Wal,
    pub state: LmdbState,
}

impl Stores {
    /// Sets the cluster id of a replica that was created with cluster id 0, for good.
    ///
    /// # Errors
    /// As [`super::LogStore::append`].
    ///
    /// # Panics
    /// Panics if it has another cluster id already.
    pub fn adopt(&mut self, cluster_id: u64) -> Result<(), StoreError> {
        self.log.adopt(cluster_id)?;
        self.state.adopt(cluster_id)?;
        self.identity.cluster_id = cluster_id;
        Ok(())
    }
}

/// Opens the directory of the replica `wanted`. Creates it if it is missing or empty; only then
/// `wanted.store_id` is used. With `wanted.cluster_id` 0 it may have any cluster id.
///
/// # Errors
/// [`StoreError::Locked`], [`StoreError::Foreign`], [`StoreError::Incomplete`],
/// [`StoreError::Corrupt`], or [`StoreError::Io`].
pub fn open(directory: &Path, wanted: StoreIdentity, sizes: Sizes) -> Result<Stores, StoreError> {
    fs::create_dir_all(directory).map_err(|error| StoreError::io("create", directory, error))?;
    let mut stores = open_any(directory, Some(wanted), sizes)?;
    let found = stores.identity;
    let foreign = |reason| StoreError::Foreign { path: directory.to_owned(), reason };
    if found.replica_id != wanted.replica_id {
        return Err(foreign(format!(
            "holds the data of replica {}, but this is replica {}: give each replica a directory \
             of its own, or correct the id in the configuration",
            found.replica_id, wanted.replica_id
        )));
    }
    if found.cluster_id != wanted.cluster_id && wanted.cluster_id != 0 {
        if found.cluster_id != 0 {
            return Err(foreign(format!(
                "holds the data of cluster {:016x}, but this replica is configured for cluster \
                 {:016x}: use the directory of this cluster",
                found.cluster_id, wanted.cluster_id
            )));
        }
        stores.adopt(wanted.cluster_id)?;
    }
    Ok(stores)
}

/// Opens a directory of any owner, and creates nothing. For tools that work offline.
///
/// # Errors
/// As [`open`]; [`StoreError::Incomplete`] if there is no data.
pub fn open_existing(directory: &Path, sizes: Sizes) -> Result<Stores, StoreError> {
    open_any(directory, None, sizes)
}

fn open_any(
    directory: &Path,
    create_for: Option<StoreIdentity>,
    sizes: Sizes,
) -> Result<Stores, StoreError> {
    let lock = Arc::new(Lock::take(directory)?);
    // This snapshot was not installed before the process ended.
    remove_directory(&LmdbState::incoming(&directory.join(STATE)))?;
    let log_path = log_path(directory)?;
    if create_for.is_some() {
        refuse_others(&log_path)?;
    }
    let state_path = directory.join(STATE);
    let log = Wal::open(&log_path, sizes.log_bytes_max, lock.clone())?;
    let state = find(&state_path, sizes.state_bytes_max, &lock)?;
    let state = state.map(|(found, header)| LmdbState::open(found, &header)).transpose()?;
    let incomplete = |reason: &str| StoreError::Incomplete {
        path: directory.to_owned(),
        reason: reason.to_owned(),
    };
    match (log, state, create_for) {
        (Some(log), Some(state), _) => agree(directory, log, state),
        (None, None, None) => Err(incomplete("holds no data of a replica")),
        (None, None, Some(identity)) => create(&log_path, &state_path, identity, sizes, &lock),
        (Some(log), None, Some(identity)) if log.is_pristine() => {
            tracing::warn!("creating {} again: it was not finished", directory.display());
            drop(log);
            create(&log_path, &state_path, identity, sizes, &lock)
        }
        (Some(_), None, _) => Err(incomplete(
            "has a log but no state: bring the state back. If others of the ensemble run, this \
             replica can be removed from them and added again with a new directory; else restore a \
             backup",
        )),
        (None, Some(_), _) => Err(incomplete(&format!(
            "has a state but no log at {}: bring the log back (is its disk mounted?). If it is \
             lost, what this replica promised to others is lost, too: keep the directory. If \
             others of the ensemble run, remove this replica from them and add it again with a new \
             directory; else restore a backup",
            log_path.display()
        ))),
    }
}

/// Opens an environment that has a header.
fn find(
    path: &Path,
    bytes_max: u64,
    lock: &Arc<Lock>,
) -> Result<Option<(Environment, Vec<u8>)>, StoreError> {
    if lmdb::data_bytes(path)? == 0 {
        return Ok(None);
    }
    let (environment, header) = Environment::open(path, bytes_max, lock.clone())?;
    Ok(header.map(|header| (environment, header)))
}

fn agree(directory: &Path, mut log: Wal, mut state: LmdbState) -> Result<Stores, StoreError> {
    let (of_log, of_state) = (log.identity(), state.identity());
    let is_same_store =
        (of_log.replica_id, of_log.store_id) == (of_state.replica_id, of_state.store_id);
    match (of_log.cluster_id, of_state.cluster_id) {
        _ if !is_same_store => {}
        (ours, theirs) if ours == theirs => return Ok(Stores { identity: of_log, log, state }),
        // Adopting a cluster id was cut short, so the other half follows.
        (ours, 0) => {
            state.adopt(ours)?;
            return Ok(Stores { identity: of_log, log, state });
        }
        (0, theirs) => {
            log.adopt(theirs)?;
            return Ok(Stores { identity: of_state, log, state });
        }
        _ => {}
    }
    let reason = format!(
        "is put together of two: the log belongs to {}, the state to {}. Bring back the half that \
         belongs to the other. If others of the ensemble run, this replica can be removed from \
         them and added again with a new directory",
        describe(&of_log),
        describe(&of_state)
    );
    Err(StoreError::Foreign { path: directory.to_owned(), reason })
}

fn describe(identity: &StoreIdentity) -> String {
    format!(
        "replica {} of cluster {:016x}, store {:016x}",
        identity.replica_id, identity.cluster_id, identity.store_id
    )
}

fn create(
    log_path: &Path,
    state_path: &Path,
    identity: StoreIdentity,
    sizes: Sizes,
    lock: &Arc<Lock>,
) -> Result<Stores, StoreError> {
    for path in [log_path, state_path] {
        remove_directory(path)?;
        create_directory(path)?;
    }
    let log = Wal::create(log_path, identity, sizes.log_bytes_max, lock.clone())?;
    let (state, _) = Environment::open(state_path, sizes.state_bytes_max, lock.clone())?;
    let state = LmdbState::create(state, StateHeader::new(identity))?;
    // First the names of the files are synced, then those of their directories, then the directory's own.
    let directory = state_path.parent().unwrap_or(Path::new("/"));
    for path in [log_path, state_path] {
        sync_directory(path)?;
        sync_parent(path)?;
    }
    sync_parent(directory)?;
    Ok(Stores { identity, log, state })
}
