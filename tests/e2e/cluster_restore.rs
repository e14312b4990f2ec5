//! Coordination that comes back from an older backup is followed by nodes and clients that were not restarted.

use std::process::{Command, Stdio};
use std::time::Duration;

use millrace_client::{Client, ClientConfig, ReadOptions};
use millrace_tests::cluster::Cluster;
use millrace_tests::coord::{Client as ZooKeeper, Failure, Replica, Session};
use millrace_tests::process::program;
use millrace_tests::{HANG_GUARD, Scratch, content, wait_until};

const LENGTH: usize = 200_000;

/// Runs a verb of `millrace coord`, which has to succeed.
fn coord(arguments: &[&str]) {
    let mut command = Command::new(program().expect("a program to test"));
    let output = command.arg("coord").args(arguments).stdin(Stdio::null()).output();
    let output = output.expect("run a verb");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {told}");
}

/// Puts a replica back to where it was when `backup` was made, at the same address.
fn restore(replica: &mut Replica, backup: &str) {
    replica.wipe();
    let directory = replica.directory().to_str().expect("text").to_owned();
    coord(&["restore", backup, "--data", &directory]);
    replica.start();
}

fn epoch(cluster: &mut Cluster) -> u64 {
    cluster.wait_settled();
    cluster.members[0].counter("cluster_epoch")
}

fn pins(client: &mut ZooKeeper) -> Option<Vec<u8>> {
    client.get("/millrace/pins", false).map(|(pins, _)| pins.unwrap_or_default()).ok()
}

#[test]
fn a_restore_of_coordination_is_followed_without_restarts() {
    let scratch = Scratch::new();
    scratch.file("a", LENGTH);
    let mut cluster = Cluster::start(1, 2, scratch.root());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let config = ClientConfig { deadline: HANG_GUARD, ..ClientConfig::new() };
    let client = runtime.block_on(cluster.client_with(config));
    let known = |client: &Client| client.cluster().expect("a cluster").epoch;
    let backup = scratch.root().with_extension("backup");
    let backup = backup.to_str().expect("text");
    let data = |cluster: &Cluster| {
        let replica = &cluster.coord.as_ref().expect("coordination").replicas[0];
        replica.directory().to_str().expect("text").to_owned()
    };
    let mut last = epoch(&mut cluster);
    coord(&["backup", "--data", &data(&cluster), backup]);

    // The second time the backup is as old as the first time, and what came between is forgotten, too.
    for _ in 0..2 {
        for _ in 0..3 {
            runtime.block_on(client.pin("a")).expect("pin");
            runtime.block_on(client.unpin("a")).expect("unpin");
        }
        runtime.block_on(client.pin("a")).expect("pin");
        let before = epoch(&mut cluster);
        assert!(before > last);
        wait_until("the client is there", || known(&client) >= before);
        let replica = &mut cluster.coord.as_mut().expect("coordination").replicas[0];
        restore(replica, backup);

        wait_until("all nodes have followed", || {
            cluster.members.iter_mut().all(|member| member.counter("cluster_epoch") > before)
        });
        last = epoch(&mut cluster);
        let coordination = cluster.coord.as_ref().expect("coordination");
        let mut by_hand = coordination.replicas[0].client();
        Cluster::authorize(&mut by_hand);
        assert_eq!(pins(&mut by_hand), None, "the first pin was made after the backup");
        by_hand.close().expect("close");
        wait_until("the client has followed", || known(&client) >= last);
        let members = client.cluster().expect("a cluster").members;
        assert_eq!(members.len(), 2);
        runtime.block_on(async {
            let file = client.stat("a").await.expect("a file");
            let bytes = client.read_with(&file, 0, u64::MAX, ReadOptions::default()).await;
            content::check("a", 0, &bytes.expect("a read"));
        });
    }
    std::fs::remove_file(backup).expect("remove the backup");
}

#[test]
fn clients_of_coordination_that_have_seen_more_are_let_in_after_a_restore() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::start(1, 0, scratch.root());
    let replica = &mut cluster.coord.as_mut().expect("coordination").replicas[0];
    let backup = scratch.root().join("backup");
    let backup = backup.to_str().expect("text");
    let mut client = replica.client();
    client.make("/kept", b"").expect("create");
    coord(&["backup", "--data", replica.directory().to_str().expect("text"), backup]);
    client.make("/lost", b"").expect("create");
    let seen = client.session();
    restore(replica, backup);

    // Its session may hold what was lost, so it ends; what it has seen does not shut it out.
    let returned = ZooKeeper::attach(replica.address(), seen, HANG_GUARD);
    assert!(matches!(returned, Err(Failure::Expired)), "{returned:?}");
    let anew = ZooKeeper::attach(replica.address(), Session { id: 0, ..seen }, HANG_GUARD);
    let mut client = anew.expect("a new session");
    client.exists("/kept", false).expect("it is in the backup");
    assert!(client.exists("/lost", false).is_err());
    client.make("/later", b"").expect("create");
    assert!(client.session().zxid > seen.zxid);
}

#[test]
fn a_client_that_is_ahead_is_named_in_the_log_and_counted() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::start(1, 0, scratch.root());
    let replica = &mut cluster.coord.as_mut().expect("coordination").replicas[0];
    assert_eq!(replica.figure("zk_clients_refused_ahead"), 0);
    let session = Session { zxid: 0x7abc_0000_0001, ..replica.client().session() };
    let refused = ZooKeeper::attach(replica.address(), session, Duration::from_secs(5));
    assert!(matches!(refused, Err(Failure::Lost(_))), "{refused:?}");
    assert_eq!(replica.figure("zk_clients_refused_ahead"), 1);
    wait_until("the log says it", || replica.process().log().contains("0x7abc00000001"));
}
