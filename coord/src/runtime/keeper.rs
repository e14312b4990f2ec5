//! The work of the state thread, without the thread.
//!
//! Owns the durable state, the changes that wait for their commit, the views on their way to peers and the
//! incoming snapshot. Each piece of work has two steps: the first writes, and the second returns the event
//! for the replica. A real disk has the bytes when [`Keeper::begin`] returns; a simulated one may crash in
//! between. Always holds: a checkpoint of a state that was replaced is never written. Leaves time, threads
//! and figures to its callers.

use std::collections::HashMap;
use std::path::Path;

use crate::replica::{Checkpoint, Event, StateAction};
use crate::state::{Loader, State};
use crate::store::checkpoint::{self, Limits};
use crate::store::{Applied, SnapshotReader, StateStore, StoreError};

/// Loads the state from a store; `None` if nothing was ever committed there.
///
/// # Errors
/// As [`StateStore::load`], or [`StoreError::Corrupt`] if the records do not make a state.
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

/// Work that was begun, and what is left to do once its bytes are on the disk.
#[derive(Debug)]
pub enum Begun {
    /// The replica waits for nothing.
    Nothing,
    /// The replica gets this event.
    Tell(Event<'static>),
    /// The merged changes up to this point were written.
    Committed {
        /// The point that the state has reached.
        applied: Applied,
        /// The zxid of this point.
        zxid: i64,
    },
    /// A received snapshot replaced the state, and must be loaded.
    Installed {
        /// The replica that sent it.
        peer: u64,
    },
}

/// The durable state and its changes; see the module.
pub struct Keeper {
    store: Box<dyn StateStore>,
    /// Decides only the order inside hash tables.
    seed: u64,
    /// Most bytes of one chunk of a snapshot.
    chunk_size: usize,
    merged: checkpoint::MergedCheckpoint,
    /// The point of the last merged checkpoint.
    merged_to: Applied,
    merged_zxid: i64,
    /// Views on their way, by peer.
    snapshots: HashMap<u64, Box<dyn SnapshotReader>>,
    /// The reason that the incoming snapshot cannot be installed, if there is one.
    install: Result<(), String>,
    is_broken: bool,
}

impl Keeper {
    /// Builds a keeper of the state in `store`; `limits` say when a commit is due.
    pub fn new(store: Box<dyn StateStore>, limits: Limits, seed: u64, chunk_size: usize) -> Keeper {
        Keeper {
            store,
            seed,
            chunk_size,
            merged: checkpoint::MergedCheckpoint::new(limits),
            merged_to: Applied::default(),
            merged_zxid: 0,
            snapshots: HashMap::new(),
            install: Err("no snapshot was begun".into()),
            is_broken: false,
        }
    }

    /// True if the merged changes must be committed before `action` begins, because a peer may lack them.
    pub fn commits_before(action: &StateAction) -> bool {
        matches!(action, StateAction::OpenSnapshot { .. })
    }

    /// Returns when the next commit is due, in the caller's milliseconds; `None` if nothing waits.
    pub fn due_ms(&self) -> Option<u64> {
        self.merged.due_ms()
    }

    /// Returns the bytes in use, those that wait for their commit, and those that the store may grow to.
    pub fn room(&self) -> (u64, u64, u64) {
        (self.store.used_bytes(), self.merged.bytes() as u64, self.store.limit_bytes())
    }

    /// Begins an action on the durable state.
    pub fn begin(&mut self, action: StateAction, now_ms: u64) -> Begun {
        if self.is_broken {
            return Begun::Nothing;
        }
        match action {
            StateAction::Checkpoint { checkpoint } => self.merge(checkpoint, now_ms),
            StateAction::FlushCheckpoint => self.commit(),
            StateAction::OpenSnapshot { peer } => self.open_snapshot(peer),
            StateAction::ReadSnapshot { peer } => self.read_snapshot(peer),
            StateAction::CloseSnapshot { peer } => {
                self.snapshots.remove(&peer);
                Begun::Nothing
            }
            StateAction::BeginInstall { .. } => {
                let begun = self.store.begin_install();
                match self.note(begun) {
                    Err(failed) => Begun::Tell(*failed),
                    Ok(begun) => {
                        self.install = begun;
                        Begun::Nothing
                    }
                }
            }
            StateAction::StoreSnapshot { peer, chunk } => self.store_snapshot(peer, &chunk),
            StateAction::FinishInstall { peer } => self.finish_install(peer),
        }
    }

    /// Begins to make the merged changes durable.
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

    /// Ends begun work when its bytes are on the disk. Returns the event for the replica.
    pub fn end(&mut self, begun: Begun) -> Option<Event<'static>> {
        match begun {
            Begun::Nothing => None,
            Begun::Tell(event) => Some(event),
            Begun::Committed { applied, .. } => Some(Event::CheckpointDurable { applied }),
            Begun::Installed { peer } => Some(match load(self.store.as_ref(), self.seed) {
                Ok(Some((applied, state))) => {
                    Event::SnapshotInstalled { peer, applied, state: Box::new(state) }
                }
                // The old state is gone, and the new one cannot be read.
                Ok(None) => self.fail(&StoreError::Corrupt {
                    what: "the state".into(),
                    at: "a snapshot was installed, and nothing is there".into(),
                }),
                Err(error) => self.fail(&error),
            }),
        }
    }

    /// Takes no more work, because the store has failed. Returns the event for the replica.
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

    /// Sorts errors: an error of a snapshot affects only the snapshot. Any other one ends the store, and
    /// its event is returned.
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
                // The snapshot ends at once. The peer finds it incomplete and reports that.
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
        // A bad chunk makes the end fail; until then the peer continues.
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
                // These changes belong to the state that was replaced.
                self.merged.clear();
                Begun::Installed { peer }
            }
        }
    }
}
