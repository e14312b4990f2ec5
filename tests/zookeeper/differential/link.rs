//! One TCP connection to one server: frames out, frames in.
//!
//! Owns the socket and the bytes that are not a whole frame yet. A connection that the server
//! closed or reset reads as the end, once and for good; a server that says nothing for
//! [`SILENCE_MAX`] is an error, because nothing after it could be compared.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long a server may take to answer. Guessed: a hundred times the slowest answer seen.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Largest frame that is believed: twice ZooKeeper's largest packet, and the names of a round.
const FRAME_SIZE_MAX: usize = 4 << 20;
/// Bytes asked for at once.
const READ_SIZE: usize = 64 << 10;

pub(crate) struct Link {
    stream: TcpStream,
    /// Bytes received; those before `start` were handed out.
    received: Vec<u8>,
    start: usize,
    is_closed: bool,
}

impl Link {
    pub(crate) fn open(server: SocketAddr) -> Result<Link> {
        let stream = TcpStream::connect(server).with_context(|| format!("connect to {server}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        Ok(Link { stream, received: Vec::new(), start: 0, is_closed: false })
    }

    /// Sends `bytes`. The next read, not this call, finds out that a server closed its side.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match self.stream.write_all(bytes) {
            Err(error) if !is_end(error.kind()) => Err(error).context("send"),
            _ => Ok(()),
        }
    }

    /// Returns the next frame without its length; `None` when the server closed the connection.
    pub(crate) fn receive(&mut self) -> Result<Option<&[u8]>> {
        let length = loop {
            let unread = &self.received[self.start..];
            if let Some((prefix, rest)) = unread.split_first_chunk::<4>() {
                let length = i32::from_be_bytes(*prefix);
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if length > FRAME_SIZE_MAX {
                    bail!("the server sent a frame of length {}", i32::from_be_bytes(*prefix));
                }
                if rest.len() >= length {
                    break length;
                }
            }
            if !self.fill()? {
                return Ok(None);
            }
        };
        let frame_start = self.start + 4;
        self.start = frame_start + length;
        Ok(Some(&self.received[frame_start..self.start]))
    }

    /// Reads more; `false` at the end.
    fn fill(&mut self) -> Result<bool> {
        if self.is_closed {
            return Ok(false);
        }
        self.received.drain(..self.start);
        self.start = 0;
        let filled = self.received.len();
        self.received.resize(filled + READ_SIZE, 0);
        let outcome = self.stream.read(&mut self.received[filled..]);
        self.received.truncate(filled + *outcome.as_ref().unwrap_or(&0));
        match outcome {
            Ok(0) => self.is_closed = true,
            Ok(_) => {}
            Err(error) if is_end(error.kind()) => self.is_closed = true,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                bail!("the server said nothing for {SILENCE_MAX:?}")
            }
            Err(error) => return Err(error).context("receive"),
        }
        Ok(!self.is_closed)
    }
}

fn is_end(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe
    )
}
