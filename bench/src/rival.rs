//! The servers of a comparison: started here, pinned, in a scratch directory, and killed on drop.
//!
//! Owns processes and their settings. Every rival gets the settings its own authors recommend for
//! speed, with persistence off, and as many threads as the node: one. A program that is not
//! installed is a [`Start::Missing`] and named in the report, never left out in silence.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tempfile::TempDir;

mod memcached;
mod nginx;
mod node;
mod redis;

pub use node::NodeOptions;

use crate::address::{Address, Stream};
use crate::content::ObjectSet;
use crate::machine;

/// Longest wait until a server accepts connections.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for a reply while objects are stored.
const STORE_TIMEOUT: Duration = Duration::from_secs(30);

/// A server to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rival {
    /// `redis-server`, an in-memory store.
    Redis,
    /// `memcached`, an in-memory cache.
    Memcached,
    /// `nginx`, a web server that serves files by `sendfile`.
    Nginx,
}

impl Rival {
    /// All rivals, in the order of reports.
    pub const ALL: [Rival; 3] = [Rival::Redis, Rival::Memcached, Rival::Nginx];

    /// Returns the name as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Rival::Redis => "redis",
            Rival::Memcached => "memcached",
            Rival::Nginx => "nginx",
        }
    }

    /// Returns the name of the program.
    pub fn program(self) -> &'static str {
        match self {
            Rival::Redis => "redis-server",
            Rival::Memcached => "memcached",
            Rival::Nginx => "nginx",
        }
    }

    /// True if it answers several keys in one request.
    pub fn has_batch(self) -> bool {
        self != Rival::Nginx
    }

    /// Returns the version that the program reports, in one line, if it is installed.
    pub fn version(self) -> Option<String> {
        let flag = if self == Rival::Nginx { "-v" } else { "--version" };
        let program = machine::find_program(self.program())?;
        let output = Command::new(program).arg(flag).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        Some(text.lines().next()?.trim().to_owned())
    }
}

/// The way by which the servers of a comparison are reached, the same for all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// The loopback interface.
    #[default]
    Tcp,
    /// Unix sockets.
    Unix,
}

/// The result of starting a rival.
pub enum Start {
    /// It runs and holds the objects.
    Running(Server),
    /// Its program is not installed.
    Missing,
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    address: Address,
    /// The directory is removed after the process has gone.
    _scratch: TempDir,
}

impl Server {
    /// Returns where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Returns its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a rival on one CPU and stores the objects in it. The files of the set must already lie
/// below `directory`, for rivals that serve files.
///
/// # Errors
/// If the program ends or does not listen in time, with the end of what it wrote to stderr.
pub fn start(
    rival: Rival,
    set: &ObjectSet,
    directory: &Path,
    cpu: usize,
    transport: Transport,
) -> Result<Start> {
    let Some(program) = machine::find_program(rival.program()) else {
        return Ok(Start::Missing);
    };
    let server = machine::on_cpu(cpu, || {
        let home = Home::new(transport)?;
        match rival {
            Rival::Redis => redis::start(&program, home, set),
            Rival::Memcached => memcached::start(&program, home, set),
            Rival::Nginx => nginx::start(&program, home, directory),
        }
    })
    .with_context(|| format!("start {}", rival.program()))?;
    match rival {
        Rival::Redis => redis::store(&server, set),
        Rival::Memcached => memcached::store(&server, set),
        Rival::Nginx => Ok(()),
    }
    .with_context(|| format!("store {} objects in {}", set.count, rival.name()))?;
    Ok(Start::Running(server))
}

/// Starts a Millrace node serving `directory`, with one shard on each of `cpus`.
///
/// # Errors
/// If it ends or does not say in time where it listens, with the end of what it wrote to stderr.
pub fn start_node(
    options: &NodeOptions,
    directory: &Path,
    cpus: &[usize],
    transport: Transport,
) -> Result<Server> {
    let start = || node::start(options, directory, cpus, transport);
    machine::on_cpus(cpus, start).context("start the node")
}

/// Makes a directory in memory if the machine has one: no rival is measured by its disk.
///
/// # Errors
/// If none can be created.
pub fn scratch_directory() -> Result<TempDir> {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        tempfile::Builder::new().prefix("millrace-bench-").tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    made.context("create a scratch directory")
}

/// Makes a command whose process the kernel kills when this thread ends, where `setpriv` is there to
/// say so: a harness that is killed itself then leaves no server behind.
pub(crate) fn command(program: &Path) -> Command {
    match machine::find_program("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// The scratch directory of a rival and where it is to listen.
pub(crate) struct Home {
    scratch: TempDir,
    address: Address,
}

impl Home {
    /// Makes a home with a port of the loopback interface that was free a moment ago, or a path in the
    /// directory.
    pub(crate) fn new(transport: Transport) -> Result<Home> {
        let scratch = scratch_directory()?;
        let address = match transport {
            Transport::Tcp => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
                Address::Tcp(listener.context("find a free port")?.local_addr()?)
            }
            Transport::Unix => Address::Unix(scratch.path().join("socket")),
        };
        Ok(Home { scratch, address })
    }

    /// Returns the port that it is to listen at, if it is one.
    pub(crate) fn tcp(&self) -> Option<SocketAddr> {
        match self.address {
            Address::Tcp(address) => Some(address),
            Address::Unix(_) => None,
        }
    }

    /// Spawns a server and waits for a line `<prefix>REST` on its stdout; returns the server and the
    /// rest.
    pub(crate) fn spawn_until_line(
        self,
        command: Command,
        prefix: &str,
    ) -> Result<(Server, String)> {
        let child = spawn(command, &self.scratch, Some(Stdio::piped()))?;
        wait_for_line(child, prefix, self)
    }
}

/// Spawns a server with stderr in a file, and stdout there too unless `stdout` takes it.
pub(crate) fn spawn(
    mut command: Command,
    scratch: &TempDir,
    stdout: Option<Stdio>,
) -> Result<Child> {
    let log = File::create(stderr_path(scratch)).context("create a log")?;
    let stdout = match stdout {
        Some(stdout) => stdout,
        None => log.try_clone()?.into(),
    };
    command.stdin(Stdio::null()).stdout(stdout).stderr(log);
    let program = command.get_program().to_owned();
    command.spawn().with_context(|| format!("run {}", Path::new(&program).display()))
}

fn stderr_path(scratch: &TempDir) -> PathBuf {
    scratch.path().join("stderr")
}

/// Returns the last lines a server wrote, for an error message.
pub(crate) fn stderr_tail(scratch: &TempDir) -> String {
    let bytes = std::fs::read(stderr_path(scratch)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(10)..];
    if tail.is_empty() {
        "it wrote nothing".into()
    } else {
        format!("it wrote:\n{}", tail.join("\n"))
    }
}

/// Waits until a server accepts connections where it was to listen.
fn wait_until_open(child: Child, home: Home) -> Result<Server> {
    let mut server = Server { child, address: home.address, _scratch: home.scratch };
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(status) = server.child.try_wait()? {
            bail!("it ended with {status}; {}", stderr_tail(&server._scratch));
        }
        if Stream::connect(&server.address, START_TIMEOUT).is_ok() {
            return Ok(server);
        }
        ensure!(
            Instant::now() < deadline,
            "it does not listen at {} after {} s; {}",
            server.address,
            START_TIMEOUT.as_secs(),
            stderr_tail(&server._scratch)
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for the line `<prefix>REST` on the stdout of a server; returns the server and the rest.
fn wait_for_line(mut child: Child, prefix: &str, home: Home) -> Result<(Server, String)> {
    let stdout = child.stdout.take().context("stdout was not piped")?;
    let mut server = Server { child, address: home.address, _scratch: home.scratch };
    let (sender, receiver) = mpsc::channel();
    // Reads on to the end, so that the server never blocks on a full pipe.
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            Ok(line) => {
                if let Some(rest) = line.trim().strip_prefix(prefix) {
                    return Ok((server, rest.to_owned()));
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => bail!(
                "it did not print {prefix:?} within {} s; {}",
                START_TIMEOUT.as_secs(),
                stderr_tail(&server._scratch)
            ),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = server.child.wait()?;
                bail!("it ended with {status}; {}", stderr_tail(&server._scratch));
            }
        }
    }
}

/// Stores every object: requests of about 1 MiB at once, then one line of reply for each.
fn store_by(
    server: &Server,
    set: &ObjectSet,
    success: &str,
    encode: impl Fn(u64, &[u8], &mut Vec<u8>),
) -> Result<()> {
    use std::io::Write;
    let stream = Stream::connect(server.address(), STORE_TIMEOUT)?;
    let mut replies = BufReader::new(&stream);
    let per_write = ((1 << 20) / set.size as u64).max(1);
    let (mut out, mut content, mut line) = (Vec::new(), Vec::new(), String::new());
    let mut first = 0;
    while first < set.count {
        let end = set.count.min(first + per_write);
        out.clear();
        for index in first..end {
            set.fill(index, &mut content);
            encode(index, &content, &mut out);
        }
        (&stream).write_all(&out)?;
        for index in first..end {
            line.clear();
            replies.read_line(&mut line)?;
            ensure!(
                line.trim_end() == success,
                "object {index} was answered with {:?}",
                line.trim_end()
            );
        }
        first = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<(Server, String)> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Home::new(Transport::Unix).unwrap().spawn_until_line(command, "listening on ")
    }

    #[test]
    fn a_server_that_ends_at_once_is_told_with_its_words() {
        let error = shell("echo no such flag >&2; exit 3").err().unwrap();
        assert!(error.to_string().contains("no such flag"), "{error}");
    }

    #[test]
    fn the_line_tells_the_address_and_drop_kills() {
        let (server, rest) = shell("echo hello; echo listening on 127.0.0.1:77; sleep 60").unwrap();
        assert_eq!(rest, "127.0.0.1:77");
        let pid = server.pid();
        drop(server);
        assert!(machine::process_cpu_s(pid).is_err());
    }
}
