//! What is read is what lies in the source, whichever way it is asked for.

use std::io::SeekFrom;

use bytes::BytesMut;
use futures_util::StreamExt;
use millrace_client::{Client, ClientConfig, Error, File, Kind, blocking};
use millrace_tests::{BLOCK, HANG_GUARD, Node, NodeOptions, Scratch, content};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

const BLOCK_SIZE: usize = BLOCK as usize;

/// Makes files of every length that is near a border, deep and oddly named.
fn tree() -> (Scratch, Vec<(String, usize)>) {
    let lengths = [
        0,
        1,
        4095,
        4096,
        4097,
        BLOCK_SIZE - 1,
        BLOCK_SIZE,
        BLOCK_SIZE + 1,
        3 * BLOCK_SIZE,
        5 * BLOCK_SIZE + 12_345,
        1_000_003,
    ];
    let mut files: Vec<(String, usize)> = lengths
        .iter()
        .enumerate()
        .map(|(index, length)| (format!("{}file-{length}", "level/".repeat(index % 4)), *length))
        .collect();
    let names = [
        "with space",
        "naïve/Größe/日本語/файл.bin",
        "emoji-🚂",
        "dots/a..b/...c",
        "line\nbreak and \"quotes\" and \\",
        "-dash",
    ];
    files.extend(names.iter().map(|name| ((*name).to_owned(), 70_000)));
    files.push((format!("long/{}", "n".repeat(255)), 5000));
    let scratch = Scratch::new();
    for (path, length) in &files {
        scratch.file(path, *length);
    }
    (scratch, files)
}

fn options(scratch: &Scratch, shards: usize) -> NodeOptions {
    NodeOptions::new(scratch.root()).set("shards", shards)
}

/// Returns ranges of a file: its borders, those of its blocks and pages, and random ones past the end,
/// too.
fn ranges(length: usize, random: &mut fastrand::Rng) -> Vec<(u64, u64)> {
    let length = length as u64;
    let mut ranges =
        vec![(0, length), (0, 1), (length, 10), (length + 5, 1), (length / 2, u64::MAX)];
    for border in [4096, u64::from(BLOCK), 2 * u64::from(BLOCK)] {
        ranges.extend([(border - 1, 2), (border, 1), (border - 100, border), (border, border)]);
    }
    for _ in 0..20 {
        ranges.push((random.u64(0..=length + 10), random.u64(1..=3 * u64::from(BLOCK))));
    }
    ranges
}

fn expected_length(length: usize, range: (u64, u64)) -> usize {
    range.1.min((length as u64).saturating_sub(range.0)) as usize
}

async fn every_byte_equals_the_source(shards: usize) {
    let (scratch, files) = tree();
    let node = options(&scratch, shards).start();
    let client = node.client().await;
    check_every_byte(&client, shards, &files).await;
    node.stop();
}

async fn check_every_byte(client: &Client, shards: usize, files: &[(String, usize)]) {
    assert_eq!(client.hello().shards.len(), shards);
    let mut random = fastrand::Rng::with_seed(shards as u64);
    for (path, length) in files {
        let file = client.stat(path).await.expect("stat");
        assert_eq!((file.length, file.kind), (*length as u64, Kind::File), "{path}");
        for range in ranges(*length, &mut random) {
            let read = client.read(&file, range.0, range.1).await.expect("read");
            assert_eq!(read.len(), expected_length(*length, range), "{path} {range:?}");
            content::check(path, range.0, &read);
        }
    }
}

#[tokio::test]
async fn every_byte_of_a_tree_comes_over_unix_sockets_too() {
    let (scratch, files) = tree();
    for shards in [1, 2] {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("node");
        let mut node = options(&scratch, shards).set("socket", socket.display()).start();
        let address = format!("unix:{}", socket.display());
        let config = ClientConfig { deadline: HANG_GUARD, ..ClientConfig::new() };
        let client = Client::connect(address, config).await.expect("connect");
        let told = client.hello().shards;
        assert!(told.iter().all(|it| it.starts_with(&format!("unix:{}", socket.display()))));
        check_every_byte(&client, shards, &files).await;
        // Over TCP nothing is different.
        check_every_byte(&node.client().await, shards, &files).await;
        // A killed node leaves its sockets behind; the next one takes their place.
        node.kill();
        assert!(socket.exists());
        node.restart();
        check_every_byte(&client, shards, &files[..3]).await;
        node.stop();
        assert_eq!(directory.path().read_dir().expect("list").count(), 0, "they are removed");
    }
}

#[tokio::test]
async fn every_byte_of_a_tree_is_right_when_it_is_sent_by_reference() {
    let (scratch, files) = tree();
    let node = options(&scratch, 2).set("zero_copy", "always").start();
    let client = node.client().await;
    check_every_byte(&client, 2, &files).await;
    assert!(node.counter("referred_bytes") > 1 << 20);
    node.stop();
    // By default the node does so only to other machines.
    let node = options(&scratch, 2).start();
    check_every_byte(&node.client().await, 2, &files).await;
    assert_eq!(node.counter("referred_bytes"), 0);
    node.stop();
}

#[tokio::test]
async fn every_byte_of_a_tree_equals_the_source_on_one_shard() {
    every_byte_equals_the_source(1).await;
}

#[tokio::test]
async fn every_byte_of_a_tree_equals_the_source_on_two_shards() {
    every_byte_equals_the_source(2).await;
}

async fn stat_all(client: &Client, files: &[(String, usize)]) -> Vec<File> {
    let mut stats = Vec::new();
    for (path, _) in files {
        stats.push(client.stat(path).await.expect("stat"));
    }
    stats
}

#[tokio::test]
async fn a_batch_of_ranges_equals_the_source_in_order() {
    let (scratch, files) = tree();
    for shards in [1, 2] {
        let node = options(&scratch, shards).start();
        let client = node.client().await;
        let stats = stat_all(&client, &files).await;
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..4 {
            let asked: Vec<(usize, (u64, u64))> = (0..300)
                .map(|_| {
                    let index = random.usize(..files.len());
                    let offset = random.u64(0..=files[index].1 as u64);
                    (index, (offset, random.u64(1..100_000)))
                })
                .collect();
            let batch: Vec<_> =
                asked.iter().map(|(index, range)| (&stats[*index], range.0, range.1)).collect();
            let results = client.read_many(&batch).await;
            assert_eq!(results.len(), asked.len());
            for ((index, range), result) in asked.iter().zip(results) {
                let (path, length) = &files[*index];
                let read = result.unwrap_or_else(|error| panic!("round {round}, {path}: {error}"));
                assert_eq!(read.len(), expected_length(*length, *range), "{path} {range:?}");
                content::check(path, range.0, &read);
            }
        }
        node.stop();
    }
}

#[tokio::test]
async fn reading_into_a_buffer_keeps_what_was_in_it() {
    let (scratch, files) = tree();
    let node = options(&scratch, 2).start();
    let client = node.client().await;
    for (file, (path, length)) in stat_all(&client, &files).await.iter().zip(&files) {
        for capacity in [0, 10, 4096, 2_000_000] {
            let mut buffer = BytesMut::with_capacity(capacity);
            buffer.extend_from_slice(b"before");
            let buffer = client.read_into(file, 1, buffer, u64::MAX).await.expect("read into");
            assert_eq!(&buffer[..6], b"before");
            assert_eq!(buffer.len(), 6 + length.saturating_sub(1), "{path}");
            content::check(path, 1, &buffer[6..]);
        }
    }
    node.stop();
}

#[tokio::test]
async fn a_reader_and_its_stream_have_every_byte_of_a_tree() {
    let (scratch, files) = tree();
    let node = options(&scratch, 2).start();
    let client = node.client().await;
    for (file, (path, length)) in stat_all(&client, &files).await.iter().zip(&files) {
        let mut reader = client.reader(file).with_read_ahead(2 * u64::from(BLOCK));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).await.expect("read to the end");
        assert_eq!(read.len(), *length, "{path}");
        content::check(path, 0, &read);
        reader.seek(SeekFrom::Start(1)).await.expect("seek");
        let pieces: Vec<_> = reader.into_stream().map(|it| it.expect("a piece")).collect().await;
        assert!(pieces.concat() == read[1.min(*length)..], "{path}");
    }
    node.stop();
}

#[tokio::test]
async fn a_reader_says_that_its_file_was_replaced() {
    let scratch = Scratch::new();
    scratch.file("file", 5 * BLOCK_SIZE);
    let node = options(&scratch, 1).start();
    let client = node.client().await;
    let file = client.stat("file").await.expect("stat");
    let mut reader = client.reader(&file).with_read_ahead(0);
    reader.read_u8().await.expect("a byte of the first block");
    let path = scratch.root().join("file");
    std::fs::write(path.with_extension("new"), vec![7; 5 * BLOCK_SIZE]).expect("write");
    std::fs::rename(path.with_extension("new"), path).expect("rename");
    let mut read = Vec::new();
    let error = reader.read_to_end(&mut read).await.expect_err("it was replaced");
    let error = error.get_ref().and_then(|it| it.downcast_ref()).expect("the client's own error");
    assert!(matches!(error, Error::Stale { .. }), "{error}");
    content::check("file", 1, &read);
    node.stop();
}

#[test]
fn the_blocking_client_reads_the_same() {
    let (scratch, files) = tree();
    let node = options(&scratch, 2).start();
    let client =
        blocking::Client::connect(node.address().to_string(), Default::default()).expect("connect");
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let (client, files) = (client.clone(), files.clone());
            std::thread::spawn(move || {
                for (path, length) in files.iter().skip(thread).step_by(2) {
                    let file = client.stat(path).expect("stat");
                    let whole = client.read(&file, 0, u64::MAX).expect("read");
                    assert_eq!(whole.len(), *length);
                    content::check(path, 0, &whole);
                    let buffer = client.read_into(&file, 3, BytesMut::new(), 9999).expect("read");
                    content::check(path, 3, &buffer);
                    for result in client.read_many(&[(&file, 0, 10), (&file, 5000, 70_000)]) {
                        result.expect("read many");
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("a reading thread");
    }
    drop(client);
    node.stop();
}

#[tokio::test]
async fn a_large_directory_is_listed_whole_sorted_and_readable_from_its_entries() {
    let scratch = Scratch::new();
    let mut names: Vec<String> = (0..2500).map(|index| format!("file {index} é")).collect();
    for name in &names {
        scratch.file(&format!("many/{name}"), 10);
    }
    std::fs::create_dir(scratch.at("many/sub")).expect("make a directory");
    names.push("sub".to_owned());
    names.sort();
    let node = Node::serve(scratch.root());
    let client = node.client().await;
    let entries = client.list("many").await.expect("list");
    let found: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(found, names);
    for entry in entries.iter().filter(|entry| entry.kind == Kind::File).step_by(97) {
        let file = client.file("many", entry);
        let read = client.read(&file, 0, 10).await.expect("read");
        content::check(&file.path, 0, &read);
    }
    let (page, next) = client.list_page("many", None, 7).await.expect("list a page");
    assert_eq!(page.len(), 7);
    let (rest, _) = client.list_page("many", next.as_deref(), 1).await.expect("list a page");
    assert_eq!(rest[0].name, names[7]);
    let root = client.list("").await.expect("list the root");
    assert_eq!(root.len(), 1);
    assert_eq!((root[0].name.as_str(), root[0].kind), ("many", Kind::Directory));
    node.stop();
}
