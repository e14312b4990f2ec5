//! What no client should send: broken records and frames, unknown operations, odd handshakes.

use millrace_proto::zookeeper::{jute, opcode, record::PASSWORD_SIZE};

use super::{Asked, Generator, Handshake, Presence};
use crate::compare::Comparer;
use crate::op::{Op, Then};

/// Requests whose records are broken: all that the server reads in order.
const BREAKABLE: [i32; 23] = [
    opcode::CREATE,
    opcode::CREATE2,
    opcode::CREATE_CONTAINER,
    opcode::CREATE_TTL,
    opcode::DELETE,
    opcode::EXISTS,
    opcode::GET_DATA,
    opcode::SET_DATA,
    opcode::GET_ACL,
    opcode::SET_ACL,
    opcode::GET_CHILDREN,
    opcode::GET_CHILDREN2,
    opcode::GET_ALL_CHILDREN_NUMBER,
    opcode::GET_EPHEMERALS,
    opcode::SYNC,
    opcode::MULTI,
    opcode::MULTI_READ,
    opcode::SET_WATCHES,
    opcode::SET_WATCHES2,
    opcode::ADD_WATCH,
    opcode::CHECK_WATCHES,
    opcode::REMOVE_WATCHES,
    opcode::RECONFIG,
];
/// Lengths that no field has.
const BAD_LENGTHS: [i32; 6] = [-2, i32::MIN, i32::MAX, 0x0010_0001, 5000, 1 << 24];
/// Size of the largest message, and of the packet that holds it.
const PACKET_SIZE_MAX: usize = 0xfffff;
/// Operations that are not sent with a null path.
const NULL_DIFFERS: [i32; 6] = [
    opcode::ADD_WATCH,
    opcode::SYNC,
    opcode::CREATE,
    opcode::CREATE2,
    opcode::CREATE_CONTAINER,
    opcode::CREATE_TTL,
];

impl Generator {
    /// Returns a request whose record is broken, on a connection that stays open.
    pub(super) fn malformed(&mut self, slot: usize, comparer: &Comparer) -> Op {
        let code = BREAKABLE[self.rng.usize(..BREAKABLE.len())];
        let good = self.request(slot, code, comparer);
        let mut record = good.records[0].clone();
        if [opcode::MULTI, opcode::MULTI_READ].contains(&code) && self.rng.bool() {
            // The first operation, or the end of the list, is another one.
            let codes = [0, 3, 4, 7, 8, 11, 12, 14, 20, 22, 77, -1];
            let other: i32 = codes[self.rng.usize(..codes.len())];
            overwrite(&mut record, 0, &other.to_be_bytes());
            return Op::of_record(good.code, record);
        }
        match self.rng.u32(..6) {
            0 => record.truncate(self.rng.usize(..=record.len())),
            1 => record.extend_from_slice(b"more bytes"),
            // ZooKeeper accepts a watch on null, and then never closes that connection; a sync of
            // null it answers with null, and ours with an empty path; of a create on null it looks
            // at the flags first, and says -8 where both are bad.
            2 if !NULL_DIFFERS.contains(&code) => null_path(&mut record),
            3 => {
                let length = BAD_LENGTHS[self.rng.usize(..BAD_LENGTHS.len())];
                overwrite(&mut record, 0, &length.to_be_bytes());
            }
            4 => {
                // The bytes come in the middle of the path, if there is one.
                let odd: [&[u8]; 5] = [b"\x00", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xc0\x80"];
                // What is not UTF-8 ZooKeeper reads with U+FFFD in its place, ours as one path that
                // cannot exist. Both find no node there and let none be made, but for a write or
                // a sync they say so in other words: -101 or -8, and other bytes for the echo.
                let reads = [
                    opcode::EXISTS,
                    opcode::GET_DATA,
                    opcode::GET_ACL,
                    opcode::GET_CHILDREN,
                    opcode::GET_CHILDREN2,
                    opcode::GET_ALL_CHILDREN_NUMBER,
                ];
                let count = if reads.contains(&code) { odd.len() } else { 1 };
                // For the first slash of a checkWatches see `unwatch`.
                let first = if code == opcode::CHECK_WATCHES { 5 } else { 4 };
                let at = first + self.rng.usize(..6);
                overwrite(&mut record, at, odd[self.rng.usize(..count)]);
            }
            _ => {
                let size = self.rng.usize(..40);
                record = (0..size).map(|_| self.rng.u8(..)).collect();
            }
        }
        Op::of_record(good.code, record)
    }

    /// Returns something after which the server closes the connection.
    pub(super) fn fatal(&mut self) -> Op {
        match self.rng.u32(..10) {
            0..5 => {
                // Not `check` alone (13) and `createSession` (-10): ZooKeeper takes them from
                // clients by accident, and answers the first with nothing when it succeeds.
                let codes = [10, 23, 99, 108, 500, 999, -1, 0, i32::MIN, i32::MAX];
                let code = codes[self.rng.usize(..codes.len())];
                let size = self.rng.usize(..20);
                let record = (0..size).map(|_| self.rng.u8(..)).collect();
                Op { then: Then::Closes, ..Op::of_record(code, record) }
            }
            5 => {
                let mut auth = Vec::new();
                let mut writer = jute::Writer::new(&mut auth);
                writer.int(0);
                writer.string(["nobody", "sasl", "x509", ""][self.rng.usize(..4)]);
                writer.buffer(Some(b"x"));
                Op { then: Then::Closes, ..Op::of_record(opcode::AUTH, auth) }
            }
            6 => {
                let length: i32 = [-1, -2, i32::MIN, i32::MAX, 1 << 28][self.rng.usize(..5)];
                Op::raw(length.to_be_bytes().to_vec())
            }
            7 => {
                // A frame that ends before its header does.
                let size = self.rng.usize(..8);
                let mut frame = (size as i32).to_be_bytes().to_vec();
                frame.resize(4 + size, 7);
                Op::raw(frame)
            }
            8 => {
                let record = vec![0; PACKET_SIZE_MAX - 8 + self.rng.usize(1..3)];
                Op { then: Then::Closes, ..Op::of_record(opcode::SET_DATA, record) }
            }
            _ => Op::of_record(opcode::CLOSE_SESSION, vec![1, 2, 3]),
        }
    }

    pub(super) fn handshake(&mut self, presence: Presence, comparer: &Comparer) -> Handshake {
        let usual = match presence {
            Presence::Absent => Asked::New,
            Presence::Detached | Presence::Attached => Asked::Own,
        };
        let mut handshake = Handshake::plain(usual);
        match self.rng.u32(..40) {
            0 => handshake.timeout_ms = [0, -1, i32::MIN, i32::MAX, 1][self.rng.usize(..5)],
            1 => handshake.timeout_ms = self.rng.i32(0..1_000_000),
            2 => handshake.read_only = None,
            3 => handshake.read_only = Some(true),
            4 => handshake.protocol_version = [1, -1, i32::MAX][self.rng.usize(..3)],
            5 => handshake.seen = [i64::MAX; 2],
            6 => handshake.seen = [-1; 2],
            7..15 => {
                let (left, right) = comparer.zxid_pair(self.rng.f64());
                handshake.seen = [left, right];
            }
            15 => handshake.cut = Some(self.rng.usize(..44)),
            16 => handshake.asked = Asked::Unknown(self.rng.i64(1..)),
            17 => handshake.asked = Asked::Unknown(self.rng.i64(i64::MIN..0)),
            18..20 => handshake.asked = Asked::Closed,
            20..23 if presence != Presence::Absent => {
                let passwords = [
                    None,
                    Some(Vec::new()),
                    Some(vec![0; PASSWORD_SIZE]),
                    Some(vec![1; PASSWORD_SIZE - 1]),
                    Some(vec![1; PASSWORD_SIZE + 1]),
                    Some(vec![1; PASSWORD_SIZE]),
                ];
                let password = passwords[self.rng.usize(..passwords.len())].clone();
                handshake.asked = Asked::OwnWithPassword(password);
            }
            _ => {}
        }
        handshake
    }
}

/// Replaces the string in front of a record by null.
fn null_path(record: &mut Vec<u8>) {
    let mut reader = jute::Reader::new(record);
    if reader.buffer().is_ok() {
        let rest = reader.rest().to_vec();
        *record = (-1_i32).to_be_bytes().to_vec();
        record.extend_from_slice(&rest);
    }
}

fn overwrite(record: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = record.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
