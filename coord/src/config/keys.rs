//! The one table of settings: name, help, default, range, and how text becomes a field.
//!
//! Each key writes its value as text that it accepts again, except the secret, which is not shown.

use std::path::PathBuf;

use millrace_ops::settings::{Access, Number};

use super::Key;
use super::members::{Member, REPLICA_ID_MAX};
use super::words::{format_words, parse_words};

const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const HOUR_MS: u64 = 3_600_000;

/// Builds a key whose number is in the field of its name. The range is checked before the cast.
macro_rules! number {
    (
        $kind:ident, $name:ident, $value:literal, $range:expr, $default:literal,
        $help:literal, $example:literal
    ) => {
        Key {
            name: stringify!($name),
            value: $value,
            default: $default,
            help: $help,
            example: $example,
            access: Access::$kind(Number {
                min: *$range.start(),
                max: *$range.end(),
                set: |config, value| config.$name = value as _,
                get: |config| config.$name as u64,
            }),
        }
    };
}

/// Builds a key that is on or off.
macro_rules! flag {
    ($name:ident, $default:literal, $help:literal) => {
        Key {
            name: stringify!($name),
            value: "BOOL",
            default: $default,
            help: $help,
            example: "true",
            access: Access::Flag {
                set: |config, value| config.$name = value,
                get: |config| config.$name,
            },
        }
    };
}

/// Builds a key of one of the two directories.
macro_rules! directory {
    ($name:ident, $default:literal, $help:literal) => {
        Key {
            name: stringify!($name),
            value: "DIR",
            default: $default,
            help: $help,
            example: "/var/lib/millrace-coord",
            access: Access::Text {
                allowed: "a path",
                set: |config, text| {
                    config.$name = PathBuf::from(text);
                    !text.is_empty()
                },
                get: |config| config.$name.display().to_string(),
            },
        }
    };
}

/// Builds a key of an endpoint that may be off.
macro_rules! endpoint {
    ($name:ident, $help:literal, $example:literal) => {
        Key {
            name: stringify!($name),
            value: "IP:PORT",
            default: "off",
            help: $help,
            example: $example,
            access: Access::Text {
                allowed: "an IP address and a port, or off",
                set: |config, text| match text {
                    "off" => {
                        config.$name = None;
                        true
                    }
                    _ => text.parse().map(|address| config.$name = Some(address)).is_ok(),
                },
                get: |config| config.$name.map_or("off".to_owned(), |address| address.to_string()),
            },
        }
    };
}

/// Every key, in the order of help.
pub const KEYS: &[Key] = &[
    directory!(data_dir, "none: it must be given", "Directory of the state"),
    directory!(
        log_dir,
        "data_dir",
        "Directory on another disk for the log, which is faster; the name log in data_dir links to it"
    ),
    Key {
        name: "client_address",
        value: "IP:PORT",
        default: "127.0.0.1:2181",
        help: "Address for clients; 0.0.0.0 for every interface, port 0 for any free port",
        example: "0.0.0.0:2181",
        access: Access::Text {
            allowed: "an IP address and a port",
            set: |config, text| text.parse().map(|address| config.client_address = address).is_ok(),
            get: |config| config.client_address.to_string(),
        },
    },
    number!(
        Count,
        replica_id,
        "ID",
        1..=REPLICA_ID_MAX,
        "1",
        "Id of this replica among `members`",
        "2"
    ),
    Key {
        name: "members",
        value: "LIST",
        default: "none: a replica by itself",
        help: "The ensemble as it begins: ID=host:port:port[:observer][;[host:]port], with commas",
        example: "1=a:2888:3888;2181,2=b:2888:3888;2181,3=c:2888:3888;2181",
        access: Access::Text {
            allowed: "members with commas, each ID=host:port:port[:observer][;[host:]port]",
            set: |config, text| {
                let lines = text.split(',').filter(|line| !line.trim().is_empty());
                let members: Result<Vec<Member>, _> = lines.map(Member::parse_line).collect();
                members.map(|members| config.members = members).is_ok()
            },
            get: |config| {
                let lines: Vec<String> = config.members.iter().map(Member::to_string).collect();
                lines.join(",")
            },
        },
    },
    flag!(peer_listen_all, "false", "Listen for peers on every interface"),
    endpoint!(
        peer_listen,
        "Address to listen for peers at, if it differs from the one in members, or off",
        "0.0.0.0:2888"
    ),
    number!(Count, tick_ms, "MS", 10..=HOUR_MS, "2000", "Unit of session time-outs", "500"),
    number!(
        Count,
        min_session_timeout_ms,
        "MS",
        1..=24 * HOUR_MS,
        "2 ticks",
        "Shortest time-out that a session is granted",
        "4000"
    ),
    number!(
        Count,
        max_session_timeout_ms,
        "MS",
        1..=24 * HOUR_MS,
        "20 ticks",
        "Longest time-out that a session is granted",
        "40000"
    ),
    number!(
        Count,
        max_client_connections_per_ip,
        "COUNT",
        0..=1_000_000,
        "60",
        "Most connections from one address; 0 for no such limit",
        "1000"
    ),
    number!(
        Count,
        max_client_connections,
        "COUNT",
        1..=1_000_000,
        "20000",
        "Most connections; further ones are closed at once",
        "100_000"
    ),
    number!(
        Count,
        listen_backlog,
        "COUNT",
        1..=65_535,
        "1024",
        "Connections that may wait to be accepted",
        "4096"
    ),
    number!(
        Size,
        max_message_bytes,
        "SIZE",
        KIB..=GIB,
        "1048575",
        "Longest request; clients have a limit of their own for replies",
        "4MiB"
    ),
    number!(
        Size,
        client_output_max_bytes,
        "SIZE",
        64 * KIB..=16 * GIB,
        "16MiB",
        "Most reply bytes that wait for one client; one that reads no more is disconnected",
        "64MiB"
    ),
    number!(
        Count,
        outstanding_max,
        "COUNT",
        1..=1_000_000,
        "1000",
        "Most writes that wait for a leader to take them; then no request is read",
        "10_000"
    ),
    number!(
        Count,
        watches_per_client_max,
        "COUNT",
        1..=100_000_000,
        "1000000",
        "Most paths that one client may watch; further watches are refused",
        "10_000"
    ),
    Key {
        name: "four_letter_whitelist",
        value: "WORDS",
        default: "all that only report, except hash: not crst and srst",
        help: "Four-letter words that are answered, with commas; * for all, empty for none",
        example: "ruok,srvr,mntr",
        access: Access::Text {
            allowed: "four-letter words with commas",
            set: |config, text| {
                let (words, unknown) = parse_words(text);
                config.four_letter_whitelist = words;
                unknown.is_empty()
            },
            get: |config| format_words(&config.four_letter_whitelist),
        },
    },
    flag!(read_only_mode, "false", "Serve reads without a leader to clients that ask for it"),
    flag!(
        reconfig_enabled,
        "false",
        "Accept reconfig from clients that may write /zookeeper/config"
    ),
    Key {
        name: "super_digest",
        value: "USER:DIGEST",
        default: "none",
        help: "A client with the credentials of this digest passes every ACL",
        example: "super:D/InIHSb7yEEbrWz8b9l71RjZJU=",
        access: Access::Text {
            allowed: "user, colon and the base64 of a SHA-1, or nothing",
            set: |config, text| {
                config.super_digest = (!text.is_empty()).then(|| text.to_owned());
                text.is_empty() || text.split_once(':').is_some_and(|(_, hash)| hash.len() == 28)
            },
            get: |config| {
                if config.super_digest.is_some() { "(not shown)".to_owned() } else { String::new() }
            },
        },
    },
    flag!(skip_acl, "false", "Do not check ACLs"),
    flag!(enforce_quota, "false", "Refuse writes that exceed a hard quota"),
    flag!(ttl_nodes, "true", "Accept nodes with a time to live"),
    number!(
        Count,
        container_check_ms,
        "MS",
        10..=24 * HOUR_MS,
        "60000",
        "Time between searches for empty containers and expired TTL nodes",
        "10000"
    ),
    endpoint!(admin, "Address of the admin endpoint (HTTP, JSON), or off", "127.0.0.1:8080"),
    endpoint!(
        metrics,
        "Address for only /metrics (Prometheus) and /health, or off",
        "0.0.0.0:7000"
    ),
    number!(
        Size,
        map_size_bytes,
        "SIZE",
        16 * MIB..=16 * TIB,
        "64GiB",
        "Largest size of the state on disk; address space, not memory",
        "1TiB"
    ),
    number!(
        Size,
        log_max_bytes,
        "SIZE",
        16 * MIB..=16 * TIB,
        "16GiB",
        "Most bytes of the write-ahead log on disk",
        "64GiB"
    ),
    number!(
        Count,
        checkpoint_interval_ms,
        "MS",
        10..=24 * HOUR_MS,
        "5000",
        "Longest time between checkpoints of a state that changed",
        "30000"
    ),
    number!(
        Size,
        checkpoint_log_bytes,
        "SIZE",
        64 * KIB..=TIB,
        "16MiB",
        "Bytes of changes in memory after which a checkpoint is due at once",
        "64MiB"
    ),
    number!(
        Size,
        log_retain_bytes,
        "SIZE",
        64 * KIB..=TIB,
        "256MiB",
        "Log bytes kept for followers that lag; others get a snapshot",
        "1GiB"
    ),
    number!(
        Count,
        election_timeout_ms,
        "MS",
        50..=60_000,
        "400",
        "Silence of the leader after which a follower stands for election",
        "1000"
    ),
    number!(
        Count,
        heartbeat_ms,
        "MS",
        5..=10_000,
        "50",
        "Time between two heartbeats of the leader",
        "100"
    ),
];
