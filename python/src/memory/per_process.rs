//! A value that each process makes for itself.
//!
//! ```text
//!  parent   slot ──► (pid 1, value)
//!  fork     slot ──► (pid 1, value)   the child's copy: its threads and locks are those of the parent
//!  child    slot ──► (pid 2, value)   the old one stays as it is and is never dropped
//! ```
//!
//! Always holds: without a lock, because one that a thread of the parent held would stay locked in the
//! child for good. A value is replaced only in another process than its own, so a reference to it is good
//! as long as the slot is.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// See the module.
#[derive(Debug)]
pub(crate) struct PerProcess<T> {
    slot: AtomicPtr<Made<T>>,
}

/// A value, and the process that made it.
#[derive(Debug)]
struct Made<T> {
    process: u32,
    value: T,
}

impl<T: Send + Sync> PerProcess<T> {
    /// Returns a slot without a value.
    pub(crate) const fn new() -> PerProcess<T> {
        PerProcess { slot: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Returns the value of this process, if there is one.
    pub(crate) fn get(&self) -> Option<&T> {
        value_of(self.slot.load(Ordering::Acquire), std::process::id())
    }

    /// Returns the value of this process, which `make` makes at first use. Of several threads that
    /// make one at the same time, one keeps its value and the others drop theirs.
    ///
    /// # Errors
    /// Those of `make`.
    pub(crate) fn get_or_try<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        let process = std::process::id();
        let mut known = self.slot.load(Ordering::Acquire);
        if let Some(value) = value_of(known, process) {
            return Ok(value);
        }
        let made = Box::into_raw(Box::new(Made { process, value: make()? }));
        loop {
            match self.slot.compare_exchange(known, made, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(value_of(made, process).expect("it was made by this process")),
                Err(other) => known = other,
            }
            if let Some(value) = value_of(known, process) {
                // SAFETY: made above and given to nothing else.
                #[expect(unsafe_code, reason = "another thread was first")]
                drop(unsafe { Box::from_raw(made) });
                return Ok(value);
            }
        }
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let made = *self.slot.get_mut();
        if value_of(made, std::process::id()).is_some() {
            // SAFETY: it came from a box, and the slot, which alone had it, ends.
            #[expect(unsafe_code, reason = "the slot owns the value")]
            drop(unsafe { Box::from_raw(made) });
        }
    }
}

/// Returns a value if this process made it.
fn value_of<'a, T>(made: *mut Made<T>, process: u32) -> Option<&'a T> {
    // SAFETY: null, or from a box that is dropped with the slot only.
    #[expect(unsafe_code, reason = "what the slot points to")]
    let made = unsafe { made.as_ref() }?;
    (made.process == process).then_some(&made.value)
}
