//! The tree of another server while its changes are applied.
//!
//! Always holds: a transaction that the snapshot has already, because it was written meanwhile, changes nothing more
//! (ZooKeeper's `DataTree.processTxn` and `createNode`).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use millrace_proto::zookeeper::Acl;

use super::change::{Transaction, TreeChange};
use crate::state::assemble::{Assembly, Numbers};
use crate::state::{LoadError, State};

/// An entry of a list of ACLs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ForeignAcl {
    pub(super) perms: i32,
    pub(super) scheme: String,
    pub(super) id: String,
}

impl ForeignAcl {
    pub(super) fn of(acl: &Acl<'_>) -> ForeignAcl {
        ForeignAcl { perms: acl.perms, scheme: acl.scheme.to_owned(), id: acl.id.to_owned() }
    }

    fn borrow(&self) -> Acl<'_> {
        Acl { perms: self.perms, scheme: &self.scheme, id: &self.id }
    }
}

/// A node with its numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct ForeignNode {
    pub(super) data: Option<Vec<u8>>,
    pub(super) numbers: Numbers,
    /// Key in the tree's lists.
    pub(super) acl: i64,
}

/// All nodes, by their paths: that of the root is empty.
#[derive(Debug, Default)]
pub(super) struct ForeignTree {
    nodes: BTreeMap<String, ForeignNode>,
    acls: HashMap<i64, Vec<ForeignAcl>>,
    acl_keys: HashMap<Vec<ForeignAcl>, i64>,
    /// The paths of ephemeral nodes by their sessions.
    ephemerals: HashMap<i64, BTreeSet<String>>,
    /// The last transaction that is in the tree.
    pub(super) zxid: i64,
}

/// Key of the list that allows everything; files do not have it (ZooKeeper's `OPEN_UNSAFE_ACL_ID`).
pub(super) const OPEN: i64 = -1;

impl ForeignTree {
    /// Builds the tree of a server that has no snapshot yet.
    pub(super) fn fresh() -> ForeignTree {
        let mut tree = ForeignTree::default();
        for path in ["", "/zookeeper", "/zookeeper/quota"] {
            let data = Some(Vec::new());
            let node = ForeignNode { data, acl: OPEN, ..ForeignNode::default() };
            tree.insert(path.to_owned(), node);
        }
        tree
    }

    /// Adds a node, or replaces it.
    pub(super) fn insert(&mut self, path: String, node: ForeignNode) {
        if node.numbers.is_ephemeral() {
            self.ephemerals.entry(node.numbers.owner).or_default().insert(path.clone());
        }
        self.nodes.insert(path, node);
    }

    /// Adds a list of ACLs with its key.
    pub(super) fn insert_acl(&mut self, key: i64, list: Vec<ForeignAcl>) {
        self.acl_keys.insert(list.clone(), key);
        self.acls.insert(key, list);
    }

    /// Applies a transaction that comes after the tree.
    pub(super) fn apply(&mut self, transaction: &Transaction<'_>) {
        for change in &transaction.changes {
            self.change(transaction, change);
        }
        self.zxid = transaction.zxid;
    }

    fn change(&mut self, at: &Transaction<'_>, change: &TreeChange<'_>) {
        match change {
            TreeChange::Create { path, data, acl, owner, parent_cversion } => {
                let Some(parent) = self.nodes.get_mut(parent(path)) else { return };
                let cversion = match *parent_cversion {
                    -1 => parent.numbers.cversion.wrapping_add(1),
                    given => given,
                };
                if cversion > parent.numbers.cversion {
                    parent.numbers.cversion = cversion;
                    parent.numbers.pzxid = at.zxid;
                }
                if self.nodes.contains_key(*path) {
                    return;
                }
                let numbers = Numbers {
                    czxid: at.zxid,
                    mzxid: at.zxid,
                    pzxid: at.zxid,
                    ctime: at.time_ms,
                    mtime: at.time_ms,
                    owner: *owner,
                    ..Numbers::default()
                };
                let acl = self.acl_key(acl);
                let node = ForeignNode { data: data.map(<[u8]>::to_vec), numbers, acl };
                self.insert((*path).to_owned(), node);
            }
            TreeChange::Delete { path } => self.remove(path, at.zxid),
            TreeChange::SetData { path, data, version } => {
                let Some(node) = self.nodes.get_mut(key(path)) else { return };
                node.data = data.map(<[u8]>::to_vec);
                node.numbers.version = *version;
                (node.numbers.mzxid, node.numbers.mtime) = (at.zxid, at.time_ms);
            }
            TreeChange::SetAcl { path, acl, version } => {
                let acl = self.acl_key(acl);
                let Some(node) = self.nodes.get_mut(key(path)) else { return };
                (node.acl, node.numbers.aversion) = (acl, *version);
            }
            TreeChange::CloseSession { session } => {
                for path in self.ephemerals.remove(session).unwrap_or_default() {
                    self.remove(&path, at.zxid);
                }
            }
        }
    }

    fn remove(&mut self, path: &str, zxid: i64) {
        let Some(node) = self.nodes.remove(path) else { return };
        if let Some(paths) = self.ephemerals.get_mut(&node.numbers.owner) {
            paths.remove(path);
        }
        if let Some(parent) = self.nodes.get_mut(parent(path)) {
            parent.numbers.pzxid = parent.numbers.pzxid.max(zxid);
        }
    }

    fn acl_key(&mut self, acl: &[Acl<'_>]) -> i64 {
        let list: Vec<ForeignAcl> = acl.iter().map(ForeignAcl::of).collect();
        if let Some(key) = self.acl_keys.get(&list) {
            return *key;
        }
        let key = self.acls.keys().max().map_or(1, |most| most + 1);
        self.insert_acl(key, list);
        key
    }

    /// Removes all ephemeral nodes, as one change after the last. Returns how many there were.
    pub(super) fn end_sessions(&mut self) -> u64 {
        let sessions = std::mem::take(&mut self.ephemerals);
        let paths: Vec<String> = sessions.into_values().flatten().collect();
        if !paths.is_empty() {
            self.zxid += 1;
        }
        for path in &paths {
            self.remove(path, self.zxid);
        }
        paths.len() as u64
    }

    /// Builds the state.
    ///
    /// # Errors
    /// If a node has no parent, or an impossible path or number.
    pub(super) fn into_state(self) -> Result<State, LoadError> {
        let mut assembly = Assembly::default();
        // A path sorts behind its parent's.
        for (path, node) in self.nodes.iter().filter(|(path, _)| !Assembly::is_own(path)) {
            let acl: Vec<Acl<'_>> = match (node.acl, self.acls.get(&node.acl)) {
                (_, Some(list)) => list.iter().map(ForeignAcl::borrow).collect(),
                (OPEN, None) => vec![millrace_proto::zookeeper::record::OPEN_ACL],
                (_, None) => {
                    let problem = "its ACL is missing";
                    return Err(LoadError { record: format!("node {path}"), problem });
                }
            };
            assembly.add(path, node.data.as_deref(), &node.numbers, &acl)?;
        }
        assembly.finish(self.zxid)
    }
}

/// Returns the key of a path, which for the root is empty.
fn key(path: &str) -> &str {
    if path == "/" { "" } else { path }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}
