//! Order as each client sees it: ZooKeeper's "Consistency Guarantees" (Programmer's Guide).
//!
//! Replies come in the order of the requests; the zxid that a session is shown never goes back, on
//! whatever replicas it is; a session sees its own writes; of the writes that a client sent over one
//! connection the first ones take effect, and none after a lost one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use millrace_coord::state::{State, read};
use millrace_proto::zookeeper::{Error, Request, Writer};

use crate::observe::{Answer, Asked, Check, Ending, Seen, What};

/// A journal node asked for over a link, and whether it was definitely refused.
struct Step {
    path: String,
    is_refused: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Order {
    waiting: BTreeMap<u64, VecDeque<Asked>>,
    /// By session.
    zxids: BTreeMap<i64, i64>,
    /// Journal nodes that were acknowledged to a client.
    own: BTreeSet<(usize, String)>,
    steps: BTreeMap<u64, Vec<Step>>,
}

impl Order {
    fn answered(
        &mut self,
        client: usize,
        link: u64,
        session: i64,
        asked: &Asked,
        answer: &Answer,
    ) -> Result<(), String> {
        let header = answer.header;
        let expected = self.waiting.entry(link).or_default().pop_front();
        let expected_xid = expected.map(|asked| asked.xid);
        if expected_xid != Some(header.xid) {
            return Err(format!(
                "client {client} got the reply {} while {expected_xid:?} is next",
                header.xid
            ));
        }
        let zxid = self.zxids.entry(session).or_insert(0);
        if header.zxid < *zxid {
            return Err(format!(
                "session {session:#x} was shown {zxid:#x} and then {:#x}, for {asked:?}",
                header.zxid
            ));
        }
        *zxid = header.zxid;
        match &asked.what {
            What::Journal { path } | What::Both { path, .. } => {
                let is_made = answer.is_ok()
                    && !(matches!(asked.what, What::Both { .. }) && answer.multi_error().is_some());
                let steps = self.steps.entry(link).or_default();
                if is_made {
                    self.own.insert((client, path.clone()));
                } else if let Some(step) = steps.iter_mut().find(|step| step.path == *path) {
                    step.is_refused = true;
                }
            }
            What::Exists { path, .. }
                if header.error == Error::NoNode.code()
                    && self.own.contains(&(client, path.clone())) =>
            {
                return Err(format!("client {client} made {path} and does not see it"));
            }
            _ => {}
        }
        Ok(())
    }
}

/// True if a node is there.
pub(super) fn exists(state: &State, path: &str) -> bool {
    let mut record = Vec::new();
    let request = Request::Exists { path, watch: false };
    read::read(state, &request, 0, &[], true, &mut Writer::new(&mut record)).is_ok()
}

impl Check for Order {
    fn property(&self) -> &'static str {
        "each client's order"
    }

    fn see(&mut self, _at_us: u64, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Asked { link, asked, .. } => {
                self.waiting.entry(*link).or_default().push_back((*asked).clone());
                // A transaction may be refused when it is applied, which says nothing about others.
                if let What::Journal { path } = &asked.what {
                    let step = Step { path: path.clone(), is_refused: false };
                    self.steps.entry(*link).or_default().push(step);
                }
                Ok(())
            }
            Seen::Answered { client, link, session, asked, answer } => {
                self.answered(*client, *link, *session, asked, answer)
            }
            // An event that makes up for a missed one after `setWatches` carries no zxid.
            Seen::Notified { zxid: -1, .. } => Ok(()),
            Seen::Notified { session, zxid, path, .. } => {
                let last = self.zxids.entry(*session).or_insert(0);
                if zxid < last {
                    return Err(format!(
                        "session {session:#x} was shown {last:#x} and then the event {zxid:#x} \
                         of {path}"
                    ));
                }
                *last = *zxid;
                Ok(())
            }
            Seen::Broke { link, .. } => {
                self.waiting.remove(link);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, ending: &Ending<'_>) -> Result<(), String> {
        for (link, steps) in &self.steps {
            let mut lost = None;
            for step in steps.iter().filter(|step| !step.is_refused) {
                match (exists(ending.state, &step.path), lost) {
                    (false, _) => lost = lost.or(Some(&step.path)),
                    (true, Some(lost)) => {
                        return Err(format!(
                            "over link {link}, {lost} was asked for before {}, and only the \
                             latter is there",
                            step.path
                        ));
                    }
                    (true, None) => {}
                }
            }
        }
        Ok(())
    }
}
