//! The form of log lines: text for people, or JSON for programs, one object on each line.
//!
//! ```text
//!  {"timestamp":"2026-11-29T09:00:00.000000Z", "level":"INFO","target":"..","message":"..","fields":{}}
//! ```
//!
//! Always holds: in both forms the time comes first and ends at the first blank of the line, so
//! `repeats` can compare the rest.

use std::fmt;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object on each line.
    Json,
}

impl LogFormat {
    /// Returns a line, with its end, that does not come from the code that logs.
    pub(super) fn line(self, level: &str, target: &str, message: &str) -> String {
        match self {
            LogFormat::Text => format!("{} {level:>5} {target}: {message}\n", now()),
            LogFormat::Json => json(level, target, message, Map::new()),
        }
    }

    /// Returns a message for people as a line of the log.
    pub(super) fn note(self, text: &str) -> String {
        match self {
            LogFormat::Text => format!("{text}\n"),
            LogFormat::Json => json("ERROR", "millrace", text, Map::new()),
        }
    }
}

/// Returns a line that stands for others as well.
pub(super) fn with_others(line: &str, others: u64) -> String {
    let line = line.trim_end();
    match line.strip_prefix('{').and_then(|_| line.strip_suffix('}')) {
        Some(object) => format!("{object},\"repeated\":{others}}}\n"),
        None => format!("{line} (and {others} like it)\n"),
    }
}

/// Returns the time now, without a blank.
fn now() -> String {
    let mut time = String::new();
    // A line without the time is still useful.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    time
}

fn json(level: &str, target: &str, message: &str, fields: Map<String, Value>) -> String {
    let (level, target, message) = (Value::from(level), Value::from(target), Value::from(message));
    let (time, fields) = (Value::from(now()), Value::from(fields));
    format!(
        "{{\"timestamp\":{time}, \"level\":{level},\"target\":{target},\"message\":{message},\
         \"fields\":{fields}}}\n"
    )
}

/// Writes what the code logs as JSON.
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut told = Told::default();
        event.record(&mut told);
        let place = event.metadata();
        writer.write_str(&json(place.level().as_str(), place.target(), &told.message, told.fields))
    }
}

/// The message of an event and its other fields.
#[derive(Default)]
struct Told {
    message: String,
    fields: Map<String, Value>,
}

impl Told {
    fn tell(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => drop(self.fields.insert(name.to_owned(), value)),
        }
    }
}

impl Visit for Told {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.tell(field, Value::from(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.tell(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.tell(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.tell(field, Value::from(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.tell(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.tell(field, Value::from(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_json_is_one_object_whatever_it_says() {
        for line in [
            LogFormat::Json.line("WARN", "millrace::log", "3 lines missing"),
            LogFormat::Json.note("thread 'a' panicked:\n\"quoted\"\nnote"),
            with_others(&LogFormat::Json.note("full"), 7),
        ] {
            assert_eq!(line.find('\n'), Some(line.len() - 1), "{line}");
            let object: Value = serde_json::from_str(&line).unwrap();
            for key in ["timestamp", "level", "target", "message", "fields"] {
                assert!(object.get(key).is_some(), "{key} in {line}");
            }
            let time = object["timestamp"].as_str().unwrap();
            assert!(line[..line.find(' ').unwrap()].contains(time), "the time ends at a blank");
        }
        let told = with_others(&LogFormat::Json.note("full"), 7);
        assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["repeated"], 7);
        assert_eq!(with_others("0.1 full\n", 7), "0.1 full (and 7 like it)\n");
    }
}
