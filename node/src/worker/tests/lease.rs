//! Leases: what is pinned, for how long, and for which client.

use millrace_proto::message::{ArchivedLeaseReply, Extent};

use super::*;

fn ranges(blocks: std::ops::Range<u32>) -> ReadManyRequest {
    let range = |block: u32| Range {
        file: FILE,
        version: VERSION_ONE,
        offset: u64::from(block * BLOCK) + 7,
        length: 1,
    };
    ReadManyRequest { ranges: blocks.map(range).collect() }
}

fn lease(blocks: std::ops::Range<u32>, id: u64) -> Vec<u8> {
    encoded(Op::Lease, id, 0, &ranges(blocks))
}

/// Returns the status of each reply so far, with the extents of those that are leases.
fn answers(node: &mut Node) -> Vec<(Status, Vec<Extent>)> {
    let mut answers = Vec::new();
    for (_, _, bytes) in std::mem::take(&mut node.sent) {
        let mut rest = &bytes[..];
        while let Some(head) = rest.first_chunk::<HEADER_SIZE>() {
            let header = Header::decode(head).unwrap();
            assert_eq!(header.payload_length, 0, "the bytes stay where they are");
            let end = HEADER_SIZE + header.body_length as usize;
            let body = &rest[HEADER_SIZE..end];
            let mut extents = Vec::new();
            if header.status() == Status::Ok && header.op == Op::Lease as u8 {
                let reply = frame::body::<ArchivedLeaseReply>(body).unwrap();
                assert_eq!(reply.lease_ms.to_native(), 1_000);
                extents = reply.extents.iter().map(Extent::from).collect();
                let total: u32 = extents.iter().map(|extent| extent.length).sum();
                assert_eq!(total, BLOCK);
            }
            answers.push((header.status(), extents));
            rest = &rest[end..];
        }
    }
    answers
}

fn statuses(node: &mut Node) -> Vec<Status> {
    answers(node).into_iter().map(|(status, _)| status).collect()
}

/// Evicts all that may leave. True if that was everything.
fn is_emptied(node: &mut Node) -> bool {
    let cache = &mut node.workers[0].cache;
    let blank = cache.allocate(cache.capacity_bytes() as u32);
    blank.map(|blank| cache.release_blank(blank)).is_some()
}

/// Makes a shard with room for four blocks, a local client and one far away.
fn node() -> (Node, Token, Token) {
    let mut node = Node::new(1, 64, 8);
    let local = node.workers[0].accept_local(0).unwrap();
    let other = node.workers[0].accept_far(0).unwrap();
    (node, local, other)
}

#[test]
fn a_leased_block_stays_where_it_is_until_the_lease_runs_out() {
    let (mut node, local, _) = node();
    node.receive(0, 0, local, &lease(0..1, 1));
    node.end_all_fills(0);
    let first = answers(&mut node);
    assert_eq!(first[0].0, Status::Ok);
    assert!(!is_emptied(&mut node));
    // Asked for again just before the end, it is at the same place, and its time begins again.
    node.receive(990, 0, local, &lease(0..1, 2));
    assert_eq!(answers(&mut node), first);
    // It ends later than the reply says, never earlier.
    for now in [1_200, 1_990] {
        node.event(now, 0, Event::Tick);
        assert!(!is_emptied(&mut node), "{now}");
    }
    assert_eq!(node.workers[0].wakes_at(1_990), Some(990 + 1_000 + 50));
    node.event(2_100, 0, Event::Tick);
    assert!(is_emptied(&mut node));
    assert_eq!(node.counter("lease_expired_count"), 1);
    assert_eq!(node.workers[0].wakes_at(2_100), None);
    node.receive(2_200, 0, local, &lease(0..1, 3));
    assert_eq!(node.end_all_fills(2_200), 1, "it had left");
}

#[test]
fn leases_hold_no_more_than_their_share_of_the_memory() {
    let (mut node, local, _) = node();
    // Two of four blocks may be leased.
    node.receive(0, 0, local, &lease(0..2, 1));
    node.end_all_fills(0);
    node.receive(0, 0, local, &lease(2..3, 2));
    node.end_all_fills(0);
    assert_eq!(statuses(&mut node), [Status::Ok, Status::Ok, Status::Busy]);
    assert!(!is_emptied(&mut node));
    // One given back makes room for another; one that is not leased is passed over.
    node.receive(2, 0, local, &encoded(Op::Release, 3, 0, &ranges(1..3)));
    node.receive(2, 0, local, &lease(2..3, 4));
    node.end_all_fills(2);
    assert_eq!(statuses(&mut node), [Status::Ok, Status::Ok]);
    assert_eq!(node.workers[0].leases.bytes(), 2 * u64::from(BLOCK));
    node.receive(3, 0, local, &encoded(Op::Release, 5, 0, &ranges(0..3)));
    assert!(is_emptied(&mut node));
}

#[test]
fn leases_end_with_the_connection_if_the_client_ends_it() {
    let (mut node, local, _) = node();
    node.receive(0, 0, local, &lease(0..2, 1));
    node.end_all_fills(0);
    assert_eq!(statuses(&mut node), [Status::Ok, Status::Ok]);
    node.event(1, 0, Event::ReceiveEnded { token: local, end: ReceiveEnd::Finished });
    node.event(1, 0, Event::Closed { token: local });
    assert_eq!(node.workers[0].leases.bytes(), 0);
    assert_eq!(node.counter("lease_expired_count"), 0);
}

#[test]
fn leases_end_when_their_client_sends_no_more_whatever_it_still_waits_for() {
    let (mut node, local, _) = node();
    node.receive(0, 0, local, &lease(0..2, 1));
    node.end_all_fills(0);
    assert_eq!(statuses(&mut node), [Status::Ok, Status::Ok]);
    // This one waits for the source.
    node.receive(1, 0, local, &lease(3..4, 2));
    node.event(2, 0, Event::ReceiveEnded { token: local, end: ReceiveEnd::Finished });
    assert_eq!(node.workers[0].leases.bytes(), 0);
    // What is leased now ends with the connection.
    node.end_all_fills(3);
    node.event(4, 0, Event::Closed { token: local });
    assert_eq!(node.workers[0].leases.bytes(), 0);
    assert!(is_emptied(&mut node));
}

#[test]
fn a_block_counts_once_however_many_clients_lease_it() {
    let (mut node, local, _) = node();
    let others = [(); 2].map(|()| node.workers[0].accept_local(0).unwrap());
    for client in [&[local][..], &others[..]].concat() {
        node.receive(0, 0, client, &lease(0..2, 1));
        node.end_all_fills(0);
    }
    assert_eq!(statuses(&mut node), [Status::Ok; 6]);
    assert_eq!(node.workers[0].leases.bytes(), 2 * u64::from(BLOCK));
    node.receive(1, 0, local, &lease(2..3, 2));
    node.end_all_fills(1);
    assert_eq!(statuses(&mut node), [Status::Busy]);
    // It is held until the last of them gives it back.
    for client in others {
        node.receive(2, 0, client, &encoded(Op::Release, 3, 0, &ranges(0..2)));
        assert_eq!(node.workers[0].leases.bytes(), 2 * u64::from(BLOCK));
    }
    node.receive(3, 0, local, &encoded(Op::Release, 3, 0, &ranges(0..1)));
    assert_eq!(node.workers[0].leases.bytes(), u64::from(BLOCK));
}

#[test]
fn leases_outlive_a_connection_that_the_node_ends() {
    let (mut node, local, _) = node();
    node.receive(0, 0, local, &lease(0..2, 1));
    node.end_all_fills(0);
    let mut actions = Vec::new();
    node.workers[0].close(local, &mut actions);
    node.event(1, 0, Event::ReceiveEnded { token: local, end: ReceiveEnd::Finished });
    node.event(1, 0, Event::Closed { token: local });
    assert_eq!(node.workers[0].leases.bytes(), 2 * u64::from(BLOCK));
    // Another client takes the place, and the old leases do not concern it.
    let next = node.workers[0].accept_local(2).unwrap();
    assert_eq!(next.index, local.index);
    node.receive(2, 0, next, &encoded(Op::Release, 1, 0, &ranges(0..2)));
    assert_eq!(node.workers[0].leases.bytes(), 2 * u64::from(BLOCK));
    node.event(1_100, 0, Event::Tick);
    assert_eq!(node.workers[0].leases.bytes(), 0);
}

#[test]
fn leases_are_for_local_clients_of_the_block_s_own_shard() {
    let (mut node, _, other) = node();
    node.receive(0, 0, other, &lease(0..1, 1));
    assert_eq!(statuses(&mut node), [Status::InvalidArgument]);
    let mut node = Node::new(2, 128, 16);
    let local = node.workers[0].accept_local(0).unwrap();
    node.receive(0, 0, local, &lease(0..8, 1));
    node.end_all_fills(0);
    let owned =
        (0..8u64).filter(|block| placement::shard_of(placement::block_hash(FILE, *block), 2) == 0);
    let granted_or_full = statuses(&mut node);
    assert_eq!(granted_or_full.len(), 8);
    let refused = granted_or_full.iter().filter(|it| **it == Status::InvalidArgument).count();
    assert_eq!(refused, 8 - owned.count());
}

#[test]
fn a_new_version_is_leased_beside_the_old_one_which_stays_until_it_runs_out() {
    let (mut node, local, _) = node();
    node.receive(0, 0, local, &lease(0..1, 1));
    node.end_all_fills(0);
    let before = answers(&mut node);
    let record = FileRecord {
        path: "f".into(),
        version: 2,
        length: 10 * u64::from(BLOCK),
        is_read_in_parts: false,
        is_stored: true,
    };
    node.shared.files.note(FILE, record);
    let mut request = ranges(0..1);
    request.ranges[0].version = 2;
    node.receive(1, 0, local, &encoded(Op::Lease, 2, 0, &request));
    node.end_all_fills(1);
    let after = answers(&mut node);
    assert_eq!(after[0].0, Status::Ok);
    assert_ne!(after[0].1, before[0].1, "the old one is still leased");
    assert_eq!(node.workers[0].leases.bytes(), 2 * u64::from(BLOCK));
    // Giving the old version back is late, and takes nothing away.
    node.receive(2, 0, local, &encoded(Op::Release, 3, 0, &ranges(0..1)));
    assert_eq!(node.workers[0].leases.bytes(), 2 * u64::from(BLOCK));
    // The same where the block was dropped and brought in again, somewhere else.
    let key = BlockKey { file: FILE, block: 0 };
    node.workers[0].cache.remove(&key);
    node.receive(3, 0, local, &encoded(Op::Lease, 4, 0, &request));
    node.end_all_fills(3);
    assert_eq!(statuses(&mut node), [Status::Ok, Status::Busy], "two of four blocks are leased");
    node.event(1_060, 0, Event::Tick);
    assert_eq!(node.workers[0].leases.bytes(), 0);
}

#[test]
fn the_memory_goes_with_the_reply_over_unix_sockets_alone() {
    use millrace_proto::message::ArchivedAttachReply;
    let (mut node, local, other) = node();
    node.reads = false;
    for (token, is_local) in [(local, true), (other, false)] {
        let mut request = Vec::new();
        frame::encode_empty(&mut request, Header::request(Op::Attach, 1, 0));
        node.receive(0, 0, token, &request);
        let mut batch = node.unread(token);
        assert_eq!(batch.descriptor.is_some(), is_local);
        let bytes = bytes_of(&batch);
        let reply = frame::body::<ArchivedAttachReply>(&bytes[HEADER_SIZE..]).unwrap();
        assert_eq!(reply.memory_length.to_native() > 0, is_local);
        batch.clear();
        assert_eq!(batch.descriptor, None, "once");
    }
}
