//! The memory of a node on this machine, mapped for reading.
//!
//! Owns the mapping. Always holds: the memory cannot shrink while it is mapped (its descriptor is
//! sealed), and nothing outside of it is ever touched. What lies in it is the node's to change: bytes
//! mean something only if the lease of their block still held after they were read, which callers see
//! to.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use bytes::{BufMut, BytesMut};
use millrace_proto::checksum;
use millrace_proto::message::Extent;
use rustix::fs::SealFlags;
use rustix::mm::{MapFlags, ProtFlags};

mod slices;

/// See the module.
#[derive(Debug)]
pub(crate) struct NodeMemory {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is read-only, belongs to no thread, and its address never changes.
#[expect(unsafe_code, reason = "the mapping is read by any thread")]
unsafe impl Send for NodeMemory {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "the mapping is read by any thread")]
unsafe impl Sync for NodeMemory {}

impl NodeMemory {
    /// Maps the memory behind a descriptor that a node has sent.
    ///
    /// # Errors If it is shorter than the node said, might shrink (reading past its end would kill this
    /// process), or cannot be mapped.
    pub(crate) fn map(memfd: &OwnedFd, length: u64) -> io::Result<NodeMemory> {
        let seals = rustix::fs::fcntl_get_seals(memfd)?;
        let size = rustix::fs::fstat(memfd)?.st_size;
        if !seals.contains(SealFlags::SHRINK) || u64::try_from(size) != Ok(length) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the node's memory is not sealed, or has another length than it told",
            ));
        }
        let length = usize::try_from(length).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address the kernel chooses aliases nothing.
        #[expect(unsafe_code, reason = "mapping memory")]
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::NORESERVE,
                memfd,
                0,
            )
        }?;
        let base =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(NodeMemory { base, length })
    }

    /// True if an extent lies in the memory.
    pub(crate) fn contains(&self, extent: &Extent) -> bool {
        let end = extent.offset.checked_add(u64::from(extent.length));
        end.is_some_and(|end| end <= self.length as u64)
    }

    /// Returns where an extent begins.
    ///
    /// # Panics
    /// If it is not in the memory.
    fn start(&self, extent: &Extent) -> *const u8 {
        assert!(self.contains(extent), "extents are judged when they come in");
        // SAFETY: the offset lies in the mapping, by the line above.
        #[expect(unsafe_code, reason = "address arithmetic inside the mapping")]
        unsafe { self.base.add(extent.offset as usize) }.as_ptr()
    }

    /// Copies an extent into `target`, which has its length. The node may be changing the bytes: the
    /// copy is to be thrown away unless the lease still holds.
    pub(crate) fn copy(&self, extent: &Extent, target: &mut [u8]) {
        assert_eq!(target.len(), extent.length as usize);
        // SAFETY: the extent lies in the mapping, the target is ours and no mapping of the node's.
        // Should another process write meanwhile, the copy holds some mixture of initialised bytes,
        // which is thrown away.
        #[expect(unsafe_code, reason = "copying out of shared memory")]
        unsafe {
            std::ptr::copy_nonoverlapping(self.start(extent), target.as_mut_ptr(), target.len());
        }
    }

    /// As [`NodeMemory::copy`], to the end of a buffer, which grows if it has to.
    pub(crate) fn append(&self, extent: &Extent, target: &mut BytesMut) {
        let length = extent.length as usize;
        target.reserve(length);
        let room = target.chunk_mut();
        assert!(room.len() >= length);
        // SAFETY: as in `copy`; the room is at least as long.
        #[expect(unsafe_code, reason = "copying out of shared memory")]
        unsafe {
            std::ptr::copy_nonoverlapping(self.start(extent), room.as_mut_ptr(), length);
        }
        // SAFETY: `length` bytes were just written.
        #[expect(unsafe_code, reason = "the bytes were written above")]
        unsafe {
            target.advance_mut(length);
        }
    }

    /// Returns the CRC-32 of a block that lies in these extents.
    pub(crate) fn sum(&self, extents: &[Extent]) -> u32 {
        if let [extent] = extents {
            // SAFETY: the caller holds a lease, so the node does not change the bytes. If it runs out
            // meanwhile the sum is of some mixture of bytes, and is thrown away.
            #[expect(unsafe_code, reason = "a readable view of shared memory")]
            return checksum::of(unsafe { self.bytes(extent) });
        }
        // Scattered blocks are rare: free memory of the node was short.
        let mut whole = BytesMut::new();
        for extent in extents {
            self.append(extent, &mut whole);
        }
        checksum::of(&whole)
    }

    /// Returns the bytes of an extent, where they are.
    ///
    /// # Safety
    /// While the slice is used the node may begin to change the bytes, once the lease has ended: the
    /// caller treats them as bytes that may be anything, uses no result of theirs unless the lease held
    /// afterwards, and lets no safe code rely on their staying the same.
    #[expect(unsafe_code, reason = "the caller promises what a lease cannot enforce")]
    pub(crate) unsafe fn bytes(&self, extent: &Extent) -> &[u8] {
        // SAFETY: the extent lies in the mapping, which is initialised (fresh shmem reads as zero) and
        // stays mapped as long as `self`; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start(extent), extent.length as usize) }
    }
}

impl Drop for NodeMemory {
    fn drop(&mut self) {
        // SAFETY: no reference into the mapping is left, because all of them borrow from `self`.
        #[expect(unsafe_code, reason = "unmapping our own mapping")]
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}
