//! Bounds what replies hold that clients do not take.
//!
//! A reply holds its block until the socket has taken the bytes: all of the block, however few bytes of
//! it were asked for. Held blocks cannot be evicted, so what one client holds is room that others lack.
//! Always holds: a connection whose replies hold its share takes no more requests; where all replies of
//! a shard hold more than theirs, connections that hold something take no more, small ranges are copied,
//! and the clients that take least are closed. Leases have a share of their own.

use millrace_proto::checksum::PAGE_SIZE;

use super::{Action, Hit, Worker, WorkerLimits};
use crate::connection::Connection;
use crate::flash::Flash;
use crate::mailbox::Requester;
use crate::memory::ShardMemory;
use crate::token::Token;

/// Share of the memory that replies may hold, in percent: those of one connection, which may hold no more
/// than `bytes_in_flight_max` either, and all of them before connections that hold something have to
/// wait. Guessed: with half of the memory leased, a quarter is left to fill.
const SENDS_PERCENT: u64 = 25;
/// Share from which on no reply holds more. Guessed: half as much again.
const SENDS_HARD_PERCENT: u64 = 37;
/// Longest range that is copied instead. Guessed: longer ones hold about what they ask for.
const COPY_MAX: u32 = 64 << 10;
/// Share of the memory that copies may take besides it, in percent, and at least [`COPIES_MIN`].
const COPIES_PERCENT: u64 = 12;
const COPIES_MIN: u64 = 4 << 20;
/// How long a client is looked at before it counts as slow.
const SLOW_MS: u64 = 1_000;
/// A client counts as slow, while room is short, if at its pace it takes longer than this for what it
/// holds. Guessed.
const DRAIN_MS: u64 = 2_000;
/// Slowest pace at which a client may take replies over `send_timeout_ms`, in bytes a millisecond.
/// Guessed: a byte now and then is not progress, and 16 KiB/s is less than any link to a data engine.
const PACE_MIN: u64 = 16;

/// The message to a client when nothing can be held for it.
pub(super) const IN_USE: &str =
    "much of the memory waits for clients that do not read their replies: try again";

/// The bounds in bytes.
pub(super) struct Shares {
    of_connection: u64,
    sends: u64,
    sends_hard: u64,
    copies: u64,
}

impl Shares {
    /// Computes the bounds of a shard with `capacity` bytes for blocks, one of `shard_count` that are
    /// alike.
    pub(super) fn new(
        capacity: u64,
        shard_count: usize,
        block_size: u32,
        limits: &WorkerLimits,
    ) -> Shares {
        let share = |percent: u64| capacity * percent / 100;
        // A connection's replies may hold blocks of every shard.
        let of_node = share(SENDS_PERCENT) * shard_count as u64;
        let of_connection = of_node.min(limits.bytes_in_flight_max);
        Shares {
            // Else nothing could ever be read.
            of_connection: of_connection.max(u64::from(block_size)),
            sends: share(SENDS_PERCENT),
            sends_hard: share(SENDS_HARD_PERCENT),
            copies: share(COPIES_PERCENT).max(COPIES_MIN),
        }
    }
}

/// How the bytes of a hit leave.
pub(super) enum Passage {
    /// From where they lie; the block is held meanwhile.
    Pin,
    /// As a copy.
    Copy,
    /// Not now.
    Wait,
}

/// Returns the bytes that a block of this length holds, whole pages.
#[inline]
pub(super) fn held_bytes(block_length: u32) -> u64 {
    u64::from(ShardMemory::pages_for(block_length)) * u64::from(PAGE_SIZE)
}

impl Worker {
    /// Returns the bytes of memory that replies hold, whole pages.
    #[inline]
    fn sending_bytes(&self) -> u64 {
        let written = self.flash.as_ref().map_or(0, Flash::pinned_bytes);
        self.cache.in_use_bytes().saturating_sub(self.leases.bytes() + written)
    }

    /// Returns the most bytes that the answers of other shards to this connection will hold, whole
    /// blocks.
    #[inline]
    fn forwarded_bytes(&self, connection: &Connection) -> u64 {
        u64::from(connection.forwarded) * u64::from(self.shared.block_size)
    }

    /// True if the connection may take no more requests until some of its replies are sent.
    #[inline]
    pub(super) fn is_full(&self, token: Token) -> bool {
        let connection = self.connections.get(token.index as usize).and_then(Option::as_ref);
        let Some(connection) = connection.filter(|it| it.token == token) else { return false };
        if connection.in_flight >= self.limits.requests_in_flight_max
            || connection.asked >= self.limits.bytes_in_flight_max
            || connection.pinned + self.forwarded_bytes(connection) >= self.shares.of_connection
        {
            return true;
        }
        let is_short = connection.pinned > 0 && self.sending_bytes() > self.shares.sends;
        if is_short {
            self.counters().short_count.add(1);
        }
        is_short
    }

    /// True if there is room for a copy of this length.
    pub(super) fn may_copy(&self, length: u32) -> bool {
        self.copied + u64::from(length) <= self.shares.copies
    }

    /// Decides how `length` bytes of a block leave.
    #[inline]
    pub(super) fn passage(&self, requester: &Requester, hit: Hit, length: u32) -> Passage {
        let sending = self.sending_bytes();
        let is_here = requester.shard == self.shard;
        let connection = self.connections.get(requester.token.index as usize);
        let held = match connection {
            Some(Some(connection)) if is_here => connection.pinned,
            _ => 0,
        };
        if sending <= self.shares.sends && held < self.shares.of_connection {
            return Passage::Pin;
        }
        if sending > self.shares.sends {
            self.counters().short_count.add(1);
        }
        if length <= COPY_MAX && u64::from(length) * 2 <= held_bytes(hit.block_length) {
            return if self.may_copy(length) { Passage::Copy } else { Passage::Wait };
        }
        if sending > self.shares.sends_hard { Passage::Wait } else { Passage::Pin }
    }

    /// Closes clients that take too little: over a long time, or, while others lack the room, the slowest
    /// ones until there is room again.
    pub(super) fn expire_sends(&mut self, now: u64, actions: &mut Vec<Action>) {
        let timeout_ms = self.limits.send_timeout_ms;
        let mut slow = Vec::new();
        for connection in self.connections.iter_mut().flatten().filter(|it| it.sending) {
            let elapsed_ms = now.saturating_sub(connection.taken_since);
            if timeout_ms > 0 && elapsed_ms > timeout_ms {
                if connection.taken < PACE_MIN * elapsed_ms {
                    slow.push((u64::MAX, connection.token));
                    continue;
                }
                connection.taken_since = now;
                connection.taken = 0;
            } else if elapsed_ms >= SLOW_MS {
                slow.push((drain_ms(connection, elapsed_ms), connection.token));
            }
        }
        slow.retain(|(drain_ms, _)| *drain_ms > DRAIN_MS);
        slow.sort_unstable_by_key(|(drain_ms, _)| std::cmp::Reverse(*drain_ms));
        let mut over = if self.has_shortage() { self.over_share() } else { 0 };
        for (drain_ms, token) in slow {
            if over == 0 && drain_ms < u64::MAX {
                return;
            }
            let Some(connection) = self.connection(token) else { continue };
            let (taken, pinned) = (connection.taken, connection.pinned);
            over = over.saturating_sub(pinned);
            tracing::warn!(
                "close a connection that took {taken} bytes while {pinned} waited for it"
            );
            self.counters().slow_closed_count.add(1);
            self.close(token, actions);
        }
    }

    /// True if some shard lacked room for a reply or a fill since this was asked last.
    fn has_shortage(&mut self) -> bool {
        let count = self.shared.counters.iter().map(|counters| counters.short_count.get()).sum();
        std::mem::replace(&mut self.short_count, count) != count
    }

    /// Returns the bytes that replies of any shard hold beyond their share; connections here may be the
    /// cause of what is held there.
    fn over_share(&self) -> u64 {
        let own = self.sending_bytes().saturating_sub(self.shares.sends);
        let others = self.shared.counters.iter().map(|counters| {
            let held = counters.in_use_bytes.get().saturating_sub(counters.leased_bytes.get());
            held.saturating_sub(counters.capacity_bytes.get() * SENDS_PERCENT / 100)
        });
        others.fold(own, u64::max)
    }
}

/// Returns how long the client takes for what its replies hold, at the pace since `elapsed_ms`.
fn drain_ms(connection: &Connection, elapsed_ms: u64) -> u64 {
    connection.pinned.saturating_mul(elapsed_ms) / connection.taken.max(1)
}
