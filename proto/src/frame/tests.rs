//! Headers and bodies round-trip; damaged or arbitrary bytes are refused and never panic.

use proptest::prelude::*;
use rkyv::rancor::Failure;

use super::*;
use crate::FileId;
use crate::message::*;

fn any_header() -> impl Strategy<Value = Header> {
    (any::<(u8, u8, u16, u16, u16)>(), any::<(u32, u32, u32, u64, u32)>()).prop_map(
        |(small, large)| Header {
            magic: MAGIC,
            version: small.0,
            op: small.1,
            flags: small.2,
            status: small.3,
            part: small.4,
            body_length: large.0,
            payload_length: large.1,
            budget_ms: large.2,
            request_id: large.3,
            body_checksum: large.4,
            header_checksum: 0,
        },
    )
}

fn encoded(header: Header) -> [u8; HEADER_SIZE] {
    let mut bytes = [0; HEADER_SIZE];
    header.encode(&mut bytes);
    bytes
}

proptest! {
    #[test]
    fn header_round_trips(header in any_header()) {
        let decoded = Header::decode(&encoded(header)).unwrap();
        prop_assert_eq!(Header { header_checksum: 0, ..decoded }, header);
    }

    #[test]
    fn header_is_what_rkyv_writes(header in any_header()) {
        let bytes = encoded(header);
        let header = Header { header_checksum: Header::decode(&bytes).unwrap().header_checksum, ..header };
        let written = rkyv::to_bytes::<Failure>(&header).unwrap();
        prop_assert_eq!(written.as_slice(), &bytes[..]);
    }

    #[test]
    fn one_flipped_bit_of_a_header_is_found(header in any_header(), bit in 0..HEADER_SIZE * 8) {
        let mut bytes = encoded(header);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Header::decode(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        if let Some(head) = bytes.first_chunk() {
            let _ = Header::decode(head);
        }
        let _ = body::<ArchivedHelloRequest>(&bytes).map(|message| message.client.len());
        let _ = body::<ArchivedHelloReply>(&bytes).map(|hello| hello.shards.iter().map(|shard| shard.len()).max());
        let _ = body::<ArchivedStatRequest>(&bytes).map(|message| message.path.len());
        let _ = body::<ArchivedStatReply>(&bytes).map(|message| Entry::from(&message.entry));
        let _ = body::<ArchivedListRequest>(&bytes).map(|message| message.token.len());
        let _ = body::<ArchivedListReply>(&bytes).map(|message| message.entries.iter().map(Entry::from).count());
        let _ = body::<ArchivedRange>(&bytes).map(Range::from);
        let _ = body::<ArchivedReadManyRequest>(&bytes).map(|message| message.ranges.iter().map(Range::from).count());
        let _ = body::<ArchivedReadReply>(&bytes).map(|read| read.checksums.iter().map(|sum| sum.to_native()).max());
        let _ = body::<ArchivedLoadReply>(&bytes).map(|message| Entry::from(&message.entry));
        let _ = body::<ArchivedFreeReply>(&bytes).map(|message| message.byte_count.to_native());
        let _ = body::<ArchivedStatusReply>(&bytes).map(|status| status.counters.len());
        let _ = body::<ArchivedErrorReply>(&bytes).map(|message| message.message.len());
    }

    #[test]
    fn a_damaged_body_is_refused_or_still_readable(
        names in proptest::collection::vec("[a-z]{0,12}", 0..8), position in 0usize..4096, value in any::<u8>(),
    ) {
        let entries: Vec<Entry> = names.iter().map(|name| Entry {
            name: name.clone(), kind: Kind::File, id: FileId(7), version: 1, length: 2, modified_ms: 3,
        }).collect();
        let mut frame = Vec::new();
        encode(&mut frame, Header::request(Op::List, 1, 0), &ListReply { entries, next: String::new() });
        let (head, bytes) = frame.split_at_mut(HEADER_SIZE);
        let header = Header::decode(head.first_chunk().unwrap()).unwrap();
        let position = position % bytes.len();
        let changed = bytes[position] != value;
        bytes[position] = value;
        prop_assert_eq!(header.check_body(bytes).is_err(), changed);
        // The archive check alone must keep memory safe, whatever the checksum says.
        let _ = body::<ArchivedListReply>(bytes).map(|message| message.entries.iter().map(Entry::from).count());
    }

    #[test]
    fn a_read_reply_round_trips(checksums in proptest::collection::vec(any::<u32>(), 0..crate::checksum::PIECES_MAX)) {
        let mut frame = Vec::new();
        let header = Header::request(Op::Read, 1, 0).reply(Status::Ok);
        encode(&mut frame, header, &ReadReply { checksums: checksums.clone() });
        let reply = body::<ArchivedReadReply>(&frame[HEADER_SIZE..]).unwrap();
        prop_assert_eq!(reply.checksums.iter().map(|sum| sum.to_native()).collect::<Vec<_>>(), checksums);
    }
}

#[test]
fn a_reply_repeats_request_id_and_op() {
    let reply = Header::request(Op::Read, 42, 1000).reply(Status::Busy);
    assert_eq!(
        (reply.request_id, reply.op, reply.status(), reply.budget_ms),
        (42, Op::Read as u8, Status::Busy, 0)
    );
    assert!(reply.is_reply());
}

#[test]
fn other_protocols_are_named_in_the_error() {
    let mut bytes = [b' '; HEADER_SIZE];
    bytes[..4].copy_from_slice(b"GET ");
    assert_eq!(Header::decode(&bytes), Err(FrameError::BadMagic(u32::from_le_bytes(*b"GET "))));
}

#[test]
fn replies_to_reads_are_encoded_as_any_other_body() {
    for count in 0..300u32 {
        let checksums: Vec<u32> = (0..count).map(|it| it.wrapping_mul(0x9E37_79B9)).collect();
        let header = Header { payload_length: 7, ..Header::request(Op::Read, 5, 6) };
        let (mut expect, mut found) = (vec![1, 2, 3], vec![1, 2, 3]);
        encode_read_reply(&mut found, header, &checksums);
        encode(&mut expect, header, &ReadReply { checksums });
        assert_eq!(found, expect, "{count} checksums");
    }
}
