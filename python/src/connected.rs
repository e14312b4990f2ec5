//! The connections of a client: made when they are first needed, by each process for itself.

use millrace_client as client;
use millrace_client::ClientConfig;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::failure::Need;
use crate::file::File;
use crate::memory::PerProcess;
use crate::waiting::wait;

/// See the module. No method must be called with the interpreter's lock held.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) address: String,
    pub(crate) config: ClientConfig,
    client: PerProcess<client::Client>,
}

impl Connected {
    pub(crate) fn new(address: String, config: ClientConfig) -> Connected {
        Connected { address, config, client: PerProcess::new() }
    }

    /// Returns the connected client of this process.
    pub(crate) fn client(&self) -> PyResult<&client::Client> {
        self.client.get_or_try(|| {
            let connect = client::Client::connect(self.address.as_str(), self.config.clone());
            wait(connect, Need::File)
        })
    }

    /// Returns one page of a directory, and the token of the next one.
    pub(crate) fn page(
        &self,
        path: &str,
        token: Option<&str>,
        limit: u32,
    ) -> PyResult<(Vec<File>, Option<String>)> {
        let client = self.client()?;
        let (entries, token) = wait(client.list_page(path, token, limit), Need::Directory)?;
        Ok((entries.iter().map(|entry| File(client.file(path, entry))).collect(), token))
    }

    /// Fills `target` with bytes of a file from `offset` on, which the file must have.
    pub(crate) fn fill(&self, file: &client::File, offset: u64, target: &mut [u8]) -> PyResult<()> {
        let client = self.client()?;
        if client.read_leased(file, offset, target) {
            return Ok(());
        }
        let bytes = wait(client.read(file, offset, target.len() as u64), Need::File)?;
        if bytes.len() != target.len() {
            let text =
                format!("{} bytes came for {} of '{}'", bytes.len(), target.len(), file.path);
            return Err(PyOSError::new_err((libc::EIO, text)));
        }
        target.copy_from_slice(&bytes);
        Ok(())
    }

    /// Passes a length that one call may ask for.
    pub(crate) fn check_length(&self, length: u64) -> PyResult<u64> {
        if length > self.config.read_length_max {
            return Err(PyValueError::new_err(format!(
                "a read of {length} bytes is longer than read_length_max, {}; read the file in parts",
                self.config.read_length_max
            )));
        }
        Ok(length)
    }
}
