//! Reading one range of a file, of any length.
//!
//! ```text
//!  range      ┌────────┬───────────────┬───────────────┬─────┐
//!  blocks     │ piece  │     piece     │     piece     │piece│   cut at block borders
//!             └───┬────┴───────┬───────┴───────┬───────┴──┬──┘
//!             shard 3      shard 0         shard 5     shard 1   asked at once, in a window
//!                 ▼            ▼               ▼          ▼
//!  one buffer [..........................................]      disjoint parts, put together
//! ```
//!
//! Always holds: all bytes of a read are of one version of the file; each piece was compared with its
//! checksums in a task of the caller, never in the connection's; an error leaves no byte behind.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use millrace_proto::message::{ArchivedReadReply, StatRequest};
use millrace_proto::{Status, checksum, frame, placement};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use crate::client::{self, Client};
use crate::config::DURATION_MAX;
use crate::connection::{Answer, Body, Landed, Landing, Lane};
use crate::error::Error;
use crate::failover::{self, Attempt, Errand, Failure, Rescue, Tolerance, Tries, Verdict};
use crate::file::{File, Kind};
use crate::piece::{Piece, Terms};
use crate::reply::{self, Setback};
use crate::topology::{Order, Place, Topology};

/// Most pieces of one read in flight. Guessed: enough to keep every shard of a node at work.
const WINDOW_PIECES_MAX: usize = 16;
/// Most bytes of one read in flight, though always one piece. Guessed.
const WINDOW_BYTES_MAX: usize = 64 << 20;
/// The slowest network that a read of a cluster is patient with, in bytes a second. Guessed: the largest
/// block adds a second to the time that a member has.
const SLOWEST_BYTES_PER_S: u32 = 16 << 20;

/// What one read may do differently from the client's settings. Name what is different, and take the rest
/// from `..ReadOptions::default()`, because fields will be added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// If the bytes are compared with the node's checksums; None for the client's setting.
    pub verify: Option<bool>,
    /// Time the read may take, 1 ms to one day; None for the client's deadline.
    pub deadline: Option<Duration>,
    /// After how long the next member of a cluster is asked as well, if that is sooner than
    /// [`ClientConfig::attempt_timeout`](crate::ClientConfig::attempt_timeout): the first good answer
    /// counts. None to wait for that time.
    pub hedge: Option<Duration>,
}

/// Why a piece is not there yet, with its landing for another try.
#[derive(Debug)]
pub(crate) enum Miss {
    /// The node or the connection failed.
    Setback(Setback),
    /// The payload does not match its checksums, first at this offset of the file in bytes.
    Damaged(u64),
}

impl Client {
    /// Reads `length` bytes from `offset`, or what the file has of them: a range past the end gives
    /// fewer bytes, or none.
    ///
    /// # Errors
    /// [`Error::Stale`] when the file has changed since it was looked up, [`Error::Corrupt`] when the
    /// bytes do not match their checksums twice in a row, [`Error::InvalidArgument`] for more than
    /// [`ClientConfig::read_length_max`](crate::ClientConfig::read_length_max) bytes, and
    /// [`Error::Status`] with `WrongKind` for a directory.
    pub async fn read(&self, file: &File, offset: u64, length: u64) -> Result<Bytes, Error> {
        let options = ReadOptions::default();
        self.read_with(file, offset, length, options).await
    }

    /// As [`Client::read`], with other options. A read inside one block of up to 16 KiB is a slice of a
    /// 64 KiB receive buffer: copy it if it is to be kept for long.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn read_with(
        &self,
        file: &File,
        offset: u64,
        length: u64,
        options: ReadOptions,
    ) -> Result<Bytes, Error> {
        let terms = self.terms(options);
        let pieces = self.cut(file, offset, length)?;
        match pieces[..] {
            [] => Ok(Bytes::new()),
            [piece] => {
                let landed = self.read_piece(file, piece, Landing::Any, terms).await?;
                Ok(into_bytes(landed))
            }
            _ => {
                let buffer = BytesMut::with_capacity(total_length(&pieces));
                Ok(self.read_pieces(file, &pieces, buffer, terms).await?.freeze())
            }
        }
    }

    /// Appends `length` bytes from `offset` (fewer at the end of the file) to `buffer` and returns it.
    /// The bytes land in its spare capacity without a copy; if that is too small, it grows first.
    ///
    /// The buffer is owned, not borrowed: a dropped future must never leave a connection writing into
    /// memory that its caller uses again. For the same reason it is gone when the read fails.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn read_into(
        &self,
        file: &File,
        offset: u64,
        buffer: BytesMut,
        length: u64,
    ) -> Result<BytesMut, Error> {
        let options = ReadOptions::default();
        self.read_into_with(file, offset, buffer, length, options).await
    }

    /// As [`Client::read_into`], with other options.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn read_into_with(
        &self,
        file: &File,
        offset: u64,
        mut buffer: BytesMut,
        length: u64,
        options: ReadOptions,
    ) -> Result<BytesMut, Error> {
        let terms = self.terms(options);
        let pieces = self.cut(file, offset, length)?;
        buffer.reserve(total_length(&pieces));
        let tail = buffer.split_off(buffer.len());
        let tail = self.read_pieces(file, &pieces, tail, terms).await?;
        buffer.unsplit(tail);
        Ok(buffer)
    }

    /// Makes the choices that `options` leaves to the client.
    pub(crate) fn terms(&self, options: ReadOptions) -> Terms {
        let deadline = match options.deadline {
            Some(deadline) => {
                Instant::now() + deadline.clamp(Duration::from_millis(1), DURATION_MAX)
            }
            None => self.deadline(),
        };
        let verify = options.verify.unwrap_or(self.config().verify);
        Terms { verify, deadline, hedge: options.hedge }
    }

    /// Clamps a range to the file and cuts it at block borders.
    pub(crate) fn cut(&self, file: &File, offset: u64, length: u64) -> Result<Vec<Piece>, Error> {
        check_kind(file)?;
        let length = length.min(file.length.saturating_sub(offset));
        let length_max = self.config().read_length_max.min(isize::MAX as u64);
        if length > length_max {
            return Err(Error::InvalidArgument(format!(
                "a read of {length} bytes is longer than read_length_max, {length_max}; read the file in parts"
            )));
        }
        let block_size = self.topology().hello.block_size;
        let end = offset.saturating_add(length);
        let mut pieces = Vec::new();
        let mut position = offset;
        while position < end {
            let block_left = u64::from(block_size) - position % u64::from(block_size);
            let length = block_left.min(end - position);
            pieces.push(Piece { offset: position, length: length as u32, block_size });
            position += length;
        }
        Ok(pieces)
    }

    /// Reads pieces that follow each other into the spare capacity of an empty `buffer`, several at
    /// a time.
    async fn read_pieces(
        &self,
        file: &File,
        pieces: &[Piece],
        buffer: BytesMut,
        terms: Terms,
    ) -> Result<BytesMut, Error> {
        let (buffers, rest) = split_for(pieces, buffer);
        let mut landed = Vec::new();
        if let ([piece], 1) = (pieces, buffers.len()) {
            for buffer in buffers {
                let landing = Landing::Buffer(buffer);
                landed.push(Some(self.read_piece(file, *piece, landing, terms).await?));
            }
            return Ok(join(landed, rest));
        }
        landed.resize_with(pieces.len(), || None);
        let block_size = pieces.first().map_or(1, |piece| piece.block_size as usize);
        let window = (WINDOW_BYTES_MAX / block_size).clamp(1, WINDOW_PIECES_MAX);
        // Dropped on an error or with the future, it aborts what is still under way.
        let mut tasks = JoinSet::new();
        let mut waiting = pieces.iter().copied().zip(buffers).enumerate();
        loop {
            while tasks.len() < window
                && let Some((index, (piece, buffer))) = waiting.next()
            {
                let mut landing = Landing::Buffer(buffer);
                let found = self.read_in_place(file, piece, &mut landing, terms.verify);
                if found.is_some() {
                    landed[index] = found;
                    continue;
                }
                let (client, file) = (self.clone(), file.clone());
                tasks.spawn(async move {
                    let landed = client.read_piece(&file, piece, landing, terms).await;
                    (index, landed)
                });
            }
            match tasks.join_next().await {
                None => return Ok(join(landed, rest)),
                Some(Ok((index, result))) => landed[index] = Some(result?),
                Some(Err(_)) => return Err(self.stopped()),
            }
        }
    }

    /// Reads one piece, trying again while the deadline allows.
    pub(crate) async fn read_piece(
        &self,
        file: &File,
        piece: Piece,
        mut landing: Landing,
        terms: Terms,
    ) -> Result<Landed, Error> {
        if let Some(landed) = self.read_in_place(file, piece, &mut landing, terms.verify) {
            return Ok(landed);
        }
        let topology = self.topology();
        let place = topology.place(file.id, piece.block(), &file.path);
        let found = self.read_by_lease(file, piece, &mut landing, (&topology, place), terms).await;
        if let Some(landed) = found {
            return Ok(landed);
        }
        if topology.main.is_some() {
            return self.read_alone(file, piece, landing, terms).await;
        }
        let is_well = topology.member(place.member).health.is_well();
        let place =
            if is_well { place } else { topology.place(file.id, piece.block(), &file.path) };
        self.read_member(topology, place, file, piece, landing, terms).await
    }

    /// Reads one piece of a node that is in no cluster.
    async fn read_alone(
        &self,
        file: &File,
        piece: Piece,
        mut landing: Landing,
        terms: Terms,
    ) -> Result<Landed, Error> {
        let mut retry = self.retry(terms.deadline);
        let mut is_damaged = false;
        loop {
            let topology = self.topology();
            let place = topology.place(file.id, piece.block(), &file.path);
            if topology.main.is_none() {
                // The node turned out to be in a cluster, whose members may answer instead.
                let read = self.read_member(topology, place, file, piece, landing, terms);
                return Box::pin(read).await;
            }
            let request = Body::Read(piece.range(file));
            let lane = topology.lane(place);
            let asked = self.ask_alone(lane, request, landing, terms.deadline).await;
            let Some(answer) = asked.map_err(|error| retry.end(error))? else {
                // The landing is still with its driver.
                landing = Landing::Any;
                continue;
            };
            let (landed, miss) = judge(file, piece, answer, terms.verify);
            let (wait_min, cause) = match miss {
                None => return Ok(landed),
                Some(Miss::Setback(Setback::Again { wait_min, cause })) => (wait_min, cause),
                Some(Miss::Setback(Setback::Restat(cause))) => {
                    // This rare case is in a box, because a read that succeeds is moved about.
                    Box::pin(self.restat(file, terms.deadline)).await?;
                    (Duration::ZERO, cause)
                }
                Some(Miss::Setback(Setback::Stale(_))) => return Err(reply::stale(&file.path)),
                Some(Miss::Setback(Setback::Fail(error))) => return Err(error),
                Some(Miss::Damaged(offset)) => {
                    let path = file.path.clone();
                    let error = Error::Corrupt { path, offset };
                    if is_damaged {
                        return Err(error);
                    }
                    is_damaged = true;
                    (Duration::ZERO, error)
                }
            };
            retry.pause(wait_min, cause).await?;
            landing = landed.into_landing();
        }
    }

    /// Reads one piece at a member of a cluster, and at others if that does not go well.
    async fn read_member(
        &self,
        topology: Arc<Topology>,
        place: Place,
        file: &File,
        piece: Piece,
        landing: Landing,
        terms: Terms,
    ) -> Result<Landed, Error> {
        let started = Instant::now();
        let patience = self.patience(u64::from(piece.length));
        let first_wait = failover::first_wait(
            self.config(),
            patience,
            topology.member(place.member),
            place.shard,
        );
        let first_wait = terms.hedge.map_or(first_wait, |hedge| hedge.min(first_wait));
        let member = (topology.member(place.member).clone(), place.shard);
        // A read of a member adds one timer to what a read of a node alone does, and nothing else.
        let first = self.attempt(topology, place, (file, piece, terms), landing);
        let mut first = std::pin::pin!(first);
        let end = (started + first_wait).min(terms.deadline);
        let failure = match time::timeout_at(end, first.as_mut()).await {
            Ok(Ok(landed)) => return Ok(landed),
            Ok(Err(failure)) => Some(failure),
            Err(_) => None,
        };
        let elsewhere = async {
            let errand = ReadErrand { client: self, file, piece, terms };
            let mut tries = Tries::new(self.network(), self.config(), terms.deadline, patience);
            match failure {
                Some(failure) => tries.failed(member, failure)?,
                None => tries.begun(member, started, Box::pin(first)),
            }
            tries.run(&errand).await
        };
        // This is in a box, so that reads that succeed are small.
        let elsewhere: Pin<Box<dyn Future<Output = Result<_, Error>> + Send + '_>> =
            Box::pin(elsewhere);
        let result = elsewhere.await;
        if let Err(Error::Stale { path }) = &result {
            self.network().doubts().note(path);
        }
        result
    }

    /// Returns how long a member may take for this many bytes before the next one is asked as well.
    pub(crate) fn patience(&self, length: u64) -> Duration {
        self.config().attempt_timeout + Duration::from_secs(length) / SLOWEST_BYTES_PER_S
    }

    /// Asks one member for a piece; the member mends what it can.
    async fn attempt(
        &self,
        topology: Arc<Topology>,
        place: Place,
        (file, piece, terms): (&File, Piece, Terms),
        mut landing: Landing,
    ) -> Result<Landed, Failure> {
        let mut tolerance = Tolerance::new(self.config());
        let mut is_known = false;
        loop {
            let lane = topology.lane(place);
            let answer = lane.ask(Body::Read(piece.range(file)), landing, terms.deadline).await;
            let answer = answer.map_err(|error| Failure::bare(error, Verdict::Hard))?;
            let (landed, miss) = judge(file, piece, answer, terms.verify);
            let Some(miss) = miss else { return Ok(landed) };
            landing = landed.into_landing();
            let result = match miss {
                Miss::Damaged(_) if tolerance.damage() => Ok(()),
                Miss::Damaged(offset) => {
                    let path = file.path.clone();
                    Err((Error::Corrupt { path, offset }, Verdict::Hard))
                }
                Miss::Setback(Setback::Restat(_)) if !is_known => {
                    is_known = true;
                    Box::pin(self.restat_at(lane, file, terms.deadline)).await
                }
                // The member knows a version that may be older than ours.
                Miss::Setback(Setback::Stale(_)) if !is_known => {
                    is_known = true;
                    let looked = Box::pin(self.restat_at(lane, file, terms.deadline)).await;
                    looked.map_err(|(error, verdict)| match error.status() {
                        // Another entry has taken the file's place.
                        Some(Status::NotFound | Status::WrongKind) => {
                            (reply::stale(&file.path), Verdict::Denied)
                        }
                        _ => (error, verdict),
                    })
                }
                Miss::Setback(Setback::Stale(_)) => {
                    Err((reply::stale(&file.path), Verdict::Denied))
                }
                Miss::Setback(setback) => tolerance.bear(setback).await,
            };
            if let Err((error, verdict)) = result {
                return Err(Failure { landing, error, verdict });
            }
        }
    }

    /// Has a member look up a file that it does not know.
    ///
    /// # Errors
    /// [`Error::Stale`] if the file has changed, and why the member could not say.
    pub(crate) async fn restat_at(
        &self,
        lane: &Lane,
        file: &File,
        deadline: Instant,
    ) -> Result<(), (Error, Verdict)> {
        let request = Body::Stat(StatRequest { path: file.path.as_ref().to_owned() });
        let answer = lane.ask(request, Landing::Any, deadline).await;
        let answer = answer.map_err(|error| (error, Verdict::Hard))?;
        let reply = match reply::judge(answer.outcome) {
            Ok(reply) => reply,
            Err(Setback::Again { cause, .. }) => {
                let is_gone = cause.status().is_none_or(|it| it == Status::ShuttingDown);
                return Err((cause, if is_gone { Verdict::Gone } else { Verdict::Passing }));
            }
            Err(setback) => {
                let error = setback.into_error();
                let verdict = failover::verdict_of(&error);
                return Err((error, verdict));
            }
        };
        let now = client::stat_reply(&file.path, &reply).map_err(|it| (it, Verdict::Hard))?;
        if now.id == file.id && now.version == file.version && now.length == file.length {
            return Ok(());
        }
        Err((reply::stale(&file.path), Verdict::Denied))
    }

    /// Looks a file up again whose id the node has forgotten.
    async fn restat(&self, file: &File, deadline: Instant) -> Result<(), Error> {
        let now = self.stat_until(file.path.clone(), deadline).await?;
        if now.id == file.id && now.version == file.version && now.length == file.length {
            Ok(())
        } else {
            Err(reply::stale(&file.path))
        }
    }
}

/// A piece that is read at one member after another.
struct ReadErrand<'r> {
    client: &'r Client,
    file: &'r File,
    piece: Piece,
    terms: Terms,
}

impl Errand<Landed> for ReadErrand<'_> {
    fn order(&self, topology: &Topology) -> Order {
        topology.order_of(self.hash(), &self.file.path)
    }

    fn attempt<'a>(
        &'a self,
        topology: Arc<Topology>,
        member: u32,
        landing: Landing,
    ) -> Attempt<'a, Landed>
    where
        Landed: 'a,
    {
        let place = topology.place_at(member, self.hash());
        let what = (self.file, self.piece, self.terms);
        Box::pin(self.client.attempt(topology, place, what, landing))
    }

    fn rescue(&self) -> Rescue<'_, Landed> {
        self.client.read_source(self.file, self.piece)
    }

    fn shard(&self, topology: &Topology, member: u32) -> u32 {
        topology.place_at(member, self.hash()).shard
    }

    fn is_expected(&self) -> bool {
        true
    }
}

impl ReadErrand<'_> {
    fn hash(&self) -> u64 {
        placement::block_hash(self.file.id.into(), self.piece.block())
    }
}

/// Checks one answer to a piece: status, length, then checksums.
pub(crate) fn judge(
    file: &File,
    piece: Piece,
    answer: Answer,
    verify: bool,
) -> (Landed, Option<Miss>) {
    let landed = answer.landed;
    let reply = match reply::judge(answer.outcome) {
        Ok(reply) => reply,
        Err(setback) => return (landed, Some(Miss::Setback(setback))),
    };
    let fail = |error| Some(Miss::Setback(Setback::Fail(error)));
    let payload = landed.bytes();
    if payload.len() != piece.length as usize {
        let error = Error::protocol(format!(
            "{} bytes came for a range of {} bytes of '{}'",
            payload.len(),
            piece.length,
            file.path
        ));
        return (landed, fail(error));
    }
    if !verify {
        return (landed, None);
    }
    let values = match frame::body::<ArchivedReadReply>(&reply.body) {
        Ok(body) => body.checksums.iter().map(|value| value.to_native()),
        Err(error) => return (landed, fail(error.into())),
    };
    let block_start = piece.offset - piece.offset % u64::from(piece.block_size);
    let block_length = u64::from(piece.block_size).min(file.length.saturating_sub(block_start));
    let offset = (piece.offset - block_start) as u32;
    let tag = match reply.header.covers_identity() {
        true => checksum::tag(file.id.into(), file.version, piece.block() as u32),
        false => 0,
    };
    match checksum::verify(payload, offset, block_length as u32, tag, values) {
        Ok(()) => (landed, None),
        Err(offset) => (landed, Some(Miss::Damaged(block_start + u64::from(offset)))),
    }
}

/// Refuses what has no bytes to read.
///
/// # Errors
/// [`Error::Status`] with `WrongKind` for a directory.
pub(crate) fn check_kind(file: &File) -> Result<(), Error> {
    if file.kind == Kind::File {
        return Ok(());
    }
    let message = format!("'{}' is a directory; list it instead", file.path);
    Err(Error::Status { status: Status::WrongKind, message })
}

/// Returns the bytes of all pieces together.
pub(crate) fn total_length(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.length as usize).sum()
}

/// Cuts the spare capacity of an empty buffer into one buffer for each piece, and the rest.
///
/// # Panics
/// If the capacity is less than the pieces.
pub(crate) fn split_for(pieces: &[Piece], mut buffer: BytesMut) -> (Vec<BytesMut>, BytesMut) {
    assert!(buffer.is_empty());
    assert!(buffer.capacity() >= total_length(pieces));
    let buffers = pieces.iter().map(|piece| {
        let rest = buffer.split_off(piece.length as usize);
        std::mem::replace(&mut buffer, rest)
    });
    let buffers = buffers.collect();
    (buffers, buffer)
}

/// Puts pieces together that lie behind each other in memory, and `rest` behind them: no copy.
pub(crate) fn join(landed: Vec<Option<Landed>>, rest: BytesMut) -> BytesMut {
    let mut whole: Option<BytesMut> = None;
    for landed in landed.into_iter().flatten() {
        let piece = match landed {
            Landed::Buffer(buffer) => buffer,
            Landed::Slice(bytes) => BytesMut::from(bytes),
        };
        match &mut whole {
            None => whole = Some(piece),
            Some(whole) => whole.unsplit(piece),
        }
    }
    match whole {
        None => rest,
        Some(mut whole) => {
            whole.unsplit(rest);
            whole
        }
    }
}

pub(crate) fn into_bytes(landed: Landed) -> Bytes {
    match landed {
        Landed::Slice(bytes) => bytes,
        Landed::Buffer(buffer) => buffer.freeze(),
    }
}
