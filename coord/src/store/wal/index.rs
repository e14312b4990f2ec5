//! The place of each entry: the log in memory, as its durable batches made it.
//!
//! Always holds: the entries up to the last one are there without a gap. While a log is opened its first
//! ones can be missing, because a later operation compacts them. A batch that is written and one that is
//! read back go through the same [`Header::follow`] and [`Index::apply`].

use std::collections::VecDeque;
use std::sync::Arc;

use raft::eraftpb::HardState;

use super::super::StoreIdentity;
use super::segment::Segment;

/// Index and term of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    pub(super) index: u64,
    pub(super) term: u64,
}

/// Everything about a log except its entries.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Header {
    pub(super) identity: StoreIdentity,
    pub(super) hard_state: HardState,
    /// The last forgotten entry.
    pub(super) compacted: Position,
    /// The last entry, or the compacted one.
    pub(super) last: Position,
}

/// One change of a log.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// Forgets everything; the next entry follows this one.
    Reset(Position),
    /// An entry, which replaces all from its index on. `at` and `size` are place and size of its item's
    /// body, in bytes.
    Entry {
        position: Position,
        at: u32,
        size: u32,
    },
    HardState(HardState),
    /// Forgets the entries up to this one.
    Compact(Position),
    /// Sets the cluster id of the log.
    Adopt(u64),
}

impl Header {
    pub(super) fn new(identity: StoreIdentity) -> Header {
        Header {
            identity,
            hard_state: HardState::default(),
            compacted: Position::default(),
            last: Position::default(),
        }
    }

    /// Changes the header as `op` does. The error says why `op` cannot follow.
    pub(super) fn follow(&mut self, op: &Op) -> Result<(), &'static str> {
        match op {
            Op::Reset(position) => {
                self.compacted = *position;
                self.last = *position;
            }
            Op::Entry { position, .. } => {
                if position.index <= self.compacted.index {
                    return Err("an entry is compacted already");
                }
                if position.index > self.last.index + 1 {
                    return Err("an entry leaves a gap after the last one");
                }
                self.last = *position;
            }
            Op::HardState(hard_state) => self.hard_state = hard_state.clone(),
            Op::Compact(position) => {
                if position.index <= self.compacted.index || position.index > self.last.index {
                    return Err("a compaction is not to an entry of the log");
                }
                self.compacted = *position;
            }
            Op::Adopt(cluster_id) => {
                if ![0, *cluster_id].contains(&self.identity.cluster_id) {
                    return Err("a log changes its cluster");
                }
                self.identity.cluster_id = *cluster_id;
            }
        }
        Ok(())
    }
}

/// The place of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) term: u64,
    pub(super) segment: u32,
    /// Offset of its item's body in the segment, in bytes.
    pub(super) offset: u32,
    pub(super) size: u32,
}

/// A segment with entries, or the current one.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) segment: Arc<Segment>,
    /// Bytes of its batches.
    pub(super) used_bytes: u64,
}

/// The log in memory.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) header: Header,
    /// One slot for each of the last entries.
    slots: VecDeque<Slot>,
    /// The segments, in the order of their numbers.
    pub(super) segments: VecDeque<Live>,
}

impl Index {
    /// Builds a log whose entries are not known yet.
    pub(super) fn new(header: Header) -> Index {
        Index { header, slots: VecDeque::new(), segments: VecDeque::new() }
    }

    /// Returns the index of the first slot's entry.
    fn first(&self) -> u64 {
        self.header.last.index + 1 - self.slots.len() as u64
    }

    pub(super) fn entry_count(&self) -> usize {
        self.slots.len()
    }

    /// Returns the first entry that is missing.
    pub(super) fn missing(&self) -> Option<u64> {
        let expected = self.header.compacted.index + 1;
        (self.first() > expected).then_some(expected)
    }

    /// Changes the log by an operation that [`Header::follow`] accepted before. Its places are counted from
    /// `base` in the segment with the number `segment`.
    pub(super) fn apply(&mut self, op: &Op, segment: u32, base: u32) {
        match op {
            Op::Reset(_) => self.slots.clear(),
            Op::Entry { position, at, size } => {
                let kept = position.index.saturating_sub(self.first());
                self.slots.truncate(kept as usize);
                let offset = base + at;
                self.slots.push_back(Slot { term: position.term, segment, offset, size: *size });
            }
            Op::Compact(position) => {
                let gone = (position.index + 1).saturating_sub(self.first());
                self.slots.drain(..gone as usize);
                // This frees the memory of a log that was long before.
                if self.slots.capacity() > 4096.max(4 * self.slots.len()) {
                    self.slots.shrink_to(2 * self.slots.len());
                }
            }
            Op::HardState(_) | Op::Adopt(_) => {}
        }
        self.header.follow(op).expect("it was accepted before");
    }

    /// Returns the place of the entry at `index`, if it is there.
    pub(super) fn slot(&self, index: u64) -> Option<Slot> {
        let at = index.checked_sub(self.first())?;
        self.slots.get(usize::try_from(at).ok()?).copied()
    }

    /// Returns the term of the entry at `index`, or of the compacted one.
    pub(super) fn term(&self, index: u64) -> Option<u64> {
        match index == self.header.compacted.index {
            true => Some(self.header.compacted.term),
            false => self.slot(index).map(|slot| slot.term),
        }
    }

    pub(super) fn segment(&self, number: u32) -> &Arc<Segment> {
        let live = self.segments.iter().find(|live| live.segment.number == number);
        &live.expect("a segment with entries is kept").segment
    }

    /// Removes and returns the segments without entries, except the last one.
    pub(super) fn take_dead(&mut self) -> Vec<Arc<Segment>> {
        let mut dead = Vec::new();
        // Later entries are in later segments.
        let oldest = self.slots.front().map_or(u32::MAX, |slot| slot.segment);
        while self.segments.len() > 1 && self.segments[0].segment.number < oldest {
            dead.extend(self.segments.pop_front().map(|live| live.segment));
        }
        dead
    }
}
