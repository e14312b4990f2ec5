//! A way to a server that can be cut, without a privilege: a proxy at an address of its own.
//!
//! Always holds: bytes that pass are passed whole and in order; a stalled gate passes nothing, not even
//! the end of a stream, and loses nothing; a broken one ends what goes through it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// How soon a stream notices that the gate was cut.
const LOOK: Duration = Duration::from_millis(10);
/// How soon new streams are looked for.
const ACCEPT: Duration = Duration::from_millis(1);
const CHUNK_SIZE: usize = 256 << 10;

/// What a gate does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum GateState {
    /// Passes them.
    Open,
    /// Keeps them until it is opened, as lost packets that are sent again.
    Stalled,
    /// Breaks streams, and ends new ones at once.
    Broken,
    /// The gate is gone.
    Over,
}

/// What the threads of a gate look at.
#[derive(Debug)]
struct Shared {
    state: AtomicU8,
    /// How long each piece of bytes is held back, in milliseconds.
    delay_ms: AtomicU64,
}

/// A proxy before a server.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Gate {
    /// Listens at `address` and passes on to `target`, which need not be there yet.
    ///
    /// # Panics
    /// If the address cannot be listened at.
    pub fn start(address: SocketAddr, target: SocketAddr) -> Gate {
        let listener = TcpListener::bind(address).expect("listen for a gate");
        let address = listener.local_addr().expect("the address of a gate");
        listener.set_nonblocking(true).expect("a gate that does not block");
        let state = AtomicU8::new(GateState::Open as u8);
        let shared = Arc::new(Shared { state, delay_ms: AtomicU64::new(0) });
        let for_thread = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, &for_thread, target));
        Gate { address, shared }
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets bytes through, or not.
    pub fn set(&self, state: GateState) {
        self.shared.state.store(state as u8, Ordering::Relaxed);
    }

    /// Holds every piece of bytes back for this long, in both directions.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.set(GateState::Over);
    }
}

fn is(shared: &Shared, wanted: GateState) -> bool {
    shared.state.load(Ordering::Relaxed) == wanted as u8
}

fn accept(listener: &TcpListener, state: &Arc<Shared>, target: SocketAddr) {
    while !is(state, GateState::Over) {
        match listener.accept() {
            Ok((stream, _)) => {
                let state = Arc::clone(state);
                // The client sees the end of its connection, and tries again.
                std::thread::spawn(move || pass(stream, &state, target).ok());
            }
            Err(_) => std::thread::sleep(ACCEPT),
        }
    }
}

fn pass(source: TcpStream, state: &Arc<Shared>, target: SocketAddr) -> std::io::Result<()> {
    source.set_nonblocking(false)?;
    source.set_nodelay(true)?;
    if !wait_while_stalled(state) {
        return Ok(());
    }
    let target = TcpStream::connect_timeout(&target, Duration::from_secs(1))?;
    target.set_nodelay(true)?;
    let back = (target.try_clone()?, source.try_clone()?);
    let for_back = Arc::clone(state);
    std::thread::spawn(move || pump(back.0, back.1, &for_back));
    pump(source, target, state);
    Ok(())
}

/// Waits while the gate is stalled. True if the gate is open then, and not broken or gone.
fn wait_while_stalled(state: &Shared) -> bool {
    while is(state, GateState::Stalled) {
        std::thread::sleep(LOOK);
    }
    is(state, GateState::Open)
}

fn pump(mut from: TcpStream, mut to: TcpStream, state: &Shared) {
    let mut chunk = vec![0; CHUNK_SIZE];
    let may_read = from.set_read_timeout(Some(LOOK)).is_ok();
    while may_read && wait_while_stalled(state) {
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                std::thread::sleep(Duration::from_millis(state.delay_ms.load(Ordering::Relaxed)));
                if !wait_while_stalled(state) || to.write_all(&chunk[..count]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    // The other direction ends with this one.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
