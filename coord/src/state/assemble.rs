//! A state that is put together from nodes which another server wrote, each with its numbers.
//!
//! Owns the slots and the keys of ACLs on the way. Always holds: the parts pass the same checks as a state that is
//! loaded from its store; a parent comes before its children.

use std::collections::HashMap;

use millrace_proto::zookeeper::{Acl, Writer};

use super::acl::{FIXED_COUNT, OPEN, READ_ONLY};
use super::quota::stats_of;
use super::record::{LoadError, Loader};
use super::tree::{Life, Meta, NONE, ROOT};
pub(crate) use super::tree::{OWNER_CONTAINER, owner_of_ttl};
use super::{State, path};

/// The numbers of a node as ZooKeeper's files have them (`StatPersisted`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numbers {
    pub czxid: i64,
    pub mzxid: i64,
    pub pzxid: i64,
    /// Milliseconds since 1970.
    pub ctime: i64,
    /// Milliseconds since 1970.
    pub mtime: i64,
    /// A session, 0, or a mark of a container or TTL node.
    pub owner: i64,
    pub version: i32,
    /// Count of created children.
    pub cversion: i32,
    pub aversion: i32,
}

impl Numbers {
    fn meta(&self) -> Meta {
        let Numbers { czxid, mzxid, pzxid, ctime, mtime, owner, version, cversion, aversion } =
            *self;
        Meta { czxid, mzxid, pzxid, ctime, mtime, owner, version, cversion, aversion, acl: OPEN }
    }

    /// True if the node ends with its session.
    pub fn is_ephemeral(&self) -> bool {
        self.meta().life() == Life::Ephemeral
    }
}

/// A state that is not whole yet.
pub struct Assembly {
    loader: Loader,
    /// By path; the root's is empty.
    slots: HashMap<String, u32>,
    /// Keys by the encoded list.
    acls: HashMap<Vec<u8>, u32>,
    next_slot: u32,
}

impl Default for Assembly {
    /// Begins with the nodes that every state has.
    fn default() -> Assembly {
        let fresh = State::new();
        let known = ["", path::SYSTEM, path::QUOTA, path::CONFIG];
        let slot = |path: &str| fresh.tree.find(path).expect("every state has it");
        let slots = known.map(|path| (path.to_owned(), slot(path))).into_iter().collect();
        let acls = [OPEN, READ_ONLY].map(|key| {
            let list: Vec<Acl<'_>> = fresh.acls.get(key).expect("it is fixed").entries().collect();
            (encode(&list), key)
        });
        let next_slot = fresh.tree.slot_count();
        Assembly { loader: Loader::new(), slots, acls: acls.into_iter().collect(), next_slot }
    }
}

impl Assembly {
    /// True if the path is a node of the service's own, which a new state has by itself.
    pub fn is_own(path: &str) -> bool {
        path == path::CONFIG
    }

    /// Adds a node, or gives one that every state has its content. The root's path is empty.
    ///
    /// # Errors
    /// If the parent has not come, or no node may have such a path.
    pub fn add(
        &mut self,
        path: &str,
        data: Option<&[u8]>,
        numbers: &Numbers,
        acl: &[Acl<'_>],
    ) -> Result<(), LoadError> {
        let refuse = |problem| LoadError { record: format!("node {path}"), problem };
        if !path.is_empty() && path::validate(path).is_err() {
            return Err(refuse("no node may have such a path"));
        }
        let (above, name) = path.rsplit_once('/').unwrap_or(("", ""));
        let parent = match path {
            "" => NONE,
            _ => *self.slots.get(above).ok_or_else(|| refuse("its parent is missing"))?,
        };
        let slot = match self.slots.get(path) {
            Some(slot) => *slot,
            None => {
                let slot = self.next_slot;
                self.next_slot += 1;
                self.slots.insert(path.to_owned(), slot);
                slot
            }
        };
        debug_assert_eq!(slot == ROOT, path.is_empty());
        let meta = Meta { acl: self.acl_key(acl)?, ..numbers.meta() };
        self.loader.push_node(slot, parent, name, &meta, data)
    }

    fn acl_key(&mut self, acl: &[Acl<'_>]) -> Result<u32, LoadError> {
        let encoded = encode(acl);
        if let Some(key) = self.acls.get(&encoded) {
            return Ok(*key);
        }
        let key = self.acls.len() as u32;
        debug_assert!(key >= FIXED_COUNT);
        self.loader.push_acl(key, &encoded)?;
        self.acls.insert(encoded, key);
        Ok(key)
    }

    /// Returns the state, whose next change has the zxid after this one. What quotas count is counted again, because
    /// ZooKeeper does not log it.
    ///
    /// # Errors
    /// As [`Loader::finish`].
    pub fn finish(mut self, zxid: i64) -> Result<State, LoadError> {
        self.loader.push_zxid(zxid)?;
        let mut state = self.loader.finish()?;
        for subject in state.quotas.clone() {
            let used = stats_of(&state.tree, &subject);
            if let Some(slot) = state.stats_node(&subject) {
                state.tree.set_data(slot, Some(used.as_bytes()));
            }
        }
        Ok(state)
    }
}

fn encode(acl: &[Acl<'_>]) -> Vec<u8> {
    let mut encoded = Vec::new();
    Writer::new(&mut encoded).list(acl, |writer, acl| acl.encode(writer));
    encoded
}
