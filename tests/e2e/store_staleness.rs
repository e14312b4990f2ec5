//! How long a look-up at a store is believed, and what makes a node ask again.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use millrace_client::{Client, ClientConfig, Error, MountInfo, PutOptions, Status};
use millrace_proto::Op;
use millrace_proto::message::RefreshRequest;
use millrace_tests::origin::Origin;
use millrace_tests::process::program;
use millrace_tests::{BLOCK, Cluster, HANG_GUARD, Node, NodeOptions, Scratch, content, wait_until};

/// Length of an object of ten blocks.
const LENGTH: usize = 10 * BLOCK as usize;

fn options(origin: &Origin) -> NodeOptions {
    let endpoint = format!("endpoint={}:skip_signature=true", origin.url());
    NodeOptions::new(Path::new("s3://box")).set("source_option", endpoint)
}

fn put(origin: &Origin, key: &str, version: u32) {
    origin.put("box", key, content::versioned(version, LENGTH));
}

/// Reads the first bytes of a file as it is looked up now; returns the version in them.
async fn seen(client: &Client, path: &str) -> Option<u32> {
    let file = client.stat(path).await.expect("stat");
    let bytes = client.read(&file, 0, 64).await.expect("read");
    content::version_of(0, &bytes)
}

/// Runs a verb of the program at a node; returns its stdout.
fn verb(node: &Node, arguments: &[&str]) -> String {
    let mut command = Command::new(program().expect("a binary"));
    command.args(arguments).args(["--node", &node.address().to_string(), "--admin"]);
    command.arg(node.admin_path());
    let output = command.output().expect("run the program");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test]
async fn many_opens_are_one_question_and_a_refresh_asks_again() {
    let origin = Origin::start();
    put(&origin, "it", 1);
    let node = options(&origin).start();
    let client = node.client().await;
    let old = client.stat("it").await.expect("stat");
    assert_eq!(seen(&client, "it").await, Some(1));
    let before = origin.lookup_count();
    put(&origin, "it", 2);
    for _ in 0..50 {
        assert_eq!(client.stat("it").await.expect("stat"), old);
    }
    assert_eq!(origin.lookup_count(), before);
    let found = client.refresh("it", false).await.expect("refresh");
    let [(_, Ok(new))] = &found[..] else { panic!("{found:?}") };
    assert_ne!(new.version, old.version);
    assert_eq!(origin.lookup_count(), before + 1);
    let stale = client.read(&old, 0, 64).await;
    assert!(matches!(stale, Err(Error::Stale { .. })), "its blocks are gone: {stale:?}");
    assert_eq!(seen(&client, "it").await, Some(2));
    node.stop();
}

#[tokio::test]
async fn look_ups_of_one_path_at_the_same_time_are_one_question() {
    let origin = Origin::start();
    put(&origin, "it", 1);
    let node = options(&origin).start();
    let client = node.client().await;
    let before = origin.lookup_count();
    origin.slow_lookups(Duration::from_millis(500));
    let stats = (0..16).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.stat("it").await.expect("stat").version })
    });
    let mut versions = Vec::new();
    for stat in stats.collect::<Vec<_>>() {
        versions.push(stat.await.expect("a task"));
    }
    versions.dedup();
    assert_eq!(versions.len(), 1);
    assert_eq!(origin.lookup_count(), before + 1);
    node.stop();
}

#[tokio::test]
async fn a_look_up_that_began_before_a_refresh_is_not_joined_after_it() {
    let origin = Origin::start();
    put(&origin, "deep/it", 1);
    let node = options(&origin).start();
    let client = node.client().await;
    // The answer is on its way, and says what was there when the store was asked.
    let before = origin.lookup_count();
    origin.slow_lookups(Duration::from_secs(3));
    let early = {
        let client = client.clone();
        tokio::spawn(async move { client.stat("deep/it").await.expect("stat").version })
    };
    while origin.lookup_count() == before {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The store has taken the object and the time of its answer a moment after it has counted the question.
    tokio::time::sleep(Duration::from_millis(300)).await;
    origin.slow_lookups(Duration::ZERO);
    put(&origin, "deep/it", 2);
    // This looks up the directory, and forgets the file.
    client.refresh("deep", true).await.expect("refresh");
    assert_eq!(seen(&client, "deep/it").await, Some(2));
    early.await.expect("a task");
    assert_eq!(seen(&client, "deep/it").await, Some(2));
    node.stop();
}

#[tokio::test]
async fn a_listing_is_believed_until_something_below_it_changes() {
    let origin = Origin::start();
    for name in 0..2500 {
        origin.put("box", &format!("lake/{name:04}"), vec![1]);
    }
    put(&origin, "other/it", 1);
    let node = options(&origin).set("writable", true).start();
    let client = node.client().await;
    let count = async |path: &str| client.list(path).await.expect("list").len();
    assert_eq!((count("lake").await, count("other").await), (2500, 1));
    let before = origin.lookup_count();
    origin.put("box", "lake/new", vec![1]);
    assert_eq!((count("lake").await, count("other").await), (2500, 1));
    assert_eq!(origin.lookup_count(), before, "the store is not asked");
    // All pages are asked for again, and the other directory is still believed.
    client.put("lake/deep/er", &b"x"[..], PutOptions::new()).await.expect("put");
    assert_eq!(count("lake").await, 2502);
    assert_eq!(count("lake/deep").await, 1);
    client.delete("lake/deep/er").await.expect("delete");
    assert_eq!(count("lake").await, 2501);
    let before = origin.lookup_count();
    assert_eq!((count("lake").await, count("other").await), (2501, 1));
    assert_eq!(origin.lookup_count(), before);
    origin.remove("box", "lake/new");
    verb(&node, &["fs", "refresh", "-r", "lake"]);
    assert_eq!(count("lake").await, 2500);
    // A listing shows no version that is older than one which was looked up.
    put(&origin, "other/it", 2);
    client.refresh("other/it", false).await.expect("refresh");
    let file = client.stat("other/it").await.expect("stat");
    let listed = client.list("other").await.expect("list");
    assert_eq!(listed[0].version, file.version);
    node.stop();
}

#[tokio::test]
async fn a_change_is_seen_after_the_bound() {
    let origin = Origin::start();
    put(&origin, "it", 1);
    let node = options(&origin).set("stale_after_ms", 300).start();
    let client = node.client().await;
    assert_eq!(seen(&client, "it").await, Some(1));
    put(&origin, "it", 2);
    let change = async {
        while seen(&client, "it").await != Some(2) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(HANG_GUARD, change).await.expect("it is seen");
    node.stop();
}

#[tokio::test]
async fn zero_asks_each_time_and_never_asks_no_more() {
    let origin = Origin::start();
    put(&origin, "deep/it", 1);
    let node = options(&origin).set("stale_after_ms", 0).start();
    let client = node.client().await;
    let before = origin.lookup_count();
    for _ in 0..5 {
        client.stat("deep/it").await.expect("stat");
    }
    assert_eq!(origin.lookup_count(), before + 5);
    node.stop();

    let node = options(&origin).set("stale_after_ms", "never").start();
    let client = node.client().await;
    assert_eq!(seen(&client, "deep/it").await, Some(1));
    put(&origin, "deep/it", 2);
    for _ in 0..20 {
        assert_eq!(seen(&client, "deep/it").await, Some(1));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let told = verb(&node, &["fs", "refresh", "-r", "deep"]);
    assert_eq!(told, "deep: all files below it are looked up again, at 1 node\n");
    assert_eq!(seen(&client, "deep/it").await, Some(2));
    put(&origin, "deep/it", 3);
    let told = verb(&node, &["fs", "refresh", "deep/it"]);
    assert!(told.starts_with("deep/it: 655,360 bytes, version "), "{told}");
    assert_eq!(seen(&client, "deep/it").await, Some(3));
    node.stop();
}

#[tokio::test]
async fn a_cold_block_of_a_changed_object_ends_the_belief() {
    let origin = Origin::start();
    put(&origin, "it", 1);
    let node = options(&origin).set("stale_after_ms", "never").start();
    let client = node.client().await;
    let old = client.stat("it").await.expect("stat");
    put(&origin, "it", 2);
    let stale = client.read(&old, 0, 64).await;
    assert!(matches!(stale, Err(Error::Stale { .. })), "{stale:?}");
    assert_eq!(seen(&client, "it").await, Some(2));
    node.stop();
}

#[tokio::test]
async fn what_is_not_there_is_believed_for_a_moment() {
    let origin = Origin::start();
    put(&origin, "it", 1);
    let node = options(&origin).start();
    let client = node.client().await;
    let is_missing = |found: Result<_, Error>| {
        found.is_err_and(|error| error.status() == Some(Status::NotFound))
    };
    let before = origin.lookup_count();
    for _ in 0..5 {
        assert!(is_missing(client.stat("late").await));
    }
    // A head and a listing of one name; twice, if the machine was slow.
    let asked = origin.lookup_count() - before;
    assert!(asked == 2 || asked == 4, "{asked}");
    put(&origin, "late", 1);
    let change = async {
        while is_missing(client.stat("late").await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(HANG_GUARD, change).await.expect("it is seen");
    assert!(is_missing(client.stat("later").await));
    put(&origin, "later", 1);
    let found = client.refresh("later", false).await.expect("refresh");
    assert!(found[0].1.is_ok(), "{found:?}");
    client.stat("later").await.expect("it is seen");
    node.stop();
}

#[tokio::test]
async fn directories_are_asked_each_time() {
    let scratch = Scratch::new();
    scratch.write("it", &content::versioned(1, LENGTH));
    let node = NodeOptions::new(scratch.root()).start();
    let client = node.client().await;
    assert_eq!(seen(&client, "it").await, Some(1));
    scratch.write("new", &content::versioned(2, LENGTH));
    std::fs::rename(scratch.at("new"), scratch.at("it")).expect("replace it");
    assert_eq!(seen(&client, "it").await, Some(2));
    node.stop();
}

#[tokio::test]
async fn each_mount_has_a_bound_of_its_own() {
    let origin = Origin::start();
    put(&origin, "it", 1);
    let scratch = Scratch::new();
    let node = options(&origin)
        .set("mount_root", format!("s3://box:{}", scratch.root().display()))
        .start();
    let client = node.client().await;
    for (path, more) in [("fresh", &["--stale-after-ms", "0"][..]), ("usual", &[])] {
        let arguments = [&["admin", "mount", path, "S3://box/"][..], more].concat();
        verb(&node, &arguments);
    }
    let told = verb(&node, &["admin", "mounts"]);
    assert!(told.contains("/fresh") && told.contains("stale after 0 ms"), "{told}");
    let json = verb(&node, &["admin", "mounts", "--json"]);
    assert!(json.contains("\"stale_after_ms\": \"0\""), "{json}");
    for path in ["fresh/it", "usual/it"] {
        client.stat(path).await.expect("stat");
    }
    let before = origin.lookup_count();
    client.stat("usual/it").await.expect("stat");
    assert_eq!(origin.lookup_count(), before);
    client.stat("fresh/it").await.expect("stat");
    assert_eq!(origin.lookup_count(), before + 1);
    node.stop();
}

#[tokio::test]
async fn a_cluster_reads_a_mounted_bucket_and_a_refresh_reaches_all_nodes() {
    let (origin, scratch) = (Origin::start(), Scratch::new());
    put(&origin, "it", 1);
    let mut cluster = Cluster::start(1, 0, scratch.root());
    for _ in 0..2 {
        let member = cluster.add();
        let roots = format!("{}:s3://box", scratch.root().display());
        member.set("mount_root", roots);
        member.set("source_option", format!("endpoint={}:skip_signature=true", origin.url()));
        member.set("stale_after_ms", "never");
        member.start();
    }
    cluster.wait_settled();
    let client = cluster.client_with(ClientConfig { local: false, ..ClientConfig::new() }).await;
    client.mount(&MountInfo::new("lake", "s3://box", 1)).await.expect("mount");
    wait_until("both nodes know of the mount", || {
        let mut members = cluster.members.iter_mut();
        members.all(|member| member.node().peer().stat("lake/it").is_ok())
    });
    let whole = async |path: &str| {
        let file = client.stat(path).await?;
        let bytes = client.read(&file, 0, u64::MAX).await?;
        Ok::<_, Error>(content::version_of(0, &bytes).filter(|_| bytes.len() == LENGTH))
    };
    assert_eq!(whole("lake/it").await.expect("read"), Some(1));
    put(&origin, "it", 2);
    assert_eq!(whole("lake/it").await.expect("read"), Some(1), "all of it is in memory");
    let found = client.refresh("lake/it", false).await.expect("refresh");
    let ids: Vec<_> = found.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["node-1", "node-2"]);
    assert!(found.iter().all(|(_, file)| file.is_ok()), "{found:?}");
    assert_eq!(whole("lake/it").await.expect("read"), Some(2));

    // One node knows more than the other, whichever that is.
    for index in 0..2 {
        let (key, path) = (format!("only-{index}"), format!("lake/only-{index}"));
        put(&origin, &key, 1);
        assert_eq!(whole(&path).await.expect("read"), Some(1));
        put(&origin, &key, 2);
        let request = RefreshRequest { path: path.clone(), recursive: 0 };
        let reply = cluster.members[index].node().peer().ask(Op::Refresh, &request);
        assert_eq!(reply.status(), millrace_proto::Status::Ok);
        let stale = whole(&path).await;
        match stale {
            Ok(version) => assert_eq!(version, Some(2)),
            Err(error) => {
                assert!(matches!(error, Error::Stale { .. }), "{error}");
                assert_eq!(whole(&path).await.expect("read"), Some(2), "it was looked up again");
            }
        }
    }
}
