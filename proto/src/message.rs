//! Message bodies: one struct per request and reply, archived by rkyv (little-endian, unaligned,
//! 32-bit relative pointers) and read in place.
//!
//! A struct here is frozen once released: a change is a new protocol version. Only plain numbers,
//! strings, arrays and vectors of such are used; shared pointers, maps and trait objects never are.
//! Every reply whose status is not `Ok` has an [`ErrorReply`] as its body, or no body at all.

use rkyv::{Archive, Serialize};

use crate::id::FileId;

/// Longest path in bytes.
pub const PATH_LENGTH_MAX: usize = 4096;
/// Most ranges in one `ReadMany`. Derived: 1024 ranges of 36 bytes fit a body of 64 KiB.
pub const RANGES_MAX: usize = 1024;
/// Most bytes that the ranges of one `ReadMany` may ask for together.
pub const READ_MANY_BYTES_MAX: u64 = 16 << 20;
/// Most bytes the entries of one `List` page may take in its body; leaves room for the token.
pub const LIST_PAGE_BYTES_MAX: usize = 56 << 10;

/// `Hello`: the first request on a connection, though a node serves others before it.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct HelloRequest {
    /// Name and version of the client, for the node's log.
    pub client: String,
    /// Lowest protocol version the client speaks.
    pub version_min: u8,
    /// Highest protocol version the client speaks.
    pub version_max: u8,
    /// Feature bits the client offers, see [`crate::feature`].
    pub features: u64,
}

/// Reply to `Hello`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct HelloReply {
    /// Name and version of the node.
    pub server: String,
    /// The protocol version to use on this connection.
    pub version: u8,
    /// Feature bits that both sides offered.
    pub features: u64,
    /// Size of a block in bytes, a power of two. A `Read` never crosses a block boundary.
    pub block_size: u32,
    /// Longest request body the node accepts, in bytes.
    pub body_length_max: u32,
    /// Most requests in flight on one connection (a range of a `ReadMany` counts as one); the node
    /// stops reading from a connection that has more.
    pub requests_in_flight_max: u32,
    /// Most ranges in one `ReadMany`.
    pub ranges_max: u32,
    /// Address of each shard, `host:port`, in shard order; an empty host means the host the client
    /// connected to. The length is the shard count of [`crate::placement`].
    pub shards: Vec<String>,
}

/// `Stat`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct StatRequest {
    /// Path below the served root, `/` between parts, at most [`PATH_LENGTH_MAX`] bytes.
    pub path: String,
}

/// `Refresh`. The reply is a [`StatReply`].
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct RefreshRequest {
    /// Path of a file or directory.
    pub path: String,
    /// 1 if what is known of all that is below the path is not to be believed any more either.
    pub recursive: u8,
}

/// What an entry is.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[rkyv(derive(Clone, Copy, Debug, PartialEq, Eq))]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = 1,
    /// A directory; its id, version and length are zero.
    Directory = 2,
}

impl From<ArchivedKind> for Kind {
    fn from(archived: ArchivedKind) -> Kind {
        match archived {
            ArchivedKind::File => Kind::File,
            ArchivedKind::Directory => Kind::Directory,
        }
    }
}

/// A file or a directory.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name within its directory (`List`), or the path that was asked for (`Stat`).
    pub name: String,
    /// File or directory.
    pub kind: Kind,
    /// Identity of the file.
    pub id: FileId,
    /// Version of its content: another number for every content the node has seen.
    pub version: u64,
    /// Length in bytes.
    pub length: u64,
    /// Time of the last change in milliseconds since the Unix epoch, as the source reports it.
    pub modified_ms: i64,
}

impl From<&ArchivedEntry> for Entry {
    fn from(archived: &ArchivedEntry) -> Entry {
        Entry {
            name: archived.name.as_str().to_owned(),
            kind: archived.kind.into(),
            id: (&archived.id).into(),
            version: archived.version.to_native(),
            length: archived.length.to_native(),
            modified_ms: archived.modified_ms.to_native(),
        }
    }
}

/// Reply to `Stat`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct StatReply {
    /// What was found.
    pub entry: Entry,
    /// Size of a block in bytes, a power of two, as in the [`HelloReply`]: with it a client that skipped
    /// `Hello` can cut its reads too. A `Read` never crosses a multiple of it.
    pub block_size: u32,
}

/// `List`: one page of a directory, sorted by the bytes of the names.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// Path of the directory below the served root; empty for the root itself.
    pub path: String,
    /// `next` of the page before, or empty for the first.
    pub token: String,
    /// Most entries wanted, 0 for as many as fit a reply.
    pub limit: u32,
}

/// Reply to `List`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct ListReply {
    /// Entries of this page. What is neither file nor directory, or leads out of the root, is not an entry.
    pub entries: Vec<Entry>,
    /// Token of the next page, empty after the last.
    pub next: String,
}

/// Reply to `List` that leaves names out which the source has, marked by [`FLAG_LEFT_OUT`]. It ends with what a reply
/// without them is, so that a client which does not know the flag reads that.
///
/// [`FLAG_LEFT_OUT`]: crate::frame::FLAG_LEFT_OUT
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct PartialListReply {
    /// How many names are left out: those between the page before and the end of this one, and with the first page
    /// all names of the directory that are not UTF-8.
    pub left_out_count: u64,
    /// One of them and why it is left out, for people; at most 1024 bytes.
    pub example: String,
    /// The page.
    pub page: ListReply,
}

/// Most blocks of a [`CachedRequest`]. Guessed: a shard looks them up in less than a millisecond.
pub const CACHED_BLOCKS_MAX: u32 = 8192;

/// `Cached`: asks which blocks of a file version are in the node's memory. Nothing is read for it.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[rkyv(derive(Clone, Copy, Debug))]
pub struct CachedRequest {
    /// The file.
    pub file: FileId,
    /// The version that `Stat` or `List` returned.
    pub version: u64,
    /// Number of the first block that is meant.
    pub first: u32,
    /// Blocks from there on, 1 to [`CACHED_BLOCKS_MAX`].
    pub count: u32,
}

/// Reply to `Cached`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct CachedReply {
    /// A bit for each block, the lowest of the first byte for the first one: 1 if all its bytes are in memory.
    pub blocks: Vec<u8>,
}

/// A range of one block of a file version: the body of `Read`, and an element of `ReadMany`.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[rkyv(derive(Clone, Copy, Debug))]
pub struct Range {
    /// The file.
    pub file: FileId,
    /// The version that `Stat` or `List` returned.
    pub version: u64,
    /// Offset in the file in bytes.
    pub offset: u64,
    /// Length in bytes, at least 1. The reply is shorter where the file ends first. A range that
    /// crosses a block boundary is an [`crate::Status::InvalidArgument`].
    pub length: u32,
}

const _: () = assert!(size_of::<ArchivedRange>() == 36);

impl From<&ArchivedRange> for Range {
    #[inline]
    fn from(archived: &ArchivedRange) -> Range {
        Range {
            file: (&archived.file).into(),
            version: archived.version.to_native(),
            offset: archived.offset.to_native(),
            length: archived.length.to_native(),
        }
    }
}

/// Reply to `Read`, and to each range of a `ReadMany`. The payload is the bytes.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct ReadReply {
    /// CRC-32 of each piece of the payload, see [`crate::checksum`].
    pub checksums: Vec<u32>,
}

/// `ReadMany`, `Lease` and `Release`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct ReadManyRequest {
    /// 1 to [`RANGES_MAX`] ranges; those of a `ReadMany` ask for at most [`READ_MANY_BYTES_MAX`] bytes
    /// together. Replies come in any order. `Lease` and `Release` mean the whole block that a range lies
    /// in.
    pub ranges: Vec<Range>,
}

/// Reply to `Attach`. The request has no body. Over a Unix socket the node's memory comes with it, as
/// a file descriptor (`SCM_RIGHTS`) that can be mapped for reading only.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct AttachReply {
    /// Number of this run of the node; each start has another one.
    pub node: u64,
    /// Name of the run of the machine's kernel (its boot id), empty if it is not known. A client that
    /// sees the same one is on this machine.
    pub machine: String,
    /// Address of each shard for clients on this machine, `unix:` and a path, or `unix:@` and an
    /// abstract name, in shard order. Empty if there are none.
    pub shards: Vec<String>,
    /// Length in bytes of the memory that comes with this reply, 0 if none does.
    pub memory_length: u64,
    /// How long a lease lasts in milliseconds, 0 if the node grants none.
    pub lease_ms: u32,
}

/// A run of bytes in a node's memory.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[rkyv(derive(Clone, Copy, Debug))]
pub struct Extent {
    /// Where it begins in the memory, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
}

impl From<&ArchivedExtent> for Extent {
    fn from(archived: &ArchivedExtent) -> Extent {
        Extent { offset: archived.offset.to_native(), length: archived.length.to_native() }
    }
}

/// Reply to each range of a `Lease`: where the block lies until the lease ends.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct LeaseReply {
    /// How long the block stays where it is, in milliseconds from when the request was **sent**.
    pub lease_ms: u32,
    /// CRC-32 of the whole block.
    pub checksum: u32,
    /// Where the block lies, in order; together the extents are the block.
    pub extents: Vec<Extent>,
}

/// `Load`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct LoadRequest {
    /// Path of a file.
    pub path: String,
}

/// `LoadCopies`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct LoadCopiesRequest {
    /// Path of the file.
    pub path: String,
    /// How many owners of each block are meant, the first ones, 1 to as many as it has.
    pub replicas: u8,
}

/// Reply to `Load` and `LoadCopies`, once every block has been in the cache.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct LoadReply {
    /// The file that was loaded.
    pub entry: Entry,
    /// Blocks of the file.
    pub block_count: u64,
    /// Blocks that had to be read from the source.
    pub filled_count: u64,
}

/// `Free`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct FreeRequest {
    /// Path of a file.
    pub path: String,
}

/// Reply to `Free`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct FreeReply {
    /// Blocks dropped from the cache.
    pub block_count: u64,
    /// Bytes they held.
    pub byte_count: u64,
}

/// One counter of a node.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Name with its unit, such as `hit_bytes`.
    pub name: String,
    /// Value, summed over the shards.
    pub value: u64,
}

/// Reply to `Status`. The request has no body.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct StatusReply {
    /// Name and version of the node.
    pub server: String,
    /// Time since start in milliseconds.
    pub uptime_ms: u64,
    /// Shards of the node.
    pub shard_count: u32,
    /// Counters; a client ignores names it does not know.
    pub counters: Vec<Counter>,
}

/// Body of a reply whose status is not `Ok`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct ErrorReply {
    /// What went wrong and what to do, for people.
    pub message: String,
}

#[cfg(test)]
pub(crate) mod tests;
