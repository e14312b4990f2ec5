//! `millrace bench coord`: our coordination service beside ZooKeeper and etcd, in one run, on one
//! machine.
//!
//! Owns options and what every report says first. Three questions have a module each: how fast
//! ([`speed`]), how much memory ([`memory`]), how long without a leader ([`failover`]). Always
//! holds: every service keeps its data in a directory of its own on the same disk with its own
//! default durability, is loaded by the same generator with the same keys, and is killed when the
//! run ends, however it ends. Every answer is compared with the only one that is right.
//!
//! ```text
//!  operations ─► generator ─► link ─► session ─► bytes ─► replica 1, 2, 3
//!                (one thread)         ZooKeeper's protocol, or gRPC over HTTP/2
//! ```
//!
//! Modules in reading order:

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

pub mod failover;
pub mod memory;
pub mod speed;

mod ensemble;
mod generator;
mod link;
mod operation;
mod process;
mod session;
mod system;

pub use generator::{CONNECTIONS_MAX, Measurement, OUTSTANDING_MAX};
pub use operation::{VALUE_LENGTH_MAX, Workload};
pub use process::Memory;
pub use system::{REPLICAS_MAX, System};

use crate::compare::Skipped;
use crate::machine::{self, Machine};
use crate::report;
use ensemble::Ensemble;
use generator::Load;
use link::{Link, Target};
use operation::{Action, Key, Operation, Values};
use session::{Refusal, SESSION_TIMEOUT_MS};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// [`speed`].
    Speed,
    /// [`memory`].
    Memory,
    /// [`failover`].
    Failover,
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum CoordReport {
    /// To [`Question::Speed`].
    Speed(speed::SpeedReport),
    /// To [`Question::Memory`].
    Memory(memory::MemoryReport),
    /// To [`Question::Failover`].
    Failover(failover::FailoverReport),
}

impl CoordReport {
    /// Returns the report for people.
    pub fn render(&self) -> String {
        match self {
            CoordReport::Speed(report) => report.render(),
            CoordReport::Memory(report) => report.render(),
            CoordReport::Failover(report) => report.render(),
        }
    }
}

/// Measures. `progress` gets a line that says what happens next.
///
/// # Errors
/// If a service cannot be started, breaks a connection, or gives a wrong answer.
pub fn measure(
    question: Question,
    options: &CoordOptions,
    progress: impl FnMut(&str),
) -> Result<CoordReport> {
    Ok(match question {
        Question::Speed => CoordReport::Speed(speed::measure(options, progress)?),
        Question::Memory => CoordReport::Memory(memory::measure(options, progress)?),
        Question::Failover => CoordReport::Failover(failover::measure(options, progress)?),
    })
}

/// Most keys that are kept. Derived: their numbers have eight digits in a path.
pub const ZNODES_MAX: u32 = 99_999_999;
/// Requests in flight while keys are written and deleted outside the measured time.
const PREPARE_OUTSTANDING: usize = 256;

/// What is compared, and how; each question uses its part of it.
#[derive(Clone, Debug)]
pub struct CoordOptions {
    /// True if Millrace is measured; else only the rivals are.
    pub ours: bool,
    /// Services to compare with; what is not installed is named and left out.
    pub rivals: Vec<System>,
    /// Program to start as `PROGRAM coord zoo.cfg`; `None` for the one that is running.
    pub program: Option<PathBuf>,
    /// Further flags of the program.
    pub program_flags: Vec<String>,
    /// Class path of ZooKeeper; `None` for the jars of Debian.
    pub classpath: Option<String>,
    /// Flags of ZooKeeper's JVM.
    pub java_flags: Vec<String>,
    /// Directory below which every replica gets one of its own.
    pub directory: PathBuf,
    /// CPU of all replicas; `None` for all of the machine, as JVM and Go runtimes expect.
    pub server_cpu: Option<usize>,
    /// CPU of the load generator; `None` for any.
    pub client_cpu: Option<usize>,
    /// Numbers of replicas, one after the other.
    pub replicas: Vec<usize>,
    /// Requests in flight over all connections, one after the other.
    pub outstanding: Vec<usize>,
    /// Workloads, one after the other.
    pub workloads: Vec<Workload>,
    /// Most connections; there are never more than requests in flight.
    pub connections: usize,
    /// Length of a value in bytes.
    pub value_length: usize,
    /// Keys that are kept; `None` for 10,000, and 1,000,000 for [`memory`].
    pub znodes: Option<u32>,
    /// Load of each service before anything is measured, in seconds: a JVM compiles what it sees
    /// often.
    pub warmup_seconds: f64,
    /// Load before each measurement, in seconds.
    pub settle_seconds: f64,
    /// Measured time of each service in each round, in seconds.
    pub seconds: f64,
    /// Rounds; an odd number has a median that was measured.
    pub rounds: usize,
    /// Times that the leader is killed.
    pub kills: usize,
    /// Seed of values and key sequences.
    pub seed: u64,
}

impl Default for CoordOptions {
    fn default() -> Self {
        CoordOptions {
            ours: true,
            rivals: System::RIVALS.to_vec(),
            program: None,
            program_flags: Vec::new(),
            classpath: None,
            java_flags: Vec::new(),
            directory: default_directory(),
            server_cpu: None,
            client_cpu: None,
            replicas: vec![1, 3],
            outstanding: vec![1, 256],
            workloads: Workload::ALL.to_vec(),
            connections: 8,
            value_length: 128,
            znodes: None,
            warmup_seconds: 10.0,
            settle_seconds: 0.5,
            seconds: 3.0,
            rounds: 5,
            kills: 5,
            seed: 1,
        }
    }
}

/// Returns `target` of the current directory if it is there, else the directory for temporary files: the
/// first is on a disk more often.
pub fn default_directory() -> PathBuf {
    let target = std::env::current_dir().map(|current| current.join("target"));
    target.ok().filter(|target| target.is_dir()).unwrap_or_else(std::env::temp_dir)
}

impl CoordOptions {
    /// Returns how many keys are kept, or `or` if the options do not say.
    fn znodes_or(&self, or: u32) -> u32 {
        self.znodes.unwrap_or(or)
    }

    fn values(&self) -> Result<Values> {
        ensure!(
            (1..=VALUE_LENGTH_MAX).contains(&self.value_length),
            "a value has 1 to {VALUE_LENGTH_MAX} bytes, not {}",
            self.value_length
        );
        Ok(Values::new(self.value_length, self.seed))
    }
}

/// What is needed to read every result.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// The machine.
    pub machine: Machine,
    /// Command line of this run.
    pub command: String,
    /// Commit of the directory it ran in, if that is known.
    pub commit: Option<String>,
    /// Each service and the version that it reports.
    pub versions: Vec<(String, String)>,
    /// Services that were not measured.
    pub skipped: Vec<Skipped>,
    /// Where the replicas keep their data.
    pub directory: PathBuf,
    /// The file system there.
    pub file_system: String,
    /// Microseconds of an append of 4 KiB with `fdatasync` there.
    pub sync_us: f64,
    /// CPU of all replicas; `None` for any.
    pub server_cpu: Option<usize>,
    /// CPU of the load generator; `None` for any.
    pub client_cpu: Option<usize>,
    /// Length of a value in bytes.
    pub value_length: usize,
}

impl Setting {
    /// Looks at machine, disk and programs; also returns the services that can be measured, ours first.
    fn find(options: &CoordOptions) -> Result<(Setting, Vec<System>)> {
        let directory = std::path::absolute(&options.directory)?;
        let mut setting = Setting {
            machine: Machine::describe(),
            command: machine::command_line(crate::isolation::INSIDE),
            commit: machine::commit(),
            versions: Vec::new(),
            skipped: Vec::new(),
            file_system: process::file_system(&directory)?,
            sync_us: process::sync_us(&directory)?,
            directory,
            server_cpu: options.server_cpu,
            client_cpu: options.client_cpu,
            value_length: options.value_length,
        };
        let ours = options.ours.then_some(System::Millrace);
        let mut systems = Vec::new();
        for system in ours.into_iter().chain(options.rivals.iter().copied()) {
            let name = system.name().to_owned();
            match system.version(options) {
                Ok(version) => {
                    setting.versions.push((name, version));
                    systems.push(system);
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    setting.skipped.push(Skipped { name, reason });
                }
            }
        }
        ensure!(!systems.is_empty(), "there is no service to measure");
        Ok((setting, systems))
    }

    fn render(&self) -> String {
        let mut text = String::new();
        let machine = &self.machine;
        let cpu = |cpu: Option<usize>| cpu.map_or_else(|| "any".into(), |cpu| cpu.to_string());
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}, {} CPUs, Linux {}; CPU of servers: {}, of the load generator: {}",
            machine.cpu,
            machine.cpu_count,
            machine.kernel,
            cpu(self.server_cpu),
            cpu(self.client_cpu)
        );
        let _ = writeln!(
            text,
            "data in {} ({}), fdatasync of 4 KiB {}; TCP congestion control {}; values of {}",
            self.directory.display(),
            self.file_system,
            report::latency(self.sync_us),
            machine.congestion_control,
            report::size(self.value_length as u64)
        );
        if self.file_system == process::TMPFS {
            text.push_str(
                "note: data in memory: a sync costs nothing there, so writes tell nothing; \
                 choose a disk with --dir\n",
            );
        }
        let commit = self.commit.as_deref().unwrap_or("none");
        let _ = writeln!(text, "command: {}; commit: {commit}", self.command);
        for (name, version) in &self.versions {
            let _ = writeln!(text, "{name}: {version}");
        }
        for skipped in &self.skipped {
            let _ = writeln!(text, "{}: not measured, {}", skipped.name, skipped.reason);
        }
        text
    }
}

/// Writes all keys that are kept, and reads each once, so that what is measured then is known to be
/// right.
fn prepare(
    ensemble: &Ensemble,
    options: &CoordOptions,
    values: &Values,
    znodes: u32,
) -> Result<()> {
    create_root(ensemble, values)?;
    let kept = |action| (0..znodes).map(move |number| Operation { action, key: Key::Kept(number) });
    sweep(ensemble, options, values, &mut kept(Action::Create)).context("create the keys")?;
    sweep(ensemble, options, values, &mut kept(Action::Get)).context("read every key once")
}

fn create_root(ensemble: &Ensemble, values: &Values) -> Result<()> {
    let target = Target {
        system: ensemble.system(),
        address: ensemble.addresses()[0],
        session_ms: SESSION_TIMEOUT_MS,
        patience: std::time::Duration::from_secs(10),
    };
    let mut buffer = Vec::new();
    let mut link = Link::open(&target, None, values, &mut buffer).context("connect")?;
    let operation = Operation { action: Action::Create, key: Key::Root };
    match link.call(operation, values, &mut buffer)? {
        Ok(()) | Err(Refusal::NODE_EXISTS) => link.close(),
        Err(refusal) => anyhow::bail!("the first key was refused: {refusal}"),
    }
    Ok(())
}

/// Runs each of `operations` once, none of which may be refused.
fn sweep(
    ensemble: &Ensemble,
    options: &CoordOptions,
    values: &Values,
    operations: &mut dyn Iterator<Item = Operation>,
) -> Result<()> {
    let addresses = ensemble.addresses();
    let load = Load {
        system: ensemble.system(),
        addresses: &addresses,
        values,
        connections: options.connections,
        outstanding: PREPARE_OUTSTANDING,
        warmup_seconds: 0.0,
        seconds: f64::INFINITY,
        cpu: options.client_cpu,
        pids: &[],
    };
    let measurement = generator::run(&load, operations)?;
    let refused = &measurement.refused;
    ensure!(refused.is_empty(), "{} refused: {refused:?}", ensemble.system().name());
    Ok(())
}
