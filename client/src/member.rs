//! One node: the lanes to its shards, and whether it is worth asking.
//!
//! Always holds: there is at least one shard, and each has at least one lane. A lane is made when it is
//! first used. A lane that cannot reach its shard's own address falls back to the next one of its
//! addresses, where any shard's blocks are served too.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use millrace_proto::cluster;
use millrace_proto::{Status, placement};
use smallvec::{SmallVec, smallvec};
use tokio::runtime::Handle;
use tokio::time::{self, Instant};

use crate::address::{machine, shard_address};
use crate::config::ClientConfig;
use crate::connection::{Attachment, Body, Claim, Landing, Lane, Reply, socket_path};
use crate::error::Error;
use crate::health::Health;

/// How long a member may work on a request before it is asked whether it lives. Guessed.
const WATCH: Duration = Duration::from_secs(1);
/// Pings without an answer after which a request is given up that only this member can answer.
pub(crate) const MISSED_MAX: u32 = 2;

/// Where the lanes of a shard lead.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    /// Addresses, tried in this order.
    pub(crate) addresses: SmallVec<[Arc<str>; 2]>,
    /// Number of the run of the node that a Unix socket among them must lead to.
    pub(crate) node: Option<u64>,
}

/// The lanes of one shard, used in turn.
#[derive(Debug)]
struct Shard {
    way: Way,
    lanes: Box<[OnceLock<Lane>]>,
    turn: AtomicUsize,
}

/// What lanes need to be made.
#[derive(Clone, Debug)]
pub(crate) struct Maker {
    pub(crate) config: Arc<ClientConfig>,
    /// What is proved on each connection.
    pub(crate) claim: Option<Claim>,
    pub(crate) runtime: Handle,
}

impl Maker {
    pub(crate) fn lane(&self, way: &Way) -> Lane {
        let (node, claim) = (way.node, self.claim.clone());
        Lane::start(way.addresses.clone(), (node, claim), self.config.clone(), &self.runtime)
    }
}

/// What distinguishes one run of a member from another; empty outside of a cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    pub(crate) id: String,
    run: u64,
    address: String,
    shards: Vec<String>,
    local: Vec<String>,
    machine: String,
}

impl From<&cluster::Member> for Identity {
    fn from(told: &cluster::Member) -> Identity {
        Identity {
            id: told.id.clone(),
            run: told.run,
            address: told.address.clone(),
            shards: told.shards.clone(),
            local: told.local.clone(),
            machine: told.machine.clone(),
        }
    }
}

impl Identity {
    /// True if the ring means this run.
    pub(crate) fn is_of(&self, told: &cluster::Member) -> bool {
        // No field is left out, and none is copied: a ring may have thousands of members.
        let Identity { id, run, address, shards, local, machine } = self;
        *id == told.id
            && *run == told.run
            && *address == told.address
            && *shards == told.shards
            && *local == told.local
            && *machine == told.machine
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) identity: Identity,
    pub(crate) health: Health,
    /// True if it is on this machine and can be reached over its Unix sockets.
    pub(crate) is_near: bool,
    shards: Arc<[Shard]>,
    /// The lane that the client began with, if this is where it leads.
    main: Option<Lane>,
    maker: Maker,
}

impl Member {
    /// Makes a node outside of a cluster, with a way to each shard; `main` is the first lane of the
    /// shards whose ways begin with its address.
    pub(crate) fn alone(maker: &Maker, ways: Vec<Way>, is_near: bool, main: &Lane) -> Member {
        let shards = shards(maker, ways);
        if let Some(first) = shards.iter().find(|shard| shard.way.addresses[0] == *main.address()) {
            // No other user has the shard yet, so its lane is not made.
            let _ = first.lanes[0].set(main.clone());
        }
        let (identity, health, main) = (Identity::default(), Health::new(), Some(main.clone()));
        Member { identity, health, is_near, shards, main, maker: maker.clone() }
    }

    /// Makes a member from the ring. If it is the one that was connected to, at `address`, that address
    /// is tried when none of its own can be reached, because it worked.
    pub(crate) fn told(
        maker: &Maker,
        told: &cluster::Member,
        address: &Arc<str>,
        is_home: bool,
    ) -> Member {
        // A member that is alone may leave its host out.
        let main = shard_address(address, &told.address);
        let last = is_home.then_some(address);
        let own: Vec<Arc<str>> = if told.shards.is_empty() {
            vec![main.clone()]
        } else {
            told.shards.iter().map(|shard| shard_address(&main, shard)).collect()
        };
        let is_near = maker.config.local
            && !told.machine.is_empty()
            && told.machine == machine()
            && told.local.len() == own.len();
        let ways = own.into_iter().enumerate().map(|(index, own)| {
            let mut addresses: SmallVec<[Arc<str>; 2]> = smallvec![];
            if is_near {
                addresses.push(told.local[index].as_str().into());
            }
            for address in [Some(&own), Some(&main), last].into_iter().flatten() {
                if !addresses.contains(address) && !address.is_empty() {
                    addresses.push(address.clone());
                }
            }
            Way { addresses, node: Some(told.run) }
        });
        let shards = shards(maker, ways.collect());
        let (identity, health) = (told.into(), Health::new());
        Member { identity, health, is_near, shards, main: None, maker: maker.clone() }
    }

    /// Makes the node that was alone until now the member that it turned out to be: its lanes stay. None
    /// if the ring names other shards.
    pub(crate) fn adopt(&self, told: &cluster::Member) -> Option<Member> {
        (self.shards.len() == told.shards.len().max(1)).then(|| Member {
            identity: told.into(),
            health: Health::new(),
            is_near: self.is_near,
            shards: self.shards.clone(),
            main: self.main.clone(),
            maker: self.maker.clone(),
        })
    }

    pub(crate) fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// Returns the shard that owns the block with this hash.
    #[inline]
    pub(crate) fn shard_of(&self, hash: u64) -> u32 {
        placement::shard_of(hash, self.shards.len() as u32)
    }

    /// Returns the next lane of a shard.
    ///
    /// # Panics
    /// If there is no such shard.
    #[inline]
    pub(crate) fn lane(&self, shard: u32) -> &Lane {
        let turns = &self.shards[shard as usize];
        if turns.lanes.len() == 1 {
            return self.lane_at(shard, 0);
        }
        let turn = turns.turn.fetch_add(1, Ordering::Relaxed);
        self.lane_at(shard, turn % turns.lanes.len())
    }

    /// Returns the lane of a shard that would lease, once it is connected.
    pub(crate) fn first_lane(&self, shard: u32) -> &Lane {
        self.lane_at(shard, 0)
    }

    /// Returns the lane for everything but reads.
    pub(crate) fn main(&self) -> &Lane {
        self.main.as_ref().unwrap_or_else(|| self.lane_at(0, 0))
    }

    /// Makes a lane to any shard that no other request uses, and that ends with its handle. It leads over the
    /// network if it can, because it shares no memory with the node.
    pub(crate) fn own_lane(&self) -> Lane {
        let Way { addresses, node } = &self.shards[fastrand::usize(..self.shards.len())].way;
        let all = addresses.iter().chain(self.main.iter().map(Lane::address));
        let plain: SmallVec<_> = all.filter(|it| socket_path(it).is_none()).cloned().collect();
        let way = match plain.is_empty() {
            true => Way { addresses: addresses.clone(), node: *node },
            false => Way { addresses: plain, node: None },
        };
        let config = ClientConfig { local: way.node.is_some(), ..(*self.maker.config).clone() };
        Maker { config: Arc::new(config), ..self.maker.clone() }.lane(&way)
    }

    /// True if bytes came from the lanes of a shard since this moment.
    pub(crate) fn was_heard_since(&self, shard: u32, moment: Instant) -> bool {
        self.lanes_of(shard).any(|lane| lane.was_heard_since(moment))
    }

    /// True if a shard ever answered.
    pub(crate) fn was_ever_heard(&self, shard: u32) -> bool {
        self.lanes_of(shard).any(Lane::was_ever_heard)
    }

    /// Returns the lanes on which a shard answers, as far as they were made.
    fn lanes_of(&self, shard: u32) -> impl Iterator<Item = &Lane> {
        let main = self.main.iter().filter(move |_| shard == 0);
        self.shards[shard as usize].lanes.iter().filter_map(OnceLock::get).chain(main)
    }

    /// True if its main address is this one.
    pub(crate) fn is_at(&self, address: &str) -> bool {
        self.identity.address == address
    }

    /// Returns the memory of a shard, if it can be reached.
    pub(crate) fn attachment(&self, shard: u32) -> Option<Arc<Attachment>> {
        self.shards[shard as usize].lanes[0].get()?.attachment()
    }

    #[inline]
    fn lane_at(&self, shard: u32, lane: usize) -> &Lane {
        let shard = &self.shards[shard as usize];
        shard.lanes[lane].get_or_init(|| self.maker.lane(&shard.way))
    }

    /// Asks and waits as long as the member is alive, at most until the deadline, for requests that may
    /// take long. The member is alive until it has left `missed_max` pings unanswered, one after the
    /// other.
    ///
    /// # Errors
    /// Why there is no connection, [`Error::ConnectionLost`] if the member keeps silent, and
    /// [`Error::DeadlineExceeded`].
    pub(crate) async fn ask_watched(
        &self,
        body: Body,
        deadline: Instant,
        missed_max: u32,
    ) -> Result<Reply, Error> {
        let lane = self.main();
        let asked = lane.ask(body, Landing::Any, deadline);
        tokio::pin!(asked);
        let mut missed = 0;
        loop {
            let wake = Instant::now() + WATCH;
            tokio::select! {
                answer = &mut asked => return answer?.outcome,
                () = time::sleep_until(wake.min(deadline)) => {}
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(Error::DeadlineExceeded);
            }
            let pong = lane.ask_until(Body::Ping, now + self.maker.config.attempt_timeout);
            let pong = tokio::select! {
                answer = &mut asked => return answer?.outcome,
                pong = pong => pong,
                () = time::sleep_until(deadline) => return Err(Error::DeadlineExceeded),
            };
            match pong {
                Ok(_) => missed = 0,
                Err(_) if missed + 1 < missed_max => missed += 1,
                Err(Error::DeadlineExceeded) => return Err(lane.silent()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Notes that a shard was not reached, or that nothing was heard of it (then a ping goes out at
    /// once), and pings it until it answers.
    pub(crate) fn suspect(self: &Arc<Member>, shard: u32, was_silent: bool) {
        if self.health.suspect() {
            let timeout = self.maker.config.attempt_timeout;
            let probe = probe(Arc::downgrade(self), shard, was_silent, timeout);
            self.health.probed_by(self.maker.runtime.spawn(probe).abort_handle());
        }
    }
}

fn shards(maker: &Maker, ways: Vec<Way>) -> Arc<[Shard]> {
    let lane_count = maker.config.connections_per_shard;
    let shards = ways.into_iter().map(|way| Shard {
        way,
        lanes: (0..lane_count).map(|_| OnceLock::new()).collect(),
        turn: AtomicUsize::new(0),
    });
    shards.collect()
}

/// Pings a shard of a suspect member until it answers.
async fn probe(member: Weak<Member>, shard: u32, mut is_due: bool, timeout: Duration) {
    loop {
        if !is_due {
            let Some(step) = member.upgrade().map(|member| member.health.step()) else { return };
            time::sleep(step).await;
        }
        is_due = false;
        let Some(lane) = member.upgrade().map(|member| member.first_lane(shard).clone()) else {
            return;
        };
        let pong = lane.ask_until(Body::Ping, Instant::now() + timeout).await;
        drop(lane);
        if pong.is_ok_and(|reply| reply.header.status() == Status::Ok) {
            if let Some(member) = member.upgrade() {
                member.health.recover();
            }
            return;
        }
    }
}
