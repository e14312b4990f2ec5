//! One pass over all files: read through the cache with the clock running, compare with it stopped.
//!
//! ```text
//!  batch ≤ 64 MiB    read, 32 at once │ clock stops │ compare with the source │ next batch
//! ```
//!
//! Owns the list of files, the clock and the comparison. Always holds: no read of the source is
//! inside the measured time, and memory is bounded by a batch. Files of a live directory change:
//! one that does is named and left out. Bytes that differ while the file did not change are a
//! mismatch, and no second try hides one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use millrace_client::{Client, Error, File, Kind};
use serde::Serialize;

use super::truth::{Truth, difference};
use crate::failure::{Failure, is_about_path};
use crate::fs::cat::pieces;
use crate::walk::{Step, Walk};
use crate::{jobs, output};

/// Most reads at once.
const READS_AT_ONCE: usize = 32;
/// Most pieces being compared at once. Guessed: a store far away answers many requests side by side.
const COMPARED_AT_ONCE: usize = 16;
/// Most bytes being read at once, though always four reads.
const BYTES_AT_ONCE: u64 = 64 << 20;
/// Most bytes of a batch, but for its last piece. Guessed: long enough that starting and ending a
/// batch is lost in the noise, small enough for any machine.
const BATCH_BYTES: u64 = 64 << 20;
/// Most reads of a batch. Guessed, for the same reasons.
const BATCH_READS: usize = 8192;
/// Longest latency that is recorded: an hour in nanoseconds.
const LATENCY_MAX_NS: u64 = 3600 * 1_000_000_000;

/// What the node lists.
#[derive(Default)]
pub(super) struct Listed {
    pub(super) samples: Vec<Sample>,
    /// Directories that could not be listed, with the reason.
    pub(super) unreadable: Vec<(String, String)>,
    /// Entries that the source has and the node does not list: links that lead out of the directory
    /// or nowhere, sockets and the like, names that are not UTF-8.
    pub(super) skipped_count: u64,
}

/// One file that is read, and what is wrong with it: nothing while every byte was that of the source.
pub(super) struct Sample {
    pub(super) file: File,
    pub(super) trouble: Option<FileTrouble>,
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileTrouble {
    /// It changed while it was read.
    Changed,
    /// It cannot be read, for this reason.
    Unreadable(String),
    /// The cache gave another byte than the source at this offset.
    Differs(u64),
}

/// What a pass measured.
#[derive(Serialize)]
pub(super) struct Pass {
    pub(super) name: &'static str,
    /// Files whose every byte matched.
    pub(super) file_count: u64,
    /// Reads with the clock running.
    read_count: u64,
    /// Bytes of those reads.
    pub(super) total_bytes: u64,
    /// Time with the clock running.
    pub(super) seconds: f64,
    pub(super) gb_per_s: f64,
    pub(super) reads_per_s: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

/// At most a block of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    index: usize,
    offset: u64,
    length: u64,
}

/// Lists everything below the directory through the node.
///
/// # Errors
/// If the node is lost.
pub(super) async fn find(client: &Client, truth: &Truth) -> Result<Listed, Failure> {
    let mut found = Listed::default();
    let mut walk = Walk::new(client, "");
    while let Some(step) = walk.next().await? {
        match step {
            Step::Directory { path, entries } => {
                let there = truth.name_count(&path).await;
                found.skipped_count += there.saturating_sub(entries.len()) as u64;
                let files = entries.iter().filter(|entry| entry.kind == Kind::File);
                let sample = |entry| Sample { file: client.file(&path, entry), trouble: None };
                found.samples.extend(files.map(sample));
            }
            // They are counted as what the source has besides.
            Step::Circle | Step::LeftOut { .. } => {}
            Step::Unreadable { path, reason } => found.unreadable.push((path, reason)),
        }
    }
    Ok(found)
}

/// Reads and compares all files that are good so far.
///
/// # Errors
/// If the node is lost.
pub(super) async fn run(
    name: &'static str,
    client: &Client,
    truth: &Arc<Truth>,
    samples: &mut [Sample],
) -> Result<Pass, Failure> {
    let pieces = pieces_of(samples);
    let bar = output::bytes_bar(name, pieces.iter().map(|piece| piece.length).sum());
    let (mut elapsed, mut read_count, mut total_bytes) = (Duration::ZERO, 0, 0);
    let mut latency = Histogram::<u64>::new_with_bounds(1, LATENCY_MAX_NS, 3)
        .expect("bounds and digits are allowed");
    let mut rest = &pieces[..];
    while !rest.is_empty() {
        let (batch, behind) = rest.split_at(batch_length(rest));
        rest = behind;
        let mut outcomes = Vec::with_capacity(batch.len());
        let start = |piece: Piece| {
            let (client, file) = (client.clone(), samples[piece.index].file.clone());
            async move {
                let started = Instant::now();
                let result = client.read(&file, piece.offset, piece.length).await;
                (piece, result, started.elapsed())
            }
        };
        let done = |outcome: (Piece, Result<Bytes, Error>, Duration)| {
            bar.inc(outcome.0.length);
            outcomes.push(outcome);
            Ok(())
        };
        let largest = batch.iter().map(|piece| piece.length).max().unwrap_or(0);
        let at_once = jobs::window(BYTES_AT_ONCE, largest, 4, READS_AT_ONCE);
        let started = Instant::now();
        jobs::for_each(batch.iter().copied(), at_once, start, done).await?;
        elapsed += started.elapsed();
        // From here on the clock stands still.
        for (_, result, took) in &outcomes {
            if let Ok(bytes) = result {
                read_count += 1;
                total_bytes += bytes.len() as u64;
                latency.saturating_record(took.as_nanos() as u64);
            }
        }
        let compare = |(piece, result, _): (Piece, Result<Bytes, Error>, Duration)| {
            let (client, truth) = (client.clone(), Arc::clone(truth));
            let file = samples[piece.index].file.clone();
            async move { (piece.index, judge(&client, &truth, &file, piece, result).await) }
        };
        let mut troubles = Vec::new();
        let compared = |(index, trouble): (usize, Result<Option<FileTrouble>, Failure>)| {
            troubles.extend(trouble?.map(|trouble| (index, trouble)));
            Ok(())
        };
        jobs::for_each(outcomes, COMPARED_AT_ONCE, compare, compared).await?;
        for (index, trouble) in troubles {
            samples[index].trouble.get_or_insert(trouble);
        }
    }
    bar.finish_and_clear();
    let seconds = elapsed.as_secs_f64();
    let rate = |value: f64| if seconds > 0.0 { value / seconds } else { 0.0 };
    Ok(Pass {
        name,
        file_count: samples.iter().filter(|sample| sample.trouble.is_none()).count() as u64,
        read_count,
        total_bytes,
        seconds,
        gb_per_s: rate(total_bytes as f64 / 1e9),
        reads_per_s: rate(read_count as f64),
        p50_us: latency.value_at_quantile(0.5) as f64 / 1e3,
        p99_us: latency.value_at_quantile(0.99) as f64 / 1e3,
    })
}

/// Cuts the files that are good so far into pieces of a block; an empty file has none.
fn pieces_of(samples: &[Sample]) -> Vec<Piece> {
    let good = samples.iter().enumerate().filter(|(_, sample)| sample.trouble.is_none());
    good.flat_map(|(index, Sample { file, .. })| {
        let ranges = pieces(0, file.length, file.block_size.into());
        ranges.map(move |(offset, length)| Piece { index, offset, length })
    })
    .collect()
}

/// Returns how many of the pieces become one batch.
fn batch_length(pieces: &[Piece]) -> usize {
    let mut bytes = 0;
    let fits = |piece: &&Piece| {
        let fits = bytes < BATCH_BYTES;
        bytes += piece.length;
        fits
    };
    pieces.iter().take(BATCH_READS).take_while(fits).count()
}

/// Compares a piece with the source.
async fn judge(
    client: &Client,
    truth: &Truth,
    file: &File,
    piece: Piece,
    result: Result<Bytes, Error>,
) -> Result<Option<FileTrouble>, Failure> {
    let offset = match result {
        Ok(bytes) => {
            let expected = truth.read(&file.path, piece.offset, piece.length).await;
            match expected.map(|expected| difference(&expected, &bytes)) {
                Ok(None) => return Ok(None),
                Ok(Some(place)) => piece.offset + place,
                Err(error) => {
                    return Ok(Some(FileTrouble::Unreadable(format!("at the source: {error}"))));
                }
            }
        }
        // The node's bytes were damaged twice, which is the clearest failure.
        Err(Error::Corrupt { offset, .. }) => offset,
        Err(error) => return trouble_of(file, &error).map(Some),
    };
    // Perhaps the file changed since it was read, which the node sees when it looks again.
    match client.stat(&file.path).await {
        Ok(now) if now.version == file.version => Ok(Some(FileTrouble::Differs(offset))),
        Ok(_) => Ok(Some(FileTrouble::Changed)),
        Err(error) => trouble_of(file, &error).map(Some),
    }
}

/// Returns what an error says of a file; fails if it says more.
fn trouble_of(file: &File, error: &Error) -> Result<FileTrouble, Failure> {
    match error {
        Error::Stale { .. } => Ok(FileTrouble::Changed),
        error if is_about_path(error) => Ok(FileTrouble::Unreadable(error.to_string())),
        error => Err(Failure::at_path(&file.path, error)),
    }
}

#[cfg(test)]
mod tests {
    use millrace_client::FileId;

    use super::*;

    fn sample(length: u64) -> Sample {
        let (path, id, kind) = ("f".into(), FileId(1), Kind::File);
        let file = File { path, id, version: 1, length, block_size: 1 << 20, kind, modified_ms: 0 };
        Sample { file, trouble: None }
    }

    #[test]
    fn batches_end_at_their_bytes_or_their_reads() {
        let large = pieces_of(&[sample(0), sample(1), sample((200 << 20) + 1)]);
        assert_eq!(large.len(), 202);
        // One byte, and blocks of 1 MiB until 64 MiB are reached.
        assert_eq!(batch_length(&large), 65);
        assert_eq!(batch_length(&large[200..]), 2);
        let small: Vec<Sample> = (0..BATCH_READS + 1).map(|_| sample(10)).collect();
        assert_eq!(batch_length(&pieces_of(&small)), BATCH_READS);
    }
}
