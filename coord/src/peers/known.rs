//! The text file `peers` in the data directory: what a replica remembers of the others.
//!
//! Each data directory has a random store id. A replica that returns with another one has lost its data,
//! and with it the votes it gave and the entries it acknowledged. Counting it as the same replica could
//! undo acknowledged writes. So the first store id of a member is written here, durably before the first
//! message passes, and another one is refused until the replica was removed and added again. A joining
//! replica notes that here too, with its ensemble once it has met it, and so does one that begins an
//! ensemble. The file also has the configured list of members as far as the ensemble has taken it over,
//! which distinguishes an edited list from an old one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::config::Member;

/// Most replicas to remember: as many as an ensemble may have members.
const STORES_MAX: usize = 1024;
const HEAD: &str = "# What this replica remembers of the others. Written by millrace coord.\n";

/// The content of the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    /// `None` keeps it in memory only, for simulation.
    path: Option<PathBuf>,
    joined: Option<u64>,
    stores: BTreeMap<u64, u64>,
    listed: Option<Listed>,
}

/// The part of the configured list of members that the ensemble has taken over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// The members, in the order of their ids.
    pub members: Vec<Member>,
    /// True if too few of the list were members at the last look, so the ensemble does not serve yet.
    pub is_forming: bool,
}

impl Known {
    /// Builds this with nothing remembered, and without a file.
    pub fn in_memory() -> Known {
        Known { path: None, joined: None, stores: BTreeMap::new(), listed: None }
    }

    /// Reads the file `peers` in `directory`, if it exists.
    ///
    /// # Errors
    /// Fails as the file system does, or with `InvalidData` that names the line.
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

    /// Returns the ensemble that this replica joined or began, 0 while it waits to join one. `None` for a
    /// replica by itself, and for one that would begin an ensemble with others.
    pub fn joined(&self) -> Option<u64> {
        self.joined
    }

    /// Returns the configured members that the ensemble has taken over; `None` before it took any.
    pub fn listed(&self) -> Option<&Listed> {
        self.listed.as_ref()
    }

    /// Forgets everything, because this replica has no data: it belongs to no ensemble, and the lists and
    /// stores of an earlier life are out of date. `joins` notes that it waits to join.
    ///
    /// # Errors
    /// Fails as the file system does; then nothing was forgotten.
    pub fn begin(&mut self, joins: bool) -> io::Result<()> {
        let path = self.path.clone();
        let fresh = Known { path, joined: joins.then_some(0), ..Known::in_memory() };
        let before = std::mem::replace(self, fresh);
        if *self == before {
            return Ok(());
        }
        self.save().inspect_err(|_| *self = before)
    }

    /// Remembers durably the configured members that the ensemble has taken over.
    ///
    /// # Errors
    /// Fails as the file system does; then nothing was remembered.
    pub fn set_listed(&mut self, listed: Listed) -> io::Result<()> {
        let before = self.listed.replace(listed);
        self.save().inspect_err(|_| self.listed = before)
    }

    /// Returns the remembered store id of a replica.
    pub(crate) fn store_id(&self, replica: u64) -> Option<u64> {
        self.stores.get(&replica).copied()
    }

    /// Remembers durably which ensemble this replica belongs to: see [`Known::joined`].
    ///
    /// # Errors
    /// Fails as the file system does; then nothing was remembered.
    pub(crate) fn join(&mut self, cluster_id: Option<u64>) -> io::Result<()> {
        if self.joined == cluster_id {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.joined, cluster_id);
        self.save().inspect_err(|_| self.joined = before)
    }

    /// Remembers the store of a replica durably.
    ///
    /// # Errors
    /// Fails as the file system does; then nothing was remembered.
    pub(crate) fn remember(&mut self, replica: u64, store_id: u64) -> io::Result<()> {
        if self.stores.len() >= STORES_MAX {
            return Err(io::Error::other("too many replicas are remembered"));
        }
        self.stores.insert(replica, store_id);
        self.save().inspect_err(|_| {
            self.stores.remove(&replica);
        })
    }

    /// Forgets the replicas that `keep` refuses. If the file cannot be written now, the next change writes
    /// it. Until then an old line would only refuse a replica that was removed and added again.
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

    /// Replaces the whole file, so that a crash leaves the old one or the new one.
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
