//! The socket of a connection: TCP, or a Unix socket of a node on this machine.
//!
//! Always holds: small requests leave at once, and a dead peer is noticed.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// How long sent bytes may stay unacknowledged before the system gives the connection up, and how
/// long an idle one goes unprobed. Guessed: longer than a lost packet's retransmissions.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);

/// The path in an address that is `unix:PATH`.
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
    pub(super) async fn connect(address: &str) -> io::Result<Socket> {
        if let Some(path) = socket_path(address) {
            return UnixStream::connect(path).await.map(Socket::Unix);
        }
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(UNACKNOWLEDGED_MAX))?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
        Ok(Socket::Tcp(stream))
    }

    /// Both directions, to be used at the same time.
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
