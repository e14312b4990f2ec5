//! Messages about a cluster: its members, mounts and pins, and what one node asks of another.
//!
//! Like those of [`crate::message`], but for sides that both offered [`crate::feature::CLUSTER`].

use rkyv::{Archive, Serialize};

use crate::id::FileId;

/// Most members of a cluster. Guessed: a page of 32 KiB holds some hundred, and clients ask for all.
pub const MEMBERS_MAX: usize = 16_384;
/// Most mounts of a cluster.
pub const MOUNTS_MAX: usize = 64;
/// Most bytes that the mounts take in a reply.
pub const MOUNTS_BYTES_MAX: usize = 24 << 10;
/// Most pins of a cluster.
pub const PINS_MAX: usize = 64;
/// Most bytes that the pins take in a reply: their paths, and [`PIN_SIZE`] for each.
pub const PINS_BYTES_MAX: usize = 24 << 10;
/// Bytes of a pin in a reply besides its path.
pub const PIN_SIZE: usize = 8;
/// Most bytes that members, or blocks of an inventory, take in a reply.
pub const PAGE_BYTES_MAX: usize = 32 << 10;
/// Most bytes of a member with all its addresses. Derived: with all mounts it still fits a reply.
pub const MEMBER_BYTES_MAX: usize = 24 << 10;
/// Longest id of a node, and longest name of a zone, in bytes.
pub const NAME_LENGTH_MAX: usize = 64;
/// Most replicas of a block.
pub const REPLICAS_MAX: u8 = 8;

/// `Ring`: the members of the cluster, from the number `first` on.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingRequest {
    /// Epoch that the client knows; 0 for none.
    pub epoch: u64,
    /// Number of the first member of the page; 0 also brings the mounts.
    pub first: u32,
    /// 1 if the reply is to wait until the epoch differs from `epoch`, or until shortly before the
    /// budget ends.
    pub wait: u8,
}

/// Reply to `Ring`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct RingReply {
    /// Id of the cluster.
    pub cluster: String,
    /// Epoch of all fields below. It grows with each change; pages of different epochs do not belong
    /// together. 0 while the node has not seen the members yet.
    pub epoch: u64,
    /// Id of the node that answers.
    pub node: String,
    /// Id of the master, empty without one.
    pub master: String,
    /// 0 if the node is connected to coordination, 1 if it has lost it: the ring may be an old one.
    pub is_fenced: u8,
    /// What is mounted, with the page from 0.
    pub mounts: Vec<Mount>,
    /// Members of the cluster.
    pub member_count: u32,
    /// Members of this page, in the order of their ids, from `first` on; the next page begins after the
    /// last.
    pub members: Vec<Member>,
}

/// A source, and where its files are seen.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Path below which they are; empty for the root.
    pub prefix: String,
    /// The source: `file:///data`.
    pub source: String,
    /// Owners of each block, 1 to [`REPLICAS_MAX`].
    pub replicas: u8,
}

/// What a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MemberState {
    /// Owns its share of the blocks.
    Active = 1,
    /// Owns nothing any more, and other members copy what it has.
    Draining = 2,
}

/// A node of the cluster.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name of the node, the same after a restart.
    pub id: String,
    /// Its key in [`crate::ring`].
    pub key: u64,
    /// Its weight in the ring; a draining member counts as 0 whatever it has.
    pub weight: u32,
    /// What fails together with it.
    pub zone: String,
    /// A [`MemberState`]; an unknown number counts as draining.
    pub state: u8,
    /// Where it can be reached, `host:port`.
    pub address: String,
    /// Address of each shard, in shard order.
    pub shards: Vec<String>,
    /// The same for clients on its machine; empty if it has none.
    pub local: Vec<String>,
    /// Names the run of its machine's kernel, as in `Attach`.
    pub machine: String,
    /// Number of this run of the node.
    pub run: u64,
    /// Bytes of memory that it has for blocks.
    pub capacity: u64,
    /// Name and version of the program.
    pub server: String,
}

/// `Inventory`: asks which blocks the node has that another member should own.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct InventoryRequest {
    /// Key of that member.
    pub key: u64,
    /// Epoch of the ring that decides what the member owns, or a later one. A node that has not seen it
    /// yet answers `Busy`.
    pub epoch: u64,
    /// `next` of the page before; 0 for the first.
    pub cursor: u64,
}

/// Reply to `Inventory`. Blocks that come or go meanwhile may be missing or listed twice.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct InventoryReply {
    /// Cursor of the next page; 0 after the last.
    pub next: u64,
    /// Files with blocks of this page.
    pub files: Vec<InventoryFile>,
}

/// A file in an inventory.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct InventoryFile {
    /// Id of the file.
    pub id: FileId,
    /// Version that is cached.
    pub version: u64,
    /// Length of that version in bytes.
    pub length: u64,
    /// Its path.
    pub path: String,
    /// Numbers of the blocks.
    pub blocks: Vec<u32>,
}

/// `Drain`: a member hands its blocks to the others and owns nothing, or it takes part again. Only the
/// master takes it.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct DrainRequest {
    /// Id of the member.
    pub node: String,
    /// 0 to drain it, 1 to let it take part again.
    pub undo: u8,
}

/// `Mount`: changes the mounts. Only the master takes it.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct MountRequest {
    /// The mount; to remove one, only its prefix counts.
    pub mount: Mount,
    /// 0 to add or to change it, 1 to remove it.
    pub remove: u8,
}

/// `Pin`: keeps the blocks of a file, or of all files below a directory, from being evicted. Only the
/// master takes it.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct PinRequest {
    /// The file or directory, which need not exist; empty for all files.
    pub path: String,
    /// 0 to pin it, 1 to remove the pin of this very path.
    pub undo: u8,
}

/// Reply to `Pins`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct PinsReply {
    /// Paths that are pinned, in the order of their bytes, each once; at most [`PINS_MAX`].
    pub pins: Vec<String>,
}

impl From<&ArchivedMount> for Mount {
    fn from(archived: &ArchivedMount) -> Mount {
        Mount {
            prefix: archived.prefix.as_str().to_owned(),
            source: archived.source.as_str().to_owned(),
            replicas: archived.replicas,
        }
    }
}

impl Member {
    /// True if the member owns blocks.
    pub fn is_active(&self) -> bool {
        self.state == MemberState::Active as u8
    }
}

impl From<&ArchivedRingReply> for RingReply {
    fn from(archived: &ArchivedRingReply) -> RingReply {
        RingReply {
            cluster: archived.cluster.as_str().to_owned(),
            epoch: archived.epoch.to_native(),
            node: archived.node.as_str().to_owned(),
            master: archived.master.as_str().to_owned(),
            is_fenced: archived.is_fenced,
            mounts: archived.mounts.iter().map(Mount::from).collect(),
            member_count: archived.member_count.to_native(),
            members: archived.members.iter().map(Member::from).collect(),
        }
    }
}

impl From<&ArchivedMember> for Member {
    fn from(archived: &ArchivedMember) -> Member {
        let texts = |list: &rkyv::vec::ArchivedVec<rkyv::string::ArchivedString>| {
            list.iter().map(|text| text.as_str().to_owned()).collect()
        };
        Member {
            id: archived.id.as_str().to_owned(),
            key: archived.key.to_native(),
            weight: archived.weight.to_native(),
            zone: archived.zone.as_str().to_owned(),
            state: archived.state,
            address: archived.address.as_str().to_owned(),
            shards: texts(&archived.shards),
            local: texts(&archived.local),
            machine: archived.machine.as_str().to_owned(),
            run: archived.run.to_native(),
            capacity: archived.capacity.to_native(),
            server: archived.server.as_str().to_owned(),
        }
    }
}

/// Returns the index of the mount that a path belongs to, and the path below it. The mount is the one
/// with the longest prefix that the path begins with, at a border of parts.
pub fn mount_of<'a>(mounts: &[Mount], path: &'a str) -> Option<(usize, &'a str)> {
    let found = mounts.iter().enumerate().filter_map(|(index, mount)| {
        below(&mount.prefix, path).map(|rest| (mount.prefix.len(), index, rest))
    });
    found.max_by_key(|(length, _, _)| *length).map(|(_, index, rest)| (index, rest))
}

/// True if a path is pinned: it is one of the pins, or below one at a border of parts.
pub fn is_pinned(pins: &[String], path: &str) -> bool {
    pins.iter().any(|pin| below(pin, path).is_some())
}

/// Returns the rest of a path below a prefix of whole parts; None if the path is elsewhere.
fn below<'a>(prefix: &str, path: &'a str) -> Option<&'a str> {
    if prefix.is_empty() {
        return Some(path);
    }
    let rest = path.strip_prefix(prefix)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
}

#[cfg(test)]
mod tests;
