//! Look-ups that are under way, so that clients that ask for one path at the same time cause one question.
//!
//! Owns which path is being looked up since when. Always holds: a look-up is joined only by what would believe its
//! answer, and not once its path was written or refreshed since it began; one that nothing waits for any more ends.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use millrace_proto::Status;
use millrace_proto::message::Entry;
use tokio::sync::watch;
use tokio::time::timeout;

use super::lookups::Caller;
use super::{Context, Failure};
use crate::store::StoreError;

/// The answer of a look-up, once it is there.
type FlightAnswer = Option<Result<Entry, Failure>>;

/// A look-up under way.
struct Flight {
    begun: Instant,
    number: u64,
    told: Weak<watch::Sender<FlightAnswer>>,
}

#[derive(Default)]
struct Board {
    by_path: HashMap<Arc<str>, Flight>,
    next: u64,
}

/// All look-ups under way that may be joined, by their paths.
#[derive(Default)]
pub(super) struct Flights(Mutex<Board>);

/// A look-up that has to be made, for those that wait for what it tells.
struct Begun {
    number: u64,
    told: Arc<watch::Sender<FlightAnswer>>,
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins a look-up that is young enough, or begins one in its place, which is the caller's to make.
    fn take_part(
        &self,
        path: &Arc<str>,
        is_young: impl Fn(Instant) -> bool,
    ) -> (watch::Receiver<FlightAnswer>, Option<Begun>) {
        let mut board = self.lock();
        let young = board.by_path.get(path).filter(|flight| is_young(flight.begun));
        if let Some(told) = young.and_then(|flight| flight.told.upgrade()) {
            return (told.subscribe(), None);
        }
        let number = board.next;
        board.next += 1;
        let (sender, receiver) = watch::channel(None);
        let told = Arc::new(sender);
        let flight = Flight { begun: Instant::now(), number, told: Arc::downgrade(&told) };
        board.by_path.insert(Arc::clone(path), flight);
        (receiver, Some(Begun { number, told }))
    }

    /// Ends a look-up: with its answer, or without one if nothing waits for it. True if it has ended.
    fn end(&self, path: &str, begun: &Begun, answer: FlightAnswer) -> bool {
        let mut board = self.lock();
        if answer.is_none() && begun.told.receiver_count() > 0 {
            return false;
        }
        if board.by_path.get(path).is_some_and(|flight| flight.number == begun.number) {
            board.by_path.remove(path);
        }
        begun.told.send_replace(answer);
        true
    }
}

impl Context {
    /// Looks a path up in the source, together with those that ask for it at the same time if its mount lets look-ups
    /// be believed.
    pub(super) async fn look_up_together(
        self: &Arc<Self>,
        caller: Caller<'_>,
        path: &Arc<str>,
    ) -> Result<Entry, Failure> {
        let bound = self.store.stale_after(path);
        let id = self.store.identify(path);
        // A client knows of a change that a look-up which has begun may not see.
        if bound.is_zero() || self.files.is_doubted(id) {
            return self.look_up(caller, path).await;
        }
        let is_young =
            |begun: Instant| begun.elapsed() < bound && self.beliefs.is_true_since(path, begun);
        let (mut told, begun) = self.flights.take_part(path, is_young);
        if let Some(begun) = begun {
            let (context, path) = (Arc::clone(self), Arc::clone(path));
            tokio::spawn(async move { context.fly(&path, begun).await });
        }
        let answer = async {
            let gone = |_| StoreError::Failed("the node is shutting down".to_owned());
            let told = told.wait_for(Option::is_some).await.map_err(gone)?;
            Ok(told.clone())
        };
        self.ask(caller, answer).await?.unwrap_or_else(|| Err(Failure::gone()))
    }

    /// Makes a look-up, for as long as something waits for it.
    async fn fly(&self, path: &Arc<str>, begun: Begun) {
        let mut seen = pin!(timeout(self.patience, self.see_now(path)));
        loop {
            tokio::select! {
                answer = &mut seen => {
                    let ms = self.patience.as_millis();
                    let late = format!("the source has not answered for {ms} ms (source_timeout_ms)");
                    let answer = answer.unwrap_or_else(|_| Err(Failure::new(Status::SourceError, &late)));
                    self.flights.end(path, &begun, Some(answer));
                    return;
                }
                () = begun.told.closed() => {
                    if self.flights.end(path, &begun, None) {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_up_is_joined_while_it_is_young_and_under_way() {
        let (flights, path) = (Flights::default(), Arc::from("a"));
        let join = |is_young: bool| flights.take_part(&path, |_| is_young);
        let (first, begun) = join(true);
        let begun = begun.expect("it is the first one");
        let (second, none) = join(true);
        assert!(none.is_none());
        let (third, other) = join(false);
        let other = other.expect("the one before is too old");
        assert!(!flights.end("a", &begun, None), "two wait for it");
        assert!(flights.end("a", &begun, Some(Err(Failure::gone()))));
        for told in [&first, &second] {
            assert!(told.borrow().is_some());
        }
        let (fourth, none) = join(true);
        assert!(none.is_none() && fourth.borrow().is_none(), "the younger one goes on");
        drop((third, fourth));
        assert!(flights.end("a", &other, None), "nothing waits for it");
        assert!(join(true).1.is_some());
    }
}
