//! Links between replicas that can be cut, in either direction, without a privilege.
//!
//! A proxy listens at the address that all replicas know of each one, so they agree on their members.
//! The replica itself listens beside it, at [`behind`]. The proxy reads the sender of a stream from the
//! greeting. Each replica dials every other one and sends over that stream alone, so a stream is one
//! direction of a link. Always holds: bytes that pass are passed whole and in order; a link that is cut
//! passes nothing, not even the end of a stream.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;

/// How a greeting begins, as far as it is read here: magic, version, features and cluster id, then
/// the sender's id (`coord/src/peers/hello.rs`).
const GREETING_SIZE: usize = 32;
const SENDER_AT: usize = 24;
/// How soon a pump notices that its link was cut.
const LOOK: Duration = Duration::from_millis(20);
const CHUNK_SIZE: usize = 64 << 10;
/// Highest id of a replica here.
const REPLICAS_MAX: usize = 8;

/// What a link does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LinkState {
    /// Passes them.
    Open,
    /// Keeps them until it is healed, as lost packets that are sent again.
    Stalled,
    /// Breaks streams, and refuses new ones.
    Broken,
}

#[derive(Debug)]
struct Link {
    state: AtomicU8,
    delay_ms: AtomicU64,
}

impl Link {
    fn is(&self, state: LinkState) -> bool {
        self.state.load(Ordering::Relaxed) == state as u8
    }
}

#[derive(Debug)]
struct Shared {
    /// By sender, then receiver.
    links: Vec<Link>,
    is_over: AtomicBool,
}

/// Returns where the replica listens whose proxy is at `port`: another address of this machine.
pub fn behind(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), port))
}

/// All links of an ensemble.
#[derive(Debug)]
pub struct Links {
    shared: Arc<Shared>,
}

impl Links {
    /// Listens before the replicas with ids from 1 that listen at these ports.
    ///
    /// # Errors
    /// A port cannot be listened at.
    pub fn start(peer_ports: &[u16]) -> anyhow::Result<Links> {
        assert!(peer_ports.len() < REPLICAS_MAX, "few replicas");
        let links = (0..REPLICAS_MAX * REPLICAS_MAX)
            .map(|_| Link {
                state: AtomicU8::new(LinkState::Open as u8),
                delay_ms: AtomicU64::new(0),
            })
            .collect();
        let shared = Arc::new(Shared { links, is_over: AtomicBool::new(false) });
        for (index, port) in peer_ports.iter().enumerate() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port))
                .with_context(|| format!("listen at port {port}"))?;
            listener.set_nonblocking(true)?;
            let shared = Arc::clone(&shared);
            let receiver = index as u64 + 1;
            let target = behind(*port);
            std::thread::spawn(move || accept(&listener, &shared, receiver, target));
        }
        Ok(Links { shared })
    }

    fn link(&self, sender: u64, receiver: u64) -> &Link {
        link(&self.shared, sender, receiver).expect("an id of a replica")
    }

    /// Sets what the link from one replica to another does, in this direction.
    pub fn set(&self, sender: u64, receiver: u64, state: LinkState) {
        self.link(sender, receiver).state.store(state as u8, Ordering::Relaxed);
    }

    /// Cuts a replica off from all others, both ways.
    pub fn isolate(&self, replica: u64, state: LinkState) {
        for other in (1..REPLICAS_MAX as u64).filter(|other| *other != replica) {
            self.set(replica, other, state);
            self.set(other, replica, state);
        }
    }

    /// Holds every chunk of bytes back for this long, in every direction.
    pub fn delay(&self, delay_ms: u64) {
        for link in &self.shared.links {
            link.delay_ms.store(delay_ms, Ordering::Relaxed);
        }
    }

    /// Opens all links.
    pub fn heal(&self) {
        for link in &self.shared.links {
            link.state.store(LinkState::Open as u8, Ordering::Relaxed);
            link.delay_ms.store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}

fn link(shared: &Shared, sender: u64, receiver: u64) -> Option<&Link> {
    let (sender, receiver) = (usize::try_from(sender).ok()?, usize::try_from(receiver).ok()?);
    if sender >= REPLICAS_MAX || receiver >= REPLICAS_MAX {
        return None;
    }
    shared.links.get(sender * REPLICAS_MAX + receiver)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, receiver: u64, target: SocketAddr) {
    while !shared.is_over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let shared = Arc::clone(shared);
                // A stream that ends early is dialled again by its replica.
                std::thread::spawn(move || pass(stream, &shared, receiver, target).ok());
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// Passes one stream, after its greeting has shown whose it is.
fn pass(
    mut source: TcpStream,
    shared: &Arc<Shared>,
    receiver: u64,
    target: SocketAddr,
) -> std::io::Result<()> {
    source.set_nonblocking(false)?;
    source.set_nodelay(true)?;
    source.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut greeting = [0; GREETING_SIZE];
    source.read_exact(&mut greeting)?;
    let sender = greeting[SENDER_AT..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let sender = sender.unwrap_or_default();
    let Some(link) = link(shared, sender, receiver) else { return Ok(()) };
    if !wait_while_stalled(shared, link) {
        return Ok(());
    }
    let mut target = TcpStream::connect_timeout(&target, Duration::from_secs(1))?;
    target.set_nodelay(true)?;
    target.write_all(&greeting)?;
    let back = (target.try_clone()?, source.try_clone()?);
    let for_back = Arc::clone(shared);
    std::thread::spawn(move || pump(back.0, back.1, &for_back, (sender, receiver)));
    pump(source, target, shared, (sender, receiver));
    Ok(())
}

/// Waits while the link is stalled. True if the link is open then, and not broken or gone.
fn wait_while_stalled(shared: &Shared, link: &Link) -> bool {
    while link.is(LinkState::Stalled) && !shared.is_over.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK);
    }
    !link.is(LinkState::Broken) && !shared.is_over.load(Ordering::Relaxed)
}

fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared, (sender, receiver): (u64, u64)) {
    let Some(link) = link(shared, sender, receiver) else { return };
    let mut chunk = vec![0; CHUNK_SIZE];
    let may_read = from.set_read_timeout(Some(LOOK)).is_ok();
    while may_read && wait_while_stalled(shared, link) {
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                std::thread::sleep(Duration::from_millis(link.delay_ms.load(Ordering::Relaxed)));
                if !wait_while_stalled(shared, link) || to.write_all(&chunk[..count]).is_err() {
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
