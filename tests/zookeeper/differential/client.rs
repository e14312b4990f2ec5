//! One client of both servers: its two connections, its session, and what it waits for.
//!
//! Everything is done on both sides before anything is read, so that the servers work at the same time.
//! A list of what was received ends with the answer to a ping, which shows that nothing is still under
//! way, or with the end of the connection.

use std::net::SocketAddr;

use anyhow::Result;
use millrace_proto::zookeeper::record::PASSWORD_SIZE;
use millrace_proto::zookeeper::{ConnectRequest, ConnectResponse, Request, jute, opcode, xid};

use crate::compare::reply_zxid;
use crate::generator::{Handshake, Presence};
use crate::item::{Item, Kind};
use crate::link::Link;
use crate::op::{Op, Then};

/// What both servers sent.
pub(crate) type Said = [Vec<Item>; 2];

/// A session as one server knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: i64,
    pub(crate) password: [u8; PASSWORD_SIZE],
}

#[derive(Default)]
pub(crate) struct Client {
    pub(crate) session: Option<[Identity; 2]>,
    links: Option<[Link; 2]>,
    next_xid: i32,
    /// Zxid of the last reply, from each server.
    pub(crate) seen: [i64; 2],
    /// True if events may come: only then is it asked after others wrote.
    pub(crate) may_watch: bool,
}

impl Client {
    pub(crate) fn presence(&self) -> Presence {
        match (&self.session, &self.links) {
            (None, _) => Presence::Absent,
            (Some(_), None) => Presence::Detached,
            (Some(_), Some(_)) => Presence::Attached,
        }
    }

    pub(crate) fn detach(&mut self) {
        self.links = None;
        self.may_watch = false;
    }

    /// Gives `op` the next number of this connection, as a client does.
    pub(crate) fn number(&mut self, op: &mut Op) {
        op.xid = match op.code {
            opcode::PING => xid::PING,
            opcode::AUTH => xid::AUTH,
            opcode::SET_WATCHES | opcode::SET_WATCHES2 => xid::SET_WATCHES,
            _ => {
                self.next_xid += 1;
                self.next_xid
            }
        };
    }

    /// Sends `ops` at once and reads what is said until all of it was worked on.
    pub(crate) fn exchange(&mut self, ops: &[Op]) -> Result<Said> {
        self.send(ops)?;
        self.receive(ops)
    }

    /// Sends `ops`, and a ping after them unless the connection is to end.
    pub(crate) fn send(&mut self, ops: &[Op]) -> Result<()> {
        let Some(links) = &mut self.links else { return Ok(()) };
        let closes = ops.iter().any(|op| op.then == Then::Closes);
        let mut ping = Op::new(&Request::Ping);
        ping.xid = xid::PING;
        for (side, link) in links.iter_mut().enumerate() {
            let mut out = Vec::new();
            for op in ops.iter().chain((!closes).then_some(&ping)) {
                op.write(side, &mut out);
            }
            link.send(&out)?;
        }
        Ok(())
    }

    /// Reads what is sent after `ops`. Detaches when the connections ended.
    pub(crate) fn receive(&mut self, ops: &[Op]) -> Result<Said> {
        let Some(links) = &mut self.links else { return Ok(Said::default()) };
        let closes = ops.iter().any(|op| op.then == Then::Closes);
        let mut pings = ops.iter().filter(|op| op.code == opcode::PING).count();
        if !closes {
            pings += 1;
        }
        let mut said = Said::default();
        for (side, link) in links.iter_mut().enumerate() {
            let pings = if closes { usize::MAX } else { pings };
            if let Err(error) = listen(link, ops, pings, &mut said[side]) {
                let side = ["left", "right"][side];
                let last = said.iter().flatten().last().map(Item::to_string);
                return Err(error.context(format!("on the {side}, after {last:?}")));
            }
            self.seen[side] =
                said[side].iter().rev().find_map(reply_zxid).unwrap_or(self.seen[side]);
        }
        if said.iter().any(|items| items.last().is_some_and(|item| item.kind == Kind::Closed)) {
            self.detach();
        }
        Ok(said)
    }

    /// Takes over connections whose handshake succeeded.
    pub(crate) fn attach(&mut self, links: [Link; 2], session: [Identity; 2]) {
        self.links = Some(links);
        self.session = Some(session);
        self.next_xid = 0;
        self.seen = [0; 2];
        self.may_watch = false;
    }
}

/// Reads until `pings` were answered or the connection ends.
fn listen(link: &mut Link, ops: &[Op], pings: usize, items: &mut Vec<Item>) -> Result<()> {
    let mut pings_left = pings;
    // Replies come in order: the search begins where the last one was found.
    let mut position = 0;
    while pings_left > 0 {
        let Some(frame) = link.receive()? else {
            items.push(Item::CLOSED);
            break;
        };
        let sent_as = xid_of(frame);
        let mut order = (position..ops.len()).chain(0..position);
        let answers = order.find(|index| Some(ops[*index].xid) == sent_as);
        let code = answers.map_or(opcode::PING, |index| ops[index].code);
        let item = Item { answers, ..Item::decode(frame, code) };
        position = answers.map_or(position, |index| index + 1);
        if item.number("xid") == Some(i64::from(xid::PING)) {
            pings_left -= 1;
        }
        items.push(item);
    }
    Ok(())
}

fn xid_of(frame: &[u8]) -> Option<i32> {
    frame.first_chunk().map(|bytes| i32::from_be_bytes(*bytes))
}

/// Connections after a handshake, and what was answered.
pub(crate) struct Greeting {
    pub(crate) said: Said,
    /// Both connections and the session on each, when both were accepted.
    pub(crate) accepted: Option<([Link; 2], [Identity; 2])>,
}

/// Opens a connection to both servers and asks for `identity` on each.
pub(crate) fn greet(
    servers: [SocketAddr; 2],
    handshake: &Handshake,
    identity: [(i64, Option<Vec<u8>>); 2],
) -> Result<Greeting> {
    let mut links = [Link::open(servers[0])?, Link::open(servers[1])?];
    for (side, link) in links.iter_mut().enumerate() {
        let (session, password) = &identity[side];
        let request = ConnectRequest {
            protocol_version: handshake.protocol_version,
            last_zxid_seen: handshake.seen[side],
            timeout_ms: handshake.timeout_ms,
            session: *session,
            password: password.as_deref(),
            read_only: handshake.read_only,
        };
        let mut record = Vec::new();
        request.encode(&mut jute::Writer::new(&mut record));
        record.truncate(handshake.cut.unwrap_or(usize::MAX));
        let mut out = Vec::new();
        jute::message(&mut out, |writer| writer.raw(&record));
        link.send(&out)?;
    }
    let mut said = Said::default();
    let mut identities = [None; 2];
    for (side, link) in links.iter_mut().enumerate() {
        let Some(frame) = link.receive()? else {
            said[side].push(Item::CLOSED);
            continue;
        };
        let (item, response) = Item::connected(frame);
        said[side].push(item);
        match response {
            Some(ConnectResponse { timeout_ms, session, password, .. }) if timeout_ms > 0 => {
                identities[side] = Some(Identity { id: session, password });
            }
            // A refusal ends the connection.
            _ => while link.receive()?.is_some() {},
        }
    }
    let accepted = match identities {
        [Some(left), Some(right)] => Some((links, [left, right])),
        _ => None,
    };
    Ok(Greeting { said, accepted })
}
