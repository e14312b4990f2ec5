//! Consensus: a thin driver around the crate `raft`. The crate decides; this file does the moving.
//!
//! Owns the Raft node, the end of the log in memory, and what waits for the disk. Each
//! [`Consensus::step_ready`] hands out what Raft asks for, in the order that keeps it safe:
//!
//! ```text
//!  messages of a leader      at once, while its own disk still syncs (Raft thesis, 10.2.1)
//!  entries, vote, term       to the log thread: `Append`, one durable commit for all that wait
//!  messages of a follower    held until the append they promise is durable
//!  committed entries         applied at once: a majority has them on disk
//! ```
//!
//! Does not know what entries hold. A changed commit index alone is not worth a commit on disk: it
//! travels with the next append, and a replica learns it again after a crash.

use std::collections::VecDeque;

use ::raft::eraftpb::{ConfChangeV2, ConfState, Entry, HardState, Message, MessageType, Snapshot};
use ::raft::{Config, Error, ProgressState, RawNode, SnapshotStatus, StateRole};
use protobuf::Message as _;

use crate::store::{Append, Applied, LogReader, StoreError};

mod logger;
mod window;

use window::Window;

/// Most bytes of entries in one message to a follower.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Messages with entries on their way to one follower.
const MESSAGES_IN_FLIGHT_MAX: usize = 256;
/// Most bytes of proposals that are not committed yet. Above this Raft drops proposals and the
/// caller keeps them.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of committed entries handed out at once, so that a long replay does not block the
/// loop.
const COMMITTED_BYTES_MAX: u64 = 4 << 20;

/// Ticks between the members that stand when a leader's process has ended. Guessed: two fsyncs and two trips, so that
/// the first is elected before the second stands.
const STAND_TICKS: usize = 2;

/// Timing of elections, counted in ticks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Ticks without a leader's message until an election; chance makes it up to twice as many.
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
}

/// What one step of Raft asks for.
#[derive(Default)]
pub(crate) struct Outputs {
    /// Send these now, in order.
    pub messages: Vec<Message>,
    /// Apply these now, in order.
    pub committed: Vec<Entry>,
    /// Contexts of `read_index` and the index that must be applied before reading.
    pub reads: Vec<(Vec<u8>, u64)>,
    /// Make this durable, then call [`Consensus::durable`].
    pub append: Option<Append>,
    /// A received snapshot took effect: replace the state with the installed one.
    pub restored: Option<Applied>,
}

/// Messages that wait for an append.
struct HeldMessages {
    number: u64,
    /// True if an append has this number. Otherwise it is done when those before it are.
    is_append: bool,
    messages: Vec<Message>,
}

/// One member's view of the Raft group.
pub(crate) struct Consensus {
    node: RawNode<Window>,
    election_ticks: usize,
    seed: u64,
    held: VecDeque<HeldMessages>,
    durable_index: u64,
    /// Last index of each append on its way to the disk.
    appending: VecDeque<(u64, u64)>,
    applied: u64,
    applied_term: u64,
}

impl Consensus {
    /// Continues as member `id` from the durable log. `seed` decides the election time-outs.
    pub(crate) fn new(
        id: u64,
        timing: Timing,
        seed: u64,
        reader: Box<dyn LogReader>,
        applied: Applied,
    ) -> Result<Consensus, StoreError> {
        let (applied_index, applied_term) = (applied.index, applied.term);
        let window = Window::open(reader, applied)?;
        let durable_index = window.last();
        let config = Config {
            id,
            election_tick: timing.election_ticks,
            heartbeat_tick: timing.heartbeat_ticks,
            applied: applied_index,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: MESSAGES_IN_FLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: COMMITTED_BYTES_MAX,
            ..Config::default()
        };
        let node = RawNode::new(&config, window, &logger::logger()).map_err(|error| {
            StoreError::Corrupt { what: "the Raft log".to_owned(), at: error.to_string() }
        })?;
        let mut consensus = Consensus {
            node,
            election_ticks: timing.election_ticks,
            seed,
            held: VecDeque::new(),
            durable_index,
            appending: VecDeque::new(),
            applied: applied_index,
            applied_term,
        };
        consensus.draw_election_timeout();
        Ok(consensus)
    }

    /// Chooses the election time-out of this term. The crate draws it from the thread's generator,
    /// which no seed can repeat, so a value that depends on seed and term replaces it.
    fn draw_election_timeout(&mut self) {
        let mut generator = fastrand::Rng::with_seed(self.seed ^ self.term().wrapping_mul(0x9e37));
        let ticks = generator.usize(self.election_ticks..2 * self.election_ticks);
        self.node.raft.set_randomized_election_timeout(ticks);
    }

    /// Notes that the process of another member is gone. If it led, the voters stand one after the other, by their
    /// ids, [`STAND_TICKS`] apart, instead of waiting for the time-out of an election. A leader that lives after all
    /// is followed again with its next heartbeat; a vote needs a majority as ever.
    pub(crate) fn leader_gone(&mut self, member: u64) {
        let raft = &mut self.node.raft;
        if raft.leader_id != member || raft.state != StateRole::Follower {
            return;
        }
        let mut voters = self.node.store().conf_state().voters.clone();
        voters.retain(|voter| *voter != member);
        voters.sort_unstable();
        let own = self.id();
        let Some(rank) = voters.iter().position(|voter| *voter == own) else { return };
        let term = self.term();
        // Without a leader it also grants its vote to others before the time-out.
        self.node.raft.become_follower(term, 0);
        self.draw_election_timeout();
        let timeout = self.node.raft.randomized_election_timeout();
        self.node.raft.election_elapsed = timeout.saturating_sub(1 + STAND_TICKS * rank);
    }

    /// Begins an election without a time-out if this member is the only voter.
    pub(crate) fn campaign_if_alone(&mut self) {
        if !self.may_campaign() {
            return;
        }
        let state = self.node.store().conf_state();
        let is_alone = state.voters == [self.node.raft.id] && state.voters_outgoing.is_empty();
        if is_alone && !self.is_leader() {
            self.node.campaign().expect("a lone voter may campaign");
        }
    }

    /// Takes a state that this replica made itself, as if a leader had sent it. The log begins
    /// there, once [`Consensus::step_ready`] has handed it out.
    pub(crate) fn begin(&mut self, applied: Applied) {
        let mut message = Message { msg_type: MessageType::MsgSnapshot, ..Message::default() };
        message.to = self.id();
        message.term = self.term().max(applied.term);
        let metadata = message.mut_snapshot().mut_metadata();
        metadata.index = applied.index;
        metadata.term = applied.term;
        metadata.set_conf_state(applied.conf_state);
        self.step(message);
        assert!(self.has_snapshot(), "a replica without members takes the first state");
    }

    pub(crate) fn id(&self) -> u64 {
        self.node.raft.id
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Returns the leader, as far as known; 0 for none.
    pub(crate) fn leader(&self) -> u64 {
        self.node.raft.leader_id
    }

    pub(crate) fn term(&self) -> u64 {
        self.node.raft.term
    }

    pub(crate) fn committed(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    pub(crate) fn applied(&self) -> u64 {
        self.applied
    }

    pub(crate) fn applied_term(&self) -> u64 {
        self.applied_term
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    pub(crate) fn conf_state(&self) -> &ConfState {
        self.node.store().conf_state()
    }

    /// True if the crate may begin an election, for which it reads the committed entries that it does not
    /// count as applied. After a snapshot replaced the log they are missing until the snapshot is durable,
    /// because only then does the crate count it as applied.
    fn may_campaign(&self) -> bool {
        self.node.raft.raft_log.applied >= self.node.store().compacted_index()
    }

    /// Counts a tick, unless an installed snapshot is not durable yet.
    pub(crate) fn tick(&mut self) {
        if self.may_campaign() {
            self.node.tick();
        }
        self.draw_election_timeout();
    }

    /// Proposes an entry. True if Raft took it; otherwise the caller keeps it.
    pub(crate) fn propose(&mut self, data: Vec<u8>) -> bool {
        match self.node.propose(Vec::new(), data) {
            Ok(()) => true,
            Err(Error::ProposalDropped) => false,
            Err(error) => panic!("a leader can propose: {error}"),
        }
    }

    /// Proposes a change of members. True if Raft took it, which it does not while another is under
    /// way.
    pub(crate) fn propose_members(&mut self, change: ConfChangeV2) -> bool {
        if self.node.raft.has_pending_conf() {
            return false;
        }
        self.node.propose_conf_change(Vec::new(), change).is_ok()
    }

    /// True if a change of members is under way.
    pub(crate) fn is_changing_members(&self) -> bool {
        self.node.raft.has_pending_conf() || !self.conf_state().voters_outgoing.is_empty()
    }

    /// Applies a committed change of members and returns the new members.
    pub(crate) fn apply_members(&mut self, change: &ConfChangeV2) -> ConfState {
        let state = self.node.apply_conf_change(change).expect("a committed change applies");
        self.node.mut_store().set_conf_state(state.clone());
        state
    }

    /// Asks for an index after which reading is linearizable (Raft thesis, 6.4). The answer can get
    /// lost, so ask again.
    pub(crate) fn read_index(&mut self, context: Vec<u8>) {
        self.node.read_index(context);
    }

    /// Takes a message of another member. Drops messages that make no sense.
    pub(crate) fn step(&mut self, message: Message) {
        let (kind, from) = (message.msg_type, message.from);
        if kind == MessageType::MsgTimeoutNow && !self.may_campaign() {
            return;
        }
        if let Err(error) = self.node.step(message) {
            tracing::debug!(?kind, from, %error, "a Raft message was dropped");
        }
        self.draw_election_timeout();
    }

    /// True if the sender knows that this replica once had entries which its log lacks. A leader
    /// sends a commit index that this replica has confirmed, and a log never loses its end, so the
    /// data directory is an older one.
    pub(crate) fn has_lost(&self, message: &Message) -> bool {
        message.msg_type == MessageType::MsgHeartbeat
            && message.term >= self.term()
            && message.commit > self.last_index()
    }

    pub(crate) fn report_unreachable(&mut self, peer: u64) {
        self.node.report_unreachable(peer);
    }

    pub(crate) fn report_snapshot(&mut self, peer: u64, is_installed: bool) {
        let status = if is_installed { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.node.report_snapshot(peer, status);
    }

    /// True if Raft was given a snapshot that has not taken effect yet.
    pub(crate) fn has_snapshot(&self) -> bool {
        self.node.raft.raft_log.unstable_snapshot().is_some()
    }

    /// Hands leadership over, to the most advanced voter if `to` is 0. True if there is a voter to take it.
    pub(crate) fn transfer(&mut self, to: u64) -> bool {
        let id = self.id();
        let voters = &self.conf_state().voters;
        let target = if to != 0 {
            Some(to).filter(|to| voters.contains(to))
        } else {
            let progress = self.node.raft.prs();
            let others = voters.iter().copied().filter(|&voter| voter != id);
            let active = others.filter(|&voter| {
                progress.get(voter).is_some_and(|progress| progress.recent_active)
            });
            active.max_by_key(|&voter| progress.get(voter).map_or(0, |progress| progress.matched))
        };
        match target {
            Some(target) if self.is_leader() && target != id => {
                self.node.transfer_leader(target);
                true
            }
            _ => false,
        }
    }

    /// Lists how far each other member has the log: id, index, and whether it was active lately.
    pub(crate) fn progress(&self) -> Vec<(u64, u64, bool)> {
        if !self.is_leader() {
            return Vec::new();
        }
        let id = self.id();
        let all = self.node.raft.prs().iter();
        let mut list: Vec<_> = all
            .filter(|(other, _)| **other != id)
            .map(|(other, progress)| (*other, progress.matched, progress.recent_active))
            .collect();
        list.sort_unstable();
        list
    }

    /// True if a snapshot is being sent to a member.
    pub(crate) fn is_in_snapshot(&self, peer: u64) -> bool {
        let progress = self.node.raft.prs().get(peer);
        progress.is_some_and(|progress| progress.state == ProgressState::Snapshot)
    }

    /// Notes that the appends up to `number` are durable, and moves what waited for them to
    /// `messages`.
    pub(crate) fn durable(&mut self, number: u64, messages: &mut Vec<Message>) {
        while self.appending.front().is_some_and(|&(appending, _)| appending <= number) {
            let (_, last) = self.appending.pop_front().expect("there is a first one");
            if last != 0 {
                self.durable_index = last;
            }
        }
        let mut released = None;
        while let Some(held) = self.held.front() {
            if held.is_append && held.number > number {
                break;
            }
            let held = self.held.pop_front().expect("there is a first one");
            released = Some(held.number);
            messages.extend(held.messages);
        }
        if let Some(released) = released {
            self.node.on_persist_ready(released);
            self.advance_apply();
        }
        let keep_from = self.durable_index.min(self.applied);
        self.node.mut_store().shrink(keep_from);
    }

    /// Notes that the state up to `checkpoint` is durable.
    pub(crate) fn set_checkpoint(&mut self, checkpoint: Applied) {
        self.node.mut_store().set_checkpoint(checkpoint);
    }

    pub(crate) fn checkpoint(&self) -> &Applied {
        self.node.store().checkpoint()
    }

    /// Returns the last index that is at least `bytes` behind the end of the log.
    pub(crate) fn index_behind(&self, bytes: u64) -> u64 {
        self.node.store().index_behind(bytes)
    }

    /// Forgets entries up to `index`, as far as they are durable and in the checkpoint. Returns
    /// index and term of the last forgotten one, if any.
    pub(crate) fn compact(&mut self, index: u64) -> Option<(u64, u64)> {
        let known = self.durable_index.min(self.node.raft.raft_log.applied);
        let index = index.min(known).min(self.checkpoint().index);
        Some((index, self.node.mut_store().compact(index)?))
    }

    /// Returns what Raft asks for next. Call this until it returns `None`.
    pub(crate) fn step_ready(&mut self) -> Option<Outputs> {
        if !self.node.has_ready() {
            return None;
        }
        let mut ready = self.node.ready();
        let mut outputs = Outputs { messages: ready.take_messages(), ..Outputs::default() };
        let reads = ready.take_read_states();
        outputs.reads = reads.into_iter().map(|read| (read.request_ctx, read.index)).collect();
        let number = ready.number();
        let restored = restored(ready.snapshot());
        if let Some(applied) = &restored {
            self.node.mut_store().reset(applied.clone());
            self.applied = applied.index;
            self.applied_term = applied.term;
        }
        let entries = ready.take_entries();
        self.node.mut_store().append(&entries);
        if let Some(hard_state) = ready.hs() {
            self.node.mut_store().set_hard_state(hard_state.clone());
        }
        let is_append = ready.must_sync();
        if is_append {
            let reset = restored.as_ref().map(|applied| (applied.index, applied.term));
            self.appending.push_back((number, entries.last().map_or(0, |entry| entry.index)));
            let hard_state = Some(self.hard_state());
            outputs.append = Some(Append { number, reset, entries, hard_state });
        }
        outputs.restored = restored;
        let messages = ready.take_persisted_messages();
        if is_append || !self.held.is_empty() {
            self.held.push_back(HeldMessages { number, is_append, messages });
        } else {
            outputs.messages.extend(messages);
        }
        let is_done = !is_append && self.held.is_empty();
        outputs.committed = ready.take_committed_entries();
        self.node.advance_append_async(ready);
        if is_done {
            self.node.on_persist_ready(number);
        }
        Some(outputs)
    }

    /// Notes that the committed entries up to `index`, which has `term`, are applied. Call this
    /// only after a change of members among them was applied, because Raft may then leave a joint
    /// configuration.
    pub(crate) fn applied_to(&mut self, index: u64, term: u64) {
        self.applied = index;
        self.applied_term = term;
        self.advance_apply();
    }

    fn advance_apply(&mut self) {
        let log = &self.node.raft.raft_log;
        // For Raft a snapshot counts as applied only when it is durable.
        if self.applied > log.applied && self.applied <= log.persisted.min(log.committed) {
            self.node.advance_apply_to(self.applied);
        }
    }

    /// Proposes to leave a joint configuration that a former leader began and did not end.
    pub(crate) fn leave_joint_if_stuck(&mut self) {
        let is_joint = !self.conf_state().voters_outgoing.is_empty();
        if self.is_leader() && is_joint && !self.node.raft.has_pending_conf() {
            self.propose_members(ConfChangeV2::default());
        }
    }

    fn hard_state(&self) -> HardState {
        self.node.raft.hard_state()
    }
}

/// Returns what a snapshot that Raft accepted holds.
fn restored(snapshot: &Snapshot) -> Option<Applied> {
    let metadata = snapshot.get_metadata();
    (metadata.index != 0).then(|| Applied {
        index: metadata.index,
        term: metadata.term,
        conf_state: metadata.get_conf_state().clone(),
    })
}

/// Reads the change of members that a committed entry holds.
pub(crate) fn decode_members(entry: &Entry) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    // The leader wrote it with the same code and the entry's checksum was verified.
    change.merge_from_bytes(&entry.data).expect("a committed change of members is readable");
    change
}

/// True if a message has a snapshot, which is sent in chunks instead.
pub(crate) fn is_snapshot(message: &Message) -> bool {
    message.msg_type == MessageType::MsgSnapshot
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LogState;

    /// A log without entries.
    struct Nothing;

    impl LogReader for Nothing {
        fn initial(&self) -> Result<LogState, StoreError> {
            Ok(LogState::default())
        }

        fn entries(&self, _: u64, _: u64, _: u64) -> Result<Vec<Entry>, StoreError> {
            Ok(Vec::new())
        }

        fn term(&self, _: u64) -> Result<Option<u64>, StoreError> {
            Ok(None)
        }
    }

    #[test]
    fn no_election_begins_while_an_installed_snapshot_is_not_durable() {
        let timing = Timing { election_ticks: 4, heartbeat_ticks: 1 };
        let voters = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
        let none = Applied { conf_state: voters.clone(), ..Applied::default() };
        let mut replica = Consensus::new(3, timing, 7, Box::new(Nothing), none).unwrap();
        replica.begin(Applied { index: 67, term: 2, conf_state: voters });
        let outputs = replica.step_ready().expect("a snapshot");
        assert_eq!(outputs.restored.expect("it is installed").index, 67);
        let number = outputs.append.expect("it is written").number;
        for _ in 0..20 {
            replica.tick();
        }
        let mut now = Message { msg_type: MessageType::MsgTimeoutNow, ..Message::default() };
        (now.from, now.to, now.term) = (1, 3, replica.term());
        replica.step(now);
        replica.campaign_if_alone();
        replica.durable(number, &mut Vec::new());
        let before = replica.term();
        let mut messages = Vec::new();
        for _ in 0..20 {
            replica.tick();
            while let Some(outputs) = replica.step_ready() {
                messages.extend(outputs.messages);
                if let Some(append) = outputs.append {
                    replica.durable(append.number, &mut messages);
                }
            }
        }
        let asks = |message: &Message| message.msg_type == MessageType::MsgRequestPreVote;
        assert!(messages.iter().any(asks), "then one does, in term {before}: {messages:?}");
    }
}
