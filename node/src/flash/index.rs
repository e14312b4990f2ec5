//! Where each run of chunks lies on the disks of a shard: open addressing, linear probing, fixed size.
//!
//! Owns 20 bytes a run; whole keys stay on the disk, in the heads of groups. Always holds: a run is found by walking
//! from its home slot to the first empty one; removing shifts later runs back, so there are no tombstones; nothing goes
//! round from the end to the start, so that a sweep from the end meets each run whatever is shifted meanwhile. A run of
//! another block or version is found by mistake about once in 10^11 look-ups; its head and its checksums, which have
//! the block's identity in them, tell so.

use std::hash::{BuildHasher, RandomState};

use millrace_proto::FileId;

use super::format::Stored;
use crate::cache::BlockKey;

/// Where a run lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    /// Number of the disk.
    pub disk: u8,
    /// Page of the head of its group in the shard's file.
    pub head: u32,
    /// Where its bytes begin, in pages from the head.
    pub payload: u16,
    /// Its first chunk.
    pub first: u8,
    /// Its last chunk.
    pub last: u8,
}

impl Spot {
    /// Returns where a run of the group with its head at this page lies. None if its numbers are too large to be kept.
    pub(crate) fn of(disk: u8, head: u32, stored: &Stored) -> Option<Spot> {
        let payload = u16::try_from(stored.payload).ok()?;
        let first = u8::try_from(stored.chunks.first).ok()?;
        let last = u8::try_from(stored.chunks.end.checked_sub(1)?).ok()?;
        Some(Spot { disk, head, payload, first, last })
    }
}

/// No disk has this number.
const EMPTY: u8 = u8::MAX;
/// Most disks of a node.
pub(crate) const DISKS_MAX: usize = 16;

#[derive(Clone, Copy)]
struct FlashSlot {
    /// Of block and version; names the home slot.
    tag: u32,
    /// Of the file.
    file: u32,
    head: u32,
    payload: u16,
    first: u8,
    last: u8,
    disk: u8,
    is_used: bool,
}

/// Slots for each hundred runs.
const SLOTS_PERCENT: usize = 115;
/// Slots behind the last home slot. Guessed: far more than are used in a row.
const SPARE_SLOTS: usize = 512;
/// Bytes for each run. Derived: slots that are 87 % full.
pub(crate) const RUN_COST: usize = size_of::<FlashSlot>() * SLOTS_PERCENT / 100;

/// See the module.
pub(crate) struct FlashIndex {
    slots: Vec<FlashSlot>,
    /// Slots where a search may begin.
    home_count: usize,
    count: usize,
    capacity: usize,
    hasher: RandomState,
}

impl FlashIndex {
    /// Makes an index for at most `capacity` runs.
    pub(crate) fn new(capacity: usize) -> FlashIndex {
        let home_count = capacity * SLOTS_PERCENT / 100 + 1;
        let empty = FlashSlot {
            tag: 0,
            file: 0,
            head: 0,
            payload: 0,
            first: 0,
            last: 0,
            disk: EMPTY,
            is_used: false,
        };
        let slots = vec![empty; home_count + SPARE_SLOTS];
        FlashIndex { slots, home_count, count: 0, capacity, hasher: RandomState::new() }
    }

    /// Returns the runs in it.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Returns the bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.slots.len() * size_of::<FlashSlot>()
    }

    /// True if there is room for one more.
    pub(crate) fn has_room(&self) -> bool {
        self.count < self.capacity
    }

    fn tags(&self, key: &BlockKey, version: u64) -> (u32, u32) {
        let tag = self.hasher.hash_one((key.file.0, key.block, version)) as u32;
        (tag, self.file_tag(key.file))
    }

    fn file_tag(&self, file: FileId) -> u32 {
        self.hasher.hash_one(file.0) as u32
    }

    /// Returns the slot where a search for a tag begins.
    fn home(&self, tag: u32) -> usize {
        ((u64::from(tag) * self.home_count as u64) >> 32) as usize
    }

    fn position(
        &self,
        key: &BlockKey,
        version: u64,
        is_match: impl Fn(&FlashSlot) -> bool,
    ) -> Option<usize> {
        let (tag, file) = self.tags(key, version);
        let home = self.home(tag);
        let row = self.slots[home..].iter().take_while(|slot| slot.disk != EMPTY);
        let is_it = |slot: &FlashSlot| slot.tag == tag && slot.file == file && is_match(slot);
        row.enumerate().find(|(_, slot)| is_it(slot)).map(|(place, _)| home + place)
    }

    /// Returns where a chunk of a block lies.
    pub(crate) fn find(&self, key: &BlockKey, version: u64, chunk: u32) -> Option<Spot> {
        let has =
            |slot: &FlashSlot| (u32::from(slot.first)..=u32::from(slot.last)).contains(&chunk);
        self.position(key, version, has).map(|place| spot(&self.slots[place]))
    }

    /// Notes that a run was read, so that it is written again before its place is.
    pub(crate) fn note_use(&mut self, key: &BlockKey, version: u64, wanted: Spot) {
        if let Some(place) = self.position(key, version, |slot| spot(slot) == wanted) {
            self.slots[place].is_used = true;
        }
    }

    /// True if a run was read since it was written; it begins again.
    pub(crate) fn take_use(&mut self, key: &BlockKey, version: u64, wanted: Spot) -> bool {
        let place = self.position(key, version, |slot| spot(slot) == wanted);
        place.is_some_and(|place| std::mem::take(&mut self.slots[place].is_used))
    }

    /// True if there is room: then a run is added, in place of one of the same block that holds the same chunks.
    pub(crate) fn insert(&mut self, key: &BlockKey, version: u64, at: Spot) -> bool {
        let is_same = |slot: &FlashSlot| (slot.first, slot.last) == (at.first, at.last);
        let (tag, file) = self.tags(key, version);
        let place = match self.position(key, version, is_same) {
            Some(place) => place,
            None if !self.has_room() => return false,
            None => {
                let home = self.home(tag);
                let empty = self.slots[home..].iter().position(|slot| slot.disk == EMPTY);
                let Some(place) = empty else { return false };
                self.count += 1;
                home + place
            }
        };
        let Spot { disk, head, payload, first, last } = at;
        self.slots[place] =
            FlashSlot { tag, file, head, payload, first, last, disk, is_used: false };
        true
    }

    /// Removes a run, if it is still there. True if it was.
    pub(crate) fn remove(&mut self, key: &BlockKey, version: u64, wanted: Spot) -> bool {
        let place = self.position(key, version, |slot| spot(slot) == wanted);
        place.is_some_and(|place| {
            self.remove_at(place);
            true
        })
    }

    fn remove_at(&mut self, mut hole: usize) {
        for place in hole + 1..self.slots.len() {
            let slot = self.slots[place];
            if slot.disk == EMPTY {
                break;
            }
            // A slot may fill the hole unless its home lies behind it.
            if self.home(slot.tag) <= hole {
                self.slots[hole] = slot;
                hole = place;
            }
        }
        self.slots[hole].disk = EMPTY;
        self.count -= 1;
    }

    /// Returns the number of slots: where [`FlashIndex::remove_of_file`] begins.
    pub(crate) fn end(&self) -> usize {
        self.slots.len()
    }

    /// Removes the runs of a file among `slot_count` slots before number `end`. Returns how many were removed, and
    /// the slot to go on before, if there are more. Other runs may be added and removed in between.
    pub(crate) fn remove_of_file(
        &mut self,
        file: FileId,
        end: usize,
        slot_count: usize,
    ) -> (u32, Option<usize>) {
        let tag = self.file_tag(file);
        let start = end.saturating_sub(slot_count);
        let removed = self.sweep(start, end, |slot| slot.file == tag);
        (removed, (start > 0).then_some(start))
    }

    /// Removes all runs of a disk whose heads lie in these pages.
    pub(crate) fn remove_pages(&mut self, disk: u8, pages: std::ops::Range<u32>) {
        let is_unwanted = |slot: &FlashSlot| slot.disk == disk && pages.contains(&slot.head);
        self.sweep(0, self.slots.len(), is_unwanted);
    }

    /// Removes runs from the last of these slots to the first. Returns how many.
    fn sweep(&mut self, start: usize, end: usize, is_unwanted: impl Fn(&FlashSlot) -> bool) -> u32 {
        let mut removed = 0;
        for place in (start..end).rev() {
            while self.slots[place].disk != EMPTY && is_unwanted(&self.slots[place]) {
                self.remove_at(place);
                removed += 1;
            }
        }
        removed
    }
}

fn spot(slot: &FlashSlot) -> Spot {
    let FlashSlot { disk, head, payload, first, last, .. } = *slot;
    Spot { disk, head, payload, first, last }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn key(number: u32) -> BlockKey {
        BlockKey { file: FileId(u128::from(number / 4)), block: number % 4 }
    }

    #[test]
    fn a_chunk_costs_no_more_than_24_bytes() {
        const { assert!(RUN_COST <= 24) };
        let index = FlashIndex::new(1 << 20);
        assert!(index.bytes() <= 24 << 20, "{}", index.bytes());
    }

    /// Runs random operations beside a map.
    #[test]
    fn behaves_like_a_map() {
        for seed in 0..100 {
            let mut random = fastrand::Rng::with_seed(seed);
            let capacity = random.usize(1..60);
            let mut index = FlashIndex::new(capacity);
            let mut model: HashMap<(u32, u64, u8), Spot> = HashMap::new();
            for step in 0..600u32 {
                let (number, version, part) =
                    (random.u32(0..30), random.u64(0..2), random.u8(0..3));
                let at = Spot {
                    disk: part % 2,
                    head: step,
                    payload: 1,
                    first: part * 4,
                    last: part * 4 + 3,
                };
                match random.u32(0..10) {
                    0..5 => {
                        let is_new = !model.contains_key(&(number, version, part));
                        let has_room = model.len() < capacity;
                        let inserted = index.insert(&key(number), version, at);
                        assert_eq!(inserted, !is_new || has_room);
                        if inserted {
                            model.insert((number, version, part), at);
                        }
                    }
                    5..8 => {
                        if let Some(at) = model.remove(&(number, version, part)) {
                            assert!(index.remove(&key(number), version, at));
                            assert!(!index.remove(&key(number), version, at));
                        }
                    }
                    8 => {
                        let file = key(number).file;
                        let mut end = Some(index.end());
                        while let Some(before) = end {
                            end = index.remove_of_file(file, before, 7).1;
                            // Others come and go meanwhile.
                            let others =
                                |(number, _, _): &&(u32, u64, u8)| key(*number).file != file;
                            if let Some(other) = model.keys().find(others).copied() {
                                let at = model.remove(&other).unwrap();
                                assert!(index.remove(&key(other.0), other.1, at));
                            }
                        }
                        model.retain(|(number, _, _), _| key(*number).file != file);
                    }
                    _ => {
                        index.remove_pages(1, step / 2..step);
                        model.retain(|_, at| at.disk != 1 || !(step / 2..step).contains(&at.head));
                    }
                }
                assert_eq!(index.count(), model.len());
                for ((number, version, part), at) in &model {
                    let chunk = u32::from(*part) * 4 + random.u32(0..4);
                    assert_eq!(index.find(&key(*number), *version, chunk), Some(*at));
                }
                assert_eq!(index.find(&key(number), 9, 0), None);
            }
        }
    }

    #[test]
    fn uses_are_noted_once() {
        let mut index = FlashIndex::new(4);
        let at = Spot { disk: 0, head: 8, payload: 1, first: 0, last: 15 };
        assert!(index.insert(&key(1), 5, at));
        assert!(!index.take_use(&key(1), 5, at));
        index.note_use(&key(1), 5, at);
        assert!(index.take_use(&key(1), 5, at));
        assert!(!index.take_use(&key(1), 5, at));
    }
}
