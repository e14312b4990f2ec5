//! What can go wrong for a caller, one variant for each thing a caller can do about it.
//!
//! An error is cheap to clone, because one lost connection may answer many ranges of a batch. What a
//! retry inside the deadline can heal never gets here.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use millrace_proto::{FrameError, Status};

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The node answered with this status. A retryable one, such as [`Status::Busy`], is returned once
    /// no further try fits the deadline.
    #[error("{}", status_text(*.status, .message))]
    Status {
        /// What the node decided.
        status: Status,
        /// The node's own words; may be empty.
        message: String,
    },
    /// The file has changed since it was looked up: `stat` it again and start the read over, because
    /// bytes of two versions never mix.
    #[error(
        "'{path}' has changed since it was looked up; stat it again and read the new version from the start"
    )]
    Stale {
        /// Path of the file.
        path: Arc<str>,
    },
    /// No answer came in time. Allow more time, or see what the node is busy with.
    #[error("no answer before the deadline; allow more time or check the node's load")]
    DeadlineExceeded,
    /// The node cannot be reached at all: check the address, and that the node runs.
    #[error("cannot connect to {address}: {source}; check the address and that the node runs")]
    Connect {
        /// The address that was tried, `host:port`.
        address: Arc<str>,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Something accepts connections at the address but does not answer `Hello`: check that it is a
    /// Millrace node, and one that is not stuck.
    #[error(
        "connected to {address}, but it did not answer Hello within {}: is this a Millrace node?",
        duration_text(*.timeout)
    )]
    NoHello {
        /// The address, `host:port`.
        address: Arc<str>,
        /// The time it had, see [`ClientConfig::connect_timeout`](crate::ClientConfig::connect_timeout).
        timeout: Duration,
    },
    /// Coordination, which was to name the nodes, did not answer in time: check the address, and
    /// that it runs.
    #[error(
        "coordination at {servers} cannot be asked for nodes: {reason}; check the address and \
         that it runs"
    )]
    Coordination {
        /// Its servers, `host:port` joined by commas.
        servers: Arc<str>,
        /// What went wrong last.
        reason: Arc<str>,
    },
    /// Coordination answers, but no cluster is at this path: check the path.
    #[error(
        "there is no cluster at {place}; check the path, which is there once a node was started \
         with it"
    )]
    NoCluster {
        /// The place, `zk://HOST:PORT/PATH`.
        place: Arc<str>,
    },
    /// The cluster has no node at the moment: start one, or try again later.
    #[error("the cluster at {place} has no node at the moment; start one, or try again later")]
    NoMembers {
        /// The place, `zk://HOST:PORT/PATH`.
        place: Arc<str>,
    },
    /// The connection broke, and no try on a new one fitted the deadline: try again later.
    #[error("connection to {address} lost: {reason}; try again later")]
    ConnectionLost {
        /// The address, `host:port`.
        address: Arc<str>,
        /// How it was lost.
        reason: Arc<str>,
    },
    /// The answer to a write was lost: the source has made the change, or not. Look the path up before you write
    /// again, because another client may have written in between.
    #[error(
        "whether '{path}' was written is not known: {reason}; look it up before you write again"
    )]
    OutcomeUnknown {
        /// Path of the file.
        path: Arc<str>,
        /// How the answer was lost.
        reason: Arc<str>,
    },
    /// What was to be written could not be read to its end; nothing was written.
    #[error("cannot read what is to be written: {source}; nothing was written")]
    Unreadable {
        /// What the reader said.
        source: Arc<io::Error>,
    },
    /// The received bytes did not match their checksum, twice: suspect memory or network hardware.
    #[error(
        "bytes of '{path}' at offset {offset} do not match their checksum, also when read again; \
         check the node's memory and the network"
    )]
    Corrupt {
        /// Path of the file.
        path: Arc<str>,
        /// Offset in the file, in bytes, of the first piece that does not match.
        offset: u64,
    },
    /// The peer does not keep to the Millrace protocol: check its address and version.
    #[error("protocol error: {0}; check that the address and version are those of a Millrace node")]
    Protocol(Arc<str>),
    /// The call itself cannot work; the text says what to change.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
}

impl Error {
    /// Returns a protocol error with this text.
    pub(crate) fn protocol(text: impl Into<Arc<str>>) -> Error {
        Error::Protocol(text.into())
    }

    /// Returns the node's status, if that is what failed.
    pub fn status(&self) -> Option<Status> {
        match self {
            Error::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl From<FrameError> for Error {
    fn from(error: FrameError) -> Error {
        Error::protocol(error.to_string())
    }
}

impl From<Error> for io::Error {
    /// Returns the kind of error that a file would have; the [`Error`] itself is the inner error.
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::Status { status, .. } => match status {
                Status::NotFound => io::ErrorKind::NotFound,
                Status::PermissionDenied => io::ErrorKind::PermissionDenied,
                Status::DeadlineExceeded => io::ErrorKind::TimedOut,
                _ => io::ErrorKind::Other,
            },
            Error::DeadlineExceeded => io::ErrorKind::TimedOut,
            Error::Connect { source, .. } | Error::Unreadable { source } => source.kind(),
            Error::ConnectionLost { .. } => io::ErrorKind::ConnectionReset,
            Error::Corrupt { .. } | Error::Protocol(_) => io::ErrorKind::InvalidData,
            Error::InvalidArgument(_) => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// Formats a duration in whole seconds, else in milliseconds.
pub(crate) fn duration_text(duration: Duration) -> String {
    if duration.subsec_nanos() == 0 {
        format!("{} s", duration.as_secs())
    } else {
        format!("{} ms", duration.as_millis())
    }
}

fn status_text(status: Status, message: &str) -> String {
    if message.is_empty() { status.to_string() } else { format!("{status}: {message}") }
}
