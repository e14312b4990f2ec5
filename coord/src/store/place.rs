//! Where the log of a data directory is: in it, or in a directory of its own that the name `log` in it links to.
//!
//! The link is all that says so, so that tools which know the data directory alone find the log. Always holds: a
//! directory that has anything but a log is never used for one, and nothing in it is removed; a log is not moved.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::StoreError;
use super::files::{sync_directory, sync_parent};
use super::wal::is_name_of_log;

const LOG: &str = "log";
pub(super) const STATE: &str = "state";

/// Returns the directory of the log, which need not be there yet.
pub(super) fn log_path(directory: &Path) -> Result<PathBuf, StoreError> {
    let path = directory.join(LOG);
    match fs::read_link(&path) {
        Ok(target) => Ok(directory.join(target)),
        // Not a link, or nothing.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => {
            Ok(path)
        }
        Err(error) => Err(StoreError::io("read the link", &path, error)),
    }
}

/// Has the log of a data directory be in `log_dir`, in a directory `log` that the link leads to. Both directories
/// are made if they are missing.
///
/// # Errors
/// [`StoreError::Foreign`] if the log is elsewhere already, or another replica's may be there; the message says how
/// to move a log. [`StoreError::Io`].
pub fn place_log(directory: &Path, log_dir: &Path) -> Result<(), StoreError> {
    for path in [directory, log_dir] {
        fs::create_dir_all(path).map_err(|error| StoreError::io("create", path, error))?;
    }
    let real =
        |path: &Path| fs::canonicalize(path).map_err(|error| StoreError::io("find", path, error));
    let wanted = real(log_dir)?.join(LOG);
    let link = directory.join(LOG);
    if wanted == real(directory)?.join(LOG) {
        return Ok(());
    }
    let foreign = |path: &Path, reason| StoreError::Foreign { path: path.to_owned(), reason };
    if fs::symlink_metadata(&link).is_ok() {
        let placed = log_path(directory)?;
        let is_there = match (fs::canonicalize(&placed), fs::canonicalize(&wanted)) {
            (Ok(placed), Ok(wanted)) => placed == wanted,
            _ => placed == wanted,
        };
        if is_there {
            return Ok(());
        }
        let reason = format!(
            "is where the log of {} is, but log_dir names {}: set log_dir to the directory above \
             the log, or move the log there while the replica is stopped (mv {} {}) and remove the \
             link {}, if it is one",
            directory.display(),
            log_dir.display(),
            placed.display(),
            log_dir.display(),
            link.display(),
        );
        return Err(foreign(&placed, reason));
    }
    let has_log = fs::read_dir(&wanted).is_ok_and(|mut entries| entries.next().is_some());
    match (has_state(directory), has_log) {
        // The missing half is told when the directory is opened.
        (true, false) => return Ok(()),
        (false, true) => {
            let reason = format!(
                "is not empty, and {} has no state that belongs to it: give each replica a log_dir \
                 of its own, or remove what an earlier one has left",
                directory.display()
            );
            return Err(foreign(&wanted, reason));
        }
        // A log was moved there, or there is neither.
        _ => {}
    }
    std::os::unix::fs::symlink(&wanted, &link)
        .map_err(|error| StoreError::io("make the link", &link, error))?;
    sync_directory(directory)?;
    sync_parent(&wanted)
}

/// True if the directory has the state of a replica.
pub fn has_state(directory: &Path) -> bool {
    directory.join(STATE).exists()
}

/// Checks that the directory of a log has nothing that is not a log's.
pub(super) fn refuse_others(path: &Path) -> Result<(), StoreError> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| StoreError::io("list", path, error))?,
    };
    for entry in entries {
        let name = entry.map_err(|error| StoreError::io("list", path, error))?.file_name();
        if !is_name_of_log(&name.to_string_lossy()) {
            let reason = format!(
                "has {}, which is not a log's: give the replica a directory of its own",
                name.to_string_lossy()
            );
            return Err(StoreError::Foreign { path: path.to_owned(), reason });
        }
    }
    Ok(())
}
