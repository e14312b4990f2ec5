//! `millrace fs ls` and `millrace fs stat`: what is there.
//!
//! Owns their text and JSON forms. A listing is printed page by page, so a large directory or tree starts
//! to appear at once and never has to fit memory.

use std::fmt::Write as _;

use millrace_client::{Client, Entry, File, Kind, ListedPage, Status};
use serde::Serialize;

use super::share;
use crate::failure::{Failure, shown};
use crate::output::{self, Align, Sizes, Table};
use crate::walk::{self, Walk};

/// List a directory.
///
/// Names of directories end with `/`. With -R whole paths are printed, one on a line. On a terminal control
/// characters of names are escaped.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace fs ls
  millrace fs ls -l datasets
  millrace fs ls -R -0 datasets | xargs -0 -n 1 millrace fs stat
  millrace fs ls --cached datasets
  millrace fs ls -R --json | jq -r 'select(.length > 1e9) | .path'")]
pub(super) struct LsArgs {
    /// Directory or file
    #[arg(default_value = "/")]
    path: String,
    /// Also print size and time of the last change (UTC)
    #[arg(short, long)]
    long: bool,
    /// Also list everything below
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Also print how much of each file is in memory, in percent of its bytes
    #[arg(long)]
    cached: bool,
    /// Print exact sizes
    #[arg(long)]
    bytes: bool,
    /// End each name with a zero byte instead of a line end, for scripts: a name may have line ends in it
    #[arg(short = '0', long)]
    print0: bool,
    /// Print one JSON document on a line for each entry
    #[arg(long, conflicts_with_all = ["long", "bytes", "print0"])]
    json: bool,
}

/// Show all that is known of one file or directory.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace fs stat datasets/train.csv
  millrace fs stat --json datasets/train.csv")]
pub(super) struct StatArgs {
    /// File or directory
    path: String,
    /// Print exact sizes
    #[arg(long)]
    bytes: bool,
    /// Print one JSON document
    #[arg(long, conflicts_with = "bytes")]
    json: bool,
}

/// What a script reads of an entry. Id and version are text: they may not fit the numbers of JSON.
#[derive(Serialize)]
struct EntryDocument<'a> {
    path: &'a str,
    kind: &'static str,
    length: u64,
    modified_ms: i64,
    id: String,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    block_size: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    block_count: Option<u64>,
    /// Bytes of the blocks that are in memory whole, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    cached_bytes: Option<u64>,
}

/// Returns `file` or `directory`.
fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
    }
}

pub(super) async fn ls(client: &Client, args: &LsArgs) -> Result<(), Failure> {
    let path = walk::clean(&args.path);
    if args.recursive {
        return ls_tree(client, &path, args).await;
    }
    let (mut token, mut failed_count) = (None::<String>, 0);
    loop {
        let page = match client.listed_page(&path, token.as_deref(), 0).await {
            Err(error) if token.is_none() && error.status() == Some(Status::WrongKind) => {
                return ls_file(client, &path, args).await;
            }
            page => page.map_err(|error| Failure::at_path(&path, &error))?,
        };
        let ListedPage { entries, next, left_out_count, left_out_example, .. } = page;
        let label = |entry: &Entry| entry.name.clone();
        print_page(client, args, &path, &entries, label).await?;
        if left_out_count > 0 {
            let text = walk::left_out(&path, left_out_count, &left_out_example);
            output::note(&format!("millrace: {text}"));
            failed_count += left_out_count;
        }
        if next.is_none() || next == token {
            return walk::judge_unlisted(failed_count);
        }
        token = next;
    }
}

async fn ls_file(client: &Client, path: &str, args: &LsArgs) -> Result<(), Failure> {
    let file = client.stat(path).await.map_err(|error| Failure::at_path(path, &error))?;
    let entry = Entry {
        name: path.to_owned(),
        kind: file.kind,
        id: file.id,
        version: file.version,
        length: file.length,
        modified_ms: file.modified_ms,
    };
    let cached = match args.cached {
        true => share::cached_bytes(client, &file).await?,
        false => None,
    };
    if args.json {
        print_line(path, &entry, cached)
    } else {
        output::print(&lines(&[entry], &[cached], args, |entry| entry.name.clone()))
    }
}

/// Prints the entries of a page, each under the name that `label` gives it.
async fn print_page(
    client: &Client,
    args: &LsArgs,
    path: &str,
    entries: &[Entry],
    label: impl Fn(&Entry) -> String,
) -> Result<(), Failure> {
    let cached = match args.cached {
        true => share::cached_bytes_of_page(client, path, entries).await?,
        false => vec![None; entries.len()],
    };
    if args.json {
        let mut entries = entries.iter().zip(cached);
        return entries.try_for_each(|(entry, cached)| {
            print_line(&walk::join(path, &entry.name), entry, cached)
        });
    }
    output::print(&lines(entries, &cached, args, label))
}

async fn ls_tree(client: &Client, path: &str, args: &LsArgs) -> Result<(), Failure> {
    let mut walk = Walk::new(client, path);
    let mut failed_count = 0;
    while let Some((path, entries)) = walk.next_page(&mut failed_count).await? {
        let label = |entry: &Entry| walk::join(&path, &entry.name);
        print_page(client, args, &path, &entries, label).await?;
    }
    walk::judge_unlisted(failed_count)
}

/// Formats entries as text with what is in memory of each, each under the name that `label` gives it.
fn lines(
    entries: &[Entry],
    cached: &[Option<u64>],
    args: &LsArgs,
    label: impl Fn(&Entry) -> String,
) -> String {
    let mut text = String::new();
    for (entry, cached) in entries.iter().zip(cached) {
        let mark = if entry.kind == Kind::Directory { "/" } else { "" };
        let name = if args.print0 { label(entry) } else { output::name(&label(entry)) };
        if args.long {
            let size = match entry.kind {
                Kind::File => Sizes::exact_if(args.bytes).show(entry.length),
                Kind::Directory => "-".to_owned(),
            };
            // Fixed widths, so that directories printed one after the other are aligned too.
            let width = if args.bytes { 15 } else { 10 };
            let time = output::time(entry.modified_ms);
            let _ = write!(text, "{size:>width$}  {time}  ");
        }
        if args.cached {
            let _ = write!(text, "{:>5}  ", share::shown(*cached, entry.length));
        }
        let end = if args.print0 { '\0' } else { '\n' };
        let _ = write!(text, "{name}{mark}{end}");
    }
    text
}

/// Prints one JSON document on a line, with what is in memory if that is known.
pub(super) fn print_line(path: &str, entry: &Entry, cached: Option<u64>) -> Result<(), Failure> {
    output::print_json_line(&EntryDocument {
        path,
        kind: kind_name(entry.kind),
        length: entry.length,
        modified_ms: entry.modified_ms,
        id: entry.id.to_string(),
        version: format!("{:016x}", entry.version),
        block_size: None,
        block_count: None,
        cached_bytes: cached,
    })
}

pub(super) async fn stat(client: &Client, args: &StatArgs) -> Result<(), Failure> {
    let path = walk::clean(&args.path);
    let file = client.stat(&path).await.map_err(|error| Failure::at_path(&path, &error))?;
    let cached = match file.kind {
        Kind::File => share::cached_bytes(client, &file).await?,
        Kind::Directory => None,
    };
    if args.json {
        return output::print_json(&EntryDocument {
            path: &file.path,
            kind: kind_name(file.kind),
            length: file.length,
            modified_ms: file.modified_ms,
            id: file.id.to_string(),
            version: format!("{:016x}", file.version),
            block_size: Some(file.block_size),
            block_count: Some(file.block_count()),
            cached_bytes: cached,
        });
    }
    output::print(&describe(&file, cached, Sizes::exact_if(args.bytes)))
}

fn describe(file: &File, cached: Option<u64>, sizes: Sizes) -> String {
    let mut table = Table::new(&[Align::Left, Align::Left]);
    table.row(["path", &output::name(shown(&file.path))]);
    table.row(["kind", kind_name(file.kind)]);
    if file.kind == Kind::File {
        let blocks = output::count(file.block_count());
        let block_size = sizes.show(file.block_size.into());
        table.row(["size", &sizes.show(file.length)]);
        table.row(["blocks", &format!("{blocks} of {block_size}")]);
    }
    if let Some(cached) = cached {
        let share = share::shown(Some(cached), file.length);
        table.row(["in memory", &format!("{} ({share})", sizes.show(cached))]);
    }
    table.row(["modified", &format!("{} UTC", output::time(file.modified_ms))]);
    if file.kind == Kind::File {
        table.row(["version", &format!("{:016x}", file.version)]);
        table.row(["id", &file.id.to_string()]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use millrace_client::FileId;

    use super::*;

    fn entry(name: &str, kind: Kind, length: u64) -> Entry {
        Entry { name: name.to_owned(), kind, id: FileId(1), version: 2, length, modified_ms: 0 }
    }

    #[test]
    fn long_lines_are_aligned_and_short_ones_bare() {
        let entries = [entry("data", Kind::Directory, 0), entry("grün.txt", Kind::File, 1500)];
        let mut args = LsArgs {
            path: String::new(),
            long: false,
            cached: false,
            recursive: false,
            bytes: false,
            print0: false,
            json: false,
        };
        let name = |entry: &Entry| entry.name.clone();
        assert_eq!(lines(&entries, &[None; 2], &args, name), "data/\ngrün.txt\n");
        args.long = true;
        let expect =
            "         -  1970-01-01 00:00  data/\n   1.5 KiB  1970-01-01 00:00  grün.txt\n";
        assert_eq!(lines(&entries, &[None; 2], &args, name), expect);
        (args.long, args.cached) = (false, true);
        let expect = "    -  data/\n 50 %  grün.txt\n";
        assert_eq!(lines(&entries, &[None, Some(750)], &args, name), expect);
        let odd = [entry("a\nb", Kind::File, 0), entry("c", Kind::Directory, 0)];
        args = LsArgs { long: false, cached: false, print0: true, ..args };
        assert_eq!(lines(&odd, &[None; 2], &args, name), "a\nb\0c/\0");
    }
}
