//! Blocks that come in by parts: what is read of the source, and that every reader gets its bytes.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::*;
use crate::cache::BlockKey;
use crate::chunks::Chunks;
use crate::mailbox::{Ensured, FillFrom, Stay};
use crate::store::FillError;

/// Blocks of 16 chunks.
const LARGE: u32 = 16 * BLOCK;
/// Length of the file: three whole blocks, and one of two chunks and a bit.
const LENGTH: u64 = 3 * LARGE as u64 + 2 * BLOCK as u64 + 5000;

/// Makes a shard with these pages that reads its file in parts, and a connection to it.
fn node(page_count: u32) -> (Node, Token) {
    let mut node = Node::with_blocks(1, page_count, 256, Proofs::default(), LARGE);
    note(&node, VERSION_ONE);
    node.workers[0].limits.bytes_in_flight_max = 64 * u64::from(LARGE);
    node.workers[0].limits.requests_in_flight_max = 64;
    let token = node.workers[0].accept_far(0).unwrap();
    (node, token)
}

fn note(node: &Node, version: u64) {
    let record = FileRecord {
        path: "f".into(),
        version,
        length: LENGTH,
        is_read_in_parts: true,
        is_stored: true,
    };
    node.shared.files.note(FILE, record);
}

/// Returns the bytes of a block, made once.
fn bytes_of_block(block: u32) -> &'static [u8] {
    static BLOCKS: [OnceLock<Vec<u8>>; 4] = [const { OnceLock::new() }; 4];
    BLOCKS[block as usize].get_or_init(|| content(block, block_length(block)))
}

fn block_length(block: u32) -> u32 {
    (LENGTH - u64::from(block) * u64::from(LARGE)).min(u64::from(LARGE)) as u32
}

/// Makes a read of some bytes of a block.
fn read_of(block: u32, offset: u32, length: u32, id: u64, budget_ms: u32) -> Vec<u8> {
    let at = u64::from(block) * u64::from(LARGE) + u64::from(offset);
    let range = Range { file: FILE, version: VERSION_ONE, offset: at, length };
    encoded(Op::Read, id, budget_ms, &range)
}

/// A reply: id, status and payload, checked against its checksums by the bytes that were asked for.
type Reply = (u64, Status, Vec<u8>);

fn replies_of(node: &mut Node) -> Vec<Reply> {
    let mut replies = Vec::new();
    for (_, _, bytes) in std::mem::take(&mut node.sent) {
        let mut rest = &bytes[..];
        while let Some(head) = rest.first_chunk::<HEADER_SIZE>() {
            let header = Header::decode(head).unwrap();
            let body_end = HEADER_SIZE + header.body_length as usize;
            let end = body_end + header.payload_length as usize;
            header.check_body(&rest[HEADER_SIZE..body_end]).unwrap();
            replies.push((header.request_id, header.status(), rest[body_end..end].to_vec()));
            rest = &rest[end..];
        }
    }
    replies
}

/// Returns the chunks that the fills which wait now are for.
fn asked(node: &Node) -> (Vec<FillJob>, Vec<(u32, u32, u32)>) {
    let jobs: Vec<FillJob> = node.fills.try_iter().collect();
    let chunks = jobs.iter().map(|job| {
        let Chunks { first, end } = job.run.chunks;
        (job.run.key.block, first, end)
    });
    let chunks = chunks.collect();
    (jobs, chunks)
}

/// Ends a fill.
fn end(node: &mut Node, job: FillJob, outcome: Result<(), FillError>) {
    end_with(node, job, outcome, Stay::Usual);
}

fn end_with(node: &mut Node, mut job: FillJob, outcome: Result<(), FillError>, stay: Stay) {
    let (run, shard) = (job.run, job.shard);
    let result = match outcome {
        Ok(()) => {
            let bytes = bytes_of_block(run.key.block);
            let part = &bytes[run.chunks.offset() as usize..][..job.blank.length() as usize];
            assert!(job.blank.write(part).is_empty());
            let (block, sums) = job.blank.freeze();
            Ok(Arrival { block, sums, filling: Filling::Source })
        }
        Err(error) => Err((job.blank, error)),
    };
    node.event(0, shard, Event::Mail(Mail::Filled { run, stay, result }));
}

fn end_all(node: &mut Node) -> Vec<(u32, u32, u32)> {
    let mut all = Vec::new();
    loop {
        let (jobs, chunks) = asked(node);
        if jobs.is_empty() {
            return all;
        }
        all.extend(chunks);
        for job in jobs {
            end(node, job, Ok(()));
        }
    }
}

#[test]
fn a_cold_read_brings_in_the_chunks_that_it_needs() {
    let (mut node, token) = node(1024);
    node.receive(0, 0, token, &read_of(0, 5 * BLOCK + 100, 4096, 1, 0));
    assert_eq!(end_all(&mut node), [(0, 5, 6)]);
    // Across a border, and the end of the file.
    node.receive(0, 0, token, &read_of(1, 3 * BLOCK - 1, 2, 2, 0));
    node.receive(0, 0, token, &read_of(3, 2 * BLOCK, 60_000, 3, 0));
    assert_eq!(end_all(&mut node), [(1, 2, 4), (3, 2, 3)]);
    let replies = replies_of(&mut node);
    let expected = |block, offset: u32, length: usize| {
        bytes_of_block(block)[offset as usize..][..length].to_vec()
    };
    assert_eq!(replies[0], (1, Status::Ok, expected(0, 5 * BLOCK + 100, 4096)));
    assert_eq!(replies[1], (2, Status::Ok, expected(1, 3 * BLOCK - 1, 2)));
    assert_eq!(replies[2], (3, Status::Ok, expected(3, 2 * BLOCK, 5000)));
    // What is here is not read again, what is missing between is.
    node.receive(0, 0, token, &read_of(0, 5 * BLOCK, BLOCK, 4, 0));
    assert_eq!(end_all(&mut node), []);
    node.receive(0, 0, token, &read_of(0, 4 * BLOCK, 3 * BLOCK, 5, 0));
    assert_eq!(end_all(&mut node), [(0, 4, 5), (0, 6, 7)]);
    let replies = replies_of(&mut node);
    assert_eq!(replies[0], (4, Status::Ok, expected(0, 5 * BLOCK, BLOCK as usize)));
    assert_eq!(replies[1], (5, Status::Ok, expected(0, 4 * BLOCK, 3 * BLOCK as usize)));
    assert_eq!(
        node.workers[0].cache.used_bytes(),
        3 * u64::from(BLOCK) + 2 * u64::from(BLOCK) + 8192
    );
}

#[test]
fn chunks_that_pass_reach_all_that_wait_and_do_not_stay() {
    let (mut node, token) = node(1024);
    for chunk in [9, 12] {
        node.receive(0, 0, token, &read_of(0, chunk * BLOCK, 512, chunk.into(), 0));
    }
    // This one waits for both of these, and for what is between them.
    node.receive(0, 0, token, &read_of(0, 9 * BLOCK, 4 * BLOCK, 99, 0));
    let (jobs, chunks) = asked(&node);
    assert_eq!(chunks, [(0, 9, 10), (0, 12, 13), (0, 10, 12)]);
    for job in jobs {
        end_with(&mut node, job, Ok(()), Stay::Passing);
    }
    let replies = replies_of(&mut node);
    let ids: Vec<u64> = replies.iter().map(|reply| reply.0).collect();
    assert_eq!(ids, [9, 12, 99]);
    assert!(replies[2].2 == bytes_of_block(0)[9 * BLOCK as usize..13 * BLOCK as usize]);
    let cache = &node.workers[0].cache;
    assert!(cache.find(&BlockKey { file: FILE, block: 0 }).is_none());
    assert_eq!(cache.used_bytes(), 0, "what was sent is free");
    node.receive(0, 0, token, &read_of(0, 9 * BLOCK, 512, 1, 0));
    assert_eq!(asked(&node).1, [(0, 9, 10)], "the source is asked again");
}

#[test]
fn readers_of_one_cold_chunk_cause_one_fill_and_of_two_two() {
    let (mut node, token) = node(1024);
    for id in 0..40 {
        let chunk = 9 + id as u32 % 2 * 3;
        node.receive(0, 0, token, &read_of(0, chunk * BLOCK + id as u32, 512, id, 0));
    }
    let (jobs, chunks) = asked(&node);
    assert_eq!(chunks, [(0, 9, 10), (0, 12, 13)]);
    // One that needs both waits for both.
    node.receive(0, 0, token, &read_of(0, 9 * BLOCK, 4 * BLOCK, 99, 0));
    let mut jobs = jobs.into_iter();
    end(&mut node, jobs.next().unwrap(), Ok(()));
    assert_eq!(replies_of(&mut node).len(), 20);
    end(&mut node, jobs.next().unwrap(), Ok(()));
    assert_eq!(replies_of(&mut node).len(), 20);
    assert_eq!(end_all(&mut node), [(0, 10, 12)]);
    let replies = replies_of(&mut node);
    assert_eq!(replies.len(), 1);
    assert!(replies[0].2 == bytes_of_block(0)[9 * BLOCK as usize..13 * BLOCK as usize]);
}

#[test]
fn a_reader_that_goes_on_gets_more_each_time_and_one_that_jumps_does_not() {
    let (mut node, token) = node(1024);
    let mut fills = Vec::new();
    for step in 0..128 {
        node.receive(0, 0, token, &read_of(0, step * 8192, 8192, u64::from(step), 0));
        fills.extend(end_all(&mut node));
    }
    assert_eq!(fills, [(0, 0, 1), (0, 1, 3), (0, 3, 7), (0, 7, 15), (0, 15, 16)]);
    let (mut node, token) = self::node(1024);
    for chunk in [7, 3, 8, 1, 2, 12, 4] {
        node.receive(0, 0, token, &read_of(0, chunk * BLOCK, 100, 0, 0));
        // 8 comes after 7, but 3 was read in between; 2 goes on from 1.
        let expected = if chunk == 2 { vec![(0, 2, 3)] } else { vec![(0, chunk, chunk + 1)] };
        assert_eq!(end_all(&mut node), expected);
    }
}

#[test]
fn a_part_beside_one_that_is_on_its_way_is_not_taken_for_a_reader_that_goes_on() {
    let (mut node, token) = node(1024);
    // Two columns of a file, side by side, which are asked for at once.
    node.receive(0, 0, token, &read_of(0, 2 * BLOCK, 2 * BLOCK, 1, 0));
    node.receive(0, 0, token, &read_of(0, 4 * BLOCK, BLOCK, 2, 0));
    assert_eq!(asked(&node).1, [(0, 2, 4), (0, 4, 5)]);
}

#[test]
fn a_load_brings_in_what_is_missing_and_the_block_is_whole() {
    let (mut node, token) = node(1024);
    node.receive(0, 0, token, &read_of(0, 4 * BLOCK, BLOCK, 1, 0));
    end_all(&mut node);
    let key = BlockKey { file: FILE, block: 0 };
    let ensure = |node: &mut Node, from: FillFrom| {
        let (reply, receiver) = flume::bounded(1);
        let mail = Mail::Ensure { key, version: VERSION_ONE, from, reply };
        node.event(0, 0, Event::Mail(mail));
        receiver
    };
    let loaded = ensure(&mut node, FillFrom::Anywhere);
    assert_eq!(end_all(&mut node), [(0, 0, 4), (0, 5, 16)]);
    assert!(matches!(loaded.try_recv(), Ok(Ensured::Filled(Filling::Source, _))));
    assert_eq!(ensure(&mut node, FillFrom::Anywhere).try_recv(), Ok(Ensured::Resident));
    replies_of(&mut node);
    // A whole block has one checksum, made from those of its parts.
    node.receive(0, 0, token, &read_of(0, 0, LARGE, 2, 0));
    let (_, _, bytes) = node.sent.pop().unwrap();
    let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
    let body = &bytes[HEADER_SIZE..HEADER_SIZE + header.body_length as usize];
    let sums = &frame::body::<ArchivedReadReply>(body).unwrap().checksums;
    let sums: Vec<u32> = sums.iter().map(|sum| sum.to_native()).collect();
    assert_eq!(sums, [crc32fast::hash(bytes_of_block(0))]);
}

#[test]
fn a_block_that_others_may_have_comes_whole() {
    let (mut node, token) = node(1024);
    node.receive(0, 0, token, &read_of(0, 2 * BLOCK, 100, 1, 0));
    node.receive(0, 0, token, &read_of(0, 7 * BLOCK, 100, 2, 0));
    let (jobs, chunks) = asked(&node);
    assert_eq!(chunks, [(0, 2, 3), (0, 7, 8)]);
    for job in jobs {
        end(&mut node, job, Err(FillError::IsShared));
    }
    assert_eq!(end_all(&mut node), [(0, 0, 16)]);
    assert_eq!(replies_of(&mut node).len(), 2);
    // A pull is of the whole block, too, though a part of it is here.
    node.receive(0, 0, token, &read_of(1, 0, 100, 3, 0));
    end_all(&mut node);
    let (reply, receiver) = flume::bounded(1);
    let (key, from) = (BlockKey { file: FILE, block: 1 }, FillFrom::Member("b".into()));
    node.event(0, 0, Event::Mail(Mail::Ensure { key, version: VERSION_ONE, from, reply }));
    assert_eq!(end_all(&mut node), [(1, 0, 16)]);
    assert!(matches!(receiver.try_recv(), Ok(Ensured::Filled(..))));
}

#[test]
fn a_part_that_fails_fails_those_that_need_it_alone() {
    let (mut node, token) = node(1024);
    node.receive(0, 0, token, &read_of(0, 2 * BLOCK, 100, 1, 0));
    node.receive(0, 0, token, &read_of(0, 7 * BLOCK, 100, 2, 0));
    let (jobs, _) = asked(&node);
    let mut jobs = jobs.into_iter();
    end(&mut node, jobs.next().unwrap(), Err(StoreError::Failed("cut".into()).into()));
    assert_eq!(replies_of(&mut node), [(1, Status::SourceError, Vec::new())]);
    end(&mut node, jobs.next().unwrap(), Ok(()));
    assert_eq!(replies_of(&mut node)[0].1, Status::Ok);
}

/// Runs random reads, loads, ends and failures of fills, deadlines and changes of the file: every request
/// is answered once, with its bytes or an error, and nothing stays counted.
#[test]
fn random_parts_answer_every_reader_with_its_bytes() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        // Room for two to six blocks, so that parts are evicted, also while others of their block come.
        let (mut node, token) = node(random.u32(512..1600));
        let mut waiting: HashMap<u64, (u32, u32, u32)> = HashMap::new();
        let mut jobs: Vec<FillJob> = Vec::new();
        let mut next_id = 0;
        for now in 0..400 {
            match random.u8(0..10) {
                0..=4 => {
                    let block = random.u32(0..4);
                    let offset = random.u32(0..block_length(block));
                    let length_max = if random.bool() { BLOCK } else { LARGE };
                    let length = random.u32(1..=length_max.min(LARGE - offset));
                    next_id += 1;
                    waiting.insert(next_id, (block, offset, length));
                    let budget_ms = if random.u8(0..4) == 0 { random.u32(1..50) } else { 0 };
                    let frame = read_of(block, offset, length, next_id, budget_ms);
                    node.receive(now, 0, token, &frame);
                }
                5..=7 => {
                    jobs.extend(asked(&node).0);
                    if !jobs.is_empty() {
                        let job = jobs.swap_remove(random.usize(..jobs.len()));
                        let outcome = match random.u8(0..12) {
                            0 => Err(StoreError::Failed("cut".into()).into()),
                            1 => Err(FillError::IsShared),
                            2 => Err(FillError::Unwanted),
                            _ => Ok(()),
                        };
                        let outcome = match outcome {
                            Err(FillError::IsShared) if job.run.is_whole() => Ok(()),
                            outcome => outcome,
                        };
                        end(&mut node, job, outcome);
                    }
                }
                8 => node.event(now, 0, Event::Tick),
                _ => {
                    let key = BlockKey { file: FILE, block: random.u32(0..4) };
                    let (reply, _receiver) = flume::bounded(1);
                    let from = FillFrom::Anywhere;
                    let mail = Mail::Ensure { key, version: VERSION_ONE, from, reply };
                    node.event(now, 0, Event::Mail(mail));
                }
            }
            check(&mut node, &mut waiting, seed);
        }
        while !waiting.is_empty() {
            jobs.extend(asked(&node).0);
            assert!(!jobs.is_empty(), "seed {seed}: {waiting:?} wait for nothing");
            for job in std::mem::take(&mut jobs) {
                end(&mut node, job, Ok(()));
            }
            check(&mut node, &mut waiting, seed);
        }
        for job in jobs {
            end(&mut node, job, Ok(()));
        }
        end_all(&mut node);
        let worker = &node.workers[0];
        assert_eq!((worker.filling_bytes, worker.deadline_count), (0, 0), "seed {seed}");
        assert_eq!(worker.cache.in_use_bytes(), 0, "seed {seed}");
        let held = worker.cache.used_bytes();
        assert_eq!(
            node.workers[0].cache.remove_of_file(FILE, u32::MAX).1.div_ceil(4096),
            held / 4096
        );
        assert_eq!(node.workers[0].cache.used_bytes(), 0, "seed {seed}");
    }
}

/// Takes the replies that came, and compares each payload with the file.
fn check(node: &mut Node, waiting: &mut HashMap<u64, (u32, u32, u32)>, seed: u64) {
    for (id, status, payload) in replies_of(node) {
        let (block, offset, length) = waiting.remove(&id).expect("one answer each");
        if status == Status::Ok {
            let bytes = bytes_of_block(block);
            let end = (offset + length).min(block_length(block));
            assert!(payload == bytes[offset as usize..end as usize], "seed {seed}, request {id}");
        }
    }
}
