//! How long a read takes: one at a time, and at a fixed rate that is the same for all servers.
//!
//! Owns the two parts of `compare --latency` and their words. Rounds are interleaved as in the
//! comparison of speed, and a ratio is the median of the ratios of each round; below 1 the node is
//! faster. In the open loop a request's clock starts when it is due, not when it is sent: a server that
//! pauses is charged for every request of the pause.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::candidate::Candidate;
use super::{CompareOptions, NODE_NAME, interleave};
use crate::load::{Latency, LoadOptions, LoadResult};
use crate::report::{self, Table, median, median_ratio};
use crate::rival::Rival;

/// Share of the reference's top rate at which the open loop runs. At half of it a server is busy,
/// and no queue grows by itself.
const RATE_SHARE: f64 = 0.5;
/// Most rounds by which the top rate is found: it need not be exact.
const RATE_ROUNDS_MAX: usize = 3;
/// A server that answers less than this share of the rate is behind it.
const BEHIND_SHARE: f64 = 0.97;
/// Above this share of the time without its CPU, latencies are as much of the machine as of the
/// server. Guessed: the 99th percentile is then still of the server.
const AWAY_SHARE: f64 = 0.01;
/// Stands for the fastest rival of each round.
const BEST_RIVAL: &str = "best rival";

/// Latencies at one size of objects.
#[derive(Clone, Debug, Serialize)]
pub struct LatencyReport {
    /// Size of an object in bytes.
    pub size: usize,
    /// One connection with one request at a time.
    pub single: LatencyPart,
    /// All connections, requests sent at a fixed rate.
    pub open: LatencyPart,
    /// That rate, in reads per second.
    pub rate: f64,
    /// Where the rate comes from.
    pub rate_reason: String,
}

/// The results of one kind of load.
#[derive(Clone, Debug, Serialize)]
pub struct LatencyPart {
    /// Each server.
    pub servers: Vec<LatencyServer>,
    /// The node over each rival, then over the best of each round.
    pub ratios: Vec<LatencyRatio>,
}

/// Medians over the rounds of one server.
#[derive(Clone, Debug, Serialize)]
pub struct LatencyServer {
    /// Its name.
    pub name: String,
    /// Reads answered per second.
    pub reads_per_s: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile in microseconds.
    pub p999_us: f64,
    /// Share of the time in which a generator that spins did not run.
    pub kept_away_share: Option<f64>,
    /// Each round.
    pub rounds: Vec<LoadResult>,
}

/// Medians of the ratios of each round; below 1 the node is faster.
#[derive(Clone, Debug, Serialize)]
pub struct LatencyRatio {
    /// The rival.
    pub rival: String,
    /// Ratio of the medians.
    pub p50: f64,
    /// Ratio of the 99th percentiles.
    pub p99: f64,
    /// Ratio of the 99.9th percentiles.
    pub p999: f64,
}

/// Measures both parts with servers that hold their objects.
pub(super) fn measure(
    candidates: &mut [Candidate],
    options: &CompareOptions,
    progress: &mut impl FnMut(&str),
) -> Result<LatencyReport> {
    ensure!(!candidates.is_empty(), "there is no server to measure");
    let size = candidates[0].set.size;
    let label = report::size(size as u64);
    let (rate, rate_reason) = choose_rate(candidates, options, progress)?;
    let open = LoadOptions { rate: Some(rate), ..options.load() };
    let single = LoadOptions { connections: 1, depth: 1, batch: 1, ..open };
    let single = LoadOptions { rate: None, ..single };
    let mut rounds: [Vec<Vec<LoadResult>>; 2] =
        [(); 2].map(|()| vec![Vec::new(); candidates.len()]);
    for round in 0..options.rounds {
        let parts = [("one at a time", single), ("at a rate", open)];
        for (part, (words, load)) in parts.into_iter().enumerate() {
            for index in interleave(round, candidates.len()) {
                let candidate = &mut candidates[index];
                let name = candidate.name;
                let count = options.rounds;
                progress(&format!("{label} {words}: round {} of {count}, {name}", round + 1));
                let result = candidate.load(options.seed_of(round), load)?;
                rounds[part][index].push(result);
            }
        }
    }
    let [single, open] = rounds.map(|rounds| {
        let named = candidates.iter().map(|candidate| candidate.name).zip(rounds);
        LatencyPart::new(named.map(|(name, rounds)| LatencyServer::new(name, rounds)).collect())
    });
    Ok(LatencyReport { size, single, open, rate, rate_reason })
}

/// Returns the rate of the open loop: the one that was asked for, or half of redis's top rate, or
/// without redis half of the slowest server's.
fn choose_rate(
    candidates: &mut [Candidate],
    options: &CompareOptions,
    progress: &mut impl FnMut(&str),
) -> Result<(f64, String)> {
    if let Some(rate) = options.rate {
        return Ok((rate, "as asked for".into()));
    }
    let redis = candidates.iter().position(|candidate| candidate.name == Rival::Redis.name());
    let asked: Vec<usize> = redis.map_or((0..candidates.len()).collect(), |index| vec![index]);
    let mut slowest: Option<(f64, &'static str)> = None;
    for index in asked {
        let candidate = &mut candidates[index];
        progress(&format!("finding the top rate of {}", candidate.name));
        let mut rates = Vec::new();
        for round in 0..options.rounds.min(RATE_ROUNDS_MAX) {
            let found = candidate.load(options.seed_of(round), options.load())?;
            rates.push(found.reads_per_s);
        }
        let rate = median(&rates);
        if slowest.is_none_or(|(slowest, _)| rate < slowest) {
            slowest = Some((rate, candidate.name));
        }
    }
    let (top, name) = slowest.unwrap_or_default();
    ensure!(top > 0.0, "no server answered a read, so there is no rate to ask for");
    let reason = format!("half of {name}'s top rate of {} reads/s", report::count(top));
    Ok((top * RATE_SHARE, reason))
}

impl LatencyPart {
    fn new(servers: Vec<LatencyServer>) -> LatencyPart {
        let ratios = ratios(&servers);
        LatencyPart { servers, ratios }
    }

    fn render(&self, title: &str) -> String {
        let mut table = Table::new(&[
            title,
            "reads/s",
            "p50",
            "p99",
            "p99.9",
            "p50 ratio",
            "p99 ratio",
            "p99.9 ratio",
        ]);
        let ratio_cells = |name: &str| {
            let ratio = self.ratios.iter().find(|ratio| ratio.rival == name);
            let of = |value: fn(&LatencyRatio) -> f64| report::optional(ratio.map(value));
            [of(|ratio| ratio.p50), of(|ratio| ratio.p99), of(|ratio| ratio.p999)]
        };
        for server in &self.servers {
            let cells = [
                server.name.clone(),
                report::count(server.reads_per_s),
                report::latency(server.p50_us),
                report::latency(server.p99_us),
                report::latency(server.p999_us),
            ];
            table.row(cells.into_iter().chain(ratio_cells(&server.name)));
        }
        if self.ratios.iter().any(|ratio| ratio.rival == BEST_RIVAL) {
            let cells = [BEST_RIVAL, "", "", "", ""].map(String::from);
            table.row(cells.into_iter().chain(ratio_cells(BEST_RIVAL)));
        }
        table.render()
    }
}

impl LatencyServer {
    fn new(name: &str, rounds: Vec<LoadResult>) -> LatencyServer {
        let of =
            |value: fn(&LoadResult) -> f64| median(&rounds.iter().map(value).collect::<Vec<f64>>());
        LatencyServer {
            name: name.into(),
            reads_per_s: of(|round| round.reads_per_s),
            p50_us: of(|round| round.latency.p50_us),
            p99_us: of(|round| round.latency.p99_us),
            p999_us: of(|round| round.latency.p999_us),
            kept_away_share: rounds
                .iter()
                .all(|round| round.kept_away_share.is_some())
                .then(|| of(|round| round.kept_away_share.unwrap_or_default())),
            rounds,
        }
    }
}

/// Returns the ratios of the node, if it is there, to each rival, and to the best one if there are
/// several.
fn ratios(servers: &[LatencyServer]) -> Vec<LatencyRatio> {
    let (ours, rivals): (Vec<_>, Vec<_>) =
        servers.iter().partition(|server| server.name == NODE_NAME);
    let Some(ours) = ours.first() else {
        return Vec::new();
    };
    let over = |name: &str, theirs: &dyn Fn(usize, fn(&Latency) -> f64) -> f64| {
        let of = |value: fn(&Latency) -> f64| {
            let ours = ours.rounds.iter().map(|round| value(&round.latency));
            median_ratio(ours, (0..).map(|round| theirs(round, value)))
        };
        LatencyRatio {
            rival: name.into(),
            p50: of(|latency| latency.p50_us),
            p99: of(|latency| latency.p99_us),
            p999: of(|latency| latency.p999_us),
        }
    };
    let mut ratios: Vec<LatencyRatio> = rivals
        .iter()
        .map(|rival| over(&rival.name, &|round, value| value(&rival.rounds[round].latency)))
        .collect();
    if rivals.len() > 1 {
        ratios.push(over(BEST_RIVAL, &|round, value| {
            let all = rivals.iter().map(|rival| value(&rival.rounds[round].latency));
            all.fold(f64::INFINITY, f64::min)
        }));
    }
    ratios
}

impl LatencyReport {
    pub(super) fn render(&self) -> String {
        let size = report::size(self.size as u64);
        let mut text = self.single.render(&format!("{size}, one at a time"));
        text.push('\n');
        let rate = report::count(self.rate);
        text.push_str(&self.open.render(&format!("{size}, {rate} reads/s")));
        let _ = writeln!(text, "the rate is {}", self.rate_reason);
        for server in self.single.servers.iter().chain(&self.open.servers) {
            if let Some(share) = server.kept_away_share.filter(|&share| share > AWAY_SHARE) {
                let _ = writeln!(
                    text,
                    "note: while {} was measured other work took {:.0} % of the load generator's \
                     CPU, and latencies count that too: measure again on an idle machine",
                    server.name,
                    share * 100.0
                );
            }
        }
        for server in &self.open.servers {
            if server.reads_per_s < self.rate * BEHIND_SHARE {
                let _ = writeln!(
                    text,
                    "note: {} answered {} reads/s, less than it was asked for: its latencies are \
                     those of a queue that grows",
                    server.name,
                    report::count(server.reads_per_s)
                );
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str, latencies: &[f64]) -> LatencyServer {
        let rounds = latencies.iter().map(|&us| LoadResult {
            reads_per_s: 90.0,
            latency: Latency {
                p50_us: us,
                p99_us: us * 2.0,
                p999_us: us * 4.0,
                max_us: us,
                p90_us: us,
            },
            ..LoadResult::default()
        });
        LatencyServer::new(name, rounds.collect())
    }

    #[test]
    fn the_best_rival_is_found_in_each_round() {
        let servers = [
            server(NODE_NAME, &[10.0, 20.0, 30.0]),
            server("redis", &[20.0, 80.0, 40.0]),
            server("nginx", &[40.0, 25.0, 100.0]),
        ];
        let found = ratios(&servers);
        let of = |name: &str| found.iter().find(|ratio| ratio.rival == name).unwrap();
        assert!((of("redis").p50 - 0.5).abs() < 1e-9);
        assert!((of("nginx").p99 - 0.3).abs() < 1e-9);
        // 10/20, 20/25 and 30/40.
        assert!((of(BEST_RIVAL).p999 - 0.75).abs() < 1e-9);
    }

    #[test]
    fn a_server_behind_the_rate_is_named() {
        let part = || LatencyPart::new(vec![server(NODE_NAME, &[1.0]), server("redis", &[2.0])]);
        let report = LatencyReport {
            size: 4096,
            single: part(),
            open: part(),
            rate: 100.0,
            rate_reason: "as asked for".into(),
        };
        let text = report.render();
        assert!(text.contains("note: redis answered 90 reads/s"), "{text}");
        assert!(!text.contains(BEST_RIVAL), "one rival needs no best: {text}");
        let row = text.lines().find(|line| line.starts_with("redis")).unwrap();
        assert!(row.ends_with("0.50       0.50         0.50"), "{text}");
    }
}
