//! Frames that are refused, and how.

use std::fmt::Write as _;

use millrace_proto::checksum::{self};
use millrace_proto::frame::{self, BODY_LENGTH_MAX};
use millrace_proto::message::*;
use millrace_proto::{FrameError, HEADER_SIZE, Header, Op, Status, VERSION};

use crate::format::*;

/// A frame that a node refuses, and how.
struct Refused {
    name: &'static str,
    about: &'static str,
    error: &'static str,
    status: Status,
    closes: bool,
    message: &'static str,
    frame: Vec<u8>,
}

/// Decides what a node does with the bytes, in the order that the specification gives.
fn judge(bytes: &[u8], message: &str) -> Result<(), (&'static str, Status, bool)> {
    let failed = |error: FrameError| {
        let name = match error {
            FrameError::BadMagic(_) => "BadMagic",
            FrameError::BadHeaderChecksum => "BadHeaderChecksum",
            FrameError::BodyTooLarge(..) => "BodyTooLarge",
            FrameError::PayloadTooLarge(..) => "PayloadTooLarge",
            FrameError::BadBodyChecksum => "BadBodyChecksum",
            FrameError::BadBody => "BadBody",
        };
        (name, error.status(), error.is_fatal())
    };
    let (head, body) = bytes.split_first_chunk().expect("a whole header");
    let header = Header::decode(head).map_err(failed)?;
    header.check_lengths(BODY_LENGTH_MAX, 0).map_err(failed)?;
    header.check_body(body).map_err(failed)?;
    if header.version != VERSION {
        return Err(("UnsupportedVersion", Status::UnsupportedVersion, false));
    }
    if Op::from_code(header.op).is_none() {
        return Err(("UnknownOp", Status::UnknownOp, false));
    }
    let valid = match message {
        "StatRequest" => frame::body::<ArchivedStatRequest>(body).map(|_| ()),
        "ListRequest" => frame::body::<ArchivedListRequest>(body).map(|_| ()),
        "ReadManyRequest" => frame::body::<ArchivedReadManyRequest>(body).map(|_| ()),
        "Range" => frame::body::<ArchivedRange>(body).map(|_| ()),
        "ListReply" => frame::body::<ArchivedListReply>(body).map(|_| ()),
        "None" => Ok(()),
        other => panic!("no such message here: {other}"),
    };
    valid.map_err(failed)
}

/// Returns a frame around arbitrary body bytes, with right lengths and checksums.
fn raw(header: Header, body: &[u8]) -> Vec<u8> {
    let header =
        Header { body_length: body.len() as u32, body_checksum: checksum::of(body), ..header };
    let mut head = [0; HEADER_SIZE];
    header.encode(&mut head);
    [&head[..], body].concat()
}

#[allow(clippy::too_many_lines, reason = "a table with one vector an element")]
fn refused_frames() -> Vec<Refused> {
    let refused = |name, about, error, message, frame| Refused {
        name,
        about,
        error,
        status: Status::Ok,
        closes: false,
        message,
        frame,
    };
    let stat = |body: &[u8]| raw(request(Op::Stat, 1), body);
    let path = StatRequest { path: "datasets/images".into() }.frame(request(Op::Stat, 1));
    let body = path[HEADER_SIZE..].to_vec();
    let changed = |at: usize, value: u8| {
        let mut frame = path.clone();
        frame[at] = value;
        frame
    };
    let in_body = |at: usize, value: u8| {
        let mut body = body.clone();
        body[at] = value;
        stat(&body)
    };
    let lengths = |body_length, payload_length| {
        let mut head = [0; HEADER_SIZE];
        Header { body_length, payload_length, ..request(Op::Ping, 1) }.encode(&mut head);
        head.to_vec()
    };
    let list =
        ListRequest { path: "datasets/images".into(), token: "img-000999.jpg!".into(), limit: 0 }
            .frame(request(Op::List, 1));
    let mut overlap = list[HEADER_SIZE..].to_vec();
    // The second pointer, at 38 + 4, goes 15 bytes further back: to the first string's bytes.
    overlap[42] = overlap[42].wrapping_sub(15);
    let mut entries = ListReply { entries: vec![file("b.bin")], next: String::new() }.frame(reply(
        Op::List,
        1,
        Status::Ok,
    ))[HEADER_SIZE..]
        .to_vec();
    entries[8] = 3;
    let mut ranges = ReadManyRequest { ranges: vec![range(0, 1)] }.frame(request(Op::ReadMany, 1))
        [HEADER_SIZE..]
        .to_vec();
    ranges[36 + 4] = 2;
    let mut http = b"GET / HTTP/1.1\r\nHost: cache-1:7070\r\n\r\n".to_vec();
    http.resize(HEADER_SIZE, b' ');
    vec![
        refused("other_protocol", "An HTTP request.", "BadMagic", "None", http),
        refused(
            "header_bit",
            "One flipped bit in the header (op 3 became 2).",
            "BadHeaderChecksum",
            "StatRequest",
            changed(5, 2),
        ),
        refused(
            "header_checksum_bit",
            "One flipped bit in the header's checksum.",
            "BadHeaderChecksum",
            "StatRequest",
            changed(36, path[36] ^ 1),
        ),
        refused(
            "body_too_large",
            "65537 bytes of body announced.",
            "BodyTooLarge",
            "None",
            lengths(65_537, 0),
        ),
        refused(
            "payload_in_a_request",
            "A request has no payload.",
            "PayloadTooLarge",
            "None",
            lengths(0, 1),
        ),
        refused(
            "body_bit",
            "One flipped bit in the body.",
            "BadBodyChecksum",
            "StatRequest",
            changed(HEADER_SIZE, b'D'),
        ),
        refused(
            "version",
            "A version that no program speaks yet; the frame is skipped by its lengths.",
            "UnsupportedVersion",
            "None",
            raw(Header { version: 2, ..request(Op::Stat, 1) }, b"unknown"),
        ),
        refused(
            "op_0",
            "No operation.",
            "UnknownOp",
            "None",
            raw(Header { op: 0, ..request(Op::Stat, 1) }, &[]),
        ),
        refused(
            "op_200",
            "An operation of the future.",
            "UnknownOp",
            "None",
            raw(Header { op: 200, ..request(Op::Stat, 1) }, b"unknown"),
        ),
        refused("no_body", "Stat needs a body.", "BadBody", "StatRequest", stat(&[])),
        refused(
            "body_cut",
            "Shorter than the root.",
            "BadBody",
            "StatRequest",
            stat(&body[body.len() - 7..]),
        ),
        refused(
            "range_cut",
            "35 of 36 bytes.",
            "BadBody",
            "Range",
            raw(request(Op::Read, 1), &[0; 35]),
        ),
        refused(
            "text_not_utf8",
            "A text out of line with byte ff.",
            "BadBody",
            "StatRequest",
            in_body(0, 0xff),
        ),
        refused(
            "inline_text_not_utf8",
            "An inline text with byte fe.",
            "BadBody",
            "StatRequest",
            stat(&[b'a', 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ),
        refused(
            "text_before_body",
            "The offset leads before the body.",
            "BadBody",
            "StatRequest",
            in_body(body.len() - 4, 0xf0),
        ),
        refused(
            "text_into_root",
            "The text reaches into the root.",
            "BadBody",
            "StatRequest",
            in_body(body.len() - 4, 0xf2),
        ),
        refused(
            "text_too_short",
            "Out of line with 8 bytes: such a text lies inline.",
            "BadBody",
            "StatRequest",
            in_body(body.len() - 8, 0x88),
        ),
        refused(
            "texts_overlap",
            "Two texts claim the same bytes.",
            "BadBody",
            "ListRequest",
            raw(request(Op::List, 1), &overlap),
        ),
        refused(
            "vector_too_long",
            "Two ranges announced, one there.",
            "BadBody",
            "ReadManyRequest",
            raw(request(Op::ReadMany, 1), &ranges),
        ),
        refused(
            "kind_3",
            "An entry that is neither file nor directory (a client's case).",
            "BadBody",
            "ListReply",
            raw(reply(Op::List, 1, Status::Ok), &entries),
        ),
    ]
}

#[test]
fn invalid_frames_are_refused_as_published() {
    let mut built = format!(
        "{FORMAT}# Frames that are refused: why, the status of the answer, and whether the connection closes.\n\
         # A node's case: no payload is allowed. `message` is what the body should be.\n"
    );
    let mut refused = refused_frames();
    for vector in &mut refused {
        let (error, status, closes) = judge(&vector.frame, vector.message).expect_err(vector.name);
        assert_eq!(error, vector.error, "{}", vector.name);
        (vector.status, vector.closes) = (status, closes);
        let _ = write!(
            built,
            "\nname: {}\nabout: {}\nmessage: {}\nerror: {error}\nstatus: {}\ncloses: {closes}\nframe_hex: {}\n",
            vector.name,
            vector.about,
            vector.message,
            status as u16,
            hex(&vector.frame),
        );
    }
    let stored = check_file("invalid.txt", &built);
    assert_eq!(stored.len(), refused.len());
    for (stored, vector) in stored.iter().zip(&refused) {
        let judged = judge(&unhex(&stored["frame_hex"]), &stored["message"]);
        assert_eq!(judged, Err((vector.error, vector.status, vector.closes)), "{}", vector.name);
    }
}
