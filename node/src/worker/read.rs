//! Finds the block of a range: here, on another shard, or not in memory at all.

use millrace_proto::message::{ArchivedRange, ArchivedReadManyRequest, Range};
use millrace_proto::{FileId, Op, Status, frame, placement};
use smallvec::SmallVec;

use super::pressure::{IN_USE, Passage, held_bytes};
use super::{Action, Hit, Worker, ask_to_send, find_connection};
use crate::cache::{BlockKey, Damage, WARM_MAX};
use crate::connection::{Hold, Pin};
use crate::mailbox::{Mail, Requester, Served, reply_header};

impl Worker {
    /// Touches in advance what the reads in `bytes` will need, see [`crate::cache::Cache::warm`].
    /// Measured with 16384 blocks of 4 KiB: a fifth more reads.
    #[inline]
    pub(super) fn look_ahead(&self, bytes: &[u8]) {
        let nothing = BlockKey { file: FileId(0), block: 0 };
        let mut reads = [(nothing, 0); WARM_MAX];
        let mut count = 0;
        let mut rest = bytes;
        while let Some((op, body, next)) = frame::peek(rest) {
            rest = next;
            let mut add = |range: &ArchivedRange| {
                let (block, offset) = self.block_and_offset(range.offset.to_native());
                let key = BlockKey { file: (&range.file).into(), block: block as u32 };
                reads[count] = (key, offset);
                count += 1;
                if count == WARM_MAX {
                    self.cache.warm(&reads);
                    count = 0;
                }
            };
            if op == Op::Read as u8 {
                let _ = frame::body(body).map(add);
            } else if op == Op::ReadMany as u8 {
                let request = frame::body::<ArchivedReadManyRequest>(body);
                let _ = request.map(|request| request.ranges.iter().for_each(&mut add));
            }
        }
        // A single read waits as long either way.
        if count > 1 {
            self.cache.warm(&reads[..count]);
        }
    }

    /// Returns the number of the block at an offset of a file, and the offset in it.
    #[inline]
    fn block_and_offset(&self, offset: u64) -> (u64, u32) {
        let shift = self.block_shift;
        (offset >> shift, (offset & ((1 << shift) - 1)) as u32)
    }

    /// Serves a range that was asked for, or starts the work that will serve it.
    #[inline]
    pub(super) fn find(
        &mut self,
        now: u64,
        requester: &Requester,
        range: &Range,
        actions: &mut Vec<Action>,
    ) {
        let (block, offset) = self.block_and_offset(range.offset);
        let crosses = u64::from(offset) + u64::from(range.length) > 1 << self.block_shift;
        if range.length == 0 || crosses {
            let message = "a range has at least one byte and does not cross a block boundary";
            self.fail(requester, Status::InvalidArgument, message, actions);
            return;
        }
        let Ok(block) = u32::try_from(block) else {
            return self.fail_past_end(requester, range, actions);
        };
        let key = BlockKey { file: range.file, block };
        let owner = placement::shard_of(key.hash(), self.shared.counters.len() as u32);
        if owner != self.shard {
            self.counters().forwarded_count.add(1);
            let Some(connection) = self.connection(requester.token) else { return };
            connection.forwarded += 1;
            let requester = Requester { is_forwarded: true, ..*requester };
            actions.push(Action::Post(owner, Mail::Read { requester, range: *range }));
            return;
        }
        match self.hit(requester, &key, range, offset) {
            Some(hit) => {
                if self.cache.touch(hit.entry, offset) {
                    self.earn(hit.entry, key, range.version);
                }
                if self.serve(requester, hit, offset, range.length, actions) {
                    let counters = self.counters();
                    counters.hit_count.add(1);
                    counters.hit_bytes.add(u64::from(range.length.min(hit.block_length - offset)));
                }
            }
            None => {
                self.shared.files.doubt(range.file, range.version);
                self.on_miss(now, requester, range, key, offset, actions);
            }
        }
    }

    /// Returns the block, if what is asked for of it is here.
    #[inline]
    pub(super) fn hit(
        &self,
        requester: &Requester,
        key: &BlockKey,
        range: &Range,
        offset: u32,
    ) -> Option<Hit> {
        let (entry, version) = self.cache.find(key)?;
        let is_here = self.cache.is_whole(entry)
            // A block is leased as a whole.
            || requester.header.op != Op::Lease as u8
                && self.cache.holds(entry, offset, range.length);
        let is_hit = version == range.version && is_here;
        is_hit.then(|| Hit { entry, block_length: self.cache.length(entry) })
    }

    /// Answers with a range of a block that is here. True if bytes were served.
    #[inline]
    pub(super) fn serve(
        &mut self,
        requester: &Requester,
        hit: Hit,
        offset: u32,
        length: u32,
        actions: &mut Vec<Action>,
    ) -> bool {
        if offset >= hit.block_length {
            self.fail(
                requester,
                Status::OutOfRange,
                "the offset is at or past the end of the file",
                actions,
            );
            return false;
        }
        if requester.header.op == Op::Lease as u8 {
            self.grant(requester, hit, actions);
            return false;
        }
        let length = length.min(hit.block_length - offset);
        match self.passage(requester, hit, length) {
            Passage::Pin => (),
            Passage::Copy => return self.serve_copy(requester, hit, offset, length, actions),
            Passage::Wait => {
                self.fail(requester, Status::Busy, IN_USE, actions);
                return false;
            }
        }
        self.checksums.clear();
        self.segments.clear();
        let (flags, mask) = requester.checksums(self.cache.tag(hit.entry));
        // Borrowed field by field: the cache tells what it has.
        let pinned = self.cache.pin_range(
            hit.entry,
            offset,
            length,
            |sum| self.checksums.push(sum ^ mask),
            |segment| self.segments.push(segment),
        );
        if let Err(Damage::Found) = pinned {
            self.fail_damaged(requester, actions);
            return false;
        }
        if requester.shard != self.shard {
            // The shard that has the connection is told where the bytes lie.
            let served = Served {
                requester: *requester,
                entry: hit.entry,
                owner: self.shard,
                pinned: held_bytes(hit.block_length),
                sums: SmallVec::from_slice(&self.checksums),
                segments: SmallVec::from_slice(&self.segments),
            };
            actions.push(Action::Post(requester.shard, Mail::Served(served)));
            return true;
        }
        let connection = find_connection(&mut self.connections, requester.token);
        let Some(connection) = connection else {
            self.cache.unpin(hit.entry);
            return false;
        };
        let mut header = reply_header(&requester.header, requester.part, Status::Ok);
        header.payload_length = length;
        header.flags |= flags;
        // Reads of one block that follow each other hold it once.
        let pin = Pin::Local(hit.entry);
        let is_held = connection.building.pins.last() == Some(&pin);
        let hold = Hold { pin, bytes: if is_held { 0 } else { held_bytes(hit.block_length) } };
        connection.pinned += hold.bytes;
        let (checksums, segments) = (&self.checksums, &self.segments);
        connection.building.push_read(header, checksums, segments, hold, requester.asked);
        ask_to_send(connection, &mut self.to_send);
        true
    }

    /// Answers with a copy of a range, so that the block is held by nothing. True if bytes were served.
    fn serve_copy(
        &mut self,
        requester: &Requester,
        hit: Hit,
        offset: u32,
        length: u32,
        actions: &mut Vec<Action>,
    ) -> bool {
        let tag = self.cache.tag(hit.entry);
        let (mut checksums, mut payload) =
            (std::mem::take(&mut self.checksums), std::mem::take(&mut self.payload));
        checksums.clear();
        payload.clear();
        let push = |sum| checksums.push(sum);
        let copied = self.cache.copy_range(hit.entry, offset, length, push, &mut payload);
        let is_whole = copied.is_ok();
        match copied {
            Ok(()) => self.send_copy(requester, tag, &mut checksums, &payload, actions),
            Err(Damage::Found) => self.fail_damaged(requester, actions),
        }
        (self.checksums, self.payload) = (checksums, payload);
        is_whole
    }

    /// Answers with bytes of a block with this tag, and the checksums that cover them, with the tag in them.
    pub(super) fn send_copy(
        &mut self,
        requester: &Requester,
        tag: u32,
        checksums: &mut [u32],
        payload: &[u8],
        actions: &mut Vec<Action>,
    ) {
        let (flags, mask) = requester.checksums(tag);
        checksums.iter_mut().for_each(|sum| *sum ^= mask);
        let length = payload.len() as u32;
        let mut header = reply_header(&requester.header, requester.part, Status::Ok);
        header.payload_length = length;
        header.flags |= flags;
        if requester.shard != self.shard {
            let mut frame = Vec::new();
            frame::encode_read_reply(&mut frame, header, checksums);
            frame.extend_from_slice(payload);
            let mail = Mail::Reply { requester: *requester, frame };
            actions.push(Action::Post(requester.shard, mail));
        } else if let Some(connection) = find_connection(&mut self.connections, requester.token) {
            connection.building.push_copy(header, checksums, payload, requester.asked);
            ask_to_send(connection, &mut self.to_send);
            self.copied += u64::from(length);
        }
        self.counters().copied_bytes.add(u64::from(length));
    }

    pub(super) fn fail_damaged(&mut self, requester: &Requester, actions: &mut Vec<Action>) {
        self.counters().damaged_count.add(1);
        tracing::error!(
            "a cached block did not match its checksum and was dropped: is the memory faulty?"
        );
        let message = "the cached bytes were damaged and have been dropped: try again";
        self.fail(requester, Status::Corrupt, message, actions);
    }
}
