//! The log keeps what was appended, in order, whatever was replaced, forgotten or reset before.

use super::*;
use crate::store::COMPACT_ENTRIES_MAX;

#[test]
fn a_new_log_is_empty() {
    each(|machine| {
        let reader = machine.log().reader();
        let state = reader.initial().unwrap();
        assert_eq!((state.compacted_index, state.last_index), (0, 0));
        assert_eq!(state.hard_state, HardState::default());
        assert_eq!(reader.term(0).unwrap(), Some(0));
        assert_eq!(reader.term(1).unwrap(), None);
        assert_eq!(reader.entries(1, 9, 100).unwrap(), vec![]);
    });
}

#[test]
fn appended_entries_survive_a_restart() {
    each(|machine| {
        let batch = [
            append(entries(1, 3, 1)),
            Append { hard_state: Some(hard_state(2, 3, 1)), ..append(entries(4, 5, 2)) },
        ];
        machine.log().append(&batch).unwrap();
        machine.restart();
        let reader = machine.log().reader();
        let state = reader.initial().unwrap();
        assert_eq!((state.compacted_index, state.last_index, state.last_term), (0, 5, 2));
        assert_eq!(state.hard_state, hard_state(2, 3, 1));
        let expected = [entries(1, 3, 1), entries(4, 5, 2)].concat();
        assert_eq!(whole_log(machine.log()).unwrap(), expected);
        let terms: Vec<_> = (0..=6).map(|index| reader.term(index).unwrap()).collect();
        assert_eq!(terms, [Some(0), Some(1), Some(1), Some(1), Some(2), Some(2), None]);
    });
}

#[test]
fn the_last_hard_state_of_a_batch_wins() {
    each(|machine| {
        let only = |hard_state| Append { hard_state: Some(hard_state), ..Append::default() };
        machine.log().append(&[only(hard_state(1, 1, 0)), only(hard_state(4, 2, 0))]).unwrap();
        machine.log().append(&[append(entries(1, 1, 4))]).unwrap();
        machine.restart();
        assert_eq!(machine.log().reader().initial().unwrap().hard_state, hard_state(4, 2, 0));
    });
}

#[test]
fn an_append_replaces_what_was_behind_its_first_entry() {
    each(|machine| {
        machine.log().append(&[append(entries(1, 9, 1))]).unwrap();
        machine.log().append(&[append(entries(4, 6, 2)), append(entries(6, 7, 3))]).unwrap();
        let expected = [entries(1, 3, 1), entries(4, 5, 2), entries(6, 7, 3)].concat();
        assert_eq!(whole_log(machine.log()).unwrap(), expected);
        machine.restart();
        assert_eq!(whole_log(machine.log()).unwrap(), expected);
        // This replaces the very first entry, so nothing old is left.
        machine.log().append(&[append(entries(1, 1, 5))]).unwrap();
        machine.restart();
        assert_eq!(whole_log(machine.log()).unwrap(), entries(1, 1, 5));
    });
}

#[test]
fn compaction_forgets_the_beginning_only() {
    each(|machine| {
        machine.log().append(&[append(entries(1, 5, 1)), append(entries(6, 9, 2))]).unwrap();
        assert_eq!(machine.log().compact(6, 2).unwrap(), 6);
        assert_eq!(machine.log().compact(3, 1).unwrap(), 6, "done already");
        machine.restart();
        let reader = machine.log().reader();
        let state = reader.initial().unwrap();
        assert_eq!((state.compacted_index, state.compacted_term, state.last_index), (6, 2, 9));
        assert_eq!(reader.term(6).unwrap(), Some(2));
        assert_eq!(reader.term(5).unwrap(), None);
        assert_eq!(reader.entries(6, 9, 100), Err(StoreError::Compacted { index: 6 }));
        assert_eq!(whole_log(machine.log()).unwrap(), entries(7, 9, 2));
        drop(reader);
        assert_eq!(machine.log().compact(9, 2).unwrap(), 9, "all of it");
        machine.log().append(&[append(entries(10, 10, 2))]).unwrap();
        machine.restart();
        assert_eq!(whole_log(machine.log()).unwrap(), entries(10, 10, 2));
    });
}

#[test]
fn compaction_goes_in_bounded_steps() {
    each(|machine| {
        let last = 2 * COMPACT_ENTRIES_MAX + 10;
        machine.log().append(&[append(entries(1, last, 1))]).unwrap();
        assert_eq!(machine.log().compact(last, 1).unwrap(), COMPACT_ENTRIES_MAX);
        assert_eq!(machine.log().compact(last, 1).unwrap(), 2 * COMPACT_ENTRIES_MAX);
        machine.restart();
        assert_eq!(machine.log().compact(last, 1).unwrap(), last);
        assert_eq!(machine.log().reader().initial().unwrap().compacted_index, last);
    });
}

#[test]
fn a_reset_forgets_everything_and_goes_on_behind_the_snapshot() {
    each(|machine| {
        machine.log().append(&[append(entries(1, 9, 1))]).unwrap();
        let reset = Append {
            number: 4,
            reset: Some((100, 7)),
            entries: entries(101, 103, 7),
            hard_state: Some(hard_state(7, 0, 100)),
        };
        machine.log().append(&[reset]).unwrap();
        machine.restart();
        let reader = machine.log().reader();
        let state = reader.initial().unwrap();
        assert_eq!((state.compacted_index, state.compacted_term, state.last_index), (100, 7, 103));
        assert_eq!(reader.term(100).unwrap(), Some(7));
        assert_eq!(whole_log(machine.log()).unwrap(), entries(101, 103, 7));
        drop(reader);
        machine.log().append(&[Append { reset: Some((5, 2)), ..Append::default() }]).unwrap();
        machine.restart();
        assert_eq!(machine.log().reader().initial().unwrap().last_term, 2);
        assert_eq!(whole_log(machine.log()).unwrap(), vec![]);
    });
}

#[test]
fn a_read_stops_at_its_limit_but_gives_one_entry() {
    each(|machine| {
        let data = [7; 1000];
        let large: Vec<Entry> = (1..=9).map(|index| entry(index, 1, &data)).collect();
        machine.log().append(&[append(large)]).unwrap();
        let reader = machine.log().reader();
        let indexes = |low, high, bytes_max| -> Vec<u64> {
            let found = reader.entries(low, high, bytes_max).unwrap();
            found.iter().map(|entry| entry.index).collect()
        };
        assert_eq!(indexes(2, 9, 0), [2]);
        assert_eq!(indexes(2, 9, 2500), [2, 3]);
        assert_eq!(indexes(2, 4, u64::MAX), [2, 3]);
        assert_eq!(indexes(8, 99, u64::MAX), [8, 9]);
        assert_eq!(indexes(3, 3, 99), [] as [u64; 0]);
    });
}

#[test]
fn entries_of_every_size_come_back() {
    each(|machine| {
        let sizes = [0, 1, 100, 1900, 2000, 2010, 2048, 4096, 5000, 70_000, 1 << 20, 5 << 20];
        let data = |size: usize| (0..size).map(|at| at as u8).collect::<Vec<u8>>();
        let all: Vec<Entry> =
            (1..).zip(sizes).map(|(index, size)| entry(index, 1, &data(size))).collect();
        machine.log().append(&[append(all.clone())]).unwrap();
        machine.restart();
        assert_eq!(whole_log(machine.log()).unwrap(), all);
    });
}

#[test]
fn a_reader_sees_each_commit() {
    each(|machine| {
        let reader = machine.log().reader();
        machine.log().append(&[append(entries(1, 2, 1))]).unwrap();
        assert_eq!(reader.initial().unwrap().last_index, 2);
        machine.log().append(&[append(entries(3, 3, 1))]).unwrap();
        assert_eq!(reader.entries(3, 4, 0).unwrap(), entries(3, 3, 1));
    });
}

#[test]
fn a_log_is_what_a_vector_would_be() {
    for seed in 0..8 {
        each(|machine| random_log(machine, seed));
    }
}

/// Makes random appends, replacements, compactions, resets and restarts, beside a plain vector.
fn random_log(machine: &mut dyn Machine, seed: u64) {
    let random = &mut fastrand::Rng::with_seed(seed);
    let mut compacted = (0, 0);
    let mut expected: Vec<Entry> = Vec::new();
    let mut hard = HardState::default();
    for step in 0..120 {
        let term = 1 + step / 10;
        let last = compacted.0 + expected.len() as u64;
        match random.u8(..10) {
            0 => machine.restart(),
            1 => {
                let to = random.u64(compacted.0..=last);
                if to > compacted.0 {
                    let kept = expected.split_off((to - compacted.0) as usize);
                    compacted = (to, expected.last().unwrap().term);
                    expected = kept;
                    assert_eq!(machine.log().compact(to, compacted.1).unwrap(), to);
                }
            }
            2 if random.u8(..5) == 0 => {
                compacted = (last + random.u64(..50), term);
                expected.clear();
                let reset = Append { reset: Some(compacted), ..Append::default() };
                machine.log().append(&[reset]).unwrap();
            }
            _ => {
                let mut batch = Vec::new();
                for number in 0..random.u64(1..4) {
                    let back = if random.u8(..4) == 0 { random.usize(..4) } else { 0 };
                    let kept = expected.len().saturating_sub(back);
                    let first = compacted.0 + kept as u64 + 1;
                    let new: Vec<Entry> = (first..first + random.u64(..30))
                        .map(|index| entry(index, term, &random_value(random)))
                        .collect();
                    // Without an entry nothing is replaced.
                    if !new.is_empty() {
                        expected.truncate(kept);
                        expected.extend(new.iter().cloned());
                    }
                    if random.bool() {
                        hard = hard_state(term, number, first);
                    }
                    let hard_state = Some(hard.clone());
                    batch.push(Append { number, reset: None, entries: new, hard_state });
                }
                machine.log().append(&batch).unwrap();
            }
        }
        let state = machine.log().reader().initial().unwrap();
        assert_eq!((state.compacted_index, state.compacted_term), compacted, "seed {seed}");
        assert_eq!(state.hard_state, hard, "seed {seed}, step {step}");
        assert_eq!(whole_log(machine.log()).unwrap(), expected, "seed {seed}, step {step}");
    }
}
