//! What the client knows of a file and of a node: plain values, filled from replies.
//!
//! A [`File`] names one version of a file for good. It holds nothing open on the node and never changes;
//! only a read finds out whether the node still has this version.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use millrace_proto::message::{
    self, ArchivedEntry, ArchivedFreeReply, ArchivedHelloReply, ArchivedStatusReply,
};
use millrace_proto::{checksum, cluster, frame};

use crate::error::Error;

/// Most shards of a node that this client follows. Guessed: more than any machine has cores.
const SHARDS_MAX: usize = 1024;

/// 128-bit id of a file, the same for every version of it, also after a restart of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u128);

impl fmt::Display for FileId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:032x}", self.0)
    }
}

impl From<millrace_proto::FileId> for FileId {
    fn from(id: millrace_proto::FileId) -> FileId {
        FileId(id.0)
    }
}

impl From<FileId> for millrace_proto::FileId {
    fn from(id: FileId) -> millrace_proto::FileId {
        millrace_proto::FileId(id.0)
    }
}

/// What an entry of a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory; its id, version and length are zero.
    Directory,
}

impl From<message::Kind> for Kind {
    fn from(kind: message::Kind) -> Kind {
        match kind {
            message::Kind::File => Kind::File,
            message::Kind::Directory => Kind::Directory,
        }
    }
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name within its directory.
    pub name: String,
    /// File or directory.
    pub kind: Kind,
    /// Identity of the file.
    pub id: FileId,
    /// Version of its content: another number for every content that the node has seen.
    pub version: u64,
    /// Length in bytes.
    pub length: u64,
    /// Time of the last change in milliseconds since the Unix epoch, as the source reports it.
    pub modified_ms: i64,
}

impl From<&ArchivedEntry> for Entry {
    fn from(archived: &ArchivedEntry) -> Entry {
        let message::Entry { name, kind, id, version, length, modified_ms } = archived.into();
        Entry { name, kind: kind.into(), id: id.into(), version, length, modified_ms }
    }
}

/// One page of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedPage {
    /// The entries, sorted by the bytes of their names.
    pub entries: Vec<Entry>,
    /// Token of the next page; None after the last.
    pub next: Option<String>,
    /// Names that the source has and the node cannot serve, such as those that are not UTF-8. They are left out of
    /// this page, or with the first page of the whole directory. A node of an earlier version does not count them.
    pub left_out_count: u64,
    /// One of them and why it is left out, for people; empty if all are served.
    pub left_out_example: String,
}

/// One version of a file (or a directory, which can be listed but not read).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Path below the served root.
    pub path: Arc<str>,
    /// Identity, the same for every version.
    pub id: FileId,
    /// Version of the content.
    pub version: u64,
    /// Length in bytes.
    pub length: u64,
    /// The node's block size in bytes, from `stat`, or from `Hello` for a file from a list or a load.
    pub block_size: u32,
    /// File or directory.
    pub kind: Kind,
    /// Time of the last change in milliseconds since the Unix epoch.
    pub modified_ms: i64,
}

impl File {
    /// Returns the number of blocks of the file; the last one may be short.
    pub fn block_count(&self) -> u64 {
        self.length.div_ceil(u64::from(self.block_size.max(1)))
    }

    pub(crate) fn new(path: Arc<str>, entry: &Entry, block_size: u32) -> File {
        File {
            path,
            id: entry.id,
            version: entry.version,
            length: entry.length,
            block_size,
            kind: entry.kind,
            modified_ms: entry.modified_ms,
        }
    }
}

/// Passes a block size in bytes that this client can cut reads with.
///
/// # Errors
/// [`Error::Protocol`] for any other.
pub(crate) fn check_block_size(block_size: u32) -> Result<u32, Error> {
    let sizes = checksum::PAGE_SIZE..=frame::PAYLOAD_LENGTH_MAX;
    if block_size.is_power_of_two() && sizes.contains(&block_size) {
        return Ok(block_size);
    }
    Err(Error::protocol(format!(
        "a block size of {block_size} bytes is not a power of two from 4 KiB to 16 MiB"
    )))
}

/// What a node said in its `Hello` reply.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloInfo {
    /// Name and version of the node.
    pub server: String,
    /// Feature bits that both sides offered, see [`millrace_proto::feature`].
    pub features: u64,
    /// Size of a block in bytes, a power of two.
    pub block_size: u32,
    /// Longest request body the node accepts, in bytes.
    pub body_length_max: u32,
    /// Most requests in flight on one connection, at least 1.
    pub requests_in_flight_max: u32,
    /// Most ranges in one batch, at least 1.
    pub ranges_max: u32,
    /// Address of each shard, `host:port`, in shard order; an empty host means the host of the node.
    pub shards: Vec<String>,
}

impl HelloInfo {
    /// Reads and checks a `Hello` reply.
    ///
    /// # Errors
    /// [`Error::Protocol`] for values this client cannot work with.
    pub(crate) fn decode(body: &[u8]) -> Result<HelloInfo, Error> {
        let reply = frame::body::<ArchivedHelloReply>(body)?;
        if reply.version != millrace_proto::VERSION {
            return Err(Error::protocol(format!(
                "the node wants protocol version {}, this client speaks {}",
                reply.version,
                millrace_proto::VERSION
            )));
        }
        let block_size = check_block_size(reply.block_size.to_native())?;
        if reply.shards.len() > SHARDS_MAX {
            return Err(Error::protocol(format!(
                "{} shards are more than {SHARDS_MAX}",
                reply.shards.len()
            )));
        }
        Ok(HelloInfo {
            server: reply.server.as_str().to_owned(),
            features: reply.features.to_native(),
            block_size,
            body_length_max: reply.body_length_max.to_native(),
            requests_in_flight_max: reply.requests_in_flight_max.to_native().max(1),
            ranges_max: reply.ranges_max.to_native().max(1),
            shards: reply.shards.iter().map(|address| address.as_str().to_owned()).collect(),
        })
    }

    /// True if both sides offered this feature bit.
    pub(crate) fn offers(&self, feature: u64) -> bool {
        self.features & feature != 0
    }
}

/// A cluster, as a member last reported it.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterInfo {
    /// Id of the cluster.
    pub id: String,
    /// Number that grows with each change of members and mounts.
    pub epoch: u64,
    /// Id of the member that is master; None without one.
    pub master: Option<String>,
    /// What is mounted.
    pub mounts: Vec<MountInfo>,
    /// The members, in the order of their ids.
    pub members: Vec<MemberInfo>,
    /// Why the last report of a member was not believed: it had lost coordination, or its epoch was
    /// older, or its cluster another one. None if that never happened.
    pub refused: Option<String>,
}

/// A source, and where its files are seen; made by [`MountInfo::new`].
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Path below which they are; empty for the root.
    pub prefix: String,
    /// The source, such as `file:///data`.
    pub source: String,
    /// Members that have each block, 1 to 8.
    pub replicas: u8,
}

impl MountInfo {
    /// Makes a mount of `source`, such as `file:///data`, below the path `prefix`. Each block is at
    /// `replicas` members, 1 to 8.
    pub fn new(prefix: impl Into<String>, source: impl Into<String>, replicas: u8) -> MountInfo {
        MountInfo { prefix: prefix.into(), source: source.into(), replicas }
    }
}

impl From<&cluster::Mount> for MountInfo {
    fn from(mount: &cluster::Mount) -> MountInfo {
        let cluster::Mount { prefix, source, replicas } = mount.clone();
        MountInfo { prefix, source, replicas }
    }
}

/// A member of a cluster.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its name, the same after a restart.
    pub id: String,
    /// Where it can be reached, `host:port`.
    pub address: String,
    /// Address of each shard, in shard order.
    pub shards: Vec<String>,
    /// What fails together with it; may be empty.
    pub zone: String,
    /// True if it owns blocks; else it is giving them away.
    pub is_active: bool,
    /// Its share of the blocks, relative to the others.
    pub weight: u32,
    /// Bytes it has for blocks.
    pub capacity: u64,
    /// Name and version of the program.
    pub server: String,
    /// True if this client did not reach it when it last tried.
    pub is_suspect: bool,
}

/// What a `load` did.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadReport {
    /// The version that was loaded.
    pub file: File,
    /// Blocks of the file, each counted once for each member that has to have it.
    pub block_count: u64,
    /// Blocks that had to be read from the source.
    pub filled_count: u64,
}

/// What a `free` did.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeReport {
    /// Blocks dropped from the cache.
    pub block_count: u64,
    /// Bytes they held.
    pub byte_count: u64,
}

impl From<&ArchivedFreeReply> for FreeReport {
    fn from(reply: &ArchivedFreeReply) -> FreeReport {
        FreeReport {
            block_count: reply.block_count.to_native(),
            byte_count: reply.byte_count.to_native(),
        }
    }
}

/// One counter of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Name, with its unit.
    pub name: String,
    /// Its value, summed over the shards.
    pub value: u64,
}

/// A node's counters at one moment.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Name and version of the node.
    pub server: String,
    /// Time since the node started.
    pub uptime: Duration,
    /// Shards of the node.
    pub shard_count: u32,
    /// Counters, summed over the shards; names carry their unit.
    pub counters: Vec<Counter>,
}

impl NodeStatus {
    /// Returns the counter with this name, if the node has it.
    pub fn counter(&self, name: &str) -> Option<u64> {
        let counter = self.counters.iter().find(|counter| counter.name == name)?;
        Some(counter.value)
    }
}

impl From<&ArchivedStatusReply> for NodeStatus {
    fn from(reply: &ArchivedStatusReply) -> NodeStatus {
        NodeStatus {
            server: reply.server.as_str().to_owned(),
            uptime: Duration::from_millis(reply.uptime_ms.to_native()),
            shard_count: reply.shard_count.to_native(),
            counters: reply
                .counters
                .iter()
                .map(|counter| Counter {
                    name: counter.name.as_str().to_owned(),
                    value: counter.value.to_native(),
                })
                .collect(),
        }
    }
}
