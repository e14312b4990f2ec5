//! Which shard of a node owns a block: the rule that both sides compute alike.
//!
//! A client that follows it asks the owner's own address, so the node never passes the request from core
//! to core. A client that does not follow it is still served.
//!
//! `hash = mix(low64(id) ^ rotl(high64(id), 32) ^ (block * GOLDEN))`, all modulo 2^64, with `mix` the
//! finaliser of SplitMix64; `shard = (hash * shard_count) >> 64` in 128 bits. Test vectors are in
//! `vectors/placement.txt`.

use crate::FileId;

/// 2^64 divided by the golden ratio, odd: spreads consecutive block numbers.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Returns the 64-bit hash of block number `block` (offset / block size) of a file.
#[inline]
pub fn block_hash(file: FileId, block: u64) -> u64 {
    let low = file.0 as u64;
    let high = (file.0 >> 64) as u64;
    mix(low ^ high.rotate_left(32) ^ block.wrapping_mul(GOLDEN))
}

/// Computes the finaliser of SplitMix64: every bit of the result depends on every bit of `number`.
#[inline]
pub fn mix(number: u64) -> u64 {
    let mut hash = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}

/// Returns the shard, from 0 to `shard_count` - 1, that owns the block with this hash.
#[inline]
pub fn shard_of(hash: u64, shard_count: u32) -> u32 {
    ((u128::from(hash) * u128::from(shard_count)) >> 64) as u32
}
