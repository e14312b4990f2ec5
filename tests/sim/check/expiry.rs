//! A session is not expired early: not by a leader that has heard of it within its time-out, nor by
//! one that leads for less than that (`SessionTrackerImpl`; a new leader gives each session its
//! whole time-out).
//!
//! The leader hears of a session through the replica that its client is connected to. How long that
//! takes is bounded only while nothing disturbs the two, so the claim is about calm times.

use std::collections::{BTreeMap, VecDeque};

use millrace_coord::command::Act;
use millrace_coord::replica::Replica;

use crate::observe::{Check, Ending, Seen};

/// Longest time from a client's message to the leader's knowledge of it, in calm times: the report
/// that a follower sends every 200 ms, its turn, and the network.
const REPORT_US_MAX: u64 = 900_000;
/// How long two replicas must have been undisturbed before the client's message.
const CALM_US: u64 = 1_000_000;

/// See the module.
pub(super) struct Expiry {
    timeout_us: u64,
    /// By session: the replica that heard of it, the term and the time; the latest last.
    heard: BTreeMap<i64, VecDeque<(usize, u64, u64)>>,
    /// By replica: the last disturbance.
    disturbed_us: Vec<u64>,
    /// By replica: term, whether it leads, and since when.
    leading: Vec<(u64, bool, u64)>,
    /// By replica: true if the latest list of a leader names it.
    is_listed: Vec<bool>,
    /// By replica: the zxid of the list of members that it led with last.
    listed_zxid: Vec<i64>,
}

impl Expiry {
    pub(super) fn new(node_count: usize, timeout_us: u64) -> Expiry {
        Expiry {
            timeout_us,
            heard: BTreeMap::new(),
            disturbed_us: vec![0; node_count],
            leading: vec![(0, false, 0); node_count],
            is_listed: vec![true; node_count],
            listed_zxid: vec![0; node_count],
        }
    }

    /// Notes when the leader's list of members changes. A replica that left the list sends its reports
    /// to a leader that does not take them, and does not know that, so nothing is claimed of it until it
    /// is listed again.
    fn lists(&mut self, at_us: u64, leader: usize, replica: &Replica) {
        let zxid = replica.state().zxids("/zookeeper/config").map_or(0, |(mzxid, _)| mzxid);
        if std::mem::replace(&mut self.listed_zxid[leader], zxid) == zxid {
            return;
        }
        let list = replica.state().config_text();
        for (node, disturbed_us) in self.disturbed_us.iter_mut().enumerate() {
            // A replica by itself has an empty list.
            let is_listed = list.is_empty() || list.contains(&format!("server.{}=", node + 1));
            if std::mem::replace(&mut self.is_listed[node], is_listed) != is_listed {
                *disturbed_us = at_us;
            }
        }
    }

    fn closed(&self, at_us: u64, leader: usize, session: i64) -> Result<(), String> {
        let (term, _, since_us) = self.leading[leader];
        // Clocks show whole milliseconds.
        if at_us < since_us + self.timeout_us - 2_000 {
            return Err(format!(
                "session {session:#x} was closed by replica {} that leads for {} ms",
                leader + 1,
                (at_us - since_us) / 1000
            ));
        }
        let heard = self.heard.get(&session).into_iter().flatten();
        let known = heard.rev().find(|(_, _, heard_us)| heard_us + REPORT_US_MAX < at_us);
        let Some(&(node, heard_term, heard_us)) = known else { return Ok(()) };
        let disturbed_us = self.disturbed_us[node].max(self.disturbed_us[leader]);
        let is_calm =
            self.is_listed[node] && heard_term == term && disturbed_us + CALM_US < heard_us;
        if is_calm && at_us + 2_000 < heard_us + self.timeout_us {
            return Err(format!(
                "session {session:#x} was closed {} ms after replica {} heard of it",
                (at_us - heard_us) / 1000,
                node + 1
            ));
        }
        Ok(())
    }
}

impl Check for Expiry {
    fn property(&self) -> &'static str {
        "no session expires early"
    }

    fn see(&mut self, at_us: u64, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Heard { node, session } => {
                let heard = self.heard.entry(*session).or_default();
                heard.push_back((*node, self.leading[*node].0, at_us));
                // Older entries add nothing to these.
                while heard.front().is_some_and(|(.., old_us)| old_us + self.timeout_us < at_us) {
                    heard.pop_front();
                }
            }
            Seen::Disturbed { node } => self.disturbed_us[*node] = at_us,
            Seen::Turned { node, replica, .. } => {
                let (term, leads) = replica.leadership();
                let (known_term, known, _) = self.leading[*node];
                if (term, leads) != (known_term, known) {
                    self.leading[*node] = (term, leads, at_us);
                    self.disturbed_us[*node] = at_us;
                }
                if leads {
                    self.lists(at_us, *node, replica);
                }
            }
            Seen::Proposed { leader, command }
                if command.tag == 0 && command.act == Act::CloseSession =>
            {
                return self.closed(at_us, *leader, command.session);
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, ending: &Ending<'_>) -> Result<(), String> {
        match ending.sessions.iter().find(|id| ending.state.session(**id).is_none()) {
            Some(id) => Err(format!("session {id:#x} is gone while its client is connected")),
            None => Ok(()),
        }
    }
}
