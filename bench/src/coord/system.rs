//! The coordination services that are compared: their names, programs and command lines.
//!
//! Owns settings. Every service runs with its own defaults where speed and durability are
//! concerned: ZooKeeper syncs its log before it answers (`forceSync`), etcd and Millrace do so too.
//! ZooKeeper and Millrace read the same `zoo.cfg`. What is set otherwise lifts limits that the load
//! would meet: connections from one host, and the size of etcd's database.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::CoordOptions;
use crate::machine;
use crate::rival;

/// Jars of ZooKeeper as Debian names them, and the folder they lie in.
const JARS: [&str; 7] = [
    "zookeeper.jar",
    "zookeeper-jute.jar",
    "slf4j-api.jar",
    "slf4j-simple.jar",
    "netty-all.jar",
    "snappy-java.jar",
    "metrics-core.jar",
];
const JAR_FOLDER: &str = "/usr/share/java";
/// Largest database of etcd in bytes: what its authors advise at most. The default, 2 GB, holds
/// some minutes of writes, behind which it would refuse them.
const ETCD_QUOTA_BYTES: &str = "8589934592";

/// Most replicas of one service. Guessed: more than a machine for measurements keeps busy.
pub const REPLICAS_MAX: usize = 5;

/// A coordination service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// `millrace coord`.
    Millrace,
    /// Apache ZooKeeper.
    ZooKeeper,
    /// etcd.
    Etcd,
}

impl System {
    /// The services to compare with, in the order of reports.
    pub const RIVALS: [System; 2] = [System::ZooKeeper, System::Etcd];

    /// Returns the name as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            System::Millrace => "millrace",
            System::ZooKeeper => "zookeeper",
            System::Etcd => "etcd",
        }
    }

    /// Returns the version that the program reports, in one line.
    ///
    /// # Errors If it is not installed, with what is missing.
    pub(crate) fn version(self, options: &CoordOptions) -> Result<String> {
        let mut command = match self {
            System::Millrace => Command::new(program(options)?),
            System::ZooKeeper => {
                let mut command = Command::new(find("java")?);
                command.args(["-cp", &classpath(options)?, "org.apache.zookeeper.Version"]);
                command
            }
            System::Etcd => Command::new(find("etcd")?),
        };
        if self != System::ZooKeeper {
            command.arg("--version");
        }
        let output =
            command.output().with_context(|| format!("ask {} for its version", self.name()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|line| !line.trim().is_empty());
        Ok(line.unwrap_or("unknown").trim().to_owned())
    }

    /// Writes the configuration of one replica into its `home`, where it needs one.
    pub(crate) fn configure(self, home: &Path, index: usize, ports: &[Ports]) -> Result<()> {
        if self == System::Etcd {
            return Ok(());
        }
        let write = |name: &str, text: String| {
            let path = home.join(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        let data = home.join("data");
        std::fs::create_dir(&data).with_context(|| format!("create {}", data.display()))?;
        write("data/myid", format!("{}\n", index + 1))?;
        write("zoo.cfg", zoo_cfg(&data, index, ports))
    }

    /// Returns the command that runs one replica.
    pub(crate) fn command(
        self,
        options: &CoordOptions,
        home: &Path,
        index: usize,
        ports: &[Ports],
    ) -> Result<Command> {
        let zoo_cfg = home.join("zoo.cfg");
        Ok(match self {
            System::Millrace => {
                let mut command = rival::command(&program(options)?);
                command.arg("coord").arg(zoo_cfg).args(&options.program_flags);
                command
            }
            System::ZooKeeper => {
                let mut command = rival::command(&find("java")?);
                command
                    .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=error")
                    .args(&options.java_flags)
                    .args(["-cp", &classpath(options)?])
                    .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
                    .arg(zoo_cfg);
                command
            }
            System::Etcd => {
                let mut command = rival::command(&find("etcd")?);
                command.args(etcd_flags(&home.join("data"), index, ports));
                command
            }
        })
    }

    /// Returns the question on the client port that a replica answers with its role, and after which it
    /// closes.
    pub(crate) fn question(self) -> &'static [u8] {
        match self {
            System::Millrace | System::ZooKeeper => b"srvr",
            System::Etcd => b"GET /metrics HTTP/1.0\r\n\r\n",
        }
    }

    /// Refuses numbers of replicas that no service is run with.
    pub(crate) fn check_replicas(count: usize) -> Result<()> {
        ensure!(
            count % 2 == 1 && count <= REPLICAS_MAX,
            "{count} replicas are not measured; use 1, 3 or 5"
        );
        Ok(())
    }
}

/// Where one replica listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) client: SocketAddr,
    pub(crate) peer: SocketAddr,
    /// Used by ZooKeeper only.
    pub(crate) election: SocketAddr,
}

/// Returns the configuration of replica `index`; a single one has no list of servers.
fn zoo_cfg(data: &Path, index: usize, ports: &[Ports]) -> String {
    let client = ports[index].client;
    let mut text = format!(
        "tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={}\nclientPort={}\n\
         clientPortAddress={}\nmaxClientCnxns=0\nadmin.enableServer=false\n\
         4lw.commands.whitelist=*\n",
        data.display(),
        client.port(),
        client.ip()
    );
    if ports.len() > 1 {
        for (index, ports) in ports.iter().enumerate() {
            let (peer, election) = (ports.peer, ports.election.port());
            // Writing to a String cannot fail.
            let _ = writeln!(text, "server.{}={peer}:{election}", index + 1);
        }
    }
    text
}

fn etcd_flags(data: &Path, index: usize, ports: &[Ports]) -> Vec<String> {
    let name = |index: usize| format!("replica-{}", index + 1);
    let cluster: Vec<String> = ports
        .iter()
        .enumerate()
        .map(|(index, ports)| format!("{}=http://{}", name(index), ports.peer))
        .collect();
    let client = format!("http://{}", ports[index].client);
    let peer = format!("http://{}", ports[index].peer);
    let flags: [(&str, String); 11] = [
        ("name", name(index)),
        ("data-dir", data.display().to_string()),
        ("listen-client-urls", client.clone()),
        ("advertise-client-urls", client),
        ("listen-peer-urls", peer.clone()),
        ("initial-advertise-peer-urls", peer),
        ("initial-cluster", cluster.join(",")),
        ("initial-cluster-state", "new".into()),
        ("quota-backend-bytes", ETCD_QUOTA_BYTES.into()),
        ("logger", "zap".into()),
        ("log-level", "error".into()),
    ];
    flags.into_iter().map(|(flag, value)| format!("--{flag}={value}")).collect()
}

fn program(options: &CoordOptions) -> Result<PathBuf> {
    match &options.program {
        Some(program) => Ok(program.clone()),
        None => std::env::current_exe().context("find the program that is running"),
    }
}

fn find(program: &str) -> Result<PathBuf> {
    machine::find_program(program).with_context(|| format!("{program} is not installed"))
}

fn classpath(options: &CoordOptions) -> Result<String> {
    if let Some(classpath) = &options.classpath {
        return Ok(classpath.clone());
    }
    let paths = JARS.map(|jar| format!("{JAR_FOLDER}/{jar}"));
    if let Some(missing) = paths.iter().find(|path| !Path::new(path).is_file()) {
        bail!("there is no {missing}; name ZooKeeper's jars with --classpath");
    }
    Ok(paths.join(":"))
}

/// What a replica is, when it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It leads, or stands alone.
    Leader,
    /// It follows a leader.
    Follower,
}

impl Role {
    /// Reads the answer to the question of [`System::question`]; `None` while it does not serve.
    pub(crate) fn parse(system: System, answer: &str) -> Option<Role> {
        let mut lines = answer.lines();
        if system == System::Etcd {
            let is_set = |name: &str| {
                let value = answer.lines().find_map(|line| line.strip_prefix(name));
                value.is_some_and(|value| value.trim() == "1")
            };
            let role = if is_set("etcd_server_is_leader ") { Role::Leader } else { Role::Follower };
            return is_set("etcd_server_has_leader ").then_some(role);
        }
        match lines.find_map(|line| line.strip_prefix("Mode: "))?.trim() {
            "leader" | "standalone" => Some(Role::Leader),
            "follower" => Some(Role::Follower),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(count: u16) -> Vec<Ports> {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let ports = |index| Ports {
            client: address(100 + index),
            peer: address(200 + index),
            election: address(300 + index),
        };
        (0..count).map(ports).collect()
    }

    #[test]
    fn replicas_are_named_to_each_other_and_a_single_one_is_not() {
        let text = zoo_cfg(Path::new("/d"), 1, &ports(3));
        assert!(text.contains("dataDir=/d\nclientPort=101\n"), "{text}");
        assert!(text.ends_with("server.3=127.0.0.1:202:302\n"), "{text}");
        assert!(!zoo_cfg(Path::new("/d"), 0, &ports(1)).contains("server."));
        let flags = etcd_flags(Path::new("/d"), 0, &ports(3)).join(" ");
        let cluster = "--initial-cluster=replica-1=http://127.0.0.1:200,\
                       replica-2=http://127.0.0.1:201,replica-3=http://127.0.0.1:202";
        assert!(flags.contains(cluster), "{flags}");
    }

    #[test]
    fn durability_is_left_at_its_default() {
        let text = zoo_cfg(Path::new("/d"), 0, &ports(1));
        let flags = etcd_flags(Path::new("/d"), 0, &ports(1)).join(" ");
        assert!(!text.contains("forceSync") && !flags.contains("fsync"));
    }

    #[test]
    fn roles_are_read_from_what_servers_say() {
        let role = |text| Role::parse(System::ZooKeeper, text);
        assert_eq!(role("Zxid: 0x1\nMode: standalone\nNode count: 5\n"), Some(Role::Leader));
        assert_eq!(role("Mode: leader\n"), Some(Role::Leader));
        assert_eq!(role("Mode: follower\n"), Some(Role::Follower));
        assert_eq!(role("This ZooKeeper instance is not currently serving requests"), None);
        let role = |text| Role::parse(System::Etcd, text);
        let leader = "# HELP x\netcd_server_has_leader 1\netcd_server_is_leader 1\n";
        assert_eq!(role(leader), Some(Role::Leader));
        let follower = "etcd_server_has_leader 1\netcd_server_is_leader 0\n";
        assert_eq!(role(follower), Some(Role::Follower));
        assert_eq!(role("etcd_server_has_leader 0\netcd_server_is_leader 0\n"), None);
    }

    #[test]
    fn replicas_are_odd() {
        assert!(System::check_replicas(2).is_err() && System::check_replicas(3).is_ok());
    }
}
