//! Whether there is room for more state: noted by the threads that write, looked at by the loop.
//!
//! Always holds: the loop can know before a store is full, with a reserve for what is on its way
//! and for writes that make room again. A store that fills all the same ends the replica.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Free bytes of the file system below which nothing may grow: the two segments that the log may
/// need next, and as much for the state. On a small one a quarter of it.
const FREE_BYTES_MIN: u64 = 256 << 20;

const LOG_PRESSED: u8 = 1;
const LOG_FULL: u8 = 2;
const STATE_FULL: u8 = 4;
const DISK_FULL: u8 = 8;

/// What the threads noted. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Room(Arc<AtomicU8>);

impl Room {
    fn set(&self, bit: u8, is_set: bool) {
        // Nothing is passed along with the bits.
        match is_set {
            true => self.0.fetch_or(bit, Ordering::Relaxed),
            false => self.0.fetch_and(!bit, Ordering::Relaxed),
        };
    }

    /// Notes how full the log is. A checkpoint lets it be compacted, so it is asked for early.
    pub(super) fn note_log(&self, used_bytes: u64, limit_bytes: u64) {
        self.set(LOG_PRESSED, used_bytes > limit_bytes / 2);
        self.set(LOG_FULL, used_bytes > limit_bytes / 4 * 3);
    }

    /// Notes how full the state is, with the changes that wait for their commit. A commit writes
    /// the pages that it changes anew, so those count twice, and an eighth is kept for others.
    pub(super) fn note_state(&self, used_bytes: u64, waiting_bytes: u64, limit_bytes: u64) {
        self.set(STATE_FULL, used_bytes + 2 * waiting_bytes > limit_bytes / 8 * 7);
    }

    /// Whether the log would be smaller after a checkpoint, and should be.
    pub(super) fn is_log_pressed(&self) -> bool {
        self.0.load(Ordering::Relaxed) & LOG_PRESSED != 0
    }

    /// What has no room for more state, if something has none.
    pub(super) fn lacking(&self) -> Option<&'static str> {
        let bits = self.0.load(Ordering::Relaxed);
        [
            (DISK_FULL, "the file system of the data directory is nearly full: free some of it"),
            (STATE_FULL, "the state has nearly reached map_size_bytes: delete nodes, or raise it"),
            (LOG_FULL, "the log has nearly reached log_max_bytes: it is waiting for a checkpoint"),
        ]
        .into_iter()
        .find_map(|(bit, what)| (bits & bit != 0).then_some(what))
    }
}

/// Looks at the file system.
pub(super) struct FreeSpace {
    directory: Option<PathBuf>,
}

impl FreeSpace {
    /// Of the one that `directory` is in; of none if there is no directory.
    pub(super) fn of(directory: Option<&Path>) -> FreeSpace {
        FreeSpace { directory: directory.map(Path::to_owned) }
    }

    /// Notes whether it is nearly full: a call of a microsecond.
    pub(super) fn look(&self, room: &Room) {
        let Some(directory) = &self.directory else { return };
        // One that cannot be asked is not known to be full; a write that fails ends the replica.
        let Ok(space) = rustix::fs::statvfs(directory) else { return };
        let total = space.f_blocks * space.f_frsize;
        let free = space.f_bavail * space.f_frsize;
        room.set(DISK_FULL, free < FREE_BYTES_MIN.min(total / 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_store_says_that_it_is_nearly_full_and_takes_it_back() {
        let room = Room::default();
        assert_eq!(room.lacking(), None);
        room.note_log(51, 100);
        assert!(room.is_log_pressed() && room.lacking().is_none());
        room.note_log(76, 100);
        assert!(room.lacking().is_some_and(|what| what.contains("log_max_bytes")));
        room.note_state(50, 20, 100);
        room.note_log(10, 100);
        assert!(room.lacking().is_some_and(|what| what.contains("map_size_bytes")));
        room.note_state(50, 10, 100);
        assert_eq!((room.lacking(), room.is_log_pressed()), (None, false));
    }

    #[test]
    fn a_file_system_with_room_is_told_from_one_without() {
        let room = Room::default();
        FreeSpace::of(None).look(&room);
        room.set(DISK_FULL, true);
        // No file can grow there: it has no blocks at all.
        FreeSpace::of(Some(Path::new("/proc"))).look(&room);
        assert_eq!(room.lacking(), None, "what has no size is not full");
        room.set(DISK_FULL, true);
        FreeSpace::of(Some(Path::new("/nowhere"))).look(&room);
        assert!(room.lacking().is_some(), "what cannot be asked changes nothing");
    }
}
