//! The changes of a moment ago, so that what a source was asked before one is not taken for the state after it.
//!
//! Owns the last changes by their paths. Always holds: an answer is doubted if a change of its path, of a directory
//! above it or of a path below it came after the question; and one of any other path, if more changes came since than
//! are kept.

use std::collections::VecDeque;
use std::time::Instant;

/// RecentChanges that are told apart. Guessed: those of the seconds for which a question may be under way, at a rate at
/// which programs write; a comparison of each costs less than a question.
const CHANGES_MAX: usize = 64;

struct PathChange {
    path: Box<str>,
    at: Instant,
}

/// The last changes, the newest at the end.
pub(super) struct RecentChanges {
    known: VecDeque<PathChange>,
    /// When the last change came that is not among them.
    forgotten: Instant,
}

impl RecentChanges {
    /// Begins without a change; what was asked before `now` is doubted.
    pub(super) fn new(now: Instant) -> RecentChanges {
        RecentChanges { known: VecDeque::new(), forgotten: now }
    }

    /// Notes a change of this path, or of what is below it; the empty path has everything below it.
    pub(super) fn note(&mut self, path: &str, now: Instant) {
        let newest = self.known.back().map_or(self.forgotten, |change| change.at);
        if self.known.len() == CHANGES_MAX
            && let Some(oldest) = self.known.pop_front()
        {
            self.forgotten = oldest.at;
        }
        self.known.push_back(PathChange { path: path.into(), at: now.max(newest) });
    }

    /// True if nothing that concerns the path has changed since this time.
    pub(super) fn is_true_since(&self, path: &str, at: Instant) -> bool {
        let mut since = self.known.iter().rev().take_while(|change| change.at > at);
        at >= self.forgotten && !since.any(|change| is_near(&change.path, path))
    }
}

/// True if a directory has this path, or one below it that is meant; the empty one has all.
pub(super) fn is_at_or_above(directory: &str, path: &str) -> bool {
    let rest = path.strip_prefix(directory);
    directory.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// True if one of the paths is the other, or is above it.
pub(super) fn is_near(path: &str, other: &str) -> bool {
    is_at_or_above(path, other) || is_at_or_above(other, path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_a_change_concerns_is_doubted() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut changes = RecentChanges::new(start);
        changes.note("a/b", at(10));
        let paths = ["a", "a/b", "a/b/c", "a/bc", "a/c", "b", ""];
        let doubted = paths.map(|path| !changes.is_true_since(path, at(5)));
        assert_eq!(doubted, [true, true, true, false, false, false, true]);
        assert!(paths.iter().all(|path| changes.is_true_since(path, at(10))), "asked after it");
        changes.note("", at(20));
        assert!(!changes.is_true_since("b", at(15)), "everything changed");
    }

    #[test]
    fn what_was_asked_before_a_forgotten_change_is_doubted() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut changes = RecentChanges::new(start);
        for ms in 1..=CHANGES_MAX as u64 {
            changes.note("a", at(ms));
        }
        assert!(changes.is_true_since("b", at(0)), "all are known");
        changes.note("a", at(100));
        assert!(!changes.is_true_since("b", at(0)));
        assert!(changes.is_true_since("b", at(1)));
        // A clock that was read earlier, by a thread that came later.
        changes.note("c", at(50));
        assert!(!changes.is_true_since("c", at(99)));
    }
}
