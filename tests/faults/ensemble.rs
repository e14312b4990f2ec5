//! Three replicas behind links, clients that work all the time, and a fault every few seconds.
//!
//! Every znode's history must be linearizable ([`crate::history`]). The zxid of a session never goes
//! back, as the client checks. Ephemeral nodes are there exactly as long as their sessions ([`worker`]
//! checks while it runs, [`verdict`] at the end). At the end all replicas hold the same tree.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{collections::BTreeMap, sync::Arc};

use millrace_tests::coord::{Ensemble, Options, connect_any};

use crate::history;

mod nemesis;
mod verdict;
mod worker;

use nemesis::Nemesis;
use worker::Worker;

const REPLICAS: u64 = 3;
const WORKERS: usize = 6;
/// Znodes that the workers share: few, so that they meet.
pub(crate) const ZNODES: usize = 16;
/// Time-out that sessions ask for: long enough to move to another server, mostly.
const SESSION_MS: i32 = 2000;

/// Returns the path of a shared znode.
fn znode(index: usize) -> String {
    format!("/znodes/{index}")
}

/// What the workers and the nemesis share.
struct Shared {
    addresses: Vec<SocketAddr>,
    began: Instant,
    is_over: AtomicBool,
    /// When a write was last acknowledged, since the beginning.
    last_write_ns: AtomicU64,
    writes: AtomicU64,
    /// The fault of this moment or the last one, and the longest time without an acknowledged write
    /// by kind of fault.
    outages: Mutex<(&'static str, BTreeMap<&'static str, u64>)>,
    /// Ephemeral nodes whose session was closed, expired or left alone.
    abandoned: Mutex<Vec<String>>,
}

impl Shared {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn begin_fault(&self, kind: &'static str) {
        self.outages.lock().unwrap_or_else(PoisonError::into_inner).0 = kind;
    }

    /// Notes that a write of any client was acknowledged.
    fn wrote(&self) {
        let now = self.began.elapsed().as_nanos() as u64;
        let before = self.last_write_ns.fetch_max(now, Ordering::Relaxed);
        self.writes.fetch_add(1, Ordering::Relaxed);
        let gap = now.saturating_sub(before);
        // Most gaps are not worth the lock.
        if gap > 20_000_000 {
            let mut outages = self.outages.lock().unwrap_or_else(PoisonError::into_inner);
            let kind = outages.0;
            let longest = outages.1.entry(kind).or_default();
            *longest = gap.max(*longest);
        }
    }

    fn abandon(&self, path: String) {
        self.abandoned.lock().unwrap_or_else(PoisonError::into_inner).push(path);
    }
}

/// Runs for `minutes`, then judges.
///
/// # Errors
/// What did not hold.
pub(crate) fn run(minutes: u64, seed: u64) -> Result<(), String> {
    let options = Options::new()
        .line("tickTime", 250)
        .flag("checkpoint_interval_ms", 1000)
        .flag("checkpoint_log_bytes", "1MiB")
        .flag("log_retain_bytes", "1MiB");
    let mut ensemble = Ensemble::start_linked(REPLICAS, options);
    let mut client = connect_any(&ensemble.addresses(), SESSION_MS);
    for path in ["/znodes", "/ephemerals"] {
        client.make(path, b"").map_err(|failure| format!("create {path}: {failure:?}"))?;
    }
    drop(client);
    let shared = Arc::new(Shared {
        addresses: ensemble.addresses(),
        began: Instant::now(),
        is_over: AtomicBool::new(false),
        last_write_ns: AtomicU64::new(0),
        writes: AtomicU64::new(0),
        outages: Mutex::new(("none", BTreeMap::new())),
        abandoned: Mutex::new(Vec::new()),
    });
    let mut random = fastrand::Rng::with_seed(seed);
    let workers: Vec<JoinHandle<Result<Worker, String>>> = (0..WORKERS)
        .map(|number| {
            let worker = Worker::new(number, random.fork(), Arc::clone(&shared));
            std::thread::spawn(move || worker.run())
        })
        .collect();
    let mut nemesis = Nemesis::new(random.fork());
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let mut next_report = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end && !workers.iter().any(JoinHandle::is_finished) {
        nemesis.fault(&mut ensemble, &shared)?;
        if Instant::now() >= next_report {
            next_report += Duration::from_secs(60);
            let seconds = shared.began.elapsed().as_secs();
            let writes = shared.writes.load(Ordering::Relaxed);
            println!("{seconds} s: {writes} writes acknowledged, {} faults", nemesis.total());
        }
    }
    nemesis.end(&mut ensemble)?;
    shared.is_over.store(true, Ordering::Relaxed);
    let mut living = Vec::new();
    for worker in workers {
        let ended = worker.join().map_err(|_| "a client saw what may not be (above)".to_owned())?;
        living.push(ended?);
    }
    report(&shared, &nemesis, &living);
    verdict::check_ephemerals(&ensemble, &shared, &mut living)?;
    verdict::check_trees(&ensemble)?;
    let records: Vec<_> = living.into_iter().map(Worker::into_record).collect();
    history::judge(&records, znode)
}

fn report(shared: &Shared, nemesis: &Nemesis, workers: &[Worker]) {
    let sum = |figure: fn(&history::Record) -> u64| -> u64 {
        workers.iter().map(|worker| figure(worker.record())).sum()
    };
    println!(
        "{} operations judged, {} writes acknowledged, {} of unknown fate, {} sessions expired",
        sum(|record| record.operations),
        shared.writes.load(Ordering::Relaxed),
        sum(|record| record.unknown),
        workers.iter().map(Worker::expired_count).sum::<u64>(),
    );
    let outages = shared.outages.lock().unwrap_or_else(PoisonError::into_inner);
    println!("{:<28} {:>6}  longest time without an acknowledged write", "fault", "count");
    for (kind, count) in nemesis.counts() {
        let longest_ms = outages.1.get(kind).copied().unwrap_or_default() / 1_000_000;
        println!("{kind:<28} {count:>6}  {longest_ms} ms");
    }
}
