//! The table of keys: what can be set, in which range, and what it means to an operator.

use std::path::PathBuf;

use millrace_ops::settings::{Access, LIST_SEPARATOR, Number};
use millrace_proto::frame::{BODY_LENGTH_MAX, PAYLOAD_LENGTH_MAX};
use millrace_proto::terms::{StaleAfter, is_credential};

use super::coordination::Coordination;
use super::disks::{disks_in, format_disks};
use super::mounts::MountOptions;
use super::sources::{options_in, roots_in};
use super::text::{format_cpus, is_host, is_name, parse_cpus};
use super::{Key, ZeroCopy};
use crate::local::AUTOMATIC;
use crate::store::roots::{FILE_SCHEME, is_remote, normal};

/// A number that lives in the field of this name. The range is checked before the cast.
macro_rules! number {
    ($field:ident, $range:expr) => {
        Number {
            min: *$range.start(),
            max: *$range.end(),
            set: |config, value| config.$field = value as _,
            get: |config| config.$field as u64,
        }
    };
}

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Most shards of a node. Guessed: more than the cores of any machine we know.
pub const SHARDS_MAX: usize = 256;
/// Least memory of a shard. Guessed: below it the index and the last fills crowd out the cache.
pub const SHARD_MEMORY_MIN: usize = 4 << 20;
/// Fewest blocks of a shard. Guessed: enough that one fill does not push out all that is warm.
pub const SHARD_BLOCKS_MIN: usize = 8;
/// Smallest block. Derived: one chunk of the checksum rule.
pub const BLOCK_SIZE_MIN: u32 = millrace_proto::checksum::CHUNK_SIZE;
/// Largest block. Derived: the largest payload of a frame.
pub const BLOCK_SIZE_MAX: u32 = PAYLOAD_LENGTH_MAX;
/// Longest path of a socket: `sun_path` of unix(7), less what the names of shards add.
const SOCKET_LENGTH_MAX: usize = 107 - 4;

const _: () = assert!(BLOCK_SIZE_MIN.is_power_of_two() && BLOCK_SIZE_MAX.is_power_of_two());
const _: () = assert!(size_of::<usize>() == 8, "sizes are 64-bit");

/// Every key, in the order of help and of `--print-config`.
pub const KEYS: &[Key] = &[
    Key {
        name: "source",
        value: "DIR|URL",
        default: "none: it must be given",
        help: "Directory or store to serve, such as s3://BUCKET/PREFIX; only read unless `writable`",
        example: "/data",
        access: Access::Text {
            allowed: "a path, file:///DIR, or a URL",
            set: |config, text| {
                let directory = text.strip_prefix(FILE_SCHEME);
                config.source = PathBuf::from(directory.unwrap_or(text));
                !text.is_empty() && directory.is_none_or(|it| it.starts_with('/'))
            },
            get: |config| config.source.display().to_string(),
        },
    },
    Key {
        name: "source_option",
        value: "KEY=VALUE",
        default: "none",
        help: "Option of stores on other machines, such as endpoint or region; may be given several times",
        example: "region=eu-central-1",
        access: Access::List {
            allowed: "KEY=VALUE with the keys of the store library (docs/STORES.md), ':' between them",
            set: |config, text| {
                config.source_options = options_in(text).unwrap_or_default();
                options_in(text).is_some()
            },
            get: |config| {
                let options: Vec<_> = config
                    .source_options
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                options.join(&LIST_SEPARATOR.to_string())
            },
        },
    },
    Key {
        name: "writable",
        value: "BOOL",
        default: "false",
        help: "Let every client that reaches the node write to its source and delete there",
        example: "true",
        access: Access::Flag {
            set: |config, value| config.writable = value,
            get: |config| config.writable,
        },
    },
    Key {
        name: "source_credential",
        value: "NAME",
        default: "what the environment has",
        help: "Credential of the source: the name of a table [credential.NAME] in the configuration file",
        example: "prod",
        access: Access::Text {
            allowed: "1 to 64 letters, digits, '-', '_' and '.', or nothing",
            set: |config, text| {
                config.source_credential = text.to_owned();
                text.is_empty() || is_credential(text)
            },
            get: |config| config.source_credential.clone(),
        },
    },
    Key {
        name: "stale_after_ms",
        value: "MS",
        default: "auto: 30000 for stores on other machines, 0 for directories",
        help: "How long a look-up is believed before the source is asked again; 0 asks each time",
        example: "5000",
        access: Access::Text {
            allowed: "milliseconds, never or auto",
            set: |config, text| {
                config.stale_after = StaleAfter::parse(&text.replace('_', ""));
                config.stale_after.is_some() || text == AUTOMATIC
            },
            get: |config| config.stale_after.map_or(AUTOMATIC.to_owned(), |it| it.to_string()),
        },
    },
    Key {
        name: "mount_root",
        value: "DIR|URL",
        default: "the source alone",
        help: "Directory or store below which sources may be mounted; may be given several times",
        example: "/mnt/datasets",
        access: Access::List {
            allowed: "absolute paths and URLs, with ':' between them, or nothing",
            set: |config, text| {
                let roots = roots_in(text).into_iter();
                let roots = roots.map(|root| root.strip_prefix(FILE_SCHEME).unwrap_or(root));
                config.mount_roots = roots.map(PathBuf::from).collect();
                let is_root = |root: &PathBuf| match root.to_str().filter(|it| is_remote(it)) {
                    Some(url) => normal(url).is_ok(),
                    None => root.is_absolute() && !root.to_string_lossy().contains(LIST_SEPARATOR),
                };
                config.mount_roots.iter().all(is_root)
            },
            get: |config| {
                let roots: Vec<_> =
                    config.mount_roots.iter().map(|root| root.display().to_string()).collect();
                roots.join(&LIST_SEPARATOR.to_string())
            },
        },
    },
    Key {
        name: "listen",
        value: "IP:PORT",
        default: "127.0.0.1:7070",
        help: "Address to listen on; 0.0.0.0 for every interface, port 0 for any free port",
        example: "0.0.0.0:7070",
        access: Access::Text {
            allowed: "an IP address and a port",
            set: |config, text| {
                text.parse().is_ok_and(|address| {
                    config.listen = address;
                    true
                })
            },
            get: |config| config.listen.to_string(),
        },
    },
    Key {
        name: "socket",
        value: "PATH",
        default: "auto: an abstract name that clients learn from the node",
        help: "Unix socket for clients on this machine; with several shards also PATH.0 and so on",
        example: "/run/millrace.sock",
        access: Access::Text {
            allowed: "an absolute path of at most 103 bytes, auto, or nothing",
            set: |config, text| {
                config.socket = PathBuf::from(text);
                let is_path = text.starts_with('/') && text.len() <= SOCKET_LENGTH_MAX;
                is_path || text.is_empty() || text == AUTOMATIC
            },
            get: |config| config.socket.display().to_string(),
        },
    },
    Key {
        name: "socket_mode",
        value: "MODE",
        default: "660: the node's user and group, or those that are named",
        help: "Users that may use the Unix sockets, and so map all of the node's memory, as a file's mode",
        example: "600",
        access: Access::Mode {
            set: |config, mode| config.socket_mode = mode,
            get: |config| config.socket_mode,
        },
    },
    Key {
        name: "socket_user",
        value: "NAME",
        default: "the node's own",
        help: "Owner of the Unix sockets",
        example: "millrace",
        access: Access::Text {
            allowed: "a name or a number of a user, or nothing",
            set: |config, text| {
                config.socket_user = text.to_owned();
                text.is_empty() || is_name(text)
            },
            get: |config| config.socket_user.clone(),
        },
    },
    Key {
        name: "socket_group",
        value: "NAME",
        default: "the node's own",
        help: "Group of the Unix sockets; at abstract names a client's effective group counts",
        example: "engines",
        access: Access::Text {
            allowed: "a name or a number of a group, or nothing",
            set: |config, text| {
                config.socket_group = text.to_owned();
                text.is_empty() || is_name(text)
            },
            get: |config| config.socket_group.clone(),
        },
    },
    Key {
        name: "admin",
        value: "PATH",
        default: "auto: in a directory of the node's user, where the CLI looks",
        help: "Unix socket at which the node's user and root may change what it does",
        example: "/run/millrace/admin.sock",
        access: Access::Text {
            allowed: "an absolute path of at most 103 bytes, auto, or nothing",
            set: |config, text| {
                config.admin = PathBuf::from(text);
                let is_path = text.starts_with('/') && text.len() <= SOCKET_LENGTH_MAX;
                is_path || text.is_empty() || text == AUTOMATIC
            },
            get: |config| config.admin.display().to_string(),
        },
    },
    Key {
        name: "admin_token",
        value: "FILE",
        default: "none: nothing is changed over TCP",
        help: "File with a token; a client that knows it may change over TCP what the node does",
        example: "/etc/millrace/admin-token",
        access: Access::Text {
            allowed: "a path, or nothing",
            set: |config, text| {
                config.admin_token = PathBuf::from(text);
                true
            },
            get: |config| config.admin_token.display().to_string(),
        },
    },
    // This is not `admin`, which is the administration socket, where the node takes orders.
    Key {
        name: "http",
        value: "IP:PORT",
        default: "off",
        help: "Address of /metrics, /livez, /readyz and /status over HTTP, open to every client",
        example: "127.0.0.1:7071",
        access: Access::Text {
            allowed: "an IP address and a port, or off",
            set: |config, text| match text {
                "off" => {
                    config.http = None;
                    true
                }
                _ => text.parse().map(|address| config.http = Some(address)).is_ok(),
            },
            get: |config| config.http.map_or("off".to_owned(), |address| address.to_string()),
        },
    },
    Key {
        name: "zero_copy",
        value: "WHEN",
        default: "auto: where the kernel tells that it makes no copy",
        help: "Whether large replies over TCP leave without a copy: auto, always or never",
        example: "never",
        access: Access::Text {
            allowed: "auto, always or never",
            set: |config, text| {
                let found = ZeroCopy::ALL.iter().find(|it| it.name() == text);
                found.is_some_and(|it| {
                    config.zero_copy = *it;
                    true
                })
            },
            get: |config| config.zero_copy.name().to_owned(),
        },
    },
    Key {
        name: "lease_ms",
        value: "MS",
        default: "10000",
        help: "How long clients on this machine may read a block in place without asking; 0 for never",
        example: "2000",
        access: Access::Count(number!(lease_ms, 0..=600_000)),
    },
    Key {
        name: "lease_percent",
        value: "PERCENT",
        default: "50",
        help: "Share of the memory that those clients may hold; beyond it they read over the socket",
        example: "75",
        access: Access::Count(number!(lease_percent, 0..=90)),
    },
    Key {
        name: "pin_percent",
        value: "PERCENT",
        default: "50",
        help: "Share of the memory that is kept for files of pinned paths; beyond it they are like any",
        example: "75",
        access: Access::Count(number!(pin_percent, 0..=90)),
    },
    Key {
        name: "advertise",
        value: "HOST",
        default: "the host a client connected to",
        help: "Host name or IP that clients are told to use; set it behind NAT or in a container",
        example: "cache-1.example.org",
        access: Access::Text {
            allowed: "a host name or an IP address without a port, or nothing",
            set: |config, text| {
                config.advertise = text.to_owned();
                is_host(text)
            },
            get: |config| config.advertise.clone(),
        },
    },
    Key {
        name: "coord",
        value: "WHERE",
        default: "embedded: the node keeps by itself what is mounted and pinned",
        help: "Coordination: zk://HOST:PORT,.../PATH of millrace coord or ZooKeeper, embedded, or none",
        example: "zk://coord-1:2181,coord-2:2181,coord-3:2181/millrace",
        access: Access::Text {
            allowed: "zk:// with host:port, further ones behind commas, and the path of the cluster; \
                      embedded; or none",
            set: |config, text| {
                Coordination::parse(text).is_some_and(|coord| {
                    config.coord = coord;
                    true
                })
            },
            get: |config| config.coord.to_string(),
        },
    },
    Key {
        name: "coord_secret",
        value: "FILE",
        default: "none: a cluster needs one",
        help: "File with the secret of the cluster, the same on every node; 16 bytes or more",
        example: "/etc/millrace/secret",
        access: Access::Text {
            allowed: "a path, or nothing",
            set: |config, text| {
                config.coord_secret = PathBuf::from(text);
                true
            },
            get: |config| config.coord_secret.display().to_string(),
        },
    },
    Key {
        name: "insecure",
        value: "BOOL",
        default: "false",
        help: "Be in a cluster without a secret: every process that reaches its network can be a member",
        example: "true",
        access: Access::Flag {
            set: |config, value| config.insecure = value,
            get: |config| config.insecure,
        },
    },
    Key {
        name: "data",
        value: "DIR",
        default: "nothing is kept: the node has another identity after a restart",
        help: "Directory for what survives a restart: the node's identity, its own mounts and pins",
        example: "/var/lib/millrace",
        access: Access::Text {
            allowed: "a path, or nothing",
            set: |config, text| {
                config.data = PathBuf::from(text);
                true
            },
            get: |config| config.data.display().to_string(),
        },
    },
    Key {
        name: "mount_options",
        value: "LIST",
        default: "none: the type of the file system decides",
        help: "writable lets clients write there, cache-on-write keeps it; others tell contents apart",
        example: "/=content,models=shared",
        access: Access::Text {
            allowed: "PREFIX=writable, =cache-on-write, =content, =device or =shared, joined by commas",
            set: |config, text| {
                MountOptions::parse(text).is_some_and(|options| {
                    config.mount_options = options;
                    true
                })
            },
            get: |config| config.mount_options.to_string(),
        },
    },
    Key {
        name: "node_id",
        value: "NAME",
        default: "what is kept in `data`, else a random one",
        help: "Name of the node in its cluster; no two nodes have the same one",
        example: "cache-1",
        access: Access::Text {
            allowed: "1 to 64 letters, digits, '-', '_' and '.', or nothing",
            set: |config, text| {
                config.node_id = text.to_owned();
                text.is_empty() || is_name(text)
            },
            get: |config| config.node_id.clone(),
        },
    },
    Key {
        name: "zone",
        value: "NAME",
        default: "none",
        help: "What fails together with this node, such as a rack; replicas are spread over zones",
        example: "rack-7",
        access: Access::Text {
            allowed: "1 to 64 letters, digits, '-', '_' and '.', or nothing",
            set: |config, text| {
                config.zone = text.to_owned();
                text.is_empty() || is_name(text)
            },
            get: |config| config.zone.clone(),
        },
    },
    Key {
        name: "session_timeout_ms",
        value: "MS",
        default: "6000",
        help: "A node that coordination has not heard of for so long is out of the cluster",
        example: "10000",
        access: Access::Count(number!(session_timeout_ms, 200..=120_000)),
    },
    Key {
        name: "handover_rate",
        value: "SIZE",
        default: "256MiB",
        help: "Most bytes a second that the node takes over from others after a change; 0 for none",
        example: "1GiB",
        access: Access::Size(number!(handover_rate, 0..=TIB)),
    },
    Key {
        name: "shards",
        value: "COUNT",
        default: "one per core in `cpus`, fewer if memory is short",
        help: "Worker threads, each with a core and a part of the cache of its own",
        example: "4",
        access: Access::Count(number!(shards, 1..=SHARDS_MAX as u64)),
    },
    Key {
        name: "cpus",
        value: "LIST",
        default: "every core this process may use",
        help: "Cores to run the shards on, in shard order; at least one per shard",
        example: "0,2-5",
        access: Access::Text {
            allowed: "core numbers and ranges of them, each core once",
            set: |config, text| {
                parse_cpus(text).is_some_and(|cpus| {
                    config.cpus = cpus;
                    true
                })
            },
            get: |config| format_cpus(&config.cpus),
        },
    },
    Key {
        name: "memory",
        value: "SIZE",
        default: "1GiB",
        help: "Memory for cached blocks and their index, never exceeded",
        example: "8GiB",
        access: Access::Size(number!(memory, SHARD_MEMORY_MIN as u64..=16 * TIB)),
    },
    Key {
        name: "disk",
        value: "DIR:SIZE",
        default: "none",
        help: "Directory on a disk of flash, with what it may hold; may be given several times",
        example: "/mnt/nvme0/millrace:400GiB",
        access: Access::List {
            allowed: "absolute directories, each with a size behind ':', at most 16",
            set: |config, text| {
                config.disks = disks_in(text).unwrap_or_default();
                disks_in(text).is_some()
            },
            get: |config| format_disks(&config.disks),
        },
    },
    Key {
        name: "populate",
        value: "WHETHER",
        default: "true",
        help: "Whether memory is taken at start; with false a node may be killed as its cache fills",
        example: "false",
        access: Access::Text {
            allowed: "true or false",
            set: |config, text| {
                text.parse().is_ok_and(|populate| {
                    config.populate = populate;
                    true
                })
            },
            get: |config| config.populate.to_string(),
        },
    },
    Key {
        name: "block_size",
        value: "SIZE",
        default: "1MiB",
        help: "Unit of caching and of reads from the source, a power of two",
        example: "4MiB",
        access: Access::Size(number!(block_size, BLOCK_SIZE_MIN as u64..=BLOCK_SIZE_MAX as u64)),
    },
    Key {
        name: "connections_max",
        value: "COUNT",
        default: "4096",
        help: "Most client connections; further ones are closed at once",
        example: "10_000",
        access: Access::Count(number!(connections_max, 1..=1_000_000)),
    },
    Key {
        name: "connections_per_peer_max",
        value: "COUNT",
        default: "2048",
        help: "Most connections of one address, or of one user over a Unix socket",
        example: "256",
        access: Access::Count(number!(connections_per_peer_max, 1..=1_000_000)),
    },
    Key {
        name: "requests_in_flight_max",
        value: "COUNT",
        default: "256",
        help: "Most unanswered requests on one connection; then the node stops reading from it",
        example: "64",
        access: Access::Count(number!(requests_in_flight_max, 1..=4096)),
    },
    Key {
        name: "bytes_in_flight_max",
        value: "SIZE",
        default: "32MiB",
        help: "Most unsent reply bytes of one connection, and bytes its blocks hold; at least one block",
        example: "64MiB",
        access: Access::Size(number!(bytes_in_flight_max, BLOCK_SIZE_MIN as u64..=16 * GIB)),
    },
    Key {
        name: "body_length_max",
        value: "SIZE",
        default: "64KiB",
        help: "Longest body of a request; paths and batches of ranges have to fit",
        example: "16KiB",
        access: Access::Size(number!(body_length_max, 8 * KIB..=BODY_LENGTH_MAX as u64)),
    },
    Key {
        name: "fill_concurrency",
        value: "COUNT",
        default: "16",
        help: "Parallel reads of each source; raise it for a source of high latency",
        example: "64",
        access: Access::Count(number!(fill_concurrency, 1..=512)),
    },
    Key {
        name: "fill_queue_max",
        value: "COUNT",
        default: "1024",
        help: "Most block reads handed to the source's threads at once; further misses wait their turn",
        example: "4096",
        access: Access::Count(number!(fill_queue_max, 1..=1_000_000)),
    },
    Key {
        name: "metadata_queue_max",
        value: "COUNT",
        default: "1024",
        help: "Most stat, list, load and free requests waiting for the source; then Busy",
        example: "4096",
        access: Access::Count(number!(metadata_queue_max, 1..=1_000_000)),
    },
    Key {
        name: "load_concurrency",
        value: "COUNT",
        default: "64",
        help: "Most files being loaded at once; further Load requests are answered Busy",
        example: "16",
        access: Access::Count(number!(load_concurrency, 1..=4096)),
    },
    Key {
        name: "upload_concurrency",
        value: "COUNT",
        default: "16",
        help: "Most files being written at once, each with up to 26 MiB of memory; then Busy",
        example: "64",
        access: Access::Count(number!(upload_concurrency, 1..=1024)),
    },
    Key {
        name: "source_timeout_ms",
        value: "MS",
        default: "10000",
        help: "A source that has not answered for this many milliseconds is taken to hang",
        example: "60000",
        access: Access::Count(number!(source_timeout_ms, 100..=3_600_000)),
    },
    Key {
        name: "files_max",
        value: "COUNT",
        default: "100000",
        help: "Most files remembered between Stat and Read; a forgotten one costs a Stat",
        example: "1_000_000",
        access: Access::Count(number!(files_max, 1..=100_000_000)),
    },
    Key {
        name: "send_timeout_ms",
        value: "MS",
        default: "30000",
        help: "Disconnect a client that takes no byte of its replies for this many milliseconds",
        example: "10000",
        access: Access::Count(number!(send_timeout_ms, 100..=3_600_000)),
    },
    Key {
        name: "idle_timeout_ms",
        value: "MS",
        default: "0",
        help: "Disconnect a client that asks nothing for this many milliseconds; 0 for never",
        example: "600000",
        access: Access::Count(number!(idle_timeout_ms, 0..=86_400_000)),
    },
    Key {
        name: "drain_timeout_ms",
        value: "MS",
        default: "10000",
        help: "When stopping, wait at most this many milliseconds for replies in flight",
        example: "30000",
        access: Access::Count(number!(drain_timeout_ms, 0..=3_600_000)),
    },
];
