//! Writes: every check of ZooKeeper in ZooKeeper's order, then the change.
//!
//! A single operation checks everything first and then cannot fail. A multi applies its operations in turn,
//! so each sees those before it, and undoes them in reverse when one fails. The order of checks is that in
//! ZooKeeper's `PrepRequestProcessor`; the changes are those in its `DataTree`.

use std::mem;

use millrace_proto::zookeeper::{
    Acl, CreateKind, Error, Request, Stat, create_mode, event, opcode, perms,
};

use super::changes::{Changes, Touched};
use super::quota::{self, Track, Use};
use super::tree::{Body, Life, Meta, Node, OWNER_CONTAINER, TTL_MAX_MS, owner_of_ttl};
use super::{MultiResult, Outcome, State, acl, path};
use crate::command::{Command, Identity, Rules};

/// One step of a multi to undo. The ACL of a removed node loses its reference only at the end of the multi,
/// so that it is still there if the node comes back.
#[derive(Debug)]
enum Undo {
    Created { slot: u32, parent: Meta },
    Deleted { slot: u32, node: Node, parent: Meta },
    Changed { slot: u32, body: Body, meta: Meta },
}

/// What a create asks for.
#[derive(Debug, Clone, Copy)]
struct Create<'a> {
    kind: CreateKind,
    path: &'a str,
    data: Option<&'a [u8]>,
    acl: Option<&'a [Acl<'a>]>,
    flags: i32,
    ttl_ms: i64,
}

/// The work of one command.
pub(super) struct Write<'a> {
    state: &'a mut State,
    changes: &'a mut Changes,
    time_ms: i64,
    rules: Rules,
    session: i64,
    identities: &'a [Identity<'a>],
    /// Steps to undo; `None` outside a multi, where nothing is undone.
    undo: Option<Vec<Undo>>,
}

impl<'a> Write<'a> {
    /// Begins a command. Its zxid is the state's, because each command has advanced it.
    pub(super) fn new(
        state: &'a mut State,
        time_ms: i64,
        rules: Rules,
        command: &'a Command<'a>,
        changes: &'a mut Changes,
    ) -> Write<'a> {
        let Command { session, ref identities, .. } = *command;
        Write { state, changes, time_ms, rules, session, identities, undo: None }
    }

    /// Applies a client's write.
    pub(super) fn request(&mut self, code: i32, record: &[u8]) -> Result<Outcome, Error> {
        // This is a command of the service. From a client it is an error.
        if code == opcode::DELETE_CONTAINER {
            return Err(Error::BadArguments);
        }
        let request = Request::decode(code, record).map_err(|_| Error::MarshallingError)?;
        match &request {
            &Request::Create { kind, path, data, ref acl, flags, ttl_ms } => {
                let acl = acl.as_deref();
                let (path, stat) = self.create(Create { kind, path, data, acl, flags, ttl_ms })?;
                Ok(match kind {
                    CreateKind::Create => Outcome::Path(path),
                    _ => Outcome::PathAndStat(path, stat),
                })
            }
            Request::Delete { path, version } => {
                self.delete(path, *version).map(|()| Outcome::Nothing)
            }
            Request::SetData { path, data, version } => {
                self.set_data(path, *data, *version).map(Outcome::Stat)
            }
            Request::SetAcl { path, acl, version } => {
                self.set_acl(path, acl.as_deref(), *version).map(Outcome::Stat)
            }
            Request::Multi(operations) => self.multi(operations),
            // The leader takes a reconfig. It reaches this place only if that is not allowed.
            Request::Reconfig { .. } => Err(Error::ReconfigDisabled),
            _ => Err(Error::Unimplemented),
        }
    }

    fn allow(&self, slot: u32, perms: i32) -> Result<(), Error> {
        let acl = self.state.tree.node(slot).meta.acl;
        if self.rules.skip_acl || self.state.acls.allows(acl, perms, self.identities) {
            Ok(())
        } else {
            Err(Error::NoAuth)
        }
    }

    fn find(&self, path: &str) -> Result<u32, Error> {
        self.state.tree.find(path).ok_or(Error::NoNode)
    }

    fn create(&mut self, create: Create<'_>) -> Result<(String, Stat), Error> {
        let owner = self.owner(&create)?;
        let parent_path = path::parent(create.path)?;
        let acl = acl::fix(create.acl, self.identities)?;
        let parent = self.find(parent_path)?;
        self.allow(parent, perms::CREATE)?;
        let above = self.state.tree.node(parent).meta;
        let path = if is_sequential(create.flags) {
            // The counter is signed and wraps, so clients have seen -2147483648.
            format!("{}{:010}", create.path, above.cversion)
        } else {
            create.path.to_owned()
        };
        path::validate(&path)?;
        if self.state.tree.find(&path).is_some() {
            return Err(Error::NodeExists);
        }
        if above.life() == Life::Ephemeral {
            return Err(Error::NoChildrenForEphemerals);
        }
        let more = Use { count: 1, bytes: create.data.map_or(0, <[u8]>::len) as i64 };
        if self.rules.enforce_quota {
            self.state.check_quota(&path, more)?;
        }
        let slot = self.insert(parent, &path, create.data, owner, &acl)?;
        let stat = self.state.tree.stat(slot);
        if let Some(subject) = quota::subject_of_stats(&path) {
            let text = quota::stats_of(&self.state.tree, subject);
            self.change(slot, Some(text.as_bytes()), |_| {});
        }
        self.count(&path, more);
        self.event(event::CREATED, &path, slot);
        self.event(event::CHILDREN_CHANGED, parent_path, parent);
        Ok((path, stat))
    }

    /// Returns the owner of a new node, for valid flags. As in ZooKeeper, the flags say whether a node is
    /// ephemeral, but the operation says whether it is a container.
    fn owner(&self, create: &Create<'_>) -> Result<i64, Error> {
        let &Create { kind, flags, ttl_ms, .. } = create;
        if !(create_mode::PERSISTENT..=create_mode::PERSISTENT_SEQUENTIAL_TTL).contains(&flags) {
            return Err(Error::BadArguments);
        }
        if is_ttl(flags) {
            if !self.rules.ttl_nodes {
                return Err(Error::Unimplemented);
            }
            if kind != CreateKind::Ttl || !(1..=TTL_MAX_MS).contains(&ttl_ms) {
                return Err(Error::BadArguments);
            }
            return Ok(owner_of_ttl(ttl_ms));
        }
        if kind == CreateKind::Ttl {
            return Err(Error::BadArguments);
        }
        let is_ephemeral =
            matches!(flags, create_mode::EPHEMERAL | create_mode::EPHEMERAL_SEQUENTIAL);
        if is_ephemeral && self.session == 0 {
            return Err(Error::SessionExpired);
        }
        Ok(match kind {
            CreateKind::Container => OWNER_CONTAINER,
            _ if is_ephemeral => self.session,
            _ => 0,
        })
    }

    /// Adds a node after all checks.
    fn insert(
        &mut self,
        parent: u32,
        path: &str,
        data: Option<&[u8]>,
        owner: i64,
        acl: &[Acl<'_>],
    ) -> Result<u32, Error> {
        let (zxid, time) = (self.state.zxid, self.time_ms);
        let (acl, is_new_acl) = self.state.acls.retain(acl);
        let meta = Meta {
            czxid: zxid,
            mzxid: zxid,
            pzxid: zxid,
            ctime: time,
            mtime: time,
            owner,
            acl,
            ..Meta::default()
        };
        self.state.unschedule(parent);
        let Some(slot) = self.state.tree.insert(parent, path, data, meta) else {
            self.state.schedule(parent);
            self.state.acls.release(acl);
            return Err(Error::SystemError);
        };
        let above = self.state.tree.meta_mut(parent);
        let before = *above;
        above.cversion = above.cversion.wrapping_add(1);
        above.pzxid = zxid;
        self.state.enlist(slot);
        self.state.schedule(parent);
        self.state.schedule(slot);
        if is_new_acl {
            self.changes.touch(Touched::Acl(acl));
        }
        self.touch_with_parent(slot, parent);
        if let Some(undo) = &mut self.undo {
            undo.push(Undo::Created { slot, parent: before });
        }
        Ok(slot)
    }

    fn touch_with_parent(&mut self, slot: u32, parent: u32) {
        self.changes.touch(Touched::Node(slot));
        self.changes.touch(Touched::Data(slot));
        self.changes.touch(Touched::Node(parent));
    }

    fn delete(&mut self, path: &str, version: i32) -> Result<(), Error> {
        let parent = self.deletable_below(path)?;
        self.allow(parent, perms::DELETE)?;
        let slot = self.find(path)?;
        let node = self.state.tree.node(slot);
        next_version(node.meta.version, version)?;
        if node.child_count() > 0 {
            return Err(Error::NotEmpty);
        }
        self.remove(slot, path);
        Ok(())
    }

    /// Returns the parent of a path that may be deleted.
    fn deletable_below(&self, path: &str) -> Result<u32, Error> {
        let parent_path = path::parent(path)?;
        if path::is_reserved(path) {
            return Err(Error::BadArguments);
        }
        self.find(parent_path)
    }

    /// Deletes a node without children.
    fn remove(&mut self, slot: u32, path: &str) {
        let parent = self.state.tree.node(slot).parent();
        let acl_handle = self.state.acls.handle(self.state.tree.node(slot).meta.acl);
        self.state.unschedule(slot);
        self.state.delist(slot);
        self.state.unschedule(parent);
        let node = self.state.tree.remove(slot);
        let above = self.state.tree.meta_mut(parent);
        let before = *above;
        above.pzxid = self.state.zxid;
        self.state.schedule(parent);
        self.touch_with_parent(slot, parent);
        self.count(path, Use { count: -1, bytes: -(node.data_size() as i64) });
        let zxid = self.state.zxid;
        self.changes.event(event::DELETED, path, zxid, acl_handle);
        let parent_path = path::parent(path).unwrap_or_default();
        self.event(event::CHILDREN_CHANGED, parent_path, parent);
        match &mut self.undo {
            Some(undo) => undo.push(Undo::Deleted { slot, node, parent: before }),
            None => self.release(node.meta.acl),
        }
    }

    fn release(&mut self, acl: u32) {
        if self.state.acls.release(acl) {
            self.changes.touch(Touched::Acl(acl));
        }
    }

    fn event(&mut self, kind: i32, path: &str, slot: u32) {
        let acl = self.state.acls.handle(self.state.tree.node(slot).meta.acl);
        self.changes.event(kind, path, self.state.zxid, acl);
    }

    /// Adds to the count of the nearest quota. The node with the count keeps its version and times.
    fn count(&mut self, path: &str, more: Use) {
        let Some(subject) = self.state.quota_above(path) else { return };
        let Some(slot) = self.state.stats_node(subject) else { return };
        if let Some(mut track) = Track::parse(self.state.tree.node(slot).data()) {
            track.add(more);
            self.change(slot, Some(track.text().as_bytes()), |_| {});
        }
    }

    /// Changes the data of a node, and its numbers with `edit`.
    fn change(&mut self, slot: u32, data: Option<&[u8]>, edit: impl FnOnce(&mut Meta)) {
        self.state.unschedule(slot);
        let body = self.state.tree.set_data(slot, data);
        let meta = self.state.tree.meta_mut(slot);
        let before = *meta;
        edit(meta);
        if *meta != before {
            self.changes.touch(Touched::Node(slot));
        }
        self.changes.touch(Touched::Data(slot));
        self.state.schedule(slot);
        if let Some(undo) = &mut self.undo {
            undo.push(Undo::Changed { slot, body, meta: before });
        }
    }

    fn set_data(&mut self, path: &str, data: Option<&[u8]>, version: i32) -> Result<Stat, Error> {
        path::validate(path)?;
        let slot = self.find(path)?;
        self.allow(slot, perms::WRITE)?;
        let node = self.state.tree.node(slot);
        let bytes = data.map_or(0, <[u8]>::len) as i64 - node.data_size() as i64;
        let more = Use { count: 0, bytes };
        if self.rules.enforce_quota {
            self.state.check_quota(path, more)?;
        }
        let version = next_version(node.meta.version, version)?;
        Ok(self.overwrite(slot, path, data, version, more))
    }

    fn overwrite(
        &mut self,
        slot: u32,
        path: &str,
        data: Option<&[u8]>,
        version: i32,
        more: Use,
    ) -> Stat {
        let (zxid, time_ms) = (self.state.zxid, self.time_ms);
        self.change(slot, data, |meta| {
            meta.version = version;
            meta.mzxid = zxid;
            meta.mtime = time_ms;
        });
        let stat = self.state.tree.stat(slot);
        self.count(path, more);
        self.event(event::DATA_CHANGED, path, slot);
        stat
    }

    fn set_acl(
        &mut self,
        path: &str,
        acl: Option<&[Acl<'_>]>,
        version: i32,
    ) -> Result<Stat, Error> {
        path::validate(path)?;
        let acl = acl::fix(acl, self.identities)?;
        let slot = self.find(path)?;
        self.allow(slot, perms::ADMIN)?;
        let aversion = next_version(self.state.tree.node(slot).meta.aversion, version)?;
        let (new, is_new) = self.state.acls.retain(&acl);
        if is_new {
            self.changes.touch(Touched::Acl(new));
        }
        let meta = self.state.tree.meta_mut(slot);
        meta.aversion = aversion;
        let old = mem::replace(&mut meta.acl, new);
        self.release(old);
        self.changes.touch(Touched::Node(slot));
        Ok(self.state.tree.stat(slot))
    }

    fn check(&self, path: &str, version: i32) -> Result<(), Error> {
        path::validate(path)?;
        let slot = self.find(path)?;
        self.allow(slot, perms::READ)?;
        next_version(self.state.tree.node(slot).meta.version, version).map(|_| ())
    }

    /// Applies all operations, or none.
    fn multi(&mut self, operations: &[Request<'_>]) -> Result<Outcome, Error> {
        let event_count = self.changes.event_count();
        self.undo = Some(Vec::with_capacity(operations.len()));
        let mut results = Vec::with_capacity(operations.len());
        for (index, operation) in operations.iter().enumerate() {
            match self.operation(operation) {
                Ok(result) => results.push(result),
                Err(error) => {
                    self.roll_back(event_count);
                    if error == Error::MarshallingError {
                        return Err(error);
                    }
                    let failed = MultiResult::failed(operations.len(), index, error);
                    return Ok(Outcome::Multi(failed));
                }
            }
        }
        for undo in self.undo.take().into_iter().flatten() {
            if let Undo::Deleted { node, .. } = undo {
                self.release(node.meta.acl);
            }
        }
        Ok(Outcome::Multi(results))
    }

    fn operation(&mut self, operation: &Request<'_>) -> Result<MultiResult, Error> {
        match operation {
            &Request::Create { kind, path, data, ref acl, flags, ttl_ms } => {
                let kind = kind_in_multi(kind, flags)?;
                let acl = acl.as_deref();
                let (path, stat) = self.create(Create { kind, path, data, acl, flags, ttl_ms })?;
                Ok(match kind {
                    CreateKind::Create => MultiResult::Create(path),
                    _ => MultiResult::CreateAndStat(path, stat),
                })
            }
            Request::Delete { path, version } => {
                self.delete(path, *version).map(|()| MultiResult::Delete)
            }
            Request::SetData { path, data, version } => {
                self.set_data(path, *data, *version).map(MultiResult::SetData)
            }
            Request::Check { path, version } => {
                self.check(path, *version).map(|()| MultiResult::Check)
            }
            _ => Err(Error::MarshallingError),
        }
    }

    fn roll_back(&mut self, event_count: usize) {
        self.changes.truncate_events(event_count);
        for undo in self.undo.take().into_iter().flatten().rev() {
            let state = &mut *self.state;
            match undo {
                Undo::Created { slot, parent: before } => {
                    let parent = state.tree.node(slot).parent();
                    state.unschedule(slot);
                    state.delist(slot);
                    state.unschedule(parent);
                    let node = state.tree.remove(slot);
                    *state.tree.meta_mut(parent) = before;
                    state.schedule(parent);
                    self.release(node.meta.acl);
                }
                Undo::Deleted { slot, node, parent: before } => {
                    let parent = node.parent();
                    state.unschedule(parent);
                    state.tree.put_back(slot, node);
                    *state.tree.meta_mut(parent) = before;
                    state.enlist(slot);
                    state.schedule(parent);
                    state.schedule(slot);
                }
                Undo::Changed { slot, body, meta } => {
                    state.unschedule(slot);
                    state.tree.set_body(slot, body);
                    *state.tree.meta_mut(slot) = meta;
                    state.schedule(slot);
                }
            }
        }
    }

    /// Deletes the session and its nodes, sorted by path so that all replicas report it in one order.
    pub(super) fn close_session(&mut self) {
        for path in self.state.ephemerals(self.session) {
            if let Some(slot) = self.state.tree.find(&path) {
                self.remove(slot, &path);
            }
        }
        self.state.sessions.remove(&self.session);
        self.changes.touch(Touched::Session(self.session));
    }

    /// Deletes a container or TTL node if it is due, without asking its ACL.
    pub(super) fn delete_container(&mut self, path: &str) -> Result<Outcome, Error> {
        self.deletable_below(path)?;
        let slot = self.find(path)?;
        let node = self.state.tree.node(slot);
        if node.child_count() > 0 {
            return Err(Error::NotEmpty);
        }
        let is_due = match node.meta.life() {
            Life::Container => node.meta.cversion > 0,
            Life::Ttl { ttl_ms } => node.meta.mtime.saturating_add(ttl_ms) < self.time_ms,
            Life::Persistent | Life::Ephemeral => false,
        };
        if !is_due {
            return Err(Error::BadVersion);
        }
        self.remove(slot, path);
        Ok(Outcome::Nothing)
    }

    /// Makes `members` and the zxid the data of `/zookeeper/config`. Its data version is always -1, as in
    /// `DataTree.setData`, and clients take its `mzxid` as the version of the members.
    pub(super) fn set_config(&mut self, members: &str) -> Result<Outcome, Error> {
        let slot = self.find(path::CONFIG)?;
        let text = match members.is_empty() {
            true => String::new(),
            false => format!("{members}version={:x}", self.state.zxid),
        };
        let node = self.state.tree.node(slot);
        let more = Use { count: 0, bytes: text.len() as i64 - node.data_size() as i64 };
        let data = Some(text.as_bytes());
        Ok(Outcome::Stat(self.overwrite(slot, path::CONFIG, data, -1, more)))
    }
}

fn is_sequential(flags: i32) -> bool {
    use create_mode::{EPHEMERAL_SEQUENTIAL, PERSISTENT_SEQUENTIAL, PERSISTENT_SEQUENTIAL_TTL};
    [PERSISTENT_SEQUENTIAL, EPHEMERAL_SEQUENTIAL, PERSISTENT_SEQUENTIAL_TTL].contains(&flags)
}

fn is_ttl(flags: i32) -> bool {
    matches!(flags, create_mode::PERSISTENT_TTL | create_mode::PERSISTENT_SEQUENTIAL_TTL)
}

/// Returns the kind of create of a multi's operation. ZooKeeper 3.8.0 drops the operation's code when it
/// reads a multi and uses only the flags, so a create2 answers as a create does (ZOOKEEPER-4026).
///
/// # Errors
///
/// `MarshallingError` for TTL flags in a record without a time to live, which makes the multi unreadable.
fn kind_in_multi(kind: CreateKind, flags: i32) -> Result<CreateKind, Error> {
    match flags {
        create_mode::CONTAINER => Ok(CreateKind::Container),
        flags if !is_ttl(flags) => Ok(CreateKind::Create),
        _ if kind == CreateKind::Ttl => Ok(CreateKind::Ttl),
        _ => Err(Error::MarshallingError),
    }
}

/// Compares with the version that the client expects, and returns the next one. It is never -1, because
/// that expects nothing (ZOOKEEPER-4743).
///
/// # Errors
///
/// `BadVersion`.
fn next_version(current: i32, expected: i32) -> Result<i32, Error> {
    if expected != -1 && expected != current {
        return Err(Error::BadVersion);
    }
    match current.wrapping_add(1) {
        -1 => Ok(0),
        next => Ok(next),
    }
}
