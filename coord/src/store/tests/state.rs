//! The state keeps its records. A snapshot has all of them, and replaces a state completely or not at all.

use super::*;
use crate::store::{KEY_SIZE_MAX, SNAPSHOTS_MAX};

#[test]
fn a_new_state_is_empty() {
    each(|machine| {
        assert_eq!(whole_state(machine.state()).unwrap(), (Contents::new(), None));
        assert!(matches!(machine.state().snapshot(), Err(StoreError::Snapshot { .. })));
    });
}

#[test]
fn committed_records_survive_a_restart() {
    each(|machine| {
        commit(machine.state(), &[("a", Some("1")), ("b", Some("")), ("c", Some("3"))], 5);
        commit(machine.state(), &[("a", Some("one")), ("c", None), ("never", None)], 6);
        machine.restart();
        let expected =
            Contents::from([(b"a".to_vec(), b"one".to_vec()), (b"b".to_vec(), b"".to_vec())]);
        assert_eq!(whole_state(machine.state()).unwrap(), (expected, Some(applied(6))));
    });
}

#[test]
fn a_view_has_the_records_of_its_commit() {
    let mut machine = OnDisk::new();
    commit(machine.state(), &[("a", Some("1")), ("b", Some("2"))], 5);
    let state = &machine.stores().state;
    let view = state.view().unwrap();
    assert_eq!(view.get(b"a"), Ok(Some(&b"1"[..])));
    assert_eq!((view.get(b"ab"), view.get(b"c")), (Ok(None), Ok(None)));
    drop(view);
    commit(machine.state(), &[("a", Some("one")), ("b", None)], 6);
    let view = machine.stores().state.view().unwrap();
    assert_eq!((view.get(b"a"), view.get(b"b")), (Ok(Some(&b"one"[..])), Ok(None)));
}

#[test]
fn a_commit_may_change_the_index_only() {
    each(|machine| {
        commit(machine.state(), &[], 1);
        machine.restart();
        assert_eq!(whole_state(machine.state()).unwrap(), (Contents::new(), Some(applied(1))));
    });
}

#[test]
fn records_are_loaded_in_order_of_their_keys() {
    each(|machine| {
        let long = "k".repeat(KEY_SIZE_MAX);
        let keys = ["\u{7f}", "b", "aa", "\0", &long, "a"];
        let changes: Vec<_> = keys.iter().map(|key| (*key, Some("v"))).collect();
        commit(machine.state(), &changes, 1);
        let mut found = Vec::new();
        machine
            .state()
            .load(&mut |key, _| {
                found.push(String::from_utf8(key.to_vec()).unwrap());
                Ok(())
            })
            .unwrap();
        assert_eq!(found, ["\0", "a", "aa", "b", &long, "\u{7f}"]);
    });
}

#[test]
fn a_load_ends_with_the_error_of_its_caller() {
    each(|machine| {
        commit(machine.state(), &[("a", Some("1")), ("b", Some("2"))], 5);
        let mut count = 0;
        let ended = machine.state().load(&mut |_, _| {
            count += 1;
            Err(StoreError::SnapshotGone)
        });
        assert_eq!((ended, count), (Err(StoreError::SnapshotGone), 1));
    });
}

#[test]
fn a_state_is_what_a_map_would_be() {
    for seed in 0..8 {
        each(|machine| random_state(machine, seed));
    }
}

/// Makes random commits, restarts and installed snapshots, beside a plain map.
fn random_state(machine: &mut dyn Machine, seed: u64) {
    let random = &mut fastrand::Rng::with_seed(seed);
    let mut expected = Contents::new();
    for index in 1..100 {
        let keys = random.usize(..if index % 20 == 0 { 2000 } else { 40 });
        let changes: BTreeMap<Vec<u8>, Option<Vec<u8>>> = (0..keys)
            .map(|_| {
                let key = random.u16(..1500).to_be_bytes().to_vec();
                (key, (random.u8(..4) > 0).then(|| random_value(random)))
            })
            .collect();
        for (key, value) in &changes {
            match value {
                Some(value) => expected.insert(key.clone(), value.clone()),
                None => expected.remove(key),
            };
        }
        let mut records = changes.iter().map(|(key, value)| (&key[..], value.as_deref()));
        machine.state().commit(&mut records, &applied(index)).unwrap();
        match random.u8(..12) {
            0 => machine.restart(),
            1 => {
                let sent = chunks(machine.state(), random.usize(100..100_000));
                machine.state().begin_install().unwrap();
                sent.iter().for_each(|chunk| machine.state().install_chunk(chunk).unwrap());
                assert_eq!(machine.state().finish_install().unwrap(), applied(index));
            }
            _ => {}
        }
        let found = whole_state(machine.state()).unwrap();
        assert!(found == (expected.clone(), Some(applied(index))), "seed {seed}, index {index}");
    }
}

/// Builds a state of some size, with records of every size.
fn fill(state: &mut dyn StateStore, seed: u64, index: u64) -> Contents {
    let random = &mut fastrand::Rng::with_seed(seed);
    let contents: Contents =
        (0..300u16).map(|number| (number.to_be_bytes().to_vec(), random_value(random))).collect();
    let mut changes = contents.iter().map(|(key, value)| (&key[..], Some(&value[..])));
    state.commit(&mut changes, &applied(index)).unwrap();
    contents
}

#[test]
fn a_snapshot_of_any_kind_of_store_can_be_installed_in_any() {
    for bytes_max in [1, 1000, 1 << 20] {
        each(|source| {
            let contents = fill(source.state(), 1, 44);
            let sent = chunks(source.state(), bytes_max);
            each(|target| {
                commit(target.state(), &[("old", Some("gone"))], 3);
                target.state().begin_install().unwrap();
                sent.iter().for_each(|chunk| target.state().install_chunk(chunk).unwrap());
                assert_eq!(target.state().finish_install().unwrap(), applied(44));
                let expected = (contents.clone(), Some(applied(44)));
                assert!(whole_state(target.state()).unwrap() == expected);
                target.restart();
                assert!(whole_state(target.state()).unwrap() == expected);
                commit(target.state(), &[("new", Some("record"))], 45);
                target.restart();
                let (found, index) = whole_state(target.state()).unwrap();
                assert_eq!((found.len(), index), (contents.len() + 1, Some(applied(45))));
            });
        });
    }
}

#[test]
fn chunks_keep_to_their_size() {
    each(|machine| {
        fill(machine.state(), 2, 1);
        let sent = chunks(machine.state(), 30_000);
        assert!(sent.len() > 5 && sent.iter().all(|chunk| chunk.len() <= 30_000));
    });
}

#[test]
fn an_empty_state_can_be_installed() {
    each(|machine| {
        commit(machine.state(), &[], 9);
        let sent = chunks(machine.state(), 1000);
        commit(machine.state(), &[("a", Some("b"))], 10);
        machine.state().begin_install().unwrap();
        sent.iter().for_each(|chunk| machine.state().install_chunk(chunk).unwrap());
        machine.state().finish_install().unwrap();
        assert_eq!(whole_state(machine.state()).unwrap(), (Contents::new(), Some(applied(9))));
    });
}

#[test]
fn a_snapshot_does_not_see_later_commits() {
    each(|machine| {
        let contents = fill(machine.state(), 3, 1);
        let mut reader = machine.state().snapshot().unwrap();
        let mut sent = vec![reader.next_chunk(5000).unwrap().unwrap()];
        for index in 2..30 {
            commit(machine.state(), &[("later", Some("value"))], index);
            fill(machine.state(), index, index);
            sent.extend(reader.next_chunk(5000).unwrap());
        }
        while let Some(chunk) = reader.next_chunk(5000).unwrap() {
            sent.push(chunk);
        }
        assert_eq!(reader.applied(), &applied(1));
        machine.state().begin_install().unwrap();
        sent.iter().for_each(|chunk| machine.state().install_chunk(chunk).unwrap());
        machine.state().finish_install().unwrap();
        assert!(whole_state(machine.state()).unwrap() == (contents, Some(applied(1))));
    });
}

#[test]
fn an_incomplete_snapshot_changes_nothing() {
    each(|machine| {
        fill(machine.state(), 4, 1);
        let sent = chunks(machine.state(), 10_000);
        commit(machine.state(), &[("kept", Some("yes"))], 2);
        let before = whole_state(machine.state()).unwrap();
        assert!(matches!(machine.state().finish_install(), Err(StoreError::Snapshot { .. })));
        for upto in 0..sent.len() {
            machine.state().begin_install().unwrap();
            sent[..upto].iter().for_each(|chunk| machine.state().install_chunk(chunk).unwrap());
            let refused = machine.state().finish_install();
            assert!(matches!(refused, Err(StoreError::Snapshot { .. })), "{upto} of {refused:?}");
            assert!(whole_state(machine.state()).unwrap() == before);
        }
        machine.restart();
        assert!(whole_state(machine.state()).unwrap() == before);
    });
}

#[test]
fn damaged_missing_and_mixed_chunks_are_refused() {
    each(|machine| {
        fill(machine.state(), 5, 1);
        let sent = chunks(machine.state(), 20_000);
        fill(machine.state(), 6, 2);
        let other = chunks(machine.state(), 20_000);
        let before = whole_state(machine.state()).unwrap();
        let mut refused = |wrong: &[Vec<u8>]| {
            machine.state().begin_install().unwrap();
            let ended = wrong.iter().try_for_each(|chunk| machine.state().install_chunk(chunk));
            assert!(matches!(ended, Err(StoreError::Snapshot { .. })), "{ended:?}");
            assert!(machine.state().install_chunk(&wrong[0]).is_err(), "only a new one can follow");
            assert!(whole_state(machine.state()).unwrap() == before);
        };
        refused(&[sent[0].clone(), sent[2].clone()]);
        refused(&[sent[0].clone(), sent[1].clone(), sent[1].clone()]);
        refused(&[sent[0].clone(), other[1].clone()]);
        refused(&sent[1..]);
        refused(&[vec![]]);
        let random = &mut fastrand::Rng::with_seed(7);
        for _ in 0..50 {
            let mut wrong = sent.clone();
            let chunk = random.usize(..wrong.len());
            let at = random.usize(..wrong[chunk].len());
            wrong[chunk][at] ^= random.u8(1..);
            refused(&wrong);
        }
    });
}

#[test]
fn a_backup_restores_the_state_and_a_damaged_one_does_not() {
    each(|machine| {
        let directory = scratch();
        let path = directory.path().join("backup");
        let contents = fill(machine.state(), 8, 5);
        assert_eq!(machine.state().copy_to(&path).unwrap(), applied(5));
        assert!(matches!(machine.state().copy_to(&path), Err(StoreError::Io { .. })));
        commit(machine.state(), &[("later", Some("x"))], 6);
        let before = whole_state(machine.state()).unwrap();
        let backup = std::fs::read(&path).unwrap();
        let wrong = directory.path().join("wrong");
        for size in [0, 3, 16, 18, 30, backup.len() / 2, backup.len() - 1] {
            std::fs::write(&wrong, &backup[..size]).unwrap();
            let refused = machine.state().install_from(&wrong);
            assert!(matches!(refused, Err(StoreError::Snapshot { .. })), "{size}: {refused:?}");
        }
        let random = &mut fastrand::Rng::with_seed(9);
        for _ in 0..50 {
            let mut bytes = backup.clone();
            bytes[random.usize(..backup.len())] ^= random.u8(1..);
            std::fs::write(&wrong, &bytes).unwrap();
            let refused = machine.state().install_from(&wrong);
            assert!(matches!(refused, Err(StoreError::Snapshot { .. })), "{refused:?}");
        }
        assert!(whole_state(machine.state()).unwrap() == before);
        assert_eq!(machine.state().install_from(&path).unwrap(), applied(5));
        assert!(whole_state(machine.state()).unwrap() == (contents, Some(applied(5))));
        let missing = machine.state().install_from(&directory.path().join("none"));
        assert!(matches!(missing, Err(StoreError::Io { .. })));
    });
}

#[test]
fn a_snapshot_of_a_replaced_state_ends() {
    let mut machine = OnDisk::new();
    fill(machine.state(), 1, 1);
    let sent = chunks(machine.state(), 10_000);
    let mut reader = machine.state().snapshot().unwrap();
    reader.next_chunk(100).unwrap();
    machine.state().begin_install().unwrap();
    sent.iter().for_each(|chunk| machine.state().install_chunk(chunk).unwrap());
    machine.state().finish_install().unwrap();
    assert_eq!(reader.next_chunk(100), Err(StoreError::SnapshotGone));
    assert_eq!(chunks(machine.state(), 10_000).len(), sent.len());
}

#[test]
fn open_snapshots_are_limited() {
    let mut machine = OnDisk::new();
    commit(machine.state(), &[("a", Some("b"))], 1);
    let mut open: Vec<_> =
        (0..SNAPSHOTS_MAX).map(|_| machine.state().snapshot().unwrap()).collect();
    assert!(matches!(machine.state().snapshot(), Err(StoreError::Snapshot { .. })));
    open.pop();
    machine.state().snapshot().unwrap();
}
