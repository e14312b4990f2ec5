//! One replica without data, or with a list that it has not taken over: its messages and actions.

use ::raft::eraftpb::{Message, MessageType};

use super::super::message::Holding;
use super::*;
use crate::command::Act;
use crate::config::members::config_lines;

/// A replica with instant disks. The test plays the other replicas.
struct Lone {
    replica: Replica,
    log: Log,
    now: Now,
    /// Messages that it sent and that nothing here takes: receiver, message.
    sent: Vec<(u64, Vec<u8>)>,
    others: Vec<Action>,
}

fn list(lines: &[&str]) -> Vec<Member> {
    lines.iter().map(|line| Member::parse_line(line).unwrap()).collect()
}

const THREE: [&str; 3] = ["1=a:1:2", "2=b:1:2", "3=c:1:2"];

/// Builds a configuration of replica 1 with these members.
fn config(lines: &[&str]) -> Config {
    Config { replica_id: 1, members: list(lines), ..Config::tiny(PathBuf::from("unused")) }
}

/// Builds a setup without data.
fn fresh(config: Config) -> Setup {
    let identity =
        StoreIdentity { cluster_id: 0, replica_id: config.replica_id, store_id: config.replica_id };
    Setup {
        config,
        identity,
        origin: 1000,
        secret: [1; 32],
        log: Box::new(Log::default()),
        state: State::new(),
        applied: Applied::default(),
        joins: false,
        listed: None,
        now: Now { ms: 1000, wall_ms: 1_700_000_000_000 },
    }
}

/// Builds a setup with data that votes alone, with the list that it had taken over.
fn alone(config: Config, listed: Option<Listed>) -> Setup {
    let conf_state = ConfState { voters: vec![1], ..ConfState::default() };
    let applied = Applied { index: 1, term: 1, conf_state };
    let identity = StoreIdentity { cluster_id: 7, replica_id: 1, store_id: 1 };
    Setup { identity, applied, listed, ..fresh(config) }
}

fn listed(lines: &[&str], is_forming: bool) -> Option<Listed> {
    Some(Listed { members: list(lines), is_forming })
}

impl Lone {
    fn start(setup: Setup) -> Lone {
        let log = Log::default();
        {
            let state = &mut log.0.lock().unwrap().1;
            (state.compacted_index, state.compacted_term) =
                (setup.applied.index, setup.applied.term);
            state.last_index = setup.applied.index;
        }
        let now = setup.now;
        let setup = Setup { log: Box::new(log.clone()), ..setup };
        let mut actions = Vec::new();
        let replica = Replica::new(setup, &mut actions).unwrap();
        let mut lone = Lone { replica, log, now, sent: Vec::new(), others: Vec::new() };
        lone.act(actions);
        lone
    }

    fn handle(&mut self, event: Event<'_>) {
        let mut actions = Vec::new();
        self.replica.handle(self.now, event, &mut actions);
        self.act(actions);
        self.turn();
    }

    fn hear(&mut self, peer: u64, message: &PeerMessage<'_>) {
        self.handle(Event::PeerMessage { peer, message: &message.encode() });
    }

    fn turn(&mut self) {
        loop {
            let mut actions = Vec::new();
            self.replica.turn(self.now, &mut actions);
            if actions.is_empty() {
                break;
            }
            self.act(actions);
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::SendPeer { peer, message } => self.sent.push((peer, message)),
                Action::Append { append } => {
                    self.log.append(&append);
                    self.handle(Event::LogDurable { number: append.number });
                }
                action => self.others.push(action),
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(TICK_MS) {
            self.now.ms += TICK_MS;
            self.turn();
        }
    }

    /// Lists the Raft messages that it sent: receiver and kind.
    fn raft_sent(&self) -> Vec<(u64, MessageType)> {
        let sent = self.sent.iter().filter_map(|(peer, message)| {
            match PeerMessage::decode(message).expect("it was encoded here") {
                PeerMessage::Raft(message) => Some((*peer, message.msg_type)),
                _ => None,
            }
        });
        sent.collect()
    }

    /// Returns what it said last to a peer about its data.
    fn said(&self, to: u64) -> Holding {
        let said = self.sent.iter().rev().filter(|(peer, _)| *peer == to);
        let mut said = said.filter_map(|(_, message)| match PeerMessage::decode(message) {
            Ok(PeerMessage::Holds(holding)) => Some(holding),
            _ => None,
        });
        said.next().expect("it says what it has")
    }

    fn founds(&self) -> bool {
        self.others.iter().any(|action| matches!(action, Action::Found { .. }))
    }
}

#[test]
fn a_replica_without_data_gives_no_vote() {
    let mut lone = Lone::start(fresh(config(&THREE)));
    lone.handle(Event::PeerConnected { peer: 2 });
    for kind in [MessageType::MsgRequestPreVote, MessageType::MsgRequestVote] {
        let mut message = Message { msg_type: kind, to: 1, from: 2, term: 5, ..Message::default() };
        (message.index, message.log_term) = (10, 4);
        lone.hear(2, &PeerMessage::Raft(message));
    }
    assert_eq!(lone.raft_sent(), []);
}

#[test]
fn one_with_data_that_is_given_others_waits_for_them_whatever_it_was_before() {
    let setups = [
        alone(config(&THREE), None),
        // The flag may stay in a unit file; the data still counts as the replica's own.
        Setup { joins: true, ..alone(config(&THREE), None) },
        // ZooKeeper's configuration of a server by itself is a list of one too.
        alone(config(&THREE), listed(&THREE[..1], false)),
        alone(config(&THREE), listed(&THREE[..1], true)),
    ];
    for (index, setup) in setups.into_iter().enumerate() {
        let mut lone = Lone::start(setup);
        lone.turn();
        assert!(lone.replica.leadership().1, "setup {index}: it leads, to take others in");
        assert!(!lone.replica.is_formed(), "setup {index}: others may have been given the list");
    }
    // The last one of three, after removals, still serves.
    assert!(Lone::start(alone(config(&THREE), listed(&THREE, false))).replica.is_formed());
}

#[test]
fn one_whose_list_was_taken_back_serves_again() {
    for lines in [&[][..], &THREE[..1], &["1=a:1:2", "9=o:1:2:observer"]] {
        let lone = Lone::start(alone(config(lines), listed(&THREE[..1], true)));
        assert!(lone.replica.is_formed(), "{lines:?}");
    }
}

/// As [`alone`], leading an ensemble of these members, in which it alone votes.
fn leading(config: Config, lines: &[&str]) -> Setup {
    let mut setup = alone(config, listed(lines, false));
    let members = list(lines);
    let text = config_lines(&members);
    let act = Act::SetConfig { text: &text };
    let command = Command { origin: 0, tag: 0, session: 0, attach: 0, identities: vec![], act };
    setup.state.apply(0, Rules::default(), &command, &mut Changes::default()).unwrap();
    setup.applied.conf_state.learners = members[1..].iter().map(|member| member.id).collect();
    setup
}

#[test]
fn a_change_that_is_refused_does_not_keep_the_others_from_being_made() {
    let before = ["1=a:1:2", "2=b:1:2:observer"];
    let mut lone = Lone::start(leading(config(&["1=a:1:2", "4=b:1:2:observer"]), &before));
    // The host of server 2 has a new number. It is refused as long as server 2 is a member.
    lone.handle(Event::PeerConnected { peer: 4 });
    lone.pass(10_000);
    let text = lone.replica.state().config_text();
    assert!(text.contains("server.4=") && !text.contains("server.2="), "{text}");
}

#[test]
fn no_ensemble_begins_beside_one_that_met_data() {
    let nothing = Holding::Nothing { list: list_hash(&list(&THREE)) };
    let mut lone = Lone::start(fresh(config(&THREE)));
    for peer in [2, 3] {
        lone.handle(Event::PeerConnected { peer });
    }
    assert_eq!(lone.said(2), nothing);
    lone.hear(2, &PeerMessage::Holds(nothing));
    lone.hear(3, &PeerMessage::Holds(Holding::Met { data_at: 9 }));
    lone.pass(1000);
    assert!(!lone.founds());
    // Replica 3 was restarted with a list that does not name the one with data.
    lone.hear(3, &PeerMessage::Holds(nothing));
    lone.pass(1000);
    assert!(lone.founds());
}

#[test]
fn a_replica_that_met_data_says_so() {
    let mut lone = Lone::start(fresh(config(&THREE)));
    lone.handle(Event::PeerConnected { peer: 2 });
    lone.hear(9, &PeerMessage::Holds(Holding::Data));
    lone.pass(1000);
    assert_eq!(lone.said(2), Holding::Met { data_at: 9 });
}

#[test]
fn a_replica_that_was_removed_says_so_whenever_it_is_asked() {
    let mut setup = leading(config(&THREE), &["2=b:1:2", "3=c:1:2"]);
    setup.applied.conf_state = ConfState { voters: vec![2, 3], ..ConfState::default() };
    let lone = Lone::start(setup);
    let waits_for = lone.replica.report(lone.now, Default::default()).waits_for.unwrap();
    assert!(waits_for.contains("members: 2, 3") && waits_for.contains("coord add"), "{waits_for}");
}

#[test]
fn no_client_reads_before_the_ensemble_is_formed() {
    let read_only = || Config { read_only_mode: true, ..config(&THREE) };
    for setup in [fresh(read_only()), alone(read_only(), None)] {
        let mut lone = Lone::start(setup);
        lone.pass(5000);
        let client = ClientId { slot: 0, generation: 1 };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 4000));
        lone.handle(Event::ClientOpened { client, address });
        let mut message = Vec::new();
        ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: 0,
            timeout_ms: 4000,
            session: 0,
            password: Some(&[0; 16]),
            read_only: Some(true),
        }
        .encode(&mut jute_writer(&mut message));
        lone.handle(Event::ClientMessage { client, message: &message });
        let is_closed = |action: &Action| matches!(action, Action::CloseClient { .. });
        assert!(lone.others.iter().any(is_closed), "an empty tree is not shown for the ensemble's");
        let mode = lone.replica.report(lone.now, Default::default()).mode;
        assert_eq!(mode, crate::report::Mode::NotServing);
    }
}

#[test]
fn a_directory_that_is_older_than_what_was_acknowledged_ends_with_an_error() {
    let mut setup = leading(config(&THREE), &THREE);
    setup.applied.conf_state = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
    let mut lone = Lone::start(setup);
    lone.handle(Event::PeerConnected { peer: 2 });
    let mut message = Message { msg_type: MessageType::MsgHeartbeat, ..Message::default() };
    (message.to, message.from, message.term, message.commit) = (1, 2, 5, 100);
    lone.hear(2, &PeerMessage::Raft(message));
    let reason = lone.others.iter().find_map(|action| match action {
        Action::Stop { reason } => Some(reason),
        _ => None,
    });
    assert!(reason.is_some_and(|reason| reason.contains("entry 100")), "{reason:?}");
}

#[test]
fn one_that_was_away_turns_to_a_leader_that_came_meanwhile() {
    let mut setup = leading(config(&THREE), &THREE);
    setup.applied.conf_state = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
    let mut lone = Lone::start(setup);
    let text = format!("{}server.4=d:1:2:participant\nversion=5", config_lines(&list(&THREE)));
    lone.hear(4, &PeerMessage::Members { text: &text });
    let mut message = Message { msg_type: MessageType::MsgHeartbeat, ..Message::default() };
    (message.to, message.from, message.term) = (1, 4, 5);
    lone.hear(4, &PeerMessage::Raft(message));
    lone.pass(100);
    let company = lone.others.iter().rev().find_map(|action| match action {
        Action::Peers { company } => Some(company),
        _ => None,
    });
    let is_called = |member: &Member| member.id == 4 && member.peer_address == "d:1";
    assert!(company.is_some_and(|company| company.members.iter().any(is_called)), "{company:?}");
}
