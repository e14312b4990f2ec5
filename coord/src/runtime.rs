//! The loop of a replica: the only place where its events meet the kernel.
//!
//! One thread owns the replica and all sockets. A pass takes what other threads wrote, looks once at every
//! socket with news, gives the replica its turn, and does the actions: peers first, because writes wait for
//! them, then at most one write for each client. The loop sleeps only when nothing is left to do.
//!
//! ```text
//!  sockets ─► clients, peers ─┐                    ┌─► log thread ─► durable number ─┐
//!  mailbox ───────────────────┴─► replica ─► actions ─► state thread ─► letters ─────┴─► mailbox
//!                                                  └─► clients, peers ─► sockets
//! ```
//!
//! What always holds: no call here waits for the disk or for a name, unless the disk is so far behind that
//! all bounded queues before it are full; the clock is read once a pass; actions are done in their order,
//! except that writes to clients come last.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::{Events, Poll, Token};

use crate::config::Config;
use crate::peers::{PeerStatus, Peers, Resolved, Tokens};
use crate::replica::{Action, AdminRequest, ClientId, Event, Now, StateAction};
use crate::report::{Effect, Snapshot, Wanted};
use crate::socket::SHARED_SIZE;

pub(crate) mod clients;
mod keeper;
mod log_thread;
mod machine;
mod mailbox;
mod reports;
mod room;
mod state_thread;
#[cfg(test)]
mod tests;

use clients::Clients;
pub use keeper::{Begun, Keeper, load};
pub(crate) use log_thread::LogThread;
pub(crate) use machine::{Machine, World};
pub(crate) use mailbox::{Letters, Mailbox, mailbox};
pub(crate) use reports::Disk;
pub(crate) use state_thread::StateThread;

/// Tokens of the poll. Streams have ranges of their own, far apart.
pub(crate) const BELL: Token = Token(0);
pub(crate) const CLIENT_LISTENER: Token = Token(1);
pub(crate) const PEER_TOKENS: Tokens =
    Tokens { listener: Token(2), outgoing: 1 << 32, incoming: 2 << 32 };
pub(crate) const CLIENT_FIRST: usize = 3 << 32;

/// Most kernel events taken at once.
const EVENTS_PER_PASS: usize = 1024;
/// Most letters taken at once.
const LETTERS_PER_PASS: usize = 64;
/// Milliseconds that handing leadership over may take when the replica stops. An election would take about
/// as long.
const SHUT_DOWN_MS: u64 = 2000;
/// Longest time for the last bytes to clients.
const SETTLE: Duration = Duration::from_millis(200);
/// Time that the loop looks for the next request after one came, before it sleeps.
const AWAKE: Duration = Duration::from_micros(50);
/// Milliseconds between two checkpoints made only to compact a log that is half full.
const RELIEVE_EVERY_MS: u64 = 1000;
/// A longer pass is logged, because peers and clients noticed it.
const SLOW_PASS: Duration = Duration::from_millis(200);

/// A message of another thread to the loop.
pub(crate) enum Letter {
    /// An event for the replica.
    Event(Event<'static>),
    /// The outcome of a look-up.
    Resolved(Resolved),
    /// A request of an operator to the replica.
    Ask(AdminRequest, OperatorAnswer),
    /// Writes a copy of the state to a new file, for an operator.
    Backup(std::path::PathBuf, OperatorAnswer),
    /// Reports the state of the replica to an operator.
    Report(Wanted, flume::Sender<Report>),
    /// Resets figures, for an operator.
    Reset(Effect),
    /// Stops the replica.
    Stop,
}

/// The channel of a waiting operator.
pub(crate) type OperatorAnswer = flume::Sender<Result<String, String>>;

/// The state of a replica, with what only the loop knows.
#[derive(Debug, Clone)]
pub struct Report {
    /// The data of the four-letter words and the admin pages.
    pub snapshot: Snapshot,
    /// The state of the streams with the other replicas.
    pub peers: Vec<PeerStatus>,
}

/// The loop; see the module.
pub(crate) struct Runtime<M> {
    pub(crate) config: Config,
    pub(crate) machine: M,
    pub(crate) poll: Poll,
    pub(crate) letters: Letters,
    pub(crate) clients: Clients,
    pub(crate) peers: Peers,
    pub(crate) log: LogThread,
    pub(crate) state: StateThread,
    pub(crate) disk: Disk,
    /// Actions that the replica has already asked for.
    pub(crate) actions: Vec<Action>,
    pub(crate) clock: Clock,
}

/// The time, as a replica gets it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    started: Instant,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock { started: Instant::now() }
    }

    pub(crate) fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { ms: self.started.elapsed().as_millis() as u64, wall_ms: wall.as_millis() as i64 }
    }
}

/// The state that passes change.
struct Pass {
    shared: Vec<u8>,
    /// The last append that the replica knows is durable.
    durable: u64,
    /// True if the replica knows that there is no room for more state.
    is_full: bool,
    /// The time of the next checkpoint for the log's sake, at the earliest.
    relieve_at_ms: u64,
    /// Clients with output to send.
    sends: Vec<ClientId>,
    /// Actions in work.
    doing: Vec<Action>,
    /// Waiting operators, by ticket.
    operators: Vec<(u64, OperatorAnswer)>,
    tickets: u64,
    /// The time at which a stopping replica ends in any case.
    stop_at_ms: Option<u64>,
    /// The reason that the replica must stop.
    failure: Option<String>,
    /// True if something is left to do, so the loop must not sleep.
    more: bool,
}

impl<M: Machine> Runtime<M> {
    /// Runs until the replica is stopped, or must stop by itself, which returns the reason.
    pub(crate) fn run(mut self) -> Result<(), String> {
        let mut events = Events::with_capacity(EVENTS_PER_PASS);
        let mut pass = Pass {
            shared: vec![0; SHARED_SIZE],
            durable: 0,
            is_full: false,
            relieve_at_ms: 0,
            sends: Vec::new(),
            doing: Vec::new(),
            operators: Vec::new(),
            tickets: 0,
            stop_at_ms: None,
            failure: None,
            more: true,
        };
        let mut deadline_ms = 0;
        while !self.is_over(&pass) {
            let slept = self.sleep(&mut events, &pass, deadline_ms);
            slept.map_err(|error| format!("polling the sockets failed: {error}"))?;
            let began = Instant::now();
            deadline_ms = self.pass(&events, &mut pass);
            let took = began.elapsed();
            if took > SLOW_PASS {
                tracing::warn!(took_ms = took.as_millis() as u64, "a slow pass");
            }
        }
        self.finish(pass)
    }

    fn is_over(&self, pass: &Pass) -> bool {
        let stops = pass
            .stop_at_ms
            .is_some_and(|at_ms| self.machine.may_stop() || self.clock.now().ms >= at_ms);
        stops || pass.failure.is_some()
    }

    /// Waits for the kernel, another thread, or the deadline. Does not wait if there is more to do.
    fn sleep(&mut self, events: &mut Events, pass: &Pass, deadline_ms: u64) -> io::Result<()> {
        // The loop sleeps while the disk works, because the thread that waits for it needs the processor
        // more.
        let may_stay = !pass.more && pass.durable == self.log.last_append();
        if self.clients.take_active() && may_stay && self.stay_awake(events, pass)? {
            return Ok(());
        }
        let may_sleep = !pass.more && self.letters.may_sleep(pass.durable);
        let timeout = match may_sleep {
            false => Some(Duration::ZERO),
            true if deadline_ms == u64::MAX => None,
            true => Some(Duration::from_millis(deadline_ms.saturating_sub(self.clock.now().ms))),
        };
        let polled = self.poll.poll(events, timeout);
        self.letters.woke();
        match polled {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            polled => polled,
        }
    }

    /// Looks for news for as long as they are likely. True if there were some.
    fn stay_awake(&mut self, events: &mut Events, pass: &Pass) -> io::Result<bool> {
        let began = Instant::now();
        while began.elapsed() < AWAKE {
            match self.poll.poll(events, Some(Duration::ZERO)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                polled => polled?,
            }
            if !events.is_empty() || self.letters.has_news(pass.durable) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Runs one pass. Returns the time of the next one, if nothing happens before.
    fn pass(&mut self, events: &Events, pass: &mut Pass) -> u64 {
        let now = self.clock.now();
        for event in events {
            let ended = event.is_read_closed() || event.is_error();
            match event.token() {
                BELL => {}
                CLIENT_LISTENER => self.clients.arrived(),
                token if token.0 >= CLIENT_FIRST => {
                    self.clients.ready(token, event.is_readable(), ended);
                }
                token => self.peers.ready(token),
            }
        }
        pass.more = self.read_letters(now, pass);
        self.look_for_room(now, pass);
        let Runtime { machine, clients, peers, actions, .. } = self;
        let mut world = World { now, machine, actions };
        pass.more |= clients.accept(now.ms);
        pass.more |= peers.pass(now.ms, &mut pass.shared, &mut |event| world.handle(event));
        pass.more |= clients.pass(&mut pass.shared, &mut world);
        let deadline_ms = world.machine.turn(now, world.actions);
        self.act(now, pass);
        self.answer_words(now);
        pass.more |= self.clients.may_go_on(&self.machine) || !self.actions.is_empty();
        deadline_ms
            .min(self.clients.run_timers(now.ms))
            .min(self.peers.deadline_ms())
            .min(self.state.deadline_ms(now.ms))
    }

    /// Reports to the replica whether its stores have room, and starts compaction of the log in time.
    fn look_for_room(&mut self, now: Now, pass: &mut Pass) {
        let lacking = self.disk.room.lacking();
        if lacking.is_some() != pass.is_full {
            pass.is_full = lacking.is_some();
            match lacking {
                Some(what) => tracing::warn!(
                    "{what}; until then writes that need room are refused with QUOTAEXCEEDED"
                ),
                None => tracing::info!("there is room again for all writes"),
            }
            let event = Event::Room { is_full: pass.is_full };
            self.machine.handle(now, event, &mut self.actions);
        }
        if self.disk.room.is_log_pressed() && now.ms >= pass.relieve_at_ms {
            pass.relieve_at_ms = now.ms + RELIEVE_EVERY_MS;
            self.state.ask(StateAction::FlushCheckpoint);
        }
    }

    /// Takes what other threads wrote. True if there may be more.
    fn read_letters(&mut self, now: Now, pass: &mut Pass) -> bool {
        let durable = self.letters.durable();
        if durable != pass.durable {
            pass.durable = durable;
            self.machine.handle(now, Event::LogDurable { number: durable }, &mut self.actions);
        }
        for _ in 0..LETTERS_PER_PASS {
            let Some(letter) = self.letters.next() else { return false };
            match letter {
                Letter::Event(event) => self.machine.handle(now, event, &mut self.actions),
                Letter::Resolved(resolved) => self.peers.resolved(now.ms, resolved),
                Letter::Ask(request, answer) => {
                    pass.tickets += 1;
                    let ticket = pass.tickets;
                    pass.operators.push((ticket, answer));
                    let event = Event::Admin { ticket, request };
                    self.machine.handle(now, event, &mut self.actions);
                }
                Letter::Backup(path, answer) => self.state.backup(path, answer),
                Letter::Report(wanted, answer) => {
                    // The operator may have stopped waiting.
                    let _ = answer.send(self.report(now, wanted));
                }
                Letter::Reset(effect) => self.reset(effect),
                Letter::Stop if pass.stop_at_ms.is_none() => {
                    pass.stop_at_ms = Some(now.ms + SHUT_DOWN_MS);
                    self.machine.shut_down();
                }
                Letter::Stop => {}
            }
        }
        true
    }

    /// Does the actions of the replica.
    fn act(&mut self, now: Now, pass: &mut Pass) {
        let mut doing = std::mem::take(&mut pass.doing);
        std::mem::swap(&mut doing, &mut self.actions);
        for action in doing.drain(..) {
            self.act_one(now, action, pass);
        }
        pass.doing = doing;
        pass.more |= self.peers.flush(now.ms);
        let Runtime { machine, clients, actions, .. } = self;
        let mut world = World { now, machine, actions };
        for client in pass.sends.drain(..) {
            clients.send(client, &mut world);
        }
        // This wakes a thread, so it comes last: nothing waits for it.
        self.state.push_on();
    }

    fn act_one(&mut self, now: Now, action: Action, pass: &mut Pass) {
        match action {
            Action::Send { client } => pass.sends.push(client),
            Action::CloseClient { client } => {
                self.clients.close(client, now.ms, &mut self.machine);
            }
            Action::SendPeer { peer, message } => self.peers.send(now.ms, peer, &message),
            Action::Peers { company } => {
                self.peers.set_company(&company);
                pass.more = true;
            }
            Action::Found { cluster_id } => {
                if let Err(reason) = self.peers.found(now.ms, cluster_id) {
                    pass.failure = Some(reason);
                }
                pass.more = true;
            }
            Action::Listed { listed } => self.peers.set_listed(listed),
            Action::Append { append } => self.log.append(append),
            Action::CompactLog { index, term } => self.log.compact(index, term),
            Action::AdminReply { ticket, reply } => {
                let found = pass.operators.iter().position(|(waiting, _)| *waiting == ticket);
                if let Some(index) = found {
                    let _ = pass.operators.swap_remove(index).1.send(reply);
                }
            }
            Action::Stop { reason } => pass.failure = Some(reason),
            Action::State(action) => self.state.ask(action),
        }
    }

    /// Ends in order: sends clients their last output, and makes queued data durable.
    fn finish(mut self, pass: Pass) -> Result<(), String> {
        let now = self.clock.now();
        self.clients.close_all(now.ms, &mut self.machine, SETTLE);
        self.peers.flush(now.ms);
        self.log.stop();
        self.state.stop();
        match pass.failure {
            Some(reason) => Err(reason),
            None => Ok(()),
        }
    }
}
