//! Tests of the ring's setup.

use rustix::event::EventfdFlags;

use super::*;

mod messages;

/// Shows that the flags of newer kernels change when work is done, never whether.
#[test]
fn ticks_come_with_and_without_deferred_work() {
    for setup in [Setup::Deferred, Setup::Plain] {
        let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let mut ring = Ring::with(setup, &eventfd, 1).unwrap();
        ring.tick();
        let completion = std::iter::repeat_with(|| {
            ring.enter().unwrap();
            ring.next_completion()
        })
        .take(1_000_000)
        .flatten()
        .next();
        assert!(matches!(completion, Some(Completion::Tick)), "{setup:?}");
    }
}

/// Uses a kernel that takes no entries any more, here because the descriptor is another file's.
#[test]
fn a_full_queue_that_the_kernel_does_not_take_is_an_error_of_the_next_enter() {
    let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let mut ring = Ring::with(Setup::Deferred, &eventfd, 1).unwrap();
    // SAFETY: the descriptor is open, and not closed by this handle, which is never dropped.
    #[expect(unsafe_code, reason = "exchanging the file behind a descriptor")]
    let descriptor = unsafe { std::os::fd::FromRawFd::from_raw_fd(ring.ring.as_raw_fd()) };
    let mut descriptor = std::mem::ManuallyDrop::<OwnedFd>::new(descriptor);
    let null = std::fs::File::open("/dev/null").unwrap();
    rustix::io::dup2(&null, &mut descriptor).unwrap();
    for _ in 0..3 * SUBMISSIONS {
        ring.tick();
    }
    assert!(ring.has_work());
    assert!(ring.enter().is_err());
}

#[test]
fn entries_that_found_no_room_are_submitted_later() {
    let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let mut ring = Ring::with(Setup::Deferred, &eventfd, 1).unwrap();
    let count = 3 * SUBMISSIONS as usize;
    let entry = opcode::Nop::new().build().user_data(user_data(Operation::Tick, 0, 0));
    ring.waiting.extend(std::iter::repeat_n(entry, count - 1));
    ring.tick();
    assert_eq!(ring.waiting.len(), count - SUBMISSIONS as usize * 2, "in order, behind the others");
    let mut seen = 0;
    for _ in 0..1_000_000 {
        ring.enter().unwrap();
        seen += std::iter::from_fn(|| ring.next_completion()).count();
        if seen == count {
            break;
        }
    }
    assert_eq!(seen, count);
    assert!(ring.waiting.is_empty());
}
