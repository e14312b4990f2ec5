//! Simulates ensembles of `coord` in one thread, each run from one seed, and looks for a property that
//! does not hold. [`USAGE`] lists what can be asked for.
//!
//! Always holds: a failure prints the property, the seed, what the run was made of, the state of every
//! replica and client, and the command that repeats it; the exit status is then 1. Modules in reading
//! order:

mod check;
mod client;
mod network;
mod node;
mod observe;
mod options;
mod world;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use options::{Canary, Options};
use world::{Outcome, Tally, World};

const USAGE: &str = "\
Usage: sim --seeds 300 [--start N] [--nodes 3|5]   runs these seeds
       sim --minutes 60 [--start N]                runs seeds until the time is up
       sim --seed S [--log]                        runs one, and shows everything that happens
       sim --births [--seeds 1000 | --seed S ..]   runs beginnings of ensembles, changed lists, lost disks
       sim --twice S                               runs one twice and compares
       sim --canary NAME --seeds N [--births]      breaks a rule on purpose: must be noticed
";

/// What the command line asks for.
struct Wanted {
    seeds: u64,
    start: u64,
    until: Option<Duration>,
    one: Option<u64>,
    twice: Option<u64>,
    is_logging: bool,
    is_births: bool,
    node_count: Option<usize>,
    canary: Option<(&'static str, Canary)>,
    is_help: bool,
}

fn read_arguments() -> anyhow::Result<Wanted> {
    let mut wanted = Wanted {
        seeds: 300,
        start: 1,
        until: None,
        one: None,
        twice: None,
        is_logging: false,
        is_births: false,
        node_count: None,
        canary: None,
        is_help: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--log" {
            wanted.is_logging = true;
            continue;
        }
        if name == "--births" {
            wanted.is_births = true;
            continue;
        }
        if name == "--help" || name == "-h" {
            wanted.is_help = true;
            return Ok(wanted);
        }
        let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
        if name == "--canary" {
            let known = Canary::ALL.into_iter().find(|(name, _)| *name == value);
            wanted.canary = Some(known.with_context(|| {
                format!("no canary {value}; there are {:?}", Canary::ALL.map(|(name, _)| name))
            })?);
            continue;
        }
        let number: u64 = value.parse().with_context(|| format!("{name} needs a number"))?;
        match name.as_str() {
            "--seeds" => wanted.seeds = number,
            "--start" => wanted.start = number,
            "--minutes" => wanted.until = Some(Duration::from_secs(60 * number)),
            "--seed" => wanted.one = Some(number),
            "--twice" => wanted.twice = Some(number),
            "--nodes" if number == 3 || number == 5 => wanted.node_count = Some(number as usize),
            "--nodes" => bail!("--nodes is 3 or 5"),
            _ => bail!("{name} is not known"),
        }
    }
    Ok(wanted)
}

impl Wanted {
    fn options(&self, seed: u64) -> Options {
        let canary = self.canary.map(|(_, canary)| canary);
        if self.is_births {
            return Options::draw_birth(seed, canary);
        }
        Options::draw(seed, self.node_count, canary)
    }

    /// Runs one seed; a panic is a failure like any other.
    fn run(&self, seed: u64) -> Result<Outcome, String> {
        let world = World::new(self.options(seed), self.is_logging);
        std::panic::catch_unwind(AssertUnwindSafe(|| world.run())).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default()
        })
    }

    fn replay(&self, seed: u64) -> String {
        let mut command = format!("cargo run -p millrace-tests --bin sim -- --seed {seed} --log");
        if self.is_births {
            command += " --births";
        }
        if let Some(node_count) = self.node_count {
            command += &format!(" --nodes {node_count}");
        }
        if let Some((name, _)) = self.canary {
            command += &format!(" --canary {name}");
        }
        command
    }

    /// Runs a seed and prints a failure; returns the tally of a run without a failure.
    fn judge(&self, seed: u64) -> Option<Tally> {
        let told = match self.run(seed) {
            Ok(Outcome { violation: None, tally, .. }) => return Some(tally),
            Ok(Outcome { violation: Some(violation), states, .. }) => format!(
                "property broken: {}\n  {}\n  at {:.3} ms of virtual time\n{states}",
                violation.property,
                violation.text,
                violation.at_us as f64 / 1000.0
            ),
            Err(panic) => format!("property broken: nothing panics\n  {panic}\n"),
        };
        println!(
            "seed {seed} FAILED\n{told}{:?}\nreplay: {}",
            self.options(seed),
            self.replay(seed)
        );
        None
    }
}

fn main() -> ExitCode {
    match read_arguments() {
        Ok(Wanted { is_help: true, .. }) => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        Ok(wanted) => run(&wanted),
        Err(error) => {
            eprintln!("sim: {error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run(wanted: &Wanted) -> ExitCode {
    if let Some(seed) = wanted.twice {
        let hashes = [wanted.run(seed), wanted.run(seed)].map(|it| it.map(|it| it.hash));
        println!("seed {seed}: {hashes:x?}");
        return match hashes {
            [Ok(first), Ok(second)] if first == second => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        };
    }
    if let Some(seed) = wanted.one {
        let tally = wanted.judge(seed);
        println!("seed {seed}: {tally:?}");
        return if tally.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let began = Instant::now();
    let mut total = Tally::default();
    let mut seed = wanted.start;
    let is_over = |seed: u64| match wanted.until {
        Some(until) => began.elapsed() >= until,
        None => seed >= wanted.start + wanted.seeds,
    };
    while !is_over(seed) {
        let Some(tally) = wanted.judge(seed) else { return ExitCode::FAILURE };
        total += tally;
        seed += 1;
    }
    println!(
        "{} seeds from {} in {:.1} s, all properties hold: {total:?}",
        seed - wanted.start,
        wanted.start,
        began.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}
