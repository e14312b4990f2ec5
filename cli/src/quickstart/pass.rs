//! One pass over all files: read through the cache with the clock running, compare with it stopped.
//!
//! ```text
//!  batch ≤ 64 MiB    read, 32 at once │ clock stops │ compare with the source │ next batch
//! ```
//!
//! Owns the clock and the comparison. Always holds: no read of the source is inside the measured
//! time, and memory is bounded by a batch. Files of a live directory change: one that does is
//! looked up and read again once, and if it changes again it is named and left out. Bytes that
//! differ while the file did not change are a mismatch, and no second try hides one.

use std::fs::File as Source;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use millrace_client::{Client, Error, File, Kind};

use crate::failure::{Failure, is_about_path};
use crate::{jobs, output};

/// Most reads at once.
const READS_AT_ONCE: usize = 32;
/// Most bytes being read at once, though always four reads.
const BYTES_AT_ONCE: u64 = 64 << 20;
/// Most bytes of a batch, but for its last piece. Guessed: long enough that starting and ending a
/// batch is lost in the noise, small enough for any machine.
const BATCH_BYTES: u64 = 64 << 20;
/// Most reads of a batch. Guessed, for the same reasons.
const BATCH_READS: usize = 8192;

/// Longest latency that is told apart: an hour in nanoseconds.
const LATENCY_MAX_NS: u64 = 3600 * 1_000_000_000;

/// One file that is read.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) file: File,
    pub(super) state: State,
}

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Every byte so far was that of the source.
    Good,
    /// It keeps changing while it is read.
    Changing,
    /// It cannot be read, for this reason.
    Unreadable(String),
    /// The cache gave another byte than the source at this offset.
    Mismatch(u64),
}

/// What a pass measured.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) name: &'static str,
    /// Files whose every byte matched.
    pub(super) file_count: u64,
    /// Reads with the clock running.
    pub(super) read_count: u64,
    /// Bytes of those reads.
    pub(super) total_bytes: u64,
    /// Time with the clock running.
    pub(super) elapsed: Duration,
    /// Of each read, in nanoseconds.
    pub(super) latency: Histogram<u64>,
}

/// At most a block of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    sample_index: usize,
    offset: u64,
    length: u64,
}

/// A piece that was asked for.
struct Outcome {
    piece: Piece,
    result: Result<Bytes, Error>,
    latency: Duration,
}

/// Reads and compares all files that are good so far.
///
/// # Errors
/// If the node is lost.
pub(super) async fn run(
    name: &'static str,
    client: &Client,
    root: &Path,
    samples: &mut [Sample],
) -> Result<Pass, Failure> {
    let good = |samples: &[Sample]| -> Vec<usize> {
        let indexes = 0..samples.len();
        indexes.filter(|index| samples[*index].state == State::Good).collect()
    };
    let all = good(samples);
    let total_bytes = all.iter().map(|index| samples[*index].file.length).sum();
    let bar = output::bytes_bar(name, total_bytes);
    let mut pass = Pass {
        name,
        file_count: 0,
        read_count: 0,
        total_bytes: 0,
        elapsed: Duration::ZERO,
        latency: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)
            .expect("bounds and digits are allowed"),
    };
    // Files that changed, in the order of their indexes and each once.
    let mut changed = Vec::new();
    for batch in batches(&all, samples) {
        let outcomes = read_batch(client, samples, &batch, &mut pass, &bar).await?;
        judge_batch(client, root, samples, outcomes, &mut changed).await?;
    }
    changed.dedup();
    for index in changed {
        let sample = &mut samples[index];
        if sample.state == State::Good {
            sample.state = again(client, root, &mut sample.file).await?;
        }
    }
    pass.file_count = good(samples).len() as u64;
    bar.finish_and_clear();
    Ok(pass)
}

/// Cuts files into pieces of a block, and those into batches. An empty file is one empty piece,
/// which is compared and not read.
fn batches(indexes: &[usize], samples: &[Sample]) -> Vec<Vec<Piece>> {
    let mut batches = vec![Vec::new()];
    let mut batch_bytes = 0;
    for &sample_index in indexes {
        let File { length, block_size, .. } = samples[sample_index].file;
        let mut offset = 0;
        loop {
            let piece_length = (length - offset).min(block_size.into());
            let is_full = batch_bytes >= BATCH_BYTES;
            if is_full || batches.last().is_some_and(|batch| batch.len() >= BATCH_READS) {
                batches.push(Vec::new());
                batch_bytes = 0;
            }
            if let Some(batch) = batches.last_mut() {
                batch.push(Piece { sample_index, offset, length: piece_length });
            }
            batch_bytes += piece_length;
            offset += piece_length;
            if offset >= length {
                break;
            }
        }
    }
    batches
}

/// Reads a batch with the clock running.
async fn read_batch(
    client: &Client,
    samples: &[Sample],
    batch: &[Piece],
    pass: &mut Pass,
    bar: &ProgressBar,
) -> Result<Vec<Outcome>, Failure> {
    let (empty, pieces): (Vec<Piece>, Vec<Piece>) =
        batch.iter().partition(|piece| piece.length == 0);
    let mut outcomes: Vec<Outcome> = empty
        .into_iter()
        .map(|piece| Outcome { piece, result: Ok(Bytes::new()), latency: Duration::ZERO })
        .collect();
    let largest = pieces.iter().map(|piece| piece.length).max().unwrap_or(0);
    let in_flight_max = jobs::window(BYTES_AT_ONCE, largest, 4, READS_AT_ONCE);
    let start = |piece: Piece| {
        let (client, file) = (client.clone(), samples[piece.sample_index].file.clone());
        async move {
            let started = Instant::now();
            let result = client.read(&file, piece.offset, piece.length).await;
            Outcome { piece, result, latency: started.elapsed() }
        }
    };
    let done = |outcome: Outcome| {
        if let Ok(bytes) = &outcome.result {
            bar.inc(bytes.len() as u64);
        }
        outcomes.push(outcome);
        Ok(())
    };
    let started = Instant::now();
    jobs::for_each(pieces, in_flight_max, start, done).await?;
    pass.elapsed += started.elapsed();
    for outcome in &outcomes {
        if let (Ok(bytes), 1..) = (&outcome.result, outcome.piece.length) {
            pass.read_count += 1;
            pass.total_bytes += bytes.len() as u64;
            pass.latency.saturating_record(outcome.latency.as_nanos() as u64);
        }
    }
    outcomes.sort_by_key(|outcome| (outcome.piece.sample_index, outcome.piece.offset));
    Ok(outcomes)
}

/// Compares a batch with the source; the clock stands still.
async fn judge_batch(
    client: &Client,
    root: &Path,
    samples: &mut [Sample],
    outcomes: Vec<Outcome>,
    changed: &mut Vec<usize>,
) -> Result<(), Failure> {
    let mut open: Option<(usize, Original)> = None;
    for Outcome { piece, result, .. } in outcomes {
        let index = piece.sample_index;
        let Sample { file, state } = &mut samples[index];
        if *state != State::Good || changed.last() == Some(&index) {
            continue;
        }
        let verdict = match result {
            Ok(bytes) => {
                let original = match open.take() {
                    Some((open_index, original)) if open_index == index => original,
                    _ => Original::open(root, file),
                };
                let verdict = original.compare(file, piece.offset, piece.length, &bytes);
                open = Some((index, original));
                verdict
            }
            Err(error) => verdict_of(file, &error)?,
        };
        match confirm(client, file, verdict).await? {
            Verdict::Same => {}
            Verdict::Changed => changed.push(index),
            Verdict::Unreadable(reason) => *state = State::Unreadable(reason),
            Verdict::Differs(offset) => *state = State::Mismatch(offset),
        }
    }
    Ok(())
}

/// What a comparison found.
enum Verdict {
    Same,
    /// The file is not the one that was looked up.
    Changed,
    Unreadable(String),
    /// The first byte that differs.
    Differs(u64),
}

fn verdict_of(file: &File, error: &Error) -> Result<Verdict, Failure> {
    match error {
        Error::Stale { .. } => Ok(Verdict::Changed),
        // The node's bytes were damaged twice: no proof could fail more clearly.
        Error::Corrupt { offset, .. } => Ok(Verdict::Differs(*offset)),
        error if is_about_path(error) => Ok(Verdict::Unreadable(error.to_string())),
        error => Err(Failure::at_path(&file.path, error)),
    }
}

/// Asks the node whether a file that differs is still the version that was read.
async fn confirm(client: &Client, file: &File, verdict: Verdict) -> Result<Verdict, Failure> {
    let Verdict::Differs(offset) = verdict else {
        return Ok(verdict);
    };
    match client.stat(&file.path).await {
        Ok(now) if now.version == file.version && now.kind == Kind::File => {
            Ok(Verdict::Differs(offset))
        }
        Ok(_) => Ok(Verdict::Changed),
        Err(error) => verdict_of(file, &error),
    }
}

/// Looks a file up again and reads it whole, without the clock.
async fn again(client: &Client, root: &Path, file: &mut File) -> Result<State, Failure> {
    let verdict = match client.stat(&file.path).await {
        Ok(now) if now.kind == Kind::File => {
            *file = now;
            let verdict = compare_whole(client, root, file).await?;
            confirm(client, file, verdict).await?
        }
        Ok(_) => Verdict::Changed,
        Err(error) => verdict_of(file, &error)?,
    };
    Ok(match verdict {
        Verdict::Same => State::Good,
        Verdict::Changed => State::Changing,
        Verdict::Unreadable(reason) => State::Unreadable(reason),
        Verdict::Differs(offset) => State::Mismatch(offset),
    })
}

async fn compare_whole(client: &Client, root: &Path, file: &File) -> Result<Verdict, Failure> {
    let original = Original::open(root, file);
    let mut offset = 0;
    loop {
        let length = (file.length - offset).min(file.block_size.into());
        let verdict = match client.read(file, offset, length).await {
            Ok(bytes) => original.compare(file, offset, length, &bytes),
            Err(error) => verdict_of(file, &error)?,
        };
        offset += length;
        if !matches!(verdict, Verdict::Same) || offset >= file.length {
            return Ok(verdict);
        }
    }
}

/// A file as the file system has it.
struct Original(std::io::Result<Source>);

impl Original {
    fn open(root: &Path, file: &File) -> Original {
        Original(Source::open(root.join(&*file.path)))
    }

    /// Compares what the cache gave for a piece.
    fn compare(&self, file: &File, offset: u64, length: u64, bytes: &[u8]) -> Verdict {
        let source = match &self.0 {
            Ok(source) => source,
            Err(error) => return Verdict::Unreadable(format!("at the source: {error}")),
        };
        if bytes.len() as u64 != length || !is_version(source, file) {
            return Verdict::Changed;
        }
        let mut expected = vec![0; bytes.len()];
        match source.read_exact_at(&mut expected, offset) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Verdict::Changed;
            }
            Err(error) => return Verdict::Unreadable(format!("at the source: {error}")),
        }
        if expected == bytes {
            return Verdict::Same;
        }
        let same = expected.iter().zip(bytes).take_while(|(a, b)| a == b).count();
        // It may have changed between the two reads, which the time of its change tells.
        if is_version(source, file) {
            Verdict::Differs(offset + same as u64)
        } else {
            Verdict::Changed
        }
    }
}

/// Whether the source is, by length and time of change, what the node looked up.
fn is_version(source: &Source, file: &File) -> bool {
    let Ok(metadata) = source.metadata() else {
        return false;
    };
    let modified_ms = metadata.modified().ok().map(|time| match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_millis() as i64,
        // Before 1970 times are rounded down: whole seconds, and milliseconds after them.
        Err(before) => -(before.duration().as_nanos().div_ceil(1_000_000) as i64),
    });
    metadata.len() == file.length && modified_ms == Some(file.modified_ms)
}

#[cfg(test)]
mod tests;
