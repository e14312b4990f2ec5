//! Pages of directories that were listed a moment ago, so that engines which list a table again and again cost one
//! listing.
//!
//! Owns the pages, in memory of their own. Always holds: a page counts for as long as its mount says, from when the
//! source was asked; none stays of a directory above a path that was written, refreshed or found changed. A page is
//! whole in itself: its token leads on from the last name of it, whatever comes after that by now.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millrace_proto::FileId;
use millrace_proto::message::{Entry, PartialListReply};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::changes::{RecentChanges, is_at_or_above, is_near};

/// Bytes of all pages. Guessed: some hundred pages of the largest size, some thousand usual directories.
const BYTES_MAX: u64 = 16 << 20;
/// Pages that are expected. Derived: such as have some ten names.
const PAGES_EXPECTED: usize = 10_000;
/// What a page takes besides its names.
const PAGE_COST: usize = 200;

/// Which page of which directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PageName {
    pub(super) path: Arc<str>,
    pub(super) token: Arc<str>,
    pub(super) limit: usize,
}

/// A page as it was answered.
#[derive(Clone)]
struct Answered {
    /// The id that the path had: another source may be mounted there by now.
    id: FileId,
    reply: Arc<PartialListReply>,
    /// When the source was asked.
    at: Instant,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<PageName, Answered> for ByBytes {
    fn weight(&self, name: &PageName, page: &Answered) -> u64 {
        let entries = page.reply.page.entries.iter();
        let entries: usize = entries.map(|entry| size_of::<Entry>() + entry.name.len()).sum();
        (PAGE_COST
            + name.path.len()
            + name.token.len()
            + page.reply.page.next.len()
            + page.reply.example.len()
            + entries) as u64
    }
}

/// The pages.
pub(super) struct Listings {
    pages: Cache<PageName, Answered, ByBytes>,
    /// What was written or refreshed: listings of it that were under way then are not noted.
    changes: Mutex<RecentChanges>,
}

impl Listings {
    /// Makes an empty table.
    pub(super) fn new(now: Instant) -> Listings {
        let pages = Cache::with_weighter(PAGES_EXPECTED, BYTES_MAX, ByBytes);
        Listings { pages, changes: Mutex::new(RecentChanges::new(now)) }
    }

    /// Returns a page, if it is younger than `bound`.
    pub(super) fn get(
        &self,
        name: &PageName,
        id: FileId,
        bound: Duration,
        now: Instant,
    ) -> Option<Arc<PartialListReply>> {
        let page = self.pages.get(name)?;
        let counts = page.id == id && now.saturating_duration_since(page.at) < bound;
        counts.then_some(page.reply)
    }

    /// Notes the page that a source gave which was asked at this time.
    pub(super) fn note(
        &self,
        name: PageName,
        id: FileId,
        reply: Arc<PartialListReply>,
        at: Instant,
    ) {
        // This is held meanwhile, so that no change goes by between the two.
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.is_true_since(&name.path, at) {
            self.pages.insert(name, Answered { id, reply, at });
        }
    }

    /// Forgets the pages of a path, and of all directories above it.
    pub(super) fn forget(&self, path: &str, now: Instant) {
        self.forget_if(path, now, |directory| is_at_or_above(directory, path));
    }

    /// Forgets the pages of a directory, and of all directories below it and above it.
    pub(super) fn forget_around(&self, path: &str, now: Instant) {
        self.forget_if(path, now, |directory| is_near(directory, path));
    }

    fn forget_if(&self, path: &str, now: Instant, is_gone: impl Fn(&str) -> bool) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.note(path, now);
        if !self.pages.is_empty() {
            self.pages.retain(|name, _| !is_gone(&name.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_proto::message::ListReply;

    use super::*;

    const ID: FileId = FileId(1);
    const BOUND: Duration = Duration::from_secs(30);

    fn page(path: &str, token: &str) -> PageName {
        PageName { path: path.into(), token: token.into(), limit: 1000 }
    }

    fn page_of(entries: Vec<Entry>, next: &str) -> Arc<PartialListReply> {
        let page = ListReply { entries, next: next.to_owned() };
        Arc::new(PartialListReply { left_out_count: 0, example: String::new(), page })
    }

    fn reply(next: &str) -> Arc<PartialListReply> {
        page_of(Vec::new(), next)
    }

    #[test]
    fn a_page_counts_from_when_it_was_asked_for() {
        let start = Instant::now();
        let listings = Listings::new(start);
        let (first, second) = (page("a", ""), page("a", "k"));
        listings.note(first.clone(), ID, reply("k"), start);
        let get = |name: &PageName, id, ms| {
            let now = start + Duration::from_millis(ms);
            listings.get(name, id, BOUND, now).map(|reply| reply.page.next.clone())
        };
        assert_eq!(get(&first, ID, 29_999).as_deref(), Some("k"));
        assert_eq!(get(&first, ID, 30_000), None);
        assert_eq!((get(&second, ID, 0), get(&first, FileId(2), 0)), (None, None));
        let other = PageName { limit: 10, ..first };
        assert_eq!(get(&other, ID, 0), None, "it may end elsewhere");
    }

    #[test]
    fn a_change_ends_the_pages_above_it_and_of_what_was_under_way() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let listings = Listings::new(start);
        let paths = ["", "a", "a/b", "a/b/c", "ab", "d"];
        let known = |path: &str| listings.get(&page(path, ""), ID, BOUND, later).is_some();
        let note_all = |at| {
            for path in paths {
                listings.note(page(path, ""), ID, reply(""), at);
            }
        };
        note_all(start);
        listings.forget("a/b", later);
        assert_eq!(paths.map(known), [false, false, false, true, true, true]);
        note_all(start);
        assert!(!known("a"), "it was under way");
        note_all(later);
        listings.forget_around("a/b", later);
        assert_eq!(paths.map(known), [false, false, false, false, true, true]);
        listings.forget_around("", later);
        assert_eq!(paths.map(known), [false; 6]);
    }

    #[test]
    fn the_memory_of_all_pages_is_bounded() {
        let start = Instant::now();
        let listings = Listings::new(start);
        let entry = |name: &str| Entry {
            name: name.to_owned(),
            kind: millrace_proto::message::Kind::File,
            id: ID,
            version: 1,
            length: 1,
            modified_ms: 0,
        };
        let entries: Vec<Entry> = (0..400).map(|_| entry(&"x".repeat(60))).collect();
        let full = page_of(entries, "");
        for number in 0..2000 {
            listings.note(page(&number.to_string(), ""), ID, Arc::clone(&full), start);
        }
        assert!(listings.pages.weight() <= BYTES_MAX && listings.pages.len() > 50);
    }
}
