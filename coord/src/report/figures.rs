//! The one list of figures behind `mntr`, the page `monitor` and Prometheus.
//!
//! Names are those of ZooKeeper's `mntr` without `zk_`, so that its exporters and boards work;
//! figures of a leader appear on a leader only.

use super::{Mode, Snapshot};
use crate::config::Role;

/// What a figure is to Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Gauge,
    Counter,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        }
    }
}

/// A number as it is written: whole, or milliseconds with a fraction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    Whole(i64),
    Milliseconds(f64),
}

/// One figure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: Kind,
    pub(super) value: Value,
}

fn gauge(name: &'static str, help: &'static str, value: u64) -> Figure {
    signed(name, help, i64::try_from(value).unwrap_or(i64::MAX))
}

fn signed(name: &'static str, help: &'static str, value: i64) -> Figure {
    Figure { name, help, kind: Kind::Gauge, value: Value::Whole(value) }
}

/// Returns all figures but the latencies, which each place shows in its own way.
pub(super) fn figures(snapshot: &Snapshot) -> Vec<Figure> {
    let latency = snapshot.latency();
    let average = Value::Milliseconds(latency.average_ms());
    let average_help = "Mean milliseconds from request to reply.";
    let process = &snapshot.process;
    let watches = &snapshot.watch_counts;
    let raft = &snapshot.raft;
    let voters = snapshot.members.iter().filter(|member| member.role == Role::Participant).count();
    let mut figures = vec![
        Figure { name: "avg_latency", help: average_help, kind: Kind::Gauge, value: average },
        gauge("min_latency", "Shortest milliseconds from request to reply.", latency.min_ms()),
        gauge("max_latency", "Longest milliseconds from request to reply.", latency.max_ms()),
        gauge("num_alive_connections", "Connections of clients.", snapshot.connection_count),
        gauge("outstanding_requests", "Requests in flight.", snapshot.outstanding),
        gauge("znode_count", "Nodes of the tree.", snapshot.node_count),
        gauge("ephemerals_count", "Ephemeral nodes.", snapshot.ephemeral_count),
        gauge("approximate_data_size", "Bytes of paths and data.", snapshot.data_bytes),
        gauge("watch_count", "Watches of this replica's clients.", watches.watches as u64),
        gauge("watched_paths", "Paths that are watched.", watches.paths as u64),
        gauge("watching_connections", "Clients that watch anything.", watches.clients as u64),
        gauge("global_sessions", "Sessions of the ensemble.", snapshot.session_count),
        gauge("local_sessions", "Sessions of this replica alone.", snapshot.local_session_count),
        gauge("uptime", "Milliseconds since the start.", snapshot.uptime_ms),
        gauge("open_file_descriptor_count", "Open descriptors.", process.file_count),
        gauge("max_file_descriptor_count", "Most descriptors allowed.", process.file_count_max),
        gauge("resident_memory_bytes", "Memory in use.", process.resident_bytes),
        gauge("data_dir_size", "Bytes of the state on disk.", snapshot.state_disk_bytes),
        gauge("log_dir_size", "Bytes of the log on disk.", snapshot.log_disk_bytes),
        signed("last_zxid", "The last zxid applied.", snapshot.zxid),
        gauge("quorum_size", "Members that vote.", voters as u64),
        gauge("raft_term", "Term of Raft.", raft.term),
        gauge("raft_last_index", "Last entry of the log.", raft.last_index),
        gauge("raft_committed_index", "Last entry known to be committed.", raft.committed_index),
        gauge("raft_applied_index", "Last entry applied.", raft.applied_index),
    ];
    if snapshot.mode == Mode::Leader {
        figures.extend(figures_of_leader(snapshot));
    }
    for (name, help, value) in snapshot.metrics.counters() {
        let value = Value::Whole(i64::try_from(value).unwrap_or(i64::MAX));
        figures.push(Figure { name, help, kind: Kind::Counter, value });
    }
    figures
}

fn figures_of_leader(snapshot: &Snapshot) -> Vec<Figure> {
    let raft = &snapshot.raft;
    let synced = |is_voter: bool| {
        let of_kind = raft.followers.iter().filter(|one| one.is_synced && one.is_voter == is_voter);
        of_kind.count() as u64
    };
    let sizes = snapshot.metrics.proposal_bytes;
    vec![
        gauge("learners", "Other replicas that follow.", raft.followers.len() as u64),
        gauge("synced_followers", "Voting replicas that are up to date.", synced(true)),
        gauge("synced_observers", "Observers that are up to date.", synced(false)),
        gauge(
            "pending_syncs",
            "Syncs of this replica's clients that wait.",
            snapshot.pending_syncs,
        ),
        gauge("leader_uptime", "Milliseconds since this replica leads.", raft.leading_ms),
        signed("last_proposal_size", "Bytes of the last entry proposed.", sizes.last),
        signed("min_proposal_size", "Bytes of the smallest entry proposed.", sizes.min),
        signed("max_proposal_size", "Bytes of the largest entry proposed.", sizes.max),
    ]
}

/// Returns `peer_state` of `mntr`; a replica by itself has none.
pub(super) fn peer_state(mode: Mode) -> Option<&'static str> {
    match mode {
        Mode::Leader => Some("leading - broadcast"),
        Mode::Follower => Some("following - broadcast"),
        Mode::Observer => Some("observing - broadcast"),
        Mode::Standalone | Mode::ReadOnly | Mode::NotServing => None,
    }
}
