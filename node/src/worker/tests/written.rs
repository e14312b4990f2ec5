//! Blocks of objects that are being written: how much memory they hold, and when they can be read.

use super::*;
use crate::chunks::Chunks;
use crate::mailbox::{Loan, Run, WrittenBlock};
use crate::memory::Blank;

/// Blocks that one write may hold in a shard of 512 pages, and all of them together.
const OF_ONE: usize = 2;
const OF_ALL: usize = 4;

/// Asks for memory for a block, of which the write holds this many already.
fn borrow(node: &mut Node, held: usize) -> Option<Blank> {
    let (reply, receiver) = flume::bounded(1);
    let loan = Loan { length: BLOCK, held: held as u64 * u64::from(BLOCK), reply };
    node.event(0, 0, Event::Mail(Mail::Lend(loan)));
    receiver.try_recv().expect("a loan is answered at once")
}

fn give_back(node: &mut Node, blank: Blank) {
    node.event(0, 0, Event::Mail(Mail::Unlent { blank, is_lost: true }));
}

/// Fills a blank as a write does, and gives it to the shard as this version.
fn write(node: &mut Node, block: u32, version: u64, mut blank: Blank) {
    assert!(blank.write(&content(block, BLOCK)).is_empty());
    let (bytes, sums) = blank.freeze();
    let key = BlockKey { file: FILE, block };
    let run = Run { key, version, chunks: Chunks::all(BLOCK), block_length: BLOCK };
    let (done, all_done) = flume::bounded(1);
    let written = WrittenBlock { run, stay: Stay::Usual, block: bytes, sums, done };
    node.event(0, 0, Event::Mail(Mail::Written(Box::new(written))));
    assert_eq!(all_done.try_recv().unwrap_err(), flume::TryRecvError::Disconnected);
}

fn counts(node: &Node) -> (u64, u64) {
    (node.counter("written_block_count"), node.counter("unkept_block_count"))
}

#[test]
fn writes_hold_a_bounded_part_of_the_memory() {
    let mut node = Node::new(1, 512, 8);
    let mut blanks: Vec<Blank> = (0..OF_ONE).map(|held| borrow(&mut node, held).unwrap()).collect();
    assert!(borrow(&mut node, OF_ONE).is_none(), "one write has its part");
    blanks.extend((0..OF_ALL - OF_ONE).map(|held| borrow(&mut node, held).unwrap()));
    assert!(borrow(&mut node, 0).is_none(), "all writes have theirs");
    assert_eq!(counts(&node), (0, 2));
    give_back(&mut node, blanks.pop().unwrap());
    blanks.push(borrow(&mut node, 1).expect("there is room again"));
    for blank in blanks {
        give_back(&mut node, blank);
    }
    let worker = &node.workers[0];
    assert_eq!((worker.lent_bytes, worker.cache.used_bytes()), (0, 0));
}

#[test]
fn a_block_that_was_written_is_a_hit_once_it_is_acknowledged_and_not_before() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    let blank = borrow(&mut node, 0).unwrap();
    node.receive(0, 0, token, &read(3, 0, 0));
    assert_eq!((node.fills.len(), node.counter("hit_count")), (1, 0), "the source is asked");
    assert_eq!(node.end_all_fills(0), 1);
    node.event(0, 0, Event::Mail(Mail::Drop(drop_job())));
    node.replies();
    write(&mut node, 3, VERSION_ONE, blank);
    node.receive(0, 0, token, &read(3, 1, 0));
    assert_eq!(node.replies(), [(3001, 0, Status::Ok, 5000)]);
    assert_eq!((node.fills.len(), node.counter("hit_count"), counts(&node)), (0, 1, (1, 0)));
    assert_eq!(node.workers[0].lent_bytes, 0);
}

fn drop_job() -> DropJob {
    DropJob::new(FILE, false).0
}

#[test]
fn a_block_of_a_version_that_is_not_the_newest_is_not_kept() {
    let mut node = Node::new(1, 512, 8);
    let blank = borrow(&mut node, 0).unwrap();
    write(&mut node, 3, VERSION_ONE + 1, blank);
    let worker = &node.workers[0];
    assert_eq!((worker.cache.block_count(), worker.cache.used_bytes()), (0, 0));
    assert_eq!((worker.lent_bytes, counts(&node)), (0, (0, 1)));
    // Of a file that is forgotten nothing tells which version is the newest.
    let blank = borrow(&mut node, 0).unwrap();
    node.shared.files.forget(FILE);
    write(&mut node, 3, VERSION_ONE, blank);
    assert_eq!((node.workers[0].cache.block_count(), counts(&node)), (0, (0, 2)));
}

#[test]
fn a_fill_of_the_same_block_and_a_write_do_not_disturb_each_other() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    let blanks: Vec<Blank> = (0..2).map(|held| borrow(&mut node, held).unwrap()).collect();
    node.receive(0, 0, token, &read(3, 0, 0));
    for blank in blanks {
        // The second one is as good as the first, and goes.
        write(&mut node, 3, VERSION_ONE, blank);
    }
    assert_eq!(counts(&node), (1, 0));
    assert_eq!(node.end_all_fills(0), 1, "it was under way");
    node.receive(0, 0, token, &read(3, 1, 0));
    let replies = node.replies();
    assert_eq!(replies.len(), 2);
    assert!(replies.iter().all(|reply| reply.2 == Status::Ok), "{replies:?}");
    let worker = &node.workers[0];
    assert_eq!((worker.cache.block_count(), worker.cache.used_bytes()), (1, u64::from(BLOCK)));
}

#[test]
fn a_write_that_is_gone_holds_no_memory_and_a_shard_that_stops_lends_none() {
    let mut node = Node::new(1, 512, 8);
    let (reply, receiver) = flume::bounded(1);
    drop(receiver);
    node.event(0, 0, Event::Mail(Mail::Lend(Loan { length: BLOCK, held: 0, reply })));
    assert_eq!((node.workers[0].lent_bytes, node.workers[0].cache.used_bytes()), (0, 0));
    let before = borrow(&mut node, 0).expect("it does not stop yet");
    node.event(0, 0, Event::Mail(Mail::Shutdown));
    assert!(borrow(&mut node, 0).is_none());
    give_back(&mut node, before);
}
