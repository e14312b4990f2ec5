//! The reader: the bytes of the file in order, whatever is done with it. The name of a test is its claim.

use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{FutureExt, StreamExt};
use millrace_client::{Client, Error, File, Kind, Reader, Status, blocking};
use millrace_proto::Op;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt};
use tokio::runtime::Handle;

use super::mock::{Act, Asked, Mock, PATH, Setup, World};
use super::{BLOCK, config, honest, open};

const LENGTH: usize = 3_000_123;

fn setup() -> Setup {
    Setup { length: LENGTH, ..Setup::default() }
}

/// Returns the client's own error inside a reader's.
fn inner(error: &std::io::Error) -> &Error {
    error.get_ref().and_then(|inner| inner.downcast_ref()).expect("the client's own error")
}

/// Returns how many bytes were asked for so far.
fn asked_length(mock: &Mock) -> u64 {
    mock.world.reads.lock().unwrap().iter().map(|(_, range)| u64::from(range.length)).sum()
}

/// Returns a handler that reports, for blocks from the third one on, that the file has changed, as long
/// as it is told to.
fn changed_behind(
    has_changed: Arc<AtomicBool>,
) -> impl Fn(&World, &Asked) -> Vec<Act> + Send + Sync + 'static {
    move |world, asked| {
        let is_changed = has_changed.load(Ordering::Relaxed)
            && asked.op == Op::Read
            && asked.range().offset >= 2 * BLOCK;
        if is_changed {
            return vec![Act::Send(asked.status(Status::StaleVersion))];
        }
        honest(world, asked)
    }
}

#[tokio::test]
async fn small_buffers_and_large_ones_get_every_byte_once() {
    for read_ahead in [0, 256 << 10, u64::MAX] {
        for buffer_length in [977, 65_536, 5 << 20] {
            let (mock, client, file) = open(setup(), honest).await;
            let mut reader = client.reader(&file).with_read_ahead(read_ahead);
            let mut buffer = vec![0; buffer_length];
            let mut read = Vec::new();
            loop {
                let count = reader.read(&mut buffer).await.unwrap();
                if count == 0 {
                    break;
                }
                read.extend_from_slice(&buffer[..count]);
                assert_eq!(reader.position(), read.len() as u64);
            }
            assert!(read == mock.world.content, "{read_ahead} {buffer_length}");
            assert_eq!(reader.read(&mut buffer).await.unwrap(), 0, "it stays at the end");
            assert_eq!(asked_length(&mock), LENGTH as u64, "nothing is asked for twice");
        }
    }
}

#[tokio::test]
async fn no_more_is_asked_for_than_the_window() {
    let (mock, client, file) = open(setup(), honest).await;
    let window = 512 << 10;
    let mut reader = client.reader(&file).with_read_ahead(window);
    reader.read_u8().await.unwrap();
    assert_eq!(asked_length(&mock), 64 << 10, "a first read is a small one");
    while reader.position() < LENGTH as u64 - 1000 {
        reader.read_exact(&mut [0; 1000]).await.unwrap();
        let reads = mock.world.reads.lock().unwrap();
        let end = reads.iter().map(|(_, range)| range.offset + u64::from(range.length)).max();
        assert!(end.unwrap() <= reader.position() + window);
    }
}

#[tokio::test]
async fn a_seek_leads_to_any_byte_and_past_the_end_there_is_none() {
    let (mock, client, file) = open(setup(), honest).await;
    let content = &mock.world.content;
    let mut reader = client.reader(&file);
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let target = random.usize(0..LENGTH + 1000);
        let to = match random.u8(0..3) {
            0 => SeekFrom::Start(target as u64),
            1 => SeekFrom::End(target as i64 - LENGTH as i64),
            _ => SeekFrom::Current(target as i64 - reader.position() as i64),
        };
        assert_eq!(reader.seek(to).await.unwrap(), target as u64);
        let length = random.usize(1..200_000);
        let mut bytes = Vec::new();
        (&mut reader).take(length as u64).read_to_end(&mut bytes).await.unwrap();
        let expect = &content[target.min(LENGTH)..(target + length).min(LENGTH)];
        assert!(bytes == expect, "{target}+{length}");
    }
    let error = reader.seek(SeekFrom::End(-(LENGTH as i64) - 1)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert!(matches!(inner(&error), Error::InvalidArgument(_)), "{error}");
}

#[tokio::test]
async fn a_seek_to_what_is_read_ahead_asks_for_nothing_again() {
    let (mock, client, file) = open(setup(), honest).await;
    let mut reader = client.reader(&file);
    // Then it reads far enough ahead.
    let mut position = 1 << 20;
    reader.read_exact(&mut vec![0; position]).await.unwrap();
    while position < LENGTH - 40_000 {
        reader.read_exact(&mut [0; 20_000]).await.unwrap();
        assert_eq!(reader.stream_position().await.unwrap(), position as u64 + 20_000);
        position = reader.seek(SeekFrom::Current(20_000)).await.unwrap() as usize;
        assert_eq!(reader.read_u8().await.unwrap(), mock.world.content[position]);
        reader.seek(SeekFrom::Current(-1)).await.unwrap();
    }
    reader.read_to_end(&mut Vec::new()).await.unwrap();
    assert_eq!(asked_length(&mock), LENGTH as u64);
}

#[tokio::test]
async fn a_stream_is_the_bytes_from_the_position_on() {
    let (mock, client, file) = open(setup(), honest).await;
    for start in [0, 1, 100_000, LENGTH - 1, LENGTH, LENGTH + 1] {
        let mut reader = client.reader(&file);
        reader.seek(SeekFrom::Start(start as u64)).await.unwrap();
        if start == 1 {
            // What a read has left of a piece is given out, too.
            reader.seek(SeekFrom::Start(0)).await.unwrap();
            reader.read_u8().await.unwrap();
        }
        let pieces: Vec<_> = reader.into_stream().map(Result::unwrap).collect().await;
        assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= 1 << 20));
        assert!(pieces.concat() == mock.world.content[start.min(LENGTH)..], "from {start}");
    }
}

#[tokio::test]
async fn lines_are_read_without_a_buffer_of_their_own() {
    let (mock, client, file) = open(setup(), honest).await;
    let mut lines = client.reader(&file).split(b'\n');
    let expect = mock.world.content.split(|byte| *byte == b'\n');
    for line in expect {
        assert_eq!(lines.next_segment().await.unwrap().as_deref(), Some(line));
    }
    assert_eq!(lines.next_segment().await.unwrap(), None);
}

#[tokio::test]
async fn after_an_error_in_the_middle_no_byte_comes_until_a_seek() {
    let has_changed = Arc::new(AtomicBool::new(true));
    let (mock, client, file) = open(setup(), changed_behind(has_changed.clone())).await;
    let (before, after) = mock.world.content.split_at(2 * BLOCK as usize);
    let mut reader = client.reader(&file);
    let mut read = Vec::new();
    let error = reader.read_to_end(&mut read).await.unwrap_err();
    assert!(matches!(inner(&error), Error::Stale { path } if **path == *PATH), "{error}");
    assert!(read == before);
    has_changed.store(false, Ordering::Relaxed);
    for _ in 0..3 {
        let error = reader.read(&mut [0; 10]).await.unwrap_err();
        assert!(matches!(inner(&error), Error::Stale { .. }), "{error}");
    }
    reader.seek(SeekFrom::Current(0)).await.unwrap();
    read.clear();
    reader.read_to_end(&mut read).await.unwrap();
    assert!(read == after);
}

#[tokio::test]
async fn a_stream_ends_with_its_first_error() {
    let has_changed = Arc::new(AtomicBool::new(true));
    let (mock, client, file) = open(setup(), changed_behind(has_changed.clone())).await;
    let mut stream = client.reader(&file).into_stream();
    let mut read = Vec::new();
    let error = loop {
        match stream.next().await.expect("bytes or an error") {
            Ok(bytes) => read.extend_from_slice(&bytes),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Stale { .. }), "{error}");
    assert!(read == mock.world.content[..2 * BLOCK as usize]);
    has_changed.store(false, Ordering::Relaxed);
    assert!(stream.next().await.is_none());
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_dropped_future_of_a_read_loses_no_byte() {
    let (mock, client, file) = open(setup(), honest).await;
    let mut reader = client.reader(&file);
    let mut random = fastrand::Rng::with_seed(3);
    let mut read = Vec::new();
    let mut dropped_count = 0;
    while read.len() < LENGTH {
        let mut buffer = vec![0; random.usize(1..100_000)];
        match reader.read(&mut buffer).now_or_never() {
            Some(count) => read.extend_from_slice(&buffer[..count.unwrap()]),
            None => {
                dropped_count += 1;
                tokio::task::yield_now().await;
            }
        }
    }
    assert!(dropped_count > 0);
    assert!(read == mock.world.content);
}

/// Waits until no more tasks are left than there were.
async fn wait_for_tasks(count: usize) {
    let ended = async {
        while Handle::current().metrics().num_alive_tasks() > count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(config().deadline / 2, ended).await.expect("the reads are dropped");
}

#[tokio::test]
async fn a_seek_and_a_drop_end_the_reads_that_are_under_way() {
    let (_mock, client, file) = open(setup(), |world, asked| match asked.op {
        // It never answers.
        Op::Read => Vec::new(),
        _ => honest(world, asked),
    })
    .await;
    let task_count = Handle::current().metrics().num_alive_tasks();
    let mut reader = client.reader(&file);
    assert!(reader.read_u8().now_or_never().is_none());
    let alive = || Handle::current().metrics().num_alive_tasks();
    assert_eq!(alive(), task_count + 1);
    reader.seek(SeekFrom::Start(2_000_000)).await.unwrap();
    wait_for_tasks(task_count).await;
    assert!(reader.read_u8().now_or_never().is_none());
    assert_eq!(alive(), task_count + 1);
    drop(reader);
    wait_for_tasks(task_count).await;
}

#[tokio::test]
async fn a_directory_is_refused_and_an_empty_file_is_empty() {
    let (_mock, client, file) = open(setup(), honest).await;
    let mut directory = client.reader(&File { kind: Kind::Directory, length: 0, ..file.clone() });
    let error = directory.read_u8().await.unwrap_err();
    assert_eq!(inner(&error).status(), Some(Status::WrongKind));
    directory.rewind().await.unwrap();
    assert!(directory.read_u8().await.is_err());
    let mut stream = directory.into_stream();
    assert!(stream.next().await.unwrap().is_err());
    let mut empty: Reader = client.reader(&File { length: 0, ..file });
    assert_eq!(empty.read(&mut [0]).await.unwrap(), 0);
    assert!(empty.into_stream().next().await.is_none());
}

#[tokio::test]
async fn pieces_are_no_longer_than_a_read_may_be() {
    let mock = Mock::honest(setup()).await;
    let config = millrace_client::ClientConfig { read_length_max: 5000, ..config() };
    let client = Client::connect(&*mock.address, config).await.unwrap();
    let file = client.stat(PATH).await.unwrap();
    let mut read = Vec::new();
    client.reader(&file).read_to_end(&mut read).await.unwrap();
    assert!(read == mock.world.content);
}

#[test]
fn the_blocking_reader_is_a_file() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mock = runtime.block_on(Mock::honest(setup()));
    let content = &mock.world.content;
    let client = blocking::Client::connect(&*mock.address, config()).unwrap();
    let file = client.stat(PATH).unwrap();
    let mut reader = client.reader(&file).with_read_ahead(1 << 20);
    drop(client);
    let mut read = Vec::new();
    reader.read_to_end(&mut read).unwrap();
    assert!(read == *content);
    reader.seek(SeekFrom::End(-1000)).unwrap();
    let mut buffer = [0; 500];
    reader.read_exact(&mut buffer).unwrap();
    assert_eq!(buffer, content[LENGTH - 1000..LENGTH - 500]);
    let lines = std::io::BufRead::split(reader, b'\n').map(Result::unwrap);
    assert!(lines.eq(content[LENGTH - 500..].split(|byte| *byte == b'\n')));
}
