//! Reads an LMDB data file before LMDB does, and refuses one with an impossible structure.
//!
//! LMDB trusts its pages, so a damaged offset or page number makes it read or write anywhere. Each open
//! therefore walks everything that the newest transaction reaches, and checks all bounds:
//!
//! ```text
//!  page 0, 1   meta pages, written in turn; the newer one has the roots of two trees
//!  main tree   branch ─► branch ─► leaf ─► overflow pages of large values
//!  free tree   the same; its values are lists of pages that may be used again
//! ```
//!
//! After a walk without findings: every page is in one tree at one place, or in one free list, or lost
//! (harmless); every node is inside its page and apart from the others; keys ascend, within the bounds of
//! the branch above; the counts in the meta page are right. Values are not checked here, because they have
//! their own checksums. The older meta page is walked only down to its first record. With that the caller
//! can distinguish a changed meta page from a written one.
//!
//! The layout is the one of LMDB 0.9, data version 1, on a little-endian machine, as in `mdb.c`
//! (`MDB_meta`, `MDB_db`, `MDB_page`, `MDB_node`). Only its main database is expected, with plain
//! keys: no named databases, no duplicates.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

mod page;
use page::{LmdbPage, PageKind};

const _: () = assert!(cfg!(target_endian = "little"), "LMDB files here are little-endian");

const MAGIC: u32 = 0xBEEF_C0DE;
const DATA_VERSION: u32 = 1;
/// Bytes before a page's content.
const HEADER_SIZE: usize = 16;
/// Bytes of a meta page that are used: the header and `MDB_meta`.
const META_SIZE: usize = HEADER_SIZE + 136;
/// The root of an empty tree.
const NO_PAGE: u64 = u64::MAX;
/// `CURSOR_STACK` in `mdb.c`, which no tree exceeds.
const DEPTH_MAX: u16 = 32;
/// `MDB_INTEGERKEY`, the only flag that the free tree has.
const INTEGER_KEY: u16 = 0x08;
/// `MDB_MAXKEYSIZE`.
const KEY_SIZE_MAX: usize = 511;
const PAGE_SIZES: std::ops::RangeInclusive<usize> = 4096..=32768;

/// The reason that a file cannot be used.
#[derive(Debug)]
pub(super) enum Damage {
    Io(io::Error),
    /// The mistake, and its page.
    Page {
        number: u64,
        reason: String,
    },
}

impl From<io::Error> for Damage {
    fn from(error: io::Error) -> Damage {
        Damage::Io(error)
    }
}

fn damage<T>(number: u64, reason: impl Into<String>) -> Result<T, Damage> {
    Err(Damage::Page { number, reason: reason.into() })
}

/// A transaction, and the first record it sees.
#[derive(Debug)]
pub(super) struct PageView {
    pub(super) transaction: u64,
    /// Key and value; `None` in an empty file.
    pub(super) first: Option<(Vec<u8>, Vec<u8>)>,
}

/// The content of a sound file.
#[derive(Debug)]
pub(super) struct PagesReport {
    pub(super) newest: PageView,
    /// The transaction before the newest, if there was one.
    pub(super) older: Option<PageView>,
    /// Pages in the two trees.
    pub(super) used_pages: u64,
    /// Pages in free lists.
    pub(super) free_pages: u64,
}

/// Walks the file, which must not be written meanwhile. `map_bytes` is the size it may grow to.
pub(super) fn verify(file: &File, map_bytes: u64) -> Result<PagesReport, Damage> {
    let file_bytes = file.metadata()?.len();
    let [first, second] = read_metas(file)?;
    let (newest, older) =
        if second.transaction > first.transaction { (second, first) } else { (first, second) };
    // Transaction N writes meta page N mod 2, so the two are neighbours. In a new file both are 0.
    let expected = newest.transaction.saturating_sub(1);
    if older.transaction != expected || newest.number != newest.transaction % 2 {
        let reason = format!(
            "the meta pages are of transactions {} and {}, which do not follow each other",
            newest.transaction, older.transaction
        );
        return damage(newest.number, reason);
    }
    // The walk goes in key order, which is any order in the file. This is only advice: if it is refused,
    // reads are slower.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::WillNeed);
    let source = PageSource { file, page_size: newest.page_size, file_bytes };
    let pages_max = map_bytes.max(file_bytes) / newest.page_size as u64;
    for meta in [&newest, &older] {
        if meta.last_page < 1 || meta.last_page >= pages_max {
            return damage(meta.number, format!("its last page {} is too far", meta.last_page));
        }
    }
    let mut walk = PageWalk::new(&source, newest.last_page);
    walk.tree(newest.number, TreeKind::Main, &newest.main)?;
    walk.tree(newest.number, TreeKind::Free, &newest.free)?;
    Ok(PagesReport {
        older: match newest.transaction {
            0 => None,
            _ => Some(source.view(&older)?),
        },
        newest: source.view(&newest)?,
        used_pages: walk.used_pages,
        free_pages: walk.free_pages,
    })
}

/// A tree, `MDB_db` in LMDB.
#[derive(Debug)]
struct PageTree {
    flags: u16,
    depth: u16,
    branch_pages: u64,
    leaf_pages: u64,
    overflow_pages: u64,
    entries: u64,
    root: u64,
}

impl PageTree {
    const SIZE: usize = 48;

    fn read(bytes: &[u8]) -> PageTree {
        PageTree {
            flags: u16_at(bytes, 4),
            depth: u16_at(bytes, 6),
            branch_pages: u64_at(bytes, 8),
            leaf_pages: u64_at(bytes, 16),
            overflow_pages: u64_at(bytes, 24),
            entries: u64_at(bytes, 32),
            root: u64_at(bytes, 40),
        }
    }
}

/// A meta page, `MDB_meta` in LMDB.
struct MetaPage {
    /// The number of the page, 0 or 1.
    number: u64,
    page_size: usize,
    free: PageTree,
    main: PageTree,
    last_page: u64,
    transaction: u64,
}

impl MetaPage {
    fn read(file: &File, number: u64, offset: usize) -> Result<MetaPage, Damage> {
        let mut bytes = [0; META_SIZE];
        match file.read_exact_at(&mut bytes, offset as u64) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return damage(number, "the file ends before it");
            }
            read => read?,
        }
        if u64_at(&bytes, 0) != number || u16_at(&bytes, 10) != PageKind::META {
            return damage(number, "it is not a meta page");
        }
        let fields = &bytes[HEADER_SIZE..];
        if u32_at(fields, 0) != MAGIC || u32_at(fields, 4) != DATA_VERSION {
            return damage(number, "it is not of an LMDB file that this program knows");
        }
        // The page size is in a field of the free tree that has no other use.
        let page_size = u32_at(fields, 24) as usize;
        let free = PageTree::read(&fields[24..]);
        let main = PageTree::read(&fields[24 + PageTree::SIZE..]);
        if !PAGE_SIZES.contains(&page_size) || !page_size.is_power_of_two() {
            return damage(number, format!("it says that pages have {page_size} bytes"));
        }
        if free.flags != INTEGER_KEY || main.flags != 0 {
            return damage(number, "its trees have flags that this program never sets");
        }
        let transaction = u64_at(fields, 128);
        if transaction == 0 && (free.root, main.root) != (NO_PAGE, NO_PAGE) {
            return damage(number, "it has a tree before its first transaction");
        }
        let last_page = u64_at(fields, 120);
        Ok(MetaPage { number, page_size, free, main, last_page, transaction })
    }
}

fn read_metas(file: &File) -> Result<[MetaPage; 2], Damage> {
    let first = MetaPage::read(file, 0, 0)?;
    let second = MetaPage::read(file, 1, first.page_size)?;
    if second.page_size != first.page_size {
        return damage(1, "it says another page size than the first meta page");
    }
    Ok([first, second])
}

/// The file, as pages.
struct PageSource<'a> {
    file: &'a File,
    page_size: usize,
    file_bytes: u64,
}

impl PageSource<'_> {
    /// Fills `bytes` from `offset` on inside page `number`. Overflow values continue in later pages.
    fn read(&self, number: u64, offset: usize, bytes: &mut [u8]) -> Result<(), Damage> {
        let start = number.checked_mul(self.page_size as u64).and_then(|at| {
            let start = at.checked_add(offset as u64)?;
            (start.checked_add(bytes.len() as u64)? <= self.file_bytes).then_some(start)
        });
        match start {
            Some(start) => Ok(self.file.read_exact_at(bytes, start)?),
            None => damage(number, "the file ends before it"),
        }
    }

    /// Reads page `number` and checks it by itself.
    fn page(&self, number: u64, buffer: Vec<u8>, tree: TreeKind) -> Result<LmdbPage, Damage> {
        let mut bytes = buffer;
        bytes.resize(self.page_size, 0);
        self.read(number, 0, &mut bytes)?;
        LmdbPage::new(bytes, number, tree).or_else(|reason| damage(number, reason))
    }

    /// Returns the count of pages of the value with `value_size` bytes that begins in overflow page
    /// `number`.
    fn overflow(&self, number: u64, value_size: usize) -> Result<u64, Damage> {
        let mut header = [0; HEADER_SIZE];
        self.read(number, 0, &mut header)?;
        if u64_at(&header, 0) != number || u16_at(&header, 10) != PageKind::OVERFLOW {
            return damage(number, "it is not the overflow page it should be");
        }
        let pages = u64::from(u32_at(&header, 12));
        if pages * (self.page_size as u64) < (HEADER_SIZE + value_size) as u64 {
            return damage(number, "its value has more bytes than its pages");
        }
        // LMDB reads it through a map, where a page beyond the end of the file ends the process.
        if number.saturating_add(pages) > self.file_bytes / self.page_size as u64 {
            return damage(number, "the file ends before the end of its value");
        }
        Ok(pages)
    }

    /// Reads the whole value of node `index` of a leaf.
    fn value(&self, leaf: &LmdbPage, index: usize) -> Result<Vec<u8>, Damage> {
        let node = leaf.node(index);
        let Some(overflow) = node.overflow else {
            return Ok(leaf.bytes(node.value).to_vec());
        };
        // This refuses a value that is larger than the file, so nothing huge is allocated.
        self.overflow(overflow, node.value_size)?;
        let mut value = vec![0; node.value_size];
        self.read(overflow, HEADER_SIZE, &mut value)?;
        Ok(value)
    }

    /// Finds the first record that a transaction sees, down the first child of each branch.
    fn view(&self, meta: &MetaPage) -> Result<PageView, Damage> {
        let transaction = meta.transaction;
        if meta.main.root == NO_PAGE {
            return Ok(PageView { transaction, first: None });
        }
        let mut number = meta.main.root;
        for _ in 0..DEPTH_MAX {
            if number < 2 || number > meta.last_page {
                return damage(number, "a tree reaches it, but there is no such page");
            }
            let page = self.page(number, Vec::new(), TreeKind::Main)?;
            if page.kind() == PageKind::Leaf {
                let key = page.bytes(page.node(0).key).to_vec();
                return Ok(PageView { transaction, first: Some((key, self.value(&page, 0)?)) });
            }
            number = page.node(0).child;
        }
        damage(meta.number, "its tree is too deep")
    }
}

/// One of the two trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TreeKind {
    /// Keys of bytes.
    Main,
    /// Keys are transactions, values lists of pages.
    Free,
}

/// The pages met so far.
struct PageWalk<'a> {
    source: &'a PageSource<'a>,
    last_page: u64,
    /// One bit for each page.
    seen: Vec<u64>,
    used_pages: u64,
    free_pages: u64,
    branch_pages: u64,
    leaf_pages: u64,
    overflow_pages: u64,
    entries: u64,
    /// Page buffers for reuse, at most one for each level.
    buffers: Vec<Vec<u8>>,
}

impl<'a> PageWalk<'a> {
    fn new(source: &'a PageSource<'a>, last_page: u64) -> PageWalk<'a> {
        let words = usize::try_from(last_page / 64 + 1).expect("bounded by the map");
        PageWalk {
            source,
            last_page,
            seen: vec![0; words],
            used_pages: 0,
            free_pages: 0,
            branch_pages: 0,
            leaf_pages: 0,
            overflow_pages: 0,
            entries: 0,
            buffers: Vec::new(),
        }
    }

    /// Notes that page `number` has a place. It must be a page, and must not have one yet.
    fn claim(&mut self, number: u64) -> Result<(), Damage> {
        if number < 2 || number > self.last_page {
            return damage(number, "a tree or free list has it, but there is no such page");
        }
        // The bitmap has a bit for each page up to the last.
        let word = &mut self.seen[(number / 64) as usize];
        let bit = 1 << (number % 64);
        if *word & bit != 0 {
            return damage(number, "it is in two places at once");
        }
        *word |= bit;
        Ok(())
    }

    fn tree(&mut self, meta: u64, kind: TreeKind, tree: &PageTree) -> Result<(), Damage> {
        self.branch_pages = 0;
        self.leaf_pages = 0;
        self.overflow_pages = 0;
        self.entries = 0;
        if tree.root != NO_PAGE {
            if tree.depth == 0 || tree.depth > DEPTH_MAX {
                return damage(meta, format!("its tree has depth {}", tree.depth));
            }
            self.subtree(kind, tree.root, tree.depth, None, None)?;
        } else if tree.depth != 0 {
            return damage(meta, "its tree has a depth, but no root");
        }
        let counted = (self.branch_pages, self.leaf_pages, self.overflow_pages, self.entries);
        let stated = (tree.branch_pages, tree.leaf_pages, tree.overflow_pages, tree.entries);
        if counted != stated {
            let reason = format!(
                "its {kind:?} tree should have (branches, leaves, overflow pages, entries) \
                 {stated:?}, but has {counted:?}"
            );
            return damage(meta, reason);
        }
        self.used_pages += self.branch_pages + self.leaf_pages + self.overflow_pages;
        Ok(())
    }

    /// Walks page `number` and the pages below it, whose keys must be in `lower..upper`.
    fn subtree(
        &mut self,
        kind: TreeKind,
        number: u64,
        depth: u16,
        lower: Option<&[u8]>,
        upper: Option<&[u8]>,
    ) -> Result<(), Damage> {
        self.claim(number)?;
        let buffer = self.buffers.pop().unwrap_or_default();
        let page = self.source.page(number, buffer, kind)?;
        if !page.within(lower, upper) {
            return damage(number, "its keys are outside the range that the branch above gives");
        }
        match (page.kind(), depth) {
            (PageKind::Leaf, 1) => self.leaf(kind, &page)?,
            (PageKind::Branch, 2..) => {
                self.branch_pages += 1;
                for index in 0..page.count() {
                    let below = if index == 0 { lower } else { Some(page.sort_key(index)) };
                    let last = index + 1 == page.count();
                    let above = if last { upper } else { Some(page.sort_key(index + 1)) };
                    self.subtree(kind, page.node(index).child, depth - 1, below, above)?;
                }
            }
            _ => return damage(number, "it is at the wrong depth"),
        }
        self.buffers.push(page.into_bytes());
        Ok(())
    }

    fn leaf(&mut self, kind: TreeKind, leaf: &LmdbPage) -> Result<(), Damage> {
        self.leaf_pages += 1;
        self.entries += leaf.count() as u64;
        for index in 0..leaf.count() {
            let node = leaf.node(index);
            if let Some(first) = node.overflow {
                // A value that claims more pages than there are also ends here, soon.
                let pages = self.source.overflow(first, node.value_size)?;
                for number in first..first.saturating_add(pages) {
                    self.claim(number)?;
                }
                self.overflow_pages += pages;
            }
            if kind == TreeKind::Free {
                let list = self.source.value(leaf, index)?;
                self.free_list(leaf.number(), &list)?;
            }
        }
        Ok(())
    }

    /// Reads a free list: a count, then this many page numbers, descending. The value may be longer.
    fn free_list(&mut self, number: u64, list: &[u8]) -> Result<(), Damage> {
        let mut words = list.chunks_exact(8).map(|word| u64_at(word, 0));
        let Some(count) = words.next().filter(|count| *count <= words.len() as u64) else {
            return damage(number, "it has a free list that is longer than its value");
        };
        let mut previous = NO_PAGE;
        for page in words.take(count as usize) {
            if page >= previous {
                return damage(number, "it has a free list that is out of order");
            }
            self.claim(page)?;
            self.free_pages += 1;
            previous = page;
        }
        Ok(())
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
