//! What a mount can be told: how long blocks stay, and how much of a store each node takes.

use std::time::Duration;

use millrace_client::{Client, ClientConfig, MountInfo, Status};
use millrace_tests::origin::{Fault, Origin};
use millrace_tests::{HANG_GUARD, Node, NodeOptions, Scratch, content, wait_until};

/// Starts a node whose administrator may mount a directory, or what a store in this process has.
fn node(root: &Scratch, inside: &str, endpoint: &str) -> Node {
    NodeOptions::new(root.root())
        .set("mount_root", format!("{}:{inside}", root.root().display()))
        .set("source_option", format!("endpoint={endpoint}:skip_signature=true"))
        .start()
}

/// Mounts a source at `it`, and waits until the node serves it so.
async fn mount(node: &Node, client: &Client, source: &str) {
    let mount = MountInfo::new("it", source, 1);
    client.mount(&mount).await.expect("mount");
    let start = std::time::Instant::now();
    while client.cluster().is_none_or(|cluster| !cluster.mounts.contains(&mount)) {
        assert!(start.elapsed() < HANG_GUARD, "it is mounted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    wait_until("it is served", || node.peer().stat("it").is_ok());
}

/// Returns the settings of a client that holds no blocks in the node's memory.
fn over_tcp() -> ClientConfig {
    ClientConfig { local: false, ..ClientConfig::new() }
}

async fn read(client: &Client, path: &str) -> Vec<u8> {
    let file = client.stat(path).await.expect("stat");
    client.read(&file, 0, u64::MAX).await.expect("read").to_vec()
}

#[tokio::test]
async fn blocks_leave_when_their_time_is_over_and_others_stay() {
    let (root, other) = (Scratch::new(), Scratch::new());
    root.write("stays", &content::bytes("stays", 0, 100));
    let bytes = content::bytes("goes", 0, 3 << 20);
    other.write("goes", &bytes);
    let directory = other.root().display().to_string();
    let node = node(&root, &directory, "http://127.0.0.1:9");
    let client = node.client_with(over_tcp()).await;
    mount(&node, &client, &format!("file://{directory}?ttl_ms=300")).await;
    assert_eq!(read(&client, "stays").await.len(), 100);
    for _ in 0..2 {
        assert!(read(&client, "it/goes").await == bytes);
        wait_until("its blocks are gone", || node.counter("block_count") == 1);
    }
    assert!(other.at("goes").exists(), "nothing is deleted at the source");
    // A longer time counts for the files that are known, too.
    mount(&node, &client, &format!("file://{directory}?ttl_ms=3600000")).await;
    assert!(read(&client, "it/goes").await == bytes);
    assert_eq!(node.counter("block_count"), 49);
    mount(&node, &client, &format!("file://{directory}?ttl_ms=1")).await;
    wait_until("its blocks are gone", || node.counter("block_count") == 1);
    node.stop();
}

#[tokio::test]
async fn a_mount_that_is_passed_through_keeps_no_blocks() {
    let (root, origin) = (Scratch::new(), Origin::start());
    let bytes = content::bytes("it", 0, (2 << 20) + 100);
    origin.put("box", "it", bytes.clone());
    let node = node(&root, "s3://box", &origin.url());
    let client = node.client_with(over_tcp()).await;
    mount(&node, &client, "s3://box").await;
    assert!(read(&client, "it/it").await == bytes);
    assert_eq!(node.counter("block_count"), 33);
    mount(&node, &client, "s3://box?cache=no").await;
    wait_until("what was kept is gone", || node.counter("block_count") == 0);
    let before = origin.read_count();
    let readers = (0..8).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { read(&client, "it/it").await })
    });
    for reader in readers.collect::<Vec<_>>() {
        assert!(reader.await.expect("a reader") == bytes);
    }
    let mut peer = node.peer();
    let entry = peer.stat("it/it").expect("stat");
    for offset in [0, 70_000, 1 << 20] {
        let part = peer.read(&entry, offset, 5000).expect("read");
        assert!(part == bytes[offset as usize..][..5000]);
    }
    assert_eq!(node.counter("block_count"), 0);
    assert!(origin.read_count() > before, "the store is asked each time");
    let load = client.load("it/it").await.expect_err("there is nothing to load");
    assert_eq!(load.status(), Some(Status::InvalidArgument));
    assert!(load.to_string().contains("--cache no"), "{load}");
    node.stop();
}

#[tokio::test]
async fn a_store_has_no_more_reads_under_way_than_its_mount_allows() {
    let (root, origin) = (Scratch::new(), Origin::start());
    for name in 0..8 {
        origin.put("box", &name.to_string(), content::bytes("it", name, 70_000));
    }
    let node = node(&root, "s3://box", &origin.url());
    let client = node.client_with(over_tcp()).await;
    mount(&node, &client, "s3://box?concurrency=2").await;
    origin.slow_reads(Duration::from_millis(50));
    let readers = (0..8_u64).map(|name| {
        let client = client.clone();
        tokio::spawn(async move { (name, read(&client, &format!("it/{name}")).await) })
    });
    for reader in readers.collect::<Vec<_>>() {
        let (name, bytes) = reader.await.expect("a reader");
        assert!(bytes == content::bytes("it", name, 70_000), "{name}");
    }
    assert_eq!(origin.reads_at_once_max(), 2);
    node.stop();
}

#[tokio::test]
async fn a_store_is_read_whole_at_the_rate_of_its_mount() {
    let (root, origin) = (Scratch::new(), Origin::start());
    let bytes = content::bytes("it", 0, 4 << 20);
    origin.put("box", "it", bytes.clone());
    let node = node(&root, "s3://box", &origin.url());
    let client = node.client_with(over_tcp()).await;
    mount(&node, &client, "s3://box?bandwidth=2097152").await;
    let before = (origin.read_count(), std::time::Instant::now());
    assert!(read(&client, "it/it").await == bytes);
    assert!(origin.read_count() >= before.0 + 2, "no request has more than a second's bytes");
    // The last request begins when the bytes before it would have come, and has no more than 2 MiB.
    assert!(before.1.elapsed() >= Duration::from_secs(1), "it came faster than its mount allows");
    node.stop();
}

#[tokio::test]
async fn a_read_that_hangs_is_asked_for_again_where_its_mount_is_hedged() {
    let (root, origin) = (Scratch::new(), Origin::start());
    for name in 0..101 {
        origin.put("box", &name.to_string(), content::bytes("it", name, 1000));
    }
    let node = node(&root, "s3://box", &origin.url());
    let client = node.client_with(over_tcp()).await;
    mount(&node, &client, "s3://box?hedge=true").await;
    for name in 0..100 {
        assert!(read(&client, &format!("it/{name}")).await == content::bytes("it", name, 1000));
    }
    let before = node.counter("hedged_count");
    origin.break_reads(Fault::Hang, 1);
    assert!(read(&client, "it/100").await == content::bytes("it", 100, 1000));
    assert_eq!(node.counter("hedged_count"), before + 1);
    node.stop();
}

#[tokio::test]
async fn a_directory_is_not_asked_for_what_stores_have() {
    let root = Scratch::new();
    let directory = root.root().display().to_string();
    let node = node(&root, &directory, "http://127.0.0.1:9");
    let client = node.client_with(over_tcp()).await;
    for term in ["concurrency=1", "bandwidth=1048576", "hedge=true"] {
        let mount = MountInfo::new("it", format!("file://{directory}?{term}"), 1);
        let error = client.mount(&mount).await.expect_err("refused");
        assert!(error.to_string().contains("fill_concurrency"), "{error}");
    }
    node.stop();
}

#[tokio::test]
async fn blocks_leave_with_the_mount_that_led_to_them() {
    let (root, other) = (Scratch::new(), Scratch::new());
    root.write("stays", &content::bytes("stays", 0, 100));
    let bytes = content::bytes("goes", 0, 3 << 20);
    for name in ["goes", "a/goes"] {
        other.write(name, &bytes);
    }
    let directory = other.root().display().to_string();
    let node = node(&root, &directory, "http://127.0.0.1:9");
    let client = node.client_with(over_tcp()).await;
    mount(&node, &client, &format!("file://{directory}")).await;
    assert_eq!(read(&client, "stays").await.len(), 100);
    let file = client.stat("it/goes").await.expect("stat");
    assert!(client.read(&file, 0, u64::MAX).await.expect("read") == bytes);
    assert!(read(&client, "it/a/goes").await == bytes);
    assert_eq!(node.counter("block_count"), 97);
    // Another source at the same path: what is there by the same name is not the same file.
    mount(&node, &client, &format!("file://{directory}/a")).await;
    wait_until("the blocks of the other source are gone", || node.counter("block_count") == 1);
    assert!(read(&client, "it/goes").await == bytes);
    client.unmount("it").await.expect("unmount");
    wait_until("the blocks are gone", || node.counter("block_count") == 1);
    let after = client.read(&file, 0, 10).await.expect_err("no path leads to it");
    assert!(
        matches!(after, millrace_client::Error::Status { status: Status::NotFound, .. }),
        "{after}"
    );
    assert_eq!(read(&client, "stays").await.len(), 100);
    node.stop();
}
