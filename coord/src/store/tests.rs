//! The promises of both kinds of stores, and what only the one on disk can break.

use std::collections::BTreeMap;
use std::path::Path;

use raft::eraftpb::{ConfState, Entry, HardState};
use tempfile::TempDir;

use super::memory::{MemoryDisk, MemoryLog, MemoryState};
use super::{
    Append, Applied, LogStore, Sizes, StateStore, StoreError, StoreIdentity, Stores, open,
    open_existing,
};

mod checkpoint;
mod damage;
mod directory;
mod disk;
mod forgery;
mod log;
mod pages;
mod place;
mod state;

const IDENTITY: StoreIdentity = StoreIdentity { cluster_id: 7, replica_id: 3, store_id: 0x5eed };
const SIZES: Sizes = Sizes { log_bytes_max: 256 << 20, state_bytes_max: 256 << 20 };

/// Small segments, so that there are several.
const SMALL: Sizes = Sizes { log_bytes_max: 24 << 20, ..SIZES };

/// The two stores of a replica that can be stopped and started again.
trait Machine {
    fn log(&mut self) -> &mut dyn LogStore;
    fn state(&mut self) -> &mut dyn StateStore;
    fn restart(&mut self);
}

struct InMemory {
    disk: MemoryDisk,
    log: MemoryLog,
    state: MemoryState,
}

impl InMemory {
    fn new() -> InMemory {
        let disk = MemoryDisk::new(IDENTITY.store_id);
        InMemory { log: disk.log(), state: disk.state(), disk }
    }
}

impl Machine for InMemory {
    fn log(&mut self) -> &mut dyn LogStore {
        &mut self.log
    }

    fn state(&mut self) -> &mut dyn StateStore {
        &mut self.state
    }

    fn restart(&mut self) {
        self.disk.crash();
        self.log = self.disk.log();
        self.state = self.disk.state();
    }
}

struct OnDisk {
    directory: TempDir,
    sizes: Sizes,
    stores: Option<Stores>,
}

/// Makes a directory in memory if possible, because thousands of durable commits then need no disk.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

impl OnDisk {
    fn new() -> OnDisk {
        OnDisk::with(SIZES)
    }

    fn with(sizes: Sizes) -> OnDisk {
        let directory = scratch();
        let stores = Some(open(directory.path(), IDENTITY, sizes).unwrap());
        OnDisk { directory, sizes, stores }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn stores(&mut self) -> &mut Stores {
        self.stores.as_mut().unwrap()
    }

    /// Closes the stores and keeps the directory.
    fn close(mut self) -> TempDir {
        self.stores = None;
        self.directory
    }
}

impl Machine for OnDisk {
    fn log(&mut self) -> &mut dyn LogStore {
        &mut self.stores().log
    }

    fn state(&mut self) -> &mut dyn StateStore {
        &mut self.stores().state
    }

    fn restart(&mut self) {
        self.stores = None;
        self.stores = Some(open(self.directory.path(), IDENTITY, self.sizes).unwrap());
    }
}

/// Runs `check` on a machine of each kind.
fn each(check: impl Fn(&mut dyn Machine)) {
    check(&mut InMemory::new());
    check(&mut OnDisk::new());
    check(&mut OnDisk::with(SMALL));
}

fn entry(index: u64, term: u64, data: &[u8]) -> Entry {
    let mut entry = Entry { index, term, ..Entry::default() };
    entry.data = data.to_vec().into();
    entry
}

/// Builds the entries from `first` to `last`, each with data of its own.
fn entries(first: u64, last: u64, term: u64) -> Vec<Entry> {
    let data = |index: u64| format!("entry {index} of term {term}").into_bytes();
    (first..=last).map(|index| entry(index, term, &data(index))).collect()
}

fn append(entries: Vec<Entry>) -> Append {
    Append { entries, ..Append::default() }
}

fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit, ..HardState::default() }
}

fn applied(index: u64) -> Applied {
    let mut conf_state = ConfState::default();
    conf_state.set_voters(vec![1, 2, 3]);
    conf_state.set_learners(vec![9]);
    Applied { index, term: 1 + index / 10, conf_state }
}

/// Reads everything from the first to the last entry.
fn whole_log(log: &dyn LogStore) -> Result<Vec<Entry>, StoreError> {
    let reader = log.reader();
    let state = reader.initial()?;
    let found = reader.entries(state.compacted_index + 1, state.last_index + 1, u64::MAX)?;
    assert_eq!(found.len() as u64, state.last_index - state.compacted_index);
    Ok(found)
}

type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

fn whole_state(state: &dyn StateStore) -> Result<(Contents, Option<Applied>), StoreError> {
    let mut contents = Contents::new();
    let applied = state.load(&mut |key, value| {
        contents.insert(key.to_vec(), value.to_vec());
        Ok(())
    })?;
    Ok((contents, applied))
}

/// Commits changes given as text.
fn commit(state: &mut dyn StateStore, changes: &[(&str, Option<&str>)], index: u64) {
    let mut changes = changes.iter().map(|(key, value)| (key.as_bytes(), value.map(str::as_bytes)));
    state.commit(&mut changes, &applied(index)).unwrap();
}

/// Returns all chunks of a snapshot.
fn chunks(state: &mut dyn StateStore, bytes_max: usize) -> Vec<Vec<u8>> {
    let mut reader = state.snapshot().unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next_chunk(bytes_max).unwrap() {
        chunks.push(chunk);
    }
    assert_eq!(reader.next_chunk(bytes_max).unwrap(), None, "the end stays the end");
    chunks
}

/// Draws a value of up to some pages, mostly short.
fn random_value(random: &mut fastrand::Rng) -> Vec<u8> {
    let size = match random.u8(..20) {
        0 => random.usize(2000..20_000),
        1..4 => random.usize(300..2000),
        _ => random.usize(..200),
    };
    (0..size).map(|_| random.u8(..)).collect()
}
