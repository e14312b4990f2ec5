//! The input and output of a replica: two closed lists, which are its only link to the world.
//!
//! The runtime turns readiness and completions into [`Event`]s, and [`Action`]s into system calls.
//! The simulation does the same with a seeded world. Nothing else reaches a replica.

use std::net::SocketAddr;

use raft::eraftpb::ConfState;

use crate::config::Member;
use crate::peers::Listed;
use crate::state::State;
use crate::store::{Append, Applied};

/// A client connection: a slot, and the count of its uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId {
    /// Less than the limit of connections.
    pub slot: u32,
    /// Grows by one each time the slot is given out.
    pub generation: u32,
}

/// The time, read once for each turn of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds that only grow. Every timer uses them.
    pub ms: u64,
    /// Milliseconds since 1970, which may jump. Entries get this time.
    pub wall_ms: i64,
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A client connected.
    ClientOpened { client: ClientId, address: SocketAddr },
    /// One whole message of a client, without its length prefix. Only if
    /// [`super::Replica::accepts`] is true.
    ClientMessage { client: ClientId, message: &'a [u8] },
    /// The client's connection is gone. This does not follow `Action::CloseClient`.
    ClientClosed { client: ClientId },

    /// Our stream to `peer` is open: all messages from now on arrive in order, or `PeerLost` comes.
    PeerConnected { peer: u64 },
    /// Follows `PeerConnected`: `peer` was not at its address in the ensemble, but at the one in
    /// [`Company::elsewhere`].
    PeerMoved { peer: u64 },
    /// Our stream to `peer` broke, so messages may be lost.
    PeerLost { peer: u64 },
    /// Follows `PeerLost`: both streams ended and nothing listens at the address of `peer`, so its process is gone.
    /// May be wrong, as any guess about another machine.
    PeerGone { peer: u64 },
    /// A message that `peer` sent over its stream to us.
    PeerMessage { peer: u64, message: &'a [u8] },

    /// The appends up to `number` are durable.
    LogDurable { number: u64 },
    /// The state up to `applied` is durable, so the log before it may be forgotten.
    CheckpointDurable { applied: Applied },
    /// The stores have no room for more state, or have room again.
    Room { is_full: bool },
    /// A store failed for good, so nothing can be acknowledged any more.
    StorageFailed { error: String },

    /// Answers `StateAction::OpenSnapshot`: the durable state that the chunks will hold.
    SnapshotOpened { peer: u64, applied: Applied },
    /// The next chunk for `peer`; `None` after the last.
    SnapshotChunk { peer: u64, chunk: Option<Vec<u8>> },
    /// A chunk of the leader is stored, so the leader may send the next.
    SnapshotStored { peer: u64 },
    /// The received snapshot replaced our state durably; this is what it holds.
    SnapshotInstalled { peer: u64, applied: Applied, state: Box<State> },
    /// The received snapshot was damaged or could not be stored. The old state is still there.
    SnapshotRefused { peer: u64, error: String },

    /// An operator asks; `Action::AdminReply` with the same ticket is the answer.
    Admin { ticket: u64, request: AdminRequest },
}

/// One thing to do. Actions are done in the order of their list.
#[derive(Debug)]
pub enum Action {
    /// [`super::Replica::output`] of this client has bytes to send.
    Send { client: ClientId },
    /// Send the output of this client, then close it.
    CloseClient { client: ClientId },

    /// Send this to a peer, in order. If that fails, break the stream and report `PeerLost`.
    SendPeer { peer: u64, message: Vec<u8> },
    /// Keep streams to these replicas, and to no others.
    Peers { company: Company },
    /// This replica begins an ensemble. With `None` its first state goes to the disk: from here on,
    /// refuse all other ensembles. With an id the state is there: store the id durably, before the
    /// next action. Either way all streams end, because the peers must be greeted again.
    Found { cluster_id: Option<u64> },
    /// Store durably that the ensemble has taken over this much of the configured list of members.
    Listed { listed: Listed },

    /// Make this durable, then report `LogDurable`. All waiting appends become one commit.
    Append { append: Append },
    /// Forget entries up to `index`, whose term is `term`.
    CompactLog { index: u64, term: u64 },
    /// Work on the durable state.
    State(StateAction),

    /// The answer to an operator.
    AdminReply { ticket: u64, reply: Result<String, String> },
    /// This replica must stop. `reason` says why, and what to do.
    Stop { reason: String },
}

/// One thing to do with the durable state, as part of an [`Action`].
#[derive(Debug)]
pub enum StateAction {
    /// Merge these records (`None` deletes) into the state, all or none. The state store chooses
    /// when they become durable; then report `CheckpointDurable`.
    Checkpoint { checkpoint: Checkpoint },
    /// Make the merged records durable at once.
    FlushCheckpoint,

    /// Open a consistent view of the durable state for reading in chunks; then report
    /// `SnapshotOpened`.
    OpenSnapshot { peer: u64 },
    /// Read the next chunk; then report `SnapshotChunk`.
    ReadSnapshot { peer: u64 },
    /// Drop the view.
    CloseSnapshot { peer: u64 },
    /// Forget the chunks of an earlier snapshot and begin a new one.
    BeginInstall { peer: u64 },
    /// Store a chunk; then report `SnapshotStored`.
    StoreSnapshot { peer: u64, chunk: Vec<u8> },
    /// All chunks are there. Verify them, replace the state and load it; then report
    /// `SnapshotInstalled`.
    FinishInstall { peer: u64 },
}

impl From<StateAction> for Action {
    fn from(action: StateAction) -> Action {
        Action::State(action)
    }
}

/// The other replicas, as one replica sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Company {
    /// All replicas to reach. The replica itself is not among them.
    pub members: Vec<Member>,
    /// Ids and new addresses of members that may have moved, because the configured list was
    /// edited. Both addresses of these are dialled in turn.
    pub elsewhere: Vec<(u64, String)>,
    /// Ids of the members that are not part of the ensemble; at most they are about to join it.
    pub guests: Vec<u64>,
    /// Ids of the members that vote, so none of them can be without data.
    pub voters: Vec<u64>,
    /// True if the replica itself has no data.
    pub is_empty: bool,
}

/// The changes of one turn of the loop.
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// Key and value of every changed record, each once; `None` deletes.
    pub records: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// The last entry that the records hold.
    pub index: u64,
    pub term: u64,
    pub conf_state: ConfState,
    /// The zxid of the state with these records.
    pub zxid: i64,
}

/// A request of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminRequest {
    /// Adds or changes members, given as `server.N=…` lines, and removes those with the ids.
    Reconfigure { joining: Option<String>, leaving: Option<String> },
    /// Hands leadership to a replica; 0 lets the leader choose.
    Transfer { to: u64 },
    /// Makes the state durable now.
    Checkpoint,
    /// Computes the digest of the state, with its index and zxid.
    Digest,
}
