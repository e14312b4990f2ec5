//! One master decides, and none that was replaced. Coordination that is slow, full or odd is reported
//! and survived.

use std::time::Duration;

use millrace_proto::cluster::{DrainRequest, Mount, MountRequest, PinRequest};
use millrace_proto::message::FreeRequest;
use millrace_proto::{Op, Status};
use millrace_tests::cluster::Cluster;
use millrace_tests::coord::{Client as ZooKeeper, Ensemble, Options};
use millrace_tests::gate::GateState;
use millrace_tests::{Node, Peer, Scratch, content, wait_until};

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    scratch.file("a", 200_000);
    scratch
}

/// Starts coordination with sessions as long as `timeout_ms` allows, and nodes that ask for them.
fn cluster(scratch: &Scratch, nodes: usize, timeout_ms: u64) -> (Ensemble, Cluster) {
    let coord = Ensemble::single(Options::new().line("tickTime", 500));
    let mut cluster = Cluster::over(&coord.addresses(), "/millrace", scratch.root());
    for _ in 0..nodes {
        let member = cluster.add();
        member.set("session_timeout_ms", timeout_ms);
        member.start();
    }
    cluster.wait_settled();
    (coord, cluster)
}

/// Returns the name of each latch, in order, and the node that holds it.
fn latches(client: &mut ZooKeeper) -> Vec<(String, String)> {
    let mut names = client.children("/millrace/master", false).expect("list");
    names.retain(|name| name.starts_with("latch-"));
    names.sort();
    let holder = |client: &mut ZooKeeper, name: &String| {
        let (data, _) = client.get(&format!("/millrace/master/{name}"), false).expect("a latch");
        String::from_utf8(data.unwrap_or_default()).expect("an id")
    };
    names.into_iter().map(|name| (name.clone(), holder(client, &name))).collect()
}

fn index_of(cluster: &Cluster, id: &str) -> usize {
    cluster.members.iter().position(|member| member.id() == id).expect("a member")
}

fn drain_request() -> DrainRequest {
    DrainRequest { node: "node-3".to_owned(), undo: 0 }
}

fn drained(client: &mut ZooKeeper) -> Vec<String> {
    client.children("/millrace/drains", false).expect("list")
}

#[test]
fn a_master_that_slept_through_its_term_changes_nothing() {
    let scratch = scratch();
    let (coord, mut cluster) = cluster(&scratch, 3, 1000);
    let mut client = coord.replicas[0].client();
    Cluster::authorize(&mut client);
    let old = index_of(&cluster, &latches(&mut client)[0].1);
    let mut peer: Peer = cluster.members[old].peer_as_member();
    assert!(peer.ping());
    cluster.members[old].pause();
    // Requests wait in its socket until it wakes up and still takes itself for the master.
    peer.send(Op::Drain, &drain_request());
    wait_until("another one is the first in line", || {
        latches(&mut client).first().is_some_and(|(_, id)| id != cluster.members[old].id())
    });
    cluster.members[old].resume();
    let reply = peer.receive();
    let refused = [Status::NotMaster, Status::Fenced];
    assert!(refused.contains(&reply.status()), "{:?}: {}", reply.status(), reply.message());
    cluster.wait_settled();
    assert!(drained(&mut client).is_empty(), "nothing was changed");
}

#[test]
fn a_write_that_was_on_its_way_when_the_term_ended_is_refused_by_its_token() {
    let scratch = scratch();
    let (coord, mut cluster) = cluster(&scratch, 3, 8000);
    let mut client = coord.replicas[0].client();
    Cluster::authorize(&mut client);
    let before = latches(&mut client);
    let old = index_of(&cluster, &before[0].1);
    let mut peer = cluster.members[old].peer_as_member();
    // Its session lives on, and it has not heard of anything: its write is held back on the way.
    cluster.members[old].set_coord(GateState::Stalled);
    peer.send(Op::Drain, &drain_request());
    std::thread::sleep(Duration::from_millis(300));
    client.delete(&format!("/millrace/master/{}", before[0].0), -1).expect("end the term");
    wait_until("the next one has begun its term", || {
        let (data, _) = client.get("/millrace/master/term", false).expect("a term");
        String::from_utf8_lossy(&data.unwrap_or_default()).contains(&before[1].1)
    });
    cluster.members[old].set_coord(GateState::Open);
    let reply = peer.receive();
    assert_eq!(reply.status(), Status::NotMaster, "{}", reply.message());
    assert!(reply.message().contains("another master"), "{}", reply.message());
    assert!(drained(&mut client).is_empty(), "nothing was changed");
    // The new master can.
    let new = index_of(&cluster, &before[1].1);
    let mut peer = cluster.members[new].peer_as_member();
    let reply = peer.ask(Op::Drain, &drain_request());
    assert_eq!(reply.status(), Status::Ok, "{}", reply.message());
    assert_eq!(drained(&mut client), ["node-3"]);
}

#[test]
fn who_is_not_the_master_names_the_one_who_is() {
    let scratch = scratch();
    let (coord, mut cluster) = cluster(&scratch, 2, 4000);
    let mut client = coord.replicas[0].client();
    Cluster::authorize(&mut client);
    let order = latches(&mut client);
    let other = index_of(&cluster, &order[1].1);
    let mut peer = cluster.members[other].peer_as_member();
    let reply = peer.ask(Op::Drain, &drain_request());
    assert_eq!(reply.status(), Status::NotMaster);
    assert!(reply.message().contains(&order[0].1), "{}", reply.message());
    // For an administrator the node asks the master by itself, which knows no such node.
    let mut administrator = cluster.members[other].node().administrator();
    let reply = administrator.ask(Op::Drain, &drain_request());
    assert_eq!(reply.status(), Status::NotFound);
    let drain = DrainRequest { node: order[1].1.clone(), undo: 0 };
    assert_eq!(administrator.ask(Op::Drain, &drain).status(), Status::Ok);
    assert_eq!(drained(&mut client), [order[1].1.clone()]);
}

#[test]
fn the_report_of_the_master_adds_up_and_goes_on_with_the_next_one() {
    let scratch = scratch();
    let (coord, mut cluster) = cluster(&scratch, 3, 1000);
    let mut client = coord.replicas[0].client();
    Cluster::authorize(&mut client);
    // This returns the value of a field. The tests have no JSON parser, and the report has only numbers
    // and names.
    let field = |report: &str, name: &str| {
        let (_, rest) = report.split_once(&format!("\"{name}\":"))?;
        let value = rest.split([',', '}']).next()?;
        Some(value.trim_matches('"').to_owned())
    };
    let number = |report: &str, name: &str| -> u64 {
        field(report, name).and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    let mut report = || match client.get("/millrace/report", false) {
        Ok((data, _)) => String::from_utf8(data.unwrap_or_default()).expect("text"),
        Err(_) => String::new(),
    };
    let mut wait_report = |what: &str, is_it: &dyn Fn(&str) -> bool| {
        wait_until(what, || is_it(&report()));
        report()
    };
    let first = wait_report("all have told", &|report| number(report, "answered_count") == 3);
    assert_eq!(number(&first, "member_count"), 3, "{first}");
    let capacity = cluster.sum("capacity_bytes");
    assert_eq!(number(&first, "capacity_bytes"), capacity, "{first}");
    let master = field(&first, "node").expect("a master");
    let index = index_of(&cluster, &master);
    cluster.members[index].kill();
    let second = wait_report("another one reports", &|report| {
        field(report, "node").is_some_and(|node| node != master)
            && number(report, "answered_count") == 2
    });
    assert_eq!(number(&second, "member_count"), 2, "{second}");
    assert!(number(&second, "number") > number(&first, "number"), "{first} {second}");
    assert_eq!(number(&second, "capacity_bytes"), cluster.sum("capacity_bytes"), "{second}");
}

#[test]
fn requests_that_are_as_long_as_can_be_are_refused_in_few_words() {
    let scratch = scratch();
    let node = Node::serve(scratch.root());
    let long = "x".repeat(65_000);
    let mount = |prefix: &str, source: &str| Mount {
        prefix: prefix.to_owned(),
        source: source.to_owned(),
        replicas: 1,
    };
    let mounts = [mount(&long, "file:///a"), mount("a", &long)];
    let mut peer = node.administrator();
    let mut replies = Vec::new();
    for undo in [0, 1] {
        replies.push(peer.ask(Op::Drain, &DrainRequest { node: long.clone(), undo }));
        replies.push(peer.ask(Op::Pin, &PinRequest { path: long.clone(), undo }));
        for mount in mounts.clone() {
            replies.push(peer.ask(Op::Mount, &MountRequest { mount, remove: undo }));
        }
    }
    // Taking the drain from a node that is not drained is not an error.
    assert_eq!(replies.remove(4).status(), Status::Ok);
    for reply in replies {
        assert_ne!(reply.status(), Status::Ok);
        assert!((1..=1024).contains(&reply.message().len()), "{}", reply.message().len());
    }
    node.stop();
}

#[test]
fn full_coordination_lets_nobody_new_in_says_so_and_those_who_are_in_go_on() {
    let scratch = scratch();
    let options = Options::new().line("tickTime", 250).line("enforceQuota", "true");
    let coord = Ensemble::single(options);
    let mut cluster = Cluster::over(&coord.addresses(), "/millrace", scratch.root());
    cluster.add().start();
    cluster.wait_settled();
    let mut client = coord.replicas[0].client();
    Cluster::authorize(&mut client);
    // The quota has room for what is there, and no more.
    let quota = "/zookeeper/quota/millrace";
    client.make(quota, b"").expect("create");
    let limits = b"count=-1,bytes=-1=;byteHardLimit=-1;countHardLimit=3";
    client.make(&format!("{quota}/zookeeper_limits"), limits).expect("create");
    client.make(&format!("{quota}/zookeeper_stats"), b"count=9,bytes=0").expect("create");
    let told = cluster.add().start_in_vain();
    assert!(told.contains("coordination is full"), "{told}");
    let mut peer = cluster.members[0].node().peer();
    let entry = peer.stat("a").expect("a file");
    content::check("a", 0, &peer.read(&entry, 0, 5000).expect("read"));
    assert_eq!(cluster.members[0].counter("cluster_fenced"), 0);
}

#[test]
fn slow_coordination_makes_joining_slow_and_reads_no_slower() {
    let scratch = scratch();
    let (_coord, mut cluster) = cluster(&scratch, 1, 4000);
    let member = cluster.add();
    member.set("session_timeout_ms", 4000);
    member.delay_coord(Duration::from_millis(100));
    member.start();
    cluster.wait_settled();
    let mut peer = cluster.members[1].node().peer();
    let entry = peer.stat("a").expect("a file");
    content::check("a", 0, &peer.read(&entry, 0, 5000).expect("read"));
    assert_eq!(cluster.members[1].counter("cluster_fenced"), 0);
}

#[test]
fn records_that_nobody_can_read_are_passed_over() {
    let scratch = scratch();
    let (coord, mut cluster) = cluster(&scratch, 1, 4000);
    let mut client = coord.replicas[0].client();
    Cluster::authorize(&mut client);
    let odd: [(&str, &[u8]); 4] = [
        ("/millrace/members/odd", b"{"),
        ("/millrace/members/empty", b""),
        ("/millrace/members/liar", br#"{"id":"another"}"#),
        ("/millrace/drains/nobody", b"\xff"),
    ];
    for (path, data) in odd {
        client.make(path, data).expect("create");
    }
    client.set("/millrace/mounts", b"not JSON", -1).expect("set");
    cluster.add().start();
    cluster.wait_settled();
    let info = cluster.sum("cluster_fenced");
    assert_eq!(info, 0);
    let mut peer = cluster.members[0].node().peer();
    let entry = peer.stat("a").expect("what was mounted stays so");
    content::check("a", 0, &peer.read(&entry, 0, 5000).expect("read"));
}

#[test]
fn a_node_that_says_it_is_fenced_changes_nothing() {
    let scratch = scratch();
    let (coord, mut cluster) = cluster(&scratch, 1, 20_000);
    let mut client = coord.replicas[0].client();
    Cluster::authorize(&mut client);
    cluster.members[0].set_coord(GateState::Broken);
    wait_until("it is fenced", || cluster.members[0].counter("cluster_fenced") == 1);
    // It is connected again, with its session, and cannot catch up.
    client.delete("/millrace/drains", -1).expect("delete");
    cluster.members[0].set_coord(GateState::Open);
    let pin = PinRequest { path: "a".to_owned(), undo: 0 };
    let mut peer = cluster.members[0].node().administrator();
    for _ in 0..20 {
        let reply = peer.ask(Op::Pin, &pin);
        assert_eq!(reply.status(), Status::Fenced, "{}", reply.message());
        assert_eq!(peer.load("a"), Status::Fenced);
        let free = FreeRequest { path: "a".to_owned() };
        assert_eq!(peer.ask(Op::Free, &free).status(), Status::Fenced, "members may be unknown");
        assert_eq!(cluster.members[0].counter("cluster_fenced"), 1);
        std::thread::sleep(Duration::from_millis(150));
    }
    assert!(client.get("/millrace/pins", false).is_err(), "nothing was pinned");
    client.make("/millrace/drains", b"").expect("create");
    wait_until("it has caught up", || cluster.members[0].counter("cluster_fenced") == 0);
    assert_eq!(peer.ask(Op::Pin, &pin).status(), Status::Ok);
}
