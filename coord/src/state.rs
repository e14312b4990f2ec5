//! The replicated state: the tree of znodes, their ACLs and quotas, the sessions.
//!
//! This is pure and deterministic: replicas that apply the same commands have the same content, the same
//! outcomes and the same [`State::digest`]. There is no clock and no I/O; the time comes with each entry. A
//! failed command changes only the zxid. Watches, timers, connections and storage are elsewhere: they get
//! [`Changes`] and records.
//!
//! ```text
//!             Command ─► State::apply ─► Outcome ─► reply
//!                            │
//!                            └─► Changes ─┬─ events() ──► watch table
//!                                         └─ State::records() ─► store ─► Loader ─► State
//! ```
//!
//! Modules in reading order:

mod path;
mod tree;

mod acl;
pub mod assemble;
mod changes;
mod incarnation;
mod look;
mod outcome;
mod quota;
pub mod read;
mod record;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

use millrace_proto::zookeeper::record::PASSWORD_SIZE;
use millrace_proto::zookeeper::{Error, Writer};
use twox_hash::XxHash3_64;

pub use self::changes::{Changes, WatchEvent};
pub use self::outcome::{MultiResult, Outcome};
pub use self::record::{LoadError, Loader, PutRecord};

use self::changes::Touched;
use self::tree::{Life, Meta, ROOT, Tree};
use self::write::Write;
use crate::command::{Act, Command, Rules};

#[derive(Debug)]
struct Session {
    timeout_ms: i32,
    attach: i64,
    password: [u8; PASSWORD_SIZE],
    /// Slots of its ephemeral nodes.
    ephemerals: BTreeSet<u32>,
}

impl Session {
    fn view(&self) -> SessionView {
        SessionView {
            timeout_ms: self.timeout_ms,
            attach: self.attach,
            ephemeral_count: self.ephemerals.len(),
        }
    }
}

/// The public part of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionView {
    pub timeout_ms: i32,
    /// Grows whenever the client connects again. Commands with an older number are refused.
    pub attach: i64,
    pub ephemeral_count: usize,
}

/// Counts of what the state holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// All nodes, including the root and those below `/zookeeper`. ZooKeeper counts one more, because its
    /// root has two names.
    pub nodes: usize,
    pub ephemerals: usize,
    pub sessions: usize,
    /// Sum of all paths and data (`zk_approximate_data_size`).
    pub approximate_data_size: u64,
}

/// The replicated state; see the module.
#[derive(Debug)]
pub struct State {
    /// The zxid of the last applied command. Each command has its own.
    zxid: i64,
    /// The id of the newest session.
    last_session: i64,
    tree: Tree,
    acls: acl::AclTable,
    sessions: BTreeMap<i64, Session>,
    ephemeral_count: usize,
    /// Paths with a quota.
    quotas: BTreeSet<String>,
    /// Containers that had children and have none.
    empty_containers: BTreeSet<u32>,
    /// TTL nodes without children, by the time in milliseconds since 1970 after which they are due.
    expiring: BTreeSet<(i64, u32)>,
}

impl Default for State {
    fn default() -> State {
        State::new()
    }
}

impl State {
    /// Builds a fresh state: `/`, `/zookeeper`, `/zookeeper/quota`, `/zookeeper/config`; zxid 0.
    pub fn new() -> State {
        State::with_seed(0)
    }

    /// Builds a fresh state. A client that does not know `seed` cannot predict the order in its hash
    /// tables. The seed affects only speed, so each process may have its own.
    pub fn with_seed(seed: u64) -> State {
        let mut tree = Tree::new(seed);
        let full = "a new tree has room";
        let system = tree.insert(ROOT, path::SYSTEM, Some(b""), Meta::default()).expect(full);
        tree.insert(system, path::QUOTA, Some(b""), Meta::default()).expect(full);
        // ZooKeeper sets this ACL with version -1, and clients see that.
        let config = Meta { acl: acl::READ_ONLY, aversion: -1, ..Meta::default() };
        tree.insert(system, path::CONFIG, Some(b""), config).expect(full);
        State {
            zxid: 0,
            last_session: 0,
            tree,
            acls: acl::AclTable::new(),
            sessions: BTreeMap::new(),
            ephemeral_count: 0,
            quotas: BTreeSet::new(),
            empty_containers: BTreeSet::new(),
            expiring: BTreeSet::new(),
        }
    }

    /// Returns the zxid of the last applied command.
    pub fn zxid(&self) -> i64 {
        self.zxid
    }

    /// Applies one command at the leader's time, in milliseconds since 1970. Adds what changed to
    /// `changes`.
    ///
    /// # Errors
    ///
    /// ZooKeeper's answer; only the zxid changed then. `SessionExpired` also for a wrong password,
    /// `SessionMoved` for a command of an older attachment: close its connection without an answer. A multi
    /// with a failed operation is not an error.
    pub fn apply(
        &mut self,
        time_ms: i64,
        rules: Rules,
        command: &Command<'_>,
        changes: &mut Changes,
    ) -> Result<Outcome, Error> {
        // All commands count, except a client that connects again, as in ZooKeeper.
        if !matches!(command.act, Act::Attach { .. }) {
            self.zxid += 1;
            changes.touch(Touched::Zxid);
        }
        match command.act {
            Act::CreateSession { timeout_ms, password } => {
                Ok(self.create_session(time_ms, timeout_ms, password, changes))
            }
            Act::Attach { timeout_ms, password } => {
                self.attach(command.session, timeout_ms, &password, changes)
            }
            Act::CloseSession => {
                let session = self.sessions.get(&command.session).ok_or(Error::SessionExpired)?;
                if command.attach != 0 && command.attach != session.attach {
                    return Err(Error::SessionMoved);
                }
                Write::new(self, time_ms, rules, command, changes).close_session();
                Ok(Outcome::Nothing)
            }
            Act::DeleteContainer { path } => {
                Write::new(self, time_ms, rules, command, changes).delete_container(path)
            }
            Act::SetConfig { text } => {
                Write::new(self, time_ms, rules, command, changes).set_config(text)
            }
            Act::Request { code, record } => {
                if command.session != 0 {
                    let session = self.session(command.session).ok_or(Error::SessionExpired)?;
                    if command.attach != session.attach {
                        return Err(Error::SessionMoved);
                    }
                }
                Write::new(self, time_ms, rules, command, changes).request(code, record)
            }
        }
    }

    fn create_session(
        &mut self,
        time_ms: i64,
        timeout_ms: i32,
        password: [u8; PASSWORD_SIZE],
        changes: &mut Changes,
    ) -> Outcome {
        // As ZooKeeper's ids: the time, with room for 65,536 sessions in a millisecond.
        let id = (self.last_session + 1).max(time_ms << 16 & 0x00ff_ffff_ffff_ffff);
        self.last_session = id;
        let attach = 1;
        let session = Session { timeout_ms, attach, password, ephemerals: BTreeSet::new() };
        self.sessions.insert(id, session);
        changes.touch(Touched::LastSession);
        changes.touch(Touched::Session(id));
        Outcome::Session { id, timeout_ms, password, attach }
    }

    fn attach(
        &mut self,
        id: i64,
        timeout_ms: i32,
        password: &[u8; PASSWORD_SIZE],
        changes: &mut Changes,
    ) -> Result<Outcome, Error> {
        let session = self.sessions.get_mut(&id).ok_or(Error::SessionExpired)?;
        // All bytes are compared every time, so the duration reveals nothing about the password.
        let pairs = session.password.iter().zip(password);
        if pairs.fold(0, |differing, (one, other)| differing | (one ^ other)) != 0 {
            return Err(Error::SessionExpired);
        }
        session.attach += 1;
        session.timeout_ms = timeout_ms;
        changes.touch(Touched::Session(id));
        Ok(Outcome::Attached { timeout_ms: session.timeout_ms, attach: session.attach })
    }

    pub fn session(&self, id: i64) -> Option<SessionView> {
        self.sessions.get(&id).map(Session::view)
    }

    /// Lists all sessions, by id.
    pub fn sessions(&self) -> impl Iterator<Item = (i64, SessionView)> {
        self.sessions.iter().map(|(id, session)| (*id, session.view()))
    }

    /// Lists the paths of a session's ephemeral nodes, sorted.
    pub fn ephemerals(&self, session: i64) -> Vec<String> {
        let slots = self.sessions.get(&session).map(|session| &session.ephemerals);
        let mut paths: Vec<String> =
            slots.into_iter().flatten().map(|slot| self.tree.path(*slot)).collect();
        paths.sort_unstable();
        paths
    }

    /// Lists at most `max` containers and TTL nodes that `Act::DeleteContainer` would delete now. Reads
    /// only the nodes that it returns.
    pub fn due_containers(&self, now_ms: i64, max: usize) -> Vec<String> {
        let is_due = |(deadline_ms, _): &&(i64, u32)| *deadline_ms < now_ms;
        let expired = self.expiring.iter().take_while(is_due).map(|(_, slot)| slot);
        let due = self.empty_containers.iter().chain(expired).take(max);
        due.map(|slot| self.tree.path(*slot)).collect()
    }

    /// Computes a hash of all content. It is equal on replicas that applied the same commands, however they
    /// got their state. The time grows with the number of nodes.
    pub fn digest(&self) -> u64 {
        let mut sum = 0u64;
        let mut item = Vec::new();
        let mut add = |item: &mut Vec<u8>| {
            sum = sum.wrapping_add(XxHash3_64::oneshot(item));
            item.clear();
        };
        let mut walk = self.tree.walk(ROOT);
        while let Some((slot, path)) = walk.next() {
            let node = self.tree.node(slot);
            let mut writer = Writer::new(&mut item);
            writer.string(path);
            writer.buffer(node.data());
            record::write_meta(&node.meta, &mut writer);
            record::write_acl(self.acls.list(node.meta.acl), &mut writer);
            add(&mut item);
        }
        for (id, session) in &self.sessions {
            let mut writer = Writer::new(&mut item);
            writer.long(*id);
            record::write_session(session, &mut writer);
            add(&mut item);
        }
        let mut hasher = XxHash3_64::with_seed(sum);
        hasher.write_i64(self.zxid);
        hasher.write_i64(self.last_session);
        hasher.finish()
    }

    pub fn counts(&self) -> Counts {
        Counts {
            nodes: self.tree.node_count(),
            ephemerals: self.ephemeral_count,
            sessions: self.sessions.len(),
            approximate_data_size: self.tree.bytes(),
        }
    }

    /// Notes a node in the indexes beside the tree: by session and by quota.
    fn enlist(&mut self, slot: u32) {
        let owner = self.tree.node(slot).meta.owner;
        if self.tree.node(slot).meta.life() == Life::Ephemeral
            && let Some(session) = self.sessions.get_mut(&owner)
        {
            session.ephemerals.insert(slot);
            self.ephemeral_count += 1;
        }
        if self.tree.node(slot).name() == quota::LIMITS.as_bytes()
            && let Some(subject) = quota::subject_of_limits(&self.tree.path(slot))
        {
            self.quotas.insert(subject.to_owned());
        }
    }

    /// Undoes [`State::enlist`].
    fn delist(&mut self, slot: u32) {
        let owner = self.tree.node(slot).meta.owner;
        if self.tree.node(slot).meta.life() == Life::Ephemeral
            && let Some(session) = self.sessions.get_mut(&owner)
        {
            session.ephemerals.remove(&slot);
            self.ephemeral_count -= 1;
        }
        if self.tree.node(slot).name() == quota::LIMITS.as_bytes()
            && let Some(subject) = quota::subject_of_limits(&self.tree.path(slot))
        {
            self.quotas.remove(subject);
        }
    }

    /// Notes a container or TTL node that may become due. Call this after each change of such a node and of
    /// its number of children.
    fn schedule(&mut self, slot: u32) {
        let node = self.tree.node(slot);
        if node.child_count() > 0 {
            return;
        }
        match node.meta.life() {
            Life::Container if node.meta.cversion > 0 => {
                self.empty_containers.insert(slot);
            }
            Life::Ttl { ttl_ms } => {
                self.expiring.insert((node.meta.mtime.saturating_add(ttl_ms), slot));
            }
            _ => {}
        }
    }

    /// Undoes [`State::schedule`]. Call this before each such change.
    fn unschedule(&mut self, slot: u32) {
        let node = self.tree.node(slot);
        match node.meta.life() {
            Life::Container => {
                self.empty_containers.remove(&slot);
            }
            Life::Ttl { ttl_ms } => {
                self.expiring.remove(&(node.meta.mtime.saturating_add(ttl_ms), slot));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
