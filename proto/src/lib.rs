//! The Millrace binary protocol: the bytes two processes exchange, and nothing else.
//!
//! Owns the frame header, every message body, the status codes, the checksum rule and the placement
//! rule. Everything here is a pure function of its input: no I/O, no clock, no allocation on the
//! read path. What the bytes mean for a cache is left to `node`, how to wait for them to `client`.
//!
//! ```text
//!  one frame
//! ┌────────────────┬──────────────────────┬───────────────────────────┐
//! │ header 40 B    │ body  0..=64 KiB     │ payload  raw block bytes  │
//! │ rkyv, in place │ rkyv, checked access │ never part of an archive  │
//! └────────────────┴──────────────────────┴───────────────────────────┘
//! ```
//!
//! `PROTOCOL.md` beside this crate is the specification; `vectors/` holds test vectors for authors
//! of other implementations. Modules in reading order:

pub mod checksum;
pub mod cluster;
pub mod coordination;
pub mod frame;
pub mod id;
pub mod job;
pub mod layout;
pub mod message;
pub mod op;
pub mod placement;
pub mod proof;
pub mod ring;
pub mod socket;
pub mod source;
pub mod status;
pub mod terms;
pub mod version;
pub mod write;
pub mod zookeeper;

pub use frame::{FrameError, HEADER_SIZE, Header};
pub use id::FileId;
pub use op::Op;
pub use status::Status;

/// The protocol version this crate speaks, and the only one it understands so far.
///
/// Version 1: the first. A version is raised when a body changes its meaning or layout; the header
/// layout is the same in every version, so that a frame of an unknown version can be skipped.
pub const VERSION: u8 = 1;

/// Feature bits offered in `Hello`. A side uses a feature only when both sides offered it.
pub mod feature {
    /// `ReadMany`: a batch of ranges in one request.
    pub const READ_MANY: u64 = 1 << 0;
    /// Checksums accompany every `Read` and `ReadMany` reply.
    pub const CHECKSUMS: u64 = 1 << 1;
    /// Blocks are placed on shards by [`crate::placement`], one address per shard.
    pub const SHARD_ADDRESSES: u64 = 1 << 2;
    /// `Attach`, `Lease` and `Release`: clients on the node's machine read its memory.
    pub const LEASES: u64 = 1 << 3;
    /// `Ring` and the other operations of [`crate::cluster`]: the node is one of several.
    pub const CLUSTER: u64 = 1 << 4;
    /// Checksums of payload cover the identity of the block too: [`crate::checksum::tag`].
    pub const IDENTITY: u64 = 1 << 5;
    /// `Challenge` and `Prove`: the node knows a secret, and serves some operations only to peers that
    /// prove that they know it. See [`crate::proof`].
    pub const PROOFS: u64 = 1 << 6;
    /// `Put` and `Delete`: the node writes to sources where its operator allows it. See [`crate::write`].
    pub const WRITES: u64 = 1 << 8;
    /// All features of this version.
    pub const ALL: u64 =
        READ_MANY | CHECKSUMS | SHARD_ADDRESSES | LEASES | CLUSTER | IDENTITY | PROOFS | WRITES;
}
