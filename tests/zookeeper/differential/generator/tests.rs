//! Rounds can be played again, and reach everything a client may send.

use std::collections::BTreeSet;

use super::*;

fn told(step: &Step) -> String {
    match step {
        Step::Batch { slot, ops } => {
            let ops: Vec<String> = ops.iter().map(Op::to_string).collect();
            format!("{slot} {}", ops.join(" "))
        }
        Step::Connect { slot, handshake } => format!("{slot} {handshake:?}"),
        Step::Detach { slot } => format!("{slot} detach"),
    }
}

fn steps(seed: u64, count: usize) -> Vec<Step> {
    let comparer = Comparer::default();
    let mut generator = Generator::new(seed, "/r1", 3, true);
    let clients = [Presence::Attached, Presence::Attached, Presence::Detached];
    (0..count).map(|_| generator.step(&clients, &comparer)).collect()
}

#[test]
fn a_seed_decides_a_round() {
    let round = |seed| -> Vec<String> { steps(seed, 300).iter().map(told).collect() };
    assert_eq!(round(1), round(1));
    assert_ne!(round(1), round(2));
}

#[test]
fn every_operation_of_a_client_is_sent() {
    let mut codes = BTreeSet::new();
    for step in steps(1, 3000) {
        if let Step::Batch { ops, .. } = step {
            codes.extend(ops.iter().filter(|op| !op.is_raw).map(|op| op.code));
        }
    }
    let expected = (1..=9).chain([11, 12]).chain(14..=22).chain([-11]);
    for code in expected.chain(100..=107) {
        assert!(codes.contains(&code), "operation {code}");
    }
}

#[test]
fn kinds_of_watches_are_not_mixed_on_a_path() {
    let mut watches = Watches::new(2);
    assert!(watches.ask(0, "/a", watches::Kind::Standard));
    assert!(!watches.ask(0, "/a", watches::Kind::Persistent));
    assert!(watches.ask(1, "/b", watches::Kind::Recursive));
    assert!(watches.is_alone(0, "/a") && !watches.is_alone(1, "/a"));
    watches.connection_ended(0);
    assert!(!watches.is_alone(0, "/a"), "an earlier connection watched it");
    assert!(watches.ask(0, "/a", watches::Kind::Persistent));
}
