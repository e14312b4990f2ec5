//! A tree as the node lists it, directory by directory, parents first and names in order.
//!
//! Owns the path syntax of the command line and the check of names that come from the network. A name
//! that could lead out of a directory ends the walk, so that nothing built on it writes where it should
//! not. The walk holds one directory and the names of those still to do, never the tree. A node follows
//! symbolic links that stay in its root, so a tree may have circles. A directory that lists exactly what
//! one above it lists is that one again, and is not entered; where no file tells directories apart, the
//! depth is bounded.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use millrace_client::{Client, Entry, File, Kind};

use crate::failure::{Failure, is_about_path, shown};

/// Deepest directory that is listed, counted from where the walk begins. Derived: Linux follows at
/// most 40 symbolic links in a path, and honest trees are less deep than the rest.
const DEPTH_MAX: usize = 64;

/// A walk in progress.
pub(crate) struct Walk<'a> {
    client: &'a Client,
    pending: Vec<Pending>,
}

struct Pending {
    path: String,
    above: Option<Arc<Above>>,
}

/// A directory on the way to another one.
struct Above {
    /// Hash of its entries, `None` if there is no file among them.
    print: Option<u64>,
    depth: usize,
    above: Option<Arc<Above>>,
}

impl Above {
    fn has(&self, print: u64) -> bool {
        let mut next = Some(self);
        while let Some(above) = next {
            if above.print == Some(print) {
                return true;
            }
            next = above.above.as_deref();
        }
        false
    }
}

/// What a step of a walk found.
#[derive(Debug)]
pub(crate) enum Step {
    /// A directory, with its path and all its entries.
    Directory { path: String, entries: Vec<Entry> },
    /// A directory that is one of those above it: a symbolic link that leads in a circle.
    Circle,
    /// A directory that could not be listed, and why. The walk goes on beside it.
    Unreadable { path: String, reason: String },
}

impl<'a> Walk<'a> {
    /// Begins a walk at the directory `path`.
    pub(crate) fn new(client: &'a Client, path: &str) -> Walk<'a> {
        Walk { client, pending: vec![Pending { path: path.to_owned(), above: None }] }
    }

    /// Lists the next directory, `None` after the last.
    ///
    /// # Errors
    /// If the node is lost, or names something that is not a name.
    pub(crate) async fn next(&mut self) -> Result<Option<Step>, Failure> {
        let Some(Pending { path, above }) = self.pending.pop() else {
            return Ok(None);
        };
        let entries = match self.client.list(&path).await {
            Ok(entries) => entries,
            Err(error) if is_about_path(&error) => {
                let reason = error.to_string();
                return Ok(Some(Step::Unreadable { path, reason }));
            }
            Err(error) => return Err(Failure::at_path(&path, &error)),
        };
        check_names(&path, &entries)?;
        let print = print(&entries);
        if let (Some(print), Some(above)) = (print, &above)
            && above.has(print)
        {
            return Ok(Some(Step::Circle));
        }
        let depth = above.as_ref().map_or(0, |above| above.depth + 1);
        let here = Arc::new(Above { print, depth, above });
        let below = self.pending.len();
        for entry in &entries {
            if entry.kind == Kind::Directory {
                if depth >= DEPTH_MAX {
                    return Err(Failure::new(format!(
                        "{}: more than {DEPTH_MAX} levels of directories; \
                         look for a symbolic link that leads in a circle",
                        shown(&path)
                    )));
                }
                let path = join(&path, &entry.name);
                self.pending.push(Pending { path, above: Some(here.clone()) });
            }
        }
        // The last one pushed is the next one popped.
        self.pending[below..].reverse();
        Ok(Some(Step::Directory { path, entries }))
    }
}

/// The files below a path, and the directories among them that could not be listed.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Files, in the order of the walk.
    pub(crate) files: Vec<File>,
    /// Paths, each with the reason.
    pub(crate) unreadable: Vec<(String, String)>,
    /// Directories that were not entered, because they lead in a circle.
    pub(crate) circle_count: u64,
}

/// Finds one file, or with `recursive` all files below a directory.
///
/// # Errors
/// If the path is not there, is a directory without `recursive`, or the node is lost.
pub(crate) async fn find(client: &Client, path: &str, recursive: bool) -> Result<Found, Failure> {
    let at_path = |error| Failure::at_path(path, &error);
    let mut found = Found::default();
    let top = client.stat(path).await.map_err(at_path)?;
    if top.kind == Kind::File {
        found.files.push(top);
        return Ok(found);
    }
    if !recursive {
        let message = format!("{} is a directory; add -r for all files below it", shown(path));
        return Err(Failure::new(message));
    }
    let mut walk = Walk::new(client, path);
    while let Some(step) = walk.next().await? {
        match step {
            Step::Directory { path, entries } => {
                let files = entries.iter().filter(|entry| entry.kind == Kind::File);
                found.files.extend(files.map(|entry| client.file(&path, entry)));
            }
            Step::Circle => found.circle_count += 1,
            Step::Unreadable { path, reason } => found.unreadable.push((path, reason)),
        }
    }
    Ok(found)
}

/// Returns a path as a node wants it, from one that people write: `/a//b/`, `./a/b` and `a/b` are the
/// same.
pub(crate) fn clean(path: &str) -> String {
    let parts: Vec<&str> =
        path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    parts.join("/")
}

/// Returns the path of an entry of a directory.
pub(crate) fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

/// Returns a hash of the entries of a directory. Among others the inode is part of the version of a
/// file, so two directories that agree in it are one; directories alone could agree by chance.
fn print(entries: &[Entry]) -> Option<u64> {
    if !entries.iter().any(|entry| entry.kind == Kind::File) {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    for entry in entries {
        let is_file = entry.kind == Kind::File;
        (&entry.name, is_file, entry.version, entry.length, entry.modified_ms).hash(&mut hasher);
    }
    Some(hasher.finish())
}

fn check_names(path: &str, entries: &[Entry]) -> Result<(), Failure> {
    match entries.iter().find(|entry| !is_name(&entry.name)) {
        None => Ok(()),
        Some(entry) => Err(Failure::new(format!(
            "{}: the node lists {:?}, which is not a name; do not trust this node",
            shown(path),
            entry.name
        ))),
    }
}

/// True if this can be the name of something in a directory.
fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_people_become_paths_of_a_node() {
        let check = |path, expect: &str| assert_eq!(clean(path), expect);
        check("", "");
        check("/", "");
        check(".", "");
        check("/a//b/", "a/b");
        check("./a/./b", "a/b");
        check("../a", "../a");
        check("a b/ü", "a b/ü");
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", "a/b", "/", "a\0b"] {
            assert!(!is_name(name), "{name:?}");
        }
        for name in ["a", "...", ".hidden", "a\\b", "ü"] {
            assert!(is_name(name), "{name:?}");
        }
    }

    #[test]
    fn directories_are_told_apart_by_their_files() {
        let entry = |kind, version| Entry {
            name: "x".to_owned(),
            kind,
            id: millrace_client::FileId(1),
            version,
            length: 1,
            modified_ms: 1,
        };
        let one = print(&[entry(Kind::File, 7), entry(Kind::Directory, 0)]);
        let other = print(&[entry(Kind::File, 8), entry(Kind::Directory, 0)]);
        assert_eq!(print(&[entry(Kind::Directory, 0)]), None);
        let top = Arc::new(Above { print: one, depth: 0, above: None });
        let below = Above { print: None, depth: 1, above: Some(top) };
        assert!(one.is_some_and(|print| below.has(print)));
        assert!(other.is_some_and(|print| !below.has(print)));
    }

    #[test]
    fn root_adds_no_slash() {
        assert_eq!(join("", "a"), "a");
        assert_eq!(join("a", "b"), "a/b");
    }
}
