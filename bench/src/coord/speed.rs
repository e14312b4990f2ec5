//! How fast: rates, latencies and CPU time of every workload, beside those of the rivals.
//!
//! Owns the order of measurement. All services run at once and only one is loaded at a time. Rounds
//! are interleaved and their order rotates, so that a machine that slows down slows all of them; a
//! ratio is the median of the ratios of each round. What a round created is deleted before the
//! next.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::ensemble::Ensemble;
use super::generator::{self, Load, Measurement};
use super::operation::{Action, Key, Operation, Requests, Values, Workload};
use super::process::Memory;
use super::{CoordOptions, Setting, System};
use crate::report::{self, Table, median, median_ratio};

/// Keys that are kept if the options do not say how many.
pub const ZNODES: u32 = 10_000;

/// The result of a comparison.
#[derive(Clone, Debug, Serialize)]
pub struct SpeedReport {
    /// What is needed to read it.
    pub setting: Setting,
    /// Keys that were kept.
    pub znodes: u32,
    /// Most connections.
    pub connections: usize,
    /// Load of each service before anything was measured, in seconds.
    pub warmup_seconds: f64,
    /// Measured seconds of each service in each round.
    pub seconds: f64,
    /// Rounds.
    pub rounds: usize,
    /// Results, one for each number of replicas, of requests in flight, and workload.
    pub cells: Vec<Cell>,
}

/// Results of one workload.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// Replicas of each service.
    pub replicas: usize,
    /// Requests in flight.
    pub outstanding: usize,
    /// What was asked.
    pub workload: Workload,
    /// Each service.
    pub services: Vec<ServiceReport>,
    /// Ours over each rival.
    pub ratios: Vec<ServiceRatioReport>,
}

/// Medians over the rounds of one service.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceReport {
    /// The service.
    pub system: System,
    /// Operations per second.
    pub operations_per_s: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile in microseconds.
    pub p999_us: f64,
    /// CPU seconds of all replicas for 100,000 operations.
    pub server_cpu_s_per_100k: f64,
    /// Share of a CPU that the load generator used: near 1 it was the limit.
    pub client_cpu_share: f64,
    /// Memory of all replicas after the last round.
    pub memory: Memory,
    /// Operations that were refused, in all rounds together.
    pub refused: u64,
    /// Each round.
    pub rounds: Vec<Measurement>,
}

/// Medians of the ratios of each round, ours over a rival.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceRatioReport {
    /// The rival.
    pub rival: System,
    /// Ratio of operations per second; above 1 ours is faster.
    pub operations_per_s: f64,
    /// Ratio of the 99th percentiles; below 1 ours is faster.
    pub p99: f64,
    /// Ratio of the 99.9th percentiles; below 1 ours is faster.
    pub p999: f64,
    /// Ratio of CPU seconds of the replicas for each operation; below 1 ours needs less.
    pub server_cpu: f64,
}

/// Compares. `progress` gets a line that says what happens next.
///
/// # Errors
/// If a service cannot be started, breaks a connection, or gives a wrong answer.
pub fn measure(options: &CoordOptions, mut progress: impl FnMut(&str)) -> Result<SpeedReport> {
    ensure!(options.rounds > 0, "no rounds, no result");
    let values = options.values()?;
    let (setting, systems) = Setting::find(options)?;
    let mut report = SpeedReport {
        setting,
        znodes: options.znodes_or(ZNODES),
        connections: options.connections,
        warmup_seconds: options.warmup_seconds,
        seconds: options.seconds,
        rounds: options.rounds,
        cells: Vec::new(),
    };
    ensure!(report.znodes > 0, "without keys there is nothing to read");
    for &replicas in &options.replicas {
        let mut bench = Bench { options, values: &values, znodes: report.znodes, replicas };
        let cells = bench.measure(&systems, &mut progress);
        report.cells.extend(
            cells.with_context(|| {
                format!("measure with {}", report::counted(replicas, "replica"))
            })?,
        );
    }
    Ok(report)
}

/// The measurement of one number of replicas.
struct Bench<'a> {
    options: &'a CoordOptions,
    values: &'a Values,
    znodes: u32,
    replicas: usize,
}

/// A service that runs.
struct RunningService {
    ensemble: Ensemble,
    /// The first key that it was never asked to create.
    fresh_next: u32,
}

impl Bench<'_> {
    fn measure(
        &mut self,
        systems: &[System],
        progress: &mut impl FnMut(&str),
    ) -> Result<Vec<Cell>> {
        let label = report::counted(self.replicas, "replica");
        let mut candidates = Vec::new();
        for &system in systems {
            let name = system.name();
            progress(&format!("{label}: starting {name}"));
            let ensemble = Ensemble::start(system, self.replicas, self.options)?;
            progress(&format!("{label}: preparing and warming up {name}"));
            super::prepare(&ensemble, self.options, self.values, self.znodes)
                .with_context(|| format!("prepare {name}"))?;
            let mut candidate = RunningService { ensemble, fresh_next: 0 };
            self.warm_up(&mut candidate).with_context(|| format!("warm {name} up"))?;
            candidates.push(candidate);
        }
        let mut cells = Vec::new();
        for &outstanding in &self.options.outstanding {
            for &workload in &self.options.workloads {
                let label = format!("{label}, {outstanding} outstanding, {}", workload.name());
                let mut tell = |text: &str| progress(&format!("{label}: {text}"));
                let cell = self.cell(&mut candidates, outstanding, workload, &mut tell);
                cells.push(cell.context(label)?);
            }
        }
        Ok(cells)
    }

    /// Runs every workload for its share of the time, with as much in flight as there will be.
    fn warm_up(&self, candidate: &mut RunningService) -> Result<()> {
        let outstanding = self.options.outstanding.iter().copied().max().unwrap_or(1);
        let seconds = self.options.warmup_seconds / self.options.workloads.len() as f64;
        if seconds > 0.0 {
            for &workload in &self.options.workloads {
                self.load(candidate, outstanding, workload, self.options.seed, (0.0, seconds))?;
            }
        }
        Ok(())
    }

    fn cell(
        &self,
        candidates: &mut [RunningService],
        outstanding: usize,
        workload: Workload,
        progress: &mut impl FnMut(&str),
    ) -> Result<Cell> {
        let rounds = self.options.rounds;
        let mut found = vec![Vec::with_capacity(rounds); candidates.len()];
        for round in 0..rounds {
            // Each round has its own keys, and all services of a round the same.
            let seed = self.options.seed.wrapping_add(1 + round as u64);
            for step in 0..candidates.len() {
                let index = (round + step) % candidates.len();
                let candidate = &mut candidates[index];
                let name = candidate.ensemble.system().name();
                progress(&format!("round {} of {rounds}, {name}", round + 1));
                let times = (self.options.settle_seconds, self.options.seconds);
                let measurement = self
                    .load(candidate, outstanding, workload, seed, times)
                    .with_context(|| format!("measure {name}"))?;
                found[index].push(measurement);
            }
        }
        let mut services = Vec::with_capacity(candidates.len());
        for (candidate, rounds) in candidates.iter().zip(found) {
            let memory = candidate.ensemble.memory()?;
            services.push(ServiceReport::new(candidate.ensemble.system(), memory, rounds));
        }
        let ratios = ratios(&services);
        Ok(Cell { replicas: self.replicas, outstanding, workload, services, ratios })
    }

    /// Loads one service for `(warm-up, measured)` seconds, and deletes what that created.
    fn load(
        &self,
        candidate: &mut RunningService,
        outstanding: usize,
        workload: Workload,
        seed: u64,
        (warmup_seconds, seconds): (f64, f64),
    ) -> Result<Measurement> {
        let RunningService { ensemble, fresh_next } = candidate;
        let addresses = ensemble.addresses_leader_last()?;
        let pids = ensemble.pids();
        let load = Load {
            system: ensemble.system(),
            addresses: &addresses,
            values: self.values,
            connections: self.options.connections,
            outstanding,
            warmup_seconds,
            seconds,
            cpu: self.options.client_cpu,
            pids: &pids,
        };
        let mut requests = Requests::new(workload, self.znodes, *fresh_next, seed);
        let measurement = generator::run(&load, &mut requests)?;
        let created = *fresh_next..requests.fresh_next();
        *fresh_next = created.end;
        if measurement.refused_count() == 0 {
            let mut deletes =
                created.map(|number| Operation { action: Action::Delete, key: Key::Fresh(number) });
            super::sweep(ensemble, self.options, self.values, &mut deletes)
                .context("delete what was created")?;
        }
        Ok(measurement)
    }
}

impl ServiceReport {
    fn new(system: System, memory: Memory, rounds: Vec<Measurement>) -> ServiceReport {
        let of = |value: fn(&Measurement) -> f64| {
            let values: Vec<f64> = rounds.iter().map(value).collect();
            median(&values)
        };
        ServiceReport {
            system,
            operations_per_s: of(|round| round.operations_per_s),
            p50_us: of(|round| round.latency.p50_us),
            p99_us: of(|round| round.latency.p99_us),
            p999_us: of(|round| round.latency.p999_us),
            server_cpu_s_per_100k: of(|round| round.server_cpu_s_per_100k),
            client_cpu_share: of(|round| round.client_cpu_s / round.seconds),
            memory,
            refused: rounds.iter().map(Measurement::refused_count).sum(),
            rounds,
        }
    }
}

/// Returns the ratios of ours, if it is there, to each rival.
fn ratios(services: &[ServiceReport]) -> Vec<ServiceRatioReport> {
    let (ours, rivals): (Vec<_>, Vec<_>) =
        services.iter().partition(|service| service.system == System::Millrace);
    let Some(ours) = ours.first() else {
        return Vec::new();
    };
    let ratio = |rival: &ServiceReport, value: fn(&Measurement) -> f64| {
        median_ratio(ours.rounds.iter().map(value), rival.rounds.iter().map(value))
    };
    let over = |rival: &&ServiceReport| ServiceRatioReport {
        rival: rival.system,
        operations_per_s: ratio(rival, |round| round.operations_per_s),
        p99: ratio(rival, |round| round.latency.p99_us),
        p999: ratio(rival, |round| round.latency.p999_us),
        server_cpu: ratio(rival, |round| round.server_cpu_s_per_100k),
    };
    rivals.iter().map(over).collect()
}

impl SpeedReport {
    /// Returns the report for people.
    pub fn render(&self) -> String {
        let mut text = self.setting.render();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{} keys; at most {} connections, spread over the replicas, the leader last; \
             {} of {} s behind {} s of warm-up",
            self.znodes,
            self.connections,
            report::counted(self.rounds, "round"),
            self.seconds,
            self.warmup_seconds
        );
        text.push_str(
            "durability: each service's default, a write is answered when its log is synced; \
             reads are answered by the replica that is asked (etcd: serializable)\n",
        );
        for cell in &self.cells {
            text.push('\n');
            text.push_str(&cell.render());
        }
        text
    }
}

impl Cell {
    fn render(&self) -> String {
        let title = format!(
            "{}, {}, {} outstanding",
            self.workload.name(),
            report::counted(self.replicas, "replica"),
            self.outstanding
        );
        let mut table = Table::new(&[
            &title,
            "ops/s",
            "p50",
            "p99",
            "p99.9",
            "server s/100k",
            "client CPU",
            "RSS",
            "anonymous",
            "ops ratio",
            "p99 ratio",
            "p99.9 ratio",
            "CPU ratio",
        ]);
        for service in &self.services {
            let ratio = self.ratios.iter().find(|ratio| ratio.rival == service.system);
            table.row([
                service.system.name().to_owned(),
                report::count(service.operations_per_s),
                report::latency(service.p50_us),
                report::latency(service.p99_us),
                report::latency(service.p999_us),
                format!("{:.2}", service.server_cpu_s_per_100k),
                format!("{:.0} %", service.client_cpu_share * 100.0),
                report::size(service.memory.rss_bytes),
                report::size(service.memory.anonymous_bytes),
                report::optional(ratio.map(|ratio| ratio.operations_per_s)),
                report::optional(ratio.map(|ratio| ratio.p99)),
                report::optional(ratio.map(|ratio| ratio.p999)),
                report::optional(ratio.map(|ratio| ratio.server_cpu)),
            ]);
        }
        let mut text = table.render();
        for service in self.services.iter().filter(|service| service.refused > 0) {
            let name = service.system.name();
            let reasons = service.rounds.iter().flat_map(|round| round.refused.keys());
            let mut reasons: Vec<&str> = reasons.map(String::as_str).collect();
            reasons.sort_unstable();
            reasons.dedup();
            let count = service.refused;
            let _ = writeln!(text, "warning: {name} refused {count}: {}", reasons.join(", "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(system: System, rates: [f64; 3], refused: &[(&str, u64)]) -> ServiceReport {
        let round = |rate| Measurement {
            operations_per_s: rate,
            seconds: 1.0,
            refused: refused.iter().map(|&(why, count)| (why.to_owned(), count)).collect(),
            ..Measurement::default()
        };
        ServiceReport::new(system, Memory::default(), rates.map(round).to_vec())
    }

    fn cell(services: Vec<ServiceReport>) -> Cell {
        let ratios = ratios(&services);
        Cell { replicas: 3, outstanding: 256, workload: Workload::Set, services, ratios }
    }

    #[test]
    fn ratio_is_beside_its_rival_and_taken_within_each_round() {
        // The machine was twice as slow in the second round; the ratio is not.
        let ours = service(System::Millrace, [300.0, 150.0, 310.0], &[]);
        let rival = service(System::ZooKeeper, [100.0, 50.0, 100.0], &[]);
        let text = cell(vec![ours, rival]).render();
        assert!(text.starts_with("set, 3 replicas, 256 outstanding"), "{text}");
        let row = text.lines().find(|line| line.starts_with("zookeeper")).unwrap();
        assert!(row.contains("3.00"), "{text}");
    }

    #[test]
    fn refusals_are_never_silent() {
        let rival = service(System::Etcd, [1.0; 3], &[("gRPC status 8", 2)]);
        let text = cell(vec![rival]).render();
        assert!(text.contains("warning: etcd refused 6: gRPC status 8"), "{text}");
    }
}
