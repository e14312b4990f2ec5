//! The load generator: one thread, non-blocking sockets, every answer compared.
//!
//! Owns phases and clocks of a run. Closed loop: `outstanding` requests are in flight all the time,
//! spread evenly over the connections, and these over the replicas. A run goes through warm-up,
//! measurement and drain, and when it is over nothing is in flight. Latency counts from when a request
//! was encoded, which is right before the write that sends it.
//!
//! Refused requests are counted apart from the others: rates and latencies are those of successes only.
//! A broken connection or a wrong answer ends the run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::link::{Link, Received, Target};
use super::operation::{Operation, Values};
use super::session::{Outcome, Refusal, SESSION_TIMEOUT_MS, Sent};
use super::system::System;
use crate::load::{Latency, Phase};
use crate::machine;
use crate::sockets::{Poll, WAIT_NS, latencies};

/// Most connections of one run. Guessed: far above what one thread can keep busy.
pub const CONNECTIONS_MAX: usize = 1024;
/// Most requests in flight. Guessed.
pub const OUTSTANDING_MAX: usize = 65_536;
/// A run without any reply for this long has failed. Guessed: longer than a full collection of a
/// large heap, or the stall of a busy disk.
const SILENCE_NS_MAX: u64 = 30_000_000_000;
/// Time without a request after which a session is kept alive by a ping: a third of its timeout, as
/// ZooKeeper's clients do.
const PING_AFTER_NS: u64 = SESSION_TIMEOUT_MS as u64 * 1_000_000 / 3;
/// Longest wait for a connection to open.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// How a service is loaded.
#[derive(Clone, Debug)]
pub(crate) struct Load<'a> {
    pub(crate) system: System,
    /// Replicas, in the order in which connections are spread over them.
    pub(crate) addresses: &'a [SocketAddr],
    pub(crate) values: &'a Values,
    /// Most connections; there are never more than requests in flight.
    pub(crate) connections: usize,
    /// Requests in flight over all connections.
    pub(crate) outstanding: usize,
    /// Load before the clock starts, in seconds.
    pub(crate) warmup_seconds: f64,
    /// Measured time in seconds; infinite where the operations end by themselves.
    pub(crate) seconds: f64,
    /// CPU the generator is pinned to.
    pub(crate) cpu: Option<usize>,
    /// Processes whose CPU time is measured.
    pub(crate) pids: &'a [u32],
}

/// What a run measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measurement {
    /// Operations that succeeded.
    pub operations: u64,
    /// Measured time in seconds.
    pub seconds: f64,
    /// Operations per second.
    pub operations_per_s: f64,
    /// Latency of operations.
    pub latency: Latency,
    /// CPU time of the generator in seconds.
    pub client_cpu_s: f64,
    /// CPU time of all replicas in seconds.
    pub server_cpu_s: f64,
    /// CPU time of all replicas for 100,000 operations, in seconds.
    pub server_cpu_s_per_100k: f64,
    /// Operations that were refused, by reason; warm-up and drain included.
    pub refused: BTreeMap<String, u64>,
}

impl Measurement {
    /// Returns how many operations were refused.
    pub fn refused_count(&self) -> u64 {
        self.refused.values().sum()
    }
}

/// Loads a service with `operations` until the measured time is over, or they are.
///
/// # Errors
/// The first wrong answer, a closed connection, or no answer at all for thirty seconds.
pub(crate) fn run(
    load: &Load<'_>,
    operations: &mut dyn Iterator<Item = Operation>,
) -> Result<Measurement> {
    ensure!(
        (1..=CONNECTIONS_MAX).contains(&load.connections),
        "connections must lie in 1..={CONNECTIONS_MAX}, not {}",
        load.connections
    );
    ensure!(
        (1..=OUTSTANDING_MAX).contains(&load.outstanding),
        "requests in flight must lie in 1..={OUTSTANDING_MAX}, not {}",
        load.outstanding
    );
    let mut work = || {
        let mut generator = OperationGenerator::new(load, operations)?;
        generator.run()?;
        generator.close()
    };
    match load.cpu {
        Some(cpu) => machine::on_cpu(cpu, work).context("run the load generator"),
        None => work(),
    }
}

/// CPU times and clock at one moment.
#[derive(Clone, Copy, Default)]
struct EnsembleReading {
    at_ns: u64,
    client_cpu_s: f64,
    server_cpu_s: f64,
}

/// A connection of the generator.
struct Lane {
    link: Link,
    /// Requests it keeps in flight.
    depth: usize,
    /// When it last had something to send.
    sent_ns: u64,
}

/// The results so far.
struct OperationTally {
    is_measuring: bool,
    /// Everything that was answered, in any phase.
    answered: u64,
    operations: u64,
    refused: BTreeMap<Refusal, u64>,
    /// Nanoseconds.
    latency: Histogram<u64>,
}

impl OperationTally {
    #[inline]
    fn take(&mut self, sent: Sent, outcome: Outcome, now_ns: u64) {
        self.answered += 1;
        match outcome {
            Ok(()) if self.is_measuring => {
                self.operations += 1;
                self.latency.saturating_record(now_ns.saturating_sub(sent.at_ns));
            }
            Ok(()) => {}
            Err(refusal) => *self.refused.entry(refusal).or_default() += 1,
        }
    }
}

struct OperationGenerator<'a, 'b> {
    load: &'a Load<'a>,
    operations: &'b mut dyn Iterator<Item = Operation>,
    is_exhausted: bool,
    poll: Poll,
    lanes: Vec<Lane>,
    buffer: Vec<u8>,
    origin: Instant,
    tally: OperationTally,
    begin: EnsembleReading,
    end: EnsembleReading,
}

impl<'a, 'b> OperationGenerator<'a, 'b> {
    fn new(
        load: &'a Load<'a>,
        operations: &'b mut dyn Iterator<Item = Operation>,
    ) -> Result<OperationGenerator<'a, 'b>> {
        let poll = Poll::new()?;
        let mut buffer = Vec::new();
        let count = load.connections.min(load.outstanding);
        let mut lanes = Vec::with_capacity(count);
        for index in 0..count {
            let target = Target {
                system: load.system,
                address: load.addresses[index % load.addresses.len()],
                session_ms: SESSION_TIMEOUT_MS,
                patience: CONNECT_PATIENCE,
            };
            let link = Link::open(&target, None, load.values, &mut buffer)
                .with_context(|| format!("open connection {index} to {}", target.address))?;
            link.stream.set_nonblocking(true)?;
            poll.add(&link.stream, index)?;
            let depth = load.outstanding / count + usize::from(index < load.outstanding % count);
            lanes.push(Lane { link, depth, sent_ns: 0 });
        }
        Ok(OperationGenerator {
            load,
            operations,
            is_exhausted: false,
            poll,
            lanes,
            buffer,
            origin: Instant::now(),
            tally: OperationTally {
                is_measuring: false,
                answered: 0,
                operations: 0,
                refused: BTreeMap::new(),
                latency: latencies(),
            },
            begin: EnsembleReading::default(),
            end: EnsembleReading::default(),
        })
    }

    fn run(&mut self) -> Result<()> {
        let warmup_ns = (self.load.warmup_seconds * 1e9) as u64;
        let mut end_ns = u64::MAX;
        let mut events = Vec::with_capacity(self.lanes.len());
        let mut phase = Phase::WarmUp;
        self.origin = Instant::now();
        let mut now = self.now_ns();
        let (mut answered, mut answered_ns) = (0, now);
        for index in 0..self.lanes.len() {
            self.fill(index)?;
        }
        loop {
            if phase == Phase::WarmUp && now >= warmup_ns {
                phase = Phase::Measure;
                self.tally.is_measuring = true;
                self.begin = self.read_clocks()?;
                // An infinite time saturates.
                end_ns = self.begin.at_ns.saturating_add((self.load.seconds * 1e9) as u64);
            }
            let in_flight: usize = self.lanes.iter().map(|lane| lane.link.in_flight()).sum();
            let is_over = now >= end_ns || (self.is_exhausted && in_flight == 0);
            if phase == Phase::Measure && is_over {
                phase = Phase::Drain;
                self.tally.is_measuring = false;
                self.end = self.read_clocks()?;
                self.is_exhausted = true;
            }
            if phase == Phase::Drain && in_flight == 0 {
                return Ok(());
            }
            self.poll.wait(&mut events, WAIT_NS)?;
            for event in events.drain(..) {
                self.serve(event.data.u64() as usize)?;
            }
            now = self.now_ns();
            if answered != self.tally.answered {
                (answered, answered_ns) = (self.tally.answered, now);
            } else if now - answered_ns > SILENCE_NS_MAX {
                bail!(
                    "no reply for {} s with {in_flight} requests in flight",
                    SILENCE_NS_MAX / 1_000_000_000
                );
            }
            self.keep_alive(now)?;
        }
    }

    fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    fn read_clocks(&self) -> Result<EnsembleReading> {
        let mut server_cpu_s = 0.0;
        for &pid in self.load.pids {
            server_cpu_s += machine::process_cpu_s(pid)?;
        }
        Ok(EnsembleReading {
            server_cpu_s,
            client_cpu_s: machine::thread_cpu_s(),
            at_ns: self.now_ns(),
        })
    }

    /// Takes what has arrived on a connection, and sends what there is room for.
    fn serve(&mut self, index: usize) -> Result<()> {
        let (tally, origin) = (&mut self.tally, self.origin);
        let mut done = |sent: Sent, outcome| {
            tally.take(sent, outcome, origin.elapsed().as_nanos() as u64);
        };
        let link = &mut self.lanes[index].link;
        let received = link.receive(self.load.values, &mut self.buffer, &mut done);
        match received.with_context(|| format!("on connection {index}"))? {
            Received::Bytes | Received::Nothing => self.fill(index),
            Received::End => bail!("the server closed connection {index}"),
        }
    }

    /// Uses every free slot of a connection, in one write.
    fn fill(&mut self, index: usize) -> Result<()> {
        let now = self.now_ns();
        let lane = &mut self.lanes[index];
        let values = self.load.values;
        while !self.is_exhausted && lane.link.in_flight() < lane.depth && lane.link.has_room() {
            let Some(operation) = self.operations.next() else {
                self.is_exhausted = true;
                break;
            };
            lane.link.request(operation, now, values)?;
            lane.sent_ns = now;
        }
        self.flush(index)
    }

    fn flush(&mut self, index: usize) -> Result<()> {
        let link = &mut self.lanes[index].link;
        link.settle()?;
        self.poll.flush(index, &link.stream, &mut link.out)
    }

    /// Pings on connections that have had nothing to send for long.
    fn keep_alive(&mut self, now: u64) -> Result<()> {
        for index in 0..self.lanes.len() {
            let lane = &mut self.lanes[index];
            if now.saturating_sub(lane.sent_ns) > PING_AFTER_NS {
                lane.sent_ns = now;
                lane.link.ping();
                self.flush(index)?;
            }
        }
        Ok(())
    }

    /// Ends the sessions; returns what was measured.
    fn close(self) -> Result<Measurement> {
        self.lanes.into_iter().for_each(|lane| lane.link.close());
        let OperationTally { operations, refused, latency, .. } = self.tally;
        let seconds = (self.end.at_ns - self.begin.at_ns) as f64 / 1e9;
        let server_cpu_s = (self.end.server_cpu_s - self.begin.server_cpu_s).max(0.0);
        let per = |value: f64, by: f64| if by > 0.0 { value / by } else { 0.0 };
        Ok(Measurement {
            operations,
            seconds,
            operations_per_s: per(operations as f64, seconds),
            latency: Latency::of(&latency),
            client_cpu_s: self.end.client_cpu_s - self.begin.client_cpu_s,
            server_cpu_s,
            server_cpu_s_per_100k: per(server_cpu_s, operations as f64 / 1e5),
            refused: refused.into_iter().map(|(why, count)| (why.to_string(), count)).collect(),
        })
    }
}

#[cfg(test)]
mod tests;
