//! A log that cannot be written, or is not read, does not end or block a process. Neither does the
//! stdout of a process that serves; a tool whose reader goes away ends without a message.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use millrace_tests::process::{Process, program, unread_log};
use millrace_tests::{HANG_GUARD, NodeOptions, Scratch, content};
use rustix::process::Signal;

/// Returns places where no line can be written, each with what has to be held for it to stay so.
fn dead_logs() -> Vec<(&'static str, Stdio, Option<File>)> {
    let full = File::options().write(true).open("/dev/full").expect("open /dev/full");
    let (gone, writer) = rustix::pipe::pipe().expect("a pipe");
    drop(gone);
    let (unread, stuffed) = unread_log();
    vec![
        ("a full disk", full.into(), None),
        ("a reader that went away", writer.into(), None),
        ("a reader that does not read", stuffed, Some(unread)),
    ]
}

#[test]
fn a_node_serves_on_though_its_log_cannot_be_written() {
    for (what, log, _held) in dead_logs() {
        let scratch = Scratch::new();
        scratch.file("a", 100_000);
        let options = NodeOptions::new(scratch.root()).set("coord", "none").set("shards", 2);
        let node = options.start_logging_to(log);
        let mut peer = node.peer();
        let entry = peer.stat("a").expect(what);
        for _ in 0..100 {
            let read = peer.read(&entry, 70_000, 10_000).expect(what);
            content::check("a", 70_000, &read);
        }
        drop(peer);
        // Its end is logged, too: nothing waits for that.
        node.stop();
    }
}

#[test]
fn a_replica_of_coordination_serves_on_though_its_log_cannot_be_written() {
    for (what, log, _held) in dead_logs() {
        let data = tempfile::tempdir().expect("a directory");
        let mut command = Command::new(program().expect("a binary"));
        command.args(["coord", "--client-address", "127.0.0.1:0", "--data"]).arg(data.path());
        let process = Process::spawn_logging_to("the replica", &mut command, Some(log));
        let mut process = process.expect(what);
        process.wait_for_line("is serving ZooKeeper clients at ").expect(what);
        process.stop();
    }
}

#[test]
fn lines_that_waited_are_written_when_the_log_is_read_again() {
    let scratch = Scratch::new();
    let (mut unread, log) = unread_log();
    let mut node = NodeOptions::new(scratch.root()).set("coord", "none").start_logging_to(log);
    assert!(node.peer().ping());
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        unread.read_to_string(&mut text).map(|_| text)
    });
    node.terminate();
    assert!(node.wait().success());
    let text = reading.join().expect("a reader").expect("text");
    for line in ["shards listen at", "stopping; a second signal", "stopped"] {
        assert!(text.contains(line), "no '{line}' in {}", text.trim_start_matches('.'));
    }
}

#[test]
fn a_whole_cluster_serves_on_though_nobody_reads_its_stdout() {
    let scratch = Scratch::new();
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(program().expect("a binary"));
    command.args(["cluster", "up", "--nodes", "1", "--replicas", "1", "--memory", "16MiB"]);
    // The ports are below those that the system chooses from.
    command.args(["--port", &fastrand::u16(12_000..30_000).to_string()]);
    command.args(["--node-flag=--block-size=64KiB", "--source"]).arg(scratch.root());
    command.arg("--dir").arg(directory.path());
    let (gone, stdout) = rustix::pipe::pipe().expect("a pipe");
    drop(gone);
    command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
    let mut cluster = command.spawn().expect("start a cluster");
    let start = Instant::now();
    let log = directory.path().join("node-1/log");
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("listen at") {
        let is_running = cluster.try_wait().expect("ask for it").is_none();
        if !is_running || start.elapsed() > HANG_GUARD {
            // It may have ended already.
            let _ = cluster.kill();
            let output = cluster.wait_with_output().expect("wait for it");
            panic!("no node: {} {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // It would end when it prints where everything is, which is now.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(cluster.try_wait().expect("ask for it"), None, "it ended");
    let pid = rustix::process::Pid::from_child(&cluster);
    rustix::process::kill_process(pid, Signal::TERM).expect("send a signal");
    let output = cluster.wait_with_output().expect("wait for it");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("stdout cannot be written"), "{errors}");
}

/// Returns the output of a tool with this stdout.
fn tool(arguments: &[&str], stdout: Stdio) -> Output {
    let mut command = Command::new(program().expect("a binary"));
    command.args(arguments).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
    command.spawn().expect("start a tool").wait_with_output().expect("wait for it")
}

#[test]
fn a_tool_whose_reader_goes_away_ends_without_a_word() {
    let scratch = Scratch::new();
    scratch.file("large", 4 << 20);
    let node = NodeOptions::new(scratch.root()).start();
    let address = node.address().to_string();
    let cat = ["fs", "cat", "large", "--node", &address];
    for arguments in [&cat[..], &["fs", "ls", "-l", "--node", &address], &["--help"]] {
        let (gone, writer) = rustix::pipe::pipe().expect("a pipe");
        drop(gone);
        let output = tool(arguments, writer.into());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {} {errors}", output.status);
        assert_eq!(errors, "", "{arguments:?}");
    }
    // A full disk is different.
    let full = File::options().write(true).open("/dev/full").expect("open /dev/full");
    let output = tool(&cat, full.into());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.starts_with("millrace: cannot write to stdout: "), "{errors}");
    node.stop();
}

#[test]
fn a_service_tells_its_manager_when_it_serves_and_when_it_ends() {
    let scratch = Scratch::new();
    let manager = std::os::unix::net::UnixDatagram::bind(scratch.at("notify")).expect("a socket");
    manager.set_read_timeout(Some(HANG_GUARD)).expect("a time-out");
    let heard = || {
        let mut bytes = [0; 64];
        let count = manager.recv(&mut bytes).expect("the manager is told");
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    };
    let socket = scratch.at("notify").display().to_string();
    let options = NodeOptions::new(scratch.root()).environment([("NOTIFY_SOCKET", socket.clone())]);
    let node = options.start();
    assert_eq!(heard(), "READY=1");
    node.stop();
    assert_eq!(heard(), "STOPPING=1");
    let mut command = Command::new(program().expect("a binary"));
    command.args(["coord", "--client-address", "127.0.0.1:0", "--data"]).arg(scratch.at("data"));
    command.env("NOTIFY_SOCKET", socket);
    let replica = Process::spawn("the replica", &mut command).expect("spawn a replica");
    assert_eq!(heard(), "READY=1");
    replica.stop();
    assert_eq!(heard(), "STOPPING=1");
}

#[test]
fn a_log_of_json_is_an_object_a_line() {
    let scratch = Scratch::new();
    let options = NodeOptions::new(scratch.root()).set("log_format", "json");
    let (mut reader, writer) =
        rustix::pipe::pipe().map(|(a, b)| (File::from(a), b)).expect("a pipe");
    options.start_logging_to(writer.into()).stop();
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read the log");
    assert!(text.contains("shards listen at"), "{text}");
    for line in text.lines() {
        let start = "{\"timestamp\":\"20";
        assert!(line.starts_with(start) && line.ends_with('}'), "{line}");
        for key in ["level", "target", "message", "fields"] {
            assert!(line.contains(&format!("\"{key}\":")), "{key} in {line}");
        }
    }
    let environment = [("MILLRACE_LOG_FORMAT", "yaml".to_owned())];
    let told = NodeOptions::new(scratch.root()).environment(environment).start_in_vain();
    assert!(told.contains("use text or json"), "{told}");
}
