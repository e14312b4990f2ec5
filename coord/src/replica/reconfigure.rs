//! A change of members: `reconfig` or an operator asks, the leader decides, Raft makes it.
//!
//! New participants are connected, then follow without a vote, then get it (Raft thesis, 4.2.1). The change
//! is proposed when a majority of the future participants has caught up with the leader, so the change
//! never stops the ensemble. The other participants get their vote when they have caught up. Several
//! changes at once go through a joint configuration, in which both the old and the new majority must agree.

use std::collections::BTreeSet;

use ::raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};
use millrace_proto::zookeeper::{Error, Reader, Request, opcode, perms};

use super::admin::is_admin_tag;
use super::message::PeerMessage;
use super::{Action, Now, Replica, slot_of};
use crate::command::{Act, Command, begin_batch};
use crate::config::{Member, Role, members};

/// Milliseconds that the leader waits for new participants to connect.
const CONNECT_PATIENCE_MS: u64 = 10_000;
/// Milliseconds that it waits for them to catch up, once they follow. A snapshot of a large state takes
/// seconds; a slower participant can be added again.
const CATCH_UP_PATIENCE_MS: u64 = 60_000;
/// Entries that a late participant may lack when it gets its vote. Guessed: the number on its way in a busy
/// ensemble.
const PROMOTE_LAG_MAX: u64 = 1000;
/// The node that holds the members.
const CONFIG_PATH: &str = "/zookeeper/config";

/// A change that waits for its participants to connect, then to catch up.
pub(super) struct Reconfigure {
    members: Vec<Member>,
    text: String,
    /// The encoded command, and the replica that waits for its outcome.
    command: Vec<u8>,
    peer: u64,
    /// The epoch of that replica when it asked.
    epoch: u64,
    deadline_ms: u64,
    /// The index that new participants must reach, once they follow.
    catch_up_to: Option<u64>,
}

/// How many of the future participants are ready, and whether more are on the way.
#[derive(Default)]
struct Readiness {
    count: usize,
    of: usize,
    is_somebody_on_the_way: bool,
}

fn single(id: u64, kind: ConfChangeType) -> ConfChangeSingle {
    let mut single = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
    single.set_change_type(kind);
    single
}

fn conf_change(changes: Vec<ConfChangeSingle>) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    change.set_changes(changes.into());
    change
}

fn is_participant(member: &Member) -> bool {
    member.role == Role::Participant
}

impl Replica {
    /// Sends a reconfig to the leader. It does not go through the log as other writes do.
    pub(super) fn ask_reconfigure(&mut self, command: Vec<u8>) {
        self.reconfigures_asked.push(command);
    }

    /// Gives the waiting changes to the leader.
    pub(super) fn flush_reconfigures(&mut self, now: Now, actions: &mut Vec<Action>) {
        // Without a stream a message would be lost.
        let is_reached = self.consensus.is_leader() || self.connected.contains(&self.leader);
        if self.reconfigures_asked.is_empty() || self.leader == 0 || !is_reached {
            return;
        }
        for command in std::mem::take(&mut self.reconfigures_asked) {
            if self.consensus.is_leader() {
                let own = self.identity.replica_id;
                self.begin_reconfigure(now, (own, self.place.epoch), &command, actions);
            } else {
                let epoch = self.place.epoch;
                let message = PeerMessage::Reconfigure { epoch, command: &command }.encode();
                actions.push(Action::SendPeer { peer: self.leader, message });
            }
        }
        self.writes_dispatched = self.writes_issued;
    }

    /// Lists the members to connect to although they are not part of the ensemble yet.
    pub(super) fn joining_members(&self) -> Vec<Member> {
        self.reconfigure.as_ref().map(|change| change.members.clone()).unwrap_or_default()
    }

    /// Checks a change, as the leader, and waits for its participants.
    pub(super) fn begin_reconfigure(
        &mut self,
        now: Now,
        (peer, epoch): (u64, u64),
        command: &[u8],
        actions: &mut Vec<Action>,
    ) {
        let Ok(asked) = Command::decode(&mut Reader::new(command)) else { return };
        if !self.consensus.is_leader() {
            let message = PeerMessage::Refused { epoch }.encode();
            return actions.push(Action::SendPeer { peer, message });
        }
        match self.check_change(&asked) {
            Ok((members, text)) => {
                self.reconfigure = Some(Reconfigure {
                    members,
                    text,
                    command: command.to_vec(),
                    peer,
                    epoch,
                    deadline_ms: now.ms + CONNECT_PATIENCE_MS,
                    catch_up_to: None,
                });
                self.tell_peers(actions);
                self.check_reconfigure(now, actions);
            }
            Err(error) => self.refuse_to(peer, asked.tag, error, actions),
        }
    }

    /// Returns the members after the change (`PrepRequestProcessor`, its case `reconfig`).
    fn check_change(&self, asked: &Command<'_>) -> Result<(Vec<Member>, String), Error> {
        // This leader, or one before it, has put a list into the log that is not applied yet.
        let is_behind = self.consensus.applied() < self.list_index
            || self.consensus.applied_term() != self.consensus.term();
        if self.reconfigure.is_some() || self.consensus.is_changing_members() || is_behind {
            return Err(Error::ReconfigInProgress);
        }
        let Act::Request { code: opcode::RECONFIG, record } = asked.act else {
            return Err(Error::BadArguments);
        };
        let Ok(Request::Reconfig { joining, leaving, new_members, config_id }) =
            Request::decode(opcode::RECONFIG, record)
        else {
            return Err(Error::MarshallingError);
        };
        // A replica by itself has no members to change.
        if self.members.is_empty() {
            return Err(Error::Unimplemented);
        }
        let (_, version) = members::parse_config_text(&self.state.config_text())
            .map_err(|_| Error::DataInconsistency)?;
        if config_id != -1 && config_id != version {
            return Err(Error::BadVersion);
        }
        let is_operator = is_admin_tag(asked.tag);
        let members =
            members::reconfigure(&self.members, joining, leaving, new_members, is_operator)
                .map_err(|error| error.reply())?;
        // The rights are checked last, as in ZooKeeper, so any client learns what is wrong with a change.
        let may_write =
            self.config.skip_acl || self.state.allows(CONFIG_PATH, perms::WRITE, &asked.identities);
        if !may_write {
            return Err(Error::NoAuth);
        }
        let text = members::config_lines(&members);
        Ok((members, text))
    }

    /// Takes the waiting change a step further: new participants follow once a majority is connected, and
    /// vote once a majority has caught up.
    pub(super) fn check_reconfigure(&mut self, now: Now, actions: &mut Vec<Action>) {
        let Some(change) = &self.reconfigure else { return };
        // The last step is still under way.
        if self.consensus.is_changing_members() {
            return;
        }
        let is_late = now.ms >= change.deadline_ms;
        let readiness = self.readiness(change);
        if readiness.count * 2 <= readiness.of {
            if is_late {
                self.refuse_waiting(Error::NewConfigNoQuorum, actions);
            }
            return;
        }
        if change.catch_up_to.is_none() {
            let learners = self.learners_to_be(&change.members);
            if learners.is_empty() || self.consensus.propose_members(conf_change(learners)) {
                let catch_up_to = Some(self.consensus.last_index());
                let change = self.reconfigure.as_mut().expect("it was there");
                change.catch_up_to = catch_up_to;
                change.deadline_ms = now.ms + CATCH_UP_PATIENCE_MS;
            }
            return;
        }
        if readiness.is_somebody_on_the_way && !is_late {
            return;
        }
        let change = self.reconfigure.take().expect("it was there");
        let Ok(asked) = Command::decode(&mut Reader::new(&change.command)) else { return };
        let command = Command { act: Act::SetConfig { text: &change.text }, ..asked };
        // Late participants get their vote in a change of their own, so this one stays small.
        let is_late = |id| self.members.iter().any(|old| old.id == id && is_participant(old));
        let catch_up_to = change.catch_up_to.unwrap_or_default();
        let ready = |id| !is_late(id) && self.has_caught_up(id, catch_up_to);
        let changes = self.raft_changes(&change.members, ready);
        let mut context = Vec::new();
        begin_batch(&mut context, now.wall_ms, self.rules());
        command.encode(&mut context);
        // Raft has nothing to do for new addresses, or for a late participant. The change is still an entry
        // of this leader, because after another change its list would be an old one.
        let is_proposed = if changes.is_empty() {
            self.consensus.propose(context)
        } else {
            let mut conf_change = conf_change(changes);
            conf_change.context = context.into();
            self.consensus.propose_members(conf_change)
        };
        self.list_index = self.consensus.last_index();
        if !is_proposed {
            self.reconfigure = Some(change);
            self.refuse_waiting(Error::ReconfigInProgress, actions);
        }
    }

    /// Counts the future participants that are connected, and have caught up if they follow.
    fn readiness(&self, change: &Reconfigure) -> Readiness {
        let voters = &self.consensus.conf_state().voters;
        let progress = self.consensus.progress();
        let mut readiness = Readiness::default();
        for member in change.members.iter().filter(|member| is_participant(member)) {
            readiness.of += 1;
            let is_connected =
                member.id == self.identity.replica_id || self.connected.contains(&member.id);
            let matched = progress.iter().find(|(id, _, _)| *id == member.id);
            let is_behind = !voters.contains(&member.id)
                && change
                    .catch_up_to
                    .is_some_and(|index| matched.is_none_or(|(_, matched, _)| *matched < index));
            readiness.count += usize::from(is_connected && !is_behind);
            readiness.is_somebody_on_the_way |= is_connected && is_behind;
        }
        readiness
    }

    /// Returns the changes that let new participants follow.
    fn learners_to_be(&self, members: &[Member]) -> Vec<ConfChangeSingle> {
        let state = self.consensus.conf_state();
        let is_new = |id| !state.voters.contains(&id) && !state.learners.contains(&id);
        let new = members.iter().filter(|member| is_participant(member) && is_new(member.id));
        new.map(|member| single(member.id, ConfChangeType::AddLearnerNode)).collect()
    }

    /// Returns what Raft must change to get from its members to these. Participants that are not `ready`
    /// follow without a vote.
    fn raft_changes(
        &self,
        members: &[Member],
        ready: impl Fn(u64) -> bool,
    ) -> Vec<ConfChangeSingle> {
        let state = self.consensus.conf_state();
        let mut changes = Vec::new();
        let mut change = |id: u64, kind: ConfChangeType| changes.push(single(id, kind));
        for member in members {
            let id = member.id;
            let is_learner = state.learners.contains(&id);
            match (is_participant(member), state.voters.contains(&id)) {
                (true, true) => {}
                (true, false) if ready(id) => change(id, ConfChangeType::AddNode),
                _ if is_learner => {}
                _ => change(id, ConfChangeType::AddLearnerNode),
            }
        }
        let kept: BTreeSet<u64> = members.iter().map(|member| member.id).collect();
        for id in state.voters.iter().chain(&state.learners) {
            if !kept.contains(id) {
                change(*id, ConfChangeType::RemoveNode);
            }
        }
        changes
    }

    /// True if a member is connected and has the log up to `index`.
    fn has_caught_up(&self, id: u64, index: u64) -> bool {
        let progress = self.consensus.progress();
        let matched = progress.iter().find(|(other, _, _)| *other == id);
        self.connected.contains(&id) && matched.is_some_and(|(_, matched, _)| *matched >= index)
    }

    /// Gives their vote, as the leader, to participants that were not connected, or had not caught up, when
    /// they became members. Always holds: no member votes that never had data, so a voter without data has
    /// lost it.
    pub(super) fn promote_late(&mut self) {
        let is_busy = self.reconfigure.is_some() || self.consensus.is_changing_members();
        if !self.consensus.is_leader() || is_busy {
            return;
        }
        let state = self.consensus.conf_state();
        if state.learners.is_empty() {
            return;
        }
        let index = self.consensus.committed().saturating_sub(PROMOTE_LAG_MAX).max(1);
        let is_late = |member: &&Member| {
            is_participant(member)
                && state.learners.contains(&member.id)
                && self.has_caught_up(member.id, index)
        };
        if let Some(member) = self.members.iter().find(is_late) {
            tracing::info!(peer = member.id, "a late member may vote now");
            let change = conf_change(vec![single(member.id, ConfChangeType::AddNode)]);
            self.consensus.propose_members(change);
        }
    }

    fn refuse_waiting(&mut self, error: Error, actions: &mut Vec<Action>) {
        let Some(change) = self.reconfigure.take() else { return };
        // Members that follow already are removed; otherwise the next change would do so.
        let left_over = self.raft_changes(&self.members, |_| false);
        if !left_over.is_empty() {
            self.consensus.propose_members(conf_change(left_over));
        }
        if let Ok(asked) = Command::decode(&mut Reader::new(&change.command)) {
            self.refuse_to(change.peer, asked.tag, error, actions);
        }
        self.tell_peers(actions);
    }

    /// Refuses the waiting change, because leadership is lost. The replica that asked closes its client,
    /// which asks again elsewhere.
    pub(super) fn refuse_reconfigure(&mut self, actions: &mut Vec<Action>) {
        let Some(change) = self.reconfigure.take() else { return };
        if change.peer != self.identity.replica_id {
            let message = PeerMessage::Refused { epoch: change.epoch }.encode();
            actions.push(Action::SendPeer { peer: change.peer, message });
        }
        self.tell_peers(actions);
    }

    fn refuse_to(&mut self, peer: u64, tag: u64, error: Error, actions: &mut Vec<Action>) {
        if peer == self.identity.replica_id {
            self.reconfigure_refused(tag, error.code());
        } else {
            let message = PeerMessage::ReconfigureRefused { tag, error: error.code() }.encode();
            actions.push(Action::SendPeer { peer, message });
        }
    }

    /// Answers a client of ours whose change the leader refused.
    pub(super) fn reconfigure_refused(&mut self, tag: u64, error: i32) {
        if self.admin_refused(tag, error) {
            return;
        }
        let zxid = self.state.zxid();
        let Some(Some(client)) = self.clients.get_mut(slot_of(tag)) else { return };
        let id = client.id;
        client.refuse_write(tag, zxid, error);
        self.release_held(id);
        self.unblocked.push(id);
    }
}
