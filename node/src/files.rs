//! The files a node knows: id to path, version and length.
//!
//! Owns the only table that shards share, a bounded one. It is read on a miss and written when the
//! source was asked; a hit never comes here. An entry may be forgotten at any time: a read that needs
//! it is then answered `UnknownFile`, and the client looks the path up again.

use std::sync::Arc;

use millrace_proto::FileId;
use quick_cache::sync::Cache;

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileRecord {
    /// Path that clients know it by.
    pub path: Arc<str>,
    /// Version that was seen last.
    pub version: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// The table.
pub(crate) struct FileTable {
    records: Cache<FileId, FileRecord>,
}

impl FileTable {
    /// A table for at most `files_max` files.
    pub(crate) fn new(files_max: usize) -> FileTable {
        FileTable { records: Cache::new(files_max) }
    }

    /// What is known of a file.
    pub(crate) fn get(&self, id: FileId) -> Option<FileRecord> {
        self.records.get(&id)
    }

    /// Notes what the source told. Returns the record it replaces if that had another version: its
    /// blocks have to go.
    pub(crate) fn note(&self, id: FileId, record: FileRecord) -> Option<FileRecord> {
        let old = self.records.get(&id);
        if old.as_ref() != Some(&record) {
            let version = record.version;
            self.records.insert(id, record);
            return old.filter(|old| old.version != version);
        }
        None
    }

    /// Forgets a file; returns what was known.
    pub(crate) fn forget(&self, id: FileId) -> Option<FileRecord> {
        self.records.remove(&id).map(|(_, record)| record)
    }
}
