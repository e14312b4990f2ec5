//! Whole replicas in this process, with real directories and sockets.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use millrace_proto::zookeeper::record::OPEN_ACL;
use millrace_proto::zookeeper::{
    ConnectRequest, ConnectResponse, CreateKind, Reader, ReplyHeader, Request, Writer,
};
use tempfile::TempDir;

use super::*;
use crate::config::{Member, Role};
use crate::report::Mode;

/// The time that a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(90);

/// A client that waits for each answer.
struct Client {
    stream: TcpStream,
    xid: i32,
}

impl Client {
    /// Opens a session. Fails if the replica closes the connection.
    fn open(address: SocketAddr) -> io::Result<Client> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut record = Vec::new();
        let request = ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: 0,
            timeout_ms: 2000,
            session: 0,
            password: Some(&[0; 16]),
            read_only: Some(false),
        };
        request.encode(&mut Writer::new(&mut record));
        send(&mut stream, &record)?;
        let response = ConnectResponse::decode(&receive(&mut stream)?).unwrap();
        assert_ne!(response.session, 0);
        Ok(Client { stream, xid: 0 })
    }

    /// Sends a request and returns the error code and body of the reply.
    fn ask(&mut self, request: &Request<'_>) -> io::Result<(i32, Vec<u8>)> {
        self.xid += 1;
        let mut message = Vec::new();
        let mut writer = Writer::new(&mut message);
        writer.int(self.xid);
        writer.int(request.code());
        request.encode(&mut writer);
        send(&mut self.stream, &message)?;
        let message = receive(&mut self.stream)?;
        let mut reader = Reader::new(&message);
        let header = ReplyHeader::decode(&mut reader).unwrap();
        assert_eq!(header.xid, self.xid);
        Ok((header.error, reader.rest().to_vec()))
    }

    fn create(&mut self, path: &str, data: &[u8]) -> io::Result<i32> {
        let acl = Some(vec![OPEN_ACL]);
        let kind = CreateKind::Create;
        let request = Request::Create { kind, path, data: Some(data), acl, flags: 0, ttl_ms: 0 };
        Ok(self.ask(&request)?.0)
    }

    fn get(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let (error, body) = self.ask(&Request::GetData { path, watch: false })?;
        let data = || Reader::new(&body).buffer().unwrap().unwrap_or_default().to_vec();
        Ok((error == 0).then(data))
    }
}

fn send(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    stream.write_all(&[&(message.len() as u32).to_be_bytes(), message].concat())
}

fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// Tries until it succeeds, because leaders are elected and streams are opened.
fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn client(coord: &Coord) -> Client {
    eventually("a session", || Client::open(coord.client_address()).ok())
}

fn alone(directory: &Path) -> Coord {
    Coord::start(Config::tiny(directory.to_owned())).unwrap()
}

fn word(coord: &Coord, word: &[u8]) -> String {
    let mut stream = TcpStream::connect(coord.client_address()).unwrap();
    stream.write_all(word).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn mode(coord: &Coord) -> Mode {
    let report = coord.operator().report(Wanted::default());
    report.recv_timeout(PATIENCE).unwrap().snapshot.mode
}

#[test]
fn what_a_replica_acknowledged_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let coord = alone(directory.path());
        let mut client = client(&coord);
        for earlier in 0..round {
            let data = client.get(&format!("/{earlier}")).unwrap();
            assert_eq!(data, Some(vec![earlier; 10]), "round {round}");
        }
        assert_eq!(client.create(&format!("/{round}"), &[round; 10]).unwrap(), 0);
        match round % 2 {
            0 => coord.stop().unwrap(),
            _ => drop(coord),
        }
    }
}

#[test]
fn words_and_reports_tell_the_mode() {
    let directory = tempfile::tempdir().unwrap();
    let coord = alone(directory.path());
    client(&coord).create("/a", b"data").unwrap();
    assert_eq!(word(&coord, b"ruok"), "imok");
    let text = word(&coord, b"srvr");
    assert!(text.contains("Mode: standalone"), "{text}");
    let refused = word(&coord, b"crst");
    assert!(refused.contains("not in the whitelist"), "{refused}");
    assert_eq!(mode(&coord), Mode::Standalone);
    let report = coord.operator().report(Wanted::default()).recv_timeout(PATIENCE).unwrap();
    let metrics = report.snapshot.metrics;
    assert!(metrics.bytes_received > 0 && metrics.bytes_sent > 0);
    assert!(metrics.sync_latency.count > 0 && metrics.connections_opened >= 4);
}

#[test]
fn a_digest_and_the_last_checkpoint_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let coord = alone(directory.path());
    assert_eq!(client(&coord).create("/a", b"data").unwrap(), 0);
    let report = |coord: &Coord, wanted| {
        coord.operator().report(wanted).recv_timeout(PATIENCE).unwrap().snapshot
    };
    assert_eq!(report(&coord, Wanted::default()).digest, None, "it is computed only on request");
    let wanted = Wanted::for_page("/commands/hash", &Config::tiny("unused".into()));
    let digest = report(&coord, wanted).digest.expect("a digest");
    let text = coord.operator().ask(AdminRequest::Digest).recv_timeout(PATIENCE).unwrap().unwrap();
    assert!(text.ends_with(&format!("digest {digest:016x}")), "{text}");
    let begun = Clock::start().now().wall_ms;
    let told = coord.operator().ask(AdminRequest::Checkpoint).recv_timeout(PATIENCE).unwrap();
    assert!(told.is_ok(), "{told:?}");
    let snapshot = report(&coord, Wanted::default());
    let (durable, durable_ms) = snapshot.checkpoint.expect("a checkpoint");
    assert!(durable >= 2, "a session and a node, not {durable}");
    assert!(durable <= snapshot.zxid && durable_ms >= begun, "{durable} at {durable_ms}");
    let zxid = snapshot.zxid;
    coord.stop().unwrap();

    let before = Clock::start().now().wall_ms;
    let coord = alone(directory.path());
    let (durable, changed_ms) = report(&coord, Wanted::default()).checkpoint.expect("a state");
    assert!(durable >= zxid && changed_ms <= before, "{durable} of {zxid}, at {changed_ms}");
}

#[test]
fn two_replicas_cannot_share_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let coord = alone(directory.path());
    let second = Coord::start(Config::tiny(directory.path().to_owned()));
    assert!(matches!(second, Err(StartError::Store(StoreError::Locked { .. }))));
    drop(coord);
    alone(directory.path()).stop().unwrap();
}

#[test]
fn a_directory_of_another_replica_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    alone(directory.path()).stop().unwrap();
    let config = Config { replica_id: 2, ..Config::tiny(directory.path().to_owned()) };
    let Err(error) = Coord::start(config) else { panic!("it started") };
    assert!(error.to_string().contains("holds the data of replica 1"), "{error}");
}

#[test]
fn an_address_in_use_is_named() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let coord = alone(one.path());
    let client_address = coord.client_address();
    let config = Config { client_address, ..Config::tiny(two.path().to_owned()) };
    let Err(error) = Coord::start(config) else { panic!("it started") };
    assert!(error.to_string().contains(&client_address.to_string()), "{error}");
}

#[test]
fn an_operator_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let coord = alone(directory.path());
    client(&coord).create("/a", b"data").unwrap();
    let operator = coord.operator();
    let durable = operator.ask(AdminRequest::Checkpoint).recv_timeout(PATIENCE).unwrap();
    assert!(durable.is_ok(), "{durable:?}");
    let copy = directory.path().join("copy");
    let copied = operator.backup(copy.clone()).recv_timeout(PATIENCE).unwrap();
    assert!(copied.is_ok() && copy.is_file(), "{copied:?}");
    operator.stop();
    coord.wait().unwrap();
    let late = operator.ask(AdminRequest::Digest).recv_timeout(PATIENCE);
    assert!(late.is_err(), "the replica has stopped");
}

/// Lists members at ports that were free a moment ago. They are below the kernel's range for clients, which
/// could take one in the meantime.
fn members(count: u64) -> Vec<Member> {
    let listen = |_| {
        std::iter::repeat_with(|| fastrand::u16(12_000..32_000))
            .find_map(|port| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
            .unwrap()
    };
    let listeners: Vec<_> = (0..count).map(listen).collect();
    let port = |listener: &std::net::TcpListener| listener.local_addr().unwrap().port();
    (1..).zip(&listeners).map(|(id, listener)| member(id, port(listener))).collect()
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

fn config(id: u64, members: &[Member], directory: &TempDir) -> Config {
    Config {
        replica_id: id,
        members: members.to_vec(),
        ..Config::tiny(directory.path().to_owned())
    }
}

fn leader(coords: &[Option<Coord>]) -> usize {
    eventually("a leader", || {
        let is_leader =
            |coord: &Option<Coord>| coord.as_ref().is_some_and(|coord| mode(coord) == Mode::Leader);
        coords.iter().position(is_leader)
    })
}

#[test]
fn three_replicas_go_on_without_one_and_take_it_back() {
    let members = members(3);
    let directories: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let start = |index: usize| {
        let config = config(index as u64 + 1, &members, &directories[index]);
        Some(Coord::start(config).unwrap())
    };
    let mut coords: Vec<Option<Coord>> = (0..3).map(start).collect();
    for round in 0..3 {
        let path = format!("/{round}");
        let gone = leader(&coords);
        let next = (gone + 1) % 3;
        let mut client = client(coords[next].as_ref().unwrap());
        assert_eq!(client.create(&path, b"with three").unwrap(), 0);
        coords[gone].take().unwrap().stop().unwrap();
        let written = eventually("a write with two", || {
            let mut client = Client::open(coords[next].as_ref()?.client_address()).ok()?;
            client.create(&format!("{path}/two"), b"with two").ok()
        });
        // An attempt with a lost answer may have created it.
        assert!([0, -110].contains(&written), "{written}");
        coords[gone] = start(gone);
        let back = coords[gone].as_ref().unwrap();
        let data = eventually("a read of what it missed", || {
            Client::open(back.client_address()).ok()?.get(&format!("{path}/two")).ok()?
        });
        assert_eq!(data, b"with two");
    }
}

#[test]
fn a_replica_that_lost_its_directory_is_not_taken_back() {
    let members = members(3);
    let mut directories: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut coords: Vec<Option<Coord>> = (0..3)
        .map(|index| Coord::start(config(index as u64 + 1, &members, &directories[index])).ok())
        .collect();
    let lost = (leader(&coords) + 1) % 3;
    let id = lost as u64 + 1;
    let all_know_it = || {
        coords.iter().enumerate().filter(|(index, _)| *index != lost).all(|(_, coord)| {
            let report = coord.as_ref().unwrap().operator().report(Wanted::default());
            let peers = report.recv_timeout(PATIENCE).unwrap().peers;
            peers.iter().any(|peer| peer.id == id && peer.sends && peer.hears)
        })
    };
    eventually("streams", || all_know_it().then_some(()));
    coords[lost].take().unwrap().stop().unwrap();
    directories[lost] = tempfile::tempdir().unwrap();
    coords[lost] = Coord::start(config(id, &members, &directories[lost])).ok();
    let keeper = coords[(lost + 1) % 3].as_ref().unwrap().operator();
    eventually("a refusal", || {
        let report = keeper.report(Wanted::default()).recv_timeout(PATIENCE).unwrap();
        let peer = report.peers.into_iter().find(|peer| peer.id == id)?;
        let is_refused = peer.trouble.is_some_and(|why| why.contains("has lost its data"));
        (is_refused && !peer.sends && !peer.hears).then_some(())
    });
}

#[test]
fn a_replica_that_joins_gets_the_state_when_it_is_added() {
    let members = members(2);
    let directories: Vec<TempDir> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = Coord::start(config(1, &members[..1], &directories[0])).unwrap();
    assert_eq!(client(&first).create("/a", b"data").unwrap(), 0);
    let second = Coord::join(config(2, &members, &directories[1])).unwrap();
    let port = second.client_address().port();
    let line = format!("server.2={}:1:participant;{port}", members[1].peer_address);
    let request = AdminRequest::Reconfigure { joining: Some(line), leaving: None };
    let answer = first.operator().ask(request).recv_timeout(PATIENCE).unwrap();
    assert!(answer.is_ok(), "{answer:?}");
    let data =
        eventually("the state", || Client::open(second.client_address()).ok()?.get("/a").ok()?);
    assert_eq!(data, b"data");
    second.stop().unwrap();
    // It is a member now, and returns as one.
    let second = Coord::start(config(2, &members, &directories[1])).unwrap();
    let data = eventually("the state again", || {
        Client::open(second.client_address()).ok()?.get("/a").ok()?
    });
    assert_eq!(data, b"data");
}

/// Starts the replicas with these ids on one list.
fn start(ids: &[u64], list: &[Member], directories: &[TempDir]) -> Vec<Option<Coord>> {
    let start = |&id: &u64| Coord::start(config(id, list, &directories[id as usize - 1])).unwrap();
    ids.iter().map(|id| Some(start(id))).collect()
}

/// Says why a replica serves no client; `None` if it serves.
fn waits_for(coord: &Coord) -> Option<String> {
    let report = coord.operator().report(Wanted::default()).recv_timeout(PATIENCE).unwrap();
    report.snapshot.waits_for
}

fn directories(count: usize) -> Vec<TempDir> {
    (0..count).map(|_| tempfile::tempdir().unwrap()).collect()
}

/// Waits until a replica reads the data at a path. It must not say that the path is missing.
fn reads(coord: &Coord, path: &str) -> Vec<u8> {
    eventually("a read", || Client::open(coord.client_address()).ok()?.get(path).ok()).unwrap()
}

/// Long enough for two replicas to elect a leader, and more.
const A_WHILE: Duration = Duration::from_millis(2500);

#[test]
fn a_replica_by_itself_becomes_the_first_of_three_data_and_all() {
    let (list, directories) = (members(3), directories(3));
    let first = Coord::start(config(1, &[], &directories[0])).unwrap();
    assert_eq!(client(&first).create("/old", b"data").unwrap(), 0);
    first.stop().unwrap();
    // The two without data come first. They are a majority, and begin nothing.
    let mut coords = start(&[2, 3], &list, &directories);
    std::thread::sleep(A_WHILE);
    for coord in coords.iter().flatten() {
        assert_eq!(mode(coord), Mode::NotServing);
        assert!(waits_for(coord).unwrap().contains("waiting for 1"), "{:?}", waits_for(coord));
    }
    coords.insert(0, start(&[1], &list, &directories).remove(0));
    for coord in coords.iter().flatten() {
        assert_eq!(reads(coord, "/old"), b"data");
    }
    assert_eq!(client(coords[1].as_ref().unwrap()).create("/new", b"two").unwrap(), 0);
    for coord in coords.iter().flatten() {
        let data = eventually("what another wrote", || {
            Client::open(coord.client_address()).ok()?.get("/new").ok()?
        });
        assert_eq!(data, b"two");
    }
    // All of them vote, so any one may stop.
    let all_vote = || {
        coords.iter().flatten().any(|coord| {
            let report = coord.operator().report(Wanted::default());
            let raft = report.recv_timeout(PATIENCE).unwrap().snapshot.raft;
            raft.followers.len() == 2 && raft.followers.iter().all(|follower| follower.is_voter)
        })
    };
    eventually("all three vote", || all_vote().then_some(()));
    let gone = leader(&coords);
    coords[gone].take().unwrap().stop().unwrap();
    assert_eq!(reads(coords[(gone + 1) % 3].as_ref().unwrap(), "/old"), b"data");
}

#[test]
fn a_replica_by_itself_serves_nobody_while_its_list_is_alone() {
    let (list, directories) = (members(3), directories(3));
    let first = Coord::start(config(1, &[], &directories[0])).unwrap();
    assert_eq!(client(&first).create("/old", b"data").unwrap(), 0);
    first.stop().unwrap();
    let first = start(&[1], &list, &directories).remove(0).unwrap();
    std::thread::sleep(A_WHILE);
    assert_eq!(mode(&first), Mode::NotServing);
    assert!(
        waits_for(&first).unwrap().contains("when 2 of the 3 listed"),
        "{:?}",
        waits_for(&first)
    );
    let second = start(&[2], &list, &directories).remove(0).unwrap();
    assert_eq!(reads(&second, "/old"), b"data");
}

#[test]
fn of_two_with_data_and_one_list_one_at_most_serves() {
    let (list, directories) = (members(3), directories(3));
    for (id, path) in [(1, "/one"), (2, "/two")] {
        let alone = Coord::start(config(id, &[], &directories[id as usize - 1])).unwrap();
        assert_eq!(client(&alone).create(path, b"data").unwrap(), 0);
        alone.stop().unwrap();
    }
    let coords = start(&[1, 2, 3], &list, &directories);
    let serving = || {
        let serves = |coord: &&Option<Coord>| mode(coord.as_ref().unwrap()) != Mode::NotServing;
        coords.iter().filter(serves).count()
    };
    eventually("one and the new one", || (serving() == 2).then_some(()));
    std::thread::sleep(A_WHILE);
    assert_eq!(serving(), 2);
    assert!(mode(coords[2].as_ref().unwrap()) != Mode::NotServing, "the new one is among them");
}

#[test]
fn a_majority_that_lost_its_data_does_not_outvote_the_one_that_has_it() {
    let (list, mut directories) = (members(3), directories(3));
    let mut coords = start(&[1, 2, 3], &list, &directories);
    assert_eq!(client(coords[0].as_ref().unwrap()).create("/old", b"data").unwrap(), 0);
    for coord in coords.iter().flatten() {
        assert_eq!(reads(coord, "/old"), b"data");
    }
    // This works with each survivor, even if the one that would begin an ensemble is lost.
    for lost in [[1, 2], [0, 1]] {
        for coord in &mut coords {
            coord.take().unwrap().stop().unwrap();
        }
        for index in lost {
            directories[index] = tempfile::tempdir().unwrap();
        }
        coords = (0..3).map(|_| None).collect();
        for index in lost {
            coords[index] = start(&[index as u64 + 1], &list, &directories).remove(0);
        }
        std::thread::sleep(A_WHILE);
        let left = (0..3).find(|index| !lost.contains(index)).unwrap();
        if lost == [1, 2] {
            coords[left] = start(&[left as u64 + 1], &list, &directories).remove(0);
            std::thread::sleep(A_WHILE);
        } else {
            coords[left] = start(&[left as u64 + 1], &list, &directories).remove(0);
        }
        for coord in coords.iter().flatten() {
            assert_eq!(mode(coord), Mode::NotServing);
        }
    }
}

#[test]
fn a_member_that_lost_its_data_serves_again_when_it_was_removed_and_added() {
    let (list, mut directories) = (members(3), directories(3));
    let mut coords = start(&[1, 2, 3], &list, &directories);
    assert_eq!(client(coords[0].as_ref().unwrap()).create("/old", b"data").unwrap(), 0);
    for coord in coords.iter().flatten() {
        assert_eq!(reads(coord, "/old"), b"data");
    }
    let lost = (leader(&coords) + 1) % 3;
    let id = lost as u64 + 1;
    coords[lost].take().unwrap().stop().unwrap();
    directories[lost] = tempfile::tempdir().unwrap();
    coords[lost] = start(&[id], &list, &directories).remove(0);
    std::thread::sleep(A_WHILE);
    assert_eq!(mode(coords[lost].as_ref().unwrap()), Mode::NotServing);
    let operator = coords[(lost + 1) % 3].as_ref().unwrap().operator();
    let ask = |joining: Option<String>, leaving: Option<String>| {
        let request = AdminRequest::Reconfigure { joining, leaving };
        let answer = operator.ask(request).recv_timeout(PATIENCE).unwrap();
        assert!(answer.is_ok(), "{answer:?}");
    };
    ask(None, Some(id.to_string()));
    // Its directory has no data, so the same one may be used.
    ask(Some(list[lost].to_string()), None);
    assert_eq!(reads(coords[lost].as_ref().unwrap(), "/old"), b"data");
}

#[test]
fn an_edited_list_is_taken_over_through_the_leader() {
    let (list, directories) = (members(5), directories(5));
    let mut coords = start(&[1, 2, 3], &list[..3], &directories);
    assert_eq!(client(coords[0].as_ref().unwrap()).create("/old", b"data").unwrap(), 0);
    coords.extend(start(&[4, 5], &list, &directories));
    // A rolling restart begins with one of the old members, which is enough.
    let restart = |coords: &mut Vec<Option<Coord>>, index: usize, list: &[Member]| {
        coords[index].take().unwrap().stop().unwrap();
        coords[index] = start(&[index as u64 + 1], list, &directories).remove(0);
    };
    restart(&mut coords, 0, &list);
    for coord in coords.iter().flatten() {
        assert_eq!(reads(coord, "/old"), b"data");
    }
    restart(&mut coords, 1, &list);
    assert_eq!(reads(coords[1].as_ref().unwrap(), "/old"), b"data");
    // One leaves by a list. A replica that was not restarted still follows.
    let smaller = [&list[..3], &list[4..]].concat();
    restart(&mut coords, 1, &smaller);
    let four = coords[3].take().unwrap();
    let report = || four.operator().report(Wanted::default()).recv_timeout(PATIENCE);
    eventually("the end of the one that left", || report().is_err().then_some(()));
    let why = four.wait().expect_err("it was removed");
    assert!(why.contains("was removed from the ensemble"), "{why}");
    restart(&mut coords, 2, &list);
    assert_eq!(reads(coords[2].as_ref().unwrap(), "/old"), b"data");
}

#[test]
fn a_list_that_keeps_no_majority_ends_the_start_and_names_the_way() {
    let (list, directories) = (members(5), directories(5));
    let mut coords = start(&[1, 2, 3], &list[..3], &directories);
    assert_eq!(client(coords[0].as_ref().unwrap()).create("/old", b"data").unwrap(), 0);
    assert_eq!(reads(coords[0].as_ref().unwrap(), "/old"), b"data");
    coords[0].take().unwrap().stop().unwrap();
    let replaced = [&list[..1], &list[3..]].concat();
    let refused = |list: &[Member]| match Coord::start(config(1, list, &directories[0])) {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    };
    let text = refused(&replaced);
    assert!(text.contains("millrace coord add") && text.contains("remove"), "{text}");
    let text = refused(&[]);
    assert!(text.contains("names no members") && text.contains("coord remove"), "{text}");
    // The start changed nothing, so the old list still serves.
    coords[0] = start(&[1], &list[..3], &directories).remove(0);
    assert_eq!(reads(coords[0].as_ref().unwrap(), "/old"), b"data");
}

#[test]
fn lists_that_disagree_begin_nothing() {
    let (list, directories) = (members(3), directories(3));
    let one = start(&[1], &list, &directories).remove(0).unwrap();
    let two = start(&[2], &list, &directories).remove(0).unwrap();
    let three = start(&[3], &list[1..], &directories).remove(0).unwrap();
    let why = eventually("a word about it", || {
        waits_for(&three).filter(|why| why.contains("has another list"))
    });
    assert!(why.contains("server lines"), "{why}");
    std::thread::sleep(A_WHILE);
    for coord in [&one, &two, &three] {
        assert_eq!(mode(coord), Mode::NotServing);
    }
}

#[test]
fn notes_about_others_do_not_outlive_the_data() {
    let directory = tempfile::tempdir().unwrap();
    let line = |id| format!("{id}=localhost:{}:1", 3000 + id);
    let text = format!(
        "cluster 09\nreplica 2 store 16\nlisted server.{}\nlisted server.{}\n",
        line(1),
        line(2)
    );
    std::fs::write(directory.path().join("peers"), text).unwrap();
    let mut config = Config::tiny(directory.path().to_owned());
    config.members = [1, 2].map(|id| Member::parse_line(&line(id)).unwrap()).to_vec();
    let opened = open::open(&config, false).unwrap();
    assert_eq!(opened.applied.index, 0);
    assert_eq!((opened.known.listed(), opened.known.joined()), (None, None));
    drop(opened);
    let kept = std::fs::read_to_string(directory.path().join("peers")).unwrap();
    assert!(!kept.contains("listed") && !kept.contains("store"), "{kept}");
}
