//! Bytes to frames: what is not a whole frame yet, or waits for room, stays in the connection's stash.

use millrace_proto::frame::{self, Header};
use millrace_proto::{FrameError, Op};

use super::{Action, Worker};
use crate::connection::{Phase, RECEIVE_BUFFER_COUNT, RECEIVE_BUFFER_SIZE};
use crate::token::Token;

/// Bytes of unread requests, of all connections of a node together, beyond which a connection gets one
/// receive buffer at a time. Guessed: room for 256 of the longest frames that come in slowly.
///
/// No connection passes its own bound, whatever its client sends: one that is not paused holds less than
/// a frame; one that is paused is not received from, and holds what came before that took hold.
const STASHES_MAX: usize = 16 << 20;
/// The same for a shard at least: all receive buffers, twice, so that a few connections may be paused on
/// each shard, however many there are.
const STASHES_OF_SHARD_MIN: usize = 2 * RECEIVE_BUFFER_COUNT as usize * RECEIVE_BUFFER_SIZE;
/// Longest time for a frame to become whole, from its first byte. Guessed: 64 KiB take 5 s at 100 kbit/s.
const FRAME_MS: u64 = 10_000;
/// The same while too many bytes are stashed: the frames that began first are given up first. Guessed.
const FRAME_CROWDED_MS: u64 = 1_000;

impl Worker {
    pub(super) fn on_received(
        &mut self,
        now: u64,
        token: Token,
        bytes: &[u8],
        actions: &mut Vec<Action>,
    ) {
        let Some(connection) = self.connection(token) else { return };
        if connection.phase >= Phase::Draining {
            return;
        }
        if !connection.sending {
            // The requests of a client that takes nothing do not show that it lives.
            connection.active_at = now;
        }
        let before = connection.stash.len();
        let was_crowded = self.is_crowded();
        let Some(connection) = self.connection(token) else { return };
        if connection.stash.is_empty() && !connection.paused {
            // The common case: whole frames, read in place from the receive buffer.
            self.look_ahead(bytes);
            let used = self.take_frames(now, token, bytes, actions);
            if let Some(connection) = self.connection(token) {
                connection.stash.extend_from_slice(&bytes[used..]);
                connection.frame_since = now;
            }
        } else {
            connection.stash.extend_from_slice(bytes);
            self.take_stash(now, token, actions);
        }
        self.count_stash(token, before);
        if self.is_crowded() && !was_crowded {
            actions.push(Action::ReceiveGently);
        }
    }

    /// True if the stashes hold too many bytes of unread requests for any connection to pile up more.
    /// The runtime asks whenever it begins to receive, because by the end of the turn it would be late.
    pub(crate) fn is_crowded(&self) -> bool {
        let of_shard = STASHES_MAX / self.shared.counters.len();
        self.stashed > of_shard.max(STASHES_OF_SHARD_MIN)
    }

    /// Brings the sum of the stashes up to date after one that had `before` bytes may have changed.
    pub(super) fn count_stash(&mut self, token: Token, before: usize) {
        let length = self.connection(token).map_or(0, |connection| connection.stash.len());
        self.stashed = self.stashed - before + length;
    }

    /// Closes connections whose frames do not become whole in time, the oldest first while room is
    /// short. A client that sends whole frames is never among them.
    pub(super) fn expire_frames(&mut self, now: u64, actions: &mut Vec<Action>) {
        if self.stashed == 0 {
            return;
        }
        let parts = self.connections.iter().flatten().filter(|connection| connection.has_part());
        let mut parts: Vec<_> =
            parts.map(|connection| (connection.frame_since, connection.token)).collect();
        self.is_restless |= !parts.is_empty();
        parts.sort_unstable_by_key(|(since, _)| *since);
        for (since, token) in parts {
            let age_ms = now.saturating_sub(since);
            let age_max_ms = if self.is_crowded() { FRAME_CROWDED_MS } else { FRAME_MS };
            if age_ms <= age_max_ms {
                return;
            }
            tracing::warn!("close a connection whose frame is not whole after {age_ms} ms");
            self.close(token, actions);
            let Some(connection) = self.connection(token) else { continue };
            let before = std::mem::take(&mut connection.stash).len();
            self.count_stash(token, before);
        }
    }

    /// Takes the frames that are in the stash, unless the connection is paused.
    pub(super) fn take_stash(&mut self, now: u64, token: Token, actions: &mut Vec<Action>) {
        let Some(connection) = self.connection(token) else { return };
        if connection.paused {
            return;
        }
        let mut stash = std::mem::take(&mut connection.stash);
        let used = self.take_frames(now, token, &stash, actions);
        if let Some(connection) = self.connection(token) {
            if used == stash.len() {
                // An idle connection keeps no memory.
                return;
            }
            if used > 0 {
                stash.drain(..used);
                stash.shrink_to(frame::HEADER_SIZE);
                connection.frame_since = now;
            }
            connection.stash = stash;
        }
    }

    /// Takes whole frames from the front of `bytes` until a limit is reached; returns the bytes used.
    pub(super) fn take_frames(
        &mut self,
        now: u64,
        token: Token,
        bytes: &[u8],
        actions: &mut Vec<Action>,
    ) -> usize {
        let mut used = 0;
        loop {
            let body_length_max = self.limits.body_length_max;
            let Some(connection) = self.connection(token) else { return bytes.len() };
            if connection.phase >= Phase::Draining {
                return bytes.len();
            }
            let rest = &bytes[used..];
            let Some(head) = rest.first_chunk() else { return used };
            if connection.paused || self.is_full(token) {
                self.pause(token, actions);
                return used;
            }
            let header = match Header::decode(head)
                .and_then(|header| header.check_lengths(body_length_max, 0).map(|()| header))
            {
                Ok(header) => header,
                Err(error) => {
                    self.refuse_stream(now, token, head, error, actions);
                    return bytes.len();
                }
            };
            let size = frame::HEADER_SIZE + header.body_length as usize;
            let Some(body) = rest.get(frame::HEADER_SIZE..size) else { return used };
            used += size;
            match header.check_body(body) {
                Ok(()) => self.on_request(now, token, &header, body, actions),
                Err(error) => {
                    self.counters().bad_frame_count.add(1);
                    self.take_and_fail(token, &header, error.status(), &error.to_string(), actions);
                }
            }
        }
    }

    /// Takes no more requests of a connection until some of its replies are sent.
    pub(super) fn pause(&mut self, token: Token, actions: &mut Vec<Action>) {
        let Some(connection) = self.connection(token) else { return };
        if !std::mem::replace(&mut connection.paused, true) {
            actions.push(Action::PauseReceive(token));
        }
    }

    /// Answers bytes that are not a frame, then closes, because it is not known where the next frame
    /// begins.
    pub(super) fn refuse_stream(
        &mut self,
        now: u64,
        token: Token,
        head: &[u8; frame::HEADER_SIZE],
        error: FrameError,
        actions: &mut Vec<Action>,
    ) {
        self.counters().bad_frame_count.add(1);
        tracing::debug!("close a connection: {error}");
        // The reply has the request id if the header can be trusted, that is if only a length is wrong.
        let header = Header::decode(head).unwrap_or(Header::request(Op::Ping, 0, 0));
        self.take_and_fail(token, &header, error.status(), &error.to_string(), actions);
        if let Some(connection) = self.connection(token) {
            connection.phase = Phase::Draining;
            connection.active_at = now;
        }
    }
}
