//! `millrace bench store`: a store read through a node and directly, on the command line.
//!
//! Owns flags and printing. What is measured, and how, is left to `store` of the crate `bench`.

use std::time::Duration;

use clap::value_parser;
use millrace_bench::load::CONNECTIONS_MAX;
use millrace_bench::store::{self, StoreOptions};
use millrace_ops::size::parse_size;

use super::{NodeFlags, ROUNDS_MAX, counts, measured_seconds};
use crate::failure::Failure;
use crate::output::{self, Activity};

/// Most reads, readers or row groups. Guessed: with the usual latency, hours.
const COUNT_MAX: usize = 1_000_000;

/// Measure a store read through a node, beside the same store read directly.
///
/// Starts a node whose source is a bucket of S3 behind a line with a latency and a pace for each connection, and
/// reads it through the node and by the crate object_store: cold and warm, in order and at random, columns of a
/// table, many readers of one range, and hits while the node loads. Each line has its aim.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace bench store
  millrace bench store --rounds 1 --object-size 16MiB --json
  millrace bench store --latency-ms 5 --mb-per-s 1000 --concurrency 16
  millrace bench store --store http://127.0.0.1:8333/bucket")]
pub(super) struct BenchStoreArgs {
    /// Bucket of a store without TLS, http://HOST:PORT/BUCKET; credentials come from the environment.
    /// Objects are put there and removed again [default: objects of this process]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Time from a request to the first byte of its answer
    #[arg(long, value_name = "MS", value_parser = value_parser!(u64).range(0..=60_000),
        default_value = "30")]
    latency_ms: u64,
    /// Megabytes a second of each connection to the store, 10^6 bytes each
    #[arg(long, value_name = "MB", value_parser = value_parser!(u64).range(1..=100_000),
        default_value = "100")]
    mb_per_s: u64,
    /// Readers at once
    #[arg(long, value_name = "COUNT", value_parser = counts(CONNECTIONS_MAX),
        allow_negative_numbers = true, default_value_t = StoreOptions::default().concurrency)]
    concurrency: usize,
    /// Size of a large object, 1MiB or more
    #[arg(long, value_name = "SIZE", value_parser = large, default_value = "64MiB")]
    object_size: u64,
    /// Reads of 4 KiB in each round
    #[arg(long, value_name = "COUNT", value_parser = counts(COUNT_MAX),
        allow_negative_numbers = true, default_value_t = StoreOptions::default().small_count)]
    small: usize,
    /// Row groups of the table
    #[arg(long, value_name = "COUNT", value_parser = counts(COUNT_MAX),
        allow_negative_numbers = true, default_value_t = StoreOptions::default().group_count)]
    groups: usize,
    /// Readers of one cold range
    #[arg(long, value_name = "COUNT", value_parser = counts(COUNT_MAX),
        allow_negative_numbers = true, default_value_t = StoreOptions::default().sharing_count)]
    sharing: usize,
    /// Measured time of hits while nothing is loaded
    #[arg(long, value_name = "SECONDS", value_parser = measured_seconds,
        allow_negative_numbers = true, default_value_t = StoreOptions::default().seconds)]
    seconds: f64,
    /// Rounds; an odd number has a median that was measured
    #[arg(long, value_name = "COUNT", value_parser = counts(ROUNDS_MAX),
        allow_negative_numbers = true, default_value_t = StoreOptions::default().rounds)]
    rounds: usize,
    /// Memory of the node [default: twice what a round reads and 256 MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    #[command(flatten)]
    node: NodeFlags,
    /// Seed of content and choice
    #[arg(long, default_value_t = StoreOptions::default().seed)]
    seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: BenchStoreArgs) -> Result<(), Failure> {
    let options = StoreOptions {
        store: args.store,
        latency: Duration::from_millis(args.latency_ms),
        bytes_per_s: args.mb_per_s * 1_000_000,
        concurrency: args.concurrency,
        object_bytes: args.object_size,
        small_count: args.small,
        group_count: args.groups,
        sharing_count: args.sharing,
        seconds: args.seconds,
        rounds: args.rounds,
        node: args.node.options(args.memory),
        seed: args.seed,
    };
    let activity = Activity::start();
    let report = store::compare(&options, |text| activity.tell(text));
    drop(activity);
    let report = report.map_err(|error| Failure::new(format!("bench store: {error:#}")))?;
    if args.json { output::print_json(&report) } else { output::print(&report.render()) }
}

fn large(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(size) if size < 1 << 20 => Err("a large object has at least 1MiB".to_owned()),
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    fn parse(arguments: &[&str]) -> Result<BenchStoreArgs, clap::Error> {
        let command = BenchStoreArgs::augment_args(clap::Command::new("store"));
        let matches = command.try_get_matches_from([&["store"], arguments].concat())?;
        BenchStoreArgs::from_arg_matches(&matches)
    }

    #[test]
    fn defaults_told_as_text_are_those_of_the_harness() {
        let (args, defaults) = (parse(&[]), StoreOptions::default());
        let args = args.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(Duration::from_millis(args.latency_ms), defaults.latency);
        assert_eq!(args.mb_per_s * 1_000_000, defaults.bytes_per_s);
        assert_eq!(args.object_size, defaults.object_bytes);
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        for bad in [["--mb-per-s", "0"], ["--object-size", "1KiB"], ["--concurrency", "0"]] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }
}
