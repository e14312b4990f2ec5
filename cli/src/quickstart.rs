//! `millrace quickstart`: a node, a client and a proof, in one process and a few seconds.
//!
//! Owns the order of things: read everything through the empty cache, load what is missing, read it
//! all again, and compare every byte with the source both times. `source` chooses and lists the
//! files, `pass` reads and compares them, `report` prints. The node is the real one, reached over
//! TCP.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millrace_client::{Client, ClientConfig};
use millrace_node::{Config, Node};

mod source;

mod pass;

mod report;

use crate::failure::{Failure, is_about_path};
use crate::signals::Signals;
use crate::{fs, jobs, log, node, output};
use pass::{Sample, State};
use report::Report;
use source::Choice;

/// Files loaded at once.
const LOADS_AT_ONCE: usize = 16;
/// Longest wait for one file to be loaded.
const LOAD_DEADLINE: Duration = Duration::from_secs(60 * 60);

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
pub(crate) struct Args {
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

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let choice = source::choose(args.directory.as_deref())?;
    let config = config(args, &choice)?;
    // Quiet unless asked: what matters is in the report.
    log::start("off", None)?;
    let node = node::start(config.clone())?;
    let runtime = fs::runtime()?;
    let mut report = Report::new(&choice, &config, &node);
    if !args.json {
        output::print(&report.head())?;
    }
    let result = runtime.block_on(prove(&node, &choice, &mut report, args.json));
    drop(runtime);
    if let Err(failure) = result {
        node.stop();
        return Err(failure);
    }
    // From here on a signal ends the serving, not the process.
    let signals = if args.keep && report.is_proof() { Some(Signals::install()?) } else { None };
    let text = if args.json { output::json(&report)? } else { report.verdict() };
    match &signals {
        Some(_) => output::announce(&text),
        None => output::print(&text)?,
    }
    if let Some(signals) = signals {
        let text = report.how_to_connect();
        if args.json {
            output::note(text.trim_end())
        } else {
            output::announce(&text)
        }
        signals.wait();
    }
    node.stop();
    report.judge()
}

/// The settings of the node: its defaults, and what the flags say. The environment has no say.
fn config(args: &Args, choice: &Choice) -> Result<Config, Failure> {
    let given =
        [("memory", &args.memory), ("shards", &args.shards), ("block_size", &args.block_size)];
    let mut flags = vec![
        ("source".to_owned(), choice.directory.display().to_string()),
        ("listen".to_owned(), args.listen.clone()),
        // A look at how it works should not wait for memory that it will not need.
        ("populate".to_owned(), "false".to_owned()),
    ];
    for (name, value) in given {
        flags.extend(value.clone().map(|value| (name.to_owned(), value)));
    }
    let mut config = Config::load(None, [], flags).map_err(node::refused)?;
    // As text it may have lost what is not UTF-8.
    config.source.clone_from(&choice.directory);
    Ok(config)
}

/// Reads, loads, reads again.
async fn prove(
    node: &Node,
    choice: &Choice,
    report: &mut Report,
    is_quiet: bool,
) -> Result<(), Failure> {
    let client = Client::connect(node.address().to_string(), ClientConfig::new()).await?;
    report.set_cluster(client.cluster());
    let found = source::walk(&client, &choice.directory).await?;
    if found.samples.is_empty() {
        let message = format!("{} has no files to read", choice.directory.display());
        return Err(Failure::new(message).with_hint("name a directory that has some"));
    }
    let mut samples = found.samples;
    report.set_files(&samples, found.unreadable, found.skipped_count);
    report.capacity_bytes = client.status().await?.counter("capacity_bytes");
    if !is_quiet {
        output::print(&report.files())?;
    }
    let root = &choice.directory;
    let cold = pass::run("cold", &client, root, &mut samples).await?;
    load(&client, &mut samples).await?;
    let before = client.status().await?;
    let warm = pass::run("warm", &client, root, &mut samples).await?;
    let after = client.status().await?;
    report.set_warm_counters(&before, &after);
    report.passes = vec![cold, warm];
    report.set_outcome(&samples);
    Ok(())
}

/// Makes sure that all is resident.
async fn load(client: &Client, samples: &mut [Sample]) -> Result<(), Failure> {
    let client = client.with_deadline(LOAD_DEADLINE);
    let good = samples.iter().enumerate().filter(|(_, sample)| sample.state == State::Good);
    let paths: Vec<_> =
        good.map(|(index, sample)| (index, sample.file.path.clone(), sample.file.length)).collect();
    let bar = output::bytes_bar("load", paths.iter().map(|(_, _, length)| length).sum());
    let start = |(index, path, length): (usize, Arc<str>, u64)| {
        let client = client.clone();
        async move { (index, length, client.load(&path).await) }
    };
    let done = |(index, length, result): (usize, u64, Result<_, _>)| {
        bar.inc(length);
        match result {
            Ok(_) => {}
            Err(error) if is_about_path(&error) => {
                samples[index].state = State::Unreadable(error.to_string());
            }
            Err(error) => return Err(Failure::at_path(&samples[index].file.path, &error)),
        }
        Ok(())
    };
    let result = jobs::for_each(paths, LOADS_AT_ONCE, start, done).await;
    bar.finish_and_clear();
    result
}
