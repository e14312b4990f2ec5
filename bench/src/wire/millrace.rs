//! The Millrace protocol: `Read`, and `ReadMany` for a batch.
//!
//! Replies come in any order: the request id is the slot of the request on its connection. A frame
//! for each key is encoded before the clock starts where the keys are few enough; a request is then
//! a copy of 76 bytes with another id and another header checksum.

use anyhow::{Context, Result, bail, ensure};
use millrace_proto::frame::{self, BODY_LENGTH_MAX, PAYLOAD_LENGTH_MAX};
use millrace_proto::message::{ArchivedReadReply, Entry, Kind, Range, ReadManyRequest};
use millrace_proto::{HEADER_SIZE, Header, Op, checksum, placement};

use super::{Step, Wire};
use crate::address::Stream;
use crate::control::{Control, Node};
use crate::reply::check_reply;

/// Size of a `Read` request in bytes.
const READ_FRAME_SIZE: usize = HEADER_SIZE + 36;
/// Most keys whose frames are encoded beforehand: 20 MiB of them.
const PREPARED_COUNT_MAX: u64 = 1 << 18;

/// The ranges that are read: each file's blocks cut into pieces of one size from the block's start,
/// the last of a block or file perhaps shorter. A key is the index of a piece over all files.
#[derive(Clone, Debug)]
pub struct FileRanges {
    files: Vec<FileSpan>,
    count: u64,
    size: u32,
    block_size: u32,
}

#[derive(Clone, Debug)]
struct FileSpan {
    entry: Entry,
    first_key: u64,
}

impl FileRanges {
    /// Cuts the files among `entries` into ranges of `size` bytes; empty files and directories have
    /// none.
    ///
    /// # Errors
    /// If the size is zero or larger than a block, or nothing is left to read.
    pub fn new(entries: Vec<Entry>, size: u32, block_size: u32) -> Result<FileRanges> {
        ensure!(size > 0, "a read of 0 bytes reads nothing");
        ensure!(block_size > 0, "the node says its blocks have 0 bytes");
        ensure!(
            size <= block_size,
            "a read of {size} bytes is larger than the node's blocks of {block_size} bytes; \
             choose a size up to that"
        );
        let mut ranges =
            FileRanges { files: Vec::with_capacity(entries.len()), count: 0, size, block_size };
        for entry in entries {
            if entry.kind != Kind::File || entry.length == 0 {
                continue;
            }
            let block_size = u64::from(block_size);
            let whole = entry.length / block_size * ranges.per_block();
            let rest = (entry.length % block_size).div_ceil(u64::from(size));
            let first_key = ranges.count;
            ranges.files.push(FileSpan { entry, first_key });
            ranges.count += whole + rest;
        }
        ensure!(ranges.count > 0, "there is no file to read, or all are empty");
        Ok(ranges)
    }

    /// Returns the number of ranges, one above the largest key.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the number of files with at least one range.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// Returns the size of all ranges in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.entry.length).sum()
    }

    fn per_block(&self) -> u64 {
        u64::from(self.block_size.div_ceil(self.size))
    }

    /// Returns the file of a key and the range it stands for.
    fn locate(&self, key: u64) -> (&Entry, Range) {
        let index = self.files.partition_point(|file| file.first_key <= key) - 1;
        let file = &self.files[index];
        let piece = key - file.first_key;
        let start = piece % self.per_block() * u64::from(self.size);
        let offset = piece / self.per_block() * u64::from(self.block_size) + start;
        let length = u64::from(self.size)
            .min(u64::from(self.block_size) - start)
            .min(file.entry.length - offset);
        let range = Range {
            file: file.entry.id,
            version: file.entry.version,
            offset,
            length: length as u32,
        };
        (&file.entry, range)
    }
}

/// A Millrace node serving ranges of files.
pub struct Millrace {
    ranges: FileRanges,
    /// The request of each key with id 0, or empty where there are too many keys.
    prepared: Vec<[u8; READ_FRAME_SIZE]>,
    many: ReadManyRequest,
    batch: usize,
    shard_count: usize,
    request_budget_ms: u32,
}

/// Budget of every request in milliseconds: beyond it a run is broken anyway.
const REQUEST_BUDGET_MS: u32 = 10_000;

impl Millrace {
    /// Makes requests of `batch` ranges each: 1 asks by `Read`, more by `ReadMany`. With `route` each
    /// connection asks only for blocks of the shard it is connected to.
    ///
    /// # Errors
    /// If the node takes fewer ranges in a `ReadMany`.
    pub fn new(node: &Node, ranges: FileRanges, batch: usize, route: bool) -> Result<Millrace> {
        ensure!(
            batch == 1 || batch <= node.ranges_max as usize,
            "a batch of {batch} is more than the {} ranges the node takes",
            node.ranges_max
        );
        let mut wire = Millrace {
            ranges,
            prepared: Vec::new(),
            many: ReadManyRequest { ranges: Vec::new() },
            batch,
            shard_count: if route { node.shards.len() } else { 1 },
            request_budget_ms: REQUEST_BUDGET_MS,
        };
        if wire.ranges.count() <= PREPARED_COUNT_MAX {
            wire.prepare();
        }
        Ok(wire)
    }

    /// Encodes the frame of every key beforehand, however many there are: 76 bytes for each.
    /// Without it a read of many keys costs the generator more than one of few.
    pub fn prepare(&mut self) {
        if self.batch == 1 && self.prepared.is_empty() {
            self.prepared = (0..self.ranges.count()).map(|key| self.read_frame(key)).collect();
        }
    }

    fn read_frame(&self, key: u64) -> [u8; READ_FRAME_SIZE] {
        let (_, range) = self.ranges.locate(key);
        let mut out = Vec::with_capacity(READ_FRAME_SIZE);
        let header = Header::request(Op::Read, 0, self.request_budget_ms);
        frame::encode(&mut out, header, &range);
        out.try_into().expect("a Read request has one size")
    }
}

/// Gives an encoded frame another request id.
#[inline]
fn set_request_id(frame: &mut [u8], request_id: u64) {
    frame[24..32].copy_from_slice(&request_id.to_le_bytes());
    let checksum = checksum::of(&frame[..36]);
    frame[36..40].copy_from_slice(&checksum.to_le_bytes());
}

impl Wire for Millrace {
    type Stage = ();
    const IN_ORDER: bool = false;

    fn greet(&mut self, stream: &mut Stream) -> Result<()> {
        Control::over(stream).hello().map(drop)
    }

    #[inline]
    fn encode(&mut self, slot: u32, keys: &[u64], out: &mut Vec<u8>) {
        if let ([key], 1) = (keys, self.batch) {
            let start = out.len();
            match self.prepared.get(*key as usize) {
                Some(frame) => out.extend_from_slice(frame),
                None => out.extend_from_slice(&self.read_frame(*key)),
            }
            set_request_id(&mut out[start..], u64::from(slot));
            return;
        }
        self.many.ranges.clear();
        for &key in keys {
            self.many.ranges.push(self.ranges.locate(key).1);
        }
        let header = Header::request(Op::ReadMany, u64::from(slot), self.request_budget_ms);
        frame::encode(out, header, &self.many);
    }

    #[inline]
    fn length(&self, key: u64) -> usize {
        match self.prepared.get(key as usize) {
            Some(frame) => {
                let [a, b, c, d] = frame[READ_FRAME_SIZE - 4..] else {
                    unreachable!("four bytes were cut")
                };
                u32::from_le_bytes([a, b, c, d]) as usize
            }
            None => self.ranges.locate(key).1.length as usize,
        }
    }

    #[inline]
    fn step(&self, (): &mut (), bytes: &[u8]) -> Result<Option<Step>> {
        let Some((first, rest)) = bytes.split_first_chunk::<HEADER_SIZE>() else {
            return Ok(None);
        };
        let header = Header::decode(first).context("reply of the node")?;
        header.check_lengths(BODY_LENGTH_MAX, PAYLOAD_LENGTH_MAX)?;
        let Some(body) = rest.get(..header.body_length as usize) else {
            return Ok(None);
        };
        check_reply(&header, body)?;
        Ok(Some(Step {
            head: HEADER_SIZE + body.len(),
            payload: Some(header.payload_length as usize),
            part: usize::from(header.part),
            slot: Some(u32::try_from(header.request_id).context("a reply with an unknown id")?),
            done: true,
        }))
    }

    fn verify(&self, key: u64, head: &[u8], payload: &[u8]) -> Result<()> {
        let (first, body) = head.split_first_chunk().context("a reply without a header")?;
        let header = Header::decode(first)?;
        header.check_body(body)?;
        let reply = frame::body::<ArchivedReadReply>(body)?;
        let (entry, range) = self.ranges.locate(key);
        let block_size = u64::from(self.ranges.block_size);
        let start = range.offset % block_size;
        let block_length = block_size.min(entry.length - (range.offset - start));
        let values = reply.checksums.iter().map(|value| value.to_native());
        let block = (range.offset / block_size) as u32;
        let tag = match header.covers_identity() {
            true => checksum::tag(range.file, range.version, block),
            false => 0,
        };
        let verified = checksum::verify(payload, start as u32, block_length as u32, tag, values);
        if let Err(offset) = verified {
            bail!(
                "{} at {}: checksum mismatch at byte {offset} of the block",
                entry.name,
                range.offset
            );
        }
        Ok(())
    }

    fn lanes(&self) -> usize {
        self.shard_count
    }

    #[inline]
    fn lane(&self, key: u64) -> usize {
        if self.shard_count == 1 {
            return 0;
        }
        let (_, range) = self.ranges.locate(key);
        let block = range.offset / u64::from(self.ranges.block_size);
        let hash = placement::block_hash(range.file, block);
        placement::shard_of(hash, self.shard_count as u32) as usize
    }
}
