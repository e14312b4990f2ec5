//! Sources on other machines: right bytes or a clear error, whatever the store does.

use std::path::Path;
use std::time::Duration;

use millrace_client::{Client, ClientConfig, Error, Kind, MountInfo};
use millrace_tests::origin::{Fault, Origin};
use millrace_tests::servers::Server;
use millrace_tests::{BLOCK, HANG_GUARD, Node, NodeOptions, Scratch, content};

/// Length of an object of four blocks, the last one short.
const LENGTH: usize = 3 * BLOCK as usize + 1232;

/// Configures a node without credentials in front of a bucket.
fn options(origin: &Origin, source: &str) -> NodeOptions {
    let endpoint = format!("endpoint={}:skip_signature=true", origin.url());
    NodeOptions::new(Path::new(source)).set("source_option", endpoint)
}

fn put(origin: &Origin, bucket: &str, key: &str, length: usize) {
    origin.put(bucket, key, content::bytes(key, 0, length));
}

/// Connects a client with a short deadline.
async fn impatient(node: &Node) -> Client {
    let deadline = Duration::from_secs(3);
    node.client_with(ClientConfig { deadline, local: false, ..ClientConfig::new() }).await
}

async fn read_whole(client: &Client, path: &str) -> Result<Vec<u8>, Error> {
    let file = client.stat(path).await?;
    Ok(client.read(&file, 0, u64::MAX).await?.to_vec())
}

/// Lists all names in a directory, page by page.
async fn names(client: &Client, path: &str) -> Vec<(String, Kind)> {
    let entries = client.list(path).await.expect("list");
    entries.into_iter().map(|entry| (entry.name, entry.kind)).collect()
}

#[tokio::test]
async fn a_bucket_is_read_as_a_tree() {
    let origin = Origin::start();
    let keys = ["lake/a.parquet", "lake/deep/b c", "lake/deep/ü+%41", "lake/deep-1", "lake/empty"];
    for key in keys {
        put(&origin, "box", key, if key.ends_with("empty") { 0 } else { LENGTH });
    }
    put(&origin, "box", "lake2/hidden", 1);
    let node = options(&origin, "s3://box/lake").start();
    let client = node.client().await;
    for key in keys {
        let path = key.strip_prefix("lake/").expect("in the lake");
        let bytes = read_whole(&client, path).await.expect(path);
        let length = if path == "empty" { 0 } else { LENGTH };
        assert_eq!(bytes, content::bytes(key, 0, length), "{path}");
    }
    let expect = [
        ("a.parquet", Kind::File),
        ("deep-1", Kind::File),
        ("deep", Kind::Directory),
        ("empty", Kind::File),
    ];
    assert_eq!(names(&client, "").await, expect.map(|(name, kind)| (name.to_owned(), kind)));
    assert_eq!(names(&client, "deep").await.len(), 2);
    assert_eq!(client.stat("deep").await.expect("a directory").kind, Kind::Directory);
    for path in ["hidden", "deep/none", "lake2/hidden"] {
        let error = client.stat(path).await.expect_err(path);
        assert_eq!(error.status(), Some(millrace_client::Status::NotFound), "{path}: {error}");
    }
    // What was read is in memory now.
    let before = origin.read_count();
    for key in keys {
        read_whole(&client, key.strip_prefix("lake/").expect("in the lake")).await.expect("again");
    }
    assert_eq!(origin.read_count(), before);
    node.stop();
}

#[tokio::test]
async fn long_directories_come_page_by_page() {
    let origin = Origin::start();
    let mut expect = Vec::new();
    for index in 0..2500 {
        let name = format!("f{index:05}");
        origin.put("box", &name, vec![1]);
        expect.push(name);
        if index % 2 == 0 {
            origin.put("box", &format!("f{index:05}d/x"), vec![1]);
            expect.push(format!("f{index:05}d"));
        }
    }
    let node = options(&origin, "s3://box").start();
    let client = node.client().await;
    let listed: Vec<_> = names(&client, "").await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(listed, expect);
    node.stop();
}

#[tokio::test]
async fn a_plain_web_server_is_a_source() {
    let origin = Origin::start();
    put(&origin, "files", "a/b", LENGTH);
    for has_tags in [true, false] {
        if !has_tags {
            origin.forget_tags();
        }
        let source = format!("{}/files", origin.url());
        let node = NodeOptions::new(Path::new(&source)).start();
        let client = node.client().await;
        let bytes = read_whole(&client, "a/b").await.expect("read");
        assert_eq!(bytes, content::bytes("a/b", 0, LENGTH));
        let error = client.list("a").await.expect_err("no listings");
        assert!(error.to_string().contains("has no listings"), "{error}");
        node.stop();
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_of_changes_is_refused() {
    let origin = Origin::start();
    put(&origin, "files", "it", 100);
    origin.forget_tags();
    origin.forget_times();
    let source = format!("{}/files", origin.url());
    let node = NodeOptions::new(Path::new(&source)).start();
    let error = node.client().await.stat("it").await.expect_err("it cannot be told apart");
    assert!(error.to_string().contains("neither ETag nor Last-Modified"), "{error}");
    node.stop();
}

#[tokio::test]
async fn what_a_store_refuses_is_no_outage() {
    let origin = Origin::start();
    put(&origin, "box", "it", 100);
    let node = options(&origin, "s3://box").start();
    let client = node.client().await;
    let file = client.stat("it").await.expect("stat");
    origin.break_reads(Fault::Status(403), usize::MAX);
    for _ in 0..20 {
        let error = client.read(&file, 0, 100).await.expect_err("refused");
        assert!(error.to_string().contains("credentials may not read"), "{error}");
    }
    origin.mend();
    client.read(&file, 0, 100).await.expect("the store was never down");
    node.stop();
}

#[tokio::test]
async fn an_object_that_is_replaced_is_another_version() {
    let origin = Origin::start();
    for has_tags in [true, false] {
        if !has_tags {
            origin.forget_tags();
        }
        let source = format!("{}/files", origin.url());
        origin.put("files", "it", content::versioned(1, LENGTH));
        let node = NodeOptions::new(Path::new(&source)).start();
        let client = node.client().await;
        let old = client.stat("it").await.expect("stat");
        let first = client.read(&old, 0, 8).await.expect("read a block");
        assert_eq!(content::version_of(0, &first), Some(1));
        origin.put("files", "it", content::versioned(2, LENGTH));
        // A block that is not in memory yet.
        let stale = client.read(&old, 2 * u64::from(BLOCK), 8).await;
        assert!(matches!(stale, Err(Error::Stale { .. })), "{stale:?}");
        let new = client.stat("it").await.expect("stat again");
        assert_ne!(old.version, new.version);
        let whole = client.read(&new, 0, u64::MAX).await.expect("read the new one");
        assert_eq!(content::version_of(0, &whole), Some(2));
        node.stop();
    }
}

#[tokio::test]
async fn a_store_that_answers_badly_never_gives_a_wrong_byte() {
    let origin = Origin::start();
    let faults = [
        Fault::Status(503),
        Fault::Status(429),
        Fault::Status(403),
        Fault::Status(500),
        Fault::Cut(0),
        Fault::Cut(1),
        Fault::Cut(BLOCK as usize / 2),
        Fault::Reset(BLOCK as usize / 2),
        Fault::Late(Duration::from_millis(100)),
        Fault::Trickle(Duration::from_millis(20)),
        Fault::Stuck,
        Fault::Empty,
        Fault::EmptyPart,
        Fault::Whole,
        Fault::OtherPart,
        Fault::Long,
        Fault::Short,
        Fault::OtherTag,
        Fault::Zipped,
        Fault::Hang,
    ];
    put(&origin, "box", "hot", LENGTH);
    let node = options(&origin, "s3://box").set("source_timeout_ms", 500).start();
    let client = node.client_with(ClientConfig { local: false, ..ClientConfig::new() }).await;
    let hurried = client.with_deadline(Duration::from_secs(1));
    let hot = client.stat("hot").await.expect("stat");
    client.read(&hot, 0, u64::MAX).await.expect("have it in memory");
    for (index, fault) in faults.into_iter().enumerate() {
        // A part of an object, and a whole one, which is asked for without a range.
        for (count, length) in [(1, LENGTH), (usize::MAX, LENGTH), (usize::MAX, 50_000)] {
            let key = format!("f{index}-{count}-{length}");
            put(&origin, "box", &key, length);
            let file = client.stat(&key).await.expect("stat");
            origin.break_reads(fault, count);
            let offset = if length == LENGTH { u64::from(BLOCK) } else { 0 };
            let expect = content::bytes(&key, offset, length.min(BLOCK as usize));
            match hurried.read(&file, offset, u64::from(BLOCK)).await {
                Ok(bytes) => assert_eq!(bytes, expect, "{fault:?}"),
                Err(error) => assert!(!error.to_string().is_empty(), "{fault:?}"),
            }
            let bytes = client.read(&hot, 5, 100).await.expect("what is in memory is served");
            assert_eq!(bytes, content::bytes("hot", 5, 100));
            origin.mend();
            let bytes = read_until_it_comes(&client, &key).await;
            assert_eq!(bytes, content::bytes(&key, 0, length), "{fault:?}");
        }
    }
    node.stop();
}

/// Reads until it works, because a store that was down is asked again after a second.
async fn read_until_it_comes(client: &Client, path: &str) -> Vec<u8> {
    let read = async {
        loop {
            match read_whole(client, path).await {
                Ok(bytes) => return bytes,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    tokio::time::timeout(HANG_GUARD, read).await.expect("it comes back")
}

#[tokio::test]
async fn what_a_store_answers_to_the_rest_of_a_broken_read_is_judged_too() {
    let origin = Origin::start();
    put(&origin, "box", "first", 1);
    let node = options(&origin, "s3://box").set("source_timeout_ms", 500).start();
    let client = impatient(&node).await;
    let half = BLOCK as usize / 2;
    for (index, second) in [
        // The range is not heeded where the rest is asked for.
        Fault::Whole,
        // The object has changed in the middle of a block.
        Fault::OtherTag,
        Fault::OtherPart,
        Fault::Long,
        Fault::Short,
        Fault::EmptyPart,
        Fault::Zipped,
        Fault::Status(404),
        Fault::Status(416),
        Fault::Stuck,
    ]
    .into_iter()
    .enumerate()
    {
        for first in [Fault::Cut(half), Fault::Reset(half), Fault::Cut(1), Fault::Status(503)] {
            let key = format!("f{index}-{first:?}");
            put(&origin, "box", &key, LENGTH);
            let file = client.stat(&key).await.expect("stat");
            origin.break_reads_in_turn([Some(first), Some(second), Some(second)]);
            let offset = u64::from(BLOCK);
            match client.read(&file, offset, u64::from(BLOCK)).await {
                Ok(bytes) => assert!(
                    bytes == content::bytes(&key, offset, BLOCK as usize),
                    "{first:?}, then {second:?}: a wrong byte"
                ),
                Err(error) => assert!(!error.to_string().is_empty(), "{first:?}, {second:?}"),
            }
            origin.mend();
            let bytes = read_until_it_comes(&client, &key).await;
            assert!(bytes == content::bytes(&key, 0, LENGTH), "{first:?}, then {second:?}");
        }
    }
    node.stop();
}

#[tokio::test]
async fn a_long_answer_that_keeps_coming_does_not_hang() {
    let origin = Origin::start();
    put(&origin, "box", "first", 1);
    put(&origin, "box", "it", 8 * BLOCK as usize);
    // A block takes 400 ms, and all of them in one answer more than twice the time that a block may take.
    let node = options(&origin, "s3://box").set("source_timeout_ms", 1500).start();
    let client = node.client().await;
    origin.break_reads(Fault::Trickle(Duration::from_millis(100)), usize::MAX);
    let file = client.stat("it").await.expect("stat");
    let bytes = client.read(&file, 0, u64::MAX).await.expect("read");
    assert!(bytes == content::bytes("it", 0, 8 * BLOCK as usize));
    node.stop();
}

#[tokio::test]
async fn listings_that_are_cut_or_lag_behind_are_told_or_put_right() {
    let origin = Origin::start();
    for index in 0..20 {
        put(&origin, "box", &format!("deep/f{index}"), 1000);
    }
    let node = options(&origin, "s3://box").set("source_timeout_ms", 500);
    let node = node.set("stale_after_ms", 0).start();
    let client = impatient(&node).await;
    origin.cut_listings();
    let error = client.list("deep").await.expect_err("half of a listing");
    assert!(!error.to_string().is_empty());
    origin.mend();
    let listed = async {
        loop {
            match client.list("deep").await {
                Ok(entries) => return entries.len(),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    assert_eq!(tokio::time::timeout(HANG_GUARD, listed).await.expect("it comes back"), 20);
    // The listing shows what was replaced and what is gone, and not what is new.
    origin.freeze_listings();
    origin.put("box", "deep/f0", content::bytes("new", 0, 2000));
    origin.remove("box", "deep/f1");
    put(&origin, "box", "deep/late", 500);
    let entries = client.list("deep").await.expect("list");
    assert_eq!(entries.len(), 20);
    assert_eq!(read_whole(&client, "deep/f0").await.expect("new"), content::bytes("new", 0, 2000));
    let gone = client.stat("deep/f1").await.expect_err("it is gone");
    assert_eq!(gone.status(), Some(millrace_client::Status::NotFound), "{gone}");
    let late = read_whole(&client, "deep/late").await.expect("it is there");
    assert_eq!(late, content::bytes("deep/late", 0, 500));
    node.stop();
}

#[tokio::test]
async fn many_readers_of_a_cold_block_are_one_request() {
    let origin = Origin::start();
    put(&origin, "box", "it", LENGTH);
    let node = options(&origin, "s3://box").start();
    let client = node.client().await;
    let file = client.stat("it").await.expect("stat");
    let reads = (0..100).map(|_| {
        let (client, file) = (client.clone(), file.clone());
        tokio::spawn(async move { client.read(&file, 7, 1000).await.expect("read") })
    });
    for read in reads.collect::<Vec<_>>() {
        assert_eq!(read.await.expect("a task"), content::bytes("it", 7, 1000));
    }
    assert_eq!(origin.read_count(), 1);
    node.stop();
}

#[tokio::test]
async fn stores_with_equal_names_share_no_block() {
    let origin = Origin::start();
    // Equal lengths and times, and the tags of the first and the second put.
    origin.put("one", "it", vec![1; 1000]);
    origin.put("two", "it", vec![2; 1000]);
    let scratch = Scratch::new();
    let roots = format!("{}:s3://one:s3://two", scratch.root().display());
    let endpoint = format!("endpoint={}:skip_signature=true", origin.url());
    let node = NodeOptions::new(scratch.root())
        .set("mount_root", roots)
        .set("source_option", endpoint)
        .start();
    let client = node.client_with(ClientConfig::new()).await;
    for (source, byte) in [("s3://one", 1), ("s3://two", 2), ("s3://one", 1)] {
        let mount = MountInfo::new("m", source, 1);
        client.mount(&mount).await.expect("mount");
        let read = async {
            loop {
                match read_whole(&client, "m/it").await {
                    Ok(bytes) if bytes == vec![byte; 1000] => return,
                    Ok(bytes) => assert!(bytes == vec![3 - byte; 1000], "mixed bytes"),
                    Err(_) => (),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(HANG_GUARD, read).await.expect("it is mounted");
    }
    node.stop();
}

#[test]
fn a_source_that_cannot_be_used_is_refused_with_the_reason() {
    let origin = Origin::start();
    put(&origin, "box", "it", 1);
    let told = |options: NodeOptions| options.set("source_timeout_ms", 1000).start_in_vain();
    let missing = told(options(&origin, "s3://none"));
    assert!(missing.contains("there is no such bucket"), "{missing}");
    let option = told(options(&origin, "s3://box").set("source_option", "colour=red"));
    assert!(option.contains("source option colour is not one of"), "{option}");
    for (source, reason) in [
        ("ftp://host/x", "no store has this scheme"),
        ("https://me:secret@host/x", "carries no password"),
        ("s3://", "names no bucket"),
        ("s3://box/../x", "a part of the source's path"),
    ] {
        let told = told(NodeOptions::new(Path::new(source)));
        assert!(told.contains(reason), "{source}: {told}");
    }
    // A port where nothing listens.
    let down = NodeOptions::new(Path::new("s3://box"))
        .set("source_option", "endpoint=http://127.0.0.1:9:skip_signature=true");
    let down = told(down);
    assert!(down.contains("cannot start the node: "), "{down}");
}

#[tokio::test]
async fn a_store_that_is_down_answers_at_once_and_comes_back() {
    let origin = Origin::start();
    for index in 0..40 {
        put(&origin, "box", &format!("f{index}"), 100);
    }
    let node = options(&origin, "s3://box").set("source_timeout_ms", 500).start();
    let client = impatient(&node).await;
    let mut files = Vec::new();
    for index in 0..40 {
        files.push(client.stat(&format!("f{index}")).await.expect("stat"));
    }
    origin.break_reads(Fault::Hang, usize::MAX);
    let mut told = Vec::new();
    for file in &files[..12] {
        told.push(client.read(file, 0, 100).await.expect_err("it hangs").to_string());
    }
    assert!(told.iter().any(|it| it.contains("does not answer")), "{told:?}");
    origin.mend();
    let read = async {
        while client.read(&files[20], 0, 100).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(HANG_GUARD, read).await.expect("it is back");
    node.stop();
}

#[tokio::test]
async fn a_real_s3_server_is_a_source() {
    let Some(weed) = Server::weed() else { return };
    let lengths = [0, 1, LENGTH, 5 << 20];
    for (index, length) in lengths.into_iter().enumerate() {
        let key = format!("deep/f{index}");
        assert_eq!(weed.put(&key, &content::bytes(&key, 0, length)), 200);
    }
    let endpoint = format!("endpoint={}:skip_signature=true", weed.url());
    let node = NodeOptions::new(Path::new("s3://millrace-it")).set("source_option", endpoint);
    let node = node.set("stale_after_ms", 0).start();
    let client = node.client().await;
    for (index, length) in lengths.into_iter().enumerate() {
        let key = format!("deep/f{index}");
        assert_eq!(read_whole(&client, &key).await.expect(&key), content::bytes(&key, 0, length));
    }
    assert_eq!(names(&client, "deep").await.len(), lengths.len());
    let old = client.stat("deep/f2").await.expect("stat");
    assert_eq!(weed.put("deep/f2", &content::bytes("new", 0, LENGTH)), 200);
    assert_eq!(
        read_whole(&client, "deep/f2").await.expect("new"),
        content::bytes("new", 0, LENGTH)
    );
    let stale = client.read(&old, 0, 8).await;
    assert!(matches!(stale, Err(Error::Stale { .. })), "{stale:?}");
    node.stop();
}
