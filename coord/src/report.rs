//! What operators and their tools see of a replica: four-letter words, admin pages, Prometheus.
//!
//! Pure: a [`Snapshot`] of values in, text out. The shapes are ZooKeeper's, taken from 3.8, because
//! its tools read them; a figure that has no meaning here is left out rather than made up.
//! `words.rs` has the four-letter words, `pages.rs` what HTTP serves; `figures.rs` is the one list
//! of figures behind `mntr`, the page `monitor` and Prometheus.
//!
//! Long lists end with a note after [`LIST_MAX`] lines. Which clients may ask is decided before.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::config::{Config, Member, Word};
use crate::metrics::{Latency, Metrics};
use crate::watch::WatchCounts;

mod admin;
mod figures;
mod page;
mod pages;
mod process;
mod prometheus;
mod text;
mod words;

pub use page::Page;
pub use pages::page;
pub use process::Process;
pub use words::{answer, permit};

/// What ZooKeeper's clients and tools are told: kazoo and exporters read the three numbers in
/// front. 3.9.3 is the newest version whose protocol is spoken.
pub const VERSION: &str = concat!("3.9.3-millrace-", env!("CARGO_PKG_VERSION"));
/// What follows the version; tools cut at the comma.
const BUILT: &str = "built on 2026-11-22 00:00 UTC";

/// Most lines of one list in a text, and entries of one list of a page. Guessed: some megabytes.
pub const LIST_MAX: usize = 100_000;

/// What a word gets while there is no leader and nothing is read either.
const NOT_SERVING: &str = "This ZooKeeper instance is not currently serving requests";

/// How a replica serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By itself.
    Standalone,
    Leader,
    Follower,
    Observer,
    /// Without a leader, for clients that asked for such.
    ReadOnly,
    /// Not at all.
    NotServing,
}

impl Mode {
    /// Returns ZooKeeper's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Standalone => "standalone",
            Mode::Leader => "leader",
            Mode::Follower => "follower",
            Mode::Observer => "observer",
            Mode::ReadOnly => "read-only",
            Mode::NotServing => "not serving",
        }
    }

    fn is_serving(self) -> bool {
        self != Mode::NotServing
    }
}

/// One connection of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionReport {
    pub address: SocketAddr,
    /// 0 before the handshake.
    pub session: i64,
    /// The time-out that its session was granted.
    pub timeout_ms: i32,
    /// Requests that wait.
    pub queued: u64,
    /// Packets received.
    pub received: u64,
    /// Packets sent.
    pub sent: u64,
    /// Code of its last operation; 0 for none yet.
    pub last_operation: i32,
    /// The client's number of its last request; negative for none.
    pub last_xid: i32,
    /// The zxid of its last reply; -1 for none.
    pub last_zxid: i64,
    /// When it was accepted, in milliseconds since 1970.
    pub established_ms: i64,
    /// When it was answered last, in milliseconds of the clock of this process.
    pub last_response_ms: u64,
    pub last_latency_ms: u64,
    pub min_latency_ms: u64,
    pub average_latency_ms: u64,
    pub max_latency_ms: u64,
}

/// One session of the ensemble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionReport {
    pub id: i64,
    pub timeout_ms: i32,
    /// When it expires if nothing is heard, in milliseconds since 1970; only the leader knows.
    pub expires_ms: Option<i64>,
    /// Paths of its ephemeral nodes.
    pub ephemerals: Vec<String>,
}

/// One watched path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchReport {
    pub path: String,
    /// The sessions that watch it.
    pub sessions: Vec<i64>,
}

/// Another replica, as the leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowerReport {
    pub id: u64,
    pub is_voter: bool,
    /// The last entry that it is known to hold.
    pub match_index: u64,
    /// True if it takes entries as they come.
    pub is_synced: bool,
}

/// How Raft stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RaftReport {
    pub term: u64,
    /// 0 for none.
    pub leader: u64,
    pub last_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    /// For how long this replica leads; 0 where it does not.
    pub leading_ms: u64,
    /// The others; empty where this replica does not lead.
    pub followers: Vec<FollowerReport>,
}

/// Values of one moment. [`Snapshot::new`] has nothing counted: fill in what is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub config: Config,
    pub mode: Mode,
    /// Why no client is served: no data yet, or an ensemble that forms.
    pub waits_for: Option<String>,
    /// Milliseconds since 1970.
    pub now_ms: i64,
    /// Since the process started.
    pub uptime_ms: u64,
    /// The last zxid applied.
    pub zxid: i64,
    pub node_count: u64,
    pub ephemeral_count: u64,
    /// Bytes of paths and data.
    pub data_bytes: u64,
    pub session_count: u64,
    /// Sessions that exist here alone, without a leader.
    pub local_session_count: u64,
    pub connection_count: u64,
    /// Requests of clients in flight.
    pub outstanding: u64,
    /// Syncs of clients that wait for the state to reach what they have to see.
    pub pending_syncs: u64,
    pub watch_counts: WatchCounts,
    /// The members now, and the version of that configuration.
    pub members: Vec<Member>,
    pub members_version: i64,
    pub raft: RaftReport,
    /// Digest of the state at `zxid`. Filled where [`Wanted::digest`].
    pub digest: Option<u64>,
    /// Bytes on disk.
    pub state_disk_bytes: u64,
    pub log_disk_bytes: u64,
    /// Zxid and time, in milliseconds since 1970, of the last durable checkpoint; `None` before a
    /// replica that joins has a state.
    pub checkpoint: Option<(i64, i64)>,
    pub metrics: Metrics,
    pub process: Process,
    /// Filled where [`Wanted::connections`].
    pub connections: Vec<ConnectionReport>,
    /// Filled where [`Wanted::sessions`].
    pub sessions: Vec<SessionReport>,
    /// Filled where [`Wanted::watches`].
    pub watches: Vec<WatchReport>,
}

impl Snapshot {
    /// Describes a replica that does not serve and has counted nothing.
    pub fn new(config: Config) -> Snapshot {
        Snapshot {
            members: config.members.clone(),
            config,
            mode: Mode::NotServing,
            waits_for: None,
            now_ms: 0,
            uptime_ms: 0,
            zxid: 0,
            node_count: 0,
            ephemeral_count: 0,
            data_bytes: 0,
            session_count: 0,
            local_session_count: 0,
            connection_count: 0,
            outstanding: 0,
            pending_syncs: 0,
            watch_counts: WatchCounts::default(),
            members_version: 0,
            raft: RaftReport::default(),
            digest: None,
            state_disk_bytes: 0,
            log_disk_bytes: 0,
            checkpoint: None,
            metrics: Metrics::default(),
            process: Process::default(),
            connections: Vec::new(),
            sessions: Vec::new(),
            watches: Vec::new(),
        }
    }

    fn latency(&self) -> Latency {
        self.metrics.request_latency()
    }

    fn own_member(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.id == self.config.replica_id)
    }

    /// Turns the watches round: the paths of each session.
    fn watches_by_session(&self) -> BTreeMap<i64, Vec<&str>> {
        let mut by_session = BTreeMap::<i64, Vec<&str>>::new();
        for watch in &self.watches {
            for session in &watch.sessions {
                by_session.entry(*session).or_default().push(&watch.path);
            }
        }
        by_session
    }
}

/// Cuts the lists at [`LIST_MAX`] entries of all together.
fn limited<'a, K, T: 'a>(
    lists: impl Iterator<Item = (K, &'a [T])>,
) -> impl Iterator<Item = (K, &'a [T])> {
    let mut left = LIST_MAX;
    lists.map_while(move |(key, list)| {
        if left == 0 {
            return None;
        }
        let part = &list[..list.len().min(left)];
        left -= part.len();
        Some((key, part))
    })
}

/// What an answer reads of the parts of a [`Snapshot`] that are dear: the others stay empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    pub connections: bool,
    pub sessions: bool,
    pub watches: bool,
    /// True if the digest is wanted, which takes time in proportion to the number of znodes.
    pub digest: bool,
}

impl Wanted {
    /// Returns what the answer to a word reads.
    pub fn for_word(word: Word) -> Wanted {
        Wanted {
            connections: matches!(word, Word::Stat | Word::Cons | Word::Dump),
            sessions: word == Word::Dump,
            watches: matches!(word, Word::Wchc | Word::Wchp),
            digest: word == Word::Hash,
        }
    }

    /// Returns what the page at this path reads.
    pub fn for_page(path: &str, config: &Config) -> Wanted {
        let Some(command) = pages::command(path, config) else { return Wanted::default() };
        Wanted {
            connections: matches!(command, "connections" | "stats"),
            sessions: command == "dump",
            watches: matches!(command, "watches" | "watches_by_path"),
            digest: command == "hash",
        }
    }
}

/// What an answer asks of the replica beside being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Effect {
    #[default]
    None,
    /// Set the figures of the server back: [`Metrics::reset`].
    ResetServer,
    /// Set the figures of every connection back.
    ResetConnections,
}

#[cfg(test)]
mod tests;
