//! The configuration: one checked [`Config`] out of four layers.
//!
//! ```text
//!  built-in defaults  <  TOML file  <  environment (MILLRACE_<KEY>)  <  flags (--<key>)
//! ```
//!
//! [`KEYS`] is the one table of what can be set: flags, variables, file keys, help, ranges, defaults
//! and `--print-config` all come from it. Every layer is turned into text first, so one parser a key
//! serves all. A value outside its range is refused in whichever layer it stands, even where a later
//! layer overrides it; rules between keys judge the final values. The first problem is reported.
//!
//! Nothing here touches the source: whether that directory exists is found when the node opens it.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use millrace_proto::frame::{BODY_LENGTH_MAX, PAYLOAD_LENGTH_MAX};

mod key;
mod text;

use crate::local::AUTOMATIC;
pub use key::Key;
use key::{Access, Number};
pub use text::{SizeError, format_size, parse_size, usable_cpus};
use text::{format_cpus, is_host, parse_cpus};

/// Whether large replies over TCP leave without a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroCopy {
    /// To other machines, until the kernel tells that it copies all the same.
    Auto,
    /// To all, whatever the kernel tells. To measure and to test it.
    Always,
    /// To nobody.
    Never,
}

impl ZeroCopy {
    const ALL: [ZeroCopy; 3] = [ZeroCopy::Auto, ZeroCopy::Always, ZeroCopy::Never];

    fn name(self) -> &'static str {
        match self {
            ZeroCopy::Auto => "auto",
            ZeroCopy::Always => "always",
            ZeroCopy::Never => "never",
        }
    }
}

/// Everything a node can be told. Sizes are bytes; the keys are documented in [`KEYS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory that is served.
    pub source: PathBuf,
    /// Address to listen on; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Unix socket to listen at as well; `auto` for an abstract name, empty for none.
    pub socket: PathBuf,
    /// Whether large replies are sent by reference.
    pub zero_copy: ZeroCopy,
    /// How long a lease lasts; 0 for none at all.
    pub lease_ms: u32,
    /// Share of the memory that may be leased.
    pub lease_percent: u32,
    /// Host that clients use for shard addresses; empty for the host they connected to.
    pub advertise: String,
    /// Worker threads, each with its own core and its own part of the cache.
    pub shards: usize,
    /// Cores for the shards, in shard order; surplus ones stay unused.
    pub cpus: Vec<usize>,
    /// Bound for cached blocks and their index.
    pub memory: usize,
    /// Size of a block, a power of two.
    pub block_size: u32,
    /// Most client connections.
    pub connections_max: usize,
    /// Most requests in flight on one connection.
    pub requests_in_flight_max: usize,
    /// Most reply bytes not yet sent on one connection.
    pub bytes_in_flight_max: usize,
    /// Longest body of a request.
    pub body_length_max: u32,
    /// Parallel reads of the source.
    pub fill_concurrency: usize,
    /// Block reads waiting for the source.
    pub fill_queue_max: usize,
    /// Stat, list, load and free requests waiting for the source.
    pub metadata_queue_max: usize,
    /// `Load` jobs at once.
    pub load_concurrency: usize,
    /// Files remembered.
    pub files_max: usize,
    /// A client that takes no byte for so long is disconnected.
    pub send_timeout_ms: u64,
    /// A client that sends no request for so long is disconnected; 0 for never.
    pub idle_timeout_ms: u64,
    /// Longest wait for replies in flight when the node stops.
    pub drain_timeout_ms: u64,
}

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
const MIB: u64 = 1 << 20;
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
/// Highest number of cores that an affinity mask can name.
const CPUS_MAX: usize = rustix::thread::CpuSet::MAX_CPU;
/// Longest path of a socket: `sun_path` of unix(7), less what the names of shards add.
const SOCKET_LENGTH_MAX: usize = 107 - 4;
/// Longest host name in DNS.
const HOST_LENGTH_MAX: usize = 253;

const _: () = assert!(BLOCK_SIZE_MIN.is_power_of_two() && BLOCK_SIZE_MAX.is_power_of_two());
const _: () = assert!(size_of::<usize>() == 8, "sizes are 64-bit");

/// Every key, in the order of help and of `--print-config`.
pub const KEYS: &[Key] = &[
    Key {
        name: "source",
        value: "DIR",
        default: "none: it must be given",
        help: "Directory to serve; it is only ever read",
        example: "/data",
        access: Access::Text {
            allowed: "a path",
            set: |config, text| {
                config.source = PathBuf::from(text);
                !text.is_empty()
            },
            get: |config| config.source.display().to_string(),
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
        help: "Memory for cached blocks and their index, taken at start and never exceeded",
        example: "8GiB",
        access: Access::Size(number!(memory, SHARD_MEMORY_MIN as u64..=16 * TIB)),
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
        help: "Most reply bytes not yet sent on one connection; at least one block",
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
        help: "Parallel reads of the source; raise it for a source of high latency",
        example: "64",
        access: Access::Count(number!(fill_concurrency, 1..=512)),
    },
    Key {
        name: "fill_queue_max",
        value: "COUNT",
        default: "1024",
        help: "Most block reads waiting for the source; further misses are answered Busy",
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
        help: "Disconnect a client that takes no byte of its replies for so many milliseconds",
        example: "10000",
        access: Access::Count(number!(send_timeout_ms, 100..=3_600_000)),
    },
    Key {
        name: "idle_timeout_ms",
        value: "MS",
        default: "0",
        help: "Disconnect a client that asks nothing for so many milliseconds; 0 for never",
        example: "600000",
        access: Access::Count(number!(idle_timeout_ms, 0..=86_400_000)),
    },
    Key {
        name: "drain_timeout_ms",
        value: "MS",
        default: "10000",
        help: "When stopping, wait at most so many milliseconds for replies in flight",
        example: "30000",
        access: Access::Count(number!(drain_timeout_ms, 0..=3_600_000)),
    },
];

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in, or set by the program itself.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// The environment of the process.
    Environment,
    /// The command line.
    Flags,
}

impl Origin {
    /// `key` as it is written there.
    fn name(&self, key: &Key) -> String {
        match self {
            Origin::Default => format!("default of {}", key.name),
            Origin::File(file) => format!("key {} in {}", key.name, file.display()),
            Origin::Environment => format!("environment variable {}", key.variable()),
            Origin::Flags => format!("flag {}", key.flag()),
        }
    }
}

/// Values from one origin, as text; names as in [`KEYS`].
#[derive(Clone, Debug)]
pub struct Layer {
    /// Where they come from.
    pub origin: Origin,
    /// Name and value; of two with one name the later counts.
    pub values: Vec<(String, String)>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {error}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}, line {line}: not valid TOML: {message}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What the parser said.
        message: String,
    },
    /// A name that is not in [`KEYS`].
    #[error("unknown {given}; did you mean `{nearest}`?")]
    UnknownKey {
        /// What was given and where.
        given: String,
        /// The nearest known name, spelled for that place.
        nearest: String,
    },
    /// A value of the wrong type or outside its range.
    #[error("{place}: `{value}` is not allowed; expected {allowed}, for example `{example}`", place = origin.name(key))]
    Value {
        /// Where it was set.
        origin: Origin,
        /// What it was meant for.
        key: &'static Key,
        /// The value as text.
        value: String,
        /// What would be allowed.
        allowed: String,
        /// An allowed value.
        example: String,
    },
    /// There is no directory to serve.
    #[error(
        "no source: say which directory to serve, with flag --source DIR, environment variable \
         MILLRACE_SOURCE or key source in the configuration file"
    )]
    NoSource,
}

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name)
    }
}

impl Config {
    /// Reads, merges and checks all layers. `environment` may hold foreign variables; `flags` are
    /// pairs of a name, as in [`KEYS`] or as a flag, and a value.
    ///
    /// # Errors
    /// The first problem, with the place where it can be mended.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: Vec<(String, String)>,
    ) -> Result<Config, ConfigError> {
        let mut layers = Vec::new();
        if let Some(file) = file {
            layers.push(file_layer(file)?);
        }
        layers.push(environment_layer(environment));
        layers.push(Layer {
            origin: Origin::Flags,
            values: flags
                .into_iter()
                .map(|(name, value)| (name.trim_start_matches("--").replace('-', "_"), value))
                .collect(),
        });
        Config::merge(&layers)
    }

    /// Puts layers over the defaults, the last on top, and checks the result.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn merge(layers: &[Layer]) -> Result<Config, ConfigError> {
        let mut config = Config::unset();
        let mut origins = vec![Origin::Default; KEYS.len()];
        for layer in layers {
            for (name, value) in &layer.values {
                let index = KEYS
                    .iter()
                    .position(|key| key.name == name)
                    .ok_or_else(|| unknown_key(&layer.origin, name))?;
                if !KEYS[index].set(&mut config, value) {
                    return Err(value_error(&KEYS[index], value, layer.origin.clone()));
                }
                origins[index] = layer.origin.clone();
            }
        }
        config.complete();
        config.validate().map_err(|error| match error {
            ConfigError::Value { key, value, allowed, example, .. } => {
                let index = KEYS.iter().position(|other| other.name == key.name);
                let origin = index.map_or(Origin::Default, |index| origins[index].clone());
                ConfigError::Value { origin, key, value, allowed, example }
            }
            other => other,
        })?;
        Ok(config)
    }

    /// The defaults.
    pub fn production(source: PathBuf) -> Config {
        let mut config = Config { source, ..Config::unset() };
        config.complete();
        config
    }

    /// Every limit small, so that tests reach it soon; any free port.
    pub fn tiny(source: PathBuf) -> Config {
        Config {
            source,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            socket: PathBuf::from(AUTOMATIC),
            zero_copy: ZeroCopy::Auto,
            lease_ms: 10_000,
            lease_percent: 50,
            advertise: String::new(),
            shards: 1,
            cpus: usable_cpus(),
            memory: 8 << 20,
            block_size: BLOCK_SIZE_MIN,
            connections_max: 16,
            requests_in_flight_max: 8,
            bytes_in_flight_max: 256 << 10,
            body_length_max: BODY_LENGTH_MAX,
            fill_concurrency: 2,
            fill_queue_max: 8,
            metadata_queue_max: 8,
            load_concurrency: 2,
            files_max: 64,
            send_timeout_ms: 1000,
            idle_timeout_ms: 0,
            drain_timeout_ms: 1000,
        }
    }

    /// The defaults, but for what depends on other values: no source, no shards, no cores.
    fn unset() -> Config {
        Config {
            source: PathBuf::new(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7070)),
            socket: PathBuf::from(AUTOMATIC),
            zero_copy: ZeroCopy::Auto,
            lease_ms: 10_000,
            lease_percent: 50,
            advertise: String::new(),
            shards: 0,
            cpus: Vec::new(),
            memory: GIB as usize,
            block_size: MIB as u32,
            connections_max: 4096,
            requests_in_flight_max: 256,
            bytes_in_flight_max: 32 << 20,
            body_length_max: BODY_LENGTH_MAX,
            fill_concurrency: 16,
            fill_queue_max: 1024,
            metadata_queue_max: 1024,
            load_concurrency: 64,
            files_max: 100_000,
            send_timeout_ms: 30_000,
            idle_timeout_ms: 0,
            drain_timeout_ms: 10_000,
        }
    }

    /// Fills in cores and shards where nobody named them: a shard per core, as far as memory goes,
    /// so that a small `memory` alone works on a large machine.
    fn complete(&mut self) {
        if self.cpus.is_empty() {
            self.cpus = usable_cpus();
        }
        if self.shards == 0 {
            let fit = self.memory / self.shard_memory_min();
            self.shards = self.cpus.len().min(fit).clamp(1, SHARDS_MAX);
        }
    }

    /// Least memory of one shard with this block size.
    fn shard_memory_min(&self) -> usize {
        SHARD_MEMORY_MIN.max(SHARD_BLOCKS_MIN * self.block_size as usize)
    }

    /// Checks every value and the rules between them; what [`Config::load`] returns has passed.
    ///
    /// # Errors
    /// [`ConfigError::NoSource`], [`ConfigError::Value`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.source.as_os_str().is_empty() {
            return Err(ConfigError::NoSource);
        }
        for key in KEYS {
            if let Access::Count(number) | Access::Size(number) = &key.access
                && !(number.min..=number.max).contains(&(number.get)(self))
            {
                return Err(value_error(key, &key.get(self), Origin::Default));
            }
        }
        if !is_host(&self.advertise) {
            return self.refuse("advertise", None);
        }
        // `Hello` names every shard: 8 bytes for the text, brackets, a colon and a port each.
        if self.shards * (self.advertise.len() + 16) > BODY_LENGTH_MAX as usize - 1024 {
            let allowed = format!("a shorter name: it is told for each of {} shards", self.shards);
            return self.refuse("advertise", Some(allowed));
        }
        if !self.block_size.is_power_of_two() {
            return self.refuse("block_size", Some("a power of two from 64KiB to 16MiB".into()));
        }
        self.validate_cpus()?;
        let memory_min = self.shards * self.shard_memory_min();
        if self.memory < memory_min {
            let allowed = format!(
                "at least {}: {} shard(s) of {SHARD_BLOCKS_MIN} blocks of {} and of {} each",
                format_size(memory_min as u64),
                self.shards,
                format_size(self.block_size.into()),
                format_size(SHARD_MEMORY_MIN as u64),
            );
            return self.refuse("memory", Some(allowed));
        }
        if self.bytes_in_flight_max < self.block_size as usize {
            let allowed = format!("at least one block of {}", format_size(self.block_size.into()));
            return self.refuse("bytes_in_flight_max", Some(allowed));
        }
        Ok(())
    }

    fn validate_cpus(&self) -> Result<(), ConfigError> {
        let usable = usable_cpus();
        let once = (1..self.cpus.len()).all(|end| !self.cpus[..end].contains(&self.cpus[end]));
        if !once || !self.cpus.iter().all(|cpu| usable.contains(cpu)) {
            let allowed = format!("cores of {}, each once", format_cpus(&usable));
            return self.refuse("cpus", Some(allowed));
        }
        if self.cpus.len() < self.shards {
            let allowed = format!("at most one shard per core of {}", format_cpus(&self.cpus));
            return self.refuse("shards", Some(allowed));
        }
        Ok(())
    }

    fn refuse(&self, name: &str, allowed: Option<String>) -> Result<(), ConfigError> {
        let key = Key::find(name).expect("rules name keys of the table");
        let mut error = value_error(key, &key.get(self), Origin::Default);
        if let (ConfigError::Value { allowed: text, example, .. }, Some(allowed)) =
            (&mut error, allowed)
        {
            *text = allowed;
            *example = self.example_that_fits(name).unwrap_or_else(|| example.clone());
        }
        Err(error)
    }

    /// For a rule between keys, a value that keeps it: the table's example may not.
    fn example_that_fits(&self, name: &str) -> Option<String> {
        match name {
            "memory" => Some(format_size((self.shards * self.shard_memory_min()) as u64)),
            "bytes_in_flight_max" => Some(format_size(u64::from(self.block_size) * 4)),
            "shards" => Some(self.cpus.len().to_string()),
            "cpus" => Some(format_cpus(&usable_cpus())),
            _ => None,
        }
    }

    /// The effective values as text, in the order of [`KEYS`].
    pub fn describe(&self) -> Vec<(&'static str, String)> {
        KEYS.iter().map(|key| (key.name, key.get(self))).collect()
    }
}

const VARIABLE_PREFIX: &str = "MILLRACE_";

/// The variables that set keys; names become those of [`KEYS`].
fn environment_layer(environment: impl IntoIterator<Item = (String, String)>) -> Layer {
    let values = environment
        .into_iter()
        .filter(|(name, value)| !is_foreign_variable(name, value))
        .filter_map(|(name, value)| {
            let name = name.strip_prefix(VARIABLE_PREFIX)?;
            Some((name.to_ascii_lowercase(), value))
        })
        .collect();
    Layer { origin: Origin::Environment, values }
}

/// Variables with our prefix that are not ours to judge: `MILLRACE_LOG` belongs to logging, and
/// Kubernetes puts `MILLRACE_SERVICE_HOST`, `MILLRACE_PORT=tcp://..`, `MILLRACE_PORT_7070_TCP` and the
/// like into every pod beside a service of the name `millrace`.
fn is_foreign_variable(name: &str, value: &str) -> bool {
    name == "MILLRACE_LOG"
        || name.starts_with("MILLRACE_SERVICE_")
        || name.starts_with("MILLRACE_PORT_")
        || (name == "MILLRACE_PORT" && value.contains("://"))
}

/// Reads a TOML file of scalars and lists of scalars.
fn file_layer(file: &Path) -> Result<Layer, ConfigError> {
    let origin = Origin::File(file.to_owned());
    let text = std::fs::read_to_string(file)
        .map_err(|error| ConfigError::Read { file: file.to_owned(), error })?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let position = error.span().map_or(0, |span| span.start).min(text.len());
        ConfigError::Syntax {
            file: file.to_owned(),
            line: 1 + text.as_bytes()[..position].iter().filter(|byte| **byte == b'\n').count(),
            message: error.message().to_owned(),
        }
    })?;
    let mut values = Vec::with_capacity(table.len());
    for (name, value) in table {
        let key = Key::find(&name).ok_or_else(|| unknown_key(&origin, &name))?;
        let text = value_text(&value)
            .ok_or_else(|| value_error(key, &value.to_string(), origin.clone()))?;
        values.push((name, text));
    }
    Ok(Layer { origin, values })
}

/// A scalar as text, or a list of them joined by commas.
fn value_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Array(values) if !values.iter().any(toml::Value::is_array) => {
            let texts: Option<Vec<String>> = values.iter().map(value_text).collect();
            Some(texts?.join(","))
        }
        toml::Value::Array(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

fn value_error(key: &'static Key, value: &str, origin: Origin) -> ConfigError {
    ConfigError::Value {
        origin,
        key,
        value: value.to_owned(),
        allowed: key.allowed(),
        example: key.example.to_owned(),
    }
}

fn unknown_key(origin: &Origin, name: &str) -> ConfigError {
    let nearest = KEYS
        .iter()
        .max_by(|a, b| {
            let nearness = |key: &Key| strsim::jaro_winkler(key.name, name);
            nearness(a).total_cmp(&nearness(b))
        })
        .expect("the table is not empty");
    let (given, nearest) = match origin {
        Origin::File(file) => {
            (format!("key `{name}` in {}", file.display()), nearest.name.to_owned())
        }
        Origin::Environment => (
            format!("environment variable `{VARIABLE_PREFIX}{}`", name.to_ascii_uppercase()),
            nearest.variable(),
        ),
        Origin::Flags => (format!("flag `--{}`", name.replace('_', "-")), nearest.flag()),
        Origin::Default => (format!("key `{name}`"), nearest.name.to_owned()),
    };
    ConfigError::UnknownKey { given, nearest }
}

#[cfg(test)]
mod tests;
