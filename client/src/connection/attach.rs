//! Reaching the memory of a node on the same machine, when a connection is new.
//!
//! Owns the exchange of `Attach`, whose reply may bring a descriptor, and [`Attachment`], the memory as
//! long as the connection lasts. Always holds: an attachment is ended before its socket is closed, so a
//! reader that looks at it after reading knows whether the node still kept its promise.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_proto::frame::BODY_LENGTH_MAX;
use millrace_proto::message::ArchivedAttachReply;
use millrace_proto::{HEADER_SIZE, Header, Op, Status, frame};

use super::socket::Socket;
use crate::error::Error;
use crate::memory::NodeMemory;

/// Request id of `Attach`, `Challenge` and `Prove`: no other request is in flight, and later ones count from 1.
pub(super) const REQUEST_ID: u64 = u64::MAX;

/// What a node told clients on its machine about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    /// Number of this run of the node.
    pub(crate) node: u64,
    /// Boot id of its machine.
    pub(crate) machine: String,
    /// Addresses of its shards for clients on that machine.
    pub(crate) shards: Vec<String>,
}

/// A node's memory, while the connection lasts on which it came.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) memory: NodeMemory,
    stands: AtomicBool,
}

impl Attachment {
    pub(crate) fn of(memory: NodeMemory) -> Attachment {
        Attachment { memory, stands: AtomicBool::new(true) }
    }

    /// Notes that the connection is about to end: the node may forget all leases.
    pub(crate) fn end(&self) {
        self.stands.store(false, Ordering::SeqCst);
    }

    /// True if the connection still stands, so that the node keeps leases.
    pub(crate) fn stands(&self) -> bool {
        self.stands.load(Ordering::Acquire)
    }
}

/// Ends an attachment when it is dropped.
pub(super) struct End(pub(super) Option<Arc<Attachment>>);

impl Drop for End {
    fn drop(&mut self) {
        if let Some(attachment) = &self.0 {
            attachment.end();
        }
    }
}

/// Asks how to reach the node's memory, on a connection that has nothing in flight.
///
/// # Errors [`Error::Protocol`] for an answer to something else, and the errors of the socket.
pub(super) async fn attach(
    socket: &mut Socket,
    timeout: Duration,
) -> Result<(Option<Neighbour>, Option<Arc<Attachment>>), Error> {
    let budget_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
    let mut request = Vec::new();
    frame::encode_empty(&mut request, Header::request(Op::Attach, REQUEST_ID, budget_ms));
    let lost = |error: io::Error| Error::protocol(format!("attach: {error}"));
    socket.send_all(&request).await.map_err(lost)?;
    let (header, body, memfd) = receive_reply(socket).await?;
    if header.status() != Status::Ok {
        // The node does not know the operation, or is about to stop: nothing is attached.
        return Ok((None, None));
    }
    let reply = frame::body::<ArchivedAttachReply>(&body)?;
    let neighbour = Neighbour {
        node: reply.node.to_native(),
        machine: reply.machine.as_str().to_owned(),
        shards: reply.shards.iter().map(|address| address.as_str().to_owned()).collect(),
    };
    let length = reply.memory_length.to_native();
    let attachment = match memfd {
        Some(memfd) if length > 0 && reply.lease_ms.to_native() > 0 => {
            // Without room for the mapping, reads go over the socket.
            let memory = NodeMemory::map(&memfd, length).ok();
            memory.map(|memory| Arc::new(Attachment::of(memory)))
        }
        _ => None,
    };
    Ok((Some(neighbour), attachment))
}

/// Receives one whole reply, with the descriptor that came with it.
pub(super) async fn receive_reply(
    socket: &Socket,
) -> Result<(Header, Vec<u8>, Option<OwnedFd>), Error> {
    let mut bytes = Vec::new();
    let mut memfd = None;
    let mut need = HEADER_SIZE;
    loop {
        if let Some(head) = bytes.first_chunk() {
            let header = Header::decode(head)?;
            header.check_lengths(BODY_LENGTH_MAX, 0)?;
            if !header.is_reply() || header.request_id != REQUEST_ID {
                return Err(Error::protocol("a reply to nothing that was asked"));
            }
            need = HEADER_SIZE + header.body_length as usize;
            if bytes.len() == need {
                let body = bytes.split_off(HEADER_SIZE);
                header.check_body(&body)?;
                return Ok((header, body, memfd));
            }
        }
        let missing = need - bytes.len();
        let received = socket.receive(missing, &mut bytes).await;
        let (count, descriptor) =
            received.map_err(|error| Error::protocol(format!("receive: {error}")))?;
        if count == 0 {
            return Err(Error::protocol("the node closed the connection instead of an answer"));
        }
        memfd = descriptor.or(memfd);
    }
}
