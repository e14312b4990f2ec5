//! What is the same, what is not, and that no alteration passes.

use super::*;
use crate::mutate::alter;
use millrace_proto::zookeeper::opcode;

fn item(kind: Kind, fields: Vec<(&'static str, Value)>) -> Item {
    let fields = fields.into_iter().map(|(name, value)| Field { name, value }).collect();
    Item { kind, fields, answers: None }
}

fn reply(xid: i64, last_zxid: i64, czxid: i64) -> Item {
    let fields = vec![
        ("xid", Value::Number(xid)),
        ("zxid", Value::LastZxid(last_zxid)),
        ("error", Value::Number(0)),
        ("data", Value::Bytes(Some(b"x".to_vec()))),
        ("czxid", Value::Zxid(czxid)),
        ("ctime", Value::Time { zxid: czxid, ms: 1_700_000_000_000 + czxid }),
        ("ephemeralOwner", Value::Session(czxid * 100)),
        ("names", Value::Names(vec![b"a".to_vec(), b"b".to_vec()])),
        ("acl", Value::Acl(vec![(31, "world".into(), "anyone".into())])),
    ];
    item(Kind::Reply(opcode::GET_DATA), fields)
}

fn event(zxid: i64, path: &str) -> Item {
    let fields = vec![
        ("xid", Value::Number(-1)),
        ("event zxid", Value::EventZxid(zxid)),
        ("type", Value::Number(3)),
        ("path", Value::Bytes(Some(path.as_bytes().to_vec()))),
    ];
    item(Kind::Event, fields)
}

fn comparer() -> Comparer {
    let mut comparer = Comparer::default();
    for czxid in 1..10 {
        comparer.pair_sessions(czxid * 100, (czxid + 50) * 100);
    }
    comparer
}

#[track_caller]
fn check(comparer: &mut Comparer, left: &[Item], right: &[Item], is_same: bool) {
    let outcome = comparer.lists([left, right], [0; 2], Order::Strict, true);
    assert_eq!(outcome.is_ok(), is_same, "{outcome:?}");
}

#[test]
fn zxids_are_equal_by_rank() {
    let mut comparer = comparer();
    check(&mut comparer, &[reply(1, 3, 3)], &[reply(1, 53, 53)], true);
    check(&mut comparer, &[reply(1, 5, 5)], &[reply(1, 55, 55)], true);
    // Known, in another pair.
    check(&mut comparer, &[reply(1, 5, 3)], &[reply(1, 55, 55)], false);
    // New, and not between its neighbours.
    check(&mut comparer, &[reply(1, 4, 3)], &[reply(1, 56, 53)], false);
    check(&mut comparer, &[reply(1, 4, 3)], &[reply(1, 54, 53)], true);
}

#[test]
fn headers_may_lag_behind_failed_writes_only_if_allowed() {
    let mut comparer = comparer();
    check(&mut comparer, &[reply(1, 3, 3)], &[reply(1, 53, 53)], true);
    check(&mut comparer, &[reply(2, 4, 3)], &[reply(2, 53, 53)], false);
    comparer.sparse_zxids = true;
    check(&mut comparer, &[reply(2, 4, 3)], &[reply(2, 53, 53)], true);
    // Even then a transaction that is shown must have been applied.
    check(&mut comparer, &[reply(3, 5, 5)], &[reply(3, 55, 55)], true);
    check(&mut comparer, &[reply(4, 6, 5)], &[reply(4, 54, 55)], false);
}

#[test]
fn a_time_belongs_to_its_transaction() {
    let mut comparer = comparer();
    check(&mut comparer, &[reply(1, 3, 3)], &[reply(1, 53, 53)], true);
    let mut right = reply(2, 53, 53);
    let ctime = right.fields.iter_mut().find(|field| field.name == "ctime").unwrap();
    ctime.value = Value::Time { zxid: 53, ms: 1_700_000_000_054 };
    check(&mut comparer, &[reply(2, 3, 3)], &[right], false);
}

#[test]
fn an_event_tells_minus_one_or_a_zxid_between_its_replies() {
    let mut comparer = comparer();
    let left = [reply(1, 3, 3), event(-1, "/a"), reply(2, 5, 5)];
    for (zxid, is_same) in [(-1, true), (54, true), (55, true), (53, false), (56, false)] {
        let right = [reply(1, 53, 53), event(zxid, "/a"), reply(2, 55, 55)];
        check(&mut comparer, &left, &right, is_same);
    }
}

#[test]
fn only_the_events_of_a_close_are_a_set() {
    let left = [event(-1, "/a"), event(-1, "/b"), reply(1, 3, 3)];
    let right = [event(-1, "/b"), event(-1, "/a"), reply(1, 53, 53)];
    check(&mut comparer(), &left, &right, false);
    let close =
        |right: &[Item]| comparer().lists([&left, right], [0; 2], Order::CloseEvents, true).is_ok();
    assert!(close(&right));
    assert!(!close(&[event(-1, "/b"), event(-1, "/b"), reply(1, 53, 53)]));
    assert!(!close(&right[1..]));
}

#[test]
fn no_alteration_passes() {
    let left = [reply(1, 3, 3), event(-1, "/a"), reply(2, 5, 5), Item::CLOSED];
    let right = [reply(1, 53, 53), event(-1, "/a"), reply(2, 55, 55), Item::CLOSED];
    let mut comparer = comparer();
    check(&mut comparer, &left, &right, true);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut altered_count = 0;
    for _ in 0..2000 {
        let mut altered = right.to_vec();
        let Some(what) = alter(&mut altered, Order::Strict, &mut rng) else { continue };
        altered_count += 1;
        let outcome = comparer.lists([&left, &altered], [0; 2], Order::Strict, false);
        assert!(outcome.is_err(), "{what}");
    }
    assert!(altered_count > 1000);
}
