//! Faults with real processes: replicas are killed, paused and cut off while clients work, and what the
//! clients saw is checked afterwards.
//!
//! ```text
//! cargo run --release -p millrace-tests --bin faults -- ensemble --minutes 10
//! cargo run --release -p millrace-tests --bin faults -- kills --count 1000
//! cargo run --release -p millrace-tests --bin faults -- cluster --minutes 30
//! cargo run --release -p millrace-tests --bin faults -- cluster --zookeeper 1
//! cargo run --release -p millrace-tests --bin faults -- starts --count 1000
//! ```
//!
//! `--seed` repeats the choices of a run, not its timing, because processes cannot be replayed. The exit
//! status is 0 if everything held, 1 if something did not, 2 for a command that is not understood.

use std::process::ExitCode;
use std::time::Duration;

use millrace_tests::{process, starts};

mod cluster;
mod ensemble;
mod history;
mod kills;

const USAGE: &str = "\
Usage: faults ensemble [--minutes N] [--seed N]
       faults kills [--count N] [--seed N]
       faults cluster [--minutes N] [--seed N] [--zookeeper 1]
       faults starts [--count N] [--limit-ms N] [--seed N]
";

/// Returns what follows a flag, as a number.
fn number(arguments: &[String], flag: &str, default: u64) -> Result<u64, String> {
    let Some(place) = arguments.iter().position(|argument| argument == flag) else {
        return Ok(default);
    };
    let value = arguments.get(place + 1).ok_or_else(|| format!("{flag} needs a number"))?;
    value.parse().map_err(|_| format!("{flag} {value}: not a number"))
}

fn check_flags(arguments: &[String], known: &[&str]) -> Result<(), String> {
    match arguments.iter().step_by(2).find(|flag| !known.contains(&flag.as_str())) {
        None => Ok(()),
        Some(flag) => Err(format!("{flag} is not known")),
    }
}

fn run(arguments: &[String]) -> Result<Result<(), String>, String> {
    let Some((story, flags)) = arguments.split_first() else {
        return Err("ensemble, kills, cluster or starts?".to_owned());
    };
    let seed = number(flags, "--seed", fastrand::u64(..1_000_000))?;
    println!("seed {seed}");
    match story.as_str() {
        "ensemble" => {
            check_flags(flags, &["--minutes", "--seed"])?;
            Ok(ensemble::run(number(flags, "--minutes", 10)?, seed))
        }
        "cluster" => {
            check_flags(flags, &["--minutes", "--seed", "--zookeeper"])?;
            let minutes = number(flags, "--minutes", 30)?;
            Ok(cluster::run(minutes, seed, number(flags, "--zookeeper", 0)? > 0))
        }
        "kills" => {
            check_flags(flags, &["--count", "--seed"])?;
            Ok(kills::run(number(flags, "--count", 1000)?, seed))
        }
        "starts" => {
            check_flags(flags, &["--count", "--limit-ms", "--seed"])?;
            let count = number(flags, "--count", 1000)? as usize;
            let limit = Duration::from_millis(number(flags, "--limit-ms", 2000)?);
            Ok(start_clients(count, limit, seed))
        }
        other => Err(format!("{other} is not known")),
    }
}

/// Starts clients beside nodes that are stopped.
fn start_clients(count: usize, limit: Duration, seed: u64) -> Result<(), String> {
    let outcome = starts::run(count, limit, seed);
    let [half, most, all] = [0.5, 0.99, 1.0].map(|share| outcome.quantile(share).as_millis());
    println!(
        "{} starts: {half} ms at the median, {most} ms at the 99th percentile, {all} ms at most",
        outcome.times.len()
    );
    match outcome.failures.len() {
        0 => Ok(()),
        count => Err(format!("{count} starts: {:#?}", outcome.failures)),
    }
}

/// Ends the run, and with it the replicas, when a client panics because it sees what may not be.
fn end_with_a_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        process::kill_all();
        println!("FAILED: a client saw what may not be");
        std::process::exit(1);
    }));
}

fn main() -> ExitCode {
    end_with_a_panic();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(Ok(())) => {
            println!("everything held");
            ExitCode::SUCCESS
        }
        Ok(Err(why)) => {
            println!("FAILED: {why}");
            ExitCode::FAILURE
        }
        Err(usage) => {
            eprint!("faults: {usage}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}
