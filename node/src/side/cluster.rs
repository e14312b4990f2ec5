//! The side thread's part in the cluster: where blocks are taken from, and what is pulled over.

use std::sync::Arc;
use std::time::Duration;

use millrace_client::peer::Peer;
use millrace_proto::Status;
use millrace_proto::cluster::{InventoryFile, Member};
use millrace_proto::frame;
use tokio::task::JoinSet;

use super::{Answer, Context, FillJob, encode};
use crate::cache::BlockKey;
use crate::cluster::handover::Puller;
use crate::cluster::peers::Wanted;
use crate::cluster::{Command, View};
use crate::connection::reply_header;
use crate::files::FileRecord;
use crate::mailbox::{Ensured, Filling, Requester};
use crate::memory::Blank;
use crate::store::StoreError;

impl Context {
    /// The node's milliseconds.
    pub(super) fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Time that is left of a request's budget.
    pub(super) fn budget(&self, requester: &Requester) -> Option<Duration> {
        let end = Duration::from_millis(requester.deadline?);
        Some(end.saturating_sub(self.started.elapsed()))
    }

    pub(super) async fn inventory(&self, requester: &Requester, what: (u64, u64, u64)) -> Answer {
        let reply = self.cluster.inventory(&self.shards, &self.files, what).await?;
        Ok(encode(requester, &reply))
    }

    pub(super) async fn command(&self, requester: &Requester, command: Command) -> Answer {
        self.cluster.command(command).await?;
        let mut bytes = Vec::new();
        frame::encode_empty(&mut bytes, reply_header(&requester.header, 0, Status::Ok));
        Ok(bytes)
    }

    /// Brings the bytes of a block: from a node that has it, where that is likely, else from the
    /// source.
    pub(super) async fn fill(&self, job: FillJob) -> (Blank, Result<Filling, StoreError>) {
        let FillJob { key, version, path, offset, mut blank, by_a_node, .. } = job;
        if self.store.identify(&path) != key.file {
            // Something else is mounted there now.
            return (blank, Err(StoreError::Changed));
        }
        let view = self.cluster.view();
        let replicas = view.replicas(&path);
        let others_may_have_it = view.members.len() > 1
            && !by_a_node
            && (replicas > 1
                || self.progress.asks_holders(self.now_ms())
                || !view.owns_itself(&key, replicas));
        if others_may_have_it {
            let wanted = Wanted { key, version, path: &path, replicas };
            if self.peers.fill(&view, wanted, &mut blank).await {
                return (blank, Ok(Filling::Peer));
            }
        }
        let (blank, result) = self.store.fill(path, version, offset, blank).await;
        (blank, result.map(|()| Filling::Source))
    }
}

impl Puller for Arc<Context> {
    fn view(&self) -> Arc<View> {
        self.cluster.view()
    }

    fn peer(&self, member: &Member) -> Option<Arc<Peer>> {
        self.peers.keep(&self.cluster.view());
        self.peers.get(member)
    }

    fn note(&self, file: &InventoryFile) -> bool {
        if self.store.identify(&file.path) != file.id {
            return false;
        }
        match self.files.get(file.id) {
            Some(record) => record.version == file.version,
            None => {
                let (path, version) = (file.path.as_str().into(), file.version);
                let record = FileRecord { path, version, length: file.length };
                // Nothing was known, so nothing is replaced.
                self.files.note(file.id, record);
                true
            }
        }
    }

    async fn bring(&self, blocks: Vec<(BlockKey, u64)>) -> Vec<u64> {
        let mut tasks = JoinSet::new();
        for (key, version) in blocks {
            tasks.spawn(Arc::clone(self).ensure(key, version, None));
        }
        let mut lengths = Vec::new();
        while let Some(brought) = tasks.join_next().await {
            lengths.push(match brought {
                Ok(Ok(Ensured::Filled(Filling::Peer, length))) => u64::from(length),
                _ => 0,
            });
        }
        lengths
    }

    fn now_ms(&self) -> u64 {
        Context::now_ms(self)
    }
}
