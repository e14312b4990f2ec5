//! The published test vectors: what `vectors/*.txt` say is what this crate writes and reads.
//!
//! Every file is built from Rust values, compared byte for byte, then read back. `MILLRACE_BLESS=1`
//! writes the files anew; do so only for additions, since other implementations test against them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use millrace_proto::checksum::{self, Grain};
use millrace_proto::frame::{self, BODY_LENGTH_MAX, PAYLOAD_LENGTH_MAX};
use millrace_proto::message::*;
use millrace_proto::{
    FileId, FrameError, HEADER_SIZE, Header, Op, Status, VERSION, feature, placement,
};

/// A message that can be put in a file and compared with what a file holds.
trait Message {
    fn kind(&self) -> &'static str;
    fn frame(&self, header: Header) -> Vec<u8>;
    fn json(&self) -> String;
    /// Whether `body` is an archive of an equal value.
    fn is_in(&self, body: &[u8]) -> Result<bool, FrameError>;
}

/// `message!(Type, Archived, |archived| owned value, |message| JSON)`
macro_rules! message {
    ($type:ident, $archived:ident, |$a:ident| $owned:expr, |$m:ident| $json:expr) => {
        impl Message for $type {
            fn kind(&self) -> &'static str {
                stringify!($type)
            }
            fn frame(&self, header: Header) -> Vec<u8> {
                let mut out = Vec::new();
                frame::encode(&mut out, header, self);
                out
            }
            fn json(&self) -> String {
                let $m = self;
                $json
            }
            fn is_in(&self, body: &[u8]) -> Result<bool, FrameError> {
                let $a = frame::body::<$archived>(body)?;
                Ok(*self == $owned)
            }
        }
    };
}

message!(
    HelloRequest,
    ArchivedHelloRequest,
    |a| HelloRequest {
        client: text(&a.client),
        version_min: a.version_min,
        version_max: a.version_max,
        features: a.features.to_native()
    },
    |m| object(&[
        ("client", string(&m.client)),
        ("version_min", m.version_min.to_string()),
        ("version_max", m.version_max.to_string()),
        ("features", m.features.to_string())
    ])
);
message!(
    HelloReply,
    ArchivedHelloReply,
    |a| HelloReply {
        server: text(&a.server),
        version: a.version,
        features: a.features.to_native(),
        block_size: a.block_size.to_native(),
        body_length_max: a.body_length_max.to_native(),
        requests_in_flight_max: a.requests_in_flight_max.to_native(),
        ranges_max: a.ranges_max.to_native(),
        shards: a.shards.iter().map(text).collect(),
    },
    |m| object(&[
        ("server", string(&m.server)),
        ("version", m.version.to_string()),
        ("features", m.features.to_string()),
        ("block_size", m.block_size.to_string()),
        ("body_length_max", m.body_length_max.to_string()),
        ("requests_in_flight_max", m.requests_in_flight_max.to_string()),
        ("ranges_max", m.ranges_max.to_string()),
        ("shards", list(&m.shards, |shard| string(shard))),
    ])
);
message!(StatRequest, ArchivedStatRequest, |a| StatRequest { path: text(&a.path) }, |m| object(&[
    ("path", string(&m.path))
]));
message!(StatReply, ArchivedStatReply, |a| StatReply { entry: Entry::from(&a.entry) }, |m| object(
    &[("entry", entry_json(&m.entry))]
));
message!(
    ListRequest,
    ArchivedListRequest,
    |a| ListRequest { path: text(&a.path), token: text(&a.token), limit: a.limit.to_native() },
    |m| object(&[
        ("path", string(&m.path)),
        ("token", string(&m.token)),
        ("limit", m.limit.to_string())
    ])
);
message!(
    ListReply,
    ArchivedListReply,
    |a| ListReply { entries: a.entries.iter().map(Entry::from).collect(), next: text(&a.next) },
    |m| object(&[("entries", list(&m.entries, entry_json)), ("next", string(&m.next))])
);
message!(Range, ArchivedRange, |a| Range::from(a), |m| range_json(m));
message!(
    ReadReply,
    ArchivedReadReply,
    |a| ReadReply { checksums: a.checksums.iter().map(|sum| sum.to_native()).collect() },
    |m| object(&[("checksums", list(&m.checksums, u32::to_string))])
);
message!(
    ReadManyRequest,
    ArchivedReadManyRequest,
    |a| ReadManyRequest { ranges: a.ranges.iter().map(Range::from).collect() },
    |m| object(&[("ranges", list(&m.ranges, range_json))])
);
message!(LoadRequest, ArchivedLoadRequest, |a| LoadRequest { path: text(&a.path) }, |m| object(&[
    ("path", string(&m.path))
]));
message!(
    LoadReply,
    ArchivedLoadReply,
    |a| LoadReply {
        entry: Entry::from(&a.entry),
        block_count: a.block_count.to_native(),
        filled_count: a.filled_count.to_native()
    },
    |m| object(&[
        ("entry", entry_json(&m.entry)),
        ("block_count", m.block_count.to_string()),
        ("filled_count", m.filled_count.to_string())
    ])
);
message!(FreeRequest, ArchivedFreeRequest, |a| FreeRequest { path: text(&a.path) }, |m| object(&[
    ("path", string(&m.path))
]));
message!(
    FreeReply,
    ArchivedFreeReply,
    |a| FreeReply { block_count: a.block_count.to_native(), byte_count: a.byte_count.to_native() },
    |m| object(&[
        ("block_count", m.block_count.to_string()),
        ("byte_count", m.byte_count.to_string())
    ])
);
message!(
    StatusReply,
    ArchivedStatusReply,
    |a| StatusReply {
        server: text(&a.server),
        uptime_ms: a.uptime_ms.to_native(),
        shard_count: a.shard_count.to_native(),
        counters: a
            .counters
            .iter()
            .map(|counter| Counter { name: text(&counter.name), value: counter.value.to_native() })
            .collect(),
    },
    |m| object(&[
        ("server", string(&m.server)),
        ("uptime_ms", m.uptime_ms.to_string()),
        ("shard_count", m.shard_count.to_string()),
        (
            "counters",
            list(&m.counters, |counter| object(&[
                ("name", string(&counter.name)),
                ("value", counter.value.to_string())
            ]))
        ),
    ])
);
message!(ErrorReply, ArchivedErrorReply, |a| ErrorReply { message: text(&a.message) }, |m| object(
    &[("message", string(&m.message))]
));

/// Stands for "no body".
struct Nothing;

impl Message for Nothing {
    fn kind(&self) -> &'static str {
        "None"
    }
    fn frame(&self, header: Header) -> Vec<u8> {
        let mut out = Vec::new();
        frame::encode_empty(&mut out, header);
        out
    }
    fn json(&self) -> String {
        "null".to_owned()
    }
    fn is_in(&self, body: &[u8]) -> Result<bool, FrameError> {
        Ok(body.is_empty())
    }
}

fn text(archived: &rkyv::string::ArchivedString) -> String {
    archived.as_str().to_owned()
}

/// JSON of a text without control characters.
fn string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn object(fields: &[(&str, String)]) -> String {
    let fields: Vec<String> =
        fields.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    format!("{{{}}}", fields.join(", "))
}

fn list<T>(values: &[T], json: impl Fn(&T) -> String) -> String {
    format!("[{}]", values.iter().map(json).collect::<Vec<_>>().join(", "))
}

fn entry_json(entry: &Entry) -> String {
    object(&[
        ("name", string(&entry.name)),
        ("kind", (entry.kind as u8).to_string()),
        ("id", string(&entry.id.to_string())),
        ("version", entry.version.to_string()),
        ("length", entry.length.to_string()),
        ("modified_ms", entry.modified_ms.to_string()),
    ])
}

fn range_json(range: &Range) -> String {
    object(&[
        ("file", string(&range.file.to_string())),
        ("version", range.version.to_string()),
        ("offset", range.offset.to_string()),
        ("length", range.length.to_string()),
    ])
}

/// Hex digits; `-` for none, since no line ends in a space.
fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".to_owned();
    }
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn unhex(text: &str) -> Vec<u8> {
    if text == "-" {
        return Vec::new();
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex digits"))
        .collect()
}

/// Compares `built` with the file, or writes it where asked to; returns the vectors in the file.
#[track_caller]
fn check_file(name: &str, built: &str) -> Vec<BTreeMap<String, String>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name);
    if std::env::var_os("MILLRACE_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(&path, built).expect("write the vectors");
    }
    let stored =
        std::fs::read_to_string(&path).expect("read the vectors; MILLRACE_BLESS=1 writes them");
    for (number, (stored, built)) in stored.lines().zip(built.lines()).enumerate() {
        assert_eq!(stored, built, "{name}, line {}", number + 1);
    }
    assert_eq!(stored, built, "{name}");
    stored
        .split("\n\n")
        .skip(1)
        .map(|vector| {
            vector
                .lines()
                .map(|line| {
                    let (key, value) = line.split_once(": ").expect("lines are `key: value`");
                    (key.to_owned(), value.to_owned())
                })
                .collect()
        })
        .collect()
}

struct Vector {
    name: &'static str,
    about: &'static str,
    header: Header,
    body: Box<dyn Message>,
    payload: Vec<u8>,
}

fn vector(
    name: &'static str,
    about: &'static str,
    header: Header,
    body: impl Message + 'static,
) -> Vector {
    Vector { name, about, header, body: Box::new(body), payload: Vec::new() }
}

fn check_frames(file: &str, about: &str, vectors: &[Vector]) {
    let mut built = format!("{FORMAT}{about}");
    for vector in vectors {
        let header = Header { payload_length: vector.payload.len() as u32, ..vector.header };
        let frame = vector.body.frame(header);
        let (head, body) = frame.split_at(HEADER_SIZE);
        let header = object(&[
            ("version", header.version.to_string()),
            ("op", header.op.to_string()),
            ("flags", header.flags.to_string()),
            ("status", header.status.to_string()),
            ("part", header.part.to_string()),
            ("body_length", body.len().to_string()),
            ("payload_length", header.payload_length.to_string()),
            ("budget_ms", header.budget_ms.to_string()),
            ("request_id", header.request_id.to_string()),
        ]);
        let _ = write!(
            built,
            "\nname: {}\nabout: {}\nheader: {header}\nmessage: {}\nvalue: {}\nheader_hex: {}\nbody_hex: {}\npayload_hex: {}\n",
            vector.name,
            vector.about,
            vector.body.kind(),
            vector.body.json(),
            hex(head),
            hex(body),
            hex(&vector.payload),
        );
    }
    let stored = check_file(file, &built);
    assert_eq!(stored.len(), vectors.len());
    for (stored, vector) in stored.iter().zip(vectors) {
        let (head, body) = (unhex(&stored["header_hex"]), unhex(&stored["body_hex"]));
        let header = Header::decode(head.first_chunk().expect("40 bytes")).expect("a valid header");
        header.check_lengths(BODY_LENGTH_MAX, PAYLOAD_LENGTH_MAX).expect("lengths within limits");
        header.check_body(&body).expect("the body's checksum");
        let expect = Header {
            body_length: body.len() as u32,
            payload_length: vector.payload.len() as u32,
            body_checksum: header.body_checksum,
            header_checksum: header.header_checksum,
            ..vector.header
        };
        assert_eq!(header, expect, "{}", vector.name);
        assert_eq!(vector.body.is_in(&body), Ok(true), "{}", vector.name);
        assert_eq!(unhex(&stored["payload_hex"]), vector.payload, "{}", vector.name);
    }
}

const FORMAT: &str = "\
# Millrace protocol, version 1: test vectors. See ../PROTOCOL.md.
# Vectors are separated by empty lines; a line is `key: value`. `header` and `value` are JSON, with
# file ids as 32 hex digits, most significant first. `-` stands for no bytes. On the wire a frame is
# header, body, payload.
";

const ID: FileId = FileId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);

fn request(op: Op, id: u64) -> Header {
    Header::request(op, id, 0)
}

fn reply(op: Op, id: u64, status: Status) -> Header {
    Header::request(op, id, 0).reply(status)
}

fn file(name: &str) -> Entry {
    Entry {
        name: name.into(),
        kind: Kind::File,
        id: ID,
        version: 0x0123_4567_89ab_cdef,
        length: 70_000,
        modified_ms: 1_700_000_000_123,
    }
}

fn range(offset: u64, length: u32) -> Range {
    Range { file: ID, version: 0x0123_4567_89ab_cdef, offset, length }
}

/// Byte `index` of the block that all vectors use.
fn byte(index: usize) -> u8 {
    (index ^ (index >> 8) ^ (index >> 16)) as u8
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table with one vector an element")]
fn requests_are_as_published() {
    let hello = HelloRequest {
        client: "example 1.0".into(),
        version_min: 1,
        version_max: 1,
        features: feature::ALL,
    };
    let list = |path: &str, token: &str, limit| ListRequest {
        path: path.into(),
        token: token.into(),
        limit,
    };
    let largest =
        Range { file: FileId(u128::MAX), version: u64::MAX, offset: u64::MAX, length: u32::MAX };
    let vectors = [
        vector("hello", "Name out of line (11 bytes).", request(Op::Hello, 1), hello),
        vector("ping", "No body.", request(Op::Ping, 2), Nothing),
        vector(
            "ping_numbers",
            "Every number of a request header at its limit.",
            Header::request(Op::Ping, u64::MAX, u32::MAX),
            Nothing,
        ),
        vector(
            "stat_inline",
            "A path of 8 bytes lies inline.",
            request(Op::Stat, 3),
            StatRequest { path: "a/b.data".into() },
        ),
        vector(
            "stat_out_of_line",
            "A path of 9 bytes lies before the root.",
            Header::request(Op::Stat, 4, 1500),
            StatRequest { path: "a/b.data2".into() },
        ),
        vector(
            "stat_utf8",
            "Lengths count bytes of UTF-8.",
            request(Op::Stat, 5),
            StatRequest { path: "däta/日本.bin".into() },
        ),
        vector(
            "stat_64",
            "A length of 64 bytes: the mark splits the number.",
            request(Op::Stat, 6),
            StatRequest { path: "p".repeat(64) },
        ),
        vector(
            "stat_300",
            "A length that needs more than one byte.",
            request(Op::Stat, 7),
            StatRequest { path: "q".repeat(300) },
        ),
        vector(
            "list_first",
            "First page of the root: two empty strings.",
            request(Op::List, 8),
            list("", "", 0),
        ),
        vector(
            "list_next",
            "Two strings out of line, in field order.",
            request(Op::List, 9),
            list("datasets/images", "img-000999.jpg", 1000),
        ),
        vector(
            "list_mixed",
            "First string inline, second out of line.",
            request(Op::List, 10),
            list("data", "img-000999.jpg", 1),
        ),
        vector("read", "One range.", Header::request(Op::Read, 11, 250), range(65_536, 4096)),
        vector(
            "read_largest",
            "Every number at its limit; a node answers InvalidArgument.",
            request(Op::Read, 12),
            largest,
        ),
        vector(
            "read_many",
            "Three ranges.",
            request(Op::ReadMany, 13),
            ReadManyRequest { ranges: vec![range(0, 65_536), range(65_536, 4464), range(10, 20)] },
        ),
        vector(
            "load",
            "A path out of line.",
            request(Op::Load, 14),
            LoadRequest { path: "datasets/images/a.tar".into() },
        ),
        vector(
            "free",
            "A path inline.",
            request(Op::Free, 15),
            FreeRequest { path: "a.tar".into() },
        ),
        vector("status", "No body.", request(Op::Status, 16), Nothing),
    ];
    check_frames("requests.txt", "# Requests: client to node.\n", &vectors);
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table with one vector an element")]
fn replies_are_as_published() {
    let hello = HelloReply {
        server: "millrace 0.1.0".into(),
        version: VERSION,
        features: feature::ALL,
        block_size: 1 << 20,
        body_length_max: BODY_LENGTH_MAX,
        requests_in_flight_max: 256,
        ranges_max: 1024,
        shards: vec!["cache-1.example.org:7070".into(), ":7071".into(), "10.0.0.1:7072".into()],
    };
    let folder = Entry {
        name: "images".into(),
        kind: Kind::Directory,
        id: FileId(0),
        version: 0,
        length: 0,
        modified_ms: -1,
    };
    let list = ListReply {
        entries: vec![file("a-long-name.bin"), file("b.bin"), folder, file("another-name.bin")],
        next: "another-name.bin".into(),
    };
    let counters = [("hits", 10), ("miss_bytes_total", u64::MAX)]
        .map(|(name, value)| Counter { name: name.into(), value });
    let status = StatusReply {
        server: "millrace 0.1.0".into(),
        uptime_ms: 86_400_000,
        shard_count: 3,
        counters: counters.into(),
    };
    let mut vectors = vec![
        vector(
            "hello",
            "One address of each kind: with host, without, IP.",
            reply(Op::Hello, 1, Status::Ok),
            hello,
        ),
        vector("ping", "No body.", reply(Op::Ping, 2, Status::Ok), Nothing),
        vector(
            "stat",
            "A structure within the root.",
            reply(Op::Stat, 3, Status::Ok),
            StatReply { entry: file("a/b.data2") },
        ),
        vector(
            "list",
            "Texts of the elements, then the elements, then the next field's text.",
            reply(Op::List, 8, Status::Ok),
            list,
        ),
        vector(
            "list_empty",
            "A vector without elements.",
            reply(Op::List, 9, Status::Ok),
            ListReply { entries: vec![], next: String::new() },
        ),
        read_reply(
            "read",
            "Two pages and a part of block 0 of a file of 70000 bytes.",
            reply(Op::Read, 11, Status::Ok),
            4096,
            8200,
        ),
        read_reply(
            "read_many_part_1",
            "The second range, a short last chunk.",
            Header { part: 1, ..reply(Op::ReadMany, 13, Status::Ok) },
            69_632,
            368,
        ),
        vector(
            "load",
            "Numbers behind a structure.",
            reply(Op::Load, 14, Status::Ok),
            LoadReply { entry: file("datasets/images/a.tar"), block_count: 2, filled_count: 1 },
        ),
        vector(
            "free",
            "Two numbers.",
            reply(Op::Free, 15, Status::Ok),
            FreeReply { block_count: 2, byte_count: 70_000 },
        ),
        vector(
            "status",
            "A vector of structures with texts.",
            reply(Op::Status, 16, Status::Ok),
            status,
        ),
        vector(
            "busy",
            "Try again in 20 ms.",
            Header { budget_ms: 20, ..reply(Op::Read, 21, Status::Busy) },
            ErrorReply { message: "the fill queue is full".into() },
        ),
        vector(
            "busy_without_body",
            "An error reply may have no body.",
            Header { budget_ms: 1, ..reply(Op::Read, 22, Status::Busy) },
            Nothing,
        ),
        vector(
            "read_many_part_2_stale",
            "One range of a batch fails alone.",
            Header { part: 2, ..reply(Op::ReadMany, 13, Status::StaleVersion) },
            Nothing,
        ),
        vector(
            "read_many_refused",
            "A batch that is refused as a whole: part 65535.",
            Header { part: frame::PART_ALL, ..reply(Op::ReadMany, 14, Status::InvalidArgument) },
            ErrorReply { message: "0 ranges".into() },
        ),
        vector(
            "refused_frame",
            "Before closing a stream that is out of step: no request is known, so id and op are 0.",
            Header { op: 0, ..reply(Op::Hello, 0, Status::BadFrame) },
            ErrorReply { message: "frame header checksum mismatch".into() },
        ),
    ];
    for status in &Status::ALL[2..] {
        let name: &'static str = format!("{status:?}").leak();
        let message = ErrorReply { message: status.to_string() };
        vectors.push(vector(
            name,
            "This status with a message.",
            reply(Op::Read, 100 + *status as u64, *status),
            message,
        ));
    }
    check_frames(
        "replies.txt",
        "# Replies: node to client. Error replies come last, one of each status.\n",
        &vectors,
    );
}

/// A reply with bytes of a file of 70000 bytes that lies in one block.
fn read_reply(
    name: &'static str,
    about: &'static str,
    header: Header,
    offset: u32,
    length: u32,
) -> Vector {
    let block: Vec<u8> = (0..70_000).map(byte).collect();
    let checksums = checksum::pieces(offset, length, 70_000)
        .map(|piece| checksum::of(&block[piece.offset as usize..][..piece.length as usize]))
        .collect();
    let payload = block[offset as usize..][..length as usize].to_vec();
    Vector { payload, ..vector(name, about, header, ReadReply { checksums }) }
}

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

/// What a node does with the bytes, in the order that the specification gives.
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

/// A frame around arbitrary body bytes, with right lengths and checksums.
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
            "A version that nobody speaks yet; the frame is skipped by its lengths.",
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
            "op_10",
            "An operation of the future.",
            "UnknownOp",
            "None",
            raw(Header { op: 10, ..request(Op::Stat, 1) }, b"unknown"),
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
        assert_eq!(checksum::verify(&payload, offset, block_length, values), Ok(()));
    }
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
                "\nfile: {file}\nblock: {block}\nhash: {hash:016x}\nshard_of_1: {}\nshard_of_3: {}\nshard_of_8: {}\nshard_of_256: {}\n",
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
