//! Which block leaves when memory is short: S3-FIFO.
//!
//! Owns the queues. Always holds: looking for a block to evict costs a bounded number of steps for each
//! block that was added or unpinned, however many are pinned or kept, because those wait in queues where
//! eviction does not look.
//! A block that is kept (its path is pinned in the cluster) is not evicted while there is another. All
//! kept blocks together hold no more than their share.
//! A block that is pinned (it is being sent, or leased) is held once eviction comes across it, and goes
//! back with its last pin.

use super::queue::Queue;
use super::{Cache, EntryIndex};

/// Reuses counted at most: more say nothing about the next one (S3-FIFO, section 4.1).
pub(super) const REUSE_MAX: u8 = 3;
/// Share of memory for blocks seen once, in percent (S3-FIFO: 10 works for most of 6594 traces).
const SMALL_PERCENT: u64 = 10;

/// Which queue an entry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueuePlace {
    Small,
    Main,
    /// Evicted only when nothing else is left.
    Kept,
    /// Pinned when eviction came across it: goes to `Main` with its last pin.
    Held,
    /// The same of a block that is kept: goes back to `Kept`.
    HeldKept,
    /// Not in the index any more; its memory is freed with the last pin.
    Doomed,
}

impl QueuePlace {
    /// True if the block is kept from being evicted.
    pub(super) fn is_kept(self) -> bool {
        matches!(self, QueuePlace::Kept | QueuePlace::HeldKept)
    }

    /// True if something happens to the block with its last pin.
    #[inline]
    pub(super) fn waits_for_unpin(self) -> bool {
        matches!(self, QueuePlace::Held | QueuePlace::HeldKept | QueuePlace::Doomed)
    }
}

pub(super) struct Queues {
    small: Queue,
    main: Queue,
    kept: Queue,
    held: Queue,
    held_kept: Queue,
}

impl Queues {
    pub(super) fn new() -> Queues {
        let [small, main, kept, held, held_kept] = std::array::from_fn(|_| Queue::new());
        Queues { small, main, kept, held, held_kept }
    }

    /// Returns the number of blocks that are kept.
    pub(super) fn kept_length(&self) -> u32 {
        self.kept.length() + self.held_kept.length()
    }

    /// Returns the pages that those hold.
    pub(super) fn kept_page_count(&self) -> u32 {
        self.kept.page_count() + self.held_kept.page_count()
    }

    pub(super) fn get(&mut self, place: QueuePlace) -> &mut Queue {
        match place {
            QueuePlace::Small => &mut self.small,
            QueuePlace::Main => &mut self.main,
            QueuePlace::Kept => &mut self.kept,
            QueuePlace::Held => &mut self.held,
            QueuePlace::HeldKept => &mut self.held_kept,
            QueuePlace::Doomed => unreachable!("a doomed entry is in no queue"),
        }
    }
}

impl Cache {
    /// Takes an entry out of its queue.
    pub(super) fn unlink(&mut self, index: u32, page_count: u32) {
        let place = self.entry(index).place;
        self.queues.get(place).remove(&mut self.entries, index, page_count);
    }

    /// Puts an entry, which is in no queue, at the end of this one.
    pub(super) fn push(&mut self, place: QueuePlace, index: u32, page_count: u32) {
        self.entry_mut(index).place = place;
        self.queues.get(place).push(&mut self.entries, index, page_count);
    }

    fn shift(&mut self, index: u32, place: QueuePlace) {
        let page_count = self.entry(index).block.held_pages();
        self.unlink(index, page_count);
        self.push(place, index, page_count);
    }

    /// Goes on with a block that waited for its last pin.
    pub(super) fn on_last_unpin(&mut self, index: u32) {
        match self.entry(index).place {
            QueuePlace::Doomed => self.free_entry(index),
            QueuePlace::Held => self.shift(index, QueuePlace::Main),
            QueuePlace::HeldKept => self.shift(index, QueuePlace::Kept),
            QueuePlace::Small | QueuePlace::Main | QueuePlace::Kept => (),
        }
    }

    /// Evicts one block by S3-FIFO, or one that is kept if there is nothing else. True if a block was
    /// evicted; false when every block is pinned or no block is there.
    pub(super) fn evict_one(&mut self) -> bool {
        self.evict_ordinary() || self.evict_kept()
    }

    /// Evicts a block that is not kept. True if one was evicted. Each step takes a block from the tail
    /// of a queue: it leaves, or is held, or goes to the end of main, at most [`REUSE_MAX`] times. So
    /// the loop ends, and its cost is paid for by reads.
    fn evict_ordinary(&mut self) -> bool {
        loop {
            // What is kept or held leaves less for the two queues to share.
            let queues = &self.queues;
            let elsewhere = queues.kept_page_count() + queues.held.page_count();
            let shared = u64::from(self.memory.page_count().saturating_sub(elsewhere));
            let small_pages_max = shared * SMALL_PERCENT / 100;
            let from_small =
                queues.main.length() == 0 || u64::from(queues.small.page_count()) > small_pages_max;
            let tail = if from_small { queues.small.tail() } else { queues.main.tail() };
            let Some(index) = tail else { return false };
            let entry = self.entry(index);
            let (reuse_count, hash) = (entry.reuse_count, entry.key.hash());
            if entry.pin_count > 0 {
                // This holds for blocks from small, too: a block in use is thereby in use again.
                self.entry_mut(index).reuse_count = 0;
                self.shift(index, QueuePlace::Held);
            } else if reuse_count > 0 {
                // A block from small begins again; one from main goes round once more.
                let left = if from_small { 0 } else { reuse_count - 1 };
                self.entry_mut(index).reuse_count = left;
                self.shift(index, QueuePlace::Main);
            } else {
                if from_small {
                    self.ghost.insert(hash);
                }
                self.evicted_count += 1;
                self.remove_entry(EntryIndex(index));
                return true;
            }
        }
    }

    /// Evicts the oldest block that is kept and not in use. True if there was one. A miss that cannot be
    /// served because memory is short is worse than one more miss later.
    fn evict_kept(&mut self) -> bool {
        while let Some(index) = self.queues.kept.tail() {
            if self.entry(index).pin_count == 0 {
                self.evicted_count += 1;
                self.remove_entry(EntryIndex(index));
                return true;
            }
            self.shift(index, QueuePlace::HeldKept);
        }
        false
    }
}
