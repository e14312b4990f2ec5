//! Brings blocks in: one read of the source for all that wait for the block.
//!
//! Owns the waiters. Always holds: a block that is being filled is in `fills` once, however many ask
//! for it, and every waiter is answered when the fill ends or its own deadline passes.

use std::borrow::Cow;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::Arc;

use millrace_proto::message::Range;
use millrace_proto::{Op, Status};
use smallvec::SmallVec;

use super::turns::{Miss, Payer};
use super::{Action, Hit, Worker};
use crate::cache::BlockKey;
use crate::files::FileRecord;
use crate::mailbox::{Arrival, DropJob, Ensured, FillFrom, Filling, Mail, Requester};
use crate::memory::Blank;
use crate::side::FillJob;
use crate::store::{Errand, FillError, StoreError};
use crate::token::Token;

/// A request or a load that waits for a fill.
enum Waiter {
    /// A client, for a range of the block.
    Reader { requester: Requester, offset: u32, length: u32 },
    /// A load or a hand-over, for the block to be there.
    Load { from: FillFrom, reply: flume::Sender<Ensured> },
}

/// A block on its way in.
pub(super) struct Fill {
    version: u64,
    /// Length of the block in bytes.
    length: u32,
    payer: Payer,
    waiters: SmallVec<[Waiter; 1]>,
    errand: Arc<Errand>,
    /// The reason why the source hangs, for all requests until it has answered.
    overdue: Option<String>,
}

/// Why a fill did not begin.
enum Obstacle {
    /// There is no room for it at the moment.
    Later,
    /// It cannot be.
    Refused(FillRefusal),
}

/// The answer to the client.
struct FillRefusal {
    status: Status,
    message: Cow<'static, str>,
}

/// Blocks of a file that are dropped in one turn. Derived: some 100 ns each, so 25 us.
const DROP_SLICE: u32 = 256;
/// Share of the memory that may be on its way in at once, in percent. Guessed.
const FILLING_PERCENT: u64 = 50;

const LATE: &str = "the deadline passed before the source had answered";
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
        if requester.header.op == Op::Peek as u8 {
            self.fail(requester, Status::NotCached, "not cached here", actions);
            return;
        }
        let counters = self.counters();
        counters.miss_count.add(1);
        counters.miss_bytes.add(u64::from(range.length));
        let miss = Miss { requester: *requester, range: *range, key, offset };
        let payer = Payer::Client(requester.shard, requester.token);
        let waits = self.turns.has_waiting(payer) && !self.fills.contains_key(&key);
        let later = if waits { Some(miss) } else { self.try_fill(payer, miss, actions) };
        self.deadline_count += usize::from(later.is_some() && requester.deadline.is_some());
        if let Some(miss) = later
            && !self.turns.wait(payer, miss)
        {
            self.deadline_count -= usize::from(requester.deadline.is_some());
            self.fail(requester, NOT_YET.status, &NOT_YET.message, actions);
        }
    }

    /// Begins the fill of a miss, or has it wait for one that is under way. Gives the miss back when
    /// there is no room at the moment; answers it when there will be none.
    fn try_fill(&mut self, payer: Payer, miss: Miss, actions: &mut Vec<Action>) -> Option<Miss> {
        let Miss { requester, range, key, offset } = miss;
        match self.begin_fill(payer, key, range.version, Some(offset), from_for(&requester)) {
            Ok(()) => {
                self.deadline_count += usize::from(requester.deadline.is_some());
                self.wait_for(key, Waiter::Reader { requester, offset, length: range.length });
            }
            Err(Obstacle::Later) => return Some(miss),
            Err(Obstacle::Refused(refusal)) => {
                self.fail(&requester, refusal.status, &refusal.message, actions);
            }
        }
        None
    }

    /// Begins the fills of misses that waited, in turn, while there is room.
    pub(super) fn start_waiting(&mut self, now: u64, actions: &mut Vec<Action>) {
        while let Some((payer, miss)) = self.turns.next() {
            let Miss { requester, range, key, offset } = miss;
            let has_deadline = requester.deadline.is_some();
            if requester.deadline.is_some_and(|deadline| deadline <= now) {
                self.deadline_count -= 1;
                self.fail(&requester, Status::DeadlineExceeded, LATE, actions);
            } else if let Some((entry, version)) = self.cache.find(&key)
                && version == range.version
            {
                self.deadline_count -= usize::from(has_deadline);
                let hit = Hit { entry, block_length: self.cache.length(entry) };
                self.serve(&requester, hit, offset, range.length, actions);
            } else if let Some(miss) = self.try_fill(payer, miss, actions) {
                // There is room in its own share, so it is the shard that is full.
                let is_full = self.turns.has_room(payer, self.shared.block_size);
                self.turns.put_back(payer, miss);
                if is_full {
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
    ) {
        let resident = self.cache.find(&key).is_some_and(|(_, found)| found == version);
        let ensured = if resident {
            Ensured::Resident
        } else if self.draining {
            Ensured::Failed(Status::ShuttingDown, "the node is shutting down".to_owned())
        } else {
            match self.begin_fill(Payer::Loads, key, version, None, &from) {
                Ok(()) => return self.wait_for(key, Waiter::Load { from, reply }),
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

    /// Adds a waiter to a fill that is under way.
    fn wait_for(&mut self, key: BlockKey, waiter: Waiter) {
        self.fills.get_mut(&key).expect("the fill has begun").waiters.push(waiter);
    }

    /// Begins to fill a block, for which something will wait, unless that has begun already.
    fn begin_fill(
        &mut self,
        payer: Payer,
        key: BlockKey,
        version: u64,
        offset: Option<u32>,
        from: &FillFrom,
    ) -> Result<(), Obstacle> {
        if let Some(fill) = self.fills.get_mut(&key)
            && fill.version == version
        {
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
            fill.errand.want(true);
            return Ok(());
        }
        let (record, length) = self.fillable(key, version, offset).map_err(Obstacle::Refused)?;
        let MapEntry::Vacant(place) = self.fills.entry(key) else {
            // The version before this one is still on its way in; it will find itself stale.
            let refusal = FillRefusal { status: Status::Busy, ..STALE };
            return Err(Obstacle::Refused(refusal));
        };
        // Blocks that are asked for faster than the source gives them must not empty the cache.
        let is_full = self.filling_bytes > 0
            && self.filling_bytes + u64::from(length) > filling_max(self.cache.capacity_bytes());
        if is_full || !self.turns.has_room(payer, length) {
            return Err(Obstacle::Later);
        }
        let Some(blank) = self.cache.allocate(length) else {
            self.counters().short_count.add(1);
            return Err(Obstacle::Refused(ALL_PINNED));
        };
        let offset = u64::from(key.block) * u64::from(self.shared.block_size);
        let path = record.path;
        let errand = Arc::new(Errand::default());
        let for_side = Arc::clone(&errand);
        let job = FillJob {
            shard: self.shard,
            key,
            version,
            path,
            offset,
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
        let waiters = SmallVec::new();
        place.insert(Fill { version, length, payer, waiters, errand, overdue: None });
        Ok(())
    }

    /// Returns the file of a block that may be filled, and the block's length.
    fn fillable(
        &self,
        key: BlockKey,
        version: u64,
        offset: Option<u32>,
    ) -> Result<(FileRecord, u32), FillRefusal> {
        let record = self.shared.files.get(key.file).ok_or(UNKNOWN)?;
        if record.version != version {
            return Err(STALE);
        }
        let block_size = u64::from(self.shared.block_size);
        let start = u64::from(key.block) * block_size;
        let length = record.length.saturating_sub(start).min(block_size) as u32;
        if length == 0 || offset.is_some_and(|offset| offset >= length) {
            return Err(PAST_END);
        }
        Ok((record, length))
    }

    pub(super) fn on_filled(
        &mut self,
        key: BlockKey,
        version: u64,
        is_pinned: bool,
        result: Result<Arrival, (Blank, FillError)>,
        actions: &mut Vec<Action>,
    ) {
        let fill = self.fills.remove(&key).expect("a fill ends once");
        assert_eq!(fill.version, version);
        if fill.overdue.is_none() {
            self.filling_bytes -= u64::from(fill.length);
            self.turns.ended(fill.payer, fill.length);
        }
        let outcome = match result {
            Ok(arrival) => self.take_in(key, version, is_pinned, arrival),
            Err((blank, error)) => {
                self.cache.release_blank(blank);
                if let FillError::Store(error) = &error {
                    self.count_failure(error);
                }
                Err(error)
            }
        };
        for waiter in fill.waiters {
            if let Waiter::Reader { requester, .. } = &waiter {
                self.deadline_count -= usize::from(requester.deadline.is_some());
            }
            match (waiter, &outcome) {
                (Waiter::Reader { requester, offset, length }, Ok(_)) => {
                    // The block is looked up for each, because the reply to the one before may have
                    // found it damaged.
                    match self.cache.find(&key) {
                        Some((entry, _)) => {
                            let hit = Hit { entry, block_length: self.cache.length(entry) };
                            self.serve(&requester, hit, offset, length, actions);
                        }
                        None => self.fail_damaged(&requester, actions),
                    }
                }
                // A load that was given up has no receiver.
                (Waiter::Load { reply, .. }, Ok(filling)) => {
                    drop(reply.try_send(Ensured::Filled(*filling, fill.length)));
                }
                (Waiter::Reader { requester, .. }, Err(FillError::Store(error))) => {
                    self.fail(&requester, error.status(), &error.to_string(), actions);
                }
                (Waiter::Load { reply, .. }, Err(FillError::Store(error))) => {
                    drop(reply.try_send(match error.status() {
                        Status::Busy => Ensured::Busy,
                        status => Ensured::Failed(status, error.to_string()),
                    }));
                }
                // What waits for this very pull is told. Everything else joined a pull, or a fill that no
                // request waited for at the time, and has the block brought in earnest now.
                (Waiter::Load { from: FillFrom::Member(_), reply }, Err(FillError::NotThere)) => {
                    drop(reply.try_send(Ensured::NotThere))
                }
                (Waiter::Load { from, reply }, Err(_)) => self.ensure(key, version, from, reply),
                (Waiter::Reader { requester, offset, length }, Err(_)) => {
                    let start = u64::from(key.block) * u64::from(self.shared.block_size);
                    let at = start + u64::from(offset);
                    let range = Range { file: key.file, version, offset: at, length };
                    self.on_miss(self.now, &requester, &range, key, offset, actions);
                }
            }
        }
        self.start_waiting(self.now, actions);
    }

    /// Takes a block in that has come.
    fn take_in(
        &mut self,
        key: BlockKey,
        version: u64,
        is_pinned: bool,
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
        }
        let entry = self.cache.insert(key, version, block, &sums);
        if is_pinned {
            self.cache.keep(entry, &key, true);
        }
        // While it was on its way a newer version may have been seen, and its drop gone by.
        if self.shared.files.get(key.file).is_some_and(|record| record.version != version) {
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
    pub(super) fn on_overdue(
        &mut self,
        key: BlockKey,
        version: u64,
        message: String,
        actions: &mut Vec<Action>,
    ) {
        let Some(fill) = self.fills.get_mut(&key).filter(|fill| fill.version == version) else {
            return;
        };
        let waiters = std::mem::take(&mut fill.waiters);
        if fill.overdue.replace(message.clone()).is_none() {
            // A fill that hangs for ever must not keep others from being filled.
            self.filling_bytes -= u64::from(fill.length);
            self.turns.ended(fill.payer, fill.length);
        }
        for waiter in waiters {
            match waiter {
                Waiter::Reader { requester, .. } => {
                    self.deadline_count -= usize::from(requester.deadline.is_some());
                    self.fail(&requester, Status::SourceError, &message, actions);
                }
                Waiter::Load { reply, .. } => {
                    drop(reply.try_send(Ensured::Failed(Status::SourceError, message.clone())));
                }
            }
        }
        self.start_waiting(self.now, actions);
    }

    /// Forgets waiters that are gone: a connection's, by its shard, and loads that were given up. A fill
    /// that nothing else waits for is not begun any more.
    pub(super) fn forget_waiters(&mut self, gone: Option<(u32, Token)>) {
        let mut deadlines = 0;
        for fill in self.fills.values_mut() {
            let before = fill.waiters.len();
            fill.waiters.retain(|waiter| match waiter {
                Waiter::Reader { requester, .. } => {
                    let is_gone = gone == Some((requester.shard, requester.token));
                    deadlines += usize::from(is_gone && requester.deadline.is_some());
                    !is_gone
                }
                Waiter::Load { reply, .. } => !reply.is_disconnected(),
            });
            if fill.waiters.len() < before && fill.waiters.is_empty() {
                fill.errand.want(false);
            }
        }
        self.deadline_count -= deadlines;
    }

    /// Answers the waiters whose deadline has passed; their fills go on for the others, and the cache.
    pub(super) fn expire_waiters(&mut self, now: u64, actions: &mut Vec<Action>) {
        if self.deadline_count == 0 {
            return;
        }
        let mut expired: Vec<Requester> = self.turns.expire(now);
        for fill in self.fills.values_mut() {
            fill.waiters.retain(|waiter| match waiter {
                Waiter::Reader { requester, .. }
                    if requester.deadline.is_some_and(|deadline| deadline <= now) =>
                {
                    expired.push(*requester);
                    false
                }
                _ => true,
            });
        }
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
            // The caller may have gone; the blocks are still dropped.
            let _ = job.reply.try_send(job.dropped);
        }
    }
}
