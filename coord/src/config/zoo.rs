//! ZooKeeper's own configuration: `zoo.cfg`, a dynamic file, `myid` and Java's system properties.
//!
//! [`ZOO_KEYS`] has the effect of each name. As in ZooKeeper, any name of `zoo.cfg` may also be a property
//! with the prefix `zookeeper.`, and the file wins over properties. A name without meaning here is ignored
//! if its loss costs nothing, and gives a warning if users rely on it. A bad value is an error that names
//! file, line and the allowed values.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use millrace_ops::host::{resolve, split_host_port};
use millrace_ops::settings::nearest;

use super::members::{Member, Role, parse_version};
use super::properties::{self, Property};
use super::text::{parse_count, parse_flag};
use super::words::parse_words;
use super::{ConfigError, Draft, read_file};

/// The effect of a name.
enum KeyEffect {
    /// Sets this key of ours.
    Key(&'static str),
    /// Sets this key of ours, but a negative number stands for the default.
    KeyOrDefault(&'static str),
    /// Calls this function.
    Special(fn(&mut Zoo, &mut Draft, &Setting) -> Result<(), ConfigError>),
    /// Has no effect, because it tunes what does not exist here.
    Ignored,
    /// Gives a warning, unless the value turns it off.
    Unsupported(&'static str),
}

/// A name of `zoo.cfg`. A name that ends with a dot stands for all that begin with it.
struct ZooKey {
    name: &'static str,
    effect: KeyEffect,
}

const fn zoo(name: &'static str, effect: KeyEffect) -> ZooKey {
    ZooKey { name, effect }
}

use KeyEffect::{Ignored, Key, KeyOrDefault, Special, Unsupported};

const NO_TLS: &str = "TLS is not supported yet: only plain connections are served";
const NO_SASL: &str = "SASL is not supported: clients authenticate with digest or ip";
const NO_LOCAL_SESSIONS: &str = "all sessions are replicated";
const NO_GROUPS: &str = "each participant has one vote";

/// Every known name.
const ZOO_KEYS: &[ZooKey] = &[
    zoo("tickTime", Key("tick_ms")),
    zoo("dataDir", Key("data_dir")),
    zoo("dataLogDir", Key("log_dir")),
    zoo("clientPort", Special(Zoo::client_port)),
    zoo("clientPortAddress", Special(Zoo::client_host)),
    zoo("clientPortListenBacklog", KeyOrDefault("listen_backlog")),
    zoo("maxClientCnxns", Key("max_client_connections_per_ip")),
    zoo("maxCnxns", Special(Zoo::connections_max)),
    zoo("minSessionTimeout", KeyOrDefault("min_session_timeout_ms")),
    zoo("maxSessionTimeout", KeyOrDefault("max_session_timeout_ms")),
    zoo("initLimit", Special(Zoo::init_limit)),
    zoo("syncLimit", Special(Zoo::sync_limit)),
    zoo("server.", Special(Zoo::server)),
    zoo("version", Special(Zoo::version)),
    zoo("peerType", Special(Zoo::peer_type)),
    zoo("dynamicConfigFile", Special(Zoo::dynamic_file)),
    zoo("quorumListenOnAllIPs", Key("peer_listen_all")),
    zoo("reconfigEnabled", Key("reconfig_enabled")),
    zoo("readonlymode.enabled", Key("read_only_mode")),
    zoo("extendedTypesEnabled", Key("ttl_nodes")),
    zoo("skipACL", Key("skip_acl")),
    zoo("enforceQuota", Key("enforce_quota")),
    zoo("DigestAuthenticationProvider.superDigest", Key("super_digest")),
    zoo("znode.container.checkIntervalMs", Key("container_check_ms")),
    zoo("globalOutstandingLimit", Key("outstanding_max")),
    zoo("jute.maxbuffer", Key("max_message_bytes")),
    zoo("4lw.commands.whitelist", Special(Zoo::whitelist)),
    zoo("admin.enableServer", Special(Zoo::admin_enabled)),
    zoo("admin.serverPort", Special(Zoo::admin_port)),
    zoo("admin.serverAddress", Special(Zoo::admin_host)),
    zoo("admin.commandURL", Special(Zoo::admin_path)),
    zoo("metricsProvider.className", Special(Zoo::metrics_class)),
    zoo("metricsProvider.httpPort", Special(Zoo::metrics_port)),
    zoo("metricsProvider.httpHost", Special(Zoo::metrics_host)),
    zoo("secureClientPort", Unsupported(NO_TLS)),
    zoo("secureClientPortAddress", Unsupported(NO_TLS)),
    zoo("ssl.", Unsupported(NO_TLS)),
    zoo("sslQuorum", Unsupported(NO_TLS)),
    zoo("sslQuorumReloadCertFiles", Unsupported(NO_TLS)),
    zoo("portUnification", Unsupported(NO_TLS)),
    zoo("client.portUnification", Unsupported(NO_TLS)),
    zoo("authProvider.", Unsupported("only the schemes world, auth, digest and ip are known")),
    zoo("X509AuthenticationProvider.superUser", Unsupported(NO_TLS)),
    zoo("superUser", Unsupported(NO_SASL)),
    zoo("quorum.auth.", Unsupported(NO_SASL)),
    zoo("enforce.auth.", Unsupported("no scheme is enforced")),
    zoo("sessionRequireClientSASLAuth", Unsupported(NO_SASL)),
    zoo("localSessionsEnabled", Unsupported(NO_LOCAL_SESSIONS)),
    zoo("localSessionsUpgradingEnabled", Unsupported(NO_LOCAL_SESSIONS)),
    zoo("group.", Unsupported(NO_GROUPS)),
    zoo("weight.", Unsupported(NO_GROUPS)),
    zoo("observerMasterPort", Unsupported("observers follow the leader")),
    zoo("forceSync", Special(Zoo::force_sync)),
    zoo("audit.", Unsupported("there is no audit log")),
    zoo("autopurge.", Ignored),
    zoo("leaderServes", Ignored),
    zoo("snapCount", Ignored),
    zoo("snapSizeLimitInKb", Ignored),
    zoo("snapshot.", Ignored),
    zoo("preAllocSize", Ignored),
    zoo("txnLogSizeLimitInKb", Ignored),
    zoo("fsync.warningthresholdms", Ignored),
    zoo("electionAlg", Ignored),
    zoo("electionPortBindRetry", Ignored),
    zoo("cnxTimeout", Ignored),
    zoo("connectToLearnerMasterLimit", Ignored),
    zoo("standaloneEnabled", Ignored),
    zoo("syncEnabled", Ignored),
    zoo("tcpKeepAlive", Ignored),
    zoo("quorum.cnxn.threads.size", Ignored),
    zoo("multiAddress.", Ignored),
    zoo("fastleader.", Ignored),
    zoo("leader.", Ignored),
    zoo("learner.", Ignored),
    zoo("observer.", Ignored),
    zoo("commitProcessor.", Ignored),
    zoo("request_throttle", Ignored),
    zoo("netty.", Ignored),
    zoo("nio.", Ignored),
    zoo("serverCnxnFactory", Ignored),
    zoo("sessionTrackerImpl", Ignored),
    zoo("watchManagerName", Ignored),
    zoo("digest.enabled", Ignored),
    zoo("serializeLastProcessedZxid.enabled", Ignored),
    zoo("maxResponseCacheSize", Ignored),
    zoo("maxGetChildrenResponseCacheSize", Ignored),
    zoo("maxBatchSize", Ignored),
    zoo("flushDelay", Ignored),
    zoo("jvm.pause.", Ignored),
    zoo("jmx.", Ignored),
    zoo("log.", Ignored),
    zoo("log4j.", Ignored),
    zoo("root.logger", Ignored),
    zoo("console.threshold", Ignored),
    zoo("tracelog.", Ignored),
    zoo("metricsProvider.", Ignored),
    zoo("admin.", Ignored),
];

/// Properties that ZooKeeper reads without the prefix `zookeeper.`. All other bare names are Java's.
const BARE_PROPERTIES: [&str; 3] =
    ["readonlymode.enabled", "jute.maxbuffer", "znode.container.checkIntervalMs"];

/// One value with its place.
#[derive(Clone)]
struct Setting {
    name: String,
    value: String,
    place: String,
}

impl Setting {
    fn of_file(file: &Path, property: Property) -> Setting {
        let Property { line, key, value } = property;
        let place = format!("{key} in {}, line {line}", file.display());
        Setting { name: key, value, place }
    }

    fn refuse(&self, allowed: &str, example: &str) -> ConfigError {
        ConfigError::Value {
            place: self.place.clone(),
            value: self.value.clone(),
            allowed: allowed.to_owned(),
            example: example.to_owned(),
        }
    }

    fn port(&self) -> Result<u16, ConfigError> {
        let port = parse_count(&self.value).and_then(|port| u16::try_from(port).ok());
        port.ok_or_else(|| self.refuse("a port, 0 for any free one", "2181"))
    }

    fn flag(&self) -> Result<bool, ConfigError> {
        parse_flag(&self.value).ok_or_else(|| self.refuse("true or false", "true"))
    }

    fn count(&self, max: u64) -> Result<u64, ConfigError> {
        let count = parse_count(&self.value).filter(|count| *count <= max);
        count.ok_or_else(|| self.refuse(&format!("a whole number from 0 to {max}"), "10"))
    }
}

/// Settings of a `zoo.cfg` that become values only together with others.
#[derive(Default)]
pub(super) struct Zoo {
    client_port: Option<Setting>,
    client_host: Option<Setting>,
    admin_enabled: Option<bool>,
    admin_port: Option<u16>,
    admin_host: Option<Setting>,
    is_prometheus: bool,
    metrics_port: Option<u16>,
    metrics_host: Option<Setting>,
    peer_type: Option<Role>,
    dynamic_file: Option<PathBuf>,
    members: Vec<Member>,
}

/// Reads properties and the file into `draft`. Flags may follow before [`Zoo::complete`].
pub(super) fn read(
    draft: &mut Draft,
    file: &Path,
    system_properties: &[(String, String)],
) -> Result<Zoo, ConfigError> {
    draft.config.tick_ms = 3000;
    draft.config.client_address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 2181));
    let mut zoo = Zoo::default();
    for (name, value) in system_properties {
        let place = format!("property -D{name}");
        let stripped = name.strip_prefix("zookeeper.");
        if stripped.is_none() && !BARE_PROPERTIES.contains(&name.as_str()) {
            continue;
        }
        let name = stripped.unwrap_or(name).to_owned();
        zoo.apply(draft, &Setting { name, value: value.clone(), place })?;
    }
    for property in read_properties(file)? {
        zoo.apply(draft, &Setting::of_file(file, property))?;
    }
    if let Some(dynamic) = zoo.dynamic_file.clone() {
        if !zoo.members.is_empty() {
            return Err(ConfigError::Rule(format!(
                "{}: server.N lines belong only in {}, because dynamicConfigFile names it",
                file.display(),
                dynamic.display()
            )));
        }
        for property in read_properties(&dynamic)? {
            zoo.apply(draft, &Setting::of_file(&dynamic, property))?;
        }
    }
    Ok(zoo)
}

fn read_properties(file: &Path) -> Result<Vec<Property>, ConfigError> {
    properties::parse(&read_file(file)?).map_err(|line| ConfigError::Syntax {
        file: file.to_owned(),
        line,
        message: "\\u needs four hexadecimal digits".to_owned(),
    })
}

impl Zoo {
    fn apply(&mut self, draft: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        // Exact names come before the prefixes that they begin with.
        let name = setting.name.strip_prefix("zookeeper.").unwrap_or(&setting.name);
        let exact = ZOO_KEYS.iter().find(|key| key.name == name);
        let known = exact.or_else(|| {
            let begins = |key: &&ZooKey| key.name.ends_with('.') && name.starts_with(key.name);
            ZOO_KEYS.iter().find(begins)
        });
        let Some(known) = known else {
            let nearest = nearest(name, ZOO_KEYS.iter().map(|key| key.name));
            let place = &setting.place;
            draft.config.warnings.push(format!("{place}: unknown; did you mean {nearest}?"));
            return Ok(());
        };
        let is_negative =
            setting.value.starts_with('-') && setting.value[1..].parse::<u64>().is_ok();
        match known.effect {
            KeyOrDefault(_) if is_negative => {}
            Key(key) | KeyOrDefault(key) => {
                draft.set(key, &setting.value, setting.place.clone())?;
            }
            Special(effect) => effect(self, draft, setting)?,
            Ignored => {}
            Unsupported(_) if parse_flag(&setting.value) == Some(false) => {}
            Unsupported(reason) => {
                draft.config.warnings.push(format!("{} is ignored: {reason}", setting.place));
            }
        }
        Ok(())
    }

    fn client_port(&mut self, _: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        setting.port()?;
        self.client_port = Some(setting.clone());
        Ok(())
    }

    fn client_host(&mut self, _: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        self.client_host = Some(setting.clone());
        Ok(())
    }

    fn connections_max(&mut self, draft: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        // ZooKeeper's 0 means no limit; our highest limit stands for it.
        let value = if setting.value == "0" { "1000000" } else { &setting.value };
        draft.set("max_client_connections", value, setting.place.clone())
    }

    fn init_limit(&mut self, draft: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        draft.config.init_limit_ticks = setting.count(1_000_000)?;
        Ok(())
    }

    fn sync_limit(&mut self, draft: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        draft.config.sync_limit_ticks = setting.count(1_000_000)?;
        Ok(())
    }

    fn server(&mut self, draft: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        let example = "host:2888:3888;2181";
        let id = setting.name.strip_prefix("server.").and_then(|id| id.parse().ok());
        let member = id.map(|id| Member::parse(id, &setting.value));
        let Some(Ok(member)) = member else {
            let allowed = "server.N with N from 1 to 65535, and \
                           host:port:port[:participant|observer][;[host:]port]";
            return Err(setting.refuse(allowed, example));
        };
        if setting.value.contains('|') {
            let place = &setting.place;
            let used = &member.peer_address;
            draft.config.warnings.push(format!("{place}: of several addresses {used} is used"));
        }
        self.members.retain(|other| other.id != member.id);
        self.members.push(member);
        Ok(())
    }

    fn version(&mut self, _: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        // The version is only checked, because the ensemble counts its changes itself.
        parse_version(&setting.value).map(|_| ()).map_err(ConfigError::Members)
    }

    fn peer_type(&mut self, _: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        self.peer_type = Some(match setting.value.to_ascii_lowercase().as_str() {
            "participant" => Role::Participant,
            "observer" => Role::Observer,
            _ => return Err(setting.refuse("participant or observer", "observer")),
        });
        Ok(())
    }

    fn dynamic_file(&mut self, _: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        self.dynamic_file = Some(PathBuf::from(&setting.value));
        Ok(())
    }

    fn whitelist(&mut self, draft: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        let (words, unknown) = parse_words(&setting.value);
        if !unknown.is_empty() {
            let warning = format!("{}: unknown words: {}", setting.place, unknown.join(", "));
            draft.config.warnings.push(warning);
        }
        let names: Vec<&str> = words.iter().map(|word| word.name()).collect();
        draft.set("four_letter_whitelist", &names.join(","), setting.place.clone())
    }

    fn force_sync(&mut self, draft: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        if !setting.flag()? {
            let warning = format!("{} is ignored: every write is made durable", setting.place);
            draft.config.warnings.push(warning);
        }
        Ok(())
    }

    fn admin_enabled(&mut self, _: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        self.admin_enabled = Some(setting.flag()?);
        Ok(())
    }

    fn admin_port(&mut self, _: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        self.admin_port = Some(setting.port()?);
        Ok(())
    }

    fn admin_host(&mut self, _: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        self.admin_host = Some(setting.clone());
        Ok(())
    }

    fn admin_path(&mut self, draft: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        let path = setting.value.trim_end_matches('/');
        if !path.starts_with('/') {
            return Err(setting.refuse("a path that begins with a slash", "/commands"));
        }
        path.clone_into(&mut draft.config.admin_commands_path);
        Ok(())
    }

    fn metrics_class(&mut self, draft: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        self.is_prometheus = setting.value.ends_with("PrometheusMetricsProvider");
        if !self.is_prometheus && !setting.value.ends_with("DefaultMetricsProvider") {
            let reason = "Prometheus is the only provider";
            draft.config.warnings.push(format!("{} is ignored: {reason}", setting.place));
        }
        Ok(())
    }

    fn metrics_port(&mut self, _: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        self.metrics_port = Some(setting.port()?);
        Ok(())
    }

    fn metrics_host(&mut self, _: &mut Draft, setting: &Setting) -> Result<(), ConfigError> {
        self.metrics_host = Some(setting.clone());
        Ok(())
    }

    /// Combines the settings of several names, where no flag has set the value.
    pub(super) fn complete(self, draft: &mut Draft) -> Result<(), ConfigError> {
        if !draft.is_set("members") {
            draft.config.members.clone_from(&self.members);
            draft.config.members.sort_by_key(|member| member.id);
        }
        if !draft.is_set("replica_id") && !draft.config.data_dir.as_os_str().is_empty() {
            read_my_id(draft)?;
        }
        if let Some(own) = draft.config.own_member()
            && let Some(peer_type) = self.peer_type
            && own.role != peer_type
        {
            let warning = format!("peerType says {}, but {own}: the list counts", peer_type.name());
            draft.config.warnings.push(warning);
        }
        if !draft.is_set("client_address") {
            self.set_client_address(draft)?;
        }
        let is_admin_asked = self.admin_port.is_some() || self.admin_host.is_some();
        if !draft.is_set("admin") && self.admin_enabled.unwrap_or(is_admin_asked) {
            let port = self.admin_port.unwrap_or(8080);
            let host = self.admin_host.as_ref();
            draft.config.admin = Some(address_of(host, Ipv4Addr::LOCALHOST, port)?);
        }
        if !draft.is_set("metrics") && self.is_prometheus {
            let port = self.metrics_port.unwrap_or(7000);
            let host = self.metrics_host.as_ref();
            draft.config.metrics = Some(address_of(host, Ipv4Addr::UNSPECIFIED, port)?);
        }
        Ok(())
    }

    /// Sets the address from `clientPort`; without it the end of this server's own line counts.
    fn set_client_address(&self, draft: &mut Draft) -> Result<(), ConfigError> {
        let listed = draft.config.own_member().and_then(|own| own.client_address.as_deref());
        let listed_port = listed.and_then(split_host_port).map(|(_, port)| port);
        let Some(setting) = &self.client_port else {
            return listed_port.map(drop).ok_or_else(|| {
                let rule =
                    "clientPort is missing: set it, or end this server's own line with ;port";
                ConfigError::Rule(rule.to_owned())
            });
        };
        let port = setting.port()?;
        if let Some(listed) = listed_port.filter(|listed| *listed != port) {
            let allowed = format!("{listed}, as this server's own line ends");
            return Err(setting.refuse(&allowed, &listed.to_string()));
        }
        let address = address_of(self.client_host.as_ref(), Ipv4Addr::UNSPECIFIED, port)?;
        draft.set("client_address", &address.to_string(), setting.place.clone())
    }
}

fn address_of(
    host: Option<&Setting>,
    default: Ipv4Addr,
    port: u16,
) -> Result<SocketAddr, ConfigError> {
    let Some(host) = host else { return Ok(SocketAddr::new(IpAddr::V4(default), port)) };
    resolve(&host.value, port).map_err(|error| {
        let allowed = format!("the name or address of an interface of this machine ({error})");
        host.refuse(&allowed, "127.0.0.1")
    })
}

/// Reads `myid`, which only a member of an ensemble needs.
fn read_my_id(draft: &mut Draft) -> Result<(), ConfigError> {
    let file = draft.config.data_dir.join("myid");
    match std::fs::read_to_string(&file) {
        Ok(text) => draft.set("replica_id", text.trim(), format!("{}", file.display())),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ConfigError::Read { file, error })
        }
        Err(_) if draft.config.members.is_empty() => Ok(()),
        Err(_) => Err(ConfigError::Rule(format!(
            "{} is missing: write this server's number, the N of its server.N line, into it",
            file.display()
        ))),
    }
}
