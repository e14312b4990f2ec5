//! A lane: one connection to one shard that is opened when first needed and again when it breaks.
//!
//! A [`Lane`] is the handle callers hold, the driver in [`driver`] the task that owns the socket and
//! every request in flight. They share nothing but a bounded channel, so there are no locks:
//!
//! ```text
//!  callers ──► mpsc, bounded ──► driver: encode, one write for all that wait ──► socket
//!     ▲                            │ in flight: id → where the answer lands
//!     └──────── oneshot ◄──────────┴─ header, body, payload ◄──────────────────  socket
//! ```
//!
//! Always holds: every request that was accepted is answered exactly once or its channel is dropped,
//! so no caller hangs; a landing buffer belongs to the request until the answer hands it back. Whether
//! an answer is good, and whether to try again, is left to the callers.

mod attach;
mod driver;
mod in_flight;
mod listener;
mod prove;
mod receiver;
mod socket;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use millrace_proto::cluster::{
    DrainRequest, InventoryRequest, MountRequest, PinRequest, RingRequest,
};
use millrace_proto::job::{
    CancelJobRequest, JobsRequest, LoadPartCopiesRequest, LoadPartRequest, StartCopiesJobRequest,
    StartJobRequest,
};
use millrace_proto::message::{
    CachedRequest, FreeRequest, HelloRequest, ListRequest, LoadCopiesRequest, LoadRequest, Range,
    ReadManyRequest, RefreshRequest, StatRequest,
};
use millrace_proto::write::{PutEndRequest, PutPartRequest, RenameRequest, WriteRequest};
use millrace_proto::{Header, Op, frame};
use smallvec::{SmallVec, smallvec};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{self, Instant};

use crate::config::ClientConfig;
use crate::error::Error;
use crate::file::HelloInfo;
pub(crate) use attach::{Attachment, Neighbour};
pub(crate) use prove::Claim;
pub use prove::random;
pub(crate) use socket::socket_path;

/// How often the client looks whether a request that is late still belongs where it was sent. Guessed.
const GOES_ON_STEP: Duration = Duration::from_millis(50);

/// A request's op and body.
#[derive(Debug)]
pub(crate) enum Body {
    Hello(HelloRequest),
    Ping,
    Stat(StatRequest),
    Refresh(RefreshRequest),
    List(ListRequest),
    Read(Range),
    Peek(Range),
    Fetch(Range),
    Vouch(Range),
    Inventory(InventoryRequest),
    Cached(CachedRequest),
    ReadMany(ReadManyRequest),
    Lease(ReadManyRequest),
    Release(ReadManyRequest),
    Load(LoadRequest),
    LoadCopies(LoadCopiesRequest),
    Free(FreeRequest),
    Status,
    Ring(RingRequest),
    Drain(DrainRequest),
    Mount(MountRequest),
    Pin(PinRequest),
    Pins,
    StartJob(StartJobRequest),
    StartCopiesJob(StartCopiesJobRequest),
    CancelJob(CancelJobRequest),
    Jobs(JobsRequest),
    LoadPart(LoadPartRequest),
    LoadPartCopies(LoadPartCopiesRequest),
    Put(WriteRequest),
    PutPart(PutPartRequest),
    PutEnd(PutEndRequest),
    Delete(WriteRequest),
    Rename(RenameRequest),
}

impl Body {
    pub(crate) fn op(&self) -> Op {
        match self {
            Body::Hello(_) => Op::Hello,
            Body::Ping => Op::Ping,
            Body::Stat(_) => Op::Stat,
            Body::Refresh(_) => Op::Refresh,
            Body::List(_) => Op::List,
            Body::Read(_) => Op::Read,
            Body::Peek(_) => Op::Peek,
            Body::Fetch(_) => Op::Fetch,
            Body::Vouch(_) => Op::Vouch,
            Body::Inventory(_) => Op::Inventory,
            Body::Cached(_) => Op::Cached,
            Body::ReadMany(_) => Op::ReadMany,
            Body::Lease(_) => Op::Lease,
            Body::Release(_) => Op::Release,
            Body::Load(_) => Op::Load,
            Body::LoadCopies(_) => Op::LoadCopies,
            Body::Free(_) => Op::Free,
            Body::Status => Op::Status,
            Body::Ring(_) => Op::Ring,
            Body::Drain(_) => Op::Drain,
            Body::Mount(_) => Op::Mount,
            Body::Pin(_) => Op::Pin,
            Body::Pins => Op::Pins,
            Body::StartJob(_) => Op::StartJob,
            Body::StartCopiesJob(_) => Op::StartCopiesJob,
            Body::CancelJob(_) => Op::CancelJob,
            Body::Jobs(_) => Op::Jobs,
            Body::LoadPart(_) => Op::LoadPart,
            Body::LoadPartCopies(_) => Op::LoadPartCopies,
            Body::Put(_) => Op::Put,
            Body::PutPart(_) => Op::PutPart,
            Body::PutEnd(_) => Op::PutEnd,
            Body::Delete(_) => Op::Delete,
            Body::Rename(_) => Op::Rename,
        }
    }

    fn encode(&self, out: &mut Vec<u8>, header: Header) {
        match self {
            Body::Hello(body) => frame::encode(out, header, body),
            Body::Stat(body) => frame::encode(out, header, body),
            Body::Refresh(body) => frame::encode(out, header, body),
            Body::List(body) => frame::encode(out, header, body),
            Body::Read(body) | Body::Peek(body) | Body::Fetch(body) | Body::Vouch(body) => {
                frame::encode(out, header, body)
            }
            Body::Inventory(body) => frame::encode(out, header, body),
            Body::Cached(body) => frame::encode(out, header, body),
            Body::ReadMany(body) | Body::Lease(body) | Body::Release(body) => {
                frame::encode(out, header, body)
            }
            Body::Load(body) => frame::encode(out, header, body),
            Body::LoadCopies(body) => frame::encode(out, header, body),
            Body::Free(body) => frame::encode(out, header, body),
            Body::Ring(body) => frame::encode(out, header, body),
            Body::Drain(body) => frame::encode(out, header, body),
            Body::Mount(body) => frame::encode(out, header, body),
            Body::Pin(body) => frame::encode(out, header, body),
            Body::StartJob(body) => frame::encode(out, header, body),
            Body::StartCopiesJob(body) => frame::encode(out, header, body),
            Body::CancelJob(body) => frame::encode(out, header, body),
            Body::Jobs(body) => frame::encode(out, header, body),
            Body::LoadPart(body) => frame::encode(out, header, body),
            Body::LoadPartCopies(body) => frame::encode(out, header, body),
            Body::Put(body) | Body::Delete(body) => frame::encode(out, header, body),
            Body::Rename(body) => frame::encode(out, header, body),
            Body::PutPart(body) => frame::encode(out, header, body),
            Body::PutEnd(body) => frame::encode(out, header, body),
            Body::Ping | Body::Status | Body::Pins => frame::encode_empty(out, header),
        }
    }
}

/// Where a payload has to lie.
#[derive(Debug)]
pub(crate) enum Landing {
    /// Anywhere: a slice of the receive buffer if it is small, else a buffer made for it.
    Any,
    /// In the spare capacity of this empty buffer, which has room for the whole payload.
    Buffer(BytesMut),
}

/// Where a payload lies.
#[derive(Debug)]
pub(crate) enum Landed {
    /// The connection's choice of [`Landing::Any`].
    Slice(Bytes),
    /// The buffer of [`Landing::Buffer`].
    Buffer(BytesMut),
}

impl Landed {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Landed::Slice(bytes) => bytes,
            Landed::Buffer(buffer) => buffer,
        }
    }

    /// Returns the landing for another try.
    pub(crate) fn into_landing(self) -> Landing {
        match self {
            Landed::Slice(_) => Landing::Any,
            Landed::Buffer(mut buffer) => {
                buffer.clear();
                Landing::Buffer(buffer)
            }
        }
    }
}

impl Landing {
    fn into_empty(self) -> Landed {
        match self {
            Landing::Any => Landed::Slice(Bytes::new()),
            Landing::Buffer(buffer) => Landed::Buffer(buffer),
        }
    }
}

/// One reply frame of any status; header and body have passed their checksums.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) header: Header,
    pub(crate) body: Bytes,
}

/// The result of one part of a request.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Index of the range in a `ReadMany`, otherwise 0.
    pub(crate) part: usize,
    /// The reply, or why the connection ended before it: then another try makes sense.
    pub(crate) outcome: Result<Reply, Error>,
    /// The payload, or the landing as it was given.
    pub(crate) landed: Landed,
}

/// Where answers go: to one caller, to the collector of a batch, whose channel has room for all, or
/// nowhere.
#[derive(Debug)]
enum Answers {
    One(Option<oneshot::Sender<Answer>>),
    Many(mpsc::Sender<Answer>),
    /// The request is sent for its effect.
    Nobody,
}

impl Answers {
    /// True if no caller waits any more.
    fn is_closed(&self) -> bool {
        match self {
            Answers::One(sender) => sender.as_ref().is_none_or(oneshot::Sender::is_closed),
            Answers::Many(sender) => sender.is_closed(),
            Answers::Nobody => false,
        }
    }

    /// True if no caller ever waited.
    fn is_nobody(&self) -> bool {
        matches!(self, Answers::Nobody)
    }

    /// Hands out an answer; without a caller it is dropped.
    fn send(&mut self, answer: Answer) {
        match self {
            Answers::One(sender) => {
                if let Some(sender) = sender.take() {
                    drop(sender.send(answer));
                }
            }
            Answers::Many(sender) => drop(sender.try_send(answer)),
            Answers::Nobody => {}
        }
    }
}

/// One part of a request that is not answered yet.
#[derive(Debug)]
struct Part {
    /// None once answered, or while the payload is landing.
    landing: Option<Landing>,
    /// Most payload bytes the reply may bring.
    payload_max: u32,
}

/// A request on its way to the driver.
#[derive(Debug)]
struct Request {
    body: Body,
    parts: SmallVec<[Part; 1]>,
    answers: Answers,
    deadline: Instant,
    /// True if it waits for a connection up to its deadline; else it is answered when a try to connect
    /// fails, so that it can go elsewhere.
    is_patient: bool,
}

/// What the driver reports of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    /// The last `Hello` reply.
    pub(crate) hello: Option<Arc<HelloInfo>>,
    /// What the node told clients on its machine.
    pub(crate) neighbour: Option<Arc<Neighbour>>,
    /// The node's memory, if this connection got at it.
    pub(crate) attachment: Option<Arc<Attachment>>,
    /// Why there is no connection, when the last try to connect failed.
    pub(crate) failure: Option<Error>,
}

/// How long a caller waits for the answers to a batch.
#[derive(Clone, Copy)]
pub(crate) struct Patience<'a> {
    /// Longest time between two answers.
    pub(crate) silence_max: Duration,
    /// If set, the caller still waits on, also for a connection, until the deadline. None if another
    /// node may answer instead.
    pub(crate) goes_on: Option<&'a (dyn Fn() -> bool + Sync)>,
}

/// Handle of a lane. The driver ends when the last clone is gone.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    address: Arc<str>,
    requests: mpsc::Sender<Request>,
    link: watch::Receiver<Link>,
    heard: Arc<Heard>,
}

/// When a connection last brought bytes.
#[derive(Debug)]
pub(crate) struct Heard {
    start: Instant,
    /// Milliseconds since `start`, rounded up.
    last_ms: AtomicU64,
}

impl Heard {
    fn new() -> Heard {
        Heard { start: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    fn note(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.start).as_millis() as u64;
        self.last_ms.store(elapsed + 1, Ordering::Relaxed);
    }

    /// True if bytes ever came.
    fn is_any(&self) -> bool {
        self.last_ms.load(Ordering::Relaxed) > 0
    }

    /// True if bytes came after this moment, or less than 1 ms before.
    fn is_after(&self, moment: Instant) -> bool {
        let elapsed = moment.saturating_duration_since(self.start).as_millis() as u64;
        self.last_ms.load(Ordering::Relaxed) > elapsed + 1
    }
}

impl Lane {
    /// Starts the driver of a lane to the first of `addresses` that can be reached, tried in order at
    /// each connect. Nothing is connected before the first request. A Unix socket among them counts
    /// only if the node behind it has the number `node`, where that is known; `claim` is proved on each
    /// connection.
    ///
    /// # Panics
    /// If there is no address.
    pub(crate) fn start(
        addresses: SmallVec<[Arc<str>; 2]>,
        (node, claim): (Option<u64>, Option<Claim>),
        config: Arc<ClientConfig>,
        runtime: &Handle,
    ) -> Lane {
        let (requests, queue) = mpsc::channel(config.requests_in_flight_max);
        let (link_sender, link) = watch::channel(Link::default());
        let address = addresses[0].clone();
        let heard = Arc::new(Heard::new());
        let driver = driver::Driver {
            addresses,
            node,
            claim,
            config,
            requests: queue,
            link: link_sender,
            heard: heard.clone(),
            held: None,
        };
        runtime.spawn(driver.run());
        Lane { address, requests, link, heard }
    }

    /// Returns the address that is tried first.
    pub(crate) fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// Returns the driver's news, see [`Link`].
    pub(crate) fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// True if an answer ever came.
    pub(crate) fn was_ever_heard(&self) -> bool {
        self.heard.is_any()
    }

    /// True if bytes came on the connection since this moment.
    pub(crate) fn was_heard_since(&self, moment: Instant) -> bool {
        self.heard.is_after(moment)
    }

    /// Sends one request and waits for its one answer, and for a connection without one.
    ///
    /// # Errors
    /// Those no other try can heal: the deadline has passed ([`Error::Connect`] or [`Error::NoHello`]
    /// if it was for want of a connection), or the driver is gone.
    pub(crate) async fn exchange(
        &self,
        body: Body,
        landing: Landing,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        match time::timeout_at(deadline, self.answer_to(body, landing, deadline, true)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.too_late()),
        }
    }

    /// As [`Lane::exchange`], but only while `goes_on` returns true; it is called again and again once
    /// `patience` has passed without an answer. None if it returns false, because the request belongs
    /// elsewhere by now.
    ///
    /// # Errors
    /// As [`Lane::exchange`].
    pub(crate) async fn exchange_while(
        &self,
        body: Body,
        landing: Landing,
        deadline: Instant,
        patience: Duration,
        goes_on: impl Fn() -> bool + Send,
    ) -> Result<Option<Answer>, Error> {
        let answer = self.answer_to(body, landing, deadline, true);
        tokio::pin!(answer);
        let mut wait = patience;
        loop {
            let end = Instant::now().checked_add(wait).map_or(deadline, |end| end.min(deadline));
            match time::timeout_at(end, answer.as_mut()).await {
                Ok(answer) => return answer.map(Some),
                Err(_) if end == deadline => return Err(self.too_late()),
                Err(_) if goes_on() => wait = GOES_ON_STEP.min(patience),
                Err(_) => return Ok(None),
            }
        }
    }

    /// Sends one request and waits for its one answer; if there can be no connection the answer says so.
    /// The caller limits the wait; the node learns the deadline.
    ///
    /// # Errors
    /// The driver is gone.
    pub(crate) async fn ask(
        &self,
        body: Body,
        landing: Landing,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        self.answer_to(body, landing, deadline, false).await
    }

    /// As [`Lane::ask`] for what needs no landing, but no longer than until the deadline.
    ///
    /// # Errors
    /// Why there is no connection, [`Error::DeadlineExceeded`], or the driver is gone.
    pub(crate) async fn ask_until(&self, body: Body, deadline: Instant) -> Result<Reply, Error> {
        match time::timeout_at(deadline, self.ask(body, Landing::Any, deadline)).await {
            Ok(answer) => answer?.outcome,
            Err(_) => Err(self.too_late()),
        }
    }

    async fn answer_to(
        &self,
        body: Body,
        landing: Landing,
        deadline: Instant,
        is_patient: bool,
    ) -> Result<Answer, Error> {
        let receiver = self.begin(body, landing, deadline, is_patient).await?;
        receiver.await.map_err(|_| self.gone())
    }

    /// Sends one request behind all that were sent before; its one answer comes out of the channel. With
    /// `is_patient` it waits for a connection; else the answer says so if there can be none.
    ///
    /// # Errors
    /// The driver is gone.
    pub(crate) async fn begin(
        &self,
        body: Body,
        landing: Landing,
        deadline: Instant,
        is_patient: bool,
    ) -> Result<oneshot::Receiver<Answer>, Error> {
        let payload_max = match &body {
            Body::Read(range) | Body::Peek(range) | Body::Fetch(range) => range.length,
            _ => 0,
        };
        let (sender, receiver) = oneshot::channel();
        let request = Request {
            body,
            parts: smallvec![Part { landing: Some(landing), payload_max }],
            answers: Answers::One(Some(sender)),
            deadline,
            is_patient,
        };
        let sent = self.requests.send(request).await;
        sent.map_err(|_| self.gone())?;
        Ok(receiver)
    }

    /// Returns the node's memory, while the connection stands on which it came.
    pub(crate) fn attachment(&self) -> Option<Arc<Attachment>> {
        self.link.borrow().attachment.clone().filter(|it| it.stands())
    }

    /// Sends a request that needs no answer, if there is room for it.
    pub(crate) fn send(&self, body: Body, deadline: Instant) {
        let parts = smallvec![Part { landing: Some(Landing::Any), payload_max: 0 }];
        let answers = Answers::Nobody;
        // Without room the request is left out, and also when the driver is gone.
        let is_patient = true;
        let _ = self.requests.try_send(Request { body, parts, answers, deadline, is_patient });
    }

    /// Sends a `ReadMany` or a `Lease` and collects an answer for each range, in order, for as long as
    /// `patience` lets. The landings of ranges that got no answer in time stay with the driver.
    pub(crate) async fn exchange_many(
        &self,
        op: Op,
        ranges: Vec<Range>,
        landings: Vec<Landing>,
        deadline: Instant,
        patience: Patience<'_>,
    ) -> Vec<Result<Answer, Error>> {
        assert_eq!(ranges.len(), landings.len());
        let brings_bytes = op == Op::ReadMany;
        let count = ranges.len();
        let mut answers: Vec<Option<Answer>> = Vec::new();
        answers.resize_with(count, || None);
        let (sender, mut receiver) = mpsc::channel(count.max(1));
        let parts = ranges
            .iter()
            .zip(landings)
            .map(|(range, landing)| Part {
                landing: Some(landing),
                payload_max: if brings_bytes { range.length } else { 0 },
            })
            .collect();
        let batch = ReadManyRequest { ranges };
        let request = Request {
            parts,
            body: if brings_bytes { Body::ReadMany(batch) } else { Body::Lease(batch) },
            answers: Answers::Many(sender),
            deadline,
            is_patient: patience.goes_on.is_some(),
        };
        let limit = |wait| {
            Instant::now().checked_add(wait).map_or(deadline, |end: Instant| end.min(deadline))
        };
        // Until then answers are waited for, and after that for as long as nothing else can be done.
        let timer = time::sleep_until(limit(patience.silence_max));
        tokio::pin!(timer);
        let collect = async {
            let mut sending = std::pin::pin!(self.requests.send(request));
            let mut is_sent = false;
            let mut answered = 0;
            while answered < count {
                tokio::select! {
                    biased;
                    sent = &mut sending, if !is_sent => {
                        sent.map_err(|_| self.gone())?;
                        is_sent = true;
                    }
                    answer = receiver.recv(), if is_sent => {
                        let answer = answer.ok_or_else(|| self.gone())?;
                        let part = answer.part;
                        answers[part] = Some(answer);
                        answered += 1;
                        if patience.goes_on.is_none() {
                            timer.as_mut().reset(limit(patience.silence_max));
                        }
                    }
                    () = &mut timer => {
                        if timer.deadline() >= deadline || !patience.goes_on.is_some_and(|it| it()) {
                            return Err(self.too_late());
                        }
                        timer.as_mut().reset(limit(GOES_ON_STEP));
                    }
                }
            }
            Ok(())
        };
        let failure = collect.await.err();
        let missing = || failure.clone().unwrap_or_else(|| self.gone());
        let answers = answers.into_iter();
        answers.map(|answer| answer.ok_or_else(missing)).collect()
    }

    /// Returns why the deadline passed: there was no connection, or no answer.
    fn too_late(&self) -> Error {
        let link = self.link.borrow();
        link.failure.clone().unwrap_or(Error::DeadlineExceeded)
    }

    /// Returns the error when the node is connected and does not answer.
    pub(crate) fn silent(&self) -> Error {
        let reason = "the node does not answer".into();
        Error::ConnectionLost { address: self.address.clone(), reason }
    }

    /// Returns the error when the task behind this handle has ended.
    pub(crate) fn gone(&self) -> Error {
        Error::ConnectionLost {
            address: self.address.clone(),
            reason: "the runtime that drove it has stopped".into(),
        }
    }
}
