//! The role of a connection, as far as it has proved it, and what it may ask for.
//!
//! Always holds: a connection that has proved nothing reads, and changes nothing. Where it comes from
//! means nothing, except for the administration socket, which the system lets only the node's user and
//! root open.

use millrace_proto::Status;
use millrace_proto::frame::{self, FrameError};
use millrace_proto::message::{ArchivedRange, Range};
use millrace_proto::proof::{
    ArchivedChallengeRequest, ArchivedProof, ChallengeReply, Exchange, Nonce, Proof, Role, Secret,
    Side,
};

use super::request::{ColdOp, PathOp};
use super::{Action, Worker};
use crate::cache::BlockKey;
use crate::mailbox::{Requester, reply_header};
use crate::token::Token;

/// The secrets by which others are recognised.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proofs {
    /// The secret of the cluster.
    pub member: Option<Secret>,
    /// The token of administrators.
    pub administrator: Option<Secret>,
    /// True if members prove nothing to each other, because there is a cluster and it has no secret.
    pub is_insecure: bool,
}

impl Proofs {
    fn secret(&self, role: Role) -> Option<&Secret> {
        match role {
            Role::Member => self.member.as_ref(),
            Role::Administrator => self.administrator.as_ref(),
        }
    }

    /// True if there is something to prove.
    pub(crate) fn is_some(&self) -> bool {
        self.member.is_some() || self.administrator.is_some()
    }
}

/// Numbers that are used once and cannot be foretold.
pub(super) struct Nonces {
    seed: Secret,
    count: u64,
}

impl Nonces {
    /// Derives numbers from 32 random bytes, other ones for each shard.
    pub(super) fn new(seed: &[u8; 32], shard: u32) -> Nonces {
        let seed = Secret::from(*seed).code("millrace nonces", &shard.to_le_bytes());
        Nonces { seed: seed.into(), count: 0 }
    }

    /// Returns the next one.
    pub(super) fn next(&mut self) -> Nonce {
        self.count += 1;
        self.seed.code("millrace nonce", &self.count.to_le_bytes())
    }
}

impl Worker {
    /// Returns the role of a connection; None if it has proved nothing.
    pub(super) fn role(&mut self, token: Token) -> Option<Role> {
        self.connection(token)?.role
    }

    /// Returns why an operation is not for this connection, if it is not.
    pub(super) fn refusal(&mut self, op: ColdOp, token: Token) -> Option<&'static str> {
        match op {
            ColdOp::OfPath(PathOp::Free)
            | ColdOp::Drain
            | ColdOp::Mount
            | ColdOp::Pin
            | ColdOp::StartJob
            | ColdOp::StartCopiesJob
            | ColdOp::CancelJob
            | ColdOp::Jobs
                if self.role(token).is_none() =>
            {
                Some(
                    "only at the node's administration socket (--admin), or with its token \
                 (--admin-token): this connection has neither",
                )
            }
            ColdOp::Inventory
            | ColdOp::Vouch
            | ColdOp::OfPath(PathOp::LoadPart | PathOp::LoadPartCopies)
                if self.role(token).is_none() && !self.shared.proofs.is_insecure =>
            {
                Some(
                    "only for members of the cluster, which know its secret (--coord-secret): this \
                 connection has not proved that it does",
                )
            }
            _ => None,
        }
    }

    /// Answers with the code of a block that is here.
    pub(super) fn vouch(
        &mut self,
        requester: &Requester,
        body: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), FrameError> {
        let range = Range::from(frame::body::<ArchivedRange>(body)?);
        self.take(requester);
        if let Some(message) = self.refusal(ColdOp::Vouch, requester.token) {
            self.fail(requester, Status::PermissionDenied, message, actions);
            return Ok(());
        }
        let block = u32::try_from(range.offset >> self.block_shift);
        let found = block.ok().and_then(|block| {
            let key = BlockKey { file: range.file, block };
            let (entry, version) = self.cache.find(&key)?;
            let code = self.cache.code(entry).filter(|_| version == range.version)?;
            Some(Proof { mac: *code })
        });
        let Some(proof) = found else {
            let message = "this shard has no such block that it vouches for";
            self.fail(requester, Status::NotCached, message, actions);
            return Ok(());
        };
        let header = reply_header(&requester.header, 0, Status::Ok);
        self.push_head(requester, |head| frame::encode(head, header, &proof));
        Ok(())
    }

    /// Begins an exchange of proofs.
    pub(super) fn challenge(
        &mut self,
        requester: &Requester,
        body: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), FrameError> {
        let request = frame::body::<ArchivedChallengeRequest>(body)?;
        self.take(requester);
        let node = request.node.to_native();
        let Some(role) = Role::from_code(request.role) else {
            let message = "the role is not known here: 1 is a member, 2 an administrator";
            self.fail(requester, Status::InvalidArgument, message, actions);
            return Ok(());
        };
        let refusal = if self.shared.proofs.secret(role).is_none() {
            Some(match role {
                Role::Member => "this node has no secret of a cluster (--coord-secret)",
                Role::Administrator => "this node has no token of administrators (--admin-token)",
            })
        } else if node != 0 && node != self.shared.node {
            Some("another node is meant, or an earlier run of this one")
        } else {
            None
        };
        if let Some(message) = refusal {
            self.fail(requester, Status::PermissionDenied, message, actions);
            return Ok(());
        }
        let answer = self.nonces.next();
        let exchange = Exchange { role: request.role, node, client: request.nonce, answer };
        if let Some(connection) = self.connection(requester.token) {
            connection.exchange = Some(Box::new(exchange));
        }
        let header = reply_header(&requester.header, 0, Status::Ok);
        let reply = ChallengeReply { nonce: answer };
        self.push_head(requester, |head| frame::encode(head, header, &reply));
        Ok(())
    }

    /// Ends an exchange of proofs: a right one is answered by ours.
    pub(super) fn prove(
        &mut self,
        requester: &Requester,
        body: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), FrameError> {
        let mac = frame::body::<ArchivedProof>(body)?.mac;
        self.take(requester);
        let exchange = self.connection(requester.token).and_then(|it| it.exchange.take());
        let proved = exchange.and_then(|exchange| {
            let role = Role::from_code(exchange.role)?;
            let secret = self.shared.proofs.secret(role)?;
            let is_right = exchange.verify(secret, Side::Client, &mac);
            is_right.then(|| (role, exchange.proof(secret, Side::Node)))
        });
        let Some((role, mac)) = proved else {
            let message = "this proves nothing: both sides have to have the same secret, and each \
                           proof needs a challenge of its own";
            self.fail(requester, Status::PermissionDenied, message, actions);
            return Ok(());
        };
        if let Some(connection) = self.connection(requester.token) {
            connection.role = Some(role);
        }
        let header = reply_header(&requester.header, 0, Status::Ok);
        self.push_head(requester, |head| frame::encode(head, header, &Proof { mac }));
        Ok(())
    }
}
