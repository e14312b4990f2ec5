//! Brings blocks in: one read of the source for all who wait for the block.
//!
//! Owns the waiters. Always holds: a block that is being filled is in `fills` once, however many ask
//! for it, and every waiter is answered when the fill ends or its own deadline passes.

use std::collections::hash_map::Entry as MapEntry;

use millrace_proto::message::Range;
use millrace_proto::{FileId, Op, Status, placement};
use smallvec::SmallVec;

use super::{Action, Hit, Worker};
use crate::cache::BlockKey;
use crate::files::FileRecord;
use crate::mailbox::{Arrival, Dropped, Ensured, Filling, Requester};
use crate::memory::Blank;
use crate::side::{FillFrom, FillJob};
use crate::store::StoreError;

/// Who waits for a fill.
enum Waiter {
    /// A client, for a range of the block.
    Reader { requester: Requester, offset: u32, length: u32 },
    /// A load, for the block to be there.
    Load(flume::Sender<Ensured>),
}

/// A block on its way in.
pub(super) struct Fill {
    version: u64,
    /// Length of the block in bytes.
    length: u32,
    waiters: SmallVec<[Waiter; 1]>,
}

/// Why a fill did not begin.
struct Refusal {
    status: Status,
    message: &'static str,
}

/// Share of the memory that may be on its way in at once, in percent. Guessed.
const FILLING_PERCENT: u64 = 50;

const UNKNOWN: Refusal = Refusal {
    status: Status::UnknownFile,
    message: "the file id is not known: look the path up again",
};
const STALE: Refusal =
    Refusal { status: Status::StaleVersion, message: "the file has changed: look it up again" };
const PAST_END: Refusal =
    Refusal { status: Status::OutOfRange, message: "the offset is at or past the end of the file" };
const ALL_PINNED: Refusal =
    Refusal { status: Status::Busy, message: "all memory is being sent or filled: try again" };
const FILLING_FULL: Refusal =
    Refusal { status: Status::Busy, message: "half of the memory is on its way in: try again" };
const QUEUE_FULL: Refusal = Refusal {
    status: Status::Busy,
    message: "too many blocks wait for the source (fill_queue_max)",
};

/// Where a block may be taken from for this request. Another node that asks has asked others.
fn from_for(requester: &Requester) -> FillFrom {
    if requester.header.op == Op::Fetch as u8 { FillFrom::Source } else { FillFrom::Anywhere }
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
        let waiter = Waiter::Reader { requester: *requester, offset, length: range.length };
        match self.begin_fill(key, range.version, Some(offset), from_for(requester), waiter) {
            Ok(()) => {
                self.deadline_count += usize::from(requester.deadline.is_some());
                let counters = self.counters();
                counters.miss_count.add(1);
                counters.miss_bytes.add(u64::from(range.length));
            }
            Err((refusal, _)) => self.fail(requester, refusal.status, refusal.message, actions),
        }
    }

    /// Brings a block in for somebody who reads it, though it could not be pulled.
    fn fill_for_reader(
        &mut self,
        requester: &Requester,
        key: BlockKey,
        version: u64,
        offset: u32,
        waiter: Waiter,
        actions: &mut Vec<Action>,
    ) {
        match self.begin_fill(key, version, Some(offset), from_for(requester), waiter) {
            Ok(()) => self.deadline_count += usize::from(requester.deadline.is_some()),
            Err((refusal, _)) => self.fail(requester, refusal.status, refusal.message, actions),
        }
    }

    /// Has a block in memory for a load.
    pub(super) fn ensure(
        &mut self,
        key: BlockKey,
        version: u64,
        from: FillFrom,
        reply: flume::Sender<Ensured>,
    ) {
        let resident = self.cache.find(&key, key.hash()).is_some_and(|(_, found)| found == version);
        let answer = if resident {
            Some((Ensured::Resident, reply))
        } else if self.draining {
            Some((
                Ensured::Failed(Status::ShuttingDown, "the node is shutting down".to_owned()),
                reply,
            ))
        } else {
            match self.begin_fill(key, version, None, from, Waiter::Load(reply)) {
                Ok(()) => None,
                Err((refusal, Waiter::Load(reply))) if refusal.status == Status::Busy => {
                    Some((Ensured::Busy, reply))
                }
                Err((refusal, Waiter::Load(reply))) => {
                    Some((Ensured::Failed(refusal.status, refusal.message.to_owned()), reply))
                }
                Err((_, Waiter::Reader { .. })) => {
                    unreachable!("the waiter comes back as it was given")
                }
            }
        };
        if let Some((ensured, reply)) = answer {
            // The load may have been given up; then nobody asks.
            let _ = reply.try_send(ensured);
        }
    }

    /// Adds a waiter to the block's fill, beginning one if need be. A refusal gives the waiter back.
    fn begin_fill(
        &mut self,
        key: BlockKey,
        version: u64,
        offset: Option<u32>,
        from: FillFrom,
        waiter: Waiter,
    ) -> Result<(), (Refusal, Waiter)> {
        if let Some(fill) = self.fills.get_mut(&key)
            && fill.version == version
        {
            fill.waiters.push(waiter);
            return Ok(());
        }
        let (record, length) = match self.fillable(key, version, offset) {
            Ok(found) => found,
            Err(refusal) => return Err((refusal, waiter)),
        };
        let MapEntry::Vacant(place) = self.fills.entry(key) else {
            // The version before this one is still on its way in; it will find itself stale.
            return Err((Refusal { status: Status::Busy, ..STALE }, waiter));
        };
        // Blocks that are asked for faster than the source gives them must not empty the cache.
        let filling_max = self.cache.capacity_bytes() * FILLING_PERCENT / 100;
        if self.filling_bytes > 0 && self.filling_bytes + u64::from(length) > filling_max {
            return Err((FILLING_FULL, waiter));
        }
        let Some(blank) = self.cache.allocate(length) else { return Err((ALL_PINNED, waiter)) };
        let offset = u64::from(key.block) * u64::from(self.shared.block_size);
        let path = record.path;
        let job = FillJob { shard: self.shard, key, version, path, offset, blank, from };
        if let Err(blank) = self.side.offer_fill(job) {
            self.cache.release_blank(blank);
            return Err((QUEUE_FULL, waiter));
        }
        self.filling_bytes += u64::from(length);
        place.insert(Fill { version, length, waiters: SmallVec::from_iter([waiter]) });
        Ok(())
    }

    /// The file of a block that may be filled, and the block's length.
    fn fillable(
        &self,
        key: BlockKey,
        version: u64,
        offset: Option<u32>,
    ) -> Result<(FileRecord, u32), Refusal> {
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
        result: Result<Arrival, (Blank, StoreError)>,
        actions: &mut Vec<Action>,
    ) {
        let fill = self.fills.remove(&key).expect("a fill ends once");
        assert_eq!(fill.version, version);
        self.filling_bytes -= u64::from(fill.length);
        let outcome = match result {
            Ok((block, sums, filling)) => {
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
                    Err((STALE.status, STALE.message.to_owned()))
                } else {
                    Ok(filling)
                }
            }
            Err((blank, error)) => {
                self.cache.release_blank(blank);
                if error != StoreError::NotCached {
                    self.counters().fill_error_count.add(1);
                }
                if error.status() == Status::SourceError {
                    tracing::warn!("fill a block: {error}");
                }
                Err((error.status(), error.to_string()))
            }
        };
        for waiter in fill.waiters {
            if let (Waiter::Reader { requester, offset, .. }, Err((Status::NotCached, _))) =
                (&waiter, &outcome)
            {
                // It was to be pulled, and is read in earnest now.
                let (requester, offset) = (*requester, *offset);
                self.deadline_count -= usize::from(requester.deadline.is_some());
                self.fill_for_reader(&requester, key, version, offset, waiter, actions);
                continue;
            }
            match (waiter, &outcome) {
                (Waiter::Reader { requester, offset, length }, Ok(_)) => {
                    self.deadline_count -= usize::from(requester.deadline.is_some());
                    // Looked up for each: the reply to the one before may have found it damaged.
                    match self.cache.find(&key, key.hash()) {
                        Some((entry, _)) => {
                            let hit = Hit { entry, block_length: self.cache.length(entry) };
                            self.serve(&requester, hit, offset, length, actions);
                        }
                        None => self.fail_damaged(&requester, actions),
                    }
                }
                (Waiter::Reader { requester, .. }, Err((status, message))) => {
                    self.deadline_count -= usize::from(requester.deadline.is_some());
                    self.fail(&requester, *status, message, actions);
                }
                // A load that was given up has nobody who asks.
                (Waiter::Load(reply), Ok(filling)) => {
                    drop(reply.try_send(Ensured::Filled(*filling, fill.length)));
                }
                (Waiter::Load(reply), Err((status, message))) => {
                    drop(reply.try_send(Ensured::Failed(*status, message.clone())));
                }
            }
        }
    }

    /// Answers the waiters whose deadline has passed; their fills go on for the others, and the cache.
    pub(super) fn expire_waiters(&mut self, now: u64, actions: &mut Vec<Action>) {
        if self.deadline_count == 0 {
            return;
        }
        let mut expired: Vec<Requester> = Vec::new();
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
            let message = "the deadline passed before the source had answered";
            self.fail(&requester, Status::DeadlineExceeded, message, actions);
        }
    }

    pub(super) fn on_drop(
        &mut self,
        file: FileId,
        block_count: u32,
        reply: &flume::Sender<Dropped>,
    ) {
        let shard_count = self.shared.counters.len() as u32;
        let mut dropped = Dropped::default();
        if block_count > self.cache.block_count() {
            (dropped.block_count, dropped.byte_count) = self.cache.remove_file(file);
            // Whoever asked may have gone; the blocks are dropped all the same.
            let _ = reply.try_send(dropped);
            return;
        }
        for block in 0..block_count {
            let key = BlockKey { file, block };
            if placement::shard_of(key.hash(), shard_count) != self.shard {
                continue;
            }
            if let Some(length) = self.cache.remove(&key) {
                dropped.block_count += 1;
                dropped.byte_count += u64::from(length);
            }
        }
        // Whoever asked may have gone; the blocks are dropped all the same.
        let _ = reply.try_send(dropped);
    }
}
