//! Reads that wait for a place among the requests under way: those that touch become one request.
//!
//! ```text
//!  waiting   [a 0..64K] [b 0..64K] [a 64K..128K] [a 128K..192K] [a 1M..]
//!  a place for [a 0..64K] ──► one request for a 0..192K; the others go on waiting
//! ```
//!
//! Owns what waits, by file, version and offset. Always holds: what waits is in the line once, and the run that
//! takes it out answers it; a run is of one version of one file, without a gap, and has at most the bytes that
//! it was allowed. Leaves to its callers how many wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millrace_node::under_store::{Blank, Errand, FillError, Part};
use millrace_proto::FileId;
use tokio::sync::oneshot;

/// A part that a blank is to be filled with.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) part: Part,
    pub(crate) blank: Blank,
    /// Bytes that a request brought before it broke.
    pub(crate) written: u32,
    pub(crate) errand: Arc<Errand>,
}

impl Asked {
    /// Returns the offset in the file of the first byte that is missing.
    pub(crate) fn start(&self) -> u64 {
        self.part.offset + u64::from(self.written)
    }

    /// Returns the offset in the file after the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.part.offset + u64::from(self.blank.length())
    }
}

/// How a request ended for one part.
#[derive(Debug)]
pub(crate) enum Answer {
    Done(Blank, Result<(), FillError>),
    /// The request was for other parts, too, and broke: this one is asked for again, alone.
    Again(Asked),
}

/// A part that waits for its request.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) asked: Asked,
    pub(crate) reply: oneshot::Sender<Answer>,
}

impl Waiting {
    /// Hands the blank back.
    pub(crate) fn end(self, result: Result<(), FillError>) {
        self.answer(|asked| Answer::Done(asked.blank, result));
    }

    /// Has the rest asked for again.
    pub(crate) fn again(self) {
        self.answer(Answer::Again);
    }

    fn answer(self, answer: impl FnOnce(Asked) -> Answer) {
        // A part that is asked for is waited for until the node ends.
        let _ = self.reply.send(answer(self.asked));
    }
}

/// The other end of [`Waiting`].
#[derive(Debug)]
pub(crate) struct Wait {
    pub(crate) spot: Spot,
    pub(crate) answer: oneshot::Receiver<Answer>,
}

/// Bytes that a request may have however many places are free. Guessed: what a connection brings in about the time
/// that a store takes to begin an answer, so that one request is not much slower than two beside each other.
const RUN_MIN: u64 = 1 << 20;
/// Most bytes of a request.
const RUN_MAX: u64 = 8 << 20;

/// Where a read begins, and which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    file: FileId,
    version: u64,
    is_settled: bool,
    /// Offset in the file in bytes.
    offset: u64,
    /// Each read has a number of its own.
    number: u64,
}

impl Spot {
    /// True if both are of the same content of the same file.
    fn is_beside(&self, other: &Spot) -> bool {
        let of = |spot: &Spot| (spot.file, spot.version, spot.is_settled);
        of(self) == of(other)
    }
}

/// A read that waits, and its length in bytes.
#[derive(Debug)]
struct Entry<T> {
    length: u64,
    /// True if it is to be a request of its own.
    is_alone: bool,
    item: T,
}

/// What was taken out of the line for one request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run<T> {
    /// Those that something waits for, in the order of their offsets, without a gap. Empty if the one that has
    /// the place is unwanted.
    pub(crate) wanted: VecDeque<T>,
    /// Those that nothing waits for any more.
    pub(crate) unwanted: Vec<T>,
}

/// Reads that wait for a place.
#[derive(Debug)]
pub(crate) struct Line<T>(Mutex<Waits<T>>);

#[derive(Debug)]
struct Waits<T> {
    waiting: BTreeMap<Spot, Entry<T>>,
    /// Bytes of all that wait.
    bytes: u64,
    /// Those that have a place and were not taken out yet.
    placed_count: u64,
    next: u64,
}

impl<T> Default for Line<T> {
    fn default() -> Line<T> {
        let waiting = BTreeMap::new();
        Line(Mutex::new(Waits { waiting, bytes: 0, placed_count: 0, next: 0 }))
    }
}

impl<T> Line<T> {
    fn lock(&self) -> MutexGuard<'_, Waits<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a read wait. One that `is_alone` does not become a request with others.
    pub(crate) fn join(&self, part: &Part, length: u64, is_alone: bool, item: T) -> Spot {
        let &Part { file, version, offset, is_settled, .. } = part;
        let mut state = self.lock();
        let spot = Spot { file, version, is_settled, offset, number: state.next };
        state.next += 1;
        state.bytes += length;
        state.waiting.insert(spot, Entry { length, is_alone, item });
        spot
    }

    /// Takes a read out that waits no longer; None if a run took it.
    pub(crate) fn leave(&self, spot: &Spot) -> Option<T> {
        self.lock().remove(spot)
    }

    /// Notes that a read has a place, which it will use by [`Line::take`].
    pub(crate) fn has_place(&self) {
        self.lock().placed_count += 1;
    }

    /// Takes a read out that has a place, with those that touch it: as many as are its share of all that wait, when
    /// this many further places are free. `begin` is asked of each, with their count, if it is still wanted. None if
    /// a run took the read before. The run has at most `most` bytes, unless the read itself has more.
    pub(crate) fn take(
        &self,
        spot: &Spot,
        free_count: usize,
        most: u64,
        mut begin: impl FnMut(&T, usize) -> bool,
    ) -> Option<Run<T>> {
        let mut state = self.lock();
        // What waits is spread over the places: a long request while others are free would take longer.
        let places = state.placed_count + free_count as u64;
        let bytes_max = (state.bytes / places.max(1)).clamp(RUN_MIN, RUN_MAX).min(most);
        state.placed_count = state.placed_count.saturating_sub(1);
        let spots = Vec::from(state.run(spot, bytes_max)?);
        let own = spots.iter().position(|other| other == spot)?;
        let (mut wanted, mut unwanted) = (VecDeque::new(), Vec::new());
        // From the one that has the place to both ends: where one is unwanted the run ends.
        let (before, from) = spots.split_at(own);
        for other in from {
            let Some(item) = state.remove(other) else { break };
            if !begin(&item, spots.len()) {
                unwanted.push(item);
                break;
            }
            wanted.push_back(item);
        }
        for other in before.iter().rev().take(if wanted.is_empty() { 0 } else { own }) {
            let Some(item) = state.remove(other) else { break };
            if !begin(&item, spots.len()) {
                unwanted.push(item);
                break;
            }
            wanted.push_front(item);
        }
        Some(Run { wanted, unwanted })
    }
}

impl<T> Waits<T> {
    fn remove(&mut self, spot: &Spot) -> Option<T> {
        let entry = self.waiting.remove(spot)?;
        self.bytes -= entry.length;
        Some(entry.item)
    }

    /// Returns the reads that touch this one, and it, in the order of their offsets.
    fn run(&self, spot: &Spot, bytes_max: u64) -> Option<VecDeque<Spot>> {
        let own = self.waiting.get(spot)?;
        let mut spots = VecDeque::from([*spot]);
        if own.is_alone {
            return Some(spots);
        }
        let (mut start, mut end) = (spot.offset, spot.offset + own.length);
        let first_at = |offset| Spot { offset, number: 0, ..*spot };
        // A reader goes forwards, so what follows counts first.
        while let Some((next, entry)) = self.waiting.range(first_at(end)..).next()
            && next.is_beside(spot)
            && next.offset == end
            && !entry.is_alone
            && entry.length > 0
            && end + entry.length - start <= bytes_max
        {
            spots.push_back(*next);
            end += entry.length;
        }
        while let Some((before, entry)) = self.waiting.range(..first_at(start)).next_back()
            && before.is_beside(spot)
            && before.offset + entry.length == start
            && !entry.is_alone
            && entry.length > 0
            && end - before.offset <= bytes_max
        {
            spots.push_front(*before);
            start = before.offset;
        }
        Some(spots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 64 << 10;

    fn part(file: u128, chunk: u64) -> Part {
        let offset = chunk * CHUNK;
        Part { file: FileId(file), path: "it".into(), version: 1, offset, is_settled: false }
    }

    fn join(line: &Line<u64>, file: u128, chunk: u64) -> Spot {
        line.join(&part(file, chunk), CHUNK, false, chunk)
    }

    fn wanted(run: Option<Run<u64>>) -> Vec<u64> {
        run.map(|run| run.wanted.into()).unwrap_or_default()
    }

    #[test]
    fn reads_that_touch_are_one_run() {
        let line = Line::default();
        let spots: Vec<Spot> = [7, 3, 5, 4, 9].map(|chunk| join(&line, 1, chunk)).into();
        for other in [Part { version: 2, ..part(1, 6) }, part(2, 6), part(0, 2)] {
            line.join(&other, CHUNK, false, 100);
        }
        let settled = Part { is_settled: true, ..part(1, 6) };
        line.join(&settled, CHUNK, false, 101);
        let run = line.take(&spots[2], 0, u64::MAX, |_, count| count == 3);
        assert_eq!(wanted(run), [3, 4, 5]);
        assert_eq!(line.take(&spots[1], 0, u64::MAX, |_, _| true), None, "a run took it");
        assert_eq!(line.leave(&spots[1]), None);
        assert_eq!(wanted(line.take(&spots[0], 0, u64::MAX, |_, _| true)), [7]);
        assert_eq!(line.leave(&spots[4]), Some(9));
        assert_eq!(line.lock().waiting.len(), 4, "of other files and versions");
        assert_eq!(line.lock().bytes, 4 * CHUNK);
    }

    #[test]
    fn a_run_has_its_share_of_what_waits() {
        let line = Line::default();
        let spots: Vec<Spot> = (0..320).map(|chunk| join(&line, 1, chunk)).collect();
        let count = |spot: &Spot, free_count| {
            line.has_place();
            wanted(line.take(spot, free_count, u64::MAX, |_, _| true)).len() as u64
        };
        // 20 MiB wait, then 18, and so on.
        assert_eq!(count(&spots[0], 9), 32, "ten places are free");
        assert_eq!(count(&spots[32], 17), 16, "many are: a run has at least so much");
        assert_eq!(count(&spots[48], 0), 128, "none is: a run has at most so much");
        line.has_place();
        assert_eq!(count(&spots[176], 0), 72, "another read has a place, too");
        let run = line.take(&spots[248], 0, 4 * CHUNK, |_, _| true);
        assert_eq!(wanted(run).len(), 4, "it was not to be longer");
        let own = (RUN_MAX / CHUNK + 1) * CHUNK;
        let long = line.join(&part(2, 0), own, false, 0);
        line.join(&part(2, own / CHUNK), CHUNK, false, 1);
        assert_eq!(
            wanted(line.take(&long, 0, u64::MAX, |_, _| true)),
            [0],
            "itself however long it is"
        );
    }

    #[test]
    fn what_is_not_wanted_ends_a_run() {
        let line = Line::default();
        let spots: Vec<Spot> = (0..7).map(|chunk| join(&line, 1, chunk)).collect();
        let run = line.take(&spots[3], 0, u64::MAX, |&chunk, _| chunk != 1 && chunk != 5).unwrap();
        assert_eq!((Vec::from(run.wanted), run.unwanted), (vec![2, 3, 4], vec![5, 1]));
        let run = line.take(&spots[0], 0, u64::MAX, |_, _| false).unwrap();
        assert_eq!((run.wanted.len(), run.unwanted), (0, vec![0]));
        assert_eq!(wanted(line.take(&spots[6], 0, u64::MAX, |_, _| true)), [6], "the others wait");
    }

    #[test]
    fn one_that_is_alone_stays_alone() {
        let line = Line::default();
        let first = join(&line, 1, 0);
        let alone = line.join(&part(1, 1), CHUNK, true, 1);
        join(&line, 1, 2);
        assert_eq!(wanted(line.take(&first, 0, u64::MAX, |_, _| true)), [0]);
        assert_eq!(wanted(line.take(&alone, 0, u64::MAX, |_, _| true)), [1]);
    }

    #[test]
    fn two_reads_of_one_place_are_two_requests() {
        let line = Line::default();
        let (first, second) = (join(&line, 1, 0), join(&line, 1, 0));
        join(&line, 1, 1);
        assert_eq!(wanted(line.take(&first, 0, u64::MAX, |_, _| true)), [0, 1]);
        assert_eq!(wanted(line.take(&second, 0, u64::MAX, |_, _| true)), [0]);
    }
}
