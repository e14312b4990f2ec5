//! The birth of an ensemble, which happens once and never beside data.
//!
//! ```text
//!  no data, no --join ─► sends that to all that its list names, over and over
//!     the first participant of the list, when every other one said the same, with the same list:
//!        a state without nodes, of which it alone is a member ─► takes the others in (`lists`)
//!     any other one: waits until it is taken in
//! ```
//!
//! Always holds: one replica alone decides that an ensemble begins, so it begins once. It waits for every
//! listed replica and not for a majority, because a silent one may have the data, and a majority without
//! data must never outvote it. Once a replica with data has spoken to it, a replica begins nothing. Until
//! it has a state it has no vote, because Raft knows no members.
//!
//! ZooKeeper and etcd begin with a majority: two fresh servers of three outvote the third, unless the
//! operator configured otherwise (`zookeeper.db.autocreate=false`, `initial-cluster-state`).

use std::collections::BTreeMap;

use super::message::{Holding, PeerMessage};
use super::{Action, Checkpoint, Now, Replica, StateAction};
use crate::config::Role;
use crate::store::Applied;

/// Milliseconds between two messages of a replica without data. Guessed: short beside a start, and cheap
/// beside Raft's heartbeats.
const TELL_MS: u64 = 100;
/// Milliseconds between two log lines about the same reason to wait.
const LOG_MS: u64 = 30_000;

/// What a replica without data knows about the others.
pub(super) struct Founding {
    /// Hash of its list; `None` for a replica that joins, because it begins nothing.
    list: Option<u64>,
    /// The last message of each replica.
    others: BTreeMap<u64, Holding>,
    /// A replica with data that sent a message, listed or not.
    data_at: Option<u64>,
    /// True if the first state is on its way to the disk.
    is_writing: bool,
    tell_at_ms: u64,
    /// The reason to wait, and when it was logged.
    waits: Option<(String, u64)>,
}

impl Founding {
    pub(super) fn new(list: Option<u64>) -> Founding {
        Founding {
            list,
            others: BTreeMap::new(),
            data_at: None,
            is_writing: false,
            tell_at_ms: 0,
            waits: None,
        }
    }
}

impl Replica {
    /// Returns what this replica says about itself.
    fn holding(&self) -> Holding {
        match &self.founding {
            None => Holding::Data,
            Some(Founding { data_at: Some(data_at), list: Some(_), .. }) => {
                Holding::Met { data_at: *data_at }
            }
            Some(Founding { list: Some(list), .. }) => Holding::Nothing { list: *list },
            Some(Founding { list: None, .. }) => Holding::Joins,
        }
    }

    /// Sends a peer what this replica has.
    pub(super) fn tell_holding(&self, peer: u64, actions: &mut Vec<Action>) {
        let message = PeerMessage::Holds(self.holding()).encode();
        actions.push(Action::SendPeer { peer, message });
    }

    /// Takes what another replica says about itself. A replica without data is answered.
    pub(super) fn take_holding(&mut self, peer: u64, holding: Holding, actions: &mut Vec<Action>) {
        if let Some(founding) = &mut self.founding {
            founding.others.insert(peer, holding);
            if holding == Holding::Data && founding.data_at.is_none() {
                founding.data_at = Some(peer);
            }
        } else if holding != Holding::Data && self.connected.contains(&peer) {
            self.tell_holding(peer, actions);
        }
    }

    /// Forgets what a peer said, because its stream broke.
    pub(super) fn forget_holding(&mut self, peer: u64) {
        if let Some(founding) = &mut self.founding {
            founding.others.remove(&peer);
        }
    }

    /// Sends the others that there is no data here, and begins an ensemble if it is time.
    pub(super) fn drive_founding(&mut self, now: Now, actions: &mut Vec<Action>) {
        let Some(founding) = &mut self.founding else { return };
        if founding.is_writing || self.receiving.is_some() {
            return;
        }
        if now.ms >= founding.tell_at_ms {
            founding.tell_at_ms = now.ms + TELL_MS;
            for peer in self.connected.clone() {
                self.tell_holding(peer, actions);
            }
        }
        match self.why_not_found() {
            None => self.found(actions),
            Some(why) => self.wait_because(now, why),
        }
    }

    /// Says why this replica begins no ensemble yet; `None` if it must begin one.
    fn why_not_found(&self) -> Option<String> {
        let founding = self.founding.as_ref()?;
        let own = self.identity.replica_id;
        let Some(list) = founding.list else {
            return Some("it waits to join: add it to an ensemble (millrace coord add)".into());
        };
        if let Some(peer) = founding.data_at {
            return Some(format!(
                "replica {peer} has data and this one has none: it takes no part until it is \
                 added, by a list of the others that names it or by millrace coord add; if it was \
                 a member before, remove it first"
            ));
        }
        // The other replica may be one that our list does not name.
        let disagrees =
            |holding| matches!(holding, Holding::Nothing { list: theirs } if theirs != list);
        if let Some((peer, _)) = founding.others.iter().find(|(_, holding)| disagrees(**holding)) {
            return Some(format!(
                "replica {peer} has another list of members: give all replicas the same server lines"
            ));
        }
        let mut silent = Vec::new();
        for member in self.config.members.iter().filter(|member| member.id != own) {
            match founding.others.get(&member.id) {
                Some(Holding::Nothing { .. }) if self.connected.contains(&member.id) => {}
                Some(Holding::Met { data_at }) => {
                    return Some(format!(
                        "replica {} has no data, but has met replica {data_at}, which has: take \
                         replica {} out of the list, or start it again when replica {data_at} does \
                         not name it any more",
                        member.id, member.id
                    ));
                }
                Some(Holding::Joins) => {
                    return Some(format!(
                        "replica {} waits to join an ensemble that runs: start it without --join, \
                         or leave it out of the list",
                        member.id
                    ));
                }
                Some(_) | None => silent.push(member.id.to_string()),
            }
        }
        if !silent.is_empty() {
            return Some(format!(
                "a new ensemble begins when every listed member has said that it has no data, \
                 because a silent one may have it; waiting for {}",
                silent.join(", ")
            ));
        }
        let participants =
            self.config.members.iter().filter(|member| member.role == Role::Participant);
        match participants.map(|member| member.id).min() {
            Some(first) if first == own => None,
            Some(first) => Some(format!("all members are new; replica {first} begins")),
            None => Some("the list has no participant".into()),
        }
    }

    fn wait_because(&mut self, now: Now, why: String) {
        let Some(founding) = &mut self.founding else { return };
        let is_told = founding
            .waits
            .as_ref()
            .is_some_and(|(told, at_ms)| *told == why && now.ms < at_ms + LOG_MS);
        if !is_told {
            tracing::info!(replica = self.identity.replica_id, why, "no data here; waiting");
            founding.waits = Some((why, now.ms));
        }
    }

    /// Begins an ensemble with this replica as its one member: first on the disk, then for Raft.
    fn found(&mut self, actions: &mut Vec<Action>) {
        tracing::info!(replica = self.identity.replica_id, "a new ensemble begins here");
        actions.push(Action::Found { cluster_id: None });
        let mut records = Vec::new();
        self.state.all_records(&mut |key, value| {
            records.push((key.to_vec(), Some(value.to_vec())));
        });
        let Applied { index, term, conf_state } = self.first_applied();
        let zxid = self.state.zxid();
        let checkpoint = Checkpoint { records, index, term, conf_state, zxid };
        actions.push(StateAction::Checkpoint { checkpoint }.into());
        actions.push(StateAction::FlushCheckpoint.into());
        if let Some(founding) = &mut self.founding {
            founding.is_writing = true;
        }
    }

    /// Returns the position of a new ensemble's state: as if entry 1 of term 1 had made it.
    fn first_applied(&self) -> Applied {
        let mut applied = Applied { index: 1, term: 1, ..Applied::default() };
        applied.conf_state.voters.push(self.identity.replica_id);
        applied
    }

    /// True if the first state is on its way to the disk.
    pub(super) fn is_founding(&self) -> bool {
        self.founding.as_ref().is_some_and(|founding| founding.is_writing)
    }

    /// Gives the first state to Raft, once it is durable. True if there was one.
    pub(super) fn found_durable(&mut self, actions: &mut Vec<Action>) -> bool {
        if !self.is_founding() {
            return false;
        }
        let cluster_id = Some(self.origin.rotate_left(32).max(1));
        actions.push(Action::Found { cluster_id });
        self.consensus.begin(self.first_applied());
        true
    }

    /// Ends the founding, because Raft took the first state or a received one. True if it was the first.
    pub(super) fn end_founding(&mut self) -> bool {
        self.founding.take().is_some_and(|founding| founding.is_writing)
    }

    /// Says what to do with a replica that was removed from the ensemble of its data.
    pub(super) fn removed_text(&self) -> String {
        let own = self.identity.replica_id;
        let members: Vec<String> = self.members.iter().map(|it| it.id.to_string()).collect();
        format!(
            "replica {own} was removed from the ensemble of its data (members: {}): it takes no part \
             until it is added again (millrace coord add)",
            members.join(", ")
        )
    }

    /// Says why this replica serves no client, if it has no data or has not taken its list in yet.
    pub(super) fn waits_for(&self) -> Option<String> {
        let founding = self.founding.as_ref().map(|founding| &founding.waits);
        match founding {
            Some(waits) => waits.as_ref().map(|(why, _)| why.clone()),
            None if !self.is_formed() => Some(self.lists.forming_text(&self.config.members)),
            None if !self.is_member() => Some(self.removed_text()),
            None => None,
        }
    }
}
