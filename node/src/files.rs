//! The files a node knows: id to path, version and length.
//!
//! Owns the only table that shards share, a bounded one. It is read on a miss and written when the
//! source was asked; a hit never comes here. An entry may be forgotten at any time: a read that needs
//! it is then answered `UnknownFile`, and the client looks the path up again.

use std::sync::Arc;

use millrace_proto::{FileId, source};
use quick_cache::sync::Cache;

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileRecord {
    /// Path below the source's root.
    pub path: Arc<str>,
    /// Version that was seen last.
    pub version: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// The table.
pub(crate) struct FileTable {
    records: Cache<FileId, FileRecord>,
    source: String,
}

impl FileTable {
    /// A table for at most `files_max` files of the source with this identity.
    pub(crate) fn new(files_max: usize, source: &str) -> FileTable {
        FileTable { records: Cache::new(files_max), source: source.to_owned() }
    }

    /// The id of a path, see [`source::file_id`].
    pub(crate) fn id(&self, path: &str) -> FileId {
        source::file_id(&self.source, path)
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
