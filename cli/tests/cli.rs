//! The binary as people and scripts meet it: its output, its messages and its exit codes.
//!
//! The tests know nothing of how verbs work inside. Every test runs the real program, some against a
//! real node on a free port; what a node does under load and faults is left to the end-to-end tests.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

#[path = "cli/cached.rs"]
mod cached;
#[path = "cli/get.rs"]
mod get;
#[path = "cli/signals.rs"]
mod signals;
#[path = "cli/trees.rs"]
mod trees;

/// Unit of caching in these tests: small, so that few bytes make several blocks.
const BLOCK_SIZE: &str = "64KiB";

/// Returns the program without the variables that would configure it.
fn millrace(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"MILLRACE_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// What a run said, with its exit code.
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn said(output: Output) -> Said {
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run(arguments: &[&str]) -> Said {
    said(millrace(arguments).output().unwrap())
}

/// Runs a command that has to succeed.
fn run_well(arguments: &[&str]) -> String {
    let said = run(arguments);
    assert_eq!(said.code, Some(0), "{arguments:?}: {}{}", said.stdout, said.stderr);
    said.stdout
}

/// Runs a command that has to fail with this code, and with all these words on stderr.
fn run_badly(arguments: &[&str], code: i32, words: &[&str]) -> Said {
    let said = run(arguments);
    assert_eq!(said.code, Some(code), "{arguments:?}: {}{}", said.stdout, said.stderr);
    for word in words {
        assert!(said.stderr.contains(word), "{arguments:?} does not say {word:?}: {}", said.stderr);
    }
    said
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Returns bytes that differ in every block.
fn content(length: usize) -> Vec<u8> {
    (0..length as u32)
        .flat_map(|index| (index.wrapping_mul(2_654_435_761)).to_le_bytes())
        .take(length)
        .collect()
}

/// Creates a tree with everything that is awkward: empty files, several blocks, names, depth and links.
fn awkward_tree() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    std::fs::write(path("empty"), "").unwrap();
    std::fs::write(path("large.bin"), content(5 * 65_536 + 123)).unwrap();
    std::fs::write(path("grün 文 \u{1f642}.txt"), "names are UTF-8\n").unwrap();
    std::fs::create_dir_all(path("a/b/c")).unwrap();
    std::fs::create_dir(path("a/nothing")).unwrap();
    std::fs::write(path("a/b/c/exact"), content(65_536)).unwrap();
    std::fs::write(path("-r"), "looks like a flag\n").unwrap();
    symlink("../large.bin", path("a/inside")).unwrap();
    symlink("/etc/hostname", path("outside")).unwrap();
    symlink("nowhere", path("dangling")).unwrap();
    symlink("..", path("a/circle")).unwrap();
    root
}

/// A node process; killed when dropped.
struct Node {
    child: Child,
    address: String,
}

impl Node {
    fn start(source: &Path) -> Node {
        Node::start_with(source, |_| ())
    }

    /// Starts a node by a command that is changed before.
    fn start_with(source: &Path, change: impl FnOnce(&mut Command)) -> Node {
        let mut command = millrace(&["node", "--listen", "127.0.0.1:0", "--shards", "1"]);
        command.args(["--memory", "16MiB", "--block-size", BLOCK_SIZE, "--source", text(source)]);
        // The variable is for a verb that reads it; a node does not, and neither may trip over the
        // other's.
        command.env("MILLRACE_NODE", "127.0.0.1:1").env("MILLRACE_LOG", "warn");
        change(&mut command);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ").unwrap_or_default().to_owned();
        let node = Node { child, address };
        assert!(!node.address.is_empty(), "the node said {line:?}");
        node
    }

    fn fs(&self, arguments: &[&str]) -> Command {
        let mut command = millrace(&["fs"]);
        command.args(arguments).env("MILLRACE_NODE", &self.address);
        command
    }

    fn fs_well(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.fs(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "fs {arguments:?}: {stderr}");
        output.stdout
    }

    fn fs_text(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.fs_well(arguments)).unwrap()
    }

    fn fs_fails(&self, arguments: &[&str]) -> String {
        let said = said(self.fs(arguments).output().unwrap());
        assert_eq!(said.code, Some(1), "fs {arguments:?}: {}", said.stdout);
        said.stderr
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn terminate(child: &Child) {
    let pid = child.id().to_string();
    let status = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(status.success());
}

#[test]
fn every_verb_has_help_with_examples() {
    let verbs: &[&[&str]] = &[
        &[],
        &["quickstart"],
        &["node"],
        &["fs"],
        &["fs", "ls"],
        &["fs", "stat"],
        &["fs", "cat"],
        &["fs", "get"],
        &["fs", "load"],
        &["fs", "free"],
        &["fs", "refresh"],
        &["fs", "status"],
        &["bench"],
        &["bench", "read"],
        &["bench", "compare"],
        &["bench", "scale"],
        &["bench", "ring"],
        &["bench", "store"],
        &["cluster", "up"],
        &["cluster", "restart"],
        &["admin"],
        &["admin", "status"],
        &["admin", "wait"],
        &["admin", "drain"],
        &["admin", "mount"],
        &["doctor"],
        &["completions"],
    ];
    for verb in verbs {
        let help = run_well(&[verb, &["--help"][..]].concat());
        assert!(help.contains("Examples:\n  millrace"), "{verb:?}: {help}");
    }
    assert!(run_well(&["--help"]).contains("Exit codes:"));
    assert!(run_well(&["--version"]).starts_with("millrace "));
}

#[test]
fn unknown_flag_names_the_nearest() {
    run_badly(&["quickstart", "--memroy", "1GiB"], 2, &["--memroy", "'--memory'"]);
    run_badly(&["node", "--souce", "/data"], 2, &["--souce", "'--source'"]);
    run_badly(&["quickstrat"], 2, &["quickstart"]);
}

#[test]
fn bad_value_names_its_flag_and_what_is_allowed() {
    let source = tempfile::tempdir().unwrap();
    let source = text(source.path());
    let words = ["millrace: flag --memory: `lots` is not allowed", "hint: expected a size"];
    run_badly(&["node", "--source", source, "--memory", "lots"], 2, &words);
    run_badly(&["quickstart", source, "--memory", "lots"], 2, &words);
    run_badly(&["node", "--source", source, "--shards", "-1"], 2, &["flag --shards: `-1`"]);
    run_badly(&["bench", "read", "--size", "x"], 2, &["--size", "whole number"]);
    run_badly(&["fs", "cat", "x", "--range", "9-3"], 2, &["--range", "before the first"]);
    run_badly(&["fs", "ls", "--node", "nonsense"], 2, &["flag --node", "host:port"]);
    let words = ["flag --node", "zk://HOST:PORT/PATH"];
    run_badly(&["fs", "ls", "--node", "zk://coord-1:2181"], 2, &words);
    run_badly(&["admin", "status", "--node", "zk://coord-1/m"], 2, &words);
    run_badly(&["node"], 2, &["--source DIR"]);
    run_badly(&["node", source, "--source", source], 2, &["[DIR|URL]", "--source"]);
}

#[test]
fn unknown_key_or_variable_names_the_nearest() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("millrace.toml");
    std::fs::write(&file, "memroy = \"1GiB\"\n").unwrap();
    let words = ["`memroy`", "millrace.toml", "did you mean `memory`?"];
    run_badly(&["node", "--config", text(&file)], 2, &words);
    let mut command = millrace(&["node", "--source", "/"]);
    let said = said(command.env("MILLRACE_MEMROY", "1GiB").output().unwrap());
    assert_eq!(said.code, Some(2));
    assert!(said.stderr.contains("did you mean `MILLRACE_MEMORY`?"), "{}", said.stderr);
}

#[test]
fn printed_configuration_is_a_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let template = run_well(&["node", "--print-config"]);
    assert!(template.contains("# source = \"/data\""), "{template}");
    let file = directory.path().join("millrace.toml");
    let arguments = ["node", "--source", "/data", "--memory", "64MiB", "--print-config"];
    std::fs::write(&file, run_well(&arguments)).unwrap();
    let again = run_well(&["node", "--config", text(&file), "--print-config"]);
    assert_eq!(again, std::fs::read_to_string(&file).unwrap());
    let named = run_well(&["node", "/data", "--memory", "64MiB", "--print-config"]);
    assert_eq!(again, named, "a directory without a flag is the source");
    assert!(again.contains("\nmemory = \"64MiB\"\n"), "{again}");
}

#[test]
fn completions_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run_well(&["completions", shell]);
        assert!(script.contains("quickstart"), "{shell}");
    }
    run_badly(&["completions", "cmd.exe"], 2, &["bash"]);
}

#[test]
fn doctor_looks_at_this_machine() {
    let report = run_well(&["doctor"]);
    assert!(report.contains("kernel") && report.contains("Linux "), "{report}");
    let findings = json(&run_well(&["doctor", "--json"]));
    let findings = findings.as_array().unwrap();
    assert!(findings.iter().any(|finding| finding["name"] == "io_uring"));
    assert!(
        findings.iter().all(|finding| finding["advice"].is_null() == (finding["state"] == "on"))
    );
    let starved = Command::new("prlimit")
        .arg("--memlock=65536")
        .arg(env!("CARGO_BIN_EXE_millrace"))
        .arg("doctor")
        .output()
        .unwrap();
    let starved = said(starved);
    assert_eq!(starved.code, Some(1), "no node starts there: {}", starved.stdout);
    assert!(starved.stdout.contains("ulimit -l"), "{}", starved.stdout);
}

#[test]
fn missing_directory_is_told_kindly() {
    let words = ["millrace: cannot read DIR /no/such/place", "hint: name a directory"];
    let said = run_badly(&["quickstart", "/no/such/place"], 1, &words);
    assert_eq!(said.stdout, "");
    let empty = tempfile::tempdir().unwrap();
    run_badly(&["quickstart", text(empty.path())], 1, &["has no files to read"]);
}

#[test]
fn missing_node_is_told_with_its_address() {
    let words = ["cannot connect to 127.0.0.1:1", "hint: check --node"];
    run_badly(&["fs", "ls", "--node", "127.0.0.1:1"], 1, &words);
}

#[test]
fn quickstart_proves_every_byte_of_an_awkward_tree() {
    let root = awkward_tree();
    let arguments = ["quickstart", text(root.path()), "--block-size", BLOCK_SIZE];
    let arguments = [&arguments[..], &["--memory", "32MiB"]].concat();
    let said = run(&arguments);
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    assert_eq!(said.stderr, "", "no log noise");
    for word in ["6 files", "2 entries left out", "\ncold ", "\nwarm ", "every byte matched"] {
        assert!(said.stdout.contains(word), "no {word:?} in {}", said.stdout);
    }

    let report = json(&run_well(&[&arguments[..], &["--json"]].concat()));
    assert_eq!(report["file_count"], 6);
    assert_eq!(report["matched_count"], 6);
    assert_eq!(report["mismatches"], Value::Array(Vec::new()));
    assert_eq!(report["warm_hit_percent"], 100);
    for pass in report["passes"].as_array().unwrap() {
        assert_eq!(pass["file_count"], 6);
        // `a/inside` is the large one on another path; two files have 16 and 18 bytes.
        assert_eq!(pass["total_bytes"], 2 * (5 * 65_536 + 123) + 65_536 + 16 + 18);
    }
}

#[test]
fn quickstart_says_when_memory_is_short() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("large"), content(12 << 20)).unwrap();
    let arguments = ["--memory", "4MiB", "--shards", "1", "--block-size", BLOCK_SIZE];
    let stdout = run_well(&[&["quickstart", text(root.path())], &arguments[..]].concat());
    assert!(stdout.contains("% of it fits in memory"), "{stdout}");
    assert!(stdout.contains("every byte matched"), "{stdout}");
}

#[test]
fn quickstart_keeps_serving_until_it_is_told_to_stop() {
    let root = awkward_tree();
    let mut command = millrace(&["quickstart", text(root.path()), "--keep"]);
    command.args(["--memory", "32MiB", "--block-size", BLOCK_SIZE]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    let address = loop {
        line.clear();
        assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "it ended");
        if let Some(rest) = line.strip_prefix("serving at ") {
            break rest.split_whitespace().next().unwrap().to_owned();
        }
    };
    let listing = run_well(&["fs", "ls", "--node", &address]);
    assert!(listing.contains("large.bin\n"), "{listing}");
    terminate(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(&format!("millrace fs ls -l --node {address}")), "{rest}");
}

#[test]
fn node_ends_well_when_terminated() {
    let root = awkward_tree();
    let mut node = Node::start(root.path());
    terminate(&node.child);
    assert_eq!(node.child.wait().unwrap().code(), Some(0));
}

#[test]
fn fs_lists_and_tells() {
    let root = awkward_tree();
    let node = Node::start(root.path());
    let names = "-r\na/\nempty\ngrün 文 \u{1f642}.txt\nlarge.bin\n";
    assert_eq!(node.fs_text(&["ls"]), names);
    assert_eq!(node.fs_text(&["ls", "/"]), names);
    let tree = node.fs_text(&["ls", "-R"]);
    assert!(tree.contains("a/b/c/exact\n"), "{tree}");
    // The circle is listed as a name, and not entered.
    assert!(tree.contains("a/circle/\n") && !tree.contains("a/circle/a"), "{tree}");
    let long = node.fs_text(&["ls", "-l", "--bytes", "large.bin"]);
    assert!(long.trim_start().starts_with("327803  20"), "{long}");
    let lines = node.fs_text(&["ls", "--json", "a"]);
    let names: Vec<Value> = lines.lines().map(|line| json(line)["path"].clone()).collect();
    assert_eq!(names, ["a/b", "a/circle", "a/inside", "a/nothing"]);
    let stat = json(&node.fs_text(&["stat", "--json", "/large.bin"]));
    assert_eq!((&stat["length"], &stat["block_count"]), (&327_803.into(), &6.into()));
    assert!(node.fs_fails(&["stat", "absent"]).starts_with("millrace: absent: not found"));
    assert!(node.fs_fails(&["ls", "outside"]).starts_with("millrace: outside: "));
}

#[test]
fn fs_finds_by_name_size_and_kind_and_sums_directories() {
    let root = awkward_tree();
    let node = Node::start(root.path());
    let find = |arguments: &[&str]| node.fs_text(&[&["find"], arguments].concat());
    assert_eq!(find(&["--name", "*.bin"]), "large.bin\n");
    assert_eq!(find(&["--type", "d"]), "a\na/b\na/circle\na/nothing\na/b/c\n");
    assert_eq!(find(&["--min-size", "64KiB", "--max-size", "64KiB"]), "a/b/c/exact\n");
    assert_eq!(find(&["--older-than", "1d"]), "");
    assert_eq!(find(&["--name", "l*", "-0", "--newer-than", "1d"]), "large.bin\0");
    let found = json(&find(&["--json", "--name", "exact"]));
    assert_eq!((&found["path"], &found["length"]), (&"a/b/c/exact".into(), &65_536.into()));
    assert!(node.fs_fails(&["find", "absent"]).contains("absent"));
    for pattern in ["[a", "a***b", "***"] {
        let said = said(node.fs(&["find", "--name", pattern]).output().unwrap());
        assert_eq!(said.code, Some(2), "{pattern}: {}", said.stdout);
        assert!(said.stderr.contains("--name") && said.stderr.contains(pattern), "{}", said.stderr);
    }

    let large = 5 * 65_536 + 123;
    let lines = node.fs_text(&["du", "--json"]);
    let sums: Vec<Value> = lines.lines().map(json).collect();
    let sum = |path: &str| {
        let sum = sums.iter().find(|sum| sum["path"] == path).expect(path);
        (sum["file_count"].as_u64().unwrap(), sum["total_bytes"].as_u64().unwrap())
    };
    assert_eq!(sum("a/b/c"), (1, 65_536));
    assert_eq!(sum("a/b"), (1, 65_536));
    assert_eq!(sum("a"), (2, 65_536 + large));
    assert_eq!(sum("a/nothing"), (0, 0));
    assert_eq!(sum(""), (6, 65_536 + 2 * large + 16 + 18));
    let text = node.fs_text(&["du", "-d", "1", "--bytes"]);
    let paths: Vec<_> = text.lines().filter_map(|line| line.split(' ').next_back()).collect();
    assert_eq!(paths, ["a", "/"]);
    assert!(node.fs_text(&["du", "large.bin"]).contains("1 file"));
}

/// Walks a directory that is listed in pages, with directories in each of them.
#[test]
fn fs_walks_a_wide_directory_page_by_page() {
    let root = tempfile::tempdir().unwrap();
    for number in 0..3_000 {
        let name = format!("{number:04}-{}", "n".repeat(100));
        match number % 100 {
            0 => {
                std::fs::create_dir(root.path().join(&name)).unwrap();
                std::fs::write(root.path().join(name).join("x"), "x").unwrap();
            }
            _ => std::fs::write(root.path().join(name), "x").unwrap(),
        }
    }
    let node = Node::start(root.path());
    assert_eq!(node.fs_text(&["ls"]).lines().count(), 3_000);
    assert_eq!(node.fs_text(&["ls", "-R"]).lines().count(), 3_030);
    assert_eq!(node.fs_text(&["find", "--type", "f"]).lines().count(), 3_000);
    assert_eq!(json(&node.fs_text(&["du", "--json", "-d", "0"]))["file_count"], 3_000);
    let load = json(&node.fs_text(&["load", "-r", "--json", "/"]));
    assert_eq!((&load["file_count"], &load["failed_count"]), (&3_000.into(), &0.into()));
}

#[test]
fn fs_cat_writes_the_bytes_asked_for() {
    let root = awkward_tree();
    let node = Node::start(root.path());
    let large = content(5 * 65_536 + 123);
    assert_eq!(node.fs_well(&["cat", "large.bin"]), large);
    assert_eq!(node.fs_well(&["cat", "--no-verify", "a/inside"]), large);
    assert_eq!(node.fs_well(&["cat", "empty"]), b"");
    let check = |arguments: &[&str], expect: &[u8]| {
        let all = [&["cat", "large.bin"], arguments].concat();
        assert_eq!(node.fs_well(&all), expect, "{arguments:?}");
    };
    check(&["--range", "65530-65545"], &large[65_530..65_546]);
    check(&["--range", "-5"], &large[large.len() - 5..]);
    check(&["--offset", "64KiB", "--length", "70000"], &large[65_536..135_536]);
    check(&["--offset", "327803"], b"");
    let beyond = node.fs_fails(&["cat", "large.bin", "--offset", "1GiB"]);
    assert!(beyond.contains("flag --offset: begins at byte 1073741824, large.bin has 327803"));
    let beyond = node.fs_fails(&["cat", "large.bin", "--range", "327804-"]);
    assert!(beyond.contains("flag --range: begins at byte 327804"), "{beyond}");
    assert_eq!(node.fs_well(&["cat", "empty", "--range", "5-"]), b"");
    assert!(node.fs_fails(&["cat", "a"]).contains("a is a directory\nhint: "));

    // A reader that has enough is not a failure.
    let mut child = node.fs(&["cat", "large.bin"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(first, large[..10]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn fs_steers_the_cache() {
    let root = awkward_tree();
    let node = Node::start(root.path());
    let report = |arguments: &[&str]| json(&node.fs_text(arguments));
    let load = report(&["load", "--json", "large.bin"]);
    assert_eq!((&load["block_count"], &load["filled_count"]), (&6.into(), &6.into()));
    let load = report(&["load", "--json", "large.bin"]);
    assert_eq!(load["filled_count"], 0);
    let load = report(&["load", "-r", "--json", "/"]);
    assert_eq!((&load["file_count"], &load["failed_count"]), (&6.into(), &0.into()));
    // Several paths, also from a file: one that fails does not stop the others.
    let list = root.path().join("list");
    std::fs::write(&list, "large.bin\n\nabsent\na/b/c/exact\r\n").unwrap();
    let arguments = ["load", "--json", "empty", "--paths-from", text(&list)];
    let output = said(node.fs(&arguments).output().unwrap());
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("absent: not found"), "{}", output.stderr);
    let load = json(&output.stdout);
    assert_eq!((&load["file_count"], &load["failed_count"]), (&3.into(), &1.into()));
    // What cannot be a path ends the list, and what came before it is loaded.
    std::fs::write(&list, b"large.bin\nb\xfcro.bin\n").unwrap();
    let told = node.fs_fails(&["load", "--paths-from", text(&list)]);
    assert!(told.contains("flag --paths-from") && told.contains("UTF-8"), "{told}");
    let status = report(&["status", "--json"]);
    assert_eq!(
        (&status["shard_count"], &status["counters"]["fill_error_count"]),
        (&1.into(), &0.into())
    );
    let free = report(&["free", "--json", "large.bin"]);
    assert_eq!(free["block_count"], 6);
    assert!(node.fs_fails(&["load", "a"]).contains("add -r"));
    assert!(node.fs_text(&["status"]).contains("\nfill_count "));
    let text = node.fs_text(&["free", "-r", "a/b"]);
    assert!(text.starts_with("freed ") && text.contains(" of 1 file,"), "{text}");
}

#[test]
fn bench_judges_flags_before_it_starts() {
    // Nothing listens there: an error would name what is contacted first.
    let read = |arguments: &[&str], words: &[&str]| {
        let all = [&["bench", "read", "--node", "127.0.0.1:1"], arguments].concat();
        run_badly(&all, 2, words);
    };
    read(&["--connections", "0"], &["--connections", "1..=16384"]);
    read(&["--depth", "-1"], &["--depth"]);
    read(&["--batch", "0"], &["--batch"]);
    read(&["--rate", "-5"], &["--rate", "above 0"]);
    read(&["--duration", "0"], &["--seconds", "above 0"]);
    read(&["--zipf", "-1"], &["--zipf", "above 0"]);
    read(&["--sizes", "4KiB,0"], &["--sizes", "at least one byte"]);
    read(&["--cpu", "99999"], &["flag --cpu: CPU 99999 is not usable\nhint: usable are "]);
    read(&["--server-pid", "4294967295"], &["flag --server-pid: there is no process"]);
    run_badly(&["bench", "read", "--node", "nonsense"], 2, &["flag --node", "host:port"]);
    let words = ["flag --node: this verb measures one node", "hint: write host:port"];
    run_badly(&["bench", "read", "--node", "zk://a:2181/m"], 2, &words);
    let compare = |arguments: &[&str], words: &[&str]| {
        run_badly(&[&["bench", "compare"], arguments].concat(), 2, words);
    };
    compare(&["--rounds", "0"], &["--rounds"]);
    compare(&["--server-cpu", "99999"], &["flag --server-cpu: CPU 99999 is not usable"]);
    let words = ["millrace: bench read: connect to 127.0.0.1:1", "hint: check --node"];
    run_badly(&["bench", "read", "--node", "127.0.0.1:1"], 1, &words);
}

#[test]
fn bench_scales_a_node_of_its_own() {
    let short = ["--rounds", "1", "--seconds", "0.05", "--warmup", "0", "--unix", "--json"];
    let points = ["--shards", "1", "--connections", "2,30", "--blocks", "10,1200", "--hot", "5"];
    let report = json(&run_well(&[&["bench", "scale"], &short[..], &points].concat()));
    let axes = report["axes"].as_array().unwrap();
    let names: Vec<&str> = axes.iter().filter_map(|axis| axis["name"].as_str()).collect();
    assert_eq!(names, ["shards", "connections", "blocks"]);
    for (axis, expected) in axes.iter().zip([1, 4, 4]) {
        assert_eq!(axis["skipped"].as_array().map(Vec::len), Some(0), "{axis}");
        let series = axis["series"].as_array().unwrap();
        let points: Vec<&Value> =
            series.iter().filter_map(|series| series["points"].as_array()).flatten().collect();
        assert_eq!(points.len(), expected, "{axis}");
        assert!(points.iter().all(|point| point["reads_per_s"].as_f64() > Some(0.0)), "{axis}");
    }
    let few = ["--axes", "blocks", "--blocks", "1000", "--memory", "1MiB"];
    let report = json(&run_well(&[&["bench", "scale"], &short[..], &few].concat()));
    let reason = report["axes"][0]["skipped"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("--memory"), "{reason}");
}

#[test]
fn bench_reads_a_store_through_a_node_and_directly() {
    let short =
        ["--rounds", "1", "--seconds", "0.05", "--latency-ms", "2", "--object-size", "2MiB"];
    let few = ["--concurrency", "2", "--small", "4", "--groups", "2", "--sharing", "20", "--json"];
    let report = json(&run_well(&[&["bench", "store"], &short[..], &few].concat()));
    let lines = report["lines"].as_array().unwrap();
    let round = |name: &str| {
        let line = lines.iter().find(|line| line["name"].as_str().unwrap().contains(name));
        line.unwrap_or_else(|| panic!("{name}: {report}"))["rounds"][0].clone()
    };
    let pair = |round: &Value, what: &str| [0, 1].map(|side| round[what][side].as_u64().unwrap());
    assert_eq!(pair(&round("many readers"), "reads"), [20, 1]);
    let columns = round("columns, bytes");
    // Two row groups of four chunks with 15 parts, and a footer that is read twice.
    let asked = 2 * 15 * 100_003 + 40_968;
    let [direct, ours] = pair(&columns, "bytes");
    assert!((asked..asked + 10_000).contains(&direct), "{columns}");
    assert!(ours >= asked - 8, "{columns}");
    assert_eq!(pair(&columns, "reads")[0], 2 + 2 * 4);
    let [direct, ours] = pair(&round("cold, large"), "bytes");
    assert!(direct >= 4 << 20 && ours >= 4 << 20 && ours < direct + 100_000, "{direct} {ours}");
    let [direct, ours] = pair(&round("cold, 4 KiB"), "reads");
    assert_eq!((direct, ours), (4, 4));
    for warm in ["warm, large", "warm, 4 KiB"] {
        assert_eq!(pair(&round(warm), "reads")[1], 0, "{warm}");
    }
    assert!(pair(&round("hits during"), "bytes")[1] >= 4 << 20);
    run_badly(&["bench", "store", "--store", "s3://b"], 1, &["http://HOST:PORT/BUCKET"]);
}

#[test]
fn bench_reads_a_node() {
    let root = awkward_tree();
    let node = Node::start(root.path());
    let arguments = ["--node", &node.address, "--seconds", "0.2", "--warmup", "0", "--json"];
    let arguments = [&["bench", "read", "/large.bin", "--verify"], &arguments[..]].concat();
    let report = json(&run_well(&arguments));
    assert_eq!(report["file_count"], 1);
    assert!(report["sizes"][0]["result"]["reads"].as_u64().unwrap() > 0, "{report}");
    let several = ["--sizes", "4KiB,64KiB", "--duration", "0.1", "--warmup", "0"];
    let several = [&["bench", "read", "large.bin", "--node", &node.address], &several[..]].concat();
    let report = run_well(&several);
    assert!(report.contains(" 1 shard\n") && report.contains("\n64 KiB "), "{report}");
    let report = json(&run_well(&[&several[..], &["--json"]].concat()));
    assert_eq!(report["sizes"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&report["sizes"][0]["size"], &report["sizes"][1]["size"]),
        (&4096.into(), &65_536.into())
    );
    let small = ["large.bin", "--size", "1MiB", "--node", &node.address];
    run_badly(&[&["bench", "read"], &small[..]].concat(), 1, &["millrace: bench read: ", "hint:"]);
}

#[test]
fn the_administration_socket_is_found_where_the_node_has_it() {
    let root = awkward_tree();
    let free = |node: &Node, variables: &[(&str, &str)]| {
        let mut command = node.fs(&["free", "large.bin"]);
        let said = said(command.envs(variables.iter().copied()).output().unwrap());
        assert_eq!(said.code, Some(0), "{variables:?}: {}", said.stderr);
    };
    let node = Node::start(root.path());
    free(&node, &[]);
    // The variable of the node's own key.
    free(&node, &[("MILLRACE_ADMIN", "auto")]);
    let elsewhere = tempfile::tempdir().unwrap();
    free(&node, &[("TMPDIR", text(elsewhere.path()))]);
    drop(node);
    if !rustix::process::geteuid().is_root() {
        // Only root can start a node of another user.
        return;
    }
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(root.path(), open).unwrap();
    let node = Node::start_with(root.path(), |command| {
        use std::os::unix::process::CommandExt;
        command.uid(65534).gid(65534).current_dir("/").env("TMPDIR", root.path());
    });
    free(&node, &[]);
}

#[test]
fn an_administration_socket_that_is_not_found_is_told_with_all_places() {
    let pin = |more: &[&str], code, words: &[&str]| {
        let arguments = [&["admin", "pin", "x"], more].concat();
        run_badly(&arguments, code, words).stderr
    };
    let flags = ["--admin", "--admin-token"];
    let told = pin(&["--node", "127.0.0.1:1"], 1, &flags);
    assert!(told.contains("admin-1.sock is not there"), "{told}");
    assert!(told.contains("/tmp/millrace-"), "{told}");
    // A node of this machine that has the same port is not meant.
    let told = pin(&["--node", "192.0.2.1:7070"], 1, &["192.0.2.1 is another machine"]);
    assert!(!told.contains("admin-7070"), "{told}");
    let told = pin(&["--node", "zk://127.0.0.1:2181/millrace"], 1, &["HOST:PORT"]);
    assert!(!told.contains("admin-2181"), "{told}");
    pin(&["--node", "unix:/no/such"], 1, &["HOST:PORT"]);
    pin(&["--admin", "run/admin"], 2, &["flag --admin", "from / on"]);
    pin(&["--admin", ""], 2, &["flag --admin", "from / on"]);
    pin(&["--admin", "127.0.0.1:7070"], 2, &["flag --admin", "without a token", "--admin-token"]);
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "a token of administrators").unwrap();
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let flags = ["--admin-token", text(&token), "--node", "zk://127.0.0.1:2181/millrace"];
    pin(&flags, 2, &["names coordination", "--node HOST:PORT"]);
}

#[test]
fn a_secret_that_is_none_is_told_with_its_flag_and_what_to_do() {
    use std::os::unix::fs::PermissionsExt;
    let root = awkward_tree();
    let at = |name: &str| root.path().join(name);
    let write = |name: &str, content: &str, mode: u32| {
        std::fs::write(at(name), content).unwrap();
        std::fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    write("nothing", "", 0o600);
    write("short", "0123456789abcde\n", 0o600);
    write("open", "0123456789abcdef\n", 0o644);
    write("good", "0123456789abcdef\n", 0o640);
    let cases = [
        ("missing", "No such file"),
        ("a", "is not a regular file"),
        ("nothing", "openssl rand -hex 32"),
        ("short", "16 to 4096 bytes"),
        ("open", "chmod 600"),
    ];
    let zk = "--coord=zk://127.0.0.1:1/millrace";
    for (name, word) in cases {
        let file = at(name);
        let node = ["node", text(root.path()), "--listen", "127.0.0.1:0"];
        let small = ["--shards=1", "--memory=16MiB", "--block-size=64KiB"];
        let run_node = |flags: &[&str], word: &str| {
            let arguments = [&node[..], &small, flags].concat();
            run_badly(&arguments, 1, &[flags[0], word, "hint: "]);
        };
        run_node(&["--admin-token", text(&file)], word);
        run_node(&["--coord-secret", text(&file), zk], word);
        let flags = ["admin", "pin", "x", "--admin-token", text(&file)];
        run_badly(&flags, 2, &["--admin-token", word, "hint: "]);
    }
    // White space around it counts for nothing: a node starts with it.
    let good = at("good");
    let node = Node::start_with(root.path(), |command| {
        command.args(["--admin", "", "--admin-token", text(&good)]);
    });
    let same = at("same");
    write("same", "\n  0123456789abcdef", 0o600);
    let mut command = node.fs(&["free", "large.bin", "--admin-token", text(&same)]);
    let said = said(command.output().unwrap());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
}

#[test]
fn flags_that_contradict_each_other_or_lead_nowhere_are_told() {
    let root = awkward_tree();
    let at = |name: &str| root.path().join(name).display().to_string();
    std::fs::write(at("secret"), "0123456789abcdef").unwrap();
    std::fs::set_permissions(at("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    let node = |flags: &[&str], code, words: &[&str]| {
        let head =
            ["node", text(root.path()), "--listen=127.0.0.1:0", "--shards=1", "--memory=16MiB"];
        run_badly(&[&head[..], &["--block-size=64KiB"], flags].concat(), code, words);
    };
    let secret = at("secret");
    let secret = ["--coord-secret", &secret];
    node(&secret, 2, &["--coord zk://", "hint: "]);
    let both = [&secret[..], &["--insecure", "--coord=zk://127.0.0.1:1/m"]].concat();
    node(&both, 2, &["contradict", "--insecure", "hint: "]);
    node(&["--coord=zk://127.0.0.1:1/m"], 2, &["--coord-secret", "--insecure"]);
    let socket = at("socket");
    node(&["--socket", &socket, "--admin", &socket], 2, &["same path", "hint: "]);
    node(&["--socket", &at("no/socket")], 1, &["no/socket", "hint: make the directory"]);
    let file = at("large.bin");
    node(
        &["--mount-root", text(root.path()), "--mount-root", &file],
        1,
        &["--mount-root", &file, "hint: "],
    );
    node(&["--mount-root", &at("a")], 1, &["below no mount_root", "hint: check --source"]);
    node(&["--socket-group", "of-this-name"], 1, &["--socket-group of-this-name", "hint: "]);
    node(&["--socket-mode", "6"], 2, &["--socket-mode", "three octal digits"]);
    let up = ["cluster", "up", "--nodes=1", "--replicas=1", "--port=1024", "--dir"];
    let dir = at("cluster");
    std::fs::create_dir_all(at("cluster/secret")).unwrap();
    run_badly(
        &[&up[..], &[&dir, "--source", text(root.path())]].concat(),
        1,
        &["secret", "is not a regular file"],
    );
}
