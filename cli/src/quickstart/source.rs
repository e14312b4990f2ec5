//! Which directory is read, and the files in it as the node lists them.
//!
//! Owns the choice where nobody names a directory: it must hold something, and the report says
//! which it is and why. Always holds: a directory is read once, even if symbolic links lead to it
//! again.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use millrace_client::{Client, Entry, Kind};

use super::pass::{Sample, State};
use crate::failure::Failure;
use crate::walk::{Step, Walk};

/// The directory that is read where it exists: text of many small files, on most systems.
const USUAL_DIRECTORY: &str = "/usr/share/doc";
/// Most entries that are looked at to find out whether a directory holds a file.
const LOOKED_AT_MAX: usize = 10_000;

/// The directory to read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) directory: PathBuf,
    /// Why this one, if nobody named it.
    pub(super) reason: Option<&'static str>,
}

/// Takes the directory that was named, or one that is sure to hold something.
///
/// # Errors
/// If it is not there, or no directory.
pub(super) fn choose(named: Option<&Path>) -> Result<Choice, Failure> {
    if let Some(named) = named {
        check(named)?;
        return Ok(Choice { directory: named.to_owned(), reason: None });
    }
    let usual = Path::new(USUAL_DIRECTORY);
    if holds_file(usual) {
        let reason = Some("no DIR was named, and most systems have this one");
        return Ok(Choice { directory: usual.to_owned(), reason });
    }
    let program = std::env::current_exe().ok();
    match program.as_deref().and_then(Path::parent) {
        Some(directory) if holds_file(directory) => Ok(Choice {
            directory: directory.to_owned(),
            reason: Some("no DIR was named, and here lies at least this program"),
        }),
        _ => Err(Failure::new("no directory was named, and none is sure to hold files")
            .with_hint("name one: millrace quickstart DIR")),
    }
}

fn check(directory: &Path) -> Result<(), Failure> {
    let shown = directory.display();
    let advice = "name a directory that exists and may be read: millrace quickstart DIR";
    match std::fs::read_dir(directory) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(Failure::new(format!("cannot read DIR {shown}: {error}")).with_hint(advice))
        }
    }
}

/// Whether a regular file with content lies in the directory or below, symbolic links left aside.
fn holds_file(directory: &Path) -> bool {
    let mut pending = vec![directory.to_owned()];
    let mut left = LOOKED_AT_MAX;
    while let Some(directory) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(directory) else {
            continue;
        };
        for entry in entries.flatten() {
            if left == 0 {
                return false;
            }
            left -= 1;
            match entry.metadata() {
                Ok(metadata) if metadata.is_file() && metadata.len() > 0 => return true,
                Ok(metadata) if metadata.is_dir() => pending.push(entry.path()),
                _ => {}
            }
        }
    }
    false
}

/// What the node lists.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) samples: Vec<Sample>,
    /// Directories that could not be listed, with the reason.
    pub(super) unreadable: Vec<(String, String)>,
    /// Entries that the source has and the node does not list: links that lead out of the directory
    /// or nowhere, sockets and the like, names that are not UTF-8.
    pub(super) skipped_count: u64,
}

/// Lists everything below the directory through the node.
///
/// # Errors
/// If the node is lost.
pub(super) async fn walk(client: &Client, root: &Path) -> Result<Found, Failure> {
    let mut found = Found::default();
    let mut seen = HashSet::new();
    seen.extend(identity(root));
    let mut walk = Walk::new(client, "");
    let mut enter = |path: &str| match identity(&root.join(path)) {
        Some(identity) => seen.insert(identity),
        None => true,
    };
    while let Some(step) = walk.next(&mut enter).await? {
        match step {
            Step::Directory { path, entries } => {
                found.skipped_count += skipped_count(&root.join(&path), &entries);
                let files = entries.iter().filter(|entry| entry.kind == Kind::File);
                found.samples.extend(
                    files.map(|entry| Sample {
                        file: client.file(&path, entry),
                        state: State::Good,
                    }),
                );
            }
            // Not met: `enter` knows better.
            Step::Circle => {}
            Step::Unreadable { path, reason } => found.unreadable.push((path, reason)),
        }
    }
    Ok(found)
}

/// Device and inode: the same for a directory on whatever path it is reached.
fn identity(directory: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(directory).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// How many entries of a directory are not listed.
fn skipped_count(directory: &Path, listed: &[Entry]) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let names: HashSet<&[u8]> = listed.iter().map(|entry| entry.name.as_bytes()).collect();
    let is_skipped =
        |entry: &std::fs::DirEntry| !names.contains(entry.file_name().as_encoded_bytes());
    entries.flatten().filter(is_skipped).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_directory_is_named_with_advice() {
        let failure = choose(Some(Path::new("/no/such/directory"))).unwrap_err();
        let Failure::Told { text, hint, code: 1 } = failure else {
            panic!("{failure:?}");
        };
        assert!(text.contains("/no/such/directory"), "{text}");
        assert!(hint.is_some_and(|hint| hint.contains("quickstart DIR")));
    }

    #[test]
    fn directory_with_nothing_to_read_is_not_chosen() {
        let root = tempfile::tempdir().unwrap();
        assert!(!holds_file(root.path()));
        std::fs::write(root.path().join("empty"), "").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("link")).unwrap();
        assert!(!holds_file(root.path()));
        std::fs::create_dir(root.path().join("deep")).unwrap();
        std::fs::write(root.path().join("deep/file"), "x").unwrap();
        assert!(holds_file(root.path()));
    }

    #[test]
    fn some_directory_is_always_found() {
        let choice = choose(None).unwrap();
        assert!(choice.reason.is_some());
        assert!(holds_file(&choice.directory));
    }
}
