//! The files below the paths of a job, in a fixed order, from any place on.
//!
//! Always holds: a page of each directory on the way is held, however many files there are; every file comes
//! with the place behind it, and a walk that begins there finds all that follows and nothing before. A
//! directory that is one above it (by a symbolic link) is not entered; where its source cannot say which it
//! is, the depth is bounded. What cannot be listed is reported, and the walk goes on beside it.

use std::collections::VecDeque;
use std::sync::Arc;

use millrace_proto::message::{Entry, Kind};

use crate::cluster::job::{Cursor, JobSpec, Level, NamedFailure};

/// Deepest directory that is listed. Derived: each level adds a name to the place that is recorded of a job, which
/// stays well within a node of coordination.
const DEPTH_MAX: usize = 512;

/// A page of a directory.
#[derive(Debug, Default)]
pub(super) struct TreePage {
    /// What each entry is sorted by, and the entry, or why it cannot be loaded.
    pub(super) entries: Vec<(String, TreeEntry)>,
    /// What the next page follows; `None` after the last.
    pub(super) next: Option<String>,
    /// Which directory it is, whatever path led to it; `None` where there are no symbolic links.
    pub(super) directory: Option<u64>,
}

/// An entry of a directory, or why it cannot be loaded.
pub(super) type TreeEntry = Result<Entry, NamedFailure>;

/// Where a walk looks.
pub(super) trait Tree {
    /// Returns what a path of the job is, when its turn comes; else why it cannot be loaded.
    fn enter(&self, path: &str) -> impl Future<Output = Result<Entry, String>> + Send;
    /// Returns the entries of a directory that follow `after`, the first ones if that is empty.
    fn list(
        &self,
        path: &str,
        after: &str,
    ) -> impl Future<Output = Result<TreePage, String>> + Send;
}

/// What a walk comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum WalkStep {
    File { path: String, entry: Entry },
    Failed(NamedFailure),
    Circle,
}

/// A walk in progress.
pub(super) struct Walk<T> {
    tree: T,
    spec: Arc<JobSpec>,
    paths_done: usize,
    places: Vec<Place>,
}

/// A directory that the walk is in.
struct Place {
    level: Level,
    path: String,
    /// Entries of the page that were not looked at yet.
    rest: VecDeque<(String, TreeEntry)>,
    /// What is known of the page that follows them.
    next: NextPage,
}

/// The page of a directory that follows those that were listed.
enum NextPage {
    /// It begins after this.
    After(String),
    /// The last page has come.
    End,
}

impl<T: Tree> Walk<T> {
    /// Goes on with a walk below the paths of a job at a place.
    pub(super) fn new(tree: T, spec: Arc<JobSpec>, cursor: &Cursor) -> Walk<T> {
        let mut path = String::new();
        let places = cursor.levels.iter().map(|level| {
            path = join(&path, &level.name);
            Place::new(level.clone(), path.clone())
        });
        let places = places.collect();
        Walk { tree, spec, paths_done: cursor.paths_done, places }
    }

    /// Returns what comes next, and the place behind it; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<(WalkStep, Cursor)> {
        loop {
            let step = match self.places.last_mut() {
                None if self.paths_done >= self.spec.paths.len() => return None,
                None => self.enter_path().await,
                Some(place) => match place.rest.pop_front() {
                    Some((token, listed)) => {
                        place.level.after = token;
                        match listed {
                            Ok(entry) => self.enter_entry(entry),
                            Err(failure) => Some(WalkStep::Failed(failure)),
                        }
                    }
                    None => self.list_page().await,
                },
            };
            if let Some(step) = step {
                return Some((step, self.cursor()));
            }
        }
    }

    /// Begins with the next path of the job.
    async fn enter_path(&mut self) -> Option<WalkStep> {
        let path = self.spec.paths[self.paths_done].clone();
        let reason = match self.tree.enter(&path).await {
            Ok(entry) if entry.kind == Kind::File => {
                self.paths_done += 1;
                return Some(WalkStep::File { path, entry });
            }
            Ok(_) if self.spec.recursive => {
                let level = Level { name: path.clone(), ..Level::default() };
                self.places.push(Place::new(level, path));
                return None;
            }
            Ok(_) => "a directory; load it with -r for all files below it".to_owned(),
            Err(reason) => reason,
        };
        self.paths_done += 1;
        Some(WalkStep::Failed(NamedFailure { path, reason }))
    }

    /// Takes an entry of the directory that the walk is in.
    fn enter_entry(&mut self, entry: Entry) -> Option<WalkStep> {
        let path = join(&self.places.last()?.path, &entry.name);
        if entry.kind == Kind::File {
            return Some(WalkStep::File { path, entry });
        }
        if self.places.len() >= DEPTH_MAX {
            let reason = format!(
                "it lies more than {DEPTH_MAX} levels of directories below the path that was named; name one further \
                 down"
            );
            return Some(WalkStep::Failed(NamedFailure { path, reason }));
        }
        let level = Level { name: entry.name, ..Level::default() };
        self.places.push(Place::new(level, path));
        None
    }

    /// Lists the next page of the directory that the walk is in, or leaves it.
    async fn list_page(&mut self) -> Option<WalkStep> {
        let place = self.places.last_mut()?;
        let NextPage::After(after) = std::mem::replace(&mut place.next, NextPage::End) else {
            self.leave();
            return None;
        };
        let page = match self.tree.list(&place.path, &after).await {
            Ok(page) if page.next.as_ref() == Some(&after) => {
                Err("its source lists the same page again and again".to_owned())
            }
            page => page,
        };
        let TreePage { entries, next, directory } = match page {
            Ok(page) => page,
            Err(reason) => {
                let path = place.path.clone();
                self.leave();
                return Some(WalkStep::Failed(NamedFailure { path, reason }));
            }
        };
        if after.is_empty() {
            place.level.number = directory;
            let (_, above) = self.places.split_last()?;
            if directory.is_some() && above.iter().any(|above| above.level.number == directory) {
                self.leave();
                return Some(WalkStep::Circle);
            }
        }
        let place = self.places.last_mut()?;
        // A page without entries still leads on.
        place.level.after = if entries.is_empty() { next.clone().unwrap_or(after) } else { after };
        place.rest = entries.into();
        place.next = next.map_or(NextPage::End, NextPage::After);
        None
    }

    fn leave(&mut self) {
        self.places.pop();
        if self.places.is_empty() {
            self.paths_done += 1;
        }
    }

    fn cursor(&self) -> Cursor {
        let levels = self.places.iter().map(|place| place.level.clone()).collect();
        Cursor { paths_done: self.paths_done, levels }
    }
}

impl Place {
    fn new(level: Level, path: String) -> Place {
        let next = NextPage::After(level.after.clone());
        Place { level, path, rest: VecDeque::new(), next }
    }
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use futures_util::FutureExt;
    use millrace_proto::FileId;

    use super::*;

    /// Files by their paths, listed in pages of a few entries, and directories that cannot be listed.
    #[derive(Default)]
    struct Made {
        files: BTreeMap<String, u64>,
        refused: BTreeSet<String>,
        /// Which directories some of them are.
        numbers: BTreeMap<String, u64>,
        page_max: usize,
    }

    impl Made {
        fn new(files: &[&str]) -> Made {
            let files = files.iter().zip(1..).map(|(path, version)| ((*path).to_owned(), version));
            Made { files: files.collect(), page_max: 2, ..Made::default() }
        }

        fn entry(name: &str, version: Option<u64>) -> Entry {
            Entry {
                name: name.to_owned(),
                kind: if version.is_some() { Kind::File } else { Kind::Directory },
                id: FileId(version.unwrap_or(0).into()),
                version: version.unwrap_or(0),
                length: version.unwrap_or(0),
                modified_ms: 0,
            }
        }
    }

    impl Tree for &Made {
        async fn enter(&self, path: &str) -> Result<Entry, String> {
            let below = join(path, "");
            match self.files.get(path) {
                Some(version) => Ok(Made::entry(path, Some(*version))),
                None if self.files.keys().any(|file| file.starts_with(&below)) => {
                    Ok(Made::entry(path, None))
                }
                None => Err("not found".to_owned()),
            }
        }

        async fn list(&self, path: &str, after: &str) -> Result<TreePage, String> {
            if self.refused.contains(path) {
                return Err("permission denied".to_owned());
            }
            let below = join(path, "");
            let mut found = BTreeMap::new();
            for (file, version) in &self.files {
                let Some(rest) = file.strip_prefix(&below) else { continue };
                let name = rest.split('/').next().unwrap_or(rest);
                // As in an object store.
                let is_file = name == rest;
                let token = if is_file { name.to_owned() } else { format!("{name}/") };
                let entry = Made::entry(name, is_file.then_some(*version));
                let refusal = || NamedFailure { path: file.clone(), reason: "too long".to_owned() };
                let listed = if name.starts_with("odd") { Err(refusal()) } else { Ok(entry) };
                found.insert(token, listed);
            }
            let mut rest = found.into_iter().filter(|(token, _)| token.as_str() > after);
            let entries: Vec<_> = rest.by_ref().take(self.page_max).collect();
            let last = entries.last().map(|(token, _)| token.clone());
            let next = if rest.next().is_some() { last } else { None };
            Ok(TreePage { entries, next, directory: self.numbers.get(path).copied() })
        }
    }

    fn spec(paths: &[&str]) -> JobSpec {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        JobSpec { id: 1, paths, recursive: true, ..JobSpec::default() }
    }

    /// Returns what a walk from a place on comes to, with the places behind.
    fn walk(tree: &Made, spec: &JobSpec, from: &Cursor) -> Vec<(String, Cursor)> {
        let mut walk = Walk::new(tree, Arc::new(spec.clone()), from);
        let mut found = Vec::new();
        while let Some((step, cursor)) = walk.next().now_or_never().expect("nothing waits") {
            let text = match step {
                WalkStep::File { path, .. } => path,
                WalkStep::Failed(failure) => format!("{}: {}", failure.path, failure.reason),
                WalkStep::Circle => "a circle".to_owned(),
            };
            found.push((text, cursor));
        }
        found
    }

    fn texts(found: &[(String, Cursor)]) -> Vec<&str> {
        found.iter().map(|(text, _)| text.as_str()).collect()
    }

    #[test]
    fn every_file_below_the_paths_is_found_once_and_in_order() {
        let tree =
            Made::new(&["x/a", "x/b/1", "x/b/2", "x/b/3", "x/b/d/e/1", "x/b.z", "x/c", "y", "z/1"]);
        let found = walk(&tree, &spec(&["x", "y", "none"]), &Cursor::default());
        let expect =
            ["x/a", "x/b.z", "x/b/1", "x/b/2", "x/b/3", "x/b/d/e/1", "x/c", "y", "none: not found"];
        assert_eq!(texts(&found), expect);
        let root = walk(&tree, &spec(&[""]), &Cursor::default());
        assert_eq!(root.len(), 9, "the root has no slash");
    }

    #[test]
    fn a_walk_goes_on_from_each_place_as_if_it_had_never_stopped() {
        let mut tree =
            Made::new(&["x/a", "x/b/1", "x/b/2", "x/b/3", "x/b/d/1", "x/b.z", "x/odd", "y"]);
        tree.refused.insert("x/b/d".to_owned());
        let spec = spec(&["x", "y", "x/b"]);
        let whole = walk(&tree, &spec, &Cursor::default());
        assert_eq!(whole.len(), 12);
        assert!(texts(&whole).contains(&"x/odd: too long"), "{whole:?}");
        for (at, (_, cursor)) in whole.iter().enumerate() {
            // A place is kept as text.
            let text = serde_json::to_string(cursor).unwrap();
            let cursor = serde_json::from_str(&text).unwrap();
            assert_eq!(walk(&tree, &spec, &cursor), whole[at + 1..], "from {text}");
        }
    }

    #[test]
    fn what_is_removed_meanwhile_is_no_end() {
        let tree = Made::new(&["x/a", "x/b/1", "x/b/2", "x/c"]);
        let spec = spec(&["x"]);
        let whole = walk(&tree, &spec, &Cursor::default());
        let smaller = Made::new(&["x/a", "x/c"]);
        assert_eq!(texts(&walk(&smaller, &spec, &whole[1].1)), ["x/c"], "after x/b/1");
        assert_eq!(texts(&walk(&Made::new(&["y"]), &spec, &whole[1].1)), Vec::<&str>::new());
    }

    #[test]
    fn directories_are_left_out_without_recursion_and_told_where_they_cannot_be_listed() {
        let mut tree = Made::new(&["x/a", "x/b/1", "x/c"]);
        let flat = JobSpec { recursive: false, ..spec(&["x", "x/a"]) };
        let found = walk(&tree, &flat, &Cursor::default());
        assert!(texts(&found)[0].starts_with("x: a directory"), "{found:?}");
        assert_eq!(texts(&found)[1..], ["x/a"]);
        tree.refused.insert("x/b".to_owned());
        let found = walk(&tree, &spec(&["x"]), &Cursor::default());
        assert_eq!(texts(&found), ["x/a", "x/b: permission denied", "x/c"]);
    }

    #[test]
    fn a_directory_that_is_one_above_it_is_not_entered() {
        let mut tree = Made::new(&["x/a", "x/x/a", "x/x/x/a"]);
        tree.numbers = ["x", "x/x", "x/x/x"].map(|path| (path.to_owned(), 5)).into();
        let found = walk(&tree, &spec(&["x"]), &Cursor::default());
        assert_eq!(texts(&found), ["x/a", "a circle"]);
        // Also if the walk began between the two.
        assert_eq!(texts(&walk(&tree, &spec(&["x"]), &found[0].1)), ["a circle"]);
    }

    #[test]
    fn a_copy_of_a_directory_in_it_is_entered() {
        // Equal names, versions and lengths, as copies of objects and hard links have them.
        let mut tree = Made::new(&["x/a", "x/b", "x/zcopy/a", "x/zcopy/b"]);
        tree.files.values_mut().for_each(|version| *version = 5);
        let all = ["x/a", "x/b", "x/zcopy/a", "x/zcopy/b"];
        assert_eq!(texts(&walk(&tree, &spec(&["x"]), &Cursor::default())), all);
        tree.numbers = [("x".to_owned(), 1), ("x/zcopy".to_owned(), 2)].into();
        assert_eq!(texts(&walk(&tree, &spec(&["x"]), &Cursor::default())), all);
    }

    #[test]
    fn a_tree_is_entered_to_a_bounded_depth() {
        let deep = vec!["d"; 600].join("/");
        let tree = Made::new(&[&deep]);
        let found = walk(&tree, &spec(&["d"]), &Cursor::default());
        assert_eq!(found.len(), 1);
        assert!(found[0].0.contains("levels of directories"), "{found:?}");
    }
}
