//! What is remembered about the other replicas, in the small text file `peers` of the data
//! directory.
//!
//! Each replica's data directory has a random store id. A replica that comes back with another one
//! has lost its data, and with them the votes it gave and the entries it acknowledged: counting it
//! as the same replica could undo acknowledged writes. So the first store id that is seen for a
//! member is written here, durably before the first message passes, and another one is refused
//! until the replica was removed from the members and added again. A replica that joins a cluster
//! that runs notes that here too, and which cluster it was once it has met it; so does one that
//! begins a cluster. Beside it stands the list of members of its configuration as far as the
//! ensemble has taken it over, which tells a list that was edited from one that is merely old.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::config::Member;

/// Replicas that are remembered at most: as many as a cluster may have members.
const STORES_MAX: usize = 1024;
const HEAD: &str = "# What this replica remembers of the others. Written by millrace coord.\n";

/// The content of the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    /// `None` keeps it in memory alone, for simulation.
    path: Option<PathBuf>,
    joined: Option<u64>,
    stores: BTreeMap<u64, u64>,
    listed: Option<Listed>,
}

/// As much of the configured list of members as the ensemble has taken over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// In order of their ids.
    pub members: Vec<Member>,
    /// Whether too few of the list were members, when last looked at, for the ensemble to serve.
    pub is_forming: bool,
}

impl Known {
    /// Remembers nothing yet, and has no file.
    pub fn in_memory() -> Known {
        Known { path: None, joined: None, stores: BTreeMap::new(), listed: None }
    }

    /// Reads the file `peers` in `directory`; it need not exist.
    ///
    /// # Errors
    /// As the file system's, or `InvalidData` that names the line.
    pub(crate) fn load(directory: &Path) -> io::Result<Known> {
        let path = directory.join("peers");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let mut known = Known { path: Some(path.clone()), ..Known::in_memory() };
        for (index, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            known.take_line(line).ok_or_else(|| {
                let message = format!(
                    "{}, line {}: `{line}` is not `cluster ID`, `replica ID store ID`, \
                     `listed server.N=...` or `forming`",
                    path.display(),
                    index + 1
                );
                io::Error::new(io::ErrorKind::InvalidData, message)
            })?;
        }
        Ok(known)
    }

    fn take_line(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["cluster", id] => self.joined = Some(u64::from_str_radix(id, 16).ok()?),
            ["replica", replica, "store", store] if self.stores.len() < STORES_MAX => {
                let store = u64::from_str_radix(store, 16).ok()?;
                self.stores.insert(replica.parse().ok()?, store);
            }
            ["listed", line] => {
                let member = Member::parse_line(line).ok()?;
                self.listed.get_or_insert_default().members.push(member);
            }
            ["forming"] => self.listed.get_or_insert_default().is_forming = true,
            _ => return None,
        }
        Some(())
    }

    /// The cluster that this replica joined or began, 0 while it waits to join one; `None` for a
    /// replica by itself, and for one that would begin an ensemble with others.
    pub fn joined(&self) -> Option<u64> {
        self.joined
    }

    /// The configured members that the ensemble has taken over; `None` before it took any.
    pub fn listed(&self) -> Option<&Listed> {
        self.listed.as_ref()
    }

    /// Forgets everything, because this replica has no data: it belongs to no cluster, and what an
    /// earlier life knew of lists and stores went with the data. `joins` notes that it waits to join.
    ///
    /// # Errors
    /// As the file system's; then nothing was forgotten.
    pub fn begin(&mut self, joins: bool) -> io::Result<()> {
        let path = self.path.clone();
        let fresh = Known { path, joined: joins.then_some(0), ..Known::in_memory() };
        let before = std::mem::replace(self, fresh);
        if *self == before {
            return Ok(());
        }
        self.save().inspect_err(|_| *self = before)
    }

    /// Remembers the configured members that the ensemble has taken over, durably.
    ///
    /// # Errors
    /// As the file system's; then nothing was remembered.
    pub fn set_listed(&mut self, listed: Listed) -> io::Result<()> {
        let before = self.listed.replace(listed);
        self.save().inspect_err(|_| self.listed = before)
    }

    /// The store id that is remembered for a replica.
    pub(crate) fn store_id(&self, replica: u64) -> Option<u64> {
        self.stores.get(&replica).copied()
    }

    /// Remembers, durably, which cluster this replica belongs to: see [`Known::joined`].
    ///
    /// # Errors
    /// As the file system's; then nothing was remembered.
    pub(crate) fn join(&mut self, cluster_id: Option<u64>) -> io::Result<()> {
        if self.joined == cluster_id {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.joined, cluster_id);
        self.save().inspect_err(|_| self.joined = before)
    }

    /// Remembers the store of a replica, durably.
    ///
    /// # Errors
    /// As the file system's; then nothing was remembered.
    pub(crate) fn remember(&mut self, replica: u64, store_id: u64) -> io::Result<()> {
        if self.stores.len() >= STORES_MAX {
            return Err(io::Error::other("too many replicas are remembered"));
        }
        self.stores.insert(replica, store_id);
        self.save().inspect_err(|_| {
            self.stores.remove(&replica);
        })
    }

    /// Forgets the replicas that `keep` does not want. The file follows with the next one that is
    /// remembered, or here when it can be written; an old line would only refuse a replica that
    /// was removed and added again.
    pub(crate) fn forget(&mut self, keep: impl Fn(u64) -> bool) {
        let before = self.stores.len();
        self.stores.retain(|replica, _| keep(*replica));
        if self.stores.len() == before {
            return;
        }
        if let Err(error) = self.save() {
            let path = self.path.as_deref().unwrap_or(Path::new("")).display();
            tracing::warn!(%path, %error, "replicas that were removed stay in the file");
        }
    }

    /// Replaces the file as a whole: a crash leaves the old one or the new one.
    fn save(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut text = HEAD.to_owned();
        if let Some(cluster) = self.joined {
            text.push_str(&format!("cluster {cluster:016x}\n"));
        }
        for (replica, store) in &self.stores {
            text.push_str(&format!("replica {replica} store {store:016x}\n"));
        }
        if let Some(Listed { members, is_forming }) = &self.listed {
            for member in members {
                text.push_str(&format!("listed {member}\n"));
            }
            if *is_forming {
                text.push_str("forming\n");
            }
        }
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        match path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}
