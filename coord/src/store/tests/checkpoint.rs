//! A checkpoint commits the last value of each key, when it is due and not before.

use super::*;
use crate::store::checkpoint::{Limits, MergedCheckpoint};

const LIMITS: Limits = Limits { wait_ms_max: 100, bytes_max: 10_000 };

fn records(changes: &[(&str, Option<&str>)]) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let owned = |text: &str| text.as_bytes().to_vec();
    changes.iter().map(|(key, value)| (owned(key), value.map(owned))).collect()
}

#[test]
fn batches_become_one_commit_and_the_last_value_wins() {
    each(|machine| {
        commit(machine.state(), &[("d", Some("old"))], 1);
        let mut checkpoint = MergedCheckpoint::new(LIMITS);
        checkpoint.add(records(&[("a", Some("1")), ("b", Some("1"))]), applied(2), 0);
        checkpoint.add(records(&[("a", Some("2")), ("b", None), ("d", None)]), applied(3), 5);
        checkpoint.add(records(&[("c", None)]), applied(3), 6);
        checkpoint.add(records(&[("c", Some("3"))]), applied(7), 7);
        assert_eq!(checkpoint.commit(machine.state()).unwrap(), Some(7));
        let expected =
            Contents::from([(b"a".to_vec(), b"2".to_vec()), (b"c".to_vec(), b"3".to_vec())]);
        assert_eq!(whole_state(machine.state()).unwrap(), (expected, Some(applied(7))));
        assert_eq!(checkpoint.commit(machine.state()).unwrap(), None);
        assert_eq!(checkpoint.bytes(), 0);
    });
}

#[test]
fn a_commit_is_due_when_the_oldest_change_waited_long_enough() {
    let mut checkpoint = MergedCheckpoint::new(LIMITS);
    assert_eq!((checkpoint.due_ms(), checkpoint.is_due(u64::MAX)), (None, false));
    checkpoint.add(records(&[("a", Some("1"))]), applied(1), 1000);
    checkpoint.add(records(&[("a", Some("2"))]), applied(2), 1090);
    assert_eq!(checkpoint.due_ms(), Some(1100));
    assert!(!checkpoint.is_due(1099) && checkpoint.is_due(1100));
    checkpoint.clear();
    assert_eq!(checkpoint.due_ms(), None);
    // An index without changes is durable progress too, because the log can be compacted.
    checkpoint.add(vec![], applied(3), 2000);
    assert_eq!(checkpoint.due_ms(), Some(2100));
}

#[test]
fn a_commit_is_due_at_once_when_many_bytes_wait() {
    let mut checkpoint = MergedCheckpoint::new(LIMITS);
    let large = "x".repeat(LIMITS.bytes_max / 2);
    checkpoint.add(records(&[("a", Some(&large))]), applied(1), 50);
    checkpoint.add(records(&[("a", Some(&large))]), applied(2), 50);
    assert!(!checkpoint.is_due(50), "the same record does not count twice");
    checkpoint.add(records(&[("b", Some(&large))]), applied(3), 50);
    assert!(checkpoint.is_due(50));
}

#[test]
fn a_failed_commit_loses_nothing() {
    let disk = MemoryDisk::new(1);
    let mut checkpoint = MergedCheckpoint::new(LIMITS);
    checkpoint.add(records(&[("a", Some("1"))]), applied(1), 0);
    disk.fail_sync(crate::store::memory::Part::State, 1);
    let failed = checkpoint.commit(&mut disk.state());
    assert!(matches!(failed, Err(StoreError::Failed { .. })));
    assert!(checkpoint.is_due(100));
    disk.crash();
    assert_eq!(checkpoint.commit(&mut disk.state()).unwrap(), Some(1));
    assert_eq!(whole_state(&disk.state()).unwrap().1, Some(applied(1)));
}

#[test]
#[should_panic(expected = "goes back")]
fn entries_come_in_order() {
    let mut checkpoint = MergedCheckpoint::new(LIMITS);
    checkpoint.add(vec![], applied(2), 0);
    checkpoint.add(vec![], applied(1), 0);
}
