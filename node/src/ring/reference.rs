//! Batches that leave by reference: the network card reads the blocks, and nothing is copied.
//!
//! ```text
//!  submit ─► bytes taken: the connection goes on ─► notification: the peer has them, unpin
//! ```
//!
//! Owns the batches that the kernel may still read after they count as sent. Always holds: a batch, and
//! with it the pins of its blocks, is given back only when every notification for it has come; nothing
//! waits for one. If the kernel still copies (loopback, Unix sockets, cards that cannot) it says so, and
//! the connection goes back to plain sends.
//!
//! Linux 6.1 for `sendmsg`, 6.2 for the report of copies (io_uring_enter(2), IORING_OP_SENDMSG_ZC).

use std::io;

use super::send::SendSlot;

/// The notification's result when they were: IORING_NOTIF_USAGE_ZC_COPIED.
const COPIED: u32 = 1 << 31;
/// Smallest batch in bytes, and smallest reply on average, that is worth it. From published measurements
/// of network cards (notifications are coalesced since Linux 6.10); below it a copy is cheaper.
const BATCH_MIN: u64 = 32 << 10;
const REPLY_MIN: u64 = 16 << 10;

/// True if a batch is worth sending by reference.
pub(super) fn is_worth_it(length: u64, reply_count: u32) -> bool {
    length >= BATCH_MIN && length / u64::from(reply_count.max(1)) >= REPLY_MIN
}

/// True if an error means that plain sends would work: no right to lock this many pages, a kernel or a
/// socket that cannot, or a full socket.
pub(super) fn is_curable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOMEM | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOBUFS | libc::EAGAIN)
    )
}

/// Sends by reference that are not over, by number.
#[derive(Default)]
pub(super) struct References {
    slots: Vec<Option<Reference>>,
    free: Vec<u32>,
    /// Bytes of all of them.
    bytes: u64,
}

/// One of them.
pub(super) struct Reference {
    pub(super) slot: SendSlot,
    /// Notifications that are to come.
    notifications: u32,
    /// True if all bytes are with the socket, or it has failed.
    is_sent: bool,
    was_copied: bool,
}

impl References {
    /// Returns the bytes that the kernel may still read.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a send; returns its number.
    pub(super) fn add(&mut self, slot: SendSlot) -> u32 {
        self.bytes += slot.batch.length;
        let reference = Reference { slot, notifications: 0, is_sent: false, was_copied: false };
        match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = Some(reference);
                number
            }
            None => {
                self.slots.push(Some(reference));
                self.slots.len() as u32 - 1
            }
        }
    }

    pub(super) fn get(&mut self, number: u32) -> &mut Reference {
        self.slots[number as usize].as_mut().expect("completions belong to sends under way")
    }

    /// Takes the send, if it is over; its number is free again.
    pub(super) fn take_if_over(&mut self, number: u32) -> Option<(SendSlot, bool)> {
        let reference = self.get(number);
        if !reference.is_sent || reference.notifications > 0 {
            return None;
        }
        let was_copied = reference.was_copied;
        let reference = self.slots[number as usize].take()?;
        self.free.push(number);
        self.bytes -= reference.slot.batch.length;
        Some((reference.slot, was_copied))
    }

    /// Takes all that are under way, to be left to the kernel.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = SendSlot> {
        self.slots.drain(..).flatten().map(|reference| reference.slot)
    }
}

impl Reference {
    /// Notes a result that a notification will follow.
    pub(super) fn expect_notification(&mut self) {
        self.notifications += 1;
    }

    /// Notes a notification; `result` says whether bytes were copied.
    pub(super) fn notified(&mut self, result: i32) {
        self.notifications -= 1;
        self.was_copied |= result as u32 & COPIED != 0;
    }

    /// Notes that nothing more will be submitted.
    pub(super) fn sent(&mut self) {
        self.is_sent = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Batch;

    fn slot(length: u64) -> SendSlot {
        let mut slot = SendSlot::empty();
        slot.batch = Batch { length, ..Batch::default() };
        slot
    }

    #[test]
    fn a_send_is_over_when_it_is_sent_and_every_notification_came() {
        let mut references = References::default();
        let number = references.add(slot(100));
        let other = references.add(slot(1));
        references.get(number).expect_notification();
        references.get(number).expect_notification();
        references.get(number).notified(0);
        references.get(number).sent();
        assert!(references.take_if_over(number).is_none());
        references.get(number).notified(COPIED as i32);
        let (taken, was_copied) = references.take_if_over(number).unwrap();
        assert!(taken.batch.length == 100 && was_copied);
        assert_eq!((references.bytes(), references.count()), (1, 1));
        assert_eq!(references.add(slot(5)), number, "numbers are used again");
        references.get(other).sent();
        assert!(!references.take_if_over(other).unwrap().1);
    }

    #[test]
    fn small_replies_are_copied() {
        assert!(is_worth_it(1 << 20, 1) && is_worth_it(64 << 10, 4));
        assert!(!is_worth_it(16 << 10, 1) && !is_worth_it(64 << 10, 16) && !is_worth_it(0, 0));
    }
}
