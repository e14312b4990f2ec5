//! Loads: every block of a file brought in, a window of blocks at a time.
//!
//! Always holds: a load ends with the client that asked for it. A load takes as long as the source does,
//! so it ends as soon as the client sends no more: its end may be hours away, and no message comes from
//! a client that is gone.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use millrace_proto::message::LoadReply;
use millrace_proto::{Status, placement};

use super::lookups::Caller;
use super::{Answer, Context, Failure, encode};
use crate::cache::BlockKey;
use crate::mailbox::{Ensured, FillFrom, Filling, Mail};

/// Blocks of one file that a load has under way. Guessed: with 64 loads at once still within the
/// default fill queue.
const LOAD_WINDOW: usize = 8;
/// How long a load waits when a shard is busy, before it asks again.
const LOAD_RETRY: Duration = Duration::from_millis(5);

impl Context {
    /// Brings every block of a file that this node owns into memory, a window of blocks at a time, for
    /// as long as the client is there.
    pub(super) async fn load(self: &Arc<Self>, caller: Caller<'_>, path: Arc<str>) -> Answer {
        let answer = tokio::select! {
            answer = self.load_whole(caller, path) => return answer,
            // A client that sends no more may be gone for good: nothing else shows that it is.
            () = caller.ticket.ended() => {
                let message = "the client has ended its side of the connection, and the load with it";
                Err(Failure::new(Status::DeadlineExceeded, message))
            }
        };
        // Fills that have not begun yet need not begin.
        for shard in self.shards.iter() {
            shard.post_when_room(Mail::LoadsGone).await;
        }
        answer
    }

    async fn load_whole(self: &Arc<Self>, caller: Caller<'_>, path: Arc<str>) -> Answer {
        let view = self.cluster.view();
        view.check_agreement()?;
        let entry = self.look_up_file(caller, &path).await?;
        if self.store.kept_for(&path).is_zero() {
            let message =
                "what is mounted there is not kept (--cache no), so that there is nothing to load";
            return Err(Failure::new(Status::InvalidArgument, message));
        }
        let replicas = view.layout.replicas(&path);
        let blocks = 0..entry.length.div_ceil(u64::from(self.block_size)) as u32;
        let (file, version, deadline) = (entry.id, entry.version, caller.requester.deadline);
        let loads = blocks
            .map(|block| BlockKey { file, block })
            .filter(|key| view.owns_itself(key, replicas))
            .map(|key| Arc::clone(self).ensure(key, version, FillFrom::Anywhere, deadline));
        let mut loads = stream::iter(loads).buffer_unordered(LOAD_WINDOW);
        let (mut block_count, mut filled_count) = (0, 0);
        while let Some(ensured) = loads.next().await {
            block_count += 1;
            filled_count += u64::from(matches!(ensured?, Ensured::Filled(Filling::Source, _)));
        }
        Ok(encode(caller.requester, &LoadReply { entry, block_count, filled_count }))
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
