//! Files as ZooKeeper writes them, made by hand: what is read of them, and what is refused.

use millrace_proto::zookeeper::record::OPEN_ACL;
use millrace_proto::zookeeper::{Acl, Writer};
use tempfile::TempDir;

use super::*;
use crate::admin::offline::{self, walk};
use crate::state::assemble::Numbers;
use crate::{Config, Coord};

const SESSION: i64 = 0x1_0000_7777;
const READER: Acl<'static> = Acl { perms: 1, scheme: "digest", id: "u:xyz=" };

/// A data directory of a server.
struct Server(TempDir);

impl Server {
    fn new() -> Server {
        let server = Server(tempfile::tempdir().unwrap());
        fs::create_dir(server.0.path().join(VERSION_2)).unwrap();
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(VERSION_2).join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn read(&self) -> Result<Imported, ImportError> {
        read(self.0.path(), self.0.path())
    }

    fn refused(&self) -> String {
        self.read().err().expect("it should have been refused").to_string()
    }
}

fn bytes(write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut Writer::new(&mut bytes));
    bytes
}

/// Builds a snapshot of the root and these nodes, with the list of `READER` under key 1.
fn snapshot(nodes: &[(&str, Numbers, i64)]) -> Vec<u8> {
    let mut snapshot = bytes(|writer| {
        writer.int(0x5a4b_534e);
        writer.int(2);
        writer.long(-1);
        writer.int(1);
        writer.long(SESSION);
        writer.int(30_000);
        writer.int(1);
        writer.long(1);
        writer.list(&[READER], |writer, acl| acl.encode(writer));
        let root = ("", Numbers { cversion: 1, pzxid: 1, ..Numbers::default() }, -1);
        for (path, numbers, acl) in [root].iter().chain(nodes) {
            writer.string(path);
            writer.buffer(Some(b"old"));
            writer.long(*acl);
            for long in [numbers.czxid, numbers.mzxid, numbers.ctime, numbers.mtime] {
                writer.long(long);
            }
            for int in [numbers.version, numbers.cversion, numbers.aversion] {
                writer.int(int);
            }
            writer.long(numbers.owner);
            writer.long(numbers.pzxid);
        }
        writer.string("/");
    });
    let sum = i64::from(adler2::adler32_slice(&snapshot));
    Writer::new(&mut snapshot).long(sum);
    // Newer servers write a digest, and another checksum.
    snapshot.extend_from_slice(&[1; 28]);
    snapshot
}

/// Builds the body of a transaction of `SESSION`.
fn body(zxid: i64, kind: i32, record: &[u8]) -> Vec<u8> {
    bytes(|writer| {
        writer.long(SESSION);
        writer.int(5);
        writer.long(zxid);
        writer.long(zxid.wrapping_add(1000));
        writer.int(kind);
        writer.raw(record);
    })
}

/// Builds a log, with zeros behind the transactions.
fn log(transactions: &[Vec<u8>]) -> Vec<u8> {
    let mut log = bytes(|writer| {
        writer.int(0x5a4b_4c47);
        writer.int(2);
        writer.long(0);
        for transaction in transactions {
            writer.long(i64::from(adler2::adler32_slice(transaction)));
            writer.buffer(Some(transaction));
            writer.raw(b"B");
        }
    });
    log.resize(log.len() + 1000, 0);
    log
}

fn create(path: &str, is_ephemeral: bool, parent_cversion: i32) -> Vec<u8> {
    bytes(|writer| {
        writer.string(path);
        writer.buffer(Some(b"new"));
        writer.list(&[OPEN_ACL], |writer, acl| acl.encode(writer));
        writer.boolean(is_ephemeral);
        writer.int(parent_cversion);
    })
}

fn set(path: &str, data: &[u8], version: i32) -> Vec<u8> {
    bytes(|writer| {
        writer.string(path);
        writer.buffer(Some(data));
        writer.int(version);
    })
}

fn delete(path: &str) -> Vec<u8> {
    bytes(|writer| writer.string(path))
}

fn multi(parts: &[(i32, Vec<u8>)]) -> Vec<u8> {
    bytes(|writer| {
        writer.list(parts, |writer, (kind, record)| {
            writer.int(*kind);
            writer.buffer(Some(record));
        });
    })
}

/// Returns version, cversion and aversion of a node, its czxid, mzxid and pzxid, and its data.
fn node(state: &State, wanted: &str) -> Option<([i32; 3], [i64; 3], Vec<u8>)> {
    let mut found = None;
    let walked: Result<(), ()> = walk(state, |node| {
        if node.path == wanted {
            let stat = &node.stat;
            let versions = [stat.version, stat.cversion, stat.aversion];
            let data = node.data.unwrap_or_default().to_vec();
            found = Some((versions, [stat.czxid, stat.mzxid, stat.pzxid], data));
        }
        Ok(())
    });
    walked.unwrap();
    found
}

fn one(path: &str, zxid: i64) -> (&str, Numbers, i64) {
    (path, Numbers { czxid: zxid, mzxid: zxid, pzxid: zxid, ..Numbers::default() }, 1)
}

#[test]
fn a_snapshot_and_the_transactions_after_it_make_the_tree() {
    let server = Server::new();
    server.write("snapshot.1", &snapshot(&[one("/a", 1)]));
    let acl = bytes(|writer| {
        writer.string("/a");
        writer.list(&[OPEN_ACL, READER], |writer, acl| acl.encode(writer));
        writer.int(1);
    });
    let log_bytes = log(&[
        body(1, 1, &create("/a", false, 1)),
        body(2, 1, &create("/a/b", false, 1)),
        body(3, 15, &create("/a/c", true, 2)),
        body(4, 5, &set("/a/b", b"two", 1)),
        body(5, -1, &bytes(|writer| writer.int(-101))),
        body(
            6,
            14,
            &multi(&[(13, set("/a", b"", 0)), (1, create("/m", false, 2)), (2, delete("/a/b"))]),
        ),
        body(
            7,
            14,
            &multi(&[(-1, bytes(|writer| writer.int(0))), (-1, bytes(|writer| writer.int(-2)))]),
        ),
        body(8, 7, &acl),
    ]);
    server.write("log.1", &log_bytes);
    let imported = server.read().unwrap();
    assert_eq!((imported.transactions, imported.ephemerals, imported.cut.is_none()), (7, 1, true));
    let state = imported.state;
    assert_eq!(state.zxid(), 9, "the end of the sessions is a change of its own");
    // Two children were created, and none is left; the last one went with its session.
    assert_eq!(node(&state, "/a"), Some(([0, 4, 1], [1, 1, 9], b"old".to_vec())));
    assert_eq!(node(&state, "/m"), Some(([0; 3], [6; 3], b"new".to_vec())));
    assert_eq!((node(&state, "/a/b"), node(&state, "/a/c")), (None, None));
    assert_eq!(node(&state, "/").unwrap().1[2], 6);
}

#[test]
fn containers_and_times_to_live_go_on() {
    let server = Server::new();
    let node_of = |path: &str, cversion: i32, ttl_ms: Option<i64>| {
        bytes(|writer| {
            writer.string(path);
            writer.buffer(None);
            writer.list(&[OPEN_ACL], |writer, acl| acl.encode(writer));
            writer.int(cversion);
            ttl_ms.into_iter().for_each(|ttl_ms| writer.long(ttl_ms));
        })
    };
    let log = log(&[
        body(1, 19, &node_of("/container", 1, None)),
        body(2, 1, &create("/container/a", false, 1)),
        body(3, 2, &delete("/container/a")),
        body(4, 21, &node_of("/ttl", 2, Some(500))),
    ]);
    server.write("log.1", &log);
    let state = server.read().unwrap().state;
    assert_eq!(state.due_containers(1400, 9), ["/container"]);
    let mut due = state.due_containers(1505, 9);
    due.sort();
    assert_eq!(due, ["/container", "/ttl"], "500 ms after the change at 1004");
}

#[test]
fn what_a_quota_counts_is_counted_again() {
    let server = Server::new();
    let quota = "/zookeeper/quota/a/zookeeper_limits";
    let stats = "/zookeeper/quota/a/zookeeper_stats";
    let paths =
        ["/zookeeper", "/zookeeper/quota", "/zookeeper/quota/a", quota, stats, "/a", "/a/b"];
    server.write("snapshot.1", &snapshot(&paths.map(|path| one(path, 1))));
    let limits = body(2, 5, &set(quota, b"count=10,bytes=-1", 1));
    server.write("log.2", &log(&[limits, body(3, 1, &create("/a/c", false, 1))]));
    let state = server.read().unwrap().state;
    assert_eq!(node(&state, stats).unwrap().2, b"count=3,bytes=9");
    assert_eq!(node(&state, quota).unwrap().2, b"count=10,bytes=-1");
}

#[test]
fn changes_that_the_snapshot_has_already_change_nothing_more() {
    let server = Server::new();
    // It was begun at 1, and the nodes were written after 4.
    let parent =
        Numbers { czxid: 1, mzxid: 4, pzxid: 3, version: 1, cversion: 2, ..Numbers::default() };
    server.write("snapshot.1", &snapshot(&[("/a", parent, -1), one("/a/y", 3)]));
    server.write(
        "log.1",
        &log(&[
            body(1, 1, &create("/a", false, 1)),
            body(2, 1, &create("/a/x", false, 1)),
            body(3, 1, &create("/a/y", false, 2)),
            body(4, 5, &set("/a", b"four", 1)),
            body(5, 2, &delete("/a/x")),
            body(6, 2, &delete("/gone")),
        ]),
    );
    let state = server.read().unwrap().state;
    assert_eq!(node(&state, "/a"), Some(([1, 3, 0], [1, 4, 5], b"four".to_vec())));
    assert_eq!(node(&state, "/a/y").unwrap().1, [3; 3]);
}

#[test]
fn without_a_snapshot_the_logs_begin_with_an_empty_tree() {
    let server = Server::new();
    server.write("log.1", &log(&[body(1, -10, &bytes(|writer| writer.int(4000)))]));
    server.write("log.2", &log(&[body(2, 1, &create("/e", true, 1)), body(3, -11, &[])]));
    let epoch = 0x1_0000_0001;
    server.write("log.100000001", &log(&[body(epoch, 1, &create("/n", false, -1))]));
    let imported = server.read().unwrap();
    assert_eq!((imported.transactions, imported.ephemerals, imported.snapshot), (4, 0, None));
    assert_eq!(imported.state.zxid(), epoch);
    assert_eq!(node(&imported.state, "/"), Some(([0, 2, 0], [0, 0, epoch], Vec::new())));
    assert!(node(&imported.state, "/zookeeper/quota").is_some());
}

#[test]
fn missing_transactions_are_told() {
    let server = Server::new();
    server.write("snapshot.1", &snapshot(&[]));
    server.write("log.3", &log(&[body(3, 1, &create("/a", false, 2))]));
    let message = server.refused();
    assert!(
        message.contains("0x3 is the next after 0x1") && message.contains("--log-dir"),
        "{message}"
    );
    server.write("log.2", &log(&[body(2, 1, &create("/b", false, 2))]));
    server.read().unwrap();
}

#[test]
fn what_was_cut_short_is_left_out_and_what_is_damaged_is_refused() {
    let server = Server::new();
    let whole = log(&[body(1, 1, &create("/a", false, 1)), body(2, 1, &create("/b", false, 2))]);
    let used = whole.len() - 1000;
    for size in [used - 1, used - 30, used - 60] {
        let mut cut = whole.clone();
        cut[size..].fill(0);
        for cut in [&cut[..], &cut[..size]] {
            server.write("log.1", cut);
            let imported = server.read().unwrap();
            assert_eq!((imported.transactions, imported.cut.is_some()), (1, true), "at {size}");
        }
    }
    for at in [20, 40, 60, used - 90] {
        let mut flipped = whole.clone();
        flipped[at] ^= 4;
        server.write("log.1", &flipped);
        assert!(server.refused().contains("is damaged"), "at {at}");
    }
    server.write("log.1", &[]);
    assert_eq!(server.read().unwrap().transactions, 0);
    for zxid in [i64::MAX, -5] {
        server.write("log.1", &log(&[body(zxid, 1, &create("/a", false, 1))]));
        assert!(server.refused().contains("follows"), "{zxid}");
    }
    server.write("log.1", b"something else entirely");
    assert!(server.refused().contains("not as a log"));
}

#[test]
fn a_snapshot_that_is_not_whole_is_passed_over_and_a_damaged_one_refused() {
    let server = Server::new();
    let full = snapshot(&[one("/a", 1)]);
    server.write("snapshot.2", &full[..100]);
    assert!(server.refused().contains("not whole"));
    server.write("snapshot.1", &full);
    let imported = server.read().unwrap();
    assert_eq!(imported.passed_over, [server.path("snapshot.2")]);
    assert!(node(&imported.state, "/a").is_some());
    let mut flipped = full.clone();
    flipped[full.len() - 60] ^= 1;
    server.write("snapshot.3", &flipped);
    assert!(server.refused().contains("checksum does not fit"));
    server.write("snapshot.3.gz", b"");
    assert!(server.refused().contains("compressed"));
}

#[test]
fn other_directories_are_refused() {
    let empty = tempfile::tempdir().unwrap();
    assert!(!is_zookeeper(empty.path()));
    let error = read(empty.path(), empty.path()).err().unwrap();
    assert!(matches!(error, ImportError::NoData { .. }), "{error}");
    let server = Server::new();
    server.write("snapshot.7fffffffffffffff", b"");
    server.write("snapshot.-1", b"");
    assert!(!is_zookeeper(server.0.path()), "no server gives out such a number");
    server.write("snapshot.0", &snapshot(&[("/lost/child", Numbers::default(), -1)]));
    assert!(is_zookeeper(server.0.path()));
    assert!(server.refused().contains("its parent is missing"));
    server.write("snapshot.0", &snapshot(&[("/a", Numbers::default(), 17)]));
    assert!(server.refused().contains("its ACL is missing"));
}

#[test]
fn a_replica_begins_beside_data_of_zookeeper_only_when_it_was_imported() {
    let server = Server::new();
    server.write("snapshot.1", &snapshot(&[one("/a", 1)]));
    let config = Config::tiny(server.0.path().to_owned());
    for start in [Coord::start, Coord::join] {
        let error = start(config.clone()).err().expect("it would begin empty").to_string();
        assert!(error.contains("millrace coord import"), "{error}");
    }
    let state = server.read().unwrap().state;
    offline::of_state(state).restore(server.0.path(), 1, None).unwrap();
    assert!(server.path("snapshot.1").is_file(), "it stays as it was");
    drop(Coord::start(config).unwrap());
    let data = offline::open(server.0.path()).unwrap();
    assert_eq!(node(&data.state, "/a").unwrap().2, b"old");
    assert!(data.state.zxid() > 1 << 32, "far above what ZooKeeper gave out");
}
