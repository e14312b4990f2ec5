//! The side thread's part in the cluster: where blocks are taken from, and what is pulled over.

use std::sync::Arc;
use std::time::Duration;

use millrace_client::peer::Peer;
use millrace_proto::Status;
use millrace_proto::cluster::{InventoryFile, Member};
use millrace_proto::frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Answer, Context, Failure, FillFrom, FillJob, Lookup, LookupJob, encode};
use crate::cache::BlockKey;
use crate::cluster::handover::{Brought, Puller};
use crate::cluster::peers::Wanted;
use crate::cluster::{Command, View};
use crate::connection::reply_header;
use crate::files::FileRecord;
use crate::mailbox::{Ensured, Filling, Requester};
use crate::memory::Blank;
use crate::store::StoreError;

/// Inventories that are made at once: each goes over the entries of the shards.
const INVENTORIES_MAX: usize = 4;
/// Commands that wait for the master's work at once.
const COMMANDS_MAX: usize = 64;
/// Longest time of a command without a budget.
const COMMAND_TIME: Duration = Duration::from_secs(10);

/// Answers what needs no source: however long sources take, it is answered.
pub(super) async fn serve(context: Arc<Context>, jobs: flume::Receiver<LookupJob>) {
    let inventories = Arc::new(Semaphore::new(INVENTORIES_MAX));
    let commands = Arc::new(Semaphore::new(COMMANDS_MAX));
    while let Ok(LookupJob { requester, lookup }) = jobs.recv_async().await {
        let slot = match &lookup {
            Lookup::Inventory { .. } => Some(Arc::clone(&inventories).try_acquire_owned()),
            Lookup::Command(_) => Some(Arc::clone(&commands).try_acquire_owned()),
            // Waits for as long as nothing happens, and costs little meanwhile.
            _ => None,
        };
        let context = Arc::clone(&context);
        let Ok(slot) = slot.transpose() else {
            let failure = Failure::new(Status::Busy, "too many of these at once: try again");
            context.answer(requester, Err(failure)).await;
            continue;
        };
        tokio::spawn(async move {
            let budget = context.budget(&requester);
            let answer = match lookup {
                Lookup::Ring { epoch, first, wait } => {
                    let reply = context.cluster.ring(epoch, first, wait, budget).await;
                    Ok(encode(&requester, &reply))
                }
                Lookup::Inventory { key, epoch, cursor } => {
                    let what = (key, epoch, cursor);
                    let reply =
                        context.cluster.inventory(&context.shards, &context.files, what).await;
                    reply.map(|reply| encode(&requester, &reply)).map_err(Failure::from)
                }
                Lookup::Command(command) => context.command(&requester, command, budget).await,
                Lookup::Pins => Ok(encode(&requester, &context.cluster.pins())),
                _ => unreachable!("only these come here"),
            };
            context.answer(requester, answer).await;
            drop(slot);
        });
    }
}

impl Context {
    /// Has the master do something, within the time there is for it.
    async fn command(
        &self,
        requester: &Requester,
        command: Command,
        budget: Option<Duration>,
    ) -> Answer {
        let patience = budget.unwrap_or(COMMAND_TIME).min(COMMAND_TIME);
        match timeout(patience, self.cluster.command(command)).await {
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

    /// Whether a member did not answer a moment ago.
    fn is_avoided(&self, id: &str) -> bool {
        self.cluster.view().member(id).is_some_and(|member| self.peers.get(member).is_none())
    }

    /// The node's milliseconds.
    pub(super) fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Time that is left of a request's budget.
    pub(super) fn budget(&self, requester: &Requester) -> Option<Duration> {
        let end = Duration::from_millis(requester.deadline?);
        Some(end.saturating_sub(self.started.elapsed()))
    }

    /// Whether other nodes are asked for a block before the source is, if that is asked at all.
    pub(super) fn asks_others(&self, job: &FillJob) -> bool {
        let view = self.cluster.view();
        let replicas = view.replicas(&job.path);
        match job.from {
            FillFrom::Source => false,
            FillFrom::Member(_) => true,
            FillFrom::Anywhere => {
                view.members.len() > 1
                    && (replicas > 1
                        || self.progress.asks_holders(self.now_ms())
                        || !view.owns_itself(&job.key, replicas))
            }
        }
    }

    /// Brings the bytes of a block: from a node that has it, where that is likely, else from the
    /// source, as one of its readers. With `reads` it is one already, and asks nobody else.
    pub(super) async fn fill(
        &self,
        job: FillJob,
        reads: &mut Option<OwnedSemaphorePermit>,
    ) -> (Blank, Result<Filling, StoreError>) {
        let asks_others = reads.is_none();
        let FillJob { key, version, path, offset, mut blank, from, .. } = job;
        if self.store.identify(&path) != key.file {
            // The same file may be mounted elsewhere, too: what is in memory of it stays.
            self.files.forget(key.file);
            return (blank, Err(StoreError::Remounted));
        }
        let view = self.cluster.view();
        if let FillFrom::Member(id) = &from {
            let is_here = match view.member(id) {
                Some(member) => self.peers.pull(member, (key, version), &mut blank).await,
                None => false,
            };
            let result = if is_here { Ok(Filling::Peer) } else { Err(StoreError::NotCached) };
            return (blank, result);
        }
        if asks_others {
            let replicas = view.replicas(&path);
            let wanted = Wanted { key, version, path: &path, replicas };
            if self.peers.fill(&view, wanted, &mut blank).await {
                return (blank, Ok(Filling::Peer));
            }
        }
        if reads.is_none() {
            *reads = Some(Arc::clone(&self.reads).acquire_owned().await.expect("never closed"));
        }
        let (blank, result) = self.store.fill(path, version, offset, blank).await;
        (blank, result.map(|()| Filling::Source))
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
            None => {
                let (path, version) = (file.path.as_str().into(), file.version);
                let record = FileRecord { path, version, length: file.length };
                // Nothing was known, so nothing is replaced.
                self.files.note(file.id, record);
                true
            }
        }
    }

    async fn bring(&self, source: &str, blocks: Vec<(BlockKey, u64)>) -> Vec<Brought> {
        let source: Arc<str> = source.into();
        let mut tasks = JoinSet::new();
        for (key, version) in blocks {
            let context = Arc::clone(self);
            let source = Arc::clone(&source);
            let from = FillFrom::Member(Arc::clone(&source));
            tasks.spawn(async move {
                let ensured = Arc::clone(&context).ensure(key, version, from, None).await;
                match ensured {
                    Ok(Ensured::Filled(Filling::Peer, length)) => Brought::Moved(length.into()),
                    Ok(_) => Brought::Here,
                    Err(failure)
                        if failure.status == Status::NotCached && context.is_avoided(&source) =>
                    {
                        Brought::Failed((key, version))
                    }
                    // It has changed, or is gone: nobody wants it any more, or who does will ask.
                    Err(_) => Brought::Here,
                }
            });
        }
        let mut brought = Vec::new();
        while let Some(one) = tasks.join_next().await {
            brought.extend(one.ok());
        }
        brought
    }

    fn keep(&self, view: &View) {
        self.peers.keep(view);
    }

    fn now_ms(&self) -> u64 {
        Context::now_ms(self)
    }
}
