//! Fills: a cold read, from the queue to the mailbox of the shard that waits.
//!
//! Always holds: the blank of every job that was taken goes back to its shard, as a block or as it came;
//! no job waits for another one here, so that a source that hangs stops its own fills alone, and a fill
//! that takes its block from another node waits for no source. The waiters learn of a source that has
//! not answered for long, though the blank comes back only when it has.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::{Context, FillJob};
use crate::cluster::peers::Wanted;
use crate::mailbox::{Arrival, FillFrom, Filling, Mail, Run, Stay};
use crate::memory::Blank;
use crate::store::{Errand, FillError, Part, StoreError};

/// How often a fill that waits is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often a file that settles is looked at. Guessed: four times in the usual time.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Longest wait for such a look. Guessed: well beyond what a source takes that is only busy.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);
/// Ticks of the kernel's clock that are waited for, until a change of a file would show. Guessed: one is enough.
const TICKS_MAX: u32 = 20;

/// Serves fills, each in a task of its own. Readers of the source are shared out where it is known which
/// source that is; at most `others_max` wait for other nodes, and further ones go to the source.
pub(super) async fn serve(
    context: Arc<Context>,
    jobs: flume::Receiver<FillJob>,
    others_max: usize,
) {
    let others = Arc::new(Semaphore::new(others_max));
    while let Ok(job) = jobs.recv_async().await {
        let (context, others) = (Arc::clone(&context), Arc::clone(&others));
        tokio::spawn(async move { context.serve_fill(job, &others).await });
    }
}

impl Context {
    async fn serve_fill(&self, job: FillJob, others: &Semaphore) {
        let (shard, run) = (job.shard, job.run);
        let Run { key, version, .. } = run;
        let (path, errand) = (Arc::clone(&job.path), Arc::clone(&job.errand));
        let under_way = self.timings.begin_fill();
        let mut fill = pin!(self.fill(job, others));
        let (blank, result) = tokio::select! {
            done = &mut fill => {
                self.fill_count.fetch_sub(1, Ordering::Relaxed);
                done
            }
            () = self.overdue(&errand) => {
                self.fill_count.fetch_sub(1, Ordering::Relaxed);
                let ms = self.patience.as_millis();
                let message = format!("the source does not answer (source_timeout_ms = {ms})");
                let mail = Mail::Overdue { run, message };
                self.shards[shard as usize].post_when_room(mail).await;
                fill.await
            }
        };
        drop(under_way);
        let mut is_fleeting = false;
        let result = match result {
            Ok(FilledBlank { filling, is_fleeting: fleets }) => {
                is_fleeting = fleets;
                let (block, sums) = blank.freeze();
                Ok(Arrival { block, sums, filling })
            }
            Err(error) => Err((blank, error)),
        };
        match &result {
            Err((_, FillError::Store(error))) if error.is_version_gone() => {
                self.forget(key.file, version).await;
            }
            Err((_, FillError::Store(StoreError::Remounted))) => {
                // The same file may be mounted elsewhere, too: what is in memory of it stays.
                self.files.forget(key.file);
            }
            _ => (),
        }
        // This is judged last, and nothing is awaited before it is in the mailbox's line: a pass that
        // looks at all blocks because the pins have changed since comes after it, and sees this one.
        let kept_for = self.store.kept_for(&path);
        let stay = match self.cluster.view().pins(&path, &key) {
            _ if is_fleeting || kept_for.is_zero() => Stay::Passing,
            true => Stay::Pinned,
            false => Stay::Usual,
        };
        let is_here = result.is_ok();
        let mail = Mail::Filled { run, stay, result };
        self.shards[shard as usize].post_when_room(mail).await;
        if is_here && stay != Stay::Passing {
            // After the block, so that a drop that goes by meanwhile is followed by another one.
            self.count_down(key.file, kept_for).await;
        }
    }

    /// Waits until the source has been read for longer than it may take.
    async fn overdue(&self, errand: &Errand) {
        loop {
            // While it has not begun it may begin, with less time for it.
            let end = errand.overdue_at();
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            match left {
                Some(left) if left.is_zero() => return,
                left => sleep(left.unwrap_or(LOOK)).await,
            }
        }
    }

    /// True if other nodes are asked for a block before the source is, if that is asked at all.
    fn asks_others(&self, job: &FillJob) -> bool {
        let view = self.cluster.view();
        let replicas = view.layout.replicas(&job.path);
        match job.from {
            FillFrom::Source => false,
            FillFrom::Member(_) => true,
            FillFrom::Anywhere => {
                view.layout.members.len() > 1
                    && (replicas > 1
                        || self.progress.asks_holders(self.now_ms())
                        || !view.owns_itself(&job.run.key, replicas))
            }
        }
    }

    /// Brings the bytes of a block: from a node that has it, if that is likely, else from the source.
    /// Urgent fills do not wait for other nodes any longer.
    async fn fill(
        &self,
        job: FillJob,
        others: &Semaphore,
    ) -> (Blank, Result<FilledBlank, FillError>) {
        let asks_others = self.asks_others(&job);
        if asks_others && !job.run.is_whole() {
            return (job.blank, Err(FillError::IsShared));
        }
        let slot = if asks_others { others.try_acquire().ok() } else { None };
        let FillJob { run, path, offset, mut blank, from, errand, .. } = job;
        let Run { key, version, .. } = run;
        if self.store.identify(&path) != key.file {
            return (blank, Err(StoreError::Remounted.into()));
        }
        let (file, for_part) = (key.file, Arc::clone(&path));
        let part = Part { file, path: for_part, version, offset, is_settled: false };
        let view = self.cluster.view();
        match (&from, &slot) {
            (FillFrom::Member(id), Some(_)) => {
                let member = view.layout.member(id);
                let pull = async {
                    match member {
                        Some(member) => self.peers.pull(member, key, version, &mut blank).await,
                        None => false,
                    }
                };
                let is_here = tokio::select! {
                    is_here = pull => Some(is_here),
                    () = errand.urged() => None,
                };
                match is_here {
                    Some(true) => {
                        let result =
                            self.store.compare(&part, &blank).map(|()| FilledBlank::FROM_PEER);
                        return (blank, result.map_err(FillError::from));
                    }
                    Some(false) => return (blank, Err(FillError::NotThere)),
                    None => (),
                }
            }
            // Only this member was to give it, so the fill neither waits nor reads the source.
            (FillFrom::Member(_), None) => return (blank, Err(FillError::NotThere)),
            (_, Some(_)) => {
                let replicas = view.layout.replicas(&path);
                let wanted = Wanted { key, version, path: &path, replicas };
                let is_here = tokio::select! {
                    is_here = self.peers.fill(&view, wanted, &mut blank) => is_here,
                    () = errand.urged() => false,
                };
                if is_here {
                    let result = self.store.compare(&part, &blank).map(|()| FilledBlank::FROM_PEER);
                    return (blank, result.map_err(FillError::from));
                }
            }
            (_, None) => (),
        }
        drop(slot);
        if run.is_whole() {
            self.peers.sign(key, version, &mut blank);
        }
        self.read_source(part, blank, &errand).await
    }

    /// Reads a part of a file from the source. While its file settles the fill is not one of the readers: a file that
    /// keeps changing takes no reader from others. If it changes before it has settled, those that wait get what was
    /// read of it in the version that they asked for.
    async fn read_source(
        &self,
        mut part: Part,
        mut blank: Blank,
        errand: &Arc<Errand>,
    ) -> (Blank, Result<FilledBlank, FillError>) {
        let mut ticks_left = TICKS_MAX;
        loop {
            let (back, result) = self.store.fill(part.clone(), blank, Arc::clone(errand)).await;
            blank = back;
            // A file that settles, or changed this very moment, was only looked at.
            match result {
                Err(FillError::Store(StoreError::NotShowing(time))) if ticks_left > 0 => {
                    ticks_left -= 1;
                    errand.rest();
                    sleep(time).await;
                }
                Err(FillError::Store(StoreError::Settling(time))) => {
                    let Ok(_place) = self.settling.try_acquire() else {
                        return (blank, Err(StoreError::Settling(time).into()));
                    };
                    errand.rest();
                    sleep(time).await;
                    part.is_settled = true;
                }
                Err(FillError::Store(StoreError::Fresh(time))) => {
                    self.time_read(errand);
                    errand.rest();
                    if !self.settles(&part, time).await {
                        return (blank, Ok(FilledBlank::from_source(true)));
                    }
                    blank.empty();
                    part.is_settled = true;
                }
                result => {
                    self.time_read(errand);
                    return (blank, result.map(|()| FilledBlank::from_source(false)));
                }
            }
        }
    }

    /// True if a file is left alone for as long as it has to be, which is waited for. False as soon as it has another
    /// version or cannot be looked at, and where too many files are waited for.
    async fn settles(&self, part: &Part, time: Duration) -> bool {
        let Ok(_place) = self.settling.try_acquire() else { return false };
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            sleep(left.min(LOOK_AGAIN)).await;
            if self.files.get(part.file).is_some_and(|known| known.version != part.version) {
                return false;
            }
            // Where the source does not answer any more, those that wait get what is here.
            let found = timeout(LOOK_TIMEOUT, self.store.stat(Arc::clone(&part.path))).await;
            let is_gone = match found {
                Ok(Ok(found)) => found.version != part.version,
                Ok(Err(_)) | Err(_) => true,
            };
            if is_gone {
                return false;
            }
        }
    }

    fn time_read(&self, errand: &Errand) {
        if let Some(since) = errand.reading_since() {
            self.timings.source.record(since.elapsed());
        }
    }
}

/// Bytes that were brought in.
struct FilledBlank {
    filling: Filling,
    /// True if their file changed before it had settled, so that they are for those alone that wait for them.
    is_fleeting: bool,
}

impl FilledBlank {
    const FROM_PEER: FilledBlank = FilledBlank { filling: Filling::Peer, is_fleeting: false };

    fn from_source(is_fleeting: bool) -> FilledBlank {
        FilledBlank { filling: Filling::Source, is_fleeting }
    }
}
