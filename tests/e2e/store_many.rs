//! Very many objects: lists and sums that add up, in memory that does not grow with them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use millrace_client::JobOptions;
use millrace_tests::origin::Origin;
use millrace_tests::process::program;
use millrace_tests::{Node, NodeOptions, Scratch};

/// Objects unless `MILLRACE_KEYS` says otherwise.
const KEYS: usize = 20_000;
/// Most memory in KiB that a process may need more than for a few objects. Derived: the tables of a node hold
/// 100,000 files, and a page of a listing has at most a thousand names.
const GROWTH_MAX: u64 = 96 << 10;

/// Returns the most memory that a process has had so far, in KiB.
fn peak(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Runs `millrace fs`; returns its lines and the most memory that it was seen to have, in KiB.
fn fs(node: &Node, arguments: &[&str]) -> (usize, String, u64) {
    let mut command = Command::new(program().expect("the program was built"));
    command.arg("fs").args(arguments).arg("--node").arg(node.address().to_string());
    let mut child = command.stdout(Stdio::piped()).spawn().expect("run millrace");
    let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let (mut count, mut last, mut most) = (0, String::new(), 0);
    for line in stdout.lines() {
        last = line.expect("a line");
        count += 1;
        if count % 200 == 1 {
            most = most.max(peak(child.id()).unwrap_or(0));
        }
    }
    assert!(child.wait().expect("it ends").success(), "{arguments:?}");
    (count, last, most)
}

/// Returns how many objects a test makes.
fn key_count() -> usize {
    std::env::var("MILLRACE_KEYS").ok().and_then(|it| it.parse().ok()).unwrap_or(KEYS)
}

/// Makes a store with one object in `few`, and with `keys` in `box/lake`: most lie in one directory, and every
/// hundredth in one of its own.
fn store(keys: usize) -> Origin {
    let origin = Origin::start();
    origin.put("few", "it", vec![1]);
    for key in 0..keys {
        let name = if key % 100 == 0 { format!("d{key:07}/it") } else { format!("f{key:07}") };
        origin.put("box", &format!("lake/{name}"), vec![0; key % 3]);
    }
    origin
}

/// Returns the settings of a node that serves a part of a store.
fn options(origin: &Origin, source: &str) -> NodeOptions {
    let endpoint = format!("endpoint={}:skip_signature=true", origin.url());
    NodeOptions::new(Path::new(source)).set("source_option", endpoint)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_for_very_many_keys_needs_little_memory_and_is_killed_in_the_middle() {
    let keys = key_count();
    let origin = store(keys);
    let few = options(&origin, "s3://few").start();
    fs(&few, &["load", "-r", "/"]);
    let few_node = peak(few.id()).expect("the node runs");
    let data = Scratch::new();
    let mut node = options(&origin, "s3://box/lake").set("data", data.root().display()).start();
    let client = node.client().await;
    let mut recursive = JobOptions::new();
    recursive.recursive = true;
    let id = client.start_job(&[String::new()], &recursive).await.expect("start");
    let mut most = 0;
    for share in [4, 2] {
        let wanted = (keys / share) as u64;
        while client.job(id).await.expect("the job").file_count < wanted {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        most = most.max(peak(node.id()).expect("the node runs"));
        let before = client.job(id).await.expect("the job");
        assert!(!before.state.is_ended(), "it ended before it could be killed: {before:?}");
        node.kill();
        node.restart();
        let after = client.job(id).await.expect("the job is kept");
        assert!(after.file_count >= before.file_count, "{before:?}, then {after:?}");
    }
    let done = loop {
        let job = client.job(id).await.expect("the job");
        if job.state.is_ended() {
            break job;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    most = most.max(peak(node.id()).expect("the node runs"));
    let bytes: usize = (0..keys).map(|key| key % 3).sum();
    assert_eq!((done.file_count, done.total_bytes), (keys as u64, bytes as u64), "{done:?}");
    let blocks = (0..keys).filter(|key| key % 3 > 0).count();
    assert_eq!((done.block_count, done.failed_count), (blocks as u64, 0), "{done:?}");
    println!("{keys} keys: node {most} KiB (few: {few_node})");
    assert!(most <= few_node + GROWTH_MAX, "{most} KiB, and {few_node} KiB for one object");
    drop(client);
    node.stop();
    few.stop();
}

#[test]
fn a_prefix_of_very_many_keys_is_listed_and_summed_in_little_memory() {
    let keys = key_count();
    let origin = store(keys);
    let start = |source: &str| options(&origin, source).start();
    let few = start("s3://few");
    let (_, _, few_peak) = fs(&few, &["ls"]);
    let few_node = peak(few.id()).expect("the node runs");
    let node = start("s3://box/lake");
    let (count, last, listing_peak) = fs(&node, &["ls"]);
    assert_eq!(count, keys);
    assert_eq!(last, format!("f{:07}", keys - 1));
    let (count, _, tree_peak) = fs(&node, &["find", "--type", "f"]);
    assert_eq!(count, keys);
    let (_, sum, _) = fs(&node, &["du", "--json", "-d", "0"]);
    let bytes: usize = (0..keys).map(|key| key % 3).sum();
    let expect = format!("{{\"path\":\"\",\"file_count\":{keys},\"total_bytes\":{bytes}}}");
    assert_eq!(sum, expect);
    let node_peak = peak(node.id()).expect("the node runs");
    println!(
        "{keys} keys: ls {listing_peak} KiB (few: {few_peak}), find {tree_peak}, node {node_peak} (few: {few_node})"
    );
    for (what, most, few) in [
        ("ls", listing_peak, few_peak),
        ("find", tree_peak, few_peak),
        ("the node", node_peak, few_node),
    ] {
        assert!(most <= few + GROWTH_MAX, "{what} needs {most} KiB, and {few} KiB for one object");
    }
    node.stop();
    few.stop();
}
