//! How long hits, fills and reads of the source take, and which fills are under way.
//!
//! Fills are written by the side thread alone, which handles each once. Hits are written by their shard,
//! once for all of a turn. Read by the pages for operators.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::Count;

/// Upper bounds of the buckets in seconds; one more takes the rest. Chosen for sources from a local
/// disk to an object store that is overloaded.
pub(crate) const BOUNDS_S: [f64; 15] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    10.0,
];

/// Durations, counted in buckets.
#[derive(Default)]
pub(crate) struct Histogram {
    counts: [AtomicU64; BOUNDS_S.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Adds one duration.
    pub(crate) fn record(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS_S.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Returns the counts of the buckets, and the sum in seconds.
    pub(crate) fn read(&self) -> ([u64; BOUNDS_S.len() + 1], f64) {
        let counts = std::array::from_fn(|bucket| self.counts[bucket].load(Ordering::Relaxed));
        (counts, self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9)
    }
}

/// Upper bounds of the buckets of hits in seconds; one more takes the rest. Chosen for turns from a single
/// hit to a stall.
pub(crate) const HIT_BOUNDS_S: [f64; 12] = [
    0.000_002_5,
    0.000_005,
    0.000_01,
    0.000_025,
    0.000_05,
    0.000_1,
    0.000_25,
    0.000_5,
    0.001,
    0.002_5,
    0.01,
    0.1,
];

/// Durations of the hits of one shard, counted in buckets, alone on their cache lines.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct HitTimes {
    counts: [Count; HIT_BOUNDS_S.len() + 1],
    sum_ns: Count,
}

impl HitTimes {
    /// Adds `count` hits that took this long each. Only the owning shard may call it.
    pub(crate) fn record(&self, took: Duration, count: u64) {
        let seconds = took.as_secs_f64();
        let bucket = HIT_BOUNDS_S.partition_point(|bound| *bound < seconds);
        self.counts[bucket].add(count);
        self.sum_ns.add((took.as_nanos() as u64).saturating_mul(count));
    }
}

/// Returns the counts of the buckets of all shards, and the sum in seconds.
pub(crate) fn sum(shards: &[HitTimes]) -> ([u64; HIT_BOUNDS_S.len() + 1], f64) {
    let of_bucket = |bucket: usize| shards.iter().map(|times| times.counts[bucket].get()).sum();
    let sum_ns: u64 = shards.iter().map(|times| times.sum_ns.get()).sum();
    (std::array::from_fn(of_bucket), sum_ns as f64 / 1e9)
}

/// The timings of a node.
#[derive(Default)]
pub(crate) struct Timings {
    /// Fills, from the side thread's queue to the block or the error.
    pub(crate) fill: Histogram,
    /// Reads of the source, from their begin to their end, whether they succeeded or not.
    pub(crate) source: Histogram,
    under_way: Mutex<UnderWay>,
}

#[derive(Default)]
struct UnderWay {
    next: u64,
    /// When each began; the oldest first, because numbers grow.
    since: BTreeMap<u64, Instant>,
}

/// A fill under way, until this is dropped.
pub(crate) struct FillTime {
    timings: Arc<Timings>,
    number: u64,
    since: Instant,
}

impl Timings {
    /// Counts a fill as under way.
    pub(crate) fn begin_fill(self: &Arc<Timings>) -> FillTime {
        let since = Instant::now();
        let mut under_way = self.under_way();
        let number = under_way.next;
        under_way.next += 1;
        under_way.since.insert(number, since);
        drop(under_way);
        FillTime { timings: Arc::clone(self), number, since }
    }

    /// Returns how many fills are under way, and the age of the oldest.
    pub(crate) fn fills_under_way(&self) -> (usize, Duration) {
        let under_way = self.under_way();
        let oldest = under_way.since.values().next();
        (under_way.since.len(), oldest.map_or(Duration::ZERO, Instant::elapsed))
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        // Nothing that is done under the lock panics half way.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FillTime {
    fn drop(&mut self) {
        self.timings.under_way().since.remove(&self.number);
        self.timings.fill.record(self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_go_to_the_bucket_that_they_do_not_exceed() {
        let histogram = Histogram::default();
        for us in [0, 100, 101, 10_000_000, 10_000_001] {
            histogram.record(Duration::from_micros(us));
        }
        let (counts, sum) = histogram.read();
        assert_eq!((counts[0], counts[1], counts[14], counts[15]), (2, 1, 1, 1));
        assert_eq!(counts.iter().sum::<u64>(), 5);
        assert!((sum - 20.000_202).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn hits_of_all_shards_are_counted_together() {
        let shards = [HitTimes::default(), HitTimes::default()];
        shards[0].record(Duration::from_micros(10), 16);
        shards[1].record(Duration::from_micros(11), 1);
        shards[1].record(Duration::from_secs(1), 2);
        let (counts, sum) = sum(&shards);
        assert_eq!((counts[2], counts[3], counts[12]), (16, 1, 2));
        assert_eq!(counts.iter().sum::<u64>(), 19);
        assert!((sum - 2.000_171).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn a_fill_is_under_way_until_it_ends() {
        let timings = Arc::new(Timings::default());
        let (first, second) = (timings.begin_fill(), timings.begin_fill());
        assert_eq!(timings.fills_under_way().0, 2);
        drop(first);
        let (count, age) = timings.fills_under_way();
        assert!(count == 1 && age <= second.since.elapsed());
        drop(second);
        assert_eq!(timings.fills_under_way(), (0, Duration::ZERO));
        assert_eq!(timings.fill.read().0.iter().sum::<u64>(), 2);
    }
}
