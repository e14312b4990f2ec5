//! `millrace coord` as people and scripts meet it, as far as no replica has to run: flags, files,
//! messages and exit codes.
//!
//! What replicas do, and the verbs that ask them, is left to the end-to-end tests.

use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// What a run said, with its exit code.
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(arguments: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"MILLRACE_") {
            command.env_remove(name);
        }
    }
    let output = command.arg("coord").args(arguments).stdin(Stdio::null()).output().unwrap();
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs a command that has to fail with this code, and with all these words on stderr.
fn run_badly(arguments: &[&str], code: i32, words: &[&str]) {
    let said = run(arguments);
    assert_eq!(said.code, Some(code), "{arguments:?}: {}{}", said.stdout, said.stderr);
    assert_eq!(said.stdout, "", "{arguments:?}");
    for word in words {
        assert!(said.stderr.contains(word), "{arguments:?} does not say {word:?}: {}", said.stderr);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Creates a folder with this `zoo.cfg`; `DIR` in it becomes the folder.
fn with_zoo_cfg(lines: &str) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("zoo.cfg");
    std::fs::write(&file, lines.replace("DIR", text(folder.path()))).unwrap();
    (folder, text(&file).to_owned())
}

#[test]
fn settings_that_are_printed_are_read_back() {
    let lines = "dataDir=DIR\nclientPort=2191\ntickTime=700\nmaxClientCnxns=0\n\
                 admin.serverPort=8099\nserver.3=a:1:2;2191\nserver.4=b:1:2:observer;2191\n";
    let (folder, zoo_cfg) = with_zoo_cfg(lines);
    std::fs::write(folder.path().join("myid"), "3\n").unwrap();
    let first = run(&[&zoo_cfg, "--print-config", "--heartbeat-ms", "60"]);
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    let file = folder.path().join("coord.toml");
    std::fs::write(&file, &first.stdout).unwrap();
    let second = run(&["--config", text(&file), "--print-config"]);
    assert_eq!(second.code, Some(0), "{}", second.stderr);
    assert_eq!(first.stdout, second.stdout);
    for line in [
        "client_address = \"0.0.0.0:2191\"",
        "tick_ms = 700",
        "max_client_connections_per_ip = 0",
        "admin = \"127.0.0.1:8099\"",
        "replica_id = 3",
        "heartbeat_ms = 60",
    ] {
        assert!(first.stdout.contains(&format!("\n{line}\n")), "no {line}: {}", first.stdout);
    }
}

#[test]
fn a_template_asks_for_a_directory_and_shows_no_secret() {
    let said = run(&["--print-config"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.contains("\n# data_dir = "), "{}", said.stdout);
    let secret = "super:D/InIHSb7yEEbrWz8b9l71RjZJU=";
    let said = run(&["--data", "d", "--super-digest", secret, "--print-config"]);
    assert!(!said.stdout.contains("D/InI"), "{}", said.stdout);
    assert!(said.stdout.contains("\n# super_digest"), "it would be read back as a wrong one");
    assert!(!Path::new("d").exists(), "and nothing was made");
}

#[test]
fn java_properties_are_taken_anywhere_and_lose_against_the_file() {
    let (_folder, zoo_cfg) = with_zoo_cfg("dataDir=DIR\nclientPort=2191\ntickTime=700\n");
    let said = run(&[
        "-Dzookeeper.tickTime=900",
        &zoo_cfg,
        "-Dzookeeper.skipACL=yes",
        "--print-config",
        "-Djute.maxbuffer=2097152",
        "-Dfile.encoding=UTF-8",
    ]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    for line in ["tick_ms = 700", "skip_acl = \"true\"", "max_message_bytes = \"2MiB\""] {
        assert!(said.stdout.contains(&format!("\n{line}\n")), "no {line}: {}", said.stdout);
    }
    run_badly(&["-Da=b", "--data", "d"], 2, &["flag -D", "zoo.cfg", "hint"]);
}

#[test]
fn what_a_zoo_cfg_has_beyond_us_is_warned_about() {
    let lines = "dataDir=DIR\nclientPort=2191\nsecureClientPort=2182\nclientProt=1\n";
    let (_folder, zoo_cfg) = with_zoo_cfg(lines);
    let said = run(&[&zoo_cfg, "--print-config"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    for words in ["line 3 is ignored: TLS", "line 4: unknown; did you mean clientPort?"] {
        assert!(said.stderr.contains(words), "{words}: {}", said.stderr);
    }
}

#[test]
fn bad_settings_are_refused_with_their_place() {
    let check = |lines: &str, words: &[&str]| {
        let (_folder, zoo_cfg) = with_zoo_cfg(lines);
        run_badly(&[&zoo_cfg], 2, words);
    };
    check("dataDir=DIR\nclientPort=none\n", &["clientPort", "line 2", "none", "hint"]);
    check("dataDir=DIR\nclientPort=2191\ntickTime=0\n", &["tickTime", "line 3", "from 10"]);
    check("dataDir=DIR\nclientPort=2191\nserver.1=a\n", &["server.1", "line 3", "host:port:port"]);
    check("dataDir=DIR\nclientPort=2191\nserver.1=a:1:2\n", &["myid is missing"]);
    check("dataDir=DIR\n", &["clientPort is missing"]);
    check("clientPort=2191\n", &["no data directory"]);
    run_badly(&[], 2, &["no data directory", "--data"]);
    run_badly(&["--data", "d", "--tick-ms", "1"], 2, &["--tick-ms", "`1`", "from 10"]);
    run_badly(&["--data", "d", "--tick", "1"], 2, &["--tick"]);
    run_badly(&["--config", "/nonexistent/coord.toml"], 2, &["/nonexistent/coord.toml"]);
    run_badly(&["/nonexistent/zoo.cfg", "--config", "a"], 2, &["cannot be used with"]);
    // A verb that is misspelled looks like a file.
    run_badly(&["statsu"], 2, &["cannot read statsu", "--help lists the verbs"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("coord.toml");
    std::fs::write(&file, "data_dri = \"d\"\n").unwrap();
    run_badly(&["--config", text(&file)], 2, &["data_dri", "did you mean `data_dir`"]);
}

#[test]
fn verbs_say_which_replica_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let (here, gone) = (text(folder.path()), folder.path().join("gone"));
    for verb in ["status", "members"] {
        run_badly(&[verb], 2, &["--data", "--admin"]);
        run_badly(&[verb, "--data", here], 1, &["no replica runs in", "hint"]);
        run_badly(&[verb, "--data", text(&gone)], 1, &["is not a directory", "hint"]);
        run_badly(&[verb, "--admin", "127.0.0.1:1"], 1, &["cannot connect to 127.0.0.1:1"]);
        run_badly(&[verb, "--admin", "nonsense"], 2, &["flag --admin: nonsense"]);
        run_badly(&[verb, "--admin", "a:1", "--data", here], 2, &["cannot be used with"]);
    }
    for verb in [vec!["transfer"], vec!["snapshot"], vec!["remove", "2"]] {
        run_badly(&verb, 2, &["--data"]);
        let arguments: Vec<&str> = verb.into_iter().chain(["--data", here]).collect();
        run_badly(&arguments, 1, &["no replica runs in", "hint"]);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "and left nothing there");
}

#[test]
fn changes_are_judged_before_anybody_is_asked() {
    run_badly(&["add", "--data", "d"], 2, &["MEMBER"]);
    run_badly(&["add", "--data", "d", "d:2888:3888"], 2, &["server.N=host:port:port"]);
    run_badly(&["add", "--data", "d", "server.70000=d:1:2"], 2, &["from 1 to 65535"]);
    run_badly(&["remove", "--data", "d", "0"], 2, &["0"]);
    run_badly(&["remove", "--data", "d", "d"], 2, &["d"]);
    run_badly(&["transfer", "--data", "d", "70000"], 2, &["70000"]);
}

#[test]
fn files_that_are_no_backup_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "no backup").unwrap();
    let target = folder.path().join("target");
    for arguments in [
        vec!["dump", text(&file)],
        vec!["restore", text(&file), "--data", text(&target)],
        vec!["dump", "--data", text(folder.path())],
        vec!["backup", "--data", text(folder.path()), text(&target)],
    ] {
        run_badly(&arguments, 1, &[text(folder.path())]);
    }
    run_badly(&["dump", "/nonexistent"], 1, &["/nonexistent"]);
    run_badly(&["dump"], 2, &["FILE"]);
    assert!(!target.exists(), "and nothing was made of them");
    let restore = ["restore", text(&file), "--data", text(&target), "--member"];
    let with = |more: &[&'static str]| [&restore[..], more].concat();
    run_badly(&with(&["server.1=a:1:2:observer"]), 2, &["flag --member", "vote"]);
    run_badly(&with(&["a:1:2"]), 2, &["flag --member"]);
    run_badly(&with(&["server.1=a:1:2", "--replica-id", "1"]), 2, &["cannot be used with"]);
}
