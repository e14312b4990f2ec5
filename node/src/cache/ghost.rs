//! Remembers blocks that were evicted after one use, so that their return is known for one.
//!
//! A table of fingerprints with the time of eviction, counted in evictions; a newer block overwrites
//! the oldest of the four that may lie in its place. Benefit: fixed size, no lists. Cost: now and then a block
//! is forgotten early, or (one in 2^32) taken for another; both only change what is evicted next. So the
//! public hash of a block will do, which others can foresee.

/// Bytes for each entry.
pub(super) const ENTRY_COST: usize = 2 * size_of::<GhostSlot>();

/// Slots in which a block may be. Derived: half of what the processor loads from memory at once.
const WAYS: usize = 4;

#[derive(Clone, Copy)]
struct GhostSlot {
    fingerprint: u32,
    /// Number of the eviction, from 1; 0 marks an empty slot.
    sequence: u32,
}

pub(crate) struct Ghost {
    slots: Vec<GhostSlot>,
    sequence: u32,
}

impl Ghost {
    /// Makes room for `capacity` blocks, rounded up to a power of two.
    pub(crate) fn new(capacity: usize) -> Ghost {
        let size = capacity.next_power_of_two().max(WAYS);
        Ghost { slots: vec![GhostSlot { fingerprint: 0, sequence: 0 }; size], sequence: 0 }
    }

    /// Takes the memory of the table from the system, while it is empty.
    pub(super) fn populate(&mut self) {
        self.slots.fill(GhostSlot { fingerprint: 0, sequence: 0 });
    }

    pub(crate) fn insert(&mut self, hash: u64) {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let (fingerprint, sequence) = ((hash >> 32) as u32, self.sequence);
        let set = self.set(hash);
        let slots = &mut self.slots[set];
        // The same block's own slot, else an empty one, else the oldest.
        let age = |slot: &GhostSlot| match slot.sequence {
            0 => u32::MAX,
            other => sequence.wrapping_sub(other),
        };
        let own =
            slots.iter().position(|slot| slot.sequence != 0 && slot.fingerprint == fingerprint);
        let oldest = || (0..slots.len()).max_by_key(|place| age(&slots[*place]));
        let place = own.or_else(oldest).unwrap_or(0);
        slots[place] = GhostSlot { fingerprint, sequence };
    }

    /// True if the block was evicted within the last `age_max` evictions.
    pub(crate) fn contains(&self, hash: u64, age_max: u32) -> bool {
        self.slots[self.set(hash)].iter().any(|slot| {
            slot.sequence != 0
                && slot.fingerprint == (hash >> 32) as u32
                && self.sequence.wrapping_sub(slot.sequence) < age_max.max(1)
        })
    }

    /// Returns the slots of a hash.
    fn set(&self, hash: u64) -> std::ops::Range<usize> {
        let start = hash as usize & (self.slots.len() - 1) & !(WAYS - 1);
        start..start + WAYS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills one place: with one slot for it two blocks pushed each other out for good.
    #[test]
    fn blocks_of_one_slot_are_remembered_side_by_side() {
        let mut ghost = Ghost::new(64);
        let hash = |number: u64| number << 32 | 5;
        (1..=4).for_each(|number| ghost.insert(hash(number)));
        assert!((1..=4).all(|number| ghost.contains(hash(number), 100)));
        ghost.insert(hash(1));
        ghost.insert(hash(5));
        assert!(!ghost.contains(hash(2), 100), "the oldest goes");
        assert!([1, 3, 4, 5].iter().all(|number| ghost.contains(hash(*number), 100)));
        assert!(!ghost.contains(hash(3), 2) && ghost.contains(hash(5), 1), "ages count insertions");
    }
}
