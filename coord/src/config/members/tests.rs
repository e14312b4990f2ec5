//! Members as text: what ZooKeeper 3.8 writes and accepts, and what it or we refuse.

use super::*;

fn member(text: &str) -> Member {
    Member::parse_line(text).expect(text)
}

fn check(text: &str, expect: &str) {
    assert_eq!(member(text).to_string(), expect);
    assert_eq!(member(expect), member(text), "what is written is read back");
}

#[test]
fn every_form_of_a_server_line_is_read() {
    check("server.1=a:2888:3888", "server.1=a:2888:3888:participant");
    check("server.1=a:2888:3888:observer", "server.1=a:2888:3888:observer");
    check("server.1=a:2888:3888:OBSERVER;2181", "server.1=a:2888:3888:observer;0.0.0.0:2181");
    check("server.1=a:1:2;b.c:3", "server.1=a:1:2:participant;b.c:3");
    check(
        "server.254=[2001:db8::1]:2888:3888;[::1]:2181",
        "server.254=[2001:db8::1]:2888:3888:participant;[::1]:2181",
    );
    check("server.2=a:1:2|b:3:4;5", "server.2=a:1:2:participant;0.0.0.0:5");
    check(" 7 = a:1:2 ", "server.7=a:1:2:participant");
}

#[test]
fn what_is_no_member_is_refused() {
    for text in [
        "",
        "garbage",
        "server.0=a:1:2",
        "server.65536=a:1:2",
        "server.x=a:1:2",
        "server.1=",
        "server.1=a",
        "server.1=a:1",
        "server.1=:1:2",
        "server.1=a:0:2",
        "server.1=a:1:65536",
        "server.1=a:+1:2",
        "server.1=a:1:2:king",
        "server.1=a b:1:2",
        "server.1=a:1:2;",
        "server.1=a:1:2;x",
        "server.1=[a]:1:2",
        "server.1=[::1:1:2",
    ] {
        let error = Member::parse_line(text).expect_err(text);
        assert!(error.to_string().contains("expected"), "{text}: {error}");
        assert_eq!(error.reply(), Error::BadArguments);
    }
}

#[test]
fn an_address_can_be_taken_apart() {
    let member = member("server.1=[::1]:2888:3888");
    assert_eq!((member.peer_host(), member.peer_port()), ("::1", 2888));
    assert_eq!(member.election_address(), "[::1]:3888");
}

/// The configuration of a 3.8.0 server with two voters and an observer.
const REAL: &str = "server.1=127.0.0.1:22281:22381:participant\n\
    server.2=127.0.0.1:22281:22382:participant;0.0.0.0:22182\n\
    server.3=127.0.0.1:22283:22383:observer\n\
    version=10000000b";

#[test]
fn the_text_of_the_configuration_is_that_of_zookeeper() {
    let text = REAL.replace("server.2=127.0.0.1:22281", "server.2=127.0.0.1:22282");
    let (members, version) = parse_config_text(&text).unwrap();
    assert_eq!((members.len(), version), (3, 0x1_0000_000b));
    assert_eq!(members[1].client_address.as_deref(), Some("0.0.0.0:22182"));
    assert_eq!(config_text(&members, version), text);
    assert_eq!(parse_config_text("version=0"), Ok((vec![], 0)));
    assert!(matches!(parse_config_text("server.1=a:1:2"), Err(MemberError::Version { .. })));
    assert!(matches!(parse_config_text("version=xyz"), Err(MemberError::Version { .. })));
    assert_eq!(
        parse_config_text(REAL),
        Err(MemberError::Twice { first: 1, second: 2, what: "peer address" })
    );
}

fn ensemble() -> Vec<Member> {
    (1..=3).map(|id| member(&format!("server.{id}=h{id}:1:2;3"))).collect()
}

fn check_change(changes: [Option<&str>; 3], expect: Result<&[u64], Error>) {
    let [joining, leaving, new_members] = changes;
    let members = reconfigure(&ensemble(), joining, leaving, new_members, false);
    let ids = members.map(|members| members.iter().map(|one| one.id).collect::<Vec<_>>());
    match (ids, expect) {
        (Ok(ids), Ok(expect)) => assert_eq!(ids, expect, "{changes:?}"),
        (Err(error), Err(code)) => assert_eq!(error.reply(), code, "{changes:?}: {error}"),
        (ids, _) => panic!("{changes:?}: {ids:?}"),
    }
}

#[test]
fn a_reconfig_request_adds_replaces_and_removes() {
    check_change([Some("server.4=h4:1:2;3"), None, None], Ok(&[1, 2, 3, 4]));
    check_change([Some("server.4=h4:1:2;3,server.5=h5:1:2:observer;3"), Some("1, 2"), None], {
        Ok(&[3, 4, 5])
    });
    check_change([None, Some("77"), None], Ok(&[1, 2, 3]));
    check_change([None, None, None], Ok(&[1, 2, 3]));
    check_change([Some(""), Some(""), Some("")], Ok(&[1, 2, 3]));
    check_change([None, None, Some("server.9=x:1:2;3\nserver.8=y:1:2;3")], Ok(&[8, 9]));
    check_change([None, None, Some("server.9=x:1:2;3,server.8=y:1:2;3,version=5")], Ok(&[8, 9]));
    let moved =
        reconfigure(&ensemble(), Some("server.2=h2:1:2:observer;9"), None, None, false).unwrap();
    assert_eq!(moved[1].role, Role::Observer);
    assert_eq!(moved[1].client_address.as_deref(), Some("0.0.0.0:9"));
}

#[test]
fn a_reconfig_request_that_cannot_be_is_refused() {
    let bad = Err(Error::BadArguments);
    check_change([Some("server.4=h4:1:2"), None, None], bad);
    check_change([Some("garbage"), None, None], bad);
    check_change([Some("server.4=h1:1:2;3"), None, None], bad);
    check_change([None, Some("1,2,3"), None], bad);
    check_change([None, Some("abc"), None], Err(Error::MarshallingError));
    check_change([None, None, Some("server.1=a:1:2:observer;3")], bad);
    check_change([None, None, Some("server.1=a:1:2;3,server.1=b:1:2;3")], bad);
    check_change([None, None, Some("server.1=\\u00g0:1:2;3")], bad);
    let many: Vec<String> = (1..=65).map(|id| format!("server.{id}=h{id}:1:2;3")).collect();
    check_change([None, None, Some(&many.join(","))], bad);
}
