//! The thread that writes the Raft log.
//!
//! It takes all waiting appends and makes them durable in one commit, so the longer a commit takes, the
//! more the next one carries. Always holds: an append is reported durable after its commit, and in order;
//! after a store error nothing more is written. Forgets old entries in small steps while no append waits. A
//! full log is compacted at once.

use std::io;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flume::{Receiver, Sender};

use super::room::FreeSpace;
use super::{Disk, Event, Letter, Mailbox};
use crate::store::{Append, LogStore, StoreError};

/// Most appends that wait. Each turn of the loop makes at most one, and the replica stops taking requests
/// long before this. A loop that reaches it waits for the disk.
const APPENDS_MAX: usize = 4096;

/// Time between two checks for room on a full disk.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

enum LogWork {
    Append(Append),
    Compact { index: u64, term: u64 },
}

/// The loop's end of the thread.
pub(crate) struct LogThread {
    work: Sender<LogWork>,
    thread: JoinHandle<()>,
    last_append: u64,
}

impl LogThread {
    /// Starts the thread. It watches the file system of `directory`.
    ///
    /// # Errors
    /// Fails if the thread could not be started.
    pub(crate) fn start(
        store: Box<dyn LogStore>,
        mailbox: Mailbox,
        disk: Disk,
        directory: Option<&Path>,
    ) -> io::Result<LogThread> {
        disk.room.note_log(store.used_bytes(), store.limit_bytes());
        let free_space = FreeSpace::of(directory);
        free_space.look(&disk.room);
        let (sender, work) = flume::bounded(APPENDS_MAX);
        let writer = Writer {
            store,
            mailbox,
            disk,
            free_space,
            work,
            batch: Vec::new(),
            compaction: None,
            is_broken: false,
        };
        let thread = std::thread::Builder::new().name("coord-log".into()).spawn(|| writer.run())?;
        Ok(LogThread { work: sender, thread, last_append: 0 })
    }

    /// Queues an append. Waits while too many do.
    pub(super) fn append(&mut self, append: Append) {
        self.last_append = append.number;
        self.send(LogWork::Append(append));
    }

    /// Returns the number of the last queued append; 0 for none.
    pub(super) fn last_append(&self) -> u64 {
        self.last_append
    }

    /// Asks the thread to forget the entries up to `index` later.
    pub(super) fn compact(&self, index: u64, term: u64) {
        self.send(LogWork::Compact { index, term });
    }

    fn send(&self, work: LogWork) {
        // A thread that ended has reported it with `StorageFailed`.
        let _ = self.work.send(work);
    }

    /// Writes what waits, and ends the thread.
    pub(super) fn stop(self) {
        let LogThread { work, thread, .. } = self;
        drop(work);
        if thread.join().is_err() {
            tracing::error!("the log thread panicked");
        }
    }
}

struct Writer {
    store: Box<dyn LogStore>,
    mailbox: Mailbox,
    disk: Disk,
    free_space: FreeSpace,
    work: Receiver<LogWork>,
    /// Appends of the next commit.
    batch: Vec<Append>,
    /// Index and term of the last entry to forget.
    compaction: Option<(u64, u64)>,
    is_broken: bool,
}

impl Writer {
    fn run(mut self) {
        loop {
            // With entries to forget, the thread only looks whether more important work waits.
            let next = match self.compaction {
                Some(_) => {
                    self.work.try_recv().map_err(|it| it == flume::TryRecvError::Disconnected)
                }
                // Room may come back without a write of ours, and nothing may be written until then.
                None if self.disk.room.lacking().is_some() => self
                    .work
                    .recv_timeout(LOOK_AGAIN)
                    .map_err(|it| it == flume::RecvTimeoutError::Disconnected),
                None => self.work.recv().map_err(|_| true),
            };
            match next {
                Ok(work) => {
                    self.take(work);
                    while let Ok(work) = self.work.try_recv() {
                        self.take(work);
                    }
                    self.append();
                }
                Err(true) => return,
                Err(false) => {
                    self.compact();
                    self.note_room();
                }
            }
        }
    }

    fn take(&mut self, work: LogWork) {
        match work {
            LogWork::Append(append) => self.batch.push(append),
            LogWork::Compact { index, term } => self.compaction = Some((index, term)),
        }
    }

    fn append(&mut self) {
        let Some(number) = self.batch.last().map(|append| append.number) else { return };
        if !self.is_broken {
            let began = Instant::now();
            let mut result = self.store.append(&self.batch);
            while matches!(result, Err(StoreError::Full { .. })) && self.compaction.is_some() {
                self.compact();
                result = self.store.append(&self.batch);
            }
            match result {
                Ok(()) => {
                    self.mailbox.log_durable(number);
                    let mut figures = self.disk.figures();
                    figures.sync_latency.record(began.elapsed().as_micros() as u64);
                    figures.log_bytes = self.store.used_bytes();
                    drop(figures);
                    self.note_room();
                }
                Err(error) => self.fail(&error),
            }
        }
        self.batch.clear();
    }

    fn note_room(&self) {
        self.disk.room.note_log(self.store.used_bytes(), self.store.limit_bytes());
        self.free_space.look(&self.disk.room);
    }

    /// Forgets some entries.
    fn compact(&mut self) {
        let Some((index, term)) = self.compaction.take().filter(|_| !self.is_broken) else {
            return;
        };
        match self.store.compact(index, term) {
            Ok(reached) if reached < index => self.compaction = Some((index, term)),
            Ok(_) => {}
            // Room comes back by itself, and keeping entries loses nothing.
            Err(error @ StoreError::Full { .. }) => tracing::warn!(%error, "compacting the log"),
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &StoreError) {
        self.is_broken = true;
        let error = error.to_string();
        self.mailbox.send(Letter::Event(Event::StorageFailed { error }));
    }
}
