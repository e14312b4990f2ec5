//! What people and programs read: sizes, rates, aligned tables.
//!
//! Owns formatting. Sizes of objects are binary (`64 KiB`), rates decimal (`GB/s`), as in the
//! results themselves.

use std::fmt::Write;

pub use millrace_ops::form::{count, latency, size};

/// Formats a number with its noun: `1 shard`, `2 shards`.
pub fn counted(value: usize, noun: &str) -> String {
    if value == 1 { format!("1 {noun}") } else { format!("{value} {noun}s") }
}

/// Formats a number with two decimals, or `-` without one.
pub fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.2}"))
}

/// Rows under a head, the first column to the left, all others to the right.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Makes a table with this head.
    pub fn new(head: &[&str]) -> Table {
        let head = head.iter().map(|&cell| cell.to_owned()).collect();
        Table { rows: vec![head] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Returns the table as lines, each with its line end.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let widths: Vec<usize> = (0..columns)
            .map(|column| cells(column).map(|cell| cell.chars().count()).max())
            .map(|width| width.unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let padding = " ".repeat(width - cell.chars().count());
                match column {
                    0 => line.extend([cell.as_str(), &padding]),
                    _ => line.extend(["  ", &padding, cell]),
                }
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

/// Returns the middle of `values`, or the mean of the two in the middle; 0 if there are none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Returns the median of the ratios of each round; a round whose divisor is 0 has none.
pub(crate) fn median_ratio(
    ours: impl IntoIterator<Item = f64>,
    theirs: impl IntoIterator<Item = f64>,
) -> f64 {
    let ratios: Vec<f64> = ours
        .into_iter()
        .zip(theirs)
        .filter(|&(_, theirs)| theirs > 0.0)
        .map(|(ours, theirs)| ours / theirs)
        .collect();
    median(&ratios)
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(counted(1, "shard"), "1 shard");
        assert_eq!(counted(0, "file"), "0 files");
        assert_eq!(optional(None), "-");
    }

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["name", "µs"]);
        table.row(["a".into(), "1234".into()]);
        table.row(["longer".into(), "5".into()]);
        assert_eq!(table.render(), "name      µs\na       1234\nlonger     5\n");
    }

    #[test]
    fn median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
        assert!(median(&[]).abs() < 1e-12);
    }

    #[test]
    fn ratio_is_taken_within_each_round() {
        // The machine was twice as slow in the second round; the ratio is not.
        let ratio = median_ratio([200.0, 100.0, 210.0], [100.0, 50.0, 100.0]);
        assert!((ratio - 2.0).abs() < 1e-12, "{ratio}");
        assert!(median_ratio([1.0], [0.0]).abs() < 1e-12);
    }
}
