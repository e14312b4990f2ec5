//! What the client knows of a file and of a node: plain values, filled from replies.
//!
//! A [`File`] names one version of a file for good. It holds nothing open on the node and never
//! changes; that the node still has this version is found out by reading.

use std::sync::Arc;
use std::time::Duration;

use millrace_proto::message::{
    ArchivedFreeReply, ArchivedHelloReply, ArchivedStatusReply, Counter, Entry, Kind,
};
use millrace_proto::{FileId, checksum, cluster, frame};

use crate::error::Error;

/// Most shards of a node that this client follows. Guessed: more than any machine has cores.
const SHARDS_MAX: usize = 1024;

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
    /// The node's block size in bytes, as `stat` told it, or `Hello` for a file from a list or a load.
    pub block_size: u32,
    /// File or directory.
    pub kind: Kind,
    /// Time of the last change in milliseconds since the Unix epoch.
    pub modified_ms: i64,
}

impl File {
    /// Blocks of the file; the last one may be short.
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

/// What a node told in its `Hello` reply.
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
    /// Reads and judges a `Hello` reply.
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

    /// Whether both sides offered this feature bit.
    pub(crate) fn offers(&self, feature: u64) -> bool {
        self.features & feature != 0
    }
}

/// A cluster, as it was told last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterInfo {
    /// Id of the cluster.
    pub id: String,
    /// Number that grows with each change of members and mounts.
    pub epoch: u64,
    /// Id of the member that is master; None if there is none.
    pub master: Option<String>,
    /// What is mounted.
    pub mounts: Vec<MountInfo>,
    /// The members, in the order of their ids.
    pub members: Vec<MemberInfo>,
    /// Why what a member told was last not believed: it had lost coordination, told of an older epoch,
    /// or of another cluster. None if that never happened.
    pub refused: Option<String>,
}

/// A source, and where its files are seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Path below which they are; empty for the root.
    pub prefix: String,
    /// The source, such as `file:///data`.
    pub source: String,
    /// Members that have each block, 1 to 8.
    pub replicas: u8,
}

impl From<&cluster::Mount> for MountInfo {
    fn from(mount: &cluster::Mount) -> MountInfo {
        let cluster::Mount { prefix, source, replicas } = mount.clone();
        MountInfo { prefix, source, replicas }
    }
}

/// A member of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its name, the same after a restart.
    pub id: String,
    /// Where it can be reached, `host:port`.
    pub address: String,
    /// Address of each shard, in shard order.
    pub shards: Vec<String>,
    /// What fails together with it; may be empty.
    pub zone: String,
    /// Whether it owns blocks; else it is giving them away.
    pub is_active: bool,
    /// Its share of the blocks, relative to the others.
    pub weight: u32,
    /// Bytes it has for blocks.
    pub capacity: u64,
    /// Name and version of the program.
    pub server: String,
    /// Whether this client did not reach it when it last tried.
    pub is_suspect: bool,
}

/// What a `load` did.
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

/// A node's counters at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The counter with this name, if the node has it.
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
