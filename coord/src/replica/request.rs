//! A client's messages after the handshake, sorted into reads, waiting requests and writes.

use millrace_proto::zookeeper::{Error, JuteError, Reader, ReplyHeader, Request, opcode};

use super::client::{Pending, Phase};
use super::{Action, ClientId, Now, Replica};
use crate::command::{Act, Command};

/// True if the operation goes through the log.
fn is_write(code: i32) -> bool {
    matches!(
        code,
        opcode::CREATE
            | opcode::CREATE2
            | opcode::CREATE_CONTAINER
            | opcode::CREATE_TTL
            | opcode::DELETE
            | opcode::SET_DATA
            | opcode::SET_ACL
            | opcode::MULTI
            | opcode::RECONFIG
            | opcode::DELETE_CONTAINER
            | opcode::CLOSE_SESSION
    )
}

/// True if a write may make the state larger. A write that only deletes is taken even without room, because
/// it makes some.
fn may_grow(code: i32, record: &[u8]) -> bool {
    match code {
        opcode::DELETE | opcode::CLOSE_SESSION | opcode::RECONFIG => false,
        opcode::MULTI => match Request::decode(code, record) {
            Ok(Request::Multi(operations)) => operations
                .iter()
                .any(|it| !matches!(it, Request::Delete { .. } | Request::Check { .. })),
            _ => false,
        },
        _ => true,
    }
}

impl Replica {
    pub(super) fn client_message(
        &mut self,
        now: Now,
        id: ClientId,
        message: &[u8],
        actions: &mut Vec<Action>,
    ) {
        self.metrics.packets_received += 1;
        let Some(client) = self.client_mut(id) else { return };
        client.usage.received += 1;
        client.usage.last_ms = now.ms;
        match client.phase {
            Phase::New => return self.connect(now, id, message, actions),
            Phase::Connecting | Phase::Closed => return,
            Phase::Open | Phase::ReadOnly => {}
        }
        if !client.is_touched && client.phase == Phase::Open {
            client.is_touched = true;
            let session = client.session;
            self.touched.push(session);
        }
        let Some((request_xid, code, record)) = split(message) else {
            tracing::debug!("a message is too short for its header");
            return self.close_client(id, actions);
        };
        if code == opcode::AUTH {
            return self.authenticate(id, request_xid, record, actions);
        }
        let Some(client) = self.client_mut(id) else { return };
        if client.phase == Phase::ReadOnly && (is_write(code) || code == opcode::SYNC) {
            // A session that exists only here ends without the others.
            if code == opcode::CLOSE_SESSION {
                let zxid = self.state.zxid();
                let Some(client) = self.client_mut(id) else { return };
                client.reply(ReplyHeader { xid: request_xid, zxid, error: 0 }, |_| {});
                return self.close_client(id, actions);
            }
            let zxid = self.state.zxid();
            let Some(client) = self.client_mut(id) else { return };
            client.reply_error(request_xid, zxid, Error::NotReadOnly);
            return self.queue_send(id);
        }
        if is_write(code) && client.has_reconfigured && client.is_reconfiguring() {
            client.wait(Pending::Held { message: message.into(), since_ms: now.ms });
        } else if is_write(code) {
            self.write(now.ms, id, (request_xid, code), record);
        } else if code == opcode::SYNC {
            self.sync(id, request_xid, record, message, now, actions);
        } else if client.pending.is_empty() {
            self.serve_read(now, id, message, now.ms, actions);
            self.queue_send(id);
        } else {
            client.wait(Pending::Read { message: message.into(), since_ms: now.ms });
        }
    }

    /// Sends a write to the log. An unreadable one goes there too, because in ZooKeeper it takes a zxid and
    /// is answered in its turn.
    fn write(
        &mut self,
        since_ms: u64,
        id: ClientId,
        (request_xid, code): (i32, i32),
        record: &[u8],
    ) {
        // A reconfig is the exception, because ZooKeeper reads it before it counts it.
        if code == opcode::RECONFIG
            && let Err(error) = Request::decode(code, record)
        {
            return self.answer_in_turn(id, request_xid, error_of(code, error));
        }
        if !self.has_room() && may_grow(code, record) {
            self.metrics.writes_without_room += 1;
            return self.answer_in_turn(id, request_xid, Error::QuotaExceeded);
        }
        let tag = self.next_tag(id);
        let slot = id.slot as usize;
        let Some(Some(client)) = self.clients.get_mut(slot) else { return };
        let act = match code {
            opcode::CLOSE_SESSION => Act::CloseSession,
            _ => Act::Request { code, record },
        };
        let command = Command {
            origin: self.origin,
            tag,
            session: client.session,
            attach: client.attach,
            identities: client.identities.iter().collect(),
            act,
        };
        client.pending.push_back(Pending::Write { tag, xid: request_xid, code, since_ms });
        if code == opcode::RECONFIG && self.config.reconfig_enabled {
            client.has_reconfigured = true;
            let mut encoded = Vec::new();
            command.encode(&mut encoded);
            self.ask_reconfigure(encoded);
        } else {
            self.outbox.push(&command);
        }
    }

    /// Sends the writes that waited for a change of members.
    pub(super) fn release_held(&mut self, id: ClientId) {
        while let Some(client) = self.client_mut(id)
            && let Some((place, message, since_ms)) = client.next_held()
        {
            client.pending_bytes -= message.len();
            let (request_xid, code, record) = split(&message).expect("it was split before");
            self.write(since_ms, id, (request_xid, code), record);
            // The write went to the end, because others wait. It must replace its held form.
            let Some(client) = self.client_mut(id) else { return };
            let write = client.pending.pop_back().expect("a write was put there");
            client.pending[place] = write;
        }
    }

    /// Answers with an error, behind everything that still waits.
    fn answer_in_turn(&mut self, id: ClientId, request_xid: i32, error: Error) {
        let zxid = self.state.zxid();
        let Some(client) = self.client_mut(id) else { return };
        if client.pending.is_empty() {
            client.reply_error(request_xid, zxid, error);
            return self.queue_send(id);
        }
        let mut reply = Vec::new();
        let header = ReplyHeader { xid: request_xid, zxid, error: error.code() };
        super::client::write_reply(&mut reply, header, |_| {});
        client.wait(Pending::Done { reply });
    }

    /// Adds an identity to a connection, or closes it (`ZooKeeperServer.processPacket`). The reply has zxid
    /// 0. An unreadable record gets no reply.
    fn authenticate(
        &mut self,
        id: ClientId,
        request_xid: i32,
        record: &[u8],
        actions: &mut Vec<Action>,
    ) {
        let super_digest = self.config.super_digest.as_deref();
        let Some(Some(client)) = self.clients.get_mut(id.slot as usize) else { return };
        let address = client.address.ip();
        let Ok(Request::Auth { scheme, auth }) = Request::decode(opcode::AUTH, record) else {
            return self.close_client(id, actions);
        };
        if client.identities.authenticate(scheme, auth, address, super_digest).is_ok() {
            client.reply(ReplyHeader { xid: request_xid, zxid: 0, error: 0 }, |_| {});
            self.queue_send(id);
        } else {
            self.metrics.auth_failures += 1;
            client.reply_error(request_xid, 0, Error::AuthFailed);
            self.close_client(id, actions);
        }
    }
}

/// Splits a message into xid, operation and record.
pub(super) fn split(message: &[u8]) -> Option<(i32, i32, &[u8])> {
    let mut reader = Reader::new(message);
    let request_xid = reader.int().ok()?;
    let code = reader.int().ok()?;
    Some((request_xid, code, reader.rest()))
}

/// Returns the error that a client gets for an unreadable record.
pub(super) fn error_of(code: i32, error: JuteError) -> Error {
    match error {
        JuteError::Operation(unknown) if unknown == code && code != opcode::MULTI_READ => {
            Error::Unimplemented
        }
        // An operation that may not be inside a multi makes the record bad.
        JuteError::Operation(_) | JuteError::Short | JuteError::Length(_) => {
            Error::MarshallingError
        }
    }
}
