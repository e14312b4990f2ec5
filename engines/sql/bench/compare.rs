//! The order of measurement.
//!
//! Always holds: the ways of one comparison are run in turns, each run is a process of its own, and the way that
//! comes first changes with each round. All ways have to give the same answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use millrace_bench::machine;
use millrace_bench::rival::{self, NodeOptions, Server, Transport};
use millrace_bench::store::{self, Objects, Pace, Proxy};
use object_store::{ObjectStoreExt as _, PutPayload, WriteMultipart, path::Path as Key};

use crate::report::{Aim, Line, Report};
use crate::run::Measured;
use crate::tpch;

/// Bytes of one part of an upload to the store.
const PART: usize = 16 << 20;
/// Query whose bytes are counted: a scan of four columns.
const SCAN: usize = 6;

/// What is compared, and how.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Directory with the files, as `make` has left it
    #[arg(long)]
    data: PathBuf,
    /// The program millrace, which is the node [default: the one beside this program]
    #[arg(long)]
    millrace: Option<PathBuf>,
    /// Bucket of a store that takes writes without a signature, http://HOST:PORT/BUCKET; without it stores are left
    /// out
    #[arg(long)]
    store: Option<String>,
    /// Time from a request to the store to the first byte of its answer
    #[arg(long, default_value_t = 20)]
    latency_ms: u64,
    /// Megabytes a second of each connection to the store, 10^6 bytes each
    #[arg(long, default_value_t = 100)]
    mb_per_s: u64,
    /// Memory of the node in MiB
    #[arg(long, default_value_t = 2048)]
    memory_mib: u64,
    /// Rounds; an odd number has a median that was measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// Compares.
///
/// # Errors
/// If a run fails, or ways have different answers.
pub(crate) fn compare(options: &Options) -> Result<Report> {
    ensure!(options.rounds > 0, "no rounds, no result");
    let mut report = Report::new(options.rounds);
    near(options, &mut report)?;
    if let Some(url) = &options.store {
        Far::new(options, url)?.measure(&mut report)?;
    }
    Ok(report)
}

/// Runs queries in a process of its own.
fn run(arguments: &[&str]) -> Result<Measured> {
    let program = std::env::current_exe().context("find this program")?;
    let output =
        Command::new(program).arg("run").args(arguments).output().context("start a run")?;
    if !output.status.success() {
        bail!("a run of {arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("read what a run has measured")
}

fn start_node(options: &Options, source: &Path, arguments: Vec<String>) -> Result<Server> {
    let beside = || Some(std::env::current_exe().ok()?.with_file_name("millrace"));
    let node = NodeOptions {
        program: options.millrace.clone().or_else(beside),
        memory_bytes: options.memory_mib << 20,
        arguments,
    };
    rival::start_node(&node, source, &machine::usable_cpus()?, Transport::Tcp)
}

fn same_answers(runs: &[&Measured]) -> Result<()> {
    for pair in runs.windows(2) {
        let equal = pair[0].answers == pair[1].answers;
        ensure!(
            equal,
            "two ways have different answers: {:?}",
            (&pair[0].answers, &pair[1].answers)
        );
    }
    Ok(())
}

/// Measures files of this machine, and the same through a node on it.
fn near(options: &Options, report: &mut Report) -> Result<()> {
    let data = std::path::absolute(&options.data)?;
    let node = start_node(options, &data, Vec::new())?;
    let (address, files) = (node.address().to_string(), data.display().to_string());
    let ways: [&[&str]; 3] =
        [&["--files", &files], &["--node", &address], &["--node", &address, "--far"]];
    // The files come into the page cache, and the blocks into the node.
    eprintln!("reading everything once");
    for way in ways {
        run(way)?;
    }
    let mut rounds: [Vec<Measured>; 3] = Default::default();
    for round in 0..options.rounds {
        eprintln!("near, round {} of {}", round + 1, options.rounds);
        for step in 0..ways.len() {
            let index = (round + step) % ways.len();
            rounds[index].push(run(ways[index])?);
        }
        same_answers(&rounds.each_ref().map(|runs| &runs[round]))?;
    }
    let [local, memory, tcp] = &rounds;
    report.queries("each query, files of the machine", local);
    report.queries("each query, node, shared memory", memory);
    report.queries("each query, node, TCP", tcp);
    let line = |name, runs, aim| Line::new(name, local, runs, aim);
    report.lines.push(line("node, shared memory, beside files", memory, Aim::AtMost(1.05)));
    report.lines.push(line("node, TCP, beside files", tcp, Aim::AtMost(1.25)));
    Ok(())
}

/// A store behind a slow line, and the same through a node.
struct Far<'a> {
    options: &'a Options,
    bucket: String,
    proxy: Proxy,
}

impl Far<'_> {
    fn new<'a>(options: &'a Options, url: &str) -> Result<Far<'a>> {
        let (endpoint, bucket) = store::parts_of(url)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        eprintln!("putting the files");
        runtime.block_on(async {
            let target = store::bucket(endpoint, bucket)?;
            for (table, _) in tpch::TABLES {
                let name = format!("{table}.parquet");
                let bytes = std::fs::read(options.data.join(&name))?;
                let key = Key::from(name);
                if bytes.len() < PART {
                    target.put(&key, PutPayload::from(bytes)).await?;
                    continue;
                }
                let upload = object_store::ObjectStoreExt::put_multipart(&target, &key).await?;
                let mut upload = WriteMultipart::new_with_chunk_size(upload, PART);
                upload.write(&bytes);
                upload.finish().await?;
            }
            anyhow::Ok(())
        })?;
        let pace = Pace {
            latency: Duration::from_millis(options.latency_ms),
            bytes_per_s: options.mb_per_s * 1_000_000,
        };
        let nothing = Arc::new(Objects::new(BTreeMap::new(), 1));
        let proxy = Proxy::start(nothing, Some(store::address_of(endpoint)?), pace)?;
        Ok(Far { options, bucket: bucket.to_owned(), proxy })
    }

    fn node(&self) -> Result<Server> {
        let arguments = [
            "--source-option",
            &format!("endpoint=http://{}", self.proxy.address),
            "--source-option",
            "skip_signature=true",
        ];
        let source = format!("s3://{}", self.bucket);
        start_node(self.options, Path::new(&source), arguments.map(str::to_owned).to_vec())
    }

    /// Runs queries; returns what the line has carried for them, too.
    fn run(&self, arguments: &[&str]) -> Result<(Measured, u64)> {
        let before = self.proxy.traffic();
        let measured = run(arguments)?;
        Ok((measured, (self.proxy.traffic() - before).bytes))
    }

    fn measure(&self, report: &mut Report) -> Result<()> {
        let url = format!("http://{}/{}", self.proxy.address, self.bucket);
        let scan = SCAN.to_string();
        let (mut direct, mut cold, mut warm) = (Vec::new(), Vec::new(), Vec::new());
        let mut bytes: [Vec<f64>; 2] = Default::default();
        for round in 0..self.options.rounds {
            eprintln!("store, round {} of {}", round + 1, self.options.rounds);
            for step in 0..2 {
                if (round + step) % 2 == 0 {
                    direct.push(self.run(&["--store", &url])?.0);
                    bytes[0].push(self.run(&["--store", &url, "--queries", &scan])?.1 as f64);
                } else {
                    let node = self.node()?;
                    let address = node.address().to_string();
                    cold.push(self.run(&["--node", &address])?.0);
                    warm.push(self.run(&["--node", &address])?.0);
                    drop(node);
                    let node = self.node()?;
                    let address = node.address().to_string();
                    bytes[1].push(self.run(&["--node", &address, "--queries", &scan])?.1 as f64);
                }
            }
            same_answers(&[&direct[round], &cold[round], &warm[round]])?;
        }
        report.queries("each query, store", &direct);
        report.queries("each query, node over the store, cold", &cold);
        report.lines.push(Line::new(
            "node, cold, beside the store",
            &direct,
            &cold,
            Aim::AtMost(1.1),
        ));
        report.lines.push(Line::new(
            "node, warm, beside the store",
            &direct,
            &warm,
            Aim::AtMost(0.2),
        ));
        let [store, node] = bytes;
        report.lines.push(Line::of_values(
            "query 6, cold, bytes from the store",
            "MB",
            store.iter().map(|bytes| bytes / 1e6).collect(),
            node.iter().map(|bytes| bytes / 1e6).collect(),
            Aim::AtMost(1.1),
        ));
        Ok(())
    }
}
