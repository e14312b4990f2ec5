//! A version is immutable: files that change while they are read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use millrace_client::{Client, Error, Status};
use millrace_tests::{BLOCK, Node, NodeOptions, Scratch, content};

/// Reads a file of versioned content over and over until `stop`; every read has to be of one version, or
/// report that the file changed. Returns how many reads brought bytes.
async fn read_on(client: Client, path: &'static str, stop: Arc<AtomicBool>, seed: u64) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut read_count = 0;
    while !stop.load(Ordering::Relaxed) {
        let file = match client.stat(path).await {
            Ok(file) => file,
            Err(error) if is_change(&error) => continue,
            Err(error) => panic!("stat: {error}"),
        };
        // All reads of one looked-up file fit together.
        let mut version = None;
        for _ in 0..4 {
            let offset = random.u64(0..=file.length / 8) * 8;
            let length = random.u64(1..=40_000) * 8;
            match client.read(&file, offset, length).await {
                Ok(bytes) => {
                    assert_eq!(bytes.len() as u64, length.min(file.length - offset));
                    let found = content::version_of(offset, &bytes);
                    if let (Some(found), Some(first)) = (found, version) {
                        assert_eq!(found, first, "two versions of one file value");
                    }
                    version = version.or(found);
                    read_count += 1;
                }
                Err(error) if is_change(&error) => break,
                Err(error) => panic!("read: {error}"),
            }
        }
    }
    read_count
}

fn is_change(error: &Error) -> bool {
    matches!(error, Error::Stale { .. })
        || matches!(error.status(), Some(Status::StaleVersion | Status::NotFound))
}

/// Runs readers while `change` is called with version after version.
async fn never_mixed(shards: usize, change: fn(&Scratch, u32)) {
    let scratch = Arc::new(Scratch::new());
    scratch.write("file", &content::versioned(0, 600_000));
    let node = NodeOptions::new(scratch.root()).set("shards", shards).start();
    let stop = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    for seed in 0..4 {
        let client = node.client().await;
        readers.push(tokio::spawn(read_on(client, "file", stop.clone(), seed)));
    }
    let writer = {
        let (scratch, stop) = (scratch.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut random = fastrand::Rng::with_seed(99);
            for version in 1..=60 {
                change(&scratch, version);
                std::thread::sleep(Duration::from_millis(random.u64(..80)));
            }
            // The last version gets time to be read.
            std::thread::sleep(Duration::from_millis(300));
            stop.store(true, Ordering::Relaxed);
        })
    };
    let read_count = AtomicU64::new(0);
    for reader in readers {
        read_count.fetch_add(reader.await.expect("a reader"), Ordering::Relaxed);
    }
    writer.join().expect("the writer");
    assert!(read_count.into_inner() > 0, "some reads brought bytes");
    node.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_replaced_by_rename_is_never_mixed() {
    never_mixed(1, |scratch, version| {
        scratch.replace("file", &content::versioned(version, 600_000));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_rewritten_in_place_is_never_mixed() {
    never_mixed(2, |scratch, version| {
        scratch.write("file", &content::versioned(version, 600_000));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_shrinks_and_grows_is_never_mixed() {
    never_mixed(2, |scratch, version| {
        let length = [600_000, 80, 300_000, 65_536, 131_080][version as usize % 5];
        scratch.write("file", &content::versioned(version, length));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_rewritten_piece_by_piece_is_never_mixed_within_what_is_cached() {
    // The writer overwrites in place without truncating, in the order of the bytes. A source in the
    // middle of that holds a mixture itself, so it has another name meanwhile.
    never_mixed(1, |scratch, version| {
        let (hidden, file) = (scratch.at("hidden"), scratch.at("file"));
        std::fs::rename(&file, &hidden).expect("hide");
        let open = std::fs::OpenOptions::new().write(true).open(&hidden).expect("open");
        for (index, piece) in content::versioned(version, 600_000).chunks(50_000).enumerate() {
            std::os::unix::fs::FileExt::write_all_at(&open, piece, index as u64 * 50_000)
                .expect("write");
        }
        std::fs::rename(&hidden, &file).expect("show");
    })
    .await;
}

#[tokio::test]
async fn a_change_is_seen_by_stat_and_makes_older_handles_stale() {
    let scratch = Scratch::new();
    scratch.write("file", &content::versioned(1, 200_000));
    let node = NodeOptions::new(scratch.root()).set("shards", 2).start();
    let (first, second) = (node.client().await, node.client().await);
    let old = first.stat("file").await.expect("stat");
    let bytes = first.read(&old, 0, 80_000).await.expect("read");
    assert_eq!(content::version_of(0, &bytes), Some(1));
    scratch.replace("file", &content::versioned(2, 300_000));
    let new = second.stat("file").await.expect("stat");
    assert_eq!(new.id, old.id, "a file keeps its id");
    assert_ne!(new.version, old.version);
    assert_eq!(new.length, 300_000);
    let stale = first.read(&old, 0, 80_000).await;
    assert!(matches!(stale, Err(Error::Stale { .. })), "cached before: {stale:?}");
    let stale = first.read(&old, 190_000, 8).await;
    assert!(matches!(stale, Err(Error::Stale { .. })), "never cached: {stale:?}");
    let bytes = second.read(&new, 0, u64::MAX).await.expect("read");
    assert_eq!((bytes.len(), content::version_of(0, &bytes)), (300_000, Some(2)));
    node.stop();
}

#[tokio::test]
async fn an_unread_part_of_a_changed_file_is_stale_without_another_stat() {
    let scratch = Scratch::new();
    scratch.write("file", &content::versioned(1, 4 * BLOCK as usize));
    let node = Node::serve(scratch.root());
    let client = node.client().await;
    let old = client.stat("file").await.expect("stat");
    client.read(&old, 0, 8).await.expect("read");
    scratch.write("file", &content::versioned(2, 4 * BLOCK as usize));
    let stale = client.read(&old, 2 * u64::from(BLOCK), 8).await;
    assert!(matches!(stale, Err(Error::Stale { .. })), "{stale:?}");
    node.stop();
}

#[tokio::test]
async fn a_removed_file_is_not_found_and_another_of_its_name_is_read() {
    let scratch = Scratch::new();
    scratch.write("file", &content::versioned(1, 100_000));
    let node = Node::serve(scratch.root());
    let client = node.client().await;
    let old = client.stat("file").await.expect("stat");
    std::fs::remove_file(scratch.at("file")).expect("remove");
    let gone = client.read(&old, 0, 8).await.expect_err("gone");
    assert!(is_change(&gone), "{gone}");
    assert_eq!(client.stat("file").await.expect_err("gone").status(), Some(Status::NotFound));
    scratch.write("file", &content::versioned(2, 100_000));
    let new = client.stat("file").await.expect("stat");
    let bytes = client.read(&new, 0, u64::MAX).await.expect("read");
    assert_eq!(content::version_of(0, &bytes), Some(2));
    let stale = client.read(&old, 0, 8).await;
    assert!(matches!(stale, Err(Error::Stale { .. })), "{stale:?}");
    node.stop();
}

#[tokio::test]
async fn a_file_that_never_settles_is_read_and_kept_once_it_rests() {
    let scratch = Scratch::new();
    scratch.write("hot", &content::versioned(0, 100_000));
    let node = NodeOptions::new(scratch.root()).set("shards", 1).start();
    let client = node.client().await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (path, stop) = (scratch.root().to_owned(), stop.clone());
        std::thread::spawn(move || {
            for version in 1.. {
                if stop.load(Ordering::Relaxed) {
                    return version;
                }
                std::fs::write(path.join("next"), content::versioned(version, 100_000))
                    .expect("write");
                std::fs::rename(path.join("next"), path.join("hot")).expect("replace");
                std::thread::sleep(Duration::from_millis(60));
            }
            unreachable!("versions have no end")
        })
    };
    let (mut read_count, mut last) = (0, 0);
    for _ in 0..1000 {
        if read_count == 10 {
            break;
        }
        let file = match client.stat("hot").await {
            Err(error) if is_change(&error) => continue,
            file => file.expect("stat"),
        };
        let bytes = match client.read(&file, 0, u64::MAX).await {
            Err(error) if is_change(&error) => continue,
            bytes => bytes.expect("read"),
        };
        let version = content::version_of(0, &bytes).expect("one version");
        assert!(bytes.len() == 100_000 && version >= last, "{version} after {last}");
        (read_count, last) = (read_count + 1, version);
    }
    stop.store(true, Ordering::Relaxed);
    assert_eq!(read_count, 10, "it was replaced all the time, and read");
    let written = writer.join().expect("the writer") - 1;
    let file = client.stat("hot").await.expect("stat");
    let bytes = client.read(&file, 0, u64::MAX).await.expect("read");
    assert_eq!(content::version_of(0, &bytes), Some(written));
    let fills = node.counter("fill_count");
    client.read(&file, 0, u64::MAX).await.expect("read");
    assert_eq!(node.counter("fill_count"), fills, "it is kept");
    node.stop();
}
