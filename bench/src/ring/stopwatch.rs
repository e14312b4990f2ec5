//! How long a decision takes, and how much memory it needs.
//!
//! Rings are measured in turn, in rounds, on one thread; what counts is the median. Hashes are
//! drawn before, too many for the branch predictor to learn.

use std::hint::black_box;
use std::time::{Duration, Instant};

use millrace_proto::placement;
use millrace_proto::ring::{Ring, RingMember};

use super::cluster::Rings;
use super::findings::Decision;
use crate::report::median;

/// Replicas where several owners are asked for.
const REPLICAS: usize = 3;
/// Hashes that are asked for again and again.
const HASHES: u64 = 1 << 14;
/// Decisions between two looks at the clock, which takes as long as one of the fastest.
const BATCH: usize = 256;
/// Time that is measured at once. Guessed: some ten thousand decisions, or a few hundred of the
/// slowest.
const PERIOD: Duration = Duration::from_millis(20);

/// Measures a ring, round after round.
pub(super) struct Stopwatch<'a> {
    members: &'a [RingMember<'static>],
    ring: &'a Ring,
    hashes: Vec<u64>,
    owner_ns: Vec<f64>,
    owners_ns: Vec<f64>,
    build_us: Vec<f64>,
}

impl<'a> Stopwatch<'a> {
    pub(super) fn new(rings: &'a Rings, seed: u64) -> Stopwatch<'a> {
        let start = placement::mix(!seed);
        Stopwatch {
            members: &rings.members[..rings.count()],
            ring: &rings.before,
            hashes: (0..HASHES).map(|number| placement::mix(start.wrapping_add(number))).collect(),
            owner_ns: Vec::new(),
            owners_ns: Vec::new(),
            build_us: Vec::new(),
        }
    }

    /// Measures one round.
    pub(super) fn measure(&mut self) {
        let ring = self.ring;
        self.owner_ns.push(pace_ns(&self.hashes, |hash| ring.owner(hash)));
        self.owners_ns.push(pace_ns(&self.hashes, |hash| {
            let mut out = [0; REPLICAS];
            ring.owners(hash, REPLICAS, &mut out);
            out
        }));
        let started = Instant::now();
        black_box(Ring::new(black_box(self.members)));
        self.build_us.push(started.elapsed().as_secs_f64() * 1e6);
    }

    /// Returns the medians of the rounds.
    pub(super) fn decision(&self) -> Decision {
        Decision {
            owner_ns: median(&self.owner_ns),
            owners_ns: median(&self.owners_ns),
            build_us: median(&self.build_us),
            size_bytes: self.ring.size_bytes() as u64,
        }
    }
}

/// Returns the nanoseconds for each decision.
fn pace_ns<T>(hashes: &[u64], decide: impl Fn(u64) -> T) -> f64 {
    let mut count = 0;
    let started = Instant::now();
    for batch in hashes.chunks(BATCH).cycle() {
        for &hash in batch {
            black_box(decide(black_box(hash)));
        }
        count += batch.len();
        let elapsed = started.elapsed();
        if elapsed >= PERIOD {
            return elapsed.as_secs_f64() * 1e9 / count as f64;
        }
    }
    0.0
}
