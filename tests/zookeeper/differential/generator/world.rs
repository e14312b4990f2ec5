//! The tree of a round as far as it is known, and paths to choose from it.
//!
//! Small on purpose: 44 names, four levels, so that operations meet. What is known may be wrong for
//! the length of a burst; that costs an error reply, never a wrong comparison.

use std::collections::BTreeMap;

use millrace_proto::zookeeper::{CreateKind, Error, Request, create_mode};

use crate::item::Item;

/// Nodes from which on deleting is preferred to creating.
pub(crate) const NODES_MANY: usize = 60;
/// Names on each level below the round's root: 4 + 8 + 16 + 16 paths.
const LEVELS: [&[&str]; 4] = [&["a", "b", "c", "d"], &["x", "y"], &["m", "n"], &["k"]];
/// Nodes that every tree has, and one that it may have.
const SHARED: [&str; 4] = ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"];
/// Paths that break a rule, at least one for each.
const BAD: [&str; 23] = [
    "",
    "a",
    "a/b",
    "//",
    "/a/",
    "/a//b",
    "//a",
    "/.",
    "/..",
    "/./a",
    "/a/./b",
    "/a/../b",
    "/a/.",
    "/a/..",
    "/a\0b",
    "/a\u{1}",
    "/a\u{1f}b",
    "/a\u{7f}",
    "/a\u{80}",
    "/a\u{9f}",
    "/a\u{e000}",
    "/a\u{f8ff}",
    "/a\u{fff0}",
    // There is no character beyond U+FFFF, because ZooKeeper answers it in CESU-8, which is not UTF-8.
];
/// Paths that only look as if they did.
const ODD: [&str; 6] = ["/...", "/a/.b", "/a\u{a0}", "/a\u{d7ff}", "/a\u{f900}", "/a\u{ffef}"];

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Node {
    pub(crate) version: i32,
    pub(crate) aversion: i32,
    /// The client whose session it ends with.
    pub(crate) owner: Option<usize>,
}

pub(crate) struct World {
    pub(crate) root: String,
    /// True if nodes that outlive the round may be used.
    shared: bool,
    pool: Vec<String>,
    pub(crate) nodes: BTreeMap<String, Node>,
}

pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

pub(crate) fn is_write(request: &Request<'_>) -> bool {
    matches!(
        request,
        Request::Create { .. }
            | Request::Delete { .. }
            | Request::SetData { .. }
            | Request::Check { .. }
    )
}

impl World {
    pub(crate) fn new(root: &str, shared: bool) -> World {
        let mut pool = Vec::new();
        let mut level = vec![root.to_owned()];
        for names in LEVELS {
            level = level
                .iter()
                .flat_map(|parent| names.iter().map(move |name| format!("{parent}/{name}")))
                .collect();
            pool.extend_from_slice(&level);
        }
        let nodes = BTreeMap::from([(root.to_owned(), Node::default())]);
        World { root: root.to_owned(), shared, pool, nodes }
    }

    fn choose_pool(&self, rng: &mut fastrand::Rng) -> String {
        self.pool[rng.usize(..self.pool.len())].clone()
    }

    /// Returns a node that is believed to exist.
    pub(crate) fn known(&self, rng: &mut fastrand::Rng) -> String {
        let index = rng.usize(..self.nodes.len());
        let path = self.nodes.keys().nth(index).unwrap_or(&self.root);
        path.clone()
    }

    /// Returns any path: most exist.
    pub(crate) fn any(&self, rng: &mut fastrand::Rng) -> String {
        match rng.u32(..1000) {
            0..15 => self.bad(rng),
            15..45 if self.shared => SHARED[rng.usize(..SHARED.len())].to_owned(),
            45..150 => self.choose_pool(rng),
            _ => self.known(rng),
        }
    }

    /// Returns a path that breaks a rule, or nearly does.
    pub(crate) fn bad(&self, rng: &mut fastrand::Rng) -> String {
        let bad = BAD[rng.usize(..BAD.len())];
        match rng.u32(..10) {
            0 => format!("{}/{}", self.root, "long".repeat(rng.usize(100..1000))),
            // These are valid: the nodes that they make must be found and removed with the round.
            1..3 => format!("{}{}", self.root, ODD[rng.usize(..ODD.len())]),
            3..7 => format!("{}{bad}", self.root),
            // The empty path reads the root.
            _ if self.shared || !bad.is_empty() => bad.to_owned(),
            _ => "a".to_owned(),
        }
    }

    /// Returns a path that may be created: its parent exists and it does not.
    pub(crate) fn creatable(&self, rng: &mut fastrand::Rng) -> String {
        let free = |path: &&String| {
            let parent = self.nodes.get(parent(path));
            parent.is_some_and(|parent| parent.owner.is_none())
                && !self.nodes.contains_key(path.as_str())
        };
        let free: Vec<&String> = self.pool.iter().filter(free).collect();
        match rng.u32(..100) {
            0..2 => self.bad(rng),
            2..12 => self.any(rng),
            _ if free.is_empty() => self.choose_pool(rng),
            _ => free[rng.usize(..free.len())].clone(),
        }
    }

    /// Returns a node that has no children, most of the time.
    pub(crate) fn leaf(&self, rng: &mut fastrand::Rng) -> String {
        let is_leaf = |path: &str| {
            let below = format!("{path}/");
            path != self.root
                && self
                    .nodes
                    .range(below.clone()..)
                    .next()
                    .is_none_or(|(next, _)| !next.starts_with(&below))
        };
        let leaves: Vec<&String> = self.nodes.keys().filter(|path| is_leaf(path)).collect();
        if leaves.is_empty() || rng.u32(..100) < 12 {
            return self.any(rng);
        }
        leaves[rng.usize(..leaves.len())].clone()
    }

    /// Returns a version that matches, most of the time.
    pub(crate) fn version(
        &self,
        rng: &mut fastrand::Rng,
        known: impl Fn(&Node) -> i32,
        path: &str,
    ) -> i32 {
        match rng.u32(..100) {
            0..60 => -1,
            60..90 => self.nodes.get(path).map_or(0, known),
            90..97 => rng.i32(0..4),
            _ => [-2, i32::MIN, i32::MAX][rng.usize(..3)],
        }
    }

    /// Applies a request that succeeded. `created` is the path that a create answered with.
    pub(crate) fn apply(
        &mut self,
        slot: usize,
        request: &Request<'_>,
        created: Option<&str>,
        reply: Option<&Item>,
    ) {
        match request {
            Request::Create { kind, path, flags, .. } => {
                let path = created.unwrap_or(path);
                let is_owned = *kind != CreateKind::Container
                    && *kind != CreateKind::Ttl
                    && [create_mode::EPHEMERAL, create_mode::EPHEMERAL_SEQUENTIAL].contains(flags);
                let node = Node { owner: is_owned.then_some(slot), ..Node::default() };
                if self.is_of_round(path) {
                    self.nodes.insert(path.to_owned(), node);
                }
            }
            Request::Delete { path, .. } => {
                self.nodes.remove(*path);
            }
            Request::SetData { path, .. }
            | Request::SetAcl { path, .. }
            | Request::GetData { path, .. }
            | Request::Exists { path, .. } => {
                let Some(node) = self.nodes.get_mut(*path) else { return };
                match reply {
                    Some(reply) => {
                        let number = |name| reply.number(name).map(|number| number as i32);
                        node.version = number("version").unwrap_or(node.version);
                        node.aversion = number("aversion").unwrap_or(node.aversion);
                    }
                    None => node.version += 1,
                }
            }
            _ => {}
        }
    }

    /// Learns from a request that failed.
    pub(crate) fn refused(&mut self, request: &Request<'_>, error: i64) {
        let path = match request {
            Request::Delete { path, .. }
            | Request::SetData { path, .. }
            | Request::GetData { path, .. }
            | Request::Exists { path, .. } => path,
            _ => return,
        };
        if error == i64::from(Error::NoNode.code()) && *path != self.root {
            self.nodes.remove(*path);
        }
    }

    pub(crate) fn session_ended(&mut self, slot: usize) {
        self.nodes.retain(|_, node| node.owner != Some(slot));
    }

    pub(crate) fn is_of_round(&self, path: &str) -> bool {
        path.strip_prefix(&self.root).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Returns a path of the round's quotas: a node, its limits or its statistics.
    pub(crate) fn quota(&self, rng: &mut fastrand::Rng) -> String {
        let node = match rng.u32(..4) {
            0 => self.root.clone(),
            1 => format!("{}/a", self.root),
            2 => format!("{}/a/x", self.root),
            _ => format!("{}/b", self.root),
        };
        let name = ["", "/zookeeper_limits", "/zookeeper_stats"][rng.usize(..3)];
        format!("/zookeeper/quota{node}{name}")
    }
}
