//! Clients over real loopback sockets, with a machine that echoes and a clock that the test sets.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use crate::config::Config;
use crate::replica::{Action, ClientId, Event, Now};
use crate::report::{Effect, Snapshot, Wanted};
use crate::runtime::clients::{ClientLimits, Clients};
use crate::runtime::machine::{Machine, World};
use crate::socket;

const LISTENER: Token = Token(1);
const FIRST: usize = 3 << 32;
/// The time that a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Echoes every message. It answers `bye` and then ends the connection.
struct Echo {
    outputs: HashMap<ClientId, Vec<u8>>,
    accepts: bool,
    opened: Vec<ClientId>,
    closed: Vec<ClientId>,
}

impl Machine for Echo {
    fn handle(&mut self, _: Now, event: Event<'_>, actions: &mut Vec<Action>) {
        match event {
            Event::ClientOpened { client, .. } => {
                assert!(self.outputs.insert(client, Vec::new()).is_none(), "{client:?} twice");
                self.opened.push(client);
            }
            Event::ClientMessage { client, message } => {
                assert!(self.accepts);
                let output = self.outputs.get_mut(&client).unwrap();
                output.extend_from_slice(&framed(message));
                actions.push(match message {
                    b"bye" => Action::CloseClient { client },
                    _ => Action::Send { client },
                });
            }
            Event::ClientClosed { client } => {
                self.outputs.remove(&client).unwrap();
                self.closed.push(client);
            }
            other => panic!("{other:?} is not about clients"),
        }
    }

    fn turn(&mut self, _: Now, _: &mut Vec<Action>) -> u64 {
        u64::MAX
    }

    fn accepts(&self, client: ClientId) -> bool {
        self.accepts && self.outputs.contains_key(&client)
    }

    fn output(&mut self, client: ClientId) -> Option<&mut Vec<u8>> {
        self.outputs.get_mut(&client)
    }

    fn output_sent(&mut self, _: ClientId) {}

    fn report(&self, _: Now, _: Wanted) -> Snapshot {
        Snapshot::new(Config::tiny(PathBuf::from("nowhere")))
    }

    fn reset(&mut self, _: Effect) {}

    fn shut_down(&mut self) {}

    fn may_stop(&self) -> bool {
        true
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u32).to_be_bytes(), message].concat()
}

struct Server {
    clients: Clients,
    machine: Echo,
    poll: Poll,
    address: SocketAddr,
    now_ms: u64,
    /// Count of passes that found more to do at once.
    busy_passes: u64,
    shared: Vec<u8>,
}

fn server(change: impl FnOnce(&mut ClientLimits)) -> Server {
    let mut limits = ClientLimits {
        message_max_bytes: 100_000,
        per_address_max: 0,
        total_max: 100,
        output_max_bytes: 1 << 20,
    };
    change(&mut limits);
    let poll = Poll::new().unwrap();
    let listener = socket::listen((Ipv4Addr::LOCALHOST, 0).into(), 64).unwrap();
    let address = listener.local_addr().unwrap();
    let registry = poll.registry().try_clone().unwrap();
    let clients = Clients::new(limits, registry, listener, LISTENER, FIRST).unwrap();
    let machine =
        Echo { outputs: HashMap::new(), accepts: true, opened: Vec::new(), closed: Vec::new() };
    Server { clients, machine, poll, address, now_ms: 0, busy_passes: 0, shared: vec![0; 4096] }
}

impl Server {
    fn connect(&mut self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nonblocking(true).unwrap();
        self.pass();
        stream
    }

    fn pass(&mut self) {
        let mut events = Events::with_capacity(64);
        self.poll.poll(&mut events, Some(Duration::from_millis(1))).unwrap();
        for event in &events {
            match event.token() {
                LISTENER => self.clients.arrived(),
                token => {
                    self.clients.ready(token, event.is_readable(), event.is_read_closed());
                }
            }
        }
        let now = Now { ms: self.now_ms, wall_ms: 0 };
        let mut actions = Vec::new();
        let machine = &mut self.machine;
        let mut world = World { now, machine, actions: &mut actions };
        while self.clients.accept(now.ms) {}
        self.busy_passes += u64::from(self.clients.pass(&mut self.shared, &mut world));
        for action in actions {
            let mut more = Vec::new();
            let machine = &mut self.machine;
            match action {
                Action::Send { client } => {
                    self.clients.send(client, &mut World { now, machine, actions: &mut more });
                }
                Action::CloseClient { client } => self.clients.close(client, now.ms, machine),
                other => panic!("{other:?} is not about clients"),
            }
        }
        for (client, word) in std::mem::take(&mut self.clients.words) {
            let text = format!("word {}", String::from_utf8_lossy(&word));
            self.clients.answer(client, now.ms, text);
        }
        self.clients.run_timers(now.ms);
    }

    /// Runs passes until `stream` has sent this many bytes, or has ended. Returns the bytes.
    fn receive(&mut self, stream: &mut TcpStream, count: usize) -> Vec<u8> {
        let (mut received, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        let began = Instant::now();
        while received.len() < count {
            self.pass();
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
            assert!(began.elapsed() < PATIENCE, "{} of {count} bytes", received.len());
        }
        received
    }

    /// Returns what `stream` sends until it ends.
    fn rest(&mut self, stream: &mut TcpStream) -> Vec<u8> {
        self.receive(stream, usize::MAX)
    }

    fn until(&mut self, done: impl Fn(&Server) -> bool) {
        let began = Instant::now();
        while !done(self) {
            self.pass();
            assert!(began.elapsed() < PATIENCE);
        }
    }

    fn works(&mut self, stream: &mut TcpStream) {
        stream.write_all(&framed(b"still here")).unwrap();
        assert_eq!(self.receive(stream, 14), framed(b"still here"));
    }
}

#[test]
fn pipelined_messages_are_answered_in_order_however_they_are_cut() {
    let mut server = server(|_| {});
    let mut random = fastrand::Rng::with_seed(11);
    let mut streams: Vec<TcpStream> = (0..5).map(|_| server.connect()).collect();
    for _ in 0..20 {
        let mut expected = vec![Vec::new(); streams.len()];
        for (stream, expected) in streams.iter_mut().zip(&mut expected) {
            for _ in 0..random.usize(1..50) {
                let size = if random.u8(..) == 0 { 60_000 } else { random.usize(0..300) };
                expected.extend(framed(&vec![random.u8(..); size]));
            }
            let mut rest = &expected[..];
            while !rest.is_empty() {
                let size = random.usize(1..=rest.len());
                match stream.write(&rest[..size]) {
                    Ok(count) => rest = &rest[count..],
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
                server.pass();
            }
        }
        for (stream, expected) in streams.iter_mut().zip(&expected) {
            assert!(server.receive(stream, expected.len()) == *expected);
        }
    }
}

#[test]
fn an_impossible_length_ends_its_connection_and_no_other() {
    let mut server = server(|_| {});
    let mut other = server.connect();
    server.works(&mut other);
    for length in [-1, i32::MIN, 100_001, i32::MAX] {
        let mut stream = server.connect();
        stream.write_all(&framed(b"first")).unwrap();
        stream.write_all(&length.to_be_bytes()).unwrap();
        let received = server.rest(&mut stream);
        assert!(received.is_empty() || received == framed(b"first"), "{length}");
        server.works(&mut other);
    }
    assert_eq!(server.clients.metrics.requests_too_large, 4);
    assert_eq!(server.machine.closed.len(), 4);
    let mut stream = server.connect();
    let longest = framed(&vec![7; 100_000]);
    let writer = {
        let mut stream = stream.try_clone().unwrap();
        let longest = longest.clone();
        std::thread::spawn(move || {
            let mut rest = &longest[..];
            while let Some(next) = rest.get(..rest.len().min(1000)).filter(|it| !it.is_empty()) {
                rest = &rest[stream.write(next).unwrap_or(0)..];
            }
        })
    };
    assert!(server.receive(&mut stream, longest.len()) == longest, "the longest one is taken");
    writer.join().unwrap();
}

#[test]
fn a_four_letter_word_is_answered_and_the_replica_never_hears_of_it() {
    let mut server = server(|_| {});
    let mut stream = server.connect();
    stream.write_all(b"ru").unwrap();
    server.pass();
    stream.write_all(b"ok\r\nand more").unwrap();
    assert_eq!(server.rest(&mut stream), b"word ruok");
    assert!(server.machine.opened.is_empty());
    // Only the first four bytes of a connection are a word.
    let mut stream = server.connect();
    server.works(&mut stream);
    stream.write_all(b"stat").unwrap();
    assert!(server.rest(&mut stream).is_empty());
    let mut stream = server.connect();
    stream.write_all(&[0xff, 0xf4, 0xff, 0xfd]).unwrap();
    assert!(server.rest(&mut stream).is_empty());
    assert_eq!(server.clients.metrics.requests_too_large, 1, "telnet is not an offence");
    assert_eq!(server.clients.count(), 0);
}

#[test]
fn connections_beyond_the_limits_are_closed_at_once() {
    for (per_address_max, total_max) in [(3, 100), (0, 3)] {
        let mut server = server(|limits| {
            limits.per_address_max = per_address_max;
            limits.total_max = total_max;
        });
        let mut streams: Vec<TcpStream> = (0..3).map(|_| server.connect()).collect();
        for _ in 0..200 {
            let mut refused = server.connect();
            assert!(server.rest(&mut refused).is_empty());
        }
        for stream in &mut streams {
            server.works(stream);
        }
        assert_eq!(server.clients.metrics.connections_rejected, 200);
        drop(streams.pop());
        server.until(|server| server.clients.count() == 2);
        let mut next = server.connect();
        server.works(&mut next);
    }
}

#[test]
fn a_connection_without_a_message_is_closed_in_time_and_others_are_not() {
    let mut server = server(|_| {});
    let mut silent = server.connect();
    let mut slow = server.connect();
    slow.write_all(&[0, 0, 0, 9, 1]).unwrap();
    let mut good = server.connect();
    server.works(&mut good);
    server.now_ms += 20_000;
    assert!(server.rest(&mut silent).is_empty());
    assert!(server.rest(&mut slow).is_empty());
    server.works(&mut good);
    assert_eq!(server.clients.count(), 1);
}

#[test]
fn a_client_that_never_reads_is_closed() {
    let mut server = server(|limits| limits.output_max_bytes = 200_000);
    let mut stream = server.connect();
    let mut good = server.connect();
    let message = framed(&vec![1; 50_000]);
    let mut rest = &message[..];
    let began = Instant::now();
    while server.clients.metrics.slow_clients_closed == 0 {
        match stream.write(rest) {
            Ok(count) if count == rest.len() => rest = &message[..],
            Ok(count) => rest = &rest[count..],
            Err(_) => {}
        }
        server.pass();
        assert!(began.elapsed() < PATIENCE);
    }
    assert_eq!(server.machine.closed.len(), 1);
    server.works(&mut good);
}

#[test]
fn a_slow_reader_gets_everything() {
    let mut server = server(|limits| limits.output_max_bytes = usize::MAX);
    let mut stream = server.connect();
    let message = framed(&vec![5; 90_000]);
    let mut writer = stream.try_clone().unwrap();
    let (all, copy) = (message.len() * 200, message.clone());
    let thread = std::thread::spawn(move || {
        for _ in 0..200 {
            let mut rest = &copy[..];
            while !rest.is_empty() {
                rest = &rest[writer.write(rest).unwrap_or(0)..];
            }
        }
    });
    // The test reads nothing until the server holds a part of it.
    server.until(|server| server.machine.outputs.values().any(|output| output.len() > 1_000_000));
    let received = server.receive(&mut stream, all);
    thread.join().unwrap();
    assert!(received.chunks(message.len()).all(|chunk| chunk == message));
    assert_eq!(received.len(), all);
}

#[test]
fn a_client_that_is_not_accepted_waits_without_being_read() {
    let mut server = server(|_| {});
    let mut stream = server.connect();
    server.works(&mut stream);
    server.machine.accepts = false;
    let mut sent = Vec::new();
    for index in 0_u32..1_000_000 {
        let message = framed(&[&index.to_be_bytes()[..], &[0; 1000]].concat());
        match stream.write(&message) {
            Ok(count) => sent.extend_from_slice(&message[..count]),
            Err(_) => break,
        }
        if index % 100 == 0 {
            server.pass();
        }
    }
    assert!(stream.write(&[0]).is_err(), "its sending stops");
    server.busy_passes = 0;
    for _ in 0..20 {
        server.pass();
    }
    assert_eq!(server.busy_passes, 0, "waiting is not busy");
    assert!(!server.clients.may_go_on(&server.machine));
    server.machine.accepts = true;
    assert!(server.clients.may_go_on(&server.machine));
    // The last message may have been sent in part.
    let whole = sent.len() / 1008 * 1008;
    assert!(server.receive(&mut stream, whole) == sent[..whole]);
}

#[test]
fn an_end_is_told_once_and_a_slot_gets_a_new_generation() {
    let mut server = server(|_| {});
    let mut first = server.connect();
    server.works(&mut first);
    first.write_all(&framed(b"last")).unwrap();
    first.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.rest(&mut first), framed(b"last"), "what came before the end is answered");
    let mut second = server.connect();
    server.works(&mut second);
    drop(second);
    server.until(|server| server.clients.count() == 0);
    let [first, second] = server.machine.opened[..] else { panic!() };
    assert_eq!(first.slot, second.slot);
    assert_ne!(first.generation, second.generation);
    assert_eq!(server.machine.closed, [first, second]);
}

#[test]
fn a_closed_client_gets_its_last_reply() {
    let mut server = server(|_| {});
    for _ in 0..50 {
        let mut stream = server.connect();
        stream.write_all(&[framed(b"one"), framed(b"bye"), framed(b"two")].concat()).unwrap();
        let received = server.rest(&mut stream);
        assert!(received.starts_with(&[framed(b"one"), framed(b"bye")].concat()), "{received:?}");
    }
    assert!(server.machine.closed.is_empty(), "the replica knows already");
    assert_eq!(server.clients.count(), 0);
    assert_eq!(server.clients.metrics.connections_closed, 50);
}
