//! The memory arena: one shmem memfd, mapped once, fixed in size at start, cut into pages of 4 KiB.
//!
//! ```text
//!  memfd   ┌──────── shard 0 ────────┬──────── shard 1 ────────┬ ...
//!  pages   │ 0 1 2 3 │ 4 5 … │ free  │                         │
//!          └─ Block ─┴─ Blank ───────┴─────────────────────────┘
//! ```
//!
//! Owns the mapping, and the owner of each page. Always holds: a page is free, or in exactly one
//! [`Blank`] (being filled, writable by its holder alone), or in exactly one [`Block`] (filled, never
//! written again). Blanks and blocks are values that cannot be cloned, made only from pages that the
//! shard's allocator handed out, so the borrow checker keeps writer and readers apart. Leaves to
//! [`crate::cache`] when a block may be given back: not while the kernel still sends from it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use millrace_proto::checksum::{CHUNK_SIZE, PAGE_SIZE};
use millrace_proto::proof::{BlockMac, Mac};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use smallvec::SmallVec;

mod buddy;
mod disk;
mod parts;
mod sums;
use buddy::Buddy;
pub(crate) use buddy::PAGE_COST;
pub(crate) use sums::{Sums, of_chunks};

/// Size of a page in bytes as `usize`.
const PAGE: usize = PAGE_SIZE as usize;
/// In place of the first page of an extent: these pages of the block are not here.
const HOLE: u32 = u32::MAX;
/// Pages in a checksum chunk.
pub(crate) const PAGES_PER_CHUNK: u32 = CHUNK_SIZE / PAGE_SIZE;

/// The mapping. Lives until the last shard, blank and in-flight send is gone.
pub(crate) struct Arena {
    base: NonNull<u8>,
    page_count: u32,
    /// What clients on this machine map for reading.
    memfd: OwnedFd,
}

// SAFETY: the arena itself only hands out addresses; the ownership of `Blank` and `Block` decides which
// thread may touch which page, both of which may be sent between threads.
#[expect(unsafe_code, reason = "the mapping is shared by every shard's thread")]
unsafe impl Send for Arena {}
// SAFETY: as above: a shared reference to the arena allows no access to its bytes.
#[expect(unsafe_code, reason = "the mapping is shared by every shard's thread")]
unsafe impl Sync for Arena {}

fn create(flags: MemfdFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::memfd_create("millrace-arena", flags)
}

impl Arena {
    /// Maps `page_count` pages of 4 KiB. Memory is taken from the system page by page on first use, or by
    /// [`ShardMemory::populate`].
    ///
    /// # Errors
    /// As `memfd_create`, `ftruncate`, `mmap` and `F_ADD_SEALS`: too little memory or address space.
    pub(crate) fn new(page_count: u32) -> io::Result<Arc<Arena>> {
        let length = page_count as usize * PAGE;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Nothing there is to be executed; Linux before 6.3 has no flag for that.
        let memfd = match create(flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => create(flags)?,
            created => created?,
        };
        rustix::fs::ftruncate(&memfd, length as u64)?;
        // SAFETY: a new mapping at an address the kernel chooses aliases nothing.
        #[expect(unsafe_code, reason = "mapping memory")]
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &memfd,
                0,
            )
        }?;
        // From here on no process can write but through the mapping above, or change the length: the
        // descriptor may be given away (fcntl(2), F_SEAL_FUTURE_WRITE since Linux 5.1).
        let seals = SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&memfd, seals)?;
        // SAFETY: the range is the mapping just made; huge pages change nothing but speed.
        #[expect(unsafe_code, reason = "advising on our own mapping")]
        let advised = unsafe { rustix::mm::madvise(base, length, Advice::LinuxHugepage) };
        // Kernels without huge pages for shmem refuse; small pages then do the same job more slowly.
        let _ = advised;
        let base =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Arc::new(Arena { base, page_count, memfd }))
    }

    /// Cuts the arena into one [`ShardMemory`] for each shard, of equal size.
    ///
    /// Takes the arena's only handle, so that no page is ever handed to two allocators.
    ///
    /// # Panics
    /// If the arena was cut before.
    pub(crate) fn cut(self: Arc<Arena>, shard_count: u32) -> Vec<ShardMemory> {
        assert_eq!(
            Arc::strong_count(&self),
            1,
            "an arena is cut once, before anything else holds it"
        );
        let each = self.page_count / shard_count;
        (0..shard_count)
            .map(|shard| ShardMemory {
                arena: Arc::clone(&self),
                first_page: shard * each,
                buddy: Buddy::new(each),
            })
            .collect()
    }

    /// Returns the address of byte `offset` of the arena's page `page`.
    fn address(&self, page: u32, offset: usize) -> NonNull<u8> {
        let position = page as usize * PAGE + offset;
        assert!(position <= self.page_count as usize * PAGE);
        // SAFETY: the position lies in the mapping or one past its end, by the line above.
        #[expect(unsafe_code, reason = "address arithmetic inside the mapping")]
        unsafe {
            self.base.add(position)
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let length = self.page_count as usize * PAGE;
        // SAFETY: the last handle is gone, and with it every blank and block that points inside.
        #[expect(unsafe_code, reason = "unmapping our own mapping")]
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), length) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A run of adjacent pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    /// First page, counted in the arena, or [`HOLE`].
    page: u32,
    /// Pages, at least 1.
    page_count: u32,
}

/// Runs that together hold a block, in order. One, unless free memory was scattered.
type Extents = SmallVec<[Extent; 2]>;

/// A piece of a block as the kernel needs it: address and length of bytes that lie together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// Address of the first byte in this process.
    pub address: usize,
    /// Length in bytes.
    pub length: usize,
}

/// One shard's part of the arena, and the allocator of its pages.
pub(crate) struct ShardMemory {
    arena: Arc<Arena>,
    first_page: u32,
    buddy: Buddy,
}

impl ShardMemory {
    /// Returns the pages of this shard, free or not.
    pub(crate) fn page_count(&self) -> u32 {
        self.buddy.page_count()
    }

    /// Returns the memory of all shards, which a client that gets the descriptor can map for reading.
    pub(crate) fn memfd(&self) -> BorrowedFd<'_> {
        self.arena.memfd.as_fd()
    }

    /// Returns the length of that memory in bytes.
    pub(crate) fn memory_length(&self) -> u64 {
        u64::from(self.arena.page_count) * u64::from(PAGE_SIZE)
    }

    /// Returns where a segment begins in that memory, in bytes.
    pub(crate) fn offset_of(&self, segment: Segment) -> u64 {
        (segment.address - self.arena.base.as_ptr().addr()) as u64
    }

    /// Takes this shard's pages from the system now, and not when each is first used.
    ///
    /// # Errors
    /// As `MADV_POPULATE_WRITE` of madvise(2), which is there since Linux 5.14.
    pub(crate) fn populate(&self) -> io::Result<()> {
        let base = self.arena.address(self.first_page, 0);
        let length = self.page_count() as usize * PAGE;
        loop {
            // SAFETY: the pages are this shard's, none has been given to a blank or a block that another
            // thread writes, and populating changes no byte of a page.
            #[expect(unsafe_code, reason = "advising on our own mapping")]
            let populated = unsafe {
                rustix::mm::madvise(base.as_ptr().cast(), length, Advice::LinuxPopulateWrite)
            };
            match populated {
                Err(rustix::io::Errno::INTR) => {}
                populated => return Ok(populated?),
            }
        }
    }

    /// Returns the pages that are free now.
    pub(crate) fn free_page_count(&self) -> u32 {
        self.buddy.free_count()
    }

    /// Returns the pages that hold `length` bytes.
    pub(crate) fn pages_for(length: u32) -> u32 {
        length.div_ceil(PAGE_SIZE)
    }

    /// Takes pages for `length` bytes, in one run if there is one. `None` when too few are free.
    pub(crate) fn allocate(&mut self, length: u32) -> Option<Blank> {
        let wanted = Self::pages_for(length);
        if length == 0 || wanted > self.buddy.free_count() {
            return None;
        }
        let mut extents = Extents::new();
        let mut missing = wanted;
        while missing > 0 {
            let (page, page_count) =
                self.buddy.allocate_up_to(missing).expect("enough pages are free");
            missing -= page_count;
            let page = page + self.first_page;
            match extents.last_mut() {
                Some(last) if last.page + last.page_count == page => last.page_count += page_count,
                _ => extents.push(Extent { page, page_count }),
            }
        }
        Some(Blank {
            pages: OwnedPages { arena: Arc::clone(&self.arena), extents, length },
            written: 0,
            page_sums: Vec::with_capacity(wanted as usize),
            signed: None,
        })
    }

    /// Takes the pages of a block back.
    pub(crate) fn release(&mut self, block: Block) {
        self.release_pages(block.pages);
    }

    /// Takes the pages of a blank back, filled or not.
    pub(crate) fn release_blank(&mut self, blank: Blank) {
        self.release_pages(blank.pages);
    }

    fn release_pages(&mut self, pages: OwnedPages) {
        for extent in pages.extents.iter().filter(|extent| extent.page != HOLE) {
            self.buddy.free(extent.page - self.first_page, extent.page_count);
        }
    }

    /// Returns the page of this shard, counted from its own first, that holds page `index` of the block.
    pub(crate) fn shard_page(&self, block: &Block, index: u32) -> u32 {
        let mut skip = index;
        for extent in &block.pages.extents {
            if skip < extent.page_count {
                assert_ne!(extent.page, HOLE, "page {index} of the block is not here");
                return extent.page + skip - self.first_page;
            }
            skip -= extent.page_count;
        }
        panic!("page {index} is past the end of the block");
    }
}

/// Pages with an owner. Never cloned.
#[derive(Debug)]
struct OwnedPages {
    arena: Arc<Arena>,
    extents: Extents,
    length: u32,
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Arena({} pages)", self.page_count)
    }
}

impl OwnedPages {
    /// Calls `visit` with each piece of `offset..offset + length` that lies together.
    fn segments(&self, offset: u32, length: u32, mut visit: impl FnMut(NonNull<u8>, usize)) {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.length));
        let mut skip = offset as usize;
        let mut missing = length as usize;
        for extent in &self.extents {
            let size = extent.page_count as usize * PAGE;
            if missing == 0 {
                break;
            }
            if skip >= size {
                skip -= size;
                continue;
            }
            let take = missing.min(size - skip);
            visit(self.arena.address(extent.page, skip), take);
            missing -= take;
            skip = 0;
        }
        assert_eq!(missing, 0, "the extents hold the whole length");
    }
}

/// Pages that are being filled: written by their holder alone, from the front to the end, each page
/// summed while it is still in the processor's cache.
#[derive(Debug)]
pub struct Blank {
    pages: OwnedPages,
    written: u32,
    page_sums: Vec<u32>,
    /// The code of the block before any byte, and as far as its pages are summed.
    signed: Option<Box<[BlockMac; 2]>>,
}

impl Blank {
    /// Returns its length in bytes when it is full.
    pub fn length(&self) -> u32 {
        self.pages.length
    }

    /// Returns the bytes of memory that it holds, whole pages.
    pub(crate) fn held_bytes(&self) -> u64 {
        u64::from(ShardMemory::pages_for(self.pages.length)) * u64::from(PAGE_SIZE)
    }

    /// Fills the rest by calling `read(offset, target)`, which writes the front of `target` and
    /// returns how many bytes; 0 means that the source ended early. Pieces are at most 64 KiB and,
    /// while the source fills them whole, begin on a page.
    ///
    /// # Errors
    /// The error of `read`; `UnexpectedEof` if it returned 0.
    pub(crate) fn fill_with(
        &mut self,
        mut read: impl FnMut(u32, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        while self.written < self.pages.length {
            let start = self.written;
            let until_chunk_end = CHUNK_SIZE - start % CHUNK_SIZE;
            let target = self.front(until_chunk_end.min(self.pages.length - start));
            let size = target.len();
            let count = read(start, target)?.min(size);
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.written += count as u32;
            self.sum_written_pages();
        }
        Ok(())
    }

    /// Writes the next bytes. Returns those that it has no room for.
    pub fn write<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        while self.written < self.pages.length && !bytes.is_empty() {
            let start = self.written;
            let until_chunk_end = CHUNK_SIZE - start % CHUNK_SIZE;
            let target = self.front(until_chunk_end.min(self.pages.length - start));
            let count = target.len().min(bytes.len());
            let (now, later) = bytes.split_at(count);
            target[..count].copy_from_slice(now);
            self.written += count as u32;
            self.sum_written_pages();
            bytes = later;
        }
        bytes
    }

    /// True if every byte was written.
    pub fn is_full(&self) -> bool {
        self.written == self.pages.length
    }

    /// Returns the next bytes to write: at most `length`, and what lies together.
    fn front(&mut self, length: u32) -> &mut [u8] {
        let mut first = None;
        self.pages.segments(self.written, length, |address, size| {
            first.get_or_insert((address, size));
        });
        let (address, size) = first.expect("the length is at least 1");
        // SAFETY: the pages belong to this blank alone and stay mapped while it holds the arena; the
        // slice borrows the blank mutably. Fresh shmem reads as zero, so every byte is initialised.
        #[expect(unsafe_code, reason = "the only writable view of arena pages")]
        unsafe {
            std::slice::from_raw_parts_mut(address.as_ptr(), size)
        }
    }

    /// Sums the pages that are complete and were not summed yet.
    fn sum_written_pages(&mut self) {
        loop {
            let start = self.page_sums.len() as u32 * PAGE_SIZE;
            let end = self.pages.length.min(start.saturating_add(PAGE_SIZE));
            if start >= end || end > self.written {
                return;
            }
            let sum = sum_of(&self.pages, start, end - start);
            self.page_sums.push(sum);
            if let Some([_, code]) = self.signed.as_deref_mut() {
                // This happens while the page is still in the processor's cache.
                visit(&self.pages, start, end - start, |bytes| code.update(bytes));
            }
        }
    }

    /// Returns the CRC-32 of all bytes, combined from the pages' values; None while bytes are missing.
    pub(crate) fn sum(&self) -> Option<u32> {
        let length = self.pages.length;
        (self.written == length).then(|| Sums::combine(self.page_sums.clone(), length).block)
    }

    /// Empties it, to be filled again from the front.
    pub(crate) fn empty(&mut self) {
        self.written = 0;
        self.page_sums.clear();
        if let Some([first, code]) = self.signed.as_deref_mut() {
            code.clone_from(first);
        }
    }

    /// Has the code of the block made as it is filled, from this one without any byte. Of what was written before
    /// it is made now, in a pass over those bytes.
    pub(crate) fn sign(&mut self, code: BlockMac) {
        let (first, mut code) = (code.clone(), code);
        let summed = self.pages.length.min(self.page_sums.len() as u32 * PAGE_SIZE);
        visit(&self.pages, 0, summed, |bytes| code.update(bytes));
        self.signed = Some(Box::new([first, code]));
    }

    /// Ends the blank after the bytes that were written, which makes it full; returns the pages that are left over,
    /// if there are some, as a blank of their own.
    ///
    /// # Panics
    /// If nothing was written, or the blank is signed for its length before.
    pub(crate) fn cut(&mut self) -> Option<Blank> {
        assert!(self.written > 0, "a blank has at least one byte");
        assert!(self.signed.is_none(), "the length is part of the code");
        let mut missing = ShardMemory::pages_for(self.written);
        let (mut kept, mut rest) = (Extents::new(), Extents::new());
        for Extent { page, page_count } in std::mem::take(&mut self.pages.extents) {
            let first = missing.min(page_count);
            missing -= first;
            let parts = [(&mut kept, page, first), (&mut rest, page + first, page_count - first)];
            for (extents, page, page_count) in parts {
                extents.extend((page_count > 0).then_some(Extent { page, page_count }));
            }
        }
        self.pages.extents = kept;
        self.pages.length = self.written;
        self.sum_written_pages();
        let length = rest.iter().map(|extent| extent.page_count).sum::<u32>() * PAGE_SIZE;
        let pages = OwnedPages { arena: Arc::clone(&self.pages.arena), extents: rest, length };
        let is_some = length > 0;
        is_some.then(|| Blank { pages, written: 0, page_sums: Vec::new(), signed: None })
    }

    /// True if this is the code of the block that was signed and filled.
    pub(crate) fn matches(&self, code: &Mac) -> bool {
        let signed = self.signed.as_deref().filter(|_| self.written == self.pages.length);
        signed.is_some_and(|[_, own]| own.verify(code))
    }

    /// Returns the XXH3-64 of the checksums of its pages: two contents differ in it as they do in those,
    /// without a pass over the bytes. For a blank that is not full it means nothing.
    pub(crate) fn digest(&self) -> u64 {
        let sums: Vec<u8> = self.page_sums.iter().copied().flat_map(u32::to_le_bytes).collect();
        twox_hash::XxHash3_64::oneshot(&sums)
    }

    /// Returns the block, once every byte was written, with its checksums.
    ///
    /// # Panics
    /// If bytes are missing.
    pub(crate) fn freeze(self) -> (Block, Sums) {
        assert_eq!(self.written, self.pages.length, "a block is frozen when it is full");
        let sums = Sums::combine(self.page_sums, self.pages.length);
        let code = self.signed.map(|signed| Box::new(signed[1].finish()));
        (Block { pages: self.pages, missing_pages: 0, code }, sums)
    }
}

/// Returns the CRC-32 of a range of pages that the caller owns.
fn sum_of(pages: &OwnedPages, offset: u32, length: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    visit(pages, offset, length, |bytes| hasher.update(bytes));
    hasher.finalize()
}

/// Calls `see` with the bytes of a range of pages that the caller owns.
fn visit(pages: &OwnedPages, offset: u32, length: u32, mut see: impl FnMut(&[u8])) {
    pages.segments(offset, length, |address, size| {
        // SAFETY: the caller holds the pages' only owner, as a blank it may write or as a block that is
        // not written, so nothing changes these initialised bytes while they are read.
        #[expect(unsafe_code, reason = "a readable view of arena pages")]
        let bytes = unsafe { std::slice::from_raw_parts(address.as_ptr(), size) };
        see(bytes);
    });
}

/// Pages that are full and never written again. A block may lack some of its pages: see [`parts`].
#[derive(Debug)]
pub(crate) struct Block {
    pages: OwnedPages,
    /// Pages that are not here; 0 for a whole block.
    missing_pages: u32,
    /// The code by which others recognise what was read from the source; see section 16 of PROTOCOL.md.
    code: Option<Box<Mac>>,
}

impl Block {
    /// Returns the length in bytes.
    pub(crate) fn length(&self) -> u32 {
        self.pages.length
    }

    /// Returns the code of the block, if it was signed.
    pub(crate) fn code(&self) -> Option<&Mac> {
        self.code.as_deref()
    }

    /// Gives the block the code that it was signed with when it was read from the source.
    pub(crate) fn note_code(&mut self, code: Mac) {
        self.code = Some(Box::new(code));
    }

    /// Calls `visit` with each piece of `offset..offset + length` that lies together. Addresses stay
    /// good until the block is released.
    pub(crate) fn segments(&self, offset: u32, length: u32, mut visit: impl FnMut(Segment)) {
        self.pages.segments(offset, length, |address, length| {
            visit(Segment { address: address.as_ptr().expose_provenance(), length });
        });
    }

    /// Appends a range to `bytes`.
    pub(crate) fn copy(&self, offset: u32, length: u32, bytes: &mut Vec<u8>) {
        self.pages.segments(offset, length, |address, size| {
            // SAFETY: initialised bytes of pages that this block owns and that are not written any more.
            #[expect(unsafe_code, reason = "a readable view of arena pages")]
            let piece = unsafe { std::slice::from_raw_parts(address.as_ptr(), size) };
            bytes.extend_from_slice(piece);
        });
    }

    /// Returns the byte at this offset, or any other if it is not here: only for the processor's cache.
    #[inline]
    pub(crate) fn first_byte(&self, offset: u32) -> u8 {
        let mut byte = 0;
        if !self.is_whole() {
            return byte;
        }
        self.pages.segments(offset.min(self.pages.length - 1), 1, |address, _| {
            // SAFETY: one byte of pages that this block owns and that are not written any more.
            #[expect(unsafe_code, reason = "a readable view of arena pages")]
            unsafe {
                byte = *address.as_ptr();
            }
        });
        byte
    }

    /// Returns the CRC-32 of a range: a pass over its bytes.
    pub(crate) fn sum(&self, offset: u32, length: u32) -> u32 {
        sum_of(&self.pages, offset, length)
    }

    /// Flips one bit, as failing memory would. For tests of what happens then.
    #[cfg(test)]
    pub(crate) fn damage(&mut self, offset: u32) {
        self.pages.segments(offset, 1, |address, _| {
            // SAFETY: `self` is borrowed mutably, so this is the only access to the page.
            #[expect(unsafe_code, reason = "fault injection")]
            unsafe {
                *address.as_ptr() ^= 1;
            }
        });
    }
}

/// Returns the bytes of a segment, copied as the kernel would. The test keeps it pinned.
#[cfg(test)]
pub(crate) fn peek(segment: Segment) -> Vec<u8> {
    let start = std::ptr::with_exposed_provenance::<u8>(segment.address);
    // SAFETY: segments describe pinned pages of a mapped arena, which are not written.
    #[expect(unsafe_code, reason = "tests play the kernel")]
    unsafe { std::slice::from_raw_parts(start, segment.length) }.to_vec()
}

#[cfg(test)]
mod tests;
