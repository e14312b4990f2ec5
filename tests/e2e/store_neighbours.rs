//! Cold reads of neighbouring blocks: few requests to a store, and for each reader what one read would give it.

use std::path::Path;
use std::time::Duration;

use millrace_client::{Client, ClientConfig, Error, File};
use millrace_tests::origin::{Fault, Origin};
use millrace_tests::{BLOCK, HANG_GUARD, Node, NodeOptions, content, wait_until};

/// Readers, each with a connection of its own, and so with a share of the fills.
const READERS: u64 = 16;
/// Blocks that they read.
const BLOCKS: u64 = 2 * READERS;

/// How long a reader asks again for what the store does not give. Guessed: all that comes is there in two seconds.
const DEADLINE: Duration = Duration::from_secs(8);

/// Starts a node that has one request to its store under way.
fn start(origin: &Origin) -> Node {
    // Without an object there is no bucket.
    origin.put("box", "first", vec![1]);
    let endpoint = format!("endpoint={}:skip_signature=true", origin.url());
    NodeOptions::new(Path::new("s3://box"))
        .set("source_option", endpoint)
        .set("fill_concurrency", 1)
        .set("source_timeout_ms", 2000)
        .start()
}

fn put(origin: &Origin, key: &str) {
    // The last block is a short one.
    origin.put("box", key, content::bytes(key, 0, BLOCKS as usize * BLOCK as usize - 1000));
}

/// Reads a block, and compares it with what was put.
async fn read(client: &Client, file: &File, block: u64) -> Result<(), Error> {
    let offset = block * u64::from(BLOCK);
    let bytes = client.read(file, offset, u64::from(BLOCK)).await?;
    let length = u64::from(BLOCK).min(file.length - offset) as usize;
    assert!(bytes == content::bytes(&file.path, offset, length), "block {block} is another one");
    Ok(())
}

/// Reads all blocks at once, each reader two that follow each other.
async fn read_all(node: &Node, key: &str, deadline: Duration) -> Vec<Result<(), Error>> {
    let mut reads = Vec::new();
    for reader in 0..READERS {
        let config = ClientConfig { deadline, local: false, ..ClientConfig::new() };
        let client = node.client_with(config).await;
        let file = client.stat(key).await.expect("stat");
        for block in [2 * reader, 2 * reader + 1] {
            let (client, file) = (client.clone(), file.clone());
            reads.push(async move { read(&client, &file, block).await });
        }
    }
    let tasks: Vec<_> = reads.into_iter().map(tokio::spawn).collect();
    let mut results = Vec::new();
    for task in tasks {
        let result = tokio::time::timeout(HANG_GUARD, task).await.expect("an answer");
        results.push(result.expect("a task"));
    }
    results
}

/// Reads all blocks until each was read.
async fn read_until_all_are_there(node: &Node, key: &str) {
    let read = async {
        while read_all(node, key, HANG_GUARD).await.iter().any(Result::is_err) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(HANG_GUARD, read).await.expect("it comes back");
}

#[tokio::test]
async fn neighbours_that_wait_are_few_requests() {
    for has_tags in [true, false] {
        let origin = Origin::start();
        put(&origin, "it");
        if !has_tags {
            origin.forget_tags();
        }
        let node = start(&origin);
        // The first request is tried again after a while, and meanwhile the others wait for its place.
        origin.break_reads(Fault::Status(503), 1);
        for result in read_all(&node, "it", HANG_GUARD).await {
            result.expect("read");
        }
        let count = origin.read_count() as u64;
        assert!(count <= BLOCKS / 3, "{count} requests for {BLOCKS} blocks");
        node.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_costs_no_reader_whose_bytes_came() {
    let origin = Origin::start();
    put(&origin, "it");
    let node = start(&origin);
    // One request holds the place, and meanwhile the others wait for it. Then a block of a request of its own never
    // comes; of one for many the last two do not.
    origin.break_reads_in_turn([Some(Fault::Late(Duration::from_millis(1500)))]);
    origin.break_reads(Fault::Cut(BLOCK as usize + 10), usize::MAX);
    let client = node.client().await;
    let first = client.stat("first").await.expect("stat");
    let holds = tokio::spawn(async move { client.read(&first, 0, 1).await });
    tokio::task::block_in_place(|| wait_until("the place is held", || origin.read_count() == 1));
    let results = read_all(&node, "it", DEADLINE).await;
    let came = results.iter().filter(|result| result.is_ok()).count() as u64;
    assert!(came >= BLOCKS / 3, "{came} of {BLOCKS} blocks came: {results:?}");
    assert!(came < BLOCKS, "what never came is an error");
    assert_eq!(holds.await.expect("a task").expect("it comes late"), [1_u8][..]);
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(error.status().is_some(), "the node says why: {error}");
    }
    origin.mend();
    read_until_all_are_there(&node, "it").await;
    node.stop();
}

#[tokio::test]
async fn a_store_that_answers_neighbours_badly_never_gives_a_wrong_byte() {
    let origin = Origin::start();
    let node = start(&origin);
    let faults = [
        Fault::Status(503),
        Fault::Status(403),
        Fault::Cut(0),
        Fault::Cut(1),
        Fault::Reset(3 * BLOCK as usize / 2),
        Fault::Cut(5 * BLOCK as usize / 2),
        Fault::Empty,
        Fault::EmptyPart,
        Fault::Whole,
        Fault::OtherPart,
        Fault::Long,
        Fault::Short,
        Fault::OtherTag,
        Fault::Zipped,
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        let key = format!("f{index}");
        put(&origin, &key);
        origin.break_reads(fault, 3);
        // What comes is compared.
        read_all(&node, &key, DEADLINE).await;
        origin.mend();
        read_until_all_are_there(&node, &key).await;
    }
    node.stop();
}

#[tokio::test]
async fn neighbours_of_a_replaced_object_are_stale() {
    let origin = Origin::start();
    let node = start(&origin);
    let length = BLOCKS as usize * BLOCK as usize;
    origin.put("box", "it", content::versioned(1, length));
    let client = node.client().await;
    let old = client.stat("it").await.expect("stat");
    origin.put("box", "it", content::versioned(2, length));
    let reads: Vec<_> = (0..BLOCKS)
        .map(|block| {
            let (client, old) = (client.clone(), old.clone());
            let offset = block * u64::from(BLOCK);
            tokio::spawn(async move { client.read(&old, offset, u64::from(BLOCK)).await })
        })
        .collect();
    for read in reads {
        let read = read.await.expect("a task");
        assert!(matches!(read, Err(Error::Stale { .. })), "{read:?}");
    }
    let new = client.stat("it").await.expect("stat again");
    let whole = client.read(&new, 0, u64::MAX).await.expect("read the new one");
    assert_eq!(content::version_of(0, &whole), Some(2));
    node.stop();
}
