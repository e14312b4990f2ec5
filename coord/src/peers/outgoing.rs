//! Our stream to one other replica: dialled, greeted, filled, and dialled again when it breaks.
//!
//! ```text
//!  waiting ──► resolving ──► greeting ──► open
//!     ▲            │             │          │
//!     └────────────┴─────────────┴──────────┘  after a pause that grows with each failure
//! ```
//!
//! Always holds: queued messages are sent in order, or the stream breaks; at most [`QUEUE_SIZE_MAX`] bytes
//! and one message wait.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::SockRef;

use super::admission::Admission;
use super::hello::{self, ANSWER_SIZE_MAX, HelloAnswer};
use super::resolver::Resolver;
use crate::socket::{Outbox, RateLimit};

/// Most bytes that wait for one peer. A peer that lags more gets entries from the log faster.
const QUEUE_SIZE_MAX: usize = 64 * 1024 * 1024;
/// Milliseconds between dials: the first, and the longest. Chance adds up to half of it.
const PAUSE_MS_MIN: u64 = 50;
const PAUSE_MS_MAX: u64 = 1000;
/// Milliseconds that a connect may take. Short, because after a partition a new attempt succeeds sooner
/// than the next retransmission of an old one.
const CONNECT_MS: u64 = 1000;
/// Milliseconds that the other side has to answer our hello.
const GREETING_MS: u64 = 5000;
/// Milliseconds without a message after which an empty frame is sent.
pub(super) const KEEP_ALIVE_MS: u64 = 1000;
/// Longest time that sent bytes stay without acknowledgement before the kernel breaks the stream.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(3);

#[derive(Debug)]
enum DialPhase {
    Waiting { until_ms: u64 },
    Resolving,
    Greeting { stream: TcpStream, connected: bool, answer: Vec<u8>, deadline_ms: u64 },
    Open { stream: TcpStream },
}

/// A change of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    Connected,
    /// The stream was open and broke.
    Lost,
}

/// Our stream to one peer; see the module.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) peer: u64,
    /// `host:port` of the last dial. Each dial looks the name up again.
    pub(super) address: String,
    /// The addresses to dial in turn. The first is the one in the ensemble.
    addresses: Vec<String>,
    pub(super) token: Token,
    /// True if the socket has news.
    pub(super) ready: bool,
    phase: DialPhase,
    outbox: Outbox,
    sent_at_ms: u64,
    pause_ms: u64,
    dials: usize,
    trouble: Option<String>,
    /// True if the other side ended an open stream, and the next dial has no outcome yet.
    was_ended: bool,
    /// True if the other side ended an open stream, and then nothing listened at its address: the process is gone.
    pub(super) is_gone: bool,
    log: RateLimit,
}

impl Outgoing {
    /// Builds a stream that is not dialled yet. `addresses` has one or more.
    pub(super) fn new(peer: u64, addresses: Vec<String>, token: Token) -> Outgoing {
        Outgoing {
            peer,
            address: addresses[0].clone(),
            addresses,
            token,
            ready: false,
            phase: DialPhase::Waiting { until_ms: 0 },
            outbox: Outbox::default(),
            sent_at_ms: 0,
            pause_ms: PAUSE_MS_MIN,
            dials: 0,
            trouble: None,
            was_ended: false,
            is_gone: false,
            log: RateLimit::default(),
        }
    }

    /// Takes the current addresses. True if the one in use is among them. If not, this stream does not lead
    /// to that peer any more.
    pub(super) fn set_addresses(&mut self, addresses: Vec<String>) -> bool {
        let is_known = addresses.contains(&self.address);
        self.addresses = addresses;
        is_known
    }

    /// True if the peer was dialled at another address than the one in the ensemble.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.address != self.addresses[0]
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.phase, DialPhase::Open { .. })
    }

    /// Says why there is no stream, or why the last one ended.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.outbox.len()
    }

    /// Returns the time of the next [`Outgoing::drive`] if the socket has no news before.
    pub(super) fn deadline_ms(&self) -> u64 {
        match &self.phase {
            DialPhase::Waiting { until_ms } => *until_ms,
            DialPhase::Resolving => u64::MAX,
            DialPhase::Greeting { deadline_ms, .. } => *deadline_ms,
            DialPhase::Open { .. } => self.sent_at_ms + KEEP_ALIVE_MS,
        }
    }

    /// Does what is due: dials, greets, notices the end, keeps the stream alive.
    pub(super) fn drive(
        &mut self,
        now_ms: u64,
        registry: &Registry,
        resolver: &Resolver,
        admission: &mut Admission,
    ) -> Change {
        let due = now_ms >= self.deadline_ms();
        let news = std::mem::take(&mut self.ready);
        if !due && !news {
            return Change::Nothing;
        }
        match &mut self.phase {
            DialPhase::Waiting { .. } if due => self.dial(now_ms, registry, resolver, admission),
            DialPhase::Waiting { .. } | DialPhase::Resolving => Change::Nothing,
            DialPhase::Greeting { .. } => match self.greet(now_ms, admission) {
                Ok(true) => {
                    tracing::info!(peer = self.peer, address = self.address, "connected to a peer");
                    Change::Connected
                }
                Ok(false) if due => self.fail(now_ms, "no answer in time".into()),
                Ok(false) => Change::Nothing,
                Err(why) => self.fail(now_ms, why),
            },
            DialPhase::Open { stream } => {
                if due && self.outbox.len() == 0 {
                    hello::frame(self.outbox.tail(), &[]);
                    self.sent_at_ms = now_ms;
                }
                let ended = if news { ended(stream) } else { None };
                match ended.or_else(|| self.outbox.flush(stream).err().map(|e| e.to_string())) {
                    Some(why) => {
                        self.was_ended = true;
                        self.fail(now_ms, why)
                    }
                    None => Change::Nothing,
                }
            }
        }
    }

    fn dial(
        &mut self,
        now_ms: u64,
        registry: &Registry,
        resolver: &Resolver,
        admission: &Admission,
    ) -> Change {
        self.address.clone_from(&self.addresses[self.dials % self.addresses.len()]);
        self.dials = self.dials.wrapping_add(1);
        if let Ok(address) = self.address.parse() {
            return self.connect(now_ms, &[address], registry, admission);
        }
        if resolver.ask(self.peer, &self.address) {
            self.phase = DialPhase::Resolving;
            return Change::Nothing;
        }
        self.fail(now_ms, "too many names wait to be looked up".into())
    }

    pub(super) fn resolved(
        &mut self,
        now_ms: u64,
        result: io::Result<Vec<SocketAddr>>,
        registry: &Registry,
        admission: &Admission,
    ) {
        if !matches!(self.phase, DialPhase::Resolving) {
            return;
        }
        match result {
            Ok(addresses) if addresses.is_empty() => {
                self.fail(now_ms, "the name has no address".into());
            }
            Ok(addresses) => {
                self.connect(now_ms, &addresses, registry, admission);
            }
            Err(error) => {
                self.fail(now_ms, error.to_string());
            }
        }
    }

    fn connect(
        &mut self,
        now_ms: u64,
        addresses: &[SocketAddr],
        registry: &Registry,
        admission: &Admission,
    ) -> Change {
        // If a name has several addresses, each turn of the name tries another one.
        let address = addresses[self.dials / self.addresses.len() % addresses.len()];
        match open(address, registry, self.token) {
            Ok(stream) => {
                self.outbox.clear();
                admission.hello(self.peer).encode(self.outbox.tail());
                let deadline_ms = now_ms + CONNECT_MS;
                let answer = Vec::new();
                self.phase = DialPhase::Greeting { stream, connected: false, answer, deadline_ms };
                Change::Nothing
            }
            Err(error) => {
                self.note_refusal(&error);
                self.fail(now_ms, error.to_string())
            }
        }
    }

    /// Notes that a dial has ended with this error.
    fn note_refusal(&mut self, error: &io::Error) {
        self.is_gone |= self.was_ended && error.kind() == io::ErrorKind::ConnectionRefused;
    }

    /// Continues the greeting. True if it has succeeded.
    fn greet(&mut self, now_ms: u64, admission: &mut Admission) -> Result<bool, String> {
        let DialPhase::Greeting { stream, connected, answer, deadline_ms } = &mut self.phase else {
            return Ok(false);
        };
        if let Ok(Some(error)) | Err(error) = stream.take_error() {
            self.note_refusal(&error);
            return Err(error.to_string());
        }
        if !*connected {
            if stream.peer_addr().is_err() {
                return Ok(false);
            }
            *connected = true;
            *deadline_ms = now_ms + GREETING_MS;
        }
        self.outbox.flush(stream).map_err(|error| error.to_string())?;
        let mut bytes = [0; ANSWER_SIZE_MAX];
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => return Err("closed without an answer".into()),
                Ok(count) => answer.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.to_string()),
            }
            let Some(answer) = HelloAnswer::decode(answer)? else { continue };
            if let Some(why) = answer.refusal {
                return Err(format!("refused: {why}"));
            }
            if answer.hello.sender != self.peer {
                return Err(format!("answered by replica {}", answer.hello.sender));
            }
            admission.judge(&answer.hello)?;
            let phase = std::mem::replace(&mut self.phase, DialPhase::Resolving);
            if let DialPhase::Greeting { stream, .. } = phase {
                self.phase = DialPhase::Open { stream };
            }
            self.sent_at_ms = now_ms;
            self.pause_ms = PAUSE_MS_MIN;
            self.trouble = None;
            (self.was_ended, self.is_gone) = (false, false);
            return Ok(true);
        }
    }

    /// Queues a message. Drops it if the stream is not open, which the sender knows.
    ///
    /// # Errors
    /// The stream must break, because too much waits.
    pub(super) fn send(&mut self, message: &[u8]) -> Result<(), String> {
        if !self.is_open() {
            return Ok(());
        }
        if self.outbox.len() > QUEUE_SIZE_MAX || message.len() > hello::PAYLOAD_SIZE_MAX {
            return Err(format!(
                "{} bytes wait to be sent: it does not keep up",
                self.outbox.len()
            ));
        }
        hello::frame(self.outbox.tail(), message);
        Ok(())
    }

    pub(super) fn flush(&mut self, now_ms: u64) -> Change {
        let DialPhase::Open { stream } = &self.phase else { return Change::Nothing };
        if self.outbox.len() == 0 {
            return Change::Nothing;
        }
        self.sent_at_ms = now_ms;
        match self.outbox.flush(stream) {
            Ok(()) => Change::Nothing,
            Err(error) => self.fail(now_ms, error.to_string()),
        }
    }

    /// Breaks the stream and waits before the next dial.
    pub(super) fn fail(&mut self, now_ms: u64, why: String) -> Change {
        if let Some(left_out) = self.log.allow(now_ms, &why) {
            let (peer, address) = (self.peer, &self.address);
            tracing::warn!(peer, address, why, left_out, "no stream to a peer");
        }
        let was_open = self.is_open();
        self.trouble = Some(why);
        self.outbox.clear();
        if was_open && self.was_ended {
            // At once, because the answer tells whether the process or only the stream has ended.
            self.phase = DialPhase::Waiting { until_ms: now_ms };
            return Change::Lost;
        }
        self.was_ended = false;
        let until_ms = now_ms + self.pause_ms + fastrand::u64(0..=self.pause_ms / 2);
        self.phase = DialPhase::Waiting { until_ms };
        self.pause_ms = (self.pause_ms * 2).min(PAUSE_MS_MAX);
        if was_open { Change::Lost } else { Change::Nothing }
    }
}

fn open(address: SocketAddr, registry: &Registry, token: Token) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
    Ok(stream)
}

/// Says why an open stream has ended, if it has. Nothing is ever received on it.
fn ended(mut stream: &TcpStream) -> Option<String> {
    match stream.read(&mut [0; 1]) {
        Ok(0) => Some("closed by the other side".into()),
        Ok(_) => Some("the other side sent bytes on our stream".into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => Some(error.to_string()),
    }
}
