//! Reads and writes of files: what the kernel may still read or write.
//!
//! Owns the jobs under way. Always holds: blanks and iovecs of a job stay where they are until each of its operations
//! has completed; pieces of blocks that it writes are pinned by the caller for as long. A job whose parts lie one
//! behind the other is one operation.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::types::Fd;
use io_uring::{opcode, squeue};

use crate::memory::{Blank, Segment};

/// Pieces of one operation: UIO_MAXIOV.
const PIECES_MAX: usize = 1024;

/// Something to do with a file.
#[derive(Debug)]
pub(crate) struct DiskJob {
    /// What it is for, for the caller.
    pub number: u64,
    /// The file.
    pub file: Arc<File>,
    /// What to do.
    pub work: DiskWork,
}

/// See [`DiskJob`].
#[derive(Debug)]
pub(crate) enum DiskWork {
    /// Read into these blanks, each from an offset of the file in bytes.
    Read(Vec<(u64, Blank)>),
    /// Write at an offset: `own` first, then what is pinned.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// Bytes of the caller.
        own: Blank,
        /// Pieces of blocks that the caller has pinned.
        pinned: Vec<Segment>,
        /// True if it has to be on the disk when it has completed.
        is_durable: bool,
    },
}

/// A job under way.
struct DiskSlot {
    job: Box<DiskJob>,
    /// Iovecs of each operation, which the kernel reads.
    iovecs: Vec<Vec<libc::iovec>>,
    /// Operations that have not completed.
    left: usize,
    /// Bytes that are to be moved, and that were.
    wanted: usize,
    moved: usize,
    error: Option<io::Error>,
}

/// The jobs under way.
#[derive(Default)]
pub(super) struct DiskSlots {
    slots: Vec<Option<DiskSlot>>,
    free: Vec<u32>,
}

impl DiskSlots {
    /// Returns how many are under way.
    pub(super) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a job in. Returns its number here, and its operations, whose user data is still to be set.
    pub(super) fn begin(&mut self, mut job: Box<DiskJob>) -> (u32, Vec<squeue::Entry>) {
        let fd = Fd(job.file.as_raw_fd());
        let mut operations = Operations::default();
        let mut is_durable = false;
        match &mut job.work {
            DiskWork::Read(parts) => {
                for (offset, blank) in parts {
                    operations.go_to(*offset);
                    blank.whole_pages(|segment| operations.add(segment));
                }
            }
            DiskWork::Write { offset, own, pinned, is_durable: durable } => {
                operations.go_to(*offset);
                own.whole_pages(|segment| operations.add(segment));
                pinned.iter().for_each(|segment| operations.add(*segment));
                is_durable = *durable;
            }
        }
        let Operations { iovecs, offsets, .. } = operations;
        let is_read = matches!(job.work, DiskWork::Read(_));
        let entries = iovecs.iter().zip(offsets).map(|(operation, offset)| {
            let (start, count) = (operation.as_ptr(), operation.len() as u32);
            match is_read {
                true => opcode::Readv::new(fd, start, count).offset(offset).build(),
                false => {
                    let flags = if is_durable { libc::RWF_DSYNC } else { 0 };
                    opcode::Writev::new(fd, start, count).offset(offset).rw_flags(flags).build()
                }
            }
        });
        let entries: Vec<squeue::Entry> = entries.collect();
        let wanted = iovecs.iter().flatten().map(|piece| piece.iov_len).sum();
        let left = entries.len();
        let slot = DiskSlot { job, iovecs, left, wanted, moved: 0, error: None };
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = Some(slot);
                number
            }
            None => {
                self.slots.push(Some(slot));
                self.slots.len() as u32 - 1
            }
        };
        (number, entries)
    }

    /// Counts an operation that has completed. Returns its job with the last one, and whether every byte was moved.
    pub(super) fn end(
        &mut self,
        number: u32,
        result: io::Result<usize>,
    ) -> Option<(Box<DiskJob>, io::Result<()>)> {
        let place = &mut self.slots[number as usize];
        let slot = place.as_mut().expect("the slot of a job under way is taken");
        slot.left -= 1;
        match result {
            Ok(count) => slot.moved += count,
            Err(error) => slot.error = Some(error),
        }
        if slot.left > 0 {
            return None;
        }
        self.free.push(number);
        let DiskSlot { job, iovecs, wanted, moved, error, .. } = place.take()?;
        drop(iovecs);
        let result = match error {
            Some(error) => Err(error),
            None if moved < wanted => {
                let message =
                    format!("only {moved} of {wanted} bytes: the file is too short, or full");
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, message))
            }
            None => Ok(()),
        };
        Some((job, result))
    }
}

/// Operations in the making: each moves what lies in one row in the file.
#[derive(Default)]
struct Operations {
    iovecs: Vec<Vec<libc::iovec>>,
    offsets: Vec<u64>,
    /// Where the next piece goes.
    position: u64,
}

impl Operations {
    /// Goes on at this offset of the file.
    fn go_to(&mut self, offset: u64) {
        if offset != self.position || self.iovecs.is_empty() {
            self.begin(offset);
        }
    }

    fn begin(&mut self, offset: u64) {
        self.iovecs.push(Vec::new());
        self.offsets.push(offset);
        self.position = offset;
    }

    fn add(&mut self, segment: Segment) {
        if self.iovecs.last().is_none_or(|last| last.len() == PIECES_MAX) {
            self.begin(self.position);
        }
        if let Some(last) = self.iovecs.last_mut() {
            last.push(iovec(segment));
            self.position += segment.length as u64;
        }
    }
}

fn iovec(segment: Segment) -> libc::iovec {
    let base = std::ptr::with_exposed_provenance_mut(segment.address);
    libc::iovec { iov_base: base, iov_len: segment.length }
}
