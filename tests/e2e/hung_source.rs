//! A source that hangs stops requests for it, and no others.

use std::time::{Duration, Instant};

use millrace_proto::message::{ArchivedListReply, ListRequest, StatRequest};
use millrace_proto::{Op, Status, frame};
use millrace_tests::peer::{range, request};
use millrace_tests::slow_source::{Answers, FILE_LENGTH, SlowSource};
use millrace_tests::{BLOCK, Node, NodeOptions, Scratch, content, wait_until};

/// Longer than anything here takes, and shorter than a node waits for a source that hangs.
const SOON: Duration = Duration::from_secs(8);

/// Makes a directory with a file, and one below it that can hang; None where that cannot be had.
fn scratch_with_slow_source() -> Option<(Scratch, SlowSource)> {
    let scratch = Scratch::new();
    scratch.file("other", 40 * BLOCK as usize);
    let slow = SlowSource::mount(&scratch.at("slow"));
    if slow.is_none() {
        println!("skipped: a file system cannot be mounted here");
    }
    slow.map(|slow| (scratch, slow))
}

fn names(node: &Node, path: &str) -> Vec<String> {
    let list = ListRequest { path: path.to_owned(), token: String::new(), limit: 0 };
    let reply = node.peer().ask(Op::List, &list);
    assert_eq!(reply.status(), Status::Ok, "{}", reply.message());
    let body = frame::body::<ArchivedListReply>(&reply.body).expect("a list reply");
    body.entries.iter().map(|entry| entry.name.as_str().to_owned()).collect()
}

#[test]
fn a_source_that_hangs_stops_no_other_and_keeps_budgets() {
    let Some((scratch, slow)) = scratch_with_slow_source() else { return };
    let node = NodeOptions::new(scratch.root()).set("fill_concurrency", 4).start();
    // It is dropped before the node, whatever happens.
    let slow = slow;
    let (mut asks, mut polite) = (node.peer(), node.peer());
    let entry = polite.stat("other").expect("stat");
    let hung = asks.stat("slow/x").expect("stat of what answers still");
    slow.set(Answers::Nothing);
    let start = Instant::now();
    let frames: Vec<u8> = (0..40)
        .flat_map(|id| {
            let path = format!("slow/{id}");
            let mut bytes = Vec::new();
            let header = millrace_proto::Header::request(Op::Stat, 1000 + id, 300);
            frame::encode(&mut bytes, header, &StatRequest { path });
            bytes.extend(request(Op::Read, 2000 + id, &range(&hung, id * u64::from(BLOCK), 8)));
            bytes.extend(request(
                Op::List,
                3000 + id,
                &ListRequest { path: "slow".to_owned(), token: String::new(), limit: 1 },
            ));
            bytes
        })
        .collect();
    asks.send_raw(&frames);
    for _ in 0..40 {
        let reply = asks.receive();
        assert_eq!(reply.header.request_id / 1000, 1, "a budget ends first: {:?}", reply.status());
        assert_eq!(reply.status(), Status::DeadlineExceeded);
    }
    for index in 0..40 {
        let offset = index * u64::from(BLOCK);
        let bytes = polite.read(&entry, offset, 100).expect("a cold read");
        content::check("other", offset, &bytes);
        assert!(polite.stat("other").is_ok());
    }
    assert_eq!(names(&node, ""), ["other", "slow"]);
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    let stopping = Instant::now();
    drop((asks, polite));
    node.stop();
    assert!(stopping.elapsed() < 2 * SOON, "{:?}", stopping.elapsed());
}

#[test]
fn a_source_that_hangs_is_refused_told_once_and_found_again() {
    let Some((scratch, slow)) = scratch_with_slow_source() else { return };
    let options = NodeOptions::new(scratch.root()).set("fill_concurrency", 2);
    let node = options.set("source_timeout_ms", 2500).start();
    let slow = slow;
    let mut peer = node.peer();
    let entry = peer.stat("slow/x").expect("stat");
    slow.set(Answers::Looks);
    let read = |index: u64| range(&entry, index * u64::from(BLOCK), 8);
    let reply = peer.ask(Op::Read, &read(0));
    assert_eq!(reply.status(), Status::SourceError, "{}", reply.message());
    assert!(reply.message().contains("source_timeout_ms"), "{}", reply.message());
    // The block that hangs is refused at once, and so are others, except for a try now and then.
    let (mut refused, start) = (0, Instant::now());
    for index in 0..40 {
        let reply = peer.ask_within(Op::Read, &read(index % 20), 200);
        match reply.status() {
            Status::SourceError => refused += 1,
            Status::Busy | Status::DeadlineExceeded => (),
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 20, "{refused} refused");
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    assert!(peer.stat("slow/y").is_ok(), "looking goes on");
    let log = node.log();
    assert_eq!(log.matches("has not answered").count(), 1, "{log}");
    slow.set(Answers::All);
    wait_until("it is read again", || {
        peer.ask_within(Op::Read, &read(21), 1000).status() == Status::Ok
    });
    wait_until("what hung is here", || peer.ask(Op::Read, &read(0)).status() == Status::Ok);
    let log = node.log();
    assert_eq!(log.matches("answers again").count(), 1, "{log}");
    assert_eq!(entry.length, FILE_LENGTH);
    drop(peer);
    node.stop();
}

#[test]
fn threads_for_sources_are_there_from_the_start() {
    let scratch = Scratch::new();
    scratch.file("a", 10);
    let node = NodeOptions::new(scratch.root()).set("fill_concurrency", 4).start();
    let threads = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", node.id())).expect("list tasks");
        let names = tasks.flatten().map(|task| std::fs::read_to_string(task.path().join("comm")));
        let mut names: Vec<String> = names.map_while(Result::ok).collect();
        names.sort();
        names
    };
    let before = threads();
    let fill_count = before.iter().filter(|name| name.trim() == "millrace-fill").count();
    assert!(fill_count >= 4, "{before:?}");
    let mut peer = node.peer();
    let entry = peer.stat("a").expect("stat");
    peer.read(&entry, 0, 10).expect("read");
    assert_eq!(names(&node, ""), ["a"]);
    assert_eq!(threads(), before, "no thread is made for a request");
    drop(peer);
    node.stop();
}
