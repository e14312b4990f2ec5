//! Reading the log while it is written.
//!
//! Always holds: an entry is returned only if its checksum, index and term are right. The index is locked
//! only to look up places. Files are read after that, and stay readable if they are removed meanwhile.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use raft::eraftpb::Entry;

use super::super::{LogReader, LogState, StoreError};
use super::Shared;
use super::batch::read_entry;
use super::index::{Index, Slot};
use super::segment::Segment;

/// Most bytes of one read, if entries are not larger.
const READ_SIZE_MAX: u32 = 256 << 10;
/// Most unused bytes between two entries that are read together, which is cheaper than two reads.
const GAP_SIZE_MAX: u32 = 2048;

pub(super) struct WalReader {
    shared: Arc<Shared>,
}

/// Entries of one read.
struct Run {
    segment: Arc<Segment>,
    /// Index of the first entry.
    first: u64,
    slots: Vec<Slot>,
}

impl WalReader {
    pub(super) fn new(shared: Arc<Shared>) -> WalReader {
        WalReader { shared }
    }

    fn read(
        &self,
        run: &Run,
        bytes: &mut Vec<u8>,
        entries: &mut Vec<Entry>,
    ) -> Result<(), StoreError> {
        let (first, last) = (run.slots[0], run.slots[run.slots.len() - 1]);
        let Segment { file, path, .. } = &*run.segment;
        bytes.resize((last.offset - first.offset + last.size) as usize, 0);
        file.read_exact_at(bytes, u64::from(first.offset)).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                self.shared.corrupt(path, u64::from(first.offset), "its file was cut short")
            }
            _ => StoreError::io("read", path, error),
        })?;
        for (index, slot) in (run.first..).zip(&run.slots) {
            let at = (slot.offset - first.offset) as usize;
            let entry = read_entry(index, &bytes[at..at + slot.size as usize]);
            entries.push(entry.map_err(|reason| {
                let reason = format!("entry {index}: {reason}");
                self.shared.corrupt(path, u64::from(slot.offset), &reason)
            })?);
        }
        Ok(())
    }
}

impl LogReader for WalReader {
    fn initial(&self) -> Result<LogState, StoreError> {
        let index = self.shared.index();
        let header = &index.header;
        Ok(LogState {
            hard_state: header.hard_state.clone(),
            compacted_index: header.compacted.index,
            compacted_term: header.compacted.term,
            last_index: header.last.index,
            last_term: header.last.term,
        })
    }

    fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, StoreError> {
        let runs = runs(&self.shared.index(), low, high, bytes_max)?;
        let mut entries = Vec::with_capacity(runs.iter().map(|run| run.slots.len()).sum());
        let mut bytes = Vec::new();
        for run in &runs {
            self.read(run, &mut bytes, &mut entries)?;
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<Option<u64>, StoreError> {
        Ok(self.shared.index().term(index))
    }
}

/// Lists the reads for a call of [`LogReader::entries`].
fn runs(index: &Index, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Run>, StoreError> {
    let compacted = index.header.compacted.index;
    if low <= compacted {
        return Err(StoreError::Compacted { index: compacted });
    }
    let mut runs: Vec<Run> = Vec::new();
    let mut bytes = 0;
    for at in low..high.min(index.header.last.index + 1) {
        let Some(slot) = index.slot(at) else { break };
        bytes += u64::from(slot.size);
        if bytes > bytes_max && at > low {
            break;
        }
        match runs.last_mut() {
            Some(run) if continues(run, slot) => run.slots.push(slot),
            _ => {
                let segment = index.segment(slot.segment).clone();
                runs.push(Run { segment, first: at, slots: vec![slot] });
            }
        }
    }
    Ok(runs)
}

/// True if `slot` is read together with those of `run`.
fn continues(run: &Run, slot: Slot) -> bool {
    let (first, last) = (run.slots[0], run.slots[run.slots.len() - 1]);
    let end = last.offset + last.size;
    slot.segment == last.segment
        && slot.offset <= end + GAP_SIZE_MAX
        && slot.offset + slot.size <= first.offset + READ_SIZE_MAX
}
