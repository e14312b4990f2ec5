//! `millrace coord` and its verbs, as an operator uses them on replicas that run, that were stopped,
//! and that were killed.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use millrace_proto::zookeeper::create_mode;
use millrace_tests::coord::{Client, Ensemble, Failure, Options, connect_any};
use millrace_tests::process::{Process, program};
use millrace_tests::{HANG_GUARD, wait_until};
use tempfile::TempDir;

/// What a replica says once clients are served.
const READY: &str = "is serving ZooKeeper clients at ";
/// Far above what a stop takes, far below what a hang would.
const STOP_MAX: Duration = Duration::from_secs(10);

/// What a verb said, with its exit code.
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn coord(arguments: &[&str]) -> Said {
    let mut command = Command::new(program().expect("a program to test"));
    let output = command.arg("coord").args(arguments).stdin(Stdio::null()).output();
    let output = output.expect("run a verb");
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

/// Runs a verb that has to succeed.
fn well(arguments: &[&str]) -> String {
    let said = coord(arguments);
    assert_eq!(said.code, Some(0), "{arguments:?}: {}{}", said.stdout, said.stderr);
    said.stdout
}

/// Runs a verb that has to fail, and say all these words.
fn badly(arguments: &[&str], words: &[&str]) {
    let said = coord(arguments);
    assert_eq!(said.code, Some(1), "{arguments:?}: {}{}", said.stdout, said.stderr);
    for word in words {
        assert!(said.stderr.contains(word), "{arguments:?} does not say {word}: {}", said.stderr);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

/// Starts a replica with only flags; returns where it serves.
fn start(arguments: &[&str]) -> (Process, SocketAddr, String) {
    let mut command = Command::new(program().expect("a program to test"));
    command.arg("coord").args(arguments);
    let mut process = Process::spawn("a replica", &mut command).expect("start a replica");
    let rest = process.wait_for_line(READY).expect("it serves");
    let (address, who) = rest.split_once(' ').expect("address and name");
    (process, address.parse().expect("an address"), who.to_owned())
}

fn client_of(address: SocketAddr) -> Client {
    connect_any(&[address], 10_000)
}

/// Returns the digest that a dump ends with.
fn digest_of(dump: &str) -> &str {
    let last = dump.lines().last().expect("a summary");
    last.rsplit_once("digest ").expect("a digest").1
}

fn root() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn a_replica_needs_nothing_but_a_directory() {
    let root = root();
    let directory = root.path().join("data");
    let flags = ["--data", text(&directory), "--client-address", "127.0.0.1:0"];
    let (mut process, address, who) = start(&flags);
    assert_eq!(who, "(a replica by itself)");
    client_of(address).make("/a", b"1").expect("create");
    badly(&flags, &["is in use by another process", "stop that one first"]);
    let began = Instant::now();
    process.terminate();
    assert!(process.wait().success());
    assert!(began.elapsed() < STOP_MAX, "it stopped after {:?}", began.elapsed());
    let (process, address, _) = start(&flags);
    assert_eq!(client_of(address).get("/a", false).expect("get").0, Some(b"1".to_vec()));
    process.stop();
}

#[test]
fn a_taken_port_is_named_with_the_way_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let taken = listener.local_addr().expect("an address").to_string();
    let root = root();
    let directory = root.path().join("data");
    let words = [taken.as_str(), "--client-address"];
    badly(&["--data", text(&directory), "--client-address", &taken], &words);
    let flags = ["--data", text(&directory), "--client-address", "127.0.0.1:0", "--admin", &taken];
    badly(&flags, &[&taken, "admin endpoint"]);
}

#[test]
fn a_backup_restores_what_its_replica_had_and_ends_its_sessions() {
    let root = root();
    let path = |name: &str| root.path().join(name);
    let data = path("data");
    let flags = ["--data", text(&data), "--client-address", "127.0.0.1:0"];
    let (process, address, _) = start(&flags);
    let mut client = client_of(address);
    client.make("/a", b"text").expect("create");
    client.make("/a/b", b"\xff\x00").expect("create");
    client.create("/a/mine", b"", create_mode::EPHEMERAL).expect("create");
    for number in 0..300 {
        client.make(&format!("/a/b/{number}"), &vec![b'x'; number * 7]).expect("create");
    }
    client.set("/a", b"newer", 0).expect("set");

    let (online, offline, restored) = (path("online"), path("offline"), path("restored"));
    well(&["backup", "--data", text(&data), text(&online)]);
    badly(&["backup", "--data", text(&data), text(&online)], &["exists"]);
    badly(&["dump", "--data", text(&data)], &["in use", "backup"]);
    badly(&["restore", text(&online), "--data", text(&data)], &["not empty"]);
    let dump = well(&["dump", text(&online)]);
    let digest = digest_of(&dump);
    for words in ["\n/a  ", "5 bytes \"newer\"", "/a/b/299  ", "1 ephemeral", "1 session;"] {
        assert!(dump.contains(words), "no {words:?}: {dump}");
    }

    // The client is connected: what its session owns is part of the state.
    process.stop();
    assert_eq!(digest_of(&well(&["dump", "--data", text(&data)])), digest);
    well(&["backup", "--data", text(&data), text(&offline)]);
    assert_eq!(digest_of(&well(&["dump", text(&offline)])), digest);
    well(&["restore", text(&offline), "--data", text(&restored)]);
    let (process, address, _) =
        start(&["--data", text(&restored), "--client-address", "127.0.0.1:0"]);
    // It may have been given a lock, and lost it with what came after the copy.
    let before = Client::attach(address, client.session(), HANG_GUARD);
    assert!(matches!(before, Err(Failure::Expired)), "{before:?}");
    let mut client = client_of(address);
    let (data, stat) = client.get("/a", false).expect("get");
    assert_eq!((data, stat.version), (Some(b"newer".to_vec()), 1));
    assert_eq!(client.children("/a/b", false).expect("list").len(), 300);
    assert_eq!(client.children("/a", false).expect("list"), ["b"], "ephemeral nodes end");
    client.make("/a/later", b"").expect("create");
    process.stop();
}

#[test]
fn what_was_acknowledged_before_a_kill_is_dumped_and_copied() {
    let root = root();
    let path = |name: &str| root.path().join(name);
    let data = path("data");
    // The checkpoint is far behind, so most of the state is only in the log.
    let mut flags = vec!["--data", text(&data), "--client-address", "127.0.0.1:0"];
    flags.extend(["--checkpoint-interval-ms", "3600000"]);
    let (mut process, address, _) = start(&flags);
    let mut client = client_of(address);
    for number in 0..500 {
        client.make(&format!("/n{number}"), b"x").expect("create");
        if number == 200 {
            well(&["snapshot", "--data", text(&data)]);
        }
    }
    process.kill();
    let dump = well(&["dump", "--data", text(&data), "--json"]);
    for number in 0..500 {
        assert!(dump.contains(&format!("\"path\":\"/n{number}\"")), "/n{number} is not there");
    }
    assert!(dump.contains("\"unsettled_entries\":0"), "{dump}");
    let (copy, restored) = (path("copy"), path("restored"));
    well(&["backup", "--data", text(&data), text(&copy)]);
    well(&["restore", text(&copy), "--data", text(&restored)]);
    let (process, address, _) =
        start(&["--data", text(&restored), "--client-address", "127.0.0.1:0"]);
    client_of(address).exists("/n499", false).expect("the last one");
    process.stop();
}

#[test]
fn damage_is_named_and_nothing_of_it_shown() {
    let root = root();
    let path = |name: &str| root.path().join(name);
    let data = path("data");
    let (process, address, _) = start(&["--data", text(&data), "--client-address", "127.0.0.1:0"]);
    let mut client = client_of(address);
    for number in 0..200 {
        client.make(&format!("/n{number}"), &[7; 500]).expect("create");
    }
    let copy = path("copy");
    well(&["backup", "--data", text(&data), text(&copy)]);
    process.stop();

    let whole = fs::read(&copy).expect("read");
    let check = |bytes: &[u8]| {
        fs::write(path("bad"), bytes).expect("write");
        let said = coord(&["dump", text(&path("bad"))]);
        assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""));
        assert!(said.stderr.contains("/bad"), "it is named: {}", said.stderr);
        badly(
            &["restore", text(&path("bad")), "--data", text(&path("new"))],
            &["/bad", "cannot be used"],
        );
        assert!(!path("new").exists());
    };
    check(&whole[..whole.len() / 2]);
    check(&whole[..whole.len() - 1]);
    let mut flipped = whole.clone();
    flipped[whole.len() / 3] ^= 1;
    check(&flipped);

    let file = data.join("state/data.mdb");
    let mut bytes = fs::read(&file).expect("read");
    // All pages are damaged but the two that say where the others are.
    bytes.iter_mut().skip(8192).for_each(|byte| *byte ^= 0x55);
    fs::write(&file, bytes).expect("write");
    let said = coord(&["dump", "--data", text(&data)]);
    assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""));
    assert!(
        said.stderr.contains("the state") && said.stderr.contains("is damaged"),
        "{}",
        said.stderr
    );
}

#[test]
fn operators_see_and_steer_an_ensemble() {
    let mut ensemble = Ensemble::start(3, Options::new());
    let leader = ensemble.wait_leader();
    let directories: Vec<_> =
        ensemble.replicas.iter().map(|replica| replica.directory().to_owned()).collect();
    let data = |index: usize| text(&directories[index]);
    ensemble.replicas[leader].client().make("/a", b"x").expect("create");

    let status = well(&["status", "--data", data(leader)]);
    for words in
        [&*format!("replica {} of 3, leader, up ", leader + 1), "LAG", "nodes", "log syncs"]
    {
        assert!(status.contains(words), "no {words:?}: {status}");
    }
    wait_until("no replica lags", || {
        let members = well(&["members", "--data", data(leader)]);
        members.lines().count() == 4
            && members.matches("  participant  ").count() == 3
            && members.lines().skip(1).all(|line| line.contains("  0  127.0.0.1:"))
    });
    let follower = (leader + 1) % 3;
    let status = well(&["status", "--data", data(follower)]);
    assert!(status.contains(&format!("follower of {}", leader + 1)), "{status}");

    let leader_is = format!("ask replica {}", leader + 1);
    badly(&["transfer", "--data", data(follower)], &[&leader_is]);
    let to = (follower + 1).to_string();
    let moved = well(&["transfer", "--data", data(leader), &to]);
    assert_eq!(moved, format!("replica {to} leads\n"));
    wait_until("the other leads", || ensemble.leader() == Some(follower));

    ensemble.replicas[leader].kill();
    wait_until("the dead one is not reached", || {
        well(&["members", "--data", data(follower)]).contains("not reached")
    });
    badly(&["status", "--data", data(leader)], &["no replica runs in"]);
}

#[test]
fn members_come_and_go() {
    let mut ensemble = Ensemble::start(3, Options::new());
    ensemble.wait_leader();
    let first = ensemble.replicas[0].directory().to_owned();
    ensemble.replicas[0].client().make("/a", b"x").expect("create");
    let line = ensemble.prepare_joiner(&Options::new());
    badly(&["remove", "--data", text(&first), "1", "2", "3"], &["refused", "would have no voter"]);

    ensemble.replicas[3].spawn();
    let members = well(&["add", "--data", text(&first), &line]);
    assert!(members.contains("server.4=") && members.contains("version="), "{members}");
    ensemble.replicas[3].wait_ready().expect("it serves");
    ensemble.replicas[3].client().exists("/a", false).expect("it has what the others have");

    let members = well(&["remove", "--data", text(&first), "4"]);
    assert!(!members.contains("server.4="), "{members}");
    assert_eq!(well(&["members", "--data", text(&first)]).lines().count(), 4);
    wait_until("the removed replica does not serve", || ensemble.replicas[3].mode().is_empty());
}

#[test]
fn an_ensemble_grows_from_a_backup() {
    let single = Ensemble::single(Options::new());
    let replica = &single.replicas[0];
    replica.client().make("/a", b"kept").expect("create");
    let root = root();
    let path = |name: &str| root.path().join(name);
    let (copy, first, second) = (path("copy"), path("first"), path("second"));
    well(&["backup", "--data", text(replica.directory()), text(&copy)]);
    badly(
        &["add", "--data", text(replica.directory()), "server.2=127.0.0.1:1:2;3"],
        &["refused", "start it again"],
    );

    // These ports are free: they are those of an ensemble that never starts.
    let unused = Ensemble::prepare(2, false, &Options::new()).expect("ports");
    let line = |index: usize| {
        let replica = &unused.replicas[index];
        let (peer, client) = (replica.peer_address(), replica.address());
        format!("server.{}={peer}:{};{client}", replica.id(), peer.port() + 1)
    };
    well(&["restore", text(&copy), "--data", text(&first), "--member", &line(0)]);
    let both = format!("{},{}", line(0), line(1));
    let address = |index: usize| unused.replicas[index].address().to_string();
    let (process, at, who) = start(&[
        "--data",
        text(&first),
        "--replica-id",
        "1",
        "--members",
        &line(0),
        "--client-address",
        &address(0),
    ]);
    assert_eq!(who, "(replica 1 of 1)");
    assert_eq!(client_of(at).get("/a", false).expect("get").0, Some(b"kept".to_vec()));

    let mut command = Command::new(program().expect("a program to test"));
    command.args(["coord", "--data", text(&second), "--replica-id", "2", "--members", &both]);
    command.args(["--client-address", &address(1), "--join"]);
    let mut joining = Process::spawn("the second", &mut command).expect("start a replica");
    wait_until("it is let in", || {
        coord(&["add", "--data", text(&first), &line(1)]).code == Some(0)
    });
    joining.wait_for_line(READY).expect("it serves");
    let mut client = client_of(unused.replicas[1].address());
    assert_eq!(client.get("/a", false).expect("get").0, Some(b"kept".to_vec()));
    drop((process, joining));
}
