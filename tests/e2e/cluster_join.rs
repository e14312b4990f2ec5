//! Which nodes get into a cluster, what a refused node is told, and how a member leaves.

use std::net::SocketAddr;

use millrace_proto::cluster::{ArchivedRingReply, Member, RingReply, RingRequest};
use millrace_proto::{Op, Status, frame};
use millrace_tests::cluster::Cluster;
use millrace_tests::coord::{Ensemble, Options};
use millrace_tests::gate::GateState;
use millrace_tests::preload::{Preload, hour};
use millrace_tests::{HANG_GUARD, NodeOptions, Peer, Scratch, content, wait_until};

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    scratch.file("a", 200_000);
    scratch
}

/// Returns what a node reports of its cluster.
fn ring(peer: &mut Peer, epoch: u64, wait: u8) -> RingReply {
    let request = RingRequest { epoch, first: 0, wait };
    let reply = peer.ask(Op::Ring, &request);
    assert_eq!(reply.status(), Status::Ok, "{}", reply.message());
    let archived = frame::body::<ArchivedRingReply>(&reply.body).expect("a ring");
    RingReply {
        cluster: archived.cluster.as_str().to_owned(),
        epoch: archived.epoch.to_native(),
        node: archived.node.as_str().to_owned(),
        master: archived.master.as_str().to_owned(),
        is_fenced: archived.is_fenced,
        mounts: archived.mounts.iter().map(Into::into).collect(),
        member_count: archived.member_count.to_native(),
        members: archived.members.iter().map(Member::from).collect(),
    }
}

fn ids(ring: &RingReply) -> Vec<&str> {
    ring.members.iter().map(|member| member.id.as_str()).collect()
}

#[test]
fn nodes_find_each_other_agree_on_one_ring_and_elect_a_master() {
    let scratch = scratch();
    let mut cluster = Cluster::start(3, 3, scratch.root());
    cluster.wait_settled();
    let rings: Vec<_> =
        cluster.members.iter_mut().map(|it| ring(&mut it.node().peer(), 0, 0)).collect();
    for (ring, member) in rings.iter().zip(&cluster.members) {
        assert_eq!(ids(ring), ["node-1", "node-2", "node-3"]);
        assert_eq!(ring.node, member.id());
        assert_eq!((&ring.cluster, ring.epoch), (&rings[0].cluster, rings[0].epoch));
        assert_eq!(ring.members, rings[0].members);
        assert_eq!(ring.master, rings[0].master);
        assert_eq!(ring.is_fenced, 0);
        let [mount] = &ring.mounts[..] else { panic!("one mount: {:?}", ring.mounts) };
        assert_eq!((mount.prefix.as_str(), mount.replicas), ("", 1));
    }
    assert!(ids(&rings[0]).contains(&rings[0].master.as_str()), "{}", rings[0].master);
}

#[test]
fn clocks_that_are_an_hour_off_change_nothing() {
    const HOUR_S: i64 = 3600;
    let scratch = scratch();
    let clock = Preload::clock();
    let mut cluster = Cluster::start(1, 1, scratch.root());
    for seconds in [HOUR_S, -HOUR_S] {
        let member = cluster.add();
        member.set_environment(clock.ahead(seconds));
        let early = hour(seconds);
        member.start();
        let log = member.node().log();
        assert!([early, hour(seconds)].iter().any(|hour| log.starts_with(hour)), "{log}");
    }
    cluster.wait_settled();
    let rings: Vec<_> =
        cluster.members.iter_mut().map(|it| ring(&mut it.node().peer(), 0, 0)).collect();
    assert!(rings.iter().all(|ring| ring.epoch == rings[0].epoch && ring.is_fenced == 0));
    assert_eq!(ids(&rings[0]), ["node-1", "node-2", "node-3"]);
    // A file that is young, old or not born yet by the clock of the node that is asked is the same
    // version and the same bytes; all nodes see a new one.
    for version in 1..=3 {
        let bytes = content::versioned(version, 200_000);
        std::fs::write(scratch.root().join("new"), &bytes).expect("write a file");
        std::fs::rename(scratch.root().join("new"), scratch.root().join("b")).expect("rename");
        let mut known = None;
        for member in &mut cluster.members {
            let mut peer = member.node().peer();
            let entry = peer.stat("b").expect("a file");
            assert_eq!(entry.version, *known.get_or_insert(entry.version));
            let read = peer.read(&entry, 0, 65_536).expect("bytes");
            assert_eq!(read, bytes[..65_536]);
        }
    }
    // The node that is behind dies, and is gone as soon as any other.
    cluster.members[2].kill();
    wait_until("it is out", || {
        ids(&ring(&mut cluster.members[1].node().peer(), 0, 0)) == ["node-1", "node-2"]
    });
    cluster.wait_settled();
}

#[test]
fn a_node_that_leaves_or_dies_is_out_and_one_that_comes_back_is_the_same() {
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 3, scratch.root());
    cluster.wait_settled();
    let first = ring(&mut cluster.members[0].node().peer(), 0, 0);
    for end in [
        |cluster: &mut Cluster| cluster.members[2].stop(),
        |cluster: &mut Cluster| {
            cluster.members[2].kill();
        },
    ] {
        let before = ring(&mut cluster.members[0].node().peer(), 0, 0);
        end(&mut cluster);
        // A client that waits for the next epoch gets it.
        let after = ring(&mut cluster.members[0].node().peer(), before.epoch, 1);
        assert!(after.epoch > before.epoch);
        assert_eq!(ids(&after), ["node-1", "node-2"]);
        cluster.members[2].start();
        cluster.wait_settled();
        let back = ring(&mut cluster.members[1].node().peer(), 0, 0);
        assert_eq!(ids(&back), ["node-1", "node-2", "node-3"]);
        assert_eq!(back.members[2].key, first.members[2].key);
        assert_ne!(back.members[2].run, first.members[2].run);
        assert_eq!(back.cluster, first.cluster);
    }
}

#[test]
fn when_the_master_dies_another_one_is_elected() {
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 3, scratch.root());
    cluster.wait_settled();
    let master = ring(&mut cluster.members[0].node().peer(), 0, 0).master;
    let old = cluster.members.iter().position(|it| it.id() == master).expect("a master");
    cluster.members[old].kill();
    let other = (old + 1) % 3;
    wait_until("another master is elected", || {
        let now = ring(&mut cluster.members[other].node().peer(), 0, 0).master;
        !now.is_empty() && now != master
    });
}

#[test]
fn a_node_that_lost_coordination_is_fenced_keeps_its_ring_and_joins_again() {
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    let before = ring(&mut cluster.members[0].node().peer(), 0, 0);
    cluster.members[0].set_coord(GateState::Stalled);
    wait_until("the node is fenced", || cluster.members[0].counter("cluster_fenced") == 1);
    let fenced = ring(&mut cluster.members[0].node().peer(), 0, 0);
    assert_eq!((fenced.is_fenced, fenced.epoch), (1, before.epoch));
    assert_eq!(fenced.members, before.members);
    wait_until("the other one is alone", || {
        ids(&ring(&mut cluster.members[1].node().peer(), 0, 0)) == ["node-2"]
    });
    cluster.members[0].set_coord(GateState::Open);
    cluster.wait_settled();
    let after = ring(&mut cluster.members[0].node().peer(), 0, 0);
    assert_eq!(ids(&after), ["node-1", "node-2"]);
    assert_eq!(after.is_fenced, 0);
}

#[test]
fn a_registration_that_was_deleted_comes_back_by_itself() {
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    let mut by_hand = cluster.coord.as_ref().expect("coordination").replicas[0].client();
    Cluster::authorize(&mut by_hand);
    for index in [0, 1] {
        let epoch = ring(&mut cluster.members[1 - index].node().peer(), 0, 0).epoch;
        let path = format!("/millrace/members/node-{}", index + 1);
        by_hand.delete(&path, -1).expect("delete a registration");
        wait_until("it is a member again", || {
            let ring = ring(&mut cluster.members[1 - index].node().peer(), 0, 0);
            ring.epoch > epoch && ids(&ring) == ["node-1", "node-2"]
        });
        cluster.wait_settled();
    }
}

#[test]
fn nodes_start_while_coordination_does_and_go_on_when_it_was_away() {
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 2, scratch.root());
    cluster.wait_settled();
    let before = ring(&mut cluster.members[0].node().peer(), 0, 0);
    let coord = cluster.coord.as_mut().expect("coordination");
    coord.replicas[0].kill();
    wait_until("the node is fenced", || cluster.members[0].counter("cluster_fenced") == 1);
    cluster.coord.as_mut().expect("coordination").replicas[0].start();
    cluster.wait_settled();
    let after = ring(&mut cluster.members[1].node().peer(), 0, 0);
    assert_eq!(ids(&after), ["node-1", "node-2"]);
    assert!(after.epoch >= before.epoch);
}

#[test]
fn two_nodes_with_one_id_are_not_in_one_cluster() {
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 1, scratch.root());
    let twin = cluster.add();
    twin.set("node_id", "node-1");
    let told = twin.start_in_vain();
    assert!(told.contains("another node with the id node-1"), "{told}");
    assert!(told.contains("--node-id"), "{told}");
    // The first node has suffered no harm.
    let ring = ring(&mut cluster.members[0].node().peer(), 0, 0);
    assert_eq!((ids(&ring), ring.is_fenced), (vec!["node-1"], 0));
}

#[test]
fn a_node_of_another_cluster_is_refused() {
    let scratch = scratch();
    let coord = Ensemble::single(Options::new().line("tickTime", 250));
    let mut first = Cluster::over(&coord.addresses(), "/first", scratch.root());
    first.add().start();
    first.members[0].stop();
    let place = format!("zk://{}/second", coord.addresses()[0]);
    first.members[0].set("coord", place);
    let mut second = Cluster::over(&coord.addresses(), "/second", scratch.root());
    second.add().start();
    let told = first.members[0].start_in_vain();
    assert!(told.contains("this node belongs to cluster"), "{told}");
    assert!(told.contains("--coord"), "{told}");
}

#[test]
fn a_node_with_other_blocks_or_a_directory_in_use_is_refused() {
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 1, scratch.root());
    let other = cluster.add();
    other.set("block_size", "128KiB");
    let told = other.start_in_vain();
    assert!(told.contains("--block-size 65536"), "{told}");
    let third = cluster.add();
    third.set("data", "");
    third.start();
    let copy = cluster.add();
    copy.set("node_id", "");
    copy.start();
    wait_until("all three are known", || {
        ring(&mut cluster.members[0].node().peer(), 0, 0).member_count == 3
    });
}

#[test]
fn a_wrong_place_of_coordination_is_told() {
    let scratch = scratch();
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let mut alone = Cluster::over(&[nobody], "/millrace", scratch.root());
    let told = alone.add().start_in_vain();
    assert!(told.contains("join the cluster: no session with coordination at 127.0.0.1"), "{told}");
    assert!(told.contains("check --coord"), "{told}");
    for wrong in ["localhost:2181", "zk://a/b", "zk://a:1", "zk://:1/m", "etcd://a:1/m"] {
        let told = NodeOptions::new(scratch.root()).set("coord", wrong).start_in_vain();
        assert!(told.contains("--coord") && told.contains(wrong), "{wrong}: {told}");
    }
    let open = NodeOptions::new(scratch.root())
        .set("listen", "0.0.0.0:0")
        .set("insecure", true)
        .set("coord", format!("zk://{nobody}/millrace"));
    let told = open.start_in_vain();
    assert!(told.contains("advertise"), "{told}");
}

#[test]
fn waiting_for_an_epoch_ends_with_the_budget() {
    let scratch = scratch();
    let mut cluster = Cluster::start(1, 1, scratch.root());
    cluster.wait_settled();
    let mut peer = cluster.members[0].node().peer();
    let now = ring(&mut peer, 0, 0);
    let same = ring(&mut peer, now.epoch, 0);
    assert_eq!(same.epoch, now.epoch);
    let start = std::time::Instant::now();
    let reply =
        peer.ask_within(Op::Ring, &RingRequest { epoch: now.epoch, first: 0, wait: 1 }, 500);
    assert_eq!(reply.status(), Status::Ok);
    assert!(start.elapsed() < HANG_GUARD);
}
