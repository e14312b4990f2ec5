//! The session with a person: lines that are edited, with history and completion.
//!
//! A statement ends with `;` and may have several lines. Between quotes the tab key completes paths of the nodes,
//! elsewhere the words of SQL. Ctrl-C ends a statement, Ctrl-D the session.

use std::path::PathBuf;

use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Editor, Helper};
use tokio::runtime::Runtime;

use millrace_client::Kind;
use millrace_object_store::v0_13::MillraceStore;

use crate::failure::Failure;
use crate::session::Session;

/// Where lines are kept, below the home directory.
const HISTORY: &str = ".millrace_sql_history";
/// Entries of a directory that are offered. Guessed: more than fit a screen.
const ENTRIES_MAX: u32 = 1000;
/// Words that are offered.
const WORDS: &str = "\
    AND AS ASC AVG BETWEEN BY CASE CAST COPY COUNT CREATE CROSS CSV DATE DESC DESCRIBE DISTINCT DROP ELSE END \
    EXCEPT EXISTS EXPLAIN ANALYZE EXTERNAL EXTRACT FALSE FROM FULL GROUP HAVING IN INNER INTERSECT INTERVAL IS JOIN \
    LEFT LIKE LIMIT LOCATION MAX MIN NOT NULL OFFSET ON OPTIONS OR ORDER OUTER PARQUET PARTITIONED RIGHT SELECT SET \
    SHOW STORED SUM TABLE TABLES THEN TO TRUE UNION VALUES VIEW WHEN WHERE WITH";
/// What `\?` says.
const HELP: &str = "\
A statement ends with ; and may have several lines.
  SELECT * FROM 'dir/file.parquet' LIMIT 10;   a file or directory of the nodes
  DESCRIBE 'dir/file.parquet';                 its columns
  EXPLAIN ANALYZE SELECT ...;                  how it ran, and what it read
  COPY (SELECT ...) TO 'dir/file.parquet';     write, where the nodes allow it
  COPY (SELECT ...) TO 'file:///tmp/x.csv';    write to this machine
  \\d        tables that were made here
  \\?        this page
  \\q        end, as Ctrl-D does";

/// Reads statements from a terminal until its end, and hands each to `run`.
///
/// # Errors
/// If the terminal cannot be read.
pub fn run(session: &Session, runtime: &Runtime, mut run: impl FnMut(&str)) -> Result<(), Failure> {
    let helper = Assistant { runtime, store: session.store() };
    let mut editor: Editor<Assistant<'_>, DefaultHistory> = Editor::new().map_err(failed)?;
    editor.set_helper(Some(helper));
    let history = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(HISTORY));
    if let Some(history) = &history {
        // There is none at first.
        let _ = editor.load_history(history);
    }
    loop {
        let line = match editor.readline("millrace> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(failed(error)),
        };
        let text = line.trim();
        if text.is_empty() {
            continue;
        }
        // A line that cannot be kept is still run.
        let _ = editor.add_history_entry(text);
        match text {
            "\\q" | "exit" | "quit" | "exit;" | "quit;" => break,
            "\\?" | "help" | "help;" => println!("{HELP}"),
            "\\d" => run("SHOW TABLES"),
            text => run(text),
        }
    }
    if let Some(history) = &history {
        // A home directory that cannot be written to has no history.
        let _ = editor.save_history(history);
    }
    Ok(())
}

fn failed(error: ReadlineError) -> Failure {
    Failure::new(format!("cannot read from the terminal: {error}; give statements with -c or -f"))
}

/// Knows when a statement ends, and what may come next.
struct Assistant<'a> {
    runtime: &'a Runtime,
    store: Option<MillraceStore>,
}

impl Assistant<'_> {
    /// Returns the entries of a directory of the nodes that begin with this.
    fn entries(&self, directory: &str, begin: &str) -> Vec<Pair> {
        let Some(store) = &self.store else { return Vec::new() };
        let listed = store.client().list_page(directory.trim_end_matches('/'), None, ENTRIES_MAX);
        // Without an answer nothing is offered.
        let Ok((entries, _)) = self.runtime.block_on(listed) else { return Vec::new() };
        let entries = entries.into_iter().filter(|entry| entry.name.starts_with(begin));
        let pair = |entry: millrace_client::Entry| {
            let end = if entry.kind == Kind::Directory { "/" } else { "" };
            let name = format!("{}{end}", entry.name);
            Pair { display: name.clone(), replacement: name }
        };
        entries.map(pair).collect()
    }
}

/// Returns where the quoted text begins that a line ends in; None if it does not end in one.
fn open_quote(line: &str) -> Option<usize> {
    let mut open = None;
    for (index, letter) in line.char_indices().filter(|(_, letter)| *letter == '\'') {
        open = if open.is_some() { None } else { Some(index + letter.len_utf8()) };
    }
    open
}

impl Completer for Assistant<'_> {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let line = &line[..position];
        if let Some(start) = open_quote(line) {
            let (directory, begin) = line[start..].rsplit_once('/').unwrap_or(("", &line[start..]));
            return Ok((position - begin.len(), self.entries(directory, begin)));
        }
        let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
        let word = line.rsplit(|letter| !is_word(letter)).next().unwrap_or_default();
        if word.is_empty() {
            return Ok((position, Vec::new()));
        }
        let begin = word.to_uppercase();
        let words = WORDS.split_whitespace().filter(|word| word.starts_with(&begin));
        let pair = |word: &str| Pair { display: word.to_owned(), replacement: format!("{word} ") };
        Ok((position - word.len(), words.map(pair).collect()))
    }
}

impl Validator for Assistant<'_> {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match is_whole(context.input()) {
            true => ValidationResult::Valid(None),
            false => ValidationResult::Incomplete,
        })
    }
}

/// True if a text is a command of the session, or statements with their ends.
fn is_whole(text: &str) -> bool {
    let text = text.trim();
    let is_word = ["exit", "quit", "help"].contains(&text);
    text.is_empty()
        || is_word
        || text.starts_with('\\')
        || (text.ends_with(';') && open_quote(text).is_none())
}

impl Hinter for Assistant<'_> {
    type Hint = String;
}

impl Highlighter for Assistant<'_> {}

impl Helper for Assistant<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_ends_with_its_semicolon() {
        for text in ["", "\\q", "quit", "SELECT 1;", "SELECT ';' ;\n"] {
            assert!(is_whole(text), "{text}");
        }
        for text in ["SELECT 1", "SELECT 1; SELECT", "SELECT 'a;"] {
            assert!(!is_whole(text), "{text}");
        }
    }

    #[test]
    fn a_quote_is_open_until_the_next_one() {
        assert_eq!(open_quote("FROM 'a/b"), Some(6));
        assert_eq!(open_quote("FROM 'a/b' WHERE"), None);
        assert_eq!(open_quote("x = 'it''s"), Some(9));
    }
}
