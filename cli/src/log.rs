//! Log lines on stderr, as far as they can be written: logging never blocks or ends the work that it
//! describes.
//!
//! ```text
//!  any thread ── line ──► repeats ──► lines (bounded) ──► the log's thread ──► stderr
//!                          │ held, written as one once a second ─┘
//! ```
//!
//! Owns the filter, the one thread that writes, and what a panic says. Always holds: a thread that logs
//! copies its line and goes on, whatever stderr is: a full disk, a closed pipe, or a pipe that is not
//! read. What cannot be written is counted, and the count is logged when writing works again. Holding
//! back lines that repeat is left to [`repeats`], the lines that wait to [`lines`].

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use clap::builder::EnumValueParser;
use clap::{Arg, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

mod form;
mod lines;
mod repeats;

use crate::failure::Failure;
pub(crate) use form::LogFormat;
use lines::Lines;
use repeats::Kind;

/// The variable that says what is logged.
pub(crate) const VARIABLE: &str = "MILLRACE_LOG";
/// The variable that says in which form.
pub(crate) const FORMAT_VARIABLE: &str = "MILLRACE_LOG_FORMAT";
/// Longest wait for the last lines when the process ends. Guessed: enough for a disk that is busy, not
/// for one that hangs.
const END_WAIT: Duration = Duration::from_millis(500);

/// Lines that wait to be written, once the log was started. There is one for the process, as there is
/// one stderr.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Sends log lines to stderr from a thread of its own. `level` counts where MILLRACE_LOG says nothing;
/// without a `format`, MILLRACE_LOG_FORMAT says which.
///
/// # Errors
/// If MILLRACE_LOG is not a filter, MILLRACE_LOG_FORMAT is not a format, or no thread can be had.
pub(crate) fn start(level: &str, format: Option<LogFormat>) -> Result<(), Failure> {
    let filter = match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|error| {
            Failure::usage(format!("environment variable {VARIABLE}: `{text}`: {error}"))
                .with_hint("use error, warn, info, debug, trace or off")
        })?,
        _ => EnvFilter::new(level),
    };
    let format = match format {
        Some(format) => format,
        None => format_of_environment()?,
    };
    start_writing(format)?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(ToLines)
        .with_ansi(io::stderr().is_terminal() && format == LogFormat::Text)
        // It would write them to stderr, and panic if that fails.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.event_format(form::Json).init(),
    }
    Ok(())
}

/// Returns the flag that sets the form, for a command that serves.
pub(crate) fn format_flag() -> Arg {
    Arg::new("log_format")
        .long("log-format")
        .value_name("FORMAT")
        .value_parser(EnumValueParser::<LogFormat>::new())
        .help("Form of the log: text, or json with an object a line [default: text]")
        .long_help(format!(
            "Form of the log: text, or json with an object a line, which has timestamp, level, \
             target, message, fields, and `repeated` where it stands for others as well [default: \
             text]\n\nEnvironment: {FORMAT_VARIABLE}"
        ))
}

fn format_of_environment() -> Result<LogFormat, Failure> {
    let text = std::env::var(FORMAT_VARIABLE).unwrap_or_default();
    if text.is_empty() {
        return Ok(LogFormat::default());
    }
    LogFormat::from_str(&text, false).map_err(|_| {
        Failure::usage(format!("environment variable {FORMAT_VARIABLE}: `{text}` is not allowed"))
            .with_hint("use text or json")
    })
}

/// Starts the log's thread, and has [`note`] and panics go to it.
fn start_writing(format: LogFormat) -> Result<(), Failure> {
    let lines = LINES.get_or_init(|| Lines::new(format));
    let thread = std::thread::Builder::new().name("millrace-log".to_owned());
    let started = thread.spawn(|| lines.write_all_to(write));
    started.map_err(|error| Failure::new(format!("cannot start the log's thread: {error}")))?;
    std::panic::set_hook(Box::new(|panic| {
        let name = std::thread::current().name().unwrap_or("unnamed").to_owned();
        let trace = Backtrace::capture();
        let trace = match trace.status() {
            BacktraceStatus::Captured => trace.to_string(),
            _ => "note: with RUST_BACKTRACE=1 in the environment a backtrace is shown".to_owned(),
        };
        note(&format!("thread '{name}' {panic}\n{trace}"));
        // The process may be about to end.
        end();
    }));
    Ok(())
}

/// Writes a line to stderr: by the log's thread if there is one, else at once. If that fails the line is
/// lost, because there is no other place for it.
pub(crate) fn note(text: &str) {
    match LINES.get() {
        Some(lines) => lines.note(text),
        // A tool has no other work that this could block.
        None => drop(io::stderr().lock().write_all(format!("{text}\n").as_bytes())),
    }
}

/// Waits until all lines are written, but only for a moment, so that a log that is not read does not
/// block the end.
pub(crate) fn end() {
    if let Some(lines) = LINES.get() {
        lines.flush(END_WAIT);
    }
}

/// Writes to stderr, past the lock of the standard library, because other threads would wait for that
/// lock while this waits.
fn write(bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::write(io::stderr().as_fd(), bytes)?)
}

/// Gives each line to the log's thread.
struct ToLines;

/// Where one line goes.
struct ToKind(Option<Kind>);

impl<'a> MakeWriter<'a> for ToLines {
    type Writer = ToKind;

    fn make_writer(&'a self) -> ToKind {
        ToKind(None)
    }

    fn make_writer_for(&'a self, line: &tracing::Metadata<'_>) -> ToKind {
        // Below that the operator asked to see each line.
        let is_limited = *line.level() <= tracing::Level::INFO;
        ToKind(is_limited.then(|| line.callsite()))
    }
}

impl Write for ToKind {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(lines) = LINES.get() {
            match &self.0 {
                Some(kind) => lines.add_limited(kind, line),
                None => lines.add(line),
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
