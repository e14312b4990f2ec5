//! The sources of the configuration: what each accepts, refuses and warns about.

use super::*;

/// A directory with a `zoo.cfg`; DIR in its text becomes the directory.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.dir.path().join(name);
        std::fs::write(&file, text.replace("DIR", &self.dir.path().display().to_string())).unwrap();
        file
    }

    fn zoo(&self, text: &str, properties: &[(&str, &str)]) -> Result<Config, ConfigError> {
        self.zoo_with_flags(text, properties, &[])
    }

    fn zoo_with_flags(
        &self,
        text: &str,
        properties: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> Result<Config, ConfigError> {
        let file = self.write("zoo.cfg", text);
        let properties = &owned(properties);
        Config::load(Source::ZooKeeper { file: &file, properties }, &owned(flags))
    }

    fn toml(&self, text: &str, flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let file = self.write("coord.toml", text);
        Config::load(Source::Toml(&file), &owned(flags))
    }
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn zoo(text: &str) -> Config {
    Place::new().zoo(text, &[]).expect(text)
}

/// Checks that a `zoo.cfg` with these lines is refused, with a message that has all these parts.
fn check_refused(lines: &str, parts: &[&str]) {
    let text = format!("dataDir=DIR\nclientPort=2181\n{lines}");
    let place = Place::new();
    place.write("myid", "1");
    let error = place.zoo(&text, &[]).expect_err(lines).to_string();
    for part in parts {
        assert!(error.contains(part), "{lines}: `{part}` is not in: {error}");
    }
}

#[test]
fn a_directory_is_all_that_is_needed() {
    let config = Config::load(Source::None, &owned(&[("--data-dir", "/x")])).unwrap();
    assert_eq!(config, Config::production("/x".into()));
    assert_eq!(config.log_dir, Path::new("/x"));
    assert_eq!((config.min_session_timeout_ms, config.max_session_timeout_ms), (4000, 40_000));
    assert!(config.ttl_nodes && config.admin.is_none() && config.members.is_empty());
    assert!(!config.four_letter_whitelist.contains(&Word::Crst));
    assert!(!config.four_letter_whitelist.contains(&Word::Hash), "it is dear");
    assert!(config.four_letter_whitelist.contains(&Word::Mntr));
    let error = Config::load(Source::None, &[]).unwrap_err().to_string();
    assert!(error.contains("--data-dir") && error.contains("dataDir"), "{error}");
}

#[test]
fn the_sample_file_of_zookeeper_is_taken() {
    let config = zoo(
        "# The number of milliseconds of each tick\ntickTime=2000\ninitLimit=10\nsyncLimit=5\n\
         dataDir=DIR\nclientPort=2182\n#maxClientCnxns=60\n#autopurge.snapRetainCount=3\n\
         autopurge.purgeInterval=1\n",
    );
    assert_eq!(config.client_address.to_string(), "0.0.0.0:2182");
    assert_eq!((config.init_limit_ticks, config.sync_limit_ticks), (10, 5));
    assert_eq!(config.max_client_connections_per_ip, 60);
    assert_eq!((config.replica_id, config.warnings.len()), (1, 0));
    assert_eq!(zoo("dataDir=DIR\nclientPort=1").tick_ms, 3000, "the default in ZooKeeper's code");
}

#[test]
fn an_ensemble_takes_its_number_from_myid() {
    let place = Place::new();
    let text = "dataDir=DIR\nclientPort=2181\nserver.3=c:2888:3888:observer\n\
                server.1=a:2888:3888;2181\nserver.2=b:2888:3888\npeerType=observer";
    let error = place.zoo(text, &[]).unwrap_err().to_string();
    assert!(error.contains("myid is missing"), "{error}");
    place.write("myid", "3\n");
    let config = place.zoo(text, &[]).unwrap();
    assert_eq!(config.own_member().map(|own| own.role), Some(Role::Observer));
    assert_eq!(config.members.iter().map(|member| member.id).collect::<Vec<_>>(), [1, 2, 3]);
    place.write("myid", "9");
    let error = place.zoo(text, &[]).unwrap_err().to_string();
    assert!(error.contains("myid") && error.contains("1, 2, 3"), "{error}");
    place.write("myid", "first");
    let error = place.zoo(text, &[]).unwrap_err().to_string();
    assert!(error.contains("myid: `first`"), "{error}");
    let config = place.zoo_with_flags(text, &[], &[("--replica-id", "2")]).unwrap();
    assert_eq!(config.replica_id, 2, "a flag wins");
    assert_eq!(config.warnings.len(), 1, "peerType is another: {:?}", config.warnings);
}

#[test]
fn the_own_line_can_name_the_client_port() {
    let place = Place::new();
    place.write("myid", "1");
    let text = "dataDir=DIR\nserver.1=a:2888:3888;127.0.0.1:2199\n";
    let config = place.zoo(text, &[]).unwrap();
    assert_eq!(config.client_address.to_string(), "127.0.0.1:2199");
    let error = place.zoo(&format!("{text}clientPort=2181"), &[]).unwrap_err().to_string();
    assert!(error.contains("clientPort") && error.contains("2199"), "{error}");
    let error = place.zoo("dataDir=DIR", &[]).unwrap_err().to_string();
    assert!(error.contains("clientPort is missing"), "{error}");
}

#[test]
fn members_may_stand_in_a_dynamic_file() {
    let place = Place::new();
    place.write("myid", "1");
    place.write("members", "server.1=a:2888:3888;2181\nversion=100000000\n");
    let text = "dataDir=DIR\ndynamicConfigFile=DIR/members\n";
    let config = place.zoo(text, &[]).unwrap();
    assert_eq!((config.members.len(), config.client_address.port()), (1, 2181));
    let error = place.zoo(&format!("{text}server.2=b:1:2"), &[]).unwrap_err().to_string();
    assert!(error.contains("dynamicConfigFile"), "{error}");
    let error = place.zoo("dataDir=DIR\ndynamicConfigFile=DIR/none", &[]).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
}

#[test]
fn the_file_that_kazoos_tests_write_is_taken() {
    let place = Place::new();
    place.write("myid", "2");
    let text = "\ntickTime=2000\ndataDir=DIR\nclientPort=20000\nsecureClientPort=20001\n\
                maxClientCnxns=0\nadmin.serverPort=20004\n\
                serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n\
                authProvider.1=org.apache.zookeeper.server.auth.SASLAuthenticationProvider\n\
                ssl.keyStore.location=DIR/k\nssl.keyStore.password=apassword\n\
                localSessionsEnabled=true\nlocalSessionsUpgradingEnabled=true\n\
                initLimit=4\nsyncLimit=2\nserver.1=localhost:20002:20003:participant\n\
                server.2=localhost:20012:20013:participant\npeerType=participant\n";
    let digest = "super:D/InIHSb7yEEbrWz8b9l71RjZJU=";
    let properties = [
        ("file.encoding", "UTF-8"),
        ("readonlymode.enabled", "true"),
        ("zookeeper.log.dir", "/tmp"),
        ("zookeeper.root.logger", "INFO,CONSOLE"),
        ("log4j.configuration", "file:x"),
        ("java.awt.headless", "true"),
        ("zookeeper.DigestAuthenticationProvider.superDigest", digest),
        ("zookeeper.extendedTypesEnabled", "true"),
    ];
    let config = place.zoo(text, &properties).unwrap();
    assert!(config.read_only_mode);
    assert_eq!(config.super_digest.as_deref(), Some(digest));
    assert_eq!(config.max_client_connections_per_ip, 0);
    assert_eq!(config.admin.unwrap().to_string(), "127.0.0.1:20004");
    let about = |text: &str| config.warnings.iter().filter(|one| one.contains(text)).count();
    assert_eq!((about("TLS"), about("authProvider.1"), about("replicated")), (3, 1, 2));
    assert_eq!(config.warnings.len(), 6, "{:#?}", config.warnings);
}

#[test]
fn an_unknown_name_is_a_warning_with_the_nearest_known_one() {
    let config = zoo("dataDir=DIR\nclientPort=1\n\nclientport=2\nnonsense=x\n");
    assert_eq!(config.warnings.len(), 2);
    assert!(config.warnings[0].contains("line 4"), "{:?}", config.warnings);
    assert!(config.warnings[0].ends_with("did you mean clientPort?"), "{:?}", config.warnings);
    let unset = zoo("dataDir=DIR\nclientPort=1\nsslQuorum=false\naudit.enable=false");
    assert_eq!(unset.warnings, [] as [String; 0], "what is off is not missed");
}

#[test]
fn a_bad_value_is_named_with_its_place_and_what_is_allowed() {
    check_refused("tickTime=fast", &["tickTime in ", "line 3", "`fast`", "whole number from 10"]);
    check_refused("\nmaxClientCnxns=-5", &["line 4", "maxClientCnxns"]);
    check_refused("reconfigEnabled=1", &["true or false"]);
    check_refused("clientPort=70000", &["a port"]);
    check_refused("clientPortAddress=no.such.host.invalid", &["clientPortAddress", "interface"]);
    check_refused("server.0=a:1:2", &["server.0", "1 to 65535"]);
    check_refused("server.1=a:1", &["line 3", "host:port:port"]);
    check_refused("server.1=a:1:2:observer", &["no member is a participant"]);
    check_refused("server.1=a:1:2\nserver.2=a:1:3", &["same peer address"]);
    check_refused("peerType=king", &["participant or observer"]);
    check_refused("admin.commandURL=x", &["slash"]);
    check_refused("minSessionTimeout=9000\nmaxSessionTimeout=8000", &["line 3", "longest"]);
    check_refused("bad=\\uXYZ", &["line 3", "hexadecimal"]);
    check_refused("DigestAuthenticationProvider.superDigest=plain", &["SHA-1"]);
    check_refused("version=zz", &["hexadecimal"]);
}

#[test]
fn properties_and_file_set_the_same_and_the_file_wins() {
    let place = Place::new();
    let text = "dataDir=DIR\nclientPort=1\nenforceQuota=true\nskipACL=yes\n";
    let properties = [
        ("zookeeper.enforceQuota", "false"),
        ("jute.maxbuffer", "0x9fffff"),
        ("zookeeper.maxCnxns", "0"),
        ("znode.container.checkIntervalMs", "100"),
        ("zookeeper.globalOutstandingLimit", "77"),
        ("tickTime", "1"),
        ("zookeeper.notAThing", "1"),
    ];
    let config = place.zoo(text, &properties).unwrap();
    assert!(config.enforce_quota && config.skip_acl);
    assert_eq!(config.max_message_bytes, 0x9f_ffff);
    assert_eq!(config.max_client_connections, 1_000_000);
    assert_eq!((config.container_check_ms, config.outstanding_max), (100, 77));
    assert_eq!(config.tick_ms, 3000, "a bare name that ZooKeeper does not read");
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    let error = place.zoo(text, &[("jute.maxbuffer", "lots")]).unwrap_err().to_string();
    assert!(error.starts_with("property -Djute.maxbuffer: `lots`"), "{error}");
}

#[test]
fn endpoints_of_monitoring_are_off_until_asked_for() {
    let with = |lines: &str| zoo(&format!("dataDir=DIR\nclientPort=1\n{lines}"));
    let admin = |lines: &str| with(lines).admin.map(|address| address.to_string());
    assert_eq!(admin(""), None);
    assert_eq!(admin("admin.enableServer=true").as_deref(), Some("127.0.0.1:8080"));
    assert_eq!(admin("admin.serverPort=9").as_deref(), Some("127.0.0.1:9"));
    assert_eq!(admin("admin.serverAddress=0.0.0.0").as_deref(), Some("0.0.0.0:8080"));
    assert_eq!(admin("admin.enableServer=false\nadmin.serverPort=9"), None);
    assert_eq!(with("admin.commandURL=/zk/").admin_commands_path, "/zk");
    let provider = "metricsProvider.className=\
                    org.apache.zookeeper.metrics.prometheus.PrometheusMetricsProvider\n";
    let metrics = |lines: &str| {
        with(&format!("{provider}{lines}")).metrics.map(|address| address.to_string())
    };
    assert_eq!(metrics("").as_deref(), Some("0.0.0.0:7000"));
    let both = "metricsProvider.httpPort=7001\nmetricsProvider.httpHost=127.0.0.1";
    assert_eq!(metrics(both).as_deref(), Some("127.0.0.1:7001"));
    assert_eq!(with("metricsProvider.httpPort=7001").metrics, None);
}

#[test]
fn the_whitelist_is_a_list_or_everything() {
    let words =
        |list: &str| zoo(&format!("dataDir=DIR\nclientPort=1\n4lw.commands.whitelist={list}"));
    assert_eq!(words("*").four_letter_whitelist, Word::ALL);
    assert_eq!(words("stat, ruok").four_letter_whitelist, [Word::Ruok, Word::Stat]);
    assert_eq!(words("").four_letter_whitelist, []);
    assert!(words("ruok,boom").warnings[0].contains("boom"));
    assert_eq!(Word::parse(b"ruok"), Some(Word::Ruok));
    assert_eq!(Word::parse(b"ruo"), None);
}

#[test]
fn our_own_file_is_strict() {
    let place = Place::new();
    let text = "data_dir = \"/x\"\ntick_ms = 500\nreplica_id = 2\nmap_size_bytes = \"1GiB\"\n\
                members = [\"1=a:1:2;3\", \"server.2=b:1:2:observer;3\"]\nadmin = \"[::1]:8080\"\n\
                four_letter_whitelist = [\"ruok\", \"srvr\"]\nread_only_mode = true\n";
    let config = place.toml(text, &[("tick-ms", "700"), ("--metrics", "off")]).unwrap();
    assert_eq!((config.tick_ms, config.max_session_timeout_ms), (700, 14_000));
    assert_eq!((config.members.len(), config.map_size_bytes), (2, 1 << 30));
    assert_eq!(config.admin.unwrap().to_string(), "[::1]:8080");
    assert_eq!(config.four_letter_whitelist, [Word::Ruok, Word::Srvr]);

    let refused =
        |text: &str, flags: &[(&str, &str)]| place.toml(text, flags).expect_err(text).to_string();
    let error = refused("tick = 5", &[]);
    assert!(error.contains("key `tick` in") && error.contains("`tick_ms`"), "{error}");
    let error = refused("", &[("--data-dri", "/x")]);
    assert!(error.contains("did you mean `--data-dir`"), "{error}");
    let error = refused("data_dir = \"/x\"\ntick_ms = 5", &[]);
    assert!(error.contains("key tick_ms in") && error.contains("from 10"), "{error}");
    let error = refused("data_dir = \"/x\"\ntick_ms = [[5]]", &[]);
    assert!(error.contains("[[5]]"), "{error}");
    let error = refused("data_dir = ", &[]);
    assert!(error.contains("line 1"), "{error}");
    let error = refused("data_dir = \"/x\"\nheartbeat_ms = 200", &[]);
    assert!(error.contains("heartbeat_ms in") && error.contains("a third"), "{error}");
    let error = refused("data_dir = \"/x\"\nmembers = [\"2=a:1:2\"]", &[]);
    assert!(error.contains("default of replica_id"), "{error}");
    assert!(matches!(
        Config::load(Source::Toml(Path::new("/nowhere/coord.toml")), &[]),
        Err(ConfigError::Read { .. })
    ));
}

#[test]
fn every_key_takes_its_example_and_what_it_shows() {
    let config = Config::production("/x".into());
    for key in KEYS {
        let mut other = config.clone();
        assert!(key.set(&mut other, key.example), "{key:?}");
        if key.name == "super_digest" {
            assert_eq!(key.get(&other), "(not shown)");
            continue;
        }
        let shown = key.get(&other);
        let mut third = config.clone();
        assert!(key.set(&mut third, &shown), "{key:?} shows {shown}");
        assert_eq!(third, other, "{key:?}");
    }
    assert_eq!(config.describe().len(), KEYS.len());
}

#[test]
fn defaults_are_as_documented_and_tiny_keeps_the_rules() {
    let config = Config::production("/x".into());
    for key in KEYS {
        let shown = key.get(&config);
        let derived = ["data_dir", "log_dir", "members", "super_digest", "four_letter_whitelist"];
        if !derived.contains(&key.name) && !key.default.contains("tick") {
            assert_eq!(key.default, shown, "{key:?}");
        }
    }
    let tiny = Config::tiny("/x".into());
    for key in KEYS {
        let mut copy = tiny.clone();
        assert!(key.set(&mut copy, &key.get(&tiny)) || key.name == "super_digest", "{key:?}");
    }
    assert!(tiny.max_session_timeout_ms >= tiny.min_session_timeout_ms);
}

#[test]
fn properties_follow_javas_syntax() {
    let text = "a=1\n! c\n  # c\nb : 2\nc 3\nd\\=e=f=g\n\n\
                long=x,\\\n   y\\\\\ntab=\\t.\\u0041\\q\nempty\n=v\n";
    let properties = properties::parse(text).unwrap();
    let pairs: Vec<(usize, &str, &str)> = properties
        .iter()
        .map(|property| (property.line, property.key.as_str(), property.value.as_str()))
        .collect();
    let expect = [
        (1, "a", "1"),
        (4, "b", "2"),
        (5, "c", "3"),
        (6, "d=e", "f=g"),
        (8, "long", "x,y\\"),
        (10, "tab", ".Aq"),
        (11, "empty", ""),
        (12, "", "v"),
    ];
    assert_eq!(pairs, expect);
    assert_eq!(properties::parse("a=1\nb=\\u12"), Err(2));
    assert_eq!(properties::parse("open=x\\").unwrap()[0].value, "x");
}

#[test]
fn clients_are_served_where_the_own_line_says() {
    let load = |flags: &[(&str, &str)]| {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let flags: Vec<(String, String)> = flags.iter().map(own).collect();
        Config::load(Source::None, &flags).unwrap()
    };
    let list = "server.1=127.0.0.1:1:2:participant;127.0.0.1:2199,2=127.0.0.1:3:4;2198";
    let first = load(&[("--data-dir", "/x"), ("--members", list)]);
    assert_eq!(first.client_address.to_string(), "127.0.0.1:2199");
    let second = load(&[("--data-dir", "/x"), ("--members", list), ("--replica-id", "2")]);
    assert_eq!(second.client_address.to_string(), "0.0.0.0:2198");
    assert!(first.warnings.is_empty() && second.warnings.is_empty());
    let other = [("--data-dir", "/x"), ("--members", list), ("--client-address", "[::1]:2200")];
    let other = load(&other);
    assert_eq!(other.client_address.to_string(), "[::1]:2200");
    assert!(other.warnings[0].contains("are told 127.0.0.1:2199"), "{:?}", other.warnings);
}
