//! `millrace bench read`: loads one node that runs already, with random reads of its files.
//!
//! Owns the discovery of files. Only what the node itself serves is read, and nothing is written.

use std::fmt::Write as _;
use std::sync::mpsc::{self, Sender};

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::address::{Address, Stream};
use crate::control::Control;
use crate::keys::{Distribution, Keys};
use crate::load::{self, Check, LoadOptions, LoadResult};
use crate::machine::Machine;
use crate::report::{self, Table};
use crate::wire::{FileRanges, Millrace};

/// Counter of a node: CPU time of its whole process in milliseconds.
const CPU_COUNTER: &str = "cpu_ms";

/// How a node is read.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Address of the node, `host:port` or `unix:PATH`.
    pub address: String,
    /// Files, or directories that are listed with all below them; empty for everything.
    pub paths: Vec<String>,
    /// Most files that are taken.
    pub files_max: usize,
    /// Sizes of reads in bytes, each at most the node's block size, measured one after the other.
    /// Reads start at multiples of it within a block and never cross a block boundary.
    pub sizes: Vec<u32>,
    /// Number of connections, spread over the node's shards.
    pub connections: usize,
    /// Requests in flight on each connection.
    pub depth: usize,
    /// Reads in each request; `None` for plain reads.
    pub batch: Option<usize>,
    /// Load before the clock starts, in seconds.
    pub warmup_seconds: f64,
    /// Measured time in seconds.
    pub seconds: f64,
    /// Skew of the choice, `None` for uniform.
    pub zipf_theta: Option<f64>,
    /// Open loop of this many reads a second; `None` keeps `depth` in flight.
    pub rate: Option<f64>,
    /// True if the load generator spins instead of sleeping, see [`LoadOptions::spin`].
    pub spin: bool,
    /// True if every payload is checked against its checksums.
    pub verify: bool,
    /// CPU the load generator is pinned to.
    pub cpu: Option<usize>,
    /// Process of the node, to measure its CPU time; `None` asks the node, which may not know it.
    pub server_pid: Option<u32>,
    /// Seed of the choice.
    pub seed: u64,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions {
            address: String::new(),
            paths: Vec::new(),
            files_max: 100_000,
            sizes: vec![64 << 10],
            connections: 8,
            depth: 16,
            batch: None,
            warmup_seconds: 1.0,
            seconds: 5.0,
            zipf_theta: None,
            rate: None,
            spin: false,
            verify: false,
            cpu: None,
            server_pid: None,
            seed: 1,
        }
    }
}

/// The result of reading.
#[derive(Clone, Debug, Serialize)]
pub struct ReadReport {
    /// The machine of the load generator.
    pub machine: Machine,
    /// Name and version of the node.
    pub server: String,
    /// Its address.
    pub address: Address,
    /// Number of its shards.
    pub shard_count: usize,
    /// True if each connection asks its own shard only. With fewer connections than shards it does not,
    /// and the node passes requests on.
    pub routed: bool,
    /// Number of files read.
    pub file_count: usize,
    /// Size of them all in bytes.
    pub total_bytes: u64,
    /// Number of connections.
    pub connections: usize,
    /// Requests in flight on each.
    pub depth: usize,
    /// Reads in each request.
    pub batch: usize,
    /// Skew, `None` for uniform.
    pub zipf_theta: Option<f64>,
    /// Open loop of this many reads a second.
    pub rate: Option<f64>,
    /// True if checksums were checked.
    pub verified: bool,
    /// Results of each size.
    pub sizes: Vec<ReadSizeReport>,
}

/// Results of one size of reads.
#[derive(Clone, Debug, Serialize)]
pub struct ReadSizeReport {
    /// Size of each read in bytes.
    pub size: u32,
    /// What was measured.
    pub result: LoadResult,
}

/// Finds files and reads from them. `progress` gets a line that says what happens next.
///
/// # Errors
/// If the node is not reached, has no files there, or a reply is wrong.
pub fn read(options: &ReadOptions, mut progress: impl FnMut(&str)) -> Result<ReadReport> {
    ensure!(options.files_max > 0, "no files, no reads");
    ensure!(!options.sizes.is_empty(), "no sizes, no reads");
    let address = Address::resolve(&options.address)?;
    let mut control = Control::connect(&address)?;
    let node = control.hello()?;
    progress(&format!("finding files on {}", node.server));
    let mut entries = Vec::new();
    let everything = [String::new()];
    let paths = if options.paths.is_empty() { &everything[..] } else { &options.paths[..] };
    for path in paths {
        let room = options.files_max - entries.len();
        if room > 0 {
            entries.extend(control.find_files(path, room)?);
        }
    }
    let ranges = |&size| FileRanges::new(entries.clone(), size, node.block_size);
    // All are made before the first is measured, so a size that cannot be read is reported at once.
    let ranges: Vec<FileRanges> = options.sizes.iter().map(ranges).collect::<Result<_>>()?;
    let routed = options.connections >= node.shards.len();
    let addresses = if routed { node.shards.clone() } else { vec![address.clone()] };
    let batch = options.batch.unwrap_or(1);
    let mut report = ReadReport {
        machine: Machine::describe(),
        server: node.server.clone(),
        address,
        shard_count: node.shards.len(),
        routed,
        file_count: ranges[0].file_count(),
        total_bytes: ranges[0].total_bytes(),
        connections: options.connections,
        depth: options.depth,
        batch,
        zipf_theta: options.zipf_theta,
        rate: options.rate,
        verified: options.verify,
        sizes: Vec::with_capacity(ranges.len()),
    };
    for (&size, ranges) in options.sizes.iter().zip(ranges) {
        progress(&format!(
            "reading {} of {}, {} a read, for {} s",
            report::size(report.total_bytes),
            report::counted(report.file_count, "file"),
            report::size(u64::from(size)),
            options.warmup_seconds + options.seconds
        ));
        let distribution = options.zipf_theta.map_or(Distribution::Uniform, Distribution::Zipf);
        let mut keys = Keys::new(distribution, ranges.count(), options.seed)?;
        let mut wire = Millrace::new(&node, ranges, batch, routed)?;
        let load = LoadOptions {
            connections: options.connections,
            depth: options.depth,
            in_flight_max: None,
            batch,
            warmup_seconds: options.warmup_seconds,
            seconds: options.seconds,
            rate: options.rate,
            spin: options.spin,
            cpu: options.cpu,
            server_pid: options.server_pid,
            marks: None,
            check: if options.verify { Check::Checksums } else { Check::Lengths },
        };
        let result = if options.server_pid.is_none() && tells_cpu(&mut control) {
            with_node_cpu(&mut control, |marks| {
                let load = LoadOptions { marks: Some(marks), ..load };
                load::run(&mut wire, &addresses, &mut keys, &load)
            })?
        } else {
            load::run(&mut wire, &addresses, &mut keys, &load)?
        };
        report.sizes.push(ReadSizeReport { size, result });
    }
    Ok(report)
}

/// True if the node reports its CPU time. A failure counts as no: the measurement does not need it.
fn tells_cpu(control: &mut Control<Stream>) -> bool {
    control.counter(CPU_COUNTER).ok().flatten().is_some()
}

/// Runs `work`, which marks the start and the end of what it measures, and adds the CPU time that the
/// node reports for the time between. Another thread asks, so that the load never waits.
fn with_node_cpu(
    control: &mut Control<Stream>,
    work: impl FnOnce(&Sender<()>) -> Result<LoadResult>,
) -> Result<LoadResult> {
    let (marks, heard) = mpsc::channel();
    std::thread::scope(|scope| {
        let asker = scope.spawn(move || {
            let (mut begin, mut end) = (None, None);
            for () in heard {
                begin = end;
                end = control.counter(CPU_COUNTER).ok().flatten();
            }
            Some(end?.saturating_sub(begin?))
        });
        let result = work(&marks);
        drop(marks);
        let used_ms = asker.join().unwrap_or(None);
        let mut result = result?;
        if let Some(used_ms) = used_ms {
            result.set_server_cpu(used_ms as f64 / 1e3);
        }
        Ok(result)
    })
}

impl ReadReport {
    /// Returns the report for people.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{} at {}: {} in {}, {}{}",
            self.server,
            self.address,
            report::size(self.total_bytes),
            report::counted(self.file_count, "file"),
            report::counted(self.shard_count, "shard"),
            if self.routed { "" } else { ", requests not routed" }
        );
        let loop_name = match self.rate {
            Some(rate) => format!("open loop of {} reads/s", report::count(rate)),
            None => "closed loop".into(),
        };
        let _ = writeln!(
            text,
            "{} a request, {}, depth {}, {loop_name}{}",
            report::counted(self.batch, "read"),
            report::counted(self.connections, "connection"),
            self.depth,
            if self.verified { ", verified" } else { "" }
        );
        text.push('\n');
        let mut table = Table::new(&[
            "size",
            "reads",
            "time",
            "reads/s",
            "GB/s",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "max",
            "client s/GB",
            "server s/GB",
        ]);
        for ReadSizeReport { size, result } in &self.sizes {
            let latency = &result.latency;
            let cpu = |seconds: Option<f64>| {
                seconds.map_or_else(|| "-".into(), |seconds| format!("{seconds:.3}"))
            };
            table.row([
                report::size(u64::from(*size)),
                report::count(result.reads as f64),
                format!("{:.2} s", result.seconds),
                report::count(result.reads_per_s),
                format!("{:.2}", result.gb_per_s),
                report::latency(latency.p50_us),
                report::latency(latency.p90_us),
                report::latency(latency.p99_us),
                report::latency(latency.p999_us),
                report::latency(latency.max_us),
                cpu(Some(result.client_cpu_s_per_gb)),
                cpu(result.server_cpu_s_per_gb),
            ]);
        }
        text.push_str(&table.render());
        for ReadSizeReport { size, result } in &self.sizes {
            if result.unanswered > 0 {
                let size = report::size(u64::from(*size));
                let unanswered = result.unanswered;
                let _ = writeln!(text, "{size}: {unanswered} requests not answered in time");
            }
        }
        text
    }

    /// Returns warnings: open loops in which most requests went unanswered.
    pub fn warnings(&self) -> Vec<String> {
        let overrun = self.sizes.iter().filter(|found| found.result.is_overrun());
        let warning = |found: &ReadSizeReport| {
            let (size, result) = (report::size(u64::from(found.size)), &found.result);
            format!(
                "{size}: {} of {} requests went unanswered: the rate is more than the node can do",
                result.unanswered,
                result.unanswered + result.requests
            )
        };
        overrun.map(warning).collect()
    }
}
