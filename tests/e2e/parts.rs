//! Stores on other machines are read in parts of blocks: what is fetched, and that every byte is right.

use std::path::Path;

use millrace_client::{Client, ClientConfig};
use millrace_tests::cluster::Cluster;
use millrace_tests::coord::{Ensemble, Options};
use millrace_tests::origin::{Fault, Origin};
use millrace_tests::{Node, NodeOptions, content};

const KIB: u64 = 1 << 10;
/// Blocks of 16 chunks of 64 KiB.
const LARGE: u64 = 1 << 20;
/// Length of the object: three blocks, and one with a chunk and a bit.
const LENGTH: usize = (3 << 20) + (70 << 10);

fn store() -> Origin {
    let origin = Origin::start();
    origin.put("box", "it", content::bytes("it", 0, LENGTH));
    origin
}

fn endpoint(origin: &Origin) -> String {
    format!("endpoint={}:skip_signature=true", origin.url())
}

fn node(origin: &Origin) -> Node {
    let options = NodeOptions::new(Path::new("s3://box")).set("source_option", endpoint(origin));
    options.set("block_size", LARGE).start()
}

/// Connects a client that reads over TCP, or in the node's memory.
async fn client(node: &Node, local: bool) -> Client {
    node.client_with(ClientConfig { local, ..ClientConfig::new() }).await
}

#[tokio::test]
async fn a_small_cold_read_fetches_64_kib_and_a_warm_one_nothing() {
    let origin = store();
    let node = node(&origin);
    let client = client(&node, false).await;
    let file = client.stat("it").await.expect("stat");
    for (offset, length, fetched) in [
        (LARGE + 300 * KIB, 4 * KIB, 64 * KIB),
        // The same chunk.
        (LARGE + 257 * KIB, 8 * KIB, 64 * KIB),
        // Across a border of chunks, and of blocks.
        (100 * KIB, 40 * KIB, 192 * KIB),
        (2 * LARGE - 5, 10, 320 * KIB),
        // The short last chunk.
        (LENGTH as u64 - 100, 100, 326 * KIB),
    ] {
        let bytes = client.read(&file, offset, length).await.expect("read");
        assert_eq!(bytes, content::bytes("it", offset, length as usize));
        assert_eq!(node.counter("fill_bytes"), fetched, "after {length} bytes from {offset}");
    }
    // The rest comes once.
    let bytes = client.read(&file, 0, u64::MAX).await.expect("read");
    assert!(bytes == content::bytes("it", 0, LENGTH));
    assert_eq!(node.counter("fill_bytes"), LENGTH as u64);
    assert_eq!(node.counter("used_bytes").div_ceil(4 * KIB), (LENGTH as u64).div_ceil(4 * KIB));
    node.stop();
}

#[tokio::test]
async fn a_store_without_ranges_is_read_by_whole_objects() {
    let origin = store();
    origin.put("box", "small", content::bytes("small", 0, 300 << 10));
    origin.break_reads(Fault::Whole, usize::MAX);
    let node = node(&origin);
    let client = client(&node, false).await;
    let file = client.stat("small").await.expect("stat");
    let bytes = client.read(&file, 100 * KIB, 1000).await.expect("read");
    assert_eq!(bytes, content::bytes("small", 100 * KIB, 1000));
    // From now on blocks are read whole: one request brings what the object still lacks.
    let before = origin.read_count();
    let file = client.stat("small").await.expect("stat");
    for offset in [0, 70, 150, 250] {
        let bytes = client.read(&file, offset * KIB, 1000).await.expect("read");
        assert_eq!(bytes, content::bytes("small", offset * KIB, 1000));
    }
    assert!(origin.read_count() - before <= 4, "{} requests", origin.read_count() - before);
    let large = client.stat("it").await.expect("stat");
    let bytes = client.read(&large, LARGE + 5, 4 * KIB).await.expect("read");
    assert_eq!(bytes, content::bytes("it", LARGE + 5, 4096));
    node.stop();
}

#[tokio::test]
async fn what_is_here_in_part_is_loaded_leased_and_dropped_as_any_block() {
    let origin = store();
    let node = node(&origin);
    let far = client(&node, false).await;
    let file = far.stat("it").await.expect("stat");
    far.read(&file, 130 * KIB, 10).await.expect("read");
    far.read(&file, LARGE + 700 * KIB, 10).await.expect("read");
    // A client of this machine reads whole blocks in place.
    let near = client(&node, true).await;
    let bytes = near.read(&file, 0, LARGE).await.expect("read");
    assert!(bytes == content::bytes("it", 0, LARGE as usize));
    assert_eq!(node.counter("fill_bytes"), LARGE + 64 * KIB);
    far.load("it").await.expect("load");
    assert_eq!(node.counter("fill_bytes"), LENGTH as u64);
    far.read(&file, 0, u64::MAX).await.expect("read");
    assert_eq!(node.counter("fill_bytes"), LENGTH as u64, "nothing was missing");
    far.free("it").await.expect("free");
    let bytes = far.read(&file, 65 * KIB, 64 * KIB).await.expect("read");
    assert_eq!(bytes, content::bytes("it", 65 * KIB, 64 << 10));
    node.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_readers_get_their_bytes_while_parts_come_and_go() {
    let origin = store();
    const LENGTH: u64 = 10 << 20;
    origin.put("box", "big", content::bytes("big", 0, LENGTH as usize));
    // Room for eight of the twenty blocks.
    let options = NodeOptions::new(Path::new("s3://box")).set("source_option", endpoint(&origin));
    let node = options.set("block_size", 512 * KIB).set("memory", 8 * 512 * KIB).start();
    let file = client(&node, false).await.stat("big").await.expect("stat");
    let mut readers = Vec::new();
    for seed in 0..8 {
        let (client, file) = (client(&node, seed % 4 == 0).await, file.clone());
        readers.push(tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            for _ in 0..100 {
                let offset = random.u64(..LENGTH);
                let length = random.u64(1..200 * KIB).min(LENGTH - offset);
                let bytes = client.read(&file, offset, length).await.expect("read");
                assert!(bytes == content::bytes("big", offset, length as usize));
            }
        }));
    }
    for reader in readers {
        reader.await.expect("a reader");
    }
    node.stop();
}

#[tokio::test]
async fn nodes_that_give_each_other_blocks_read_parts_where_they_may() {
    let origin = store();
    let coord = Ensemble::single(Options::new().line("tickTime", 250));
    let mut cluster = Cluster::over(&coord.addresses(), "/millrace", Path::new("s3://box"));
    cluster.coord = Some(coord);
    for _ in 0..2 {
        cluster.add();
    }
    for member in &mut cluster.members {
        member.set("source_option", endpoint(&origin));
        member.set("block_size", LARGE);
    }
    cluster.members[0].start();
    cluster.wait_settled();
    let client = cluster.client().await;
    let file = client.stat("it").await.expect("stat");
    for offset in [10 * KIB, LARGE + 10 * KIB, 2 * LARGE + 10 * KIB] {
        client.read(&file, offset, 100).await.expect("read");
    }
    assert_eq!(cluster.sum("fill_bytes"), 192 * KIB);
    // One whole block is handed over, or stays; parts are read again by the node that owns them now.
    client.read(&file, 2 * LARGE, LARGE).await.expect("read");
    cluster.members[1].start();
    cluster.wait_settled();
    for offset in (0..LENGTH as u64).step_by(60 << 10) {
        let length = (60 * KIB).min(LENGTH as u64 - offset);
        let bytes = client.read(&file, offset, length).await.expect("read");
        assert!(bytes == content::bytes("it", offset, length as usize), "from {offset}");
    }
}
