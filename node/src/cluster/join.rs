//! From a configuration to a member: what the node reports of itself, and the task that reports it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use millrace_proto::cluster::Mount;
use millrace_proto::terms::Terms;
use millrace_proto::{feature, ring};
use tokio::sync::watch;

use super::alone::{self, Alone};
use super::answers::Cluster;
use super::identity::Identity;
use super::record::MemberRecord;
use super::session::{Handle, Session, SessionSettings};
use super::{Task, View, Views};
use crate::config::{Config, Coordination};
use crate::store::contents::Contents;
use crate::store::machine::Machine;
use crate::store::mounts::Mounts;
use crate::store::roots::{FILE_SCHEME, MountRoots, is_remote, normal};
use crate::store::{RemoteStores, StoreLimits};
use crate::worker::{Proofs, SERVER, Shared};

/// The node's part in a cluster, ready to begin.
pub(crate) struct Membership {
    pub(crate) cluster: Cluster,
    /// None outside a cluster.
    pub(crate) session: Option<(Task, Handle)>,
    pub(crate) mounts: Arc<Mounts>,
}

/// Returns the feature bits that a node with this configuration offers.
pub(crate) fn features(config: &Config, proofs: &Proofs) -> u64 {
    let mut features = feature::ALL;
    if config.coord == Coordination::None {
        features &= !feature::CLUSTER;
    }
    if !proofs.is_some() {
        features &= !feature::PROOFS;
    }
    features
}

/// Returns the source of the configuration as the cluster names it; None without one.
///
/// # Errors
/// If it is not there, or not a directory, or below no mount root, or a URL that names no store.
pub(crate) fn source(config: &Config) -> io::Result<Option<String>> {
    if config.source.as_os_str().is_empty() {
        return Ok(None);
    }
    if let Some(url) = config.source.to_str().filter(|it| is_remote(it)) {
        let url = normal(url).map_err(io::Error::other)?;
        MountRoots::of(config).find(&url).map_err(io::Error::other)?;
        let credential = Some(config.source_credential.clone()).filter(|it| !it.is_empty());
        return Ok(Some(Terms { credential, ..Terms::default() }.join(&url)));
    }
    if !config.source_credential.is_empty() {
        return Err(io::Error::other(
            "a directory takes no credential: leave source_credential out",
        ));
    }
    if config.mount_options.caches_writes("") {
        return Err(io::Error::other(
            "cache-on-write is for stores on other machines: leave /=cache-on-write out",
        ));
    }
    let root = config.source.canonicalize()?;
    // This also finds out whether it is a directory that may be read.
    std::fs::read_dir(&root)?;
    let source = format!("{FILE_SCHEME}{}", root.display());
    if MountRoots::of(config).find(&source).is_err() {
        return Err(io::Error::other("it lies below no mount_root: name it there as well"));
    }
    Ok(Some(source))
}

/// Returns what each store on another machine may take.
pub(crate) fn limits(config: &Config) -> StoreLimits {
    StoreLimits {
        concurrency: config.fill_concurrency,
        patience: Duration::from_millis(config.source_timeout_ms),
        bandwidth: None,
        is_hedged: false,
    }
}

/// Where others reach the node, with a host.
pub(crate) struct PublicAddresses {
    pub node: String,
    /// In shard order.
    pub shards: Vec<String>,
}

/// Prepares the node's membership.
pub(crate) fn membership(
    config: &Config,
    identity: Identity,
    source: Option<String>,
    shared: &Shared,
    machine: &Arc<Machine>,
    stores: Arc<dyn RemoteStores>,
    addresses: PublicAddresses,
) -> Membership {
    let contents = Contents::new(config.memory, config.block_size);
    let (machine, roots) = (Arc::clone(machine), MountRoots::of(config));
    let options = match config.writable {
        true => config.mount_options.clone().with_writable_root(),
        false => config.mount_options.clone(),
    };
    let mounts = Mounts::new(machine, roots, options, contents);
    let mounts = mounts.with_remote(stores, limits(config)).believing(config.stale_after);
    let mounts = Arc::new(mounts);
    let views: Arc<Views> = Arc::new(watch::Sender::new(Arc::new(View::default())));
    if config.coord == Coordination::None {
        let root = source.map(|source| Mount { prefix: String::new(), source, replicas: 1 });
        mounts.set(root.into_iter().collect());
        return Membership { cluster: Cluster::new(views, None), session: None, mounts };
    }
    let capacity = config.memory as u64;
    let record = MemberRecord {
        id: identity.id().to_owned(),
        secret: identity.secret().to_owned(),
        run: format!("{:016x}", shared.node),
        weight: ring::weight_of(capacity),
        zone: config.zone.clone(),
        address: addresses.node,
        shards: addresses.shards,
        local: shared.local_addresses.clone(),
        machine: shared.machine.clone(),
        capacity,
        server: SERVER.to_owned(),
        proof: String::new(),
    };
    let (task, handle): (Task, Handle) = match &config.coord {
        Coordination::Ensemble { servers, path } => {
            let settings = SessionSettings {
                servers: servers.clone(),
                path: path.clone(),
                secret: shared.proofs.member.clone(),
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
            (Box::pin(session.run()), handle)
        }
        _ => {
            let settings = alone::AloneSettings {
                identity,
                record,
                source,
                data: config.data.clone(),
                views: Arc::clone(&views),
                mounts: Arc::clone(&mounts),
            };
            let (alone, handle) = Alone::new(settings);
            (Box::pin(alone.run()), handle)
        }
    };
    let cluster = Cluster::new(views, Some(handle.requests.clone()));
    Membership { cluster, session: Some((task, handle)), mounts }
}
