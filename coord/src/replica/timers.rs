//! What a replica does by the clock: Raft's ticks, expiry of sessions, reports of active sessions, removal
//! of due containers, closing of clients without a leader.

use super::client::Phase;
use super::{Action, ClientId, Now, PeerMessage, Replica, TICK_MS};
use crate::command::{Act, Command};
use crate::config::Member;
use crate::config::members::config_lines;

/// Most ticks to catch up on at once after a pause, because more would only start elections.
const TICKS_AT_ONCE_MAX: u64 = 3;
/// Milliseconds between two reports of active sessions to the leader.
pub(super) const ALIVE_MS: u64 = 200;
/// Most containers and TTL nodes to remove at once.
const CONTAINERS_MAX: usize = 256;
/// Election time-outs without a leader after which clients are closed, so that they look for another
/// server. ZooKeeper does this at once.
const LEADERLESS_TIMEOUTS: u64 = 4;

/// The times when each is due next, in monotonic milliseconds.
#[derive(Debug)]
pub(super) struct Timers {
    tick_ms: u64,
    alive_ms: u64,
    containers_ms: u64,
}

impl Timers {
    pub(super) fn new(now_ms: u64) -> Timers {
        Timers { tick_ms: now_ms + TICK_MS, alive_ms: now_ms, containers_ms: now_ms }
    }
}

impl Replica {
    pub(super) fn run_timers(&mut self, now: Now, actions: &mut Vec<Action>) {
        if now.ms >= self.timers.tick_ms {
            let passed = (now.ms - self.timers.tick_ms) / TICK_MS + 1;
            for _ in 0..passed.min(TICKS_AT_ONCE_MAX) {
                self.consensus.tick();
            }
            self.timers.tick_ms += passed * TICK_MS;
            self.consensus.leave_joint_if_stuck();
            self.check_reconfigure(now, actions);
            self.promote_late();
            self.drive_founding(now, actions);
            self.pursue_lists(now, actions);
            self.look_for_others(now, actions);
        }
        self.syncs.ask(now, self.config.election_timeout_ms, &mut self.consensus);
        if self.consensus.is_leader() {
            self.watch_sessions(now);
        } else if now.ms >= self.timers.alive_ms {
            self.report_alive(actions);
            self.timers.alive_ms = now.ms + ALIVE_MS;
        }
        if !self.has_leader(now) {
            self.send_clients_away(actions);
        }
    }

    pub(super) fn next_deadline(&self) -> u64 {
        let mut deadline = self.timers.tick_ms;
        if let Some(expiry) = self.liveness.next_ms() {
            deadline = deadline.min(expiry);
        }
        deadline
    }

    /// True if the formed ensemble has a leader, or lost one so recently that a new one is likely.
    pub(super) fn has_leader(&self, now: Now) -> bool {
        if !self.is_formed() {
            return false;
        }
        let patience = LEADERLESS_TIMEOUTS * self.config.election_timeout_ms;
        self.leaderless_since_ms.is_none_or(|since| now.ms < since + patience)
    }

    /// Closes silent sessions and removes empty containers and old nodes, as the leader.
    fn watch_sessions(&mut self, now: Now) {
        for session in std::mem::take(&mut self.touched) {
            self.untouch(session);
            self.liveness.touch(session, now.ms);
        }
        let (mut count, mut last) = (0_u64, 0);
        for session in self.liveness.expired(now.ms) {
            let Some(view) = self.state.session(session) else { continue };
            (count, last) = (count + 1, session);
            // The attachment says which connection of the session was silent. If the client comes back
            // before this is applied, the command is refused.
            self.push_own(session, view.attach, Act::CloseSession);
        }
        if count > 0 {
            self.metrics.sessions_expired += count;
            // One line for all, because a machine that dies may have had a hundred thousand.
            let session = format_args!("{last:#x}");
            tracing::info!(session, others = count - 1, "session expired");
        }
        if now.ms >= self.timers.containers_ms {
            self.timers.containers_ms = now.ms + self.config.container_check_ms;
            for path in self.state.due_containers(now.wall_ms, CONTAINERS_MAX) {
                self.push_own(0, 0, Act::DeleteContainer { path: &path });
            }
        }
    }

    /// Proposes a command that no client waits for.
    fn push_own(&mut self, session: i64, attach: i64, act: Act<'_>) {
        let identities = Vec::new();
        self.outbox.push(&Command { origin: 0, tag: 0, session, attach, identities, act });
    }

    fn untouch(&mut self, session: i64) {
        if let Some(&id) = self.sessions_here.get(&session)
            && let Some(client) = self.client_mut(id)
        {
            client.is_touched = false;
        }
    }

    /// Reports the sessions that were active here to the leader, as a follower.
    fn report_alive(&mut self, actions: &mut Vec<Action>) {
        if self.leader == 0 || self.touched.is_empty() || !self.connected.contains(&self.leader) {
            return;
        }
        let sessions = std::mem::take(&mut self.touched);
        for &session in &sessions {
            self.untouch(session);
        }
        let message = PeerMessage::Alive { sessions }.encode();
        actions.push(Action::SendPeer { peer: self.leader, message });
    }

    /// Closes all clients except those that accept old state.
    fn send_clients_away(&mut self, actions: &mut Vec<Action>) {
        let away: Vec<ClientId> = self
            .clients
            .iter()
            .flatten()
            .filter(|client| matches!(client.phase, Phase::Connecting | Phase::Open))
            .map(|client| client.id)
            .collect();
        for client in away {
            self.close_client(client, actions);
        }
    }

    /// Closes the clients that accepted old state, because there is a leader again.
    pub(super) fn close_read_only(&mut self, actions: &mut Vec<Action>) {
        let ended: Vec<ClientId> = self
            .clients
            .iter()
            .flatten()
            .filter(|client| client.phase == Phase::ReadOnly)
            .map(|client| client.id)
            .collect();
        for client in ended {
            self.close_client(client, actions);
        }
    }

    /// Gives every session its whole time-out, as a new leader.
    pub(super) fn begin_leading(&mut self, now: Now) {
        self.liveness.clear();
        self.list_index = 0;
        let sessions: Vec<(i64, u64)> = self
            .state
            .sessions()
            .map(|(id, view)| (id, u64::from(view.timeout_ms.unsigned_abs())))
            .collect();
        for (session, timeout_ms) in sessions {
            self.liveness.insert(session, timeout_ms, now.ms);
        }
        self.timers.containers_ms = now.ms + self.config.container_check_ms;
        // The very first leader writes down the members. A replica that was by itself, or has just begun,
        // is the only member so far; it takes the others of its list in.
        if self.state.config_text().is_empty() && !self.config.members.is_empty() {
            let state = self.consensus.conf_state();
            let is_member = |member: &&Member| {
                state.voters.contains(&member.id) || state.learners.contains(&member.id)
            };
            let members: Vec<Member> =
                self.config.members.iter().filter(is_member).cloned().collect();
            self.push_own(0, 0, Act::SetConfig { text: &config_lines(&members) });
        }
    }

    /// Drops what only a leader holds.
    pub(super) fn stop_leading(&mut self, actions: &mut Vec<Action>) {
        self.liveness.clear();
        self.forwarded.clear();
        self.forwarded_bytes = 0;
        self.refuse_reconfigure(actions);
        self.stop_sending_snapshots(actions);
    }
}
