//! The figures in the text format of Prometheus, under the names of ZooKeeper's own provider.
//!
//! Latencies are summaries in milliseconds, as ZooKeeper has them; their quantiles are bounds of
//! coarse buckets over all time since the start or `srst`.

use millrace_ops::metrics::Text;

use super::figures::{Value, figures};
use super::{Snapshot, VERSION};

/// Returns the body of `/metrics`.
pub(super) fn metrics_text(snapshot: &Snapshot) -> String {
    let mut text = Text::default();
    text.family("server_info", "gauge", "", "Version and mode of the replica, always 1.");
    let replica = snapshot.config.replica_id.to_string();
    let labels = [("version", VERSION), ("mode", snapshot.mode.name()), ("replica", &replica)];
    text.sample(&labels, 1);
    for figure in figures(snapshot) {
        text.family(figure.name, figure.kind.name(), "", figure.help);
        match figure.value {
            Value::Whole(value) => text.sample(&[], value),
            Value::Milliseconds(value) => text.sample(&[], format_args!("{value:?}")),
        }
    }
    for (name, help, latency) in snapshot.metrics.latencies() {
        text.family(name, "summary", "", &format!("{help} In milliseconds."));
        for share in [0.5, 0.9, 0.99] {
            let value = latency.quantile_ms(share);
            text.sample(&[("quantile", &share.to_string())], format_args!("{value:?}"));
        }
        text.part("_sum", &[], format_args!("{:?}", latency.sum_us as f64 / 1000.0));
        text.part("_count", &[], latency.count);
    }
    text.finish()
}
