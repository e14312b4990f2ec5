//! Access control lists: which ones a client may set, what they allow, and one copy of each.
//!
//! Nearly all nodes have the open ACL, key 0, which costs neither memory nor time. Every other list has one
//! copy with a count of its nodes, which is removed with the last of them. The lists of a new tree have
//! fixed keys, so they need not be stored.
//!
//! Rules are those of ZooKeeper's `PrepRequestProcessor.fixupACL` and `ZooKeeperServer.checkACL`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use hashbrown::HashTable;
use millrace_proto::zookeeper::record::OPEN_ACL;
use millrace_proto::zookeeper::{Acl, Error, perms};

use crate::command::Identity;

/// Key of the open ACL: every client may do everything.
pub(super) const OPEN: u32 = 0;
/// Key of the ACL of `/zookeeper/config`: every client may read.
pub(super) const READ_ONLY: u32 = 1;
/// Keys below this are always in use, and not counted.
pub(super) const FIXED_COUNT: u32 = 2;

/// An entry that lives as long as its list.
#[derive(Debug)]
struct AclEntry {
    perms: i32,
    scheme: Box<str>,
    id: Box<str>,
}

impl AclEntry {
    fn borrow(&self) -> Acl<'_> {
        Acl { perms: self.perms, scheme: &self.scheme, id: &self.id }
    }
}

#[derive(Debug)]
pub(super) struct AclList {
    entries: Box<[AclEntry]>,
    /// Permissions of every client.
    world: i32,
}

impl AclList {
    fn new(acl: &[Acl<'_>]) -> AclList {
        let own = |acl: &Acl<'_>| AclEntry {
            perms: acl.perms,
            scheme: acl.scheme.into(),
            id: acl.id.into(),
        };
        let world = acl.iter().filter(|acl| is_world(acl)).fold(0, |all, acl| all | acl.perms);
        AclList { entries: acl.iter().map(own).collect(), world }
    }

    pub(super) fn entries(&self) -> impl ExactSizeIterator<Item = Acl<'_>> {
        self.entries.iter().map(AclEntry::borrow)
    }

    /// True if one of `identities` has one of the permissions `perms` (ZooKeeper's `checkACL`).
    pub(super) fn allows(&self, perms: i32, identities: &[Identity<'_>]) -> bool {
        self.world & perms != 0
            || identities.iter().any(|identity| identity.scheme == "super")
            || self.entries().any(|acl| {
                let matches = |identity: &Identity<'_>| matches(&acl, identity);
                acl.perms & perms != 0 && identities.iter().any(matches)
            })
    }
}

/// A list as it was at one moment, even if its node changes.
#[derive(Debug, Clone)]
pub(super) struct AclHandle(Option<Arc<AclList>>);

impl AclHandle {
    pub(super) fn allows(&self, perms: i32, identities: &[Identity<'_>]) -> bool {
        self.0.as_ref().is_none_or(|list| list.allows(perms, identities))
    }
}

fn is_world(acl: &Acl<'_>) -> bool {
    acl.scheme == "world" && acl.id == "anyone"
}

fn matches(acl: &Acl<'_>, identity: &Identity<'_>) -> bool {
    identity.scheme == acl.scheme
        && match acl.scheme {
            "ip" => is_in_network(identity.id, acl.id),
            _ => identity.id == acl.id,
        }
}

/// Reads an address of version 4, the only one that ACLs of ZooKeeper 3.8 know, as a number.
fn address(text: &str) -> Option<u32> {
    let mut parts = text.split('.');
    let mut value = 0;
    for _ in 0..4 {
        // As with Java's parseInt, leading zeros and a plus sign are accepted.
        let part: i32 = parts.next()?.parse().ok()?;
        value = value << 8 | u32::from(u8::try_from(part).ok()?);
    }
    parts.next().is_none().then_some(value)
}

/// Reads `address` or `address/bits`: the number of the network, and the count of its bits.
fn network(text: &str) -> Option<(u32, u32)> {
    let (base, bits) = text.split_once('/').map_or((text, None), |(base, bits)| (base, Some(bits)));
    let bits = bits.map_or(Some(32), |bits| bits.parse().ok().filter(|bits| *bits <= 32))?;
    Some((address(base)?, bits))
}

fn is_in_network(text: &str, acl_id: &str) -> bool {
    let (Some(value), Some((base, bits))) = (address(text), network(acl_id)) else { return false };
    let prefix = |value: u32| value.checked_shr(32 - bits).unwrap_or(0);
    prefix(value) == prefix(base)
}

/// True if the id of a digest is `user:digest` for Java's `split(":")`, which ignores colons at the end.
fn is_digest(id: &str) -> bool {
    id.trim_end_matches(':').split(':').count() == 2
}

/// Checks and completes the list that a client sends (ZooKeeper's `fixupACL`): removes repetitions, and
/// replaces the scheme `auth` with the identities that the client has proved.
///
/// # Errors
///
/// `InvalidAcl` for a null or empty list, an unknown scheme, an id that does not fit its scheme, and `auth`
/// from a client that has proved nothing.
pub(super) fn fix<'a>(
    acl: Option<&[Acl<'a>]>,
    identities: &[Identity<'a>],
) -> Result<Vec<Acl<'a>>, Error> {
    let acl = acl.unwrap_or_default();
    let mut fixed: Vec<Acl<'a>> = Vec::with_capacity(acl.len());
    for (index, entry) in acl.iter().enumerate() {
        if acl[..index].contains(entry) {
            continue;
        }
        let is_valid = match entry.scheme {
            "world" => entry.id == "anyone",
            "auth" => {
                let count = fixed.len();
                let proved = identities.iter().filter(|identity| is_proof(identity.scheme));
                fixed.extend(proved.map(|identity| Acl {
                    perms: entry.perms,
                    scheme: identity.scheme,
                    id: identity.id,
                }));
                if fixed.len() == count {
                    return Err(Error::InvalidAcl);
                }
                continue;
            }
            "digest" => is_digest(entry.id),
            "ip" => network(entry.id).is_some(),
            _ => false,
        };
        if !is_valid {
            return Err(Error::InvalidAcl);
        }
        fixed.push(*entry);
    }
    if fixed.is_empty() { Err(Error::InvalidAcl) } else { Ok(fixed) }
}

/// True if an identity of this scheme took a secret, which an address does not.
fn is_proof(scheme: &str) -> bool {
    scheme == "digest"
}

#[derive(Debug)]
struct Interned {
    list: Arc<AclList>,
    /// Count of its nodes; without meaning for a fixed key.
    references: u32,
    hash: u64,
}

/// One copy of every list in use.
#[derive(Debug)]
pub(super) struct AclTable {
    lists: Vec<Option<Interned>>,
    free: Vec<u32>,
    index: HashTable<u32>,
}

fn hash<'a>(acl: impl Iterator<Item = Acl<'a>>) -> u64 {
    // This uses SipHash because no client must make lists collide. Unlike paths, few lists are hashed.
    let mut hasher = DefaultHasher::new();
    acl.for_each(|acl| acl.hash(&mut hasher));
    hasher.finish()
}

impl AclTable {
    pub(super) fn new() -> AclTable {
        let mut table = AclTable { lists: Vec::new(), free: Vec::new(), index: HashTable::new() };
        table.insert(&[OPEN_ACL]);
        table.insert(&[Acl { perms: perms::READ, ..OPEN_ACL }]);
        table
    }

    /// Adds a reference to a list. Returns its key, and whether it is new.
    pub(super) fn retain(&mut self, acl: &[Acl<'_>]) -> (u32, bool) {
        if *acl == [OPEN_ACL] {
            return (OPEN, false);
        }
        let (key, is_new) = self.insert(acl);
        if key >= FIXED_COUNT {
            self.count(key);
        }
        (key, is_new)
    }

    fn insert(&mut self, acl: &[Acl<'_>]) -> (u32, bool) {
        let hash = hash(acl.iter().copied());
        let is_same = |key: &u32| self.list(*key).entries().eq(acl.iter().copied());
        if let Some(key) = self.index.find(hash, is_same) {
            return (*key, false);
        }
        let key = self.free.pop().unwrap_or(self.lists.len() as u32);
        self.put(key, AclList::new(acl));
        (key, true)
    }

    /// Puts a list without references at a free key.
    fn put(&mut self, key: u32, list: AclList) {
        let index = key as usize;
        if self.lists.len() <= index {
            self.lists.resize_with(index + 1, || None);
        }
        let hash = hash(list.entries());
        self.lists[index] = Some(Interned { list: Arc::new(list), references: 0, hash });
        let lists = &self.lists;
        self.index.insert_unique(hash, key, |key| {
            lists[*key as usize].as_ref().expect("a list in the index").hash
        });
    }

    fn forget(&mut self, key: u32) {
        let interned = self.lists[key as usize].take().expect("a list to forget");
        let entry = self.index.find_entry(interned.hash, |other| *other == key);
        entry.expect("every list is in the index").remove();
    }

    /// Removes a reference. True if the list was removed with it.
    pub(super) fn release(&mut self, key: u32) -> bool {
        if key < FIXED_COUNT {
            return false;
        }
        let interned = self.lists[key as usize].as_mut().expect("a node's list is there");
        interned.references -= 1;
        if interned.references > 0 {
            return false;
        }
        self.forget(key);
        self.free.push(key);
        true
    }

    /// Returns the list under a key that a node has.
    pub(super) fn list(&self, key: u32) -> &AclList {
        self.get(key).expect("a node's list is there")
    }

    pub(super) fn get(&self, key: u32) -> Option<&AclList> {
        self.lists.get(key as usize)?.as_ref().map(|interned| &*interned.list)
    }

    /// Lists the keys of all lists, except the fixed ones.
    pub(super) fn keys(&self) -> impl Iterator<Item = u32> {
        (FIXED_COUNT..self.lists.len() as u32).filter(|key| self.get(*key).is_some())
    }

    pub(super) fn handle(&self, key: u32) -> AclHandle {
        match &self.lists[key as usize] {
            Some(interned) if key != OPEN => AclHandle(Some(interned.list.clone())),
            _ => AclHandle(None),
        }
    }

    /// True if the list `key` gives one of `identities` one of the permissions `perms`.
    pub(super) fn allows(&self, key: u32, perms: i32, identities: &[Identity<'_>]) -> bool {
        debug_assert!(perms & perms::ALL != 0);
        key == OPEN || self.list(key).allows(perms, identities)
    }

    /// Puts a loaded list, without references, at a key that is not fixed. True if there was neither such a
    /// key nor an equal list.
    pub(super) fn place(&mut self, key: u32, acl: &[Acl<'_>]) -> bool {
        let is_same = |other: &u32| self.list(*other).entries().eq(acl.iter().copied());
        let is_new = self.index.find(hash(acl.iter().copied()), is_same).is_none();
        if key < FIXED_COUNT || self.get(key).is_some() || !is_new {
            return false;
        }
        self.put(key, AclList::new(acl));
        true
    }

    /// Adds a node to the count of the list `key`. True if there is such a list.
    pub(super) fn count(&mut self, key: u32) -> bool {
        match self.lists.get_mut(key as usize) {
            Some(Some(interned)) => {
                interned.references += 1;
                true
            }
            _ => false,
        }
    }

    /// Finds the free keys after loading, and returns a list that no node has, if any.
    pub(super) fn finish(&mut self) -> Option<u32> {
        let is_free = |key: &u32| self.lists[*key as usize].is_none();
        self.free = (0..self.lists.len() as u32).rev().filter(is_free).collect();
        let has_no_node = |key: &u32| {
            self.lists[*key as usize].as_ref().is_some_and(|interned| interned.references == 0)
        };
        self.keys().find(has_no_node)
    }
}
