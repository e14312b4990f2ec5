//! A whole ensemble in one thread from one seed: virtual time, one queue, and which replica or client
//! hears of what.
//!
//! Always holds: what happens is decided by the seed alone, so a run can be repeated exactly. The
//! sources of chance and time that a run could have, and what becomes of them:
//!
//! - time: [`World::now_us`] alone; replicas get it as `Now`, with clocks of their own (`node.rs`);
//! - chance: one generator, `World::random`; `origin` and `secret` of a replica come from it. The
//!   crate `raft` draws election time-outs from the thread's generator, but `Consensus` replaces
//!   what it drew by a choice that depends on origin and term;
//! - order: the queue is ordered by time, then by number of entry; streams and links carry their
//!   messages in queues of their own;
//! - hash tables: `std`'s are seeded by chance in each process. Neither the replica nor this crate
//!   lets the order of one show; `--twice` would notice;
//! - threads, files, sockets: there are none.
//!
//! A run has two phases: load under faults, where everything must stay safe; then all faults end, every
//! replica is up, and the ensemble must serve every client and come to one state in bounded time.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::hash::Hasher;

use fastrand::Rng;
use millrace_coord::replica::{AdminRequest, ClientId};

use self::births::Errand;
use crate::check::Checks;
use crate::client::{Client, Phase};
use crate::network::Network;
use crate::node::Node;
use crate::observe::{Ending, Seen, Violation};
use crate::options::{Canary, Options};

mod births;
mod clients;
mod faults;
mod replicas;

/// How long the healed ensemble may take, beside session time-outs, until every client was served.
const HEAL_MS: u64 = 20_000;
/// How long replicas may take to come to one state when no client asks anything any more.
const SETTLE_MS: u64 = 10_000;

/// An event of the future.
#[derive(Debug)]
enum Event {
    /// The replica's turn, shortly after something was handed to it.
    Turn {
        node: usize,
        life: u32,
    },
    /// The replica asked to be woken.
    Wake {
        node: usize,
        life: u32,
    },
    Synced {
        node: usize,
        life: u32,
    },
    JobDone {
        node: usize,
        life: u32,
    },
    /// Merged changes may be due.
    CheckpointDue {
        node: usize,
        life: u32,
    },
    EarlyDurable {
        node: usize,
        life: u32,
        number: u64,
    },
    Start {
        node: usize,
    },

    Dialled {
        from: usize,
        to: usize,
    },
    /// The next message of a stream arrives.
    Arrives {
        from: usize,
        to: usize,
        number: u64,
    },
    /// What an older stream carried still arrives.
    ArrivesLate {
        from: usize,
        to: usize,
        to_life: u32,
        message: Vec<u8>,
    },
    Breaks {
        from: usize,
        to: usize,
        number: u64,
    },
    /// A replica learns that its stream is gone.
    Lost {
        from: usize,
        life: u32,
        to: usize,
    },

    ClientWakes {
        client: usize,
    },
    LinkArrives {
        link: u64,
    },
    ToServer {
        link: u64,
    },
    ToClient {
        link: u64,
    },
    /// The replica learns that a client's connection is gone.
    LinkLost {
        link: u64,
    },
    /// The client learns that its connection is gone.
    LinkClosed {
        client: usize,
        link: u64,
    },

    Fault,
    /// Something is done to a replica's list or disk.
    Errand {
        node: usize,
        errand: Errand,
    },
    /// An operator looks what is left to do.
    Operate,
    /// The pause of a replica may be over.
    Resume {
        node: usize,
    },
}

/// A client's connection.
struct Link {
    client: usize,
    node: usize,
    life: u32,
    /// The id by which the replica knows it, while it does.
    id: Option<ClientId>,
    /// True if the replica has the first message.
    is_greeted: bool,
    is_closed: bool,
    /// Messages on their way, with the session that sent them; each arrives by an event of its own.
    to_server: std::collections::VecDeque<(i64, Vec<u8>)>,
    to_client: std::collections::VecDeque<Vec<u8>>,
    /// Messages that arrived and that the replica has not taken yet.
    inbox: std::collections::VecDeque<(i64, Vec<u8>)>,
    /// Notifications that the canary holds back.
    held_back: Vec<Vec<u8>>,
    server_us: u64,
    client_us: u64,
}

/// See the module.
pub(crate) struct World {
    options: Options,
    random: Rng,
    now_us: u64,
    queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
    nodes: Vec<Node>,
    /// By replica: what waits for the end of its pause.
    deferred: Vec<VecDeque<Event>>,
    network: Network,
    clients: Vec<Client>,
    links: BTreeMap<u64, Link>,
    link_count: u64,
    checks: Checks,
    violation: Option<Violation>,
    /// True if all faults have ended.
    is_healing: bool,
    /// True if clients ask nothing any more.
    is_quiet: bool,
    /// True if a member that lost its disk was removed, as far as there was one.
    was_removed: bool,
    hash: std::collections::hash_map::DefaultHasher,
    is_logging: bool,
    line: String,
    pub(crate) tally: Tally,
}

/// Counts of what happened, because a run in which nothing did proves nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) acknowledged: u64,
    pub(crate) unknown: u64,
    pub(crate) notified: u64,
    pub(crate) expired: u64,
    pub(crate) crashes: u64,
    pub(crate) faults: u64,
    pub(crate) snapshots: u64,
    pub(crate) undecided: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.notified += other.notified;
        self.expired += other.expired;
        self.crashes += other.crashes;
        self.faults += other.faults;
        self.snapshots += other.snapshots;
        self.undecided += other.undecided;
    }
}

/// The result of a run.
pub(crate) struct Outcome {
    pub(crate) violation: Option<Violation>,
    /// Hash of everything that happened, in order.
    pub(crate) hash: u64,
    pub(crate) tally: Tally,
    /// How the replicas and clients stood at the end, for people.
    pub(crate) states: String,
}

impl World {
    pub(crate) fn new(options: Options, is_logging: bool) -> World {
        let mut random = Rng::with_seed(options.seed);
        let nodes = (1..=options.node_count as u64).map(|id| {
            // No clock is right.
            let offset_ms = random.i64(-30_000..30_000);
            Node::new(id, &options, offset_ms)
        });
        let nodes: Vec<Node> = nodes.collect();
        let clients = (0..options.client_count).map(|index| Client::new(index, &options));
        let clients = clients.collect();
        World {
            network: Network::new(options.node_count, options.delay_us_max),
            checks: Checks::new(&options),
            deferred: nodes.iter().map(|_| VecDeque::new()).collect(),
            nodes,
            clients,
            options,
            random,
            now_us: 0,
            queue: BTreeMap::new(),
            queued: 0,
            links: BTreeMap::new(),
            link_count: 0,
            violation: None,
            is_healing: false,
            is_quiet: false,
            was_removed: false,
            hash: std::collections::hash_map::DefaultHasher::new(),
            is_logging,
            line: String::new(),
            tally: Tally::default(),
        }
    }

    /// Runs both phases.
    pub(crate) fn run(mut self) -> Outcome {
        self.begin();
        for client in 0..self.clients.len() {
            let delay_us = self.random.u64(0..2_000_000);
            self.push(delay_us, Event::ClientWakes { client });
        }
        self.push(2_000_000, Event::Fault);
        self.run_until(self.options.load_ms * 1000, |_| false);
        self.heal();
        let patience_ms = HEAL_MS + 2 * self.options.session_timeout_ms;
        let end_us = self.now_us + patience_ms * 1000;
        let served = self.run_until(end_us, |world| {
            world.clients.iter().all(|client| client.is_done && client.phase == Phase::Open)
        });
        if !served {
            self.fail(
                "the healed ensemble serves every client in bounded time",
                format_args!("{patience_ms} ms after the last fault a client still waits"),
            );
        }
        self.is_quiet = true;
        let end_us = self.now_us + SETTLE_MS * 1000;
        let settled = self.run_until(end_us, |world| world.is_settled() && world.is_connected());
        if !settled {
            self.fail(
                "replicas come to one state",
                format_args!("{SETTLE_MS} ms after the last request they differ"),
            );
        }
        self.end();
        let states = self.states();
        Outcome { violation: self.violation, hash: self.hash.finish(), tally: self.tally, states }
    }

    /// Lets things happen until a moment, or until `is_done`. True if it was done. Stops at a violation.
    fn run_until(&mut self, end_us: u64, is_done: impl Fn(&World) -> bool) -> bool {
        while self.violation.is_none() {
            if is_done(self) {
                return true;
            }
            let Some(next) = self.queue.first_entry() else { break };
            if next.key().0 > end_us {
                break;
            }
            let ((at_us, _), event) = next.remove_entry();
            self.now_us = at_us;
            self.happen(event);
        }
        self.now_us = self.now_us.max(end_us);
        // A violation is reported once, under its own name.
        self.violation.is_some()
    }

    fn push(&mut self, at_us: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((at_us.max(self.now_us), self.queued), event);
    }

    fn happen(&mut self, event: Event) {
        if let Some(node) = self.node_of(&event) {
            let paused_until_us = self.nodes[node].paused_until_us;
            // They keep their order, even when the pause grows meanwhile.
            if paused_until_us > self.now_us || !self.deferred[node].is_empty() {
                self.deferred[node].push_back(event);
                if self.deferred[node].len() == 1 {
                    self.push(paused_until_us, Event::Resume { node });
                }
                return;
            }
        }
        self.happen_now(event);
    }

    /// Lets a replica have what it missed while it was paused, unless it is paused again.
    fn resume(&mut self, node: usize) {
        let paused_until_us = self.nodes[node].paused_until_us;
        if paused_until_us > self.now_us {
            return self.push(paused_until_us, Event::Resume { node });
        }
        for event in std::mem::take(&mut self.deferred[node]) {
            self.happen_now(event);
        }
    }

    fn happen_now(&mut self, event: Event) {
        self.note(format_args!("{event:?}"));
        match event {
            Event::Turn { node, life } if self.is_alive(node, life) => self.turn(node),
            Event::Wake { node, life }
                if self.is_alive(node, life) && self.nodes[node].wake_us <= self.now_us =>
            {
                self.nodes[node].wake_us = u64::MAX;
                self.turn(node);
            }
            Event::Synced { node, life } if self.is_alive(node, life) => self.synced(node),
            Event::JobDone { node, life } if self.is_alive(node, life) => self.job_done(node),
            Event::CheckpointDue { node, life } if self.is_alive(node, life) => {
                self.checkpoint_due(node);
            }
            Event::EarlyDurable { node, life, number } if self.is_alive(node, life) => {
                self.handle(node, millrace_coord::replica::Event::LogDurable { number });
            }
            Event::Start { node } => self.start(node),
            Event::Dialled { from, to } => self.dialled(from, to),
            Event::Arrives { from, to, number } => self.arrives(from, to, number),
            Event::ArrivesLate { from, to, to_life, message } if self.is_alive(to, to_life) => {
                self.deliver(from, to, &message);
            }
            Event::Breaks { from, to, number } if self.network.number(from, to) == number => {
                self.break_stream(from, to);
            }
            Event::Lost { from, life, to } if self.is_alive(from, life) => {
                let peer = self.nodes[to].id;
                self.handle(from, millrace_coord::replica::Event::PeerLost { peer });
            }
            Event::ClientWakes { client } => self.client_wakes(client),
            Event::LinkArrives { link } => self.link_arrives(link),
            Event::ToServer { link } => self.arrives_at_server(link),
            Event::ToClient { link } => self.arrives_at_client(link),
            Event::LinkLost { link } => self.link_lost(link),
            Event::LinkClosed { client, link } => self.link_closed(client, link),
            Event::Fault => self.fault(),
            Event::Errand { node, errand } => self.errand(node, errand),
            Event::Operate => self.operate(),
            Event::Resume { node } => self.resume(node),
            _ => {}
        }
    }

    /// Returns the replica to which an event happens: a paused one has to wait for it.
    fn node_of(&self, event: &Event) -> Option<usize> {
        match *event {
            Event::Turn { node, .. }
            | Event::Wake { node, .. }
            | Event::Synced { node, .. }
            | Event::JobDone { node, .. }
            | Event::CheckpointDue { node, .. }
            | Event::EarlyDurable { node, .. } => Some(node),
            Event::Arrives { to, .. } | Event::ArrivesLate { to, .. } => Some(to),
            Event::Dialled { from, .. } | Event::Lost { from, .. } => Some(from),
            Event::LinkArrives { link } | Event::ToServer { link } | Event::LinkLost { link } => {
                self.links.get(&link).map(|link| link.node)
            }
            _ => None,
        }
    }

    fn is_alive(&self, node: usize, life: u32) -> bool {
        self.nodes[node].life == life && self.nodes[node].is_up()
    }

    /// Adds to the hash of what happened, and to the log.
    fn note(&mut self, what: fmt::Arguments<'_>) {
        self.line.clear();
        fmt::write(&mut self.line, what).expect("a string takes everything");
        self.hash.write_u64(self.now_us);
        self.hash.write(self.line.as_bytes());
        if self.is_logging {
            println!("{:>12.3} ms  {}", self.now_us as f64 / 1000.0, self.line);
        }
    }

    fn see(&mut self, seen: &Seen<'_>) {
        if self.violation.is_none() {
            self.violation = self.checks.see(self.now_us, seen);
        }
    }

    fn fail(&mut self, property: &'static str, text: fmt::Arguments<'_>) {
        if self.violation.is_none() {
            let violation = Violation { property, text: text.to_string(), at_us: self.now_us };
            self.violation = Some(violation);
        }
    }

    /// Returns the replica that leads in the latest term, of an ensemble that serves.
    fn leader(&self) -> Option<usize> {
        let leaders = self.nodes.iter().enumerate().filter_map(|(index, node)| {
            let replica = node.replica.as_ref()?;
            let (term, leads) = replica.leadership();
            (leads && replica.is_formed()).then_some((term, index))
        });
        leaders.max().map(|(_, index)| index)
    }

    /// True if all members applied the same and are the same.
    fn is_settled(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let replica = self.nodes[leader].replica.as_ref().expect("a leader is up");
        let text = replica.state().config_text();
        if !self.has_all_members(&text) {
            return false;
        }
        let is_member = |node: &&Node| text.contains(&format!("server.{}=", node.id));
        let members = || self.nodes.iter().filter(is_member).map(|node| node.replica.as_ref());
        let applied = replica.applied();
        if !members().all(|member| member.is_some_and(|member| member.applied() == applied)) {
            return false;
        }
        let digest = replica.state().digest();
        members().flatten().all(|member| member.state().digest() == digest)
    }

    /// True if every client has a connection and a session that exists. A client that was silent may
    /// lose its session after it was served again, if the leader learned of it too late.
    fn is_connected(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let replica = self.nodes[leader].replica.as_ref().expect("a leader is up");
        self.clients.iter().all(|client| {
            client.phase == Phase::Open && replica.state().session(client.session).is_some()
        })
    }

    fn end(&mut self) {
        if self.violation.is_some() {
            return;
        }
        let leader = self.leader().expect("a settled ensemble has a leader");
        let state = self.nodes[leader].replica.as_ref().expect("a leader is up").state();
        let sessions = self.clients.iter().map(|client| client.session).collect();
        let ending = Ending { at_us: self.now_us, state, sessions };
        self.violation = self.checks.end(&ending);
        self.tally.undecided = self.checks.undecided();
    }

    /// Describes every replica and client, for people.
    fn states(&self) -> String {
        use fmt::Write;
        let mut text = String::new();
        for node in &self.nodes {
            let stand = match &node.replica {
                None => "down".to_owned(),
                Some(replica) => {
                    let (term, leads) = replica.leadership();
                    format!(
                        "term {term}{} applied {} digest {:016x} {}",
                        if leads { " leads" } else { "" },
                        replica.applied(),
                        replica.state().digest(),
                        replica.state().config_text().replace('\n', " ")
                    )
                }
            };
            let _ = writeln!(text, "  replica {} (life {}): {stand}", node.id, node.life);
        }
        for client in &self.clients {
            let _ = writeln!(
                text,
                "  client {}: session {:#x}, {:?}, {} requests wait, done: {}",
                client.index,
                client.session,
                client.phase,
                client.outstanding.len(),
                client.is_done
            );
        }
        text
    }

    fn has_canary(&self, canary: Canary) -> bool {
        self.options.canary == Some(canary)
    }

    fn ask_operator(&mut self, node: usize, request: AdminRequest) {
        let event = millrace_coord::replica::Event::Admin { ticket: 1, request };
        self.handle(node, event);
    }
}
