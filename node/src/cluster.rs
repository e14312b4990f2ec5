//! The node's place in its cluster: who is in it, who is the master, what is mounted and pinned.
//!
//! ```text
//!  coordination ──► session ──► View (one epoch) ──► Ring op, peers, hand-over
//!       ▲              │
//!       └── member, latch (ephemeral)      master: drains, mounts, pins, report, under its fencing token
//! ```
//!
//! Owns the [`View`], which the side thread alone looks at: no hit ever asks who owns a block. A view
//! is replaced whole and its epoch only grows. A node that has lost coordination keeps its last view,
//! says that it is fenced, and goes on answering reads: blocks are immutable.
//!
//! Modules: `identity` is who the node is, `record` what it writes about itself, `session` keeps it in
//! the cluster, `rights` says who may read and write there, `known` is what it read there, `master` what
//! the elected one does, `alone` is a cluster of one node without coordination, `answers` what
//! clients and other nodes are told, `peers` and `handover` take blocks over from others, `pins`
//! has blocks that are here kept, or no longer, `report` has the master write down how full all are.

use std::pin::Pin;
use std::sync::Arc;

use millrace_proto::cluster::{Member, Mount, is_pinned, mount_of};
use millrace_proto::ring::{self, Ring};
use millrace_proto::{Status, placement};
use tokio::sync::watch;

use crate::cache::BlockKey;

mod alone;
pub(crate) mod answers;
pub(crate) mod handover;
pub(crate) mod identity;
pub(crate) mod join;
mod known;
mod master;
pub(crate) mod peers;
pub(crate) mod pins;
pub(crate) mod report;

pub(crate) use master::{Command, Refusal};
pub(crate) mod record;
mod rights;
pub(crate) mod session;

/// What has to be awaited for as long as the node runs.
pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a node knows of its cluster at one epoch.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Id of the cluster; empty before it is known.
    pub cluster: String,
    /// Grows with every change of what follows; 0 before anything is known.
    pub epoch: u64,
    /// Id of this node.
    pub me: String,
    /// Id of the master, empty if there is none.
    pub master: String,
    /// Coordination was lost: what is here may be old.
    pub is_fenced: bool,
    /// The node stops: there will be no other view.
    pub is_over: bool,
    /// What is mounted.
    pub mounts: Vec<Mount>,
    /// Paths that are pinned, sorted.
    pub pins: Vec<String>,
    /// Number of the change that made this node a member: another one each time it joins.
    pub joined_at: i64,
    /// Members in the order of their ids.
    pub members: Vec<Member>,
    /// Those that own blocks.
    ring: Ring,
    /// All, also those that are draining: where a block may still be.
    everyone: Ring,
}

/// The view, as it is now and as it changes.
pub(crate) type Views = watch::Sender<Arc<View>>;

impl View {
    /// A view of these members.
    pub(crate) fn new(
        cluster: &str,
        epoch: u64,
        me: &str,
        mounts: Vec<Mount>,
        members: Vec<Member>,
    ) -> View {
        let ring = |all: bool| {
            let members = members.iter().map(|member| ring::Member {
                key: member.key,
                weight: if all || member.is_active() { member.weight } else { 0 },
                zone: &member.zone,
            });
            Ring::new(&members.collect::<Vec<_>>())
        };
        View {
            cluster: cluster.to_owned(),
            epoch,
            me: me.to_owned(),
            master: String::new(),
            is_fenced: false,
            is_over: false,
            mounts,
            pins: Vec::new(),
            joined_at: 0,
            ring: ring(false),
            everyone: ring(true),
            members,
        }
    }

    /// This view with another master, or fenced or not.
    pub(crate) fn with(&self, master: &str, is_fenced: bool) -> View {
        View { master: master.to_owned(), is_fenced, ..self.clone() }
    }

    /// Judges whether this node may do what others have to agree to. Everything of that kind asks here, so
    /// that a node that says it is fenced is fenced.
    ///
    /// # Errors
    /// `Fenced`, if it has lost coordination and has not caught up since.
    pub(crate) fn check_agreement(&self) -> Result<(), Refusal> {
        if !self.is_fenced {
            return Ok(());
        }
        let message = "this node has lost coordination: ask another one, or try again later";
        Err(Refusal::new(Status::Fenced, message))
    }

    /// The member with this id.
    pub(crate) fn member(&self, id: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// Owners that each block of a file has.
    pub(crate) fn replicas(&self, path: &str) -> usize {
        mount_of(&self.mounts, path)
            .map_or(1, |(index, _)| usize::from(self.mounts[index].replicas.max(1)))
    }

    /// Whether the member with this key is one of the owners of a block.
    pub(crate) fn owns(&self, member: u64, key: &BlockKey, replicas: usize) -> bool {
        let hash = placement::block_hash(key.file, u64::from(key.block));
        if replicas <= 1 {
            let owner = self.ring.owner(hash);
            return owner.is_some_and(|index| self.members[index].key == member);
        }
        let mut owners = [0; ring::OWNERS_MAX];
        let count = self.ring.owners(hash, replicas, &mut owners[..replicas.min(ring::OWNERS_MAX)]);
        owners[..count].iter().any(|&index| self.members[index as usize].key == member)
    }

    /// Whether this node is one of the owners of a block. Outside a cluster it owns everything.
    pub(crate) fn owns_itself(&self, key: &BlockKey, replicas: usize) -> bool {
        match self.member(&self.me) {
            Some(member) => self.owns(member.key, key, replicas),
            None => self.members.is_empty(),
        }
    }

    /// Whether a block of the file at this path is to be kept: the path is pinned, and this node is one
    /// of those who own the block. Who only passes it on has no use for it afterwards.
    pub(crate) fn pins(&self, path: &str, key: &BlockKey) -> bool {
        is_pinned(&self.pins, path) && self.owns_itself(key, self.replicas(path))
    }

    /// The first of the owners of a block.
    pub(crate) fn first_owner(&self, key: &BlockKey) -> Option<&Member> {
        let hash = placement::block_hash(key.file, u64::from(key.block));
        self.ring.owner(hash).map(|index| &self.members[index])
    }

    /// Members that may have a block, the likeliest first, without this node.
    pub(crate) fn holders(&self, key: &BlockKey, replicas: usize) -> impl Iterator<Item = &Member> {
        let hash = placement::block_hash(key.file, u64::from(key.block));
        let mut owners = [0; ring::OWNERS_MAX];
        let wanted = (replicas + 2).min(ring::OWNERS_MAX);
        let count = self.everyone.owners(hash, replicas, &mut owners[..wanted]);
        let owners = owners.into_iter().take(count);
        owners.map(|index| &self.members[index as usize]).filter(|member| member.id != self.me)
    }
}
