//! The sockets of clients: accepted, received from, sent to, closed.
//!
//! What always holds: a socket is read at most once a pass, so none starves another; a message is handed to
//! the replica where the kernel put it; each client gets at most one write a turn; while the replica does
//! not accept a client's next message its socket is not read, so the client itself must stop sending; a
//! client's slot is reused with a new generation. A client's memory here is bounded: one message, one
//! receive, and `output_max_bytes` of replies that it does not read.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use millrace_proto::zookeeper::opcode;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use super::machine::{Machine, World};
use super::{ClientId, Event};
use crate::metrics::Metrics;
use crate::socket::{self, Cut, Inbox, Outbox, RateLimit, Received};

/// Milliseconds that a client has for its first message. ZooKeeper has no such limit.
const GREETING_MS: u64 = 10_000;
/// Milliseconds that a closed client has to take its last bytes.
const FAREWELL_MS: u64 = 5_000;
/// Most clients that are accepted in one pass.
const ACCEPTS_PER_PASS: usize = 256;
/// Milliseconds to wait when the process has no descriptors left.
const ACCEPT_PAUSE_MS: u64 = 100;
/// Most reads that empty a socket before it is closed, so that a client which keeps sending cannot hold us
/// up.
const UNREAD_READS_MAX: usize = 64;
/// `0xfff4fffd`, which telnet sends when a user interrupts it.
const TELNET_CLOSE: [u8; 4] = [0xff, 0xf4, 0xff, 0xfd];

/// The limits of clients.
#[derive(Debug, Clone)]
pub(crate) struct ClientLimits {
    /// Longest message in bytes (`jute.maxbuffer`).
    pub(crate) message_max_bytes: usize,
    /// Most connections of one address; 0 for no such limit.
    pub(crate) per_address_max: u32,
    /// Most connections.
    pub(crate) total_max: u32,
    /// Most bytes that wait for one client.
    pub(crate) output_max_bytes: usize,
}

/// The stage of a connection.
#[derive(Debug)]
enum SocketPhase {
    /// Fewer than four bytes have come: it may become a client or a four-letter word.
    New,
    /// The replica knows it.
    Open,
    /// It sent a four-letter word and will be answered soon.
    Asked,
    /// Only the rest of the outbox is sent.
    Leaving(Outbox),
}

#[derive(Debug)]
struct ClientSocket {
    id: ClientId,
    address: SocketAddr,
    stream: TcpStream,
    phase: SocketPhase,
    inbox: Inbox,
    /// True if the socket may have bytes.
    is_readable: bool,
    /// True if the other side has sent its last byte.
    has_ended: bool,
    /// True if the list of clients to look at has it.
    is_listed: bool,
    /// True if the replica did not accept its next message.
    is_held: bool,
    /// True if the kernel did not take all of its output.
    is_full: bool,
}

/// The outcome of a look at a client.
#[derive(Debug)]
enum Look {
    /// Nothing waits there.
    Idle,
    /// More may wait.
    More,
    /// The replica must accept it first.
    Held,
    Word([u8; 4]),
    /// It has left, or must be closed.
    Gone,
    /// A message of an impossible length, and the code of its request if that has come.
    Length {
        length: i32,
        code: Option<i32>,
    },
}

#[derive(Debug)]
pub(crate) struct Clients {
    limits: ClientLimits,
    registry: Registry,
    listener: TcpListener,
    first_token: usize,
    /// True if the listener may have connections.
    has_waiting: bool,
    paused_until_ms: u64,
    slots: Vec<Option<ClientSocket>>,
    generations: Vec<u32>,
    free: Vec<u32>,
    per_address: HashMap<IpAddr, u32>,
    /// Slots to look at in the next pass.
    listed: Vec<u32>,
    /// New and leaving connections, with their deadlines in order.
    new: VecDeque<(u64, ClientId)>,
    leaving: VecDeque<(u64, ClientId)>,
    /// Four-letter words to answer.
    pub(super) words: Vec<(ClientId, [u8; 4])>,
    /// The figures counted here, in the fields of their names.
    pub(super) metrics: Metrics,
    /// Bytes received and sent at the last look.
    moved_seen: u64,
    log: RateLimit,
}

impl Clients {
    /// Accepts clients from `listener` and gives them tokens from `first_token` on.
    ///
    /// # Errors
    /// Fails if the listener cannot be polled.
    pub(crate) fn new(
        limits: ClientLimits,
        registry: Registry,
        mut listener: TcpListener,
        listener_token: Token,
        first_token: usize,
    ) -> io::Result<Clients> {
        registry.register(&mut listener, listener_token, Interest::READABLE)?;
        Ok(Clients {
            limits,
            registry,
            listener,
            first_token,
            has_waiting: false,
            paused_until_ms: 0,
            slots: Vec::new(),
            generations: Vec::new(),
            free: Vec::new(),
            per_address: HashMap::new(),
            listed: Vec::new(),
            new: VecDeque::new(),
            leaving: VecDeque::new(),
            words: Vec::new(),
            metrics: Metrics::default(),
            moved_seen: 0,
            log: RateLimit::default(),
        })
    }

    /// Returns the count of open connections.
    pub(crate) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// True if bytes were sent or received since the last call.
    pub(crate) fn take_active(&mut self) -> bool {
        let moved = self.metrics.bytes_received + self.metrics.bytes_sent;
        std::mem::replace(&mut self.moved_seen, moved) != moved
    }

    /// Notes that the listener has connections.
    pub(crate) fn arrived(&mut self) {
        self.has_waiting = true;
    }

    /// Notes that the poll has news about a client.
    pub(crate) fn ready(&mut self, token: Token, readable: bool, has_ended: bool) {
        let slot = token.0 - self.first_token;
        let Some(Some(client)) = self.slots.get_mut(slot) else { return };
        client.is_readable |= readable;
        client.has_ended |= has_ended;
        if !client.is_listed {
            client.is_listed = true;
            self.listed.push(slot as u32);
        }
    }

    fn get(&mut self, id: ClientId) -> Option<&mut ClientSocket> {
        self.slots.get_mut(id.slot as usize)?.as_mut().filter(|client| client.id == id)
    }

    /// Accepts, up to a limit. True if more may wait.
    pub(crate) fn accept(&mut self, now_ms: u64) -> bool {
        if !self.has_waiting || now_ms < self.paused_until_ms {
            return false;
        }
        for _ in 0..ACCEPTS_PER_PASS {
            match self.listener.accept() {
                Ok((stream, address)) => {
                    if let Err(error) = self.admit(now_ms, stream, address) {
                        self.complain(now_ms, address, &error.to_string());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.has_waiting = false;
                    return false;
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // There are no descriptors, or no memory. Another try at once would only burn a
                    // processor.
                    tracing::warn!(%error, "cannot accept clients");
                    self.paused_until_ms = now_ms + ACCEPT_PAUSE_MS;
                    return false;
                }
            }
        }
        true
    }

    fn admit(&mut self, now_ms: u64, mut stream: TcpStream, address: SocketAddr) -> io::Result<()> {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let count = self.per_address.get(&address.ip()).copied().unwrap_or_default();
        let limit = self.limits.per_address_max;
        if limit != 0 && count >= limit {
            self.metrics.connections_rejected += 1;
            return Err(io::Error::other(format!(
                "refused: {count} connections of this address, as many as maxClientCnxns allows"
            )));
        }
        let total = self.count();
        if total >= self.limits.total_max as usize {
            self.metrics.connections_rejected += 1;
            return Err(io::Error::other(format!("refused: {total} connections are open")));
        }
        stream.set_nodelay(true)?;
        let slot = self.free.last().copied().unwrap_or(self.slots.len() as u32);
        let token = Token(self.first_token + slot as usize);
        // Both are registered once and for all. Edges of `WRITABLE` come only after a write fell short.
        self.registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        if self.free.pop().is_none() {
            self.slots.push(None);
            self.generations.push(0);
        }
        let generation = &mut self.generations[slot as usize];
        *generation = generation.wrapping_add(1);
        let id = ClientId { slot, generation: *generation };
        self.slots[slot as usize] = Some(ClientSocket {
            id,
            address,
            stream,
            phase: SocketPhase::New,
            inbox: Inbox::default(),
            is_readable: false,
            has_ended: false,
            is_listed: false,
            is_held: false,
            is_full: false,
        });
        *self.per_address.entry(address.ip()).or_default() += 1;
        self.new.push_back((now_ms + GREETING_MS, id));
        self.metrics.connections_opened += 1;
        Ok(())
    }

    fn complain(&mut self, now_ms: u64, address: SocketAddr, why: &str) {
        if let Some(left_out) = self.log.allow(now_ms, why) {
            tracing::warn!(%address, why, left_out, "client");
        }
    }

    /// Looks once at every client with news. True if one look did not take all.
    pub(crate) fn pass(&mut self, shared: &mut [u8], world: &mut World<'_, impl Machine>) -> bool {
        let mut more = false;
        let mut listed = std::mem::take(&mut self.listed);
        listed.retain(|slot| {
            let Some(Some(client)) = self.slots.get_mut(*slot as usize) else { return false };
            let look = client.look(&self.limits, &mut self.metrics, shared, world);
            client.is_held = matches!(look, Look::Held);
            client.is_listed = matches!(look, Look::Held | Look::More);
            more |= matches!(look, Look::More);
            let (id, address, is_listed) = (client.id, client.address, client.is_listed);
            match look {
                Look::Idle | Look::More | Look::Held => {}
                Look::Word(word) => self.words.push((id, word)),
                Look::Gone => self.drop_client(id, world),
                Look::Length { length, code } => {
                    self.metrics.requests_too_large += 1;
                    let why = refusal(length, code, self.limits.message_max_bytes);
                    self.complain(world.now.ms, address, &why);
                    self.drop_client(id, world);
                }
            }
            is_listed
        });
        listed.append(&mut self.listed);
        self.listed = listed;
        more
    }

    /// True if the replica now accepts a client that had to wait.
    pub(crate) fn may_go_on(&self, machine: &impl Machine) -> bool {
        self.listed.iter().any(|slot| {
            let client = self.slots[*slot as usize].as_ref();
            client.is_some_and(|client| client.is_held && machine.accepts(client.id))
        })
    }

    pub(crate) fn send(&mut self, id: ClientId, world: &mut World<'_, impl Machine>) {
        let limit = self.limits.output_max_bytes;
        let Some(Some(client)) = self.slots.get_mut(id.slot as usize) else { return };
        if client.id != id {
            return;
        }
        match client.flush(&mut self.metrics, world.machine) {
            Ok(waiting) if waiting <= limit => return,
            Ok(waiting) => {
                self.metrics.slow_clients_closed += 1;
                let address = client.address;
                let why = format!("closed: it does not read, and {waiting} bytes wait for it");
                self.complain(world.now.ms, address, &why);
            }
            Err(_) => {}
        }
        self.drop_client(id, world);
    }

    /// Sends the output of a client that the replica has given up, then closes it.
    pub(crate) fn close(&mut self, id: ClientId, now_ms: u64, machine: &mut impl Machine) {
        let rest = machine.output(id).map(std::mem::take).unwrap_or_default();
        self.leave(id, now_ms, rest);
    }

    /// Answers a four-letter word, and closes.
    pub(crate) fn answer(&mut self, id: ClientId, now_ms: u64, text: String) {
        self.leave(id, now_ms, text.into_bytes());
    }

    fn leave(&mut self, id: ClientId, now_ms: u64, rest: Vec<u8>) {
        let Some(client) = self.get(id) else { return };
        let bytes = rest.len();
        let mut outbox = Outbox::of(rest);
        match outbox.flush(&client.stream) {
            Ok(()) if outbox.len() > 0 => {
                client.phase = SocketPhase::Leaving(outbox);
                self.leaving.push_back((now_ms + FAREWELL_MS, id));
            }
            _ => self.remove(id),
        }
        self.metrics.bytes_sent += bytes as u64;
    }

    /// Closes a client, and reports it to the replica if that knows the client.
    fn drop_client(&mut self, id: ClientId, world: &mut World<'_, impl Machine>) {
        if self.get(id).is_some_and(|client| matches!(client.phase, SocketPhase::Open)) {
            world.handle(Event::ClientClosed { client: id });
        }
        self.remove(id);
    }

    fn remove(&mut self, id: ClientId) {
        if self.get(id).is_none() {
            return;
        }
        let Some(client) = self.slots[id.slot as usize].take() else { return };
        client.take_leave();
        self.metrics.connections_closed += 1;
        self.free.push(id.slot);
        let address = client.address.ip();
        if let Some(count) = self.per_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.per_address.remove(&address);
            }
        }
    }

    /// Closes clients whose time is over. Returns the time of the next call.
    pub(crate) fn run_timers(&mut self, now_ms: u64) -> u64 {
        while let Some((_, id)) = self.new.pop_front_if(|(deadline, _)| *deadline <= now_ms) {
            if self.get(id).is_some_and(|client| matches!(client.phase, SocketPhase::New)) {
                self.remove(id);
            }
        }
        while let Some((_, id)) = self.leaving.pop_front_if(|(deadline, _)| *deadline <= now_ms) {
            self.remove(id);
        }
        let accept = if self.has_waiting { self.paused_until_ms } else { u64::MAX };
        let first = |list: &VecDeque<(u64, ClientId)>| list.front().map_or(u64::MAX, |it| it.0);
        accept.min(first(&self.new)).min(first(&self.leaving))
    }

    /// Closes all clients at the end of the replica. Waits up to `patience` while they take their last
    /// output.
    pub(super) fn close_all(
        &mut self,
        now_ms: u64,
        machine: &mut impl Machine,
        patience: Duration,
    ) {
        let all: Vec<ClientId> = self.slots.iter().flatten().map(|client| client.id).collect();
        for id in all {
            if self.get(id).is_some_and(|client| !matches!(client.phase, SocketPhase::Leaving(_))) {
                self.close(id, now_ms, machine);
            }
        }
        let began = Instant::now();
        while began.elapsed() < patience {
            let unsent = self.slots.iter_mut().flatten().any(|client| match &mut client.phase {
                SocketPhase::Leaving(outbox) => {
                    outbox.flush(&client.stream).is_ok() && outbox.len() > 0
                }
                _ => false,
            });
            if !unsent {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl ClientSocket {
    /// Sends and receives what is possible, once.
    fn look(
        &mut self,
        limits: &ClientLimits,
        metrics: &mut Metrics,
        shared: &mut [u8],
        world: &mut World<'_, impl Machine>,
    ) -> Look {
        match &mut self.phase {
            SocketPhase::Leaving(outbox) => {
                return match outbox.flush(&self.stream) {
                    Ok(()) if outbox.len() > 0 => Look::Idle,
                    _ => Look::Gone,
                };
            }
            SocketPhase::Asked => return Look::Idle,
            SocketPhase::New | SocketPhase::Open => {}
        }
        if self.is_full && self.flush(metrics, world.machine).is_err() {
            return Look::Gone;
        }
        let mut look = Look::Idle;
        let (id, address, phase) = (self.id, self.address, &mut self.phase);
        let mut cut = |bytes: &[u8]| {
            let done;
            (done, look) = cut(bytes, phase, id, address, limits, world);
            done
        };
        if self.is_held {
            self.inbox.again(&mut cut);
        }
        let may_receive = self.is_readable || self.has_ended;
        let received = match may_receive && self.inbox.may_receive() {
            true => self.inbox.receive(&self.stream, shared, cut),
            false => Ok(Received::Nothing),
        };
        if let Ok(Received::Bytes { count, more }) = received {
            metrics.bytes_received += count as u64;
            self.is_readable = more;
        }
        match (look, received) {
            // Nothing waits for the replies any more.
            (Look::Held, _) if self.has_ended => Look::Gone,
            (Look::Idle, Err(_) | Ok(Received::End)) => Look::Gone,
            (Look::Idle, Ok(Received::Bytes { more, .. })) if more || self.has_ended => Look::More,
            (look, _) => look,
        }
    }

    /// Sends output. Returns the bytes that still wait.
    fn flush(&mut self, metrics: &mut Metrics, machine: &mut impl Machine) -> io::Result<usize> {
        let Some(output) = machine.output(self.id) else { return Ok(0) };
        let sent = socket::send(&self.stream, output)?;
        metrics.bytes_sent += sent as u64;
        self.is_full = sent < output.len();
        if self.is_full {
            output.drain(..sent);
            return Ok(output.len());
        }
        output.clear();
        machine.output_sent(self.id);
        Ok(0)
    }

    /// Ends the connection so that the last bytes arrive. A socket closed with unread bytes resets the
    /// connection, and then the other side may lose what it was sent.
    fn take_leave(&self) {
        use std::io::Read as _;
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        let mut unread = [0; 4096];
        for _ in 0..UNREAD_READS_MAX {
            if !matches!((&self.stream).read(&mut unread), Ok(1..)) {
                break;
            }
        }
    }
}

/// Cuts messages and hands them to the replica while it accepts them.
fn cut(
    bytes: &[u8],
    phase: &mut SocketPhase,
    client: ClientId,
    address: SocketAddr,
    limits: &ClientLimits,
    world: &mut World<'_, impl Machine>,
) -> (Cut, Look) {
    let all = Cut { consumed: bytes.len(), needed: 0 };
    let mut consumed = 0;
    loop {
        let rest = &bytes[consumed..];
        let Some(head) = rest.first_chunk::<4>() else {
            return (Cut { consumed, needed: 4 }, Look::Idle);
        };
        if matches!(phase, SocketPhase::New) {
            if *head == TELNET_CLOSE {
                return (all, Look::Gone);
            }
            if head.iter().all(u8::is_ascii_lowercase) {
                *phase = SocketPhase::Asked;
                return (all, Look::Word(*head));
            }
        }
        let size = i32::from_be_bytes(*head);
        let length = match usize::try_from(size) {
            Ok(length) if length <= limits.message_max_bytes => length,
            _ => {
                // Behind the length are the number of the request and its code. The first message has none.
                let code = rest.get(8..).and_then(<[u8]>::first_chunk).copied();
                let code = code.filter(|_| !matches!(phase, SocketPhase::New));
                return (all, Look::Length { length: size, code: code.map(i32::from_be_bytes) });
            }
        };
        let Some(message) = rest.get(4..4 + length) else {
            return (Cut { consumed, needed: 4 + length }, Look::Idle);
        };
        if matches!(phase, SocketPhase::New) {
            world.handle(Event::ClientOpened { client, address });
            *phase = SocketPhase::Open;
        }
        if !world.machine.accepts(client) {
            return (Cut { consumed, needed: 0 }, Look::Held);
        }
        world.handle(Event::ClientMessage { client, message });
        consumed += 4 + length;
    }
}

/// Says why a message of an impossible length ends its connection, and what to do about it.
fn refusal(length: i32, code: Option<i32>, limit: usize) -> String {
    match code {
        Some(opcode::SET_WATCHES | opcode::SET_WATCHES2) if length > 0 => format!(
            "closed: it asks for its watches again (setWatches) with {length} bytes, and {limit} are allowed: it will \
             come back with the same until max_message_bytes (jute.maxbuffer) is raised, or its session ends"
        ),
        _ if length < 0 => format!("closed: a length of {length}, which no client sends"),
        _ => format!(
            "closed: a request of {length} bytes, and {limit} are allowed (max_message_bytes, jute.maxbuffer)"
        ),
    }
}
