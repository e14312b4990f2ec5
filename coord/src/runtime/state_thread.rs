//! The thread that keeps the durable state: checkpoints, snapshots, copies.
//!
//! The loop never waits for it while there is room in the queue between them: what finds the thread
//! busy waits in [`StateThread`], checkpoints merged, and only above [`WAITING_BYTES_MAX`] the loop
//! waits too. Always holds: the thread does what it is asked in the order of asking; a checkpoint
//! that is not durable yet is lost with the process, and the log has its entries.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flume::{Receiver, RecvTimeoutError, Sender, TrySendError};

use super::{Action, Answer, Clock, Disk, Event, Letter, Mailbox};
use crate::replica::Checkpoint;
use crate::state::{Loader, State};
use crate::store::checkpoint::{self, Limits};
use crate::store::{Applied, SnapshotReader, StateStore, StoreError};

/// Work between the loop and the thread. Small: the rest waits on the loop's side, where
/// checkpoints are merged.
const QUEUE_MAX: usize = 64;
/// Bytes of changes that wait for a busy thread until the loop waits as well: minutes of an
/// ordinary disk's stall at an ordinary rate of writes, seconds at the highest.
const WAITING_BYTES_MAX: usize = 256 << 20;
/// How soon a queue that was full is tried again.
const RETRY_MS: u64 = 5;
/// Bytes of one chunk of a snapshot.
const CHUNK_SIZE: usize = 256 << 10;

enum Work {
    /// One of the actions that are about the durable state.
    Act(Action),
    /// Write a copy into a new file.
    Backup(PathBuf, Answer),
}

/// The loop's end of the thread.
pub(crate) struct StateThread {
    work: Sender<Work>,
    /// With the bytes of each.
    waiting: VecDeque<(Work, usize)>,
    waiting_bytes: usize,
    thread: JoinHandle<()>,
}

impl StateThread {
    /// Starts the thread; changes are durable after about `interval_ms`, or when they are
    /// `bytes_max`.
    ///
    /// # Errors
    /// The thread could not be started.
    pub(crate) fn start(
        store: Box<dyn StateStore>,
        interval_ms: u64,
        bytes_max: usize,
        mailbox: Mailbox,
        disk: Disk,
    ) -> io::Result<StateThread> {
        disk.figures().state_bytes = store.used_bytes();
        disk.room.note_state(store.used_bytes(), 0, store.limit_bytes());
        let (sender, work) = flume::bounded(QUEUE_MAX);
        let limits = Limits { wait_ms_max: interval_ms, bytes_max };
        let keeper = Keeper {
            store,
            mailbox,
            disk,
            merged: checkpoint::Checkpoint::new(limits),
            merged_to: Applied::default(),
            merged_zxid: 0,
            clock: Clock::start(),
            snapshots: HashMap::new(),
            install: Ok(()),
            is_broken: false,
        };
        let thread =
            std::thread::Builder::new().name("coord-state".into()).spawn(|| keeper.run(work))?;
        Ok(StateThread { work: sender, waiting: VecDeque::new(), waiting_bytes: 0, thread })
    }

    /// Queues an action that is about the durable state.
    pub(super) fn ask(&mut self, action: Action) {
        if let Action::Checkpoint { checkpoint } = action {
            return self.merge(checkpoint);
        }
        self.waiting.push_back((Work::Act(action), 0));
    }

    /// Queues a copy into the new file `path`.
    pub(super) fn backup(&mut self, path: PathBuf, answer: Answer) {
        self.waiting.push_back((Work::Backup(path, answer), 0));
    }

    /// A checkpoint that follows one which still waits becomes part of it.
    fn merge(&mut self, next: Checkpoint) {
        let added = size(&next);
        self.waiting_bytes += added;
        match self.waiting.back_mut() {
            Some((Work::Act(Action::Checkpoint { checkpoint }), bytes)) => {
                *bytes += added;
                checkpoint.records.extend(next.records);
                checkpoint.index = next.index;
                checkpoint.term = next.term;
                checkpoint.conf_state = next.conf_state;
                checkpoint.zxid = next.zxid;
            }
            _ => {
                let work = Work::Act(Action::Checkpoint { checkpoint: next });
                self.waiting.push_back((work, added));
            }
        }
    }

    /// Hands over what the queue has room for.
    pub(super) fn push_on(&mut self) {
        while let Some((work, bytes)) = self.waiting.pop_front() {
            // A thread that ended has said so with `StorageFailed`.
            match self.work.try_send(work) {
                Err(TrySendError::Full(work)) if self.waiting_bytes <= WAITING_BYTES_MAX => {
                    return self.waiting.push_front((work, bytes));
                }
                Err(TrySendError::Full(work)) => drop(self.work.send(work)),
                Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            }
            self.waiting_bytes -= bytes;
        }
    }

    /// When [`StateThread::push_on`] should be tried again.
    pub(super) fn deadline_ms(&self, now_ms: u64) -> u64 {
        if self.waiting.is_empty() { u64::MAX } else { now_ms + RETRY_MS }
    }

    /// Makes durable what waits, and ends the thread.
    pub(super) fn stop(self) {
        let StateThread { work, waiting, thread, .. } = self;
        for (waiting, _) in waiting {
            let _ = work.send(waiting);
        }
        drop(work);
        if thread.join().is_err() {
            tracing::error!("the state thread panicked");
        }
    }
}

fn size(checkpoint: &Checkpoint) -> usize {
    let record =
        |(key, value): &(Vec<u8>, Option<Vec<u8>>)| key.len() + value.as_ref().map_or(0, Vec::len);
    checkpoint.records.iter().map(record).sum()
}

/// Loads the state out of a store; `None` when nothing was ever committed there.
///
/// # Errors
/// As [`StateStore::load`], or [`StoreError::Corrupt`] when the records make no state.
pub(crate) fn load(
    store: &dyn StateStore,
    seed: u64,
) -> Result<Option<(Applied, State)>, StoreError> {
    let wrong = |error: crate::state::LoadError| StoreError::Corrupt {
        what: "the state".into(),
        at: error.to_string(),
    };
    let mut loader = Loader::with_seed(seed);
    let applied = store.load(&mut |key, value| loader.push(key, value).map_err(wrong))?;
    match applied {
        None => Ok(None),
        Some(applied) => Ok(Some((applied, loader.finish().map_err(wrong)?))),
    }
}

/// The thread's side.
struct Keeper {
    store: Box<dyn StateStore>,
    mailbox: Mailbox,
    disk: Disk,
    merged: checkpoint::Checkpoint,
    /// What the last merged checkpoint belongs to.
    merged_to: Applied,
    merged_zxid: i64,
    clock: Clock,
    /// Views that are being sent, by peer.
    snapshots: HashMap<u64, Box<dyn SnapshotReader>>,
    /// Whether the snapshot that is being received can still be installed.
    install: Result<(), String>,
    is_broken: bool,
}

impl Keeper {
    fn run(mut self, work: Receiver<Work>) {
        loop {
            let next = match self.merged.due_ms() {
                None => work.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due_ms) => {
                    let wait_ms = due_ms.saturating_sub(self.clock.now().ms);
                    work.recv_timeout(Duration::from_millis(wait_ms))
                }
            };
            match next {
                Ok(Work::Act(action)) => self.act(action),
                Ok(Work::Backup(path, answer)) => {
                    // Whoever asked may have left.
                    let _ = answer.send(self.backup(&path));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.commit(),
            }
            if self.merged.is_due(self.clock.now().ms) {
                self.commit();
            }
        }
    }

    fn tell(&self, event: Event<'static>) {
        self.mailbox.send(Letter::Event(event));
    }

    fn act(&mut self, action: Action) {
        if self.is_broken {
            return;
        }
        match action {
            Action::Checkpoint { checkpoint } => {
                let Checkpoint { records, index, term, conf_state, zxid } = checkpoint;
                let applied = Applied { index, term, conf_state };
                self.merged_to = applied.clone();
                self.merged_zxid = zxid;
                self.merged.add(records, applied, self.clock.now().ms);
                self.note_room();
            }
            Action::FlushCheckpoint => self.commit(),
            Action::OpenSnapshot { peer } => self.open_snapshot(peer),
            Action::ReadSnapshot { peer } => self.read_snapshot(peer),
            Action::CloseSnapshot { peer } => {
                self.snapshots.remove(&peer);
            }
            Action::BeginInstall { .. } => {
                let begun = self.store.begin_install();
                self.install = self.note(begun);
            }
            Action::StoreSnapshot { peer, chunk } => self.store_snapshot(peer, &chunk),
            Action::FinishInstall { peer } => self.finish_install(peer),
            other => unreachable!("{other:?} is not about the durable state"),
        }
    }

    /// Makes durable what was merged.
    fn commit(&mut self) {
        if self.is_broken {
            return;
        }
        let began = Instant::now();
        match self.merged.commit(self.store.as_mut()) {
            Ok(Some(_)) => {
                let mut figures = self.disk.figures();
                figures.checkpoint = Some((self.merged_zxid, self.clock.now().wall_ms));
                figures.checkpoint_latency.record(began.elapsed().as_micros() as u64);
                figures.state_bytes = self.store.used_bytes();
                drop(figures);
                // Else what waited for this commit would count until the next write, which may be
                // refused because of it.
                self.note_room();
                // Last: whoever is answered because of it finds the figures as they are now.
                self.tell(Event::CheckpointDurable { applied: self.merged_to.clone() });
            }
            Ok(None) => {}
            Err(error) => self.fail(&error),
        }
    }

    fn note_room(&self) {
        let (used, waiting) = (self.store.used_bytes(), self.merged.bytes() as u64);
        self.disk.room.note_state(used, waiting, self.store.limit_bytes());
    }

    fn fail(&mut self, error: &StoreError) {
        self.is_broken = true;
        self.merged.clear();
        self.tell(Event::StorageFailed { error: error.to_string() });
    }

    /// An error of a snapshot is the snapshot's alone; any other is the store's end.
    fn note<T>(&mut self, result: Result<T, StoreError>) -> Result<T, String> {
        result.map_err(|error| {
            if !matches!(error, StoreError::Snapshot { .. } | StoreError::SnapshotGone) {
                self.fail(&error);
            }
            error.to_string()
        })
    }

    fn open_snapshot(&mut self, peer: u64) {
        // What is merged may be what the peer lacks.
        self.commit();
        self.snapshots.remove(&peer);
        let opened = self.store.snapshot();
        match self.note(opened) {
            Ok(reader) => {
                let applied = reader.applied().clone();
                self.snapshots.insert(peer, reader);
                self.tell(Event::SnapshotOpened { peer, applied });
            }
            Err(error) => {
                tracing::warn!(peer, error, "no snapshot for a peer");
                // The end at once: the peer finds it incomplete and says so.
                self.tell(Event::SnapshotChunk { peer, chunk: None });
            }
        }
    }

    fn read_snapshot(&mut self, peer: u64) {
        let Some(reader) = self.snapshots.get_mut(&peer) else { return };
        let read = reader.next_chunk(CHUNK_SIZE);
        let chunk = self.note(read).unwrap_or_else(|error| {
            tracing::warn!(peer, error, "a snapshot for a peer ended early");
            None
        });
        if chunk.is_none() {
            self.snapshots.remove(&peer);
        }
        self.tell(Event::SnapshotChunk { peer, chunk });
    }

    fn store_snapshot(&mut self, peer: u64, chunk: &[u8]) {
        if self.install.is_ok() {
            let stored = self.store.install_chunk(chunk);
            self.install = self.note(stored);
        }
        // A bad one is refused at the end; until then the peer goes on.
        self.tell(Event::SnapshotStored { peer });
    }

    fn finish_install(&mut self, peer: u64) {
        let begun = std::mem::replace(&mut self.install, Err("no snapshot was begun".into()));
        let installed = begun.and_then(|()| {
            let finished = self.store.finish_install();
            self.note(finished)
        });
        let event = match installed {
            Err(error) => Event::SnapshotRefused { peer, error },
            Ok(_) => {
                self.merged.clear();
                match load(self.store.as_ref(), fastrand::u64(..)) {
                    Ok(Some((applied, state))) => {
                        let now_ms = self.clock.now().wall_ms;
                        self.disk.note_checkpoint(Some((state.zxid(), now_ms)));
                        Event::SnapshotInstalled { peer, applied, state: Box::new(state) }
                    }
                    Ok(None) => unreachable!("a state was installed a moment ago"),
                    // The old state is gone and the new one does not make sense.
                    Err(error) => return self.fail(&error),
                }
            }
        };
        self.tell(event);
    }

    fn backup(&mut self, path: &Path) -> Result<String, String> {
        self.commit();
        let applied = self.store.copy_to(path).map_err(|error| error.to_string())?;
        Ok(format!("{} holds the state up to entry {}", path.display(), applied.index))
    }
}
