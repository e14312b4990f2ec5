//! The connection that a request belongs to: what it asked for ends with it.
//!
//! Always holds: when a connection is closed, all holders of one of its tickets see it, without a
//! message to each; two expensive requests of one connection are never worked on at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Expensive requests of one connection that wait for their turn. Derived: as many requests as a
/// connection may have in flight that are not reads.
const TURNS_MAX: usize = 64;

/// Kept by a connection; dropped with it.
#[derive(Debug)]
pub(crate) struct Owner {
    /// True once the client sends no more.
    has_ended: watch::Sender<bool>,
    ticket: Ticket,
}

/// Goes with a request to where it is worked on.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    has_ended: watch::Receiver<bool>,
    turn: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// Of this connection, and of all of its machine.
    loads: [Loads; 2],
}

/// How many loads are under way, for all that share the count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loads(Arc<AtomicUsize>);

impl Loads {
    /// Takes one more of at most `max`.
    fn take(&self, max: usize) -> Option<LoadPlace> {
        // The side thread alone counts up, so it cannot overshoot.
        let is_free = self.0.load(Ordering::Relaxed) < max;
        is_free.then(|| {
            self.0.fetch_add(1, Ordering::Relaxed);
            LoadPlace(self.clone())
        })
    }

    /// True if both are the same count.
    #[cfg(test)]
    pub(crate) fn is(&self, other: &Loads) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// How many loads there may be at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoadLimits {
    connection_max: usize,
    machine_max: usize,
}

impl LoadLimits {
    /// Divides `all` loads: a connection may have half, and a machine with all its connections three
    /// quarters. Some are left for others, if there are two at least.
    pub(crate) fn of(all: usize) -> LoadLimits {
        let machine_max = all.saturating_sub(all.div_ceil(4)).max(1);
        LoadLimits { connection_max: all.div_ceil(2).min(machine_max), machine_max }
    }
}

impl Owner {
    /// Makes the owner for an open connection, of the machine whose loads these are.
    pub(crate) fn new(machine: Loads) -> Owner {
        let (has_ended, receiver) = watch::channel(false);
        let (turn, waiting) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(TURNS_MAX)));
        let loads = [Loads::default(), machine];
        let ticket = Ticket { has_ended: receiver, turn, waiting, loads };
        Owner { has_ended, ticket }
    }

    /// Returns a ticket for one request.
    pub(crate) fn ticket(&self) -> Ticket {
        self.ticket.clone()
    }

    /// Notes that the client sends no more, though it may still read.
    pub(crate) fn end(&self) {
        self.has_ended.send_replace(true);
    }
}

impl Ticket {
    /// True if the connection is closed.
    pub(crate) fn is_gone(&self) -> bool {
        self.has_ended.has_changed().is_err()
    }

    /// Waits until the connection is closed.
    pub(crate) async fn gone(&self) {
        let mut has_ended = self.has_ended.clone();
        while has_ended.changed().await.is_ok() {}
    }

    /// Waits until the client sends no more, or the connection is closed.
    pub(crate) async fn ended(&self) {
        // An error is the end of the connection.
        let _ = self.has_ended.clone().wait_for(|has_ended| *has_ended).await;
    }

    /// Waits for the turn of an expensive request; None if too many of the connection wait.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let _waits = self.waiting.try_acquire().ok()?;
        Some(Arc::clone(&self.turn).acquire_owned().await.expect("never closed"))
    }

    /// Takes a place among the loads of the connection and of its machine.
    pub(crate) fn load(&self, limits: LoadLimits) -> Option<[LoadPlace; 2]> {
        let [connection, machine] = &self.loads;
        Some([connection.take(limits.connection_max)?, machine.take(limits.machine_max)?])
    }
}

/// One of the loads that are counted.
pub(crate) struct LoadPlace(Loads);

impl Drop for LoadPlace {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_tell_when_the_connection_ends_and_when_it_is_closed() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let owner = Owner::new(Loads::default());
        let (early, late) = (owner.ticket(), owner.ticket());
        let waiting = runtime.spawn({
            let ticket = owner.ticket();
            async move { ticket.gone().await }
        });
        owner.end();
        runtime.block_on(early.ended());
        assert!(!early.is_gone() && !waiting.is_finished());
        drop(owner);
        assert!(early.is_gone() && late.is_gone());
        runtime.block_on(waiting).unwrap();
        runtime.block_on(late.ended());
    }

    #[test]
    fn a_connection_has_so_many_loads_and_no_more() {
        let limits = LoadLimits::of(4);
        let owner = Owner::new(Loads::default());
        let first = owner.ticket().load(limits);
        let second = owner.ticket().load(limits);
        assert!(first.is_some() && second.is_some() && owner.ticket().load(limits).is_none());
        drop(first);
        assert!(owner.ticket().load(limits).is_some());
        assert!(Owner::new(Loads::default()).ticket().load(limits).is_some(), "another machine");
    }

    #[test]
    fn connections_of_a_machine_leave_loads_to_others() {
        let limits = LoadLimits::of(4);
        let (machine, other) = (Loads::default(), Owner::new(Loads::default()));
        let owners: Vec<Owner> = (0..9).map(|_| Owner::new(machine.clone())).collect();
        let places: Vec<_> = owners.iter().map(|owner| owner.ticket().load(limits)).collect();
        assert_eq!(places.iter().flatten().count(), 3);
        assert!(other.ticket().load(limits).is_some());
        drop(places);
        // What was refused for the machine's sake is not counted for the connection either.
        assert!(owners[8].ticket().load(limits).is_some());
        for all in 1..=100 {
            let LoadLimits { connection_max, machine_max } = LoadLimits::of(all);
            assert!((1..=machine_max).contains(&connection_max), "{all}");
            assert!(machine_max < all || all == 1, "{all}");
        }
    }

    #[test]
    fn a_connection_has_one_turn_at_a_time_and_few_that_wait() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let owner = Owner::new(Loads::default());
        let first = runtime.block_on(owner.ticket().turn()).expect("a turn");
        let turns: Vec<_> = (0..=TURNS_MAX)
            .map(|_| {
                let ticket = owner.ticket();
                runtime.spawn(async move { ticket.turn().await.is_some() })
            })
            .collect();
        runtime.block_on(tokio::task::yield_now());
        drop(first);
        let had: Vec<bool> =
            turns.into_iter().map(|turn| runtime.block_on(turn).expect("a task")).collect();
        assert_eq!(had.iter().filter(|had| !**had).count(), 1, "one more than may wait");
    }
}
