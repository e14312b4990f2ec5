//! `millrace cluster up` and the restart of all that it runs, while clients read.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use millrace_client::blocking::Client;
use millrace_client::{ClientConfig, ReadOptions};
use millrace_tests::process::program;
use millrace_tests::{HANG_GUARD, Scratch, content};
use rustix::process::{Pid, Signal, kill_process};

/// A cluster of processes that ends with this.
struct Up {
    child: Child,
    /// The processes of the cluster: coordination first.
    pids: Vec<i32>,
}

impl Up {
    /// Starts a replica and two nodes.
    fn start(source: &Path, directory: &Path, port: u16) -> Up {
        let mut command = millrace(&["cluster", "up", "--nodes=2", "--replicas=1", "--json"]);
        command.args(["--memory=16MiB", "--node-flag=--block-size=64KiB", "--port"]);
        command.arg(port.to_string()).arg("--source").arg(source).arg("--dir").arg(directory);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
        let mut pids = Vec::new();
        for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
            let line = line.expect("a line");
            let pid = line.trim().strip_prefix("\"pid\": ").map(|rest| rest.trim_end_matches(','));
            pids.extend(pid.map(|pid| pid.parse::<i32>().expect("a number")));
            if line == "]" {
                break;
            }
        }
        Up { child, pids }
    }

    /// Stops it; returns what it wrote to stderr.
    fn stop(self) -> String {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("send a signal");
        let output = self.child.wait_with_output().expect("wait for it");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}");
        told
    }
}

fn millrace(arguments: &[&str]) -> Command {
    let mut command = Command::new(program().expect("a program to test"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn restart(directory: &Path) -> Output {
    millrace(&["cluster", "restart", "--dir"]).arg(directory).output().expect("run a verb")
}

#[test]
fn a_cluster_is_restarted_process_by_process_while_clients_read() {
    let scratch = Scratch::new();
    scratch.file("f", 200_000);
    let directory = tempfile::tempdir().expect("a directory");
    let refused = restart(directory.path());
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("no cluster runs in") && told.contains("cluster up"), "{told}");

    // The ports are below those that the system chooses from.
    let port = fastrand::u16(12_000..30_000);
    let cluster = Up::start(scratch.root(), directory.path(), port);
    assert_eq!(cluster.pids.len(), 3);
    let config = ClientConfig { deadline: HANG_GUARD, ..ClientConfig::new() };
    let client = Client::connect(format!("127.0.0.1:{port},127.0.0.1:{}", port + 100), config);
    let client = client.expect("connect");
    let is_over = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                let file = client.stat("f").expect("a file");
                let bytes = client.read_with(&file, 0, u64::MAX, ReadOptions::default());
                content::check("f", 0, &bytes.expect("a read"));
                count += 1;
            }
            count
        });
        let output = restart(directory.path());
        is_over.store(true, Ordering::Relaxed);
        assert!(reader.join().expect("reads go on") > 0);
        output
    });
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    let names: Vec<&str> = told.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["coord-1", "node-1", "node-2"], "{told}");
    for pid in &cluster.pids {
        let is_there = Path::new(&format!("/proc/{pid}/stat")).exists();
        assert!(!is_there, "{pid} was not restarted");
    }
    cluster.stop();
    assert_eq!(restart(directory.path()).status.code(), Some(1), "it does not run any more");
}

#[test]
fn a_process_that_ends_is_told_and_a_restart_brings_it_back() {
    let scratch = Scratch::new();
    let directory = tempfile::tempdir().expect("a directory");
    let cluster = Up::start(scratch.root(), directory.path(), fastrand::u16(12_000..30_000));
    let pid = Pid::from_raw(cluster.pids[2]).expect("a process");
    kill_process(pid, Signal::KILL).expect("send a signal");
    let start = Instant::now();
    while Path::new(&format!("/proc/{}/stat", cluster.pids[2])).exists() {
        // It is gone when its parent has noticed.
        assert!(start.elapsed() < HANG_GUARD, "its end was not noticed");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let output = restart(directory.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = cluster.stop();
    assert!(told.contains("node-2 has ended") && told.contains("cluster restart"), "{told}");
}
