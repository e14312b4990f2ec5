//! `millrace coord`: the coordination service, and its verbs for operators.
//!
//! Owns the flags of the verb and the list of verbs below it; each group of them has a file. Without a
//! verb it is a replica, in the foreground. What the keys mean and what a replica answers is left to the
//! crate behind it.

use clap::Subcommand;

mod serve;

mod ask;
mod status;

mod change;
mod data;
mod dump;

use crate::failure::Failure;

/// Run a replica of the coordination service, or look after one.
///
/// A replica serves ZooKeeper's protocol. Without a verb it runs in the foreground, from a zoo.cfg (with
/// the myid beside its data), from a file of our own, or with nothing but a data directory. It prints
/// one line on stdout once clients are served, and logs to stderr; the environment variable MILLRACE_LOG
/// sets what is logged (error, warn, info, debug, or a filter such as `warn,millrace_coord=debug`). On
/// SIGTERM and SIGINT it hands leadership over and makes durable what is queued; a second signal ends it
/// at once.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  millrace coord --data /var/lib/coord                     one replica, no configuration
  millrace coord /etc/zookeeper/conf/zoo.cfg               as ZooKeeper would be started
  millrace coord --config coord.toml --admin 127.0.0.1:8080
  millrace coord --data DIR --print-config > coord.toml
  millrace coord status --data DIR                         how that replica stands"
)]
pub(crate) struct CoordArgs {
    #[command(flatten)]
    serve: serve::ServeArgs,
    #[command(subcommand)]
    verb: Option<CoordVerb>,
}

#[derive(Subcommand)]
enum CoordVerb {
    Status(status::CoordStatusArgs),
    Members(status::MembersArgs),
    Add(change::AddArgs),
    Remove(change::RemoveArgs),
    Transfer(change::TransferArgs),
    Snapshot(change::SnapshotArgs),
    Backup(data::BackupArgs),
    Restore(data::RestoreArgs),
    Import(data::ImportArgs),
    Dump(dump::DumpArgs),
}

pub(crate) fn run(args: CoordArgs) -> Result<(), Failure> {
    match args.verb {
        None => serve::run(&args.serve),
        Some(CoordVerb::Status(args)) => status::run(&args),
        Some(CoordVerb::Members(args)) => status::run_members(&args),
        Some(CoordVerb::Add(args)) => change::add(&args),
        Some(CoordVerb::Remove(args)) => change::remove(&args),
        Some(CoordVerb::Transfer(args)) => change::transfer(&args),
        Some(CoordVerb::Snapshot(args)) => change::snapshot(&args),
        Some(CoordVerb::Backup(args)) => data::backup(&args),
        Some(CoordVerb::Restore(args)) => data::restore(&args),
        Some(CoordVerb::Import(args)) => data::import(&args),
        Some(CoordVerb::Dump(args)) => dump::run(&args),
    }
}
