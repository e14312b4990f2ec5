//! The loop of a shard: the only place where events meet the kernel.
//!
//! One pinned glommio executor for each core, and in it this loop, which drives the shard's raw ring.
//! While there is work the loop stays hot: it enters the ring, handles what completed and what came by
//! mail, and submits. When nothing came for a moment it switches the ring's eventfd on and lets the
//! executor sleep on it. It is the executor's only task, and is never interrupted.
//!
//! Always holds: before sleeping it looks once more at the ring and the mailbox, after both were told
//! to ring the eventfd, so nothing is missed; no socket is closed while an operation on it is under way.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use glommio::io::BufferedFile;
use millrace_proto::frame::{self, Header};
use millrace_proto::message::ErrorReply;
use millrace_proto::{Op, Status};
use rustix::net::{SendFlags, Shutdown, SocketAddrAny};
use rustix::time::ClockId;

use crate::access::Access;
use crate::config::ZeroCopy;
use crate::connection::{Batch, ReceiveEnd};
use crate::guests::{GuestPlace, Guests};
use crate::mailbox::{Mail, Mailbox, Mailboxes};
use crate::ring::{Completion, Ring};
use crate::token::Token;
use crate::worker::{Action, Event, TICK_MS, Terms, Way, Worker};

/// How long the loop stays hot without work. Guessed: a few times what waking a thread costs. At full
/// load 5 to 1000 us made no difference that could be measured.
const HOT: Duration = Duration::from_micros(50);
/// A turn of the loop that takes this many milliseconds is a stall: all connections of the shard wait
/// for it. Guessed: far longer than turns take that have a processor.
const STALL_MS: u64 = 10;
/// Smallest packets for which rests are held back. Guessed: those of loopback hold 65483 bytes, those
/// of a network at most 9000.
const SEGMENT_MIN: u32 = 32 << 10;
/// Sends of a connection between two looks at how much its packets hold.
const SENDS_PER_LOOK: u32 = 64;
/// How long a connection is quiet before its client's machine is asked whether it is still there, how
/// often it is asked again, and how often in all. Guessed: a machine that vanished is noticed within
/// 90 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// Messages taken from the mailbox in one turn, so that mail cannot keep the ring waiting.
const MAIL_PER_TURN: usize = 256;

/// A client's socket.
struct Socket {
    fd: OwnedFd,
    token: Token,
    /// Its place among those of its peer; None for an administrator.
    _place: Option<GuestPlace>,
    /// True if a receive is under way.
    receiving: bool,
    /// True if a receive is wanted: it is asked for again whenever one ends.
    wants_receive: bool,
    /// True if more may wait in the socket than the worker wants to have at once: one buffer at a time.
    gently: bool,
    sending: bool,
    /// True if the ring holds the rest of a reply back.
    holding: bool,
    closing: bool,
    /// Bytes that a packet to the client holds, if small rests are held back; else 0.
    segment: u64,
    /// Sends so far.
    send_count: u32,
    /// True if large replies leave without a copy, as far as is known.
    by_reference: bool,
}

/// The sockets that a shard listens at.
pub(crate) struct Listeners {
    /// For every client that reaches the port.
    pub(crate) tcp: Vec<OwnedFd>,
    /// For clients on this machine.
    pub(crate) local: Vec<OwnedFd>,
    /// The users that may connect there, if the system does not decide it.
    pub(crate) access: Option<Access>,
    /// For administrators.
    pub(crate) admin: Vec<OwnedFd>,
}

/// The limits a runtime keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RuntimeLimits {
    /// A client that takes no byte for this many milliseconds is disconnected; 0 for never.
    pub send_timeout_ms: u64,
    /// How long a shutdown waits for replies to be sent, in milliseconds.
    pub drain_timeout_ms: u64,
    /// When large replies leave by reference.
    pub zero_copy: ZeroCopy,
}

/// A shard and its ring.
pub(crate) struct Runtime {
    worker: Worker,
    terms: Terms,
    limits: RuntimeLimits,
    ring: Ring,
    /// What the shard sleeps on, until it runs.
    eventfd: Option<OwnedFd>,
    /// Listeners for TCP, then those for this machine alone, then those for administrators.
    listeners: Vec<OwnedFd>,
    /// Where the second and the third kind begin.
    ways: [usize; 2],
    /// The users that may connect to the second kind, if the system does not decide it.
    access: Option<Access>,
    mail: flume::Receiver<Mail>,
    mailboxes: Mailboxes,
    sockets: Vec<Option<Socket>>,
    /// Messages to each shard that found its mailbox full, and those after them, for the next turn.
    undelivered: Vec<VecDeque<Mail>>,
    actions: Vec<Action>,
    /// Those of the turn before, all done: its memory is used again.
    spare_actions: Vec<Action>,
    started: Instant,
    tick_armed: bool,
    alarm_armed: bool,
    ticked_at: u64,
    /// When the loop last came round, or woke up.
    turned_at: u64,
    /// When to stop, in the node's milliseconds, once a shutdown began.
    stop_at: Option<u64>,
    guests: Arc<Guests>,
    /// Listeners at which accepting failed for lack of descriptors: they are armed again with the next
    /// tick.
    accept_later: Vec<u32>,
}

/// How a shard ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Every reply in flight was sent.
    Drained,
    /// The time to drain ran out, and the remaining connections were cut.
    Cut,
}

impl Runtime {
    /// Ties a shard's parts together, on the thread that will run it.
    ///
    /// # Errors
    /// As [`Ring::new`].
    pub(crate) fn new(
        worker: Worker,
        sockets: Listeners,
        mail: flume::Receiver<Mail>,
        mailboxes: Mailboxes,
        started: Instant,
        limits: RuntimeLimits,
        guests: Arc<Guests>,
    ) -> io::Result<Runtime> {
        let terms = worker.terms();
        let mailbox = &mailboxes[terms.shard as usize];
        let Listeners { tcp: mut listeners, local, access, admin } = sockets;
        let ways = [listeners.len(), listeners.len() + local.len()];
        listeners.extend(local.into_iter().chain(admin));
        let eventfd = mailbox.eventfd().try_clone()?;
        let ring = Ring::new(mailbox.eventfd(), TICK_MS)?;
        let undelivered = mailboxes.iter().map(|_| VecDeque::new()).collect();
        Ok(Runtime {
            worker,
            terms,
            limits,
            ring,
            eventfd: Some(eventfd),
            listeners,
            ways,
            access,
            mail,
            mailboxes,
            sockets: Vec::new(),
            undelivered,
            actions: Vec::new(),
            spare_actions: Vec::new(),
            started,
            tick_armed: false,
            alarm_armed: false,
            ticked_at: 0,
            turned_at: 0,
            stop_at: None,
            guests,
            accept_later: Vec::new(),
        })
    }

    /// Serves until a shutdown is complete.
    ///
    /// # Errors
    /// If the kernel refuses the ring, which nothing heals.
    pub(crate) async fn run(mut self) -> io::Result<Ended> {
        let eventfd = crate::eventfd::awaitable(self.eventfd.take().expect("taken once"));
        for listener in 0..self.listeners.len() as u32 {
            self.arm_accept(listener);
        }
        let mut worked_at = Instant::now();
        self.turned_at = self.now();
        loop {
            self.ring.enter()?;
            let worked = self.turn();
            if let Some(ended) = self.ended() {
                self.finish();
                // A failed close of an eventfd leaves nothing undone.
                let _ = eventfd.close().await;
                return Ok(ended);
            }
            if worked {
                worked_at = Instant::now();
            } else if !self.wait_hot(worked_at) {
                self.sleep(&eventfd).await?;
                worked_at = Instant::now();
                self.turned_at = self.now();
            }
        }
    }

    /// Handles what completed and what came by mail. True if there was anything.
    fn turn(&mut self) -> bool {
        let hits_before = self.terms.counters().hit_count.get();
        let mut began = None;
        while let Some(completion) = self.ring.next_completion() {
            // The clock is looked at for each, because a lease must not count from before it was asked
            // for.
            let at = self.started.elapsed();
            began.get_or_insert(at);
            self.on_completion(at.as_millis() as u64, completion);
        }
        let mut worked = began.is_some();
        let at = self.started.elapsed();
        let (began, now) = (began.unwrap_or(at), at.as_millis() as u64);
        let turn_ms = now.saturating_sub(std::mem::replace(&mut self.turned_at, now));
        if turn_ms >= STALL_MS {
            let counters = self.terms.counters();
            counters.stall_count.add(1);
            counters.stall_ms.add(turn_ms);
        }
        for _ in 0..MAIL_PER_TURN {
            let Ok(mail) = self.mail.try_recv() else { break };
            worked = true;
            if matches!(mail, Mail::Shutdown) {
                self.begin_shutdown(now);
            }
            self.handle(now, Event::Mail(mail));
        }
        if now.saturating_sub(self.ticked_at) >= u64::from(TICK_MS) {
            self.on_tick(now);
        }
        self.deliver();
        let ended = self.perform();
        let hit_count = self.terms.counters().hit_count.get() - hits_before;
        if hit_count > 0 {
            self.terms.hit_times().record(ended.saturating_sub(began), hit_count);
        }
        worked |= self.send_held(now, !worked);
        worked || self.undelivered.iter().any(|waiting| !waiting.is_empty())
    }

    /// Sends the rests that were held back long enough, or all. True if there were any.
    fn send_held(&mut self, now: u64, all: bool) -> bool {
        let (sockets, worker, actions) = (&mut self.sockets, &mut self.worker, &mut self.actions);
        let mut any = false;
        self.ring.send_held(all, |token| {
            any = true;
            worker.handle(now, Event::Unheld { token }, actions);
            if let Some(socket) = sockets[token.index as usize].as_mut() {
                socket.holding = false;
                socket.sending = true;
            }
        });
        any
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn handle(&mut self, now: u64, event: Event<'_>) {
        self.worker.handle(now, event, &mut self.actions);
    }

    /// Polls for a moment, without a system call. True if work came.
    fn wait_hot(&mut self, worked_at: Instant) -> bool {
        loop {
            if self.ring.has_work() || !self.mail.is_empty() {
                return true;
            }
            if worked_at.elapsed() > HOT {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// Sleeps until the ring or the mailbox rings the eventfd.
    async fn sleep(&mut self, eventfd: &BufferedFile) -> io::Result<()> {
        self.publish_gauges();
        let now = self.now();
        if !self.accept_later.is_empty() {
            self.wake_at(now, now);
        }
        self.handle(now, Event::Sleep);
        self.perform();
        self.ring.notify(true);
        self.mailbox().going_to_sleep();
        // Work that came before both were told is seen here; later work rings.
        self.ring.enter()?;
        if !self.ring.has_work() && self.mail.is_empty() {
            self.terms.counters().sleep_count.add(1);
            eventfd
                .read_at(0, size_of::<u64>())
                .await
                .map_err(|error| io::Error::other(error.to_string()))?;
        }
        self.mailbox().woke_up();
        self.ring.notify(false);
        Ok(())
    }

    fn mailbox(&self) -> &Mailbox {
        &self.mailboxes[self.terms.shard as usize]
    }

    /// Sees to it that a tick comes at this time, or one tick from now if that is later.
    fn wake_at(&mut self, now: u64, at: u64) {
        let after_ms = at.saturating_sub(now);
        if self.tick_armed {
            return;
        }
        if after_ms <= u64::from(TICK_MS) {
            self.ring.tick();
            self.tick_armed = true;
        } else if !self.alarm_armed {
            self.ring.alarm(after_ms);
            self.alarm_armed = true;
        }
    }

    fn publish_gauges(&self) {
        let counters = self.terms.counters();
        counters.enter_count.set(self.ring.enter_count());
        if self.terms.shard == 0 {
            let time = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
            counters.cpu_ms.set((time.tv_sec * 1000 + time.tv_nsec / 1_000_000) as u64);
        }
    }

    fn on_tick(&mut self, now: u64) {
        self.ticked_at = now;
        self.ring.retry_sends();
        self.publish_gauges();
        for listener in std::mem::take(&mut self.accept_later) {
            self.arm_accept(listener);
        }
        self.handle(now, Event::Tick);
    }

    fn on_completion(&mut self, now: u64, completion: Completion) {
        match completion {
            Completion::Accepted { listener, result, armed } => {
                self.on_accepted(now, listener, result, armed)
            }
            Completion::Received { token, buffer, armed } => {
                if let Some(socket) = self.socket(token)
                    && !buffer.is_full()
                {
                    socket.gently = false;
                }
                self.worker.handle(
                    now,
                    Event::Received { token, bytes: self.ring.bytes(&buffer) },
                    &mut self.actions,
                );
                self.ring.recycle(buffer);
                if !armed {
                    self.on_receive_stopped(token);
                    self.close_if_idle(now, token);
                }
            }
            Completion::ReceiveEnded { token, result } => {
                self.on_receive_ended(now, token, &result)
            }
            Completion::SentSome { token, count } => {
                self.handle(now, Event::SentSome { token, count })
            }
            Completion::Sent { token, batch, result, is_last } => {
                if let Some(socket) = self.socket(token)
                    && is_last
                {
                    socket.sending = false;
                }
                self.handle(now, Event::Sent { token, batch, ok: result.is_ok(), is_last });
                self.close_if_idle(now, token);
            }
            Completion::Held { token } => {
                if let Some(socket) = self.socket(token) {
                    socket.sending = false;
                    socket.holding = true;
                }
                self.handle(now, Event::Held { token });
                self.close_if_idle(now, token);
            }
            Completion::Released { token, batch, was_copied } => {
                if was_copied
                    && self.limits.zero_copy == ZeroCopy::Auto
                    && let Some(socket) = self.socket(token)
                {
                    socket.by_reference = false;
                }
                self.handle(now, Event::Released { token, batch });
            }
            Completion::Disk { job, result } => self.handle(now, Event::Disk { job, result }),
            Completion::Tick => {
                self.tick_armed = false;
                self.on_tick(now);
            }
            Completion::Alarm => {
                self.alarm_armed = false;
                self.on_tick(now);
            }
        }
    }

    fn arm_accept(&mut self, listener: u32) {
        if self.stop_at.is_none() {
            self.ring.accept(listener, self.listeners[listener as usize].as_fd());
        }
    }

    fn on_accepted(&mut self, now: u64, listener: u32, result: io::Result<OwnedFd>, armed: bool) {
        match result {
            Ok(fd) => {
                let kind = self.ways.iter().filter(|start| listener as usize >= **start).count();
                self.on_connection(now, fd, [Way::Tcp, Way::Local, Way::Admin][kind]);
            }
            Err(error) => {
                // There are no descriptors or no memory: it listens on, a little later.
                if self.stop_at.is_none() {
                    tracing::warn!("accept a connection: {error}");
                    self.accept_later.push(listener);
                }
                return;
            }
        }
        if !armed {
            self.arm_accept(listener);
        }
    }

    fn on_connection(&mut self, now: u64, fd: OwnedFd, way: Way) {
        let is_local = way != Way::Tcp;
        let access = match way {
            Way::Tcp => None,
            Way::Local => self.access,
            Way::Admin => Some(Access::own()),
        };
        if access.is_some_and(|access| !matches!(access.admits(&fd), Ok(true))) {
            let message =
                "this socket is not for this user (socket_mode, socket_user, socket_group)";
            refuse(&fd, Status::PermissionDenied, message);
            return;
        }
        if !is_local && let Err(error) = self.prepare_tcp(&fd) {
            tracing::debug!("set options of a socket: {error}");
        }
        // Clients of the same user must not shut its administrators out.
        let place = match way {
            Way::Admin => None,
            _ => self.guests.admit(&fd, is_local),
        };
        if place.is_none() && way != Way::Admin {
            self.terms.counters().refused_count.add(1);
            let message =
                "your address has as many connections as it may (connections_per_peer_max)";
            refuse(&fd, Status::Busy, message);
            return;
        }
        let loads = place.as_ref().map(GuestPlace::loads).unwrap_or_default();
        let Some(token) = self.worker.accept(now, way, loads) else {
            let message =
                "as many clients as allowed are connected (connections_max): try again later";
            refuse(&fd, Status::Busy, message);
            return;
        };
        let by_reference = match self.limits.zero_copy {
            ZeroCopy::Never => false,
            ZeroCopy::Always => !is_local,
            ZeroCopy::Auto => !is_local && is_from_elsewhere(&fd),
        };
        let segment = if is_local { 0 } else { segment(&fd) };
        let index = token.index as usize;
        if self.sockets.len() <= index {
            self.sockets.resize_with(index + 1, || None);
        }
        let socket = self.sockets[index].insert(Socket {
            fd,
            token,
            _place: place,
            receiving: true,
            wants_receive: true,
            gently: true,
            sending: false,
            holding: false,
            closing: false,
            segment,
            send_count: 0,
            by_reference,
        });
        receive(&mut self.ring, token, socket, self.worker.is_crowded());
    }

    /// Makes the kernel send small replies at once, and end the connection when its client takes nothing
    /// for as long as a send may take (tcp(7), TCP_USER_TIMEOUT; it covers a closed window, too), or
    /// when its machine is gone. What is sent by reference stays pinned until the client has it, though
    /// it counts as sent; and a client that vanished would hold its place for good.
    fn prepare_tcp(&self, fd: &OwnedFd) -> io::Result<()> {
        rustix::net::sockopt::set_tcp_nodelay(fd, true)?;
        rustix::net::sockopt::set_socket_keepalive(fd, true)?;
        rustix::net::sockopt::set_tcp_keepidle(fd, KEEPALIVE_IDLE)?;
        rustix::net::sockopt::set_tcp_keepintvl(fd, KEEPALIVE_INTERVAL)?;
        rustix::net::sockopt::set_tcp_keepcnt(fd, KEEPALIVE_PROBES)?;
        // 0 leaves it to the kernel, as the configuration's 0 wants.
        let timeout_ms = u32::try_from(self.limits.send_timeout_ms).unwrap_or(u32::MAX);
        Ok(rustix::net::sockopt::set_tcp_user_timeout(fd, timeout_ms)?)
    }

    /// Returns the socket of a connection, unless that is closed and its place perhaps another's.
    fn socket(&mut self, token: Token) -> Option<&mut Socket> {
        find_socket(&mut self.sockets, token)
    }

    /// Handles the end of a multishot receive on a connection that goes on: it is asked for again, if
    /// wanted.
    fn on_receive_stopped(&mut self, token: Token) {
        let Some(socket) = find_socket(&mut self.sockets, token) else { return };
        socket.receiving = socket.wants_receive && !socket.closing;
        if socket.receiving {
            receive(&mut self.ring, token, socket, self.worker.is_crowded());
        }
    }

    fn on_receive_ended(&mut self, now: u64, token: Token, result: &io::Result<()>) {
        let stopped = match result {
            Ok(()) => false,
            // There are no buffers: they are given back within this turn. Or it was cancelled: paused,
            // maybe resumed.
            Err(error) => {
                matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ECANCELED | libc::EINTR))
            }
        };
        if stopped {
            self.on_receive_stopped(token);
        } else {
            if let Some(socket) = self.socket(token) {
                socket.receiving = false;
                socket.wants_receive = false;
            }
            let end = match result {
                Ok(()) => ReceiveEnd::Finished,
                Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => ReceiveEnd::Reset,
                // Other errors are this machine's, and the client knows nothing of them.
                Err(_) => ReceiveEnd::Broken,
            };
            self.handle(now, Event::ReceiveEnded { token, end });
        }
        self.close_if_idle(now, token);
    }

    /// Closes a socket that is to be closed, once nothing is under way on it.
    fn close_if_idle(&mut self, now: u64, token: Token) {
        let Some(socket) = self.socket(token) else { return };
        if socket.closing && !socket.receiving && !socket.sending && !socket.holding {
            self.sockets[token.index as usize] = None;
            self.handle(now, Event::Closed { token });
        }
    }

    /// Posts messages that found a mailbox full in an earlier turn. Bounded by the requests in flight:
    /// each has at most one message under way.
    fn deliver(&mut self) {
        for shard in 0..self.undelivered.len() {
            for mail in std::mem::take(&mut self.undelivered[shard]) {
                self.post(shard as u32, mail);
            }
        }
    }

    fn post(&mut self, shard: u32, mail: Mail) {
        let waiting = &mut self.undelivered[shard as usize];
        let mailbox = &self.mailboxes[shard as usize];
        // It must not arrive before what was posted earlier.
        let Err(mail) = (if waiting.is_empty() { mailbox.post(mail) } else { Err(mail) }) else {
            return;
        };
        if !mailbox.is_abandoned() {
            waiting.push_back(mail);
        } else if let Mail::Read { requester, .. } = mail {
            // The shard has ended before this one was told to stop.
            let message = "the node is shutting down".to_owned();
            let mail = Mail::Failed { requester, status: Status::ShuttingDown, message };
            self.handle(self.now(), Event::Mail(mail));
        }
    }

    /// Ends the turn: does what the worker asked for. Returns when that began, in the node's time.
    fn perform(&mut self) -> Duration {
        let at = self.started.elapsed();
        let now = at.as_millis() as u64;
        loop {
            self.handle(now, Event::TurnEnd);
            if self.actions.is_empty() {
                return at;
            }
            let spare = std::mem::take(&mut self.spare_actions);
            let mut actions = std::mem::replace(&mut self.actions, spare);
            for action in actions.drain(..) {
                // Closing a socket can bring further actions, so this goes on until there are none.
                self.perform_one(now, action);
            }
            self.spare_actions = actions;
        }
    }

    fn perform_one(&mut self, now: u64, action: Action) {
        match action {
            Action::Send(token, batch) => self.send(now, token, batch),
            Action::PauseReceive(token) => {
                let Some(socket) = self.socket(token) else { return };
                socket.wants_receive = false;
                socket.gently = true;
                if socket.receiving {
                    self.ring.stop_receiving(token);
                }
            }
            Action::ResumeReceive(token) => self.want_receive(token),
            Action::ReceiveGently => {
                for socket in self.sockets.iter().flatten() {
                    if socket.receiving && !socket.gently {
                        // It ends, and is asked for again as a single one.
                        self.ring.stop_receiving(socket.token);
                    }
                }
            }
            Action::FinishSending(token) => {
                // A paused connection is listened to again, because only so is the client's end seen.
                self.want_receive(token);
                let Some(socket) = self.socket(token) else { return };
                // The peer may be gone already.
                let _ = rustix::net::shutdown(&socket.fd, Shutdown::Write);
            }
            Action::Close(token) => {
                let Some(socket) = self.socket(token) else { return };
                socket.closing = true;
                socket.wants_receive = false;
                // This ends any receive or send that is under way; it fails if the peer did it first.
                let _ = rustix::net::shutdown(&socket.fd, Shutdown::Both);
                if std::mem::take(&mut socket.holding) {
                    // The send fails, and gives back what it holds.
                    socket.sending = true;
                    self.ring.send_held_of(token);
                }
                self.close_if_idle(now, token);
            }
            Action::Post(shard, mail) => self.post(shard, mail),
            Action::Disk(job) => self.ring.work_on_disk(job),
            Action::WakeAt(at) => self.wake_at(now, at),
        }
    }

    /// Receives on a connection from now on, if it does not already.
    fn want_receive(&mut self, token: Token) {
        let Some(socket) = self.socket(token) else { return };
        socket.wants_receive = true;
        if !socket.receiving {
            self.on_receive_stopped(token);
        }
    }

    fn send(&mut self, now: u64, token: Token, batch: Batch) {
        let socket = find_socket(&mut self.sockets, token).filter(|socket| !socket.closing);
        let Some(socket) = socket else {
            // What it pins is given back.
            self.handle(now, Event::Sent { token, batch, ok: false, is_last: true });
            return;
        };
        socket.sending = true;
        let bytes_max = self.terms.referred_bytes_max;
        if socket.by_reference && !socket.holding && self.ring.may_refer(&batch, bytes_max) {
            self.terms.counters().referred_bytes.add(batch.length);
            self.ring.send_by_reference(token, socket.fd.as_fd(), batch);
        } else {
            socket.holding = false;
            socket.send_count = socket.send_count.wrapping_add(1);
            if socket.segment > 0 && socket.send_count % SENDS_PER_LOOK == 0 {
                // It begins at half of the client's first window, and grows with that.
                socket.segment = segment(&socket.fd);
            }
            self.ring.send(token, socket.fd.as_fd(), batch, socket.segment);
        }
    }

    fn begin_shutdown(&mut self, now: u64) {
        self.stop_at = Some(now + self.limits.drain_timeout_ms);
        for listener in 0..self.listeners.len() as u32 {
            self.ring.stop_accepting(listener);
            // Clients are refused from now on, and do not wait in the backlog. The call fails if the
            // socket was not listening, which does no harm.
            let _ = rustix::net::shutdown(&self.listeners[listener as usize], Shutdown::Both);
        }
    }

    fn ended(&self) -> Option<Ended> {
        let stop_at = self.stop_at?;
        if self.terms.is_node_drained() {
            return Some(Ended::Drained);
        }
        (self.now() >= stop_at).then_some(Ended::Cut)
    }

    /// Cuts what is left, and gives the kernel a moment to let go of it.
    fn finish(&mut self) {
        for socket in self.sockets.iter().flatten() {
            // It fails if the peer did it first.
            let _ = rustix::net::shutdown(&socket.fd, Shutdown::Both);
        }
        for _ in 0..1000 {
            self.ring.send_held(true, |_| ());
            let is_idle = self.ring.sends_in_flight() + self.ring.disk_jobs_in_flight() == 0;
            if is_idle || self.ring.enter().is_err() {
                return;
            }
            while self.ring.next_completion().is_some() {}
            self.ring.retry_sends();
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Returns the socket of a connection, unless that is closed and its place perhaps another's.
fn find_socket(sockets: &mut [Option<Socket>], token: Token) -> Option<&mut Socket> {
    sockets.get_mut(token.index as usize)?.as_mut().filter(|socket| socket.token == token)
}

/// Asks for the bytes that come in on a socket; `gently` for one buffer of them.
fn receive(ring: &mut Ring, token: Token, socket: &Socket, gently: bool) {
    if socket.gently || gently {
        ring.receive_once(token, socket.fd.as_fd());
    } else {
        ring.receive(token, socket.fd.as_fd());
    }
}

/// Returns the bytes that a packet to the other end holds, if they are enough to make a small packet as
/// dear as a large one: on loopback a whole reply of 64 KiB. If packets are small, the card or the
/// kernel cuts what is sent, and there is no small rest that would cost much.
fn segment(fd: &OwnedFd) -> u64 {
    match socket2::SockRef::from(fd).tcp_mss() {
        Ok(size) if size >= SEGMENT_MIN => u64::from(size),
        _ => 0,
    }
}

/// True if the other end is on another machine, as far as addresses show. Loopback copies what is sent
/// by reference, and costs more than plain sends.
fn is_from_elsewhere(fd: &OwnedFd) -> bool {
    let ip = |address: SocketAddrAny| SocketAddr::try_from(address).map(|it| it.ip()).ok();
    let own = rustix::net::getsockname(fd).ok().and_then(ip);
    let other = rustix::net::getpeername(fd).ok().flatten().and_then(ip);
    match (own, other) {
        (Some(own), Some(other)) => own != other && !other.is_loopback(),
        _ => false,
    }
}

/// Answers a client that there is no room for it, or that it may not come in, and why.
fn refuse(fd: &OwnedFd, status: Status, message: &str) {
    let message = message.to_owned();
    let mut reply = Vec::new();
    let header = Header::request(Op::Hello, 0, 0).reply(status);
    frame::encode(&mut reply, header, &ErrorReply { message });
    // A fresh socket has room for it; if not, closing it says enough.
    let _ = rustix::net::send(fd, &reply, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}
