//! Listings: pages of directories, one after the other, as one stream of objects.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use millrace_client::{Client, Entry, File, Kind, Status};

use super::api::{Error, Result};
use super::failure;

/// Directories below each other. Guessed: more than any tree of data has.
const DEPTH_MAX: usize = 256;

/// A directory that is being listed.
struct Level {
    path: Arc<str>,
    entries: VecDeque<Entry>,
    /// Token of the next page; None before the first.
    token: Option<String>,
    is_over: bool,
    /// What is in it, if that came as one page and has a file.
    print: Option<u64>,
}

impl Level {
    fn new(path: Arc<str>) -> Level {
        Level { path, entries: VecDeque::new(), token: None, is_over: false, print: None }
    }

    /// Returns the next entry. A directory that is not there, or is a file, has none.
    async fn next(&mut self, client: &Client) -> Result<Option<Entry>> {
        loop {
            if let Some(entry) = self.entries.pop_front() {
                return Ok(Some(entry));
            }
            if self.is_over {
                return Ok(None);
            }
            match client.list_page(&self.path, self.token.as_deref(), 0).await {
                Ok((entries, next)) => {
                    if self.token.is_none() && next.is_none() {
                        self.print = print_of(&entries);
                    }
                    self.entries = entries.into();
                    self.is_over = next.is_none();
                    self.token = next;
                }
                Err(error) => {
                    let status = error.status();
                    if matches!(status, Some(Status::NotFound | Status::WrongKind)) {
                        return Ok(None);
                    }
                    return Err(failure::error(&self.path, error));
                }
            }
        }
    }
}

/// Returns a hash of what is in a directory. Two that agree in it, one below the other, are one directory: the
/// lower one would have to contain itself. Without a file they may agree by chance.
fn print_of(entries: &[Entry]) -> Option<u64> {
    if !entries.iter().any(|entry| entry.kind == Kind::File) {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    for Entry { name, kind, id: _, version, length, modified_ms } in entries {
        (name, *kind == Kind::File, version, length, modified_ms).hash(&mut hasher);
    }
    Some(hasher.finish())
}

/// Returns all files below a directory in the order of their keys. One page of each directory between the
/// top and where it is lies in memory.
pub(super) fn files(client: Client, directory: Arc<str>) -> BoxStream<'static, Result<File>> {
    let levels = vec![Level::new(directory)];
    let files = stream::try_unfold((client, levels), |(client, mut levels)| async move {
        while let Some((level, above)) = levels.split_last_mut() {
            let Some(entry) = level.next(&client).await? else {
                levels.pop();
                continue;
            };
            if level.print.is_some() && above.iter().any(|other| other.print == level.print) {
                // A link leads back to a directory above.
                levels.pop();
                continue;
            }
            let file = client.file(&level.path, &entry);
            match file.kind {
                Kind::File => return Ok(Some((file, (client, levels)))),
                Kind::Directory if levels.len() >= DEPTH_MAX => {
                    let text = format!("'{}' is deeper than {DEPTH_MAX} directories", file.path);
                    return Err(failure::refused(text));
                }
                Kind::Directory => levels.push(Level::new(file.path)),
            }
        }
        Ok::<_, Error>(None)
    });
    files.boxed()
}

/// Returns what is in one directory.
pub(super) fn entries(client: Client, directory: Arc<str>) -> BoxStream<'static, Result<File>> {
    let level = Level::new(directory);
    let entries = stream::try_unfold((client, level), |(client, mut level)| async move {
        let entry = level.next(&client).await?;
        Ok(entry.map(|entry| (client.file(&level.path, &entry), (client, level))))
    });
    entries.into_stream().boxed()
}
