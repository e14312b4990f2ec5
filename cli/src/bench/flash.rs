//! `millrace bench flash`: a node's disk beside fio, on the command line.
//!
//! Owns flags and printing. What is measured, and how, is left to `flash` of the crate `bench`.

use std::path::PathBuf;

use millrace_bench::flash::{self, FlashOptions};
use millrace_bench::load::{CONNECTIONS_MAX, DEPTH_MAX};
use millrace_ops::size::parse_size;

use super::{NodeFlags, ROUNDS_MAX, counts, measured_seconds, read_size};
use crate::failure::Failure;
use crate::output::{self, Activity};

/// Measure random reads of a node's disk through the protocol, beside fio on the same file system.
///
/// Starts a node with little memory and a disk in DIR, fills the disk, and reads from it at random; fio (io_uring,
/// direct, registered buffers) reads a file of the same size beside it. Takes about four times the data on that file
/// system.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace bench flash /mnt/nvme0
  millrace bench flash /mnt/nvme0 --sizes 4KiB,64KiB,1MiB --depth 32 --json")]
pub(super) struct BenchFlashArgs {
    /// Directory on the file system that is measured
    directory: PathBuf,
    /// Sizes of reads, each measured one after the other
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = read_size, default_value = "4KiB,1MiB")]
    sizes: Vec<u32>,
    /// Connections
    #[arg(long, value_name = "COUNT", value_parser = counts(CONNECTIONS_MAX),
        allow_negative_numbers = true, default_value_t = FlashOptions::default().connections)]
    connections: usize,
    /// Reads in flight on each connection
    #[arg(long, value_name = "COUNT", value_parser = counts(DEPTH_MAX),
        allow_negative_numbers = true, default_value_t = FlashOptions::default().depth)]
    depth: usize,
    /// Bytes of data
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "1GiB")]
    data: u64,
    /// Measured time of each side in each round
    #[arg(long, value_name = "SECONDS", value_parser = measured_seconds,
        allow_negative_numbers = true, default_value_t = FlashOptions::default().seconds)]
    seconds: f64,
    /// Rounds; an odd number has a median that was measured
    #[arg(long, value_name = "COUNT", value_parser = counts(ROUNDS_MAX),
        allow_negative_numbers = true, default_value_t = FlashOptions::default().rounds)]
    rounds: usize,
    /// Memory of the node [default: an eighth of the data, at least 128MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    #[command(flatten)]
    node: NodeFlags,
    /// Seed of content and choice
    #[arg(long, default_value_t = FlashOptions::default().seed)]
    seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: BenchFlashArgs) -> Result<(), Failure> {
    let options = FlashOptions {
        directory: args.directory,
        sizes: args.sizes,
        depth: args.depth,
        connections: args.connections,
        data_bytes: args.data,
        seconds: args.seconds,
        rounds: args.rounds,
        node: args.node.options(args.memory),
        seed: args.seed,
    };
    let activity = Activity::start();
    let report = flash::measure(&options, |text| activity.tell(text));
    drop(activity);
    let report = report.map_err(|error| Failure::new(format!("bench flash: {error:#}")))?;
    if args.json { output::print_json(&report) } else { output::print(&report.render()) }
}
