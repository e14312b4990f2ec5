//! Tests of the ring's setup.

use rustix::event::EventfdFlags;

use super::*;

mod messages;

/// The flags of newer kernels change when work is done, never whether.
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
