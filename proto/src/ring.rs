//! Which nodes of a cluster own a block: weighted rendezvous over the members of one epoch.
//!
//! Each member gets a number for each block, and the largest wins: when a member leaves, its blocks go
//! to the members that come next for them, and nothing else moves. When a member joins, it takes its
//! share from each. Rendezvous is Thaler and Ravishankar's (1998), the weights are Schindelhauer and
//! Schomaker's (2005). Integers only, so that every language computes the same; `PROTOCOL.md` 8 is the
//! rule and `vectors/ring.txt` its test vectors.
//!
//! The common case takes one multiplication for each member. Logarithms are taken only of the best of
//! some weights, and seldom to the last bit. Clusters should still have few different weights, so
//! [`weight_of`] rounds.

use std::cmp::Reverse;

use crate::placement::mix;

/// Largest weight. Derived: the product of a weight and a `cost` fits 63 bits.
pub const WEIGHT_MAX: u32 = 1 << 24;
/// Bytes of capacity that make one of weight.
const WEIGHT_UNIT: u64 = 1 << 20;
/// Significant bits of a weight. Derived: capacity is rounded by at most one part in 32.
const WEIGHT_BITS: u32 = 5;
/// Most members that [`Ring::owners`] returns.
pub const OWNERS_MAX: usize = 16;
/// Most zones that a choice of replicas distinguishes; a member of a further one counts as in zone 0.
pub const ZONES_MAX: usize = 128;

/// Members whose highest score is compared with the best one's, at once: branches that are seldom
/// taken are cheaper than moves that wait for each other. Measured on an EPYC of Zen 5 with 1,000
/// members: 0.5 to 0.6 ns for each in groups of 8, 0.6 in groups of 4, 0.85 for a move each.
const GROUP: usize = 8;
/// Chords of the logarithm of a number in 1..2. Guessed: 1 KiB of them.
const CHORDS: usize = 128;
/// Farthest that the logarithm lies above its chord, in units of 2^-32, rounded up. Derived: an
/// eighth of the chord's width squared and of its largest second derivative, `1 / ln 2`.
const CHORD_ERROR: u64 = 47_275;
/// More than what rounding does to [`cost`] and to the chords, in units of 2^-32.
const ROUNDING: u64 = 4;
/// `2^32 * ln 2`, rounded up.
const LN_2: u64 = 2_977_044_472;

/// A member, as a ring is made from. `mix` of the XXH3-64 of its id would be a key. The cluster
/// announces the key, so that clients need not know how it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingMember<'a> {
    /// Well mixed, and different for each member.
    pub key: u64,
    /// Share of the blocks, relative to the other members; 0 for none. A weight above [`WEIGHT_MAX`]
    /// counts as that.
    pub weight: u32,
    /// What fails together. Replicas are spread over zones as far as there are enough.
    pub zone: &'a str,
}

/// Returns the weight of a node with this many bytes for blocks: MiB, rounded to five significant bits,
/// at least 1.
pub fn weight_of(capacity_bytes: u64) -> u32 {
    let weight = (capacity_bytes / WEIGHT_UNIT).clamp(1, u64::from(WEIGHT_MAX)) as u32;
    let spare = weight.ilog2().saturating_sub(WEIGHT_BITS - 1);
    let half = (1 << spare) >> 1;
    (((weight + half) >> spare) << spare).min(WEIGHT_MAX)
}

/// A member in the order of the ring.
#[derive(Clone, Copy, Debug)]
struct Seat {
    key: u64,
    factor: u64,
}

impl Seat {
    /// Returns the number that the member gets for a block: both halves of a 128-bit product, folded.
    #[inline(always)]
    fn score(self, hash: u64) -> u64 {
        let product = u128::from(hash ^ self.key) * u128::from(self.factor);
        (product >> 64) as u64 ^ product as u64
    }
}

/// Members of one weight, which lie together.
#[derive(Clone, Copy, Debug)]
struct Class {
    weight: u32,
    start: usize,
    end: usize,
}

/// The best member found so far.
#[derive(Clone, Copy, Debug)]
struct Best {
    place: usize,
    score: u64,
    weight: u32,
}

/// The members of an epoch, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    /// Weights descend, and keys do within a class.
    places: Vec<Seat>,
    classes: Vec<Class>,
    /// Zone of each place.
    zones: Vec<u8>,
    /// Index of each place in the members as they were given.
    members: Vec<u32>,
}

impl Ring {
    /// Builds a ring of these members; those without weight own nothing.
    pub fn new(members: &[RingMember<'_>]) -> Ring {
        let weight_of = |member: &RingMember<'_>| member.weight.min(WEIGHT_MAX);
        let mut order: Vec<u32> = (0..members.len() as u32).collect();
        order.retain(|&index| members[index as usize].weight > 0);
        order.sort_by_key(|&index| {
            let member = &members[index as usize];
            Reverse((weight_of(member), member.key))
        });
        let mut names: Vec<&str> = order.iter().map(|&it| members[it as usize].zone).collect();
        names.sort_unstable();
        names.dedup();
        let mut ring = Ring {
            places: Vec::with_capacity(order.len()),
            zones: Vec::with_capacity(order.len()),
            ..Ring::default()
        };
        for &index in &order {
            let member = &members[index as usize];
            let weight = weight_of(member);
            let place = ring.places.len();
            match ring.classes.last_mut() {
                Some(class) if class.weight == weight => class.end = place + 1,
                _ => ring.classes.push(Class { weight, start: place, end: place + 1 }),
            }
            ring.places.push(Seat { key: member.key, factor: mix(member.key) | 1 });
            let zone = names.binary_search(&member.zone).unwrap_or(0);
            ring.zones.push(if zone < ZONES_MAX { zone as u8 } else { 0 });
        }
        order.shrink_to_fit();
        ring.members = order;
        ring
    }

    /// Returns the number of members that own blocks.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True if no member owns blocks.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Returns the memory that the ring takes, in bytes: about 21 for each member.
    pub fn size_bytes(&self) -> usize {
        size_of::<Ring>()
            + self.places.capacity() * size_of::<Seat>()
            + self.classes.capacity() * size_of::<Class>()
            + self.zones.capacity()
            + self.members.capacity() * size_of::<u32>()
    }

    /// Returns the member that owns the block with this [`block_hash`](crate::placement::block_hash), by
    /// its index in what the ring was made of.
    #[inline]
    pub fn owner(&self, hash: u64) -> Option<usize> {
        if let [member] = self.members[..] {
            return Some(member as usize);
        }
        self.best(hash, |_| false).map(|best| self.members[best.place] as usize)
    }

    /// Writes the members that have the block, and then those that come after them, to `out`, as many as
    /// fit; returns their number. The first `replicas` have the block: the best, then the best in a zone
    /// where none of them is, while there is one. The others follow by their scores, which is the order
    /// in which to ask when none of the owners answers.
    pub fn owners(&self, hash: u64, replicas: usize, out: &mut [u32]) -> usize {
        let wanted = out.len().min(self.places.len()).min(OWNERS_MAX);
        let mut zones = 0u128;
        let mut taken = [usize::MAX; OWNERS_MAX];
        for count in 0..wanted {
            let is_taken = |place: usize| taken[..count].contains(&place);
            let is_near = |place: usize| zones >> self.zones[place] & 1 == 1;
            let apart = (count < replicas)
                .then(|| self.best(hash, |place| is_near(place) || is_taken(place)));
            // Every zone has one, so the next ones share a zone.
            let Some(best) = apart.flatten().or_else(|| self.best(hash, is_taken)) else {
                return count;
            };
            zones |= 1 << self.zones[best.place];
            taken[count] = best.place;
            out[count] = self.members[best.place];
        }
        wanted
    }

    /// Returns the best member that is not out.
    #[inline]
    fn best(&self, hash: u64, is_out: impl Fn(usize) -> bool) -> Option<Best> {
        let mut best: Option<Best> = None;
        for class in &self.classes {
            let bar = best.map_or(0, |best| bar(best, class.weight));
            if let Some(found) = self.best_of(class, hash, bar, &is_out) {
                best = Some(best.map_or(found, |best| self.better(best, found)));
            }
        }
        best
    }

    /// Returns the best member of a class that is not out and scores no less than `bar`.
    #[inline]
    fn best_of(
        &self,
        class: &Class,
        hash: u64,
        mut bar: u64,
        is_out: impl Fn(usize) -> bool,
    ) -> Option<Best> {
        let look = |bar: u64, places: &[Seat], start: usize| {
            let mut best: Option<Best> = None;
            for (place, at) in (start..).zip(places) {
                let score = at.score(hash);
                // Keys descend, so that of equal scores the lower key stays.
                if score >= best.map_or(bar, |best| best.score) && !is_out(place) {
                    best = Some(Best { place, score, weight: class.weight });
                }
            }
            best
        };
        let mut best: Option<Best> = None;
        let (groups, rest) = self.places[class.start..class.end].as_chunks::<GROUP>();
        for (index, group) in groups.iter().enumerate() {
            // This is rare: about five times for a thousand members.
            if highest(group, hash) >= bar
                && let Some(found) = look(bar, group, class.start + index * GROUP)
            {
                bar = found.score;
                best = Some(found);
            }
        }
        look(bar, rest, class.end - rest.len()).or(best)
    }

    /// Returns the winner of two members of different classes: the one with the lower cost for its
    /// weight, else with the lower key.
    fn better(&self, first: Best, second: Best) -> Best {
        let (first_weight, second_weight) = (u64::from(first.weight), u64::from(second.weight));
        let (first_low, first_high) = cost_range(first.score);
        let (second_low, second_high) = cost_range(second.score);
        if first_high * second_weight < second_low * first_weight {
            return first;
        }
        if second_high * first_weight < first_low * second_weight {
            return second;
        }
        let key = |best: Best| self.places[best.place].key;
        let first_side = (cost(first.score) * second_weight, key(first));
        let second_side = (cost(second.score) * first_weight, key(second));
        if second_side < first_side { second } else { first }
    }
}

/// Returns the highest score of a group, by a tree, so that no comparison waits for more than two
/// others.
#[inline(always)]
fn highest([a, b, c, d, e, f, g, h]: &[Seat; GROUP], hash: u64) -> u64 {
    let higher = |one: &Seat, other: &Seat| one.score(hash).max(other.score(hash));
    (higher(a, b).max(higher(c, d))).max(higher(e, f).max(higher(g, h)))
}

/// Returns the score below which no member of this weight wins against `best`. With `c` the cost up to
/// which one does, in doublings, its score is `2^64 * 2^-c`, no less than `2^64 * (1 - c * ln 2)`.
#[inline]
fn bar(best: Best, weight: u32) -> u64 {
    let (_, cost) = cost_range(best.score);
    let limit = cost * u64::from(weight) / u64::from(best.weight) + 1;
    u64::MAX.saturating_sub(limit.saturating_mul(LN_2))
}

/// Returns `64 - log2(score)` in units of 2^-32, from which the exponential distribution is made. Zero
/// counts as one. The result is exact to the last bit in any language: it takes 32 squarings of a number
/// of 64 bits.
const fn cost(score: u64) -> u64 {
    let score = if score == 0 { 1 } else { score };
    let whole = score.ilog2();
    // In 1..2, with 63 bits behind the point.
    let mut mantissa = score << (63 - whole);
    let mut logarithm = whole as u64;
    let mut step = 0;
    while step < 32 {
        let square = (mantissa as u128 * mantissa as u128) >> 63;
        logarithm <<= 1;
        if square >> 64 == 0 {
            mantissa = square as u64;
        } else {
            mantissa = (square >> 1) as u64;
            logarithm |= 1;
        }
        step += 1;
    }
    (64 << 32) - logarithm
}

/// Returns two numbers between which [`cost`] lies. Measured on an EPYC of Zen 5: 2 ns instead of 95.
/// With eight weights and 1,000 members it leaves the winner of two open once in 300 times, with fewer
/// members less often. The logarithm bends down, so it lies above its chord, and nowhere further than
/// the chord of 1..1 + 1/128 leaves it.
#[inline]
fn cost_range(score: u64) -> (u64, u64) {
    let score = score.max(1);
    let whole = score.ilog2();
    let fraction = score << (63 - whole) << 1;
    let index = (fraction >> (64 - CHORDS.ilog2())) as usize;
    let within = fraction << CHORDS.ilog2() >> 32;
    let (start, end) = (CORNERS[index], CORNERS[index + 1]);
    let chord = start + (((end - start) * within) >> 32);
    let high = (u64::from(64 - whole) << 32) - chord + ROUNDING;
    (high.saturating_sub(CHORD_ERROR + 2 * ROUNDING), high)
}

/// Logarithms of 1, 1 + 1/128 and so on up to 2, in units of 2^-32.
static CORNERS: [u64; CHORDS + 1] = {
    let mut corners = [1 << 32; CHORDS + 1];
    let mut index = 0;
    while index < CHORDS {
        corners[index] = (1 << 32) - cost(((CHORDS + index) as u64) << (63 - CHORDS.ilog2()));
        index += 1;
    }
    corners
};

#[cfg(test)]
mod tests;
