//! One transaction of ZooKeeper's log, read in place: `TxnHeader`, and the record of its kind.

use millrace_proto::zookeeper::{Acl, JuteError, Reader};

use crate::state::assemble::{OWNER_CONTAINER, owner_of_ttl};

/// What one transaction changes; a multi has several changes.
#[derive(Debug)]
pub(super) struct Transaction<'a> {
    pub(super) zxid: i64,
    /// Milliseconds since 1970.
    pub(super) time_ms: i64,
    pub(super) changes: Vec<TreeChange<'a>>,
}

#[derive(Debug)]
pub(super) enum TreeChange<'a> {
    Create {
        path: &'a str,
        data: Option<&'a [u8]>,
        acl: Vec<Acl<'a>>,
        owner: i64,
        /// Count of created children of the parent; -1 for one more.
        parent_cversion: i32,
    },
    Delete {
        path: &'a str,
    },
    SetData {
        path: &'a str,
        data: Option<&'a [u8]>,
        version: i32,
    },
    SetAcl {
        path: &'a str,
        acl: Vec<Acl<'a>>,
        version: i32,
    },
    CloseSession {
        session: i64,
    },
}

/// Codes of ZooKeeper's `ZooDefs.OpCode`.
mod code {
    pub(super) const CREATE: i32 = 1;
    pub(super) const DELETE: i32 = 2;
    pub(super) const SET_DATA: i32 = 5;
    pub(super) const SET_ACL: i32 = 7;
    pub(super) const CHECK: i32 = 13;
    pub(super) const MULTI: i32 = 14;
    pub(super) const CREATE_2: i32 = 15;
    pub(super) const RECONFIG: i32 = 16;
    pub(super) const CREATE_CONTAINER: i32 = 19;
    pub(super) const DELETE_CONTAINER: i32 = 20;
    pub(super) const CREATE_TTL: i32 = 21;
    pub(super) const CREATE_SESSION: i32 = -10;
    pub(super) const CLOSE_SESSION: i32 = -11;
    pub(super) const ERROR: i32 = -1;
}

impl<'a> Transaction<'a> {
    /// Reads a transaction. What follows its record, such as a digest, is not read.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Transaction<'a>, JuteError> {
        let mut reader = Reader::new(bytes);
        let session = reader.long()?;
        let _request_number = reader.int()?;
        let (zxid, time_ms, kind) = (reader.long()?, reader.long()?, reader.int()?);
        let changes = match kind {
            code::MULTI => read_multi(session, &mut reader)?,
            _ => read_change(session, kind, &mut reader)?.into_iter().collect(),
        };
        Ok(Transaction { zxid, time_ms, changes })
    }
}

fn read_multi<'a>(session: i64, reader: &mut Reader<'a>) -> Result<Vec<TreeChange<'a>>, JuteError> {
    let parts = reader.list(|reader| Ok((reader.int()?, reader.buffer()?.unwrap_or_default())))?;
    let parts = parts.unwrap_or_default();
    // One that failed is written with errors in place of its parts.
    if parts.iter().any(|(kind, _)| *kind == code::ERROR) {
        return Ok(Vec::new());
    }
    let mut changes = Vec::new();
    for (kind, bytes) in parts {
        changes.extend(read_change(session, kind, &mut Reader::new(bytes))?);
    }
    Ok(changes)
}

/// Reads the record of a kind; `None` for one that changes no node.
fn read_change<'a>(
    session: i64,
    kind: i32,
    reader: &mut Reader<'a>,
) -> Result<Option<TreeChange<'a>>, JuteError> {
    Ok(Some(match kind {
        code::CREATE | code::CREATE_2 | code::CREATE_CONTAINER | code::CREATE_TTL => {
            read_create(session, kind, reader)?
        }
        code::DELETE | code::DELETE_CONTAINER => TreeChange::Delete { path: reader.path()? },
        code::SET_DATA | code::RECONFIG => TreeChange::SetData {
            path: reader.path()?,
            data: reader.buffer()?,
            version: reader.int()?,
        },
        code::SET_ACL => TreeChange::SetAcl {
            path: reader.path()?,
            acl: reader.list(Acl::decode)?.unwrap_or_default(),
            version: reader.int()?,
        },
        code::CLOSE_SESSION => TreeChange::CloseSession { session },
        code::CREATE_SESSION | code::CHECK | code::ERROR => return Ok(None),
        other => return Err(JuteError::Operation(other)),
    }))
}

fn read_create<'a>(
    session: i64,
    kind: i32,
    reader: &mut Reader<'a>,
) -> Result<TreeChange<'a>, JuteError> {
    let (path, data) = (reader.path()?, reader.buffer()?);
    let acl = reader.list(Acl::decode)?.unwrap_or_default();
    let mut owner = match kind {
        code::CREATE_CONTAINER => OWNER_CONTAINER,
        code::CREATE_TTL => 0,
        _ if reader.boolean()? => session,
        _ => 0,
    };
    // Servers before 3.4 wrote no count.
    let parent_cversion = if reader.rest().is_empty() { -1 } else { reader.int()? };
    if kind == code::CREATE_TTL {
        owner = owner_of_ttl(reader.long()?);
    }
    Ok(TreeChange::Create { path, data, acl, owner, parent_cversion })
}
