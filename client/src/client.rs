//! The client: paths in, files and reports out.
//!
//! Owns every operation but the reads, which are in `read.rs` and `read_many.rs`. All of them may be
//! sent twice without harm, so a lost connection or a busy node costs time and nothing else, up to the
//! deadline of the operation.

use std::sync::Arc;
use std::time::Duration;

use millrace_proto::message::{
    ArchivedFreeReply, ArchivedListReply, ArchivedLoadReply, ArchivedStatReply,
    ArchivedStatusReply, Entry, FreeRequest, ListRequest, LoadRequest, PATH_LENGTH_MAX,
    StatRequest,
};
use millrace_proto::{feature, frame};
use tokio::time::Instant;

use crate::config::{ClientConfig, DURATION_MAX};
use crate::connection::{Body, Landing, Reply};
use crate::error::Error;
use crate::file::{self, File, FreeReport, HelloInfo, LoadReport, NodeStatus};
use crate::lease::Leases;
use crate::reply::{self, Setback};
use crate::retry::{Backoff, Retry};
use crate::topology::{self, Network, Topology};

/// Longest token of a `List` page in bytes. Derived: what a page leaves of a body.
const TOKEN_LENGTH_MAX: usize = 8 << 10;

/// A client of one node. Cloning is cheap, and clones share their connections.
///
/// It lives on the tokio runtime it was connected on. Every method is one operation under one
/// deadline ([`ClientConfig::deadline`], or [`Client::with_deadline`]) and may be dropped at any time.
///
/// # Errors
/// Besides what each method tells, every one may return [`Error::DeadlineExceeded`],
/// [`Error::Connect`], [`Error::NoHello`], [`Error::ConnectionLost`], [`Error::Protocol`], and
/// [`Error::Status`] with what the node decided.
#[derive(Clone, Debug)]
pub struct Client {
    config: Arc<ClientConfig>,
    network: Arc<Network>,
    leases: Arc<Leases>,
    deadline: Duration,
}

impl Client {
    /// Connects to a node at `address`, `host:port` or `unix:PATH`, and exchanges `Hello`.
    ///
    /// # Errors
    /// [`Error::Connect`] or [`Error::NoHello`] when the first try to connect fails: only a client
    /// that was connected once waits for its node to come back. [`Error::Protocol`] when the peer is
    /// no Millrace node, or sends no checksums though [`ClientConfig::verify`] is set.
    /// [`Error::InvalidArgument`] for a bad address or setting.
    pub async fn connect(
        address: impl Into<String>,
        config: ClientConfig,
    ) -> Result<Client, Error> {
        config.check()?;
        let config = Arc::new(config);
        let address: Arc<str> = address.into().into();
        let main = Network::start_main(&address, &config)?;
        let deadline = Instant::now() + config.deadline;
        let mut link = main.link();
        // The first request is what makes a lane connect.
        let ping = main.exchange(Body::Ping, Landing::Any, deadline);
        let refused = link.wait_for(|link| link.failure.as_ref().is_some_and(is_final));
        let failure = tokio::select! {
            answer = ping => answer.err(),
            link = refused => match link {
                Ok(link) => link.failure.clone(),
                Err(_) => None,
            },
        };
        if let Some(error) = failure {
            return Err(error);
        }
        let main = topology::nearer(&address, &config, &main, deadline).await.unwrap_or(main);
        let hello = main.link().borrow().hello.clone();
        let hello = hello.ok_or(Error::DeadlineExceeded)?;
        if config.verify && !hello.offers(feature::CHECKSUMS) {
            return Err(Error::protocol(
                "the node sends no checksums; set verify to false to read without them",
            ));
        }
        Ok(Client {
            deadline: config.deadline,
            network: Arc::new(Network::new(address, config.clone(), main, hello)),
            leases: Arc::new(Leases::new(config.leased_bytes_max)),
            config,
        })
    }

    /// This client with another deadline for each operation, 1 ms to one day.
    pub fn with_deadline(&self, deadline: Duration) -> Client {
        Client { deadline: deadline.clamp(Duration::from_millis(1), DURATION_MAX), ..self.clone() }
    }

    /// What the node told about itself when the main connection was last opened.
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

    /// All entries of a directory, sorted by the bytes of their names; the empty path is the root.
    ///
    /// # Errors
    /// [`Error::Status`] with `NotFound` or, for a file, `WrongKind`.
    pub async fn list(&self, path: &str) -> Result<Vec<Entry>, Error> {
        let deadline = self.deadline();
        let mut entries = Vec::new();
        let mut token = String::new();
        loop {
            let (page, next) = self.list_until(path, &token, 0, deadline).await?;
            entries.extend(page);
            match next {
                None => return Ok(entries),
                Some(next) if next == token => {
                    return Err(Error::protocol("a list does not advance"));
                }
                Some(next) => token = next,
            }
        }
    }

    /// One page of a directory, of at most `limit` entries or, if that is 0, as many as fit a reply.
    /// `token` is None for the first page, then what the page before told. None is told after the
    /// last page.
    ///
    /// # Errors
    /// As [`Client::list`].
    pub async fn list_page(
        &self,
        path: &str,
        token: Option<&str>,
        limit: u32,
    ) -> Result<(Vec<Entry>, Option<String>), Error> {
        self.list_until(path, token.unwrap_or_default(), limit, self.deadline()).await
    }

    /// The file of an entry that `list` told of a directory, without asking the node again.
    pub fn file(&self, directory: &str, entry: &Entry) -> File {
        let directory = directory.trim_end_matches('/');
        let path = if directory.is_empty() {
            entry.name.as_str().into()
        } else {
            format!("{directory}/{}", entry.name).into()
        };
        File::new(path, entry, self.network.hello().block_size)
    }

    /// Brings every block of a file into the node's cache. A large file takes its time: see
    /// [`Client::with_deadline`].
    ///
    /// # Errors
    /// [`Error::Status`] with `NotFound`, `WrongKind` or `SourceError`.
    pub async fn load(&self, path: &str) -> Result<LoadReport, Error> {
        check_path(path)?;
        let request = || Body::Load(LoadRequest { path: path.to_owned() });
        let reply = self.call(request, self.deadline()).await?;
        let report = frame::body::<ArchivedLoadReply>(&reply.body)?;
        let block_size = self.network.hello().block_size;
        Ok(LoadReport {
            file: File::new(path.into(), &Entry::from(&report.entry), block_size),
            block_count: report.block_count.to_native(),
            filled_count: report.filled_count.to_native(),
        })
    }

    /// Drops every block of a file from the node's cache; the source is never touched. A retry after a
    /// lost connection counts only what was left to drop.
    ///
    /// # Errors
    /// [`Error::Status`] with `NotFound` or `WrongKind`.
    pub async fn free(&self, path: &str) -> Result<FreeReport, Error> {
        check_path(path)?;
        let request = || Body::Free(FreeRequest { path: path.to_owned() });
        let reply = self.call(request, self.deadline()).await?;
        Ok(frame::body::<ArchivedFreeReply>(&reply.body)?.into())
    }

    /// The node's counters.
    ///
    /// # Errors
    /// Those of every operation, see [`Client`].
    pub async fn status(&self) -> Result<NodeStatus, Error> {
        let reply = self.call(|| Body::Status, self.deadline()).await?;
        Ok(frame::body::<ArchivedStatusReply>(&reply.body)?.into())
    }

    /// Time from asking to the answer on the main connection, waits and retries included.
    ///
    /// # Errors
    /// Those of every operation, see [`Client`].
    pub async fn ping(&self) -> Result<Duration, Error> {
        let start = Instant::now();
        self.call(|| Body::Ping, self.deadline()).await?;
        Ok(start.elapsed())
    }

    /// When an operation that begins now has to end.
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

    /// The error for a task of ours that ended without a result.
    pub(crate) fn stopped(&self) -> Error {
        self.network.main().gone()
    }

    pub(crate) fn retry(&self, deadline: Instant) -> Retry {
        let config = &self.config;
        let backoff = Backoff::new(config.busy_backoff_min, config.busy_backoff_max);
        Retry::new(backoff, deadline)
    }

    /// [`Client::stat`] under a deadline that has begun before.
    pub(crate) async fn stat_until(
        &self,
        path: Arc<str>,
        deadline: Instant,
    ) -> Result<File, Error> {
        check_path(&path)?;
        let request = || Body::Stat(StatRequest { path: path.as_ref().to_owned() });
        let reply = self.call(request, deadline).await?;
        let found = frame::body::<ArchivedStatReply>(&reply.body)?;
        let block_size = file::check_block_size(found.block_size.to_native())?;
        Ok(File::new(path, &Entry::from(&found.entry), block_size))
    }

    async fn list_until(
        &self,
        path: &str,
        token: &str,
        limit: u32,
        deadline: Instant,
    ) -> Result<(Vec<Entry>, Option<String>), Error> {
        check_path(path)?;
        if token.len() > TOKEN_LENGTH_MAX {
            return Err(Error::InvalidArgument(format!(
                "a token of {} bytes did not come from a list page",
                token.len()
            )));
        }
        let request =
            || Body::List(ListRequest { path: path.to_owned(), token: token.to_owned(), limit });
        let reply = self.call(request, deadline).await?;
        let page = frame::body::<ArchivedListReply>(&reply.body)?;
        let entries = page.entries.iter().map(Entry::from).collect();
        let next = page.next.as_str();
        Ok((entries, (!next.is_empty()).then(|| next.to_owned())))
    }

    /// Asks on the main lane until there is an answer or the deadline is near.
    async fn call(&self, request: impl Fn() -> Body, deadline: Instant) -> Result<Reply, Error> {
        let mut retry = self.retry(deadline);
        loop {
            let lane = self.network.main();
            let answer = lane.exchange(request(), Landing::Any, deadline).await;
            let answer = answer.map_err(|error| retry.end(error))?;
            let setback = match reply::judge(answer.outcome) {
                Ok(reply) => return Ok(reply),
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

/// Whether a failure to connect will not go away while a caller waits.
fn is_final(error: &Error) -> bool {
    use millrace_proto::status::Next;
    !error.status().is_some_and(|status| matches!(status.next(), Next::Retry | Next::Reconnect))
}

fn check_path(path: &str) -> Result<(), Error> {
    if path.len() <= PATH_LENGTH_MAX {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "a path of {} bytes is longer than {PATH_LENGTH_MAX}",
        path.len()
    )))
}
