//! Consensus: a thin driver around the crate `raft`, which decides; this one moves.
//!
//! Owns the Raft node, the end of the log in memory, and what waits for the disk. Each
//! [`Consensus::step_ready`] hands out what Raft wants done, in the order that keeps it safe:
//!
//! ```text
//!  messages of a leader      at once, while its own disk still syncs (Raft thesis, 10.2.1)
//!  entries, vote, term       to the log thread: `Append`, one durable commit for all that wait
//!  messages of a follower    held until the append they promise is durable
//!  committed entries         applied at once: a majority has them on disk
//! ```
//!
//! Knows nothing of what entries hold. A change of the commit index alone is not worth a commit: it
//! travels with the next append and is learned again after a crash.

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
/// Bytes of proposals that are not committed yet; above it proposals are dropped by Raft, and kept
/// by the caller.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
/// Bytes of committed entries handed out at once, so that a long replay does not block the loop.
const COMMITTED_BYTES_MAX: u64 = 4 << 20;

/// Timing of elections, counted in ticks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Ticks without a leader's message until an election; up to twice as many by chance.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
}

/// What one step of Raft wants done, beside the appends.
#[derive(Default)]
pub(crate) struct Outputs {
    /// To be sent now, in order.
    pub messages: Vec<Message>,
    /// To be applied now, in order.
    pub committed: Vec<Entry>,
    /// Contexts of `read_index` and the index that must be applied before reading.
    pub reads: Vec<(Vec<u8>, u64)>,
    /// To be made durable; answered by [`Consensus::durable`].
    pub append: Option<Append>,
    /// A received snapshot took effect: the state must be replaced by what was installed.
    pub restored: Option<Applied>,
}

/// Messages that wait for an append.
struct Held {
    number: u64,
    /// Whether an append carries this number; else it is done when those before it are.
    is_append: bool,
    messages: Vec<Message>,
}

/// One member's view of the Raft group.
pub(crate) struct Consensus {
    node: RawNode<Window>,
    election_ticks: usize,
    seed: u64,
    held: VecDeque<Held>,
    durable_index: u64,
    /// Last index of each append on its way to the disk.
    appending: VecDeque<(u64, u64)>,
    applied: u64,
    applied_term: u64,
}

impl Consensus {
    /// Continues as member `id` from what is durable. `seed` decides the election time-outs.
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
    /// which no seed can repeat, so its choice is replaced by one that depends on seed and term.
    fn draw_election_timeout(&mut self) {
        let mut generator = fastrand::Rng::with_seed(self.seed ^ self.term().wrapping_mul(0x9e37));
        let ticks = generator.usize(self.election_ticks..2 * self.election_ticks);
        self.node.raft.set_randomized_election_timeout(ticks);
    }

    /// Whether this member alone decides; then it need not wait for an election time-out.
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

    /// Takes up a state that this replica made itself, as if a leader had sent it: with what
    /// [`Consensus::step_ready`] then gives, the log begins there.
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

    /// The leader as far as is known; 0 for none.
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

    /// True if the crate may look at the committed entries that it does not count as applied, which it
    /// does before an election: they are in the log. Not so between a snapshot that took the place of
    /// the log and the moment when that is durable: only then does the crate count it as applied.
    fn may_campaign(&self) -> bool {
        self.node.raft.raft_log.applied >= self.node.store().compacted_index()
    }

    /// Counts a tick, but for one while an installed snapshot is not durable.
    pub(crate) fn tick(&mut self) {
        if self.may_campaign() {
            self.node.tick();
        }
        self.draw_election_timeout();
    }

    /// Proposes an entry. `false`: not now, keep it.
    pub(crate) fn propose(&mut self, data: Vec<u8>) -> bool {
        match self.node.propose(Vec::new(), data) {
            Ok(()) => true,
            Err(Error::ProposalDropped) => false,
            Err(error) => panic!("a leader can propose: {error}"),
        }
    }

    /// Proposes a change of members. `false`: another is under way, or not now.
    pub(crate) fn propose_members(&mut self, change: ConfChangeV2) -> bool {
        if self.node.raft.has_pending_conf() {
            return false;
        }
        self.node.propose_conf_change(Vec::new(), change).is_ok()
    }

    /// Whether a change of members is under way.
    pub(crate) fn is_changing_members(&self) -> bool {
        self.node.raft.has_pending_conf() || !self.conf_state().voters_outgoing.is_empty()
    }

    /// Applies a committed change of members; gives what the members are now.
    pub(crate) fn apply_members(&mut self, change: &ConfChangeV2) -> ConfState {
        let state = self.node.apply_conf_change(change).expect("a committed change applies");
        self.node.mut_store().set_conf_state(state.clone());
        state
    }

    /// Asks for an index after which reading is linearizable (Raft thesis, 6.4). The answer may
    /// never come: ask again.
    pub(crate) fn read_index(&mut self, context: Vec<u8>) {
        self.node.read_index(context);
    }

    /// Takes a message of another member. Messages that make no sense are dropped.
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

    /// True if the sender knows entries to be durable here that this log does not have. A leader
    /// tells a commit index that this replica has confirmed, and a log never forgets its end, so the
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

    /// Whether Raft was given a snapshot that has not taken effect yet.
    pub(crate) fn has_snapshot(&self) -> bool {
        self.node.raft.raft_log.unstable_snapshot().is_some()
    }

    /// Hands leadership over, to the most advanced voter if `to` is 0. `false`: there is none.
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

    /// How far each other member has the log: id, index, whether it was heard of lately.
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

    /// Whether a member is being sent a snapshot.
    pub(crate) fn is_in_snapshot(&self, peer: u64) -> bool {
        let progress = self.node.raft.prs().get(peer);
        progress.is_some_and(|progress| progress.state == ProgressState::Snapshot)
    }

    /// The appends up to `number` are durable: releases what waited, into `messages`.
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

    /// The state up to `checkpoint` is durable.
    pub(crate) fn set_checkpoint(&mut self, checkpoint: Applied) {
        self.node.mut_store().set_checkpoint(checkpoint);
    }

    pub(crate) fn checkpoint(&self) -> &Applied {
        self.node.store().checkpoint()
    }

    /// The last index that is at least `bytes` behind the end of the log.
    pub(crate) fn index_behind(&self, bytes: u64) -> u64 {
        self.node.store().index_behind(bytes)
    }

    /// Forgets entries up to `index`, as far as they are durable and in the checkpoint; gives how far
    /// that was, as index and term, if it did something.
    pub(crate) fn compact(&mut self, index: u64) -> Option<(u64, u64)> {
        let known = self.durable_index.min(self.node.raft.raft_log.applied);
        let index = index.min(known).min(self.checkpoint().index);
        Some((index, self.node.mut_store().compact(index)?))
    }

    /// What Raft wants done next, or `None` when it is content. Call until `None`.
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
            self.held.push_back(Held { number, is_append, messages });
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

    /// The committed entries up to `index`, whose term is `term`, have been applied. Not before a
    /// change of members among them was: Raft may leave a joint configuration upon this.
    pub(crate) fn applied_to(&mut self, index: u64, term: u64) {
        self.applied = index;
        self.applied_term = term;
        self.advance_apply();
    }

    fn advance_apply(&mut self) {
        let log = &self.node.raft.raft_log;
        // A snapshot counts as applied for Raft only when it is durable.
        if self.applied > log.applied && self.applied <= log.persisted.min(log.committed) {
            self.node.advance_apply_to(self.applied);
        }
    }

    /// Proposes to leave a joint configuration that a former leader began and nobody ended.
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

/// What a snapshot that Raft accepted stands for.
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

/// Whether a message carries a snapshot, which is sent in chunks instead.
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
