//! Pages are handed out, filled and summed: bytes and checksums against a plain pass over them.

use super::*;

fn shard(page_count: u32) -> ShardMemory {
    Arena::new(page_count).unwrap().cut(1).pop().unwrap()
}

fn bytes_of(length: u32, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length as usize).collect()
}

/// Fills a blank in pieces of random size.
fn fill(mut blank: Blank, bytes: &[u8], seed: u64) -> (Block, Sums) {
    let mut random = fastrand::Rng::with_seed(seed);
    blank
        .fill_with(|offset, target| {
            let count = random.usize(1..=target.len());
            target[..count].copy_from_slice(&bytes[offset as usize..][..count]);
            Ok(count)
        })
        .unwrap();
    blank.freeze()
}

#[test]
fn sums_match_a_plain_pass_at_every_grain() {
    for (length, seed) in
        [(1, 1), (4096, 2), (4097, 3), (65536, 4), (70_000, 5), (1 << 20, 6), ((1 << 20) - 5, 7)]
    {
        let mut memory = shard(512);
        let bytes = bytes_of(length, seed);
        let (block, sums) = fill(memory.allocate(length).unwrap(), &bytes, seed);
        assert_eq!(sums.pages, bytes.chunks(4096).map(crc32fast::hash).collect::<Vec<_>>());
        assert_eq!(sums.chunks, bytes.chunks(65536).map(crc32fast::hash).collect::<Vec<_>>());
        assert_eq!(sums.block, crc32fast::hash(&bytes));
        assert_eq!(block.sum(0, length), sums.block);
        memory.release(block);
        assert_eq!(memory.free_page_count(), 512);
    }
}

#[test]
fn a_blank_that_is_cut_is_a_block_of_what_was_written_and_gives_the_rest_back() {
    let secret = millrace_proto::proof::Secret::parse(b"the secret of these").unwrap();
    let code = |length| BlockMac::new(&secret, millrace_proto::FileId(1), 2, 3, length);
    for (written, left_pages) in [(1, 31), (4096, 31), (4097, 30), (70_000, 14), (1 << 17, 0)] {
        let mut memory = shard(64);
        // Free memory is scattered.
        let singles: Vec<Blank> = (0..64).map(|_| memory.allocate(4096).unwrap()).collect();
        for (index, blank) in singles.into_iter().enumerate() {
            match index % 2 {
                0 => memory.release_blank(blank),
                _ => std::mem::forget(blank),
            }
        }
        let bytes = bytes_of(written, 3);
        let mut blank = memory.allocate(1 << 17).unwrap();
        assert!(blank.write(&bytes).is_empty());
        let rest = blank.cut();
        assert_eq!(rest.as_ref().map_or(0, Blank::length), left_pages * 4096, "{written}");
        if let Some(rest) = rest {
            memory.release_blank(rest);
        }
        assert_eq!((blank.length(), memory.free_page_count()), (written, left_pages));
        assert!(blank.is_full());
        blank.sign(code(written));
        let (block, sums) = blank.freeze();
        assert_eq!((sums.block, block.sum(0, written)), (crc32fast::hash(&bytes), sums.block));
        assert_eq!(sums.pages, bytes.chunks(4096).map(crc32fast::hash).collect::<Vec<_>>());
        let mut expected = code(written);
        expected.update(&bytes);
        assert_eq!(block.code(), Some(&expected.finish()), "as if it had been signed before");
        memory.release(block);
        assert_eq!(memory.free_page_count(), 32);
    }
}

#[test]
fn scattered_memory_still_holds_a_block() {
    let mut memory = shard(64);
    let singles: Vec<Blank> = (0..64).map(|_| memory.allocate(4096).unwrap()).collect();
    assert!(memory.allocate(1).is_none());
    for (index, blank) in singles.into_iter().enumerate() {
        // Every other page is given back: no run is longer than one page.
        if index % 2 == 0 {
            memory.release_blank(blank);
        } else {
            std::mem::forget(blank);
        }
    }
    assert!(memory.allocate(33 * 4096).is_none());
    let bytes = bytes_of(32 * 4096, 9);
    let (block, _) = fill(memory.allocate(32 * 4096).unwrap(), &bytes, 9);
    let mut count = 0;
    block.segments(100, 32 * 4096 - 200, |segment| {
        assert!(segment.length <= 4096);
        count += 1;
    });
    assert_eq!(count, 32);
    assert_eq!(block.sum(100, 10_000), crc32fast::hash(&bytes[100..10_100]));
}

#[test]
fn a_source_that_ends_early_is_an_error() {
    let mut memory = shard(64);
    let mut blank = memory.allocate(10_000).unwrap();
    let mut left = 3;
    let result = blank.fill_with(|_, target| {
        left -= 1;
        Ok(if left == 0 { 0 } else { target.len().min(100) })
    });
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    memory.release_blank(blank);
}

#[test]
fn shards_get_separate_pages() {
    let mut shards = Arena::new(64).unwrap().cut(2);
    let mut blocks = Vec::new();
    for (index, memory) in shards.iter_mut().enumerate() {
        let bytes = vec![index as u8 + 1; 32 * 4096];
        blocks.push(fill(memory.allocate(32 * 4096).unwrap(), &bytes, 1).0);
    }
    assert_eq!(blocks[0].sum(0, 32 * 4096), crc32fast::hash(&vec![1; 32 * 4096]));
    assert_eq!(blocks[1].sum(0, 32 * 4096), crc32fast::hash(&vec![2; 32 * 4096]));
}

#[test]
fn nobody_who_has_the_descriptor_can_write_or_cut_the_memory() {
    let shard = Arena::new(16).unwrap().cut(1).remove(0);
    let memfd = shard.memfd();
    let map = |protection: ProtFlags| {
        // SAFETY: a new mapping at an address the kernel chooses aliases nothing.
        #[expect(unsafe_code, reason = "mapping as a client would")]
        unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), PAGE, protection, MapFlags::SHARED, memfd, 0)
        }
    };
    assert_eq!(map(ProtFlags::READ | ProtFlags::WRITE), Err(rustix::io::Errno::PERM));
    let mapped = map(ProtFlags::READ).unwrap();
    // SAFETY: the page was just mapped, and nothing refers to it.
    #[expect(unsafe_code, reason = "a client that wants more")]
    let raised = unsafe {
        let wanted = rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE;
        rustix::mm::mprotect(mapped, PAGE, wanted)
    };
    assert_eq!(raised, Err(rustix::io::Errno::ACCESS));
    assert_eq!(rustix::io::pwrite(memfd, b"x", 0), Err(rustix::io::Errno::PERM));
    assert_eq!(rustix::fs::ftruncate(memfd, 0), Err(rustix::io::Errno::PERM));
    assert_eq!(rustix::fs::ftruncate(memfd, 1 << 30), Err(rustix::io::Errno::PERM));
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    assert_eq!(rustix::fs::fallocate(memfd, punch, 0, PAGE as u64), Err(rustix::io::Errno::PERM));
    assert!(rustix::fs::fcntl_add_seals(memfd, SealFlags::WRITE).is_err());
}

#[test]
fn pages_that_are_taken_at_start_are_all_there() {
    let shards = Arena::new(4096).unwrap().cut(2);
    shards[1].populate().unwrap();
    let is_there = |shard: &ShardMemory| {
        let stat = rustix::fs::fstat(shard.memfd()).unwrap();
        // Blocks of 512 bytes: inode(7).
        stat.st_blocks as u64 * 512
    };
    assert_eq!(is_there(&shards[0]), 2048 * 4096);
    shards[0].populate().unwrap();
    assert_eq!(is_there(&shards[0]), shards[0].memory_length());
}
