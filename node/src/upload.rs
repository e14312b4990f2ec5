//! What a worker and an upload on the side thread share: its steps, and how much may come in.
//!
//! Always holds: the bytes of parts that the side thread has not taken are bounded for each upload, and the
//! uploads for each node, so that the memory of all of them is bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::mailbox::Requester;

/// Most bytes of an upload that may be unanswered at a time. Derived: 200 MB/s to a store that takes 10 ms.
pub(crate) const CREDIT: u32 = 2 << 20;

/// What a client asks of its upload.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) requester: Requester,
    pub(crate) kind: StepKind,
}

#[derive(Debug)]
pub(crate) enum StepKind {
    Part { offset: u64, checksum: u32, bytes: Bytes },
    End { length: u64 },
    Abort,
}

/// An upload of a connection. It ends when this is dropped, because its task sees the other end of the channel go.
#[derive(Debug)]
pub(crate) struct OpenUpload {
    pub(crate) number: u64,
    pub(crate) steps: flume::Sender<Step>,
    pub(crate) door: Arc<Door>,
}

/// Whether parts may come in, and how much is inside.
#[derive(Debug, Default)]
pub(crate) struct Door {
    inside: AtomicUsize,
    is_shut: AtomicBool,
}

impl Door {
    /// True if the credit leaves room for the bytes of a part, which are inside then.
    pub(crate) fn enter(&self, length: usize) -> bool {
        // The worker alone counts up, so that it cannot overshoot.
        let inside = self.inside.load(Ordering::Relaxed);
        let fits = inside + length <= CREDIT as usize;
        if fits {
            self.inside.fetch_add(length, Ordering::Relaxed);
        }
        fits
    }

    /// Notes that a part was taken by the store.
    pub(crate) fn leave(&self, length: usize) {
        self.inside.fetch_sub(length, Ordering::Relaxed);
    }

    /// Ends the upload: what comes now is refused.
    pub(crate) fn shut(&self) {
        self.is_shut.store(true, Ordering::Release);
    }

    /// True if the upload has ended.
    pub(crate) fn is_shut(&self) -> bool {
        self.is_shut.load(Ordering::Acquire)
    }
}

/// Places for all writes of a node.
#[derive(Clone, Debug)]
pub(crate) struct Slots(Arc<Semaphore>);

impl Slots {
    /// Makes this many.
    pub(crate) fn new(count: usize) -> Slots {
        Slots(Arc::new(Semaphore::new(count)))
    }

    /// Takes one; None if all are taken.
    pub(crate) fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_lets_in_what_the_credit_leaves() {
        let door = Door::default();
        let most = CREDIT as usize;
        assert!(door.enter(most - 1) && door.enter(1) && !door.enter(1));
        door.leave(5);
        assert!(!door.enter(6) && door.enter(5));
        assert!(!door.is_shut());
        door.shut();
        assert!(door.is_shut());
    }

    #[test]
    fn a_place_is_free_again_when_its_write_has_ended() {
        let slots = Slots::new(2);
        let first = slots.take();
        let second = slots.take();
        assert!(first.is_some() && second.is_some() && slots.take().is_none());
        drop(second);
        assert!(slots.take().is_some());
    }
}
