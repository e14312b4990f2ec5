//! Which member, shard and lane lead to which block.
//!
//! A [`Topology`] is one moment: a node that is alone, or the members of one epoch of a cluster. It is
//! never changed, only replaced; members that stay keep their lanes. Always holds: there is at least
//! one member.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use millrace_proto::cluster::REPLICAS_MAX;
use millrace_proto::ring::OWNERS_MAX;
use millrace_proto::{feature, placement};
use smallvec::{SmallVec, smallvec};
use tokio::sync::watch;

use crate::address::{machine, shard_address};
use crate::connection::{Attachment, Lane, Link, Neighbour, socket_path};
use crate::file::{FileId, HelloInfo};
use crate::member::{Maker, Member, Way};
use crate::view::View;

/// Most members that one operation asks in one round.
const ORDER_MAX: usize = 2 * OWNERS_MAX;

const _: () = assert!(REPLICAS_MAX as usize <= OWNERS_MAX);

/// Indexes of members in the order in which to ask them, each once.
pub(crate) type Order = SmallVec<[u32; OWNERS_MAX]>;

/// A shard of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// Index of the member in its topology.
    pub(crate) member: u32,
    /// Index of the shard in the member.
    pub(crate) shard: u32,
}

/// A member in a topology.
#[derive(Debug)]
struct Seat {
    member: Arc<Member>,
    /// Shards of the members before it.
    first_index: usize,
    /// Of several owners the one with the highest rank is asked first: on this machine, in our zone.
    rank: u8,
}

/// The lane that a client began with, while the node is alone.
#[derive(Debug)]
pub(crate) struct Main {
    pub(crate) address: Arc<str>,
    pub(crate) lane: Lane,
    pub(crate) link: watch::Receiver<Link>,
    neighbour: Option<Arc<Neighbour>>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) hello: Arc<HelloInfo>,
    seats: Box<[Seat]>,
    /// None in a cluster.
    pub(crate) main: Option<Main>,
    /// None of a node that is alone.
    pub(crate) cluster: Option<Arc<View>>,
}

impl Topology {
    /// Makes the topology of a node that is alone, from its last `Hello` on the main lane.
    pub(crate) fn alone(
        maker: &Maker,
        address: &Arc<str>,
        lane: &Lane,
        hello: Arc<HelloInfo>,
        neighbour: Option<Arc<Neighbour>>,
    ) -> Topology {
        let ways = ways(address, &hello, neighbour.as_deref());
        let is_near = neighbour.is_some() || socket_path(address).is_some();
        let member = Arc::new(Member::alone(maker, ways, is_near, lane));
        let link = lane.link();
        let main = Main { address: address.clone(), lane: lane.clone(), link, neighbour };
        let seats = Box::new([Seat { member, first_index: 0, rank: 0 }]);
        Topology { hello, seats, main: Some(main), cluster: None }
    }

    /// Makes the topology of the same node after another `Hello`: if the layout is the same the lanes
    /// stay.
    pub(crate) fn after(&self, maker: &Maker, hello: Arc<HelloInfo>) -> Option<Topology> {
        let main = self.main.as_ref()?;
        let neighbour = neighbour(&main.lane);
        let is_same = hello.shards == self.hello.shards
            && hello.features == self.hello.features
            && neighbour == main.neighbour;
        if !is_same {
            return Some(Topology::alone(maker, &main.address, &main.lane, hello, neighbour));
        }
        let seat = &self.seats[0];
        let seats = Box::new([Seat { member: seat.member.clone(), first_index: 0, rank: 0 }]);
        let (address, lane, link) = (main.address.clone(), main.lane.clone(), main.link.clone());
        let main = Main { address, lane, link, neighbour };
        Some(Topology { hello, seats, main: Some(main), cluster: None })
    }

    /// Makes the topology of a view, which has at least one member; members that `before` knows keep
    /// their lanes. `home` is the id of the member that was connected to, at `address`. `told_by_main`
    /// is true if the view came from the node that was alone before, which is therefore that member.
    pub(crate) fn of_cluster(
        maker: &Maker,
        before: &Topology,
        view: Arc<View>,
        (home, address): (&str, &Arc<str>),
        told_by_main: bool,
    ) -> Topology {
        let mut first_index = 0;
        let zone = maker.config.zone.as_deref();
        let by_id = before.members().map(|member| (member.identity.id.as_str(), member));
        let by_id: HashMap<_, _> = by_id.collect();
        let seats = view.layout.members.iter().map(|told| {
            let known = by_id.get(told.id.as_str()).filter(|it| it.identity.is_of(told)).copied();
            let adopted = || {
                let is_home = told_by_main && view.node == told.id;
                before.members().next().filter(|_| is_home)?.adopt(told).map(Arc::new)
            };
            let member = known
                .cloned()
                .or_else(adopted)
                .unwrap_or_else(|| Arc::new(Member::told(maker, told, address, told.id == home)));
            let seat = Seat {
                first_index,
                rank: if member.is_near { 2 } else { u8::from(zone == Some(told.zone.as_str())) },
                member,
            };
            first_index += seat.member.shard_count();
            seat
        });
        let seats = seats.collect();
        let is_known = before
            .cluster
            .as_ref()
            .is_some_and(|known| known.layout.cluster == view.layout.cluster);
        let hello = view.hello.clone().filter(|_| !is_known).unwrap_or(before.hello.clone());
        Topology { hello, seats, main: None, cluster: Some(view) }
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.seats.iter().map(|seat| &seat.member)
    }

    pub(crate) fn member_count(&self) -> usize {
        self.seats.len()
    }

    /// Returns the member with this index.
    ///
    pub(crate) fn member(&self, index: u32) -> &Arc<Member> {
        &self.seats[index as usize].member
    }

    /// Returns the shard of a member that owns the block with this hash, among the shards of the member.
    #[inline]
    pub(crate) fn place_at(&self, member: u32, hash: u64) -> Place {
        Place { member, shard: self.member(member).shard_of(hash) }
    }

    /// Returns the number of a place, counted over the shards of all members.
    pub(crate) fn index_of(&self, place: Place) -> usize {
        self.seats[place.member as usize].first_index + place.shard as usize
    }

    /// Returns the place to read a block from first.
    #[inline]
    pub(crate) fn place(&self, file: FileId, block: u64, path: &str) -> Place {
        let hash = placement::block_hash(file.into(), block);
        let member = match &self.cluster {
            None => 0,
            Some(view) => self.first_member(view, hash, path),
        };
        self.place_at(member, hash)
    }

    /// Returns the member to ask first for a block.
    fn first_member(&self, view: &View, hash: u64, path: &str) -> u32 {
        let is_well = |index: u32| self.seats[index as usize].member.health.is_well();
        let replicas = view.layout.replicas(path);
        if replicas == 1 {
            if let Some(owner) = view.layout.ring().owner(hash)
                && is_well(owner as u32)
            {
                return owner as u32;
            }
        } else {
            let mut owners = [0; REPLICAS_MAX as usize];
            let replicas = replicas.min(owners.len());
            let count = view.layout.ring().owners(hash, replicas, &mut owners[..replicas]);
            let turn = fastrand::usize(..count.max(1));
            let owners = owners[turn..count].iter().chain(&owners[..turn]);
            let well = owners.copied().filter(|&index| is_well(index));
            // This is the first of those with the highest rank.
            let rank = |&index: &u32| Reverse(self.seats[index as usize].rank);
            if let Some(owner) = well.min_by_key(rank) {
                return owner;
            }
        }
        self.order(view, hash, replicas).first().copied().unwrap_or(0)
    }

    /// Returns the members to ask for a block, best first: its owners, which take turns or go by
    /// nearness, then the members that come after them. Unhealthy ones are last.
    pub(crate) fn order_of(&self, hash: u64, path: &str) -> Order {
        match &self.cluster {
            None => smallvec![0],
            Some(view) => self.order(view, hash, view.layout.replicas(path)),
        }
    }

    /// Returns the members to ask about a path. The first one is the same for all clients, so that it
    /// knows the file.
    pub(crate) fn order_of_path(&self, path: &str) -> Order {
        match &self.cluster {
            None => smallvec![0],
            Some(view) => self.order(view, path_hash(path), 1),
        }
    }

    /// Returns the members to ask for what any of them knows, beginning with the one of this id.
    pub(crate) fn order_from(&self, id: &str) -> Order {
        let mut order: Order = (0..self.seats.len() as u32).collect();
        if let Some(first) = self.members().position(|member| member.identity.id == id) {
            order.rotate_left(first);
        }
        self.well_first(order)
    }

    fn order(&self, view: &View, hash: u64, replicas: usize) -> Order {
        let mut owners = [0; OWNERS_MAX];
        let count = view.layout.ring().owners(hash, replicas, &mut owners);
        let mut order = Order::from_slice(&owners[..count]);
        let replicas = replicas.min(count);
        if replicas > 1 {
            order[..replicas].rotate_left(fastrand::usize(..replicas));
            // The sort is stable: among equals the turn counts.
            let rank = |&index: &u32| Reverse(self.seats[index as usize].rank);
            order[..replicas].sort_by_key(rank);
        }
        // Members that own nothing still answer.
        let start = hash as usize % self.seats.len();
        let others = (start..self.seats.len()).chain(0..start).map(|index| index as u32);
        for index in others {
            if order.len() >= ORDER_MAX {
                break;
            }
            if !owners[..count].contains(&index) {
                order.push(index);
            }
        }
        self.well_first(order)
    }

    /// Moves unhealthy members behind the others, and leaves out those that are never asked.
    fn well_first(&self, mut order: Order) -> Order {
        let health = |index: u32| &self.seats[index as usize].member.health;
        if order.iter().all(|&index| health(index).is_well()) {
            return order;
        }
        order.retain(|index| !health(*index).is_banished());
        order.sort_by_key(|&index| !health(index).is_well());
        order
    }

    /// Returns the lane of a place that leases, if its memory can be reached.
    pub(crate) fn leasing_lane(&self, place: Place) -> Option<(&Lane, Arc<Attachment>)> {
        let member = self.member(place.member);
        member.attachment(place.shard).map(|found| (member.first_lane(place.shard), found))
    }

    /// Returns the place of a block whose memory this is.
    pub(crate) fn place_of(&self, attachment: &Arc<Attachment>, hash: u64) -> Option<Place> {
        let near = (0..self.seats.len() as u32).filter(|&index| self.member(index).is_near);
        near.map(|index| self.place_at(index, hash)).find(|place| {
            let found = self.member(place.member).attachment(place.shard);
            found.is_some_and(|found| Arc::ptr_eq(&found, attachment))
        })
    }

    /// Returns the next lane of a place.
    #[inline]
    pub(crate) fn lane(&self, place: Place) -> &Lane {
        self.member(place.member).lane(place.shard)
    }
}

/// Computes FNV-1a, mixed: it spreads paths over the members.
fn path_hash(path: &str) -> u64 {
    let hash = path.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    placement::mix(hash)
}

/// Returns what the node told clients on its machine, if this is one.
pub(crate) fn neighbour(main: &Lane) -> Option<Arc<Neighbour>> {
    let neighbour = main.link().borrow().neighbour.clone()?;
    let here = machine();
    (!here.is_empty() && neighbour.machine == *here).then_some(neighbour)
}

/// Returns the ways to the shards of a node that is alone.
fn ways(address: &Arc<str>, hello: &HelloInfo, neighbour: Option<&Neighbour>) -> Vec<Way> {
    let addresses: Vec<Arc<str>> = if hello.offers(feature::SHARD_ADDRESSES) {
        let addresses = hello.shards.iter();
        addresses.map(|shard| shard_address(address, shard)).collect()
    } else {
        Vec::new()
    };
    let addresses = if addresses.is_empty() { vec![address.clone()] } else { addresses };
    // The way goes over a socket of this machine, for each shard, unless that is how we came here.
    let local =
        neighbour.filter(|it| socket_path(address).is_none() && it.shards.len() == addresses.len());
    let ways = addresses.into_iter().enumerate().map(|(index, own)| match local {
        Some(local) => {
            let near: Arc<str> = local.shards[index].as_str().into();
            Way { addresses: smallvec![near, own, address.clone()], node: Some(local.node) }
        }
        None if own != *address => Way { addresses: smallvec![own, address.clone()], node: None },
        None => Way { addresses: smallvec![own], node: None },
    });
    ways.collect()
}
