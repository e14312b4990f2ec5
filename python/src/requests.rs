//! Requests of asyncio: each returns a future of its event loop at once, and a task of the runtime answers it.
//!
//! ```text
//!  event loop ── begin ──► task of the runtime ── letter ──► thread of answers ── call_soon_threadsafe ──► loop
//!       └── the future is cancelled ──► the task is aborted, and with it the request
//! ```
//!
//! Always holds: the thread that moves bytes never waits for the interpreter's lock to answer, because another
//! thread does; a future that has ended is left as it is.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use millrace_client as client;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyList;
use tokio::task::AbortHandle;

use crate::client::{Client, LoadReport, condition, need_of};
use crate::connected::{self, Connected};
use crate::failure::{self, Need};
use crate::file::File;
use crate::memory::{NewBytes, PerProcess};
use crate::settings;
use crate::waiting::runtime;

/// Most answers that are given to an event loop at once. Guessed.
const ANSWERS_MAX: usize = 256;

/// What a request came to, once the lock is held.
type Told = Box<dyn for<'py> FnOnce(Python<'py>) -> PyResult<Bound<'py, PyAny>> + Send>;

/// An answer on its way to its event loop.
struct Letter {
    event_loop: Py<PyAny>,
    future: Py<PyAny>,
    told: Told,
}

/// Where answers are sent.
struct Post {
    letters: Sender<Letter>,
    /// True once the interpreter ends. Held while answers are given, so that it ends between two of them.
    has_ended: Arc<Mutex<bool>>,
}

static POST: PerProcess<Post> = PerProcess::new();

/// Returns where answers are sent; the first call of a process starts the thread that gives them to their loops.
///
/// # Errors
/// What the system says when it grants no thread.
fn post() -> PyResult<&'static Post> {
    POST.get_or_try(|| {
        let (sender, letters) = mpsc::channel();
        let has_ended = Arc::new(Mutex::new(false));
        let has_ended_there = has_ended.clone();
        std::thread::Builder::new()
            .name("millrace-answer".to_owned())
            .spawn(move || deliver(&letters, &has_ended_there))
            .map_err(|error| PyRuntimeError::new_err(format!("cannot start a thread: {error}")))?;
        Ok(Post { letters: sender, has_ended })
    })
}

/// Ends the answers of this process, because the interpreter must not be called while it ends.
#[pyfunction]
pub(crate) fn end_answers(py: Python<'_>) {
    if let Some(post) = POST.get() {
        // The thread of answers may need the lock to get to an end.
        py.detach(|| *post.has_ended.lock().unwrap_or_else(PoisonError::into_inner) = true);
    }
}

/// Gives answers to their event loops, until the interpreter ends.
fn deliver(letters: &Receiver<Letter>, has_ended: &Mutex<bool>) {
    while let Ok(first) = letters.recv() {
        let has_ended = has_ended.lock().unwrap_or_else(PoisonError::into_inner);
        if *has_ended {
            return;
        }
        let batch = std::iter::once(first).chain(letters.try_iter().take(ANSWERS_MAX - 1));
        // An event loop that takes no answer was closed, and nothing waits for one there.
        let _ = Python::try_attach(|py| give(py, batch));
    }
}

/// Gives answers to their event loops, those of one loop at once.
///
/// # Errors
/// MemoryError.
fn give(py: Python<'_>, batch: impl Iterator<Item = Letter>) -> PyResult<()> {
    let mut loops: Vec<(Py<PyAny>, Bound<'_, PyList>)> = Vec::new();
    for Letter { event_loop, future, told } in batch {
        let (is_good, value) = match told(py) {
            Ok(value) => (true, value),
            Err(error) => (false, error.into_value(py).into_bound(py).into_any()),
        };
        let answer = (future, is_good, value);
        match loops.iter().find(|(known, _)| known.is(&event_loop)) {
            Some((_, list)) => list.append(answer)?,
            None => loops.push((event_loop, PyList::new(py, [answer])?)),
        }
    }
    let settle = wrap_pyfunction!(settle, py)?;
    for (event_loop, answers) in loops {
        // A loop that was closed meanwhile takes no answer.
        let _ = event_loop.call_method1(py, "call_soon_threadsafe", (&settle, answers));
    }
    Ok(())
}

/// Answers futures; called by their event loop.
#[pyfunction]
fn settle(answers: Vec<(Bound<'_, PyAny>, bool, Bound<'_, PyAny>)>) -> PyResult<()> {
    for (future, is_good, value) in answers {
        if !future.call_method0("done")?.is_truthy()? {
            future.call_method1(if is_good { "set_result" } else { "set_exception" }, (value,))?;
        }
    }
    Ok(())
}

/// Ends the request of a future that has ended, which is one that was cancelled.
#[pyclass(frozen)]
struct End(AbortHandle);

#[pymethods]
impl End {
    fn __call__(&self, _future: &Bound<'_, PyAny>) {
        self.0.abort();
    }
}

/// Begins a request and returns its future; `told` makes its value once the lock is held again.
fn begin<'py, T: Send + 'static>(
    py: Python<'py>,
    work: impl Future<Output = PyResult<T>> + Send + 'static,
    told: impl for<'a> FnOnce(Python<'a>, T) -> PyResult<Bound<'a, PyAny>> + Send + 'static,
) -> PyResult<Bound<'py, PyAny>> {
    let event_loop = py.import("asyncio")?.call_method0("get_running_loop")?;
    let future = event_loop.call_method0("create_future")?;
    let (runtime, post) = (runtime()?, post()?);
    let (loop_of, future_of) = (event_loop.unbind(), future.clone().unbind());
    let task = runtime.spawn(async move {
        let result = work.await;
        let told: Told = Box::new(move |py| told(py, result?));
        // The thread of answers ends with the interpreter only.
        let _ = post.letters.send(Letter { event_loop: loop_of, future: future_of, told });
    });
    future.call_method1("add_done_callback", (End(task.abort_handle()),))?;
    Ok(future)
}

/// The requests of a client for asyncio, which `millrace.AsyncClient` is made of.
#[pyclass(frozen, module = "millrace._millrace")]
pub(crate) struct Requests {
    connected: Arc<Connected>,
}

impl Requests {
    /// Begins a request that needs nothing but the client.
    fn ask<'py, T, F>(
        &self,
        py: Python<'py>,
        need: Need,
        ask: impl FnOnce(client::Client) -> F + Send + 'static,
        told: impl for<'a> FnOnce(Python<'a>, T) -> PyResult<Bound<'a, PyAny>> + Send + 'static,
    ) -> PyResult<Bound<'py, PyAny>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, client::Error>> + Send + 'static,
    {
        let connected = self.connected.clone();
        let work = async move {
            let client = connected.client_later().await?;
            ask(client).await.map_err(|error| failure::exception(error, need))
        };
        begin(py, work, told)
    }
}

fn tell_file(py: Python<'_>, file: client::File) -> PyResult<Bound<'_, PyAny>> {
    Ok(Bound::new(py, File(file))?.into_any())
}

fn tell_nothing(py: Python<'_>, (): ()) -> PyResult<Bound<'_, PyAny>> {
    Ok(py.None().into_bound(py))
}

#[pymethods]
impl Requests {
    #[new]
    fn new(client: &Client) -> Requests {
        Requests { connected: client.connected().clone() }
    }

    fn ping<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let ask = |client: client::Client| async move { client.ping().await };
        self.ask(py, Need::File, ask, |py, time| {
            Ok(time.as_secs_f64().into_pyobject(py)?.into_any())
        })
    }

    fn stat<'py>(&self, py: Python<'py>, path: String) -> PyResult<Bound<'py, PyAny>> {
        let ask = |client: client::Client| async move { client.stat(&path).await };
        self.ask(py, Need::File, ask, tell_file)
    }

    fn list<'py>(&self, py: Python<'py>, path: String) -> PyResult<Bound<'py, PyAny>> {
        let ask = |client: client::Client| async move {
            let entries = client.list(&path).await?;
            Ok(entries.iter().map(|entry| File(client.file(&path, entry))).collect::<Vec<_>>())
        };
        self.ask(py, Need::Directory, ask, |py, files| files.into_pyobject(py))
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        file: &File,
        offset: u64,
        length: Option<u64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let file = file.check_is_file()?.clone();
        let left = file.length.saturating_sub(offset);
        let length = self.connected.check_length(length.map_or(left, |length| length.min(left)))?;
        let mut made = NewBytes::new(py, length)?;
        let connected = self.connected.clone();
        let work = async move {
            if length > 0 {
                let client = connected.client_later().await?;
                connected::fill(&client, &file, offset, made.target()).await?;
            }
            Ok(made)
        };
        begin(py, work, |py, made| Ok(made.finish().into_bound(py).into_any()))
    }

    fn read_many<'py>(
        &self,
        py: Python<'py>,
        ranges: Vec<(File, u64, u64)>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut rooms = self.connected.room_for(py, ranges)?;
        let connected = self.connected.clone();
        let work = async move {
            let client = connected.client_later().await?;
            let results = connected::fill_many(&client, &mut connected::fills(&mut rooms)).await;
            Ok((rooms, results))
        };
        begin(py, work, |py, (rooms, results)| {
            let values = rooms.into_iter().zip(results).map(|(room, result)| match result {
                Ok(()) => room.made.finish().into_any(),
                Err(error) => failure::exception(error, Need::File).into_value(py).into_any(),
            });
            Ok(PyList::new(py, values)?.into_any())
        })
    }

    fn load<'py>(
        &self,
        py: Python<'py>,
        path: String,
        deadline: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let deadline = deadline.map(|time| settings::seconds("deadline", &time)).transpose()?;
        let ask = move |client: client::Client| async move {
            let client = deadline.map_or(client.clone(), |time| client.with_deadline(time));
            client.load(&path).await
        };
        self.ask(py, Need::File, ask, |py, report| {
            Ok(Bound::new(py, LoadReport::from(report))?.into_any())
        })
    }

    fn put<'py>(
        &self,
        py: Python<'py>,
        path: String,
        data: PyBackedBytes,
        if_absent: bool,
        if_version: Option<u64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let options = client::PutOptions { condition: condition(if_absent, if_version)? };
        let ask = move |client: client::Client| async move {
            client.put(&path, &data[..], options).await
        };
        self.ask(py, need_of(options), ask, tell_file)
    }

    fn delete<'py>(
        &self,
        py: Python<'py>,
        path: String,
        if_version: Option<u64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let need = if_version.map_or(Need::File, |_| Need::Version);
        let ask = move |client: client::Client| async move {
            match if_version {
                Some(version) => client.delete_if_version(&path, version).await,
                None => client.delete(&path).await,
            }
        };
        self.ask(py, need, ask, tell_nothing)
    }

    fn rename<'py>(
        &self,
        py: Python<'py>,
        path: String,
        to: String,
        if_absent: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let ask = move |client: client::Client| async move {
            match if_absent {
                true => client.rename_if_absent(&path, &to).await,
                false => client.rename(&path, &to).await,
            }
        };
        self.ask(py, Need::File, ask, tell_file)
    }

    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let ask = |client: client::Client| async move { client.status().await };
        self.ask(py, Need::File, ask, |py, status| {
            let counters = status.counters.into_iter();
            let counters: HashMap<_, _> = counters.map(|it| (it.name, it.value)).collect();
            Ok(counters.into_pyobject(py)?.into_any())
        })
    }
}
