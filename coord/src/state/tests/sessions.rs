//! Sessions: ids, connecting again, ephemeral nodes, the end.

use super::*;

fn attached(outcome: Result<Outcome, Error>) -> i64 {
    match outcome {
        Ok(Outcome::Attached { timeout_ms: 6000, attach }) => attach,
        other => panic!("the session should be attached: {other:?}"),
    }
}

#[test]
fn session_ids_are_positive_and_grow_even_when_the_clock_goes_back() {
    let mut replica = Replica::new();
    replica.time_ms = 1_700_000_000_000;
    let first = replica.connect();
    let second = replica.connect();
    assert_eq!(second, first + 1);
    replica.time_ms = -5;
    let third = replica.connect();
    assert!(third > second && first > 0);
    replica.time_ms = i64::MAX;
    assert!(replica.connect() > 0);
    let mut fresh = Replica::new();
    fresh.time_ms = 0;
    assert_eq!(fresh.connect(), 1);
}

#[test]
fn closed_sessions_ids_are_not_given_again() {
    let mut replica = Replica::new();
    let first = replica.connect();
    assert!(replica.close(first).is_ok());
    let mut state = replica.reload();
    let password = PASSWORD;
    let act = Act::CreateSession { timeout_ms: 1, password };
    let command = Command { origin: 0, tag: 0, session: 0, attach: 0, identities: vec![], act };
    let outcome = state.apply(0, replica.rules, &command, &mut Changes::new());
    let attach = 1;
    let expected = Outcome::Session { id: first + 1, timeout_ms: 1, password, attach };
    assert_eq!(outcome, Ok(expected));
}

#[test]
fn coming_back_takes_the_password_and_makes_older_attachments_invalid() {
    let mut replica = Replica::new();
    let session = replica.connect();
    let old = replica.state.session(session).expect("the session").attach;
    let back = Act::Attach { timeout_ms: 6000, password: PASSWORD };
    let new = attached(replica.act(session, 0, back));
    assert!(new > old);
    let mut record = Vec::new();
    create("/a", 0).encode(&mut Writer::new(&mut record));
    let act = Act::Request { code: 1, record: &record };
    assert_eq!(replica.act(session, old, act), Err(Error::SessionMoved));
    assert!(!replica.exists("/a"));
    assert!(replica.act(session, new, act).is_ok());
    assert!(attached(replica.act(session, 0, back)) > new);
    let mut wrong = PASSWORD;
    wrong[15] ^= 1;
    let act = Act::Attach { timeout_ms: 6000, password: wrong };
    assert_eq!(replica.act(session, 0, act), Err(Error::SessionExpired));
    assert_eq!(replica.act(session + 1, 0, back), Err(Error::SessionExpired));
}

#[test]
fn unknown_sessions_write_nothing() {
    let mut replica = Replica::new();
    assert_eq!(replica.write(99, &create("/a", 0)), Err(Error::SessionExpired));
    assert_eq!(replica.close(99), Err(Error::SessionExpired));
    assert_eq!(replica.write(0, &create("/a", 1)), Err(Error::SessionExpired));
    assert!(!replica.exists("/a"));
    assert_eq!(replica.state.zxid(), 3);
}

#[test]
fn an_expiry_that_saw_an_older_attachment_closes_nothing() {
    let mut replica = Replica::new();
    let session = replica.connect();
    let seen = replica.state.session(session).expect("the session").attach;
    attached(replica.act(session, 0, Act::Attach { timeout_ms: 6000, password: PASSWORD }));
    let expiry = replica.act(session, seen, Act::CloseSession);
    assert_eq!(expiry, Err(Error::SessionMoved));
    assert!(replica.state.session(session).is_some());
    let seen = replica.state.session(session).expect("the session").attach;
    assert_eq!(replica.act(session, seen, Act::CloseSession), Ok(Outcome::Nothing));
    assert_eq!(replica.close(session), Err(Error::SessionExpired));
}

#[test]
fn a_session_takes_its_ephemerals_along_with_one_zxid() {
    let mut replica = Replica::new();
    let (one, other) = (replica.connect(), replica.connect());
    replica.create("/a");
    assert!(replica.write(one, &create("/a/one", 1)).is_ok());
    assert!(replica.write(one, &create("/seq", 3)).is_ok());
    assert!(replica.write(other, &create("/a/other", 1)).is_ok());
    assert_eq!(replica.stat("/a/one").ephemeral_owner, one);
    assert_eq!(replica.state.ephemerals(one), ["/a/one", "/seq0000000001"]);
    assert_eq!(replica.state.counts().ephemerals, 3);
    replica.take_events();
    assert_eq!(replica.close(one), Ok(Outcome::Nothing));
    let zxid = replica.state.zxid();
    assert_eq!((replica.stat("/a").pzxid, replica.stat("/").pzxid), (zxid, zxid));
    assert_eq!(replica.children("/a"), ["other"]);
    let told = ["2 /a/one", "4 /a", "2 /seq0000000001", "4 /"];
    assert_eq!(replica.take_events(), told);
    assert_eq!(replica.state.counts().ephemerals, 1);
    assert_eq!(replica.state.session(one), None);
    assert_eq!(replica.reload().digest(), replica.state.digest());
}

#[test]
fn a_deleted_ephemeral_is_forgotten_by_its_session() {
    let mut replica = Replica::new();
    let session = replica.connect();
    assert!(replica.write(session, &create("/e", 1)).is_ok());
    assert!(replica.write(0, &delete("/e")).is_ok());
    replica.create("/e");
    assert_eq!(replica.state.session(session).expect("it").ephemeral_count, 0);
    assert!(replica.close(session).is_ok());
    assert!(replica.exists("/e"), "a node of the same name is not the session's");
}

#[test]
fn ephemerals_have_no_children() {
    let mut replica = Replica::new();
    let session = replica.connect();
    assert!(replica.write(session, &create("/e", 1)).is_ok());
    let outcome = replica.write(session, &create("/e/child", 0));
    assert_eq!(outcome, Err(Error::NoChildrenForEphemerals));
}
