//! Verbs that change a running ensemble: `add`, `remove`, `transfer`, `snapshot`.
//!
//! Owns the flags; the ensemble judges what is asked. All verbs go through the socket in a replica's data
//! directory.

use clap::value_parser;
use millrace_coord::config::Member;
use millrace_coord::config::members::REPLICA_ID_MAX;
use millrace_proto::zookeeper::Error;
use serde_json::json;

use super::ask::DataDir;
use crate::failure::Failure;
use crate::output;

/// Add members to the ensemble, or change their addresses or roles.
///
/// Start the new replica first, with --join, an empty data directory and the new list of members: it
/// waits until it is added and then copies its state from the others. A member that is named again gets
/// the new addresses or role.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace coord --data NEW --replica-id 4 --members '1=a:2888:3888;2181,...' --join &
  millrace coord add --data DIR 'server.4=d:2888:3888;2181'
  millrace coord add --data DIR 'server.5=e:2888:3888:observer;2181'")]
pub(super) struct AddArgs {
    #[command(flatten)]
    replica: DataDir,
    // `help` and not a comment, because rustdoc takes brackets for links.
    #[arg(
        value_name = "MEMBER",
        required = true,
        help = "server.ID=HOST:PORT:PORT[:observer];[HOST:]PORT, as in zoo.cfg"
    )]
    members: Vec<String>,
}

/// Remove members from the ensemble.
///
/// The other members go on without them, so most of those have to run. A removed replica no longer
/// serves clients: stop it. To join again, it needs a new directory.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace coord remove --data DIR 4
  millrace coord remove --data DIR 4 5")]
pub(super) struct RemoveArgs {
    #[command(flatten)]
    replica: DataDir,
    /// Which members
    #[arg(value_name = "ID", required = true, value_parser = id())]
    ids: Vec<u64>,
}

/// Hand leadership to another replica.
///
/// Send this to the leader. Clients notice only a short pause.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace coord transfer --data DIR
  millrace coord transfer --data DIR 2")]
pub(super) struct TransferArgs {
    #[command(flatten)]
    replica: DataDir,
    /// Id of the new leader [default: the replica with the most of the log]
    #[arg(value_name = "ID", value_parser = id())]
    to: Option<u64>,
}

/// Make the state durable now, so that the next start has nothing to replay.
///
/// A replica does this by itself, every few seconds; nothing that was acknowledged depends on it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace coord snapshot --data DIR")]
pub(super) struct SnapshotArgs {
    #[command(flatten)]
    replica: DataDir,
}

fn id() -> clap::builder::RangedU64ValueParser {
    value_parser!(u64).range(1..=REPLICA_ID_MAX)
}

pub(super) fn add(args: &AddArgs) -> Result<(), Failure> {
    for line in &args.members {
        Member::parse_line(line).map_err(|error| Failure::usage(error.to_string()))?;
    }
    reconfigure(&args.replica, &json!({ "joining": args.members.join(",") }))
}

pub(super) fn remove(args: &RemoveArgs) -> Result<(), Failure> {
    let ids: Vec<String> = args.ids.iter().map(u64::to_string).collect();
    reconfigure(&args.replica, &json!({ "leaving": ids.join(",") }))
}

fn reconfigure(replica: &DataDir, change: &serde_json::Value) -> Result<(), Failure> {
    let members = replica.command("/reconfigure", change).map_err(explain)?;
    output::print(&format!("{}\n", output::visible_lines(members.trim_end())))
}

/// Adds advice to the refusals that an operator meets; the ensemble names them by the codes of the
/// protocol.
fn explain(failure: Failure) -> Failure {
    let Failure::Told { text, hint: None, .. } = &failure else { return failure };
    let Some((_, code)) = text.rsplit_once("error ") else { return failure };
    let hint = match code.parse::<i32>().ok() {
        Some(code) if code == Error::Unimplemented.code() => {
            "a replica by itself has no members: give it a list of them (server lines in zoo.cfg, or \
             --members) and start it again; it is the first of them, with its data"
        }
        Some(code) if code == Error::NewConfigNoQuorum.code() => {
            "most of the new members are not reached: start them first, new ones with --join"
        }
        Some(code) if code == Error::ReconfigInProgress.code() => {
            "another change is being made: wait for it"
        }
        Some(code) if code == Error::BadArguments.code() => {
            "the list would have no voter, an address twice, or a member that is not there"
        }
        _ => return failure,
    };
    failure.with_hint(hint)
}

pub(super) fn transfer(args: &TransferArgs) -> Result<(), Failure> {
    let argument = match args.to {
        Some(to) => json!({ "to": to }),
        None => json!({}),
    };
    say(&args.replica.command("/transfer", &argument)?)
}

pub(super) fn snapshot(args: &SnapshotArgs) -> Result<(), Failure> {
    say(&args.replica.command("/checkpoint", &json!({}))?)
}

fn say(result: &str) -> Result<(), Failure> {
    output::print(&format!("{}\n", output::visible(result)))
}
