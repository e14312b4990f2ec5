//! The watched paths: each kept once, under a small id, with the clients that watch it.
//!
//! A path is here exactly while it has a watcher. Its id is reused after that.

use hashbrown::HashTable;
use twox_hash::XxHash3_64;

/// A watched path, or a free slot: no watchers.
#[derive(Default)]
struct PathSlot {
    path: Box<str>,
    /// The clients, each once, in no order.
    watchers: Vec<u32>,
}

pub(super) struct Paths {
    slots: Vec<PathSlot>,
    free: Vec<u32>,
    index: HashTable<u32>,
    seed: u64,
}

fn hash_path(seed: u64, path: &str) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, path.as_bytes())
}

impl Paths {
    pub(super) fn new(seed: u64) -> Paths {
        Paths { slots: Vec::new(), free: Vec::new(), index: HashTable::new(), seed }
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn find(&self, path: &str) -> Option<u32> {
        let is_it = |id: &u32| &*self.slots[*id as usize].path == path;
        self.index.find(hash_path(self.seed, path), is_it).copied()
    }

    pub(super) fn path(&self, id: u32) -> &str {
        &self.slots[id as usize].path
    }

    pub(super) fn watchers(&self, id: u32) -> &[u32] {
        &self.slots[id as usize].watchers
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &[u32])> {
        let used = self.slots.iter().filter(|slot| !slot.watchers.is_empty());
        used.map(|slot| (&*slot.path, &*slot.watchers))
    }

    /// Adds a client that does not watch the path yet.
    pub(super) fn add_watcher(&mut self, path: &str, client: u32) -> u32 {
        if let Some(id) = self.find(path) {
            self.slots[id as usize].watchers.push(client);
            return id;
        }
        // Most paths have one watcher, so there is no spare room until a second comes.
        let slot = PathSlot { path: path.into(), watchers: vec![client] };
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id as usize] = slot;
                id
            }
            None => {
                self.slots.push(slot);
                u32::try_from(self.slots.len() - 1).expect("memory ends before 2^32 paths")
            }
        };
        let Paths { slots, index, seed, .. } = self;
        index.insert_unique(hash_path(*seed, path), id, |id| {
            hash_path(*seed, &slots[*id as usize].path)
        });
        id
    }

    /// Removes a client that watches the path, and the path with its last watcher.
    pub(super) fn remove_watcher(&mut self, id: u32, client: u32) {
        let mut watchers = self.take_watchers(id);
        let position = watchers.iter().position(|watcher| *watcher == client);
        watchers.swap_remove(position.expect("rows and paths name the same pairs"));
        self.put_watchers(id, watchers);
    }

    /// Lends the watchers out; [`Paths::put_watchers`] must follow.
    pub(super) fn take_watchers(&mut self, id: u32) -> Vec<u32> {
        std::mem::take(&mut self.slots[id as usize].watchers)
    }

    /// Puts the remaining watchers back. If there are none, the id is free.
    pub(super) fn put_watchers(&mut self, id: u32, watchers: Vec<u32>) {
        let slot = &mut self.slots[id as usize];
        slot.watchers = watchers;
        if !slot.watchers.is_empty() {
            return;
        }
        let hash = hash_path(self.seed, &slot.path);
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == id) {
            entry.remove();
        }
        *slot = PathSlot::default();
        self.free.push(id);
    }
}
