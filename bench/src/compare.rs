//! `millrace bench compare`: the node beside its rivals, in one run, on one machine.
//!
//! Owns the order of measurement. All servers of a size run on the same CPU at once, each holds the
//! same objects, and only one is loaded at a time. Rounds are interleaved and their order rotates, so
//! that a machine that slows down slows all of them; what is reported is the median of the ratios of
//! each round, not a ratio of medians.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::content::ObjectSet;
use crate::control::Control;
use crate::keys::{Distribution, Keys};
use crate::load::{self, Check, LoadOptions, LoadResult};
use crate::machine::{Calibration, Machine};
use crate::report::{self, Table, median};
use crate::rival::{self, NodeOptions, Rival, Server, Start};
use crate::wire::{FileRanges, Http, Memcached, Millrace, Redis};

/// Name of the node in reports.
const NODE_NAME: &str = "millrace";
/// Most payload in flight at once, in bytes. Guessed: a rival that queues its replies, as redis does,
/// has to hold them all in memory.
const IN_FLIGHT_BYTES_MAX: u64 = 2 << 30;
/// Shares of CPU below this on both sides tell that neither was the limit.
const BUSY_SHARE_MIN: f64 = 0.85;
/// Longest pass over all objects before the clock starts, in seconds.
const PASS_SECONDS_MAX: f64 = 600.0;

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
    /// Whether the load generator spins instead of sleeping, see [`LoadOptions::spin`].
    pub spin: bool,
    /// Measured time of each server in each round, in seconds.
    pub seconds: f64,
    /// Load before each measurement, in seconds.
    pub warmup_seconds: f64,
    /// Rounds; an odd number has a median that was measured.
    pub rounds: usize,
    /// CPU of every server.
    pub server_cpu: usize,
    /// CPU of the load generator.
    pub client_cpu: usize,
    /// Size of all objects of one size together, in bytes.
    pub set_bytes: u64,
    /// Rivals to measure.
    pub rivals: Vec<Rival>,
    /// How the node is started; `None` measures the rivals alone. A cache size of 0 means four times
    /// the objects and 256 MiB.
    pub node: Option<NodeOptions>,
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
            server_cpu: 0,
            client_cpu: 1,
            set_bytes: 64 << 20,
            rivals: Rival::ALL.to_vec(),
            node: Some(NodeOptions::default()),
            seed: 1,
        }
    }
}

/// Everything a comparison found, with what it has to be read with.
#[derive(Clone, Debug, Serialize)]
pub struct CompareReport {
    /// The machine.
    pub machine: Machine,
    /// Its speeds.
    pub calibration: Calibration,
    /// Command line of this run.
    pub command: String,
    /// Commit of the directory it ran in, if that is known.
    pub commit: Option<String>,
    /// Each server and what it says of its version.
    pub versions: Vec<(String, String)>,
    /// Rivals that were not measured.
    pub skipped: Vec<Skipped>,
    /// Number of connections.
    pub connections: usize,
    /// Requests in flight on each.
    pub depth: usize,
    /// Keys in each request.
    pub batch: usize,
    /// Whether the load generator spun instead of sleeping.
    pub spin: bool,
    /// Measured seconds of each server in each round.
    pub seconds: f64,
    /// Rounds.
    pub rounds: usize,
    /// CPU of the servers.
    pub server_cpu: usize,
    /// CPU of the load generator.
    pub client_cpu: usize,
    /// Results of each size.
    pub sizes: Vec<SizeReport>,
}

/// A rival that was not measured.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Results of one size of objects.
#[derive(Clone, Debug, Serialize)]
pub struct SizeReport {
    /// Size of an object in bytes.
    pub size: usize,
    /// Number of objects.
    pub object_count: u64,
    /// Each server.
    pub servers: Vec<ServerReport>,
    /// The node over each rival.
    pub ratios: Vec<RatioReport>,
}

/// Medians over the rounds of one server.
#[derive(Clone, Debug, Serialize)]
pub struct ServerReport {
    /// Its name.
    pub name: String,
    /// Reads per second.
    pub reads_per_s: f64,
    /// Payload in GB/s.
    pub gb_per_s: f64,
    /// Median latency of a request in microseconds.
    pub p50_us: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
    /// CPU seconds of the server for each GB.
    pub server_cpu_s_per_gb: f64,
    /// CPU seconds of the load generator for each GB.
    pub client_cpu_s_per_gb: f64,
    /// Share of its CPU that the server used, 0 to 1 for one thread.
    pub server_cpu_share: f64,
    /// Share of its CPU that the load generator used: near 1 it was the limit.
    pub client_cpu_share: f64,
    /// Each round.
    pub rounds: Vec<LoadResult>,
}

/// Medians of the ratios of each round, the node over a rival.
#[derive(Clone, Debug, Serialize)]
pub struct RatioReport {
    /// The rival.
    pub rival: String,
    /// Of reads per second; above 1 the node is faster.
    pub reads_per_s: f64,
    /// Of the 99th percentile; below 1 the node is faster.
    pub p99: f64,
    /// Of CPU seconds of the server for each GB; below 1 the node needs less.
    pub server_cpu_s_per_gb: f64,
}

/// Compares. `progress` is told in a line what happens next.
///
/// # Errors
/// If a server cannot be started, or a reply is wrong: a comparison with errors is none.
pub fn compare(options: &CompareOptions, mut progress: impl FnMut(&str)) -> Result<CompareReport> {
    ensure!(options.rounds > 0, "no rounds, no result");
    ensure!(options.sizes.iter().all(|&size| size > 0), "an object of 0 bytes is none");
    check_in_flight(options)?;
    progress("calibrating");
    let mut report = CompareReport {
        machine: Machine::describe(),
        calibration: Calibration::measure(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        commit: commit(),
        versions: Vec::new(),
        skipped: Vec::new(),
        connections: options.connections,
        depth: options.depth,
        batch: options.batch.unwrap_or(1),
        spin: options.spin,
        seconds: options.seconds,
        rounds: options.rounds,
        server_cpu: options.server_cpu,
        client_cpu: options.client_cpu,
        sizes: Vec::new(),
    };
    let rivals = available(options, &mut report);
    for &size in &options.sizes {
        let set = ObjectSet::with_total(size, options.set_bytes, options.seed);
        let found = compare_size(options, set, &rivals, &mut report.versions, &mut progress)
            .with_context(|| format!("compare objects of {}", report::size(size as u64)))?;
        report.sizes.push(found);
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

/// The rivals that can be measured; the others are noted by name.
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

/// Commit of the current directory, if it is under git.
pub(crate) fn commit() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

fn compare_size(
    options: &CompareOptions,
    set: ObjectSet,
    rivals: &[Rival],
    versions: &mut Vec<(String, String)>,
    progress: &mut impl FnMut(&str),
) -> Result<SizeReport> {
    let label = report::size(set.size as u64);
    let directory = rival::scratch_directory()?;
    progress(&format!("{label}: writing {} objects", set.count));
    set.write_files(directory.path())?;
    let mut candidates = Vec::new();
    if let Some(node) = &options.node {
        progress(&format!("{label}: starting {NODE_NAME}"));
        let mut node = node.clone();
        if node.memory_bytes == 0 {
            node.memory_bytes = set.total_bytes() * 4 + (256 << 20);
        }
        let server = rival::start_node(&node, directory.path(), options.server_cpu)?;
        candidates.push(Candidate::node(server, set, options, versions)?);
    }
    for &rival in rivals {
        progress(&format!("{label}: starting {}", rival.name()));
        match rival::start(rival, &set, directory.path(), options.server_cpu)? {
            Start::Running(server) => {
                candidates.push(Candidate::rival(rival, server, set, options))
            }
            Start::Missing => anyhow::bail!("{} has gone since the start", rival.program()),
        }
    }
    for candidate in &mut candidates {
        progress(&format!("{label}: verifying {}", candidate.name));
        candidate.verify(options)?;
    }
    for round in 0..options.rounds {
        for step in 0..candidates.len() {
            let index = (round + step) % candidates.len();
            let candidate = &mut candidates[index];
            let name = candidate.name;
            progress(&format!("{label}: round {} of {}, {name}", round + 1, options.rounds));
            candidate.measure(options, round)?;
        }
    }
    let servers: Vec<ServerReport> = candidates.into_iter().map(Candidate::report).collect();
    Ok(SizeReport { size: set.size, object_count: set.count, ratios: ratios(&servers), servers })
}

/// A running server with the wires to it: plain reads to verify, and those that are measured.
struct Candidate {
    name: &'static str,
    server: Server,
    set: ObjectSet,
    verify_wire: AnyWire,
    measure_wire: AnyWire,
    rounds: Vec<LoadResult>,
}

/// The protocol of a candidate; matched once for each run, so that the loop itself is static.
enum AnyWire {
    Millrace(Millrace),
    Redis(Redis),
    Memcached(Memcached),
    Http(Http),
}

impl AnyWire {
    fn rival(rival: Rival, set: &ObjectSet, batch: usize) -> AnyWire {
        match rival {
            Rival::Redis => AnyWire::Redis(Redis::new(set, batch)),
            Rival::Memcached => AnyWire::Memcached(Memcached::new(set, batch)),
            Rival::Nginx => AnyWire::Http(Http::new(set)),
        }
    }
}

impl Candidate {
    fn rival(rival: Rival, server: Server, set: ObjectSet, options: &CompareOptions) -> Candidate {
        Candidate {
            name: rival.name(),
            server,
            set,
            verify_wire: AnyWire::rival(rival, &set, 1),
            measure_wire: AnyWire::rival(rival, &set, options.batch.unwrap_or(1)),
            rounds: Vec::new(),
        }
    }

    fn node(
        server: Server,
        set: ObjectSet,
        options: &CompareOptions,
        versions: &mut Vec<(String, String)>,
    ) -> Result<Candidate> {
        let mut control = Control::connect(server.address())?;
        let node = control.hello()?;
        if !versions.iter().any(|(name, _)| name == NODE_NAME) {
            versions.insert(0, (NODE_NAME.into(), node.server.clone()));
        }
        let paths: Vec<String> = (0..set.count).map(|index| set.path(index)).collect();
        let entries = control.stat_many(&paths)?;
        for entry in &entries {
            ensure!(
                entry.length == set.size as u64,
                "the node says {} has {} bytes",
                entry.name,
                entry.length
            );
        }
        let ranges = FileRanges::new(entries, u32::try_from(set.size)?, node.block_size)?;
        let wire = |batch| Millrace::new(&node, ranges.clone(), batch, false);
        Ok(Candidate {
            name: NODE_NAME,
            server,
            set,
            verify_wire: AnyWire::Millrace(wire(1)?),
            measure_wire: AnyWire::Millrace(wire(options.batch.unwrap_or(1))?),
            rounds: Vec::new(),
        })
    }

    /// Reads every object once and compares its bytes; this also warms what is cached.
    fn verify(&mut self, options: &CompareOptions) -> Result<()> {
        let mut keys = Keys::new(Distribution::Once, self.set.count, 0)?;
        let load = LoadOptions {
            connections: options.connections,
            depth: options.depth,
            batch: 1,
            warmup_seconds: 0.0,
            seconds: PASS_SECONDS_MAX,
            cpu: Some(options.client_cpu),
            check: Check::Content(&self.set),
            ..LoadOptions::default()
        };
        let address = self.server.address();
        let result = run(&mut self.verify_wire, address, &mut keys, &load)
            .with_context(|| format!("verify {}", self.name))?;
        ensure!(
            result.reads == self.set.count,
            "{} answered {} of {} objects",
            self.name,
            result.reads,
            self.set.count
        );
        Ok(())
    }

    fn measure(&mut self, options: &CompareOptions, round: usize) -> Result<()> {
        // Each round has its own keys, and all servers of a round the same.
        let seed = options.seed.wrapping_add(round as u64);
        let mut keys = Keys::new(Distribution::Uniform, self.set.count, seed)?;
        let load = LoadOptions {
            connections: options.connections,
            depth: options.depth,
            batch: options.batch.unwrap_or(1),
            spin: options.spin,
            warmup_seconds: options.warmup_seconds,
            seconds: options.seconds,
            cpu: Some(options.client_cpu),
            server_pid: Some(self.server.pid()),
            ..LoadOptions::default()
        };
        let address = self.server.address();
        let result = run(&mut self.measure_wire, address, &mut keys, &load)
            .with_context(|| format!("measure {}", self.name))?;
        self.rounds.push(result);
        Ok(())
    }

    fn report(self) -> ServerReport {
        let of = |value: fn(&LoadResult) -> f64| {
            let values: Vec<f64> = self.rounds.iter().map(value).collect();
            median(&values)
        };
        ServerReport {
            name: self.name.into(),
            reads_per_s: of(|round| round.reads_per_s),
            gb_per_s: of(|round| round.gb_per_s),
            p50_us: of(|round| round.latency.p50_us),
            p99_us: of(|round| round.latency.p99_us),
            server_cpu_s_per_gb: of(|round| round.server_cpu_s_per_gb.unwrap_or(0.0)),
            client_cpu_s_per_gb: of(|round| round.client_cpu_s_per_gb),
            server_cpu_share: of(|round| round.server_cpu_s.unwrap_or(0.0) / round.seconds),
            client_cpu_share: of(|round| round.client_cpu_s / round.seconds),
            rounds: self.rounds,
        }
    }
}

fn run(
    wire: &mut AnyWire,
    address: std::net::SocketAddr,
    keys: &mut Keys,
    options: &LoadOptions,
) -> Result<LoadResult> {
    match wire {
        AnyWire::Millrace(wire) => load::run(wire, &[address], keys, options),
        AnyWire::Redis(wire) => load::run(wire, &[address], keys, options),
        AnyWire::Memcached(wire) => load::run(wire, &[address], keys, options),
        AnyWire::Http(wire) => load::run(wire, &[address], keys, options),
    }
}

/// The node, if it is there, over each rival.
fn ratios(servers: &[ServerReport]) -> Vec<RatioReport> {
    let (ours, rivals): (Vec<_>, Vec<_>) =
        servers.iter().partition(|server| server.name == NODE_NAME);
    let Some(ours) = ours.first() else {
        return Vec::new();
    };
    let ratio = |rival: &ServerReport, value: fn(&LoadResult) -> f64| {
        median_ratio(ours.rounds.iter().map(value), rival.rounds.iter().map(value))
    };
    let over = |rival: &&ServerReport| RatioReport {
        rival: rival.name.clone(),
        reads_per_s: ratio(rival, |round| round.reads_per_s),
        p99: ratio(rival, |round| round.latency.p99_us),
        server_cpu_s_per_gb: ratio(rival, |round| round.server_cpu_s_per_gb.unwrap_or(0.0)),
    };
    rivals.iter().map(over).collect()
}

/// Median of the ratios of each round; a round whose divisor is 0 has none.
pub(crate) fn median_ratio(
    ours: impl IntoIterator<Item = f64>,
    theirs: impl IntoIterator<Item = f64>,
) -> f64 {
    let ratios: Vec<f64> = ours
        .into_iter()
        .zip(theirs)
        .filter(|&(_, theirs)| theirs > 0.0)
        .map(|(ours, theirs)| ours / theirs)
        .collect();
    median(&ratios)
}

impl CompareReport {
    /// The report for people.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let machine = &self.machine;
        let _ = writeln!(
            text,
            "{}, {} CPUs, Linux {}; servers on CPU {}, load generator on CPU {}",
            machine.cpu, machine.cpu_count, machine.kernel, self.server_cpu, self.client_cpu
        );
        let speeds = &self.calibration;
        let _ = writeln!(
            text,
            "memcpy {:.1} GB/s (cached {:.1}), CRC-32 {:.1} GB/s; TCP congestion control {}",
            speeds.memcpy_gb_per_s,
            speeds.memcpy_cached_gb_per_s,
            speeds.crc_gb_per_s,
            machine.congestion_control
        );
        if machine.congestion_control == "bbr" {
            // Measured: nginx with 64 KiB falls from 68 k to 28 k reads/s by it.
            text.push_str(
                "note: bbr paces by timers, on loopback too, and so hides what servers can do; \
                 set net.ipv4.tcp_congestion_control to cubic or reno, here or in a network \
                 namespace\n",
            );
        }
        let _ = writeln!(
            text,
            "{} connections, {} requests in flight on each, {} keys a request; {} rounds of {} s{}",
            self.connections,
            self.depth,
            self.batch,
            self.rounds,
            self.seconds,
            if self.spin { "; the client spins" } else { "" }
        );
        let _ = writeln!(
            text,
            "command: {}; commit: {}",
            self.command,
            self.commit.as_deref().unwrap_or("none")
        );
        for (name, version) in &self.versions {
            let _ = writeln!(text, "{name}: {version}");
        }
        for skipped in &self.skipped {
            let _ = writeln!(text, "{}: not measured, {}", skipped.name, skipped.reason);
        }
        for size in &self.sizes {
            text.push('\n');
            text.push_str(&size.render());
        }
        text
    }
}

impl SizeReport {
    fn render(&self) -> String {
        let title = report::size(self.size as u64);
        let mut table = Table::new(&[
            &title,
            "reads/s",
            "GB/s",
            "p50",
            "p99",
            "server s/GB",
            "client s/GB",
            "server CPU",
            "client CPU",
            "reads ratio",
            "p99 ratio",
            "s/GB ratio",
        ]);
        for server in &self.servers {
            let ratio = self.ratios.iter().find(|ratio| ratio.rival == server.name);
            let percent = |share: f64| format!("{:.0} %", share * 100.0);
            table.row([
                server.name.clone(),
                report::count(server.reads_per_s),
                format!("{:.2}", server.gb_per_s),
                report::latency(server.p50_us),
                report::latency(server.p99_us),
                format!("{:.3}", server.server_cpu_s_per_gb),
                format!("{:.3}", server.client_cpu_s_per_gb),
                percent(server.server_cpu_share),
                percent(server.client_cpu_share),
                report::optional(ratio.map(|ratio| ratio.reads_per_s)),
                report::optional(ratio.map(|ratio| ratio.p99)),
                report::optional(ratio.map(|ratio| ratio.server_cpu_s_per_gb)),
            ]);
        }
        let mut text = table.render();
        for server in &self.servers {
            let share = server.server_cpu_share.max(server.client_cpu_share);
            if share < BUSY_SHARE_MIN {
                let _ = writeln!(
                    text,
                    "note: neither {} nor its client used its CPU: was the machine busy?",
                    server.name
                );
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_is_taken_within_each_round() {
        // The machine was twice as slow in the second round; the ratio is not.
        let ratio = median_ratio([200.0, 100.0, 210.0], [100.0, 50.0, 100.0]);
        assert!((ratio - 2.0).abs() < 1e-12, "{ratio}");
        assert!(median_ratio([1.0], [0.0]).abs() < 1e-12);
    }

    #[test]
    fn more_in_flight_than_memory_is_refused() {
        let mut options = CompareOptions::default();
        check_in_flight(&options).unwrap();
        options.batch = Some(64);
        let error = check_in_flight(&options).unwrap_err();
        assert!(error.to_string().contains("8 GiB"), "{error}");
    }

    #[test]
    fn report_names_ratio_beside_its_rival() {
        let server = |name: &str, reads: f64| ServerReport {
            name: name.into(),
            reads_per_s: reads,
            gb_per_s: 1.0,
            p50_us: 10.0,
            p99_us: 20.0,
            server_cpu_s_per_gb: 0.2,
            client_cpu_s_per_gb: 0.1,
            server_cpu_share: 1.0,
            client_cpu_share: 0.5,
            rounds: vec![LoadResult { reads_per_s: reads, ..LoadResult::default() }],
        };
        let servers = vec![server(NODE_NAME, 300.0), server("redis", 200.0)];
        let size = SizeReport { size: 4096, object_count: 1, ratios: ratios(&servers), servers };
        let text = size.render();
        let row = text.lines().find(|line| line.starts_with("redis")).unwrap();
        assert!(row.contains("1.50"), "{text}");
        let row = text.lines().find(|line| line.starts_with(NODE_NAME)).unwrap();
        assert!(row.trim_end().ends_with('-'), "{text}");
    }
}
