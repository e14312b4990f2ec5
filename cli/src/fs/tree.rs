//! `millrace fs find` and `millrace fs du`: what is below a directory, by name, size and age, and how much.
//!
//! Owns the two verbs. Both walk the tree page by page and hold no more than a page of each directory on
//! the way, however large the tree is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use glob::{MatchOptions, Pattern};
use millrace_client::{Client, Entry, Kind};
use millrace_ops::size::parse_size;
use serde::Serialize;

use super::list::print_line;
use super::share;
use crate::age;
use crate::failure::{Failure, shown};
use crate::output::{self, Sizes};
use crate::walk::{self, Walk};

/// Print the paths below a directory that meet all conditions, one on a line.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace fs find datasets --name '*.parquet'
  millrace fs find / --type f --min-size 1GiB
  millrace fs find logs --older-than 30d -0 | xargs -0 -n 1 millrace fs stat
  millrace fs find datasets --name '*.parquet' | millrace fs load --paths-from -")]
pub(super) struct FindArgs {
    /// Directory to search
    #[arg(default_value = "/")]
    path: String,
    /// Names that match PATTERN, with `*`, `?` and `[abc]`
    #[arg(long, value_name = "PATTERN")]
    name: Option<Pattern>,
    /// Files or directories alone
    #[arg(long = "type", value_enum, value_name = "KIND")]
    only: Option<Only>,
    /// Files of at least SIZE, for example 64MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    min_size: Option<u64>,
    /// Files of at most SIZE
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_size: Option<u64>,
    /// Files that changed within this time: 30d, 12h, 90m or 45s
    #[arg(long, value_name = "AGE", value_parser = age::parse)]
    newer_than: Option<Duration>,
    /// Files that have not changed within this time
    #[arg(long, value_name = "AGE", value_parser = age::parse)]
    older_than: Option<Duration>,
    /// End each path with a zero byte, for `xargs -0`
    #[arg(short = '0', long)]
    print0: bool,
    /// Print one JSON document on a line for each path
    #[arg(long, conflicts_with = "print0")]
    json: bool,
}

/// Show how many bytes are below each directory.
///
/// These are the lengths of the files at their source, whether they are in the cache or not. With --cached a
/// second size says how much of them is in memory.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace fs du datasets
  millrace fs du -d 1 /
  millrace fs du --cached datasets
  millrace fs du --json datasets | jq -s 'max_by(.total_bytes).path'")]
pub(super) struct DuArgs {
    /// Directory or file
    #[arg(default_value = "/")]
    path: String,
    /// Print directories at most N levels below; their sums include everything
    #[arg(short = 'd', long, value_name = "N")]
    max_depth: Option<usize>,
    /// Also print how many bytes of the files are in memory
    #[arg(long)]
    cached: bool,
    /// Print exact sizes
    #[arg(long)]
    bytes: bool,
    /// Print one JSON document on a line for each directory
    #[arg(long, conflicts_with = "bytes")]
    json: bool,
}

/// What `--type` leaves.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Only {
    /// Files
    #[value(alias = "file")]
    F,
    /// Directories
    #[value(alias = "directory")]
    D,
}

impl FindArgs {
    fn is_wanted(&self, entry: &Entry, now_ms: i64) -> bool {
        let is_file = entry.kind == Kind::File;
        let options = MatchOptions::new();
        let asks_of_files = self.min_size.is_some()
            || self.max_size.is_some()
            || self.newer_than.is_some()
            || self.older_than.is_some();
        let since = |age: Duration| now_ms.saturating_sub_unsigned(age.as_millis() as u64);
        self.only.is_none_or(|only| (only == Only::F) == is_file)
            && (is_file || !asks_of_files)
            && self.name.as_ref().is_none_or(|it| it.matches_with(&entry.name, options))
            && self.min_size.is_none_or(|size| entry.length >= size)
            && self.max_size.is_none_or(|size| entry.length <= size)
            && self.newer_than.is_none_or(|age| entry.modified_ms >= since(age))
            && self.older_than.is_none_or(|age| entry.modified_ms < since(age))
    }
}

pub(super) async fn find(client: &Client, args: &FindArgs) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut walk = Walk::new(client, &walk::clean(&args.path));
    let mut failed_count = 0;
    while let Some((path, entries)) = walk.next_page(&mut failed_count).await? {
        let wanted = entries.iter().filter(|it| args.is_wanted(it, now.as_millis() as i64));
        let mut text = String::new();
        for entry in wanted {
            let path = walk::join(&path, &entry.name);
            match (args.json, args.print0) {
                (true, _) => print_line(&path, entry, None)?,
                (_, true) => text.extend([path.as_str(), "\0"]),
                _ => text.extend([output::name(&path).as_ref(), "\n"]),
            }
        }
        output::print(&text)?;
    }
    walk::judge_unlisted(failed_count)
}

/// A directory whose sum is not complete yet, and what scripts read of it.
#[derive(Serialize)]
struct Sum {
    path: String,
    file_count: u64,
    total_bytes: u64,
    /// Bytes of the blocks that are in memory whole, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    cached_bytes: Option<u64>,
}

impl Sum {
    fn add_cached(&mut self, bytes: u64) {
        if let Some(cached) = &mut self.cached_bytes {
            *cached += bytes;
        }
    }
}

pub(super) async fn du(client: &Client, args: &DuArgs) -> Result<(), Failure> {
    let path = walk::clean(&args.path);
    let top = client.stat(&path).await.map_err(|error| Failure::at_path(&path, &error))?;
    if top.kind == Kind::File {
        let cached_bytes = match args.cached {
            true => share::cached_bytes(client, &top).await?,
            false => None,
        };
        let sum = Sum { path, file_count: 1, total_bytes: top.length, cached_bytes };
        return print_sum(&sum, args);
    }
    let mut walk = Walk::new(client, &path);
    let mut failed_count = 0;
    // From the top to the directory that the walk is in.
    let mut sums: Vec<Sum> = Vec::new();
    while let Some((path, entries)) = walk.next_page(&mut failed_count).await? {
        while sums.last().is_some_and(|sum| !is_at_or_below(&path, &sum.path)) {
            finish(&mut sums, args)?;
        }
        let cached = match args.cached {
            true => share::cached_bytes_of_page(client, &path, &entries).await?,
            false => Vec::new(),
        };
        if sums.last().is_none_or(|sum| sum.path != path) {
            let cached_bytes = args.cached.then_some(0);
            sums.push(Sum { path, file_count: 0, total_bytes: 0, cached_bytes });
        }
        let Some(sum) = sums.last_mut() else { continue };
        for entry in entries.iter().filter(|entry| entry.kind == Kind::File) {
            sum.file_count += 1;
            sum.total_bytes += entry.length;
        }
        sum.add_cached(cached.into_iter().flatten().sum());
    }
    while !sums.is_empty() {
        finish(&mut sums, args)?;
    }
    walk::judge_unlisted(failed_count)
}

/// True if a path is a directory, or below it.
fn is_at_or_below(path: &str, directory: &str) -> bool {
    let rest = path.strip_prefix(directory);
    rest.is_some_and(|rest| directory.is_empty() || rest.is_empty() || rest.starts_with('/'))
}

/// Prints the sum of the last directory, and adds it to the one above.
fn finish(sums: &mut Vec<Sum>, args: &DuArgs) -> Result<(), Failure> {
    let Some(sum) = sums.pop() else { return Ok(()) };
    if let Some(above) = sums.last_mut() {
        above.file_count += sum.file_count;
        above.total_bytes += sum.total_bytes;
        above.add_cached(sum.cached_bytes.unwrap_or(0));
    }
    match args.max_depth.is_none_or(|depth| sums.len() <= depth) {
        true => print_sum(&sum, args),
        false => Ok(()),
    }
}

fn print_sum(sum: &Sum, args: &DuArgs) -> Result<(), Failure> {
    if args.json {
        return output::print_json_line(sum);
    }
    let sizes = Sizes::exact_if(args.bytes);
    let size = sizes.show(sum.total_bytes);
    // Fixed widths, so that lines are aligned though the next one is not known yet.
    let width = if args.bytes { 15 } else { 10 };
    let files = output::counted(sum.file_count, "file");
    let cached = match sum.cached_bytes {
        Some(bytes) => format!("{:>width$}  ", sizes.show(bytes)),
        None => String::new(),
    };
    let path = output::name(shown(&sum.path));
    output::print(&format!("{size:>width$}  {cached}{files:>14}  {path}\n"))
}

#[cfg(test)]
mod tests {
    use millrace_client::FileId;

    use super::*;
    use crate::age::DAY;

    #[test]
    fn sums_go_to_the_directory_above_and_not_beside() {
        assert!(is_at_or_below("a/b", "a") && is_at_or_below("a", "a") && is_at_or_below("a", ""));
        assert!(!is_at_or_below("ab", "a") && !is_at_or_below("a", "a/b"));
    }

    #[test]
    fn all_conditions_have_to_be_met() {
        let wanted = |arguments: &[&str], entry: &Entry| {
            #[derive(clap::Parser)]
            struct Line {
                #[command(flatten)]
                find: FindArgs,
            }
            let line = ["find"].iter().chain(arguments);
            let line: Line = clap::Parser::try_parse_from(line).expect("a line");
            line.find.is_wanted(entry, 10 * DAY.as_millis() as i64)
        };
        let entry = |kind, name: &str, length, days: i64| Entry {
            name: name.to_owned(),
            kind,
            id: FileId(1),
            version: 1,
            length,
            modified_ms: days * DAY.as_millis() as i64,
        };
        let file = entry(Kind::File, "a.parquet", 2048, 8);
        let directory = entry(Kind::Directory, "a.parquet", 0, 0);
        for (arguments, of_file, of_directory) in [
            (&[][..], true, true),
            (&["--name", "*.parquet"], true, true),
            (&["--name", "*.csv"], false, false),
            (&["--type", "f"], true, false),
            (&["--type", "d"], false, true),
            (&["--min-size", "2KiB"], true, false),
            (&["--min-size", "2049"], false, false),
            (&["--max-size", "2KiB"], true, false),
            (&["--newer-than", "3d"], true, false),
            (&["--newer-than", "1d"], false, false),
            (&["--older-than", "1d"], true, false),
            (&["--older-than", "3d"], false, false),
        ] {
            assert_eq!(wanted(arguments, &file), of_file, "{arguments:?}");
            assert_eq!(wanted(arguments, &directory), of_directory, "{arguments:?}");
        }
    }
}
