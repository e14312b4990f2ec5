//! How many connections and loads each peer has: one address must not take the places of all others.
//!
//! Owns the counts, for all shards of a node together. Connections come and go rarely beside requests,
//! so one lock does. A peer is the address that a connection comes from (of IPv6 the first 64 bits, which
//! one machine has to itself), or, over a Unix socket, the user. All addresses of the node's own machine are
//! one peer, because every program there can choose among them; loads of its users count together with theirs.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::SocketAddrAny;

use crate::owner::Loads;

/// Connections that share one bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Peer {
    Address(IpAddr),
    /// The node's own machine, by whichever address.
    Machine,
    User(u32),
    /// The kernel does not say.
    Unknown,
}

/// What one peer has.
#[derive(Debug, Default)]
struct PeerCounts {
    connection_count: usize,
    loads: Loads,
}

/// The connections of all peers.
pub(crate) struct Guests {
    shares: Mutex<HashMap<Peer, PeerCounts>>,
    each_max: usize,
    /// Loads of the node's own machine.
    own: Loads,
}

/// One connection's place; free again when this is dropped.
pub(crate) struct GuestPlace {
    guests: Arc<Guests>,
    peer: Peer,
    loads: Loads,
}

impl GuestPlace {
    /// Returns the loads of all connections of the same machine.
    pub(crate) fn loads(&self) -> Loads {
        self.loads.clone()
    }
}

impl Guests {
    /// Allows at most `each_max` connections of each peer.
    pub(crate) fn new(each_max: usize) -> Guests {
        Guests { shares: Mutex::default(), each_max, own: Loads::default() }
    }

    /// Returns a place for a connection that was just accepted; None if its peer has as many as it may.
    pub(crate) fn admit(
        self: &Arc<Guests>,
        socket: impl AsFd,
        is_local: bool,
    ) -> Option<GuestPlace> {
        self.admit_peer(peer_of(socket, is_local))
    }

    fn admit_peer(self: &Arc<Guests>, peer: Peer) -> Option<GuestPlace> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let share = shares.entry(peer).or_default();
        if share.connection_count >= self.each_max {
            return None;
        }
        share.connection_count += 1;
        let is_own = matches!(peer, Peer::User(_) | Peer::Machine);
        let loads = if is_own { self.own.clone() } else { share.loads.clone() };
        Some(GuestPlace { guests: Arc::clone(self), peer, loads })
    }
}

impl Drop for GuestPlace {
    fn drop(&mut self) {
        let mut shares = self.guests.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get_mut(&self.peer) {
            share.connection_count -= 1;
            if share.connection_count == 0 {
                shares.remove(&self.peer);
            }
        }
    }
}

fn peer_of(socket: impl AsFd, is_local: bool) -> Peer {
    if is_local {
        let credentials = rustix::net::sockopt::socket_peercred(socket);
        return credentials.map_or(Peer::Unknown, |it| Peer::User(it.uid.as_raw()));
    }
    let ip = |address: SocketAddrAny| Some(SocketAddr::try_from(address).ok()?.ip().to_canonical());
    let own = rustix::net::getsockname(&socket).ok().and_then(ip);
    let address = rustix::net::getpeername(&socket).ok().flatten().and_then(ip);
    match address {
        Some(ip) if ip.is_loopback() || own == Some(ip) => Peer::Machine,
        Some(IpAddr::V6(ip)) => Peer::Address(IpAddr::V6((u128::from(ip) >> 64 << 64).into())),
        Some(ip) => Peer::Address(ip),
        None => Peer::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_leaves_the_places_of_others() {
        let guests = Arc::new(Guests::new(2));
        let [one, other] = [1, 2].map(Peer::User);
        let places: Vec<_> = [one, one, one].map(|peer| guests.admit_peer(peer)).into();
        assert_eq!(places.iter().flatten().count(), 2);
        assert!(guests.admit_peer(other).is_some());
        drop(places);
        assert!(guests.admit_peer(one).is_some());
        assert!(guests.shares.lock().unwrap().is_empty(), "what is gone is not remembered");
    }

    #[test]
    fn loads_of_one_machine_count_together() {
        let guests = Arc::new(Guests::new(9));
        let far = |last| Peer::Address(IpAddr::from([192, 0, 2, last]));
        let peers = [Peer::Machine, Peer::User(1), Peer::User(2), far(1), far(1), far(2)];
        let places = peers.map(|peer| guests.admit_peer(peer).expect("a place"));
        let are_one = |a: usize, b: usize| places[a].loads().is(&places[b].loads());
        assert!(are_one(0, 1) && are_one(1, 2) && are_one(3, 4));
        assert!(!are_one(0, 3) && !are_one(4, 5));
    }

    #[test]
    fn all_addresses_of_this_machine_are_one_peer() {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for address in ["127.0.0.1", "127.0.0.2"] {
            let _client = std::net::TcpStream::connect((address, port)).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert_eq!(peer_of(&accepted, false), Peer::Machine, "{address}");
        }
    }
}
