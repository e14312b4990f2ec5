//! Where the shard meets its flash tier: what earns to be written, what is read from a disk for a miss, and what is
//! dropped there.
//!
//! Always holds: a miss that a disk can serve is accounted for like any other fill; what a disk cannot serve after all
//! is brought from elsewhere, and its waiters notice nothing but the time.

use std::io;
use std::sync::Arc;

use millrace_proto::message::Range;
use millrace_proto::{Op, Status, checksum};

use super::fill::{LATE, Obstacle};
use super::incoming::Fill;
use super::turns::Payer;
use super::{Action, Worker};
use crate::cache::{BlockKey, EntryIndex};
use crate::chunks::{Chunks, Runs};
use crate::flash::{FlashCounts, FlashEvent, Pieces, Small, Spot};
use crate::mailbox::{DropJob, Mail, Requester, Run, Stay};
use crate::ring::DiskJob;
use crate::store::{Errand, FillError};

/// Slots of the disks' index that are looked at in one turn. Derived: some 2 ns each, so 65 us.
const SWEEP_SLICE: usize = 32 << 10;

impl Worker {
    /// Has a block written to a disk that was used a second time, unless it is not to stay.
    pub(super) fn earn(&mut self, entry: EntryIndex, key: BlockKey, version: u64) {
        let Some(flash) = &mut self.flash else { return };
        let record = self.shared.files.get(key.file);
        if record.is_some_and(|record| record.is_stored && record.version == version) {
            flash.offer(self.now, entry, key, version);
        }
    }

    /// Notes that a block came in from elsewhere; one that came in before has earned to be written.
    pub(super) fn note_fill(&mut self, entry: EntryIndex, key: BlockKey, version: u64, stay: Stay) {
        let Some(flash) = &mut self.flash else { return };
        let is_second = flash.note_fill(&key);
        if stay == Stay::Pinned || is_second && stay != Stay::Passing {
            self.earn(entry, key, version);
        }
    }

    /// Returns a run in pieces, each with where it lies on a disk. With `all_or_nothing` either all of it does, or it
    /// is one piece that does not.
    pub(super) fn pieces(&self, run: &Run, is_stored: bool, all_or_nothing: bool) -> Pieces {
        let nowhere = || Pieces::from_elem((run.chunks, None), 1);
        let Some(flash) = self.flash.as_ref().filter(|_| is_stored) else { return nowhere() };
        let pieces = flash.pieces(run);
        let is_all = pieces.iter().all(|(_, spot)| spot.is_some());
        if all_or_nothing && !is_all { nowhere() } else { pieces }
    }

    /// Begins to read a run from a disk.
    pub(super) fn begin_disk_fill(
        &mut self,
        payer: Payer,
        run: Run,
        spot: Spot,
        actions: &mut Vec<Action>,
    ) -> Result<(), Obstacle> {
        let Run { key, version, chunks, block_length } = run;
        let length = chunks.length(block_length);
        let blank = self.blank_for_fill(payer, length)?;
        let Some(flash) = &mut self.flash else { unreachable!("a spot is on a disk") };
        match flash.read(self.now, &mut self.cache, run, spot, blank) {
            Ok(job) => actions.push(Action::Disk(job)),
            Err(blank) => {
                self.cache.release_blank(blank);
                return Err(Obstacle::Later);
            }
        }
        self.filling_bytes += u64::from(length);
        self.turns.began(payer, length);
        let errand = Arc::<Errand>::default();
        self.incoming.begin(key, version, Fill { chunks, length, payer, errand, overdue: None });
        Ok(())
    }

    /// Reads a small range from a disk by itself, if it lies there and is better not read with its chunk. True if it
    /// is on its way.
    pub(super) fn read_small(
        &mut self,
        requester: &Requester,
        range: &Range,
        key: BlockKey,
        offset: u32,
        actions: &mut Vec<Action>,
    ) -> bool {
        let is_read =
            requester.header.op == Op::Read as u8 || requester.header.op == Op::ReadMany as u8;
        if self.flash.is_none() || !is_read || !self.may_copy(range.length) {
            return false;
        }
        let Ok((record, block_length)) = self.fillable(key, range.version, offset) else {
            return false;
        };
        let length = range.length.min(block_length - offset);
        let small = Small { requester: *requester, range: *range, key, offset, length };
        let flash = self.flash.as_mut().filter(|_| record.is_stored);
        let job =
            flash.and_then(|it| it.read_small(self.now, &mut self.cache, small, block_length));
        let is_begun = job.is_some();
        actions.extend(job.map(Action::Disk));
        is_begun
    }

    /// Answers a small range that was read, or has it brought from elsewhere.
    fn on_small(
        &mut self,
        small: Small,
        bytes: Option<(Vec<u8>, Vec<u32>)>,
        actions: &mut Vec<Action>,
    ) {
        let Small { requester, range, key, offset, .. } = small;
        match bytes {
            _ if requester.deadline.is_some_and(|deadline| deadline <= self.now) => {
                self.fail(&requester, Status::DeadlineExceeded, LATE, actions);
            }
            Some((bytes, mut sums)) => {
                let tag = checksum::tag(key.file, range.version, key.block);
                self.send_copy(&requester, tag, &mut sums, &bytes, actions);
            }
            None => self.on_miss(self.now, &requester, &range, key, offset, actions),
        }
    }

    /// Takes a job with a file back.
    pub(super) fn on_disk(
        &mut self,
        job: DiskJob,
        result: io::Result<()>,
        actions: &mut Vec<Action>,
    ) {
        let Some(flash) = &mut self.flash else { return };
        match flash.on_done(&mut self.cache, job, result) {
            FlashEvent::Nothing => (),
            FlashEvent::Read { run, result } => {
                // It is brought from elsewhere if this disk does not have it after all.
                let result = result.map_err(|blank| (blank, FillError::NotThere));
                self.on_filled(run, Stay::Usual, result, actions);
            }
            FlashEvent::Small { small, bytes } => self.on_small(small, bytes, actions),
        }
    }

    /// Hands disks what is to be done, at the end of a turn.
    pub(super) fn work_on_disks(&mut self, now: u64, actions: &mut Vec<Action>) {
        let Some(flash) = &mut self.flash else { return };
        while let Some(job) = flash.next_job(now, &mut self.cache) {
            actions.push(Action::Disk(job));
        }
        let dropped = flash.take_dropped();
        let counts = flash.take_counts();
        if counts != FlashCounts::default() {
            self.count(counts);
        }
        dropped.into_iter().for_each(answer_drop);
    }

    fn count(&self, counts: FlashCounts) {
        let counters = self.counters();
        counters.flash_read_count.add(counts.read_count);
        counters.flash_read_bytes.add(counts.read_bytes);
        counters.flash_stored_bytes.add(counts.stored_bytes);
        counters.flash_kept_bytes.add(counts.kept_bytes);
        counters.flash_written_bytes.add(counts.written_bytes);
        counters.flash_passed_over_count.add(counts.passed_over_count);
        counters.flash_damaged_count.add(counts.damaged_count);
        counters.flash_error_count.add(counts.error_count);
    }

    /// Has what hangs on a disk brought from elsewhere.
    pub(super) fn give_up_disks(&mut self, now: u64, actions: &mut Vec<Action>) {
        let given_up = self.flash.as_mut().map(|flash| flash.give_up(now));
        let (runs, smalls) = given_up.unwrap_or_default();
        for run in runs {
            self.end_fill(run, Stay::Usual, Err(FillError::NotThere), actions);
        }
        for small in smalls {
            self.on_small(small, None, actions);
        }
    }

    /// Goes on with a drop whose blocks in memory are gone.
    pub(super) fn drop_on_disks(&mut self, mut job: DropJob, actions: &mut Vec<Action>) {
        let flash = self.flash.as_mut().filter(|_| job.is_for_good);
        let Some(flash) = flash else { return answer_drop(job) };
        if job.before.is_none() {
            flash.forget_loose(&mut self.cache, job.file);
        }
        let (count, before) = flash.forget(job.file, job.before, SWEEP_SLICE);
        job.dropped.block_count += u64::from(count);
        job.before = before;
        if before.is_some() {
            actions.push(Action::Post(self.shard, Mail::Drop(job)));
        } else if let Some(job) = flash.drop_for_good(job) {
            answer_drop(job);
        }
    }

    /// Returns the runs that bring a whole block from disks, if it lies there: all of it as one, if it was stored so,
    /// else what is neither here nor on its way.
    pub(super) fn whole_from_disk(
        &self,
        key: &BlockKey,
        version: u64,
        block_length: u32,
    ) -> Option<Runs> {
        let all = Chunks::all(block_length);
        let run = |chunks| Run { key: *key, version, chunks, block_length };
        if self.pieces(&run(all), true, false).len() == 1 {
            return None;
        }
        let missing = self.cache.missing(key, version, all);
        let runs = self.incoming.without(key, &missing);
        let is_coming = self.incoming.fills(key, all).next().is_some();
        let is_there = runs.iter().all(|chunks| self.is_on_disk(&run(*chunks)));
        (is_there && (is_coming || !runs.is_empty())).then_some(runs)
    }

    /// True if all of a run is on disks that answer.
    pub(super) fn is_on_disk(&self, run: &Run) -> bool {
        self.flash.is_some() && self.pieces(run, true, true).iter().all(|(_, spot)| spot.is_some())
    }
}

/// Says what was dropped. The caller may have gone; it is dropped still.
fn answer_drop(job: DropJob) {
    let _ = job.reply.try_send(job.dropped);
}
