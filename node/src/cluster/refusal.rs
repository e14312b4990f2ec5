//! Why the cluster does not do what it was asked for.
//!
//! Owns what the errors of coordination and of sources mean to a client that asked for a change. A write that
//! was refused because a later master has begun is told from one that was overtaken by another change.

use millrace_proto::Status;
use zookeeper_client::{CheckWriteError, Error};

use crate::store::StoreError;

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub status: Status,
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into() }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let message = match error {
            Error::QuotaExceeded => {
                "coordination is full: nothing is written until room is made".to_owned()
            }
            error => format!("coordination: {error}"),
        };
        Refusal::new(Status::Fenced, message)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Refusal {
        Refusal::new(error.status(), error.to_string())
    }
}

impl From<CheckWriteError> for Refusal {
    fn from(error: CheckWriteError) -> Refusal {
        match error {
            CheckWriteError::CheckFailed { .. }
            | CheckWriteError::OperationFailed { index: 0, source: Error::BadVersion } => {
                Refusal::new(Status::NotMaster, "another master was elected meanwhile")
            }
            CheckWriteError::OperationFailed { source: Error::BadVersion, .. } => {
                Refusal::new(Status::Busy, "another client changed it meanwhile: try again")
            }
            CheckWriteError::RequestFailed { source }
            | CheckWriteError::OperationFailed { source, .. } => source.into(),
        }
    }
}
