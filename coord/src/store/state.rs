//! The applied state in LMDB: one record for each key, and the header.
//!
//! Always holds, in every commit: the header has the number of records and the sum of their marks, so a
//! missing or old record is noticed when the state is loaded. A snapshot is received into an environment of
//! its own beside the state. When it is complete its file takes the name of the state's file, which is one
//! step for the file system, so there is the old state or the new one. [`super::directory`] removes a
//! received snapshot that was never installed.

use std::fs;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::UNIX_EPOCH;

use heed::{PutFlags, RwTxn};

use super::files::{Lock, create_directory, remove_directory, sync_directory};
use super::lmdb::{BorrowedView, Environment, OwnedView, Records};
use super::record::{self, HEADER_KEY, StateHeader, Tally};
use super::snapshot::{Decoder, Encoder};
use super::{
    Applied, Push, RecordChanges, SNAPSHOTS_MAX, SnapshotReader, StateStore, StoreError,
    StoreIdentity,
};

/// The view of a snapshot; `None` after the state is replaced.
type SharedView = Mutex<Option<OwnedView>>;

/// The state of a replica, with one writer.
pub struct LmdbState {
    /// `None` if the state was replaced and could not be opened again.
    environment: Option<Environment>,
    /// The header of the last commit.
    header: StateHeader,
    incoming: Option<IncomingSnapshot>,
    snapshots: Vec<Weak<SharedView>>,
}

/// A snapshot that is being received.
struct IncomingSnapshot {
    environment: Environment,
    decoder: Decoder,
}

impl LmdbState {
    /// Writes the first header to a new environment.
    pub(super) fn create(
        environment: Environment,
        header: StateHeader,
    ) -> Result<LmdbState, StoreError> {
        write_header(&environment, &header)?;
        Ok(LmdbState::new(environment, header))
    }

    /// Opens an environment with a header. [`StateStore::load`] verifies the records.
    pub(super) fn open(environment: Environment, header: &[u8]) -> Result<LmdbState, StoreError> {
        let header = StateHeader::read(header).map_err(|reason| environment.corrupt(reason))?;
        Ok(LmdbState::new(environment, header))
    }

    fn new(environment: Environment, header: StateHeader) -> LmdbState {
        LmdbState { environment: Some(environment), header, incoming: None, snapshots: Vec::new() }
    }

    /// Returns the directory for a snapshot that will replace the state in `path`.
    pub(super) fn incoming(path: &Path) -> PathBuf {
        path.with_extension("incoming")
    }

    /// Sets the cluster id of a state that has none yet, durably.
    ///
    /// # Errors
    /// As [`StateStore::commit`].
    ///
    /// # Panics
    /// Panics if it has another cluster id already.
    pub fn adopt(&mut self, cluster_id: u64) -> Result<(), StoreError> {
        let current = self.header.identity.cluster_id;
        assert!(current == 0 || current == cluster_id, "a state changes its cluster");
        let mut header = self.header.clone();
        header.identity.cluster_id = cluster_id;
        write_header(self.environment()?, &header)?;
        self.header = header;
        Ok(())
    }

    /// Returns the owner of the state.
    pub fn identity(&self) -> StoreIdentity {
        self.header.identity
    }

    /// Opens a view of the last commit, to look single records up.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if too many are open, or the state could not be opened again.
    pub fn view(&self) -> Result<StateView<'_>, StoreError> {
        let environment = self.environment()?;
        Ok(StateView { environment, view: environment.view()? })
    }

    /// Returns the time of the last change, in milliseconds since 1970.
    ///
    /// # Errors
    /// [`StoreError::Io`] if its file cannot be read.
    pub fn changed_ms(&self) -> Result<i64, StoreError> {
        let file = self.environment()?.path().join("data.mdb");
        let changed = fs::metadata(&file).and_then(|metadata| metadata.modified());
        let changed = changed.map_err(|error| StoreError::io("look at", &file, error))?;
        let since = changed.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn environment(&self) -> Result<&Environment, StoreError> {
        self.environment.as_ref().ok_or_else(|| StoreError::Failed {
            what: "the state".to_owned(),
            reason: "it was replaced by a snapshot, but could not be opened again".to_owned(),
        })
    }

    /// Replaces the state's file with the received one, and opens it.
    fn replace(&mut self, incoming: Environment) -> Result<(), StoreError> {
        let incoming_path = incoming.path().to_owned();
        incoming.close()?;
        for snapshot in self.snapshots.drain(..).filter_map(|snapshot| snapshot.upgrade()) {
            *snapshot.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.environment()?.check()?;
        let old = self.environment.take().expect("it was there a line ago");
        let path = old.path().to_owned();
        let limit_bytes = old.limit_bytes();
        let lock = old.lock().clone();
        old.close()?;
        let data = path.join("data.mdb");
        let renamed = fs::rename(incoming_path.join("data.mdb"), &data);
        renamed.map_err(|error| StoreError::io("replace", &data, error))?;
        sync_directory(&path)?;
        remove_directory(&incoming_path)?;
        let (environment, header) = Environment::open(&path, limit_bytes, lock)?;
        let header = header.ok_or_else(|| environment.corrupt("its header is missing"))?;
        self.header = StateHeader::read(&header).map_err(|reason| environment.corrupt(reason))?;
        self.environment = Some(environment);
        Ok(())
    }
}

/// The state as one commit left it. Replicas read from memory; this exists for comparison in benchmarks.
pub struct StateView<'s> {
    environment: &'s Environment,
    view: BorrowedView<'s>,
}

impl StateView<'_> {
    /// Returns the value of a record, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if it is damaged.
    ///
    /// # Panics
    /// Panics for a key that is too long, as [`StateStore::commit`] does.
    pub fn get(&self, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        let (environment, inner) = (self.environment, record::state_key(key));
        let found = environment.records().get(&self.view, &inner);
        let Some(stored) = found.map_err(|error| environment.error(error))? else {
            return Ok(None);
        };
        let (value, _) = record::read_state(key, stored)
            .map_err(|reason| record_damage(environment, &inner, reason))?;
        Ok(Some(value))
    }
}

impl StateStore for LmdbState {
    fn load(&self, push: &mut Push<'_>) -> Result<Option<Applied>, StoreError> {
        let environment = self.environment()?;
        let view = environment.view()?;
        let mut tally = Tally::default();
        let records = environment.records();
        // The first record is the header.
        for record in records.iter(&view).map_err(|error| environment.error(error))?.skip(1) {
            let record = record.map_err(|error| environment.error(error))?;
            let (key, value, mark) = read_record(record)
                .map_err(|reason| record_damage(environment, record.0, reason))?;
            tally.add(mark);
            push(key, value)?;
        }
        if tally != self.header.tally {
            return Err(environment.corrupt(describe_tally(tally, self.header.tally)));
        }
        Ok(self.header.applied.clone())
    }

    fn commit(
        &mut self,
        changes: &mut RecordChanges<'_, '_>,
        applied: &Applied,
    ) -> Result<(), StoreError> {
        let environment = self.environment()?;
        let mut header = self.header.clone();
        header.applied = Some(applied.clone());
        environment.write(|transaction, records, number| {
            let mut stored = Vec::new();
            for (key, value) in changes {
                let inner = record::state_key(key);
                let old = match records.get(transaction, &inner) {
                    Ok(Some(old)) => Some(record::read_state(key, old)),
                    Ok(None) => None,
                    Err(error) => return Err(environment.error(error)),
                };
                if let Some(old) = old {
                    let removed = old.and_then(|(_, mark)| {
                        header.tally.remove(mark).ok_or("the header does not count it")
                    });
                    removed.map_err(|reason| record_damage(environment, &inner, reason))?;
                }
                let changed = match value {
                    Some(value) => {
                        header.tally.add(record::write_state(key, value, &mut stored));
                        records.put(transaction, &inner, &stored)
                    }
                    None => records.delete(transaction, &inner).map(|_| ()),
                };
                changed.map_err(|error| environment.error(error))?;
            }
            put_header(environment, transaction, records, &header.write(number))
        })?;
        self.header = header;
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotReader>, StoreError> {
        self.snapshots.retain(|snapshot| snapshot.strong_count() > 0);
        let refuse = |reason: &str| StoreError::Snapshot { reason: reason.to_owned() };
        let environment = self.environment()?;
        let Some(applied) = self.header.applied.clone() else {
            return Err(refuse("nothing was committed yet"));
        };
        if self.snapshots.len() >= SNAPSHOTS_MAX {
            return Err(refuse("too many are open"));
        }
        let view = environment.owned_view()?;
        let snapshot = LmdbSnapshot {
            records: environment.records(),
            name: environment.name().to_owned(),
            view: Arc::new(Mutex::new(Some(view))),
            encoder: Encoder::new(self.header.identity.store_id, applied.index),
            tally: self.header.tally,
            applied,
            _lock: environment.lock().clone(),
        };
        self.snapshots.push(Arc::downgrade(&snapshot.view));
        Ok(Box::new(snapshot))
    }

    fn begin_install(&mut self) -> Result<(), StoreError> {
        if let Some(earlier) = self.incoming.take() {
            earlier.environment.close()?;
        }
        let current = self.environment()?;
        current.check()?;
        let path = LmdbState::incoming(current.path());
        remove_directory(&path)?;
        create_directory(&path)?;
        let (limit_bytes, lock) = (current.limit_bytes(), current.lock().clone());
        let (environment, _) = Environment::open(&path, limit_bytes, lock)?;
        // The header comes first, so that records can follow it.
        write_header(&environment, &StateHeader::new(self.header.identity))?;
        self.incoming = Some(IncomingSnapshot { environment, decoder: Decoder::default() });
        Ok(())
    }

    fn install_chunk(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        let identity = self.header.identity;
        // The incoming snapshot is put back only if all went well.
        let mut incoming = self.incoming.take().ok_or_else(not_begun)?;
        let IncomingSnapshot { environment, decoder } = &mut incoming;
        environment.write(|transaction, records, number| {
            let mut stored = Vec::new();
            decoder.accept(chunk, &mut |key, value| {
                record::write_state(key, value, &mut stored);
                let inner = record::state_key(key);
                let put = records.put_with_flags(transaction, PutFlags::APPEND, &inner, &stored);
                put.map_err(|error| environment.error(error))
            })?;
            let header = StateHeader::new(identity).write(number);
            put_header(environment, transaction, records, &header)
        })?;
        self.incoming = Some(incoming);
        Ok(())
    }

    fn finish_install(&mut self) -> Result<Applied, StoreError> {
        let IncomingSnapshot { environment, decoder } =
            self.incoming.take().ok_or_else(not_begun)?;
        let (applied, tally) = decoder.finish()?;
        let identity = self.header.identity;
        let header = StateHeader { identity, applied: Some(applied.clone()), tally };
        write_header(&environment, &header)?;
        self.replace(environment)?;
        Ok(applied)
    }

    fn used_bytes(&self) -> u64 {
        self.environment.as_ref().map_or(0, Environment::used_bytes)
    }

    fn limit_bytes(&self) -> u64 {
        self.environment.as_ref().map_or(0, Environment::limit_bytes)
    }
}

fn not_begun() -> StoreError {
    StoreError::Snapshot { reason: "its installation was not begun, or failed".to_owned() }
}

/// Commits only a header.
fn write_header(environment: &Environment, header: &StateHeader) -> Result<(), StoreError> {
    environment.write(|transaction, records, number| {
        put_header(environment, transaction, records, &header.write(number))
    })
}

fn put_header(
    environment: &Environment,
    transaction: &mut RwTxn<'_>,
    records: Records,
    value: &[u8],
) -> Result<(), StoreError> {
    let put = records.put(transaction, HEADER_KEY, value);
    put.map_err(|error| environment.error(error))
}

/// Returns key, value and mark of a stored record.
fn read_record<'v>(
    (inner, stored): (&'v [u8], &'v [u8]),
) -> Result<(&'v [u8], &'v [u8], u64), &'static str> {
    let (_, key) = inner.split_first().ok_or("it has no key")?;
    let (value, mark) = record::read_state(key, stored)?;
    Ok((key, value, mark))
}

fn record_damage(environment: &Environment, inner: &[u8], reason: &str) -> StoreError {
    environment.corrupt(describe_damage(inner, reason))
}

fn describe_damage(inner: &[u8], reason: &str) -> String {
    format!("record {}: {reason}", inner.escape_ascii())
}

fn describe_tally(found: Tally, expected: Tally) -> String {
    format!(
        "its {} records are not the {} that were written (sums {:016x} and {:016x})",
        found.count, expected.count, found.sum, expected.sum
    )
}

/// A snapshot that is being read.
struct LmdbSnapshot {
    records: Records,
    /// Name of the environment, for errors.
    name: String,
    view: Arc<SharedView>,
    applied: Applied,
    tally: Tally,
    encoder: Encoder,
    /// Dropped after the view, because the directory must stay locked while it is read.
    _lock: Arc<Lock>,
}

impl SnapshotReader for LmdbSnapshot {
    fn applied(&self) -> &Applied {
        &self.applied
    }

    fn next_chunk(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, StoreError> {
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let view = view.as_ref().ok_or(StoreError::SnapshotGone)?;
        let name = &*self.name;
        let fail = |error: heed::Error| StoreError::corrupt(name, error.to_string());
        let mut after = vec![record::RECORD_PREFIX];
        after.extend_from_slice(self.encoder.last_key());
        let range = (Bound::Excluded(&after[..]), Bound::Unbounded);
        let records = self.records.range(view, &range).map_err(fail)?.map(|record| {
            let record = record.map_err(fail)?;
            let (key, value, _) = read_record(record)
                .map_err(|reason| StoreError::corrupt(name, describe_damage(record.0, reason)))?;
            Ok((key, value))
        });
        let chunk = self.encoder.next(&self.applied, records, bytes_max)?;
        match self.encoder.finished() {
            Some(tally) if tally != self.tally => {
                Err(StoreError::corrupt(name, describe_tally(tally, self.tally)))
            }
            _ => Ok(chunk),
        }
    }
}
