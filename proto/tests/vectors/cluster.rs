//! Requests and replies of a cluster.

use millrace_proto::cluster::*;
use millrace_proto::message::*;
use millrace_proto::proof::*;
use millrace_proto::{Header, Op, Status, VERSION, feature};

use crate::format::*;

/// Ids of requests, apart from those of other vectors.
const FIRST: u64 = 30;

/// Number of the run of a node.
pub(crate) const NODE: u64 = 0x0123_4567_89ab_cdef;
/// What both sides of an exchange chose.
pub(crate) const CLIENT_NONCE: [u8; 32] = counted(1);
pub(crate) const NODE_NONCE: [u8; 32] = counted(101);

const fn counted(first: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = first + at as u8;
        at += 1;
    }
    bytes
}

/// Returns the secret of the vectors.
pub(crate) fn secret() -> Secret {
    Secret::parse(SECRET.as_bytes()).expect("long enough")
}

pub(crate) const SECRET: &str = "a secret that is known to all";

/// Returns the exchange of the vectors.
pub(crate) fn exchange() -> Exchange {
    let role = Role::Member as u8;
    Exchange { role, node: NODE, client: CLIENT_NONCE, answer: NODE_NONCE }
}

/// Returns the code of the block of 70000 bytes that the reads of the vectors ask for.
pub(crate) fn block_mac() -> BlockMac {
    let bytes: Vec<u8> = (0..70_000).map(byte).collect();
    let mut mac = BlockMac::new(&secret(), ID, 1, 0, bytes.len() as u32);
    mac.update(&bytes);
    mac
}

/// Keys of two members.
const KEYS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0x0123_4567_89ab_cdef];

fn mount(prefix: &str, source: &str, replicas: u8) -> Mount {
    Mount { prefix: prefix.into(), source: source.into(), replicas }
}

fn cache_1() -> Member {
    Member {
        id: "cache-1".into(),
        key: KEYS[0],
        weight: 65_536,
        zone: "rack-a".into(),
        state: MemberState::Active as u8,
        address: "cache-1.example.org:7070".into(),
        shards: vec!["cache-1.example.org:7070".into(), "cache-1.example.org:7071".into()],
        local: vec!["unix:/run/millrace/node.0".into(), "unix:@millrace-1".into()],
        machine: "b7b6d3a4-5c1f-4c68-9a53-0c9f3c1f2a77".into(),
        run: 0x0123_4567_89ab_cdef,
        capacity: 64 << 30,
        server: "millrace 0.1.0".into(),
    }
}

fn cache_2() -> Member {
    Member {
        id: "cache-2.example.org".into(),
        key: KEYS[1],
        weight: 49_152,
        zone: String::new(),
        state: MemberState::Draining as u8,
        address: "[::1]:7070".into(),
        shards: vec!["[::1]:7070".into()],
        local: Vec::new(),
        machine: String::new(),
        run: u64::MAX,
        capacity: 48 << 30,
        server: "other 2".into(),
    }
}

#[allow(clippy::too_many_lines, reason = "a table with one vector an element")]
pub(crate) fn requests() -> Vec<Vector> {
    let hello =
        HelloRequest { client: "example 1.0".into(), version_min: 1, version_max: 1, features: 31 };
    assert_eq!(hello.features, 2 * feature::CLUSTER - 1, "that one and all before it");
    let ring = |epoch, first, wait| RingRequest { epoch, first, wait };
    let inventory = |cursor| InventoryRequest { key: KEYS[1], epoch: 7, cursor };
    vec![
        vector("hello_cluster", "Every feature offered.", request(Op::Hello, FIRST), hello),
        vector("ring", "No ring known yet.", request(Op::Ring, FIRST + 1), ring(0, 0, 0)),
        vector(
            "ring_wait",
            "Epoch 7 known: answered when there is another, or shortly before 20 s are over.",
            Header::request(Op::Ring, FIRST + 2, 20_000),
            ring(7, 0, 1),
        ),
        vector(
            "ring_next",
            "The page from member 100 on.",
            request(Op::Ring, FIRST + 3),
            ring(7, 100, 0),
        ),
        vector("peek", "A range, as in Read.", request(Op::Peek, FIRST + 4), range(69_632, 368)),
        vector("fetch", "A range, as in Read.", request(Op::Fetch, FIRST + 13), range(0, 70_000)),
        vector("inventory", "First page.", request(Op::Inventory, FIRST + 5), inventory(0)),
        vector(
            "inventory_next",
            "The page that a reply told of.",
            request(Op::Inventory, FIRST + 6),
            inventory(0xfedc_ba98_7654_3210),
        ),
        vector(
            "drain",
            "An id out of line.",
            request(Op::Drain, FIRST + 7),
            DrainRequest { node: "cache-2.example.org".into(), undo: 0 },
        ),
        vector(
            "drain_undo",
            "An id inline.",
            request(Op::Drain, FIRST + 8),
            DrainRequest { node: "cache-1".into(), undo: 1 },
        ),
        vector(
            "mount",
            "A structure with texts out of line, then a number.",
            request(Op::Mount, FIRST + 9),
            MountRequest { mount: mount("datasets/images", "file:///data", 2), remove: 0 },
        ),
        vector(
            "mount_remove",
            "The prefix alone counts.",
            request(Op::Mount, FIRST + 10),
            MountRequest { mount: mount("datasets/images", "", 0), remove: 1 },
        ),
        vector(
            "pin",
            "A path out of line.",
            request(Op::Pin, FIRST + 14),
            PinRequest { path: "datasets/hot".into(), undo: 0 },
        ),
        vector(
            "pin_undo",
            "The empty path, above all others.",
            request(Op::Pin, FIRST + 15),
            PinRequest { path: String::new(), undo: 1 },
        ),
        vector("pins", "No body.", request(Op::Pins, FIRST + 16), Nothing),
        vector(
            "challenge",
            "As a member, of a run of a node; the number counts up here, as none should.",
            request(Op::Challenge, FIRST + 18),
            ChallengeRequest { role: Role::Member as u8, node: NODE, nonce: CLIENT_NONCE },
        ),
        vector(
            "prove",
            "The proof of a client that knows the secret of the vectors of proofs.",
            request(Op::Prove, FIRST + 19),
            Proof { mac: exchange().proof(&secret(), Side::Client) },
        ),
        vector("vouch", "A range, as in Read.", request(Op::Vouch, FIRST + 20), range(0, 70_000)),
        vector(
            "refresh",
            "A file.",
            request(Op::Refresh, FIRST + 21),
            RefreshRequest { path: "datasets/hot".into(), recursive: 0 },
        ),
        vector(
            "refresh_recursive",
            "All that is served.",
            request(Op::Refresh, FIRST + 22),
            RefreshRequest { path: String::new(), recursive: 1 },
        ),
        vector(
            "mount_with_options",
            "Two options behind the source.",
            request(Op::Mount, FIRST + 23),
            MountRequest {
                mount: mount("lake", "s3://box/it?credential=prod&stale_after_ms=never", 1),
                remove: 0,
            },
        ),
    ]
}

#[allow(clippy::too_many_lines, reason = "a table with one vector an element")]
pub(crate) fn replies() -> Vec<Vector> {
    let hello = HelloReply {
        server: "millrace 0.1.0".into(),
        version: VERSION,
        features: 31,
        block_size: 1 << 20,
        body_length_max: 65_536,
        requests_in_flight_max: 256,
        ranges_max: 1024,
        shards: vec!["cache-1.example.org:7070".into(), ":7071".into()],
    };
    let ring = RingReply {
        cluster: "c0ffee00-1111-2222-3333-444455556666".into(),
        epoch: 7,
        node: "cache-1".into(),
        master: "cache-2.example.org".into(),
        is_fenced: 0,
        mounts: vec![mount("", "file:///data", 1), mount("datasets/images", "file:///images", 2)],
        member_count: 2,
        members: vec![cache_1(), cache_2()],
    };
    let next = RingReply {
        mounts: Vec::new(),
        member_count: 101,
        members: vec![cache_2()],
        ..ring.clone()
    };
    let unseen = RingReply {
        cluster: String::new(),
        epoch: 0,
        node: "cache-1".into(),
        master: String::new(),
        is_fenced: 1,
        mounts: Vec::new(),
        member_count: 0,
        members: Vec::new(),
    };
    let file = |path: &str, blocks: &[u32]| InventoryFile {
        id: ID,
        version: 0x0123_4567_89ab_cdef,
        length: 3 << 20,
        path: path.into(),
        blocks: blocks.into(),
    };
    let inventory = InventoryReply {
        next: 0xfedc_ba98_7654_3210,
        files: vec![file("datasets/images/a.tar", &[0, 2]), file("b.bin", &[u32::MAX])],
    };
    vec![
        vector(
            "hello_cluster",
            "Every feature offered by both.",
            reply(Op::Hello, FIRST, Status::Ok),
            hello,
        ),
        vector(
            "ring",
            "Lists of structures, with lists of texts in them.",
            reply(Op::Ring, FIRST + 1, Status::Ok),
            ring,
        ),
        vector(
            "ring_next",
            "The last of 101 members; mounts come with the first page only.",
            reply(Op::Ring, FIRST + 3, Status::Ok),
            next,
        ),
        vector(
            "ring_unseen",
            "A node that has not reached coordination yet.",
            reply(Op::Ring, FIRST + 11, Status::Ok),
            unseen,
        ),
        read_reply("peek", "Bytes as of Read.", reply(Op::Peek, FIRST + 4, Status::Ok), 4096, 8200),
        read_reply(
            "fetch",
            "Bytes as of Read.",
            reply(Op::Fetch, FIRST + 13, Status::Ok),
            0,
            70_000,
        ),
        vector(
            "peek_not_cached",
            "The usual case has no body.",
            reply(Op::Peek, FIRST + 12, Status::NotCached),
            Nothing,
        ),
        vector(
            "inventory",
            "Two files; there is a further page.",
            reply(Op::Inventory, FIRST + 5, Status::Ok),
            inventory,
        ),
        vector(
            "inventory_last",
            "Nothing left.",
            reply(Op::Inventory, FIRST + 6, Status::Ok),
            InventoryReply { next: 0, files: Vec::new() },
        ),
        vector("drain", "No body.", reply(Op::Drain, FIRST + 7, Status::Ok), Nothing),
        vector(
            "drain_not_master",
            "The message names the master.",
            reply(Op::Drain, FIRST + 8, Status::NotMaster),
            ErrorReply { message: "the master is cache-2.example.org".into() },
        ),
        vector("mount", "No body.", reply(Op::Mount, FIRST + 9, Status::Ok), Nothing),
        vector("pin", "No body.", reply(Op::Pin, FIRST + 14, Status::Ok), Nothing),
        vector(
            "pins",
            "Paths in line and out of line.",
            reply(Op::Pins, FIRST + 16, Status::Ok),
            PinsReply { pins: vec!["datasets/hot".into(), "one".into()] },
        ),
        vector(
            "pins_none",
            "Nothing is pinned.",
            reply(Op::Pins, FIRST + 17, Status::Ok),
            PinsReply { pins: Vec::new() },
        ),
        vector(
            "challenge",
            "The node's number.",
            reply(Op::Challenge, FIRST + 18, Status::Ok),
            ChallengeReply { nonce: NODE_NONCE },
        ),
        vector(
            "prove",
            "The proof of the node.",
            reply(Op::Prove, FIRST + 19, Status::Ok),
            Proof { mac: exchange().proof(&secret(), Side::Node) },
        ),
        vector(
            "vouch",
            "The code of the block that fetch brings.",
            reply(Op::Vouch, FIRST + 20, Status::Ok),
            Proof { mac: block_mac().finish() },
        ),
    ]
}
