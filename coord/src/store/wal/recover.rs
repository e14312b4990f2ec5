//! Opening a log: every batch is read, checked and applied again, and the end is found.
//!
//! Always holds: batches have consecutive numbers, and each repeats the checksum of the one before it,
//! through all segments. The log ends at the first unreadable batch, unless [`check_end`] or the mark of a
//! later durable batch contradicts. Then the rest of a crash behind the end is overwritten with zeros.
//!
//! Damage in any batch but the last is always noticed, because of the batches after it. In the last one a
//! changed byte is noticed, because the rest of the batch is there. Lost sectors are noticed by the mark,
//! even if all are lost. Sectors of the last batch are not noticed if the disk reported them durable and
//! lost them with the power before the kernel wrote the mark (half a minute). Such a disk breaks every log.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::super::StoreError;
use super::super::files::{is_zero, sync_directory};
use super::batch::{Begin, LogBatch, check_end};
use super::index::{Index, Live};
use super::segment::{Mark, Segment, remove_unfinished};

pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) mark: Mark,
    /// Number and checksum of the last batch.
    pub(super) number: u64,
    pub(super) link: u32,
    /// Place of the next batch in the last segment.
    pub(super) offset: u64,
}

/// Reads the log in `directory`; `None` if none was finished there. Errors have `name`.
pub(super) fn recover(directory: &Path, name: &str) -> Result<Option<Recovered>, StoreError> {
    if !directory.is_dir() {
        return Ok(None);
    }
    remove_unfinished(directory)?;
    let numbers = Segment::numbers(directory)?;
    let Some((mark, durable, durable_link)) = Mark::open(directory, name)? else {
        return match numbers.is_empty() {
            true => Ok(None),
            false => Err(StoreError::corrupt(name, "its file `end` is missing")),
        };
    };
    if numbers.is_empty() && durable == 0 {
        return Ok(None);
    }
    let mut replay = Replay::new(name, mark.store_id(), durable, durable_link);
    // The segments before a gap came back after a crash undid their removal, or the log is incomplete.
    let gap = numbers.windows(2).rposition(|pair| pair[1] - pair[0] != 1);
    let (older, run) = numbers.split_at(gap.map_or(0, |at| at + 1));
    for number in run {
        replay.read(Segment::open(directory, *number)?)?;
    }
    let recovered = replay.finish(mark)?;
    for number in older {
        Segment::open(directory, *number)?.remove()?;
    }
    sync_directory(directory)?;
    Ok(Some(recovered))
}

/// A segment without the next batch.
struct Stop {
    segment: Arc<Segment>,
    bytes: Vec<u8>,
    offset: usize,
}

struct Replay<'a> {
    name: &'a str,
    store_id: u64,
    /// The number in the mark.
    durable: u64,
    durable_link: u32,
    /// `None` before the first batch.
    index: Option<Index>,
    /// The number of the last batch.
    number: u64,
    link: u32,
    /// The end of the last segment that begins, and the one after it that does not.
    end: Option<Stop>,
    unbegun: Option<Stop>,
}

impl<'a> Replay<'a> {
    fn new(name: &'a str, store_id: u64, durable: u64, durable_link: u32) -> Replay<'a> {
        let (index, end, unbegun) = (None, None, None);
        let (number, link) = (0, 0);
        Replay { name, store_id, durable, durable_link, index, number, link, end, unbegun }
    }

    fn corrupt(&self, path: &Path, offset: usize, reason: &str) -> StoreError {
        let at = format!("{reason} (file {}, offset {offset})", path.display());
        StoreError::corrupt(self.name, at)
    }

    /// Takes the next segment.
    fn read(&mut self, segment: Segment) -> Result<(), StoreError> {
        if let Some(unbegun) = &self.unbegun {
            let reason = "a segment is empty, but a later one is there";
            return Err(self.corrupt(&unbegun.segment.path, 0, reason));
        }
        let bytes = segment.read()?;
        let segment = Arc::new(segment);
        let mut offset = 0;
        while let Some(batch) = LogBatch::read(&bytes[offset..], self.store_id) {
            let taken = self.take(&segment, offset, &batch);
            if !taken.map_err(|reason| self.corrupt(&segment.path, offset, reason))? {
                break;
            }
            offset += batch.size;
        }
        let stop = Stop { segment, bytes, offset };
        match offset {
            0 => self.unbegun = Some(stop),
            _ => self.end = Some(stop),
        }
        Ok(())
    }

    /// Applies a batch. Fails if it is not the next one.
    fn take(
        &mut self,
        segment: &Arc<Segment>,
        offset: usize,
        batch: &LogBatch<'_>,
    ) -> Result<bool, &'static str> {
        if self.index.is_some() && (batch.number, batch.link) != (self.number + 1, self.link) {
            return Ok(false);
        }
        let (begin, ops) = batch.decode()?;
        if begin.is_some() != (offset == 0) {
            return Err("a segment begins in another place");
        }
        if let Some(begin) = begin {
            self.begin(segment, begin)?;
        }
        if batch.number == self.durable && batch.crc != self.durable_link {
            return Err("a batch is not the one that was written last");
        }
        let index = self.index.as_mut().ok_or("a segment begins in another place")?;
        let mut header = index.header.clone();
        for op in &ops {
            header.follow(op)?;
            index.apply(op, segment.number, offset as u32);
        }
        let live = index.segments.back_mut().ok_or("a segment begins in another place")?;
        live.used_bytes += batch.size as u64;
        (self.number, self.link) = (batch.number, batch.crc);
        Ok(true)
    }

    fn begin(&mut self, segment: &Arc<Segment>, begin: Begin) -> Result<(), &'static str> {
        if begin.segment != segment.number {
            return Err("it is another segment");
        }
        if begin.size > segment.size {
            return Err("its file was cut short");
        }
        let index = self.index.get_or_insert_with(|| Index::new(begin.header.clone()));
        if index.header != begin.header {
            return Err("a segment does not continue the one before it");
        }
        index.segments.push_back(Live { segment: segment.clone(), used_bytes: 0 });
        Ok(())
    }

    /// Checks that the log may end here, and makes durable what is there.
    fn finish(self, mark: Mark) -> Result<Recovered, StoreError> {
        for stop in [&self.end, &self.unbegun].into_iter().flatten() {
            check_end(&stop.bytes[stop.offset..], self.store_id, self.number + 1)
                .map_err(|reason| self.corrupt(&stop.segment.path, stop.offset, reason))?;
        }
        let Some(end) = &self.end else {
            return Err(StoreError::corrupt(self.name, "no segment of it begins"));
        };
        let path = &end.segment.path;
        if self.number < self.durable {
            let reason =
                format!("it ends after batch {}, {} was durable", self.number, self.durable);
            return Err(self.corrupt(path, end.offset, &reason));
        }
        let index = self.index.as_ref().expect("a segment that began has a header");
        if let Some(entry) = index.missing() {
            return Err(self.corrupt(path, 0, &format!("entry {entry} is missing before it")));
        }
        clear(end).map_err(|error| StoreError::io("write", path, error))?;
        if let Some(Stop { segment, .. }) = &self.unbegun {
            // It may have part of a batch, and a new segment must be zeros.
            segment.remove()?;
        }
        let written = mark.set(self.number, self.link);
        written.map_err(|error| StoreError::io("write the end of", path, error))?;
        mark.sync()?;
        let (number, link, offset) = (self.number, self.link, end.offset as u64);
        let index = self.index.expect("a segment that began has a header");
        Ok(Recovered { index, mark, number, link, offset })
    }
}

/// Overwrites the rest of a crash behind the end, and syncs what is before it.
fn clear(end: &Stop) -> std::io::Result<()> {
    let file = &end.segment.file;
    let rest = &end.bytes[end.offset..];
    if !is_zero(rest) {
        let last = rest.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        file.write_all_at(&vec![0; last + 1], end.offset as u64)?;
    }
    file.sync_data()
}
