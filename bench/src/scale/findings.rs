//! What scaling found, and how people read it.

use std::fmt::Write as _;

use serde::Serialize;

use crate::load::LoadResult;
use crate::machine::Machine;
use crate::report::{self, Table, median, median_ratio};
use crate::rival::Transport;

/// Everything that was found, with what is needed to read it.
#[derive(Clone, Debug, Serialize)]
pub struct ScaleReport {
    /// The machine.
    pub machine: Machine,
    /// Command line of this run.
    pub command: String,
    /// Commit of the directory it ran in, if that is known.
    pub commit: Option<String>,
    /// The way by which nodes were reached.
    pub transport: Transport,
    /// Measured seconds of each point in each round.
    pub seconds: f64,
    /// Rounds.
    pub rounds: usize,
    /// Most memory for blocks, their files and the nodes, in bytes.
    pub memory_bytes: u64,
    /// Each axis.
    pub axes: Vec<AxisReport>,
}

/// The results along one axis.
#[derive(Clone, Debug, Serialize)]
pub struct AxisReport {
    /// What grows.
    pub name: String,
    /// Points that are loaded alike, and differ in nothing but what grows.
    pub series: Vec<SeriesReport>,
    /// Points that were not measured.
    pub skipped: Vec<SkippedPoint>,
    /// What is needed to read the figures.
    pub notes: Vec<String>,
}

/// Points that are loaded alike.
#[derive(Clone, Debug, Serialize)]
pub struct SeriesReport {
    /// How they are loaded.
    pub name: String,
    /// Each point, the one that others are compared with first.
    pub points: Vec<PointReport>,
    /// Lowest and highest reads per second, as ratios to the first point.
    pub reads_ratio_range: [f64; 2],
    /// Lowest and highest CPU time of the node for a read, as ratios to the first point.
    pub node_cpu_ratio_range: [f64; 2],
}

/// Medians over the rounds of one point.
#[derive(Clone, Debug, Serialize)]
pub struct PointReport {
    /// Its place on the axis.
    pub value: u64,
    /// Reads per second.
    pub reads_per_s: f64,
    /// Ratio to the reads per second of the first point, the median of each round's.
    pub reads_ratio: f64,
    /// CPU time of the node for a read, in microseconds. A node that waits for requests spins a
    /// little before it sleeps, so this says much where the node was the limit, and less elsewhere.
    pub node_cpu_us_per_read: f64,
    /// Ratio to the CPU time of the first point, the median of each round's.
    pub node_cpu_ratio: f64,
    /// 99th percentile of latency in microseconds.
    pub p99_us: f64,
    /// CPUs that the node used.
    pub node_cpu_share: f64,
    /// Share of its CPU that the busiest load generator used.
    pub client_cpu_share: f64,
    /// Each round.
    pub rounds: Vec<Sample>,
}

/// A point that was not measured.
#[derive(Clone, Debug, Serialize)]
pub struct SkippedPoint {
    /// Its place on the axis.
    pub value: u64,
    /// Why not.
    pub reason: String,
}

/// One round of one point.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sample {
    /// Reads per second.
    pub reads_per_s: f64,
    /// CPU time of the node for a read, in microseconds.
    pub node_cpu_us_per_read: f64,
    /// 99th percentile of latency in microseconds, of the slowest load generator.
    pub p99_us: f64,
    /// CPUs that the node used.
    pub node_cpu_share: f64,
    /// Share of its CPU that the busiest load generator used.
    pub client_cpu_share: f64,
}

impl Sample {
    /// Adds up the results of load generators that ran at the same time.
    pub(super) fn of(results: &[LoadResult]) -> Sample {
        let reads_per_s: f64 = results.iter().map(|result| result.reads_per_s).sum();
        let first = results.first().cloned().unwrap_or_default();
        let node_cpu_share = match first.server_cpu_s {
            Some(seconds) if first.seconds > 0.0 => seconds / first.seconds,
            _ => 0.0,
        };
        let largest = |value: fn(&LoadResult) -> f64| results.iter().map(value).fold(0.0, f64::max);
        Sample {
            reads_per_s,
            node_cpu_us_per_read: if reads_per_s > 0.0 {
                node_cpu_share / reads_per_s * 1e6
            } else {
                0.0
            },
            p99_us: largest(|result| result.latency.p99_us),
            node_cpu_share,
            client_cpu_share: largest(|result| result.client_cpu_s / result.seconds.max(1e-9)),
        }
    }
}

impl AxisReport {
    /// Puts points into their series, in the order they come in.
    pub(super) fn new(
        name: &str,
        points: impl Iterator<Item = (String, u64, Vec<Sample>)>,
        skipped: Vec<SkippedPoint>,
        notes: Vec<String>,
    ) -> AxisReport {
        let points: Vec<_> = points.collect();
        let series = points.chunk_by(|left, right| left.0 == right.0).map(SeriesReport::new);
        AxisReport { name: name.into(), series: series.collect(), skipped, notes }
    }
}

impl SeriesReport {
    fn new(points: &[(String, u64, Vec<Sample>)]) -> SeriesReport {
        let base = points.first().map_or(&[][..], |(_, _, samples)| samples);
        let points_found: Vec<PointReport> = points
            .iter()
            .map(|(_, value, samples)| PointReport::new(*value, samples.clone(), base))
            .collect();
        let range = |value: fn(&PointReport) -> f64| {
            let values = points_found.iter().map(value);
            let (low, high) = (f64::INFINITY, f64::NEG_INFINITY);
            let range =
                values.fold((low, high), |(low, high), value| (low.min(value), high.max(value)));
            [range.0, range.1]
        };
        SeriesReport {
            name: points.first().map_or_else(String::new, |(name, _, _)| name.clone()),
            reads_ratio_range: range(|point| point.reads_ratio),
            node_cpu_ratio_range: range(|point| point.node_cpu_ratio),
            points: points_found,
        }
    }

    fn render(&self, axis: &str) -> String {
        let mut table = Table::new(&[
            axis,
            "reads/s",
            "ratio",
            "node µs/read",
            "ratio",
            "p99",
            "node CPU",
            "client CPU",
        ]);
        for point in &self.points {
            table.row([
                point.value.to_string(),
                report::count(point.reads_per_s),
                format!("{:.2}", point.reads_ratio),
                format!("{:.2}", point.node_cpu_us_per_read),
                format!("{:.2}", point.node_cpu_ratio),
                report::latency(point.p99_us),
                format!("{:.0} %", point.node_cpu_share * 100.0),
                format!("{:.0} %", point.client_cpu_share * 100.0),
            ]);
        }
        let mut text = format!("{axis}, {}\n{}", self.name, table.render());
        let [reads_low, reads_high] = self.reads_ratio_range;
        let [cpu_low, cpu_high] = self.node_cpu_ratio_range;
        let _ = writeln!(
            text,
            "reads/s {reads_low:.2} to {reads_high:.2} of the first point, \
             node CPU a read {cpu_low:.2} to {cpu_high:.2}"
        );
        text
    }
}

impl PointReport {
    fn new(value: u64, rounds: Vec<Sample>, base: &[Sample]) -> PointReport {
        let all = |samples: &[Sample], value: fn(&Sample) -> f64| {
            samples.iter().map(value).collect::<Vec<f64>>()
        };
        let of = |value: fn(&Sample) -> f64| median(&all(&rounds, value));
        let ratio = |value: fn(&Sample) -> f64| median_ratio(all(&rounds, value), all(base, value));
        PointReport {
            value,
            reads_per_s: of(|sample| sample.reads_per_s),
            reads_ratio: ratio(|sample| sample.reads_per_s),
            node_cpu_us_per_read: of(|sample| sample.node_cpu_us_per_read),
            node_cpu_ratio: ratio(|sample| sample.node_cpu_us_per_read),
            p99_us: of(|sample| sample.p99_us),
            node_cpu_share: of(|sample| sample.node_cpu_share),
            client_cpu_share: of(|sample| sample.client_cpu_share),
            rounds,
        }
    }
}

impl ScaleReport {
    /// Returns the report for people.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let machine = &self.machine;
        let _ = writeln!(
            text,
            "{}, {} CPUs, Linux {}; reads of 4 KiB, {} rounds of {} s{}",
            machine.cpu,
            machine.cpu_count,
            machine.kernel,
            self.rounds,
            self.seconds,
            match self.transport {
                Transport::Tcp => "",
                Transport::Unix => ", over Unix sockets",
            }
        );
        let commit = self.commit.as_deref().unwrap_or("none");
        let _ = writeln!(text, "command: {}; commit: {commit}", self.command);
        for axis in &self.axes {
            for series in &axis.series {
                text.push('\n');
                text.push_str(&series.render(&axis.name));
            }
            for skipped in &axis.skipped {
                let SkippedPoint { value, reason } = skipped;
                let _ = writeln!(text, "{value} {}: not measured, {reason}", axis.name);
            }
            for note in &axis.notes {
                let _ = writeln!(text, "note: {note}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rates: &[f64]) -> Vec<Sample> {
        let sample = |&rate| Sample {
            reads_per_s: rate,
            node_cpu_us_per_read: 1e6 / rate,
            ..Sample::default()
        };
        rates.iter().map(sample).collect()
    }

    #[test]
    fn a_point_is_compared_with_the_first_of_its_series_in_each_round() {
        // The machine was twice as slow in the second round.
        let points = [
            ("busy".into(), 10, samples(&[100.0, 50.0, 100.0])),
            ("busy".into(), 100, samples(&[80.0, 40.0, 90.0])),
            ("idle".into(), 10, samples(&[10.0, 10.0, 10.0])),
            ("idle".into(), 100, samples(&[11.0, 11.0, 11.0])),
        ];
        let skipped = vec![SkippedPoint { value: 1000, reason: "too many".into() }];
        let axis = AxisReport::new("things", points.into_iter(), skipped, Vec::new());
        assert_eq!(axis.series.len(), 2);
        let [low, high] = axis.series[0].reads_ratio_range;
        assert!((low - 0.8).abs() < 1e-9 && (high - 1.0).abs() < 1e-9, "{low} {high}");
        let [_, high] = axis.series[1].reads_ratio_range;
        assert!((high - 1.1).abs() < 1e-9, "{high}");
        assert!(axis.series[0].render("things").contains("reads/s 0.80 to 1.00"));
    }

    #[test]
    fn generators_are_added_up() {
        let result = |rate: f64| LoadResult {
            seconds: 2.0,
            reads_per_s: rate,
            server_cpu_s: Some(3.0),
            client_cpu_s: 1.0,
            ..LoadResult::default()
        };
        let sample = Sample::of(&[result(1e6), result(2e6)]);
        assert!((sample.reads_per_s - 3e6).abs() < 1.0);
        // One and a half CPUs for three million reads a second.
        assert!((sample.node_cpu_us_per_read - 0.5).abs() < 1e-9);
        assert!((sample.client_cpu_share - 0.5).abs() < 1e-9);
    }
}
