//! The cache against a plain map, and what its policy keeps, drops and finds damaged.

use std::collections::HashMap;

use millrace_proto::checksum;

use super::*;
use crate::chunks::Chunks;
use crate::memory::Arena;

fn cache(page_count: u32) -> Cache {
    Cache::new(Arena::new(page_count).unwrap().cut(1).pop().unwrap(), 50)
}

fn key(file: u128, block: u32) -> BlockKey {
    BlockKey { file: FileId(file), block }
}

fn content(key: BlockKey, version: u64, length: u32) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(key.hash() ^ version);
    std::iter::repeat_with(|| random.u8(..)).take(length as usize).collect()
}

fn fill(cache: &mut Cache, key: BlockKey, version: u64, length: u32) -> Option<EntryIndex> {
    let bytes = content(key, version, length);
    let mut blank = cache.allocate(length)?;
    blank
        .fill_with(|offset, target| {
            let count = target.len().min(bytes.len() - offset as usize);
            target[..count].copy_from_slice(&bytes[offset as usize..][..count]);
            Ok(count)
        })
        .unwrap();
    let (block, sums) = blank.freeze();
    Some(cache.insert(key, version, block, &sums))
}

/// Pins a range and checks that its checksums are those of the expected bytes.
fn pin(cache: &mut Cache, index: EntryIndex, offset: u32, expected: &[u8], block_length: u32) {
    let mut sums = Vec::new();
    let mut length = 0;
    cache
        .pin_range(
            index,
            offset,
            expected.len() as u32,
            |sum| sums.push(sum),
            |segment| length += segment.length,
        )
        .unwrap();
    assert_eq!(length, expected.len());
    let tag = cache.tag(index);
    assert_eq!(checksum::verify(expected, offset, block_length, tag, sums), Ok(()));
}

/// Runs random operations beside a plain map: what the cache has is what was put in, blocks that it
/// evicts are only ever missing, pinned blocks stay whole, and memory adds up.
#[test]
fn behaves_like_a_map_that_forgets() {
    for seed in 0..8 {
        let mut random = fastrand::Rng::with_seed(seed);
        let page_count = random.u32(64..600);
        let mut cache = cache(page_count);
        let mut model: HashMap<BlockKey, (u64, u32)> = HashMap::new();
        let mut pins: Vec<(EntryIndex, BlockKey, u64, u32)> = Vec::new();
        for _ in 0..3_000 {
            let key = key(random.u128(0..12), random.u32(0..12));
            match random.u8(0..10) {
                0..=4 => {
                    let (version, length) = (random.u64(1..3), random.u32(1..70_000));
                    if fill(&mut cache, key, version, length).is_some() {
                        model.insert(key, (version, length));
                    }
                }
                5..=7 => {
                    let Some((index, version)) = cache.find(&key) else { continue };
                    let (model_version, length) = model[&key];
                    assert_eq!((version, cache.length(index)), (model_version, length));
                    let offset = random.u32(0..length);
                    let bytes = content(key, version, length);
                    let end = random.u32(offset + 1..=length);
                    cache.touch(index, offset);
                    pin(&mut cache, index, offset, &bytes[offset as usize..end as usize], length);
                    pins.push((index, key, version, length));
                }
                8 if !pins.is_empty() => {
                    let (index, key, version, length) =
                        pins.swap_remove(random.usize(..pins.len()));
                    // The bytes are still those that were pinned, whatever was evicted or replaced.
                    let bytes = content(key, version, length);
                    let block = &cache.entry(index.0).block;
                    assert_eq!(block.sum(0, length), crc32fast::hash(&bytes));
                    cache.unpin(index);
                }
                9 if random.bool() => {
                    let Some((index, _)) = cache.find(&key) else { continue };
                    let wanted = random.bool();
                    cache.keep(index, &key, wanted);
                    if !wanted {
                        assert!(!cache.entry(index.0).place.is_kept());
                    }
                }
                _ => {
                    let was_here = cache.find(&key).is_some();
                    assert_eq!(cache.remove(&key).is_some(), was_here);
                    model.remove(&key);
                }
            }
            assert!(cache.used_bytes() <= cache.capacity_bytes());
            assert!(cache.kept_bytes() <= cache.capacity_bytes() / 2);
            assert!(cache.kept_count() <= cache.block_count());
        }
        for (index, ..) in pins {
            cache.unpin(index);
        }
        for key in model.keys() {
            cache.remove(key);
        }
        assert_eq!((cache.block_count(), cache.used_bytes()), (0, 0));
        assert_eq!((cache.kept_count(), cache.kept_bytes()), (0, 0));
    }
}

#[test]
fn a_full_cache_of_pinned_blocks_says_so() {
    let mut cache = cache(32);
    let mut pinned = Vec::new();
    for block in 0..2 {
        let index = fill(&mut cache, key(1, block), 1, 65536).unwrap();
        pin(&mut cache, index, 0, &content(key(1, block), 1, 65536), 65536);
        pinned.push(index);
    }
    assert!(cache.allocate(1).is_none());
    cache.unpin(pinned[0]);
    assert!(cache.allocate(1).is_some());
}

#[test]
fn small_files_do_not_take_a_whole_block() {
    let mut cache = cache(256);
    for file in 0..256 {
        fill(&mut cache, key(file, 0), 1, 100).unwrap();
    }
    assert_eq!((cache.block_count(), cache.evicted_count()), (256, 0));
}

#[test]
fn a_scan_does_not_wash_out_what_is_in_use() {
    let mut cache = cache(100);
    for file in 0..50 {
        fill(&mut cache, key(file, 0), 1, 4096).unwrap();
    }
    for scanned in 1000..3000 {
        for file in 0..50 {
            let key = key(file, 0);
            let (index, _) = cache.find(&key).expect("a block in use stays");
            cache.touch(index, 0);
        }
        fill(&mut cache, key(scanned, 0), 1, 4096).unwrap();
    }
}

/// Fills one page each for files from `first` on and keeps them, or not.
fn fill_files(cache: &mut Cache, first: u128, count: u128, is_kept: bool) {
    for file in first..first + count {
        let index = fill(cache, key(file, 0), 1, 4096).unwrap();
        if is_kept {
            cache.keep(index, &key(file, 0), true);
        }
    }
}

/// Returns how many of these files are in the cache.
fn found(cache: &Cache, first: u128, count: u128) -> usize {
    let files = first..first + count;
    files.filter(|file| cache.find(&key(*file, 0)).is_some()).count()
}

#[test]
fn what_is_kept_survives_a_scan_of_ten_times_the_memory() {
    let mut cache = cache(100);
    fill_files(&mut cache, 0, 50, true);
    assert_eq!((cache.kept_count(), cache.kept_bytes()), (50, 50 * 4096));
    fill_files(&mut cache, 1000, 1000, false);
    assert_eq!(found(&cache, 0, 50), 50, "though no client reads them");
    assert_eq!(cache.used_bytes(), cache.capacity_bytes(), "the rest is used as well");
}

#[test]
fn beyond_its_share_what_is_kept_is_like_any_other() {
    let mut cache = cache(100);
    fill_files(&mut cache, 0, 80, true);
    assert_eq!((cache.kept_count(), cache.block_count()), (50, 80));
    fill_files(&mut cache, 1000, 1000, false);
    assert_eq!(found(&cache, 0, 80), 50);
    // What is freed makes room for another one.
    assert_eq!(cache.remove(&key(7, 0)), Some(4096));
    assert_eq!(cache.kept_count(), 49);
    fill_files(&mut cache, 70, 1, true);
    assert_eq!(cache.kept_count(), 50);
}

#[test]
fn what_is_kept_no_longer_goes_with_the_next_scan() {
    let mut cache = cache(100);
    fill_files(&mut cache, 0, 50, true);
    for file in 0..50 {
        let (index, _) = cache.find(&key(file, 0)).unwrap();
        cache.touch(index, 0);
        cache.keep(index, &key(file, 0), false);
    }
    assert_eq!((cache.kept_count(), found(&cache, 0, 50)), (0, 50), "nothing is dropped by that");
    fill_files(&mut cache, 1000, 1000, false);
    assert_eq!(found(&cache, 0, 50), 0);
}

#[test]
fn a_block_is_kept_only_as_the_one_that_was_meant() {
    let mut cache = cache(100);
    let index = fill(&mut cache, key(1, 0), 1, 4096).unwrap();
    cache.keep(index, &key(2, 0), true);
    cache.keep(EntryIndex(99), &key(2, 0), true);
    assert_eq!(cache.kept_count(), 0);
    cache.remove(&key(1, 0));
    cache.keep(index, &key(1, 0), true);
    assert_eq!(cache.kept_count(), 0);
    // Removed while a client reads it, it is not a block of the cache any more.
    let index = fill(&mut cache, key(1, 0), 1, 4096).unwrap();
    cache.keep(index, &key(1, 0), true);
    pin(&mut cache, index, 0, &content(key(1, 0), 1, 4096), 4096);
    cache.remove(&key(1, 0));
    cache.keep(index, &key(1, 0), true);
    assert_eq!((cache.kept_count(), cache.kept_bytes()), (0, 0));
    cache.unpin(index);
    assert_eq!(cache.used_bytes(), 0);
}

#[test]
fn where_nothing_else_is_left_what_is_kept_makes_room() {
    let mut cache = cache(32);
    let kept = fill(&mut cache, key(1, 0), 1, 65536).unwrap();
    cache.keep(kept, &key(1, 0), true);
    let used = fill(&mut cache, key(2, 0), 1, 65536).unwrap();
    pin(&mut cache, used, 0, &content(key(2, 0), 1, 65536), 65536);
    pin(&mut cache, kept, 0, &content(key(1, 0), 1, 65536), 65536);
    assert!(cache.allocate(1).is_none(), "both are in use");
    cache.unpin(kept);
    assert!(cache.allocate(1).is_some());
    assert_eq!(found(&cache, 1, 2), 1);
    assert_eq!(cache.kept_count(), 0);
}

#[test]
fn steps_through_one_block_are_one_use() {
    let mut cache = cache(64);
    let index = fill(&mut cache, key(1, 0), 1, 65536).unwrap();
    for offset in (0..65536).step_by(4096).skip(1) {
        cache.touch(index, offset);
    }
    assert_eq!(cache.entry(index.0).reuse_count, 0);
    cache.touch(index, 0);
    assert_eq!(cache.entry(index.0).reuse_count, 1);
}

#[test]
fn a_block_that_returns_soon_goes_to_main() {
    let mut cache = cache(16);
    for block in 0..40 {
        fill(&mut cache, key(1, block), 1, 4096).unwrap();
    }
    assert!(cache.find(&key(1, 20)).is_none());
    // Evicted 20 insertions ago, more than the 16 blocks that fit: forgotten.
    let index = fill(&mut cache, key(1, 0), 1, 4096).unwrap();
    assert_eq!(cache.entry(index.0).place, QueuePlace::Small);
    let index = fill(&mut cache, key(1, 20), 1, 4096).unwrap();
    assert_eq!(cache.entry(index.0).place, QueuePlace::Main);
}

#[test]
fn damage_in_a_cut_page_is_found_and_the_block_dropped() {
    let mut cache = cache(64);
    let index = fill(&mut cache, key(1, 0), 1, 65536).unwrap();
    cache.damage(index, 5000);
    let result = cache.pin_range(index, 4100, 50, |_| (), |_| ());
    assert_eq!(result, Err(Damage::Found));
    assert!(cache.find(&key(1, 0)).is_none());
    assert_eq!(cache.used_bytes(), 0);
}

#[test]
fn damage_in_a_whole_page_is_found_by_the_reader() {
    let mut cache = cache(64);
    let index = fill(&mut cache, key(1, 0), 1, 65536).unwrap();
    let whole = crc32fast::hash(&content(key(1, 0), 1, 65536)[4096..8192]);
    let stored = whole ^ checksum::tag(key(1, 0).file, 1, 0);
    cache.damage(index, 5000);
    let mut sums = Vec::new();
    cache.pin_range(index, 4096, 4096, |sum| sums.push(sum), |_| ()).unwrap();
    assert_eq!(sums, [stored]);
    assert_ne!(cache.entry(index.0).block.sum(4096, 4096), whole);
    assert_eq!(cache.summed_bytes(), 0);
}

#[test]
fn looking_for_room_passes_each_pinned_block_once() {
    let mut cache = cache(1024);
    let mut pinned = Vec::new();
    for block in 0..1000 {
        let index = fill(&mut cache, key(1, block), 1, 4096).unwrap();
        if block < 900 {
            pin(&mut cache, index, 0, &content(key(1, block), 1, 4096), 4096);
            pinned.push(index);
        }
        cache.keep(index, &key(1, block), block % 2 == 0);
    }
    // The first one that needs room meets them; the next ones find them aside.
    for block in 0..200 {
        fill(&mut cache, key(2, block), 1, 4096).unwrap();
    }
    let held = pinned.iter().filter(|index| cache.entry(index.0).place.waits_for_unpin());
    assert!(held.count() >= 400);
    for index in pinned {
        cache.unpin(index);
    }
    // They are evictable again, and all are counted where they are.
    assert!(cache.allocate(1000 * 4096).is_some());
}

#[test]
fn dropping_a_file_takes_its_blocks_and_no_others() {
    let mut cache = cache(256);
    for block in 0..40 {
        fill(&mut cache, key(1, block), 1, 4096).unwrap();
        fill(&mut cache, key(2, block), 1, 5000).unwrap();
    }
    assert_eq!(cache.remove_of_file(FileId(3), 100), (0, 0));
    assert_eq!(cache.remove_of_file(key(1, 0).file, 30), (30, 30 * 4096));
    assert_eq!(cache.remove_of_file(key(1, 0).file, 30), (10, 10 * 4096));
    assert_eq!(cache.block_count(), 40);
    // Evicted, replaced and removed blocks are in no chain.
    fill(&mut cache, key(2, 0), 2, 4096).unwrap();
    cache.remove(&key(2, 1));
    assert_eq!(cache.remove_of_file(key(2, 0).file, 100), (39, 38 * 5000 + 4096));
    assert_eq!((cache.block_count(), cache.used_bytes()), (0, 0));
}

/// Chooses names so that all blocks have one and the same placement hash, as any user can.
#[test]
fn blocks_with_one_placement_hash_do_not_lie_in_one_run_of_the_index() {
    let mut cache = cache(4096);
    let golden = 0x9E37_79B9_7F4A_7C15_u64;
    let keys = (0..4000_u32).map(|block| {
        let high = u64::from(block).wrapping_mul(golden).rotate_right(32);
        BlockKey { file: FileId(u128::from(high) << 64 | 1), block }
    });
    let keys: Vec<BlockKey> = keys.collect();
    assert!(keys.iter().all(|key| key.hash() == keys[0].hash()), "all are placed alike");
    for key in &keys {
        fill(&mut cache, *key, 1, 100).unwrap();
    }
    assert!(keys.iter().all(|key| cache.find(key).is_some()));
    // By chance, with half of the 8192 slots used, the longest run has about 50.
    let longest = cache.index.longest_run();
    assert!(longest < 200, "{longest} slots in a row");
}

type Contents = HashMap<(BlockKey, u64), Vec<u8>>;

/// True if chunks of a block were added, because there was room for them.
fn fill_part(
    cache: &mut Cache,
    contents: &mut Contents,
    (key, version): (BlockKey, u64),
    length: u32,
    chunks: Chunks,
) -> bool {
    let bytes = contents.entry((key, version)).or_insert_with(|| content(key, version, length));
    let Some(mut blank) = cache.allocate(chunks.length(length)) else { return false };
    let part = &bytes[chunks.offset() as usize..][..blank.length() as usize];
    assert!(blank.write(part).is_empty());
    let (block, sums) = blank.freeze();
    cache.insert_part(key, version, length, chunks, block, &sums);
    true
}

/// Runs random operations on blocks that come by parts beside a set of chunks: what is here has the
/// right bytes and checksums, also while more comes and after eviction, and memory adds up.
#[test]
fn parts_become_blocks_and_memory_adds_up() {
    const LENGTH: u32 = 10 * 65_536 + 77;
    for seed in 0..10 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut cache = cache(random.u32(200..900));
        let mut pins: Vec<(EntryIndex, BlockKey, u64, Chunks)> = Vec::new();
        let mut contents = Contents::new();
        for _ in 0..500 {
            let key = key(random.u128(0..3), random.u32(0..2));
            let first = random.u32(0..11);
            let chunks = Chunks { first, end: random.u32(first + 1..=11) };
            let (offset, length) = (chunks.offset(), chunks.length(LENGTH));
            match random.u8(0..10) {
                0..=5 => {
                    // Versions change rarely.
                    let version = 1 + u64::from(random.u8(0..40) == 0);
                    let missing = cache.missing(&key, version, chunks);
                    for run in missing {
                        // Making room for one may evict what was here of the block.
                        let which = (key, version);
                        let is_added = fill_part(&mut cache, &mut contents, which, LENGTH, run);
                        assert!(!is_added || cache.missing(&key, version, run).is_empty());
                    }
                }
                6..=7 => {
                    let Some((index, version)) = cache.find(&key) else { continue };
                    let is_here = cache.missing(&key, version, chunks).is_empty();
                    assert_eq!(cache.holds(index, offset, length), is_here);
                    if is_here {
                        let bytes = &contents[&(key, version)][offset as usize..];
                        let bytes = &bytes[..length as usize];
                        pin(&mut cache, index, offset, bytes, LENGTH);
                        pins.push((index, key, version, chunks));
                    }
                }
                8 if !pins.is_empty() => {
                    let (index, key, version, chunks) =
                        pins.swap_remove(random.usize(..pins.len()));
                    let bytes = &contents[&(key, version)][chunks.offset() as usize..];
                    let bytes = &bytes[..chunks.length(LENGTH) as usize];
                    let block = &cache.entry(index.0).block;
                    let found = block.sum(chunks.offset(), bytes.len() as u32);
                    assert_eq!(found, crc32fast::hash(bytes), "seed {seed}");
                    cache.unpin(index);
                }
                _ => {
                    let Some((index, _)) = cache.find(&key) else { continue };
                    match random.u8(0..3) {
                        0 => drop(cache.remove(&key)),
                        wanted => cache.keep(index, &key, wanted == 1),
                    }
                }
            }
            assert!(cache.kept_bytes() <= cache.capacity_bytes() / 2);
            assert!(cache.in_use_bytes() <= cache.used_bytes());
        }
        for (index, ..) in pins {
            cache.unpin(index);
        }
        assert_eq!(cache.in_use_bytes(), 0);
        let held: u64 = cache.used_bytes();
        let mut removed = 0;
        for file in 0..3 {
            removed += cache.remove_of_file(FileId(file), 100).1.next_multiple_of(4096);
        }
        // The last page of a block is short, and each block is rounded up by itself.
        assert!(
            held - removed.min(held) <= 6 * 4096,
            "seed {seed}: {held} held, {removed} removed"
        );
        assert_eq!((cache.block_count(), cache.used_bytes()), (0, 0));
    }
}
