//! SIGINT, SIGTERM and SIGHUP, for verbs that run until they are told to stop.
//!
//! Owns the handlers: from [`Signals::install`] on, none of these signals ends the process by itself. The
//! caller learns of the first one, and drains; a second one ends the process at once. SIGHUP comes when a
//! terminal is closed; a process that was started to outlive it (`nohup`) goes on.

use std::cell::Cell;
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, io};

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
    /// `None` if the process was started with it ignored.
    hang_up: Option<Signal>,
}

impl Streams {
    /// Installs the handlers, within a runtime.
    ///
    /// # Errors
    /// If the system refuses.
    fn install() -> io::Result<Streams> {
        let is_ignored = is_ignored(&fs::read_to_string("/proc/self/status").unwrap_or_default());
        Ok(Streams {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: if is_ignored { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    async fn next(&mut self) {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hang_up => {}
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
        let mut streams = Streams::install().map_err(refused)?;
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
    let mut streams = Streams::install().map_err(refused)?;
    streams.next().await;
    Ok(())
}

/// True if SIGHUP is ignored, by what `/proc/self/status` says.
fn is_ignored(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Signals are counted from 1, which is SIGHUP.
    mask.is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_hang_up_that_is_ignored_is_seen() {
        assert!(super::is_ignored("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        assert!(!super::is_ignored("SigBlk:\t1\nSigIgn:\t0000000000001000\n"));
        assert!(!super::is_ignored(""));
    }
}
