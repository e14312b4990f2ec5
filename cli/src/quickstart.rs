//! `millrace quickstart`: a node, a client and a proof, in one process and a few seconds.
//!
//! Owns the order of things: read everything through the empty cache, read it all again, and
//! compare every byte with the source both times. `pass` finds, reads and compares the files, `truth`
//! asks the source itself, `report` prints. The node is the real one, reached over TCP.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use millrace_client::{Client, ClientConfig};
use millrace_node::under_store::StoreLimits;
use millrace_node::{Config, Node};
use millrace_ops::settings::LIST_SEPARATOR;
use millrace_stores::Direct;

mod pass;

mod report;
mod truth;

use crate::failure::{Failure, shown};
use crate::signals::Signals;
use crate::source::Source;
use crate::{fs, log, node, output};
use report::QuickstartReport;
use truth::Truth;

/// The directory that is read where it has files: text of many small files, on most systems.
const USUAL_DIRECTORY: &str = "/usr/share/doc";
/// Most entries of one directory that are looked at to find out whether it holds a file.
const LOOKED_AT_MAX: usize = 1000;

/// See it work: cache a directory or a bucket, read it twice, compare every byte.
///
/// Starts a node in this process, reads every file below SOURCE through it, first with the cache empty
/// and then from memory, and compares every byte with what the file system or the store says by itself.
/// SOURCE is only read, and nothing is left behind. Credentials of a store come from the environment, as
/// for `millrace node` (docs/STORES.md).
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace quickstart
  millrace quickstart ~/datasets --memory 4GiB
  millrace quickstart s3://bucket/prefix        with AWS_ACCESS_KEY_ID and the like in the environment
  millrace quickstart s3://box --source-option endpoint=http://store:9000
  millrace quickstart /data --keep              and serve it on, to try the other verbs")]
pub(crate) struct QuickstartArgs {
    /// Directory or store to read [default: /usr/share/doc, or where this program lies]
    #[arg(value_name = "DIR|URL")]
    source: Option<PathBuf>,
    /// Option of the store, such as endpoint=URL or region=NAME; may be given several times
    #[arg(long = "source-option", value_name = "KEY=VALUE")]
    source_options: Vec<String>,
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
    /// Go on serving SOURCE afterwards, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Print one JSON document instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &QuickstartArgs) -> Result<(), Failure> {
    let source = args.source.as_deref().map(Source::named).transpose()?;
    let source = source.unwrap_or_else(|| Source::Directory(usual_directory()));
    let config = config(args, &source)?;
    let truth = Arc::new(truth(&source, &config)?);
    // Quiet unless asked: what matters is in the report.
    log::start("off", None)?;
    let node = node::start(config.clone())?;
    let proof = fs::runtime()?.block_on(prove(&node, &config, &truth, args.json));
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

/// Opens the other side of the comparison.
///
/// # Errors
/// If the directory cannot be read, or the store cannot be asked what it has.
fn truth(source: &Source, config: &Config) -> Result<Truth, Failure> {
    match source {
        Source::Directory(directory) => match std::fs::read_dir(directory) {
            Ok(_) => Ok(Truth::Directory(directory.clone())),
            Err(error) => {
                let message = format!("cannot read DIR {}: {error}", directory.display());
                let advice =
                    "name a directory that exists and may be read: millrace quickstart DIR";
                Err(Failure::new(message).with_hint(advice))
            }
        },
        Source::Store(url) => {
            let patience = Duration::from_millis(config.source_timeout_ms);
            let concurrency = config.fill_concurrency;
            let limits = StoreLimits { concurrency, patience, bandwidth: None };
            let direct = Direct::open(url, &config.source_options, limits)
                .map_err(|error| Failure::new(format!("open {url}: {error}")))?;
            if !direct.has_listings() {
                let message = format!("{url} is a web server, which cannot say which files it has");
                let advice = format!(
                    "serve it with `millrace node {url}`, and name the files: millrace fs cat PATH"
                );
                return Err(Failure::new(message).with_hint(advice));
            }
            Ok(Truth::Store(direct))
        }
    }
}

/// Returns the settings of the node: its defaults, and the flags. The environment does not count.
fn config(args: &QuickstartArgs, source: &Source) -> Result<Config, Failure> {
    let options = args.source_options.join(&LIST_SEPARATOR.to_string());
    let flags = [
        ("source", Some(source.path().display().to_string())),
        ("source_option", Some(options).filter(|it| !it.is_empty())),
        ("listen", Some(args.listen.clone())),
        // A quick look should not wait for memory that it will not need.
        ("populate", Some("false".to_owned())),
        // A file that changes meanwhile is to be told from one with wrong bytes.
        ("stale_after_ms", Some("0".to_owned())),
        ("memory", args.memory.clone()),
        ("shards", args.shards.clone()),
        ("block_size", args.block_size.clone()),
    ];
    let flags = flags.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let mut config = Config::load(None, [], flags.collect()).map_err(node::refused)?;
    // As text the path may have lost bytes that are not UTF-8.
    config.source = source.path();
    Ok(config)
}

/// Reads everything twice.
async fn prove(
    node: &Node,
    config: &Config,
    truth: &Arc<Truth>,
    is_quiet: bool,
) -> Result<QuickstartReport, Failure> {
    let client = Client::connect(node.address().to_string(), ClientConfig::new()).await?;
    let mut found = pass::find(&client, truth).await?;
    if found.samples.is_empty() {
        let message = format!("{} has no files to read", config.source.display());
        let reason = found.unreadable.first().map(|(path, reason)| (shown(path), reason));
        let hint = match reason {
            Some((path, reason)) => format!("{path} cannot be listed: {reason}"),
            None => "name a directory or a prefix that has some".to_owned(),
        };
        return Err(Failure::new(message).with_hint(hint));
    }
    let mut report = QuickstartReport::new(config, node, &client, &found);
    report.capacity_bytes = client.status().await?.counter("capacity_bytes");
    if !is_quiet {
        output::print(&report.head())?;
    }
    let cold = pass::run("cold", &client, truth, &mut found.samples).await?;
    let before = client.status().await?;
    let warm = pass::run("warm", &client, truth, &mut found.samples).await?;
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
