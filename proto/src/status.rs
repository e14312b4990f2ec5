//! Status codes: each one says what a client does next.

/// Outcome of a request. The number is the wire format and is never used again for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u16)]
pub enum Status {
    /// Done.
    #[error("ok")]
    Ok = 0,
    /// A limit of the node is reached; try again after the reply's `budget_ms` milliseconds.
    #[error("the node is busy")]
    Busy = 1,
    /// The request's budget ran out before the answer was there.
    #[error("the deadline passed")]
    DeadlineExceeded = 2,
    /// The file has changed since it was looked up: `Stat` it again.
    #[error("the file has changed")]
    StaleVersion = 3,
    /// The node does not know this file id (any more): `Stat` the path again.
    #[error("the file id is not known")]
    UnknownFile = 4,
    /// No file or directory has this path.
    #[error("not found")]
    NotFound = 5,
    /// The path is not what the operation needs (a directory, a device, or a file where a directory was asked for).
    #[error("not the right kind of file")]
    WrongKind = 6,
    /// The source refuses access, or the path leaves the served directory.
    #[error("permission denied")]
    PermissionDenied = 7,
    /// The offset is at or past the end of the file.
    #[error("the offset is past the end of the file")]
    OutOfRange = 8,
    /// A field has a value that no node could serve.
    #[error("invalid argument")]
    InvalidArgument = 9,
    /// The bytes are not a frame, or the body is not the message its op asks for.
    #[error("not a valid frame")]
    BadFrame = 10,
    /// The body was damaged on the way: send it again.
    #[error("damaged on the way")]
    BadChecksum = 11,
    /// The protocol version is not spoken here; the `Hello` reply says which are.
    #[error("protocol version not supported")]
    UnsupportedVersion = 12,
    /// The operation is not known to this version.
    #[error("unknown operation")]
    UnknownOp = 13,
    /// Body or payload is longer than the limits of the `Hello` reply.
    #[error("frame too large")]
    FrameTooLarge = 14,
    /// The under-store failed; it may work later.
    #[error("the source failed")]
    SourceError = 15,
    /// Cached bytes did not match their checksum. They were dropped, not served: try again.
    #[error("cached bytes were damaged and dropped")]
    Corrupt = 16,
    /// The node is about to stop: go to another one, or connect again later.
    #[error("the node is shutting down")]
    ShuttingDown = 17,
    /// A fault of the node.
    #[error("internal error")]
    Internal = 18,
    /// Only what is cached was asked for, and this block is not cached.
    #[error("not cached")]
    NotCached = 19,
    /// The request is for the master of the cluster, which is another node, or which the cluster lacks
    /// at the moment.
    #[error("not the master")]
    NotMaster = 20,
    /// The node has lost coordination and does nothing that other nodes have to agree to.
    #[error("cut off from coordination")]
    Fenced = 21,
    /// The condition of a write does not hold; nothing was written.
    #[error("the condition does not hold")]
    ConditionFailed = 22,
}

/// What a client does about a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Use the reply.
    Use,
    /// The same request may succeed a little later, on the same connection.
    Retry,
    /// Look the path up again, then read the new version.
    Restat,
    /// The same request may succeed on a new connection, or on another node.
    Reconnect,
    /// The request cannot succeed as it is.
    Fail,
}

impl Status {
    /// Every status, in wire order.
    pub const ALL: [Status; 23] = [
        Status::Ok,
        Status::Busy,
        Status::DeadlineExceeded,
        Status::StaleVersion,
        Status::UnknownFile,
        Status::NotFound,
        Status::WrongKind,
        Status::PermissionDenied,
        Status::OutOfRange,
        Status::InvalidArgument,
        Status::BadFrame,
        Status::BadChecksum,
        Status::UnsupportedVersion,
        Status::UnknownOp,
        Status::FrameTooLarge,
        Status::SourceError,
        Status::Corrupt,
        Status::ShuttingDown,
        Status::Internal,
        Status::NotCached,
        Status::NotMaster,
        Status::Fenced,
        Status::ConditionFailed,
    ];

    /// Returns the status with this number; an unknown one is [`Status::Internal`], which no client
    /// retries.
    #[inline]
    pub fn from_code(code: u16) -> Status {
        Status::ALL.get(usize::from(code)).copied().unwrap_or(Status::Internal)
    }

    /// Returns what a client does about the status.
    pub fn next(self) -> Next {
        match self {
            Status::Ok => Next::Use,
            Status::Busy | Status::BadChecksum | Status::SourceError | Status::Corrupt => {
                Next::Retry
            }
            Status::StaleVersion | Status::UnknownFile => Next::Restat,
            Status::ShuttingDown => Next::Reconnect,
            _ => Next::Fail,
        }
    }
}

const _: () = {
    let mut index = 0;
    while index < Status::ALL.len() {
        assert!(Status::ALL[index] as usize == index);
        index += 1;
    }
};
