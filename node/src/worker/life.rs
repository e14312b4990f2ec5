//! A connection's life: accepted, half closed, drained, closed.

use std::sync::atomic::Ordering;

use millrace_proto::proof::Role;

use super::{Action, Worker};
use crate::connection::{Connection, Phase, ReceiveEnd};
use crate::mailbox::Mail;
use crate::owner::Loads;
use crate::token::{GENERATION_COUNT, Token};

/// How long a closing connection is listened to, so that the client reads the last reply.
const LINGER_MS: u64 = 1_000;
/// The same while the node stops, which should not take long.
const LINGER_DRAINING_MS: u64 = 100;
/// How long a client that sends no more is kept without an answer being sent. Guessed: a client that is
/// gone looks the same, and must not hold a place for as long as a source hangs.
const HALF_CLOSED_MS: u64 = 60_000;
/// Connections of administrators when clients have all that they may have. Guessed.
const ADMINISTRATORS_MAX: usize = 16;

/// How a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the network.
    Tcp,
    /// Over a Unix socket, of a client on this machine.
    Local,
    /// Over the administration socket.
    Admin,
}

impl Worker {
    /// Takes a new connection, whose loads count together with those of its machine, or refuses it when
    /// a limit is reached. For administrators there is room when clients have taken all of it.
    pub(crate) fn accept(&mut self, now: u64, way: Way, loads: Loads) -> Option<Token> {
        let more = if way == Way::Admin { ADMINISTRATORS_MAX } else { 0 };
        let open = self.shared.connection_count.load(Ordering::Relaxed);
        if open >= self.limits.connections_max + more || self.draining {
            self.counters().refused_count.add(1);
            return None;
        }
        let index = self.free_connections.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.generations.push(0);
            self.connections.len() as u32 - 1
        });
        let token = Token { index, generation: self.generations[index as usize] };
        let mut connection = Connection::new(token, now, way == Way::Local);
        connection.loads_of_machine = loads;
        connection.role = (way == Way::Admin).then_some(Role::Administrator);
        self.connections[index as usize] = Some(connection);
        self.connection_count += 1;
        // Two shards that take the last place at once pass the limit by one each: it bounds memory.
        self.shared.connection_count.fetch_add(1, Ordering::Relaxed);
        self.counters().accepted_count.add(1);
        self.counters().connection_count.set(u64::from(self.connection_count));
        Some(token)
    }

    pub(super) fn on_receive_ended(
        &mut self,
        now: u64,
        token: Token,
        end: ReceiveEnd,
        actions: &mut Vec<Action>,
    ) {
        let Some(connection) = self.connection(token) else { return };
        connection.active_at = now;
        // What is read after our own shutdown says nothing of the client.
        let by_client = end != ReceiveEnd::Broken && connection.phase < Phase::Closed;
        connection.client_ended |= by_client;
        if let Some(owner) = &connection.owner {
            owner.end();
        }
        if by_client {
            // A process that has died waits for no answer, and on a Unix socket that looks the same as one that
            // sends no more: its blocks are not held for what it asked last.
            self.end_leases_of(token);
        }
        let Some(connection) = self.connection(token) else { return };
        match connection.phase {
            // No answer can reach it: its place is free, whatever it still waits for.
            _ if end != ReceiveEnd::Finished => self.close(token, actions),
            // A client that shut its sending side still gets the replies it waits for.
            Phase::Open if connection.in_flight > 0 => connection.phase = Phase::HalfClosed,
            Phase::HalfClosed | Phase::Draining if connection.in_flight > 0 => (),
            _ => self.close(token, actions),
        }
    }

    /// Goes on with closing, once nothing is in flight.
    pub(super) fn finish_if_drained(&mut self, now: u64, token: Token, actions: &mut Vec<Action>) {
        let Some(connection) = self.connection(token) else { return };
        if connection.in_flight > 0 {
            return;
        }
        match connection.phase {
            Phase::Draining => {
                connection.phase = Phase::Lingering;
                connection.active_at = now;
                let before = std::mem::take(&mut connection.stash).len();
                self.count_stash(token, before);
                actions.push(Action::FinishSending(token));
            }
            Phase::HalfClosed if !connection.paused => self.close(token, actions),
            _ => (),
        }
    }

    pub(super) fn close(&mut self, token: Token, actions: &mut Vec<Action>) {
        let Some(connection) = self.connection(token) else { return };
        if connection.phase != Phase::Closed {
            connection.phase = Phase::Closed;
            actions.push(Action::Close(token));
        }
    }

    pub(super) fn on_closed(&mut self, token: Token, actions: &mut Vec<Action>) {
        let Some(connection) = self.connection(token) else { return };
        let unsent = std::mem::take(&mut connection.building);
        let has_requests = connection.in_flight > 0;
        let before = std::mem::take(&mut connection.stash).len();
        self.count_stash(token, before);
        self.release_pins(&unsent, actions);
        self.end_leases_of(token);
        self.forget_misses(self.shard, token);
        if has_requests {
            self.forget_waiters(Some((self.shard, token)));
            // Other shards may have misses of it.
            for shard in 0..self.shared.counters.len() as u32 {
                if shard != self.shard {
                    actions.push(Action::Post(shard, Mail::Gone { shard: self.shard, token }));
                }
            }
        }
        // What is under way for it on the side thread ends with its owner.
        self.connections[token.index as usize] = None;
        self.generations[token.index as usize] = (token.generation + 1) % GENERATION_COUNT;
        self.free_connections.push(token.index);
        self.connection_count -= 1;
        self.shared.connection_count.fetch_sub(1, Ordering::Relaxed);
        self.counters().connection_count.set(u64::from(self.connection_count));
    }

    pub(super) fn on_shutdown(&mut self, now: u64, actions: &mut Vec<Action>) {
        self.draining = true;
        for token in self.tokens() {
            let Some(connection) = self.connection(token) else { continue };
            if connection.in_flight == 0 && connection.stash.is_empty() {
                self.close(token, actions);
                continue;
            }
            if connection.phase < Phase::Draining {
                connection.phase = Phase::Draining;
            }
            self.finish_if_drained(now, token, actions);
        }
    }

    pub(super) fn on_tick(&mut self, now: u64, actions: &mut Vec<Action>) {
        self.expire_waiters(now, actions);
        self.expire_leases(now);
        self.give_up_disks(now, actions);
        self.start_waiting(now, actions);
        self.is_restless = false;
        self.expire_frames(now, actions);
        self.expire_sends(now, actions);
        for token in self.tokens() {
            let limits = &self.limits;
            let (send_timeout, idle_timeout) = (limits.send_timeout_ms, limits.idle_timeout_ms);
            let linger_ms = if self.draining { LINGER_DRAINING_MS } else { LINGER_MS };
            let Some(connection) = self.connection(token) else { continue };
            let waits = connection.sending || connection.phase != Phase::Open;
            let quiet_ms = now.saturating_sub(connection.active_at);
            let stalled = connection.sending && send_timeout > 0 && quiet_ms > send_timeout;
            let idle = connection.in_flight == 0 && idle_timeout > 0 && quiet_ms > idle_timeout;
            let lingered = match connection.phase {
                Phase::Lingering => quiet_ms > linger_ms,
                Phase::HalfClosed => !connection.sending && quiet_ms > HALF_CLOSED_MS,
                _ => false,
            };
            self.is_restless |= waits;
            if stalled {
                tracing::warn!("close a connection that took no byte for {quiet_ms} ms");
            }
            if stalled || idle || lingered {
                self.close(token, actions);
            }
        }
    }

    /// Returns the connections that are open.
    fn tokens(&self) -> Vec<Token> {
        self.connections.iter().flatten().map(|connection| connection.token).collect()
    }
}
