//! Creating, deleting, changing single nodes: numbers, names, and the order of errors.

use super::*;
use millrace_proto::zookeeper::perms;

#[test]
fn a_fresh_tree_has_the_nodes_of_zookeeper() {
    let replica = Replica::new();
    assert_eq!(replica.children("/"), ["zookeeper"]);
    assert_eq!(replica.children("/zookeeper"), ["config", "quota"]);
    assert_eq!(replica.state.zxid(), 0);
    // Children that were not created make the counter negative for clients, in ZooKeeper too.
    assert_eq!(replica.stat("/").cversion, -1);
    assert_eq!(replica.stat("/zookeeper").cversion, -2);
    assert_eq!(replica.stat("/zookeeper/config").aversion, -1);
    assert_eq!(replica.data("/zookeeper/config"), Some(vec![]));
    assert_eq!(replica.state.counts().nodes, 4);
}

#[test]
fn a_new_node_carries_zxid_and_time_of_its_create() {
    let mut replica = Replica::new();
    replica.time_ms = 77;
    let outcome = replica.write(0, &create_as(CreateKind::Create2, "/a", 0, 0));
    let expected = Stat {
        czxid: 1,
        mzxid: 1,
        pzxid: 1,
        ctime: 77,
        mtime: 77,
        data_length: 1,
        ..Stat::default()
    };
    assert_eq!(outcome, Ok(Outcome::PathAndStat("/a".into(), expected)));
    assert_eq!(replica.stat("/a"), expected);
}

#[test]
fn set_data_moves_version_mzxid_and_mtime_only() {
    let mut replica = Replica::new();
    replica.create("/a");
    let before = replica.stat("/a");
    replica.time_ms += 5;
    let outcome = replica.write(0, &set("/a", "new"));
    let after = Stat { mzxid: 2, mtime: before.mtime + 5, version: 1, data_length: 3, ..before };
    assert_eq!(outcome, Ok(Outcome::Stat(after)));
    assert_eq!(replica.text("/a"), "new");
}

#[test]
fn children_move_pzxid_and_cversion_but_no_times() {
    let mut replica = Replica::new();
    replica.create("/a");
    let before = replica.stat("/a");
    replica.time_ms += 5;
    replica.create("/a/b");
    replica.create("/a/c");
    let expected = Stat { pzxid: 3, cversion: 2, child_count: 2, ..before };
    assert_eq!(replica.stat("/a"), expected);
    assert_eq!(replica.write(0, &delete("/a/b")), Ok(Outcome::Nothing));
    let expected = Stat { pzxid: 4, cversion: 3, child_count: 1, ..before };
    assert_eq!(replica.stat("/a"), expected);
}

#[test]
fn failed_writes_take_a_zxid_and_change_nothing_else() {
    let mut replica = Replica::new();
    replica.create("/a");
    let before = replica.stat("/");
    assert_eq!(replica.write(0, &create("/a", 0)), Err(Error::NodeExists));
    assert_eq!(replica.write(0, &delete("/b")), Err(Error::NoNode));
    assert_eq!(replica.state.zxid(), 3);
    assert_eq!(replica.stat("/"), before);
}

#[test]
fn versions_are_compared_and_minus_one_matches_all() {
    let mut replica = Replica::new();
    replica.create("/a");
    let mut set = |version| {
        replica.write(0, &Request::SetData { path: "/a", data: None, version }).map(|_| ())
    };
    assert_eq!(set(1), Err(Error::BadVersion));
    assert_eq!(set(-2), Err(Error::BadVersion));
    assert_eq!(set(0), Ok(()));
    assert_eq!(set(0), Err(Error::BadVersion));
    assert_eq!(set(-1), Ok(()));
    let mut delete = |version| replica.write(0, &Request::Delete { path: "/a", version });
    assert_eq!(delete(1), Err(Error::BadVersion));
    assert_eq!(delete(2), Ok(Outcome::Nothing));
}

#[test]
fn a_version_never_becomes_minus_one() {
    let mut replica = Replica::new();
    replica.create("/a");
    let slot = replica.state.tree.find("/a").expect("/a");
    replica.state.tree.meta_mut(slot).version = i32::MAX;
    assert!(replica.write(0, &set("/a", "")).is_ok());
    assert_eq!(replica.stat("/a").version, i32::MIN);
    replica.state.tree.meta_mut(slot).version = -2;
    assert!(replica.write(0, &set("/a", "")).is_ok());
    assert_eq!(replica.stat("/a").version, 0);
}

#[test]
fn null_and_empty_data_are_two_things() {
    let mut replica = Replica::new();
    for (path, data) in [("/null", None), ("/empty", Some(&b""[..]))] {
        let (kind, acl) = (CreateKind::Create, Some(vec![OPEN_ACL]));
        let request = Request::Create { kind, path, data, acl, flags: 0, ttl_ms: 0 };
        assert_eq!(created(replica.write(0, &request)), path);
        assert_eq!(replica.data(path).as_deref(), data);
        assert_eq!(replica.stat(path).data_length, 0);
    }
    assert!(replica.write(0, &set("/null", "")).is_ok());
    assert_eq!(replica.data("/null"), Some(vec![]));
    let null = Request::SetData { path: "/empty", data: None, version: -1 };
    assert!(replica.write(0, &null).is_ok());
    assert_eq!(replica.data("/empty"), None);
    assert_eq!(replica.reload().digest(), replica.state.digest());
}

#[test]
fn sequence_numbers_count_every_create_below_the_parent() {
    let mut replica = Replica::new();
    replica.create("/a");
    let mut next = |path| created(replica.write(0, &create(path, 2)));
    assert_eq!(next("/a/n-"), "/a/n-0000000000");
    assert_eq!(next("/a/m-"), "/a/m-0000000001");
    assert_eq!(next("/a/"), "/a/0000000002");
    assert!(replica.write(0, &delete("/a/n-0000000000")).is_ok());
    replica.create("/a/plain");
    assert_eq!(created(replica.write(0, &create("/a/n-", 2))), "/a/n-0000000004");
    assert_eq!(created(replica.write(0, &create("/", 2))), "/0000000001");
}

#[test]
fn a_recreated_parent_counts_from_zero() {
    let mut replica = Replica::new();
    replica.create("/a");
    let first = created(replica.write(0, &create("/a/n", 2)));
    assert!(replica.write(0, &delete(&first)).is_ok());
    assert!(replica.write(0, &delete("/a")).is_ok());
    replica.create("/a");
    assert_eq!(created(replica.write(0, &create("/a/n", 2))), "/a/n0000000000");
}

#[test]
fn sequence_numbers_wrap_as_signed() {
    let mut replica = Replica::new();
    replica.create("/a");
    let slot = replica.state.tree.find("/a").expect("/a");
    replica.state.tree.meta_mut(slot).cversion = i32::MAX;
    assert_eq!(created(replica.write(0, &create("/a/n", 2))), "/a/n2147483647");
    assert_eq!(created(replica.write(0, &create("/a/n", 2))), "/a/n-2147483648");
    replica.state.tree.meta_mut(slot).cversion = -1;
    assert_eq!(created(replica.write(0, &create("/a/n", 2))), "/a/n-000000001");
}

#[test]
fn malformed_paths_are_bad_arguments() {
    let mut replica = Replica::new();
    replica.create("/a");
    for path in [
        "",
        "a",
        "/a/",
        "//",
        "//a",
        "/a/.",
        "/a/..",
        "/.",
        "/..",
        "/a\u{1}",
        "/a\u{7f}",
        "/a\u{9f}",
        "/a\u{e000}",
        "/a\u{f8ff}",
        "/a\u{fff0}",
        "/a\u{ffff}",
        "/a\u{1f600}",
        "/a/b\0",
    ] {
        let outcome = replica.write(0, &create(path, 0));
        assert_eq!(outcome, Err(Error::BadArguments), "create {path:?}");
        let outcome = replica.write(0, &set(path, "x"));
        assert_eq!(outcome, Err(Error::BadArguments), "setData {path:?}");
    }
    for path in ["/a/...", "/a/.b", "/a/b.", "/a/..b", "/ ", "/a\u{a0}", "/a\u{d7ff}"] {
        replica.create(path);
    }
}

#[test]
fn create_looks_for_the_parent_before_it_checks_the_path() {
    let mut replica = Replica::new();
    for path in ["/none/", "/none/../b", "none/a", "/none//b"] {
        assert_eq!(replica.write(0, &create(path, 0)), Err(Error::NoNode), "{path}");
    }
    assert_eq!(replica.write(0, &delete("none/a")), Err(Error::NoNode));
    assert_eq!(replica.write(0, &delete("a")), Err(Error::BadArguments));
    assert_eq!(replica.write(0, &delete("/a/")), Err(Error::NoNode));
    assert_eq!(replica.write(0, &delete("/none")), Err(Error::NoNode));
}

#[test]
fn creating_the_root_finds_it_there() {
    let mut replica = Replica::new();
    assert_eq!(replica.write(0, &create("/", 0)), Err(Error::NodeExists));
    assert!(replica.write(0, &set("/", "root")).is_ok());
    assert_eq!(replica.text("/"), "root");
}

#[test]
fn reserved_nodes_cannot_be_deleted() {
    let mut replica = Replica::new();
    replica.identities = vec![SUPER];
    for path in ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"] {
        assert_eq!(replica.write(0, &delete(path)), Err(Error::BadArguments), "{path}");
    }
    replica.create("/zookeeper/mine");
    assert_eq!(replica.write(0, &delete("/zookeeper/mine")), Ok(Outcome::Nothing));
}

#[test]
fn only_nodes_without_children_are_deleted() {
    let mut replica = Replica::new();
    replica.create("/a");
    replica.create("/a/b");
    let wrong_version = Request::Delete { path: "/a", version: 9 };
    assert_eq!(replica.write(0, &wrong_version), Err(Error::BadVersion));
    assert_eq!(replica.write(0, &delete("/a")), Err(Error::NotEmpty));
}

#[test]
fn errors_of_a_create_come_in_the_order_of_zookeeper() {
    let mut replica = Replica::new();
    let session = replica.connect();
    let closed = [Acl { perms: perms::READ, scheme: "world", id: "anyone" }];
    assert!(replica.write(0, &create_acl("/closed", &closed)).is_ok());
    assert!(replica.write(session, &create("/ephemeral", 1)).is_ok());
    let none: [Acl<'_>; 0] = [];
    let with = |path: &'static str, acl: &[Acl<'static>], flags| {
        let (kind, acl) = (CreateKind::Create, Some(acl.to_vec()));
        Request::Create { kind, path, data: None, acl, flags, ttl_ms: 0 }
    };
    let open = [OPEN_ACL];
    for (request, error) in [
        (with("nowhere", &none, 7), Error::BadArguments),
        (with("/none/\0", &none, 0), Error::BadArguments),
        (with("/none/.", &none, 0), Error::InvalidAcl),
        (with("/none/.", &open, 0), Error::NoNode),
        (with("/closed/.", &open, 0), Error::NoAuth),
        (with("/ephemeral/.", &open, 0), Error::BadArguments),
        (with("/ephemeral/a", &open, 0), Error::NoChildrenForEphemerals),
        (with("/ephemeral", &open, 1), Error::NodeExists),
    ] {
        assert_eq!(replica.write(session, &request), Err(error), "{request:?}");
    }
}

#[test]
fn what_is_no_write_or_no_record_is_refused() {
    let mut replica = Replica::new();
    let read = Request::Exists { path: "/", watch: false };
    assert_eq!(replica.write(0, &read), Err(Error::Unimplemented));
    let act = Act::Request { code: 1, record: b"\0\0" };
    assert_eq!(replica.act(0, 0, act), Err(Error::MarshallingError));
    assert_eq!(replica.state.zxid(), 2);
}

#[test]
fn the_data_size_is_the_sum_of_paths_and_data() {
    let mut replica = Replica::new();
    let fresh = replica.state.counts().approximate_data_size;
    replica.create("/a");
    replica.create("/a/b");
    assert!(replica.write(0, &set("/a/b", "12345")).is_ok());
    assert_eq!(replica.state.counts().approximate_data_size, fresh + 2 + 1 + 4 + 5);
    assert!(replica.write(0, &delete("/a/b")).is_ok());
    assert!(replica.write(0, &delete("/a")).is_ok());
    assert_eq!(replica.state.counts().approximate_data_size, fresh);
    assert_eq!(replica.state.counts().nodes, 4);
}

#[test]
fn nodes_with_equal_hashes_are_told_apart_by_their_whole_path() {
    let mut replica = Replica::new();
    replica.create("/a");
    replica.create("/a/b");
    let tree = &replica.state.tree;
    let slot = tree.find("/a/b").expect("/a/b");
    assert!(tree.has_path(slot, "/a/b"));
    for path in ["/b", "a/b", "/x/b", "/a/a/b", "x/a/b", "/a/c", "/a/", "/ab", "/a//b", ""] {
        assert!(!tree.has_path(slot, path), "{path}");
    }
}
