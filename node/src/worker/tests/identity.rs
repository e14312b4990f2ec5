//! Checksums that cover the identity of their block, for clients that take them.

use millrace_proto::message::HelloRequest;
use millrace_proto::{VERSION, feature};

use super::*;

/// Says `Hello` with these features on a new connection of the shard.
fn greet(node: &mut Node, shard: u32, features: u64) -> Token {
    let token = node.workers[shard as usize].accept_far(0).unwrap();
    let hello = HelloRequest {
        client: String::new(),
        version_min: VERSION,
        version_max: VERSION,
        features,
    };
    node.receive(0, shard, token, &encoded(Op::Hello, 1, 0, &hello));
    node.sent.clear();
    token
}

fn flags(node: &Node) -> Vec<bool> {
    let headers = node.sent.iter().map(|(_, _, bytes)| bytes.first_chunk().unwrap());
    headers.map(|head| Header::decode(head).unwrap().covers_identity()).collect()
}

#[test]
fn the_tag_is_in_what_is_sent_wherever_the_block_lies() {
    let mut node = Node::new(2, 1024, 16);
    for (features, covers) in [(feature::ALL, true), (feature::ALL & !feature::IDENTITY, false)] {
        for shard in 0..2 {
            let token = greet(&mut node, shard, features);
            for block in 0..4 {
                node.receive(0, shard, token, &read(block, 0, 0));
                node.end_fills(0, |_| Ok(()));
            }
            assert_eq!(flags(&node), [covers; 4]);
            // This looks at every checksum.
            assert_eq!(node.replies().len(), 4);
        }
    }
}
