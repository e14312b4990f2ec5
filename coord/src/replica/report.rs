//! The state of a replica, for operators and their tools.

use super::client::{Client, Pending, Phase};
use super::{Now, Replica};
use crate::report::{
    ConnectionReport, Effect, FollowerReport, Mode, RaftReport, SessionReport, Snapshot, Wanted,
    WatchReport,
};

impl Replica {
    /// Returns the current figures, and what `wanted` names beside them. The caller adds what the process
    /// and the disk know.
    pub fn report(&self, now: Now, wanted: Wanted) -> Snapshot {
        let counts = self.state.counts();
        let mut snapshot = Snapshot::new(self.config.clone());
        snapshot.mode = self.mode(now);
        snapshot.waits_for = self.waits_for();
        snapshot.now_ms = now.wall_ms;
        snapshot.uptime_ms = now.ms - self.started_ms;
        snapshot.zxid = self.state.zxid();
        snapshot.node_count = counts.nodes as u64;
        snapshot.ephemeral_count = counts.ephemerals as u64;
        snapshot.data_bytes = counts.approximate_data_size;
        snapshot.session_count = counts.sessions as u64;
        let open = || self.clients.iter().flatten().filter(|client| client.phase != Phase::Closed);
        snapshot.local_session_count =
            open().filter(|client| client.phase == Phase::ReadOnly).count() as u64;
        snapshot.connection_count = self.client_count as u64;
        snapshot.outstanding = open().map(|client| client.pending.len() as u64).sum();
        let is_sync = |pending: &&Pending| matches!(pending, Pending::Sync { is_due: false, .. });
        let syncs = open().map(|client| client.pending.iter().filter(is_sync).count() as u64);
        snapshot.pending_syncs = syncs.sum();
        snapshot.watch_counts = self.watches.counts();
        snapshot.members.clone_from(&self.members);
        snapshot.members_version = self.members_version;
        snapshot.raft = self.raft_report(now);
        snapshot.metrics = self.metrics.clone();
        snapshot.metrics.packets_sent += open().map(|client| client.usage.sent).sum::<u64>();
        if wanted.connections {
            snapshot.connections = open().map(|client| connection(client, now)).collect();
        }
        if wanted.sessions {
            snapshot.sessions = self.session_reports(now);
        }
        if wanted.watches {
            snapshot.watches = self.watch_reports();
        }
        snapshot.digest = wanted.digest.then(|| self.state.digest());
        snapshot
    }

    /// Resets figures, as some four-letter words ask.
    pub fn reset(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::ResetServer => self.metrics.reset(),
            Effect::ResetConnections => self.reset_connections(),
        }
    }

    fn reset_connections(&mut self) {
        for client in self.clients.iter_mut().flatten() {
            self.metrics.packets_sent += client.usage.sent;
            client.usage = super::client::Usage::default();
        }
    }

    fn mode(&self, now: Now) -> Mode {
        let own = self.identity.replica_id;
        if self.leader == 0 || self.is_failed || !self.is_formed() {
            let may_read = self.config.read_only_mode && self.is_formed();
            let is_patient = self.has_leader(now) || !may_read;
            return if is_patient { Mode::NotServing } else { Mode::ReadOnly };
        }
        match self.leader == own {
            true if self.members.is_empty() => Mode::Standalone,
            true => Mode::Leader,
            false if self.consensus.conf_state().learners.contains(&own) => Mode::Observer,
            false => Mode::Follower,
        }
    }

    fn raft_report(&self, now: Now) -> RaftReport {
        let state = self.consensus.conf_state();
        let committed = self.consensus.committed();
        let followers = self.consensus.progress().into_iter();
        RaftReport {
            term: self.consensus.term(),
            leader: self.leader,
            last_index: self.consensus.last_index(),
            committed_index: committed,
            applied_index: self.consensus.applied(),
            leading_ms: self.leading_since_ms.map_or(0, |since| now.ms - since),
            followers: followers
                .map(|(id, match_index, is_active)| FollowerReport {
                    id,
                    is_voter: state.voters.contains(&id),
                    match_index,
                    is_synced: is_active && !self.consensus.is_in_snapshot(id),
                })
                .collect(),
        }
    }

    fn session_reports(&self, now: Now) -> Vec<SessionReport> {
        let sessions = self.state.sessions();
        sessions
            .map(|(id, view)| SessionReport {
                id,
                timeout_ms: view.timeout_ms,
                expires_ms: self
                    .liveness
                    .expires_ms(id)
                    .map(|at| now.wall_ms + (at.saturating_sub(now.ms)) as i64),
                ephemerals: self.state.ephemerals(id),
            })
            .collect()
    }

    fn watch_reports(&self) -> Vec<WatchReport> {
        let session = |slot: &u32| {
            let client = self.clients.get(*slot as usize)?.as_ref()?;
            Some(client.session)
        };
        let paths = self.watches.by_path();
        paths
            .map(|(path, slots)| WatchReport {
                path: path.to_owned(),
                sessions: slots.iter().filter_map(session).collect(),
            })
            .collect()
    }
}

fn connection(client: &Client, now: Now) -> ConnectionReport {
    let usage = &client.usage;
    ConnectionReport {
        address: client.address,
        session: client.session,
        timeout_ms: client.timeout_ms,
        queued: client.pending.len() as u64,
        received: usage.received,
        sent: usage.sent,
        last_operation: usage.last_operation,
        last_xid: usage.last_xid,
        last_zxid: usage.last_zxid,
        established_ms: now.wall_ms - (now.ms - client.opened_ms) as i64,
        last_response_ms: usage.last_ms,
        last_latency_ms: usage.latency_last_ms,
        min_latency_ms: usage.latency_min_ms,
        average_latency_ms: usage.latency_sum_ms / usage.answered.max(1),
        max_latency_ms: usage.latency_max_ms,
    }
}
