//! Remembers blocks that were evicted after one use, so that their return is known for one.
//!
//! A table of fingerprints with the time of eviction, counted in evictions; a newer block overwrites
//! an older one in the same place. Benefit: fixed size, no lists. Cost: now and then a block is
//! forgotten early, or (one in 2^32) taken for another; both only change what is evicted next. So the
//! public hash of a block will do, which others can foresee.

/// Bytes for each entry.
pub(super) const ENTRY_COST: usize = 2 * size_of::<GhostSlot>();

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
        let slots = vec![GhostSlot { fingerprint: 0, sequence: 0 }; capacity.next_power_of_two()];
        Ghost { slots, sequence: 0 }
    }

    /// Takes the memory of the table from the system, while it is empty.
    pub(super) fn populate(&mut self) {
        self.slots.fill(GhostSlot { fingerprint: 0, sequence: 0 });
    }

    pub(crate) fn insert(&mut self, hash: u64) {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let slot = self.slot(hash);
        self.slots[slot] = GhostSlot { fingerprint: (hash >> 32) as u32, sequence: self.sequence };
    }

    /// True if the block was evicted within the last `age_max` evictions.
    pub(crate) fn contains(&self, hash: u64, age_max: u32) -> bool {
        let slot = self.slots[self.slot(hash)];
        slot.sequence != 0
            && slot.fingerprint == (hash >> 32) as u32
            && self.sequence.wrapping_sub(slot.sequence) < age_max.max(1)
    }

    fn slot(&self, hash: u64) -> usize {
        hash as usize & (self.slots.len() - 1)
    }
}
