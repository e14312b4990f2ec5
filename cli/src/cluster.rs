//! `millrace cluster`: a whole cluster on one machine, for trying out.
//!
//! Owns the processes: replicas of coordination and nodes, each started as it would be by hand, with a
//! directory and a log of its own. They stop with this process, nodes first.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Subcommand;
use millrace_client::peer::random;
use millrace_node::config::usable_cpus;
use millrace_node::secret;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::failure::Failure;
use crate::log;
use crate::output::{self, Align, Table};
use crate::signals::Signals;
use crate::source::Source;

mod restart;

use restart::{Control, RestartArgs};

/// Longest wait for a process to be ready.
const READY_WAIT: Duration = Duration::from_secs(60);
/// Longest wait for a process to end after it was asked to.
const STOP_WAIT: Duration = Duration::from_secs(20);
/// How often the processes, and the socket at which a restart is asked for, are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Ports between one node and the next: there is room for those of its shards.
const NODE_PORTS: u16 = 100;
/// What a process prints when it serves.
const READY: [&str; 2] = ["listening on ", "is serving ZooKeeper clients at "];

/// Start a whole cluster on this machine
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace cluster up --dir /tmp/cluster
  millrace cluster restart --dir /tmp/cluster")]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    verb: ClusterVerb,
}

#[derive(Subcommand)]
enum ClusterVerb {
    Up(UpArgs),
    Restart(RestartArgs),
}

/// Start nodes and coordination, and serve until Ctrl-C
///
/// Each process is started as it would be by hand; its command, its state and its log are in DIR, and
/// starting again with the same DIR continues. Nothing here is for production: there, run `millrace
/// coord` and `millrace node` on machines of their own.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace cluster up --nodes 3 --dir /tmp/cluster --source ~/datasets
  millrace cluster up --dir /tmp/cluster --source s3://bucket/prefix
  millrace admin status                          in another terminal
  millrace fs ls")]
struct UpArgs {
    /// Storage nodes
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=10))]
    nodes: u16,
    /// Replicas of coordination; an odd number is best
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    replicas: u16,
    /// Directory for everything that is written
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Directory or store to serve; credentials come from the environment, as for `millrace node`
    #[arg(long, value_name = "DIR|URL", default_value = "/usr/share/doc")]
    source: PathBuf,
    /// Option of the store, such as endpoint=URL or region=NAME; may be given several times
    #[arg(long = "source-option", value_name = "KEY=VALUE")]
    source_options: Vec<String>,
    /// Memory of each node
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    memory: String,
    /// Port of the first node; further ones follow at distances of 100, coordination 1000 above
    #[arg(long, value_name = "PORT", default_value_t = 7070, 
        value_parser = clap::value_parser!(u16).range(1024..=55_000))]
    port: u16,
    /// Further flag of every node, such as --node-flag=--shards=2; may be repeated
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    node_flag: Vec<String>,
    /// Print JSON that says where everything is
    #[arg(long)]
    json: bool,
}

/// Says to a process that it ends with its parent.
const PARENT_VARIABLE: &str = "MILLRACE_PARENT";

/// Makes this process stop when its parent is gone, if the parent asked for that.
pub(crate) fn end_with_parent() {
    let parent = std::env::var(PARENT_VARIABLE).ok().and_then(|id| id.parse::<i32>().ok());
    let Some(parent) = parent else { return };
    // Without it this process would go on by itself, which does no harm.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::TERM));
    if rustix::process::getppid().map(Pid::as_raw_nonzero).is_none_or(|id| id.get() != parent) {
        std::process::exit(1);
    }
}

/// A process of the cluster.
struct Member {
    name: String,
    address: SocketAddr,
    home: PathBuf,
    log: PathBuf,
    /// The program and its arguments, to start it again.
    program: PathBuf,
    arguments: Vec<OsString>,
    child: Child,
    /// True if its end was told already.
    has_ended: bool,
}

pub(crate) fn run(args: &ClusterArgs) -> Result<(), Failure> {
    match &args.verb {
        ClusterVerb::Up(args) => up(args),
        ClusterVerb::Restart(args) => restart::run(args),
    }
}

fn up(args: &UpArgs) -> Result<(), Failure> {
    let source = match Source::named(&args.source)? {
        Source::Store(url) => PathBuf::from(url),
        Source::Directory(directory) => directory.canonicalize().map_err(|error| {
            Failure::new(format!("serve {}: {error}", directory.display()))
                .with_hint("name a directory or a URL with --source")
        })?,
    };
    fs::create_dir_all(&args.dir).map_err(|error| cannot_write(&args.dir, &error))?;
    let dir = args.dir.canonicalize().map_err(|error| cannot_write(&args.dir, &error))?;
    log::start("warn", None)?;
    let signals = Signals::install()?;
    let mut members = Vec::new();
    let started = start(args, &dir, &source, &mut members).and_then(|()| Control::listen(&dir));
    let control = match started {
        Ok(control) => control,
        Err(failure) => {
            stop(members);
            return Err(failure);
        }
    };
    // The cluster serves, and goes on.
    output::announce(&told(args, &members)?);
    while !signals.came_within(LOOK_AGAIN) {
        tell_ended(&mut members);
        control.serve(&mut members, &signals);
    }
    output::note("stopping");
    stop(members);
    Ok(())
}

/// Returns the port of the first replica for clients; peers use two ports for each replica, 100 above.
fn coord_port(args: &UpArgs) -> u16 {
    args.port + 1000
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn start(
    args: &UpArgs,
    dir: &Path,
    source: &Path,
    members: &mut Vec<Member>,
) -> Result<(), Failure> {
    let secret = secret(dir)?;
    let first = coord_port(args);
    let node_ports = (0..args.nodes).map(|index| args.port + index * NODE_PORTS);
    for port in (first..first + args.replicas).chain(node_ports) {
        free(port)?;
    }
    let servers: String = (0..args.replicas)
        .map(|index| {
            let peer = first + 100 + 2 * index;
            let (id, next, client) = (index + 1, peer + 1, first + index);
            format!("server.{id}=127.0.0.1:{peer}:{next};127.0.0.1:{client}\n")
        })
        .collect();
    for index in 0..args.replicas {
        let name = format!("coord-{}", index + 1);
        let home = dir.join(&name);
        let write = |file: &str, text: &str| {
            let path = home.join(file);
            fs::write(&path, text).map_err(|error| cannot_write(&path, &error))
        };
        fs::create_dir_all(home.join("data")).map_err(|error| cannot_write(&home, &error))?;
        let data = home.join("data").display().to_string();
        let client = first + index;
        let members_of = if args.replicas > 1 { servers.as_str() } else { "" };
        write(
            "zoo.cfg",
            &format!(
                "tickTime=500\ninitLimit=10\nsyncLimit=5\ndataDir={data}\nclientPort={client}\n\
                 clientPortAddress=127.0.0.1\nadmin.enableServer=false\n{members_of}"
            ),
        )?;
        write("data/myid", &format!("{}\n", index + 1))?;
        let mut command = program()?;
        command.arg("coord").arg(home.join("zoo.cfg"));
        members.push(spawn(name, local(client), &home, command)?);
    }
    // A replica serves when there is a majority, so all are waited for together.
    members.iter_mut().try_for_each(wait_ready)?;
    let coord: Vec<String> =
        (0..args.replicas).map(|index| local(first + index).to_string()).collect();
    let coord = format!("zk://{}/millrace", coord.join(","));
    for index in 0..args.nodes {
        let name = format!("node-{}", index + 1);
        let home = dir.join(&name);
        fs::create_dir_all(&home).map_err(|error| cannot_write(&home, &error))?;
        let address = local(args.port + index * NODE_PORTS);
        let mut command = program()?;
        command.arg("node").arg("--source").arg(source);
        for option in &args.source_options {
            command.arg("--source-option").arg(option);
        }
        command.arg("--data").arg(home.join("data"));
        command.args(["--coord", &coord, "--listen", &address.to_string()]);
        command.args(["--node-id", &name, "--memory", &args.memory]);
        command.arg("--coord-secret").arg(&secret);
        let is_set = |name: &str| args.node_flag.iter().any(|flag| flag.starts_with(name));
        if !is_set("--shards") {
            command.args(["--shards", "1"]);
        }
        if !is_set("--cpus") {
            // Shards are pinned to the first cores of the list, so each node begins with another one.
            let mut cpus = usable_cpus();
            let count = cpus.len();
            cpus.rotate_left(usize::from(index) % count);
            let cpus: Vec<String> = cpus.iter().map(usize::to_string).collect();
            command.args(["--cpus", &cpus.join(",")]);
        }
        command.args(&args.node_flag);
        members.push(spawn(name, address, &home, command)?);
    }
    members[usize::from(args.replicas)..].iter_mut().try_for_each(wait_ready)
}

/// Returns the file with the secret of the cluster. A new cluster gets a new one.
fn secret(dir: &Path) -> Result<PathBuf, Failure> {
    let path = dir.join("secret");
    let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
    let mut file = match made {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            // The nodes read it, so an error in it is reported before any of them starts.
            return match secret::read(&path) {
                Ok(_) => Ok(path),
                Err(error) => Err(Failure::new(format!("the secret of the cluster: {error}"))),
            };
        }
        made => made.map_err(|error| cannot_write(&path, &error))?,
    };
    let chance = random().map_err(|error| Failure::new(format!("make a secret: {error}")))?;
    let text: String = chance.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(file, "{text}").map_err(|error| cannot_write(&path, &error))?;
    Ok(path)
}

fn program() -> Result<Command, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(format!("find this program: {error}")))?;
    Ok(prepared(&program))
}

/// Returns a command that ends with this process.
fn prepared(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env(PARENT_VARIABLE, std::process::id().to_string());
    for (name, _) in std::env::vars_os() {
        // What is set for a single node is not meant for all of them.
        let name = name.to_string_lossy();
        if name.starts_with("MILLRACE_") && name != "MILLRACE_LOG" && name != PARENT_VARIABLE {
            command.env_remove(&*name);
        }
    }
    command
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("write {}: {error}", path.display())).with_hint("choose another --dir")
}

/// Checks that a port is free before anything is started.
fn free(port: u16) -> Result<(), Failure> {
    TcpListener::bind(local(port)).map(drop).map_err(|error| {
        Failure::new(format!("listen on {}: {error}", local(port)))
            .with_hint("choose other ports with --port")
    })
}

fn spawn(
    name: String,
    address: SocketAddr,
    home: &Path,
    mut command: Command,
) -> Result<Member, Failure> {
    let text: Vec<_> = command.get_args().map(|it| it.to_string_lossy().into_owned()).collect();
    let path = home.join("command");
    fs::write(&path, format!("millrace {}\n", text.join(" ")))
        .map_err(|error| cannot_write(&path, &error))?;
    let log = home.join("log");
    let file = File::options().create(true).append(true).open(&log);
    let file = file.map_err(|error| cannot_write(&log, &error))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
    // Ctrl-C is for this process, which stops the others in order.
    command.process_group(0);
    let child = command.spawn().map_err(|error| Failure::new(format!("start {name}: {error}")))?;
    Ok(Member {
        name,
        address,
        home: home.to_owned(),
        log,
        program: command.get_program().into(),
        arguments: command.get_args().map(OsString::from).collect(),
        child,
        has_ended: false,
    })
}

/// Says once of each process that it has ended by itself.
fn tell_ended(members: &mut [Member]) {
    for member in members.iter_mut().filter(|member| !member.has_ended) {
        if let Ok(Some(status)) = member.child.try_wait() {
            member.has_ended = true;
            output::note(&format!(
                "{} has ended ({status}): see {}; `millrace cluster restart` starts it again",
                member.name,
                member.log.display()
            ));
        }
    }
}

/// Waits until a process reports that it serves.
fn wait_ready(member: &mut Member) -> Result<(), Failure> {
    let Some(stdout) = member.child.stdout.take() else { return Ok(()) };
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Read to the end, so that the process never waits for a reader.
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // The receiver is gone once the process was ready.
            let _ = sender.send(line);
        }
    });
    let end = Instant::now() + READY_WAIT;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) if READY.iter().any(|ready| line.contains(ready)) => return Ok(()),
            Ok(_) => (),
            Err(_) => {
                let text = fs::read_to_string(&member.log).unwrap_or_default();
                let is_told = |line: &&str| !line.trim().is_empty() && !line.starts_with("hint: ");
                let last = text.lines().rev().find(is_told);
                let message = format!(
                    "{} does not start: {}",
                    member.name,
                    last.unwrap_or("it says nothing").trim()
                );
                let hint = format!("see {}", member.log.display());
                return Err(Failure::new(message).with_hint(hint));
            }
        }
    }
}

/// Returns the text that says where everything is.
fn told(args: &UpArgs, members: &[Member]) -> Result<String, Failure> {
    if args.json {
        let members = members.iter().map(|member| {
            json!({
                "name": member.name,
                "address": member.address.to_string(),
                "pid": member.child.id(),
                "log": member.log.display().to_string(),
            })
        });
        return output::json(&members.collect::<Vec<_>>());
    }
    let mut table = Table::new(&[Align::Left, Align::Left, Align::Right, Align::Left]);
    for member in members {
        table.row([
            member.name.clone(),
            member.address.to_string(),
            member.child.id().to_string(),
            member.log.display().to_string(),
        ]);
    }
    let node = local(args.port);
    Ok(format!(
        "{}\nthe cluster is up; Ctrl-C stops it. In another terminal:\n  \
         millrace admin status --node {node}\n  millrace fs ls --node {node}\n",
        table.render()
    ))
}

/// Stops all processes, the last that was started first, so that a node leaves while coordination is
/// there.
fn stop(mut members: Vec<Member>) {
    while let Some(last) = members.pop() {
        let is_node = last.name.starts_with("node");
        let mut group = vec![last];
        while members.last().is_some_and(|it| it.name.starts_with("node") == is_node) {
            group.extend(members.pop());
        }
        for member in &group {
            signal(member, Signal::TERM);
        }
        let end = Instant::now() + STOP_WAIT;
        for mut member in group {
            wait_end(&mut member, end);
        }
    }
}

/// Waits until a process has ended that was asked to, and kills it if it does not.
fn wait_end(member: &mut Member, end: Instant) {
    while matches!(member.child.try_wait(), Ok(None)) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    if matches!(member.child.try_wait(), Ok(None)) {
        output::note(&format!("{} does not end: killed", member.name));
        signal(member, Signal::KILL);
    }
    // It is over either way.
    let _ = member.child.wait();
}

fn signal(member: &Member, signal: Signal) {
    if let Some(pid) = i32::try_from(member.child.id()).ok().and_then(Pid::from_raw) {
        // A process that has ended already was not waited for, so no other process has its number.
        let _ = kill_process(pid, signal);
    }
}
