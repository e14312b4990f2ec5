//! Where a server is: TCP, or a Unix socket on this machine; and a connection to either.
//!
//! Owns sockets as plain descriptors: a read is one system call whatever is behind it, with nothing
//! to match and nothing to look up. Waiting is bounded by the caller's timeouts.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{RecvFlags, SendFlags};
use serde::{Serialize, Serializer};

/// Prefix of the path of a Unix socket.
const UNIX_PREFIX: &str = "unix:";

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// Returns the address that `host:port` or `unix:PATH` stands for.
    ///
    /// # Errors
    /// If it is neither, or the host is not found.
    pub fn resolve(text: &str) -> Result<Address> {
        if let Some(path) = text.strip_prefix(UNIX_PREFIX) {
            ensure!(!path.is_empty(), "{text:?} names no path");
            return Ok(Address::Unix(path.into()));
        }
        let mut found = text
            .to_socket_addrs()
            .with_context(|| format!("{text:?} is not host:port or unix:PATH of a node"))?;
        let first = found.next().with_context(|| format!("{text:?} leads nowhere"))?;
        Ok(Address::Tcp(first))
    }

    /// True if it is a Unix socket.
    pub fn is_unix(&self) -> bool {
        matches!(self, Address::Unix(_))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(formatter),
            Address::Unix(path) => write!(formatter, "{UNIX_PREFIX}{}", path.display()),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address::Tcp(address)
    }
}

/// A connected socket. Small requests leave at once.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
    peer: Address,
}

impl Stream {
    /// Connects; connecting, each read and each write wait for `timeout` at most.
    ///
    /// # Errors If nothing listens there.
    pub fn connect(address: &Address, timeout: Duration) -> io::Result<Stream> {
        let socket: OwnedFd = match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, timeout)?;
                stream.set_nodelay(true)?;
                stream.into()
            }
            Address::Unix(path) => UnixStream::connect(path)?.into(),
        };
        for direction in [Timeout::Recv, Timeout::Send] {
            sockopt::set_socket_timeout(&socket, direction, Some(timeout))?;
        }
        Ok(Stream { socket, peer: address.clone() })
    }

    /// Returns the address it was connected to.
    pub fn peer(&self) -> &Address {
        &self.peer
    }

    /// Makes reads and writes that would wait fail with `WouldBlock` from now on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.socket, true)?)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Read for &Stream {
    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (length, _) = rustix::net::recv(&self.socket, buffer, RecvFlags::empty())?;
        Ok(length)
    }
}

impl Write for &Stream {
    #[inline]
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(&self.socket, buffer, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for Stream {
    #[inline]
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        (&*self).write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in ["127.0.0.1:7070", "[::1]:80", "unix:/run/node.sock.3"] {
            assert_eq!(Address::resolve(text).unwrap().to_string(), text);
        }
        assert!(Address::resolve("unix:").is_err());
        let error = Address::resolve("nothing").unwrap_err();
        assert!(error.to_string().contains("unix:PATH"), "{error}");
    }

    #[test]
    fn both_kinds_carry_bytes_and_know_their_peer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let check = |address: Address, accept: &dyn Fn() -> Box<dyn Write>| {
            let mut stream = Stream::connect(&address, Duration::from_secs(5)).unwrap();
            assert_eq!(stream.peer(), &address);
            let mut other = accept();
            other.write_all(b"hello").unwrap();
            let mut found = [0; 5];
            stream.read_exact(&mut found).unwrap();
            assert_eq!(&found, b"hello");
            stream.set_nonblocking().unwrap();
            let error = stream.read(&mut found).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        };
        check(Address::Unix(path), &|| Box::new(unix.accept().unwrap().0));
        check(tcp.local_addr().unwrap().into(), &|| Box::new(tcp.accept().unwrap().0));
    }
}
