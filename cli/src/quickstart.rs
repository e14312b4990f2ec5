//! `millrace quickstart`: a node, a client and a proof, in one process and a few seconds.
//!
//! Owns the order of things: read everything through the empty cache, read it all again, and
//! compare every byte with the source both times. `pass` finds, reads and compares the files,
//! `report` prints. The node is the real one, reached over TCP.

use std::path::{Path, PathBuf};

use millrace_client::{Client, ClientConfig};
use millrace_node::{Config, Node};

mod pass;

mod report;

use crate::failure::Failure;
use crate::signals::Signals;
use crate::{fs, log, node, output};
use report::QuickstartReport;

/// The directory that is read where it has files: text of many small files, on most systems.
const USUAL_DIRECTORY: &str = "/usr/share/doc";
/// Most entries of one directory that are looked at to find out whether it holds a file.
const LOOKED_AT_MAX: usize = 1000;

/// See it work: cache a directory, read it twice, compare every byte.
///
/// Starts a node in this process, reads every file below DIR through it, first with the cache empty
/// and then from memory, and compares every byte with what the file system says. DIR is only read,
/// and nothing is left behind.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace quickstart
  millrace quickstart ~/datasets --memory 4GiB
  millrace quickstart /data --keep              and serve it on, to try the other verbs")]
pub(crate) struct QuickstartArgs {
    /// Directory to read [default: /usr/share/doc, or where this program lies]
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Memory for cached blocks [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Worker threads, each with a core of its own [default: one per core]
    #[arg(long, value_name = "COUNT")]
    shards: Option<String>,
    /// Unit of caching, a power of two [default: 1MiB]
    #[arg(long, value_name = "SIZE")]
    block_size: Option<String>,
    /// Address to listen on; port 0 takes any free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    listen: String,
    /// Go on serving DIR afterwards, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Print one JSON document instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &QuickstartArgs) -> Result<(), Failure> {
    let directory = args.directory.clone().unwrap_or_else(usual_directory);
    if let Err(error) = std::fs::read_dir(&directory) {
        let message = format!("cannot read DIR {}: {error}", directory.display());
        let advice = "name a directory that exists and may be read: millrace quickstart DIR";
        return Err(Failure::new(message).with_hint(advice));
    }
    let config = config(args, &directory)?;
    // Quiet unless asked: what matters is in the report.
    log::start("off", None)?;
    let node = node::start(config.clone())?;
    let proof = fs::runtime()?.block_on(prove(&node, &config, args.json));
    let result = proof.and_then(|report| show(&report, args));
    node.stop();
    result
}

/// Prints what was found, and serves on where that is asked for.
fn show(report: &QuickstartReport, args: &QuickstartArgs) -> Result<(), Failure> {
    // From here on a signal ends the serving, not the process.
    let signals = (args.keep && report.is_proof()).then(Signals::install).transpose()?;
    let text = if args.json { output::json(report)? } else { report.verdict() };
    let Some(signals) = signals else {
        output::print(&text)?;
        return report.judge();
    };
    output::announce(&text);
    let text = report.how_to_connect();
    if args.json {
        output::note(text.trim_end())
    } else {
        output::announce(&text)
    }
    signals.wait();
    Ok(())
}

/// Returns the directory that is read where none was named: one that is sure to hold something.
fn usual_directory() -> PathBuf {
    let usual = PathBuf::from(USUAL_DIRECTORY);
    let program = std::env::current_exe().unwrap_or_default();
    match program.parent() {
        Some(own) if !holds_file(&usual) => own.to_owned(),
        _ => usual,
    }
}

/// True if a file with content lies in the directory or below, symbolic links left aside.
fn holds_file(directory: &Path) -> bool {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.take(LOOKED_AT_MAX).any(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => holds_file(&entry.path()),
        Ok(metadata) => metadata.is_file() && metadata.len() > 0,
        Err(_) => false,
    })
}

/// Returns the settings of the node: its defaults, and the flags. The environment does not count.
fn config(args: &QuickstartArgs, directory: &Path) -> Result<Config, Failure> {
    let flags = [
        ("source", Some(directory.display().to_string())),
        ("listen", Some(args.listen.clone())),
        // A quick look should not wait for memory that it will not need.
        ("populate", Some("false".to_owned())),
        ("memory", args.memory.clone()),
        ("shards", args.shards.clone()),
        ("block_size", args.block_size.clone()),
    ];
    let flags = flags.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let mut config = Config::load(None, [], flags.collect()).map_err(node::refused)?;
    // As text the path may have lost bytes that are not UTF-8.
    config.source = directory.to_owned();
    Ok(config)
}

/// Reads everything twice.
async fn prove(node: &Node, config: &Config, is_quiet: bool) -> Result<QuickstartReport, Failure> {
    let client = Client::connect(node.address().to_string(), ClientConfig::new()).await?;
    let root = &config.source;
    let mut found = pass::find(&client, root).await?;
    if found.samples.is_empty() {
        let message = format!("{} has no files to read", root.display());
        return Err(Failure::new(message).with_hint("name a directory that has some"));
    }
    let mut report = QuickstartReport::new(config, node, &client, &found);
    report.capacity_bytes = client.status().await?.counter("capacity_bytes");
    if !is_quiet {
        output::print(&report.head())?;
    }
    let cold = pass::run("cold", &client, root, &mut found.samples).await?;
    let before = client.status().await?;
    let warm = pass::run("warm", &client, root, &mut found.samples).await?;
    report.set_warm_counters(&before, &client.status().await?);
    report.set_outcome(found, [cold, warm]);
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_with_nothing_to_read_is_not_chosen() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("empty"), "").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("link")).unwrap();
        assert!(!holds_file(root.path()));
        std::fs::create_dir(root.path().join("deep")).unwrap();
        std::fs::write(root.path().join("deep/file"), "x").unwrap();
        assert!(holds_file(root.path()));
        assert!(holds_file(&usual_directory()));
    }
}
