//! Records: what is written can be loaded, and a wrong record is refused by name.

use super::*;

fn sample() -> Replica {
    let mut replica = Replica::new();
    let session = replica.connect();
    replica.create("/a");
    assert!(replica.write(session, &create("/a/e", 1)).is_ok());
    let own = [Acl { perms: 31, scheme: "ip", id: "127.0.0.1" }];
    assert!(replica.write(0, &create_acl("/a/own", &own)).is_ok());
    assert!(replica.write(0, &create_as(CreateKind::Ttl, "/t", 5, 9)).is_ok());
    assert!(replica.act(0, 0, Act::SetConfig { text: "server.1=a" }).is_ok());
    replica
}

fn load(records: &BTreeMap<Vec<u8>, Vec<u8>>, reversed: bool) -> Result<State, String> {
    let mut loader = Loader::new();
    let mut records: Vec<_> = records.iter().collect();
    if reversed {
        records.reverse();
    }
    for (key, value) in records {
        loader.push(key, value).map_err(|error| error.to_string())?;
    }
    loader.finish().map_err(|error| error.to_string())
}

#[test]
fn records_in_any_order_make_the_state_again() {
    let replica = sample();
    for reversed in [false, true] {
        let state = load(&replica.store, reversed).expect("a state");
        assert_eq!(state.digest(), replica.state.digest());
        assert_eq!(state.counts(), replica.state.counts());
        assert_eq!(state.zxid(), replica.state.zxid());
        assert!(state.sessions().eq(replica.state.sessions()));
    }
    assert_eq!(load(&BTreeMap::new(), false).expect("a fresh state").digest(), {
        State::with_seed(99).digest()
    });
}

#[test]
fn all_records_make_the_state_again() {
    let replica = sample();
    let mut all = BTreeMap::new();
    replica.state.all_records(&mut |key, value| {
        assert!(all.insert(key.to_vec(), value.to_vec()).is_none());
    });
    assert_eq!(load(&all, false).expect("a state").digest(), replica.state.digest());
    for (key, value) in &replica.store {
        assert_eq!(all.get(key), Some(value), "{}", key.escape_ascii());
    }
}

#[test]
fn a_child_does_not_write_its_parents_data_again() {
    let mut replica = sample();
    replica.store.clear();
    replica.create("/a/child");
    let kinds: Vec<u8> = replica.store.keys().map(|key| key[0]).collect();
    assert_eq!(kinds, *b"dmnn");
}

#[test]
fn a_missing_record_is_noticed() {
    let replica = sample();
    for key in replica.store.keys() {
        let mut store = replica.store.clone();
        store.remove(key);
        let name = key.escape_ascii();
        let loaded = load(&store, false);
        // The nodes of a fresh state exist without records, but not as they are now.
        let is_fresh = key[0] == b'm' || (key[0] != b'a' && key[1..5] < [0, 0, 0, 4][..]);
        match loaded {
            Ok(state) if is_fresh => {
                assert_ne!(
                    state.digest(),
                    replica.state.digest(),
                    "the digest does not cover {name}"
                );
            }
            Ok(_) => panic!("a state without {name}"),
            Err(_) => {}
        }
    }
}

/// Loads the sample with one more or changed record, and expects this complaint.
#[track_caller]
fn check(key: &[u8], value: &[u8], complaint: &str) {
    let mut store = sample().store;
    store.insert(key.to_vec(), value.to_vec());
    let error = load(&store, false).map(|_| "a state").expect_err(complaint);
    assert!(error.contains(complaint), "{error}");
}

/// Builds a node record of slot 20.
fn node(parent: u32, edit: impl FnOnce(&mut Vec<u8>), name: &str) -> Vec<u8> {
    let mut value = Vec::new();
    let mut writer = Writer::new(&mut value);
    writer.int(parent as i32);
    writer.raw(&[0; 6 * 8 + 3 * 4 + 4]);
    writer.string(name);
    edit(&mut value);
    value
}

#[test]
fn records_that_contradict_each_other_are_refused_by_name() {
    let slot = |kind: u8, slot: u32| [&[kind][..], &slot.to_be_bytes()].concat();
    let null = (-1i32).to_be_bytes();
    check(b"x", b"", "record x: its kind is unknown");
    check(b"", b"", "its kind is unknown");
    check(b"n123", b"", "its kind is unknown");
    check(b"mzxid", b"123", "record mzxid: its value is too short or damaged");
    check(b"mzxid", &[0; 9], "record mzxid: its value is too long");
    check(b"mzxid", &[0; 8], "it is newer than the state");
    check(&slot(b'd', 20), &null, "record n 20: a node and its data come together");
    check(&slot(b'd', u32::MAX), &null, "too many nodes");
    check(&slot(b'a', 9), &0i32.to_be_bytes(), "record a 9: it is empty");
    check(&slot(b'a', 0), &1i32.to_be_bytes(), "record a 0: its value is too short");
    let session = [b"s".as_slice(), &i64::MAX.to_be_bytes()].concat();
    check(&session, &[0; 28], "record s 9223372036854775807: it is newer");
    let with_node = |value: Vec<u8>, complaint: &str| {
        let mut store = sample().store;
        store.insert(slot(b'n', 20), value);
        store.insert(slot(b'd', 20), null.to_vec());
        let error = load(&store, false).map(|_| "a state").expect_err(complaint);
        assert!(error.contains(complaint) && error.contains("n 20"), "{error}");
    };
    with_node(node(19, |_| {}, "x"), "its parent is missing");
    with_node(node(20, |_| {}, "x"), "its name or its parent is impossible");
    with_node(node(0, |_| {}, "a/b"), "its name or its parent is impossible");
    with_node(node(0, |_| {}, ""), "its name or its parent is impossible");
    with_node(node(u32::MAX, |_| {}, ""), "only the root");
    with_node(node(0, |value| value[4] = 1, "x"), "it is newer than the state");
    with_node(node(0, |value| value[51] = 1, "x"), "its session is missing");
    with_node(node(0, |value| value[67] = 99, "x"), "its ACL is missing");
    let mut store = sample().store;
    store.insert(slot(b'n', 20), node(0, |_| {}, "a"));
    store.insert(slot(b'd', 20), null.to_vec());
    let error = load(&store, false).map(|_| "a state").expect_err("two nodes named a");
    assert!(error.contains("a sibling has the same name"), "{error}");
}

#[test]
fn nodes_in_a_circle_are_refused() {
    let mut store = sample().store;
    for (slot, parent) in [(20u32, 21), (21, 20)] {
        store.insert([&b"n"[..], &slot.to_be_bytes()].concat(), node(parent, |_| {}, "x"));
        let null = (-1i32).to_be_bytes().to_vec();
        store.insert([&b"d"[..], &slot.to_be_bytes()].concat(), null);
    }
    let error = load(&store, false).map(|_| "a state").expect_err("a circle");
    assert_eq!(error, "record n 20: it is not below the root");
}

#[test]
fn slots_are_used_again() {
    let mut replica = Replica::new();
    for round in 0..100 {
        replica.create("/a");
        replica.create("/a/b");
        assert!(replica.write(0, &delete("/a/b")).is_ok());
        assert!(replica.write(0, &delete("/a")).is_ok());
        assert_eq!(replica.state.tree.slot_count(), 6, "round {round}");
    }
}

#[test]
fn the_digest_sees_every_part() {
    let base = sample();
    let mut seen = vec![base.state.digest()];
    let mut edit = |edit: &mut dyn FnMut(&mut Replica)| {
        let mut replica = sample();
        edit(&mut replica);
        // The zxid is part of the digest, so it must be equal to compare.
        replica.state.zxid = base.state.zxid;
        let digest = replica.state.digest();
        assert!(!seen.contains(&digest));
        seen.push(digest);
    };
    edit(&mut |replica| replica.create("/b"));
    edit(&mut |replica| assert!(replica.write(0, &set("/a", "")).is_ok()));
    edit(&mut |replica| assert!(replica.write(0, &delete("/t")).is_ok()));
    edit(&mut |replica| assert!(replica.connect() > 0));
    edit(&mut |replica| replica.state.last_session += 1);
    edit(&mut |replica| {
        let own = Some(vec![Acl { perms: 1, scheme: "ip", id: "127.0.0.1" }]);
        let request = Request::SetAcl { path: "/a", acl: own, version: -1 };
        assert!(replica.write(0, &request).is_ok());
    });
    edit(&mut |replica| {
        let session = replica.state.sessions().next().expect("one").0;
        let act = Act::Attach { timeout_ms: 6000, password: PASSWORD };
        assert!(replica.act(session, 0, act).is_ok());
    });
    let mut later = sample();
    later.state.zxid += 1;
    assert!(!seen.contains(&later.state.digest()));
}

#[test]
fn the_configuration_is_a_write_of_the_service() {
    let mut replica = sample();
    let before = replica.stat("/zookeeper/config");
    replica.take_events();
    let outcome = replica.act(0, 0, Act::SetConfig { text: "server.1=bb\n" });
    let zxid = replica.state.zxid();
    let text = format!("server.1=bb\nversion={zxid:x}");
    let data_length = text.len() as i32;
    let after = Stat { version: -1, mzxid: zxid, data_length, ..before };
    assert_eq!(outcome, Ok(Outcome::Stat(after)));
    assert_eq!(replica.take_events(), ["3 /zookeeper/config"]);
    assert_eq!(replica.text("/zookeeper/config"), text);
}
