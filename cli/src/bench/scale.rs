//! `millrace bench scale`: what more shards, connections and blocks do to one node, on the command
//! line.
//!
//! Owns flags and printing. What is measured, and how, is left to `scale` of the crate `bench`.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use millrace_bench::load::CONNECTIONS_MAX;
use millrace_bench::rival::Transport;
use millrace_bench::scale::{self, Axis, ScaleOptions};
use millrace_node::config::SHARDS_MAX;
use millrace_ops::size::parse_size;

use super::{NodeFlags, ROUNDS_MAX, counts, measured_seconds, seconds};
use crate::failure::Failure;
use crate::output::{self, Activity};

/// Most blocks. Guessed: with a page each, more than the memory of any machine we know.
const BLOCKS_MAX: usize = 10_000_000_000;

/// Measure what more shards, connections and blocks do to one node.
///
/// Starts nodes by itself, each with its blocks in memory, and loads one point after the other with
/// reads of 4 KiB, in rounds. What counts is the ratio of each point to the first one, within a
/// round. Points for which this machine has no room are named and left out.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace bench scale
  millrace bench scale --axes connections --connections 10,100,1000,5000
  millrace bench scale --axes blocks --memory 64GiB --json")]
pub(super) struct BenchScaleArgs {
    /// What grows
    #[arg(long, value_delimiter = ',', value_parser = axes(),
        default_value = "shards,connections,blocks")]
    axes: Vec<Axis>,
    /// Most shards; 1, 2, 4 and so on are measured up to it [default: a CPU less than there are]
    #[arg(long, value_name = "COUNT", value_parser = counts(SHARDS_MAX),
        allow_negative_numbers = true)]
    shards: Option<usize>,
    /// Connections, measured with one read in flight on each, and with 10 in all
    #[arg(long, value_name = "COUNT", value_delimiter = ',',
        value_parser = counts(CONNECTIONS_MAX), allow_negative_numbers = true,
        default_value = "10,100,1000,10000")]
    connections: Vec<usize>,
    /// Blocks in memory, measured with reads of all, and of as many everywhere
    #[arg(long, value_name = "COUNT", value_delimiter = ',', value_parser = counts(BLOCKS_MAX),
        allow_negative_numbers = true, default_value = "1000,10000,100000,1000000,10000000")]
    blocks: Vec<usize>,
    /// Blocks that are read where as many are read everywhere
    #[arg(long, value_name = "COUNT", value_parser = counts(BLOCKS_MAX),
        allow_negative_numbers = true, default_value_t = ScaleOptions::default().hot_count as usize)]
    hot: usize,
    /// Most memory for blocks, their files and the nodes [default: half of what is free]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Measured time of each point in each round
    #[arg(long, visible_alias = "duration", value_name = "SECONDS", value_parser = measured_seconds,
        allow_negative_numbers = true, default_value_t = ScaleOptions::default().seconds)]
    seconds: f64,
    /// Load before each measurement
    #[arg(long, value_name = "SECONDS", value_parser = seconds,
        allow_negative_numbers = true, default_value_t = ScaleOptions::default().warmup_seconds)]
    warmup: f64,
    /// Rounds; an odd number has a median that was measured
    #[arg(long, value_name = "COUNT", value_parser = counts(ROUNDS_MAX),
        allow_negative_numbers = true, default_value_t = ScaleOptions::default().rounds)]
    rounds: usize,
    /// Reach nodes over Unix sockets instead of TCP
    #[arg(long)]
    unix: bool,
    #[command(flatten)]
    node: NodeFlags,
    /// Seed of the choice
    #[arg(long, default_value_t = ScaleOptions::default().seed)]
    seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: BenchScaleArgs) -> Result<(), Failure> {
    let options = ScaleOptions {
        axes: args.axes,
        shards_max: args.shards,
        connections: args.connections,
        blocks: args.blocks.into_iter().map(|count| count as u64).collect(),
        hot_count: args.hot as u64,
        memory_bytes: args.memory,
        seconds: args.seconds,
        warmup_seconds: args.warmup,
        rounds: args.rounds,
        transport: if args.unix { Transport::Unix } else { Transport::Tcp },
        // The harness knows the blocks, so it chooses the memory.
        node: args.node.options(None),
        seed: args.seed,
    };
    let activity = Activity::start();
    let report = scale::scale(&options, |text| activity.tell(text));
    drop(activity);
    let report = report.map_err(|error| Failure::new(format!("bench scale: {error:#}")))?;
    if args.json { output::print_json(&report) } else { output::print(&report.render()) }
}

fn axes() -> impl TypedValueParser<Value = Axis> {
    PossibleValuesParser::new(Axis::ALL.map(Axis::name)).try_map(|name| {
        let found = Axis::ALL.into_iter().find(|axis| axis.name() == name);
        found.ok_or("unknown")
    })
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    #[test]
    fn defaults_told_as_text_are_those_of_the_harness() {
        let matches =
            BenchScaleArgs::augment_args(clap::Command::new("scale")).get_matches_from(["scale"]);
        let args = BenchScaleArgs::from_arg_matches(&matches).unwrap();
        let defaults = ScaleOptions::default();
        assert_eq!(args.axes, defaults.axes);
        assert_eq!(args.connections, defaults.connections);
        let blocks: Vec<u64> = args.blocks.iter().map(|&count| count as u64).collect();
        assert_eq!(blocks, defaults.blocks);
    }
}
