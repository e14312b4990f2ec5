//! One branch or leaf page: each node within bounds and apart from the others, keys ascending.
//!
//! ```text
//!  ┌ number ┬ pad ┬ flags ┬ lower ┬ upper ┬ offsets … ┄ free ┄ ┬ nodes, in any order ┐
//!  └ u64 ───┴ u16 ┴ u16 ──┴ u16 ──┴ u16 ──┴ u16 each ┄┄┄┄┄┄┄┄┄┄┴─────────────────────┘
//!  0                                      16      lower      upper            page size
//!
//!  node   ┌ low ┬ high ┬ flags ┬ key size ┬ key ┬ value, or the number of its overflow page ┐
//!         └ u16 ┴ u16 ─┴ u16 ──┴ u16 ─────┴─────┴───────────────────────────────────────────┘
//! ```
//!
//! In a leaf `low` and `high` are the size of the value. In a branch they and `flags` are the child. LMDB
//! compares the keys of the free tree as numbers. Their bytes are reversed here, so that both trees compare
//! bytes.

use std::ops::Range;

use super::{HEADER_SIZE, KEY_SIZE_MAX, TreeKind, u16_at, u32_at, u64_at};

/// Bytes of a node before its key.
const NODE_SIZE: usize = 8;
/// `F_BIGDATA`: the value is in overflow pages.
const BIG_DATA: u16 = 0x01;

/// The kind of a page by its header. Other flags, which LMDB has only in memory, are damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageKind {
    Branch,
    Leaf,
}

impl PageKind {
    pub(super) const OVERFLOW: u16 = 0x04;
    pub(super) const META: u16 = 0x08;
}

/// A node of a checked page.
#[derive(Debug, Clone)]
pub(super) struct PageNode {
    pub(super) key: Range<usize>,
    /// Place of the value, if it is in the page.
    pub(super) value: Range<usize>,
    pub(super) value_size: usize,
    /// The overflow page of the value otherwise.
    pub(super) overflow: Option<u64>,
    /// The page below, in branches only.
    pub(super) child: u64,
}

/// A page that was checked by itself. The walk checks where its nodes point to.
pub(super) struct LmdbPage {
    bytes: Vec<u8>,
    number: u64,
    kind: PageKind,
    nodes: Vec<PageNode>,
}

impl LmdbPage {
    /// Checks a page. The error names the mistake.
    pub(super) fn new(bytes: Vec<u8>, number: u64, tree: TreeKind) -> Result<LmdbPage, String> {
        if u64_at(&bytes, 0) != number {
            return Err(format!("its header says that it is page {}", u64_at(&bytes, 0)));
        }
        let kind = match u16_at(&bytes, 10) {
            0x01 => PageKind::Branch,
            0x02 => PageKind::Leaf,
            flags => return Err(format!("it is neither a branch nor a leaf (flags {flags:#x})")),
        };
        let lower = usize::from(u16_at(&bytes, 12));
        let upper = usize::from(u16_at(&bytes, 14));
        if lower < HEADER_SIZE || !lower.is_multiple_of(2) || upper < lower || upper > bytes.len() {
            return Err(format!("its free space is from {lower} to {upper}"));
        }
        let count = (lower - HEADER_SIZE) / 2;
        // LMDB asserts that a branch has two children, and reads the first node of any leaf.
        if count < if kind == PageKind::Branch { 2 } else { 1 } {
            return Err(format!("it has {count} nodes"));
        }
        let mut page = LmdbPage { bytes, number, kind, nodes: Vec::with_capacity(count) };
        let mut spans = Vec::with_capacity(count);
        for index in 0..count {
            let start = usize::from(u16_at(&page.bytes, HEADER_SIZE + 2 * index));
            let end = page.read_node(tree, index, start, upper)?;
            spans.push((start, end));
        }
        // Nodes fill the rest of the page without a gap, because LMDB moves them by these sizes.
        spans.sort_unstable();
        let mut next = upper;
        for (start, end) in spans {
            if start != next {
                return Err(format!("a node begins at {start}, where {next} was expected"));
            }
            next = end;
        }
        if next != page.bytes.len() {
            return Err(format!("its nodes end at {next}"));
        }
        page.check_order(tree)?;
        Ok(page)
    }

    /// Reads the node at `start` and returns its end.
    fn read_node(
        &mut self,
        tree: TreeKind,
        index: usize,
        start: usize,
        upper: usize,
    ) -> Result<usize, String> {
        let bytes = &self.bytes;
        if start < upper || !start.is_multiple_of(2) || start + NODE_SIZE > bytes.len() {
            return Err(format!("node {index} is at {start}"));
        }
        let size = u32_at(bytes, start) as usize;
        let flags = u16_at(bytes, start + 4);
        let key_size = usize::from(u16_at(bytes, start + 6));
        let key = start + NODE_SIZE..start + NODE_SIZE + key_size;
        let fits = match (key_size, tree) {
            // The first key of a branch stands for "less than the second", and may be empty.
            (0, _) => self.kind == PageKind::Branch && index == 0,
            (_, TreeKind::Main) => key_size <= KEY_SIZE_MAX,
            (_, TreeKind::Free) => key_size == 8,
        };
        if !fits {
            return Err(format!("node {index} has a key of {key_size} bytes"));
        }
        let mut node = PageNode {
            value: key.end..key.end,
            key,
            value_size: 0,
            overflow: None,
            child: size as u64 | u64::from(flags) << 32,
        };
        if self.kind == PageKind::Leaf {
            let is_big = match flags {
                0 => false,
                BIG_DATA => true,
                flags => return Err(format!("node {index} has flags {flags:#x}")),
            };
            node.value.end += if is_big { 8 } else { size };
            node.value_size = size;
            if is_big && node.value.end <= bytes.len() {
                node.overflow = Some(u64_at(bytes, node.value.start));
            }
        }
        let end = node.value.end.next_multiple_of(2);
        if end > bytes.len() {
            return Err(format!("node {index} ends at {end}"));
        }
        self.nodes.push(node);
        Ok(end)
    }

    fn check_order(&mut self, tree: TreeKind) -> Result<(), String> {
        if tree == TreeKind::Free {
            for node in &self.nodes {
                self.bytes[node.key.clone()].reverse();
            }
        }
        // LMDB does not compare the first key of a branch either.
        let first = usize::from(self.kind == PageKind::Branch);
        for index in first + 1..self.nodes.len() {
            if self.sort_key(index - 1) >= self.sort_key(index) {
                return Err(format!("keys {} and {index} are out of order", index - 1));
            }
        }
        Ok(())
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn kind(&self) -> PageKind {
        self.kind
    }

    /// Returns the count of nodes: at least 1, in a branch at least 2.
    pub(super) fn count(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn node(&self, index: usize) -> PageNode {
        self.nodes[index].clone()
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    /// Returns the key of a node, in a form that compares as bytes.
    pub(super) fn sort_key(&self, index: usize) -> &[u8] {
        &self.bytes[self.nodes[index].key.clone()]
    }

    /// True if all keys that count are in `lower..upper`.
    pub(super) fn within(&self, lower: Option<&[u8]>, upper: Option<&[u8]>) -> bool {
        let first = self.sort_key(usize::from(self.kind == PageKind::Branch));
        let last = self.sort_key(self.count() - 1);
        lower.is_none_or(|lower| first >= lower) && upper.is_none_or(|upper| last < upper)
    }

    /// Returns the buffer for reuse.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
