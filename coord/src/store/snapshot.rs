//! The chunks of a snapshot, and the file of a backup, which has the same chunks in a row.
//!
//! ```text
//!  chunk     ┌ crc ┬ kind ┬ number ┬ stream ┬ content ┐   crc: CRC-32 of what follows it
//!            └ u32 ┴ u8 ──┴ u32 ───┴ u64 ───┴─────────┘
//!  kind 1    version u8, then what the state belongs to; always number 0
//!  kind 2    records: key size u16, value size u32, key, value; keys ascend over the whole stream
//!  kind 3    count u64 and sum u64 of all records; always the last
//!
//!  file      "MILLRACE STATE\n\0", then each chunk behind its size (u32)
//! ```
//!
//! `stream` is the same in all chunks of a snapshot and differs between states, so that chunks of two
//! cannot be mixed. Numbers are little-endian.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use bytes::{Buf, BufMut};

use super::record::{self, Tally};
use super::{Applied, KEY_SIZE_MAX, SnapshotReader, StoreError, files};

/// Bytes of a chunk before its content.
const HEAD_SIZE: usize = 17;
const VERSION: u8 = 1;
const KIND_BEGIN: u8 = 1;
const KIND_RECORDS: u8 = 2;
const KIND_END: u8 = 3;
/// The first bytes of a backup.
const FILE_MAGIC: &[u8; 16] = b"MILLRACE STATE\n\0";
/// Bytes of a chunk in a file.
const FILE_CHUNK_BYTES: usize = 1 << 20;
/// The largest chunk of a file: one huge record. Larger sizes are damage.
const FILE_CHUNK_BYTES_MAX: u32 = 1 << 30;

/// The next kind of chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begin,
    Records,
    Done,
}

/// Cuts records into chunks.
#[derive(Debug)]
pub(super) struct Encoder {
    stage: Stage,
    number: u32,
    stream: u64,
    /// The key of the last record in a chunk; empty before the first.
    last_key: Vec<u8>,
    tally: Tally,
}

impl Encoder {
    /// Builds an encoder for the state of `store_id` after entry `index`. There is only one such state.
    pub(super) fn new(store_id: u64, index: u64) -> Encoder {
        let stream = store_id ^ index.rotate_left(32);
        let tally = Tally::default();
        Encoder { stage: Stage::Begin, number: 0, stream, last_key: Vec::new(), tally }
    }

    /// Returns the key behind which the records of the next chunk begin; empty for the very first.
    pub(super) fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// Returns the sum of all records, once the last chunk is made.
    pub(super) fn finished(&self) -> Option<Tally> {
        (self.stage == Stage::Done).then_some(self.tally)
    }

    /// Makes the next chunk, `None` after the last. `records` has those after [`Encoder::last_key`].
    pub(super) fn next<'a, R>(
        &mut self,
        applied: &Applied,
        records: R,
        bytes_max: usize,
    ) -> Result<Option<Vec<u8>>, StoreError>
    where
        R: Iterator<Item = Result<(&'a [u8], &'a [u8]), StoreError>>,
    {
        let mut chunk = vec![0; 4];
        match self.stage {
            Stage::Done => return Ok(None),
            Stage::Begin => {
                self.head(KIND_BEGIN, &mut chunk);
                chunk.put_u8(VERSION);
                record::write_applied(applied, &mut chunk);
                self.stage = Stage::Records;
            }
            Stage::Records => {
                self.head(KIND_RECORDS, &mut chunk);
                self.fill(&mut chunk, records, bytes_max)?;
                if chunk.len() == HEAD_SIZE {
                    chunk.truncate(4);
                    self.head(KIND_END, &mut chunk);
                    chunk.put_u64_le(self.tally.count);
                    chunk.put_u64_le(self.tally.sum);
                    self.stage = Stage::Done;
                }
            }
        }
        self.number += 1;
        let crc = crc32fast::hash(&chunk[4..]);
        chunk[..4].copy_from_slice(&crc.to_le_bytes());
        Ok(Some(chunk))
    }

    fn head(&self, kind: u8, chunk: &mut Vec<u8>) {
        chunk.put_u8(kind);
        chunk.put_u32_le(self.number);
        chunk.put_u64_le(self.stream);
    }

    /// Adds records while there is room, and at least one if there is one.
    fn fill<'a, R>(
        &mut self,
        chunk: &mut Vec<u8>,
        records: R,
        bytes_max: usize,
    ) -> Result<(), StoreError>
    where
        R: Iterator<Item = Result<(&'a [u8], &'a [u8]), StoreError>>,
    {
        for record in records {
            let (key, value) = record?;
            let size = 2 + 4 + key.len() + value.len();
            if chunk.len() > HEAD_SIZE && chunk.len() + size > bytes_max {
                break;
            }
            chunk.put_u16_le(u16::try_from(key.len()).expect("keys are at most 256 bytes"));
            chunk.put_u32_le(u32::try_from(value.len()).expect("LMDB values are below 4 GiB"));
            chunk.extend_from_slice(key);
            chunk.extend_from_slice(value);
            self.tally.add(record::mark(record::record_crc(key, value), value.len()));
            self.last_key.clear();
            self.last_key.extend_from_slice(key);
        }
        Ok(())
    }
}

/// Takes chunks in order and returns their records.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    number: u32,
    stream: u64,
    applied: Option<Applied>,
    last_key: Vec<u8>,
    tally: Tally,
    is_complete: bool,
}

impl Decoder {
    /// Reads the next chunk and hands its records to `push`.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if the chunk is damaged or not the next one; errors of `push`.
    pub(super) fn accept(
        &mut self,
        chunk: &[u8],
        push: &mut super::Push<'_>,
    ) -> Result<(), StoreError> {
        let (kind, content) = self.open(chunk)?;
        match (kind, self.number) {
            (KIND_BEGIN, 0) => {
                let applied = match content.split_first() {
                    Some((&VERSION, rest)) => record::read_applied(rest),
                    _ => return refuse("it has a version that this program does not know"),
                };
                let Some(applied) = applied else {
                    return refuse("its first chunk cannot be read");
                };
                self.applied = Some(applied);
            }
            (KIND_RECORDS, 1..) => self.records(content, push)?,
            (KIND_END, 1..) => {
                let mut fields = content;
                let stated = (fields.try_get_u64_le().ok(), fields.try_get_u64_le().ok());
                if stated != (Some(self.tally.count), Some(self.tally.sum)) {
                    return refuse("its records do not add up to what its last chunk says");
                }
                self.is_complete = true;
            }
            _ => return refuse("its chunks are out of order"),
        }
        self.number += 1;
        Ok(())
    }

    /// Returns the point that the complete snapshot belongs to, and the sum of its records.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if the last chunk is missing.
    pub(super) fn finish(&self) -> Result<(Applied, Tally), StoreError> {
        match &self.applied {
            Some(applied) if self.is_complete => Ok((applied.clone(), self.tally)),
            _ => refuse("its last chunks are missing"),
        }
    }

    /// Returns kind and content of a chunk that is the next one of this stream.
    fn open<'c>(&mut self, chunk: &'c [u8]) -> Result<(u8, &'c [u8]), StoreError> {
        if chunk.len() < HEAD_SIZE {
            return refuse("a chunk is too short");
        }
        let (mut head, content) = chunk.split_at(HEAD_SIZE);
        if head.get_u32_le() != crc32fast::hash(&chunk[4..]) {
            return refuse("a chunk has another checksum");
        }
        let kind = head.get_u8();
        let number = head.get_u32_le();
        let stream = head.get_u64_le();
        if self.number == 0 {
            self.stream = stream;
        }
        if stream != self.stream {
            return refuse("a chunk is of another snapshot");
        }
        if number != self.number || self.is_complete {
            return refuse(format!("chunk {number} came instead of {}", self.number));
        }
        Ok((kind, content))
    }

    fn records(
        &mut self,
        mut content: &[u8],
        push: &mut super::Push<'_>,
    ) -> Result<(), StoreError> {
        while !content.is_empty() {
            let Some((key, value)) = next_record(&mut content) else {
                return refuse("a record runs past the end of its chunk");
            };
            if key.is_empty() || key.len() > KEY_SIZE_MAX || key <= &self.last_key[..] {
                return refuse("its records are out of order");
            }
            push(key, value)?;
            self.tally.add(record::mark(record::record_crc(key, value), value.len()));
            self.last_key.clear();
            self.last_key.extend_from_slice(key);
        }
        Ok(())
    }
}

fn next_record<'c>(content: &mut &'c [u8]) -> Option<(&'c [u8], &'c [u8])> {
    let key_size = usize::from(content.try_get_u16_le().ok()?);
    let value_size = content.try_get_u32_le().ok()? as usize;
    let (key, rest) = content.split_at_checked(key_size)?;
    let (value, rest) = rest.split_at_checked(value_size)?;
    *content = rest;
    Some((key, value))
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, StoreError> {
    Err(StoreError::Snapshot { reason: reason.into() })
}

/// Writes all chunks of a snapshot to a new file, durably. The file has its name only when it is complete.
/// This may run in another thread than the store's.
///
/// # Errors
/// [`StoreError::Io`] if the file exists or cannot be written; errors of `reader`.
pub fn write_backup(reader: &mut dyn SnapshotReader, path: &Path) -> Result<(), StoreError> {
    if path.exists() {
        return Err(StoreError::io("write", path, "it exists already"));
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let fail = |error| StoreError::io("write", partial, error);
    let mut file = BufWriter::new(File::create(partial).map_err(fail)?);
    file.write_all(FILE_MAGIC).map_err(fail)?;
    while let Some(chunk) = reader.next_chunk(FILE_CHUNK_BYTES)? {
        let size = u32::try_from(chunk.len()).ok().filter(|size| *size <= FILE_CHUNK_BYTES_MAX);
        let size = size.ok_or_else(|| StoreError::io("write", partial, "a record is too large"))?;
        file.write_all(&size.to_le_bytes()).and_then(|()| file.write_all(&chunk)).map_err(fail)?;
    }
    let file = file.into_inner().map_err(|error| fail(error.into_error()))?;
    file.sync_all().map_err(fail)?;
    fs::rename(partial, path).map_err(|error| StoreError::io("write", path, error))?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => files::sync_directory(parent),
        _ => files::sync_directory(Path::new(".")),
    }
}

/// Hands the chunks of a file to `push`.
pub(super) fn read_backup(
    path: &Path,
    push: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let fail = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            StoreError::Snapshot { reason: format!("{} ends too early", path.display()) }
        }
        _ => StoreError::io("read", path, error),
    };
    let mut file = BufReader::new(File::open(path).map_err(fail)?);
    let mut magic = [0; FILE_MAGIC.len()];
    file.read_exact(&mut magic).map_err(fail)?;
    if magic != *FILE_MAGIC {
        return refuse(format!("{} is not a backup of this program", path.display()));
    }
    let mut chunk = Vec::new();
    while !file_is_at_end(&mut file).map_err(fail)? {
        let mut size = [0; 4];
        file.read_exact(&mut size).map_err(fail)?;
        let size = u32::from_le_bytes(size);
        if size > FILE_CHUNK_BYTES_MAX {
            return refuse(format!("{} has a chunk of {size} bytes", path.display()));
        }
        chunk.clear();
        // The memory grows with the bytes that are there, whatever the size says.
        let read = file.by_ref().take(u64::from(size)).read_to_end(&mut chunk).map_err(fail)?;
        if read as u64 != u64::from(size) {
            return refuse(format!("{} ends too early", path.display()));
        }
        push(&chunk)?;
    }
    Ok(())
}

fn file_is_at_end(file: &mut BufReader<File>) -> std::io::Result<bool> {
    use std::io::BufRead;
    Ok(file.fill_buf()?.is_empty())
}
