//! Reading many ranges at once: one request for each shard instead of one for each range.
//!
//! Every range is cut into pieces as a single read is; the pieces of one shard then share `ReadMany`
//! frames, each within the limits of the node. Pieces that only have to be tried again stay a batch;
//! the rare ones that need more than that (a forgotten file id, damaged bytes) are read one by one.
//! Always holds: results come in the order of the ranges, and a range fails alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use millrace_proto::frame::PAYLOAD_LENGTH_MAX;
use millrace_proto::message::{RANGES_MAX, READ_MANY_BYTES_MAX};
use millrace_proto::{Op, Status, feature};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::Client;
use crate::connection::{Answer, Landed, Landing, Lane, Patience};
use crate::error::Error;
use crate::failover::{self, Verdict};
use crate::file::{File, FileId, HelloInfo};
use crate::piece::{Piece, Terms};
use crate::read::{self, Miss, ReadOptions};
use crate::reply::{self, Setback};
use crate::topology::{Place, Topology};

/// Most batches of one call in flight. Guessed: two for each shard of a small node.
const WINDOW_BATCHES_MAX: usize = 16;
/// Most pieces of a batch that are read one by one at the same time. Guessed.
const WINDOW_SINGLES_MAX: usize = 16;
/// How often a batch is sent to a member of a cluster that is busy, or has to look up files, before its
/// pieces are read one by one.
const BATCH_TRIES: u32 = 3;
/// Bytes of a request body that ranges cannot use: the vector's own length and offset. Derived.
const BODY_RESERVE: usize = 64;
/// Bytes of one range in a request body. Derived: the archive's layout.
const RANGE_SIZE: usize = 36;

// Then a batch of one piece is always within the limit.
const _: () = assert!(PAYLOAD_LENGTH_MAX as u64 <= READ_MANY_BYTES_MAX);

/// One piece of one range on its way.
#[derive(Debug)]
struct Job {
    range_index: usize,
    piece_index: usize,
    file: Arc<File>,
    piece: Piece,
    landing: Landing,
}

/// One range of the caller.
#[derive(Debug)]
enum Slot {
    /// It failed before anything was sent.
    Failed(Error),
    /// Its pieces so far, and what is left of their common buffer.
    Open { pieces: Vec<Option<Landed>>, rest: BytesMut },
}

type Outcome = (usize, usize, Result<Landed, Error>);

impl Client {
    /// Reads many ranges, each of a file, an offset and a length in bytes, and clamped to the end of
    /// its file. There is one result for each range, in order.
    ///
    /// ```no_run
    /// # async fn example(client: millrace_client::Client) -> Result<(), millrace_client::Error> {
    /// let file = client.stat("datasets/train.bin").await?;
    /// let ranges = [(&file, 0, 4096), (&file, 1 << 20, 4096)];
    /// for bytes in client.read_many(&ranges).await {
    ///     println!("{} bytes", bytes?.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Each range has its own, as [`Client::read`]. Ranges beyond
    /// [`ClientConfig::read_length_max`](crate::ClientConfig::read_length_max) bytes in sum are
    /// [`Error::InvalidArgument`].
    pub async fn read_many(&self, ranges: &[(&File, u64, u64)]) -> Vec<Result<Bytes, Error>> {
        self.read_many_with(ranges, ReadOptions::default()).await
    }

    /// As [`Client::read_many`], with other options; the deadline is for all ranges together.
    ///
    /// # Errors
    /// As [`Client::read_many`].
    pub async fn read_many_with(
        &self,
        ranges: &[(&File, u64, u64)],
        options: ReadOptions,
    ) -> Vec<Result<Bytes, Error>> {
        let terms = self.terms(options);
        let topology = self.topology();
        let (mut slots, mut jobs) = self.jobs_of(ranges);
        jobs.retain_mut(|job| {
            let found = self.read_in_place(&job.file, job.piece, &mut job.landing, terms.verify);
            let Some(landed) = found else { return true };
            settle(&mut slots, (job.range_index, job.piece_index, Ok(landed)));
            false
        });
        let mut batches = into_batches(&topology, jobs, |place| {
            let hello = topology.lane(place).link().borrow().hello.clone();
            self.batch_length_max(hello.as_ref().unwrap_or(&topology.hello))
        });
        let mut tasks = JoinSet::new();
        loop {
            while tasks.len() < WINDOW_BATCHES_MAX
                && let Some((place, batch)) = batches.pop()
            {
                let (client, topology) = (self.clone(), topology.clone());
                tasks.spawn(async move {
                    let batch = client.read_batch(&topology, place, batch, terms);
                    batch.await
                });
            }
            match tasks.join_next().await {
                None => break,
                Some(Ok(outcomes)) => {
                    for outcome in outcomes {
                        settle(&mut slots, outcome);
                    }
                }
                // The ranges of a batch that ended without outcomes stay incomplete.
                Some(Err(_)) => {}
            }
        }
        let slots = slots.into_iter();
        slots.map(|slot| finish(slot, self.stopped())).collect()
    }

    /// Cuts the ranges into jobs. A range of several pieces lands in one buffer.
    fn jobs_of(&self, ranges: &[(&File, u64, u64)]) -> (Vec<Slot>, Vec<Job>) {
        let mut slots = Vec::with_capacity(ranges.len());
        let mut jobs = Vec::with_capacity(ranges.len());
        let mut length_left = self.config().read_length_max;
        for (range_index, &(file, offset, length)) in ranges.iter().enumerate() {
            let pieces = match self.cut(file, offset, length) {
                Ok(pieces) => pieces,
                Err(error) => {
                    slots.push(Slot::Failed(error));
                    continue;
                }
            };
            let length = read::total_length(&pieces);
            let Some(left) = length_left.checked_sub(length as u64) else {
                slots.push(Slot::Failed(Error::InvalidArgument(
                    "the ranges together are longer than read_length_max; ask for fewer at once"
                        .to_owned(),
                )));
                continue;
            };
            length_left = left;
            let (landings, rest): (Vec<Landing>, BytesMut) = if pieces.len() == 1 {
                (vec![Landing::Any], BytesMut::new())
            } else {
                let buffer = BytesMut::with_capacity(length);
                let (buffers, rest) = read::split_for(&pieces, buffer);
                (buffers.into_iter().map(Landing::Buffer).collect(), rest)
            };
            let file = Arc::new(file.clone());
            let mut missing = Vec::new();
            missing.resize_with(pieces.len(), || None);
            slots.push(Slot::Open { pieces: missing, rest });
            let pairs = pieces.into_iter().zip(landings);
            jobs.extend(pairs.enumerate().map(|(piece_index, (piece, landing))| Job {
                range_index,
                piece_index,
                file: file.clone(),
                piece,
                landing,
            }));
        }
        (slots, jobs)
    }

    /// Returns the most ranges in one frame, at least 1.
    fn batch_length_max(&self, hello: &HelloInfo) -> usize {
        let by_body = (hello.body_length_max as usize).saturating_sub(BODY_RESERVE) / RANGE_SIZE;
        RANGES_MAX
            .min(hello.ranges_max as usize)
            .min(hello.requests_in_flight_max as usize)
            .min(self.config().requests_in_flight_max)
            .min(by_body)
            .max(1)
    }

    /// Reads the jobs of one shard, together as long as that works.
    async fn read_batch(
        &self,
        topology: &Topology,
        place: Place,
        mut jobs: Vec<Job>,
        terms: Terms,
    ) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(jobs.len());
        if !topology.hello.offers(feature::READ_MANY) {
            self.read_singly(jobs, terms, &mut outcomes).await;
            return outcomes;
        }
        let was_member = topology.cluster.is_some();
        let mut retry = self.retry(terms.deadline);
        let mut tries = 0;
        while !jobs.is_empty() {
            tries += 1;
            let ranges: Vec<_> = jobs.iter().map(|job| job.piece.range(&job.file)).collect();
            let landings = jobs
                .iter_mut()
                .map(|job| std::mem::replace(&mut job.landing, Landing::Any))
                .collect();
            let lane = topology.lane(place);
            let length = ranges.iter().map(|range| u64::from(range.length)).sum();
            let is_alone = || self.network().is_alone();
            let patience = Patience {
                silence_max: self.patience(length),
                goes_on: if was_member { None } else { Some(&is_alone) },
            };
            let asked_at = Instant::now();
            let answers =
                lane.exchange_many(Op::ReadMany, ranges, landings, terms.deadline, patience);
            let answers = answers.await.into_iter();
            let answers = answers.map(|answer| answer.map_err(|error| retry.end(error))).collect();
            // A node that was alone may have turned out to be in a cluster meanwhile.
            let is_member = was_member || !is_alone();
            let mut sorted = sort(jobs, answers, (terms.verify, is_member), &mut outcomes);
            match sorted.lost.take() {
                // The member is alive, and only slow.
                Some(true) if lane.was_heard_since(asked_at) => {}
                Some(was_silent) => {
                    topology.member(place.member).suspect(place.shard, was_silent);
                }
                None => {}
            }
            if is_member {
                self.introduce(lane, &mut sorted, tries, terms).await;
            }
            self.read_singly(sorted.singly, terms, &mut outcomes).await;
            // Pieces whose source fails are given up when they are all that is left.
            let fails = |cause: &Error| cause.status() == Some(Status::SourceError);
            let other = sorted.again.iter().find(|(_, cause)| !fails(cause));
            let Some((_, cause)) = other.or(sorted.again.first()) else {
                break;
            };
            let in_time = retry.pause(sorted.wait_min, cause.clone()).await.is_ok();
            jobs = Vec::new();
            for (job, cause) in sorted.again {
                if in_time {
                    jobs.push(job);
                } else {
                    outcomes.push((job.range_index, job.piece_index, Err(cause)));
                }
            }
        }
        outcomes
    }

    /// Asks a member to look up the files that it does not know, each once, so that their pieces can be
    /// asked for together again. What a member cannot answer after some tries is read one by one.
    async fn introduce(&self, lane: &Lane, sorted: &mut Sorted, tries: u32, terms: Terms) {
        let unknown = std::mem::take(&mut sorted.unknown);
        if tries > BATCH_TRIES {
            let again = std::mem::take(&mut sorted.again);
            sorted.singly.extend(again.into_iter().map(|(job, _)| job));
            sorted.singly.extend(unknown.into_iter().map(|(job, _)| job));
            return;
        }
        let mut files: HashMap<FileId, Arc<File>> = HashMap::new();
        for (job, _) in &unknown {
            files.entry(job.file.id).or_insert_with(|| job.file.clone());
        }
        let mut known = HashSet::new();
        let mut files = files.into_values();
        let mut tasks = JoinSet::new();
        loop {
            while tasks.len() < WINDOW_SINGLES_MAX
                && let Some(file) = files.next()
            {
                let (client, lane) = (self.clone(), lane.clone());
                let end = terms.deadline.min(Instant::now() + self.config().attempt_timeout);
                tasks.spawn(async move {
                    let looked = client.restat_at(&lane, &file, end);
                    let looked = tokio::time::timeout_at(end, looked).await;
                    looked.is_ok_and(|it| it.is_ok()).then_some(file.id)
                });
            }
            match tasks.join_next().await {
                None => break,
                Some(found) => known.extend(found.ok().flatten()),
            }
        }
        for (job, cause) in unknown {
            if known.contains(&job.file.id) {
                sorted.again.push((job, cause));
            } else {
                sorted.singly.push(job);
            }
        }
    }

    /// Reads jobs one by one, several at a time.
    async fn read_singly(&self, jobs: Vec<Job>, terms: Terms, outcomes: &mut Vec<Outcome>) {
        let mut jobs = jobs.into_iter();
        let mut tasks = JoinSet::new();
        loop {
            while tasks.len() < WINDOW_SINGLES_MAX
                && let Some(job) = jobs.next()
            {
                let client = self.clone();
                tasks.spawn(async move {
                    let read = client.read_piece(&job.file, job.piece, job.landing, terms);
                    (job.range_index, job.piece_index, read.await)
                });
            }
            match tasks.join_next().await {
                None => return,
                Some(Ok(outcome)) => outcomes.push(outcome),
                // A piece without an outcome stays incomplete.
                Some(Err(_)) => {}
            }
        }
    }
}

/// Jobs of a batch that are not done.
#[derive(Debug, Default)]
struct Sorted {
    /// Jobs to be sent again, together, each with the error to return if there is no time left.
    again: Vec<(Job, Error)>,
    /// How long to wait before that.
    wait_min: Duration,
    /// Jobs to be read one by one.
    singly: Vec<Job>,
    /// Jobs of files that a member of a cluster does not know.
    unknown: Vec<(Job, Error)>,
    /// Set if a member of a cluster was lost: true if it did not answer.
    lost: Option<bool>,
}

/// Sorts the answers to a batch. Jobs that are done, well or not, go to `outcomes`. What a member of a
/// cluster cannot answer now is read one by one, because another member can.
fn sort(
    jobs: Vec<Job>,
    answers: Vec<Result<Answer, Error>>,
    (verify, is_member): (bool, bool),
    outcomes: &mut Vec<Outcome>,
) -> Sorted {
    let mut sorted = Sorted::default();
    for (mut job, answer) in jobs.into_iter().zip(answers) {
        let (landed, miss) = match answer {
            Ok(answer) => read::judge(&job.file, job.piece, answer, verify),
            Err(_) if is_member => {
                // The landing is still with its driver; the next try has one of its own.
                sorted.lost = Some(true);
                sorted.singly.push(job);
                continue;
            }
            Err(error) => {
                outcomes.push((job.range_index, job.piece_index, Err(error)));
                continue;
            }
        };
        let result = match miss {
            None => Ok(landed),
            Some(Miss::Setback(Setback::Again { wait_min, cause })) => {
                job.landing = landed.into_landing();
                let is_busy = matches!(cause.status(), Some(Status::Busy | Status::BadChecksum));
                if is_busy || !is_member {
                    sorted.wait_min = sorted.wait_min.max(wait_min);
                    sorted.again.push((job, cause));
                } else {
                    if cause.status().is_none_or(|status| status == Status::ShuttingDown) {
                        sorted.lost.get_or_insert(false);
                    }
                    sorted.singly.push(job);
                }
                continue;
            }
            Some(Miss::Setback(Setback::Restat(cause) | Setback::Stale(cause))) if is_member => {
                job.landing = landed.into_landing();
                sorted.unknown.push((job, cause));
                continue;
            }
            Some(Miss::Damaged(_) | Miss::Setback(Setback::Restat(_))) => {
                job.landing = landed.into_landing();
                sorted.singly.push(job);
                continue;
            }
            Some(Miss::Setback(Setback::Stale(_))) => Err(reply::stale(&job.file.path)),
            Some(Miss::Setback(Setback::Fail(error))) => {
                if is_member && failover::verdict_of(&error) != Verdict::Final {
                    job.landing = landed.into_landing();
                    sorted.singly.push(job);
                    continue;
                }
                Err(error)
            }
        };
        outcomes.push((job.range_index, job.piece_index, result));
    }
    sorted
}

/// Sorts jobs by place into batches of at most this many ranges and [`READ_MANY_BYTES_MAX`] bytes.
fn into_batches(
    topology: &Topology,
    jobs: Vec<Job>,
    length_max: impl Fn(Place) -> usize,
) -> Vec<(Place, Vec<Job>)> {
    /// The batch of a place that is being filled.
    #[derive(Default)]
    struct Open {
        place: Option<Place>,
        batch: Vec<Job>,
        byte_count: u64,
        length_max: usize,
    }
    let mut full = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    for job in jobs {
        let place = topology.place(job.file.id, job.piece.block(), &job.file.path);
        let index = topology.index_of(place);
        if open.len() <= index {
            open.resize_with(index + 1, Default::default);
        }
        let Open { place: at, batch, byte_count, length_max: batch_max } = &mut open[index];
        if at.is_none() {
            (*at, *batch_max) = (Some(place), length_max(place));
        }
        let length = u64::from(job.piece.length);
        if batch.len() == *batch_max || *byte_count + length > READ_MANY_BYTES_MAX {
            full.push((place, std::mem::take(batch)));
            *byte_count = 0;
        }
        batch.push(job);
        *byte_count += length;
    }
    for open in open {
        if let Some(place) = open.place.filter(|_| !open.batch.is_empty()) {
            full.push((place, open.batch));
        }
    }
    full
}

fn settle(slots: &mut [Slot], (range_index, piece_index, result): Outcome) {
    let slot = &mut slots[range_index];
    match (result, &mut *slot) {
        (_, Slot::Failed(_)) => {}
        (Err(error), Slot::Open { .. }) => *slot = Slot::Failed(error),
        (Ok(landed), Slot::Open { pieces, .. }) => pieces[piece_index] = Some(landed),
    }
}

/// Puts a range together; `stopped` is the error if pieces have no outcome.
fn finish(slot: Slot, stopped: Error) -> Result<Bytes, Error> {
    let (mut pieces, rest) = match slot {
        Slot::Failed(error) => return Err(error),
        Slot::Open { pieces, rest } => (pieces, rest),
    };
    if pieces.iter().any(Option::is_none) {
        return Err(stopped);
    }
    if let [landed] = &mut pieces[..]
        && let Some(landed) = landed.take()
    {
        return Ok(read::into_bytes(landed));
    }
    Ok(read::join(pieces, rest).freeze())
}
