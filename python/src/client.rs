//! The client as Python sees it: each method waits for its answer with the lock released.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_client as client;
use millrace_client::{Condition, PutOptions};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::connected::{self, Connected};
use crate::failure::{self, Need};
use crate::file::File;
use crate::listing::Pages;
use crate::memory;
use crate::settings;
use crate::upload::Upload;
use crate::waiting::wait;

/// A client of a node or of a cluster. It connects when it is first used, and again in a child of `fork`.
///
/// Settings, durations in seconds: deadline (30), connect_timeout (3), attempt_timeout (0.5),
/// connections_per_shard (1), zone, fallback_roots, verify (True), requests_in_flight_max (1024), local (True: read
/// the memory of a node on this machine), leased_bytes_max (1 GiB), read_length_max (4 GiB).
#[pyclass(frozen, module = "millrace")]
pub(crate) struct Client {
    connected: Arc<Connected>,
    /// The settings as they were given, for a pickle.
    settings: Py<PyDict>,
}

/// What a `load` did.
#[pyclass(frozen, get_all, module = "millrace")]
#[derive(Debug)]
pub(crate) struct LoadReport {
    /// The version that was loaded.
    file: File,
    /// Blocks of the file, each counted once for each member that has to have it.
    block_count: u64,
    /// Blocks that had to be read from the source.
    filled_count: u64,
}

/// A file, or the path of one that is looked up first.
#[derive(FromPyObject)]
enum Named {
    File(File),
    Path(String),
}

impl Client {
    /// Returns the file that was meant.
    fn found(&self, py: Python<'_>, named: Named) -> PyResult<File> {
        let file = match named {
            Named::File(file) => file,
            Named::Path(path) => {
                File(py.detach(|| wait(self.connected.client()?.stat(&path), Need::File))?)
            }
        };
        file.check_is_file()?;
        Ok(file)
    }

    /// Returns what holds the connections.
    pub(crate) fn connected(&self) -> &Arc<Connected> {
        &self.connected
    }
}

impl From<client::LoadReport> for LoadReport {
    fn from(report: client::LoadReport) -> LoadReport {
        let client::LoadReport { file, block_count, filled_count, .. } = report;
        LoadReport { file: File(file), block_count, filled_count }
    }
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (address, **settings))]
    fn new(
        py: Python<'_>,
        address: String,
        settings: Option<Bound<'_, PyDict>>,
    ) -> PyResult<Client> {
        let config = settings::read(settings.as_ref())?;
        let settings = settings.unwrap_or_else(|| PyDict::new(py)).unbind();
        Ok(Client { connected: Arc::new(Connected::new(address, config)), settings })
    }

    /// Returns the address that the client was made with.
    #[getter]
    fn address(&self) -> &str {
        &self.connected.address
    }

    /// Returns the settings that the client was made with.
    #[getter]
    fn settings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.settings.bind(py).copy()
    }

    fn __repr__(&self) -> String {
        format!("<millrace.Client of {}>", self.connected.address)
    }

    fn __getnewargs_ex__<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        Ok((PyTuple::new(py, [&self.connected.address])?, self.settings(py)?))
    }

    /// Returns the seconds that a message to the node and back takes; it connects if need be.
    fn ping(&self, py: Python<'_>) -> PyResult<f64> {
        let time = py.detach(|| wait(self.connected.client()?.ping(), Need::File))?;
        Ok(time.as_secs_f64())
    }

    /// Looks a path up: `/` between parts, relative to what is served. Raises FileNotFoundError.
    fn stat(&self, py: Python<'_>, path: &str) -> PyResult<File> {
        Ok(File(py.detach(|| wait(self.connected.client()?.stat(path), Need::File))?))
    }

    /// Lists a directory. The files can be read without looking them up again.
    fn list(&self, py: Python<'_>, path: &str) -> PyResult<Vec<File>> {
        py.detach(|| {
            let client = self.connected.client()?;
            let entries = wait(client.list(path), Need::Directory)?;
            Ok(entries.iter().map(|entry| File(client.file(path, entry))).collect())
        })
    }

    /// Iterates over the pages of a directory, lists of at most `limit` files; 0 for as many as fit a reply.
    #[pyo3(signature = (path, limit = 0))]
    fn list_pages(&self, path: String, limit: u32) -> Pages {
        Pages::new(self.connected.clone(), path, limit)
    }

    /// Returns `length` bytes from `offset` on, fewer where the file ends, or all that follow.
    ///
    /// A path is looked up first. Raises StaleError if the file has changed since it was looked up.
    #[pyo3(signature = (file, offset = 0, length = None))]
    fn read<'py>(
        &self,
        py: Python<'py>,
        file: Named,
        offset: u64,
        length: Option<u64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let file = self.found(py, file)?.0;
        let left = file.length.saturating_sub(offset);
        let length = self.connected.check_length(length.map_or(left, |length| length.min(left)))?;
        memory::new_bytes(py, length, |target| self.connected.fill(&file, offset, target))
    }

    /// Reads bytes from `offset` on into a buffer that can be written; returns how many the file had for it.
    fn read_into(
        &self,
        py: Python<'_>,
        file: Named,
        offset: u64,
        buffer: &Bound<'_, PyAny>,
    ) -> PyResult<u64> {
        let file = self.found(py, file)?.0;
        let left = file.length.saturating_sub(offset);
        memory::fill_buffer(buffer, |target| {
            let length = self.connected.check_length(left.min(target.len() as u64))?;
            if length > 0 {
                self.connected.fill(&file, offset, &mut target[..length as usize])?;
            }
            Ok(length)
        })
    }

    /// Returns the bytes of many ranges (file, offset, length) in their order, which are asked for at once.
    ///
    /// With `return_errors` a range that fails has its exception in the list; else the first one is raised.
    #[pyo3(signature = (ranges, return_errors = false))]
    fn read_many<'py>(
        &self,
        py: Python<'py>,
        ranges: Vec<(Named, u64, u64)>,
        return_errors: bool,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let mut results: Vec<PyResult<Bound<'py, PyAny>>> = Vec::with_capacity(ranges.len());
        let mut found = Vec::with_capacity(ranges.len());
        for (named, offset, length) in ranges {
            match self.found(py, named) {
                Ok(file) => {
                    found.push((file, offset, length));
                    results.push(Ok(py.None().into_bound(py)));
                }
                Err(error) if return_errors => results.push(Err(error)),
                Err(error) => return Err(error),
            }
        }
        let mut rooms = self.connected.room_for(py, found)?;
        let mut fills = connected::fills(&mut rooms);
        let filled = py.detach(|| self.connected.fill_many(&mut fills))?;
        let mut filled = rooms.into_iter().zip(filled);
        let results = results.into_iter().map(|result| {
            let result = result.and_then(|none| match filled.next() {
                Some((room, Ok(()))) => Ok(room.made.finish().into_bound(py).into_any()),
                Some((_, Err(error))) => Err(failure::exception(error, Need::File)),
                None => Ok(none),
            });
            match result {
                Err(error) if return_errors => Ok(error.into_value(py).into_bound(py).into_any()),
                result => result,
            }
        });
        results.collect()
    }

    /// Brings a whole file into the cache; `deadline` is the seconds it may take, for a large one.
    #[pyo3(signature = (path, deadline = None))]
    fn load(
        &self,
        py: Python<'_>,
        path: &str,
        deadline: Option<Bound<'_, PyAny>>,
    ) -> PyResult<LoadReport> {
        let deadline = deadline.map(|time| settings::seconds("deadline", &time)).transpose()?;
        let report = py.detach(|| {
            let client = self.connected.client()?;
            let client = deadline.map_or(client.clone(), |time| client.with_deadline(time));
            wait(client.load(path), Need::File)
        })?;
        Ok(LoadReport::from(report))
    }

    /// Writes a file as a whole and returns it. Raises FileExistsError or StaleError where the condition does not hold.
    #[pyo3(signature = (path, data, *, if_absent = false, if_version = None))]
    fn put(
        &self,
        path: &str,
        data: &Bound<'_, PyAny>,
        if_absent: bool,
        if_version: Option<u64>,
    ) -> PyResult<File> {
        let options = PutOptions { condition: condition(if_absent, if_version)? };
        memory::take_buffer(data, |bytes| {
            Ok(File(wait(self.connected.client()?.put(path, bytes, options), need_of(options))?))
        })
    }

    /// Begins to write a file bit by bit.
    #[pyo3(signature = (path, *, if_absent = false, if_version = None))]
    fn upload(
        &self,
        py: Python<'_>,
        path: &str,
        if_absent: bool,
        if_version: Option<u64>,
    ) -> PyResult<Upload> {
        let options = PutOptions { condition: condition(if_absent, if_version)? };
        let begin = || wait(self.connected.client()?.upload(path, options), need_of(options));
        Ok(Upload::new(py.detach(begin)?, need_of(options)))
    }

    /// Deletes a file from its source.
    #[pyo3(signature = (path, *, if_version = None))]
    fn delete(&self, py: Python<'_>, path: &str, if_version: Option<u64>) -> PyResult<()> {
        py.detach(|| {
            let client = self.connected.client()?;
            match if_version {
                Some(version) => wait(client.delete_if_version(path, version), Need::Version),
                None => wait(client.delete(path), Need::File),
            }
        })
    }

    /// Gives a file another path of the same mount, and replaces what is there unless `if_absent`.
    #[pyo3(signature = (path, to, *, if_absent = false))]
    fn rename(&self, py: Python<'_>, path: &str, to: &str, if_absent: bool) -> PyResult<File> {
        let file = py.detach(|| {
            let client = self.connected.client()?;
            match if_absent {
                true => wait(client.rename_if_absent(path, to), Need::File),
                false => wait(client.rename(path, to), Need::File),
            }
        })?;
        Ok(File(file))
    }

    /// Has each node look a path up in its source now; returns what each found, a file or an exception.
    #[pyo3(signature = (path, recursive = false))]
    fn refresh<'py>(
        &self,
        py: Python<'py>,
        path: &str,
        recursive: bool,
    ) -> PyResult<Vec<(String, Bound<'py, PyAny>)>> {
        let answers =
            py.detach(|| wait(self.connected.client()?.refresh(path, recursive), Need::File))?;
        let answers = answers.into_iter().map(|(member, answer)| match answer {
            Ok(file) => Ok((member, Bound::new(py, File(file))?.into_any())),
            Err(error) => {
                let error = failure::exception(error, Need::File);
                Ok((member, error.into_value(py).into_bound(py).into_any()))
            }
        });
        answers.collect()
    }

    /// Returns the counters of the node; names carry their unit.
    fn status(&self, py: Python<'_>) -> PyResult<HashMap<String, u64>> {
        let status = py.detach(|| wait(self.connected.client()?.status(), Need::File))?;
        Ok(status.counters.into_iter().map(|counter| (counter.name, counter.value)).collect())
    }
}

/// Returns what a write needs.
pub(crate) fn need_of(options: PutOptions) -> Need {
    match options.condition {
        Condition::Version(_) => Need::Version,
        _ => Need::File,
    }
}

/// Returns the condition of a write.
///
/// # Errors
/// ValueError for two.
pub(crate) fn condition(if_absent: bool, if_version: Option<u64>) -> PyResult<Condition> {
    match (if_absent, if_version) {
        (false, None) => Ok(Condition::None),
        (true, None) => Ok(Condition::Absent),
        (false, Some(version)) => Ok(Condition::Version(version)),
        (true, Some(_)) => Err(PyValueError::new_err("choose if_absent or if_version, not both")),
    }
}
