//! Clients that start beside nodes that hang, again and again.
//!
//! ```text
//!  one node runs ─────────────────────────────────► for a while, then another one
//!  the others        stopped ── running ── stopped    as it comes, at any step of a client
//! ```
//!
//! Each client connects, by a list of addresses or through coordination, knows the ring, looks a file up
//! and reads it. A test checks that none fails, none takes longer than a limit, and no byte is wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use millrace_client::{Client, ClientConfig};
use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::Cluster;
use crate::coord::Options;
use crate::{Scratch, content};

/// Nodes of the cluster.
const NODES: usize = 4;
/// Files, and the length of each in bytes.
const FILES: usize = 32;
const LENGTH: usize = 200_000;
/// How long coordination takes a stopped node for one that runs: longer than any node is stopped.
const SESSION_TIMEOUT_MS: u64 = 20_000;
/// How long the same node keeps running.
const PHASE: Duration = Duration::from_secs(7);
/// How long two nodes run at each change: longer than a start may take.
const OVERLAP: Duration = Duration::from_secs(3);
/// Longest time until another node is stopped, or goes on.
const PAUSE_MS_MAX: u64 = 200;
/// Longest time between two starts.
const BREAK_MS_MAX: u64 = 200;
/// Clients that start at the same time.
const SIDE_BY_SIDE: usize = 3;

/// The result of the starts.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How long each took, in order.
    pub times: Vec<Duration>,
    /// Those that took longer than the limit or ended with an error, in words.
    pub failures: Vec<String>,
}

impl Outcome {
    /// Returns the time that this share of the starts did not exceed.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut times = self.times.clone();
        times.sort();
        let last = times.len().saturating_sub(1);
        times.get((last as f64 * share) as usize).copied().unwrap_or_default()
    }
}

/// Starts `count` clients, each of which has `limit`.
///
/// # Panics
/// If the cluster does not come up, or a byte is wrong.
pub fn run(count: usize, limit: Duration, seed: u64) -> Outcome {
    let scratch = Scratch::new();
    for index in 0..FILES {
        scratch.file(&format!("f{index}"), LENGTH);
    }
    let mut cluster =
        Cluster::start_with(Options::new().line("tickTime", 2000), 1, 0, scratch.root());
    for _ in 0..NODES {
        let member = cluster.add();
        member.set("session_timeout_ms", SESSION_TIMEOUT_MS);
        member.start();
    }
    cluster.wait_settled();
    let addresses: Vec<_> = cluster.members.iter().map(|it| it.address().to_string()).collect();
    let processes: Vec<_> = cluster.members.iter_mut().map(|it| it.node().id()).collect();
    let ways_in = Arc::new((addresses, cluster.place()));
    let (left, is_over) = (Arc::new(AtomicUsize::new(count)), Arc::new(AtomicBool::new(false)));
    let over = is_over.clone();
    let trouble = std::thread::spawn(move || trouble(&processes, seed, &over));
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().expect("a runtime");
    let outcome = runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..SIDE_BY_SIDE {
            let (ways_in, left) = (ways_in.clone(), left.clone());
            let random = fastrand::Rng::with_seed(seed ^ (task as u64 + 1));
            tasks.spawn(starts(ways_in, left, limit, random));
        }
        let mut outcome = Outcome::default();
        while let Some(part) = tasks.join_next().await {
            let part = part.expect("a task that starts clients");
            outcome.times.extend(part.times);
            outcome.failures.extend(part.failures);
        }
        outcome
    });
    is_over.store(true, Ordering::Relaxed);
    trouble.join().expect("the thread that stops nodes");
    outcome
}

/// Starts clients one after the other while some are left to start.
async fn starts(
    ways_in: Arc<(Vec<String>, String)>,
    left: Arc<AtomicUsize>,
    limit: Duration,
    mut random: fastrand::Rng,
) -> Outcome {
    let mut outcome = Outcome::default();
    let (mut addresses, place) = (*ways_in).clone();
    let take = |left: usize| left.checked_sub(1);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
        let pause = Duration::from_millis(random.u64(1..=BREAK_MS_MAX));
        tokio::time::sleep(pause).await;
        random.shuffle(&mut addresses);
        let way_in = if random.bool() { addresses.join(",") } else { place.clone() };
        let file = random.usize(..FILES);
        let start = Instant::now();
        let mut steps = Vec::new();
        let result = start_one(&way_in, &format!("f{file}"), &mut steps).await;
        let time = start.elapsed();
        outcome.times.push(time);
        if let Err(error) = result {
            outcome.failures.push(format!("{way_in} after {time:?}, {steps:?} before: {error}"));
        } else if time > limit {
            outcome.failures.push(format!("{way_in} took {time:?}: {steps:?}"));
        }
    }
    outcome
}

/// Starts one client; notes when each step was done.
async fn start_one(
    way_in: &str,
    path: &str,
    steps: &mut Vec<(&'static str, Duration)>,
) -> Result<(), millrace_client::Error> {
    let start = Instant::now();
    let client = Client::connect(way_in, ClientConfig::new()).await?;
    assert!(client.cluster().is_some(), "the way in was not whole");
    steps.push(("connected", start.elapsed()));
    let file = client.stat(path).await?;
    steps.push(("looked up", start.elapsed()));
    let bytes = client.read(&file, 0, u64::MAX).await?;
    steps.push(("read", start.elapsed()));
    assert_eq!(bytes.len(), LENGTH);
    content::check(path, 0, &bytes);
    Ok(())
}

/// Stops nodes and lets them go on, all but one, until it is over.
fn trouble(processes: &[u32], seed: u64, is_over: &AtomicBool) {
    let mut random = fastrand::Rng::with_seed(seed);
    let send = |process: u32, signal| {
        let pid = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process");
        kill_process(pid, signal).expect("send a signal");
    };
    let mut well = 0;
    while !is_over.load(Ordering::Relaxed) {
        // The node that ran stays for a while, so each client that starts has one that stays.
        let before = std::mem::replace(&mut well, random.usize(..processes.len()));
        send(processes[well], Signal::CONT);
        let start = Instant::now();
        while start.elapsed() < PHASE && !is_over.load(Ordering::Relaxed) {
            let victim = random.usize(..processes.len());
            let is_spared = victim == well || victim == before && start.elapsed() < OVERLAP;
            if !is_spared {
                // A node is stopped three times of four.
                let signal = if random.u8(..4) == 0 { Signal::CONT } else { Signal::STOP };
                send(processes[victim], signal);
            }
            std::thread::sleep(Duration::from_millis(random.u64(1..=PAUSE_MS_MAX)));
        }
    }
    processes.iter().for_each(|process| send(*process, Signal::CONT));
}
