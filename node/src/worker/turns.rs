//! The next miss: fills are shared out between clients.
//!
//! Owns the misses that wait for their turn, in the order of each client, and what the fills of each
//! client take. Always holds: a client has at most its share of fills under way; while some wait, the
//! next fill is for the client whose turn it is; a client that is gone waits for nothing.

use std::collections::{HashMap, VecDeque};

use millrace_proto::message::Range;

use crate::cache::BlockKey;
use crate::mailbox::Requester;
use crate::token::Token;

/// Misses that may wait for their turn on a shard. Guessed: 12 MiB of them.
const WAITING_MAX: usize = 1 << 16;

/// Fills of a client that may be under way however many clients there are. Derived: one is read while
/// the next one waits.
const COUNT_MIN: u32 = 2;

/// The client for which a block is brought in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Payer {
    /// The connection of this shard.
    Client(u32, Token),
    /// Loads and hand-overs together. They ask again by themselves.
    Loads,
}

/// Which chunks of a block a miss brings in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amount {
    /// Those that are needed and not here, and some after them for a reader that goes on.
    Needed,
    /// All, because other nodes give whole blocks.
    Whole,
}

/// A read of bytes that are not here.
pub(super) struct Miss {
    pub(super) requester: Requester,
    pub(super) range: Range,
    pub(super) key: BlockKey,
    /// Where the range begins in the block.
    pub(super) offset: u32,
    pub(super) amount: Amount,
}

#[derive(Default)]
struct Account {
    /// Blocks that are on their way in for this client, and their bytes.
    count: u32,
    bytes: u64,
    misses: VecDeque<Miss>,
    /// True if it is in the line of those whose turn comes.
    is_in_line: bool,
}

/// What the fills of one client may take, as long as there is no other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) count: u32,
    pub(super) bytes: u64,
}

/// The misses that wait, and the accounts of clients that have fills or misses.
pub(super) struct Turns {
    accounts: HashMap<Payer, Account>,
    /// Clients with a miss that waits and room in their share.
    line: VecDeque<Payer>,
    waiting_count: usize,
    share: Share,
    /// Length of a whole block in bytes.
    block_size: u32,
}

impl Turns {
    pub(super) fn new(share: Share, block_size: u32) -> Turns {
        let (accounts, line) = (HashMap::new(), VecDeque::new());
        Turns { accounts, line, waiting_count: 0, share, block_size }
    }

    /// Returns the number of misses that wait.
    pub(super) fn waiting_count(&self) -> usize {
        self.waiting_count
    }

    /// True if a fill of `length` bytes is within the payer's share, which is the smaller the more
    /// payers there are. One fill always is, whatever its length.
    pub(super) fn has_room(&self, payer: Payer, length: u32) -> bool {
        let Some(account) = self.accounts.get(&payer) else { return true };
        let count_max = (self.share.count / self.accounts.len() as u32).max(COUNT_MIN);
        account.count == 0
            || (account.count < count_max && account.bytes + u64::from(length) <= self.share.bytes)
    }

    /// True if misses of this payer wait, so that another one has to wait behind them.
    pub(super) fn has_waiting(&self, payer: Payer) -> bool {
        self.accounts.get(&payer).is_some_and(|account| !account.misses.is_empty())
    }

    /// Counts a fill that began.
    pub(super) fn began(&mut self, payer: Payer, length: u32) {
        let account = self.accounts.entry(payer).or_default();
        account.count += 1;
        account.bytes += u64::from(length);
    }

    /// Counts a fill that ended.
    pub(super) fn ended(&mut self, payer: Payer, length: u32) {
        // The account of a client that went is gone with it.
        let Some(account) = self.accounts.get_mut(&payer) else { return };
        account.count = account.count.saturating_sub(1);
        account.bytes = account.bytes.saturating_sub(u64::from(length));
        self.settle(payer);
    }

    /// Puts a miss in line. True if there was room; else it is dropped.
    pub(super) fn wait(&mut self, payer: Payer, miss: Miss) -> bool {
        if self.waiting_count >= WAITING_MAX {
            return false;
        }
        self.waiting_count += 1;
        self.accounts.entry(payer).or_default().misses.push_back(miss);
        self.settle(payer);
        true
    }

    /// Returns the miss whose turn it is.
    pub(super) fn next(&mut self) -> Option<(Payer, Miss)> {
        loop {
            let payer = self.line.pop_front()?;
            // One in line may have lost its misses to their deadlines meanwhile.
            let Some(account) = self.accounts.get_mut(&payer) else { continue };
            account.is_in_line = false;
            if let Some(miss) = account.misses.pop_front() {
                self.waiting_count -= 1;
                return Some((payer, miss));
            }
            self.settle(payer);
        }
    }

    /// Puts a miss back whose fill could not begin: it stays the first of its client, whose turn comes
    /// again.
    pub(super) fn put_back(&mut self, payer: Payer, miss: Miss) {
        self.waiting_count += 1;
        self.accounts.entry(payer).or_default().misses.push_front(miss);
        self.settle(payer);
    }

    /// Puts the client in line if a miss of it waits and its share has room, and drops an account that
    /// holds nothing.
    pub(super) fn settle(&mut self, payer: Payer) {
        let has_room = self.has_room(payer, self.block_size);
        let Some(account) = self.accounts.get_mut(&payer) else { return };
        if account.misses.is_empty() {
            if account.count == 0 {
                self.accounts.remove(&payer);
            }
        } else if has_room && !account.is_in_line {
            account.is_in_line = true;
            self.line.push_back(payer);
        }
    }

    /// Forgets a client that is gone; returns its misses.
    pub(super) fn forget(&mut self, payer: Payer) -> VecDeque<Miss> {
        let Some(account) = self.accounts.remove(&payer) else { return VecDeque::new() };
        self.waiting_count -= account.misses.len();
        self.line.retain(|other| *other != payer);
        account.misses
    }

    /// Takes the misses out whose deadline has passed.
    pub(super) fn expire(&mut self, now: u64) -> Vec<Requester> {
        let mut expired = Vec::new();
        if self.waiting_count == 0 {
            return expired;
        }
        for account in self.accounts.values_mut() {
            account.misses.retain(|miss| {
                let is_late = miss.requester.deadline.is_some_and(|deadline| deadline <= now);
                if is_late {
                    expired.push(miss.requester);
                }
                !is_late
            });
        }
        self.waiting_count -= expired.len();
        expired
    }
}
