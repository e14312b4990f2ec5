//! `millrace fs`: look at, read and steer what a running node serves.
//!
//! Owns the flags and the connection; each group of verbs has a file. Always holds: what arrives is
//! judged against the node's checksums unless `--no-verify` is given, and memory is bounded by
//! blocks in flight, never by the size of a file.

use std::time::Duration;

use clap::Subcommand;
use millrace_client::{Client, ClientConfig, Error};
use millrace_proto::coordination;
use tokio::runtime::{Builder, Runtime};

mod list;

mod cat;
mod get;

mod cache;
mod status;

use crate::failure::Failure;
use crate::signals;

/// What to do where no node answers.
pub(crate) const NO_NODE_HINT: &str = "check --node, or start one: millrace node --source DIR";
/// Where a node listens when nobody says otherwise.
const ADDRESS: &str = "127.0.0.1:7070";
/// Longest wait for the whole of one file to be loaded.
const LOAD_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// Look at, read and steer what a running node serves.
///
/// Paths are relative to the directory that the node serves; a `/` in front makes no difference.
/// Nothing here writes to that directory: `load` and `free` change only what is in the cache.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace fs ls -l datasets
  millrace fs cat datasets/train.csv --range 0-999
  millrace fs get -r datasets ./datasets
  millrace fs --node cache-1:7070 status
  millrace fs --node zk://coord-1:2181,coord-2:2181/millrace ls")]
pub(crate) struct Args {
    #[command(flatten)]
    node: NodeAddress,
    #[command(subcommand)]
    verb: Verb,
}

/// Which node is asked.
#[derive(clap::Args)]
pub(crate) struct NodeAddress {
    /// Address of a node, or of several behind commas; unix:PATH for a Unix socket;
    /// zk://HOST:PORT/PATH for the nodes that registered there
    #[arg(id = "node_address", long = "node", value_name = "HOST:PORT", env = "MILLRACE_NODE",
        hide_env_values = true,
        display_order = 100,
        default_value = ADDRESS, global = true)]
    pub(crate) address: String,
}

impl NodeAddress {
    /// Judges the form of the address of one node, before anything is looked up or contacted.
    ///
    /// # Errors
    /// If it is neither `host:port` nor `unix:PATH`.
    pub(crate) fn check_one(&self) -> Result<(), Failure> {
        let is_address = |address: &str| {
            if let Some(path) = address.strip_prefix("unix:") {
                return !path.is_empty();
            }
            let parts = address.rsplit_once(':');
            parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        if self.address.starts_with(coordination::SCHEME) {
            return Err(Failure::usage(
                "flag --node: this verb measures one node and needs its own address; \
                 write host:port, see millrace admin nodes",
            ));
        }
        if self.address.split(',').all(is_address) {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "flag --node: {:?} is neither host:port nor unix:PATH",
            self.address
        )))
    }
}

#[derive(Subcommand)]
enum Verb {
    Ls(list::LsArgs),
    Stat(list::StatArgs),
    Cat(cat::Args),
    Get(get::Args),
    Load(cache::LoadArgs),
    Free(cache::FreeArgs),
    Status(status::Args),
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let runtime = runtime()?;
    let config = ClientConfig {
        verify: match &args.verb {
            Verb::Cat(args) => !args.no_verify,
            Verb::Get(args) => !args.no_verify,
            _ => true,
        },
        ..ClientConfig::new()
    };
    let address = args.node.address;
    let result = runtime.block_on(async move {
        let client = Client::connect(address, config).await.map_err(no_node)?;
        match args.verb {
            Verb::Ls(args) => list::ls(&client, &args).await,
            Verb::Stat(args) => list::stat(&client, &args).await,
            Verb::Cat(args) => cat::run(&client, &args).await,
            // Stopped half-way it has files to remove, which happens when the future is dropped.
            Verb::Get(args) => tokio::select! {
                result = get::run(&client, &args) => result,
                result = signals::interrupted() => result.and(Err(Failure::new("interrupted"))),
            },
            Verb::Load(args) => cache::load(&client.with_deadline(LOAD_DEADLINE), &args).await,
            Verb::Free(args) => cache::free(&client, &args).await,
            Verb::Status(args) => status::run(&client, &args).await,
        }
    });
    // Also waits for the writes of `get` that are under way, so that their files are removed.
    drop(runtime);
    result
}

/// Why there is no connection; the flag may be at fault.
pub(crate) fn no_node(error: Error) -> Failure {
    match error {
        Error::InvalidArgument(text) => Failure::usage(format!("flag --node: {text}")),
        error @ Error::Connect { .. } => Failure::from(error).with_hint(NO_NODE_HINT),
        error => Failure::from(error),
    }
}

/// The threads that move bytes and judge them.
///
/// # Errors
/// If the system grants none.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start threads: {error}")))
}

#[cfg(test)]
mod tests {
    use millrace_node::config::Key;

    #[test]
    fn default_address_is_where_a_node_listens() {
        assert_eq!(Key::find("listen").unwrap().default, super::ADDRESS);
    }
}
