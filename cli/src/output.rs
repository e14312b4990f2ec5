//! What people and scripts see: stdout, stderr, sizes, times, tables, JSON and progress.
//!
//! Owns both streams, except the log of a process that serves: nothing else in this crate prints. Always
//! holds: stdout has results only, and a reader that goes away ends the program quietly, where
//! `println!` would panic. Progress is drawn on stderr and only on a terminal.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
pub(crate) use millrace_ops::form::size;
pub(crate) use millrace_ops::time::minute as time;
use serde::Serialize;

use crate::failure::Failure;
use crate::log;

/// Writes text to stdout.
///
/// # Errors
/// [`Failure::BrokenPipe`] if its reader went away; otherwise the error of the system.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// Writes bytes to stdout, as [`print()`] does.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let result = stdout.write_all(bytes).and_then(|()| stdout.flush());
    result.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::BrokenPipe,
        _ => Failure::new(format!("cannot write to stdout: {error}")),
    })
}

/// Prints one JSON document of several lines.
pub(crate) fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    print(&json(document)?)
}

/// Returns one JSON document of several lines.
pub(crate) fn json(document: &impl Serialize) -> Result<String, Failure> {
    as_document(serde_json::to_string_pretty(document))
}

/// Prints one JSON document on one line.
pub(crate) fn print_json_line(document: &impl Serialize) -> Result<(), Failure> {
    print(&as_document(serde_json::to_string(document))?)
}

fn as_document(text: serde_json::Result<String>) -> Result<String, Failure> {
    let mut text = text.map_err(|error| Failure::new(format!("cannot write JSON: {error}")))?;
    text.push('\n');
    Ok(text)
}

/// Writes a line to stderr, through the log where there is one.
pub(crate) fn note(text: &str) {
    log::note(text);
}

/// Writes text to stdout, for a process that goes on serving: if the reader went away the log says so,
/// and the process does not end.
pub(crate) fn announce(text: &str) {
    if print(text).is_err() {
        tracing::warn!("stdout cannot be written: its line is lost");
    }
}

/// How sizes are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sizes {
    /// `1.4 MiB`.
    Human,
    /// `1468006`.
    Exact,
}

impl Sizes {
    /// Returns the choice of a `--bytes` flag.
    pub(crate) fn exact_if(bytes: bool) -> Sizes {
        if bytes { Sizes::Exact } else { Sizes::Human }
    }

    /// Returns a size in this form.
    pub(crate) fn show(self, bytes: u64) -> String {
        match self {
            Sizes::Human => size(bytes),
            Sizes::Exact => bytes.to_string(),
        }
    }
}

/// Returns a count with separators between its thousands: `12,345`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a count with its noun: `1 file`, `12,345 files`.
pub(crate) fn counted(value: u64, noun: &str) -> String {
    let ending = match (value, noun.strip_suffix('y')) {
        (1, _) => return format!("1 {noun}"),
        (_, Some(stem)) => format!("{stem}ies"),
        (_, None) => format!("{noun}s"),
    };
    format!("{} {ending}", count(value))
}

/// Returns a part of a whole in percent, never 100 unless it is the whole.
pub(crate) fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 100;
    }
    let value = u128::from(part) * 100 / u128::from(whole);
    value.min(100) as u64
}

/// Returns seconds as `3 d 4 h`: the two largest units.
pub(crate) fn uptime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        (_, _, _) => format!("{days} d {} h", hours % 24),
    }
}

/// Returns a name as it may go to stdout; on a terminal, control characters are made visible.
pub(crate) fn name(text: &str) -> String {
    if io::stdout().is_terminal() { visible(text) } else { text.to_owned() }
}

/// Returns a name without control characters, which could move the cursor or hide text.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// As [`visible`], for text of several lines.
pub(crate) fn visible_lines(text: &str) -> String {
    text.lines().map(visible).collect::<Vec<_>>().join("\n")
}

/// Where the text of a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows of text in aligned columns.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table without a head.
    pub(crate) fn new(columns: &[Align]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub(crate) fn row<C: Into<String>>(&mut self, cells: impl IntoIterator<Item = C>) {
        let row: Vec<String> = cells.into_iter().map(Into::into).collect();
        assert_eq!(row.len(), self.columns.len(), "a cell for each column");
        self.rows.push(row);
    }

    /// Returns the table as lines, each with its line end and without blanks before it.
    pub(crate) fn render(&self) -> String {
        let width = |cell: &String| cell.chars().count();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| self.rows.iter().map(|row| width(&row[column])).max())
            .map(Option::unwrap_or_default)
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                // Formatting counts characters, as `width` does.
                let _ = match self.columns[column] {
                    Align::Left => write!(line, "{cell:<0$}", widths[column]),
                    Align::Right => write!(line, "{cell:>0$}", widths[column]),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Returns a bar on stderr that counts bytes; it is hidden unless stderr is a terminal.
pub(crate) fn bytes_bar(what: &str, total_bytes: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::stderr());
    let template = "{msg:<6} {bar:32} {percent:>3} %  {binary_bytes} of {binary_total_bytes}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar.set_message(what.to_owned());
    bar
}

/// A line on stderr that says what happens now: redrawn on a terminal, else written once.
pub(crate) struct Activity(Option<ProgressBar>);

impl Activity {
    /// Returns a line that is still empty.
    pub(crate) fn start() -> Activity {
        Activity(io::stderr().is_terminal().then(ProgressBar::new_spinner))
    }

    /// Shows what happens now.
    pub(crate) fn tell(&self, text: &str) {
        match &self.0 {
            Some(spinner) => {
                spinner.set_message(text.to_owned());
                spinner.tick();
            }
            None => note(text),
        }
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        if let Some(spinner) = &self.0 {
            spinner.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact_where_that_is_asked() {
        assert_eq!(Sizes::exact_if(true).show(1500), "1500");
        assert_eq!(Sizes::exact_if(false).show(1500), "1.5 KiB");
    }

    #[test]
    fn counts_are_grouped_and_agree_with_their_noun() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1000), "1,000");
        assert_eq!(count(12_345_678), "12,345,678");
        assert_eq!(counted(1, "file"), "1 file");
        assert_eq!(counted(2, "file"), "2 files");
        assert_eq!(counted(0, "entry"), "0 entries");
    }

    #[test]
    fn percent_is_whole_only_for_the_whole() {
        assert_eq!(percent(999, 1000), 99);
        assert_eq!(percent(1000, 1000), 100);
        assert_eq!(percent(2000, 1000), 100);
        assert_eq!(percent(0, 0), 100);
    }

    #[test]
    fn uptimes_have_two_units() {
        assert_eq!(uptime(59), "59 s");
        assert_eq!(uptime(61), "1 min 1 s");
        assert_eq!(uptime(90_000), "1 d 1 h");
    }

    #[test]
    fn columns_are_aligned_by_characters() {
        let mut table = Table::new(&[Align::Left, Align::Right, Align::Left]);
        table.row(["name", "µs", "note"]);
        table.row(["ä", "1234", ""]);
        table.row(["longer", "5", "x"]);
        let expect = "name      µs  note\nä       1234\nlonger     5  x\n";
        assert_eq!(table.render(), expect);
        assert_eq!(Table::new(&[Align::Left]).render(), "");
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(visible("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(visible("grün 文"), "grün 文");
    }
}
