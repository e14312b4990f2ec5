//! Operations a client may ask for.

/// An operation. The number is the wire format and is never used again for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Negotiate version and features, learn limits and shard addresses.
    Hello = 1,
    /// Answered at once, with an empty body.
    Ping = 2,
    /// Path to file id, version and length.
    Stat = 3,
    /// One page of a directory.
    List = 4,
    /// A range of one block of a file version.
    Read = 5,
    /// A batch of ranges, each answered by a frame of its own with its index in `part`.
    ReadMany = 6,
    /// Bring every block of a file into the cache.
    Load = 7,
    /// Drop every block of a file from the cache; the source is never touched.
    Free = 8,
    /// Counters of the node.
    Status = 9,
    /// How a client on the node's own machine gets at its memory.
    Attach = 10,
    /// Pin blocks for a while, to be read in the node's memory; each range is answered by a frame of
    /// its own.
    Lease = 11,
    /// Give leases back before they run out.
    Release = 12,
    /// Members, mounts and epoch of the cluster.
    Ring = 13,
    /// As `Read`, but only what is cached.
    Peek = 14,
    /// Which blocks the node has that another member should have.
    Inventory = 15,
    /// Have a member give its blocks away, or take part again.
    Drain = 16,
    /// Change what is mounted.
    Mount = 17,
    /// As `Read`, from the cache or the source, never from another node: of one owner of a block by
    /// another, so that the source is read once for all of them.
    Fetch = 18,
    /// Keep what is below a path from being evicted, or no longer.
    Pin = 19,
    /// Which paths are pinned.
    Pins = 20,
    /// Begin to prove the knowledge of a secret.
    Challenge = 21,
    /// Prove it.
    Prove = 22,
    /// By which a block that another member has is recognised as what it read from the source.
    Vouch = 23,
}

impl Op {
    /// Every operation, in wire order.
    pub const ALL: [Op; 23] = [
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
    ];

    /// The operation with this number, if this version knows it.
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
