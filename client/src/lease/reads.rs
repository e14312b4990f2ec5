//! Reads of leased blocks, and how leases are asked for, prolonged and given back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;
use millrace_proto::checksum::{self};
use millrace_proto::message::{ArchivedLeaseReply, Extent, Range, ReadManyRequest};
use millrace_proto::{Op, Status, frame, placement};
use smallvec::SmallVec;

use crate::client::Client;
use crate::connection::{Answer, Attachment, Body, Landed, Landing, Patience};
use crate::error::Error;
use crate::file::File;
use crate::piece::{Piece, Terms};
use crate::reply;
use crate::topology::{Place, Topology};

use super::{BATCH_MAX, Lease, LeasedBlock, REFUSED_PAUSE, key_of, now_ns};

impl Client {
    /// Reads bytes from `offset` into the whole of `target` from the memory of a node on this machine,
    /// without asking the node. True if that worked. It does not if some block of the range is not
    /// leased, or the file ends before: then the bytes in `target` mean nothing, and [`Client::read`]
    /// reads them and leases what is read more than once.
    pub fn read_leased(&self, file: &File, offset: u64, target: &mut [u8]) -> bool {
        let block_size = file.block_size;
        let verify = self.config().verify;
        let mut position = offset;
        let mut rest = target;
        while !rest.is_empty() {
            let left = u64::from(block_size) - position % u64::from(block_size);
            let length = rest.len().min(left as usize);
            let (front, after) = rest.split_at_mut(length);
            let found =
                self.leases().with(file, (position, length as u32, block_size), |block, offset| {
                    (block.is_good_for(verify) && block.copy(offset, front)).then_some(())
                });
            if found.is_none() {
                return false;
            }
            position += length as u64;
            rest = after;
        }
        true
    }

    /// Leases the blocks of a range, to be read in place. There is one result for each block, in order;
    /// None if the node is not on this machine or has no room. Blocks that are not cached are brought in
    /// first.
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
        // Leases are asked for by shard, because each shard leases its own blocks.
        let mut batches: HashMap<Place, Vec<(usize, Piece)>> = HashMap::new();
        for (index, piece) in pieces.into_iter().enumerate() {
            let place = topology.place(file.id, piece.block(), &file.path);
            batches.entry(place).or_default().push((index, piece));
        }
        for (place, batch) in batches {
            if self.config().local && topology.leasing_lane(place).is_none() {
                self.reach(&topology, place, terms.deadline).await?;
            }
            let member = topology.member(place.member);
            for batch in batch.chunks(BATCH_MAX) {
                if topology.cluster.is_some() && !member.health.is_well() {
                    // A member that kept silent is not waited for again for each of its batches.
                    break;
                }
                let pieces = batch.iter().map(|(_, piece)| *piece).collect();
                let found = self.lease_pieces(file, pieces, (&topology, place), terms).await;
                for ((index, _), block) in batch.iter().zip(found) {
                    leases[*index] = block.map(|block| Lease { block });
                }
            }
        }
        Ok(leases)
    }

    /// Makes the lane of a place connect, which it does with its first request.
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
            self.ask_alone(lane, Body::Ping, Landing::Any, deadline).await?;
        } else if member.is_near {
            let end = tokio::time::Instant::now() + self.config().attempt_timeout;
            // Without an answer there is no memory to lease, which is checked next.
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
            block
                .is_good_for(verify)
                .then(|| append(block, offset, piece.length, landing))
                .flatten()
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

    /// Leases the blocks of pieces that belong to one shard; none if that did not work.
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
        let is_member = topology.cluster.is_some();
        let is_alone = || self.network().is_alone();
        let patience = Patience {
            silence_max: self.config().attempt_timeout,
            goes_on: if is_member { None } else { Some(&is_alone) },
        };
        let sent_at = tokio::time::Instant::now();
        let answers = lane.exchange_many(Op::Lease, ranges, landings, terms.deadline, patience);
        let answers = answers.await;
        let is_lost = is_member && answers.iter().any(Result::is_err);
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

    /// Returns the block that an answer leases.
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
        let tag = match reply.header.covers_identity() {
            true => checksum::tag(file.id.into(), file.version, piece.block() as u32),
            false => 0,
        };
        let ends_at_ns = asked_at_ns + u64::from(lease.lease_ms.to_native()) * 1_000_000;
        (is_inside && total == u64::from(length)).then(|| LeasedBlock {
            attachment: attachment.clone(),
            key: key_of(file, piece.block()),
            file: file.id,
            version: file.version,
            start: piece.block() * u64::from(piece.block_size),
            length,
            checksum: lease.checksum.to_native() ^ tag,
            extents,
            ends_at_ns: AtomicU64::new(ends_at_ns),
            granted_until_ns: AtomicU64::new(ends_at_ns),
            verified_at_ns: AtomicU64::new(0),
        })
    }

    /// Puts a block that was leased into the table, or prolongs the lease that is there. None if its
    /// bytes are not what was cached: then a read over the socket says more.
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
        let granted_until_ns = block.granted_until_ns.load(Ordering::Relaxed);
        let now = now_ns();
        if let Some(held) = held
            && held.holds()
        {
            if terms.verify && !held.verify(now) {
                // Its holder sees that it has ended.
                held.revoke();
                return None;
            }
            if held.prolong(granted_until_ns) {
                return Some(held);
            }
        }
        if terms.verify && !block.verify(now) {
            return None;
        }
        if !block.prolong(granted_until_ns) || !block.holds() {
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
        let hash = placement::block_hash(block.file.into(), number);
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

/// Returns the length of the whole block that a piece lies in.
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
