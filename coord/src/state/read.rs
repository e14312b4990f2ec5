//! Reads: from the state directly into the reply.
//!
//! A failed read writes nothing. The caller sets watches. As in ZooKeeper, no read checks that its path is
//! valid, because an invalid path has no node. The checks are those of ZooKeeper's `FinalRequestProcessor`
//! 3.8.0, where `exists` needs no permission.

use std::borrow::Cow;

use millrace_proto::zookeeper::{Acl, Error, MultiHeader, Request, Writer, opcode, perms};

use super::State;
use super::tree::ROOT;
use crate::command::Identity;

/// Answers `request` of `session` with the reply record, without a header.
///
/// # Errors
///
/// ZooKeeper's answer; `Unimplemented` for a request that is not a read of the state.
pub fn read(
    state: &State,
    request: &Request<'_>,
    session: i64,
    identities: &[Identity<'_>],
    skip_acl: bool,
    writer: &mut Writer<'_>,
) -> Result<(), Error> {
    let reader = Reader { state, identities, skip_acl };
    match request {
        Request::Exists { path, .. } => reader.exists(path, writer),
        Request::GetData { path, .. } => reader.data(path, writer),
        Request::GetChildren { path, .. } => reader.children(path, writer).map(|_| ()),
        Request::GetChildren2 { path, .. } => {
            let slot = reader.children(path, writer)?;
            state.tree.stat(slot).encode(writer);
            Ok(())
        }
        Request::GetAcl { path } => reader.acl(path, writer),
        Request::GetAllChildrenNumber { path } => reader.descendants(path, writer),
        Request::GetEphemerals { prefix } => {
            ephemerals(state, session, prefix.unwrap_or_default(), writer);
            Ok(())
        }
        Request::MultiRead(operations) => reader.multi(operations, writer),
        _ => Err(Error::Unimplemented),
    }
}

/// The session that reads, and its identities.
struct Reader<'a> {
    state: &'a State,
    identities: &'a [Identity<'a>],
    skip_acl: bool,
}

impl Reader<'_> {
    fn may(&self, slot: u32, perms: i32) -> bool {
        let acl = self.state.tree.node(slot).meta.acl;
        self.skip_acl || self.state.acls.allows(acl, perms, self.identities)
    }

    /// Finds the node at `path`, if one of `perms` is allowed.
    fn find(&self, path: &str, perms: i32) -> Result<u32, Error> {
        let slot = self.state.tree.find(path).ok_or(Error::NoNode)?;
        if self.may(slot, perms) { Ok(slot) } else { Err(Error::NoAuth) }
    }

    fn exists(&self, path: &str, writer: &mut Writer<'_>) -> Result<(), Error> {
        if path.contains('\0') {
            return Err(Error::BadArguments);
        }
        let slot = self.state.tree.find(path).ok_or(Error::NoNode)?;
        self.state.tree.stat(slot).encode(writer);
        Ok(())
    }

    fn data(&self, path: &str, writer: &mut Writer<'_>) -> Result<(), Error> {
        let slot = self.find(path, perms::READ)?;
        writer.buffer(self.state.tree.node(slot).data());
        self.state.tree.stat(slot).encode(writer);
        Ok(())
    }

    fn children(&self, path: &str, writer: &mut Writer<'_>) -> Result<u32, Error> {
        let slot = self.find(path, perms::READ)?;
        let tree = &self.state.tree;
        writer.int(tree.node(slot).child_count() as i32);
        for child in tree.children(slot) {
            writer.buffer(Some(tree.node(child).name()));
        }
        Ok(slot)
    }

    /// Writes the ACL. Hides digests from a client that may not change it, because they can be attacked
    /// offline.
    fn acl(&self, path: &str, writer: &mut Writer<'_>) -> Result<(), Error> {
        let slot = self.find(path, perms::READ | perms::ADMIN)?;
        let is_admin = self.may(slot, perms::ADMIN);
        let list = self.state.acls.list(self.state.tree.node(slot).meta.acl);
        writer.int(list.entries().len() as i32);
        for acl in list.entries() {
            let id = match acl.id.split_once(':') {
                Some((user, _)) if acl.scheme == "digest" && !is_admin => {
                    Cow::Owned(format!("{user}:x"))
                }
                _ => Cow::Borrowed(acl.id),
            };
            Acl { id: &id, ..acl }.encode(writer);
        }
        self.state.tree.stat(slot).encode(writer);
        Ok(())
    }

    fn descendants(&self, path: &str, writer: &mut Writer<'_>) -> Result<(), Error> {
        let slot = self.find(path, perms::READ)?;
        let count = match slot {
            // ZooKeeper counts keys that start with `path` and a slash. With "" all keys do.
            ROOT if path.is_empty() => self.state.tree.node_count(),
            ROOT => self.state.tree.node_count() - 1,
            _ => {
                let mut walk = self.state.tree.walk(slot);
                std::iter::from_fn(|| walk.next().map(|_| ())).count() - 1
            }
        };
        writer.int(count as i32);
        Ok(())
    }

    /// Writes one result for each read; each may be an error of its own.
    fn multi(&self, operations: &[Request<'_>], writer: &mut Writer<'_>) -> Result<(), Error> {
        let is_read = |operation: &Request<'_>| {
            matches!(operation, Request::GetData { .. } | Request::GetChildren { .. })
        };
        if !operations.iter().all(is_read) {
            return Err(Error::MarshallingError);
        }
        for operation in operations {
            if let Err(error) = self.operation(operation, writer) {
                let error = error.code();
                MultiHeader { operation: opcode::ERROR, done: false, error }.encode(writer);
                writer.int(error);
            }
        }
        MultiHeader::END.encode(writer);
        Ok(())
    }

    /// Writes header and result of one read of a multi, or nothing.
    fn operation(&self, operation: &Request<'_>, writer: &mut Writer<'_>) -> Result<(), Error> {
        let header = MultiHeader { operation: operation.code(), done: false, error: 0 };
        match operation {
            Request::GetData { path, .. } => {
                self.find(path, perms::READ)?;
                header.encode(writer);
                self.data(path, writer)
            }
            Request::GetChildren { path, .. } => {
                self.find(path, perms::READ)?;
                header.encode(writer);
                self.children(path, writer).map(|_| ())
            }
            _ => Err(Error::MarshallingError),
        }
    }
}

/// Writes the session's ephemeral nodes whose path begins with `prefix`; a blank prefix or "/" means all.
fn ephemerals(state: &State, session: i64, prefix: &str, writer: &mut Writer<'_>) {
    let mut paths = state.ephemerals(session);
    // Java trims all characters up to a space.
    let trimmed = prefix.trim_matches(|character| character <= ' ');
    if !matches!(trimmed, "" | "/") {
        paths.retain(|path| path.starts_with(prefix));
    }
    writer.list(&paths, |writer, path| writer.string(path));
}
