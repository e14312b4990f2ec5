//! A batch on its way to a socket: what to do next, and what the kernel may still read.
//!
//! Pieces are gathered and copied by one `sendmsg` in the ring. Sending large blocks by reference, with
//! `sendfile` from the arena's memfd, was built and measured on an EPYC with small pages: 6.6 GB/s beside
//! 6.4 at 1 MiB, 4.5 beside 6.0 at 64 KiB, at twice the client's CPU. It was left out.
//!
//! Always holds: while an operation is under way the slot owns the batch, the iovecs and the msghdr that
//! it refers to, and the connection's socket stays open.

use std::os::fd::RawFd;

use io_uring::types::Fd;
use io_uring::{opcode, squeue};

use crate::connection::{Batch, Piece};
use crate::token::Token;

/// Asks that the notification of a send by reference says whether bytes were copied:
/// IORING_SEND_ZC_REPORT_USAGE.
const REPORT_USAGE: u16 = 1 << 3;
/// Pieces of one `sendmsg`: UIO_MAXIOV.
const PIECES_MAX: usize = 1024;
/// A rest of less than this share of a packet is held back.
const REST_SHARE: u64 = 4;
/// With this many packets one more does not count. Measured with 4 KiB reads, 16 in flight: 15 % more
/// with the small packets held back; with 64 KiB reads, 2 % less.
const PACKETS_MAX: u64 = 4;
/// Iovecs that an emptied slot keeps.
const IOVECS_KEPT: usize = 160;

/// A send under way, or the rest of one that is held back.
pub(super) struct SendSlot {
    pub(super) token: Token,
    pub(super) fd: i32,
    pub(super) batch: Batch,
    /// The batch after it, if the end of the first was held back for it.
    pub(super) second: Option<Batch>,
    /// Bytes of both that are not sent yet.
    pub(super) left: u64,
    /// The bytes of them that are to be sent now.
    pub(super) wanted: u64,
    /// Piece and offset in it that come next.
    pub(super) next_piece: usize,
    pub(super) next_offset: usize,
    /// True if the kernel is to read the blocks where they are.
    pub(super) by_reference: bool,
    iovecs: Vec<libc::iovec>,
    message: Box<libc::msghdr>,
    /// Room for one control message, see [`descriptor_message`].
    control: Box<[u64; 3]>,
}

impl SendSlot {
    pub(super) fn empty() -> SendSlot {
        // SAFETY: a msghdr of zeros is valid: null pointers with lengths of zero.
        #[expect(unsafe_code, reason = "msghdr has private padding and no constructor")]
        let message = unsafe { std::mem::zeroed::<libc::msghdr>() };
        SendSlot {
            token: Token { index: 0, generation: 0 },
            fd: -1,
            batch: Batch::default(),
            second: None,
            left: 0,
            wanted: 0,
            next_piece: 0,
            next_offset: 0,
            by_reference: false,
            iovecs: Vec::new(),
            message: Box::new(message),
            control: Box::new([0; 3]),
        }
    }

    /// Takes the batch, once nothing is under way.
    pub(super) fn take_batch(&mut self) -> Batch {
        self.iovecs.clear();
        self.iovecs.shrink_to(IOVECS_KEPT);
        std::mem::take(&mut self.batch)
    }

    /// Makes the operation that sends `count` of the bytes that are left, or as many of these as one
    /// `sendmsg` takes; its user data is still to be set.
    pub(super) fn entry(&mut self, count: u64) -> squeue::Entry {
        self.iovecs.clear();
        self.wanted = count;
        let mut missing = count;
        let mut skip = self.next_offset;
        let first = self.batch.pieces[self.next_piece..].iter().map(|piece| (&self.batch, piece));
        let second = self.second.iter();
        let second = second.flat_map(|batch| batch.pieces.iter().map(move |piece| (batch, piece)));
        for (batch, piece) in first.chain(second).take(PIECES_MAX) {
            let (address, length) = match *piece {
                Piece::Head { start, length } => {
                    let head = &batch.head[start..start + length];
                    (head.as_ptr().expose_provenance(), length)
                }
                Piece::Memory(segment) => (segment.address, segment.length),
            };
            let length = (length - skip).min(missing as usize);
            if length == 0 {
                break;
            }
            let base = std::ptr::with_exposed_provenance_mut(address + skip);
            self.iovecs.push(libc::iovec { iov_base: base, iov_len: length });
            missing -= length as u64;
            skip = 0;
        }
        self.message.msg_iov = self.iovecs.as_mut_ptr();
        self.message.msg_iovlen = self.iovecs.len();
        self.message.msg_control = std::ptr::null_mut();
        self.message.msg_controllen = 0;
        let is_start = (self.next_piece, self.next_offset) == (0, 0);
        if let (Some(descriptor), true) = (self.batch.descriptor, is_start) {
            *self.control = descriptor_message(descriptor);
            self.message.msg_control = self.control.as_mut_ptr().cast();
            self.message.msg_controllen = size_of_val(&*self.control);
        }
        // The flag is not WAITALL, because a short send is how we learn that a slow client takes
        // something.
        let flags = libc::MSG_NOSIGNAL as u32;
        let message = &raw const *self.message;
        if self.by_reference {
            return opcode::SendMsgZc::new(Fd(self.fd), message)
                .ioprio(REPORT_USAGE)
                .flags(flags)
                .build();
        }
        opcode::SendMsg::new(Fd(self.fd), message).flags(flags).build()
    }

    /// Counts sent bytes. Returns the first batch if it is done and there is a second one, which then is
    /// the first.
    pub(super) fn advance(&mut self, count: u64) -> Option<Batch> {
        self.left -= count;
        self.wanted -= count;
        let mut count = count as usize;
        let mut done = None;
        while count > 0 || self.next_piece == self.batch.pieces.len() {
            let Some(piece) = self.batch.pieces.get(self.next_piece) else {
                let Some(second) = self.second.take() else { break };
                done = Some(std::mem::replace(&mut self.batch, second));
                self.next_piece = 0;
                continue;
            };
            let length = match *piece {
                Piece::Head { length, .. } => length,
                Piece::Memory(segment) => segment.length,
            } - self.next_offset;
            if count < length {
                self.next_offset += count;
                break;
            }
            count -= length;
            self.next_piece += 1;
            self.next_offset = 0;
        }
        done
    }

    /// Returns how many of the bytes that are left to send now, if the connection's packets hold
    /// `segment` bytes: whole packets, if the rest would be a small one. The rest goes with the next
    /// replies, or soon by itself, because a packet costs much the same whatever it holds.
    pub(super) fn worth_sending(&self, segment: u64) -> u64 {
        if segment == 0 || self.left <= segment || self.left > segment * PACKETS_MAX {
            return self.left;
        }
        let rest = self.left % segment;
        if rest < segment / REST_SHARE { self.left - rest } else { self.left }
    }
}

/// Makes a control message that gives the receiver a copy of a descriptor, as cmsg(3) lays it out: its
/// length, SOL_SOCKET and SCM_RIGHTS, the descriptor, and padding.
fn descriptor_message(descriptor: RawFd) -> [u64; 3] {
    const LENGTH: usize = size_of::<libc::cmsghdr>() + size_of::<RawFd>();
    const _: () = assert!(size_of::<libc::cmsghdr>() == 16);
    let pair = |first: i32, second: i32| {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&first.to_ne_bytes());
        bytes[4..].copy_from_slice(&second.to_ne_bytes());
        u64::from_ne_bytes(bytes)
    };
    [LENGTH as u64, pair(libc::SOL_SOCKET, libc::SCM_RIGHTS), pair(descriptor, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Segment;

    /// Makes a batch of replies: a head of 60 bytes, and `payload` bytes of memory, each.
    fn batch(replies: usize, payload: usize) -> Batch {
        let mut batch = Batch::default();
        for _ in 0..replies {
            batch.push_head(0, |head| head.extend_from_slice(&[7; 60]));
            // The address is never looked at, because nothing is submitted.
            batch.pieces.push(Piece::Memory(Segment { address: 1 << 20, length: payload }));
            batch.length += payload as u64;
        }
        batch
    }

    fn slot(batch: Batch) -> SendSlot {
        let mut slot = SendSlot::empty();
        slot.left = batch.length;
        slot.batch = batch;
        slot
    }

    fn submitted(slot: &SendSlot) -> u64 {
        slot.iovecs.iter().map(|piece| piece.iov_len as u64).sum()
    }

    #[test]
    fn a_small_rest_is_held_back_and_a_large_one_is_not() {
        let worth =
            |replies, payload, segment| slot(batch(replies, payload)).worth_sending(segment);
        let size = 4156;
        assert_eq!(worth(16, 4096, 65_483), 65_483, "a little more than a packet");
        assert_eq!(worth(15, 4096, 65_483), 15 * size, "less than a packet");
        assert_eq!(worth(22, 4096, 65_483), 22 * size, "a third of another packet");
        assert_eq!(worth(16, 4096, 0), 16 * size, "where nothing is held back");
        assert_eq!(worth(80, 4096, 65_483), 80 * size, "many packets");
    }

    #[test]
    fn a_rest_goes_with_the_next_batch() {
        let mut slot = slot(batch(16, 4096));
        let total = slot.left;
        slot.entry(65_483);
        assert_eq!(submitted(&slot), 65_483);
        // The socket takes it in two steps.
        assert!(slot.advance(10_000).is_none());
        assert_eq!(slot.wanted, 55_483);
        slot.entry(slot.wanted);
        assert_eq!(submitted(&slot), 55_483);
        assert!(slot.advance(55_483).is_none());
        assert_eq!((slot.wanted, slot.left), (0, total - 65_483));
        let second = batch(2, 100);
        slot.left += second.length;
        slot.second = Some(second);
        slot.entry(slot.left);
        assert_eq!(submitted(&slot), total - 65_483 + 320);
        // All of the first and a part of the second.
        let done = slot.advance(total - 65_483 + 100).expect("the first batch is done");
        assert_eq!(done.reply_count, 16);
        assert_eq!((slot.batch.reply_count, slot.left), (2, 220));
        assert!(slot.advance(220).is_none());
        assert_eq!(slot.left, 0);
    }

    #[test]
    fn no_more_pieces_are_submitted_than_the_kernel_takes() {
        let mut slot = slot(batch(PIECES_MAX, 10));
        slot.entry(slot.left);
        let first = submitted(&slot);
        assert_eq!(first, PIECES_MAX as u64 / 2 * 70);
        slot.advance(first);
        assert_eq!(slot.wanted, slot.left, "the rest is wanted as well");
    }
}
