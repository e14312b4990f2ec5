//! Operations of the stores on files and directories: make, remove, make durable, lock.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use millrace_ops::again;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::StoreError;

/// Removes a file, if it exists.
pub(super) fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Makes a directory that does not exist.
pub(super) fn create_directory(path: &Path) -> Result<(), StoreError> {
    fs::create_dir(path).map_err(|error| StoreError::io("create", path, error))
}

/// Removes a directory with its content, if it exists.
pub(super) fn remove_directory(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Makes the list of a directory's files durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|error| StoreError::io("sync the directory", path, error))
}

/// Makes the name of a file or directory durable.
pub(super) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or(Ok(()), sync_directory)
}

/// Ensures that no other process, and no other part of this one, uses the directory.
#[derive(Debug)]
pub(super) struct Lock {
    pub(super) file: File,
}

impl Drop for Lock {
    /// Unlocks the directory. Closing is not enough: a process that was just forked, and has not begun its
    /// program yet, still has the file open, and with it the lock.
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.file, FlockOperation::Unlock) {
            tracing::warn!("cannot unlock a data directory: {error}");
        }
    }
}

impl Lock {
    pub(super) fn take(directory: &Path) -> Result<Lock, StoreError> {
        let path: PathBuf = directory.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|error| StoreError::io("open", &path, error))?;
        let is_held = |error: &Errno| *error == Errno::WOULDBLOCK;
        let lock = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        match again::while_in_use(is_held, lock) {
            Ok(()) => Ok(Lock { file }),
            Err(Errno::WOULDBLOCK) => Err(StoreError::Locked { path: directory.to_owned() }),
            Err(error) => Err(StoreError::io("lock", &path, error)),
        }
    }
}

/// True if all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    // Steps of this size become wide compares.
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| *chunk == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}
