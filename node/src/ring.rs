//! The raw io_uring of a shard: accept, receive and send, reads and writes of disks, and nothing that blocks.
//!
//! ```text
//!   provided buffers (one ring, one slab)          send slots (one for each connection)
//!  ┌────┬────┬────┬────┐ kernel takes one for     ┌──────────────────────────────────┐
//!  │ 0  │ 1  │ 2  │ …  │ each receive; we give    │ batch (owned) · iovecs · msghdr  │
//!  └────┴────┴────┴────┘ it back when it is read  └──────────────────────────────────┘
//! ```
//!
//! Owns the ring, the receive buffers and every batch that is being sent. Always holds: memory that a
//! submitted operation refers to stays where it is until its completion was seen. The caller hands a
//! batch over by value and gets it back with the completion; blocks of the arena that it points to are
//! pinned for as long. What the bytes mean is left to the worker.
//!
//! Needs Linux 6.0: provided buffer rings (5.19) and multishot receive (6.0). Uses DEFER_TASKRUN where the
//! kernel has it (6.1).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use io_uring::types::{CancelBuilder, Fd, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use crate::connection::{Batch, RECEIVE_BUFFER_SIZE};
use crate::token::{GENERATION_COUNT, Token};

mod buffers;
mod disk;
mod reference;
mod send;

pub(crate) use buffers::Buffer;
use buffers::{BUFFER_GROUP, Buffers};
use disk::DiskSlots;
pub(crate) use disk::{DiskJob, DiskWork};
use reference::References;
use send::SendSlot;

/// Entries of the submission queue. Derived: a turn submits at most a few for each ready connection;
/// a full queue is submitted early, so this bounds memory and not work.
const SUBMISSIONS: u32 = 1024;
/// Entries of the completion queue: large, because an overflow ends multishot operations.
const COMPLETIONS: u32 = 8192;
/// Turns that a rest is held back for more to send with it, while there is other work. Guessed: one to
/// hear from the client, and one to answer.
const HELD_TURNS: u8 = 2;
/// Emptied send slots that are kept. Guessed: connections that send at the same time.
const SPARE_SENDS_MAX: usize = 64;

/// What a completion belongs to, in the top byte of its user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Operation {
    Accept = 1,
    Receive = 2,
    Send = 3,
    Cancel = 4,
    Tick = 5,
    Alarm = 6,
    SendByReference = 7,
    Disk = 8,
}

/// A completed operation.
#[derive(Debug)]
pub(crate) enum Completion {
    /// A connection was accepted by this listener, or accepting failed. `armed` is false when the
    /// listener has to be armed again.
    Accepted { listener: u32, result: io::Result<OwnedFd>, armed: bool },
    /// Bytes came in, in this buffer. `armed` is false when receiving has to be asked for again.
    Received { token: Token, buffer: Buffer, armed: bool },
    /// Receiving ended: no bytes (`Ok`) when the client is done, or an error.
    ReceiveEnded { token: Token, result: io::Result<()> },
    /// A batch was sent whole, or could not be. `is_last` if no other of this connection is under way
    /// or held back.
    Sent { token: Token, batch: Batch, result: io::Result<()>, is_last: bool },
    /// All but a small rest was sent, which is held back: another batch may be sent with it.
    Held { token: Token },
    /// A batch that was sent by reference, and of which [`Completion::Sent`] gave back only the
    /// accounts, is not read any more. `was_copied` if the kernel still made a copy.
    Released { token: Token, batch: Batch, was_copied: bool },
    /// Some of a batch was sent; the rest goes on by itself.
    SentSome { token: Token, count: u64 },
    /// The tick that was asked for.
    Tick,
    /// The alarm that was asked for.
    Alarm,
    /// A job with a file has ended.
    Disk { job: Box<DiskJob>, result: io::Result<()> },
}

/// How the kernel is asked to run completions.
#[derive(Clone, Copy, Debug)]
enum Setup {
    /// Within our own `enter`, for one submitter: no interrupts (Linux 6.1).
    Deferred,
    /// Whenever it likes.
    Plain,
}

fn build(setup: Setup) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_clamp().setup_cqsize(COMPLETIONS);
    if let Setup::Deferred = setup {
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    }
    builder.build(SUBMISSIONS)
}

/// What this kernel's ring can do.
pub(crate) struct Abilities {
    /// True if completions run within our own `enter`.
    pub(crate) is_deferred: bool,
    /// True if large replies can be sent by reference.
    pub(crate) can_refer: bool,
}

/// Finds out by making a ring as a shard does, and dropping it.
///
/// # Errors
/// As [`Ring::new`].
pub(crate) fn abilities(eventfd: &OwnedFd) -> io::Result<Abilities> {
    if let Ok(ring) = Ring::with(Setup::Deferred, eventfd, 1) {
        return Ok(Abilities { is_deferred: true, can_refer: ring.can_refer });
    }
    Ring::with(Setup::Plain, eventfd, 1)
        .map(|ring| Abilities { is_deferred: false, can_refer: ring.can_refer })
}

/// The ring.
pub(crate) struct Ring {
    ring: IoUring,
    /// Entries that found the submission queue full, in order: a few for each connection at most.
    waiting: VecDeque<squeue::Entry>,
    buffers: Buffers,
    /// Send slots by connection index.
    sends: Vec<Option<SendSlot>>,
    /// Connections whose send the kernel gave up for now.
    blocked_sends: Vec<u32>,
    /// Emptied slots, whose memory is used again.
    spare_sends: Vec<SendSlot>,
    references: References,
    disks: DiskSlots,
    /// Sends by reference that the kernel gave up for now.
    blocked_references: Vec<u32>,
    /// True if the kernel can send by reference.
    can_refer: bool,
    /// Connections with a rest that is held back, and turns since then.
    held: Vec<(Token, u8)>,
    /// A completion that comes behind another one of the same entry.
    follow_up: Option<Completion>,
    tick_interval: Box<Timespec>,
    alarm_interval: Box<Timespec>,
    completed: Vec<(u64, i32, u32)>,
    next_completed: usize,
    enter_count: u64,
}

impl Ring {
    /// Makes a ring for the calling thread, which alone may use it. It rings `eventfd` when something
    /// completes while notifications are on.
    ///
    /// # Errors
    /// If io_uring is not there, is switched off (`kernel.io_uring_disabled`, seccomp), or lacks what is
    /// needed; the error says so.
    pub(crate) fn new(eventfd: &OwnedFd, tick_ms: u32) -> io::Result<Ring> {
        match Ring::with(Setup::Deferred, eventfd, tick_ms) {
            // The kernel does not know the flags: everything works without them, more slowly.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                tracing::info!("no deferred task work in this kernel (Linux 6.1 has it)");
                Ring::with(Setup::Plain, eventfd, tick_ms)
            }
            result => result,
        }
    }

    fn with(setup: Setup, eventfd: &OwnedFd, tick_ms: u32) -> io::Result<Ring> {
        let explain = |error: io::Error| {
            let hint = match error.raw_os_error() {
                Some(libc::EPERM) => {
                    "io_uring is switched off: see sysctl kernel.io_uring_disabled, or the container's seccomp profile"
                }
                Some(libc::EINVAL) => {
                    "the kernel is too old: Linux 6.0 is the least, 6.1 is recommended"
                }
                Some(libc::ENOSYS) => "the kernel has no io_uring",
                Some(libc::ENOMEM) => "not enough memory may be locked: raise RLIMIT_MEMLOCK",
                _ => "see the error",
            };
            io::Error::new(error.kind(), format!("set up io_uring: {error} ({hint})"))
        };
        let ring = build(setup).map_err(explain)?;
        ring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        let buffers = Buffers::new(&ring).map_err(explain)?;
        let mut probe = io_uring::Probe::new();
        let can_refer = ring.submitter().register_probe(&mut probe).is_ok()
            && probe.is_supported(opcode::SendMsgZc::CODE);
        let tick_interval = Timespec::new().nsec(tick_ms * 1_000_000);
        let mut ring = Ring {
            ring,
            waiting: VecDeque::new(),
            buffers,
            sends: Vec::new(),
            blocked_sends: Vec::new(),
            spare_sends: Vec::new(),
            references: References::default(),
            disks: DiskSlots::default(),
            blocked_references: Vec::new(),
            can_refer,
            held: Vec::new(),
            follow_up: None,
            tick_interval: Box::new(tick_interval),
            alarm_interval: Box::new(Timespec::new()),
            completed: Vec::with_capacity(COMPLETIONS as usize),
            next_completed: 0,
            enter_count: 0,
        };
        ring.ring.completion().disable_eventfd();
        Ok(ring)
    }

    /// Accepts connections on a listening socket until an error.
    pub(crate) fn accept(&mut self, listener: u32, socket: BorrowedFd<'_>) {
        let entry = opcode::AcceptMulti::new(Fd(socket.as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        self.push(entry.build().user_data(user_data(Operation::Accept, listener, 0)));
    }

    /// Stops accepting on a listening socket.
    pub(crate) fn stop_accepting(&mut self, listener: u32) {
        self.cancel(user_data(Operation::Accept, listener, 0));
    }

    /// Receives on a connection until its end, an error, or a shortage of buffers.
    pub(crate) fn receive(&mut self, token: Token, socket: BorrowedFd<'_>) {
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), BUFFER_GROUP);
        self.push(entry.build().user_data(user_data(
            Operation::Receive,
            token.index,
            token.generation,
        )));
    }

    /// Receives one buffer. This is for a connection that may send much: a multishot receive would bring
    /// 32 buffers in a row, again and again, and cannot be cancelled before the socket is empty.
    pub(crate) fn receive_once(&mut self, token: Token, socket: BorrowedFd<'_>) {
        let fd = Fd(socket.as_raw_fd());
        let entry = opcode::Recv::new(fd, std::ptr::null_mut(), RECEIVE_BUFFER_SIZE as u32)
            .buf_group(BUFFER_GROUP)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.push(entry.user_data(user_data(Operation::Receive, token.index, token.generation)));
    }

    /// Stops receiving on a connection; bytes that came in before may still be reported.
    pub(crate) fn stop_receiving(&mut self, token: Token) {
        self.cancel(user_data(Operation::Receive, token.index, token.generation));
    }

    /// True if a batch of this many bytes and replies is better sent by reference, if that works: it is
    /// large, and the kernel is not reading too much already.
    pub(crate) fn may_refer(&self, batch: &Batch, bytes_max: u64) -> bool {
        self.can_refer
            && reference::is_worth_it(batch.length, batch.reply_count)
            && self.references.bytes() + batch.length <= bytes_max
    }

    /// Sends a batch without a copy. [`Completion::Sent`] gives its accounts back when the socket has
    /// taken it, [`Completion::Released`] the batch when the kernel does not read it any more.
    pub(crate) fn send_by_reference(&mut self, token: Token, socket: BorrowedFd<'_>, batch: Batch) {
        let slot = self.slot(token, socket, batch, true);
        let number = self.references.add(slot);
        self.submit_reference(number);
    }

    /// Submits what is left of a send by reference.
    fn submit_reference(&mut self, number: u32) {
        let slot = &mut self.references.get(number).slot;
        let entry = slot.entry(slot.left);
        self.push(entry.user_data(user_data(Operation::SendByReference, number, 0)));
    }

    /// Takes a slot with a batch in it.
    fn slot(
        &mut self,
        token: Token,
        socket: BorrowedFd<'_>,
        batch: Batch,
        by_reference: bool,
    ) -> SendSlot {
        let mut slot = self.spare_sends.pop().unwrap_or_else(SendSlot::empty);
        slot.left = batch.length;
        slot.batch = batch;
        slot.token = token;
        slot.fd = socket.as_raw_fd();
        slot.next_piece = 0;
        slot.next_offset = 0;
        slot.by_reference = by_reference;
        slot
    }

    /// Reads or writes a file. [`Completion::Disk`] gives the job back.
    pub(crate) fn work_on_disk(&mut self, job: Box<DiskJob>) {
        let (number, entries) = self.disks.begin(job);
        for entry in entries {
            self.push(entry.user_data(user_data(Operation::Disk, number, 0)));
        }
    }

    /// Returns the jobs with files that are under way.
    pub(crate) fn disk_jobs_in_flight(&self) -> usize {
        self.disks.count()
    }

    /// Sends a batch, behind the rest of the one before if that was held back. [`Completion::Sent`] gives
    /// it back. With `segment`, the bytes that a packet to this peer holds, a small rest may be held
    /// back in turn; 0 to send all.
    ///
    /// # Panics
    /// If something of this connection is on its way already.
    pub(crate) fn send(
        &mut self,
        token: Token,
        socket: BorrowedFd<'_>,
        batch: Batch,
        segment: u64,
    ) {
        let index = token.index as usize;
        if self.sends.len() <= index {
            self.sends.resize_with(index + 1, || None);
        }
        let slot = match self.sends[index].take() {
            None => self.slot(token, socket, batch, false),
            Some(mut slot) => {
                let place = self.held.iter().position(|(held, _)| *held == token);
                self.held.swap_remove(place.expect("one send at a time"));
                slot.left += batch.length;
                slot.second = Some(batch);
                slot
            }
        };
        let count = slot.worth_sending(segment);
        self.submit(slot, count);
    }

    /// Sends what is held back for two turns, or all of it; calls `sending` with each connection.
    pub(crate) fn send_held(&mut self, all: bool, mut sending: impl FnMut(Token)) {
        let mut index = 0;
        while index < self.held.len() {
            let (token, turns) = &mut self.held[index];
            *turns += 1;
            if !all && *turns < HELD_TURNS {
                index += 1;
                continue;
            }
            let token = *token;
            self.held.swap_remove(index);
            if let Some(slot) = self.sends[token.index as usize].take() {
                sending(token);
                let count = slot.left;
                self.submit(slot, count);
            }
        }
    }

    /// Sends what is held back of this connection.
    pub(crate) fn send_held_of(&mut self, token: Token) {
        self.held.retain(|(held, _)| *held != token);
        if let Some(slot) = self.sends[token.index as usize].take() {
            let count = slot.left;
            self.submit(slot, count);
        }
    }

    /// Asks for one [`Completion::Tick`] after the tick interval.
    pub(crate) fn tick(&mut self) {
        let entry = opcode::Timeout::new(&raw const *self.tick_interval);
        self.push(entry.build().user_data(user_data(Operation::Tick, 0, 0)));
    }

    /// Asks for one [`Completion::Alarm`] after this many milliseconds. One at a time.
    pub(crate) fn alarm(&mut self, after_ms: u64) {
        *self.alarm_interval =
            Timespec::new().sec(after_ms / 1000).nsec((after_ms % 1000) as u32 * 1_000_000);
        let entry = opcode::Timeout::new(&raw const *self.alarm_interval);
        self.push(entry.build().user_data(user_data(Operation::Alarm, 0, 0)));
    }

    /// Submits what was queued and lets the kernel run what is due, without waiting.
    ///
    /// # Errors
    /// As `io_uring_enter`; none that a retry would not heal is known.
    pub(crate) fn enter(&mut self) -> io::Result<()> {
        self.queue_waiting();
        let pending = {
            let mut submission = self.ring.submission();
            submission.sync();
            submission.len() as u32
        };
        self.enter_count += 1;
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: every queued entry refers to memory that this struct owns until the completion is seen.
        #[expect(unsafe_code, reason = "submitting to the kernel")]
        let entered =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(pending, 0, flags, None) };
        self.queue_waiting();
        match entered {
            Ok(_) => Ok(()),
            // EBUSY and EAGAIN: completions have to be taken first. EINTR: a signal.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EBUSY | libc::EAGAIN | libc::EINTR)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// True if entering would bring something: entries to submit, completions, or work that is due.
    pub(crate) fn has_work(&mut self) -> bool {
        let due = {
            let submission = self.ring.submission();
            !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
        };
        due || self.follow_up.is_some()
            || !self.waiting.is_empty()
            || self.next_completed < self.completed.len()
            || !self.ring.completion().is_empty()
    }

    /// Switches the eventfd on or off: on before sleeping, off while hot.
    pub(crate) fn notify(&mut self, on: bool) {
        let completion = self.ring.completion();
        if on { completion.enable_eventfd() } else { completion.disable_eventfd() }
    }

    /// Returns how often the kernel was entered.
    pub(crate) fn enter_count(&self) -> u64 {
        self.enter_count
    }

    /// Batches that are being sent.
    pub(crate) fn sends_in_flight(&self) -> usize {
        self.sends.iter().flatten().count() + self.references.count()
    }

    /// Takes the next completed operation. Call until `None`.
    pub(crate) fn next_completion(&mut self) -> Option<Completion> {
        if self.follow_up.is_some() {
            return self.follow_up.take();
        }
        loop {
            if self.next_completed == self.completed.len() {
                self.completed.clear();
                self.next_completed = 0;
                let completion = self.ring.completion();
                self.completed.extend(
                    completion.map(|entry| (entry.user_data(), entry.result(), entry.flags())),
                );
                if self.completed.is_empty() {
                    return None;
                }
            }
            let (user_data, result, flags) = self.completed[self.next_completed];
            self.next_completed += 1;
            if let Some(completion) = self.interpret(user_data, result, flags) {
                return Some(completion);
            }
        }
    }

    /// Returns the bytes of a receive buffer.
    pub(crate) fn bytes(&self, buffer: &Buffer) -> &[u8] {
        self.buffers.bytes(buffer)
    }

    /// Gives a receive buffer back to the kernel.
    pub(crate) fn recycle(&mut self, buffer: Buffer) {
        self.buffers.provide(buffer.index);
    }

    fn interpret(&mut self, user_data: u64, result: i32, flags: u32) -> Option<Completion> {
        let (kind, index, generation) = parts(user_data);
        let token = Token { index, generation };
        let armed = cqueue::more(flags);
        match kind {
            Operation::Accept => {
                let result = check(result).map(|fd| {
                    // SAFETY: the kernel just made this descriptor for us, and no other code knows it.
                    #[expect(unsafe_code, reason = "taking ownership of an accepted socket")]
                    unsafe {
                        <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd)
                    }
                });
                Some(Completion::Accepted { listener: index, result, armed })
            }
            Operation::Receive => {
                if let (Some(buffer), 1..) = (cqueue::buffer_select(flags), result) {
                    let buffer = Buffer { index: buffer, length: result as usize };
                    return Some(Completion::Received { token, buffer, armed });
                }
                if let Some(buffer) = cqueue::buffer_select(flags) {
                    self.buffers.provide(buffer);
                }
                Some(Completion::ReceiveEnded { token, result: check(result).map(|_| ()) })
            }
            Operation::Send => self.on_send(index, result),
            Operation::SendByReference => self.on_reference(index, result, flags),
            Operation::Tick => Some(Completion::Tick),
            Operation::Alarm => Some(Completion::Alarm),
            Operation::Cancel => None,
            Operation::Disk => {
                let (job, result) =
                    self.disks.end(index, check(result).map(|count| count as usize))?;
                Some(Completion::Disk { job, result })
            }
        }
    }

    /// Counts what was sent, and goes on with the rest, holds it back, or gives the batch back.
    fn on_send(&mut self, index: u32, result: i32) -> Option<Completion> {
        let mut slot =
            self.sends[index as usize].take().expect("the slot of a send under way is taken");
        let token = slot.token;
        let count = match check(result) {
            Ok(count) => count as u64,
            // A client that shut its sending side makes the socket look ready when it is full; after
            // 128 tries the kernel gives up. It is asked again with the next tick.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.sends[index as usize] = Some(slot);
                self.blocked_sends.push(index);
                return None;
            }
            // Too many descriptors are on their way to clients that do not take them: the reply goes
            // without one, and its client goes on without the memory.
            Err(error) if is_crowded(&error) && slot.batch.descriptor.is_some() => {
                slot.batch.descriptor = None;
                let count = slot.wanted;
                self.submit(slot, count);
                return None;
            }
            Err(error) => {
                if let Some(batch) = slot.second.take() {
                    let result = Err(error.kind().into());
                    self.follow_up = Some(Completion::Sent { token, batch, result, is_last: true });
                }
                let is_last = self.follow_up.is_none();
                let batch = slot.take_batch();
                self.keep(slot);
                return Some(Completion::Sent { token, batch, result: Err(error), is_last });
            }
        };
        let taken = count;
        let done = slot.advance(count);
        let sent = |batch, is_last| Completion::Sent { token, batch, result: Ok(()), is_last };
        let then = if slot.left == 0 {
            let batch = slot.take_batch();
            self.keep(slot);
            sent(batch, true)
        } else if slot.wanted > 0 {
            // The socket took less: the rest follows, whatever came meanwhile.
            let count = slot.wanted;
            self.submit(slot, count);
            Completion::SentSome { token, count: taken }
        } else {
            self.sends[index as usize] = Some(slot);
            self.held.push((token, 0));
            Completion::Held { token }
        };
        match done {
            None => Some(then),
            Some(batch) => {
                self.follow_up = Some(then);
                Some(sent(batch, false))
            }
        }
    }

    /// Keeps an emptied slot for the next send.
    fn keep(&mut self, slot: SendSlot) {
        if self.spare_sends.len() < SPARE_SENDS_MAX {
            self.spare_sends.push(slot);
        }
    }

    /// Handles a result of a send by reference, or a notification.
    fn on_reference(&mut self, number: u32, result: i32, flags: u32) -> Option<Completion> {
        let reference = self.references.get(number);
        let mut sent = None;
        if cqueue::notif(flags) {
            reference.notified(result);
        } else {
            if cqueue::more(flags) {
                reference.expect_notification();
            }
            let token = reference.slot.token;
            let result = match check(result) {
                Ok(count) => {
                    reference.slot.advance(count as u64);
                    if reference.slot.left > 0 {
                        self.submit_reference(number);
                        return Some(Completion::SentSome { token, count: count as u64 });
                    }
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked_references.push(number);
                    return None;
                }
                // The rest goes by copies, under the same number: earlier parts may still be read.
                Err(error) if reference.slot.by_reference && reference::is_curable(&error) => {
                    tracing::debug!("send by reference: {error}; copying instead");
                    reference.slot.by_reference = false;
                    self.submit_reference(number);
                    return None;
                }
                Err(error) => Err(error),
            };
            reference.sent();
            let batch = reference.slot.batch.accounts();
            sent = Some(Completion::Sent { token, batch, result, is_last: true });
        }
        let released = self.references.take_if_over(number).map(|(mut slot, was_copied)| {
            // Copies that we fell back to are as good a reason to stay with them.
            let was_copied = was_copied || !slot.by_reference;
            let (token, batch) = (slot.token, slot.take_batch());
            self.keep(slot);
            Completion::Released { token, batch, was_copied }
        });
        match sent {
            Some(sent) => {
                self.follow_up = released;
                Some(sent)
            }
            None => released,
        }
    }

    /// Submits the sends again that the kernel gave up.
    pub(crate) fn retry_sends(&mut self) {
        for index in std::mem::take(&mut self.blocked_sends) {
            if let Some(slot) = self.sends[index as usize].take() {
                let count = slot.wanted;
                self.submit(slot, count);
            }
        }
        for number in std::mem::take(&mut self.blocked_references) {
            self.submit_reference(number);
        }
    }

    /// Submits this many bytes of a send; it keeps its slot until it completes.
    fn submit(&mut self, mut slot: SendSlot, count: u64) {
        let Token { index, generation } = slot.token;
        let entry = slot.entry(count).user_data(user_data(Operation::Send, index, generation));
        self.sends[index as usize] = Some(slot);
        self.push(entry);
    }

    fn cancel(&mut self, target: u64) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::user_data(target));
        self.push(entry.build().user_data(user_data(Operation::Cancel, 0, 0)));
    }

    /// Queues an entry; when the queue is full it is submitted first. An entry that finds no room even
    /// then waits for the next time the ring is entered: the kernel may want completions to be taken
    /// before. If the kernel takes nothing any more, the loop of the shard has to learn of it.
    fn push(&mut self, entry: squeue::Entry) {
        if self.waiting.is_empty() && self.queue(&entry) {
            return;
        }
        // The loop enters again, and meets the same error.
        let _ = self.enter();
        if !(self.waiting.is_empty() && self.queue(&entry)) {
            self.waiting.push_back(entry);
        }
    }

    /// Puts entries that wait into the queue, as far as there is room.
    fn queue_waiting(&mut self) {
        while let Some(entry) = self.waiting.front() {
            let entry = entry.clone();
            if !self.queue(&entry) {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// Puts an entry into the submission queue. True if there was room.
    fn queue(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the entry refers to is owned by this struct until the completion is seen:
        // sockets are closed, send slots dropped and the ring itself left only afterwards.
        #[expect(unsafe_code, reason = "queueing an operation")]
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.is_ok()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // A kernel that still sends from a batch must find it: what is under way is never freed.
        let sends = self.sends.drain(..).flatten();
        for slot in sends.chain(self.references.drain()) {
            std::mem::forget(slot);
        }
    }
}

fn user_data(kind: Operation, index: u32, generation: u32) -> u64 {
    (kind as u64) << 56 | u64::from(generation % GENERATION_COUNT) << 32 | u64::from(index)
}

fn parts(user_data: u64) -> (Operation, u32, u32) {
    let kind = match (user_data >> 56) as u8 {
        1 => Operation::Accept,
        2 => Operation::Receive,
        3 => Operation::Send,
        4 => Operation::Cancel,
        5 => Operation::Tick,
        6 => Operation::Alarm,
        7 => Operation::SendByReference,
        8 => Operation::Disk,
        other => panic!("no operation of kind {other} was ever submitted"),
    };
    (kind, user_data as u32, (user_data >> 32) as u32 & (GENERATION_COUNT - 1))
}

/// True if no more descriptors may be on their way: `unix(7)`, ETOOMANYREFS.
fn is_crowded(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ETOOMANYREFS)
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

#[cfg(test)]
mod tests;
