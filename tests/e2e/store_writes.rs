//! Writes to a store on another machine: by a store in this process that fails as it is told, and by a real one.

use std::path::Path;
use std::time::Duration;

use millrace_client::{Client, ClientConfig, Condition, Error, PutOptions, Status};
use millrace_tests::origin::{Origin, WriteFault};
use millrace_tests::{NodeOptions, content, wait_until};

use millrace_tests::servers::Server;

/// More than two parts of an upload.
const LARGE: usize = (20 << 20) + 12_345;

fn options(endpoint: &str, source: &str) -> NodeOptions {
    NodeOptions::new(Path::new(source))
        .set("source_option", format!("endpoint={endpoint}:skip_signature=true"))
        .set("writable", true)
        .set("memory", "64MiB")
}

async fn read_whole(client: &Client, path: &str) -> Result<Vec<u8>, Error> {
    let file = client.stat(path).await?;
    Ok(client.read(&file, 0, u64::MAX).await?.to_vec())
}

#[tokio::test]
async fn objects_of_all_sizes_are_put_and_deleted() {
    let origin = Origin::start();
    origin.put("box", "lake/ready", vec![1]);
    let node = options(&origin.url(), "s3://box/lake").start();
    let client = node.client().await;
    for (path, length) in [("empty", 0), ("small", 1000), ("deep/8", 8 << 20), ("large", LARGE)] {
        let bytes = content::bytes(path, 0, length);
        let file = client.put(path, &bytes[..], PutOptions::new()).await.expect(path);
        assert_eq!(file, client.stat(path).await.expect("stat"), "{path}");
        assert_eq!(read_whole(&client, path).await.expect(path), bytes, "{path}");
        assert!(origin.get("box", &format!("lake/{path}")) == Some(bytes), "{path}");
    }
    assert_eq!(origin.put_count(), 1 + 1 + 1 + 3, "8 MiB are one request, more are parts");
    client.delete("large").await.expect("delete");
    let gone = client.stat("large").await.expect_err("it is gone");
    assert_eq!(gone.status(), Some(Status::NotFound));
    let twice = client.delete("large").await.expect_err("it is gone");
    assert_eq!(twice.status(), Some(Status::NotFound));
    let directory = client.delete("deep").await.expect_err("a directory");
    assert_eq!(directory.status(), Some(Status::WrongKind));
    let over = client.put("deep", &b"x"[..], PutOptions::new()).await.expect_err("a directory");
    assert_eq!(over.status(), Some(Status::WrongKind));
    assert_eq!(client.list("").await.expect("list").len(), 4, "deep, empty, ready and small");
    assert_eq!(origin.open_count(), 0);
    node.stop();
}

#[tokio::test]
async fn conditions_are_judged_by_the_store() {
    let origin = Origin::start();
    origin.put("box", "ready", vec![1]);
    let node = options(&origin.url(), "s3://box").start();
    let client = node.client().await;
    let writers = (0..4_u8).map(|writer| {
        let client = client.clone();
        tokio::spawn(async move { client.put_if_absent("it", &[writer; 100][..]).await })
    });
    let mut winners = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        match writer.await.expect("a task") {
            Ok(file) => winners.push(file),
            Err(error) => assert_eq!(error.status(), Some(Status::ConditionFailed), "{error}"),
        }
    }
    let [first] = &winners[..] else { panic!("{} winners", winners.len()) };
    let second = client.put_if_version("it", first.version, &b"two"[..]).await.expect("put");
    let late = client.put_if_version("it", first.version, &b"three"[..]).await;
    assert_eq!(late.expect_err("another version").status(), Some(Status::ConditionFailed));
    assert_eq!(read_whole(&client, "it").await.expect("read"), b"two");
    let kept = client.delete_if_version("it", second.version).await.expect_err("S3 cannot");
    assert!(kept.to_string().contains("delete without the condition"), "{kept}");
    node.stop();
}

#[tokio::test]
async fn conditions_hold_for_objects_in_parts_too() {
    let origin = Origin::start();
    origin.put("box", "ready", vec![1]);
    let node = options(&origin.url(), "s3://box").set("source_timeout_ms", 2000).start();
    let client = node.client().await;
    let bytes = |letter: u8| vec![letter; LARGE];
    let before = origin.put_count();
    let first = client.put_if_absent("it", &bytes(1)[..]).await.expect("free");
    assert_eq!(origin.put_count() - before, 3, "three parts");
    let taken = client.put_if_absent("it", &bytes(2)[..]).await.expect_err("taken");
    assert_eq!(taken.status(), Some(Status::ConditionFailed), "{taken}");
    assert!(taken.to_string().contains("taken already"), "{taken}");
    // Another writer comes while the parts are under way: the store itself has to judge.
    let other = bytes(9);
    let mut upload = client
        .upload("it", PutOptions { condition: Condition::Version(first.version) })
        .await
        .expect("begin");
    upload.write(&bytes(3)).await.expect("write");
    origin.replace_at_next_end("box", "it", other.clone());
    let late = upload.finish().await.expect_err("another version");
    assert_eq!(late.status(), Some(Status::ConditionFailed), "{late}");
    assert!(origin.get("box", "it") == Some(other));
    let now =
        client.refresh("it", false).await.expect("refresh")[0].1.clone().expect("it is there");
    client.put_if_version("it", now.version, &bytes(4)[..]).await.expect("the same version");
    assert!(read_whole(&client, "it").await.expect("read") == bytes(4));
    // It is sent once, and never denied though it was made.
    origin.break_writes(Some(WriteFault::LateEnd(500)));
    let lost = client.put_if_absent("more", &bytes(5)[..]).await.expect_err("no clear answer");
    assert!(matches!(lost, Error::OutcomeUnknown { .. }), "{lost}");
    origin.break_writes(None);
    assert!(read_whole(&client, "more").await.expect("it was made") == bytes(5));
    assert_eq!(origin.open_count(), 0);
    node.stop();
    // Where the operator says that the store knows no conditions nothing is written that has one.
    let options = options(&origin.url(), "s3://box");
    let endpoint = format!("endpoint={}:skip_signature=true", origin.url());
    let node = options.set("source_option", endpoint + ":conditional_put=disabled").start();
    let client = node.client().await;
    let large = client.put_if_absent("new", &bytes(6)[..]).await.expect_err("too large");
    assert!(large.to_string().contains("on a condition has at most"), "{large}");
    assert_eq!(origin.get("box", "new"), None);
    node.stop();
}

#[tokio::test]
async fn a_store_that_refuses_or_fails_keeps_the_object_before() {
    let origin = Origin::start();
    origin.put("box", "it", b"old".to_vec());
    let node = options(&origin.url(), "s3://box").set("source_timeout_ms", 1000).start();
    let client = node.client().await;
    for length in [10, LARGE] {
        origin.break_writes(Some(WriteFault::Status(403)));
        let bytes = vec![1; length];
        let error = client.put("it", &bytes[..], PutOptions::new()).await.expect_err("refused");
        assert_eq!(error.status(), Some(Status::PermissionDenied), "{error}");
        origin.break_writes(None);
        assert_eq!(read_whole(&client, "it").await.expect("read"), b"old");
        assert_eq!(origin.open_count(), 0);
    }
    node.stop();
}

#[tokio::test]
async fn an_answer_that_is_lost_is_told_to_be_unknown() {
    let origin = Origin::start();
    origin.put("box", "it", b"old".to_vec());
    let node = options(&origin.url(), "s3://box").set("source_timeout_ms", 1000).start();
    let client = node.client().await;
    assert_eq!(read_whole(&client, "it").await.expect("read"), b"old");
    let file = client.stat("it").await.expect("stat");
    origin.break_writes(Some(WriteFault::Silent));
    let error = client.put_if_version("it", file.version, &b"new"[..]).await.expect_err("silence");
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    origin.break_writes(None);
    // It was written once, and is seen.
    assert_eq!(read_whole(&client, "it").await.expect("read"), b"new");
    assert_eq!(origin.put_count(), 1);
    node.stop();
}

#[tokio::test]
async fn a_conditional_write_is_sent_once_and_never_denied_though_it_was_made() {
    let origin = Origin::start();
    origin.put("box", "log/0", b"first".to_vec());
    let node = options(&origin.url(), "s3://box").set("source_timeout_ms", 2000).start();
    let client = node.client().await;
    origin.break_writes(Some(WriteFault::Late(500)));
    let error = client.put_if_absent("log/1", &b"mine"[..]).await.expect_err("no clear answer");
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    origin.break_writes(None);
    assert_eq!(read_whole(&client, "log/1").await.expect("it was made"), b"mine");
    assert_eq!(origin.put_count(), 1);
    node.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_abandons_is_aborted_at_the_store() {
    let origin = Origin::start();
    origin.put("box", "it", b"old".to_vec());
    let node = options(&origin.url(), "s3://box").start();
    let client = node.client().await;
    let mut upload = client.upload("it", PutOptions::new()).await.expect("begin");
    upload.write(&vec![1; LARGE]).await.expect("write");
    wait_until("parts are there", || origin.open_count() == 1);
    drop(upload);
    wait_until("they are gone", || origin.open_count() == 0);
    assert_eq!(read_whole(&client, "it").await.expect("read"), b"old");
    node.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_parts_that_is_abandoned_while_it_begins_is_aborted() {
    let origin = Origin::start();
    origin.put("box", "ready", vec![1]);
    let node = options(&origin.url(), "s3://box").start();
    let client = node.client().await;
    // A connection of its own, because its end is what takes the writer away in the middle.
    let own = node.client().await;
    let mut upload = own.upload("it", PutOptions::new()).await.expect("begin");
    origin.slow_writes(Duration::from_millis(1500));
    let writer = tokio::spawn(async move { upload.write(&vec![1; LARGE]).await });
    wait_until("the store is asked to begin", || origin.asked_count() == 1);
    assert_eq!(origin.begun_count(), 0, "it has not answered yet");
    writer.abort();
    assert!(writer.await.expect_err("it was dropped").is_cancelled());
    drop(own);
    origin.slow_writes(Duration::ZERO);
    wait_until("it was begun", || origin.begun_count() == 1);
    wait_until("and aborted", || origin.open_count() == 0);
    let gone = client.stat("it").await.expect_err("nothing is there");
    assert_eq!(gone.status(), Some(Status::NotFound));
    node.stop();
}

#[tokio::test]
async fn a_slow_store_holds_the_writer_back() {
    let origin = Origin::start();
    origin.put("box", "ready", vec![1]);
    let node = options(&origin.url(), "s3://box").start();
    let client = node.client().await;
    origin.slow_writes(Duration::from_secs(2));
    let heap = || {
        let memory = node.memory();
        memory.resident - memory.shared
    };
    let before = heap();
    let mut upload = client.upload("it", PutOptions::new()).await.expect("begin");
    let mut sent = 0_usize;
    let piece = vec![7; 1 << 20];
    // It takes what the credit and the parts under way have room for, and then waits.
    while tokio::time::timeout(Duration::from_millis(700), upload.write(&piece)).await.is_ok() {
        sent += piece.len();
        assert!(sent < 30 << 20, "{sent} bytes are taken from the writer");
    }
    let grown = heap().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes of memory for {sent}");
    // A write that was dropped may have taken some of its bytes.
    let error = upload.write(&piece).await.expect_err("the upload is of no more use");
    assert!(error.to_string().contains("begin the upload again"), "{error}");
    assert!(upload.finish().await.is_err());
    origin.slow_writes(Duration::ZERO);
    node.stop();
}

#[tokio::test]
async fn a_web_server_is_only_read() {
    let origin = Origin::start();
    origin.put("files", "it", b"old".to_vec());
    let source = format!("{}/files", origin.url());
    let node = NodeOptions::new(Path::new(&source)).set("writable", true).start();
    let client = node.client().await;
    let error = client.put("it", &b"x"[..], PutOptions::new()).await.expect_err("HTTP");
    assert!(error.to_string().contains("over HTTP is only read"), "{error}");
    assert_eq!(error.status(), Some(Status::PermissionDenied));
    node.stop();
}

#[tokio::test]
async fn a_real_s3_server_takes_writes() {
    let Some(weed) = Server::weed() else { return };
    let endpoint = format!("http://127.0.0.1:{}", weed.port());
    let node = options(&endpoint, "s3://millrace-it").start();
    let config = ClientConfig { deadline: Duration::from_secs(60), ..ClientConfig::new() };
    let client = node.client_with(config).await;
    for (path, length) in [("deep/empty", 0), ("deep/small", 1000), ("deep/large", 50 << 20)] {
        let bytes = content::bytes(path, 0, length);
        let file = client.put(path, &bytes[..], PutOptions::new()).await.expect(path);
        assert_eq!(file, client.stat(path).await.expect("stat"), "{path}");
        assert!(read_whole(&client, path).await.expect(path) == bytes, "{path}");
    }
    let first = client.put_if_absent("one", &b"1"[..]).await.expect("free");
    let taken = client.put_if_absent("one", &b"2"[..]).await.expect_err("taken");
    assert_eq!(taken.status(), Some(Status::ConditionFailed), "{taken}");
    client.put_if_version("one", first.version, &b"3"[..]).await.expect("the same version");
    let late = client.put_if_version("one", first.version, &b"4"[..]).await.expect_err("another");
    assert_eq!(late.status(), Some(Status::ConditionFailed), "{late}");
    assert_eq!(read_whole(&client, "one").await.expect("read"), b"3");
    client.delete("one").await.expect("delete");
    let gone = client.stat("one").await.expect_err("gone");
    assert_eq!(gone.status(), Some(Status::NotFound));
    node.stop();
}
