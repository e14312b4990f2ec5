//! Finding the nodes of a cluster where they registered: in coordination.
//!
//! Owns when it is asked: once to begin with, and again when no member that is known can be
//! reached. Always holds: no session outlives its question, so that reads never depend on
//! coordination; a cluster that is gone makes no client ask more often than every half second at
//! first and every quarter of a minute later. Without the cargo feature `coordination` nothing is
//! asked, and the error says so.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use millrace_proto::coordination::Place;
use smallvec::smallvec;
use tokio::time::Instant;

use crate::cluster::{self, News};
use crate::error::Error;
use crate::member::{Member, Way};
use crate::network::{Board, Taken};
use crate::retry::Backoff;

#[cfg(feature = "coordination")]
mod session;

/// Waits before coordination is asked again, the shortest and the longest. Guessed: if the nodes of
/// ten thousand clients vanish at once, coordination has twenty thousand sessions a second for half
/// a second, then less each time.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// Most of the nodes it names that are then asked about the cluster, new ones first. Guessed: nodes
/// that do not answer cost three seconds each.
const ASKED_MAX: usize = 4;

/// The addresses of nodes that are registered, in random order; at least one.
///
/// # Errors
/// [`Error::Coordination`] if it does not answer before `end`, which is at most `wait` from now;
/// [`Error::NoCluster`], [`Error::NoMembers`], and [`Error::Protocol`] if no record can be read.
#[cfg(feature = "coordination")]
pub(crate) async fn members(place: &Place, wait: Duration) -> Result<Vec<Arc<str>>, Error> {
    session::members(place, wait).await
}

/// Says that this build cannot ask.
///
/// # Errors
/// [`Error::InvalidArgument`], always.
#[cfg(not(feature = "coordination"))]
pub(crate) async fn members(place: &Place, _wait: Duration) -> Result<Vec<Arc<str>>, Error> {
    Err(Error::InvalidArgument(format!(
        "{place} needs the feature `coordination` of millrace-client, and this program was built \
         without it; build it with the feature, or name nodes instead: host:port,host:port"
    )))
}

/// Looks for new members once those that are known are gone.
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

    /// Asks coordination for members, if it is time to, and those for the cluster. Whether one of
    /// them told something that counts.
    pub(crate) async fn run(&mut self, place: &Place, board: &Board) -> bool {
        let Some(step) = self.backoff_if_due() else { return false };
        let found = members(place, board.config().connect_timeout).await;
        self.due = Some(Instant::now() + step);
        // Coordination may be gone as well: the members that are known are tried all the same.
        let mut addresses = found.unwrap_or_default();
        let known = board.topology().cluster.clone();
        let members = known.iter().flat_map(|view| &view.members);
        let dead: HashSet<&str> = members.map(|told| told.address.as_str()).collect();
        addresses.sort_by_key(|address| dead.contains(address.as_ref()));
        for address in addresses.into_iter().take(ASKED_MAX) {
            let way = Way { addresses: smallvec![address], node: None };
            let lane = board.maker().lane(&way);
            let member = Member::alone(board.maker(), vec![way], false, &lane);
            if let Ok(News::View(view)) = cluster::fetch(&member, known.as_deref(), false).await
                && matches!(board.take_over(*view), Taken::New | Taken::Known)
            {
                return true;
            }
        }
        false
    }

    /// The wait after this question; None if it is too soon to ask.
    fn backoff_if_due(&mut self) -> Option<Duration> {
        let now = Instant::now();
        match self.due {
            Some(due) if due <= now => Some(self.backoff.step()),
            Some(_) => None,
            // Clients that lost the same nodes at the same time do not all ask at once.
            None => {
                self.due = Some(now + self.backoff.step());
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_search_waits_first_and_then_longer_each_time() {
        let mut search = Search::new();
        for _ in 0..2 {
            assert_eq!(search.backoff_if_due(), None, "the members may be back in a moment");
            time::advance(AGAIN_MIN / 3).await;
            assert_eq!(search.backoff_if_due(), None);
            time::advance(AGAIN_MIN).await;
            let mut last = Duration::ZERO;
            for _ in 0..8 {
                last = search.backoff_if_due().expect("it is time");
                search.due = Some(Instant::now() + last);
                assert_eq!(search.backoff_if_due(), None);
                time::advance(last).await;
            }
            assert!(last >= AGAIN_MAX / 2 && last <= AGAIN_MAX, "{last:?}");
            search.reset();
        }
    }

    #[cfg(not(feature = "coordination"))]
    #[tokio::test]
    async fn a_build_that_cannot_ask_says_so() {
        let found = crate::Client::connect("zk://a:1/m", Default::default()).await;
        let told = found.expect_err("no answer").to_string();
        assert!(told.contains("feature `coordination`") && told.contains("zk://a:1/m"), "{told}");
    }
}
