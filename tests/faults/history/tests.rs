//! Histories that may be and histories that may not.

use super::*;

/// Checks whether one znode's history, with its operations one after the other, is found linearizable.
#[track_caller]
fn check(operations: &[Operation], expected: bool) {
    let mut record = Record::new(Instant::now(), 1);
    for operation in operations {
        match *operation {
            Operation::Maybe(attempt) => record.lost(0, record.now_ns(), attempt),
            operation => record.answered(0, record.now_ns(), operation),
        }
    }
    assert_eq!(judge(&[record], |_| "/a".to_owned()).is_ok(), expected, "{operations:?}");
}

const SWAP: Operation = Operation::Swap { expected: 0, value: 2 };

#[test]
fn a_read_sees_the_last_acknowledged_write() {
    check(&[Operation::Create(1), SWAP, Operation::Read(Some((2, 1)))], true);
    check(&[Operation::Create(1), SWAP, Operation::Read(Some((1, 0)))], false);
    check(&[Operation::Create(1), Operation::Read(None)], false);
    check(&[Operation::Create(1), SWAP, SWAP], false);
}

#[test]
fn refusals_are_judged_too() {
    check(&[Operation::CreateRefused], false);
    check(&[Operation::Absent, Operation::Create(1), Operation::CreateRefused], true);
    check(&[Operation::Create(1), Operation::VersionRefused { expected: 0 }], false);
    let delete = Operation::Delete { expected: 0 };
    check(&[Operation::Create(1), delete, Operation::Absent, Operation::Create(3)], true);
    check(&[Operation::Create(1), delete, Operation::Read(Some((1, 0)))], false);
}

#[test]
fn a_write_of_unknown_fate_may_have_happened_until_its_session_is_served_again() {
    let maybe = Operation::Maybe(Attempt::Swap { expected: 0, value: 2 });
    check(&[Operation::Create(1), maybe, Operation::Read(Some((1, 0)))], true);
    let late = [maybe, Operation::Read(Some((1, 0))), Operation::Read(Some((2, 1)))];
    check(&[&[Operation::Create(1)], &late[..]].concat(), true);
    // The same, but the session was served in between.
    let mut record = Record::new(Instant::now(), 1);
    record.answered(0, record.now_ns(), Operation::Create(1));
    record.lost(0, record.now_ns(), Attempt::Swap { expected: 0, value: 2 });
    record.settled();
    std::thread::sleep(std::time::Duration::from_micros(10));
    for state in [Some((1, 0)), Some((2, 1))] {
        record.answered(0, record.now_ns(), Operation::Read(state));
    }
    assert!(judge(&[record], |_| "/a".to_owned()).is_err());
}
