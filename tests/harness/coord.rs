//! Replicas of the coordination service as processes: `millrace coord zoo.cfg`, alone or as an
//! ensemble, with data directories that outlive a kill.
//!
//! Owns directories, configurations and ports. Always holds: a replica keeps its ports and its
//! directory over restarts; data is on a disk and not in memory; a process dies with its handle.
//! [`client`] speaks to them, [`links`] cuts them from each other.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::HANG_GUARD;
use crate::process::{Process, program};

pub mod client;
pub mod links;

pub use client::{Client, Failure, Session};
pub use links::{LinkState, Links};

/// Where data directories are: on a disk, which a folder for temporary files need not be.
const DISK: &str = "/var/tmp";
/// Ports that the kernel assigns to no process by itself, so that they are still free after a restart.
const PORTS: std::ops::Range<u16> = 12_000..32_000;
/// What a replica prints once clients are served.
const READY: &str = "is serving ZooKeeper clients at ";
/// How long a four-letter word may take.
const WORD_WAIT: Duration = Duration::from_secs(5);

/// Settings of replicas.
#[derive(Debug, Clone, Default)]
pub struct Options {
    lines: Vec<(String, String)>,
    flags: Vec<String>,
    max_file_bytes: Option<u64>,
    is_zookeeper: bool,
}

/// Where Debian's package `zookeeper` has Apache ZooKeeper.
const ZOOKEEPER_JARS: &str = "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar";

impl Options {
    /// Returns short ticks, any number of connections and every four-letter word.
    pub fn new() -> Options {
        Options::default()
            .line("tickTime", 500)
            .line("initLimit", 10)
            .line("syncLimit", 5)
            .line("maxClientCnxns", 0)
            .line("4lw.commands.whitelist", "*")
    }

    /// Sets a line of `zoo.cfg`, in place of the value it had.
    #[must_use]
    pub fn line(mut self, key: &str, value: impl ToString) -> Options {
        self.lines.retain(|(other, _)| other != key);
        self.lines.push((key.to_owned(), value.to_string()));
        self
    }

    /// Sets one of our own keys, as a flag.
    #[must_use]
    pub fn flag(mut self, key: &str, value: impl ToString) -> Options {
        self.flags.extend([format!("--{}", key.replace('_', "-")), value.to_string()]);
        self
    }

    /// Adds a flag without a value.
    #[must_use]
    pub fn switch(mut self, flag: &str) -> Options {
        self.flags.push(flag.to_owned());
        self
    }

    /// Checkpoints often and keeps little log, so that followers soon need a snapshot.
    #[must_use]
    pub fn little_log(self) -> Options {
        self.flag("checkpoint_interval_ms", 100)
            .flag("checkpoint_log_bytes", "64KiB")
            .flag("log_retain_bytes", "64KiB")
    }

    /// Runs Apache ZooKeeper in place of our own replicas, with the same `zoo.cfg`; flags are left out.
    #[must_use]
    pub fn zookeeper(mut self) -> Options {
        self.is_zookeeper = true;
        self.line("admin.enableServer", "false")
    }

    /// Limits the size of files: a write beyond this fails, as on a full disk.
    #[must_use]
    pub fn max_file_bytes(mut self, bytes: u64) -> Options {
        self.max_file_bytes = Some(bytes);
        self
    }
}

/// One replica, whether its process runs or not.
#[derive(Debug)]
pub struct Replica {
    id: u64,
    directory: PathBuf,
    config: PathBuf,
    client_address: SocketAddr,
    peer_address: SocketAddr,
    options: Options,
    process: Option<Process>,
}

impl Replica {
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the address where clients are served.
    pub fn address(&self) -> SocketAddr {
        self.client_address
    }

    /// Returns the address where the other replicas find it, or its link.
    pub fn peer_address(&self) -> SocketAddr {
        self.peer_address
    }

    /// Returns a second replica of the same directory at other ports, which no start may allow.
    #[must_use]
    pub fn twin(&self) -> Replica {
        Replica {
            config: self.config.clone(),
            directory: self.directory.clone(),
            options: self.options.clone().flag("client_address", "127.0.0.1:0"),
            process: None,
            ..*self
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns its `server.N` line, as the others' lists have it.
    pub fn server_line(&self) -> String {
        server_line(self.id, self.peer_address.port(), self.client_address.port())
    }

    /// Replaces the `server.N` lines of its `zoo.cfg`, for the next start.
    ///
    /// # Panics
    /// If the file cannot be changed.
    pub fn set_list(&self, lines: &[String]) {
        let text = std::fs::read_to_string(&self.config).expect("a configuration");
        let kept = text.lines().filter(|line| !line.starts_with("server."));
        let mut text: String = kept.map(|line| format!("{line}\n")).collect();
        text.extend(lines.iter().map(String::as_str));
        std::fs::write(&self.config, text).expect("write a configuration");
    }

    /// Kills the process and takes everything out of its directory but `myid`: a new disk.
    ///
    /// # Panics
    /// If that cannot be done.
    pub fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(&self.directory).expect("remove a directory");
        std::fs::create_dir(&self.directory).expect("make a directory");
        let myid = self.directory.join("myid");
        std::fs::write(myid, format!("{}\n", self.id)).expect("write myid");
    }

    /// Sets other settings from the next start on. Lines of `zoo.cfg` stay as they were.
    pub fn set_options(&mut self, options: Options) {
        self.options = options;
    }

    /// Starts the process and does not wait.
    ///
    /// # Panics
    /// If it runs already, or there is no program to run.
    pub fn spawn(&mut self) {
        assert!(self.process.is_none(), "replica {} runs already", self.id);
        if self.options.is_zookeeper {
            let mut command = Command::new("java");
            command.args(["-Xmx256m", "-Dzookeeper.skipACL=yes", "-cp", ZOOKEEPER_JARS]);
            command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(&self.config);
            let name = format!("server {}", self.id);
            self.process = Some(Process::spawn(name, &mut command).expect("start a server"));
            return;
        }
        let program = program().expect("a program to test");
        let mut command = match self.options.max_file_bytes {
            None => Command::new(program),
            Some(bytes) => {
                // Without the trap the kernel would kill the process at the first such write.
                let blocks = bytes / 512;
                let mut shell = Command::new("sh");
                shell
                    .arg("-c")
                    .arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\""));
                shell.arg(program);
                shell
            }
        };
        command.arg("coord").arg(&self.config).args(&self.options.flags);
        let name = format!("replica {}", self.id);
        self.process = Some(Process::spawn(name, &mut command).expect("start a replica"));
    }

    /// Waits until it reports that clients are served, which takes a leader.
    ///
    /// # Errors
    /// It ended instead; with what it wrote.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        if self.options.is_zookeeper {
            let start = Instant::now();
            // ZooKeeper prints no such line, but it answers once there is a leader.
            while self.mode().is_empty() {
                if start.elapsed() > HANG_GUARD || !self.is_running() {
                    bail!("server {} does not start", self.id);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            return Ok(());
        }
        let process = self.process.as_mut().context("it was not started")?;
        match process.wait_for_line(READY) {
            Ok(_) => Ok(()),
            Err(error) => {
                self.process = None;
                Err(error.context(format!("replica {} does not start", self.id)))
            }
        }
    }

    /// Starts the process and waits until clients are served.
    ///
    /// # Panics
    /// If that does not come to be.
    pub fn start(&mut self) {
        self.spawn();
        if let Err(error) = self.wait_ready() {
            panic!("{error:#}");
        }
    }

    /// Starts the process, which must refuse to serve; returns what it wrote.
    ///
    /// # Panics
    /// If it serves, or ends without an error.
    pub fn start_in_vain(&mut self) -> String {
        self.spawn();
        match self.wait_ready() {
            Ok(()) => panic!("replica {} serves", self.id),
            Err(error) => {
                let text = format!("{error:#}");
                assert!(text.contains("exit status: 1"), "an ordinary error: {text}");
                text
            }
        }
    }

    /// Returns the process.
    ///
    /// # Panics
    /// If it was not started.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the replica was started")
    }

    /// True if the process lives.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Kills the process as a crash would; does nothing if none runs.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Stops the process in order.
    ///
    /// # Panics
    /// If it does not end well.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("the replica was started");
        if self.options.is_zookeeper {
            // Java ends by the signal, which is not a failure.
            process.terminate();
            process.wait();
        } else {
            process.stop();
        }
    }

    /// Waits until the process ends by itself; returns its status and its log.
    ///
    /// # Panics
    /// If it does not end.
    pub fn wait_end(&mut self) -> (ExitStatus, String) {
        let mut process = self.process.take().expect("the replica was started");
        (process.wait(), process.log())
    }

    /// Stops the process where it stands, with all its threads.
    pub fn pause(&mut self) {
        self.process().signal(Signal::STOP);
    }

    /// Lets a paused process go on.
    pub fn resume(&mut self) {
        self.process().signal(Signal::CONT);
    }

    /// Asks a four-letter word.
    ///
    /// # Errors
    /// No answer in time.
    pub fn word(&self, word: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.client_address, WORD_WAIT)?;
        stream.set_read_timeout(Some(WORD_WAIT))?;
        stream.write_all(word.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Returns what it says of itself: `leader`, `follower`, `standalone` and so on; empty if nothing.
    pub fn mode(&self) -> String {
        let answer = self.word("srvr").unwrap_or_default();
        let mode = answer.lines().find_map(|line| line.strip_prefix("Mode: "));
        mode.unwrap_or_default().to_owned()
    }

    /// Returns one figure of `mntr`.
    ///
    /// # Panics
    /// If there is no such figure, or no answer.
    pub fn figure(&self, name: &str) -> u64 {
        let answer = self.word("mntr").expect("an answer to mntr");
        let found = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'));
        found.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}: {answer}"))
    }

    /// Connects a client with a new session of 10 seconds as soon as it serves.
    ///
    /// # Panics
    /// If it does not.
    pub fn client(&self) -> Client {
        connect_any(&[self.client_address], 10_000)
    }
}

/// Replicas that belong together; their directories go with it.
#[derive(Debug)]
pub struct Ensemble {
    pub replicas: Vec<Replica>,
    links: Option<Links>,
    root: TempDir,
}

/// Returns what the members of an ensemble say of one of them.
fn server_line(id: u64, peer_port: u16, client_port: u16) -> String {
    format!("server.{id}=127.0.0.1:{peer_port}:{};127.0.0.1:{client_port}\n", peer_port + 1)
}

impl Ensemble {
    /// Starts a replica by itself.
    ///
    /// # Panics
    /// If it does not start.
    pub fn single(options: Options) -> Ensemble {
        let mut ensemble = Ensemble::prepare(1, false, &options).expect("prepare a replica");
        ensemble.replicas[0].start();
        ensemble
    }

    /// Starts `count` replicas.
    ///
    /// # Panics
    /// If they do not start.
    pub fn start(count: u64, options: Options) -> Ensemble {
        let mut ensemble = Ensemble::prepare(count, false, &options).expect("prepare replicas");
        ensemble.start_all();
        ensemble
    }

    /// Starts `count` replicas with links that can be cut.
    ///
    /// # Panics
    /// If they do not start.
    pub fn start_linked(count: u64, options: Options) -> Ensemble {
        let mut ensemble = Ensemble::prepare(count, true, &options).expect("prepare replicas");
        ensemble.start_all();
        ensemble
    }

    /// Makes directories and configurations of `count` replicas and starts none.
    ///
    /// # Errors
    /// A directory, a file or a port is not to be had.
    pub fn prepare(count: u64, is_linked: bool, options: &Options) -> anyhow::Result<Ensemble> {
        let root = tempfile::Builder::new().prefix("millrace-coord-").tempdir_in(DISK)?;
        let ports = free_ports(2 * count as usize)?;
        let (peer_ports, client_ports) = ports.split_at(count as usize);
        let mut servers = String::new();
        for id in 1..=count {
            let index = id as usize - 1;
            servers += &server_line(id, peer_ports[index], client_ports[index]);
        }
        if count == 1 {
            servers.clear();
        }
        let links = if is_linked { Some(Links::start(peer_ports)?) } else { None };
        let mut ensemble = Ensemble { replicas: Vec::new(), links, root };
        for id in 1..=count {
            let index = id as usize - 1;
            // Behind a link, the others have the link's address for it.
            let options = match is_linked {
                true => {
                    let own = links::behind(peer_ports[index]);
                    &options.clone().flag("peer_listen", own)
                }
                false => options,
            };
            ensemble.add(id, &servers, (peer_ports[index], client_ports[index]), options)?;
        }
        Ok(ensemble)
    }

    fn add(
        &mut self,
        id: u64,
        servers: &str,
        (peer_port, client_port): (u16, u16),
        options: &Options,
    ) -> anyhow::Result<()> {
        let directory = self.root.path().join(format!("replica-{id}"));
        std::fs::create_dir(&directory)?;
        std::fs::write(directory.join("myid"), format!("{id}\n"))?;
        let mut text = String::new();
        for (key, value) in &options.lines {
            text += &format!("{key}={value}\n");
        }
        text += &format!("dataDir={}\n", directory.display());
        text += &format!("clientPort={client_port}\nclientPortAddress=127.0.0.1\n{servers}");
        let config = self.root.path().join(format!("zoo-{id}.cfg"));
        std::fs::write(&config, text)?;
        self.replicas.push(Replica {
            id,
            directory,
            config,
            client_address: SocketAddr::from((Ipv4Addr::LOCALHOST, client_port)),
            peer_address: SocketAddr::from((Ipv4Addr::LOCALHOST, peer_port)),
            options: options.clone(),
            process: None,
        });
        Ok(())
    }

    /// Prepares one more replica, which knows the others and is to join them with `--join`; returns its
    /// `server.N` line for `reconfig`.
    ///
    /// # Panics
    /// If a directory, a file or a port is not to be had.
    pub fn prepare_joiner(&mut self, options: &Options) -> String {
        let id = self.replicas.len() as u64 + 1;
        let ports = free_ports(2).expect("free ports");
        let line = server_line(id, ports[0], ports[1]);
        let config = std::fs::read_to_string(&self.replicas[0].config).expect("a configuration");
        let mut servers = String::new();
        for known in config.lines().filter(|line| line.starts_with("server.")) {
            servers += &format!("{known}\n");
        }
        servers += &line;
        let options = options.clone().switch("--join");
        self.add(id, &servers, (ports[0], ports[1]), &options).expect("prepare a replica");
        line.trim_end().to_owned()
    }

    /// Starts those that do not run, and waits until they serve.
    ///
    /// # Panics
    /// If they do not.
    pub fn start_all(&mut self) {
        let is_stopped = |replica: &&mut Replica| replica.process.is_none();
        let mut started: Vec<&mut Replica> = self.replicas.iter_mut().filter(is_stopped).collect();
        for replica in &mut started {
            replica.spawn();
        }
        for replica in started {
            if let Err(error) = replica.wait_ready() {
                panic!("{error:#}");
            }
        }
    }

    /// Stops all replicas, leaves the data where it is and returns its folder.
    pub fn keep(&mut self) -> PathBuf {
        for replica in &mut self.replicas {
            replica.kill();
        }
        self.root.disable_cleanup(true);
        self.root.path().to_owned()
    }

    /// Returns the links between the replicas.
    ///
    /// # Panics
    /// If they were not asked for.
    pub fn links(&self) -> &Links {
        self.links.as_ref().expect("an ensemble with links")
    }

    /// Returns where clients are served, by all.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.replicas.iter().map(Replica::address).collect()
    }

    /// Returns the index of the leader, if a replica says that it leads.
    pub fn leader(&self) -> Option<usize> {
        self.replicas.iter().position(|replica| replica.mode() == "leader")
    }

    /// Waits for a leader and returns its index.
    ///
    /// # Panics
    /// If there is none for long.
    pub fn wait_leader(&self) -> usize {
        let start = Instant::now();
        loop {
            if let Some(leader) = self.leader() {
                return leader;
            }
            assert!(start.elapsed() < HANG_GUARD, "no replica leads");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Connects a client with a new session to the first server that takes it.
///
/// # Panics
/// If none does.
pub fn connect_any(addresses: &[SocketAddr], timeout_ms: i32) -> Client {
    let session = Session { id: 0, password: [0; 16], timeout_ms, zxid: 0 };
    attach_any(addresses, session).expect("a new session")
}

/// Connects a client that takes up `session` at the first server that takes it.
///
/// # Errors
/// [`Failure::Expired`].
///
/// # Panics
/// If none takes it, but none says that it is gone either.
pub fn attach_any(addresses: &[SocketAddr], session: Session) -> Result<Client, Failure> {
    let start = Instant::now();
    loop {
        for address in addresses {
            match Client::attach(*address, session, HANG_GUARD) {
                Ok(client) => return Ok(client),
                Err(Failure::Expired) => return Err(Failure::Expired),
                Err(failure) => {
                    assert!(start.elapsed() < HANG_GUARD, "no server serves: {failure:?}");
                }
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Finds ports at which no process listens and that the kernel assigns to none by itself.
///
/// # Errors
/// There are not this many.
pub fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let mut held = Vec::new();
    let mut ports = Vec::new();
    for _ in 0..1000 {
        if ports.len() == count {
            return Ok(ports);
        }
        let port = fastrand::u16(PORTS) & !1;
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
        if let Ok(listener) = listener {
            held.push(listener);
            ports.push(port);
        }
    }
    bail!("no free ports in {PORTS:?}")
}
