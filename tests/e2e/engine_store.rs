//! Millrace behind the trait of the crate `object_store`: the crate's own suite for stores, in both versions, and
//! what a cache around a store must not do.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use millrace_client::{Client, ClientConfig};
use millrace_object_store::v0_14::{CachedStore, MillraceStore};
use millrace_tests::origin::Origin;
use millrace_tests::process::program;
use millrace_tests::{Node, NodeOptions, Scratch, content};
use object_store_0_14 as api;
use object_store_0_14::path::Path as Key;
use object_store_0_14::prefix::PrefixStore;
use object_store_0_14::{Error, GetOptions, ObjectStore, ObjectStoreExt, PutMode};

/// Starts a node with a bucket that can be written to, in front of a store in this process.
fn node_of(origin: &Origin) -> Node {
    // The store in this process has a bucket as long as something is in it.
    origin.put("box", "ready", vec![1]);
    NodeOptions::new(Path::new("s3://box/lake"))
        .set("source_option", format!("endpoint={}:skip_signature=true", origin.url()))
        .set("writable", true)
        .set("stale_after_ms", 0)
        .set("memory", "64MiB")
        .start()
}

/// Makes a client of the bucket itself.
fn bucket(origin: &Origin) -> Arc<dyn ObjectStore> {
    // A second answer changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store = api::aws::AmazonS3Builder::new()
        .with_endpoint(origin.url())
        .with_bucket_name("box")
        .with_region("us-east-1")
        .with_skip_signature(true)
        .with_allow_http(true)
        .with_config(api::aws::AmazonS3ConfigKey::DisableBulkDelete, "true")
        .build();
    Arc::new(store.expect("a client"))
}

/// Makes a client of what [`node_of`] serves.
fn lake(origin: &Origin) -> Arc<dyn ObjectStore> {
    Arc::new(PrefixStore::new(bucket(origin), "lake"))
}

fn url(node: &Node) -> String {
    format!("millrace://{}", node.address())
}

async fn read(store: &dyn ObjectStore, key: &str) -> Result<Bytes, Error> {
    store.get(&Key::from(key)).await?.bytes().await
}

macro_rules! conformance {
    ($version:ident, $api:ident) => {
        mod $version {
            use $api::integration as suite;

            #[tokio::test]
            async fn the_suite_of_the_trait_passes() {
                let origin = super::Origin::start();
                let node = super::node_of(&origin);
                let url = super::url(&node);
                let store = millrace_object_store::$version::MillraceStore::connect(&url);
                let store = store.await.expect("connect");
                suite::put_get_delete_list(&store).await;
                suite::list_with_delimiter(&store).await;
                suite::list_uses_directories_correctly(&store).await;
                suite::list_with_offset_exclusivity(&store).await;
                suite::rename_and_copy(&store).await;
                suite::copy_if_not_exists(&store).await;
                suite::copy_rename_nonexistent_object(&store).await;
                suite::stream_get(&store).await;
                suite::get_opts(&store).await;
                suite::put_opts(&store, true).await;
                suite::multipart_race_condition(&store, true).await;
                suite::multipart_out_of_order(&store).await;
                suite::put_get_attributes(&store).await;
                node.stop();
            }
        }
    };
}

conformance!(v0_13, object_store_0_13);
conformance!(v0_14, object_store_0_14);

#[tokio::test]
async fn the_suite_of_the_trait_passes_for_a_cache_around_a_store() {
    use api::integration as suite;
    let origin = Origin::start();
    let node = node_of(&origin);
    let store = CachedStore::new(lake(&origin), &node.address().to_string(), "");
    suite::put_get_delete_list(&store).await;
    suite::rename_and_copy(&store).await;
    suite::stream_get(&store).await;
    suite::list_with_delimiter(&store).await;
    suite::list_uses_directories_correctly(&store).await;
    suite::list_with_offset_exclusivity(&store).await;
    // Conditions and copies go to the store itself, and the one in this process has not all of them.
    suite::put_opts(&store, true).await;
    suite::multipart_race_condition(&store, true).await;
    let counts = store.counts();
    assert!(counts.cached_reads > 20 && counts.failed_reads == 0, "{counts:?}");
    node.stop();
}

#[tokio::test]
async fn another_store_at_the_same_path_is_not_taken_for_the_one_that_is_cached() {
    let origin = Origin::start();
    let node = node_of(&origin);
    origin.put("box", "lake/it", vec![1; 1000]);
    let inner: Arc<dyn ObjectStore> = Arc::new(api::memory::InMemory::new());
    inner.put(&Key::from("it"), vec![2; 1000].into()).await.expect("put");
    let store = CachedStore::new(inner, &node.address().to_string(), "");
    assert_eq!(read(&store, "it").await.expect("read")[..], [2; 1000]);
    let counts = store.counts();
    assert_eq!((counts.cached_reads, counts.missed_reads, counts.failed_reads), (0, 1, 0));
    node.stop();
}

#[tokio::test]
async fn a_view_of_first_versions_reads_no_other() {
    let origin = Origin::start();
    let node = node_of(&origin);
    origin.put("box", "lake/it", vec![1; 300_000]);
    let store = MillraceStore::connect(&url(&node)).await.expect("connect");
    let view = store.with_first_versions();
    let key = Key::from("it");
    assert_eq!(view.get_range(&key, 0..10).await.expect("read")[..], [1; 10]);
    assert!(view.first_versions_hold(1).await && !view.first_versions_hold(0).await);
    origin.put("box", "lake/it", vec![2; 300_000]);
    // The old version is where the node had it, and nowhere else.
    let one = 150_000..150_010;
    for ranges in [std::slice::from_ref(&one), &[10..20, 290_000..290_010]] {
        let read = view.get_ranges(&key, ranges).await;
        assert!(matches!(read, Err(Error::Precondition { .. })), "{read:?}");
    }
    let read = read(&view, "it").await;
    assert!(matches!(read, Err(Error::Precondition { .. })), "{read:?}");
    assert!(!view.first_versions_hold(1).await && !store.first_versions_hold(1).await);
    // The store itself, and another view, have the new one.
    assert_eq!(store.get_range(&key, 150_000..150_010).await.expect("read")[..], [2; 10]);
    let view = store.with_first_versions();
    assert_eq!(view.get_ranges(&key, &[0..2, 7..9]).await.expect("read")[1][..], [2; 2]);
    // What is written through a view is read in it.
    view.put(&key, "new".into()).await.expect("put");
    assert_eq!(view.get(&key).await.expect("read").bytes().await.expect("read"), "new");
    assert!(!view.first_versions_hold(1).await);
    node.stop();
}

#[tokio::test]
async fn only_the_ranges_that_are_asked_for_are_read() {
    let scratch = Scratch::new();
    let bytes = content::bytes("it", 0, 3_000_000);
    std::fs::write(scratch.at("it"), &bytes).expect("write");
    let node = Node::serve(scratch.root());
    let config = ClientConfig { local: false, ..ClientConfig::new() };
    let store = MillraceStore::connect_with(&url(&node), config).await.expect("connect");
    store.client().load("it").await.expect("load");
    let key = Key::from("it");
    // The end of one and a part beyond the end: cut, as a store does it.
    let ranges = [0..10, 1_000_000..1_100_000, 50..50, 2_999_990..3_000_010];
    let before = node.counter("hit_bytes");
    let parts = store.get_ranges(&key, &ranges).await.expect("read");
    for (range, part) in ranges.iter().zip(&parts) {
        let end = (range.end as usize).min(bytes.len());
        assert_eq!(part[..], bytes[range.start as usize..end]);
    }
    assert_eq!(node.counter("hit_bytes") - before, 10 + 100_000 + 10);
    let inverted = std::ops::Range { start: 10, end: 5 };
    let errors = [
        store.get_ranges(&key, std::slice::from_ref(&inverted)).await.map(drop),
        store.get_range(&key, inverted).await.map(drop),
        store.get_range(&key, 4_000_000..4_000_001).await.map(drop),
    ];
    for error in errors {
        assert!(error.expect_err("no such range").to_string().contains("'it'"));
    }
    node.stop();
}

#[tokio::test]
async fn an_object_that_is_replaced_is_read_whole_in_one_version() {
    let scratch = Scratch::new();
    let path = scratch.at("it");
    let version = |number: u8| vec![number; 3 << 20];
    std::fs::write(&path, version(0)).expect("write");
    let node = Node::serve(scratch.root());
    let store = MillraceStore::connect(&url(&node)).await.expect("connect");
    let store = store.with_believed_for(Duration::from_secs(60));
    let key = Key::from("it");
    store.head(&key).await.expect("look it up");
    for number in 1..20 {
        let begun = store.get(&key).await.expect("begin to read");
        let other = scratch.at("other");
        std::fs::write(&other, version(number)).expect("write");
        std::fs::rename(&other, &path).expect("replace");
        match begun.bytes().await {
            Ok(bytes) => assert!(bytes.iter().all(|byte| *byte == bytes[0]), "versions mix"),
            Err(error) => assert!(matches!(error, Error::Precondition { .. }), "{error}"),
        }
        let parts = store.get_ranges(&key, &[0..5, 2 << 20..(2 << 20) + 5]).await.expect("read");
        assert_eq!(parts[0], parts[1]);
    }
    node.stop();
}

#[tokio::test]
async fn a_cache_around_a_store_serves_what_the_store_has_and_never_anything_older() {
    let origin = Origin::start();
    let node = NodeOptions::new(Path::new("s3://box"))
        .set("source_option", format!("endpoint={}:skip_signature=true", origin.url()))
        .set("stale_after_ms", "never")
        .set("memory", "64MiB");
    origin.put("box", "lake/it", vec![0; 100_000]);
    let node = node.start();
    let inner = bucket(&origin);
    let store = CachedStore::new(inner, &node.address().to_string(), "");
    let store = store.with_believed_for(Duration::ZERO);
    for number in 1..20_u8 {
        // Of one length each time: only the tag tells them apart.
        origin.put("box", "lake/it", vec![number; 100_000]);
        let bytes = read(&store, "lake/it").await.expect("read");
        assert!(bytes.len() == 100_000 && bytes.iter().all(|byte| *byte == number));
        let parts = store.get_ranges(&Key::from("lake/it"), &[5..10, 70_000..70_001]).await;
        assert!(parts.expect("read").concat().iter().all(|byte| *byte == number));
    }
    let counts = store.counts();
    assert_eq!((counts.cached_reads, counts.missed_reads, counts.failed_reads), (38, 0, 0));
    // A second reader costs the store its heads alone.
    let before = origin.read_count();
    read(&store, "lake/it").await.expect("read");
    assert_eq!(origin.read_count(), before);
    node.stop();
}

#[tokio::test]
async fn a_cache_around_a_store_mixes_no_versions_where_the_store_has_no_tags() {
    let origin = Origin::start();
    origin.forget_tags();
    let mut node = node_of(&origin);
    let store = CachedStore::new(lake(&origin), &node.address().to_string(), "");
    let store = store.with_believed_for(Duration::ZERO);
    let key = Key::from("it");
    for number in 1..6_u8 {
        // Of another length each time, because the times of this store stand still.
        origin.put("box", "lake/it", vec![number; 9_000_000 + usize::from(number)]);
        let begun = store.get(&key).await.expect("begin to read");
        origin.put("box", "lake/it", vec![100 + number; 9_500_000]);
        if number == 3 {
            node.kill();
        }
        match begun.bytes().await {
            Ok(bytes) => assert!(bytes.iter().all(|byte| *byte == number), "versions mix"),
            Err(error) => assert!(matches!(error, Error::Precondition { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_cache_around_a_store_shows_what_was_written_through_it_at_once() {
    let origin = Origin::start();
    let node = NodeOptions::new(Path::new("s3://box/lake"))
        .set("source_option", format!("endpoint={}:skip_signature=true", origin.url()))
        .set("stale_after_ms", "never")
        .set("memory", "64MiB");
    for name in ["a", "b"] {
        origin.put("box", &format!("lake/{name}"), vec![1; 1000]);
    }
    let node = node.start();
    let store = CachedStore::new(lake(&origin), &node.address().to_string(), "");
    let store = store.with_believed_for(Duration::from_secs(60));
    assert_eq!(read(&store, "b").await.expect("read")[..], [1; 1000]);
    // The page of the listing has the old object in it when the new one is put.
    let mut listing = store.list(None);
    listing.try_next().await.expect("list").expect("an object");
    store.put(&Key::from("b"), vec![2; 1000].into()).await.expect("put");
    while listing.try_next().await.expect("list").is_some() {}
    assert_eq!(read(&store, "b").await.expect("read")[..], [2; 1000]);
    node.stop();
}

#[tokio::test]
async fn a_link_that_leads_back_is_listed_once() {
    let scratch = Scratch::new();
    std::fs::create_dir_all(scratch.at("x/copy")).expect("make directories");
    for name in ["x/one", "x/two", "x/copy/one"] {
        std::fs::write(scratch.at(name), name).expect("write");
    }
    std::os::unix::fs::symlink(".", scratch.at("x/self")).expect("make a link");
    let node = Node::serve(scratch.root());
    let store = MillraceStore::connect(&url(&node)).await.expect("connect");
    let listed: Vec<_> = store.list(None).try_collect().await.expect("list");
    let names: Vec<_> = listed.iter().map(|meta| meta.location.as_ref()).collect();
    assert_eq!(names, ["x/copy/one", "x/one", "x/two"]);
    node.stop();
}

#[tokio::test]
async fn a_copy_of_a_directory_in_it_is_listed() {
    let origin = Origin::start();
    // Without tags objects of one length and time are of one version, as copies are. This store has a time for every
    // 28th object.
    origin.forget_tags();
    let node = node_of(&origin);
    for directory in ["x", "x/zcopy"] {
        for number in 0..28 * 100 {
            origin.put("box", &format!("lake/{directory}/{number:04}"), vec![1]);
        }
    }
    let store = MillraceStore::connect(&url(&node)).await.expect("connect");
    let listed: Vec<_> = store.list(Some(&Key::from("x"))).try_collect().await.expect("list");
    assert_eq!(listed.len(), 2 * 2800);
    let mut command = Command::new(program().expect("a program"));
    command.args(["fs", "find", "x", "--type", "f", "--node"]).arg(node.address().to_string());
    let output = command.output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout.split(|byte| *byte == b'\n').count(), 2 * 2800 + 1);
    node.stop();
}

#[tokio::test]
async fn a_cache_around_a_store_needs_no_node() {
    let origin = Origin::start();
    let mut node = node_of(&origin);
    let bytes = content::bytes("it", 0, 9_000_000);
    origin.put("box", "lake/it", bytes.clone());
    let config = ClientConfig { deadline: Duration::from_secs(1), ..ClientConfig::new() };
    let inner = lake(&origin);
    let address = node.address().to_string();
    let store = CachedStore::with_config(Arc::clone(&inner), &address, "", config.clone());
    assert!(read(&store, "it").await.expect("read") == bytes);
    assert!(store.counts().cached_reads > 0);
    node.kill();
    for _ in 0..4 {
        assert!(read(&store, "it").await.expect("read without a node") == bytes);
    }
    assert!(store.counts().failed_reads > 0);
    // Nor does it need one to begin with.
    let never = CachedStore::with_config(inner, "127.0.0.1:1", "", config);
    assert!(read(&never, "it").await.expect("read without a node") == bytes);
    let counts = never.counts();
    assert_eq!((counts.cached_reads, counts.missed_reads), (0, 0));
}

#[tokio::test]
async fn a_store_below_a_path_has_its_own_names() {
    let scratch = Scratch::new();
    let node = NodeOptions::new(scratch.root()).set("writable", true).start();
    let store = MillraceStore::connect(&format!("{}/a/b/", url(&node))).await.expect("connect");
    store.put(&Key::from("c/d"), "bytes".into()).await.expect("put");
    assert_eq!(std::fs::read(scratch.at("a/b/c/d")).expect("in the source"), b"bytes");
    let listed: Vec<_> = store.list(None).try_collect().await.expect("list");
    assert_eq!(listed.iter().map(|meta| meta.location.as_ref()).collect::<Vec<_>>(), ["c/d"]);
    assert_eq!(read(&store, "c/d").await.expect("read"), "bytes");
    let options = PutMode::Create.into();
    let taken = store.put_opts(&Key::from("c/d"), "other".into(), options).await;
    assert!(matches!(taken, Err(Error::AlreadyExists { .. })), "{taken:?}");
    let client = Client::connect(node.address().to_string(), ClientConfig::new()).await;
    assert_eq!(client.expect("connect").stat("a/b/c/d").await.expect("stat").length, 5);
    let old = GetOptions { version: Some("1".to_owned()), ..GetOptions::default() };
    let old = store.get_opts(&Key::from("c/d"), old).await;
    assert!(matches!(old, Err(Error::NotImplemented { .. })), "{old:?}");
    for wrong in ["http://host:1", "millrace:/host", "host:1"] {
        let error = MillraceStore::connect(wrong).await.expect_err("not an address");
        assert!(error.to_string().contains("millrace://HOST:PORT"), "{error}");
    }
    node.stop();
}
