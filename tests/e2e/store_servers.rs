//! Real servers of other programs as sources: each operation of a node, and what it finds there past the node.
//!
//! A server that is not installed has its tests skipped, and says so; `tests/stores/run` installs all of them, and a
//! program that knows all stores.

use std::path::Path;
use std::process::Command;

use millrace_client::{Client, ClientConfig, Error, Kind, PutOptions, Status};
use millrace_tests::process::program;
use millrace_tests::servers::{AZURE_ACCOUNT, AZURE_KEY, BUCKET, Server};
use millrace_tests::{BLOCK, HANG_GUARD, NodeOptions, content};

/// Objects at the server before a node is there, by their lengths in bytes.
const OBJECTS: [(&str, usize); 6] = [
    ("deep/empty", 0),
    ("deep/one", 1),
    ("deep/a b", 1000),
    ("deep/ü+%41", 70_000),
    ("deep/blocks", 3 * BLOCK as usize + 1232),
    ("large", 5 << 20),
];
/// More than any store takes in one request of ours.
const MULTIPART: usize = 50 << 20;
/// More than is written on a condition with one request.
const CONDITIONAL: usize = 20 << 20;

/// A server, and how a node is put in front of it.
struct Place {
    server: Server,
    source: String,
    options: String,
}

impl Place {
    fn s3(server: Server) -> Place {
        // Each of these servers takes any key.
        let options = format!(
            "endpoint={}:access_key_id=any:secret_access_key=any:region=us-east-1",
            server.url()
        );
        Place { server, source: format!("s3://{BUCKET}"), options }
    }

    fn http(server: Server) -> Place {
        let source = format!("{}/{BUCKET}", server.url());
        Place { server, source, options: String::new() }
    }

    /// Returns azurite as a source; None, said aloud, if the program was built without this store.
    fn azure(server: Server) -> Option<Place> {
        let options = format!(
            "endpoint={}/{AZURE_ACCOUNT}:account_name={AZURE_ACCOUNT}:account_key={AZURE_KEY}:allow_http=true",
            server.url()
        );
        let place = Place { server, source: format!("az://{BUCKET}"), options };
        place.is_known().then_some(place)
    }

    /// Returns fake-gcs-server as a source; None as for [`Place::azure`].
    fn gcs(server: Server) -> Option<Place> {
        let options = format!("base_url={}:skip_signature=true:allow_http=true", server.url());
        let place = Place { server, source: format!("gs://{BUCKET}"), options };
        place.is_known().then_some(place)
    }

    fn is_known(&self) -> bool {
        let mut command = Command::new(program().expect("a binary"));
        // The option that no store has keeps it from asking the store.
        command.args(["node", "--source", &self.source, "--source-option", "colour=red"]);
        command.env_remove("MILLRACE_BINARY");
        let output = command.output().expect("run the program");
        let told = String::from_utf8_lossy(&output.stderr);
        let is_known = told.contains("source option colour is not one of");
        if !is_known {
            assert!(told.contains("built without that store"), "{told}");
            println!("skipped: the program does not know {}; run tests/stores/run", self.source);
        }
        is_known
    }

    fn node(&self) -> NodeOptions {
        let options = NodeOptions::new(Path::new(&self.source))
            .set("memory", "64MiB")
            .set("stale_after_ms", 0)
            .set("source_timeout_ms", 20_000);
        if self.options.is_empty() { options } else { options.set("source_option", &self.options) }
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        assert_eq!(self.server.put(key, bytes), 200, "{key}");
    }
}

async fn read_whole(client: &Client, path: &str) -> Result<Vec<u8>, Error> {
    let file = client.stat(path).await?;
    Ok(client.read(&file, 0, u64::MAX).await?.to_vec())
}

fn far() -> ClientConfig {
    ClientConfig { deadline: HANG_GUARD, local: false, ..ClientConfig::new() }
}

/// Reads whole objects and ranges, looks up, loads, and sees a change that is made past the node.
async fn reads(place: &Place) {
    for (key, length) in OBJECTS {
        place.put(key, &content::bytes(key, 0, length));
    }
    let node = place.node().start();
    let client = node.client_with(far()).await;
    let mut random = fastrand::Rng::with_seed(7);
    for (key, length) in OBJECTS {
        let file = client.stat(key).await.expect(key);
        assert_eq!((file.length, file.kind), (length as u64, Kind::File), "{key}");
        for _ in 0..8 {
            let offset = random.u64(..=file.length);
            let wanted = random.u64(..3 * u64::from(BLOCK));
            let bytes = client.read(&file, offset, wanted).await.expect(key);
            assert_eq!(bytes.len() as u64, wanted.min(file.length - offset), "{key}");
            content::check(key, offset, &bytes);
        }
        assert!(read_whole(&client, key).await.expect(key) == content::bytes(key, 0, length));
    }
    let gone = client.stat("deep/none").await.expect_err("it is not there");
    assert_eq!(gone.status(), Some(Status::NotFound), "{gone}");
    client.free("large").await.expect("free");
    let report = client.load("large").await.expect("load");
    assert_eq!(report.filled_count, (5 << 20) / u64::from(BLOCK));
    let filled = node.counter("fill_bytes");
    assert!(read_whole(&client, "large").await.expect("read").len() == 5 << 20);
    assert_eq!(node.counter("fill_bytes"), filled, "all of it was loaded");
    let (path, length) = OBJECTS[4];
    let old = client.stat(path).await.expect("stat");
    // One byte longer, because a tag may be the time in seconds and the length.
    let new = content::bytes("new", 0, length + 1);
    place.put(path, &new);
    assert!(read_whole(&client, path).await.expect("the new one") == new);
    let stale = client.read(&old, 0, 8).await;
    assert!(matches!(stale, Err(Error::Stale { .. })), "{stale:?}");
    node.stop();
}

/// Lists what [`reads`] has put.
async fn lists(place: &Place) {
    let node = place.node().start();
    let client = node.client_with(far()).await;
    let mut names: Vec<_> = OBJECTS.iter().filter_map(|it| it.0.strip_prefix("deep/")).collect();
    names.sort_unstable();
    let listed = client.list("deep").await.expect("list");
    let found: Vec<_> = listed.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(found, names);
    assert_eq!(client.stat("deep").await.expect("a directory").kind, Kind::Directory);
    let top = client.list("").await.expect("list");
    let top: Vec<_> = top.into_iter().map(|entry| (entry.name, entry.kind)).collect();
    assert!(top.contains(&("deep".to_owned(), Kind::Directory)), "{top:?}");
    assert!(top.contains(&("large".to_owned(), Kind::File)), "{top:?}");
    // What a listing says of a file is what a look-up says.
    for entry in listed {
        let file = client.stat(&format!("deep/{}", entry.name)).await.expect("stat");
        assert_eq!((entry.version, entry.length), (file.version, file.length), "{}", entry.name);
    }
    node.stop();
}

/// Writes objects of all sizes, on conditions and without, and deletes them.
async fn writes(place: &Place) {
    let node = place.node().set("writable", true).start();
    let client = node.client_with(far()).await;
    for (path, length) in [("w/empty", 0), ("w/small", 1000), ("w/large", MULTIPART)] {
        let bytes = content::bytes(path, 0, length);
        let file = client.put(path, &bytes[..], PutOptions::new()).await.expect(path);
        assert_eq!(file, client.stat(path).await.expect("stat"), "{path}");
        assert!(read_whole(&client, path).await.expect(path) == bytes, "{path}");
    }
    assert_eq!(client.list("w").await.expect("list").len(), 3);
    conditions(&client, "w/one", 1).await;
    if place.source.starts_with("s3:") {
        conditions(&client, "w/parts", CONDITIONAL).await;
    } else {
        let bytes = vec![0; CONDITIONAL];
        let error = client.put_if_absent("w/parts", &bytes[..]).await.expect_err("too large");
        assert!(error.to_string().contains("on a condition has at most"), "{error}");
    }
    client.delete("w/one").await.expect("delete");
    let gone = client.stat("w/one").await.expect_err("gone");
    assert_eq!(gone.status(), Some(Status::NotFound));
    let over = client.put("w", &b"x"[..], PutOptions::new()).await.expect_err("a directory");
    assert_eq!(over.status(), Some(Status::WrongKind), "{over}");
    node.stop();
}

/// Writes an object of this length only where it is absent, and only over the version that was seen.
async fn conditions(client: &Client, path: &str, length: usize) {
    let bytes = |letter: u8| vec![letter; length];
    let refused = |done: Result<_, Error>| {
        let error = done.expect_err("the condition does not hold");
        assert_eq!(error.status(), Some(Status::ConditionFailed), "{error}");
    };
    let first = client.put_if_absent(path, &bytes(b'1')[..]).await.expect("free");
    refused(client.put_if_absent(path, &bytes(b'2')[..]).await);
    client.put_if_version(path, first.version, &bytes(b'3')[..]).await.expect("the same version");
    refused(client.put_if_version(path, first.version, &bytes(b'4')[..]).await);
    assert!(read_whole(client, path).await.expect("read") == bytes(b'3'));
}

#[tokio::test]
async fn seaweedfs_is_read_listed_and_written() {
    let Some(server) = Server::weed() else { return };
    let place = Place::s3(server);
    reads(&place).await;
    lists(&place).await;
    writes(&place).await;
}

#[tokio::test]
async fn moto_is_read_listed_and_written() {
    let Some(server) = Server::moto() else { return };
    let place = Place::s3(server);
    reads(&place).await;
    lists(&place).await;
    writes(&place).await;
}

#[tokio::test]
async fn nginx_is_read_with_tags_and_without() {
    for has_tags in [true, false] {
        let Some(server) = Server::nginx(has_tags) else { return };
        let place = Place::http(server);
        reads(&place).await;
        let node = place.node().set("writable", true).start();
        let client = node.client_with(far()).await;
        let error = client.list("deep").await.expect_err("no listings");
        assert!(error.to_string().contains("has no listings"), "{error}");
        let error = client.put("it", &b"x"[..], PutOptions::new()).await.expect_err("HTTP");
        assert_eq!(error.status(), Some(Status::PermissionDenied), "{error}");
        node.stop();
    }
}

#[tokio::test]
async fn azurite_is_read_listed_and_written() {
    let Some(place) = Server::azurite().and_then(Place::azure) else { return };
    reads(&place).await;
    lists(&place).await;
    writes(&place).await;
}

#[tokio::test]
async fn fake_gcs_server_is_read_and_listed() {
    let Some(place) = Server::gcs().and_then(Place::gcs) else { return };
    reads(&place).await;
    lists(&place).await;
}

/// Returns the number that a variable has, or this one.
fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().and_then(|it| it.parse().ok()).unwrap_or(usual)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_small_objects_are_listed_and_read() {
    let Some(server) = Server::weed() else { return };
    let length = |key: &str| key.bytes().map(usize::from).sum::<usize>() % 3000;
    let keys: Vec<_> =
        (0..number("MILLRACE_OBJECTS", 10_000)).map(|it| format!("many/{it:07}")).collect();
    server.put_many(&keys, |key| content::bytes(key, 0, length(key)));
    let place = Place::s3(server);
    let node = place.node().start();
    let client = node.client_with(far()).await;
    let listed = client.list("many").await.expect("list");
    let names: Vec<_> = listed.iter().map(|entry| format!("many/{}", entry.name)).collect();
    assert!(names == keys, "{} of {} are listed", names.len(), keys.len());
    assert!(listed.iter().all(|it| it.length as usize == length(&format!("many/{}", it.name))));
    let mut readers = Vec::new();
    for part in keys.chunks(keys.len().div_ceil(16)) {
        let (client, part) = (client.clone(), part.to_vec());
        readers.push(tokio::spawn(async move {
            for key in part {
                let bytes = read_whole(&client, &key).await.expect(&key);
                assert!(bytes == content::bytes(&key, 0, length(&key)), "{key}");
            }
        }));
    }
    for reader in readers {
        reader.await.expect("a reader");
    }
    node.stop();
}

#[tokio::test]
async fn a_large_object_is_written_and_read_by_ranges() {
    let Some(server) = Server::weed() else { return };
    let length = number("MILLRACE_LARGE_BYTES", 100 << 20);
    let place = Place::s3(server);
    let node = place.node().set("writable", true).start();
    let client = node.client_with(far()).await;
    let mut upload = client.upload("huge", PutOptions::new()).await.expect("begin");
    let mut offset = 0;
    while offset < length {
        let bytes = content::bytes("huge", offset, (length - offset).min(1 << 20) as usize);
        upload.write(&bytes).await.expect("write");
        offset += bytes.len() as u64;
    }
    let file = upload.finish().await.expect("finish");
    assert_eq!(file.length, length);
    assert_eq!(client.stat("huge").await.expect("stat"), file);
    let mut random = fastrand::Rng::with_seed(5);
    // At the ends, around offsets that 32 bits do not hold, and anywhere.
    let borders = [0, 1 << 31, 1 << 32, length - 1].into_iter().filter(|it| *it < length);
    let anywhere = std::iter::repeat_with(|| random.u64(..length)).take(200);
    for middle in borders.chain(anywhere).collect::<Vec<_>>() {
        let offset = middle.saturating_sub(100_000);
        let bytes = client.read(&file, offset, 200_000).await.expect("read");
        assert_eq!(bytes.len() as u64, 200_000.min(length - offset));
        content::check("huge", offset, &bytes);
    }
    client.delete("huge").await.expect("delete");
    node.stop();
}
