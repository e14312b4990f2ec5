//! Room for more state: the threads that write note it, and the loop reads it.
//!
//! Always holds: the loop can know before a store is full, with a reserve for writes on their way and for
//! writes that make room again. If a store still fills, the replica stops.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Free bytes of the file system below which nothing may grow: the two segments that the log may need next,
/// and as much for the state. On a small file system it is a quarter of its size.
const FREE_BYTES_MIN: u64 = 256 << 20;

const LOG_PRESSED: u8 = 1;
const LOG_FULL: u8 = 2;
const STATE_FULL: u8 = 4;
const DISK_FULL: u8 = 8;

/// The notes of the threads. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Room(Arc<AtomicU8>);

impl Room {
    fn set(&self, bit: u8, is_set: bool) {
        // The bits guard no other data, so relaxed access is enough.
        match is_set {
            true => self.0.fetch_or(bit, Ordering::Relaxed),
            false => self.0.fetch_and(!bit, Ordering::Relaxed),
        };
    }

    /// Notes how full the log is. A checkpoint lets it be compacted, so one is made early.
    pub(super) fn note_log(&self, used_bytes: u64, limit_bytes: u64) {
        self.set(LOG_PRESSED, used_bytes > limit_bytes / 2);
        self.set(LOG_FULL, used_bytes > limit_bytes / 4 * 3);
    }

    /// Notes how full the state is, including changes that wait for their commit. These count twice,
    /// because a commit writes the changed pages again. An eighth is kept for other writes.
    pub(super) fn note_state(&self, used_bytes: u64, waiting_bytes: u64, limit_bytes: u64) {
        self.set(STATE_FULL, used_bytes + 2 * waiting_bytes > limit_bytes / 8 * 7);
    }

    /// True if a checkpoint should be made so that the log can shrink.
    pub(super) fn is_log_pressed(&self) -> bool {
        self.0.load(Ordering::Relaxed) & LOG_PRESSED != 0
    }

    /// Says what has no room for more state; `None` if all have room.
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

/// The file system whose free space is watched.
pub(super) struct FreeSpace {
    directory: Option<PathBuf>,
}

impl FreeSpace {
    /// Watches the file system of `directory`; none if there is no directory.
    pub(super) fn of(directory: Option<&Path>) -> FreeSpace {
        FreeSpace { directory: directory.map(Path::to_owned) }
    }

    /// Notes whether it is nearly full. This call takes a microsecond.
    pub(super) fn look(&self, room: &Room) {
        let Some(directory) = &self.directory else { return };
        // If the system does not answer, the file system is not known to be full. A write that fails stops
        // the replica.
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
        // No file can grow there, because it has no blocks.
        FreeSpace::of(Some(Path::new("/proc"))).look(&room);
        assert_eq!(room.lacking(), None, "what has no size is not full");
        room.set(DISK_FULL, true);
        FreeSpace::of(Some(Path::new("/nowhere"))).look(&room);
        assert!(room.lacking().is_some(), "what cannot be asked changes nothing");
    }
}
