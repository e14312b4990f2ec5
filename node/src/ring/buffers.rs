//! The receive buffers of a ring: the kernel takes one for each receive, and gets it back when it is read.
//!
//! Owns the provided buffer ring and the slab that its entries point into. Always holds: a buffer is
//! either the kernel's or a [`Buffer`] value, never both.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags};

use crate::connection::{RECEIVE_BUFFER_COUNT, RECEIVE_BUFFER_SIZE};

/// Id of the only buffer group.
pub(super) const BUFFER_GROUP: u16 = 0;

/// A filled receive buffer. To be given back with [`Buffers::provide`].
#[derive(Debug)]
pub(crate) struct Buffer {
    pub(super) index: u16,
    pub(super) length: usize,
}

/// The provided buffer ring and the slab its entries point into.
pub(super) struct Buffers {
    entries: NonNull<BufRingEntry>,
    slab: NonNull<u8>,
    tail: u16,
}

/// Bytes of the entries; a whole number of system pages.
const ENTRIES_SIZE: usize = RECEIVE_BUFFER_COUNT as usize * size_of::<BufRingEntry>();
/// Bytes of the slab.
const SLAB_SIZE: usize = RECEIVE_BUFFER_COUNT as usize * RECEIVE_BUFFER_SIZE;

const _: () = assert!(RECEIVE_BUFFER_COUNT.is_power_of_two());
const _: () = assert!(ENTRIES_SIZE.is_multiple_of(4096));

impl Buffer {
    /// True if more may have been waiting than went in.
    pub(crate) fn is_full(&self) -> bool {
        self.length == RECEIVE_BUFFER_SIZE
    }
}

impl Buffers {
    pub(super) fn new(ring: &IoUring) -> io::Result<Buffers> {
        // SAFETY: a new private mapping at an address the kernel chooses aliases nothing.
        #[expect(unsafe_code, reason = "mapping memory")]
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                ENTRIES_SIZE + SLAB_SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let entries = NonNull::new(base.cast::<BufRingEntry>())
            .ok_or_else(|| io::Error::other("mmap returned null"))?;
        // SAFETY: the slab follows the entries in the same mapping.
        #[expect(unsafe_code, reason = "address arithmetic inside the mapping")]
        let slab = unsafe { entries.cast::<u8>().add(ENTRIES_SIZE) };
        // SAFETY: the entries are mapped for as long as the process lives (see `Drop`).
        #[expect(unsafe_code, reason = "registering the buffer ring")]
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                entries.as_ptr().expose_provenance() as u64,
                RECEIVE_BUFFER_COUNT,
                BUFFER_GROUP,
                0,
            )
        }?;
        let mut buffers = Buffers { entries, slab, tail: 0 };
        for index in 0..RECEIVE_BUFFER_COUNT {
            buffers.provide(index);
        }
        Ok(buffers)
    }

    /// Gives one buffer to the kernel.
    pub(super) fn provide(&mut self, index: u16) {
        let place = (self.tail & (RECEIVE_BUFFER_COUNT - 1)) as usize;
        // SAFETY: the offset is inside the slab, since the kernel only names buffers it was given.
        #[expect(unsafe_code, reason = "address arithmetic inside the mapping")]
        let address = unsafe { self.slab.add(index as usize * RECEIVE_BUFFER_SIZE) };
        // SAFETY: the place is inside the entries, by the mask.
        #[expect(unsafe_code, reason = "address arithmetic inside the mapping")]
        let mut entry = unsafe { self.entries.add(place) };
        // SAFETY: the kernel reads entries between head and tail only, and this one is past the tail.
        #[expect(unsafe_code, reason = "an entry of the mapping")]
        let entry = unsafe { entry.as_mut() };
        entry.set_addr(address.as_ptr().expose_provenance() as u64);
        entry.set_len(RECEIVE_BUFFER_SIZE as u32);
        entry.set_bid(index);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the pointer is the first entry of the ring, which is initialised: fresh maps are zero.
        #[expect(unsafe_code, reason = "the crate gives the tail's address only this way")]
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: the tail is a u16, aligned, that the kernel reads and only we write.
        #[expect(unsafe_code, reason = "the kernel reads the tail from another context")]
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    pub(super) fn bytes(&self, buffer: &Buffer) -> &[u8] {
        assert!(buffer.index < RECEIVE_BUFFER_COUNT && buffer.length <= RECEIVE_BUFFER_SIZE);
        // SAFETY: the offset is inside the slab, by the line above.
        #[expect(unsafe_code, reason = "address arithmetic inside the mapping")]
        let start = unsafe { self.slab.add(buffer.index as usize * RECEIVE_BUFFER_SIZE) };
        // SAFETY: the kernel filled the buffer and does not touch it again until it is provided, which
        // consumes the `Buffer` that is borrowed here.
        #[expect(unsafe_code, reason = "the received bytes")]
        unsafe {
            std::slice::from_raw_parts(start.as_ptr(), buffer.length)
        }
    }
}

// `Buffers` has no `Drop`: a receive may be under way when the process stops serving, and the kernel
// would write into whatever took the memory's place. 2 MiB for each shard live as long as the process.
