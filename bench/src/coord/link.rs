//! One connection to a replica: its socket, its session, what is in flight and what is not sent yet.
//! Owns the way from bytes to answers, for the load generator, which never blocks, and for callers that
//! ask one thing at a time. Opening always blocks, and ends when requests may be sent.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::operation::{Operation, Values};
use super::session::{Exchange, Identity, Outcome, Pending, Sent, Session};
use super::system::System;
use crate::sockets::Outbox;

/// Most bytes taken from a socket at once. Derived: half of the smallest usual L2 cache.
pub(crate) const RECEIVE_SIZE: usize = 256 << 10;
/// Longest wait for the server to close.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Where and how a link is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) system: System,
    pub(crate) address: SocketAddr,
    /// Session timeout that is asked for, in milliseconds.
    pub(crate) session_ms: i32,
    /// Longest wait for an answer while the link blocks.
    pub(crate) patience: Duration,
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Bytes, which perhaps hold answers.
    Bytes,
    /// Nothing yet.
    Nothing,
    /// The end of the connection.
    End,
}

/// A connection.
pub(crate) struct Link {
    pub(crate) stream: TcpStream,
    session: Session,
    pending: Pending,
    /// The start of a message that is not complete.
    carry: Vec<u8>,
    pub(crate) out: Outbox,
}

impl Link {
    /// Connects and greets, with a new session or the one of `identity`; blocks, as does the link
    /// then.
    ///
    /// # Errors If nothing listens or the greeting is not answered; `SessionExpired` if the session is
    /// gone.
    pub(crate) fn open(
        target: &Target,
        identity: Option<Identity>,
        values: &Values,
        buffer: &mut Vec<u8>,
    ) -> Result<Link> {
        let stream = TcpStream::connect_timeout(&target.address, target.patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(target.patience))?;
        stream.set_write_timeout(Some(target.patience))?;
        let mut link = Link {
            stream,
            session: Session::new(target.system, target.address, target.session_ms, identity),
            pending: Pending::default(),
            carry: Vec::new(),
            out: Outbox::new(),
        };
        link.session.greet(&mut link.out.bytes);
        while !link.session.is_ready() {
            link.flush()?;
            link.wait(values, buffer, &mut |_, _| {}).context("wait for the greeting")?;
        }
        link.flush()?;
        Ok(link)
    }

    /// Requests in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.pending.count()
    }

    /// Returns what another connection needs to go on with this session.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.session.identity()
    }

    /// True if the server takes another request now.
    pub(crate) fn has_room(&mut self) -> bool {
        self.session.has_room()
    }

    /// Queues a request.
    ///
    /// # Errors
    /// If the connection has used its numbers up.
    pub(crate) fn request(
        &mut self,
        operation: Operation,
        at_ns: u64,
        values: &Values,
    ) -> Result<()> {
        let sent = Sent { operation, at_ns };
        self.session.request(sent, values, &mut self.pending, &mut self.out.bytes)
    }

    /// Queues the ping that keeps an idle session alive.
    pub(crate) fn ping(&mut self) {
        self.session.ping(&mut self.out.bytes);
    }

    /// Writes what is queued; true if the socket takes no more for now.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(crate) fn flush(&mut self) -> Result<bool> {
        self.settle()?;
        self.out.flush(&self.stream)
    }

    /// Queues what the protocol still has to send.
    ///
    /// # Errors
    /// If the server has ended the connection.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.session.settle(&mut self.out.bytes)
    }

    /// Reads once, and calls `done` with each request that was answered. What the protocol has to answer
    /// is queued. `buffer` is only lent, and grows as it has to.
    ///
    /// # Errors
    /// If the connection is broken, or a reply is wrong.
    pub(crate) fn receive(
        &mut self,
        values: &Values,
        buffer: &mut Vec<u8>,
        done: &mut dyn FnMut(Sent, Outcome),
    ) -> Result<Received> {
        let start = self.carry.len();
        buffer.resize(buffer.len().max(start + RECEIVE_SIZE), 0);
        let length = match self.stream.read(&mut buffer[start..start + RECEIVE_SIZE]) {
            Ok(0) => return Ok(Received::End),
            Ok(length) => length,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {
                    return Ok(Received::Nothing);
                }
                _ => return Err(error).context("receive a reply"),
            },
        };
        buffer[..start].copy_from_slice(&self.carry);
        let bytes = &buffer[..start + length];
        let (pending, out) = (&mut self.pending, &mut self.out.bytes);
        let mut exchange = Exchange { values, pending, out, done };
        let used = self.session.receive(bytes, &mut exchange)?;
        self.carry.clear();
        self.carry.extend_from_slice(&bytes[used..]);
        Ok(Received::Bytes)
    }

    /// As [`Link::receive`], for a link that blocks.
    fn wait(
        &mut self,
        values: &Values,
        buffer: &mut Vec<u8>,
        done: &mut dyn FnMut(Sent, Outcome),
    ) -> Result<()> {
        match self.receive(values, buffer, done)? {
            Received::Bytes => Ok(()),
            Received::Nothing => bail!("no reply in time"),
            Received::End => bail!("the server closed the connection"),
        }
    }

    /// Asks one thing and waits for the answer; for a link that blocks.
    ///
    /// # Errors
    /// If there is no answer in time, or a wrong one.
    pub(crate) fn call(
        &mut self,
        operation: Operation,
        values: &Values,
        buffer: &mut Vec<u8>,
    ) -> Result<Outcome> {
        ensure!(self.has_room(), "the server takes no request");
        self.request(operation, 0, values)?;
        let mut outcome = None;
        while outcome.is_none() {
            self.flush()?;
            self.wait(values, buffer, &mut |_, found| outcome = Some(found))?;
        }
        Ok(outcome.expect("the loop ends with an answer"))
    }

    /// Ends the session for good, so that the server need not wait for it to expire.
    pub(crate) fn close(mut self) {
        // A server that has gone needs no farewell, and one that is slow finds the session expired.
        let _ = self.take_leave();
    }

    fn take_leave(&mut self) -> Result<()> {
        if !self.session.farewell(&self.pending, &mut self.out.bytes) {
            return Ok(());
        }
        self.stream.set_nonblocking(false)?;
        self.stream.set_read_timeout(Some(FAREWELL_TIMEOUT))?;
        self.flush()?;
        let mut last_words = [0; 256];
        while self.stream.read(&mut last_words)? > 0 {}
        Ok(())
    }
}
