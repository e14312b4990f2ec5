//! `millrace fs`: look at, read and steer what a running node serves.
//!
//! Owns the flags and the connection; each group of verbs has a file. Always holds: received bytes are
//! compared with the node's checksums unless `--no-verify` is given, and memory is bounded by blocks in
//! flight, never by the size of a file.

use std::io::ErrorKind;
use std::net::{ToSocketAddrs, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use millrace_client::{Client, ClientConfig, Error};
use millrace_node::{admin, secret};
use millrace_proto::coordination;
use tokio::runtime::{Builder, Runtime};

mod list;

pub(crate) mod cat;
mod get;

mod cache;
mod refresh;
mod share;
mod status;
mod target;
mod tree;
mod write;

use crate::failure::Failure;
use crate::signals;

/// What to do where no node answers.
pub(crate) const NO_NODE_HINT: &str = "check --node, or start one: millrace node --source DIR";
/// Value of a node's own key `admin` that leaves the place to the node; one variable may be for both.
const AUTOMATIC: &str = "auto";
/// Where a node listens by default.
const ADDRESS: &str = "127.0.0.1:7070";
/// How long work in progress may still take when the verb is done. Guessed: a write of `get` takes less.
const SHUTDOWN_TIME: Duration = Duration::from_secs(10);
/// Longest wait for the whole of one file to be loaded.
const LOAD_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// Look at, read and steer what a running node serves.
///
/// Paths are relative to the directory that the node serves; a `/` in front makes no difference.
/// `load` and `free` change only what is in the cache. `put`, `mv` and `rm` change the source, where the node
/// lets clients write.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace fs ls -l datasets
  millrace fs cat datasets/train.csv --range 0-999
  millrace fs get -r datasets ./datasets
  millrace fs put model.bin models/model.bin
  millrace fs --node cache-1:7070 status
  millrace fs --node zk://coord-1:2181,coord-2:2181/millrace ls
  millrace fs --fallback-root /mnt/datasets cat datasets/train.csv")]
pub(crate) struct FsArgs {
    #[command(flatten)]
    node: NodeAddress,
    /// Read files below DIR, a directory of this machine, from there when no node of the cluster
    /// answers; may be given several times. Nothing else is opened, whatever nodes say of their sources
    #[arg(long = "fallback-root", value_name = "DIR", display_order = 101, global = true)]
    fallback_roots: Vec<PathBuf>,
    #[command(subcommand)]
    verb: FsVerb,
}

/// Which node is asked.
#[derive(clap::Args)]
pub(crate) struct NodeAddress {
    /// Address of a node, or of several joined by commas; unix:PATH for a Unix socket;
    /// zk://HOST:PORT/PATH for the nodes that registered there
    #[arg(id = "node_address", long = "node", value_name = "HOST:PORT", env = "MILLRACE_NODE",
        hide_env_values = true,
        display_order = 100,
        default_value = ADDRESS, global = true)]
    pub(crate) address: String,
    /// Administration socket of a node, for changes. It is found by itself for a node of this user on
    /// this machine, and by root for a node of any user, unless the node was configured with another
    /// place
    #[arg(
        long,
        value_name = "PATH",
        env = "MILLRACE_ADMIN",
        hide_env_values = true,
        display_order = 100,
        global = true
    )]
    admin: Option<String>,
    /// File with the token of the nodes, for changes over TCP
    #[arg(
        long,
        value_name = "FILE",
        env = "MILLRACE_ADMIN_TOKEN",
        hide_env_values = true,
        display_order = 100,
        global = true
    )]
    admin_token: Option<PathBuf>,
}

impl NodeAddress {
    /// Returns the settings of a client that makes changes: where it sends them.
    ///
    /// # Errors
    /// If no administration socket is found, or the token cannot be read.
    pub(crate) fn to_change(&self) -> Result<ClientConfig, Failure> {
        let token = self.admin_token.as_deref().map(secret::read).transpose();
        let admin_token =
            token.map_err(|error| Failure::usage(format!("flag --admin-token: {error}")))?;
        let admin = match self.admin.as_deref().filter(|admin| *admin != AUTOMATIC) {
            Some(admin) => administration(admin, admin_token.is_some())?,
            None if admin_token.is_some() => self.address.clone(),
            None => self.find_administration()?,
        };
        if admin.starts_with(coordination::SCHEME) {
            return Err(Failure::usage(format!(
                "flag --node: a change is asked of a node, and {admin} names coordination"
            ))
            .with_hint(
                "name one or more nodes, as `millrace admin nodes` lists them: --node HOST:PORT",
            ));
        }
        Ok(ClientConfig { admin: Some(admin), admin_token, ..ClientConfig::new() })
    }

    /// Returns the administration sockets on this machine of the nodes that are named.
    fn find_administration(&self) -> Result<String, Failure> {
        let (mut found, mut looked) = (Vec::new(), Vec::new());
        // The addresses of a place of coordination are not nodes.
        let is_node = !self.address.starts_with(coordination::SCHEME);
        for address in self.address.split(',').filter(|_| is_node) {
            let port =
                address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
            let Some((host, port)) = port.filter(|(host, _)| *host != "unix") else { continue };
            // A node of this machine at the same port may belong to another cluster.
            if !is_this_machine(host, port) {
                looked.push(format!("{host} is another machine"));
                continue;
            }
            let search = admin::search(port);
            found.extend(search.found.iter().map(|place| format!("unix:{}", place.display())));
            looked.extend(search.tried.iter().map(|(place, error)| match error.kind() {
                ErrorKind::NotFound => format!("{} is not there", place.display()),
                _ => format!("{}: {error}", place.display()),
            }));
        }
        if !found.is_empty() {
            return Ok(found.join(","));
        }
        let looked = match looked.is_empty() {
            true => "looked at no place, because only HOST:PORT says which socket to look for"
                .to_owned(),
            false => looked.join(", "),
        };
        Err(Failure::new(format!(
            "no administration socket of {} for this user on this machine ({looked})",
            self.address
        ))
        .with_hint(
            "run it on the node's machine as the node's user or root, name the socket with --admin (as the \
             node's own flag or key `admin` does), or the file with the nodes' token with --admin-token",
        ))
    }

    /// Checks the form of the address of one node, before anything is looked up or contacted.
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

/// Returns the address of an administration socket that was named.
///
/// # Errors
/// If it is not an address, or one over TCP without a token, where changes are refused.
fn administration(admin: &str, has_token: bool) -> Result<String, Failure> {
    let refused = |text: String| Err(Failure::usage(format!("flag --admin: {text}")));
    let is_address =
        |it: &str| it.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if admin.starts_with('/') {
        return Ok(format!("unix:{admin}"));
    }
    if admin.starts_with("unix:") {
        return Ok(admin.to_owned());
    }
    if !admin.split(',').all(is_address) {
        return refused(format!(
            "{admin:?} is not an administration socket; give its whole path, from / on, or leave the flag out"
        ));
    }
    if !has_token {
        return refused(format!(
            "{admin} is reached over TCP, where nothing is changed without a token; give the file with the \
             nodes' token with --admin-token, or the path of the socket on the node's machine"
        ));
    }
    Ok(admin.to_owned())
}

/// True if a host is this machine, because only here an address of it can be bound.
fn is_this_machine(host: &str, port: u16) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = (host, port).to_socket_addrs();
    addresses.is_ok_and(|mut them| them.any(|it| UdpSocket::bind((it.ip(), 0)).is_ok()))
}

#[derive(Subcommand)]
enum FsVerb {
    Ls(list::LsArgs),
    Stat(list::StatArgs),
    Find(tree::FindArgs),
    Du(tree::DuArgs),
    Cat(cat::CatArgs),
    Get(get::GetArgs),
    Load(cache::LoadArgs),
    Free(cache::FreeArgs),
    Refresh(refresh::FsRefreshArgs),
    Put(write::PutArgs),
    Mv(write::MvArgs),
    Rm(write::RmArgs),
    Status(status::FsStatusArgs),
}

pub(crate) fn run(args: FsArgs) -> Result<(), Failure> {
    let runtime = runtime()?;
    let config = match &args.verb {
        FsVerb::Free(free) if free.changes() => args.node.to_change()?,
        FsVerb::Load(load) if load.changes() => args.node.to_change()?,
        _ => ClientConfig::new(),
    };
    let config = ClientConfig {
        verify: match &args.verb {
            FsVerb::Cat(args) => !args.no_verify,
            FsVerb::Get(args) => !args.no_verify,
            _ => true,
        },
        fallback_roots: whole(args.fallback_roots)?,
        ..config
    };
    let address = args.node.address;
    let result = runtime.block_on(async move {
        let client = Client::connect(address, config).await.map_err(no_node)?;
        match args.verb {
            FsVerb::Ls(args) => list::ls(&client, &args).await,
            FsVerb::Stat(args) => list::stat(&client, &args).await,
            FsVerb::Find(args) => tree::find(&client, &args).await,
            FsVerb::Du(args) => tree::du(&client, &args).await,
            FsVerb::Cat(args) => cat::run(&client, &args).await,
            // Stopped half-way it has files to remove, which happens when the future is dropped.
            FsVerb::Get(args) => tokio::select! {
                result = get::run(&client, &args) => result,
                result = signals::interrupted() => result.and(Err(Failure::new("interrupted"))),
            },
            FsVerb::Load(args) => cache::load(&client.with_deadline(LOAD_DEADLINE), &args).await,
            FsVerb::Free(args) => cache::free(&client, &args).await,
            FsVerb::Put(args) => write::put(&client, &args).await,
            FsVerb::Mv(args) => write::mv(&client, &args).await,
            FsVerb::Rm(args) => write::rm(&client, &args).await,
            FsVerb::Refresh(args) => refresh::run(&client, &args).await,
            FsVerb::Status(args) => status::run(&client, &args).await,
        }
    });
    // This also waits for the writes of `get` that are under way, so that their files are removed, but
    // not for a source that hangs.
    runtime.shutdown_timeout(SHUTDOWN_TIME);
    result
}

/// Makes paths absolute that begin at the working directory.
///
/// # Errors
/// If one is empty, or there is no working directory.
fn whole(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, Failure> {
    let paths = paths.into_iter().map(|path| {
        std::path::absolute(&path).map_err(|error| {
            Failure::usage(format!("flag --fallback-root: '{}': {error}", path.display()))
        })
    });
    paths.collect()
}

/// Returns why there is no connection; the flag may be at fault.
pub(crate) fn no_node(error: Error) -> Failure {
    match error {
        Error::InvalidArgument(text) => Failure::usage(format!("flag --node: {text}")),
        error @ Error::Connect { .. } => Failure::from(error).with_hint(NO_NODE_HINT),
        error => Failure::from(error),
    }
}

/// Starts the threads that move bytes and verify them.
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
