//! Ten thousand cold files, four times the memory, a thousand clients: no byte wrong, memory bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use millrace_client::{Client, ClientConfig};
use millrace_tests::process::memory_of;
use millrace_tests::{HANG_GUARD, NodeOptions, Scratch, content, heavy};

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 64 * MIB;
/// Memory above the memory for blocks: code, stacks, buffers of connections, tables. The documents
/// promise it.
const MEMORY_SPARE: u64 = 64 * MIB;
const SMALL_COUNT: usize = 10_000;
const CLIENT_COUNT: usize = 1000;
const LARGE_COUNT: usize = 4;
const LARGE_LENGTH: u64 = 46 * MIB;

fn small(index: usize) -> (String, usize) {
    // 0 to 16 KiB, 8 KiB on average: 80 MiB together.
    (format!("small/{:02}/{index}", index % 100), index * 7919 % 16_384)
}

fn data_set(scratch: &Scratch) {
    let mut total = LARGE_COUNT as u64 * LARGE_LENGTH;
    for index in 0..SMALL_COUNT {
        let (path, length) = small(index);
        scratch.file(&path, length);
        total += length as u64;
    }
    for index in 0..LARGE_COUNT {
        scratch.file(&format!("large/{index}"), LARGE_LENGTH as usize);
    }
    assert!(total >= 4 * MEMORY, "{total} bytes are less than four times the memory");
}

/// Watches the resident memory of a process until it is stopped; returns the largest value.
fn watch(process: u32, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut most = 0;
        while !stop.load(Ordering::Relaxed) {
            most = most.max(memory_of(process).map_or(0, |memory| memory.resident));
            std::thread::sleep(Duration::from_millis(20));
        }
        most
    })
}

/// Reads one client's share: its small files whole, its stretch of a large file, and some at random.
async fn share(client: Client, index: usize, byte_count: Arc<AtomicU64>) {
    let mut random = fastrand::Rng::with_seed(index as u64);
    let own = SMALL_COUNT / CLIENT_COUNT;
    let mut smalls: Vec<usize> = (index * own..(index + 1) * own).collect();
    smalls.push(random.usize(..SMALL_COUNT));
    for small_index in smalls {
        let (path, length) = small(small_index);
        let file = client.stat(&path).await.expect("stat");
        let read = client.read(&file, 0, u64::MAX).await.expect("read");
        assert_eq!(read.len(), length, "{path}");
        content::check(&path, 0, &read);
        byte_count.fetch_add(read.len() as u64, Ordering::Relaxed);
    }
    let path = format!("large/{}", index % LARGE_COUNT);
    let file = client.stat(&path).await.expect("stat");
    let each = LARGE_LENGTH / (CLIENT_COUNT / LARGE_COUNT) as u64 + 1;
    let start = (index / LARGE_COUNT) as u64 * each;
    for (offset, length) in [(start, each), (random.u64(..LARGE_LENGTH), 20_000)] {
        let read = client.read(&file, offset, length).await.expect("read");
        assert_eq!(read.len() as u64, length.min(LARGE_LENGTH - offset), "{path}");
        content::check(&path, offset, &read);
        byte_count.fetch_add(read.len() as u64, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::await_holding_lock, reason = "heavy tests run one after the other")]
async fn four_times_the_memory_and_a_thousand_clients_lose_no_byte_and_stay_within_memory() {
    let _turn = heavy();
    let scratch = Scratch::new();
    data_set(&scratch);
    let options = NodeOptions::new(scratch.root()).set("shards", 2).set("memory", "64MiB");
    let mut node = options.set("block_size", "256KiB").start();
    let stop = Arc::new(AtomicBool::new(false));
    let watching = watch(node.id(), stop.clone());
    let byte_count = Arc::new(AtomicU64::new(0));
    // All are connected before the first one reads.
    let barrier = Arc::new(tokio::sync::Barrier::new(CLIENT_COUNT));
    let clients: Vec<_> = (0..CLIENT_COUNT)
        .map(|index| {
            let (address, byte_count) = (node.address().to_string(), byte_count.clone());
            let barrier = barrier.clone();
            let config = ClientConfig {
                deadline: 2 * HANG_GUARD,
                connect_timeout: HANG_GUARD,
                ..ClientConfig::new()
            };
            tokio::spawn(async move {
                let client = Client::connect(address, config).await.expect("connect");
                barrier.wait().await;
                share(client, index, byte_count).await;
            })
        })
        .collect();
    for client in clients {
        client.await.expect("a client");
    }
    stop.store(true, Ordering::Relaxed);
    let most = watching.join().expect("the watching thread");
    let peer = &mut node.peer();
    println!(
        "{} MiB read, {} blocks filled, {} evicted, {} busy, at most {} MiB resident",
        byte_count.load(Ordering::Relaxed) / MIB,
        peer.counter("fill_count"),
        peer.counter("evicted_count"),
        peer.counter("busy_count"),
        most / MIB
    );
    assert!(most <= MEMORY + MEMORY_SPARE, "{} MiB resident", most / MIB);
    assert!(peer.counter("evicted_count") > 0, "there was pressure");
    assert_eq!(peer.counter("damaged_count"), 0);
    assert_eq!(peer.counter("fill_error_count"), 0);
    assert_eq!(peer.counter("bad_frame_count"), 0);
    assert!(node.is_running());
    node.stop();
}
