//! Faults: which comes next, what it does, and the end of all of them.

use millrace_coord::replica::AdminRequest;
use millrace_coord::store::memory::Part;

use super::{Event, World};
use crate::client::Phase;
use crate::node::member;
use crate::observe::Seen;
use crate::options::Fault;

impl World {
    /// Makes one fault and plans the next.
    pub(super) fn fault(&mut self) {
        if self.is_healing {
            return;
        }
        let interval_us = self.options.fault_interval_ms * 1000;
        let next_us = self.now_us + self.random.u64(interval_us / 4..2 * interval_us);
        self.push(next_us, Event::Fault);
        let Some(fault) = self.random.choice(self.options.faults.clone()) else { return };
        let node = self.random.usize(0..self.nodes.len());
        let client = self.random.usize(0..self.clients.len());
        let lasts_us = self.random.u64(10_000..self.options.fault_ms_max * 1000);
        let until_us = self.now_us + lasts_us;
        self.note(format_args!("fault {fault:?} at replica {} or client {client}", node + 1));
        self.tally.faults += 1;
        match fault {
            Fault::Crash => self.crash_for(node, until_us),
            Fault::CrashAll => {
                for node in 0..self.nodes.len() {
                    let until_us = until_us + self.random.u64(0..500_000);
                    self.crash_for(node, until_us);
                }
            }
            Fault::Stop => self.ask_to_stop(node),
            Fault::Pause => self.nodes[node].paused_until_us = until_us,
            Fault::Break => {
                let to = self.other(node);
                self.break_stream(node, to);
            }
            Fault::PartitionOneWay => {
                let to = self.other(node);
                self.partition(node, to, until_us);
            }
            Fault::PartitionNode => {
                for other in (0..self.nodes.len()).filter(|&other| other != node) {
                    self.partition(node, other, until_us);
                    self.partition(other, node, until_us);
                }
            }
            Fault::SlowNetwork => self.network.slow_until_us = until_us,
            Fault::SlowDisk => self.nodes[node].slow_disk_until_us = until_us,
            Fault::FailSync => {
                let part = if self.random.bool() { Part::Log } else { Part::State };
                if self.nodes[node].is_up() {
                    self.nodes[node].fail_next_sync(part);
                }
            }
            Fault::ClockJump => {
                self.nodes[node].wall_offset_ms += self.random.i64(-100_000..100_000);
            }
            Fault::Transfer => {
                if let Some(leader) = self.leader() {
                    let to = self.nodes[node].id;
                    self.ask_operator(leader, AdminRequest::Transfer { to });
                }
            }
            Fault::CutClient => self.cut(client),
            Fault::SilenceClient => {
                if self.clients[client].phase == Phase::Open {
                    let timeout_us = self.options.session_timeout_ms * 1000;
                    let until_us = self.now_us + self.random.u64(timeout_us / 2..2 * timeout_us);
                    self.clients[client].phase = Phase::Silent { until_us };
                }
            }
            Fault::Reconfigure => self.reconfigure(node),
        }
        self.disturb(fault, node);
    }

    fn other(&mut self, node: usize) -> usize {
        (node + self.random.usize(1..self.nodes.len())) % self.nodes.len()
    }

    fn disturb(&mut self, fault: Fault, node: usize) {
        let is_for_all = matches!(fault, Fault::SlowNetwork | Fault::CrashAll | Fault::Reconfigure);
        for other in 0..self.nodes.len() {
            if other == node || is_for_all {
                self.see(&Seen::Disturbed { node: other });
            }
        }
    }

    /// Crashes a replica: what is not durable is gone, but a sync under way may still have reached the
    /// disk.
    pub(super) fn crash(&mut self, node: usize) {
        if !self.nodes[node].is_up() {
            return;
        }
        self.tally.crashes += 1;
        for part in [Part::Log, Part::State] {
            if self.random.bool() {
                self.nodes[node].sync_silently(part);
            }
        }
        self.nodes[node].crash(&self.options);
        self.push(self.now_us, Event::Resume { node });
        self.note(format_args!("replica {} is down", node + 1));
        self.see(&Seen::Disturbed { node });
        self.drop_links(node);
        for other in (0..self.nodes.len()).filter(|&other| other != node) {
            self.break_stream(node, other);
            // The other side notices in its own time.
            let number = self.network.stream(other, node).number;
            let notices_us = self.now_us + self.random.u64(0..300_000);
            self.push(notices_us, Event::Breaks { from: other, to: node, number });
        }
    }

    fn crash_for(&mut self, node: usize, until_us: u64) {
        self.crash(node);
        self.push(until_us, Event::Start { node });
    }

    fn ask_to_stop(&mut self, node: usize) {
        let target = &mut self.nodes[node];
        let Some(replica) = &mut target.replica else { return };
        replica.shut_down();
        target.is_stopping = true;
    }

    /// Lets one direction carry nothing for a while; if that takes long, its stream breaks.
    fn partition(&mut self, from: usize, to: usize, until_us: u64) {
        self.network.block(from, to, until_us);
        let breaks_us = self.now_us + self.random.u64(200_000..1_500_000);
        let number = self.network.stream(from, to).number;
        if breaks_us < until_us {
            self.push(breaks_us, Event::Breaks { from, to, number });
        }
        for node in [from, to] {
            self.see(&Seen::Disturbed { node });
        }
    }

    /// Takes a member out, or asks one back that left.
    fn reconfigure(&mut self, node: usize) {
        let Some(leader) = self.leader() else { return };
        let id = self.nodes[node].id;
        let replica = self.nodes[leader].replica.as_ref().expect("a leader is up");
        let members = replica.state().config_text();
        let is_gone = |id: u64| !members.contains(&format!("server.{id}="));
        let gone = self.nodes.iter().position(|node| is_gone(node.id));
        let request = match gone {
            Some(gone) => {
                let joining = Some(member(gone as u64 + 1).to_string());
                AdminRequest::Reconfigure { joining, leaving: None }
            }
            None => AdminRequest::Reconfigure { joining: None, leaving: Some(id.to_string()) },
        };
        self.ask_operator(leader, request);
    }

    /// Ends all faults: every replica is up, everything arrives.
    pub(super) fn heal(&mut self) {
        self.note(format_args!("all faults end"));
        self.is_healing = true;
        for from in 0..self.nodes.len() {
            for to in 0..self.nodes.len() {
                if self.network.stream(from, to).blocked_until_us > self.now_us {
                    self.break_stream(from, to);
                }
            }
        }
        self.network.heal();
        for node in 0..self.nodes.len() {
            self.nodes[node].slow_disk_until_us = 0;
            self.push(self.now_us, Event::Start { node });
            self.see(&Seen::Disturbed { node });
        }
        self.mend_births();
        for client in &mut self.clients {
            if let Phase::Silent { .. } = client.phase {
                client.phase = Phase::Open;
            }
        }
    }
}
