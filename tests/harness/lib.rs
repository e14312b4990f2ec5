//! Tools of the end-to-end tests: nodes as real processes, peers that speak raw frames, content that can
//! be checked without keeping it.
//!
//! Owns no claims of its own; those are in `e2e/`. Always holds: a node dies with its handle, and what
//! it wrote to its log is shown when the test fails. Timeouts here are guards against hanging and never
//! a claim about speed. Modules in reading order:

pub mod cluster;
pub mod content;
pub mod coord;
pub mod damage;
pub mod fuse;
pub mod gate;
pub mod http;
pub mod linearizable;
pub mod load;
pub mod mounted;
pub mod node;
pub mod open_metrics;
pub mod origin;
pub mod peer;
pub mod preload;
pub mod process;
pub mod servers;
pub mod slow_source;
pub mod starts;

pub use cluster::Cluster;
pub use content::{BLOCK, Scratch};
pub use node::{Node, NodeOptions};
pub use peer::{Peer, Reply};
pub use process::Memory;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a test waits for something that should come soon. Guessed: a debug build on a busy
/// machine with two cores stays far below.
pub const HANG_GUARD: Duration = Duration::from_secs(60);

static HEAVY: Mutex<()> = Mutex::new(());

/// Returns a lock for tests that need most of the machine, so that they do not run side by side.
pub fn heavy() -> MutexGuard<'static, ()> {
    // A heavy test that failed leaves nothing behind that the next one could stumble over.
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `holds` returns true.
///
/// # Panics
/// If that takes longer than [`HANG_GUARD`].
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < HANG_GUARD, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
