//! What was acknowledged is there at the end, and what was refused or never asked for is not. This is
//! Jepsen's "set" test for nodes; registers have a check of their own.

use std::collections::{BTreeMap, BTreeSet};

use millrace_coord::state::{State, read};
use millrace_proto::zookeeper::{Error, Reader, Request, Writer};

use super::order::exists;
use crate::observe::{Check, Ending, Seen, What};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Asked for, without an answer.
    Unknown,
    Acknowledged,
    Refused,
}

/// See the module.
#[derive(Default)]
pub(super) struct Durability {
    journal: BTreeMap<String, Fate>,
    sequential: BTreeSet<String>,
    deleted: BTreeSet<String>,
    /// Sequential nodes that were asked for.
    asked: usize,
}

fn children(state: &State, path: &str) -> Vec<String> {
    let mut record = Vec::new();
    let request = Request::GetChildren { path, watch: false };
    read::read(state, &request, 0, &[], true, &mut Writer::new(&mut record))
        .expect("no client deletes what all runs begin with");
    let names = Reader::new(&record).list(Reader::path).expect("a reply is readable");
    names.unwrap_or_default().into_iter().map(|name| format!("{path}/{name}")).collect()
}

impl Check for Durability {
    fn property(&self) -> &'static str {
        "acknowledged writes are never lost"
    }

    fn see(&mut self, _at_us: u64, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Asked { asked, .. } => match &asked.what {
                What::Journal { path } | What::Both { path, .. } => {
                    self.journal.insert(path.clone(), Fate::Unknown);
                }
                What::Sequential => self.asked += 1,
                What::Delete { path } => {
                    self.deleted.insert(path.clone());
                }
                _ => {}
            },
            Seen::Answered { asked, answer, .. } => match &asked.what {
                What::Journal { path } => {
                    let fate = if answer.is_ok() { Fate::Acknowledged } else { Fate::Refused };
                    if answer.header.error == Error::NodeExists.code() {
                        return Err(format!("{path} is asked for once and exists already"));
                    }
                    self.journal.insert(path.clone(), fate);
                }
                What::Both { path, .. } if answer.is_ok() => {
                    let fate = match answer.multi_error() {
                        None => Fate::Acknowledged,
                        Some(_) => Fate::Refused,
                    };
                    self.journal.insert(path.clone(), fate);
                }
                What::Sequential if answer.is_ok() => {
                    let path = answer.path().unwrap_or_default();
                    if !self.sequential.insert(path.clone()) {
                        return Err(format!("{path} was given out twice"));
                    }
                }
                _ => {}
            },
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, ending: &Ending<'_>) -> Result<(), String> {
        for (path, fate) in &self.journal {
            let is_there = exists(ending.state, path);
            if is_there && *fate == Fate::Refused {
                return Err(format!("{path} was refused and is there"));
            }
            if !is_there && *fate == Fate::Acknowledged {
                return Err(format!("{path} was acknowledged and is not there"));
            }
        }
        for path in children(ending.state, "/log") {
            if !self.journal.contains_key(&path) {
                return Err(format!("{path} is there and no client asked for it"));
            }
        }
        let is_lost = |path: &&String| !self.deleted.contains(*path) && !exists(ending.state, path);
        if let Some(path) = self.sequential.iter().find(is_lost) {
            return Err(format!("{path} was acknowledged and is not there"));
        }
        let count = children(ending.state, "/seq").len();
        match count <= self.asked {
            true => Ok(()),
            false => Err(format!("{count} sequential nodes, {} were asked for", self.asked)),
        }
    }
}
