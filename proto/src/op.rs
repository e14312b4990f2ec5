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
    /// Have the cluster bring files in by itself.
    StartJob = 25,
    /// End such a job.
    CancelJob = 26,
    /// List such jobs.
    Jobs = 27,
    /// Bring the blocks of a part of a file in that the node owns.
    LoadPart = 28,
    /// As `Load`, of the blocks of which the node is one of the first owners, up to a number.
    LoadCopies = 29,
    /// As `LoadPart`, of such blocks, from the source or from a member that has them.
    LoadPartCopies = 30,
    /// As `StartJob`, with the number of owners that are to have each block.
    StartCopiesJob = 31,
    /// Begin to write an object.
    Put = 32,
    /// Bring bytes of it.
    PutPart = 33,
    /// Have the whole object acknowledged by the source.
    PutEnd = 34,
    /// Give an upload up.
    PutAbort = 35,
    /// Delete a file at the source.
    Delete = 36,
    /// Give a file or a directory another path at the source.
    Rename = 37,
    /// Ask which blocks of a file are in the node's memory.
    Cached = 38,
}

impl Op {
    /// Every operation, in wire order.
    pub const ALL: [Op; 38] = [
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
        Op::StartJob,
        Op::CancelJob,
        Op::Jobs,
        Op::LoadPart,
        Op::LoadCopies,
        Op::LoadPartCopies,
        Op::StartCopiesJob,
        Op::Put,
        Op::PutPart,
        Op::PutEnd,
        Op::PutAbort,
        Op::Delete,
        Op::Rename,
        Op::Cached,
    ];

    /// Returns the operation with this number, if this version knows it.
    #[inline]
    pub fn from_code(code: u8) -> Option<Op> {
        BY_CODE.get(usize::from(code)).copied().flatten()
    }
}

/// The operations by their numbers, some of which are not taken.
const BY_CODE: [Option<Op>; 64] = {
    let mut table = [None; 64];
    let mut index = 0;
    while index < Op::ALL.len() {
        let op = Op::ALL[index];
        assert!(table[op as usize].is_none() && op as usize != 0);
        table[op as usize] = Some(op);
        index += 1;
    }
    table
};
