//! Memory of Python that is filled with the lock released, and values that belong to one process.
//!
//! ```text
//!  bytes(length) ── allocated, seen by no one ──► fill, lock released ──► handed to Python
//!  buffer        ── exported: cannot move      ──► fill, lock released ──► export ends
//! ```
//!
//! Always holds: an object is handed to Python only once all its bytes were written, and a buffer stays
//! exported while it is written, so that Python neither moves nor frees it.

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

mod per_process;

pub(crate) use per_process::PerProcess;

/// A `bytes` whose bytes are still to be written, which nothing else knows of. It may be written without the lock.
#[derive(Debug)]
pub(crate) struct NewBytes {
    object: Py<PyBytes>,
    /// Where its bytes are; they stay there as long as the object does.
    start: *mut u8,
    size: usize,
}

// SAFETY: the memory belongs to the object, which this value alone has until it is handed out.
#[expect(unsafe_code, reason = "its bytes are written by another thread")]
unsafe impl Send for NewBytes {}

impl NewBytes {
    /// Allocates a `bytes` of `length` bytes.
    ///
    /// # Errors
    /// MemoryError; ValueError for more than this machine can address.
    pub(crate) fn new(py: Python<'_>, length: u64) -> PyResult<NewBytes> {
        let size = ffi::Py_ssize_t::try_from(length).map_err(|_| {
            PyValueError::new_err("the length is larger than this machine's memory")
        })?;
        if size == 0 {
            let object = PyBytes::new(py, &[]).unbind();
            return Ok(NewBytes { object, start: std::ptr::null_mut(), size: 0 });
        }
        // SAFETY: without a source it allocates only; null, with an exception set, is checked.
        #[expect(unsafe_code, reason = "bytes that are not set to zero before they are written")]
        let object = unsafe { ffi::PyBytes_FromStringAndSize(std::ptr::null(), size) };
        // SAFETY: a new reference or null with an exception set, as the function promises.
        #[expect(unsafe_code, reason = "takes the reference over")]
        let object = unsafe { Bound::from_owned_ptr_or_err(py, object) }?;
        // SAFETY: the object is a `bytes`, checked above to exist.
        #[expect(unsafe_code, reason = "where its bytes are")]
        let start = unsafe { ffi::PyBytes_AsString(object.as_ptr()) }.cast::<u8>();
        let object = object.cast_into::<PyBytes>()?.unbind();
        Ok(NewBytes { object, start, size: size as usize })
    }

    /// Returns its bytes, to be written. They have values that mean nothing before.
    pub(crate) fn target(&mut self) -> &mut [u8] {
        if self.size == 0 {
            return &mut [];
        }
        // SAFETY: `size` bytes are there as long as the object, and nothing else knows of it yet.
        #[expect(unsafe_code, reason = "its bytes, to be written")]
        unsafe {
            std::slice::from_raw_parts_mut(self.start, self.size)
        }
    }

    /// Hands the object out, all of whose bytes were written.
    pub(crate) fn finish(self) -> Py<PyBytes> {
        self.object
    }
}

/// Makes a `bytes` of `length` bytes that `fill` writes, with the lock released.
///
/// # Errors
/// MemoryError; those of `fill`.
pub(crate) fn new_bytes<'py>(
    py: Python<'py>,
    length: u64,
    fill: impl FnOnce(&mut [u8]) -> PyResult<()> + Send,
) -> PyResult<Bound<'py, PyBytes>> {
    let mut made = NewBytes::new(py, length)?;
    if length > 0 {
        py.detach(|| fill(made.target()))?;
    }
    Ok(made.finish().into_bound(py))
}

/// Has `fill` write into the memory of an object with the buffer protocol, with the lock released.
///
/// # Errors
/// BufferError if it cannot be written or is not in one piece; those of `fill`.
pub(crate) fn fill_buffer<T: Send>(
    object: &Bound<'_, PyAny>,
    fill: impl FnOnce(&mut [u8]) -> PyResult<T> + Send,
) -> PyResult<T> {
    let buffer = PyUntypedBuffer::get(object)?;
    if buffer.readonly() {
        return Err(PyBufferError::new_err("the buffer cannot be written"));
    }
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer is not in one piece"));
    }
    let length = buffer.len_bytes();
    let target: &mut [u8] = if length == 0 {
        &mut []
    } else {
        // SAFETY: the object exports this many bytes in one piece, to be written, until `buffer` is dropped.
        #[expect(unsafe_code, reason = "the memory that the object exports")]
        unsafe {
            std::slice::from_raw_parts_mut(buffer.buf_ptr().cast::<u8>(), length)
        }
    };
    let filled = object.py().detach(|| fill(target));
    drop(buffer);
    filled
}

/// Has `take` read the memory of an object with the buffer protocol, with the lock released.
///
/// # Errors
/// BufferError if it is not in one piece; those of `take`.
pub(crate) fn take_buffer<T: Send>(
    object: &Bound<'_, PyAny>,
    take: impl FnOnce(&[u8]) -> PyResult<T> + Send,
) -> PyResult<T> {
    let buffer = PyUntypedBuffer::get(object)?;
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer is not in one piece"));
    }
    let length = buffer.len_bytes();
    let source: &[u8] = if length == 0 {
        &[]
    } else {
        // SAFETY: the object exports this many bytes in one piece until `buffer` is dropped.
        #[expect(unsafe_code, reason = "the memory that the object exports")]
        unsafe {
            std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), length)
        }
    };
    let taken = object.py().detach(|| take(source));
    drop(buffer);
    taken
}
