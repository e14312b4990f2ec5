//! The properties that every run must have, one in each file.

use crate::observe::{Check, Ending, Seen, Violation};
use crate::options::Options;

mod births;
mod digests;
mod durability;
mod ephemerals;
mod expiry;
mod leaders;
mod order;
mod registers;
mod watches;

/// All of them.
pub(crate) struct Checks {
    list: Vec<Box<dyn Check>>,
}

impl Checks {
    pub(crate) fn new(options: &Options) -> Checks {
        let timeout_us = options.session_timeout_ms * 1000;
        let list: Vec<Box<dyn Check>> = vec![
            Box::new(births::Births::default()),
            Box::new(leaders::Leaders::default()),
            Box::new(digests::Digests::default()),
            Box::new(order::Order::default()),
            Box::new(watches::Watches::default()),
            Box::new(ephemerals::Ephemerals::default()),
            Box::new(expiry::Expiry::new(options.node_count, timeout_us)),
            Box::new(durability::Durability::default()),
            Box::new(registers::Registers::default()),
        ];
        Checks { list }
    }

    /// Shows all of them what happened; returns the first that is broken.
    pub(crate) fn see(&mut self, at_us: u64, seen: &Seen<'_>) -> Option<Violation> {
        self.list.iter_mut().find_map(|check| {
            let text = check.see(at_us, seen).err()?;
            Some(Violation { property: check.property(), text, at_us })
        })
    }

    /// Shows all of them the end; returns the first that is broken.
    pub(crate) fn end(&mut self, ending: &Ending<'_>) -> Option<Violation> {
        self.list.iter_mut().find_map(|check| {
            let text = check.end(ending).err()?;
            Some(Violation { property: check.property(), text, at_us: ending.at_us })
        })
    }

    /// Returns how many questions were too hard to decide.
    pub(crate) fn undecided(&self) -> u64 {
        self.list.iter().map(|check| check.undecided()).sum()
    }
}
