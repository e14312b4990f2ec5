//! Compares two ZooKeeper servers on the wire: seeded random operations, every reply and event.
//!
//! Owns the command line and the end of a run. `run` beside this file starts the servers. A run is
//! a number of rounds; a round is decided by the seed and its number, so that any one can be played
//! again alone. Both servers must be fresh: what outlives a round is compared as well.
//!
//! ```text
//!   generator ──► round ──► client ══ left ══►  compare ──► report
//!       ▲                          ══ right ═►     │
//!       └──── what the left server answered ◄──────┘
//! ```
//!
//! Modules in reading order:

mod op;

mod generator;

mod round;

mod client;

mod link;

mod item;

mod compare;

mod exceptions;

mod mutate;

mod report;

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use round::Run;

const USAGE: &str = "\
Compares two ZooKeeper servers on the wire with seeded random operations.

usage: zookeeper-differential --left HOST:PORT --right HOST:PORT [OPTIONS]

  --seed N         chooses the operations (default 1)
  --ops N          about how many operations (default 20000)
  --round-ops N    operations of a round (default 1000)
  --first-round N  the first round (default 0)
  --rounds N       how many rounds, instead of --ops
  --clients N      clients of a round (default 4)
  --keep-going     goes on with the next round after a difference, and counts kinds of differences
  --private        never uses nodes that outlive a round, as rounds after a difference do not
  --sparse-zxids   the right server counts no zxid for a write that fails
  --trace          prints all that is sent and said
  --mutate N       alters every N-th list of replies of the right server and fails unless each
                   alteration is noticed

Ends with 0 when nothing differs that is not a listed exception.";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Which rounds to play.
struct Plan {
    first_round: u64,
    rounds: u64,
    keep_going: bool,
}

/// Plays all rounds. True if the servers agreed.
fn run() -> Result<bool> {
    let Some((plan, mut run)) = parse()? else {
        println!("{USAGE}");
        return Ok(true);
    };
    let mut outcome = Ok(());
    for number in plan.first_round..plan.first_round + plan.rounds {
        match run.round(number) {
            Ok(agreed) if agreed || plan.keep_going => {}
            Ok(_) => break,
            Err(error) if plan.keep_going => {
                let kind = format!("stopped: {}", error.root_cause());
                run.report.difference(kind, || format!("  {error:#}"));
            }
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    run.report.print();
    println!("exceptions used:");
    run.comparer.exceptions.print();
    outcome?;
    let unnoticed = run.report.altered - run.report.noticed;
    Ok(run.report.differences.is_empty() && unnoticed == 0)
}

/// Reads the command line; `None` when help is asked for.
fn parse() -> Result<Option<(Plan, Run)>> {
    let mut run = Run::new();
    let mut plan = Plan { first_round: 0, rounds: 0, keep_going: false };
    let mut servers = [None, None];
    let mut ops = 20_000;
    let mut rounds = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--left" => servers[0] = Some(address(&value()?)?),
            "--right" => servers[1] = Some(address(&value()?)?),
            "--seed" => run.seed = value()?.parse()?,
            "--ops" => ops = value()?.parse()?,
            "--round-ops" => run.round_ops = value()?.parse::<u64>()?.max(1),
            "--first-round" => plan.first_round = value()?.parse()?,
            "--rounds" => rounds = Some(value()?.parse()?),
            "--clients" => run.clients = value()?.parse::<usize>()?.max(1),
            "--keep-going" => plan.keep_going = true,
            "--private" => run.private = true,
            "--sparse-zxids" => run.comparer.sparse_zxids = true,
            "--trace" => run.trace = true,
            "--mutate" => run.mutate = value()?.parse()?,
            "--help" | "-h" => return Ok(None),
            _ => bail!("unknown argument {argument}\n\n{USAGE}"),
        }
    }
    let [Some(left), Some(right)] = servers else { bail!("two servers are needed\n\n{USAGE}") };
    run.servers = [left, right];
    plan.rounds = rounds.unwrap_or(u64::div_ceil(ops, run.round_ops));
    Ok(Some((plan, run)))
}

fn address(text: &str) -> Result<SocketAddr> {
    let mut addresses =
        text.to_socket_addrs().with_context(|| format!("{text} is not HOST:PORT"))?;
    addresses.next().with_context(|| format!("{text} has no address"))
}
