//! The protocols that coordination services speak, as pure functions between operations and bytes.
//!
//! Owns the seam between the load generator and a protocol: a [`Session`] is one connection's state, and
//! takes no socket and no clock. A session checks every reply. A refusal of the server is counted by its
//! code, while a wrong answer (another key's value, a reply to no request) is an error that ends the
//! run.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;

use anyhow::{Context, Result};

mod etcd;
mod http2;
mod zookeeper;

use etcd::Etcd;
pub(crate) use zookeeper::Identity;
use zookeeper::ZooKeeper;

use super::operation::{Operation, Values};
use super::system::System;

/// Session timeout that is asked for, in milliseconds. Within what a tick of 2 s allows (40 s).
pub(crate) const SESSION_TIMEOUT_MS: i32 = 30_000;

/// Why a server did not do what was asked: a code of `millrace_proto::zookeeper::Error` (negative),
/// or a status of gRPC (positive).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Refusal(pub(crate) i32);

impl Refusal {
    pub(crate) const NO_NODE: Refusal = Refusal(millrace_proto::zookeeper::Error::NoNode as i32);
    pub(crate) const NODE_EXISTS: Refusal =
        Refusal(millrace_proto::zookeeper::Error::NodeExists as i32);
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Refusal::NO_NODE => formatter.write_str("no such key"),
            Refusal::NODE_EXISTS => formatter.write_str("key exists"),
            Refusal(code) if code > 0 => write!(formatter, "gRPC status {code}"),
            Refusal(code) => write!(formatter, "error {code}"),
        }
    }
}

/// The result of a request.
pub(crate) type Outcome = Result<(), Refusal>;

/// The server no longer knows the session that a connection wanted to go on with.
#[derive(Debug)]
pub(crate) struct SessionExpired;

impl fmt::Display for SessionExpired {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the session has expired")
    }
}

impl std::error::Error for SessionExpired {}

/// A request that was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) operation: Operation,
    /// By the clock of the sender, in nanoseconds.
    pub(crate) at_ns: u64,
}

/// The requests of one connection that were sent and not answered, by their number from 0.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    first: u64,
    sent: VecDeque<Option<Sent>>,
    count: usize,
}

impl Pending {
    /// Requests in flight.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Returns the number of the oldest request in flight, or of the next one.
    fn oldest(&self) -> u64 {
        self.first
    }

    /// Notes a request; returns its number.
    fn push(&mut self, sent: Sent) -> u64 {
        self.sent.push_back(Some(sent));
        self.count += 1;
        self.first + self.sent.len() as u64 - 1
    }

    /// Looks a request in flight up.
    fn get(&self, number: u64) -> Result<Sent> {
        let index = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        let sent = index.and_then(|index| self.sent.get(index).copied().flatten());
        sent.with_context(|| format!("a reply to request {number}, which is not in flight"))
    }

    /// Takes a request out because it was answered.
    fn take(&mut self, number: u64) -> Result<Sent> {
        let sent = self.get(number)?;
        self.sent[(number - self.first) as usize] = None;
        self.count -= 1;
        while let Some(None) = self.sent.front() {
            self.sent.pop_front();
            self.first += 1;
        }
        Ok(sent)
    }
}

/// What a session works with while it reads replies.
pub(crate) struct Exchange<'a> {
    pub(crate) values: &'a Values,
    pub(crate) pending: &'a mut Pending,
    /// Takes what the protocol itself has to answer.
    pub(crate) out: &'a mut Vec<u8>,
    /// Is called with each request that was answered.
    pub(crate) done: &'a mut dyn FnMut(Sent, Outcome),
}

impl Exchange<'_> {
    fn answer(&mut self, number: u64, outcome: Outcome) -> Result<()> {
        let sent = self.pending.take(number)?;
        (self.done)(sent, outcome);
        Ok(())
    }
}

/// One connection's state in its protocol; matched once for each call, which costs nothing
/// beside a system call.
pub(crate) enum Session {
    ZooKeeper(ZooKeeper),
    Etcd(Box<Etcd>),
}

impl Session {
    /// Makes a new session with `address`, or the one that `identity` names, if the protocol has any.
    pub(crate) fn new(
        system: System,
        address: SocketAddr,
        timeout_ms: i32,
        identity: Option<Identity>,
    ) -> Session {
        match system {
            System::Millrace | System::ZooKeeper => {
                Session::ZooKeeper(ZooKeeper::new(timeout_ms, identity))
            }
            System::Etcd => Session::Etcd(Box::new(Etcd::new(address))),
        }
    }

    /// Appends the greeting of a connection.
    pub(crate) fn greet(&self, out: &mut Vec<u8>) {
        match self {
            Session::ZooKeeper(session) => session.greet(out),
            Session::Etcd(_) => {}
        }
    }

    /// True if requests may be sent: ZooKeeper's only behind the answer to the greeting.
    pub(crate) fn is_ready(&self) -> bool {
        match self {
            Session::ZooKeeper(session) => session.is_ready(),
            Session::Etcd(_) => true,
        }
    }

    /// True if the server takes another request now, by the flow control of the protocol.
    pub(crate) fn has_room(&mut self) -> bool {
        match self {
            Session::ZooKeeper(_) => true,
            Session::Etcd(session) => session.has_room(),
        }
    }

    /// Appends what the protocol still has to send: called before bytes are written.
    ///
    /// # Errors
    /// If the server has ended the connection.
    pub(crate) fn settle(&mut self, out: &mut Vec<u8>) -> Result<()> {
        match self {
            Session::ZooKeeper(_) => Ok(()),
            Session::Etcd(session) => session.settle(out),
        }
    }

    /// Notes a request, and appends it then or in [`Session::settle`].
    ///
    /// # Errors
    /// If the connection has used its numbers up.
    pub(crate) fn request(
        &mut self,
        sent: Sent,
        values: &Values,
        pending: &mut Pending,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let number = pending.push(sent);
        match self {
            Session::ZooKeeper(session) => session.request(number, sent.operation, values, out),
            Session::Etcd(session) => session.request(number, sent.operation, values),
        }
    }

    /// Reads the whole messages at the start of `bytes`; returns their length in bytes.
    ///
    /// # Errors
    /// If they are not of this protocol, or a reply is wrong; [`SessionExpired`] where the server
    /// no longer knows the session.
    pub(crate) fn receive(&mut self, bytes: &[u8], exchange: &mut Exchange<'_>) -> Result<usize> {
        match self {
            Session::ZooKeeper(session) => session.receive(bytes, exchange),
            Session::Etcd(session) => session.receive(bytes, exchange),
        }
    }

    /// Appends the ping that keeps an idle session alive.
    pub(crate) fn ping(&self, out: &mut Vec<u8>) {
        if let Session::ZooKeeper(_) = self {
            ZooKeeper::ping(out);
        }
    }

    /// Appends the end of a session. True if the server then closes the connection.
    pub(crate) fn farewell(&self, pending: &Pending, out: &mut Vec<u8>) -> bool {
        match self {
            Session::ZooKeeper(_) => {
                ZooKeeper::farewell(pending.oldest(), out);
                true
            }
            Session::Etcd(_) => false,
        }
    }

    /// Returns what another connection needs to go on with this session, if the protocol has sessions.
    pub(crate) fn identity(&self) -> Option<Identity> {
        match self {
            Session::ZooKeeper(session) => session.identity(),
            Session::Etcd(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
