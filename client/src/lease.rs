//! Blocks that are read where they lie, in the memory of a node on this machine.
//!
//! ```text
//!  read ──► table: leased, and still held? ──► copy ──► still held? ──► done, without a system call
//!              │ no                                        │ no
//!              └──► worth it? lease it: one message, one pass over the bytes ──► copy
//!                      └── no, or the node has no room: read it over the socket
//! ```
//!
//! Owns the table of leased blocks. Always holds: bytes that were read in place are handed out only if
//! their lease still held afterwards, and if they were verified or need not be. A block was verified
//! [`VERIFIED_FOR`] ago at most, however long its lease is prolonged. The table is bounded by
//! [`ClientConfig::leased_bytes_max`](crate::ClientConfig::leased_bytes_max). A lease is counted from
//! before it was asked for, so it ends here earlier than at the node.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use millrace_proto::checksum::PAGE_SIZE;
use millrace_proto::message::{Extent, Range};
use millrace_proto::placement;
use smallvec::SmallVec;

use crate::connection::Attachment;
use crate::file::{File, FileId};

/// Parts of the table, each with a lock of its own.
const PARTS: usize = 16;
/// A read of less than this share of a block leases it only when the block was read before. Derived:
/// verifying a block costs about what a sixteenth of it costs over a socket.
const WORTHY_SHARE: u32 = 16;
/// Blocks that are remembered as read before.
const SEEN: usize = 4096;
/// How long a block that was verified is read without verifying it again: the memory of a machine may
/// go bad, and a lease may be prolonged for months. One that is prolonged is verified every half of this.
/// Derived: a gibibyte, the most that a client keeps leased by default, takes a tenth of a second of one
/// core, so a third of a percent of it.
const VERIFIED_FOR: Duration = Duration::from_secs(60);
const VERIFIED_FOR_NS: u64 = VERIFIED_FOR.as_nanos() as u64;
/// How long nothing is leased after the node had no room. Guessed.
const REFUSED_PAUSE: Duration = Duration::from_millis(250);
/// Most blocks of one `Lease` request. Guessed: a reply for each.
const BATCH_MAX: usize = 64;

/// Returns the time since the process first asked, in nanoseconds.
fn now_ns() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_nanos() as u64
}

/// A block in a node's memory, and until when it stays there.
#[derive(Debug)]
pub(crate) struct LeasedBlock {
    attachment: Arc<Attachment>,
    key: u64,
    file: FileId,
    version: u64,
    /// Offset in the file in bytes.
    start: u64,
    length: u32,
    /// CRC-32 of its bytes.
    checksum: u32,
    extents: SmallVec<[Extent; 1]>,
    /// Until when it may be read here; 0 once it was revoked.
    ends_at_ns: AtomicU64,
    /// Until when the node has promised it: not before `ends_at_ns`.
    granted_until_ns: AtomicU64,
    /// When it was verified last; 0 if it was not.
    verified_at_ns: AtomicU64,
}

impl LeasedBlock {
    /// True if everything that was read from the block before this call counts.
    fn holds(&self) -> bool {
        // The bytes are read before the clock and the flag.
        fence(Ordering::Acquire);
        now_ns() < self.ends_at_ns.load(Ordering::Relaxed) && self.attachment.stands()
    }

    /// Returns the parts of `offset..offset + length` of the block, each with where it lies.
    fn parts(&self, offset: u32, length: u32) -> impl Iterator<Item = Extent> {
        let (mut skip, mut missing) = (offset, length);
        self.extents.iter().filter_map(move |extent| {
            let ahead = skip.min(extent.length);
            skip -= ahead;
            let length = missing.min(extent.length - ahead);
            missing -= length;
            let offset = extent.offset + u64::from(ahead);
            (length > 0).then_some(Extent { offset, length })
        })
    }

    /// Returns where a read begins in this block, if the read is of this block.
    fn offset_of(&self, file: &File, offset: u64, length: u32) -> Option<u32> {
        let end = offset + u64::from(length);
        let is_inside = (self.file, self.version) == (file.id, file.version)
            && offset >= self.start
            && end <= self.start + u64::from(self.length);
        is_inside.then(|| (offset - self.start) as u32)
    }

    /// Copies bytes out. True if they count.
    fn copy(&self, offset: u32, target: &mut [u8]) -> bool {
        let mut rest = target;
        for part in self.parts(offset, rest.len() as u32) {
            let (front, after) = rest.split_at_mut(part.length as usize);
            self.attachment.memory.copy(&part, front);
            rest = after;
        }
        rest.is_empty() && self.holds()
    }

    /// As [`LeasedBlock::copy`], to the end of a buffer. True if the bytes count; else the buffer is as
    /// it was.
    fn append(&self, offset: u32, length: u32, target: &mut BytesMut) -> bool {
        let before = target.len();
        for part in self.parts(offset, length) {
            self.attachment.memory.append(&part, target);
        }
        let is_good = target.len() - before == length as usize && self.holds();
        if !is_good {
            target.truncate(before);
        }
        is_good
    }

    /// Returns the bytes of memory that the lease holds: whole pages.
    fn cost(&self) -> u64 {
        u64::from(self.length).next_multiple_of(u64::from(PAGE_SIZE))
    }

    /// True if its bytes may be handed out as far as their checksum is concerned.
    fn is_good_for(&self, verify: bool) -> bool {
        !verify || self.verified_at_ns.load(Ordering::Acquire) != 0
    }

    /// Ends the lease on this side for good, before the node may. True if the node still keeps it.
    fn revoke(&self) -> bool {
        self.ends_at_ns.store(0, Ordering::SeqCst);
        now_ns() < self.granted_until_ns.swap(0, Ordering::SeqCst) && self.attachment.stands()
    }

    /// True if the bytes are those that were cached, which is checked once every half of
    /// [`VERIFIED_FOR`]. If not, the block must not be read any more.
    fn verify(&self, now: u64) -> bool {
        let last = self.verified_at_ns.load(Ordering::Acquire);
        if last != 0 && now.saturating_sub(last) < VERIFIED_FOR_NS / 2 {
            return true;
        }
        let is_right = self.attachment.memory.sum(&self.extents) == self.checksum;
        // 0 would mean that it was not verified.
        self.verified_at_ns.store(if is_right { now.max(1) } else { 0 }, Ordering::Release);
        is_right
    }

    /// Prolongs the lease for as long as the node has promised and the last check of its bytes counts.
    /// True if it was not revoked meanwhile.
    fn prolong(&self, granted_until_ns: u64) -> bool {
        let granted = granted_until_ns.max(self.granted_until_ns.load(Ordering::SeqCst));
        let end = match self.verified_at_ns.load(Ordering::Acquire) {
            0 => granted,
            last => granted.min(last.saturating_add(VERIFIED_FOR_NS)),
        };
        let is_held = |before: u64| (before != 0).then_some(end);
        let is_longer = self.ends_at_ns.fetch_update(Ordering::SeqCst, Ordering::SeqCst, is_held);
        if is_longer.is_ok() {
            self.granted_until_ns.fetch_max(granted_until_ns, Ordering::SeqCst);
        }
        is_longer.is_ok()
    }

    fn range(&self) -> Range {
        Range { file: self.file.into(), version: self.version, offset: self.start, length: 1 }
    }
}

/// A block that stays in the memory of a node on this machine for a while, to be read there.
///
/// It ends by itself, a minute after its bytes were verified at the latest, and earlier when the connection
/// to the node ends or when the client leases more than
/// [`ClientConfig::leased_bytes_max`](crate::ClientConfig::leased_bytes_max): then lease it again. Leased
/// again before it ends, it goes on, and its bytes are verified again every half a minute.
#[derive(Clone, Debug)]
pub struct Lease {
    block: Arc<LeasedBlock>,
}

impl Lease {
    /// Returns the offset of the block in its file, in bytes.
    pub fn start(&self) -> u64 {
        self.block.start
    }

    /// Returns the length of the block in bytes.
    pub fn length(&self) -> u32 {
        self.block.length
    }

    /// True if the lease holds now, so what was read before counts.
    pub fn holds(&self) -> bool {
        self.block.holds()
    }

    /// Copies bytes from `offset` of the block into the whole of `target`. True if the lease still held;
    /// else the bytes in `target` mean nothing.
    ///
    /// # Panics
    /// If the block does not have this many bytes.
    #[must_use]
    pub fn copy(&self, offset: u32, target: &mut [u8]) -> bool {
        let end = target.len() as u64 + u64::from(offset);
        assert!(end <= u64::from(self.block.length), "a copy ends within the block");
        self.block.copy(offset, target)
    }

    /// Returns the node's memory and where the block lies in it, in order, for callers that read in
    /// place.
    pub(crate) fn place(&self) -> (&Attachment, &[Extent]) {
        (&self.block.attachment, &self.block.extents)
    }
}

/// Passes a key on, because it is a hash already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64");
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

type LeasedPart = RwLock<HashMap<u64, Arc<LeasedBlock>, BuildHasherDefault<AsItIs>>>;

/// Blocks with their keys, in the order in which they were leased.
#[derive(Debug, Default)]
struct LeasedOrder {
    queue: VecDeque<(u64, Arc<LeasedBlock>)>,
    /// Their cost together.
    bytes: u64,
}

/// The leased blocks of a client.
#[derive(Debug)]
pub(crate) struct Leases {
    parts: Vec<LeasedPart>,
    order: Mutex<LeasedOrder>,
    bytes_max: u64,
    /// Keys that are being leased, and how often. A block that is leased again while it is given back
    /// must not be: the node might see the two the other way round, and end the new lease.
    asked: Mutex<HashMap<u64, u32>>,
    /// Keys of blocks that were read once.
    seen: Vec<AtomicU64>,
    /// Nothing is asked for before this moment.
    refused_until_ns: AtomicU64,
}

impl Leases {
    pub(crate) fn new(bytes_max: u64) -> Leases {
        let seen = if bytes_max == 0 { 0 } else { SEEN };
        Leases {
            parts: (0..PARTS).map(|_| RwLock::default()).collect(),
            order: Mutex::default(),
            bytes_max,
            asked: Mutex::default(),
            seen: (0..seen).map(|_| AtomicU64::new(0)).collect(),
            refused_until_ns: AtomicU64::new(0),
        }
    }

    /// True if a block of this length may be leased at all now.
    fn may_lease(&self, length: u32) -> bool {
        u64::from(length) <= self.bytes_max
            && now_ns() >= self.refused_until_ns.load(Ordering::Relaxed)
    }

    /// True if a read is worth the lease of its block. The block is remembered for the next read.
    fn is_worthy(&self, key: u64, length: u32, block_length: u32) -> bool {
        let place = &self.seen[key as usize % SEEN];
        place.swap(key, Ordering::Relaxed) == key || length >= block_length / WORTHY_SHARE
    }

    /// Notes that these keys are being leased, until the guard is dropped.
    fn asking(&self, keys: Vec<u64>) -> Asking<'_> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &keys {
            *asked.entry(*key).or_default() += 1;
        }
        Asking { leases: self, keys }
    }

    /// Gives back the leases that are not, and are not being, leased again; `send` sends it before
    /// anything else can be asked.
    fn give_back(&self, gone: &[Arc<LeasedBlock>], send: impl FnOnce(Vec<&LeasedBlock>)) {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_free = |block: &&LeasedBlock| {
            !asked.contains_key(&block.key) && self.find(block.key).is_none()
        };
        send(gone.iter().map(Arc::as_ref).filter(is_free).collect());
    }

    fn find(&self, key: u64) -> Option<Arc<LeasedBlock>> {
        let part = self.parts[key as usize % PARTS].read();
        part.unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    /// Calls `read` with the block of a read and the offset in it, if it is leased. The block is
    /// borrowed, because counting references from many threads is slower than the copy of a page.
    fn with<R>(
        &self,
        file: &File,
        (offset, length, block_size): (u64, u32, u32),
        read: impl FnOnce(&LeasedBlock, u32) -> Option<R>,
    ) -> Option<R> {
        let key = key_of(file, offset / u64::from(block_size));
        let part = self.parts[key as usize % PARTS].read();
        let part = part.unwrap_or_else(PoisonError::into_inner);
        let block = part.get(&key)?;
        read(block, block.offset_of(file, offset, length)?)
    }

    /// Adds a block; returns those that have to leave for it.
    fn insert(&self, key: u64, block: Arc<LeasedBlock>) -> Vec<Arc<LeasedBlock>> {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let LeasedOrder { queue, bytes } = &mut *order;
        *bytes += block.cost();
        queue.push_back((key, block.clone()));
        let part = |key: u64| {
            let part = self.parts[key as usize % PARTS].write();
            part.unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(replaced) = part(key).insert(key, block) {
            // For the node it is the same lease, so it is not given back.
            replaced.revoke();
        }
        let mut gone = Vec::new();
        // Blocks of a connection that has ended leave as well, and with them the memory of a dead node.
        while let Some((key, oldest)) =
            queue.pop_front_if(|(_, oldest)| *bytes > self.bytes_max || !oldest.attachment.stands())
        {
            *bytes -= oldest.cost();
            let mut part = part(key);
            // A newer lease of the same block has taken its place, or it goes.
            if part.get(&key).is_some_and(|block| Arc::ptr_eq(block, &oldest)) {
                part.remove(&key);
                if oldest.revoke() {
                    gone.push(oldest);
                }
            }
        }
        gone
    }
}

/// Keys that are being leased.
struct Asking<'a> {
    leases: &'a Leases,
    keys: Vec<u64>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut asked = self.leases.asked.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &self.keys {
            if let Some(count) = asked.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    asked.remove(key);
                }
            }
        }
    }
}

fn key_of(file: &File, block: u64) -> u64 {
    placement::block_hash(file.id.into(), block) ^ file.version.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

mod reads;

#[cfg(test)]
mod tests;
