//! The way into a node or a cluster, and what is known of it at the moment.
//!
//! Owns the first connection and the current [`Topology`], which the task in `cluster.rs` keeps up to
//! date. The task ends with the last client.

use std::sync::{Arc, Mutex, PoisonError};

use millrace_proto::coordination::{Place, SCHEME};
use millrace_proto::feature;
use millrace_proto::status::Next;
use smallvec::smallvec;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{self, Instant};

use crate::cluster::{self, News, View};
use crate::config::ClientConfig;
use crate::connection::{Body, Landing, Lane, Link, socket_path};
use crate::coordination;
use crate::error::Error;
use crate::file::HelloInfo;
use crate::member::{Maker, Way};
use crate::retry::Backoff;
use crate::topology::{self, Topology};

/// Most addresses to begin with.
pub(crate) const SEEDS_MAX: usize = 64;

/// Where a client learns of the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seeds {
    /// Nodes, tried in order.
    Addresses(Vec<Arc<str>>),
    /// Where the nodes of a cluster register.
    Coordination(Place),
}

impl Seeds {
    /// Reads one address or several, separated by commas, or the place of a cluster.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for one that is neither `host:port` nor `unix:PATH`, and for a
    /// place that is none.
    pub(crate) fn parse(text: &str) -> Result<Seeds, Error> {
        let text = text.trim();
        if text.starts_with(SCHEME) {
            return Place::parse(text).map(Seeds::Coordination).ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "'{text}' is not where a cluster registers; write zk://HOST:PORT/PATH, several \
                     servers behind commas, as the nodes have it for --coord"
                ))
            });
        }
        let addresses: Vec<Arc<str>> = text.split(',').map(|part| part.trim().into()).collect();
        if addresses.len() > SEEDS_MAX {
            return Err(Error::InvalidArgument(format!(
                "{} addresses are more than {SEEDS_MAX}; a few are enough to find the others",
                addresses.len()
            )));
        }
        for address in &addresses {
            check_address(address)?;
        }
        Ok(Seeds::Addresses(addresses))
    }
}

fn check_address(address: &str) -> Result<(), Error> {
    let is_valid = match socket_path(address) {
        Some(path) => !path.is_empty(),
        None => is_host_and_port(address),
    };
    if is_valid {
        return Ok(());
    }
    let advice = "write host:port, such as node1:7070, unix:PATH, or zk://HOST:PORT/PATH";
    Err(Error::InvalidArgument(format!("'{address}' is not an address; {advice}")))
}

/// Whether a node can be reached at such an address over TCP.
pub(crate) fn is_host_and_port(address: &str) -> bool {
    let parts = address.rsplit_once(':');
    parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// What became of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is what is known from now on.
    New,
    /// It was known.
    Known,
    /// It is older than what is known, or of a member that lost coordination.
    Refused,
    /// It is of another cluster.
    Stranger,
}

/// The current topology, and what is needed to make the next one.
#[derive(Debug)]
pub(crate) struct Board {
    maker: Maker,
    topology: watch::Sender<Arc<Topology>>,
    /// Address that was connected to.
    address: Arc<str>,
    /// Id of the member that was connected to; empty before it told.
    home: Mutex<String>,
    /// Why a view was last refused.
    refusal: Mutex<Option<String>>,
    /// Where the nodes register, if that is how the client began.
    place: Option<Place>,
}

impl Board {
    pub(crate) fn maker(&self) -> &Maker {
        &self.maker
    }

    pub(crate) fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.maker.config
    }

    pub(crate) fn topology(&self) -> Arc<Topology> {
        self.topology.borrow().clone()
    }

    fn home(&self) -> String {
        self.home.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces what is known by a view, if that is newer and of the same cluster.
    pub(crate) fn take_over(&self, view: View) -> Taken {
        let view = Arc::new(view);
        loop {
            let before = self.topology();
            let known = before.cluster.as_deref();
            let taken = known.map_or(Taken::New, |known| judge(known, &view));
            if taken == Taken::New {
                if self.replace(&before, &view) {
                    return taken;
                }
                // Somebody else was faster: what is known now counts.
                continue;
            }
            if taken != Taken::Known {
                let refusal = known.map(|known| refusal_text(known, &view));
                *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
            }
            return taken;
        }
    }

    /// Puts a view in the place of `before`; false if that is not what is known any more. The many
    /// members of a large cluster are gone through before readers have to wait.
    fn replace(&self, before: &Arc<Topology>, view: &Arc<View>) -> bool {
        let is_first = before.cluster.as_ref().is_none_or(|it| it.cluster != view.cluster);
        let home = if is_first { view.node.clone() } else { self.home() };
        let next = Topology::of_cluster(&self.maker, before, view.clone(), (&home, &self.address));
        let next = Arc::new(next);
        self.topology.send_if_modified(|topology| {
            let is_current = Arc::ptr_eq(topology, before);
            if is_current {
                *self.home.lock().unwrap_or_else(PoisonError::into_inner) = home;
                *topology = next;
            }
            is_current
        })
    }
}

fn judge(known: &View, view: &View) -> Taken {
    let is_other_master = view.master != known.master;
    if view.cluster != known.cluster {
        // A node that was alone and is started anew, maybe to join others, may begin a cluster: there
        // is nobody else to go on with.
        if known.members.len() == 1 { Taken::New } else { Taken::Stranger }
    } else if view.is_fenced || view.epoch < known.epoch {
        Taken::Refused
    } else if view.epoch > known.epoch || is_other_master || known.is_fenced {
        Taken::New
    } else {
        Taken::Known
    }
}

fn refusal_text(known: &View, view: &View) -> String {
    if view.cluster != known.cluster {
        return format!(
            "node '{}' is of cluster '{}' by now, not of '{}', and is not asked any more",
            view.node, view.cluster, known.cluster
        );
    }
    if view.is_fenced {
        return format!("node '{}' has lost coordination", view.node);
    }
    format!("node '{}' is at epoch {}, before {}", view.node, view.epoch, known.epoch)
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Network {
    board: Arc<Board>,
    follower: AbortHandle,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Network {
    /// Connects to the first of the seeds that works and, if it is in a cluster, learns the members.
    /// Coordination, if it is to name the seeds, is asked first.
    ///
    /// # Errors
    /// As [`Client::connect`](crate::Client::connect); of several seeds the error of the last.
    pub(crate) async fn connect(
        seeds: &Seeds,
        config: &Arc<ClientConfig>,
    ) -> Result<Network, Error> {
        let maker = Maker { config: config.clone(), runtime: Handle::current() };
        let deadline = Instant::now() + config.deadline;
        let (addresses, place) = match seeds {
            Seeds::Addresses(addresses) => (addresses.clone(), None),
            Seeds::Coordination(place) => {
                let wait = config.connect_timeout.min(config.deadline);
                (coordination::members(place, wait).await?, Some(place.clone()))
            }
        };
        let (address, lane) = connect_any(&maker, &addresses, deadline).await?;
        let lane = nearer(&maker, &address, &lane, deadline).await.unwrap_or(lane);
        let hello = lane.link().borrow().hello.clone();
        let hello = hello.ok_or(Error::DeadlineExceeded)?;
        if config.verify && !hello.offers(feature::CHECKSUMS) {
            return Err(Error::protocol(
                "the node sends no checksums; set verify to false to read without them",
            ));
        }
        let is_member = hello.offers(feature::CLUSTER);
        let is_near = lane.address() != &address;
        let neighbour = if is_near { topology::neighbour(&lane) } else { None };
        let alone = Arc::new(Topology::alone(&maker, &address, &lane, hello, neighbour));
        let (home, refusal) = (Mutex::default(), Mutex::new(None));
        let topology = watch::Sender::new(alone);
        let board = Arc::new(Board { maker, topology, address, home, refusal, place });
        if is_member {
            let end = deadline.min(Instant::now() + config.connect_timeout);
            // Without an answer the task finds out; the node is one that works.
            let _ = time::timeout_at(end, refresh(&board)).await;
        }
        let follower = tokio::spawn(cluster::follow(board.clone())).abort_handle();
        Ok(Network { board, follower })
    }

    /// The last `Hello` of the node.
    pub(crate) fn hello(&self) -> Arc<HelloInfo> {
        self.topology().hello.clone()
    }

    /// What is known now; a newer `Hello` of a node that is alone is taken over first.
    #[inline]
    pub(crate) fn topology(&self) -> Arc<Topology> {
        let topology = self.board.topology();
        let newer = topology.main.as_ref().and_then(|main| {
            let link = main.link.borrow();
            link.hello.as_ref().filter(|hello| !Arc::ptr_eq(hello, &topology.hello)).cloned()
        });
        let Some(hello) = newer else { return topology };
        self.board.topology.send_if_modified(|topology| {
            let next = topology.after(&self.board.maker, hello);
            let is_changed = next.is_some();
            if let Some(next) = next {
                *topology = Arc::new(next);
            }
            is_changed
        });
        self.board.topology()
    }

    /// Id of the member that was connected to; empty outside of a cluster.
    pub(crate) fn home(&self) -> String {
        self.board.home()
    }

    /// The address that was connected to.
    pub(crate) fn address(&self) -> &Arc<str> {
        &self.board.address
    }

    /// Why a view was last refused.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.board.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks members what they know now until one answers.
    pub(crate) async fn refresh(&self) {
        refresh(&self.board).await;
    }
}

async fn refresh(board: &Board) {
    let topology = board.topology();
    for index in topology.order_from(&board.home()) {
        let fetched = cluster::fetch(topology.member(index), None, false).await;
        let taken = match fetched {
            Ok(News::View(view)) => board.take_over(*view),
            Ok(News::Nothing | News::Alone) | Err(_) => continue,
        };
        if matches!(taken, Taken::New | Taken::Known) {
            return;
        }
    }
}

/// The first of these addresses that answers `Hello`, and the lane to it.
async fn connect_any(
    maker: &Maker,
    addresses: &[Arc<str>],
    deadline: Instant,
) -> Result<(Arc<str>, Lane), Error> {
    let config = &maker.config;
    let mut backoff = Backoff::new(config.reconnect_backoff_min, config.reconnect_backoff_max);
    loop {
        let mut last = Error::DeadlineExceeded;
        let mut is_hopeless = true;
        for address in addresses {
            // A single node that is busy is waited for; of several, the next one is asked.
            let gives_up = |error: &Error| addresses.len() > 1 || is_final(error);
            match connect(maker, address, deadline, gives_up).await {
                Ok(lane) => return Ok((address.clone(), lane)),
                Err(error) => {
                    is_hopeless &= is_final(&error);
                    last = error;
                }
            }
        }
        let wait = backoff.step();
        if is_hopeless || Instant::now() + wait >= deadline {
            return Err(last);
        }
        time::sleep(wait).await;
    }
}

async fn connect(
    maker: &Maker,
    address: &Arc<str>,
    deadline: Instant,
    gives_up: impl Fn(&Error) -> bool,
) -> Result<Lane, Error> {
    let lane = maker.lane(&Way { addresses: smallvec![address.clone()], node: None });
    let mut link = lane.link();
    // The first request is what makes a lane connect.
    let ping = lane.exchange(Body::Ping, Landing::Any, deadline);
    let refused = link.wait_for(|link: &Link| link.failure.as_ref().is_some_and(&gives_up));
    let failure = tokio::select! {
        answer = ping => answer.err(),
        link = refused => match link {
            Ok(link) => link.failure.clone(),
            Err(_) => None,
        },
    };
    match failure {
        Some(error) => Err(error),
        None => Ok(lane),
    }
}

/// A lane to the same node over a Unix socket of this machine, if that is where the node is. It takes
/// the place of `main`, so that being near costs no further connection.
async fn nearer(maker: &Maker, address: &Arc<str>, main: &Lane, deadline: Instant) -> Option<Lane> {
    let neighbour = topology::neighbour(main)?;
    let near: Arc<str> = neighbour.shards.first()?.as_str().into();
    if socket_path(address).is_some() {
        return None;
    }
    let addresses = smallvec![near, address.clone()];
    let lane = maker.lane(&Way { addresses, node: Some(neighbour.node) });
    let mut link = lane.link();
    let ping = lane.exchange(Body::Ping, Landing::Any, deadline);
    let refused = link.wait_for(|link| link.failure.is_some());
    let is_there = tokio::select! {
        answer = ping => answer.is_ok(),
        _ = refused => false,
    };
    is_there.then_some(lane)
}

/// Whether a failure to connect will not go away while a caller waits.
fn is_final(error: &Error) -> bool {
    !error.status().is_some_and(|status| matches!(status.next(), Next::Retry | Next::Reconnect))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_one_address_or_several() {
        let check = |text: &str, expect: &[&str]| {
            let expect = expect.iter().map(|&address| address.into()).collect();
            assert_eq!(Seeds::parse(text).unwrap(), Seeds::Addresses(expect));
        };
        check("node1:7070", &["node1:7070"]);
        check("node1:7070, node2:7070,unix:/run/a", &["node1:7070", "node2:7070", "unix:/run/a"]);
        for text in ["", "node1", "node1:7070,", ":7070", "unix:", "a:1,,b:2", "a:1,zk://b:2/m"] {
            assert!(matches!(Seeds::parse(text), Err(Error::InvalidArgument(_))), "{text}");
        }
    }

    #[test]
    fn seeds_may_be_left_to_coordination() {
        let seeds = Seeds::parse("zk://a:2181,b:2181/millrace/eu").unwrap();
        let (servers, path) = ("a:2181,b:2181".to_owned(), "/millrace/eu".to_owned());
        assert_eq!(seeds, Seeds::Coordination(Place { servers, path }));
        for text in ["zk://", "zk://a:2181", "zk://a:2181/", "zk://a/m", "zk://a:1/m,zk://b:1/m"] {
            let told = Seeds::parse(text).unwrap_err().to_string();
            assert!(told.contains("zk://HOST:PORT/PATH"), "{text}: {told}");
        }
    }
}
