//! Whether a member of a cluster is worth asking.
//!
//! A member that was not reached, or kept silent for too long, is suspect: others are asked before it
//! until a ping was answered. The first ping after a silence goes out at once, because a member that is
//! only slow answers it. Later ones wait longer each time. Always holds: at most one ping at a time is
//! under way for a member, and none once the member is gone.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

/// First wait before a suspect member is asked again. Guessed.
const STEP_MIN: Duration = Duration::from_millis(250);
/// Longest wait. Guessed: a ping each five seconds costs next to nothing.
const STEP_MAX: Duration = Duration::from_secs(5);
/// How long a member must have been healthy for its waits to begin at the shortest again. Guessed.
const RECOVERED: Duration = Duration::from_secs(10);

const WELL: u8 = 0;
const SUSPECT: u8 = 1;
const BANISHED: u8 = 2;

/// See the module.
#[derive(Debug)]
pub(crate) struct Health {
    state: AtomicU8,
    history: Mutex<History>,
}

#[derive(Debug)]
struct History {
    step: Duration,
    well_since: Instant,
    probe: Option<AbortHandle>,
}

impl Health {
    /// Returns the health of a member of which nothing bad is known.
    pub(crate) fn new() -> Health {
        let history = History { step: STEP_MIN, well_since: Instant::now(), probe: None };
        Health { state: AtomicU8::new(WELL), history: Mutex::new(history) }
    }

    /// True if the member is to be asked before those that are not healthy.
    #[inline]
    pub(crate) fn is_well(&self) -> bool {
        self.state.load(Ordering::Relaxed) == WELL
    }

    /// True if the member belongs to another cluster by now: it is never asked.
    pub(crate) fn is_banished(&self) -> bool {
        self.state.load(Ordering::Relaxed) == BANISHED
    }

    /// Notes that the member was not reached. True if that was not known.
    pub(crate) fn suspect(&self) -> bool {
        let turned =
            self.state.compare_exchange(WELL, SUSPECT, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if turned {
            let mut history = self.history();
            if history.well_since.elapsed() > RECOVERED {
                history.step = STEP_MIN;
            }
        }
        turned
    }

    /// Notes that the member answered.
    pub(crate) fn recover(&self) {
        let turned = self.state.compare_exchange(SUSPECT, WELL, Ordering::SeqCst, Ordering::SeqCst);
        if turned.is_ok() {
            self.history().well_since = Instant::now();
        }
    }

    /// Notes that the member does not belong to this cluster.
    pub(crate) fn banish(&self) {
        self.state.store(BANISHED, Ordering::SeqCst);
    }

    /// Returns how long to wait before the next ping; the one after it waits twice as long.
    pub(crate) fn step(&self) -> Duration {
        let mut history = self.history();
        let step = history.step;
        history.step = (step * 2).min(STEP_MAX);
        step
    }

    /// Replaces the task that pings the member.
    pub(crate) fn probed_by(&self, task: AbortHandle) {
        if let Some(before) = self.history().probe.replace(task) {
            before.abort();
        }
    }

    fn history(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        if let Some(probe) = self.history().probe.take() {
            probe.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_grow_and_begin_anew_after_a_long_time_of_health() {
        let health = Health::new();
        assert!(health.is_well() && health.suspect() && !health.suspect() && !health.is_well());
        let steps: Vec<_> = (0..7).map(|_| health.step().as_millis()).collect();
        assert_eq!(steps, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        health.recover();
        assert!(health.is_well() && health.suspect());
        assert_eq!(health.step(), STEP_MAX, "it was well for a moment only");
        health.recover();
        tokio::time::advance(RECOVERED * 2).await;
        assert!(health.suspect());
        assert_eq!(health.step(), STEP_MIN);
        health.banish();
        health.recover();
        assert!(health.is_banished() && !health.is_well());
    }
}
