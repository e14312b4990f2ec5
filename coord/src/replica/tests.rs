//! One replica and small ensembles, moved by hand: no disk, no network, no clock.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ::raft::eraftpb::{ConfState, Entry};
use millrace_proto::zookeeper::record::OPEN_ACL;
use millrace_proto::zookeeper::{
    ConnectRequest, ConnectResponse, CreateKind, Error, Reader, ReplyHeader, Request, Stat,
    WatchEvent, event, opcode, xid,
};

use super::*;
use crate::store::LogState;

mod births;

/// A log in memory, durable at once.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<(Vec<Entry>, LogState)>>);

impl Log {
    fn append(&self, append: &crate::store::Append) {
        let (entries, state) = &mut *self.0.lock().unwrap();
        if let Some((index, term)) = append.reset {
            entries.clear();
            state.compacted_index = index;
            state.compacted_term = term;
        }
        if let Some(first) = append.entries.first() {
            entries.retain(|entry| entry.index < first.index);
            entries.extend(append.entries.iter().cloned());
        }
        if let Some(hard_state) = &append.hard_state {
            state.hard_state = hard_state.clone();
        }
        state.last_index = entries.last().map_or(state.compacted_index, |entry| entry.index);
    }
}

impl LogReader for Log {
    fn initial(&self) -> Result<LogState, StoreError> {
        Ok(self.0.lock().unwrap().1.clone())
    }

    fn entries(&self, low: u64, high: u64, _bytes_max: u64) -> Result<Vec<Entry>, StoreError> {
        let (entries, _) = &*self.0.lock().unwrap();
        let wanted = entries.iter().filter(|entry| entry.index >= low && entry.index < high);
        Ok(wanted.cloned().collect())
    }

    fn term(&self, index: u64) -> Result<Option<u64>, StoreError> {
        let (entries, _) = &*self.0.lock().unwrap();
        Ok(entries.iter().find(|entry| entry.index == index).map(|entry| entry.term))
    }
}

/// Replicas whose messages arrive at once and whose disks are instant.
struct Ensemble {
    replicas: Vec<Replica>,
    logs: Vec<Log>,
    now: Now,
    /// From, to, bytes.
    messages: VecDeque<(usize, usize, Vec<u8>)>,
    closed: Vec<(usize, ClientId)>,
    stopped: Vec<Option<String>>,
    cut_off: Vec<bool>,
    next_slot: u32,
}

impl Ensemble {
    fn new(count: u64) -> Ensemble {
        Ensemble::with(count, |_| {})
    }

    fn with(count: u64, configure: impl Fn(&mut Config)) -> Ensemble {
        let mut ensemble = Ensemble {
            replicas: Vec::new(),
            logs: Vec::new(),
            now: Now { ms: 1000, wall_ms: 1_700_000_000_000 },
            messages: VecDeque::new(),
            closed: Vec::new(),
            stopped: Vec::new(),
            cut_off: vec![false; count as usize],
            next_slot: 0,
        };
        for id in 1..=count {
            let mut config = Config::tiny(PathBuf::from("unused"));
            config.replica_id = id;
            config.super_digest = Some("super:D/InIHSb7yEEbrWz8b9l71RjZJU=".to_owned());
            configure(&mut config);
            let conf_state = ConfState { voters: (1..=count).collect(), ..ConfState::default() };
            let listed = Listed { members: config.members.clone(), is_forming: false };
            let log = Log::default();
            let applied = Applied { index: 1, term: 1, conf_state };
            log.0.lock().unwrap().1.compacted_index = 1;
            log.0.lock().unwrap().1.compacted_term = 1;
            log.0.lock().unwrap().1.last_index = 1;
            let setup = Setup {
                config,
                identity: StoreIdentity { cluster_id: 1, replica_id: id, store_id: id },
                origin: 1000 + id,
                secret: [id as u8; 32],
                log: Box::new(log.clone()),
                state: State::new(),
                applied,
                joins: false,
                listed: Some(listed),
                now: ensemble.now,
            };
            let mut actions = Vec::new();
            ensemble.replicas.push(Replica::new(setup, &mut actions).unwrap());
            ensemble.logs.push(log);
            ensemble.stopped.push(None);
        }
        for from in 0..count as usize {
            for to in (1..=count).filter(|&to| to != from as u64 + 1) {
                ensemble.handle(from, Event::PeerConnected { peer: to });
            }
        }
        ensemble.run_until(|ensemble| ensemble.leader().is_some());
        ensemble
    }

    fn leader(&self) -> Option<usize> {
        let leaders = self
            .replicas
            .iter()
            .enumerate()
            .filter(|(index, replica)| replica.leadership().1 && !self.cut_off[*index]);
        leaders.max_by_key(|(_, replica)| replica.leadership().0).map(|(index, _)| index)
    }

    fn handle(&mut self, index: usize, event: Event<'_>) {
        let mut actions = Vec::new();
        self.replicas[index].handle(self.now, event, &mut actions);
        self.act(index, actions);
    }

    fn act(&mut self, index: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::SendPeer { peer, message } => {
                    self.messages.push_back((index, peer as usize - 1, message));
                }
                Action::Append { append } => {
                    self.logs[index].append(&append);
                    self.handle(index, Event::LogDurable { number: append.number });
                }
                Action::CloseClient { client } => self.closed.push((index, client)),
                Action::Stop { reason } => self.stopped[index] = Some(reason),
                _ => {}
            }
        }
    }

    /// Runs everything that can happen now.
    fn settle(&mut self) {
        loop {
            let mut is_quiet = true;
            for index in 0..self.replicas.len() {
                let mut actions = Vec::new();
                self.replicas[index].turn(self.now, &mut actions);
                is_quiet &= actions.is_empty();
                self.act(index, actions);
            }
            if is_quiet && self.messages.is_empty() {
                break;
            }
            for (from, to, message) in std::mem::take(&mut self.messages) {
                if !self.cut_off[from] && !self.cut_off[to] {
                    let peer = from as u64 + 1;
                    self.handle(to, Event::PeerMessage { peer, message: &message });
                }
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        let end = self.now.ms + ms;
        while self.now.ms < end {
            self.now.ms += TICK_MS;
            self.now.wall_ms += TICK_MS as i64;
            self.settle();
        }
    }

    #[track_caller]
    fn run_until(&mut self, is_done: impl Fn(&Ensemble) -> bool) {
        for _ in 0..10_000 {
            if is_done(self) {
                return;
            }
            self.pass(TICK_MS);
        }
        panic!("it never happened");
    }

    fn connect(&mut self, replica: usize, session: i64, password: [u8; 16]) -> Connection {
        let client = ClientId { slot: self.next_slot, generation: 1 };
        self.next_slot += 1;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 4000));
        self.handle(replica, Event::ClientOpened { client, address });
        let mut message = Vec::new();
        ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: 0,
            timeout_ms: 4000,
            session,
            password: Some(&password),
            read_only: Some(false),
        }
        .encode(&mut jute_writer(&mut message));
        self.handle(replica, Event::ClientMessage { client, message: &message });
        self.settle();
        let output = self.take_output(replica, client);
        let response =
            cut(&output).first().map(|message| ConnectResponse::decode(message).unwrap());
        Connection { replica, client, response, xid: 0 }
    }

    fn new_session(&mut self, replica: usize) -> Connection {
        let connection = self.connect(replica, 0, [0; 16]);
        assert!(connection.response.is_some_and(|response| response.timeout_ms > 0));
        connection
    }

    fn take_output(&mut self, replica: usize, client: ClientId) -> Vec<u8> {
        self.replicas[replica].output(client).map(std::mem::take).unwrap_or_default()
    }

    /// Hands requests in at once, runs the ensemble, and returns the answers.
    fn ask(&mut self, connection: &mut Connection, requests: &[Request<'_>]) -> Vec<Answer> {
        for request in requests {
            connection.xid += 1;
            let message = connection.message(request);
            let client = connection.client;
            assert!(self.replicas[connection.replica].accepts(client));
            self.handle(connection.replica, Event::ClientMessage { client, message: &message });
        }
        self.settle();
        self.answers(connection)
    }

    fn answers(&mut self, connection: &Connection) -> Vec<Answer> {
        let output = self.take_output(connection.replica, connection.client);
        cut(&output).into_iter().map(Answer::new).collect()
    }

    fn is_closed(&self, connection: &Connection) -> bool {
        self.closed.contains(&(connection.replica, connection.client))
    }
}

fn jute_writer(out: &mut Vec<u8>) -> millrace_proto::zookeeper::Writer<'_> {
    millrace_proto::zookeeper::Writer::new(out)
}

struct Connection {
    replica: usize,
    client: ClientId,
    response: Option<ConnectResponse>,
    xid: i32,
}

impl Connection {
    fn message(&self, request: &Request<'_>) -> Vec<u8> {
        let mut message = Vec::new();
        let mut writer = jute_writer(&mut message);
        writer.int(match request {
            Request::Ping => xid::PING,
            Request::Auth { .. } => xid::AUTH,
            _ => self.xid,
        });
        writer.int(request.code());
        request.encode(&mut writer);
        message
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Answer {
    header: ReplyHeader,
    body: Vec<u8>,
}

impl Answer {
    fn new(message: &[u8]) -> Answer {
        let mut reader = Reader::new(message);
        let header = ReplyHeader::decode(&mut reader).unwrap();
        Answer { header, body: reader.rest().to_vec() }
    }

    fn data(&self) -> Vec<u8> {
        assert_eq!(self.header.error, 0);
        Reader::new(&self.body).buffer().unwrap().unwrap_or_default().to_vec()
    }

    /// Returns kind and path of a watch event; `None` for other answers.
    fn event(&self) -> Option<(i32, String)> {
        if self.header.xid != xid::NOTIFICATION {
            return None;
        }
        let event = WatchEvent::decode(&mut Reader::new(&self.body)).unwrap();
        Some((event.kind, event.path.to_owned()))
    }
}

fn cut(mut output: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let Some((length, rest)) = output.split_first_chunk::<4>() {
        let (message, rest) = rest.split_at(i32::from_be_bytes(*length) as usize);
        messages.push(message);
        output = rest;
    }
    messages
}

fn create<'a>(path: &'a str, data: &'a [u8], flags: i32) -> Request<'a> {
    Request::Create {
        kind: CreateKind::Create,
        path,
        data: Some(data),
        acl: Some(vec![OPEN_ACL]),
        flags,
        ttl_ms: 0,
    }
}

fn get(path: &str, watch: bool) -> Request<'_> {
    Request::GetData { path, watch }
}

fn set<'a>(path: &'a str, data: &'a [u8]) -> Request<'a> {
    Request::SetData { path, data: Some(data), version: -1 }
}

#[test]
fn replies_come_in_the_order_of_requests_and_reads_see_earlier_writes() {
    let mut ensemble = Ensemble::new(1);
    let mut client = ensemble.new_session(0);
    let answers = ensemble.ask(
        &mut client,
        &[
            create("/a", b"1", 0),
            get("/a", false),
            set("/a", b"2"),
            Request::Sync { path: "/a" },
            get("/a", false),
            get("/b", false),
            Request::Ping,
        ],
    );
    let xids: Vec<i32> = answers.iter().map(|answer| answer.header.xid).collect();
    assert_eq!(xids, [1, 2, 3, 4, 5, 6, xid::PING]);
    assert_eq!(answers[1].data(), b"1");
    assert_eq!(answers[4].data(), b"2");
    assert_eq!(answers[5].header.error, Error::NoNode.code());
    let zxids: Vec<i64> = answers.iter().map(|answer| answer.header.zxid).collect();
    assert!(zxids.is_sorted(), "{zxids:?}");
}

#[test]
fn a_watch_event_comes_before_the_reply_of_the_write_that_fired_it() {
    let mut ensemble = Ensemble::new(3);
    let follower = (ensemble.leader().unwrap() + 1) % 3;
    let mut client = ensemble.new_session(follower);
    ensemble.ask(&mut client, &[create("/a", b"1", 0), get("/a", true)]);
    let answers = ensemble.ask(&mut client, &[set("/a", b"2"), set("/a", b"3")]);
    assert_eq!(answers.len(), 3, "a watch fires once: {answers:?}");
    assert_eq!(answers[0].event(), Some((event::DATA_CHANGED, "/a".to_owned())));
    assert_eq!(answers[0].header.zxid, answers[1].header.zxid);
}

#[test]
fn a_session_moves_with_its_client_and_its_old_connection_is_closed() {
    let mut ensemble = Ensemble::new(3);
    let mut first = ensemble.new_session(0);
    ensemble.ask(&mut first, &[create("/e", b"", 1)]);
    let response = first.response.unwrap();
    let mut second = ensemble.connect(1, response.session, response.password);
    assert_eq!(second.response.unwrap().session, response.session);
    assert!(ensemble.is_closed(&first));
    let answers = ensemble.ask(&mut second, &[Request::GetEphemerals { prefix: None }]);
    assert_eq!(answers[0].header.error, 0);
    assert_eq!(&answers[0].body[..4], [0, 0, 0, 1], "its ephemeral moved with it");
    let wrong = ensemble.connect(2, response.session, [7; 16]);
    assert_eq!(wrong.response.unwrap().timeout_ms, 0, "with another password it is refused");
    assert!(ensemble.is_closed(&wrong));
    assert!(!ensemble.is_closed(&second));
}

#[test]
fn a_silent_session_expires_with_its_ephemerals_and_a_pinging_one_does_not() {
    let mut ensemble = Ensemble::new(3);
    let follower = (ensemble.leader().unwrap() + 1) % 3;
    let mut silent = ensemble.new_session(follower);
    let mut alive = ensemble.new_session(follower);
    ensemble.ask(&mut silent, &[create("/silent", b"", 1)]);
    ensemble.ask(&mut alive, &[create("/alive", b"", 1)]);
    for _ in 0..12 {
        ensemble.pass(1000);
        ensemble.ask(&mut alive, &[Request::Ping]);
    }
    let exists = |path| Request::Exists { path, watch: false };
    let answers = ensemble.ask(&mut alive, &[exists("/silent"), exists("/alive")]);
    assert_eq!(answers[0].header.error, Error::NoNode.code());
    assert_eq!(answers[1].header.error, 0);
    assert!(ensemble.is_closed(&silent));
}

#[test]
fn a_lost_leader_is_replaced_and_nothing_acknowledged_is_lost() {
    let mut ensemble = Ensemble::new(3);
    let leader = ensemble.leader().unwrap();
    let mut client = ensemble.new_session((leader + 1) % 3);
    let answers = ensemble.ask(&mut client, &[create("/kept", b"1", 0)]);
    assert_eq!(answers[0].header.error, 0);
    ensemble.cut_off[leader] = true;
    ensemble.run_until(|ensemble| ensemble.leader().is_some_and(|index| index != leader));
    let mut client = ensemble.new_session((leader + 2) % 3);
    let answers = ensemble.ask(&mut client, &[get("/kept", false), set("/kept", b"2")]);
    assert_eq!(answers[0].data(), b"1");
    assert_eq!(answers[1].header.error, 0);
    ensemble.cut_off[leader] = false;
    ensemble.pass(2000);
    let digests: Vec<u64> =
        ensemble.replicas.iter().map(|replica| replica.state().digest()).collect();
    assert_eq!(digests, [digests[0]; 3], "the old leader has caught up");
}

#[test]
fn a_leader_whose_process_is_gone_is_replaced_before_an_election_timeout() {
    for count in [3, 5] {
        let mut ensemble = Ensemble::new(count);
        let old = ensemble.leader().unwrap();
        ensemble.cut_off[old] = true;
        let others = || (0..count as usize).filter(|index| *index != old);
        let tell = |ensemble: &mut Ensemble| {
            for other in others() {
                ensemble.handle(other, Event::PeerLost { peer: old as u64 + 1 });
                ensemble.handle(other, Event::PeerGone { peer: old as u64 + 1 });
            }
        };
        tell(&mut ensemble);
        ensemble.pass(4 * TICK_MS);
        let first = others().next();
        assert_eq!(ensemble.leader(), first, "the voter with the lowest id stands first");
        // That a follower is gone says nothing of the leader.
        let term = ensemble.replicas[first.unwrap()].leadership().0;
        tell(&mut ensemble);
        ensemble.pass(40 * TICK_MS);
        assert_eq!(ensemble.replicas[first.unwrap()].leadership(), (term, true));
    }
}

#[test]
fn a_leader_that_lives_though_it_seemed_gone_goes_on() {
    let mut ensemble = Ensemble::new(3);
    let leader = ensemble.leader().unwrap();
    let term = ensemble.replicas[leader].leadership().0;
    let fooled = (leader + 2) % 3;
    ensemble.handle(fooled, Event::PeerGone { peer: leader as u64 + 1 });
    ensemble.pass(100 * TICK_MS);
    assert_eq!(ensemble.replicas[leader].leadership(), (term, true));
    assert_eq!(ensemble.replicas[fooled].leadership().0, term);
}

#[test]
fn a_write_whose_fate_is_unknown_closes_its_client() {
    let mut ensemble = Ensemble::new(3);
    let leader = ensemble.leader().unwrap();
    let mut client = ensemble.new_session(leader);
    for index in 0..3 {
        ensemble.cut_off[index] = index == leader;
    }
    let answers = ensemble.ask(&mut client, &[create("/unknown", b"", 0)]);
    assert_eq!(answers, [], "no majority has it");
    ensemble.pass(3000);
    assert!(ensemble.is_closed(&client), "the old leader gave up");
}

#[test]
fn a_write_behind_a_change_of_members_waits_for_it() {
    let line = |id| format!("server.{id}=10.0.0.{id}:2888:3888;2181");
    let mut ensemble = Ensemble::with(3, |config| {
        config.reconfig_enabled = true;
        config.skip_acl = true;
        config.members = (1..=3).map(|id| Member::parse_line(&line(id)).unwrap()).collect();
    });
    let leader = ensemble.leader().unwrap();
    for replica in [leader, (leader + 1) % 3] {
        let mut client = ensemble.new_session(replica);
        let path = format!("/behind{replica}");
        let requests = [
            // Replica 4 never connects, so not even a majority of the new participants does.
            Request::Reconfig {
                joining: Some("server.4=10.0.0.4:2888:3888;2181"),
                leaving: Some("1,2,3"),
                new_members: None,
                config_id: -1,
            },
            create(&path, b"", 0),
            get(&path, false),
        ];
        assert_eq!(ensemble.ask(&mut client, &requests), []);
        let mut other = ensemble.new_session(leader);
        let seen = ensemble.ask(&mut other, &[get(&path, false)]);
        assert_eq!(seen[0].header.error, Error::NoNode.code(), "it overtook the change");
        let mut answers = Vec::new();
        for _ in 0..11 {
            ensemble.pass(1000);
            answers.extend(ensemble.ask(&mut client, &[Request::Ping]));
        }
        let errors = answers[..3].iter().map(|answer| answer.header.error).collect::<Vec<_>>();
        assert_eq!(errors, [Error::NewConfigNoQuorum.code(), 0, 0]);
    }
}

#[test]
fn forwarded_writes_are_taken_in_order_and_without_a_gap() {
    let mut ensemble = Ensemble::new(3);
    let leader = ensemble.leader().unwrap();
    let follower = (leader + 1) % 3;
    let (term, _) = ensemble.replicas[leader].leadership();
    let mut forward = |epoch, sequence, commands: &[u8]| {
        let place = Place { origin: 77, epoch, sequence };
        let message = PeerMessage::Forward { term, place, commands }.encode();
        let peer = follower as u64 + 1;
        ensemble.handle(leader, Event::PeerMessage { peer, message: &message });
        let answers = std::mem::take(&mut ensemble.messages);
        !answers.iter().any(|(_, _, message)| {
            PeerMessage::decode(message) == Ok(PeerMessage::Refused { epoch })
        })
    };
    assert!(!forward(3, 1, b""), "the first of the epoch is missing");
    assert!(forward(3, 0, b""));
    assert!(!forward(3, 0, b""), "it came twice");
    assert!(!forward(3, 1, &vec![0; 65 << 20]), "there is no room for it");
    assert!(!forward(3, 2, b""), "one before it was not taken");
    assert!(!forward(2, 0, b""), "its sender has given it up");
    assert!(forward(4, 0, b""));
    assert!(forward(4, 1, b""));
}

#[test]
fn unknown_operations_are_answered_then_closed_and_bad_records_are_not() {
    let mut ensemble = Ensemble::new(1);
    let mut client = ensemble.new_session(0);
    let id = client.client;
    for (xid, code, error, is_closed) in [
        (1, opcode::GET_DATA, Error::MarshallingError, false),
        (2, opcode::CREATE, Error::MarshallingError, false),
        (3, 999, Error::Unimplemented, true),
    ] {
        let mut message = Vec::new();
        let mut writer = jute_writer(&mut message);
        writer.int(xid);
        writer.int(code);
        ensemble.handle(0, Event::ClientMessage { client: id, message: &message });
        ensemble.settle();
        let answers = ensemble.answers(&client);
        assert_eq!(answers[0].header.error, error.code());
        assert_eq!(answers[0].header.xid, xid);
        assert_eq!(ensemble.is_closed(&client), is_closed);
    }
    client = ensemble.new_session(0);
    let answers = ensemble.ask(&mut client, &[Request::Auth { scheme: "bad", auth: b"" }]);
    assert_eq!(answers[0].header.error, Error::AuthFailed.code());
    assert!(ensemble.is_closed(&client));
}

#[test]
fn set_watches_tells_what_was_missed_before_its_reply() {
    let mut ensemble = Ensemble::new(1);
    let mut client = ensemble.new_session(0);
    let answers = ensemble.ask(&mut client, &[create("/a", b"", 0), create("/b", b"", 0)]);
    let seen = answers[1].header.zxid;
    ensemble.ask(&mut client, &[set("/a", b"new"), create("/b/c", b"", 0)]);
    let answers = ensemble.ask(
        &mut client,
        &[Request::SetWatches {
            relative_zxid: seen,
            data: vec!["/a", "/gone"],
            exist: vec!["/b"],
            child: vec!["/b", "/a"],
            persistent: vec![],
            recursive: vec![],
        }],
    );
    let events: Vec<_> = answers.iter().filter_map(Answer::event).collect();
    let expected = [
        (event::DATA_CHANGED, "/a"),
        (event::DELETED, "/gone"),
        (event::CREATED, "/b"),
        (event::CHILDREN_CHANGED, "/b"),
    ];
    let expected = expected.map(|(kind, path)| (kind, path.to_owned()));
    assert_eq!(events, expected);
    assert_eq!(answers.last().unwrap().header.error, 0);
    assert_eq!(answers.len(), 5);
    let answers = ensemble.ask(&mut client, &[create("/a/b", b"", 0)]);
    assert_eq!(answers[0].event(), Some((event::CHILDREN_CHANGED, "/a".to_owned())), "re-armed");
}

#[test]
fn closing_a_session_is_answered_and_then_closes() {
    let mut ensemble = Ensemble::new(1);
    let mut client = ensemble.new_session(0);
    let answers = ensemble.ask(&mut client, &[create("/e", b"", 1), Request::CloseSession]);
    assert_eq!(answers[1].header.error, 0);
    assert!(ensemble.is_closed(&client));
    let mut other = ensemble.new_session(0);
    let answers = ensemble.ask(&mut other, &[get("/e", false)]);
    assert_eq!(answers[0].header.error, Error::NoNode.code());
}

#[test]
fn stats_are_told_as_zookeeper_counts() {
    let mut ensemble = Ensemble::new(1);
    let mut client = ensemble.new_session(0);
    ensemble.ask(&mut client, &[create("/p", b"", 0), create("/p/a", b"", 0)]);
    let requests = [create("/p/b", b"", 0), Request::Delete { path: "/p/a", version: -1 }];
    ensemble.ask(&mut client, &requests);
    let answers = ensemble.ask(&mut client, &[Request::Exists { path: "/p", watch: false }]);
    let stat = Stat::decode(&mut Reader::new(&answers[0].body)).unwrap();
    assert_eq!((stat.cversion, stat.child_count), (3, 1), "two creates and a delete");
    assert!(stat.pzxid > stat.mzxid);
}
