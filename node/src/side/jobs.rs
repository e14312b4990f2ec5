//! Load jobs: the master drives those of its cluster.
//!
//! ```text
//!  walk ──► files, in order ──► a window of loads ──► outcomes, in the same order ──► record
//!                                │ each part of a file at all its owners
//!                                └──► this node's shards, and other members (LoadPart)
//! ```
//!
//! Always holds: only the master drives, and its record is fenced as all that it writes; what is recorded as
//! done was done before. A driver that cannot record ends, and what is driven next begins at the record. What
//! passes by itself, such as a member that is gone or a queue that is full, is waited for, and is a failure of
//! a file only when it does not pass. Modules: `walk` finds the files, `spread` loads one at all its owners.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use millrace_proto::Status;
use millrace_proto::job::JobState;
use millrace_proto::message::Entry;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use self::spread::JobPace;
use self::walk::{Tree, TreePage, Walk, WalkStep};
use super::lookups::NOT_SERVABLE;
use super::{Context, Failure};
use crate::cluster::job::{Cursor, JobCommand, JobRecord, NamedFailure, Outcome};
use crate::cluster::{Command, View};
use crate::store::Page;

mod spread;
mod walk;

/// Jobs that are driven at once; the others wait. Guessed: a slow one does not hold up all others.
const DRIVEN_MAX: usize = 4;
/// Files that a job has under way. Guessed: a node reads its source with 16 threads unless told otherwise.
const FILES_AT_ONCE: usize = 16;
/// Files that a job has looked at, found, or loaded before one in front of them. Derived: their paths are
/// what it holds in memory.
const FILES_AHEAD: usize = 64;
/// Time between two records of a job. Guessed: what has to be looked at again after a driver has died.
const RECORD_EVERY: Duration = Duration::from_secs(1);
/// How long after something failed jobs are looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Most entries of one page of a listing.
const PAGE_MAX: usize = 1000;
/// Where a walk is that has counted the names which have no place in the order: no name is as small.
const BEFORE_ALL_NAMES: &str = "\0";
/// How long something that passes by itself is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for what only waits for its turn. Guessed: a job has time, and a file that keeps changing must not
/// hold it up for good.
const BUSY_PATIENCE: Duration = Duration::from_secs(600);
/// How often a source that fails is asked.
const SOURCE_TRIES: u32 = 3;
/// Waits before something is tried again, the shortest and the longest.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Drives the jobs of the cluster for as long as the node runs, whenever it is the master.
pub(super) async fn serve(context: Arc<Context>) {
    let mut views = context.cluster.views.subscribe();
    let mut drivers = Drivers { context, tasks: JoinSet::new(), running: HashMap::new() };
    loop {
        let looks_again = !drivers.look().await;
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            () = drivers.context.cluster.jobs_changed.notified() => (),
            Some(ended) = drivers.tasks.join_next() => {
                let is_done = match ended {
                    Ok((id, is_done)) => {
                        drivers.running.remove(&id);
                        is_done
                    }
                    // One that was ended is not looked for.
                    Err(error) => error.is_cancelled(),
                };
                if !is_done {
                    sleep(LOOK_AGAIN).await;
                }
            }
            () = sleep(LOOK_AGAIN), if looks_again => (),
        }
    }
}

/// The jobs that this node drives.
struct Drivers {
    context: Arc<Context>,
    /// Each returns the id of its job, and whether it is done.
    tasks: JoinSet<(u64, bool)>,
    running: HashMap<u64, AbortHandle>,
}

impl Drivers {
    /// True if it is known which jobs are to be driven: then no others are, and these are.
    async fn look(&mut self) -> bool {
        if !is_master(&self.context.cluster.view()) {
            self.keep(&[]).await;
            return true;
        }
        let Ok(mut jobs) = self.context.cluster.jobs().await else { return false };
        jobs.retain(|job| !job.is_ended());
        self.keep(&jobs).await;
        for job in jobs {
            let id = job.spec.id;
            if self.running.len() < DRIVEN_MAX && !self.running.contains_key(&id) {
                let context = Arc::clone(&self.context);
                let task = async move { (id, context.drive(job).await) };
                self.running.insert(id, self.tasks.spawn(task));
            }
        }
        true
    }

    /// Ends the driving of all other jobs.
    async fn keep(&mut self, jobs: &[JobRecord]) {
        // One that failed in a way that is not foreseen begins again at its record.
        self.running.retain(|_, task| !task.is_finished());
        let before = self.running.len();
        self.running.retain(|id, task| {
            let is_kept = jobs.iter().any(|job| job.spec.id == *id);
            if !is_kept {
                task.abort();
            }
            is_kept
        });
        if self.running.len() < before {
            self.context.forget_loads().await;
        }
    }
}

fn is_master(view: &View) -> bool {
    !view.me.is_empty() && view.master == view.me && view.check_agreement().is_ok()
}

impl Context {
    /// True if a job, driven from its record on, has come to its end; false if that could not be recorded,
    /// because another node drives it, or it was cancelled.
    async fn drive(self: &Arc<Self>, mut record: JobRecord) -> bool {
        let spec = Arc::new(record.spec.clone());
        record.state = JobState::Running as u8;
        record.node = self.cluster.view().me.clone();
        if !self.record(&mut record).await {
            return false;
        }
        let tree = JobTree { context: Arc::clone(self), pins: spec.pin };
        let walk = Walk::new(tree, Arc::clone(&spec), &record.cursor);
        let found = stream::unfold(walk, |mut walk| async move {
            let found = walk.next().await?;
            Some((found, walk))
        });
        // The next loads begin before the first ones have ended, and outcomes keep their order.
        let pace = Arc::new(JobPace::new(spec.bytes_per_second));
        let permits = Arc::new(Semaphore::new(FILES_AT_ONCE));
        let loads = found.map(|(step, cursor)| {
            let (context, pace) = (Arc::clone(self), Arc::clone(&pace));
            let (permits, copies) = (Arc::clone(&permits), spec.replicas);
            async move {
                let _permit = permits.acquire().await;
                (context.outcome(step, &pace, copies).await, cursor)
            }
        });
        let mut outcomes = pin!(loads.buffered(FILES_AHEAD));
        let mut ticks = interval(RECORD_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut has_news = false;
        loop {
            tokio::select! {
                next = outcomes.next() => match next {
                    Some((outcome, cursor)) => {
                        record.count(outcome, cursor);
                        has_news = true;
                    }
                    None => break,
                },
                _ = ticks.tick() => {
                    if std::mem::take(&mut has_news) && !self.record(&mut record).await {
                        return false;
                    }
                }
            }
        }
        record.cursor = Cursor { paths_done: spec.paths.len(), levels: Vec::new() };
        record.state = JobState::Done as u8;
        let is_done = self.record(&mut record).await;
        if is_done {
            let JobRecord { file_count, total_bytes, failed_count, .. } = record;
            tracing::info!(
                "load job {:016x}: {file_count} files, {total_bytes} bytes, {failed_count} failures",
                spec.id
            );
        }
        is_done
    }

    /// True if it could be recorded how far a job is.
    async fn record(&self, record: &mut JobRecord) -> bool {
        let command = Command::Job(JobCommand::Record(Box::new(record.clone())));
        match self.cluster.command(command).await {
            Ok(()) => {
                record.version = record.version.wrapping_add(1);
                true
            }
            Err(refusal) => {
                tracing::debug!("record job {:016x}: {}", record.spec.id, refusal.message);
                false
            }
        }
    }

    /// Does what a step of a walk asks for.
    async fn outcome(self: &Arc<Self>, step: WalkStep, pace: &JobPace, copies: u8) -> Outcome {
        match step {
            WalkStep::Circle => Outcome::Passed,
            WalkStep::Failed(failure) => Outcome::Failed(failure),
            WalkStep::File { path, entry } => self
                .load_everywhere(&path.as_str().into(), entry, pace, copies)
                .await
                .unwrap_or_else(|failure| {
                    let reason = failure.message;
                    Outcome::Failed(NamedFailure { path, reason })
                }),
        }
    }
}

/// The source as the walk of a job sees it.
struct JobTree {
    context: Arc<Context>,
    /// True if each path is pinned when its turn comes.
    pins: bool,
}

impl Tree for JobTree {
    async fn enter(&self, path: &str) -> Result<Entry, String> {
        let context = &self.context;
        let entry = patiently(|| async move { context.see_in_time(&path.into()).await }).await;
        let entry = entry.map_err(|failure| failure.message)?;
        if self.pins {
            let pin = || async move {
                let command = Command::Pin { path: path.to_owned(), undo: false };
                Ok(context.cluster.command(command).await?)
            };
            let refused = |failure: Failure| format!("it cannot be pinned: {}", failure.message);
            patiently(pin).await.map_err(refused)?;
        }
        Ok(entry)
    }

    async fn list(&self, path: &str, after: &str) -> Result<TreePage, String> {
        let context = &self.context;
        let page = patiently(|| async move { context.list_in_time(path, after).await });
        page.await.map_err(|failure| failure.message)
    }
}

impl Context {
    /// Returns what the source says of a path now.
    async fn see_in_time(&self, path: &Arc<str>) -> Result<Entry, Failure> {
        let late = |_| self.too_late();
        let entry = timeout(self.patience, self.see_now(path)).await.map_err(late)??;
        Ok(entry)
    }

    /// Returns a page of a directory. What it names is known to the node afterwards.
    async fn list_in_time(&self, path: &str, after: &str) -> Result<TreePage, Failure> {
        let look = self.begin();
        let page = self.store.list(path.into(), after.into(), PAGE_MAX);
        let late = |_| self.too_late();
        let mut page: Page = timeout(self.patience, page).await.map_err(late)??;
        let mut entries = Vec::with_capacity(page.entries.len());
        for (name, found) in std::mem::take(&mut page.entries) {
            let whole = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            let token = page.token(&name, found.kind);
            let listed = match self.is_servable(&whole, found.length) {
                true => Ok(self.note(&whole.into(), name, found, look).await),
                false => Err(NamedFailure { path: whole, reason: NOT_SERVABLE.to_owned() }),
            };
            entries.push((token, listed));
        }
        let left_out = page.left_out;
        let not_utf8 = left_out.not_utf8_text();
        if !left_out.named.is_empty() {
            entries.extend(left_out.named.into_iter().map(|(name, reason)| {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                (name, Err(NamedFailure { path, reason }))
            }));
            entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        }
        if let Some(reason) = not_utf8 {
            let failure = NamedFailure { path: path.to_owned(), reason };
            entries.insert(0, (BEFORE_ALL_NAMES.to_owned(), Err(failure)));
        }
        Ok(TreePage { entries, next: page.next, directory: page.directory })
    }

    fn too_late(&self) -> Failure {
        let ms = self.patience.as_millis();
        let message = format!("the source has not answered for {ms} ms (source_timeout_ms)");
        Failure { status: Status::SourceError, message }
    }
}

/// Tries again what fails for a reason that passes, for a bounded time.
///
/// # Errors
/// That of the last try.
async fn patiently<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let start = Instant::now();
    let (mut wait, mut failed_count) = (RETRY_MIN, 0);
    loop {
        let failure = match attempt().await {
            Ok(done) => return Ok(done),
            Err(failure) => failure,
        };
        failed_count += u32::from(failure.status == Status::SourceError);
        let patience = if failure.status == Status::Busy { BUSY_PATIENCE } else { PATIENCE };
        let is_over = failed_count >= SOURCE_TRIES || start.elapsed() >= patience;
        if is_over || !passes(failure.status) {
            return Err(failure);
        }
        sleep(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// True if what failed in this way may work a little later.
fn passes(status: Status) -> bool {
    matches!(
        status,
        Status::Busy
            | Status::SourceError
            | Status::StaleVersion
            | Status::UnknownFile
            | Status::Corrupt
            | Status::BadChecksum
            | Status::DeadlineExceeded
            | Status::ShuttingDown
            | Status::NotMaster
            | Status::Fenced
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Returns how often a request that fails is tried.
    async fn tries(failing: Status) -> u32 {
        let count = Cell::new(0);
        let attempt = || async {
            count.set(count.get() + 1);
            Err::<(), _>(Failure::new(failing, "no"))
        };
        assert!(patiently(attempt).await.is_err());
        count.get()
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_tried_again_and_what_does_not_is_not() {
        assert_eq!(tries(Status::NotFound).await, 1);
        assert_eq!(tries(Status::SourceError).await, SOURCE_TRIES);
        let (late, busy) = (tries(Status::Fenced).await, tries(Status::Busy).await);
        assert!(1 < late && late < busy, "{late} and {busy}");
        let count = Cell::new(0);
        let works_later = || async {
            count.set(count.get() + 1);
            if count.get() < 5 { Err(Failure::new(Status::Busy, "no")) } else { Ok(count.get()) }
        };
        assert_eq!(patiently(works_later).await.ok(), Some(5));
    }
}
