//! One client connection as the replica sees it: its session, its waiting requests, its output.
//!
//! Replies leave in the order of the requests. A request that cannot be answered yet (a write on its way
//! through the log, a sync) waits in `pending`, and everything behind it waits there too. A read is
//! answered when it reaches the front, so it sees every earlier write of its client.

use std::collections::VecDeque;
use std::net::SocketAddr;

use millrace_proto::zookeeper::{Error, ReplyHeader, Writer, jute, opcode};

use super::event::ClientId;
use crate::auth::Identities;

/// Most requests of one client that wait; above this its socket is not read.
const PENDING_MAX: usize = 1024;
/// Most bytes of these requests.
const PENDING_BYTES_MAX: usize = 4 << 20;
/// Most bytes of output; above this no further request of the client is taken.
const OUTPUT_BYTES_MAX: usize = 4 << 20;
/// Capacity that an empty output buffer keeps.
const OUTPUT_KEPT: usize = 64 << 10;

/// The stage of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No message has come yet.
    New,
    /// The handshake is on its way through the log.
    Connecting,
    Open,
    /// A session that exists only here, without a leader: reads only.
    ReadOnly,
    /// No more messages are taken or sent.
    Closed,
}

/// A request that waits for its turn.
#[derive(Debug)]
pub(super) enum Pending {
    /// The handshake.
    Connect { tag: u64, read_only: Option<bool> },
    /// A write on its way through the log.
    Write { tag: u64, xid: i32, code: i32, since_ms: u64 },
    /// A write behind a change of members. The change does not go through the log with the writes, so the
    /// write is held back.
    Held { message: Box<[u8]>, since_ms: u64 },
    /// A reply that is ready, with its length.
    Done { reply: Vec<u8> },
    /// Any request that only waits for its turn.
    Read { message: Box<[u8]>, since_ms: u64 },
    /// A sync. It is answered when the state is as new as the newest one at the time of asking.
    Sync { ticket: u64, xid: i32, path: Box<str>, is_due: bool },
}

/// The figures of a connection, for operators.
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
    /// Count of the requests with these latencies.
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

#[derive(Debug)]
pub(super) struct Client {
    pub id: ClientId,
    pub address: SocketAddr,
    pub phase: Phase,
    pub session: i64,
    /// The attachment that the session's requests carry.
    pub attach: i64,
    pub timeout_ms: i32,
    pub identities: Identities,
    pub pending: VecDeque<Pending>,
    pub pending_bytes: usize,
    pub output: Vec<u8>,
    /// True if the list has a `Send` for it already.
    pub is_send_queued: bool,
    /// True if it ever asked for a change of members.
    pub has_reconfigured: bool,
    /// True if it was active since the last report of active sessions.
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

    /// True if the next message may be handed in.
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

    pub(super) fn reply(&mut self, header: ReplyHeader, body: impl FnOnce(&mut Writer<'_>)) {
        self.usage.sent += 1;
        write_reply(&mut self.output, header, body);
    }

    /// Appends a reply that has only an error.
    pub(super) fn reply_error(&mut self, xid: i32, zxid: i64, error: Error) {
        self.reply(ReplyHeader { xid, zxid, error: error.code() }, |_| {});
    }

    /// Adds a request to the end of the waiting ones.
    pub(super) fn wait(&mut self, pending: Pending) {
        if let Pending::Read { message, .. } | Pending::Held { message, .. } = &pending {
            self.pending_bytes += message.len();
        }
        self.pending.push_back(pending);
    }

    /// Finds the waiting request with this tag.
    pub(super) fn tagged(&mut self, wanted: u64) -> Option<&mut Pending> {
        self.pending.iter_mut().find(|pending| match pending {
            Pending::Connect { tag, .. } | Pending::Write { tag, .. } => *tag == wanted,
            _ => false,
        })
    }

    /// True if a change of members that it asked for is under way.
    pub(super) fn is_reconfiguring(&self) -> bool {
        self.pending.iter().any(|it| matches!(it, Pending::Write { code: opcode::RECONFIG, .. }))
    }

    /// Returns the first write that is held for no reason any more: its place, message and time.
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

    /// Replaces a waiting write with the error that answers it.
    pub(super) fn refuse_write(&mut self, tag: u64, zxid: i64, error: i32) {
        if let Some(pending) = self.tagged(tag)
            && let Pending::Write { xid, .. } = *pending
        {
            let mut reply = Vec::new();
            write_reply(&mut reply, ReplyHeader { xid, zxid, error }, |_| {});
            *pending = Pending::Done { reply };
        }
    }

    /// True if one of its writes has a number of at most `number`.
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

    /// Frees the memory of a large, empty output buffer.
    pub(super) fn trim_output(&mut self) {
        if self.output.is_empty() && self.output.capacity() > OUTPUT_KEPT {
            self.output = Vec::new();
        }
    }
}

/// Appends a reply, after its length, to any buffer.
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
