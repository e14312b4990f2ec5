//! Nodes end, die, come back and idle.

use std::time::{Duration, Instant};

use millrace_client::ClientConfig;
use millrace_proto::{Op, Status};
use millrace_tests::peer::{range, request};
use millrace_tests::preload::Preload;
use millrace_tests::{BLOCK, HANG_GUARD, Node, NodeOptions, Peer, Scratch, content, wait_until};

const MIB: usize = 1 << 20;

fn ask_for_blocks(peer: &mut Peer, entry: &millrace_proto::message::Entry, count: u64) {
    let frames: Vec<u8> = (0..count)
        .flat_map(|index| {
            let range = range(entry, index * MIB as u64, MIB as u32);
            request(Op::Read, 1000 + index, &range)
        })
        .collect();
    peer.send_raw(&frames);
}

#[test]
fn a_node_told_to_stop_delivers_the_replies_in_flight() {
    let scratch = Scratch::new();
    scratch.file("a", 16 * MIB);
    for (shards, warm) in [(1, true), (2, true), (1, false), (2, false)] {
        let options = NodeOptions::new(scratch.root()).set("shards", shards);
        let node = options.set("memory", "128MiB").set("block_size", "1MiB").start();
        let mut peer = node.peer().with_block_size(MIB as u32);
        let mut other = node.peer();
        let entry = peer.stat("a").expect("stat");
        if warm {
            let load = millrace_proto::message::LoadRequest { path: "a".to_owned() };
            assert_eq!(other.ask(Op::Load, &load).status(), Status::Ok);
        }
        ask_for_blocks(&mut peer, &entry, 16);
        // The node has taken them all; most are not sent, because the client does not read.
        wait_until("all are in flight", || {
            other.counter("hit_count") + other.counter("miss_count") == 16
        });
        node.terminate();
        std::thread::sleep(Duration::from_millis(200));
        for _ in 0..16 {
            let reply = peer.receive();
            let offset = (reply.header.request_id - 1000) * MIB as u64;
            let read = reply.into_bytes(&entry, offset, MIB as u32).expect("bytes");
            content::check("a", offset, &read);
        }
        assert_eq!(peer.read_to_end(), b"", "and then the end");
        let mut node = node;
        assert!(node.wait().success(), "exit status 0");
    }
}

#[test]
fn a_client_that_never_reads_does_not_keep_a_node_from_stopping() {
    let scratch = Scratch::new();
    scratch.file("a", 16 * MIB);
    let options = NodeOptions::new(scratch.root()).set("drain_timeout_ms", 500);
    let mut node = options.set("memory", "64MiB").set("block_size", "1MiB").start();
    let mut peer = node.peer();
    let entry = peer.stat("a").expect("stat");
    ask_for_blocks(&mut peer, &entry, 16);
    wait_until("all are in flight", || node.counter("miss_count") == 16);
    node.terminate();
    // The command's own tests check the status that it ends with; here it counts that it ends.
    node.wait();
}

#[test]
fn a_stopping_node_takes_no_connection_and_leaves_no_request_in_doubt() {
    let scratch = Scratch::new();
    scratch.file("a", 16 * MIB);
    let options = NodeOptions::new(scratch.root()).set("memory", "64MiB");
    let mut node = options.set("block_size", "1MiB").start();
    let mut peer = node.peer();
    let mut idle = node.peer();
    assert!(idle.ping());
    let entry = peer.stat("a").expect("stat");
    ask_for_blocks(&mut peer, &entry, 16);
    wait_until("all are in flight", || node.counter("miss_count") == 16);
    node.terminate();
    assert_eq!(idle.read_to_end(), b"", "an idle connection is closed at once");
    // Every request is refused now, by a reply or by the end of the connection.
    let id = peer.send_empty(Op::Ping);
    let mut answered = 0;
    while let Ok(reply) = peer.try_receive() {
        if reply.header.request_id == id {
            assert_eq!(reply.status(), Status::ShuttingDown);
        } else {
            assert_eq!(reply.status(), Status::Ok);
            answered += 1;
        }
    }
    assert_eq!(answered, 16, "what was in flight is delivered");
    assert!(node.wait().success());
}

#[tokio::test]
async fn a_client_finds_a_node_again_that_was_killed_and_started_anew() {
    let scratch = Scratch::new();
    scratch.file("a", 1_000_000);
    let mut node = Node::serve(scratch.root());
    let client = node.client().await;
    let file = client.stat("a").await.expect("stat");
    for round in 0..3 {
        let read = client.read(&file, 0, u64::MAX).await.expect("read");
        content::check("a", 0, &read);
        let reader = client.clone();
        let path = file.clone();
        // The node is killed in the middle of reads that never end.
        let reading = tokio::spawn(async move {
            for offset in 0..2000 {
                let offset = offset * 479 % 990_000;
                let read = reader.read(&path, offset, 9000).await.expect("read");
                content::check("a", offset, &read);
            }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let restarted = tokio::task::spawn_blocking(move || {
            node.kill();
            std::thread::sleep(Duration::from_millis(100));
            node.restart();
            node
        });
        node = restarted.await.expect("restart");
        reading.await.expect("the reads go on");
        assert_eq!(client.stat("a").await.expect("stat"), file, "round {round}: the same version");
    }
    drop(client);
    node.stop();
}

#[tokio::test]
async fn a_node_that_stays_away_is_an_error_before_the_deadline_is_long_gone() {
    let scratch = Scratch::new();
    scratch.file("a", 1000);
    let mut node = Node::serve(scratch.root());
    let config = ClientConfig { deadline: Duration::from_millis(700), ..ClientConfig::new() };
    let client = node.client_with(config).await;
    let file = client.stat("a").await.expect("stat");
    node.kill();
    let start = Instant::now();
    let error = client.read(&file, 0, 10).await.expect_err("no node is there");
    assert!(start.elapsed() < HANG_GUARD);
    assert!(!error.to_string().is_empty());
}

#[test]
fn a_client_that_asked_and_said_goodbye_but_does_not_read_costs_no_processor() {
    let scratch = Scratch::new();
    scratch.file("a", 16 * MIB);
    let options = NodeOptions::new(scratch.root()).set("memory", "64MiB");
    let node = options.set("block_size", "1MiB").start();
    let mut peer = node.peer();
    let entry = peer.stat("a").expect("stat");
    ask_for_blocks(&mut peer, &entry, 16);
    peer.stream.shutdown(std::net::Shutdown::Write).expect("shut the sending side");
    wait_until("all are in flight", || node.counter("miss_count") == 16);
    std::thread::sleep(Duration::from_millis(300));
    let (before, start) = (node.cpu_time(), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let (used, passed) = (node.cpu_time() - before, start.elapsed());
    println!("blocked: {used:?} of processor time in {passed:?}");
    assert!(used * 10 <= passed, "{used:?} in {passed:?} is more than 10 % of a core");
    for _ in 0..16 {
        let reply = peer.receive();
        let offset = (reply.header.request_id - 1000) * MIB as u64;
        content::check("a", offset, &reply.into_bytes(&entry, offset, MIB as u32).expect("bytes"));
    }
    assert_eq!(peer.read_to_end(), b"", "and then the end");
    node.stop();
}

#[test]
fn a_shard_that_loses_its_processor_for_a_moment_goes_on() {
    let scratch = Scratch::new();
    scratch.file("a", BLOCK as usize);
    let stall = Preload::stall();
    let node = NodeOptions::new(scratch.root()).environment(stall.environment()).start();
    let mut peer = node.peer();
    let entry = peer.stat("a").expect("a file");
    // It sleeps between any two of these, and every hundredth time or so it is stopped as it wakes up.
    for _ in 0..1000 {
        std::thread::sleep(Duration::from_millis(1));
        let read = peer.read(&entry, 0, 100).expect("bytes");
        content::check("a", 0, &read);
    }
    assert!(node.counter("sleep_count") > 500);
    node.stop();
}

#[tokio::test]
async fn an_idle_node_uses_no_processor() {
    let scratch = Scratch::new();
    scratch.file("a", 40 * BLOCK as usize);
    let node = NodeOptions::new(scratch.root()).set("shards", 2).start();
    let client = node.client().await;
    let near = ClientConfig { deadline: HANG_GUARD, ..ClientConfig::new() };
    let near = node.client_with(near).await;
    let file = client.stat("a").await.expect("stat");
    for client in [&client, &near].repeat(10) {
        let read = client.read(&file, 0, u64::MAX).await.expect("read");
        content::check("a", 0, &read);
    }
    assert!(node.counter("leased_bytes") > 0);
    // The connections stay open, and the leases are held.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (before, start) = (node.cpu_time(), Instant::now());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (used, passed) = (node.cpu_time() - before, start.elapsed());
    println!("idle: {used:?} of processor time in {passed:?}");
    assert!(used * 100 <= passed, "{used:?} in {passed:?} is more than 1 % of a core");
    let read = client.read(&file, 5, 10).await.expect("read");
    content::check("a", 5, &read);
    drop((client, near));
    node.stop();
}
