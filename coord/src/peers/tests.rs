//! Streams between replicas over real loopback sockets, driven by hand.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use super::hello::{HELLO_SIZE, Hello, HelloAnswer, frame};
use super::*;
use crate::config::{Member, Role};
use crate::socket;

const TOKENS: Tokens = Tokens { listener: Token(2), outgoing: 1 << 32, incoming: 2 << 32 };
/// The time that a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// One replica's end, with a clock of its own that runs faster than the real one.
struct End {
    peers: Peers,
    poll: Poll,
    port: u16,
    now_ms: u64,
    shared: Vec<u8>,
    resolved: flume::Receiver<Resolved>,
    /// What happened, as text.
    seen: Vec<String>,
    directory: tempfile::TempDir,
}

fn end(cluster_id: u64, id: u64, store_id: u64) -> End {
    end_in(tempfile::tempdir().unwrap(), 0, cluster_id, id, store_id)
}

fn end_in(directory: tempfile::TempDir, port: u16, cluster_id: u64, id: u64, store_id: u64) -> End {
    let poll = Poll::new().unwrap();
    let listener = socket::listen((Ipv4Addr::LOCALHOST, port).into(), 8).unwrap();
    let port = listener.local_addr().unwrap().port();
    let known = Known::load(directory.path()).unwrap();
    let admission = Admission::new(cluster_id, id, store_id, known);
    let (sender, resolved) = flume::unbounded();
    let resolver = Resolver::start(move |it| sender.send(it).unwrap_or_default()).unwrap();
    let registry = poll.registry().try_clone().unwrap();
    let peers = Peers::new(TOKENS, registry, Some(listener), admission, resolver).unwrap();
    let shared = vec![0; 4096];
    End { peers, poll, port, now_ms: 0, shared, resolved, seen: Vec::new(), directory }
}

fn member(id: u64, port: u16) -> Member {
    Member {
        id,
        peer_address: format!("127.0.0.1:{port}"),
        election_port: 1,
        role: Role::Participant,
        client_address: None,
    }
}

/// Builds the company of these as voting members, for a replica with data.
fn company(members: &[Member]) -> Company {
    let voters = members.iter().map(|member| member.id).collect();
    Company { members: members.to_vec(), voters, ..Company::default() }
}

impl End {
    fn pass(&mut self) {
        let mut events = Events::with_capacity(64);
        self.poll.poll(&mut events, Some(Duration::from_millis(1))).unwrap();
        for event in &events {
            self.peers.ready(event.token());
        }
        for resolved in self.resolved.try_iter() {
            self.peers.resolved(self.now_ms, resolved);
        }
        let seen = &mut self.seen;
        self.peers.pass(self.now_ms, &mut self.shared, &mut |event| {
            seen.push(match event {
                Event::PeerConnected { peer } => format!("connected {peer}"),
                Event::PeerLost { peer } => format!("lost {peer}"),
                Event::PeerGone { peer } => format!("gone {peer}"),
                Event::PeerMessage { peer, message } => {
                    format!("{peer}: {}", String::from_utf8_lossy(message))
                }
                other => panic!("{other:?} is not about peers"),
            });
        });
        self.peers.flush(self.now_ms);
        self.now_ms += 10;
    }

    fn trouble(&self, peer: u64) -> String {
        let status = self.peers.status();
        let status = status.iter().find(|status| status.id == peer).unwrap();
        status.trouble.clone().unwrap_or_default()
    }
}

/// Runs all ends until `done`.
fn until(ends: &mut [&mut End], done: impl Fn(&[&mut End]) -> bool) {
    let began = Instant::now();
    while !done(ends) {
        for end in ends.iter_mut() {
            end.pass();
        }
        let seen: Vec<_> = ends.iter().map(|end| (&end.seen, end.peers.status())).collect();
        assert!(began.elapsed() < PATIENCE, "{seen:?}");
    }
}

fn introduce(one: &mut End, two: &mut End) {
    one.peers.set_company(&company(&[member(2, two.port)]));
    two.peers.set_company(&company(&[member(1, one.port)]));
}

fn connected(one: &mut End, two: &mut End) {
    until(&mut [one, two], |ends| {
        ends[0].seen.contains(&"connected 2".into()) && ends[1].seen.contains(&"connected 1".into())
    });
}

/// Sends a hello over a socket of our own. Returns the stream, and the answer.
fn greet(end: &mut End, hello: &[u8]) -> (TcpStream, Option<HelloAnswer>) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, end.port)).unwrap();
    stream.write_all(hello).unwrap();
    stream.set_nonblocking(true).unwrap();
    let (mut bytes, began) = (Vec::new(), Instant::now());
    loop {
        end.pass();
        let ended = stream.read_to_end(&mut bytes).is_ok();
        let answer = HelloAnswer::decode(&bytes).unwrap();
        if answer.is_some() || ended {
            return (stream, answer);
        }
        assert!(began.elapsed() < PATIENCE);
    }
}

fn hello(cluster_id: u64, sender: u64, store_id: u64, receiver: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let features = if cluster_id == 0 { hello::IS_EMPTY } else { 0 };
    Hello { features, cluster_id, sender, store_id, receiver }.encode(&mut out);
    out
}

/// True if the other side has closed the stream.
fn is_closed(mut stream: TcpStream) -> bool {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match stream.read(&mut [0; 8]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

fn refusal(end: &mut End, hello: &[u8]) -> String {
    greet(end, hello).1.unwrap().refusal.unwrap_or_default()
}

#[test]
fn messages_arrive_whole_and_in_order() {
    let (mut one, mut two) = (end(9, 1, 11), end(9, 2, 22));
    introduce(&mut one, &mut two);
    connected(&mut one, &mut two);
    let long = "x".repeat(300_000);
    for message in ["a", "", &long, "b"] {
        one.peers.send(one.now_ms, 2, message.as_bytes());
    }
    two.peers.send(two.now_ms, 1, b"back");
    until(&mut [&mut one, &mut two], |ends| {
        ends[1].seen.contains(&"1: b".into()) && ends[0].seen.contains(&"2: back".into())
    });
    let heard: Vec<&String> = two.seen.iter().filter(|text| text.starts_with("1: ")).collect();
    assert!(heard == [&"1: a".to_owned(), &format!("1: {long}"), &"1: b".to_owned()]);
    assert!(two.peers.status()[0].sends && two.peers.status()[0].hears);
}

#[test]
fn a_name_is_looked_up_and_one_without_an_address_is_told() {
    let (mut one, mut two) = (end(9, 1, 11), end(9, 2, 22));
    two.peers.set_company(&company(&[member(1, one.port)]));
    let named = |id, host: &str, port| Member {
        peer_address: format!("{host}:{port}"),
        ..member(id, port)
    };
    let members = [named(2, "localhost", two.port), named(3, "nowhere.invalid", 1)];
    one.peers.set_company(&company(&members));
    until(&mut [&mut one, &mut two], |ends| {
        ends[0].seen.contains(&"connected 2".into()) && !ends[0].trouble(3).is_empty()
    });
}

#[test]
fn a_broken_stream_is_told_and_dialled_again() {
    let (mut one, mut two) = (end(9, 1, 11), end(9, 2, 22));
    introduce(&mut one, &mut two);
    connected(&mut one, &mut two);
    let (port, directory) = (two.port, std::mem::replace(&mut two.directory, one_directory()));
    drop(two);
    until(&mut [&mut one], |ends| ends[0].seen.contains(&"gone 2".into()));
    // It is told once, and only behind the loss; a later refused dial says nothing new.
    for _ in 0..100 {
        one.pass();
    }
    assert_eq!(one.seen[1..], ["lost 2", "gone 2"]);
    one.seen.clear();
    let mut two = end_in(directory, port, 9, 2, 22);
    two.peers.set_company(&company(&[member(1, one.port)]));
    connected(&mut one, &mut two);
    one.peers.send(one.now_ms, 2, b"again");
    until(&mut [&mut one, &mut two], |ends| ends[1].seen.contains(&"1: again".into()));
}

#[test]
fn a_stream_that_breaks_while_the_peer_lives_does_not_mean_that_it_is_gone() {
    let (mut one, mut two) = (end(9, 1, 11), end(9, 2, 22));
    introduce(&mut one, &mut two);
    connected(&mut one, &mut two);
    one.seen.clear();
    two.peers.found(two.now_ms, None).unwrap();
    until(&mut [&mut one, &mut two], |ends| ends[0].seen.contains(&"lost 2".into()));
    for _ in 0..100 {
        one.pass();
        two.pass();
    }
    assert!(!one.seen.contains(&"gone 2".into()), "{:?}", one.seen);
}

fn one_directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_peer_of_another_cluster_is_refused() {
    let (mut one, mut two) = (end(9, 1, 11), end(8, 2, 22));
    introduce(&mut one, &mut two);
    until(&mut [&mut one, &mut two], |ends| ends[0].trouble(2).contains("cluster"));
    assert!(one.trouble(2).contains("belongs to cluster 0000000000000009"), "{}", one.trouble(2));
    assert!(one.seen.is_empty() && two.seen.is_empty());
}

#[test]
fn a_replica_with_another_id_is_refused() {
    let mut two = end(9, 2, 22);
    let why = refusal(&mut two, &hello(9, 1, 11, 3));
    assert!(why.contains("this is replica 2, not 3"), "{why}");
    let why = refusal(&mut two, &hello(9, 2, 11, 2));
    assert!(why.contains("two replicas have the id 2"), "{why}");
    let why = refusal(&mut two, &hello(9, 1, 22, 2));
    assert!(why.contains("copies of one data directory"), "{why}");
}

#[test]
fn a_replica_that_lost_its_data_is_refused_until_it_is_added_again() {
    let mut two = end(9, 2, 22);
    let members = [member(1, 1)];
    two.peers.set_company(&company(&members));
    assert_eq!(refusal(&mut two, &hello(9, 1, 11, 2)), "");
    let why = refusal(&mut two, &hello(9, 1, 12, 2));
    assert!(why.contains("replica 1 has lost its data"), "{why}");
    // A process that starts later refuses it too.
    let directory = std::mem::replace(&mut two.directory, one_directory());
    drop(two);
    let mut two = end_in(directory, 0, 9, 2, 22);
    two.peers.set_company(&company(&members));
    let why = refusal(&mut two, &hello(9, 1, 12, 2));
    assert!(why.contains("replica 1 has lost its data"), "{why}");
    two.peers.set_company(&company(&[]));
    two.peers.set_company(&company(&members));
    assert_eq!(refusal(&mut two, &hello(9, 1, 12, 2)), "");
}

#[test]
fn a_replica_that_votes_and_comes_without_data_is_refused_by_those_it_never_met() {
    let mut two = end(9, 2, 22);
    let members = [member(1, 1), member(3, 1)];
    let guests = vec![3];
    two.peers.set_company(&Company { voters: vec![1], guests, ..company(&members) });
    let why = refusal(&mut two, &hello(0, 1, 11, 2));
    assert!(why.contains("replica 1 has lost its data"), "{why}");
    // A joining replica has no data yet, and may lose its directory once more before it has.
    assert_eq!(refusal(&mut two, &hello(0, 3, 33, 2)), "");
    assert_eq!(refusal(&mut two, &hello(0, 3, 34, 2)), "");
    // From its membership on, the last directory counts.
    two.peers.set_company(&company(&members));
    let why = refusal(&mut two, &hello(9, 3, 33, 2));
    assert!(why.contains("replica 3 has lost its data"), "{why}");
    assert_eq!(refusal(&mut two, &hello(9, 3, 34, 2)), "");
}

#[test]
fn a_replica_that_votes_and_lost_its_data_is_refused_also_with_a_store_that_was_met() {
    let mut two = end(9, 2, 22);
    let members = [member(1, 1)];
    // The replica was met before it was known as a member. The directory of then is its store.
    two.peers.set_company(&Company { voters: vec![], guests: vec![1], ..company(&members) });
    assert_eq!(refusal(&mut two, &hello(0, 1, 11, 2)), "");
    two.peers.set_company(&company(&members));
    let why = refusal(&mut two, &hello(0, 1, 11, 2));
    assert!(why.contains("replica 1 has lost its data"), "{why}");
    assert_eq!(refusal(&mut two, &hello(9, 1, 11, 2)), "", "it got its data in the meantime");
}

#[test]
fn a_replica_that_votes_and_names_no_cluster_has_lost_its_data_whatever_it_says() {
    let mut two = end(9, 2, 22);
    two.peers.set_company(&company(&[member(1, 1)]));
    let mut forged = Vec::new();
    Hello { features: 0, cluster_id: 0, sender: 1, store_id: 11, receiver: 2 }.encode(&mut forged);
    let why = refusal(&mut two, &forged);
    assert!(why.contains("replica 1 has lost its data"), "{why}");
}

#[test]
fn replicas_without_data_talk_and_none_takes_a_cluster_from_the_other() {
    let (mut one, mut two) = (end(0, 1, 11), end(0, 2, 22));
    // A replica without data knows no voters.
    let guest = |id, port| Company {
        voters: Vec::new(),
        guests: vec![id],
        is_empty: true,
        ..company(&[member(id, port)])
    };
    one.peers.set_company(&guest(2, two.port));
    two.peers.set_company(&guest(1, one.port));
    connected(&mut one, &mut two);
    assert_eq!(refusal(&mut one, &hello(9, 3, 33, 1)), "");
    let why = refusal(&mut one, &hello(8, 4, 44, 1));
    assert!(why.contains("belongs to cluster 0000000000000008"), "{why}");
}

#[test]
fn a_replica_that_joins_takes_the_cluster_and_keeps_it() {
    let directory = one_directory();
    Known::load(directory.path()).unwrap().join(Some(0)).unwrap();
    let mut new = end_in(directory, 0, 0, 4, 44);
    let why = refusal(&mut new, &hello(0, 5, 55, 4));
    assert!(why.contains("waits to join"), "{why}");
    let (_stream, answer) = greet(&mut new, &hello(9, 1, 11, 4));
    let answer = answer.unwrap();
    assert_eq!((answer.refusal, answer.hello.cluster_id), (None, 9));
    let why = refusal(&mut new, &hello(8, 2, 22, 4));
    assert!(why.contains("cluster"), "{why}");
    assert_eq!(Known::load(new.directory.path()).unwrap().joined(), Some(9));
}

#[test]
fn a_damaged_greeting_is_refused() {
    let mut two = end(9, 2, 22);
    let good = hello(9, 1, 11, 2);
    for at in 0..HELLO_SIZE {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert_ne!(refusal(&mut two, &bad), "", "byte {at}");
    }
    let why = refusal(&mut two, &[b'G'; HELLO_SIZE]);
    assert!(why.contains("port between replicas"), "{why}");
    assert_eq!(refusal(&mut two, &good), "");
}

#[test]
fn a_damaged_frame_ends_its_stream_and_nothing_else() {
    let mut two = end(9, 2, 22);
    let (mut bad, _) = greet(&mut two, &hello(9, 1, 11, 2));
    let (mut good, _) = greet(&mut two, &hello(9, 3, 33, 2));
    let mut bytes = Vec::new();
    frame(&mut bytes, b"first");
    frame(&mut bytes, b"second");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    bad.write_all(&bytes).unwrap();
    until(&mut [&mut two], |ends| ends[0].seen.contains(&"1: first".into()));
    assert!(is_closed(bad));
    bytes.clear();
    frame(&mut bytes, b"third");
    good.write_all(&bytes).unwrap();
    until(&mut [&mut two], |ends| ends[0].seen.contains(&"3: third".into()));
    assert!(!two.seen.contains(&"1: second".into()));
}

#[test]
fn garbage_never_gets_through() {
    let mut two = end(9, 2, 22);
    let mut random = fastrand::Rng::with_seed(3);
    for round in 0..50 {
        let (mut stream, _) = greet(&mut two, &hello(9, 1, 11, 2));
        let garbage: Vec<u8> = (0..random.usize(8..5000)).map(|_| random.u8(..)).collect();
        stream.write_all(&garbage).unwrap();
        for _ in 0..5 {
            two.pass();
        }
        assert!(two.seen.is_empty(), "round {round}: {:?}", two.seen);
    }
}

#[test]
fn a_newer_stream_of_a_peer_replaces_the_older() {
    let mut two = end(9, 2, 22);
    let (old, _) = greet(&mut two, &hello(9, 1, 11, 2));
    let (_new, _) = greet(&mut two, &hello(9, 1, 11, 2));
    assert!(is_closed(old));
    assert_eq!(two.peers.incoming.iter().flatten().count(), 1);
}

#[test]
fn a_silent_stream_is_closed_and_a_living_one_is_not() {
    let (mut one, mut two) = (end(9, 1, 11), end(9, 2, 22));
    introduce(&mut one, &mut two);
    connected(&mut one, &mut two);
    let (silent, _) = greet(&mut two, &hello(9, 3, 33, 2));
    // No message is sent for more than ten seconds of their clocks.
    let end_ms = two.now_ms + 15_000;
    until(&mut [&mut one, &mut two], |ends| ends[1].now_ms > end_ms);
    assert!(is_closed(silent));
    assert_eq!(one.seen, ["connected 2"], "empty frames kept it alive");
    assert_eq!(two.seen, ["connected 1"]);
}

#[test]
fn too_much_waiting_breaks_the_stream() {
    let (mut one, mut two) = (end(9, 1, 11), end(9, 2, 22));
    introduce(&mut one, &mut two);
    connected(&mut one, &mut two);
    let message = vec![0; 8 << 20];
    for _ in 0..40 {
        one.peers.send(one.now_ms, 2, &message);
        one.peers.flush(one.now_ms);
    }
    one.pass();
    assert_eq!(one.seen, ["connected 2", "lost 2"]);
    assert!(one.trouble(2).contains("does not keep up"), "{}", one.trouble(2));
}

#[test]
fn a_member_that_left_is_not_dialled_any_more() {
    let (mut one, mut two) = (end(9, 1, 11), end(9, 2, 22));
    introduce(&mut one, &mut two);
    connected(&mut one, &mut two);
    one.peers.set_company(&company(&[]));
    one.pass();
    assert_eq!(one.seen, ["connected 2", "lost 2"]);
    assert!(one.peers.status().is_empty());
}

#[test]
fn the_file_of_known_replicas_names_a_bad_line() {
    let directory = one_directory();
    let path: &Path = directory.path();
    std::fs::write(path.join("peers"), "# head\nreplica 2 store 0016\nreplica x\n").unwrap();
    let error = Known::load(path).unwrap_err().to_string();
    assert!(error.contains("line 3") && error.contains("replica x"), "{error}");
}
