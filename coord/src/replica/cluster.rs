//! Messages of other replicas, and the streams to them.

use ::raft::eraftpb::{Message, MessageType};

use super::message::{PeerMessage, Place};
use super::{Action, Company, Now, OUTBOX_BYTES_MAX, Replica};
use crate::config::members::parse_config_text;
use crate::raft::is_snapshot;

/// Most bytes of other replicas' commands that the leader keeps while Raft takes none. Above this the
/// sender is refused and closes its clients.
const FORWARDED_BYTES_MAX: usize = 4 * OUTBOX_BYTES_MAX;

impl Replica {
    /// Asks for streams to every member, to those about to join, and to those that the configured list
    /// adds.
    pub(super) fn tell_peers(&mut self, actions: &mut Vec<Action>) {
        let own = self.identity.replica_id;
        let state = self.consensus.conf_state();
        let is_in_raft = |id: u64| {
            [&state.voters, &state.learners, &state.voters_outgoing, &state.learners_next]
                .into_iter()
                .any(|ids| ids.contains(&id))
        };
        self.leaving.retain(|member| {
            is_in_raft(member.id) && !self.members.iter().any(|known| known.id == member.id)
        });
        let mut company = Company {
            // While the members change, these are the voters of both configurations.
            voters: state.voters.iter().chain(&state.voters_outgoing).copied().collect(),
            is_empty: self.founding.is_some(),
            ..Company::default()
        };
        let joining = self.joining_members();
        // A replica that was away while the members changed may know none of the current voters.
        let configured = match self.is_lost {
            true => [&self.config.members[..], &self.told_members].concat(),
            false => Vec::new(),
        };
        let mut all = self.members.clone();
        all.extend(self.leaving.iter().cloned());
        for member in joining.iter().cloned().chain(self.wanted_members()).chain(configured) {
            if !all.iter().any(|known| known.id == member.id) {
                all.push(member);
            }
        }
        all.retain(|member| member.id != own);
        let is_joining = |id: u64| joining.iter().any(|member| member.id == id);
        let guests = all.iter().map(|member| member.id);
        company.guests = guests.filter(|&id| !is_in_raft(id) && !is_joining(id)).collect();
        // If a member calls itself "any address", only our own configuration knows which address.
        for member in &mut all {
            let own_line = self.config.members.iter().find(|line| line.id == member.id);
            if let Some(line) = own_line
                && matches!(member.peer_host(), "0.0.0.0" | "::")
            {
                member.peer_address.clone_from(&line.peer_address);
            }
        }
        company.members = all;
        company.elsewhere = self.moved_members();
        actions.push(Action::Peers { company });
    }

    /// Notes whether this replica has lost touch: it had no leader for long, or its leader is not a member
    /// as far as it knows. Then it connects to the members of its own configuration too.
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
        self.tell_holding(peer, actions);
        let text = self.state.config_text();
        if !text.is_empty() {
            let message = PeerMessage::Members { text: &text }.encode();
            actions.push(Action::SendPeer { peer, message });
        }
        // Sent even if there is room, because a message of an earlier stream may be lost.
        self.tell_room(peer, actions);
    }

    /// Notes whether our stores are full, and informs the peers. Every replica refuses writes that grow the
    /// state before they are in the log, so each must know of a full one.
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

    /// True if this replica and all that it is connected to have room for more state.
    pub(super) fn has_room(&self) -> bool {
        !self.is_full && self.full_peers.is_empty()
    }

    pub(super) fn peer_lost(&mut self, peer: u64, actions: &mut Vec<Action>) {
        if !self.connected.remove(&peer) {
            return;
        }
        self.full_peers.remove(&peer);
        self.lists.moved.remove(&peer);
        self.forget_holding(peer);
        self.consensus.report_unreachable(peer);
        self.stop_sending_snapshot(peer, actions);
        // Writes forwarded over this stream may never have arrived.
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
            // A message is dropped if its sender is not the peer of the stream.
            PeerMessage::Raft(message) if message.from == peer => {
                self.hear_raft(message, actions);
            }
            PeerMessage::Raft(_) => {}
            PeerMessage::Forward { term, place, commands } => {
                self.take_forwarded(peer, term, place, commands, actions);
            }
            // Writes of earlier epochs are given up already.
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
            PeerMessage::Members { text } => self.take_members(text, actions),
            PeerMessage::Holds(holding) => self.take_holding(peer, holding, actions),
            PeerMessage::Room { is_full: true } => drop(self.full_peers.insert(peer)),
            PeerMessage::Room { is_full: false } => drop(self.full_peers.remove(&peer)),
            PeerMessage::ReconfigureRefused { tag, error } => self.reconfigure_refused(tag, error),
        }
    }

    /// Notes the members that another replica names, to connect to them when touch is lost. The log alone
    /// decides which they are; this only says where its writers may be.
    fn take_members(&mut self, text: &str, actions: &mut Vec<Action>) {
        let Ok((told, _)) = parse_config_text(text) else { return };
        if told != self.told_members {
            self.told_members = told;
            if self.is_lost {
                self.tell_peers(actions);
            }
        }
    }

    /// Takes a message of Raft. While there is no data, a request for a vote is dropped. The crate `raft`
    /// votes even if it knows no members, and the vote of a member that lost its disk could elect a
    /// candidate without the entries that this one had acknowledged.
    fn hear_raft(&mut self, message: Message, actions: &mut Vec<Action>) {
        let kind = message.msg_type;
        let asks = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        if asks && self.founding.is_some() {
            tracing::debug!(
                peer = message.from,
                "a request for a vote is dropped: there is no data here"
            );
            return;
        }
        if self.consensus.has_lost(&message) {
            // The crate `raft` would panic here.
            self.is_failed = true;
            let (own, leader) = (self.identity.replica_id, message.from);
            let reason = format!(
                "the data directory is older than what replica {own} acknowledged: it ends with entry \
                 {}, and replica {leader} has seen entry {} here. Bring the newer directory back. Or \
                 keep this one, remove this replica from the others and add it again with a new \
                 directory (millrace coord remove, then add)",
                self.consensus.last_index(),
                message.commit
            );
            return actions.push(Action::Stop { reason });
        }
        self.consensus.step(message);
    }

    /// Takes the writes of another replica's clients, if they are for this term of ours and none before
    /// them is missing. Otherwise their sender closes the clients of these writes.
    fn take_forwarded(
        &mut self,
        peer: u64,
        term: u64,
        place: Place,
        commands: &[u8],
        actions: &mut Vec<Action>,
    ) {
        let is_full = self.forwarded_bytes + commands.len() > FORWARDED_BYTES_MAX;
        let is_leader = self.consensus.is_leader() && !self.lists.is_forming;
        let is_meant = is_leader && term == self.consensus.term();
        let is_next = place.follows(self.forwards.get(&peer).copied().unwrap_or_default());
        if !is_meant || !is_next || is_full {
            // After a message without room, the next ones are out of order until that one is taken.
            let epoch = place.epoch;
            let message = PeerMessage::Refused { epoch }.encode();
            actions.push(Action::SendPeer { peer, message });
            return;
        }
        self.forwards.insert(peer, Place { sequence: place.sequence + 1, ..place });
        self.forwarded_bytes += commands.len();
        self.forwarded.push_back(commands.to_vec());
    }

    /// Sends Raft's messages. Snapshots are sent in chunks instead.
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

    /// Stops this replica when it applies its own removal, because a removed member has nothing to do. If
    /// it was added again in the meantime, it continues after the next start.
    pub(super) fn leave_if_removed(&mut self, actions: &mut Vec<Action>) {
        if !self.is_member() {
            let own = self.identity.replica_id;
            let reason = format!("replica {own} was removed from the ensemble");
            actions.push(Action::Stop { reason });
        }
    }

    /// True if this replica is a member of the ensemble of its data, or there is no ensemble.
    pub(super) fn is_member(&self) -> bool {
        let own = self.identity.replica_id;
        let state = self.consensus.conf_state();
        let is_in_raft = state.voters.contains(&own)
            || state.learners.contains(&own)
            || state.voters_outgoing.contains(&own)
            || state.learners_next.contains(&own);
        is_in_raft || self.consensus.applied() == 0
    }

    /// Shortens the log, because the durable state has caught up. Keeps what followers that lag a little
    /// still need.
    pub(super) fn checkpoint_durable(
        &mut self,
        applied: crate::store::Applied,
        actions: &mut Vec<Action>,
    ) {
        if self.found_durable(actions) {
            return;
        }
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
