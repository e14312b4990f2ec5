//! SIGINT and SIGTERM, for verbs that run until they are told to stop.
//!
//! Owns the handlers: from [`Signals::install`] on, neither signal ends the process by itself. The
//! caller learns of the first one, and drains; a second one ends the process at once.

use std::cell::Cell;
use std::sync::mpsc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;
use crate::log;

/// Exit code after a second signal.
const IMPATIENT: i32 = 1;

/// Installed handlers.
pub(crate) struct Signals {
    /// Receives one message from the thread that listens.
    first: mpsc::Receiver<()>,
    has_come: Cell<bool>,
}

struct Streams {
    interrupt: Signal,
    terminate: Signal,
}

impl Streams {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

impl Signals {
    /// Installs the handlers, and starts the thread that listens, because when a signal comes a thread
    /// may not be had.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn install() -> Result<Signals, Failure> {
        let refused = |error| Failure::new(format!("cannot handle signals: {error}"));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(refused)?;
        let context = runtime.enter();
        let mut streams = Streams {
            interrupt: signal(SignalKind::interrupt()).map_err(refused)?,
            terminate: signal(SignalKind::terminate()).map_err(refused)?,
        };
        drop(context);
        let (sender, first) = mpsc::channel();
        let listen = move || {
            runtime.block_on(streams.next());
            if sender.send(()).is_ok() {
                runtime.block_on(streams.next());
                log::end();
                std::process::exit(IMPATIENT);
            }
        };
        let builder = std::thread::Builder::new().name("millrace-signals".to_owned());
        builder.spawn(listen).map_err(refused)?;
        Ok(Signals { first, has_come: Cell::new(false) })
    }

    /// True if a signal has come, for which this waits up to `patience`. From then on as after [`Signals::wait`].
    pub(crate) fn came_within(&self, patience: Duration) -> bool {
        if !self.has_come.get() {
            self.has_come.set(self.first.recv_timeout(patience).is_ok());
        }
        self.has_come.get()
    }

    /// Waits for a signal. From then on another one ends the process at once, with exit code 1.
    pub(crate) fn wait(self) {
        // The thread ends with the first signal at the earliest.
        let _ = self.first.recv();
    }
}

/// Waits for a signal within an async task.
///
/// # Errors
/// If the system refuses a handler.
pub(crate) async fn interrupted() -> Result<(), Failure> {
    let refused = |error| Failure::new(format!("cannot handle signals: {error}"));
    let mut streams = Streams {
        interrupt: signal(SignalKind::interrupt()).map_err(refused)?,
        terminate: signal(SignalKind::terminate()).map_err(refused)?,
    };
    streams.next().await;
    Ok(())
}
