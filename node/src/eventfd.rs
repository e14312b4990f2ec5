//! The bridge between the raw ring and the executor: an eventfd that a glommio task can await.
//!
//! glommio has no type for a foreign descriptor, but a read of a [`BufferedFile`] is the operation
//! it uses for its own eventfd, and the executor sleeps until it completes.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use glommio::io::BufferedFile;

/// Makes an eventfd awaitable: reading 8 bytes at 0 completes when it is rung.
pub(crate) fn awaitable(eventfd: OwnedFd) -> BufferedFile {
    // SAFETY: the descriptor is open and owned, and its ownership moves into the file.
    #[expect(unsafe_code, reason = "glommio takes a foreign descriptor only this way")]
    unsafe {
        BufferedFile::from_raw_fd(eventfd.into_raw_fd())
    }
}
