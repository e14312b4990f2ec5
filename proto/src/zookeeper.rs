//! The ZooKeeper client protocol, version 3.8: records, opcodes, error codes.
//!
//! This crate has it because the coordination service, the load generator and the tests all speak it. It
//! owns the bytes only: what an operation means is left to `coord`. Everything borrows from the frame it
//! was read from. Layouts are those of Apache ZooKeeper's `zookeeper.jute`.
//!
//! ```text
//!  every message           request                         reply
//! ┌─────────┬─────────┐   ┌─────┬────────┬──────────┐   ┌─────┬──────┬─────┬──────────────┐
//! │ i32 len │ payload │   │ xid │ opcode │ record   │   │ xid │ zxid │ err │ record, no   │
//! └─────────┴─────────┘   └ i32 ┴─ i32 ──┴──────────┘   └ i32 ┴ i64 ─┴ i32 ┴─ error only ─┘
//! ```
//!
//! The first message of each side has no header: [`ConnectRequest`], [`ConnectResponse`]. All
//! integers are big endian. Modules in reading order:

pub mod jute;
pub mod record;
pub mod request;

pub use jute::{JuteError, Reader, Writer};
pub use record::{
    Acl, ConnectRequest, ConnectResponse, MultiHeader, ReplyHeader, Stat, WatchEvent,
};
pub use request::{CreateKind, Request};

/// Transaction ids of messages that are not ordinary requests (`ClientCnxn.java`).
pub mod xid {
    /// A watch event, from the server.
    pub const NOTIFICATION: i32 = -1;
    /// A ping and its reply.
    pub const PING: i32 = -2;
    /// Credentials and their reply.
    pub const AUTH: i32 = -4;
    /// Watches set again after a reconnect.
    pub const SET_WATCHES: i32 = -8;
}

/// Operation codes (`ZooDefs.OpCode`).
pub mod opcode {
    pub const NOTIFICATION: i32 = 0;
    pub const CREATE: i32 = 1;
    pub const DELETE: i32 = 2;
    pub const EXISTS: i32 = 3;
    pub const GET_DATA: i32 = 4;
    pub const SET_DATA: i32 = 5;
    pub const GET_ACL: i32 = 6;
    pub const SET_ACL: i32 = 7;
    pub const GET_CHILDREN: i32 = 8;
    pub const SYNC: i32 = 9;
    pub const PING: i32 = 11;
    pub const GET_CHILDREN2: i32 = 12;
    pub const CHECK: i32 = 13;
    pub const MULTI: i32 = 14;
    pub const CREATE2: i32 = 15;
    pub const RECONFIG: i32 = 16;
    pub const CHECK_WATCHES: i32 = 17;
    pub const REMOVE_WATCHES: i32 = 18;
    pub const CREATE_CONTAINER: i32 = 19;
    pub const DELETE_CONTAINER: i32 = 20;
    pub const CREATE_TTL: i32 = 21;
    pub const MULTI_READ: i32 = 22;
    pub const AUTH: i32 = 100;
    pub const SET_WATCHES: i32 = 101;
    pub const SASL: i32 = 102;
    pub const GET_EPHEMERALS: i32 = 103;
    pub const GET_ALL_CHILDREN_NUMBER: i32 = 104;
    pub const SET_WATCHES2: i32 = 105;
    pub const ADD_WATCH: i32 = 106;
    pub const WHO_AM_I: i32 = 107;
    pub const CREATE_SESSION: i32 = -10;
    pub const CLOSE_SESSION: i32 = -11;
    pub const ERROR: i32 = -1;
}

/// Error codes of a reply (`KeeperException.Code`); 0 is success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i32)]
pub enum Error {
    SystemError = -1,
    RuntimeInconsistency = -2,
    DataInconsistency = -3,
    ConnectionLoss = -4,
    MarshallingError = -5,
    Unimplemented = -6,
    OperationTimeout = -7,
    BadArguments = -8,
    NewConfigNoQuorum = -13,
    ReconfigInProgress = -14,
    ApiError = -100,
    NoNode = -101,
    NoAuth = -102,
    BadVersion = -103,
    NoChildrenForEphemerals = -108,
    NodeExists = -110,
    NotEmpty = -111,
    SessionExpired = -112,
    InvalidCallback = -113,
    InvalidAcl = -114,
    AuthFailed = -115,
    SessionMoved = -118,
    NotReadOnly = -119,
    EphemeralOnLocalSession = -120,
    NoWatcher = -121,
    RequestTimeout = -122,
    ReconfigDisabled = -123,
    SessionClosedRequireSaslAuth = -124,
    QuotaExceeded = -125,
    ThrottledOp = -127,
}

impl Error {
    /// Returns the code on the wire.
    pub fn code(self) -> i32 {
        self as i32
    }
}

/// What an ACL entry allows (`ZooDefs.Perms`).
pub mod perms {
    pub const READ: i32 = 1;
    pub const WRITE: i32 = 2;
    pub const CREATE: i32 = 4;
    pub const DELETE: i32 = 8;
    pub const ADMIN: i32 = 16;
    pub const ALL: i32 = 31;
}

/// Kinds of watch events (`Watcher.Event.EventType`).
pub mod event {
    pub const CREATED: i32 = 1;
    pub const DELETED: i32 = 2;
    pub const DATA_CHANGED: i32 = 3;
    pub const CHILDREN_CHANGED: i32 = 4;
}

/// State carried by every watch event: connected (`KeeperState.SyncConnected`).
pub const STATE_CONNECTED: i32 = 3;

/// Create flags (`CreateMode`).
pub mod create_mode {
    pub const PERSISTENT: i32 = 0;
    pub const EPHEMERAL: i32 = 1;
    pub const PERSISTENT_SEQUENTIAL: i32 = 2;
    pub const EPHEMERAL_SEQUENTIAL: i32 = 3;
    pub const CONTAINER: i32 = 4;
    pub const PERSISTENT_TTL: i32 = 5;
    pub const PERSISTENT_SEQUENTIAL_TTL: i32 = 6;
}

/// Kinds of watches that `checkWatches` and `removeWatches` name (`Watcher.WatcherType`).
pub mod watcher_type {
    pub const CHILDREN: i32 = 1;
    pub const DATA: i32 = 2;
    pub const ANY: i32 = 3;
    pub const PERSISTENT: i32 = 4;
    pub const PERSISTENT_RECURSIVE: i32 = 5;
}

/// Modes of `addWatch`.
pub mod add_watch_mode {
    pub const PERSISTENT: i32 = 0;
    pub const PERSISTENT_RECURSIVE: i32 = 1;
}

/// Default of `jute.maxbuffer`, the largest message in bytes, its length prefix not counted.
pub const MAX_BUFFER: usize = 0xfffff;

#[cfg(test)]
mod tests;
