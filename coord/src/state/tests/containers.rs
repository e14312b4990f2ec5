//! Containers and TTL nodes: when they are due, and that no other node is ever deleted like them.

use super::*;

const HOUR_MS: i64 = 3_600_000;

fn due(replica: &Replica) -> Vec<String> {
    let mut due = replica.state.due_containers(replica.time_ms, 100);
    due.sort();
    assert_eq!(due.len(), replica.reload().due_containers(replica.time_ms, 100).len());
    due
}

fn collect(replica: &mut Replica, path: &str) -> Result<Outcome, Error> {
    replica.act(0, 0, Act::DeleteContainer { path })
}

#[test]
fn a_container_is_due_when_its_last_child_has_gone() {
    let mut replica = Replica::new();
    let outcome = replica.write(0, &create_as(CreateKind::Container, "/c", 4, 0));
    assert!(matches!(outcome, Ok(Outcome::PathAndStat(_, Stat { ephemeral_owner: 0, .. }))));
    assert_eq!(due(&replica), [""; 0], "a new container waits for its first child");
    assert_eq!(collect(&mut replica, "/c"), Err(Error::BadVersion));
    replica.create("/c/a");
    assert_eq!(due(&replica), [""; 0]);
    assert_eq!(collect(&mut replica, "/c"), Err(Error::NotEmpty));
    assert!(replica.write(0, &delete("/c/a")).is_ok());
    assert_eq!(due(&replica), ["/c"]);
    replica.take_events();
    assert_eq!(collect(&mut replica, "/c"), Ok(Outcome::Nothing));
    assert_eq!(replica.take_events(), ["2 /c", "4 /"]);
    assert_eq!(due(&replica), [""; 0]);
    assert_eq!(collect(&mut replica, "/c"), Err(Error::NoNode));
}

#[test]
fn a_ttl_node_is_due_when_nothing_happened_to_it_for_so_long() {
    let mut replica = Replica::new();
    let outcome = replica.write(0, &create_as(CreateKind::Ttl, "/t", 5, HOUR_MS));
    assert!(matches!(outcome, Ok(Outcome::PathAndStat(_, Stat { ephemeral_owner: 0, .. }))));
    replica.time_ms += HOUR_MS;
    assert_eq!(due(&replica), [""; 0]);
    assert_eq!(collect(&mut replica, "/t"), Err(Error::BadVersion));
    assert!(replica.write(0, &set("/t", "y")).is_ok());
    replica.time_ms += 1;
    assert_eq!(due(&replica), [""; 0]);
    replica.time_ms += HOUR_MS;
    assert_eq!(due(&replica), ["/t"]);
    replica.create("/t/child");
    assert_eq!(due(&replica), [""; 0]);
    assert_eq!(collect(&mut replica, "/t"), Err(Error::NotEmpty));
    assert!(replica.write(0, &delete("/t/child")).is_ok());
    assert_eq!(collect(&mut replica, "/t"), Ok(Outcome::Nothing));
    assert!(!replica.exists("/t"));
}

#[test]
fn other_nodes_are_never_collected() {
    let mut replica = Replica::new();
    let session = replica.connect();
    replica.create("/p");
    assert!(replica.write(session, &create("/e", 1)).is_ok());
    replica.time_ms = i64::MAX;
    for path in ["/p", "/e"] {
        assert_eq!(collect(&mut replica, path), Err(Error::BadVersion));
    }
    assert_eq!(collect(&mut replica, "/"), Err(Error::BadArguments));
    assert_eq!(due(&replica), [""; 0]);
}

#[test]
fn collecting_asks_no_acl() {
    let mut replica = Replica::new();
    let closed = [Acl { perms: 1, scheme: "world", id: "anyone" }];
    assert!(replica.write(0, &create_as(CreateKind::Ttl, "/t", 5, 1)).is_ok());
    let list = Some(closed.to_vec());
    assert!(replica.write(0, &Request::SetAcl { path: "/", acl: list, version: -1 }).is_ok());
    assert_eq!(replica.write(0, &delete("/t")), Err(Error::NoAuth));
    replica.time_ms += 2;
    assert_eq!(collect(&mut replica, "/t"), Ok(Outcome::Nothing));
}

#[test]
fn times_to_live_outside_their_range_are_refused() {
    let mut replica = Replica::new();
    let max = (1 << 40) - 1;
    let mut make =
        |kind, flags, ttl_ms| replica.write(0, &create_as(kind, "/t", flags, ttl_ms)).map(|_| ());
    for ttl_ms in [0, -1, max + 1, i64::MIN] {
        assert_eq!(make(CreateKind::Ttl, 5, ttl_ms), Err(Error::BadArguments), "{ttl_ms}");
    }
    assert_eq!(make(CreateKind::Ttl, 0, 5), Err(Error::BadArguments));
    assert_eq!(make(CreateKind::Create, 5, 0), Err(Error::BadArguments));
    assert_eq!(make(CreateKind::Ttl, 5, max), Ok(()));
    replica.rules.ttl_nodes = false;
    let outcome = replica.write(0, &create_as(CreateKind::Ttl, "/u", 5, 5));
    assert_eq!(outcome, Err(Error::Unimplemented));
}

#[test]
fn the_operation_makes_the_container_not_the_flag() {
    let mut replica = Replica::new();
    assert!(replica.write(0, &create("/plain", 4)).is_ok());
    let outcome = replica.write(0, &create_as(CreateKind::Container, "/c", 2, 0));
    assert_eq!(created(outcome), "/c0000000001");
    for path in ["/plain", "/c0000000001"] {
        let child = format!("{path}/a");
        replica.create(&child);
        assert!(replica.write(0, &delete(&child)).is_ok());
    }
    assert_eq!(due(&replica), ["/c0000000001"]);
}

#[test]
fn no_more_are_due_than_asked_for() {
    let mut replica = Replica::new();
    for index in 0..10 {
        let path = format!("/t{index}");
        assert!(replica.write(0, &create_as(CreateKind::Ttl, &path, 5, 1)).is_ok());
    }
    assert_eq!(replica.state.due_containers(i64::MAX, 3).len(), 3);
    assert_eq!(replica.state.due_containers(i64::MAX, 30).len(), 10);
}
