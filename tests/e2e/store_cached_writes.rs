//! Mounts that keep what is written: the first read asks the store for nothing, and nothing is kept that the store
//! has not acknowledged.

use std::path::Path;
use std::time::Duration;

use millrace_client::{Client, Error, MountInfo, PutOptions, Status};
use millrace_tests::cluster::Cluster;
use millrace_tests::coord::{Ensemble, Options};
use millrace_tests::origin::{Origin, WriteFault};
use millrace_tests::{Node, NodeOptions, Scratch, content, wait_until};

/// More than two parts of an upload.
const LARGE: usize = (20 << 20) + 12_345;
const BLOCK: usize = content::BLOCK as usize;

fn options(origin: &Origin) -> NodeOptions {
    origin.put("box", "ready", vec![1]);
    NodeOptions::new(Path::new("s3://box"))
        .set("source_option", format!("endpoint={}:skip_signature=true", origin.url()))
        .set("writable", true)
        .set("mount_options", "/=cache-on-write")
        .set("source_timeout_ms", 2000)
        .set("memory", "384MiB")
}

fn blocks(length: usize) -> u64 {
    length.div_ceil(BLOCK) as u64
}

async fn read_whole(client: &Client, path: &str) -> Result<Vec<u8>, Error> {
    let file = client.stat(path).await?;
    Ok(client.read(&file, 0, u64::MAX).await?.to_vec())
}

/// Returns what is in memory: blocks, and bytes of whatever kind.
fn held(node: &Node) -> (u64, u64) {
    (node.counter("block_count"), node.counter("used_bytes"))
}

#[tokio::test]
async fn the_first_read_after_a_write_asks_the_store_for_nothing() {
    let origin = Origin::start();
    let node = options(&origin).start();
    let client = node.client().await;
    let lengths = [0, 1, 4096, BLOCK, BLOCK + 1, 3 * BLOCK + 5000, 8 << 20, LARGE];
    let mut count = 0;
    for length in lengths {
        let path = length.to_string();
        let bytes = content::bytes(&path, 0, length);
        client.put(&path, &bytes[..], PutOptions::new()).await.expect("put");
        count += blocks(length);
        assert_eq!(node.counter("written_block_count"), count, "{length}");
        assert!(read_whole(&client, &path).await.expect("read") == bytes, "{length}");
        assert!(origin.get("box", &path) == Some(bytes), "{length}");
    }
    assert_eq!(origin.read_count(), 0, "every byte was read from memory");
    assert_eq!(node.counter("written_block_bytes"), lengths.iter().sum::<usize>() as u64);
    assert_eq!((node.counter("miss_count"), node.counter("unkept_block_count")), (0, 0));
    let pages: usize = lengths.iter().map(|length| length.next_multiple_of(4096)).sum();
    assert_eq!(held(&node), (count, pages as u64), "nothing else is held");
    node.stop();
}

#[tokio::test]
async fn a_mount_that_does_not_ask_for_it_keeps_nothing() {
    let origin = Origin::start();
    let node = options(&origin).set("mount_options", "").start();
    let client = node.client().await;
    let bytes = content::bytes("it", 0, 3 * BLOCK);
    client.put("it", &bytes[..], PutOptions::new()).await.expect("put");
    assert_eq!(held(&node), (0, 0));
    assert!(read_whole(&client, "it").await.expect("read") == bytes);
    assert!(origin.read_count() > 0, "the store is asked");
    assert_eq!(node.counter("written_block_count") + node.counter("unkept_block_count"), 0);
    node.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_abandoned_or_fails_leaves_nothing() {
    let origin = Origin::start();
    origin.put("box", "it", b"old".to_vec());
    let node = options(&origin).start();
    let client = node.client().await;
    for length in [3 * BLOCK + 5000, LARGE] {
        let bytes = vec![1; length];
        let mut upload = client.upload("it", PutOptions::new()).await.expect("begin");
        upload.write(&bytes).await.expect("write");
        wait_until("it is held while it is written", || node.counter("used_bytes") > 0);
        drop(upload);
        wait_until("nothing is held", || held(&node) == (0, 0));
        origin.break_writes(Some(WriteFault::Status(403)));
        client.put("it", &bytes[..], PutOptions::new()).await.expect_err("refused");
        wait_until("nothing is held", || held(&node) == (0, 0));
        origin.break_writes(None);
        let taken = client.put_if_absent("it", &bytes[..]).await.expect_err("taken");
        assert_eq!(taken.status(), Some(Status::ConditionFailed), "{taken}");
        wait_until("nothing is held", || held(&node) == (0, 0));
        // The store has it, and does not say so.
        let is_large = length == LARGE;
        let fault = if is_large { WriteFault::LateEnd(500) } else { WriteFault::Silent };
        origin.break_writes(Some(fault));
        let lost = client.put_if_absent(&format!("lost-{length}"), &bytes[..]).await;
        assert!(matches!(lost, Err(Error::OutcomeUnknown { .. })), "{lost:?}");
        origin.break_writes(None);
        wait_until("nothing is held", || held(&node) == (0, 0));
    }
    assert_eq!(read_whole(&client, "it").await.expect("read"), b"old");
    assert_eq!(node.counter("written_block_count"), 0);
    assert!(node.counter("unkept_block_count") > 0);
    node.stop();
}

#[tokio::test]
async fn an_object_that_is_replaced_is_the_old_one_or_the_new_one() {
    let origin = Origin::start();
    let node = options(&origin).start();
    let client = node.client().await;
    let first = content::versioned(1, 3 * BLOCK + 8);
    let second = content::versioned(2, 3 * BLOCK + 8);
    client.put("it", &first[..], PutOptions::new()).await.expect("put");
    let old = client.stat("it").await.expect("stat");
    let mut upload = client.upload("it", PutOptions::new()).await.expect("begin");
    upload.write(&second).await.expect("write");
    assert!(
        client.read(&old, 0, u64::MAX).await.expect("read") == first,
        "nothing has changed yet"
    );
    upload.finish().await.expect("finish");
    let stale = client.read(&old, 0, u64::MAX).await.expect_err("it is gone");
    assert!(matches!(stale, Error::Stale { .. }), "{stale}");
    assert!(read_whole(&client, "it").await.expect("read") == second);
    assert_eq!((origin.read_count(), node.counter("block_count")), (0, 4));
    // Another writer at the store itself.
    origin.put("box", "it", first.clone());
    client.refresh("it", false).await.expect("refresh");
    assert!(read_whole(&client, "it").await.expect("read") == first);
    assert!(origin.read_count() > 0);
    node.stop();
}

#[tokio::test]
async fn an_object_larger_than_the_memory_is_written_and_hot_blocks_stay() {
    let origin = Origin::start();
    let hot = content::bytes("hot", 0, 12 << 20);
    origin.put("box", "hot", hot.clone());
    let node = options(&origin).set("memory", "16MiB").start();
    let client = node.client().await;
    for _ in 0..3 {
        assert!(read_whole(&client, "hot").await.expect("read") == hot);
    }
    let before = origin.read_count();
    let bytes = content::bytes("it", 0, LARGE);
    client.put("it", &bytes[..], PutOptions::new()).await.expect("put");
    let (kept, unkept) = ("written_block_count", "unkept_block_count");
    let a_sixteenth = (1 << 20) / BLOCK as u64;
    let count = node.counter(kept);
    assert!((a_sixteenth - 1..=a_sixteenth).contains(&count), "{count} blocks");
    assert_eq!(node.counter(kept) + node.counter(unkept), blocks(LARGE));
    for more in 0..8 {
        let bytes = content::bytes("more", more, 2 << 20);
        client.put(&format!("more-{more}"), &bytes[..], PutOptions::new()).await.expect("put");
    }
    assert!(node.counter("evicted_count") > 0, "what was written made room for itself");
    assert!(read_whole(&client, "hot").await.expect("read") == hot);
    assert_eq!(origin.read_count(), before, "they are still here");
    assert_eq!((node.counter("busy_count"), node.counter("short_count")), (0, 0));
    assert!(read_whole(&client, "it").await.expect("read") == bytes);
    assert!(origin.get("box", "it") == Some(bytes));
    node.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_uploads_at_once_the_one_that_the_store_has_is_read() {
    let origin = Origin::start();
    let node = options(&origin).start();
    let clients = [node.client().await, node.client().await];
    for round in 0..20 {
        let writers = clients.iter().zip([1, 2]).map(|(client, writer)| {
            let bytes = content::versioned(2 * round + writer, 3 * BLOCK);
            let client = client.clone();
            tokio::spawn(async move { client.put("it", &bytes[..], PutOptions::new()).await })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("a writer").expect("put");
        }
        let expected = origin.get("box", "it").expect("it is there");
        for client in &clients {
            assert!(read_whole(client, "it").await.expect("read") == expected, "round {round}");
        }
        assert_eq!(node.counter("block_count"), 3, "of one version alone");
    }
    node.stop();
}

#[tokio::test]
async fn what_a_store_does_not_name_is_not_kept() {
    let origin = Origin::start();
    origin.forget_tags();
    let node = options(&origin).start();
    let client = node.client().await;
    let bytes = content::bytes("it", 0, 3 * BLOCK);
    let error = client.put("it", &bytes[..], PutOptions::new()).await.expect_err("no tag");
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    assert_eq!((held(&node), node.counter("written_block_count")), ((0, 0), 0));
    assert!(read_whole(&client, "it").await.expect("read") == bytes);
    node.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_of_blocks_take_them_over_from_the_node_that_they_were_written_through() {
    let origin = Origin::start();
    origin.put("box", "ready", vec![1]);
    let coord = Ensemble::single(Options::new().line("tickTime", 250));
    let mut cluster = Cluster::over(&coord.addresses(), "/millrace", Path::new("s3://box"));
    cluster.coord = Some(coord);
    for _ in 0..3 {
        cluster.add();
    }
    for member in &mut cluster.members {
        member.set("source_option", format!("endpoint={}:skip_signature=true", origin.url()));
        member.set("writable", true);
        member.set("mount_options", "/=cache-on-write");
        member.set("memory", "160MiB");
        member.start();
    }
    cluster.wait_settled();
    let client = cluster.client().await;
    let mut mount = client.cluster().expect("a cluster").mounts[0].clone();
    mount.replicas = 3;
    client.mount(&mount).await.expect("change a mount");
    let replicas = || client.cluster().expect("a cluster").mounts[0].replicas;
    wait_until("the client knows", || replicas() == 3);
    cluster.wait_settled();
    let mut count = 0;
    for length in [1, BLOCK, 8 << 20] {
        let path = length.to_string();
        let bytes = content::bytes(&path, 0, length);
        client.put(&path, &bytes[..], PutOptions::new()).await.expect("put");
        count += blocks(length);
        assert_eq!(cluster.sum("written_block_count"), count);
        wait_until("each block is at each owner", || cluster.sum("block_count") == 3 * count);
        assert_eq!(cluster.sum("peer_fill_count"), 2 * count);
    }
    for index in [0, 1] {
        cluster.members[index].kill();
    }
    let client = cluster.client().await;
    for length in [1, BLOCK, 8 << 20] {
        let path = length.to_string();
        let bytes = content::bytes(&path, 0, length);
        assert!(read_whole(&client, &path).await.expect("read") == bytes, "{length}");
    }
    assert_eq!(cluster.members[2].counter("unkept_block_count"), 0);
    assert_eq!(origin.read_count(), 0, "the store was asked for no byte");
}

#[tokio::test]
async fn a_mount_of_an_administrator_keeps_what_is_written_too() {
    let (root, origin) = (Scratch::new(), Origin::start());
    origin.put("box", "ready", vec![1]);
    let directory = root.root().display().to_string();
    let node = NodeOptions::new(root.root())
        .set("mount_root", format!("{directory}:s3://box"))
        .set("source_option", format!("endpoint={}:skip_signature=true", origin.url()))
        .set("memory", "64MiB")
        .start();
    let client = node.client().await;
    let refused = MountInfo::new("it", format!("file://{directory}?cache_on_write=true"), 1);
    let error = client.mount(&refused).await.expect_err("a directory");
    assert!(error.to_string().contains("for stores on other machines"), "{error}");
    let source = "s3://box?writable=true&cache_on_write=true";
    client.mount(&MountInfo::new("it", source, 1)).await.expect("mount");
    let bytes = content::bytes("it", 0, 3 * BLOCK);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while let Err(error) = client.put("it/it", &bytes[..], PutOptions::new()).await {
        assert!(std::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(read_whole(&client, "it/it").await.expect("read") == bytes);
    assert_eq!(origin.read_count(), 0);
    node.stop();
    let lines = NodeOptions::new(root.root()).set("mount_options", "/=cache-on-write");
    assert!(lines.start_in_vain().contains("cache-on-write is for stores"), "a directory");
}
