//! One round: fresh clients work in a subtree of its own, the trees are compared, all is removed.
//!
//! Every step goes to both servers and is waited for on the connection that did it. The events that it
//! caused on other connections are read later, in front of their own replies: events are queued before
//! the step that caused them is answered, so their place is the same on both servers. Only the events of
//! a closed session are read at once, because their order is the one thing that may differ.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use millrace_proto::zookeeper::record::{OPEN_ACL, PASSWORD_SIZE};
use millrace_proto::zookeeper::{CreateKind, Request, opcode};

use crate::client::{Client, Identity, Said, greet};
use crate::compare::{Comparer, Order};
use crate::generator::{Asked, Generator, Handshake, Presence, Step, may_watch};
use crate::item::{Item, Kind};
use crate::mutate;
use crate::op::Op;
use crate::report::{JANITOR, Report};

/// Nodes that are read or deleted at once.
const WALK_BURST: usize = 16;
/// After this many steps every connection is read, so that a difference is found near its cause.
const LISTEN_STEPS: u64 = 4;
/// Nodes of a round's tree: many times what a round leaves.
const WALK_MAX: usize = 100_000;

/// What lasts from round to round.
pub(crate) struct Run {
    pub(crate) servers: [SocketAddr; 2],
    pub(crate) seed: u64,
    pub(crate) clients: usize,
    pub(crate) round_ops: u64,
    /// Alters one in this many lists of replies; 0 for none.
    pub(crate) mutate: u64,
    /// True if nodes that outlive a round are never used.
    pub(crate) private: bool,
    /// True if all that is sent and received is printed.
    pub(crate) trace: bool,
    pub(crate) comparer: Comparer,
    pub(crate) report: Report,
    lists: u64,
}

/// A round ended early: the servers differ, and it was reported.
struct Differs;

type Checked = Result<std::result::Result<(), Differs>>;

struct Round<'a> {
    run: &'a mut Run,
    number: u64,
    root: String,
    shared: bool,
    generator: Generator,
    janitor: Client,
    clients: Vec<Client>,
    /// The last session that was closed.
    closed: Option<[Identity; 2]>,
    mutations: fastrand::Rng,
}

/// Ends the function when the servers differ.
macro_rules! check {
    ($checked:expr) => {
        if let Err(Differs) = $checked? {
            return Ok(Err(Differs));
        }
    };
}

impl Run {
    pub(crate) fn new() -> Run {
        Run {
            servers: [SocketAddr::from(([127, 0, 0, 1], 2181)); 2],
            seed: 1,
            clients: 4,
            round_ops: 1000,
            mutate: 0,
            private: false,
            trace: false,
            comparer: Comparer::default(),
            report: Report::new(),
            lists: 0,
        }
    }

    /// Plays round `number`. True if the servers agreed.
    pub(crate) fn round(&mut self, number: u64) -> Result<bool> {
        self.comparer.begin_round();
        self.report.forget();
        let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number);
        let root = format!("/r{number}");
        // Nodes that outlive a round differ for good once the servers differed in a round.
        let shared = !self.private && self.report.differences.is_empty();
        let mut round = Round {
            generator: Generator::new(seed, &root, self.clients, shared),
            janitor: Client::default(),
            clients: (0..self.clients).map(|_| Client::default()).collect(),
            closed: None,
            mutations: fastrand::Rng::with_seed(seed),
            run: self,
            number,
            root,
            shared,
        };
        let outcome = round.play().with_context(|| round.replay())?;
        Ok(outcome.is_ok())
    }
}

impl Round<'_> {
    fn replay(&self) -> String {
        let private = if self.shared { "" } else { " --private" };
        format!(
            "replay: run [--ours] --seed {} --first-round {} --rounds 1 --round-ops {} \
             --clients {}{private}",
            self.run.seed, self.number, self.run.round_ops, self.run.clients
        )
    }

    fn play(&mut self) -> Checked {
        check!(self.set_up());
        let first = self.run.report.ops;
        let mut steps: u64 = 0;
        while self.run.report.ops - first < self.run.round_ops {
            let presence: Vec<Presence> = self.clients.iter().map(Client::presence).collect();
            match self.generator.step(&presence, &self.run.comparer) {
                Step::Batch { slot, ops } => check!(self.batch(slot, ops)),
                Step::Connect { slot, handshake } => check!(self.connect(slot, &handshake)),
                Step::Detach { slot } => {
                    check!(self.listen(slot, Order::Strict));
                    self.clients[slot].detach();
                    self.generator.connection_ended(slot);
                }
            }
            steps += 1;
            if steps.is_multiple_of(LISTEN_STEPS) {
                check!(self.listen_to_all(Order::Strict));
            }
        }
        for slot in 0..self.clients.len() {
            if self.clients[slot].presence() == Presence::Detached {
                check!(self.connect(slot, &Handshake::plain(Asked::Own)));
            }
        }
        let quota = format!("/zookeeper/quota{}", self.root);
        let mut paths = vec![self.root.clone(), quota.clone()];
        check!(self.walk(&mut paths));
        for slot in 0..self.clients.len() {
            if self.clients[slot].presence() == Presence::Attached {
                check!(self.batch(slot, vec![Op::new(&Request::CloseSession)]));
            }
        }
        // The walk is repeated without the ephemeral nodes: only known nodes may be left.
        let mut paths = vec![self.root.clone(), quota];
        check!(self.walk(&mut paths));
        check!(self.remove(&paths));
        self.janitor_does(vec![Op::new(&Request::CloseSession)])
    }

    /// Makes the subtree, by a session that may do everything.
    fn set_up(&mut self) -> Checked {
        let greeting = greet(self.run.servers, &Handshake::plain(Asked::New), new_session())?;
        let Some((links, session)) = greeting.accepted else {
            bail!("a server refused a new session: {:?}", greeting.said);
        };
        self.run.comparer.pair_sessions(session[0].id, session[1].id);
        self.janitor.attach(links, session);
        check!(
            self.janitor_does(vec![Op::new(&Request::Auth {
                scheme: "digest",
                auth: b"super:test"
            })])
        );
        let make = |path| {
            Op::new(&Request::Create {
                kind: CreateKind::Create2,
                path,
                data: None,
                acl: Some(vec![OPEN_ACL]),
                flags: 0,
                ttl_ms: 0,
            })
        };
        let quota = format!("/zookeeper/quota{}", self.root);
        // The root is never empty, so that no client can delete it.
        let kept = format!("{}/kept", self.root);
        self.janitor_does(vec![make(&self.root), make(&kept), make(&quota)])
    }

    fn janitor_does(&mut self, ops: Vec<Op>) -> Checked {
        self.janitor_reads(ops).map(|checked| checked.map(|_| ()))
    }

    fn janitor_reads(
        &mut self,
        mut ops: Vec<Op>,
    ) -> Result<std::result::Result<Vec<Item>, Differs>> {
        for op in &mut ops {
            self.janitor.number(op);
        }
        let seen = self.janitor.seen;
        let said = self.janitor.exchange(&ops).with_context(|| told(&ops))?;
        let checked = self.check(JANITOR, &ops, &said, seen, Order::Strict);
        let [left, _] = said;
        self.run.report.remember(JANITOR, ops, &left);
        Ok(checked.map(|()| left))
    }

    /// Sends `ops` at once, from one client.
    fn batch(&mut self, slot: usize, mut ops: Vec<Op>) -> Checked {
        let closes = ops.iter().any(|op| op.code == opcode::CLOSE_SESSION);
        if closes {
            check!(self.listen_to_all(Order::Strict));
        }
        let client = &mut self.clients[slot];
        for op in &mut ops {
            client.number(op);
        }
        client.may_watch |= ops.iter().any(may_watch);
        let seen = client.seen;
        let said =
            client.exchange(&ops).with_context(|| format!("client {slot} sent {}", told(&ops)))?;
        let order = if closes { Order::CloseEvents } else { Order::Strict };
        let checked = self.check(slot, &ops, &said, seen, order);
        for item in &said[0] {
            if let Some(op) = item.answers.and_then(|index| ops.get(index)) {
                self.generator.observe(slot, op, item);
            }
        }
        let client = &mut self.clients[slot];
        if closes {
            client.detach();
            self.closed = client.session.take();
            self.generator.session_ended(slot);
        } else if client.presence() != Presence::Attached {
            self.generator.connection_ended(slot);
        }
        self.run.report.remember(slot, ops, &said[0]);
        if checked.is_err() {
            return Ok(Err(Differs));
        }
        if closes { self.listen_to_all(Order::CloseEvents) } else { Ok(Ok(())) }
    }

    /// Reads the events of every connection that may have some.
    fn listen_to_all(&mut self, order: Order) -> Checked {
        for client in self.clients.iter_mut().filter(|client| client.may_watch) {
            client.send(&[])?;
        }
        for slot in 0..self.clients.len() {
            if self.clients[slot].may_watch {
                check!(self.receive(slot, order));
            }
        }
        Ok(Ok(()))
    }

    /// Reads the events of one connection.
    fn listen(&mut self, slot: usize, order: Order) -> Checked {
        self.clients[slot].send(&[])?;
        self.receive(slot, order)
    }

    fn receive(&mut self, slot: usize, order: Order) -> Checked {
        let client = &mut self.clients[slot];
        let seen = client.seen;
        let said = client.receive(&[])?;
        Ok(self.check(slot, &[], &said, seen, order))
    }

    fn connect(&mut self, slot: usize, handshake: &Handshake) -> Checked {
        self.run.report.connects += 1;
        if self.clients[slot].presence() == Presence::Attached {
            check!(self.listen(slot, Order::Strict));
        }
        let own = self.clients[slot].session;
        let identity = |side: usize| -> (i64, Option<Vec<u8>>) {
            let of = |session: Option<[Identity; 2]>| {
                session.map_or((i64::MAX, None), |session| {
                    (session[side].id, Some(session[side].password.to_vec()))
                })
            };
            match &handshake.asked {
                Asked::New => new_session()[side].clone(),
                Asked::Own => of(own),
                Asked::OwnWithPassword(password) => (of(own).0, password.clone()),
                Asked::Unknown(id) => (*id, Some(vec![0; PASSWORD_SIZE])),
                Asked::Closed => of(self.closed),
            }
        };
        let asked = [identity(0), identity(1)];
        let greeting = greet(self.run.servers, handshake, asked)
            .with_context(|| format!("client {slot} sent {handshake:?}"))?;
        if let (Asked::New, Some((_, session))) = (&handshake.asked, &greeting.accepted) {
            self.run.comparer.pair_sessions(session[0].id, session[1].id);
        }
        if self.check_connect(slot, handshake, &greeting.said).is_err() {
            return Ok(Err(Differs));
        }
        // This may have closed the connection that was there.
        if self.clients[slot].presence() == Presence::Attached {
            check!(self.listen(slot, Order::Strict));
        }
        let client = &mut self.clients[slot];
        if let Some((links, session)) = greeting.accepted {
            client.attach(links, session);
        }
        if client.presence() != Presence::Attached || !client.may_watch {
            self.generator.connection_ended(slot);
        }
        Ok(Ok(()))
    }

    fn check_connect(
        &mut self,
        slot: usize,
        handshake: &Handshake,
        said: &Said,
    ) -> std::result::Result<(), Differs> {
        let outcome = self.run.comparer.lists([&said[0], &said[1]], [0; 2], Order::Strict, true);
        outcome.map_err(|difference| {
            let kind = format!("handshake: {}", without_digits(&difference.reason));
            let replay = self.replay();
            self.run.report.difference(kind, || {
                format!(
                    "  client {slot} sent {handshake:?}\n  {}\n  left:  {}\n  right: {}\n  \
                     {replay}",
                    difference.reason,
                    shown(&said[0], 0),
                    shown(&said[1], 0)
                )
            });
            Differs
        })
    }

    /// Compares what one client received.
    fn check(
        &mut self,
        slot: usize,
        ops: &[Op],
        said: &Said,
        seen: [i64; 2],
        order: Order,
    ) -> std::result::Result<(), Differs> {
        self.trace(slot, &told(ops), said);
        let outcome = self.run.comparer.lists([&said[0], &said[1]], seen, order, true);
        self.run.report.count(&said[0]);
        let Err(difference) = outcome else {
            self.mutate(said, seen, order);
            return Ok(());
        };
        let index = difference.index;
        let left = said[0].get(index);
        let answered = [left, said[1].get(index)].into_iter().flatten().find_map(|it| it.answers);
        let about = match (answered.and_then(|answers| ops.get(answers)), left) {
            (Some(op), _) => format!("operation {}", op.code),
            (None, Some(item)) if item.kind == Kind::Event => "event".to_owned(),
            _ => "order".to_owned(),
        };
        let kind = format!("{about}: {}", without_digits(&difference.reason));
        let replay = self.replay();
        let first_number = self.run.report.ops;
        self.run.report.difference(kind, || {
            let mut lines = vec![format!("  now {} sent {} operations:", name(slot), ops.len())];
            let shown_count = answered.map_or(ops.len(), |index| index + 1);
            for (index, op) in ops.iter().enumerate().take(shown_count) {
                let mark = if Some(index) == answered { "=>" } else { "  " };
                lines.push(format!("  {mark} #{} {op}", first_number + index as u64));
            }
            lines.push(format!("  item {index}: {}", difference.reason));
            for near in index.saturating_sub(1)..=index + 1 {
                lines.push(format!("  left  [{near}]: {}", shown(&said[0], near)));
                lines.push(format!("  right [{near}]: {}", shown(&said[1], near)));
            }
            lines.push(format!("  {replay}"));
            lines.join("\n")
        });
        Err(Differs)
    }

    fn trace(&self, slot: usize, sent: &str, said: &Said) {
        if !self.run.trace {
            return;
        }
        println!("{} sent {sent}", name(slot));
        for index in 0..said[0].len().max(said[1].len()) {
            println!("  left  [{index}]: {}", shown(&said[0], index));
            println!("  right [{index}]: {}", shown(&said[1], index));
        }
    }

    /// Alters what the right server said and counts whether the comparison would have noticed.
    fn mutate(&mut self, said: &Said, seen: [i64; 2], order: Order) {
        self.run.lists += 1;
        if self.run.mutate == 0 || !self.run.lists.is_multiple_of(self.run.mutate) {
            return;
        }
        let mut altered = said[1].clone();
        let Some(what) = mutate::alter(&mut altered, order, &mut self.mutations) else { return };
        self.run.report.altered += 1;
        let outcome = self.run.comparer.lists([&said[0], &altered], seen, order, false);
        if outcome.is_err() {
            self.run.report.noticed += 1;
        } else {
            println!("NOT NOTICED: {what} in {}", shown(&altered, 0));
        }
    }

    /// Reads every node below `paths` on both servers, and adds them to `paths`, parents first.
    fn walk(&mut self, paths: &mut Vec<String>) -> Checked {
        let mut next = 0;
        while next < paths.len() {
            let end = paths.len().min(next + WALK_BURST);
            let ops = paths[next..end]
                .iter()
                .flat_map(|path| {
                    [
                        Op::new(&Request::GetChildren2 { path, watch: false }),
                        Op::new(&Request::GetData { path, watch: false }),
                        Op::new(&Request::GetAcl { path }),
                    ]
                })
                .collect();
            let Ok(items) = self.janitor_reads(ops)? else { return Ok(Err(Differs)) };
            let mut found = Vec::new();
            for item in &items {
                let Some(parent) = item.answers.and_then(|index| paths.get(next + index / 3))
                else {
                    continue;
                };
                let names = item.names().iter();
                found.extend(
                    names.map(|name| format!("{parent}/{}", String::from_utf8_lossy(name))),
                );
            }
            paths.extend(found);
            if paths.len() > WALK_MAX {
                bail!("the tree has more than {WALK_MAX} nodes");
            }
            next = end;
        }
        Ok(Ok(()))
    }

    /// Deletes `paths`, the last first.
    fn remove(&mut self, paths: &[String]) -> Checked {
        let paths: Vec<&String> = paths.iter().rev().collect();
        for burst in paths.chunks(WALK_BURST) {
            let delete = |path: &&String| Op::new(&Request::Delete { path, version: -1 });
            check!(self.janitor_does(burst.iter().map(delete).collect()));
        }
        Ok(Ok(()))
    }
}

fn name(slot: usize) -> String {
    if slot == JANITOR { "the janitor".to_owned() } else { format!("client {slot}") }
}

/// Formats operations, one on each line.
fn told(ops: &[Op]) -> String {
    let lines: Vec<String> = ops.iter().map(|op| format!("\n    {op}")).collect();
    lines.concat()
}

/// Returns the handshakes for a new session.
fn new_session() -> [(i64, Option<Vec<u8>>); 2] {
    let new = (0, Some(vec![0; PASSWORD_SIZE]));
    [new.clone(), new]
}

fn shown(items: &[Item], index: usize) -> String {
    items.get(index).map_or("nothing".to_owned(), Item::to_string)
}

/// Returns a text that is the same for differences of one kind. The codes of errors stay.
fn without_digits(text: &str) -> String {
    if text.starts_with("error=") || text.starts_with("result") {
        return text.to_owned();
    }
    let mut kind = String::new();
    for letter in text.chars().take(160) {
        match letter {
            '0'..='9' if kind.ends_with('#') => {}
            '0'..='9' => kind.push('#'),
            _ => kind.push(letter),
        }
    }
    kind
}
