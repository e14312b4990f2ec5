//! The files a node knows: id to path, version and length.
//!
//! Owns the only table that shards share, a bounded one. It is read on a miss and written when the
//! source was asked, by the side thread alone; a hit never comes here. An entry may be forgotten at any
//! time: a read that needs it is then answered `UnknownFile`, and the client looks the path up again.
//! Always holds: the result of an older look at the source never replaces that of a newer one. A file is
//! doubted once a read wanted another version of it than the known one, until the source is asked again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// True if a part of a block is read where no more is needed.
    pub is_read_in_parts: bool,
    /// True if its blocks may lie on the node's disks: they stay until others need the room.
    pub is_stored: bool,
}

/// When a look at the source began. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Look(u64);

/// The result of a note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Noted {
    /// It is known now, or was.
    Known,
    /// It takes the place of a record of another version, whose blocks have to go.
    Instead,
    /// A look that began later has found another version already, and that stays.
    TooLate,
}

/// Files that can be doubted at once. Guessed: those that change between two look-ups.
const DOUBTS_MAX: usize = 10_000;

/// The table.
pub(crate) struct FileTable {
    records: Cache<FileId, (FileRecord, Look)>,
    /// Files whose records may be old, each with the look before which that was found.
    doubts: Cache<FileId, Look>,
    looks: AtomicU64,
}

impl FileTable {
    /// Makes a table for at most `files_max` files.
    pub(crate) fn new(files_max: usize) -> FileTable {
        FileTable {
            records: Cache::new(files_max),
            doubts: Cache::new(DOUBTS_MAX.min(files_max)),
            looks: AtomicU64::new(0),
        }
    }

    /// Returns what is known of a file.
    pub(crate) fn get(&self, id: FileId) -> Option<FileRecord> {
        self.records.get(&id).map(|(record, _)| record)
    }

    /// Returns what is known of a file since before this look.
    pub(crate) fn get_from_before(&self, id: FileId, look: Look) -> Option<FileRecord> {
        self.records.get(&id).filter(|(_, seen)| *seen < look).map(|(record, _)| record)
    }

    /// Notes that a read wanted this version. If another one is known, that may be the older one.
    pub(crate) fn doubt(&self, id: FileId, version: u64) {
        if self.get(id).is_some_and(|record| record.version != version) {
            self.doubts.insert(id, self.look());
        }
    }

    /// True if a read has wanted another version of a file since the source was asked.
    pub(crate) fn is_doubted(&self, id: FileId) -> bool {
        let seen = |look| self.records.get(&id).is_some_and(|(_, seen)| seen > look);
        self.doubts.get(&id).is_some_and(|look| !seen(look))
    }

    /// Begins a look at the source: to be called before the source is asked.
    pub(crate) fn look(&self) -> Look {
        Look(self.looks.fetch_add(1, Ordering::Relaxed))
    }

    /// Notes what is known of a file now.
    pub(crate) fn note(&self, id: FileId, record: FileRecord) -> Noted {
        self.note_at(id, record, self.look())
    }

    /// Notes what a look at the source found. Of two looks that were under way at once the one that
    /// began later counts. If the other one saw more, the first read of what it found is stale, and the
    /// next look sees it, too.
    pub(crate) fn note_at(&self, id: FileId, record: FileRecord, look: Look) -> Noted {
        let old = self.records.get(&id);
        let is_other = |old: &FileRecord| old.version != record.version;
        match old {
            Some((old, seen)) if seen > look => {
                if is_other(&old) {
                    Noted::TooLate
                } else {
                    Noted::Known
                }
            }
            Some((old, _)) if is_other(&old) => {
                self.records.insert(id, (record, look));
                Noted::Instead
            }
            _ => {
                self.records.insert(id, (record, look));
                Noted::Known
            }
        }
    }

    /// Forgets a file; returns what was known.
    pub(crate) fn forget(&self, id: FileId) -> Option<FileRecord> {
        self.records.remove(&id).map(|(_, (record, _))| record)
    }

    /// Returns all files, each with its path.
    pub(crate) fn all(&self) -> Vec<(FileId, Arc<str>)> {
        self.records.iter().map(|(id, (record, _))| (id, record.path)).collect()
    }

    /// Forgets all files below a directory; returns which these were.
    pub(crate) fn forget_below(&self, path: &str) -> Vec<FileId> {
        let is_below = |record: &FileRecord| {
            let rest = record.path.strip_prefix(path);
            rest.is_some_and(|rest| rest.starts_with('/'))
        };
        let below = self.records.iter().filter(|(_, (record, _))| is_below(record));
        let ids: Vec<FileId> = below.map(|(id, _)| id).collect();
        ids.into_iter().filter(|id| self.forget(*id).is_some()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId(1);

    fn record(version: u64) -> FileRecord {
        FileRecord {
            path: "f".into(),
            version,
            length: 1,
            is_read_in_parts: false,
            is_stored: true,
        }
    }

    #[test]
    fn an_older_look_never_replaces_a_newer_one() {
        let files = FileTable::new(10);
        let (first, second, third) = (files.look(), files.look(), files.look());
        assert_eq!(files.note_at(FILE, record(2), second), Noted::Known);
        assert_eq!(files.note_at(FILE, record(1), first), Noted::TooLate);
        assert_eq!(files.get(FILE), Some(record(2)));
        assert_eq!(files.note_at(FILE, record(2), first), Noted::Known);
        assert_eq!(files.note_at(FILE, record(3), third), Noted::Instead);
        assert_eq!(files.note_at(FILE, record(2), second), Noted::TooLate);
        assert_eq!(files.get(FILE), Some(record(3)));
    }

    #[test]
    fn the_newest_look_that_saw_a_version_counts() {
        let files = FileTable::new(10);
        let (first, second, third) = (files.look(), files.look(), files.look());
        assert_eq!(files.note_at(FILE, record(1), first), Noted::Known);
        assert_eq!(files.note_at(FILE, record(1), third), Noted::Known);
        assert_eq!(files.note_at(FILE, record(2), second), Noted::TooLate);
        assert_eq!(files.get(FILE), Some(record(1)));
        assert_eq!(files.get_from_before(FILE, second), None);
        assert_eq!(files.get_from_before(FILE, files.look()), Some(record(1)));
    }

    #[test]
    fn what_is_below_a_directory_is_forgotten_and_nothing_else() {
        let files = FileTable::new(10);
        for (id, path) in [(1, "a/b"), (2, "a/b/c"), (3, "a/bc"), (4, "a/b/c/d")] {
            files.note(FileId(id), FileRecord { path: path.into(), ..record(1) });
        }
        let mut forgotten = files.forget_below("a/b");
        forgotten.sort_unstable_by_key(|id| id.0);
        assert_eq!(forgotten, [FileId(2), FileId(4)]);
        assert!(files.get(FileId(1)).is_some() && files.get(FileId(3)).is_some());
        assert!(files.get(FileId(2)).is_none());
    }

    #[test]
    fn a_read_of_another_version_is_a_doubt_until_the_source_is_asked() {
        let files = FileTable::new(10);
        let record = |version| FileRecord {
            path: "a".into(),
            version,
            length: 1,
            is_read_in_parts: false,
            is_stored: true,
        };
        files.doubt(FileId(1), 5);
        assert!(!files.is_doubted(FileId(1)), "nothing is known of it");
        files.note(FileId(1), record(5));
        files.doubt(FileId(1), 5);
        assert!(!files.is_doubted(FileId(1)));
        let before = files.look();
        files.doubt(FileId(1), 6);
        assert!(files.is_doubted(FileId(1)));
        files.note_at(FileId(1), record(5), before);
        assert!(files.is_doubted(FileId(1)), "that look began before");
        files.note(FileId(1), record(5));
        assert!(!files.is_doubted(FileId(1)));
    }
}
