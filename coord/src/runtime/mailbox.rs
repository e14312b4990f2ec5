//! The way from other threads to the loop: letters, and a bell that rings only if the loop sleeps.
//!
//! Waking a thread costs microseconds on both sides. A loop that is awake is not woken, because it looks
//! into the mailbox in each pass. Always holds: what was put here before the loop sleeps is seen before it
//! sleeps, and what is put here while it sleeps wakes it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mio::{Registry, Token, Waker};

use super::Letter;

/// Most letters that wait. Guessed: each of our threads has few under way.
const LETTERS_MAX: usize = 1024;
/// Most letters that wait when an operator's is taken. This is lower, so that operators cannot keep our
/// threads from writing.
const LETTERS_OFFERED_MAX: usize = 256;
const _: () = assert!(LETTERS_OFFERED_MAX < LETTERS_MAX / 2);

struct Bell {
    is_asleep: AtomicBool,
    waker: Waker,
    /// The last durable append. This is not a letter, because one number stands for all before it. So the
    /// log thread never waits for the loop, and the loop may wait for the log thread.
    durable: AtomicU64,
}

/// The other threads' end of the mailbox. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Mailbox {
    letters: flume::Sender<Letter>,
    bell: Arc<Bell>,
}

/// The loop's end of the mailbox.
pub(crate) struct Letters {
    letters: flume::Receiver<Letter>,
    bell: Arc<Bell>,
}

/// Makes a mailbox whose bell is `token`.
///
/// # Errors
/// Fails if no eventfd could be made.
pub(crate) fn mailbox(registry: &Registry, token: Token) -> io::Result<(Mailbox, Letters)> {
    let (sender, receiver) = flume::bounded(LETTERS_MAX);
    let bell = Arc::new(Bell {
        is_asleep: AtomicBool::new(false),
        waker: Waker::new(registry, token)?,
        durable: AtomicU64::new(0),
    });
    let letters = Letters { letters: receiver, bell: Arc::clone(&bell) };
    Ok((Mailbox { letters: sender, bell }, letters))
}

impl Mailbox {
    /// Adds a letter. Waits while the mailbox is full. True if the loop still runs.
    pub(crate) fn send(&self, letter: Letter) -> bool {
        let is_sent = self.letters.send(letter).is_ok();
        self.ring();
        is_sent
    }

    /// Adds a letter, or drops it if too many wait. True if it was added and the loop still runs.
    pub(crate) fn offer(&self, letter: Letter) -> bool {
        self.letters.len() < LETTERS_OFFERED_MAX && self.send(letter)
    }

    /// Notes that appends up to `number` are durable.
    pub(crate) fn log_durable(&self, number: u64) {
        self.bell.durable.store(number, Ordering::SeqCst);
        self.ring();
    }

    fn ring(&self) {
        if self.bell.is_asleep.swap(false, Ordering::SeqCst)
            && let Err(error) = self.bell.waker.wake()
        {
            // The loop wakes by its timers, some milliseconds late.
            tracing::warn!(%error, "the loop could not be woken");
        }
    }
}

impl Letters {
    /// Announces that the loop will sleep. True if it may, because nothing came.
    pub(crate) fn may_sleep(&self, durable_seen: u64) -> bool {
        self.bell.is_asleep.store(true, Ordering::SeqCst);
        if !self.has_news(durable_seen) {
            return true;
        }
        self.woke();
        false
    }

    /// True if something came since the loop looked.
    pub(crate) fn has_news(&self, durable_seen: u64) -> bool {
        !self.letters.is_empty() || self.durable() != durable_seen
    }

    /// Notes that the loop is awake.
    pub(crate) fn woke(&self) {
        self.bell.is_asleep.store(false, Ordering::SeqCst);
    }

    /// Returns the number of the last durable append.
    pub(crate) fn durable(&self) -> u64 {
        self.bell.durable.load(Ordering::SeqCst)
    }

    /// Returns the next letter.
    pub(crate) fn next(&self) -> Option<Letter> {
        self.letters.try_recv().ok()
    }
}
