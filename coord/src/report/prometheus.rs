//! The figures in the text format of Prometheus, under the names of ZooKeeper's own provider.
//!
//! Latencies are summaries in milliseconds, as ZooKeeper has them; their quantiles are bounds of
//! coarse buckets over all time since the start or `srst`.

use std::fmt::{self, Write as _};

use super::figures::{Value, figures};
use super::{Snapshot, VERSION};

/// The body of `/metrics`.
pub(super) fn metrics_text(snapshot: &Snapshot) -> String {
    let mut out = String::new();
    // Writing into a string cannot fail.
    let _ = write_metrics(&mut out, snapshot);
    out
}

fn write_metrics(out: &mut String, snapshot: &Snapshot) -> fmt::Result {
    writeln!(out, "# HELP server_info Version and mode of the replica, always 1.")?;
    writeln!(out, "# TYPE server_info gauge")?;
    let mode = snapshot.mode.name();
    let replica = snapshot.config.replica_id;
    writeln!(out, "server_info{{version=\"{VERSION}\",mode=\"{mode}\",replica=\"{replica}\"}} 1")?;
    for figure in figures(snapshot) {
        let name = figure.name;
        writeln!(out, "# HELP {name} {}", figure.help)?;
        writeln!(out, "# TYPE {name} {}", figure.kind.name())?;
        match figure.value {
            Value::Whole(value) => writeln!(out, "{name} {value}")?,
            Value::Milliseconds(value) => writeln!(out, "{name} {value:?}")?,
        }
    }
    for (name, help, latency) in snapshot.metrics.latencies() {
        writeln!(out, "# HELP {name} {help} In milliseconds.")?;
        writeln!(out, "# TYPE {name} summary")?;
        for share in [0.5, 0.9, 0.99] {
            let value = latency.quantile_ms(share);
            writeln!(out, "{name}{{quantile=\"{share}\"}} {value:?}")?;
        }
        writeln!(out, "{name}_sum {:?}", latency.sum_us as f64 / 1000.0)?;
        writeln!(out, "{name}_count {}", latency.count)?;
    }
    Ok(())
}
