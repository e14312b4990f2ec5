//! One version of a file, as Python sees it: values, and a pickle of them.

use std::sync::Arc;

use millrace_client as client;
use pyo3::exceptions::{PyIsADirectoryError, PyValueError};
use pyo3::prelude::*;

/// One version of a file, or a directory.
#[pyclass(frozen, eq, hash, module = "millrace", from_py_object)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File(pub(crate) client::File);

impl std::hash::Hash for File {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (&self.0.path, self.0.id, self.0.version).hash(state);
    }
}

impl File {
    /// Returns the file if it has bytes to read.
    ///
    /// # Errors
    /// IsADirectoryError.
    pub(crate) fn check_is_file(&self) -> PyResult<&client::File> {
        if self.0.kind == client::Kind::Directory {
            let text = format!("'{}' is a directory", self.0.path);
            return Err(PyIsADirectoryError::new_err((libc::EISDIR, text)));
        }
        Ok(&self.0)
    }
}

/// What a pickle of a file holds: the arguments that make it.
type Parts = (String, u128, u64, u64, u32, &'static str, i64);

#[pymethods]
impl File {
    #[new]
    fn new(
        path: &str,
        id: u128,
        version: u64,
        length: u64,
        block_size: u32,
        kind: &str,
        modified_ms: i64,
    ) -> PyResult<File> {
        let kind = match kind {
            "file" => client::Kind::File,
            "directory" => client::Kind::Directory,
            _ => return Err(PyValueError::new_err("kind is 'file' or 'directory'")),
        };
        let (path, id) = (Arc::from(path), client::FileId(id));
        Ok(File(client::File { path, id, version, length, block_size, kind, modified_ms }))
    }

    /// Returns the path below what is served.
    #[getter]
    fn path(&self) -> &str {
        &self.0.path
    }

    /// Returns the last part of the path.
    #[getter]
    fn name(&self) -> &str {
        self.0.path.rsplit('/').next().unwrap_or_default()
    }

    /// Returns the identity, the same for every version.
    #[getter]
    fn id(&self) -> u128 {
        self.0.id.0
    }

    /// Returns another number for every content that the node has seen.
    #[getter]
    fn version(&self) -> u64 {
        self.0.version
    }

    /// Returns the length in bytes.
    #[getter]
    fn length(&self) -> u64 {
        self.0.length
    }

    /// Returns the size of a block in bytes.
    #[getter]
    fn block_size(&self) -> u32 {
        self.0.block_size
    }

    /// Returns 'file' or 'directory'.
    #[getter]
    fn kind(&self) -> &'static str {
        match self.0.kind {
            client::Kind::File => "file",
            client::Kind::Directory => "directory",
        }
    }

    /// Returns the time of the last change in milliseconds since 1970, as the source reports it.
    #[getter]
    fn modified_ms(&self) -> i64 {
        self.0.modified_ms
    }

    /// True if it can be listed, and not read.
    fn is_directory(&self) -> bool {
        self.0.kind == client::Kind::Directory
    }

    fn __repr__(&self) -> String {
        let client::File { path, version, length, .. } = &self.0;
        format!("<millrace.File '{path}', {}, {length} bytes, version {version:016x}>", self.kind())
    }

    fn __getnewargs__(&self) -> Parts {
        let client::File { path, id, version, length, block_size, modified_ms, .. } = &self.0;
        (path.to_string(), id.0, *version, *length, *block_size, self.kind(), *modified_ms)
    }
}
