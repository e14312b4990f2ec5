//! The client against a mock node that breaks the rules one at a time.

mod jobs;
mod mock;
mod reader;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use millrace_client::{Client, ClientConfig, Error, File, ReadOptions, Status};
use millrace_proto::message::StatReply;
use millrace_proto::{HEADER_SIZE, Header, Op, frame, placement};
use mock::{Act, Asked, BLOCK_SIZE, Mock, PATH, Setup, World};

const BLOCK: u64 = BLOCK_SIZE as u64;

fn config() -> ClientConfig {
    ClientConfig {
        deadline: Duration::from_secs(5),
        reconnect_backoff_min: Duration::from_millis(5),
        ..ClientConfig::new()
    }
}

/// Connects a client to a mock with this handler; returns both and the file.
async fn open<H>(setup: Setup, handler: H) -> (Mock, Client, File)
where
    H: Fn(&World, &Asked) -> Vec<Act> + Send + Sync + 'static,
{
    let mock = Mock::start(setup, handler).await;
    let client = Client::connect(&*mock.address, config()).await.unwrap();
    let file = client.stat(PATH).await.unwrap();
    (mock, client, file)
}

fn honest(world: &World, asked: &Asked) -> Vec<Act> {
    vec![Act::Send(world.reply(asked))]
}

/// Returns a handler that changes the first `count` replies to reads, and is honest otherwise.
fn first_reads(
    count: usize,
    change: impl Fn(&World, &Asked) -> Vec<Act> + Send + Sync + 'static,
) -> impl Fn(&World, &Asked) -> Vec<Act> + Send + Sync + 'static {
    let seen = AtomicUsize::new(0);
    move |world, asked| {
        if asked.op == Op::Read && seen.fetch_add(1, Ordering::Relaxed) < count {
            change(world, asked)
        } else {
            honest(world, asked)
        }
    }
}

fn flip_last_byte(world: &World, asked: &Asked) -> Vec<Act> {
    let mut bytes = world.reply(asked);
    *bytes.last_mut().unwrap() ^= 1;
    vec![Act::Send(bytes)]
}

#[tokio::test]
async fn every_operation_tells_what_the_node_said() {
    let (mock, client, file) = open(Setup::default(), honest).await;
    assert_eq!(client.hello().server, "mock");
    assert_eq!((file.length, file.block_size, &*file.path), (300_000, BLOCK_SIZE, PATH));
    assert_eq!(file.block_count(), 3);
    let entries = client.list("data").await.unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["file0", "file1", "file2", "file3", "file4"]);
    let (page, next) = client.list_page("data", Some("4"), 0).await.unwrap();
    assert_eq!((page.len(), next), (1, None));
    let listed = client.file("data/", &entries[3]);
    assert_eq!((&*listed.path, listed.version, listed.id), ("data/file3", file.version, file.id));
    let loaded = client.load(PATH).await.unwrap();
    assert_eq!((loaded.block_count, loaded.filled_count), (3, 2));
    // Outside of a cluster one node holds each block.
    assert_eq!(client.load_replicas(PATH, 1).await.unwrap(), loaded);
    for replicas in [0, 2] {
        let refused = client.load_replicas(PATH, replicas).await.unwrap_err();
        assert!(matches!(refused, Error::InvalidArgument(_)), "{refused}");
    }
    let unset = client.free(PATH).await.unwrap_err();
    assert!(matches!(unset, Error::InvalidArgument(_)), "{unset}");
    let status = client.status().await.unwrap();
    assert_eq!(status.counter("hit_bytes"), Some(42));
    assert_eq!(status.counter("other"), None);
    client.ping().await.unwrap();
    assert_eq!(mock.world.connection_count.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn read_is_the_bytes_of_the_range_and_ends_with_the_file() {
    let (mock, client, file) = open(Setup::default(), honest).await;
    let content = &mock.world.content;
    let ranges = [
        (0, 1),
        (4096, 4096),
        (1, 20_000),
        (5, 100_000),
        (BLOCK - 1, 2),
        (0, 300_000),
        (7, u64::MAX),
        (299_999, 10),
        (300_000, 10),
        (u64::MAX, 1),
        (9, 0),
    ];
    for (offset, length) in ranges {
        let start = offset.min(300_000) as usize;
        let end = offset.saturating_add(length).min(300_000) as usize;
        let expect = &content[start..end.max(start)];
        let bytes = client.read(&file, offset, length).await.unwrap();
        assert!(bytes == expect, "range {offset}+{length}");
    }
}

#[tokio::test]
async fn read_of_many_blocks_asks_each_owner_at_its_own_address() {
    let setup = Setup { length: 5 << 20, shard_count: 3, ..Setup::default() };
    let (mock, client, file) = open(setup, honest).await;
    let bytes = client.read(&file, 1000, u64::MAX).await.unwrap();
    assert!(bytes == mock.world.content[1000..]);
    let reads = mock.world.reads.lock().unwrap();
    assert_eq!(reads.len(), 40);
    for (listener_index, range) in reads.iter() {
        let hash = placement::block_hash(file.id.into(), range.offset / BLOCK);
        let shard = placement::shard_of(hash, 3) as usize;
        assert_eq!(*listener_index, shard + 1);
    }
}

#[tokio::test]
async fn unreachable_shard_is_served_by_the_main_address() {
    let mock = Mock::honest(Setup::default()).await;
    // Nothing listens on this port.
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    *mock.world.shards_told.lock().unwrap() = Some(vec![format!(":{closed}")]);
    let client = Client::connect(&*mock.address, config()).await.unwrap();
    let file = client.stat(PATH).await.unwrap();
    let bytes = client.read(&file, 0, 5000).await.unwrap();
    assert!(bytes == mock.world.content[..5000]);
    let reads = mock.world.reads.lock().unwrap();
    assert_eq!(reads[0].0, 0);
}

#[tokio::test]
async fn replies_out_of_order_find_their_callers() {
    // Holds five replies back, then sends them last first.
    let (mock, client, file) = open(Setup::default(), |world, asked| {
        if asked.op != Op::Read {
            return honest(world, asked);
        }
        let mut held = world.held.lock().unwrap();
        held.push_front(world.reply(asked));
        if held.len() < 5 {
            return Vec::new();
        }
        held.drain(..).map(Act::Send).collect()
    })
    .await;
    let read = |offset| client.read(&file, offset, 30_000);
    let all = tokio::join!(read(0), read(1), read(40_000), read(5), read(60_000));
    let all = [all.0, all.1, all.2, all.3, all.4];
    for (bytes, offset) in all.into_iter().zip([0, 1, 40_000, 5, 60_000]) {
        assert!(bytes.unwrap() == mock.world.content[offset..offset + 30_000]);
    }
}

#[tokio::test]
async fn no_more_requests_are_in_flight_than_the_node_allows() {
    let setup = Setup { requests_in_flight_max: 4, ..Setup::default() };
    let (mock, client, file) = open(setup, |world, asked| {
        if asked.op != Op::Read {
            return honest(world, asked);
        }
        let mut held = world.held.lock().unwrap();
        held.push_back(world.reply(asked));
        if held.len() < 4 {
            return Vec::new();
        }
        let quiet = Act::Quiet(Duration::from_millis(30));
        std::iter::once(quiet).chain(held.drain(..).map(Act::Send)).collect()
    })
    .await;
    let mut tasks = tokio::task::JoinSet::new();
    for offset in 0..12 {
        let (client, file) = (client.clone(), file.clone());
        tasks.spawn(async move { client.read(&file, offset, 10).await });
    }
    for result in tasks.join_all().await {
        result.unwrap();
    }
    assert!(!mock.world.was_disturbed.load(Ordering::Relaxed));
}

#[tokio::test]
async fn damaged_payload_is_read_again() {
    for length in [1, 5000, 100_000, 300_000] {
        let (mock, client, file) = open(Setup::default(), first_reads(1, flip_last_byte)).await;
        let bytes = client.read(&file, 0, length).await.unwrap();
        assert!(bytes == mock.world.content[..length as usize]);
    }
}

#[tokio::test]
async fn payload_damaged_twice_is_corrupt() {
    let (_mock, client, file) = open(Setup::default(), first_reads(2, flip_last_byte)).await;
    match client.read(&file, BLOCK, 8192).await {
        Err(Error::Corrupt { path, offset }) => {
            assert_eq!((&*path, offset), (PATH, BLOCK + 4096));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn bytes_of_another_block_are_not_taken_for_those_that_were_asked_for() {
    // The node looks in the wrong place: it sends whole bytes, with their own right checksums.
    let another = |world: &World, asked: &Asked| {
        let mut range = asked.range();
        range.offset += BLOCK;
        vec![Act::Send(world.read(asked, 0, range))]
    };
    let (mock, client, file) = open(Setup::default(), first_reads(1, another)).await;
    let bytes = client.read(&file, 0, 8192).await.unwrap();
    assert!(bytes == mock.world.content[..8192]);
    let (_mock, client, file) = open(Setup::default(), first_reads(2, another)).await;
    let result = client.read(&file, 0, 8192).await;
    assert!(matches!(result, Err(Error::Corrupt { offset: 0, .. })), "{result:?}");
}

#[tokio::test]
async fn unverified_read_passes_damaged_bytes() {
    let (mock, client, file) = open(Setup::default(), first_reads(2, flip_last_byte)).await;
    let options = ReadOptions { verify: Some(false), ..ReadOptions::default() };
    let bytes = client.read_with(&file, 0, 100, options).await.unwrap();
    assert_eq!(bytes[..99], mock.world.content[..99]);
    assert_ne!(bytes[99], mock.world.content[99]);
    let bytes = client.read_into_with(&file, 0, BytesMut::new(), 100, options).await.unwrap();
    assert_eq!(bytes[..99], mock.world.content[..99]);
    assert_ne!(bytes[99], mock.world.content[99]);
}

#[tokio::test]
async fn busy_is_tried_again_no_earlier_than_the_node_wants() {
    let (mock, client, file) = open(
        Setup::default(),
        first_reads(3, |_, asked| {
            let mut header = asked.header.reply(Status::Busy);
            header.budget_ms = 20;
            let mut out = Vec::new();
            frame::encode_empty(&mut out, header);
            vec![Act::Send(out)]
        }),
    )
    .await;
    let start = Instant::now();
    let bytes = client.read(&file, 3, 50_000).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(60));
    assert!(bytes == mock.world.content[3..50_003]);
}

#[tokio::test]
async fn busy_to_the_end_is_told_as_busy() {
    let always_busy =
        first_reads(usize::MAX, |_, asked| vec![Act::Send(asked.status(Status::Busy))]);
    let (_mock, client, file) = open(Setup::default(), always_busy).await;
    let client = client.with_deadline(Duration::from_millis(100));
    let error = client.read(&file, 0, 10).await.unwrap_err();
    assert_eq!(error.status(), Some(Status::Busy));
}

#[tokio::test]
async fn a_source_that_always_fails_is_given_up_long_before_the_deadline() {
    let asked_count = Arc::new(AtomicUsize::new(0));
    let count = asked_count.clone();
    let always_failing = first_reads(usize::MAX, move |_, asked| {
        count.fetch_add(1, Ordering::Relaxed);
        vec![Act::Send(asked.status(Status::SourceError))]
    });
    let (_mock, client, file) = open(Setup::default(), always_failing).await;
    let client = client.with_deadline(Duration::from_secs(24 * 3600));
    let error = client.read(&file, 0, 10).await.unwrap_err();
    assert_eq!(error.status(), Some(Status::SourceError));
    assert_eq!(asked_count.load(Ordering::Relaxed), 6);
}

#[tokio::test]
async fn changed_file_is_stale_for_reads_of_any_size() {
    let (mock, client, file) = open(Setup::default(), honest).await;
    mock.world.version.store(2, Ordering::Relaxed);
    for length in [10, 300_000] {
        let error = client.read(&file, 0, length).await.unwrap_err();
        assert!(matches!(&error, Error::Stale { path } if &**path == PATH), "{error}");
    }
    let file = client.stat(PATH).await.unwrap();
    client.read(&file, 0, 10).await.unwrap();
}

#[tokio::test]
async fn forgotten_file_id_is_looked_up_again() {
    let forget = |_: &World, asked: &Asked| vec![Act::Send(asked.status(Status::UnknownFile))];
    let (mock, client, file) = open(Setup::default(), first_reads(1, forget)).await;
    let bytes = client.read(&file, 0, 10).await.unwrap();
    assert_eq!(bytes, mock.world.content[..10]);

    let (mock, client, file) = open(Setup::default(), first_reads(1, forget)).await;
    mock.world.version.store(2, Ordering::Relaxed);
    let error = client.read(&file, 0, 10).await.unwrap_err();
    assert!(matches!(error, Error::Stale { .. }), "{error}");
}

#[tokio::test]
async fn connection_lost_in_a_payload_is_opened_again() {
    for (length, cut) in [(100, 50), (100_000, 100), (100_000, 90_000), (300_000, 70_000)] {
        let handler = first_reads(1, move |world, asked| {
            let mut bytes = world.reply(asked);
            bytes.truncate(cut.min(bytes.len() - 1));
            vec![Act::Send(bytes), Act::Close]
        });
        let (mock, client, file) = open(Setup::default(), handler).await;
        let bytes = client.read(&file, 0, length).await.unwrap();
        assert!(bytes == mock.world.content[..length as usize]);
        assert_eq!(mock.world.connection_count.load(Ordering::Relaxed), 2);
    }
}

#[tokio::test]
async fn node_that_shuts_down_is_left_for_a_new_connection() {
    let handler = first_reads(1, |_, asked| vec![Act::Send(asked.status(Status::ShuttingDown))]);
    let (mock, client, file) = open(Setup::default(), handler).await;
    client.read(&file, 0, 10).await.unwrap();
    assert_eq!(mock.world.connection_count.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn read_into_keeps_the_prefix_and_does_not_move_the_buffer() {
    // The first try breaks off in the middle: the second must start where the first did.
    let handler = first_reads(1, |world, asked| {
        let mut bytes = world.reply(asked);
        bytes.truncate(90_000);
        vec![Act::Send(bytes), Act::Close]
    });
    let (mock, client, file) = open(Setup::default(), handler).await;
    for (offset, length) in [(0, 100_000), (1, 299_999), (0, 1), (0, 0)] {
        let mut buffer = BytesMut::with_capacity(400_000);
        buffer.put_slice(b"prefix");
        let address = buffer.as_ptr();
        let buffer = client.read_into(&file, offset, buffer, length).await.unwrap();
        assert_eq!(&buffer[..6], b"prefix");
        assert!(buffer[6..] == mock.world.content[offset as usize..][..length as usize]);
        assert_eq!(buffer.as_ptr(), address);
        assert_eq!(buffer.capacity(), 400_000);
    }
    let small = BytesMut::from(&b"small"[..]);
    let buffer = client.read_into(&file, 9, small, 50_000).await.unwrap();
    assert_eq!(&buffer[..5], b"small");
    assert!(buffer[5..] == mock.world.content[9..50_009]);
}

#[tokio::test]
async fn deadline_passes_and_the_late_reply_harms_nobody() {
    // Keeps the reply to the first read until the second comes.
    let (mock, client, file) = open(Setup::default(), |world, asked| {
        let mut held = world.held.lock().unwrap();
        if asked.op == Op::Read && asked.range().offset == 0 {
            held.push_back(world.reply(asked));
            return Vec::new();
        }
        let late = held.drain(..).map(Act::Send);
        late.chain(honest(world, asked)).collect()
    })
    .await;
    let start = Instant::now();
    let options =
        ReadOptions { deadline: Some(Duration::from_millis(50)), ..ReadOptions::default() };
    for length in [100, 100_000] {
        let error = client.read_with(&file, 0, length, options).await.unwrap_err();
        assert!(matches!(error, Error::DeadlineExceeded), "{error}");
    }
    let buffer = BytesMut::with_capacity(100_000);
    let hasty = client.with_deadline(Duration::from_millis(50));
    hasty.read_into(&file, 0, buffer, 100_000).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(2));
    let bytes = client.read(&file, 7, 100_000).await.unwrap();
    assert!(bytes == mock.world.content[7..100_007]);
    assert_eq!(mock.world.connection_count.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn silent_connection_is_given_up_for_a_new_one() {
    let (mock, client, file) =
        open(Setup::default(), |world, asked| match (asked.op, asked.connection_index) {
            (Op::Read, 0) => Vec::new(),
            _ => honest(world, asked),
        })
        .await;
    let hasty = client.with_deadline(Duration::from_millis(50));
    let error = hasty.read(&file, 0, 10).await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded), "{error}");
    let bytes = client.read(&file, 0, 10).await.unwrap();
    assert_eq!(bytes, mock.world.content[..10]);
}

#[tokio::test]
async fn node_that_went_away_is_waited_for_until_the_deadline() {
    let (mut mock, client, file) = open(Setup::default(), honest).await;
    mock.stop().await;
    let hasty = client.with_deadline(Duration::from_millis(100));
    let start = Instant::now();
    let error = hasty.read(&file, 0, 10).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1));
    let (read, mock) = tokio::join!(client.read(&file, 0, 10), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Mock::start_at(&mock.address, Setup::default(), honest).await
    });
    assert_eq!(read.unwrap(), mock.world.content[..10]);
}

#[tokio::test]
async fn read_many_answers_each_range_in_order() {
    let setup = Setup { length: 2 << 20, shard_count: 2, requests_in_flight_max: 16 };
    let (mock, client, file) = open(setup, honest).await;
    let mut old = file.clone();
    old.version = 99;
    let mut ranges: Vec<(&File, u64, u64)> = Vec::new();
    for index in 0..200 {
        // Some cross a block border, some the end of the file.
        ranges.push((&file, index * 10_477, 1 + (index % 5) * 9000));
    }
    ranges.push((&file, 100, 2 * BLOCK));
    ranges.push((&file, 0, 0));
    let stale_index = 50;
    ranges[stale_index].0 = &old;
    let results = client.read_many(&ranges).await;
    assert_eq!(results.len(), ranges.len());
    let content = &mock.world.content;
    for (index, (result, range)) in results.into_iter().zip(&ranges).enumerate() {
        if index == stale_index {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Stale { .. }), "{error}");
            continue;
        }
        let start = (range.1 as usize).min(content.len());
        let end = (start + range.2 as usize).min(content.len());
        assert!(result.unwrap() == content[start..end], "range {index}");
    }
    // No range was read by a request of its own.
    assert!(mock.world.reads.lock().unwrap().is_empty());
    assert!(client.read_many(&[]).await.is_empty());
}

#[tokio::test]
async fn batches_keep_to_the_limits_of_the_node() {
    let (mock, client, file) = open(Setup::default(), honest).await;
    // 25 MiB in large ranges, then more small ranges than a batch may have.
    let mut ranges = vec![(&file, 0, BLOCK); 200];
    ranges.extend([(&file, 9, 10); 200]);
    let start = mock.world.request_count.load(Ordering::Relaxed);
    for (result, range) in client.read_many(&ranges).await.into_iter().zip(&ranges) {
        let expect = &mock.world.content[range.1 as usize..][..range.2 as usize];
        assert!(result.unwrap() == expect);
    }
    let count = mock.world.request_count.load(Ordering::Relaxed) - start;
    // A Hello may be among them.
    assert!((3..=5).contains(&count), "{count} requests");
}

#[tokio::test]
async fn read_many_heals_busy_damaged_and_lost_parts() {
    let seen = AtomicUsize::new(0);
    let (mock, client, file) = open(Setup::default(), move |world, asked| {
        if asked.op != Op::ReadMany {
            return honest(world, asked);
        }
        let mut out = Vec::new();
        let turn = seen.fetch_add(1, Ordering::Relaxed);
        for (part, range) in asked.ranges().into_iter().enumerate() {
            let mut bytes = world.read(asked, part as u16, range);
            if turn == 0 && part == 1 {
                let mut header = asked.header.reply(Status::Busy);
                header.part = 1;
                bytes.clear();
                frame::encode_empty(&mut bytes, header);
            } else if turn == 0 && part == 2 {
                *bytes.last_mut().unwrap() ^= 1;
            }
            out.push(Act::Send(bytes));
        }
        if turn == 1 {
            return vec![Act::Close];
        }
        out
    })
    .await;
    let ranges: Vec<_> = (0..4).map(|index| (&file, index * 5000, 5000)).collect();
    for (index, result) in client.read_many(&ranges).await.into_iter().enumerate() {
        assert!(result.unwrap() == mock.world.content[index * 5000..][..5000]);
    }
    assert_eq!(mock.world.reads.lock().unwrap().len(), 1);
    assert_eq!(mock.world.connection_count.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn an_older_node_that_cannot_rename_is_named() {
    let (_mock, client, _file) = open(Setup::default(), honest).await;
    for error in [client.rename("a", "b").await, client.rename_if_absent("a", "b").await] {
        let error = error.expect_err("the mock does not know it");
        assert_eq!(error.status(), Some(Status::UnknownOp));
        assert!(error.to_string().contains("its program is older"), "{error}");
    }
}

#[tokio::test]
async fn batch_refused_as_a_whole_fails_each_range() {
    let (_mock, client, file) = open(Setup::default(), |world, asked| match asked.op {
        Op::ReadMany => {
            let mut header = asked.header.reply(Status::UnknownOp);
            header.part = frame::PART_ALL;
            let mut out = Vec::new();
            frame::encode_empty(&mut out, header);
            vec![Act::Send(out)]
        }
        _ => honest(world, asked),
    })
    .await;
    let start = Instant::now();
    for result in client.read_many(&[(&file, 0, 1), (&file, 9, 9)]).await {
        assert_eq!(result.unwrap_err().status(), Some(Status::UnknownOp));
    }
    assert!(start.elapsed() < Duration::from_secs(2));
}

/// Changes the header of an honest reply and sums it up again.
fn with_header(mut bytes: Vec<u8>, change: impl Fn(&mut Header)) -> Vec<u8> {
    let mut header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
    change(&mut header);
    header.encode(bytes.first_chunk_mut().unwrap());
    bytes
}

#[tokio::test]
async fn malformed_frames_are_errors_and_the_next_connection_is_good() {
    type Change = fn(Vec<u8>) -> Vec<u8>;
    let changes: [(&str, Change); 10] = [
        ("garbage", |_| (0..200).collect()),
        ("damaged header", |mut bytes| {
            bytes[13] ^= 1;
            bytes
        }),
        ("damaged body", |mut bytes| {
            bytes[HEADER_SIZE] ^= 1;
            bytes
        }),
        ("unknown request", |bytes| with_header(bytes, |header| header.request_id += 99)),
        ("request as reply", |bytes| with_header(bytes, |header| header.flags = 0)),
        ("other version", |bytes| with_header(bytes, |header| header.version = 9)),
        ("other op", |bytes| with_header(bytes, |header| header.op = Op::Stat as u8)),
        ("part out of range", |bytes| with_header(bytes, |header| header.part = 1)),
        ("payload too long", |bytes| with_header(bytes, |header| header.payload_length += 1)),
        ("body too long", |bytes| with_header(bytes, |header| header.body_length = u32::MAX)),
    ];
    for (name, change) in changes {
        let bad = move |world: &World, asked: &Asked| vec![Act::Send(change(world.reply(asked)))];
        let (mock, client, file) = open(Setup::default(), first_reads(1, bad)).await;
        let bytes = client.read(&file, 0, 5000).await;
        assert!(bytes.unwrap() == mock.world.content[..5000], "{name}");
        assert_eq!(mock.world.connection_count.load(Ordering::Relaxed), 2, "{name}");

        let (_mock, client, file) = open(Setup::default(), first_reads(usize::MAX, bad)).await;
        let client = client.with_deadline(Duration::from_millis(80));
        let error = client.read(&file, 0, 5000).await.unwrap_err();
        assert!(matches!(error, Error::Protocol(_) | Error::DeadlineExceeded), "{name}: {error}");
    }
}

#[tokio::test]
async fn well_summed_nonsense_is_a_protocol_error_at_once() {
    // A short payload, and a body that is not the archive it should be.
    let short = |world: &World, asked: &Asked| {
        let bytes = world.reply(asked);
        let mut bytes = with_header(bytes, |header| header.payload_length -= 1);
        bytes.pop();
        vec![Act::Send(bytes)]
    };
    let bodiless = |_: &World, asked: &Asked| vec![Act::Send(asked.status(Status::Ok))];
    let (_mock, client, file) = open(Setup::default(), first_reads(1, short)).await;
    let error = client.read(&file, 0, 5000).await.unwrap_err();
    assert!(matches!(error, Error::Protocol(_)), "{error}");
    let mock = Mock::start(Setup::default(), move |world, asked| match asked.op {
        Op::Ping => honest(world, asked),
        _ => bodiless(world, asked),
    })
    .await;
    let client = Client::connect(&*mock.address, config()).await.unwrap();
    for error in [
        client.stat(PATH).await.unwrap_err(),
        client.list("").await.unwrap_err(),
        client.load(PATH).await.unwrap_err(),
        client.status().await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Protocol(_)), "{error}");
    }
}

#[tokio::test]
async fn peer_that_is_no_node_is_told_at_connect() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let error = {
        use tokio::io::AsyncWriteExt;
        let speak = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let text = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(text).await.unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            result = Client::connect(&*address, config()) => result.unwrap_err(),
            () = speak => unreachable!(),
        }
    };
    assert!(matches!(error, Error::Protocol(_)), "{error}");
    drop(listener);
    let error = Client::connect(&*address, config()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Connect { address: told, .. } if **told == *address),
        "{error}"
    );
    let error = Client::connect("nowhere", config()).await.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
}

#[tokio::test]
async fn peer_that_accepts_but_never_answers_hello_is_told_apart() {
    // The system accepts for a listener that never does.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for (timeout, text) in [(Duration::from_millis(150), "150 ms"), (Duration::from_secs(1), "1 s")]
    {
        let config = ClientConfig { connect_timeout: timeout, ..config() };
        let error = Client::connect(&*address, config).await.unwrap_err();
        assert!(matches!(error, Error::NoHello { .. }), "{error}");
        assert_eq!(
            error.to_string(),
            format!(
                "connected to {address}, but it did not answer Hello within {text}: \
                 is this a Millrace node?"
            )
        );
    }
}

#[tokio::test]
async fn peer_that_answers_hello_and_nothing_more_is_not_waited_for() {
    let mock = Mock::start(Setup::default(), |_, _| Vec::new()).await;
    let config = ClientConfig {
        deadline: Duration::from_secs(60),
        connect_timeout: Duration::from_millis(150),
        ..config()
    };
    let start = Instant::now();
    let error = Client::connect(&*mock.address, config).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert!(error.to_string().contains("answered Hello, and nothing since"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test]
async fn block_size_of_a_file_is_what_stat_told() {
    // One is another size than in Hello, the other one no read can be cut with.
    let told = [BLOCK_SIZE * 2, 3 << 16];
    let count = AtomicUsize::new(0);
    let mock = Mock::start(Setup::default(), move |world, asked| {
        if asked.op != Op::Stat {
            return honest(world, asked);
        }
        let block_size = told[count.fetch_add(1, Ordering::Relaxed)];
        let mut out = Vec::new();
        let reply = StatReply { entry: world.entry(), block_size };
        frame::encode(&mut out, asked.header.reply(Status::Ok), &reply);
        vec![Act::Send(out)]
    })
    .await;
    let client = Client::connect(&*mock.address, config()).await.unwrap();
    let file = client.stat(PATH).await.unwrap();
    assert_eq!(file.block_size, BLOCK_SIZE * 2);
    let entries = client.list("data").await.unwrap();
    assert_eq!(client.file("data", &entries[0]).block_size, BLOCK_SIZE);
    let error = client.stat(PATH).await.unwrap_err();
    assert!(matches!(error, Error::Protocol(_)), "{error}");
}

#[tokio::test]
async fn bad_arguments_are_told_without_asking() {
    let (mock, client, file) = open(Setup::default(), honest).await;
    let before = mock.world.request_count.load(Ordering::Relaxed);
    let long = "x".repeat(5000);
    let error = client.stat(&long).await.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    let mut directory = file.clone();
    directory.kind = millrace_client::Kind::Directory;
    let error = client.read(&directory, 0, 1).await.unwrap_err();
    assert_eq!(error.status(), Some(Status::WrongKind));
    let huge = File { length: u64::MAX, ..file };
    let error = client.read(&huge, 0, u64::MAX).await.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    assert_eq!(mock.world.request_count.load(Ordering::Relaxed), before);
}

#[test]
fn blocking_client_reads_without_a_runtime_of_its_caller() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mock = runtime.block_on(Mock::honest(Setup::default()));
    let client = millrace_client::blocking::Client::connect(&*mock.address, config()).unwrap();
    let file = client.stat(PATH).unwrap();
    std::thread::scope(|scope| {
        for offset in [0, 1, 200_000] {
            let (client, file, content) = (&client, &file, &mock.world.content);
            scope.spawn(move || {
                let bytes = client.read(file, offset as u64, 90_000).unwrap();
                assert!(bytes == content[offset..offset + 90_000]);
            });
        }
    });
    let many = client.read_many(&[(&file, 5, 10), (&file, 0, 1)]);
    assert_eq!(many[0].as_ref().unwrap(), &mock.world.content[5..15]);
    assert_eq!(client.list("data").unwrap().len(), 5);
    let buffer = client.read_into(&file, 0, BytesMut::new(), 7).unwrap();
    assert_eq!(buffer, mock.world.content[..7]);
    let options = ReadOptions { verify: Some(false), ..ReadOptions::default() };
    let buffer = client.read_into_with(&file, 7, buffer, 9, options).unwrap();
    assert_eq!(buffer, mock.world.content[..16]);
    let many = client.read_many_with(&[(&file, 3, 4)], options);
    assert_eq!(many[0].as_ref().unwrap(), &mock.world.content[3..7]);
}
