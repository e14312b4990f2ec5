//! What is asked of all members of a cluster: load, status, pins.
//!
//! Outside of a cluster there is one member, the node. Always holds: if a member fails, its part of the
//! work is done by the owner in a later epoch, within the deadline.

use std::sync::Arc;

use millrace_proto::cluster::{ArchivedPinsReply, REPLICAS_MAX};
use millrace_proto::message::{
    ArchivedLoadReply, ArchivedStatusReply, LoadCopiesRequest, LoadRequest,
};
use millrace_proto::status::Next;
use millrace_proto::{Status, frame, placement};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Client, check_path};
use crate::connection::{Body, Reply};
use crate::error::Error;
use crate::file::{ClusterInfo, Entry, File, LoadReport, MemberInfo, MountInfo, NodeStatus};
use crate::member::{MISSED_MAX, Member};
use crate::reply;
use crate::topology::Topology;

/// How often a load is begun again because the file changed meanwhile.
const LOAD_TRIES: usize = 3;
/// Most members that work on an operation at the same time.
const WINDOW_MEMBERS_MAX: usize = 64;

/// What a member answered, or did not.
type MemberAnswer = (Arc<Member>, Result<Reply, Error>);

impl Client {
    /// Brings every block of a file into the caches of the members that own it. A large file takes its
    /// time: see [`Client::with_deadline`].
    ///
    /// # Errors
    /// [`Error::Status`] with `NotFound`, `WrongKind` or `SourceError`; [`Error::Stale`] if the file
    /// changes again and again meanwhile.
    pub async fn load(&self, path: &str) -> Result<LoadReport, Error> {
        self.load_at(path, None).await
    }

    /// As [`Client::load`], at the first `replicas` owners of each block alone: when this returns each block has been
    /// at this many members.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for 0, for more than the mount has, and for more than there are members;
    /// [`Error::Status`] with `UnknownOp` from a node that does not know this; those of [`Client::load`].
    pub async fn load_replicas(&self, path: &str, replicas: u8) -> Result<LoadReport, Error> {
        self.load_at(path, Some(replicas)).await
    }

    async fn load_at(&self, path: &str, replicas: Option<u8>) -> Result<LoadReport, Error> {
        check_path(path)?;
        let deadline = self.deadline();
        if let Some(replicas) = replicas {
            self.check_replicas(path, replicas)?;
        }
        if self.topology().cluster.is_some() {
            return self.load_everywhere(path.into(), replicas, deadline).await;
        }
        let request = || Body::Load(LoadRequest { path: path.to_owned() });
        let block_size = self.network().hello().block_size;
        let decode = |reply: &Reply| load_reply(path, reply, block_size);
        self.call_home(&request, &decode, deadline).await
    }

    /// Returns the counters of the node that was connected to, or of another one of its cluster if it is
    /// gone.
    ///
    /// # Errors
    /// Those of every operation, see [`Client`].
    pub async fn status(&self) -> Result<NodeStatus, Error> {
        self.call_home(&|| Body::Status, &status_reply, self.deadline()).await
    }

    /// Returns the counters of each member, with its id; outside of a cluster with the address that was
    /// connected to. A member that does not answer has an error.
    pub async fn statuses(&self) -> Vec<(String, Result<NodeStatus, Error>)> {
        let topology = self.topology();
        if topology.cluster.is_none() {
            return vec![(self.network().address().to_string(), self.status().await)];
        }
        let members = topology.members().cloned().collect();
        let parts = self.ask_each(members, &|| Body::Status, self.deadline()).await;
        let parts = parts.into_iter().map(|(member, result)| {
            (member.identity.id.clone(), result.and_then(|reply| status_reply(&reply)))
        });
        let mut parts: Vec<_> = parts.collect();
        parts.sort_by(|(first, _), (second, _)| first.cmp(second));
        parts
    }

    /// Returns what is known of the cluster; None if the node is not in a cluster, or does not know yet.
    pub fn cluster(&self) -> Option<ClusterInfo> {
        let topology = self.topology();
        let view = topology.cluster.as_ref()?;
        let members =
            view.layout.members.iter().zip(topology.members()).map(|(told, member)| MemberInfo {
                id: told.id.clone(),
                address: told.address.clone(),
                shards: told.shards.clone(),
                zone: told.zone.clone(),
                is_active: told.is_active(),
                weight: told.weight,
                capacity: told.capacity,
                server: told.server.clone(),
                is_suspect: !member.health.is_well(),
            });
        Some(ClusterInfo {
            id: view.layout.cluster.clone(),
            epoch: view.layout.epoch,
            master: Some(view.master.clone()).filter(|master| !master.is_empty()),
            mounts: view.layout.mounts.iter().map(MountInfo::from).collect(),
            members: members.collect(),
            refused: self.network().refusal(),
        })
    }

    /// Returns the paths that are pinned, sorted, as the node that was connected to knows them. It
    /// learns of a change a moment after [`Client::pin`] has returned.
    ///
    /// # Errors
    /// Those of every operation, see [`Client`]; [`Error::InvalidArgument`] outside of a cluster.
    pub async fn pins(&self) -> Result<Vec<String>, Error> {
        if self.topology().cluster.is_none() {
            let text = "the node is in no cluster, so nothing can be pinned";
            return Err(Error::InvalidArgument(text.to_owned()));
        }
        let decode = |reply: &Reply| {
            let reply = frame::body::<ArchivedPinsReply>(&reply.body)?;
            Ok(reply.pins.iter().map(|pin| pin.as_str().to_owned()).collect())
        };
        self.call_home(&|| Body::Pins, &decode, self.deadline()).await
    }

    /// Asks these members the same, several at a time.
    pub(crate) async fn ask_each(
        &self,
        members: Vec<Arc<Member>>,
        request: &(dyn Fn() -> Body + Send + Sync),
        deadline: Instant,
    ) -> Vec<MemberAnswer> {
        let mut parts = Vec::with_capacity(members.len());
        let mut waiting = members.into_iter();
        let mut tasks = JoinSet::new();
        loop {
            while tasks.len() < WINDOW_MEMBERS_MAX
                && let Some(member) = waiting.next()
            {
                let body = request();
                tasks.spawn(async move {
                    let result = ask(&member, body, deadline).await;
                    (member, result)
                });
            }
            match tasks.join_next().await {
                None => return parts,
                Some(Ok(part)) => parts.push(part),
                // Only when the runtime stops.
                Some(Err(_)) => {}
            }
        }
    }

    /// Checks that this many members can hold each block of a file, or of the files below a directory.
    pub(crate) fn check_replicas(&self, path: &str, replicas: u8) -> Result<(), Error> {
        let topology = self.topology();
        let (mounted, active) = match &topology.cluster {
            Some(view) => {
                let active = view.layout.members.iter().filter(|member| member.is_active());
                (view.layout.replicas(path), active.count())
            }
            None => (1, 1),
        };
        let replicas = usize::from(replicas);
        let refuse = |text: String| Err(Error::InvalidArgument(text));
        match replicas {
            0 => refuse("0 replicas: at least 1 node has to hold each block".to_owned()),
            _ if replicas > mounted => refuse(format!(
                "{replicas} nodes cannot hold each block of '{path}', because what is mounted there has {mounted} \
                 replicas: see `millrace admin mount --replicas`"
            )),
            _ if replicas > active => refuse(format!(
                "{replicas} nodes cannot hold each block, because {active} take part in the cluster"
            )),
            _ => Ok(()),
        }
    }

    /// Loads a file at all members that own blocks of it, or at this many of the owners of each block, the first ones.
    async fn load_everywhere(
        &self,
        path: Arc<str>,
        replicas: Option<u8>,
        deadline: Instant,
    ) -> Result<LoadReport, Error> {
        for _ in 0..LOAD_TRIES {
            let file = self.stat_until(path.clone(), deadline).await?;
            if let Some(report) = self.load_version(file, replicas, deadline).await? {
                return Ok(report);
            }
            // The node that looks paths up may believe longer than those that load.
            self.network().doubts().note(&path);
        }
        Err(reply::stale(&path))
    }

    /// Loads one version; None if members know another one.
    async fn load_version(
        &self,
        file: File,
        replicas: Option<u8>,
        deadline: Instant,
    ) -> Result<Option<LoadReport>, Error> {
        let request = || {
            let path = file.path.as_ref().to_owned();
            match replicas {
                None => Body::Load(LoadRequest { path }),
                Some(replicas) => Body::LoadCopies(LoadCopiesRequest { path, replicas }),
            }
        };
        let expected = replicas.map(|replicas| u64::from(replicas) * file.block_count());
        let mut retry = self.retry(deadline);
        let mut filled_count = 0;
        let mut block_count = 0;
        // The epoch that the parts belong to.
        let mut epoch = 0;
        let mut done: Vec<Arc<Member>> = Vec::new();
        loop {
            if let Some(replicas) = replicas {
                self.check_replicas(&file.path, replicas)?;
            }
            let topology = self.topology();
            let epoch_now = topology.cluster.as_ref().map_or(0, |view| view.layout.epoch);
            if epoch_now != epoch {
                // Blocks may have other owners: what is loaded counts again, and is not read again.
                (epoch, block_count) = (epoch_now, 0);
                done.clear();
            }
            let mut left = owners(&topology, &file, replicas);
            if left.is_empty() {
                // A file without blocks, or no file at all: any member can answer.
                let order = topology.order_of_path(&file.path);
                left.extend(order.first().map(|&index| topology.member(index).clone()));
            }
            left.retain(|member| !has(&done, member));
            let mut cause = None;
            for (member, result) in self.ask_each(left, &request, deadline).await {
                let reply = match result {
                    Ok(reply) => reply,
                    Err(error) => {
                        cause = Some(passing(error)?);
                        continue;
                    }
                };
                let part = load_reply(&file.path, &reply, file.block_size)?;
                if part.file.version != file.version {
                    return Ok(None);
                }
                block_count += part.block_count;
                filled_count += part.filled_count;
                done.push(member);
            }
            let is_counted = expected.is_none_or(|expected| expected == block_count);
            if cause.is_none() && !is_counted {
                // Members that have not seen the same epoch yet count other blocks.
                (block_count, cause) = (0, Some(disagreement()));
                done.clear();
            }
            match cause {
                None => return Ok(Some(LoadReport { file, block_count, filled_count })),
                Some(cause) => retry.pause(std::time::Duration::ZERO, cause).await?,
            }
        }
    }
}

/// Returns the error of a load whose members count other blocks than their ring says.
fn disagreement() -> Error {
    let message = "the members do not agree yet on which of them owns its blocks".to_owned();
    Error::Status { status: Status::Busy, message }
}

/// Returns the members that own blocks of a file, or are among the first owners of one, this many.
fn owners(topology: &Topology, file: &File, replicas: Option<u8>) -> Vec<Arc<Member>> {
    let Some(view) = &topology.cluster else {
        return topology.members().cloned().collect();
    };
    let told = view.layout.members.iter().zip(topology.members());
    let active = told.filter(|(told, _)| told.is_active()).map(|(_, member)| member);
    if file.block_count() > 4 * topology.member_count() as u64 {
        return active.cloned().collect();
    }
    let mut is_owner = vec![false; topology.member_count()];
    let mut owners = [0; REPLICAS_MAX as usize];
    let replicas = replicas.map_or_else(|| view.layout.replicas(&file.path), usize::from);
    let replicas = replicas.min(owners.len());
    for block in 0..file.block_count() {
        let hash = placement::block_hash(file.id.into(), block);
        let count = view.layout.ring().owners(hash, replicas, &mut owners[..replicas]);
        for &owner in &owners[..count] {
            is_owner[owner as usize] = true;
        }
    }
    let owners = topology.members().zip(is_owner).filter(|(_, is_owner)| *is_owner);
    owners.map(|(member, _)| member.clone()).collect()
}

fn has(members: &[Arc<Member>], member: &Arc<Member>) -> bool {
    members.iter().any(|other| Arc::ptr_eq(other, member))
}

/// Asks one member and waits as long as it lives.
pub(crate) async fn ask(
    member: &Arc<Member>,
    body: Body,
    deadline: Instant,
) -> Result<Reply, Error> {
    let reply = match member.ask_watched(body, deadline, MISSED_MAX).await {
        Ok(reply) => reply,
        Err(error) => {
            if !matches!(error, Error::DeadlineExceeded) {
                member.suspect(0, false);
            }
            return Err(error);
        }
    };
    if reply.header.status().next() == Next::Use {
        return Ok(reply);
    }
    Err(reply::status_error(&reply))
}

/// Passes an error that may be another one later.
pub(crate) fn passing(error: Error) -> Result<Error, Error> {
    match &error {
        Error::Connect { .. } | Error::NoHello { .. } | Error::ConnectionLost { .. } => Ok(error),
        Error::DeadlineExceeded => Ok(error),
        Error::Status { status, .. } => match status.next() {
            Next::Retry | Next::Reconnect => Ok(error),
            _ => Err(error),
        },
        _ => Err(error),
    }
}

fn load_reply(path: &str, reply: &Reply, block_size: u32) -> Result<LoadReport, Error> {
    let report = frame::body::<ArchivedLoadReply>(&reply.body)?;
    Ok(LoadReport {
        file: File::new(path.into(), &Entry::from(&report.entry), block_size),
        block_count: report.block_count.to_native(),
        filled_count: report.filled_count.to_native(),
    })
}

pub(crate) fn status_reply(reply: &Reply) -> Result<NodeStatus, Error> {
    Ok(frame::body::<ArchivedStatusReply>(&reply.body)?.into())
}
