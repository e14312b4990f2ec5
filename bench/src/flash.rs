//! `millrace bench flash`: random reads of a node's disk through the protocol, beside `fio` on the same file system.
//!
//! Owns the order of measurement. The node has little memory and all data on its disk; fio reads a file of the same
//! size with io_uring, direct and with registered buffers, at the same size and depth, on the same processor. Rounds
//! are interleaved, and the side that comes first changes. Reads that memory served do not count: the ratio is of those
//! that a disk served.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::address::Stream;
use crate::content::ObjectSet;
use crate::control::Control;
use crate::machine::{self, Machine};
use crate::read::{self, ReadOptions};
use crate::report::{self, Table, median};
use crate::rival::{self, NodeOptions, Server, Transport};

/// Size of a source file.
const FILE_BYTES: usize = 64 << 20;
/// Size of the reads by which the disk is filled. Derived: a block.
const FILL_SIZE: u32 = 1 << 20;
/// Reads in flight meanwhile. Guessed: slower than the disk, so that blocks are written before they leave memory.
const FILL_DEPTH: usize = 2;
/// Seconds in which it has to be full. Guessed.
const FILL_SECONDS_MAX: u32 = 120;
/// Share of the data that has to be on the disk before anything is measured.
const FILLED_SHARE: f64 = 0.995;
/// What a read through the node is to reach of fio's.
const AIM: f64 = 0.95;

/// What is measured.
#[derive(Clone, Debug)]
pub struct FlashOptions {
    /// Directory on the file system that is measured.
    pub directory: PathBuf,
    /// Sizes of reads in bytes.
    pub sizes: Vec<u32>,
    /// Reads in flight.
    pub depth: usize,
    /// Connections that they are spread over.
    pub connections: usize,
    /// Bytes of data.
    pub data_bytes: u64,
    /// Measured time of each side in each round, in seconds.
    pub seconds: f64,
    /// Rounds; an odd number has a median that was measured.
    pub rounds: usize,
    /// How the node is started. A cache size of 0 means an eighth of the data, and at least 128 MiB.
    pub node: NodeOptions,
    /// Seed of content and choice.
    pub seed: u64,
}

impl Default for FlashOptions {
    fn default() -> Self {
        FlashOptions {
            directory: std::env::temp_dir(),
            sizes: vec![4 << 10, 1 << 20],
            depth: 16,
            connections: 1,
            data_bytes: 1 << 30,
            seconds: 3.0,
            rounds: 5,
            node: NodeOptions::default(),
            seed: 1,
        }
    }
}

/// One side of one round.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct FlashSide {
    /// Reads that the disk served, a second.
    pub reads_per_s: f64,
    /// Processor time of a read in microseconds, of all reads that were served.
    pub cpu_us: f64,
}

/// One round of one size.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FlashRound {
    /// fio.
    pub fio: FlashSide,
    /// The node.
    pub millrace: FlashSide,
    /// Share of the node's reads that memory served.
    pub hit_share: f64,
    /// Share of the bytes that were not in memory and came from the source, and not from the disk.
    pub source_share: f64,
}

/// All rounds of one size.
#[derive(Clone, Debug, Serialize)]
pub struct FlashLine {
    /// Size of a read in bytes.
    pub size: u32,
    /// The rounds.
    pub rounds: Vec<FlashRound>,
    /// Median of the ratios of reads a second.
    pub ratio: f64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct FlashReport {
    /// The machine.
    pub machine: Machine,
    /// Version of fio.
    pub fio: String,
    /// Reads in flight, and the connections that they are spread over.
    pub depth: usize,
    pub connections: usize,
    /// Bytes of data, and of the node's memory.
    pub data_bytes: u64,
    pub memory_bytes: u64,
    /// Bytes that the node wrote to the disk for each byte of data.
    pub written_share: f64,
    /// Command and commit.
    pub command: String,
    pub commit: Option<String>,
    /// Results of each size.
    pub lines: Vec<FlashLine>,
}

/// Measures. `progress` gets a line that says what happens next.
///
/// # Errors
/// If fio is not installed, the node does not start, or its disk does not fill.
pub fn measure(options: &FlashOptions, mut progress: impl FnMut(&str)) -> Result<FlashReport> {
    let fio = machine::find_program("fio").context("fio is not installed (apt install fio)")?;
    ensure!(!options.sizes.is_empty() && options.rounds > 0, "nothing to measure");
    let cpus = machine::usable_cpus()?;
    let (cpu, load_cpu) = (cpus[0], cpus.get(1).copied());
    let scratch = tempfile::Builder::new().prefix("millrace-bench-").tempdir_in(&options.directory);
    let scratch = scratch.context("make a directory on the file system that is measured")?;
    progress("writing data");
    let set = ObjectSet::with_total(FILE_BYTES, options.data_bytes, options.seed);
    let source = scratch.path().join("source");
    set.write_files(&source)?;
    let fio_file = scratch.path().join("fio");
    write_file(&fio_file, set)?;
    let least = 128 << 20;
    let memory_bytes = match options.node.memory_bytes {
        0 => (options.data_bytes / 8).max(least),
        bytes => bytes,
    };
    let mut node = NodeOptions { memory_bytes, ..options.node.clone() };
    let tier = scratch.path().join("tier");
    node.arguments.push(format!("--disk={}:{}", tier.display(), set.total_bytes() * 2));
    let server = rival::start_node(&node, &source, &[cpu], Transport::Tcp)?;
    let mut control = Control::connect(server.address())?;
    let reader = Reader { options, server: &server, load_cpu };
    let stored = reader.fill(&mut control, set.total_bytes(), &mut progress)?;
    let mut lines = Vec::new();
    for &size in &options.sizes {
        let mut rounds = Vec::new();
        for round in 0..options.rounds {
            progress(&format!("{}, round {}", report::size(u64::from(size)), round + 1));
            let direct = || run_fio(&fio, &fio_file, options, size, cpu);
            let first = if round % 2 == 0 { Some(direct()?) } else { None };
            let (millrace, hit_share, source_share) = reader.read(&mut control, size, round)?;
            let fio = first.map_or_else(direct, Ok)?;
            rounds.push(FlashRound { fio, millrace, hit_share, source_share });
        }
        let ratios = rounds.iter().map(|round| round.millrace.reads_per_s / round.fio.reads_per_s);
        let ratio = median(&ratios.collect::<Vec<_>>());
        lines.push(FlashLine { size, rounds, ratio });
    }
    Ok(FlashReport {
        machine: Machine::describe(),
        fio: version_of(&fio),
        depth: options.depth,
        connections: options.connections,
        data_bytes: set.total_bytes(),
        memory_bytes,
        written_share: stored,
        command: machine::command_line(""),
        commit: machine::commit(),
        lines,
    })
}

/// Writes the file that fio reads.
fn write_file(path: &Path, set: ObjectSet) -> Result<()> {
    let mut file = File::create(path).context("write fio's file")?;
    let mut bytes = Vec::new();
    for index in 0..set.count {
        set.fill(index, &mut bytes);
        file.write_all(&bytes).context("write fio's file")?;
    }
    file.sync_all().context("write fio's file")
}

fn version_of(fio: &Path) -> String {
    let output = Command::new(fio).arg("--version").output();
    output.map(|it| String::from_utf8_lossy(&it.stdout).trim().to_owned()).unwrap_or_default()
}

/// Runs fio once.
fn run_fio(
    fio: &Path,
    file: &Path,
    options: &FlashOptions,
    size: u32,
    cpu: usize,
) -> Result<FlashSide> {
    let output = Command::new(fio)
        .args(["--name=read", "--rw=randread", "--ioengine=io_uring", "--direct=1", "--fixedbufs"])
        .args(["--time_based", "--output-format=json"])
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--bs={size}"))
        .arg(format!("--iodepth={}", options.depth * options.connections))
        .arg(format!("--runtime={}", options.seconds))
        .arg(format!("--cpus_allowed={cpu}"))
        .output()
        .context("run fio")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Warnings may come before it.
    let start = text.find('{').unwrap_or(0);
    let json: serde_json::Value = serde_json::from_str(&text[start..]).with_context(|| {
        format!("read what fio says: {}", String::from_utf8_lossy(&output.stderr))
    })?;
    let job = &json["jobs"][0];
    let number = |value: &serde_json::Value| value.as_f64().context("a number of fio is missing");
    let reads_per_s = number(&job["read"]["iops"])?;
    let cpu_share = (number(&job["usr_cpu"])? + number(&job["sys_cpu"])?) / 100.0;
    ensure!(reads_per_s > 0.0, "fio read nothing");
    Ok(FlashSide { reads_per_s, cpu_us: cpu_share * 1e6 / reads_per_s })
}

/// The node's side.
struct Reader<'a> {
    options: &'a FlashOptions,
    server: &'a Server,
    load_cpu: Option<usize>,
}

impl Reader<'_> {
    fn read_options(&self, size: u32, seconds: f64, seed: u64) -> ReadOptions {
        ReadOptions {
            address: self.server.address().to_string(),
            sizes: vec![size],
            connections: self.options.connections,
            depth: self.options.depth,
            warmup_seconds: 0.0,
            seconds,
            cpu: self.load_cpu,
            server_pid: Some(self.server.pid()),
            seed,
            ..ReadOptions::default()
        }
    }

    /// Reads until the data is on the disk. Returns the bytes written for each byte of it.
    fn fill(
        &self,
        control: &mut Control<Stream>,
        data_bytes: u64,
        progress: &mut impl FnMut(&str),
    ) -> Result<f64> {
        progress("filling the disk");
        let wanted = (data_bytes as f64 * FILLED_SHARE) as u64 / u64::from(FILL_SIZE);
        for second in 0..FILL_SECONDS_MAX {
            let slow = ReadOptions {
                connections: 1,
                depth: FILL_DEPTH,
                ..self.read_options(FILL_SIZE, 1.0, u64::from(second))
            };
            read::read(&slow, |_| ())?;
            if counter(control, "flash_run_count")? >= wanted {
                let written = counter(control, "flash_written_bytes")?;
                let stored = counter(control, "flash_stored_bytes")?;
                return Ok(written as f64 / stored.max(1) as f64);
            }
        }
        anyhow::bail!("the data was not on the disk after {FILL_SECONDS_MAX} s")
    }

    /// Measures once: reads that the disk served, and the shares of memory and source.
    fn read(
        &self,
        control: &mut Control<Stream>,
        size: u32,
        round: usize,
    ) -> Result<(FlashSide, f64, f64)> {
        const NAMES: [&str; 4] = ["hit_count", "miss_count", "fill_bytes", "flash_read_bytes"];
        let mut counters =
            || -> Result<Vec<u64>> { NAMES.iter().map(|name| counter(control, name)).collect() };
        let before = counters()?;
        let seed = self.options.seed + round as u64 * 1000 + u64::from(size);
        let report = read::read(&self.read_options(size, self.options.seconds, seed), |_| ())?;
        let after = counters()?;
        let of = |index: usize| (after[index] - before[index]) as f64;
        let (hits, misses, source, disk) = (of(0), of(1), of(2), of(3));
        let result = &report.sizes[0].result;
        let hit_share = hits / (hits + misses).max(1.0);
        let cpu_us = result.server_cpu_s.unwrap_or(0.0) * 1e6 / result.reads.max(1) as f64;
        let side = FlashSide { reads_per_s: result.reads_per_s * (1.0 - hit_share), cpu_us };
        Ok((side, hit_share, source / (source + disk).max(1.0)))
    }
}

fn counter(control: &mut Control<Stream>, name: &str) -> Result<u64> {
    control.counter(name)?.with_context(|| format!("the node does not count {name}"))
}

impl FlashReport {
    /// Returns the report for people.
    pub fn render(&self) -> String {
        let commit = self.commit.as_deref().unwrap_or("none");
        let mut text = format!(
            "{}, {} CPUs, Linux {}; {}\n{} of data, {} of memory, {} by {} in flight; {:.3} bytes written for each \
             byte stored\ncommand: {}; commit: {commit}\n\n",
            self.machine.cpu,
            self.machine.cpu_count,
            self.machine.kernel,
            self.fio,
            report::size(self.data_bytes),
            report::size(self.memory_bytes),
            report::counted(self.connections, "connection"),
            self.depth,
            self.written_share,
            self.command,
        );
        let mut table = Table::new(&[
            "size",
            "fio/s",
            "millrace/s",
            "ratio",
            "aim",
            "",
            "fio us CPU",
            "millrace us CPU",
            "hits",
            "source",
        ]);
        for line in &self.lines {
            let of = |value: &dyn Fn(&FlashRound) -> f64| {
                median(&line.rounds.iter().map(value).collect::<Vec<_>>())
            };
            let is_met = if line.ratio >= AIM { "met" } else { "SHORT" };
            table.row([
                report::size(u64::from(line.size)),
                format!("{:.0}", of(&|round| round.fio.reads_per_s)),
                format!("{:.0}", of(&|round| round.millrace.reads_per_s)),
                format!("{:.2}", line.ratio),
                format!(">= {AIM}"),
                is_met.to_owned(),
                format!("{:.1}", of(&|round| round.fio.cpu_us)),
                format!("{:.1}", of(&|round| round.millrace.cpu_us)),
                format!("{:.0} %", of(&|round| round.hit_share) * 100.0),
                format!("{:.1} %", of(&|round| round.source_share) * 100.0),
            ]);
        }
        text.push_str(&table.render());
        text
    }
}
