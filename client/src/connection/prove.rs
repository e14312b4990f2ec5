//! Proving on a new connection that a secret is known, and having the node prove the same.
//!
//! Always holds: nothing is believed of a node that was asked to prove something and did not.

use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use millrace_proto::frame::{self, Body};
use millrace_proto::proof::{
    ArchivedChallengeReply, ArchivedProof, ChallengeRequest, Exchange, Proof, Role, Secret, Side,
};
use millrace_proto::{Header, Op, Status};

use super::attach::{REQUEST_ID, receive_reply};
use super::socket::Socket;
use crate::error::Error;
use crate::reply;

/// What a connection proves before it is used.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// The role in which the connection asks.
    pub(crate) role: Role,
    /// The secret that both sides know.
    pub(crate) secret: Secret,
    /// Number of the run of the node that is meant; 0 for any node.
    pub(crate) node: u64,
}

/// Returns 32 random bytes from the system.
///
/// # Errors
/// If it gives none.
pub fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Proves a claim on a connection that has nothing in flight.
///
/// # Errors
/// [`Error::Status`] if the node does not accept it, [`Error::Protocol`] if the node does not know the
/// secret itself, and what the socket says.
pub(super) async fn prove(
    socket: &mut Socket,
    claim: &Claim,
    timeout: Duration,
) -> Result<(), Error> {
    let Claim { role, secret, node } = claim;
    let client = random().map_err(|error| Error::protocol(format!("/dev/urandom: {error}")))?;
    let request = ChallengeRequest { role: *role as u8, node: *node, nonce: client };
    let body = ask(socket, Op::Challenge, &request, timeout).await?;
    let answer = frame::body::<ArchivedChallengeReply>(&body)?.nonce;
    let exchange = Exchange { role: *role as u8, node: *node, client, answer };
    let proof = Proof { mac: exchange.proof(secret, Side::Client) };
    let body = ask(socket, Op::Prove, &proof, timeout).await?;
    let mac = frame::body::<ArchivedProof>(&body)?.mac;
    if exchange.verify(secret, Side::Node, &mac) {
        return Ok(());
    }
    Err(Error::protocol("the node does not know the secret that it should know"))
}

async fn ask<T: Body>(
    socket: &mut Socket,
    op: Op,
    body: &T,
    timeout: Duration,
) -> Result<Vec<u8>, Error> {
    let budget_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
    let mut request = Vec::new();
    frame::encode(&mut request, Header::request(op, REQUEST_ID, budget_ms), body);
    let sent = socket.send_all(&request).await;
    sent.map_err(|error| Error::protocol(format!("prove: {error}")))?;
    let (header, body, _) = receive_reply(socket).await?;
    match header.status() {
        Status::Ok => Ok(body),
        _ => Err(reply::status_error(&super::Reply { header, body: body.into() })),
    }
}
