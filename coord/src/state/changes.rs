//! What commands changed since the last call: events for watches, and records to store.
//!
//! One buffer is reused. The events of a command have the order in which ZooKeeper's `DataTree` triggers
//! watches. Those of a failed multi are removed. The watch table knows which client watches what.

use millrace_proto::zookeeper::perms;

use super::acl::AclHandle;
use crate::command::Identity;

/// A stored record that may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Touched {
    Zxid,
    LastSession,
    Acl(u32),
    Session(i64),
    Node(u32),
    Data(u32),
}

#[derive(Debug)]
struct EventSpan {
    kind: i32,
    path_start: usize,
    path_end: usize,
    zxid: i64,
    acl: AclHandle,
}

/// The events and the touched records; see the module.
#[derive(Debug, Default)]
pub struct Changes {
    events: Vec<EventSpan>,
    /// The paths of all events.
    paths: String,
    touched: Vec<Touched>,
}

/// A change of a node.
#[derive(Debug, Clone, Copy)]
pub struct WatchEvent<'a> {
    /// One of `millrace_proto::zookeeper::event`.
    pub kind: i32,
    pub path: &'a str,
    /// The zxid of the command that made the change.
    pub zxid: i64,
    acl: &'a AclHandle,
}

impl WatchEvent<'_> {
    /// True if these identities could read the node at the time of the event: the changed node or, for a
    /// change of children, the parent (CVE-2024-23944).
    pub fn may_read(&self, identities: &[Identity<'_>]) -> bool {
        self.acl.allows(perms::READ, identities)
    }
}

impl Changes {
    pub fn new() -> Changes {
        Changes::default()
    }

    /// Lists the events since they were last cleared.
    pub fn events(&self) -> impl Iterator<Item = WatchEvent<'_>> {
        self.events.iter().map(|entry| WatchEvent {
            kind: entry.kind,
            path: &self.paths[entry.path_start..entry.path_end],
            zxid: entry.zxid,
            acl: &entry.acl,
        })
    }

    pub fn clear_events(&mut self) {
        self.events.clear();
        self.paths.clear();
    }

    pub(super) fn event(&mut self, kind: i32, path: &str, zxid: i64, acl: AclHandle) {
        let path_start = self.paths.len();
        self.paths.push_str(if path.is_empty() { "/" } else { path });
        self.events.push(EventSpan { kind, path_start, path_end: self.paths.len(), zxid, acl });
    }

    pub(super) fn event_count(&self) -> usize {
        self.events.len()
    }

    /// Removes all events except the first `count`.
    pub(super) fn truncate_events(&mut self, count: usize) {
        if let Some(first) = self.events.get(count) {
            self.paths.truncate(first.path_start);
            self.events.truncate(count);
        }
    }

    pub(super) fn touch(&mut self, touched: Touched) {
        if self.touched.last() != Some(&touched) {
            self.touched.push(touched);
        }
    }

    /// Returns what was touched since the last call, each once.
    pub(super) fn take_touched(&mut self) -> Vec<Touched> {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// Takes the buffer of [`Changes::take_touched`] back.
    pub(super) fn reuse(&mut self, mut touched: Vec<Touched>) {
        touched.clear();
        self.touched = touched;
    }
}
