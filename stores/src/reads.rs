//! Reads of a store: a place, a request for all that touch and wait, and each blank back as soon as it is full.
//!
//! Always holds: a blank that comes back as full has bytes of the one tag that its version was computed from, at
//! its place in the file. So no blank comes back before the answer has said its tag, its range and its length;
//! where it does not say the length, or has no tag, none comes back before the end, and without a tag before a
//! second look. What a request that broke has not filled is asked for once more, each part alone.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::StreamExt as _;
use millrace_node::under_store::{Blank, Errand, FillError, Part, StoreError, check_path};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectStoreExt as _};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::failure::Failure;
use crate::gather::{Answer, Asked, Wait, Waiting};
use crate::hedge::{self, Hedge};
use crate::lengths::LengthKnown;
use crate::pace::Pace;
use crate::remote::Inner;
use crate::tag::Tag;

/// Turns of the other tasks before a request goes out: what was asked for at the same time is in the line then.
const TURNS: usize = 2;

/// Longest object that is read whole from a store without ranges, for a part of it. Derived: the largest block.
const WHOLE_MAX: u64 = 16 << 20;

/// An answer that has begun.
struct Begun {
    /// Tag of the version.
    tag: Tag,
    answer: GetResult,
    /// Which bytes of the object it brings.
    bytes: Range<u64>,
}

/// A request, and the parts that it is for.
struct SharedRead {
    /// Those that are not full, in order.
    left: VecDeque<Waiting>,
    /// Full ones that wait for the end.
    held: Vec<Waiting>,
    /// True if it is for several parts.
    is_shared: bool,
    /// True if all wait for the end.
    is_held: bool,
    /// True if an answer has begun.
    has_begun: bool,
}

impl SharedRead {
    fn new(left: VecDeque<Waiting>) -> SharedRead {
        let is_shared = left.len() > 1;
        SharedRead { left, held: Vec::new(), is_shared, is_held: true, has_begun: false }
    }

    /// Writes the next bytes of the answer. True if they filled a blank.
    fn write(&mut self, mut bytes: &[u8]) -> Result<bool, Failure> {
        let mut has_filled = false;
        while !bytes.is_empty() {
            let Some(waiting) = self.left.front_mut() else {
                let told = "the store sent more than it was asked for";
                return Err(StoreError::Failed(told.into()).into());
            };
            let Asked { blank, written, .. } = &mut waiting.asked;
            let rest = blank.write(bytes);
            *written += (bytes.len() - rest.len()) as u32;
            bytes = rest;
            if blank.is_full() {
                has_filled = true;
                let full = self.left.pop_front();
                // The last one waits for the end, because there is to be no byte after it.
                match full {
                    Some(full) if !self.is_held && !self.left.is_empty() => full.end(Ok(())),
                    full => self.held.extend(full),
                }
            }
        }
        Ok(has_filled)
    }

    /// Takes what is missing from a whole answer that begins at this offset in the file.
    fn take(&mut self, bytes: &[u8], start: u64) -> Result<(), Failure> {
        self.is_held = false;
        let Some(waiting) = self.left.front() else { return Ok(()) };
        let had = (waiting.asked.start() - start) as usize;
        self.write(&bytes[had..]).map(drop)
    }

    /// Answers what has no answer yet.
    fn end(self, result: Result<(), Failure>) {
        let result = result.map_err(|failure| FillError::from(failure.error));
        let is_over = |error: &FillError| match error {
            FillError::Store(error) => error.is_version_gone(),
            _ => true,
        };
        let has_parts = self.is_shared && self.has_begun && !self.is_held;
        let is_again = has_parts && !result.as_ref().is_err_and(is_over);
        for waiting in self.held {
            waiting.end(result.clone());
        }
        for waiting in self.left {
            if is_again { waiting.again() } else { waiting.end(result.clone()) }
        }
    }
}

impl Inner {
    /// Has a part wait for its request. One that `is_alone` does not share it.
    pub(crate) fn join(&self, asked: Asked, is_alone: bool) -> Wait {
        let (part, length) = (asked.part.clone(), u64::from(asked.blank.length()));
        let (reply, answer) = oneshot::channel();
        let spot = self.line.join(&part, length, is_alone, Waiting { asked, reply });
        Wait { spot, answer }
    }

    /// Fills the blank of a part that waits.
    pub(crate) async fn fill(self: Arc<Self>, wait: Wait) -> (Blank, Result<(), FillError>) {
        let mut answer = self.answered(wait).await;
        loop {
            match answer {
                Answer::Done(blank, result) => return (blank, result),
                Answer::Again(asked) => answer = self.answered(self.join(asked, true)).await,
            }
        }
    }

    /// Waits until a request has ended for a part: one that it makes itself, or that of a neighbour.
    async fn answered(self: &Arc<Self>, Wait { spot, mut answer }: Wait) -> Answer {
        let taken = |answer: Result<Answer, _>| answer.expect("a request answers all its parts");
        let place = tokio::select! {
            biased;
            answer = &mut answer => return taken(answer),
            place = self.enter(&self.reads) => place,
        };
        let place = match place {
            Ok(place) => place,
            Err(error) => {
                if let Some(waiting) = self.line.leave(&spot) {
                    waiting.end(Err(error.into()));
                }
                return taken(answer.await);
            }
        };
        let turn = match &self.pace {
            None => None,
            Some(pace) => {
                let turn = tokio::select! {
                    biased;
                    answer = &mut answer => return taken(answer),
                    turn = timeout(self.patience, pace.turn()) => turn,
                };
                let Ok(turn) = turn else {
                    if let Some(waiting) = self.line.leave(&spot) {
                        waiting.end(Err(too_fast(&self.identity).into()));
                    }
                    // The request of a neighbour brings it, and another one may have the place.
                    drop(place);
                    return taken(answer.await);
                };
                Some(turn)
            }
        };
        self.line.has_place();
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
        // Each part may take its time after those before it.
        let begin = |waiting: &Waiting, count: usize| {
            waiting.asked.errand.begin(self.patience.saturating_mul(count as u32))
        };
        let most = self.pace.as_ref().map_or(u64::MAX, Pace::run_max);
        if let Some(run) = self.line.take(&spot, self.reads.available_permits(), most, begin) {
            for unwanted in run.unwanted {
                unwanted.end(Err(FillError::Unwanted));
            }
            if let Some(turn) = turn {
                turn.spend(run.wanted.iter().map(|it| it.asked.end() - it.asked.start()).sum());
            }
            if !run.wanted.is_empty() {
                // The part that has the place may be full before the others are.
                tokio::spawn(Arc::clone(self).request(SharedRead::new(run.wanted), place));
            }
        } else {
            // The request of a neighbour brings it, and another one may have the place.
            drop(place);
        }
        taken(answer.await)
    }

    async fn request(self: Arc<Self>, mut request: SharedRead, place: OwnedSemaphorePermit) {
        let result = self.read(&mut request).await;
        self.breaker.note(result.as_ref().err().is_some_and(|failure| failure.is_outage));
        drop(place);
        request.end(result);
    }

    /// Gives a step of a request its time.
    async fn in_time<T>(
        &self,
        end: Instant,
        step: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        timeout_at(end, step).await.unwrap_or_else(|_| {
            Err(Failure { error: StoreError::Hangs(Arc::clone(&self.identity)), is_outage: true })
        })
    }

    /// Reads the parts of a request, by a second one too if its answer takes long.
    async fn read(&self, request: &mut SharedRead) -> Result<(), Failure> {
        let (Some(first), Some(last)) = (request.left.front(), request.left.back()) else {
            return Ok(());
        };
        let (part, range) = (first.asked.part.clone(), first.asked.start()..last.asked.end());
        let is_held = AtomicBool::new(false);
        let hedge = self.hedge.as_ref().filter(|_| range.end - range.start <= hedge::RANGE_MAX);
        let Some(hedge) = hedge else { return self.read_once(request, &is_held).await };
        let (errand, began) = (Arc::clone(&first.asked.errand), Instant::now());
        let second = {
            let mut first = pin!(self.read_once(request, &is_held));
            tokio::select! {
                biased;
                done = &mut first => {
                    if done.is_ok() {
                        hedge.note(began.elapsed());
                    }
                    return done;
                }
                bytes = self.read_again(hedge, &part, range.clone(), &errand) => {
                    // What has come of the first answer may not count before its end.
                    if is_held.load(Ordering::Relaxed) {
                        return first.await;
                    }
                    bytes
                }
            }
        };
        hedge.note(began.elapsed());
        request.take(&second, range.start)
    }

    /// Waits until a read takes long, and then asks for it a second time. Returns when the answer is whole, and
    /// never if it does not count.
    async fn read_again(
        &self,
        hedge: &Hedge,
        part: &Part,
        range: Range<u64>,
        errand: &Errand,
    ) -> Bytes {
        let asked = async {
            sleep(hedge.wait()?).await;
            let place = self.reads.try_acquire().ok()?;
            if !hedge.take() {
                return None;
            }
            errand.hedge();
            let length = range.end - range.start;
            if let Some(pace) = &self.pace {
                pace.spend(length);
            }
            let location = self.location(&part.path).ok()?;
            let Begun { tag, answer, bytes } =
                self.begin_read(part, &location, range.clone()).await.ok()?;
            let is_length_known = answer.extensions.get::<LengthKnown>().is_some();
            if tag.etag.is_none() || !is_length_known || bytes != range {
                return None;
            }
            let bytes = answer.bytes().await.ok().filter(|it| it.len() as u64 == length);
            drop(place);
            bytes
        };
        match asked.await {
            Some(bytes) => bytes,
            None => std::future::pending().await,
        }
    }

    /// Reads the parts of a request by one answer. Each has the source's time, and those before it have theirs.
    /// `is_held` becomes true once an answer has begun of which nothing counts before its end.
    async fn read_once(
        &self,
        request: &mut SharedRead,
        is_held: &AtomicBool,
    ) -> Result<(), Failure> {
        let (Some(first), Some(last)) = (request.left.front(), request.left.back()) else {
            return Ok(());
        };
        let (part, range) = (first.asked.part.clone(), first.asked.start()..last.asked.end());
        let location = self.location(&part.path)?;
        let mut end = Instant::now() + self.patience;
        let begun = self.begin_read(&part, &location, range.clone());
        let Begun { tag, answer, bytes } = self.in_time(end, begun).await?;
        let is_length_known = answer.extensions.get::<LengthKnown>().is_some();
        if let Some(pace) = &self.pace {
            let more = (bytes.end - bytes.start) - (range.end - range.start);
            pace.spend(more);
        }
        request.is_held = tag.etag.is_none() || !is_length_known;
        is_held.store(request.is_held, Ordering::Relaxed);
        request.has_begun = true;
        let mut stream = answer.into_stream();
        let mut position = bytes.start;
        loop {
            let next =
                async { stream.next().await.transpose().map_err(|it| self.judged(&part, it)) };
            let Some(piece) = self.in_time(end, next).await? else { break };
            let piece_end = position + piece.len() as u64;
            // What a whole object has before the range and after it is left out.
            let is_cut = bytes != range;
            let from = range.start.clamp(position, piece_end) - position;
            let to = if is_cut {
                range.end.clamp(position, piece_end) - position
            } else {
                piece.len() as u64
            };
            position = piece_end;
            if request.write(&piece[from as usize..to.max(from) as usize])? {
                end = Instant::now() + self.patience;
            }
        }
        if !request.left.is_empty() || position != bytes.end {
            let told = "the store sent less than it was asked for";
            return Err(StoreError::Failed(told.into()).into());
        }
        if tag.etag.is_none() {
            // Nothing tied the bytes to the look-up: they count if it would say the same now.
            let look = async { Ok(self.store.head(&location).await?) };
            if !Tag::of(&self.in_time(end, look).await?).is(&tag) {
                return Err(self.judged(&part, StoreError::Changed));
            }
        }
        Ok(())
    }

    /// Asks for a range of the version that a part is of.
    async fn begin_read(
        &self,
        part: &Part,
        location: &Path,
        range: Range<u64>,
    ) -> Result<Begun, Failure> {
        check_path(&part.path)?;
        let tag = self.tag(part, location).await?;
        if range.end > tag.size {
            return Err(StoreError::Changed.into());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let settle = tag.settle(now.as_secs() as i64);
        if !settle.is_zero() && !part.is_settled {
            return Err(StoreError::Settling(settle).into());
        }
        let whole = 0..tag.size;
        let ask = |range: Option<GetRange>| {
            let options = GetOptions { if_match: tag.etag.clone(), range, ..Default::default() };
            self.store.get_opts(location, options)
        };
        let mut answer = match range == whole {
            true => ask(None).await,
            false => ask(Some(GetRange::Bounded(range.clone()))).await,
        };
        let mut bytes = range;
        if bytes != whole {
            let is_refused = answer.as_ref().is_err_and(is_without_ranges);
            self.serves_ranges.store(!is_refused, Ordering::Relaxed);
            if is_refused && tag.size <= WHOLE_MAX {
                answer = ask(None).await;
                bytes = whole;
            }
        }
        let answer = answer.map_err(|error| self.judged(part, error))?;
        if !Tag::of(&answer.meta).is(&tag) {
            return Err(self.judged(part, StoreError::Changed));
        }
        Ok(Begun { tag, answer, bytes })
    }

    /// Finds the tag of the version that a part is of.
    async fn tag(&self, part: &Part, location: &Path) -> Result<Tag, Failure> {
        let known = self.tags.get(&part.file).filter(|tag| tag.version() == part.version);
        if let Some(tag) = known {
            return Ok(tag);
        }
        let meta = self.store.head(location).await?;
        let tag = Tag::of(&meta);
        self.tags.insert(part.file, tag.clone());
        match tag.version() == part.version && !tag.is_blind() {
            true => Ok(tag),
            false => Err(StoreError::Changed.into()),
        }
    }

    /// Forgets the tag of a file whose content is another one by now.
    fn judged(&self, part: &Part, error: impl Into<Failure>) -> Failure {
        let failure = error.into();
        if failure.error.is_version_gone() {
            self.tags.remove(&part.file);
        }
        failure
    }
}

fn too_fast(identity: &str) -> StoreError {
    StoreError::Busy(format!("{identity} is read as fast as it may be (--bandwidth of its mount)"))
}

/// True if a store answered with a whole object where a part was asked for.
fn is_without_ranges(error: &object_store::Error) -> bool {
    // The library has no error of its own for it.
    error.to_string().contains("non-partial response")
}
