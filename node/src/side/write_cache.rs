//! Blocks of objects that clients write, kept as their bytes pass.
//!
//! ```text
//!  upload ── bytes ──► blanks, lent by the shards of their blocks ─┬─ acknowledged ──► blocks of that version
//!                                                                  └─ or not ────────► back to their shards
//! ```
//!
//! Always holds: a blank that was lent goes back to its shard, as a block or as it came; a block becomes one only when
//! the store has said of itself which version it is of. An upload waits for no room: a block that gets none is not
//! kept. In a cluster the other owners of these blocks take them over from here, after the write is acknowledged, and
//! nothing waits for that.

use std::sync::Arc;

use millrace_proto::{FileId, placement};

use super::Context;
use super::loads::FilePart;
use crate::cache::BlockKey;
use crate::chunks::Chunks;
use crate::mailbox::{Loan, Mail, Run, Stay, WrittenBlock};
use crate::memory::Blank;
use crate::store::Written;

/// What is kept of one upload. It has to be ended by [`WriteCache::keep`] or [`WriteCache::give_up`].
pub(super) struct WriteCache {
    context: Arc<Context>,
    path: Arc<str>,
    file: FileId,
    /// Bytes that came.
    length: u64,
    /// The block whose bytes come now, if it is kept.
    current: Option<Blank>,
    /// Blocks whose bytes have all come.
    full: Vec<(u32, Blank)>,
    /// Bytes of each shard's memory that these hold.
    held: Vec<u64>,
}

impl Context {
    /// Begins to keep what is written to a path, if its mount asks for that.
    pub(super) fn write_cache(self: &Arc<Self>, path: &Arc<str>) -> Option<WriteCache> {
        self.store.caches_writes(path).then(|| WriteCache {
            context: Arc::clone(self),
            path: Arc::clone(path),
            file: self.store.identify(path),
            length: 0,
            current: None,
            full: Vec::new(),
            held: vec![0; self.shards.len()],
        })
    }

    /// Has the other owners of blocks that were kept here take them over, unless too many do so already.
    pub(super) fn offer(self: &Arc<Self>, part: FilePart) {
        let view = self.cluster.view();
        let others = view.layout.members.iter().any(|member| member.id != view.me);
        if let (true, Ok(place)) = (others, Arc::clone(&self.offers).try_acquire_owned()) {
            let context = Arc::clone(self);
            tokio::spawn(async move {
                context.offer_to_owners(part).await;
                drop(place);
            });
        }
    }
}

impl WriteCache {
    /// Takes the next bytes of the object.
    pub(super) async fn take(&mut self, mut bytes: &[u8]) {
        let block_size = u64::from(self.context.block_size);
        while !bytes.is_empty() {
            let (block, offset) = (self.length / block_size, self.length % block_size);
            if offset == 0 {
                self.current = self.borrow(block).await;
            }
            let count = bytes.len().min((block_size - offset) as usize);
            let (now, later) = bytes.split_at(count);
            self.length += count as u64;
            bytes = later;
            if let Some(blank) = &mut self.current {
                blank.write(now);
            }
            if let Some(blank) = self.current.take_if(|blank| blank.is_full()) {
                self.full.push((block as u32, blank));
            }
        }
    }

    /// Returns memory for a block, if there is room for it.
    async fn borrow(&mut self, block: u64) -> Option<Blank> {
        let key = BlockKey { file: self.file, block: u32::try_from(block).ok()? };
        let shard = self.shard_of(&key);
        let (reply, receiver) = flume::bounded(1);
        let loan = Loan { length: self.context.block_size, held: self.held[shard], reply };
        self.context.shards[shard].post_when_room(Mail::Lend(loan)).await;
        let blank = receiver.recv_async().await.ok().flatten()?;
        self.held[shard] += blank.held_bytes();
        Some(blank)
    }

    fn shard_of(&self, key: &BlockKey) -> usize {
        placement::shard_of(key.hash(), self.context.shards.len() as u32) as usize
    }

    /// Gives memory back to the shard of a block, which is lost if there was one in it.
    async fn give_back(&self, block: u32, blank: Blank, is_lost: bool) {
        let shard = self.shard_of(&BlockKey { file: self.file, block });
        self.context.shards[shard].post_when_room(Mail::Unlent { blank, is_lost }).await;
    }

    /// Returns the number of the block whose bytes came last.
    fn last_block(&self) -> u32 {
        (self.length.saturating_sub(1) / u64::from(self.context.block_size)) as u32
    }

    /// Drops all blocks: they are of no version that is known.
    pub(super) async fn give_up(mut self) {
        let mut blanks = std::mem::take(&mut self.full);
        blanks.extend(self.current.take().map(|blank| (self.last_block(), blank)));
        for (block, blank) in blanks {
            self.give_back(block, blank, true).await;
        }
    }

    /// Has the blocks be those of the version that the store gave the object, which is known of the file already. When
    /// this returns they can be read; returns which part of the file they lie in, if there are some.
    pub(super) async fn keep(mut self, written: &Written) -> Option<FilePart> {
        let Written { found, is_certain } = written;
        let (context, path, file) = (Arc::clone(&self.context), Arc::clone(&self.path), self.file);
        let kept_for = context.store.kept_for(&path);
        // Another source may have been mounted there meanwhile, and another option, too.
        let is_same = context.store.caches_writes(&path) && context.store.identify(&path) == file;
        if !is_same || !is_certain || found.length != self.length || kept_for.is_zero() {
            self.give_up().await;
            return None;
        }
        if let Some(mut blank) = self.current.take() {
            let block = self.last_block();
            if let Some(rest) = blank.cut() {
                self.give_back(block, rest, false).await;
            }
            self.full.push((block, blank));
        }
        let blocks = 0..self.full.last()?.0 + 1;
        let (done, all_done) = flume::bounded(1);
        for (block, mut blank) in std::mem::take(&mut self.full) {
            let (key, version) = (BlockKey { file, block }, found.version);
            context.peers.sign(key, version, &mut blank);
            let block_length = blank.length();
            let run = Run { key, version, chunks: Chunks::all(block_length), block_length };
            let (block, sums) = blank.freeze();
            let stay = match context.cluster.view().pins(&path, &key) {
                true => Stay::Pinned,
                false => Stay::Usual,
            };
            let written = WrittenBlock { run, stay, block, sums, done: done.clone() };
            let shard = &context.shards[self.shard_of(&key)];
            shard.post_when_room(Mail::Written(Box::new(written))).await;
            // Codes take a pass over the bytes: others go on in between.
            tokio::task::yield_now().await;
        }
        drop(done);
        // Nothing is ever sent: this ends when the last block has been taken in.
        let _ = all_done.recv_async().await;
        context.count_down(file, kept_for).await;
        Some(FilePart { path, file, version: found.version, blocks, copies: 0, holder: None })
    }
}
