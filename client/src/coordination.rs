//! Finding the nodes of a cluster where they registered: in coordination.
//!
//! Always holds: no session outlives its question, so that reads never depend on coordination. Without
//! the cargo feature `coordination` nothing is asked, and the error says so.

use std::sync::Arc;
use std::time::Duration;

use millrace_proto::coordination::Place;

use crate::error::Error;

#[cfg(feature = "coordination")]
mod session;
#[cfg(feature = "coordination")]
mod wire;

/// Returns the addresses of nodes that are registered, in random order; at least one. If a server keeps
/// silent for a step the next one is asked.
///
/// # Errors
/// [`Error::Coordination`] if it does not answer before `end`, which is at most `wait` from now;
/// [`Error::NoCluster`], [`Error::NoMembers`], and [`Error::Protocol`] if no record can be read.
#[cfg(feature = "coordination")]
pub(crate) async fn members(
    place: &Place,
    wait: Duration,
    step: Duration,
) -> Result<Vec<Arc<str>>, Error> {
    session::members(place, wait, step).await
}

/// Returns the error that this build cannot ask.
///
/// # Errors
/// [`Error::InvalidArgument`], always.
#[cfg(not(feature = "coordination"))]
pub(crate) async fn members(
    place: &Place,
    _wait: Duration,
    _step: Duration,
) -> Result<Vec<Arc<str>>, Error> {
    Err(Error::InvalidArgument(format!(
        "{place} needs the feature `coordination` of millrace-client, and this program was built \
         without it; build it with the feature, or name nodes instead: host:port,host:port"
    )))
}

#[cfg(all(test, not(feature = "coordination")))]
mod tests {
    #[tokio::test]
    async fn a_build_that_cannot_ask_says_so() {
        let found = crate::Client::connect("zk://a:1/m", Default::default()).await;
        let told = found.expect_err("no answer").to_string();
        assert!(told.contains("feature `coordination`") && told.contains("zk://a:1/m"), "{told}");
    }
}
