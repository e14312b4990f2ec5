//! What the state thread does with each thing that it is asked, without the thread.
//!
//! Owns the durable state, the changes that wait for their commit, the views that are being sent
//! and the snapshot that comes in. Each thing is begun, which writes, and ended, which says what
//! to tell the replica: a real disk has the bytes when [`Keeper::begin`] returns, a simulated one
//! may crash in between. Always holds: a checkpoint of a state that was replaced is never written.
//! Leaves to its callers time, threads and figures.

use std::collections::HashMap;
use std::path::Path;

use crate::replica::{Action, Checkpoint, Event};
use crate::state::{Loader, State};
use crate::store::checkpoint::{self, Limits};
use crate::store::{Applied, SnapshotReader, StateStore, StoreError};

/// Loads the state out of a store; `None` when nothing was ever committed there.
///
/// # Errors
/// As [`StateStore::load`], or [`StoreError::Corrupt`] when the records make no state.
pub fn load(store: &dyn StateStore, seed: u64) -> Result<Option<(Applied, State)>, StoreError> {
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

/// What was begun, and what is left to do once its bytes are on the disk.
#[derive(Debug)]
pub enum Begun {
    /// Nothing that the replica waits for.
    Nothing,
    /// This is to be told.
    Tell(Event<'static>),
    /// The merged changes up to this point were written.
    Committed {
        /// What the state holds now.
        applied: Applied,
        /// The zxid that belongs to it.
        zxid: i64,
    },
    /// A received snapshot took the state's place, and is to be loaded.
    Installed {
        /// The replica that sent it.
        peer: u64,
    },
}

/// See the module.
pub struct Keeper {
    store: Box<dyn StateStore>,
    /// Decides the order inside hash tables, and nothing else.
    seed: u64,
    /// Bytes of one chunk of a snapshot.
    chunk_size: usize,
    merged: checkpoint::Checkpoint,
    /// What the last merged checkpoint belongs to.
    merged_to: Applied,
    merged_zxid: i64,
    /// Views that are being sent, by peer.
    snapshots: HashMap<u64, Box<dyn SnapshotReader>>,
    /// Whether the snapshot that is being received can still be installed.
    install: Result<(), String>,
    is_broken: bool,
}

impl Keeper {
    /// Keeps the state of `store`; `limits` say when a commit is due.
    pub fn new(store: Box<dyn StateStore>, limits: Limits, seed: u64, chunk_size: usize) -> Keeper {
        Keeper {
            store,
            seed,
            chunk_size,
            merged: checkpoint::Checkpoint::new(limits),
            merged_to: Applied::default(),
            merged_zxid: 0,
            snapshots: HashMap::new(),
            install: Err("no snapshot was begun".into()),
            is_broken: false,
        }
    }

    /// True if what is merged has to be committed before `action` is begun: what is merged may be
    /// what a peer lacks.
    pub fn commits_before(action: &Action) -> bool {
        matches!(action, Action::OpenSnapshot { .. })
    }

    /// When the next commit is due, in the caller's milliseconds; `None` if nothing waits.
    pub fn due_ms(&self) -> Option<u64> {
        self.merged.due_ms()
    }

    /// Bytes in use, bytes that wait for their commit, and bytes that the store can grow to.
    pub fn room(&self) -> (u64, u64, u64) {
        (self.store.used_bytes(), self.merged.bytes() as u64, self.store.limit_bytes())
    }

    /// Begins one of the actions that are about the durable state.
    ///
    /// # Panics
    /// If the action is about something else.
    pub fn begin(&mut self, action: Action, now_ms: u64) -> Begun {
        if self.is_broken {
            return Begun::Nothing;
        }
        match action {
            Action::Checkpoint { checkpoint } => self.merge(checkpoint, now_ms),
            Action::FlushCheckpoint => self.commit(),
            Action::OpenSnapshot { peer } => self.open_snapshot(peer),
            Action::ReadSnapshot { peer } => self.read_snapshot(peer),
            Action::CloseSnapshot { peer } => {
                self.snapshots.remove(&peer);
                Begun::Nothing
            }
            Action::BeginInstall { .. } => {
                let begun = self.store.begin_install();
                match self.note(begun) {
                    Err(failed) => Begun::Tell(*failed),
                    Ok(begun) => {
                        self.install = begun;
                        Begun::Nothing
                    }
                }
            }
            Action::StoreSnapshot { peer, chunk } => self.store_snapshot(peer, &chunk),
            Action::FinishInstall { peer } => self.finish_install(peer),
            other => unreachable!("{other:?} is not about the durable state"),
        }
    }

    /// Begins to make durable what was merged.
    pub fn commit(&mut self) -> Begun {
        if self.is_broken {
            return Begun::Nothing;
        }
        match self.merged.commit(self.store.as_mut()) {
            Ok(Some(_)) => {
                Begun::Committed { applied: self.merged_to.clone(), zxid: self.merged_zxid }
            }
            Ok(None) => Begun::Nothing,
            Err(error) => Begun::Tell(self.fail(&error)),
        }
    }

    /// Ends what was begun, when its bytes are on the disk; gives what to tell the replica.
    pub fn end(&mut self, begun: Begun) -> Option<Event<'static>> {
        match begun {
            Begun::Nothing => None,
            Begun::Tell(event) => Some(event),
            Begun::Committed { applied, .. } => Some(Event::CheckpointDurable { applied }),
            Begun::Installed { peer } => Some(match load(self.store.as_ref(), self.seed) {
                Ok(Some((applied, state))) => {
                    Event::SnapshotInstalled { peer, applied, state: Box::new(state) }
                }
                Ok(None) => unreachable!("a state was installed a moment ago"),
                // The old state is gone and the new one does not make sense.
                Err(error) => self.fail(&error),
            }),
        }
    }

    /// Takes nothing more: the store has failed. Gives what to tell the replica.
    pub fn fail(&mut self, error: &StoreError) -> Event<'static> {
        self.is_broken = true;
        self.merged.clear();
        Event::StorageFailed { error: error.to_string() }
    }

    /// Writes a copy of the committed state into the new file `path`.
    ///
    /// # Errors
    /// As [`StateStore::copy_to`].
    pub fn copy_to(&mut self, path: &Path) -> Result<Applied, StoreError> {
        self.store.copy_to(path)
    }

    fn merge(&mut self, checkpoint: Checkpoint, now_ms: u64) -> Begun {
        let Checkpoint { records, index, term, conf_state, zxid } = checkpoint;
        let applied = Applied { index, term, conf_state };
        self.merged_to = applied.clone();
        self.merged_zxid = zxid;
        self.merged.add(records, applied, now_ms);
        Begun::Nothing
    }

    /// Tells apart what is wrong: an error of a snapshot is the snapshot's alone, any other is the
    /// store's end, which is to be told.
    fn note<T>(
        &mut self,
        result: Result<T, StoreError>,
    ) -> Result<Result<T, String>, Box<Event<'static>>> {
        match result {
            Ok(value) => Ok(Ok(value)),
            Err(error @ (StoreError::Snapshot { .. } | StoreError::SnapshotGone)) => {
                Ok(Err(error.to_string()))
            }
            Err(error) => Err(Box::new(self.fail(&error))),
        }
    }

    fn open_snapshot(&mut self, peer: u64) -> Begun {
        self.snapshots.remove(&peer);
        let opened = self.store.snapshot();
        let event = match self.note(opened) {
            Err(failed) => *failed,
            Ok(Ok(reader)) => {
                let applied = reader.applied().clone();
                self.snapshots.insert(peer, reader);
                Event::SnapshotOpened { peer, applied }
            }
            Ok(Err(error)) => {
                tracing::warn!(peer, error, "no snapshot for a peer");
                // The end at once: the peer finds it incomplete and says so.
                Event::SnapshotChunk { peer, chunk: None }
            }
        };
        Begun::Tell(event)
    }

    fn read_snapshot(&mut self, peer: u64) -> Begun {
        let Some(reader) = self.snapshots.get_mut(&peer) else { return Begun::Nothing };
        let read = reader.next_chunk(self.chunk_size);
        let chunk = match self.note(read) {
            Err(failed) => return Begun::Tell(*failed),
            Ok(Ok(chunk)) => chunk,
            Ok(Err(error)) => {
                tracing::warn!(peer, error, "a snapshot for a peer ended early");
                None
            }
        };
        if chunk.is_none() {
            self.snapshots.remove(&peer);
        }
        Begun::Tell(Event::SnapshotChunk { peer, chunk })
    }

    fn store_snapshot(&mut self, peer: u64, chunk: &[u8]) -> Begun {
        if self.install.is_ok() {
            let stored = self.store.install_chunk(chunk);
            match self.note(stored) {
                Err(failed) => return Begun::Tell(*failed),
                Ok(stored) => self.install = stored,
            }
        }
        // A bad one is refused at the end; until then the peer goes on.
        Begun::Tell(Event::SnapshotStored { peer })
    }

    fn finish_install(&mut self, peer: u64) -> Begun {
        let begun = std::mem::replace(&mut self.install, Err("no snapshot was begun".into()));
        if let Err(error) = begun {
            return Begun::Tell(Event::SnapshotRefused { peer, error });
        }
        let finished = self.store.finish_install();
        match self.note(finished) {
            Err(failed) => Begun::Tell(*failed),
            Ok(Err(error)) => Begun::Tell(Event::SnapshotRefused { peer, error }),
            Ok(Ok(_)) => {
                // At once: it belongs to the state that was replaced.
                self.merged.clear();
                Begun::Installed { peer }
            }
        }
    }
}
