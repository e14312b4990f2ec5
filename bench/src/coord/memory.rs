//! How much memory: what a replica needs before and after it holds a million keys.
//!
//! Owns the order. One service runs at a time, with one replica. Memory is read when the service has
//! been left alone for a while. A JVM keeps what it once took from the system, so ZooKeeper's memory is
//! read again after a full collection, if the tool that asks for one is installed: what it needs lies
//! between the two.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::ensemble::Ensemble;
use super::process::Memory;
use super::{CoordOptions, Setting, System};
use crate::machine;
use crate::report::{self, Table};

/// Keys if the options do not say how many.
pub const ZNODES: u32 = 1_000_000;
/// Time without load before memory is read. Guessed: behind snapshots and checkpoints that the load
/// began.
const REST: Duration = Duration::from_secs(5);

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryReport {
    /// What is needed to read it.
    pub setting: Setting,
    /// Keys that were created.
    pub znodes: u32,
    /// Each service.
    pub services: Vec<ServiceMemory>,
}

/// Memory of one service.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ServiceMemory {
    /// The service.
    pub system: System,
    /// Memory without keys.
    pub before: Memory,
    /// Memory with all keys.
    pub after: Memory,
    /// The same after a full collection, for a JVM.
    pub collected: Option<Memory>,
    /// What each key added to the resident memory, in bytes; after the collection if there was one.
    pub rss_bytes_per_znode: f64,
    /// What each key added to the memory that no file backs, in bytes; likewise.
    pub anonymous_bytes_per_znode: f64,
}

/// Measures. `progress` gets a line that says what happens next.
///
/// # Errors
/// If a service cannot be started, or refuses a key.
pub fn measure(options: &CoordOptions, mut progress: impl FnMut(&str)) -> Result<MemoryReport> {
    let (setting, systems) = Setting::find(options)?;
    let znodes = options.znodes_or(ZNODES);
    ensure!(znodes > 0, "without keys there is no memory to measure");
    let mut services = Vec::new();
    for system in systems {
        let mut tell = |text: &str| progress(&format!("{}: {text}", system.name()));
        let found = measure_one(system, znodes, options, &mut tell);
        services.push(found.with_context(|| format!("measure {}", system.name()))?);
    }
    Ok(MemoryReport { setting, znodes, services })
}

fn measure_one(
    system: System,
    znodes: u32,
    options: &CoordOptions,
    progress: &mut impl FnMut(&str),
) -> Result<ServiceMemory> {
    let values = options.values()?;
    progress("starting");
    let ensemble = Ensemble::start(system, 1, options)?;
    let rest = || {
        std::thread::sleep(REST);
        ensemble.memory()
    };
    let before = rest()?;
    progress(&format!("creating {znodes} keys"));
    super::prepare(&ensemble, options, &values, znodes)?;
    let after = rest()?;
    let mut collected = None;
    if system == System::ZooKeeper && collect(ensemble.pids()[0]) {
        collected = Some(rest()?);
    }
    Ok(ServiceMemory::new(system, znodes, before, after, collected))
}

/// Asks a JVM for a full collection. True if there was one.
fn collect(pid: u32) -> bool {
    let Some(jcmd) = machine::find_program("jcmd") else {
        return false;
    };
    let mut command = Command::new(jcmd);
    command.arg(pid.to_string()).arg("GC.run").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl ServiceMemory {
    fn new(
        system: System,
        znodes: u32,
        before: Memory,
        after: Memory,
        collected: Option<Memory>,
    ) -> ServiceMemory {
        let with = collected.unwrap_or(after);
        let each = |with: u64, without: u64| (with as f64 - without as f64) / f64::from(znodes);
        ServiceMemory {
            system,
            before,
            after,
            collected,
            rss_bytes_per_znode: each(with.rss_bytes, before.rss_bytes),
            anonymous_bytes_per_znode: each(with.anonymous_bytes, before.anonymous_bytes),
        }
    }
}

impl MemoryReport {
    /// Returns the report for people.
    pub fn render(&self) -> String {
        let mut table = Table::new(&[
            &format!("{} keys", self.znodes),
            "RSS before",
            "RSS after",
            "collected",
            "RSS a key",
            "anonymous a key",
            "RSS ratio",
            "anonymous ratio",
        ]);
        let ours = self.services.iter().find(|service| service.system == System::Millrace);
        for service in &self.services {
            let ratio = |of: fn(&ServiceMemory) -> f64| {
                let ours = ours.filter(|ours| ours.system != service.system);
                report::optional(ours.map(|ours| of(ours) / of(service)))
            };
            table.row([
                service.system.name().to_owned(),
                report::size(service.before.rss_bytes),
                report::size(service.after.rss_bytes),
                service
                    .collected
                    .map_or_else(|| "-".into(), |memory| report::size(memory.rss_bytes)),
                format!("{:.0} B", service.rss_bytes_per_znode),
                format!("{:.0} B", service.anonymous_bytes_per_znode),
                ratio(|service| service.rss_bytes_per_znode),
                ratio(|service| service.anonymous_bytes_per_znode),
            ]);
        }
        format!("{}\n{}", self.setting.render(), table.render())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_counts_for_the_rival() {
        let memory = |mib: u64| Memory { rss_bytes: mib << 20, anonymous_bytes: mib << 20 };
        let found = ServiceMemory::new(
            System::ZooKeeper,
            1 << 20,
            memory(100),
            memory(1700),
            Some(memory(700)),
        );
        assert!((found.rss_bytes_per_znode - 600.0).abs() < 1e-9, "{found:?}");
        let found = ServiceMemory::new(System::Etcd, 1 << 20, memory(100), memory(500), None);
        assert!((found.anonymous_bytes_per_znode - 400.0).abs() < 1e-9, "{found:?}");
    }
}
