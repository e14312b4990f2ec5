//! A directory page by page, so that a large one never lies in memory as a whole.

use std::sync::Arc;

use pyo3::prelude::*;

use crate::connected::Connected;
use crate::file::File;

/// Where an iterator is.
#[derive(Debug)]
enum Place {
    Next(Option<String>),
    End,
}

/// Iterates over the pages of a directory.
#[pyclass(module = "millrace")]
#[derive(Debug)]
pub(crate) struct Pages {
    connected: Arc<Connected>,
    path: String,
    limit: u32,
    place: Place,
}

impl Pages {
    pub(crate) fn new(connected: Arc<Connected>, path: String, limit: u32) -> Pages {
        Pages { connected, path, limit, place: Place::Next(None) }
    }
}

#[pymethods]
impl Pages {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__(&mut self, py: Python<'_>) -> PyResult<Option<Vec<File>>> {
        let Place::Next(token) = &self.place else { return Ok(None) };
        let page = || self.connected.page(&self.path, token.as_deref(), self.limit);
        let (files, token) = py.detach(page)?;
        self.place = token.map_or(Place::End, |token| Place::Next(Some(token)));
        Ok(Some(files))
    }
}
