//! A first-in first-out queue of entries, linked through the entries themselves.
//!
//! Owns head, tail and the sums. Always holds: an entry is in at most one queue, and the queue's page
//! count is the sum over its entries.

use super::Entry;

/// No entry.
const NONE: u32 = u32::MAX;

/// An entry's neighbours in its queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    /// The one that came later.
    newer: u32,
    /// The one that came earlier.
    older: u32,
}

impl Links {
    pub(super) const NONE: Links = Links { newer: NONE, older: NONE };
}

pub(super) struct Queue {
    newest: u32,
    oldest: u32,
    length: u32,
    page_count: u32,
}

impl Queue {
    pub(super) fn new() -> Queue {
        Queue { newest: NONE, oldest: NONE, length: 0, page_count: 0 }
    }

    pub(super) fn length(&self) -> u32 {
        self.length
    }

    /// Returns the pages that the entries hold.
    pub(super) fn page_count(&self) -> u32 {
        self.page_count
    }

    /// Returns the entry that came first.
    pub(super) fn tail(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    pub(super) fn push(&mut self, entries: &mut [Option<Entry>], index: u32, page_count: u32) {
        links(entries, index).newer = NONE;
        links(entries, index).older = self.newest;
        if self.newest == NONE {
            self.oldest = index;
        } else {
            links(entries, self.newest).newer = index;
        }
        self.newest = index;
        self.length += 1;
        self.page_count += page_count;
    }

    /// Notes that an entry of the queue holds this many pages more.
    pub(super) fn grow(&mut self, page_count: u32) {
        self.page_count += page_count;
    }

    pub(super) fn remove(&mut self, entries: &mut [Option<Entry>], index: u32, page_count: u32) {
        let Links { newer, older } = *links(entries, index);
        if newer == NONE {
            self.newest = older;
        } else {
            links(entries, newer).older = older;
        }
        if older == NONE {
            self.oldest = newer;
        } else {
            links(entries, older).newer = newer;
        }
        self.length -= 1;
        self.page_count -= page_count;
    }
}

fn links(entries: &mut [Option<Entry>], index: u32) -> &mut Links {
    &mut entries[index as usize].as_mut().expect("a queued entry is in use").links
}
