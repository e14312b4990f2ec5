//! The load generator: one thread, non-blocking sockets, every payload byte copied out of the kernel.
//!
//! Owns options and results of a run. All connections share one receive buffer that stays in the
//! cache, requests made in one wake-up leave in one write per connection, and only heads of replies
//! are parsed, so that the server is the bottleneck and not this side. Compare the two CPU times of
//! a result to see whether it was.
//!
//! ```text
//!  epoll ─► read ≤256 KiB ─► heads parsed, payload passed over ─► next requests ─► one write
//! ```
//!
//! Closed loop: each connection keeps `depth` requests in flight; latency counts from the write that
//! sent the request. Open loop: request `i` is due at `start + i / rate`, and its latency counts from
//! then, whether or not a slot was free: a slow reply delays none of the clocks behind it.

use std::sync::mpsc::Sender;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;

mod connection;
mod generator;
mod schedule;

use crate::address::Address;
use crate::content::ObjectSet;
use crate::keys::Keys;
use crate::machine;
use crate::wire::{BATCH_MAX, Wire};

/// Most connections of one run. Derived: the 10 thousand of the largest question that is asked, and
/// below the 28 thousand ports from which Linux connects to one address.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Most requests in flight on one connection. Guessed.
pub const DEPTH_MAX: usize = 4096;

/// Part of a run of a load generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    WarmUp,
    Measure,
    Drain,
}

/// How a server is loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions<'a> {
    /// Number of connections, at least 1.
    pub connections: usize,
    /// Requests in flight on each connection, at least 1.
    pub depth: usize,
    /// Requests in flight over all connections, which take turns; `None` for all that `depth`
    /// allows.
    pub in_flight_max: Option<usize>,
    /// Reads in each request, 1 for plain reads.
    pub batch: usize,
    /// Load before the clock starts, in seconds.
    pub warmup_seconds: f64,
    /// Measured time in seconds. Ignored where the keys end by themselves.
    pub seconds: f64,
    /// Open loop of this many reads a second over all connections; `None` for the closed loop.
    pub rate: Option<f64>,
    /// True if the closed loop asks for replies again and again instead of sleeping until one is there.
    /// On one machine the server pays for waking a sleeping client; a remote client has no such cost,
    /// and one that spins is closer to it. The open loop always spins.
    pub spin: bool,
    /// CPU the generator is pinned to.
    pub cpu: Option<usize>,
    /// Process whose CPU time is measured too.
    pub server_pid: Option<u32>,
    /// Is sent a mark whenever the clocks are read; the last two marks are the start and the end of the
    /// measured time.
    pub marks: Option<&'a Sender<()>>,
    /// What is checked of each reply beside status and length.
    pub check: Check<'a>,
}

impl Default for LoadOptions<'_> {
    fn default() -> Self {
        LoadOptions {
            connections: 8,
            depth: 16,
            in_flight_max: None,
            batch: 1,
            warmup_seconds: 0.5,
            seconds: 3.0,
            rate: None,
            spin: false,
            cpu: None,
            server_pid: None,
            marks: None,
            check: Check::Lengths,
        }
    }
}

/// The checks of a payload.
#[derive(Clone, Copy, Debug, Default)]
pub enum Check<'a> {
    /// Its length; the bytes are received and dropped.
    #[default]
    Lengths,
    /// Also its checksums, where the protocol has any.
    Checksums,
    /// Also every byte, against the object the key stands for.
    Content(&'a ObjectSet),
}

/// Latency of a request in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    /// Median.
    pub p50_us: f64,
    /// 90th percentile.
    pub p90_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// Slowest.
    pub max_us: f64,
}

impl Latency {
    /// Returns the quantiles of latencies in nanoseconds.
    pub fn of(latencies: &Histogram<u64>) -> Latency {
        let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
        let max_us = latencies.max() as f64 / 1e3;
        Latency { p50_us: at(0.5), p90_us: at(0.9), p99_us: at(0.99), p999_us: at(0.999), max_us }
    }
}

/// What a run measured. A GB is 10^9 bytes of payload.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LoadResult {
    /// Reads answered; each key of a batch is one.
    pub reads: u64,
    /// Requests answered.
    pub requests: u64,
    /// Payload received in bytes.
    pub bytes: u64,
    /// Measured time in seconds.
    pub seconds: f64,
    /// Reads per second.
    pub reads_per_s: f64,
    /// Payload in GB/s.
    pub gb_per_s: f64,
    /// Latency of requests.
    pub latency: Latency,
    /// CPU time of the generator in seconds, without the time in which it spun for nothing.
    pub client_cpu_s: f64,
    /// CPU time of the server in seconds, if its process was named or it reports the time itself.
    pub server_cpu_s: Option<f64>,
    /// CPU time of the generator per GB.
    pub client_cpu_s_per_gb: f64,
    /// CPU time of the server per GB.
    pub server_cpu_s_per_gb: Option<f64>,
    /// Share of the time in which a generator that spins did not run, because the CPU did other work:
    /// its latencies count that time as if it were the server's. `None` if it may sleep.
    pub kept_away_share: Option<f64>,
    /// Open loop: requests that were due but unanswered when waiting for them ended; the latency
    /// counts them with the time they had waited.
    pub unanswered: u64,
}

impl LoadResult {
    /// True if most of what was due went unanswered, so that the rate says nothing of the server.
    pub fn is_overrun(&self) -> bool {
        self.unanswered > self.requests
    }

    /// Puts in the CPU time of the server, in seconds.
    pub(crate) fn set_server_cpu(&mut self, seconds: f64) {
        let gb = self.bytes as f64 / 1e9;
        self.server_cpu_s = Some(seconds);
        self.server_cpu_s_per_gb = Some(if gb > 0.0 { seconds / gb } else { 0.0 });
    }
}

/// Counts of a run; [`LoadResult`] is derived from them.
pub(crate) struct Measured {
    requests: u64,
    reads: u64,
    bytes: u64,
    seconds: f64,
    client_cpu_s: f64,
    server_cpu_s: Option<f64>,
    kept_away_share: Option<f64>,
    unanswered: u64,
    /// Nanoseconds.
    latency: Histogram<u64>,
}

impl Measured {
    fn result(&self) -> LoadResult {
        let gb = self.bytes as f64 / 1e9;
        let per = |value: f64, by: f64| if by > 0.0 { value / by } else { 0.0 };
        LoadResult {
            reads: self.reads,
            requests: self.requests,
            bytes: self.bytes,
            seconds: self.seconds,
            reads_per_s: per(self.reads as f64, self.seconds),
            gb_per_s: per(gb, self.seconds),
            latency: Latency::of(&self.latency),
            client_cpu_s: self.client_cpu_s,
            server_cpu_s: self.server_cpu_s,
            client_cpu_s_per_gb: per(self.client_cpu_s, gb),
            server_cpu_s_per_gb: self.server_cpu_s.map(|seconds| per(seconds, gb)),
            kept_away_share: self.kept_away_share,
            unanswered: self.unanswered,
        }
    }
}

/// Loads the server at `addresses` (one for each lane of the wire) with requests for `keys`.
///
/// The run happens on the calling thread, pinned to `options.cpu` meanwhile. It ends when the
/// measured time is over or the keys are, after every reply still in flight has been received.
///
/// # Errors
/// The first reply that is not a success, has another length, or fails a check; a closed
/// connection; no reply at all for ten seconds.
pub fn run<W: Wire>(
    wire: &mut W,
    addresses: &[Address],
    keys: &mut Keys,
    options: &LoadOptions,
) -> Result<LoadResult> {
    check_options(options)?;
    ensure!(
        addresses.len() >= wire.lanes(),
        "{} addresses for {} lanes",
        addresses.len(),
        wire.lanes()
    );
    let mut work = || {
        let mut generator = generator::Generator::new(wire, addresses, keys, options)?;
        generator.run().map(|measured| measured.result())
    };
    match options.cpu {
        Some(cpu) => machine::on_cpu(cpu, work).context("run the load generator"),
        None => work(),
    }
}

fn check_options(options: &LoadOptions) -> Result<()> {
    ensure!(
        (1..=CONNECTIONS_MAX).contains(&options.connections),
        "connections must lie in 1..={CONNECTIONS_MAX}, not {}",
        options.connections
    );
    ensure!(
        (1..=DEPTH_MAX).contains(&options.depth),
        "depth must lie in 1..={DEPTH_MAX}, not {}",
        options.depth
    );
    ensure!(options.in_flight_max != Some(0), "with no request in flight nothing is read");
    ensure!(
        (1..=BATCH_MAX).contains(&options.batch),
        "batch must lie in 1..={BATCH_MAX}, not {}",
        options.batch
    );
    ensure!(options.seconds > 0.0 && options.seconds.is_finite(), "seconds must be positive");
    ensure!(
        options.warmup_seconds >= 0.0 && options.warmup_seconds.is_finite(),
        "warm-up seconds must not be negative"
    );
    if let Some(rate) = options.rate {
        ensure!(rate.is_finite() && rate > 0.0, "a rate of {rate} reads a second is none");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
