//! The pages and commands of a replica for operators, over HTTP.
//!
//! ```text
//!                             pages   status   commands that change something
//!  DATA/admin.sock, 0600        x       x        x
//!  the admin endpoint           x       x
//!  the metrics endpoint     /metrics and /health alone
//! ```
//!
//! Owns where the listeners are; `ops` serves them. Always holds: only a user that may open the socket in
//! the data directory is an operator. Leaves what pages say to `report`, and what commands do to the
//! replica. [`offline`] is for data that no process uses.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use millrace_ops::again;
use millrace_ops::http::{Listener, Server};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::Config;
use crate::coord::Operator;

mod answer;

pub mod offline;
mod status;

pub use status::{LatencyStatus, MemberStatus, Status};

#[cfg(test)]
mod tests;

/// Name of the operators' socket in the data directory.
pub const SOCKET: &str = "admin.sock";
/// Most connections that wait to be accepted.
const BACKLOG: i32 = 32;

/// The reason that the endpoints cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("cannot listen at {}: {error}", path.display())]
    Socket { path: PathBuf, error: io::Error },
    #[error("cannot listen at {address}, the {what} endpoint: {error}")]
    Listen { what: &'static str, address: SocketAddr, error: io::Error },
    #[error("the system refused: {0}")]
    System(#[from] io::Error),
}

/// The listener that a request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Socket,
    Admin,
    Metrics,
}

/// The endpoints of one replica, open until this is dropped.
pub struct Admin {
    _server: Server,
    admin_address: Option<SocketAddr>,
    metrics_address: Option<SocketAddr>,
}

impl Admin {
    /// Opens the socket in the data directory and the configured endpoints. Call this when the replica has
    /// its data directory for itself.
    ///
    /// # Errors
    /// See [`AdminError`]; nothing is open then.
    pub fn start(config: &Config, operator: Operator) -> Result<Admin, AdminError> {
        let socket = listen_in(&config.data_dir)
            .map_err(|error| AdminError::Socket { path: config.data_dir.join(SOCKET), error })?;
        let mut listeners = vec![(Door::Socket, Listener::Unix(socket))];
        let mut open = |door, what, address: Option<SocketAddr>| {
            let Some(address) = address else { return Ok(None) };
            let fail = |error| AdminError::Listen { what, address, error };
            let bind = || TcpListener::bind(address);
            let listener = again::while_in_use(again::is_address_in_use, bind).map_err(fail)?;
            let address = listener.local_addr().map_err(fail)?;
            listeners.push((door, Listener::Tcp(listener)));
            tracing::info!(%address, "{what} endpoint");
            Ok::<_, AdminError>(Some(address))
        };
        let admin_address = open(Door::Admin, "admin", config.admin)?;
        let metrics_address = open(Door::Metrics, "metrics", config.metrics)?;
        let config = config.clone();
        let server = Server::start("coord", listeners, move |door, request| {
            answer::answer(door, request, &config, &operator)
        })?;
        Ok(Admin { _server: server, admin_address, metrics_address })
    }

    /// Returns the address of the admin endpoint, with the chosen port if the configured one is 0.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Returns the address of `/metrics`.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }
}

/// Connects to the replica that uses a data directory.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` if no replica runs; otherwise the error of the system.
pub fn connect(data_dir: &Path) -> io::Result<UnixStream> {
    let directory = File::open(data_dir)?;
    UnixStream::connect(short_path(&directory))
}

/// Returns the socket's path through a descriptor, because a socket's address has room for some 100 bytes
/// only and a data directory may be longer.
fn short_path(directory: &File) -> PathBuf {
    format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()).into()
}

/// Listens in a data directory that is ours, so an existing socket belongs to a dead process.
fn listen_in(data_dir: &Path) -> io::Result<UnixListener> {
    let directory = File::open(data_dir)?;
    let path = short_path(&directory);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&path)?)?;
    // No client can connect before this, because that takes the call after it.
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    Ok(UnixListener::from(socket))
}
