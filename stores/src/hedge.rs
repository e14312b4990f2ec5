//! When a read is asked for a second time, because its answer takes longer than nearly all before it.
//!
//! Owns how long the last reads of a store took, and how many second requests may go out. Always holds: these are at
//! most a share of all reads.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Longest range that is asked for twice, in bytes: the second answer is held in memory until it is whole.
pub(crate) const RANGE_MAX: u64 = 1 << 20;
/// Reads that are looked back at. Guessed: enough for a 95th percentile that follows the store.
const READS_KEPT: usize = 128;
/// Reads without which nothing is known of a store.
const READS_MIN: usize = 20;
/// Reads that earn one second request: a share of 5 %.
const READS_FOR_ONE: u32 = 20;
/// Most second requests that are saved up. Guessed: one bad moment of a store.
const SAVED_MAX: u32 = 10;
/// Shortest wait before a second request. Guessed: an answer within it is not worth another request.
const WAIT_MIN: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Hedge(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    took: VecDeque<Duration>,
    /// Second requests that may go out, in parts of [`READS_FOR_ONE`].
    saved: u32,
}

impl Hedge {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how long a read took.
    pub(crate) fn note(&self, took: Duration) {
        let mut seen = self.lock();
        seen.took.push_back(took);
        if seen.took.len() > READS_KEPT {
            seen.took.pop_front();
        }
        seen.saved = (seen.saved + 1).min(SAVED_MAX * READS_FOR_ONE);
    }

    /// Returns after which time a read is asked for again: what 95 of 100 took at most. None if too few were seen.
    pub(crate) fn wait(&self) -> Option<Duration> {
        let seen = self.lock();
        if seen.took.len() < READS_MIN {
            return None;
        }
        let mut took: Vec<Duration> = seen.took.iter().copied().collect();
        took.sort_unstable();
        Some(took[took.len() * 95 / 100].max(WAIT_MIN))
    }

    /// Takes the right to a second request. True if there is one.
    pub(crate) fn take(&self) -> bool {
        let mut seen = self.lock();
        let has_one = seen.saved >= READS_FOR_ONE;
        if has_one {
            seen.saved -= READS_FOR_ONE;
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_what_nearly_all_reads_took() {
        let hedge = Hedge::default();
        let ms = Duration::from_millis;
        for number in 0..19 {
            hedge.note(ms(100 + number));
        }
        assert_eq!(hedge.wait(), None, "too little is known");
        for _ in 0..81 {
            hedge.note(ms(50));
        }
        assert_eq!(hedge.wait(), Some(ms(114)));
        for _ in 0..READS_KEPT {
            hedge.note(ms(1));
        }
        assert_eq!(hedge.wait(), Some(WAIT_MIN));
    }

    #[test]
    fn second_requests_are_a_share_of_all() {
        let hedge = Hedge::default();
        let mut taken = 0;
        for _ in 0..1000 {
            hedge.note(Duration::ZERO);
            taken += u32::from(hedge.take());
        }
        assert_eq!(taken, 50);
        for _ in 0..1000 {
            hedge.note(Duration::ZERO);
        }
        let at_once = (0..100).filter(|_| hedge.take()).count();
        assert_eq!(at_once, SAVED_MAX as usize);
    }
}
