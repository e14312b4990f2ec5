//! How much of a file is in the nodes' memory, as the verbs of `millrace fs` show it.
//!
//! A node of an earlier version cannot say it: then nothing is shown, and nothing fails.

use millrace_client::{Client, Entry, File, Kind, Status};

use crate::failure::{Failure, is_about_path};
use crate::{jobs, output};

/// Files that are asked about at once.
const FILES_AT_ONCE: usize = 32;

/// Returns how many bytes of a file are in memory; `None` if the node cannot say it.
///
/// # Errors
/// If the node is lost.
pub(super) async fn cached_bytes(client: &Client, file: &File) -> Result<Option<u64>, Failure> {
    match client.cached(file).await {
        Ok(share) => Ok(Some(share.byte_count)),
        Err(error) if error.status() == Some(Status::UnknownOp) || is_about_path(&error) => {
            Ok(None)
        }
        Err(error) => Err(Failure::at_path(&file.path, &error)),
    }
}

/// Returns the same of several files, in their order.
///
/// # Errors
/// As [`cached_bytes`].
pub(super) async fn cached_bytes_of_all(
    client: &Client,
    files: &[File],
) -> Result<Vec<Option<u64>>, Failure> {
    let mut all = vec![None; files.len()];
    let start = |(place, file): (usize, &File)| {
        let (client, file) = (client.clone(), file.clone());
        async move { (place, cached_bytes(&client, &file).await) }
    };
    let done = |(place, bytes): (usize, Result<Option<u64>, Failure>)| {
        all[place] = bytes?;
        Ok(())
    };
    jobs::for_each(files.iter().enumerate(), FILES_AT_ONCE, start, done).await?;
    Ok(all)
}

/// Returns the same of the entries of a page, `None` for a directory.
///
/// # Errors
/// As [`cached_bytes`].
pub(super) async fn cached_bytes_of_page(
    client: &Client,
    path: &str,
    entries: &[Entry],
) -> Result<Vec<Option<u64>>, Failure> {
    let is_file = |entry: &&Entry| entry.kind == Kind::File;
    let files = entries.iter().filter(is_file).map(|entry| client.file(path, entry));
    let bytes = cached_bytes_of_all(client, &files.collect::<Vec<_>>()).await?;
    let mut bytes = bytes.into_iter();
    let of_entry = |entry| if is_file(&entry) { bytes.next().flatten() } else { None };
    Ok(entries.iter().map(of_entry).collect())
}

/// Returns a share in percent, as a column shows it: `-` where it is not known.
pub(super) fn shown(cached: Option<u64>, length: u64) -> String {
    match cached {
        Some(cached) => format!("{} %", output::percent(cached, length)),
        None => "-".to_owned(),
    }
}
