//! Pins and the blocks that are here already: blocks that are pinned now are kept, others are let go.
//!
//! Always holds: after the pins or the owners changed, every block that is in memory is looked at once
//! more, in pages, so that no shard is held up for long. A block that comes in meanwhile is judged when
//! it comes in. The share of the memory, and what to do beyond it, is left to the cache.

use std::sync::Arc;

use super::View;
use crate::cache::{BlockKey, EntryIndex, Listed, Listing};
use crate::files::FileTable;
use crate::mailbox::{Mail, Mailboxes};

/// Entries of a shard that are looked at for one message. Guessed: below 0.1 ms of the shard's time.
const ENTRIES_PER_PAGE: u32 = 2048;

/// A block that came from a disk, where it did not matter whether it is pinned.
pub(crate) struct Judge {
    /// The shard.
    pub(crate) shard: u32,
    /// Its entry there.
    pub(crate) entry: EntryIndex,
    /// The block.
    pub(crate) key: BlockKey,
}

/// Follows the pins for as long as the node runs. `changes` brings new views, `judges` blocks from disks.
pub(crate) async fn run(
    shards: &Mailboxes,
    files: &FileTable,
    mut changes: tokio::sync::watch::Receiver<Arc<View>>,
    judges: &flume::Receiver<Judge>,
) {
    let mut seen = Arc::new(View::default());
    loop {
        let view = Arc::clone(&changes.borrow_and_update());
        let has_pins = !view.pins.is_empty() || !seen.pins.is_empty();
        // Another epoch may mean other owners, too.
        if view.layout.epoch != seen.layout.epoch && has_pins {
            let was_unpinned = seen.pins.iter().any(|pin| !view.pins.contains(pin));
            sweep(shards, files, &view, was_unpinned).await;
        }
        seen = view;
        loop {
            tokio::select! {
                changed = changes.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                Ok(judge) = judges.recv_async() => keep(shards, files, &seen, judge).await,
            }
        }
    }
}

/// Keeps a block if its path is pinned.
async fn keep(shards: &Mailboxes, files: &FileTable, view: &View, judge: Judge) {
    let Judge { shard, entry, key } = judge;
    let is_pinned = !view.pins.is_empty()
        && files.get(key.file).is_some_and(|record| view.pins(&record.path, &key));
    if is_pinned {
        let mail = Mail::Keep { blocks: vec![(entry, key)], wanted: true };
        shards[shard as usize].post_when_room(mail).await;
    }
}

/// Looks at every block once.
async fn sweep(shards: &Mailboxes, files: &FileTable, view: &View, was_unpinned: bool) {
    for shard in shards.iter() {
        let mut next = Some(0);
        while let Some(first) = next {
            let (reply, receiver) = flume::bounded(1);
            let mail = Mail::Enumerate { first, count: ENTRIES_PER_PAGE, reply };
            shard.post_when_room(mail).await;
            // A shard that has stopped keeps nothing.
            let Ok(listing) = receiver.recv_async().await else { break };
            for wanted in [true, false] {
                let blocks = to_change(&listing, files, view, was_unpinned, wanted);
                if !blocks.is_empty() {
                    shard.post_when_room(Mail::Keep { blocks, wanted }).await;
                }
            }
            next = listing.next;
        }
    }
}

/// Returns the blocks that are to be kept and are not, or the other way round.
fn to_change(
    listing: &Listing,
    files: &FileTable,
    view: &View,
    was_unpinned: bool,
    wanted: bool,
) -> Vec<(EntryIndex, BlockKey)> {
    let others = listing.blocks.iter().filter(|block| block.is_kept != wanted);
    let changed = others.filter(|Listed { key, is_kept, .. }| {
        let is_wanted = match files.get(key.file) {
            Some(record) => view.pins(&record.path, key),
            // The path of a forgotten file is not known: the block stays kept, unless that may be too
            // long.
            None => *is_kept && !was_unpinned,
        };
        is_wanted == wanted
    });
    changed.map(|block| (block.entry, block.key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::files::FileRecord;
    use crate::memory::Arena;
    use millrace_proto::FileId;

    fn key(file: u128) -> BlockKey {
        BlockKey { file: FileId(file), block: 0 }
    }

    /// Makes a cache with one block for each of these files.
    fn cache(files: &[u128]) -> Cache {
        let mut cache = Cache::new(Arena::new(64).unwrap().cut(1).pop().unwrap(), 50);
        for file in files {
            let mut blank = cache.allocate(100).unwrap();
            blank.fill_with(|_, target| Ok(target.len())).unwrap();
            let (block, sums) = blank.freeze();
            cache.insert(key(*file), 1, block, &sums);
        }
        cache
    }

    #[test]
    fn what_a_change_touches_is_told_and_nothing_else() {
        let mut cache = cache(&[1, 2, 3]);
        let files = FileTable::new(8);
        for (file, path) in [(1, "hot/a"), (2, "cold/a")] {
            files.note(
                FileId(file),
                FileRecord {
                    path: path.into(),
                    version: 1,
                    length: 100,
                    is_read_in_parts: false,
                    is_stored: true,
                },
            );
        }
        let view = |pins: &[&str]| {
            let pins = pins.iter().map(|pin| (*pin).to_owned()).collect();
            View { pins, ..View::default() }
        };
        let told = |cache: &Cache, pins: &[&str], was_unpinned, wanted| {
            let listing = cache.enumerate(0, 64);
            let changed = to_change(&listing, &files, &view(pins), was_unpinned, wanted);
            changed.iter().map(|(_, key)| key.file.0).collect::<Vec<_>>()
        };
        assert_eq!(told(&cache, &["hot"], false, true), [1]);
        assert!(told(&cache, &["hot"], false, false).is_empty(), "none is kept yet");
        for Listed { entry, key, .. } in cache.enumerate(0, 64).blocks {
            cache.keep(entry, &key, true);
        }
        assert!(told(&cache, &["hot"], false, true).is_empty(), "all are kept");
        assert_eq!(told(&cache, &["hot"], false, false), [2], "of the third nothing is known");
        assert_eq!(told(&cache, &["hot"], true, false), [2, 3]);
        assert_eq!(told(&cache, &[], true, false), [1, 2, 3]);
    }
}
