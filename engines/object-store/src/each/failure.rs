//! Errors of the client in the words of the trait.

use millrace_client::{Error as ClientError, Status};

use super::api::{Error, path};

/// Name of the store in errors.
pub(super) const STORE: &str = "Millrace";

/// Returns the error of the trait for an operation on a path.
pub(super) fn error(path: &str, error: ClientError) -> Error {
    let status = error.status();
    let is_stale = matches!(error, ClientError::Stale { .. });
    let (path, source) = (path.to_owned(), Box::new(error));
    match status {
        Some(Status::NotFound) => Error::NotFound { path, source },
        Some(Status::PermissionDenied) => Error::PermissionDenied { path, source },
        Some(Status::ConditionFailed) => Error::Precondition { path, source },
        Some(Status::UnknownOp) => Error::NotSupported { source },
        _ if is_stale => Error::Precondition { path, source },
        _ => Error::Generic { store: STORE, source },
    }
}

/// Returns an error for a call that cannot work.
pub(super) fn refused(text: String) -> Error {
    Error::Generic { store: STORE, source: text.into() }
}

/// Returns the error for what the trait has and Millrace does not.
pub(super) fn not_implemented(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: STORE.to_owned() }
}

/// Reads a key as a path of the trait.
///
/// # Errors
/// If the trait has no such path, as for a key with an empty part.
pub(super) fn location(key: &str) -> Result<path::Path, Error> {
    Ok(path::Path::parse(key)?)
}
