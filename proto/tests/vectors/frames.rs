//! Requests and replies.

use millrace_proto::frame::{self, BODY_LENGTH_MAX};
use millrace_proto::message::*;
use millrace_proto::{FileId, Header, Op, Status, VERSION};

use crate::cluster;
use crate::format::*;
use crate::job;
use crate::write;

/// Feature bits before there were clusters.
const FEATURES: u64 = 15;

#[test]
#[allow(clippy::too_many_lines, reason = "a table with one vector an element")]
fn requests_are_as_published() {
    let hello = HelloRequest {
        client: "example 1.0".into(),
        version_min: 1,
        version_max: 1,
        features: FEATURES,
    };
    let list = |path: &str, token: &str, limit| ListRequest {
        path: path.into(),
        token: token.into(),
        limit,
    };
    let largest =
        Range { file: FileId(u128::MAX), version: u64::MAX, offset: u64::MAX, length: u32::MAX };
    let cached = |first, count| CachedRequest {
        file: FileId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
        version: 7,
        first,
        count,
    };
    let mut vectors = vec![
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
        vector("attach", "No body.", request(Op::Attach, 17), Nothing),
        vector(
            "lease",
            "Two blocks, each named by a range in it.",
            request(Op::Lease, 18),
            ReadManyRequest { ranges: vec![range(0, 1), range(65_536, 4464)] },
        ),
        vector(
            "release",
            "One block.",
            request(Op::Release, 19),
            ReadManyRequest { ranges: vec![range(0, 1)] },
        ),
    ];
    vectors.extend([
        vector("cached", "Ten blocks.", request(Op::Cached, 70), cached(0, 10)),
        vector(
            "cached_most",
            "As many as there can be.",
            request(Op::Cached, 71),
            cached(8192, CACHED_BLOCKS_MAX),
        ),
    ]);
    vectors.extend(cluster::requests());
    vectors.extend(job::requests());
    vectors.extend(write::requests());
    check_frames("requests.txt", "# Requests: client to node.\n", &vectors);
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table with one vector an element")]
fn replies_are_as_published() {
    let hello = HelloReply {
        server: "millrace 0.1.0".into(),
        version: VERSION,
        features: FEATURES,
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
            "A structure within the root, then a number.",
            reply(Op::Stat, 3, Status::Ok),
            StatReply { entry: file("a/b.data2"), block_size: 1 << 20 },
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
        vector(
            "list_partial",
            "Flag bit 2. Its end, read as a ListReply, is the page.",
            Header {
                flags: frame::FLAG_REPLY | frame::FLAG_LEFT_OUT,
                ..reply(Op::List, 10, Status::Ok)
            },
            PartialListReply {
                left_out_count: 2,
                example: "2 names are not UTF-8".into(),
                page: ListReply {
                    entries: vec![file("a-long-name.bin"), file("b.bin")],
                    next: "another-name.bin".into(),
                },
            },
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
            "attach",
            "The memory of 2 GiB comes as a descriptor beside these bytes.",
            reply(Op::Attach, 17, Status::Ok),
            AttachReply {
                node: 0x0123_4567_89ab_cdef,
                machine: "b7b6d3a4-5c1f-4c68-9a53-0c9f3c1f2a77".into(),
                shards: vec!["unix:/run/millrace/node.0".into(), "unix:@millrace-1".into()],
                memory_length: 2 << 30,
                lease_ms: 10_000,
            },
        ),
        vector(
            "attach_elsewhere",
            "Over TCP no memory comes.",
            reply(Op::Attach, 17, Status::Ok),
            AttachReply {
                node: 1,
                machine: String::new(),
                shards: vec![],
                memory_length: 0,
                lease_ms: 0,
            },
        ),
        vector(
            "lease_part_1",
            "A block in two runs.",
            Header { part: 1, ..reply(Op::Lease, 18, Status::Ok) },
            LeaseReply {
                lease_ms: 10_000,
                checksum: 0xcbf4_3926,
                extents: vec![
                    Extent { offset: 1 << 32, length: 4096 },
                    Extent { offset: 8192, length: 368 },
                ],
            },
        ),
        vector("release", "No body.", reply(Op::Release, 19, Status::Ok), Nothing),
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
    vectors.push(vector(
        "cached",
        "Of ten blocks the first, the eighth and the last are there.",
        reply(Op::Cached, 70, Status::Ok),
        CachedReply { blocks: vec![0x81, 0x02] },
    ));
    vectors.extend(cluster::replies());
    vectors.extend(job::replies());
    vectors.extend(write::replies());
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
