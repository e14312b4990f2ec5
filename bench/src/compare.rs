//! `millrace bench compare`: the node beside its rivals, in one run, on one machine.
//!
//! Owns the order of measurement. All servers of a size run on the same CPU at once, each holds the same
//! objects, and only one is loaded at a time. Rounds are interleaved and their order rotates, so that a
//! machine that slows down slows all of them; the report has the median of the ratios of each round, not
//! a ratio of medians.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

mod candidate;
mod findings;
mod latency;
mod limit;
mod near;
mod server;

use candidate::Candidate;
pub use findings::{CompareReport, RatioReport, SizeReport, Skipped};
pub use latency::{LatencyPart, LatencyRatio, LatencyReport, LatencyServer};
use limit::Limits;
pub use limit::{LimitReport, LimitRound};
use near::Near;
pub use near::NearReport;
pub use server::ServerReport;

use crate::content::ObjectSet;
use crate::isolation;
use crate::load::LoadOptions;
use crate::machine::{self, Calibration, Machine};
use crate::report;
use crate::rival::{self, NodeOptions, Rival, Start, Transport};

/// Name of the node in reports.
pub(crate) const NODE_NAME: &str = "millrace";
/// Most payload in flight at once, in bytes. Guessed: a rival that queues its replies, as redis does,
/// has to hold them all in memory.
const IN_FLIGHT_BYTES_MAX: u64 = 2 << 30;

/// Most connections to one server. Derived: a quarter of those that the rivals are started with room
/// for, because some keep some for themselves.
pub const CONNECTIONS_MAX: usize = 1024;

/// What is compared, and how.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// Sizes of objects in bytes.
    pub sizes: Vec<usize>,
    /// Number of connections.
    pub connections: usize,
    /// Requests in flight on each connection.
    pub depth: usize,
    /// Keys in each request; `None` for plain reads.
    pub batch: Option<usize>,
    /// True if the load generator spins instead of sleeping, see [`LoadOptions::spin`].
    pub spin: bool,
    /// Measured time of each server in each round, in seconds.
    pub seconds: f64,
    /// Load before each measurement, in seconds.
    pub warmup_seconds: f64,
    /// Rounds; an odd number has a median that was measured.
    pub rounds: usize,
    /// The way by which all servers are reached.
    pub transport: Transport,
    /// CPU of every server.
    pub server_cpu: usize,
    /// CPU of the load generator.
    pub client_cpu: usize,
    /// Size of all objects of one size together, in bytes.
    pub set_bytes: u64,
    /// Rivals to measure.
    pub rivals: Vec<Rival>,
    /// True if the limits of the loopback interface are measured beside large objects.
    pub limits: bool,
    /// True if reading in place is measured beside `memcpy`.
    pub near: bool,
    /// How the node is started; `None` measures the rivals alone. A cache size of 0 means four times
    /// the objects and 256 MiB.
    pub node: Option<NodeOptions>,
    /// True if latencies are measured instead of speed.
    pub latency: bool,
    /// Reads a second of the open loop that measures latency; `None` for half of the top rate of
    /// redis, or of the slowest server where redis is not measured.
    pub rate: Option<f64>,
    /// Seed of content and key sequences.
    pub seed: u64,
}

impl Default for CompareOptions {
    fn default() -> Self {
        CompareOptions {
            sizes: vec![4 << 10, 64 << 10, 1 << 20],
            connections: 8,
            depth: 16,
            batch: None,
            spin: false,
            seconds: 3.0,
            warmup_seconds: 0.5,
            rounds: 5,
            transport: Transport::Tcp,
            server_cpu: 0,
            client_cpu: 1,
            set_bytes: 64 << 20,
            rivals: Rival::ALL.to_vec(),
            limits: true,
            near: true,
            node: Some(NodeOptions::default()),
            latency: false,
            rate: None,
            seed: 1,
        }
    }
}

impl CompareOptions {
    /// Returns the load of a measurement.
    fn load(&self) -> LoadOptions<'static> {
        LoadOptions {
            connections: self.connections,
            depth: self.depth,
            batch: self.batch.unwrap_or(1),
            spin: self.spin,
            warmup_seconds: self.warmup_seconds,
            seconds: self.seconds,
            cpu: Some(self.client_cpu),
            ..LoadOptions::default()
        }
    }

    /// Returns the seed of a round: each round has its own keys, and all servers of a round the same.
    fn seed_of(&self, round: usize) -> u64 {
        self.seed.wrapping_add(round as u64)
    }
}

/// Returns the order in which `count` servers take their turns: every round begins with another one.
fn interleave(round: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |step| (round + step) % count)
}

/// Compares. `progress` gets a line that says what happens next.
///
/// # Errors If a server cannot be started, or a reply is wrong: a comparison with errors proves nothing.
pub fn compare(options: &CompareOptions, mut progress: impl FnMut(&str)) -> Result<CompareReport> {
    ensure!(options.rounds > 0, "no rounds, no result");
    ensure!(options.sizes.iter().all(|&size| size > 0), "an object of 0 bytes is none");
    check_in_flight(options)?;
    progress("calibrating");
    let mut report = CompareReport {
        machine: Machine::describe(),
        calibration: Calibration::measure(),
        command: machine::command_line(isolation::INSIDE),
        commit: machine::commit(),
        versions: Vec::new(),
        skipped: Vec::new(),
        connections: options.connections,
        depth: options.depth,
        batch: options.batch.unwrap_or(1),
        spin: options.spin,
        seconds: options.seconds,
        rounds: options.rounds,
        transport: options.transport,
        server_cpu: options.server_cpu,
        client_cpu: options.client_cpu,
        sizes: Vec::new(),
        latencies: Vec::new(),
    };
    let rivals = available(options, &mut report);
    let limits = limits_available(options, &mut report);
    for &size in &options.sizes {
        let set = ObjectSet::with_total(size, options.set_bytes, options.seed);
        compare_size(options, set, &rivals, limits, &mut report, &mut progress)
            .with_context(|| format!("compare objects of {}", report::size(size as u64)))?;
    }
    Ok(report)
}

fn check_in_flight(options: &CompareOptions) -> Result<()> {
    let reads = options.connections * options.depth * options.batch.unwrap_or(1);
    for &size in &options.sizes {
        let bytes = (reads as u64).saturating_mul(size as u64);
        ensure!(
            bytes <= IN_FLIGHT_BYTES_MAX,
            "{reads} reads of {} in flight are {}, more than {}; \
             choose a smaller batch, depth or size",
            report::size(size as u64),
            report::size(bytes),
            report::size(IN_FLIGHT_BYTES_MAX)
        );
    }
    Ok(())
}

/// Returns the rivals that can be measured; the others are noted by name.
fn available(options: &CompareOptions, report: &mut CompareReport) -> Vec<Rival> {
    let mut rivals = Vec::new();
    for &rival in &options.rivals {
        let skip = |reason: String| Skipped { name: rival.name().into(), reason };
        if report.batch > 1 && !rival.has_batch() {
            report.skipped.push(skip("it has no batched reads".into()));
        } else if let Some(version) = rival.version() {
            report.versions.push((rival.name().into(), version));
            rivals.push(rival);
        } else {
            let reason = format!("{} is not installed", rival.program());
            report.skipped.push(skip(reason));
        }
    }
    rivals
}

/// Checks whether limits can be measured, and notes why not. True if they can.
fn limits_available(options: &CompareOptions, report: &mut CompareReport) -> bool {
    let large = options.sizes.iter().any(|&size| size >= limit::SIZE_MIN);
    if !options.limits || options.latency || !large {
        return false;
    }
    let name = limit::PROGRAM.to_owned();
    if let Some(reason) = limit::obstacle(options.transport) {
        report.skipped.push(Skipped { name, reason: reason.into() });
        return false;
    }
    report.versions.extend(limit::version().map(|version| (name, version)));
    true
}

fn compare_size(
    options: &CompareOptions,
    set: ObjectSet,
    rivals: &[Rival],
    limits: bool,
    report: &mut CompareReport,
    progress: &mut impl FnMut(&str),
) -> Result<()> {
    // Removed after the servers have gone.
    let directory = rival::scratch_directory()?;
    let mut candidates = start(options, set, rivals, directory.path(), report, progress)?;
    if options.latency {
        report.latencies.push(latency::measure(&mut candidates, options, progress)?);
    } else {
        let limits = if limits && set.size >= limit::SIZE_MIN {
            Some(Limits::start(options)?)
        } else {
            None
        };
        let near = match candidates.first() {
            Some(node) if options.near && node.name == NODE_NAME && options.batch.is_none() => {
                progress(&format!("{}: leasing", report::size(set.size as u64)));
                Near::start(node.address(), set, options).context("read in place")?
            }
            _ => None,
        };
        report.sizes.push(measure_speed(candidates, limits, near, options, progress)?);
    }
    Ok(())
}

/// Starts every server with the objects in it, and reads them all once.
fn start(
    options: &CompareOptions,
    set: ObjectSet,
    rivals: &[Rival],
    directory: &Path,
    report: &mut CompareReport,
    progress: &mut impl FnMut(&str),
) -> Result<Vec<Candidate>> {
    let label = report::size(set.size as u64);
    progress(&format!("{label}: writing {} objects", set.count));
    set.write_files(directory)?;
    let mut candidates = Vec::new();
    if let Some(node) = &options.node {
        progress(&format!("{label}: starting {NODE_NAME}"));
        let mut node = node.clone();
        if node.memory_bytes == 0 {
            node.memory_bytes = set.total_bytes() * 4 + (256 << 20);
        }
        let server = rival::start_node(&node, directory, &[options.server_cpu], options.transport)?;
        candidates.push(Candidate::node(server, set, options, &mut report.versions)?);
    }
    for &rival in rivals {
        progress(&format!("{label}: starting {}", rival.name()));
        let (cpu, transport) = (options.server_cpu, options.transport);
        match rival::start(rival, &set, directory, cpu, transport)? {
            Start::Running(server) => {
                candidates.push(Candidate::rival(rival, server, set, options))
            }
            Start::Missing => bail!("{} has gone since the start", rival.program()),
        }
    }
    for candidate in &mut candidates {
        progress(&format!("{label}: verifying {}", candidate.name));
        candidate.verify(options)?;
    }
    Ok(candidates)
}

fn measure_speed(
    mut candidates: Vec<Candidate>,
    mut limits: Option<Limits>,
    mut near: Option<Near>,
    options: &CompareOptions,
    progress: &mut impl FnMut(&str),
) -> Result<SizeReport> {
    let Some(ObjectSet { size, count: object_count, .. }) =
        candidates.first().map(|candidate| candidate.set)
    else {
        bail!("there is no server to measure");
    };
    let label = report::size(size as u64);
    for round in 0..options.rounds {
        let tell = format!("{label}: round {} of {}", round + 1, options.rounds);
        let limit_count = limits.as_ref().map_or(0, |limits| limits.all.len());
        let near_count = near.as_ref().map_or(0, |_| near::KINDS.len());
        for index in interleave(round, candidates.len() + limit_count + near_count) {
            if let Some(candidate) = candidates.get_mut(index) {
                progress(&format!("{tell}, {}", candidate.name));
                candidate.measure(options, round)?;
            } else if let Some(near) = &mut near
                && index - candidates.len() < near_count
            {
                let kind = index - candidates.len();
                progress(&format!("{tell}, {}", near::KINDS[kind]));
                near.measure(kind, round, options)?;
            } else if let Some(limits) = &mut limits {
                let index = index - candidates.len() - near_count;
                progress(&format!("{tell}, {}", limits.all[index].name));
                limits.measure(index, options)?;
            }
        }
    }
    let servers: Vec<ServerReport> = candidates.into_iter().map(Candidate::report).collect();
    let node = servers.iter().find(|server| server.name == NODE_NAME);
    let node_gb_per_s: Vec<f64> =
        node.iter().flat_map(|node| &node.rounds).map(|round| round.gb_per_s).collect();
    Ok(SizeReport {
        size,
        object_count,
        ratios: findings::ratios(&servers),
        near: near.map_or_else(Vec::new, |near| near.report(&servers)),
        servers,
        limits: limits.map_or_else(Vec::new, |limits| limits.report(&node_gb_per_s)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_in_flight_than_memory_is_refused() {
        let mut options = CompareOptions::default();
        check_in_flight(&options).unwrap();
        options.batch = Some(64);
        let error = check_in_flight(&options).unwrap_err();
        assert!(error.to_string().contains("8 GiB"), "{error}");
    }
}
