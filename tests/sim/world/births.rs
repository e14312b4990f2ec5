//! How ensembles begin and change: what lies on the disks at first, which lists replicas have, and
//! what operators do to lists and disks on the way.

use millrace_coord::config::Member;
use millrace_coord::config::members::list_hash;
use millrace_coord::replica::{AdminRequest, Event as Told};

use super::{Canary, Event, World};
use crate::node::member;
use crate::observe::Seen;
use crate::options::Beginning;

/// The cluster of those that have data at the beginning.
const CLUSTER: u64 = 7;
/// Time between two looks of an operator at what is left to do.
const OPERATE_US: u64 = 1_000_000;

/// Something that is done to a replica while it is down for a moment.
#[derive(Debug, Clone)]
pub(super) enum Errand {
    /// It gets this list of members.
    List(Vec<u64>),
    /// It gets a new disk.
    Wipe,
    /// It gets the disk back that it had.
    Unwipe,
    /// It is switched off, until something starts it.
    Leave,
}

impl World {
    /// Puts on the disks what this run begins with, and plans what is done on the way.
    pub(super) fn begin(&mut self) {
        let count = self.nodes.len() as u64;
        let first_three = [1, 2, 3].map(member);
        match self.options.beginning {
            Beginning::Formed => {
                let members: Vec<_> = (1..=count).map(member).collect();
                for node in &mut self.nodes {
                    node.put_data(CLUSTER, &members);
                }
                for node in 0..self.nodes.len() {
                    self.push(0, Event::Start { node });
                }
                return;
            }
            Beginning::Fresh => {}
            Beginning::FirstOfThree => {
                let node = self.random.usize(0..3);
                self.nodes[node].put_data(CLUSTER, &[]);
            }
            Beginning::TwoWithData => {
                let spared = self.random.usize(0..3);
                for node in (0..3).filter(|&node| node != spared) {
                    self.nodes[node].put_data(CLUSTER + node as u64, &[]);
                }
            }
            Beginning::ListsDisagree => {
                let node = self.random.usize(0..3);
                let left_out = (node + self.random.usize(1..3)) % 3;
                self.nodes[node].list.retain(|member| member.id != left_out as u64 + 1);
            }
            Beginning::MajorityReplaced | Beginning::Wiped => {
                for node in &mut self.nodes {
                    node.put_data(CLUSTER, &first_three);
                }
                let spared = self.random.usize(0..3);
                let lost = (spared + self.random.usize(1..3)) % 3;
                for node in (0..3).filter(|&node| node != spared) {
                    if node == lost || self.options.beginning == Beginning::MajorityReplaced {
                        self.plan(node, Errand::Wipe, 4_000_000);
                    }
                }
            }
            Beginning::MajorityMoved => {
                let spared = self.random.usize(0..3);
                let moved = [spared as u64 + 1, 4, 5];
                for node in 0..5 {
                    self.nodes[node].list = moved.map(member).to_vec();
                    if node < 3 {
                        self.nodes[node].put_data(CLUSTER, &first_three);
                        self.nodes[node].list = first_three.to_vec();
                        let errand = match node == spared {
                            true => Errand::List(moved.to_vec()),
                            false => Errand::Leave,
                        };
                        self.plan(node, errand, 4_000_000);
                    }
                }
            }
            Beginning::ThreeToFive | Beginning::TwoOperators => {
                for node in 0..3 {
                    self.nodes[node].put_data(CLUSTER, &first_three);
                    self.nodes[node].list = first_three.to_vec();
                }
                self.plan_lists();
            }
        }
        for node in 0..self.nodes.len() {
            let delay_us = self.random.u64(0..3_000_000);
            self.push(delay_us, Event::Start { node });
        }
    }

    /// Plans the longer lists: one replica after another, or two at a time from two operators.
    fn plan_lists(&mut self) {
        let all: Vec<u64> = (1..=5).collect();
        if self.options.beginning == Beginning::ThreeToFive {
            for node in 0..3 {
                let at_us = 3_000_000 + 1_000_000 * node as u64;
                self.plan(node, Errand::List(all.clone()), at_us);
            }
            return;
        }
        let first = self.random.usize(0..3);
        let second = (first + self.random.usize(1..3)) % 3;
        self.plan(first, Errand::List(vec![1, 2, 3, 4]), 3_000_000);
        self.plan(second, Errand::List(vec![1, 2, 3, 5]), 3_000_000);
    }

    /// Plans an errand for about this moment.
    fn plan(&mut self, node: usize, errand: Errand, about_us: u64) {
        let at_us = about_us + self.random.u64(0..2_000_000);
        self.push(at_us, Event::Errand { node, errand });
    }

    /// Stops a replica, changes what there is to change, and starts it again.
    pub(super) fn errand(&mut self, node: usize, errand: Errand) {
        self.note(format_args!("errand at replica {}: {errand:?}", node + 1));
        self.crash(node);
        match errand {
            Errand::List(ids) => self.nodes[node].list = ids.into_iter().map(member).collect(),
            Errand::Wipe => {
                let store_id = self.random.u64(1000..);
                self.nodes[node].wipe(&self.options, store_id);
            }
            Errand::Unwipe => self.nodes[node].unwipe(&self.options),
            Errand::Leave => return,
        }
        let at_us = self.now_us + self.random.u64(10_000..1_000_000);
        self.push(at_us, Event::Start { node });
    }

    /// Brings disks back where they must be after the faults, mends lists, and lets operators do what is
    /// left.
    pub(super) fn mend_births(&mut self) {
        match self.options.beginning {
            Beginning::MajorityReplaced => {
                for node in 0..self.nodes.len() {
                    self.push(self.now_us, Event::Errand { node, errand: Errand::Unwipe });
                }
            }
            Beginning::ListsDisagree | Beginning::MajorityMoved => {
                for node in 0..3 {
                    let errand = Errand::List(vec![1, 2, 3]);
                    self.push(self.now_us, Event::Errand { node, errand });
                }
            }
            Beginning::Wiped | Beginning::TwoOperators => {
                self.push(self.now_us + OPERATE_US, Event::Operate);
            }
            _ => {}
        }
    }

    /// Lets an operator look at the members and ask for what is left to do.
    pub(super) fn operate(&mut self) {
        self.push(self.now_us + OPERATE_US, Event::Operate);
        let Some(leader) = self.leader() else { return };
        let replica = self.nodes[leader].replica.as_ref().expect("a leader is up");
        let text = replica.state().config_text();
        let is_member = |id: u64| text.contains(&format!("server.{id}="));
        let lost = self.lost().filter(|_| !self.was_removed);
        let missing = self.nodes.iter().map(|node| node.id).find(|&id| !is_member(id));
        self.was_removed |= missing.is_some();
        let request = match (missing, lost) {
            (Some(id), _) => {
                AdminRequest::Reconfigure { joining: Some(member(id).to_string()), leaving: None }
            }
            (None, Some(id)) => {
                AdminRequest::Reconfigure { joining: None, leaving: Some(id.to_string()) }
            }
            (None, None) => return,
        };
        self.ask_operator(leader, request);
    }

    /// Returns a member that came back without data and is still to be removed.
    fn lost(&self) -> Option<u64> {
        let lost = self.nodes.iter().find(|node| node.is_wiped() && !node.has_data());
        lost.map(|node| node.id)
    }

    /// Begins an ensemble at a replica: the streams to it are greeted again.
    pub(super) fn found(&mut self, node: usize, cluster_id: Option<u64>) {
        let Some(admission) = &mut self.nodes[node].admission else { return };
        admission.found(cluster_id).expect("nothing fails in memory");
        if cluster_id.is_none() {
            let ids = self.nodes[node].list.iter().map(|member| member.id);
            let others = ids.filter(|&id| id != node as u64 + 1);
            let mut with_data = others.filter(|&id| self.nodes[id as usize - 1].has_data());
            let data_at = with_data.next();
            self.see(&Seen::Founds { node, is_durable: false, data_at });
        } else {
            self.see(&Seen::Founds { node, is_durable: true, data_at: None });
        }
        for other in (0..self.nodes.len()).filter(|&other| other != node) {
            self.break_stream(node, other);
            let number = self.network.stream(other, node).number;
            let notices_us = self.now_us + self.random.u64(0..50_000);
            self.push(notices_us, Event::Breaks { from: other, to: node, number });
        }
    }

    /// Handles a list that was refused at a start. True if that is right, and the operator takes the
    /// list back.
    pub(super) fn take_back(&mut self, node: usize) -> bool {
        let is_right = self.options.beginning == Beginning::MajorityMoved && node < 3;
        if is_right {
            let at_us = self.now_us + self.random.u64(10_000..1_000_000);
            self.push(at_us, Event::Errand { node, errand: Errand::List(vec![1, 2, 3]) });
        }
        is_right
    }

    /// Plays the canary's part: forges the word of members that a replica without data does not hear,
    /// once most of its list are up and have no data either.
    pub(super) fn forge_holdings(&mut self, node: usize) {
        if !self.has_canary(Canary::FoundsByMajority)
            || !self.nodes[node].is_up()
            || self.nodes[node].has_data()
        {
            return;
        }
        let list = self.nodes[node].list.clone();
        let is_new = |member: &&Member| {
            let other = &self.nodes[member.id as usize - 1];
            other.is_up() && !other.has_data()
        };
        let (new, others): (Vec<&Member>, Vec<&Member>) = list.iter().partition(is_new);
        if new.len() * 2 <= list.len() {
            return;
        }
        // The bytes are as `PeerMessage::Holds` is written: a kind, what it has, the hash of its list.
        let mut word = vec![13, 0];
        word.extend(list_hash(&list).to_be_bytes());
        for peer in others.iter().map(|member| member.id) {
            self.handle(node, Told::PeerConnected { peer });
            self.handle(node, Told::PeerMessage { peer, message: &word });
        }
    }

    /// Returns the cluster that a replica belongs to.
    pub(super) fn cluster_id(&self, node: usize) -> u64 {
        self.nodes[node].admission.as_ref().map_or(0, |admission| admission.cluster_id())
    }

    /// True if the ensemble has the members that lists and operators want in the end.
    pub(super) fn has_all_members(&self, text: &str) -> bool {
        // Of two with data, one stays out.
        let needed = match self.options.beginning {
            Beginning::Formed => return true,
            Beginning::TwoWithData => self.nodes.len() - 1,
            Beginning::MajorityMoved => 3,
            _ => self.nodes.len(),
        };
        let is_member = |id: u64| text.contains(&format!("server.{id}="));
        self.nodes.iter().filter(|node| is_member(node.id)).count() >= needed
    }
}
