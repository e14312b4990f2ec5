//! Objects that change all the time, at the store and through the nodes: each read is of one version, and of none
//! that was replaced longer ago than look-ups are believed.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millrace_client::{Client, ClientConfig, Error, PutOptions};
use millrace_tests::cluster::Cluster;
use millrace_tests::coord::{Ensemble, Options};
use millrace_tests::origin::Origin;
use millrace_tests::{HANG_GUARD, content};

/// How long it goes on unless `MILLRACE_VERSIONS_SECONDS` says otherwise.
const SECONDS: u64 = 8;
/// How long look-ups are believed.
const BOUND: Duration = Duration::from_millis(1000);
/// Between two writes.
const PAUSE: Duration = Duration::from_millis(100);
const OBJECTS: u32 = 4;
/// Three blocks, the last one short, each of several chunks.
const LENGTH: usize = 600_000;
const READERS: u64 = 32;

/// Which versions of each object were complete, and since when.
type Written = Arc<[Mutex<Vec<(u32, Instant)>>]>;

fn key(object: u32) -> String {
    format!("object-{object}")
}

/// Returns the newest version that was complete at this time.
fn newest(written: &Written, object: u32, at: Instant) -> u32 {
    let versions = written[object as usize].lock().expect("a list");
    let complete = versions.iter().filter(|(_, since)| *since <= at);
    complete.map(|(version, _)| *version).max().unwrap_or(0)
}

/// Writes a version after the other, in turn at the store and through a node.
async fn write(origin: &Origin, client: &Client, written: &Written, stop: &AtomicBool) -> u32 {
    let mut version = 1;
    while !stop.load(Ordering::Relaxed) {
        version += 1;
        let object = version % OBJECTS;
        let bytes = content::versioned(version, LENGTH);
        let is_written = if (version / OBJECTS).is_multiple_of(2) {
            origin.put("box", &key(object), bytes);
            true
        } else {
            match client.put(&key(object), &bytes[..], PutOptions::new()).await {
                Ok(_) => true,
                // The node that was asked has been killed: it may be there or not.
                Err(
                    Error::OutcomeUnknown { .. }
                    | Error::ConnectionLost { .. }
                    | Error::Connect { .. },
                ) => false,
                Err(error) => panic!("write version {version}: {error}"),
            }
        };
        if is_written {
            written[object as usize].lock().expect("a list").push((version, Instant::now()));
        }
        tokio::time::sleep(PAUSE).await;
    }
    version
}

/// Reads objects whole until it is told to stop; returns how many reads brought bytes.
async fn read(client: Client, seed: u64, written: Written, stop: Arc<AtomicBool>) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let object = random.u32(..OBJECTS);
        let start = Instant::now();
        let file = client.stat(&key(object)).await.expect("stat");
        // Some read all, some a part that begins at a word.
        let offset = if random.bool() { 0 } else { random.u64(..LENGTH as u64 / 8) * 8 };
        let length = if random.bool() { LENGTH as u64 } else { random.u64(1..9000) * 8 };
        let bytes = match client.read(&file, offset, length).await {
            Ok(bytes) => bytes,
            Err(Error::Stale { .. }) => continue,
            Err(error) => panic!("read {}: {error}", key(object)),
        };
        let version = content::version_of(offset, &bytes).expect("some bytes");
        let oldest = start.checked_sub(BOUND).map_or(0, |at| newest(&written, object, at));
        assert!(version >= oldest, "version {version} of object {object}, {oldest} was there");
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_read_is_one_version_and_none_too_old() {
    read_and_write("").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_read_is_one_version_where_what_is_written_is_kept() {
    read_and_write("/=cache-on-write").await;
}

/// Reads and writes through a cluster whose nodes have these options of mounts.
async fn read_and_write(mount_options: &str) {
    let seconds = std::env::var("MILLRACE_VERSIONS_SECONDS").ok();
    let seconds = seconds.and_then(|it| it.parse().ok()).unwrap_or(SECONDS);
    let origin = Origin::start();
    for object in 0..OBJECTS {
        origin.put("box", &key(object), content::versioned(1, LENGTH));
    }
    let coord = Ensemble::single(Options::new().line("tickTime", 250));
    let mut cluster = Cluster::over(&coord.addresses(), "/millrace", Path::new("s3://box"));
    cluster.coord = Some(coord);
    for _ in 0..3 {
        cluster.add();
    }
    for member in &mut cluster.members {
        member.set("source_option", format!("endpoint={}:skip_signature=true", origin.url()));
        member.set("writable", true);
        member.set("block_size", "256KiB");
        member.set("stale_after_ms", BOUND.as_millis());
        member.set("mount_options", mount_options);
        member.start();
    }
    cluster.wait_settled();
    let config = || ClientConfig { deadline: HANG_GUARD, local: false, ..ClientConfig::new() };
    let written: Written = (0..OBJECTS).map(|_| Mutex::default()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    for seed in 0..READERS {
        let client = cluster.client_with(config()).await;
        let (written, stop) = (Arc::clone(&written), Arc::clone(&stop));
        readers.push(tokio::spawn(read(client, seed, written, stop)));
    }
    let writer = cluster.client_with(config()).await;
    let origin = Arc::new(origin);
    let writes = {
        let (origin, written, stop) =
            (Arc::clone(&origin), Arc::clone(&written), Arc::clone(&stop));
        tokio::spawn(async move { write(&origin, &writer, &written, &stop).await })
    };
    let part = Duration::from_secs(seconds) / 4;
    tokio::time::sleep(part * 2).await;
    tokio::task::block_in_place(|| cluster.members[2].kill());
    tokio::time::sleep(part).await;
    tokio::task::block_in_place(|| cluster.members[2].start());
    tokio::time::sleep(part).await;
    stop.store(true, Ordering::Relaxed);
    let total = AtomicU64::new(0);
    for reader in readers {
        total.fetch_add(reader.await.expect("a reader"), Ordering::Relaxed);
    }
    let versions = writes.await.expect("the writer");
    println!("{} reads, {versions} versions", total.load(Ordering::Relaxed));
    assert!(total.into_inner() > 0 && versions > OBJECTS, "something was read and written");
}
