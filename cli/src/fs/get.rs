//! `millrace fs get`: copies a file or a tree out of the cache.
//!
//! Owns how a file is copied; what is at its target is left to `target`. Always holds: a file appears under its
//! final name whole or not at all; it is written beside that name and renamed at the end, and removed when anything
//! goes wrong first. A file that changes meanwhile is copied again from the start, some times.

use std::cell::Cell;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use indicatif::ProgressBar;
use millrace_client::{Client, Error, File};
use serde::Serialize;
use tempfile::NamedTempFile;

use super::cat::{VERSIONS_MAX, pieces, stream_current};
use super::target::{self, Destination, destination, part_file};
use crate::failure::{Failure, is_about_path, shown};
use crate::walk::{self, Files, Item};
use crate::{jobs, output};

/// Files at once.
const FILES_AT_ONCE: usize = 8;
/// Most bytes of one file in flight, though always one block: 8 files make 64 MiB of them.
const FILE_WINDOW_BYTES_MAX: u64 = 8 << 20;
/// Most blocks of one file in flight.
const FILE_WINDOW_MAX: usize = 8;
/// Most files that are named when they fail.
const NAMED_MAX: u64 = 10;

/// Copy a file, or with -r all files below a directory, out of the cache.
///
/// A file goes to TARGET, or below it if that is a directory; - is stdout. A directory's content goes below TARGET,
/// which is made if it is not there. Files that exist are replaced, each at once, and through a symbolic link the
/// file that it leads to; a device or FIFO is written into. Copies have the time of change of their source, and holes
/// where it has zeros.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace fs get datasets/train.csv .
  millrace fs get datasets/train.csv copy.csv
  millrace fs get datasets/train.csv - | head
  millrace fs get -r datasets ./datasets
  millrace fs get -r datasets ./datasets --json")]
pub(super) struct GetArgs {
    /// File or directory of the node
    source: String,
    /// Where to put it
    target: PathBuf,
    /// Include all files below a directory
    #[arg(short, long)]
    recursive: bool,
    /// Do not compare the bytes with the node's checksums
    #[arg(long)]
    pub(super) no_verify: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// What `get` prints for scripts.
#[derive(Serialize)]
struct GetTotal {
    file_count: u64,
    total_bytes: u64,
    failed_count: u64,
    seconds: f64,
}

/// Why one file was not copied.
enum CopyError {
    /// The node did not give it.
    Read(Error),
    /// It could not be written.
    Write(PathBuf, io::Error),
}

impl CopyError {
    /// Returns the failure of the whole command, if the other files would fail too.
    fn fatal(&self, path: &str) -> Option<Failure> {
        match self {
            CopyError::Read(error) if is_about_path(error) => None,
            CopyError::Read(error) => Some(Failure::at_path(path, error)),
            CopyError::Write(target, error) if error.kind() == io::ErrorKind::StorageFull => {
                Some(Failure::new(format!("cannot write {}: {error}", target.display())))
            }
            CopyError::Write(..) => None,
        }
    }

    fn text(&self, path: &str) -> String {
        match self {
            CopyError::Read(error) => format!("{}: {error}", shown(path)),
            CopyError::Write(target, error) => {
                format!("cannot write {}: {error}", target.display())
            }
        }
    }
}

pub(super) async fn run(client: &Client, args: &GetArgs) -> Result<(), Failure> {
    let source = walk::clean(&args.source);
    let mut files = Files::find(client, &source, args.recursive).await?;
    if args.target.as_os_str() == "-" {
        return to_stdout(client, files, args).await;
    }
    let started = Instant::now();
    let bar = output::bytes_bar("get", 0);
    let is_tree = files.is_tree();
    if is_tree {
        make_directory(&args.target)?;
    } else {
        let target = target_of_file(&args.target, &source);
        if let Ok(Destination::Stream(path)) = destination(&target) {
            return into_stream(client, files, &path).await;
        }
    }
    let start = |file: File| {
        let target = if is_tree {
            args.target.join(below(&source, &file.path))
        } else {
            target_of_file(&args.target, &file.path)
        };
        let (client, bar) = (client.clone(), bar.clone());
        async move {
            let result = copy(&client, &file, (&target, is_tree), &bar).await;
            (file, result)
        }
    };
    let (failed, circle_count) = (Cell::new(0), Cell::new(0));
    let tell = |text: &str, count: u64| {
        if failed.get() < NAMED_MAX {
            bar.suspend(|| output::note(&format!("millrace: {text}")));
        }
        failed.set(failed.get() + count);
    };
    let next = async || loop {
        match files.next().await? {
            None => return Ok(None),
            Some(Item::Circle) => circle_count.set(circle_count.get() + 1),
            Some(Item::Unreadable { path, reason }) => {
                tell(&format!("{}: {reason}", shown(&path)), 1);
            }
            Some(Item::LeftOut { path, count, example }) => {
                tell(&walk::left_out(&path, count, &example), count);
            }
            Some(Item::File(file)) => {
                bar.inc_length(file.length);
                return Ok(Some(file));
            }
        }
    };
    let (mut file_count, mut copied_bytes) = (0, 0);
    let done = |(file, result): (File, Result<u64, CopyError>)| {
        let trouble = match result {
            Ok(bytes) => {
                file_count += 1;
                copied_bytes += bytes;
                return Ok(());
            }
            Err(trouble) => trouble,
        };
        if let Some(failure) = trouble.fatal(&file.path) {
            return Err(failure);
        }
        if !is_tree {
            return Err(Failure::new(trouble.text(&file.path)));
        }
        tell(&trouble.text(&file.path), 1);
        Ok(())
    };
    let result = jobs::for_each_found(next, FILES_AT_ONCE, start, done).await;
    bar.finish_and_clear();
    result?;
    if circle_count.get() > 0 {
        let circles = output::counted(circle_count.get(), "symbolic link");
        output::note(&format!("{circles} left out: to a directory above itself"));
    }
    let failed = failed.get();
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        output::print_json(&GetTotal {
            file_count,
            total_bytes: copied_bytes,
            failed_count: failed,
            seconds,
        })?;
    }
    if failed > 0 {
        let what = output::counted(failed, "path");
        return Err(Failure::new(format!("{what} could not be copied")));
    }
    if !args.json {
        let (files, bytes) = (output::counted(file_count, "file"), output::size(copied_bytes));
        output::note(&format!("{files}, {bytes} in {seconds:.1} s"));
    }
    Ok(())
}

/// Returns the path of a file relative to the directory that was asked for.
fn below<'a>(directory: &str, path: &'a str) -> &'a str {
    match path.strip_prefix(directory) {
        Some(rest) => rest.trim_start_matches('/'),
        None => path,
    }
}

/// Returns where one file goes: below the target if that is a directory.
fn target_of_file(target: &Path, path: &str) -> PathBuf {
    let name = path.rsplit('/').next().unwrap_or(path);
    if target.is_dir() || target.as_os_str().as_encoded_bytes().ends_with(b"/") {
        target.join(name)
    } else {
        target.to_owned()
    }
}

fn make_directory(path: &Path) -> Result<(), Failure> {
    match std::fs::create_dir(path) {
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => {
            let text = format!("cannot make the directory {}: {error}", path.display());
            Err(Failure::new(text))
        }
        Ok(()) => Ok(()),
    }
}

/// Returns the one file that was asked for.
async fn only_file(mut files: Files<'_>) -> Result<File, Failure> {
    match files.next().await? {
        Some(Item::File(file)) => Ok(file),
        _ => Err(Failure::new("there is no such file".to_owned())),
    }
}

async fn to_stdout(client: &Client, files: Files<'_>, args: &GetArgs) -> Result<(), Failure> {
    if files.is_tree() || args.json {
        let text = "only one file goes to stdout, without -r and --json";
        return Err(Failure::usage(text.to_owned()));
    }
    let file = only_file(files).await?;
    stream_current(client, file, |file| Ok((0, file.length)), output::print_bytes).await
}

/// Writes a file into what takes bytes in order.
async fn into_stream(client: &Client, files: Files<'_>, path: &Path) -> Result<(), Failure> {
    let file = only_file(files).await?;
    let failed = |error| Failure::new(format!("cannot write {}: {error}", path.display()));
    // A FIFO opens once something reads it.
    let open = |path: &Path| OpenOptions::new().write(true).open(path);
    let mut opened = blocking(path, open).await.map_err(failed)?;
    let put = |bytes: &[u8]| opened.write_all(bytes).map_err(failed);
    stream_current(client, file, |file| Ok((0, file.length)), put).await
}

/// Copies one file, in another version if it changes meanwhile, and returns its length.
async fn copy(
    client: &Client,
    file: &File,
    target: (&Path, bool),
    bar: &ProgressBar,
) -> Result<u64, CopyError> {
    let mut file = file.clone();
    for _ in 1..VERSIONS_MAX {
        match copy_version(client, &file, target, bar).await {
            Err(CopyError::Read(Error::Stale { .. })) => {
                file = client.stat(&file.path).await.map_err(CopyError::Read)?;
            }
            result => return result,
        }
    }
    copy_version(client, &file, target, bar).await
}

async fn copy_version(
    client: &Client,
    file: &File,
    (target, is_in_tree): (&Path, bool),
    bar: &ProgressBar,
) -> Result<u64, CopyError> {
    let trouble = |error| CopyError::Write(target.to_owned(), error);
    let begin = move |target: &Path| match destination(target)? {
        Destination::File(path) => Ok((part_file(&path, is_in_tree)?, path)),
        Destination::Stream(_) => {
            let text = "it is not a regular file, and a tree replaces no other";
            Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
        }
    };
    let (part, place) = blocking(target, begin).await.map_err(trouble)?;
    let part = Arc::new(part);
    let block_size = u64::from(file.block_size);
    let window = jobs::window(FILE_WINDOW_BYTES_MAX, block_size, 1, FILE_WINDOW_MAX);
    let mut outcome = Ok(());
    let start = |(offset, length)| {
        let (client, file, part) = (client.clone(), file.clone(), part.clone());
        async move {
            let bytes = client.read(&file, offset, length).await.map_err(PieceError::Read)?;
            let count = bytes.len() as u64;
            write(part, bytes, offset).await.map_err(PieceError::Write)?;
            if count == length { Ok(count) } else { Err(PieceError::Short) }
        }
    };
    let done = |result| match result {
        Ok(count) => {
            bar.inc(count);
            Ok(())
        }
        Err(step) => {
            outcome = Err(step);
            // This ends the loop; the reason is in `outcome`.
            Err(Failure::Reported)
        }
    };
    let all = pieces(0, file.length, block_size);
    let ended = jobs::for_each(all, window, start, done).await;
    match (outcome, ended) {
        (Ok(()), Ok(())) => {}
        (Err(PieceError::Read(error)), _) => return Err(CopyError::Read(error)),
        (Err(PieceError::Write(error)), _) => return Err(trouble(error)),
        (Err(PieceError::Short) | Ok(()), _) => {
            return Err(CopyError::Read(Error::Stale { path: file.path.clone() }));
        }
    }
    // Every job has ended, so this is the only owner left.
    let part = Arc::into_inner(part).ok_or_else(|| trouble(io::ErrorKind::ResourceBusy.into()))?;
    let (length, modified_ms) = (file.length, file.modified_ms);
    let keep = move |place: &Path| target::keep(part, place, length, modified_ms);
    blocking(&place, keep).await.map_err(trouble)?;
    Ok(file.length)
}

/// What went wrong with one piece.
enum PieceError {
    Read(Error),
    Write(io::Error),
    Short,
}

async fn write(part: Arc<NamedTempFile>, bytes: Bytes, offset: u64) -> io::Result<()> {
    let write = move || target::write(part.as_file(), &bytes, offset);
    tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
}

/// Runs file operations where they block no other work.
async fn blocking<T: Send + 'static>(
    target: &Path,
    call: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let target = target.to_owned();
    let task = tokio::task::spawn_blocking(move || call(&target));
    task.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_lose_the_path_they_were_asked_by() {
        assert_eq!(below("", "a/b"), "a/b");
        assert_eq!(below("a", "a/b/c"), "b/c");
        assert_eq!(below("a/b", "a/b/c"), "c");
    }

    #[test]
    fn one_file_goes_below_a_directory_or_takes_the_name() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("b.txt");
        assert_eq!(target_of_file(directory.path(), "a/b.txt"), inside);
        let other = directory.path().join("other");
        assert_eq!(target_of_file(&other, "a/b.txt"), other);
        let slash = directory.path().join("new/");
        assert_eq!(target_of_file(&slash, "b.txt"), directory.path().join("new/b.txt"));
    }
}
