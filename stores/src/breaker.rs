//! A store that is down is asked now and then, and for all others it answers at once.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures in a row that mean an outage. Guessed: fewer come from single connections that break.
const FAILURES: u32 = 5;
/// How often a store that is down is tried.
const PAUSE: Duration = Duration::from_secs(1);

/// Judges whether a store is worth asking.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    tried_at: Option<Instant>,
}

impl Breaker {
    /// True if a request may go out: the store is up, or its turn to be tried has come.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rests = state.tried_at.is_some_and(|at| now.saturating_duration_since(at) < PAUSE);
        if state.failures >= FAILURES && rests {
            return false;
        }
        state.tried_at = Some(now);
        true
    }

    /// Notes how a request ended.
    pub(crate) fn note(&self, is_outage: bool) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.failures = if is_outage { state.failures.saturating_add(1) } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_down_is_tried_once_a_second() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        for _ in 0..FAILURES {
            assert!(breaker.admits(at(0)));
            breaker.note(true);
        }
        assert!(!breaker.admits(at(999)));
        assert!(breaker.admits(at(1000)), "one is let through");
        assert!(!breaker.admits(at(1001)), "and no second one");
        breaker.note(false);
        assert!(breaker.admits(at(1002)) && breaker.admits(at(1003)), "it is back");
    }
}
