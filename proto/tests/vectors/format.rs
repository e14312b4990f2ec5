//! How a vector is written to a file and read back.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use millrace_proto::checksum;
use millrace_proto::cluster::*;
use millrace_proto::frame::{self, BODY_LENGTH_MAX, PAYLOAD_LENGTH_MAX};
use millrace_proto::job::*;
use millrace_proto::message::*;
use millrace_proto::proof::*;
use millrace_proto::write::*;
use millrace_proto::{FileId, FrameError, HEADER_SIZE, Header, Op, Status};

pub(crate) use crate::text::{hex, list, object, string, unhex};

/// A message that can be put in a file and compared with what a file holds.
pub(crate) trait Message {
    fn kind(&self) -> &'static str;
    fn frame(&self, header: Header) -> Vec<u8>;
    fn json(&self) -> String;
    /// Reads `body` as an archive. True if its value equals this one.
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
message!(
    StatReply,
    ArchivedStatReply,
    |a| StatReply { entry: Entry::from(&a.entry), block_size: a.block_size.to_native() },
    |m| object(&[("entry", entry_json(&m.entry)), ("block_size", m.block_size.to_string())])
);
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
message!(
    PartialListReply,
    ArchivedPartialListReply,
    |a| PartialListReply {
        left_out_count: a.left_out_count.to_native(),
        example: text(&a.example),
        page: ListReply {
            entries: a.page.entries.iter().map(Entry::from).collect(),
            next: text(&a.page.next)
        },
    },
    |m| object(&[
        ("left_out_count", m.left_out_count.to_string()),
        ("example", string(&m.example)),
        ("page", m.page.json()),
    ])
);
message!(
    CachedRequest,
    ArchivedCachedRequest,
    |a| CachedRequest {
        file: (&a.file).into(),
        version: a.version.to_native(),
        first: a.first.to_native(),
        count: a.count.to_native(),
    },
    |m| object(&[
        ("file", string(&m.file.to_string())),
        ("version", m.version.to_string()),
        ("first", m.first.to_string()),
        ("count", m.count.to_string()),
    ])
);
message!(
    CachedReply,
    ArchivedCachedReply,
    |a| CachedReply { blocks: a.blocks.as_slice().to_vec() },
    |m| object(&[("blocks", list(&m.blocks, |byte| byte.to_string()))])
);
message!(
    ChallengeRequest,
    ArchivedChallengeRequest,
    |a| ChallengeRequest { role: a.role, node: a.node.to_native(), nonce: a.nonce },
    |m| object(&[
        ("role", m.role.to_string()),
        ("node", m.node.to_string()),
        ("nonce", string(&hex(&m.nonce)))
    ])
);
message!(
    ChallengeReply,
    ArchivedChallengeReply,
    |a| ChallengeReply { nonce: a.nonce },
    |m| object(&[("nonce", string(&hex(&m.nonce)))])
);
message!(Proof, ArchivedProof, |a| Proof { mac: a.mac }, |m| object(&[(
    "mac",
    string(&hex(&m.mac))
)]));
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
message!(
    AttachReply,
    ArchivedAttachReply,
    |a| AttachReply {
        node: a.node.to_native(),
        machine: text(&a.machine),
        shards: a.shards.iter().map(text).collect(),
        memory_length: a.memory_length.to_native(),
        lease_ms: a.lease_ms.to_native(),
    },
    |m| object(&[
        ("node", m.node.to_string()),
        ("machine", string(&m.machine)),
        ("shards", list(&m.shards, |shard| string(shard))),
        ("memory_length", m.memory_length.to_string()),
        ("lease_ms", m.lease_ms.to_string()),
    ])
);
message!(
    LeaseReply,
    ArchivedLeaseReply,
    |a| LeaseReply {
        lease_ms: a.lease_ms.to_native(),
        checksum: a.checksum.to_native(),
        extents: a.extents.iter().map(Extent::from).collect(),
    },
    |m| object(&[
        ("lease_ms", m.lease_ms.to_string()),
        ("checksum", m.checksum.to_string()),
        (
            "extents",
            list(&m.extents, |extent| object(&[
                ("offset", extent.offset.to_string()),
                ("length", extent.length.to_string()),
            ]))
        ),
    ])
);
message!(
    WriteRequest,
    ArchivedWriteRequest,
    |a| WriteRequest {
        path: text(&a.path),
        condition: a.condition,
        version: a.version.to_native()
    },
    |m| object(&[
        ("path", string(&m.path)),
        ("condition", m.condition.to_string()),
        ("version", m.version.to_string())
    ])
);
message!(
    RenameRequest,
    ArchivedRenameRequest,
    |a| RenameRequest { path: text(&a.path), to: text(&a.to), condition: a.condition },
    |m| object(&[
        ("path", string(&m.path)),
        ("to", string(&m.to)),
        ("condition", m.condition.to_string())
    ])
);
message!(
    PutReply,
    ArchivedPutReply,
    |a| PutReply { upload: a.upload.to_native(), credit: a.credit.to_native() },
    |m| object(&[("upload", m.upload.to_string()), ("credit", m.credit.to_string())])
);
message!(
    PutPartRequest,
    ArchivedPutPartRequest,
    |a| PutPartRequest {
        upload: a.upload.to_native(),
        offset: a.offset.to_native(),
        checksum: a.checksum.to_native(),
        bytes: a.bytes.to_vec(),
    },
    |m| object(&[
        ("upload", m.upload.to_string()),
        ("offset", m.offset.to_string()),
        ("checksum", m.checksum.to_string()),
        ("bytes", list(&m.bytes, u8::to_string)),
    ])
);
message!(
    PutEndRequest,
    ArchivedPutEndRequest,
    |a| PutEndRequest { upload: a.upload.to_native(), length: a.length.to_native() },
    |m| object(&[("upload", m.upload.to_string()), ("length", m.length.to_string())])
);
message!(
    PutAbortRequest,
    ArchivedPutAbortRequest,
    |a| PutAbortRequest { upload: a.upload.to_native() },
    |m| object(&[("upload", m.upload.to_string())])
);
message!(
    LoadCopiesRequest,
    ArchivedLoadCopiesRequest,
    |a| LoadCopiesRequest { path: text(&a.path), replicas: a.replicas },
    |m| object(&[("path", string(&m.path)), ("replicas", m.replicas.to_string())])
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
message!(
    RingRequest,
    ArchivedRingRequest,
    |a| RingRequest { epoch: a.epoch.to_native(), first: a.first.to_native(), wait: a.wait },
    |m| object(&[
        ("epoch", m.epoch.to_string()),
        ("first", m.first.to_string()),
        ("wait", m.wait.to_string())
    ])
);
message!(
    RingReply,
    ArchivedRingReply,
    |a| RingReply {
        cluster: text(&a.cluster),
        epoch: a.epoch.to_native(),
        node: text(&a.node),
        master: text(&a.master),
        is_fenced: a.is_fenced,
        mounts: a.mounts.iter().map(Mount::from).collect(),
        member_count: a.member_count.to_native(),
        members: a.members.iter().map(Member::from).collect(),
    },
    |m| object(&[
        ("cluster", string(&m.cluster)),
        ("epoch", m.epoch.to_string()),
        ("node", string(&m.node)),
        ("master", string(&m.master)),
        ("is_fenced", m.is_fenced.to_string()),
        ("mounts", list(&m.mounts, mount_json)),
        ("member_count", m.member_count.to_string()),
        ("members", list(&m.members, member_json)),
    ])
);
message!(
    InventoryRequest,
    ArchivedInventoryRequest,
    |a| InventoryRequest {
        key: a.key.to_native(),
        epoch: a.epoch.to_native(),
        cursor: a.cursor.to_native()
    },
    |m| object(&[
        ("key", m.key.to_string()),
        ("epoch", m.epoch.to_string()),
        ("cursor", m.cursor.to_string())
    ])
);
message!(
    InventoryReply,
    ArchivedInventoryReply,
    |a| InventoryReply {
        next: a.next.to_native(),
        files: a
            .files
            .iter()
            .map(|file| InventoryFile {
                id: (&file.id).into(),
                version: file.version.to_native(),
                length: file.length.to_native(),
                path: text(&file.path),
                blocks: file.blocks.iter().map(|block| block.to_native()).collect(),
            })
            .collect(),
    },
    |m| object(&[
        ("next", m.next.to_string()),
        (
            "files",
            list(&m.files, |file| object(&[
                ("id", string(&file.id.to_string())),
                ("version", file.version.to_string()),
                ("length", file.length.to_string()),
                ("path", string(&file.path)),
                ("blocks", list(&file.blocks, u32::to_string)),
            ]))
        ),
    ])
);
message!(
    DrainRequest,
    ArchivedDrainRequest,
    |a| DrainRequest { node: text(&a.node), undo: a.undo },
    |m| object(&[("node", string(&m.node)), ("undo", m.undo.to_string())])
);
message!(
    MountRequest,
    ArchivedMountRequest,
    |a| MountRequest { mount: Mount::from(&a.mount), remove: a.remove },
    |m| object(&[("mount", mount_json(&m.mount)), ("remove", m.remove.to_string())])
);
message!(
    RefreshRequest,
    ArchivedRefreshRequest,
    |a| RefreshRequest { path: text(&a.path), recursive: a.recursive },
    |m| object(&[("path", string(&m.path)), ("recursive", m.recursive.to_string())])
);
message!(
    PinRequest,
    ArchivedPinRequest,
    |a| PinRequest { path: text(&a.path), undo: a.undo },
    |m| object(&[("path", string(&m.path)), ("undo", m.undo.to_string())])
);
message!(
    PinsReply,
    ArchivedPinsReply,
    |a| PinsReply { pins: a.pins.iter().map(text).collect() },
    |m| object(&[("pins", list(&m.pins, |pin| string(pin)))])
);

fn start_job(a: &ArchivedStartJobRequest) -> StartJobRequest {
    StartJobRequest {
        id: a.id.to_native(),
        paths: a.paths.iter().map(text).collect(),
        recursive: a.recursive,
        pin: a.pin,
        bytes_per_second: a.bytes_per_second.to_native(),
    }
}

message!(StartJobRequest, ArchivedStartJobRequest, |a| start_job(a), |m| object(&[
    ("id", m.id.to_string()),
    ("paths", list(&m.paths, |path| string(path))),
    ("recursive", m.recursive.to_string()),
    ("pin", m.pin.to_string()),
    ("bytes_per_second", m.bytes_per_second.to_string()),
]));
message!(
    StartCopiesJobRequest,
    ArchivedStartCopiesJobRequest,
    |a| StartCopiesJobRequest { job: start_job(&a.job), replicas: a.replicas },
    |m| object(&[("job", m.job.json()), ("replicas", m.replicas.to_string())])
);
message!(
    CancelJobRequest,
    ArchivedCancelJobRequest,
    |a| CancelJobRequest { id: a.id.to_native() },
    |m| object(&[("id", m.id.to_string())])
);
message!(JobsRequest, ArchivedJobsRequest, |a| JobsRequest { id: a.id.to_native() }, |m| object(
    &[("id", m.id.to_string())]
));
message!(
    JobsReply,
    ArchivedJobsReply,
    |a| JobsReply { jobs: a.jobs.iter().map(Job::from).collect() },
    |m| object(&[("jobs", list(&m.jobs, job_json))])
);

fn load_part(a: &ArchivedLoadPartRequest) -> LoadPartRequest {
    LoadPartRequest {
        path: text(&a.path),
        file: (&a.file).into(),
        version: a.version.to_native(),
        first: a.first.to_native(),
        count: a.count.to_native(),
    }
}

message!(LoadPartRequest, ArchivedLoadPartRequest, |a| load_part(a), |m| object(&[
    ("path", string(&m.path)),
    ("file", string(&m.file.to_string())),
    ("version", m.version.to_string()),
    ("first", m.first.to_string()),
    ("count", m.count.to_string()),
]));
message!(
    LoadPartCopiesRequest,
    ArchivedLoadPartCopiesRequest,
    |a| LoadPartCopiesRequest {
        part: load_part(&a.part),
        replicas: a.replicas,
        holder: text(&a.holder),
    },
    |m| object(&[
        ("part", m.part.json()),
        ("replicas", m.replicas.to_string()),
        ("holder", string(&m.holder)),
    ])
);
message!(
    LoadPartReply,
    ArchivedLoadPartReply,
    |a| LoadPartReply {
        block_count: a.block_count.to_native(),
        filled_count: a.filled_count.to_native(),
        filled_bytes: a.filled_bytes.to_native(),
    },
    |m| object(&[
        ("block_count", m.block_count.to_string()),
        ("filled_count", m.filled_count.to_string()),
        ("filled_bytes", m.filled_bytes.to_string()),
    ])
);
message!(ErrorReply, ArchivedErrorReply, |a| ErrorReply { message: text(&a.message) }, |m| object(
    &[("message", string(&m.message))]
));

/// Stands for "no body".
pub(crate) struct Nothing;

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

pub(crate) fn text(archived: &rkyv::string::ArchivedString) -> String {
    archived.as_str().to_owned()
}

pub(crate) fn entry_json(entry: &Entry) -> String {
    object(&[
        ("name", string(&entry.name)),
        ("kind", (entry.kind as u8).to_string()),
        ("id", string(&entry.id.to_string())),
        ("version", entry.version.to_string()),
        ("length", entry.length.to_string()),
        ("modified_ms", entry.modified_ms.to_string()),
    ])
}

pub(crate) fn range_json(range: &Range) -> String {
    object(&[
        ("file", string(&range.file.to_string())),
        ("version", range.version.to_string()),
        ("offset", range.offset.to_string()),
        ("length", range.length.to_string()),
    ])
}

fn job_json(job: &Job) -> String {
    object(&[
        ("id", job.id.to_string()),
        ("state", job.state.to_string()),
        ("node", string(&job.node)),
        ("first_path", string(&job.first_path)),
        ("path_count", job.path_count.to_string()),
        ("recursive", job.recursive.to_string()),
        ("pin", job.pin.to_string()),
        ("bytes_per_second", job.bytes_per_second.to_string()),
        ("begun_ms", job.begun_ms.to_string()),
        ("recorded_ms", job.recorded_ms.to_string()),
        ("file_count", job.file_count.to_string()),
        ("total_bytes", job.total_bytes.to_string()),
        ("block_count", job.block_count.to_string()),
        ("filled_count", job.filled_count.to_string()),
        ("failed_count", job.failed_count.to_string()),
        (
            "failures",
            list(&job.failures, |failure| {
                object(&[("path", string(&failure.path)), ("reason", string(&failure.reason))])
            }),
        ),
    ])
}

fn mount_json(mount: &Mount) -> String {
    object(&[
        ("prefix", string(&mount.prefix)),
        ("source", string(&mount.source)),
        ("replicas", mount.replicas.to_string()),
    ])
}

fn member_json(member: &Member) -> String {
    let texts = |texts: &[String]| list(texts, |text| string(text));
    object(&[
        ("id", string(&member.id)),
        ("key", member.key.to_string()),
        ("weight", member.weight.to_string()),
        ("zone", string(&member.zone)),
        ("state", member.state.to_string()),
        ("address", string(&member.address)),
        ("shards", texts(&member.shards)),
        ("local", texts(&member.local)),
        ("machine", string(&member.machine)),
        ("run", member.run.to_string()),
        ("capacity", member.capacity.to_string()),
        ("server", string(&member.server)),
    ])
}

/// Compares `built` with the file, or writes it where asked to; returns the vectors in the file.
#[track_caller]
pub(crate) fn check_file(name: &str, built: &str) -> Vec<BTreeMap<String, String>> {
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

pub(crate) struct Vector {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) header: Header,
    pub(crate) body: Box<dyn Message>,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn vector(
    name: &'static str,
    about: &'static str,
    header: Header,
    body: impl Message + 'static,
) -> Vector {
    Vector { name, about, header, body: Box::new(body), payload: Vec::new() }
}

pub(crate) fn check_frames(file: &str, about: &str, vectors: &[Vector]) {
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
            "\nname: {}\nabout: {}\nheader: {header}\nmessage: {}\nvalue: {}\n\
             header_hex: {}\nbody_hex: {}\npayload_hex: {}\n",
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

pub(crate) const FORMAT: &str = "\
# Millrace protocol, version 1: test vectors. See ../PROTOCOL.md.
# Vectors are separated by empty lines; a line is `key: value`. `header` and `value` are JSON, with
# file ids as 32 hex digits, most significant first. `-` stands for no bytes. On the wire a frame is
# header, body, payload.
";

pub(crate) const ID: FileId = FileId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);

pub(crate) fn request(op: Op, id: u64) -> Header {
    Header::request(op, id, 0)
}

pub(crate) fn reply(op: Op, id: u64, status: Status) -> Header {
    Header::request(op, id, 0).reply(status)
}

pub(crate) fn file(name: &str) -> Entry {
    Entry {
        name: name.into(),
        kind: Kind::File,
        id: ID,
        version: 0x0123_4567_89ab_cdef,
        length: 70_000,
        modified_ms: 1_700_000_000_123,
    }
}

pub(crate) fn range(offset: u64, length: u32) -> Range {
    Range { file: ID, version: 0x0123_4567_89ab_cdef, offset, length }
}

/// Returns byte `index` of the block that all vectors use.
pub(crate) fn byte(index: usize) -> u8 {
    (index ^ (index >> 8) ^ (index >> 16)) as u8
}

/// Builds a reply with bytes of a file of 70000 bytes that lies in one block.
pub(crate) fn read_reply(
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
