//! ZooKeeper's protocol, for ZooKeeper and for ours alike.
//!
//! Owns session id, password and the highest zxid seen, which a reconnect carries as every client
//! does. Replies have to come in the order of requests.

use anyhow::{Context, Result, ensure};
use millrace_proto::zookeeper::jute::{self, Reader};
use millrace_proto::zookeeper::record::{OPEN_ACL, PASSWORD_SIZE};
use millrace_proto::zookeeper::{
    ConnectRequest, ConnectResponse, CreateKind, MAX_BUFFER, ReplyHeader, Request, Stat,
    create_mode, xid,
};

use super::{Exchange, Outcome, Refusal, SessionExpired};
use crate::coord::operation::{Action, Operation, Values};

/// Any version of a znode, in a request.
const ANY_VERSION: i32 = -1;

/// What a session is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    session: i64,
    password: [u8; PASSWORD_SIZE],
    /// Highest zxid that was seen: a server that is behind it does not take the session.
    last_zxid: i64,
}

/// One connection's state.
pub(crate) struct ZooKeeper {
    timeout_ms: i32,
    identity: Identity,
    is_ready: bool,
    path: String,
}

impl ZooKeeper {
    pub(super) fn new(timeout_ms: i32, identity: Option<Identity>) -> ZooKeeper {
        let new = Identity { session: 0, password: [0; PASSWORD_SIZE], last_zxid: 0 };
        ZooKeeper {
            timeout_ms,
            identity: identity.unwrap_or(new),
            is_ready: false,
            path: String::new(),
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.is_ready
    }

    pub(super) fn identity(&self) -> Option<Identity> {
        (self.identity.session != 0).then_some(self.identity)
    }

    pub(super) fn greet(&self, out: &mut Vec<u8>) {
        let request = ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: self.identity.last_zxid,
            timeout_ms: self.timeout_ms,
            session: self.identity.session,
            password: Some(&self.identity.password),
            read_only: Some(false),
        };
        jute::message(out, |writer| request.encode(writer));
    }

    pub(super) fn request(
        &mut self,
        number: u64,
        operation: Operation,
        values: &Values,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let path = operation.key.path(&mut self.path);
        let data = Some(values.of(operation.key));
        let request = match operation.action {
            Action::Create => Request::Create {
                kind: CreateKind::Create,
                path,
                data,
                acl: Some(vec![OPEN_ACL]),
                flags: create_mode::PERSISTENT,
                ttl_ms: 0,
            },
            Action::Delete => Request::Delete { path, version: ANY_VERSION },
            Action::Set => Request::SetData { path, data, version: ANY_VERSION },
            Action::Get => Request::GetData { path, watch: false },
        };
        write(out, xid_of(number)?, &request);
        Ok(())
    }

    pub(super) fn ping(out: &mut Vec<u8>) {
        write(out, xid::PING, &Request::Ping);
    }

    pub(super) fn farewell(number: u64, out: &mut Vec<u8>) {
        // Its reply is not read: the server closes the connection behind it.
        write(out, xid_of(number).unwrap_or(i32::MAX), &Request::CloseSession);
    }

    pub(super) fn receive(&mut self, bytes: &[u8], exchange: &mut Exchange<'_>) -> Result<usize> {
        let mut used = 0;
        while let Some((head, rest)) = bytes[used..].split_first_chunk::<4>() {
            let length = i32::from_be_bytes(*head);
            let length = usize::try_from(length).ok().filter(|&length| length <= MAX_BUFFER);
            let length = length.context("the reply is not of ZooKeeper's protocol")?;
            let Some(message) = rest.get(..length) else {
                break;
            };
            used += 4 + length;
            if self.is_ready {
                self.reply(message, exchange)?;
            } else {
                self.connected(message)?;
            }
        }
        Ok(used)
    }

    fn connected(&mut self, message: &[u8]) -> Result<()> {
        let response = ConnectResponse::decode(message).context("read the handshake")?;
        if response.timeout_ms <= 0 {
            return Err(SessionExpired.into());
        }
        self.identity.session = response.session;
        self.identity.password = response.password;
        self.is_ready = true;
        Ok(())
    }

    fn reply(&mut self, message: &[u8], exchange: &mut Exchange<'_>) -> Result<()> {
        let mut reader = Reader::new(message);
        let header = ReplyHeader::decode(&mut reader).context("read the header of a reply")?;
        self.identity.last_zxid = self.identity.last_zxid.max(header.zxid);
        if header.xid == xid::PING {
            return Ok(());
        }
        let number = u64::try_from(i64::from(header.xid) - 1);
        let number = number.with_context(|| format!("a reply with xid {}", header.xid))?;
        let oldest = exchange.pending.oldest();
        ensure!(number == oldest, "a reply to request {number} before that to {oldest}");
        let outcome = if header.error == 0 {
            let operation = exchange.pending.get(number)?.operation;
            self.judge(operation, reader, exchange.values)
                .with_context(|| format!("judge the reply to {operation:?}"))?
        } else {
            Err(Refusal(header.error))
        };
        exchange.answer(number, outcome)
    }

    /// Compares a reply with the only one that is right.
    fn judge(
        &mut self,
        operation: Operation,
        mut reader: Reader<'_>,
        values: &Values,
    ) -> Result<Outcome> {
        match operation.action {
            Action::Create => {
                let path = reader.path()?;
                let expected = operation.key.path(&mut self.path);
                ensure!(path == expected, "{path:?} was created instead of {expected:?}");
            }
            Action::Delete => {}
            Action::Set => {
                let length = Stat::decode(&mut reader)?.data_length;
                ensure!(length as usize == values.length(), "{length} bytes were written");
            }
            Action::Get => {
                let data = reader.buffer()?.unwrap_or_default();
                let _stat = Stat::decode(&mut reader)?;
                ensure!(data == values.of(operation.key), "the value is another one");
            }
        }
        ensure!(reader.rest().is_empty(), "the reply has {} bytes more", reader.rest().len());
        Ok(Ok(()))
    }
}

/// Returns the xid of a request. Requests count from 0, their xids from 1: lower ones are for other
/// messages.
fn xid_of(number: u64) -> Result<i32> {
    let xid = number.checked_add(1).and_then(|xid| i32::try_from(xid).ok());
    xid.context("a connection has used its numbers up; measure for a shorter time")
}

fn write(out: &mut Vec<u8>, xid: i32, request: &Request<'_>) {
    jute::message(out, |writer| {
        writer.int(xid);
        writer.int(request.code());
        request.encode(writer);
    });
}
