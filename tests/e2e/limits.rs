//! Every limit is reached politely: the answer says so, nothing is lost, and there is room again.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use millrace_client::{Client, ClientConfig, Error};
use millrace_proto::message::StatRequest;
use millrace_proto::{Header, Op, Status, frame};
use millrace_tests::peer::{empty_request, range, request};
use millrace_tests::{BLOCK, HANG_GUARD, NodeOptions, Peer, Scratch, content, heavy, wait_until};

const BLOCK_SIZE: usize = BLOCK as usize;
const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::await_holding_lock, reason = "heavy tests run one after the other")]
async fn a_thousand_connections_are_served_at_once() {
    let _turn = heavy();
    let scratch = Scratch::new();
    scratch.file("a", 20 * BLOCK_SIZE);
    let node = NodeOptions::new(scratch.root()).set("shards", 1).start();
    let connects = (0..1000).map(|_| {
        let address = node.address().to_string();
        let patient = ClientConfig {
            deadline: HANG_GUARD,
            connect_timeout: HANG_GUARD,
            local: false,
            ..ClientConfig::new()
        };
        tokio::spawn(async move { Client::connect(address, patient).await.expect("connect") })
    });
    let connects: Vec<_> = connects.collect();
    let mut clients = Vec::new();
    for client in connects {
        clients.push(client.await.expect("a connecting task"));
    }
    // A client that waited long for a first answer tried a second connection; it keeps one.
    wait_until("each client has one connection", || node.counter("connection_count") == 1001);
    let reads = clients.iter().enumerate().map(|(index, client)| {
        let client = client.clone();
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(index as u64);
            let file = client.stat("a").await.expect("stat");
            for _ in 0..5 {
                let offset = random.u64(..file.length);
                let read = client.read(&file, offset, 30_000).await.expect("read");
                content::check("a", offset, &read);
            }
        })
    });
    let reads: Vec<_> = reads.collect();
    for read in reads {
        read.await.expect("a reading task");
    }
    assert_eq!(node.counter("fill_count"), 20);
    drop(clients);
    wait_until("all have gone", || node.counter("connection_count") == 1);
    node.stop();
}

#[test]
fn one_connection_too_many_is_told_so_and_there_is_room_when_one_leaves() {
    let scratch = Scratch::new();
    scratch.file("a", 100);
    for shards in [1, 2] {
        let options = NodeOptions::new(scratch.root()).set("shards", shards);
        let node = options.set("connections_max", 4).start();
        let mut peers: Vec<Peer> = (0..4).map(|_| node.peer()).collect();
        for peer in &mut peers {
            assert!(peer.ping());
        }
        for _ in 0..10 {
            let mut refused = node.peer();
            let reply = refused.receive();
            assert_eq!((reply.status(), reply.header.request_id), (Status::Busy, 0));
            assert!(reply.message().contains("connections_max"), "{}", reply.message());
            assert_eq!(refused.read_to_end(), b"", "and closes");
        }
        for peer in &mut peers {
            assert!(peer.ping(), "those that are connected stay so");
        }
        assert!(peers[0].counter("refused_count") >= 10);
        drop(peers.pop());
        wait_until("there is room", || {
            let mut peer = node.peer();
            // Refused once more, it answers no ping, or none that was asked for.
            let _ = peer.stream.write_all(&empty_request(Op::Ping, 1));
            peer.try_receive().is_ok_and(|reply| reply.status() == Status::Ok)
        });
        drop(peers);
        node.stop();
    }
}

#[tokio::test]
async fn a_client_waits_for_its_turn_at_a_full_node() {
    let scratch = Scratch::new();
    scratch.file("a", 100);
    let node = NodeOptions::new(scratch.root()).set("connections_max", 2).start();
    let (mut first, mut second) = (node.peer(), node.peer());
    assert!(first.ping() && second.ping());
    let config = ClientConfig { deadline: Duration::from_millis(300), ..ClientConfig::new() };
    let refused = Client::connect(node.address().to_string(), config).await;
    match refused {
        Err(Error::Status { status: Status::Busy, .. } | Error::DeadlineExceeded) => (),
        other => panic!("a full node is busy, and no more than that: {other:?}"),
    }
    let address = node.address().to_string();
    let patient = ClientConfig { deadline: HANG_GUARD, ..ClientConfig::new() };
    let waiting = tokio::spawn(Client::connect(address, patient));
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(first);
    let client = waiting.await.expect("a connecting task").expect("connect when there is room");
    let file = client.stat("a").await.expect("stat");
    content::check("a", 0, &client.read(&file, 0, 100).await.expect("read"));
    drop((second, client));
    node.stop();
}

/// Returns the options of a node whose source has one reader and a queue of one.
fn narrow(scratch: &Scratch) -> NodeOptions {
    NodeOptions::new(scratch.root()).set("fill_concurrency", 1).set("fill_queue_max", 1)
}

#[tokio::test]
async fn reads_wait_for_their_turn_at_a_full_fill_queue_and_none_is_refused() {
    let scratch = Scratch::new();
    scratch.file("a", 128 * BLOCK_SIZE);
    let node = narrow(&scratch).start();
    let mut peer = node.peer();
    let entry = peer.stat("a").expect("stat");
    let frames: Vec<u8> = (0..128)
        .flat_map(|id| request(Op::Read, id + 1, &range(&entry, id * u64::from(BLOCK), BLOCK)))
        .collect();
    peer.send_raw(&frames);
    for _ in 0..128 {
        let reply = peer.receive();
        assert_eq!(reply.status(), Status::Ok, "{}", reply.message());
    }
    assert_eq!((peer.counter("busy_count"), peer.counter("fill_count")), (0, 128));
    node.administrator().ask(Op::Free, &StatRequest { path: "a".to_owned() });
    let mut reads = Vec::new();
    for _ in 0..10 {
        let client = node.client().await;
        reads.push(tokio::spawn(async move {
            let file = client.stat("a").await.expect("stat");
            let read = client.read(&file, 0, u64::MAX).await.expect("read");
            assert_eq!(read.len(), 128 * BLOCK_SIZE);
            content::check("a", 0, &read);
        }));
    }
    for read in reads {
        read.await.expect("a reading task");
    }
    drop(peer);
    node.stop();
}

#[test]
fn a_full_queue_of_lookups_is_busy_and_nothing_is_lost() {
    let scratch = Scratch::new();
    scratch.file("a", 10);
    let options = NodeOptions::new(scratch.root()).set("metadata_queue_max", 1);
    let node = options.set("load_concurrency", 1).start();
    let mut peer = node.peer();
    let frames: Vec<u8> = (1..=200)
        .flat_map(|id| {
            let op = [Op::Stat, Op::Load][id as usize % 2];
            request(op, id, &StatRequest { path: "a".to_owned() })
        })
        .collect();
    peer.send_raw(&frames);
    let mut missing: BTreeSet<u64> = (1..=200).collect();
    let mut busy = 0;
    while !missing.is_empty() {
        let reply = peer.receive();
        assert!(missing.remove(&reply.header.request_id), "one reply to each");
        assert!(matches!(reply.status(), Status::Ok | Status::Busy), "{:?}", reply.status());
        busy += u64::from(reply.status() == Status::Busy);
    }
    assert!(busy > 0);
    assert!(peer.stat("a").is_ok());
    drop(peer);
    node.stop();
}

#[test]
fn a_budget_that_runs_out_is_answered_so_and_nothing_is_read_for_it() {
    let _turn = heavy();
    let scratch = Scratch::new();
    scratch.file("slow", 20 * 16 * MIB);
    let options = NodeOptions::new(scratch.root()).set("memory", "768MiB");
    let node = options.set("block_size", "16MiB").set("fill_concurrency", 1).start();
    let mut peer = node.peer().with_block_size(16 * MIB as u32);
    let entry = peer.stat("slow").expect("stat");
    let at = |index: u64| range(&entry, index * 16 * MIB as u64, 8);
    // The last one waits behind 19 reads of 16 MiB each.
    let mut frames: Vec<u8> =
        (0..19).flat_map(|index| request(Op::Read, index + 1, &at(index))).collect();
    frame::encode(&mut frames, Header::request(Op::Read, 20, 1), &at(19));
    peer.send_raw(&frames);
    let mut statuses = vec![None; 21];
    for _ in 0..20 {
        let reply = peer.receive();
        let id = reply.header.request_id as usize;
        assert_eq!(statuses[id].replace(reply.status()), None, "one reply to each");
    }
    assert_eq!(statuses[20], Some(Status::DeadlineExceeded));
    assert!(statuses[1..20].iter().all(|status| *status == Some(Status::Ok)), "{statuses:?}");
    assert_eq!(peer.counter("fill_count"), 19, "its turn never came");
    let read = peer.read(&entry, 19 * 16 * MIB as u64, 4096).expect("read");
    content::check("slow", 19 * 16 * MIB as u64, &read);
    drop(peer);
    node.stop();
}

/// Writes many requests and reads replies slowly: the node takes the requests as it can.
fn pipelined(options: NodeOptions, scratch: &Scratch, request_count: u64) {
    scratch.file("a", 40 * BLOCK_SIZE);
    let node = options.start();
    let mut peer = node.peer();
    let entry = peer.stat("a").expect("stat");
    let offset_of = |id: u64| id * 7919 % (40 * u64::from(BLOCK) - 300);
    let mut frames = Vec::new();
    for id in 1..=request_count {
        let offset = offset_of(id);
        if id.is_multiple_of(3) {
            frames.extend_from_slice(&empty_request(Op::Ping, id));
        } else {
            let room = u64::from(BLOCK) - offset % u64::from(BLOCK);
            let range = range(&entry, offset, room.min(300) as u32);
            frames.extend_from_slice(&request(Op::Read, id, &range));
        }
    }
    let mut writer = peer.stream.try_clone().expect("clone the socket");
    let writing = std::thread::spawn(move || writer.write_all(&frames).expect("send requests"));
    let mut missing: BTreeSet<u64> = (1..=request_count).collect();
    while !missing.is_empty() {
        if missing.len().is_multiple_of(500) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let reply = peer.receive();
        let id = reply.header.request_id;
        assert!(missing.remove(&id), "one reply to each");
        if id.is_multiple_of(3) {
            assert_eq!(reply.status(), Status::Ok);
        } else {
            let read = reply.into_bytes(&entry, offset_of(id), BLOCK).expect("bytes");
            content::check("a", offset_of(id), &read);
        }
    }
    writing.join().expect("the writing thread");
    assert!(peer.ping());
    drop(peer);
    node.stop();
}

#[test]
fn more_requests_than_allowed_in_flight_are_held_back_and_none_is_lost() {
    for limit in [1, 8, 256] {
        let scratch = Scratch::new();
        let options = NodeOptions::new(scratch.root()).set("requests_in_flight_max", limit);
        pipelined(options.set("shards", 2), &scratch, 20_000);
    }
}

#[test]
fn more_bytes_than_allowed_in_flight_are_held_back_and_none_is_lost() {
    let scratch = Scratch::new();
    let options = NodeOptions::new(scratch.root()).set("bytes_in_flight_max", "64KiB");
    pipelined(options, &scratch, 10_000);
}

#[tokio::test]
async fn memory_full_of_what_is_being_sent_is_busy_and_clients_wait() {
    let scratch = Scratch::new();
    scratch.file("held", 14 * MIB);
    scratch.file("a", 4 * MIB);
    let options = NodeOptions::new(scratch.root()).set("block_size", "1MiB");
    let node = options.set("bytes_in_flight_max", "64MiB").start();
    // Sockets take some megabytes by themselves; what is asked for twice is pinned for longer.
    let mut holder = node.peer().with_block_size(MIB as u32);
    let entry = holder.stat("held").expect("stat");
    assert_eq!(holder.load("held"), Status::Ok);
    let frames: Vec<u8> = (0..56)
        .flat_map(|id| request(Op::Read, id + 1, &range(&entry, id % 14 * MIB as u64, MIB as u32)))
        .collect();
    holder.send_raw(&frames);
    wait_until("all is pinned", || node.counter("fill_count") >= 14);
    let client = node.client().await;
    let reading = tokio::spawn(async move {
        let file = client.stat("a").await.expect("stat");
        let read = client.read(&file, 0, u64::MAX).await.expect("read");
        content::check("a", 0, &read);
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    tokio::task::spawn_blocking(move || {
        for _ in 0..56 {
            let reply = holder.receive();
            let offset = (reply.header.request_id - 1) % 14 * MIB as u64;
            let block_size = holder.block_size;
            match reply.into_bytes(&entry, offset, block_size) {
                Ok(read) => content::check("held", offset, &read),
                Err(status) => assert_eq!(status, Status::Busy),
            }
        }
    })
    .await
    .expect("the holder reads on");
    reading.await.expect("a reading task");
    node.stop();
}
