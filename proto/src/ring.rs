//! Which nodes of a cluster own a block: weighted rendezvous over the members of one epoch.
//!
//! Each member gets a number for each block, and the largest wins: when a member leaves, its blocks go
//! to those who come next for them, and nothing else moves; when one joins, it takes its share from
//! each. Rendezvous is Thaler and Ravishankar's (1998), the weights are Schindelhauer and Schomaker's
//! (2005). Integers only, so that every language computes the same; `PROTOCOL.md` 8 is the rule and
//! `vectors/ring.txt` its test vectors.
//!
//! One multiplication for each member is all there is in the common case. Logarithms are taken of the
//! best of each weight only, so clusters should have few different weights: [`weight_of`] rounds.

use crate::placement::mix;

/// Largest weight. Derived: the product of a weight and a [`cost`] fits 63 bits.
pub const WEIGHT_MAX: u32 = 1 << 24;
/// Bytes of capacity that make one of weight.
const WEIGHT_UNIT: u64 = 1 << 20;
/// Significant bits of a weight. Derived: capacity is rounded by at most one part in 32.
const WEIGHT_BITS: u32 = 5;
/// Most zones that a choice of replicas tells apart; a member of a further one counts as in zone 0.
pub const ZONES_MAX: usize = 128;

/// A member, as a ring is made of them. `mix` of the XXH3-64 of its id would be a key; the cluster tells
/// it, so that clients need not know how it came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Tells members apart; well mixed, and no two members have the same one.
    pub key: u64,
    /// Share of the blocks, relative to the other members; 0 for none, and above [`WEIGHT_MAX`] as
    /// if it were that.
    pub weight: u32,
    /// What fails together; replicas are spread over zones as far as there are some.
    pub zone: &'a str,
}

/// The weight of a node with so many bytes for blocks: MiB, rounded to five significant bits, at least 1.
pub fn weight_of(capacity_bytes: u64) -> u32 {
    let weight = (capacity_bytes / WEIGHT_UNIT).clamp(1, u64::from(WEIGHT_MAX)) as u32;
    let spare = weight.ilog2().saturating_sub(WEIGHT_BITS - 1);
    let half = (1 << spare) >> 1;
    (((weight + half) >> spare) << spare).min(WEIGHT_MAX)
}

/// A member in the order of the ring.
#[derive(Clone, Copy, Debug)]
struct Place {
    key: u64,
    factor: u64,
}

/// Members of the same weight, which lie together.
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
    places: Vec<Place>,
    classes: Vec<Class>,
    /// Zone of each place.
    zones: Vec<u8>,
    /// Index of each place in the members as they were given.
    members: Vec<u32>,
}

impl Ring {
    /// A ring of these members; those without weight own nothing.
    pub fn new(members: &[Member<'_>]) -> Ring {
        let weight_of = |member: &Member<'_>| member.weight.min(WEIGHT_MAX);
        let mut order: Vec<u32> = (0..members.len() as u32).collect();
        order.retain(|&index| members[index as usize].weight > 0);
        order.sort_by_key(|&index| {
            let member = &members[index as usize];
            (weight_of(member), member.key)
        });
        let mut names: Vec<&str> = order.iter().map(|&it| members[it as usize].zone).collect();
        names.sort_unstable();
        names.dedup();
        let mut ring = Ring::default();
        for index in order {
            let member = &members[index as usize];
            let weight = weight_of(member);
            let place = ring.places.len();
            match ring.classes.last_mut() {
                Some(class) if class.weight == weight => class.end = place + 1,
                _ => ring.classes.push(Class { weight, start: place, end: place + 1 }),
            }
            ring.places.push(Place { key: member.key, factor: mix(member.key) | 1 });
            let zone = names.binary_search(&member.zone).unwrap_or(0);
            ring.zones.push(if zone < ZONES_MAX { zone as u8 } else { 0 });
            ring.members.push(index);
        }
        ring
    }

    /// Members that own something.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nobody owns anything.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The member, by its index in what the ring was made of, that owns the block with this
    /// [`block_hash`](crate::placement::block_hash).
    #[inline]
    pub fn owner(&self, hash: u64) -> Option<usize> {
        if self.places.len() == 1 {
            return Some(self.members[0] as usize);
        }
        let mut best: Option<Best> = None;
        for class in &self.classes {
            let mut place = class.start;
            let mut score = self.score(place, hash);
            for next in class.start + 1..class.end {
                let other = self.score(next, hash);
                // Keys ascend within a class, so that of equal scores the lower key stays.
                if other > score {
                    (place, score) = (next, other);
                }
            }
            let found = Best { place, score, weight: class.weight };
            best = Some(self.better(best, found));
        }
        best.map(|best| self.members[best.place] as usize)
    }

    /// Writes the members that have the block, and those that come after them, to `out`, as many as
    /// there is room for; returns how many there are. The first `replicas` have it: the best, then the
    /// best in a zone where none of them is, while there is one. The others follow as they score: the
    /// order in which to ask when none of them answers.
    pub fn owners(&self, hash: u64, replicas: usize, out: &mut [u32]) -> usize {
        let wanted = out.len().min(self.places.len());
        let mut zones = 0u128;
        let mut taken: [usize; OWNERS_MAX] = [usize::MAX; OWNERS_MAX];
        let wanted = wanted.min(OWNERS_MAX);
        for count in 0..wanted {
            let taken_now = &taken[..count];
            let spread = if count < replicas { zones } else { 0 };
            let best = self.best_besides(hash, taken_now, spread);
            // Every zone has one: the next ones share.
            let Some(best) = best.or_else(|| self.best_besides(hash, taken_now, 0)) else {
                return count;
            };
            zones |= 1 << self.zones[best.place];
            taken[count] = best.place;
            out[count] = self.members[best.place];
        }
        wanted
    }

    /// The best that is neither taken nor in one of these zones.
    fn best_besides(&self, hash: u64, taken: &[usize], zones: u128) -> Option<Best> {
        let mut best: Option<Best> = None;
        for class in &self.classes {
            let mut found: Option<Best> = None;
            for place in class.start..class.end {
                let score = self.score(place, hash);
                if found.is_some_and(|found| score <= found.score)
                    || zones >> self.zones[place] & 1 == 1
                    || taken.contains(&place)
                {
                    continue;
                }
                found = Some(Best { place, score, weight: class.weight });
            }
            if let Some(found) = found {
                best = Some(self.better(best, found));
            }
        }
        best
    }

    /// The number that a member gets for a block: both halves of a 128-bit product, folded.
    #[inline]
    fn score(&self, place: usize, hash: u64) -> u64 {
        let Place { key, factor } = self.places[place];
        let product = u128::from(hash ^ key) * u128::from(factor);
        (product >> 64) as u64 ^ product as u64
    }

    /// The one of two that wins: the lower cost for its weight, else the lower key.
    fn better(&self, first: Option<Best>, second: Best) -> Best {
        let Some(first) = first else { return second };
        if first.weight == second.weight {
            let key = |best: Best| self.places[best.place].key;
            let second_wins = (second.score, key(first)) > (first.score, key(second));
            return if second_wins { second } else { first };
        }
        let first_side = cost(first.score) * u64::from(second.weight);
        let second_side = cost(second.score) * u64::from(first.weight);
        let key = |best: Best| self.places[best.place].key;
        if (second_side, key(second)) < (first_side, key(first)) { second } else { first }
    }
}

/// Most members that [`Ring::owners`] tells.
pub const OWNERS_MAX: usize = 16;

/// `64 - log2(score)` in units of 2^-32: what the exponential distribution is made of. Zero counts as
/// one. Exact to the last bit in any language: 32 squarings of a number of 64 bits.
fn cost(score: u64) -> u64 {
    let score = score.max(1);
    let whole = score.ilog2();
    // In 1..2, with 63 bits behind the point.
    let mut mantissa = score << (63 - whole);
    let mut logarithm = u64::from(whole);
    for _ in 0..32 {
        let square = (u128::from(mantissa) * u128::from(mantissa)) >> 63;
        logarithm <<= 1;
        if square >> 64 == 0 {
            mantissa = square as u64;
        } else {
            mantissa = (square >> 1) as u64;
            logarithm |= 1;
        }
    }
    (64 << 32) - logarithm
}

#[cfg(test)]
mod tests;
