//! The polite client, and how it is judged.
//!
//! Owns the measure: a round starts a node, has the client at work alone, lets the neighbour in, and has it
//! at work beside it. An error fails the case at once. Times are measured beside those just before them and
//! printed; they are judged only with `MILLRACE_JUDGE_TIMES=1`, because a machine that does other work would
//! fail tests that are right. Then the median of the rounds' 99th percentiles counts, alone and beside, and
//! a case is tried again before it fails.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millrace_proto::message::{Entry, LoadRequest, ReadManyRequest, StatRequest};
use millrace_proto::{Op, Status};
use millrace_tests::peer::range;
use millrace_tests::{BLOCK, HANG_GUARD, Node, NodeOptions, Peer, Reply, Scratch, content, heavy};

/// How much longer than alone the 99th percentile may be.
const RATIO: u32 = 3;
/// Times up to this are never called long: on a machine with two cores, both in use, a thread waits its
/// turn for this long.
const FLOOR: Duration = Duration::from_millis(20);
/// How long the client is at work in each half of a round.
const PHASE: Duration = Duration::from_millis(900);
/// Rounds of a case.
const ROUNDS: usize = 3;
/// How often a case is tried, since other programs of the machine are in the way at times.
const TRIES: usize = 4;
/// When an answer counts as missing. This is far more than any limit of the node that a polite client
/// meets.
const NO_ANSWER: Duration = Duration::from_secs(8);
/// The time that a node gets to notice what its neighbour does.
const SETTLE: Duration = Duration::from_millis(300);

/// The client's address, which is not its neighbours'.
const POLITE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// The client's door when it comes by a Unix socket.
const SOCKET: &str = "door";
/// Length of the file whose cold blocks the client reads: far more than the memory, and no bytes on disk.
const COLD_LENGTH: u64 = 4 << 30;

/// A place to live: files, and settings of its node.
pub(crate) struct Street {
    pub(crate) scratch: Scratch,
    pub(crate) options: NodeOptions,
    rounds: usize,
    judges_times: bool,
    /// True if the client comes by the node's Unix socket.
    by_socket: bool,
}

/// What the client does; each has times of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Deed {
    Hit,
    Miss,
    Batch,
    Stat,
    Load,
    Connect,
}

/// The result of some time at work.
#[derive(Default)]
struct Outcome {
    times: BTreeMap<Deed, Vec<Duration>>,
    /// How often each thing went wrong.
    errors: BTreeMap<String, usize>,
}

impl Outcome {
    fn p99(&self, deed: Deed) -> Duration {
        let mut times = self.times.get(&deed).cloned().unwrap_or_default();
        times.sort_unstable();
        times.get(times.len() * 99 / 100).copied().unwrap_or(NO_ANSWER)
    }
}

impl Street {
    /// Makes a street with a node of one shard and 32 MiB, and the files of the polite client.
    pub(crate) fn new() -> Street {
        let judges_times = std::env::var_os("MILLRACE_JUDGE_TIMES").is_some();
        let scratch = Scratch::new();
        scratch.file("hot", BLOCK as usize);
        scratch.file("small", 3 * BLOCK as usize);
        sparse(&scratch, "cold", COLD_LENGTH);
        let options = NodeOptions::new(scratch.root()).set("coord", "none").set("memory", "32MiB");
        let rounds = if judges_times { ROUNDS } else { 1 };
        Street { scratch, options, rounds, judges_times, by_socket: false }
    }

    /// Sets a key of the node.
    pub(crate) fn set(self, key: &'static str, value: impl ToString) -> Street {
        Street { options: self.options.set(key, value), ..self }
    }

    /// Lets the client come by the node's Unix socket, beside neighbours that come over TCP, because
    /// there all addresses of one machine are one peer.
    pub(crate) fn by_socket(self) -> Street {
        let path = self.scratch.at(SOCKET);
        Street { by_socket: true, ..self.set("socket", path.display()) }
    }

    /// Limits the case to one round, for a neighbour that takes long to come.
    pub(crate) fn once(self) -> Street {
        Street { rounds: 1, ..self }
    }

    /// Limits the case to one round in which only errors are judged.
    pub(crate) fn without_times(self) -> Street {
        Street { rounds: 1, judges_times: false, ..self }
    }

    /// Judges the polite client beside the neighbour that `move_in` starts; it is there until what is
    /// returned is dropped.
    ///
    /// # Panics
    /// If the client meets an error, or is too slow in every try.
    pub(crate) fn judge(&self, move_in: impl Fn(&Node) -> Box<dyn Any>) {
        self.judge_nodes(|| self.options.start(), move_in);
    }

    /// As [`Street::judge`], with nodes that are started in another way.
    pub(crate) fn judge_nodes(
        &self,
        start: impl Fn() -> Node,
        move_in: impl Fn(&Node) -> Box<dyn Any>,
    ) {
        let _turn = heavy();
        let mut verdict = String::new();
        for _ in 0..TRIES {
            let (mut alone, mut beside) = (Vec::new(), Vec::new());
            for _ in 0..self.rounds {
                let mut node = start();
                let patience = if self.judges_times { NO_ANSWER } else { HANG_GUARD };
                let door = match self.by_socket {
                    true => Door::Socket(self.scratch.at(SOCKET).display().to_string()),
                    false => Door::Network(node.address()),
                };
                let mut polite = Polite::move_in(door, patience);
                let quiet = polite.work();
                assert_eq!(quiet.errors, BTreeMap::new(), "alone");
                let neighbour = move_in(&node);
                std::thread::sleep(SETTLE);
                let loud = polite.work();
                assert!(node.is_running(), "the node is gone");
                assert_eq!(loud.errors, BTreeMap::new(), "beside its neighbour");
                alone.push(quiet);
                beside.push(loud);
                drop((neighbour, polite));
            }
            let slow: Vec<String> = [Deed::Hit, Deed::Miss]
                .iter()
                .filter_map(|it| too_slow(*it, &alone, &beside))
                .collect();
            if slow.is_empty() || !self.judges_times {
                return;
            }
            verdict = slow.join("; ");
            println!("{verdict}");
        }
        panic!("{verdict}, in each of {TRIES} tries");
    }
}

/// Returns the message about a deed that takes too long beside the neighbour.
fn too_slow(deed: Deed, alone: &[Outcome], beside: &[Outcome]) -> Option<String> {
    let median = |outcomes: &[Outcome]| {
        let mut times: Vec<Duration> = outcomes.iter().map(|it| it.p99(deed)).collect();
        times.sort_unstable();
        times[times.len() / 2]
    };
    let (alone, beside) = (median(alone), median(beside));
    println!("{deed:?}: p99 {alone:?} alone, {beside:?} beside its neighbour");
    let allowed = (RATIO * alone).max(FLOOR);
    (beside > allowed)
        .then(|| format!("{deed:?}: p99 is {beside:?} beside its neighbour and {alone:?} alone"))
}

/// Makes a file of this length that takes no room.
pub(crate) fn sparse(scratch: &Scratch, path: &str, length: u64) {
    let file = std::fs::File::create(scratch.at(path)).expect("make a file");
    file.set_len(length).expect("set its length");
}

/// How the client reaches the node.
#[derive(Clone)]
enum Door {
    Network(SocketAddr),
    Socket(String),
}

/// A client that has one request under way, waits for its answer, and rests a little.
struct Polite {
    door: Door,
    /// How long it waits for an answer.
    patience: Duration,
    peer: Peer,
    hot: Entry,
    cold: Entry,
    /// Number of the next cold block.
    next: u64,
}

impl Polite {
    fn move_in(door: Door, patience: Duration) -> Polite {
        let mut peer = connect(&door, patience).expect("connect the polite client");
        let hot = peer.stat("hot").expect("stat");
        let cold = peer.stat("cold").expect("stat");
        peer.read(&hot, 0, 1).expect("read");
        Polite { door, patience, peer, hot, cold, next: 0 }
    }

    /// Works for a while.
    fn work(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        let start = Instant::now();
        let mut turn = 0_u64;
        while start.elapsed() < PHASE {
            turn += 1;
            for _ in 0..8 {
                self.deed(&mut outcome, Deed::Hit);
            }
            self.deed(&mut outcome, Deed::Miss);
            if turn.is_multiple_of(8) {
                for deed in [Deed::Batch, Deed::Stat, Deed::Load, Deed::Connect] {
                    self.deed(&mut outcome, deed);
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        outcome
    }

    fn deed(&mut self, outcome: &mut Outcome, deed: Deed) {
        let start = Instant::now();
        let done = match deed {
            Deed::Hit => self.read_hot(),
            Deed::Miss => self.read_cold(),
            Deed::Batch => self.batch(),
            Deed::Stat => self.ask(Op::Stat, &StatRequest { path: "hot".to_owned() }),
            Deed::Load => self.ask(Op::Load, &LoadRequest { path: "small".to_owned() }),
            Deed::Connect => self.connect_anew(),
        };
        match done {
            Ok(()) => outcome.times.entry(deed).or_default().push(start.elapsed()),
            Err(text) => {
                *outcome.errors.entry(format!("{deed:?}: {text}")).or_default() += 1;
                // Requests under way are gone with the connection.
                if let Ok(peer) = connect(&self.door, self.patience) {
                    self.peer = peer;
                }
            }
        }
    }

    fn ask<T: millrace_proto::frame::Body>(&mut self, op: Op, body: &T) -> Result<(), String> {
        self.peer.send(op, body);
        answer(&mut self.peer).map(drop)
    }

    fn read_hot(&mut self) -> Result<(), String> {
        let offset = fastrand::u64(..u64::from(BLOCK) - 4096);
        self.peer.send(Op::Read, &range(&self.hot, offset, 4096));
        let bytes = answer(&mut self.peer)?.into_bytes(&self.hot, offset, BLOCK);
        content::check("hot", offset, &bytes.expect("it was Ok"));
        Ok(())
    }

    fn read_cold(&mut self) -> Result<(), String> {
        let offset = self.next * u64::from(BLOCK) % COLD_LENGTH;
        self.next += 1;
        self.peer.send(Op::Read, &range(&self.cold, offset, 1024));
        let bytes = answer(&mut self.peer)?.into_bytes(&self.cold, offset, BLOCK);
        assert!(bytes.expect("it was Ok").iter().all(|byte| *byte == 0), "a wrong byte");
        Ok(())
    }

    /// Sends a batch that is longer than what the node receives at once.
    fn batch(&mut self) -> Result<(), String> {
        let ranges: Vec<_> = (0..400).map(|index| range(&self.hot, index * 16, 16)).collect();
        self.peer.send(Op::ReadMany, &ReadManyRequest { ranges });
        (0..400).try_for_each(|_| answer(&mut self.peer).map(drop))
    }

    fn connect_anew(&mut self) -> Result<(), String> {
        let mut peer = connect(&self.door, self.patience).map_err(|error| error.to_string())?;
        peer.send_empty(Op::Ping);
        answer(&mut peer).map(drop)
    }
}

fn connect(door: &Door, patience: Duration) -> io::Result<Peer> {
    let peer = match door {
        Door::Network(address) => Peer::connect_from(POLITE, *address)?,
        Door::Socket(path) => Peer::connect_locally(path),
    };
    peer.stream.set_read_timeout(Some(patience))?;
    Ok(peer)
}

/// Receives the next answer, which has to be a good one.
fn answer(peer: &mut Peer) -> Result<Reply, String> {
    let reply = peer.try_receive().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => "no answer".to_owned(),
        _ => format!("the connection ended: {error}"),
    })?;
    match reply.status() {
        Status::Ok => Ok(reply),
        status => Err(format!("{status:?}: {}", reply.message())),
    }
}

/// Threads of a neighbour, which end when this is dropped.
pub(crate) struct Busy {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    /// Calls `act` with each number below `count`, each in a thread of its own, again and again until it
    /// says that it cannot go on. The threads run when no others want to: what is judged is the node.
    pub(crate) fn start(
        count: usize,
        act: impl Fn(usize) -> Box<dyn FnMut() -> io::Result<()>> + Clone + Send + 'static,
    ) -> Busy {
        let is_over = Arc::new(AtomicBool::new(false));
        let threads = (0..count).map(|index| {
            let (is_over, act) = (Arc::clone(&is_over), act.clone());
            std::thread::spawn(move || {
                // If this fails the neighbour is a little louder.
                let _ = rustix::process::setpriority_process(None, 19);
                let mut act = act(index);
                while !is_over.load(Ordering::Relaxed) && act().is_ok() {}
            })
        });
        Busy { threads: threads.collect(), is_over }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A neighbour that failed has nothing to tell.
            let _ = thread.join();
        }
    }
}

/// Connects a neighbour, which does not wait for ever.
pub(crate) fn neighbour(address: SocketAddr) -> Peer {
    let peer = Peer::connect(address);
    let soon = Some(Duration::from_millis(500));
    peer.stream.set_read_timeout(soon).expect("set a timeout");
    peer.stream.set_write_timeout(soon).expect("set a timeout");
    peer
}
