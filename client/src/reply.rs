//! Owns the reading of reply bodies and the turn from a status into a decision. Waiting and trying again
//! is left to the caller.

use std::sync::Arc;
use std::time::Duration;

use millrace_proto::message::ArchivedErrorReply;
use millrace_proto::status::Next;
use millrace_proto::{Status, frame};

use crate::connection::Reply;
use crate::error::Error;

/// Why an answer is of no direct use. Each setback carries the error to return when nothing can be done.
#[derive(Debug)]
pub(crate) enum Setback {
    /// Try again after at least `wait_min`.
    Again { wait_min: Duration, cause: Error },
    /// The node does not know the file id: look the path up again, then try again.
    Restat(Error),
    /// The file has changed.
    Stale(Error),
    /// Nothing helps.
    Fail(Error),
}

impl Setback {
    /// Returns the error behind it.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Setback::Again { cause, .. } => cause,
            Setback::Restat(error) | Setback::Stale(error) | Setback::Fail(error) => error,
        }
    }
}

/// Passes a reply whose status is `Ok`, and returns what to do about any other outcome.
pub(crate) fn judge(outcome: Result<Reply, Error>) -> Result<Reply, Setback> {
    let reply = match outcome {
        Ok(reply) => reply,
        // The connection ended first. Every operation may be sent twice, so that does no harm.
        Err(cause) => {
            return Err(Setback::Again { wait_min: Duration::ZERO, cause });
        }
    };
    let status = reply.header.status();
    let wait_min = Duration::from_millis(u64::from(reply.header.budget_ms));
    Err(match (status.next(), status) {
        (Next::Use, _) => return Ok(reply),
        (Next::Retry, _) => Setback::Again { wait_min, cause: status_error(&reply) },
        (Next::Reconnect, _) => {
            Setback::Again { wait_min: Duration::ZERO, cause: status_error(&reply) }
        }
        (Next::Restat, Status::UnknownFile) => Setback::Restat(status_error(&reply)),
        (Next::Restat, _) => Setback::Stale(status_error(&reply)),
        (Next::Fail, Status::DeadlineExceeded) => Setback::Fail(Error::DeadlineExceeded),
        (Next::Fail, _) => Setback::Fail(status_error(&reply)),
    })
}

/// Returns the error of a reply whose status is not `Ok`, with the node's words if it sent any.
pub(crate) fn status_error(reply: &Reply) -> Error {
    let message = match frame::body::<ArchivedErrorReply>(&reply.body) {
        Ok(body) => body.message.as_str().to_owned(),
        Err(_) => String::new(),
    };
    Error::Status { status: reply.header.status(), message }
}

/// Returns the error of a read whose file has changed.
pub(crate) fn stale(path: &Arc<str>) -> Error {
    Error::Stale { path: path.clone() }
}
