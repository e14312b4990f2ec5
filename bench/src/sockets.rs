//! What both load generators do with sockets: waiting for many, and writing without blocking.
//!
//! Owns epoll, what is not written yet, and how latencies are counted. What bytes mean, and when a
//! run is over, is left to [`crate::load`] and [`crate::coord`].

use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, OwnedFd};

/// Longest sleep in nanoseconds: how late the end of a run without traffic is noticed.
pub(crate) const WAIT_NS: i64 = 50_000_000;
/// Longest latency that is told apart, in nanoseconds.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Returns an empty histogram of latencies in nanoseconds.
pub(crate) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("bounds and digits are allowed")
}

/// Requests that are not written yet.
pub(crate) struct Outbox {
    pub(crate) bytes: Vec<u8>,
    start: usize,
    /// True while epoll watches for room to write.
    is_watched: bool,
}

impl Outbox {
    pub(crate) fn new() -> Outbox {
        Outbox { bytes: Vec::with_capacity(16 << 10), start: 0, is_watched: false }
    }

    /// Writes what the socket takes; true if something is left.
    pub(crate) fn flush(&mut self, mut socket: impl Write) -> Result<bool> {
        while self.start < self.bytes.len() {
            match socket.write(&self.bytes[self.start..]) {
                Ok(length) => self.start += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("send requests"),
            }
        }
        self.bytes.clear();
        self.start = 0;
        Ok(false)
    }
}

/// Sockets that are waited for together, each with an index.
pub(crate) struct Poll(OwnedFd);

impl Poll {
    pub(crate) fn new() -> Result<Poll> {
        epoll::create(epoll::CreateFlags::CLOEXEC).map(Poll).context("create an epoll")
    }

    /// Watches a socket for replies.
    pub(crate) fn add(&self, socket: impl AsFd, index: usize) -> Result<()> {
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.0, socket, data, epoll::EventFlags::IN).context("watch a socket")
    }

    /// Waits until a socket is ready, for `wait_ns` at most.
    pub(crate) fn wait(&self, events: &mut Vec<epoll::Event>, wait_ns: i64) -> Result<()> {
        let timeout = Timespec { tv_sec: 0, tv_nsec: wait_ns };
        match epoll::wait(&self.0, spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("wait for replies"),
        }
    }

    /// Writes what the socket takes, and watches for room while something is left.
    pub(crate) fn flush<S>(&self, index: usize, socket: &S, out: &mut Outbox) -> Result<()>
    where
        S: AsFd,
        for<'a> &'a S: Write,
    {
        let is_blocked = out.flush(socket).with_context(|| format!("on connection {index}"))?;
        if is_blocked != out.is_watched {
            out.is_watched = is_blocked;
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, is_blocked);
            let data = epoll::EventData::new_u64(index as u64);
            epoll::modify(&self.0, socket, data, flags).context("watch a socket")?;
        }
        Ok(())
    }
}
