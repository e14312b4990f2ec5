//! What a node answered: good, or why not.

use anyhow::{Result, bail, ensure};
use millrace_proto::Status;
use millrace_proto::frame::{self, Header};
use millrace_proto::message::ArchivedErrorReply;

/// Checks that a frame is a reply that says `Ok`.
///
/// # Errors
/// With the node's own message otherwise.
pub(crate) fn check_reply(header: &Header, body: &[u8]) -> Result<()> {
    ensure!(header.is_reply(), "the node sent a request instead of a reply");
    if header.status == Status::Ok as u16 {
        return Ok(());
    }
    let message = match frame::body::<ArchivedErrorReply>(body) {
        Ok(reply) if !body.is_empty() => reply.message.as_str(),
        _ => "no further message",
    };
    bail!("the node answered: {}: {message}", header.status());
}
