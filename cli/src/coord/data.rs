//! Verbs that copy data: `backup` and `restore`.
//!
//! A running replica writes its backup itself; without one, the backup is made from the directory.
//! Always holds: a file or a directory has its name only when it is whole.

use std::path::{Path, PathBuf};

use clap::value_parser;
use millrace_coord::admin::offline::{self, OfflineError};
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
/// runs, the copy is made from the data directory, which stays as it is. Sessions are part of the copy.
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
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace coord restore /backup/coord-2026-09-01 --data /var/lib/coord
  millrace coord restore FILE --data DIR --member 'server.1=a:2888:3888;2181'")]
pub(super) struct RestoreArgs {
    /// File that `millrace coord backup` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
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
    let member = match &args.member {
        Some(line) => Some(member(line)?),
        None => None,
    };
    let replica_id = match (&member, args.replica_id) {
        (Some(member), _) => member.id,
        (None, Some(id)) => id,
        (None, None) => my_id(&args.directory)?.unwrap_or(1),
    };
    let offline = offline::open_backup(&args.file).map_err(|error| unusable(&args.file, &error))?;
    let nodes = output::counted(offline.state.counts().nodes as u64, "node");
    let restored = offline.restore(&args.directory, replica_id, member.as_ref());
    restored.map_err(|error| {
        let failure = Failure::new(error.to_string());
        match error {
            OfflineError::NotEmpty { .. } => {
                failure.with_hint("give a new directory with --data, or move that one away")
            }
            _ => failure,
        }
    })?;
    let directory = args.directory.display();
    let start = match (&member, replica_id) {
        (Some(member), id) => {
            format!("--replica-id {id} --members '{member}'")
        }
        (None, 1) => String::new(),
        (None, id) => format!("--replica-id {id}"),
    };
    let start = format!("millrace coord --data {directory} {start}");
    output::print(&format!("{directory} holds {nodes}; start it: {}\n", start.trim_end()))
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
