//! Quotas: what is counted, and what is refused.

use super::super::quota::{Track, Use};
use super::*;

const STATS: &str = "/zookeeper/quota/a/zookeeper_stats";

/// Sets a quota on /a as ZooKeeper's command line does.
fn limit(replica: &mut Replica, limits: &str) {
    replica.create("/zookeeper/quota/a");
    for (name, text) in [("limits", limits), ("stats", "count=0,bytes=0")] {
        let path = format!("/zookeeper/quota/a/zookeeper_{name}");
        replica.create(&path);
        if name == "limits" {
            assert!(replica.write(0, &set(&path, text)).is_ok());
        }
    }
}

#[test]
fn stats_tell_what_is_there_and_follow_every_write() {
    let mut replica = Replica::new();
    let session = replica.connect();
    replica.create("/a");
    replica.create("/a/b");
    limit(&mut replica, "count=9,bytes=-1");
    assert_eq!(replica.text(STATS), "count=2,bytes=2");
    let before = Stat { data_length: 0, ..replica.stat(STATS) };
    assert!(replica.write(session, &create("/a/b/e", 1)).is_ok());
    assert_eq!(replica.text(STATS), "count=3,bytes=3");
    assert!(replica.write(0, &set("/a", "12345")).is_ok());
    assert_eq!(replica.text(STATS), "count=3,bytes=7");
    replica.create("/ab");
    assert_eq!(replica.text(STATS), "count=3,bytes=7", "a name alike is not below");
    let multi = Request::Multi(vec![create("/a/c", 0), set("/a/c", ""), delete("/none")]);
    results(replica.write(0, &multi));
    assert_eq!(replica.text(STATS), "count=3,bytes=7");
    assert!(replica.close(session).is_ok());
    assert!(replica.write(0, &delete("/a/b")).is_ok());
    assert_eq!(replica.text(STATS), "count=1,bytes=5");
    let after = Stat { data_length: 0, ..replica.stat(STATS) };
    assert_eq!(after, before, "counting does not write the node with the count");
    assert_eq!(replica.reload().digest(), replica.state.digest());
}

#[test]
fn only_the_nearest_quota_counts() {
    let mut replica = Replica::new();
    replica.create("/a");
    replica.create("/a/b");
    limit(&mut replica, "count=9,bytes=-1");
    for path in ["", "/zookeeper_limits", "/zookeeper_stats"] {
        replica.create(&format!("/zookeeper/quota/a/b{path}"));
    }
    replica.create("/a/b/c");
    assert_eq!(replica.text(STATS), "count=2,bytes=2");
    assert_eq!(replica.text("/zookeeper/quota/a/b/zookeeper_stats"), "count=2,bytes=2");
    assert!(replica.write(0, &delete("/zookeeper/quota/a/b/zookeeper_limits")).is_ok());
    replica.create("/a/b/d");
    assert_eq!(replica.text(STATS), "count=3,bytes=3");
}

#[test]
fn hard_limits_are_enforced_only_when_the_rules_say_so() {
    let mut replica = Replica::new();
    replica.create("/a");
    limit(&mut replica, "count=1,bytes=1=;byteHardLimit=5;countHardLimit=2");
    replica.rules.enforce_quota = true;
    replica.create("/a/b");
    assert_eq!(replica.write(0, &create("/a/c", 0)), Err(Error::QuotaExceeded));
    assert!(replica.write(0, &set("/a/b", "1234")).is_ok());
    let too_much = Request::SetData { path: "/a/b", data: Some(b"12345"), version: 7 };
    assert_eq!(replica.write(0, &too_much), Err(Error::QuotaExceeded), "before the version");
    assert!(replica.write(0, &set("/a/b", "4321")).is_ok());
    replica.rules.enforce_quota = false;
    assert!(replica.write(0, &set("/a/b", "123456")).is_ok());
    replica.rules.enforce_quota = true;
    assert!(replica.write(0, &set("/a/b", "65")).is_ok(), "less than before, within the limit");
}

#[test]
fn loaded_replicas_know_their_quotas() {
    let mut replica = Replica::new();
    replica.create("/a");
    limit(&mut replica, "count=-1,bytes=-1=;countHardLimit=1;byteHardLimit=-1");
    replica.rules.enforce_quota = true;
    replica.state = replica.reload();
    assert_eq!(replica.write(0, &create("/a/b", 0)), Err(Error::QuotaExceeded));
}

#[test]
fn text_that_makes_no_sense_limits_nothing_and_breaks_nothing() {
    let mut replica = Replica::new();
    replica.create("/a");
    limit(&mut replica, "nonsense");
    replica.rules.enforce_quota = true;
    replica.create("/a/b");
    assert!(replica.write(0, &set(STATS, "count")).is_ok());
    replica.create("/a/c");
    assert_eq!(replica.text(STATS), "count");
    replica.create("/zookeeper/quota/zookeeper_limits");
    replica.create("/zookeeper/quotas");
    replica.create("/zookeeper/quotas/zookeeper_limits");
    replica.create("/s");
}

#[test]
fn the_text_of_a_quota_is_read_and_written_as_zookeeper_does() {
    let text = "count=4,bytes=5=;byteHardLimit=10;countHardLimit=10";
    let mut track = Track::parse(Some(text.as_bytes())).expect("a quota");
    assert_eq!(track.text(), text);
    track.add(Use { count: -1, bytes: 2 });
    assert_eq!(track.text(), "count=3,bytes=7=;byteHardLimit=10;countHardLimit=10");
    let empty = Track::parse(Some(b"")).expect("no limit at all");
    assert_eq!(empty.text(), "count=-1,bytes=-1");
    for bad in [&b"count"[..], b"count=x", b"\xff"] {
        assert_eq!(Track::parse(Some(bad)), None);
    }
    assert_eq!(Track::parse(None), None);
}
