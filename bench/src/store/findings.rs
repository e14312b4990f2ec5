//! What a comparison with a store found, and whether its aims are met.

use std::fmt::Write as _;

use serde::Serialize;

use super::proxy::Traffic;
use crate::machine::Machine;
use crate::report::{self, Table, median, median_ratio};

/// The result of a comparison.
#[derive(Clone, Debug, Serialize)]
pub struct StoreReport {
    /// Machine it ran on.
    pub machine: Machine,
    /// Command line.
    pub command: String,
    /// Commit of the current directory.
    pub commit: Option<String>,
    /// What was read: the URL of a store, or none for objects of the harness.
    pub store: Option<String>,
    /// Latency of the line in milliseconds.
    pub latency_ms: f64,
    /// Pace of each connection of the line in bytes a second.
    pub bytes_per_s: u64,
    /// Readers at once.
    pub concurrency: usize,
    /// Size of a large object in bytes.
    pub object_bytes: u64,
    /// Rounds.
    pub rounds: usize,
    /// What was measured, each with its aim.
    pub lines: Vec<StoreLine>,
}

/// What a ratio, or a value, is to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreAim {
    /// The ratio is at least this.
    RatioAtLeast(f64),
    /// The ratio is at most this.
    RatioAtMost(f64),
    /// What the node needs is at most this.
    ValueAtMost(f64),
    /// It is only reported.
    None,
}

/// Medians over the rounds of one measurement.
#[derive(Clone, Debug, Serialize)]
pub struct StoreLine {
    /// What was measured.
    pub name: &'static str,
    /// Unit of both values.
    pub unit: &'static str,
    /// Value of the store read directly; for hits, of a node that loads nothing.
    pub reference: f64,
    /// Value of the node.
    pub millrace: f64,
    /// Median of the ratios of each round, the node's value over the other.
    pub ratio: f64,
    /// What is aimed at.
    pub aim: StoreAim,
    /// True if it is met; none without an aim.
    pub is_met: Option<bool>,
    /// Each round.
    pub rounds: Vec<StoreRound>,
}

/// One round of one measurement.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct StoreRound {
    /// Value of the store read directly.
    pub reference: f64,
    /// Value of the node.
    pub millrace: f64,
    /// Reads that the store got, directly and by the node.
    pub reads: [u64; 2],
    /// Bytes that the store sent, directly and by the node.
    pub bytes: [u64; 2],
}

impl StoreRound {
    pub(super) fn new(values: [f64; 2], traffic: [Traffic; 2]) -> StoreRound {
        let [reference, millrace] = values;
        let (reads, bytes) = (traffic.map(|it| it.reads), traffic.map(|it| it.bytes));
        StoreRound { reference, millrace, reads, bytes }
    }
}

impl StoreLine {
    pub(super) fn new(
        name: &'static str,
        unit: &'static str,
        aim: StoreAim,
        rounds: Vec<StoreRound>,
    ) -> StoreLine {
        let of =
            |value: fn(&StoreRound) -> f64| median(&rounds.iter().map(value).collect::<Vec<_>>());
        let (reference, millrace) = (of(|round| round.reference), of(|round| round.millrace));
        let ratio = median_ratio(
            rounds.iter().map(|round| round.millrace),
            rounds.iter().map(|round| round.reference),
        );
        let is_met = match aim {
            StoreAim::RatioAtLeast(least) => Some(ratio >= least),
            StoreAim::RatioAtMost(most) => Some(ratio <= most),
            StoreAim::ValueAtMost(most) => Some(rounds.iter().all(|round| round.millrace <= most)),
            StoreAim::None => None,
        };
        StoreLine { name, unit, reference, millrace, ratio, aim, is_met, rounds }
    }

    fn reads(&self, side: usize) -> f64 {
        median(&self.rounds.iter().map(|round| round.reads[side] as f64).collect::<Vec<_>>())
    }

    fn row(&self) -> [String; 9] {
        let number = |value: f64| match self.unit {
            "requests" => format!("{value:.0}"),
            _ if value >= 100.0 => format!("{value:.0}"),
            _ => format!("{value:.2}"),
        };
        let aim = match self.aim {
            StoreAim::RatioAtLeast(least) => format!(">= {least}"),
            StoreAim::RatioAtMost(most) => format!("<= {most}"),
            StoreAim::ValueAtMost(most) => format!("millrace <= {most}"),
            StoreAim::None => "-".to_owned(),
        };
        let is_met = self.is_met.map_or("-", |is_met| if is_met { "met" } else { "SHORT" });
        [
            self.name.to_owned(),
            self.unit.to_owned(),
            number(self.reference),
            number(self.millrace),
            format!("{:.2}", self.ratio),
            aim,
            is_met.to_owned(),
            format!("{:.0}", self.reads(0)),
            format!("{:.0}", self.reads(1)),
        ]
    }
}

impl StoreReport {
    /// Returns the report for people.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let machine = &self.machine;
        let _ = writeln!(
            text,
            "{}, {} CPUs, Linux {}; store: {}",
            machine.cpu,
            machine.cpu_count,
            machine.kernel,
            self.store.as_deref().unwrap_or("objects of this process"),
        );
        let _ = writeln!(
            text,
            "behind {} ms and {} MB/s a connection; {}, large objects of {}; {}",
            self.latency_ms,
            self.bytes_per_s / 1_000_000,
            report::counted(self.concurrency, "reader"),
            report::size(self.object_bytes),
            report::counted(self.rounds, "round"),
        );
        let commit = self.commit.as_deref().unwrap_or("none");
        let _ = writeln!(text, "command: {}; commit: {commit}\n", self.command);
        let mut table = Table::new(&[
            "",
            "unit",
            "direct",
            "millrace",
            "ratio",
            "aim",
            "",
            "reads direct",
            "reads millrace",
        ]);
        for line in &self.lines {
            table.row(line.row());
        }
        text + &table.render()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(aim: StoreAim, values: [[f64; 2]; 3]) -> StoreLine {
        let rounds = values.map(|pair| StoreRound::new(pair, [Traffic::default(); 2]));
        StoreLine::new("it", "MB/s", aim, rounds.to_vec())
    }

    #[test]
    fn an_aim_is_judged_by_the_median_of_the_ratios() {
        let values = [[100.0, 90.0], [50.0, 49.0], [100.0, 97.0]];
        let met = line(StoreAim::RatioAtLeast(0.95), values);
        assert_eq!((met.is_met, met.ratio), (Some(true), 0.97));
        assert_eq!(line(StoreAim::RatioAtMost(0.95), values).is_met, Some(false));
        assert_eq!(line(StoreAim::None, values).is_met, None);
        let most = line(StoreAim::ValueAtMost(97.0), values);
        assert_eq!(most.is_met, Some(true), "no round may be above it");
        assert_eq!(line(StoreAim::ValueAtMost(96.0), values).is_met, Some(false));
        assert!(met.row().join(" ").contains(">= 0.95 met"), "{:?}", met.row());
    }
}
