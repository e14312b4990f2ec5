//! The bytes of keys and values in both environments, each value under a CRC-32.
//!
//! ```text
//!  key 00                the header: who the data is, and what it must add up to
//!  key 01 index (u64 BE) an entry of the log
//!  key 01 key            a record of the state
//!
//!  entry value           ┌ crc ┬ body crc ┬ link ┬ term ┬ body: the entry in protobuf ┐
//!                        └ u32 ┴ u32 ─────┴ u32 ─┴ u64 ─┴──────────────────────────────┘
//!  state value           ┌ crc ┬ value ┐
//!                        └ u32 ┴───────┘
//! ```
//!
//! An entry's `crc` covers its index and what stands between it and the body, its `link` is the
//! `crc` of the entry before it: an entry that was replaced long ago does not fit. Every CRC covers
//! the key too. Numbers are little-endian where nothing else is said.

use bytes::{Buf, BufMut};
use protobuf::Message;
use raft::eraftpb::{ConfState, Entry, HardState};

use super::{Applied, Identity};

/// Bytes that the key of a state record may have. LMDB takes 511.
pub const KEY_SIZE_MAX: usize = 256;
/// The key of the header; sorts before all others.
pub(super) const HEADER_KEY: &[u8] = &[0];
/// What the key of every record begins with.
pub(super) const RECORD_PREFIX: u8 = 1;
/// Bytes before the body of an entry.
const ENTRY_HEAD_SIZE: usize = 20;
/// The only layout so far.
const VERSION: u8 = 1;

/// The key of an entry: the order of keys is the order of the log.
pub(super) fn entry_key(index: u64) -> [u8; 9] {
    let mut key = [RECORD_PREFIX; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The key of a state record inside the environment.
///
/// # Panics
/// If `key` is empty or longer than [`KEY_SIZE_MAX`].
pub(super) fn state_key(key: &[u8]) -> Vec<u8> {
    assert!(!key.is_empty() && key.len() <= KEY_SIZE_MAX, "a state key of {} bytes", key.len());
    let mut stored = Vec::with_capacity(key.len() + 1);
    stored.push(RECORD_PREFIX);
    stored.extend_from_slice(key);
    stored
}

/// The fixed part of an entry's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntryHead {
    pub(super) crc: u32,
    pub(super) link: u32,
    pub(super) term: u64,
}

/// Appends an entry's value to `value` and gives its CRC, the link of the next entry.
pub(super) fn write_entry(entry: &Entry, link: u32, value: &mut Vec<u8>) -> u32 {
    value.clear();
    value.resize(ENTRY_HEAD_SIZE, 0);
    entry.write_to_vec(value).expect("an entry has no required field, and a vector takes it");
    let body_crc = crc32fast::hash(&value[ENTRY_HEAD_SIZE..]);
    value[4..8].copy_from_slice(&body_crc.to_le_bytes());
    value[8..12].copy_from_slice(&link.to_le_bytes());
    value[12..20].copy_from_slice(&entry.term.to_le_bytes());
    let crc = head_crc(entry.index, &value[4..ENTRY_HEAD_SIZE]);
    value[..4].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// The fixed part of the entry at `index`, or what is wrong with it. Does not look at the body.
pub(super) fn read_entry_head(index: u64, value: &[u8]) -> Result<EntryHead, &'static str> {
    let head = value.get(..ENTRY_HEAD_SIZE).ok_or("too short for an entry")?;
    let mut fields = head;
    let crc = fields.get_u32_le();
    fields.advance(4);
    let entry_head = EntryHead { crc, link: fields.get_u32_le(), term: fields.get_u64_le() };
    if crc != head_crc(index, &head[4..]) {
        return Err("its head has another checksum");
    }
    Ok(entry_head)
}

/// The entry at `index`, or what is wrong with it.
pub(super) fn read_entry(index: u64, value: &[u8]) -> Result<(EntryHead, Entry), &'static str> {
    let (head, body) = check_entry(index, value)?;
    // One copy out of the map; the entry's payload shares it.
    let body = bytes::Bytes::copy_from_slice(body);
    let entry =
        Entry::parse_from_carllerche_bytes(&body).map_err(|_| "its body is not an entry")?;
    if entry.index != index || entry.term != head.term {
        return Err("it is another entry");
    }
    Ok((head, entry))
}

/// Both checksums of the entry at `index`.
pub(super) fn check_entry(index: u64, value: &[u8]) -> Result<(EntryHead, &[u8]), &'static str> {
    let head = read_entry_head(index, value)?;
    let (mut fields, body) = value.split_at(ENTRY_HEAD_SIZE);
    fields.advance(4);
    if fields.get_u32_le() != crc32fast::hash(body) {
        return Err("its body has another checksum");
    }
    Ok((head, body))
}

fn head_crc(index: u64, head: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&index.to_be_bytes());
    hasher.update(head);
    hasher.finalize()
}

/// The CRC-32 of a state record.
pub(super) fn record_crc(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

/// Writes a state record's value into `stored`, and gives what the record adds to [`Tally`].
pub(super) fn write_state(key: &[u8], value: &[u8], stored: &mut Vec<u8>) -> u64 {
    let crc = record_crc(key, value);
    stored.clear();
    stored.put_u32_le(crc);
    stored.extend_from_slice(value);
    mark(crc, value.len())
}

/// The value of the state record `key`, and what it adds to [`Tally`]; or what is wrong with it.
pub(super) fn read_state<'a>(
    key: &[u8],
    stored: &'a [u8],
) -> Result<(&'a [u8], u64), &'static str> {
    let (crc, value) = stored.split_first_chunk::<4>().ok_or("too short for a record")?;
    let crc = u32::from_le_bytes(*crc);
    if crc != record_crc(key, value) {
        return Err("it has another checksum");
    }
    Ok((value, mark(crc, value.len())))
}

/// Spreads a record's checksum and length over 64 bits (the finalizer of splitmix64).
pub(super) fn mark(crc: u32, value_size: usize) -> u64 {
    let mut bits = u64::from(crc) | (value_size as u64) << 32;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// What all records of a state add up to, in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Tally {
    pub(super) count: u64,
    pub(super) sum: u64,
}

impl Tally {
    pub(super) fn add(&mut self, mark: u64) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(mark);
    }

    /// Takes a record out again. `None` if there cannot be such a record.
    pub(super) fn remove(&mut self, mark: u64) -> Option<()> {
        self.count = self.count.checked_sub(1)?;
        self.sum = self.sum.wrapping_sub(mark);
        Some(())
    }
}

/// What every header begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    /// The LMDB transaction that wrote it.
    pub(super) transaction: u64,
    pub(super) identity: Identity,
}

/// Which of the two environments a header is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Log = b'L',
    State = b'S',
}

/// The header of the log.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LogHeader {
    pub(super) identity: Identity,
    pub(super) hard_state: HardState,
    pub(super) compacted: Position,
    pub(super) last: Position,
}

/// An entry as the chain knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    pub(super) index: u64,
    pub(super) term: u64,
    /// Its CRC, which the next entry repeats.
    pub(super) link: u32,
}

impl LogHeader {
    pub(super) fn new(identity: Identity) -> LogHeader {
        LogHeader {
            identity,
            hard_state: HardState::default(),
            compacted: Position::default(),
            last: Position::default(),
        }
    }

    /// Whether nothing was ever stored.
    pub(super) fn is_pristine(&self) -> bool {
        *self == LogHeader::new(self.identity)
    }

    pub(super) fn write(&self, transaction: u64) -> Vec<u8> {
        let mut value = begin_header(Kind::Log, transaction, &self.identity);
        for number in [self.hard_state.term, self.hard_state.vote, self.hard_state.commit] {
            value.put_u64_le(number);
        }
        for position in [&self.compacted, &self.last] {
            value.put_u64_le(position.index);
            value.put_u64_le(position.term);
            value.put_u32_le(position.link);
        }
        end_header(value)
    }

    pub(super) fn read(value: &[u8]) -> Result<LogHeader, &'static str> {
        let (origin, mut fields) = read_origin(Kind::Log, value)?;
        if fields.len() != 3 * 8 + 2 * 20 {
            return Err("its header has another size");
        }
        let mut header = LogHeader::new(origin.identity);
        header.hard_state.term = fields.get_u64_le();
        header.hard_state.vote = fields.get_u64_le();
        header.hard_state.commit = fields.get_u64_le();
        for position in [&mut header.compacted, &mut header.last] {
            position.index = fields.get_u64_le();
            position.term = fields.get_u64_le();
            position.link = fields.get_u32_le();
        }
        if header.last.index < header.compacted.index {
            return Err("its header says that it ends before it begins");
        }
        Ok(header)
    }
}

/// The header of the state.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StateHeader {
    pub(super) identity: Identity,
    /// `None` until the first commit.
    pub(super) applied: Option<Applied>,
    pub(super) tally: Tally,
}

impl StateHeader {
    pub(super) fn new(identity: Identity) -> StateHeader {
        StateHeader { identity, applied: None, tally: Tally::default() }
    }

    pub(super) fn write(&self, transaction: u64) -> Vec<u8> {
        let mut value = begin_header(Kind::State, transaction, &self.identity);
        value.put_u64_le(self.tally.count);
        value.put_u64_le(self.tally.sum);
        if let Some(applied) = &self.applied {
            write_applied(applied, &mut value);
        }
        end_header(value)
    }

    pub(super) fn read(value: &[u8]) -> Result<StateHeader, &'static str> {
        let (origin, mut fields) = read_origin(Kind::State, value)?;
        if fields.len() < 16 {
            return Err("its header has another size");
        }
        let tally = Tally { count: fields.get_u64_le(), sum: fields.get_u64_le() };
        let applied = match fields {
            [] => None,
            fields => Some(read_applied(fields).ok_or("its header has no readable index")?),
        };
        Ok(StateHeader { identity: origin.identity, applied, tally })
    }
}

pub(super) fn write_applied(applied: &Applied, value: &mut Vec<u8>) {
    value.put_u64_le(applied.index);
    value.put_u64_le(applied.term);
    applied
        .conf_state
        .write_to_vec(value)
        .expect("a configuration has no required field, and a vector takes it");
}

/// Takes all that is left of `fields`.
pub(super) fn read_applied(mut fields: &[u8]) -> Option<Applied> {
    let index = fields.try_get_u64_le().ok()?;
    let term = fields.try_get_u64_le().ok()?;
    Some(Applied { index, term, conf_state: ConfState::parse_from_bytes(fields).ok()? })
}

fn begin_header(kind: Kind, transaction: u64, identity: &Identity) -> Vec<u8> {
    let mut value = vec![0; 4];
    value.put_u8(kind as u8);
    value.put_u8(VERSION);
    value.put_u64_le(transaction);
    value.put_u64_le(identity.cluster_id);
    value.put_u64_le(identity.replica_id);
    value.put_u64_le(identity.store_id);
    value
}

fn end_header(mut value: Vec<u8>) -> Vec<u8> {
    let crc = record_crc(HEADER_KEY, &value[4..]);
    value[..4].copy_from_slice(&crc.to_le_bytes());
    value
}

/// What `value` begins with if it is a header of `kind`, and the rest of it.
pub(super) fn read_origin(kind: Kind, value: &[u8]) -> Result<(Origin, &[u8]), &'static str> {
    const ORIGIN_SIZE: usize = 4 + 2 + 4 * 8;
    if value.len() < ORIGIN_SIZE {
        return Err("its header has another size");
    }
    let mut fields = value;
    if fields.get_u32_le() != record_crc(HEADER_KEY, &value[4..]) {
        return Err("its header has another checksum");
    }
    if fields.get_u8() != kind as u8 {
        return Err("its header is of the other environment");
    }
    if fields.get_u8() != VERSION {
        return Err("its header has a version that this program does not know");
    }
    let transaction = fields.get_u64_le();
    let identity = Identity {
        cluster_id: fields.get_u64_le(),
        replica_id: fields.get_u64_le(),
        store_id: fields.get_u64_le(),
    };
    Ok((Origin { transaction, identity }, fields))
}
