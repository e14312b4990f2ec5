//! What was looked up a moment ago, and what was looked up first.
//!
//! Owns bounded tables. Always holds: what is older than the time it is believed for is not returned, and what
//! was found by a look that began before a path was forgotten is not noted, so that a write is seen after it.
//! What was found first stays.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most paths that are remembered. Guessed: the files of a large query.
const KNOWN_MAX: usize = 16_384;
/// How long a look-up is believed unless told otherwise. Guessed: the reads of one file by one query.
pub(crate) const BELIEVED_FOR: Duration = Duration::from_secs(1);

/// What is known of each path.
#[derive(Debug)]
pub(crate) struct Known<T> {
    believed_for: Duration,
    table: Mutex<Table<T>>,
}

#[derive(Debug)]
struct Table<T> {
    /// When the look began and what it found, or when the path was forgotten.
    paths: HashMap<Arc<str>, (Instant, Option<T>)>,
    /// Looks that began before this are not noted, because it is not known any more what was forgotten since.
    not_before: Option<Instant>,
}

impl<T: Clone> Known<T> {
    pub(crate) fn new(believed_for: Duration) -> Known<T> {
        let table = Table { paths: HashMap::new(), not_before: None };
        Known { believed_for, table: Mutex::new(table) }
    }

    pub(crate) fn believed_for(&self) -> Duration {
        self.believed_for
    }

    fn table(&self) -> MutexGuard<'_, Table<T>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what is known of a path, if it was looked up a moment ago.
    pub(crate) fn get(&self, path: &str) -> Option<T> {
        let table = self.table();
        let (at, found) = table.paths.get(path)?;
        if at.elapsed() < self.believed_for { found.clone() } else { None }
    }

    /// Notes what was found at a path by a look that began at this time, unless more is known.
    pub(crate) fn note(&self, path: &str, began: Instant, found: T) {
        let mut table = self.table();
        let is_late = table.not_before.is_some_and(|not_before| began < not_before)
            || table.paths.get(path).is_some_and(|(at, _)| began < *at);
        if !is_late {
            table.insert(path, began, Some(found));
        }
    }

    /// Forgets a path, and what looks find at it that are under way.
    pub(crate) fn forget(&self, path: &str) {
        self.table().insert(path, Instant::now(), None);
    }
}

impl<T> Table<T> {
    fn insert(&mut self, path: &str, at: Instant, found: Option<T>) {
        if self.paths.len() >= KNOWN_MAX && !self.paths.contains_key(path) {
            self.paths.clear();
            self.not_before = Some(Instant::now());
            if found.is_some() {
                return;
            }
        }
        self.paths.insert(path.into(), (at, found));
    }
}

/// Most paths whose first finding is kept. Guessed: more files than a query reads; some hundred MB.
const FIRST_MAX: usize = 1 << 20;

/// What was found first of each path, for as long as this is there.
#[derive(Debug)]
pub(crate) struct First<T>(Mutex<Findings<T>>);

#[derive(Debug)]
struct Findings<T> {
    paths: HashMap<Arc<str>, T>,
    /// True if some path was forgotten.
    has_gaps: bool,
}

impl<T: Clone> First<T> {
    pub(crate) fn new() -> First<T> {
        First(Mutex::new(Findings { paths: HashMap::new(), has_gaps: false }))
    }

    fn table(&self) -> MutexGuard<'_, Findings<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what was found first.
    pub(crate) fn get(&self, path: &str) -> Option<T> {
        self.table().paths.get(path).cloned()
    }

    /// Notes what was found, unless more was found before, and returns what counts. None if the table is full.
    pub(crate) fn note(&self, path: &str, found: T) -> Option<T> {
        let table = &mut self.table().paths;
        if let Some(first) = table.get(path) {
            return Some(first.clone());
        }
        (table.len() < FIRST_MAX).then(|| table.entry(path.into()).or_insert(found).clone())
    }

    /// Returns all that was found; None if it is more than this many, or something was forgotten.
    pub(crate) fn all(&self, most: usize) -> Option<Vec<T>> {
        let table = self.table();
        let is_whole = !table.has_gaps && table.paths.len() <= most;
        is_whole.then(|| table.paths.values().cloned().collect())
    }

    /// Forgets a path, which the holder has written itself.
    pub(crate) fn forget(&self, path: &str) {
        let mut table = self.table();
        table.has_gaps |= table.paths.remove(path).is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_first_stays_until_it_is_forgotten() {
        let first = First::new();
        assert_eq!((first.note("a", 1), first.note("a", 2)), (Some(1), Some(1)));
        assert_eq!((first.get("a"), first.get("b")), (Some(1), None));
        first.forget("b");
        assert_eq!((first.all(1), first.all(0)), (Some(vec![1]), None));
        first.forget("a");
        assert_eq!((first.note("a", 3), first.all(1)), (Some(3), None));
    }

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

    #[test]
    fn what_was_looked_at_before_a_write_is_not_believed_after_it() {
        let known = Known::new(Duration::from_secs(60));
        let before = Instant::now();
        known.forget("a");
        known.note("a", before, 1);
        assert_eq!(known.get("a"), None);
        let after = Instant::now();
        known.note("a", after, 2);
        known.note("a", before, 1);
        assert_eq!(known.get("a"), Some(2));
        // Nor when the table was full in between.
        let before = Instant::now();
        known.forget("b");
        for number in 0..2 * KNOWN_MAX {
            known.note(&number.to_string(), Instant::now(), 0);
        }
        known.note("b", before, 1);
        assert_eq!(known.get("b"), None);
        assert!(known.table().paths.len() <= KNOWN_MAX);
    }
}
