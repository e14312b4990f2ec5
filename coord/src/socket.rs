//! The common part of clients' and peers' sockets: listening, receiving, waiting to send.
//!
//! Always holds: a message is cut out of the bytes where the kernel put them, and only the tail of an
//! incomplete one is copied; the memory of a socket grows with the bytes that came, never with the length
//! that its sender announced; no call blocks.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use millrace_ops::again;
use mio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, Socket, Type};
use twox_hash::XxHash3_64;

/// Size in bytes of the buffer that all sockets of a loop receive into. Guessed: large enough that a full
/// pipeline of small requests comes in one call.
pub(crate) const SHARED_SIZE: usize = 256 * 1024;
/// Bytes of memory that an idle socket keeps for the next tail.
const IDLE_ROOM: usize = 4096;
/// Sent bytes at the front of an outbox above which the rest is moved to the front.
const SENT_KEPT_MAX: usize = 1024 * 1024;

/// How far the received bytes could be cut into messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Bytes that are handled.
    pub(crate) consumed: usize,
    /// Bytes that the next message takes, from `consumed` on; 0 if not known yet.
    pub(crate) needed: usize,
}

/// The outcome of a receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// Nothing waits in the socket.
    Nothing,
    /// This many bytes came; `more` is true if the socket may hold others.
    Bytes { count: usize, more: bool },
    /// The other side sends no more.
    End,
}

/// Bytes of a socket that are not handled yet.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    kept: Vec<u8>,
    needed: usize,
}

impl Inbox {
    /// True if the socket may be read, which must wait while a whole message is here.
    pub(crate) fn may_receive(&self) -> bool {
        self.kept.len() < self.needed.max(1)
    }

    /// Receives once and lets `cut` handle the bytes.
    ///
    /// # Errors
    /// Returns the socket's errors.
    pub(crate) fn receive(
        &mut self,
        mut stream: &TcpStream,
        shared: &mut [u8],
        cut: impl FnOnce(&[u8]) -> Cut,
    ) -> io::Result<Received> {
        let kept = self.kept.len();
        if self.needed > shared.len() || kept > shared.len() / 2 {
            return self.receive_long(stream, shared.len(), cut);
        }
        let count = match stream.read(&mut shared[kept..]) {
            Ok(0) => return Ok(Received::End),
            Ok(count) => count,
            Err(error) => return nothing(error),
        };
        shared[..kept].copy_from_slice(&self.kept);
        let bytes = &shared[..kept + count];
        let done = cut(bytes);
        self.kept.clear();
        self.kept.extend_from_slice(&bytes[done.consumed..]);
        self.needed = done.needed;
        self.trim();
        Ok(Received::Bytes { count, more: bytes.len() == shared.len() })
    }

    /// Receives into memory of its own, for messages that are longer than the shared buffer.
    fn receive_long(
        &mut self,
        stream: &TcpStream,
        step_min: usize,
        cut: impl FnOnce(&[u8]) -> Cut,
    ) -> io::Result<Received> {
        // The memory at most doubles what came, so a length that is only announced costs nothing.
        let missing = self.needed.saturating_sub(self.kept.len()).max(1);
        self.kept.reserve(missing.min(self.kept.len().max(step_min)));
        let room = self.kept.capacity() - self.kept.len();
        match rustix::io::read(stream, rustix::buffer::spare_capacity(&mut self.kept)) {
            Ok(0) => Ok(Received::End),
            Ok(count) => {
                self.again(cut);
                Ok(Received::Bytes { count, more: count == room })
            }
            Err(error) => nothing(error.into()),
        }
    }

    /// Lets `cut` handle the waiting bytes, without receiving.
    pub(crate) fn again(&mut self, cut: impl FnOnce(&[u8]) -> Cut) {
        let done = cut(&self.kept);
        self.kept.drain(..done.consumed);
        self.needed = done.needed;
        self.trim();
    }

    fn trim(&mut self) {
        if self.kept.is_empty() && self.kept.capacity() > IDLE_ROOM {
            self.kept = Vec::new();
        }
    }
}

fn nothing(error: io::Error) -> io::Result<Received> {
    match error.kind() {
        io::ErrorKind::WouldBlock => Ok(Received::Nothing),
        io::ErrorKind::Interrupted => Ok(Received::Bytes { count: 0, more: true }),
        _ => Err(error),
    }
}

/// Sends as much of `bytes` as the kernel takes.
///
/// # Errors
/// Returns the socket's errors. A full kernel buffer is not an error.
pub(crate) fn send(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// Bytes that wait to be sent.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    /// Builds an outbox that holds `bytes`.
    pub(crate) fn of(bytes: Vec<u8>) -> Outbox {
        Outbox { bytes, sent: 0 }
    }

    /// Returns the buffer to append bytes to.
    pub(crate) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Returns the count of waiting bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Sends what the kernel takes.
    ///
    /// # Errors
    /// As [`send`].
    pub(crate) fn flush(&mut self, stream: &TcpStream) -> io::Result<()> {
        self.sent += send(stream, &self.bytes[self.sent..])?;
        if self.sent == self.bytes.len() {
            self.clear();
        } else if self.sent > SENT_KEPT_MAX && self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }

    /// Forgets the waiting bytes.
    pub(crate) fn clear(&mut self) {
        self.sent = 0;
        self.bytes.clear();
        self.bytes.shrink_to(SENT_KEPT_MAX);
    }
}

/// Listens at `address`. The wildcard address takes IPv4 and IPv6, if the machine has both.
///
/// # Errors
/// Returns the errors of `bind` and `listen`: the address is in use, or not of this machine.
pub(crate) fn listen(address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    again::while_in_use(again::is_address_in_use, || listen_once(address, backlog))
}

fn listen_once(address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    if address.ip().is_unspecified() {
        let both = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port());
        match bind(both, backlog) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Ok(listener) => return Ok(listener),
            // This machine has no IPv6.
            Err(_) => {}
        }
    }
    bind(address, backlog)
}

fn bind(address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// A limit of log lines: each reason is logged once in [`RateLimit::PERIOD_MS`], and few lines in all.
/// Counts the lines that it leaves out.
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    until_ms: u64,
    /// Hashes of the reasons that were logged in this period. Two with one hash cost a line.
    seen: Vec<u64>,
    left_out: u64,
}

impl RateLimit {
    /// Least milliseconds between two lines with the same reason.
    const PERIOD_MS: u64 = 10_000;
    /// Most lines in that time, because reasons may hold a stranger's bytes, and then all differ.
    const LINES_MAX: usize = 8;

    /// Returns the count of lines left out since the last one, if this reason may be logged now.
    pub(crate) fn allow(&mut self, now_ms: u64, reason: &str) -> Option<u64> {
        if now_ms >= self.until_ms {
            self.seen.clear();
            self.until_ms = now_ms + RateLimit::PERIOD_MS;
        }
        let hash = XxHash3_64::oneshot(reason.as_bytes());
        if self.seen.len() == RateLimit::LINES_MAX || self.seen.contains(&hash) {
            self.left_out += 1;
            return None;
        }
        self.seen.push(hash);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests;
