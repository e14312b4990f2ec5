//! `millrace bench ring`: how evenly the ring spreads blocks over the members of a cluster, what moves
//! when one joins or leaves, and what a decision costs.  Owns the order of work. There is no node and no
//! network: clusters and blocks are made up, and each block is really asked for in three rings: a
//! cluster's, the one with one member more, and the one with one less. Each count of members is
//! simulated with equal weights, and with a mix of them. All figures but times follow from the seed.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use millrace_proto::cluster::MEMBERS_MAX;

mod cluster;
mod findings;
mod stopwatch;
mod tally;

pub use cluster::Weights;
use cluster::{Blocks, Rings};
pub use findings::{Aim, Balance, ClusterReport, Decision, Movement, RingReport};
use stopwatch::Stopwatch;
use tally::Tally;

use crate::machine::{self, Machine};

/// Counts of members that can be simulated: one member has to be able to leave the others.
pub const MEMBERS: RangeInclusive<usize> = 2..=MEMBERS_MAX;
/// Blocks of a cluster if nothing else is asked for.
pub const BLOCKS_USUAL: u64 = 10_000_000;
/// The same for more members than [`MEMBERS_USUAL_MAX`], where that many would take minutes.
pub const BLOCKS_OF_MANY: u64 = 1_000_000;
/// Most members of a cluster with [`BLOCKS_USUAL`].
pub const MEMBERS_USUAL_MAX: usize = 1000;
/// Parts in which the blocks of a cluster are counted. Guessed: progress every few seconds.
const PARTS: u64 = 64;
/// Least time between two lines of progress.
const PROGRESS_PERIOD: Duration = Duration::from_secs(2);

/// What to simulate.
#[derive(Clone, Debug)]
pub struct RingOptions {
    /// Counts of members, each in [`MEMBERS`].
    pub members: Vec<usize>,
    /// Blocks for each of these counts; one for all of them; or none for the usual count.
    pub blocks: Vec<u64>,
    /// Rounds of measuring times; an odd number has a median that was measured.
    pub rounds: usize,
    /// Seed of the members' keys and of the files.
    pub seed: u64,
}

impl Default for RingOptions {
    fn default() -> Self {
        RingOptions {
            members: vec![10, 100, 1000, 10_000],
            blocks: Vec::new(),
            rounds: 11,
            seed: 1,
        }
    }
}

impl RingOptions {
    /// Returns the blocks for the count of members with this index.
    fn blocks_of(&self, index: usize) -> u64 {
        let usual =
            if self.members[index] <= MEMBERS_USUAL_MAX { BLOCKS_USUAL } else { BLOCKS_OF_MANY };
        match self.blocks[..] {
            [] => usual,
            [all] => all,
            ref each => each[index],
        }
    }
}

/// Simulates every count of members. `progress` gets a line that says what happens next.
///
/// # Errors If the options make no sense, or the kernel does not say which CPUs there are.
pub fn simulate(options: &RingOptions, mut progress: impl FnMut(&str)) -> Result<RingReport> {
    ensure!(options.rounds > 0, "no rounds, no times");
    let each = options.blocks.len() == options.members.len();
    ensure!(
        each || options.blocks.len() <= 1,
        "a count of blocks for each count of members, or one"
    );
    ensure!(!options.blocks.contains(&0), "without blocks there is nothing to own");
    ensure!(options.members.iter().all(|count| MEMBERS.contains(count)), "{MEMBERS:?} members");
    let threads = machine::usable_cpus()?.len();
    let mut report = RingReport {
        machine: Machine::describe(),
        command: machine::command_line(crate::isolation::INSIDE),
        commit: machine::commit(),
        threads,
        rounds: options.rounds,
        seed: options.seed,
        clusters: Vec::new(),
        aims: Vec::new(),
        notes: Vec::new(),
    };
    for (index, &count) in options.members.iter().enumerate() {
        let blocks = Blocks { count: options.blocks_of(index), seed: options.seed };
        let kinds = Weights::ALL.map(|weights| Rings::new(weights, count, options.seed));
        let tallies: Vec<Tally> =
            kinds.iter().map(|rings| count_blocks(rings, blocks, threads, &mut progress)).collect();
        progress(&format!("{count} members: {} rounds of decisions", options.rounds));
        let mut stopwatches = kinds.each_ref().map(|rings| Stopwatch::new(rings, options.seed));
        for _ in 0..options.rounds {
            stopwatches.iter_mut().for_each(Stopwatch::measure);
        }
        let found = kinds.iter().zip(&tallies).zip(&stopwatches);
        report.clusters.extend(found.map(|((rings, tally), stopwatch)| {
            ClusterReport::new(rings, blocks.count, tally, stopwatch.decision())
        }));
        if options.blocks.is_empty() && blocks.count < BLOCKS_USUAL {
            report.notes.push(format!(
                "{count} members: {} blocks, not {BLOCKS_USUAL}, which take minutes (--blocks)",
                blocks.count
            ));
        }
    }
    report.judge();
    Ok(report)
}

/// Asks three rings for every block, on all CPUs.
fn count_blocks(
    rings: &Rings,
    blocks: Blocks,
    threads: usize,
    progress: &mut impl FnMut(&str),
) -> Tally {
    let title = format!("{} members, {} weights", rings.count(), rings.weights.name());
    progress(&format!("{title}: {} blocks", blocks.count));
    let mut told = Instant::now();
    let mut tally = Tally::new(rings.count());
    for part in 0..PARTS {
        let at =
            |part: u64| (u128::from(blocks.count) * u128::from(part) / u128::from(PARTS)) as u64;
        tally.count(rings, blocks, at(part)..at(part + 1), threads);
        if told.elapsed() >= PROGRESS_PERIOD {
            told = Instant::now();
            progress(&format!("{title}: {} % of the blocks", (part + 1) * 100 / PARTS));
        }
    }
    tally
}

#[cfg(test)]
mod tests;
