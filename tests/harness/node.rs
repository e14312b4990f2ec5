//! A node as a process of its own: `millrace node`, started on a free port.
//!
//! Owns its settings and its address; the process itself is left to [`Process`], which kills it with
//! the handle and prints its log when the test fails.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use millrace_client::{Client, ClientConfig};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{Memory, Process, program};
use crate::{HANG_GUARD, Peer};

/// Settings of a node, by the names of its keys.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    source: PathBuf,
    values: Vec<(&'static str, String)>,
    environment: Vec<(&'static str, String)>,
    /// Keeps the directory of its sockets.
    _places: Option<Arc<TempDir>>,
}

impl NodeOptions {
    /// Returns the settings of a small node with one shard on any free port.
    pub fn new(source: &Path) -> NodeOptions {
        let places = tempfile::Builder::new().prefix("millrace-node-").tempdir();
        let places = places.expect("a directory for sockets");
        let (values, environment) = (Vec::new(), Vec::new());
        let options = NodeOptions { source: source.to_owned(), values, environment, _places: None };
        options
            .set("listen", "127.0.0.1:0")
            .set("shards", 1)
            .set("memory", "16MiB")
            .set("block_size", "64KiB")
            .set("admin", places.path().join("admin").display())
            .with_places(places)
    }

    fn with_places(self, places: TempDir) -> NodeOptions {
        NodeOptions { _places: Some(Arc::new(places)), ..self }
    }

    fn value(&self, key: &str) -> &str {
        let value = self.values.iter().find(|(other, _)| *other == key);
        value.map_or("", |(_, value)| value)
    }

    /// Returns the administration socket, as an address for clients.
    pub fn admin(&self) -> String {
        format!("unix:{}", self.value("admin"))
    }

    /// Sets a key, in place of the value it had.
    #[must_use]
    pub fn set(mut self, key: &'static str, value: impl ToString) -> NodeOptions {
        self.values.retain(|(other, _)| *other != key);
        self.values.push((key, value.to_string()));
        self
    }

    /// Sets variables of the node's environment.
    #[must_use]
    pub fn environment(
        mut self,
        variables: impl IntoIterator<Item = (&'static str, String)>,
    ) -> NodeOptions {
        self.environment.extend(variables);
        self
    }

    /// Starts the node and waits until it listens.
    ///
    /// # Panics
    /// If it does not, with what it wrote.
    pub fn start(&self) -> Node {
        match Node::start(self, None) {
            Ok(node) => node,
            Err(error) => panic!("start a node: {error:#}"),
        }
    }

    /// As [`NodeOptions::start`], with another place for its log than a file that the tests read.
    ///
    /// # Panics
    /// If it does not listen.
    pub fn start_logging_to(&self, log: Stdio) -> Node {
        match Node::start(self, Some(log)) {
            Ok(node) => node,
            Err(error) => panic!("start a node: {error:#}"),
        }
    }
}

impl NodeOptions {
    /// Starts the node, which must refuse to serve; returns what it wrote.
    ///
    /// # Panics
    /// If it serves.
    pub fn start_in_vain(&self) -> String {
        match Node::start(self, None) {
            Ok(node) => panic!("the node serves at {}", node.address()),
            Err(error) => format!("{error:#}"),
        }
    }
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    options: NodeOptions,
    process: Process,
    address: SocketAddr,
}

impl Node {
    /// Starts a node with the default settings of the tests.
    pub fn serve(source: &Path) -> Node {
        NodeOptions::new(source).start()
    }

    fn start(options: &NodeOptions, log: Option<Stdio>) -> anyhow::Result<Node> {
        let mut command = Command::new(program()?);
        command.arg("node").arg("--source").arg(&options.source);
        for (key, value) in &options.values {
            command.arg(format!("--{}={value}", key.replace('_', "-")));
        }
        command.envs(options.environment.iter().map(|(name, value)| (name, value)));
        let mut process = Process::spawn_logging_to("the node", &mut command, log)?;
        let line = process.wait_for_line("listening on ")?;
        let address = line.split_whitespace().next().unwrap_or_default();
        let address = address.parse().with_context(|| format!("'{address}' is not an address"))?;
        Ok(Node { options: options.clone(), process, address })
    }

    /// Returns where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connects a client, over TCP as if it were on another machine.
    ///
    /// # Panics
    /// If it cannot connect.
    pub async fn client(&self) -> Client {
        let far = ClientConfig { deadline: HANG_GUARD, local: false, ..ClientConfig::new() };
        self.client_with(far).await
    }

    /// Connects a client with these settings.
    ///
    /// # Panics
    /// If it cannot connect.
    pub async fn client_with(&self, config: ClientConfig) -> Client {
        let admin = config.admin.clone().or(Some(self.options.admin()));
        let config = ClientConfig { admin, ..config };
        Client::connect(self.address.to_string(), config).await.expect("connect a client")
    }

    /// Connects a peer that speaks raw frames to this node.
    pub fn peer(&self) -> Peer {
        Peer::connect(self.address)
    }

    /// Returns where the node's administration socket is.
    pub fn admin_path(&self) -> PathBuf {
        PathBuf::from(self.options.value("admin"))
    }

    /// Connects a peer to the node's administration socket.
    pub fn administrator(&self) -> Peer {
        Peer::connect_locally(self.options.value("admin"))
    }

    /// Returns a counter of the node, asked for on a connection of its own.
    ///
    /// # Panics
    /// If the node has no such counter, or does not answer.
    pub fn counter(&self, name: &str) -> u64 {
        self.peer().counter(name)
    }

    /// True if the process lives.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// As [`Process::signal`].
    ///
    /// # Panics
    /// If the process is gone.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// As [`Process::terminate`].
    ///
    /// # Panics
    /// If the process is gone.
    pub fn terminate(&self) {
        self.process.terminate();
    }

    /// As [`Process::wait`].
    ///
    /// # Panics
    /// If that takes longer than the guard.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// As [`Process::stop`].
    ///
    /// # Panics
    /// If it did not end well.
    pub fn stop(self) {
        self.process.stop();
    }

    /// Kills the node as a crash would.
    ///
    /// # Panics
    /// If the process is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts a node that was killed again, on the port it had.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn restart(&mut self) {
        let options = self.options.clone().set("listen", self.address);
        let start = Instant::now();
        loop {
            match Node::start(&options, None) {
                Ok(node) => {
                    *self = node;
                    return;
                }
                // A connection of another process may have the port as its own for a moment.
                Err(error) if start.elapsed() > HANG_GUARD => panic!("start again: {error:#}"),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Returns what the node wrote to its log so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Returns what the process holds in memory now.
    ///
    /// # Panics
    /// If the process is gone.
    pub fn memory(&self) -> Memory {
        self.process.memory()
    }

    /// Returns its number, for [`crate::process::memory_of`].
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Returns the processor time that the process has used, in user and kernel mode.
    ///
    /// # Panics
    /// If the process is gone.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()));
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
