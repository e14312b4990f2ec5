//! What stays in the table, what leaves it, and when bytes count.

use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags};

use super::*;
use crate::file::Kind;
use crate::memory::NodeMemory;

const PAGE: u32 = PAGE_SIZE;

/// Makes sealed memory whose pages hold their own numbers.
fn memfd(page_count: u32, seals: SealFlags) -> OwnedFd {
    let memfd = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
    for page in 0..page_count {
        rustix::io::write(&memfd, &[page as u8; PAGE as usize]).unwrap();
    }
    rustix::fs::fcntl_add_seals(&memfd, seals).unwrap();
    memfd
}

fn attachment() -> Arc<Attachment> {
    attachment_of(&memfd(8, SealFlags::SHRINK))
}

/// Makes memory of eight pages.
fn attachment_of(memfd: &OwnedFd) -> Arc<Attachment> {
    Arc::new(Attachment::of(NodeMemory::map(memfd, 8 * u64::from(PAGE)).unwrap()))
}

fn file() -> File {
    File {
        path: "file".into(),
        id: FileId(7),
        version: 1,
        length: 1 << 30,
        block_size: 64 << 10,
        kind: Kind::File,
        modified_ms: 0,
    }
}

/// Makes block 0 of the file, as the given pages hold it.
fn block(attachment: &Arc<Attachment>, pages: &[u32], length: u32) -> LeasedBlock {
    let mut left = length;
    let extents = pages.iter().map(|page| {
        let length = left.min(PAGE);
        left -= length;
        Extent { offset: u64::from(page * PAGE), length }
    });
    LeasedBlock {
        attachment: attachment.clone(),
        key: 0,
        file: FileId(7),
        version: 1,
        start: 0,
        length,
        checksum: 0,
        extents: extents.collect(),
        ends_at_ns: AtomicU64::new(u64::MAX),
        granted_until_ns: AtomicU64::new(u64::MAX),
        verified_at_ns: AtomicU64::new(1),
    }
}

#[test]
fn a_scattered_block_is_put_together() {
    let block = block(&attachment(), &[5, 2, 7], 2 * PAGE + 100);
    let whole: Vec<u8> = [(5, 4096), (2, 4096), (7, 100)]
        .iter()
        .flat_map(|(page, count)| std::iter::repeat_n(*page, *count))
        .collect();
    let length = whole.len();
    for (start, end) in [(0, length), (0, 1), (4095, 4098), (8192, 8292), (100, 8200), (50, 50)] {
        let mut target = vec![0; end - start];
        assert!(block.copy(start as u32, &mut target));
        assert_eq!(target, whole[start..end], "{start}..{end}");
        let mut appended = BytesMut::from(&b"x"[..]);
        assert!(block.append(start as u32, (end - start) as u32, &mut appended));
        assert_eq!(appended[1..], whole[start..end]);
    }
    assert_eq!(block.attachment.memory.sum(&block.extents), millrace_proto::checksum::of(&whole));
}

#[test]
fn bytes_count_only_while_the_lease_holds_and_the_connection_stands() {
    let attachment = attachment();
    let mut target = [0; 10];
    let ended = block(&attachment, &[1], PAGE);
    ended.ends_at_ns.store(now_ns(), Ordering::Relaxed);
    let mut appended = BytesMut::from(&b"x"[..]);
    assert!(!ended.copy(0, &mut target) && !ended.append(0, 10, &mut appended));
    assert_eq!(appended, "x", "a buffer is left as it was");
    let held = block(&attachment, &[1], PAGE);
    assert!(held.copy(0, &mut target));
    attachment.end();
    assert!(!held.copy(0, &mut target));
}

#[test]
fn the_table_is_bounded_and_what_goes_ends() {
    let attachment = attachment();
    let leases = Leases::new(4 * u64::from(PAGE));
    let file = file();
    let mut blocks = Vec::new();
    for index in 0..6 {
        let added = Arc::new(LeasedBlock {
            start: u64::from(index * file.block_size),
            ..block(&attachment, &[index], PAGE)
        });
        let gone = leases.insert(key_of(&file, u64::from(index)), added.clone());
        assert_eq!(gone.len(), usize::from(index >= 4));
        blocks.push(added);
    }
    let held: Vec<bool> = blocks.iter().map(|block| block.holds()).collect();
    assert_eq!(held, [false, false, true, true, true, true]);
    let found = |index: u32| {
        let offset = u64::from(index * file.block_size);
        leases.with(&file, (offset, 1, file.block_size), |_, _| Some(())).is_some()
    };
    assert!(!found(0) && !found(1) && found(2) && found(5) && !found(6));
    // A newer lease of a block takes the place of the older, which is not given back with it.
    let newer = Arc::new(LeasedBlock {
        start: u64::from(5 * file.block_size),
        ..block(&attachment, &[0], PAGE)
    });
    leases.insert(key_of(&file, 5), newer.clone());
    for index in 10..13 {
        let added = LeasedBlock {
            start: u64::from(index * file.block_size),
            ..block(&attachment, &[0], PAGE)
        };
        let gone = leases.insert(key_of(&file, u64::from(index)), Arc::new(added));
        assert!(gone.iter().all(|gone| !Arc::ptr_eq(gone, &newer)));
    }
    assert!(newer.holds());
}

#[test]
fn another_version_or_block_under_the_same_key_is_not_taken_for_it() {
    let leases = Leases::new(1 << 20);
    let file = file();
    leases.insert(key_of(&file, 0), Arc::new(block(&attachment(), &[1], PAGE)));
    let is_found = |file: &File, offset: u64, length: u32| {
        leases.with(file, (offset, length, file.block_size), |_, _| Some(())).is_some()
    };
    assert!(is_found(&file, 0, PAGE));
    assert!(!is_found(&file, 1, PAGE), "past the end of the block");
    assert!(!is_found(&File { version: 2, ..file.clone() }, 0, 1));
    assert!(!is_found(&File { id: FileId(8), ..file.clone() }, 0, 1));
    // With another block size, the number is the same and the place is not.
    assert!(!is_found(&File { block_size: 4096, ..file }, 4096, 1));
}

#[test]
fn memory_that_could_shrink_or_has_another_length_is_not_mapped() {
    let length = 2 * u64::from(PAGE);
    assert!(NodeMemory::map(&memfd(2, SealFlags::empty()), length).is_err());
    assert!(NodeMemory::map(&memfd(2, SealFlags::SHRINK), length + 1).is_err());
    let memory = NodeMemory::map(&memfd(2, SealFlags::SHRINK), length).unwrap();
    let inside = |offset, length| memory.contains(&Extent { offset, length });
    assert!(inside(0, 2 * PAGE) && inside(length, 0));
    assert!(!inside(1, 2 * PAGE) && !inside(u64::MAX, 2) && !inside(length, 1));
}

#[test]
fn what_is_being_leased_again_is_not_given_back() {
    let attachment = attachment();
    let leases = Leases::new(1 << 20);
    let gone: Vec<_> = (0..3)
        .map(|key| {
            Arc::new(LeasedBlock { key, start: key * 100, ..block(&attachment, &[0], PAGE) })
        })
        .collect();
    let given_back = || {
        let mut starts = Vec::new();
        leases.give_back(&gone, |blocks| starts = blocks.iter().map(|it| it.start).collect());
        starts
    };
    let first = leases.asking(vec![1]);
    let second = leases.asking(vec![1, 2]);
    assert_eq!(given_back(), [0]);
    drop(first);
    assert_eq!(given_back(), [0]);
    drop(second);
    assert_eq!(given_back(), [0, 100, 200]);
    // The block was leased again meanwhile, and that lease is done.
    let again = LeasedBlock { key: 2, ..block(&attachment, &[0], PAGE) };
    leases.insert(2, Arc::new(again));
    assert_eq!(given_back(), [0, 100]);
}

#[test]
fn a_lease_that_was_revoked_is_not_prolonged() {
    let lease = block(&attachment(), &[0], PAGE);
    assert!(lease.prolong(u64::MAX) && lease.holds());
    assert!(lease.revoke());
    assert!(!lease.prolong(u64::MAX) && !lease.holds() && !lease.revoke());
}

#[test]
fn a_block_is_verified_before_it_is_read_and_again_while_it_is_leased() {
    let memfd = memfd(8, SealFlags::SHRINK);
    let length = 2 * PAGE;
    let mut lease = block(&attachment_of(&memfd), &[3, 4], length);
    lease.checksum = lease.attachment.memory.sum(&lease.extents);
    lease.verified_at_ns = AtomicU64::new(0);
    assert!(!lease.is_good_for(true) && lease.is_good_for(false));
    let (first, half) = (now_ns().max(1), VERIFIED_FOR_NS / 2);
    assert!(lease.verify(first) && lease.is_good_for(true));
    assert!(lease.prolong(u64::MAX) && lease.holds());
    let end = |lease: &LeasedBlock| lease.ends_at_ns.load(Ordering::SeqCst);
    assert_eq!(end(&lease), first + VERIFIED_FOR_NS, "it has to be leased again by then");
    // A bit of the second page goes bad.
    rustix::io::pwrite(&memfd, &[4 ^ 1], 4 * u64::from(PAGE) + 99).unwrap();
    assert!(lease.verify(first + half - 1), "that was looked at a moment ago");
    assert!(lease.prolong(u64::MAX));
    assert_eq!(end(&lease), first + VERIFIED_FOR_NS, "a lease is not prolonged past what was seen");
    assert!(!lease.verify(first + half) && !lease.is_good_for(true));
    // The mended page is what was cached again.
    rustix::io::pwrite(&memfd, &[4], 4 * u64::from(PAGE) + 99).unwrap();
    assert!(lease.verify(first + half) && lease.prolong(u64::MAX));
    assert_eq!(end(&lease), first + half + VERIFIED_FOR_NS);
    // The node's promise may be shorter.
    lease.granted_until_ns = AtomicU64::new(first + half);
    assert!(lease.prolong(first + half + 1));
    assert_eq!(end(&lease), first + half + 1);
}

#[test]
fn what_ended_here_and_not_at_the_node_is_given_back() {
    let attachment = attachment();
    let leases = Leases::new(u64::from(PAGE));
    let seen_long_ago = Arc::new(block(&attachment, &[0], PAGE));
    seen_long_ago.ends_at_ns.store(1, Ordering::SeqCst);
    assert!(!seen_long_ago.holds());
    leases.insert(1, seen_long_ago);
    let gone = leases.insert(2, Arc::new(block(&attachment, &[1], PAGE)));
    assert_eq!(gone.len(), 1, "the node still keeps its memory");
    let ended = block(&attachment, &[2], PAGE);
    ended.granted_until_ns.store(1, Ordering::SeqCst);
    assert!(!ended.revoke());
}

#[test]
fn blocks_of_a_connection_that_ended_leave_with_the_next_lease() {
    let (old, new) = (attachment(), attachment());
    let leases = Leases::new(1 << 20);
    for key in 0..3 {
        leases.insert(key, Arc::new(LeasedBlock { key, ..block(&old, &[0], PAGE) }));
    }
    old.end();
    let gone = leases.insert(9, Arc::new(LeasedBlock { key: 9, ..block(&new, &[0], PAGE) }));
    assert!(gone.is_empty(), "there is no connection to give them back on");
    assert_eq!(Arc::strong_count(&old), 1, "nothing keeps the memory of the dead node");
    assert!(leases.find(9).is_some_and(|block| block.holds()));
}

#[test]
fn of_two_leases_of_one_block_the_first_ends() {
    let attachment = attachment();
    let leases = Leases::new(1 << 20);
    let first = Arc::new(block(&attachment, &[0], PAGE));
    leases.insert(0, first.clone());
    leases.insert(0, Arc::new(block(&attachment, &[0], PAGE)));
    assert!(!first.holds());
}
