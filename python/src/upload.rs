//! A file that is written bit by bit.

use millrace_client as client;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::failure::Need;
use crate::file::File;
use crate::memory;
use crate::waiting::wait;

/// A file that is being written; nothing sees it before `finish`.
#[pyclass(module = "millrace")]
pub(crate) struct Upload {
    /// None once it has ended.
    upload: Option<client::Upload>,
    need: Need,
    /// The process that began it.
    process: u32,
}

impl Upload {
    pub(crate) fn new(upload: client::Upload, need: Need) -> Upload {
        Upload { upload: Some(upload), need, process: std::process::id() }
    }

    fn check(&self) -> PyResult<()> {
        if self.process != std::process::id() {
            return Err(PyValueError::new_err(
                "the process that began this upload is another one; begin it again here",
            ));
        }
        Ok(())
    }
}

#[pymethods]
impl Upload {
    /// Writes the next bytes; returns how many. It waits while the node has as much as it takes.
    fn write(&mut self, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        self.check()?;
        let need = self.need;
        let upload = self.upload.as_mut().ok_or_else(ended)?;
        memory::take_buffer(data, |bytes| {
            wait(upload.write(bytes), need)?;
            Ok(bytes.len())
        })
    }

    /// Has the source acknowledge the whole file, and returns it.
    fn finish(&mut self, py: Python<'_>) -> PyResult<File> {
        self.check()?;
        let upload = self.upload.take().ok_or_else(ended)?;
        let need = self.need;
        Ok(File(py.detach(|| wait(upload.finish(), need))?))
    }

    /// Ends the upload, which leaves nothing.
    fn abort(&mut self) -> PyResult<()> {
        self.check()?;
        self.upload = None;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // The connection that it would tell is that of another process.
            std::mem::forget(self.upload.take());
        }
    }
}

fn ended() -> PyErr {
    PyValueError::new_err("the upload has ended; begin a new one")
}
