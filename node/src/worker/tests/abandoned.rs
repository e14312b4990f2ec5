//! Work whose connection is gone, and blocks whose source hangs.

use millrace_proto::message::{LoadRequest, StatRequest};

use super::*;
use crate::chunks::Chunks;
use crate::mailbox::{Run, Stay};
use crate::store::FillError;

fn jobs(node: &Node) -> Vec<FillJob> {
    node.fills.try_iter().collect()
}

/// Ends a fill with an error.
fn give_back(node: &mut Node, job: FillJob, error: FillError) {
    let FillJob { shard, run, blank, .. } = job;
    let result = Err((blank, error));
    node.event(0, shard, Event::Mail(Mail::Filled { run, stay: Stay::Usual, result }));
}

fn is_wanted(job: &FillJob) -> bool {
    job.errand.begin(std::time::Duration::ZERO)
}

#[test]
fn what_a_closed_connection_alone_waits_for_is_not_begun() {
    for shard_count in [1, 2] {
        let mut node = Node::new(shard_count, 1024, 16);
        let gone = node.workers[0].accept_far(0).unwrap();
        let other = node.workers[0].accept_far(0).unwrap();
        // Some of these blocks belong to the other shard, which gets a message.
        for block in 0..4 {
            node.receive(0, 0, gone, &read(block, 1, 100));
        }
        node.receive(0, 0, other, &read(3, 2, 100));
        node.event(0, 0, Event::Closed { token: gone });
        let jobs = jobs(&node);
        assert_eq!(jobs.len(), 4);
        for job in jobs {
            assert_eq!(is_wanted(&job), job.run.key.block == 3, "block {}", job.run.key.block);
            if job.run.key.block < 3 {
                give_back(&mut node, job, FillError::Unwanted);
            }
        }
        assert_eq!(node.counter("fill_error_count"), 0);
        // Nothing waits but the other connection: only its deadline is looked at.
        node.event(100, 0, Event::Tick);
        node.event(100, shard_count - 1, Event::Tick);
        let replies = node.replies();
        assert_eq!(replies.len(), 1);
        assert_eq!((replies[0].0, replies[0].2), (3002, Status::DeadlineExceeded));
    }
}

#[test]
fn who_comes_while_a_block_is_given_up_gets_it_all_the_same() {
    let mut node = Node::new(1, 512, 8);
    let gone = node.workers[0].accept_far(0).unwrap();
    node.receive(0, 0, gone, &read(1, 1, 0));
    node.event(0, 0, Event::Closed { token: gone });
    let job = jobs(&node).pop().unwrap();
    assert!(!is_wanted(&job));
    let token = node.workers[0].accept_far(0).unwrap();
    node.receive(0, 0, token, &read(1, 2, 0));
    give_back(&mut node, job, FillError::Unwanted);
    assert!(node.replies().is_empty());
    assert_eq!(node.end_fills(0, |_| Ok(())), 1);
    assert_eq!(
        node.replies().iter().map(|it| (it.0, it.2)).collect::<Vec<_>>(),
        [(1002, Status::Ok)]
    );
}

#[test]
fn blocks_of_loads_that_were_given_up_are_not_begun() {
    let mut node = Node::new(1, 512, 8);
    let key = BlockKey { file: FILE, block: 2 };
    let ensure = |node: &mut Node| {
        let (reply, receiver) = flume::bounded(1);
        let from = crate::mailbox::FillFrom::Anywhere;
        let mail = Mail::Ensure { key, version: VERSION_ONE, from, reply };
        node.event(0, 0, Event::Mail(mail));
        receiver
    };
    let (first, second) = (ensure(&mut node), ensure(&mut node));
    let job = jobs(&node).pop().unwrap();
    drop(first);
    node.event(0, 0, Event::Mail(Mail::LoadsGone));
    assert!(is_wanted(&job), "the second load waits");
    drop(second);
    node.event(0, 0, Event::Mail(Mail::LoadsGone));
    assert!(!is_wanted(&job));
    let third = ensure(&mut node);
    give_back(&mut node, job, FillError::Unwanted);
    // What came after it was given up still gets it.
    assert_eq!(node.end_fills(0, |_| Ok(())), 1);
    assert!(matches!(third.try_recv(), Ok(crate::mailbox::Ensured::Filled(..))));
}

#[test]
fn cold_requests_see_the_end_of_their_connection() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    let path = || "f".to_owned();
    node.receive(0, 0, token, &encoded(Op::Load, 1, 0, &LoadRequest { path: path() }));
    node.receive(0, 0, token, &encoded(Op::Stat, 2, 0, &StatRequest { path: path() }));
    let jobs: Vec<LookupJob<PathLookup>> = node.lookups.try_iter().collect();
    assert_eq!(jobs.len(), 2);
    assert!(jobs.iter().all(|job| !job.ticket.is_gone()));
    node.event(0, 0, Event::ReceiveEnded { token, end: crate::connection::ReceiveEnd::Finished });
    assert!(jobs.iter().all(|job| !job.ticket.is_gone()), "it may still read");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(jobs[0].ticket.ended());
    node.event(0, 0, Event::Closed { token });
    assert!(jobs.iter().all(|job| job.ticket.is_gone()));
}

#[test]
fn a_fetch_that_finds_a_fill_has_the_source_read() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let is_urgent = |job: &FillJob| {
        let moment = std::time::Duration::from_millis(1);
        runtime.block_on(async { tokio::time::timeout(moment, job.errand.urged()).await.is_ok() })
    };
    node.receive(0, 0, token, &read(1, 1, 0));
    node.receive(0, 0, token, &read(1, 2, 0));
    let job = jobs(&node).pop().unwrap();
    assert!(!is_urgent(&job), "readers wait for what other nodes say");
    let range = Range { file: FILE, version: VERSION_ONE, offset: u64::from(BLOCK), length: 5000 };
    node.receive(0, 0, token, &encoded(Op::Fetch, 1003, 0, &range));
    assert!(is_urgent(&job));
    assert!(jobs(&node).is_empty(), "it is brought once");
}

#[test]
fn a_source_that_hangs_is_told_to_all_who_ask_until_it_answers() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    node.receive(0, 0, token, &read(1, 1, 0));
    node.receive(0, 0, token, &read(1, 2, 1000));
    let key = BlockKey { file: FILE, block: 1 };
    let (version, chunks) = (VERSION_ONE, Chunks::all(BLOCK));
    let run = Run { key, version, chunks, block_length: BLOCK };
    let message = "no answer".to_owned();
    node.event(0, 0, Event::Mail(Mail::Overdue { run, message }));
    node.receive(0, 0, token, &read(1, 3, 0));
    let told: Vec<_> = node.replies().iter().map(|reply| (reply.0, reply.2)).collect();
    let hangs = Status::SourceError;
    assert_eq!(told, [(1001, hangs), (1002, hangs), (1003, hangs)]);
    assert!(!node.workers[0].needs_ticks() || node.workers[0].deadline_count == 0);
    assert_eq!(node.end_fills(1, |_| Ok(())), 1, "the read went on");
    node.receive(0, 0, token, &read(1, 4, 0));
    assert_eq!(node.replies()[0].2, Status::Ok);
}
