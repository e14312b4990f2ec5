//! The checksum rule: which CRC-32 values cover a range of a block.
//!
//! A node computes CRC-32 (ISO-HDLC) once, when it fills a block, at three grains: every 4 KiB page,
//! every 64 KiB chunk, and the block. The last page and chunk of a block may be short. A reply carries
//! the values of the pieces that cover its range in order, cut by this rule from the left: at block
//! offset `p`, with `end` the end of the range, the piece is
//!
//! 1. the whole block, if `p` is 0 and `end` is the block's length;
//! 2. else a whole chunk, if `p` is a multiple of 64 KiB and the chunk ends at or before `end`;
//! 3. else a whole page, if `p` is a multiple of 4 KiB and the page ends at or before `end`;
//! 4. else a part of a page: up to the page's end or `end`, whichever comes first.
//!
//! Only pieces of the last kind cost the node a checksum pass (it verifies the page, then sums the
//! part), at most two a range. Both sides compute the cut, so the wire carries just the values.
//!
//! Where both sides offered [`crate::feature::IDENTITY`], each value is combined with the [`tag`] of its
//! block by exclusive or. So bytes of another file, version or block fail, however whole they are.

use crate::FileId;

/// Smallest grain in bytes.
pub const PAGE_SIZE: u32 = 4 << 10;
/// Middle grain in bytes.
pub const CHUNK_SIZE: u32 = 64 << 10;
/// Most pieces a range can be cut into: of a 16 MiB block a page part, 15 pages, 256 chunks, 15 pages and a part.
pub const PIECES_MAX: usize = 1 + 15 + 256 + 15 + 1;

/// Which stored value covers a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// The whole block.
    Block,
    /// One whole chunk of 64 KiB, or the block's short last one.
    Chunk,
    /// One whole page of 4 KiB, or the block's short last one.
    Page,
    /// Part of a page: no stored value.
    Part,
}

/// One piece of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the block in bytes.
    pub offset: u32,
    /// Length in bytes, at least 1.
    pub length: u32,
    /// Which value covers it.
    pub grain: Grain,
}

/// Cuts `offset..offset + length` of a block of `block_length` bytes by the rule of this module.
///
/// # Panics
/// If the range does not lie in the block.
#[inline]
pub fn pieces(offset: u32, length: u32, block_length: u32) -> impl Iterator<Item = Piece> {
    let end = offset.checked_add(length).expect("range ends below 4 GiB");
    assert!(end <= block_length, "range {offset}+{length} leaves a block of {block_length} bytes");
    let mut position = offset;
    std::iter::from_fn(move || {
        if position >= end {
            return None;
        }
        let start = position;
        let whole = |size: u32| {
            let grain_end = block_length.min((start / size + 1).saturating_mul(size));
            (start.is_multiple_of(size) && grain_end <= end).then_some(grain_end)
        };
        let (piece_end, grain) = if start == 0 && end == block_length {
            (end, Grain::Block)
        } else if let Some(chunk_end) = whole(CHUNK_SIZE) {
            (chunk_end, Grain::Chunk)
        } else if let Some(page_end) = whole(PAGE_SIZE) {
            (page_end, Grain::Page)
        } else {
            (end.min((start / PAGE_SIZE + 1) * PAGE_SIZE), Grain::Part)
        };
        position = piece_end;
        Some(Piece { offset: start, length: piece_end - start, grain })
    })
}

/// Returns the CRC-32 of `bytes`.
#[inline]
pub fn of(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Returns the number that names a block: the CRC-32 of the 28 bytes of its file id, its version and its
/// number in the file, each little-endian. A checksum that covers the identity of its block is the
/// CRC-32 of the bytes xor this number. It costs no pass over the bytes.
#[inline]
pub fn tag(file: FileId, version: u64, block: u32) -> u32 {
    let mut bytes = [0; 28];
    bytes[..16].copy_from_slice(&file.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&version.to_le_bytes());
    bytes[24..].copy_from_slice(&block.to_le_bytes());
    of(&bytes)
}

/// Compares `payload`, the bytes from `offset` of a block of `block_length` bytes, with `values`. If the
/// values cover the identity of the block, `tag` is its tag; if they cover the bytes alone, `tag` is 0.
///
/// # Errors
/// The block offset in bytes of the first piece that does not match; missing or surplus values count as
/// a mismatch.
pub fn verify(
    payload: &[u8],
    offset: u32,
    block_length: u32,
    tag: u32,
    values: impl IntoIterator<Item = u32>,
) -> Result<(), u32> {
    let mut values = values.into_iter();
    let in_block = u32::try_from(payload.len())
        .ok()
        .and_then(|length| offset.checked_add(length))
        .is_some_and(|end| end <= block_length);
    if !in_block {
        return Err(offset);
    }
    let mut position = 0;
    for piece in pieces(offset, payload.len() as u32, block_length) {
        let bytes = &payload[position..position + piece.length as usize];
        if values.next() != Some(of(bytes) ^ tag) {
            return Err(piece.offset);
        }
        position += piece.length as usize;
    }
    if values.next().is_some() { Err(offset) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
