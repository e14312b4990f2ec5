//! The node's place in its cluster: its members, its master, what is mounted and pinned.
//!
//! ```text
//!  coordination ──► session ──► View (one epoch) ──► Ring op, peers, hand-over
//!       ▲              │
//!       └── member, latch (ephemeral)      master: drains, mounts, pins, report, under its fencing token
//! ```
//!
//! Owns the [`View`], which the side thread alone looks at: no hit ever asks for the owner of a block. A
//! view is replaced whole and its epoch only grows. A node that has lost coordination keeps its last
//! view, says that it is fenced, and goes on answering reads: blocks are immutable.
//!
//! Modules: `identity` is the node's id and secret, `record` what it writes about itself, `session`
//! keeps it in the cluster, `rights` says which clients may read and write there, `known` is what it
//! read there, `master` what the elected node does, `alone` is a cluster of one node without
//! coordination, `job` is a load job as the cluster keeps it, `refusal` why something is not done,
//! `answers` is what clients and other nodes learn, `peers` and `handover` take blocks over from others,
//! `pins` keeps blocks that are here, or no longer, and with `report` the master writes down how full all
//! nodes are.

use std::pin::Pin;
use std::sync::Arc;

use millrace_proto::cluster::{Member, is_pinned};
use millrace_proto::layout::Layout;
use millrace_proto::ring::{self, Ring};
use millrace_proto::{Status, placement};
use tokio::sync::watch;

use crate::cache::BlockKey;

mod alone;
pub(crate) mod answers;
pub(crate) mod handover;
pub(crate) mod identity;
pub(crate) mod job;
pub(crate) mod join;
mod known;
mod master;
pub(crate) mod peers;
pub(crate) mod pins;
pub(crate) mod report;

pub(crate) use master::Command;
pub(crate) use refusal::Refusal;
pub(crate) mod record;
mod refusal;
mod rights;
pub(crate) mod session;

/// What has to be awaited for as long as the node runs.
pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a node knows of its cluster at one epoch.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Mounts, members and owners: what every node and client of this epoch knows alike.
    pub layout: Arc<Layout>,
    /// Id of this node.
    pub me: String,
    /// Id of the master, empty without one.
    pub master: String,
    /// True if coordination was lost: the view may be old.
    pub is_fenced: bool,
    /// True if the node stops: there will be no other view.
    pub is_over: bool,
    /// Paths that are pinned, sorted.
    pub pins: Vec<String>,
    /// Number of the change that made this node a member: another one each time it joins.
    pub joined_at: i64,
    /// All members, also those that are draining: where a block may still be.
    everyone: Arc<Ring>,
}

/// The view, as it is now and as it changes.
pub(crate) type Views = watch::Sender<Arc<View>>;

impl View {
    /// Returns the view that the node `me` has of this layout, before it knows a master.
    pub(crate) fn new(layout: Layout, me: &str) -> View {
        let everyone = Arc::new(layout.ring_of_all());
        View { layout: Arc::new(layout), me: me.to_owned(), everyone, ..View::default() }
    }

    /// Returns this view with another master, or fenced or not.
    pub(crate) fn with(&self, master: &str, is_fenced: bool) -> View {
        View { master: master.to_owned(), is_fenced, ..self.clone() }
    }

    /// Checks whether this node may do what others have to agree to. Everything of that kind asks here,
    /// so that a node that says it is fenced is fenced.
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

    /// True if the member with this key is one of the owners of a block.
    pub(crate) fn owns(&self, member: u64, key: &BlockKey, replicas: usize) -> bool {
        let hash = placement::block_hash(key.file, u64::from(key.block));
        if replicas <= 1 {
            let owner = self.layout.ring().owner(hash);
            return owner.is_some_and(|index| self.layout.members[index].key == member);
        }
        let mut owners = [0; ring::OWNERS_MAX];
        let count = self.layout.ring().owners(
            hash,
            replicas,
            &mut owners[..replicas.min(ring::OWNERS_MAX)],
        );
        owners[..count].iter().any(|&index| self.layout.members[index as usize].key == member)
    }

    /// True if this node is one of the owners of a block. Outside a cluster it owns everything.
    pub(crate) fn owns_itself(&self, key: &BlockKey, replicas: usize) -> bool {
        match self.layout.member(&self.me) {
            Some(member) => self.owns(member.key, key, replicas),
            None => self.layout.members.is_empty(),
        }
    }

    /// Returns how many owners of each block of the file at this path a load is for: the first ones, as many as are
    /// asked for, or with 0 all.
    ///
    /// # Errors
    /// `InvalidArgument` if the mount has fewer, `Busy` while fewer members take part.
    pub(crate) fn copies(&self, path: &str, asked: u8) -> Result<usize, Refusal> {
        let (replicas, asked) = (self.layout.replicas(path), usize::from(asked));
        let active = self.layout.members.iter().filter(|member| member.is_active()).count();
        if asked > replicas {
            let message = format!(
                "{asked} nodes cannot hold each block: what is mounted there has {replicas} replicas (millrace admin \
                 mount --replicas)"
            );
            return Err(Refusal::new(Status::InvalidArgument, message));
        }
        if asked > active.max(1) {
            let message = format!(
                "{asked} nodes are to hold each block, and {active} take part in the cluster"
            );
            return Err(Refusal::new(Status::Busy, message));
        }
        Ok(if asked == 0 { replicas } else { asked })
    }

    /// True if a block of the file at this path is to be kept: the path is pinned, and this node is one
    /// of the owners of the block. A node that only passes it on has no use for it afterwards.
    pub(crate) fn pins(&self, path: &str, key: &BlockKey) -> bool {
        is_pinned(&self.pins, path) && self.owns_itself(key, self.layout.replicas(path))
    }

    /// Returns the owners of a block, as indexes of the members of the layout.
    pub(crate) fn owners(&self, key: &BlockKey, replicas: usize) -> impl Iterator<Item = usize> {
        let hash = placement::block_hash(key.file, u64::from(key.block));
        let mut owners = [0; ring::OWNERS_MAX];
        let wanted = replicas.clamp(1, ring::OWNERS_MAX);
        let count = self.layout.ring().owners(hash, replicas, &mut owners[..wanted]);
        owners.into_iter().take(count).map(|index| index as usize)
    }

    /// Returns the first of the owners of a block.
    pub(crate) fn first_owner(&self, key: &BlockKey) -> Option<&Member> {
        let hash = placement::block_hash(key.file, u64::from(key.block));
        self.layout.ring().owner(hash).map(|index| &self.layout.members[index])
    }

    /// Returns the members that may have a block, the likeliest first, without this node.
    pub(crate) fn holders(&self, key: &BlockKey, replicas: usize) -> impl Iterator<Item = &Member> {
        let hash = placement::block_hash(key.file, u64::from(key.block));
        let mut owners = [0; ring::OWNERS_MAX];
        let wanted = (replicas + 2).min(ring::OWNERS_MAX);
        let count = self.everyone.owners(hash, replicas, &mut owners[..wanted]);
        let owners = owners.into_iter().take(count);
        owners
            .map(|index| &self.layout.members[index as usize])
            .filter(|member| member.id != self.me)
    }
}
