//! Identities as ZooKeeper 3.8 gives them: ids, replies and whoAmI were taken from that server.

use super::*;

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));
const SUPER: Option<&str> = Some("super:D/InIHSb7yEEbrWz8b9l71RjZJU=");

fn check(scheme: &str, auth: &str, expect: Result<&[(&str, &str)], ()>) {
    let shown = authenticate(scheme, auth.as_bytes(), CLIENT, SUPER);
    let shown = shown.map(|list| list.into_iter().map(|one| (one.scheme, one.id.into_string())));
    let expect = expect.map(|list| list.iter().map(|(scheme, id)| (*scheme, (*id).to_owned())));
    match (shown, expect) {
        (Ok(shown), Ok(expect)) => assert!(shown.eq(expect), "{scheme} {auth}"),
        (Err(_), Err(())) => {}
        (shown, _) => panic!("{scheme} {auth}: {:?}", shown.map(|list| list.collect::<Vec<_>>())),
    }
}

#[test]
fn a_digest_is_of_user_and_password_together() {
    check("digest", "u:p", Ok(&[("digest", "u:Jq7wMyA/w2Vd5WIDAKdu4OIIFEQ=")]));
    // Without a colon the whole text is the user. With two colons the password contains one.
    let id = |text: &str| digest_id(text);
    assert!(id("alone").starts_with("alone:"));
    assert!(id("u:p:q").starts_with("u:") && id("u:p:q") != id("u:p"));
    assert!(id("").starts_with(':'));
}

#[test]
fn super_is_who_knows_the_configured_digest() {
    let expect = [("super", ""), ("digest", "super:D/InIHSb7yEEbrWz8b9l71RjZJU=")];
    check("digest", "super:test", Ok(&expect));
    let wrong = authenticate("digest", b"super:tesT", CLIENT, SUPER).expect("any password");
    assert!(wrong.iter().all(|identity| identity.scheme != "super"));
    let off = authenticate("digest", b"super:test", CLIENT, None).expect("any password");
    assert!(off.iter().all(|identity| identity.scheme != "super"));
}

#[test]
fn ip_shows_the_real_address_and_other_schemes_fail() {
    check("ip", "1.2.3.4", Ok(&[("ip", "10.0.0.7")]));
    for scheme in ["world", "auth", "x509", "sasl", "super", "unheard", ""] {
        check(scheme, "anyone", Err(()));
    }
}

#[test]
fn a_connection_lists_each_identity_once_with_its_user_only() {
    let mut identities = Identities::new(CLIENT);
    assert_eq!(identities.authenticate("digest", b"u:secret", CLIENT, SUPER), Ok(true));
    assert_eq!(identities.authenticate("digest", b"u:secret", CLIENT, SUPER), Ok(false));
    assert_eq!(identities.authenticate("ip", b"", CLIENT, SUPER), Ok(false));
    assert_eq!(identities.authenticate("digest", b"super:test", CLIENT, SUPER), Ok(true));
    let shown: Vec<_> = identities.who_am_i().collect();
    assert_eq!(shown, [("ip", "10.0.0.7"), ("digest", "u"), ("super", ""), ("digest", "super")]);
    assert!(identities.iter().any(|one| one.scheme == "digest" && one.id.starts_with("u:")));
}

#[test]
fn identities_are_limited_in_number_and_size() {
    let mut identities = Identities::new(CLIENT);
    let long = vec![b'x'; AUTH_SIZE_MAX + 1];
    let error = identities.authenticate("digest", &long, CLIENT, None);
    assert_eq!(error, Err(AuthError::TooLong { size: AUTH_SIZE_MAX + 1 }));
    for number in 1..IDENTITIES_MAX {
        let user = format!("u{number}:p");
        assert_eq!(identities.authenticate("digest", user.as_bytes(), CLIENT, None), Ok(true));
    }
    assert_eq!(identities.authenticate("digest", b"z:p", CLIENT, None), Err(AuthError::TooMany));
    assert_eq!(identities.iter().count(), IDENTITIES_MAX);
}

#[test]
fn addresses_are_written_as_java_writes_them() {
    let text = |address: &str| host_text(address.parse().expect("an address"));
    assert_eq!(text("::1"), "0:0:0:0:0:0:0:1");
    assert_eq!(text("2001:db8::ff"), "2001:db8:0:0:0:0:0:ff");
    assert_eq!(text("::ffff:10.1.2.3"), "10.1.2.3");
}
