//! A thread that looks up names, because a look-up may take any time.
//!
//! It ends by itself when its [`Resolver`] is dropped and its look-up has ended. Nothing waits for it.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

/// Most names that wait: one for each member of a large ensemble.
const WAITING_MAX: usize = 64;

/// The outcome of a look-up.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) peer: u64,
    /// The address that was looked up, `host:port`.
    pub(crate) address: String,
    pub(crate) result: io::Result<Vec<SocketAddr>>,
}

/// The thread's inbox.
#[derive(Debug)]
pub(crate) struct Resolver {
    names: flume::Sender<(u64, String)>,
}

impl Resolver {
    /// Starts the thread. It hands each outcome to `answer`.
    ///
    /// # Errors
    /// Fails if the thread could not be started.
    pub(crate) fn start(answer: impl Fn(Resolved) + Send + 'static) -> io::Result<Resolver> {
        let (names, waiting) = flume::bounded::<(u64, String)>(WAITING_MAX);
        std::thread::Builder::new().name("coord-names".into()).spawn(move || {
            while let Ok((peer, address)) = waiting.recv() {
                let result = address.to_socket_addrs().map(Iterator::collect);
                answer(Resolved { peer, address, result });
            }
        })?;
        Ok(Resolver { names })
    }

    /// Asks for the addresses of `address`. True if there was room for it.
    pub(crate) fn ask(&self, peer: u64, address: &str) -> bool {
        self.names.try_send((peer, address.to_owned())).is_ok()
    }
}
