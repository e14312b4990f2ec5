//! The configuration of a replica: one checked [`Config`] from three sources.
//!
//! ```text
//!  built-in defaults  <  a file: our TOML, or zoo.cfg with myid and -D properties  <  flags
//! ```
//!
//! [`KEYS`] is the one table of settings. Its names are the keys of TOML and the flags, and the keys of
//! `zoo.cfg` map to them (`config/zoo.rs`). Every source is turned into text first, so one parser for each
//! key serves all. An unknown key of our own is an error that names the nearest known one. An unknown key
//! of `zoo.cfg` is a warning, because such files outlive versions. The first problem is reported, with its
//! place.
//!
//! Defaults are ZooKeeper's, except these. All four-letter words that only report are answered, not `srvr`
//! alone. TTL nodes are on. The admin endpoint is off, and ZooKeeper's is open to all on 8080. Connections,
//! watches and replies have limits. Without a `zoo.cfg` clients are served on loopback only, and a tick is
//! 2000 ms as in ZooKeeper's sample file.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use millrace_ops::host::{resolve, split_host_port};
use millrace_ops::settings::{self, FileError, Settings};

mod keys;
pub mod members;
mod properties;
mod text;
mod words;
mod zoo;

pub use keys::KEYS;
use keys::{GIB, MIB};
use members::check_members;
pub use members::{Member, MemberError, Role};
pub use words::Word;

/// All settings of a replica; [`KEYS`] documents them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory of the state.
    pub data_dir: PathBuf,
    /// Directory of the log.
    pub log_dir: PathBuf,
    /// Address that clients are served at; port 0 takes any free one.
    pub client_address: SocketAddr,
    /// Id of this replica among the members, from 1 to 65535; 1 if there are none.
    pub replica_id: u64,
    /// The first members of the ensemble; empty for a replica by itself. Later changes are replicated.
    pub members: Vec<Member>,
    /// True if peers are listened for on every interface, not only at the address in `members`.
    pub peer_listen_all: bool,
    /// Address to listen for peers at, if `members` names one that is mapped to it.
    pub peer_listen: Option<SocketAddr>,
    /// ZooKeeper's unit of time, in milliseconds.
    pub tick_ms: u64,
    /// Ticks that a follower may take to catch up. Only `conf` shows them, because Raft has no such limit.
    pub init_limit_ticks: u64,
    /// Ticks that a follower may lag. Only `conf` shows them.
    pub sync_limit_ticks: u64,
    /// Shortest time-out of a session.
    pub min_session_timeout_ms: u64,
    /// Longest time-out of a session.
    pub max_session_timeout_ms: u64,
    /// Most connections from one address; 0 for no such limit.
    pub max_client_connections_per_ip: usize,
    /// Most connections.
    pub max_client_connections: usize,
    /// Most connections that wait to be accepted.
    pub listen_backlog: u32,
    /// Longest request, without its length.
    pub max_message_bytes: usize,
    /// Most reply bytes not yet sent on one connection.
    pub client_output_max_bytes: usize,
    /// Most writes that wait for a leader to take them. Above this no request is read.
    pub outstanding_max: usize,
    /// Most paths that one client watches.
    pub watches_per_client_max: usize,
    /// The four-letter words with an answer.
    pub four_letter_whitelist: Vec<Word>,
    /// True if reads are served without a leader, to clients that ask for it.
    pub read_only_mode: bool,
    /// True if reconfig requests are accepted.
    pub reconfig_enabled: bool,
    /// The digest id that makes its holder `super`. Never shown.
    pub super_digest: Option<String>,
    /// True if ACLs are not checked.
    pub skip_acl: bool,
    /// True if writes that exceed a hard quota are refused.
    pub enforce_quota: bool,
    /// True if nodes with a time to live are accepted.
    pub ttl_nodes: bool,
    /// Milliseconds between two searches for containers and TTL nodes that are due.
    pub container_check_ms: u64,
    /// The admin endpoint, or none.
    pub admin: Option<SocketAddr>,
    /// Path of the admin endpoint's commands, without a slash at the end.
    pub admin_commands_path: String,
    /// Endpoint for only `/metrics` and `/health`, or none.
    pub metrics: Option<SocketAddr>,
    /// Largest size of the state: address space, not memory.
    pub map_size_bytes: u64,
    /// Most bytes of the write-ahead log's files.
    pub log_max_bytes: u64,
    /// Longest time between durable checkpoints of a state that changed.
    pub checkpoint_interval_ms: u64,
    /// Bytes of changes in memory after which a checkpoint is due at once.
    pub checkpoint_log_bytes: u64,
    /// Log bytes kept behind the checkpoint for followers that lag.
    pub log_retain_bytes: u64,
    /// Silence of the leader after which a follower stands for election. Chance makes it up to twice as
    /// long.
    pub election_timeout_ms: u64,
    /// Milliseconds between two heartbeats of the leader.
    pub heartbeat_ms: u64,
    /// Settings without effect, and unknown ones of a `zoo.cfg`.
    pub warnings: Vec<String>,
}

/// One setting of a replica.
pub type Key = settings::Key<Config>;

impl Settings for Config {
    const KEYS: &'static [Key] = KEYS;

    fn parse_count(text: &str) -> Option<u64> {
        text::parse_count(text)
    }

    fn parse_size(text: &str) -> Option<u64> {
        text::parse_size(text)
    }

    fn parse_flag(text: &str) -> Option<bool> {
        text::parse_flag(text)
    }
}

/// Ticks in the shortest and in the longest session time-out, if these are not given (ZooKeeper's).
const SESSION_TICKS: (u64, u64) = (2, 20);

/// Where the settings of a file come from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// No file: defaults and flags.
    None,
    /// Our own file.
    Toml(&'a Path),
    /// An ordinary `zoo.cfg`, the `myid` beside its data, and Java's `-Dname=value`, without `-D`.
    ZooKeeper {
        /// The file.
        file: &'a Path,
        /// Names and values; names that are not ZooKeeper's are ignored.
        properties: &'a [(String, String)],
    },
}

/// The reason that there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The error of the system.
        error: std::io::Error,
    },
    /// A file does not follow its syntax.
    #[error("{}, line {line}: {message}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The mistake.
        message: String,
    },
    /// A name that is not in [`KEYS`].
    #[error("unknown {given}; did you mean `{nearest}`?")]
    UnknownKey {
        /// The given name and its place.
        given: String,
        /// The nearest known name, as that place spells it.
        nearest: String,
    },
    /// A value of the wrong type or outside its range.
    #[error("{place}: `{value}` is not allowed; expected {allowed}, for example `{example}`")]
    Value {
        /// Its place.
        place: String,
        /// The value as text.
        value: String,
        /// The allowed values.
        allowed: String,
        /// An example of an allowed value.
        example: String,
    },
    /// Values that contradict each other, or one that is missing.
    #[error("{0}")]
    Rule(String),
    /// The members are refused.
    #[error("members of the ensemble: {0}")]
    Members(#[from] MemberError),
}

/// An unfinished configuration: values, and the place where each key of [`KEYS`] was set.
struct Draft {
    config: Config,
    places: Vec<Option<String>>,
}

impl Draft {
    fn new() -> Draft {
        Draft { config: Config::unset(), places: vec![None; KEYS.len()] }
    }

    /// Sets a key of [`KEYS`]; errors name `place`.
    fn set(&mut self, name: &str, value: &str, place: String) -> Result<(), ConfigError> {
        let index = index_of(name);
        let key = &KEYS[index];
        if !key.set(&mut self.config, value) {
            return Err(value_error(key, value, place));
        }
        self.places[index] = Some(place);
        Ok(())
    }

    /// True if a source has set the key.
    fn is_set(&self, name: &str) -> bool {
        self.places[index_of(name)].is_some()
    }

    /// Returns the place of a key, for errors about rules between keys.
    fn place(&self, name: &str) -> String {
        self.places[index_of(name)].clone().unwrap_or_else(|| format!("default of {name}"))
    }

    /// Fills in what depends on other keys, and checks the rules between keys.
    fn finish(mut self) -> Result<Config, ConfigError> {
        if self.config.data_dir.as_os_str().is_empty() {
            return Err(ConfigError::Rule(
                "no data directory: give --data-dir DIR, data_dir in the configuration file or \
                 dataDir in zoo.cfg"
                    .to_owned(),
            ));
        }
        let config = &mut self.config;
        if config.log_dir.as_os_str().is_empty() {
            config.log_dir.clone_from(&config.data_dir);
        }
        let place = self.places[index_of("client_address")].as_deref();
        config.listen_as_listed(place)?;
        if config.min_session_timeout_ms == 0 {
            config.min_session_timeout_ms = config.tick_ms * SESSION_TICKS.0;
        }
        if config.max_session_timeout_ms == 0 {
            config.max_session_timeout_ms = config.tick_ms * SESSION_TICKS.1;
        }
        let config = &self.config;
        if config.min_session_timeout_ms > config.max_session_timeout_ms {
            return Err(self.refuse("min_session_timeout_ms", "at most the longest time-out"));
        }
        if config.election_timeout_ms < 3 * config.heartbeat_ms {
            let allowed = "at most a third of the election timeout";
            return Err(self.refuse("heartbeat_ms", allowed));
        }
        check_members(&config.members)?;
        let is_member = config.members.iter().any(|member| member.id == config.replica_id);
        if !config.members.is_empty() && !is_member {
            let ids: Vec<String> =
                config.members.iter().map(|member| member.id.to_string()).collect();
            return Err(
                self.refuse("replica_id", &format!("one of the members {}", ids.join(", ")))
            );
        }
        Ok(self.config)
    }

    fn refuse(&self, name: &str, allowed: &str) -> ConfigError {
        let key = &KEYS[index_of(name)];
        ConfigError::Value {
            place: self.place(name),
            value: key.get(&self.config),
            allowed: allowed.to_owned(),
            example: key.example.to_owned(),
        }
    }
}

impl Config {
    /// Reads a source, applies flags and checks the result. `flags` are pairs of a name, as in [`KEYS`] or
    /// as a flag, and a value.
    ///
    /// # Errors
    /// The first problem, with the place to correct it.
    pub fn load(source: Source<'_>, flags: &[(String, String)]) -> Result<Config, ConfigError> {
        let mut draft = Draft::new();
        match source {
            Source::None => {}
            Source::Toml(file) => read_toml(&mut draft, file)?,
            Source::ZooKeeper { file, properties } => {
                let later = zoo::read(&mut draft, file, properties)?;
                set_flags(&mut draft, flags)?;
                later.complete(&mut draft)?;
                return draft.finish();
            }
        }
        set_flags(&mut draft, flags)?;
        draft.finish()
    }

    /// Builds the defaults for a replica by itself.
    pub fn production(data_dir: PathBuf) -> Config {
        let mut draft = Draft::new();
        draft.config.data_dir = data_dir;
        draft.finish().expect("defaults keep the rules")
    }

    /// Builds a configuration with small limits, so that tests reach them soon, and any free port.
    pub fn tiny(data_dir: PathBuf) -> Config {
        Config {
            client_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tick_ms: 100,
            min_session_timeout_ms: 200,
            max_session_timeout_ms: 2000,
            max_client_connections_per_ip: 0,
            max_client_connections: 32,
            client_output_max_bytes: 2 << 20,
            outstanding_max: 16,
            watches_per_client_max: 64,
            container_check_ms: 100,
            map_size_bytes: 64 << 20,
            log_max_bytes: 64 << 20,
            checkpoint_interval_ms: 50,
            checkpoint_log_bytes: 64 << 10,
            log_retain_bytes: 64 << 10,
            ..Config::production(data_dir)
        }
    }

    /// Builds the defaults; what follows from other keys is 0 or empty.
    fn unset() -> Config {
        Config {
            data_dir: PathBuf::new(),
            log_dir: PathBuf::new(),
            client_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 2181)),
            replica_id: 1,
            members: Vec::new(),
            peer_listen_all: false,
            peer_listen: None,
            tick_ms: 2000,
            init_limit_ticks: 10,
            sync_limit_ticks: 5,
            min_session_timeout_ms: 0,
            max_session_timeout_ms: 0,
            max_client_connections_per_ip: 60,
            max_client_connections: 20_000,
            listen_backlog: 1024,
            max_message_bytes: millrace_proto::zookeeper::MAX_BUFFER,
            client_output_max_bytes: 16 << 20,
            outstanding_max: 1000,
            watches_per_client_max: 1_000_000,
            four_letter_whitelist: Word::harmless(),
            read_only_mode: false,
            reconfig_enabled: false,
            super_digest: None,
            skip_acl: false,
            enforce_quota: false,
            ttl_nodes: true,
            container_check_ms: 60_000,
            admin: None,
            admin_commands_path: "/commands".to_owned(),
            metrics: None,
            map_size_bytes: 64 * GIB,
            log_max_bytes: 16 * GIB,
            checkpoint_interval_ms: 5000,
            checkpoint_log_bytes: 16 * MIB,
            log_retain_bytes: 256 * MIB,
            election_timeout_ms: 400,
            heartbeat_ms: 50,
            warnings: Vec::new(),
        }
    }

    /// Serves clients where this replica's own line says, if no key or flag says where (`place`); a key that says
    /// something else is warned of, because clients are told what the line says.
    fn listen_as_listed(&mut self, place: Option<&str>) -> Result<(), ConfigError> {
        let own = self.own_member().and_then(|own| own.client_address.as_deref());
        let Some((host, port)) = own.and_then(split_host_port) else { return Ok(()) };
        let Some(place) = place else {
            self.client_address = resolve(host, port).map_err(|error| {
                ConfigError::Rule(format!("client address {host}:{port}: {error}"))
            })?;
            return Ok(());
        };
        if port != self.client_address.port() {
            self.warnings.push(format!(
                "{place}: clients are served at {}, but are told {host}:{port}, as this replica's \
                 own line of members ends",
                self.client_address
            ));
        }
        Ok(())
    }

    /// Returns this replica's member; `None` if there are no members.
    pub fn own_member(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.id == self.replica_id)
    }

    /// Lists the effective values as text, in the order of [`KEYS`], without the secret.
    pub fn describe(&self) -> Vec<(&'static str, String)> {
        settings::describe(self)
    }
}

fn set_flags(draft: &mut Draft, flags: &[(String, String)]) -> Result<(), ConfigError> {
    for (name, value) in flags {
        let name = settings::of_flag(name);
        let key = Key::find(&name).ok_or_else(|| {
            let given = format!("flag `{}`", settings::as_flag(&name));
            ConfigError::UnknownKey { given, nearest: Key::nearest(&name).flag() }
        })?;
        draft.set(key.name, value, format!("flag {}", key.flag()))?;
    }
    Ok(())
}

/// Reads a TOML file of scalars and lists of scalars.
fn read_toml(draft: &mut Draft, file: &Path) -> Result<(), ConfigError> {
    let table = settings::read_toml(file).map_err(|error| match error {
        FileError::Read(error) => ConfigError::Read { file: file.to_owned(), error },
        FileError::Syntax { line, message } => ConfigError::Syntax {
            file: file.to_owned(),
            line,
            message: format!("not valid TOML: {message}"),
        },
    })?;
    for (name, value) in table {
        let place = format!("key {name} in {}", file.display());
        let key = Key::find(&name).ok_or_else(|| ConfigError::UnknownKey {
            given: format!("key `{name}` in {}", file.display()),
            nearest: Key::nearest(&name).name.to_owned(),
        })?;
        let text = settings::value_text(&value, ',')
            .ok_or_else(|| value_error(key, &value.to_string(), place.clone()))?;
        draft.set(key.name, &text, place)?;
    }
    Ok(())
}

fn read_file(file: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(file)
        .map_err(|error| ConfigError::Read { file: file.to_owned(), error })
}

fn index_of(name: &str) -> usize {
    let index = KEYS.iter().position(|key| key.name == name);
    index.expect("only names of the table are looked up")
}

fn value_error(key: &Key, value: &str, place: String) -> ConfigError {
    ConfigError::Value {
        place,
        value: value.to_owned(),
        allowed: key.allowed(),
        example: key.example.to_owned(),
    }
}

#[cfg(test)]
mod tests;
