//! The watch table: which clients of this replica wait for which path to change.
//!
//! Watches belong to connections and are not replicated. As in ZooKeeper's `DataTree` there are two tables,
//! data and child. One `u8` for each client and path has the bits of both:
//!
//! ```text
//!                 fires on                      once?   set by
//!  data           created, changed, deleted     once    exists, getData
//!  child          children changed, deleted     once    getChildren
//!  persistent     as data and child             stays   addWatch mode 0, a bit in each table
//!  recursive      created, changed, deleted,    stays   addWatch mode 1, a bit in each table
//!                 also of all descendants
//! ```
//!
//! All kinds live side by side, as in 3.9; in ZooKeeper 3.8 one replaced the other. A path is kept once for
//! all its watchers, and only while it has some. No answer depends on the hash seed. The caller checks that
//! a client may read what an event shows.

use hashbrown::HashTable;
use millrace_proto::zookeeper::{event, watcher_type};

mod paths;

use paths::Paths;

const DATA: u8 = 1;
const CHILD: u8 = 2;
const PERSISTENT_DATA: u8 = 4;
const PERSISTENT_CHILD: u8 = 8;
const RECURSIVE_DATA: u8 = 16;
/// Fires only if its twin in the data table was removed. Both see a deletion, and each client gets one
/// event.
const RECURSIVE_CHILD: u8 = 32;

const DATA_TABLE: u8 = DATA | PERSISTENT_DATA | RECURSIVE_DATA;
const CHILD_TABLE: u8 = CHILD | PERSISTENT_CHILD | RECURSIVE_CHILD;
const PERSISTENT: u8 = PERSISTENT_DATA | PERSISTENT_CHILD;
const RECURSIVE: u8 = RECURSIVE_DATA | RECURSIVE_CHILD;
const ONE_SHOT: u8 = DATA | CHILD;

/// A client already watches as many paths as it may, so the watch was not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a client may watch {max} paths at most")]
pub struct TooManyWatches {
    /// The configured limit.
    pub max: usize,
}

/// Counts of watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WatchCounts {
    /// Clients with a watch.
    pub clients: usize,
    /// Paths with a watch.
    pub paths: usize,
    /// Entries of both tables: a persistent watch counts twice, as in ZooKeeper's `zk_watch_count`.
    pub watches: usize,
}

/// The lists of a setWatches or setWatches2 request.
#[derive(Debug, Clone, Copy, Default)]
pub struct WatchLists<'a> {
    /// The last zxid the client has seen.
    pub relative_zxid: i64,
    pub data: &'a [&'a str],
    pub exist: &'a [&'a str],
    pub child: &'a [&'a str],
    pub persistent: &'a [&'a str],
    pub recursive: &'a [&'a str],
}

/// What one client watches.
struct Held {
    path: u32,
    bits: u8,
}

/// All watches of one replica.
pub struct WatchTable {
    paths: Paths,
    /// What each client watches, by client slot. Slots are small, so empty rows cost little.
    clients: Vec<HashTable<Held>>,
    counts: WatchCounts,
    /// Pairs of a client and a path with a recursive bit. Without any, ancestors are not looked up.
    recursive_count: usize,
    paths_per_client_max: usize,
}

/// Hashes an id. A table takes the low bits of a hash for the place, and in a product those depend only on
/// the low bits of the id, so the high bits are mixed in.
fn hash_id(path: u32) -> u64 {
    let product = u64::from(path).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 32
}

impl WatchTable {
    /// Builds an empty table. A client may watch `paths_per_client_max` paths. `seed` is random, so that no
    /// client can choose paths that collide.
    pub fn new(paths_per_client_max: usize, seed: u64) -> WatchTable {
        WatchTable {
            paths: Paths::new(seed),
            clients: Vec::new(),
            counts: WatchCounts::default(),
            recursive_count: 0,
            paths_per_client_max,
        }
    }

    /// Sets the one-shot watch of exists and getData.
    ///
    /// # Errors
    /// The client is at its limit; nothing changed.
    pub fn add_data(&mut self, client: u32, path: &str) -> Result<(), TooManyWatches> {
        self.add(client, path, DATA)
    }

    /// Sets the one-shot watch of getChildren.
    ///
    /// # Errors
    /// As [`WatchTable::add_data`].
    pub fn add_child(&mut self, client: u32, path: &str) -> Result<(), TooManyWatches> {
        self.add(client, path, CHILD)
    }

    /// Sets the watch of addWatch.
    ///
    /// # Errors
    /// As [`WatchTable::add_data`].
    pub fn add_persistent(
        &mut self,
        client: u32,
        path: &str,
        recursive: bool,
    ) -> Result<(), TooManyWatches> {
        self.add(client, path, if recursive { RECURSIVE } else { PERSISTENT })
    }

    /// Removes the client's watches of a kind (a code of `watcher_type`) on exactly this path. True if
    /// there was one. Kinds 1 and 2 clear one table in every mode, as in ZooKeeper 3.8, so the other half
    /// of a persistent watch stays. Kinds 4 and 5 are of 3.9.
    pub fn remove(&mut self, client: u32, path: &str, kind: i32) -> bool {
        let Some((id, bits)) = self.held(client, path) else { return false };
        let mask = kind_mask(kind);
        if bits & mask == 0 {
            return false;
        }
        self.set_bits(client, id, bits, bits & !mask);
        if bits & !mask == 0 {
            self.paths.remove_watcher(id, client);
            self.counts.paths = self.paths.len();
        }
        true
    }

    /// True if the client has a watch of this kind on exactly this path. ZooKeeper 3.8 finds any client's
    /// watch; here only the client's own count.
    pub fn contains(&self, client: u32, path: &str, kind: i32) -> bool {
        self.held(client, path).is_some_and(|(_, bits)| bits & kind_mask(kind) != 0)
    }

    /// Forgets a client whose connection ended.
    pub fn drop_client(&mut self, client: u32) {
        let Some(row) = self.clients.get_mut(client as usize) else { return };
        let row = std::mem::take(row);
        self.counts.clients -= usize::from(!row.is_empty());
        for held in row {
            self.account(held.bits, 0);
            self.paths.remove_watcher(held.path, client);
        }
        self.counts.paths = self.paths.len();
    }

    /// Appends the clients that get an event (a code of `event`) on `path`, each once, and removes the
    /// one-shot watches that fire.
    pub fn trigger(&mut self, kind: i32, path: &str, clients: &mut Vec<u32>) {
        if self.counts.paths == 0 {
            return;
        }
        let (here, below) = match kind {
            event::CREATED | event::DATA_CHANGED => (DATA_TABLE, RECURSIVE_DATA),
            event::DELETED => (DATA_TABLE | CHILD_TABLE, RECURSIVE),
            event::CHILDREN_CHANGED => (CHILD | PERSISTENT_CHILD, 0),
            _ => return,
        };
        let start = clients.len();
        if let Some(id) = self.paths.find(path) {
            self.fire(id, here, clients);
        }
        if below == 0 || self.recursive_count == 0 {
            return;
        }
        let direct_count = clients.len();
        for ancestor in std::iter::successors(parent(path), |path| parent(path)) {
            let Some(id) = self.paths.find(ancestor) else { continue };
            let watchers = self.paths.watchers(id).iter().copied();
            clients.extend(watchers.filter(|client| self.bits(*client, id) & below != 0));
        }
        if clients.len() > direct_count {
            let mut told = clients.split_off(start);
            told.sort_unstable();
            told.dedup();
            clients.append(&mut told);
        }
    }

    /// Applies setWatches (`DataTree.setWatches`): appends the events that the client has missed, as codes
    /// of `event` in order, and sets the other watches. `lookup` returns mzxid and pzxid of a node.
    /// Persistent watches are only set again and miss their events, as in ZooKeeper.
    ///
    /// # Errors
    /// The client is at its limit; the watches before stay set.
    pub fn set_watches<'a>(
        &mut self,
        client: u32,
        lists: &WatchLists<'a>,
        mut lookup: impl FnMut(&str) -> Option<(i64, i64)>,
        events: &mut Vec<(i32, &'a str)>,
    ) -> Result<(), TooManyWatches> {
        for path in lists.data {
            match lookup(path) {
                None => events.push((event::DELETED, path)),
                Some((mzxid, _)) if mzxid > lists.relative_zxid => {
                    events.push((event::DATA_CHANGED, path));
                }
                Some(_) => self.add_data(client, path)?,
            }
        }
        for path in lists.exist {
            match lookup(path) {
                Some(_) => events.push((event::CREATED, path)),
                None => self.add_data(client, path)?,
            }
        }
        for path in lists.child {
            match lookup(path) {
                None => events.push((event::DELETED, path)),
                Some((_, pzxid)) if pzxid > lists.relative_zxid => {
                    events.push((event::CHILDREN_CHANGED, path));
                }
                Some(_) => self.add_child(client, path)?,
            }
        }
        for path in lists.persistent {
            self.add_persistent(client, path, false)?;
        }
        for path in lists.recursive {
            self.add_persistent(client, path, true)?;
        }
        Ok(())
    }

    /// Returns the counts of watches.
    pub fn counts(&self) -> WatchCounts {
        self.counts
    }

    /// Lists every watched path with the clients that watch it.
    pub fn by_path(&self) -> impl Iterator<Item = (&str, &[u32])> {
        self.paths.iter()
    }

    /// Lists every client that watches, with its paths in no order.
    pub fn by_client(&self) -> impl Iterator<Item = (u32, impl Iterator<Item = &str>)> {
        self.clients.iter().enumerate().filter(|(_, row)| !row.is_empty()).map(|(client, row)| {
            let paths = row.iter().map(|held| self.paths.path(held.path));
            (client as u32, paths)
        })
    }

    fn add(&mut self, client: u32, path: &str, bits: u8) -> Result<(), TooManyWatches> {
        if let Some((id, old)) = self.held(client, path) {
            self.set_bits(client, id, old, old | bits);
            return Ok(());
        }
        let row_count = client as usize + 1;
        if self.clients.len() < row_count {
            self.clients.resize_with(row_count, HashTable::new);
        }
        let row = &mut self.clients[client as usize];
        if row.len() >= self.paths_per_client_max {
            return Err(TooManyWatches { max: self.paths_per_client_max });
        }
        let id = self.paths.add_watcher(path, client);
        self.counts.clients += usize::from(row.is_empty());
        row.insert_unique(hash_id(id), Held { path: id, bits }, |held| hash_id(held.path));
        self.counts.paths = self.paths.len();
        self.account(0, bits);
        Ok(())
    }

    /// Appends the clients of one path that have a bit of `mask`, and clears their one-shot bits.
    fn fire(&mut self, id: u32, mask: u8, clients: &mut Vec<u32>) {
        let mut watchers = self.paths.take_watchers(id);
        watchers.retain(|client| {
            let bits = self.bits(*client, id);
            if bits & mask == 0 {
                return true;
            }
            clients.push(*client);
            let left = bits & !(mask & ONE_SHOT);
            self.set_bits(*client, id, bits, left);
            left != 0
        });
        self.paths.put_watchers(id, watchers);
        self.counts.paths = self.paths.len();
    }

    fn held(&self, client: u32, path: &str) -> Option<(u32, u8)> {
        let row = self.clients.get(client as usize)?;
        if row.is_empty() {
            return None;
        }
        let id = self.paths.find(path)?;
        row.find(hash_id(id), |held| held.path == id).map(|held| (id, held.bits))
    }

    fn bits(&self, client: u32, id: u32) -> u8 {
        let row = self.clients.get(client as usize);
        row.and_then(|row| row.find(hash_id(id), |held| held.path == id))
            .map_or(0, |held| held.bits)
    }

    /// Replaces the bits of an existing pair. Without bits left, the path leaves the client's row.
    fn set_bits(&mut self, client: u32, id: u32, old: u8, new: u8) {
        if old == new {
            return;
        }
        self.account(old, new);
        let row = &mut self.clients[client as usize];
        let Ok(mut entry) = row.find_entry(hash_id(id), |held| held.path == id) else { return };
        if new != 0 {
            entry.get_mut().bits = new;
            return;
        }
        entry.remove();
        if row.is_empty() {
            *row = HashTable::new();
            self.counts.clients -= 1;
        }
    }

    fn account(&mut self, old: u8, new: u8) {
        let entries =
            |bits: u8| usize::from(bits & DATA_TABLE != 0) + usize::from(bits & CHILD_TABLE != 0);
        let recursive = |bits: u8| usize::from(bits & RECURSIVE != 0);
        self.counts.watches = self.counts.watches + entries(new) - entries(old);
        self.recursive_count = self.recursive_count + recursive(new) - recursive(old);
    }
}

fn kind_mask(kind: i32) -> u8 {
    match kind {
        watcher_type::CHILDREN => CHILD_TABLE,
        watcher_type::DATA => DATA_TABLE,
        watcher_type::ANY => DATA_TABLE | CHILD_TABLE,
        watcher_type::PERSISTENT => PERSISTENT,
        watcher_type::PERSISTENT_RECURSIVE => RECURSIVE,
        _ => 0,
    }
}

/// Returns the parent of a path, up to `/`.
fn parent(path: &str) -> Option<&str> {
    match path.rfind('/')? {
        0 if path.len() == 1 => None,
        0 => Some("/"),
        end => Some(&path[..end]),
    }
}

#[cfg(test)]
mod tests;
