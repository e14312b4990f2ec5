//! Proof that a hit allocates nothing: the test binary counts the allocations of each thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use super::tests::{Node, read};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
#[expect(unsafe_code, reason = "an allocator that counts")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_hit_allocates_nothing() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).expect("room for one");
    let requests: Vec<u8> =
        (0..4).flat_map(|sequence| read(sequence as u32, sequence, 0)).collect();
    let mut actions = Vec::with_capacity(16);
    let mut turn = |node: &mut Node| {
        node.workers[0].handle(0, super::Event::Received { token, bytes: &requests }, &mut actions);
        let batch = super::tests::sent_at_end(&mut node.workers[0], &mut actions);
        let replies = batch.as_ref().map_or(0, |batch| batch.reply_count);
        if let Some(batch) = batch {
            node.workers[0].handle(
                0,
                super::Event::Sent { token, batch, ok: true, is_last: true },
                &mut actions,
            );
            actions.clear();
        }
        replies
    };
    // The first turns fill the blocks and grow the buffers.
    turn(&mut node);
    node.end_fills(0, |_| Ok(()));
    node.sent.clear();
    for _ in 0..4 {
        turn(&mut node);
    }
    let before = COUNT.get();
    let mut replies = 0;
    for _ in 0..1_000 {
        replies += turn(&mut node);
    }
    assert_eq!(replies, 4_000);
    assert_eq!(COUNT.get() - before, 0, "allocations in 4000 hits");
}
