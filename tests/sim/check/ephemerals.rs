//! Ephemeral nodes live as long as their session, vanish once and never come back: ZooKeeper's
//! Programmer's Guide, "Ephemeral Nodes". Every path is asked for once in a run, so a path is a
//! node.

use std::collections::{BTreeMap, BTreeSet};

use crate::observe::{Check, Ending, Seen, What};

use super::order::exists;

/// See the module.
#[derive(Default)]
pub(super) struct Ephemerals {
    /// By replica: life, last index, and its ephemeral nodes with their owners.
    shown: BTreeMap<usize, (u32, u64, BTreeMap<String, i64>)>,
    /// Nodes that are gone, and an index at which they were.
    gone: BTreeMap<String, u64>,
    /// Nodes that some client asked to delete.
    deleted: BTreeSet<String>,
    /// Nodes whose creation was acknowledged, and their owners.
    made: BTreeMap<String, i64>,
}

impl Check for Ephemerals {
    fn property(&self) -> &'static str {
        "ephemerals vanish with their session, once and only once"
    }

    fn see(&mut self, _at_us: u64, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Asked { asked, .. } => {
                if let What::Delete { path } = &asked.what {
                    self.deleted.insert(path.clone());
                }
            }
            Seen::Answered { session, asked, answer, .. } => {
                if let What::Ephemeral { path } = &asked.what
                    && answer.is_ok()
                {
                    self.made.insert(path.clone(), *session);
                }
            }
            Seen::Turned { node, life, replica } => {
                let applied = replica.applied();
                let before = self.shown.get(node);
                if before.is_some_and(|(known, last, _)| (known, last) == (life, &applied)) {
                    return Ok(());
                }
                let state = replica.state();
                let now: BTreeMap<String, i64> = state
                    .sessions()
                    .flat_map(|(id, _)| state.ephemerals(id).into_iter().map(move |it| (it, id)))
                    .collect();
                if let Some(path) = now
                    .keys()
                    .find(|path| self.gone.get(*path).is_some_and(|gone| *gone <= applied))
                {
                    return Err(format!("{path} was gone and is back on replica {}", node + 1));
                }
                if let Some((_, last, nodes)) = before.filter(|(_, last, _)| *last <= applied) {
                    for (path, owner) in nodes.iter().filter(|(path, _)| !now.contains_key(*path)) {
                        self.gone.entry(path.clone()).or_insert(applied);
                        if state.session(*owner).is_some() && !self.deleted.contains(path) {
                            return Err(format!(
                                "{path} vanished between {last} and {applied} on replica {}, \
                                 its session {owner:#x} lives",
                                node + 1
                            ));
                        }
                    }
                }
                self.shown.insert(*node, (*life, applied, now));
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, ending: &Ending<'_>) -> Result<(), String> {
        for (path, owner) in &self.made {
            let lives = ending.state.session(*owner).is_some();
            let is_there = exists(ending.state, path);
            if is_there && !lives {
                return Err(format!("{path} outlived its session {owner:#x}"));
            }
            if !is_there && lives && !self.deleted.contains(path) {
                return Err(format!("{path} is gone, its session {owner:#x} lives"));
            }
        }
        Ok(())
    }
}
