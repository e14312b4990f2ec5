//! Many jobs, a bounded number at once.
//!
//! Owns the window: the next job starts when one ends, and their outcomes come in any order.
//! Dropped or stopped early, it leaves no job running. Order, where it matters, is left to the
//! caller.

use tokio::task::{JoinError, JoinSet};

use crate::failure::Failure;

/// Runs `start` for each item, at most `in_flight_max` at once, and hands each outcome to `done`.
///
/// # Errors
/// The first failure of `done`; jobs in flight are then dropped.
pub(crate) async fn for_each<T, F, R>(
    items: impl IntoIterator<Item = T>,
    in_flight_max: usize,
    mut start: impl FnMut(T) -> F,
    mut done: impl FnMut(R) -> Result<(), Failure>,
) -> Result<(), Failure>
where
    F: Future<Output = R> + Send + 'static,
    R: Send + 'static,
{
    let mut items = items.into_iter();
    let mut jobs = JoinSet::new();
    loop {
        while jobs.len() < in_flight_max.max(1)
            && let Some(item) = items.next()
        {
            jobs.spawn(start(item));
        }
        match jobs.join_next().await {
            None => return Ok(()),
            Some(outcome) => done(ended(outcome)?)?,
        }
    }
}

/// As [`for_each`], for items that are found one after the other.
///
/// # Errors
/// The first failure of `next` or `done`; jobs in flight are then dropped.
pub(crate) async fn for_each_found<T, F, R>(
    mut next: impl AsyncFnMut() -> Result<Option<T>, Failure>,
    in_flight_max: usize,
    mut start: impl FnMut(T) -> F,
    mut done: impl FnMut(R) -> Result<(), Failure>,
) -> Result<(), Failure>
where
    F: Future<Output = R> + Send + 'static,
    R: Send + 'static,
{
    let mut jobs = JoinSet::new();
    while let Some(item) = next().await? {
        jobs.spawn(start(item));
        while jobs.len() >= in_flight_max.max(1)
            && let Some(outcome) = jobs.join_next().await
        {
            done(ended(outcome)?)?;
        }
    }
    while let Some(outcome) = jobs.join_next().await {
        done(ended(outcome)?)?;
    }
    Ok(())
}

/// Returns the outcome of a job. A job that panicked panics here.
fn ended<R>(outcome: Result<R, JoinError>) -> Result<R, Failure> {
    outcome.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => Failure::new(format!("a task ended: {error}")),
    })
}

/// Returns how many pieces of `piece_bytes` fit `bytes_max`, between `min` and `max`.
pub(crate) fn window(bytes_max: u64, piece_bytes: u64, min: usize, max: usize) -> usize {
    let fit = usize::try_from(bytes_max / piece_bytes.max(1)).unwrap_or(max);
    fit.clamp(min, max)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn jobs_in_flight_are_bounded_and_all_are_done() {
        let running = Arc::new(AtomicUsize::new(0));
        let mut sum = 0;
        let start = |item: usize| {
            let running = running.clone();
            async move {
                let before = running.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                running.fetch_sub(1, Ordering::SeqCst);
                (item, before)
            }
        };
        let done = |(item, before)| {
            assert!(before < 3, "{before} others run beside this one");
            sum += item;
            Ok(())
        };
        for_each(0..100, 3, start, done).await.unwrap();
        assert_eq!(sum, 4950);
    }

    #[tokio::test]
    async fn first_failure_stops_the_rest() {
        let mut count = 0;
        let done = |()| {
            count += 1;
            Err(Failure::new("enough"))
        };
        let result = for_each(0..100, 2, |_| async {}, done).await;
        assert_eq!(result, Err(Failure::new("enough")));
        assert_eq!(count, 1);
    }

    #[test]
    fn window_keeps_its_bounds() {
        assert_eq!(window(64 << 20, 1 << 20, 4, 32), 32);
        assert_eq!(window(64 << 20, 4 << 20, 4, 32), 16);
        assert_eq!(window(64 << 20, 32 << 20, 4, 32), 4);
        assert_eq!(window(64 << 20, 0, 4, 32), 32);
    }
}
