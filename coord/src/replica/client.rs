//! One client connection as the replica sees it: where its session stands, what waits, what to send.
//!
//! Replies leave in the order of the requests. A request that cannot be answered yet (a write on
//! its way through the log, a sync) stands in `pending`, and everything behind it waits there too;
//! a read is answered when it comes to the front, so it sees every earlier write of its client.

use std::collections::VecDeque;
use std::net::SocketAddr;

use millrace_proto::zookeeper::{Error, ReplyHeader, Writer, jute, opcode};

use super::event::ClientId;
use crate::auth::Identities;

/// Requests of one client that may wait; above it, its socket is not read.
const PENDING_MAX: usize = 1024;
/// Bytes of them.
const PENDING_BYTES_MAX: usize = 4 << 20;
/// Bytes to send above which no further request of the client is taken.
const OUTPUT_BYTES_MAX: usize = 4 << 20;
/// Capacity that an empty output buffer keeps.
const OUTPUT_KEPT: usize = 64 << 10;

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing has been heard yet.
    New,
    /// The handshake is on its way through the log.
    Connecting,
    /// Requests are served.
    Open,
    /// A session that exists here alone, without a leader: reads only.
    ReadOnly,
    /// Nothing more is taken or told.
    Closed,
}

/// A request that waits for its turn.
#[derive(Debug)]
pub(super) enum Pending {
    /// The handshake.
    Connect { tag: u64, read_only: Option<bool> },
    /// A write on its way through the log.
    Write { tag: u64, xid: i32, code: i32, since_ms: u64 },
    /// A write behind a change of members, which does not go through the log with the others.
    Held { message: Box<[u8]>, since_ms: u64 },
    /// A reply that is ready, with its length.
    Done { reply: Vec<u8> },
    /// Any request that needs nothing but its turn.
    Read { message: Box<[u8]>, since_ms: u64 },
    /// A sync, answered when the state is as new as it was anywhere when it was asked.
    Sync { ticket: u64, xid: i32, path: Box<str>, is_due: bool },
}

/// What a connection has done, for operators.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pub received: u64,
    pub sent: u64,
    pub last_operation: i32,
    pub last_xid: i32,
    pub last_zxid: i64,
    pub last_ms: u64,
    pub latency_min_ms: u64,
    pub latency_max_ms: u64,
    pub latency_sum_ms: u64,
    pub latency_last_ms: u64,
    /// Requests whose latencies these are.
    pub answered: u64,
}

impl Default for Usage {
    fn default() -> Usage {
        Usage {
            received: 0,
            sent: 0,
            last_operation: 0,
            last_xid: -1,
            last_zxid: -1,
            last_ms: 0,
            latency_min_ms: 0,
            latency_max_ms: 0,
            latency_sum_ms: 0,
            latency_last_ms: 0,
            answered: 0,
        }
    }
}

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    pub id: ClientId,
    pub address: SocketAddr,
    pub phase: Phase,
    pub session: i64,
    /// The attachment under which the session asks.
    pub attach: i64,
    pub timeout_ms: i32,
    pub identities: Identities,
    pub pending: VecDeque<Pending>,
    pub pending_bytes: usize,
    pub output: Vec<u8>,
    /// Whether a `Send` for it stands in the list already.
    pub is_send_queued: bool,
    /// Whether it ever asked for a change of members.
    pub has_reconfigured: bool,
    /// Whether it was heard of since the last report of signs of life.
    pub is_touched: bool,
    pub opened_ms: u64,
    pub usage: Usage,
}

impl Client {
    pub(super) fn new(id: ClientId, address: SocketAddr, now_ms: u64) -> Client {
        Client {
            id,
            address,
            phase: Phase::New,
            session: 0,
            attach: 0,
            timeout_ms: 0,
            identities: Identities::new(address.ip()),
            pending: VecDeque::new(),
            pending_bytes: 0,
            output: Vec::new(),
            is_send_queued: false,
            has_reconfigured: false,
            is_touched: false,
            opened_ms: now_ms,
            usage: Usage::default(),
        }
    }

    /// Whether the next message may be handed in.
    pub(super) fn accepts(&self) -> bool {
        match self.phase {
            Phase::New => true,
            Phase::Connecting | Phase::Closed => false,
            Phase::Open | Phase::ReadOnly => {
                self.pending.len() < PENDING_MAX
                    && self.pending_bytes < PENDING_BYTES_MAX
                    && self.output.len() < OUTPUT_BYTES_MAX
            }
        }
    }

    /// Appends a reply.
    pub(super) fn reply(&mut self, header: ReplyHeader, body: impl FnOnce(&mut Writer<'_>)) {
        self.usage.sent += 1;
        write_reply(&mut self.output, header, body);
    }

    /// Appends a reply that is an error and nothing else.
    pub(super) fn reply_error(&mut self, xid: i32, zxid: i64, error: Error) {
        self.reply(ReplyHeader { xid, zxid, error: error.code() }, |_| {});
    }

    /// Puts a request at the end of those that wait.
    pub(super) fn wait(&mut self, pending: Pending) {
        if let Pending::Read { message, .. } | Pending::Held { message, .. } = &pending {
            self.pending_bytes += message.len();
        }
        self.pending.push_back(pending);
    }

    /// The waiting request with this tag.
    pub(super) fn tagged(&mut self, wanted: u64) -> Option<&mut Pending> {
        self.pending.iter_mut().find(|pending| match pending {
            Pending::Connect { tag, .. } | Pending::Write { tag, .. } => *tag == wanted,
            _ => false,
        })
    }

    /// Whether a change of members that it asked for is under way.
    pub(super) fn is_reconfiguring(&self) -> bool {
        self.pending.iter().any(|it| matches!(it, Pending::Write { code: opcode::RECONFIG, .. }))
    }

    /// The first write that is held though nothing holds it any more: its place and message.
    pub(super) fn next_held(&self) -> Option<(usize, Box<[u8]>, u64)> {
        for (place, pending) in self.pending.iter().enumerate() {
            match pending {
                Pending::Write { code: opcode::RECONFIG, .. } => return None,
                Pending::Held { message, since_ms } => {
                    return Some((place, message.clone(), *since_ms));
                }
                _ => {}
            }
        }
        None
    }

    /// Turns a waiting write into the error that answers it.
    pub(super) fn refuse_write(&mut self, tag: u64, zxid: i64, error: i32) {
        if let Some(pending) = self.tagged(tag)
            && let Pending::Write { xid, .. } = *pending
        {
            let mut reply = Vec::new();
            write_reply(&mut reply, ReplyHeader { xid, zxid, error }, |_| {});
            *pending = Pending::Done { reply };
        }
    }

    /// Whether one of its writes has a number of at most `number`.
    pub(super) fn has_write_up_to(&self, number: u64) -> bool {
        self.pending.iter().any(|pending| match pending {
            Pending::Connect { tag, .. } | Pending::Write { tag, .. } => {
                super::number_of(*tag) <= number
            }
            _ => false,
        })
    }

    /// Notes how long a request took.
    pub(super) fn took(&mut self, ms: u64) {
        self.usage.latency_last_ms = ms;
        self.usage.latency_sum_ms += ms;
        let is_first = self.usage.answered == 0;
        self.usage.answered += 1;
        self.usage.latency_min_ms = if is_first { ms } else { self.usage.latency_min_ms.min(ms) };
        self.usage.latency_max_ms = self.usage.latency_max_ms.max(ms);
    }

    /// Gives the memory of a large, empty output buffer back.
    pub(super) fn trim_output(&mut self) {
        if self.output.is_empty() && self.output.capacity() > OUTPUT_KEPT {
            self.output = Vec::new();
        }
    }
}

/// Appends a reply with its length to any buffer.
pub(super) fn write_reply(
    out: &mut Vec<u8>,
    header: ReplyHeader,
    body: impl FnOnce(&mut Writer<'_>),
) {
    jute::message(out, |writer| {
        header.encode(writer);
        body(writer);
    });
}
