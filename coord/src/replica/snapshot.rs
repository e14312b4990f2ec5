//! Snapshots: a follower that is too far behind for the log gets the whole state in chunks.
//!
//! The chunks come from a consistent view of the leader's durable state, so nothing waits for them. The
//! receiver stores them apart from its own state. When all chunks are there, they replace the state, and
//! only then Raft gets the snapshot. In between nothing is applied, because the state is newer than Raft
//! knows.

use ::raft::eraftpb::Message;

use super::message::{PeerMessage, set_snapshot};
use super::{Action, Replica, StateAction};
use crate::state::{Changes, State};
use crate::store::Applied;

/// Most chunks on their way to a follower that it has not stored yet.
const CHUNKS_IN_FLIGHT_MAX: u32 = 4;

/// A snapshot on its way to a follower.
pub(super) struct Sending {
    /// The message that Raft sends the follower.
    message: Message,
    chunks_in_flight: u32,
    /// True if the view is being read.
    is_reading: bool,
    is_at_end: bool,
}

/// A snapshot on its way from a leader.
pub(super) struct Receiving {
    peer: u64,
    message: Message,
    /// True if all chunks are there and are replacing the state.
    is_installing: bool,
    /// The new state, after its installation and before Raft takes it.
    installed: Option<(Applied, State)>,
}

impl Replica {
    /// True if the state on disk is being replaced.
    pub(super) fn is_installing(&self) -> bool {
        self.receiving
            .as_ref()
            .is_some_and(|receiving| receiving.is_installing && receiving.installed.is_none())
    }

    fn send_peer(&self, peer: u64, message: &PeerMessage<'_>, actions: &mut Vec<Action>) {
        actions.push(Action::SendPeer { peer, message: message.encode() });
    }

    // The leader's side.

    pub(super) fn begin_sending(&mut self, message: Message, actions: &mut Vec<Action>) {
        let peer = message.to;
        if !self.connected.contains(&peer) {
            self.consensus.report_snapshot(peer, false);
            return;
        }
        if self.sending.contains_key(&peer) {
            return;
        }
        tracing::info!(peer, "sending a snapshot");
        self.metrics.snapshots_sent += 1;
        let sending = Sending { message, chunks_in_flight: 0, is_reading: false, is_at_end: false };
        self.sending.insert(peer, sending);
        actions.push(StateAction::OpenSnapshot { peer }.into());
    }

    pub(super) fn snapshot_opened(
        &mut self,
        peer: u64,
        applied: Applied,
        actions: &mut Vec<Action>,
    ) {
        let Some(sending) = self.sending.get_mut(&peer) else {
            return actions.push(StateAction::CloseSnapshot { peer }.into());
        };
        // The durable state may be newer than what Raft asked for, which is as good.
        set_snapshot(&mut sending.message, applied);
        sending.is_reading = true;
        let message = PeerMessage::SnapshotBegin(sending.message.clone());
        self.send_peer(peer, &message, actions);
        actions.push(StateAction::ReadSnapshot { peer }.into());
    }

    pub(super) fn snapshot_chunk(
        &mut self,
        peer: u64,
        chunk: Option<Vec<u8>>,
        actions: &mut Vec<Action>,
    ) {
        let Some(sending) = self.sending.get_mut(&peer) else { return };
        sending.is_reading = false;
        let Some(chunk) = chunk else {
            sending.is_at_end = true;
            self.send_peer(peer, &PeerMessage::SnapshotEnd, actions);
            return actions.push(StateAction::CloseSnapshot { peer }.into());
        };
        sending.chunks_in_flight += 1;
        if sending.chunks_in_flight < CHUNKS_IN_FLIGHT_MAX {
            sending.is_reading = true;
            actions.push(StateAction::ReadSnapshot { peer }.into());
        }
        self.send_peer(peer, &PeerMessage::SnapshotChunk { chunk: &chunk }, actions);
    }

    pub(super) fn send_more(&mut self, peer: u64, actions: &mut Vec<Action>) {
        let Some(sending) = self.sending.get_mut(&peer) else { return };
        sending.chunks_in_flight = sending.chunks_in_flight.saturating_sub(1);
        if !sending.is_reading && !sending.is_at_end {
            sending.is_reading = true;
            actions.push(StateAction::ReadSnapshot { peer }.into());
        }
    }

    pub(super) fn snapshot_done(
        &mut self,
        peer: u64,
        is_installed: bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(sending) = self.sending.remove(&peer) else { return };
        tracing::info!(peer, is_installed, "a snapshot was sent");
        self.consensus.report_snapshot(peer, is_installed);
        if !sending.is_at_end {
            actions.push(StateAction::CloseSnapshot { peer }.into());
        }
    }

    pub(super) fn stop_sending_snapshot(&mut self, peer: u64, actions: &mut Vec<Action>) {
        self.snapshot_done(peer, false, actions);
    }

    pub(super) fn stop_sending_snapshots(&mut self, actions: &mut Vec<Action>) {
        let mut peers: Vec<u64> = self.sending.keys().copied().collect();
        peers.sort_unstable();
        for peer in peers {
            self.stop_sending_snapshot(peer, actions);
        }
    }

    // The follower's side.

    pub(super) fn begin_receiving(
        &mut self,
        peer: u64,
        message: Message,
        actions: &mut Vec<Action>,
    ) {
        // A snapshot that is replacing the state is not disturbed, and a first state is not either.
        let is_first = self.is_founding();
        if is_first || self.receiving.as_ref().is_some_and(|receiving| receiving.is_installing) {
            return self.send_peer(
                peer,
                &PeerMessage::SnapshotDone { is_installed: false },
                actions,
            );
        }
        // A leader of an earlier term is ignored.
        if message.term < self.consensus.term() {
            return self.send_peer(
                peer,
                &PeerMessage::SnapshotDone { is_installed: false },
                actions,
            );
        }
        let index = message.get_snapshot().get_metadata().index;
        if message.from != peer || index <= self.consensus.committed() {
            // The snapshot brings nothing new. Raft reports to the leader how far this replica is.
            self.consensus.step(message);
            return self.send_peer(
                peer,
                &PeerMessage::SnapshotDone { is_installed: true },
                actions,
            );
        }
        tracing::info!(peer, index, "receiving a snapshot");
        self.metrics.snapshots_received += 1;
        self.receiving = Some(Receiving { peer, message, is_installing: false, installed: None });
        actions.push(StateAction::BeginInstall { peer }.into());
    }

    pub(super) fn receive_chunk(&mut self, peer: u64, chunk: &[u8], actions: &mut Vec<Action>) {
        let is_expected = self
            .receiving
            .as_ref()
            .is_some_and(|receiving| receiving.peer == peer && !receiving.is_installing);
        if is_expected {
            actions.push(StateAction::StoreSnapshot { peer, chunk: chunk.to_vec() }.into());
        } else {
            self.refuse_snapshot_of(peer, actions);
        }
    }

    /// Lets a peer that sends us a snapshot begin again, because our answers to it were lost or another
    /// leader has replaced it. A complete snapshot is still installed.
    pub(super) fn refuse_snapshot_of(&mut self, peer: u64, actions: &mut Vec<Action>) {
        if let Some(receiving) = self.receiving.take_if(|receiving| receiving.peer == peer)
            && receiving.is_installing
        {
            self.receiving = Some(receiving);
            return;
        }
        self.send_peer(peer, &PeerMessage::SnapshotDone { is_installed: false }, actions);
    }

    pub(super) fn snapshot_stored(&mut self, peer: u64, actions: &mut Vec<Action>) {
        self.send_peer(peer, &PeerMessage::SnapshotMore, actions);
    }

    pub(super) fn end_receiving(&mut self, peer: u64, actions: &mut Vec<Action>) {
        let Some(receiving) = &mut self.receiving else { return };
        if receiving.peer != peer || receiving.is_installing {
            return;
        }
        let index = receiving.message.get_snapshot().get_metadata().index;
        if index <= self.consensus.committed() {
            // The log brought this replica further in the meantime, and the state on disk must not go back.
            self.receiving = None;
            let message = PeerMessage::SnapshotDone { is_installed: true };
            return self.send_peer(peer, &message, actions);
        }
        receiving.is_installing = true;
        actions.push(StateAction::FinishInstall { peer }.into());
    }

    pub(super) fn snapshot_installed(
        &mut self,
        peer: u64,
        applied: Applied,
        state: State,
        actions: &mut Vec<Action>,
    ) {
        let Some(receiving) = &mut self.receiving else {
            panic!("only a snapshot that was asked for is installed");
        };
        let mut message = receiving.message.clone();
        set_snapshot(&mut message, applied.clone());
        receiving.installed = Some((applied, state));
        // Raft may have reached a later term. The snapshot is still right, because what a majority has
        // agreed on stays, so it is taken whichever replica leads now.
        message.term = message.term.max(self.consensus.term());
        self.consensus.step(message);
        if !self.consensus.has_snapshot() {
            // The state on disk is the snapshot's, and its entries are all committed. So starting from it
            // is safe, and continuing with the state in memory is not.
            let reason = "Raft refused an installed snapshot: start the replica again".to_owned();
            actions.push(Action::Stop { reason });
            self.is_failed = true;
            return;
        }
        self.send_peer(peer, &PeerMessage::SnapshotDone { is_installed: true }, actions);
    }

    pub(super) fn snapshot_refused(&mut self, peer: u64, error: &str, actions: &mut Vec<Action>) {
        tracing::warn!(peer, error, "a received snapshot was not installed");
        self.receiving = None;
        self.send_peer(peer, &PeerMessage::SnapshotDone { is_installed: false }, actions);
    }

    /// Replaces the state, because Raft took a snapshot or the first state of a new ensemble.
    pub(super) fn take_restored(&mut self, applied: &Applied, actions: &mut Vec<Action>) {
        let had_none = self.founding.is_some();
        if self.end_founding() {
            self.changes = Changes::default();
            self.read_members(actions);
        } else {
            self.take_installed(applied, actions);
        }
        // The peers were sent that there is no data here, which is not true any more.
        if had_none {
            for &peer in &self.connected {
                self.tell_holding(peer, actions);
            }
        }
    }

    /// Makes a received state this replica's own.
    fn take_installed(&mut self, applied: &Applied, actions: &mut Vec<Action>) {
        let installed = self.receiving.take().and_then(|receiving| receiving.installed);
        let (installed_at, state) = installed.expect("Raft restores what was installed before");
        assert!(installed_at.index == applied.index, "Raft restores what was installed");
        self.state = state;
        self.changes = Changes::default();
        // What our clients watch may have changed without an event. They reconnect and set their watches
        // again, and so get the events.
        let all: Vec<_> = self.clients.iter().flatten().map(|client| client.id).collect();
        for client in all {
            self.close_client(client, actions);
        }
        self.read_members(actions);
    }
}
