//! The checksum and placement rules.

use std::fmt::Write as _;

use millrace_proto::checksum::{self, Grain};
use millrace_proto::proof::Side;
use millrace_proto::{FileId, placement};

use crate::cluster;
use crate::format::*;

#[test]
fn checksum_cuts_are_as_published() {
    const MIB: u32 = 1 << 20;
    let cases = [
        (MIB, 0, MIB),
        (MIB, 0, MIB - 1),
        (MIB, 1, MIB - 1),
        (MIB, 0, 65_536),
        (MIB, 65_536, 131_072),
        (MIB, 4096, 4096),
        (MIB, 4000, 5000),
        (MIB, 10, 20),
        (MIB, 4090, 12),
        (MIB, 0, 1),
        (MIB, MIB - 1, 1),
        (MIB, 61_440, 73_728),
        (MIB, 61_441, 73_726),
        (70_000, 0, 70_000),
        (70_000, 65_536, 4464),
        (70_000, 69_632, 368),
        (70_000, 69_632, 367),
        (70_000, 65_536, 4463),
        (3000, 0, 3000),
        (3000, 1, 2999),
        (1, 0, 1),
        (16 * MIB, 1, 16 * MIB - 2),
    ];
    let mut built = format!(
        "{FORMAT}# How a range of a block is cut, and the CRC-32 of each piece. Byte i of a block is the low byte\n\
         # of i ^ (i >> 8) ^ (i >> 16). Pieces are offset, length, grain and CRC-32; the last vector, the\n\
         # largest there can be, has the CRC-32 of its values' little-endian bytes instead.\n"
    );
    for (block_length, offset, length) in cases {
        let block: Vec<u8> = (0..block_length as usize).map(byte).collect();
        let pieces: Vec<_> = checksum::pieces(offset, length, block_length)
            .map(|piece| {
                (piece, checksum::of(&block[piece.offset as usize..][..piece.length as usize]))
            })
            .collect();
        let _ = write!(
            built,
            "\nblock_length: {block_length}\noffset: {offset}\nlength: {length}\ncount: {}\n",
            pieces.len()
        );
        if pieces.len() > 100 {
            let values: Vec<u8> =
                pieces.iter().flat_map(|(_, value)| value.to_le_bytes()).collect();
            let _ = writeln!(built, "digest: {:08x}", checksum::of(&values));
            continue;
        }
        let texts: Vec<String> = pieces
            .iter()
            .map(|(piece, value)| {
                let grain = match piece.grain {
                    Grain::Block => "block",
                    Grain::Chunk => "chunk",
                    Grain::Page => "page",
                    Grain::Part => "part",
                };
                format!("{}+{} {grain} {value:08x}", piece.offset, piece.length)
            })
            .collect();
        let _ = writeln!(built, "pieces: {}", texts.join(", "));
    }
    let stored = check_file("checksum.txt", &built);
    assert_eq!(stored.len(), cases.len());
    for stored in stored.iter().filter(|stored| stored.contains_key("pieces")) {
        let number = |key: &str| stored[key].parse::<u32>().expect("a number");
        let (block_length, offset, length) =
            (number("block_length"), number("offset"), number("length"));
        let values = stored["pieces"]
            .split(", ")
            .map(|piece| u32::from_str_radix(&piece[piece.len() - 8..], 16).expect("hex digits"));
        let payload: Vec<u8> = (offset..offset + length).map(|at| byte(at as usize)).collect();
        assert_eq!(checksum::verify(&payload, offset, block_length, 0, values), Ok(()));
    }
}

#[test]
fn tags_are_as_published() {
    let mut built = format!(
        "{FORMAT}# The tag of a block, which checksums that cover its identity are combined with.\n"
    );
    let cases = [
        (FileId(0), 0, 0),
        (ID, 1, 0),
        (ID, 1, 1),
        (ID, u64::MAX, 1),
        (FileId(u128::MAX), 0x0123_4567_89ab_cdef, u32::MAX),
    ];
    for (file, version, block) in cases {
        let tag = checksum::tag(file, version, block);
        let _ = write!(
            built,
            "\nfile: {file}\nversion: {version:016x}\nblock: {block}\ntag: {tag:08x}\n"
        );
    }
    assert_eq!(check_file("tag.txt", &built).len(), cases.len());
}

#[test]
fn proofs_are_as_published() {
    let (exchange, secret) = (cluster::exchange(), cluster::secret());
    let mut built = format!(
        "{FORMAT}# Proofs of both sides of an exchange, and the code of a block of the content of checksum.txt.\n"
    );
    let _ = write!(
        built,
        "\nsecret: {}\nrole: {}\nnode: {}\nclient_nonce: {}\nnode_nonce: {}\nclient_proof: {}\n\
         node_proof: {}\nfile: {ID}\nversion: 1\nblock: 0\nblock_length: 70000\nblock_code: {}\n",
        cluster::SECRET,
        exchange.role,
        exchange.node,
        hex(&exchange.client),
        hex(&exchange.answer),
        hex(&exchange.proof(&secret, Side::Client)),
        hex(&exchange.proof(&secret, Side::Node)),
        hex(&cluster::block_mac().finish()),
    );
    assert_eq!(check_file("proof.txt", &built).len(), 1);
}

#[test]
fn placement_is_as_published() {
    let files = [FileId(0), FileId(1), ID, FileId(1 << 64), FileId(u128::MAX)];
    let mut built = format!("{FORMAT}# The hash of a block and the shard that owns it.\n");
    for file in files {
        for block in [0, 1, 2, 1000, u64::MAX] {
            let hash = placement::block_hash(file, block);
            let shard = |count| placement::shard_of(hash, count);
            let _ = write!(
                built,
                "\nfile: {file}\nblock: {block}\nhash: {hash:016x}\n\
                 shard_of_1: {}\nshard_of_3: {}\nshard_of_8: {}\nshard_of_256: {}\n",
                shard(1),
                shard(3),
                shard(8),
                shard(256),
            );
        }
    }
    let stored = check_file("placement.txt", &built);
    assert_eq!(stored.len(), files.len() * 5);
    for stored in &stored {
        let file = FileId(u128::from_str_radix(&stored["file"], 16).expect("hex digits"));
        let hash = placement::block_hash(file, stored["block"].parse().expect("a number"));
        assert_eq!(format!("{hash:016x}"), stored["hash"]);
        assert_eq!(placement::shard_of(hash, 256).to_string(), stored["shard_of_256"]);
    }
}
