//! Brings blocks in: one read of the source for all that wait for the same bytes.
//!
//! Owns what a miss brings in: of a store that is read in parts the chunks that are asked for, which
//! double while a reader goes on, else whole blocks. Always holds: every waiter is answered when what it
//! needs is here or cannot be had, or its own deadline passes.

use std::borrow::Cow;
use std::sync::Arc;

use millrace_proto::message::Range;
use millrace_proto::{Op, Status};

use super::incoming::{EndedFill, Fill, Successor, Waiter, Wish};
use super::turns::{Amount, Miss, Payer};
use super::{Action, Worker};
use crate::cache::BlockKey;
use crate::chunks::{Chunks, Runs};
use crate::cluster::pins::Judge;
use crate::files::FileRecord;
use crate::mailbox::{Arrival, DropJob, Ensured, FillFrom, Filling, Mail, Requester, Run, Stay};
use crate::memory::Blank;
use crate::side::FillJob;
use crate::store::{Errand, FillError, StoreError};
use crate::token::Token;

/// Runs of chunks that one request brings in; with more, the block is brought in whole. Guessed.
const RUNS_MAX: usize = 4;

/// A block and what of it is wanted.
#[derive(Clone, Copy)]
struct Want {
    key: BlockKey,
    version: u64,
    /// Offset of a byte of the block that has to be there.
    offset: u32,
    /// Bytes that are needed from there on; None if the whole block is.
    length: Option<u32>,
    amount: Amount,
}

/// Why a fill did not begin.
pub(super) enum Obstacle {
    /// There is no room for it at the moment.
    Later,
    /// Another version of the block is still on its way in, and will find itself stale.
    OtherVersion,
    /// It cannot be.
    Refused(FillRefusal),
}

/// The answer to the client.
pub(super) struct FillRefusal {
    status: Status,
    message: Cow<'static, str>,
}

/// Blocks of a file that are dropped in one turn. Derived: some 100 ns each, so 25 us.
const DROP_SLICE: u32 = 256;
/// Share of the memory that may be on its way in at once, in percent. Guessed.
const FILLING_PERCENT: u64 = 50;

pub(super) const LATE: &str = "the deadline passed before the source had answered";
const UNKNOWN: FillRefusal = FillRefusal {
    status: Status::UnknownFile,
    message: Cow::Borrowed("the file id is not known: look the path up again"),
};
const STALE: FillRefusal = FillRefusal {
    status: Status::StaleVersion,
    message: Cow::Borrowed("the file has changed: look it up again"),
};
const PAST_END: FillRefusal = FillRefusal {
    status: Status::OutOfRange,
    message: Cow::Borrowed("the offset is at or past the end of the file"),
};
const ALL_PINNED: FillRefusal = FillRefusal {
    status: Status::Busy,
    message: Cow::Borrowed("all memory is being sent or filled: try again"),
};
const NOT_YET: FillRefusal = FillRefusal {
    status: Status::Busy,
    message: Cow::Borrowed("too many blocks are on their way in: try again"),
};

/// Returns the bytes of blocks that may be on their way in.
pub(super) fn filling_max(capacity_bytes: u64) -> u64 {
    capacity_bytes * FILLING_PERCENT / 100
}

/// Returns where a block may be taken from for this request. Another node that asks has asked others.
fn from_for(requester: &Requester) -> &'static FillFrom {
    if requester.header.op == Op::Fetch as u8 { &FillFrom::Source } else { &FillFrom::Anywhere }
}

impl Worker {
    pub(super) fn on_miss(
        &mut self,
        now: u64,
        requester: &Requester,
        range: &Range,
        key: BlockKey,
        offset: u32,
        actions: &mut Vec<Action>,
    ) {
        if requester.deadline.is_some_and(|deadline| deadline <= now) {
            self.fail(requester, Status::DeadlineExceeded, "the deadline passed", actions);
            return;
        }
        if requester.header.op == Op::Peek as u8 && !self.can_peek(range, key, offset) {
            self.fail(requester, Status::NotCached, "not cached here", actions);
            return;
        }
        let counters = self.counters();
        counters.miss_count.add(1);
        counters.miss_bytes.add(u64::from(range.length));
        if self.read_small(requester, range, key, offset, actions) {
            return;
        }
        let amount = Amount::Needed;
        self.bring(Miss { requester: *requester, range: *range, key, offset, amount }, actions);
    }

    /// Has a miss wait for its bytes, or for its turn.
    fn bring(&mut self, miss: Miss, actions: &mut Vec<Action>) {
        let Miss { requester, range, key, offset, .. } = &miss;
        let (requester, key) = (*requester, *key);
        let payer = Payer::Client(requester.shard, requester.token);
        let needs = Chunks::covering(*offset, range.length, u32::MAX);
        let waits = (self.turns.has_waiting(payer) || self.is_full_of_fills)
            && self.incoming.fills(&key, needs).next().is_none();
        let later = if waits { Some(miss) } else { self.try_fill(payer, miss, actions) };
        self.deadline_count += usize::from(later.is_some() && requester.deadline.is_some());
        if let Some(miss) = later
            && !self.turns.wait(payer, miss)
        {
            self.deadline_count -= usize::from(requester.deadline.is_some());
            self.fail(&requester, NOT_YET.status, &NOT_YET.message, actions);
        }
    }

    /// Begins the fills of a miss, or has it wait for those that are under way. Gives the miss back when
    /// there is no room at the moment; answers it when there will be none.
    fn try_fill(&mut self, payer: Payer, miss: Miss, actions: &mut Vec<Action>) -> Option<Miss> {
        let Miss { requester, range, key, offset, amount } = miss;
        // A block is leased as a whole.
        let is_lease = requester.header.op == Op::Lease as u8;
        let length = (!is_lease).then_some(range.length);
        let want = Want { key, version: range.version, offset, length, amount };
        match self.begin_fills(payer, want, from_for(&requester), actions) {
            Ok(needs) => {
                let wish = Wish::Read { requester, offset, length: range.length };
                self.wait_for(key, Waiter { needs, wish });
            }
            Err(Obstacle::Later) => return Some(miss),
            Err(Obstacle::OtherVersion) => {
                let wish = Wish::Read { requester, offset, length: range.length };
                self.wait_for_end(key, range.version, wish);
            }
            Err(Obstacle::Refused(refusal)) => {
                self.fail(&requester, refusal.status, &refusal.message, actions);
            }
        }
        None
    }

    /// Begins the fills of misses that waited, in turn, while there is room.
    pub(super) fn start_waiting(&mut self, now: u64, actions: &mut Vec<Action>) {
        self.is_full_of_fills = false;
        while let Some((payer, miss)) = self.turns.next() {
            let Miss { requester, range, key, offset, .. } = miss;
            let has_deadline = requester.deadline.is_some();
            if requester.deadline.is_some_and(|deadline| deadline <= now) {
                self.deadline_count -= 1;
                self.fail(&requester, Status::DeadlineExceeded, LATE, actions);
            } else if let Some(hit) = self.hit(&requester, &key, &range, offset) {
                self.deadline_count -= usize::from(has_deadline);
                self.serve(&requester, hit, offset, range.length, actions);
            } else if let Some(miss) = self.try_fill(payer, miss, actions) {
                // There is room in its own share, so it is the shard that is full.
                let is_full = self.turns.has_room(payer, self.shared.block_size);
                self.turns.put_back(payer, miss);
                if is_full {
                    self.is_full_of_fills = true;
                    return;
                }
                continue;
            } else {
                self.deadline_count -= usize::from(has_deadline);
            }
            self.turns.settle(payer);
        }
    }

    /// Ends what a client waits for that is gone. Fills that began go on, for the cache.
    pub(super) fn forget_misses(&mut self, shard: u32, token: Token) {
        let misses = self.turns.forget(Payer::Client(shard, token));
        let late = misses.iter().filter(|miss| miss.requester.deadline.is_some());
        self.deadline_count -= late.count();
    }

    /// Has a block in memory for a load.
    pub(super) fn ensure(
        &mut self,
        key: BlockKey,
        version: u64,
        from: FillFrom,
        reply: flume::Sender<Ensured>,
        actions: &mut Vec<Action>,
    ) {
        let is_from_member = matches!(from, FillFrom::Member(_));
        let amount = if is_from_member { Amount::Whole } else { Amount::Needed };
        self.ensure_by(key, version, amount, from, reply, actions);
    }

    fn ensure_by(
        &mut self,
        key: BlockKey,
        version: u64,
        amount: Amount,
        from: FillFrom,
        reply: flume::Sender<Ensured>,
        actions: &mut Vec<Action>,
    ) {
        let ensured = if self.is_resident(&key, version) {
            Ensured::Resident
        } else if self.draining {
            Ensured::Failed(Status::ShuttingDown, "the node is shutting down".to_owned())
        } else {
            let want = Want { key, version, offset: 0, length: None, amount };
            match self.begin_fills(Payer::Loads, want, &from, actions) {
                Ok(needs) => {
                    return self.wait_for(key, Waiter { needs, wish: Wish::Load { from, reply } });
                }
                Err(Obstacle::OtherVersion) => {
                    return self.wait_for_end(key, version, Wish::Load { from, reply });
                }
                Err(
                    Obstacle::Later | Obstacle::Refused(FillRefusal { status: Status::Busy, .. }),
                ) => Ensured::Busy,
                Err(Obstacle::Refused(refusal)) => {
                    Ensured::Failed(refusal.status, refusal.message.into_owned())
                }
            }
        };
        // The load may have been given up; then no task waits for this.
        let _ = reply.try_send(ensured);
    }

    /// True if every byte of the block is here.
    pub(super) fn is_resident(&self, key: &BlockKey, version: u64) -> bool {
        let found = self.cache.find(key).filter(|(_, found)| *found == version);
        found.is_some_and(|(entry, _)| self.cache.is_whole(entry))
    }

    /// Adds a waiter to what is under way.
    fn wait_for(&mut self, key: BlockKey, waiter: Waiter) {
        self.deadline_count += waiter.deadline_count();
        self.incoming.wait(key, waiter);
    }

    /// Has a wish wait until nothing of another version of the block is on its way.
    fn wait_for_end(&mut self, key: BlockKey, version: u64, wish: Wish) {
        let waiter = Waiter { needs: Chunks::all(u32::MAX), wish };
        self.deadline_count += waiter.deadline_count();
        self.incoming.wait_for_end(key, Successor { version, waiter });
    }

    /// Goes on with what waited for the end of another version.
    fn succeed(&mut self, key: BlockKey, successor: Successor, actions: &mut Vec<Action>) {
        let Successor { version, waiter } = successor;
        self.deadline_count -= waiter.deadline_count();
        match waiter.wish {
            Wish::Read { requester, offset, length } => {
                let range = self.range_of(key, version, offset, length);
                self.bring(Miss { requester, range, key, offset, amount: Amount::Needed }, actions);
            }
            Wish::Load { from, reply } => self.ensure(key, version, from, reply, actions),
        }
    }

    /// Returns a range of a block as a client would ask for it.
    fn range_of(&self, key: BlockKey, version: u64, offset: u32, length: u32) -> Range {
        let start = u64::from(key.block) * u64::from(self.shared.block_size);
        Range { file: key.file, version, offset: start + u64::from(offset), length }
    }

    /// Begins to bring in what is wanted of a block, for which something will wait, but for what is here
    /// or under way already. Returns the chunks to wait for: something of them is under way.
    fn begin_fills(
        &mut self,
        payer: Payer,
        want: Want,
        from: &FillFrom,
        actions: &mut Vec<Action>,
    ) -> Result<Chunks, Obstacle> {
        let Want { key, version, offset, length, amount } = want;
        let (record, block_length) =
            self.fillable(key, version, offset).map_err(Obstacle::Refused)?;
        let is_other = self.incoming.has_other_version(&key, version);
        let needs = match length {
            // It waits for all that is on its way.
            _ if is_other => Chunks::all(u32::MAX),
            Some(length) => Chunks::covering(offset, length, block_length),
            None => Chunks::all(block_length),
        };
        for fill in self.incoming.fills(&key, needs) {
            if let Some(message) = &fill.overdue {
                let refusal =
                    FillRefusal { status: Status::SourceError, message: message.clone().into() };
                return Err(Obstacle::Refused(refusal));
            }
            if *from == FillFrom::Source {
                // Another node waits for it. A request to other nodes may in the end come to that one,
                // which would wait for itself.
                fill.errand.urge();
            }
            if !is_other {
                fill.errand.want(true);
            }
        }
        if is_other {
            return Err(Obstacle::OtherVersion);
        }
        let mut obstacle = None;
        let mut to_bring = self.to_bring(&want, needs, &record, block_length);
        if amount == Amount::Whole && record.is_stored && !to_bring.is_empty() {
            // What lies on a disk in several runs comes as it lies, beside what is here.
            to_bring = self.whole_from_disk(&key, version, block_length).unwrap_or(to_bring);
        }
        for chunks in to_bring {
            let run = Run { key, version, chunks, block_length };
            for (chunks, spot) in self.pieces(&run, record.is_stored, amount == Amount::Whole) {
                let run = Run { chunks, ..run };
                let begun = match spot {
                    Some(spot) => self.begin_disk_fill(payer, run, spot, actions),
                    None => self.begin_fill(payer, run, &record.path, from),
                };
                obstacle = begun.err().or(obstacle);
            }
        }
        match (self.incoming.fills(&key, needs).next(), obstacle) {
            (None, Some(obstacle)) => Err(obstacle),
            // What could not begin yet is asked for again when the rest is here.
            _ => Ok(needs),
        }
    }

    /// Returns the runs of chunks that a miss brings in.
    fn to_bring(&self, want: &Want, needs: Chunks, record: &FileRecord, block_length: u32) -> Runs {
        let Want { key, version, amount, .. } = want;
        let all = Chunks::all(block_length);
        let whole = Runs::from_slice(&[all]);
        if *amount == Amount::Whole {
            let is_coming = self.incoming.fills(key, all).any(|fill| fill.chunks == all);
            return if is_coming { Runs::new() } else { whole };
        }
        let run = Run { key: *key, version: *version, chunks: needs, block_length };
        let in_parts = record.is_read_in_parts || record.is_stored && self.is_on_disk(&run);
        let wanted = if in_parts { needs } else { all };
        let missing = self.cache.missing(key, *version, wanted);
        let mut runs = self.incoming.without(key, &missing);
        if runs.len() > RUNS_MAX {
            return whole;
        }
        if let Some(last) = runs.last_mut()
            && last.end == wanted.end
        {
            last.end = self.read_ahead(want, needs, *last, all.end);
        }
        runs
    }

    /// Returns the end of a run, with more chunks for a reader that goes on: as many as it has had before
    /// the run without a gap.
    fn read_ahead(&self, want: &Want, needs: Chunks, run: Chunks, block_end: u32) -> u32 {
        let Want { key, version, .. } = want;
        let one = |chunk| Chunks { first: chunk, end: chunk + 1 };
        let is_coming = |chunk| self.incoming.fills(key, one(chunk)).next().is_some();
        let is_here = |chunk| self.cache.missing(key, *version, one(chunk)).is_empty();
        let last = self.cache.last_chunk(key, *version);
        let goes_on = needs.first > 0
            && last.is_some_and(|last| last == needs.first || last + 1 == needs.first);
        if !goes_on {
            return run.end;
        }
        let is_had = |chunk: &u32| is_coming(*chunk) || is_here(*chunk);
        let before = (0..run.first).rev().take_while(is_had).count();
        let after = (run.end..block_end).take(before).take_while(|chunk| !is_had(chunk));
        run.end + after.count() as u32
    }

    /// Begins to bring in a run of chunks.
    fn begin_fill(
        &mut self,
        payer: Payer,
        run: Run,
        path: &Arc<str>,
        from: &FillFrom,
    ) -> Result<(), Obstacle> {
        let Run { key, version, chunks, block_length } = run;
        let length = chunks.length(block_length);
        let blank = self.blank_for_fill(payer, length)?;
        let start = u64::from(key.block) * u64::from(self.shared.block_size);
        let errand = Arc::new(Errand::default());
        let for_side = Arc::clone(&errand);
        let job = FillJob {
            shard: self.shard,
            run,
            path: Arc::clone(path),
            offset: start + u64::from(chunks.offset()),
            blank,
            from: from.clone(),
            errand: for_side,
        };
        if let Err(blank) = self.side.offer_fill(job) {
            self.cache.release_blank(blank);
            return Err(Obstacle::Later);
        }
        self.filling_bytes += u64::from(length);
        self.turns.began(payer, length);
        self.incoming.begin(key, version, Fill { chunks, length, payer, errand, overdue: None });
        Ok(())
    }

    /// Takes memory for bytes that are to come in for this payer, if there is room in all shares.
    pub(super) fn blank_for_fill(&mut self, payer: Payer, length: u32) -> Result<Blank, Obstacle> {
        // Blocks that are asked for faster than the source gives them must not empty the cache.
        let is_full = self.filling_bytes > 0
            && self.filling_bytes + u64::from(length) > filling_max(self.cache.capacity_bytes());
        if is_full || !self.turns.has_room(payer, length) {
            return Err(Obstacle::Later);
        }
        self.cache.allocate(length).ok_or_else(|| {
            self.counters().short_count.add(1);
            Obstacle::Refused(ALL_PINNED)
        })
    }

    /// True if a range that only a cache is asked for is on a disk.
    fn can_peek(&self, range: &Range, key: BlockKey, offset: u32) -> bool {
        if self.flash.is_none() {
            return false;
        }
        let Ok((record, block_length)) = self.fillable(key, range.version, offset) else {
            return false;
        };
        let needs = Chunks::covering(offset, range.length, block_length);
        let (length, amount) = (Some(range.length), Amount::Needed);
        let want = Want { key, version: range.version, offset, length, amount };
        let runs = self.to_bring(&want, needs, &record, block_length);
        let run = |chunks| Run { key, version: range.version, chunks, block_length };
        record.is_stored && runs.iter().all(|chunks| self.is_on_disk(&run(*chunks)))
    }

    /// Answers a request for a block behind those that a file can have.
    pub(super) fn fail_past_end(
        &mut self,
        requester: &Requester,
        range: &Range,
        actions: &mut Vec<Action>,
    ) {
        let refusal = match self.shared.files.get(range.file) {
            None => UNKNOWN,
            Some(record) if record.version != range.version => STALE,
            Some(_) => PAST_END,
        };
        self.fail(requester, refusal.status, &refusal.message, actions);
    }

    /// Returns the file of a block that may be filled, and the block's length.
    pub(super) fn fillable(
        &self,
        key: BlockKey,
        version: u64,
        offset: u32,
    ) -> Result<(FileRecord, u32), FillRefusal> {
        let record = self.shared.files.get(key.file).ok_or(UNKNOWN)?;
        if record.version != version {
            return Err(STALE);
        }
        let block_size = u64::from(self.shared.block_size);
        let start = u64::from(key.block) * block_size;
        let length = record.length.saturating_sub(start).min(block_size) as u32;
        if offset >= length {
            return Err(PAST_END);
        }
        Ok((record, length))
    }

    pub(super) fn on_filled(
        &mut self,
        run: Run,
        stay: Stay,
        result: Result<Arrival, (Blank, FillError)>,
        actions: &mut Vec<Action>,
    ) {
        let outcome = match result {
            Ok(arrival) => self.take_in(run, stay, arrival),
            Err((blank, error)) => {
                self.cache.release_blank(blank);
                if let FillError::Store(error) = &error {
                    self.count_failure(error);
                }
                Err(error)
            }
        };
        self.end_fill(run, stay, outcome, actions);
    }

    /// Goes on with all that waited for a fill, which has ended in this way.
    pub(super) fn end_fill(
        &mut self,
        run: Run,
        stay: Stay,
        outcome: Result<Filling, FillError>,
        actions: &mut Vec<Action>,
    ) {
        let EndedFill { fill, waiters, successors } =
            self.incoming.end(&run.key, run.version, run.chunks);
        if fill.errand.is_hedged() {
            self.counters().hedged_count.add(1);
        }
        if fill.overdue.is_none() {
            self.filling_bytes -= u64::from(fill.length);
            self.turns.ended(fill.payer, fill.length);
        }
        for waiter in waiters {
            self.deadline_count -= waiter.deadline_count();
            match waiter.wish {
                Wish::Read { requester, offset, length } => {
                    let range = self.range_of(run.key, run.version, offset, length);
                    let amount = Amount::Needed;
                    let miss = Miss { requester, range, key: run.key, offset, amount };
                    self.answer_read(miss, &outcome, actions);
                }
                Wish::Load { reply, .. } if stay == Stay::Passing => {
                    // It changed before it could stay.
                    let error = StoreError::Changed;
                    let _ = reply.try_send(Ensured::Failed(error.status(), error.to_string()));
                }
                Wish::Load { from, reply } => {
                    self.answer_load(run, from, reply, &outcome, actions);
                }
            }
        }
        let all = Chunks::all(run.block_length);
        if stay == Stay::Passing && self.incoming.fills(&run.key, all).next().is_none() {
            // What is being sent of it, or leased, stays until that has ended.
            self.cache.remove(&run.key);
        }
        for successor in successors {
            self.succeed(run.key, successor, actions);
        }
        self.start_waiting(self.now, actions);
    }

    /// Goes on with a read that waited for a fill that has ended.
    fn answer_read(
        &mut self,
        miss: Miss,
        outcome: &Result<Filling, FillError>,
        actions: &mut Vec<Action>,
    ) {
        let Miss { requester, range, key, offset, .. } = &miss;
        match outcome {
            // The block is looked up for each: the reply to the one before may have found it damaged, or room
            // for what that one needs besides may have been made here.
            Ok(_) => match self.hit(requester, key, range, *offset) {
                Some(hit) => {
                    self.cache.note_place(hit.entry, *offset);
                    self.serve(requester, hit, *offset, range.length, actions);
                }
                None => {
                    // If all it waited for has come, some of it has left again: all in one cannot.
                    let needs = Chunks::covering(*offset, range.length, u32::MAX);
                    let waits = self.incoming.fills(key, needs).next().is_some();
                    let amount = if waits { Amount::Needed } else { Amount::Whole };
                    self.bring(Miss { amount, ..miss }, actions);
                }
            },
            Err(FillError::Store(error)) => {
                self.fail(requester, error.status(), &error.to_string(), actions);
            }
            Err(FillError::IsShared) => {
                self.bring(Miss { amount: Amount::Whole, ..miss }, actions);
            }
            // It joined a pull, or a fill that no request waited for at the time, and has the block
            // brought in earnest now.
            Err(FillError::NotThere | FillError::Unwanted) => {
                let (requester, range, key, offset) = (*requester, *range, *key, *offset);
                self.on_miss(self.now, &requester, &range, key, offset, actions);
            }
        }
    }

    /// Goes on with a load that waited for a fill that has ended.
    fn answer_load(
        &mut self,
        run: Run,
        from: FillFrom,
        reply: flume::Sender<Ensured>,
        outcome: &Result<Filling, FillError>,
        actions: &mut Vec<Action>,
    ) {
        let Run { key, version, chunks, block_length } = run;
        let ensured = match outcome {
            Ok(filling) if self.is_resident(&key, version) => {
                Ensured::Filled(*filling, chunks.length(block_length))
            }
            Err(FillError::Store(error)) => match error.status() {
                Status::Busy => Ensured::Busy,
                status => Ensured::Failed(status, error.to_string()),
            },
            // What waits for this very pull is told.
            Err(FillError::NotThere) if matches!(from, FillFrom::Member(_)) => Ensured::NotThere,
            Err(FillError::IsShared) => {
                return self.ensure_by(key, version, Amount::Whole, from, reply, actions);
            }
            Ok(_) | Err(FillError::NotThere | FillError::Unwanted) => {
                return self.ensure(key, version, from, reply, actions);
            }
        };
        // A load that was given up has no receiver.
        let _ = reply.try_send(ensured);
    }

    /// Takes bytes in that have come.
    fn take_in(
        &mut self,
        Run { key, version, chunks, block_length }: Run,
        stay: Stay,
        Arrival { block, sums, filling }: Arrival,
    ) -> Result<Filling, FillError> {
        let (counters, length) = (self.counters(), u64::from(block.length()));
        match filling {
            Filling::Source => {
                counters.fill_count.add(1);
                counters.fill_bytes.add(length);
            }
            Filling::Peer => {
                counters.peer_fill_count.add(1);
                counters.peer_fill_bytes.add(length);
            }
            // Counted by the tier.
            Filling::Disk => (),
        }
        let entry = match chunks == Chunks::all(block_length) {
            true => self.cache.insert(key, version, block, &sums),
            false => self.cache.insert_part(key, version, block_length, chunks, block, &sums),
        };
        if stay == Stay::Pinned {
            self.cache.keep(entry, &key, true);
        }
        match filling {
            Filling::Disk => self.side.judge(Judge { shard: self.shard, entry, key }),
            Filling::Source | Filling::Peer => self.note_fill(entry, key, version, stay),
        }
        // While it was on its way a newer version may have been seen, and its drop gone by. What does not stay
        // is for those alone that asked for this version.
        if stay != Stay::Passing
            && self.shared.files.get(key.file).is_some_and(|record| record.version != version)
        {
            self.cache.remove(&key);
            return Err(StoreError::Changed.into());
        }
        Ok(filling)
    }

    fn count_failure(&self, error: &StoreError) {
        let counters = self.counters();
        if error.status() != Status::Busy {
            counters.fill_error_count.add(1);
        }
        if *error == StoreError::Differs {
            counters.unnoticed_change_count.add(1);
        }
        // That a source hangs is told once, where that is found.
        if let StoreError::Failed(error) = error {
            tracing::warn!("fill a block: {error}");
        }
    }

    /// Answers all that wait for a block whose source hangs, and from now on all that ask for it. Its
    /// memory is not free before the source has answered.
    pub(super) fn on_overdue(&mut self, run: Run, message: String, actions: &mut Vec<Action>) {
        let Some((fill, waiters)) = self.incoming.hang(&run.key, run.version, run.chunks) else {
            return;
        };
        if fill.overdue.replace(message.clone()).is_none() {
            // A fill that hangs for ever must not keep others from being filled.
            self.filling_bytes -= u64::from(fill.length);
            self.turns.ended(fill.payer, fill.length);
        }
        for waiter in waiters {
            self.deadline_count -= waiter.deadline_count();
            match waiter.wish {
                Wish::Read { requester, .. } => {
                    self.fail(&requester, Status::SourceError, &message, actions);
                }
                Wish::Load { reply, .. } => {
                    drop(reply.try_send(Ensured::Failed(Status::SourceError, message.clone())));
                }
            }
        }
        self.start_waiting(self.now, actions);
    }

    /// Forgets waiters that are gone: a connection's, by its shard, and loads that were given up. A fill
    /// that nothing else waits for is not begun any more.
    pub(super) fn forget_waiters(&mut self, gone: Option<(u32, Token)>) {
        self.deadline_count -= self.incoming.forget(gone);
    }

    /// Answers the waiters whose deadline has passed; their fills go on for the others, and the cache.
    pub(super) fn expire_waiters(&mut self, now: u64, actions: &mut Vec<Action>) {
        if self.deadline_count == 0 {
            return;
        }
        let mut expired: Vec<Requester> = self.turns.expire(now);
        self.incoming.expire(now, &mut expired);
        self.deadline_count -= expired.len();
        for requester in expired {
            self.fail(&requester, Status::DeadlineExceeded, LATE, actions);
        }
    }

    /// Drops the blocks of a file, a slice of them in a turn: the rest follows by mail to this shard, so
    /// that others are served in between.
    pub(super) fn on_drop(&mut self, mut job: DropJob, actions: &mut Vec<Action>) {
        // Blocks that come in meanwhile may go as well, but not for ever.
        let left = job.left.get_or_insert_with(|| self.cache.block_count());
        let count_max = DROP_SLICE.min(*left);
        let (block_count, byte_count) = self.cache.remove_of_file(job.file, count_max);
        *left -= block_count;
        job.dropped.block_count += u64::from(block_count);
        job.dropped.byte_count += byte_count;
        if block_count == DROP_SLICE && *left > 0 {
            actions.push(Action::Post(self.shard, Mail::Drop(job)));
        } else {
            self.drop_on_disks(job, actions);
        }
    }
}
