//! Claims about the checker, most of all that it finds what is wrong.

use super::RegisterOperation::{Maybe, Read, Set, Swap, SwapRefused};
use super::*;

const INITIAL: Register = Register { value: 0, version: 0 };

fn register(value: u64, version: i32) -> Register {
    Register { value, version }
}

fn verdict(history: &[(RegisterOperation, u64, u64)]) -> Verdict {
    let history: Vec<_> = history
        .iter()
        .map(|&(operation, began, ended)| Timed { operation, began, ended })
        .collect();
    check(&Registers, INITIAL, &history, 1_000_000)
}

#[track_caller]
fn assert_violated(history: &[(RegisterOperation, u64, u64)]) {
    assert!(matches!(verdict(history), Verdict::Violated { .. }), "{history:?}");
}

#[test]
fn one_after_the_other_is_linearizable() {
    let history = [
        (Set(register(7, 1)), 0, 1),
        (Read(register(7, 1)), 2, 3),
        (Swap { expected: 1, value: 8 }, 4, 5),
        (SwapRefused { expected: 1 }, 6, 7),
        (Read(register(8, 2)), 8, 9),
    ];
    assert_eq!(verdict(&history), Verdict::Linearizable);
}

#[test]
fn a_stale_read_is_found() {
    assert_violated(&[(Set(register(7, 1)), 0, 1), (Read(INITIAL), 2, 3)]);
    assert_eq!(
        verdict(&[(Set(register(7, 1)), 0, 2), (Read(INITIAL), 1, 3)]),
        Verdict::Linearizable,
        "while the write is under way the old value may be read"
    );
}

#[test]
fn reads_that_go_back_are_found() {
    assert_violated(&[
        (Set(register(7, 1)), 0, 10),
        (Read(register(7, 1)), 1, 2),
        (Read(INITIAL), 3, 4),
    ]);
}

#[test]
fn two_swaps_of_one_version_are_found() {
    assert_violated(&[
        (Swap { expected: 0, value: 1 }, 0, 10),
        (Swap { expected: 0, value: 2 }, 0, 10),
    ]);
}

#[test]
fn a_lost_write_is_found() {
    assert_violated(&[(Set(register(7, 1)), 0, 1), (Set(register(8, 1)), 2, 3)]);
}

#[test]
fn a_swap_refused_for_no_reason_is_found() {
    assert_violated(&[(SwapRefused { expected: 0 }, 0, 1)]);
    let maybe = Maybe { expected: None, value: 9 };
    assert_eq!(
        verdict(&[(maybe, 0, 5), (SwapRefused { expected: 0 }, 1, 2)]),
        Verdict::Linearizable
    );
}

#[test]
fn a_write_of_unknown_fate_may_show_at_any_time_until_its_end_but_not_come_and_go() {
    let maybe = Maybe { expected: None, value: 9 };
    let late = [(maybe, 0, NEVER), (Read(INITIAL), 1, 2), (Read(register(9, 1)), 3, 4)];
    assert_eq!(verdict(&late), Verdict::Linearizable);
    assert_violated(&[(maybe, 0, 2), (Read(INITIAL), 3, 4), (Read(register(9, 1)), 5, 6)]);
    assert_violated(&[(maybe, 0, NEVER), (Read(register(9, 1)), 1, 2), (Read(INITIAL), 3, 4)]);
}

#[test]
fn a_conditional_write_of_unknown_fate_may_wait_for_its_version() {
    let maybe = Maybe { expected: Some(1), value: 9 };
    let history = [(maybe, 0, 9), (Set(register(7, 1)), 1, 2), (Read(register(9, 2)), 3, 4)];
    assert_eq!(verdict(&history), Verdict::Linearizable);
}

#[test]
fn a_search_that_takes_too_long_says_so() {
    let maybe = |value| (Maybe { expected: None, value }, 0, NEVER);
    let mut history: Vec<_> = (0..24).map(maybe).collect();
    history.push((Read(register(99, 12)), 1, 2));
    let history: Vec<_> = history
        .into_iter()
        .map(|(operation, began, ended)| Timed { operation, began, ended })
        .collect();
    assert_eq!(check(&Registers, INITIAL, &history, 10_000), Verdict::Undecided);
}

/// Accepts histories of a register that works, and refuses them with one answer changed.
#[test]
fn random_histories_are_told_apart() {
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..200 {
        let mut state = INITIAL;
        let mut history = Vec::new();
        for step in 0..40u64 {
            let at = step * 10;
            // Takes effect at `at`; the interval around it overlaps those of its neighbours.
            let (began, ended) = (at.saturating_sub(random.u64(0..25)), at + random.u64(0..25));
            let operation = match random.u8(0..4) {
                0 => Read(state),
                1 => {
                    state = register(step + 1, state.version + 1);
                    Set(state)
                }
                2 => {
                    let expected = state.version;
                    state = register(step + 1, expected + 1);
                    Swap { expected, value: step + 1 }
                }
                _ => Maybe { expected: Some(state.version + 5), value: 1 },
            };
            history.push(Timed { operation, began, ended });
        }
        assert_eq!(check(&Registers, INITIAL, &history, 1_000_000), Verdict::Linearizable);
        history.push(Timed { operation: Read(register(round, -1)), began: 0, ended: NEVER - 1 });
        let verdict = check(&Registers, INITIAL, &history, 1_000_000);
        assert!(matches!(verdict, Verdict::Violated { .. }), "{verdict:?}");
    }
}
