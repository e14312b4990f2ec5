//! Structures that LMDB would accept and later turn into damage are refused, each for its reason.
//!
//! The offsets are those of LMDB's pages, see [`super::super::pages`].

use std::fs;

use super::*;

const PAGE: usize = 4096;
/// Offsets of the roots of the two trees in a meta page, and of its transaction.
const FREE_ROOT: usize = 80;
const MAIN_ROOT: usize = 128;
const TRANSACTION: usize = 144;

/// A state file of several levels, to be changed.
struct Forged {
    directory: TempDir,
    bytes: Vec<u8>,
}

impl Forged {
    fn new() -> Forged {
        let directory = damage::with_a_past(20, 20).0;
        let bytes = fs::read(directory.path().join("state/data.mdb")).unwrap();
        Forged { directory, bytes }
    }

    fn u16(&self, at: usize) -> usize {
        usize::from(u16::from_le_bytes(self.bytes[at..at + 2].try_into().unwrap()))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    /// Returns the offset of the root page of a tree of the newer meta page.
    fn root(&self, field: usize) -> usize {
        let is_second_newer = self.u64(PAGE + TRANSACTION) > self.u64(TRANSACTION);
        let meta = if is_second_newer { PAGE } else { 0 };
        self.u64(meta + field) as usize * PAGE
    }

    fn flags(&self, page: usize) -> usize {
        self.u16(page + 10)
    }

    fn count(&self, page: usize) -> usize {
        (self.u16(page + 12) - 16) / 2
    }

    /// Returns the offset of a node.
    fn node(&self, page: usize, index: usize) -> usize {
        page + self.u16(page + 16 + 2 * index)
    }

    /// Returns the offset of the first leaf below the main root, which is a branch.
    fn first_leaf(&self) -> usize {
        let mut page = self.root(MAIN_ROOT);
        while self.flags(page) == 1 {
            page = self.u16(self.node(page, 0)) * PAGE;
        }
        page
    }

    fn refusal(&self) -> Option<String> {
        fs::write(self.directory.path().join("state/data.mdb"), &self.bytes).unwrap();
        match open_existing(self.directory.path(), SIZES) {
            Err(StoreError::Corrupt { at, .. }) => Some(at),
            Err(other) => panic!("{other}"),
            Ok(_) => None,
        }
    }
}

#[track_caller]
fn is_refused(forged: &Forged, because: &str) {
    let at = forged.refusal().unwrap_or_default();
    assert!(at.contains(because), "{at:?} instead of: {because}");
}

#[test]
fn the_file_itself_is_sound() {
    let forged = Forged::new();
    assert_eq!(forged.flags(forged.root(MAIN_ROOT)), 1, "it has a branch");
    assert_eq!(forged.flags(forged.first_leaf()), 2);
    assert_eq!(forged.refusal(), None);
}

#[test]
fn a_used_page_in_a_free_list_is_refused() {
    let mut forged = Forged::new();
    let leaf = forged.root(FREE_ROOT);
    assert_eq!(forged.flags(leaf), 2, "the free tree is small");
    // The last number of the longest list is the lowest, and may become any lower one.
    let lists = (0..forged.count(leaf)).map(|index| forged.node(leaf, index));
    let list = lists.max_by_key(|node| forged.u64(node + 16)).unwrap() + 16;
    let last = list + 8 * forged.u64(list) as usize;
    let original = forged.u64(last);
    let mut refused = 0;
    for page in 2..original {
        forged.bytes[last..last + 8].copy_from_slice(&page.to_le_bytes());
        // If it is accepted, the page is in no other place, and the one it replaced is lost.
        let Some(at) = forged.refusal() else { continue };
        assert!(at.contains("two places at once"), "{at}");
        refused += 1;
    }
    assert!(refused > 0);
}

#[test]
fn a_branch_that_leads_keys_astray_is_refused() {
    let mut forged = Forged::new();
    let root = forged.root(MAIN_ROOT);
    // With a slightly higher last key of the root, the first key below it cannot be found.
    let node = forged.node(root, forged.count(root) - 1);
    let key_end = node + 8 + forged.u16(node + 6);
    assert!(forged.bytes[key_end - 1] < 255);
    forged.bytes[key_end - 1] += 1;
    is_refused(&forged, "outside the range");
}

#[test]
fn nodes_with_gaps_or_overlaps_are_refused() {
    for difference in [-2, 2] {
        let mut forged = Forged::new();
        let leaf = forged.first_leaf();
        let node = forged.node(leaf, 1);
        assert_eq!(forged.u16(node + 4), 0, "its value is in the page");
        let size = (forged.u16(node) as i32 + difference) as u16;
        forged.bytes[node..node + 2].copy_from_slice(&size.to_le_bytes());
        let at = forged.refusal().unwrap_or_default();
        assert!(at.contains("was expected") || at.contains("nodes end at"), "{at:?}");
    }
}

#[test]
fn a_child_that_two_branches_share_is_refused() {
    let mut forged = Forged::new();
    let root = forged.root(MAIN_ROOT);
    let (first, second) = (forged.node(root, 0), forged.node(root, 1));
    forged.bytes.copy_within(first..first + 6, second);
    is_refused(&forged, "two places at once");
}
