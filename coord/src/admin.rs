//! What operators reach of a replica: pages and commands over HTTP.
//!
//! ```text
//!                             pages   status   commands that change something
//!  DATA/admin.sock, 0600        x       x        x
//!  the admin endpoint           x       x
//!  the metrics endpoint     /metrics and /health alone
//! ```
//!
//! Owns the listeners. One thread accepts; each request has a thread of its own, for a backup may
//! take minutes and a client may be slow. Always holds: requests, connections and waiting are
//! bounded; whoever may open the socket in the data directory is an operator, and nobody else is.
//! What pages say is left to `report`, what commands do to the replica. [`offline`] is for data that
//! no process uses.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::Config;
use crate::coord::Operator;

mod answer;
mod http;

pub mod offline;
mod status;

pub use status::{LatencyStatus, MemberStatus, Status};

#[cfg(test)]
mod tests;

/// Name of the operators' socket in the data directory.
pub const SOCKET: &str = "admin.sock";
/// Requests of one listener that are answered at a time; further ones are closed. Guessed: tools
/// ask one after another.
const CONNECTIONS_MAX: usize = 16;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 32;
/// How long to wait after a connection could not be accepted, most likely for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why nobody can be let in.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("cannot listen at {}: {error}", path.display())]
    Socket { path: PathBuf, error: io::Error },
    #[error("cannot listen at {address}, the {what} endpoint: {error}")]
    Listen { what: &'static str, address: SocketAddr, error: io::Error },
    #[error("the system refused: {0}")]
    System(#[from] io::Error),
}

/// Through which listener somebody came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Socket,
    Admin,
    Metrics,
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

struct Entrance {
    door: Door,
    listener: Listener,
    /// Requests being answered.
    busy: Arc<AtomicUsize>,
}

/// The endpoints of one replica, open until this is dropped.
pub struct Admin {
    /// Dropped to stop the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    admin_address: Option<SocketAddr>,
    metrics_address: Option<SocketAddr>,
}

impl Admin {
    /// Opens the socket in the data directory and the endpoints that are configured. To be called
    /// when the replica has its data directory for itself.
    ///
    /// # Errors
    /// See [`AdminError`]; nothing is open then.
    pub fn start(config: &Config, operator: Operator) -> Result<Admin, AdminError> {
        let socket = listen_in(&config.data_dir)
            .map_err(|error| AdminError::Socket { path: config.data_dir.join(SOCKET), error })?;
        let mut entrances = vec![Entrance::new(Door::Socket, Listener::Unix(socket))];
        let mut open = |door, what, address: Option<SocketAddr>| {
            let Some(address) = address else { return Ok(None) };
            let fail = |error| AdminError::Listen { what, address, error };
            let listener = TcpListener::bind(address).map_err(fail)?;
            let address = listener.local_addr().map_err(fail)?;
            entrances.push(Entrance::new(door, Listener::Tcp(listener)));
            tracing::info!(%address, "{what} endpoint");
            Ok::<_, AdminError>(Some(address))
        };
        let admin_address = open(Door::Admin, "admin", config.admin)?;
        let metrics_address = open(Door::Metrics, "metrics", config.metrics)?;
        let (stop, stopped) = UnixStream::pair()?;
        let config = Arc::new(config.clone());
        let thread = std::thread::Builder::new()
            .name("coord-admin".into())
            .spawn(move || accept_all(&entrances, &stopped, &config, &operator))?;
        Ok(Admin { stop: Some(stop), thread: Some(thread), admin_address, metrics_address })
    }

    /// Where the admin endpoint is, with the port that was chosen when it was configured as 0.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Where `/metrics` is.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }
}

impl Drop for Admin {
    /// Lets nobody in any more. Does not wait for requests that are being answered.
    fn drop(&mut self) {
        self.stop = None;
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the admin thread panicked");
        }
    }
}

impl Entrance {
    fn new(door: Door, listener: Listener) -> Entrance {
        Entrance { door, listener, busy: Arc::default() }
    }

    fn accept(&self) -> io::Result<Box<dyn http::Stream>> {
        Ok(match &self.listener {
            Listener::Unix(listener) => Box::new(listener.accept()?.0),
            Listener::Tcp(listener) => Box::new(listener.accept()?.0),
        })
    }

    fn poll_fd(&self) -> PollFd<'_> {
        let listener = match &self.listener {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        };
        PollFd::from_borrowed_fd(listener, PollFlags::IN)
    }
}

/// Connects to the replica that uses a data directory.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` where no replica runs; else as the system says.
pub fn connect(data_dir: &Path) -> io::Result<UnixStream> {
    let directory = File::open(data_dir)?;
    UnixStream::connect(short_path(&directory))
}

/// The socket's path by way of a descriptor: its address has room for some 100 bytes only, and a
/// data directory may be longer.
fn short_path(directory: &File) -> PathBuf {
    format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()).into()
}

/// Listens in a data directory that is ours, so a socket that is there already is a dead one's.
fn listen_in(data_dir: &Path) -> io::Result<UnixListener> {
    let directory = File::open(data_dir)?;
    let path = short_path(&directory);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&path)?)?;
    // Before anybody can connect, which takes the call after this.
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Takes connections until the other end of `stopped` is gone.
fn accept_all(
    entrances: &[Entrance],
    stopped: &UnixStream,
    config: &Arc<Config>,
    operator: &Operator,
) {
    loop {
        let mut ready = vec![PollFd::new(stopped, PollFlags::IN)];
        ready.extend(entrances.iter().map(Entrance::poll_fd));
        match poll(&mut ready, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return tracing::error!(%error, "the admin endpoints are closed"),
        }
        if !ready[0].revents().is_empty() {
            return;
        }
        for (entrance, ready) in entrances.iter().zip(&ready[1..]) {
            if ready.revents().is_empty() {
                continue;
            }
            match entrance.accept() {
                Ok(stream) => serve(entrance, stream, config, operator),
                Err(error) => {
                    tracing::warn!(%error, "an operator's connection could not be accepted");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }
}

/// Answers one connection in a thread of its own, if there are not too many.
fn serve(
    entrance: &Entrance,
    mut stream: Box<dyn http::Stream>,
    config: &Arc<Config>,
    operator: &Operator,
) {
    let place = Place::take(&entrance.busy);
    let Some(place) = place else { return };
    let (door, config, operator) = (entrance.door, Arc::clone(config), operator.clone());
    let spawned = std::thread::Builder::new().name("coord-request".into()).spawn(move || {
        let _place = place;
        let answer = match http::read_request(stream.as_mut()) {
            Ok(request) => answer::answer(door, &request, &config, &operator),
            Err(None) => return,
            Err(Some(refusal)) => refusal,
        };
        // Whoever asked may have left.
        let _ = answer.write(stream.as_mut());
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for an operator's request");
    }
}

/// One of [`CONNECTIONS_MAX`], given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(busy: &Arc<AtomicUsize>) -> Option<Place> {
        let place = Place(Arc::clone(busy));
        // Counted by the one thread that accepts, so it cannot overshoot.
        (busy.fetch_add(1, Ordering::Relaxed) < CONNECTIONS_MAX).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
