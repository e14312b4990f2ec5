//! The socket of a connection: TCP, or a Unix socket of a node on this machine.
//!
//! Always holds: small requests leave at once, and a dead peer is noticed.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UnixStream};

use super::listener;

/// How long sent bytes may stay unacknowledged before the system gives the connection up, and how
/// long an idle one goes unprobed. Guessed: longer than a lost packet's retransmissions.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);

/// Returns the path in an address that is `unix:PATH`.
pub(crate) fn socket_path(address: &str) -> Option<&str> {
    address.strip_prefix("unix:")
}

/// A connected socket.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The two directions of a socket.
pub(super) type Halves<'a> =
    (Box<dyn AsyncRead + Send + Unpin + 'a>, Box<dyn AsyncWrite + Send + Unpin + 'a>);

impl Socket {
    /// Connects to `host:port` or `unix:PATH`.
    ///
    /// # Errors
    /// As connect(2); `PermissionDenied` too if another user than expected listens at the path.
    pub(super) async fn connect(address: &str) -> io::Result<Socket> {
        if let Some(path) = socket_path(address) {
            // tokio takes a leading zero byte for an abstract name, as the system does.
            let place = match path.strip_prefix('@') {
                Some(name) => format!("\0{name}"),
                None => path.to_owned(),
            };
            let stream = UnixStream::connect(place).await?;
            if let Err(error) = listener::check(path, stream.peer_cred()?.uid()) {
                tracing::warn!("{address} is not used: {error}");
                return Err(error);
            }
            return Ok(Socket::Unix(stream));
        }
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(UNACKNOWLEDGED_MAX))?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
        Ok(Socket::Tcp(stream))
    }

    /// Sends all of these bytes.
    pub(super) async fn send_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.write_all(bytes).await,
            Socket::Unix(stream) => stream.write_all(bytes).await,
        }
    }

    /// Receives at most `count` bytes, appends them, and returns how many; 0 at the end. A descriptor
    /// that came with them is returned as well.
    pub(super) async fn receive(
        &self,
        count: usize,
        bytes: &mut Vec<u8>,
    ) -> io::Result<(usize, Option<OwnedFd>)> {
        let start = bytes.len();
        bytes.resize(start + count, 0);
        let target = &mut bytes[start..];
        let result = loop {
            let result = match self {
                Socket::Tcp(stream) => {
                    stream.readable().await?;
                    stream.try_read(target).map(|count| (count, None))
                }
                Socket::Unix(stream) => {
                    stream.readable().await?;
                    stream.try_io(Interest::READABLE, || receive_message(stream, target))
                }
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break result,
            }
        };
        bytes.truncate(start + result.as_ref().map_or(0, |(count, _)| *count));
        result
    }

    /// Returns both directions, to be used at the same time.
    pub(super) fn split(&mut self) -> Halves<'_> {
        match self {
            Socket::Tcp(stream) => {
                let (reader, writer) = stream.split();
                (Box::new(reader), Box::new(writer))
            }
            Socket::Unix(stream) => {
                let (reader, writer) = stream.split();
                (Box::new(reader), Box::new(writer))
            }
        }
    }
}

fn receive_message(stream: &UnixStream, target: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut targets = [IoSliceMut::new(target)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = rustix::net::recvmsg(stream, &mut targets, &mut control, flags)?;
    let mut descriptor = None;
    for received in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = received {
            descriptor = descriptors.last();
        }
    }
    Ok((message.bytes, descriptor))
}
