//! A whole replica: from a configuration to a running service, and back.
//!
//! Owns the composition: which threads there are, and what each gets. Several replicas may run in one
//! process. Leaves signals to the program, and the admin endpoint to the holder of an [`Operator`].
//!
//! ```text
//!  coord-N        the loop: replica, sockets                coord-log    the Raft log
//!  coord-names    looks names up                            coord-state  the durable state
//! ```

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::thread::JoinHandle;

use mio::Poll;
use mio::net::TcpListener;
use rustix::process::{Resource, Rlimit};

use crate::config::Config;
use crate::peers::{Admission, Peers, Resolver};
use crate::replica::lists::ListError;
use crate::replica::{AdminRequest, Replica, Setup};
use crate::report::{Effect, Wanted};
use crate::runtime::clients::{ClientLimits, Clients};
use crate::runtime::{
    BELL, CLIENT_FIRST, CLIENT_LISTENER, Clock, Disk, Letter, LogThread, Mailbox, PEER_TOKENS,
    Report, Runtime, StateThread, mailbox,
};
use crate::socket;
use crate::store::{LogStore, StoreError, Stores};

mod open;
#[cfg(test)]
mod tests;

/// Descriptors that clients do not get: for the stores, the peers, and the log of the process.
const DESCRIPTORS_RESERVED: u64 = 256;
/// Most peers that wait to be accepted.
const PEER_BACKLOG: i32 = 128;

/// The reason that a replica cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{}/peers cannot be used: {error}", directory.display())]
    Peers { directory: PathBuf, error: io::Error },
    #[error(
        "{} has a state up to entry {state} and a log from entry {log} on: the entries between \
         are lost here. Keep the directory. If others of its ensemble run, they have it: remove this \
         replica from them and add it again, with a new directory (millrace coord remove, then \
         add); else restore a backup (millrace coord restore)",
        directory.display()
    )]
    Gap { directory: PathBuf, state: u64, log: u64 },
    #[error(
        "{} has data of ZooKeeper in version-2, and none of a replica: import it (millrace coord import \
         {} --data {}), or move version-2 away if another member of the ensemble has it",
        directory.display(), directory.display(), directory.display()
    )]
    ZooKeeper { directory: PathBuf },
    #[error("{0}")]
    List(#[from] ListError),
    #[error("cannot listen at {address}: {error}")]
    Listen { address: SocketAddr, error: io::Error },
    #[error("the system refused: {0}")]
    System(#[from] io::Error),
}

/// A running replica. Dropping it stops it.
pub struct Coord {
    operator: Operator,
    client_address: SocketAddr,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Coord {
    /// Starts a replica that continues from its data directory. With an empty directory and no other
    /// members, it begins by itself. With other members, it begins an ensemble once all have said that they
    /// have no data either, or waits until those with data take it in.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub fn start(config: Config) -> Result<Coord, StartError> {
        start(config, false)
    }

    /// As [`Coord::start`], but a replica with an empty directory is not a member yet. It waits until the
    /// members of a running ensemble add it, and takes its state from them.
    ///
    /// # Errors
    /// As [`Coord::start`].
    pub fn join(config: Config) -> Result<Coord, StartError> {
        start(config, true)
    }

    /// Returns the address that clients are served at, with the chosen port if the configured one is 0.
    pub fn client_address(&self) -> SocketAddr {
        self.client_address
    }

    /// Returns a handle that can ask the replica from any thread.
    pub fn operator(&self) -> Operator {
        self.operator.clone()
    }

    /// Stops in order: hands leadership over, makes queued data durable, ends all threads.
    ///
    /// # Errors
    /// The reason, if it had already stopped by itself.
    pub fn stop(mut self) -> Result<(), String> {
        self.operator.stop();
        self.end()
    }

    /// Waits until the replica has stopped: after [`Operator::stop`], or by itself.
    ///
    /// # Errors
    /// The reason, if it stopped by itself.
    pub fn wait(mut self) -> Result<(), String> {
        self.end()
    }

    fn end(&mut self) -> Result<(), String> {
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(ended)) => ended,
            Some(Err(_)) => Err("its thread panicked".into()),
        }
    }
}

impl Drop for Coord {
    fn drop(&mut self) {
        self.operator.stop();
        if let Err(reason) = self.end() {
            tracing::error!(reason, "a replica had stopped by itself");
        }
    }
}

/// A handle of a running replica; cheap to clone, for any thread.
///
/// Every answer comes through a channel. A disconnected one says that the replica has ended, or that too
/// many questions wait.
#[derive(Clone)]
pub struct Operator {
    mailbox: Mailbox,
}

impl Operator {
    /// Asks the replica itself.
    pub fn ask(&self, request: AdminRequest) -> flume::Receiver<Result<String, String>> {
        self.send(|answer| Letter::Ask(request, answer))
    }

    /// Writes a copy of the durable state into the new file `path`.
    pub fn backup(&self, path: PathBuf) -> flume::Receiver<Result<String, String>> {
        self.send(|answer| Letter::Backup(path, answer))
    }

    /// Returns the state of the replica, and what `wanted` names beside the figures.
    pub fn report(&self, wanted: Wanted) -> flume::Receiver<Report> {
        self.send(|answer| Letter::Report(wanted, answer))
    }

    /// Resets figures, because a four-letter word asked for it.
    pub fn reset(&self, effect: Effect) {
        self.mailbox.offer(Letter::Reset(effect));
    }

    /// Makes the replica stop. Does not wait for it.
    pub fn stop(&self) {
        self.mailbox.send(Letter::Stop);
    }

    fn send<T>(&self, letter: impl FnOnce(flume::Sender<T>) -> Letter) -> flume::Receiver<T> {
        let (sender, receiver) = flume::bounded(1);
        self.mailbox.offer(letter(sender));
        receiver
    }
}

fn start(config: Config, joins: bool) -> Result<Coord, StartError> {
    let backlog = i32::try_from(config.listen_backlog).unwrap_or(i32::MAX);
    let client_listener = listen(config.client_address, backlog)?;
    let mut client_address = client_listener.local_addr()?;
    if config.client_address.is_ipv4() && client_address.ip().is_unspecified() {
        client_address.set_ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    }
    let peer_listener = listen_to_peers(&config)?;
    let opened = open::open(&config, joins)?;

    let poll = Poll::new()?;
    let (mailbox, letters) = mailbox(poll.registry(), BELL)?;
    let names = mailbox.clone();
    let resolver = Resolver::start(move |resolved| {
        names.send(Letter::Resolved(resolved));
    })?;
    let identity = opened.stores.identity;
    let is_without_state = opened.applied.index == 0;
    // Only a replica with a state belongs to an ensemble.
    let cluster_id = if is_without_state { 0 } else { identity.cluster_id };
    let listed = opened.known.listed().cloned();
    let admission =
        Admission::new(cluster_id, identity.replica_id, identity.store_id, opened.known);
    let registry = poll.registry().try_clone()?;
    let peers = Peers::new(PEER_TOKENS, registry, peer_listener, admission, resolver)?;
    let registry = poll.registry().try_clone()?;
    let limits = limits(&config);
    let clients = Clients::new(limits, registry, client_listener, CLIENT_LISTENER, CLIENT_FIRST)?;

    let clock = Clock::start();
    let mut secret = [0; 32];
    open::random(&mut secret)?;
    let mut actions = Vec::new();
    let checkpoint = match is_without_state {
        true => None,
        false => Some((opened.state.zxid(), opened.stores.state.changed_ms()?)),
    };
    let setup = Setup {
        config: config.clone(),
        identity,
        origin: open::random_id()?,
        secret,
        log: opened.stores.log.reader(),
        state: opened.state,
        applied: opened.applied,
        joins,
        listed,
        now: clock.now(),
    };
    let machine = Replica::new(setup, &mut actions)?;
    let Stores { log, state, .. } = opened.stores;
    let disk = Disk::default();
    disk.note_checkpoint(checkpoint);
    let directory = Some(config.data_dir.as_path());
    let log = LogThread::start(Box::new(log), mailbox.clone(), disk.clone(), directory)?;
    let interval_ms = config.checkpoint_interval_ms;
    let state = StateThread::start(
        Box::new(state),
        interval_ms,
        usize::try_from(config.checkpoint_log_bytes).unwrap_or(usize::MAX),
        mailbox.clone(),
        disk.clone(),
    )?;
    let runtime = Runtime {
        config,
        machine,
        poll,
        letters,
        clients,
        peers,
        log,
        state,
        disk,
        actions,
        clock,
    };
    let thread = std::thread::Builder::new()
        .name(format!("coord-{}", identity.replica_id))
        .spawn(move || runtime.run())?;
    tracing::info!(replica = identity.replica_id, %client_address, "serving");
    let operator = Operator { mailbox };
    Ok(Coord { operator, client_address, thread: Some(thread) })
}

fn listen(address: SocketAddr, backlog: i32) -> Result<TcpListener, StartError> {
    socket::listen(address, backlog).map_err(|error| StartError::Listen { address, error })
}

/// Listens where the other members dial this one: at the configured address, or at its own address if this
/// machine has it. Otherwise it listens at all addresses, because its own is a translated one, or a name
/// that resolves only elsewhere.
fn listen_to_peers(config: &Config) -> Result<Option<TcpListener>, StartError> {
    let Some(own) = config.own_member() else { return Ok(None) };
    if let Some(address) = config.peer_listen {
        return listen(address, PEER_BACKLOG).map(Some);
    }
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, own.peer_port()));
    if !config.peer_listen_all {
        for address in own.peer_address.to_socket_addrs().into_iter().flatten() {
            match socket::listen(address, PEER_BACKLOG) {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
                Err(error) => return Err(StartError::Listen { address, error }),
                Ok(listener) => return Ok(Some(listener)),
            }
        }
    }
    listen(everywhere, PEER_BACKLOG).map(Some)
}

fn limits(config: &Config) -> ClientLimits {
    let descriptors = raise_descriptors().saturating_sub(DESCRIPTORS_RESERVED).max(16);
    let configured = config.max_client_connections as u64;
    if configured > descriptors {
        tracing::warn!(configured, descriptors, "fewer connections than configured: see ulimit -n");
    }
    ClientLimits {
        message_max_bytes: config.max_message_bytes,
        per_address_max: u32::try_from(config.max_client_connections_per_ip).unwrap_or(u32::MAX),
        total_max: u32::try_from(configured.min(descriptors)).unwrap_or(u32::MAX),
        output_max_bytes: config.client_output_max_bytes,
    }
}

/// Raises the limit of descriptors as far as allowed, and returns it.
fn raise_descriptors() -> u64 {
    let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum.unwrap_or(u64::MAX),
        Err(_) => current.unwrap_or(u64::MAX),
    }
}
