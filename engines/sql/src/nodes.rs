//! What the nodes have counted while a statement ran.
//!
//! A reply does not say whether it was a hit, so the counters of the nodes before and after are compared: they
//! count all clients of the nodes, and not what this one read in place from shared memory.

use millrace_client::NodeStatus;

use crate::reads::ReadCounts;
use crate::stores::Stores;

/// Counters that are compared.
const NAMES: [&str; 6] =
    ["hit_count", "hit_bytes", "miss_count", "miss_bytes", "fill_bytes", "peer_fill_bytes"];

/// Counters of all nodes at one moment, by node.
#[derive(Debug, Default)]
pub(crate) struct Moment(Vec<(String, Option<[u64; NAMES.len()]>)>);

impl Moment {
    /// Asks the nodes.
    pub(crate) async fn now(stores: &Stores) -> Moment {
        let mut all = Vec::new();
        for store in stores.nodes() {
            for (id, status) in store.client().statuses().await {
                all.push((id, status.ok().map(|status| values(&status))));
            }
        }
        Moment(all)
    }

    /// Returns what was counted since an earlier moment, summed over the nodes that answered both times.
    fn since(&self, before: &Moment) -> ([u64; NAMES.len()], usize) {
        let mut total = [0; NAMES.len()];
        let mut silent = 0;
        for (id, after) in &self.0 {
            let before = before.0.iter().find(|(other, _)| other == id).and_then(|(_, it)| *it);
            match (before, after) {
                (Some(before), Some(after)) => {
                    for (total, (before, after)) in total.iter_mut().zip(before.iter().zip(after)) {
                        // A node that started again counts from zero.
                        *total += after.saturating_sub(*before);
                    }
                }
                _ => silent += 1,
            }
        }
        (total, silent)
    }
}

fn values(status: &NodeStatus) -> [u64; NAMES.len()] {
    NAMES.map(|name| status.counter(name).unwrap_or(0))
}

/// Says what a statement has read, and what the nodes counted meanwhile.
pub(crate) fn describe(read: ReadCounts, before: &Moment, after: &Moment) -> String {
    let ([hits, hit_bytes, misses, miss_bytes, fill_bytes, peer_bytes], silent) =
        after.since(before);
    let in_place = read.bytes.saturating_sub(hit_bytes + miss_bytes);
    let mut lines = vec![
        format!(
            "this query: looks={}, reads={}, ranges={}, bytes={}",
            read.looks, read.reads, read.ranges, read.bytes
        ),
        format!(
            "nodes meanwhile, all clients: hits={hits}, hit_bytes={hit_bytes}, misses={misses}, \
             miss_bytes={miss_bytes}, bytes_from_sources={fill_bytes}, bytes_from_other_nodes={peer_bytes}"
        ),
        format!("read in place, without asking a node: bytes={in_place} or more"),
    ];
    if silent > 0 {
        lines.push(format!("nodes that did not answer: {silent}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_compared_by_node() {
        let moment = |values: &[(&str, Option<u64>)]| {
            let one = |(id, value): &(&str, Option<u64>)| {
                ((*id).to_owned(), value.map(|value| [value; NAMES.len()]))
            };
            Moment(values.iter().map(one).collect())
        };
        let before = moment(&[("a", Some(5)), ("b", Some(7)), ("c", None)]);
        let after = moment(&[("a", Some(8)), ("b", Some(1)), ("c", Some(9)), ("d", Some(2))]);
        assert_eq!(after.since(&before), ([3; NAMES.len()], 2));
        let read = ReadCounts { bytes: 10, ..ReadCounts::default() };
        let text = describe(read, &before, &after);
        assert!(text.contains("hits=3") && text.contains("bytes=4 or more"), "{text}");
        assert!(text.contains("did not answer: 2"), "{text}");
    }
}
