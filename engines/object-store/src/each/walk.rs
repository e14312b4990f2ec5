//! Listings: pages of directories, one after the other, as one stream of objects.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use millrace_client::{Client, Entry, File, Kind, Status, circle};

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
    /// Hash of its first page.
    print: Option<u64>,
    /// True if it was compared with those above it.
    is_compared: bool,
}

impl Level {
    fn new(path: Arc<str>) -> Level {
        Level {
            path,
            entries: VecDeque::new(),
            token: None,
            is_over: false,
            print: None,
            is_compared: false,
        }
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
                    if self.token.is_none() {
                        self.print = circle::page_hash(&entries);
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

impl Level {
    /// Returns whether it is one of those above it.
    async fn leads_back(&self, client: &Client, above: &[Level]) -> Result<bool> {
        let alike = above.iter().filter(|other| other.print.is_some() && other.print == self.print);
        for other in alike {
            let is_circle = client.is_circle(&other.path, &self.path).await;
            if is_circle.map_err(|error| failure::error(&self.path, error))? {
                return Ok(true);
            }
        }
        Ok(false)
    }
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
            if !std::mem::replace(&mut level.is_compared, true)
                && level.leads_back(&client, above).await?
            {
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
