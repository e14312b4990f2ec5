//! Whatever can happen to the shards of a node, in every order in which the runtime can bring it.
//!
//! The test plays the kernel, the clients, the side thread and the clock. It compares every byte that is
//! sent with the file, a second time when the kernel gives up a send by reference. At the end, with all
//! clients gone, nothing may be pinned, counted or waited for. `MILLRACE_CHAOS_RUNS` sets how many
//! histories are tried, `MILLRACE_CHAOS_SEED` the first.

use std::collections::{HashMap, VecDeque};
use std::sync::OnceLock;

use fastrand::Rng;

use super::*;
use crate::chunks::Chunks;
use crate::mailbox::{Ensured, FillFrom, Loan, Run, Stay, WrittenBlock};
use crate::memory::Blank;
use crate::store::FillError;

/// Blocks of the file; the last one is short.
const COUNT: u32 = 12;
/// A block is four chunks.
const LARGE: u32 = 4 * BLOCK;
/// Length of the last block.
const LAST: u32 = BLOCK + 5000;
const LENGTH: u64 = (COUNT - 1) as u64 * LARGE as u64 + LAST as u64;
/// Events of one history.
const STEPS: usize = 3_000;

/// A client's connection, as the kernel has it.
struct Socket {
    shard: u32,
    token: Token,
    /// What the kernel sends now.
    sending: Option<Batch>,
    /// The rest of a batch that waits for another one to go with.
    held: Option<Batch>,
    /// What was sent and may still be read by reference.
    referred: Vec<Batch>,
    is_paused: bool,
    is_closing: bool,
    has_ended: bool,
}

struct Chaos {
    node: Node,
    mail: Vec<VecDeque<Mail>>,
    sockets: Vec<Socket>,
    random: Rng,
    now: u64,
    version: u64,
    is_read_in_parts: bool,
    next_id: u64,
    /// Version, offset and length of each range, by the id of its request and its number.
    asked: HashMap<(u64, u16), (u64, u64, u32)>,
    loads: Vec<flume::Receiver<Ensured>>,
    /// Memory that writes of these blocks asked for.
    loans: Vec<(u32, flume::Receiver<Option<Blank>>)>,
    /// Replies whose bytes were compared.
    compared: u64,
}

/// Returns what the file holds: of each version and block another piece of the same random bytes.
fn content_of(version: u64, block: u32) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        let mut random = Rng::with_seed(1);
        std::iter::repeat_with(|| random.u8(..)).take(8 * LARGE as usize).collect()
    });
    let places = 7 * u64::from(LARGE);
    let start = (version * u64::from(COUNT) + u64::from(block)) * 1_009 % places;
    &bytes[start as usize..][..length_of(block) as usize]
}

fn length_of(block: u32) -> u32 {
    if block == COUNT - 1 { LAST } else { LARGE }
}

impl Chaos {
    fn new(seed: u64) -> Chaos {
        let shard_count = 1 + (seed % 3) as u32;
        let mut node =
            Node::with_blocks(shard_count, shard_count * 512, 12, Proofs::default(), LARGE);
        for worker in &mut node.workers {
            worker.limits.connections_max = 8;
            worker.limits.bytes_in_flight_max = 4 * u64::from(LARGE);
        }
        let mut chaos = Chaos {
            node,
            mail: (0..shard_count).map(|_| VecDeque::new()).collect(),
            sockets: Vec::new(),
            random: Rng::with_seed(seed),
            now: 0,
            version: 0,
            is_read_in_parts: seed % 2 == 1,
            next_id: 1,
            asked: HashMap::new(),
            loads: Vec::new(),
            loans: Vec::new(),
            compared: 0,
        };
        chaos.change();
        chaos
    }

    fn shards(&self) -> std::ops::Range<u32> {
        0..self.node.workers.len() as u32
    }

    fn any_shard(&mut self) -> u32 {
        self.random.u32(..self.node.workers.len() as u32)
    }

    fn any_socket(&mut self) -> Option<usize> {
        (!self.sockets.is_empty()).then(|| self.random.usize(..self.sockets.len()))
    }

    fn post(&mut self, shard: u32, mail: Mail) {
        self.mail[shard as usize].push_back(mail);
    }

    /// Puts another version in the file's place.
    fn change(&mut self) {
        self.version += 1;
        let record = FileRecord {
            path: "f".into(),
            version: self.version,
            length: LENGTH,
            is_read_in_parts: self.is_read_in_parts,
            is_stored: true,
        };
        self.node.shared.files.note(FILE, record);
    }

    fn event(&mut self, shard: u32, event: Event<'_>) {
        let mut actions = Vec::new();
        self.node.workers[shard as usize].handle(self.now, event, &mut actions);
        for action in actions {
            match action {
                Action::Post(to, mail) => self.post(to, mail),
                Action::Close(token) => self.socket(shard, token).is_closing = true,
                Action::PauseReceive(token) => self.socket(shard, token).is_paused = true,
                Action::ResumeReceive(token) => self.socket(shard, token).is_paused = false,
                Action::Send(token, batch) => {
                    let before = self.socket(shard, token).sending.replace(batch);
                    assert!(before.is_none(), "a connection sends one batch at a time");
                }
                Action::ReceiveGently | Action::FinishSending(_) | Action::WakeAt(_) => (),
                Action::Disk(_) => panic!("there are no disks"),
            }
        }
    }

    fn socket(&mut self, shard: u32, token: Token) -> &mut Socket {
        let mut sockets = self.sockets.iter_mut();
        let is_it = |socket: &&mut Socket| (socket.shard, socket.token) == (shard, token);
        sockets.find(is_it).expect("a socket that is open")
    }

    /// Brings one event, of a kind that is drawn.
    fn step(&mut self) {
        match self.random.u8(..100) {
            0..=2 => self.connect(),
            3..=24 => self.ask(),
            25..=32 => self.end_turn(),
            33..=60 => self.finish_a_send(),
            61..=64 => self.release_or_unhold(),
            65 => self.hang_up(),
            66 | 67 => self.close_those_that_close(),
            68..=80 => {
                let shard = self.any_shard();
                for _ in 0..self.random.u8(1..4) {
                    self.deliver(shard);
                }
            }
            81..=93 => self.end_a_fill(),
            94 | 95 => {
                self.now += self.random.u64(..120);
                let shard = self.any_shard();
                let event = if self.random.bool() { Event::Tick } else { Event::Sleep };
                self.event(shard, event);
            }
            96 | 97 => self.load_or_give_up(),
            98 if self.random.bool() => self.keep_some(),
            98 => self.write_some(),
            _ => self.change_or_drop(),
        }
    }

    fn connect(&mut self) {
        let shard = self.any_shard();
        let way = [Way::Tcp, Way::Local, Way::Admin][self.random.usize(..3)];
        let worker = &mut self.node.workers[shard as usize];
        if let Some(token) = worker.accept(self.now, way, Loads::default()) {
            self.sockets.push(Socket {
                shard,
                token,
                sending: None,
                held: None,
                referred: Vec::new(),
                is_paused: false,
                is_closing: false,
                has_ended: false,
            });
            let mut attach = Vec::new();
            frame::encode_empty(&mut attach, Header::request(Op::Attach, u64::MAX, 0));
            self.event(shard, Event::Received { token, bytes: &attach });
        }
    }

    /// Has a client send some requests, cut anywhere, at times without the end.
    fn ask(&mut self) {
        let Some(at) = self.any_socket() else { return };
        let Socket { shard, token, is_paused, has_ended, is_closing, .. } = self.sockets[at];
        if is_paused || has_ended || is_closing {
            return;
        }
        let mut bytes = Vec::new();
        for _ in 0..self.random.u8(1..6) {
            bytes.extend(self.request());
        }
        if self.random.u8(..) == 0 {
            bytes.truncate(self.random.usize(..bytes.len()));
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(self.random.usize(1..=rest.len()));
            self.event(shard, Event::Received { token, bytes: piece });
            rest = after;
        }
    }

    fn request(&mut self) -> Vec<u8> {
        let id = self.next_id;
        self.next_id += 1;
        let budget = if self.random.u8(..) < 50 { self.random.u32(1..200) } else { 0 };
        if self.random.u8(..) == 0 {
            let mut bytes = encoded(Op::Read, id, 0, &self.range(id, 0));
            let at = self.random.usize(..bytes.len());
            bytes[at] ^= 1;
            return bytes;
        }
        match self.random.u8(..16) {
            0..=5 => encoded(Op::Read, id, budget, &self.range(id, 0)),
            6 => encoded(Op::Peek, id, budget, &self.range(id, 0)),
            7 => encoded(Op::Fetch, id, budget, &self.range(id, 0)),
            8 | 9 => encoded(Op::ReadMany, id, budget, &self.ranges(id, 6)),
            10 | 11 => encoded(Op::Lease, id, budget, &self.ranges(id, 4)),
            12 => encoded(Op::Release, id, budget, &self.ranges(id, 4)),
            _ => {
                let op = [Op::Ping, Op::Status][self.random.usize(..2)];
                let mut bytes = Vec::new();
                frame::encode_empty(&mut bytes, Header::request(op, id, budget));
                bytes
            }
        }
    }

    fn ranges(&mut self, id: u64, end: u16) -> ReadManyRequest {
        let count = self.random.u16(1..end);
        ReadManyRequest { ranges: (0..count).map(|part| self.range(id, part)).collect() }
    }

    /// Draws a range: a whole block, a page, a byte or anything, at times of an old version or beyond the end.
    fn range(&mut self, id: u64, part: u16) -> Range {
        let block = self.random.u32(..=COUNT);
        let is_old = self.random.u8(..) < 16;
        let version = self.version.saturating_sub(u64::from(is_old));
        let offset = self.random.u32(..LARGE);
        let (offset, length) = match self.random.u8(..4) {
            0 => (0, LARGE),
            1 => (offset, self.random.u32(1..=LARGE - offset)),
            2 => (offset & !4095, 4096),
            _ => (offset, 1),
        };
        let at = u64::from(block) * u64::from(LARGE) + u64::from(offset);
        self.asked.insert((id, part), (version, at, length));
        Range { file: FILE, version, offset: at, length }
    }

    fn end_turn(&mut self) {
        for shard in self.shards() {
            self.event(shard, Event::TurnEnd);
        }
    }

    /// Has a socket take a batch, or all but the end of it, or break.
    fn finish_a_send(&mut self) {
        let Some(at) = self.any_socket() else { return };
        let Socket { shard, token, is_closing, .. } = self.sockets[at];
        let Some(batch) = self.sockets[at].sending.take() else { return };
        let ok = !is_closing && self.random.u8(..) < 250;
        if ok && self.random.u8(..) < 20 {
            self.sockets[at].sending = Some(batch);
            self.event(shard, Event::SentSome { token, count: 1 });
            return;
        }
        match self.sockets[at].held.take() {
            // One went behind the other, and both end.
            Some(first) => {
                if ok {
                    self.compare(&first);
                }
                self.event(shard, Event::Sent { token, batch: first, ok, is_last: false });
            }
            None if ok && self.random.u8(..) < 40 => {
                self.sockets[at].held = Some(batch);
                self.event(shard, Event::Held { token });
                return;
            }
            None => (),
        }
        if ok {
            self.compare(&batch);
        }
        let told = if ok && self.random.u8(..) < 60 {
            let accounts = batch.accounts();
            self.sockets[at].referred.push(batch);
            accounts
        } else {
            batch
        };
        self.event(shard, Event::Sent { token, batch: told, ok, is_last: true });
    }

    /// Ends the reading of a send by reference, or sends a rest that no other batch joined.
    fn release_or_unhold(&mut self) {
        let Some(at) = self.any_socket() else { return };
        let Socket { shard, token, .. } = self.sockets[at];
        if let Some(batch) = self.sockets[at].referred.pop() {
            self.compare(&batch);
            self.event(shard, Event::Released { token, batch });
        } else if self.sockets[at].sending.is_none()
            && let Some(batch) = self.sockets[at].held.take()
        {
            self.event(shard, Event::Unheld { token });
            self.sockets[at].sending = Some(batch);
        }
    }

    fn hang_up(&mut self) {
        let Some(at) = self.any_socket() else { return };
        if self.sockets[at].has_ended {
            return;
        }
        self.sockets[at].has_ended = true;
        let Socket { shard, token, .. } = self.sockets[at];
        let ends = [ReceiveEnd::Finished, ReceiveEnd::Reset, ReceiveEnd::Broken];
        let end = ends[self.random.usize(..3)];
        self.event(shard, Event::ReceiveEnded { token, end });
    }

    fn close_those_that_close(&mut self) {
        for at in (0..self.sockets.len()).rev() {
            if self.sockets[at].is_closing {
                self.close(at);
            }
        }
    }

    /// Gives back all that the kernel has of a socket, and closes it.
    fn close(&mut self, at: usize) {
        let Socket { shard, token, .. } = self.sockets[at];
        if let Some(first) = self.sockets[at].held.take() {
            let is_last = self.sockets[at].sending.is_none();
            self.event(shard, Event::Sent { token, batch: first, ok: false, is_last });
        }
        if let Some(batch) = self.sockets[at].sending.take() {
            self.event(shard, Event::Sent { token, batch, ok: false, is_last: true });
        }
        self.event(shard, Event::Closed { token });
        for batch in self.sockets.swap_remove(at).referred {
            self.event(shard, Event::Released { token, batch });
        }
    }

    /// True if there was a message.
    fn deliver(&mut self, shard: u32) -> bool {
        let mail = self.mail[shard as usize].pop_front();
        mail.map(|mail| self.event(shard, Event::Mail(mail))).is_some()
    }

    /// Ends a fill, well or not, at times after it was said to take long.
    fn end_a_fill(&mut self) {
        let Ok(mut job) = self.node.fills.try_recv() else { return };
        let run = job.run;
        if self.random.u8(..) < 20 {
            self.post(job.shard, Mail::Overdue { run, message: "it hangs".to_owned() });
        }
        let error = match self.random.u8(..14) {
            0 => Some(StoreError::Changed.into()),
            1 => Some(StoreError::Failed("it fails".to_owned()).into()),
            2 => Some(FillError::NotThere),
            3 if !run.is_whole() => Some(FillError::IsShared),
            _ => None,
        };
        let result = match error {
            Some(error) => Err((job.blank, error)),
            None => {
                let bytes = &content_of(run.version, run.key.block)[run.chunks.offset() as usize..];
                assert!(job.blank.write(&bytes[..job.blank.length() as usize]).is_empty());
                let (block, sums) = job.blank.freeze();
                Ok(Arrival { block, sums, filling: Filling::Source })
            }
        };
        let stay = match self.random.u8(..10) {
            0 => Stay::Pinned,
            1 => Stay::Passing,
            _ => Stay::Usual,
        };
        self.post(job.shard, Mail::Filled { run, stay, result });
    }

    fn load_or_give_up(&mut self) {
        if self.random.u8(..) < 40 {
            self.loads.clear();
            for shard in self.shards() {
                self.post(shard, Mail::LoadsGone);
            }
            return;
        }
        let key = BlockKey { file: FILE, block: self.random.u32(..=COUNT) };
        let shard = placement::shard_of(key.hash(), self.shards().end);
        let (reply, receiver) = flume::bounded(1);
        self.loads.push(receiver);
        let from = match self.random.u8(..4) {
            0 => FillFrom::Member("other".into()),
            1 => FillFrom::Source,
            _ => FillFrom::Anywhere,
        };
        self.post(shard, Mail::Ensure { key, version: self.version, from, reply });
    }

    /// Changes the pins: some blocks are kept, or no longer.
    fn keep_some(&mut self) {
        let shard = self.any_shard();
        let listing = self.node.workers[shard as usize].cache.enumerate(0, 64);
        let blocks = listing.blocks.iter().map(|block| (block.entry, block.key)).collect();
        let wanted = self.random.u8(..) < 60;
        self.post(shard, Mail::Keep { blocks, wanted });
    }

    /// Begins to write some blocks, and ends the writes of some others, well or not.
    fn write_some(&mut self) {
        for _ in 0..self.random.u8(1..6) {
            let block = self.random.u32(..COUNT);
            let (reply, receiver) = flume::bounded(1);
            // A block that was given up at once has no receiver.
            if self.random.u8(..) > 20 {
                self.loans.push((block, receiver));
            }
            let held = self.random.u64(..2) * u64::from(LARGE);
            self.post(self.shard_of(block), Mail::Lend(Loan { length: LARGE, held, reply }));
        }
        self.end_writes(false);
    }

    fn shard_of(&self, block: u32) -> u32 {
        placement::shard_of(BlockKey { file: FILE, block }.hash(), self.shards().end)
    }

    /// Ends writes that have their memory: some of them, or all.
    fn end_writes(&mut self, all: bool) {
        for (block, receiver) in std::mem::take(&mut self.loans) {
            let waits = receiver.is_empty() && !receiver.is_disconnected();
            if waits || (!all && self.random.bool()) {
                self.loans.push((block, receiver));
                continue;
            }
            let Some(mut blank) = receiver.try_recv().ok().flatten() else { continue };
            let shard = self.shard_of(block);
            if self.random.u8(..) < 60 {
                self.post(shard, Mail::Unlent { blank, is_lost: true });
                continue;
            }
            // At times another version has been seen since the store named this one.
            let version = self.version.saturating_sub(u64::from(self.random.u8(..) < 60));
            assert!(blank.write(content_of(version, block)).is_empty());
            if let Some(blank) = blank.cut() {
                self.post(shard, Mail::Unlent { blank, is_lost: false });
            }
            let block_length = blank.length();
            let key = BlockKey { file: FILE, block };
            let run = Run { key, version, chunks: Chunks::all(block_length), block_length };
            let (block, sums) = blank.freeze();
            let stay = if self.random.bool() { Stay::Usual } else { Stay::Pinned };
            let (done, _) = flume::bounded(1);
            let written = WrittenBlock { run, stay, block, sums, done };
            self.post(shard, Mail::Written(Box::new(written)));
        }
    }

    fn change_or_drop(&mut self) {
        if self.random.u8(..) < 80 {
            self.change();
            return;
        }
        for shard in self.shards() {
            self.post(shard, Mail::Drop(DropJob::new(FILE, false).0));
        }
    }

    /// Compares what a batch sends with the file, as its checksums do.
    fn compare(&mut self, batch: &Batch) {
        let bytes = bytes_of(batch);
        let mut rest = &bytes[..];
        while let Some(head) = rest.first_chunk::<HEADER_SIZE>() {
            let header = Header::decode(head).unwrap();
            let (body, after) = rest[HEADER_SIZE..].split_at(header.body_length as usize);
            let (payload, after) = after.split_at(header.payload_length as usize);
            rest = after;
            let op = Op::from_code(header.op);
            let has_bytes = matches!(op, Some(Op::Read | Op::Peek | Op::Fetch | Op::ReadMany));
            if !has_bytes || header.status() != Status::Ok {
                assert!(payload.is_empty());
                continue;
            }
            let (version, at, length) = self.asked[&(header.request_id, header.part)];
            let (block, offset) = ((at / u64::from(LARGE)) as u32, (at % u64::from(LARGE)) as u32);
            let content = &content_of(version, block)[offset as usize..];
            assert_eq!(payload, &content[..content.len().min(length as usize)], "block {block}");
            let sums = &frame::body::<ArchivedReadReply>(body).unwrap().checksums;
            let sums = sums.iter().map(|sum| sum.to_native());
            checksum::verify(payload, offset, length_of(block), 0, sums).unwrap();
            self.compared += 1;
        }
        assert!(rest.is_empty(), "a batch holds whole replies");
    }

    /// Has all clients leave and all that is under way end; returns how many replies were compared.
    fn finish(mut self) -> u64 {
        while let Some(Socket { shard, token, .. }) = self.sockets.first() {
            let (shard, token) = (*shard, *token);
            self.event(shard, Event::ReceiveEnded { token, end: ReceiveEnd::Reset });
            self.close(0);
        }
        let mut is_idle = false;
        while !is_idle {
            self.end_writes(true);
            is_idle = self.node.fills.is_empty() && self.loans.is_empty();
            while !self.node.fills.is_empty() {
                self.end_a_fill();
            }
            for shard in self.shards() {
                while self.deliver(shard) {
                    is_idle = false;
                }
            }
        }
        self.now += 10_000;
        for shard in self.shards() {
            self.event(shard, Event::Tick);
            let listing = self.node.workers[shard as usize].cache.enumerate(0, 1024);
            let blocks = listing.blocks.iter().map(|block| (block.entry, block.key)).collect();
            self.event(shard, Event::Mail(Mail::Keep { blocks, wanted: false }));
        }
        for worker in &mut self.node.workers {
            assert_eq!((worker.filling_bytes, worker.deadline_count), (0, 0));
            assert_eq!(worker.lent_bytes, 0);
            assert_eq!((worker.stashed, worker.copied), (0, 0));
            assert_eq!((worker.connection_count, worker.turns.waiting_count()), (0, 0));
            assert_eq!((worker.incoming.count(), worker.leases.bytes()), (0, 0));
            let blank = worker.cache.allocate(worker.cache.capacity_bytes() as u32);
            worker.cache.release_blank(blank.expect("nothing is pinned"));
        }
        assert_eq!(self.node.shared.connection_count.load(Ordering::Relaxed), 0);
        assert!(self.loads.iter().all(|load| load.try_recv().is_ok()), "every load is answered");
        self.compared
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[test]
fn no_order_of_events_serves_a_wrong_byte_or_leaves_anything_behind() {
    let first = from_environment("MILLRACE_CHAOS_SEED", 0);
    let count = from_environment("MILLRACE_CHAOS_RUNS", 60);
    let mut compared = 0;
    for seed in first..first + count {
        let run = std::panic::catch_unwind(|| {
            let mut chaos = Chaos::new(seed);
            for _ in 0..STEPS {
                chaos.step();
            }
            chaos.finish()
        });
        compared += run.unwrap_or_else(|_| panic!("MILLRACE_CHAOS_SEED={seed}"));
    }
    println!("{count} histories, {compared} replies compared");
    assert!(compared > 100 * count, "too few reads were served: {compared}");
}
