//! Several ways to one answer, of which some may hang.
//!
//! ```text
//!  first ─────────────────────────────► no answer yet
//!        └─ a step ─► second ─────────► no answer yet
//!                            └─ a step ─► two more ─ a step ─► four more …
//! ```
//!
//! After a way that fails the next one begins at once, after one that keeps silent it begins a step
//! later. So a way that hangs costs a step and no more. Always holds: the first good answer counts, and
//! the others are dropped with whatever they had begun.

use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{self, Instant};

use crate::error::Error;

/// One way to the answer. It has a time limit of its own.
pub(crate) type Course<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// The answer.
#[derive(Debug)]
pub(crate) struct Won<T> {
    pub(crate) value: T,
    /// Indexes of the ways that kept silent for at least a step.
    pub(crate) silent: Vec<usize>,
}

/// A way that was begun.
struct Runner<'a, T> {
    index: usize,
    started: Instant,
    way: Course<'a, T>,
}

/// Goes all ways, until one is good.
///
/// # Errors
/// The error of each way, in their order; none if there is no way.
pub(crate) async fn race<'a, T>(
    ways: Vec<Course<'a, T>>,
    step: Duration,
) -> Result<Won<T>, Vec<Error>> {
    let mut left = ways.into_iter().enumerate();
    let mut running: Vec<Runner<'a, T>> = Vec::new();
    let mut errors = Vec::new();
    let mut more = 1;
    loop {
        let started = Instant::now();
        let begun = left.by_ref().take(more);
        running.extend(begun.map(|(index, way)| Runner { index, started, way }));
        if running.is_empty() {
            errors.sort_by_key(|(index, _)| *index);
            return Err(errors.into_iter().map(|(_, error)| error).collect());
        }
        match time::timeout_at(started + step, next(&mut running)).await {
            Ok((_, Ok(value))) => {
                let silent = running.iter().filter(|it| it.started.elapsed() >= step);
                return Ok(Won { value, silent: silent.map(|it| it.index).collect() });
            }
            Ok((index, Err(error))) => {
                errors.push((index, error));
                more = 1;
            }
            // Twice as many begin, so a good one is found in a few steps however many hang.
            Err(_) => more = running.len(),
        }
    }
}

/// Returns the first way that ends, and how.
async fn next<T>(running: &mut Vec<Runner<'_, T>>) -> (usize, Result<T, Error>) {
    std::future::poll_fn(|context| {
        for place in 0..running.len() {
            if let Poll::Ready(result) = running[place].way.as_mut().poll(context) {
                return Poll::Ready((running.swap_remove(place).index, result));
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    /// Makes a way that hangs (None), or ends after this many milliseconds, well or not.
    fn way(number: usize, end: Option<(u64, bool)>) -> Course<'static, usize> {
        Box::pin(async move {
            match end {
                None => std::future::pending().await,
                Some((ms, is_good)) => {
                    time::sleep(Duration::from_millis(ms)).await;
                    is_good.then_some(number).ok_or(Error::protocol(number.to_string()))
                }
            }
        })
    }

    async fn run(ends: &[Option<(u64, bool)>]) -> (Result<Won<usize>, Vec<Error>>, Duration) {
        let start = Instant::now();
        let ways = ends.iter().enumerate().map(|(number, end)| way(number, *end));
        (race(ways.collect(), STEP).await, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_way_has_a_step_for_itself() {
        let (won, time) = run(&[Some((90, true)), Some((0, true))]).await;
        assert_eq!((won.unwrap().value, time), (0, Duration::from_millis(90)));
        let (won, time) = run(&[Some((150, true)), Some((10, true))]).await;
        let won = won.unwrap();
        assert_eq!((won.value, won.silent, time), (1, vec![0], Duration::from_millis(110)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_costs_no_step_and_the_errors_are_in_order() {
        let (won, time) = run(&[Some((5, false)), Some((5, false)), Some((5, true))]).await;
        assert_eq!((won.unwrap().value, time), (2, Duration::from_millis(15)));
        let (lost, _) = run(&[Some((150, false)), Some((5, false))]).await;
        let told: Vec<_> = lost.unwrap_err().iter().map(Error::to_string).collect();
        assert!(told[0].contains(" 0;") && told[1].contains(" 1;") && told.len() == 2, "{told:?}");
        assert!(run(&[]).await.0.unwrap_err().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_that_hang_the_good_one_is_found_in_a_few_steps() {
        let mut ends = vec![None; 63];
        ends.push(Some((1, true)));
        let (won, time) = run(&ends).await;
        let won = won.unwrap();
        assert_eq!((won.value, won.silent.len()), (63, 32));
        assert!(time < 7 * STEP, "{time:?}");
    }
}
