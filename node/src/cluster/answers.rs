//! What clients and other nodes learn of the cluster.

use std::sync::Arc;
use std::time::Duration;

use millrace_proto::Status;
use millrace_proto::cluster::{
    InventoryFile, InventoryReply, InventoryRequest, Mount, PAGE_BYTES_MAX, PinsReply, RingReply,
};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::job::{JobCommand, JobRecord};
use super::master::Command;
use super::record::size_of_member;
use super::refusal::Refusal;
use super::session::Request;
use super::{View, Views};
use crate::cache::{Listed, Listing};
use crate::files::FileTable;
use crate::mailbox::{Mail, Mailboxes};

/// Clients that may wait for the next epoch at once; further ones are answered at once.
const WAITERS_MAX: usize = 16_384;
/// Longest wait without a budget.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// How long before its budget ends a client that waits is answered.
const WAIT_MARGIN: Duration = Duration::from_millis(200);
/// Bytes of an archived file of an inventory without its path and blocks.
const FILE_SIZE: usize = 64;
/// Entries of a shard that are looked at for one page of an inventory.
const ENTRIES_PER_PAGE: u32 = 4096;
/// How often entries are looked at for one page, whatever is found: a page takes a bounded time.
const LISTINGS_PER_PAGE: u32 = 16;
/// After some entries were looked at an inventory rests for this many times as long as that took. So it
/// takes a sixteenth of the time at most, however fast its pages are asked for.
const REST_FACTOR: u32 = 15;
/// Longest such rest. Derived: a page has 16 of them, and is waited for for 5 s.
const REST_MAX: Duration = Duration::from_millis(100);
/// Bits of a cursor for the place in a shard.
const PLACE_BITS: u32 = 40;

/// The cluster as the side thread asks it.
pub(crate) struct Cluster {
    pub(crate) views: Arc<Views>,
    requests: Option<flume::Sender<Request>>,
    waiters: Arc<Semaphore>,
    /// Notified after this node, as the master, has begun or ended a job.
    pub(crate) jobs_changed: Notify,
}

impl Cluster {
    /// Makes it with the way to the master's work; None outside a cluster.
    pub(crate) fn new(views: Arc<Views>, requests: Option<flume::Sender<Request>>) -> Cluster {
        let waiters = Arc::new(Semaphore::new(WAITERS_MAX));
        Cluster { views, requests, waiters, jobs_changed: Notify::new() }
    }

    /// Returns the view as it is now.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.views.borrow())
    }

    /// Returns a page of the ring. With `wait` it waits until the epoch is another one, or the node is
    /// cut off or no longer, or the budget ends.
    pub(crate) async fn ring(
        &self,
        epoch: u64,
        first: u32,
        wait: bool,
        budget: Option<Duration>,
    ) -> RingReply {
        if wait && let Ok(_slot) = self.waiters.try_acquire() {
            let mut receiver = self.views.subscribe();
            let was_fenced = receiver.borrow().is_fenced;
            let wait = budget.map_or(WAIT_MAX, |it| it.saturating_sub(WAIT_MARGIN)).min(WAIT_MAX);
            let end = Instant::now() + wait;
            let is_news = |view: &Arc<View>| {
                view.layout.epoch != epoch || view.is_fenced != was_fenced || view.is_over
            };
            // At the end of the wait the same epoch is the answer.
            let _ = timeout_at(end, receiver.wait_for(is_news)).await;
        }
        page(&self.view(), first)
    }

    /// Has the master do something, if that is this node.
    pub(crate) async fn command(&self, command: Command) -> Result<(), Refusal> {
        let is_of_job =
            matches!(&command, Command::Job(it) if !matches!(it, JobCommand::Record(_)));
        let done = self.ask(|reply| Request::Command { command, reply }).await;
        if is_of_job && done.is_ok() {
            self.jobs_changed.notify_one();
        }
        done
    }

    /// Returns the load jobs of the cluster, in their order.
    pub(crate) async fn jobs(&self) -> Result<Vec<JobRecord>, Refusal> {
        self.ask(|reply| Request::Jobs { reply }).await
    }

    /// Asks the task that keeps the node in its cluster.
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Request,
    ) -> Result<T, Refusal> {
        let gone = || Refusal::new(Status::ShuttingDown, "the node is shutting down");
        let Some(requests) = &self.requests else {
            let message = "this node is in no cluster: start it with --coord";
            return Err(Refusal::new(Status::InvalidArgument, message));
        };
        let (reply, answer) = oneshot::channel();
        if requests.send_async(request(reply)).await.is_err() {
            return Err(gone());
        }
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Returns what is pinned.
    pub(crate) fn pins(&self) -> PinsReply {
        PinsReply { pins: self.view().pins.clone() }
    }

    /// Returns the blocks of this node that the member with this key should own, among those of one page
    /// of entries.
    pub(crate) async fn inventory(
        &self,
        shards: &Mailboxes,
        files: &FileTable,
        request: InventoryRequest,
    ) -> Result<InventoryReply, Refusal> {
        let InventoryRequest { key, epoch, cursor } = request;
        let view = self.view();
        if view.layout.epoch < epoch {
            let message = "this node has not seen that epoch yet: try again";
            return Err(Refusal::new(Status::Busy, message));
        }
        let (mut shard, mut place) = match cursor {
            0 => (0, 0),
            cursor => (cursor >> PLACE_BITS, cursor & ((1 << PLACE_BITS) - 1)),
        };
        let mut reply = InventoryReply { next: 0, files: Vec::new() };
        let mut size = 0;
        for looked_at in 0.. {
            if shard as usize >= shards.len() {
                break;
            }
            if looked_at == LISTINGS_PER_PAGE {
                // The member goes on from here, also if nothing was found so far.
                reply.next = (shard << PLACE_BITS | place).max(1);
                break;
            }
            let asked_at = Instant::now();
            let (sender, receiver) = flume::bounded(1);
            let mail =
                Mail::Enumerate { first: place as u32, count: ENTRIES_PER_PAGE, reply: sender };
            shards[shard as usize].post_when_room(mail).await;
            let Ok(Listing { blocks, next }) = receiver.recv_async().await else {
                return Err(Refusal::new(Status::ShuttingDown, "the node is shutting down"));
            };
            let rest = collect(&mut reply, &mut size, &view, files, key, &blocks);
            sleep((asked_at.elapsed() * REST_FACTOR).min(REST_MAX)).await;
            if let Some(rest) = rest {
                // Never 0: that would be the first page again.
                reply.next = (shard << PLACE_BITS | u64::from(rest)).max(1);
                break;
            }
            match next {
                Some(next) => place = u64::from(next),
                None => (shard, place) = (shard + 1, 0),
            }
        }
        Ok(reply)
    }
}

/// Adds the blocks that a member should own until the page is full; then returns the entry to go on
/// from.
fn collect(
    reply: &mut InventoryReply,
    size: &mut usize,
    view: &View,
    files: &FileTable,
    key: u64,
    blocks: &[Listed],
) -> Option<u32> {
    for Listed { entry, key: block, version, .. } in blocks.iter().filter(|it| it.is_whole) {
        let known = reply.files.iter_mut().rev().take(8);
        let mut known = known.filter(|it| it.id == block.file && it.version == *version);
        if let Some(file) = known.next() {
            if view.owns(key, block, view.layout.replicas(&file.path)) {
                if *size + size_of::<u32>() > PAGE_BYTES_MAX {
                    return Some(entry.number());
                }
                file.blocks.push(block.block);
                *size += size_of::<u32>();
            }
            continue;
        }
        let Some(record) = files.get(block.file).filter(|record| record.version == *version) else {
            // The block was forgotten, or is about to be dropped.
            continue;
        };
        if !view.owns(key, block, view.layout.replicas(&record.path)) {
            continue;
        }
        let more = FILE_SIZE + record.path.len();
        if *size > 0 && *size + more > PAGE_BYTES_MAX {
            return Some(entry.number());
        }
        *size += more;
        reply.files.push(InventoryFile {
            id: block.file,
            version: *version,
            length: record.length,
            path: record.path.to_string(),
            blocks: vec![block.block],
        });
    }
    None
}

/// Returns the members from number `first` on, as many as fit.
fn page(view: &View, first: u32) -> RingReply {
    let mut size = 0;
    let members = view.layout.members.iter().skip(first as usize).take_while(|member| {
        size += size_of_member(member);
        size <= PAGE_BYTES_MAX || size == size_of_member(member)
    });
    let members = members.cloned().collect();
    let mounts: Vec<Mount> = if first == 0 { view.layout.mounts.clone() } else { Vec::new() };
    RingReply {
        cluster: view.layout.cluster.clone(),
        epoch: view.layout.epoch,
        node: view.me.clone(),
        master: view.master.clone(),
        is_fenced: u8::from(view.is_fenced),
        mounts,
        member_count: view.layout.members.len() as u32,
        members,
    }
}

#[cfg(test)]
mod tests {
    use millrace_proto::cluster::Member;
    use millrace_proto::layout::Layout;

    use super::*;
    use crate::cluster::record::key_of;

    fn member(index: usize) -> Member {
        let id = format!("node-{index:05}");
        Member {
            key: key_of(&id),
            id,
            weight: 64,
            zone: String::new(),
            state: 1,
            address: "10.0.0.1:7070".into(),
            shards: (0..8).map(|shard| format!("10.0.0.1:{}", 7071 + shard)).collect(),
            local: Vec::new(),
            machine: String::new(),
            run: 1,
            capacity: 1 << 30,
            server: "millrace/0".into(),
        }
    }

    #[test]
    fn pages_tell_every_member_once_and_fit_a_body() {
        let members: Vec<_> = (0..1000).map(member).collect();
        let view =
            View::new(Layout::new("c".to_owned(), 7, Vec::new(), members.clone()), "node-00001");
        let mut found = Vec::new();
        while found.len() < members.len() {
            let reply = page(&view, found.len() as u32);
            assert_eq!((reply.epoch, reply.member_count), (7, 1000));
            assert!(!reply.members.is_empty());
            let mut frame = Vec::new();
            let header = millrace_proto::Header::request(millrace_proto::Op::Ring, 1, 0);
            millrace_proto::frame::encode(&mut frame, header, &reply);
            assert!(frame.len() < 48 << 10, "{}", frame.len());
            found.extend(reply.members);
        }
        assert_eq!(found, members);
        assert!(page(&view, 1000).members.is_empty());
    }
}
