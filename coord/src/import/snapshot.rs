//! A snapshot of ZooKeeper: a header, sessions, lists of ACLs, nodes, and a checksum of all of it.

use std::path::Path;

use millrace_proto::zookeeper::{Acl, JuteError, Reader};

use super::tree::{ForeignAcl, ForeignNode, ForeignTree};
use super::{ImportError, read_file};
use crate::state::assemble::Numbers;

/// "ZKSN".
const MAGIC: i32 = 0x5a4b_534e;
const VERSION: i32 = 2;

/// The reason that a snapshot is not used.
pub(super) enum SnapshotError {
    /// It was not written to its end.
    NotWhole,
    Other(ImportError),
}

impl From<JuteError> for SnapshotError {
    fn from(error: JuteError) -> SnapshotError {
        match error {
            JuteError::Short | JuteError::Length(_) | JuteError::Operation(_) => {
                SnapshotError::NotWhole
            }
        }
    }
}

/// Reads a snapshot that has everything up to this transaction, and maybe some of what came after it.
pub(super) fn read(path: &Path, zxid: i64) -> Result<ForeignTree, SnapshotError> {
    let bytes = read_file(path).map_err(SnapshotError::Other)?;
    let damaged = |at: &str| {
        let (path, at) = (path.to_owned(), at.to_owned());
        SnapshotError::Other(ImportError::Damaged { path, at })
    };
    let mut reader = Reader::new(&bytes);
    let (magic, version, _database) = (reader.int()?, reader.int()?, reader.long()?);
    if (magic, version) != (MAGIC, VERSION) {
        return Err(damaged("it does not begin as a snapshot of version 2"));
    }
    let mut tree = ForeignTree::default();
    tree.zxid = zxid;
    for _session in 0..reader.int()? {
        let (_id, _timeout_ms) = (reader.long()?, reader.int()?);
    }
    for _list in 0..reader.int()? {
        let key = reader.long()?;
        let list = reader.list(Acl::decode)?.unwrap_or_default();
        tree.insert_acl(key, list.iter().map(ForeignAcl::of).collect());
    }
    loop {
        let path = reader.path()?;
        if path == "/" {
            break;
        }
        let (data, acl) = (reader.buffer()?.map(<[u8]>::to_vec), reader.long()?);
        let numbers = read_numbers(&mut reader)?;
        tree.insert(path.to_owned(), ForeignNode { data, numbers, acl });
    }
    let covered = &bytes[..bytes.len() - reader.rest().len()];
    if reader.long()? != i64::from(adler2::adler32_slice(covered)) {
        return Err(damaged("its checksum does not fit"));
    }
    Ok(tree)
}

fn read_numbers(reader: &mut Reader<'_>) -> Result<Numbers, JuteError> {
    let (czxid, mzxid, ctime, mtime) =
        (reader.long()?, reader.long()?, reader.long()?, reader.long()?);
    let (version, cversion, aversion) = (reader.int()?, reader.int()?, reader.int()?);
    let (owner, pzxid) = (reader.long()?, reader.long()?);
    Ok(Numbers { czxid, mzxid, pzxid, ctime, mtime, owner, version, cversion, aversion })
}
