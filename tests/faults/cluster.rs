//! A cluster under load all the time, and something that happens to it every few seconds.
//!
//! A run fails if a read fails or a byte is wrong, or if a node is not in the cluster afterwards or does
//! not agree with the others. It prints latencies while each thing happened, and how soon the ring
//! followed a death.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use millrace_client::{Client, ClientConfig};
use millrace_tests::cluster::Cluster;
use millrace_tests::coord::Options;
use millrace_tests::gate::GateState;
use millrace_tests::load::{Load, Outcome};
use millrace_tests::{Scratch, wait_until};

/// Files and their length: more than one node keeps, less than all of them keep.
const FILES: usize = 60;
const LENGTH: usize = 1_000_000;
/// Nodes at first, and most of them.
const NODES: usize = 3;
const NODES_MAX: usize = 4;
/// How long most things last.
const WHILE: Duration = Duration::from_secs(4);
/// How long all of coordination is away.
const BLACKOUT: Duration = Duration::from_secs(60);
/// Longest time a read may take, which nothing here comes near.
const DEADLINE: Duration = Duration::from_secs(20);

/// Something that happens, and its name.
type Event = (&'static str, fn(&mut Story));

/// What can happen.
const EVENTS: [Event; 12] = [
    ("node killed", Story::kill),
    ("node stopped for 10 s", Story::pause),
    ("node without coordination", Story::cut_coord),
    ("node without clients", Story::cut_clients),
    ("node restarted", Story::restart),
    ("node joins", Story::join),
    ("node drained", Story::drain),
    ("master killed", Story::kill_master),
    ("coord leader killed", Story::kill_leader),
    ("coord replica stopped", Story::pause_replica),
    ("all of coord killed", Story::kill_coord),
    ("rolling restart", Story::roll),
];

struct Story {
    cluster: Cluster,
    load: Load,
    client: Client,
    random: fastrand::Rng,
    /// Times from when coordination can know of a death until the client's ring has followed.
    settled: Vec<Duration>,
}

/// Runs for `minutes`, then judges; `with_zookeeper` takes Apache ZooKeeper in place of our own
/// coordination.
///
/// # Errors
/// What did not hold.
pub(crate) fn run(minutes: u64, seed: u64, with_zookeeper: bool) -> Result<(), String> {
    let scratch = Scratch::new();
    for index in 0..FILES {
        scratch.file(&format!("f{index}"), LENGTH);
    }
    let random = fastrand::Rng::with_seed(seed);
    let options = Options::new().line("tickTime", 250);
    let options = if with_zookeeper { options.zookeeper() } else { options };
    let mut cluster = Cluster::start_with(options, 3, NODES, scratch.root());
    cluster.wait_settled();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let (client, files) = runtime.block_on(async {
        let config = ClientConfig { deadline: DEADLINE, ..ClientConfig::new() };
        let client = cluster.client_with(config).await;
        let mut files = Vec::new();
        for index in 0..FILES {
            files.push(client.stat(&format!("f{index}")).await.expect("a file"));
        }
        (client, files)
    });
    let load = Load::start(runtime, &client, &files, (8, 256 << 10, Duration::from_millis(2)));
    load.begin("nothing");
    let mut story = Story { cluster, load, client, random, settled: Vec::new() };
    let began = Instant::now();
    let end = began + Duration::from_secs(60 * minutes);
    let mut round: Vec<usize> = Vec::new();
    let mut next_report = began + Duration::from_secs(60);
    std::thread::sleep(WHILE);
    while Instant::now() < end && !story.load.is_broken() {
        // Each once, in an order of its own, and then again.
        if round.is_empty() {
            round = (0..EVENTS.len()).collect();
            story.random.shuffle(&mut round);
        }
        let Some(event) = round.pop() else { continue };
        let (name, act) = EVENTS[event];
        story.load.begin(name);
        act(&mut story);
        story.load.begin("nothing");
        std::thread::sleep(Duration::from_secs(1));
        if Instant::now() >= next_report {
            next_report = Instant::now() + Duration::from_secs(60);
            println!("{} s: {} reads", began.elapsed().as_secs(), story.load.reads());
        }
    }
    story.cluster.wait_settled();
    let settled = story.settled;
    let fallbacks = story.client.fallback_count();
    let outcome = story.load.stop();
    report(&outcome, &settled);
    if fallbacks > 0 {
        return Err(format!("{fallbacks} reads fell back to the source, which was not allowed"));
    }
    match outcome.failed() {
        0 => Ok(()),
        count => Err(format!("{count} reads failed: {:#?}", outcome.failures)),
    }
}

impl Story {
    /// Returns a node that runs.
    fn any(&mut self) -> usize {
        self.random.usize(..self.cluster.members.len())
    }

    fn members(&self) -> usize {
        self.client.cluster().map_or(0, |cluster| cluster.members.len())
    }

    /// Waits until the client's ring has `count` members.
    fn wait_members(&self, count: usize) {
        wait_until("the ring follows", || self.members() == count);
    }

    fn kill_one(&mut self, index: usize) {
        let count = self.members();
        self.cluster.members[index].kill();
        let dead = Instant::now();
        self.wait_members(count - 1);
        self.settled.push(dead.elapsed());
        std::thread::sleep(WHILE);
        self.cluster.members[index].start();
        self.cluster.wait_settled();
        self.wait_members(count);
    }

    fn kill(&mut self) {
        let index = self.any();
        self.kill_one(index);
    }

    fn kill_master(&mut self) {
        let master = self.client.cluster().and_then(|cluster| cluster.master);
        let index = self.cluster.members.iter().position(|it| Some(it.id()) == master.as_deref());
        let index = index.unwrap_or(0);
        self.kill_one(index);
    }

    fn pause(&mut self) {
        let index = self.any();
        self.cluster.members[index].pause();
        std::thread::sleep(Duration::from_secs(10));
        self.cluster.members[index].resume();
        self.cluster.wait_settled();
    }

    fn cut_coord(&mut self) {
        let index = self.any();
        let state = self.random.choice([GateState::Stalled, GateState::Broken]);
        self.cluster.members[index].set_coord(state.unwrap_or(GateState::Broken));
        std::thread::sleep(WHILE);
        self.cluster.members[index].set_coord(GateState::Open);
        self.cluster.wait_settled();
    }

    fn cut_clients(&mut self) {
        let index = self.any();
        let state = self.random.choice([GateState::Stalled, GateState::Broken]);
        self.cluster.members[index].set_clients(state.unwrap_or(GateState::Broken));
        std::thread::sleep(WHILE);
        self.cluster.members[index].set_clients(GateState::Open);
        self.cluster.wait_settled();
    }

    fn restart(&mut self) {
        let index = self.any();
        self.cluster.members[index].stop();
        self.cluster.members[index].start();
        self.cluster.wait_settled();
    }

    /// Lets a further node join, and leave again.
    fn join(&mut self) {
        if self.cluster.members.len() < NODES_MAX {
            self.cluster.add();
        }
        let last = self.cluster.members.len() - 1;
        if !self.cluster.members[last].is_started() {
            self.cluster.members[last].start();
        }
        self.cluster.wait_settled();
        std::thread::sleep(WHILE);
        self.cluster.members[last].stop();
        self.cluster.members.pop();
        self.cluster.wait_settled();
        self.wait_members(NODES);
    }

    fn drain(&mut self) {
        let index = self.any();
        let id = self.cluster.members[index].id().to_owned();
        let client = self.client.with_deadline(Duration::from_secs(60));
        let drained = self.load.block_on(client.drain(&id));
        drained.unwrap_or_else(|error| panic!("drain {id}: {error}"));
        std::thread::sleep(WHILE);
        self.cluster.wait_settled();
        let undrained = self.load.block_on(client.undrain(&id));
        undrained.unwrap_or_else(|error| panic!("undrain {id}: {error}"));
        self.cluster.wait_settled();
    }

    fn kill_leader(&mut self) {
        let Some(coord) = &mut self.cluster.coord else { return };
        let leader = coord.wait_leader();
        coord.replicas[leader].kill();
        std::thread::sleep(WHILE);
        coord.replicas[leader].start();
        self.cluster.wait_settled();
    }

    fn pause_replica(&mut self) {
        let replica = self.random.usize(..3);
        let Some(coord) = &mut self.cluster.coord else { return };
        coord.replicas[replica].pause();
        std::thread::sleep(WHILE);
        coord.replicas[replica].resume();
        self.cluster.wait_settled();
    }

    fn kill_coord(&mut self) {
        let Some(coord) = &mut self.cluster.coord else { return };
        coord.replicas.iter_mut().for_each(|replica| replica.kill());
        std::thread::sleep(BLACKOUT);
        assert_eq!(self.members(), NODES, "the ring stays");
        if let Some(coord) = &mut self.cluster.coord {
            coord.start_all();
        }
        self.cluster.wait_settled();
    }

    fn roll(&mut self) {
        for index in 0..self.cluster.members.len() {
            self.cluster.members[index].stop();
            self.cluster.members[index].start();
            self.cluster.wait_settled();
        }
        let Some(coord) = &mut self.cluster.coord else { return };
        for replica in &mut coord.replicas {
            replica.stop();
            replica.start();
        }
        self.cluster.wait_settled();
    }
}

fn report(outcome: &Outcome, settled: &[Duration]) {
    println!(
        "\n{:<28} {:>5} {:>9} {:>6} {:>9} {:>9} {:>9}",
        "while", "count", "reads", "failed", "p50 ms", "p99 ms", "max ms"
    );
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let phases: BTreeMap<_, _> = outcome.phases.iter().collect();
    for (name, phase) in phases {
        println!(
            "{name:<28} {:>5} {:>9} {:>6} {:>9.2} {:>9.2} {:>9.2}",
            phase.count,
            phase.latencies.count(),
            phase.failed,
            ms(phase.latencies.quantile(0.5)),
            ms(phase.latencies.quantile(0.99)),
            ms(phase.latencies.quantile(1.0)),
        );
    }
    let mut settled: Vec<f64> = settled.iter().map(|time| time.as_secs_f64()).collect();
    settled.sort_by(f64::total_cmp);
    if let (Some(middle), Some(longest)) = (settled.get(settled.len() / 2), settled.last()) {
        println!(
            "the client's ring followed a death, with a session timeout of 1 s, within {middle:.2} s \
             (median of {}), at most {longest:.2} s",
            settled.len()
        );
    }
    println!("{} reads, {} failed", outcome.reads(), outcome.failed());
}
