//! The way into a node or a cluster, and what is known of it at the moment.
//!
//! Owns the way in, which is remembered for good, and the current [`Topology`], which the task in
//! `cluster.rs` keeps up to date. The task ends with the last client. Always holds: of several addresses
//! one that hangs, at whatever step, costs a moment; the way into a cluster is whole only once a node
//! has listed the members.

use std::io;
use std::sync::Arc;

use millrace_proto::feature;
use millrace_proto::status::Next;
use smallvec::smallvec;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{self, Instant};

use crate::address::Seeds;
use crate::board::Board;
use crate::cluster;
use crate::config::ClientConfig;
use crate::connection::{Body, Landing, Lane, Link, socket_path};
use crate::coordination;
use crate::doubts::Doubts;
use crate::error::Error;
use crate::file::HelloInfo;
use crate::member::{Maker, Way};
use crate::race::{self, Won, race};
use crate::retry::Backoff;
use crate::topology::{self, Topology};
use crate::view::{News, View};

/// See the module.
#[derive(Debug)]
pub(crate) struct Network {
    board: Arc<Board>,
    follower: AbortHandle,
    doubts: Doubts,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Network {
    /// Connects to the first of the seeds that works and, if it is in a cluster, learns the members.
    /// Coordination, if it is to name the seeds, is asked first. If a seed keeps silent the next one is
    /// tried.
    ///
    /// # Errors
    /// As [`Client::connect`](crate::Client::connect); of several seeds the error of the last.
    pub(crate) async fn connect(
        seeds: &Seeds,
        config: &Arc<ClientConfig>,
    ) -> Result<Network, Error> {
        let maker = Maker { config: config.clone(), claim: None, runtime: Handle::current() };
        let deadline = Instant::now() + config.deadline;
        let addresses = match seeds {
            Seeds::Addresses(addresses) => addresses.clone(),
            Seeds::Coordination(place) => {
                let wait = config.connect_timeout.min(config.deadline);
                coordination::members(place, wait, config.race_step()).await?
            }
        };
        let entered = time::timeout_at(deadline, enter_any(&maker, &addresses, deadline)).await;
        let Won { value: entry, silent } = entered.map_err(|_| Error::DeadlineExceeded)??;
        let board = Arc::new(Board::new(maker, entry.alone, entry.address, seeds.clone()));
        if let Some(view) = entry.view {
            board.take_over(view, None);
            let topology = board.topology();
            for address in silent.iter().filter_map(|&index| addresses.get(index)) {
                // Others are asked before it until it answers.
                if let Some(member) = topology.members().find(|member| member.is_at(address)) {
                    member.suspect(0, true);
                }
            }
        }
        let follower = tokio::spawn(cluster::follow(board.clone())).abort_handle();
        Ok(Network { board, follower, doubts: Doubts::default() })
    }

    /// Returns the last `Hello` of the node.
    pub(crate) fn hello(&self) -> Arc<HelloInfo> {
        self.topology().hello.clone()
    }

    /// Returns what is known now; a newer `Hello` of a node that is alone is taken over first.
    #[inline]
    pub(crate) fn topology(&self) -> Arc<Topology> {
        let topology = self.board.topology();
        let newer = topology.main.as_ref().and_then(|main| {
            let link = main.link.borrow();
            link.hello.as_ref().filter(|hello| !Arc::ptr_eq(hello, &topology.hello)).cloned()
        });
        let Some(hello) = newer else { return topology };
        self.board.take_hello(hello);
        self.board.topology()
    }

    /// True while the client knows no cluster, but only the node that it was connected to.
    pub(crate) fn is_alone(&self) -> bool {
        self.board.is_alone()
    }

    /// Returns the id of the member that was connected to; empty outside of a cluster.
    pub(crate) fn home(&self) -> String {
        self.board.home().id
    }

    /// Returns the address that was connected to.
    pub(crate) fn address(&self) -> Arc<str> {
        self.board.home().address
    }

    /// Returns the runtime that the client lives on.
    pub(crate) fn runtime(&self) -> Handle {
        self.board.maker().runtime.clone()
    }

    /// Returns the paths whose last look-up was contradicted.
    pub(crate) fn doubts(&self) -> &Doubts {
        &self.doubts
    }

    /// Returns why a view was last refused.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.board.refusal()
    }
}

/// What an address led to.
struct Entered {
    address: Arc<str>,
    alone: Arc<Topology>,
    /// The members, if the node is in a cluster and listed them.
    view: Option<View>,
}

/// Enters at the first of these addresses that works.
async fn enter_any(
    maker: &Maker,
    addresses: &[Arc<str>],
    deadline: Instant,
) -> Result<Won<Entered>, Error> {
    let config = &maker.config;
    let is_only = addresses.len() == 1;
    let mut backoff = Backoff::new(config.reconnect_backoff_min, config.reconnect_backoff_max);
    loop {
        let ways = addresses.iter().map(|address| -> race::Course<'_, Entered> {
            Box::pin(enter(maker, address, is_only))
        });
        let mut errors = match race(ways.collect(), config.race_step()).await {
            Ok(won) => return Ok(won),
            Err(errors) => errors,
        };
        let is_hopeless = errors.iter().all(is_final);
        let wait = backoff.step();
        if is_hopeless || Instant::now() + wait >= deadline {
            return Err(errors.pop().unwrap_or(Error::DeadlineExceeded));
        }
        // A node that is busy is waited for.
        time::sleep(wait).await;
    }
}

/// Connects to the node at an address and asks it for the members of its cluster, if it is in one.
async fn enter(maker: &Maker, address: &Arc<str>, is_only: bool) -> Result<Entered, Error> {
    let config = &maker.config;
    let lane = connect(maker, address).await?;
    let lane = nearer(maker, address, &lane).await.unwrap_or(lane);
    let hello = lane.link().borrow().hello.clone();
    let hello = hello.ok_or(Error::DeadlineExceeded)?;
    if config.verify && !hello.offers(feature::CHECKSUMS) {
        return Err(Error::protocol(
            "the node sends no checksums; set verify to false to read without them",
        ));
    }
    let is_member = hello.offers(feature::CLUSTER);
    let is_near = lane.address() != address;
    let neighbour = if is_near { topology::neighbour(&lane) } else { None };
    let alone = Arc::new(Topology::alone(maker, address, &lane, hello, neighbour));
    let mut view = None;
    if is_member {
        let member = alone.member(0);
        match cluster::fetch(member, None, false, config.connect_timeout).await {
            Ok(News::View(told)) => view = Some(*told),
            Ok(News::Alone) => {}
            // The node is one that works, and the task that follows finds out the rest; but another one
            // may know more.
            Ok(News::Nothing) | Err(_) if is_only => {}
            Ok(News::Nothing) | Err(_) => time::sleep(config.attempt_timeout).await,
        }
    }
    Ok(Entered { address: address.clone(), alone, view })
}

/// Makes a lane to the node at an address, and waits for its answer to a ping.
async fn connect(maker: &Maker, address: &Arc<str>) -> Result<Lane, Error> {
    let lane = maker.lane(&Way { addresses: smallvec![address.clone()], node: None });
    let mut link = lane.link();
    // The first request makes a lane connect, which has a limit of its own.
    let end = Instant::now() + maker.config.connect_timeout + maker.config.attempt_timeout;
    let ping = lane.exchange(Body::Ping, Landing::Any, end);
    let refused = link.wait_for(|link: &Link| link.failure.is_some());
    let failure = tokio::select! {
        biased;
        link = refused => link.ok().and_then(|link| link.failure.clone()),
        answer = ping => answer.and_then(|answer| answer.outcome).err(),
    };
    match failure {
        Some(Error::DeadlineExceeded) => {
            let reason = "it answered Hello, and nothing since";
            let source = Arc::new(io::Error::new(io::ErrorKind::TimedOut, reason));
            Err(Error::Connect { address: address.clone(), source })
        }
        Some(error) => Err(error),
        None => Ok(lane),
    }
}

/// Makes a lane to the same node over a Unix socket of this machine, if the node is here. It takes the
/// place of `main`, so that being near costs no further connection.
async fn nearer(maker: &Maker, address: &Arc<str>, main: &Lane) -> Option<Lane> {
    let neighbour = topology::neighbour(main)?;
    let near: Arc<str> = neighbour.shards.first()?.as_str().into();
    if socket_path(address).is_some() {
        return None;
    }
    let addresses = smallvec![near, address.clone()];
    let lane = maker.lane(&Way { addresses, node: Some(neighbour.node) });
    let mut link = lane.link();
    // The node has just answered. If it does not any more, the lane that is there finds out.
    let end = Instant::now() + maker.config.attempt_timeout;
    let ping = lane.exchange(Body::Ping, Landing::Any, end);
    let refused = link.wait_for(|link| link.failure.is_some());
    let is_there = tokio::select! {
        answer = ping => answer.is_ok(),
        _ = refused => false,
    };
    is_there.then_some(lane)
}

/// True if a failure to connect will not go away while a caller waits.
fn is_final(error: &Error) -> bool {
    match error {
        // The node was there a moment ago.
        Error::ConnectionLost { .. } => false,
        Error::Status { status, .. } => !matches!(status.next(), Next::Retry | Next::Reconnect),
        _ => true,
    }
}
