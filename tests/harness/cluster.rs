//! A whole cluster of processes: coordination, nodes that share a source, and gates between them.
//!
//! ```text
//!  clients, other nodes ──► gate 127.0.0.1:PORT ──► node 127.0.0.2:PORT ──► gates ──► replicas
//! ```
//!
//! Always holds: a node keeps its port, its data directory and its gates over restarts; all die with
//! the handle.

use std::fs::Permissions;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_client::{Client, ClientConfig, Secret};
use millrace_proto::Status;
use millrace_proto::proof::Role;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::coord::{self, Ensemble, Options, free_ports};
use crate::gate::{Gate, GateState};
use crate::node::{Node, NodeOptions};
use crate::{HANG_GUARD, Peer, wait_until};

/// How long coordination waits for a node: short, so that tests are short too.
const SESSION_TIMEOUT_MS: u64 = 1000;
/// The secret that the nodes of every cluster know.
const SECRET: &str = "the secret of the clusters of tests";
const SECRET_FILE: &str = "secret";

/// A node of a cluster, whether its process runs or not.
#[derive(Debug)]
pub struct Member {
    id: String,
    options: NodeOptions,
    node: Option<Node>,
    to_clients: Gate,
    to_coord: Vec<Gate>,
}

impl Member {
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the address where clients reach the node.
    pub fn address(&self) -> SocketAddr {
        self.to_clients.address()
    }

    /// Returns the process.
    ///
    /// # Panics
    /// If it does not run.
    pub fn node(&mut self) -> &mut Node {
        self.node.as_mut().expect("the node was started")
    }

    /// Connects a peer that the node takes for a member of its cluster.
    ///
    /// # Panics
    /// If it does not.
    pub fn peer_as_member(&mut self) -> Peer {
        let mut peer = self.node().peer();
        assert_eq!(peer.prove(Role::Member, &Cluster::secret()), Status::Ok);
        peer
    }

    /// True if a process was started and not killed.
    pub fn is_started(&self) -> bool {
        self.node.is_some()
    }

    /// Starts the process and waits until it has joined.
    ///
    /// # Panics
    /// If it does not.
    pub fn start(&mut self) {
        assert!(self.node.is_none(), "{} runs already", self.id);
        self.node = Some(self.options.start());
    }

    /// Starts the process, which must refuse to; returns what it wrote.
    ///
    /// # Panics
    /// If it starts.
    pub fn start_in_vain(&self) -> String {
        self.options.start_in_vain()
    }

    /// Sets a key of its configuration, from the next start on.
    pub fn set(&mut self, key: &'static str, value: impl ToString) {
        self.options = self.options.clone().set(key, value);
    }

    /// Sets variables of its environment, from the next start on.
    pub fn set_environment(&mut self, variables: impl IntoIterator<Item = (&'static str, String)>) {
        self.options = self.options.clone().environment(variables);
    }

    /// Kills the process as a crash would; does nothing if none runs.
    pub fn kill(&mut self) {
        if let Some(mut node) = self.node.take() {
            node.kill();
        }
    }

    /// Stops the process in order.
    ///
    /// # Panics
    /// If it does not end well.
    pub fn stop(&mut self) {
        self.node.take().expect("the node was started").stop();
    }

    /// Stops the process where it stands; when this returns none of its threads runs.
    ///
    /// # Panics
    /// If they do not stop.
    pub fn pause(&mut self) {
        self.node().signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.node().id());
        let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
            // The state follows the name in parentheses: proc(5).
            stat.is_ok_and(|stat| {
                stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
            })
        };
        wait_until("all threads have stopped", || {
            std::fs::read_dir(&tasks).is_ok_and(|mut tasks| tasks.all(is_stopped))
        });
    }

    /// Lets a paused process go on.
    pub fn resume(&mut self) {
        self.node().signal(Signal::CONT);
    }

    /// Cuts the node off from clients and other nodes, or ends that.
    pub fn set_clients(&self, state: GateState) {
        self.to_clients.set(state);
    }

    /// Cuts the node off from coordination, or ends that.
    pub fn set_coord(&self, state: GateState) {
        self.to_coord.iter().for_each(|gate| gate.set(state));
    }

    /// Makes coordination slow for the node.
    pub fn delay_coord(&self, delay: Duration) {
        self.to_coord.iter().for_each(|gate| gate.delay(delay));
    }

    /// Returns A counter of the node.
    ///
    /// # Panics
    /// If the node does not answer, or has no such counter.
    pub fn counter(&mut self, name: &str) -> u64 {
        self.node().counter(name)
    }
}

/// Coordination and nodes.
#[derive(Debug)]
pub struct Cluster {
    /// None if coordination is held elsewhere.
    pub coord: Option<Ensemble>,
    pub members: Vec<Member>,
    servers: Vec<SocketAddr>,
    path: String,
    source: PathBuf,
    root: TempDir,
}

impl Cluster {
    /// Starts `replicas` replicas of our own coordination and `nodes` nodes that serve `source`.
    ///
    /// # Panics
    /// If they do not start.
    pub fn start(replicas: u64, nodes: usize, source: &Path) -> Cluster {
        Cluster::start_with(Options::new().line("tickTime", 250), replicas, nodes, source)
    }

    /// As [`Cluster::start`], with other settings of the replicas.
    ///
    /// # Panics
    /// If they do not start.
    pub fn start_with(options: Options, replicas: u64, nodes: usize, source: &Path) -> Cluster {
        let coord = match replicas {
            1 => Ensemble::single(options),
            count => Ensemble::start(count, options),
        };
        let servers = coord.addresses();
        let mut cluster = Cluster::over(&servers, "/millrace", source);
        cluster.coord = Some(coord);
        for _ in 0..nodes {
            cluster.add();
        }
        cluster.members.iter_mut().for_each(Member::start);
        cluster
    }

    /// Prepares a cluster without nodes over coordination that runs already.
    ///
    /// # Panics
    /// If there is no room for its directories.
    pub fn over(servers: &[SocketAddr], path: &str, source: &Path) -> Cluster {
        let root = tempfile::Builder::new().prefix("millrace-cluster-").tempdir();
        let root = root.expect("a directory for a cluster");
        let secret = root.path().join(SECRET_FILE);
        std::fs::write(&secret, SECRET).expect("write the secret");
        std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("set a mode");
        Cluster {
            coord: None,
            members: Vec::new(),
            servers: servers.to_owned(),
            path: path.to_owned(),
            source: source.to_owned(),
            root,
        }
    }

    /// Prepares one more node, `node-1` and so on, and does not start it.
    ///
    /// # Panics
    /// If a port is not to be had.
    pub fn add(&mut self) -> &mut Member {
        let id = format!("node-{}", self.members.len() + 1);
        let port = free_ports(1).expect("a free port")[0];
        let [seen, own] =
            [1, 2].map(|last| SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), port)));
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let to_coord: Vec<_> = self.servers.iter().map(|it| Gate::start(any, *it)).collect();
        let servers: Vec<_> = to_coord.iter().map(|gate| gate.address().to_string()).collect();
        // Tests also mount directories that lie there.
        let others = std::env::temp_dir();
        let options = NodeOptions::new(&self.source)
            .set("mount_root", format!("{}:{}", self.source.display(), others.display()))
            .set("listen", own)
            .set("advertise", seen.ip())
            .set("socket", "")
            .set("coord_secret", self.secret_file().display())
            .set("node_id", &id)
            .set("data", self.root.path().join(&id).display())
            .set("session_timeout_ms", SESSION_TIMEOUT_MS)
            .set("coord", format!("zk://{}{}", servers.join(","), self.path));
        let to_clients = Gate::start(seen, own);
        self.members.push(Member { id, options, node: None, to_clients, to_coord });
        self.members.last_mut().expect("one was added")
    }

    /// Returns the file with the secret that the nodes have.
    pub fn secret_file(&self) -> PathBuf {
        self.root.path().join(SECRET_FILE)
    }

    /// Returns the secret that the nodes have.
    ///
    /// # Panics
    /// Never: it is long enough.
    pub fn secret() -> Secret {
        Secret::parse(SECRET.as_bytes()).expect("long enough")
    }

    /// Has a client of coordination sign in as the nodes do.
    ///
    /// # Panics
    /// If it is lost.
    pub fn authorize(client: &mut coord::Client) {
        let code = Cluster::secret().code("millrace 1 coordination", b"");
        let password: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
        client.sign_in(&format!("millrace:{password}")).expect("sign in");
    }

    /// Returns the administration sockets of all nodes, joined by commas.
    pub fn admin(&self) -> String {
        let places: Vec<_> = self.members.iter().map(|member| member.options.admin()).collect();
        places.join(",")
    }

    /// Returns the addresses of all nodes, joined by commas.
    pub fn addresses(&self) -> String {
        let addresses: Vec<_> =
            self.members.iter().map(|member| member.address().to_string()).collect();
        addresses.join(",")
    }

    /// Returns where the nodes register, as an address for clients.
    pub fn place(&self) -> String {
        let servers: Vec<_> = self.servers.iter().map(SocketAddr::to_string).collect();
        format!("zk://{}{}", servers.join(","), self.path)
    }

    /// Connects a client of the cluster.
    ///
    /// # Panics
    /// If it cannot connect.
    pub async fn client(&self) -> Client {
        let config = ClientConfig { deadline: HANG_GUARD, ..ClientConfig::new() };
        self.client_with(config).await
    }

    /// Connects a client with these settings.
    ///
    /// # Panics
    /// If it cannot connect.
    pub async fn client_with(&self, config: ClientConfig) -> Client {
        Client::connect(self.addresses(), self.to_change(config)).await.expect("connect a client")
    }

    /// Returns these settings, for a client that may change things.
    pub fn to_change(&self, config: ClientConfig) -> ClientConfig {
        ClientConfig { admin: config.admin.clone().or(Some(self.admin())), ..config }
    }

    /// Returns the sum of a counter over the nodes that run.
    ///
    /// # Panics
    /// If a node does not answer.
    pub fn sum(&mut self, name: &str) -> u64 {
        let running = self.members.iter_mut().filter(|member| member.is_started());
        running.map(|member| member.counter(name)).sum()
    }

    /// Waits until all nodes that run have acted on the same epoch and take over nothing any more.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn wait_settled(&mut self) {
        wait_until("the cluster has settled", || {
            let running = self.members.iter_mut().filter(|member| member.is_started());
            let states: Vec<_> = running
                .map(|member| {
                    let node = member.node();
                    let mut peer = node.peer();
                    let epoch = peer.counter("cluster_epoch");
                    (epoch, peer.counter("handover_source_count"), peer.counter("cluster_fenced"))
                })
                .collect();
            states.iter().all(|state| *state == (states[0].0, 0, 0) && state.0 > 0)
        });
    }
}
