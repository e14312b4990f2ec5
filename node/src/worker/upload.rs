//! Writes: requests of an upload go to its task on the side thread, as far as the credit lets them.
//!
//! Always holds: an upload belongs to one connection, and ends with it, because its task sees the other end of
//! the channel go. Bytes are copied once, out of the receive buffer, and never more than the credit.

use std::sync::Arc;

use bytes::Bytes;
use millrace_proto::frame;
use millrace_proto::write::{
    ArchivedPutAbortRequest, ArchivedPutEndRequest, ArchivedPutPartRequest, ArchivedRenameRequest,
    ArchivedWriteRequest, Condition,
};
use millrace_proto::{FrameError, Status, placement};

use super::{Action, Worker};
use crate::mailbox::Requester;
use crate::owner::Owner;
use crate::side::uploads::Put;
use crate::side::{LookupJob, PathLookup};
use crate::upload::{Door, OpenUpload, Step, StepKind};

/// Uploads that one connection may have open. Guessed: a client writes a file for each of a few tasks.
const UPLOADS_OF_CONNECTION_MAX: usize = 4;

/// Operations that write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteOp {
    Begin,
    Part,
    End,
    Abort,
    Delete,
    Rename,
}

/// What a request that takes a place among the writes of the node asks for.
enum Intent {
    Put { path: Arc<str>, condition: Condition },
    Delete { path: Arc<str>, condition: Condition },
    Rename { path: Arc<str>, to: Arc<str>, condition: Condition },
}

const ENDED: &str = "no such upload is open on this connection: it has ended, or belongs to another connection; \
                     begin again with Put";

impl Worker {
    /// Takes a request of an upload, to delete a file, or to rename one.
    pub(super) fn on_write(
        &mut self,
        op: WriteOp,
        requester: Requester,
        body: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), FrameError> {
        match op {
            WriteOp::Begin | WriteOp::Delete => {
                let request = frame::body::<ArchivedWriteRequest>(body)?;
                let version = request.version.to_native();
                let condition = Condition::from_wire(request.condition, version);
                let path = Arc::from(request.path.as_str());
                self.take(&requester);
                let wanted = condition.map(|condition| match op {
                    WriteOp::Delete => Intent::Delete { path, condition },
                    _ => Intent::Put { path, condition },
                });
                match wanted {
                    Some(wanted) => self.begin_write(wanted, requester, actions),
                    None => {
                        let message = "the condition of a write is 0, 1 or 2";
                        self.fail(&requester, Status::InvalidArgument, message, actions);
                    }
                }
            }
            WriteOp::Rename => {
                let request = frame::body::<ArchivedRenameRequest>(body)?;
                let (path, to) = (Arc::from(request.path.as_str()), Arc::from(request.to.as_str()));
                self.take(&requester);
                match Condition::from_wire(request.condition, 0) {
                    Some(condition @ (Condition::None | Condition::Absent)) => {
                        let wanted = Intent::Rename { path, to, condition };
                        self.begin_write(wanted, requester, actions);
                    }
                    _ => {
                        let message = "the condition of a Rename is 0 or 1";
                        self.fail(&requester, Status::InvalidArgument, message, actions);
                    }
                }
            }
            WriteOp::Part => {
                let request = frame::body::<ArchivedPutPartRequest>(body)?;
                let (upload, offset) = (request.upload.to_native(), request.offset.to_native());
                self.take(&requester);
                self.take_part(requester, upload, &request.bytes, actions, |bytes| {
                    StepKind::Part { offset, checksum: request.checksum.to_native(), bytes }
                });
            }
            WriteOp::End => {
                let request = frame::body::<ArchivedPutEndRequest>(body)?;
                let (upload, length) = (request.upload.to_native(), request.length.to_native());
                self.take(&requester);
                self.end_upload(requester, upload, StepKind::End { length }, actions);
            }
            WriteOp::Abort => {
                let request = frame::body::<ArchivedPutAbortRequest>(body)?;
                let upload = request.upload.to_native();
                self.take(&requester);
                self.end_upload(requester, upload, StepKind::Abort, actions);
            }
        }
        Ok(())
    }

    fn begin_write(&mut self, wanted: Intent, requester: Requester, actions: &mut Vec<Action>) {
        let number = self.next_upload();
        let depth = self.limits.requests_in_flight_max as usize;
        let Some(connection) = self.connection(requester.token) else { return };
        let has_ended = |it: &OpenUpload| it.door.is_shut() || it.steps.is_disconnected();
        connection.uploads.retain(|upload| !has_ended(upload));
        // A delete is short.
        let is_long = !matches!(wanted, Intent::Delete { .. });
        if is_long && connection.uploads.len() >= UPLOADS_OF_CONNECTION_MAX {
            let message = "as many uploads and renames as a connection may have are under way: end one, or \
                           use another connection";
            self.fail(&requester, Status::Busy, message, actions);
            return;
        }
        let loads = &connection.loads_of_machine;
        let ticket = connection.owner.get_or_insert_with(|| Owner::new(loads.clone())).ticket();
        let Some(slot) = self.side.upload_slot() else {
            let message = "as many files as allowed are being written (upload_concurrency)";
            self.fail(&requester, Status::Busy, message, actions);
            return;
        };
        let (lookup, upload) = match wanted {
            Intent::Delete { path, condition } => {
                (PathLookup::Delete { path, condition, slot }, None)
            }
            Intent::Rename { path, to, condition } => {
                // It takes no steps, and has ended when the other end of them is gone.
                let (steps, under_way) = flume::bounded(1);
                let upload = OpenUpload { number, steps, door: Arc::default() };
                (PathLookup::Rename { path, to, condition, slot, under_way }, Some(upload))
            }
            Intent::Put { path, condition } => {
                let (sender, steps) = flume::bounded(depth);
                let door = Arc::<Door>::default();
                let upload = OpenUpload { number, steps: sender, door: Arc::clone(&door) };
                let put = Put { path, condition, number, steps, door, slot };
                (PathLookup::Put(put), Some(upload))
            }
        };
        if self.side.offer_lookup(LookupJob { requester, ticket, lookup: lookup.into() }).is_err() {
            let message = "too many requests wait for the source (metadata_queue_max)";
            self.fail(&requester, Status::Busy, message, actions);
            return;
        }
        if let Some(connection) = self.connection(requester.token) {
            connection.uploads.extend(upload);
        }
    }

    /// Returns a number that no other upload of this run of the node has.
    fn next_upload(&mut self) -> u64 {
        self.upload_count += 1;
        let shard = u64::from(self.shard) << 48;
        placement::mix(self.shared.node ^ placement::mix(shard | self.upload_count))
    }

    fn take_part(
        &mut self,
        requester: Requester,
        number: u64,
        bytes: &[u8],
        actions: &mut Vec<Action>,
        step: impl FnOnce(Bytes) -> StepKind,
    ) {
        let Some(connection) = self.connection(requester.token) else { return };
        let place = connection.uploads.iter().position(|upload| upload.number == number);
        let message = match place.map(|place| &connection.uploads[place]) {
            None => ENDED,
            Some(upload) if upload.door.is_shut() => ENDED,
            Some(_) if bytes.is_empty() => "a part has at least one byte",
            Some(upload) if !upload.door.enter(bytes.len()) => {
                "more bytes are unanswered than the credit of the upload: wait for replies"
            }
            Some(upload) => {
                let step = Step { requester, kind: step(Bytes::copy_from_slice(bytes)) };
                match upload.steps.try_send(step) {
                    Ok(()) => return,
                    Err(_) => ENDED,
                }
            }
        };
        if let Some(place) = place {
            // Its task sees that, and gives the upload up.
            connection.uploads.swap_remove(place);
        }
        self.fail(&requester, Status::InvalidArgument, message, actions);
    }

    fn end_upload(
        &mut self,
        requester: Requester,
        number: u64,
        kind: StepKind,
        actions: &mut Vec<Action>,
    ) {
        let Some(connection) = self.connection(requester.token) else { return };
        let place = connection.uploads.iter().position(|upload| upload.number == number);
        let upload = place.map(|place| connection.uploads.swap_remove(place));
        let is_taken = upload.is_some_and(|upload| {
            !upload.door.is_shut() && upload.steps.try_send(Step { requester, kind }).is_ok()
        });
        if !is_taken {
            self.fail(&requester, Status::InvalidArgument, ENDED, actions);
        }
    }
}
