//! Paths whose last look-up a member has contradicted: the next one has to ask the source.
//!
//! Always holds: the number of paths is bounded. One that is forgotten costs a read that is told again that
//! its file has changed, for as long as a node believes what it found before.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Most paths. Guessed: files that change within a moment.
const PATHS_MAX: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Doubts(Mutex<HashSet<Arc<str>>>);

impl Doubts {
    /// Notes that a member knows another version than the one that was looked up.
    pub(crate) fn note(&self, path: &Arc<str>) {
        let mut paths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if paths.len() < PATHS_MAX {
            paths.insert(Arc::clone(path));
        }
    }

    /// Takes a path out. True if it was there.
    pub(crate) fn take(&self, path: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_is_taken_once_and_their_number_is_bounded() {
        let doubts = Doubts::default();
        doubts.note(&"a".into());
        assert!(doubts.take("a") && !doubts.take("a"));
        for index in 0..2 * PATHS_MAX {
            doubts.note(&index.to_string().into());
        }
        assert!(doubts.take("0") && !doubts.take(&PATHS_MAX.to_string()));
    }
}
