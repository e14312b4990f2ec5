//! Load jobs as the cluster keeps them: what is to be loaded, how far that is, and what may change.
//!
//! Owns the record of a job and the rules of its changes, which a cluster of one node and one with
//! coordination share. Always holds: the numbers of a record are those of what lies before its cursor, and
//! are recorded together with it; a record is replaced only by one that was made from it. Finding files and
//! loading them is left to the side thread.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millrace_proto::Status;
use millrace_proto::job::{
    JOB_FAILURES_MAX, JOB_PATHS_BYTES_MAX, JOB_REASON_LENGTH_MAX, JOB_TITLE_LENGTH_MAX,
    JOBS_ENDED_MAX, JOBS_MAX, Job, JobFailure, JobState, job_paths_size,
};
use serde::{Deserialize, Serialize};

use super::refusal::Refusal;
use crate::store::check_path;

/// How long a job that has ended is listed.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// What a job is to load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobSpec {
    pub id: u64,
    pub paths: Vec<String>,
    pub recursive: bool,
    /// True if each path is pinned before it is loaded.
    pub pin: bool,
    /// Most bytes that are brought in per second; 0 for no limit.
    pub bytes_per_second: u64,
    /// How many owners of each block are to have it, the first ones; 0 for all.
    #[serde(default)]
    pub replicas: u8,
}

/// A change of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JobCommand {
    Start(JobSpec),
    /// Ends the job with this id.
    Cancel(u64),
    /// Records how far a job is; the node that drives it asks for it.
    Record(Box<JobRecord>),
}

/// `/jobs/ID`: a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobRecord {
    pub spec: JobSpec,
    /// Its place among all jobs of the cluster.
    pub number: u64,
    /// Milliseconds since the Unix epoch.
    pub begun_ms: u64,
    pub recorded_ms: u64,
    /// A number of [`JobState`].
    pub state: u8,
    /// Id of the node that drives it.
    pub node: String,
    /// Where the job goes on.
    pub cursor: Cursor,
    pub file_count: u64,
    pub total_bytes: u64,
    pub block_count: u64,
    pub filled_count: u64,
    pub failed_count: u64,
    /// The first failures.
    pub failures: Vec<NamedFailure>,
    /// How often the record was replaced; coordination counts it.
    #[serde(skip)]
    pub version: i32,
}

/// Something that could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamedFailure {
    pub path: String,
    pub reason: String,
}

/// A place in the tree below the paths of a job. All before it is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// Paths of the job that are done.
    pub paths_done: usize,
    /// The directories on the way to the place, the first of which is the next path of the job; none if that
    /// has not begun.
    pub levels: Vec<Level>,
}

/// A directory on the way to a place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Level {
    /// Its name in the one above; of the first one the whole path.
    pub name: String,
    /// What the last entry that is done, or is the next level, is sorted by; empty at the beginning.
    pub after: String,
    /// Number of the directory, by which it is recognised below itself.
    pub number: Option<u64>,
}

/// What became of one file, or of one directory that could not be listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Loaded {
        bytes: u64,
        blocks: u64,
        filled: u64,
    },
    Failed(NamedFailure),
    /// There was nothing to load.
    Passed,
}

/// What is written for a change, in one step.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct JobChange {
    /// The record to write, and whether it is new.
    pub write: Option<(JobRecord, bool)>,
    /// Jobs that are forgotten.
    pub forget: Vec<u64>,
}

impl JobSpec {
    /// Checks what a client asked for.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    fn check(&self) -> Result<(), Refusal> {
        let refuse = |message: String| Err(Refusal::new(Status::InvalidArgument, message));
        if self.id == 0 || self.paths.is_empty() {
            return refuse("a job has an id that is not 0, and at least one path".to_owned());
        }
        let size = job_paths_size(&self.paths);
        if size > JOB_PATHS_BYTES_MAX {
            return refuse(format!(
                "the paths of the job take {size} bytes, and {JOB_PATHS_BYTES_MAX} are kept of one job: name \
                 directories, or start several jobs"
            ));
        }
        for path in &self.paths {
            check_path(path).map_err(|error| {
                Refusal::new(error.status(), format!("'{path}' cannot be loaded: {error}"))
            })?;
        }
        Ok(())
    }
}

impl JobRecord {
    fn new(spec: JobSpec, number: u64, now_ms: u64) -> JobRecord {
        JobRecord {
            spec,
            number,
            begun_ms: now_ms,
            recorded_ms: now_ms,
            state: JobState::Waiting as u8,
            node: String::new(),
            cursor: Cursor::default(),
            file_count: 0,
            total_bytes: 0,
            block_count: 0,
            filled_count: 0,
            failed_count: 0,
            failures: Vec::new(),
            version: 0,
        }
    }

    /// True if nothing more happens to it. A state that a later version wrote is taken for an end, so that this
    /// one does not touch the job.
    pub(crate) fn is_ended(&self) -> bool {
        JobState::from_code(self.state).is_none_or(JobState::is_ended)
    }

    /// True if it has ended so long ago that it is not listed any more.
    pub(crate) fn is_old(&self, now_ms: u64) -> bool {
        self.is_ended() && now_ms.saturating_sub(self.recorded_ms) > KEPT.as_millis() as u64
    }

    /// Counts what became of the next file, which lies before `cursor`.
    pub(crate) fn count(&mut self, outcome: Outcome, cursor: Cursor) {
        self.cursor = cursor;
        match outcome {
            Outcome::Loaded { bytes, blocks, filled } => {
                self.file_count += 1;
                self.total_bytes += bytes;
                self.block_count += blocks;
                self.filled_count += filled;
            }
            Outcome::Failed(NamedFailure { path, reason }) => {
                self.failed_count += 1;
                if self.failures.len() < JOB_FAILURES_MAX {
                    let reason = cut(&reason, JOB_REASON_LENGTH_MAX).to_owned();
                    self.failures.push(NamedFailure { path, reason });
                }
            }
            Outcome::Passed => (),
        }
    }

    /// Returns it as clients see it.
    pub(crate) fn job(&self, with_failures: bool) -> Job {
        let failures = self.failures.iter().filter(|_| with_failures).take(JOB_FAILURES_MAX);
        let failures = failures.map(|failure| JobFailure {
            path: cut(&failure.path, millrace_proto::message::PATH_LENGTH_MAX).to_owned(),
            reason: cut(&failure.reason, JOB_REASON_LENGTH_MAX).to_owned(),
        });
        let first = self.spec.paths.first().map_or("", String::as_str);
        Job {
            id: self.spec.id,
            state: self.state,
            node: cut(&self.node, millrace_proto::cluster::NAME_LENGTH_MAX).to_owned(),
            first_path: cut(first, JOB_TITLE_LENGTH_MAX).to_owned(),
            path_count: self.spec.paths.len() as u32,
            recursive: self.spec.recursive.into(),
            pin: self.spec.pin.into(),
            bytes_per_second: self.spec.bytes_per_second,
            begun_ms: self.begun_ms as i64,
            recorded_ms: self.recorded_ms as i64,
            file_count: self.file_count,
            total_bytes: self.total_bytes,
            block_count: self.block_count,
            filled_count: self.filled_count,
            failed_count: self.failed_count,
            failures: failures.collect(),
        }
    }
}

/// Returns what has to be written for a change of these jobs.
///
/// # Errors
/// What is wrong with the change; `Busy` if there are as many jobs as there can be, or if a record was
/// replaced since it was read.
pub(crate) fn changed_jobs(
    jobs: &[JobRecord],
    command: &JobCommand,
    now_ms: u64,
) -> Result<JobChange, Refusal> {
    let find = |id: u64| jobs.iter().find(|job| job.spec.id == id);
    match command {
        JobCommand::Start(spec) => {
            spec.check()?;
            if find(spec.id).is_some() {
                return Ok(JobChange::default());
            }
            if jobs.iter().filter(|job| !job.is_ended()).count() >= JOBS_MAX {
                let message = format!(
                    "{JOBS_MAX} jobs have not ended, which is as many as there can be: wait for one, or \
                     cancel one (millrace admin jobs)"
                );
                return Err(Refusal::new(Status::Busy, message));
            }
            let number = jobs.iter().map(|job| job.number).max().unwrap_or(0) + 1;
            let new = JobRecord::new(spec.clone(), number, now_ms);
            Ok(JobChange { write: Some((new, true)), forget: forgotten(jobs, now_ms) })
        }
        JobCommand::Cancel(id) => {
            let Some(job) = find(*id) else { return Err(no_job(*id)) };
            if job.is_ended() {
                return Ok(JobChange::default());
            }
            let state = JobState::Cancelled as u8;
            let job = JobRecord { state, recorded_ms: now_ms, ..job.clone() };
            Ok(JobChange { write: Some((job, false)), forget: Vec::new() })
        }
        JobCommand::Record(record) => {
            let known = find(record.spec.id).filter(|job| job.version == record.version);
            if known.is_none_or(JobRecord::is_ended) {
                let message = "the job was changed meanwhile";
                return Err(Refusal::new(Status::Busy, message));
            }
            let record = JobRecord { recorded_ms: now_ms, ..(**record).clone() };
            Ok(JobChange { write: Some((record, false)), forget: Vec::new() })
        }
    }
}

/// Returns the refusal of a request about a job that is not there.
pub(crate) fn no_job(id: u64) -> Refusal {
    let message = format!("no job {id:016x}: `millrace admin jobs` lists them");
    Refusal::new(Status::NotFound, message)
}

/// Returns the ended jobs that make room when another one begins.
fn forgotten(jobs: &[JobRecord], now_ms: u64) -> Vec<u64> {
    let mut ended: Vec<&JobRecord> = jobs.iter().filter(|job| job.is_ended()).collect();
    ended.sort_by_key(|job| std::cmp::Reverse(job.recorded_ms));
    let kept = ended.iter().take(JOBS_ENDED_MAX).take_while(|job| !job.is_old(now_ms)).count();
    ended[kept..].iter().map(|job| job.spec.id).collect()
}

/// Returns the milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Returns the text, or as many whole letters of it as fit `bytes_max` bytes.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(id: u64) -> JobSpec {
        JobSpec { id, paths: vec!["a".into()], ..JobSpec::default() }
    }

    fn job(id: u64, state: JobState, recorded_ms: u64) -> JobRecord {
        let state = state as u8;
        JobRecord { state, recorded_ms, ..JobRecord::new(spec(id), id, 0) }
    }

    #[test]
    fn a_job_begins_once_and_ends_once() {
        let begun = changed_jobs(&[], &JobCommand::Start(spec(7)), 5).unwrap();
        let (first, is_new) = begun.write.unwrap();
        assert_eq!((first.number, first.begun_ms, is_new), (1, 5, true));
        let jobs = [first.clone()];
        let again = changed_jobs(&jobs, &JobCommand::Start(spec(7)), 6).unwrap();
        assert_eq!(again, JobChange::default(), "a repeated request");
        let cancelled = changed_jobs(&jobs, &JobCommand::Cancel(7), 8).unwrap().write.unwrap();
        assert_eq!((cancelled.0.state, cancelled.1), (JobState::Cancelled as u8, false));
        let jobs = [cancelled.0];
        assert_eq!(changed_jobs(&jobs, &JobCommand::Cancel(7), 9).unwrap(), JobChange::default());
        assert_eq!(
            changed_jobs(&jobs, &JobCommand::Cancel(8), 9).unwrap_err().status,
            Status::NotFound
        );
        // The driver that has not heard of it does not bring it back to life.
        let late = JobCommand::Record(Box::new(first));
        assert_eq!(changed_jobs(&jobs, &late, 9).unwrap_err().status, Status::Busy);
    }

    #[test]
    fn only_the_newest_record_is_replaced() {
        let record = JobRecord { version: 3, ..job(7, JobState::Running, 0) };
        let jobs = [record.clone()];
        let older = JobCommand::Record(Box::new(JobRecord { version: 2, ..record.clone() }));
        assert_eq!(changed_jobs(&jobs, &older, 1).unwrap_err().status, Status::Busy);
        assert!(changed_jobs(&jobs, &JobCommand::Record(Box::new(record)), 1).is_ok());
    }

    #[test]
    fn what_cannot_be_a_job_is_refused() {
        let paths = |paths: &[&str]| JobSpec {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            ..spec(7)
        };
        let long = "p".repeat(4000);
        let long = long.as_str();
        let refused = [
            (spec(0), Status::InvalidArgument),
            (paths(&[]), Status::InvalidArgument),
            (paths(&["a//b"]), Status::InvalidArgument),
            (paths(&["../b"]), Status::PermissionDenied),
            (paths(&[long; 13]), Status::InvalidArgument),
        ];
        for (spec, status) in refused {
            let refusal = changed_jobs(&[], &JobCommand::Start(spec), 0).unwrap_err();
            assert_eq!(refusal.status, status, "{}", refusal.message);
        }
        assert!(changed_jobs(&[], &JobCommand::Start(paths(&[long; 12])), 0).is_ok());
    }

    #[test]
    fn the_number_of_jobs_is_bounded_and_ended_ones_make_room() {
        let mut jobs: Vec<JobRecord> =
            (1..=JOBS_MAX as u64).map(|id| job(id, JobState::Running, 9)).collect();
        let start = JobCommand::Start(spec(999));
        assert_eq!(changed_jobs(&jobs, &start, 0).unwrap_err().status, Status::Busy);
        jobs[0].state = JobState::Done as u8;
        assert!(changed_jobs(&jobs, &start, 9).unwrap().forget.is_empty());
        // One that ended more than a day ago goes.
        let late = 10 + KEPT.as_millis() as u64;
        assert_eq!(changed_jobs(&jobs, &start, late).unwrap().forget, [1]);
        let ended = (100..100 + JOBS_ENDED_MAX as u64).map(|id| job(id, JobState::Done, id));
        jobs.extend(ended);
        assert_eq!(
            changed_jobs(&jobs, &start, 200).unwrap().forget,
            [1],
            "the one that ended first"
        );
    }

    #[test]
    fn numbers_add_up_and_few_failures_are_named() {
        let mut record = job(7, JobState::Running, 0);
        let cursor = |paths_done| Cursor { paths_done, levels: Vec::new() };
        record.count(Outcome::Loaded { bytes: 10, blocks: 2, filled: 1 }, cursor(1));
        record.count(Outcome::Loaded { bytes: 5, blocks: 1, filled: 0 }, cursor(2));
        record.count(Outcome::Passed, cursor(3));
        for it in 0..20 {
            let failure = NamedFailure { path: it.to_string(), reason: "ü".repeat(400) };
            record.count(Outcome::Failed(failure), cursor(4 + it));
        }
        assert_eq!((record.file_count, record.total_bytes, record.block_count), (2, 15, 3));
        assert_eq!((record.filled_count, record.failed_count), (1, 20));
        assert_eq!(record.cursor.paths_done, 23);
        let told = record.job(true);
        assert_eq!(told.failures.len(), JOB_FAILURES_MAX);
        assert_eq!(told.failures[0].reason.len(), JOB_REASON_LENGTH_MAX);
        assert!(record.job(false).failures.is_empty());
    }

    #[test]
    fn a_record_that_a_later_version_wrote_is_read_and_left_alone() {
        let text = serde_json::to_string(&JobRecord { state: 9, ..job(7, JobState::Running, 0) });
        let text = text.unwrap().replace("\"number\"", "\"new\":1,\"number\"");
        let read: JobRecord = serde_json::from_str(&text).unwrap();
        assert!(read.is_ended());
    }
}
