//! Layers of settings, their texts, and the errors of wrong values.

use proptest::prelude::*;

use super::text::parse_cpus;
use super::*;

fn pairs(values: &[(&str, &str)]) -> Vec<(String, String)> {
    values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn load(
    file: Option<&str>,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    if let Some(text) = file {
        std::fs::write(&path, text).unwrap();
    }
    Config::load(file.map(|_| path.as_path()), pairs(environment), pairs(flags))
        .map_err(|error| error.to_string().replace(folder.path().to_str().unwrap(), "/etc"))
}

/// Loads with a source set, so that only the flags in question can be wrong.
fn with_flags(flags: &[(&str, &str)]) -> Result<Config, String> {
    load(None, &[("MILLRACE_SOURCE", "/data")], flags)
}

#[track_caller]
fn check_error(result: Result<Config, String>, expect: &str) {
    assert_eq!(result.expect_err("this must be refused"), expect);
}

#[test]
fn later_layers_win() {
    let file = "source = '/file'\nfiles_max = 1\nfill_queue_max = 1\nconnections_max = 1";
    let environment =
        [("MILLRACE_FILES_MAX", "2"), ("MILLRACE_FILL_QUEUE_MAX", "2"), ("HOME", "/root")];
    let config = load(Some(file), &environment, &[("files_max", "3")]).unwrap();
    assert_eq!(config.source, Path::new("/file"));
    assert_eq!((config.files_max, config.fill_queue_max, config.connections_max), (3, 2, 1));
    assert_eq!(config.load_concurrency, 64);
}

#[test]
fn defaults_are_production_and_valid() {
    assert_eq!(with_flags(&[]).unwrap(), Config::production("/data".into()));
    Config::production("/data".into()).validate().unwrap();
    Config::tiny("/data".into()).validate().unwrap();
}

#[test]
fn the_default_texts_are_the_defaults() {
    let config = Config::production("/data".into());
    for key in KEYS {
        match key.access {
            Access::List { .. } => {}
            Access::Text { .. } if key.name != "listen" => {}
            Access::Count(_) if key.name == "shards" => {}
            Access::Mode { .. } => {}
            _ => assert_eq!(key.get(&config), key.default, "{}", key.name),
        }
    }
}

#[test]
fn examples_are_understood_and_help_is_one_line() {
    for key in KEYS {
        assert!(key.set(&mut Config::unset(), key.example), "{}", key.name);
        assert!(
            key.help.len() <= 90 && !key.help.contains('\n') && !key.help.ends_with('.'),
            "{}",
            key.name
        );
    }
}

#[test]
fn mount_roots_are_absolute_and_may_be_several() {
    let roots = |config: Config| config.mount_roots;
    let expect = ["/a", "/b c"].map(PathBuf::from).to_vec();
    let file = "source = '/a'\nmount_root = ['/a', '/b c']";
    assert_eq!(roots(load(Some(file), &[], &[]).unwrap()), expect);
    assert_eq!(roots(with_flags(&[("mount_root", "/a:/b c")]).unwrap()), expect);
    assert_eq!(roots(with_flags(&[]).unwrap()), Vec::<PathBuf>::new());
    assert!(with_flags(&[("mount_root", "/a:b")]).is_err());
}

#[test]
fn a_mode_is_octal_and_stands_in_quotes() {
    let mode = |text: &str| with_flags(&[("socket_mode", text)]).map(|config| config.socket_mode);
    for text in ["660", "0660", "0o660"] {
        assert_eq!(mode(text), Ok(0o660), "{text}");
        let file = format!("source = '/a'\nsocket_mode = '{text}'");
        assert_eq!(load(Some(&file), &[], &[]).unwrap().socket_mode, 0o660, "{text}");
    }
    assert_eq!(mode("000"), Ok(0));
    for text in ["", "6", "66", "+66", "0o66", "1660", "0o1660", "01660", "888", "0x1b0", "u+rw"] {
        assert!(mode(text).is_err(), "{text}");
    }
    check_error(
        with_flags(&[("socket_mode", "6")]),
        "flag --socket-mode: `6` is not allowed; \
         expected three octal digits, as chmod takes them, for example `600`",
    );
    // 0o660 is 432: read as octal digits again it would let every user in.
    for (number, told) in [("0o660", "432"), ("432", "432"), ("660", "660"), ("[660]", "[660]")] {
        check_error(
            load(Some(&format!("source = '/a'\nsocket_mode = {number}")), &[], &[]),
            &format!(
                "key socket_mode in /etc/m.toml: `{told}` is not allowed; expected three octal digits, \
                 as chmod takes them and in quotes, because a number without them is not read as octal, \
                 for example `\"600\"`"
            ),
        );
    }
}

#[test]
fn key_names_are_unique() {
    for key in KEYS {
        assert_eq!(KEYS.iter().filter(|other| other.name == key.name).count(), 1, "{}", key.name);
    }
}

#[test]
fn what_is_described_can_be_loaded() {
    for config in [Config::production("/data".into()), Config::tiny("/a b".into())] {
        let flags =
            config.describe().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        assert_eq!(Config::load(None, [], flags).unwrap(), config);
    }
}

#[test]
fn toml_scalars_and_lists_are_understood() {
    let cpu = usable_cpus()[0];
    let file = format!(
        "source = '/data'\nmemory = '64MiB'\nfiles_max = 10_000\nblock_size = 65536\ncpus = [{cpu}]"
    );
    let config = load(Some(&file), &[], &[]).unwrap();
    assert_eq!((config.memory, config.files_max, config.block_size), (64 << 20, 10_000, 65536));
    assert_eq!((config.cpus, config.shards), (vec![cpu], 1));
}

#[test]
fn flags_may_be_spelled_as_flags() {
    assert_eq!(with_flags(&[("--files-max", "7")]).unwrap().files_max, 7);
}

#[test]
fn unknown_names_get_the_nearest_one() {
    check_error(
        load(Some("memry = 1"), &[], &[]),
        "unknown key `memry` in /etc/m.toml; did you mean `memory`?",
    );
    check_error(
        load(Some("fill-concurrency = 1"), &[], &[]),
        "unknown key `fill-concurrency` in /etc/m.toml; did you mean `fill_concurrency`?",
    );
    check_error(
        load(None, &[("MILLRACE_SOURC", "/data")], &[]),
        "unknown environment variable `MILLRACE_SOURC`; did you mean `MILLRACE_SOURCE`?",
    );
    check_error(
        with_flags(&[("blok_size", "1")]),
        "unknown flag `--blok-size`; did you mean `--block-size`?",
    );
}

#[test]
fn foreign_variables_are_ignored() {
    let environment = [
        ("MILLRACE_SOURCE", "/data"),
        ("MILLRACE_LOG", "debug"),
        ("MILLRACE_SERVICE_HOST", "10.0.0.1"),
        ("MILLRACE_PORT", "tcp://10.0.0.1:7070"),
        ("MILLRACE_PORT_7070_TCP_ADDR", "10.0.0.1"),
        ("millrace_memory", "nonsense"),
    ];
    load(None, &environment, &[]).unwrap();
    assert!(load(None, &[("MILLRACE_PORT", "7070")], &[]).is_err());
}

#[test]
fn wrong_values_name_the_place_the_range_and_an_example() {
    check_error(
        with_flags(&[("memory", "many")]),
        "flag --memory: `many` is not allowed; expected a size from 4MiB to 16TiB, for example `8GiB`",
    );
    check_error(
        load(None, &[("MILLRACE_FILES_MAX", "-1")], &[]),
        "environment variable MILLRACE_FILES_MAX: `-1` is not allowed; \
         expected a whole number from 1 to 100000000, for example `1_000_000`",
    );
    check_error(
        load(Some("fill_concurrency = 513"), &[], &[]),
        "key fill_concurrency in /etc/m.toml: `513` is not allowed; \
         expected a whole number from 1 to 512, for example `64`",
    );
}

#[test]
fn nonsense_is_refused_for_every_key() {
    let free = ["source", "advertise", "data", "coord_secret", "admin_token"];
    let is_free = |key: &&Key| !free.contains(&key.name);
    let names = ["node_id", "zone", "socket_user", "socket_group", "source_credential"];
    let is_name = |key: &&Key| names.contains(&key.name);
    for key in KEYS.iter().filter(is_name) {
        for text in ["?!", "1 2 3", "\u{661}", "..", "a/b", &"n".repeat(65)] {
            assert!(with_flags(&[(key.name, text)]).is_err(), "{} = {text}", key.name);
        }
    }
    for key in KEYS.iter().filter(is_free).filter(|key| !is_name(key)) {
        for text in ["?!", "1 2 3", "0x10", "-5", "1e3", "99999999999999999999999", "\u{661}"] {
            assert!(with_flags(&[(key.name, text)]).is_err(), "{} = {text}", key.name);
        }
    }
    for value in ["1.5", "true", "1979-05-27", "{ a = 1 }", "[[1]]", "[]"] {
        let file = format!("memory = {value}");
        assert!(
            load(Some(&file), &[], &[]).unwrap_err().starts_with("key memory in /etc/m.toml: "),
            "{value}"
        );
    }
}

#[test]
fn a_bad_value_is_refused_even_where_it_is_overridden() {
    assert!(load(Some("source = '/data'\nfiles_max = 0"), &[], &[("files_max", "5")]).is_err());
}

#[test]
fn rules_between_keys_name_the_place_to_mend() {
    check_error(
        with_flags(&[("block_size", "96KiB")]),
        "flag --block-size: `96KiB` is not allowed; expected a power of two from 64KiB to 16MiB, for example `4MiB`",
    );
    check_error(
        load(Some("source = '/data'\nmemory = '4MiB'"), &[], &[]),
        "key memory in /etc/m.toml: `4MiB` is not allowed; \
         expected at least 8MiB: 1 shard(s) of 8 blocks of 1MiB and of 4MiB each, for example `8MiB`",
    );
    check_error(
        with_flags(&[("bytes_in_flight_max", "64KiB")]),
        "flag --bytes-in-flight-max: `64KiB` is not allowed; expected at least one block of 1MiB, for example `4MiB`",
    );
    let cpu = usable_cpus()[0].to_string();
    check_error(
        with_flags(&[("cpus", &cpu), ("shards", "2")]),
        &format!(
            "flag --shards: `2` is not allowed; expected at most one shard per core of {cpu}, for example `1`"
        ),
    );
    let usable = format_cpus(&usable_cpus());
    if !usable_cpus().contains(&1023) {
        check_error(
            with_flags(&[("cpus", "1023")]),
            &format!(
                "flag --cpus: `1023` is not allowed; expected cores of {usable}, each once, for example `{usable}`"
            ),
        );
    }
}

#[test]
fn a_small_memory_means_fewer_shards() {
    assert_eq!(with_flags(&[("memory", "8MiB")]).unwrap().shards, 1);
}

#[test]
fn validate_judges_values_set_by_code() {
    let good = Config::tiny("/data".into());
    let bad = [
        Config { files_max: 0, ..good.clone() },
        Config { shards: 0, ..good.clone() },
        Config { block_size: (64 << 10) + 1, ..good.clone() },
        Config { advertise: "a:1".into(), ..good.clone() },
        Config { cpus: vec![good.cpus[0]; 2], ..good.clone() },
        Config { cpus: vec![], ..good.clone() },
        Config { send_timeout_ms: 0, ..good.clone() },
        Config { source: PathBuf::new(), ..good },
    ];
    for config in bad {
        assert!(config.validate().is_err(), "{config:?}");
    }
}

#[test]
fn contents_are_compared_only_by_a_node_outside_a_cluster() {
    let cluster = [("coord", "zk://localhost:2181/m"), ("insecure", "true")];
    let with = |options| with_flags(&[cluster[0], cluster[1], ("mount_options", options)]);
    assert!(with("models=shared").is_ok());
    let error = with("models=shared,/=content").unwrap_err();
    assert!(error.contains("--mount-options") && error.contains("device"), "{error}");
    assert!(with_flags(&[("mount_options", "/=content")]).is_ok());
}

#[test]
fn a_source_is_required() {
    let error = load(None, &[], &[]).unwrap_err();
    assert!(error.contains("--source") && error.contains("MILLRACE_SOURCE"), "{error}");
    assert!(load(None, &[("MILLRACE_SOURCE", "")], &[]).is_err());
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let secret = ("coord_secret", "/s");
    let refused: [(&[(&str, &str)], _); 4] = [
        (&[secret], ["--coord-secret", "--coord zk://"]),
        (&[secret, ("coord", "none")], ["--coord-secret", "--coord zk://"]),
        (&[secret, ("coord", "zk://a:1/m"), ("insecure", "true")], ["--insecure", "contradict"]),
        (&[("socket", "/run/m"), ("admin", "/run/m")], ["--socket", "--admin"]),
    ];
    for (flags, words) in refused {
        let told = with_flags(flags).unwrap_err();
        assert!(words.iter().all(|word| told.contains(word)), "{flags:?}: {told}");
    }
    // The secret of the file counts where a flag takes the trust back.
    let file = "source = '/a'\ncoord = 'zk://a:1/m'\ncoord_secret = '/s'\ninsecure = true";
    load(Some(file), &[], &[("insecure", "false")]).unwrap();
    with_flags(&[secret, ("coord", "zk://a:1/m")]).unwrap();
    with_flags(&[("socket", ""), ("admin", "")]).unwrap();
}

#[test]
fn broken_files_are_named_with_the_line() {
    let error = load(Some("source = '/data'\n\nmemory = = 1\n"), &[], &[]).unwrap_err();
    assert!(error.starts_with("/etc/m.toml, line 3: not valid TOML: "), "{error}");
    let error = load(Some("memory = 1\nmemory = 2\n"), &[], &[]).unwrap_err();
    assert!(error.starts_with("/etc/m.toml, line 2: "), "{error}");
    let error =
        Config::load(Some(Path::new("/does/not/exist.toml")), [], vec![]).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot read the configuration file /does/not/exist.toml: "),
        "{error}"
    );
    assert!(matches!(
        Config::load(Some(Path::new("/")), [], vec![]),
        Err(ConfigError::Read { .. })
    ));
}

#[test]
fn hosts_have_no_port() {
    for host in ["", "localhost", "10.0.0.1", "cache-1.example.org", "::1", "2001:db8::7"] {
        assert!(is_host(host), "{host}");
    }
    for host in ["a:1", "10.0.0.1:7070", "[::1]", "a b", "http://a", "caf\u{e9}", &"a".repeat(254)]
    {
        assert!(!is_host(host), "{host}");
    }
}

#[test]
fn cpu_lists_parse() {
    let check = |text: &str, expect: Option<&[usize]>| {
        assert_eq!(parse_cpus(text).as_deref(), expect, "{text}")
    };
    check("0", Some(&[0]));
    check("0,2-5", Some(&[0, 2, 3, 4, 5]));
    check(" 7 , 1 - 2 ", Some(&[7, 1, 2]));
    check("1023", Some(&[1023]));
    for text in [
        "",
        ",",
        "1,",
        "5-2",
        "1-",
        "-1",
        "1,1",
        "0-3,2",
        "1024",
        "0-18446744073709551615",
        "a",
        "1-2-3",
    ] {
        check(text, None);
    }
    assert_eq!(format_cpus(&[0, 2, 3, 4, 7, 6]), "0,2-4,7,6");
}

proptest! {
    #[test]
    fn any_text_is_judged_without_a_panic(text in ".{0,40}", file in any::<bool>()) {
        for key in KEYS {
            let _ = with_flags(&[(key.name, &text)]);
        }
        if file {
            let _ = load(Some(&text), &[], &[]);
        }
    }

    #[test]
    fn cpu_lists_round_trip(cpus in proptest::sample::subsequence((0..64).collect::<Vec<usize>>(), 1..64)) {
        prop_assert_eq!(parse_cpus(&format_cpus(&cpus)), Some(cpus));
    }
}
