//! Messages to a shard, from other shards and from the side thread.
//!
//! Owns the bounded channels and the wake-up. Always holds: a message that was posted is seen, either
//! because the shard looks before it sleeps or because its eventfd was rung. Posting to a full mailbox
//! gives the message back; nothing blocks and nothing is lost.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace_proto::frame::{FLAG_IDENTITY, Header};
use millrace_proto::message::Range;
use millrace_proto::{FileId, Status};
use rustix::event::EventfdFlags;
use smallvec::SmallVec;

use crate::cache::{BlockKey, EntryIndex, Listing};
use crate::chunks::Chunks;
use crate::memory::{Blank, Block, Segment, Sums};
use crate::store::FillError;
use crate::token::Token;

/// The connection that waits for a reply, and what the reply needs from the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requester {
    /// Shard that has the connection.
    pub shard: u32,
    /// The connection.
    pub token: Token,
    /// Header of the request.
    pub header: Header,
    /// Index of the range in a `ReadMany`, else 0.
    pub part: u16,
    /// Bytes that were asked for, as counted against the connection's limit.
    pub asked: u32,
    /// True if another shard was asked for the block.
    pub is_forwarded: bool,
    /// True if the client takes checksums that cover the identity of the block.
    pub covers_identity: bool,
    /// Time after which the answer is of no use, in the node's milliseconds.
    pub deadline: Option<u64>,
}

impl Requester {
    /// Returns the flags of a reply that brings checksums of a block, and what to combine each of them
    /// with. They are stored with the block's `tag` in them.
    #[inline]
    pub(crate) fn checksums(&self, tag: u32) -> (u16, u32) {
        match self.covers_identity {
            true => (FLAG_IDENTITY, 0),
            false => (0, tag),
        }
    }
}

/// Returns the header of a reply to `header` with this status, for range `part` of it.
pub(crate) fn reply_header(header: &Header, part: u16, status: Status) -> Header {
    Header { part, ..header.reply(status) }
}

/// A range that the owner pinned for another shard to send.
#[derive(Debug)]
pub(crate) struct Served {
    /// The connection that waits for it.
    pub requester: Requester,
    /// The pinned block, to be released on the owner.
    pub entry: EntryIndex,
    /// The owner.
    pub owner: u32,
    /// Bytes of the pages that the block holds.
    pub pinned: u64,
    /// Checksums of the range, as the requester takes them.
    pub sums: SmallVec<[u32; 16]>,
    /// Where the bytes lie.
    pub segments: SmallVec<[Segment; 2]>,
}

/// Some chunks of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The block.
    pub key: BlockKey,
    /// Its version.
    pub version: u64,
    /// The chunks.
    pub chunks: Chunks,
    /// Length of the block in bytes.
    pub block_length: u32,
}

impl Run {
    /// True if it is the whole block.
    pub(crate) fn is_whole(&self) -> bool {
        self.chunks == Chunks::all(self.block_length)
    }
}

/// Where the bytes of a block came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filling {
    /// The source.
    Source,
    /// Another node that had it.
    Peer,
    /// A disk of this node.
    Disk,
}

/// Where a block may be taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FillFrom {
    /// Another node where that is likely to have it, else the source.
    Anywhere,
    /// Only the source, because another node asks, which has asked others already.
    Source,
    /// Only this member, which listed the block.
    Member(Arc<str>),
}

/// What became of a block that a `Load` or a hand-over asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ensured {
    /// It was in memory.
    Resident,
    /// It was read, of this length in bytes.
    Filled(Filling, u32),
    /// Not now: a limit was reached.
    Busy,
    /// The member that it was to be pulled from does not have it any more.
    NotThere,
    /// Not at all.
    Failed(Status, String),
}

/// Blocks and bytes that were dropped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dropped {
    /// Blocks.
    pub block_count: u64,
    /// Bytes they held.
    pub byte_count: u64,
}

/// Blocks of a file to drop, and how far that is.
#[derive(Debug)]
pub(crate) struct DropJob {
    /// The file.
    pub file: FileId,
    /// Most blocks that are still to be dropped; None before it began.
    pub left: Option<u32>,
    /// True if it must not come back after a restart either, whatever its version.
    pub is_for_good: bool,
    /// Where the search of the disks' index goes on, once it has begun.
    pub before: Option<usize>,
    /// What was dropped so far.
    pub dropped: Dropped,
    /// Where the sum goes.
    pub reply: flume::Sender<Dropped>,
}

impl DropJob {
    /// Returns a job that has not begun, and where its sum comes.
    pub(crate) fn new(file: FileId, is_for_good: bool) -> (DropJob, flume::Receiver<Dropped>) {
        let (reply, receiver) = flume::bounded(1);
        let dropped = Dropped::default();
        (DropJob { file, left: None, is_for_good, before: None, dropped, reply }, receiver)
    }
}

/// A block of an object that is being written, to be filled as its bytes pass.
#[derive(Debug)]
pub(crate) struct Loan {
    /// Length of the block in bytes.
    pub length: u32,
    /// Bytes of this shard's memory that the upload holds already.
    pub held: u64,
    /// Where the blank goes; None if there is no room.
    pub reply: flume::Sender<Option<Blank>>,
}

/// A block of an object that was written, in the version that the store gave it.
#[derive(Debug)]
pub(crate) struct WrittenBlock {
    /// The block, whole.
    pub run: Run,
    /// How long it stays.
    pub stay: Stay,
    /// Its bytes.
    pub block: Block,
    /// Their checksums.
    pub sums: Sums,
    /// Dropped when the block can be read.
    pub done: flume::Sender<()>,
}

/// Bytes that have come, and from where.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// The block, or a part of one.
    pub block: Block,
    /// The checksums of these bytes.
    pub sums: Sums,
    /// Where it came from.
    pub filling: Filling,
}

/// A message to a shard.
#[derive(Debug)]
pub(crate) enum Mail {
    /// Another shard has a request for a block that lives here.
    Read { requester: Requester, range: Range },
    /// The owner's answer: a pinned range to send.
    Served(Served),
    /// The owner's answer when there is nothing to send.
    Failed { requester: Requester, status: Status, message: String },
    /// A range pinned here for another shard was sent.
    Release(EntryIndex),
    /// A whole reply frame for a connection here.
    Reply { requester: Requester, frame: Vec<u8> },
    /// A part of a block was read from the source, or could not be.
    Filled { run: Run, stay: Stay, result: Result<Arrival, (Blank, FillError)> },
    /// The source has been read for this part for longer than it may take; the read goes on.
    Overdue { run: Run, message: String },
    /// Loads were given up: the receivers of some blocks are gone.
    LoadsGone,
    /// Have this block in memory and say when it is.
    Ensure { key: BlockKey, version: u64, from: FillFrom, reply: flume::Sender<Ensured> },
    /// Lend memory for a block of an object that is being written.
    Lend(Loan),
    /// Take a block in that was written.
    Written(Box<WrittenBlock>),
    /// Take memory back that was lent: `is_lost` if a block was to be in it, which is given up.
    Unlent { blank: Blank, is_lost: bool },
    /// Drop the blocks of a file.
    Drop(DropJob),
    /// Say which of these blocks of a file are here whole, in this version.
    Which {
        file: FileId,
        version: u64,
        blocks: std::ops::Range<u32>,
        reply: flume::Sender<Vec<u32>>,
    },
    /// List the blocks of these entries.
    Enumerate { first: u32, count: u32, reply: flume::Sender<Listing> },
    /// Keep these blocks from being evicted, or no longer.
    Keep { blocks: Vec<(EntryIndex, BlockKey)>, wanted: bool },
    /// This connection of a shard is closed: nothing waits for it any more.
    Gone { shard: u32, token: Token },
    /// Finish what is in flight, then stop.
    Shutdown,
}

/// How long bytes stay that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stay {
    /// Until those that wait for them have them.
    Passing,
    /// Until others need the room.
    Usual,
    /// They are pinned: others do not get their room.
    Pinned,
}

/// One shard's mailbox, as seen by the threads that post.
pub(crate) struct Mailbox {
    sender: flume::Sender<Mail>,
    sleeping: AtomicBool,
    eventfd: OwnedFd,
}

/// The mailboxes of all shards, in shard order.
pub(crate) type Mailboxes = Arc<[Mailbox]>;

impl Mailbox {
    /// Makes a mailbox for at most `capacity` messages, and the end that the shard reads.
    ///
    /// # Errors
    /// As `eventfd`: too many open files.
    pub(crate) fn new(capacity: usize) -> io::Result<(Mailbox, flume::Receiver<Mail>)> {
        let (sender, receiver) = flume::bounded(capacity);
        // It blocks, because a non-blocking eventfd makes io_uring answer EAGAIN instead of waiting.
        let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok((Mailbox { sender, sleeping: AtomicBool::new(false), eventfd }, receiver))
    }

    /// Posts a message. A full mailbox gives it back.
    #[expect(
        clippy::result_large_err,
        reason = "the message itself comes back, to be posted again"
    )]
    pub(crate) fn post(&self, mail: Mail) -> Result<(), Mail> {
        self.sender.try_send(mail).map_err(flume::TrySendError::into_inner)?;
        self.wake();
        Ok(())
    }

    /// Posts a message, waiting for room. Lost only when the shard has stopped.
    pub(crate) async fn post_when_room(&self, mail: Mail) {
        if self.sender.send_async(mail).await.is_ok() {
            self.wake();
        }
    }

    /// Returns how many messages wait.
    pub(crate) fn waiting(&self) -> usize {
        self.sender.len()
    }

    /// True if the shard has stopped reading.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.sender.is_disconnected()
    }

    /// Wakes the shard if it sleeps.
    fn wake(&self) {
        // The swap orders the message before the flag is read: either the shard's last look sees the
        // message, or this sees the flag.
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // Fails only if the counter would pass 2^64 - 2, and then the shard is awake anyway.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }

    /// Says that the shard is about to sleep. It has to look for mail once more afterwards.
    pub(crate) fn going_to_sleep(&self) {
        self.sleeping.store(true, Ordering::SeqCst);
    }

    /// Says that the shard is awake.
    pub(crate) fn woke_up(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// Returns the eventfd that wakes the shard; its ring rings it too.
    pub(crate) fn eventfd(&self) -> &OwnedFd {
        &self.eventfd
    }
}
