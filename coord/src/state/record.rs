//! The state as records, each a key and a value. The store keeps them, and snapshots have them.
//!
//! A key is a letter and an id. Data has its own records, so a new child does not write its parent's data
//! again. A state can be loaded from records in any order. The nodes and ACLs of a fresh state need no
//! records until they change. Integers are big endian; strings and lists are as in the protocol. The store
//! checks that bytes are as they were written.
//!
//! ```text
//!  key                      value
//!  'm' "zxid"               i64
//!  'm' "session"            i64: the id given out last
//!  'a' acl u32              list of { perms i32, scheme, id }
//!  's' session i64          timeout_ms i32, attach i64, password 16 bytes
//!  'n' slot u32             parent u32, czxid mzxid pzxid ctime mtime owner i64,
//!                           version cversion aversion i32, acl u32, name
//!  'd' slot u32             data, which may be null
//! ```

use std::collections::BTreeSet;

use millrace_proto::zookeeper::record::PASSWORD_SIZE;
use millrace_proto::zookeeper::{Acl, JuteError, Reader, Writer};

use super::acl::AclList;
use super::changes::{Changes, Touched};
use super::tree::{Life, Meta, NODES_MAX, NONE, ROOT};
use super::{Session, State, path};

/// The reason that records do not make a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {record}: {problem}")]
pub struct LoadError {
    /// The key, such as `n 17`.
    pub record: String,
    pub problem: &'static str,
}

/// Takes a key and its value, `None` for a deleted record.
pub type PutRecord<'a> = dyn FnMut(&[u8], Option<&[u8]>) + 'a;

/// Lists differ in their keys, and there cannot be more of them than nodes.
const ACLS_MAX: u32 = NODES_MAX as u32;

pub(super) fn write_meta(meta: &Meta, writer: &mut Writer<'_>) {
    let Meta { czxid, mzxid, pzxid, ctime, mtime, owner, .. } = *meta;
    for long in [czxid, mzxid, pzxid, ctime, mtime, owner] {
        writer.long(long);
    }
    for int in [meta.version, meta.cversion, meta.aversion] {
        writer.int(int);
    }
}

fn read_meta(reader: &mut Reader<'_>) -> Result<Meta, JuteError> {
    Ok(Meta {
        czxid: reader.long()?,
        mzxid: reader.long()?,
        pzxid: reader.long()?,
        ctime: reader.long()?,
        mtime: reader.long()?,
        owner: reader.long()?,
        version: reader.int()?,
        cversion: reader.int()?,
        aversion: reader.int()?,
        acl: 0,
    })
}

pub(super) fn write_acl(list: &AclList, writer: &mut Writer<'_>) {
    writer.int(list.entries().len() as i32);
    for acl in list.entries() {
        acl.encode(writer);
    }
}

pub(super) fn write_session(session: &Session, writer: &mut Writer<'_>) {
    writer.int(session.timeout_ms);
    writer.long(session.attach);
    writer.raw(&session.password);
}

impl Touched {
    fn key(self, writer: &mut Writer<'_>) {
        match self {
            Touched::Zxid => writer.raw(b"mzxid"),
            Touched::LastSession => writer.raw(b"msession"),
            Touched::Acl(key) => number(b'a', key, writer),
            Touched::Node(slot) => number(b'n', slot, writer),
            Touched::Data(slot) => number(b'd', slot, writer),
            Touched::Session(id) => {
                writer.raw(b"s");
                writer.long(id);
            }
        }
    }
}

fn number(kind: u8, number: u32, writer: &mut Writer<'_>) {
    writer.raw(&[kind]);
    writer.int(number as i32);
}

impl State {
    /// Hands out the current record of everything that commands touched since the last call, each key once;
    /// `None` for a deleted record.
    pub fn records(&self, changes: &mut Changes, put: &mut PutRecord<'_>) {
        let touched = changes.take_touched();
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for touched in &touched {
            key.clear();
            value.clear();
            touched.key(&mut Writer::new(&mut key));
            let exists = self.record(*touched, &mut Writer::new(&mut value));
            put(&key, exists.then_some(&value));
        }
        changes.reuse(touched);
    }

    /// Hands out every record of the state.
    pub fn all_records(&self, put: &mut dyn FnMut(&[u8], &[u8])) {
        let slots = (0..self.tree.slot_count()).filter(|slot| self.tree.get(*slot).is_some());
        let all = [Touched::Zxid, Touched::LastSession]
            .into_iter()
            .chain(self.acls.keys().map(Touched::Acl))
            .chain(self.sessions.keys().map(|id| Touched::Session(*id)))
            .chain(slots.flat_map(|slot| [Touched::Node(slot), Touched::Data(slot)]));
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for touched in all {
            key.clear();
            value.clear();
            touched.key(&mut Writer::new(&mut key));
            let exists = self.record(touched, &mut Writer::new(&mut value));
            assert!(exists, "what is listed exists");
            put(&key, &value);
        }
    }

    /// Writes the value of a record. True if there is one.
    fn record(&self, touched: Touched, writer: &mut Writer<'_>) -> bool {
        match touched {
            Touched::Zxid => writer.long(self.zxid),
            Touched::LastSession => writer.long(self.last_session),
            Touched::Acl(key) => {
                let Some(list) = self.acls.get(key) else { return false };
                write_acl(list, writer);
            }
            Touched::Session(id) => {
                let Some(session) = self.sessions.get(&id) else { return false };
                write_session(session, writer);
            }
            Touched::Node(slot) => {
                let Some(node) = self.tree.get(slot) else { return false };
                writer.int(node.parent() as i32);
                write_meta(&node.meta, writer);
                writer.int(node.meta.acl as i32);
                writer.buffer(Some(node.name()));
            }
            Touched::Data(slot) => {
                let Some(node) = self.tree.get(slot) else { return false };
                writer.buffer(node.data());
            }
        }
        true
    }
}

/// The records of a node that have come.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    node: bool,
    data: bool,
}

/// Builds a state from its records.
#[derive(Debug)]
pub struct Loader {
    state: State,
    /// By slot.
    seen: Vec<Seen>,
}

impl Default for Loader {
    fn default() -> Loader {
        Loader::new()
    }
}

impl Loader {
    pub fn new() -> Loader {
        Loader::with_seed(0)
    }

    /// Builds a loader for [`State::with_seed`].
    pub fn with_seed(seed: u64) -> Loader {
        let state = State::with_seed(seed);
        let seen = vec![Seen { node: true, data: true }; state.tree.slot_count() as usize];
        Loader { state, seen }
    }

    /// Takes one record.
    ///
    /// # Errors
    ///
    /// Fails for a key of an unknown kind, or a value that does not fit its key.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        let error = |problem| LoadError { record: describe(key), problem };
        let touched = parse_key(key).ok_or_else(|| error("its kind is unknown"))?;
        let mut reader = Reader::new(value);
        let fits = self
            .read(touched, &mut reader)
            .map_err(|_| error("its value is too short or damaged"))?;
        fits.map_err(error)?;
        if reader.rest().is_empty() { Ok(()) } else { Err(error("its value is too long")) }
    }

    /// Takes a node and its data.
    ///
    /// # Errors
    /// As [`Loader::push`].
    pub(super) fn push_node(
        &mut self,
        slot: u32,
        parent: u32,
        name: &str,
        meta: &Meta,
        data: Option<&[u8]>,
    ) -> Result<(), LoadError> {
        self.push_as(Touched::Node(slot), &mut |writer| {
            writer.int(parent as i32);
            write_meta(meta, writer);
            writer.int(meta.acl as i32);
            writer.string(name);
        })?;
        self.push_as(Touched::Data(slot), &mut |writer| writer.buffer(data))
    }

    /// Takes an encoded list of ACLs.
    ///
    /// # Errors
    /// As [`Loader::push`].
    pub(super) fn push_acl(&mut self, key: u32, encoded: &[u8]) -> Result<(), LoadError> {
        self.push_as(Touched::Acl(key), &mut |writer| writer.raw(encoded))
    }

    /// Takes the zxid of the last change.
    ///
    /// # Errors
    /// As [`Loader::push`].
    pub(super) fn push_zxid(&mut self, zxid: i64) -> Result<(), LoadError> {
        self.push_as(Touched::Zxid, &mut |writer| writer.long(zxid))
    }

    fn push_as(
        &mut self,
        touched: Touched,
        write: &mut dyn FnMut(&mut Writer<'_>),
    ) -> Result<(), LoadError> {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        touched.key(&mut Writer::new(&mut key));
        write(&mut Writer::new(&mut value));
        self.push(&key, &value)
    }

    /// Reads one value. The inner result is about its meaning.
    fn read(
        &mut self,
        touched: Touched,
        reader: &mut Reader<'_>,
    ) -> Result<Result<(), &'static str>, JuteError> {
        match touched {
            Touched::Zxid => self.state.zxid = reader.long()?,
            Touched::LastSession => self.state.last_session = reader.long()?,
            Touched::Acl(key) => {
                let acl = reader.list(Acl::decode)?.unwrap_or_default();
                if acl.is_empty() || key > ACLS_MAX || !self.state.acls.place(key, &acl) {
                    return Ok(Err("it is empty, or there is one like it already"));
                }
            }
            Touched::Session(id) => {
                let session = Session {
                    timeout_ms: reader.int()?,
                    attach: reader.long()?,
                    password: password(reader)?,
                    ephemerals: BTreeSet::new(),
                };
                self.state.sessions.insert(id, session);
            }
            Touched::Node(slot) => return self.read_node(slot, reader),
            Touched::Data(slot) => {
                let data = reader.buffer()?;
                let Some(seen) = self.seen(slot) else { return Ok(Err("too many nodes")) };
                seen.data = true;
                self.state.tree.place_data(slot, data);
            }
        }
        Ok(Ok(()))
    }

    fn read_node(
        &mut self,
        slot: u32,
        reader: &mut Reader<'_>,
    ) -> Result<Result<(), &'static str>, JuteError> {
        let parent = reader.int()? as u32;
        let mut meta = read_meta(reader)?;
        meta.acl = reader.int()? as u32;
        let name = reader.path()?;
        if (slot == ROOT) != (parent == NONE && name.is_empty()) {
            return Ok(Err("only the root has neither parent nor name"));
        }
        if slot != ROOT && (parent == slot || name.is_empty() || name.contains('/')) {
            return Ok(Err("its name or its parent is impossible"));
        }
        let Some(seen) = self.seen(slot) else { return Ok(Err("too many nodes")) };
        seen.node = true;
        self.state.tree.place(slot, parent, name.as_bytes(), meta);
        Ok(Ok(()))
    }

    fn seen(&mut self, slot: u32) -> Option<&mut Seen> {
        let index = slot as usize;
        if index >= NODES_MAX {
            return None;
        }
        if self.seen.len() <= index {
            self.seen.resize(index + 1, Seen::default());
        }
        self.seen.get_mut(index)
    }

    /// Returns the state, if the records make one.
    ///
    /// # Errors
    ///
    /// A record that contradicts another one, or needs a missing one.
    pub fn finish(mut self) -> Result<State, LoadError> {
        if let Some(slot) = self.seen.iter().position(|seen| seen.node != seen.data) {
            let key = Touched::Node(slot as u32);
            return Err(error(key, "a node and its data come together, or neither does"));
        }
        let state = &mut self.state;
        state.tree.relink().map_err(|(slot, problem)| error(Touched::Node(slot), problem))?;
        for path in [path::SYSTEM, path::QUOTA, path::CONFIG] {
            if state.tree.find(path).is_none() {
                return Err(error(Touched::Node(ROOT), "a node below /zookeeper is missing"));
            }
        }
        for slot in 0..state.tree.slot_count() {
            if state.tree.get(slot).is_some() {
                check(state, slot).map_err(|problem| error(Touched::Node(slot), problem))?;
                state.enlist(slot);
                state.schedule(slot);
            }
        }
        if let Some(key) = state.acls.finish() {
            return Err(error(Touched::Acl(key), "no node has it"));
        }
        let is_late = |(id, session): &(&i64, &Session)| {
            **id <= 0 || **id > state.last_session || session.attach > state.zxid
        };
        if let Some((id, _)) = state.sessions.iter().find(is_late) {
            return Err(error(Touched::Session(*id), "it is newer than the state"));
        }
        Ok(self.state)
    }
}

/// Checks that a node fits the rest, and counts it for its ACL.
fn check(state: &mut State, slot: u32) -> Result<(), &'static str> {
    let node = state.tree.node(slot);
    let meta = node.meta;
    if meta.czxid.max(meta.mzxid).max(meta.pzxid) > state.zxid {
        return Err("it is newer than the state");
    }
    if meta.life() == Life::Ephemeral {
        if node.child_count() > 0 {
            return Err("it is ephemeral and has children");
        }
        if !state.sessions.contains_key(&meta.owner) {
            return Err("its session is missing");
        }
    }
    if state.acls.count(meta.acl) { Ok(()) } else { Err("its ACL is missing") }
}

fn error(touched: Touched, problem: &'static str) -> LoadError {
    let mut key = Vec::new();
    touched.key(&mut Writer::new(&mut key));
    LoadError { record: describe(&key), problem }
}

fn parse_key(key: &[u8]) -> Option<Touched> {
    let (kind, id) = key.split_first()?;
    let number = || id.try_into().ok().map(u32::from_be_bytes);
    match kind {
        b'a' => number().map(Touched::Acl),
        b'n' => number().map(Touched::Node),
        b'd' => number().map(Touched::Data),
        b's' => id.try_into().ok().map(|id| Touched::Session(i64::from_be_bytes(id))),
        b'm' if id == b"zxid" => Some(Touched::Zxid),
        b'm' if id == b"session" => Some(Touched::LastSession),
        _ => None,
    }
}

/// Writes a key for people: its letter, and its id as a number or text.
fn describe(key: &[u8]) -> String {
    match parse_key(key) {
        Some(Touched::Acl(number)) => format!("a {number}"),
        Some(Touched::Node(number)) => format!("n {number}"),
        Some(Touched::Data(number)) => format!("d {number}"),
        Some(Touched::Session(id)) => format!("s {id}"),
        Some(Touched::Zxid | Touched::LastSession) | None => key.escape_ascii().to_string(),
    }
}

fn password(reader: &mut Reader<'_>) -> Result<[u8; PASSWORD_SIZE], JuteError> {
    reader.take(PASSWORD_SIZE)?.try_into().map_err(|_| JuteError::Short)
}
