//! What a replica is told and what it asks for: two closed lists, the whole seam to the world.
//!
//! The runtime turns readiness and completions into [`Event`]s and [`Action`]s into system calls;
//! the simulation does the same with a seeded world. Nothing else reaches a replica.

use std::net::SocketAddr;

use raft::eraftpb::ConfState;

use crate::config::Member;
use crate::peers::Listed;
use crate::state::State;
use crate::store::{Append, Applied};

/// A client connection: a slot that is used again, and which use of it this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId {
    /// Below the limit of connections.
    pub slot: u32,
    /// Raised each time the slot is given out.
    pub generation: u32,
}

/// The time, read once for each turn of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds that only grow. Every timer uses these.
    pub ms: u64,
    /// Milliseconds since 1970, which may jump. Goes into entries as their time.
    pub wall_ms: i64,
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A client connected.
    ClientOpened { client: ClientId, address: SocketAddr },
    /// One whole message of a client, without its length. Only while [`super::Replica::accepts`].
    ClientMessage { client: ClientId, message: &'a [u8] },
    /// The client's connection is gone. Not sent after `Action::CloseClient`.
    ClientClosed { client: ClientId },

    /// Our stream to `peer` is open: what is sent from now on arrives in order or `PeerLost` comes.
    PeerConnected { peer: u64 },
    /// After `PeerConnected`: `peer` was not where the ensemble has it, but where
    /// [`Company::elsewhere`] says.
    PeerMoved { peer: u64 },
    /// Our stream to `peer` broke: what was sent may be lost.
    PeerLost { peer: u64 },
    /// A message that `peer` sent over its stream to us.
    PeerMessage { peer: u64, message: &'a [u8] },

    /// The appends up to `number` are durable.
    LogDurable { number: u64 },
    /// The state that `applied` tells is durable: the log before it may be forgotten.
    CheckpointDurable { applied: Applied },
    /// The stores have no room for more state, or have it again.
    Room { is_full: bool },
    /// A store failed for good: nothing can be acknowledged any more.
    StorageFailed { error: String },

    /// `Action::OpenSnapshot` is done: the durable state that the chunks will hold.
    SnapshotOpened { peer: u64, applied: Applied },
    /// The next chunk for `peer`; `None` after the last.
    SnapshotChunk { peer: u64, chunk: Option<Vec<u8>> },
    /// A chunk that came from the leader is stored: it may send the next.
    SnapshotStored { peer: u64 },
    /// The received snapshot replaced our state, durably; this is what it holds.
    SnapshotInstalled { peer: u64, applied: Applied, state: Box<State> },
    /// The received snapshot was damaged or could not be stored; the old state is still there.
    SnapshotRefused { peer: u64, error: String },

    /// An operator asks; answered by `Action::AdminReply` with the same ticket.
    Admin { ticket: u64, request: AdminRequest },
}

/// What is to be done. The order of a list is the order of doing.
#[derive(Debug)]
pub enum Action {
    /// [`super::Replica::output`] of this client has bytes to send.
    Send { client: ClientId },
    /// Send what is in its output, then close.
    CloseClient { client: ClientId },

    /// Send to a peer, in order; if that cannot be, break the stream and say `PeerLost`.
    SendPeer { peer: u64, message: Vec<u8> },
    /// Keep streams to these, and to no others.
    Peers { company: Company },
    /// This replica begins a cluster. With `None` its first state goes to the disk: belong to no
    /// other from here on. With an id it is there: remember the id durably, before the next action.
    /// All streams end in either case, to be greeted anew.
    Found { cluster_id: Option<u64> },
    /// Remember durably that this much of the configured list of members is the ensemble's.
    Listed { listed: Listed },

    /// Make durable, then say `LogDurable`. All appends that wait become one commit.
    Append { append: Append },
    /// Forget entries up to `index`, whose term is `term`.
    CompactLog { index: u64, term: u64 },
    /// Merge these records (`None` deletes) into the state, all of them or none. Becomes durable
    /// when the state store thinks it time, then `CheckpointDurable`.
    Checkpoint { checkpoint: Checkpoint },
    /// Make durable at once what was merged.
    FlushCheckpoint,

    /// Open a consistent view of the durable state, to be read in chunks: `SnapshotOpened`.
    OpenSnapshot { peer: u64 },
    /// Read the next chunk: `SnapshotChunk`.
    ReadSnapshot { peer: u64 },
    /// Drop the view.
    CloseSnapshot { peer: u64 },
    /// Forget what was received of an earlier snapshot and begin a new one.
    BeginInstall { peer: u64 },
    /// Store a chunk: `SnapshotStored`.
    StoreSnapshot { peer: u64, chunk: Vec<u8> },
    /// All chunks are there: verify, replace the state, load it: `SnapshotInstalled`.
    FinishInstall { peer: u64 },

    /// The answer to an operator.
    AdminReply { ticket: u64, reply: Result<String, String> },
    /// This replica must stop: why, and what to do.
    Stop { reason: String },
}

/// The other replicas, as one of them sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Company {
    /// All to be reached. The replica itself is not among them.
    pub members: Vec<Member>,
    /// Ids and addresses of those among them that may have moved: the configured list was edited so.
    /// They are dialled at either address in turn.
    pub elsewhere: Vec<(u64, String)>,
    /// Ids of those among them that are no part of the ensemble, and about to join at most.
    pub guests: Vec<u64>,
    /// Ids of those among them that vote, so none of them can be without data.
    pub voters: Vec<u64>,
    /// Whether the replica itself has no data.
    pub is_empty: bool,
}

/// What one turn of the loop changed.
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// Key and value of every record that changed, each once; `None` deletes.
    pub records: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// The last entry that the records hold.
    pub index: u64,
    pub term: u64,
    pub conf_state: ConfState,
    /// The zxid that the records lead to.
    pub zxid: i64,
}

/// What an operator may ask a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminRequest {
    /// Adds or changes members, in the form of `server.N=…` lines, and removes those with the ids.
    Reconfigure { joining: Option<String>, leaving: Option<String> },
    /// Hands leadership to a replica; 0 lets the leader choose.
    Transfer { to: u64 },
    /// Makes the state durable now.
    Checkpoint,
    /// The digest of the state, with the index and zxid it belongs to.
    Digest,
}
