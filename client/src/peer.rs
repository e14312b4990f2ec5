//! A node as another node sees it: what it has in its cache, and nothing else.
//!
//! Nodes use this to take blocks over from each other. No ring is followed and nothing is tried twice:
//! who does not answer is asked again by whoever needs it.

use std::time::Duration;

use bytes::Bytes;
use millrace_proto::cluster::{
    ArchivedInventoryReply, InventoryFile, InventoryReply, InventoryRequest,
};
use millrace_proto::message::{Entry, Kind, Range, StatRequest};
use millrace_proto::{FileId, Status, frame, placement};
use smallvec::smallvec;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::config::ClientConfig;
use crate::connection::{Body, Landing, Lane, Reply};
use crate::control::status_reply;
use crate::error::Error;
use crate::file::{File, NodeStatus};
use crate::read::{self, Miss, Piece};
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

/// Another node. It lives on the tokio runtime it was made on, and connects when it is asked for
/// something.
#[derive(Debug)]
pub struct Peer {
    /// One for each shard.
    lanes: Vec<Lane>,
    block_size: u32,
}

impl Peer {
    /// A node with these addresses of its shards, `host:port` in shard order, and this size of blocks
    /// in bytes.
    ///
    /// # Panics
    /// Without an address, or outside a tokio runtime.
    pub fn new(shards: &[String], block_size: u32) -> Peer {
        assert!(!shards.is_empty(), "a node has a shard");
        let config =
            ClientConfig { connect_timeout: CONNECT_TIMEOUT, local: false, ..ClientConfig::new() };
        let config = Arc::new(config);
        let lanes = shards.iter().map(|address| {
            let addresses = smallvec![address.as_str().into()];
            Lane::start(addresses, None, config.clone(), &Handle::current())
        });
        Peer { lanes: lanes.collect(), block_size }
    }

    /// The bytes of a block, if the node has it in its cache in this version. They match the checksums
    /// that the node made when it read them.
    ///
    /// # Errors
    /// If there is no answer within `patience`, or not one that can be used.
    pub async fn peek(&self, block: PeerBlock, patience: Duration) -> Result<Option<Bytes>, Error> {
        match self.ask(Body::Peek, block, Instant::now() + patience).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::Status { status: Status::NotCached, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The bytes of a block of the file at `path`, which the node reads from the source if it has to.
    ///
    /// # Errors
    /// As [`Peer::peek`].
    pub async fn fetch(
        &self,
        block: PeerBlock,
        path: &str,
        patience: Duration,
    ) -> Result<Bytes, Error> {
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

    /// Asks the shard that a block belongs to for all of it.
    async fn ask(
        &self,
        body: impl Fn(Range) -> Body,
        block: PeerBlock,
        deadline: Instant,
    ) -> Result<Bytes, Error> {
        let offset = u64::from(block.block) * u64::from(self.block_size);
        let entry = Entry {
            name: String::new(),
            kind: Kind::File,
            id: block.file,
            version: block.version,
            length: offset + u64::from(block.length),
            modified_ms: 0,
        };
        let file = File::new("".into(), &entry, self.block_size);
        let piece = Piece { offset, length: block.length, block_size: self.block_size };
        let hash = placement::block_hash(block.file, u64::from(block.block));
        let shard = placement::shard_of(hash, self.lanes.len() as u32);
        let lane = &self.lanes[shard as usize];
        let answer = lane.exchange(body(piece.range(&file)), Landing::Any, deadline).await?;
        let (landed, miss) = read::judge(&file, piece, answer, true);
        match miss {
            None => Ok(read::into_bytes(landed)),
            Some(Miss::Damaged(offset)) => Err(Error::Corrupt { path: file.path, offset }),
            Some(Miss::Setback(setback)) => Err(setback.into_error()),
        }
    }

    /// The counters of the node.
    ///
    /// # Errors
    /// As [`Peer::peek`].
    pub async fn status(&self, patience: Duration) -> Result<NodeStatus, Error> {
        let deadline = Instant::now() + patience;
        let answer = self.lanes[0].exchange(Body::Status, Landing::Any, deadline).await?;
        status_reply(&reply::judge(answer.outcome).map_err(Setback::into_error)?)
    }

    /// Blocks of the node that the member with this key should have; see `Inventory` in PROTOCOL.md.
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
