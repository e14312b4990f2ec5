//! `millrace bench`: the harness on the command line.
//!
//! Owns flags and printing. Every default is the harness's own, so a flag that is not given changes
//! nothing. What is measured, and how, is left to the crate `bench`.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Subcommand, value_parser};
use millrace_bench::compare::{self, CompareOptions};
use millrace_bench::read::{self, ReadOptions};
use millrace_bench::rival::{NodeOptions, Rival};
use millrace_node::config::parse_size;

use crate::failure::Failure;
use crate::fs::NodeAddress;
use crate::output::{self, Activity};

/// Measure a node, alone or beside other servers.
///
/// The load generator is one thread that speaks each server's own protocol and checks the length of
/// every reply, so that what is measured is the server. A GB is 10^9 bytes of payload.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace bench read --node 127.0.0.1:7070 --seconds 10
  millrace bench compare --sizes 64KiB --rivals redis")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Read(ReadArgs),
    Compare(CompareArgs),
}

/// Load a running node with random reads of its files.
///
/// Finds the files by listing, then reads ranges of them for a while. The files are read as they
/// are, so a cache that is cold at first warms up while it is measured: run it twice, or `fs load`
/// first.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace bench read --seconds 10
  millrace bench read --size 4KiB --connections 16 --depth 32 datasets/train
  millrace bench read --rate 20000 --zipf 0.99 --json")]
struct ReadArgs {
    #[command(flatten)]
    node: NodeAddress,
    /// Files to read, or directories for all files below them [default: everything]
    paths: Vec<String>,
    /// Most files to read
    #[arg(long, value_name = "COUNT", default_value_t = ReadOptions::default().files_max)]
    files_max: usize,
    /// Size of each read, at most a block of the node
    #[arg(long, value_parser = read_size, default_value = "64KiB")]
    size: u32,
    /// Connections, spread over the shards of the node
    #[arg(long, value_name = "COUNT", default_value_t = ReadOptions::default().connections)]
    connections: usize,
    /// Requests in flight on each connection
    #[arg(long, value_name = "COUNT", default_value_t = ReadOptions::default().depth)]
    depth: usize,
    /// Reads in each request [default: plain reads]
    #[arg(long, value_name = "COUNT")]
    batch: Option<usize>,
    /// Measured time
    #[arg(long, value_name = "SECONDS", value_parser = seconds,
        default_value_t = ReadOptions::default().seconds)]
    seconds: f64,
    /// Load before the clock starts
    #[arg(long, value_name = "SECONDS", value_parser = seconds,
        default_value_t = ReadOptions::default().warmup_seconds)]
    warmup: f64,
    /// Skew of the choice, such as 0.99 [default: every range alike]
    #[arg(long, value_name = "THETA")]
    zipf: Option<f64>,
    /// Reads per second, sent whether or not replies come [default: as fast as replies come]
    #[arg(long, value_name = "RATE")]
    rate: Option<f64>,
    /// Let the load generator spin instead of sleep: a little faster, at the cost of its CPU
    #[arg(long)]
    spin: bool,
    /// Check every payload against its checksums
    #[arg(long)]
    verify: bool,
    /// CPU to pin the load generator to
    #[arg(long, value_name = "CPU")]
    cpu: Option<usize>,
    /// Process of the node on this machine, to measure its CPU time
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Seed of the choice
    #[arg(long, default_value_t = ReadOptions::default().seed)]
    seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Measure the node beside other servers, in one run.
///
/// Starts every server that is installed on one CPU, with the same objects in memory and the
/// settings that its authors recommend, and loads one after the other from another CPU, in rounds.
/// What counts is the median of the ratios of each round: a machine that slows down slows all of
/// them.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace bench compare
  millrace bench compare --sizes 4KiB --batch 16 --rivals redis,memcached
  millrace bench compare --sizes 64KiB --rounds 9 --server-cpu 2 --client-cpu 3 --json")]
struct CompareArgs {
    /// Sizes of objects
    #[arg(long, value_delimiter = ',', value_parser = object_size,
        default_value = "4KiB,64KiB,1MiB")]
    sizes: Vec<usize>,
    /// Servers to compare with; what is not installed is named and left out
    #[arg(long, value_delimiter = ',', value_parser = rivals(),
        default_value = "redis,memcached,nginx")]
    rivals: Vec<Rival>,
    /// Measure the rivals alone
    #[arg(long)]
    no_node: bool,
    /// Connections to each server
    #[arg(long, value_name = "COUNT", default_value_t = CompareOptions::default().connections)]
    connections: usize,
    /// Requests in flight on each connection
    #[arg(long, value_name = "COUNT", default_value_t = CompareOptions::default().depth)]
    depth: usize,
    /// Objects in each request, for servers that have such requests [default: plain reads]
    #[arg(long, value_name = "COUNT")]
    batch: Option<usize>,
    /// Measured time of each server in each round
    #[arg(long, value_name = "SECONDS", value_parser = seconds,
        default_value_t = CompareOptions::default().seconds)]
    seconds: f64,
    /// Load before each measurement
    #[arg(long, value_name = "SECONDS", value_parser = seconds,
        default_value_t = CompareOptions::default().warmup_seconds)]
    warmup: f64,
    /// Let the load generator spin instead of sleep: a little faster, at the cost of its CPU
    #[arg(long)]
    spin: bool,
    /// Rounds; an odd number has a median that was measured
    #[arg(long, value_name = "COUNT", default_value_t = CompareOptions::default().rounds)]
    rounds: usize,
    /// CPU of every server
    #[arg(long, value_name = "CPU", default_value_t = CompareOptions::default().server_cpu)]
    server_cpu: usize,
    /// CPU of the load generator
    #[arg(long, value_name = "CPU", default_value_t = CompareOptions::default().client_cpu)]
    client_cpu: usize,
    /// Size of all objects of one size together
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "64MiB")]
    set: u64,
    /// Memory of the node [default: four times the objects and 256 MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Program to start as the node [default: this one]
    #[arg(long, value_name = "FILE", value_parser = value_parser!(PathBuf))]
    program: Option<PathBuf>,
    /// Further flag of the node, such as --node-flag=--block-size=64KiB; may be repeated
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    node_flag: Vec<String>,
    /// Seed of content and choice
    #[arg(long, default_value_t = CompareOptions::default().seed)]
    seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    match args.verb {
        Verb::Read(args) => run_read(args),
        Verb::Compare(args) => run_compare(args),
    }
}

fn run_read(args: ReadArgs) -> Result<(), Failure> {
    let options = ReadOptions {
        address: args.node.address,
        paths: args.paths.iter().map(|path| crate::walk::clean(path)).collect(),
        files_max: args.files_max,
        size: args.size,
        connections: args.connections,
        depth: args.depth,
        batch: args.batch,
        spin: args.spin,
        warmup_seconds: args.warmup,
        seconds: args.seconds,
        zipf_theta: args.zipf,
        rate: args.rate,
        verify: args.verify,
        cpu: args.cpu,
        server_pid: args.server_pid,
        seed: args.seed,
    };
    let activity = Activity::start();
    let report = read::read(&options, |text| activity.tell(text));
    drop(activity);
    let report = report.map_err(|error| Failure::new(format!("bench read: {error:#}")))?;
    if args.json { output::print_json(&report) } else { output::print(&report.render()) }
}

fn run_compare(args: CompareArgs) -> Result<(), Failure> {
    let node = NodeOptions {
        program: args.program,
        // The harness knows the objects, so it chooses where nobody else does.
        memory_bytes: args.memory.unwrap_or(0),
        arguments: args.node_flag,
    };
    let options = CompareOptions {
        sizes: args.sizes,
        connections: args.connections,
        depth: args.depth,
        batch: args.batch,
        spin: args.spin,
        seconds: args.seconds,
        warmup_seconds: args.warmup,
        rounds: args.rounds,
        server_cpu: args.server_cpu,
        client_cpu: args.client_cpu,
        set_bytes: args.set,
        rivals: args.rivals,
        node: (!args.no_node).then_some(node),
        seed: args.seed,
    };
    let activity = Activity::start();
    let report = compare::compare(&options, |text| activity.tell(text));
    drop(activity);
    let report = report.map_err(|error| Failure::new(format!("bench compare: {error:#}")))?;
    if args.json { output::print_json(&report) } else { output::print(&report.render()) }
}

fn read_size(text: &str) -> Result<u32, String> {
    let size = parse_size(text).map_err(|error| error.to_string())?;
    u32::try_from(size).map_err(|_| "a read is at most a block, which has 16MiB at most".to_owned())
}

fn object_size(text: &str) -> Result<usize, String> {
    let size = parse_size(text).map_err(|error| error.to_string())?;
    match usize::try_from(size) {
        Ok(size) if size > 0 => Ok(size),
        _ => Err("an object has at least one byte".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("use a number of seconds from 0 to 86400, such as 5 or 0.5".to_owned()),
    }
}

fn rivals() -> impl TypedValueParser<Value = Rival> {
    PossibleValuesParser::new(Rival::ALL.map(Rival::name)).try_map(|name| {
        let found = Rival::ALL.into_iter().find(|rival| rival.name() == name);
        found.ok_or("unknown")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_numbers_are_told() {
        assert_eq!(read_size("64KiB"), Ok(64 << 10));
        assert!(read_size("4GiB").is_err());
        assert!(object_size("0").is_err());
        assert_eq!(seconds("0.5"), Ok(0.5));
        assert!(seconds("NaN").is_err() && seconds("-1").is_err() && seconds("soon").is_err());
    }

    #[test]
    fn defaults_told_as_text_are_those_of_the_harness() {
        assert_eq!(read_size("64KiB"), Ok(ReadOptions::default().size));
        let defaults = CompareOptions::default();
        assert_eq!(defaults.sizes, [4 << 10, 64 << 10, 1 << 20]);
        assert_eq!(defaults.set_bytes, 64 << 20);
        assert_eq!(defaults.rivals, Rival::ALL);
    }
}
