//! Load jobs outlive their client and the nodes that drive them, and their numbers add up.

use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use millrace_client::{
    Client, ClientConfig, Error, JobId, JobOptions, JobReport, JobState, Status,
};
use millrace_proto::Op;
use millrace_proto::job::{JOBS_MAX, JobsRequest, LoadPartRequest};
use millrace_tests::cluster::Cluster;
use millrace_tests::process::program;
use millrace_tests::{BLOCK, HANG_GUARD, Node, NodeOptions, Scratch, wait_until};

/// Files of a tree of the tests, and the length of each.
const FILES: usize = 200;
const LENGTH: usize = BLOCK as usize + 1000;
/// At this rate the tree takes some seconds, so that nodes can be killed meanwhile.
const RATE: u64 = 4 << 20;

/// Makes files in a directory and in some below it; returns their bytes.
fn tree(scratch: &Scratch, name: &str) -> u64 {
    for index in 0..FILES {
        let below = if index % 3 == 0 { format!("d{}/", index % 7) } else { String::new() };
        scratch.file(&format!("{name}/{below}f{index:04}"), LENGTH);
    }
    (FILES * LENGTH) as u64
}

fn options(recursive: bool, bytes_per_second: u64) -> JobOptions {
    let mut options = JobOptions::new();
    options.recursive = recursive;
    options.bytes_per_second = bytes_per_second;
    options
}

fn paths(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

/// Returns a node whose jobs survive it, with memory for all of a tree.
fn node(scratch: &Scratch, data: &Scratch) -> Node {
    let options = NodeOptions::new(scratch.root()).set("memory", "64MiB").set("shards", 2);
    options.set("data", data.root().display()).start()
}

/// Waits until a job has ended, whatever happens to nodes meanwhile.
async fn ended(client: &Client, id: JobId) -> JobReport {
    let start = Instant::now();
    loop {
        match client.job(id).await {
            Ok(job) if job.state.is_ended() => return job,
            Ok(job) => assert!(start.elapsed() < HANG_GUARD, "{job:?}"),
            Err(error) => assert!(start.elapsed() < HANG_GUARD, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until some of a job is recorded; returns that.
async fn begun(client: &Client, id: JobId) -> JobReport {
    let start = Instant::now();
    loop {
        let job = client.job(id).await.expect("the job");
        if job.file_count > 0 {
            assert!(!job.state.is_ended(), "it ended before it could be disturbed: {job:?}");
            return job;
        }
        assert!(start.elapsed() < HANG_GUARD, "{job:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs `millrace` with arguments and the administration socket of a node.
fn millrace(node: &Node, arguments: &[&str]) -> Output {
    let mut command = Command::new(program().expect("the program was built"));
    command.args(arguments).arg("--node").arg(node.address().to_string());
    command.arg("--admin").arg(node.admin_path()).output().expect("run millrace")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_without_its_client_and_waits_tell_how_it_ended() {
    let (scratch, data) = (Scratch::new(), Scratch::new());
    let bytes = tree(&scratch, "tree");
    let node = node(&scratch, &data);
    let begin =
        millrace(&node, &["fs", "load", "-r", "tree", "--detach", "--bandwidth", "20MiB/s"]);
    assert!(begin.status.success(), "{}", text(&begin.stderr));
    let id = text(&begin.stdout).trim().to_owned();
    let listed = millrace(&node, &["admin", "jobs"]);
    assert!(text(&listed.stdout).contains(&id), "{}", text(&listed.stdout));
    let waited = millrace(&node, &["admin", "jobs", "wait", &id, "--json"]);
    assert!(waited.status.success(), "{}", text(&waited.stderr));
    let told = text(&waited.stdout);
    let blocks = 2 * FILES as u64;
    for (name, value) in [
        ("file_count", FILES as u64),
        ("total_bytes", bytes),
        ("block_count", blocks),
        ("filled_count", blocks),
        ("failed_count", 0),
    ] {
        let field = format!("\"{name}\": {value},");
        assert!(told.contains(&field), "{field} is not in {told}");
    }
    assert!(told.contains("\"state\": \"done\""), "{told}");
    // What is counted is there: nothing is read from the source again.
    let filled = node.counter("fill_count");
    let again = millrace(&node, &["fs", "load", "-r", "tree"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert_eq!(node.counter("fill_count"), filled);
    node.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_when_its_only_node_was_killed_and_started_again() {
    let (scratch, data) = (Scratch::new(), Scratch::new());
    let bytes = tree(&scratch, "tree");
    let mut node = node(&scratch, &data);
    let client = node.client().await;
    let id = client.start_job(&paths(&["tree"]), &options(true, RATE)).await.expect("start");
    let mut before = begun(&client, id).await;
    for _ in 0..2 {
        node.kill();
        node.restart();
        let after = client.job(id).await.expect("the job is kept");
        assert!(after.file_count >= before.file_count, "{before:?}, then {after:?}");
        before = after;
    }
    let done = ended(&client, id).await;
    assert_eq!((done.state, done.failed_count), (JobState::Done, 0), "{done:?}");
    assert_eq!((done.file_count, done.total_bytes), (FILES as u64, bytes));
    assert_eq!(done.block_count, 2 * FILES as u64);
    drop(client);
    node.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_goes_on_with_a_job_when_the_one_that_drives_it_is_killed() {
    let scratch = Scratch::new();
    let bytes = tree(&scratch, "tree");
    let mut cluster = Cluster::start(1, 3, scratch.root());
    cluster.wait_settled();
    let client = cluster.client().await;
    let id = client.start_job(&paths(&["tree"]), &options(true, RATE)).await.expect("start");
    let before = begun(&client, id).await;
    let driver = cluster.members.iter().position(|member| member.id() == before.node);
    cluster.members[driver.expect("a member drives it")].kill();
    let done = ended(&client, id).await;
    assert_ne!(done.node, before.node);
    assert_eq!((done.state, done.failed_count), (JobState::Done, 0), "{done:?}");
    assert_eq!((done.file_count, done.total_bytes), (FILES as u64, bytes), "{done:?}");
    assert_eq!(done.block_count, 2 * FILES as u64, "each block has one owner");
    drop(client);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_for_what_a_member_owned_that_was_killed() {
    let scratch = Scratch::new();
    let bytes = tree(&scratch, "tree");
    let mut cluster = Cluster::start(1, 3, scratch.root());
    cluster.wait_settled();
    let client = cluster.client().await;
    let id = client.start_job(&paths(&["tree"]), &options(true, RATE)).await.expect("start");
    let before = begun(&client, id).await;
    let other = cluster.members.iter().position(|member| member.id() != before.node);
    cluster.members[other.expect("an owner that does not drive")].kill();
    let done = ended(&client, id).await;
    assert_eq!(done.node, before.node);
    assert_eq!((done.state, done.failed_count), (JobState::Done, 0), "{done:?}");
    assert_eq!((done.file_count, done.total_bytes), (FILES as u64, bytes), "{done:?}");
    drop(client);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_owner_has_its_copy_when_a_job_is_done_and_what_is_pinned_stays() {
    let scratch = Scratch::new();
    tree(&scratch, "tree");
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    let client = cluster.client().await;
    let mount = client.cluster().expect("a cluster").mounts[0].clone();
    let mount = millrace_client::MountInfo::new("", mount.source, 2);
    client.mount(&mount).await.expect("two replicas");
    wait_until("it is mounted", || {
        client.cluster().is_some_and(|cluster| cluster.mounts.contains(&mount))
    });
    cluster.wait_settled();
    let mut pins = options(true, 0);
    pins.pin = true;
    // A sixth of the memory of each node.
    let some = paths(&["tree/d0", "tree/d3"]);
    let id = client.start_job(&some, &pins).await.expect("start");
    let done = ended(&client, id).await;
    assert_eq!((done.state, done.failed_count), (JobState::Done, 0), "{done:?}");
    assert!(done.file_count > 0);
    assert_eq!(done.block_count, 4 * done.file_count, "two blocks a file, at two nodes");
    assert_eq!(client.pins().await.expect("pins"), some);
    assert_eq!(cluster.sum("pinned_count"), done.block_count);
    drop(client);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_loads_no_more_and_full_is_busy() {
    let (scratch, data) = (Scratch::new(), Scratch::new());
    tree(&scratch, "tree");
    let node = node(&scratch, &data);
    let client = node.client().await;
    let slow = options(true, 1 << 20);
    let id = client.start_job(&paths(&["tree"]), &slow).await.expect("start");
    begun(&client, id).await;
    let mut ids = vec![id];
    for _ in 1..JOBS_MAX {
        ids.push(client.start_job(&paths(&["tree"]), &slow).await.expect("start"));
    }
    let config = ClientConfig {
        deadline: Duration::from_millis(500),
        admin: client_admin(&node),
        ..ClientConfig::new()
    };
    let hasty = node.client_with(config).await;
    let refused = hasty.start_job(&paths(&["tree"]), &slow).await.expect_err("one more");
    assert!(refused.to_string().contains("as many as there can be"), "{refused}");
    for id in &ids {
        client.cancel_job(*id).await.expect("cancel");
        client.cancel_job(*id).await.expect("a second time");
        assert_eq!(client.job(*id).await.expect("the job").state, JobState::Cancelled);
    }
    let is_idle = || {
        let before = node.counter("fill_count");
        std::thread::sleep(Duration::from_millis(200));
        node.counter("fill_count") == before
    };
    wait_until("nothing is filled any more", is_idle);
    let waited = millrace(&node, &["admin", "jobs", "wait", &id.to_string()]);
    assert_eq!(waited.status.code(), Some(1));
    assert!(text(&waited.stderr).contains("cancelled"), "{}", text(&waited.stderr));
    let unknown = client.cancel_job(JobId(7)).await.expect_err("no such job");
    assert_eq!(unknown.status(), Some(Status::NotFound));
    drop((client, hasty));
    node.stop();
}

fn client_admin(node: &Node) -> Option<String> {
    Some(format!("unix:{}", node.admin_path().display()))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_loaded_is_named_and_the_rest_is_loaded() {
    let (scratch, data) = (Scratch::new(), Scratch::new());
    scratch.file("tree/good", 1000);
    scratch.file("tree/below/good", 1000);
    // A name that no client can ask for is left out, as in listings, and counted.
    let odd = scratch.at("tree").join(std::ffi::OsStr::from_bytes(b"bad\xff"));
    std::fs::write(odd, b"x").expect("write");
    std::os::unix::fs::symlink("..", scratch.at("tree/below/circle")).expect("link");
    let node = node(&scratch, &data);
    let client = node.client().await;
    let named = paths(&["tree", "missing"]);
    let id = client.start_job(&named, &options(true, 0)).await.expect("start");
    let done = ended(&client, id).await;
    assert_eq!((done.file_count, done.failed_count), (2, 2), "{done:?}");
    assert_eq!(done.failures[0].0, "tree");
    assert!(done.failures[0].1.contains("not UTF-8"), "{done:?}");
    assert_eq!(done.failures[1].0, "missing");
    assert!(done.failures[1].1.contains("no such file"), "{done:?}");
    let listed = client.jobs().await.expect("list");
    assert!(listed[0].failures.is_empty() && listed[0].failed_count == 2);
    let waited = millrace(&node, &["admin", "jobs", "wait", &id.to_string()]);
    assert_eq!(waited.status.code(), Some(1), "not all of it was loaded");
    assert!(text(&waited.stderr).contains("missing"), "{}", text(&waited.stderr));
    let flat = client.start_job(&paths(&["tree"]), &options(false, 0)).await.expect("start");
    let done = ended(&client, flat).await;
    assert!(done.failures[0].1.contains("-r"), "{done:?}");
    drop(client);
    node.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_for_administrators_and_what_cannot_be_kept_is_refused() {
    let (scratch, data) = (Scratch::new(), Scratch::new());
    scratch.file("a", 10);
    let node = node(&scratch, &data);
    let mut stranger = node.peer();
    stranger.send(Op::Jobs, &JobsRequest { id: 0 });
    assert_eq!(stranger.receive().status(), Status::PermissionDenied);
    let client = node.client().await;
    let long: Vec<String> = (0..20).map(|it| format!("{it}{}", "p".repeat(4000))).collect();
    let refused = client.start_job(&long, &JobOptions::new()).await.expect_err("too long");
    assert!(matches!(refused, Error::InvalidArgument(_)), "{refused}");
    let list = scratch.at("list");
    std::fs::write(&list, long.join("\n")).expect("write");
    let list = list.to_str().expect("a path");
    let refused = millrace(&node, &["fs", "load", "--paths-from", list, "--detach"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("49152"), "{}", text(&refused.stderr));
    drop(client);
    node.stop();
    let scratch = Scratch::new();
    let mut cluster = Cluster::start(1, 1, scratch.root());
    let mut stranger = cluster.members[0].node().peer();
    let part = LoadPartRequest {
        path: "a".into(),
        file: millrace_proto::FileId(1),
        version: 1,
        first: 0,
        count: 1,
    };
    stranger.send(Op::LoadPart, &part);
    assert_eq!(stranger.receive().status(), Status::PermissionDenied, "it has proved nothing");
    let mut member = cluster.members[0].peer_as_member();
    member.send(Op::LoadPart, &part);
    assert_eq!(member.receive().status(), Status::UnknownFile, "another id than that of the path");
    member.send(Op::LoadPart, &LoadPartRequest { count: 0, ..part });
    assert_eq!(member.receive().status(), Status::InvalidArgument);
}
