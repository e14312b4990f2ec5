//! A client that watches learns of a change before it sees it: ZooKeeper's Programmer's Guide,
//! "What ZooKeeper Guarantees about Watches". It holds across reconnects, for watches set again.
//!
//! Persistent recursive watches lose events while their client is away, so for those the claim is about
//! one connection: what a read shows that is newer than the watch was reported before.

use std::collections::BTreeMap;

use millrace_proto::zookeeper::event;

use crate::client::register_path;
use crate::observe::{Answer, Asked, Check, Seen, What};

/// A recursive watch on all registers.
struct All {
    link: u64,
    since: i64,
    /// The zxid of the last event of each path.
    told: BTreeMap<String, i64>,
}

/// What a client watches.
#[derive(Default)]
struct Watching {
    /// Path, and its mzxid when the watch was set.
    data: BTreeMap<String, i64>,
    /// Paths that were not there.
    exist: BTreeMap<String, ()>,
    /// Path, and its pzxid when the watch was set.
    child: BTreeMap<String, i64>,
    wants_all: bool,
    all: Option<All>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Watches {
    clients: BTreeMap<usize, Watching>,
}

impl Watching {
    fn answered(&mut self, link: u64, asked: &Asked, answer: &Answer) -> Result<(), String> {
        let stat = answer.stat(&asked.what);
        match &asked.what {
            What::Get { register, watch, .. } => {
                let path = register_path(*register);
                let Some(stat) = stat else { return Ok(()) };
                self.looked(link, &path, stat.mzxid)?;
                if *watch {
                    self.data.insert(path, stat.mzxid);
                }
            }
            What::Set { register, .. } => {
                let Some(stat) = stat else { return Ok(()) };
                self.looked(link, &register_path(*register), stat.mzxid)?;
            }
            What::Exists { path, watch } => {
                if answer.is_ok() && self.exist.contains_key(path) {
                    return Err(format!("{path} is seen to exist before the event"));
                }
                match stat {
                    Some(stat) => {
                        self.looked(link, path, stat.mzxid)?;
                        if *watch {
                            self.data.insert(path.clone(), stat.mzxid);
                        }
                    }
                    None if self.data.contains_key(path) => {
                        return Err(format!("{path} is seen to be gone before the event"));
                    }
                    None if *watch => {
                        self.exist.insert(path.clone(), ());
                    }
                    None => {}
                }
            }
            What::Children { path, watch } => {
                let Some(stat) = stat else { return Ok(()) };
                if let Some(seen) = self.child.get(path)
                    && stat.pzxid > *seen
                {
                    return Err(format!("new children of {path} are seen before the event"));
                }
                if *watch {
                    self.child.insert(path.clone(), stat.pzxid);
                }
            }
            What::WatchAll if answer.is_ok() => {
                self.wants_all = true;
                let since = answer.header.zxid;
                // Set once more, it is the same watch.
                if self.all.as_ref().is_none_or(|all| all.link != link) {
                    self.all = Some(All { link, since, told: BTreeMap::new() });
                }
            }
            What::SetWatches if answer.is_ok() && self.wants_all => {
                let since = answer.header.zxid;
                self.all = Some(All { link, since, told: BTreeMap::new() });
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks a read that showed the data of a node as of `mzxid`.
    fn looked(&self, link: u64, path: &str, mzxid: i64) -> Result<(), String> {
        if let Some(seen) = self.data.get(path)
            && mzxid > *seen
        {
            return Err(format!(
                "new data of {path} ({mzxid:#x}, watched since {seen:#x}) is seen before the event"
            ));
        }
        if let Some(all) = &self.all
            && all.link == link
            && path.starts_with("/reg/")
            && mzxid > all.since
        {
            let told = all.told.get(path).copied().unwrap_or_default();
            if told != mzxid {
                return Err(format!(
                    "{path} is seen at {mzxid:#x}, its last event was {told:#x}, watched \
                     recursively since {:#x}",
                    all.since
                ));
            }
        }
        Ok(())
    }

    fn notified(&mut self, link: u64, zxid: i64, kind: i32, path: &str) {
        if let Some(all) = &mut self.all
            && all.link == link
        {
            all.told.insert(path.to_owned(), zxid);
        }
        if kind == event::CHILDREN_CHANGED || kind == event::DELETED {
            self.child.remove(path);
        }
        if kind != event::CHILDREN_CHANGED {
            self.data.remove(path);
            self.exist.remove(path);
        }
    }
}

impl Check for Watches {
    fn property(&self) -> &'static str {
        "a watch event comes before the data it tells of"
    }

    fn see(&mut self, _at_us: u64, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Answered { client, link, asked, answer, .. } => {
                let watching = self.clients.entry(*client).or_default();
                let result = watching.answered(*link, asked, answer);
                if asked.what == What::CloseSession && answer.is_ok() {
                    self.clients.remove(client);
                }
                result.map_err(|text| format!("client {client}: {text}"))
            }
            Seen::Notified { client, link, zxid, kind, path, .. } => {
                self.clients.entry(*client).or_default().notified(*link, *zxid, *kind, path);
                Ok(())
            }
            Seen::Expired { client, .. } => {
                self.clients.remove(client);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
