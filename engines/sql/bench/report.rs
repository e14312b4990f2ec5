//! What was found, as lines of text.

use std::fmt;

use millrace_bench::machine::{self, Machine};
use millrace_bench::report::{Table, median};

use crate::run::Measured;

/// What a ratio is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aim {
    AtMost(f64),
}

/// One comparison: medians of both, and the median of the ratios of each round.
#[derive(Debug)]
pub(crate) struct Line {
    name: &'static str,
    unit: &'static str,
    reference: f64,
    ours: f64,
    ratio: f64,
    aim: Aim,
}

impl Line {
    /// Compares the times of all queries.
    pub(crate) fn new(
        name: &'static str,
        reference: &[Measured],
        ours: &[Measured],
        aim: Aim,
    ) -> Line {
        let times = |runs: &[Measured]| runs.iter().map(Measured::total_ms).collect();
        Line::of_values(name, "ms", times(reference), times(ours), aim)
    }

    /// Compares values of rounds.
    pub(crate) fn of_values(
        name: &'static str,
        unit: &'static str,
        reference: Vec<f64>,
        ours: Vec<f64>,
        aim: Aim,
    ) -> Line {
        let ratios: Vec<f64> = ours.iter().zip(&reference).map(|(ours, it)| ours / it).collect();
        let (reference, ours) = (median(&reference), median(&ours));
        Line { name, unit, reference, ours, ratio: median(&ratios), aim }
    }
}

/// All that was found.
pub(crate) struct Report {
    machine: Machine,
    rounds: usize,
    queries: Vec<(&'static str, Vec<f64>)>,
    pub(crate) lines: Vec<Line>,
}

impl Report {
    pub(crate) fn new(rounds: usize) -> Report {
        Report { machine: Machine::describe(), rounds, queries: Vec::new(), lines: Vec::new() }
    }

    /// Adds the median time of each query of some runs.
    pub(crate) fn queries(&mut self, name: &'static str, runs: &[Measured]) {
        let count = runs.first().map_or(0, |run| run.query_ms.len());
        let of = |query: usize| runs.iter().map(|run| run.query_ms[query]).collect::<Vec<_>>();
        let mut medians = vec![median(&runs.iter().map(|run| run.tables_ms).collect::<Vec<_>>())];
        medians.extend((0..count).map(|query| median(&of(query))));
        self.queries.push((name, medians));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, cpu_count, kernel, .. } = &self.machine;
        writeln!(
            out,
            "{cpu}, {cpu_count} CPUs, Linux {kernel}, commit {}",
            machine::commit().unwrap_or_else(|| "unknown".to_owned())
        )?;
        writeln!(out, "medians of {} rounds\n", self.rounds)?;
        let mut table = Table::new(&["", "without", "node", "unit", "ratio", "aim", "met"]);
        for line in &self.lines {
            let Aim::AtMost(aim) = line.aim;
            table.row([
                line.name.to_owned(),
                format!("{:.1}", line.reference),
                format!("{:.1}", line.ours),
                line.unit.to_owned(),
                format!("{:.3}", line.ratio),
                format!("<= {aim}"),
                if line.ratio <= aim { "yes" } else { "no" }.to_owned(),
            ]);
        }
        writeln!(out, "{}", table.render())?;
        let mut head = vec!["ms".to_owned(), "tables".to_owned()];
        let count = self.queries.first().map_or(0, |(_, medians)| medians.len().saturating_sub(1));
        head.extend((1..=count).map(|number| format!("q{number}")));
        let head: Vec<&str> = head.iter().map(String::as_str).collect();
        let mut table = Table::new(&head);
        for (name, medians) in &self.queries {
            let cells = medians.iter().map(|ms| format!("{ms:.0}"));
            table.row(std::iter::once((*name).to_owned()).chain(cells));
        }
        write!(out, "{}", table.render())
    }
}
