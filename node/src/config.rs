//! The configuration: one checked [`Config`] out of four layers.
//!
//! ```text
//!  built-in defaults  <  TOML file  <  environment (MILLRACE_<KEY>)  <  flags (--<key>)
//! ```
//!
//! [`KEYS`] is the one table of what can be set: flags, variables, file keys, help, ranges, defaults and
//! `--print-config` all come from it. Every layer is turned into text first, so one parser for each key
//! serves all. A value outside its range is refused in whichever layer it stands, even where a later
//! layer overrides it; rules between keys judge the final values. The first problem is reported.
//!
//! Nothing here touches the source: whether that directory exists is found when the node opens it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use millrace_ops::settings::{
    self, Access, FileError, LIST_SEPARATOR, Settings, VARIABLE_PREFIX, value_text,
};
use millrace_ops::size::format_size;
use millrace_proto::frame::BODY_LENGTH_MAX;
use millrace_proto::terms::StaleAfter;

mod coordination;
mod credentials;
mod disks;
mod keys;
mod mounts;
mod sources;
mod text;

use crate::flash::DiskSize;
use crate::local::AUTOMATIC;
pub use coordination::Coordination;
pub use credentials::{CredentialOptions, Credentials};
pub use keys::{
    BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, KEYS, SHARD_BLOCKS_MIN, SHARD_MEMORY_MIN, SHARDS_MAX,
};
pub use mounts::MountOptions;
pub use text::usable_cpus;
use text::{format_cpus, is_host};

/// Whether large replies over TCP leave without a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroCopy {
    /// To other machines, until the kernel reports that it still copies.
    Auto,
    /// To all, whatever the kernel reports. To measure and to test it.
    Always,
    /// Never.
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

/// All settings of a node. Sizes are bytes; the keys are documented in [`KEYS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory that is served.
    pub source: PathBuf,
    /// Options of stores on other machines, for all of them.
    pub source_options: Vec<(String, String)>,
    /// True if clients may write to the source.
    pub writable: bool,
    /// Name of the credential of the source; empty for what the environment has.
    pub source_credential: String,
    /// Credentials of stores, by their names.
    pub credentials: Credentials,
    /// How long look-ups are believed at mounts that do not say; None for what the kind of source asks for.
    pub stale_after: Option<StaleAfter>,
    /// Directories below which sources may lie; empty for the source alone.
    pub mount_roots: Vec<PathBuf>,
    /// Address to listen on; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Unix socket to listen at as well; `auto` for an abstract name, empty for none.
    pub socket: PathBuf,
    /// Mode, owner and group of the Unix sockets; empty names for the node's own.
    pub socket_mode: u32,
    pub socket_user: String,
    pub socket_group: String,
    /// Administration socket; `auto` for a place that the CLI finds, empty for none.
    pub admin: PathBuf,
    /// File with the token by which administrators are recognised over TCP; empty for none.
    pub admin_token: PathBuf,
    /// Where pages for operators are served, or none.
    pub http: Option<SocketAddr>,
    /// Whether large replies are sent by reference.
    pub zero_copy: ZeroCopy,
    /// How long a lease lasts; 0 for none at all.
    pub lease_ms: u32,
    /// Share of the memory that may be leased.
    pub lease_percent: u32,
    /// Share of the memory that blocks of pinned paths may hold.
    pub pin_percent: u32,
    /// Host that clients use for shard addresses; empty for the host they connected to.
    pub advertise: String,
    /// Where coordination is.
    pub coord: Coordination,
    /// File with the secret of the cluster; empty for none.
    pub coord_secret: PathBuf,
    /// True if a cluster may do without a secret.
    pub insecure: bool,
    /// Directory for what survives a restart; empty for none.
    pub data: PathBuf,
    /// Options of single mounts, beyond what their file systems say.
    pub mount_options: MountOptions,
    /// Name in the cluster; empty for one that is kept in `data`, or a random one.
    pub node_id: String,
    /// What fails together with this node; empty for nothing in particular.
    pub zone: String,
    /// How long coordination waits for a sign of life.
    pub session_timeout_ms: u32,
    /// Most bytes a second that are taken over from other nodes; 0 for none.
    pub handover_rate: u64,
    /// Directories of the flash tier, with their sizes.
    pub disks: Vec<DiskSize>,
    /// Worker threads, each with its own core and its own part of the cache.
    pub shards: usize,
    /// Cores for the shards, in shard order; surplus ones stay unused.
    pub cpus: Vec<usize>,
    /// Bound for cached blocks and their index.
    pub memory: usize,
    /// True if memory is taken at start, and not as the cache fills.
    pub populate: bool,
    /// Size of a block, a power of two.
    pub block_size: u32,
    /// Most client connections.
    pub connections_max: usize,
    /// Most connections of one address, or of one user over a Unix socket.
    pub connections_per_peer_max: usize,
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
    /// Uploads at once.
    pub upload_concurrency: usize,
    /// A source that takes longer to answer is taken to hang.
    pub source_timeout_ms: u64,
    /// Files remembered.
    pub files_max: usize,
    /// A client that takes no byte for this long is disconnected.
    pub send_timeout_ms: u64,
    /// A client that sends no request for this long is disconnected; 0 for never.
    pub idle_timeout_ms: u64,
    /// Longest wait for replies in flight when the node stops.
    pub drain_timeout_ms: u64,
}

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
    /// Returns `key` as it is written there.
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
    /// A cluster without a secret.
    #[error(
        "no secret: members of a cluster recognise each other by one, so that no other process is believed. \
         Say with --coord-secret FILE (MILLRACE_COORD_SECRET, coord_secret) where it is, the same on \
         every node, or with --insecure that the network is trusted"
    )]
    NoSecret,
    /// Credentials of stores that cannot be used.
    #[error("credentials in {}: {message}", file.display())]
    Credential {
        /// The file.
        file: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// Two settings that contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
    /// There is no directory to serve.
    #[error(
        "no source: say which directory to serve, with flag --source DIR, environment variable \
         MILLRACE_SOURCE or key source in the configuration file"
    )]
    NoSource,
}

/// One setting of a node.
pub type Key = settings::Key<Config>;

impl Settings for Config {
    const KEYS: &'static [Key] = KEYS;
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
        let mut credentials = Credentials::default();
        if let Some(file) = file {
            let (layer, found) = file_layer(file)?;
            layers.push(layer);
            credentials = found;
        }
        layers.push(environment_layer(environment));
        layers.push(Layer {
            origin: Origin::Flags,
            values: flags
                .into_iter()
                .map(|(name, value)| (settings::of_flag(&name), value))
                .collect(),
        });
        Ok(Config { credentials, ..Config::merge(&layers)? })
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

    /// Returns the defaults.
    pub fn production(source: PathBuf) -> Config {
        let mut config = Config { source, ..Config::unset() };
        config.complete();
        config
    }

    /// Returns small limits, so that tests reach them soon, and any free port.
    pub fn tiny(source: PathBuf) -> Config {
        Config {
            source,
            source_options: Vec::new(),
            writable: false,
            source_credential: String::new(),
            credentials: Credentials::default(),
            stale_after: None,
            mount_roots: Vec::new(),
            disks: Vec::new(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            socket: PathBuf::from(AUTOMATIC),
            socket_mode: SOCKET_MODE,
            socket_user: String::new(),
            socket_group: String::new(),
            admin: PathBuf::from(AUTOMATIC),
            admin_token: PathBuf::new(),
            http: None,
            zero_copy: ZeroCopy::Auto,
            lease_ms: 10_000,
            lease_percent: 50,
            pin_percent: 50,
            advertise: String::new(),
            coord: Coordination::None,
            coord_secret: PathBuf::new(),
            insecure: false,
            data: PathBuf::new(),
            mount_options: MountOptions::default(),
            node_id: String::new(),
            zone: String::new(),
            session_timeout_ms: 6000,
            handover_rate: 256 << 20,
            shards: 1,
            cpus: usable_cpus(),
            memory: 8 << 20,
            populate: true,
            block_size: BLOCK_SIZE_MIN,
            connections_max: 16,
            connections_per_peer_max: 16,
            requests_in_flight_max: 8,
            bytes_in_flight_max: 256 << 10,
            body_length_max: BODY_LENGTH_MAX,
            fill_concurrency: 2,
            fill_queue_max: 8,
            metadata_queue_max: 8,
            load_concurrency: 2,
            upload_concurrency: 2,
            source_timeout_ms: 10_000,
            files_max: 64,
            send_timeout_ms: 1000,
            idle_timeout_ms: 0,
            drain_timeout_ms: 1000,
        }
    }

    /// Returns the defaults, without those that depend on other values: no source, no shards, no cores.
    fn unset() -> Config {
        Config {
            source: PathBuf::new(),
            source_options: Vec::new(),
            writable: false,
            source_credential: String::new(),
            credentials: Credentials::default(),
            stale_after: None,
            mount_roots: Vec::new(),
            disks: Vec::new(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7070)),
            socket: PathBuf::from(AUTOMATIC),
            socket_mode: SOCKET_MODE,
            socket_user: String::new(),
            socket_group: String::new(),
            admin: PathBuf::from(AUTOMATIC),
            admin_token: PathBuf::new(),
            http: None,
            zero_copy: ZeroCopy::Auto,
            lease_ms: 10_000,
            lease_percent: 50,
            pin_percent: 50,
            advertise: String::new(),
            coord: Coordination::Embedded,
            coord_secret: PathBuf::new(),
            insecure: false,
            data: PathBuf::new(),
            mount_options: MountOptions::default(),
            node_id: String::new(),
            zone: String::new(),
            session_timeout_ms: 6000,
            handover_rate: 256 << 20,
            shards: 0,
            cpus: Vec::new(),
            memory: 1 << 30,
            populate: true,
            block_size: 1 << 20,
            connections_max: 4096,
            connections_per_peer_max: 2048,
            requests_in_flight_max: 256,
            bytes_in_flight_max: 32 << 20,
            body_length_max: BODY_LENGTH_MAX,
            fill_concurrency: 16,
            fill_queue_max: 1024,
            metadata_queue_max: 1024,
            load_concurrency: 64,
            upload_concurrency: 16,
            source_timeout_ms: 10_000,
            files_max: 100_000,
            send_timeout_ms: 30_000,
            idle_timeout_ms: 0,
            drain_timeout_ms: 10_000,
        }
    }

    /// Fills in cores and shards if the configuration names none: a shard for each core, as far as
    /// memory goes, so that a small `memory` alone works on a large machine.
    fn complete(&mut self) {
        if self.cpus.is_empty() {
            self.cpus = usable_cpus();
        }
        if self.shards == 0 {
            let fit = self.memory / self.shard_memory_min();
            self.shards = self.cpus.len().min(fit).clamp(1, SHARDS_MAX);
        }
    }

    /// Returns the least memory of one shard with this block size.
    fn shard_memory_min(&self) -> usize {
        SHARD_MEMORY_MIN.max(SHARD_BLOCKS_MIN * self.block_size as usize)
    }

    /// Checks every value and the rules between them; what [`Config::load`] returns has passed.
    ///
    /// # Errors
    /// [`ConfigError::NoSource`], [`ConfigError::Value`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        let in_cluster = matches!(self.coord, Coordination::Ensemble { .. });
        if self.source.as_os_str().is_empty() && !in_cluster {
            return Err(ConfigError::NoSource);
        }
        if in_cluster && self.coord_secret.as_os_str().is_empty() && !self.insecure {
            return Err(ConfigError::NoSecret);
        }
        if in_cluster && self.mount_options.compares_any() {
            // Each node would know only what it saw itself, and members would have two contents in one
            // version.
            let allowed = "no `content` in a cluster (`coord`), whose nodes do not know what others saw: \
                           use `device`, give each content a path of its own, or serve that source from \
                           a node without `coord`";
            return self.refuse("mount_options", Some(allowed.to_owned()));
        }
        self.validate_secrets(in_cluster)?;
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

    /// Checks that settings of secrets and sockets have an effect, because an operator would rely on one
    /// that does nothing.
    fn validate_secrets(&self, in_cluster: bool) -> Result<(), ConfigError> {
        let has_secret = !self.coord_secret.as_os_str().is_empty();
        let contradiction = if has_secret && !in_cluster {
            "--coord-secret (coord_secret) is the secret of a cluster, and this node is in none; say with \
             --coord zk://HOST:PORT/PATH where its coordination is, or leave the secret out"
        } else if has_secret && self.insecure {
            "--coord-secret (coord_secret) and --insecure (insecure) contradict each other; leave --insecure \
             out to have the secret count, or --coord-secret to trust the network"
        } else if self.socket == self.admin && self.socket.is_absolute() {
            "--socket (socket) and --admin (admin) name the same path; give each a path of its own, because \
             clients may use the one and administrators the other"
        } else {
            return Ok(());
        };
        Err(ConfigError::Contradiction(contradiction))
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

    /// Returns a value that keeps a rule between keys, because the table's example may not.
    fn example_that_fits(&self, name: &str) -> Option<String> {
        match name {
            "memory" => Some(format_size((self.shards * self.shard_memory_min()) as u64)),
            "bytes_in_flight_max" => Some(format_size(u64::from(self.block_size) * 4)),
            "shards" => Some(self.cpus.len().to_string()),
            "mount_options" => Some("models=shared".to_owned()),
            "cpus" => Some(format_cpus(&usable_cpus())),
            _ => None,
        }
    }

    /// Returns the effective values as text, in the order of [`KEYS`].
    pub fn describe(&self) -> Vec<(&'static str, String)> {
        settings::describe(self)
    }
}

/// Mode of the Unix sockets: for the node's user and group.
const SOCKET_MODE: u32 = 0o660;

/// Returns the variables that set keys; names become those of [`KEYS`].
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

/// True if a variable with our prefix is not ours to check: `MILLRACE_LOG` belongs to logging, and
/// Kubernetes puts `MILLRACE_SERVICE_HOST`, `MILLRACE_PORT=tcp://..`, `MILLRACE_PORT_7070_TCP` and the
/// like into every pod beside a service of the name `millrace`.
fn is_foreign_variable(name: &str, value: &str) -> bool {
    name == "MILLRACE_LOG"
        || name.starts_with("MILLRACE_SERVICE_")
        || name.starts_with("MILLRACE_PORT_")
        || (name == "MILLRACE_PORT" && value.contains("://"))
}

/// Reads a TOML file of scalars and lists of scalars, and of tables with credentials.
fn file_layer(file: &Path) -> Result<(Layer, Credentials), ConfigError> {
    let origin = Origin::File(file.to_owned());
    let mut table = settings::read_toml(file).map_err(|error| match error {
        FileError::Read(error) => ConfigError::Read { file: file.to_owned(), error },
        FileError::Syntax { line, message } => {
            ConfigError::Syntax { file: file.to_owned(), line, message }
        }
    })?;
    let credentials = table.remove(credentials::TABLE);
    let credentials = credentials.map(|tables| Credentials::read(file, &tables)).transpose()?;
    let mut values = Vec::with_capacity(table.len());
    for (name, value) in table {
        let key = Key::find(&name).ok_or_else(|| unknown_key(&origin, &name))?;
        if key.is_mode() && !value.is_str() {
            return Err(ConfigError::Value {
                origin,
                key,
                value: value.to_string(),
                allowed: format!(
                    "{} and in quotes, because a number without them is not read as octal",
                    key.allowed()
                ),
                example: format!("\"{}\"", key.example),
            });
        }
        let separator = if key.is_list() { LIST_SEPARATOR } else { ',' };
        let text = value_text(&value, separator)
            .ok_or_else(|| value_error(key, &value.to_string(), origin.clone()))?;
        values.push((name, text));
    }
    Ok((Layer { origin, values }, credentials.unwrap_or_default()))
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
    let nearest = Key::nearest(name);
    let (given, nearest) = match origin {
        Origin::File(file) => {
            (format!("key `{name}` in {}", file.display()), nearest.name.to_owned())
        }
        Origin::Environment => (
            format!("environment variable `{VARIABLE_PREFIX}{}`", name.to_ascii_uppercase()),
            nearest.variable(),
        ),
        Origin::Flags => (format!("flag `{}`", settings::as_flag(name)), nearest.flag()),
        Origin::Default => (format!("key `{name}`"), nearest.name.to_owned()),
    };
    ConfigError::UnknownKey { given, nearest }
}

#[cfg(test)]
mod tests;
