//! The native half of the Python package `millrace`: the client with the interpreter's lock released.
//!
//! ```text
//!  Client ── wait: lock released ──► millrace_client::Client ──► node
//!    │          └── one runtime of this process, made when it is first needed
//!    ├── answer: bytes of Python, filled in place; errors of Python, with the client's text
//!    └── Requests: the same for asyncio, each with a future of the event loop
//! ```
//!
//! Owns the types that Python sees. Always holds: no thread and no connection is there before the first
//! request; none made by one process is used by another one, such as a child after `fork`.

mod client;
mod file;
mod listing;
mod requests;
mod settings;
mod upload;

mod connected;
mod failure;
mod memory;
mod waiting;

use pyo3::prelude::*;

/// Fills the module `millrace._millrace`.
#[pymodule]
fn _millrace(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<client::Client>()?;
    module.add_class::<file::File>()?;
    module.add_class::<client::LoadReport>()?;
    module.add_class::<listing::Pages>()?;
    module.add_class::<requests::Requests>()?;
    module.add_class::<upload::Upload>()?;
    let end_answers = wrap_pyfunction!(requests::end_answers, module)?;
    module.py().import("atexit")?.call_method1("register", (end_answers,))?;
    module.add("StaleError", module.py().get_type::<failure::StaleError>())?;
    Ok(())
}
