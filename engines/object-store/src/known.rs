//! What was looked up a moment ago.
//!
//! Owns a bounded table. Always holds: what is older than the time it is believed for is not returned.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

/// Most paths that are remembered. Guessed: the files of a large query.
const KNOWN_MAX: usize = 16_384;
/// How long a look-up is believed unless told otherwise. Guessed: the reads of one file by one query.
pub(crate) const BELIEVED_FOR: Duration = Duration::from_secs(1);

/// What is known of each path.
#[derive(Debug)]
pub(crate) struct Known<T: Clone> {
    believed_for: Duration,
    paths: Cache<Arc<str>, (Instant, T)>,
}

impl<T: Clone> Known<T> {
    pub(crate) fn new(believed_for: Duration) -> Known<T> {
        Known { believed_for, paths: Cache::new(KNOWN_MAX) }
    }

    pub(crate) fn believed_for(&self) -> Duration {
        self.believed_for
    }

    /// Returns what is known of a path, if it was looked up a moment ago.
    pub(crate) fn get(&self, path: &str) -> Option<T> {
        let (at, found) = self.paths.get(path)?;
        (at.elapsed() < self.believed_for).then_some(found)
    }

    /// Notes what was found at a path by a look that began at this time.
    pub(crate) fn note(&self, path: &str, began: Instant, found: T) {
        self.paths.insert(path.into(), (began, found));
    }

    /// Forgets a path.
    pub(crate) fn forget(&self, path: &str) {
        self.paths.remove(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_up_is_believed_for_its_time_and_until_it_is_forgotten() {
        let known = Known::new(Duration::from_secs(60));
        known.note("a", Instant::now(), 1);
        known.note("old", Instant::now() - Duration::from_secs(61), 2);
        assert_eq!((known.get("a"), known.get("old"), known.get("b")), (Some(1), None, None));
        known.forget("a");
        assert_eq!(known.get("a"), None);
        let never = Known::new(Duration::ZERO);
        never.note("a", Instant::now(), 1);
        assert_eq!(never.get("a"), None);
    }
}
