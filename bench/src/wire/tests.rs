//! Every parser is fed whole, byte by byte and in random pieces, and has to find the same replies.

use millrace_proto::message::{Entry, Kind, ReadReply};
use millrace_proto::{FileId, HEADER_SIZE, Header, Op, Status, checksum, frame};

use super::*;
use crate::control::Node;

const SET: ObjectSet = ObjectSet { count: 4, size: 10, seed: 0 };

/// A reply as the generator sees it: its slot, part, payload, and whether the request ended.
type Seen = (Option<u32>, usize, Option<Vec<u8>>, bool);

/// Parses a stream that arrives in pieces, as the generator does: a head that is cut off is kept.
fn parse<W: Wire>(wire: &W, pieces: &[&[u8]]) -> Result<Vec<Seen>> {
    let mut stage = W::Stage::default();
    let mut seen: Vec<Seen> = Vec::new();
    let (mut pending, mut left) = (Vec::new(), 0);
    for piece in pieces {
        pending.extend_from_slice(piece);
        loop {
            let taken = left.min(pending.len());
            if let Some((.., Some(payload), _)) = seen.last_mut() {
                payload.extend(pending.drain(..taken));
            }
            left -= taken;
            if left > 0 || pending.is_empty() {
                break;
            }
            let Some(step) = wire.step(&mut stage, &pending)? else {
                break;
            };
            pending.drain(..step.head);
            left = step.payload.unwrap_or(0);
            seen.push((step.slot, step.part, step.payload.map(|_| Vec::new()), step.done));
        }
    }
    assert_eq!((pending.len(), left), (0, 0), "the stream ends with a reply");
    Ok(seen)
}

fn check<W: Wire>(wire: &W, stream: &[u8], expected: &[Seen]) {
    assert_eq!(parse(wire, &[stream]).unwrap(), expected);
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(parse(wire, &bytes).unwrap(), expected);
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut pieces, mut rest) = (Vec::new(), stream);
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(random.usize(1..=rest.len().min(40)));
            pieces.push(piece);
            rest = tail;
        }
        assert_eq!(parse(wire, &pieces).unwrap(), expected, "seed {seed}");
    }
}

fn check_error<W: Wire>(wire: &W, stream: &[u8], words: &str) {
    let error = format!("{:#}", parse(wire, &[stream]).unwrap_err());
    assert!(error.contains(words), "{error}");
}

fn encoded(wire: &mut impl Wire, keys: &[u64]) -> String {
    let mut out = Vec::new();
    wire.encode(0, keys, &mut out);
    String::from_utf8(out).unwrap()
}

fn payload(text: &str) -> Option<Vec<u8>> {
    Some(text.as_bytes().to_vec())
}

#[test]
fn redis_get_is_read() {
    let mut wire = Redis::new(&SET, 1);
    assert_eq!(encoded(&mut wire, &[3]), "*2\r\n$3\r\nGET\r\n$4\r\n10:3\r\n");
    let stream = b"$10\r\n01234\r\n789\r\n$10\r\nabcdefghij\r\n";
    let expected = [
        (None, 0, payload("01234\r\n789"), false),
        (None, 0, None, true),
        (None, 0, payload("abcdefghij"), false),
        (None, 0, None, true),
    ];
    check(&wire, stream, &expected);
    check_error(&wire, b"$-1\r\n", "has not this object");
    check_error(&wire, b"-LOADING not yet\r\n", "LOADING not yet");
    check_error(&wire, b"$10\r\nabcdefghijXX", "no line end");
    check_error(&wire, &[b'x'; 600], "not made of lines");
}

#[test]
fn redis_mget_is_read() {
    let mut wire = Redis::new(&SET, 2);
    assert_eq!(encoded(&mut wire, &[0, 1]), "*3\r\n$4\r\nMGET\r\n$4\r\n10:0\r\n$4\r\n10:1\r\n");
    let stream = b"*2\r\n$2\r\nab\r\n$2\r\ncd\r\n*2\r\n$2\r\nef\r\n$2\r\ngh\r\n";
    let reply = |first: &str, second: &str| {
        [
            (None, 0, None, false),
            (None, 0, payload(first), false),
            (None, 0, None, false),
            (None, 1, payload(second), false),
            (None, 1, None, true),
        ]
    };
    let expected = [reply("ab", "cd"), reply("ef", "gh")].concat();
    check(&wire, stream, &expected);
    check_error(&wire, b"*3\r\n", "batch of 2");
}

#[test]
fn memcached_get_is_read() {
    let mut wire = Memcached::new(&SET, 1);
    assert_eq!(encoded(&mut wire, &[2]), "get 10:2\r\n");
    let stream = b"VALUE 10:2 0 5\r\nEND\r\n\r\nEND\r\nVALUE 10:1 0 2\r\nab\r\nEND\r\n";
    let expected = [
        (None, 0, payload("END\r\n"), false),
        (None, 0, None, true),
        (None, 0, payload("ab"), false),
        (None, 0, None, true),
    ];
    check(&wire, stream, &expected);
    check_error(&wire, b"END\r\n", "has not this object");
    check_error(&wire, b"SERVER_ERROR out of memory\r\n", "out of memory");
}

#[test]
fn memcached_multi_get_is_read() {
    let mut wire = Memcached::new(&SET, 2);
    assert_eq!(encoded(&mut wire, &[2, 0]), "get 10:2 10:0\r\n");
    let stream = b"VALUE 10:2 0 2\r\nab\r\nVALUE 10:0 0 2\r\ncd\r\nEND\r\n";
    let expected = [
        (None, 0, payload("ab"), false),
        (None, 0, None, false),
        (None, 1, payload("cd"), false),
        (None, 0, None, true),
    ];
    check(&wire, stream, &expected);
    check_error(&wire, b"VALUE 10:2 0 2\r\nab\r\nEND\r\n", "1 of 2 keys");
}

#[test]
fn http_get_is_read() {
    let mut wire = Http::new(&SET);
    assert_eq!(encoded(&mut wire, &[1]), "GET /objects/10/1 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let stream = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-LENGTH: 4\r\n\r\n\r\n\r\n\
        HTTP/1.1 200 OK\r\nContent-Length: 2\r\nDate: now\r\n\r\nab";
    let expected = [(None, 0, payload("\r\n\r\n"), true), (None, 0, payload("ab"), true)];
    check(&wire, stream, &expected);
    check_error(&wire, b"HTTP/1.1 404 Not Found\r\n\r\n", "404 Not Found");
    check_error(&wire, b"HTTP/1.1 200 OK\r\n\r\n", "without Content-Length");
    check_error(&wire, b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "no number");
}

fn file(name: &str, id: u128, length: u64) -> Entry {
    Entry {
        name: name.into(),
        kind: Kind::File,
        id: FileId(id),
        version: 7,
        length,
        modified_ms: 0,
    }
}

fn node() -> Node {
    Node {
        server: "test".into(),
        block_size: 64,
        ranges_max: 16,
        shards: vec![crate::address::Address::resolve("127.0.0.1:1").unwrap()],
    }
}

fn millrace(batch: usize) -> Millrace {
    let entries = vec![file("a", 1, 150), file("empty", 2, 0), file("b", 3, 5)];
    let ranges = FileRanges::new(entries, 24, 64).unwrap();
    // Blocks of 64 cut into 24 + 24 + 16, the last one of `a` has 22 bytes, `b` has 5.
    assert_eq!((ranges.count(), ranges.file_count()), (8, 2));
    assert_eq!(ranges.total_bytes(), 155);
    Millrace::new(&node(), ranges, batch, true).unwrap()
}

#[test]
fn ranges_cover_every_byte_and_cross_no_block() {
    let mut wire = millrace(1);
    let lengths: Vec<usize> = (0..8).map(|key| wire.length(key)).collect();
    assert_eq!(lengths, [24, 24, 16, 24, 24, 16, 22, 5]);
    let mut offsets = Vec::new();
    for key in 0..8 {
        let mut out = Vec::new();
        wire.encode(9, &[key], &mut out);
        let (first, body) = out.split_first_chunk::<HEADER_SIZE>().unwrap();
        let header = Header::decode(first).unwrap();
        assert_eq!((header.request_id, header.op), (9, Op::Read as u8));
        header.check_body(body).unwrap();
        let range = frame::body::<millrace_proto::message::ArchivedRange>(body)
            .map(|range| range.offset.to_native());
        offsets.push(range.unwrap());
    }
    assert_eq!(offsets, [0, 24, 48, 64, 88, 112, 128, 0]);
    assert!(FileRanges::new(vec![file("a", 1, 9)], 65, 64).is_err());
    assert!(FileRanges::new(vec![file("a", 1, 0)], 8, 64).is_err());
}

/// Returns a reply of the node for one range of `bytes`.
fn reply(slot: u64, part: u16, block: &[u8], offset: usize, length: usize) -> Vec<u8> {
    let pieces = checksum::pieces(offset as u32, length as u32, block.len() as u32);
    let checksums = pieces
        .map(|piece| checksum::of(&block[piece.offset as usize..][..piece.length as usize]))
        .collect();
    let mut header = Header::request(Op::Read, slot, 0).reply(Status::Ok);
    header.part = part;
    header.payload_length = length as u32;
    let mut out = Vec::new();
    frame::encode(&mut out, header, &ReadReply { checksums });
    out.extend_from_slice(&block[offset..offset + length]);
    out
}

#[test]
fn millrace_replies_are_read_in_any_order() {
    let block: Vec<u8> = (0..64).collect();
    let stream = [reply(5, 0, &block, 24, 24), reply(2, 1, &block, 0, 24)].concat();
    let expected = [
        (Some(5), 0, Some(block[24..48].to_vec()), true),
        (Some(2), 1, Some(block[..24].to_vec()), true),
    ];
    check(&millrace(1), &stream, &expected);
    let mut damaged = stream.clone();
    damaged[9] ^= 1;
    check_error(&millrace(1), &damaged, "checksum mismatch");
    let mut out = Vec::new();
    let header = Header::request(Op::Read, 1, 0).reply(Status::StaleVersion);
    let message = "look again".to_owned();
    frame::encode(&mut out, header, &millrace_proto::message::ErrorReply { message });
    check_error(&millrace(1), &out, "the file has changed: look again");
    out.clear();
    frame::encode_empty(&mut out, Header::request(Op::Read, 1, 0).reply(Status::Busy));
    check_error(&millrace(1), &out, "the node is busy");
}

#[test]
fn millrace_payload_is_held_to_its_checksums() {
    let block: Vec<u8> = (0..64).collect();
    let wire = millrace(1);
    let bytes = reply(0, 0, &block, 24, 24);
    let (head, payload) = bytes.split_at(bytes.len() - 24);
    wire.verify(1, head, payload).unwrap();
    let mut damaged = payload.to_vec();
    damaged[3] ^= 1;
    let error = wire.verify(1, head, &damaged).unwrap_err();
    assert!(error.to_string().contains("checksum mismatch"), "{error}");
}

#[test]
fn millrace_batch_names_its_ranges() {
    let mut wire = millrace(3);
    let mut out = Vec::new();
    wire.encode(4, &[7, 0, 6], &mut out);
    let (first, body) = out.split_first_chunk::<HEADER_SIZE>().unwrap();
    let header = Header::decode(first).unwrap();
    assert_eq!((header.request_id, header.op), (4, Op::ReadMany as u8));
    let request = frame::body::<millrace_proto::message::ArchivedReadManyRequest>(body).unwrap();
    let ranges: Vec<(u128, u64, u32)> = request
        .ranges
        .iter()
        .map(millrace_proto::message::Range::from)
        .map(|range| (range.file.0, range.offset, range.length))
        .collect();
    assert_eq!(ranges, [(3, 0, 5), (1, 0, 24), (1, 128, 22)]);
}
