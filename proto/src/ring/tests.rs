//! Balance, movement and order of a ring, and the logarithm under it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn key(index: usize) -> u64 {
    mix(index as u64 + 1)
}

fn cluster(count: usize) -> Vec<RingMember<'static>> {
    (0..count).map(|index| RingMember { key: key(index), weight: 64, zone: "" }).collect()
}

fn hashes(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(|number| mix(number ^ 0x5eed_0000_0000))
}

fn shares(ring: &Ring, members: usize, count: u64) -> Vec<u64> {
    let mut shares = vec![0; members];
    for hash in hashes(count) {
        shares[ring.owner(hash).unwrap()] += 1;
    }
    shares
}

#[test]
fn equal_members_own_equal_shares() {
    let members = cluster(20);
    for share in shares(&Ring::new(&members), 20, 400_000) {
        // Five deviations of 141.
        assert!(share.abs_diff(20_000) < 700, "{share}");
    }
}

#[test]
fn shares_follow_the_weights() {
    let weights = [10, 20, 30, 40, 100, 100, 0];
    let members: Vec<_> = weights
        .iter()
        .enumerate()
        .map(|(index, &weight)| RingMember { key: key(index), weight, zone: "" })
        .collect();
    let shares = shares(&Ring::new(&members), weights.len(), 300_000);
    for (share, weight) in shares.iter().zip(weights) {
        assert!(share.abs_diff(u64::from(weight) * 1000) < 1500, "{share} for {weight}");
    }
    assert_eq!(shares[6], 0, "without weight nothing is owned");
}

#[test]
fn only_what_has_to_moves() {
    let all = cluster(30);
    let (before, after) = (Ring::new(&all[..29]), Ring::new(&all));
    let mut moved = 0;
    for hash in hashes(100_000) {
        let (old, new) = (before.owner(hash).unwrap(), after.owner(hash).unwrap());
        if new == 29 {
            moved += 1;
            // The member that the block came from is the one that comes next.
            let mut order = [0; 2];
            assert_eq!(after.owners(hash, 1, &mut order), 2);
            assert_eq!(order, [29, old as u32]);
        } else {
            assert_eq!(old, new);
        }
    }
    assert!(moved > 0);
}

#[test]
fn weight_that_grows_takes_from_others_and_gives_to_none() {
    let mut members = cluster(10);
    let before = Ring::new(&members);
    members[3].weight = 100;
    let after = Ring::new(&members);
    for hash in hashes(100_000) {
        let (old, new) = (before.owner(hash), after.owner(hash));
        assert!(old == new || new == Some(3));
    }
}

#[test]
fn order_of_the_members_does_not_matter() {
    let members: Vec<_> = (0..50)
        .map(|index| RingMember { key: key(index), weight: 10 + index as u32 % 3, zone: "" })
        .collect();
    let backwards: Vec<_> = members.iter().rev().copied().collect();
    let (first, second) = (Ring::new(&members), Ring::new(&backwards));
    for hash in hashes(10_000) {
        assert_eq!(first.owner(hash), second.owner(hash).map(|index| 49 - index));
    }
}

#[test]
fn replicas_are_in_different_zones_while_there_are_some() {
    let zones = ["a", "a", "a", "a", "b", "b", "c"];
    let members: Vec<_> = zones
        .iter()
        .enumerate()
        .map(|(index, zone)| RingMember { key: key(index), weight: 10 + index as u32, zone })
        .collect();
    let ring = Ring::new(&members);
    for hash in hashes(5000) {
        let mut out = [0; 7];
        assert_eq!(ring.owners(hash, 4, &mut out), 7);
        assert_eq!(Some(out[0] as usize), ring.owner(hash));
        let mut three: Vec<_> = out[..3].iter().map(|&index| zones[index as usize]).collect();
        three.sort_unstable();
        assert_eq!(three, ["a", "b", "c"]);
        let mut all = out;
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4, 5, 6], "each once");
        // Without replicas zones do not count: the order is that in which members leave.
        let mut plain = [0; 7];
        ring.owners(hash, 1, &mut plain);
        let mut left = members.clone();
        for &expected in &plain {
            assert_eq!(Ring::new(&left).owner(hash), Some(expected as usize));
            left[expected as usize].weight = 0;
        }
    }
}

/// Two keys that score 0, the lowest score, for the block that is the first one.
const EQUALS: [u64; 2] = [0x89ec_d332_60d8_a974, 0xd5db_48bc_303d_77b9];

#[test]
fn of_equals_the_lower_key_wins() {
    // Weights above the largest are the largest: these two are alike.
    for weights in [[7, 7], [WEIGHT_MAX, u32::MAX], [u32::MAX, WEIGHT_MAX]] {
        for keys in [EQUALS, [EQUALS[1], EQUALS[0]]] {
            let members =
                [0, 1].map(|at| RingMember { key: keys[at], weight: weights[at], zone: "" });
            let owner = Ring::new(&members).owner(EQUALS[0]);
            assert_eq!(owner.map(|owner| keys[owner]), Some(EQUALS[0]), "{weights:?} {keys:x?}");
        }
    }
}

#[test]
fn of_equal_costs_for_the_weight_the_lower_key_wins() {
    // The lighter member scores 2^32, which costs 32 doublings; the heavier one 0, which costs 64.
    let cases = [(0, 1 << 32, 0), (0x966d_bfc1_6913_c5d2, 0x966d_bfc0_6913_c5d2, 1)];
    for (light, heavy, winner) in cases {
        let members = [
            RingMember { key: light, weight: 1, zone: "" },
            RingMember { key: heavy, weight: 2, zone: "" },
        ];
        assert_eq!(Ring::new(&members).owner(heavy), Some(winner));
    }
}

#[test]
fn a_ring_of_none_and_of_one() {
    let none = Ring::new(&[]);
    assert!(none.is_empty());
    assert_eq!((none.owner(1), none.owners(1, 3, &mut [0; 3])), (None, 0));
    let one = Ring::new(&[
        RingMember { key: 0, weight: 0, zone: "" },
        RingMember { key: 1, weight: 1, zone: "" },
    ]);
    assert_eq!((one.owner(7), one.len()), (Some(1), 1));
    let mut out = [9; 3];
    assert_eq!(one.owners(7, 3, &mut out), 1);
    assert_eq!(out, [1, 9, 9]);
}

#[test]
fn cost_is_the_logarithm() {
    for score in (0..64).flat_map(|bit| [1u64 << bit, (1 << bit) | 1, mix(bit) >> (bit % 60)]) {
        let exact = (64.0 - (score.max(1) as f64).log2()) * (1u64 << 32) as f64;
        assert!((cost(score) as f64 - exact).abs() < 2.0 + exact * 1e-12, "{score}");
    }
    let published = [
        (0, 274_877_906_944),
        (1, 274_877_906_944),
        (3, 268_070_544_839),
        (1 << 32, 137_438_953_472),
        (1_000_000_000_000_000_000, 18_061_601_455),
        (0x7fff_ffff_ffff_ffff, 4_294_967_297),
        (1 << 63, 4_294_967_296),
        (0xcbf4_3926_cbf4_3926, 1_408_319_902),
        (u64::MAX, 1),
    ];
    for (score, expect) in published {
        assert_eq!(cost(score), expect, "{score}");
    }
}

#[test]
fn weights_are_rounded_to_few_values() {
    let mib = |mib: u64| weight_of(mib << 20);
    assert_eq!([0, 1, 5, 31, 32, 33, 35].map(mib), [1, 1, 5, 31, 32, 34, 36]);
    assert_eq!(mib(1 << 40), WEIGHT_MAX);
    for size in 1..100_000 {
        let error = f64::from(mib(size)) / size as f64 - 1.0;
        assert!(error.abs() <= 1.0 / 32.0, "{size}: {error}");
    }
}

/// Finds the best member by the rule as it is published, without a thought for speed.
fn model_best(members: &[(usize, RingMember<'_>)], hash: u64) -> Option<usize> {
    let score = |member: &RingMember<'_>| {
        let product = u128::from(hash ^ member.key) * u128::from(mix(member.key) | 1);
        (product >> 64) as u64 ^ product as u64
    };
    let mut firsts: BTreeMap<u32, (usize, RingMember<'_>)> = BTreeMap::new();
    for (index, member) in members {
        let first = firsts.entry(member.weight.min(WEIGHT_MAX)).or_insert((*index, *member));
        let order = score(&first.1).cmp(&score(member));
        if order.then(member.key.cmp(&first.1.key)) == Ordering::Less {
            *first = (*index, *member);
        }
    }
    let side = |own: &RingMember<'_>, other: &RingMember<'_>| {
        u128::from(cost(score(own))) * u128::from(other.weight.min(WEIGHT_MAX))
    };
    let found = firsts.into_values().min_by(|(_, first), (_, second)| {
        side(first, second).cmp(&side(second, first)).then(first.key.cmp(&second.key))
    });
    found.map(|(index, _)| index)
}

fn model_order(members: &[RingMember<'_>], hash: u64, replicas: usize) -> Vec<usize> {
    let mut left: Vec<_> = members.iter().copied().enumerate().collect();
    left.retain(|(_, member)| member.weight > 0);
    let mut order: Vec<usize> = Vec::new();
    while !left.is_empty() {
        let is_apart =
            |member: &RingMember<'_>| order.iter().all(|&it| members[it].zone != member.zone);
        let apart: Vec<_> = left.iter().copied().filter(|(_, it)| is_apart(it)).collect();
        let spread = order.len() < replicas && !apart.is_empty();
        let best = model_best(if spread { &apart } else { &left }, hash).unwrap();
        left.retain(|&(index, _)| index != best);
        order.push(best);
    }
    order
}

fn any_weight() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(64u32), 4 => 60..70u32, 1 => Just(0), 1 => 1..4u32, 1 => any::<u32>()]
}

proptest! {
    #[test]
    fn a_ring_follows_the_published_rule(
        members in vec((any::<u64>(), any_weight(), 0..4usize), 0..70),
        hash in any::<u64>(),
        replicas in 0..5usize,
        own_hash in any::<bool>(),
    ) {
        let zones = ["", "a", "b", "c"];
        let members: Vec<_> = members
            .into_iter()
            .map(|(key, weight, zone)| RingMember { key, weight, zone: zones[zone] })
            .collect();
        // The hash that is a key scores 0 for it.
        let hash = members.first().map_or(hash, |first| if own_hash { first.key } else { hash });
        let ring = Ring::new(&members);
        let order = model_order(&members, hash, replicas);
        prop_assert_eq!(ring.owner(hash), order.first().copied());
        let mut out = [0; OWNERS_MAX];
        let count = ring.owners(hash, replicas, &mut out);
        let found: Vec<usize> = out[..count].iter().map(|&index| index as usize).collect();
        prop_assert_eq!(&found, &order[..order.len().min(OWNERS_MAX)]);
    }

    #[test]
    fn cost_is_in_its_range(score in any::<u64>(), shift in 0..64u32) {
        // The best of many, too: close to the largest.
        for score in [score >> shift, !(score >> shift)] {
            let (low, high) = cost_range(score);
            prop_assert!((low..=high).contains(&cost(score)), "{score}");
        }
    }

    #[test]
    fn below_the_bar_nothing_wins(
        score in any::<u64>(),
        shift in 0..64u32,
        (weight, other) in (1..=WEIGHT_MAX, 1..=WEIGHT_MAX),
        below in 1..1000u64,
    ) {
        let best = Best { place: 0, score: !(score >> shift), weight };
        for weight in [other, weight, best.weight.saturating_sub(1).max(1)] {
            if let Some(score) = bar(best, weight).checked_sub(below) {
                let sides = (
                    cost(best.score) * u64::from(weight),
                    cost(score) * u64::from(best.weight),
                );
                prop_assert!(sides.0 < sides.1, "{sides:?}");
            }
        }
    }
}

#[test]
fn cost_is_in_its_range_at_the_ends_of_chords() {
    for index in 0..CHORDS as u64 {
        let corner = (CHORDS as u64 + index) << 56;
        for score in [corner - 1, corner, corner + 1, corner + (1 << 55)] {
            let (low, high) = cost_range(score);
            assert!((low..=high).contains(&cost(score)), "{score}");
        }
    }
}
