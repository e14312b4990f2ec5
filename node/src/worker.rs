//! One shard: its connections, its cache, and what happens to a request.
//!
//! ```text
//!  Event ──► Worker::handle(now, event, actions) ──► Action ──► runtime
//! ```
//!
//! Owns all state of the shard; nothing here waits, reads a clock or makes a system call. Always holds:
//! every request that was taken is answered once, or its connection is closed; a hit is answered within
//! the call that brought the request, without a task and without an allocation.
//! Modules: `request` turns frames into work, `read` finds blocks, `fill` brings them in, `lease`
//! keeps them in place for clients that read them there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_proto::frame::{self, Header};
use millrace_proto::message::ErrorReply;
use millrace_proto::{FrameError, Op, Status};

use crate::cache::{BlockKey, Cache, EntryIndex};
use crate::cluster::handover::Progress;
use crate::connection::{
    Batch, Connection, GENERATION_COUNT, Phase, Pin, RECEIVE_BUFFER_COUNT, RECEIVE_BUFFER_SIZE,
    Token, reply_header,
};
use crate::files::FileTable;
use crate::mailbox::{Mail, Requester, Served};
use crate::memory::Segment;
use crate::metrics::Counters;
use crate::side::SideQueue;

mod fill;
mod lease;
mod read;
mod request;

pub(crate) use request::SERVER;

use fill::Fill;
use lease::Leases;

/// Longest text of an error in bytes: what it repeats of a request may be as long as a body.
const MESSAGE_MAX: usize = 1024;
/// What a client is told to wait when the node is busy, in milliseconds. Guessed: a few reads of a
/// local disk.
const BUSY_RETRY_MS: u32 = 10;
/// How long a closing connection is listened to, so that the client reads the last reply.
const LINGER_MS: u64 = 1_000;
/// The same while the node stops, which should not take long.
const LINGER_DRAINING_MS: u64 = 100;
/// Most bytes of unread requests that one connection may pile up while it is paused. Derived: all
/// receive buffers, which one multishot receive may fill before its cancellation, and one frame.
const STASH_MAX: usize = RECEIVE_BUFFER_COUNT as usize * RECEIVE_BUFFER_SIZE
    + frame::HEADER_SIZE
    + frame::BODY_LENGTH_MAX as usize;
/// The same for all connections of a node together: who passes it is disconnected. Guessed: room for
/// 256 of the longest frames that come in slowly.
const STASHES_MAX: usize = 16 << 20;

/// What happened.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// Bytes came in.
    Received { token: Token, bytes: &'a [u8] },
    /// No more bytes will come in: the client is done, or gone.
    ReceiveEnded { token: Token, by_client: bool },
    /// A batch is with the socket, whole; or it failed and the connection is of no use.
    Sent { token: Token, batch: Batch, ok: bool, is_last: bool },
    /// The rest of a batch waits for another one to go with.
    Held { token: Token },
    /// A batch that was sent, with its accounts alone in `Sent`, is not read any more.
    Released { token: Token, batch: Batch },
    /// The socket took a part of a batch.
    SentSome { token: Token },
    /// The socket is closed and no operation on it is under way.
    Closed { token: Token },
    /// A message from another shard or the side thread.
    Mail(Mail),
    /// Time passed: look at deadlines.
    Tick,
}

/// What the runtime has to do.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "messages to other shards are moved, not boxed: no allocation"
)]
pub(crate) enum Action {
    /// Take the connection's batch and send it.
    Send(Token),
    /// Stop receiving: a limit is reached.
    PauseReceive(Token),
    /// Receive again.
    ResumeReceive(Token),
    /// Everything was sent: tell the client that nothing more comes.
    FinishSending(Token),
    /// Close the socket, whatever is under way.
    Close(Token),
    /// Post a message to another shard.
    Post(u32, Mail),
    /// Nothing: this one is done.
    Done,
}

/// The limits a worker keeps.
#[derive(Clone, Debug)]
pub(crate) struct WorkerLimits {
    /// Connections of the node.
    pub connections_max: usize,
    /// Requests in flight on one connection.
    pub requests_in_flight_max: u32,
    /// Bytes that those may ask for.
    pub bytes_in_flight_max: u64,
    /// Longest body of a request.
    pub body_length_max: u32,
    /// A client that takes no byte for so long is disconnected; 0 for never.
    pub send_timeout_ms: u64,
    /// A connection without a request for so long is closed; 0 for never.
    pub idle_timeout_ms: u64,
    /// How long a lease lasts; 0 for none at all.
    pub lease_ms: u32,
    /// Share of the shard's memory that may be leased.
    pub lease_percent: u32,
    /// Share of the shard's memory that blocks of pinned paths may hold.
    pub pin_percent: u32,
}

/// What is the same for every shard of a node.
pub(crate) struct Shared {
    /// Files the node knows.
    pub files: Arc<FileTable>,
    /// Counters of all shards, in shard order.
    pub counters: Arc<[Counters]>,
    /// Addresses of all shards for `Hello`, in shard order.
    pub shard_addresses: Vec<String>,
    /// The same for connections over Unix sockets.
    pub local_addresses: Vec<String>,
    /// Feature bits that are offered.
    pub features: u64,
    /// What the side thread does for the cluster.
    pub progress: Arc<Progress>,
    /// Number of this run of the node.
    pub node: u64,
    /// Boot id of the machine.
    pub machine: String,
    /// Size of a block in bytes.
    pub block_size: u32,
    /// Connections of all shards.
    pub connection_count: AtomicUsize,
}

/// One shard.
pub(crate) struct Worker {
    shard: u32,
    shared: Arc<Shared>,
    limits: WorkerLimits,
    side: SideQueue,
    cache: Cache,
    /// Binary logarithm of the block size.
    block_shift: u32,
    connections: Vec<Option<Connection>>,
    free_connections: Vec<u32>,
    generations: Vec<u32>,
    connection_count: u32,
    fills: HashMap<BlockKey, Fill>,
    leases: Leases,
    /// Time of the event that is handled, in the node's milliseconds.
    now: u64,
    /// Bytes of the blocks that are on their way in.
    filling_bytes: u64,
    /// Waiters that have a deadline: while there are some, ticks are wanted.
    deadline_count: usize,
    draining: bool,
    /// Something happened since a tick found no connection that waits for time to pass: so a sleep does
    /// not have to look at all of them.
    is_restless: bool,
    /// Bytes in the stashes of all connections.
    stashed: usize,
    /// Reused for every reply, so that a hit allocates nothing.
    checksums: Vec<u32>,
    segments: Vec<Segment>,
}

impl Worker {
    /// Shard number `shard`, with this part of the memory.
    pub(crate) fn new(
        shard: u32,
        shared: Arc<Shared>,
        limits: WorkerLimits,
        side: SideQueue,
        cache: Cache,
    ) -> Worker {
        let block_shift = shared.block_size.trailing_zeros();
        let leases = Leases::new(cache.capacity_bytes(), limits.lease_percent);
        Worker {
            shard,
            shared,
            limits,
            side,
            cache,
            block_shift,
            connections: Vec::new(),
            free_connections: Vec::new(),
            generations: Vec::new(),
            connection_count: 0,
            fills: HashMap::new(),
            leases,
            now: 0,
            filling_bytes: 0,
            deadline_count: 0,
            draining: false,
            is_restless: false,
            stashed: 0,
            checksums: Vec::new(),
            segments: Vec::new(),
        }
    }

    /// Number of this shard.
    pub(crate) fn shard(&self) -> u32 {
        self.shard
    }

    /// Takes a new connection, or refuses it when a limit is reached.
    pub(crate) fn accept(&mut self, now: u64, is_local: bool) -> Option<Token> {
        let open = self.shared.connection_count.load(Ordering::Relaxed);
        if open >= self.limits.connections_max || self.draining {
            self.counters().refused_count.add(1);
            return None;
        }
        let index = self.free_connections.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.generations.push(0);
            self.connections.len() as u32 - 1
        });
        let token = Token { index, generation: self.generations[index as usize] };
        self.connections[index as usize] = Some(Connection::new(token, now, is_local));
        self.connection_count += 1;
        // Two shards that take the last place at once pass the limit by one each: it bounds memory.
        self.shared.connection_count.fetch_add(1, Ordering::Relaxed);
        self.counters().accepted_count.add(1);
        self.counters().connection_count.set(u64::from(self.connection_count));
        Some(token)
    }

    /// Takes an event and says what to do about it.
    pub(crate) fn handle(&mut self, now: u64, event: Event<'_>, actions: &mut Vec<Action>) {
        self.now = now;
        self.is_restless = true;
        match event {
            Event::Received { token, bytes } => self.on_received(now, token, bytes, actions),
            Event::ReceiveEnded { token, by_client } => {
                self.on_receive_ended(now, token, by_client, actions)
            }
            Event::Sent { token, batch, ok, is_last } => {
                self.on_sent(now, token, batch, (ok, is_last), actions)
            }
            Event::Held { token } => {
                if let Some(connection) = self.connection(token) {
                    connection.sending = false;
                    connection.active_at = now;
                    if !connection.building.is_empty() {
                        ask_to_send(connection, actions);
                    }
                }
            }
            Event::Released { token, batch } => {
                self.release_pins(&batch, actions);
                if let Some(connection) = self.connection(token) {
                    connection.keep(batch);
                }
            }
            Event::SentSome { token } => {
                if let Some(connection) = self.connection(token) {
                    connection.active_at = now;
                }
            }
            Event::Closed { token } => self.on_closed(token, actions),
            Event::Mail(mail) => self.on_mail(now, mail, actions),
            Event::Tick => self.on_tick(now, actions),
        }
    }

    /// The batch that [`Action::Send`] announced.
    pub(crate) fn next_batch(&mut self, now: u64, token: Token) -> Option<Batch> {
        self.connection(token)?.next_batch(now)
    }

    /// What was held back of this connection is on its way now.
    pub(crate) fn on_held_sent(&mut self, token: Token) {
        if let Some(connection) = self.connection(token) {
            connection.sending = true;
        }
    }

    /// Whether this connection is still the one at its place.
    pub(crate) fn is_open(&self, token: Token) -> bool {
        let connection = self.connections.get(token.index as usize).and_then(Option::as_ref);
        connection.is_some_and(|connection| connection.token == token)
    }

    /// How long a client may take no byte, in milliseconds.
    pub(crate) fn send_timeout_ms(&self) -> u64 {
        self.limits.send_timeout_ms
    }

    /// Most bytes of blocks that the kernel may read after their replies count as sent: an eighth, so
    /// that slow readers far away cannot hold all of the memory.
    pub(crate) fn referred_bytes_max(&self) -> u64 {
        self.cache.capacity_bytes() / 8
    }

    /// Connections that are open.
    #[cfg(test)]
    pub(crate) fn connection_count(&self) -> u32 {
        self.connection_count
    }

    /// Whether no shard of the node has a connection: until then this one's blocks may be asked for.
    pub(crate) fn is_node_drained(&self) -> bool {
        self.shared.connection_count.load(Ordering::Relaxed) == 0
    }

    /// Whether the passing of time may mean something: then ticks are wanted.
    pub(crate) fn needs_ticks(&self) -> bool {
        self.deadline_count > 0
            || self.draining
            || self.limits.idle_timeout_ms > 0 && self.connection_count > 0
            || self.is_restless
    }

    /// When time means something though no ticks are wanted: the end of the first lease.
    pub(crate) fn wakes_at(&self) -> Option<u64> {
        self.leases.next_end()
    }

    /// This shard's counters, with the gauges brought up to date.
    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.counters[self.shard as usize]
    }

    /// Writes the gauges that are kept elsewhere while the shard is busy.
    pub(crate) fn publish_gauges(&self) {
        let counters = self.counters();
        counters.block_count.set(u64::from(self.cache.block_count()));
        counters.used_bytes.set(self.cache.used_bytes());
        counters.capacity_bytes.set(self.cache.capacity_bytes());
        counters.evicted_count.set(self.cache.evicted_count());
        counters.summed_bytes.set(self.cache.summed_bytes());
        counters.pinned_count.set(u64::from(self.cache.kept_count()));
        counters.pinned_bytes.set(self.cache.kept_bytes());
        counters.leased_bytes.set(self.leases.bytes());
    }

    #[inline]
    fn connection(&mut self, token: Token) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(token.index as usize)?.as_mut()?;
        (connection.token == token).then_some(connection)
    }

    fn on_received(&mut self, now: u64, token: Token, bytes: &[u8], actions: &mut Vec<Action>) {
        let Some(connection) = self.connection(token) else { return };
        if connection.phase >= Phase::Draining {
            return;
        }
        if !connection.sending {
            // Of a client that takes nothing, what it asks is no sign of life.
            connection.active_at = now;
        }
        let before = connection.stash.len();
        if connection.stash.is_empty() && !connection.paused {
            // The common case: whole frames, read in place from the receive buffer.
            self.look_ahead(bytes);
            let used = self.take_frames(now, token, bytes, actions);
            if let Some(connection) = self.connection(token) {
                connection.stash.extend_from_slice(&bytes[used..]);
            }
        } else {
            connection.stash.extend_from_slice(bytes);
            self.take_stash(now, token, actions);
        }
        let length = self.count_stash(token, before);
        // However many shards there are, a few connections may be paused on each.
        let stashes_max = (STASHES_MAX / self.shared.counters.len()).max(2 * STASH_MAX);
        if length > STASH_MAX || (length > 0 && self.stashed > stashes_max) {
            tracing::warn!("close a connection that has piled up {length} bytes of requests");
            self.close(token, actions);
        }
    }

    /// Brings the sum of the stashes up to date after one that had `before` bytes may have changed;
    /// returns its length now.
    fn count_stash(&mut self, token: Token, before: usize) -> usize {
        let length = self.connection(token).map_or(0, |connection| connection.stash.len());
        self.stashed = self.stashed - before + length;
        length
    }

    /// Takes the frames that are in the stash, unless the connection is paused.
    fn take_stash(&mut self, now: u64, token: Token, actions: &mut Vec<Action>) {
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
            stash.drain(..used);
            stash.shrink_to(frame::HEADER_SIZE);
            connection.stash = stash;
        }
    }

    /// Takes whole frames from the front of `bytes` until a limit is reached; returns the bytes used.
    fn take_frames(
        &mut self,
        now: u64,
        token: Token,
        bytes: &[u8],
        actions: &mut Vec<Action>,
    ) -> usize {
        let mut used = 0;
        loop {
            let (count_max, asked_max) =
                (self.limits.requests_in_flight_max, self.limits.bytes_in_flight_max);
            let body_length_max = self.limits.body_length_max;
            let Some(connection) = self.connection(token) else { return bytes.len() };
            if connection.phase >= Phase::Draining {
                return bytes.len();
            }
            let rest = &bytes[used..];
            let Some(head) = rest.first_chunk() else { return used };
            if connection.in_flight >= count_max || connection.asked >= asked_max {
                connection.paused = true;
                actions.push(Action::PauseReceive(token));
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

    /// Answers bytes that are no frame, then closes: where the next frame begins is not known.
    fn refuse_stream(
        &mut self,
        now: u64,
        token: Token,
        head: &[u8; frame::HEADER_SIZE],
        error: FrameError,
        actions: &mut Vec<Action>,
    ) {
        self.counters().bad_frame_count.add(1);
        tracing::debug!("close a connection: {error}");
        // The request id is told if the header can be trusted, that is if only a length is wrong.
        let header = Header::decode(head).unwrap_or(Header::request(Op::Ping, 0, 0));
        self.take_and_fail(token, &header, error.status(), &error.to_string(), actions);
        if let Some(connection) = self.connection(token) {
            connection.phase = Phase::Draining;
            connection.active_at = now;
        }
    }

    /// Counts a request and answers it with an error.
    fn take_and_fail(
        &mut self,
        token: Token,
        header: &Header,
        status: Status,
        message: &str,
        actions: &mut Vec<Action>,
    ) {
        let part = if is_in_parts(header.op) { frame::PART_ALL } else { 0 };
        let Some(connection) = self.connection(token) else { return };
        connection.take(0);
        let requester =
            Requester { shard: self.shard, token, header: *header, part, asked: 0, deadline: None };
        self.fail(&requester, status, message, actions);
    }

    /// Answers a request that was taken with an error, wherever its connection is.
    fn fail(
        &mut self,
        requester: &Requester,
        status: Status,
        message: &str,
        actions: &mut Vec<Action>,
    ) {
        let counters = self.counters();
        match status {
            Status::Busy => counters.busy_count.add(1),
            // Whoever looks ahead expects it.
            Status::NotCached => (),
            _ => counters.error_count.add(1),
        }
        if requester.shard != self.shard {
            let mail = Mail::Failed { requester: *requester, status, message: message.to_owned() };
            actions.push(Action::Post(requester.shard, mail));
            return;
        }
        let mut header = reply_header(&requester.header, requester.part, status);
        if status == Status::Busy {
            header.budget_ms = BUSY_RETRY_MS;
        }
        let message = message[..message.floor_char_boundary(MESSAGE_MAX)].to_owned();
        self.push_head(
            requester,
            |head| frame::encode(head, header, &ErrorReply { message }),
            actions,
        );
    }

    /// Adds a reply without payload to the requester's connection.
    fn push_head(
        &mut self,
        requester: &Requester,
        encode: impl FnOnce(&mut Vec<u8>),
        actions: &mut Vec<Action>,
    ) {
        let Some(connection) = self.connection(requester.token) else { return };
        connection.building.push_head(requester.asked, encode);
        ask_to_send(connection, actions);
    }

    /// Adds a reply whose bytes another shard pinned.
    fn on_served(&mut self, served: Served, actions: &mut Vec<Action>) {
        let Served { requester, entry, owner, sums, segments } = served;
        let Some(connection) = self.connection(requester.token) else {
            actions.push(Action::Post(owner, Mail::Release(entry)));
            return;
        };
        let length: usize = segments.iter().map(|segment| segment.length).sum();
        let mut header = reply_header(&requester.header, requester.part, Status::Ok);
        header.payload_length = length as u32;
        connection.building.push_read(
            header,
            &sums,
            &segments,
            Pin::Remote { owner, entry },
            requester.asked,
        );
        ask_to_send(connection, actions);
    }

    fn on_sent(
        &mut self,
        now: u64,
        token: Token,
        batch: Batch,
        (ok, is_last): (bool, bool),
        actions: &mut Vec<Action>,
    ) {
        self.release_pins(&batch, actions);
        let (count_max, asked_max) =
            (self.limits.requests_in_flight_max, self.limits.bytes_in_flight_max);
        let Some(connection) = self.connection(token) else { return };
        connection.sending &= !is_last;
        connection.active_at = now;
        connection.in_flight -= batch.reply_count;
        connection.asked -= batch.asked;
        connection.keep(batch);
        if !ok {
            self.close(token, actions);
            return;
        }
        if !connection.building.is_empty() {
            ask_to_send(connection, actions);
        }
        let resume =
            connection.paused && connection.in_flight < count_max && connection.asked < asked_max;
        if resume {
            if let Some(connection) = self.connection(token) {
                connection.paused = false;
                let before = connection.stash.len();
                self.take_stash(now, token, actions);
                self.count_stash(token, before);
            }
            if let Some(connection) = self.connection(token)
                && !connection.paused
            {
                actions.push(Action::ResumeReceive(token));
            }
        }
        self.finish_if_drained(now, token, actions);
    }

    /// Gives back what a batch pinned, here and on other shards.
    fn release_pins(&mut self, batch: &Batch, actions: &mut Vec<Action>) {
        for pin in &batch.pins {
            match *pin {
                Pin::Local(entry) => self.cache.unpin(entry),
                Pin::Remote { owner, entry } => {
                    actions.push(Action::Post(owner, Mail::Release(entry)))
                }
            }
        }
    }

    fn on_receive_ended(
        &mut self,
        now: u64,
        token: Token,
        by_client: bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(connection) = self.connection(token) else { return };
        connection.active_at = now;
        // What is read after our own shutdown is no word of the client's.
        connection.client_ended |= by_client && connection.phase < Phase::Closed;
        match connection.phase {
            // A client that shut its sending side still gets the replies it waits for.
            Phase::Open if connection.in_flight > 0 => connection.phase = Phase::HalfClosed,
            Phase::HalfClosed | Phase::Draining if connection.in_flight > 0 => (),
            _ => self.close(token, actions),
        }
    }

    /// Goes on with closing, once nothing is in flight.
    fn finish_if_drained(&mut self, now: u64, token: Token, actions: &mut Vec<Action>) {
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

    fn close(&mut self, token: Token, actions: &mut Vec<Action>) {
        let Some(connection) = self.connection(token) else { return };
        if connection.phase != Phase::Closed {
            connection.phase = Phase::Closed;
            actions.push(Action::Close(token));
        }
    }

    fn on_closed(&mut self, token: Token, actions: &mut Vec<Action>) {
        let Some(connection) = self.connection(token) else { return };
        let unsent = std::mem::take(&mut connection.building);
        let before = std::mem::take(&mut connection.stash).len();
        self.count_stash(token, before);
        self.release_pins(&unsent, actions);
        self.end_leases_of(token);
        self.connections[token.index as usize] = None;
        self.generations[token.index as usize] = (token.generation + 1) % GENERATION_COUNT;
        self.free_connections.push(token.index);
        self.connection_count -= 1;
        self.shared.connection_count.fetch_sub(1, Ordering::Relaxed);
        self.counters().connection_count.set(u64::from(self.connection_count));
    }

    fn on_mail(&mut self, now: u64, mail: Mail, actions: &mut Vec<Action>) {
        match mail {
            Mail::Read { requester, range } => self.find(now, &requester, &range, actions),
            Mail::Served(served) => self.on_served(served, actions),
            Mail::Failed { requester, status, message } => {
                self.fail(&requester, status, &message, actions)
            }
            Mail::Release(entry) => self.cache.unpin(entry),
            Mail::Reply { requester, frame } => {
                self.push_head(&requester, |head| head.extend_from_slice(&frame), actions);
            }
            Mail::Filled { key, version, is_pinned, result } => {
                self.on_filled(key, version, is_pinned, result, actions);
            }
            Mail::Ensure { key, version, from, reply } => self.ensure(key, version, from, reply),
            Mail::Drop { file, block_count, reply } => self.on_drop(file, block_count, &reply),
            Mail::Enumerate { first, count, reply } => {
                // Whoever asked may have gone.
                let _ = reply.try_send(self.cache.enumerate(first, count));
            }
            Mail::Keep { blocks, wanted } => {
                for (entry, key) in blocks {
                    self.cache.keep(entry, &key, wanted);
                }
            }
            Mail::Shutdown => self.on_shutdown(now, actions),
        }
    }

    fn on_shutdown(&mut self, now: u64, actions: &mut Vec<Action>) {
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

    fn on_tick(&mut self, now: u64, actions: &mut Vec<Action>) {
        self.expire_waiters(now, actions);
        self.expire_leases(now);
        self.is_restless = false;
        for token in self.tokens() {
            let limits = &self.limits;
            let (send_timeout, idle_timeout) = (limits.send_timeout_ms, limits.idle_timeout_ms);
            let linger_ms = if self.draining { LINGER_DRAINING_MS } else { LINGER_MS };
            let Some(connection) = self.connection(token) else { continue };
            let waits = connection.sending || connection.phase != Phase::Open;
            let quiet_ms = now.saturating_sub(connection.active_at);
            let stalled = connection.sending && send_timeout > 0 && quiet_ms > send_timeout;
            let idle = connection.in_flight == 0 && idle_timeout > 0 && quiet_ms > idle_timeout;
            let lingered = connection.phase == Phase::Lingering && quiet_ms > linger_ms;
            self.is_restless |= waits;
            if stalled {
                tracing::warn!("close a connection that took no byte for {quiet_ms} ms");
            }
            if stalled || idle || lingered {
                self.close(token, actions);
            }
        }
    }

    fn tokens(&self) -> Vec<Token> {
        self.connections.iter().flatten().map(|connection| connection.token).collect()
    }
}

/// Tells the runtime once a turn that the connection has something to send.
#[inline]
fn ask_to_send(connection: &mut Connection, actions: &mut Vec<Action>) {
    if !connection.sending && !connection.send_asked && connection.phase < Phase::Closed {
        connection.send_asked = true;
        actions.push(Action::Send(connection.token));
    }
}

/// Whether a request of this operation is answered range by range.
fn is_in_parts(op: u8) -> bool {
    op == Op::ReadMany as u8 || op == Op::Lease as u8
}

/// A block of this shard that was found.
#[derive(Clone, Copy)]
struct Hit {
    entry: EntryIndex,
    block_length: u32,
}

#[cfg(test)]
mod allocations;
#[cfg(test)]
mod tests;
