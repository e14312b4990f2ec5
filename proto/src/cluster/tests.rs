//! Messages of a cluster come out as they went in; of mounts whole parts count, and the longest
//! prefix wins.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::message::tests::{any_id, any_text, round_trip, text};

fn any_mount() -> impl Strategy<Value = Mount> {
    (any_text(), any_text(), any::<u8>()).prop_map(|(prefix, source, replicas)| Mount {
        prefix,
        source,
        replicas,
    })
}

prop_compose! {
    fn any_member()(
        (id, zone, address, machine, server) in
            (any_text(), any_text(), any_text(), any_text(), any_text()),
        (key, weight, state, run, capacity) in any::<(u64, u32, u8, u64, u64)>(),
        shards in vec(any_text(), 0..9),
        local in vec(any_text(), 0..9),
    ) -> Member {
        Member {
            id, key, weight, zone, state, address, shards, local, machine, run, capacity, server,
        }
    }
}

prop_compose! {
    fn any_file()(
        id in any_id(),
        (version, length) in any::<(u64, u64)>(),
        path in any_text(),
        blocks in vec(any::<u32>(), 0..40),
    ) -> InventoryFile {
        InventoryFile { id, version, length, path, blocks }
    }
}

proptest! {
    #[test]
    fn ring_request((epoch, first, wait) in any::<(u64, u32, u8)>()) {
        round_trip(&RingRequest { epoch, first, wait }, |a| RingRequest {
            epoch: a.epoch.to_native(),
            first: a.first.to_native(),
            wait: a.wait,
        })?;
    }

    #[test]
    fn ring_reply(
        (cluster, node, master) in (any_text(), any_text(), any_text()),
        (epoch, is_fenced, member_count) in any::<(u64, u8, u32)>(),
        mounts in vec(any_mount(), 0..9),
        members in vec(any_member(), 0..9),
    ) {
        let ring =
            RingReply { cluster, epoch, node, master, is_fenced, mounts, member_count, members };
        round_trip(&ring, |a| RingReply {
            cluster: text(&a.cluster),
            epoch: a.epoch.to_native(),
            node: text(&a.node),
            master: text(&a.master),
            is_fenced: a.is_fenced,
            mounts: a.mounts.iter().map(Mount::from).collect(),
            member_count: a.member_count.to_native(),
            members: a.members.iter().map(Member::from).collect(),
        })?;
    }

    #[test]
    fn inventory_request((key, epoch, cursor) in any::<(u64, u64, u64)>()) {
        round_trip(&InventoryRequest { key, epoch, cursor }, |a| InventoryRequest {
            key: a.key.to_native(),
            epoch: a.epoch.to_native(),
            cursor: a.cursor.to_native(),
        })?;
    }

    #[test]
    fn inventory_reply(next in any::<u64>(), files in vec(any_file(), 0..20)) {
        round_trip(&InventoryReply { next, files }, |a| InventoryReply {
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
        })?;
    }

    #[test]
    fn changes_by_the_master(node in any_text(), mount in any_mount(), flag in any::<u8>()) {
        round_trip(&DrainRequest { node, undo: flag }, |a| DrainRequest {
            node: text(&a.node),
            undo: a.undo,
        })?;
        round_trip(&MountRequest { mount, remove: flag }, |a| MountRequest {
            mount: Mount::from(&a.mount),
            remove: a.remove,
        })?;
    }

    #[test]
    fn pins(path in any_text(), undo in any::<u8>(), pins in vec(any_text(), 0..20)) {
        round_trip(&PinRequest { path, undo }, |a| PinRequest {
            path: text(&a.path),
            undo: a.undo,
        })?;
        round_trip(&PinsReply { pins }, |a| PinsReply { pins: a.pins.iter().map(text).collect() })?;
    }
}

#[test]
fn only_an_active_member_owns() {
    let member = |state| Member {
        id: "a".into(),
        key: 1,
        weight: 1,
        zone: String::new(),
        state,
        address: String::new(),
        shards: Vec::new(),
        local: Vec::new(),
        machine: String::new(),
        run: 0,
        capacity: 0,
        server: String::new(),
    };
    let active = (0..=u8::MAX).filter(|&state| member(state).is_active());
    assert_eq!(active.collect::<Vec<_>>(), [MemberState::Active as u8]);
}

fn mount(prefix: &str) -> Mount {
    Mount { prefix: prefix.into(), source: String::new(), replicas: 1 }
}

#[test]
fn the_longest_prefix_of_whole_parts_wins() {
    let mounts = ["", "data", "data/hot"].map(mount);
    assert_eq!(mount_of(&mounts, ""), Some((0, "")));
    assert_eq!(mount_of(&mounts, "other/a"), Some((0, "other/a")));
    assert_eq!(mount_of(&mounts, "database"), Some((0, "database")));
    assert_eq!(mount_of(&mounts, "data"), Some((1, "")));
    assert_eq!(mount_of(&mounts, "data/a/b"), Some((1, "a/b")));
    assert_eq!(mount_of(&mounts, "data/hot/b"), Some((2, "b")));
    assert_eq!(mount_of(&mounts, "data/hotter"), Some((1, "hotter")));
    assert_eq!(mount_of(&mounts[1..], "other"), None);
}

#[test]
fn pins_are_of_whole_parts() {
    let pins = ["data/hot", "one"].map(String::from);
    for path in ["data/hot", "data/hot/a/b", "one"] {
        assert!(is_pinned(&pins, path), "{path}");
    }
    for path in ["", "data", "data/hotter", "data/hot2/a", "on", "x/one"] {
        assert!(!is_pinned(&pins, path), "{path}");
    }
    assert!(is_pinned(&[String::new()], "data/hotter"), "the empty path is above all");
    assert!(!is_pinned(&[], "data"));
}
