//! What replicas ask for, done in virtual time: turns, disks, streams.

use millrace_coord::command::Batch;
use millrace_coord::replica::{Action, Event as Told};
use millrace_coord::store::Append;

use super::{Canary, Event, World};
use crate::node::Node;
use crate::observe::Seen;

/// Longest time between something that happens to a replica and its turn.
const TURN_US_MAX: u64 = 300;

impl World {
    pub(super) fn start(&mut self, node: usize) {
        if self.nodes[node].is_up() {
            return;
        }
        let chance = self.random.u64(1..);
        if let Err(error) = self.nodes[node].start(&self.options, self.now_us, chance) {
            let id = self.nodes[node].id;
            if self.take_back(node) {
                return self.note(format_args!("replica {id} does not start: {error}"));
            }
            return self.fail("what lists ask for is done", format_args!("replica {id}: {error}"));
        }
        let replica = self.nodes[node].replica.as_ref().expect("it was started");
        let (applied, id) = (replica.applied(), self.nodes[node].id);
        self.note(format_args!("replica {id} starts, applied {applied}"));
        self.see(&Seen::Disturbed { node });
        self.turn_soon(node);
    }

    /// Hands an event to a replica; its turn follows.
    pub(super) fn handle(&mut self, node: usize, event: Told<'_>) {
        if matches!(event, Told::SnapshotInstalled { .. }) {
            self.tally.snapshots += 1;
        }
        let now = self.nodes[node].now(self.now_us);
        let target = &mut self.nodes[node];
        let Some(replica) = &mut target.replica else { return };
        replica.handle(now, event, &mut target.actions);
        self.turn_soon(node);
    }

    fn turn_soon(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].is_turn_due, true) {
            let delay_us = self.random.u64(0..TURN_US_MAX);
            let life = self.nodes[node].life;
            self.push(self.now_us + delay_us, Event::Turn { node, life });
        }
    }

    pub(super) fn turn(&mut self, node: usize) {
        self.forge_holdings(node);
        let now = self.nodes[node].now(self.now_us);
        let target = &mut self.nodes[node];
        target.is_turn_due = false;
        let Some(replica) = &mut target.replica else { return };
        let deadline_ms = replica.turn(now, &mut target.actions);
        let actions = std::mem::take(&mut target.actions);
        if deadline_ms != u64::MAX {
            let wake_us = target.moment_us(deadline_ms).max(self.now_us + 1);
            let life = target.life;
            if wake_us < target.wake_us {
                target.wake_us = wake_us;
                self.push(wake_us, Event::Wake { node, life });
            }
        }
        for action in actions {
            self.act(node, action);
        }
        self.begin_work(node);
        let life = self.nodes[node].life;
        let Some(replica) = self.nodes[node].replica.take() else { return };
        self.see(&Seen::Turned { node, life, replica: &replica });
        if replica.is_formed() && replica.leadership().1 {
            let cluster_id = self.cluster_id(node);
            self.see(&Seen::Leads { node, cluster_id });
        }
        let may_stop = replica.may_stop();
        self.nodes[node].replica = Some(replica);
        self.take_messages(node);
        if self.nodes[node].failure.is_some() || (self.nodes[node].is_stopping && may_stop) {
            self.stop(node);
        }
    }

    /// Ends a process by itself: what is queued for the disk is written first, if the disk works.
    fn stop(&mut self, node: usize) {
        let reason = self.nodes[node].failure.clone().unwrap_or_default();
        self.note(format_args!("replica {} stops: {reason}", node + 1));
        let now_ms = self.now_us / 1000;
        self.nodes[node].finish(now_ms);
        self.crash(node);
        // An operator starts it again.
        let delay_us = self.random.u64(100_000..2_000_000);
        self.push(self.now_us + delay_us, Event::Start { node });
    }

    fn act(&mut self, node: usize, action: Action) {
        match action {
            Action::Send { client } => self.send(node, client),
            Action::CloseClient { client } => self.close_client(node, client),
            Action::SendPeer { peer, message } => self.send_peer(node, peer, message),
            Action::Peers { company } => {
                if let Some(admission) = &mut self.nodes[node].admission {
                    admission.set_company(&company);
                }
                let ids = company.members.iter().map(|member| member.id).collect();
                self.set_peers(node, ids);
            }
            Action::Found { cluster_id } => self.found(node, cluster_id),
            Action::Listed { listed } => {
                if let Some(admission) = &mut self.nodes[node].admission {
                    admission.set_listed(listed);
                }
            }
            Action::Append { append } => {
                self.look_at(node, &append);
                self.nodes[node].append(append);
            }
            Action::CompactLog { index, term } => self.nodes[node].compact(index, term),
            Action::AdminReply { reply, .. } => self.note(format_args!("operator: {reply:?}")),
            Action::Stop { reason } => self.nodes[node].failure = Some(reason),
            Action::State(action) => self.nodes[node].ask(action),
        }
    }

    /// Shows the checkers what a leader proposes: entries of its own term, first seen in its log.
    fn look_at(&mut self, node: usize, append: &Append) {
        let Some(replica) = &self.nodes[node].replica else { return };
        let (term, leads) = replica.leadership();
        if !leads {
            return;
        }
        for entry in append.entries.iter().filter(|entry| entry.term == term) {
            let Ok(mut batch) = Batch::decode(&entry.data) else { continue };
            while let Ok(Some(command)) = batch.next_command() {
                self.see(&Seen::Proposed { leader: node, command: &command });
            }
        }
    }

    // Disks.

    fn sync_us(&mut self, node: usize) -> u64 {
        let usual = self.random.u64(20..20 + self.options.sync_us_max);
        match self.now_us < self.nodes[node].slow_disk_until_us {
            true => usual + self.random.u64(0..500_000),
            false => usual,
        }
    }

    fn begin_work(&mut self, node: usize) {
        let life = self.nodes[node].life;
        if let Some(number) = self.nodes[node].begin_sync() {
            let done_us = self.now_us + self.sync_us(node);
            self.push(done_us, Event::Synced { node, life });
            if self.has_canary(Canary::EarlyDurable) {
                self.push(self.now_us, Event::EarlyDurable { node, life, number });
            }
        }
        if self.nodes[node].begin_job(self.now_us / 1000) {
            let done_us = self.now_us + self.sync_us(node);
            self.push(done_us, Event::JobDone { node, life });
        }
        let due_ms = self.nodes[node].checkpoint_due_ms();
        let planned_ms = std::mem::replace(&mut self.nodes[node].planned_ms, due_ms);
        if let Some(due_ms) = due_ms.filter(|_| due_ms != planned_ms) {
            self.push(due_ms * 1000, Event::CheckpointDue { node, life });
        }
    }

    pub(super) fn synced(&mut self, node: usize) {
        let event = self.nodes[node].end_sync();
        match event {
            // The canary has reported it already.
            Some(Told::LogDurable { .. }) if self.has_canary(Canary::EarlyDurable) => {}
            Some(event) => self.handle(node, event),
            None => {}
        }
        self.begin_work(node);
    }

    pub(super) fn job_done(&mut self, node: usize) {
        if let Some(event) = self.nodes[node].end_job() {
            self.handle(node, event);
        }
        self.begin_work(node);
    }

    pub(super) fn checkpoint_due(&mut self, node: usize) {
        let due_ms = self.nodes[node].checkpoint_due_ms();
        if due_ms.is_some_and(|due_ms| due_ms * 1000 <= self.now_us) {
            self.nodes[node].ask_commit();
            self.begin_work(node);
        }
    }

    // Streams.

    fn index_of(&self, id: u64) -> usize {
        id as usize - 1
    }

    fn set_peers(&mut self, node: usize, ids: Vec<u64>) {
        for id in std::mem::replace(&mut self.nodes[node].peers, ids.clone()) {
            if !ids.contains(&id) {
                let to = self.index_of(id);
                self.break_stream(node, to);
            }
        }
        for id in ids {
            let to = self.index_of(id);
            self.dial(node, to);
        }
    }

    /// Makes both sides check each other, as at the beginning of each stream.
    fn greet(&mut self, from: usize, to: usize) -> Result<(), String> {
        let (from_id, to_id) = (self.nodes[from].id, self.nodes[to].id);
        let admission = |node: &mut Node| node.admission.take().ok_or("it is down".to_owned());
        let mut ours = admission(&mut self.nodes[from])?;
        let mut theirs = admission(&mut self.nodes[to])?;
        let judged = theirs.judge(&ours.hello(to_id));
        let judged = judged.and_then(|()| ours.judge(&theirs.hello(from_id)));
        self.nodes[from].admission = Some(ours);
        self.nodes[to].admission = Some(theirs);
        judged
    }

    fn dial(&mut self, from: usize, to: usize) {
        self.dial_within(from, to, 100_000);
    }

    /// Dials a replica that refused us, less often.
    fn dial_later(&mut self, from: usize, to: usize) {
        self.dial_within(from, to, 1_500_000);
    }

    fn dial_within(&mut self, from: usize, to: usize, within_us: u64) {
        let stream = self.network.stream(from, to);
        if !stream.is_open && !std::mem::replace(&mut stream.is_dialling, true) {
            let delay_us = self.random.u64(1_000..within_us);
            self.push(self.now_us + delay_us, Event::Dialled { from, to });
        }
    }

    pub(super) fn dialled(&mut self, from: usize, to: usize) {
        self.network.stream(from, to).is_dialling = false;
        let peer = self.nodes[to].id;
        if !self.nodes[from].is_up() || !self.nodes[from].peers.contains(&peer) {
            return;
        }
        // A handshake goes both ways.
        let now_us = self.now_us;
        let there = self.network.stream(from, to).blocked_until_us;
        let back = self.network.stream(to, from).blocked_until_us;
        let is_awake = self.nodes[to].is_up() && self.nodes[to].paused_until_us <= now_us;
        let is_down = !self.nodes[to].is_up();
        // A process that has ended refuses. Now and then another one does, too: the guess may be wrong.
        let refuses = if is_down { self.random.bool() } else { self.random.u8(..) == 0 };
        if refuses && there.max(back) <= now_us {
            self.handle(from, Told::PeerGone { peer });
        }
        if !is_awake || there.max(back) > now_us {
            return self.dial(from, to);
        }
        if let Err(why) = self.greet(from, to) {
            let (from_id, to_id) = (self.nodes[from].id, self.nodes[to].id);
            self.note(format_args!("no stream from {from_id} to {to_id}: {why}"));
            return self.dial_later(from, to);
        }
        let to_life = self.nodes[to].life;
        self.network.open(from, to, now_us, to_life);
        self.see(&Seen::Disturbed { node: from });
        self.handle(from, Told::PeerConnected { peer });
    }

    fn send_peer(&mut self, from: usize, peer: u64, message: Vec<u8>) {
        let to = self.index_of(peer);
        let stream = self.network.stream(from, to);
        let to_life = stream.to_life;
        // The sender learned then that the stream broke.
        if !stream.is_open {
            return;
        }
        stream.carried.push_back((to_life, message));
        let number = stream.number;
        let at_us = self.network.arrival_us(from, to, self.now_us, &mut self.random);
        self.push(at_us, Event::Arrives { from, to, number });
    }

    pub(super) fn arrives(&mut self, from: usize, to: usize, number: u64) {
        let stream = self.network.stream(from, to);
        if stream.number != number {
            return;
        }
        if stream.blocked_until_us > self.now_us {
            let at_us = stream.blocked_until_us;
            self.push(at_us, Event::Arrives { from, to, number });
            return;
        }
        let Some((to_life, message)) = stream.carried.pop_front() else { return };
        if self.is_alive(to, to_life) {
            self.deliver(from, to, &message);
        }
    }

    pub(super) fn deliver(&mut self, from: usize, to: usize, message: &[u8]) {
        std::hash::Hasher::write(&mut self.hash, message);
        let peer = self.nodes[from].id;
        let kind = message.first().copied().unwrap_or_default();
        self.note(format_args!(
            "replica {} hears {peer}: kind {kind}, {} bytes",
            to + 1,
            message.len()
        ));
        self.handle(to, Told::PeerMessage { peer, message });
    }

    /// Breaks a stream: its sender hears of it, its messages are lost or late.
    pub(super) fn break_stream(&mut self, from: usize, to: usize) {
        let Some(carried) = self.network.close(from, to) else { return };
        for (to_life, message) in carried {
            if self.options.is_late && !self.is_healing && self.random.u8(0..3) == 0 {
                let at_us = self.now_us + self.random.u64(0..1_000_000);
                self.push(at_us, Event::ArrivesLate { from, to, to_life, message });
            }
        }
        self.see(&Seen::Disturbed { node: from });
        self.see(&Seen::Disturbed { node: to });
        if self.nodes[from].is_up() {
            let life = self.nodes[from].life;
            self.push(self.now_us, Event::Lost { from, life, to });
            if self.nodes[from].peers.contains(&self.nodes[to].id) {
                self.dial(from, to);
            }
        }
    }
}
