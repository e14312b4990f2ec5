//! Which watches clients asked for, so that only what is specified is asked of them.
//!
//! ZooKeeper changed two things after 3.8, and a server may do either. Up to 3.8 `checkWatches`
//! succeeds when any connection, even one that is gone, watches the path; later it looks at the
//! asking connection. Up to 3.8 a path has one kind of watch for each connection, the last one
//! asked for; later kinds stand beside each other. Both are kept out of a round's way: a check is
//! only made where one connection alone watched, and kinds are not mixed on a path.

use std::collections::BTreeMap;

use millrace_proto::zookeeper::add_watch_mode;

/// A kind of watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Standard,
    Persistent,
    Recursive,
}

impl Kind {
    /// Returns the kind that `addWatch` asks for by `mode`.
    pub(crate) fn of_mode(mode: i32) -> Option<Kind> {
        match mode {
            add_watch_mode::PERSISTENT => Some(Kind::Persistent),
            add_watch_mode::PERSISTENT_RECURSIVE => Some(Kind::Recursive),
            _ => None,
        }
    }
}

/// A connection: the client and how many it had before.
type Connection = (usize, u32);

pub(crate) struct Watches {
    /// The kind of watch on each path, for each client.
    kinds: Vec<BTreeMap<String, Kind>>,
    /// Connections that each client had before.
    connections: Vec<u32>,
    /// The one connection that ever asked for a watch on a path, or none if several did.
    asked: BTreeMap<String, Option<Connection>>,
}

impl Watches {
    pub(crate) fn new(clients: usize) -> Watches {
        Watches {
            kinds: vec![BTreeMap::new(); clients],
            connections: vec![0; clients],
            asked: BTreeMap::new(),
        }
    }

    /// True if a client may ask for a watch of `kind` on `path`. If so, it is taken to have asked.
    pub(crate) fn ask(&mut self, slot: usize, path: &str, kind: Kind) -> bool {
        if self.kinds[slot].get(path).is_some_and(|known| *known != kind) {
            return false;
        }
        self.kinds[slot].insert(path.to_owned(), kind);
        let connection = (slot, self.connections[slot]);
        let asked = self.asked.entry(path.to_owned()).or_insert(Some(connection));
        if *asked != Some(connection) {
            *asked = None;
        }
        true
    }

    /// Returns a path that the client may watch, if there is one.
    pub(crate) fn choose(&self, slot: usize, rng: &mut fastrand::Rng) -> Option<&str> {
        let kinds = &self.kinds[slot];
        let index = rng.usize(..kinds.len().max(1));
        kinds.keys().nth(index).map(String::as_str)
    }

    /// Returns what kind of watch the client may have on `path`.
    pub(crate) fn kind(&self, slot: usize, path: &str) -> Option<Kind> {
        self.kinds[slot].get(path).copied()
    }

    /// True if no other connection ever watched `path`.
    pub(crate) fn is_alone(&self, slot: usize, path: &str) -> bool {
        let connection = (slot, self.connections[slot]);
        self.asked.get(path).is_none_or(|asked| *asked == Some(connection))
    }

    pub(crate) fn connection_ended(&mut self, slot: usize) {
        self.kinds[slot].clear();
        self.connections[slot] += 1;
    }
}
