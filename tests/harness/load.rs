//! Readers that never stop: random ranges of known files through one client, every byte checked.
//!
//! Owns the tally: reads, failures and latencies by phase, a phase being whatever happens to the
//! cluster meanwhile. A wrong byte is a panic of the reader, which [`Load::stop`] passes on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millrace_client::{Client, File};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::content;

/// Buckets of a histogram: 16 for each doubling of microseconds.
const BUCKETS: usize = 16 * 32;
/// Failures that are kept for the report.
const FAILURES_KEPT: usize = 20;

/// Latencies, to within a sixteenth.
#[derive(Clone)]
pub struct Latencies(Box<[u64; BUCKETS]>);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies(Box::new([0; BUCKETS]))
    }
}

impl Latencies {
    fn add(&mut self, time: Duration) {
        let micros = time.as_micros().max(1) as f64;
        let bucket = (micros.log2() * 16.0) as usize;
        self.0[bucket.min(BUCKETS - 1)] += 1;
    }

    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Returns the latency that this share of all do not exceed.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.0.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_micros(2f64.powf((bucket + 1) as f64 / 16.0) as u64);
            }
        }
        Duration::ZERO
    }
}

/// What happened in a phase.
#[derive(Clone, Default)]
pub struct Phase {
    /// How often it began.
    pub count: u64,
    /// Reads that ended in it.
    pub latencies: Latencies,
    /// Reads that failed.
    pub failed: u64,
}

#[derive(Default)]
struct Tally {
    phase: &'static str,
    phases: BTreeMap<&'static str, Phase>,
    failures: Vec<String>,
}

/// The result of a load.
pub struct Outcome {
    /// By name of the phase.
    pub phases: BTreeMap<&'static str, Phase>,
    /// The first failures.
    pub failures: Vec<String>,
}

impl Outcome {
    /// Returns the number of reads that failed, in all phases.
    pub fn failed(&self) -> u64 {
        self.phases.values().map(|phase| phase.failed).sum()
    }

    /// Returns the number of reads that succeeded.
    pub fn reads(&self) -> u64 {
        self.phases.values().map(|phase| phase.latencies.count()).sum()
    }
}

/// Readers at work.
pub struct Load {
    runtime: Runtime,
    tally: Arc<Mutex<Tally>>,
    is_over: Arc<AtomicBool>,
    readers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `readers` readers of ranges of up to `length_max` bytes of these files, which are as
    /// [`content`] says, with a pause after each read.
    pub fn start(
        runtime: Runtime,
        client: &Client,
        files: &[File],
        (readers, length_max, pause): (usize, u64, Duration),
    ) -> Load {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let is_over = Arc::new(AtomicBool::new(false));
        let files: Arc<[File]> = files.into();
        let readers = (0..readers).map(|_| {
            let (client, files) = (client.clone(), Arc::clone(&files));
            let (tally, is_over) = (Arc::clone(&tally), Arc::clone(&is_over));
            runtime.spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let file = &files[fastrand::usize(..files.len())];
                    let offset = fastrand::u64(..file.length);
                    let length = fastrand::u64(1..=length_max).min(file.length - offset);
                    let start = Instant::now();
                    let read = client.read(file, offset, length).await;
                    note(&tally, start.elapsed(), file, offset, &read);
                    if let Ok(bytes) = read {
                        assert_eq!(bytes.len() as u64, length, "{}", file.path);
                        content::check(&file.path, offset, &bytes);
                    }
                    tokio::time::sleep(pause).await;
                }
            })
        });
        let readers = readers.collect();
        Load { runtime, tally, is_over, readers }
    }

    /// Counts what happens from now on under this name.
    pub fn begin(&self, phase: &'static str) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.phase = phase;
        tally.phases.entry(phase).or_default().count += 1;
    }

    /// True if a reader has ended, which only a wrong byte makes it do.
    pub fn is_broken(&self) -> bool {
        self.readers.iter().any(JoinHandle::is_finished)
    }

    /// Returns the number of reads so far.
    pub fn reads(&self) -> u64 {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.phases.values().map(|phase| phase.latencies.count()).sum()
    }

    /// Runs something on the readers' runtime.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Ends all readers and returns what they counted.
    ///
    /// # Panics
    /// If one of them saw a wrong byte.
    pub fn stop(self) -> Outcome {
        self.is_over.store(true, Ordering::Relaxed);
        for reader in self.readers {
            self.runtime.block_on(reader).expect("every byte is right");
        }
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        Outcome {
            phases: std::mem::take(&mut tally.phases),
            failures: std::mem::take(&mut tally.failures),
        }
    }
}

fn note<T>(
    tally: &Mutex<Tally>,
    time: Duration,
    file: &File,
    offset: u64,
    read: &Result<T, millrace_client::Error>,
) {
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    let name = tally.phase;
    let phase = tally.phases.entry(name).or_default();
    match read {
        Ok(_) => phase.latencies.add(time),
        Err(error) => {
            phase.failed += 1;
            let text = format!("{name}: {} at {offset} after {time:?}: {error}", file.path);
            if tally.failures.len() < FAILURES_KEPT {
                tally.failures.push(text);
            }
        }
    }
}
