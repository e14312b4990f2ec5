//! Which blocks of a file are here: one chain of entries for each file, so that dropping a file costs
//! what is dropped.
//!
//! Owns the links and a table of the first entries. Always holds: an entry that is in the cache's index
//! is in the chain of its file, once. Names of files come from elsewhere, so the table's hash has a
//! secret of its own.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as TableEntry;
use millrace_proto::FileId;

use super::Entry;

/// No entry.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct ChainLinks {
    previous: u32,
    next: u32,
}

/// Bytes for each entry: its links, and at most two places in the table.
pub(super) const ENTRY_COST: usize = size_of::<ChainLinks>() + 2 * (size_of::<u32>() + 1);

pub(super) struct Chains {
    /// The first entry of each file.
    heads: HashTable<u32>,
    links: Vec<ChainLinks>,
    hasher: RandomState,
}

impl Chains {
    /// Makes chains of at most `capacity` entries.
    pub(super) fn new(capacity: usize) -> Chains {
        Chains {
            heads: HashTable::with_capacity(capacity),
            links: vec![ChainLinks { previous: NONE, next: NONE }; capacity],
            hasher: RandomState::new(),
        }
    }

    /// Takes the memory of the table from the system, while it is empty.
    pub(super) fn populate(&mut self) {
        // Spread evenly, so that each page has some.
        let place = |index: &u32| u64::from(*index).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for index in 0..self.links.len() as u32 {
            self.heads.insert_unique(place(&index), index, place);
        }
        self.heads.clear();
    }

    /// Returns an entry of the file, if there is one. `entry_of` looks an entry up.
    pub(super) fn first<'a>(
        &self,
        file: FileId,
        entry_of: impl Fn(u32) -> Option<&'a Entry>,
    ) -> Option<u32> {
        let hash = self.hasher.hash_one(file);
        self.heads.find(hash, |index| is_of(&entry_of, *index, file)).copied()
    }

    /// Puts an entry in front of its file's chain.
    pub(super) fn link<'a>(
        &mut self,
        index: u32,
        file: FileId,
        entry_of: impl Fn(u32) -> Option<&'a Entry>,
    ) {
        let hash = self.hasher.hash_one(file);
        let hash_of = |index: &u32| {
            let entry = entry_of(*index).expect("an entry in a chain is in use");
            self.hasher.hash_one(entry.key.file)
        };
        let mut next = NONE;
        match self.heads.entry(hash, |index| is_of(&entry_of, *index, file), hash_of) {
            TableEntry::Occupied(mut head) => next = std::mem::replace(head.get_mut(), index),
            TableEntry::Vacant(place) => {
                place.insert(index);
            }
        }
        self.links[index as usize] = ChainLinks { previous: NONE, next };
        if next != NONE {
            self.links[next as usize].previous = index;
        }
    }

    /// Takes an entry, which is still in use, out of its file's chain.
    pub(super) fn unlink<'a>(
        &mut self,
        index: u32,
        file: FileId,
        entry_of: impl Fn(u32) -> Option<&'a Entry>,
    ) {
        let ChainLinks { previous, next } = self.links[index as usize];
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        if previous != NONE {
            self.links[previous as usize].next = next;
            return;
        }
        let hash = self.hasher.hash_one(file);
        let head = self.heads.find_entry(hash, |index| is_of(&entry_of, *index, file));
        let Ok(mut head) = head else { panic!("the first entry of a chain is in the table") };
        assert_eq!(*head.get(), index, "an entry without one before it is the first");
        match next {
            NONE => drop(head.remove()),
            next => *head.get_mut() = next,
        }
    }
}

fn is_of<'a>(entry_of: &impl Fn(u32) -> Option<&'a Entry>, index: u32, file: FileId) -> bool {
    entry_of(index).is_some_and(|entry| entry.key.file == file)
}
