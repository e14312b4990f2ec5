//! What tools see, beside what ZooKeeper 3.8 sent in the same place.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use millrace_ops::time::java_date;
use millrace_proto::zookeeper::opcode;
use serde_json::Value as Json;

use super::*;
use crate::config::Role;

/// Makes two sessions on a replica by itself, as one of ZooKeeper had it.
fn alone() -> Snapshot {
    let mut config = Config::production("/data".into());
    config.client_address = SocketAddr::from(([127, 0, 0, 1], 22181));
    let mut metrics = Metrics { packets_received: 43, packets_sent: 41, ..Metrics::default() };
    metrics.read_took(0);
    metrics.write_took(8);
    metrics.write_took(1);
    let connection = |port: u16, session: i64| ConnectionReport {
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        session,
        timeout_ms: 10_000,
        queued: 0,
        received: 5,
        sent: 4,
        last_operation: opcode::ADD_WATCH,
        last_xid: 4,
        last_zxid: 0x10,
        established_ms: 1_795_376_350_068,
        last_response_ms: 12_124_969,
        last_latency_ms: 1,
        min_latency_ms: 0,
        average_latency_ms: 1,
        max_latency_ms: 2,
    };
    let session = |id: i64, path: &str| SessionReport {
        id,
        timeout_ms: 10_000,
        expires_ms: Some(1_795_376_361_000),
        ephemerals: vec![path.to_owned()],
    };
    let watch = |path: &str, sessions: &[i64]| WatchReport {
        path: path.to_owned(),
        sessions: sessions.to_vec(),
    };
    Snapshot {
        mode: Mode::Standalone,
        now_ms: 1_795_376_350_200,
        uptime_ms: 4260,
        zxid: 0x1a,
        node_count: 8,
        ephemeral_count: 2,
        data_bytes: 57,
        session_count: 2,
        connection_count: 2,
        watch_counts: WatchCounts { clients: 2, paths: 3, watches: 4 },
        state_disk_bytes: 4096,
        log_disk_bytes: 8192,
        checkpoint: Some((0xb, 1_795_376_346_500)),
        metrics,
        connections: vec![connection(41_532, 0x100), connection(41_656, 0)],
        sessions: vec![session(0x100, "/a/f"), session(0x200, "/a/e")],
        watches: vec![watch("/a", &[0x100, 0x200]), watch("/b", &[0x100]), watch("/z", &[0x100])],
        ..Snapshot::new(config)
    }
}

/// Makes the second of three replicas, an observer among them, as leader.
fn leading() -> Snapshot {
    let text = "server.1=127.0.0.1:22281:22381:participant\n\
                server.2=127.0.0.1:22282:22382:participant;0.0.0.0:22182\n\
                server.3=127.0.0.1:22283:22383:observer\nversion=100000000";
    let (members, members_version) = crate::config::members::parse_config_text(text).unwrap();
    let follower =
        |id, is_voter, is_synced| FollowerReport { id, is_voter, match_index: 40 + id, is_synced };
    let mut snapshot = alone();
    snapshot.config.replica_id = 2;
    snapshot.mode = Mode::Leader;
    snapshot.members = members;
    snapshot.members_version = members_version;
    snapshot.raft = RaftReport {
        term: 7,
        leader: 2,
        last_index: 50,
        committed_index: 49,
        applied_index: 48,
        leading_ms: 9082,
        followers: vec![follower(1, true, true), follower(3, false, false)],
    };
    snapshot.metrics.proposal_bytes.record(60);
    snapshot
}

fn check(word: Word, snapshot: &Snapshot, expect: &str) {
    assert_eq!(answer(word, snapshot).0, expect, "{word:?}");
}

#[test]
fn short_words_are_answered_as_in_zookeeper() {
    let alone = alone();
    check(Word::Ruok, &alone, "imok");
    check(Word::Isro, &alone, "rw");
    check(Word::Wchs, &alone, "2 connections watching 3 paths\nTotal watches:4\n");
    check(Word::Dirs, &alone, "datadir_size: 4096\nlogdir_size: 8192\n");
    check(Word::Crst, &alone, "Connection stats reset.\n");
    check(Word::Srst, &alone, "Server stats reset.\n");
    check(Word::Hash, &alone, "");
    check(Word::Hash, &Snapshot { digest: Some(u64::MAX - 1), ..alone.clone() }, "1a: -2\n");
    assert_eq!(answer(Word::Srst, &alone).1, Effect::ResetServer);
    assert_eq!(answer(Word::Crst, &alone).1, Effect::ResetConnections);
    assert_eq!(answer(Word::Srvr, &alone).1, Effect::None);
    check(Word::Isro, &Snapshot { mode: Mode::ReadOnly, ..alone }, "ro");
}

#[test]
fn srvr_and_stat_have_the_lines_that_tools_read() {
    let lines = "Latency min/avg/max: 0/3.0/8\nReceived: 43\nSent: 41\nConnections: 2\n\
                 Outstanding: 0\nZxid: 0x1a\nMode: standalone\nNode count: 8\n";
    let version = format!("Zookeeper version: {VERSION}, {BUILT}\n");
    check(Word::Srvr, &alone(), &format!("{version}{lines}"));
    let clients = "Clients:\n /127.0.0.1:41532[1](queued=0,recved=5,sent=4)\n \
                   /127.0.0.1:41656[0](queued=0,recved=5,sent=4)\n\n";
    check(Word::Stat, &alone(), &format!("{version}{clients}{lines}"));
    let leader = lines.replace("standalone", "leader");
    let sizes = "Proposal sizes last/min/max: 60/60/60\n";
    check(Word::Srvr, &leading(), &format!("{version}{leader}{sizes}"));
}

#[test]
fn connections_show_what_they_did() {
    let expect = " /127.0.0.1:41532[1](queued=0,recved=5,sent=4,sid=0x100,lop=ADDW,\
                  est=1795376350068,to=10000,lcxid=0x4,lzxid=0x10,lresp=12124969,llat=1,minlat=0,\
                  avglat=1,maxlat=2)\n /127.0.0.1:41656[0](queued=0,recved=5,sent=4)\n\n";
    check(Word::Cons, &alone(), expect);
    let mut idle = alone();
    idle.connections.truncate(1);
    idle.connections[0].last_xid = -1;
    idle.connections[0].last_zxid = -1;
    idle.connections[0].last_operation = 0;
    let (text, _) = answer(Word::Cons, &idle);
    assert!(text.contains("lop=NA,"), "{text}");
    assert!(text.contains("to=10000,lzxid=0xffffffffffffffff,"), "{text}");
}

#[test]
fn settings_of_an_ensemble_name_its_members() {
    let text = "clientPort=22181\nsecureClientPort=-1\ndataDir=/data\ndataDirSize=4096\n\
                dataLogDir=/data\ndataLogSize=8192\ntickTime=2000\nmaxClientCnxns=60\n\
                minSessionTimeout=4000\nmaxSessionTimeout=40000\nclientPortListenBacklog=1024\n";
    check(Word::Conf, &alone(), &format!("{text}serverId=0\n"));
    let ensemble = "serverId=2\ninitLimit=10\nsyncLimit=5\nelectionAlg=3\nelectionPort=22382\n\
                    quorumPort=22282\npeerType=0\nmembership: \n\
                    server.1=127.0.0.1:22281:22381:participant\n\
                    server.2=127.0.0.1:22282:22382:participant;0.0.0.0:22182\n\
                    server.3=127.0.0.1:22283:22383:observer\nversion=100000000";
    check(Word::Conf, &leading(), &format!("{text}{ensemble}"));
}

#[test]
fn sessions_are_dumped_by_expiry_on_the_leader_and_by_time_out_elsewhere() {
    let rest = "ephemeral nodes dump:\nSessions with Ephemerals (2):\n0x100:\n\t/a/f\n\
                0x200:\n\t/a/e\nConnections dump:\nConnections Sets (1)/(2):\n\
                \tip: /127.0.0.1:41532 sessionId: 0x100\n\tip: /127.0.0.1:41656 sessionId: 0x0\n";
    let sets = "SessionTracker dump:\nSession Sets (1)/(2):\n\
                2 expire at Sun Nov 22 19:39:21 UTC 2026:\n\t0x100\n\t0x200\n";
    check(Word::Dump, &alone(), &format!("{sets}{rest}"));
    let mut follower = alone();
    follower.sessions.iter_mut().for_each(|one| one.expires_ms = None);
    let sets = "SessionTracker dump:\nGlobal Sessions(2):\n0x100\t10000ms\n0x200\t10000ms\n";
    check(Word::Dump, &follower, &format!("{sets}{rest}"));
}

#[test]
fn watches_are_listed_both_ways() {
    check(Word::Wchc, &alone(), "0x100\n\t/a\n\t/b\n\t/z\n0x200\n\t/a\n\n");
    check(Word::Wchp, &alone(), "/a\n\t0x100\n\t0x200\n/b\n\t0x100\n/z\n\t0x100\n\n");
}

#[test]
fn the_environment_has_a_version_that_kazoo_understands() {
    let (text, _) = answer(Word::Envi, &alone());
    assert!(text.starts_with("Environment:\nzookeeper.version="), "{text}");
    let line = text.lines().nth(1).unwrap();
    let version = line.split_once('=').unwrap().1;
    let digits: String =
        version.chars().take_while(|letter| letter.is_ascii_digit() || *letter == '.').collect();
    let numbers: Vec<u32> = digits.split('.').map(|part| part.parse().unwrap()).collect();
    assert_eq!(numbers, [3, 9, 3]);
    assert!(text.lines().skip(1).all(|line| line.contains('=')), "{text}");
}

/// Keys of `mntr` on a leader that exporters and boards use.
const MONITOR_KEYS: [&str; 31] = [
    "zk_version",
    "zk_server_state",
    "zk_peer_state",
    "zk_avg_latency",
    "zk_min_latency",
    "zk_max_latency",
    "zk_packets_received",
    "zk_packets_sent",
    "zk_num_alive_connections",
    "zk_outstanding_requests",
    "zk_znode_count",
    "zk_watch_count",
    "zk_ephemerals_count",
    "zk_approximate_data_size",
    "zk_open_file_descriptor_count",
    "zk_max_file_descriptor_count",
    "zk_uptime",
    "zk_global_sessions",
    "zk_local_sessions",
    "zk_connection_drop_count",
    "zk_connection_rejected",
    "zk_learners",
    "zk_synced_followers",
    "zk_synced_observers",
    "zk_pending_syncs",
    "zk_leader_uptime",
    "zk_quorum_size",
    "zk_last_proposal_size",
    "zk_p99_readlatency",
    "zk_avg_updatelatency",
    "zk_cnt_fsynctime",
];

#[test]
fn mntr_has_the_keys_of_zookeeper_each_once() {
    let (text, _) = answer(Word::Mntr, &leading());
    let pairs: Vec<(&str, &str)> =
        text.lines().map(|line| line.split_once('\t').expect(line)).collect();
    let keys: BTreeSet<&str> = pairs.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys.len(), pairs.len());
    for key in MONITOR_KEYS {
        assert!(keys.contains(key), "{key}");
    }
    let value = |wanted: &str| pairs.iter().find(|(key, _)| *key == wanted).unwrap().1;
    assert_eq!(value("zk_server_state"), "leader");
    assert_eq!(value("zk_avg_latency"), "3.0");
    assert_eq!((value("zk_synced_followers"), value("zk_synced_observers")), ("1", "0"));
    assert_eq!((value("zk_quorum_size"), value("zk_learners")), ("2", "2"));
    for (key, value) in &pairs[3..] {
        assert!(value.parse::<f64>().is_ok(), "{key} {value}");
    }
    let (text, _) = answer(Word::Mntr, &alone());
    assert!(!text.contains("zk_learners") && !text.contains("zk_peer_state"), "{text}");
}

#[test]
fn without_a_leader_only_what_needs_none_is_told() {
    let waiting = Snapshot { mode: Mode::NotServing, ..leading() };
    for word in Word::ALL {
        let (text, effect) = answer(word, &waiting);
        assert_eq!(effect, Effect::None, "{word:?}");
        match word {
            Word::Ruok => assert_eq!(text, "imok"),
            Word::Isro => assert_eq!(text, "null"),
            Word::Gtmk => assert_eq!(text, "0"),
            Word::Envi => assert!(text.contains("zookeeper.version=")),
            _ => assert_eq!(text, format!("{NOT_SERVING}\n"), "{word:?}"),
        }
    }
    let page = page("/commands/stats", &waiting, true);
    let json: Json = serde_json::from_str(&page.body).unwrap();
    assert_eq!((page.status, json["error"].as_str()), (200, Some(NOT_SERVING)));
}

#[test]
fn a_word_outside_the_whitelist_is_refused_by_name() {
    let mut config = Config::production("/data".into());
    assert_eq!(permit(*b"ruok", &config), Ok(Word::Ruok));
    let refusal = "crst is not executed because it is not in the whitelist.\n";
    assert_eq!(permit(*b"crst", &config), Err(refusal.to_owned()));
    assert_eq!(permit(*b"quit", &config), Err(String::new()));
    config.four_letter_whitelist.clear();
    assert!(permit(*b"ruok", &config).is_err());
}

fn json(path: &str, snapshot: &Snapshot) -> Json {
    let page = page(path, snapshot, true);
    assert_eq!((page.status, page.content_type), (200, "application/json"), "{path}");
    serde_json::from_str(&page.body).expect(path)
}

#[test]
fn admin_commands_have_the_keys_of_zookeeper() {
    let keys = |path: &str, snapshot: &Snapshot| -> Vec<String> {
        let json = json(path, snapshot);
        assert_eq!(json["error"], Json::Null, "{path}");
        let name = json["command"].as_str().unwrap().to_owned();
        let object = json.as_object().unwrap();
        let mut keys: Vec<String> = vec![name];
        keys.extend(object.keys().filter(|key| *key != "command" && *key != "error").cloned());
        keys
    };
    let (alone, leading) = (alone(), leading());
    assert_eq!(keys("/commands/ruok", &alone), ["ruok"]);
    assert_eq!(keys("/commands/dirs", &alone), ["dirs", "datadir_size", "logdir_size"]);
    assert_eq!(keys("/commands/isro?x=1", &alone), ["is_read_only", "read_only"]);
    assert_eq!(keys("/commands/lsnp", &alone), ["last_snapshot", "timestamp", "zxid"]);
    assert_eq!(keys("/commands/lead", &leading), ["leader", "is_leader", "leader_id", "leader_ip"]);
    assert_eq!(
        keys("/commands/wchs", &alone),
        ["watch_summary", "num_connections", "num_paths", "num_total_watches"]
    );
    assert_eq!(
        keys("/commands/cons", &alone),
        ["connections", "connections", "secure_connections"]
    );
    assert_eq!(
        keys("/commands/stat", &alone),
        [
            "stats",
            "connections",
            "node_count",
            "read_only",
            "secure_connections",
            "server_stats",
            "version"
        ]
    );
    assert_eq!(json("/commands/leader", &alone)["error"], "server is not initialized");
    let unknown = json("/commands/foo", &alone);
    assert_eq!(
        (&unknown["command"], &unknown["error"]),
        (&Json::from("foo"), &Json::from("Unknown command: foo"))
    );
}

#[test]
fn admin_commands_tell_what_is_so() {
    let (alone, leading) = (alone(), leading());
    let watches = json("/commands/watches", &alone);
    assert_eq!(
        watches["session_id_to_watched_paths"]["256"],
        serde_json::json!(["/a", "/b", "/z"])
    );
    let by_path = json("/commands/wchp", &alone);
    assert_eq!(by_path["path_to_session_ids"]["/a"], serde_json::json!([256, 512]));
    let dump = json("/commands/dump", &alone);
    assert_eq!(dump["expiry_time_to_session_ids"]["1795376361000"], serde_json::json!([256, 512]));
    assert_eq!(dump["session_id_to_ephemeral_paths"]["512"], serde_json::json!(["/a/e"]));
    let view = json("/commands/voting_view", &leading);
    assert_eq!(view["current_config"].as_object().unwrap().len(), 2, "observers do not vote");
    assert_eq!(view["current_config"]["2"]["client_address"], "0.0.0.0:22182");
    assert_eq!(view["current_config"]["1"]["election_addresses"][0], "127.0.0.1:22381");
    assert_eq!(json("/commands/monitor", &leading)["synced_followers"], 1);
    assert_eq!(json("/commands/srvr", &leading)["proposal_stats"]["max_buffer_size"], 60);
    assert_eq!(json("/commands/connections", &alone)["connections"][0]["last_operation"], "ADDW");
    assert_eq!(json("/commands/observers", &leading)["observers"][0]["sid"], 3);
    assert_eq!(json("/commands/raft", &leading)["followers"][1]["match_index"], 43);
    assert_eq!(json("/commands/zabstate", &leading)["last_zxid"], "0x1a");
    assert_eq!(json("/commands/conf", &leading)["election_port"], 22_382);
    let told = Snapshot { digest: Some(u64::MAX - 1), ..alone.clone() };
    let digests = serde_json::json!([{ "zxid": 26, "digest_version": 1, "digest": -2 }]);
    assert_eq!(json("/commands/hash", &told)["digests"], digests);
    let last = json("/commands/last_snapshot", &alone);
    assert_eq!((&last["zxid"], &last["timestamp"]), (&"b".into(), &1_795_376_346_i64.into()));
    let none = json("/commands/last_snapshot", &Snapshot { checkpoint: None, ..alone });
    assert_eq!((&none["zxid"], &none["timestamp"]), (&"f".repeat(16).into(), &(-1).into()));
}

#[test]
fn every_listed_command_answers_and_resets_ask_for_their_effect() {
    let snapshot = leading();
    let list = page("/commands", &snapshot, true);
    assert_eq!(list.body, page("/commands/", &snapshot, true).body);
    let mut count = 0;
    for line in list.body.lines().filter(|line| line.starts_with("<a ")) {
        let path = line.split('"').nth(1).unwrap();
        assert_eq!(json(path, &snapshot)["error"], Json::Null, "{path}");
        count += 1;
    }
    assert_eq!(count, 24);
    assert_eq!(page("/commands/srst", &snapshot, true).effect, Effect::ResetServer);
    assert_eq!(page("/commands/crst", &snapshot, true).effect, Effect::ResetConnections);
    assert_eq!(page("/commands/ruok", &snapshot, true).effect, Effect::None);
}

#[test]
fn the_super_digest_is_shown_nowhere() {
    let mut snapshot = leading();
    let secret = "D/InIHSb7yEEbrWz8b9l71RjZJU=";
    snapshot.config.super_digest = Some(format!("super:{secret}"));
    for word in Word::ALL {
        assert!(!answer(word, &snapshot).0.contains(secret), "{word:?}");
    }
    let list = page("/commands", &snapshot, true);
    for path in list.body.split('"').filter(|part| part.starts_with('/')) {
        assert!(!page(path, &snapshot, true).body.contains(secret), "{path}");
    }
}

#[test]
fn the_endpoint_of_prometheus_serves_no_commands() {
    let snapshot = alone();
    for path in ["/commands", "/commands/ruok", "/", "/metricsx", "/commandsx"] {
        assert_eq!(page(path, &snapshot, false).status, 404, "{path}");
    }
    assert_eq!(page("/commandsx", &snapshot, true).status, 404);
    assert_eq!(page("/health", &snapshot, false).status, 200);
    assert_eq!(
        page("/health", &Snapshot { mode: Mode::NotServing, ..snapshot.clone() }, false).status,
        503
    );
    let mut moved = snapshot;
    moved.config.admin_commands_path = "/zk".to_owned();
    assert_eq!(page("/zk/ruok", &moved, true).status, 200);
    assert_eq!(page("/commands/ruok", &moved, true).status, 404);
}

#[test]
fn metrics_are_text_that_prometheus_reads() {
    let page = page("/metrics", &leading(), false);
    assert!(page.content_type.starts_with("text/plain; version=0.0.4"));
    let mut typed = BTreeSet::new();
    let mut values = 0;
    for line in page.body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (what, name) = (words.next().unwrap(), words.next().unwrap());
            assert!(matches!(what, "HELP" | "TYPE") && words.next().is_some(), "{line}");
            assert!(what == "HELP" || typed.insert(name.to_owned()), "twice: {line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').expect(line);
        let name = name.split('{').next().unwrap();
        let base = name.trim_end_matches("_sum").trim_end_matches("_count");
        assert!(typed.contains(name) || typed.contains(base), "{line}");
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'),
            "{line}"
        );
        assert!(value.parse::<f64>().is_ok(), "{line}");
        values += 1;
    }
    assert!(values > 50);
    for line in
        ["znode_count 8", "synced_followers 1", "readlatency_count 1", "packets_received 43"]
    {
        assert!(page.body.lines().any(|other| other == line), "{line}");
    }
    assert!(page.body.contains("updatelatency{quantile=\"0.99\"} 8.0"), "{}", page.body);
}

#[test]
fn long_lists_are_cut_and_say_so() {
    let mut snapshot = alone();
    let sessions: Vec<i64> = (1..=LIST_MAX as i64).collect();
    let watch = |path: &str| WatchReport { path: path.to_owned(), sessions: sessions.clone() };
    snapshot.watches = vec![watch("/a"), watch("/b")];
    let (text, _) = answer(Word::Wchp, &snapshot);
    assert_eq!(text.lines().count(), LIST_MAX + 3);
    assert!(text.ends_with(&format!("... and {LIST_MAX} more watches\n\n")));
    let pages = json("/commands/watches_by_path", &snapshot);
    assert_eq!(pages["path_to_session_ids"].as_object().unwrap().len(), 1);
}

#[test]
fn an_answer_says_which_dear_parts_it_reads() {
    let config = Config::production("/data".into());
    let full = Snapshot { digest: Some(1), ..leading() };
    let without = |wanted: Wanted| {
        let mut part = full.clone();
        if !wanted.connections {
            part.connections.clear();
        }
        if !wanted.sessions {
            part.sessions.clear();
        }
        if !wanted.watches {
            part.watches.clear();
        }
        if !wanted.digest {
            part.digest = None;
        }
        part
    };
    for word in Word::ALL {
        let part = without(Wanted::for_word(word));
        assert_eq!(answer(word, &part), answer(word, &full), "{word:?}");
    }
    let list = page("/commands", &full, true);
    for path in list.body.split('"').filter(|part| part.starts_with('/')) {
        let part = without(Wanted::for_page(path, &config));
        assert_eq!(page(path, &part, true), page(path, &full, true), "{path}");
    }
    assert_eq!(Wanted::for_page("/metrics", &config), Wanted::default());
    assert!(!Wanted::for_word(Word::Mntr).digest && Wanted::for_word(Word::Hash).digest);
    assert!(Wanted::for_page("/commands/wchc", &config).watches, "by the short name too");
}

#[test]
fn dates_are_those_of_java() {
    let check = |time_ms, expect: &str| assert_eq!(java_date(time_ms), expect);
    check(0, "Thu Jan 01 00:00:00 UTC 1970");
    check(951_782_400_000, "Tue Feb 29 00:00:00 UTC 2000");
    check(1_709_251_199_999, "Thu Feb 29 23:59:59 UTC 2024");
    check(1_709_251_200_000, "Fri Mar 01 00:00:00 UTC 2024");
    check(4_102_444_799_000, "Thu Dec 31 23:59:59 UTC 2099");
    check(-1000, "Wed Dec 31 23:59:59 UTC 1969");
}

#[test]
fn the_process_knows_itself() {
    let process = Process::look();
    assert_eq!(process.system_name, "Linux");
    assert!(process.file_count >= 3 && process.file_count_max >= process.file_count);
    assert!(process.resident_bytes > 0 && process.machine_bytes > process.resident_bytes);
}

#[test]
fn an_observer_says_so() {
    let mut snapshot = leading();
    snapshot.config.replica_id = 3;
    snapshot.mode = Mode::Observer;
    let (text, _) = answer(Word::Conf, &snapshot);
    assert!(text.contains("serverId=3") && text.contains("peerType=1"), "{text}");
    let (text, _) = answer(Word::Mntr, &snapshot);
    assert!(text.contains("zk_peer_state\tobserving - broadcast"), "{text}");
    assert_eq!(snapshot.own_member().map(|own| own.role), Some(Role::Observer));
}
