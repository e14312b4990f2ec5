//! Blocks of objects that clients write: memory for them while their bytes pass, and the blocks once their store
//! has said which version they are.
//!
//! Owns how much of the shard's memory writes may hold. Always holds: such a block is in no index before its write is
//! acknowledged, and then only in the version that is known of its file. Memory that is short costs a write its
//! blocks here, and nothing else.

use millrace_proto::checksum::PAGE_SIZE;

use super::Worker;
use crate::mailbox::{Loan, Stay, WrittenBlock};
use crate::memory::Blank;

/// Share of the shard's memory that all writes may hold, one in this many. Derived: as much as all loads together
/// have on its way in, so that a write makes no more blocks leave than a load.
const ALL_WRITES: u64 = 8;
/// The same of one write. Guessed: two writers do not hinder each other.
const ONE_WRITE: u64 = 16;

impl Worker {
    /// Lends memory for a block that is being written, if there is room for it.
    pub(super) fn on_lend(&mut self, Loan { length, held, reply }: Loan) {
        let (capacity, more) = (self.cache.capacity_bytes(), u64::from(length));
        let fits =
            self.lent_bytes + more <= capacity / ALL_WRITES && held + more <= capacity / ONE_WRITE;
        let blank = if fits && !self.draining { self.cache.allocate(length) } else { None };
        match &blank {
            Some(blank) => self.lent_bytes += blank.held_bytes(),
            None => self.counters().unkept_block_count.add(1),
        }
        // An upload that was given up has no receiver.
        if let Err(error) = reply.try_send(blank)
            && let Some(blank) = error.into_inner()
        {
            self.on_unlent(blank, true);
        }
    }

    /// Takes memory back that was lent, and counts the block that was to be in it.
    pub(super) fn on_unlent(&mut self, blank: Blank, is_lost: bool) {
        self.lent_bytes -= blank.held_bytes();
        self.counters().unkept_block_count.add(u64::from(is_lost));
        self.cache.release_blank(blank);
    }

    /// Takes a block in that was written.
    pub(super) fn on_written(&mut self, written: WrittenBlock) {
        let WrittenBlock { run, stay, block, sums, done } = written;
        self.lent_bytes -= u64::from(block.held_pages()) * u64::from(PAGE_SIZE);
        let record = self.shared.files.get(run.key.file);
        // A newer version may have been seen since, and its drop gone by.
        let is_current = record.is_some_and(|record| record.version == run.version);
        let is_here = self.is_resident(&run.key, run.version);
        if !is_current || is_here {
            self.counters().unkept_block_count.add(u64::from(!is_here));
            self.cache.release(block);
            return;
        }
        self.counters().written_block_count.add(1);
        self.counters().written_block_bytes.add(u64::from(block.length()));
        let entry = self.cache.insert(run.key, run.version, block, &sums);
        if stay == Stay::Pinned {
            self.cache.keep(entry, &run.key, true);
        }
        drop(done);
    }
}
