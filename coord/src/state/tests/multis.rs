//! Multis: all or nothing, one zxid, later operations see earlier ones.

use super::*;
use MultiResult as Result_;

fn codes(replica: &mut Replica, operations: Vec<Request<'_>>) -> Vec<i32> {
    let results = results(replica.write(0, &Request::Multi(operations)));
    let code = |result: &MultiResult| match result {
        MultiResult::Error(code) => *code,
        other => panic!("all results of a failed multi are errors: {other:?}"),
    };
    results.iter().map(code).collect()
}

#[test]
fn later_operations_see_earlier_ones() {
    let mut replica = Replica::new();
    let operations = vec![
        create("/a", 0),
        create("/a/n", 2),
        create("/a/n", 2),
        set("/a", "new"),
        Request::Check { path: "/a", version: 1 },
        delete("/a/n0000000000"),
    ];
    let results = results(replica.write(0, &Request::Multi(operations)));
    let stat = Stat { version: 1, data_length: 3, child_count: 2, ..replica.stat("/a") };
    let expected = [
        Result_::Create("/a".into()),
        Result_::Create("/a/n0000000000".into()),
        Result_::Create("/a/n0000000001".into()),
        Result_::SetData(Stat { cversion: 2, ..stat }),
        Result_::Check,
        Result_::Delete,
    ];
    assert_eq!(results, expected);
    assert_eq!(replica.state.zxid(), 1);
    let stat = replica.stat("/a");
    assert_eq!((stat.czxid, stat.mzxid, stat.pzxid, stat.cversion), (1, 1, 1, 3));
}

#[test]
fn a_failed_multi_leaves_all_as_it_was() {
    let mut replica = Replica::new();
    let session = replica.connect();
    replica.create("/a");
    replica.create("/a/b");
    assert!(replica.write(0, &create_as(CreateKind::Ttl, "/ttl", 5, 100)).is_ok());
    assert!(replica.write(0, &create_as(CreateKind::Container, "/c", 4, 0)).is_ok());
    assert!(replica.write(session, &create("/c/e", 1)).is_ok());
    let own = [Acl { perms: 31, scheme: "ip", id: "127.0.0.1" }];
    assert!(replica.write(0, &create_acl("/own", &own)).is_ok());
    let before = (replica.stat("/"), replica.stat("/a"), replica.stat("/c"));
    let (digest, counts) = (replica.reload(), replica.state.counts());
    let due = |replica: &Replica| replica.state.due_containers(i64::MAX, 9);
    let due_before = due(&replica);
    let operations = vec![
        set("/a/b", "gone"),
        delete("/a/b"),
        delete("/a"),
        create("/a", 0),
        set("/ttl", "later"),
        delete("/ttl"),
        delete("/c/e"),
        delete("/own"),
        create_acl("/other", &own),
        create("/x", 0),
        create("/x/y", 0),
        delete("/none"),
        create("/z", 0),
    ];
    let request = Request::Multi(operations);
    let outcome = replica.write(session, &request);
    let mut expected = vec![Result_::Error(0); 11];
    expected.push(Result_::Error(Error::NoNode.code()));
    expected.push(Result_::Error(Error::RuntimeInconsistency.code()));
    assert_eq!(results(outcome), expected);
    assert_eq!((replica.stat("/"), replica.stat("/a"), replica.stat("/c")), before);
    assert_eq!((replica.state.counts(), due(&replica)), (counts, due_before));
    assert_eq!(replica.state.ephemerals(session), ["/c/e"]);
    assert_eq!(replica.state.zxid(), digest.zxid() + 1);
    replica.state.zxid -= 1;
    assert_eq!(replica.state.digest(), digest.digest());
    replica.state.zxid += 1;
    assert_eq!(replica.reload().digest(), replica.state.digest());
}

#[test]
fn the_failing_operation_is_told_from_those_before_and_after() {
    let mut replica = Replica::new();
    let (bad_version, after) = (Error::BadVersion.code(), Error::RuntimeInconsistency.code());
    let check = || Request::Check { path: "/", version: 9 };
    let all = codes(&mut replica, vec![create("/a", 0), check(), create("/b", 0), check()]);
    assert_eq!(all, [0, bad_version, after, after]);
    assert_eq!(codes(&mut replica, vec![check()]), [bad_version]);
    assert_eq!(results(replica.write(0, &Request::Multi(vec![]))), []);
    assert_eq!(replica.state.zxid(), 3);
}

#[test]
fn the_flags_say_which_create_a_multi_does() {
    let mut replica = Replica::new();
    let operations = vec![
        create_as(CreateKind::Create2, "/plain", 0, 0),
        create("/container", 4),
        create_as(CreateKind::Container, "/no-container", 0, 0),
        create_as(CreateKind::Ttl, "/ttl", 5, 1000),
        create_as(CreateKind::Ttl, "/no-ttl", 0, 1000),
    ];
    let results = results(replica.write(0, &Request::Multi(operations)));
    let path_only: Vec<bool> =
        results.iter().map(|result| matches!(result, Result_::Create(_))).collect();
    assert_eq!(path_only, [true, false, true, false, true]);
    let spoiled = Request::Multi(vec![create("/x", 0), create("/y", 5)]);
    assert_eq!(replica.write(0, &spoiled), Err(Error::MarshallingError));
    assert!(!replica.exists("/x"));
}

#[test]
fn results_are_written_as_zookeeper_writes_them() {
    let mut replica = Replica::new();
    let operations = vec![create("/a", 0), create("/c", 4), delete("/a")];
    let outcome = replica.write(0, &Request::Multi(operations)).expect("a multi");
    let mut bytes = Vec::new();
    outcome.encode(&mut Writer::new(&mut bytes));
    let mut reader = Reader::new(&bytes);
    let header = |reader: &mut Reader<'_>| {
        (reader.int().expect("code"), reader.boolean().expect("end"), reader.int().expect("error"))
    };
    assert_eq!(header(&mut reader), (1, false, 0));
    assert_eq!(reader.path(), Ok("/a"));
    assert_eq!(header(&mut reader), (15, false, 0));
    assert_eq!(reader.path(), Ok("/c"));
    assert!(Stat::decode(&mut reader).is_ok());
    assert_eq!(header(&mut reader), (2, false, 0));
    assert_eq!(header(&mut reader), (-1, true, -1));
    assert!(reader.rest().is_empty());
    let outcome = replica.write(0, &Request::Multi(vec![delete("/c"), delete("/c")]));
    let mut bytes = Vec::new();
    outcome.expect("a multi").encode(&mut Writer::new(&mut bytes));
    let mut reader = Reader::new(&bytes);
    assert_eq!((header(&mut reader), reader.int()), ((-1, false, 0), Ok(0)));
    assert_eq!((header(&mut reader), reader.int()), ((-1, false, -101), Ok(-101)));
    assert_eq!(header(&mut reader), (-1, true, -1));
}
