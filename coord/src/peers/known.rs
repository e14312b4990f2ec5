//! What is remembered about the other replicas, in the small text file `peers` of the data
//! directory.
//!
//! Each replica's data directory has a random store id. A replica that comes back with another one
//! has lost its data, and with them the votes it gave and the entries it acknowledged: counting it
//! as the same replica could undo acknowledged writes. So the first store id that is seen for a
//! member is written here, durably before the first message passes, and another one is refused
//! until the replica was removed from the members and added again. A replica that joins a cluster
//! that runs notes that here too, and which cluster it was once it has met it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Replicas that are remembered at most: as many as a cluster may have members.
const STORES_MAX: usize = 1024;
const HEAD: &str = "# What this replica remembers of the others. Written by millrace coord.\n";

/// The content of the file.
#[derive(Debug)]
pub(crate) struct Known {
    path: PathBuf,
    joined: Option<u64>,
    stores: BTreeMap<u64, u64>,
}

impl Known {
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
        let mut known = Known { path, joined: None, stores: BTreeMap::new() };
        for (index, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            known.take_line(line).ok_or_else(|| {
                let message = format!(
                    "{}, line {}: `{line}` is not `cluster ID` or `replica ID store ID`",
                    known.path.display(),
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
            _ => return None,
        }
        Some(())
    }

    /// The cluster that this replica joined, 0 while it has not met it; `None` for a replica that
    /// was there when its cluster began.
    pub(crate) fn joined(&self) -> Option<u64> {
        self.joined
    }

    /// The store id that is remembered for a replica.
    pub(crate) fn store_id(&self, replica: u64) -> Option<u64> {
        self.stores.get(&replica).copied()
    }

    /// Remembers, durably, that this replica joins, or joined, a cluster.
    ///
    /// # Errors
    /// As the file system's; then nothing was remembered.
    pub(crate) fn join(&mut self, cluster_id: u64) -> io::Result<()> {
        let before = self.joined.replace(cluster_id);
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
            let path = self.path.display();
            tracing::warn!(%path, %error, "replicas that were removed stay in the file");
        }
    }

    /// Replaces the file as a whole: a crash leaves the old one or the new one.
    fn save(&self) -> io::Result<()> {
        let mut text = HEAD.to_owned();
        if let Some(cluster) = self.joined {
            text.push_str(&format!("cluster {cluster:016x}\n"));
        }
        for (replica, store) in &self.stores {
            text.push_str(&format!("replica {replica} store {store:016x}\n"));
        }
        let fresh = self.path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        match self.path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}
