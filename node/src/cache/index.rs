//! From the hash of a block to its entry: open addressing, linear probing, fixed size.
//!
//! Owns tags and entry numbers, eight bytes a slot; keys stay with the entries. Always holds: at most
//! half of the slots are used, and an entry is found by walking from its home slot to the first empty
//! one. Removing shifts later entries back, so there are no tombstones and the table never degrades.
//!
//! A general hash table would do, but it hides where a slot lies: here the slots of many look-ups can be
//! touched at once, so that the processor waits for memory once and not once for each
//! (see [`Index::warm`]).

/// No entry.
const EMPTY: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Slot {
    /// Upper half of the hash; its low bits name the home slot.
    tag: u32,
    entry: u32,
}

/// Bytes for each entry.
pub(super) const ENTRY_COST: usize = 4 * size_of::<Slot>();

pub(super) struct Index {
    slots: Vec<Slot>,
    mask: usize,
}

fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}

impl Index {
    /// Makes an index for at most `capacity` entries.
    pub(super) fn new(capacity: usize) -> Index {
        let size = (2 * capacity).next_power_of_two();
        Index { slots: vec![Slot { tag: 0, entry: EMPTY }; size], mask: size - 1 }
    }

    /// Returns the entry with this hash that `is_match` accepts.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut is_match: impl FnMut(u32) -> bool) -> Option<u32> {
        let tag = tag(hash);
        let mut place = tag as usize & self.mask;
        loop {
            let slot = self.slots[place];
            if slot.entry == EMPTY {
                return None;
            }
            if slot.tag == tag && is_match(slot.entry) {
                return Some(slot.entry);
            }
            place = (place + 1) & self.mask;
        }
    }

    /// Returns the entry in the home slot of a hash, which is nearly always the one that `find` would
    /// return.
    #[inline]
    pub(super) fn warm(&self, hash: u64) -> Option<u32> {
        let slot = self.slots[tag(hash) as usize & self.mask];
        (slot.entry != EMPTY).then_some(slot.entry)
    }

    /// Adds an entry. Its key is not in the index.
    pub(super) fn insert(&mut self, hash: u64, entry: u32) {
        let tag = tag(hash);
        let mut place = tag as usize & self.mask;
        while self.slots[place].entry != EMPTY {
            place = (place + 1) & self.mask;
        }
        self.slots[place] = Slot { tag, entry };
    }

    /// Removes an entry.
    ///
    /// # Panics
    /// If it is not there.
    pub(super) fn remove(&mut self, hash: u64, entry: u32) {
        let mut hole = tag(hash) as usize & self.mask;
        while self.slots[hole].entry != entry {
            assert_ne!(self.slots[hole].entry, EMPTY, "an entry is removed once");
            hole = (hole + 1) & self.mask;
        }
        let mut place = hole;
        loop {
            place = (place + 1) & self.mask;
            let slot = self.slots[place];
            if slot.entry == EMPTY {
                break;
            }
            // A slot may fill the hole unless its home lies behind it, on the way from hole to place.
            let home = slot.tag as usize & self.mask;
            let from_home = place.wrapping_sub(home) & self.mask;
            let from_hole = place.wrapping_sub(hole) & self.mask;
            if from_home >= from_hole {
                self.slots[hole] = slot;
                hole = place;
            }
        }
        self.slots[hole].entry = EMPTY;
    }
}

#[cfg(test)]
impl Index {
    /// Returns the most slots in a row that are used, which is what the longest look-up walks.
    pub(super) fn longest_run(&self) -> usize {
        let runs = self.slots.split(|slot| slot.entry == EMPTY);
        runs.map(<[Slot]>::len).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Runs random operations beside a map, with so few home slots that most entries collide.
    #[test]
    fn behaves_like_a_map_even_when_everything_collides() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let capacity = random.usize(1..40);
            let homes = random.u64(1..20);
            let mut index = Index::new(capacity);
            let mut model: HashMap<u32, u64> = HashMap::new();
            for step in 0..500u32 {
                if model.len() < capacity && random.bool() {
                    let hash = random.u64(0..homes) << 32 | random.u64(0..1 << 32);
                    index.insert(hash, step);
                    model.insert(step, hash);
                } else if let Some(entry) = random.choice(model.keys().copied().collect::<Vec<_>>())
                {
                    let hash = model.remove(&entry).unwrap();
                    index.remove(hash, entry);
                    assert_eq!(index.find(hash, |other| other == entry), None);
                }
                for (entry, hash) in &model {
                    assert_eq!(index.find(*hash, |other| other == *entry), Some(*entry));
                }
            }
        }
    }
}
