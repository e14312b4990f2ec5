//! What is on its way in: the runs of chunks of each block, and what waits for them.
//!
//! Owns the waiters. Always holds: a chunk is on its way once, unless the whole block is, too; every waiter
//! waits for a run that is on its way, and leaves with it, with its deadline or with its connection. What wants another
//! version of the block waits until nothing of this one is on its way.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::turns::Payer;
use crate::cache::BlockKey;
use crate::chunks::{Chunks, Runs, runs};
use crate::mailbox::{Ensured, FillFrom, Requester};
use crate::store::Errand;
use crate::token::Token;

/// A request or a load that waits for a fill.
pub(super) struct Waiter {
    /// The chunks that it needs.
    pub(super) needs: Chunks,
    pub(super) wish: Wish,
}

/// What a waiter wants.
pub(super) enum Wish {
    /// A client, for a range of the block.
    Read { requester: Requester, offset: u32, length: u32 },
    /// A load or a hand-over, for the block to be there.
    Load { from: FillFrom, reply: flume::Sender<Ensured> },
}

impl Waiter {
    /// Returns the time after which a client does not want the answer any more.
    fn deadline(&self) -> Option<u64> {
        match &self.wish {
            Wish::Read { requester, .. } => requester.deadline,
            Wish::Load { .. } => None,
        }
    }

    /// Returns what counts it among those with a deadline.
    pub(super) fn deadline_count(&self) -> usize {
        usize::from(self.deadline().is_some())
    }

    /// True if nothing waits for the answer any more: its connection is the one that is gone, or its
    /// load was given up.
    fn is_gone(&self, gone: Option<(u32, Token)>) -> bool {
        match &self.wish {
            Wish::Read { requester, .. } => gone == Some((requester.shard, requester.token)),
            Wish::Load { reply, .. } => reply.is_disconnected(),
        }
    }
}

/// A run of chunks on its way in.
pub(super) struct Fill {
    pub(super) chunks: Chunks,
    /// Their length in bytes.
    pub(super) length: u32,
    pub(super) payer: Payer,
    pub(super) errand: Arc<Errand>,
    /// The reason why the source hangs, for all requests until it has answered.
    pub(super) overdue: Option<String>,
}

/// What is on its way of one block.
struct IncomingBlock {
    version: u64,
    fills: SmallVec<[Fill; 1]>,
    waiters: SmallVec<[Waiter; 1]>,
    successors: Vec<Successor>,
}

/// What waits for another version of a block than the one that is on its way.
pub(super) struct Successor {
    pub(super) version: u64,
    pub(super) waiter: Waiter,
}

/// What a fill leaves behind that has ended.
pub(super) struct EndedFill {
    pub(super) fill: Fill,
    /// What waits for some of its chunks.
    pub(super) waiters: Vec<Waiter>,
    /// What may begin now: it was the last fill of its version.
    pub(super) successors: Vec<Successor>,
}

/// What is on its way of all blocks.
#[derive(Default)]
pub(super) struct Incoming {
    blocks: HashMap<BlockKey, IncomingBlock>,
}

impl Incoming {
    /// True if another version of the block is still on its way.
    pub(super) fn has_other_version(&self, key: &BlockKey, version: u64) -> bool {
        self.blocks.get(key).is_some_and(|block| block.version != version)
    }

    /// Returns the number of blocks of which something is on its way.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.blocks.len()
    }

    /// Returns the fills of a block that bring some of these chunks.
    pub(super) fn fills(&self, key: &BlockKey, chunks: Chunks) -> impl Iterator<Item = &Fill> {
        let fills = self.blocks.get(key).map(|block| block.fills.as_slice()).unwrap_or_default();
        fills.iter().filter(move |fill| fill.chunks.overlaps(chunks))
    }

    /// Returns those of the runs that are not on their way.
    pub(super) fn without(&self, key: &BlockKey, wanted: &Runs) -> Runs {
        let is_missing = |chunk| {
            let one = Chunks { first: chunk, end: chunk + 1 };
            self.fills(key, one).next().is_none()
        };
        wanted.iter().flat_map(|run| runs(*run, is_missing)).collect()
    }

    /// Adds a fill that begins.
    pub(super) fn begin(&mut self, key: BlockKey, version: u64, fill: Fill) {
        let block = self.blocks.entry(key).or_insert_with(|| IncomingBlock {
            version,
            fills: SmallVec::new(),
            waiters: SmallVec::new(),
            successors: Vec::new(),
        });
        assert_eq!(block.version, version, "versions do not mix");
        block.fills.push(fill);
    }

    /// Adds a waiter for what is on its way.
    pub(super) fn wait(&mut self, key: BlockKey, waiter: Waiter) {
        self.blocks.get_mut(&key).expect("a fill has begun").waiters.push(waiter);
    }

    /// Adds what waits until nothing of the version that is on its way is.
    pub(super) fn wait_for_end(&mut self, key: BlockKey, successor: Successor) {
        self.blocks.get_mut(&key).expect("a fill has begun").successors.push(successor);
    }

    /// Takes a fill out that has ended, with all that wait for some of its chunks.
    ///
    /// # Panics
    /// If it was not under way.
    pub(super) fn end(&mut self, key: &BlockKey, version: u64, chunks: Chunks) -> EndedFill {
        let block = self.blocks.get_mut(key).expect("a fill ends once");
        assert_eq!(block.version, version);
        let place = block.fills.iter().position(|fill| fill.chunks == chunks);
        let fill = block.fills.remove(place.expect("a fill ends once"));
        let waiters = take_waiters(block, chunks);
        let mut successors = Vec::new();
        if block.fills.is_empty() {
            debug_assert!(block.waiters.is_empty(), "every waiter waits for a fill");
            successors = std::mem::take(&mut block.successors);
            self.blocks.remove(key);
        }
        EndedFill { fill, waiters, successors }
    }

    /// Returns a fill whose source hangs, and all that wait for some of its chunks or for its end, taken out.
    pub(super) fn hang(
        &mut self,
        key: &BlockKey,
        version: u64,
        chunks: Chunks,
    ) -> Option<(&mut Fill, Vec<Waiter>)> {
        let block = self.blocks.get_mut(key).filter(|block| block.version == version)?;
        let place = block.fills.iter().position(|fill| fill.chunks == chunks)?;
        let mut waiters = take_waiters(block, chunks);
        waiters.extend(block.successors.drain(..).map(|successor| successor.waiter));
        Some((&mut block.fills[place], waiters))
    }

    /// Forgets waiters that are gone: a connection's, by its shard, and loads that were given up. A fill
    /// that nothing else waits for is not begun any more. Returns how many had a deadline.
    pub(super) fn forget(&mut self, gone: Option<(u32, Token)>) -> usize {
        let mut deadlines = 0;
        for block in self.blocks.values_mut() {
            block.successors.retain(|Successor { waiter, .. }| {
                let is_gone = waiter.is_gone(gone);
                deadlines += if is_gone { waiter.deadline_count() } else { 0 };
                !is_gone
            });
            let mut given_up: SmallVec<[Chunks; 1]> = SmallVec::new();
            block.waiters.retain(|waiter| {
                let is_gone = waiter.is_gone(gone);
                if is_gone {
                    deadlines += waiter.deadline_count();
                    given_up.push(waiter.needs);
                }
                !is_gone
            });
            for fill in &block.fills {
                let is_needed = |needs: &Chunks| needs.overlaps(fill.chunks);
                let was_needed = given_up.iter().any(is_needed);
                if was_needed && !block.waiters.iter().any(|waiter| is_needed(&waiter.needs)) {
                    fill.errand.want(false);
                }
            }
        }
        deadlines
    }

    /// Takes the waiters out whose deadline has passed.
    pub(super) fn expire(&mut self, now: u64, expired: &mut Vec<Requester>) {
        let mut is_in_time = |waiter: &Waiter| match &waiter.wish {
            Wish::Read { requester, .. }
                if requester.deadline.is_some_and(|deadline| deadline <= now) =>
            {
                expired.push(*requester);
                false
            }
            _ => true,
        };
        for block in self.blocks.values_mut() {
            block.waiters.retain(|waiter| is_in_time(waiter));
            block.successors.retain(|successor| is_in_time(&successor.waiter));
        }
    }
}

fn take_waiters(block: &mut IncomingBlock, chunks: Chunks) -> Vec<Waiter> {
    let waiters = std::mem::take(&mut block.waiters).into_iter();
    let (concerned, others) =
        waiters.partition::<Vec<_>, _>(|waiter| waiter.needs.overlaps(chunks));
    block.waiters = others.into();
    concerned
}
