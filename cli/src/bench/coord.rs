//! `millrace bench coord`: our coordination service beside ZooKeeper and etcd, on the command line.
//!
//! Owns flags and printing. What is measured, and how, is left to `coord` of the crate `bench`.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use clap::value_parser;
use millrace_bench::coord::{
    self, CONNECTIONS_MAX, CoordOptions, OUTSTANDING_MAX, Question, REPLICAS_MAX, System,
    VALUE_LENGTH_MAX, Workload, ZNODES_MAX,
};

use super::{ROUNDS_MAX, check_cpu, counts, measured_seconds, seconds};
use crate::failure::Failure;
use crate::output::{self, Activity};

/// Most kills. Guessed: with a restart of some seconds behind each, hours.
const KILLS_MAX: usize = 1000;

/// Measure the coordination service beside ZooKeeper and etcd, in one run.
///
/// Starts every service that is installed, each replica with a directory of its own on the same
/// disk and the service's own default durability, and loads one after the other in rounds with the
/// same load generator. ZooKeeper and Millrace get the same zoo.cfg and are asked in ZooKeeper's
/// protocol, etcd in gRPC as by its own clients. Every reply is compared with the only one that is
/// right. What counts is the median of the ratios of each round.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace bench coord
  millrace bench coord --replicas 1 --outstanding 256 --workloads set,get --rivals zookeeper
  millrace bench coord --memory
  millrace bench coord --failover --kills 20 --json")]
pub(super) struct BenchCoordArgs {
    /// Measure the memory of one replica with a million keys instead
    #[arg(long, conflicts_with = "failover")]
    memory: bool,
    /// Measure the time from killing the leader of three replicas to the next write instead
    #[arg(long)]
    failover: bool,
    /// Services to compare with; what is not installed is named and left out
    #[arg(long, value_delimiter = ',', value_parser = rivals(), default_value = "zookeeper,etcd")]
    rivals: Vec<System>,
    /// Measure only the rivals
    #[arg(long)]
    rivals_only: bool,
    /// Replicas of each service: 1, 3 or 5; measured one after the other
    #[arg(long, value_name = "COUNT", value_delimiter = ',', value_parser = counts(REPLICAS_MAX),
        allow_negative_numbers = true, default_value = "1,3")]
    replicas: Vec<usize>,
    /// Requests in flight over all connections; measured one after the other
    #[arg(long, value_name = "COUNT", value_delimiter = ',',
        value_parser = counts(OUTSTANDING_MAX), allow_negative_numbers = true,
        default_value = "1,256")]
    outstanding: Vec<usize>,
    /// What is asked: mixed is 90 % get, 10 % set; measured one after the other
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = workloads(),
        default_value = "create,set,get,mixed")]
    workloads: Vec<Workload>,
    /// Connections, spread over the replicas; never more than requests in flight
    #[arg(long, value_name = "COUNT", value_parser = counts(CONNECTIONS_MAX),
        allow_negative_numbers = true, default_value_t = CoordOptions::default().connections)]
    connections: usize,
    /// Bytes of a value
    #[arg(long, value_name = "BYTES", value_parser = counts(VALUE_LENGTH_MAX),
        allow_negative_numbers = true, default_value_t = CoordOptions::default().value_length)]
    value: usize,
    /// Keys that are kept [default: 10000, with --memory 1000000]
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true,
        value_parser = RangedU64ValueParser::<u32>::new().range(1..=u64::from(ZNODES_MAX)))]
    znodes: Option<u32>,
    /// Load of each service before anything is measured: a JVM needs it
    #[arg(long, value_name = "SECONDS", value_parser = seconds,
        allow_negative_numbers = true, default_value_t = CoordOptions::default().warmup_seconds)]
    warmup: f64,
    /// Load before each measurement
    #[arg(long, value_name = "SECONDS", value_parser = seconds,
        allow_negative_numbers = true, default_value_t = CoordOptions::default().settle_seconds)]
    settle: f64,
    /// Measured time of each service in each round
    #[arg(long, visible_alias = "duration", value_name = "SECONDS", value_parser = measured_seconds,
        allow_negative_numbers = true, default_value_t = CoordOptions::default().seconds)]
    seconds: f64,
    /// Rounds; an odd number has a median that was measured
    #[arg(long, value_name = "COUNT", value_parser = counts(ROUNDS_MAX),
        allow_negative_numbers = true, default_value_t = CoordOptions::default().rounds)]
    rounds: usize,
    /// Times that the leader is killed
    #[arg(long, value_name = "COUNT", value_parser = counts(KILLS_MAX), requires = "failover",
        allow_negative_numbers = true, default_value_t = CoordOptions::default().kills)]
    kills: usize,
    /// Directory for data, on a disk [default: target here if there is one, else that for temporary
    /// files]
    #[arg(long, value_name = "DIR", value_parser = value_parser!(PathBuf))]
    dir: Option<PathBuf>,
    /// CPU of every replica [default: all]
    #[arg(long, value_name = "CPU")]
    server_cpu: Option<usize>,
    /// CPU of the load generator [default: any]
    #[arg(long, value_name = "CPU")]
    client_cpu: Option<usize>,
    /// Program to start as `FILE coord zoo.cfg` [default: this one]
    #[arg(long, value_name = "FILE", value_parser = value_parser!(PathBuf))]
    program: Option<PathBuf>,
    /// Further flag of it; may be repeated
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    coord_flag: Vec<String>,
    /// Flag of ZooKeeper's JVM, such as --java-flag=-Xmx1g; may be repeated
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    java_flag: Vec<String>,
    /// Class path of ZooKeeper [default: Debian's jars]
    #[arg(long, value_name = "PATHS")]
    classpath: Option<String>,
    /// Seed of values and choice
    #[arg(long, default_value_t = CoordOptions::default().seed)]
    seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl BenchCoordArgs {
    fn options(self) -> CoordOptions {
        CoordOptions {
            ours: !self.rivals_only,
            rivals: self.rivals,
            program: self.program,
            program_flags: self.coord_flag,
            classpath: self.classpath,
            java_flags: self.java_flag,
            directory: self.dir.unwrap_or_else(coord::default_directory),
            server_cpu: self.server_cpu,
            client_cpu: self.client_cpu,
            replicas: self.replicas,
            outstanding: self.outstanding,
            workloads: self.workloads,
            connections: self.connections,
            value_length: self.value,
            znodes: self.znodes,
            warmup_seconds: self.warmup,
            settle_seconds: self.settle,
            seconds: self.seconds,
            rounds: self.rounds,
            kills: self.kills,
            seed: self.seed,
        }
    }
}

pub(super) fn run(args: BenchCoordArgs) -> Result<(), Failure> {
    let cpus = [("--server-cpu", args.server_cpu), ("--client-cpu", args.client_cpu)];
    for (flag, cpu) in cpus {
        cpu.map_or(Ok(()), |cpu| check_cpu(flag, cpu))?;
    }
    let question = match (args.memory, args.failover) {
        (true, _) => Question::Memory,
        (_, true) => Question::Failover,
        _ => Question::Speed,
    };
    let json = args.json;
    let options = args.options();
    if !options.directory.is_dir() {
        let shown = options.directory.display();
        return Err(Failure::usage(format!("flag --dir: {shown} is not a directory")));
    }
    if let Some(count) = options.replicas.iter().find(|&count| count.is_multiple_of(2)) {
        let message = format!("flag --replicas: {count} is even; use 1, 3 or 5");
        return Err(Failure::usage(message));
    }
    let activity = Activity::start();
    let report = coord::measure(question, &options, |text| activity.tell(text));
    drop(activity);
    let report = report.map_err(|error| Failure::new(format!("bench coord: {error:#}")))?;
    if json { output::print_json(&report) } else { output::print(&report.render()) }
}

fn rivals() -> impl TypedValueParser<Value = System> {
    PossibleValuesParser::new(System::RIVALS.map(System::name)).try_map(|name| {
        let found = System::RIVALS.into_iter().find(|rival| rival.name() == name);
        found.ok_or("unknown")
    })
}

fn workloads() -> impl TypedValueParser<Value = Workload> {
    PossibleValuesParser::new(Workload::ALL.map(Workload::name)).try_map(|name| {
        let found = Workload::ALL.into_iter().find(|workload| workload.name() == name);
        found.ok_or("unknown")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchCoordArgs,
    }

    fn parse(flags: &[&str]) -> Result<CoordOptions, clap::Error> {
        let line = Line::try_parse_from(["coord"].iter().chain(flags));
        line.map(|line| line.args.options())
    }

    #[test]
    fn defaults_told_as_text_are_those_of_the_harness() {
        let (told, defaults) = (parse(&[]).unwrap(), CoordOptions::default());
        assert_eq!(told.rivals, defaults.rivals);
        assert_eq!(told.replicas, defaults.replicas);
        assert_eq!(told.outstanding, defaults.outstanding);
        assert_eq!(told.workloads, defaults.workloads);
        assert!(told.ours && told.znodes.is_none());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(parse(&["--memory", "--failover"]).is_err());
        assert!(parse(&["--rivals", "consul"]).is_err());
        assert!(parse(&["--kills", "3"]).is_err());
        assert!(parse(&["--value", "1MiB"]).is_err() && parse(&["--znodes", "0"]).is_err());
        let options = parse(&["--failover", "--kills", "3", "--rivals", "zookeeper"]).unwrap();
        assert_eq!((options.kills, options.rivals), (3, vec![System::ZooKeeper]));
    }
}
