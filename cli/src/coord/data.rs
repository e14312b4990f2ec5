//! Verbs that copy data: `backup`, `restore`, and `import` from ZooKeeper.
//!
//! A running replica writes its backup itself; without one, the backup is made from the directory.
//! Always holds: a file or a directory has its name only when it is whole.

use std::path::{Path, PathBuf};

use clap::value_parser;
use millrace_coord::admin::offline::{self, Offline, OfflineError};
use millrace_coord::config::Member;
use millrace_coord::config::members::REPLICA_ID_MAX;
use millrace_coord::store::StoreError;
use serde_json::json;

use super::ask::DataDir;
use crate::failure::Failure;
use crate::output;

/// Write a copy of the whole state into a new file.
///
/// A running replica writes the file itself, as its own user, and goes on serving meanwhile. If none
/// runs, the copy is made from the data directory, which stays as it is.
/// Every part of the file has a checksum; `millrace coord dump FILE` verifies them.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace coord backup --data /var/lib/coord /backup/coord-$(date +%F)
  millrace coord dump /backup/coord-2026-09-01 | tail -1")]
pub(super) struct BackupArgs {
    #[command(flatten)]
    replica: DataDir,
    /// File to write; it must not exist
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Make a data directory from a backup.
///
/// The result is a new replica by itself, with a new identity. It does not belong to the ensemble of the
/// backup, whose members must not run any more. With --member it is the first member of a new ensemble;
/// start the others with --join and `millrace coord add` them.
///
/// Sessions end, because clients may hold what they were given after the backup; they open new ones. Zxids go on
/// far above all that were given out, so clients and nodes follow by themselves, and none is refused.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace coord restore /backup/coord-2026-09-01 --data /var/lib/coord
  millrace coord restore FILE --data DIR --member 'server.1=a:2888:3888;2181'")]
pub(super) struct RestoreArgs {
    /// File that `millrace coord backup` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    target: Target,
}

/// Make a data directory from the data of Apache ZooKeeper 3.4 to 3.9.
///
/// Reads the newest snapshot and the transactions after it, and changes nothing there. All nodes come over with
/// their data, ACLs and numbers, but for ephemeral nodes and for /zookeeper/config: sessions do not move, and the new
/// ensemble has its own members. Stop the whole ensemble first, and import the directory of the server that has the
/// highest zxid (its four-letter word srvr says it), so that no acknowledged write is left behind.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace coord import /var/lib/zookeeper --data /var/lib/millrace-coord
  millrace coord import /var/lib/zookeeper --log-dir /log/zookeeper --data DIR --member 'server.1=a:2888:3888;2181'")]
pub(super) struct ImportArgs {
    /// dataDir of a ZooKeeper server that does not run
    #[arg(value_name = "DIR")]
    source: PathBuf,
    /// Its dataLogDir [default: DIR]
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

/// The data directory that is made, and the replica that it is for.
#[derive(clap::Args)]
struct Target {
    /// Data directory to make; it may exist if it is empty, or has only a myid
    #[arg(long = "data", visible_alias = "data-dir", value_name = "DIR")]
    directory: PathBuf,
    /// Id of the replica [default: that of --member, else of the myid in DIR, else 1]
    #[arg(long, value_name = "ID", value_parser = value_parser!(u64).range(1..=REPLICA_ID_MAX))]
    replica_id: Option<u64>,
    // `help` and not a comment, because rustdoc takes brackets for links.
    #[arg(
        long,
        value_name = "MEMBER",
        conflicts_with = "replica_id",
        help = "Begin a new ensemble of this member: server.ID=HOST:PORT:PORT;[HOST:]PORT"
    )]
    member: Option<String>,
}

pub(super) fn backup(args: &BackupArgs) -> Result<(), Failure> {
    // The replica has another working directory.
    let file = std::path::absolute(&args.file)
        .map_err(|error| Failure::new(format!("{}: {error}", args.file.display())))?;
    let Some(path) = file.to_str() else {
        return Err(Failure::usage(format!("{}: the name must be UTF-8", file.display())));
    };
    if let Some(done) = args.replica.command_if_running("/backup", &json!({ "path": path }))? {
        return output::print(&format!("{}\n", output::visible(&done)));
    }
    let directory = &args.replica.directory;
    let offline = offline::open(directory).map_err(|error| unusable(directory, &error))?;
    offline.back_up(&file).map_err(|error| Failure::new(error.to_string()))?;
    if offline.unsettled_count > 0 {
        output::note(&unsettled(offline.unsettled_count));
    }
    let index = offline.index;
    output::print(&format!("{} holds the state up to entry {index}\n", output::visible(path)))
}

/// Returns the line about entries that are left out of what is shown or copied.
pub(super) fn unsettled(count: u64) -> String {
    format!(
        "millrace: left out: {} of the log, of which this replica does not know whether the \
         ensemble agreed on them",
        output::counted(count, "entry")
    )
}

pub(super) fn restore(args: &RestoreArgs) -> Result<(), Failure> {
    let replica = args.target.replica()?;
    let offline = offline::open_backup(&args.file).map_err(|error| unusable(&args.file, &error))?;
    args.target.make(offline, replica)
}

pub(super) fn import(args: &ImportArgs) -> Result<(), Failure> {
    let replica = args.target.replica()?;
    let log_dir = args.log_dir.as_deref().unwrap_or(&args.source);
    let imported = millrace_coord::import::read(&args.source, log_dir);
    let imported = imported.map_err(|error| Failure::new(error.to_string()))?;
    for path in &imported.passed_over {
        output::note(&format!("millrace: {} is not whole: used an older one", path.display()));
    }
    if let Some(path) = &imported.cut {
        output::note(&format!(
            "millrace: left out the last transaction of {}, which was not written whole",
            path.display()
        ));
    }
    let begun = match &imported.snapshot {
        Some(path) => path.display().to_string(),
        None => "an empty tree".to_owned(),
    };
    output::print(&format!(
        "read {} and {} after it; left out {} of sessions\n",
        output::visible(&begun),
        output::counted(imported.transactions, "transaction"),
        output::counted(imported.ephemerals, "ephemeral node"),
    ))?;
    args.target.make(offline::of_state(imported.state), replica)
}

/// The replica that a directory is made for.
struct NewReplica {
    id: u64,
    member: Option<Member>,
}

impl Target {
    fn replica(&self) -> Result<NewReplica, Failure> {
        let member = self.member.as_deref().map(member).transpose()?;
        let id = match (&member, self.replica_id) {
            (Some(member), _) => member.id,
            (None, Some(id)) => id,
            (None, None) => my_id(&self.directory)?.unwrap_or(1),
        };
        Ok(NewReplica { id, member })
    }

    /// Makes the directory, and says how the replica is started.
    fn make(&self, offline: Offline, replica: NewReplica) -> Result<(), Failure> {
        let NewReplica { id, member } = replica;
        let nodes = output::counted(offline.state.counts().nodes as u64, "node");
        let restored = offline.restore(&self.directory, id, member.as_ref());
        restored.map_err(|error| {
            let failure = Failure::new(error.to_string());
            match error {
                OfflineError::NotEmpty { .. } => {
                    failure.with_hint("give a new directory with --data, or move that one away")
                }
                _ => failure,
            }
        })?;
        let directory = self.directory.display();
        let start = match (&member, id) {
            (Some(member), id) => format!("--replica-id {id} --members '{member}'"),
            (None, 1) => String::new(),
            (None, id) => format!("--replica-id {id}"),
        };
        let start = format!("millrace coord --data {directory} {start}");
        output::print(&format!("{directory} holds {nodes}; start it: {}\n", start.trim_end()))
    }
}

fn member(line: &str) -> Result<Member, Failure> {
    let usage = |reason: String| Failure::usage(format!("flag --member: {reason}"));
    let member = Member::parse_line(line).map_err(|error| usage(error.to_string()))?;
    match member.role {
        millrace_coord::config::Role::Participant => Ok(member),
        millrace_coord::config::Role::Observer => {
            Err(usage("the first member has to vote, so it cannot be an observer".to_owned()))
        }
    }
}

/// Returns the id in the directory's `myid`, if there is one.
fn my_id(directory: &Path) -> Result<Option<u64>, Failure> {
    let file = directory.join("myid");
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::new(format!("{}: {error}", file.display()))),
    };
    let id = text.trim().parse().ok().filter(|id| (1..=REPLICA_ID_MAX).contains(id));
    id.map(Some).ok_or_else(|| {
        Failure::new(format!("{}: `{}` is not an id from 1 to 65535", file.display(), text.trim()))
    })
}

/// Returns why a directory or a backup cannot be used; names it where the reason does not.
pub(super) fn unusable(path: &Path, error: &OfflineError) -> Failure {
    let text = error.to_string();
    let shown = path.display().to_string();
    let failure = match text.contains(&shown) {
        true => Failure::new(text),
        false => Failure::new(format!("{shown}: {text}")),
    };
    match error {
        OfflineError::NoData { .. } => {
            failure.with_hint("check --data: the data_dir of a replica, dataDir in zoo.cfg")
        }
        OfflineError::Store(StoreError::Locked { .. }) => {
            failure.with_hint("millrace coord backup asks a replica that runs")
        }
        _ => failure,
    }
}
