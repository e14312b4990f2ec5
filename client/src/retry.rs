//! How long to wait between two tries.
//!
//! Owns the exponential back-off with jitter, for requests and for connections alike. A wait is
//! never begun when it would end past the deadline. What deserves another try is decided elsewhere.

use std::time::Duration;

use millrace_proto::Status;
use tokio::time::{self, Instant};

use crate::error::Error;

/// Waits that double from `min` to `max`, each shortened by up to half at random so that clients that
/// failed together do not come back together.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    min: Duration,
    max: Duration,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Backoff {
        Backoff { next: min, min, max }
    }

    /// Returns the next wait: between half and the whole of the current step.
    pub(crate) fn step(&mut self) -> Duration {
        let wait = self.next.mul_f64(0.5 + 0.5 * fastrand::f64());
        self.next = (self.next * 2).min(self.max);
        wait
    }

    /// Starts again from the shortest wait.
    pub(crate) fn reset(&mut self) {
        self.next = self.min;
    }
}

/// Tries of an operation whose source fails. Guessed: one that is restarted is there again, and one that is broken is
/// not asked for long.
pub(crate) const SOURCE_TRIES: u32 = 6;
/// Shortest wait after a source has failed; it doubles each time, to 3 s for all of them together.
const SOURCE_WAIT_MIN: Duration = Duration::from_millis(100);

/// Returns how long to wait after the source has failed this often; `None` if it has been tried enough.
pub(crate) fn source_wait(failed_count: u32) -> Option<Duration> {
    let doublings = failed_count.saturating_sub(1);
    (failed_count < SOURCE_TRIES).then(|| SOURCE_WAIT_MIN * (1 << doublings))
}

/// The tries of one operation.
#[derive(Debug)]
pub(crate) struct Retry {
    backoff: Backoff,
    deadline: Instant,
    /// What went wrong last.
    cause: Option<Error>,
    /// How often the source has failed.
    source_failures: u32,
}

impl Retry {
    pub(crate) fn new(backoff: Backoff, deadline: Instant) -> Retry {
        Retry { backoff, deadline, cause: None, source_failures: 0 }
    }

    /// Waits for the back-off, at least `wait_min`, and longer where the source has failed.
    ///
    /// # Errors
    /// `cause`, at once, if that would pass the deadline, or the source has failed often enough.
    pub(crate) async fn pause(&mut self, wait_min: Duration, cause: Error) -> Result<(), Error> {
        let mut wait = self.backoff.step().max(wait_min);
        if cause.status() == Some(Status::SourceError) {
            self.source_failures += 1;
            match source_wait(self.source_failures) {
                Some(source_wait) => wait = wait.max(source_wait),
                None => return Err(cause),
            }
        }
        let fits = Instant::now().checked_add(wait).is_some_and(|end| end < self.deadline);
        if !fits {
            return Err(self.end(cause));
        }
        self.cause = Some(cause);
        time::sleep(wait).await;
        Ok(())
    }

    /// Returns the error that ends the operation: a try that came too late has the error that made it
    /// late.
    pub(crate) fn end(&self, error: Error) -> Error {
        match (error, self.cause.clone()) {
            (Error::DeadlineExceeded, Some(cause)) => cause,
            (error, _) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_start_over() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(2));
        let mut backoff = Backoff::new(min, max);
        let mut step = min;
        for _ in 0..12 {
            let wait = backoff.step();
            assert!(wait >= step / 2 && wait <= step, "{wait:?} of a step of {step:?}");
            step = (step * 2).min(max);
        }
        backoff.reset();
        assert!(backoff.step() <= min);
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_fails_is_tried_some_times_however_much_time_there_is() {
        let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        let mut retry = Retry::new(backoff, Instant::now() + Duration::from_secs(24 * 3600));
        let cause = |status| Error::Status { status, message: String::new() };
        for _ in 0..100 {
            assert!(retry.pause(Duration::ZERO, cause(Status::Busy)).await.is_ok());
        }
        let mut tries = 1;
        while retry.pause(Duration::ZERO, cause(Status::SourceError)).await.is_ok() {
            tries += 1;
        }
        assert_eq!(tries, SOURCE_TRIES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_past_the_deadline_is_not_begun() {
        let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        let mut retry = Retry::new(backoff, Instant::now() + Duration::from_millis(100));
        let start = Instant::now();
        let cause = || Error::protocol("cause");
        let late = retry.pause(Duration::from_secs(1), cause()).await;
        assert!(matches!(late, Err(Error::Protocol(_))));
        assert_eq!(start.elapsed(), Duration::ZERO);
        let waited = retry.pause(Duration::from_millis(10), cause()).await;
        assert!(waited.is_ok());
        assert!(start.elapsed() >= Duration::from_millis(10));
        let end = retry.end(Error::DeadlineExceeded);
        assert!(matches!(end, Error::Protocol(_)));
    }
}
