//! Requests that this replica answers from its own state: reads, watches, and syncs.

use std::collections::VecDeque;

use millrace_proto::zookeeper::{
    Error, ReplyHeader, Request, STATE_CONNECTED, WatchEvent, Writer, add_watch_mode, opcode,
    watcher_type, xid,
};

use super::client::Pending;
use super::request::{error_of, split};
use super::{Action, ClientId, Now, Replica};
use crate::auth::Identities;
use crate::raft::Consensus;
use crate::state::read::read;
use crate::watch::{TooManyWatches, WatchLists, WatchTable};

/// Syncs on their way. Those of one turn go to the leader as one question (Raft thesis, 6.4).
pub(super) struct Syncs {
    /// The origin of this process. The leader distinguishes questions only by their bytes, so without this
    /// it would confuse questions of two replicas, or of two processes of one replica.
    origin: u64,
    issued: u64,
    /// Syncs since the last question.
    fresh: Vec<(ClientId, u64)>,
    /// Questions without an answer yet.
    asked: VecDeque<Question>,
    /// Answered questions: the index that the state must reach, and the syncs that wait for it.
    answered: Vec<(u64, Vec<(ClientId, u64)>)>,
    number: u64,
}

struct Question {
    number: u64,
    asked_ms: u64,
    waiting: Vec<(ClientId, u64)>,
}

impl Syncs {
    pub(super) fn new(origin: u64) -> Syncs {
        Syncs {
            origin,
            issued: 0,
            fresh: Vec::new(),
            asked: VecDeque::new(),
            answered: Vec::new(),
            number: 0,
        }
    }

    fn issue(&mut self, id: ClientId) -> u64 {
        self.issued += 1;
        self.fresh.push((id, self.issued));
        self.issued
    }

    /// Asks the leader. Asks again when an answer does not come, because Raft may drop a question.
    pub(super) fn ask(&mut self, now: Now, patience_ms: u64, consensus: &mut Consensus) {
        while let Some(oldest) = self.asked.front() {
            if now.ms < oldest.asked_ms + patience_ms {
                break;
            }
            let oldest = self.asked.pop_front().expect("there is a front");
            self.fresh.extend(oldest.waiting);
        }
        if self.fresh.is_empty() || consensus.leader() == 0 {
            return;
        }
        self.number += 1;
        let context = [self.origin.to_be_bytes(), self.number.to_be_bytes()].concat();
        consensus.read_index(context);
        let waiting = std::mem::take(&mut self.fresh);
        self.asked.push_back(Question { number: self.number, asked_ms: now.ms, waiting });
    }

    /// Marks all questions to be asked again, because a new leader does not have the old one's.
    pub(super) fn ask_again(&mut self) {
        for question in self.asked.drain(..) {
            self.fresh.extend(question.waiting);
        }
    }

    pub(super) fn answered(&mut self, reads: Vec<(Vec<u8>, u64)>) {
        for (context, index) in reads {
            let Some((origin, number)) = context.split_first_chunk() else { continue };
            let Ok(number) = <[u8; 8]>::try_from(number) else { continue };
            let number = u64::from_be_bytes(number);
            if u64::from_be_bytes(*origin) != self.origin {
                continue;
            }
            let Some(place) = self.asked.iter().position(|question| question.number == number)
            else {
                continue;
            };
            let question = self.asked.remove(place).expect("it was found there");
            self.answered.push((index, question.waiting));
        }
    }

    /// Removes and returns the syncs whose index the state has reached.
    fn due(&mut self, applied: u64) -> Vec<(ClientId, u64)> {
        let mut due = Vec::new();
        self.answered.retain_mut(|(index, waiting)| {
            let is_due = *index <= applied;
            if is_due {
                due.append(waiting);
            }
            !is_due
        });
        due
    }
}

impl Replica {
    pub(super) fn sync(
        &mut self,
        id: ClientId,
        request_xid: i32,
        record: &[u8],
        message: &[u8],
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let path = match Request::decode(opcode::SYNC, record) {
            Ok(Request::Sync { path }) => path,
            // An unreadable sync is answered like an unreadable read.
            _ => {
                let Some(client) = self.client_mut(id) else { return };
                if client.pending.is_empty() {
                    self.serve_read(now, id, message, now.ms, actions);
                    return self.queue_send(id);
                }
                return client.wait(Pending::Read { message: message.into(), since_ms: now.ms });
            }
        };
        let ticket = self.syncs.issue(id);
        let Some(client) = self.client_mut(id) else { return };
        let path = path.into();
        client.wait(Pending::Sync { ticket, xid: request_xid, path, is_due: false });
    }

    /// Marks the syncs that the state has caught up with.
    pub(super) fn release_syncs(&mut self) {
        for (id, wanted) in self.syncs.due(self.consensus.applied()) {
            let Some(client) = self.client_mut(id) else { continue };
            for pending in &mut client.pending {
                if let Pending::Sync { ticket, is_due, .. } = pending
                    && *ticket == wanted
                {
                    *is_due = true;
                }
            }
            self.unblocked.push(id);
        }
    }

    /// Answers a request that needs only this replica.
    pub(super) fn serve_read(
        &mut self,
        now: Now,
        id: ClientId,
        message: &[u8],
        since_ms: u64,
        actions: &mut Vec<Action>,
    ) {
        let Some((request_xid, code, record)) = split(message) else { return };
        let took_ms = now.ms.saturating_sub(since_ms);
        self.metrics.read_took(took_ms);
        let zxid = self.state.zxid();
        let Some(Some(client)) = self.clients.get_mut(id.slot as usize) else { return };
        client.took(took_ms);
        client.usage.last_operation = code;
        client.usage.last_xid = request_xid;
        client.usage.last_zxid = zxid;
        client.usage.sent += 1;
        let request = match Request::decode(code, record) {
            Ok(request) => request,
            Err(error) => {
                let error = error_of(code, error);
                // As in ZooKeeper, an unknown operation ends the connection.
                if error == Error::Unimplemented {
                    client.reply_error(request_xid, -1, error);
                    return self.close_client(id, actions);
                }
                return client.reply_error(request_xid, zxid, error);
            }
        };
        let mut watched = Ok(());
        if let Request::SetWatches { .. } = request {
            let events;
            (events, watched) = set_watches(&mut self.watches, &self.state, id.slot, &request);
            for event in &events {
                // These events report past changes and no write of now, so there is no zxid to send.
                let header = ReplyHeader { xid: xid::NOTIFICATION, zxid: -1, error: 0 };
                client.reply(header, |writer| event.encode(writer));
            }
        }
        let start = client.output.len();
        client.output.extend_from_slice(&[0; 4]);
        let mut writer = Writer::new(&mut client.output);
        // A ping is answered with the xid of pings, whatever was sent (`FinalRequestProcessor`).
        let xid = if code == opcode::PING { xid::PING } else { request_xid };
        // As in ZooKeeper, this reply has no zxid.
        let zxid = if code == opcode::SASL { 0 } else { zxid };
        ReplyHeader { xid, zxid, error: 0 }.encode(&mut writer);
        let body_start = start + 4 + REPLY_HEADER_SIZE;
        let mut view = View {
            state: &self.state,
            watches: &mut self.watches,
            slot: id.slot,
            session: client.session,
            identities: &client.identities,
            skip_acl: self.config.skip_acl,
        };
        let answer = watched.and_then(|()| view.answer(&request, &mut writer));
        if let Err(error) = answer {
            self.metrics.watches_refused += u64::from(error == Error::ThrottledOp);
            client.output.truncate(body_start);
            let code_at = body_start - 4;
            client.output[code_at..body_start].copy_from_slice(&error.code().to_be_bytes());
        }
        let length = (client.output.len() - start - 4) as i32;
        client.output[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }
}

/// Bytes of xid, zxid and error.
const REPLY_HEADER_SIZE: usize = 16;

/// What a read looks at.
struct View<'a> {
    state: &'a crate::state::State,
    watches: &'a mut WatchTable,
    slot: u32,
    session: i64,
    identities: &'a Identities,
    skip_acl: bool,
}

impl View<'_> {
    /// Writes the record of a reply.
    fn answer(&mut self, request: &Request<'_>, writer: &mut Writer<'_>) -> Result<(), Error> {
        match *request {
            Request::Ping => Ok(()),
            Request::SetWatches { .. } => Ok(()),
            Request::AddWatch { path, mode } => {
                let is_recursive = match mode {
                    add_watch_mode::PERSISTENT => false,
                    add_watch_mode::PERSISTENT_RECURSIVE => true,
                    _ => return Err(Error::MarshallingError),
                };
                self.watches.add_persistent(self.slot, path, is_recursive).map_err(full)?;
                // The reply is the record that elsewhere has an error; here the error is 0.
                writer.int(0);
                Ok(())
            }
            Request::CheckWatches { kind, .. } | Request::RemoveWatches { kind, .. }
                if !(watcher_type::CHILDREN..=watcher_type::PERSISTENT_RECURSIVE)
                    .contains(&kind) =>
            {
                Err(Error::MarshallingError)
            }
            Request::CheckWatches { path, kind } => {
                let is_there = self.watches.contains(self.slot, path, kind);
                if is_there { Ok(()) } else { Err(Error::NoWatcher) }
            }
            Request::RemoveWatches { path, kind } => {
                let was_there = self.watches.remove(self.slot, path, kind);
                if was_there { Ok(()) } else { Err(Error::NoWatcher) }
            }
            Request::WhoAmI => {
                let who: Vec<_> = self.identities.who_am_i().collect();
                writer.list(&who, |writer, (scheme, user)| {
                    writer.string(scheme);
                    writer.string(user);
                });
                Ok(())
            }
            // As a ZooKeeper without SASL answers: no token and no error.
            Request::Sasl { .. } => {
                writer.buffer(None);
                Ok(())
            }
            _ => self.answer_from_state(request, writer),
        }
    }

    fn answer_from_state(
        &mut self,
        request: &Request<'_>,
        writer: &mut Writer<'_>,
    ) -> Result<(), Error> {
        let identities: Vec<_> = self.identities.iter().collect();
        let answer = read(self.state, request, self.session, &identities, self.skip_acl, writer);
        let is_ok = answer.is_ok();
        match *request {
            // The watch of `exists` is set on missing nodes too.
            Request::Exists { path, watch: true } if is_ok || answer == Err(Error::NoNode) => {
                self.watches.add_data(self.slot, path).map_err(full)?;
            }
            Request::GetData { path, watch: true } if is_ok => {
                self.watches.add_data(self.slot, path).map_err(full)?;
            }
            Request::GetChildren { path, watch: true }
            | Request::GetChildren2 { path, watch: true }
                if is_ok =>
            {
                self.watches.add_child(self.slot, path).map_err(full)?;
            }
            _ => {}
        }
        answer
    }
}

/// Returns the error for a client with as many watches as it may have.
fn full(_: TooManyWatches) -> Error {
    Error::ThrottledOp
}

/// Sets a reconnected client's watches again, and returns the events that it missed.
fn set_watches<'a>(
    watches: &mut WatchTable,
    state: &crate::state::State,
    slot: u32,
    request: &'a Request<'a>,
) -> (Vec<WatchEvent<'a>>, Result<(), Error>) {
    let Request::SetWatches { relative_zxid, data, exist, child, persistent, recursive } = request
    else {
        return (Vec::new(), Ok(()));
    };
    let lists =
        WatchLists { relative_zxid: *relative_zxid, data, exist, child, persistent, recursive };
    let mut missed = Vec::new();
    let answer = watches.set_watches(slot, &lists, |path| state.zxids(path), &mut missed);
    let events =
        missed.into_iter().map(|(kind, path)| WatchEvent { kind, state: STATE_CONNECTED, path });
    (events.collect(), answer.map_err(full))
}
