//! One shard: its connections, its cache, and what happens to a request.
//!
//! ```text
//!  Event ──► Worker::handle(now, event, actions) ──► Action ──► runtime
//! ```
//!
//! Replies gather in their connections until [`Event::TurnEnd`]; then each connection with some gets one
//! [`Action::Send`], which carries all of them.
//!
//! Owns all state of the shard; nothing here waits, reads a clock or makes a system call. Always holds:
//! every request that was taken is answered once, or its connection is closed; a hit is answered within
//! the call that brought the request, without a task and without an allocation.
//! Modules: `life` begins and ends connections, `receive` cuts bytes into frames, `request` turns
//! frames into work, `read` finds blocks, `fill` brings them in, `lease` keeps them in place for
//! clients that read them there, `upload` passes writes on, `written` keeps what was written,
//! `flash` reads and writes disks, `turns` shares fills out between clients, `pressure` bounds what
//! replies hold that clients do not take.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_proto::frame::{self, Header};
use millrace_proto::message::ErrorReply;
use millrace_proto::{Op, Status};

use crate::cache::{Cache, EntryIndex};
use crate::cluster::handover::Progress;
use crate::connection::{Batch, Connection, Hold, Phase, Pin, ReceiveEnd};
use crate::files::FileTable;
use crate::flash::Flash;
use crate::mailbox::{Mail, Requester, Served, reply_header};
use crate::memory::Segment;
use crate::metrics::Counters;
use crate::ring::DiskJob;
use crate::side::SideQueue;
use crate::timings::HitTimes;
use crate::token::Token;

mod fill;
mod flash;
mod incoming;
mod lease;
mod life;
mod pressure;
mod prove;
mod read;
mod receive;
mod request;
mod turns;
mod upload;
mod written;

pub(crate) use life::Way;
pub(crate) use prove::Proofs;
pub(crate) use request::SERVER;

use incoming::Incoming;
use lease::Leases;
use pressure::Shares;
use prove::Nonces;
use turns::{Share, Turns};

/// How often the runtime looks at the time while something waits for it, in milliseconds.
pub(crate) const TICK_MS: u32 = 25;
/// Longest text of an error in bytes: what it repeats of a request may be as long as a body.
const MESSAGE_MAX: usize = 1024;
/// How long a client is to wait when the node is busy, in milliseconds. Guessed: a few reads of a local
/// disk.
const BUSY_RETRY_MS: u32 = 10;
/// Clients that may have fills under way before one has to wait for another's. Guessed.
const FILLS_OF_CLIENT: u64 = 4;

/// What happened.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// Bytes came in.
    Received { token: Token, bytes: &'a [u8] },
    /// No more bytes will come in.
    ReceiveEnded { token: Token, end: ReceiveEnd },
    /// A batch is with the socket, whole; or it failed and the connection is of no use.
    Sent { token: Token, batch: Batch, ok: bool, is_last: bool },
    /// The rest of a batch waits for another one to go with.
    Held { token: Token },
    /// A batch that was sent, with its accounts alone in `Sent`, is not read any more.
    Released { token: Token, batch: Batch },
    /// The rest that was held back is on its way, without another batch.
    Unheld { token: Token },
    /// The socket took a part of a batch, this many bytes.
    SentSome { token: Token, count: u64 },
    /// The socket is closed and no operation on it is under way.
    Closed { token: Token },
    /// A message from another shard or the side thread.
    Mail(Mail),
    /// A job with a file has ended.
    Disk { job: Box<DiskJob>, result: io::Result<()> },
    /// Time passed: look at deadlines.
    Tick,
    /// All that happened was told: what is to be sent is sent now.
    TurnEnd,
    /// The shard is about to sleep: when does it have to wake?
    Sleep,
}

/// What the runtime has to do. Replies and messages to other shards are moved, not boxed: no allocation.
#[derive(Debug)]
pub(crate) enum Action {
    /// Send these replies; they come back with [`Event::Sent`]. Measured as in `tests/profile.rs`, with 16 reads
    /// of 4 KiB a turn: 2,483 instructions a read, beside 2,469 where the runtime fetched the batch itself.
    Send(Token, Batch),
    /// Stop receiving: a limit is reached.
    PauseReceive(Token),
    /// Receive again.
    ResumeReceive(Token),
    /// Receive one buffer at a time on every connection, as long as [`Worker::is_crowded`].
    ReceiveGently,
    /// Everything was sent: end our side, so that the client sees that nothing more comes.
    FinishSending(Token),
    /// Close the socket, whatever is under way.
    Close(Token),
    /// Do this with a file; it comes back with [`Event::Disk`].
    Disk(Box<DiskJob>),
    /// Post a message to another shard.
    Post(u32, Mail),
    /// Bring a [`Event::Tick`] at this time, in the node's milliseconds, however little happens until then.
    WakeAt(u64),
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
    /// A client that takes no byte for this long is disconnected; 0 for never.
    pub send_timeout_ms: u64,
    /// A connection without a request for this long is closed; 0 for never.
    pub idle_timeout_ms: u64,
    /// How long a lease lasts; 0 for none at all.
    pub lease_ms: u32,
    /// Share of the shard's memory that may be leased.
    pub lease_percent: u32,
    /// Blocks that are on their way in for one connection at once.
    pub fills_of_client_max: u32,
    /// Share of the shard's memory that blocks of pinned paths may hold.
    pub pin_percent: u32,
}

/// What the runtime has to know of its worker. None of it changes.
pub(crate) struct Terms {
    /// Number of the shard.
    pub shard: u32,
    /// What is the same for every shard.
    pub shared: Arc<Shared>,
    /// Most bytes of blocks that the kernel may read after their replies count as sent.
    pub referred_bytes_max: u64,
}

impl Terms {
    /// Returns the shard's counters.
    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.counters[self.shard as usize]
    }

    /// Returns how long the shard's hits take.
    pub(crate) fn hit_times(&self) -> &HitTimes {
        &self.shared.hit_times[self.shard as usize]
    }

    /// True if no shard of the node has a connection: until then this one's blocks may be asked for.
    pub(crate) fn is_node_drained(&self) -> bool {
        self.shared.connection_count.load(Ordering::Relaxed) == 0
    }
}

/// What is the same for every shard of a node.
pub(crate) struct Shared {
    /// Files the node knows.
    pub files: Arc<FileTable>,
    /// Counters of all shards, in shard order.
    pub counters: Arc<[Counters]>,
    /// How long the hits of each shard take, in shard order.
    pub hit_times: Arc<[HitTimes]>,
    /// Addresses of all shards for `Hello`, in shard order.
    pub shard_addresses: Vec<String>,
    /// The same for connections over Unix sockets.
    pub local_addresses: Vec<String>,
    /// How members and administrators are recognised.
    pub proofs: Proofs,
    /// The seed of this node's challenges.
    pub seed: [u8; 32],
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
    /// The flash tier, if the node has disks for it.
    flash: Option<Flash>,
    /// Binary logarithm of the block size.
    block_shift: u32,
    connections: Vec<Option<Connection>>,
    /// Connections with replies since the last turn ended.
    to_send: Vec<Token>,
    free_connections: Vec<u32>,
    generations: Vec<u32>,
    connection_count: u32,
    incoming: Incoming,
    turns: Turns,
    leases: Leases,
    nonces: Nonces,
    /// Uploads that were begun.
    upload_count: u64,
    /// Time of the event that is handled, in the node's milliseconds.
    now: u64,
    /// Bytes of the blocks that are on their way in.
    filling_bytes: u64,
    /// Bytes of the memory that is lent for blocks which are being written, whole pages.
    lent_bytes: u64,
    /// Waiters that have a deadline: while there are some, ticks are wanted.
    deadline_count: usize,
    /// True if a miss whose turn it is waits for room in the shard: no other overtakes it.
    is_full_of_fills: bool,
    draining: bool,
    /// True if something happened since a tick found no connection that waits for time to pass, so that
    /// a sleep does not have to look at all of them.
    is_restless: bool,
    /// Bytes in the stashes of all connections.
    stashed: usize,
    /// Bytes of blocks that were copied into replies which are not sent yet.
    copied: u64,
    shares: Shares,
    /// Shortages of all shards up to the last tick.
    short_count: u64,
    /// Reused for every reply, so that a hit allocates nothing.
    checksums: Vec<u32>,
    segments: Vec<Segment>,
    payload: Vec<u8>,
}

impl Worker {
    /// Makes shard number `shard`, with this part of the memory.
    pub(crate) fn new(
        shard: u32,
        shared: Arc<Shared>,
        limits: WorkerLimits,
        side: SideQueue,
        cache: Cache,
        flash: Option<Flash>,
    ) -> Worker {
        let block_size = shared.block_size;
        let block_shift = block_size.trailing_zeros();
        let nonces = Nonces::new(&shared.seed, shard);
        let leases = Leases::new(cache.capacity_bytes(), limits.lease_percent);
        let bytes = fill::filling_max(cache.capacity_bytes()) / FILLS_OF_CLIENT;
        let share = Share { count: limits.fills_of_client_max, bytes };
        let shard_count = shared.counters.len();
        let shares = Shares::new(cache.capacity_bytes(), shard_count, block_size, &limits);
        Worker {
            shard,
            shared,
            limits,
            side,
            cache,
            flash,
            block_shift,
            connections: Vec::new(),
            to_send: Vec::new(),
            free_connections: Vec::new(),
            generations: Vec::new(),
            connection_count: 0,
            incoming: Incoming::default(),
            turns: Turns::new(share, block_size),
            leases,
            nonces,
            upload_count: 0,
            now: 0,
            filling_bytes: 0,
            lent_bytes: 0,
            deadline_count: 0,
            is_full_of_fills: false,
            draining: false,
            is_restless: false,
            stashed: 0,
            copied: 0,
            shares,
            short_count: 0,
            checksums: Vec::new(),
            segments: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// Hands out what the runtime goes by, once. Slow readers far away must not hold all of the memory,
    /// so an eighth of it may be read by reference.
    pub(crate) fn terms(&self) -> Terms {
        Terms {
            shard: self.shard,
            shared: Arc::clone(&self.shared),
            referred_bytes_max: self.cache.capacity_bytes() / 8,
        }
    }

    /// Takes an event and queues what to do about it.
    pub(crate) fn handle(&mut self, now: u64, event: Event<'_>, actions: &mut Vec<Action>) {
        self.now = now;
        self.is_restless |= !matches!(event, Event::TurnEnd | Event::Sleep);
        match event {
            Event::Received { token, bytes } => self.on_received(now, token, bytes, actions),
            Event::ReceiveEnded { token, end } => self.on_receive_ended(now, token, end, actions),
            Event::Sent { token, batch, ok, is_last } => {
                self.on_sent(now, token, batch, ok, is_last, actions)
            }
            Event::Held { token } => {
                if let Some(connection) = find_connection(&mut self.connections, token) {
                    connection.sending = false;
                    connection.active_at = now;
                    if !connection.building.is_empty() {
                        ask_to_send(connection, &mut self.to_send);
                    }
                }
            }
            Event::Unheld { token } => {
                if let Some(connection) = self.connection(token) {
                    connection.sending = true;
                }
            }
            Event::Released { token, batch } => {
                self.release_pins(&batch, actions);
                if let Some(connection) = self.connection(token) {
                    connection.pinned -= batch.pinned;
                    connection.keep(batch);
                    self.resume(now, token, actions);
                }
            }
            Event::SentSome { token, count } => {
                if let Some(connection) = self.connection(token) {
                    connection.active_at = now;
                    connection.taken += count;
                }
            }
            Event::Closed { token } => self.on_closed(token, actions),
            Event::Mail(mail) => self.on_mail(now, mail, actions),
            Event::Disk { job, result } => self.on_disk(*job, result, actions),
            Event::Tick => {
                self.publish_gauges();
                self.on_tick(now, actions);
            }
            Event::TurnEnd => {
                self.work_on_disks(now, actions);
                self.end_turn(now, actions);
            }
            Event::Sleep => {
                self.publish_gauges();
                actions.extend(self.wakes_at(now).map(Action::WakeAt));
            }
        }
    }

    /// Hands over the replies that gathered in this turn.
    fn end_turn(&mut self, now: u64, actions: &mut Vec<Action>) {
        for token in self.to_send.drain(..) {
            let connection = find_connection(&mut self.connections, token);
            if let Some(batch) = connection.and_then(|connection| connection.next_batch(now)) {
                actions.push(Action::Send(token, batch));
            }
        }
    }

    /// Returns the number of connections that are open.
    #[cfg(test)]
    pub(crate) fn connection_count(&self) -> u32 {
        self.connection_count
    }

    /// True if the passing of time may mean something: then ticks are wanted.
    fn needs_ticks(&self) -> bool {
        self.deadline_count > 0
            || self.draining
            || self.limits.idle_timeout_ms > 0 && self.connection_count > 0
            || self.is_restless
            || self.turns.waiting_count() > 0
            || self.flash.as_ref().is_some_and(Flash::is_waiting)
    }

    /// Returns when time means something next: at the next tick, or else at the end of the first lease.
    fn wakes_at(&self, now: u64) -> Option<u64> {
        if self.needs_ticks() { Some(now + u64::from(TICK_MS)) } else { self.leases.next_end() }
    }

    /// Returns this shard's counters.
    fn counters(&self) -> &Counters {
        &self.shared.counters[self.shard as usize]
    }

    /// Writes the gauges that are kept elsewhere while the shard is busy.
    fn publish_gauges(&self) {
        let counters = self.counters();
        counters.block_count.set(u64::from(self.cache.block_count()));
        counters.used_bytes.set(self.cache.used_bytes());
        counters.capacity_bytes.set(self.cache.capacity_bytes());
        counters.evicted_count.set(self.cache.evicted_count());
        counters.summed_bytes.set(self.cache.summed_bytes());
        counters.pinned_count.set(u64::from(self.cache.kept_count()));
        counters.pinned_bytes.set(self.cache.kept_bytes());
        counters.leased_bytes.set(self.leases.bytes());
        counters.in_use_bytes.set(self.cache.in_use_bytes());
        if let Some(flash) = &self.flash {
            counters.flash_run_count.set(flash.run_count());
            counters.flash_capacity_bytes.set(flash.capacity_bytes());
            counters.flash_index_bytes.set(flash.index_bytes());
            counters.flash_out_count.set(flash.out_count());
        }
    }

    #[inline]
    fn connection(&mut self, token: Token) -> Option<&mut Connection> {
        find_connection(&mut self.connections, token)
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
        let requester = Requester { part, ..self.requester(token, header, None) };
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
            // A caller that looks ahead expects it.
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
        self.push_head(requester, |head| frame::encode(head, header, &ErrorReply { message }));
    }

    /// Adds a reply without payload to the requester's connection.
    fn push_head(&mut self, requester: &Requester, encode: impl FnOnce(&mut Vec<u8>)) {
        let connection = find_connection(&mut self.connections, requester.token);
        let Some(connection) = connection else { return };
        connection.count_answer(requester);
        connection.building.push_head(requester.asked, encode);
        ask_to_send(connection, &mut self.to_send);
    }

    /// Adds a reply whose bytes another shard pinned.
    fn on_served(&mut self, served: Served, actions: &mut Vec<Action>) {
        let Served { requester, entry, owner, pinned: bytes, sums, segments } = served;
        let connection = find_connection(&mut self.connections, requester.token);
        let Some(connection) = connection else {
            actions.push(Action::Post(owner, Mail::Release(entry)));
            return;
        };
        let length: usize = segments.iter().map(|segment| segment.length).sum();
        let mut header = reply_header(&requester.header, requester.part, Status::Ok);
        header.payload_length = length as u32;
        header.flags |= requester.checksums(0).0;
        connection.count_answer(&requester);
        connection.pinned += bytes;
        let hold = Hold { pin: Pin::Remote { owner, entry }, bytes };
        connection.building.push_read(header, &sums, &segments, hold, requester.asked);
        ask_to_send(connection, &mut self.to_send);
    }

    fn on_sent(
        &mut self,
        now: u64,
        token: Token,
        batch: Batch,
        ok: bool,
        is_last: bool,
        actions: &mut Vec<Action>,
    ) {
        self.release_pins(&batch, actions);
        let connection = find_connection(&mut self.connections, token);
        let Some(connection) = connection else { return };
        connection.sending &= !is_last;
        connection.pinned -= batch.pinned;
        connection.active_at = now;
        connection.in_flight -= batch.reply_count;
        connection.asked -= batch.asked;
        connection.keep(batch);
        if !ok {
            self.close(token, actions);
            return;
        }
        if !connection.building.is_empty() {
            ask_to_send(connection, &mut self.to_send);
        }
        self.resume(now, token, actions);
        self.finish_if_drained(now, token, actions);
    }

    /// Goes on with a connection that is paused, if it has room and is not closed.
    fn resume(&mut self, now: u64, token: Token, actions: &mut Vec<Action>) {
        let is_paused = self
            .connection(token)
            .is_some_and(|connection| connection.paused && connection.phase < Phase::Closed);
        if !is_paused || self.is_full(token) {
            return;
        }
        let Some(connection) = self.connection(token) else { return };
        connection.paused = false;
        let before = connection.stash.len();
        self.take_rest(now, token, actions);
        self.take_stash(now, token, actions);
        self.count_stash(token, before);
        if let Some(connection) = self.connection(token)
            && !connection.paused
        {
            actions.push(Action::ResumeReceive(token));
        }
    }

    /// Gives back what a batch pinned, here and on other shards.
    fn release_pins(&mut self, batch: &Batch, actions: &mut Vec<Action>) {
        self.copied -= batch.copied;
        for pin in &batch.pins {
            match *pin {
                Pin::Local(entry) => self.cache.unpin(entry),
                Pin::Remote { owner, entry } => {
                    actions.push(Action::Post(owner, Mail::Release(entry)))
                }
            }
        }
    }

    /// Counts a `Ring` that is answered.
    fn count_ring(&mut self, requester: &Requester) {
        if requester.header.op == Op::Ring as u8
            && let Some(connection) = self.connection(requester.token)
        {
            connection.ring_count = connection.ring_count.saturating_sub(1);
        }
    }

    fn on_mail(&mut self, now: u64, mail: Mail, actions: &mut Vec<Action>) {
        match mail {
            Mail::Read { requester, range } => self.find(now, &requester, &range, actions),
            Mail::Served(served) => self.on_served(served, actions),
            Mail::Failed { requester, status, message } => {
                self.count_ring(&requester);
                self.fail(&requester, status, &message, actions)
            }
            Mail::Release(entry) => self.cache.unpin(entry),
            Mail::Reply { requester, frame } => {
                self.count_ring(&requester);
                self.push_head(&requester, |head| head.extend_from_slice(&frame));
            }
            Mail::Filled { run, stay, result } => {
                self.on_filled(run, stay, result, actions);
            }
            Mail::Ensure { key, version, from, reply } => {
                self.ensure(key, version, from, reply, actions);
            }
            Mail::Lend(loan) => self.on_lend(loan),
            Mail::Written(written) => self.on_written(*written),
            Mail::Unlent { blank, is_lost } => self.on_unlent(blank, is_lost),
            Mail::Drop(job) => self.on_drop(job, actions),
            Mail::Which { file, version, blocks, reply } => {
                // The caller may have gone.
                let _ = reply.try_send(self.cache.whole_blocks(file, version, blocks));
            }
            Mail::Enumerate { first, count, reply } => {
                // The caller may have gone.
                let _ = reply.try_send(self.cache.enumerate(first, count));
            }
            Mail::Keep { blocks, wanted } => {
                for (entry, key) in blocks {
                    self.cache.keep(entry, &key, wanted);
                }
            }
            Mail::Gone { shard, token } => {
                self.forget_misses(shard, token);
                self.forget_waiters(Some((shard, token)));
            }
            Mail::LoadsGone => self.forget_waiters(None),
            Mail::Overdue { run, message } => self.on_overdue(run, message, actions),
            Mail::Shutdown => self.on_shutdown(now, actions),
        }
    }
}

/// Returns the connection of this name, unless that is closed and its place perhaps another's. Beside
/// [`Worker::connection`] for what also needs other parts of the worker.
#[inline]
fn find_connection(
    connections: &mut [Option<Connection>],
    token: Token,
) -> Option<&mut Connection> {
    let connection = connections.get_mut(token.index as usize)?.as_mut()?;
    (connection.token == token).then_some(connection)
}

/// Notes once a turn that the connection has something to send.
#[inline]
fn ask_to_send(connection: &mut Connection, to_send: &mut Vec<Token>) {
    if !connection.sending && !connection.send_asked {
        connection.send_asked = true;
        to_send.push(connection.token);
    }
}

/// True if a request of this operation is answered range by range.
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
