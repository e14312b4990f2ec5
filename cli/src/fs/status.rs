//! `millrace fs status`: the counters of a node.
//!
//! Owns their presentation and the one number derived from them, the share of reads from memory. The
//! node decides which counters there are: unknown ones are shown as they come.

use millrace_client::{Client, NodeStatus};
use serde::Serialize;
use serde_json::Map;

use crate::failure::Failure;
use crate::output::{self, Align, Sizes, Table};

/// Show the counters of a node.
///
/// They count from the start of the node, over all its shards. Names end with their unit.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace fs status
  millrace fs status --json | jq .counters.hit_count")]
pub(super) struct FsStatusArgs {
    /// Print exact sizes
    #[arg(long)]
    bytes: bool,
    /// Print one JSON document
    #[arg(long, conflicts_with = "bytes")]
    json: bool,
}

#[derive(Serialize)]
struct StatusDocument<'a> {
    server: &'a str,
    uptime_ms: u64,
    shard_count: u32,
    counters: Map<String, serde_json::Value>,
}

pub(super) async fn run(client: &Client, args: &FsStatusArgs) -> Result<(), Failure> {
    let status = client.status().await?;
    if !args.json {
        return output::print(&describe(&status, Sizes::exact_if(args.bytes)));
    }
    let counters = status.counters.iter();
    output::print_json(&StatusDocument {
        server: &status.server,
        uptime_ms: u64::try_from(status.uptime.as_millis()).unwrap_or(u64::MAX),
        shard_count: status.shard_count,
        counters: counters.map(|counter| (counter.name.clone(), counter.value.into())).collect(),
    })
}

fn describe(status: &NodeStatus, sizes: Sizes) -> String {
    let mut table = Table::new(&[Align::Left, Align::Right]);
    for counter in &status.counters {
        let value = if counter.name.ends_with("_bytes") {
            sizes.show(counter.value)
        } else {
            output::count(counter.value)
        };
        table.row([counter.name.clone(), value]);
    }
    let memory = match hit_percent(status) {
        Some(percent) => format!(", {percent} % of reads from memory"),
        None => String::new(),
    };
    let shards = output::counted(status.shard_count.into(), "shard");
    let uptime = output::uptime(status.uptime.as_secs());
    let server = output::visible(&status.server);
    format!("{server}, up {uptime}, {shards}{memory}\n\n{}", table.render())
}

/// Returns the percentage of reads that did not wait for the source, once there was a read.
fn hit_percent(status: &NodeStatus) -> Option<u64> {
    let hit_count = status.counter("hit_count")?;
    let count = hit_count.checked_add(status.counter("miss_count")?)?;
    (count > 0).then(|| output::percent(hit_count, count))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use millrace_client::Counter;

    use super::*;

    #[test]
    fn counters_are_shown_by_their_unit() {
        let counter = |(name, value): (&str, u64)| Counter { name: name.to_owned(), value };
        let mut status = NodeStatus::default();
        status.server = "millrace 0.1.0".to_owned();
        status.uptime = Duration::from_secs(3700);
        status.shard_count = 2;
        status.counters = [("hit_count", 1_999), ("miss_count", 1), ("used_bytes", 1 << 20)]
            .map(counter)
            .to_vec();
        let expect = "millrace 0.1.0, up 1 h 1 min, 2 shards, 99 % of reads from memory\n\n\
                      hit_count   1,999\nmiss_count      1\nused_bytes  1 MiB\n";
        assert_eq!(describe(&status, Sizes::Human), expect);
        assert!(describe(&status, Sizes::Exact).contains("1048576"));
    }
}
