//! Operations a client may ask for.

/// An operation. The number is the wire format and is never used again for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Negotiate version and features, learn limits and shard addresses.
    Hello = 1,
    /// Answer at once, with an empty body.
    Ping = 2,
    /// Look up file id, version and length of a path.
    Stat = 3,
    /// Read one page of a directory.
    List = 4,
    /// Read a range of one block of a file version.
    Read = 5,
    /// Read a batch of ranges. Each is answered by a frame of its own with its index in `part`.
    ReadMany = 6,
    /// Bring every block of a file into the cache.
    Load = 7,
    /// Drop every block of a file from the cache; the source is never touched.
    Free = 8,
    /// Read the counters of the node.
    Status = 9,
    /// Learn how a client on the node's own machine reaches the node's memory.
    Attach = 10,
    /// Pin blocks for a while, to be read in the node's memory; each range is answered by a frame of
    /// its own.
    Lease = 11,
    /// Give leases back before they run out.
    Release = 12,
    /// Read members, mounts and epoch of the cluster.
    Ring = 13,
    /// As `Read`, but only from the cache.
    Peek = 14,
    /// List the blocks that the node has and another member should own.
    Inventory = 15,
    /// Have a member hand its blocks away, or take part again.
    Drain = 16,
    /// Change what is mounted.
    Mount = 17,
    /// As `Read`, from the cache or the source but never from another node. One owner of a block asks
    /// another so that the source is read once for all owners.
    Fetch = 18,
    /// Keep what is below a path from being evicted, or undo that.
    Pin = 19,
    /// List which paths are pinned.
    Pins = 20,
    /// Begin to prove the knowledge of a secret.
    Challenge = 21,
    /// Prove it.
    Prove = 22,
    /// Get the code by which a block of another member is recognised as what that member read from the
    /// source.
    Vouch = 23,
    /// As `Stat`, but the source is asked, whatever is known.
    Refresh = 24,
}

impl Op {
    /// Every operation, in wire order.
    pub const ALL: [Op; 24] = [
        Op::Hello,
        Op::Ping,
        Op::Stat,
        Op::List,
        Op::Read,
        Op::ReadMany,
        Op::Load,
        Op::Free,
        Op::Status,
        Op::Attach,
        Op::Lease,
        Op::Release,
        Op::Ring,
        Op::Peek,
        Op::Inventory,
        Op::Drain,
        Op::Mount,
        Op::Fetch,
        Op::Pin,
        Op::Pins,
        Op::Challenge,
        Op::Prove,
        Op::Vouch,
        Op::Refresh,
    ];

    /// Returns the operation with this number, if this version knows it.
    #[inline]
    pub fn from_code(code: u8) -> Option<Op> {
        let index = usize::from(code).checked_sub(1)?;
        Op::ALL.get(index).copied()
    }
}

const _: () = {
    let mut index = 0;
    while index < Op::ALL.len() {
        assert!(Op::ALL[index] as usize == index + 1);
        index += 1;
    }
};
