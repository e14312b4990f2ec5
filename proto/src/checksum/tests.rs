//! Pieces tile every range, and their checksums find one flipped bit.

use proptest::prelude::*;

use super::*;

fn cut(offset: u32, length: u32, block_length: u32) -> Vec<(u32, u32, Grain)> {
    pieces(offset, length, block_length)
        .map(|piece| (piece.offset, piece.length, piece.grain))
        .collect()
}

#[test]
fn a_whole_block_is_one_piece() {
    assert_eq!(cut(0, 1 << 20, 1 << 20), [(0, 1 << 20, Grain::Block)]);
    assert_eq!(cut(0, 3000, 3000), [(0, 3000, Grain::Block)]);
}

#[test]
fn an_aligned_range_needs_no_part() {
    assert_eq!(cut(4096, 4096, 1 << 20), [(4096, 4096, Grain::Page)]);
    assert_eq!(
        cut(61440, 4096 + 65536 + 4096, 1 << 20),
        [(61440, 4096, Grain::Page), (65536, 65536, Grain::Chunk), (131_072, 4096, Grain::Page)]
    );
}

#[test]
fn a_short_last_page_is_whole() {
    assert_eq!(cut(65536, 4464, 70000), [(65536, 4464, Grain::Chunk)]);
    assert_eq!(cut(69632, 368, 70000), [(69632, 368, Grain::Page)]);
}

#[test]
fn ragged_ends_are_parts() {
    assert_eq!(
        cut(4000, 5000, 1 << 20),
        [(4000, 96, Grain::Part), (4096, 4096, Grain::Page), (8192, 808, Grain::Part)]
    );
    assert_eq!(cut(10, 20, 1 << 20), [(10, 20, Grain::Part)]);
}

#[test]
fn bytes_of_another_block_do_not_pass_for_those_of_this_one() {
    let bytes = [7; 5000];
    let own = tag(FileId(1), 2, 3);
    let values = || [of(&bytes) ^ own];
    assert_eq!(verify(&bytes, 0, 5000, own, values()), Ok(()));
    for other in [tag(FileId(9), 2, 3), tag(FileId(1), 9, 3), tag(FileId(1), 2, 9), 0] {
        assert_eq!(verify(&bytes, 0, 5000, other, values()), Err(0));
    }
}

proptest! {
    #[test]
    fn pieces_tile_the_range_and_parts_are_at_most_two(
        block_length in 1u32..2_000_000, start in any::<u32>(), length in any::<u32>(),
    ) {
        let offset = start % block_length;
        let length = 1 + length % (block_length - offset);
        let pieces: Vec<Piece> = pieces(offset, length, block_length).collect();
        let mut position = offset;
        for piece in &pieces {
            prop_assert_eq!(piece.offset, position);
            prop_assert!(piece.length > 0);
            position += piece.length;
        }
        prop_assert_eq!(position, offset + length);
        prop_assert!(pieces.iter().filter(|piece| piece.grain == Grain::Part).count() <= 2);
        prop_assert!(pieces.len() <= PIECES_MAX);
    }

    #[test]
    fn verify_accepts_the_right_bytes_and_finds_one_flipped_bit(
        block in proptest::collection::vec(any::<u8>(), 1..20_000),
        start in any::<usize>(), length in any::<usize>(), flip in any::<usize>(),
    ) {
        let offset = start % block.len();
        let length = 1 + length % (block.len() - offset);
        let mut payload = block[offset..offset + length].to_vec();
        let values: Vec<u32> = pieces(offset as u32, length as u32, block.len() as u32)
            .map(|piece| of(&block[piece.offset as usize..][..piece.length as usize]))
            .collect();
        let block_length = block.len() as u32;
        let judge = |values: &[u32]| {
            verify(&payload, offset as u32, block_length, 0, values.iter().copied())
        };
        prop_assert_eq!(judge(&values), Ok(()));
        prop_assert!(judge(&values[1..]).is_err());
        prop_assert!(judge(&[&values[..], &[0]].concat()).is_err());
        let bit = flip % (length * 8);
        payload[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(verify(&payload, offset as u32, block.len() as u32, 0, values).is_err());
    }
}
