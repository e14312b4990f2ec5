//! The capacity report: the master asks all members how they are, and writes the sum down.
//!
//! So a monitor needs no way to the nodes, and has figures of the moment before they failed. Always
//! holds: only the master asks; its write is checked as every other one, so a master that slept through
//! its term overwrites no later report.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use millrace_client::peer::Peer;
use millrace_proto::cluster::Member;
use tokio::time::{Instant, sleep_until};

use super::answers::Cluster;
use super::handover::Progress;
use super::peers::Peers;
use super::record::{ReportRecord, ZoneReport};
use super::{Command, View};
use crate::metrics::{self, Counters};

/// Time between two reports. Guessed: what a monitor wants to know; each is a write of 2 KiB.
const INTERVAL: Duration = Duration::from_secs(30);
/// How long after a change of the members or the master the next report is made: what follows from it
/// has begun by then.
const AFTER_CHANGE: Duration = Duration::from_secs(2);
/// Longest wait for one member. Guessed: as for any node of which nothing is heard.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most zones that are listed one by one. Derived: 128 KiB.
const ZONES_TOLD_MAX: usize = 1024;
/// Members that are asked at once.
const ASKED_MAX: usize = 64;

/// What the node reports of itself.
pub(crate) struct Own {
    pub counters: Arc<[Counters]>,
    pub progress: Arc<Progress>,
}

/// What a member reported: values with their names.
type ToldCounters = Vec<(String, u64)>;

impl Own {
    fn told(&self) -> ToldCounters {
        let counters = metrics::sum(&self.counters).into_iter().chain(self.progress.values());
        counters.map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Reports for as long as the node runs, whenever it is the master.
pub(crate) async fn run(cluster: &Cluster, peers: &Peers, own: Own) {
    let mut views = cluster.views.subscribe();
    let mut next = Instant::now() + INTERVAL;
    let mut seen = None;
    loop {
        tokio::select! {
            () = sleep_until(next) => {
                let view = cluster.view();
                if is_master(&view) {
                    let command = Command::Report(gather(&view, peers, &own).await);
                    if let Err(refusal) = cluster.command(command).await {
                        // The next one is still tried.
                        tracing::debug!("write the report: {}", refusal.message);
                    }
                }
                next = Instant::now() + INTERVAL;
            }
            changed = views.changed() => {
                if changed.is_err() {
                    return;
                }
                let view = cluster.view();
                let now = is_master(&view).then_some(view.layout.epoch);
                if now != seen && now.is_some() {
                    next = next.min(Instant::now() + AFTER_CHANGE);
                }
                seen = now;
            }
        }
    }
}

fn is_master(view: &View) -> bool {
    !view.me.is_empty() && view.master == view.me && view.check_agreement().is_ok()
}

/// Asks all members.
async fn gather(view: &View, peers: &Peers, own: &Own) -> ReportRecord {
    let asked = view.layout.members.iter().enumerate().map(|(index, member)| async move {
        let is_me = member.id == view.me;
        (index, if is_me { Some(own.told()) } else { ask(peers.get(member)).await })
    });
    let mut answers = stream::iter(asked).buffer_unordered(ASKED_MAX);
    let mut told: Vec<Option<ToldCounters>> = view.layout.members.iter().map(|_| None).collect();
    while let Some((index, answer)) = answers.next().await {
        told[index] = answer;
    }
    add_up(&view.me, &view.layout.members, &told)
}

async fn ask(peer: Option<Arc<Peer>>) -> Option<ToldCounters> {
    let status = peer?.status(PATIENCE).await.ok()?;
    Some(status.counters.into_iter().map(|counter| (counter.name, counter.value)).collect())
}

/// Adds up what was reported.
fn add_up(me: &str, members: &[Member], told: &[Option<ToldCounters>]) -> ReportRecord {
    let mut report = ReportRecord { node: me.to_owned(), ..ReportRecord::default() };
    let mut zones: BTreeMap<String, ZoneReport> = BTreeMap::new();
    for (member, told) in members.iter().zip(told) {
        let zone = zones.entry(member.zone.clone()).or_default();
        report.member_count += 1;
        report.registered_bytes += member.capacity;
        zone.member_count += 1;
        let Some(told) = told else { continue };
        report.answered_count += 1;
        zone.answered_count += 1;
        let count = |name| told.iter().find(|(it, _)| it == name).map_or(0, |(_, value)| *value);
        zone.capacity_bytes += count("capacity_bytes");
        zone.used_bytes += count("used_bytes");
        zone.pinned_bytes += count("pinned_bytes");
        for (name, value) in told {
            // The epoch is not an amount.
            if name != "cluster_epoch" {
                let sum = report.counters.entry(name.clone()).or_default();
                *sum = sum.saturating_add(*value);
            }
        }
    }
    // One zone for each host of a large cluster would be more than a node of coordination holds.
    if zones.len() <= ZONES_TOLD_MAX {
        report.zones = zones;
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, zone: &str) -> Member {
        Member {
            key: 1,
            id: id.into(),
            weight: 64,
            zone: zone.into(),
            state: 1,
            address: "10.0.0.1:7070".into(),
            shards: Vec::new(),
            local: Vec::new(),
            machine: String::new(),
            run: 1,
            capacity: 100,
            server: String::new(),
        }
    }

    fn told(used: u64) -> Option<ToldCounters> {
        let counters = [("capacity_bytes", 96), ("used_bytes", used), ("cluster_epoch", 7)];
        Some(counters.map(|(name, value)| (name.to_owned(), value)).to_vec())
    }

    #[test]
    fn what_members_told_is_added_up_and_who_told_nothing_is_counted() {
        let members = [member("a", "x"), member("b", "y"), member("c", "y")];
        let report = add_up("b", &members, &[told(10), None, told(20)]);
        assert_eq!((report.member_count, report.answered_count), (3, 2));
        assert_eq!(report.registered_bytes, 300);
        assert_eq!(report.counters.get("used_bytes"), Some(&30));
        assert_eq!(report.counters.get("cluster_epoch"), None);
        let zone = &report.zones["y"];
        assert_eq!((zone.member_count, zone.answered_count), (2, 1));
        assert_eq!((zone.capacity_bytes, zone.used_bytes), (96, 20));
    }
}
