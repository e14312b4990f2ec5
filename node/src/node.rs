//! A node: configuration in, running threads out, and stopping them again.
//!
//! Owns the threads. Always holds: when [`Node::start`] returns, every shard accepts connections; when
//! [`Node::stop`] returns, every thread has ended but those that hang in a source.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use millrace_ops::again;
use millrace_proto::checksum::PAGE_SIZE;
use millrace_proto::terms::bare;
use rustix::process::{Resource, Rlimit};
use socket2::{Domain, Protocol, Socket, Type};

use crate::access::Access;
use crate::admin::{self, AdminSocket};
use crate::cache::{self, Cache};
use crate::cluster::identity::{Identity, IdentityError};
use crate::cluster::join::{self, Membership, PublicAddresses};
use crate::cluster::session::Handle;
use crate::config::{Config, ConfigError, Coordination};
use crate::files::FileTable;
use crate::flash::directory::Disk;
use crate::flash::{DiskError, Flash};
use crate::guests::Guests;
use crate::local::{self, LocalSockets, SocketFiles};
use crate::mailbox::{Mail, Mailbox, Mailboxes};
use crate::memory::{Arena, ShardMemory};
use crate::metrics::Counters;
use crate::pages::{Pages, Sources, Stage};
use crate::room::{self, RoomError};
use crate::runtime::{Ended, Listeners, Runtime, RuntimeLimits};
use crate::secret::{self, SecretError};
use crate::side::{self, Parts, Side};
use crate::store::machine::Machine;
use crate::store::roots::is_remote;
use crate::store::{NoRemoteStores, RemoteStores};
use crate::timings::{HitTimes, Timings};
use crate::worker::{Proofs, Shared, Worker, WorkerLimits};

/// Connections that wait for `accept`.
const BACKLOG: i32 = 4096;
/// Messages a mailbox holds. Guessed: several turns of a busy shard; when it is full the sender keeps
/// its messages and tries again.
const MAILBOX_CAPACITY: usize = 8192;
/// Memory of an executor for storage buffers, in bytes; nothing reads files through it, because the ring does.
const EXECUTOR_IO_MEMORY: usize = 64 << 10;
/// Descriptors besides connections: rings, eventfds, listeners, files being read.
const DESCRIPTORS_SPARE: u64 = 256;
/// When glommio is to interrupt a shard's one task. Its executor (0.9.0) takes "interrupted before
/// anything ran" for "nothing to run" and sleeps with the task still queued, for good: it took a thread that
/// lost its processor for as long as the timer, at one place. Without other tasks nothing is lost.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Descriptors of one shard besides its connections: glommio's three rings and ours, eventfds, listeners.
const DESCRIPTORS_PER_SHARD: u64 = 16;

/// Longest wait for coordination when the node starts.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for it when the node stops.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is not one that can work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The source is not there, or not a directory, or may not be read.
    #[error("serve {path}: {error}")]
    Source { path: String, error: io::Error },
    /// An address cannot be listened on.
    #[error("listen on {address}: {error}")]
    Listen { address: SocketAddr, error: io::Error },
    /// The Unix socket cannot be listened on.
    #[error("listen on unix:{path}: {error}")]
    Socket { path: String, error: io::Error },
    /// The system allows too few open files for the connections.
    #[error(
        "connections_max needs {needed} open files, but only {allowed} are allowed: \
         raise `ulimit -n` or lower connections_max"
    )]
    Descriptors { needed: u64, allowed: u64 },
    /// There is less memory than was asked for.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// A disk of the flash tier cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Memory for the blocks cannot be had.
    #[error("take {bytes} bytes for blocks: {error}; lower memory")]
    Memory { bytes: u64, error: io::Error },
    /// A thread cannot be started, or its ring cannot be made.
    #[error("start shard {shard}: {message}")]
    Shard { shard: usize, message: String },
    /// The node's identity cannot be found out.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A secret cannot be had; the flag says which.
    #[error("--{flag}: {error}")]
    Secret { flag: &'static str, error: SecretError },
    /// What is named as a directory below which sources may lie is not a directory.
    #[error("--mount-root: {} is not a directory; name one below which sources lie", .0.display())]
    MountRoot(PathBuf),
    /// The node cannot join its cluster.
    #[error("join the cluster: {0}")]
    Cluster(String),
    /// Other nodes and clients would not know where the node is.
    #[error(
        "listen is {0}, which no other machine can connect to by that name: say with advertise \
         which host name or address clients use"
    )]
    Advertise(SocketAddr),
    /// The threads that read sources cannot be had.
    #[error(
        "start the threads that read the source: {0}; raise the limit of tasks (`ulimit -u`, pids.max of \
         the control group) or lower fill_concurrency"
    )]
    Threads(io::Error),
    /// The side thread cannot be started.
    #[error("start the side thread: {0}")]
    Side(io::Error),
}

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// True if every reply in flight was sent; if not, the time to drain ran out and connections were
    /// cut.
    pub clean: bool,
}

/// A running node.
pub struct Node {
    address: SocketAddr,
    shard_addresses: Vec<SocketAddr>,
    mailboxes: Mailboxes,
    shards: Vec<ExecutorJoinHandle<io::Result<Ended>>>,
    side: Side,
    /// None outside a cluster.
    membership: Option<Handle>,
    pages: Pages,
    _socket_files: [SocketFiles; 2],
}

impl Node {
    /// Starts a node; returns when every shard accepts connections.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn start(config: Config) -> Result<Node, StartError> {
        Node::start_with(config, Arc::new(NoRemoteStores))
    }

    /// As [`Node::start`], with sources on other machines.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_with(config: Config, stores: Arc<dyn RemoteStores>) -> Result<Node, StartError> {
        config.validate()?;
        let started = Instant::now();
        let shard_count = config.shards;
        let pages = serve_pages(&config, started)?;
        raise_descriptor_limit(&config)?;
        check_mount_roots(&config)?;
        let source = source_of(&config, &*stores)?;
        let identity = Identity::open(&config.data, &config.node_id)?;
        let proofs = proofs(&config)?;
        let files = Arc::new(FileTable::new(config.files_max));
        let memories = memories(&config)?;
        let disks = disks(&config)?;
        let listeners = listen(&config)?;
        let number = run_number();
        let local = listen_locally(&config, number)?;
        let address = listeners[0].public_address;
        let mut admin = listen_to_administrators(&config, address)?;
        let shard_addresses: Vec<SocketAddr> =
            listeners.iter().map(|listener| listener.address()).collect();

        let (mailboxes, receivers) = mailboxes(shard_count).map_err(StartError::Side)?;
        let (known, local_addresses) = (Arc::clone(&files), local.addresses);
        let shared = shared(&config, proofs, known, number, &shard_addresses, local_addresses)?;
        let shared = Arc::new(shared);
        let public = public_addresses(&config, address, &shard_addresses)?;
        let machine = Arc::new(Machine::start(&config).map_err(StartError::Threads)?);
        let Membership { cluster, session, mounts } =
            join::membership(&config, identity, source, &shared, &machine, stores, public);
        let (session, membership) = session.unzip();
        let timings = Arc::<Timings>::default();
        let parts = Parts {
            store: mounts,
            machine,
            files,
            shards: Arc::clone(&mailboxes),
            cluster,
            progress: Arc::clone(&shared.progress),
            counters: Arc::clone(&shared.counters),
            session,
            secret: shared.proofs.member.clone(),
            started,
            timings: Arc::clone(&timings),
        };
        let side = side::start(&config, parts).map_err(StartError::Side)?;
        let side_queue = side.queue.clone();
        pages.tell_of(Sources {
            address,
            shard_addresses: shard_addresses.clone(),
            counters: Arc::clone(&shared.counters),
            progress: Arc::clone(&shared.progress),
            timings,
            hit_times: Arc::clone(&shared.hit_times),
            mailboxes: Arc::clone(&mailboxes),
            queue: side.queue.clone(),
        });

        let mut node = Node {
            address,
            shard_addresses,
            mailboxes,
            shards: Vec::new(),
            side,
            membership,
            pages,
            _socket_files: [local.files, admin.files],
        };
        let local_access = local.access;
        let guests = Arc::new(Guests::new(config.connections_per_peer_max));
        let (ready, readiness) = flume::bounded(shard_count);
        let parts = memories.into_iter().zip(listeners).zip(receivers).zip(local.listeners);
        for (shard, (((memory, listener), mail), local)) in parts.enumerate() {
            let shared = Arc::clone(&shared);
            let limits = limits(&config);
            let side_queue = side_queue.clone();
            let (mailboxes, ready) = (Arc::clone(&node.mailboxes), ready.clone());
            let populate = config.populate;
            // The first one alone.
            let admin = std::mem::take(&mut admin.listeners);
            let (guests, disks) = (Arc::clone(&guests), disks.clone());
            let runtime_limits = runtime_limits(&config);
            let spawned = executor(config.cpus[shard]).spawn(move || async move {
                let cache = Cache::new(memory, limits.pin_percent);
                let cache = if populate { cache.populated() } else { cache };
                let flash = tier(&disks, shard, shared.block_size, &cache);
                let worker = Worker::new(shard as u32, shared, limits, side_queue, cache, flash);
                let tcp = listener.into_sockets();
                let sockets = Listeners { tcp, local, access: local_access, admin };
                let runtime =
                    Runtime::new(worker, sockets, mail, mailboxes, started, runtime_limits, guests);
                serve(shard, runtime, ready).await
            });
            match spawned {
                Ok(handle) => node.shards.push(handle),
                Err(error) => {
                    node.end();
                    return Err(StartError::Shard { shard, message: error.to_string() });
                }
            }
        }
        // With the last copy gone, a thread that ends without a message is noticed.
        drop(ready);
        let node = node.wait_until_ready(&readiness)?.wait_until_joined()?;
        node.pages.set_stage(Stage::Serving);
        Ok(node)
    }

    /// Waits until the node is in its cluster; stops it if that cannot be.
    fn wait_until_joined(self) -> Result<Node, StartError> {
        let Some(membership) = &self.membership else { return Ok(self) };
        let end = Instant::now() + JOIN_TIMEOUT;
        // One message is enough, and the side thread is there.
        let _ = membership.begin.send(());
        let mut reason = String::from("coordination does not answer");
        let reason = loop {
            match membership.joined.recv_deadline(end) {
                Ok(Ok(())) => return Ok(self),
                Ok(Err(error)) => reason = error,
                // No more messages come: it is over, or the time is.
                Err(_) => break reason,
            }
        };
        self.end();
        Err(StartError::Cluster(reason))
    }

    /// Waits until every shard has reported that it runs; stops them all if one could not.
    fn wait_until_ready(
        self,
        readiness: &flume::Receiver<Result<(), (usize, String)>>,
    ) -> Result<Node, StartError> {
        for _ in 0..self.shards.len() {
            match readiness.recv() {
                Ok(Ok(())) => (),
                Ok(Err((shard, message))) => {
                    self.end();
                    return Err(StartError::Shard { shard, message });
                }
                Err(flume::RecvError::Disconnected) => {
                    let (shard, error) = self.end().1.unwrap_or((0, "it ended".to_owned()));
                    // Its executor needs rings of its own before ours is tried.
                    let message = format!(
                        "{error}; io_uring has to be allowed, and `ulimit -l` 512 KiB or more"
                    );
                    return Err(StartError::Shard { shard, message });
                }
            }
        }
        Ok(self)
    }

    /// Returns where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns where each shard can be reached directly, in shard order.
    pub fn shard_addresses(&self) -> &[SocketAddr] {
        &self.shard_addresses
    }

    /// Stops: takes no more requests, sends the replies in flight for at most `drain_timeout_ms`, and
    /// waits for every thread.
    pub fn stop(self) -> Stopped {
        self.end().0
    }

    /// As [`Node::stop`]; also returns which shard failed first, and how.
    fn end(self) -> (Stopped, Option<(usize, String)>) {
        self.pages.set_stage(Stage::Draining);
        if let Some(membership) = &self.membership {
            // First no client is sent here any more.
            let (done, left) = flume::bounded(1);
            if membership.leave.try_send(done).is_ok() {
                let _ = left.recv_timeout(LEAVE_TIMEOUT);
            }
        }
        for mailbox in self.mailboxes.iter() {
            let mut mail = Mail::Shutdown;
            while let Err(back) = mailbox.post(mail) {
                if mailbox.is_abandoned() {
                    break;
                }
                mail = back;
                std::thread::yield_now();
            }
        }
        let mut clean = true;
        let mut failure = None;
        for (shard, handle) in self.shards.into_iter().enumerate() {
            let error = match handle.join() {
                Ok(Ok(ended)) => {
                    clean &= ended == Ended::Drained;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            clean = false;
            failure.get_or_insert((shard, error));
        }
        drop(self.side.stop);
        clean &= self.side.thread.join().is_ok();
        (Stopped { clean }, failure)
    }
}

/// Makes a mailbox for each shard, and what it takes its mail from.
fn mailboxes(shard_count: usize) -> io::Result<(Mailboxes, Vec<flume::Receiver<Mail>>)> {
    let mailboxes = (0..shard_count).map(|_| Mailbox::new(MAILBOX_CAPACITY));
    let (mailboxes, receivers): (Vec<Mailbox>, _) = mailboxes.collect::<io::Result<_>>()?;
    Ok((mailboxes.into(), receivers))
}

/// Reads the secrets of the configuration.
fn proofs(config: &Config) -> Result<Proofs, StartError> {
    let read = |flag, path: &Path| match path.as_os_str().is_empty() {
        true => Ok(None),
        false => secret::read(path).map(Some).map_err(|error| StartError::Secret { flag, error }),
    };
    let is_ensemble = matches!(config.coord, Coordination::Ensemble { .. });
    let member = if is_ensemble { read("coord-secret", &config.coord_secret)? } else { None };
    let is_insecure = is_ensemble && member.is_none();
    let administrator = read("admin-token", &config.admin_token)?;
    Ok(Proofs { member, administrator, is_insecure })
}

/// Runs a shard to its end, after it has reported whether it could be made.
async fn serve(
    shard: usize,
    runtime: io::Result<Runtime>,
    ready: flume::Sender<Result<(), (usize, String)>>,
) -> io::Result<Ended> {
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            // The caller may have given up on the node.
            let _ = ready.send(Err((shard, error.to_string())));
            return Ok(Ended::Cut);
        }
    };
    let _ = ready.send(Ok(()));
    drop(ready);
    let ended = runtime.run().await;
    if let Err(error) = &ended {
        // The other shards would wait for this one's blocks for ever.
        panic!("shard {shard} lost its ring: {error}");
    }
    ended
}

/// Checks the directories below which sources may lie. One that is not there yet may come.
fn check_mount_roots(config: &Config) -> Result<(), StartError> {
    for root in config.mount_roots.iter().filter(|root| !is_remote(root)) {
        match root.metadata() {
            Ok(found) if !found.is_dir() => return Err(StartError::MountRoot(root.clone())),
            Ok(_) => (),
            Err(error) => tracing::warn!(
                "mount root {}: {error}: nothing can be mounted below it as long as that is so",
                root.display()
            ),
        }
    }
    Ok(())
}

/// Returns the source of the configuration, if it has one, once it has answered.
fn source_of(config: &Config, stores: &dyn RemoteStores) -> Result<Option<String>, StartError> {
    let refuse = |error| StartError::Source { path: config.source.display().to_string(), error };
    let source = join::source(config).map_err(refuse)?;
    if let Some(url) = source.as_deref().filter(|it| is_remote(it)) {
        let credential = Some(&*config.source_credential).filter(|it| !it.is_empty());
        let store = stores.open(bare(url), credential, join::limits(config));
        let store = store.map_err(|error| refuse(io::Error::other(error)))?;
        let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let found = waiting.map_err(StartError::Side)?.block_on(store.stat("".into()));
        found.map_err(|error| refuse(io::Error::other(error)))?;
    }
    Ok(source)
}

fn limits(config: &Config) -> WorkerLimits {
    WorkerLimits {
        // Each shard may take them all: the kernel spreads connections, though not evenly.
        connections_max: config.connections_max,
        requests_in_flight_max: config.requests_in_flight_max as u32,
        bytes_in_flight_max: config.bytes_in_flight_max as u64,
        body_length_max: config.body_length_max,
        send_timeout_ms: config.send_timeout_ms,
        idle_timeout_ms: config.idle_timeout_ms,
        lease_ms: config.lease_ms,
        lease_percent: config.lease_percent,
        // As many are allowed as are read at once: a fill more would wait, and make others wait behind
        // it.
        fills_of_client_max: config.fill_concurrency as u32,
        pin_percent: config.pin_percent,
    }
}

fn runtime_limits(config: &Config) -> RuntimeLimits {
    RuntimeLimits {
        send_timeout_ms: config.send_timeout_ms,
        drain_timeout_ms: config.drain_timeout_ms,
        zero_copy: config.zero_copy,
    }
}

/// Raises the limit of open files to what the connections need.
fn raise_descriptor_limit(config: &Config) -> Result<(), StartError> {
    let needed = config.connections_max as u64
        + config.shards as u64 * DESCRIPTORS_PER_SHARD
        + config.fill_concurrency as u64
        + (config.disks.len() * (config.shards + 1)) as u64
        + DESCRIPTORS_SPARE;
    let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let raised = Rlimit { current: Some(needed.min(maximum.unwrap_or(u64::MAX))), maximum };
    if rustix::process::setrlimit(Resource::Nofile, raised).is_ok()
        && maximum.is_none_or(|maximum| maximum >= needed)
    {
        return Ok(());
    }
    Err(StartError::Descriptors { needed, allowed: maximum.unwrap_or(0) })
}

/// Makes memory for the shards, so large that with its bookkeeping it stays within `memory`.
fn memories(config: &Config) -> Result<Vec<ShardMemory>, StartError> {
    room::check(config)?;
    let page_cost = PAGE_SIZE as usize + cache::PAGE_COST;
    let page_count = (config.memory / page_cost) as u32;
    let failed =
        |error| StartError::Memory { bytes: u64::from(page_count) * u64::from(PAGE_SIZE), error };
    let memories = Arena::new(page_count).map_err(failed)?.cut(config.shards as u32);
    if config.populate {
        room::take(&memories, &config.cpus).map_err(failed)?;
    }
    Ok(memories)
}

/// Opens the disks of the flash tier.
fn disks(config: &Config) -> Result<Vec<Arc<Disk>>, StartError> {
    let open = |disk| Disk::open(disk, config.shards, config.block_size).map(Arc::new);
    Ok(config.disks.iter().map(open).collect::<Result<_, _>>()?)
}

/// Makes the flash tier of a shard, if there are disks for one.
fn tier(disks: &[Arc<Disk>], shard: usize, block_size: u32, cache: &Cache) -> Option<Flash> {
    let is_wanted = !disks.is_empty();
    is_wanted.then(|| Flash::open(disks, shard as u16, block_size, cache.capacity_bytes()))
}

/// The listening sockets of one shard.
struct Listener {
    public: TcpListener,
    public_address: SocketAddr,
    /// The shard's own address; none when there is one shard, whose address is the public one.
    own: Option<(TcpListener, SocketAddr)>,
}

impl Listener {
    fn address(&self) -> SocketAddr {
        self.own.as_ref().map_or(self.public_address, |(_, address)| *address)
    }

    fn into_sockets(self) -> Vec<OwnedFd> {
        let own = self.own.map(|(socket, _)| socket);
        std::iter::once(self.public).chain(own).map(OwnedFd::from).collect()
    }
}

/// Draws a number that no other run of a node has.
fn run_number() -> u64 {
    // Keys of this hasher come from the system's random numbers.
    RandomState::new().build_hasher().finish()
}

/// Returns the name of the run of this machine's kernel: proc(5), `random/boot_id`. Empty if it is
/// hidden.
fn machine() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Listens at the Unix socket, if one is configured.
fn listen_locally(config: &Config, number: u64) -> Result<LocalSockets, StartError> {
    let (path, shards) = (&config.socket, config.shards);
    if path.as_os_str().is_empty() {
        let listeners = (0..shards).map(|_| Vec::new()).collect();
        return Ok(LocalSockets { listeners, ..LocalSockets::default() });
    }
    let listen = || {
        let access = access(config)?;
        match path.as_os_str() == local::AUTOMATIC {
            true => local::listen_automatically(number, shards, BACKLOG, access),
            false => local::listen(path, shards, BACKLOG, access),
        }
    };
    let sockets = again::while_in_use(again::is_address_in_use, listen);
    sockets.map_err(|error| StartError::Socket { path: path.display().to_string(), error })
}

/// Returns which users may connect to the Unix sockets.
fn access(config: &Config) -> io::Result<Access> {
    Access::new(config.socket_mode, &config.socket_user, &config.socket_group)
}

/// Gathers what is the same for every shard: of the run with this number, which is at these addresses of
/// this machine.
fn shared(
    config: &Config,
    proofs: Proofs,
    files: Arc<FileTable>,
    node: u64,
    shard_addresses: &[SocketAddr],
    local_addresses: Vec<String>,
) -> Result<Shared, StartError> {
    Ok(Shared {
        files,
        counters: (0..config.shards).map(|_| Counters::default()).collect(),
        hit_times: (0..config.shards).map(|_| HitTimes::default()).collect(),
        shard_addresses: advertised(config, shard_addresses),
        local_addresses,
        features: join::features(config, &proofs),
        proofs,
        seed: millrace_client::peer::random().map_err(StartError::Side)?,
        progress: Arc::default(),
        node,
        machine: machine(),
        block_size: config.block_size,
        connection_count: AtomicUsize::new(0),
    })
}

/// Prepares the executor of a shard, pinned to a processor.
fn executor(cpu: usize) -> LocalExecutorBuilder {
    LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name("millrace")
        .preempt_timer(NEVER)
        .io_memory(EXECUTOR_IO_MEMORY)
}

/// Serves the pages for operators, if they are wanted.
fn serve_pages(config: &Config, started: Instant) -> Result<Pages, StartError> {
    let Some(address) = config.http else { return Ok(Pages::default()) };
    Pages::start(address, started).map_err(|error| StartError::Listen { address, error })
}

/// Listens at the administration socket.
fn listen_to_administrators(
    config: &Config,
    address: SocketAddr,
) -> Result<AdminSocket, StartError> {
    let path = &config.admin;
    let listen = || admin::listen(path, address.port(), BACKLOG);
    again::while_in_use(again::is_address_in_use, listen)
        .map_err(|error| StartError::Socket { path: path.display().to_string(), error })
}

/// Listens for every shard on the public address, where the kernel spreads connections over the
/// shards, and on an address of its own: the ports that follow the public one, or any free ones if
/// that was left to the system.
fn listen(config: &Config) -> Result<Vec<Listener>, StartError> {
    let mut public_address = config.listen;
    if config.shards > 1 && config.listen.port() != 0 {
        // Sockets that share a port also share it with another node, which would take half of our
        // clients. One that does not share finds out whether the port is free.
        listen_on(config.listen, false)?;
    }
    let mut listeners = Vec::with_capacity(config.shards);
    for shard in 0..config.shards {
        let (public, bound) = listen_on(public_address, config.shards > 1)?;
        public_address = bound;
        let own = if config.shards == 1 {
            None
        } else {
            let port = match config.listen.port() {
                0 => 0,
                port => port.checked_add(1 + shard as u16).unwrap_or(0),
            };
            Some(listen_on(SocketAddr::new(config.listen.ip(), port), false)?)
        };
        listeners.push(Listener { public, public_address: bound, own });
    }
    Ok(listeners)
}

fn listen_on(address: SocketAddr, shared: bool) -> Result<(TcpListener, SocketAddr), StartError> {
    let open = || -> io::Result<(TcpListener, SocketAddr)> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    again::while_in_use(again::is_address_in_use, open)
        .map_err(|error| StartError::Listen { address, error })
}

/// Returns where others find the node and its shards: at the host that was
/// given, else at the address it listens on.
fn public_addresses(
    config: &Config,
    address: SocketAddr,
    shards: &[SocketAddr],
) -> Result<PublicAddresses, StartError> {
    let mut with_host = config.clone();
    if config.advertise.is_empty() {
        match (&config.coord, config.listen.ip()) {
            (Coordination::Ensemble { .. }, ip) if ip.is_unspecified() => {
                return Err(StartError::Advertise(config.listen));
            }
            // Alone in its cluster: clients go on using the host they connected to.
            (_, ip) if ip.is_unspecified() => (),
            (_, ip) => with_host.advertise = ip.to_string(),
        }
    }
    let node = advertised(&with_host, &[address]).pop().unwrap_or_default();
    Ok(PublicAddresses { node, shards: advertised(&with_host, shards) })
}

/// Returns the shard addresses for `Hello`. Without a host of its own the node leaves it out, and
/// clients use the one they connected to.
fn advertised(config: &Config, addresses: &[SocketAddr]) -> Vec<String> {
    let host = match config.advertise.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        _ => config.advertise.clone(),
    };
    addresses.iter().map(|address| format!("{host}:{}", address.port())).collect()
}
