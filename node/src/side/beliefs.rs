//! What look-ups found a moment ago, so that a store far away is not asked again and again.
//!
//! Owns the answers by path, in bounded tables. Always holds: an answer counts for as long as the mount says,
//! from when the source was asked; one that is older than a refresh counts no more. Whether the version of a
//! file is still the known one is left to the caller.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millrace_proto::FileId;
use quick_cache::sync::Cache;

use super::changes::RecentChanges;
use super::listings::Listings;
use crate::store::Found;

/// How long it is believed that a path is not there. Guessed: engines look for a file twice in a moment, and a
/// file that appears should be seen soon.
const MISSING_FOR: Duration = Duration::from_secs(1);
/// Paths that are known not to be there. Guessed: enough for what is asked within a second.
const MISSING_MAX: usize = 10_000;

/// An answer of a source.
#[derive(Clone, Debug)]
struct Belief {
    /// The id that the path had: another source may be mounted there by now.
    id: FileId,
    /// None if there is no such path.
    found: Option<Found>,
    /// When the source was asked.
    at: Instant,
}

/// The answers.
pub(super) struct Beliefs {
    found: Cache<Arc<str>, Belief>,
    missing: Cache<Arc<str>, Belief>,
    /// Pages of directories. What is forgotten here is forgotten there, too.
    pub(super) listings: Listings,
    /// What was written or refreshed: look-ups of it that were under way then are not noted.
    changes: Mutex<RecentChanges>,
}

impl Beliefs {
    /// Makes tables for at most `files_max` files and directories.
    pub(super) fn new(files_max: usize, now: Instant) -> Beliefs {
        Beliefs {
            found: Cache::new(files_max),
            missing: Cache::new(MISSING_MAX.min(files_max)),
            listings: Listings::new(now),
            changes: Mutex::new(RecentChanges::new(now)),
        }
    }

    /// Returns the answer for a path with this id, if it is younger than `bound`: None within it says that
    /// there is no such path.
    pub(super) fn get(
        &self,
        path: &str,
        id: FileId,
        bound: Duration,
        now: Instant,
    ) -> Option<Option<Found>> {
        let counts = |belief: &Belief, bound| {
            let age = now.saturating_duration_since(belief.at);
            belief.id == id && age < bound
        };
        let found = self.found.get(path).filter(|it| counts(it, bound));
        let missing = || self.missing.get(path).filter(|it| counts(it, bound.min(MISSING_FOR)));
        found.or_else(missing).map(|belief| belief.found)
    }

    /// Notes what a source that was asked at this time said of a path; None if it is not there.
    pub(super) fn note(&self, path: &Arc<str>, id: FileId, found: Option<Found>, at: Instant) {
        let (table, other) = match found {
            Some(_) => (&self.found, &self.missing),
            None => (&self.missing, &self.found),
        };
        let is_newer = |table: &Cache<Arc<str>, Belief>| {
            table.get(path).is_some_and(|known| known.id == id && known.at > at)
        };
        // This is held meanwhile, so that a refresh does not go by between the two.
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        // Of two look-ups under way at once the one that began later counts.
        if !changes.is_true_since(path, at) || is_newer(table) || is_newer(other) {
            return;
        }
        other.remove(path);
        table.insert(Arc::clone(path), Belief { id, found, at });
    }

    /// True if nothing that concerns the path was written or refreshed since this time.
    pub(super) fn is_true_since(&self, path: &str, at: Instant) -> bool {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).is_true_since(path, at)
    }

    /// Forgets the answer for a path.
    pub(super) fn forget(&self, path: &str, now: Instant) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.note(path, now);
        self.found.remove(path);
        self.missing.remove(path);
        self.listings.forget(path, now);
    }

    /// Forgets the answers for all paths below this one, the empty one for all.
    pub(super) fn forget_below(&self, path: &str, now: Instant) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.note(path, now);
        let is_elsewhere = |other: &Arc<str>, _: &Belief| {
            let rest = other.strip_prefix(path);
            !path.is_empty() && rest.is_none_or(|rest| !rest.starts_with('/'))
        };
        self.found.retain(is_elsewhere);
        self.missing.retain(is_elsewhere);
        self.listings.forget_around(path, now);
    }
}

#[cfg(test)]
mod tests {
    use millrace_proto::message::Kind;

    use super::*;

    const ID: FileId = FileId(1);
    const BOUND: Duration = Duration::from_secs(30);

    fn file(version: u64) -> Option<Found> {
        Some(Found { kind: Kind::File, version, length: 1, modified_ms: 0 })
    }

    #[test]
    fn an_answer_counts_from_when_it_was_asked_for() {
        let start = Instant::now();
        let (beliefs, path) = (Beliefs::new(100, start), "a".into());
        let get = |ms, bound| {
            let found = beliefs.get("a", ID, bound, start + Duration::from_millis(ms))?;
            Some(found.map_or(0, |found| found.version))
        };
        assert_eq!(get(0, BOUND), None);
        beliefs.note(&path, ID, file(5), start);
        assert_eq!((get(29_999, BOUND), get(30_000, BOUND)), (Some(5), None));
        assert_eq!((get(0, Duration::ZERO), get(1 << 40, Duration::MAX)), (None, Some(5)));
        assert!(beliefs.get("a", FileId(2), BOUND, start).is_none(), "another source is there");
        beliefs.note(&path, ID, None, start + Duration::from_secs(2));
        assert_eq!((get(2999, BOUND), get(3000, BOUND)), (Some(0), None));
        assert_eq!(get(2100, Duration::from_millis(50)), None, "the bound holds here, too");
        beliefs.note(&path, ID, file(6), start + Duration::from_secs(1));
        assert_eq!(get(2500, BOUND), Some(0), "a look-up that began earlier comes too late");
    }

    #[test]
    fn after_a_refresh_nothing_older_counts_below_its_path() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let beliefs = Beliefs::new(100, start);
        let paths = ["a/b", "a/b/c", "a/bc", "d"];
        let known = |path| beliefs.get(path, ID, BOUND, later).is_some();
        for path in paths {
            beliefs.note(&path.into(), ID, file(5), start);
        }
        beliefs.forget_below("a/b", later);
        assert_eq!(paths.map(known), [true, false, true, true]);
        // These look-ups were under way.
        beliefs.note(&"a/b/c".into(), ID, file(5), start);
        beliefs.note(&"e".into(), ID, file(5), start);
        assert!(!known("a/b/c"));
        assert!(known("e"), "nothing of it has changed");
        beliefs.note(&"a/b/c".into(), ID, file(6), later);
        assert!(known("a/b/c"));
        beliefs.forget_below("", later);
        assert_eq!(paths.map(known), [false; 4]);
    }
}
