//! At most one replica leads in a term: "Election Safety", Raft paper, figure 3.

use std::collections::BTreeMap;

use crate::observe::{Check, Seen};

/// The replicas that lead or led in each term.
#[derive(Default)]
pub(super) struct Leaders {
    terms: BTreeMap<u64, usize>,
}

impl Check for Leaders {
    fn property(&self) -> &'static str {
        "at most one leader a term"
    }

    fn see(&mut self, _at_us: u64, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Turned { node, replica, .. } = seen else { return Ok(()) };
        let (term, leads) = replica.leadership();
        // A replica that forms an ensemble leads only itself, and another one may do the same.
        if !leads || !replica.is_formed() {
            return Ok(());
        }
        let first = *self.terms.entry(term).or_insert(*node);
        match first == *node {
            true => Ok(()),
            false => {
                Err(format!("replicas {} and {} both lead in term {term}", first + 1, node + 1))
            }
        }
    }
}
