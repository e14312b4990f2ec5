//! Waiting for the client with the interpreter's lock released, on one runtime of this process.

use std::time::Duration;

use millrace_client::Error;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::runtime::{self, Runtime};

use crate::failure::{self, Need};
use crate::memory::PerProcess;

/// How long a call waits before it looks for signals such as that of Ctrl-C.
const SIGNAL_STEP: Duration = Duration::from_millis(100);

static RUNTIME: PerProcess<Runtime> = PerProcess::new();

/// Returns the runtime of this process, whose one thread moves the bytes of every client.
///
/// # Errors
/// What the system says when it grants no thread.
pub(crate) fn runtime() -> PyResult<&'static Runtime> {
    RUNTIME.get_or_try(|| {
        runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("millrace-client")
            .enable_all()
            .build()
            .map_err(|error| PyRuntimeError::new_err(format!("cannot start a thread: {error}")))
    })
}

/// Waits for an answer of the client. The lock must not be held.
///
/// # Errors
/// The client's, as the exception for a call that needs `need`; what a handler of a signal raised.
pub(crate) fn wait<T>(work: impl Future<Output = Result<T, Error>>, need: Need) -> PyResult<T> {
    wait_for(work)?.map_err(|error| failure::exception(error, need))
}

/// Waits for a value. The lock must not be held.
///
/// # Errors
/// What a handler of a signal raised.
pub(crate) fn wait_for<T>(work: impl Future<Output = T>) -> PyResult<T> {
    let runtime = runtime()?;
    let mut work = std::pin::pin!(work);
    loop {
        let step = async { tokio::time::timeout(SIGNAL_STEP, work.as_mut()).await };
        if let Ok(value) = runtime.block_on(step) {
            return Ok(value);
        }
        Python::attach(|py| py.check_signals())?;
    }
}
