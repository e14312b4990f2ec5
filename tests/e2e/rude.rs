//! Clients that stop reading, trickle, or die. They hurt themselves, in bounded ways, and no other
//! client.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use millrace_proto::message::{Entry, StatRequest};
use millrace_proto::{Op, Status};
use millrace_tests::peer::{empty_request, range, request};
use millrace_tests::{BLOCK, HANG_GUARD, Node, NodeOptions, Peer, Scratch, content, wait_until};

const MIB: usize = 1 << 20;

/// Sends reads of `count` whole blocks of a file, over and over, in one go; reads nothing.
fn ask_for_blocks(peer: &mut Peer, entry: &Entry, count: u64) {
    let block = u64::from(peer.block_size);
    let block_count = entry.length / block;
    let mut bytes = Vec::new();
    for index in 0..count {
        let range = range(entry, index % block_count * block, peer.block_size);
        bytes.extend_from_slice(&request(Op::Read, 1000 + index, &range));
    }
    peer.send_raw(&bytes);
}

/// Takes the replies to `ask_for_blocks`, in any order, and checks each.
fn take_blocks(peer: &mut Peer, entry: &Entry, count: u64) {
    let block = u64::from(peer.block_size);
    let block_count = entry.length / block;
    let mut missing: std::collections::BTreeSet<u64> = (1000..1000 + count).collect();
    while !missing.is_empty() {
        let reply = peer.receive();
        assert!(missing.remove(&reply.header.request_id), "one reply to each");
        let offset = (reply.header.request_id - 1000) % block_count * block;
        let read = reply.into_bytes(entry, offset, peer.block_size).expect("bytes");
        assert_eq!(read.len(), peer.block_size as usize);
        content::check(&entry.name, offset, &read);
    }
}

/// Reads whole blocks of a file one after the other, asking again while the node is busy.
fn scan(peer: &mut Peer, path: &str) {
    let entry = peer.stat(path).expect("stat");
    for offset in (0..entry.length).step_by(peer.block_size as usize) {
        let start = Instant::now();
        let read = loop {
            match peer.read(&entry, offset, peer.block_size) {
                Err(Status::Busy) if start.elapsed() < HANG_GUARD => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => break other.expect("read"),
            }
        };
        content::check(path, offset, &read);
    }
}

fn large_node(scratch: &Scratch) -> NodeOptions {
    NodeOptions::new(scratch.root()).set("memory", "32MiB").set("block_size", "1MiB")
}

#[test]
fn a_client_that_stops_reading_pins_little_and_is_cut_off() {
    let scratch = Scratch::new();
    scratch.file("pinned", 16 * MIB);
    scratch.file("other", 64 * MIB);
    let options = large_node(&scratch).set("bytes_in_flight_max", "8MiB");
    let mut node = options.set("send_timeout_ms", 1500).start();
    let before = node.memory();
    let mut rude = node.peer().with_block_size(MIB as u32);
    let entry = rude.stat("pinned").expect("stat");
    ask_for_blocks(&mut rude, &entry, 500);
    let mut other = node.peer().with_block_size(MIB as u32);
    // This is more than all memory: blocks that nothing holds make room.
    scan(&mut other, "other");
    let grown = node.memory().resident.saturating_sub(before.resident);
    assert!(grown < 64 * MIB as u64, "{grown} bytes more than at the start");
    wait_until("the rude client is cut off", || other.counter("connection_count") == 1);
    let rest = rude.read_to_end();
    assert!(rest.len() < 64 * MIB, "{} bytes were sent to a client that did not read", rest.len());
    scan(&mut other, "pinned");
    assert!(node.is_running());
    drop(other);
    node.stop();
}

#[test]
fn a_client_that_asks_on_but_never_reads_is_cut_off_too() {
    let scratch = Scratch::new();
    scratch.file("a", 16 * MIB);
    let node = large_node(&scratch).set("send_timeout_ms", 500).start();
    let mut rude = node.peer().with_block_size(MIB as u32);
    let entry = rude.stat("a").expect("stat");
    ask_for_blocks(&mut rude, &entry, 20);
    let mut other = node.peer();
    let start = Instant::now();
    while other.counter("connection_count") > 1 {
        // Requests that trickle in do not show that replies are taken. The write fails once the node has
        // hung up.
        let _ = rude.stream.write_all(&empty_request(Op::Ping, 5));
        std::thread::sleep(Duration::from_millis(100));
        assert!(start.elapsed() < Duration::from_secs(15), "the rude client is never cut off");
    }
    drop((rude, other));
    node.stop();
}

#[test]
fn a_slow_client_that_reads_steadily_is_not_cut_off() {
    let scratch = Scratch::new();
    scratch.file("a", 16 * MIB);
    let node = large_node(&scratch).set("send_timeout_ms", 500).start();
    let mut slow = node.peer().with_block_size(MIB as u32);
    rustix::net::sockopt::set_socket_recv_buffer_size(&slow.stream, 256 << 10).expect("SO_RCVBUF");
    let entry = slow.stat("a").expect("stat");
    assert_eq!(slow.load("a"), Status::Ok);
    ask_for_blocks(&mut slow, &entry, 16);
    let mut bytes = vec![0; 256 << 10];
    let mut total = 0;
    while total < 16 * MIB {
        std::thread::sleep(Duration::from_millis(40));
        let count = slow.stream.read(&mut bytes).expect("the connection lives");
        assert!(count > 0, "closed after {total} bytes, though the client took some every 40 ms");
        total += count;
    }
    drop(slow);
    node.stop();
}

/// Shows that what is sent by reference stays pinned until the client has it, although the node has sent
/// it.
#[test]
fn a_client_that_leaves_replies_in_the_kernel_is_cut_off_if_they_pin_memory() {
    let scratch = Scratch::new();
    scratch.file("a", MIB);
    let options = large_node(&scratch).set("send_timeout_ms", 500);
    let node = options.set("zero_copy", "always").start();
    let mut rude = node.peer().with_block_size(MIB as u32);
    rustix::net::sockopt::set_socket_recv_buffer_size(&rude.stream, 64 << 10).expect("SO_RCVBUF");
    let entry = rude.stat("a").expect("stat");
    assert_eq!(rude.load("a"), Status::Ok);
    ask_for_blocks(&mut rude, &entry, 1);
    let mut other = node.peer();
    wait_until("the kernel ends it", || other.counter("connection_count") == 1);
    drop((rude, other));
    node.stop();
}

#[test]
fn a_slow_reader_gets_right_bytes_though_all_around_is_evicted() {
    let scratch = Scratch::new();
    // This is less than the share of replies, on each shard also if all blocks are there. The slow
    // reader keeps within the rules, and is not closed for the room that the other client lacks.
    scratch.file("held", 6 * MIB);
    scratch.file("churn", 160 * MIB);
    // Loopback copies what is sent by reference as it leaves. Only the tests of the ring show that the
    // node waits for late reads by a network card.
    for (shards, zero_copy) in [(1, "never"), (2, "never"), (1, "always"), (2, "always")] {
        let options = large_node(&scratch).set("shards", shards).set("zero_copy", zero_copy);
        let options = options.set("memory", "64MiB").set("send_timeout_ms", 120_000);
        let node = options.start();
        let mut slow = node.peer().with_block_size(MIB as u32);
        let entry = slow.stat("held").expect("stat");
        ask_for_blocks(&mut slow, &entry, 6);
        let mut other = node.peer().with_block_size(MIB as u32);
        wait_until("the blocks are there", || other.counter("fill_count") >= 6);
        scan(&mut other, "churn");
        // They are also freed by name: what is being sent stays whole.
        assert_eq!(
            node.administrator().ask(Op::Free, &StatRequest { path: "held".to_owned() }).status(),
            Status::Ok
        );
        scan(&mut other, "churn");
        take_blocks(&mut slow, &entry, 6);
        assert!(other.counter("evicted_count") >= 100, "there was pressure");
        drop((slow, other));
        node.stop();
    }
}

#[test]
fn a_client_that_dies_in_the_middle_leaves_nothing_behind() {
    let scratch = Scratch::new();
    scratch.file("a", 16 * MIB);
    scratch.file("other", 64 * MIB);
    for (shards, zero_copy) in [(1, "never"), (2, "never"), (1, "always"), (2, "always")] {
        let options = large_node(&scratch).set("shards", shards);
        let mut node = options.set("zero_copy", zero_copy).start();
        let mut other = node.peer().with_block_size(MIB as u32);
        let entry = other.stat("a").expect("stat");
        for round in 0..20 {
            let mut peer = node.peer().with_block_size(MIB as u32);
            ask_for_blocks(&mut peer, &entry, 20);
            if round % 2 == 0 {
                // The client stops in the middle of a reply. While the replies before it still hold the
                // memory, this one may be a `Busy`, which is short.
                let mut some = vec![0; 100_000];
                assert!(peer.stream.read(&mut some).expect("some bytes") > 0, "an answer");
            }
            if round % 3 == 0 {
                let frame = request(Op::Stat, 1, &StatRequest { path: "a".to_owned() });
                peer.send_raw(&frame[..45]);
            }
            if round % 4 < 2 { peer.reset() } else { drop(peer) }
        }
        wait_until("the dead are gone", || other.counter("connection_count") == 1);
        // Nothing stays pinned: twice all memory goes through the cache, and then is free.
        scan(&mut other, "other");
        assert_eq!(
            node.administrator().ask(Op::Free, &StatRequest { path: "a".to_owned() }).status(),
            Status::Ok
        );
        assert_eq!(
            node.administrator().ask(Op::Free, &StatRequest { path: "other".to_owned() }).status(),
            Status::Ok
        );
        wait_until("all memory is free", || {
            other.counter("used_bytes") == 0 && other.counter("block_count") == 0
        });
        assert!(node.is_running());
        drop(other);
        node.stop();
    }
}

#[test]
fn a_client_that_shuts_its_sending_side_still_gets_its_replies() {
    let scratch = Scratch::new();
    scratch.file("a", 4 * MIB);
    let node = Node::serve(scratch.root());
    let mut peer = node.peer();
    let entry = peer.stat("a").expect("stat");
    // These are cold, and more than may be in flight at once.
    ask_for_blocks(&mut peer, &entry, 600);
    peer.stream.shutdown(std::net::Shutdown::Write).expect("shut the sending side");
    take_blocks(&mut peer, &entry, 600);
    assert_eq!(peer.read_to_end(), b"", "and then the end");
    assert_eq!(entry.length / u64::from(BLOCK), 64);
    node.stop();
}
