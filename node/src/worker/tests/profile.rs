//! Hits for a profiler: what a read of 4 KiB costs in instructions, without the kernel.
//!
//! `cargo test --release -p millrace-node --lib --no-run` prints the program; then, for two counts,
//! `HITS=16000 valgrind --tool=callgrind PROGRAM --ignored --exact worker::tests::profile::hits`. The
//! difference of the instructions, by that of the counts, is what one hit costs.

use super::*;

/// Reads in one receive.
const DEPTH: u64 = 16;

#[test]
#[ignore = "for a profiler"]
fn hits() {
    let count: u64 = std::env::var("HITS").map_or(16_000, |text| text.parse().unwrap());
    let mut node = Node::new(1, 1024, 64);
    for worker in &mut node.workers {
        worker.limits.requests_in_flight_max = 64;
        worker.limits.bytes_in_flight_max = 1 << 30;
        // All blocks may be held at once, so no turn ends before its reads are answered.
        let capacity = worker.cache.capacity_bytes();
        worker.shares = Shares::new(capacity, 1, BLOCK, &worker.limits);
    }
    let token = node.workers[0].accept_far(0).unwrap();
    let read = |sequence: u64| {
        let offset = (sequence % 10) * u64::from(BLOCK) + (sequence % 16) * 4096;
        let range = Range { file: FILE, version: VERSION_ONE, offset, length: 4096 };
        encoded(Op::Read, sequence + 1, 0, &range)
    };
    let receives: Vec<Vec<u8>> = (0..10)
        .map(|receive| (0..DEPTH).flat_map(|it| read(receive * DEPTH + it)).collect())
        .collect();
    let mut actions = Vec::with_capacity(64);
    let mut hits = 0;
    let mut turn = |node: &mut Node, index: u64| {
        let bytes = &receives[index as usize % receives.len()];
        let worker = &mut node.workers[0];
        worker.handle(0, Event::Received { token, bytes }, &mut actions);
        let Some(batch) = sent_at_end(worker, &mut actions) else { return };
        hits += u64::from(batch.reply_count);
        worker.handle(0, Event::Sent { token, batch, ok: true, is_last: true }, &mut actions);
        actions.clear();
    };
    turn(&mut node, 0);
    node.end_all_fills(0);
    node.sent.clear();
    for index in 0..count / DEPTH {
        turn(&mut node, index);
    }
    assert!(hits >= count, "{hits} of {count}");
}
