//! A node as a process of its own: `millrace node`, started on a free port.
//!
//! Owns the process. Always holds: it is killed when the handle is dropped; its log is in a file, which
//! is printed when the test fails. Nothing of the environment configures it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use millrace_client::{Client, ClientConfig};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{HANG_GUARD, Peer};

/// Tests another binary than the one of this build, such as an installed one.
const BINARY_VARIABLE: &str = "MILLRACE_BINARY";

/// The program under test: built once for each run of the tests, since one from an earlier build
/// would prove nothing.
static BINARY: LazyLock<Result<PathBuf, String>> =
    LazyLock::new(|| binary().map_err(|error| format!("{error:#}")));

fn binary() -> anyhow::Result<PathBuf> {
    if let Some(binary) = std::env::var_os(BINARY_VARIABLE) {
        return Ok(binary.into());
    }
    // target/<profile>/deps/e2e-<hash>
    let test = std::env::current_exe().context("find this executable")?;
    let profile = test.parent().and_then(Path::parent).context("find the target directory")?;
    let binary = profile.join("millrace");
    if let Some(cargo) = std::env::var_os("CARGO") {
        let name = match profile.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        let arguments = ["build", "--quiet", "--package", "millrace-cli", "--profile", name];
        let built = Command::new(cargo).args(arguments).status().context("run cargo")?;
        if !built.success() {
            bail!("`cargo {}` failed", arguments.join(" "));
        }
    }
    if !binary.exists() {
        bail!("{} is not there; run `cargo build --package millrace-cli`", binary.display());
    }
    Ok(binary)
}

/// Settings of a node, by the names of its keys.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    source: PathBuf,
    values: Vec<(&'static str, String)>,
}

impl NodeOptions {
    /// A small node with one shard on any free port.
    pub fn new(source: &Path) -> NodeOptions {
        let options = NodeOptions { source: source.to_owned(), values: Vec::new() };
        options
            .set("listen", "127.0.0.1:0")
            .set("shards", 1)
            .set("memory", "16MiB")
            .set("block_size", "64KiB")
    }

    /// Sets a key, in place of the value it had.
    #[must_use]
    pub fn set(mut self, key: &'static str, value: impl ToString) -> NodeOptions {
        self.values.retain(|(other, _)| *other != key);
        self.values.push((key, value.to_string()));
        self
    }

    /// Starts the node and waits until it listens.
    ///
    /// # Panics
    /// If it does not, with what it wrote.
    pub fn start(&self) -> Node {
        match Node::start(self) {
            Ok(node) => node,
            Err(error) => panic!("start a node: {error:#}"),
        }
    }
}

/// What a process holds in memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All that is resident, shared memory included.
    pub resident: u64,
    /// Resident shared memory: the blocks.
    pub shared: u64,
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    options: NodeOptions,
    child: Child,
    address: SocketAddr,
    logs: TempDir,
}

impl Node {
    /// Starts a node with the default settings of the tests.
    pub fn serve(source: &Path) -> Node {
        NodeOptions::new(source).start()
    }

    fn start(options: &NodeOptions) -> anyhow::Result<Node> {
        let logs = tempfile::Builder::new().prefix("millrace-log-").tempdir()?;
        let log = logs.path().join("stderr");
        let binary = match &*BINARY {
            Ok(binary) => binary,
            Err(error) => bail!("no `millrace` binary to test: {error}"),
        };
        let mut command = Command::new(binary);
        command.arg("node").arg("--source").arg(&options.source);
        for (key, value) in &options.values {
            command.arg(format!("--{}", key.replace('_', "-"))).arg(value);
        }
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("MILLRACE_")) {
                command.env_remove(name);
            }
        }
        command.env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut child = command.spawn().with_context(|| format!("run {}", binary.display()))?;
        let output = child.stdout.take().context("standard output is piped")?;
        let address = wait_for_address(output);
        let address = match address {
            Ok(address) => address,
            Err(error) => {
                // It may have ended by itself; then there is nothing to kill.
                let _ = child.kill();
                let status = child.wait()?;
                let log = std::fs::read_to_string(&log)?;
                bail!("{error:#}; it ended with {status} and wrote:\n{log}");
            }
        };
        Ok(Node { options: options.clone(), child, address, logs })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A client of this node.
    ///
    /// # Panics
    /// If it cannot connect.
    pub async fn client(&self) -> Client {
        self.client_with(ClientConfig { deadline: HANG_GUARD, ..ClientConfig::new() }).await
    }

    /// A client with these settings.
    ///
    /// # Panics
    /// If it cannot connect.
    pub async fn client_with(&self, config: ClientConfig) -> Client {
        Client::connect(self.address.to_string(), config).await.expect("connect a client")
    }

    /// A peer that speaks raw frames to this node.
    pub fn peer(&self) -> Peer {
        Peer::connect(self.address)
    }

    /// A counter of the node, asked for on a connection of its own.
    ///
    /// # Panics
    /// If the node has no such counter, or does not answer.
    pub fn counter(&self, name: &str) -> u64 {
        self.peer().counter(name)
    }

    /// Whether the process lives.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Asks the process to stop, as a service manager does, without waiting.
    ///
    /// # Panics
    /// If the process is gone.
    pub fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).expect("send SIGTERM");
    }

    /// Waits until the process ends.
    ///
    /// # Panics
    /// If that takes longer than the guard.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("ask for the process") {
                return status;
            }
            assert!(start.elapsed() < HANG_GUARD, "the node does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops the node and sees to it that it ended well: exit status 0, no error in its log.
    ///
    /// # Panics
    /// If not.
    pub fn stop(mut self) {
        self.terminate();
        let status = self.wait();
        assert!(status.success(), "the node ended with {status}");
        let log = self.log();
        let bad = log.lines().find(|line| line.contains("ERROR") || line.contains("panicked"));
        assert_eq!(bad, None, "in the log of the node");
    }

    /// Kills the node as a crash would.
    ///
    /// # Panics
    /// If the process is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill the node");
        self.child.wait().expect("wait for the node");
    }

    /// Starts it again on the port it had. For nodes that were killed.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn restart(&mut self) {
        let options = self.options.clone().set("listen", self.address);
        let start = Instant::now();
        loop {
            match Node::start(&options) {
                Ok(node) => {
                    *self = node;
                    return;
                }
                // Somebody else's connection may have the port as its own for a moment.
                Err(error) if start.elapsed() > HANG_GUARD => panic!("start again: {error:#}"),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// What the node wrote to its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.logs.path().join("stderr")).unwrap_or_default()
    }

    /// What the process holds in memory now.
    ///
    /// # Panics
    /// If the process is gone.
    pub fn memory(&self) -> Memory {
        memory_of(self.child.id()).expect("read the node's memory from /proc")
    }

    /// Its number, for [`memory_of`].
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Processor time that the process has used, in user and kernel mode.
    ///
    /// # Panics
    /// If the process is gone.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.expect("read the node's times from /proc");
        // The name in parentheses may hold anything; utime and stime are fields 14 and 15 of all.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: u64 = rest
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        let per_second = rustix::param::clock_ticks_per_second();
        Duration::from_millis(ticks * 1000 / per_second)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the node at {} ---\n{}---", self.address, self.log());
        }
    }
}

/// What a process holds in memory, if it lives.
pub fn memory_of(process: u32) -> Option<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kibibytes << 10)
    };
    Some(Memory { resident: field("VmRSS:")?, shared: field("RssShmem:")? })
}

/// Reads the lines of a starting node until it tells its address; the rest is read and dropped, so
/// that the node never waits for its reader.
fn wait_for_address(output: std::process::ChildStdout) -> anyhow::Result<SocketAddr> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let address = line.split("listening on ").nth(1).map(str::to_owned);
            if let Some(address) = address {
                // Nobody waits after the first one.
                let _ = sender.send(address);
            }
        }
    });
    let address = receiver.recv_timeout(HANG_GUARD).context("it does not tell that it listens")?;
    let address = address.split_whitespace().next().unwrap_or_default();
    address.parse().with_context(|| format!("'{address}' is no address"))
}
