//! ACLs: which are accepted, what they become, and what they refuse.

use super::super::acl::{AclTable, OPEN, fix};
use super::*;
use millrace_proto::zookeeper::perms;

fn acl(perms: i32, scheme: &'static str, id: &'static str) -> Acl<'static> {
    Acl { perms, scheme, id }
}

fn get_acl(replica: &Replica, path: &str) -> Result<Vec<(i32, String, String)>, Error> {
    let reply = replica.read(0, &Request::GetAcl { path })?;
    let mut reader = Reader::new(&reply);
    let list = reader
        .list(|reader| {
            let Acl { perms, scheme, id } = Acl::decode(reader)?;
            Ok((perms, scheme.to_owned(), id.to_owned()))
        })
        .expect("a list");
    assert_eq!(Stat::decode(&mut reader), Ok(replica.stat(path)));
    Ok(list.expect("a list that is not null"))
}

#[test]
fn lists_that_make_no_sense_are_refused() {
    let bad: [&[Acl<'static>]; 17] = [
        &[],
        &[acl(31, "world", "someone")],
        &[acl(31, "", "")],
        &[acl(31, "super", "")],
        &[acl(31, "nobody", "x")],
        &[acl(31, "digest", "user")],
        &[acl(31, "digest", "user:")],
        &[acl(31, "digest", "a:b:c")],
        &[acl(31, "ip", "1.2.3")],
        &[acl(31, "ip", "1.2.3.256")],
        &[acl(31, "ip", "1.2.3.4/33")],
        &[acl(31, "ip", "1.2.3.4/-1")],
        &[acl(31, "ip", "::1")],
        &[acl(31, "ip", "fe80::/10")],
        &[acl(31, "x509", "CN=a")],
        &[acl(31, "sasl", "a")],
        &[OPEN_ACL, acl(31, "ip", "host")],
    ];
    for list in bad {
        assert_eq!(fix(Some(list), &[ANNA]), Err(Error::InvalidAcl), "{list:?}");
    }
    assert_eq!(fix(None, &[]), Err(Error::InvalidAcl));
    for id in ["user:digest", ":digest", "user:digest::"] {
        assert!(fix(Some(&[acl(1, "digest", id)]), &[]).is_ok(), "{id}");
    }
    for id in ["1.2.3.4", "01.2.3.4", "1.2.3.4/0", "1.2.3.4/32"] {
        assert!(fix(Some(&[acl(1, "ip", id)]), &[]).is_ok(), "{id}");
    }
    assert_eq!(fix(Some(&[acl(99, "world", "anyone")]), &[]).map(|list| list.len()), Ok(1));
}

#[test]
fn repetitions_go_and_auth_becomes_what_was_proved() {
    let (anna, bert) = (ANNA, Identity { scheme: "digest", id: "bert:x" });
    let list = [acl(1, "auth", "ignored"), OPEN_ACL, OPEN_ACL, acl(1, "auth", "ignored")];
    let fixed = fix(Some(&list), &[ADDRESS, anna, SUPER, bert]);
    let expected = vec![acl(1, "digest", anna.id), acl(1, "digest", bert.id), OPEN_ACL];
    assert_eq!(fixed, Ok(expected));
    assert_eq!(fix(Some(&list), &[ADDRESS, SUPER]), Err(Error::InvalidAcl));
}

#[test]
fn each_operation_needs_its_permission() {
    let mut replica = Replica::new();
    for bits in 0..=31 {
        let path = format!("/p{bits}");
        replica.rules.skip_acl = true;
        let child = format!("{path}/child");
        assert!(replica.write(0, &create_acl(&path, &[acl(bits, "world", "anyone")])).is_ok());
        assert!(replica.write(0, &create(&child, 0)).is_ok());
        replica.rules.skip_acl = false;
        let allowed = |permission: i32| bits & permission != 0;
        let refused = |outcome: Result<Outcome, Error>| outcome == Err(Error::NoAuth);
        let new = format!("{path}/new");
        assert_eq!(refused(replica.write(0, &create(&new, 0))), !allowed(perms::CREATE));
        assert_eq!(refused(replica.write(0, &delete(&child))), !allowed(perms::DELETE));
        assert_eq!(refused(replica.write(0, &set(&path, "y"))), !allowed(perms::WRITE));
        let check = Request::Multi(vec![Request::Check { path: &path, version: -1 }]);
        let refusal = vec![MultiResult::Error(Error::NoAuth.code())];
        assert_eq!(results(replica.write(0, &check)) == refusal, !allowed(perms::READ));
        let path = path.as_str();
        for read in [
            Request::GetData { path, watch: false },
            Request::GetChildren { path, watch: false },
            Request::GetChildren2 { path, watch: false },
            Request::GetAllChildrenNumber { path },
        ] {
            let refused = replica.read(0, &read) == Err(Error::NoAuth);
            assert_eq!(refused, !allowed(perms::READ), "{read:?}");
        }
        assert!(replica.read(0, &Request::Exists { path, watch: false }).is_ok());
        let is_shown = allowed(perms::READ | perms::ADMIN);
        assert_eq!(get_acl(&replica, path).is_ok(), is_shown);
        let list = Some(vec![OPEN_ACL]);
        let change = Request::SetAcl { path, acl: list, version: -1 };
        assert_eq!(refused(replica.write(0, &change)), !allowed(perms::ADMIN));
    }
}

#[test]
fn set_acl_moves_aversion_only() {
    let mut replica = Replica::new();
    replica.create("/a");
    let before = replica.stat("/a");
    let list = Some(vec![acl(31, "ip", "127.0.0.0/8")]);
    let change = |version| Request::SetAcl { path: "/a", acl: list.clone(), version };
    assert_eq!(replica.write(0, &change(5)), Err(Error::BadVersion));
    let after = Stat { aversion: 1, ..before };
    assert_eq!(replica.write(0, &change(0)), Ok(Outcome::Stat(after)));
    assert_eq!(replica.stat("/a"), after);
    let missing = Request::SetAcl { path: "/b", acl: Some(vec![]), version: -1 };
    assert_eq!(replica.write(0, &missing), Err(Error::InvalidAcl), "the list is checked first");
}

#[test]
fn networks_match_by_their_first_bits() {
    let mut replica = Replica::new();
    let of = |id| Identity { scheme: "ip", id };
    for (network, address, matches) in [
        ("127.0.0.1", "127.0.0.1", true),
        ("127.0.0.1", "127.0.0.2", false),
        ("127.0.0.0/31", "127.0.0.1", true),
        ("127.0.0.0/31", "127.0.0.2", false),
        ("9.9.9.9/0", "127.0.0.2", true),
        ("10.128.0.0/9", "10.255.1.1", true),
        ("10.128.0.0/9", "10.127.1.1", false),
        ("0.0.0.0/0", "::1", false),
    ] {
        replica.identities = vec![SUPER];
        assert!(replica.write(0, &create_acl("/a", &[acl(31, "ip", network)])).is_ok());
        replica.identities = vec![of(address)];
        let outcome = replica.write(0, &set("/a", "y"));
        assert_eq!(outcome.is_ok(), matches, "{address} in {network}");
        replica.identities = vec![SUPER];
        assert!(replica.write(0, &delete("/a")).is_ok());
    }
}

#[test]
fn super_and_skip_acl_pass_everything() {
    let mut replica = Replica::new();
    let closed = [acl(0, "world", "anyone")];
    assert!(replica.write(0, &create_acl("/a", &closed)).is_ok());
    assert_eq!(replica.write(0, &set("/a", "y")), Err(Error::NoAuth));
    assert_eq!(replica.write(0, &set("/zookeeper/config", "y")), Err(Error::NoAuth));
    replica.identities = vec![ADDRESS, SUPER];
    assert!(replica.write(0, &set("/a", "y")).is_ok());
    assert!(replica.write(0, &set("/zookeeper/config", "y")).is_ok());
    replica.identities = vec![];
    replica.rules.skip_acl = true;
    assert!(replica.write(0, &set("/a", "y")).is_ok());
}

#[test]
fn digests_are_shown_to_administrators_only() {
    let mut replica = Replica::new();
    replica.identities = vec![ANNA];
    let list = [acl(31, "auth", ""), acl(1, "world", "anyone")];
    assert!(replica.write(0, &create_acl("/a", &list)).is_ok());
    let anyone = (1, "world".to_owned(), "anyone".to_owned());
    let shown = |id: &str| Ok(vec![(31, "digest".to_owned(), id.to_owned()), anyone.clone()]);
    assert_eq!(get_acl(&replica, "/a"), shown(ANNA.id));
    replica.identities = vec![ADDRESS];
    assert_eq!(get_acl(&replica, "/a"), shown("anna:x"));
    assert_eq!(get_acl(&replica, "/none"), Err(Error::NoNode));
}

#[test]
fn equal_lists_are_kept_once_and_go_with_their_last_node() {
    let mut table = AclTable::new();
    let list = [acl(31, "digest", "a:b")];
    let (key, is_new) = table.retain(&list);
    assert!(is_new && key != OPEN);
    assert_eq!(table.retain(&list), (key, false));
    assert!(!table.release(key));
    assert!(table.release(key));
    assert_eq!(table.keys().count(), 0);
    let (again, is_new) = table.retain(&[acl(1, "digest", "a:b")]);
    assert_eq!((again, is_new), (key, true), "the key is used again");
    assert_eq!(table.retain(&[OPEN_ACL]), (OPEN, false));
    assert!(!table.release(OPEN));
}

#[test]
fn lists_of_the_store_go_with_their_last_node() {
    let mut replica = Replica::new();
    let list = [acl(31, "ip", "127.0.0.1")];
    assert!(replica.write(0, &create_acl("/a", &list)).is_ok());
    assert!(replica.write(0, &create_acl("/b", &list)).is_ok());
    let lists = |replica: &Replica| replica.store.keys().filter(|key| key[0] == b'a').count();
    assert_eq!(lists(&replica), 1);
    assert!(replica.write(0, &delete("/a")).is_ok());
    assert_eq!(lists(&replica), 1);
    let open = Request::SetAcl { path: "/b", acl: Some(vec![OPEN_ACL]), version: -1 };
    assert!(replica.write(0, &open).is_ok());
    assert_eq!(lists(&replica), 0);
}
