//! One client connection's state: bytes that are not a frame yet, and replies that are not sent yet.
//!
//! Owns both and the accounts that bound them. Always holds: a batch that the kernel may read from is
//! not here but with the ring; every pin in a batch is released when the batch comes back. The meaning
//! of frames is left to the worker, sockets to the runtime.

use std::collections::HashMap;
use std::os::fd::RawFd;

use millrace_proto::frame::{self, Header};
use millrace_proto::message::Range;
use millrace_proto::proof::{Exchange, Role};

use crate::cache::{BlockKey, EntryIndex};
use crate::mailbox::Requester;
use crate::memory::Segment;
use crate::owner::{Loads, Owner};
use crate::token::Token;
use crate::upload::OpenUpload;

/// Receive buffers of a shard, a power of two.
pub(crate) const RECEIVE_BUFFER_COUNT: u16 = 256;
/// Size of each in bytes. Derived: 16 reads take 1.3 KiB, a batch of 200 ranges 7.3 KiB.
pub(crate) const RECEIVE_BUFFER_SIZE: usize = 8 << 10;

/// A pinned block that a batch sends from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pin {
    /// Of this shard.
    Local(EntryIndex),
    /// Of another shard, which has to be notified.
    Remote { owner: u32, entry: EntryIndex },
}

/// What a reply holds until it is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold {
    pub pin: Pin,
    /// Bytes of the block's pages that count for it; 0 if the reply before it holds the same block.
    pub bytes: u64,
}

/// A stretch of bytes to send.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Piece {
    /// Bytes of the batch's own `head`.
    Head { start: usize, length: usize },
    /// Bytes of the arena, pinned.
    Memory(Segment),
}

/// Replies that are sent together.
#[derive(Default, Debug)]
pub(crate) struct Batch {
    /// Headers and bodies of the replies.
    pub head: Vec<u8>,
    /// What to send, in order.
    pub pieces: Vec<Piece>,
    /// What to release afterwards.
    pub pins: Vec<Pin>,
    /// Bytes that the pieces hold.
    pub length: u64,
    /// Requests that this batch answers.
    pub reply_count: u32,
    /// Bytes that those requests asked for.
    pub asked: u64,
    /// Bytes of the blocks that `pins` holds, whole pages.
    pub pinned: u64,
    /// Bytes of blocks that were copied into `head`.
    pub copied: u64,
    /// A descriptor that goes with the first byte.
    pub descriptor: Option<RawFd>,
}

impl Batch {
    /// Appends the reply to a read: its header and body, then the pinned bytes.
    pub(crate) fn push_read(
        &mut self,
        header: Header,
        checksums: &[u32],
        segments: &[Segment],
        hold: Hold,
        asked: u32,
    ) {
        self.push_head(asked, |head| frame::encode_read_reply(head, header, checksums));
        for segment in segments {
            self.pieces.push(Piece::Memory(*segment));
            self.length += segment.length as u64;
        }
        self.pins.push(hold.pin);
        self.pinned += hold.bytes;
    }

    /// Appends a reply that has no payload, as `encode` writes it.
    pub(crate) fn push_head(&mut self, asked: u32, encode: impl FnOnce(&mut Vec<u8>)) {
        let start = self.head.len();
        encode(&mut self.head);
        let length = self.head.len() - start;
        match self.pieces.last_mut() {
            Some(Piece::Head { length: last, .. }) => *last += length,
            _ => self.pieces.push(Piece::Head { start, length }),
        }
        self.length += length as u64;
        self.reply_count += 1;
        self.asked += u64::from(asked);
    }

    /// True if the batch has no memory of its own yet.
    pub(crate) fn is_unused(&self) -> bool {
        self.head.capacity() == 0
    }

    /// Appends the reply to a read whose bytes are copied: as a head, with the payload behind it.
    pub(crate) fn push_copy(
        &mut self,
        header: Header,
        checksums: &[u32],
        payload: &[u8],
        asked: u32,
    ) {
        self.push_head(asked, |head| {
            frame::encode_read_reply(head, header, checksums);
            head.extend_from_slice(payload);
        });
        self.copied += payload.len() as u64;
    }

    /// Returns what the batch counts for, without what it holds.
    pub(crate) fn accounts(&self) -> Batch {
        let Batch { length, reply_count, asked, .. } = *self;
        Batch { length, reply_count, asked, ..Batch::default() }
    }

    /// True if there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Empties the batch, keeping its memory unless one large reply made it grow.
    pub(crate) fn clear(&mut self) {
        self.head.clear();
        self.head.shrink_to(HEAD_KEPT);
        self.pieces.clear();
        self.pieces.shrink_to(PIECES_KEPT);
        self.pins.clear();
        self.pins.shrink_to(PIECES_KEPT);
        self.length = 0;
        self.reply_count = 0;
        self.asked = 0;
        self.pinned = 0;
        self.copied = 0;
        self.descriptor = None;
    }
}

/// Bytes of `head` that a connection keeps between sends. Derived: 80 replies to small reads.
const HEAD_KEPT: usize = 8 << 10;
/// Pieces that it keeps: two for each of those replies.
const PIECES_KEPT: usize = 160;

/// How far a connection is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Phase {
    /// In use.
    Open,
    /// The client sends no more; what it has sent is still answered.
    HalfClosed,
    /// No more requests are taken; closes when those in flight are answered.
    Draining,
    /// Everything was sent and the sending side is shut; what still comes in is thrown away, so that
    /// the client reads the last reply before it sees the end.
    Lingering,
    /// The runtime was told to close it.
    Closed,
}

/// The ranges of a `ReadMany` that were not looked at yet.
#[derive(Debug)]
pub(crate) struct Rest {
    /// Header of the request.
    pub header: Header,
    /// Time after which the answer is of no use, in the node's milliseconds.
    pub deadline: Option<u64>,
    /// Index of the next range.
    pub part: u16,
    /// That range and the ones after it.
    pub ranges: std::vec::IntoIter<Range>,
}

/// How receiving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReceiveEnd {
    /// The client sends no more, and may still read.
    Finished,
    /// The client is gone.
    Reset,
    /// The connection failed, and the client may not know it.
    Broken,
}

/// One client.
pub(crate) struct Connection {
    pub token: Token,
    /// True if it came over a Unix socket.
    pub is_local: bool,
    /// Bytes of a frame that is not complete, or of requests that wait for room.
    pub stash: Vec<u8>,
    /// When the frame that is not complete began, in the node's milliseconds.
    pub frame_since: u64,
    /// Replies for the next send.
    pub building: Batch,
    /// Emptied batches of earlier sends, for the next ones.
    spares: [Batch; 2],
    /// True if a batch is with the kernel.
    pub sending: bool,
    /// True if it is among the connections to send to when the turn ends.
    pub send_asked: bool,
    /// True if receiving was stopped because a limit was reached.
    pub paused: bool,
    /// Requests taken whose replies are not sent.
    pub in_flight: u32,
    /// Bytes that they asked for.
    pub asked: u64,
    /// Bytes of the blocks that its replies hold until they are sent, whole pages. A block that several
    /// replies hold may count several times.
    pub pinned: u64,
    /// Reads that other shards were asked for and have not answered.
    pub forwarded: u32,
    /// `Ring` requests that are not answered.
    pub ring_count: u32,
    /// Ranges of a batch that wait for room.
    pub rest: Option<Box<Rest>>,
    /// When counting began how fast the client takes what is sent, in the node's milliseconds.
    pub taken_since: u64,
    /// Bytes that it has taken since then.
    pub taken: u64,
    /// Owns the work on the side thread; None until the client first asks for some.
    pub owner: Option<Owner>,
    /// Objects that it writes; they are given up with it.
    pub uploads: Vec<OpenUpload>,
    /// Loads under way of all connections of its machine.
    pub loads_of_machine: Loads,
    pub phase: Phase,
    /// True if the client takes checksums that cover the identity of the block.
    pub covers_identity: bool,
    /// True if the memory was passed to it.
    pub is_attached: bool,
    /// The role that the client has proved; None before that.
    pub role: Option<Role>,
    /// An exchange of proofs that has begun.
    pub exchange: Option<Box<Exchange>>,
    /// True if the end of the connection came from the client.
    pub client_ended: bool,
    /// Places of its leases in the shard's table of them.
    pub leases: HashMap<BlockKey, u32>,
    /// When a byte came in while nothing was sent, a send began or went on, or the phase changed, in the
    /// node's milliseconds.
    pub active_at: u64,
}

impl Connection {
    /// Makes the state of a connection that was just accepted.
    pub(crate) fn new(token: Token, now: u64, is_local: bool) -> Connection {
        Connection {
            token,
            is_local,
            stash: Vec::new(),
            frame_since: now,
            building: Batch::default(),
            spares: Default::default(),
            sending: false,
            send_asked: false,
            paused: false,
            in_flight: 0,
            asked: 0,
            pinned: 0,
            forwarded: 0,
            ring_count: 0,
            rest: None,
            taken_since: now,
            taken: 0,
            owner: None,
            uploads: Vec::new(),
            loads_of_machine: Loads::default(),
            phase: Phase::Open,
            covers_identity: false,
            is_attached: false,
            role: None,
            exchange: None,
            client_ended: false,
            leases: HashMap::new(),
            active_at: now,
        }
    }

    /// True if a part of a frame has come, and the rest is waited for.
    pub(crate) fn has_part(&self) -> bool {
        !self.stash.is_empty() && !self.paused && self.phase == Phase::Open
    }

    /// Counts a request.
    pub(crate) fn take(&mut self, asked: u32) {
        self.in_flight += 1;
        self.asked += u64::from(asked);
    }

    /// Counts the answer to a request, if another shard gave it.
    #[inline]
    pub(crate) fn count_answer(&mut self, requester: &Requester) {
        self.forwarded -= u32::from(requester.is_forwarded);
    }

    /// Empties a batch that was sent, and keeps its memory for the next ones.
    pub(crate) fn keep(&mut self, mut batch: Batch) {
        batch.clear();
        if let Some(spare) = self.spares.iter_mut().find(|spare| spare.is_unused()) {
            *spare = batch;
        }
    }

    /// Takes the replies to send, if no send is under way and the socket is not to be closed.
    pub(crate) fn next_batch(&mut self, now: u64) -> Option<Batch> {
        self.send_asked = false;
        if self.sending || self.building.is_empty() || self.phase == Phase::Closed {
            return None;
        }
        self.sending = true;
        self.active_at = now;
        self.taken_since = now;
        self.taken = 0;
        // The first that has memory of its own, if one has.
        let spare = usize::from(self.spares[0].is_unused());
        let spare = std::mem::take(&mut self.spares[spare]);
        Some(std::mem::replace(&mut self.building, spare))
    }
}
