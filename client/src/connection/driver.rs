//! The task behind a lane: connects, says `Hello`, moves bytes both ways, and starts over.
//!
//! Reading and writing progress independently in one `select!`: so a node that stops reading from a
//! client that does not read never waits for this client while the client waits for the node. Always
//! holds: at most the allowed number of parts is in flight; whatever ends a connection, every request in
//! flight is answered with the reason. Requests that were not sent yet wait for the next connection;
//! their callers give up at their own deadlines.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use millrace_proto::message::HelloRequest;
use millrace_proto::{Status, VERSION, feature};
use smallvec::{SmallVec, smallvec};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{self, Instant, MissedTickBehavior};

use super::attach::{self, Attachment, End, Neighbour};
use super::in_flight::{self, InFlight};
use super::prove::{Claim, prove};
use super::receiver::Receiver;
use super::socket::{Socket, socket_path};
use super::{Answers, Body, Heard, Landing, Link, Part, Request};
use crate::config::ClientConfig;
use crate::error::Error;
use crate::file::HelloInfo;
use crate::race::{self, race};
use crate::reply;
use crate::retry::Backoff;

/// Encoded requests in bytes beyond which no more are taken until they are written. Guessed: about
/// 2500 reads.
const OUT_SIZE_MAX: usize = 256 << 10;
/// How often overdue requests are looked for.
const TICK: Duration = Duration::from_millis(500);
/// How long after its deadline a request may stay unanswered on a silent connection. Guessed: a node
/// answers by the deadline, so what is left is the network's delay.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// An open connection.
struct Opened {
    address: Arc<str>,
    socket: Socket,
    receiver: Receiver,
    in_flight: InFlight,
    hello: HelloInfo,
    neighbour: Option<Neighbour>,
    attachment: Option<Arc<Attachment>>,
}

/// See the module.
pub(super) struct Driver {
    pub(super) addresses: SmallVec<[Arc<str>; 2]>,
    /// Number that the node behind a Unix socket must have, if another node named the socket.
    pub(super) node: Option<u64>,
    /// What both sides prove on each connection.
    pub(super) claim: Option<Claim>,
    pub(super) config: Arc<ClientConfig>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) link: watch::Sender<Link>,
    pub(super) heard: Arc<Heard>,
    /// The next request to send, when it does not fit yet.
    pub(super) held: Option<Request>,
}

impl Driver {
    /// Runs until every handle of the lane is gone.
    pub(super) async fn run(mut self) {
        let mut backoff =
            Backoff::new(self.config.reconnect_backoff_min, self.config.reconnect_backoff_max);
        loop {
            if self.held.is_none() {
                self.held = self.requests.recv().await;
            }
            match &self.held {
                None => return,
                // Requests without a caller ended with the connection before.
                Some(request) if request.answers.is_closed() || request.answers.is_nobody() => {
                    self.held = None;
                    continue;
                }
                Some(_) => {}
            }
            let failure = match self.open().await {
                Ok(opened) => {
                    let limit = self.config.requests_in_flight_max;
                    let limit = limit.min(opened.hello.requests_in_flight_max as usize);
                    self.link.send_replace(Link {
                        hello: Some(Arc::new(opened.hello.clone())),
                        neighbour: opened.neighbour.clone().map(Arc::new),
                        attachment: opened.attachment.clone(),
                        failure: None,
                    });
                    let (was_of_use, failure) = self.serve(opened, limit).await;
                    self.link.send_modify(|link| link.attachment = None);
                    if was_of_use {
                        backoff.reset();
                        continue;
                    }
                    failure
                }
                Err(error) => {
                    self.link.send_modify(|link| link.failure = Some(error.clone()));
                    Some(error)
                }
            };
            if self.requests.is_closed() {
                return;
            }
            self.rest(backoff.step(), failure.as_ref()).await;
        }
    }

    /// Waits before the next try to connect, and answers the requests that cannot wait with the reason.
    async fn rest(&mut self, wait: Duration, failure: Option<&Error>) {
        let end = Instant::now() + wait;
        loop {
            if let (Some(error), Some(request)) = (failure, &mut self.held)
                && !request.is_patient
            {
                in_flight::refuse(&mut request.parts, &mut request.answers, Err(error));
                self.held = None;
            }
            tokio::select! {
                () = time::sleep_until(end) => return,
                request = self.requests.recv(), if self.held.is_none() && failure.is_some() => {
                    match request {
                        Some(request) => self.held = Some(request),
                        None => return,
                    }
                }
            }
        }
    }

    /// Connects to the first address that answers `Hello`. An address that keeps silent for an attempt's
    /// time is left for the next one, if there is one; the error is that of the last address.
    async fn open(&self) -> Result<Opened, Error> {
        let ways = self
            .addresses
            .iter()
            .map(|address| -> race::Course<'_, Opened> { Box::pin(self.open_address(address)) });
        let opened = race(ways.collect(), self.config.attempt_timeout).await;
        let lost = |mut errors: Vec<Error>| errors.pop().unwrap_or(Error::DeadlineExceeded);
        opened.map(|won| won.value).map_err(lost)
    }

    /// Connects to one address and says `Hello`, both within the connect timeout. The error says which
    /// of the two took too long, because each has another cause.
    async fn open_address(&self, address: &Arc<str>) -> Result<Opened, Error> {
        let timeout = self.config.connect_timeout;
        let deadline = Instant::now() + timeout;
        let socket = match time::timeout_at(deadline, Socket::connect(address)).await {
            Ok(connected) => connected.map_err(|error| connect_error(address, error))?,
            Err(_) => return Err(connect_error(address, io::ErrorKind::TimedOut.into())),
        };
        let no_hello = |_| Error::NoHello { address: address.clone(), timeout };
        let greet = async {
            let mut opened = say_hello(address, socket).await?;
            if let Some(claim) = &self.claim {
                prove(&mut opened.socket, claim, timeout).await?;
            }
            if self.config.local && opened.hello.offers(feature::LEASES) {
                (opened.neighbour, opened.attachment) =
                    attach::attach(&mut opened.socket, timeout).await?;
            }
            Ok::<Opened, Error>(opened)
        };
        let opened = time::timeout_at(deadline, greet).await.map_err(no_hello)??;
        let is_another = self.node.is_some_and(|node| {
            socket_path(address).is_some()
                && opened.neighbour.as_ref().is_none_or(|it| it.node != node)
        });
        if is_another {
            let source = io::Error::other("another node is behind this socket by now");
            return Err(connect_error(address, source));
        }
        Ok(opened)
    }

    /// Serves requests until the connection ends, and returns the reason. True if it was of use, so that
    /// connecting again at once does not loop.
    async fn serve(&mut self, opened: Opened, limit: usize) -> (bool, Option<Error>) {
        let Opened { address, mut socket, mut receiver, mut in_flight, attachment, .. } = opened;
        // It is declared after the socket and so dropped before it, wherever this ends.
        let attached = End(attachment);
        let end = self.transfer(&address, &mut socket, &mut receiver, &mut in_flight, limit).await;
        drop(attached);
        drop(socket);
        receiver.abandon(&mut in_flight);
        let failure = end.err();
        if let Some(error) = &failure {
            in_flight.fail(error);
        }
        (in_flight.is_served, failure)
    }

    /// Moves bytes both ways. Returns when all callers are gone, with an error when the connection
    /// is of no more use.
    async fn transfer(
        &mut self,
        address: &Arc<str>,
        socket: &mut Socket,
        receiver: &mut Receiver,
        in_flight: &mut InFlight,
        limit: usize,
    ) -> Result<(), Error> {
        let lost = |reason: String| Error::ConnectionLost {
            address: address.clone(),
            reason: reason.into(),
        };
        let (mut reader, mut writer) = socket.split();
        let mut tick = time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut received_last = Instant::now();
        let mut out = Vec::new();
        let mut written = 0;
        loop {
            let has_room = self.admit(in_flight, limit, &mut out);
            if in_flight.is_retiring && in_flight.is_empty() {
                return Err(lost("the node is shutting down".to_owned()));
            }
            tokio::select! {
                request = self.requests.recv(), if has_room => match request {
                    Some(request) => self.held = Some(request),
                    None => return Ok(()),
                },
                count = writer.write(&out[written..]), if written < out.len() => {
                    written += count.map_err(|error| lost(error.to_string()))?;
                    if written == out.len() {
                        out.clear();
                        written = 0;
                    }
                }
                count = receiver.read(&mut reader) => {
                    match count {
                        Ok(0) => return Err(lost("closed by the node".to_owned())),
                        Ok(_) => {
                            received_last = Instant::now();
                            self.heard.note(received_last);
                        }
                        Err(error) => return Err(lost(error.to_string())),
                    }
                    receiver.advance(in_flight)?;
                }
                now = tick.tick(), if !in_flight.is_empty() => {
                    if in_flight.is_silent(now, received_last, SILENCE_MAX) {
                        return Err(lost("the node stopped answering".to_owned()));
                    }
                    if self.requests.is_closed() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Encodes every waiting request that fits, so that one write carries them all. True if another one
    /// would fit.
    fn admit(&mut self, in_flight: &mut InFlight, limit: usize, out: &mut Vec<u8>) -> bool {
        let now = Instant::now();
        loop {
            if in_flight.is_retiring || out.len() >= OUT_SIZE_MAX || in_flight.part_count() >= limit
            {
                return false;
            }
            let request = self.held.take().or_else(|| self.requests.try_recv().ok());
            let Some(mut request) = request else {
                return true;
            };
            if request.answers.is_closed() {
                continue;
            }
            if request.deadline <= now {
                let late = Err(&Error::DeadlineExceeded);
                in_flight::refuse(&mut request.parts, &mut request.answers, late);
                continue;
            }
            // A batch larger than the limit (which a new connection may have lowered) goes alone.
            let fits = in_flight.part_count() + request.parts.len() <= limit;
            if !fits && !in_flight.is_empty() {
                self.held = Some(request);
                return false;
            }
            in_flight.send(request, now, out);
        }
    }
}

/// Says `Hello` on a new connection and waits for the answer.
async fn say_hello(address: &Arc<str>, mut socket: Socket) -> Result<Opened, Error> {
    let mut in_flight = InFlight::default();
    let mut receiver = Receiver::new();
    let (sender, mut answer) = oneshot::channel();
    let hello = Request {
        body: Body::Hello(HelloRequest {
            client: concat!("millrace-client ", env!("CARGO_PKG_VERSION")).to_owned(),
            version_min: VERSION,
            version_max: VERSION,
            features: feature::ALL,
        }),
        parts: smallvec![Part { landing: Some(Landing::Any), payload_max: 0 }],
        answers: Answers::One(Some(sender)),
        // The caller limits the time; the node answers at once.
        deadline: Instant::now() + Duration::from_secs(60),
        is_patient: true,
    };
    let mut out = Vec::new();
    in_flight.send(hello, Instant::now(), &mut out);
    let (mut reader, mut writer) = socket.split();
    let sent = writer.write_all(&out).await;
    sent.map_err(|error| connect_error(address, error))?;
    let answer = loop {
        if let Ok(answer) = answer.try_recv() {
            break answer;
        }
        let count = receiver.read(&mut reader).await;
        if count.map_err(|error| connect_error(address, error))? == 0 {
            let end = io::ErrorKind::UnexpectedEof.into();
            return Err(connect_error(address, end));
        }
        receiver.advance(&mut in_flight)?;
    };
    drop((reader, writer));
    let reply = answer.outcome?;
    if reply.header.status() != Status::Ok {
        return Err(reply::status_error(&reply));
    }
    let hello = HelloInfo::decode(&reply.body)?;
    let address = address.clone();
    let (neighbour, attachment) = (None, None);
    Ok(Opened { address, socket, receiver, in_flight, hello, neighbour, attachment })
}

fn connect_error(address: &Arc<str>, source: io::Error) -> Error {
    Error::Connect { address: address.clone(), source: Arc::new(source) }
}
