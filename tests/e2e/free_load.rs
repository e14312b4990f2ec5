//! Load, free and status do what they say, and nothing else.

use millrace_client::Status;
use millrace_proto::Op;
use millrace_proto::message::LoadRequest;
use millrace_tests::{BLOCK, Node, NodeOptions, Scratch, content, wait_until};

const BLOCK_SIZE: u64 = BLOCK as u64;

#[tokio::test]
async fn load_fills_each_block_once_and_reads_then_hit() {
    let scratch = Scratch::new();
    scratch.file("a", 10 * BLOCK as usize + 7);
    scratch.file("empty", 0);
    for shards in [1, 2] {
        let node = NodeOptions::new(scratch.root()).set("shards", shards).start();
        let client = node.client().await;
        let first = client.load("a").await.expect("load");
        assert_eq!((first.block_count, first.filled_count), (11, 11));
        let second = client.load("a").await.expect("load");
        assert_eq!((second.block_count, second.filled_count), (11, 0));
        let read = client.read(&first.file, 0, u64::MAX).await.expect("read");
        content::check("a", 0, &read);
        let status = client.status().await.expect("status");
        assert_eq!(status.counter("fill_count"), Some(11));
        assert_eq!(status.counter("miss_count"), Some(0));
        assert_eq!(status.counter("hit_bytes"), Some(10 * BLOCK_SIZE + 7));
        let empty = client.load("empty").await.expect("load");
        assert_eq!((empty.block_count, empty.filled_count), (0, 0));
        drop(client);
        node.stop();
    }
}

#[tokio::test]
async fn free_drops_the_blocks_of_one_file_and_never_the_source() {
    let scratch = Scratch::new();
    scratch.file("a", 5 * BLOCK as usize);
    scratch.file("b", 3 * BLOCK as usize + 1);
    let node = NodeOptions::new(scratch.root()).set("shards", 2).start();
    let client = node.client().await;
    client.load("a").await.expect("load");
    client.load("b").await.expect("load");
    let freed = client.free("a").await.expect("free");
    assert_eq!((freed.block_count, freed.byte_count), (5, 5 * BLOCK_SIZE));
    let again = client.free("a").await.expect("free");
    assert_eq!((again.block_count, again.byte_count), (0, 0));
    let other = client.load("b").await.expect("load");
    assert_eq!(other.filled_count, 0, "the other file stays");
    assert_eq!(scratch.at("a").metadata().expect("the source").len(), 5 * BLOCK_SIZE);
    let reloaded = client.load("a").await.expect("load");
    assert_eq!(reloaded.filled_count, 5);
    // A file whose source is gone can still be freed.
    std::fs::remove_file(scratch.at("a")).expect("remove");
    let freed = client.free("a").await.expect("free");
    assert_eq!(freed.block_count, 5);
    drop(client);
    node.stop();
}

#[tokio::test]
async fn load_and_free_of_what_is_no_file_fail_with_the_reason() {
    let scratch = Scratch::new();
    scratch.file("directory/a", 1);
    let node = Node::serve(scratch.root());
    let client = node.client().await;
    let check = async |path: &str, expected| {
        assert_eq!(
            client.load(path).await.expect_err(path).status(),
            Some(expected),
            "load {path}"
        );
        assert_eq!(
            client.free(path).await.expect_err(path).status(),
            Some(expected),
            "free {path}"
        );
    };
    check("missing", Status::NotFound).await;
    check("directory", Status::WrongKind).await;
    check("", Status::WrongKind).await;
    check("../a", Status::PermissionDenied).await;
    drop(client);
    node.stop();
}

#[tokio::test]
async fn a_load_larger_than_memory_ends_and_reads_right() {
    let scratch = Scratch::new();
    scratch.file("large", 40 << 20);
    let node = Node::serve(scratch.root());
    let client = node.client().await;
    let report = client.load("large").await.expect("load");
    assert_eq!(report.block_count, 640);
    assert_eq!(report.filled_count, 640);
    let status = client.status().await.expect("status");
    let (used, capacity) = (status.counter("used_bytes"), status.counter("capacity_bytes"));
    assert!(used <= capacity && capacity <= Some(16 << 20), "{used:?} of {capacity:?}");
    let read = client.read(&report.file, 0, u64::MAX).await.expect("read");
    content::check("large", 0, &read);
    drop(client);
    node.stop();
}

#[tokio::test]
async fn status_counts_what_happened() {
    let scratch = Scratch::new();
    scratch.file("a", 2 * BLOCK as usize);
    let node = NodeOptions::new(scratch.root()).set("shards", 2).start();
    let client = node.client().await;
    let start = client.status().await.expect("status");
    assert_eq!(start.shard_count, 2);
    assert!(start.server.starts_with("millrace/"), "{}", start.server);
    for name in ["hit_count", "miss_count", "fill_count", "block_count", "used_bytes", "busy_count"]
    {
        assert_eq!(start.counter(name), Some(0), "{name}");
    }
    let file = client.stat("a").await.expect("stat");
    for _ in 0..3 {
        client.read(&file, 0, u64::MAX).await.expect("read");
    }
    client.stat("missing").await.expect_err("not found");
    let end = client.status().await.expect("status");
    assert_eq!(end.counter("miss_count"), Some(2));
    assert_eq!(end.counter("miss_bytes"), Some(2 * BLOCK_SIZE));
    assert_eq!(end.counter("hit_count"), Some(4));
    assert_eq!(end.counter("hit_bytes"), Some(4 * BLOCK_SIZE));
    assert_eq!(end.counter("fill_bytes"), Some(2 * BLOCK_SIZE));
    assert_eq!(end.counter("error_count"), Some(1));
    assert!(end.uptime >= start.uptime);
    drop(client);
    node.stop();
}

#[tokio::test]
async fn aligned_hits_cost_no_checksum_pass() {
    let scratch = Scratch::new();
    scratch.file("a", 4 * BLOCK as usize + 1000);
    let node = Node::serve(scratch.root());
    let client = node.client().await;
    let file = client.load("a").await.expect("load").file;
    let summed = async || client.status().await.expect("status").counter("summed_bytes");
    assert_eq!(summed().await, Some(0));
    client.read(&file, 0, u64::MAX).await.expect("whole");
    client.read(&file, 4096, 8192).await.expect("pages");
    client.read(&file, 4 * BLOCK_SIZE, 1000).await.expect("the short last page");
    client.read(&file, 8192, 4 * BLOCK_SIZE - 8192 + 1000).await.expect("many blocks");
    assert_eq!(summed().await, Some(0));
    client.read(&file, 10, 100).await.expect("a part of a page");
    assert_eq!(summed().await, Some(4096 + 100));
    drop(client);
    node.stop();
}

#[test]
fn loads_end_with_the_client_that_asked_for_them() {
    let scratch = Scratch::new();
    let sparse = std::fs::File::create(scratch.at("sparse")).expect("make a file");
    // At 10 GB/s this takes a quarter of an hour.
    sparse.set_len(8 << 40).expect("a sparse file");
    scratch.file("other", 3 * BLOCK as usize);
    let node = NodeOptions::new(scratch.root()).set("load_concurrency", 2).start();
    for is_reset in [false, true] {
        let mut gone = node.peer();
        let load = LoadRequest { path: "sparse".to_owned() };
        let mut other = node.peer();
        let before = other.counter("fill_count");
        gone.send(Op::Load, &load);
        wait_until("the load has begun", || other.counter("fill_count") > before);
        match is_reset {
            true => gone.reset(),
            false => drop(gone),
        }
        let idle = || {
            let before = node.counter("fill_count");
            std::thread::sleep(std::time::Duration::from_millis(100));
            node.counter("fill_count") == before
        };
        wait_until("nothing is filled any more", idle);
        wait_until("the connection is closed", || other.counter("connection_count") <= 2);
    }
    node.stop();
    // Neither one client nor one machine gets all the places for loads.
    let node = NodeOptions::new(scratch.root()).set("load_concurrency", 4).start();
    let load = LoadRequest { path: "sparse".to_owned() };
    let mut hogs = [node.peer(), node.peer()];
    for _ in 0..3 {
        hogs[0].send(Op::Load, &load);
    }
    assert_eq!(hogs[0].receive().status(), Status::Busy, "the third one");
    for _ in 0..2 {
        hogs[1].send(Op::Load, &load);
    }
    assert_eq!(hogs[1].receive().status(), Status::Busy, "the fourth one of this machine");
    let mut other = node.administrator();
    assert_eq!(other.load("other"), Status::Ok, "there is a place left");
    drop(hogs);
    drop(other);
    node.stop();
}
