//! `millrace bench`: the harness on the command line.
//!
//! Owns flags and printing. Every default is the harness's own, so a flag that is not given changes
//! nothing. What is measured, and how, is left to the crate `bench`.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use clap::builder::{ArgPredicate, PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use clap::{Subcommand, value_parser};
use millrace_bench::chart;
use millrace_bench::compare::{self, CompareOptions};
use millrace_bench::isolation;
use millrace_bench::load::{CONNECTIONS_MAX, DEPTH_MAX};
use millrace_bench::machine;
use millrace_bench::read::{self, ReadOptions};
use millrace_bench::rival::{NodeOptions, Rival, Transport};
use millrace_bench::wire::BATCH_MAX;
use millrace_ops::size::parse_size;

mod coord;
mod flash;
mod ring;
mod scale;
mod store;

use crate::failure::Failure;
use crate::fs::{NO_NODE_HINT, NodeAddress};
use crate::output::{self, Activity};

/// How the nodes of a measurement are started.
#[derive(clap::Args)]
struct NodeFlags {
    /// Program to start as the node [default: this one]
    #[arg(long, value_name = "FILE", value_parser = value_parser!(PathBuf))]
    program: Option<PathBuf>,
    /// Further flag of the node, such as --node-flag=--block-size=64KiB; may be repeated
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    node_flag: Vec<String>,
}

impl NodeFlags {
    /// Returns what the harness wants to know. Without a size it chooses the memory, because it knows the objects.
    fn options(self, memory: Option<u64>) -> NodeOptions {
        NodeOptions {
            program: self.program,
            memory_bytes: memory.unwrap_or(0),
            arguments: self.node_flag,
        }
    }
}

/// Most rounds. Guessed: with the shortest sensible round, hours.
const ROUNDS_MAX: usize = 10_000;
/// Largest skew: nearly every read is then of one range.
const THETA_MAX: f64 = 10.0;

/// Measure a node or the coordination service, alone or beside other servers or a store, or simulate a ring.
///
/// The load generator is one thread that speaks each server's own protocol and checks the length of
/// every reply, so that what is measured is the server. A GB is 10^9 bytes of payload.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace bench read --node 127.0.0.1:7070 --seconds 10
  millrace bench compare --sizes 64KiB --rivals redis
  millrace bench scale --axes connections,blocks
  millrace bench coord --rivals zookeeper
  millrace bench ring --members 1000
  millrace bench store
  millrace bench flash /mnt/nvme0")]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    verb: BenchVerb,
}

#[derive(Subcommand)]
enum BenchVerb {
    Read(ReadArgs),
    Compare(CompareArgs),
    Scale(scale::BenchScaleArgs),
    Coord(coord::BenchCoordArgs),
    Ring(ring::BenchRingArgs),
    Store(store::BenchStoreArgs),
    Flash(flash::BenchFlashArgs),
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
  millrace bench read --sizes 4KiB,64KiB --connections 16 --depth 32 datasets/train
  millrace bench read --rate 20000 --zipf 0.99 --json")]
struct ReadArgs {
    #[command(flatten)]
    node: NodeAddress,
    /// Files to read, or directories for all files below them [default: everything]
    paths: Vec<String>,
    /// Most files to read
    #[arg(long, value_name = "COUNT", value_parser = counts(usize::MAX),
        allow_negative_numbers = true, default_value_t = ReadOptions::default().files_max)]
    files_max: usize,
    /// Sizes of reads, each at most a block of the node; measured one after the other
    #[arg(long, visible_alias = "size", value_name = "SIZE", value_delimiter = ',',
        value_parser = read_size, default_value = "64KiB")]
    sizes: Vec<u32>,
    /// Connections, spread over the shards of the node
    #[arg(long, value_name = "COUNT", value_parser = counts(CONNECTIONS_MAX),
        allow_negative_numbers = true, default_value_t = ReadOptions::default().connections)]
    connections: usize,
    /// Requests in flight on each connection
    #[arg(long, value_name = "COUNT", value_parser = counts(DEPTH_MAX),
        allow_negative_numbers = true, default_value_t = ReadOptions::default().depth)]
    depth: usize,
    /// Reads in each request [default: plain reads]
    #[arg(long, value_name = "COUNT", value_parser = counts(BATCH_MAX),
        allow_negative_numbers = true)]
    batch: Option<usize>,
    /// Measured time
    #[arg(long, visible_alias = "duration", value_name = "SECONDS", value_parser = measured_seconds,
        allow_negative_numbers = true, default_value_t = ReadOptions::default().seconds)]
    seconds: f64,
    /// Load before the clock starts
    #[arg(long, value_name = "SECONDS", value_parser = seconds,
        allow_negative_numbers = true, default_value_t = ReadOptions::default().warmup_seconds)]
    warmup: f64,
    /// Skew of the choice, such as 0.99 [default: every range alike]
    #[arg(long, value_name = "THETA", value_parser = theta, allow_negative_numbers = true)]
    zipf: Option<f64>,
    /// Reads per second, sent whether or not replies come [default: as fast as replies come]
    #[arg(long, value_name = "RATE", value_parser = rate, allow_negative_numbers = true)]
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
    /// Process of the node on this machine, to measure its CPU time [default: the node tells it]
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
  millrace bench compare --latency --unix
  millrace bench compare --sizes 64KiB --rounds 9 --server-cpu 2 --client-cpu 3 --json")]
struct CompareArgs {
    /// Sizes of objects [default: 4KiB,64KiB,1MiB; with --latency 4KiB]
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = object_size,
        default_value = "4KiB,64KiB,1MiB", hide_default_value = true,
        default_value_if("latency", ArgPredicate::IsPresent, "4KiB"))]
    sizes: Vec<usize>,
    /// Measure latencies instead: one read at a time, then reads at a fixed rate
    #[arg(long)]
    latency: bool,
    /// Reads per second of that rate [default: half of what redis does at most, or without redis
    /// half of what the slowest server does]
    #[arg(long, value_name = "RATE", value_parser = rate, requires = "latency",
        allow_negative_numbers = true)]
    rate: Option<f64>,
    /// Servers to compare with; iperf3 for what the loopback interface carries at 1 MiB; memcpy for a
    /// client on the same machine that reads in place. What is not installed is named and left out
    #[arg(long, value_delimiter = ',', value_parser = opponents(),
        default_value = "redis,memcached,nginx,iperf3,memcpy")]
    rivals: Vec<Opponent>,
    /// Measure only the rivals
    #[arg(long)]
    no_node: bool,
    /// Connections to each server
    #[arg(long, value_name = "COUNT", value_parser = counts(compare::CONNECTIONS_MAX),
        allow_negative_numbers = true, default_value_t = CompareOptions::default().connections)]
    connections: usize,
    /// Requests in flight on each connection
    #[arg(long, value_name = "COUNT", value_parser = counts(DEPTH_MAX),
        allow_negative_numbers = true, default_value_t = CompareOptions::default().depth)]
    depth: usize,
    /// Objects in each request, for servers that have such requests [default: plain reads]
    #[arg(long, value_name = "COUNT", value_parser = counts(BATCH_MAX),
        allow_negative_numbers = true)]
    batch: Option<usize>,
    /// Measured time of each server in each round
    #[arg(long, visible_alias = "duration", value_name = "SECONDS", value_parser = measured_seconds,
        allow_negative_numbers = true, default_value_t = CompareOptions::default().seconds)]
    seconds: f64,
    /// Load before each measurement
    #[arg(long, value_name = "SECONDS", value_parser = seconds,
        allow_negative_numbers = true, default_value_t = CompareOptions::default().warmup_seconds)]
    warmup: f64,
    /// Let the load generator spin instead of sleep: a little faster, at the cost of its CPU
    #[arg(long)]
    spin: bool,
    /// Rounds; an odd number has a median that was measured
    #[arg(long, value_name = "COUNT", value_parser = counts(ROUNDS_MAX),
        allow_negative_numbers = true, default_value_t = CompareOptions::default().rounds)]
    rounds: usize,
    /// Reach all servers over Unix sockets instead of TCP
    #[arg(long)]
    unix: bool,
    /// Measure in a network namespace of its own, with TCP reno: what this machine is set to does not
    /// matter then. Needs root, or user namespaces
    #[arg(long)]
    isolated: bool,
    /// Largest packet that the loopback interface of that namespace takes, for all servers alike; up
    /// to 512KiB from Linux 6.3 on (BIG TCP) [default: 64KiB]
    #[arg(long, value_name = "SIZE", value_parser = packet_size, requires = "isolated")]
    packet_max: Option<u32>,
    /// Started again, in the namespace
    #[arg(long, hide = true)]
    inside: bool,
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
    #[command(flatten)]
    node: NodeFlags,
    /// Write the speeds as a bar chart to this file, as SVG
    #[arg(long, value_name = "FILE", value_parser = value_parser!(PathBuf),
        conflicts_with = "latency")]
    chart: Option<PathBuf>,
    /// Seed of content and choice
    #[arg(long, default_value_t = CompareOptions::default().seed)]
    seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: BenchArgs) -> Result<(), Failure> {
    match args.verb {
        BenchVerb::Read(args) => run_read(args),
        BenchVerb::Compare(args) => run_compare(args),
        BenchVerb::Scale(args) => scale::run(args),
        BenchVerb::Coord(args) => coord::run(args),
        BenchVerb::Ring(args) => ring::run(args),
        BenchVerb::Store(args) => store::run(args),
        BenchVerb::Flash(args) => flash::run(args),
    }
}

fn run_read(args: ReadArgs) -> Result<(), Failure> {
    args.node.check_one()?;
    if let Some(cpu) = args.cpu {
        check_cpu("--cpu", cpu)?;
    }
    if let Some(pid) = args.server_pid
        && machine::process_cpu_s(pid).is_err()
    {
        let message = format!("flag --server-pid: there is no process {pid} on this machine");
        return Err(Failure::usage(message));
    }
    let options = ReadOptions {
        address: args.node.address,
        paths: args.paths.iter().map(|path| crate::walk::clean(path)).collect(),
        files_max: args.files_max,
        sizes: args.sizes,
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
    let report = report.map_err(|error| {
        let failure = Failure::new(format!("bench read: {error:#}"));
        if is_no_connection(error.as_ref()) { failure.with_hint(NO_NODE_HINT) } else { failure }
    })?;
    for warning in report.warnings() {
        output::note(&format!("warning: {warning}"));
    }
    if args.json { output::print_json(&report) } else { output::print(&report.render()) }
}

fn run_compare(args: CompareArgs) -> Result<(), Failure> {
    check_cpu("--server-cpu", args.server_cpu)?;
    check_cpu("--client-cpu", args.client_cpu)?;
    if args.isolated {
        let isolated =
            if args.inside { isolation::set_up(args.packet_max) } else { isolation::start_again() };
        isolated.map_err(|error| Failure::new(format!("flag --isolated: {error:#}")))?;
    }
    let node = args.node.options(args.memory);
    let options = CompareOptions {
        sizes: args.sizes,
        connections: args.connections,
        depth: args.depth,
        batch: args.batch,
        spin: args.spin,
        seconds: args.seconds,
        warmup_seconds: args.warmup,
        rounds: args.rounds,
        transport: if args.unix { Transport::Unix } else { Transport::Tcp },
        server_cpu: args.server_cpu,
        client_cpu: args.client_cpu,
        set_bytes: args.set,
        rivals: args.rivals.iter().filter_map(|opponent| opponent.rival()).collect(),
        limits: args.rivals.contains(&Opponent::Loopback),
        near: args.rivals.contains(&Opponent::Memcpy),
        node: (!args.no_node).then_some(node),
        latency: args.latency,
        rate: args.rate,
        seed: args.seed,
    };
    let activity = Activity::start();
    let report = compare::compare(&options, |text| activity.tell(text));
    drop(activity);
    let report = report.map_err(|error| Failure::new(format!("bench compare: {error:#}")))?;
    if let Some(path) = &args.chart {
        std::fs::write(path, chart::draw(&report)).map_err(|error| {
            let path = path.display();
            Failure::new(format!("bench compare: write the chart to {path}: {error}"))
        })?;
    }
    if args.json { output::print_json(&report) } else { output::print(&report.render()) }
}

/// True if there was no connection, as opposed to a wrong answer.
fn is_no_connection(error: &(dyn Error + 'static)) -> bool {
    let sources = std::iter::successors(Some(error), |&error| error.source());
    let mut io_errors = sources.filter_map(|error| error.downcast_ref::<io::Error>());
    io_errors.any(|error| {
        matches!(
            error.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::NotFound
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::TimedOut
        )
    })
}

fn check_cpu(flag: &str, cpu: usize) -> Result<(), Failure> {
    let usable =
        machine::usable_cpus().map_err(|error| Failure::new(format!("flag {flag}: {error:#}")))?;
    if usable.contains(&cpu) {
        return Ok(());
    }
    let list = machine::cpu_list(&usable);
    Err(Failure::usage(format!("flag {flag}: CPU {cpu} is not usable; usable are {list}")))
}

/// Parses a number from 1 to `max`.
fn counts(max: usize) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=max as u64)
}

fn read_size(text: &str) -> Result<u32, String> {
    let size = parse_size(text).map_err(|error| error.to_string())?;
    match u32::try_from(size) {
        Ok(0) => Err("a read has at least one byte".to_owned()),
        Ok(size) => Ok(size),
        Err(_) => Err("a read is at most a block, which has 16MiB at most".to_owned()),
    }
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

fn measured_seconds(text: &str) -> Result<f64, String> {
    match seconds(text) {
        Ok(seconds) if seconds > 0.0 => Ok(seconds),
        _ => Err("use a number of seconds above 0 and up to 86400, such as 5 or 0.5".to_owned()),
    }
}

fn theta(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(theta) if theta > 0.0 && theta <= THETA_MAX => Ok(theta),
        _ => Err(format!("use a number above 0 and up to {THETA_MAX}, such as 0.99")),
    }
}

/// Parses a size that `gso_max_size` of ip-link(8) takes: a packet of the usual sort up to GSO_MAX_SIZE.
fn packet_size(text: &str) -> Result<u32, String> {
    match parse_size(text) {
        Ok(size) if (4 << 10..=512 << 10).contains(&size) => {
            // 512 KiB less the headers is what the kernel allows.
            Ok(size.min((512 << 10) - 8) as u32)
        }
        _ => Err("use a size from 4KiB to 512KiB".to_owned()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("use a number of reads per second above 0, such as 20000".to_owned()),
    }
}

/// The opponent that a node is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opponent {
    Server(Rival),
    /// The rate of the loopback interface.
    Loopback,
    /// The rate of the memory, which bounds reading in place.
    Memcpy,
}

impl Opponent {
    fn rival(self) -> Option<Rival> {
        match self {
            Opponent::Server(rival) => Some(rival),
            Opponent::Loopback | Opponent::Memcpy => None,
        }
    }
}

/// Opponents that are not servers, by their names on the command line.
const BOUNDS: [(&str, Opponent); 2] =
    [("iperf3", Opponent::Loopback), ("memcpy", Opponent::Memcpy)];

fn opponents() -> impl TypedValueParser<Value = Opponent> {
    let servers = Rival::ALL.map(|rival| (rival.name(), Opponent::Server(rival)));
    let all = servers.into_iter().chain(BOUNDS);
    PossibleValuesParser::new(all.clone().map(|(name, _)| name)).try_map(move |name| {
        let found = all.clone().find(|(other, _)| *other == name);
        found.map(|(_, opponent)| opponent).ok_or("no opponent has this name")
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
        assert!(read_size("0").is_err());
        assert_eq!(packet_size("512KiB"), Ok(524_280));
        assert!(packet_size("1KiB").is_err() && packet_size("1MiB").is_err());
        assert_eq!(seconds("0.5"), Ok(0.5));
        assert!(seconds("NaN").is_err() && seconds("-1").is_err() && seconds("soon").is_err());
        assert!(seconds("0").is_ok() && measured_seconds("0").is_err());
        assert!(theta("0.99").is_ok() && theta("0").is_err() && theta("-1").is_err());
        assert!(rate("0.5").is_ok() && rate("0").is_err() && rate("inf").is_err());
    }

    #[test]
    fn defaults_told_as_text_are_those_of_the_harness() {
        assert_eq!(ReadOptions::default().sizes, [read_size("64KiB").unwrap()]);
        let defaults = CompareOptions::default();
        assert_eq!(defaults.sizes, [4 << 10, 64 << 10, 1 << 20]);
        assert_eq!(defaults.set_bytes, 64 << 20);
        assert_eq!(defaults.rivals, Rival::ALL);
    }
}
