//! SIGINT and SIGTERM, for verbs that run until they are told to stop.
//!
//! Owns the handlers: from [`Signals::install`] on, neither signal ends the process by itself. The
//! first is told to the caller, who drains; a second one ends the process at once.

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// Exit code after a second signal.
const IMPATIENT: i32 = 1;

/// Installed handlers.
pub(crate) struct Signals {
    streams: Streams,
    runtime: Runtime,
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
    /// Installs the handlers.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn install() -> Result<Signals, Failure> {
        let refused = |error| Failure::new(format!("cannot handle signals: {error}"));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(refused)?;
        let context = runtime.enter();
        let streams = Streams {
            interrupt: signal(SignalKind::interrupt()).map_err(refused)?,
            terminate: signal(SignalKind::terminate()).map_err(refused)?,
        };
        drop(context);
        Ok(Signals { streams, runtime })
    }

    /// Waits for a signal. From then on another one ends the process at once, with exit code 1.
    pub(crate) fn wait(mut self) {
        self.runtime.block_on(self.streams.next());
        std::thread::spawn(move || {
            self.runtime.block_on(self.streams.next());
            std::process::exit(IMPATIENT);
        });
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
