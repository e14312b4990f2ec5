//! Passes the log lines of the crate `raft` on to `tracing`.

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record};

struct ToTracing;

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        // The crate logs a line of level info for each message, which is level debug for us.
        match record.level() {
            Level::Critical | Level::Error => {
                tracing::error!(target: "millrace_coord::raft", "{}", record.msg());
            }
            Level::Warning => tracing::warn!(target: "millrace_coord::raft", "{}", record.msg()),
            Level::Info => tracing::debug!(target: "millrace_coord::raft", "{}", record.msg()),
            Level::Debug | Level::Trace => {
                tracing::trace!(target: "millrace_coord::raft", "{}", record.msg());
            }
        }
        Ok(())
    }
}

/// Builds a logger for one Raft node.
pub(super) fn logger() -> Logger {
    Logger::root(ToTracing, slog::o!())
}
