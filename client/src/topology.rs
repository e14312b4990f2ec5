//! Which lane leads to which block.
//!
//! Owns the lanes to the shards of the node and follows the node's `Hello`: after a restart with
//! another layout the lanes are made anew. Always holds: there is at least one shard, and each has at
//! least one lane. A lane that cannot reach its shard's own address falls back to the main one,
//! where any shard's blocks are served too.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use millrace_proto::{FileId, feature, placement};
use smallvec::smallvec;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::ClientConfig;
use crate::connection::{Attachment, Body, Landing, Lane, Link, Neighbour, socket_path};
use crate::error::Error;
use crate::file::HelloInfo;

/// The lanes of one shard, used in turn.
#[derive(Debug)]
struct Shard {
    lanes: Vec<Lane>,
    turn: AtomicUsize,
}

/// The node's layout as its last `Hello` told it.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) hello: Arc<HelloInfo>,
    neighbour: Option<Arc<Neighbour>>,
    shards: Arc<[Shard]>,
}

impl Topology {
    /// Index of the shard that owns a block of a file.
    pub(crate) fn shard_index(&self, file: FileId, block: u64) -> usize {
        let hash = placement::block_hash(file, block);
        placement::shard_of(hash, self.shards.len() as u32) as usize
    }

    /// The lane of a shard that leases, if the shard can be got at in memory.
    pub(crate) fn leasing_lane(&self, shard_index: usize) -> Option<(&Lane, Arc<Attachment>)> {
        let lane = self.first_lane(shard_index);
        lane.attachment().map(|attachment| (lane, attachment))
    }

    /// The lane of a shard that would lease, once it is connected.
    pub(crate) fn first_lane(&self, shard_index: usize) -> &Lane {
        &self.shards[shard_index].lanes[0]
    }

    /// The next lane of a shard.
    ///
    /// # Panics
    /// If there is no such shard.
    pub(crate) fn lane(&self, shard_index: usize) -> &Lane {
        let shard = &self.shards[shard_index];
        if shard.lanes.len() == 1 {
            return &shard.lanes[0];
        }
        let turn = shard.turn.fetch_add(1, Ordering::Relaxed);
        &shard.lanes[turn % shard.lanes.len()]
    }
}

/// The main lane and the current topology.
#[derive(Debug)]
pub(crate) struct Network {
    address: Arc<str>,
    config: Arc<ClientConfig>,
    main: Lane,
    link: watch::Receiver<Link>,
    topology: watch::Sender<Arc<Topology>>,
}

impl Network {
    /// Judges the address and starts the main lane, without connecting yet.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an address that is neither `host:port` nor `unix:PATH`.
    pub(crate) fn start_main(
        address: &Arc<str>,
        config: &Arc<ClientConfig>,
    ) -> Result<Lane, Error> {
        let is_valid = match socket_path(address) {
            Some(path) => !path.is_empty(),
            None => address
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()),
        };
        if !is_valid {
            return Err(Error::InvalidArgument(format!(
                "'{address}' is not an address; write host:port, such as node1:7070, or unix:PATH"
            )));
        }
        Ok(Lane::start(smallvec![address.clone()], None, config.clone()))
    }

    /// The network behind a main lane that has got its first `Hello`.
    pub(crate) fn new(
        address: Arc<str>,
        config: Arc<ClientConfig>,
        main: Lane,
        hello: Arc<HelloInfo>,
    ) -> Network {
        let is_near = main.address() != &address;
        let neighbour = if is_near { neighbour(&main) } else { None };
        let shards = start_shards(&address, &config, &main, &hello, neighbour.as_deref());
        let topology = Arc::new(Topology { hello, neighbour, shards });
        Network { address, config, link: main.link(), main, topology: watch::Sender::new(topology) }
    }

    /// The lane for everything but reads.
    pub(crate) fn main(&self) -> &Lane {
        &self.main
    }

    /// The last `Hello` of the main lane.
    pub(crate) fn hello(&self) -> Arc<HelloInfo> {
        let hello = self.link.borrow().hello.clone();
        hello.unwrap_or_else(|| self.topology.borrow().hello.clone())
    }

    /// The current layout; a newer `Hello` of the main lane is taken over first.
    pub(crate) fn topology(&self) -> Arc<Topology> {
        let hello = self.hello();
        if !Arc::ptr_eq(&hello, &self.topology.borrow().hello) {
            self.topology.send_modify(|topology| {
                let neighbour = neighbour(&self.main);
                let is_same = hello.shards == topology.hello.shards
                    && hello.features == topology.hello.features
                    && neighbour == topology.neighbour;
                let shards = if is_same {
                    topology.shards.clone()
                } else {
                    let neighbour = neighbour.as_deref();
                    start_shards(&self.address, &self.config, &self.main, &hello, neighbour)
                };
                *topology = Arc::new(Topology { hello, neighbour, shards });
            });
        }
        self.topology.borrow().clone()
    }
}

/// A lane to the same node over a Unix socket of this machine, if that is where the node is. It takes
/// the place of `main`, so that being near costs no further connection.
pub(crate) async fn nearer(
    address: &Arc<str>,
    config: &Arc<ClientConfig>,
    main: &Lane,
    deadline: Instant,
) -> Option<Lane> {
    let neighbour = neighbour(main)?;
    let near: Arc<str> = neighbour.shards.first()?.as_str().into();
    if socket_path(address).is_some() {
        return None;
    }
    let addresses = smallvec![near, address.clone()];
    let lane = Lane::start(addresses, Some(neighbour.node), config.clone());
    let mut link = lane.link();
    let ping = lane.exchange(Body::Ping, Landing::Any, deadline);
    let refused = link.wait_for(|link| link.failure.is_some());
    let is_there = tokio::select! {
        answer = ping => answer.is_ok(),
        _ = refused => false,
    };
    is_there.then_some(lane)
}

/// What the node told to clients on its machine, if this is one.
fn neighbour(main: &Lane) -> Option<Arc<Neighbour>> {
    let neighbour = main.link().borrow().neighbour.clone()?;
    let here = machine();
    (!here.is_empty() && neighbour.machine == *here).then_some(neighbour)
}

/// Names the run of this machine's kernel: proc(5), `random/boot_id`. Empty where that is hidden.
fn machine() -> &'static str {
    static MACHINE: LazyLock<String> = LazyLock::new(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        text.map(|text| text.trim().to_owned()).unwrap_or_default()
    });
    &MACHINE
}

fn start_shards(
    address: &Arc<str>,
    config: &Arc<ClientConfig>,
    main: &Lane,
    hello: &HelloInfo,
    neighbour: Option<&Neighbour>,
) -> Arc<[Shard]> {
    let addresses: Vec<Arc<str>> = if hello.offers(feature::SHARD_ADDRESSES) {
        let addresses = hello.shards.iter();
        addresses.map(|shard| shard_address(address, shard)).collect()
    } else {
        Vec::new()
    };
    let addresses = if addresses.is_empty() { vec![address.clone()] } else { addresses };
    // A way over a socket of this machine, for each shard, unless that is how we came here.
    let local =
        neighbour.filter(|it| socket_path(address).is_none() && it.shards.len() == addresses.len());
    let shards = addresses.into_iter().enumerate().map(|(index, own)| {
        let lanes = (0..config.connections_per_shard).map(|lane_index| {
            if let Some(local) = local {
                let near: Arc<str> = local.shards[index].as_str().into();
                if lane_index == 0 && main.address() == &near {
                    return main.clone();
                }
                let addresses = smallvec![near, own.clone(), address.clone()];
                Lane::start(addresses, Some(local.node), config.clone())
            } else if own != *address {
                Lane::start(smallvec![own.clone(), address.clone()], None, config.clone())
            } else if index == 0 && lane_index == 0 {
                main.clone()
            } else {
                Lane::start(smallvec![own.clone()], None, config.clone())
            }
        });
        Shard { lanes: lanes.collect(), turn: AtomicUsize::new(0) }
    });
    shards.collect()
}

/// The address of a shard; an empty host means the host of the main address.
fn shard_address(main: &Arc<str>, shard: &str) -> Arc<str> {
    match (shard.strip_prefix(':'), main.rsplit_once(':')) {
        (Some(port), Some((host, _))) => format!("{host}:{port}").into(),
        _ => shard.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_host_of_a_shard_is_the_host_that_was_connected_to() {
        let check = |main: &str, shard, expect| {
            assert_eq!(&*shard_address(&main.into(), shard), expect);
        };
        check("node1:7070", ":7601", "node1:7601");
        check("[::1]:7070", ":7601", "[::1]:7601");
        check("node1:7070", "10.0.0.2:7601", "10.0.0.2:7601");
    }
}
