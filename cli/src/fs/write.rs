//! `millrace fs put`, `rm` and `mv`: files at the source, through a node.
//!
//! Owns the three verbs. Always holds: a file that is put is seen whole or not at all, and a verb that is stopped
//! half-way leaves what was there before.

use std::cell::Cell;
use std::fs::File as LocalFile;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use millrace_client::{Client, Condition, Error, File, Kind, PutOptions};
use serde::Serialize;

use crate::failure::{Failure, is_about_path, shown};
use crate::output::{self, Sizes};
use crate::walk::{self, Files, Item};
use crate::{jobs, signals};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;
/// Files that are deleted at once.
const FILES_AT_ONCE: usize = 8;
/// Most files that are named when they fail.
const NAMED_MAX: usize = 10;
/// Longest wait for a rename. Derived: a store copies an object of 5 GiB in some minutes.
const MV_DEADLINE: Duration = Duration::from_secs(600);
/// The name of stdin.
const STDIN: &str = "-";

/// Write a file of this machine to the source, through the node.
///
/// Readers of the path see the file before or the new one, whole, and every client sees the new one when
/// this ends. The source must be writable: see --writable and --mount-options of `millrace node`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace fs put model.bin models/model.bin
  millrace fs put model.bin models/                     under its own name
  tar c data | millrace fs put - archive/data.tar       what comes on stdin
  millrace fs put 00001.json log/00001.json --if-absent")]
pub(super) struct PutArgs {
    /// File of this machine; - for stdin
    local: PathBuf,
    /// Where the node serves it afterwards; with a / at the end the directory
    path: String,
    /// Fail if something has the path already
    #[arg(long)]
    if_absent: bool,
    /// Print exact sizes
    #[arg(long)]
    bytes: bool,
    /// Print one JSON document
    #[arg(long, conflicts_with = "bytes")]
    json: bool,
}

/// Delete a file, or with -r all files below a directory, at the source.
///
/// The files are gone for good. Directories stay where the source has some. The source must be writable:
/// see --writable and --mount-options of `millrace node`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace fs rm models/old.bin
  millrace fs rm -r scratch/run-7")]
pub(super) struct RmArgs {
    /// File or directory
    path: String,
    /// Delete all files below a directory
    #[arg(short, long)]
    recursive: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Give a file another path at the source, or a directory with all that is below it.
///
/// A file that has the new path is replaced. A directory moves in one step or not at all, to a path that
/// nothing has; stores of objects move only files, by a copy within the store and a delete. Both paths belong
/// to one mount, which must be writable: see --writable and --mount-options of `millrace node`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace fs mv out/model.tmp out/model.bin
  millrace fs mv out/model.bin archive/               under its own name
  millrace fs mv staging/run-7 done/run-7             a directory
  millrace fs mv tmp/00001.json log/00001.json --if-absent")]
pub(super) struct MvArgs {
    /// File or directory
    old: String,
    /// The path that it gets; with a / at the end the directory
    new: String,
    /// Fail if something has the new path already
    #[arg(long)]
    if_absent: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// What `mv` prints for scripts.
#[derive(Serialize)]
struct Moved<'a> {
    old: &'a str,
    path: &'a str,
    is_directory: bool,
    length: u64,
    /// Text, because it may not fit a number of JSON.
    version: String,
}

/// What `put` prints for scripts.
#[derive(Serialize)]
struct Put<'a> {
    path: &'a str,
    length: u64,
    version: u64,
    seconds: f64,
}

/// What `rm` prints for scripts.
#[derive(Default, Serialize)]
struct RmTotal {
    file_count: u64,
    total_bytes: u64,
    failed_count: u64,
}

pub(super) async fn put(client: &Client, args: &PutArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let path = target(&args.local, &args.path)?;
    let condition = if args.if_absent { Condition::Absent } else { Condition::None };
    let (source, length) = open(&args.local)?;
    let bar = output::bytes_bar("put", length);
    let sent = tokio::select! {
        sent = send(client, &path, source, PutOptions { condition }, &bar) => sent,
        // What was sent is given up with the connection.
        stopped = signals::interrupted() => stopped.and(Err(Failure::new("interrupted"))),
    };
    bar.finish_and_clear();
    let file = sent?;
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        let (length, version) = (file.length, file.version);
        return output::print_json(&Put { path: &file.path, length, version, seconds });
    }
    let size = Sizes::exact_if(args.bytes).show(file.length);
    output::print(&format!("wrote {}, {size}, in {seconds:.1} s\n", shown(&file.path)))
}

/// Returns the path that is written.
fn target(local: &Path, path: &str) -> Result<String, Failure> {
    let clean = walk::clean(path);
    if !path.ends_with('/') && !clean.is_empty() {
        return Ok(clean);
    }
    let name = local.file_name().filter(|_| local.as_os_str() != STDIN);
    let name = name.and_then(|name| name.to_str());
    let name = name.ok_or_else(|| {
        Failure::usage(format!("PATH: {path:?} is a directory; name the file in it"))
    })?;
    Ok(walk::join(&clean, name))
}

/// Opens what is written; also returns its length, as far as it is known.
fn open(local: &Path) -> Result<(Box<dyn Read + Send>, u64), Failure> {
    if local.as_os_str() == STDIN {
        return Ok((Box::new(io::stdin()), 0));
    }
    let cannot =
        |error: io::Error| Failure::new(format!("cannot read {}: {error}", local.display()));
    let file = LocalFile::open(local).map_err(cannot)?;
    let about = file.metadata().map_err(cannot)?;
    if about.is_dir() {
        return Err(Failure::usage(format!(
            "LOCAL: {} is a directory; put its files one by one",
            local.display()
        )));
    }
    Ok((Box::new(file), about.len()))
}

async fn send(
    client: &Client,
    path: &str,
    mut source: Box<dyn Read + Send>,
    options: PutOptions,
    bar: &ProgressBar,
) -> Result<File, Failure> {
    let failed = |error: Error| Failure::at_path(path, &error);
    let mut upload = client.upload(path, options).await.map_err(failed)?;
    let mut chunk = Vec::new();
    loop {
        let read = tokio::task::spawn_blocking(move || {
            chunk.resize(CHUNK, 0);
            let count = source.read(&mut chunk);
            (source, chunk, count)
        });
        let count;
        (source, chunk, count) =
            read.await.map_err(|error| Failure::new(format!("a thread ended: {error}")))?;
        match count {
            Ok(0) => return upload.finish().await.map_err(failed),
            Ok(count) => {
                upload.write(&chunk[..count]).await.map_err(failed)?;
                bar.inc(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => {
                return Err(Failure::new(format!(
                    "cannot read what is to be written: {error}; nothing was written"
                )));
            }
        }
    }
}

pub(super) async fn rm(client: &Client, args: &RmArgs) -> Result<(), Failure> {
    let path = walk::clean(&args.path);
    if path.is_empty() {
        return Err(Failure::usage(
            "all that is served is not deleted in one go; name a file, or a directory with -r",
        ));
    }
    let mut total = RmTotal::default();
    if args.recursive {
        let failed_count = Cell::new(0);
        // A page goes on after a name, so that it does not matter which of those before are gone.
        let mut files = Files::find(client, &path, true).await?;
        let next = async || loop {
            match files.next().await? {
                None => return Ok(None),
                Some(Item::File(file)) => return Ok(Some(file)),
                Some(Item::Circle) => (),
                Some(Item::Unreadable { path, reason }) => tell(&failed_count, &path, &reason),
                Some(Item::LeftOut { path, count, example }) => {
                    output::note(&format!("millrace: {}", walk::left_out(&path, count, &example)));
                    failed_count.set(failed_count.get() + count);
                }
            }
        };
        let start = |file: File| {
            let client = client.clone();
            async move {
                let result = client.delete(&file.path).await;
                (file, result)
            }
        };
        let done = |(file, result): (File, Result<(), Error>)| {
            match result {
                Ok(()) => {
                    total.file_count += 1;
                    total.total_bytes += file.length;
                }
                Err(error) if is_about_path(&error) => {
                    tell(&failed_count, &file.path, &error.to_string());
                }
                Err(error) => return Err(Failure::at_path(&file.path, &error)),
            }
            Ok(())
        };
        jobs::for_each_found(next, FILES_AT_ONCE, start, done).await?;
        total.failed_count = failed_count.get();
    } else {
        let failed = |error: Error| Failure::at_path(&path, &error);
        let file = client.stat(&path).await.map_err(failed)?;
        client.delete(&path).await.map_err(failed)?;
        (total.file_count, total.total_bytes) = (1, file.length);
    }
    if args.json {
        output::print_json(&total)?;
    } else {
        output::print(&format!("deleted {}\n", output::counted(total.file_count, "file")))?;
    }
    match total.failed_count {
        0 => Ok(()),
        count => {
            Err(Failure::new(format!("{} could not be deleted", output::counted(count, "path"))))
        }
    }
}

pub(super) async fn mv(client: &Client, args: &MvArgs) -> Result<(), Failure> {
    let old = walk::clean(&args.old);
    let name = old.rsplit('/').next().unwrap_or_default();
    if name.is_empty() {
        return Err(Failure::usage(
            "all that is served is not renamed; name a file or a directory",
        ));
    }
    let new = walk::clean(&args.new);
    let new = if args.new.ends_with('/') || new.is_empty() { walk::join(&new, name) } else { new };
    let client = client.with_deadline(MV_DEADLINE);
    let moved = match args.if_absent {
        true => client.rename_if_absent(&old, &new).await,
        false => client.rename(&old, &new).await,
    };
    let file = moved.map_err(|error| Failure::at_path(&old, &error))?;
    if args.json {
        let (length, version) = (file.length, format!("{:016x}", file.version));
        let is_directory = file.kind == Kind::Directory;
        return output::print_json(&Moved { old: &old, path: &new, is_directory, length, version });
    }
    output::print(&format!("{} is now {}\n", shown(&old), shown(&new)))
}

/// Names a path that failed, unless too many were named before.
fn tell(failed_count: &Cell<u64>, path: &str, reason: &str) {
    if failed_count.get() < NAMED_MAX as u64 {
        output::note(&format!("millrace: {}: {reason}", shown(path)));
    }
    failed_count.set(failed_count.get() + 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_takes_the_file_under_its_own_name() {
        let target = |local: &str, path| target(Path::new(local), path);
        assert_eq!(target("a/b.bin", "out/x").unwrap(), "out/x");
        assert_eq!(target("a/b.bin", "/out/").unwrap(), "out/b.bin");
        assert_eq!(target("a/b.bin", "/").unwrap(), "b.bin");
        assert_eq!(target("-", "out").unwrap(), "out");
        assert!(target("-", "out/").is_err() && target("a/..", "out/").is_err());
    }
}
