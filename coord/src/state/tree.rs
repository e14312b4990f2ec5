//! The znodes: a slab, an index by path, and the links between parents and children.
//!
//! Invariants:
//! 1. Slot 0 is the root and always taken. A slot is free exactly when it is in `free`.
//! 2. Every other taken slot is in the index once, under the hash of its full path, and in its
//!    parent's list of children once; names among siblings differ.
//! 3. Freed slots are reused last in, first out, so undoing steps in reverse finds its slots again.
//!
//! Nothing here recurses, and listing children allocates nothing. The meaning of a change (versions,
//! sessions, quotas) is in `write`.
//!
//! ```text
//!  index: hash of full path ─► slot      nodes[slot]
//! ┌────┬────┬────┬────┐        ┌──────┬────────────────┬────────┬───────────────────┐
//! │  7 │    │  2 │  … │ ─────► │ meta │ body ─► name…  │ parent │ first_child, next,│
//! └────┴────┴────┴────┘        │      │        data…   │        │ previous, count   │
//!  4 bytes a node              └──────┴────────────────┴────────┴───────────────────┘ 112 bytes
//! ```

use std::collections::BTreeSet;
use std::mem;

use hashbrown::HashTable;
use millrace_proto::zookeeper::Stat;
use twox_hash::XxHash3_64;

/// Slot of "/".
pub(super) const ROOT: u32 = 0;
/// Stands for no slot.
pub(super) const NONE: u32 = u32::MAX;
/// Most nodes of a tree: 30 GB of slab, which is far more than one machine should keep in memory.
pub(super) const NODES_MAX: usize = 1 << 28;

/// Owner of a container node (ZooKeeper's `EphemeralType.CONTAINER_EPHEMERAL_OWNER`).
pub(crate) const OWNER_CONTAINER: i64 = i64::MIN;
/// Highest byte of the owner of a TTL node; the lowest five are the time to live.
const OWNER_TTL: i64 = 0xff << 56;
/// Longest time to live in milliseconds, about 34 years.
pub(super) const TTL_MAX_MS: i64 = (1 << 40) - 1;

/// What keeps a node alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Persistent,
    /// Removed with its session.
    Ephemeral,
    /// Removed after its last child.
    Container,
    /// Removed when it had no child and no change for this long.
    Ttl {
        ttl_ms: i64,
    },
}

/// Returns the owner field of a TTL node.
pub(crate) fn owner_of_ttl(ttl_ms: i64) -> i64 {
    OWNER_TTL | ttl_ms
}

/// The numbers of a node, as in ZooKeeper's `StatPersisted`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Meta {
    pub(super) czxid: i64,
    pub(super) mzxid: i64,
    pub(super) pzxid: i64,
    /// Milliseconds since 1970.
    pub(super) ctime: i64,
    /// Milliseconds since 1970.
    pub(super) mtime: i64,
    /// A session, 0, or a mark of a container or TTL node.
    pub(super) owner: i64,
    pub(super) version: i32,
    /// Count of created children; clients see another number, see [`Tree::stat`].
    pub(super) cversion: i32,
    pub(super) aversion: i32,
    /// Key of the ACL in the table of ACLs.
    pub(super) acl: u32,
}

impl Meta {
    pub(super) fn life(&self) -> Life {
        match self.owner {
            0 => Life::Persistent,
            OWNER_CONTAINER => Life::Container,
            owner if owner & OWNER_TTL == OWNER_TTL => Life::Ttl { ttl_ms: owner & !OWNER_TTL },
            _ => Life::Ephemeral,
        }
    }
}

/// Name and data in one allocation, so that a small node costs one header of the allocator.
#[derive(Debug, Default)]
pub(super) struct Body {
    bytes: Box<[u8]>,
    name_size: u32,
    /// True if there is data, which may be empty; false for null.
    has_data: bool,
}

impl Body {
    fn new(name: &[u8], data: Option<&[u8]>) -> Body {
        let size = name.len() + data.map_or(0, <[u8]>::len);
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(data.unwrap_or_default());
        Body {
            bytes: bytes.into_boxed_slice(),
            name_size: name.len() as u32,
            has_data: data.is_some(),
        }
    }

    fn name(&self) -> &[u8] {
        &self.bytes[..self.name_size as usize]
    }

    fn data(&self) -> Option<&[u8]> {
        self.has_data.then(|| &self.bytes[self.name_size as usize..])
    }

    fn data_size(&self) -> usize {
        self.bytes.len() - self.name_size as usize
    }
}

/// A slot of the slab.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) meta: Meta,
    body: Body,
    /// Upper half of the hash of the full path.
    hash: u32,
    /// [`NONE`] in the root and in free slots.
    parent: u32,
    first_child: u32,
    next: u32,
    previous: u32,
    child_count: u32,
}

const _: () = assert!(size_of::<Node>() == 112);

impl Node {
    fn new(meta: Meta, body: Body, hash: u32, parent: u32) -> Node {
        let (first_child, next, previous) = (NONE, NONE, NONE);
        Node { meta, body, hash, parent, first_child, next, previous, child_count: 0 }
    }

    /// Builds the content of a free slot.
    fn vacant() -> Node {
        Node::new(Meta::default(), Body::default(), 0, NONE)
    }

    pub(super) fn child_count(&self) -> u32 {
        self.child_count
    }

    pub(super) fn data(&self) -> Option<&[u8]> {
        self.body.data()
    }

    pub(super) fn data_size(&self) -> usize {
        self.body.data_size()
    }

    pub(super) fn parent(&self) -> u32 {
        self.parent
    }

    pub(super) fn name(&self) -> &[u8] {
        self.body.name()
    }
}

/// The znodes; see the module.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    free: Vec<u32>,
    index: HashTable<u32>,
    /// Makes hashes differ between processes, so that no client can prepare paths that collide.
    seed: u64,
    /// Bytes of all paths and data.
    bytes: u64,
}

/// Spreads the 32 bits that a node keeps over the 64 that a table needs.
fn spread(hash: u32) -> u64 {
    u64::from(hash) * 0x1_0000_0001
}

impl Tree {
    /// Builds a tree with only the root, whose data is empty.
    pub(super) fn new(seed: u64) -> Tree {
        let root = Node::new(Meta::default(), Body::new(b"", Some(b"")), 0, NONE);
        Tree { nodes: vec![root], free: Vec::new(), index: HashTable::new(), seed, bytes: 1 }
    }

    pub(super) fn node_count(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns one more than the highest slot ever taken.
    pub(super) fn slot_count(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// Returns the node in a taken slot.
    pub(super) fn node(&self, slot: u32) -> &Node {
        &self.nodes[slot as usize]
    }

    pub(super) fn meta_mut(&mut self, slot: u32) -> &mut Meta {
        &mut self.nodes[slot as usize].meta
    }

    /// Returns the node in `slot`; `None` for a free slot.
    pub(super) fn get(&self, slot: u32) -> Option<&Node> {
        let node = self.nodes.get(slot as usize)?;
        (slot == ROOT || node.parent != NONE).then_some(node)
    }

    fn hash(&self, path: &str) -> u32 {
        (XxHash3_64::oneshot_with_seed(self.seed, path.as_bytes()) >> 32) as u32
    }

    /// Finds the node with exactly this path; "" is another name of the root, as in ZooKeeper.
    pub(super) fn find(&self, path: &str) -> Option<u32> {
        if path.len() <= 1 && (path.is_empty() || path == "/") {
            return Some(ROOT);
        }
        let hash = self.hash(path);
        let is_it = |slot: &u32| self.node(*slot).hash == hash && self.has_path(*slot, path);
        self.index.find(spread(hash), is_it).copied()
    }

    /// True if this is the whole path of the node. Compares from the last name to the first.
    pub(super) fn has_path(&self, mut slot: u32, path: &str) -> bool {
        let mut rest = path.as_bytes();
        while slot != ROOT {
            let node = self.node(slot);
            let before = rest.strip_suffix(node.name()).and_then(|rest| rest.strip_suffix(b"/"));
            let Some(before) = before else { return false };
            rest = before;
            slot = node.parent;
        }
        rest.is_empty()
    }

    /// Appends the path of a node, without a slash at the end, and so nothing for the root.
    pub(super) fn push_path(&self, slot: u32, path: &mut String) {
        let mut names = Vec::new();
        let mut current = slot;
        while current != ROOT {
            names.push(current);
            current = self.node(current).parent;
        }
        for slot in names.into_iter().rev() {
            path.push('/');
            path.push_str(self.name(slot));
        }
    }

    pub(super) fn path(&self, slot: u32) -> String {
        let mut path = String::new();
        self.push_path(slot, &mut path);
        if path.is_empty() {
            path.push('/');
        }
        path
    }

    pub(super) fn name(&self, slot: u32) -> &str {
        std::str::from_utf8(self.node(slot).name()).expect("names come from strings")
    }

    fn path_size(&self, mut slot: u32) -> usize {
        let mut size = 0;
        while slot != ROOT {
            let node = self.node(slot);
            size += 1 + node.name().len();
            slot = node.parent;
        }
        size.max(1)
    }

    pub(super) fn children(&self, slot: u32) -> impl Iterator<Item = u32> {
        let taken = |slot: u32| (slot != NONE).then_some(slot);
        let first = taken(self.node(slot).first_child);
        std::iter::successors(first, move |slot| taken(self.node(*slot).next))
    }

    /// Returns the metadata as clients see it (ZooKeeper's `DataNode.copyStat`).
    pub(super) fn stat(&self, slot: u32) -> Stat {
        let node = self.node(slot);
        let meta = &node.meta;
        let child_count = node.child_count as i32;
        Stat {
            czxid: meta.czxid,
            mzxid: meta.mzxid,
            ctime: meta.ctime,
            mtime: meta.mtime,
            version: meta.version,
            // Creates and deletes must both show: twice the creates, less the children that are left.
            cversion: meta.cversion.wrapping_mul(2).wrapping_sub(child_count),
            aversion: meta.aversion,
            ephemeral_owner: if meta.life() == Life::Ephemeral { meta.owner } else { 0 },
            data_length: node.data_size() as i32,
            child_count,
            pzxid: meta.pzxid,
        }
    }

    /// Adds the node `path` below `parent`, which has no such child. Returns `None` if the tree is full.
    pub(super) fn insert(
        &mut self,
        parent: u32,
        path: &str,
        data: Option<&[u8]>,
        meta: Meta,
    ) -> Option<u32> {
        let name = path.rsplit('/').next().unwrap_or_default();
        let node = Node::new(meta, Body::new(name.as_bytes(), data), self.hash(path), parent);
        self.bytes += (path.len() + node.data_size()) as u64;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.nodes[slot as usize] = node;
                slot
            }
            None if self.nodes.len() >= NODES_MAX => return None,
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        self.link(slot);
        Some(slot)
    }

    /// Removes a node without children.
    pub(super) fn remove(&mut self, slot: u32) -> Node {
        let gone = self.path_size(slot) + self.node(slot).data_size();
        self.bytes -= gone as u64;
        self.unlink(slot);
        self.free.push(slot);
        mem::replace(&mut self.nodes[slot as usize], Node::vacant())
    }

    /// Undoes the latest [`Tree::remove`] not undone yet, which took `node` from `slot`.
    pub(super) fn put_back(&mut self, slot: u32, node: Node) {
        assert_eq!(self.free.pop(), Some(slot), "removals are undone in reverse");
        self.nodes[slot as usize] = node;
        self.link(slot);
        self.bytes += (self.path_size(slot) + self.node(slot).data_size()) as u64;
    }

    /// Adds a node to the index and to its siblings.
    fn link(&mut self, slot: u32) {
        let Node { hash, parent, .. } = self.nodes[slot as usize];
        self.link_sibling(slot, parent);
        let hash_of = |slot: &u32| spread(self.nodes[*slot as usize].hash);
        self.index.insert_unique(spread(hash), slot, hash_of);
    }

    /// Puts a node before its siblings.
    fn link_sibling(&mut self, slot: u32, parent: u32) {
        let above = &mut self.nodes[parent as usize];
        above.child_count += 1;
        let first = mem::replace(&mut above.first_child, slot);
        let node = &mut self.nodes[slot as usize];
        (node.next, node.previous) = (first, NONE);
        if first != NONE {
            self.nodes[first as usize].previous = slot;
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Node { hash, parent, next, previous, .. } = self.nodes[slot as usize];
        match previous {
            NONE => self.nodes[parent as usize].first_child = next,
            previous => self.nodes[previous as usize].next = next,
        }
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        self.nodes[parent as usize].child_count -= 1;
        let entry = self.index.find_entry(spread(hash), |other| *other == slot);
        entry.expect("every node is in the index").remove();
    }

    /// Replaces the data and returns the old one.
    pub(super) fn set_data(&mut self, slot: u32, data: Option<&[u8]>) -> Body {
        let body = Body::new(self.node(slot).name(), data);
        self.set_body(slot, body)
    }

    /// Undoes [`Tree::set_data`].
    pub(super) fn set_body(&mut self, slot: u32, body: Body) -> Body {
        let new = body.data_size() as u64;
        let old = mem::replace(&mut self.nodes[slot as usize].body, body);
        self.bytes = self.bytes + new - old.data_size() as u64;
        old
    }

    /// Walks the subtree of `top`, parents before children.
    pub(super) fn walk(&self, top: u32) -> Walk<'_> {
        Walk { tree: self, top, last: None, path: String::new() }
    }

    /// Puts a loaded node into `slot`, without links; keeps data that is there.
    pub(super) fn place(&mut self, slot: u32, parent: u32, name: &[u8], meta: Meta) {
        let body = Body::new(name, self.reserve(slot).body.data());
        self.nodes[slot as usize] = Node::new(meta, body, 0, parent);
    }

    /// Gives `slot` its loaded data; keeps the name that is there.
    pub(super) fn place_data(&mut self, slot: u32, data: Option<&[u8]>) {
        let node = self.reserve(slot);
        node.body = Body::new(node.body.name(), data);
    }

    fn reserve(&mut self, slot: u32) -> &mut Node {
        let index = slot as usize;
        if self.nodes.len() <= index {
            self.nodes.resize_with(index + 1, Node::vacant);
        }
        &mut self.nodes[index]
    }

    /// Builds index, links and sums after loading.
    ///
    /// # Errors
    ///
    /// The slot that does not fit, and the reason.
    pub(super) fn relink(&mut self) -> Result<(), (u32, &'static str)> {
        self.free.clear();
        for slot in (1..self.slot_count()).rev() {
            let parent = self.node(slot).parent;
            if parent == NONE {
                self.free.push(slot);
            } else if self.get(parent).is_none() {
                return Err((slot, "its parent is missing"));
            }
        }
        self.clear_links();
        let mut hashes = Vec::with_capacity(self.node_count());
        let mut bytes = 0;
        let mut walk = self.walk(ROOT);
        while let Some((slot, path)) = walk.next() {
            hashes.push((slot, self.hash(path)));
            bytes += (path.len().max(1) + self.node(slot).data_size()) as u64;
        }
        self.bytes = bytes;
        self.index = HashTable::with_capacity(hashes.len());
        for &(slot, hash) in hashes.iter().filter(|(slot, _)| *slot != ROOT) {
            self.nodes[slot as usize].hash = hash;
            let is_same = |other: &u32| {
                let (one, other) = (self.node(slot), self.node(*other));
                one.hash == other.hash && one.parent == other.parent && one.name() == other.name()
            };
            if self.index.find(spread(hash), is_same).is_some() {
                return Err((slot, "a sibling has the same name"));
            }
            let hash_of = |slot: &u32| spread(self.nodes[*slot as usize].hash);
            self.index.insert_unique(spread(hash), slot, hash_of);
        }
        if hashes.len() == self.node_count() {
            return Ok(());
        }
        let reached: BTreeSet<u32> = hashes.into_iter().map(|(slot, _)| slot).collect();
        let is_lost = |slot: &u32| self.get(*slot).is_some() && !reached.contains(slot);
        let lost = (1..self.slot_count()).find(is_lost).unwrap_or(ROOT);
        Err((lost, "it is not below the root"))
    }

    /// Rebuilds every list of children from the children's parents.
    fn clear_links(&mut self) {
        for node in &mut self.nodes {
            (node.first_child, node.child_count) = (NONE, 0);
        }
        for slot in (1..self.slot_count()).rev() {
            let parent = self.node(slot).parent;
            if parent != NONE {
                self.link_sibling(slot, parent);
            }
        }
    }
}

/// A walk through a subtree.
pub(super) struct Walk<'a> {
    tree: &'a Tree,
    top: u32,
    last: Option<u32>,
    /// Path of the last node below the top; empty for the top itself.
    path: String,
}

impl Walk<'_> {
    /// Returns the next node and its path below the top.
    pub(super) fn next(&mut self) -> Option<(u32, &str)> {
        let slot = match self.last {
            None => self.top,
            Some(last) => self.after(last)?,
        };
        if slot != self.top {
            self.path.push('/');
            self.path.push_str(self.tree.name(slot));
        }
        self.last = Some(slot);
        Some((slot, &self.path))
    }

    fn after(&mut self, last: u32) -> Option<u32> {
        let mut node = self.tree.node(last);
        if node.first_child != NONE {
            return Some(node.first_child);
        }
        let mut current = last;
        while current != self.top {
            self.path.truncate(self.path.len() - node.name().len() - 1);
            if node.next != NONE {
                return Some(node.next);
            }
            current = node.parent;
            node = self.tree.node(current);
        }
        None
    }
}
