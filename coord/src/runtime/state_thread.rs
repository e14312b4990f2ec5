//! The thread that keeps the durable state: checkpoints, snapshots, copies.
//!
//! The loop never waits for it while the queue between them has room. Work for a busy thread waits in
//! [`StateThread`], with checkpoints merged, and only above [`WAITING_BYTES_MAX`] the loop waits too.
//! Always holds: work is done in the order of asking; a checkpoint that is not durable yet is lost with the
//! process, and the log has its entries. The work itself is in [`Keeper`].

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flume::{Receiver, RecvTimeoutError, Sender, TrySendError};

use super::keeper::{Begun, Keeper};
use super::{Clock, Disk, Event, Letter, Mailbox, OperatorAnswer};
use crate::replica::{Checkpoint, StateAction};
use crate::store::StateStore;
use crate::store::checkpoint::Limits;

/// Most pieces of work in the queue. Small, because the rest waits on the loop's side, where checkpoints
/// are merged.
const QUEUE_MAX: usize = 64;
/// Bytes of changes that wait for a busy thread before the loop waits too. They last for minutes of an
/// ordinary disk's stall at an ordinary rate of writes, and seconds at the highest.
const WAITING_BYTES_MAX: usize = 256 << 20;
/// Milliseconds until a full queue is tried again.
const RETRY_MS: u64 = 5;
/// Bytes of one chunk of a snapshot.
const CHUNK_SIZE: usize = 256 << 10;

enum StateWork {
    /// An action on the durable state.
    Act(StateAction),
    /// A copy to write to a new file.
    Backup(PathBuf, OperatorAnswer),
}

/// The loop's end of the thread.
pub(crate) struct StateThread {
    work: Sender<StateWork>,
    /// Work with its bytes.
    waiting: VecDeque<(StateWork, usize)>,
    waiting_bytes: usize,
    thread: JoinHandle<()>,
}

impl StateThread {
    /// Starts the thread. Changes become durable after about `interval_ms`, or when they reach `bytes_max`.
    ///
    /// # Errors
    /// Fails if the thread could not be started.
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
        let keeper = Keeper::new(store, limits, fastrand::u64(..), CHUNK_SIZE);
        let worker = Worker { keeper, mailbox, disk, clock: Clock::start() };
        let thread =
            std::thread::Builder::new().name("coord-state".into()).spawn(|| worker.run(work))?;
        Ok(StateThread { work: sender, waiting: VecDeque::new(), waiting_bytes: 0, thread })
    }

    /// Queues an action on the durable state.
    pub(super) fn ask(&mut self, action: StateAction) {
        if let StateAction::Checkpoint { checkpoint } = action {
            return self.merge(checkpoint);
        }
        self.waiting.push_back((StateWork::Act(action), 0));
    }

    /// Queues a copy into the new file `path`.
    pub(super) fn backup(&mut self, path: PathBuf, answer: OperatorAnswer) {
        self.waiting.push_back((StateWork::Backup(path, answer), 0));
    }

    /// Adds a checkpoint to one that still waits.
    fn merge(&mut self, next: Checkpoint) {
        let added = size(&next);
        self.waiting_bytes += added;
        match self.waiting.back_mut() {
            Some((StateWork::Act(StateAction::Checkpoint { checkpoint }), bytes)) => {
                *bytes += added;
                checkpoint.records.extend(next.records);
                checkpoint.index = next.index;
                checkpoint.term = next.term;
                checkpoint.conf_state = next.conf_state;
                checkpoint.zxid = next.zxid;
            }
            _ => {
                let work = StateWork::Act(StateAction::Checkpoint { checkpoint: next });
                self.waiting.push_back((work, added));
            }
        }
    }

    /// Hands over what the queue has room for.
    pub(super) fn push_on(&mut self) {
        while let Some((work, bytes)) = self.waiting.pop_front() {
            // A thread that ended has reported it with `StorageFailed`.
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

    /// Returns the time of the next [`StateThread::push_on`].
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

/// The thread's side.
struct Worker {
    keeper: Keeper,
    mailbox: Mailbox,
    disk: Disk,
    clock: Clock,
}

impl Worker {
    fn run(mut self, work: Receiver<StateWork>) {
        loop {
            let next = match self.keeper.due_ms() {
                None => work.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due_ms) => {
                    let wait_ms = due_ms.saturating_sub(self.clock.now().ms);
                    work.recv_timeout(Duration::from_millis(wait_ms))
                }
            };
            match next {
                Ok(StateWork::Act(action)) => self.act(action),
                Ok(StateWork::Backup(path, answer)) => {
                    // The operator may have left.
                    let _ = answer.send(self.backup(&path));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.commit(),
            }
            let now_ms = self.clock.now().ms;
            if self.keeper.due_ms().is_some_and(|due_ms| due_ms <= now_ms) {
                self.commit();
            }
        }
    }

    fn act(&mut self, action: StateAction) {
        if Keeper::commits_before(&action) {
            self.commit();
        }
        if matches!(action, StateAction::FlushCheckpoint) {
            return self.commit();
        }
        let begun = self.keeper.begin(action, self.clock.now().ms);
        self.note_room();
        self.end(begun);
    }

    /// Makes the merged changes durable.
    fn commit(&mut self) {
        let began = Instant::now();
        let begun = self.keeper.commit();
        if let Begun::Committed { zxid, .. } = begun {
            let mut figures = self.disk.figures();
            figures.checkpoint = Some((zxid, self.clock.now().wall_ms));
            figures.checkpoint_latency.record(began.elapsed().as_micros() as u64);
            figures.state_bytes = self.keeper.room().0;
            drop(figures);
            // Otherwise what waited for this commit would count until the next write, which may be refused
            // because of it.
            self.note_room();
        }
        // This comes last, because it may answer a client, which must find these figures.
        self.end(begun);
    }

    fn end(&mut self, begun: Begun) {
        let Some(event) = self.keeper.end(begun) else { return };
        if let Event::SnapshotInstalled { state, .. } = &event {
            self.disk.note_checkpoint(Some((state.zxid(), self.clock.now().wall_ms)));
        }
        self.mailbox.send(Letter::Event(event));
    }

    fn note_room(&self) {
        let (used, waiting, limit) = self.keeper.room();
        self.disk.room.note_state(used, waiting, limit);
    }

    fn backup(&mut self, path: &Path) -> Result<String, String> {
        self.commit();
        let applied = self.keeper.copy_to(path).map_err(|error| error.to_string())?;
        Ok(format!("{} holds the state up to entry {}", path.display(), applied.index))
    }
}
