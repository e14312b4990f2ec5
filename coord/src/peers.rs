//! Streams between replicas.
//!
//! Each replica dials every other one and sends its own messages only over that stream. The other's
//! messages come over the stream that the other dialled. So the two sides need not agree on one of two
//! connections, and a link that works in only one direction is noticed.
//!
//! What always holds: messages are exchanged only after both sides have introduced themselves and accepted
//! each other (`admission`); messages of one stream arrive whole, once and in order, or the stream breaks
//! and the sender gets `PeerLost`; queues are bounded; garbage closes only the stream that carried it.
//! Leaves lost messages to Raft.

use std::io;
use std::net::SocketAddr;

use mio::net::TcpListener;
use mio::{Interest, Registry, Token};

use crate::config::Member;
use crate::replica::{Company, Event};
use crate::socket::RateLimit;

mod admission;
mod hello;
mod incoming;
mod known;
mod outgoing;
mod resolver;
#[cfg(test)]
mod tests;

pub use admission::Admission;
pub use hello::Hello;
use incoming::Incoming;
pub use known::{Known, Listed};
use outgoing::{Change, Outgoing};
pub(crate) use resolver::{Resolved, Resolver};

/// Most streams that others dialled. Guessed: every member of a large ensemble, each with an old stream
/// whose end was not noticed yet.
const INCOMING_MAX: usize = 128;
/// Most streams that are accepted in one pass.
const ACCEPTS_PER_PASS: usize = 16;

/// The tokens of the poll that belong to the peers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tokens {
    /// The token of the listener.
    pub(crate) listener: Token,
    /// The first token of the streams that we dial. Each takes one, which is never used again.
    pub(crate) outgoing: usize,
    /// The first of [`INCOMING_MAX`] tokens for the streams that others dial.
    pub(crate) incoming: usize,
}

/// The state of the streams with one other replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    pub id: u64,
    /// The address that is dialled, `host:port`.
    pub address: String,
    /// True if our stream to it is open.
    pub sends: bool,
    /// True if its stream to us is open.
    pub hears: bool,
    /// Bytes that wait to be sent to it.
    pub waiting_bytes: usize,
    /// The reason that there is no stream, or that the last one ended.
    pub trouble: Option<String>,
}

/// All streams of one replica to and from the others.
#[derive(Debug)]
pub(crate) struct Peers {
    tokens: Tokens,
    registry: Registry,
    listener: Option<TcpListener>,
    has_waiting: bool,
    admission: Admission,
    resolver: Resolver,
    outgoing: Vec<Outgoing>,
    dialled: usize,
    incoming: Vec<Option<Incoming>>,
    /// Peers whose stream ended since the last pass.
    lost: Vec<u64>,
    /// Count of our streams that broke.
    pub(crate) lost_count: u64,
    log: RateLimit,
}

impl Peers {
    /// Builds this without any stream. `listener` is `None` for a replica that is alone.
    ///
    /// # Errors
    /// Fails if the listener cannot be polled.
    pub(crate) fn new(
        tokens: Tokens,
        registry: Registry,
        mut listener: Option<TcpListener>,
        admission: Admission,
        resolver: Resolver,
    ) -> io::Result<Peers> {
        if let Some(listener) = &mut listener {
            registry.register(listener, tokens.listener, Interest::READABLE)?;
        }
        Ok(Peers {
            tokens,
            registry,
            listener,
            has_waiting: false,
            admission,
            resolver,
            outgoing: Vec::new(),
            dialled: 0,
            incoming: Vec::new(),
            lost: Vec::new(),
            lost_count: 0,
            log: RateLimit::default(),
        })
    }

    /// Keeps streams to these replicas and to no others.
    pub(crate) fn set_company(&mut self, company: &Company) {
        self.admission.set_company(company);
        let addresses = |member: &Member| {
            let elsewhere = company.elsewhere.iter().filter(|(id, _)| *id == member.id);
            let elsewhere = elsewhere.map(|(_, address)| address.clone());
            std::iter::once(member.peer_address.clone()).chain(elsewhere).collect::<Vec<_>>()
        };
        let members = &company.members;
        let lost = &mut self.lost;
        self.outgoing.retain_mut(|outgoing| {
            let member = members.iter().find(|member| member.id == outgoing.peer);
            let keep = member.is_some_and(|member| outgoing.set_addresses(addresses(member)));
            if !keep && outgoing.is_open() {
                // The last message to it is that it was removed.
                outgoing.flush(0);
                lost.push(outgoing.peer);
            }
            keep
        });
        for member in members {
            if self.outgoing.iter().any(|outgoing| outgoing.peer == member.id) {
                continue;
            }
            let token = Token(self.tokens.outgoing + self.dialled);
            self.dialled += 1;
            self.outgoing.push(Outgoing::new(member.id, addresses(member), token));
        }
    }

    /// Notes that this replica begins an ensemble: see [`crate::replica::Action::Found`]. All streams end,
    /// because they were opened when it had none.
    ///
    /// # Errors
    /// Fails if it could not be stored; then the replica must stop.
    pub(crate) fn found(&mut self, now_ms: u64, cluster_id: Option<u64>) -> Result<(), String> {
        self.admission.found(cluster_id)?;
        self.incoming.iter_mut().for_each(|incoming| *incoming = None);
        for outgoing in self.outgoing.iter_mut().filter(|outgoing| outgoing.is_open()) {
            outgoing.fail(now_ms, "an ensemble begins here: greeting it again".into());
            self.lost.push(outgoing.peer);
        }
        Ok(())
    }

    /// Notes which part of the configured list the ensemble has taken over.
    pub(crate) fn set_listed(&mut self, listed: Listed) {
        self.admission.set_listed(listed);
    }

    pub(crate) fn resolved(&mut self, now_ms: u64, resolved: Resolved) {
        let Resolved { peer, address, result } = resolved;
        for outgoing in &mut self.outgoing {
            if outgoing.peer == peer && outgoing.address == address {
                outgoing.resolved(now_ms, result, &self.registry, &self.admission);
                return;
            }
        }
    }

    /// Notes that the poll has news about a token of the peers.
    pub(crate) fn ready(&mut self, token: Token) {
        if token == self.tokens.listener {
            self.has_waiting = true;
        } else if token.0 >= self.tokens.incoming {
            let slot = self.incoming.get_mut(token.0 - self.tokens.incoming);
            if let Some(Some(incoming)) = slot {
                incoming.ready = true;
            }
        } else {
            for outgoing in self.outgoing.iter_mut().filter(|outgoing| outgoing.token == token) {
                outgoing.ready = true;
            }
        }
    }

    /// Accepts, dials, receives, and notices what ended. True if there is more to do at once.
    pub(crate) fn pass(
        &mut self,
        now_ms: u64,
        shared: &mut [u8],
        handle: &mut dyn FnMut(Event<'_>),
    ) -> bool {
        let mut more = self.accept(now_ms);
        self.lost_count += self.lost.len() as u64;
        for peer in self.lost.drain(..) {
            handle(Event::PeerLost { peer });
        }
        for outgoing in &mut self.outgoing {
            let peer = outgoing.peer;
            let (registry, resolver) = (&self.registry, &self.resolver);
            match outgoing.drive(now_ms, registry, resolver, &mut self.admission) {
                Change::Nothing => {}
                Change::Connected => {
                    handle(Event::PeerConnected { peer });
                    if outgoing.is_elsewhere() {
                        handle(Event::PeerMoved { peer });
                    }
                }
                Change::Lost => {
                    self.lost_count += 1;
                    handle(Event::PeerLost { peer });
                }
            }
            // A process that still holds its own stream to us lives, whatever its listener does.
            let is_heard = |incoming: &Incoming| incoming.peer == Some(peer);
            if outgoing.is_gone && !self.incoming.iter().flatten().any(is_heard) {
                outgoing.is_gone = false;
                handle(Event::PeerGone { peer });
            }
        }
        for slot in 0..self.incoming.len() {
            more |= self.receive(slot, now_ms, shared, handle);
        }
        more
    }

    fn accept(&mut self, now_ms: u64) -> bool {
        if !self.has_waiting {
            return false;
        }
        for _ in 0..ACCEPTS_PER_PASS {
            let Some(listener) = &self.listener else { return false };
            match listener.accept() {
                Ok((stream, address)) => {
                    if let Err(error) = self.admit(now_ms, stream, address) {
                        tracing::warn!(%address, %error, "a stream of a peer was not taken");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.has_waiting = false;
                    return false;
                }
                // There are no descriptors, or the other side has left already. The next pass tries again.
                Err(_) => return false,
            }
        }
        true
    }

    fn admit(
        &mut self,
        now_ms: u64,
        mut stream: mio::net::TcpStream,
        address: SocketAddr,
    ) -> io::Result<()> {
        let free = self.incoming.iter().position(Option::is_none);
        let slot = match free {
            Some(slot) => slot,
            None if self.incoming.len() < INCOMING_MAX => {
                self.incoming.push(None);
                self.incoming.len() - 1
            }
            None => return Err(io::Error::other("too many streams of peers")),
        };
        stream.set_nodelay(true)?;
        let token = Token(self.tokens.incoming + slot);
        self.registry.register(&mut stream, token, Interest::READABLE)?;
        self.incoming[slot] = Some(Incoming::new(now_ms, stream, address));
        Ok(())
    }

    /// Receives from one stream, once. True if more may wait there.
    fn receive(
        &mut self,
        slot: usize,
        now_ms: u64,
        shared: &mut [u8],
        handle: &mut dyn FnMut(Event<'_>),
    ) -> bool {
        let Some(incoming) = &mut self.incoming[slot] else { return false };
        if !incoming.ready {
            if now_ms >= incoming.deadline_ms() {
                self.close(slot, now_ms, "silent for too long");
            }
            return false;
        }
        let was_greeted = incoming.peer.is_some();
        let outcome =
            incoming.receive(now_ms, shared, &mut self.admission, &mut |peer, message| {
                handle(Event::PeerMessage { peer, message });
            });
        match outcome {
            Ok(more) => {
                incoming.ready = more;
                if let (false, Some(peer)) = (was_greeted, incoming.peer) {
                    let address = incoming.address;
                    if let Some(left_out) =
                        self.log.allow(now_ms, &format!("peer {peer} connected"))
                    {
                        tracing::info!(peer, %address, left_out, "a peer connected");
                    }
                    self.close_older(slot, peer);
                }
                more
            }
            Err(why) => {
                self.close(slot, now_ms, &why);
                false
            }
        }
    }

    /// Closes the earlier streams of a peer that dials again, because it has given them up.
    fn close_older(&mut self, newest: usize, peer: u64) {
        for (slot, incoming) in self.incoming.iter_mut().enumerate() {
            if slot != newest && incoming.as_ref().is_some_and(|other| other.peer == Some(peer)) {
                *incoming = None;
            }
        }
    }

    fn close(&mut self, slot: usize, now_ms: u64, why: &str) {
        let Some(incoming) = self.incoming[slot].take() else { return };
        if let Some(left_out) = self.log.allow(now_ms, why) {
            let (peer, address) = (incoming.peer.unwrap_or_default(), incoming.address);
            tracing::warn!(peer, %address, why, left_out, "a peer's stream was closed");
        }
    }

    /// Queues a message; [`Peers::flush`] sends it.
    pub(crate) fn send(&mut self, now_ms: u64, peer: u64, message: &[u8]) {
        let found = self.outgoing.iter_mut().find(|outgoing| outgoing.peer == peer);
        let Some(outgoing) = found else { return };
        if let Err(why) = outgoing.send(message)
            && outgoing.fail(now_ms, why) == Change::Lost
        {
            self.lost.push(peer);
        }
    }

    /// Sends what was queued. True if a stream ended, so a pass is due to report it.
    pub(crate) fn flush(&mut self, now_ms: u64) -> bool {
        for outgoing in &mut self.outgoing {
            if outgoing.flush(now_ms) == Change::Lost {
                self.lost.push(outgoing.peer);
            }
        }
        !self.lost.is_empty()
    }

    /// Returns the time of the next pass, if the poll has no news before.
    pub(crate) fn deadline_ms(&self) -> u64 {
        let outgoing = self.outgoing.iter().map(Outgoing::deadline_ms);
        let incoming = self.incoming.iter().flatten().map(Incoming::deadline_ms);
        outgoing.chain(incoming).min().unwrap_or(u64::MAX)
    }

    /// Returns the state of the streams with each other member.
    pub(crate) fn status(&self) -> Vec<PeerStatus> {
        self.outgoing
            .iter()
            .map(|outgoing| PeerStatus {
                id: outgoing.peer,
                address: outgoing.address.clone(),
                sends: outgoing.is_open(),
                hears: self.incoming.iter().flatten().any(|it| it.peer == Some(outgoing.peer)),
                waiting_bytes: outgoing.waiting_bytes(),
                trouble: outgoing.trouble().map(str::to_owned),
            })
            .collect()
    }
}
