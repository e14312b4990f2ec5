//! The node's one side thread: a small tokio runtime that talks to the under-store, so that no shard
//! ever waits for it.
//!
//! Owns fills, look-ups of paths, loads and frees. Always holds: every job it took is answered to the
//! shard it came from, and every blank goes back there, until the thread is stopped. Queues are bounded;
//! a full one gives the job back and the shard answers `Busy`. Leaves memory and blocks to the shards.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millrace_proto::message::{
    Entry, FreeReply, Kind, LIST_PAGE_BYTES_MAX, ListReply, LoadReply, StatReply,
};
use millrace_proto::{FileId, Status, frame, placement};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cache::BlockKey;
use crate::cluster::answers::Cluster;
use crate::cluster::handover::{self, Progress};
use crate::cluster::peers::Peers;
use crate::cluster::session::Session;
use crate::cluster::{Command, Refusal, pins, report};
use crate::config::Config;
use crate::connection::reply_header;
use crate::files::{FileRecord, FileTable};
use crate::mailbox::{Dropped, Ensured, Filling, Mail, Mailboxes, Requester};
use crate::memory::Blank;
use crate::metrics::Counters;
use crate::store::{Found, StoreError, UnderStore, check_path};

mod cluster;

/// Look-ups of paths at once. Guessed: enough to keep a slow network file system busy.
const LOOKUPS_MAX: usize = 16;
/// Blocks of one file that a load has under way. Guessed: with 64 loads at once still within the
/// default fill queue.
const LOAD_WINDOW: usize = 8;
/// How long a load waits when a shard is busy, before it asks again.
const LOAD_RETRY: Duration = Duration::from_millis(5);
/// Most entries of one `List` page.
const LIST_PAGE_MAX: usize = 1000;
/// Bytes of an archived entry without its name.
const ENTRY_SIZE: usize = 64;

/// A block to read.
#[derive(Debug)]
pub(crate) struct FillJob {
    /// Shard that owns the block.
    pub shard: u32,
    /// The block.
    pub key: BlockKey,
    /// Version it has to be of.
    pub version: u64,
    /// Path of the file.
    pub path: Arc<str>,
    /// Offset of the block in the file in bytes.
    pub offset: u64,
    /// Where the bytes go.
    pub blank: Blank,
    /// Where it may be taken from.
    pub from: FillFrom,
}

/// Where a block may be taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FillFrom {
    /// Another node where that is likely to have it, else the source.
    Anywhere,
    /// The source: another node asked, which has asked others already.
    Source,
    /// This member, which says that it has it. If not, it is not wanted so much.
    Member(Arc<str>),
}

/// A request that needs the source or all shards.
#[derive(Debug)]
pub(crate) enum Lookup {
    Stat { path: Arc<str> },
    List { path: Arc<str>, token: Arc<str>, limit: u32 },
    Load { path: Arc<str> },
    Free { path: Arc<str> },
    Ring { epoch: u64, first: u32, wait: bool },
    Inventory { key: u64, epoch: u64, cursor: u64 },
    Pins,
    Command(Command),
}

/// A look-up and who waits for it.
#[derive(Debug)]
pub(crate) struct LookupJob {
    pub requester: Requester,
    pub lookup: Lookup,
}

/// The queues into the side thread.
#[derive(Clone)]
pub(crate) struct SideQueue {
    fills: flume::Sender<FillJob>,
    lookups: flume::Sender<LookupJob>,
    /// Look-ups that need no source, and so never wait behind those that do.
    cluster: flume::Sender<LookupJob>,
}

impl SideQueue {
    /// Queues whose other ends a test holds.
    #[cfg(test)]
    pub(crate) fn for_tests(
        fills: flume::Sender<FillJob>,
        lookups: flume::Sender<LookupJob>,
    ) -> SideQueue {
        SideQueue { fills, cluster: lookups.clone(), lookups }
    }

    /// Queues a fill. A full queue gives the blank back.
    pub(crate) fn offer_fill(&self, job: FillJob) -> Result<(), Blank> {
        self.fills.try_send(job).map_err(|error| error.into_inner().blank)
    }

    /// Queues a look-up. A full queue refuses it.
    pub(crate) fn offer_lookup(&self, job: LookupJob) -> Result<(), ()> {
        let queue = match job.lookup {
            Lookup::Ring { .. } | Lookup::Inventory { .. } | Lookup::Command(_) | Lookup::Pins => {
                &self.cluster
            }
            _ => &self.lookups,
        };
        queue.try_send(job).map_err(|_| ())
    }
}

/// The running side thread.
pub(crate) struct Side {
    pub(crate) queue: SideQueue,
    /// Dropped to stop the thread.
    pub(crate) stop: flume::Sender<()>,
    pub(crate) thread: JoinHandle<()>,
}

/// What the side thread works with.
pub(crate) struct Parts {
    pub(crate) store: Arc<dyn UnderStore>,
    pub(crate) files: Arc<FileTable>,
    pub(crate) shards: Mailboxes,
    pub(crate) cluster: Cluster,
    pub(crate) progress: Arc<Progress>,
    pub(crate) counters: Arc<[Counters]>,
    /// Keeps the node in its cluster, if it is in one.
    pub(crate) session: Option<Session>,
    /// When the node began to count time.
    pub(crate) started: Instant,
}

/// What every job needs.
struct Context {
    store: Arc<dyn UnderStore>,
    files: Arc<FileTable>,
    shards: Mailboxes,
    cluster: Cluster,
    peers: Peers,
    progress: Arc<Progress>,
    /// Reads of the source at once.
    reads: Arc<Semaphore>,
    block_size: u32,
    loads: Arc<Semaphore>,
    started: Instant,
}

/// Starts the thread. It ends when `stop` is dropped, whatever the source is doing.
///
/// # Errors
/// If the thread or its runtime cannot be made.
pub(crate) fn start(config: &Config, parts: Parts) -> io::Result<Side> {
    let Parts { store, files, shards, cluster, progress, counters, session, started } = parts;
    let (fill_sender, fills) = flume::bounded::<FillJob>(config.fill_queue_max);
    let (lookup_sender, lookups) = flume::bounded::<LookupJob>(config.metadata_queue_max);
    let (cluster_sender, of_cluster) = flume::bounded::<LookupJob>(config.metadata_queue_max);
    let (fill_concurrency, fill_queue_max) = (config.fill_concurrency, config.fill_queue_max);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(fill_concurrency + LOOKUPS_MAX)
        .thread_name("millrace-fill")
        // Reading needs little stack; 528 threads at most should not cost a gigabyte of address space.
        .thread_stack_size(256 << 10)
        .build()?;
    let context = Arc::new(Context {
        store,
        files,
        shards,
        cluster,
        peers: Peers::new(config.block_size),
        progress,
        reads: Arc::new(Semaphore::new(fill_concurrency)),
        block_size: config.block_size,
        loads: Arc::new(Semaphore::new(config.load_concurrency)),
        started,
    });
    let (stop, stopped) = flume::bounded::<()>(1);
    let cpus = config.cpus.clone();
    let handover_rate = config.handover_rate;
    let thread = std::thread::Builder::new().name("millrace-side".to_owned()).spawn(move || {
        // The pool's threads inherit this: the node stays on the processors it was given.
        if let Err(error) = crate::runtime::confine(&cpus) {
            tracing::warn!("pin the side thread to processors {cpus:?}: {error}");
        }
        let fills = serve_fills(Arc::clone(&context), fills, fill_queue_max);
        let lookups = serve_lookups(Arc::clone(&context), lookups);
        let of_cluster = cluster::serve(Arc::clone(&context), of_cluster);
        let handover = async {
            let (progress, views) = (&context.progress, context.cluster.views.subscribe());
            handover::run(&context, progress, views, handover_rate).await;
        };
        let own = report::Own { counters, progress: Arc::clone(&context.progress) };
        let report = report::run(&context.cluster, &context.peers, own);
        let pins = pins::run(&context.shards, &context.files, context.cluster.views.subscribe());
        runtime.block_on(async {
            // Ends by itself when the node leaves, and with the runtime.
            let _session = session.map(|session| tokio::spawn(session.run()));
            tokio::select! {
                _ = async { tokio::join!(fills, lookups, of_cluster, handover, pins, report) } => (),
                // Nothing is sent: the other end is dropped once every shard has ended.
                _ = stopped.recv_async() => (),
            }
        });
        // A read that hangs in the source must not keep the node from stopping.
        runtime.shutdown_timeout(Duration::from_secs(1));
    })?;
    let queue = SideQueue { fills: fill_sender, lookups: lookup_sender, cluster: cluster_sender };
    Ok(Side { queue, stop, thread })
}

/// Serves fills: as many as the source takes at once, and `others_max` that wait for other nodes. Those
/// do not count as readers: two nodes that wait for each other would keep each other from reading.
async fn serve_fills(context: Arc<Context>, jobs: flume::Receiver<FillJob>, others_max: usize) {
    let others = Arc::new(Semaphore::new(others_max));
    while let Ok(mut job) = jobs.recv_async().await {
        let others = context.asks_others(&job).then(|| Arc::clone(&others).try_acquire_owned());
        let (waits, mut reads) = match others {
            Some(Ok(slot)) => (Some(slot), None),
            too_many => {
                if too_many.is_some() && job.from == FillFrom::Anywhere {
                    job.from = FillFrom::Source;
                }
                let reads = Arc::clone(&context.reads).acquire_owned().await;
                (None, Some(reads.expect("never closed")))
            }
        };
        let context = Arc::clone(&context);
        tokio::spawn(async move {
            let (shard, key, version) = (job.shard, job.key, job.version);
            let path = Arc::clone(&job.path);
            let (blank, result) = context.fill(job, &mut reads).await;
            let result = match result {
                Ok(filling) => {
                    let (block, sums) = blank.freeze();
                    Ok((block, sums, filling))
                }
                Err(error) => Err((blank, error)),
            };
            if matches!(result, Err((_, StoreError::Changed | StoreError::NotFound))) {
                context.forget(key.file, version).await;
            }
            // Judged last, and nothing is awaited before it is in the mailbox's line: whoever looks at
            // all blocks because the pins have changed since comes after it, and sees this one.
            let is_pinned = context.cluster.view().pins(&path, &key);
            let mail = Mail::Filled { key, version, is_pinned, result };
            context.shards[shard as usize].post_when_room(mail).await;
            drop((waits, reads));
        });
    }
}

async fn serve_lookups(context: Arc<Context>, jobs: flume::Receiver<LookupJob>) {
    let slots = Arc::new(Semaphore::new(LOOKUPS_MAX));
    while let Ok(LookupJob { requester, lookup }) = jobs.recv_async().await {
        let context = Arc::clone(&context);
        if let Lookup::Load { path } = lookup {
            // Loads take long and wait for look-ups of other clients to go on: they have slots of their own.
            let Ok(slot) = Arc::clone(&context.loads).try_acquire_owned() else {
                context.answer(requester, Err(Failure::busy())).await;
                continue;
            };
            tokio::spawn(async move {
                let answer = context.load(&requester, path).await;
                context.answer(requester, answer).await;
                drop(slot);
            });
            continue;
        }
        let slot = Arc::clone(&slots).acquire_owned().await.expect("never closed");
        tokio::spawn(async move {
            let answer = match lookup {
                Lookup::Stat { path } => context.stat(&requester, path).await,
                Lookup::List { path, token, limit } => {
                    context.list(&requester, path, token, limit).await
                }
                Lookup::Free { path } => context.free(&requester, path).await,
                Lookup::Load { .. }
                | Lookup::Ring { .. }
                | Lookup::Inventory { .. }
                | Lookup::Pins
                | Lookup::Command(_) => unreachable!("taken elsewhere"),
            };
            context.answer(requester, answer).await;
            drop(slot);
        });
    }
}

/// A look-up that failed.
struct Failure {
    status: Status,
    message: String,
}

impl Failure {
    fn busy() -> Failure {
        Failure::new(Status::Busy, "as many loads as allowed are under way")
    }

    fn new(status: Status, message: &str) -> Failure {
        Failure { status, message: message.to_owned() }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure { status: error.status(), message: error.to_string() }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure { status: refusal.status, message: refusal.message }
    }
}

/// A whole reply frame, or why there is none.
type Answer = Result<Vec<u8>, Failure>;

impl Context {
    async fn answer(&self, requester: Requester, answer: Answer) {
        let shard = &self.shards[requester.shard as usize];
        let mail = match answer {
            Ok(frame) => Mail::Reply { requester, frame },
            Err(Failure { status, message }) => Mail::Failed { requester, status, message },
        };
        shard.post_when_room(mail).await;
    }

    /// Notes what the source told of a file and makes it an entry. If the version is new, the blocks of
    /// the one before are gone when this returns.
    async fn note(&self, path: &str, name: String, found: Found) -> Entry {
        if found.kind == Kind::Directory {
            let Found { kind, version, length, modified_ms } = found;
            return Entry { name, kind, id: FileId(0), version, length, modified_ms };
        }
        let id = self.store.identify(path);
        let record = FileRecord { path: path.into(), version: found.version, length: found.length };
        if let Some(old) = self.files.note(id, record) {
            self.drop_blocks(id, old.length).await;
        }
        let Found { kind, version, length, modified_ms } = found;
        Entry { name, kind, id, version, length, modified_ms }
    }

    /// Forgets a file that is no longer in this version, and drops its blocks.
    async fn forget(&self, id: FileId, version: u64) {
        if self.files.get(id).is_some_and(|record| record.version == version)
            && let Some(record) = self.files.forget(id)
        {
            self.drop_blocks(id, record.length).await;
        }
    }

    /// Drops the blocks of a file of this length on every shard.
    async fn drop_blocks(&self, file: FileId, length: u64) -> Dropped {
        let block_count = length.div_ceil(u64::from(self.block_size)) as u32;
        let mut total = Dropped::default();
        let mut replies = Vec::with_capacity(self.shards.len());
        for shard in self.shards.iter() {
            let (reply, receiver) = flume::bounded(1);
            shard.post_when_room(Mail::Drop { file, block_count, reply }).await;
            replies.push(receiver);
        }
        for reply in replies {
            // A shard that stopped meanwhile has dropped everything.
            if let Ok(dropped) = reply.recv_async().await {
                total.block_count += dropped.block_count;
                total.byte_count += dropped.byte_count;
            }
        }
        total
    }

    /// Looks a path up in the source.
    async fn look_up(&self, path: &Arc<str>) -> Result<Entry, Failure> {
        check_path(path)?;
        match self.store.stat(Arc::clone(path)).await {
            Ok(found) => {
                if found.length.div_ceil(u64::from(self.block_size)) > u64::from(u32::MAX) {
                    let message =
                        "the file has more than 2^32 blocks: use a larger block_size".to_owned();
                    return Err(Failure { status: Status::InvalidArgument, message });
                }
                Ok(self.note(path, path.to_string(), found).await)
            }
            Err(error) => {
                if error == StoreError::NotFound {
                    let id = self.store.identify(path);
                    if let Some(record) = self.files.get(id) {
                        self.forget(id, record.version).await;
                    }
                }
                Err(error.into())
            }
        }
    }

    async fn look_up_file(&self, path: &Arc<str>) -> Result<Entry, Failure> {
        let entry = self.look_up(path).await?;
        if entry.kind == Kind::File {
            return Ok(entry);
        }
        let message = "a directory: name a file, or list it and go through its files".to_owned();
        Err(Failure { status: Status::WrongKind, message })
    }

    async fn stat(&self, requester: &Requester, path: Arc<str>) -> Answer {
        let entry = self.look_up(&path).await?;
        Ok(encode(requester, &StatReply { entry, block_size: self.block_size }))
    }

    async fn list(
        &self,
        requester: &Requester,
        path: Arc<str>,
        token: Arc<str>,
        limit: u32,
    ) -> Answer {
        check_path(&path)?;
        let limit = if limit == 0 { LIST_PAGE_MAX } else { LIST_PAGE_MAX.min(limit as usize) };
        let page = self.store.list(Arc::clone(&path), token, limit).await?;
        let mut reply = ListReply {
            entries: Vec::with_capacity(page.entries.len()),
            next: page.next.unwrap_or_default(),
        };
        let mut size = 0;
        for (name, found) in page.entries {
            size += ENTRY_SIZE + name.len();
            if size > LIST_PAGE_BYTES_MAX {
                reply.next =
                    reply.entries.last().map(|last: &Entry| last.name.clone()).unwrap_or_default();
                break;
            }
            let whole = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            reply.entries.push(self.note(&whole, name, found).await);
        }
        Ok(encode(requester, &reply))
    }

    async fn free(&self, requester: &Requester, path: Arc<str>) -> Answer {
        check_path(&path)?;
        let id = self.store.identify(&path);
        // Nothing but the table is asked: a file whose source is gone can still be freed.
        let length = match self.files.get(id) {
            Some(record) => record.length,
            None => self.look_up_file(&path).await?.length,
        };
        let Dropped { block_count, byte_count } = self.drop_blocks(id, length).await;
        Ok(encode(requester, &FreeReply { block_count, byte_count }))
    }

    /// Brings every block of a file that this node owns into memory, a window of blocks at a time.
    async fn load(self: &Arc<Self>, requester: &Requester, path: Arc<str>) -> Answer {
        let view = self.cluster.view();
        if view.is_fenced {
            let message = "this node has lost coordination: what it owns is not known";
            return Err(Failure { status: Status::Fenced, message: message.to_owned() });
        }
        let entry = self.look_up_file(&path).await?;
        let replicas = view.replicas(&path);
        let blocks = 0..entry.length.div_ceil(u64::from(self.block_size)) as u32;
        let mut owned = blocks
            .map(|block| BlockKey { file: entry.id, block })
            .filter(|key| view.owns_itself(key, replicas));
        let mut tasks = JoinSet::new();
        let (mut block_count, mut filled_count) = (0, 0);
        loop {
            while tasks.len() < LOAD_WINDOW
                && let Some(key) = owned.next()
            {
                let (version, deadline) = (entry.version, requester.deadline);
                let from = FillFrom::Anywhere;
                tasks.spawn(Arc::clone(self).ensure(key, version, from, deadline));
                block_count += 1;
            }
            match tasks.join_next().await {
                None => break,
                Some(ensured) => {
                    let ensured = ensured.map_err(|error| StoreError::Failed(error.to_string()))?;
                    filled_count +=
                        u64::from(matches!(ensured?, Ensured::Filled(Filling::Source, _)));
                }
            }
        }
        Ok(encode(requester, &LoadReply { entry, block_count, filled_count }))
    }

    /// Has one block in memory; says what had to be done for it.
    async fn ensure(
        self: Arc<Self>,
        key: BlockKey,
        version: u64,
        from: FillFrom,
        deadline: Option<u64>,
    ) -> Result<Ensured, Failure> {
        let shard = placement::shard_of(key.hash(), self.shards.len() as u32);
        loop {
            if deadline.is_some_and(|deadline| self.started.elapsed().as_millis() as u64 > deadline)
            {
                let message = "the deadline passed before every block was loaded".to_owned();
                return Err(Failure { status: Status::DeadlineExceeded, message });
            }
            let (reply, receiver) = flume::bounded(1);
            let mail = Mail::Ensure { key, version, from: from.clone(), reply };
            self.shards[shard as usize].post_when_room(mail).await;
            match receiver.recv_async().await {
                Ok(done @ (Ensured::Resident | Ensured::Filled(..))) => return Ok(done),
                Ok(Ensured::Busy) => tokio::time::sleep(LOAD_RETRY).await,
                // It waited for a pull, whose member has it no more: now it is brought in earnest.
                Ok(Ensured::Failed(Status::NotCached, _)) if from == FillFrom::Anywhere => (),
                Ok(Ensured::Failed(status, message)) => return Err(Failure { status, message }),
                Err(_) => {
                    let message = "the node is shutting down".to_owned();
                    return Err(Failure { status: Status::ShuttingDown, message });
                }
            }
        }
    }
}

fn encode<T>(requester: &Requester, body: &T) -> Vec<u8>
where
    T: frame::Body,
{
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, reply_header(&requester.header, requester.part, Status::Ok), body);
    bytes
}
