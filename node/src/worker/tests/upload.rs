//! Uploads as a shard sees them: which requests it takes, and when it is over.

use millrace_proto::checksum;
use millrace_proto::write::{
    Condition, PutAbortRequest, PutPartRequest, RenameRequest, WriteRequest,
};

use super::*;
use crate::side::UPLOADS_OF_TESTS;
use crate::side::uploads::Put;
use crate::upload::{CREDIT, Step, StepKind};

/// A part as long as a body has room for.
const PART: usize = 65_508;

fn put_frame(id: u64) -> Vec<u8> {
    encoded(Op::Put, id, 0, &WriteRequest::new("a", Condition::None))
}

fn part_frame(id: u64, upload: u64, length: usize) -> Vec<u8> {
    let bytes = vec![7; length];
    let checksum = checksum::of(&bytes);
    encoded(Op::PutPart, id, 0, &PutPartRequest { upload, offset: 0, checksum, bytes })
}

/// Asks for an upload, which the side thread gets.
fn begin(node: &mut Node, token: Token) -> Put {
    node.receive(0, 0, token, &put_frame(1));
    match node.lookups.try_recv().map(|job| job.lookup) {
        Ok(PathLookup::Put(put)) => put,
        other => panic!("{other:?}"),
    }
}

/// Answers a step, as the side thread does.
fn answer(node: &mut Node, step: Step, door_length: usize, put: &Put) {
    put.door.leave(door_length);
    let (status, message) = (Status::SourceError, String::new());
    let mail = Mail::Failed { requester: step.requester, status, message };
    node.event(0, 0, Event::Mail(mail));
}

fn statuses(node: &mut Node) -> Vec<Status> {
    node.replies().into_iter().map(|(_, _, status, _)| status).collect()
}

#[test]
fn parts_beyond_the_credit_are_refused_and_end_the_upload() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    let put = begin(&mut node, token);
    let mut taken = 0;
    while taken + PART <= CREDIT as usize {
        node.receive(0, 0, token, &part_frame(2, put.number, PART));
        let step = put.steps.try_recv().expect("the part came");
        assert!(matches!(&step.kind, StepKind::Part { bytes, .. } if bytes.len() == PART));
        taken += PART;
        // The reply does not say that the store has the bytes: they still count.
        answer(&mut node, step, 0, &put);
    }
    node.sent.clear();
    node.receive(0, 0, token, &part_frame(3, put.number, PART));
    assert_eq!(statuses(&mut node), [Status::InvalidArgument]);
    assert_eq!(put.steps.try_recv().unwrap_err(), flume::TryRecvError::Disconnected);
    node.receive(0, 0, token, &part_frame(4, put.number, 1));
    assert_eq!(statuses(&mut node), [Status::InvalidArgument], "it has ended");
}

#[test]
fn bytes_that_the_store_took_make_room() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    let put = begin(&mut node, token);
    for _ in 0..3 * CREDIT as usize / PART {
        node.receive(0, 0, token, &part_frame(2, put.number, PART));
        let step = put.steps.try_recv().expect("the part came");
        answer(&mut node, step, PART, &put);
    }
}

#[test]
fn an_upload_ends_with_its_connection_and_belongs_to_no_other() {
    let mut node = Node::new(1, 512, 8);
    let [first, second] = [(); 2].map(|()| node.workers[0].accept_far(0).unwrap());
    let put = begin(&mut node, first);
    node.receive(0, 0, second, &part_frame(2, put.number, 10));
    assert_eq!(statuses(&mut node), [Status::InvalidArgument]);
    assert_eq!(put.steps.try_recv().unwrap_err(), flume::TryRecvError::Empty);
    node.event(0, 0, Event::Closed { token: first });
    assert_eq!(put.steps.try_recv().unwrap_err(), flume::TryRecvError::Disconnected);
}

#[test]
fn uploads_of_a_connection_and_of_a_node_are_bounded() {
    let mut node = Node::new(1, 512, 8);
    let [first, second] = [(); 2].map(|()| node.workers[0].accept_far(0).unwrap());
    let mut puts: Vec<Put> = (0..4).map(|_| begin(&mut node, first)).collect();
    node.receive(0, 0, first, &put_frame(2));
    assert_eq!(statuses(&mut node), [Status::Busy]);
    puts.extend((4..UPLOADS_OF_TESTS).map(|_| begin(&mut node, second)));
    node.receive(0, 0, second, &put_frame(3));
    assert_eq!(statuses(&mut node), [Status::Busy]);
    let mut numbers: Vec<u64> = puts.iter().map(|put| put.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), UPLOADS_OF_TESTS, "each has its own");
    // One that the side thread has ended counts no more, nor does one that the client ends.
    let ended = puts.remove(0);
    ended.door.shut();
    drop(ended);
    puts.push(begin(&mut node, first));
    let aborted = puts.remove(0);
    let abort = PutAbortRequest { upload: aborted.number };
    node.receive(0, 0, first, &encoded(Op::PutAbort, 9, 0, &abort));
    assert!(matches!(aborted.steps.try_recv().map(|it| it.kind), Ok(StepKind::Abort)));
    drop(aborted);
    begin(&mut node, first);
}

#[test]
fn renames_of_a_connection_are_bounded_with_its_uploads() {
    let mut node = Node::new(1, 512, 8);
    let token = node.workers[0].accept_far(0).unwrap();
    let request = RenameRequest { path: "a".into(), to: "b".into(), condition: 0 };
    let frame = encoded(Op::Rename, 1, 0, &request);
    let _put = begin(&mut node, token);
    let mut renames = Vec::new();
    for _ in 0..3 {
        node.receive(0, 0, token, &frame);
        renames.push(node.lookups.try_recv().expect("it was passed on"));
    }
    node.receive(0, 0, token, &frame);
    assert_eq!(statuses(&mut node), [Status::Busy]);
    renames.pop();
    node.receive(0, 0, token, &frame);
    assert!(node.lookups.try_recv().is_ok(), "one has ended");
}
