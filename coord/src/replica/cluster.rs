//! What other replicas say, and who they are.

use ::raft::eraftpb::Message;

use super::message::{PeerMessage, Place};
use super::{Action, Now, OUTBOX_BYTES_MAX, Replica};
use crate::config::Member;
use crate::raft::is_snapshot;

/// Bytes of others' commands that the leader keeps while Raft takes none; above it the sender is
/// told to send its clients away.
const FORWARDED_BYTES_MAX: usize = 4 * OUTBOX_BYTES_MAX;

impl Replica {
    /// Says which streams to keep: to every member, and to those about to join.
    pub(super) fn tell_peers(&mut self, actions: &mut Vec<Action>) {
        let own = self.identity.replica_id;
        let mut members: Vec<Member> =
            self.members.iter().filter(|member| member.id != own).cloned().collect();
        // One that was away while the members changed may know none of those that lead now.
        let configured = if self.is_lost { self.config.members.clone() } else { Vec::new() };
        for joining in self.joining_members().into_iter().chain(configured) {
            if joining.id != own && !members.iter().any(|member| member.id == joining.id) {
                members.push(joining);
            }
        }
        // Where a member calls itself "any address", only our own configuration knows which.
        for member in &mut members {
            let own_line = self.config.members.iter().find(|line| line.id == member.id);
            if let Some(line) = own_line
                && matches!(member.peer_host(), "0.0.0.0" | "::")
            {
                member.peer_address.clone_from(&line.peer_address);
            }
        }
        actions.push(Action::Peers { members });
    }

    /// Looks whether this replica has lost touch: without a leader for long, or with one that is no
    /// member as far as it knows. Then it turns to those of its own configuration, too.
    pub(super) fn look_for_others(&mut self, now: Now, actions: &mut Vec<Action>) {
        let own = self.identity.replica_id;
        let is_stranger = self.leader != 0
            && self.leader != own
            && !self.members.iter().any(|member| member.id == self.leader);
        let is_lost = is_stranger || !self.has_leader(now);
        if is_lost != self.is_lost {
            self.is_lost = is_lost;
            self.tell_peers(actions);
        }
    }

    pub(super) fn peer_connected(&mut self, peer: u64, actions: &mut Vec<Action>) {
        self.connected.insert(peer);
        self.refuse_snapshot_of(peer, actions);
        // Even if there is some: what was told over an earlier stream may have been lost.
        self.tell_room(peer, actions);
    }

    /// What grows the state is refused before it is in the log, at each replica, so all have to
    /// know of the one without room.
    pub(super) fn room_changed(&mut self, is_full: bool, actions: &mut Vec<Action>) {
        self.is_full = is_full;
        for &peer in &self.connected {
            self.tell_room(peer, actions);
        }
    }

    fn tell_room(&self, peer: u64, actions: &mut Vec<Action>) {
        let message = PeerMessage::Room { is_full: self.is_full }.encode();
        actions.push(Action::SendPeer { peer, message });
    }

    /// Whether this replica and all that it is connected to have room for more state.
    pub(super) fn has_room(&self) -> bool {
        !self.is_full && self.full_peers.is_empty()
    }

    pub(super) fn peer_lost(&mut self, peer: u64, actions: &mut Vec<Action>) {
        if !self.connected.remove(&peer) {
            return;
        }
        self.full_peers.remove(&peer);
        self.consensus.report_unreachable(peer);
        self.stop_sending_snapshot(peer, actions);
        // What was forwarded over the stream may never have arrived.
        if peer == self.leader {
            self.close_dispatched(actions);
        }
    }

    pub(super) fn peer_message(
        &mut self,
        now: Now,
        peer: u64,
        message: &[u8],
        actions: &mut Vec<Action>,
    ) {
        let message = match PeerMessage::decode(message) {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(peer, %error, "a message of a replica is unreadable");
                return;
            }
        };
        match message {
            // Whoever is not who the stream says is not listened to.
            PeerMessage::Raft(message) if message.from == peer => self.consensus.step(message),
            PeerMessage::Raft(_) => {}
            PeerMessage::Forward { term, place, commands } => {
                self.take_forwarded(peer, term, place, commands, actions);
            }
            // What was sent in earlier epochs is given up already.
            PeerMessage::Refused { epoch } if epoch == self.place.epoch => {
                self.close_dispatched(actions);
            }
            PeerMessage::Refused { .. } => {}
            PeerMessage::Alive { sessions } => {
                for session in sessions {
                    self.liveness.touch(session, now.ms);
                }
            }
            PeerMessage::SnapshotBegin(message) => self.begin_receiving(peer, message, actions),
            PeerMessage::SnapshotChunk { chunk } => self.receive_chunk(peer, chunk, actions),
            PeerMessage::SnapshotEnd => self.end_receiving(peer, actions),
            PeerMessage::SnapshotMore => self.send_more(peer, actions),
            PeerMessage::SnapshotDone { is_installed } => {
                self.snapshot_done(peer, is_installed, actions);
            }
            PeerMessage::Reconfigure { epoch, command } => {
                self.begin_reconfigure(now, (peer, epoch), command, actions);
            }
            PeerMessage::Room { is_full: true } => drop(self.full_peers.insert(peer)),
            PeerMessage::Room { is_full: false } => drop(self.full_peers.remove(&peer)),
            PeerMessage::ReconfigureRefused { tag, error } => self.reconfigure_refused(tag, error),
        }
    }

    /// Takes the writes of another replica's clients, if they are meant for this term of ours and
    /// none before them is missing. Otherwise their sender closes the clients who asked.
    fn take_forwarded(
        &mut self,
        peer: u64,
        term: u64,
        place: Place,
        commands: &[u8],
        actions: &mut Vec<Action>,
    ) {
        let is_full = self.forwarded_bytes + commands.len() > FORWARDED_BYTES_MAX;
        let is_meant = self.consensus.is_leader() && term == self.consensus.term();
        let is_next = place.follows(self.forwards.get(&peer).copied().unwrap_or_default());
        if !is_meant || !is_next || is_full {
            // What follows a message without room is not next, as long as that one is not taken.
            let epoch = place.epoch;
            let message = PeerMessage::Refused { epoch }.encode();
            actions.push(Action::SendPeer { peer, message });
            return;
        }
        self.forwards.insert(peer, Place { sequence: place.sequence + 1, ..place });
        self.forwarded_bytes += commands.len();
        self.forwarded.push_back(commands.to_vec());
    }

    /// Sends Raft's messages; a snapshot goes its own way.
    pub(super) fn send_raft(&mut self, messages: Vec<Message>, actions: &mut Vec<Action>) {
        for message in messages {
            let peer = message.to;
            if is_snapshot(&message) {
                self.begin_sending(message, actions);
            } else if self.connected.contains(&peer) {
                let message = PeerMessage::Raft(message).encode();
                actions.push(Action::SendPeer { peer, message });
            } else {
                self.consensus.report_unreachable(peer);
            }
        }
    }

    /// A replica that is no member any more has nothing to do. Said once, when it applies its
    /// removal: one that was asked back in the meantime goes on when it is started again.
    pub(super) fn leave_if_removed(&mut self, actions: &mut Vec<Action>) {
        let own = self.identity.replica_id;
        let state = self.consensus.conf_state();
        let is_member = state.voters.contains(&own)
            || state.learners.contains(&own)
            || state.voters_outgoing.contains(&own)
            || state.learners_next.contains(&own);
        if !is_member && self.consensus.applied() != 0 {
            let reason = format!("replica {own} was removed from the ensemble");
            actions.push(Action::Stop { reason });
        }
    }

    /// The durable state has caught up: the log before it may go, but for what followers that
    /// lag a little still need.
    pub(super) fn checkpoint_durable(
        &mut self,
        applied: crate::store::Applied,
        actions: &mut Vec<Action>,
    ) {
        let checkpoint = applied.index;
        self.consensus.set_checkpoint(applied);
        let wanted = self.consensus.progress().into_iter().filter(|&(_, _, active)| active);
        let slowest = wanted.map(|(_, matched, _)| matched).min().unwrap_or(checkpoint);
        let retained = self.consensus.index_behind(self.config.log_retain_bytes);
        let index = slowest.min(checkpoint).max(retained);
        if let Some((index, term)) = self.consensus.compact(index) {
            actions.push(Action::CompactLog { index, term });
        }
    }
}
