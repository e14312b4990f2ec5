//! The listeners of pages: one thread accepts, and each request has a thread of its own.
//!
//! A request may take minutes, as a backup does, and a client may be slow. Always holds: the number of
//! connections and the waiting are bounded. Each listener has places of its own, so a flood at one
//! leaves the others open.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::{Request, Response, Stream, read_request};

/// Most requests of one listener that are answered at a time; further ones are closed. Guessed: tools
/// ask one after another.
pub const CONNECTIONS_MAX: usize = 16;
/// How long to wait after a connection could not be accepted, most likely for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listening socket, of either family.
pub enum Listener {
    /// A Unix socket.
    Unix(UnixListener),
    /// A TCP socket.
    Tcp(TcpListener),
}

/// A listener, and the door that its requests come through.
struct Entrance<D> {
    door: D,
    listener: Listener,
    /// Requests being answered.
    busy: Arc<AtomicUsize>,
}

/// The function that answers a request that came through a door.
type Answer<D> = dyn Fn(D, &Request) -> Response + Send + Sync;

/// The pages of a service, open until this is dropped.
pub struct Server {
    /// Dropping it stops the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts to answer what comes through the listeners. Threads are named after `name`, which has at
    /// most 5 letters.
    ///
    /// # Errors
    /// If no descriptor or no thread can be had.
    pub fn start<D: Copy + Send + Sync + 'static>(
        name: &'static str,
        listeners: Vec<(D, Listener)>,
        answer: impl Fn(D, &Request) -> Response + Send + Sync + 'static,
    ) -> io::Result<Server> {
        let entrances: Vec<Entrance<D>> = listeners
            .into_iter()
            .map(|(door, listener)| Entrance { door, listener, busy: Arc::default() })
            .collect();
        let answer: Arc<Answer<D>> = Arc::new(answer);
        let (stop, stopped) = UnixStream::pair()?;
        let thread = std::thread::Builder::new()
            .name(format!("{name}-admin"))
            .spawn(move || accept_all(name, &entrances, &stopped, &answer))?;
        Ok(Server { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    /// Takes no more requests. Does not wait for those that are being answered.
    fn drop(&mut self) {
        self.stop = None;
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the admin thread panicked");
        }
    }
}

impl<D> Entrance<D> {
    fn accept(&self) -> io::Result<Box<dyn Stream>> {
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

/// Takes connections until the other end of `stopped` is gone.
fn accept_all<D: Copy + Send + 'static>(
    name: &str,
    entrances: &[Entrance<D>],
    stopped: &UnixStream,
    answer: &Arc<Answer<D>>,
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
                Ok(stream) => serve(name, entrance, stream, answer),
                Err(error) => {
                    tracing::warn!(%error, "an operator's connection could not be accepted");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }
}

/// Answers one connection in a thread of its own, if there are not too many.
fn serve<D: Copy + Send + 'static>(
    name: &str,
    entrance: &Entrance<D>,
    mut stream: Box<dyn Stream>,
    answer: &Arc<Answer<D>>,
) {
    let Some(place) = Place::take(&entrance.busy) else { return };
    let (door, answer) = (entrance.door, Arc::clone(answer));
    let spawned = std::thread::Builder::new().name(format!("{name}-request")).spawn(move || {
        let _place = place;
        let response = match read_request(stream.as_mut()) {
            Ok(request) => answer(door, &request),
            Err(None) => return,
            Err(Some(refusal)) => refusal,
        };
        // The client may have left.
        let _ = response.write(stream.as_mut());
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for an operator's request");
    }
}

/// One of [`CONNECTIONS_MAX`] places, given back when dropped.
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
