//! The bytes of a batch: what one append makes durable, all or nothing.
//!
//! ```text
//!  ┌ magic ┬ crc ┬ body crc ┬ size ┬ number ┬ link ┬ items size ┬ blanks ┐  head: 36 bytes
//!  │ u32   │ u32 │ u32      │ u32  │ u64    │ u32  │ u32        │ u32    │
//!  ├───────┴─────┴──────────┴──────┴────────┴──────┴────────────┴────────┤
//!  │ items                          zeros                   trailer      │  body, whole sectors
//!  └─────────────────────────────────────────────────────────────────────┘
//!  item      ┌ kind ┬ size of body ┬ body ┐
//!            └ u8 ──┴ u32 ─────────┴──────┘
//!  entry     ┌ crc ┬ index ┬ term ┬ the entry in protobuf ┐
//!            └ u32 ┴ u64 ──┴ u64 ─┴───────────────────────┘
//! ```
//!
//! Numbers are little-endian. A batch starts on a sector of a file of zeros, ends with a trailer that is
//! not zero, and has the count of its zero sectors (the blanks). So a write that a crash cut short is
//! noticed: more sectors than that are zero, or all after some place in the batch are. Any other batch was
//! written completely, and if its checksum is wrong it was changed later. The crc of the head covers the id
//! of the store, which no outside program knows, and what follows it. The link is the crc of the batch
//! before.

use bytes::{Buf, BufMut};
use protobuf::Message;
use raft::eraftpb::{Entry, HardState};

use super::super::StoreIdentity;
use super::super::files::is_zero;
use super::index::{Header, Op, Position};

/// Bytes that a disk writes as a whole: the smallest unit of any disk.
pub(super) const SECTOR: usize = 512;
const HEAD_SIZE: usize = 36;
/// Bytes of the item that begins a segment.
const BEGIN_SIZE: usize = ITEM_HEAD_SIZE + 1 + 4 + 8 + 10 * 8;
const ITEM_HEAD_SIZE: usize = 5;
/// Bytes of an entry before its protobuf.
const ENTRY_HEAD_SIZE: usize = 20;
/// Place of the items in a [`Builder`]: there is room for a head, and for the item that begins a segment.
const FRONT_SIZE: usize = HEAD_SIZE + BEGIN_SIZE;
const MAGIC: u32 = u32::from_le_bytes(*b"MRWL");
/// The only layout so far.
const VERSION: u8 = 1;
/// The end of each batch, without a zero byte.
const TRAILER: [u8; 4] = [0xe4; 4];

/// The kinds of items.
mod kind {
    pub(super) const BEGIN: u8 = 1;
    pub(super) const ENTRY: u8 = 2;
    pub(super) const HARD_STATE: u8 = 3;
    pub(super) const RESET: u8 = 4;
    pub(super) const COMPACT: u8 = 5;
    pub(super) const ADOPT: u8 = 6;
}

/// The first item in the first batch of a segment.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Begin {
    /// The number of the segment, as in its file name.
    pub(super) segment: u32,
    /// Bytes of its file.
    pub(super) size: u64,
    /// The log before this batch, so that earlier segments are needed only for their entries.
    pub(super) header: Header,
}

/// Builds one batch after the other in the same memory.
#[derive(Debug, Default)]
pub(super) struct Builder {
    bytes: Vec<u8>,
}

/// A batch that is ready to be written.
pub(super) struct Built<'a> {
    pub(super) bytes: &'a [u8],
    /// The link of the next batch.
    pub(super) crc: u32,
    /// Place in `bytes` of the items that [`Builder::add`] took.
    pub(super) items_at: usize,
}

impl Builder {
    /// Begins a new batch.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.resize(FRONT_SIZE, 0);
    }

    /// Frees memory that only a large batch needed.
    pub(super) fn shrink_to(&mut self, bytes_max: usize) {
        if self.bytes.capacity() > bytes_max {
            self.bytes = Vec::new();
        }
    }

    /// Adds an entry. Returns the operation with its place, counted from the first item.
    pub(super) fn add_entry(&mut self, entry: &Entry) -> Op {
        let item = self.begin_item(kind::ENTRY);
        let body = item + ITEM_HEAD_SIZE;
        self.bytes.put_u32_le(0);
        self.bytes.put_u64_le(entry.index);
        self.bytes.put_u64_le(entry.term);
        entry
            .write_to_vec(&mut self.bytes)
            .expect("an entry has no required field, and a vector takes it");
        let crc = crc32fast::hash(&self.bytes[body + 4..]);
        self.bytes[body..body + 4].copy_from_slice(&crc.to_le_bytes());
        let size = self.end_item(item);
        let position = Position { index: entry.index, term: entry.term };
        Op::Entry { position, at: (body - FRONT_SIZE) as u32, size }
    }

    /// Adds an operation that is not an entry.
    pub(super) fn add(&mut self, op: &Op) {
        match op {
            Op::Entry { .. } => unreachable!("entries have bytes of their own"),
            Op::HardState(hard_state) => {
                let item = self.begin_item(kind::HARD_STATE);
                put_hard_state(&mut self.bytes, hard_state);
                self.end_item(item);
            }
            Op::Reset(position) => self.add_position(kind::RESET, *position),
            Op::Compact(position) => self.add_position(kind::COMPACT, *position),
            Op::Adopt(cluster_id) => {
                let item = self.begin_item(kind::ADOPT);
                self.bytes.put_u64_le(*cluster_id);
                self.end_item(item);
            }
        }
    }

    fn add_position(&mut self, kind: u8, position: Position) {
        let item = self.begin_item(kind);
        put_position(&mut self.bytes, position);
        self.end_item(item);
    }

    fn begin_item(&mut self, kind: u8) -> usize {
        let at = self.bytes.len();
        self.bytes.put_u8(kind);
        self.bytes.put_u32_le(0);
        at
    }

    fn end_item(&mut self, item: usize) -> u32 {
        let size = (self.bytes.len() - item - ITEM_HEAD_SIZE) as u32;
        self.bytes[item + 1..item + ITEM_HEAD_SIZE].copy_from_slice(&size.to_le_bytes());
        size
    }

    /// Returns the bytes of the batch so far, in the middle of a segment or as its first one.
    pub(super) fn size(&self, is_first: bool) -> u64 {
        let front = if is_first { 0 } else { BEGIN_SIZE };
        (self.bytes.len() - front + TRAILER.len()).next_multiple_of(SECTOR) as u64
    }

    /// Ends the batch. Only [`Builder::clear`] may follow.
    pub(super) fn finish(
        &mut self,
        begin: Option<&Begin>,
        number: u64,
        link: u32,
        store_id: u64,
    ) -> Built<'_> {
        let size = self.size(begin.is_some()) as usize;
        let start = if begin.is_some() { 0 } else { BEGIN_SIZE };
        let items_size = self.bytes.len() - start - HEAD_SIZE;
        if let Some(begin) = begin {
            let item = write_begin(begin);
            self.bytes[HEAD_SIZE..FRONT_SIZE].copy_from_slice(&item);
        }
        self.bytes.resize(start + size - TRAILER.len(), 0);
        self.bytes.put_slice(&TRAILER);
        let bytes = &mut self.bytes[start..];
        let body_crc = crc32fast::hash(&bytes[HEAD_SIZE..]);
        let blanks = count_blanks(bytes);
        let mut head = &mut bytes[..HEAD_SIZE];
        head.put_u32_le(MAGIC);
        head.put_u32_le(0);
        head.put_u32_le(body_crc);
        head.put_u32_le(size as u32);
        head.put_u64_le(number);
        head.put_u32_le(link);
        head.put_u32_le(items_size as u32);
        head.put_u32_le(blanks);
        let crc = head_crc(&bytes[..HEAD_SIZE], store_id);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        Built { bytes, crc, items_at: FRONT_SIZE - start }
    }
}

fn write_begin(begin: &Begin) -> Vec<u8> {
    let Begin { segment, size, header } = begin;
    let mut item = Vec::with_capacity(BEGIN_SIZE);
    item.put_u8(kind::BEGIN);
    item.put_u32_le((BEGIN_SIZE - ITEM_HEAD_SIZE) as u32);
    item.put_u8(VERSION);
    item.put_u32_le(*segment);
    item.put_u64_le(*size);
    let StoreIdentity { cluster_id, replica_id, store_id } = header.identity;
    for number in [cluster_id, replica_id, store_id] {
        item.put_u64_le(number);
    }
    put_hard_state(&mut item, &header.hard_state);
    put_position(&mut item, header.compacted);
    put_position(&mut item, header.last);
    item
}

fn read_begin(mut body: &[u8]) -> Result<Begin, &'static str> {
    if body.len() != BEGIN_SIZE - ITEM_HEAD_SIZE || body.get_u8() != VERSION {
        return Err("it has a version that this program does not know");
    }
    let segment = body.get_u32_le();
    let size = body.get_u64_le();
    let identity = StoreIdentity {
        cluster_id: body.get_u64_le(),
        replica_id: body.get_u64_le(),
        store_id: body.get_u64_le(),
    };
    let hard_state = get_hard_state(&mut body);
    let compacted = get_position(&mut body);
    let last = get_position(&mut body);
    Ok(Begin { segment, size, header: Header { identity, hard_state, compacted, last } })
}

fn put_hard_state(bytes: &mut Vec<u8>, hard_state: &HardState) {
    for number in [hard_state.term, hard_state.vote, hard_state.commit] {
        bytes.put_u64_le(number);
    }
}

fn get_hard_state(body: &mut &[u8]) -> HardState {
    let (term, vote, commit) = (body.get_u64_le(), body.get_u64_le(), body.get_u64_le());
    HardState { term, vote, commit, ..HardState::default() }
}

fn put_position(bytes: &mut Vec<u8>, position: Position) {
    bytes.put_u64_le(position.index);
    bytes.put_u64_le(position.term);
}

fn get_position(body: &mut &[u8]) -> Position {
    Position { index: body.get_u64_le(), term: body.get_u64_le() }
}

fn head_crc(head: &[u8], store_id: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&store_id.to_le_bytes());
    hasher.update(&head[8..HEAD_SIZE]);
    hasher.finalize()
}

#[derive(Debug, Clone, Copy)]
struct Head {
    crc: u32,
    body_crc: u32,
    /// Bytes of the batch with its head.
    size: usize,
    number: u64,
    link: u32,
    items_size: usize,
    /// Count of zero sectors behind the first.
    blanks: u32,
}

impl Head {
    /// Reads the head that `bytes` begin with, if there is one.
    fn read(bytes: &[u8], store_id: u64) -> Option<Head> {
        let mut fields = bytes.get(..HEAD_SIZE)?;
        if fields.get_u32_le() != MAGIC {
            return None;
        }
        let head = Head {
            crc: fields.get_u32_le(),
            body_crc: fields.get_u32_le(),
            size: fields.get_u32_le() as usize,
            number: fields.get_u64_le(),
            link: fields.get_u32_le(),
            items_size: fields.get_u32_le() as usize,
            blanks: fields.get_u32_le(),
        };
        (head.crc == head_crc(bytes, store_id)).then_some(head)
    }
}

/// A batch that was read.
#[derive(Debug)]
pub(super) struct LogBatch<'a> {
    pub(super) number: u64,
    pub(super) link: u32,
    /// The link of the next batch.
    pub(super) crc: u32,
    /// Bytes of the batch.
    pub(super) size: usize,
    items: &'a [u8],
}

impl<'a> LogBatch<'a> {
    /// Reads the batch that `bytes` begin with, if it is there and complete.
    pub(super) fn read(bytes: &'a [u8], store_id: u64) -> Option<LogBatch<'a>> {
        let Head { crc, body_crc, size, number, link, items_size, .. } =
            Head::read(bytes, store_id)?;
        let body = bytes.get(HEAD_SIZE..size)?;
        if crc32fast::hash(body) != body_crc {
            return None;
        }
        Some(LogBatch { number, link, crc, size, items: body.get(..items_size)? })
    }

    /// Returns the item that begins the segment, if this is its first batch, and the operations. Places are
    /// counted from the first byte of the batch.
    pub(super) fn decode(&self) -> Result<(Option<Begin>, Vec<Op>), &'static str> {
        const DAMAGED: &str = "it has an item that cannot be read";
        let (mut begin, mut ops) = (None, Vec::new());
        let mut rest = self.items;
        while let Some((head, after)) = rest.split_at_checked(ITEM_HEAD_SIZE) {
            let at = HEAD_SIZE + self.items.len() - after.len();
            let size = (&head[1..]).get_u32_le();
            let (mut body, next) = after.split_at_checked(size as usize).ok_or(DAMAGED)?;
            rest = next;
            match (head[0], size) {
                (kind::BEGIN, _) => begin = Some(read_begin(body)?),
                (kind::ENTRY, 20..) => {
                    body.advance(4);
                    let position = get_position(&mut body);
                    ops.push(Op::Entry { position, at: at as u32, size });
                }
                (kind::HARD_STATE, 24) => ops.push(Op::HardState(get_hard_state(&mut body))),
                (kind::RESET, 16) => ops.push(Op::Reset(get_position(&mut body))),
                (kind::COMPACT, 16) => ops.push(Op::Compact(get_position(&mut body))),
                (kind::ADOPT, 8) => ops.push(Op::Adopt(body.get_u64_le())),
                _ => return Err(DAMAGED),
            }
        }
        if rest.is_empty() { Ok((begin, ops)) } else { Err(DAMAGED) }
    }
}

/// Reads the body of an entry's item. The error names the mistake.
pub(super) fn read_entry(index: u64, body: &[u8]) -> Result<Entry, &'static str> {
    let (crc, rest) = body.split_first_chunk::<4>().ok_or("it is too short")?;
    if u32::from_le_bytes(*crc) != crc32fast::hash(rest) {
        return Err("it has another checksum");
    }
    let mut fields = rest.get(..ENTRY_HEAD_SIZE - 4).ok_or("it is too short")?;
    let position = get_position(&mut fields);
    // One copy is made, so that an entry keeps only its own bytes in memory; its payload shares them.
    let message = bytes::Bytes::copy_from_slice(&rest[ENTRY_HEAD_SIZE - 4..]);
    let entry =
        Entry::parse_from_carllerche_bytes(&message).map_err(|_| "its body is not an entry")?;
    if (entry.index, entry.index, entry.term) != (index, position.index, position.term) {
        return Err("it is another entry");
    }
    Ok(entry)
}

/// Checks that a log whose next batch is `next` may end before `rest`, which goes to the end of a segment
/// and has no readable batch of this number. It may if nothing is there, or a batch that a crash cut short.
/// Otherwise the error says what is there.
pub(super) fn check_end(rest: &[u8], store_id: u64, next: u64) -> Result<(), &'static str> {
    let Some((head_bytes, after_head)) = rest.split_at_checked(HEAD_SIZE) else { return Ok(()) };
    let size = match Head::read(rest, store_id) {
        Some(head) => {
            let batch = rest.get(..head.size).ok_or("a batch is longer than its segment")?;
            if head.number != next {
                return Err("a batch does not follow the one before it");
            }
            let trailer = &batch[batch.len().saturating_sub(TRAILER.len())..];
            if !is_zero(trailer) && count_blanks(batch) <= head.blanks {
                return Err("a batch has another checksum");
            }
            head.size
        }
        None if is_zero(head_bytes) => SECTOR,
        // Half a head is there, where a kill stopped the copying.
        None if is_zero(after_head) => return Ok(()),
        None => return Err("the head of a batch has another checksum"),
    };
    let mut later = rest.get(size..).unwrap_or_default().chunks(SECTOR);
    if later.any(|sector| Head::read(sector, store_id).is_some_and(|head| head.number > next)) {
        return Err("a batch is missing or damaged, but a later one is there");
    }
    Ok(())
}

/// Counts the zero sectors of a batch. The first one is not zero, because the head is in it.
fn count_blanks(batch: &[u8]) -> u32 {
    batch.chunks(SECTOR).skip(1).filter(|sector| is_zero(sector)).count() as u32
}
