//! Bytes that no good client sends. The node survives all of them and serves other clients.

use std::net::Shutdown;

use millrace_proto::frame::{self, HEADER_SIZE, Header, PART_ALL};
use millrace_proto::message::{
    ArchivedListReply, Entry, HelloRequest, ListRequest, RANGES_MAX, Range, ReadManyRequest,
    StatRequest,
};
use millrace_proto::{Op, Status, checksum};
use millrace_tests::peer::{empty_request, range, raw_frame, request};
use millrace_tests::{Node, Peer, Reply, Scratch, content};

const LENGTH: usize = 200_000;

/// A node with one file, and a bad peer.
struct Story {
    _scratch: Scratch,
    node: Node,
    peer: Peer,
}

impl Story {
    fn new() -> Story {
        let scratch = Scratch::new();
        scratch.file("a", LENGTH);
        let node = Node::serve(scratch.root());
        let peer = node.peer();
        Story { _scratch: scratch, node, peer }
    }

    /// Checks that the bad frame was answered with `status`, and that the connection goes on.
    fn answered(&mut self, status: Status) -> Reply {
        let reply = self.peer.receive();
        assert_eq!(reply.status(), status, "{}", reply.message());
        assert!(self.peer.ping(), "the connection goes on");
        reply
    }

    /// Checks that the bad frame was answered with `status`, and that the connection was then closed.
    fn refused(&mut self, status: Status) -> Reply {
        let reply = self.peer.receive();
        assert_eq!(reply.status(), status, "{}", reply.message());
        assert!(!reply.message().is_empty(), "a refusal says why");
        assert_eq!(self.peer.read_to_end(), b"", "nothing follows");
        reply
    }

    /// Checks that other clients are served, and that the node ends well.
    fn survives(mut self) {
        is_served(&mut self.node.peer());
        assert!(self.node.is_running());
        drop(self.peer);
        self.node.stop();
    }
}

fn is_served(other: &mut Peer) {
    let entry = other.stat("a").expect("stat");
    let read = other.read(&entry, 65_536, 5000).expect("read");
    content::check("a", 65_536, &read);
}

fn header(op: Op, id: u64, body: &[u8]) -> Header {
    let body_checksum = if body.is_empty() { 0 } else { checksum::of(body) };
    Header { body_length: body.len() as u32, body_checksum, ..Header::request(op, id, 0) }
}

#[test]
fn a_truncated_frame_then_the_end_is_dropped() {
    for cut in [1, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 3] {
        let mut story = Story::new();
        let bytes = request(Op::Stat, 1, &StatRequest { path: "a".to_owned() });
        story.peer.send_raw(&bytes[..cut]);
        story.peer.stream.shutdown(Shutdown::Write).expect("shut the sending side");
        assert_eq!(story.peer.read_to_end(), b"", "half a request has no reply");
        story.survives();
    }
}

#[test]
fn a_truncated_frame_then_silence_keeps_nobody_waiting() {
    let mut story = Story::new();
    let bytes = request(Op::Stat, 1, &StatRequest { path: "a".to_owned() });
    story.peer.send_raw(&bytes[..HEADER_SIZE + 2]);
    for _ in 0..20 {
        is_served(&mut story.node.peer());
    }
    story.peer.send_raw(&bytes[HEADER_SIZE + 2..]);
    assert_eq!(story.peer.receive().status(), Status::Ok, "a frame may take its time");
    story.survives();
}

#[test]
fn a_body_too_long_is_refused_by_its_header_alone() {
    for length in [frame::BODY_LENGTH_MAX + 1, u32::MAX] {
        let mut story = Story::new();
        let bad = Header { body_length: length, ..header(Op::Stat, 77, b"") };
        story.peer.send_raw(&raw_frame(bad, b""));
        let reply = story.refused(Status::FrameTooLarge);
        assert_eq!(reply.header.request_id, 77);
        story.survives();
    }
}

#[test]
fn a_request_with_a_payload_is_refused() {
    let mut story = Story::new();
    let bad = Header { payload_length: 1, ..header(Op::Ping, 78, b"") };
    story.peer.send_raw(&raw_frame(bad, b"x"));
    let reply = story.refused(Status::FrameTooLarge);
    assert_eq!(reply.header.request_id, 78);
    story.survives();
}

#[test]
fn another_protocol_is_refused() {
    let mut story = Story::new();
    story.peer.send_raw(b"GET /a HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n");
    let reply = story.refused(Status::BadFrame);
    assert_eq!(reply.header.request_id, 0, "nothing in the header can be trusted");
    story.survives();
}

#[test]
fn a_damaged_header_is_refused() {
    for bit in [32, 41, 50, 97, 200, 36 * 8, 39 * 8 + 7] {
        let mut story = Story::new();
        let mut bytes = empty_request(Op::Ping, 79);
        bytes[bit / 8] ^= 1 << (bit % 8);
        story.peer.send_raw(&bytes);
        let reply = story.refused(Status::BadFrame);
        assert_eq!(reply.header.request_id, 0);
        story.survives();
    }
}

#[test]
fn replies_that_were_due_come_before_a_refusal() {
    let mut story = Story::new();
    let mut bytes: Vec<u8> = (1..=5).flat_map(|id| empty_request(Op::Ping, id)).collect();
    bytes.extend_from_slice(&[0xFF; HEADER_SIZE]);
    story.peer.send_raw(&bytes);
    for id in 1..=5 {
        let reply = story.peer.receive();
        assert_eq!((reply.header.request_id, reply.status()), (id, Status::Ok));
    }
    story.refused(Status::BadFrame);
    story.survives();
}

#[test]
fn a_damaged_body_is_answered_and_the_connection_goes_on() {
    let mut story = Story::new();
    let mut bytes = request(Op::Stat, 80, &StatRequest { path: "a".to_owned() });
    *bytes.last_mut().expect("a body") ^= 1;
    story.peer.send_raw(&bytes);
    let reply = story.answered(Status::BadChecksum);
    assert_eq!(reply.header.request_id, 80);
    // A checksum without a body is not better.
    let bad = Header { body_checksum: 5, ..header(Op::Ping, 81, b"") };
    story.peer.send_raw(&raw_frame(bad, b""));
    story.answered(Status::BadChecksum);
    story.survives();
}

#[test]
fn an_unknown_operation_is_answered_and_the_connection_goes_on() {
    let mut story = Story::new();
    for op in [0, 100, 200, 255] {
        let bad = Header { op, ..header(Op::Ping, 82, b"any body") };
        story.peer.send_raw(&raw_frame(bad, b"any body"));
        let reply = story.answered(Status::UnknownOp);
        assert_eq!((reply.header.request_id, reply.header.op), (82, op));
    }
    story.survives();
}

#[test]
fn a_later_version_is_answered_and_the_connection_goes_on() {
    let mut story = Story::new();
    for version in [0, 2, 255] {
        let bad = Header { version, ..header(Op::Stat, 83, b"what later versions say") };
        story.peer.send_raw(&raw_frame(bad, b"what later versions say"));
        let reply = story.answered(Status::UnsupportedVersion);
        assert_eq!(reply.header.request_id, 83);
        assert_eq!(reply.header.version, millrace_proto::VERSION);
    }
    let hello = HelloRequest {
        client: "from the future".to_owned(),
        version_min: 2,
        version_max: 9,
        features: u64::MAX,
    };
    story.peer.send_raw(&request(Op::Hello, 84, &hello));
    story.answered(Status::UnsupportedVersion);
    story.survives();
}

#[test]
fn a_body_that_is_no_message_is_answered_and_the_connection_goes_on() {
    let mut story = Story::new();
    let ops = [Op::Hello, Op::Stat, Op::List, Op::Read, Op::ReadMany, Op::Load, Op::Free];
    // Bodies are too short, or their texts and lists lead out of them.
    let bodies: [&[u8]; 4] = [b"", b"abc", &[0x89, 0, 0, 0, 0, 0, 0, 0x80], &[0x80; 60]];
    for op in ops {
        for body in bodies {
            if op == Op::Read && body.len() >= 36 {
                continue;
            }
            story.peer.send_raw(&raw_frame(header(op, 85, body), body));
            let reply = story.answered(Status::BadFrame);
            assert_eq!(reply.header.request_id, 85, "{op:?} {body:?}");
        }
    }
    story.survives();
}

#[test]
fn bytes_that_nothing_points_to_and_bodies_that_are_not_asked_for_are_passed_over() {
    let mut story = Story::new();
    let frame = request(Op::Stat, 1, &StatRequest { path: "a".to_owned() });
    for junk in [1, 8, 5000] {
        let body = [&vec![0xee; junk][..], &frame[HEADER_SIZE..]].concat();
        story.peer.send_raw(&raw_frame(header(Op::Stat, 91, &body), &body));
        let reply = story.answered(Status::Ok);
        assert_eq!(reply.header.request_id, 91);
        for op in [Op::Ping, Op::Status, Op::Attach, Op::Pins] {
            story.peer.send_raw(&raw_frame(header(op, 92, &body), &body));
            let reply = story.answered(Status::Ok);
            assert_eq!(reply.header.request_id, 92, "{op:?}");
        }
    }
    // A damaged one is refused.
    let body = [7; 100];
    let bad = Header { body_checksum: 1, ..header(Op::Ping, 93, &body) };
    story.peer.send_raw(&raw_frame(bad, &body));
    story.answered(Status::BadChecksum);
    story.survives();
}

#[test]
fn a_request_with_the_number_0_is_answered() {
    let mut story = Story::new();
    story.peer.send_raw(&request(Op::Stat, 0, &StatRequest { path: "a".to_owned() }));
    let reply = story.answered(Status::Ok);
    assert_eq!((reply.header.request_id, reply.header.op), (0, Op::Stat as u8));
    story.survives();
}

#[test]
fn pages_go_on_at_a_place_in_the_order_of_names() {
    let scratch = Scratch::new();
    for name in ["a", "c", "e", "g"] {
        scratch.file(name, 1);
    }
    let node = Node::serve(scratch.root());
    let mut peer = node.peer();
    let mut page = |token: &str, limit| {
        let (path, token) = (String::new(), token.to_owned());
        let reply = peer.ask(Op::List, &ListRequest { path, token, limit });
        assert_eq!(reply.status(), Status::Ok, "{}", reply.message());
        let body = frame::body::<ArchivedListReply>(&reply.body).expect("a list");
        let names: Vec<String> = body.entries.iter().map(|it| it.name.to_string()).collect();
        (names, body.next.to_string())
    };
    let (names, next) = page("", 2);
    assert_eq!(names, ["a", "c"]);
    for gone in ["c", "e"] {
        std::fs::remove_file(scratch.at(gone)).expect("remove");
    }
    for come in ["b", "f"] {
        scratch.file(come, 1);
    }
    // The window of a directory that has changed is not good any more.
    let (names, end) = page(&next, 0);
    assert_eq!((names, end.as_str()), (vec!["f".to_owned(), "g".to_owned()], ""));
    assert_eq!(page("bb", u32::MAX).0, ["f", "g"], "any text is a place");
    assert_eq!(page("", u32::MAX).0, ["a", "b", "f", "g"]);
    node.stop();
}

#[test]
fn a_frame_that_is_a_reply_gets_no_worse_than_one_answer() {
    let mut story = Story::new();
    let bad = Header { flags: frame::FLAG_REPLY | 0x80, ..header(Op::Ping, 86, b"") };
    story.peer.send_raw(&raw_frame(bad, b""));
    let reply = story.peer.receive();
    assert_eq!(reply.header.request_id, 86);
    assert!(story.peer.ping(), "receivers ignore flags that they do not know");
    story.survives();
}

fn many(ranges: Vec<Range>, id: u64) -> Vec<u8> {
    request(Op::ReadMany, id, &ReadManyRequest { ranges })
}

/// Checks that a batch that is refused as a whole is answered once.
fn batch_is_refused(story: &mut Story, ranges: Vec<Range>) {
    story.peer.send_raw(&many(ranges, 87));
    let reply = story.peer.receive();
    assert_eq!(reply.status(), Status::InvalidArgument, "{}", reply.message());
    assert_eq!((reply.header.request_id, reply.header.part), (87, PART_ALL));
    assert!(story.peer.ping(), "one reply and no more");
}

fn entry(story: &mut Story) -> Entry {
    story.peer.stat("a").expect("stat")
}

#[test]
fn a_batch_of_nothing_or_of_too_much_is_refused_as_a_whole() {
    let mut story = Story::new();
    let entry = entry(&mut story);
    batch_is_refused(&mut story, Vec::new());
    batch_is_refused(&mut story, vec![range(&entry, 0, 65_536); 257]);
    batch_is_refused(&mut story, vec![range(&entry, 0, u32::MAX); 3]);
    batch_is_refused(&mut story, vec![range(&entry, 0, 1); RANGES_MAX + 1]);
    story.survives();
}

#[test]
fn a_bad_range_fails_alone() {
    let mut story = Story::new();
    let entry = entry(&mut story);
    let length = LENGTH as u64;
    let asked = [
        (range(&entry, 0, 100), Status::Ok),
        (range(&entry, 0, 0), Status::InvalidArgument),
        (range(&entry, 65_535, 2), Status::InvalidArgument),
        (range(&entry, 0, u32::MAX - 300_000_000), Status::InvalidArgument),
        (range(&entry, u64::MAX, 2), Status::InvalidArgument),
        (range(&entry, u64::MAX, 1), Status::OutOfRange),
        (range(&entry, 1 << 63, 1), Status::OutOfRange),
        (range(&entry, length, 1), Status::OutOfRange),
        (range(&entry, 10 * length, 1), Status::OutOfRange),
        (Range { version: entry.version ^ 1, ..range(&entry, 0, 1) }, Status::StaleVersion),
        (Range { file: millrace_proto::FileId(1), ..range(&entry, 0, 1) }, Status::UnknownFile),
        (range(&entry, length - 5, 100), Status::Ok),
    ];
    for (range, expected) in asked {
        let id = story.peer.send(Op::Read, &range);
        let reply = story.peer.receive();
        assert_eq!((reply.header.request_id, reply.status()), (id, expected), "{range:?}");
    }
    let batched: Vec<usize> = (0..asked.len()).filter(|index| *index != 3).collect();
    story.peer.send_raw(&many(batched.iter().map(|index| asked[*index].0).collect(), 88));
    let mut seen = vec![false; batched.len()];
    for _ in &batched {
        let reply = story.peer.receive();
        let part = reply.header.part as usize;
        assert!(!std::mem::replace(&mut seen[part], true), "part {part} is answered once");
        let (range, expected) = asked[batched[part]];
        assert_eq!(reply.status(), expected, "part {part}");
        if expected == Status::Ok {
            let block_size = story.peer.block_size;
            let read = reply.into_bytes(&entry, range.offset, block_size).expect("bytes");
            content::check("a", range.offset, &read);
        }
    }
    assert!(story.peer.ping());
    story.survives();
}

#[test]
fn a_batch_with_more_ranges_than_requests_in_flight_is_answered_whole() {
    let mut story = Story::new();
    let entry = entry(&mut story);
    let ranges: Vec<Range> =
        (0..RANGES_MAX as u64).map(|index| range(&entry, index * 100, 90)).collect();
    story.peer.send_raw(&many(ranges, 89));
    let mut seen = vec![false; RANGES_MAX];
    for _ in 0..RANGES_MAX {
        let reply = story.peer.receive();
        let part = reply.header.part as usize;
        assert!(!std::mem::replace(&mut seen[part], true), "part {part} is answered once");
        // Ranges that cross a block border are part of the mix.
        if reply.status() == Status::Ok {
            content::check("a", part as u64 * 100, &reply.payload);
        }
    }
    assert!(story.peer.ping());
    story.survives();
}

/// Returns a valid frame of any kind, damaged or not, with its checksums mended or not.
fn mutated(random: &mut fastrand::Rng, entry: &Entry) -> Vec<u8> {
    let path = ["a", "", "../a", "missing", "a/b"][random.usize(..5)].to_owned();
    let mut bytes = match random.u8(..7) {
        0 => request(Op::Stat, random.u64(..), &StatRequest { path }),
        1 => request(
            Op::List,
            random.u64(..),
            &ListRequest { path, token: "t".repeat(random.usize(..50)), limit: random.u32(..) },
        ),
        2 => request(Op::Read, random.u64(..), &range(entry, random.u64(..), random.u32(..))),
        3 => request(Op::Read, random.u64(..), &range(entry, random.u64(..250_000), 100)),
        4 => many(
            vec![range(entry, random.u64(..250_000), random.u32(..70_000)); random.usize(..20)],
            3,
        ),
        5 => empty_request([Op::Ping, Op::Status][random.usize(..2)], random.u64(..)),
        _ => request(
            Op::Hello,
            random.u64(..),
            &HelloRequest {
                client: path,
                version_min: 1,
                version_max: 1,
                features: random.u64(..),
            },
        ),
    };
    for _ in 0..random.usize(..4) {
        let index = random.usize(..bytes.len());
        bytes[index] = random.u8(..);
    }
    if random.bool() {
        // Mends the checksums, so that the damage gets past them.
        let body = bytes.split_off(HEADER_SIZE);
        bytes[32..36]
            .copy_from_slice(&if body.is_empty() { 0 } else { checksum::of(&body) }.to_le_bytes());
        let sum = checksum::of(&bytes[..36]);
        bytes[36..40].copy_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(&body);
    }
    if random.u8(..10) == 0 {
        bytes.truncate(random.usize(..bytes.len()));
    }
    bytes
}

#[test]
fn five_hundred_connections_of_garbage_leave_the_node_well() {
    let mut story = Story::new();
    let entry = entry(&mut story);
    let mut other = story.node.peer();
    for seed in 0..500 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bytes = Vec::new();
        if seed % 3 == 0 {
            bytes = vec![0; random.usize(1..20_000)];
            random.fill(&mut bytes);
            if seed % 2 == 0 {
                let count = bytes.len().min(4);
                bytes[..count].copy_from_slice(&b"MILR"[..count]);
            }
        } else {
            for _ in 0..random.usize(1..12) {
                bytes.extend_from_slice(&mutated(&mut random, &entry));
            }
        }
        let mut peer = story.node.peer();
        // The node may close before it has taken everything.
        let _ = std::io::Write::write_all(&mut peer.stream, &bytes);
        if random.bool() {
            let _ = peer.stream.shutdown(Shutdown::Write);
            peer.read_to_end();
        } else if random.bool() {
            peer.reset();
        }
        if seed % 50 == 0 {
            is_served(&mut other);
            assert!(story.node.is_running(), "seed {seed}");
        }
    }
    drop(other);
    story.survives();
}
