//! Hits while a store answers badly: what is in memory keeps its rate, whatever the reads of other files meet.
//!
//! A round counts hits alone and beside clients that read what the store answers badly, in turn. The rates are
//! printed; they are judged only with `MILLRACE_JUDGE_TIMES=1`. A hit that fails ends the case at once.

use std::path::Path;
use std::time::{Duration, Instant};

use millrace_proto::message::Entry;
use millrace_proto::{Op, Status};
use millrace_tests::origin::{Fault, Origin};
use millrace_tests::peer::range;
use millrace_tests::{BLOCK, HANG_GUARD, Node, NodeOptions, Peer, content, heavy};

use crate::street::{Busy, neighbour};

/// Least part of their rate alone that hits have beside a fault, in percent.
const PERCENT_MIN: u64 = 90;
/// How long hits are counted in each half of a round.
const PHASE: Duration = Duration::from_millis(400);
/// Rounds of a fault, of which the median counts.
const ROUNDS: usize = 5;
/// How often a fault is tried, since other programs of the machine are in the way at times.
const TRIES: usize = 4;
/// Objects that are read badly, each of this many blocks.
const COLD_COUNT: usize = 64;
const COLD_BLOCKS: usize = 8;
/// Clients that read them.
const NEIGHBOURS: usize = 4;

/// Returns the ways in which the store answers badly.
fn faults() -> [Fault; 17] {
    [
        Fault::Late(Duration::from_millis(30)),
        Fault::Trickle(Duration::from_millis(20)),
        Fault::Status(429),
        Fault::Status(503),
        Fault::Status(500),
        Fault::Reset(BLOCK as usize / 2),
        Fault::Cut(0),
        Fault::Cut(1),
        Fault::EmptyPart,
        Fault::Whole,
        Fault::OtherPart,
        Fault::Zipped,
        Fault::Long,
        Fault::Short,
        Fault::OtherTag,
        Fault::Stuck,
        Fault::Hang,
    ]
}

/// Returns how many hits one client has in a phase.
fn hits(peer: &mut Peer, hot: &Entry) -> u64 {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < PHASE {
        let offset = fastrand::u64(..u64::from(BLOCK) - 4096);
        peer.send(Op::Read, &range(hot, offset, 4096));
        let reply = peer.receive();
        assert_eq!(reply.status(), Status::Ok, "a hit fails: {}", reply.message());
        let bytes = reply.into_bytes(hot, offset, BLOCK).expect("it was Ok");
        content::check("hot", offset, &bytes);
        count += 1;
    }
    count
}

/// Has clients read cold blocks until what is returned is dropped.
fn read_badly(node: &Node) -> Busy {
    let address = node.address();
    Busy::start(NEIGHBOURS, move |_| {
        let mut peer = neighbour(address);
        Box::new(move || {
            let path = format!("cold{}", fastrand::usize(..COLD_COUNT));
            // An answer may be missing, and then the connection is of no more use.
            let read = peer.stat(&path).map(|entry| {
                let offset = fastrand::u64(..COLD_BLOCKS as u64) * u64::from(BLOCK);
                peer.send(Op::Read, &range(&entry, offset, BLOCK));
                peer.try_receive().is_ok()
            });
            if !read.is_ok_and(|has_answer| has_answer) {
                peer = neighbour(address);
            }
            std::thread::sleep(Duration::from_millis(5));
            Ok(())
        })
    })
}

/// Returns the median part, in percent, of their rate alone that hits have while a fault goes on.
fn percent(node: &Node, origin: &Origin, fault: Fault, rounds: usize) -> u64 {
    let mut peer = node.peer();
    peer.stream.set_read_timeout(Some(HANG_GUARD)).expect("set a timeout");
    let hot = peer.stat("hot").expect("stat");
    peer.read(&hot, 0, BLOCK).expect("it is in memory");
    let mut parts = Vec::new();
    for _ in 0..rounds {
        let alone = hits(&mut peer, &hot);
        origin.break_reads(fault, usize::MAX);
        let beside = {
            let _busy = read_badly(node);
            std::thread::sleep(Duration::from_millis(100));
            hits(&mut peer, &hot)
        };
        origin.mend();
        parts.push(beside * 100 / alone.max(1));
    }
    parts.sort_unstable();
    parts[rounds / 2]
}

#[test]
fn hits_keep_their_rate_while_a_store_answers_badly() {
    let _turn = heavy();
    let judges_times = std::env::var_os("MILLRACE_JUDGE_TIMES").is_some();
    let origin = Origin::start();
    origin.put("box", "hot", content::bytes("hot", 0, BLOCK as usize));
    for index in 0..COLD_COUNT {
        let key = format!("cold{index}");
        origin.put("box", &key, content::bytes(&key, 0, COLD_BLOCKS * BLOCK as usize));
    }
    let mut slow = Vec::new();
    for fault in faults() {
        let (tries, rounds) = if judges_times { (TRIES, ROUNDS) } else { (1, 1) };
        let mut best = 0;
        for _ in 0..tries {
            // A store that was down for the fault before is up for this one.
            let node = NodeOptions::new(Path::new("s3://box"))
                .set("coord", "none")
                .set("source_timeout_ms", 500)
                .set("source_option", format!("endpoint={}:skip_signature=true", origin.url()))
                .start();
            best = best.max(percent(&node, &origin, fault, rounds));
            node.stop();
            if best >= PERCENT_MIN {
                break;
            }
        }
        println!("{fault:?}: hits have {best} % of their rate");
        if best < PERCENT_MIN {
            slow.push(format!("{fault:?}: {best} %"));
        }
    }
    assert!(!judges_times || slow.is_empty(), "hits are slower beside {slow:?}");
}
