//! A tree as the node lists it, page by page, parents first.
//!
//! Owns the path syntax of the command line and the check of names that come from the network. A name
//! that could lead out of a directory ends the walk, so that nothing built on it writes where it should
//! not. The walk holds one page of each directory on its way, never the tree and never a large directory.
//! A node follows symbolic links that stay in its root, so a tree may have circles. A directory that is one
//! above it again is not entered. Where no file tells directories apart the walk ends where a node refuses the
//! path: Linux follows at most 40 symbolic links in one, and no path is longer than 4096 bytes.

use std::collections::VecDeque;

use millrace_client::{Client, Entry, File, Kind, ListedPage, circle};

use crate::failure::{Failure, is_about_path, shown};
use crate::output;

/// A walk in progress.
pub(crate) struct Walk<'a> {
    client: &'a Client,
    /// The directory to begin with, before it was entered.
    start: Option<String>,
    /// The directories on the way to where the walk is.
    levels: Vec<Level>,
    /// What the page that was listed last leaves out, until it was told.
    left_out: Option<Step>,
}

/// A directory that the walk is in.
struct Level {
    path: String,
    /// Directories of the last page that were not entered yet.
    directories: std::vec::IntoIter<String>,
    /// Where its next page begins.
    token: Option<String>,
    /// Hash of its first page, `None` if there is no file in it.
    print: Option<u64>,
}

/// What a step of a walk found.
#[derive(Debug)]
pub(crate) enum Step {
    /// A page of a directory, with its path. Directories in it are entered before its next page.
    Directory { path: String, entries: Vec<Entry> },
    /// A directory that is one of those above it: a symbolic link that leads in a circle.
    Circle,
    /// A directory that could not be listed, or not to its end, and why. The walk goes on beside it.
    Unreadable { path: String, reason: String },
    /// Names that the node leaves out of the directory, how many, and one of them with the reason.
    LeftOut { path: String, count: u64, example: String },
}

impl<'a> Walk<'a> {
    /// Begins a walk at the directory `path`.
    pub(crate) fn new(client: &'a Client, path: &str) -> Walk<'a> {
        Walk { client, start: Some(path.to_owned()), levels: Vec::new(), left_out: None }
    }

    /// Lists the next page, `None` after the last.
    ///
    /// # Errors
    /// If the node is lost, or names something that is not a name.
    pub(crate) async fn next(&mut self) -> Result<Option<Step>, Failure> {
        if let Some(start) = self.start.take() {
            return self.list(start, None, None).await.map(Some);
        }
        if let Some(step) = self.left_out.take() {
            return Ok(Some(step));
        }
        while let Some(level) = self.levels.last_mut() {
            if let Some(name) = level.directories.next() {
                let path = join(&level.path, &name);
                return self.list(path, None, None).await.map(Some);
            }
            let Level { path, token, print, .. } = self.levels.pop().expect("there is one");
            if token.is_some() {
                return self.list(path, token, print).await.map(Some);
            }
        }
        Ok(None)
    }

    /// Lists the next page that can be listed; names the others on stderr and counts them.
    ///
    /// # Errors
    /// As [`Walk::next`].
    pub(crate) async fn next_page(
        &mut self,
        failed_count: &mut u64,
    ) -> Result<Option<(String, Vec<Entry>)>, Failure> {
        while let Some(step) = self.next().await? {
            match step {
                Step::Directory { path, entries } => return Ok(Some((path, entries))),
                // It is listed as a name of its parent, and its content was listed before.
                Step::Circle => (),
                Step::Unreadable { path, reason } => {
                    output::note(&format!("millrace: {}: {reason}", shown(&path)));
                    *failed_count += 1;
                }
                Step::LeftOut { path, count, example } => {
                    output::note(&format!("millrace: {}", left_out(&path, count, &example)));
                    *failed_count += count;
                }
            }
        }
        Ok(None)
    }

    /// Lists a page of a directory, which is then the one that the walk is in. `print` is that of its
    /// first page, if this is not it.
    async fn list(
        &mut self,
        path: String,
        token: Option<String>,
        print: Option<u64>,
    ) -> Result<Step, Failure> {
        let page = match self.client.listed_page(&path, token.as_deref(), 0).await {
            Ok(page) => page,
            Err(error) if is_about_path(&error) => {
                let reason = error.to_string();
                return Ok(Step::Unreadable { path, reason });
            }
            Err(error) => return Err(Failure::at_path(&path, &error)),
        };
        let ListedPage { entries, next, left_out_count, left_out_example, .. } = page;
        if next.is_some() && next == token {
            let message = "the node lists the same page again; update the node";
            return Err(Failure::new(format!("{}: {message}", shown(&path))));
        }
        check_names(&path, &entries)?;
        let is_first = token.is_none();
        let print = if is_first { circle::page_hash(&entries) } else { print };
        let alike = self.levels.iter().filter(|above| is_first && above.print == print);
        for above in alike.filter(|above| above.print.is_some()) {
            let is_circle = self.client.is_circle(&above.path, &path).await;
            if is_circle.map_err(|error| Failure::at_path(&path, &error))? {
                return Ok(Step::Circle);
            }
        }
        let directories = entries.iter().filter(|entry| entry.kind == Kind::Directory);
        let directories: Vec<String> = directories.map(|entry| entry.name.clone()).collect();
        let directories = directories.into_iter();
        self.levels.push(Level { path: path.clone(), directories, token: next, print });
        if left_out_count > 0 {
            let (path, count, example) = (path.clone(), left_out_count, left_out_example);
            self.left_out = Some(Step::LeftOut { path, count, example });
        }
        Ok(Step::Directory { path, entries })
    }
}

/// Returns what people read of names that a node leaves out of a directory.
pub(crate) fn left_out(path: &str, count: u64, example: &str) -> String {
    let names = output::counted(count, "name");
    format!("{}: {names} cannot be served, such as {example}", shown(path))
}

/// Returns the failure of a verb that could not list some paths, if there were any.
///
/// # Errors
/// With their number.
pub(crate) fn judge_unlisted(failed_count: u64) -> Result<(), Failure> {
    match failed_count {
        0 => Ok(()),
        count => {
            let failed = output::counted(count, "path");
            Err(Failure::new(format!("{failed} could not be listed")))
        }
    }
}

/// What [`Files`] found.
#[derive(Debug)]
pub(crate) enum Item {
    File(File),
    /// A directory that could not be listed to its end, and why.
    Unreadable {
        path: String,
        reason: String,
    },
    /// Names that the node leaves out of a directory, as in [`Step::LeftOut`].
    LeftOut {
        path: String,
        count: u64,
        example: String,
    },
    /// A directory that was not entered, because it leads in a circle.
    Circle,
}

/// The files below a path, one after the other. A page of each directory on the way is held, however
/// many files there are.
pub(crate) struct Files<'a> {
    client: &'a Client,
    walk: Option<Walk<'a>>,
    found: VecDeque<File>,
}

impl<'a> Files<'a> {
    /// Finds one file, or with `recursive` all files below a directory.
    ///
    /// # Errors
    /// If the path is not there, is a directory without `recursive`, or the node is lost.
    pub(crate) async fn find(
        client: &'a Client,
        path: &str,
        recursive: bool,
    ) -> Result<Files<'a>, Failure> {
        let top = client.stat(path).await.map_err(|error| Failure::at_path(path, &error))?;
        Files::of(client, top, recursive)
    }

    /// As [`Files::find`], of what was looked up already.
    ///
    /// # Errors
    /// If it is a directory without `recursive`.
    pub(crate) fn of(client: &'a Client, top: File, recursive: bool) -> Result<Files<'a>, Failure> {
        if top.kind == Kind::File {
            return Ok(Files { client, walk: None, found: VecDeque::from([top]) });
        }
        if !recursive {
            let path = shown(&top.path);
            return Err(Failure::new(format!(
                "{path} is a directory; add -r for all files below it"
            )));
        }
        let walk = Some(Walk::new(client, &top.path));
        Ok(Files { client, walk, found: VecDeque::new() })
    }

    /// True if the path is a directory.
    pub(crate) fn is_tree(&self) -> bool {
        self.walk.is_some()
    }

    /// Returns the next one, `None` after the last.
    ///
    /// # Errors
    /// As [`Walk::next`].
    pub(crate) async fn next(&mut self) -> Result<Option<Item>, Failure> {
        loop {
            if let Some(file) = self.found.pop_front() {
                return Ok(Some(Item::File(file)));
            }
            let Some(walk) = &mut self.walk else { return Ok(None) };
            match walk.next().await? {
                None => return Ok(None),
                Some(Step::Directory { path, entries }) => {
                    let files = entries.iter().filter(|entry| entry.kind == Kind::File);
                    self.found.extend(files.map(|entry| self.client.file(&path, entry)));
                }
                Some(Step::Circle) => return Ok(Some(Item::Circle)),
                Some(Step::Unreadable { path, reason }) => {
                    return Ok(Some(Item::Unreadable { path, reason }));
                }
                Some(Step::LeftOut { path, count, example }) => {
                    return Ok(Some(Item::LeftOut { path, count, example }));
                }
            }
        }
    }
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
    fn root_adds_no_slash() {
        assert_eq!(join("", "a"), "a");
        assert_eq!(join("a", "b"), "a/b");
    }
}
