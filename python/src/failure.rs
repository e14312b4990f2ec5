//! The client's errors as those that Python's own file functions raise, each with the client's text.

use std::io;

use millrace_client::{Error, Status};
use pyo3::exceptions::{
    PyConnectionError, PyFileExistsError, PyFileNotFoundError, PyIsADirectoryError,
    PyNotADirectoryError, PyOSError, PyPermissionError, PyTimeoutError, PyValueError,
};
use pyo3::prelude::*;

pyo3::create_exception!(
    millrace,
    StaleError,
    PyOSError,
    "The file has changed since it was looked up, so its old version cannot be read any more: look it up again."
);

/// What a path had to be for the call that failed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need {
    File,
    Directory,
    /// A file in the version that the caller named.
    Version,
}

/// Returns the exception for an error of a call that needs `need`.
pub(crate) fn exception(error: Error, need: Need) -> PyErr {
    let text = error.to_string();
    match &error {
        Error::Status { status, .. } => status_exception(*status, need, text),
        Error::Stale { .. } => StaleError::new_err((libc::ESTALE, text)),
        Error::DeadlineExceeded => PyTimeoutError::new_err((libc::ETIMEDOUT, text)),
        Error::Connect { source, .. } => {
            // Python chooses ConnectionRefusedError and the like by the number.
            let is_own = source.kind() == io::ErrorKind::ConnectionRefused;
            let number = if is_own { libc::ECONNREFUSED } else { libc::ECONNABORTED };
            PyOSError::new_err((number, text))
        }
        Error::ConnectionLost { .. } => PyOSError::new_err((libc::ECONNRESET, text)),
        Error::NoHello { .. }
        | Error::Coordination { .. }
        | Error::NoCluster { .. }
        | Error::NoMembers { .. } => PyConnectionError::new_err((libc::ECONNABORTED, text)),
        Error::InvalidArgument(_) => PyValueError::new_err(text),
        _ => PyOSError::new_err((libc::EIO, text)),
    }
}

fn status_exception(status: Status, need: Need, text: String) -> PyErr {
    match status {
        Status::NotFound => PyFileNotFoundError::new_err((libc::ENOENT, text)),
        Status::PermissionDenied => PyPermissionError::new_err((libc::EACCES, text)),
        Status::DeadlineExceeded => PyTimeoutError::new_err((libc::ETIMEDOUT, text)),
        Status::StaleVersion | Status::UnknownFile => StaleError::new_err((libc::ESTALE, text)),
        Status::ConditionFailed => match need {
            Need::Version => StaleError::new_err((libc::ESTALE, text)),
            _ => PyFileExistsError::new_err((libc::EEXIST, text)),
        },
        Status::WrongKind => match need {
            Need::Directory => PyNotADirectoryError::new_err((libc::ENOTDIR, text)),
            _ => PyIsADirectoryError::new_err((libc::EISDIR, text)),
        },
        Status::InvalidArgument => PyValueError::new_err(text),
        Status::UnknownOp => PyOSError::new_err((libc::EOPNOTSUPP, text)),
        Status::Busy => PyOSError::new_err((libc::EBUSY, text)),
        _ => PyOSError::new_err((libc::EIO, text)),
    }
}
