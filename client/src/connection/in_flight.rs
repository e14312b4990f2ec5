//! The requests of one connection that have no answer yet.
//!
//! Owns request ids, and decides whether a reply header answers something that was asked. Always holds:
//! each part of each request is answered once; the buffer of a part that is neither answered nor landing
//! is here. A caller that has gone leaves its entry behind until the late reply or the end of the
//! connection, because the node still counts the request.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use millrace_proto::frame::PART_ALL;
use millrace_proto::status::Next;
use millrace_proto::{Header, Op, Status};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{Answer, Answers, Landed, Landing, Part, Reply, Request};
use crate::error::Error;

#[derive(Debug)]
struct RequestInFlight {
    op: Op,
    parts: SmallVec<[Part; 1]>,
    /// Parts without an answer, at least 1.
    open_count: usize,
    answers: Answers,
    deadline: Instant,
}

/// What the payload of a reply needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// A slice of the receive buffer will do.
    Any,
    /// It goes to the caller's buffer.
    Buffer,
    /// No caller waits for it: skip it.
    Nothing,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    entries: HashMap<u64, RequestInFlight>,
    request_id_last: u64,
    /// Parts of all entries without an answer: what a node's limit counts.
    part_count: usize,
    /// True if a request other than `Hello` was answered, so the connection is of use.
    pub(super) is_served: bool,
    /// True if a reply asked for a new connection.
    pub(super) is_retiring: bool,
}

impl InFlight {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn part_count(&self) -> usize {
        self.part_count
    }

    /// Appends the request's frame to `out` and keeps what its answer needs.
    pub(super) fn send(&mut self, request: Request, now: Instant, out: &mut Vec<u8>) {
        self.request_id_last += 1;
        let budget = request.deadline.saturating_duration_since(now).as_millis();
        // 0 would mean no limit.
        let budget_ms = u32::try_from(budget).unwrap_or(u32::MAX).max(1);
        let op = request.body.op();
        let header = Header::request(op, self.request_id_last, budget_ms);
        request.body.encode(out, header);
        let open_count = request.parts.len();
        self.part_count += open_count;
        let entry = RequestInFlight {
            op,
            parts: request.parts,
            open_count,
            answers: request.answers,
            deadline: request.deadline,
        };
        self.entries.insert(self.request_id_last, entry);
    }

    /// Compares a reply header with what was asked.
    ///
    /// # Errors
    /// [`Error::Protocol`]: the peer answers something else; the connection is of no more use.
    pub(super) fn want(&self, header: &Header) -> Result<Want, Error> {
        if !header.is_reply() || header.version != millrace_proto::VERSION {
            return Err(Error::protocol(format!(
                "a frame with flags {:#06x} of version {} is not a reply of version {}",
                header.flags,
                header.version,
                millrace_proto::VERSION
            )));
        }
        // A node that has no room for a connection says so before it has seen a request.
        if header.request_id == 0 && matches!(header.status().next(), Next::Retry | Next::Reconnect)
        {
            let message = "it takes no more connections now".to_owned();
            return Err(Error::Status { status: header.status(), message });
        }
        let Some(entry) = self.entries.get(&header.request_id) else {
            return Err(Error::protocol(format!(
                "a reply with status '{}' to request {}, which is not in flight",
                header.status(),
                header.request_id
            )));
        };
        if entry.op as u8 != header.op {
            return Err(Error::protocol(format!(
                "a request with op {} was answered with op {}",
                entry.op as u8, header.op
            )));
        }
        let wanted = if entry.answers.is_closed() { Want::Nothing } else { Want::Any };
        if is_whole(header) {
            if header.status() == Status::Ok {
                return Err(Error::protocol("a batch was answered as a whole, but not refused"));
            }
            header.check_lengths(u32::MAX, 0)?;
            return Ok(wanted);
        }
        let Some(part) = entry.parts.get(usize::from(header.part)) else {
            return Err(Error::protocol(format!(
                "a reply to part {} of a request of {} parts",
                header.part,
                entry.parts.len()
            )));
        };
        let Some(landing) = &part.landing else {
            return Err(Error::protocol(format!(
                "part {} of a request was answered twice",
                header.part
            )));
        };
        let payload_max = match header.status() {
            Status::Ok => part.payload_max,
            _ => 0,
        };
        header.check_lengths(u32::MAX, payload_max)?;
        Ok(match landing {
            Landing::Buffer(_) if wanted == Want::Any => Want::Buffer,
            _ => wanted,
        })
    }

    /// Takes the landing of the part that this header answers, while its payload comes in.
    pub(super) fn take_landing(&mut self, header: &Header) -> Option<Landing> {
        let entry = self.entries.get_mut(&header.request_id)?;
        let part = entry.parts.get_mut(usize::from(header.part))?;
        part.landing.take()
    }

    /// Gives a landing back that got only a part of its payload.
    pub(super) fn put_back(&mut self, header: &Header, landing: Landing) {
        if let Some(entry) = self.entries.get_mut(&header.request_id)
            && let Some(part) = entry.parts.get_mut(usize::from(header.part))
        {
            part.landing = Some(landing);
        }
    }

    /// Answers the part that this header names, which passed [`InFlight::want`].
    pub(super) fn answer(&mut self, header: Header, body: Bytes, landed: Landed) {
        let status = header.status();
        if status.next() == Next::Reconnect {
            self.is_retiring = true;
        } else if header.op != Op::Hello as u8 {
            self.is_served = true;
        }
        let Some(entry) = self.entries.get_mut(&header.request_id) else {
            return;
        };
        let reply = Reply { header, body };
        if is_whole(&header) {
            self.part_count -= entry.open_count;
            entry.open_count = 0;
            refuse(&mut entry.parts, &mut entry.answers, Ok(&reply));
        } else {
            let part_index = usize::from(header.part);
            if let Some(part) = entry.parts.get_mut(part_index) {
                part.landing = None;
            }
            self.part_count -= 1;
            entry.open_count -= 1;
            entry.answers.send(Answer { part: part_index, outcome: Ok(reply), landed });
        }
        if entry.open_count == 0 {
            self.entries.remove(&header.request_id);
        }
    }

    /// Answers every open part with the error that ended the connection.
    pub(super) fn fail(&mut self, error: &Error) {
        for (_, mut entry) in self.entries.drain() {
            refuse(&mut entry.parts, &mut entry.answers, Err(error));
        }
        self.part_count = 0;
    }

    /// True if a request is overdue by more than `grace`, with no byte received since it was due.
    pub(super) fn is_silent(&self, now: Instant, received_last: Instant, grace: Duration) -> bool {
        self.entries.values().any(|entry| {
            received_last < entry.deadline && now.saturating_duration_since(entry.deadline) > grace
        })
    }
}

/// True if a reply is about a batch as a whole, so that no part of it will be answered.
fn is_whole(header: &Header) -> bool {
    let is_batch = header.op == Op::ReadMany as u8 || header.op == Op::Lease as u8;
    is_batch && header.part == PART_ALL
}

/// Answers every open part alike.
pub(super) fn refuse(parts: &mut [Part], answers: &mut Answers, outcome: Result<&Reply, &Error>) {
    for (part, state) in parts.iter_mut().enumerate() {
        if let Some(landing) = state.landing.take() {
            answers.send(Answer {
                part,
                outcome: outcome.cloned().map_err(Error::clone),
                landed: landing.into_empty(),
            });
        }
    }
}
