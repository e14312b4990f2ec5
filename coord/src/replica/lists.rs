//! The configured list of members beside the ensemble's list: what an edited list asks for, and how the
//! ensemble takes it over.
//!
//! Three lists are compared: the ensemble's, which is replicated; the current configured one; and the
//! configured one that was last taken over, which the data directory keeps. The difference of the last two
//! is what to change. A configuration that was not edited asks for nothing, however old it is, because
//! changes by `coord add` and `remove` belong to the ensemble.
//!
//! ```text
//!  wanted ─► one change at a time ─► the leader ─► Raft ─► the ensemble's list ─► noted as taken over
//! ```
//!
//! A new member is asked for when it is connected. A replica that was by itself, or had no data, serves no
//! client before most participants of its list vote together. Otherwise two replicas with data of their own
//! and one common list would both serve.

use std::collections::BTreeSet;

use super::message::PeerMessage;
use super::{Action, Now, Replica};
use crate::config::{Config, Member, Role, members};
use crate::peers::Listed;

/// Milliseconds until a change that was refused, or not answered, is asked for again. Guessed: short for a
/// waiting change, and long enough for few lines in the leader's log.
const AGAIN_MS: u64 = 1000;
/// Milliseconds that an answer is waited for. It may be lost with a stream. A leader that still works on
/// the change refuses the next question and continues.
const ANSWER_MS: u64 = 5000;
/// Milliseconds that a forming ensemble waits for the rest of its list once most of the list follows. Then
/// those that are connected vote from the start, so any minority may fail. Guessed: longer than it takes to
/// open streams.
const FORM_MS: u64 = 2000;

/// A change that the configured list asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedChange {
    /// A new member.
    Add(Member),
    /// Other addresses, or another role, of a member.
    Change(Member),
    /// The member with this id must leave.
    Remove(u64),
}

/// The reason that a list cannot be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    #[error(
        "the configuration names no members, but this is one of the ensemble {members}: give it \
         the list (server lines in zoo.cfg, or --members). To make it a replica by itself, take \
         the others out first: millrace coord remove"
    )]
    None { members: String },
    #[error(
        "the configured list of members keeps {kept} of the {of} that vote now ({members}), so it \
         cannot be taken over: what the others agreed on could be lost. Give the list that the \
         ensemble has, and change its members while it runs, one after the other: millrace coord \
         add, and millrace coord remove. If most of them are gone for good, begin a new ensemble from a backup: \
         millrace coord restore"
    )]
    Majority { kept: usize, of: usize, members: String },
    #[error(
        "this replica has data, so it is the first member of the ensemble in its list, but the \
         list has it as an observer: {own}. Make it a participant"
    )]
    Observer { own: Box<Member> },
    #[error(
        "the configured list says {listed}, which the ensemble knows as {known}: correct the list, \
         or change the member while the ensemble runs: millrace coord add {listed}, or millrace \
         coord remove {}", known.id
    )]
    Conflict { listed: Box<Member>, known: Box<Member> },
}

/// Returns what the configured list asks for, in the order of asking.
///
/// `before` is the list that was last taken over. `current` are the members of the ensemble.
pub fn wanted(before: &[Member], listed: &[Member], current: &[Member]) -> Vec<WantedChange> {
    let find = |list: &[Member], id| list.iter().find(|member| member.id == id).cloned();
    let mut wanted = Vec::new();
    for member in listed {
        let was = find(before, member.id);
        if was.as_ref() == Some(member) {
            continue;
        }
        match find(current, member.id) {
            None => wanted.push(WantedChange::Add(member.clone())),
            Some(known) if known.is_same(member) => {}
            Some(_) => wanted.push(WantedChange::Change(member.clone())),
        }
    }
    for member in before {
        if find(listed, member.id).is_none() && find(current, member.id).is_some() {
            wanted.push(WantedChange::Remove(member.id));
        }
    }
    wanted
}

/// Returns the part of the configured list that is taken over; the next start compares with it.
fn taken_over(before: &[Member], listed: &[Member], current: &[Member]) -> Vec<Member> {
    let pending = wanted(before, listed, current);
    let is_pending = |id: u64| {
        pending.iter().any(|wanted| match wanted {
            WantedChange::Add(member) | WantedChange::Change(member) => member.id == id,
            WantedChange::Remove(leaving) => *leaving == id,
        })
    };
    let done = listed.iter().filter(|member| !is_pending(member.id));
    let kept = before.iter().filter(|member| is_pending(member.id));
    let mut all: Vec<Member> = done.chain(kept).cloned().collect();
    all.sort_by_key(|member| member.id);
    all
}

/// Checks at a start that the ensemble itself can do what the configured list asks for.
///
/// # Errors
/// Each error says why not, and what to do instead.
pub fn check(
    config: &Config,
    before: Option<&[Member]>,
    current: &[Member],
) -> Result<(), ListError> {
    let own = config.replica_id;
    let text = || {
        let ids: Vec<String> = current.iter().map(|member| member.id.to_string()).collect();
        ids.join(", ")
    };
    if config.members.is_empty() {
        return match current.iter().any(|member| member.id != own) {
            true => Err(ListError::None { members: text() }),
            false => Ok(()),
        };
    }
    if let Some(listed) = config.own_member()
        && current.is_empty()
        && listed.role == Role::Observer
    {
        return Err(ListError::Observer { own: Box::new(listed.clone()) });
    }
    // There is nothing to compare for a replica that was by itself, or never took a list over.
    let Some(before) = before.filter(|_| !current.is_empty()) else { return Ok(()) };
    let changes = wanted(before, &config.members, current);
    for change in &changes {
        if let WantedChange::Change(listed) = change
            && let Some(known) = current.iter().find(|known| known.id == listed.id)
            && !before.iter().any(|member| member.id == listed.id)
        {
            let (listed, known) = (Box::new(listed.clone()), Box::new(known.clone()));
            return Err(ListError::Conflict { listed, known });
        }
    }
    let leaves = |id: u64| changes.contains(&WantedChange::Remove(id));
    let voters = || current.iter().filter(|member| member.role == Role::Participant);
    let of = voters().count();
    let kept = voters().filter(|member| !leaves(member.id)).count();
    if kept * 2 <= of {
        return Err(ListError::Majority { kept, of, members: text() });
    }
    Ok(())
}

/// The part of the configured list that is taken over.
pub(super) struct Lists {
    /// The list that was last taken over; `None` before the first time.
    before: Option<Vec<Member>>,
    /// True if too few of the list were ever members together, so the ensemble does not serve yet.
    pub(super) is_forming: bool,
    /// The time since which most participants of the list are members.
    majority_since_ms: Option<u64>,
    /// The tag of the change that was asked for, and when waiting for its answer ends.
    asked: Option<(u64, u64)>,
    again_at_ms: u64,
    /// Ids of members that the log has mentioned: they are asked for, and not connected.
    told: BTreeSet<u64>,
    /// Ids of members that were reached at their address in the configured list, not in the ensemble.
    pub(super) moved: BTreeSet<u64>,
    /// Count of changes that were refused since the last one was made. It selects the next to ask for.
    refused: usize,
}

impl Lists {
    /// Builds this from `listed`, which the data directory keeps. `is_alone` says that this replica has
    /// data and votes alone, so it may be one of several with one common list.
    pub(super) fn new(
        config: &Config,
        listed: Option<Listed>,
        joins: bool,
        is_alone: bool,
    ) -> Lists {
        let own = config.replica_id;
        let has_others = config
            .members
            .iter()
            .any(|member| member.id != own && member.role == Role::Participant);
        let is_new = match &listed {
            // A replica that joins serves its ensemble as soon as it has data.
            None => is_alone || !joins,
            // A list with only its own line counts as none.
            Some(Listed { members, is_forming }) => {
                *is_forming || (is_alone && members.iter().all(|member| member.id == own))
            }
        };
        Lists {
            // Without other members there is nothing to wait for, because the list was taken back.
            is_forming: is_new && has_others,
            before: listed.map(|listed| listed.members),
            majority_since_ms: None,
            asked: None,
            again_at_ms: 0,
            told: BTreeSet::new(),
            moved: BTreeSet::new(),
            refused: 0,
        }
    }

    /// Says why no client is served yet.
    pub(super) fn forming_text(&self, listed: &[Member]) -> String {
        let needed = participants(listed) / 2 + 1;
        format!(
            "the ensemble forms: it serves when {needed} of the {} listed participants follow",
            participants(listed)
        )
    }

    /// Forgets the change that was asked for, because its leader is gone.
    pub(super) fn forget_asked(&mut self) {
        self.asked = None;
    }

    /// True if `tag` was the tag of our change, which is then answered.
    pub(super) fn answered(&mut self, tag: u64, is_done: bool) -> bool {
        let is_ours = self.asked.is_some_and(|(asked, _)| asked == tag);
        if is_ours {
            self.asked = None;
            if is_done {
                self.again_at_ms = 0;
                self.refused = 0;
            } else {
                self.refused += 1;
            }
        }
        is_ours
    }
}

fn participants(members: &[Member]) -> usize {
    members.iter().filter(|member| member.role == Role::Participant).count()
}

impl Replica {
    /// Lists what the configured list still asks for. This is empty while there is no ensemble.
    fn wanted(&self) -> Vec<WantedChange> {
        match &self.lists.before {
            Some(before) if !self.state.config_text().is_empty() => {
                wanted(before, &self.config.members, &self.members)
            }
            _ => Vec::new(),
        }
    }

    /// Lists the members to connect to before they are members, because the configured list adds them.
    pub(super) fn wanted_members(&self) -> Vec<Member> {
        let add = |wanted| match wanted {
            WantedChange::Add(member) => Some(member),
            WantedChange::Change(_) | WantedChange::Remove(_) => None,
        };
        self.wanted().into_iter().filter_map(add).collect()
    }

    /// Lists id and address of the members that may be where the configured list has moved them.
    pub(super) fn moved_members(&self) -> Vec<(u64, String)> {
        let own = self.identity.replica_id;
        let moved = |wanted| match wanted {
            WantedChange::Change(member) if member.id != own && self.is_move(&member) => {
                Some((member.id, member.peer_address))
            }
            _ => None,
        };
        self.wanted().into_iter().filter_map(moved).collect()
    }

    /// True if the list has this member at another address than the ensemble.
    fn is_move(&self, member: &Member) -> bool {
        let known = self.members.iter().find(|known| known.id == member.id);
        known.is_some_and(|known| !known.is_place_same(member))
    }

    /// True if a change can be asked for: a new or moved member must be connected at its new address. A new
    /// address would cut off a member that still is at the old one.
    fn is_due(&self, wanted: &WantedChange) -> bool {
        match wanted {
            WantedChange::Add(member) => self.connected.contains(&member.id),
            WantedChange::Change(member) if self.is_move(member) => {
                member.id == self.identity.replica_id || self.lists.moved.contains(&member.id)
            }
            WantedChange::Change(_) | WantedChange::Remove(_) => true,
        }
    }

    /// Notes how much of the configured list the ensemble has taken over.
    pub(super) fn follow_lists(&mut self, actions: &mut Vec<Action>) {
        if self.state.config_text().is_empty() || self.config.members.is_empty() {
            return;
        }
        let listed = &self.config.members;
        let is_alone = self.consensus.conf_state().voters == [self.identity.replica_id];
        let now = match &self.lists.before {
            Some(before) => taken_over(before, listed, &self.members),
            None if self.lists.is_forming && is_alone => taken_over(&[], listed, &self.members),
            // If others took this replica in, or its list was never compared, their list counts.
            None => listed.clone(),
        };
        if self.lists.before.as_ref() != Some(&now) {
            self.lists.before = Some(now);
            self.note_lists(actions);
        }
    }

    fn note_lists(&self, actions: &mut Vec<Action>) {
        let members = self.lists.before.clone().unwrap_or_default();
        let listed = Listed { members, is_forming: self.lists.is_forming };
        actions.push(Action::Listed { listed });
    }

    /// Notes that the ensemble may serve: all of our list vote, or most do and the others had their time.
    fn look_whether_formed(&mut self, now: Now, actions: &mut Vec<Action>) {
        if !self.lists.is_forming || self.state.config_text().is_empty() {
            return;
        }
        let voters = &self.consensus.conf_state().voters;
        let of = participants(&self.config.members);
        let is_missing =
            |member: &&Member| member.role == Role::Participant && !voters.contains(&member.id);
        let missing = self.config.members.iter().filter(is_missing).count();
        if (of - missing) * 2 <= of {
            self.lists.majority_since_ms = None;
            return;
        }
        let since_ms = *self.lists.majority_since_ms.get_or_insert(now.ms);
        if missing > 0 && now.ms < since_ms + FORM_MS {
            return;
        }
        tracing::info!(replica = self.identity.replica_id, missing, "the ensemble is formed");
        self.lists.is_forming = false;
        self.note_lists(actions);
    }

    /// Asks the leader for the next change that the configured list wants.
    pub(super) fn pursue_lists(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.look_whether_formed(now, actions);
        if now.ms < self.lists.again_at_ms {
            return;
        }
        if let Some((_, until_ms)) = self.lists.asked
            && now.ms < until_ms
        {
            return;
        }
        if self.leader == 0 {
            return self.tell_own_move(now, actions);
        }
        if self.reconfigure.is_some() || self.consensus.is_changing_members() {
            return;
        }
        let (due, early): (Vec<WantedChange>, Vec<WantedChange>) =
            self.wanted().into_iter().partition(|wanted| self.is_due(wanted));
        for wanted in early {
            if let WantedChange::Add(member) | WantedChange::Change(member) = wanted
                && self.lists.told.insert(member.id)
            {
                tracing::info!(
                    %member,
                    "the configured list has a new member, or another address of one: waiting until \
                     it is connected"
                );
            }
        }
        // A refused change does not block the others, because one of them may be what it needs first.
        let Some(next) = self.lists.refused.checked_rem(due.len()) else { return };
        let (joining, leaving) = match &due[next] {
            WantedChange::Add(member) | WantedChange::Change(member) => {
                (Some(member.to_string()), None)
            }
            WantedChange::Remove(id) => (None, Some(id.to_string())),
        };
        tracing::info!(
            replica = self.identity.replica_id,
            joining,
            leaving,
            "the configured list of members has changed: asking the leader"
        );
        let tag = self.admin_reconfigure(joining.as_deref(), leaving.as_deref());
        self.lists.asked = Some((tag, now.ms + ANSWER_MS));
        self.lists.again_at_ms = now.ms + AGAIN_MS;
    }

    /// Sends the address of this replica to all connected ones, if its own line was edited and it knows no
    /// leader: the leader may be dialling the old address. Replicas that do not lead refuse it.
    fn tell_own_move(&mut self, now: Now, actions: &mut Vec<Action>) {
        let own = self.identity.replica_id;
        let is_own_move = |wanted: &WantedChange| matches!(wanted, WantedChange::Change(member) if member.id == own);
        let Some(WantedChange::Change(member)) = self.wanted().into_iter().find(is_own_move) else {
            return;
        };
        if !self.is_move(&member) {
            return;
        }
        self.lists.again_at_ms = now.ms + AGAIN_MS;
        let command = self.operator_change(Some(&member.to_string()), None).1;
        let epoch = self.place.epoch;
        let message = PeerMessage::Reconfigure { epoch, command: &command }.encode();
        for &peer in &self.connected {
            actions.push(Action::SendPeer { peer, message: message.clone() });
        }
    }
}

/// Reads the members from the text of a state; none for a replica by itself.
pub fn members_of(text: &str) -> Vec<Member> {
    match members::parse_config_text(text) {
        Ok((members, _)) => members,
        // The text is empty, or the replica will refuse it.
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
