//! Replicas that applied the same entries are the same: "State Machine Safety", Raft paper, figure
//! 3; and no replica goes back while it runs.

use std::collections::BTreeMap;

use crate::observe::{Check, Seen};

/// Every fifth index is looked at, and the first of each life.
const SAMPLE: u64 = 5;

/// The digest of the state after each entry, where some replica ended a turn.
#[derive(Default)]
pub(super) struct Digests {
    /// By index: the digest and the replica that showed it first.
    digests: BTreeMap<u64, (u64, usize)>,
    /// By replica: life and last index.
    applied: BTreeMap<usize, (u32, u64)>,
}

impl Check for Digests {
    fn property(&self) -> &'static str {
        "replicas that applied the same index have the same state"
    }

    fn see(&mut self, _at_us: u64, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Turned { node, life, replica } = seen else { return Ok(()) };
        // A replica that has no data, or waits for others to follow it, may be of another ensemble.
        if !replica.is_formed() {
            return Ok(());
        }
        let applied = replica.applied();
        let before = self.applied.insert(*node, (*life, applied));
        if let Some((before_life, before)) = before
            && before_life == *life
        {
            if applied < before {
                return Err(format!("replica {} goes from {before} to {applied}", node + 1));
            }
            // A digest takes long, and the last entries of the turns of every replica are plenty.
            if applied == before || !applied.is_multiple_of(SAMPLE) {
                return Ok(());
            }
        }
        let digest = replica.state().digest();
        let (first, whose) = *self.digests.entry(applied).or_insert((digest, *node));
        match first == digest {
            true => Ok(()),
            false => Err(format!(
                "at index {applied} replica {} has {first:016x}, replica {} has {digest:016x}",
                whose + 1,
                node + 1
            )),
        }
    }
}
