//! The Raft log in LMDB: one record for each entry, and the header.
//!
//! Always holds, in every commit: entries are those after the compacted one up to the last one,
//! without a gap; each repeats the CRC of the one before it, the first that of the compacted entry
//! and the header that of the last one. So a missing, old or misplaced entry shows at open, where
//! the whole chain is read once, and again whenever entries are read.

use std::sync::Arc;

use heed::{PutFlags, RoTxn, RwTxn, WithoutTls};
use raft::eraftpb::Entry;

use super::lmdb::{Environment, Records};
use super::record::{self, HEADER_KEY, LogHeader, Position};
use super::{Append, COMPACT_ENTRIES_MAX, Identity, LogReader, LogState, LogStore, StoreError};

/// The log of a replica. One writer.
pub struct LmdbLog {
    environment: Arc<Environment>,
    /// As in the last commit.
    header: LogHeader,
}

impl LmdbLog {
    /// Writes the first header into a new environment.
    pub(super) fn create(
        environment: Environment,
        header: LogHeader,
    ) -> Result<LmdbLog, StoreError> {
        let mut log = LmdbLog { environment: Arc::new(environment), header };
        log.update(|_, _| Ok(()))?;
        Ok(log)
    }

    /// Reads every entry once, to be sure that all are there.
    pub(super) fn open(environment: Environment, header: &[u8]) -> Result<LmdbLog, StoreError> {
        let header = LogHeader::read(header).map_err(|reason| environment.corrupt(reason))?;
        let log = LmdbLog { environment: Arc::new(environment), header };
        log.verify()?;
        Ok(log)
    }

    fn verify(&self) -> Result<(), StoreError> {
        let environment = &self.environment;
        let view = environment.view()?;
        let records = environment.records();
        let mut chain = Chain::new(environment, self.header.compacted);
        // The first record is the header, everything after it an entry.
        for record in records.iter(&view).map_err(|error| environment.error(error))?.skip(1) {
            let (key, value) = record.map_err(|error| environment.error(error))?;
            chain.next(key, |index, value| Ok(record::check_entry(index, value)?.0), value)?;
        }
        if chain.position != self.header.last {
            let reason = format!(
                "it ends with entry {}, but its header says {}",
                chain.position.index, self.header.last.index
            );
            return Err(environment.corrupt(reason));
        }
        Ok(())
    }

    /// Changes header and records in one durable commit.
    fn update<T>(
        &mut self,
        change: impl FnOnce(&mut Writer<'_, '_>, &Environment) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let environment = &self.environment;
        let mut header = self.header.clone();
        let changed = environment.write(|transaction, records, number| {
            let mut writer = Writer { transaction, records, header: &mut header };
            let changed = change(&mut writer, environment)?;
            let value = header.write(number);
            let put = records.put(transaction, HEADER_KEY, &value);
            put.map_err(|error| environment.error(error))?;
            Ok(changed)
        })?;
        self.header = header;
        Ok(changed)
    }

    /// Sets the cluster of a log that has none yet, durably.
    ///
    /// # Errors
    /// As [`LogStore::append`].
    ///
    /// # Panics
    /// If it has another cluster already.
    pub fn adopt(&mut self, cluster_id: u64) -> Result<(), StoreError> {
        let current = self.header.identity.cluster_id;
        assert!(current == 0 || current == cluster_id, "a log changes its cluster");
        self.update(|writer, _| {
            writer.header.identity.cluster_id = cluster_id;
            Ok(())
        })
    }

    /// Whose log it is.
    pub fn identity(&self) -> Identity {
        self.header.identity
    }

    /// Whether nothing was ever stored.
    pub(super) fn is_pristine(&self) -> bool {
        self.header.is_pristine()
    }
}

impl LogStore for LmdbLog {
    fn append(&mut self, batch: &[Append]) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.update(|writer, environment| {
            let mut value = Vec::new();
            for append in batch {
                if let Some((index, term)) = append.reset {
                    writer.reset(index, term).map_err(|error| environment.error(error))?;
                }
                if let Some(first) = append.entries.first() {
                    writer.cut(first.index, environment)?;
                }
                for entry in &append.entries {
                    writer.push(entry, &mut value).map_err(|error| environment.error(error))?;
                }
                if let Some(hard_state) = &append.hard_state {
                    writer.header.hard_state = hard_state.clone();
                }
            }
            Ok(())
        })
    }

    fn compact(&mut self, to: u64, term: u64) -> Result<u64, StoreError> {
        let LogHeader { compacted, last, .. } = self.header;
        assert!(to <= last.index, "compaction to {to}, but the log ends with {}", last.index);
        if to <= compacted.index {
            return Ok(compacted.index);
        }
        let step = to.min(compacted.index + COMPACT_ENTRIES_MAX);
        self.update(|writer, environment| {
            let position = writer.position(step, environment)?;
            assert!(step < to || position.term == term, "compaction to an entry of another term");
            for index in compacted.index + 1..=step {
                writer.delete(index, environment)?;
            }
            writer.header.compacted = position;
            Ok(step)
        })
    }

    fn reader(&self) -> Box<dyn LogReader> {
        Box::new(LmdbLogReader { environment: self.environment.clone() })
    }

    fn used_bytes(&self) -> u64 {
        self.environment.used_bytes()
    }

    fn limit_bytes(&self) -> u64 {
        self.environment.limit_bytes()
    }
}

/// A transaction that changes the log, and the header it will commit.
struct Writer<'a, 'txn> {
    transaction: &'a mut RwTxn<'txn>,
    records: Records,
    header: &'a mut LogHeader,
}

impl Writer<'_, '_> {
    /// Forgets everything; the next entry is `index + 1`.
    fn reset(&mut self, index: u64, term: u64) -> Result<(), heed::Error> {
        self.records.clear(self.transaction)?;
        let position = Position { index, term, link: 0 };
        self.header.compacted = position;
        self.header.last = position;
        // The entries that follow are put behind the header, so it has to be there first.
        self.records.put(self.transaction, HEADER_KEY, &[])
    }

    /// Removes the entries from `index` on.
    fn cut(&mut self, index: u64, environment: &Environment) -> Result<(), StoreError> {
        let LogHeader { compacted, last, .. } = *self.header;
        assert!(index > compacted.index, "entry {index} is compacted already");
        assert!(index <= last.index + 1, "entry {index} leaves a gap after {}", last.index);
        if index > last.index {
            return Ok(());
        }
        self.header.last = self.position(index - 1, environment)?;
        for replaced in index..=last.index {
            self.delete(replaced, environment)?;
        }
        Ok(())
    }

    /// Puts the entry that follows the last one.
    fn push(&mut self, entry: &Entry, value: &mut Vec<u8>) -> Result<(), heed::Error> {
        let last = &mut self.header.last;
        assert_eq!(entry.index, last.index + 1, "entries of an append are consecutive");
        let link = record::write_entry(entry, last.link, value);
        *last = Position { index: entry.index, term: entry.term, link };
        let key = record::entry_key(entry.index);
        self.records.put_with_flags(self.transaction, PutFlags::APPEND, &key, value)
    }

    fn delete(&mut self, index: u64, environment: &Environment) -> Result<(), StoreError> {
        let deleted = self.records.delete(self.transaction, &record::entry_key(index));
        if deleted.map_err(|error| environment.error(error))? {
            Ok(())
        } else {
            Err(environment.corrupt(format!("entry {index} is missing")))
        }
    }

    /// The entry at `index`, which is there or is the compacted one, as the chain knows it.
    fn position(&self, index: u64, environment: &Environment) -> Result<Position, StoreError> {
        if index == self.header.compacted.index {
            return Ok(self.header.compacted);
        }
        let value = self.records.get(self.transaction, &record::entry_key(index));
        let head = match value.map_err(|error| environment.error(error))? {
            Some(value) => record::read_entry_head(index, value),
            None => Err("it is missing"),
        };
        let head = head.map_err(|reason| entry_damage(environment, index, reason))?;
        Ok(Position { index, term: head.term, link: head.crc })
    }
}

fn entry_damage(environment: &Environment, index: u64, reason: &str) -> StoreError {
    environment.corrupt(format!("entry {index}: {reason}"))
}

/// Entries in order, each checked against the one before it.
struct Chain<'a> {
    environment: &'a Environment,
    /// The entry that was read last.
    position: Position,
}

impl<'a> Chain<'a> {
    fn new(environment: &'a Environment, position: Position) -> Chain<'a> {
        Chain { environment, position }
    }

    /// Takes the next record; `read` checks its value and gives the head.
    fn next<'v>(
        &mut self,
        key: &[u8],
        read: impl FnOnce(u64, &'v [u8]) -> Result<record::EntryHead, &'static str>,
        value: &'v [u8],
    ) -> Result<(), StoreError> {
        let index = self.position.index + 1;
        let head =
            if key == record::entry_key(index) { read(index, value) } else { Err("it is missing") };
        let head = head.and_then(|head| match head.link == self.position.link {
            true => Ok(head),
            false => Err("it does not follow the entry before it"),
        });
        let head = head.map_err(|reason| entry_damage(self.environment, index, reason))?;
        self.position = Position { index, term: head.term, link: head.crc };
        Ok(())
    }
}

/// Reads the log while it is written.
struct LmdbLogReader {
    environment: Arc<Environment>,
}

impl LmdbLogReader {
    /// Runs `read` on the last commit.
    fn read<T>(
        &self,
        read: impl FnOnce(&Lookup<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let environment = &*self.environment;
        let view = environment.view()?;
        let value = environment.records().get(&view, HEADER_KEY);
        let value = value.map_err(|error| environment.error(error))?;
        let header = value.ok_or("its header is missing").and_then(LogHeader::read);
        let header = header.map_err(|reason| environment.corrupt(reason))?;
        read(&Lookup { environment, header, view: &view })
    }
}

/// One commit of the log.
struct Lookup<'a> {
    environment: &'a Environment,
    header: LogHeader,
    view: &'a RoTxn<'a, WithoutTls>,
}

impl LogReader for LmdbLogReader {
    fn initial(&self) -> Result<LogState, StoreError> {
        self.read(|Lookup { header, .. }| {
            Ok(LogState {
                hard_state: header.hard_state.clone(),
                compacted_index: header.compacted.index,
                compacted_term: header.compacted.term,
                last_index: header.last.index,
                last_term: header.last.term,
            })
        })
    }

    fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, StoreError> {
        self.read(|lookup| lookup.entries(low, high, bytes_max))
    }

    fn term(&self, index: u64) -> Result<Option<u64>, StoreError> {
        self.read(|lookup| lookup.term(index))
    }
}

impl Lookup<'_> {
    fn value(&self, index: u64) -> Result<&[u8], StoreError> {
        let environment = self.environment;
        let value = environment.records().get(self.view, &record::entry_key(index));
        let value = value.map_err(|error| environment.error(error))?;
        value.ok_or_else(|| entry_damage(environment, index, "it is missing"))
    }

    fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, StoreError> {
        let LogHeader { compacted, last, .. } = self.header;
        if low <= compacted.index {
            return Err(StoreError::Compacted { index: compacted.index });
        }
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        let mut link = None;
        for index in low..high.min(last.index + 1) {
            let value = self.value(index)?;
            bytes += value.len() as u64;
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            let read = record::read_entry(index, value);
            let (head, entry) =
                read.map_err(|reason| entry_damage(self.environment, index, reason))?;
            if link.is_some_and(|link| link != head.link) {
                let reason = "it does not follow the entry before it";
                return Err(entry_damage(self.environment, index, reason));
            }
            link = Some(head.crc);
            entries.push(entry);
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<Option<u64>, StoreError> {
        let LogHeader { compacted, last, .. } = self.header;
        if index == compacted.index {
            return Ok(Some(compacted.term));
        }
        if index < compacted.index || index > last.index {
            return Ok(None);
        }
        let head = record::read_entry_head(index, self.value(index)?);
        let head = head.map_err(|reason| entry_damage(self.environment, index, reason))?;
        Ok(Some(head.term))
    }
}
