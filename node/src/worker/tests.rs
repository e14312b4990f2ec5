//! Workers without a kernel: frames in, actions out, the side thread played by the test.

use millrace_proto::frame::{Body, HEADER_SIZE};
use millrace_proto::message::{ArchivedReadReply, Range, ReadManyRequest};
use millrace_proto::{FileId, Op, checksum, placement};

use super::*;
use crate::cache::BlockKey;
use crate::connection::{Piece, RECEIVE_BUFFER_SIZE};
use crate::files::FileRecord;
use crate::mailbox::{Arrival, DropJob, Dropped, Filling, Stay};
use crate::memory::{Arena, ShardMemory};
use crate::owner::Loads;
use crate::side::{ClusterLookup, FillJob, LookupJob, PathLookup};
use crate::store::StoreError;

mod abandoned;
mod chaos;
mod frames;
mod identity;
mod lease;
mod parts;
mod pressure;
mod profile;
mod prove;
mod turns;
mod upload;
mod written;

const BLOCK: u32 = 64 << 10;
const FILE: FileId = FileId(0xf11e);
const VERSION_ONE: u64 = 1;

/// Shards of one node, and what they asked of the side thread.
pub(super) struct Node {
    pub(super) workers: Vec<Worker>,
    shared: Arc<Shared>,
    fills: flume::Receiver<FillJob>,
    lookups: flume::Receiver<LookupJob<PathLookup>>,
    _of_cluster: flume::Receiver<LookupJob<ClusterLookup>>,
    /// Sent bytes of each reply, with the connection's shard and token.
    pub(super) sent: Vec<(u32, Token, Vec<u8>)>,
    /// True if sends are answered; else the client reads nothing.
    reads: bool,
    /// Clients that read nothing, whatever the others do.
    deaf: Vec<Token>,
    actions: Vec<(u32, Action)>,
}

fn limits() -> WorkerLimits {
    WorkerLimits {
        connections_max: 4,
        requests_in_flight_max: 8,
        bytes_in_flight_max: 4 * u64::from(BLOCK),
        body_length_max: frame::BODY_LENGTH_MAX,
        send_timeout_ms: 1_000,
        idle_timeout_ms: 0,
        lease_ms: 1_000,
        lease_percent: 50,
        fills_of_client_max: 64,
        pin_percent: 50,
    }
}

fn content(block: u32, length: u32) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(u64::from(block));
    std::iter::repeat_with(|| random.u8(..)).take(length as usize).collect()
}

impl Node {
    pub(super) fn new(shard_count: u32, page_count: u32, fill_queue_max: usize) -> Node {
        Node::with_proofs(shard_count, page_count, fill_queue_max, Proofs::default())
    }

    /// As [`Node::new`], with secrets by which others are recognised.
    fn with_proofs(
        shard_count: u32,
        page_count: u32,
        fill_queue_max: usize,
        proofs: Proofs,
    ) -> Node {
        Node::with_blocks(shard_count, page_count, fill_queue_max, proofs, BLOCK)
    }

    /// As [`Node::with_proofs`], with blocks of this size.
    fn with_blocks(
        shard_count: u32,
        page_count: u32,
        fill_queue_max: usize,
        proofs: Proofs,
        block_size: u32,
    ) -> Node {
        let (fill_sender, fills) = flume::bounded(fill_queue_max);
        let (lookup_sender, lookups) = flume::bounded(8);
        let files = FileTable::new(16);
        files.note(
            FILE,
            FileRecord {
                path: "f".into(),
                version: VERSION_ONE,
                length: 10 * u64::from(BLOCK),
                is_read_in_parts: false,
                is_stored: true,
            },
        );
        let shared = Arc::new(Shared {
            files: Arc::new(files),
            counters: (0..shard_count).map(|_| Counters::default()).collect(),
            hit_times: Arc::default(),
            shard_addresses: Vec::new(),
            local_addresses: Vec::new(),
            node: 1,
            proofs,
            seed: [7; 32],
            features: millrace_proto::feature::ALL,
            progress: Arc::default(),
            machine: String::new(),
            block_size,
            connection_count: AtomicUsize::new(0),
        });
        let (cluster_sender, of_cluster) = flume::bounded(8);
        let side = SideQueue::for_tests(fill_sender, lookup_sender, cluster_sender);
        let workers = Arena::new(page_count)
            .unwrap()
            .cut(shard_count)
            .into_iter()
            .enumerate()
            .map(|(shard, memory): (usize, ShardMemory)| {
                let cache = Cache::new(memory, limits().pin_percent);
                Worker::new(shard as u32, Arc::clone(&shared), limits(), side.clone(), cache, None)
            })
            .collect();
        Node {
            workers,
            shared,
            fills,
            lookups,
            _of_cluster: of_cluster,
            sent: Vec::new(),
            reads: true,
            deaf: Vec::new(),
            actions: Vec::new(),
        }
    }

    fn event(&mut self, now: u64, shard: u32, event: Event<'_>) {
        let mut actions = Vec::new();
        self.workers[shard as usize].handle(now, event, &mut actions);
        self.workers[shard as usize].handle(now, Event::TurnEnd, &mut actions);
        for action in actions {
            self.perform(now, shard, action);
        }
    }

    /// Takes the batch of a client that reads nothing, which the kernel has.
    fn unread(&mut self, token: Token) -> Batch {
        let is_its =
            |(_, action): &(u32, Action)| matches!(action, Action::Send(to, _) if *to == token);
        let place = self.actions.iter().position(is_its).expect("something was sent");
        match self.actions.remove(place) {
            (_, Action::Send(_, batch)) => batch,
            (_, other) => panic!("{other:?}"),
        }
    }

    /// Has a client read that read nothing.
    fn begin_to_read(&mut self, now: u64, shard: u32, token: Token) {
        self.deaf.retain(|deaf| *deaf != token);
        let batch = self.unread(token);
        self.perform(now, shard, Action::Send(token, batch));
    }

    fn perform(&mut self, now: u64, shard: u32, action: Action) {
        match action {
            Action::Post(to, mail) => self.event(now, to, Event::Mail(mail)),
            Action::Send(token, batch) if self.reads && !self.deaf.contains(&token) => {
                self.sent.push((shard, token, bytes_of(&batch)));
                self.event(now, shard, Event::Sent { token, batch, ok: true, is_last: true });
            }
            other => self.actions.push((shard, other)),
        }
    }

    fn receive(&mut self, now: u64, shard: u32, token: Token, bytes: &[u8]) {
        self.event(now, shard, Event::Received { token, bytes });
    }

    /// Ends every fill that was begun, as `outcome` says; returns how many there were.
    pub(super) fn end_fills(
        &mut self,
        now: u64,
        outcome: impl Fn(&FillJob) -> Result<(), StoreError>,
    ) -> usize {
        let jobs: Vec<FillJob> = self.fills.try_iter().collect();
        let count = jobs.len();
        for mut job in jobs {
            let (shard, run) = (job.shard, job.run);
            let result = match outcome(&job) {
                Ok(()) => {
                    let bytes = content(run.key.block, run.block_length);
                    let bytes = &bytes[run.chunks.offset() as usize..];
                    job.blank
                        .fill_with(|offset, target| {
                            let size = target.len();
                            target.copy_from_slice(&bytes[offset as usize..][..size]);
                            Ok(size)
                        })
                        .unwrap();
                    let (block, sums) = job.blank.freeze();
                    Ok(Arrival { block, sums, filling: Filling::Source })
                }
                Err(error) => Err((job.blank, error.into())),
            };
            self.event(now, shard, Event::Mail(Mail::Filled { run, stay: Stay::Usual, result }));
        }
        count
    }

    /// Ends fills until none is under way: some begin when others end.
    pub(super) fn end_all_fills(&mut self, now: u64) -> usize {
        let mut total = 0;
        loop {
            match self.end_fills(now, |_| Ok(())) {
                0 => return total,
                count => total += count,
            }
        }
    }

    /// Returns status and payload of every reply so far, by request id, checked against the content.
    fn replies(&mut self) -> Vec<(u64, u16, Status, usize)> {
        let mut replies = Vec::new();
        for (_, _, bytes) in std::mem::take(&mut self.sent) {
            let mut rest = &bytes[..];
            while let Some(head) = rest.first_chunk::<HEADER_SIZE>() {
                let header = Header::decode(head).unwrap();
                let body_end = HEADER_SIZE + header.body_length as usize;
                let end = body_end + header.payload_length as usize;
                let body = &rest[HEADER_SIZE..body_end];
                header.check_body(body).unwrap();
                if header.status() == Status::Ok && header.op != Op::Hello as u8 {
                    let (block, offset) = (header.request_id as u32 / 1000, 0);
                    let sums = &frame::body::<ArchivedReadReply>(body).unwrap().checksums;
                    let payload = &rest[body_end..end];
                    let sums = sums.iter().map(|sum| sum.to_native());
                    let tag = match header.covers_identity() {
                        true => checksum::tag(FILE, VERSION_ONE, block),
                        false => 0,
                    };
                    checksum::verify(payload, offset, BLOCK, tag, sums).unwrap();
                    assert_eq!(payload, &content(block, BLOCK)[..payload.len()]);
                }
                replies.push((header.request_id, header.part, header.status(), end - body_end));
                rest = &rest[end..];
            }
        }
        replies
    }

    fn counter(&self, name: &str) -> u64 {
        crate::metrics::sum(&self.shared.counters)
            .iter()
            .find(|(other, _)| *other == name)
            .unwrap()
            .1
    }
}

impl Worker {
    /// Takes a connection over TCP.
    pub(super) fn accept_far(&mut self, now: u64) -> Option<Token> {
        self.accept(now, Way::Tcp, Loads::default())
    }

    /// Takes a connection over a Unix socket.
    fn accept_local(&mut self, now: u64) -> Option<Token> {
        self.accept(now, Way::Local, Loads::default())
    }
}

/// Returns the batch that is sent when a turn ends now.
pub(super) fn sent_at_end(worker: &mut Worker, actions: &mut Vec<Action>) -> Option<Batch> {
    worker.handle(0, Event::TurnEnd, actions);
    actions.drain(..).find_map(|action| match action {
        Action::Send(_, batch) => Some(batch),
        _ => None,
    })
}

/// Returns the bytes that the kernel would send. Test memory is this process's own, so it can be looked
/// at through the arena's checksums only; the payload is made again from the block it belongs to.
fn bytes_of(batch: &Batch) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in &batch.pieces {
        match *piece {
            Piece::Head { start, length } => {
                bytes.extend_from_slice(&batch.head[start..start + length])
            }
            Piece::Memory(segment) => bytes.extend_from_slice(&crate::memory::peek(segment)),
        }
    }
    bytes
}

fn encoded<T: Body>(op: Op, id: u64, budget_ms: u32, body: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, Header::request(op, id, budget_ms), body);
    bytes
}

/// Makes a read of the front of a block; the id says which block, see `replies`.
pub(super) fn read(block: u32, sequence: u64, budget_ms: u32) -> Vec<u8> {
    let range =
        Range { file: FILE, version: VERSION_ONE, offset: u64::from(block * BLOCK), length: 5000 };
    encoded(Op::Read, u64::from(block) * 1000 + sequence, budget_ms, &range)
}

#[test]
fn a_hundred_readers_of_a_cold_block_cause_one_fill() {
    let mut node = Node::new(1, 512, 8);
    let mut tokens = Vec::new();
    for _ in 0..4 {
        tokens.push(node.workers[0].accept_far(0).unwrap());
    }
    // 100 requests, 8 in flight on each of 4 connections: the rest waits in the connections.
    for sequence in 0..100 {
        node.receive(0, 0, tokens[sequence as usize % 4], &read(3, sequence, 0));
    }
    assert_eq!(node.end_fills(1, |_| Ok(())), 1);
    let replies = node.replies();
    assert_eq!(replies.len(), 100);
    assert!(replies.iter().all(|reply| (reply.2, reply.3) == (Status::Ok, 5000)));
    assert_eq!((node.counter("fill_count"), node.counter("request_count")), (1, 100));
}

#[test]
fn frames_cut_anywhere_are_the_same_frames() {
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..200 {
        let mut node = Node::new(1, 512, 8);
        let token = node.workers[0].accept_far(0).unwrap();
        let stream: Vec<u8> =
            (0..6).flat_map(|sequence| read(sequence as u32 % 2, sequence, 0)).collect();
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(random.usize(1..=rest.len()));
            node.receive(0, 0, token, piece);
            rest = after;
        }
        node.end_fills(0, |_| Ok(()));
        let mut ids: Vec<u64> = node.replies().iter().map(|reply| reply.0).collect();
        ids.sort_unstable();
        assert_eq!(ids, [0, 2, 4, 1001, 1003, 1005]);
    }
}

#[test]
fn a_block_of_another_shard_is_served_without_a_copy_and_released() {
    let mut node = Node::new(2, 1024, 16);
    let tokens = [node.workers[0].accept_far(0).unwrap(), node.workers[1].accept_far(0).unwrap()];
    for round in 0..2 {
        for block in 0..8 {
            let owner = placement::shard_of(placement::block_hash(FILE, u64::from(block)), 2);
            let other = 1 - owner;
            node.receive(0, other, tokens[other as usize], &read(block, round, 0));
        }
        node.end_all_fills(0);
        assert_eq!(node.replies().iter().filter(|reply| reply.2 == Status::Ok).count(), 8);
    }
    assert_eq!(node.counter("forwarded_count"), 16);
    // Nothing is pinned any more: all memory can be taken.
    for worker in &mut node.workers {
        let length = worker.cache.capacity_bytes() as u32 / 2;
        assert!(worker.cache.allocate(length).is_some());
    }
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    node.reads = false;
    for sequence in 0..20 {
        node.receive(0, 0, token, &read(1, sequence, 0));
        node.end_fills(0, |_| Ok(()));
    }
    assert_eq!(node.counter("request_count"), 8);
    assert!(node.actions.iter().any(|(_, action)| matches!(action, Action::PauseReceive(_))));
    node.reads = true;
    node.begin_to_read(0, 0, token);
    assert_eq!(node.replies().len(), 20);
    assert!(node.actions.iter().any(|(_, action)| matches!(action, Action::ResumeReceive(_))));
}

#[test]
fn a_client_that_takes_nothing_is_disconnected_in_time() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    node.reads = false;
    node.receive(0, 0, token, &read(1, 0, 0));
    node.end_fills(0, |_| Ok(()));
    let batch = node.unread(token);
    assert!(node.workers[0].needs_ticks());
    node.event(1_000, 0, Event::Tick);
    assert!(!node.actions.iter().any(|(_, action)| matches!(action, Action::Close(_))));
    node.event(1_001, 0, Event::Tick);
    assert!(node.actions.iter().any(|(_, action)| matches!(action, Action::Close(_))));
    node.event(1_002, 0, Event::Sent { token, batch, ok: false, is_last: true });
    node.event(1_002, 0, Event::Closed { token });
    assert_eq!(node.workers[0].connection_count(), 0);
    assert!(node.workers[0].cache.allocate(500 * 4096).is_some());
}

#[test]
fn a_deadline_is_kept_while_the_fill_goes_on_for_others() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    node.receive(100, 0, token, &read(1, 1, 50));
    node.receive(100, 0, token, &read(1, 2, 0));
    node.event(149, 0, Event::Tick);
    assert!(node.replies().is_empty());
    node.event(150, 0, Event::Tick);
    assert_eq!(
        node.replies(),
        [(1001, 0, Status::DeadlineExceeded, 0)].map(|reply| (reply.0, reply.1, reply.2, 0))
    );
    assert_eq!(node.end_fills(200, |_| Ok(())), 1);
    assert_eq!(node.replies(), [(1002, 0, Status::Ok, 5000)]);
}

#[test]
fn a_full_fill_queue_and_pinned_memory_are_busy() {
    let mut node = Node::new(1, 512, 2);
    let token = node.workers[0].accept_far(0).unwrap();
    for block in 0..3 {
        node.receive(0, 0, token, &read(block, 0, 0));
    }
    // The third waits for room in the queue.
    assert!(node.replies().is_empty());
    assert_eq!(node.end_fills(0, |_| Ok(())), 2);
    assert_eq!(node.end_fills(0, |_| Ok(())), 1);
    assert!(node.replies().iter().all(|reply| reply.2 == Status::Ok));
    // Four blocks of 16 pages fit; at most half of the memory may be on its way in.
    let mut node = Node::new(1, 64, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    for block in 0..3 {
        node.receive(0, 0, token, &read(block, 0, 0));
    }
    // A client has an eighth of the memory for its fills, and one fill whatever its length.
    assert_eq!(node.end_fills(0, |_| Ok(())), 1);
    let other = node.workers[0].accept_far(0).unwrap();
    node.receive(0, 0, other, &read(3, 0, 0));
    assert_eq!(node.end_fills(0, |_| Ok(())), 2);
    assert_eq!(node.end_fills(0, |_| Ok(())), 1);
    assert!(node.replies().iter().all(|reply| reply.2 == Status::Ok));
    // All of it is in use.
    let cache = &mut node.workers[0].cache;
    for block in 0..4 {
        let key = BlockKey { file: FILE, block };
        let (entry, _) = cache.find(&key).unwrap();
        cache.pin_range(entry, 0, 1, |_| (), |_| ()).unwrap();
    }
    node.receive(0, 0, other, &read(4, 2, 0));
    assert_eq!(node.replies(), [(4002, 0, Status::Busy, 0)]);
}

#[test]
fn a_failed_fill_is_told_to_all_who_wait_and_tried_again_by_the_next() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    node.receive(0, 0, token, &read(1, 1, 0));
    node.receive(0, 0, token, &read(1, 2, 0));
    node.end_fills(0, |_| Err(StoreError::Failed("disk".to_owned())));
    let statuses: Vec<Status> = node.replies().iter().map(|reply| reply.2).collect();
    assert_eq!(statuses, [Status::SourceError, Status::SourceError]);
    node.receive(0, 0, token, &read(1, 3, 0));
    assert_eq!(node.end_fills(0, |_| Ok(())), 1);
    assert_eq!(node.replies(), [(1003, 0, Status::Ok, 5000)]);
}

#[test]
fn old_and_new_versions_are_never_mixed() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    node.receive(0, 0, token, &read(1, 1, 0));
    node.end_fills(0, |_| Ok(()));
    node.receive(0, 0, token, &read(2, 1, 0));
    // A newer version is seen while block 2 of the old one is on its way in.
    node.shared.files.note(
        FILE,
        FileRecord {
            path: "f".into(),
            version: 2,
            length: u64::from(BLOCK) * 10,
            is_read_in_parts: false,
            is_stored: true,
        },
    );
    let dropped = drop_file(&mut node);
    assert_eq!(dropped.recv().unwrap().block_count, 1);
    node.end_fills(0, |_| Ok(()));
    node.receive(0, 0, token, &read(1, 2, 0));
    let statuses: Vec<Status> = node.replies().iter().map(|reply| reply.2).collect();
    assert_eq!(statuses, [Status::Ok, Status::StaleVersion, Status::StaleVersion]);
    assert_eq!(node.workers[0].cache.block_count(), 0);
}

/// Notes a version of the file.
fn note_version(node: &Node, version: u64) {
    let length = u64::from(BLOCK) * 10;
    node.shared.files.note(
        FILE,
        FileRecord { path: "f".into(), version, length, is_read_in_parts: false, is_stored: true },
    );
}

#[test]
fn a_new_version_waits_for_the_end_of_what_is_on_its_way_of_the_old_one() {
    let of_version = |version, request, budget_ms| {
        let range = Range { file: FILE, version, offset: u64::from(BLOCK), length: 5000 };
        encoded(Op::Read, request, budget_ms, &range)
    };
    let statuses = |node: &mut Node| -> Vec<(u64, Status)> {
        node.replies().iter().map(|reply| (reply.0, reply.2)).collect()
    };
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    note_version(&node, 2);
    node.receive(0, 0, token, &of_version(2, 1001, 0));
    note_version(&node, VERSION_ONE);
    // These ask for the version that is there now. They are not asked to come again and again.
    node.receive(0, 0, token, &of_version(VERSION_ONE, 1002, 0));
    node.receive(0, 0, token, &of_version(VERSION_ONE, 1003, 50));
    let gone = node.workers[0].accept_far(0).unwrap();
    node.receive(0, 0, gone, &of_version(VERSION_ONE, 1004, 50));
    node.event(0, 0, Event::Closed { token: gone });
    assert!(statuses(&mut node).is_empty());
    node.event(50, 0, Event::Tick);
    assert_eq!(statuses(&mut node), [(1003, Status::DeadlineExceeded)]);
    assert_eq!(node.workers[0].deadline_count, 0);
    assert_eq!(node.end_fills(60, |_| Ok(())), 1);
    assert_eq!(statuses(&mut node), [(1001, Status::StaleVersion)]);
    assert_eq!(node.end_fills(70, |_| Ok(())), 1, "what waited began when the old one ended");
    assert_eq!(statuses(&mut node), [(1002, Status::Ok)]);
    assert_eq!(node.workers[0].incoming.count(), 0);
}

#[test]
fn a_source_that_hangs_with_the_old_version_is_told_to_those_who_want_the_new_one() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    node.receive(0, 0, token, &read(1, 1, 0));
    let job = node.fills.try_iter().next().unwrap();
    note_version(&node, 2);
    let of_new = |request| {
        let range = Range { file: FILE, version: 2, offset: u64::from(BLOCK), length: 5000 };
        encoded(Op::Read, request, 0, &range)
    };
    node.receive(0, 0, token, &of_new(1002));
    let overdue = Mail::Overdue { run: job.run, message: "it hangs".to_owned() };
    node.event(0, 0, Event::Mail(overdue));
    node.receive(0, 0, token, &of_new(1003));
    let statuses: Vec<Status> = node.replies().iter().map(|reply| reply.2).collect();
    assert_eq!(statuses, [Status::SourceError; 3]);
}

#[test]
fn unknown_files_and_bad_ranges_have_their_own_answers() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    let mut id = 0;
    let mut check = |file, version, offset, length, expected| {
        id += 1;
        let range = Range { file, version, offset, length };
        node.receive(0, 0, token, &encoded(Op::Read, id, 0, &range));
        assert_eq!(node.replies(), [(id, 0, expected, 0)], "{range:?}");
    };
    check(FileId(1), 1, 0, 10, Status::UnknownFile);
    check(FILE, 2, 0, 10, Status::StaleVersion);
    check(FILE, 1, 10 * u64::from(BLOCK), 10, Status::OutOfRange);
    // No file has this many blocks, and an offset is past the end wherever it is.
    for offset in [u64::from(BLOCK) << 32, 1 << 63, u64::MAX] {
        check(FILE, 1, offset, 1, Status::OutOfRange);
        check(FILE, 2, offset, 1, Status::StaleVersion);
        check(FileId(1), 1, offset, 1, Status::UnknownFile);
    }
    check(FILE, 1, u64::MAX - u64::from(BLOCK) + 1, BLOCK, Status::OutOfRange);
    check(FILE, 1, u64::MAX, 10, Status::InvalidArgument);
    check(FILE, 1, 0, 0, Status::InvalidArgument);
    check(FILE, 1, 1, BLOCK, Status::InvalidArgument);
    check(FILE, 1, 0, u32::MAX, Status::InvalidArgument);
}

#[test]
fn a_batch_is_answered_range_by_range() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    let range = |file, length| Range { file, version: 1, offset: 0, length };
    let request =
        ReadManyRequest { ranges: vec![range(FILE, 100), range(FileId(1), 1), range(FILE, 5000)] };
    node.receive(0, 0, token, &encoded(Op::ReadMany, 7, 0, &request));
    node.end_fills(0, |_| Ok(()));
    let mut replies = node.replies();
    replies.sort_by_key(|reply| reply.1);
    assert_eq!(replies[0], (7, 0, Status::Ok, 100));
    assert_eq!((replies[1].1, replies[1].2), (1, Status::UnknownFile));
    assert_eq!(replies[2], (7, 2, Status::Ok, 5000));
    node.receive(
        0,
        0,
        token,
        &encoded(Op::ReadMany, 8, 0, &ReadManyRequest { ranges: Vec::new() }),
    );
    let replies = node.replies();
    assert_eq!((replies[0].1, replies[0].2), (frame::PART_ALL, Status::InvalidArgument));
}

#[test]
fn damaged_streams_end_and_damaged_bodies_do_not() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    let mut bytes = read(1, 1, 0);
    bytes[HEADER_SIZE] ^= 1;
    node.receive(0, 0, token, &bytes);
    assert_eq!(node.replies(), [(1001, 0, Status::BadChecksum, 0)]);
    bytes[0] ^= 1;
    node.receive(0, 0, token, &bytes);
    assert_eq!(node.replies(), [(0, 0, Status::BadFrame, 0)]);
    assert!(node.actions.iter().any(|(_, action)| matches!(action, Action::FinishSending(_))));
}

#[test]
fn shutdown_answers_what_is_in_flight_and_takes_nothing_new() {
    let mut node = Node::new(1, 512, 8);
    let busy = node.workers[0].accept_far(0).unwrap();
    let idle = node.workers[0].accept_far(0).unwrap();
    node.receive(0, 0, busy, &read(1, 1, 0));
    node.event(0, 0, Event::Mail(Mail::Shutdown));
    assert!(node.workers[0].accept_far(0).is_none());
    assert!(
        node.actions
            .iter()
            .any(|(_, action)| matches!(action, Action::Close(token) if *token == idle))
    );
    node.receive(0, 0, busy, &read(1, 2, 0));
    node.end_fills(0, |_| Ok(()));
    assert_eq!(node.replies(), [(1001, 0, Status::Ok, 5000)]);
    assert!(
        node.actions
            .iter()
            .any(|(_, action)| matches!(action, Action::FinishSending(token) if *token == busy))
    );
}

#[test]
fn a_body_longer_than_configured_ends_the_stream() {
    let mut node = Node::new(1, 512, 8);
    node.workers[0].limits.body_length_max = 100;
    let token = node.workers[0].accept_far(0).unwrap();
    node.receive(0, 0, token, &read(1, 1, 0));
    node.end_fills(0, |_| Ok(()));
    assert_eq!(node.replies(), [(1001, 0, Status::Ok, 5000)]);
    let range = Range { file: FILE, version: VERSION_ONE, offset: 0, length: 1 };
    let request = ReadManyRequest { ranges: vec![range; 3] };
    node.receive(0, 0, token, &encoded(Op::ReadMany, 7, 0, &request));
    assert_eq!(node.replies(), [(7, frame::PART_ALL, Status::FrameTooLarge, 0)]);
    assert!(node.actions.iter().any(|(_, action)| matches!(action, Action::FinishSending(_))));
}

/// Drops the file's blocks; the sum comes when that is done.
fn drop_file(node: &mut Node) -> flume::Receiver<Dropped> {
    let (job, dropped) = DropJob::new(FILE, false);
    node.event(0, 0, Event::Mail(Mail::Drop(job)));
    dropped
}

#[test]
fn a_large_file_is_dropped_in_slices_with_others_served_in_between() {
    let mut node = Node::new(1, 600 * 16, 1024);
    let record = FileRecord {
        path: "f".into(),
        version: 1,
        length: 600 * u64::from(BLOCK),
        is_read_in_parts: false,
        is_stored: true,
    };
    node.shared.files.note(FILE, record);
    let token = node.workers[0].accept_far(0).unwrap();
    for block in 0..600 {
        node.receive(0, 0, token, &read(block, 1, 0));
        node.end_fills(0, |_| Ok(()));
    }
    assert_eq!(node.workers[0].cache.block_count(), 600);
    let (mut job, dropped) = DropJob::new(FILE, false);
    let mut turns = 1;
    loop {
        let mut actions = Vec::new();
        node.workers[0].handle(0, Event::Mail(Mail::Drop(job)), &mut actions);
        match actions.pop() {
            Some(Action::Post(0, Mail::Drop(rest))) => job = rest,
            Some(other) => panic!("{other:?}"),
            None => break,
        }
        turns += 1;
    }
    assert_eq!((turns, node.workers[0].cache.block_count()), (3, 0));
    assert_eq!(dropped.recv().unwrap().block_count, 600);
}
