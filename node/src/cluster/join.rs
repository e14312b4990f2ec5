//! From a configuration to a member: what the node tells of itself, and the task that tells it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use millrace_proto::cluster::Mount;
use millrace_proto::{feature, ring};
use tokio::sync::watch;

use super::answers::Cluster;
use super::identity::Identity;
use super::record::MemberRecord;
use super::session::{Handle, Session, Settings};
use super::{View, Views};
use crate::config::Config;
use crate::store::mounts::Mounts;
use crate::worker::{SERVER, Shared};

/// The node's part in a cluster, ready to begin.
pub(crate) struct Membership {
    pub(crate) cluster: Cluster,
    /// None outside a cluster.
    pub(crate) session: Option<(Session, Handle)>,
    pub(crate) mounts: Arc<Mounts>,
}

/// Feature bits that a node with this configuration offers.
pub(crate) fn features(config: &Config) -> u64 {
    match config.coord.place() {
        Some(_) => feature::ALL,
        None => feature::ALL & !feature::CLUSTER,
    }
}

/// The source of the configuration as the cluster names it; None without one.
///
/// # Errors
/// If it is not there, or not a directory.
pub(crate) fn source(config: &Config) -> io::Result<Option<String>> {
    if config.source.as_os_str().is_empty() {
        return Ok(None);
    }
    let root = config.source.canonicalize()?;
    // Also finds out whether it is a directory that may be read.
    std::fs::read_dir(&root)?;
    Ok(Some(format!("file://{}", root.display())))
}

/// Prepares the node's membership. `addresses` are those of the node and of its shards, with a host.
pub(crate) fn membership(
    config: &Config,
    identity: Identity,
    source: Option<String>,
    shared: &Shared,
    (address, shards): (String, Vec<String>),
) -> Membership {
    let mounts = Arc::new(Mounts::default());
    let views: Arc<Views> = Arc::new(watch::Sender::new(Arc::new(View::default())));
    let Some((servers, path)) = config.coord.place() else {
        let root = source.map(|source| Mount { prefix: String::new(), source, replicas: 1 });
        mounts.set(root.into_iter().collect());
        return Membership { cluster: Cluster::new(views, None), session: None, mounts };
    };
    let capacity = config.memory as u64;
    let record = MemberRecord {
        id: identity.id().to_owned(),
        secret: identity.secret().to_owned(),
        run: format!("{:016x}", shared.node),
        weight: ring::weight_of(capacity),
        zone: config.zone.clone(),
        address,
        shards,
        local: shared.local_addresses.clone(),
        machine: shared.machine.clone(),
        capacity,
        server: SERVER.to_owned(),
    };
    let settings = Settings {
        servers,
        path,
        timeout: Duration::from_millis(config.session_timeout_ms.into()),
        identity,
        record,
        block_size: config.block_size,
        source,
        views: Arc::clone(&views),
        mounts: Arc::clone(&mounts),
        progress: Arc::clone(&shared.progress),
    };
    let (session, handle) = Session::new(settings);
    let cluster = Cluster::new(views, Some(handle.requests.clone()));
    Membership { cluster, session: Some((session, handle)), mounts }
}
