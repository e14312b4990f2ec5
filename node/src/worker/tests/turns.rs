//! Fills are shared out between clients.

use super::*;

/// Makes a shard whose file has a thousand blocks, with room for `room` of them.
fn node(room: u32) -> Node {
    let mut node = Node::new(1, room * 16, 16);
    node.workers[0].limits.requests_in_flight_max = 256;
    node.workers[0].limits.bytes_in_flight_max = 1 << 30;
    let record = FileRecord {
        path: "f".into(),
        version: 1,
        length: 1000 * u64::from(BLOCK),
        is_read_in_parts: false,
        is_stored: true,
    };
    node.shared.files.note(FILE, record);
    node
}

#[test]
fn a_client_that_asks_for_much_leaves_turns_to_the_others() {
    let mut node = node(64);
    let greedy = node.workers[0].accept_far(0).unwrap();
    for block in 0..200 {
        node.receive(0, 0, greedy, &read(block, 0, 0));
    }
    let polite = node.workers[0].accept_far(0).unwrap();
    for round in 0..20 {
        node.receive(0, 0, polite, &read(500 + round, 0, 0));
        // It is among the next fills, not behind two hundred.
        assert!(node.end_fills(0, |_| Ok(())) <= 16);
        let replies = node.replies();
        let mine = replies.iter().filter(|reply| reply.0 >= 500_000).collect::<Vec<_>>();
        assert_eq!(mine, [&(u64::from(500 + round) * 1000, 0, Status::Ok, 5000)]);
        assert!(replies.iter().all(|reply| reply.2 == Status::Ok), "no client gets Busy");
    }
    node.end_all_fills(0);
    assert_eq!(node.counter("fill_count"), 220);
    assert_eq!(node.workers[0].turns.waiting_count(), 0);
}

#[test]
fn misses_of_a_client_that_is_gone_are_not_read() {
    let mut node = node(64);
    let gone = node.workers[0].accept_far(0).unwrap();
    for block in 0..200 {
        node.receive(0, 0, gone, &read(block, 0, if block % 2 == 0 { 50 } else { 0 }));
    }
    node.event(0, 0, Event::Closed { token: gone });
    let count = node.end_all_fills(0);
    assert!(count <= 16, "{count} that had begun");
    assert_eq!((node.workers[0].turns.waiting_count(), node.workers[0].deadline_count), (0, 0));
}

#[test]
fn deadlines_of_misses_that_wait_are_kept() {
    let mut node = node(64);
    let token = node.workers[0].accept_far(0).unwrap();
    for block in 0..100 {
        node.receive(0, 0, token, &read(block, 0, 50));
    }
    node.event(50, 0, Event::Tick);
    let replies = node.replies();
    assert_eq!(replies.len(), 100);
    assert!(replies.iter().all(|reply| reply.2 == Status::DeadlineExceeded));
    assert_eq!(node.workers[0].deadline_count, 0);
}
