//! Events of watches, their order, and the permission to see them.

use super::*;
use millrace_proto::zookeeper::perms;

#[test]
fn events_come_in_the_order_of_zookeeper() {
    let mut replica = Replica::new();
    replica.create("/a");
    assert_eq!(replica.take_events(), ["1 /a", "4 /"]);
    replica.create("/a/b");
    assert_eq!(replica.take_events(), ["1 /a/b", "4 /a"]);
    assert!(replica.write(0, &set("/a", "y")).is_ok());
    assert_eq!(replica.take_events(), ["3 /a"]);
    let acl = Some(vec![OPEN_ACL]);
    assert!(replica.write(0, &Request::SetAcl { path: "/a", acl, version: -1 }).is_ok());
    assert_eq!(replica.take_events(), [""; 0]);
    assert!(replica.write(0, &delete("/a/b")).is_ok());
    assert_eq!(replica.take_events(), ["2 /a/b", "4 /a"]);
}

#[test]
fn failures_tell_nothing() {
    let mut replica = Replica::new();
    assert!(replica.write(0, &delete("/a")).is_err());
    let multi = Request::Multi(vec![create("/a", 0), create("/a/b", 0), delete("/none")]);
    results(replica.write(0, &multi));
    assert_eq!(replica.take_events(), [""; 0]);
}

#[test]
fn a_multi_tells_all_its_changes_with_one_zxid() {
    let mut replica = Replica::new();
    let multi = Request::Multi(vec![create("/a", 0), set("/a", "y"), delete("/a")]);
    results(replica.write(0, &multi));
    assert_eq!(replica.take_events(), ["1 /a", "4 /", "3 /a", "2 /a", "4 /"]);
}

#[test]
fn an_event_knows_who_might_read_the_node_when_it_happened() {
    let mut replica = Replica::new();
    replica.identities = vec![ANNA];
    let own = [Acl { perms: perms::ALL, scheme: "auth", id: "" }];
    assert!(replica.write(0, &create_acl("/own", &own)).is_ok());
    let mut record = Vec::new();
    delete("/own").encode(&mut Writer::new(&mut record));
    let act = Act::Request { code: 2, record: &record };
    let identities = vec![ANNA];
    let command = Command { origin: 0, tag: 0, session: 0, attach: 0, identities, act };
    let Replica { mut state, mut changes, rules, .. } = replica;
    assert!(state.apply(0, rules, &command, &mut changes).is_ok());
    state.records(&mut changes, &mut |_, _| {});
    let told: Vec<_> = changes
        .events()
        .map(|event| (event.path, event.may_read(&[ADDRESS]), event.may_read(&[ANNA])))
        .collect();
    assert_eq!(told, [("/own", false, true), ("/", true, true)]);
    assert!(changes.events().all(|event| event.may_read(&[SUPER])));
    changes.clear_events();
    assert_eq!(changes.events().count(), 0);
}
