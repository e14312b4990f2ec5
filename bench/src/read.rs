//! `millrace bench read`: loads one node that runs already, with random reads of its files.
//!
//! Owns the discovery of files. Only what the node itself serves is read, and nothing is written.

use std::fmt::Write as _;
use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::control::Control;
use crate::keys::{Distribution, Keys};
use crate::load::{self, Check, LoadOptions, LoadResult};
use crate::machine::Machine;
use crate::report;
use crate::wire::{FileRanges, Millrace};

/// How a node is read.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Address of the node, `host:port`.
    pub address: String,
    /// Files, or directories that are listed with all below them; empty for everything.
    pub paths: Vec<String>,
    /// Most files that are taken.
    pub files_max: usize,
    /// Size of each read in bytes, at most the node's block size. Reads start at multiples of it
    /// within a block and never cross a block boundary.
    pub size: u32,
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
    /// Whether the load generator spins instead of sleeping, see [`LoadOptions::spin`].
    pub spin: bool,
    /// Whether every payload is checked against its checksums.
    pub verify: bool,
    /// CPU the load generator is pinned to.
    pub cpu: Option<usize>,
    /// Process of the node, if its CPU time is to be measured.
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
            size: 64 << 10,
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

/// What reading found.
#[derive(Clone, Debug, Serialize)]
pub struct ReadReport {
    /// The machine of the load generator.
    pub machine: Machine,
    /// Name and version of the node.
    pub server: String,
    /// Its address.
    pub address: SocketAddr,
    /// Number of its shards.
    pub shard_count: usize,
    /// Whether each connection asks its own shard only. Not so with fewer connections than shards:
    /// the node then passes requests on.
    pub routed: bool,
    /// Number of files read.
    pub file_count: usize,
    /// Size of them all in bytes.
    pub total_bytes: u64,
    /// Size of each read in bytes.
    pub size: u32,
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
    /// Whether checksums were checked.
    pub verified: bool,
    /// What was measured.
    pub result: LoadResult,
}

/// Finds files and reads from them. `progress` is told in a line what happens next.
///
/// # Errors
/// If the node is not reached, has no files there, or a reply is wrong.
pub fn read(options: &ReadOptions, mut progress: impl FnMut(&str)) -> Result<ReadReport> {
    ensure!(options.files_max > 0, "no files, no reads");
    let address = resolve(&options.address)?;
    let mut control = Control::connect(address)?;
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
    let ranges = FileRanges::new(entries, options.size, node.block_size)?;
    let distribution = options.zipf_theta.map_or(Distribution::Uniform, Distribution::Zipf);
    let mut keys = Keys::new(distribution, ranges.count(), options.seed)?;
    let routed = options.connections >= node.shards.len();
    let addresses = if routed { node.shards.clone() } else { vec![address] };
    let batch = options.batch.unwrap_or(1);
    let mut report = ReadReport {
        machine: Machine::describe(),
        server: node.server.clone(),
        address,
        shard_count: node.shards.len(),
        routed,
        file_count: ranges.file_count(),
        total_bytes: ranges.total_bytes(),
        size: options.size,
        connections: options.connections,
        depth: options.depth,
        batch,
        zipf_theta: options.zipf_theta,
        rate: options.rate,
        verified: options.verify,
        result: LoadResult::default(),
    };
    progress(&format!(
        "reading {} of {} files for {} s",
        report::size(report.total_bytes),
        report.file_count,
        options.warmup_seconds + options.seconds
    ));
    let mut wire = Millrace::new(&node, ranges, batch, routed)?;
    let load = LoadOptions {
        connections: options.connections,
        depth: options.depth,
        batch,
        warmup_seconds: options.warmup_seconds,
        seconds: options.seconds,
        rate: options.rate,
        spin: options.spin,
        cpu: options.cpu,
        server_pid: options.server_pid,
        check: if options.verify { Check::Checksums } else { Check::Lengths },
    };
    report.result = load::run(&mut wire, &addresses, &mut keys, &load)?;
    Ok(report)
}

fn resolve(address: &str) -> Result<SocketAddr> {
    let mut found = address
        .to_socket_addrs()
        .with_context(|| format!("{address:?} is not host:port of a node"))?;
    found.next().with_context(|| format!("{address:?} leads nowhere"))
}

impl ReadReport {
    /// The report for people.
    pub fn render(&self) -> String {
        let result = &self.result;
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{} at {}: {} in {} files, {} shards{}",
            self.server,
            self.address,
            report::size(self.total_bytes),
            self.file_count,
            self.shard_count,
            if self.routed { "" } else { ", requests not routed" }
        );
        let loop_name = match self.rate {
            Some(rate) => format!("open loop of {} reads/s", report::count(rate)),
            None => "closed loop".into(),
        };
        let _ = writeln!(
            text,
            "{} a read, {} a request, {} connections, depth {}, {loop_name}{}",
            report::size(u64::from(self.size)),
            self.batch,
            self.connections,
            self.depth,
            if self.verified { ", verified" } else { "" }
        );
        let _ = writeln!(
            text,
            "{} reads in {:.2} s: {} reads/s, {:.2} GB/s",
            report::count(result.reads as f64),
            result.seconds,
            report::count(result.reads_per_s),
            result.gb_per_s
        );
        let latency = &result.latency;
        let _ = writeln!(
            text,
            "latency p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
            report::latency(latency.p50_us),
            report::latency(latency.p90_us),
            report::latency(latency.p99_us),
            report::latency(latency.p999_us),
            report::latency(latency.max_us)
        );
        let _ = writeln!(
            text,
            "CPU seconds a GB: client {:.3}, server {}",
            result.client_cpu_s_per_gb,
            report::optional(result.server_cpu_s_per_gb)
        );
        if result.unanswered > 0 {
            let _ = writeln!(text, "{} requests were not answered in time", result.unanswered);
        }
        text
    }
}
