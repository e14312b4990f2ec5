//! What a user may tune: time limits, bounds and back-off of a client.
//!
//! Owns the defaults and their check. Every value has a maximum, so that no setting makes the client
//! wait or allocate without bound. What a node allows is learnt from its `Hello` reply and lowers
//! these values where it is less.

use std::path::PathBuf;
use std::time::Duration;

use millrace_proto::proof::Secret;

use crate::error::Error;
use crate::retry::Backoff;

/// Longest deadline, connect timeout or back-off that is accepted: one day.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Most connections to one shard.
pub(crate) const CONNECTIONS_PER_SHARD_MAX: usize = 64;
/// Most directories that sources may be read below.
pub(crate) const FALLBACK_ROOTS_MAX: usize = 64;
/// Most requests in flight on one connection that may be asked for.
pub(crate) const REQUESTS_IN_FLIGHT_MAX: usize = 1 << 16;

/// Settings of a [`Client`](crate::Client). Name what is different, and take the rest from
/// `..ClientConfig::new()`, because fields will be added.
///
/// ```
/// use std::time::Duration;
/// use millrace_client::ClientConfig;
///
/// let config = ClientConfig {
///     deadline: Duration::from_secs(5),
///     zone: Some("rack-7".to_owned()),
///     ..ClientConfig::new()
/// };
/// assert!(config.verify);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// Time one whole operation may take, retries and reconnects included; 1 ms to one day. Default
    /// 30 s.
    pub deadline: Duration,
    /// Time to connect to one address and to exchange `Hello`, or to learn of nodes from coordination; 1
    /// ms to one day. Default 3 s.
    pub connect_timeout: Duration,
    /// Connections to each shard, 1 to 64. Default 1: one core of a node serves a shard, and one
    /// connection keeps it busy.
    pub connections_per_shard: usize,
    /// How long a member of a cluster may leave a request unanswered before the next one is asked as
    /// well, 1 ms to one day. Long reads get more, and a member that has never answered gets a quarter.
    /// Default 500 ms.
    pub attempt_timeout: Duration,
    /// Zone in which this client runs: of several members that have a block, those of the zone are asked
    /// first. None, the default, to ask all of them alike.
    pub zone: Option<String>,
    /// Directories of this machine, by their absolute paths, below which files may be read from their
    /// source when no member of the cluster answers; at most 64. Nodes say where a source lies, so
    /// anything outside of these directories is never opened. Default none.
    pub fallback_roots: Vec<PathBuf>,
    /// Administration socket of a node, `unix:PATH`, for what changes something: `free`, `drain`,
    /// `mount`, `pin` and what undoes them. With [`ClientConfig::admin_token`] it may be a node's `host:port`. Several
    /// behind commas are tried in turn. None, the default, for clients that only read.
    pub admin: Option<String>,
    /// The token of the nodes by which they recognise administrators over TCP.
    pub admin_token: Option<Secret>,
    /// True if received bytes are compared with the node's checksums. Default true.
    pub verify: bool,
    /// First wait after a reply that asks to try again, at least 1 ms. Default 2 ms.
    pub busy_backoff_min: Duration,
    /// Longest wait between two tries of a request. Default 250 ms.
    pub busy_backoff_max: Duration,
    /// First wait before connecting again to an address that failed, at least 1 ms. Default 50 ms.
    pub reconnect_backoff_min: Duration,
    /// Longest wait before connecting again. Default 2 s.
    pub reconnect_backoff_max: Duration,
    /// Most requests in flight on one connection, 1 to 65 536; a range of a `ReadMany` counts as
    /// one. The node's own limit applies where it is lower. Default 1024, the ranges of one batch.
    pub requests_in_flight_max: usize,
    /// True if the Unix sockets and the memory of a node on this machine may be used. Default true.
    pub local: bool,
    /// Most bytes of a node's memory to keep leased, so that they are read in place; 0 for none.
    /// Default 1 GiB; the node has a limit of its own.
    pub leased_bytes_max: u64,
    /// Most bytes that one call may ask for, because they are allocated before they arrive. Default 4
    /// GiB.
    pub read_length_max: u64,
}

impl ClientConfig {
    /// Returns the defaults that each field names.
    pub fn new() -> ClientConfig {
        ClientConfig {
            deadline: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(3),
            connections_per_shard: 1,
            attempt_timeout: Duration::from_millis(500),
            zone: None,
            fallback_roots: Vec::new(),
            admin: None,
            admin_token: None,
            verify: true,
            busy_backoff_min: Duration::from_millis(2),
            busy_backoff_max: Duration::from_millis(250),
            reconnect_backoff_min: Duration::from_millis(50),
            reconnect_backoff_max: Duration::from_secs(2),
            requests_in_flight_max: 1024,
            local: true,
            leased_bytes_max: 1 << 30,
            read_length_max: 4 << 30,
        }
    }

    /// Returns the waits between questions to a busy node.
    pub(crate) fn busy_backoff(&self) -> Backoff {
        Backoff::new(self.busy_backoff_min, self.busy_backoff_max)
    }

    /// Returns how long one of several ways into a cluster may keep silent before the next one is tried
    /// as well: a quarter of what a member has for a request. Derived: then the second one has answered
    /// before the first one is given up, and of 64 addresses all are asked within one and a half such
    /// times.
    pub(crate) fn race_step(&self) -> Duration {
        self.attempt_timeout / 4
    }

    /// Checks the ranges that the fields name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], with the field to change.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let durations = [
            ("deadline", self.deadline),
            ("connect_timeout", self.connect_timeout),
            ("attempt_timeout", self.attempt_timeout),
            ("busy_backoff_min", self.busy_backoff_min),
            ("busy_backoff_max", self.busy_backoff_max),
            ("reconnect_backoff_min", self.reconnect_backoff_min),
            ("reconnect_backoff_max", self.reconnect_backoff_max),
        ];
        for (name, value) in durations {
            if value < Duration::from_millis(1) || value > DURATION_MAX {
                return Err(Error::InvalidArgument(format!(
                    "{name} is {value:?}; choose 1 ms to one day"
                )));
            }
        }
        let pairs = [
            ("busy_backoff", self.busy_backoff_min, self.busy_backoff_max),
            ("reconnect_backoff", self.reconnect_backoff_min, self.reconnect_backoff_max),
        ];
        for (name, min, max) in pairs {
            if min > max {
                return Err(Error::InvalidArgument(format!(
                    "{name}_min is {min:?} and {name}_max is {max:?}; choose min at most max"
                )));
            }
        }
        if self.fallback_roots.len() > FALLBACK_ROOTS_MAX {
            return Err(Error::InvalidArgument(format!(
                "{} fallback_roots are more than {FALLBACK_ROOTS_MAX}; name a directory above them",
                self.fallback_roots.len()
            )));
        }
        if let Some(root) = self.fallback_roots.iter().find(|root| !root.is_absolute()) {
            return Err(Error::InvalidArgument(format!(
                "'{}' among fallback_roots is not a whole path; begin it with /",
                root.display()
            )));
        }
        if !(1..=CONNECTIONS_PER_SHARD_MAX).contains(&self.connections_per_shard) {
            return Err(Error::InvalidArgument(format!(
                "connections_per_shard is {}; choose 1 to {CONNECTIONS_PER_SHARD_MAX}",
                self.connections_per_shard
            )));
        }
        if !(1..=REQUESTS_IN_FLIGHT_MAX).contains(&self.requests_in_flight_max) {
            return Err(Error::InvalidArgument(format!(
                "requests_in_flight_max is {}; choose 1 to {REQUESTS_IN_FLIGHT_MAX}",
                self.requests_in_flight_max
            )));
        }
        Ok(())
    }
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        ClientConfig::new()
    }
}
