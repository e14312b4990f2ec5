//! `millrace bench scale`: what more shards, connections and blocks do to one node.
//!
//! Owns the axes and the order of measurement. All points of an axis are there at once and take turns in
//! rounds; a ratio is of a point to the first one of its series within a round, and the report has the
//! median of the rounds. A point that this machine has no room for is named, with the reason. Reads are
//! of 4 KiB.
//!
//! A block of 4 KiB is a file of 4 KiB: the smallest that takes a page of a node's memory and an
//! entry of its index. Files are holes in a directory in memory, so that a million of them are made
//! in seconds.

use anyhow::{Context, Result, ensure};

mod findings;
mod probe;
mod stock;

pub use findings::{AxisReport, PointReport, Sample, ScaleReport, SeriesReport, SkippedPoint};
use probe::Probe;
use stock::{Source, Stock};

use crate::load::{CONNECTIONS_MAX, LoadOptions};
use crate::machine::{self, Machine};
use crate::report;
use crate::rival::{NodeOptions, Transport};

/// Size of every read, and of every block.
pub(crate) const READ_SIZE: u32 = 4 << 10;
/// Blocks if the axis is another one: the 64 MiB of a comparison.
const BLOCK_COUNT: u64 = 16_384;
/// Connections and requests in flight on each if the axis is another one, for each shard.
const CONNECTIONS: usize = 8;
const DEPTH: usize = 16;
/// Requests in flight over all connections in the series that separates connections from load. Derived:
/// one for each connection of the smallest point.
const IN_FLIGHT: usize = 10;
/// Descriptors this process and a node need beside connections. Guessed, on the safe side.
const DESCRIPTORS_SPARE: u64 = 256;
/// A load generator that used this share of its CPU may have been the limit.
const LIMIT_SHARE: f64 = 0.9;

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Shards of a node.
    Shards,
    /// Connections to it.
    Connections,
    /// Blocks in its memory.
    Blocks,
}

impl Axis {
    /// All axes, in the order of reports.
    pub const ALL: [Axis; 3] = [Axis::Shards, Axis::Connections, Axis::Blocks];

    /// Returns the name as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Axis::Shards => "shards",
            Axis::Connections => "connections",
            Axis::Blocks => "blocks",
        }
    }
}

/// How far and how long.
#[derive(Clone, Debug)]
pub struct ScaleOptions {
    /// Axes to measure.
    pub axes: Vec<Axis>,
    /// Most shards; `None` for one less than there are CPUs, at least two where there are two.
    pub shards_max: Option<usize>,
    /// Points of connections.
    pub connections: Vec<usize>,
    /// Points of blocks.
    pub blocks: Vec<u64>,
    /// Blocks that are read in the series in which the number of blocks read stays the same.
    pub hot_count: u64,
    /// Most memory for blocks, their files and the nodes; `None` for half of what is free.
    pub memory_bytes: Option<u64>,
    /// Measured time of each point in each round, in seconds.
    pub seconds: f64,
    /// Load before each measurement, in seconds.
    pub warmup_seconds: f64,
    /// Rounds; an odd number has a median that was measured.
    pub rounds: usize,
    /// The way by which nodes are reached.
    pub transport: Transport,
    /// How nodes are started; their memory is chosen here.
    pub node: NodeOptions,
    /// Seed of the choice.
    pub seed: u64,
}

impl Default for ScaleOptions {
    fn default() -> Self {
        ScaleOptions {
            axes: Axis::ALL.to_vec(),
            shards_max: None,
            connections: vec![10, 100, 1000, 10_000],
            blocks: vec![1000, 10_000, 100_000, 1_000_000, 10_000_000],
            hot_count: 1000,
            memory_bytes: None,
            seconds: 1.0,
            warmup_seconds: 0.3,
            rounds: 5,
            transport: Transport::Tcp,
            node: NodeOptions::default(),
            seed: 1,
        }
    }
}

impl ScaleOptions {
    fn load(&self) -> LoadOptions<'static> {
        LoadOptions {
            connections: CONNECTIONS,
            depth: DEPTH,
            warmup_seconds: self.warmup_seconds,
            seconds: self.seconds,
            ..LoadOptions::default()
        }
    }
}

/// Measures every axis. `progress` gets a line that says what happens next.
///
/// # Errors
/// If a node cannot be started, or a reply is wrong.
pub fn scale(options: &ScaleOptions, mut progress: impl FnMut(&str)) -> Result<ScaleReport> {
    ensure!(options.rounds > 0, "no rounds, no result");
    ensure!(options.hot_count > 0, "no hot blocks, nothing to read");
    ensure!(!options.blocks.contains(&0), "a node of 0 blocks has nothing to read");
    let cpus = machine::usable_cpus()?;
    let memory_bytes = match options.memory_bytes {
        Some(bytes) => bytes,
        None => machine::memory_available()? / 2,
    };
    let mut report = ScaleReport {
        machine: Machine::describe(),
        command: machine::command_line(crate::isolation::INSIDE),
        commit: machine::commit(),
        transport: options.transport,
        seconds: options.seconds,
        rounds: options.rounds,
        memory_bytes,
        axes: Vec::new(),
    };
    for &axis in &options.axes {
        let course = match axis {
            Axis::Shards => shards(options, &cpus, &mut progress),
            Axis::Connections => connections(options, &cpus, &mut progress),
            Axis::Blocks => blocks(options, &cpus, memory_bytes, &mut progress),
        };
        let found = course
            .and_then(|course| course.measure(options, &mut progress))
            .with_context(|| format!("measure {}", axis.name()))?;
        report.axes.push(found);
    }
    Ok(report)
}

/// What is measured on one axis: probes, the nodes they load, and what is left out.
struct Course {
    axis: Axis,
    probes: Vec<Probe>,
    skipped: Vec<SkippedPoint>,
    notes: Vec<String>,
    /// The nodes are killed before their source is removed.
    _stocks: Vec<Stock>,
    _source: Source,
}

impl Course {
    fn measure(
        mut self,
        options: &ScaleOptions,
        progress: &mut impl FnMut(&str),
    ) -> Result<AxisReport> {
        let count = self.probes.len();
        for round in 0..options.rounds {
            for step in 0..count {
                let probe = &mut self.probes[(round + step) % count];
                let (axis, of) = (self.axis.name(), options.rounds);
                progress(&format!("{}: round {} of {of}", probe.title(axis), round + 1));
                probe.measure(options.seed.wrapping_add(round as u64))?;
            }
        }
        for probe in &self.probes {
            let share = |of: fn(&Sample) -> f64| {
                report::median(&probe.samples.iter().map(of).collect::<Vec<_>>())
            };
            let client = share(|sample| sample.client_cpu_share);
            let note = if client >= LIMIT_SHARE {
                "the load generator had no CPU left: the node may do more"
            } else if client.max(share(|sample| sample.node_cpu_share)) < LIMIT_SHARE {
                "neither the node nor the load generator used its CPU: was the machine busy?"
            } else {
                continue;
            };
            self.notes.push(format!("{}: {note}", probe.title(self.axis.name())));
        }
        let points =
            self.probes.into_iter().map(|probe| (probe.series, probe.value, probe.samples));
        Ok(AxisReport::new(self.axis.name(), points, self.skipped, self.notes))
    }
}

/// Returns 1, 2, 4 and so on, and the last.
fn doubling(last: usize) -> Vec<usize> {
    let mut counts: Vec<usize> = std::iter::successors(Some(1), |count| Some(count * 2))
        .take_while(|&count| count < last)
        .collect();
    counts.push(last);
    counts
}

fn shards(
    options: &ScaleOptions,
    cpus: &[usize],
    progress: &mut impl FnMut(&str),
) -> Result<Course> {
    let usual = (cpus.len() - 1).max(cpus.len().min(2));
    let last = options.shards_max.unwrap_or(usual).max(1);
    let (mut skipped, mut notes) = (Vec::new(), Vec::new());
    let (mut probes, mut stocks) = (Vec::new(), Vec::new());
    let mut source = Source::new()?;
    source.grow(BLOCK_COUNT)?;
    for count in doubling(last) {
        if count > cpus.len() {
            let reason = format!("there are {} CPUs", cpus.len());
            skipped.push(SkippedPoint { value: count as u64, reason });
            continue;
        }
        progress(&format!("starting a node with {}", report::counted(count, "shard")));
        let (node_cpus, left) = cpus.split_at(count);
        // As many generators as shards, where there is a CPU for each.
        let load_cpus = match left.len() {
            0 => &cpus[count - 1..],
            free => &left[free - free.min(count)..],
        };
        if left.is_empty() {
            notes.push(format!(
                "{count} shards: the load generator shares CPU {} with the node",
                machine::cpu_list(load_cpus)
            ));
        }
        // Every generator has a connection to each shard, or it could not ask each for its own.
        let connections = (CONNECTIONS * count / load_cpus.len()).max(count);
        let all = connections * load_cpus.len();
        let stock = Stock::start(options, &source, BLOCK_COUNT, node_cpus, all)?;
        let load = LoadOptions { connections, ..options.load() };
        probes.push(stock.probe(
            "each asked for its own blocks",
            count as u64,
            u64::MAX,
            load,
            load_cpus,
        )?);
        stocks.push(stock);
    }
    let axis = Axis::Shards;
    Ok(Course { axis, probes, skipped, notes, _stocks: stocks, _source: source })
}

fn connections(
    options: &ScaleOptions,
    cpus: &[usize],
    progress: &mut impl FnMut(&str),
) -> Result<Course> {
    let mut skipped = Vec::new();
    let mut counts = Vec::new();
    for &count in &options.connections {
        let skip = |reason| SkippedPoint { value: count as u64, reason };
        if count == 0 || count > CONNECTIONS_MAX {
            skipped.push(skip(format!("the load generator has 1 to {CONNECTIONS_MAX}")));
        } else if let Err(error) = machine::allow_descriptors(count as u64 + DESCRIPTORS_SPARE) {
            skipped.push(skip(format!("{error:#}")));
        } else {
            counts.push(count);
        }
    }
    let (node_cpus, load_cpus) = (&cpus[..1], &cpus[cpus.len() - 1..]);
    let most = counts.iter().copied().max().unwrap_or(1);
    progress("starting a node");
    let mut source = Source::new()?;
    source.grow(BLOCK_COUNT)?;
    let stock = Stock::start(options, &source, BLOCK_COUNT, node_cpus, most)?;
    let all_busy = |connections| LoadOptions { connections, depth: 1, ..options.load() };
    let alike =
        |connections| LoadOptions { in_flight_max: Some(IN_FLIGHT), ..all_busy(connections) };
    let mut probes = Vec::new();
    for &count in &counts {
        let value = count as u64;
        let load = all_busy(count);
        probes.push(stock.probe("one read in flight on each", value, u64::MAX, load, load_cpus)?);
    }
    for &count in &counts {
        let value = count as u64;
        let load = alike(count);
        probes.push(stock.probe("10 reads in flight in all", value, u64::MAX, load, load_cpus)?);
    }
    let (axis, notes) = (Axis::Connections, Vec::new());
    Ok(Course { axis, probes, skipped, notes, _stocks: vec![stock], _source: source })
}

fn blocks(
    options: &ScaleOptions,
    cpus: &[usize],
    memory_bytes: u64,
    progress: &mut impl FnMut(&str),
) -> Result<Course> {
    let (node_cpus, load_cpus) = (&cpus[..1], &cpus[cpus.len() - 1..]);
    let mut source = Source::new()?;
    let (mut probes, mut hot_probes) = (Vec::new(), Vec::new());
    let (mut stocks, mut skipped) = (Vec::new(), Vec::new());
    let mut used_bytes = 0;
    let hot_series = format!("{} of them read", options.hot_count);
    for &count in &options.blocks {
        let needed_bytes = Stock::memory_bytes(count, 1) + source.growth_bytes(count);
        let skip = |reason| SkippedPoint { value: count, reason };
        if used_bytes + needed_bytes > memory_bytes {
            skipped.push(skip(format!(
                "needs {} beside {} for the other points, more than {} (see --memory)",
                report::size(needed_bytes),
                report::size(used_bytes),
                report::size(memory_bytes)
            )));
            continue;
        }
        if let Some(reason) = source.obstacle(count) {
            skipped.push(skip(reason));
            continue;
        }
        used_bytes += needed_bytes;
        progress(&format!("filling a node with {count} blocks"));
        source.grow(count)?;
        let stock = Stock::start(options, &source, count, node_cpus, CONNECTIONS)?;
        let load = options.load();
        probes.push(stock.probe("all of them read", count, u64::MAX, load, load_cpus)?);
        let hot_count = options.hot_count;
        hot_probes.push(stock.probe(&hot_series, count, hot_count, load, load_cpus)?);
        stocks.push(stock);
    }
    probes.append(&mut hot_probes);
    let axis = Axis::Blocks;
    let notes = vec![format!(
        "blocks that are all read differ in what the processor's cache holds of their bytes; \
         where {} of them are read, spread evenly, only the index differs",
        options.hot_count
    )];
    Ok(Course { axis, probes, skipped, notes, _stocks: stocks, _source: source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_double_up_to_the_last() {
        assert_eq!(doubling(1), [1]);
        assert_eq!(doubling(2), [1, 2]);
        assert_eq!(doubling(7), [1, 2, 4, 7]);
        assert_eq!(doubling(8), [1, 2, 4, 8]);
    }
}
