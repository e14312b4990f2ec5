//! However many clients ask for a block at once, the source is read once.

use millrace_proto::Op;
use millrace_tests::peer::{range, request};
use millrace_tests::{BLOCK, NodeOptions, Scratch, content};

#[tokio::test]
async fn a_hundred_clients_of_one_cold_block_cause_one_read() {
    let scratch = Scratch::new();
    scratch.file("cold", BLOCK as usize);
    let node = NodeOptions::new(scratch.root()).set("shards", 2).start();
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(node.client().await);
    }
    let file = clients[0].stat("cold").await.expect("stat");
    let reads: Vec<_> = clients
        .iter()
        .cloned()
        .map(|client| {
            let file = file.clone();
            tokio::spawn(async move { client.read(&file, 0, u64::MAX).await.expect("read") })
        })
        .collect();
    for read in reads {
        content::check("cold", 0, &read.await.expect("a reading task"));
    }
    let status = clients[0].status().await.expect("status");
    assert_eq!(status.counter("fill_count"), Some(1));
    assert_eq!(status.counter("fill_bytes"), Some(u64::from(BLOCK)));
    let served = status.counter("hit_count").zip(status.counter("miss_count"));
    assert_eq!(served.map(|(hits, misses)| hits + misses), Some(100));
    drop(clients);
    node.stop();
}

#[test]
fn one_client_that_asks_a_hundred_times_causes_one_read() {
    let scratch = Scratch::new();
    scratch.file("cold", 10_000);
    let node = NodeOptions::new(scratch.root()).start();
    let mut peer = node.peer();
    let entry = peer.stat("cold").expect("stat");
    let frames: Vec<u8> =
        (0..100).flat_map(|id| request(Op::Read, id + 1, &range(&entry, id * 100, 100))).collect();
    peer.send_raw(&frames);
    for _ in 0..100 {
        let reply = peer.receive();
        let offset = (reply.header.request_id - 1) * 100;
        let block_size = peer.block_size;
        content::check(
            "cold",
            offset,
            &reply.into_bytes(&entry, offset, block_size).expect("bytes"),
        );
    }
    assert_eq!(peer.counter("fill_count"), 1);
    drop(peer);
    node.stop();
}
