//! A cluster at one epoch, as a member has told it.

use std::sync::Arc;

use millrace_proto::cluster::{Member as Told, Mount, mount_of};
use millrace_proto::ring::{self, Ring};

use crate::file::HelloInfo;

/// A cluster at one epoch.
#[derive(Debug)]
pub(crate) struct View {
    /// Id of the cluster.
    pub(crate) cluster: String,
    pub(crate) epoch: u64,
    /// Id of the member that told.
    pub(crate) node: String,
    /// Id of the master; empty if there is none.
    pub(crate) master: String,
    /// Whether the member that told has lost coordination.
    pub(crate) is_fenced: bool,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) members: Vec<Told>,
    pub(crate) ring: Ring,
    /// What that member said of itself when it was connected to; it has the block size of the cluster.
    pub(crate) hello: Option<Arc<HelloInfo>>,
    /// Replicas of every mount, if all have as many.
    replicas: Option<usize>,
}

impl View {
    pub(crate) fn new(page: Page, members: Vec<Told>, hello: Option<Arc<HelloInfo>>) -> View {
        let places: Vec<_> = members
            .iter()
            .map(|told| ring::Member {
                key: told.key,
                weight: if told.is_active() { told.weight } else { 0 },
                zone: &told.zone,
            })
            .collect();
        let ring = Ring::new(&places);
        let mut counts = page.mounts.iter().map(|mount| usize::from(mount.replicas.max(1)));
        let first = counts.next().unwrap_or(1);
        let replicas = counts.all(|count| count == first).then_some(first);
        View {
            cluster: page.cluster,
            epoch: page.epoch,
            node: page.node,
            master: page.master,
            is_fenced: page.is_fenced,
            mounts: page.mounts,
            members,
            ring,
            hello,
            replicas,
        }
    }

    /// Owners of each block of the file at this path, at least 1.
    pub(crate) fn replicas(&self, path: &str) -> usize {
        self.replicas.unwrap_or_else(|| {
            let mount = mount_of(&self.mounts, path).map(|(index, _)| &self.mounts[index]);
            mount.map_or(1, |mount| usize::from(mount.replicas.max(1)))
        })
    }
}

/// A page of members, without them.
pub(crate) struct Page {
    pub(crate) cluster: String,
    pub(crate) epoch: u64,
    pub(crate) node: String,
    pub(crate) master: String,
    pub(crate) is_fenced: bool,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) member_count: usize,
}

/// What a member told.
pub(crate) enum News {
    /// The members of an epoch, maybe the one that is known.
    View(Box<View>),
    /// Nothing yet.
    Nothing,
    /// It is in no cluster.
    Alone,
}
