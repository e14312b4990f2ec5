//! One file of a job, at all members that own blocks of it.
//!
//! Always holds: a file counts as loaded only when each owner of each of its blocks has said that the block was
//! there, all in one version, and the members were the same at the end as at the beginning.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use millrace_client::Error;
use millrace_proto::Status;
use millrace_proto::cluster::Member;
use millrace_proto::job::{
    LOAD_PART_BLOCKS_MAX, LoadPartCopiesRequest, LoadPartReply, LoadPartRequest,
};
use millrace_proto::message::{Entry, Kind};
use tokio::time::{Instant, sleep_until};

use super::patiently;
use crate::cache::BlockKey;
use crate::cluster::View;
use crate::cluster::job::Outcome;
use crate::side::loads::FilePart;
use crate::side::{Context, Failure};

/// Bytes of a file that are asked for at once at all its owners. Guessed: so much that asking costs nothing
/// beside it, and so little that a member that hangs is noticed.
const PART_BYTES: u64 = 64 << 20;
/// Parts of one file under way.
const PARTS_AT_ONCE: usize = 2;
/// Longest wait for a member that loads a part, besides the bytes.
const PART_PATIENCE: Duration = Duration::from_secs(30);
/// Rate at which a member is taken to load at the least: 1 MB/s. Guessed.
const SLOWEST_BYTES_PER_MS: u64 = 1000;
/// How often files that change meanwhile, or whose owners do, are loaded again.
const VERSION_TRIES: u32 = 5;

impl Context {
    /// Loads a file that was found in a listing a moment ago.
    ///
    /// # Errors
    /// Why not all of it could be loaded.
    pub(super) async fn load_everywhere(
        self: &Arc<Self>,
        path: &Arc<str>,
        found: Entry,
        pace: &JobPace,
        copies: u8,
    ) -> Result<Outcome, Failure> {
        let mut entry = found;
        for _ in 1..VERSION_TRIES {
            match self.load_version(path, &entry, pace, copies).await {
                Err(failure) if failure.status == Status::StaleVersion => (),
                done => return done,
            }
            entry = patiently(|| self.see_in_time(path)).await?;
            if entry.kind != Kind::File {
                return Err(Failure::new(Status::WrongKind, "it is not a file any more"));
            }
        }
        self.load_version(path, &entry, pace, copies).await
    }

    /// Loads one version of a file. `StaleVersion` also says that the owners of its blocks are others by now.
    async fn load_version(
        self: &Arc<Self>,
        path: &Arc<str>,
        entry: &Entry,
        pace: &JobPace,
        copies: u8,
    ) -> Result<Outcome, Failure> {
        let before = self.cluster.view();
        let block_size = u64::from(self.block_size);
        let (file, version) = (entry.id, entry.version);
        let parts = cut(entry.length, block_size, pace.part_bytes()).map(|blocks| {
            let bytes = bytes_of(&blocks, block_size, entry.length);
            let path = Arc::clone(path);
            let part = FilePart { path, file, version, blocks, copies, holder: None };
            async move {
                pace.wait(bytes).await;
                let part = &part;
                let loaded = patiently(|| self.load_at_owners(part, bytes)).await?;
                pace.give_back(bytes.saturating_sub(loaded.filled_bytes));
                Ok::<_, Failure>(loaded)
            }
        });
        let loaded: Vec<LoadPartReply> =
            stream::iter(parts).buffer_unordered(PARTS_AT_ONCE).try_collect().await?;
        if !has_same_owners(&before, &self.cluster.view()) {
            let message = "the owners of its blocks changed again and again while it was loaded";
            return Err(Failure::new(Status::StaleVersion, message));
        }
        Ok(Outcome::Loaded {
            bytes: entry.length,
            blocks: loaded.iter().map(|part| u64::from(part.block_count)).sum(),
            filled: loaded.iter().map(|part| u64::from(part.filled_count)).sum(),
        })
    }

    /// Has all owners of the blocks of a part bring them in.
    async fn load_at_owners(
        self: &Arc<Self>,
        part: &FilePart,
        bytes: u64,
    ) -> Result<LoadPartReply, Failure> {
        let view = self.cluster.view();
        view.check_agreement()?;
        let patience = PART_PATIENCE + Duration::from_millis(bytes / SLOWEST_BYTES_PER_MS);
        let copies = view.copies(&part.path, part.copies)?;
        let (owners, expected) = owners(&view, part, copies);
        let loads = owners.keys().map(|&index| {
            let member = &view.layout.members[index];
            let is_me = member.id == view.me;
            async move {
                match is_me {
                    true => self.load_own(part, None).await,
                    false => self.load_at(member, part, patience).await,
                }
            }
        });
        let mut loads = FuturesUnordered::from_iter(loads);
        let mut total = LoadPartReply { block_count: 0, filled_count: 0, filled_bytes: 0 };
        while let Some(loaded) = loads.next().await {
            let LoadPartReply { block_count, filled_count, filled_bytes } = loaded?;
            total.block_count += block_count;
            total.filled_count += filled_count;
            total.filled_bytes += filled_bytes;
        }
        if total.block_count != expected {
            let message = "the members do not agree yet on which of them owns its blocks";
            return Err(Failure::new(Status::Busy, message));
        }
        Ok(total)
    }

    /// Has the other owners of the blocks of a part take them over from this node. A block that one does not take is
    /// read from the source there when it is asked for.
    pub(in crate::side) async fn offer_to_owners(&self, part: FilePart) {
        let view = self.cluster.view();
        let (me, replicas) = (Arc::from(view.me.as_str()), view.layout.replicas(&part.path));
        let block_size = u64::from(self.block_size);
        let length = u64::from(part.blocks.end) * block_size;
        for blocks in cut(length, block_size, PART_BYTES) {
            let bytes = bytes_of(&blocks, block_size, length);
            let patience = PART_PATIENCE + Duration::from_millis(bytes / SLOWEST_BYTES_PER_MS);
            let part = FilePart { blocks, holder: Some(Arc::clone(&me)), ..part.clone() };
            let (owners, _) = owners(&view, &part, replicas);
            let others = owners.keys().map(|&index| &view.layout.members[index]);
            let loads = others.filter(|member| member.id != view.me);
            let mut loads: FuturesUnordered<_> =
                loads.map(|member| self.load_at(member, &part, patience)).collect();
            while let Some(loaded) = loads.next().await {
                if let Err(failure) = loaded {
                    tracing::debug!("take over blocks of '{}': {}", part.path, failure.message);
                }
            }
        }
    }

    /// Has another member bring in what it owns of a part.
    async fn load_at(
        &self,
        member: &Member,
        part: &FilePart,
        patience: Duration,
    ) -> Result<LoadPartReply, Failure> {
        let request = LoadPartRequest {
            path: part.path.to_string(),
            file: part.file,
            version: part.version,
            first: part.blocks.start,
            count: part.blocks.len() as u32,
        };
        let holder = part.holder.as_ref().map(ToString::to_string).unwrap_or_default();
        let request = LoadPartCopiesRequest { part: request, replicas: part.copies, holder };
        let Some(peer) = self.peers.get(member) else {
            let message = format!("{} did not answer a moment ago", member.id);
            return Err(Failure { status: Status::Busy, message });
        };
        let loaded = peer.load_part(request, patience).await;
        loaded.map_err(|error| failed_at(&member.id, &error))
    }
}

/// Returns what became of a request to a member.
fn failed_at(id: &str, error: &Error) -> Failure {
    let (status, message) = match error {
        Error::Status { status: Status::UnknownOp, .. } => {
            let advice = "it is of an earlier version, which takes no part in load jobs: update it";
            (Status::UnknownOp, advice.to_owned())
        }
        Error::Status { status, message } => (*status, message.clone()),
        // The member may still be at it: the blocks that came stay, so each try comes further.
        Error::DeadlineExceeded => (Status::Busy, error.to_string()),
        // The member may be gone: then others own its blocks soon.
        error => (Status::Fenced, error.to_string()),
    };
    Failure { status, message: format!("{id}: {message}") }
}

/// Returns the members that own blocks of a part, as indexes, each with how many; and how many that is together.
fn owners(view: &View, part: &FilePart, copies: usize) -> (BTreeMap<usize, u32>, u32) {
    let mut owners: BTreeMap<usize, u32> = BTreeMap::new();
    for block in part.blocks.clone() {
        for owner in view.owners(&BlockKey { file: part.file, block }, copies) {
            *owners.entry(owner).or_default() += 1;
        }
    }
    let expected = owners.values().sum();
    (owners, expected)
}

/// True if blocks have the same owners in both views, in the same runs.
fn has_same_owners(before: &View, after: &View) -> bool {
    before.layout.epoch == after.layout.epoch
        || (before.layout.members == after.layout.members
            && before.layout.mounts == after.layout.mounts)
}

/// Cuts a file of this length into runs of blocks of about `part_bytes`.
fn cut(length: u64, block_size: u64, part_bytes: u64) -> impl Iterator<Item = Range<u32>> {
    let blocks = length.div_ceil(block_size) as u32;
    let step = (part_bytes / block_size).clamp(1, LOAD_PART_BLOCKS_MAX.into()) as u32;
    (0..blocks.div_ceil(step)).map(move |part| {
        let first = part * step;
        first..blocks.min(first.saturating_add(step))
    })
}

/// Returns how many bytes of a file of this length lie in these blocks.
fn bytes_of(blocks: &Range<u32>, block_size: u64, length: u64) -> u64 {
    let end = (u64::from(blocks.end) * block_size).min(length);
    end - u64::from(blocks.start) * block_size
}

/// Keeps a mean rate of bytes.
pub(super) struct JobPace {
    /// Bytes per second; 0 for no limit.
    rate: u64,
    /// When the next bytes may come.
    next: Mutex<Instant>,
}

impl JobPace {
    pub(super) fn new(rate: u64) -> JobPace {
        JobPace { rate, next: Mutex::new(Instant::now()) }
    }

    /// Returns how many bytes are asked for at once: what comes in a second at most.
    fn part_bytes(&self) -> u64 {
        if self.rate == 0 { PART_BYTES } else { PART_BYTES.min(self.rate) }
    }

    /// Waits for the turn of these bytes. All that are waited for count, before they have come.
    async fn wait(&self, bytes: u64) {
        if self.rate == 0 {
            return;
        }
        let at = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let at = (*next).max(Instant::now());
            *next = at + self.time(bytes);
            at
        };
        sleep_until(at).await;
    }

    /// Takes back bytes that did not have to come.
    fn give_back(&self, bytes: u64) {
        if self.rate > 0 {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next = next.checked_sub(self.time(bytes)).unwrap_or(*next);
        }
    }

    fn time(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.rate as f64)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use millrace_proto::FileId;
    use millrace_proto::cluster::Mount;
    use millrace_proto::layout::Layout;
    use tokio::time::sleep;

    use super::*;
    use crate::cluster::record::key_of;

    #[test]
    fn a_file_is_cut_without_gaps() {
        let parts = |length, part_bytes| cut(length, 100, part_bytes).collect::<Vec<_>>();
        assert_eq!(parts(0, 250), []);
        assert_eq!(parts(201, 250), [0..2, 2..3]);
        assert_eq!(parts(501, 250), [0..2, 2..4, 4..6]);
        assert_eq!(parts(200, 1), [0..1, 1..2], "one block at least");
        let bytes: u64 = parts(501, 250).iter().map(|part| bytes_of(part, 100, 501)).sum();
        assert_eq!(bytes, 501);
        let all = cut(u64::from(u32::MAX) * 100, 100, u64::MAX);
        assert_eq!(all.map(|part| part.len()).sum::<usize>(), u32::MAX as usize);
    }

    fn member(id: &str) -> Member {
        Member {
            id: id.into(),
            key: key_of(id),
            weight: 64,
            zone: String::new(),
            state: 1,
            address: String::new(),
            shards: Vec::new(),
            local: Vec::new(),
            machine: String::new(),
            run: 1,
            capacity: 0,
            server: String::new(),
        }
    }

    #[test]
    fn every_owner_of_every_block_is_asked() {
        let view = |members: &[&str], replicas| {
            let mount = Mount { prefix: String::new(), source: String::new(), replicas };
            let members = members.iter().map(|id| member(id)).collect();
            View::new(Layout::new("c".to_owned(), 1, vec![mount], members), "a")
        };
        let (path, blocks) = ("x".into(), 5..105);
        let part = FilePart { path, file: FileId(1), version: 1, blocks, copies: 0, holder: None };
        let (one, expected) = owners(&view(&["a", "b", "c"], 1), &part, 1);
        assert_eq!((one.len(), expected), (3, 100));
        let three = view(&["a", "b", "c"], 2);
        let (two, expected) = owners(&three, &part, 2);
        assert_eq!((two.len(), expected), (3, 200));
        assert_eq!(owners(&three, &part, 1), (one, 100), "the first owners do not depend on more");
        let copies = |asked| three.copies("x", asked).map_err(|refusal| refusal.status);
        assert_eq!([0, 1, 2].map(copies), [Ok(2), Ok(1), Ok(2)]);
        assert_eq!(copies(3), Err(Status::InvalidArgument));
        assert_eq!(view(&["a"], 2).copies("x", 2).unwrap_err().status, Status::Busy);
        // A member counts what it owns by itself, and by the same rule.
        let view = view(&["a", "b"], 2);
        let (both, _) = owners(&view, &part, 2);
        for (index, count) in both {
            let key = view.layout.members[index].key;
            let owned = part
                .blocks
                .clone()
                .filter(|&block| view.owns(key, &BlockKey { file: part.file, block }, 2));
            assert_eq!(owned.count() as u32, count);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_takes_too_long_once_is_asked_again() {
        let count = Cell::new(0);
        let slow_at_first = || async {
            count.set(count.get() + 1);
            if count.get() > 1 {
                return Ok(count.get());
            }
            sleep(PART_PATIENCE + Duration::from_millis(PART_BYTES / SLOWEST_BYTES_PER_MS)).await;
            Err(failed_at("b", &Error::DeadlineExceeded))
        };
        assert_eq!(patiently(slow_at_first).await.ok(), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_come_at_the_rate_and_what_was_there_costs_nothing() {
        let pace = JobPace::new(1000);
        let start = Instant::now();
        let waited = async |bytes| {
            pace.wait(bytes).await;
            start.elapsed().as_millis()
        };
        assert_eq!(waited(500).await, 0);
        assert_eq!(waited(1000).await, 500);
        assert_eq!(waited(1000).await, 1500);
        pace.give_back(1000);
        assert_eq!(waited(1).await, 1500);
        assert_eq!(JobPace::new(0).part_bytes(), PART_BYTES);
        JobPace::new(0).wait(u64::MAX).await;
    }
}
