//! Chooses what to do next: seeded, dense, and mostly sensible.
//!
//! Owns the chance of a round and what is known of its tree. It learns from the left server's answers,
//! so that most operations meet nodes that exist and a round is the same again only while the left
//! server answers the same. Modules in reading order: `world` knows the tree, `watches` which clients
//! watch, `requests` makes requests that a client may send, `rude` what none should.

mod requests;
mod rude;
mod watches;
mod world;

use millrace_proto::zookeeper::{Request, opcode};

use crate::compare::Comparer;
use crate::item::Item;
use crate::op::{Op, Then};
use watches::Watches;
use world::World;

/// Most operations that are sent at once.
const BURST_MAX: usize = 50;

/// From this length on a burst seldom ends early.
const BURST_LONG: usize = 10;

/// What a client does next.
pub(crate) enum Step {
    /// Sends these operations at once.
    Batch { slot: usize, ops: Vec<Op> },
    /// Opens a connection.
    Connect { slot: usize, handshake: Handshake },
    /// Closes its connection and keeps its session.
    Detach { slot: usize },
}

/// Whose session a handshake asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    New,
    Own,
    OwnWithPassword(Option<Vec<u8>>),
    /// A session that never existed.
    Unknown(i64),
    /// The last session of any client that was closed.
    Closed,
}

#[derive(Debug, Clone)]
pub(crate) struct Handshake {
    pub(crate) asked: Asked,
    pub(crate) protocol_version: i32,
    pub(crate) timeout_ms: i32,
    pub(crate) read_only: Option<bool>,
    /// Last zxid seen, for each server.
    pub(crate) seen: [i64; 2],
    /// Sends only this many bytes of the record, with a length that says so.
    pub(crate) cut: Option<usize>,
}

impl Handshake {
    /// Returns the handshake of a well-behaved client.
    pub(crate) fn plain(asked: Asked) -> Handshake {
        Handshake {
            asked,
            protocol_version: 0,
            timeout_ms: 120_000,
            read_only: Some(false),
            seen: [0; 2],
            cut: None,
        }
    }
}

/// What the generator must know of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It has no session.
    Absent,
    /// It has a session and no connection.
    Detached,
    Attached,
}

pub(crate) struct Generator {
    rng: fastrand::Rng,
    world: World,
    watches: Watches,
}

impl Generator {
    /// Returns a round's generator. With `shared` it also uses nodes that outlive the round.
    pub(crate) fn new(seed: u64, root: &str, clients: usize, shared: bool) -> Generator {
        Generator {
            rng: fastrand::Rng::with_seed(seed),
            world: World::new(root, shared),
            watches: Watches::new(clients),
        }
    }

    pub(crate) fn step(&mut self, clients: &[Presence], comparer: &Comparer) -> Step {
        let slot = self.rng.usize(..clients.len());
        if clients[slot] != Presence::Attached {
            let handshake = self.handshake(clients[slot], comparer);
            return Step::Connect { slot, handshake };
        }
        match self.rng.u32(..1000) {
            0..15 => Step::Detach { slot },
            15..30 => {
                let handshake = self.handshake(Presence::Attached, comparer);
                Step::Connect { slot, handshake }
            }
            30..45 => Step::Batch { slot, ops: vec![Op::new(&Request::CloseSession)] },
            45..85 => Step::Batch { slot, ops: vec![self.credentials()] },
            85..110 => Step::Batch { slot, ops: vec![self.fatal()] },
            _ => {
                let count = match self.rng.u32(..100) {
                    0..40 => 1,
                    40..80 => self.rng.usize(2..=10),
                    _ => self.rng.usize(11..=BURST_MAX),
                };
                Step::Batch { slot, ops: self.burst(slot, count, comparer) }
            }
        }
    }

    /// Returns at most `count` operations that may be sent at once.
    fn burst(&mut self, slot: usize, count: usize, comparer: &Comparer) -> Vec<Op> {
        let mut ops = Vec::with_capacity(count);
        while ops.len() < count {
            let op = self.op(slot, comparer);
            // Operations that follow these in a burst end by chance in ZooKeeper. Until a new list of
            // access rights is applied the old one is checked, and a multi that is refused leaves traces
            // among the writes under way.
            let is_last = [opcode::SET_ACL, opcode::MULTI].contains(&op.code);
            if is_last && count > BURST_LONG && self.rng.u32(..4) > 0 {
                continue;
            }
            ops.push(op);
            if is_last {
                break;
            }
        }
        ops
    }

    /// Returns one operation that leaves the connection open.
    fn op(&mut self, slot: usize, comparer: &Comparer) -> Op {
        if self.rng.u32(..100) == 0 {
            return self.malformed(slot, comparer);
        }
        self.sensible(slot, comparer)
    }

    /// Learns from an answer of the left server.
    pub(crate) fn observe(&mut self, slot: usize, op: &Op, reply: &Item) {
        let Some(request) = op.request() else { return };
        match (&request, reply.error()) {
            (Request::Multi(requests), Some(0)) => {
                if requests.iter().any(|request| !world::is_write(request))
                    || reply.texts("unexpected bytes").next().is_some()
                    || reply.number("result error").is_some()
                {
                    return;
                }
                let mut created = reply.texts("path").map(str::to_owned);
                for request in &requests[..] {
                    let created = if matches!(request, Request::Create { .. }) {
                        created.next()
                    } else {
                        None
                    };
                    self.world.apply(slot, request, created.as_deref(), None);
                }
            }
            (request, Some(0)) => {
                let created = reply.texts("path").next().map(str::to_owned);
                self.world.apply(slot, request, created.as_deref(), Some(reply));
            }
            (request, Some(error)) => self.world.refused(request, error),
            (_, None) => {}
        }
    }

    /// Forgets the session of this client, which is gone, and its ephemeral nodes with it.
    pub(crate) fn session_ended(&mut self, slot: usize) {
        self.world.session_ended(slot);
        self.connection_ended(slot);
    }

    /// Forgets the watches of this client.
    pub(crate) fn connection_ended(&mut self, slot: usize) {
        self.watches.connection_ended(slot);
    }
}

/// True if an answer to this operation can set a watch, so that events may follow on the connection.
pub(crate) fn may_watch(op: &Op) -> bool {
    op.then == Then::Answers
        && matches!(
            op.code,
            opcode::EXISTS
                | opcode::GET_DATA
                | opcode::GET_CHILDREN
                | opcode::GET_CHILDREN2
                | opcode::SET_WATCHES
                | opcode::SET_WATCHES2
                | opcode::ADD_WATCH
                | opcode::MULTI_READ
        )
}

#[cfg(test)]
mod tests;
