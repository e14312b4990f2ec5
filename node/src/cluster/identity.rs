//! A node's id, and a secret that distinguishes it from another node with the same id.
//!
//! Owns the file `node.json` of the data directory, and the lock that keeps two processes from being the
//! same node. Without a data directory the node is a new one after each start.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use millrace_ops::again;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Name of the file.
const FILE: &str = "node.json";
/// Name of the lock.
const LOCK: &str = "lock";

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// Id of the node.
    id: String,
    /// Random: the same id with another secret is another node.
    secret: String,
    /// Cluster that the node has joined; empty before.
    cluster: String,
}

/// The identity of this node.
#[derive(Debug)]
pub(crate) struct Identity {
    kept: Kept,
    directory: Option<PathBuf>,
    /// Held for as long as the node runs.
    _lock: Option<File>,
}

/// Why a node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The data directory cannot be used.
    #[error("use {} as data directory: {error}", path.display())]
    Directory {
        /// What was tried to use.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Another process has it.
    #[error(
        "{} is in use: another node runs from it. Give each node a data directory of its own",
        .0.display()
    )]
    Locked(PathBuf),
    /// The file is not what was written there.
    #[error(
        "{} is damaged: {error}. Restore it, or remove it to have the node join as a new one", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        error: String,
    },
    /// The directory belongs to a node of another name.
    #[error(
        "{} belongs to the node {kept}, not to {wanted}: leave --node-id out, or give another --data",
        path.display()
    )]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// Id that is kept there.
        kept: String,
        /// Id that was asked for.
        wanted: String,
    },
}

impl Identity {
    /// Takes up the identity that is kept in `directory`, or makes a new one; `id` is the one that was
    /// asked for, or empty.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub(crate) fn open(directory: &Path, id: &str) -> Result<Identity, IdentityError> {
        let new = |id: &str| {
            let secret = random();
            let id = if id.is_empty() { format!("node-{}", &random()[..8]) } else { id.to_owned() };
            Kept { id, secret, cluster: String::new() }
        };
        if directory.as_os_str().is_empty() {
            return Ok(Identity { kept: new(id), directory: None, _lock: None });
        }
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| IdentityError::Directory { path, error }
        };
        fs::create_dir_all(directory).map_err(failed(directory))?;
        let lock = lock(directory)?;
        let path = directory.join(FILE);
        let kept = match fs::read_to_string(&path) {
            Ok(text) => Some(serde_json::from_str::<Kept>(&text).map_err(|error| {
                IdentityError::Damaged { path: path.clone(), error: error.to_string() }
            })?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(&path)(error)),
        };
        let is_new = kept.is_none();
        let kept = kept.unwrap_or_else(|| new(id));
        if !id.is_empty() && kept.id != id {
            return Err(IdentityError::OtherNode { path, kept: kept.id, wanted: id.to_owned() });
        }
        let directory = Some(directory.to_owned());
        let identity = Identity { kept, directory, _lock: Some(lock) };
        if is_new {
            identity.save().map_err(failed(&path))?;
        }
        Ok(identity)
    }

    /// Returns the id of the node.
    pub(crate) fn id(&self) -> &str {
        &self.kept.id
    }

    /// Returns the secret that distinguishes this node from others with its id.
    pub(crate) fn secret(&self) -> &str {
        &self.kept.secret
    }

    /// Returns the cluster it belongs to; empty before it joined one.
    pub(crate) fn cluster(&self) -> &str {
        &self.kept.cluster
    }

    /// Notes which cluster the node has joined.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn join(&mut self, cluster: &str) -> io::Result<()> {
        if self.kept.cluster == cluster {
            return Ok(());
        }
        cluster.clone_into(&mut self.kept.cluster);
        self.save()
    }

    /// Writes the file: whole, or not at all.
    fn save(&self) -> io::Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let (path, new) = (directory.join(FILE), directory.join("node.json.new"));
        let mut file = File::create(&new)?;
        let text = serde_json::to_string_pretty(&self.kept).map_err(io::Error::other)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    }
}

fn lock(directory: &Path) -> Result<File, IdentityError> {
    let path = directory.join(LOCK);
    let failed = |error| IdentityError::Directory { path: path.clone(), error };
    let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
    let is_held = |error: &Errno| *error == Errno::WOULDBLOCK;
    let lock = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    match again::while_in_use(is_held, lock) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(IdentityError::Locked(directory.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

/// Returns 128 random bits as hex digits. The keys of this hasher come from the system's random numbers.
pub(crate) fn random() -> String {
    let number = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", number(), number())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_a_restart_and_is_had_once() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("deep/data");
        let mut first = Identity::open(&data, "").unwrap();
        let again = Identity::open(&data, "");
        assert!(matches!(again, Err(IdentityError::Locked(_))), "{again:?}");
        first.join("c1").unwrap();
        let kept = first.kept.clone();
        drop(first);
        let second = Identity::open(&data, "").unwrap();
        assert_eq!(second.kept, kept);
        drop(second);
        let other = Identity::open(&data, "somebody");
        assert!(matches!(other, Err(IdentityError::OtherNode { .. })), "{other:?}");
        fs::write(data.join(FILE), "{").unwrap();
        let damaged = Identity::open(&data, "");
        assert!(matches!(damaged, Err(IdentityError::Damaged { .. })), "{damaged:?}");
    }

    #[test]
    fn without_a_directory_everybody_is_somebody_else() {
        let [first, second] = [(); 2].map(|()| Identity::open(Path::new(""), "n").unwrap());
        assert_eq!(first.id(), second.id());
        assert_ne!(first.secret(), second.secret());
    }
}
