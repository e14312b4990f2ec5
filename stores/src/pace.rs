//! How fast a store may be read: a request begins when the bytes of those before it would have come at that rate.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::time::{Instant, sleep_until};

/// The rate of a store.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: u64,
    /// What waits for its turn does so in order.
    turn: tokio::sync::Mutex<()>,
    /// When the bytes so far would have come.
    free_at: Mutex<Instant>,
}

/// The right to begin a request; the next one may wait once this is dropped.
pub(crate) struct Turn<'a> {
    pace: &'a Pace,
    _turn: MutexGuard<'a, ()>,
}

impl Pace {
    /// Reads at most this many bytes a second, at least 1.
    pub(crate) fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second, turn: Default::default(), free_at: Mutex::new(Instant::now()) }
    }

    /// Returns the bytes of a request that keeps others waiting for no more than a second.
    pub(crate) fn run_max(&self) -> u64 {
        self.bytes_per_second
    }

    /// Waits until a request may begin.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        let turn = self.turn.lock().await;
        let free_at = *self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        sleep_until(free_at).await;
        Turn { pace: self, _turn: turn }
    }

    /// Counts bytes that a request brings.
    pub(crate) fn spend(&self, bytes: u64) {
        let time = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        // Time in which nothing was read is not saved up.
        *free_at = (*free_at).max(Instant::now()) + time;
    }
}

impl Turn<'_> {
    /// Counts the bytes of the request that begins.
    pub(crate) fn spend(self, bytes: u64) {
        self.pace.spend(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_follow_each_other_at_the_rate() {
        let (pace, start) = (Pace::new(1 << 20), Instant::now());
        let mut begun = Vec::new();
        for bytes in [1 << 20, 1 << 19, 0, 1] {
            pace.turn().await.spend(bytes);
            begun.push(start.elapsed().as_millis());
        }
        assert_eq!(begun[..3], [0, 1000, 1500]);
        assert_eq!(begun[3], 1500);
        // A second of rest does not let two begin at once afterwards.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let start = Instant::now();
        pace.turn().await.spend(1 << 20);
        pace.turn().await.spend(1 << 20);
        assert_eq!(start.elapsed().as_millis(), 1000);
    }
}
