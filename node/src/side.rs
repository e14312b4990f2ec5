//! The node's one side thread: a small tokio runtime that talks to the under-store, so that no shard
//! ever waits for it.
//!
//! ```text
//!  shards ──► SideQueue ─┬─ fills ────► fills::serve ──► another node, or the source ──► Mail::Filled
//!                        ├─ lookups ──► lookups::serve ─► the source ──► Mail::Reply
//!                        └─ cluster ──► cluster::serve ─► the view, the shards, the master
//! ```
//!
//! Owns the thread and the queues into it. Always holds: every job it took is answered to the shard it
//! came from, and every blank goes back there, until the thread is stopped. Queues are bounded; a full
//! one gives the job back and the shard answers `Busy`. Memory and blocks are left to the shards.
//! Modules: `fills` is the cold read, `lookups` what paths are, `beliefs` and `listings` what they were a
//! moment ago, `flights` look-ups under way, `uploads` writes, `write_cache` what is kept of them, `loads`
//! brings whole files in, `jobs` does so for the cluster, `stays` frees what has been here long enough,
//! `cluster` what needs no source, and what is pulled over from other nodes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millrace_proto::cluster::InventoryRequest;
use millrace_proto::message::CachedRequest;
use millrace_proto::proof::Secret;
use millrace_proto::{Status, frame};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cluster::answers::Cluster;
use crate::cluster::handover::{self, Progress};
use crate::cluster::peers::Peers;
use crate::cluster::pins::Judge;
use crate::cluster::{Command, Refusal, Task, pins, report};
use crate::config::Config;
use crate::cpus::confine;
use crate::files::FileTable;
use crate::mailbox::{FillFrom, Mail, Mailboxes, Requester, Run, reply_header};
use crate::memory::Blank;
use crate::metrics::Counters;
use crate::owner::Ticket;
use crate::store::machine::Machine;
use crate::store::{Condition, Errand, StoreError, UnderStore};
use crate::timings::Timings;
use crate::upload::{Slots, Step};
use beliefs::Beliefs;
use flights::Flights;
use loads::FilePart;
use stays::Stays;

mod beliefs;
mod changes;
mod cluster;
mod fills;
mod flights;
mod jobs;
mod listings;
pub(crate) mod loads;
mod lookups;
mod stays;
pub(crate) mod uploads;
mod write_cache;

/// Threads that resolve names. One is there from the start; a second one if it can be had.
const NAME_THREADS_MAX: usize = 2;
/// Stack of such a thread. Guessed: what resolvers of the C library are content with, and more.
const NAME_STACK_SIZE: usize = 512 << 10;
/// A time longer than any node runs.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Writes that a test may have open.
#[cfg(test)]
pub(crate) const UPLOADS_OF_TESTS: usize = 6;

/// A part of a block to read.
#[derive(Debug)]
pub(crate) struct FillJob {
    /// Shard that owns the block.
    pub shard: u32,
    /// The part, and the version it has to be of.
    pub run: Run,
    /// Path of the file.
    pub path: Arc<str>,
    /// Offset of the part in the file in bytes.
    pub offset: u64,
    /// Where the bytes go.
    pub blank: Blank,
    /// Where it may be taken from.
    pub from: FillFrom,
    /// What the shard knows of it meanwhile.
    pub errand: Arc<Errand>,
}

/// A request that is answered on the side thread.
#[derive(Debug)]
pub(crate) enum Lookup {
    OfPath(PathLookup),
    OfCluster(ClusterLookup),
}

/// A request that needs the source.
#[derive(Debug)]
pub(crate) enum PathLookup {
    Stat {
        path: Arc<str>,
    },
    List {
        path: Arc<str>,
        token: Arc<str>,
        limit: u32,
    },
    /// Asks the source whatever is known, with `recursive` of all that is below the path, too.
    Refresh {
        path: Arc<str>,
        recursive: bool,
    },
    /// At the first `copies` owners of each block; 0 for all.
    Load {
        path: Arc<str>,
        copies: u8,
    },
    LoadPart(FilePart),
    /// Here, or with `everywhere` at all members.
    Free {
        path: Arc<str>,
        everywhere: bool,
    },
    Put(uploads::Put),
    Delete {
        path: Arc<str>,
        condition: Condition,
        /// Its place among the writes of the node.
        slot: OwnedSemaphorePermit,
    },
    Rename {
        path: Arc<str>,
        to: Arc<str>,
        /// What has to be true of `to`.
        condition: Condition,
        /// Its place among the writes of the node.
        slot: OwnedSemaphorePermit,
        /// Dropped when it has ended, so that its connection may have another one.
        under_way: flume::Receiver<Step>,
    },
}

/// A request that needs the cluster or all shards, and no source.
#[derive(Debug)]
pub(crate) enum ClusterLookup {
    Ring {
        epoch: u64,
        first: u32,
        wait: bool,
    },
    Inventory(InventoryRequest),
    Cached(CachedRequest),
    Pins,
    /// All jobs, or the one with this id.
    Jobs(Option<u64>),
    /// With `passes_on` the master is asked if this node is not it.
    Command {
        command: Command,
        passes_on: bool,
    },
}

impl From<PathLookup> for Lookup {
    fn from(lookup: PathLookup) -> Lookup {
        Lookup::OfPath(lookup)
    }
}

impl From<ClusterLookup> for Lookup {
    fn from(lookup: ClusterLookup) -> Lookup {
        Lookup::OfCluster(lookup)
    }
}

/// A look-up and what waits for it.
#[derive(Debug)]
pub(crate) struct LookupJob<L> {
    pub requester: Requester,
    /// Says when the connection is gone.
    pub ticket: Ticket,
    pub lookup: L,
}

/// The queues into the side thread.
#[derive(Clone)]
pub(crate) struct SideQueue {
    fills: flume::Sender<FillJob>,
    /// Fills that wait or are under way, but for those whose source hangs.
    fill_count: Arc<AtomicUsize>,
    fills_max: usize,
    lookups: flume::Sender<LookupJob<PathLookup>>,
    /// Look-ups that need no source, and so never wait behind those that do.
    cluster: flume::Sender<LookupJob<ClusterLookup>>,
    /// Places for writes.
    slots: Slots,
    judges: flume::Sender<Judge>,
}

/// Blocks that came from disks and wait to be judged at most. Guessed: those of a second.
const JUDGES_MAX: usize = 1 << 16;

impl SideQueue {
    /// Makes queues whose other ends a test holds.
    #[cfg(test)]
    pub(crate) fn for_tests(
        fills: flume::Sender<FillJob>,
        lookups: flume::Sender<LookupJob<PathLookup>>,
        cluster: flume::Sender<LookupJob<ClusterLookup>>,
    ) -> SideQueue {
        let (fill_count, fills_max) = (Arc::default(), usize::MAX);
        let slots = Slots::new(UPLOADS_OF_TESTS);
        let judges = flume::bounded(0).0;
        SideQueue { fills, fill_count, fills_max, lookups, cluster, slots, judges }
    }

    /// Has a block kept that came from a disk, if its path is pinned. One that finds no room is judged when the pins
    /// change next.
    pub(crate) fn judge(&self, judge: Judge) {
        let _ = self.judges.try_send(judge);
    }

    /// Takes a place among the writes of the node; None if all are taken.
    pub(crate) fn upload_slot(&self) -> Option<OwnedSemaphorePermit> {
        self.slots.take()
    }

    /// Queues a fill. If as many wait as may, the blank comes back.
    pub(crate) fn offer_fill(&self, job: FillJob) -> Result<(), Blank> {
        // Shards that ask at the same moment pass the limit by one each: it bounds memory.
        if self.fill_count.load(Ordering::Relaxed) >= self.fills_max {
            return Err(job.blank);
        }
        self.fill_count.fetch_add(1, Ordering::Relaxed);
        self.fills.try_send(job).map_err(|error| {
            self.fill_count.fetch_sub(1, Ordering::Relaxed);
            error.into_inner().blank
        })
    }

    /// Returns what waits in the queues now: fills and those under way, look-ups, and what needs no
    /// source.
    pub(crate) fn lengths(&self) -> [(&'static str, usize); 3] {
        let fills = self.fill_count.load(Ordering::Relaxed);
        [("fills", fills), ("lookups", self.lookups.len()), ("cluster", self.cluster.len())]
    }

    /// Queues a look-up. A full queue refuses it.
    pub(crate) fn offer_lookup(&self, job: LookupJob<Lookup>) -> Result<(), ()> {
        let LookupJob { requester, ticket, lookup } = job;
        match lookup {
            Lookup::OfPath(lookup) => {
                self.lookups.try_send(LookupJob { requester, ticket, lookup }).map_err(|_| ())
            }
            Lookup::OfCluster(lookup) => {
                self.cluster.try_send(LookupJob { requester, ticket, lookup }).map_err(|_| ())
            }
        }
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
    pub(crate) machine: Arc<Machine>,
    pub(crate) files: Arc<FileTable>,
    pub(crate) shards: Mailboxes,
    pub(crate) cluster: Cluster,
    pub(crate) progress: Arc<Progress>,
    pub(crate) counters: Arc<[Counters]>,
    /// The task that keeps the node in its cluster, if it is in one.
    pub(crate) session: Option<Task>,
    /// The secret of the cluster.
    pub(crate) secret: Option<Secret>,
    /// When the node began to count time.
    pub(crate) started: Instant,
    pub(crate) timings: Arc<Timings>,
}

/// What every job needs.
struct Context {
    store: Arc<dyn UnderStore>,
    files: Arc<FileTable>,
    beliefs: Beliefs,
    flights: Flights,
    stays: Stays,
    /// Epoch of the cluster in which they were found.
    believed_epoch: AtomicU64,
    shards: Mailboxes,
    cluster: Cluster,
    peers: Peers,
    progress: Arc<Progress>,
    /// Fills that wait until their file has settled.
    settling: Semaphore,
    /// As in [`SideQueue`].
    fill_count: Arc<AtomicUsize>,
    block_size: u32,
    loads: Arc<Semaphore>,
    /// Places for objects that were written here, and whose owners take their blocks over.
    offers: Arc<Semaphore>,
    /// A source that takes longer is taken to hang.
    patience: Duration,
    started: Instant,
    timings: Arc<Timings>,
}

/// Starts the thread. It ends when `stop` is dropped, whatever the source is doing.
///
/// # Errors
/// If the thread or its runtime cannot be made.
pub(crate) fn start(config: &Config, parts: Parts) -> io::Result<Side> {
    let Parts {
        store,
        machine,
        files,
        shards,
        cluster,
        progress,
        counters,
        session,
        secret,
        started,
        timings,
    } = parts;
    let (fill_sender, fills) = flume::bounded::<FillJob>(config.fill_queue_max);
    let (lookup_sender, lookups) = flume::bounded(config.metadata_queue_max);
    let (cluster_sender, of_cluster) = flume::bounded(config.metadata_queue_max);
    let (fill_queue_max, lookups_max) = (config.fill_queue_max, config.metadata_queue_max);
    let fills_max = config.fill_queue_max + config.fill_concurrency;
    let fill_count = Arc::new(AtomicUsize::new(0));
    let runtime = runtime()?;
    let context = Arc::new(Context {
        store,
        files,
        beliefs: Beliefs::new(config.files_max, started),
        flights: Flights::default(),
        stays: Stays::new(config.files_max),
        believed_epoch: AtomicU64::new(0),
        shards,
        cluster,
        peers: Peers::new(config.block_size, secret),
        progress,
        settling: Semaphore::new(fills_max),
        fill_count: Arc::clone(&fill_count),
        block_size: config.block_size,
        loads: Arc::new(Semaphore::new(config.load_concurrency)),
        offers: Arc::new(Semaphore::new(config.upload_concurrency)),
        patience: Duration::from_millis(config.source_timeout_ms),
        started,
        timings,
    });
    let slots = Slots::new(config.upload_concurrency);
    let (judges, to_judge) = flume::bounded(JUDGES_MAX);
    let (stop, stopped) = flume::bounded::<()>(1);
    let cpus = config.cpus.clone();
    let handover_rate = config.handover_rate;
    let thread = std::thread::Builder::new().name("millrace-side".to_owned()).spawn(move || {
        // The node stays on the processors it was given.
        if let Err(error) = confine(&cpus) {
            tracing::warn!("pin the side thread to processors {cpus:?}: {error}");
        }
        let fills = fills::serve(Arc::clone(&context), fills, fill_queue_max);
        let lookups = lookups::serve(Arc::clone(&context), lookups, lookups_max);
        let of_cluster = cluster::serve(Arc::clone(&context), of_cluster);
        let handover = async {
            let (progress, views) = (&context.progress, context.cluster.views.subscribe());
            handover::run(&context, progress, views, handover_rate).await;
        };
        let own = report::Own { counters, progress: Arc::clone(&context.progress) };
        let report = report::run(&context.cluster, &context.peers, own);
        let views = context.cluster.views.subscribe();
        let pins = pins::run(&context.shards, &context.files, views, &to_judge);
        let jobs = jobs::serve(Arc::clone(&context));
        let watch = machine.watch();
        let stays = stays::run(&context, context.cluster.views.subscribe());
        runtime.block_on(async {
            // Ends by itself when the node leaves, and with the runtime.
            let _session = session.map(tokio::spawn);
            tokio::select! {
                _ = async {
                    tokio::join!(
                        fills, lookups, of_cluster, handover, pins, report, jobs, watch, stays
                    )
                } => (),
                // Nothing is sent: the other end is dropped once every shard has ended.
                _ = stopped.recv_async() => (),
            }
        });
        // A name that is being resolved must not keep the node from stopping; nor does a read that
        // hangs in the source, on a thread that nothing waits for.
        runtime.shutdown_timeout(Duration::from_secs(1));
    })?;
    let (fills, lookups, cluster) = (fill_sender, lookup_sender, cluster_sender);
    let queue = SideQueue { fills, fill_count, fills_max, lookups, cluster, slots, judges };
    Ok(Side { queue, stop, thread })
}

/// Makes the thread's runtime. Names of hosts are resolved on a thread that it keeps: it would panic if
/// it had to make one and could not.
fn runtime() -> io::Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(NAME_THREADS_MAX)
        .thread_keep_alive(FOREVER)
        .thread_name("millrace-names")
        .thread_stack_size(NAME_STACK_SIZE)
        .build()?;
    // This first finds out whether a thread can be had, because the runtime panics if not.
    let trial = std::thread::Builder::new().stack_size(NAME_STACK_SIZE).spawn(|| ())?;
    trial.join().map_err(|_| io::Error::other("a thread that does nothing fails"))?;
    runtime.spawn_blocking(|| ());
    Ok(runtime)
}

/// A look-up that failed.
#[derive(Clone, Debug)]
struct Failure {
    status: Status,
    message: String,
}

impl Failure {
    /// Returns the failure for a client that has gone: it is not sent.
    fn gone() -> Failure {
        Failure::new(Status::ShuttingDown, "the connection is closed")
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
}

fn encode<T>(requester: &Requester, body: &T) -> Vec<u8>
where
    T: frame::Body,
{
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, reply_header(&requester.header, requester.part, Status::Ok), body);
    bytes
}
