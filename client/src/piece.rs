//! A part of a read, and what the read asks for.

use std::time::Duration;

use millrace_proto::message::Range;
use tokio::time::Instant;

use crate::file::File;

/// [`ReadOptions`](crate::ReadOptions) with every choice made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) verify: bool,
    pub(crate) deadline: Instant,
    pub(crate) hedge: Option<Duration>,
}

/// A range inside one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Offset in the file in bytes.
    pub(crate) offset: u64,
    /// Length in bytes, at least 1.
    pub(crate) length: u32,
    /// Block size in bytes that the cut was made with.
    pub(crate) block_size: u32,
}

impl Piece {
    pub(crate) fn block(&self) -> u64 {
        self.offset / u64::from(self.block_size)
    }

    pub(crate) fn range(&self, file: &File) -> Range {
        Range {
            file: file.id.into(),
            version: file.version,
            offset: self.offset,
            length: self.length,
        }
    }
}
