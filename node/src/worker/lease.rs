//! Leases: blocks that stay where they are for a while, for clients that read them in place.
//!
//! ```text
//!  first ─► lease ─► lease ─► … ─► last      in the order in which they run out
//! ```
//!
//! Owns the table of leases. Each is one pin of a block. Always holds: a lease ends at its time, when
//! its client gives it back, or when its client ends the connection or sends no more; all of them together
//! hold no more than their share of the memory, where a block counts once, however many clients lease it. If
//! this node ends a connection the client may not know it yet, so its leases stay until they run out.

use std::collections::HashMap;
use std::os::fd::AsRawFd;

use millrace_proto::checksum::PAGE_SIZE;
use millrace_proto::frame;
use millrace_proto::message::{ArchivedReadManyRequest, AttachReply, Extent, LeaseReply, Range};
use millrace_proto::{Status, placement};

use super::{Action, Hit, Worker};
use crate::cache::{BlockKey, EntryIndex};
use crate::mailbox::{Requester, reply_header};
use crate::memory::ShardMemory;
use crate::token::Token;

/// Most leases of a shard. Guessed: 64 GiB of blocks of 1 MiB; the tables take some 200 bytes for each.
const LEASES_MAX: usize = 1 << 16;
/// How much longer the node holds a lease than it says, in milliseconds. Derived: twice the time
/// between two looks at the clock.
const MARGIN_MS: u64 = 2 * super::TICK_MS as u64;
/// What a reply counts against the connection's bytes in flight. Derived: a block in 16 runs.
const REPLY_ASKED: u32 = 256;
/// No lease.
const NONE: u32 = u32::MAX;

/// A block that a client reads in place.
struct Lease {
    token: Token,
    key: BlockKey,
    version: u64,
    entry: EntryIndex,
    /// Bytes of its pages.
    bytes: u64,
    ends_at: u64,
    previous: u32,
    next: u32,
}

/// The leases of a shard.
pub(super) struct Leases {
    leases: Vec<Option<Lease>>,
    free: Vec<u32>,
    first: u32,
    last: u32,
    /// How many leases each leased block has.
    held: HashMap<EntryIndex, u32>,
    bytes: u64,
    bytes_max: u64,
}

impl Leases {
    pub(super) fn new(capacity_bytes: u64, percent: u32) -> Leases {
        Leases {
            leases: Vec::new(),
            free: Vec::new(),
            first: NONE,
            last: NONE,
            held: HashMap::new(),
            bytes: 0,
            bytes_max: capacity_bytes * u64::from(percent) / 100,
        }
    }

    /// Returns when the first of them runs out.
    pub(super) fn next_end(&self) -> Option<u64> {
        let first = self.leases.get(self.first as usize)?;
        first.as_ref().map(|lease| lease.ends_at)
    }

    /// Returns the bytes of the pages of leased blocks, once for each block.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True if there is room for a lease of a block of this many bytes.
    fn has_room(&self, entry: EntryIndex, bytes: u64) -> bool {
        let more = if self.held.contains_key(&entry) { 0 } else { bytes };
        self.bytes + more <= self.bytes_max && self.leases.len() - self.free.len() < LEASES_MAX
    }

    fn get(&mut self, index: u32) -> &mut Lease {
        self.leases[index as usize].as_mut().expect("a lease that is linked is there")
    }

    /// Adds a lease, which runs out after all others.
    fn push(&mut self, lease: Lease) -> u32 {
        let held = self.held.entry(lease.entry).or_default();
        *held += 1;
        if *held == 1 {
            self.bytes += lease.bytes;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.leases.push(None);
            self.leases.len() as u32 - 1
        });
        let previous = std::mem::replace(&mut self.last, index);
        match previous {
            NONE => self.first = index,
            _ => self.get(previous).next = index,
        }
        self.leases[index as usize] = Some(Lease { previous, next: NONE, ..lease });
        index
    }

    fn remove(&mut self, index: u32) -> Lease {
        let lease = self.leases[index as usize].take().expect("a lease ends once");
        self.free.push(index);
        let held = self.held.get_mut(&lease.entry).expect("a leased block is counted");
        *held -= 1;
        if *held == 0 {
            self.held.remove(&lease.entry);
            self.bytes -= lease.bytes;
        }
        match lease.previous {
            NONE => self.first = lease.next,
            previous => self.get(previous).next = lease.next,
        }
        match lease.next {
            NONE => self.last = lease.previous,
            next => self.get(next).previous = lease.previous,
        }
        lease
    }

    /// Returns the lease that runs out next, if its time has come.
    fn due(&mut self, now: u64) -> Option<u32> {
        self.next_end().is_some_and(|end| end <= now).then_some(self.first)
    }
}

impl Worker {
    /// Answers a client how to reach the memory; if it can have the memory, that goes with the answer.
    pub(super) fn attach(&mut self, requester: &Requester) {
        let has_leases = self.has_leases();
        let memory = self.cache.memory();
        let (memory_length, descriptor) = (memory.memory_length(), memory.memfd().as_raw_fd());
        let Some(connection) = self.connection(requester.token) else { return };
        // It is passed once for each connection, because what its client does not take counts against
        // all of the node's.
        let is_passed = connection.is_local && has_leases && !connection.is_attached;
        if is_passed {
            connection.is_attached = true;
            connection.building.descriptor = Some(descriptor);
        }
        let reply = AttachReply {
            node: self.shared.node,
            machine: self.shared.machine.clone(),
            shards: self.shared.local_addresses.clone(),
            memory_length: if is_passed { memory_length } else { 0 },
            lease_ms: if is_passed { self.limits.lease_ms } else { 0 },
        };
        let header = reply_header(&requester.header, 0, Status::Ok);
        self.push_head(requester, |head| frame::encode(head, header, &reply));
    }

    /// True if the configuration allows leases.
    fn has_leases(&self) -> bool {
        self.limits.lease_ms > 0 && self.limits.lease_percent > 0
    }

    /// Takes a `Lease`: each block is looked for as if it were read.
    pub(super) fn lease(
        &mut self,
        now: u64,
        mut requester: Requester,
        request: &ArchivedReadManyRequest,
        actions: &mut Vec<Action>,
    ) {
        let is_local = self.connection(requester.token).is_some_and(|it| it.is_local);
        let (count, ranges_max) = (request.ranges.len(), self.ranges_max());
        let refusal = if !is_local || !self.has_leases() {
            Some("there are leases on Unix sockets only, where Attach told so".to_owned())
        } else if count == 0 || count > ranges_max {
            Some(format!("a Lease takes 1 to {ranges_max} ranges, not {count}"))
        } else {
            None
        };
        if let Some(message) = refusal {
            let (token, header) = (requester.token, requester.header);
            self.take_and_fail(token, &header, Status::InvalidArgument, &message, actions);
            return;
        }
        for (part, range) in request.ranges.iter().enumerate() {
            let range = Range::from(range);
            requester.part = part as u16;
            requester.asked = REPLY_ASKED;
            self.take(&requester);
            let hash = self.key_of(&range).hash();
            let is_past_all = range.offset >> self.block_shift > u64::from(u32::MAX);
            if is_past_all
                || placement::shard_of(hash, self.shared.counters.len() as u32) == self.shard
            {
                self.find(now, &requester, &range, actions);
            } else {
                let message = "the block belongs to another shard: lease it there";
                self.fail(&requester, Status::InvalidArgument, message, actions);
            }
        }
    }

    /// Returns the block that a range lies in. A number of a block that no file has does not matter:
    /// `find` refuses it, and nothing is leased under it.
    fn key_of(&self, range: &Range) -> BlockKey {
        BlockKey { file: range.file, block: (range.offset >> self.block_shift) as u32 }
    }

    /// Leases a block that was found, or prolongs its lease.
    pub(super) fn grant(&mut self, requester: &Requester, hit: Hit, actions: &mut Vec<Action>) {
        let (key, version) = self.cache.describe(hit.entry);
        let Some(connection) = self.connection(requester.token) else { return };
        let held = connection.leases.get(&key).copied();
        let bytes = u64::from(ShardMemory::pages_for(hit.block_length)) * u64::from(PAGE_SIZE);
        let mut checksum = 0;
        let (flags, mask) = requester.checksums(self.cache.tag(hit.entry));
        let mut segments = std::mem::take(&mut self.segments);
        segments.clear();
        let pinned = self.cache.pin_range(
            hit.entry,
            0,
            hit.block_length,
            |sum| checksum = sum ^ mask,
            |segment| segments.push(segment),
        );
        let extents = segments.iter().map(|segment| Extent {
            offset: self.cache.memory().offset_of(*segment),
            length: segment.length as u32,
        });
        let lease_ms = self.limits.lease_ms;
        let reply = LeaseReply { lease_ms, checksum, extents: extents.collect() };
        self.segments = segments;
        if pinned.is_err() {
            self.fail_damaged(requester, actions);
            return;
        }
        // The pin that was just taken becomes the lease; that of the one before it is given back. A
        // lease of the block where it lay before (another version, or it was dropped meanwhile) goes
        // on beside this one until it runs out: the client may still be reading there.
        if let Some(index) = held
            && self.leases.get(index).entry == hit.entry
        {
            self.end_lease(index);
        }
        if !self.leases.has_room(hit.entry, bytes) {
            self.cache.unpin(hit.entry);
            let message = "as much memory is leased as may be (lease_percent): read it instead";
            self.fail(requester, Status::Busy, message, actions);
            return;
        }
        let token = requester.token;
        let ends_at = self.now + u64::from(lease_ms) + MARGIN_MS;
        let entry = hit.entry;
        let lease =
            Lease { token, key, version, entry, bytes, ends_at, previous: NONE, next: NONE };
        let index = self.leases.push(lease);
        if let Some(connection) = self.connection(token) {
            connection.leases.insert(key, index);
        }
        self.counters().lease_count.add(1);
        let mut header = reply_header(&requester.header, requester.part, Status::Ok);
        header.flags |= flags;
        self.push_head(requester, |head| frame::encode(head, header, &reply));
    }

    /// Takes a `Release`.
    pub(super) fn release(&mut self, requester: Requester, request: &ArchivedReadManyRequest) {
        self.take(&requester);
        for range in request.ranges.iter() {
            let range = Range::from(range);
            let key = self.key_of(&range);
            let Some(connection) = self.connection(requester.token) else { return };
            let Some(index) = connection.leases.get(&key).copied() else { continue };
            if self.leases.get(index).version == range.version {
                self.end_lease(index);
            }
        }
        let header = reply_header(&requester.header, 0, Status::Ok);
        self.push_head(&requester, |head| frame::encode_empty(head, header));
    }

    /// Ends a lease: the block may move or leave, if nothing else needs it.
    fn end_lease(&mut self, index: u32) {
        let lease = self.leases.remove(index);
        self.cache.unpin(lease.entry);
        if let Some(connection) = self.connection(lease.token)
            && connection.leases.get(&lease.key) == Some(&index)
        {
            connection.leases.remove(&lease.key);
        }
    }

    /// Ends the leases of a connection that is closed or sends no more, if its client ended it.
    pub(super) fn end_leases_of(&mut self, token: Token) {
        let Some(connection) = self.connection(token) else { return };
        let leases = std::mem::take(&mut connection.leases);
        if connection.client_ended {
            for index in leases.into_values() {
                self.end_lease(index);
            }
        }
    }

    /// Ends the leases whose time has come.
    pub(super) fn expire_leases(&mut self, now: u64) {
        while let Some(index) = self.leases.due(now) {
            self.counters().lease_expired_count.add(1);
            self.end_lease(index);
        }
    }
}
