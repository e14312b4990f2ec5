//! Identity of a file.

use rkyv::{Archive, Serialize};

/// 128-bit id of a file, the same for every version of it. Opaque to clients; a node derives it from
/// the source and the path, so that it survives a restart.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[rkyv(derive(Clone, Copy, Debug))]
pub struct FileId(pub u128);

impl From<&ArchivedFileId> for FileId {
    #[inline]
    fn from(archived: &ArchivedFileId) -> FileId {
        FileId(archived.0.to_native())
    }
}

impl std::fmt::Display for FileId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:032x}", self.0)
    }
}
