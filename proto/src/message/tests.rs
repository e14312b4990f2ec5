//! Every message comes out of its frame as it went in, field by field.

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use rkyv::Portable;
use rkyv::api::high::HighValidator;
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Failure;
use rkyv::string::ArchivedString;

use super::*;
use crate::frame::{self, Header};
use crate::{HEADER_SIZE, Op, Status};

/// Encodes a message as a frame, reads it in place and makes it a message again.
pub(crate) fn round_trip<T>(
    message: &T,
    owned: impl FnOnce(&T::Archived) -> T,
) -> Result<(), TestCaseError>
where
    T: frame::Body + Archive + Debug + PartialEq,
    T::Archived: Portable + for<'a> CheckBytes<HighValidator<'a, Failure>>,
{
    // Some bytes lie before the frame, so that no archive is aligned by chance.
    let mut bytes = vec![7];
    // A body knows nothing of its op.
    frame::encode(&mut bytes, Header::request(Op::Stat, 1, 0).reply(Status::Ok), message);
    let (head, body) = bytes[1..].split_at(HEADER_SIZE);
    let header = Header::decode(head.first_chunk().unwrap()).unwrap();
    prop_assert_eq!(header.body_length as usize, body.len());
    prop_assert_eq!(header.check_body(body), Ok(()));
    let archived = frame::body::<T::Archived>(body);
    prop_assert!(archived.is_ok());
    prop_assert_eq!(&owned(archived.unwrap()), message);
    Ok(())
}

pub(crate) fn text(archived: &ArchivedString) -> String {
    archived.as_str().to_owned()
}

/// Draws texts on both sides of two limits: the length that lies inline (8 bytes) and the length that
/// one byte of the mark counts (63).
pub(crate) fn any_text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z/]{0,9}", "\\PC{0,4}", "[a-z/]{60,68}", "\\PC{0,100}"]
}

pub(crate) fn any_id() -> impl Strategy<Value = FileId> {
    any::<u128>().prop_map(FileId)
}

prop_compose! {
    fn any_entry()(
        name in any_text(),
        kind in prop_oneof![Just(Kind::File), Just(Kind::Directory)],
        id in any_id(),
        (version, length, modified_ms) in any::<(u64, u64, i64)>(),
    ) -> Entry {
        Entry { name, kind, id, version, length, modified_ms }
    }
}

prop_compose! {
    fn any_range()(file in any_id(), (version, offset, length) in any::<(u64, u64, u32)>()) -> Range {
        Range { file, version, offset, length }
    }
}

proptest! {
    #[test]
    fn hello_request(client in any_text(), (version_min, version_max, features) in any::<(u8, u8, u64)>()) {
        round_trip(&HelloRequest { client, version_min, version_max, features }, |a| HelloRequest {
            client: text(&a.client),
            version_min: a.version_min,
            version_max: a.version_max,
            features: a.features.to_native(),
        })?;
    }

    #[test]
    fn hello_reply(
        server in any_text(),
        (version, features) in any::<(u8, u64)>(),
        (block_size, body_length_max, requests_in_flight_max, ranges_max) in any::<(u32, u32, u32, u32)>(),
        shards in vec(any_text(), 0..20),
    ) {
        let hello = HelloReply {
            server, version, features, block_size, body_length_max, requests_in_flight_max, ranges_max, shards,
        };
        round_trip(&hello, |a| HelloReply {
            server: text(&a.server),
            version: a.version,
            features: a.features.to_native(),
            block_size: a.block_size.to_native(),
            body_length_max: a.body_length_max.to_native(),
            requests_in_flight_max: a.requests_in_flight_max.to_native(),
            ranges_max: a.ranges_max.to_native(),
            shards: a.shards.iter().map(text).collect(),
        })?;
    }

    #[test]
    fn requests_by_path(path in any_text()) {
        round_trip(&StatRequest { path: path.clone() }, |a| StatRequest { path: text(&a.path) })?;
        round_trip(&LoadRequest { path: path.clone() }, |a| LoadRequest { path: text(&a.path) })?;
        round_trip(&FreeRequest { path }, |a| FreeRequest { path: text(&a.path) })?;
    }

    #[test]
    fn attach_reply(
        (node, memory_length, lease_ms) in any::<(u64, u64, u32)>(),
        machine in any_text(),
        shards in vec(any_text(), 0..20),
    ) {
        let attach = AttachReply { node, machine, shards, memory_length, lease_ms };
        round_trip(&attach, |a| AttachReply {
            node: a.node.to_native(),
            machine: text(&a.machine),
            shards: a.shards.iter().map(text).collect(),
            memory_length: a.memory_length.to_native(),
            lease_ms: a.lease_ms.to_native(),
        })?;
    }

    #[test]
    fn lease_reply(
        (lease_ms, checksum) in any::<(u32, u32)>(),
        extents in vec(any::<(u64, u32)>(), 0..40),
    ) {
        let extents =
            extents.into_iter().map(|(offset, length)| Extent { offset, length }).collect();
        round_trip(&LeaseReply { lease_ms, checksum, extents }, |a| LeaseReply {
            lease_ms: a.lease_ms.to_native(),
            checksum: a.checksum.to_native(),
            extents: a.extents.iter().map(Extent::from).collect(),
        })?;
    }

    #[test]
    fn entry(entry in any_entry()) {
        round_trip(&entry, |a| Entry::from(a))?;
    }

    #[test]
    fn stat_reply(entry in any_entry(), block_size in any::<u32>()) {
        round_trip(&StatReply { entry, block_size }, |a| StatReply {
            entry: Entry::from(&a.entry),
            block_size: a.block_size.to_native(),
        })?;
    }

    #[test]
    fn list_request(path in any_text(), token in any_text(), limit in any::<u32>()) {
        round_trip(&ListRequest { path, token, limit }, |a| ListRequest {
            path: text(&a.path),
            token: text(&a.token),
            limit: a.limit.to_native(),
        })?;
    }

    #[test]
    fn list_reply(entries in vec(any_entry(), 0..20), next in any_text()) {
        round_trip(&ListReply { entries, next }, |a| ListReply {
            entries: a.entries.iter().map(Entry::from).collect(),
            next: text(&a.next),
        })?;
    }

    #[test]
    fn range(range in any_range()) {
        round_trip(&range, |a| Range::from(a))?;
    }

    #[test]
    fn read_reply(checksums in vec(any::<u32>(), 0..crate::checksum::PIECES_MAX)) {
        round_trip(&ReadReply { checksums }, |a| ReadReply {
            checksums: a.checksums.iter().map(|sum| sum.to_native()).collect(),
        })?;
    }

    #[test]
    fn read_many_request(ranges in vec(any_range(), 0..=RANGES_MAX)) {
        round_trip(&ReadManyRequest { ranges }, |a| ReadManyRequest {
            ranges: a.ranges.iter().map(Range::from).collect(),
        })?;
    }

    #[test]
    fn load_reply(entry in any_entry(), (block_count, filled_count) in any::<(u64, u64)>()) {
        round_trip(&LoadReply { entry, block_count, filled_count }, |a| LoadReply {
            entry: Entry::from(&a.entry),
            block_count: a.block_count.to_native(),
            filled_count: a.filled_count.to_native(),
        })?;
    }

    #[test]
    fn free_reply((block_count, byte_count) in any::<(u64, u64)>()) {
        round_trip(&FreeReply { block_count, byte_count }, |a| FreeReply {
            block_count: a.block_count.to_native(),
            byte_count: a.byte_count.to_native(),
        })?;
    }

    #[test]
    fn counter(name in any_text(), value in any::<u64>()) {
        round_trip(&Counter { name, value }, |a| Counter {
            name: text(&a.name),
            value: a.value.to_native(),
        })?;
    }

    #[test]
    fn status_reply(
        server in any_text(),
        (uptime_ms, shard_count) in any::<(u64, u32)>(),
        counters in vec((any_text(), any::<u64>()), 0..20),
    ) {
        let counters = counters.into_iter().map(|(name, value)| Counter { name, value }).collect();
        round_trip(&StatusReply { server, uptime_ms, shard_count, counters }, |a| StatusReply {
            server: text(&a.server),
            uptime_ms: a.uptime_ms.to_native(),
            shard_count: a.shard_count.to_native(),
            counters: a
                .counters
                .iter()
                .map(|counter| Counter { name: text(&counter.name), value: counter.value.to_native() })
                .collect(),
        })?;
    }

    #[test]
    fn error_reply(message in any_text()) {
        round_trip(&ErrorReply { message }, |a| ErrorReply { message: text(&a.message) })?;
    }
}
