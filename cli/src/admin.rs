//! `millrace admin`: look at a cluster and change it.
//!
//! Owns the flags and the connection; `status` presents, `change` changes, `pins` and `load_jobs` do both.
//! Any node can be asked, because the client learns of the others. A change goes to the administration
//! socket of a node, which asks the master by itself.

use clap::Subcommand;
use millrace_client::{Client, ClientConfig, ClusterInfo};

mod change;
mod load_jobs;
mod pins;
mod status;

use crate::failure::Failure;
use crate::fs::{self, NodeAddress};

/// Look at a cluster, drain its nodes, change what is mounted and pinned, follow load jobs
///
/// Looking needs only a node's address. Changes, and load jobs, go to the administration socket of any node of the
/// cluster, which the node's user and root may open. On the node's machine the socket is found by
/// itself; from elsewhere a change needs the nodes' token (--admin-token, at the nodes and here).
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace admin status
  millrace admin status --watch
  millrace admin wait --healthy --nodes 3
  millrace admin status --node zk://coord-1:2181,coord-2:2181/millrace
  millrace admin drain cache-3 && ssh cache-3 systemctl stop millrace
  millrace admin undrain cache-3
  millrace admin mount datasets file:///mnt/datasets --replicas 2
  millrace admin pin datasets/hot
  millrace admin jobs
  millrace admin nodes --json | jq -r '.[].address'")]
pub(crate) struct AdminArgs {
    #[command(flatten)]
    node: NodeAddress,
    #[command(subcommand)]
    verb: AdminVerb,
}

#[derive(Subcommand)]
enum AdminVerb {
    Status(status::AdminStatusArgs),
    Wait(status::HealthArgs),
    Nodes(status::NodesArgs),
    Drain(change::DrainArgs),
    Undrain(change::UndrainArgs),
    Mounts(status::MountsArgs),
    Mount(change::MountArgs),
    Unmount(change::UnmountArgs),
    Pins(pins::PinsArgs),
    Pin(pins::PinArgs),
    Unpin(pins::UnpinArgs),
    Jobs(load_jobs::JobsArgs),
}

pub(crate) fn run(args: AdminArgs) -> Result<(), Failure> {
    let runtime = fs::runtime()?;
    runtime.block_on(async move {
        let config = match &args.verb {
            AdminVerb::Drain(args) if args.dry_run => ClientConfig::new(),
            AdminVerb::Unmount(args) if args.dry_run => ClientConfig::new(),
            AdminVerb::Status(_)
            | AdminVerb::Wait(_)
            | AdminVerb::Nodes(_)
            | AdminVerb::Mounts(_)
            | AdminVerb::Pins(_) => ClientConfig::new(),
            _ => args.node.to_change()?,
        };
        let connected = Client::connect(args.node.address, config).await;
        let client = connected.map_err(fs::no_node)?;
        match args.verb {
            AdminVerb::Status(args) => status::status(&client, &args).await,
            AdminVerb::Wait(args) => status::wait(&client, &args).await,
            AdminVerb::Nodes(args) => status::nodes(&client, &args),
            AdminVerb::Drain(args) => change::drain(&client, &args).await,
            AdminVerb::Undrain(args) => change::undrain(&client, &args).await,
            AdminVerb::Mounts(args) => status::mounts(&client, &args),
            AdminVerb::Mount(args) => change::mount(&client, &args).await,
            AdminVerb::Unmount(args) => change::unmount(&client, &args).await,
            AdminVerb::Pins(args) => pins::pins(&client, &args).await,
            AdminVerb::Pin(args) => pins::pin(&client, &args).await,
            AdminVerb::Unpin(args) => pins::unpin(&client, &args).await,
            AdminVerb::Jobs(args) => load_jobs::run(&client, &args).await,
        }
    })
}

/// Returns what is known of the cluster.
///
/// # Errors
/// If the node is not in a cluster.
fn cluster(client: &Client) -> Result<ClusterInfo, Failure> {
    client.cluster().ok_or_else(|| {
        Failure::new("this node is in no cluster")
            .with_hint("start it with --coord embedded or --coord zk://HOST:PORT/PATH")
    })
}
