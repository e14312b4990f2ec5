//! `millrace fs load` and `millrace fs free`: what is in the cache.
//!
//! Owns the two verbs for single files and for trees. A file that fails does not stop the others: it is
//! named, and the exit code is 1. The source is never written to.

use std::cell::Cell;
use std::fs;
use std::io::{self, BufRead, BufReader, Lines};
use std::path::PathBuf;
use std::time::Instant;

use indicatif::ProgressBar;
use millrace_client::{Client, Error, File, FreeReport, JobOptions, LoadReport};
use millrace_proto::job::{JOB_PATHS_BYTES_MAX, job_paths_size};
use serde::Serialize;

use super::share;
use crate::failure::{Failure, is_about_path, shown};
use crate::jobs;
use crate::output::{self, Sizes};
use crate::walk::{self, Files, Item};

/// Files at once. Guessed: a node reads its source with 16 threads unless told otherwise.
const FILES_AT_ONCE: usize = 16;
/// Most files that are named when they fail.
const NAMED_MAX: u64 = 10;

/// Bring every block of a file, or with -r of all files below a directory, into the cache.
///
/// Blocks that are there already cost nothing. If the node's memory is too small, the blocks that were
/// used least leave it: the end says how much is in memory then, and if that is not all of it the exit code
/// is 1. With --detach the cluster does it by itself, and goes on after this program has ended and nodes were
/// restarted: `millrace admin jobs` says how far it is. --detach and --pin ask the administration socket of a
/// node, see `millrace admin --help`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace fs load datasets/train.csv
  millrace fs load -r datasets models/large
  millrace fs find datasets --name '*.parquet' | millrace fs load --paths-from -
  millrace fs load -r / --json
  millrace fs load -r datasets --detach --bandwidth 100MiB/s
  millrace fs load -r datasets/hot --pin --detach
  millrace fs load models/current --replicas 2
  millrace admin jobs wait $(millrace fs load -r datasets --detach)")]
pub(super) struct LoadArgs {
    #[command(flatten)]
    what: What,
    /// Hand the load to the cluster and print the id of its job
    #[arg(long, conflicts_with = "bytes")]
    detach: bool,
    /// Pin each path before it is loaded, so that it stays in memory
    #[arg(long)]
    pin: bool,
    /// Most bytes that all nodes together read for the job in a second, such as 100MiB/s
    #[arg(long, value_name = "RATE", requires = "detach", value_parser = rate)]
    bandwidth: Option<u64>,
    /// Nodes that are to hold each block, the first of its owners; at most as many as the mount has
    /// (`millrace admin mount --replicas`) [default: all of them]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=8))]
    replicas: Option<u8>,
}

impl LoadArgs {
    /// True if this asks for something at an administration socket.
    pub(super) fn changes(&self) -> bool {
        self.detach || self.pin
    }
}

/// Drop every block of a file, or with -r of all files below a directory, from the cache.
///
/// The files themselves are not touched: the next read brings them back from the source. The request
/// goes to the administration socket of a node, see `millrace admin --help`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace fs free datasets/train.csv
  millrace fs free -r datasets --dry-run
  millrace fs free -r datasets")]
pub(super) struct FreeArgs {
    #[command(flatten)]
    what: What,
    /// Print the paths of the files whose blocks would be dropped, and drop nothing
    #[arg(long)]
    dry_run: bool,
}

impl FreeArgs {
    /// True if this asks for something at an administration socket.
    pub(super) fn changes(&self) -> bool {
        !self.dry_run
    }
}

#[derive(clap::Args)]
struct What {
    /// Files or directories
    #[arg(value_name = "PATH", required_unless_present = "paths_from")]
    paths: Vec<String>,
    /// Also take paths from FILE, one on a line; - for standard input
    #[arg(long, value_name = "FILE")]
    paths_from: Option<PathBuf>,
    /// Include all files below a directory
    #[arg(short, long)]
    recursive: bool,
    /// Print exact sizes
    #[arg(long)]
    bytes: bool,
    /// Print one JSON document
    #[arg(long, conflicts_with = "bytes")]
    json: bool,
}

impl What {
    /// True if more than one path is named, so that one that fails does not stop the others.
    fn are_many(&self) -> bool {
        self.paths.len() > 1 || self.paths_from.is_some()
    }
}

/// What `load` prints for scripts.
#[derive(Default, Serialize)]
struct LoadTotal {
    file_count: u64,
    total_bytes: u64,
    block_count: u64,
    /// Blocks that had to be read from the source.
    filled_count: u64,
    failed_count: u64,
    /// Bytes of it that were in memory at the end; missing if a node of an earlier version cannot say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cached_bytes: Option<u64>,
    seconds: f64,
}

/// What `free` prints for scripts.
#[derive(Default, Serialize)]
struct FreeTotal {
    file_count: u64,
    /// Blocks dropped.
    block_count: u64,
    /// Bytes they held.
    total_bytes: u64,
    failed_count: u64,
}

/// What `load --detach` prints for scripts.
#[derive(Serialize)]
struct Detached {
    job: String,
}

/// Hands a load to the cluster.
async fn detach(client: &Client, args: &LoadArgs) -> Result<(), Failure> {
    let (mut paths, mut all) = (Vec::new(), Paths::new(&args.what)?);
    while let Some(path) = all.next()? {
        paths.push(path);
        let size = job_paths_size(&paths);
        if size > JOB_PATHS_BYTES_MAX {
            return Err(Failure::usage(format!(
                "the first {} take {size} bytes, and {JOB_PATHS_BYTES_MAX} are kept of one job; name \
                 directories with -r, start several jobs, or leave --detach out",
                output::counted(paths.len() as u64, "path")
            )));
        }
    }
    if paths.is_empty() {
        return Err(Failure::usage("no path was named; give one at least"));
    }
    let mut options = JobOptions::new();
    options.recursive = args.what.recursive;
    options.pin = args.pin;
    options.bytes_per_second = args.bandwidth.unwrap_or(0);
    options.replicas = args.replicas.unwrap_or(0);
    let id = client.start_job(&paths, &options).await.map_err(Failure::of_job)?;
    match args.what.json {
        true => output::print_json(&Detached { job: id.to_string() }),
        false => output::print(&format!("{id}\n")),
    }
}

/// Reads a rate such as `100MiB/s`.
fn rate(text: &str) -> Result<u64, String> {
    let size = text.strip_suffix("/s").unwrap_or(text);
    match millrace_ops::size::parse_size(size) {
        Ok(0) => Err("nothing would ever come; leave the flag out for no limit".to_owned()),
        done => done.map_err(|error| error.to_string()),
    }
}

pub(super) async fn load(client: &Client, args: &LoadArgs) -> Result<(), Failure> {
    if args.detach {
        return detach(client, args).await;
    }
    let started = Instant::now();
    let mut total = LoadTotal::default();
    let replicas = args.replicas;
    let run = |client: Client, file: File| async move {
        match replicas {
            Some(replicas) => client.load_replicas(&file.path, replicas).await,
            None => client.load(&file.path).await,
        }
    };
    let mut loaded = Vec::new();
    let add = |report: LoadReport| {
        total.file_count += 1;
        total.total_bytes += report.file.length;
        total.block_count += report.block_count;
        total.filled_count += report.filled_count;
        loaded.push(report.file);
    };
    let plan =
        Plan { what: &args.what, verb: "load", pins: args.pin, capacity: capacity(client).await };
    total.failed_count = for_files(client, &plan, run, add).await?;
    let cached = share::cached_bytes_of_all(client, &loaded).await?;
    total.cached_bytes = cached.into_iter().sum();
    total.seconds = started.elapsed().as_secs_f64();
    let sizes = Sizes::exact_if(args.what.bytes);
    if args.what.json {
        output::print_json(&total)?;
    } else {
        output::print(&format!(
            "loaded {}, {}: {}, {} of them read from the source, in {:.1} s\n",
            output::counted(total.file_count, "file"),
            sizes.show(total.total_bytes),
            output::counted(total.block_count, "block"),
            output::count(total.filled_count),
            total.seconds
        ))?;
    }
    judge(total.failed_count, "loaded")?;
    match total.cached_bytes {
        Some(cached) if cached < total.total_bytes => Err(Failure::new(format!(
            "{} of the {} that were loaded are in memory; load less, give the nodes more memory, or see which files \
             are there with `millrace fs ls --cached`",
            sizes.show(cached),
            sizes.show(total.total_bytes)
        ))),
        _ => Ok(()),
    }
}

/// Returns how many bytes of blocks all nodes together can hold; `None` if that is not known.
async fn capacity(client: &Client) -> Option<u64> {
    let statuses = client.statuses().await.into_iter();
    statuses.map(|(_, status)| status.ok()?.counter("capacity_bytes")).sum()
}

/// What `free --dry-run` prints for scripts.
#[derive(Default, Serialize)]
struct WouldFree {
    dry_run: bool,
    file_count: u64,
    /// Length of the files at their source; how much of it is cached is not known.
    length_bytes: u64,
    failed_count: u64,
}

/// Says what `free` would do.
async fn would_free(client: &Client, args: &FreeArgs) -> Result<(), Failure> {
    let mut total = WouldFree { dry_run: true, ..WouldFree::default() };
    let run = |_: Client, file: File| async move { Ok(file) };
    let mut printed = Ok(());
    let add = |file: File| {
        total.file_count += 1;
        total.length_bytes += file.length;
        if !args.what.json && printed.is_ok() {
            printed = output::print(&format!("{}\n", output::name(&file.path)));
        }
    };
    let plan = Plan { what: &args.what, verb: "look up", pins: false, capacity: None };
    total.failed_count = for_files(client, &plan, run, add).await?;
    printed?;
    if args.what.json {
        output::print_json(&total)?;
    } else {
        let files = output::counted(total.file_count, "file");
        let length = Sizes::exact_if(args.what.bytes).show(total.length_bytes);
        output::note(&format!("would free what is cached of {files}, {length} at the source"));
    }
    judge(total.failed_count, "looked up")
}

pub(super) async fn free(client: &Client, args: &FreeArgs) -> Result<(), Failure> {
    if args.dry_run {
        return would_free(client, args).await;
    }
    let mut total = FreeTotal::default();
    let run = |client: Client, file: File| async move { client.free(&file.path).await };
    let add = |report: FreeReport| {
        total.file_count += 1;
        total.block_count += report.block_count;
        total.total_bytes += report.byte_count;
    };
    let plan = Plan { what: &args.what, verb: "free", pins: false, capacity: None };
    total.failed_count = for_files(client, &plan, run, add).await?;
    if args.what.json {
        output::print_json(&total)?;
    } else {
        output::print(&format!(
            "freed {} of {}, {}\n",
            output::counted(total.block_count, "block"),
            output::counted(total.file_count, "file"),
            Sizes::exact_if(args.what.bytes).show(total.total_bytes)
        ))?;
    }
    judge(total.failed_count, "freed")
}

/// What is done with the files that are asked for.
struct Plan<'a> {
    what: &'a What,
    verb: &'a str,
    /// True if each path is pinned first.
    pins: bool,
    /// Bytes beyond which it is said that not all of them will stay in memory.
    capacity: Option<u64>,
}

/// Runs an operation on every file asked for; returns how many paths failed.
async fn for_files<R, F>(
    client: &Client,
    plan: &Plan<'_>,
    run: impl Fn(Client, File) -> F,
    mut add: impl FnMut(R),
) -> Result<u64, Failure>
where
    R: Send + 'static,
    F: Future<Output = Result<R, Error>> + Send + 'static,
{
    let Plan { what, verb, pins, capacity } = *plan;
    let bar = output::bytes_bar(verb, 0);
    let (failed_count, found_bytes) = (Cell::new(0), Cell::new(0));
    let mut paths = Paths::new(what)?;
    let goes_on = what.recursive || what.are_many();
    let mut files: Option<Files<'_>> = None;
    let next = async || loop {
        let Some(found) = &mut files else {
            let Some(path) = paths.next()? else { return Ok(None) };
            match client.stat(&path).await {
                Ok(top) => {
                    files = Some(Files::of(client, top, what.recursive)?);
                    if pins {
                        client.pin(&path).await.map_err(|error| Failure::at_path(&path, &error))?;
                    }
                }
                Err(error) if what.are_many() && is_about_path(&error) => {
                    tell(&bar, &failed_count, &about(&path, &error.to_string()), 1);
                }
                Err(error) => return Err(Failure::at_path(&path, &error)),
            }
            continue;
        };
        match found.next().await? {
            None => files = None,
            Some(Item::Circle) => (),
            Some(Item::Unreadable { path, reason }) => {
                tell(&bar, &failed_count, &about(&path, &reason), 1);
            }
            Some(Item::LeftOut { path, count, example }) => {
                tell(&bar, &failed_count, &walk::left_out(&path, count, &example), count);
            }
            Some(Item::File(file)) => {
                bar.inc_length(file.length);
                let before = found_bytes.replace(found_bytes.get() + file.length);
                warn_of_room(&bar, capacity, before, found_bytes.get());
                return Ok(Some(file));
            }
        }
    };
    let start = |file: File| {
        let result = run(client.clone(), file.clone());
        async move { (file, result.await) }
    };
    let done = |(file, result): (File, Result<R, Error>)| {
        bar.inc(file.length);
        match result {
            Ok(report) => add(report),
            Err(error) if goes_on && is_about_path(&error) => {
                tell(&bar, &failed_count, &about(&file.path, &error.to_string()), 1);
            }
            Err(error) => return Err(Failure::at_path(&file.path, &error)),
        }
        Ok(())
    };
    let result = jobs::for_each_found(next, FILES_AT_ONCE, start, done).await;
    bar.finish_and_clear();
    result.map(|()| failed_count.get())
}

/// Says once, as soon as it is known, that what is loaded is more than the nodes can hold.
fn warn_of_room(bar: &ProgressBar, capacity: Option<u64>, before: u64, now: u64) {
    let Some(capacity) = capacity.filter(|capacity| before <= *capacity && now > *capacity) else {
        return;
    };
    let capacity = output::size(capacity);
    let text = format!(
        "millrace: this is more than the {capacity} that the nodes can hold: not all of it will stay in memory"
    );
    bar.suspend(|| output::note(&text));
}

/// The paths that were named, on the command line and in a file.
struct Paths {
    named: std::vec::IntoIter<String>,
    lines: Option<Lines<Box<dyn BufRead>>>,
}

impl Paths {
    /// Opens the file with paths, if there is one.
    ///
    /// # Errors
    /// If it cannot be opened.
    fn new(what: &What) -> Result<Paths, Failure> {
        let open = |name: &PathBuf| -> Result<Box<dyn BufRead>, Failure> {
            if name.as_os_str() == "-" {
                return Ok(Box::new(io::stdin().lock()));
            }
            let file = fs::File::open(name).map_err(|error| {
                Failure::usage(format!("flag --paths-from: {}: {error}", name.display()))
            })?;
            Ok(Box::new(BufReader::new(file)))
        };
        let lines = what.paths_from.as_ref().map(open).transpose()?.map(BufRead::lines);
        Ok(Paths { named: what.paths.clone().into_iter(), lines })
    }

    /// Returns the next path. Empty lines are left out.
    ///
    /// # Errors
    /// If the file cannot be read, or is not UTF-8.
    fn next(&mut self) -> Result<Option<String>, Failure> {
        if let Some(path) = self.named.next() {
            return Ok(Some(walk::clean(&path)));
        }
        for line in self.lines.iter_mut().flatten() {
            let line = line.map_err(|error| Failure::new(format!("flag --paths-from: {error}")))?;
            if !line.trim().is_empty() {
                return Ok(Some(walk::clean(line.trim_end_matches('\r'))));
            }
        }
        Ok(None)
    }
}

/// Returns what is said of a path that failed.
fn about(path: &str, reason: &str) -> String {
    format!("{}: {reason}", shown(path))
}

/// Says what failed, unless too much was said before, and counts the paths.
fn tell(bar: &ProgressBar, failed_count: &Cell<u64>, text: &str, count: u64) {
    if failed_count.get() < NAMED_MAX {
        bar.suspend(|| output::note(&format!("millrace: {text}")));
    }
    failed_count.set(failed_count.get() + count);
}

fn judge(failed_count: u64, done: &str) -> Result<(), Failure> {
    if failed_count == 0 {
        return Ok(());
    }
    let what = output::counted(failed_count, "path");
    Err(Failure::new(format!("{what} could not be {done}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_size_for_each_second() {
        assert_eq!(rate("100MiB/s"), Ok(100 << 20));
        assert_eq!(rate("64KiB"), Ok(64 << 10));
        for text in ["", "0", "fast", "1MiB/h", "/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
