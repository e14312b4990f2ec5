//! The side thread's part in the cluster: what needs no source, and what is pulled over.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use millrace_client::Error;
use millrace_client::peer::{MasterOrder, Peer};
use millrace_proto::Status;
use millrace_proto::cluster::{DrainRequest, InventoryFile, Member, MountRequest, PinRequest};
use millrace_proto::frame;
use millrace_proto::job::{CancelJobRequest, JobsReply, StartCopiesJobRequest, StartJobRequest};
use millrace_proto::message::{CACHED_BLOCKS_MAX, CachedReply, CachedRequest};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::lookups::Caller;
use super::{Answer, ClusterLookup, Context, Failure, LookupJob, encode};
use crate::cache::BlockKey;
use crate::cluster::handover::{Brought, Puller};
use crate::cluster::job::{JobCommand, no_job, unix_ms};
use crate::cluster::{Command, Refusal, View};
use crate::files::FileRecord;
use crate::mailbox::{Dropped, Ensured, FillFrom, Filling, Mail, Requester, reply_header};

/// Inventories that are made at once: each goes over the entries of the shards.
const INVENTORIES_MAX: usize = 4;
/// Commands that wait for the master's work at once.
const COMMANDS_MAX: usize = 64;
/// Longest time of a command without a budget.
const COMMAND_TIME: Duration = Duration::from_secs(10);

/// Answers what needs no source: however long sources take, it is answered.
pub(super) async fn serve(context: Arc<Context>, jobs: flume::Receiver<LookupJob<ClusterLookup>>) {
    let inventories = Arc::new(Semaphore::new(INVENTORIES_MAX));
    let commands = Arc::new(Semaphore::new(COMMANDS_MAX));
    while let Ok(LookupJob { requester, ticket, lookup }) = jobs.recv_async().await {
        if ticket.is_gone() {
            continue;
        }
        let slot = match &lookup {
            ClusterLookup::Command { .. } => Some(Arc::clone(&commands).try_acquire_owned()),
            // This waits as long as nothing happens, and costs little meanwhile.
            _ => None,
        };
        let (context, inventories) = (Arc::clone(&context), Arc::clone(&inventories));
        let Ok(slot) = slot.transpose() else {
            let failure = Failure::new(Status::Busy, "too many of these at once: try again");
            context.answer(requester, Err(failure)).await;
            continue;
        };
        tokio::spawn(async move {
            let caller = Caller { requester: &requester, ticket: &ticket };
            let answer = tokio::select! {
                answer = context.answer_of(caller, lookup, &inventories) => answer,
                () = ticket.gone() => return,
            };
            context.answer(requester, answer).await;
            drop(slot);
        });
    }
}

impl Context {
    async fn answer_of(
        &self,
        Caller { requester, ticket }: Caller<'_>,
        lookup: ClusterLookup,
        inventories: &Semaphore,
    ) -> Answer {
        let budget = self.budget(requester);
        match lookup {
            ClusterLookup::Ring { epoch, first, wait } => {
                let reply = self.cluster.ring(epoch, first, wait, budget).await;
                Ok(encode(requester, &reply))
            }
            ClusterLookup::Inventory(request) => {
                let busy = || Failure::new(Status::Busy, "too many inventories at once: try again");
                let _turn = ticket.turn().await.ok_or_else(busy)?;
                let _slot = inventories.try_acquire().map_err(|_| busy())?;
                let reply = self.cluster.inventory(&self.shards, &self.files, request).await;
                reply.map(|reply| encode(requester, &reply)).map_err(Failure::from)
            }
            ClusterLookup::Cached(request) => {
                self.cached(&request).await.map(|reply| encode(requester, &reply))
            }
            ClusterLookup::Command { command, passes_on } => {
                self.command(requester, command, passes_on, budget).await
            }
            ClusterLookup::Pins => Ok(encode(requester, &self.cluster.pins())),
            ClusterLookup::Jobs(id) => self.jobs(requester, id, budget).await,
        }
    }

    /// Returns which blocks of a file are in memory here.
    async fn cached(&self, request: &CachedRequest) -> Result<CachedReply, Failure> {
        let CachedRequest { file, version, first, count } = *request;
        if count == 0 || count > CACHED_BLOCKS_MAX {
            let message =
                format!("1 to {CACHED_BLOCKS_MAX} blocks are asked for at a time, not {count}");
            return Err(Failure { status: Status::InvalidArgument, message });
        }
        let mut replies = Vec::with_capacity(self.shards.len());
        for shard in self.shards.iter() {
            let (reply, receiver) = flume::bounded(1);
            let blocks = first..first.saturating_add(count);
            shard.post_when_room(Mail::Which { file, version, blocks, reply }).await;
            replies.push(receiver);
        }
        let mut reply = CachedReply { blocks: vec![0; count.div_ceil(8) as usize] };
        for receiver in replies {
            // A shard that stopped meanwhile has nothing any more.
            let Ok(here) = receiver.recv_async().await else { continue };
            for block in here {
                let place = block - first;
                reply.blocks[place as usize / 8] |= 1 << (place % 8);
            }
        }
        Ok(reply)
    }

    /// Returns all jobs without their failures, or one with them.
    async fn jobs(
        &self,
        requester: &Requester,
        id: Option<u64>,
        budget: Option<Duration>,
    ) -> Answer {
        let patience = budget.unwrap_or(COMMAND_TIME).min(COMMAND_TIME);
        let Ok(jobs) = timeout(patience, self.cluster.jobs()).await else {
            return Err(Failure::new(Status::Fenced, "coordination does not answer"));
        };
        let (mut jobs, now_ms) = (jobs?, unix_ms());
        jobs.retain(|job| match id {
            Some(id) => job.spec.id == id,
            None => !job.is_old(now_ms),
        });
        match id {
            Some(id) if jobs.is_empty() => Err(no_job(id).into()),
            _ => {
                let jobs = jobs.iter().map(|job| job.job(id.is_some())).collect();
                Ok(encode(requester, &JobsReply { jobs }))
            }
        }
    }

    /// Has the master do something, within the time there is for it.
    async fn command(
        &self,
        requester: &Requester,
        command: Command,
        passes_on: bool,
        budget: Option<Duration>,
    ) -> Answer {
        let patience = budget.unwrap_or(COMMAND_TIME).min(COMMAND_TIME);
        let done = async {
            match self.cluster.command(command.clone()).await {
                Err(refusal) if passes_on && refusal.status == Status::NotMaster => {
                    self.pass_on(command, refusal, patience).await
                }
                done => done.map_err(Failure::from),
            }
        };
        match timeout(patience, done).await {
            Ok(done) => done?,
            Err(_) => {
                let message = "coordination does not answer: it may be done or not, look again";
                return Err(Failure::new(Status::Fenced, message));
            }
        }
        let mut bytes = Vec::new();
        frame::encode_empty(&mut bytes, reply_header(&requester.header, 0, Status::Ok));
        Ok(bytes)
    }

    /// Passes a command on to the master, because this node cannot carry it out: `refusal` is its own
    /// answer.
    async fn pass_on(
        &self,
        command: Command,
        refusal: Refusal,
        patience: Duration,
    ) -> Result<(), Failure> {
        let view = self.cluster.view();
        let master = view.layout.member(&view.master).filter(|master| master.id != view.me);
        let Some(master) = master else { return Err(refusal.into()) };
        if !self.peers.has_secret() {
            let message = format!(
                "{}, and would not believe that this node asks, because the cluster has no secret: ask \
                 at the administration socket of the master",
                refusal.message
            );
            return Err(Failure { status: Status::NotMaster, message });
        }
        let order = match command {
            Command::Drain { node, undo } => {
                MasterOrder::Drain(DrainRequest { node, undo: undo.into() })
            }
            Command::Mount { mount, remove } => {
                MasterOrder::Mount(MountRequest { mount, remove: remove.into() })
            }
            Command::Pin { path, undo } => MasterOrder::Pin(PinRequest { path, undo: undo.into() }),
            Command::Job(JobCommand::Start(spec)) => {
                let job = StartJobRequest {
                    id: spec.id,
                    paths: spec.paths,
                    recursive: spec.recursive.into(),
                    pin: spec.pin.into(),
                    bytes_per_second: spec.bytes_per_second,
                };
                MasterOrder::StartJob(StartCopiesJobRequest { job, replicas: spec.replicas })
            }
            Command::Job(JobCommand::Cancel(id)) => MasterOrder::CancelJob(CancelJobRequest { id }),
            // These commands are the master's own.
            Command::Job(JobCommand::Record(_)) | Command::Report(_) => return Err(refusal.into()),
        };
        let Some(peer) = self.peers.get(master) else { return Err(refusal.into()) };
        peer.tell(order, patience).await.map_err(|error| failure_of(&master.id, error))
    }

    /// Drops the blocks of a file at all other members; returns what that was.
    ///
    /// # Errors
    /// If one of them did not do it; the others may have.
    pub(super) async fn free_at_others(
        &self,
        path: &Arc<str>,
        budget: Option<Duration>,
    ) -> Result<Dropped, Failure> {
        let view = self.cluster.view();
        let patience = budget.unwrap_or(COMMAND_TIME).min(COMMAND_TIME);
        let mut frees = Vec::new();
        for member in view.layout.members.iter().filter(|member| member.id != view.me) {
            let Some(peer) = self.peers.get(member) else {
                let message =
                    format!("{} did not answer a moment ago: what it has stays", member.id);
                return Err(Failure { status: Status::Busy, message });
            };
            let (id, path) = (member.id.clone(), Arc::clone(path));
            frees.push(async move { (id, peer.free(&path, patience).await) });
        }
        let mut frees = FuturesUnordered::from_iter(frees);
        let mut total = Dropped::default();
        while let Some((id, freed)) = frees.next().await {
            let freed = match freed {
                // The member never had anything of it, and its source is gone or no longer has it.
                Err(Error::Status { status: Status::NotFound, .. }) => continue,
                freed => freed.map_err(|error| failure_of(&id, error))?,
            };
            total.block_count += freed.block_count;
            total.byte_count += freed.byte_count;
        }
        Ok(total)
    }

    /// True if a member did not answer a moment ago.
    fn is_avoided(&self, id: &str) -> bool {
        self.cluster.view().layout.member(id).is_some_and(|member| self.peers.get(member).is_none())
    }

    /// Returns the node's milliseconds.
    pub(super) fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Returns the time that is left of a request's budget.
    pub(super) fn budget(&self, requester: &Requester) -> Option<Duration> {
        let end = Duration::from_millis(requester.deadline?);
        Some(end.saturating_sub(self.started.elapsed()))
    }
}

/// Returns the answer to a client about another member that did not do something.
fn failure_of(id: &str, error: Error) -> Failure {
    match error {
        Error::Status { status, message } => {
            Failure { status, message: format!("{id}: {message}") }
        }
        error => Failure {
            status: Status::Fenced,
            message: format!("{id} does not answer ({error}): it may be done or not, look again"),
        },
    }
}

impl Puller for Arc<Context> {
    fn view(&self) -> Arc<View> {
        self.cluster.view()
    }

    fn peer(&self, member: &Member) -> Option<Arc<Peer>> {
        self.peers.get(member)
    }

    fn note(&self, file: &InventoryFile) -> bool {
        if self.store.identify(&file.path) != file.id {
            return false;
        }
        match self.files.get(file.id) {
            Some(record) => record.version == file.version,
            None if !self.is_servable(&file.path, file.length) => false,
            None => {
                let path: Arc<str> = file.path.as_str().into();
                let version = file.version;
                let is_read_in_parts = self.store.is_read_in_parts(&path);
                let is_stored = self.store.is_stored(&path);
                let length = file.length;
                let record = FileRecord { path, version, length, is_read_in_parts, is_stored };
                // Nothing was known, so nothing is replaced.
                self.files.note(file.id, record);
                true
            }
        }
    }

    async fn bring(&self, source: &str, blocks: Vec<(BlockKey, u64)>) -> Vec<Brought> {
        let source: &Arc<str> = &source.into();
        let bring = |(key, version)| async move {
            let from = FillFrom::Member(Arc::clone(source));
            match Arc::clone(self).ensure(key, version, from, None).await {
                Ok(Ensured::Filled(Filling::Peer, length)) => Brought::Moved(length.into()),
                Ok(Ensured::NotThere) if self.is_avoided(source) => Brought::Failed((key, version)),
                Ok(_) => Brought::Here,
                // It has changed, or is gone: a read that still wants it asks for it.
                Err(_) => Brought::Here,
            }
        };
        blocks.into_iter().map(bring).collect::<FuturesUnordered<_>>().collect().await
    }

    fn keep(&self, view: &View) {
        self.peers.keep(view);
    }

    fn now_ms(&self) -> u64 {
        Context::now_ms(self)
    }
}
