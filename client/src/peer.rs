//! Nodes use this to take blocks over from each other. No ring is followed and nothing is tried twice:
//! the caller asks again if it still needs an answer.

use std::time::Duration;

use bytes::Bytes;
use millrace_proto::cluster::{
    ArchivedInventoryReply, DrainRequest, InventoryFile, InventoryReply, InventoryRequest,
    MountRequest, PinRequest,
};
use millrace_proto::job::{
    ArchivedLoadPartReply, CancelJobRequest, LoadPartCopiesRequest, LoadPartReply,
    StartCopiesJobRequest,
};
use millrace_proto::message::{
    ArchivedFreeReply, ArchivedReadReply, FreeRequest, Range, RefreshRequest, StatRequest,
};
use millrace_proto::proof::{ArchivedProof, Mac, Role, Secret};
use millrace_proto::{FileId, Status, checksum, frame, placement};
use smallvec::smallvec;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::config::ClientConfig;
pub use crate::connection::random;
use crate::connection::{Answer, Body, Claim, Landing, Lane, Reply};
use crate::control::status_reply;
use crate::error::Error;
use crate::file::{File, FreeReport, Kind, NodeStatus};
use crate::piece::Piece;
use crate::read::{self, Miss};
use crate::reply::{self, Setback};

/// Longest wait for a connection. Guessed: a node that does not answer by then is as good as gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A block that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerBlock {
    /// The file.
    pub file: FileId,
    /// Version it has to be of.
    pub version: u64,
    /// Number of the block in the file.
    pub block: u32,
    /// Length of the block in bytes.
    pub length: u32,
}

/// The bytes of a block, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerBytes {
    /// The bytes.
    pub bytes: Bytes,
    /// CRC-32 of the bytes, made by the node that read them from the source. The bytes matched it when
    /// they came; what is made from them has to match it, too.
    pub checksum: u32,
}

/// What the master of a cluster is asked to do.
#[derive(Clone, Debug)]
pub enum MasterOrder {
    /// To drain a member, or have it take part again.
    Drain(DrainRequest),
    /// To change the mounts.
    Mount(MountRequest),
    /// To change the pins.
    Pin(PinRequest),
    /// To begin a load job.
    StartJob(StartCopiesJobRequest),
    /// To end one.
    CancelJob(CancelJobRequest),
}

/// Another node. It lives on the tokio runtime it was made on, and connects when it is asked for
/// something.
#[derive(Debug)]
pub struct Peer {
    /// One for each shard.
    lanes: Vec<Lane>,
    block_size: u32,
}

impl Peer {
    /// Makes a node with these addresses of its shards, `host:port` in shard order, and this size of
    /// blocks in bytes. With a secret each connection proves that it is known on both sides; `run` is
    /// the number of the node's run.
    ///
    /// # Panics
    /// Without an address, or outside a tokio runtime.
    pub fn new(shards: &[String], block_size: u32, secret: Option<&Secret>, run: u64) -> Peer {
        assert!(!shards.is_empty(), "a node has a shard");
        let config =
            ClientConfig { connect_timeout: CONNECT_TIMEOUT, local: false, ..ClientConfig::new() };
        let config = Arc::new(config);
        let claim =
            secret.map(|secret| Claim { role: Role::Member, secret: secret.clone(), node: run });
        let lanes = shards.iter().map(|address| {
            let addresses = smallvec![address.as_str().into()];
            Lane::start(addresses, (None, claim.clone()), config.clone(), &Handle::current())
        });
        Peer { lanes: lanes.collect(), block_size }
    }

    /// Returns the bytes of a block, if the node has it in its cache in this version. They match the
    /// checksums that the node made when it read them.
    ///
    /// # Errors
    /// If there is no answer within `patience`, or not one that can be used.
    pub async fn peek(
        &self,
        block: PeerBlock,
        patience: Duration,
    ) -> Result<Option<PeerBytes>, Error> {
        match self.ask(Body::Peek, block, Instant::now() + patience).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::Status { status: Status::NotCached, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the bytes of a block of the file at `path`, which the node reads from the source if it
    /// has to.
    ///
    /// # Errors
    /// As [`Peer::peek`].
    pub async fn fetch(
        &self,
        block: PeerBlock,
        path: &str,
        patience: Duration,
    ) -> Result<PeerBytes, Error> {
        let deadline = Instant::now() + patience;
        match self.ask(Body::Fetch, block, deadline).await {
            Err(Error::Status { status: Status::UnknownFile | Status::StaleVersion, .. }) => {
                let body = Body::Stat(StatRequest { path: path.to_owned() });
                let answer = self.lanes[0].exchange(body, Landing::Any, deadline).await?;
                reply::judge(answer.outcome).map_err(Setback::into_error)?;
                self.ask(Body::Fetch, block, deadline).await
            }
            other => other,
        }
    }

    /// Returns the code of a block, by which a member that knows the secret of the cluster recognises
    /// its bytes; None if the node does not have it. See section 16 of PROTOCOL.md.
    ///
    /// # Errors
    /// As [`Peer::peek`].
    pub async fn vouch(&self, block: PeerBlock, patience: Duration) -> Result<Option<Mac>, Error> {
        let offset = u64::from(block.block) * u64::from(self.block_size);
        let PeerBlock { file, version, length, .. } = block;
        let body = Body::Vouch(Range { file, version, offset, length });
        let deadline = Instant::now() + patience;
        let answer = self.lane(block).exchange(body, Landing::Any, deadline).await?;
        match reply::judge(answer.outcome).map_err(Setback::into_error) {
            Ok(reply) => Ok(Some(frame::body::<ArchivedProof>(&reply.body)?.mac)),
            Err(Error::Status { status: Status::NotCached, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the lane of the shard that a block belongs to.
    fn lane(&self, block: PeerBlock) -> &Lane {
        let hash = placement::block_hash(block.file, u64::from(block.block));
        &self.lanes[placement::shard_of(hash, self.lanes.len() as u32) as usize]
    }

    /// Asks the shard that a block belongs to for the whole block.
    async fn ask(
        &self,
        body: impl Fn(Range) -> Body,
        block: PeerBlock,
        deadline: Instant,
    ) -> Result<PeerBytes, Error> {
        let offset = u64::from(block.block) * u64::from(self.block_size);
        let file = File {
            path: "".into(),
            id: block.file.into(),
            version: block.version,
            length: offset + u64::from(block.length),
            block_size: self.block_size,
            kind: Kind::File,
            modified_ms: 0,
        };
        let piece = Piece { offset, length: block.length, block_size: self.block_size };
        let answer =
            self.lane(block).exchange(body(piece.range(&file)), Landing::Any, deadline).await?;
        let checksum = block_checksum(&answer, block);
        let (landed, miss) = read::judge(&file, piece, answer, true);
        match miss {
            None => {
                let bytes = read::into_bytes(landed);
                let checksum = checksum
                    .ok_or_else(|| Error::protocol("a whole block came without its checksum"))?;
                Ok(PeerBytes { bytes, checksum })
            }
            Some(Miss::Damaged(offset)) => Err(Error::Corrupt { path: file.path, offset }),
            Some(Miss::Setback(setback)) => Err(setback.into_error()),
        }
    }

    /// Asks the node to do something as the master of the cluster.
    ///
    /// # Errors
    /// As [`Peer::peek`], and [`Error::Status`] with what it decided.
    pub async fn tell(&self, order: MasterOrder, patience: Duration) -> Result<(), Error> {
        let body = match order {
            MasterOrder::Drain(request) => Body::Drain(request),
            MasterOrder::Mount(request) => Body::Mount(request),
            MasterOrder::Pin(request) => Body::Pin(request),
            // A master of an earlier version knows jobs for all owners alone.
            MasterOrder::StartJob(StartCopiesJobRequest { job, replicas: 0 }) => {
                Body::StartJob(job)
            }
            MasterOrder::StartJob(request) => Body::StartCopiesJob(request),
            MasterOrder::CancelJob(request) => Body::CancelJob(request),
        };
        let answer = self.lanes[0].exchange(body, Landing::Any, Instant::now() + patience).await?;
        reply::judge(answer.outcome).map(drop).map_err(Setback::into_error)
    }

    /// Has the node bring in the blocks of a part of a file that it owns; returns how many they are.
    ///
    /// # Errors
    /// As [`Peer::tell`].
    pub async fn load_part(
        &self,
        request: LoadPartCopiesRequest,
        patience: Duration,
    ) -> Result<LoadPartReply, Error> {
        let deadline = Instant::now() + patience;
        // A node of an earlier version knows parts for all owners alone.
        let body = match request {
            LoadPartCopiesRequest { part, replicas: 0, holder } if holder.is_empty() => {
                Body::LoadPart(part)
            }
            request => Body::LoadPartCopies(request),
        };
        let answer = self.lanes[0].exchange(body, Landing::Any, deadline).await?;
        let Reply { body, .. } = reply::judge(answer.outcome).map_err(Setback::into_error)?;
        let reply = frame::body::<ArchivedLoadPartReply>(&body)?;
        Ok(LoadPartReply {
            block_count: reply.block_count.to_native(),
            filled_count: reply.filled_count.to_native(),
            filled_bytes: reply.filled_bytes.to_native(),
        })
    }

    /// Drops what the node has of a file; returns what that was.
    ///
    /// # Errors
    /// As [`Peer::tell`].
    pub async fn free(&self, path: &str, patience: Duration) -> Result<FreeReport, Error> {
        let body = Body::Free(FreeRequest { path: path.to_owned() });
        let answer = self.lanes[0].exchange(body, Landing::Any, Instant::now() + patience).await?;
        let Reply { body, .. } = reply::judge(answer.outcome).map_err(Setback::into_error)?;
        Ok(frame::body::<ArchivedFreeReply>(&body)?.into())
    }

    /// Has the node forget what it has of a file that has changed. A node that takes no orders from this one asks
    /// its source, and so sees the change itself.
    ///
    /// # Errors
    /// As [`Peer::tell`].
    pub async fn forget(&self, path: &str, patience: Duration) -> Result<(), Error> {
        // Of a directory a node has nothing; what is below it is another question.
        let is_not_there =
            |error: &Error| matches!(error.status(), Some(Status::NotFound | Status::WrongKind));
        let error = match self.free(path, patience).await {
            Ok(_) => return Ok(()),
            Err(error) if is_not_there(&error) => return Ok(()),
            Err(error) => error,
        };
        if error.status() != Some(Status::PermissionDenied) {
            return Err(error);
        }
        let body = Body::Refresh(RefreshRequest { path: path.to_owned(), recursive: 0 });
        let answer = self.lanes[0].exchange(body, Landing::Any, Instant::now() + patience).await?;
        match reply::judge(answer.outcome).map_err(Setback::into_error) {
            Ok(_) => Ok(()),
            Err(error) if is_not_there(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Has the node believe nothing of what it knows below a directory that was renamed, and free what it has of
    /// files below it if that is gone. A node of an earlier version asks its source at each look-up.
    ///
    /// # Errors
    /// As [`Peer::tell`].
    pub async fn look_again_below(&self, path: &str, patience: Duration) -> Result<(), Error> {
        let body = Body::Refresh(RefreshRequest { path: path.to_owned(), recursive: 1 });
        let answer = self.lanes[0].exchange(body, Landing::Any, Instant::now() + patience).await?;
        match reply::judge(answer.outcome).map_err(Setback::into_error) {
            Err(error) if !matches!(error.status(), Some(Status::NotFound | Status::UnknownOp)) => {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Returns the counters of the node.
    ///
    /// # Errors
    /// As [`Peer::peek`].
    pub async fn status(&self, patience: Duration) -> Result<NodeStatus, Error> {
        let deadline = Instant::now() + patience;
        let answer = self.lanes[0].exchange(Body::Status, Landing::Any, deadline).await?;
        status_reply(&reply::judge(answer.outcome).map_err(Setback::into_error)?)
    }

    /// Returns blocks of the node that the member with this key should own; see `Inventory` in
    /// PROTOCOL.md.
    ///
    /// # Errors
    /// As [`Peer::peek`].
    pub async fn inventory(
        &self,
        request: InventoryRequest,
        patience: Duration,
    ) -> Result<InventoryReply, Error> {
        let deadline = Instant::now() + patience;
        let body = Body::Inventory(request);
        let answer = self.lanes[0].exchange(body, Landing::Any, deadline).await?;
        let Reply { body, .. } = reply::judge(answer.outcome).map_err(Setback::into_error)?;
        let reply = frame::body::<ArchivedInventoryReply>(&body)?;
        let files = reply.files.iter().map(|file| InventoryFile {
            id: (&file.id).into(),
            version: file.version.to_native(),
            length: file.length.to_native(),
            path: file.path.as_str().to_owned(),
            blocks: file.blocks.iter().map(|block| block.to_native()).collect(),
        });
        Ok(InventoryReply { next: reply.next.to_native(), files: files.collect() })
    }
}

/// Returns the CRC-32 of the whole block from the answer; None if the answer is about something else.
fn block_checksum(answer: &Answer, block: PeerBlock) -> Option<u32> {
    let reply = answer.outcome.as_ref().ok()?;
    let body = frame::body::<ArchivedReadReply>(&reply.body).ok()?;
    let [value] = body.checksums.as_slice() else { return None };
    let tag = match reply.header.covers_identity() {
        true => checksum::tag(block.file, block.version, block.block),
        false => 0,
    };
    Some(value.to_native() ^ tag)
}
