//! Data that no process uses: inspected, copied, and restored from a copy.
//!
//! Owns no format: stores and states read themselves, and verify every byte. Always holds: inspection
//! changes nothing; a restored directory appears as a whole or not at all.
//!
//! A data directory is a state and the log behind it. Entries known to be committed are loaded with the
//! state. A member that was cut off may have others. Those are counted and not applied, because the rest of
//! the ensemble decides whether they are committed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use protobuf::ProtobufEnum as _;
use raft::eraftpb::{ConfState, Entry, EntryType};

use crate::command::{Act, Batch, Command, Rules};
use crate::config::members::{Member, config_lines, parse_config_text};
use crate::import::VERSION_2;
use crate::raft::decode_members;
use crate::runtime::load;
use crate::state::{Changes, State};
use crate::store::memory::MemoryDisk;
use crate::store::{
    self, Append, Applied, LogStore, Sizes, StateStore, StoreError, StoreIdentity, Stores,
};

mod walk;

pub use walk::{OfflineNode, walk};

#[cfg(test)]
mod tests;

/// Bytes of entries that are in memory at a time.
const ENTRIES_BYTES_MAX: u64 = 16 << 20;
/// The part of a directory that must be there.
const STATE: &str = "state";
/// The file of a directory that was used before.
const LOCK: &str = "lock";
/// The folder in which a directory is made before it gets its name.
const RESTORING: &str = "restoring";
/// What an empty data directory may contain: `myid` belongs to the configuration, the lock to an earlier look for
/// data, and `version-2` to ZooKeeper, whose data stays beside that of the replica.
const NOT_DATA: [&str; 5] = ["myid", LOCK, "lost+found", RESTORING, VERSION_2];

/// The reason that data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{} holds no data of a replica", path.display())]
    NoData { path: PathBuf },
    #[error("{} is not empty: it has {found}", path.display())]
    NotEmpty { path: PathBuf, found: String },
    #[error("cannot {doing} {}: {error}", path.display())]
    Io { doing: &'static str, path: PathBuf, error: std::io::Error },
    #[error("the members in it cannot be read: {0}")]
    Members(#[from] crate::config::MemberError),
    #[error(
        "its zxid, {zxid:#x}, or the time of this machine leaves no zxids for what would follow"
    )]
    ZxidsUsedUp { zxid: i64 },
}

/// The verified content of a data directory or a backup.
pub struct Offline {
    /// The owner of the data; `None` for a backup.
    pub identity: Option<StoreIdentity>,
    /// The last entry in the state, and its term.
    pub index: u64,
    pub term: u64,
    pub state: State,
    /// First and last entry of the log; `None` if there are none.
    pub log: Option<(u64, u64)>,
    /// Entries of the log behind `index` that may not be committed.
    pub unsettled_count: u64,
}

/// Loads a data directory.
///
/// # Errors
/// [`OfflineError::NoData`]; [`StoreError::Locked`] if a process uses it; [`StoreError::Corrupt`] or others
/// if it is damaged.
pub fn open(directory: &Path) -> Result<Offline, OfflineError> {
    let no_data = || OfflineError::NoData { path: directory.to_owned() };
    // Opening leaves a lock file, which must not happen in other people's directories.
    if !directory.join(STATE).is_dir() && !directory.join(LOCK).is_file() {
        return Err(no_data());
    }
    let stores = store::open_existing(directory, Sizes::default())?;
    let (applied, state) = load(&stores.state, 0)?.ok_or_else(no_data)?;
    let identity = stores.identity;
    let mut offline = Offline {
        identity: Some(identity),
        index: applied.index,
        term: applied.term,
        state,
        log: None,
        unsettled_count: 0,
    };
    offline.follow_log(&stores, &applied)?;
    Ok(offline)
}

/// Loads a backup.
///
/// # Errors
/// As [`StateStore::install_from`], or [`StoreError::Corrupt`] if its records do not make a state.
pub fn open_backup(file: &Path) -> Result<Offline, OfflineError> {
    let mut store = MemoryDisk::new(0).state();
    store.install_from(file)?;
    let loaded = load(&store, 0)?;
    let (applied, state) = loaded.ok_or_else(|| OfflineError::NoData { path: file.to_owned() })?;
    let Applied { index, term, .. } = applied;
    Ok(Offline { identity: None, index, term, state, log: None, unsettled_count: 0 })
}

/// Takes a state that came from elsewhere, for a new data directory.
pub fn of_state(state: State) -> Offline {
    Offline { identity: None, index: 1, term: 1, state, log: None, unsettled_count: 0 }
}

impl Offline {
    /// Reads the whole log, and applies the committed entries that the state lacks.
    fn follow_log(&mut self, stores: &Stores, applied: &Applied) -> Result<(), StoreError> {
        let reader = stores.log.reader();
        let log = reader.initial()?;
        let (first, last) = (log.compacted_index + 1, log.last_index);
        if first > last {
            return Ok(());
        }
        self.log = Some((first, last));
        // The log is older than an installed snapshot, and no new log has followed.
        let is_obsolete =
            store::continuity(reader.as_ref(), applied)? == store::Continuity::Replaced;
        let own = stores.identity.replica_id;
        let is_alone =
            applied.conf_state.voters == [own] && applied.conf_state.voters_outgoing.is_empty();
        // A lone voter's entries are committed as soon as they are durable.
        let mut committed = if is_alone { last } else { log.hard_state.commit.max(applied.index) };
        let mut next = first;
        while next <= last {
            let entries = reader.entries(next, last + 1, ENTRIES_BYTES_MAX)?;
            let Some(end) = entries.last() else { break };
            next = end.index + 1;
            for entry in &entries {
                if is_obsolete || entry.index <= self.index || entry.index > committed {
                    continue;
                }
                if entry.get_entry_type() != EntryType::EntryNormal {
                    // From here on other voters may decide.
                    committed = log.hard_state.commit.max(entry.index);
                }
                self.apply(entry)?;
            }
        }
        if !is_obsolete {
            self.unsettled_count = last.saturating_sub(self.index);
        }
        Ok(())
    }

    fn apply(&mut self, entry: &Entry) -> Result<(), StoreError> {
        self.index = entry.index;
        self.term = entry.term;
        let data = match entry.get_entry_type() {
            EntryType::EntryNormal => entry.data.clone(),
            EntryType::EntryConfChangeV2 => decode_members(entry).context,
            other => return Err(unreadable(entry, format!("it is of kind {}", other.value()))),
        };
        // The entry is the first of a term, or the end of a change of members.
        if data.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::decode(&data).map_err(|error| unreadable(entry, error))?;
        let (time_ms, rules) = (batch.time_ms, batch.rules);
        let mut changes = Changes::default();
        while let Some(command) = batch.next_command().map_err(|error| unreadable(entry, error))? {
            // A refused command was refused when its client sent it too.
            let _ = self.state.apply(time_ms, rules, &command, &mut changes);
        }
        Ok(())
    }

    /// Writes the state to a new file, as a running replica would. The file has its name only when it is
    /// complete.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file exists or cannot be written.
    pub fn back_up(&self, file: &Path) -> Result<(), OfflineError> {
        let store_id = self.identity.map_or(0, |identity| identity.store_id);
        let members = self.state.config_text();
        let voters = match members.is_empty() {
            true => vec![self.identity.map_or(1, |identity| identity.replica_id)],
            false => parse_config_text(&members)?.0.iter().map(|member| member.id).collect(),
        };
        let conf_state = ConfState { voters, ..ConfState::default() };
        let mut store = MemoryDisk::new(store_id).state();
        self.commit_to(&mut store, conf_state)?;
        store.copy_to(file)?;
        Ok(())
    }

    /// Makes a data directory with this state, for a replica with a new identity: by itself, or as the one
    /// `member` of a new ensemble that others can be added to. `directory` may exist already, and may have
    /// a `myid`.
    ///
    /// All sessions end, and zxids go on above all that were given out ([`State::begin_incarnation`]), because clients
    /// may have seen, and hold for theirs, what came after the copy.
    ///
    /// # Errors
    /// [`OfflineError::NotEmpty`], [`OfflineError::ZxidsUsedUp`], or the error of the system; `directory` is then as
    /// before, except for a folder `restoring`.
    pub fn restore(
        mut self,
        directory: &Path,
        replica_id: u64,
        member: Option<&Member>,
    ) -> Result<(), OfflineError> {
        check_empty(directory)?;
        self.begin_incarnation()?;
        self.set_members(member)?;
        let fail =
            |doing| move |error| OfflineError::Io { doing, path: directory.to_owned(), error };
        let fresh = directory.join(RESTORING);
        match fs::remove_dir_all(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(fail("clear")(error));
            }
            _ => {}
        }
        fs::create_dir_all(&fresh).map_err(fail("create"))?;
        let (cluster_id, store_id) = (fastrand::u64(1..), fastrand::u64(1..));
        let identity = StoreIdentity { cluster_id, replica_id, store_id };
        let mut stores = store::open(&fresh, identity, Sizes::default())?;
        let conf_state = ConfState { voters: vec![replica_id], ..ConfState::default() };
        self.commit_to(&mut stores.state, conf_state)?;
        let reset = Some((self.index, self.term));
        stores.log.append(&[Append { reset, ..Append::default() }])?;
        drop(stores);
        // A state without a log is refused, so this order leaves no half that starts.
        let mut parts = list(&fresh)?;
        parts.retain(|part| part != LOCK);
        parts.sort_by_key(|part| part != STATE);
        for part in parts {
            fs::rename(fresh.join(&part), directory.join(&part)).map_err(fail("complete"))?;
        }
        let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(fail("sync"))?;
        fs::remove_dir_all(&fresh).map_err(fail("clear"))
    }

    /// Parts with the service that the state is a copy of.
    fn begin_incarnation(&mut self) -> Result<(), OfflineError> {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX);
        if !self.state.begin_incarnation(now_ms) {
            return Err(OfflineError::ZxidsUsedUp { zxid: self.state.zxid() });
        }
        let sessions: Vec<i64> = self.state.sessions().map(|(id, _)| id).collect();
        for session in sessions {
            self.command(session, Act::CloseSession);
        }
        Ok(())
    }

    /// Replaces the replicated list of members, if it must change.
    fn set_members(&mut self, member: Option<&Member>) -> Result<(), OfflineError> {
        let text = member.map(std::slice::from_ref).map(config_lines).unwrap_or_default();
        if text.is_empty() && self.state.config_text().is_empty() {
            return Ok(());
        }
        self.command(0, Act::SetConfig { text: &text });
        Ok(())
    }

    /// Applies a command of the service itself.
    fn command(&mut self, session: i64, act: Act<'_>) {
        let command =
            Command { origin: 0, tag: 0, session, attach: 0, identities: Vec::new(), act };
        let applied = self.state.apply(0, Rules::default(), &command, &mut Changes::default());
        applied.expect("the session is there, and the node of the members cannot be deleted");
    }

    fn commit_to(
        &self,
        store: &mut dyn StateStore,
        conf_state: ConfState,
    ) -> Result<(), StoreError> {
        let mut records = Vec::new();
        self.state.all_records(&mut |key, value| records.push((key.to_vec(), value.to_vec())));
        // This is the cheapest order for the store.
        records.sort_unstable();
        let mut changes = records.iter().map(|(key, value)| (&key[..], Some(&value[..])));
        store.commit(&mut changes, &Applied { index: self.index, term: self.term, conf_state })
    }
}

/// Checks that a directory, which may be missing, has nothing that counts.
fn check_empty(directory: &Path) -> Result<(), OfflineError> {
    if !directory.exists() {
        return Ok(());
    }
    let found = list(directory)?.into_iter().find(|name| !NOT_DATA.contains(&name.as_str()));
    match found {
        None => Ok(()),
        Some(found) => Err(OfflineError::NotEmpty { path: directory.to_owned(), found }),
    }
}

/// Lists the names in a directory.
fn list(directory: &Path) -> Result<Vec<String>, OfflineError> {
    let fail = |error| OfflineError::Io { doing: "list", path: directory.to_owned(), error };
    let entries = fs::read_dir(directory).map_err(fail)?;
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned()).map_err(fail)
    };
    entries.map(name).collect()
}

fn unreadable(entry: &Entry, reason: impl std::fmt::Display) -> StoreError {
    let at = format!("entry {}: {reason}", entry.index);
    StoreError::Corrupt { what: "the Raft log".to_owned(), at }
}
