//! The bytes of keys and values of the state, each value under a CRC-32.
//!
//! ```text
//!  key 00                the header: the owner of the data, and the sum of its records
//!  key 01 key            a record
//!
//!  value of a record     ┌ crc ┬ value ┐
//!                        └ u32 ┴───────┘
//! ```
//!
//! Every CRC covers the key too. Numbers are little-endian.

use bytes::{Buf, BufMut};
use protobuf::Message;
use raft::eraftpb::ConfState;

use super::{Applied, StoreIdentity};

/// Most bytes of a state record's key. LMDB takes 511.
pub const KEY_SIZE_MAX: usize = 256;
/// The key of the header, which sorts before all others.
pub(super) const HEADER_KEY: &[u8] = &[0];
/// The first byte of every record's key.
pub(super) const RECORD_PREFIX: u8 = 1;
/// The only layout so far.
const VERSION: u8 = 1;

/// Returns the key of a state record inside the environment.
///
/// # Panics
/// Panics if `key` is empty or longer than [`KEY_SIZE_MAX`].
pub(super) fn state_key(key: &[u8]) -> Vec<u8> {
    assert!(!key.is_empty() && key.len() <= KEY_SIZE_MAX, "a state key of {} bytes", key.len());
    let mut stored = Vec::with_capacity(key.len() + 1);
    stored.push(RECORD_PREFIX);
    stored.extend_from_slice(key);
    stored
}

/// Computes the CRC-32 of a state record.
pub(super) fn record_crc(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

/// Writes a state record's value to `stored`. Returns what the record adds to [`Tally`].
pub(super) fn write_state(key: &[u8], value: &[u8], stored: &mut Vec<u8>) -> u64 {
    let crc = record_crc(key, value);
    stored.clear();
    stored.put_u32_le(crc);
    stored.extend_from_slice(value);
    mark(crc, value.len())
}

/// Reads the value of the state record `key`. Returns it with what it adds to [`Tally`], or the mistake.
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

/// The sum of all records of a state, in any order.
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

    /// Subtracts a record. Returns `None` if there cannot be such a record.
    pub(super) fn remove(&mut self, mark: u64) -> Option<()> {
        self.count = self.count.checked_sub(1)?;
        self.sum = self.sum.wrapping_sub(mark);
        Some(())
    }
}

/// The beginning of every header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    /// The LMDB transaction that wrote it.
    pub(super) transaction: u64,
    pub(super) identity: StoreIdentity,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct StateHeader {
    pub(super) identity: StoreIdentity,
    /// `None` until the first commit.
    pub(super) applied: Option<Applied>,
    pub(super) tally: Tally,
}

impl StateHeader {
    pub(super) fn new(identity: StoreIdentity) -> StateHeader {
        StateHeader { identity, applied: None, tally: Tally::default() }
    }

    pub(super) fn write(&self, transaction: u64) -> Vec<u8> {
        let mut value = begin_header(transaction, &self.identity);
        value.put_u64_le(self.tally.count);
        value.put_u64_le(self.tally.sum);
        if let Some(applied) = &self.applied {
            write_applied(applied, &mut value);
        }
        end_header(value)
    }

    pub(super) fn read(value: &[u8]) -> Result<StateHeader, &'static str> {
        let (origin, mut fields) = read_origin(value)?;
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

/// Reads the rest of `fields`.
pub(super) fn read_applied(mut fields: &[u8]) -> Option<Applied> {
    let index = fields.try_get_u64_le().ok()?;
    let term = fields.try_get_u64_le().ok()?;
    Some(Applied { index, term, conf_state: ConfState::parse_from_bytes(fields).ok()? })
}

fn begin_header(transaction: u64, identity: &StoreIdentity) -> Vec<u8> {
    let mut value = vec![0; 4];
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

/// Reads the beginning of a header. Returns it with the rest of `value`.
pub(super) fn read_origin(value: &[u8]) -> Result<(Origin, &[u8]), &'static str> {
    const ORIGIN_SIZE: usize = 4 + 1 + 4 * 8;
    if value.len() < ORIGIN_SIZE {
        return Err("its header has another size");
    }
    let mut fields = value;
    if fields.get_u32_le() != record_crc(HEADER_KEY, &value[4..]) {
        return Err("its header has another checksum");
    }
    if fields.get_u8() != VERSION {
        return Err("its header has a version that this program does not know");
    }
    let transaction = fields.get_u64_le();
    let identity = StoreIdentity {
        cluster_id: fields.get_u64_le(),
        replica_id: fields.get_u64_le(),
        store_id: fields.get_u64_le(),
    };
    Ok((Origin { transaction, identity }, fields))
}
