//! The state of a replica as one JSON document, which `millrace coord status` shows.
//!
//! It has only numbers, and the reader draws the conclusions. A replica that does not lead knows its own
//! progress, and of the others only whether it reaches them.

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::metrics::Latency;
use crate::report::Snapshot;
use crate::runtime::Report;

/// One replica at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub replica: u64,
    /// A word of ZooKeeper: `leader`, `follower`, `observer`, `standalone`, `read-only`, or `not serving`.
    pub mode: String,
    /// The reason that no client is served, if it has to do with the members.
    pub waits_for: Option<String>,
    /// Id of the leader; 0 for none.
    pub leader: u64,
    pub term: u64,
    pub uptime_ms: u64,
    pub zxid: i64,
    pub last_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub client_address: String,
    pub data_dir: String,
    /// Connections of clients to this replica.
    pub connections: u64,
    /// Requests in progress of these clients.
    pub outstanding: u64,
    /// Watches of these clients.
    pub watches: u64,
    /// Sessions of the ensemble.
    pub sessions: u64,
    pub nodes: u64,
    pub ephemerals: u64,
    /// Bytes of paths and data.
    pub data_bytes: u64,
    pub state_disk_bytes: u64,
    pub log_disk_bytes: u64,
    pub memory_bytes: u64,
    /// Durations of reads, writes, log syncs and checkpoints.
    pub latencies: Vec<LatencyStatus>,
    /// The members; empty for a replica by itself.
    pub members: Vec<MemberStatus>,
}

/// Durations of one kind, since the start or the last reset of figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatencyStatus {
    pub name: String,
    pub count: u64,
    pub average_ms: f64,
    /// A bound that half of them did not exceed.
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

/// One member of the ensemble.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    pub id: u64,
    /// `participant` or `observer`.
    pub role: String,
    pub peer_address: String,
    pub client_address: Option<String>,
    pub is_leader: bool,
    /// True if the asked replica and this member reach each other; true for itself.
    pub is_connected: bool,
    /// Entries of the leader's log that it lacks; `None` if unknown.
    pub lag_entries: Option<u64>,
    /// The reason that it is not connected.
    pub trouble: Option<String>,
}

/// Builds the status. `config` has the address that is really served.
pub(super) fn status(report: &Report, config: &Config) -> Status {
    let snapshot = &report.snapshot;
    let raft = &snapshot.raft;
    let metrics = &snapshot.metrics;
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        replica: snapshot.config.replica_id,
        mode: snapshot.mode.name().to_owned(),
        waits_for: snapshot.waits_for.clone(),
        leader: raft.leader,
        term: raft.term,
        uptime_ms: snapshot.uptime_ms,
        zxid: snapshot.zxid,
        last_index: raft.last_index,
        committed_index: raft.committed_index,
        applied_index: raft.applied_index,
        client_address: config.client_address.to_string(),
        data_dir: config.data_dir.display().to_string(),
        connections: snapshot.connection_count,
        outstanding: snapshot.outstanding,
        watches: snapshot.watch_counts.watches as u64,
        sessions: snapshot.session_count,
        nodes: snapshot.node_count,
        ephemerals: snapshot.ephemeral_count,
        data_bytes: snapshot.data_bytes,
        state_disk_bytes: snapshot.state_disk_bytes,
        log_disk_bytes: snapshot.log_disk_bytes,
        memory_bytes: snapshot.process.resident_bytes,
        latencies: vec![
            latency("reads", &metrics.read_latency),
            latency("writes", &metrics.write_latency),
            latency("log syncs", &metrics.sync_latency),
            latency("checkpoints", &metrics.checkpoint_latency),
        ],
        members: members(report),
    }
}

fn latency(name: &str, latency: &Latency) -> LatencyStatus {
    LatencyStatus {
        name: name.to_owned(),
        count: latency.count,
        average_ms: latency.average_ms(),
        p50_ms: latency.quantile_ms(0.5),
        p99_ms: latency.quantile_ms(0.99),
        // This is still exact to microseconds, where `Latency::max_ms` is whole.
        max_ms: latency.quantile_ms(1.0),
    }
}

fn members(report: &Report) -> Vec<MemberStatus> {
    let Snapshot { members, raft, config, .. } = &report.snapshot;
    let own = config.replica_id;
    let one = |member: &crate::config::Member| {
        let peer = report.peers.iter().find(|peer| peer.id == member.id);
        let follower = raft.followers.iter().find(|follower| follower.id == member.id);
        let lag_entries = match follower {
            Some(follower) => Some(raft.last_index.saturating_sub(follower.match_index)),
            None if member.id == raft.leader => Some(0),
            None => None,
        };
        let is_connected = member.id == own || peer.is_some_and(|peer| peer.sends && peer.hears);
        MemberStatus {
            id: member.id,
            role: member.role.name().to_owned(),
            peer_address: member.peer_address.clone(),
            client_address: member.client_address.clone(),
            is_leader: member.id == raft.leader,
            is_connected,
            lag_entries,
            trouble: peer.and_then(|peer| peer.trouble.clone()).filter(|_| !is_connected),
        }
    };
    members.iter().map(one).collect()
}
