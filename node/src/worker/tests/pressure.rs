//! Clients that ask for much and take little.

use super::*;

/// Makes a request for one byte of each of these blocks.
fn bytes_of_blocks(blocks: std::ops::Range<u32>, id: u64) -> Vec<u8> {
    let range = |block: u32| Range {
        file: FILE,
        version: VERSION_ONE,
        offset: u64::from(block * BLOCK),
        length: 1,
    };
    encoded(Op::ReadMany, id, 0, &ReadManyRequest { ranges: blocks.map(range).collect() })
}

/// Makes a request for a whole block.
fn whole(block: u32) -> Vec<u8> {
    let range =
        Range { file: FILE, version: VERSION_ONE, offset: u64::from(block * BLOCK), length: BLOCK };
    encoded(Op::Read, u64::from(block) * 1000, 0, &range)
}

/// Makes a shard with room for `room` blocks, that has `cached` of a file of 1000, and places for
/// clients.
fn node(room: u32, cached: u32) -> Node {
    let mut node = Node::new(1, room * 16, 64);
    node.workers[0].limits.connections_max = 100;
    node.workers[0].limits.requests_in_flight_max = 256;
    let record = FileRecord {
        path: "f".into(),
        version: 1,
        length: 1000 * u64::from(BLOCK),
        is_read_in_parts: false,
        is_stored: true,
    };
    node.shared.files.note(FILE, record);
    let token = node.workers[0].accept_far(0).unwrap();
    for block in 0..cached {
        node.receive(0, 0, token, &read(block, 0, 0));
        node.end_fills(0, |_| Ok(()));
    }
    node.event(0, 0, Event::Closed { token });
    node.sent.clear();
    node
}

fn closed(node: &Node) -> Vec<Token> {
    let closes = node.actions.iter().filter_map(|(_, action)| match action {
        Action::Close(token) => Some(*token),
        _ => None,
    });
    closes.collect()
}

#[test]
fn one_client_that_reads_nothing_leaves_room_for_the_others() {
    let mut node = node(64, 64);
    let greedy = node.workers[0].accept_far(0).unwrap();
    node.deaf.push(greedy);
    // The first send gets stuck; a byte of every block follows.
    node.receive(0, 0, greedy, &whole(0));
    node.receive(0, 0, greedy, &bytes_of_blocks(0..64, 9));
    let held = node.workers[0].cache.in_use_bytes();
    assert!(held <= 8 * u64::from(BLOCK), "it holds {held}");
    let polite = node.workers[0].accept_far(0).unwrap();
    for block in 100..150 {
        node.receive(0, 0, polite, &read(block, 1, 0));
        assert_eq!(node.end_fills(0, |_| Ok(())), 1);
        let replies = node.replies();
        assert_eq!(replies.iter().map(|it| it.2).collect::<Vec<_>>(), [Status::Ok]);
    }
    // Once it reads, it gets every range of its batch, once.
    node.begin_to_read(0, 0, greedy);
    node.end_all_fills(0);
    let mut parts: Vec<u16> = Vec::new();
    for (_, _, bytes) in &node.sent {
        let mut rest = &bytes[..];
        while let Some(head) = rest.first_chunk::<HEADER_SIZE>() {
            let header = Header::decode(head).unwrap();
            if header.op == Op::ReadMany as u8 {
                assert_eq!((header.status(), header.payload_length), (Status::Ok, 1));
                parts.push(header.part);
            }
            rest =
                &rest[HEADER_SIZE + header.body_length as usize + header.payload_length as usize..];
        }
    }
    parts.sort_unstable();
    assert_eq!(parts, (0..64).collect::<Vec<u16>>());
    assert_eq!(node.workers[0].cache.in_use_bytes(), 0);
}

#[test]
fn where_many_read_nothing_small_reads_are_copied_and_the_slowest_are_closed() {
    let mut node = node(64, 64);
    let greedy: Vec<Token> = (0..40).map(|_| node.workers[0].accept_far(0).unwrap()).collect();
    node.deaf.clone_from(&greedy);
    for (index, token) in greedy.iter().enumerate() {
        node.receive(0, 0, *token, &whole(index as u32));
        // It is with the kernel, and stays there.
        node.unread(*token);
        node.receive(0, 0, *token, &whole(index as u32 + 20));
    }
    let held = node.workers[0].cache.in_use_bytes();
    assert!(held <= 26 * u64::from(BLOCK), "they hold {held}");
    // Others are served meanwhile: small hits by copies, misses with what is left.
    let polite = node.workers[0].accept_far(0).unwrap();
    for block in [63, 200, 201] {
        node.receive(0, 0, polite, &read(block, 1, 0));
        node.end_fills(0, |_| Ok(()));
    }
    let statuses: Vec<Status> = node.replies().iter().map(|reply| reply.2).collect();
    assert_eq!(statuses, [Status::Ok; 3]);
    assert!(node.counter("copied_bytes") >= 5000);
    assert_eq!(node.workers[0].copied, 0);
    // One of them takes what it is sent, slowly: it is not the first to go.
    node.event(900, 0, Event::SentSome { token: greedy[0], count: 50_000 });
    node.workers[0].limits.send_timeout_ms = 60_000;
    node.event(1_000, 0, Event::Tick);
    let gone = closed(&node);
    assert!(!gone.is_empty() && gone.len() < greedy.len(), "{}", gone.len());
    assert!(!gone.contains(&greedy[0]));
    assert_eq!(node.counter("slow_closed_count"), gone.len() as u64);
}

#[test]
fn a_byte_now_and_then_is_no_progress() {
    let mut node = node(64, 8);
    node.workers[0].limits.send_timeout_ms = 1_000;
    let tokens = [0, 1].map(|_| node.workers[0].accept_far(0).unwrap());
    node.deaf.extend(tokens);
    for token in tokens {
        for block in 0..8 {
            node.receive(0, 0, token, &whole(block));
        }
        node.unread(token);
    }
    for now in [300, 600, 900, 1_200] {
        node.event(now, 0, Event::SentSome { token: tokens[0], count: 1 });
        node.event(now, 0, Event::SentSome { token: tokens[1], count: 6_000 });
        node.event(now, 0, Event::Tick);
    }
    assert_eq!(closed(&node), [tokens[0]]);
}

#[test]
fn what_other_shards_hold_for_a_client_counts_before_they_answer() {
    let mut node = Node::new(2, 2 * 64 * 16, 64);
    let record = FileRecord {
        path: "f".into(),
        version: 1,
        length: 1000 * u64::from(BLOCK),
        is_read_in_parts: false,
        is_stored: true,
    };
    node.shared.files.note(FILE, record);
    for worker in &mut node.workers {
        worker.limits.requests_in_flight_max = 256;
    }
    let owner = |block: u32| placement::shard_of(placement::block_hash(FILE, block.into()), 2);
    let owned: Vec<u32> = (0..500).filter(|block| owner(*block) == 1).take(60).collect();
    let reader = node.workers[1].accept_far(0).unwrap();
    for block in &owned {
        node.receive(0, 1, reader, &read(*block, 0, 0));
        node.end_fills(0, |_| Ok(()));
    }
    node.event(0, 1, Event::Closed { token: reader });
    node.sent.clear();
    // The request is for a byte of each, and goes to the shard that owns none of them.
    let greedy = node.workers[0].accept_far(0).unwrap();
    node.deaf.push(greedy);
    let frames: Vec<u8> = owned
        .iter()
        .flat_map(|block| {
            let offset = u64::from(block * BLOCK);
            let range = Range { file: FILE, version: VERSION_ONE, offset, length: 1 };
            encoded(Op::Read, u64::from(*block) * 1000, 0, &range)
        })
        .collect();
    node.receive(0, 0, greedy, &frames);
    let held = node.workers[1].cache.in_use_bytes();
    let share = node.workers[0].limits.bytes_in_flight_max;
    assert!(held > 0 && held <= share, "it holds {held} of another shard, with a share of {share}");
    // Once it reads, it gets all of them.
    node.begin_to_read(0, 0, greedy);
    assert_eq!(node.workers[1].cache.in_use_bytes(), 0);
    let count: usize = node.replies().iter().filter(|reply| reply.2 == Status::Ok).count();
    assert_eq!(count, owned.len());
}

#[test]
fn a_closed_connection_does_not_go_on_with_a_batch_that_waited() {
    let mut node = node(64, 64);
    let greedy = node.workers[0].accept_far(0).unwrap();
    node.deaf.push(greedy);
    node.receive(0, 0, greedy, &whole(0));
    let batch = node.unread(greedy);
    node.receive(0, 0, greedy, &bytes_of_blocks(0..64, 9));
    node.event(0, 0, Event::ReceiveEnded { token: greedy, end: ReceiveEnd::Reset });
    assert_eq!(closed(&node), [greedy]);
    node.actions.clear();
    // The place may belong to another connection before these would be done.
    node.event(0, 0, Event::Released { token: greedy, batch });
    assert!(node.actions.is_empty(), "{:?}", node.actions);
}
