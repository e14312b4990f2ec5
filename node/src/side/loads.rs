//! Loads: every block of a file brought in, a window of blocks at a time.
//!
//! Always holds: a load ends with the client that asked for it. A load takes as long as the source does,
//! so it ends as soon as the client sends no more: its end may be hours away, and no message comes from
//! a client that is gone.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use millrace_proto::job::{LOAD_PART_BLOCKS_MAX, LoadPartReply};
use millrace_proto::message::LoadReply;
use millrace_proto::{FileId, Status, placement};

use super::lookups::Caller;
use super::{Answer, Context, Failure, encode};
use crate::cache::BlockKey;
use crate::mailbox::{Ensured, FillFrom, Filling, Mail};

/// Blocks of one file that a load has under way. Guessed: with 64 loads at once still within the
/// default fill queue.
const LOAD_WINDOW: usize = 8;
/// How long a load waits when a shard is busy, before it asks again.
const LOAD_RETRY: Duration = Duration::from_millis(5);

/// Some blocks of one version of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilePart {
    pub path: Arc<str>,
    pub file: FileId,
    pub version: u64,
    pub blocks: Range<u32>,
    /// How many owners of each block are meant, the first ones; 0 for all.
    pub copies: u8,
    /// The member that has the blocks: they are taken from there, and from nowhere else.
    pub holder: Option<Arc<str>>,
}

impl FilePart {
    /// Checks the numbers of a request.
    fn check(&self) -> Result<(), Failure> {
        let is_right =
            !self.blocks.is_empty() && self.blocks.len() <= LOAD_PART_BLOCKS_MAX as usize;
        if is_right {
            return Ok(());
        }
        let message = format!("a part of a file has 1 to {LOAD_PART_BLOCKS_MAX} blocks");
        Err(Failure { status: Status::InvalidArgument, message })
    }
}

impl Context {
    /// Brings every block of a file that this node owns into memory, a window of blocks at a time, for
    /// as long as the client is there.
    pub(super) async fn load(
        self: &Arc<Self>,
        caller: Caller<'_>,
        path: Arc<str>,
        copies: u8,
    ) -> Answer {
        self.while_asked(caller, self.load_whole(caller, path, copies)).await
    }

    /// As [`Context::load`], a part of a file.
    pub(super) async fn load_part(self: &Arc<Self>, caller: Caller<'_>, part: FilePart) -> Answer {
        let load = async {
            part.check()?;
            let loaded = self.load_own(&part, caller.requester.deadline).await?;
            Ok(encode(caller.requester, &loaded))
        };
        self.while_asked(caller, load).await
    }

    /// Loads for as long as the client is there.
    async fn while_asked(&self, caller: Caller<'_>, load: impl Future<Output = Answer>) -> Answer {
        let answer = tokio::select! {
            answer = load => return answer,
            // A client that sends no more may be gone for good: nothing else shows that it is.
            () = caller.ticket.ended() => {
                let message = "the client has ended its side of the connection, and the load with it";
                Err(Failure::new(Status::DeadlineExceeded, message))
            }
        };
        self.forget_loads().await;
        answer
    }

    /// Has fills that were for loads that have ended, and have not begun yet, not begin.
    pub(super) async fn forget_loads(&self) {
        for shard in self.shards.iter() {
            shard.post_when_room(Mail::LoadsGone).await;
        }
    }

    async fn load_whole(
        self: &Arc<Self>,
        caller: Caller<'_>,
        path: Arc<str>,
        copies: u8,
    ) -> Answer {
        let view = self.cluster.view();
        view.check_agreement()?;
        let entry = self.look_up_file(caller, &path).await?;
        self.check_kept(&path)?;
        let blocks = 0..entry.length.div_ceil(u64::from(self.block_size)) as u32;
        let (file, version) = (entry.id, entry.version);
        let part = FilePart { path, file, version, blocks, copies, holder: None };
        let (block_count, filled_count, _) =
            self.ensure_own(&part, caller.requester.deadline).await?;
        Ok(encode(caller.requester, &LoadReply { entry, block_count, filled_count }))
    }

    /// Checks that what is loaded of a path would stay in memory.
    fn check_kept(&self, path: &str) -> Result<(), Failure> {
        if !self.store.kept_for(path).is_zero() {
            return Ok(());
        }
        let message =
            "what is mounted there is not kept (--cache no), so that there is nothing to load";
        Err(Failure::new(Status::InvalidArgument, message))
    }

    /// Brings the blocks of a part of a file that this node owns into memory.
    pub(super) async fn load_own(
        self: &Arc<Self>,
        part: &FilePart,
        deadline: Option<u64>,
    ) -> Result<LoadPartReply, Failure> {
        self.cluster.view().check_agreement()?;
        if self.store.identify(&part.path) != part.file {
            let message = "another source is mounted there, or this node has not seen it yet";
            return Err(Failure::new(Status::UnknownFile, message));
        }
        if self.files.get(part.file).is_none_or(|known| known.version != part.version) {
            let entry = self.see_now(&part.path).await?;
            if entry.version != part.version {
                let message = "the file is in another version";
                return Err(Failure::new(Status::StaleVersion, message));
            }
        }
        self.check_kept(&part.path)?;
        let (block_count, filled_count, filled_bytes) = self.ensure_own(part, deadline).await?;
        // A part has few blocks.
        let (block_count, filled_count) = (block_count as u32, filled_count as u32);
        Ok(LoadPartReply { block_count, filled_count, filled_bytes })
    }

    /// Has the blocks of a part of a file that this node owns in memory; returns how many of them are there, and how
    /// many blocks and bytes had to be read from the source.
    async fn ensure_own(
        self: &Arc<Self>,
        part: &FilePart,
        deadline: Option<u64>,
    ) -> Result<(u64, u64, u64), Failure> {
        let view = self.cluster.view();
        let copies = view.copies(&part.path, part.copies)?;
        let from = part.holder.clone().map_or(FillFrom::Anywhere, FillFrom::Member);
        let loads = part
            .blocks
            .clone()
            .map(|block| BlockKey { file: part.file, block })
            .filter(|key| view.owns_itself(key, copies))
            .map(|key| Arc::clone(self).ensure(key, part.version, from.clone(), deadline));
        let mut loads = stream::iter(loads).buffer_unordered(LOAD_WINDOW);
        let (mut block_count, mut filled_count, mut filled_bytes) = (0, 0, 0);
        while let Some(ensured) = loads.next().await {
            let ensured = ensured?;
            block_count += u64::from(ensured != Ensured::NotThere);
            if let Ensured::Filled(Filling::Source, length) = ensured {
                filled_count += 1;
                filled_bytes += u64::from(length);
            }
        }
        Ok((block_count, filled_count, filled_bytes))
    }

    /// Has one block in memory; returns what had to be done for it.
    pub(super) async fn ensure(
        self: Arc<Self>,
        key: BlockKey,
        version: u64,
        from: FillFrom,
        deadline: Option<u64>,
    ) -> Result<Ensured, Failure> {
        let shard = placement::shard_of(key.hash(), self.shards.len() as u32);
        loop {
            if deadline.is_some_and(|deadline| self.started.elapsed().as_millis() as u64 > deadline)
            {
                let message = "the deadline passed before every block was loaded".to_owned();
                return Err(Failure { status: Status::DeadlineExceeded, message });
            }
            let (reply, receiver) = flume::bounded(1);
            let mail = Mail::Ensure { key, version, from: from.clone(), reply };
            self.shards[shard as usize].post_when_room(mail).await;
            match receiver.recv_async().await {
                Ok(done @ (Ensured::Resident | Ensured::Filled(..) | Ensured::NotThere)) => {
                    return Ok(done);
                }
                Ok(Ensured::Busy) => tokio::time::sleep(LOAD_RETRY).await,
                Ok(Ensured::Failed(status, message)) => return Err(Failure { status, message }),
                Err(_) => {
                    let message = "the node is shutting down".to_owned();
                    return Err(Failure { status: Status::ShuttingDown, message });
                }
            }
        }
    }
}
