//! Layers of settings, their texts, and what a wrong value is told.

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
            Access::Text { .. } if key.name != "listen" => {}
            Access::Count(_) if key.name == "shards" => {}
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
    let is_free = |key: &&Key| !matches!(key.name, "source" | "advertise" | "data");
    let is_name = |key: &&Key| matches!(key.name, "node_id" | "zone");
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
fn a_source_is_required() {
    let error = load(None, &[], &[]).unwrap_err();
    assert!(error.contains("--source") && error.contains("MILLRACE_SOURCE"), "{error}");
    assert!(load(None, &[("MILLRACE_SOURCE", "")], &[]).is_err());
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

#[test]
fn sizes_parse() {
    let check = |text: &str, expect| assert_eq!(parse_size(text), expect, "{text}");
    check("0", Ok(0));
    check("512MiB", Ok(512 << 20));
    check("1GiB", Ok(1 << 30));
    check("1G", Ok(1 << 30));
    check("64k", Ok(64 << 10));
    check("64 kib", Ok(64 << 10));
    check("10_000", Ok(10_000));
    check("7b", Ok(7));
    check("2T", Ok(2 << 40));
    for text in ["", "MiB", "-1", "+1", "_1", "1_", "1_MiB", ".5G"] {
        check(text, Err(SizeError::NoNumber));
    }
    for text in ["1MB", "1.5GiB", "1 G B", "1X", "0x10", "1e3"] {
        check(text, Err(SizeError::UnknownUnit));
    }
    for text in ["18446744073709551616", "16777216TiB"] {
        check(text, Err(SizeError::TooLarge));
    }
}

proptest! {
    #[test]
    fn sizes_round_trip(size in any::<u64>(), shift in 0u32..64) {
        for size in [size, size >> shift, size << shift, 1 << shift] {
            prop_assert_eq!(parse_size(&format_size(size)), Ok(size));
        }
    }

    #[test]
    fn any_text_is_judged_without_a_panic(text in ".{0,40}", file in any::<bool>()) {
        let _ = parse_size(&text);
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
