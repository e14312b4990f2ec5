//! Finding a cluster again when none of its known members can be reached: at the addresses that the
//! client began with, or at those that coordination names.  Owns when they are asked. Always holds: the
//! way in is remembered for good; a cluster that is gone makes no client ask more often than every half
//! second at first and every quarter of a minute later. Addresses are asked for the first time at once,
//! because nodes are asked all the time anyway. Coordination is asked only after a moment, because all
//! clients that lost the same nodes ask the same servers.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use smallvec::smallvec;
use tokio::time::Instant;

use super::fetch;
use crate::address::{SEEDS_MAX, Seeds};
use crate::board::Board;
use crate::coordination;
use crate::error::Error;
use crate::member::{Member, Way};
use crate::race::{self, race};
use crate::retry::Backoff;
use crate::view::View;

/// Waits before the way in is gone again, the shortest and the longest. Guessed: if the nodes of ten
/// thousand clients vanish at once, coordination has twenty thousand sessions a second for half a
/// second, then less each time.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(crate) struct Search {
    backoff: Backoff,
    /// When to ask next; None before the first round without a member.
    due: Option<Instant>,
}

impl Search {
    pub(crate) fn new() -> Search {
        Search { backoff: Backoff::new(AGAIN_MIN, AGAIN_MAX), due: None }
    }

    /// Notes that a member answered.
    pub(crate) fn reset(&mut self) {
        self.backoff.reset();
        self.due = None;
    }

    /// Goes the way in again, if it is time to. True if a node gave news that counts.
    pub(crate) async fn run(&mut self, board: &Board) -> bool {
        let is_first_at_once = matches!(board.seeds(), Seeds::Addresses(_));
        let Some(step) = self.step_if_due(is_first_at_once) else { return false };
        let addresses = match board.seeds() {
            Seeds::Addresses(addresses) => addresses.clone(),
            // Coordination may be gone as well: the known members are still tried.
            Seeds::Coordination(place) => {
                let (wait, step) = (board.config().connect_timeout, board.config().race_step());
                coordination::members(place, wait, step).await.unwrap_or_default()
            }
        };
        let is_found = ask(board, addresses).await;
        self.due = Some(Instant::now() + step);
        is_found
    }

    /// Returns the wait after this question; None if it is too soon to ask.
    fn step_if_due(&mut self, is_first_at_once: bool) -> Option<Duration> {
        let now = Instant::now();
        match self.due {
            Some(due) if due <= now => Some(self.backoff.step()),
            Some(_) => None,
            None if is_first_at_once => Some(self.backoff.step()),
            // Clients that lost the same nodes at the same time do not all ask at once.
            None => {
                self.due = Some(now + self.backoff.step());
                None
            }
        }
    }
}

/// Asks the nodes at these addresses for the cluster, first the addresses that no known member has. True
/// if one of them gave news that counts.
async fn ask(board: &Board, mut addresses: Vec<Arc<str>>) -> bool {
    let topology = board.topology();
    if let Some(main) = &topology.main {
        // It is asked all the time.
        addresses.retain(|address| *address != main.address);
    }
    let known = topology.cluster.clone();
    let members = known.iter().flat_map(|view| &view.layout.members);
    let dead: HashSet<&str> = members.map(|told| told.address.as_str()).collect();
    addresses.sort_by_key(|address| dead.contains(address.as_ref()));
    addresses.truncate(SEEDS_MAX);
    let ways = addresses.iter().map(|address| -> race::Course<'_, ()> {
        Box::pin(ask_one(board, address, known.as_deref()))
    });
    race(ways.collect(), board.config().race_step()).await.is_ok()
}

/// Asks the node at an address.
///
/// # Errors
/// Why it told nothing that counts.
async fn ask_one(board: &Board, address: &Arc<str>, known: Option<&View>) -> Result<(), Error> {
    let way = Way { addresses: smallvec![address.clone()], node: None };
    let lane = board.maker().lane(&way);
    let member = Member::alone(board.maker(), vec![way], false, &lane);
    let patience = board.config().connect_timeout;
    board.take_news(fetch(&member, known, false, patience).await?, Some(address))
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_search_waits_first_and_then_longer_each_time() {
        let mut search = Search::new();
        for _ in 0..2 {
            assert_eq!(search.step_if_due(false), None, "the members may be back in a moment");
            time::advance(AGAIN_MIN / 3).await;
            assert_eq!(search.step_if_due(false), None);
            time::advance(AGAIN_MIN).await;
            let mut last = Duration::ZERO;
            for _ in 0..8 {
                last = search.step_if_due(false).expect("it is time");
                search.due = Some(Instant::now() + last);
                assert_eq!(search.step_if_due(false), None);
                time::advance(last).await;
            }
            assert!(last >= AGAIN_MAX / 2 && last <= AGAIN_MAX, "{last:?}");
            search.reset();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_are_asked_at_once_and_then_as_seldom() {
        let mut search = Search::new();
        let step = search.step_if_due(true).expect("it is time");
        search.due = Some(Instant::now() + step);
        assert_eq!(search.step_if_due(true), None);
        time::advance(step).await;
        assert!(search.step_if_due(true).is_some());
    }
}
