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
//! their lease still held afterwards; a block was verified when its lease began; the table is bounded
//! by [`ClientConfig::leased_bytes_max`](crate::ClientConfig::leased_bytes_max). A lease is counted
//! from before it was asked for, so it ends here earlier than at the node.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use millrace_proto::checksum::PAGE_SIZE;
use millrace_proto::message::{ArchivedLeaseReply, Extent, Range, ReadManyRequest};
use millrace_proto::{FileId, Op, Status, frame, placement};
use smallvec::SmallVec;

use crate::client::Client;
use crate::connection::{Answer, Attachment, Body, Landed, Landing};
use crate::error::Error;
use crate::file::File;
use crate::read::{Piece, Terms};
use crate::reply;
use crate::topology::{Place, Topology};

/// Parts of the table, each with a lock of its own.
const PARTS: usize = 16;
/// A read of less than this share of a block leases it only when the block was read before. Derived:
/// verifying a block costs about what a sixteenth of it costs over a socket.
const WORTHY_SHARE: u32 = 16;
/// Blocks that are remembered as read before.
const SEEN: usize = 4096;
/// How long nothing is leased after the node had no room. Guessed.
const REFUSED_PAUSE: Duration = Duration::from_millis(250);
/// Most blocks of one `Lease` request. Guessed: a reply for each.
const BATCH_MAX: usize = 64;

/// Time since the process first asked, in nanoseconds.
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
    checksum: u32,
    extents: SmallVec<[Extent; 1]>,
    ends_at_ns: AtomicU64,
    is_verified: AtomicBool,
}

impl LeasedBlock {
    /// Whether everything that was read from the block before this call counts.
    fn holds(&self) -> bool {
        // What was read is read before the clock and the flag are.
        fence(Ordering::Acquire);
        now_ns() < self.ends_at_ns.load(Ordering::Relaxed) && self.attachment.stands()
    }

    /// The parts of `offset..offset + length` of the block, each with where it lies.
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

    /// Whether this is the block of a read, and where in it the read begins.
    fn offset_of(&self, file: &File, offset: u64, length: u32) -> Option<u32> {
        let end = offset + u64::from(length);
        let is_inside = (self.file, self.version) == (file.id, file.version)
            && offset >= self.start
            && end <= self.start + u64::from(self.length);
        is_inside.then(|| (offset - self.start) as u32)
    }

    /// Copies bytes out; false if they do not count.
    fn copy(&self, offset: u32, target: &mut [u8]) -> bool {
        let mut rest = target;
        for part in self.parts(offset, rest.len() as u32) {
            let (front, after) = rest.split_at_mut(part.length as usize);
            self.attachment.memory.copy(&part, front);
            rest = after;
        }
        rest.is_empty() && self.holds()
    }

    /// As [`LeasedBlock::copy`], to the end of a buffer, which is as it was if they do not count.
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

    /// Bytes of memory that the lease holds: whole pages.
    fn cost(&self) -> u64 {
        u64::from(self.length).next_multiple_of(u64::from(PAGE_SIZE))
    }

    /// Ends the lease on this side for good, before the node may; says whether it still held.
    fn revoke(&self) -> bool {
        let held = self.holds();
        self.ends_at_ns.store(0, Ordering::SeqCst);
        held
    }

    /// Prolongs the lease, unless it was revoked meanwhile.
    fn prolong(&self, ends_at_ns: u64) -> bool {
        let longer = |end: u64| (end != 0).then(|| end.max(ends_at_ns));
        self.ends_at_ns.fetch_update(Ordering::SeqCst, Ordering::SeqCst, longer).is_ok()
    }

    fn range(&self) -> Range {
        Range { file: self.file, version: self.version, offset: self.start, length: 1 }
    }
}

/// A block that stays in the memory of a node on this machine for a while, to be read there.
///
/// It ends by itself, and earlier when the connection to the node ends or when the client leases more
/// than [`ClientConfig::leased_bytes_max`](crate::ClientConfig::leased_bytes_max): then lease it again.
#[derive(Clone, Debug)]
pub struct Lease {
    block: Arc<LeasedBlock>,
}

impl Lease {
    /// Offset of the block in its file, in bytes.
    pub fn start(&self) -> u64 {
        self.block.start
    }

    /// Length of the block in bytes.
    pub fn length(&self) -> u32 {
        self.block.length
    }

    /// Whether the lease holds now: what was read before counts.
    pub fn holds(&self) -> bool {
        self.block.holds()
    }

    /// Copies bytes from `offset` of the block into the whole of `target`. False if the lease has
    /// ended: then what is in `target` means nothing.
    ///
    /// # Panics
    /// If the block does not have so many bytes.
    #[must_use]
    pub fn copy(&self, offset: u32, target: &mut [u8]) -> bool {
        let end = target.len() as u64 + u64::from(offset);
        assert!(end <= u64::from(self.block.length), "a copy ends within the block");
        self.block.copy(offset, target)
    }

    /// The node's memory and where the block lies in it, in order: for those who read in place.
    pub(crate) fn place(&self) -> (&Attachment, &[Extent]) {
        (&self.block.attachment, &self.block.extents)
    }
}

/// The key is a hash already.
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

type Part = RwLock<HashMap<u64, Arc<LeasedBlock>, BuildHasherDefault<AsItIs>>>;

/// Blocks with their keys, in the order in which they were leased.
#[derive(Debug, Default)]
struct Order {
    queue: VecDeque<(u64, Arc<LeasedBlock>)>,
    /// What they cost together.
    bytes: u64,
}

/// The leased blocks of a client.
#[derive(Debug)]
pub(crate) struct Leases {
    parts: Vec<Part>,
    order: Mutex<Order>,
    bytes_max: u64,
    /// Keys that are being leased, and how often. A block that is leased again while it is given back
    /// must not be: the node might see the two the other way round, and end the new lease.
    asked: Mutex<HashMap<u64, u32>>,
    /// Keys of blocks that were read once.
    seen: Vec<AtomicU64>,
    /// Nothing is asked for before.
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

    /// Whether a block of this length may be leased at all now.
    fn may_lease(&self, length: u32) -> bool {
        u64::from(length) <= self.bytes_max
            && now_ns() >= self.refused_until_ns.load(Ordering::Relaxed)
    }

    /// Whether a read is worth the lease of its block; it is remembered for the next one.
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

    /// Gives back what is not leased again, or being leased again; `send` sends it before anything else
    /// can be asked.
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
    /// borrowed, since counting references from many threads is slower than the copy of a page.
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

    /// Adds a block; returns those that have to go for it.
    fn insert(&self, key: u64, block: Arc<LeasedBlock>) -> Vec<Arc<LeasedBlock>> {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let Order { queue, bytes } = &mut *order;
        *bytes += block.cost();
        queue.push_back((key, block.clone()));
        let part = |key: u64| {
            let part = self.parts[key as usize % PARTS].write();
            part.unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(replaced) = part(key).insert(key, block) {
            // It is the same lease for the node, and so is not given back.
            replaced.revoke();
        }
        let mut gone = Vec::new();
        // Those of a connection that has ended go as well, and with them the memory of a dead node.
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
    placement::block_hash(file.id, block) ^ file.version.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl Client {
    /// Reads bytes from `offset` into the whole of `target` from the memory of a node on this machine,
    /// without asking the node. False if that cannot be, since not all blocks of the range are leased
    /// or the file ends before: then what is in `target` means nothing, and [`Client::read`] reads it and
    /// leases what is read more than once.
    pub fn read_leased(&self, file: &File, offset: u64, target: &mut [u8]) -> bool {
        let block_size = file.block_size;
        let mut position = offset;
        let mut rest = target;
        while !rest.is_empty() {
            let left = u64::from(block_size) - position % u64::from(block_size);
            let length = rest.len().min(left as usize);
            let (front, after) = rest.split_at_mut(length);
            let found =
                self.leases().with(file, (position, length as u32, block_size), |block, offset| {
                    block.copy(offset, front).then_some(())
                });
            if found.is_none() {
                return false;
            }
            position += length as u64;
            rest = after;
        }
        true
    }

    /// Leases the blocks of a range, to be read in place; there is one result for each block, in
    /// order, none where the node is not on this machine or has no room. Blocks that are not cached
    /// are brought in first.
    ///
    /// # Errors
    /// As [`Client::read`], for the range itself.
    pub async fn lease(
        &self,
        file: &File,
        offset: u64,
        length: u64,
    ) -> Result<Vec<Option<Lease>>, Error> {
        let terms = self.terms(crate::ReadOptions::default());
        let pieces = self.cut(file, offset, length)?;
        let topology = self.topology();
        let mut leases = vec![None; pieces.len()];
        // By shard, since each leases its own.
        let mut batches: HashMap<Place, Vec<(usize, Piece)>> = HashMap::new();
        for (index, piece) in pieces.into_iter().enumerate() {
            let place = topology.place(file.id, piece.block(), &file.path);
            batches.entry(place).or_default().push((index, piece));
        }
        for (place, batch) in batches {
            if self.config().local && topology.leasing_lane(place).is_none() {
                self.reach(&topology, place, terms.deadline).await?;
            }
            for batch in batch.chunks(BATCH_MAX) {
                let pieces = batch.iter().map(|(_, piece)| *piece).collect();
                let found = self.lease_pieces(file, pieces, (&topology, place), terms).await;
                for ((index, _), block) in batch.iter().zip(found) {
                    leases[*index] = block.map(|block| Lease { block });
                }
            }
        }
        Ok(leases)
    }

    /// Has the lane of a place connect, which it does with its first request.
    ///
    /// # Errors
    /// Those of a node that is alone; a member of a cluster that is not reached leases nothing.
    async fn reach(
        &self,
        topology: &Topology,
        place: Place,
        deadline: tokio::time::Instant,
    ) -> Result<(), Error> {
        let member = topology.member(place.member);
        let lane = member.first_lane(place.shard);
        if topology.main.is_some() {
            lane.exchange(Body::Ping, Landing::Any, deadline).await?;
        } else if member.is_near {
            let end = tokio::time::Instant::now() + self.config().attempt_timeout;
            // Without an answer there is no memory to lease, which is looked at next.
            let _ = lane.ask_until(Body::Ping, end.min(deadline)).await;
        }
        Ok(())
    }

    /// Reads a piece in place, if its block is leased.
    pub(crate) fn read_in_place(
        &self,
        file: &File,
        piece: Piece,
        landing: &mut Landing,
        verify: bool,
    ) -> Option<Landed> {
        let place = (piece.offset, piece.length, piece.block_size);
        self.leases().with(file, place, |block, offset| {
            let is_good = block.is_verified.load(Ordering::Relaxed) || !verify;
            is_good.then(|| append(block, offset, piece.length, landing)).flatten()
        })
    }

    /// Leases the block of a piece, if that is possible and worth it, and reads the piece in place.
    pub(crate) async fn read_by_lease(
        &self,
        file: &File,
        piece: Piece,
        landing: &mut Landing,
        (topology, place): (&Topology, Place),
        terms: Terms,
    ) -> Option<Landed> {
        let block_length = block_length(file, piece);
        if !self.leases().may_lease(block_length) {
            return None;
        }
        topology.leasing_lane(place)?;
        if !self.leases().is_worthy(key_of(file, piece.block()), piece.length, block_length) {
            return None;
        }
        let found = self.lease_pieces(file, vec![piece], (topology, place), terms).await;
        let block = found.into_iter().next()??;
        let offset = block.offset_of(file, piece.offset, piece.length)?;
        append(&block, offset, piece.length, landing)
    }

    /// Leases the blocks of pieces that belong to one shard; none where that did not work.
    async fn lease_pieces(
        &self,
        file: &File,
        pieces: Vec<Piece>,
        (topology, place): (&Topology, Place),
        terms: Terms,
    ) -> Vec<Option<Arc<LeasedBlock>>> {
        let Some((lane, attachment)) = topology.leasing_lane(place) else {
            return vec![None; pieces.len()];
        };
        let keys = pieces.iter().map(|piece| key_of(file, piece.block())).collect();
        let asking = self.leases().asking(keys);
        let asked_at_ns = now_ns();
        let ranges: Vec<Range> = pieces.iter().map(|piece| piece.range(file)).collect();
        let landings = pieces.iter().map(|_| Landing::Any).collect();
        // Another member may have the block, if this one keeps silent.
        let silence_max = topology.cluster.as_ref().map(|_| self.config().attempt_timeout);
        let sent_at = tokio::time::Instant::now();
        let answers = lane.exchange_many(Op::Lease, ranges, landings, terms.deadline, silence_max);
        let answers = answers.await;
        let is_lost = silence_max.is_some() && answers.iter().any(Result::is_err);
        if is_lost && !lane.was_heard_since(sent_at) {
            topology.member(place.member).suspect(place.shard, true);
        }
        let mut gone = Vec::new();
        let mut found = Vec::new();
        for (piece, answer) in pieces.iter().zip(answers) {
            let granted = self.granted(file, *piece, answer, &attachment, asked_at_ns);
            let block = granted.and_then(|block| self.keep(file, *piece, block, terms, &mut gone));
            found.push(block);
        }
        drop(asking);
        self.leases().give_back(&gone, |blocks| release(topology, &blocks, terms.deadline));
        found
    }

    /// The block that an answer leases.
    fn granted(
        &self,
        file: &File,
        piece: Piece,
        answer: Result<Answer, Error>,
        attachment: &Arc<Attachment>,
        asked_at_ns: u64,
    ) -> Option<LeasedBlock> {
        let outcome = answer.ok()?.outcome;
        if outcome.as_ref().is_ok_and(|reply| reply.header.status() == Status::Busy) {
            let until = now_ns() + REFUSED_PAUSE.as_nanos() as u64;
            self.leases().refused_until_ns.store(until, Ordering::Relaxed);
        }
        let reply = reply::judge(outcome).ok()?;
        let lease = frame::body::<ArchivedLeaseReply>(&reply.body).ok()?;
        let extents: SmallVec<[Extent; 1]> = lease.extents.iter().map(Extent::from).collect();
        let length = block_length(file, piece);
        let total: u64 = extents.iter().map(|extent| u64::from(extent.length)).sum();
        let is_inside = extents.iter().all(|extent| attachment.memory.contains(extent));
        (is_inside && total == u64::from(length)).then(|| LeasedBlock {
            attachment: attachment.clone(),
            key: key_of(file, piece.block()),
            file: file.id,
            version: file.version,
            start: piece.block() * u64::from(piece.block_size),
            length,
            checksum: lease.checksum.to_native(),
            extents,
            ends_at_ns: AtomicU64::new(
                asked_at_ns + u64::from(lease.lease_ms.to_native()) * 1_000_000,
            ),
            is_verified: AtomicBool::new(false),
        })
    }

    /// Puts a block that was leased into the table, or prolongs the lease that is there. None if its
    /// bytes are not what was cached: then reading it over the socket tells more.
    fn keep(
        &self,
        file: &File,
        piece: Piece,
        block: LeasedBlock,
        terms: Terms,
        gone: &mut Vec<Arc<LeasedBlock>>,
    ) -> Option<Arc<LeasedBlock>> {
        let key = key_of(file, piece.block());
        let held = self.leases().find(key).filter(|held| {
            Arc::ptr_eq(&held.attachment, &block.attachment)
                && (held.file, held.version, held.start) == (block.file, block.version, block.start)
                && held.extents == block.extents
        });
        let is_good = |block: &LeasedBlock| {
            let is_right = block.attachment.memory.sum(&block.extents) == block.checksum;
            block.is_verified.store(is_right, Ordering::Relaxed);
            is_right && block.holds()
        };
        // Held without a gap, it is what was verified when it began.
        if let Some(held) = held
            && held.holds()
            && held.prolong(block.ends_at_ns.load(Ordering::Relaxed))
        {
            let is_verified = held.is_verified.load(Ordering::Relaxed);
            return (is_verified || !terms.verify || is_good(&held)).then_some(held);
        }
        if terms.verify && !is_good(&block) {
            return None;
        }
        let block = Arc::new(block);
        gone.extend(self.leases().insert(key, block.clone()));
        Some(block)
    }
}

/// Gives leases back, each on the connection that it was given on.
fn release(topology: &Topology, blocks: &[&LeasedBlock], deadline: tokio::time::Instant) {
    let mut ranges: HashMap<Place, Vec<Range>> = HashMap::new();
    for block in blocks {
        let number = block.start / u64::from(topology.hello.block_size);
        let hash = placement::block_hash(block.file, number);
        if let Some(place) = topology.place_of(&block.attachment, hash) {
            ranges.entry(place).or_default().push(block.range());
        }
    }
    for (place, ranges) in ranges {
        let Some((lane, _)) = topology.leasing_lane(place) else { continue };
        for ranges in ranges.chunks(BATCH_MAX) {
            let batch = ReadManyRequest { ranges: ranges.to_vec() };
            lane.send(Body::Release(batch), deadline);
        }
    }
}

/// Length of the whole block that a piece lies in.
fn block_length(file: &File, piece: Piece) -> u32 {
    let start = piece.block() * u64::from(piece.block_size);
    file.length.saturating_sub(start).min(u64::from(piece.block_size)) as u32
}

/// Appends bytes of a block to the landing, which is as it was if they do not count.
fn append(block: &LeasedBlock, offset: u32, length: u32, landing: &mut Landing) -> Option<Landed> {
    match std::mem::replace(landing, Landing::Any) {
        Landing::Any => {
            let mut bytes = BytesMut::with_capacity(length as usize);
            block.append(offset, length, &mut bytes).then(|| Landed::Slice(bytes.freeze()))
        }
        Landing::Buffer(mut buffer) => {
            if block.append(offset, length, &mut buffer) {
                return Some(Landed::Buffer(buffer));
            }
            *landing = Landing::Buffer(buffer);
            None
        }
    }
}

#[cfg(test)]
mod tests;
