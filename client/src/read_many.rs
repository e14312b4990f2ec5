//! Reading many ranges at once: one request for each shard instead of one for each range.
//!
//! Every range is cut into pieces as a single read is; the pieces of one shard then share `ReadMany`
//! frames, each within the limits of the node. Pieces that only have to be tried again stay a batch;
//! the rare ones that need more than that (a forgotten file id, damaged bytes) are read one by one.
//! Always holds: results come in the order of the ranges, and a range fails alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use millrace_proto::frame::PAYLOAD_LENGTH_MAX;
use millrace_proto::message::{RANGES_MAX, READ_MANY_BYTES_MAX};
use millrace_proto::{Op, feature};
use tokio::task::JoinSet;

use crate::client::Client;
use crate::connection::{Answer, Landed, Landing};
use crate::error::Error;
use crate::file::File;
use crate::read::{self, Miss, Piece, ReadOptions, Terms};
use crate::reply::{self, Setback};
use crate::topology::Topology;

/// Most batches of one call in flight. Guessed: two for each shard of a small node.
const WINDOW_BATCHES_MAX: usize = 16;
/// Bytes of a request body that ranges cannot use: the vector's own length and offset. Derived.
const BODY_RESERVE: usize = 64;
/// Bytes of one range in a request body. Derived: the archive's layout.
const RANGE_SIZE: usize = 36;

// So a batch of one piece is always within the limit.
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
    /// # Errors
    /// Each range has its own, as [`Client::read`]. Ranges beyond
    /// [`ClientConfig::read_length_max`](crate::ClientConfig::read_length_max) bytes in sum are
    /// [`Error::InvalidArgument`].
    pub async fn read_many(&self, ranges: &[(&File, u64, u64)]) -> Vec<Result<Bytes, Error>> {
        self.read_many_with(ranges, ReadOptions::default()).await
    }

    /// [`Client::read_many`] with other options; the deadline is for all ranges together.
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
        let (mut slots, mut jobs) = self.jobs(ranges);
        jobs.retain_mut(|job| {
            let found = self.read_in_place(&job.file, job.piece, &mut job.landing, terms.verify);
            let Some(landed) = found else { return true };
            settle(&mut slots, (job.range_index, job.piece_index, Ok(landed)));
            false
        });
        let mut batches = into_batches(&topology, jobs, self.batch_length_max(&topology));
        let mut tasks = JoinSet::new();
        loop {
            while tasks.len() < WINDOW_BATCHES_MAX
                && let Some((shard_index, batch)) = batches.pop()
            {
                let (client, topology) = (self.clone(), topology.clone());
                tasks.spawn(async move {
                    let batch = client.read_batch(&topology, shard_index, batch, terms);
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
    fn jobs(&self, ranges: &[(&File, u64, u64)]) -> (Vec<Slot>, Vec<Job>) {
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

    /// Most ranges in one frame, at least 1.
    fn batch_length_max(&self, topology: &Topology) -> usize {
        let hello = &topology.hello;
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
        shard_index: usize,
        mut jobs: Vec<Job>,
        terms: Terms,
    ) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(jobs.len());
        if !topology.hello.offers(feature::READ_MANY) {
            self.read_singly(jobs, terms, &mut outcomes).await;
            return outcomes;
        }
        let mut retry = self.retry(terms.deadline);
        while !jobs.is_empty() {
            let ranges = jobs.iter().map(|job| job.piece.range(&job.file)).collect();
            let landings = jobs
                .iter_mut()
                .map(|job| std::mem::replace(&mut job.landing, Landing::Any))
                .collect();
            let lane = topology.lane(shard_index);
            let answers = lane.exchange_many(Op::ReadMany, ranges, landings, terms.deadline).await;
            let answers = answers
                .into_iter()
                .map(|answer| answer.map_err(|error| retry.end(error)))
                .collect();
            let sorted = sort(jobs, answers, terms.verify, &mut outcomes);
            self.read_singly(sorted.singly, terms, &mut outcomes).await;
            let Some((_, cause)) = sorted.again.first() else {
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

    async fn read_singly(&self, jobs: Vec<Job>, terms: Terms, outcomes: &mut Vec<Outcome>) {
        for job in jobs {
            let landed = self.read_piece(&job.file, job.piece, job.landing, terms).await;
            outcomes.push((job.range_index, job.piece_index, landed));
        }
    }
}

/// Jobs of a batch that are not done.
#[derive(Debug, Default)]
struct Sorted {
    /// To be sent again, together, each with the error to tell if there is no time left.
    again: Vec<(Job, Error)>,
    /// How long to wait before that.
    wait_min: Duration,
    /// To be read one by one.
    singly: Vec<Job>,
}

/// Judges the answers to a batch. Jobs that are done, well or not, go to `outcomes`.
fn sort(
    jobs: Vec<Job>,
    answers: Vec<Result<Answer, Error>>,
    verify: bool,
    outcomes: &mut Vec<Outcome>,
) -> Sorted {
    let mut sorted = Sorted::default();
    for (mut job, answer) in jobs.into_iter().zip(answers) {
        let (landed, miss) = match answer {
            Ok(answer) => read::judge(&job.file, job.piece, answer, verify),
            Err(error) => {
                outcomes.push((job.range_index, job.piece_index, Err(error)));
                continue;
            }
        };
        let result = match miss {
            None => Ok(landed),
            Some(Miss::Setback(Setback::Again { wait_min, cause })) => {
                sorted.wait_min = sorted.wait_min.max(wait_min);
                job.landing = landed.into_landing();
                sorted.again.push((job, cause));
                continue;
            }
            Some(Miss::Damaged(_) | Miss::Setback(Setback::Restat(_))) => {
                job.landing = landed.into_landing();
                sorted.singly.push(job);
                continue;
            }
            Some(Miss::Setback(Setback::Stale(_))) => Err(reply::stale(&job.file.path)),
            Some(Miss::Setback(Setback::Fail(error))) => Err(error),
        };
        outcomes.push((job.range_index, job.piece_index, result));
    }
    sorted
}

/// Sorts jobs by shard into batches of at most `length_max` ranges and [`READ_MANY_BYTES_MAX`] bytes.
fn into_batches(topology: &Topology, jobs: Vec<Job>, length_max: usize) -> Vec<(usize, Vec<Job>)> {
    let mut full = Vec::new();
    // Of each shard the batch that is being filled, and its bytes.
    let mut open: Vec<(Vec<Job>, u64)> = Vec::new();
    for job in jobs {
        let shard_index = topology.shard_index(job.file.id, job.piece.block());
        if open.len() <= shard_index {
            open.resize_with(shard_index + 1, Default::default);
        }
        let (batch, byte_count) = &mut open[shard_index];
        let length = u64::from(job.piece.length);
        if batch.len() == length_max || *byte_count + length > READ_MANY_BYTES_MAX {
            full.push((shard_index, std::mem::take(batch)));
            *byte_count = 0;
        }
        batch.push(job);
        *byte_count += length;
    }
    for (shard_index, (batch, _)) in open.into_iter().enumerate() {
        if !batch.is_empty() {
            full.push((shard_index, batch));
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

/// Puts a range together; `stopped` is told if pieces have no outcome.
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
