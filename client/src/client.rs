//! The client: paths in, files and reports out.
//!
//! Owns the way in and what is asked of one node; reads are in `read.rs` and `read_many.rs`, what is
//! asked of all members of a cluster in `control.rs`, writes in `write.rs`. All other requests may
//! be sent twice without harm, so a lost connection or a busy node costs only time, up to the deadline
//! of the operation.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use millrace_proto::frame;
use millrace_proto::message::{
    ArchivedListReply, ArchivedPartialListReply, ArchivedStatReply, ListRequest, PATH_LENGTH_MAX,
    StatRequest,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::address::Seeds;
use crate::config::{ClientConfig, DURATION_MAX};
use crate::connection::{Answer, Body, Landing, Lane, Reply};
use crate::error::Error;
use crate::failover::{Call, Rescue, Tries};
use crate::file::{self, Entry, File, HelloInfo, ListedPage};
use crate::lease::Leases;
use crate::member::Member;
use crate::network::Network;
use crate::reply::{self, Setback};
use crate::retry::{Backoff, Retry};
use crate::topology::{Order, Topology};

/// Most entries of a directory that are returned at once. Guessed: some gigabytes.
const ENTRIES_MAX: usize = 10_000_000;
/// Most reads of sources at the same time. Guessed: a source that hangs may hold this many threads.
const FALLBACKS_MAX: usize = 32;
/// Longest token of a `List` page in bytes. Derived: what a page leaves of a body.
const TOKEN_LENGTH_MAX: usize = 8 << 10;

/// Administration sockets, tried in turn; made when they are first used.
#[derive(Debug, Default)]
pub(crate) struct Administration(pub(crate) OnceLock<Vec<Arc<Member>>>);

/// A client of one node, or of the cluster that the node is in. Cloning is cheap, and clones share their connections.
///
/// It lives on the tokio runtime it was connected on. Every method is one operation under one
/// deadline ([`ClientConfig::deadline`], or [`Client::with_deadline`]) and may be dropped at any time.
///
/// # Errors Besides the errors of each method, every one may return [`Error::DeadlineExceeded`],
/// [`Error::Connect`], [`Error::NoHello`], [`Error::ConnectionLost`], [`Error::Protocol`], and
/// [`Error::Status`] with what the node decided.
#[derive(Clone, Debug)]
pub struct Client {
    config: Arc<ClientConfig>,
    network: Arc<Network>,
    leases: Arc<Leases>,
    administration: Arc<Administration>,
    fallback_count: Arc<AtomicU64>,
    fallback_permits: Arc<Semaphore>,
    deadline: Duration,
}

impl Client {
    /// Connects to a node at `address`, `host:port` or `unix:PATH`, and exchanges `Hello`. A node in a
    /// cluster names the other members, and the client goes on with all of them. Of several addresses,
    /// separated by commas, the first that works counts: the next one is tried when one fails, or keeps
    /// silent for a quarter of [`ClientConfig::attempt_timeout`]. All of them are remembered, and tried
    /// again when no node that is known can be reached.
    ///
    /// With the cargo feature `coordination` the address may also be that of coordination, as the nodes
    /// have it: `zk://HOST:PORT,HOST:PORT/PATH`. It names nodes and is left at once; it is asked again
    /// only when no node that is known can be reached, so that a cluster is found again after all its
    /// nodes were replaced.
    ///
    /// # Errors [`Error::Connect`] or [`Error::NoHello`] when the first try to connect fails: only a
    /// client that was connected once waits for its node to come back. Of several addresses it is the
    /// error of the last. [`Error::Protocol`] when the peer is not a Millrace node, or sends no
    /// checksums though [`ClientConfig::verify`] is set. [`Error::InvalidArgument`] for a bad address or
    /// setting. If coordination is to name the nodes, also [`Error::Coordination`] after
    /// [`ClientConfig::connect_timeout`], [`Error::NoCluster`] and [`Error::NoMembers`].
    pub async fn connect(
        address: impl Into<String>,
        config: ClientConfig,
    ) -> Result<Client, Error> {
        config.check()?;
        let seeds = Seeds::parse(&address.into())?;
        let config = Arc::new(config);
        let network = Network::connect(&seeds, &config).await?;
        Ok(Client {
            deadline: config.deadline,
            network: Arc::new(network),
            leases: Arc::new(Leases::new(config.leased_bytes_max)),
            administration: Arc::default(),
            fallback_count: Arc::default(),
            fallback_permits: Arc::new(Semaphore::new(FALLBACKS_MAX)),
            config,
        })
    }

    /// Returns this client with another deadline for each operation, 1 ms to one day.
    pub fn with_deadline(&self, deadline: Duration) -> Client {
        Client { deadline: deadline.clamp(Duration::from_millis(1), DURATION_MAX), ..self.clone() }
    }

    /// Returns what the node said of itself when the main connection was last opened.
    pub fn hello(&self) -> HelloInfo {
        (*self.network.hello()).clone()
    }

    /// Looks a path up: `/` between parts, relative to the served root, at most 4096 bytes.
    ///
    /// # Errors
    /// [`Error::Status`] with `NotFound` or `PermissionDenied`.
    pub async fn stat(&self, path: &str) -> Result<File, Error> {
        self.stat_until(path.into(), self.deadline()).await
    }

    /// Returns all entries of a directory, sorted by the bytes of their names; the empty path is the
    /// root.
    ///
    /// # Errors [`Error::Status`] with `NotFound` or, for a file, `WrongKind`;
    /// [`Error::InvalidArgument`] for a directory of more than ten million entries, which
    /// [`Client::list_page`] returns in parts.
    pub async fn list(&self, path: &str) -> Result<Vec<Entry>, Error> {
        let deadline = self.deadline();
        let mut entries = Vec::new();
        let mut token = String::new();
        loop {
            let ListedPage { entries: page, next, .. } =
                self.list_until(path, &token, 0, deadline).await?;
            entries.extend(page);
            if entries.len() > ENTRIES_MAX {
                let text =
                    format!("'{path}' has more than {ENTRIES_MAX} entries; list it in pages");
                return Err(Error::InvalidArgument(text));
            }
            match next {
                None => return Ok(entries),
                Some(next) if next == token => {
                    return Err(Error::protocol("a list does not advance"));
                }
                Some(next) => token = next,
            }
        }
    }

    /// Returns one page of a directory, of at most `limit` entries or, if that is 0, as many as fit a
    /// reply. `token` is None for the first page, then the token that came with the page before. The
    /// last page comes with None.
    ///
    /// # Errors
    /// As [`Client::list`].
    pub async fn list_page(
        &self,
        path: &str,
        token: Option<&str>,
        limit: u32,
    ) -> Result<(Vec<Entry>, Option<String>), Error> {
        let page = self.listed_page(path, token, limit).await?;
        Ok((page.entries, page.next))
    }

    /// As [`Client::list_page`], and tells what the node leaves out of the page.
    ///
    /// # Errors
    /// As [`Client::list`].
    pub async fn listed_page(
        &self,
        path: &str,
        token: Option<&str>,
        limit: u32,
    ) -> Result<ListedPage, Error> {
        self.list_until(path, token.unwrap_or_default(), limit, self.deadline()).await
    }

    /// Returns the file of an entry that `list` returned for a directory, without asking the node again.
    pub fn file(&self, directory: &str, entry: &Entry) -> File {
        let directory = directory.trim_end_matches('/');
        let path = if directory.is_empty() {
            entry.name.as_str().into()
        } else {
            format!("{directory}/{}", entry.name).into()
        };
        File::new(path, entry, self.network.hello().block_size)
    }

    /// Returns the time from a request to the answer of the node that was connected to, or of another
    /// one of its cluster if it is gone, waits and retries included.
    ///
    /// # Errors
    /// Those of every operation, see [`Client`].
    pub async fn ping(&self) -> Result<Duration, Error> {
        let start = Instant::now();
        self.call_home(&|| Body::Ping, &|_| Ok(()), self.deadline()).await?;
        Ok(start.elapsed())
    }

    /// Returns when an operation that begins now has to end.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.deadline
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }

    pub(crate) fn topology(&self) -> Arc<Topology> {
        self.network.topology()
    }

    pub(crate) fn leases(&self) -> &Leases {
        &self.leases
    }

    pub(crate) fn places(&self) -> &Administration {
        &self.administration
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    pub(crate) fn fallbacks(&self) -> &AtomicU64 {
        &self.fallback_count
    }

    pub(crate) fn fallback_permits(&self) -> Arc<Semaphore> {
        self.fallback_permits.clone()
    }

    /// Returns the error for a task of ours that ended without a result.
    pub(crate) fn stopped(&self) -> Error {
        self.topology().member(0).main().gone()
    }

    pub(crate) fn backoff(&self) -> Backoff {
        self.config.busy_backoff()
    }

    pub(crate) fn retry(&self, deadline: Instant) -> Retry {
        Retry::new(self.backoff(), deadline)
    }

    /// As [`Client::stat`], under a deadline that has begun before.
    pub(crate) async fn stat_until(
        &self,
        path: Arc<str>,
        deadline: Instant,
    ) -> Result<File, Error> {
        check_path(&path)?;
        if self.network.doubts().take(&path) {
            return self.look_up_now(&path, false, deadline).await;
        }
        let request = || Body::Stat(StatRequest { path: path.as_ref().to_owned() });
        let order = |topology: &Topology| topology.order_of_path(&path);
        let decode = |reply: &Reply| stat_reply(&path, reply);
        let rescue = || self.stat_source(path.clone());
        self.call(&request, &order, &decode, &rescue, deadline).await
    }

    async fn list_until(
        &self,
        path: &str,
        token: &str,
        limit: u32,
        deadline: Instant,
    ) -> Result<ListedPage, Error> {
        check_path(path)?;
        if token.len() > TOKEN_LENGTH_MAX {
            return Err(Error::InvalidArgument(format!(
                "a token of {} bytes did not come from a list page",
                token.len()
            )));
        }
        let request =
            || Body::List(ListRequest { path: path.to_owned(), token: token.to_owned(), limit });
        let order = |topology: &Topology| topology.order_of_path(path);
        let decode = |reply: &Reply| {
            let (page, left_out_count, example) = match reply.header.leaves_names_out() {
                false => (frame::body::<ArchivedListReply>(&reply.body)?, 0, ""),
                true => {
                    let body = frame::body::<ArchivedPartialListReply>(&reply.body)?;
                    (&body.page, body.left_out_count.to_native(), body.example.as_str())
                }
            };
            let next = page.next.as_str();
            Ok(ListedPage {
                entries: page.entries.iter().map(Entry::from).collect(),
                next: (!next.is_empty()).then(|| next.to_owned()),
                left_out_count,
                left_out_example: example.to_owned(),
            })
        };
        self.call(&request, &order, &decode, &|| Box::pin(async { None }), deadline).await
    }

    /// Asks the node that was connected to, or another one if it does not answer.
    pub(crate) async fn call_home<T: Send>(
        &self,
        request: &(dyn Fn() -> Body + Send + Sync),
        decode: &(dyn Fn(&Reply) -> Result<T, Error> + Send + Sync),
        deadline: Instant,
    ) -> Result<T, Error> {
        let order = |topology: &Topology| topology.order_from(&self.network.home());
        self.call(request, &order, decode, &|| Box::pin(async { None }), deadline).await
    }

    /// Asks a node that is alone. None if the client knows a cluster by now, whose members may be asked
    /// instead of a silent node.
    pub(crate) async fn ask_alone(
        &self,
        lane: &Lane,
        body: Body,
        landing: Landing,
        deadline: Instant,
    ) -> Result<Option<Answer>, Error> {
        let patience = self.config.attempt_timeout;
        lane.exchange_while(body, landing, deadline, patience, || self.network.is_alone()).await
    }

    /// Asks until there is an answer or the deadline is near: a node that is alone, or the members of a
    /// cluster in this order.
    pub(crate) async fn call<'c, T: Send>(
        &'c self,
        body: &'c (dyn Fn() -> Body + Send + Sync),
        order: &'c (dyn Fn(&Topology) -> Order + Send + Sync),
        decode: &'c (dyn Fn(&Reply) -> Result<T, Error> + Send + Sync),
        rescue: &'c (dyn Fn() -> Rescue<'c, T> + Send + Sync),
        deadline: Instant,
    ) -> Result<T, Error> {
        let mut retry = self.retry(deadline);
        loop {
            let topology = self.topology();
            let Some(main) = &topology.main else {
                let call = Call { config: &self.config, body, order, decode, rescue, deadline };
                return Tries::new(
                    &self.network,
                    &self.config,
                    deadline,
                    self.config.attempt_timeout,
                )
                .run(&call)
                .await;
            };
            let asked = self.ask_alone(&main.lane, body(), Landing::Any, deadline).await;
            // By now the client knows which other members may answer.
            let Some(answer) = asked.map_err(|error| retry.end(error))? else { continue };
            let setback = match reply::judge(answer.outcome) {
                Ok(reply) => return decode(&reply),
                Err(setback) => setback,
            };
            let (wait_min, cause) = match setback {
                Setback::Again { wait_min, cause } => (wait_min, cause),
                other => return Err(other.into_error()),
            };
            retry.pause(wait_min, cause).await?;
        }
    }
}

/// Reads the reply to `Stat`.
pub(crate) fn stat_reply(path: &Arc<str>, reply: &Reply) -> Result<File, Error> {
    let found = frame::body::<ArchivedStatReply>(&reply.body)?;
    let block_size = file::check_block_size(found.block_size.to_native())?;
    Ok(File::new(path.clone(), &Entry::from(&found.entry), block_size))
}

pub(crate) fn check_path(path: &str) -> Result<(), Error> {
    if path.len() <= PATH_LENGTH_MAX {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "a path of {} bytes is longer than {PATH_LENGTH_MAX}",
        path.len()
    )))
}
