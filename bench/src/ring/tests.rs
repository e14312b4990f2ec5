//! A small simulation: its sums are right, the ring keeps its promises, and a seed is a run.

use super::*;

fn small() -> RingOptions {
    RingOptions { members: vec![2, 30], blocks: vec![5000, 60_000], rounds: 1, seed: 7 }
}

#[test]
fn every_block_has_an_owner_and_only_what_has_to_moves() {
    let mut lines = Vec::new();
    let report = simulate(&small(), |line| lines.push(line.to_owned())).unwrap();
    assert!(lines.iter().any(|line| line.contains("30 members, mixed weights")), "{lines:?}");
    let sizes: Vec<_> = report.clusters.iter().map(|it| (it.members, it.blocks)).collect();
    assert_eq!(sizes, [(2, 5000), (2, 5000), (30, 60_000), (30, 60_000)]);
    for cluster in &report.clusters {
        for moves in [cluster.join, cluster.leave] {
            assert!(moves.minimum > 0);
            assert_eq!((moves.moved, moves.between_others), (moves.minimum, 0));
        }
        for balance in [cluster.balance, cluster.heirs] {
            assert!(balance.smallest <= 1.0 && balance.largest >= 1.0, "{balance:?}");
            // Of the same order as chance: the ring knows nothing of other blocks.
            assert!(balance.deviation < 4.0 * balance.chance + 1e-9, "{balance:?}");
        }
        assert!((cluster.joiner_share - 1.0).abs() < 0.15, "{}", cluster.joiner_share);
        let decision = cluster.decision;
        assert!(decision.owner_ns > 0.0 && decision.owners_ns > decision.owner_ns);
        assert!(decision.size_bytes >= cluster.members * 21);
    }
    assert!(report.aims.iter().all(|aim| aim.is_met), "{:?}", report.aims);
    let text = report.render();
    assert!(text.contains("aim met: all clusters"), "{text}");
    assert!(serde_json::to_string_pretty(&report).unwrap().contains("\"weights\": \"mixed\""));
}

#[test]
fn blocks_are_counted_alike_on_any_number_of_threads() {
    let rings = Rings::new(Weights::Mixed, 9, 3);
    let blocks = Blocks { count: 1001, seed: 3 };
    let count = |threads| {
        let mut tally = Tally::new(9);
        tally.count(&rings, blocks, 0..500, threads);
        tally.count(&rings, blocks, 500..500, threads);
        tally.count(&rings, blocks, 500..blocks.count, threads);
        tally
    };
    let (one, many) = (count(1), count(7));
    assert_eq!(one.owned.iter().sum::<u64>(), blocks.count);
    assert_eq!(one.inherited.iter().sum::<u64>(), one.leave.minimum);
    assert_eq!(one.owned[rings.leaver], one.leave.minimum);
    assert_eq!(one.owned, many.owned);
    assert_eq!(one.inherited, many.inherited);
    assert_eq!((one.join, one.leave), (many.join, many.leave));
}

#[test]
fn more_members_have_fewer_blocks_where_none_are_asked_for() {
    let options = RingOptions::default();
    let blocks: Vec<u64> = (0..4).map(|index| options.blocks_of(index)).collect();
    assert_eq!(blocks, [BLOCKS_USUAL, BLOCKS_USUAL, BLOCKS_USUAL, BLOCKS_OF_MANY]);
    let one = RingOptions { blocks: vec![5], ..options };
    assert_eq!(one.blocks_of(3), 5);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let refused = |options: RingOptions, word: &str| {
        let error = simulate(&options, |_| ()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    refused(RingOptions { rounds: 0, ..small() }, "rounds");
    refused(RingOptions { members: vec![1], ..small() }, "members");
    refused(RingOptions { blocks: vec![1, 2, 3], ..small() }, "blocks");
    refused(RingOptions { blocks: vec![0], ..small() }, "blocks");
}
