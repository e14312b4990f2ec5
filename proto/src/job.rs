//! Messages about load jobs: what a cluster brings into its caches by itself, after the client that asked
//! for it has gone.
//!
//! Like those of [`crate::message`]. A node that is older than jobs answers them with `UnknownOp`. Section 18
//! of `PROTOCOL.md` says what they mean.

use rkyv::{Archive, Serialize};

use crate::id::FileId;

/// Most bytes that the paths of a job take: the paths, and [`JOB_PATH_SIZE`] for each. Derived: they fit a
/// body.
pub const JOB_PATHS_BYTES_MAX: usize = 48 << 10;
/// Bytes of a path of a job besides the path.
pub const JOB_PATH_SIZE: usize = 8;
/// Most failures of a job that are named. Derived: with paths of [`crate::message::PATH_LENGTH_MAX`] they fit
/// a body.
pub const JOB_FAILURES_MAX: usize = 10;
/// Most bytes of the reason of a failure.
pub const JOB_REASON_LENGTH_MAX: usize = 512;
/// Most jobs of a cluster that have not ended.
pub const JOBS_MAX: usize = 16;
/// Most jobs that have ended and are still listed.
pub const JOBS_ENDED_MAX: usize = 32;
/// Most bytes of `first_path` of a [`Job`]; a longer path is cut.
pub const JOB_TITLE_LENGTH_MAX: usize = 256;
/// Most blocks of a `LoadPart`.
pub const LOAD_PART_BLOCKS_MAX: u32 = 4096;

/// `StartJob`: has the cluster bring files in. Only the master takes it.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct StartJobRequest {
    /// Id of the job, chosen at random by the client; not 0. A job that is there already is not begun again.
    pub id: u64,
    /// Files, or with `recursive` also directories.
    pub paths: Vec<String>,
    /// 1 to load all files below directories, 0 to load files alone.
    pub recursive: u8,
    /// 1 to pin each path before it is loaded.
    pub pin: u8,
    /// Most bytes that are brought in per second, by all members together; 0 for no limit.
    pub bytes_per_second: u64,
}

/// `StartCopiesJob`: as `StartJob`, for some owners of each block.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct StartCopiesJobRequest {
    /// The job.
    pub job: StartJobRequest,
    /// How many owners of each block are meant, the first ones, 1 to as many as it has; 0 for all.
    pub replicas: u8,
}

/// `CancelJob`: ends a job. Only the master takes it.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct CancelJobRequest {
    /// Id of the job.
    pub id: u64,
}

/// `Jobs`: lists jobs.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobsRequest {
    /// Id of the one job that is wanted, with its failures; 0 for all jobs without their failures.
    pub id: u64,
}

/// Reply to `Jobs`.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct JobsReply {
    /// The jobs in the order in which they were begun, at most [`JOBS_MAX`] and [`JOBS_ENDED_MAX`] together.
    pub jobs: Vec<Job>,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum JobState {
    /// No node has taken it up yet.
    Waiting = 1,
    /// A node drives it.
    Running = 2,
    /// All that could be loaded is loaded.
    Done = 3,
    /// It was ended before.
    Cancelled = 4,
}

impl JobState {
    /// Returns the state with this number; `None` for one that this version does not know.
    pub fn from_code(code: u8) -> Option<JobState> {
        let all = [JobState::Waiting, JobState::Running, JobState::Done, JobState::Cancelled];
        all.into_iter().find(|state| *state as u8 == code)
    }

    /// True if nothing more happens.
    pub fn is_ended(self) -> bool {
        matches!(self, JobState::Done | JobState::Cancelled)
    }
}

/// A job, and what it has done as far as that is recorded.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: u64,
    /// A [`JobState`].
    pub state: u8,
    /// Id of the member that drives it or did so last; empty before.
    pub node: String,
    /// The first of its paths, cut after [`JOB_TITLE_LENGTH_MAX`] bytes.
    pub first_path: String,
    /// How many paths it has.
    pub path_count: u32,
    /// As in [`StartJobRequest`].
    pub recursive: u8,
    /// As in [`StartJobRequest`].
    pub pin: u8,
    /// As in [`StartJobRequest`].
    pub bytes_per_second: u64,
    /// When it was begun, in milliseconds since the Unix epoch.
    pub begun_ms: i64,
    /// When this was recorded, in milliseconds since the Unix epoch.
    pub recorded_ms: i64,
    /// Files of which every block was there when they were counted.
    pub file_count: u64,
    /// Their bytes.
    pub total_bytes: u64,
    /// Their blocks, each as often as it has owners.
    pub block_count: u64,
    /// Blocks that had to be read from the source.
    pub filled_count: u64,
    /// Files that could not be loaded, and directories that could not be listed.
    pub failed_count: u64,
    /// The first of them, at most [`JOB_FAILURES_MAX`].
    pub failures: Vec<JobFailure>,
}

/// What a job could not load.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct JobFailure {
    /// The file, or the directory that could not be listed.
    pub path: String,
    /// Why, for people.
    pub reason: String,
}

/// `LoadPart`: brings the blocks of one version of a file in that the node owns, from number `first` on.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct LoadPartRequest {
    /// Path of the file.
    pub path: String,
    /// The file.
    pub file: FileId,
    /// The version.
    pub version: u64,
    /// Number of the first block.
    pub first: u32,
    /// How many blocks are meant, 1 to [`LOAD_PART_BLOCKS_MAX`], of all members.
    pub count: u32,
}

/// `LoadPartCopies`: as `LoadPart`, for some owners of each block, and from the source or from a member.
#[derive(Archive, Serialize, Clone, Debug, PartialEq, Eq)]
pub struct LoadPartCopiesRequest {
    /// The part.
    pub part: LoadPartRequest,
    /// How many owners of each block are meant, the first ones, 1 to as many as it has; 0 for all.
    pub replicas: u8,
    /// Id of the member that the blocks are to be taken from, and from nowhere else; empty for no such one.
    pub holder: String,
}

/// Reply to `LoadPart` and `LoadPartCopies`, once each of these blocks has been in the cache.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadPartReply {
    /// Blocks of the part that the node owns.
    pub block_count: u32,
    /// Those of them that had to be read from the source.
    pub filled_count: u32,
    /// Bytes of the latter.
    pub filled_bytes: u64,
}

impl From<&ArchivedJob> for Job {
    fn from(archived: &ArchivedJob) -> Job {
        let failures = archived.failures.iter().map(|failure| JobFailure {
            path: failure.path.as_str().to_owned(),
            reason: failure.reason.as_str().to_owned(),
        });
        Job {
            id: archived.id.to_native(),
            state: archived.state,
            node: archived.node.as_str().to_owned(),
            first_path: archived.first_path.as_str().to_owned(),
            path_count: archived.path_count.to_native(),
            recursive: archived.recursive,
            pin: archived.pin,
            bytes_per_second: archived.bytes_per_second.to_native(),
            begun_ms: archived.begun_ms.to_native(),
            recorded_ms: archived.recorded_ms.to_native(),
            file_count: archived.file_count.to_native(),
            total_bytes: archived.total_bytes.to_native(),
            block_count: archived.block_count.to_native(),
            filled_count: archived.filled_count.to_native(),
            failed_count: archived.failed_count.to_native(),
            failures: failures.collect(),
        }
    }
}

/// Returns the bytes that paths of a job take, to be compared with [`JOB_PATHS_BYTES_MAX`].
pub fn job_paths_size(paths: &[String]) -> usize {
    paths.iter().map(|path| path.len() + JOB_PATH_SIZE).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::PATH_LENGTH_MAX;
    use crate::{HEADER_SIZE, Header, Op, frame};

    /// Returns the bytes of a body.
    fn size(reply: &JobsReply) -> usize {
        let mut frame = Vec::new();
        frame::encode(&mut frame, Header::request(Op::Jobs, 1, 0), reply);
        frame.len() - HEADER_SIZE
    }

    fn job(title: usize, failures: usize) -> Job {
        let failure = JobFailure {
            path: "p".repeat(PATH_LENGTH_MAX),
            reason: "r".repeat(JOB_REASON_LENGTH_MAX),
        };
        Job {
            id: 1,
            state: JobState::Running as u8,
            node: "n".repeat(crate::cluster::NAME_LENGTH_MAX),
            first_path: "t".repeat(title),
            path_count: 1,
            recursive: 1,
            pin: 0,
            bytes_per_second: 0,
            begun_ms: 0,
            recorded_ms: 0,
            file_count: 0,
            total_bytes: 0,
            block_count: 0,
            filled_count: 0,
            failed_count: 0,
            failures: vec![failure; failures],
        }
    }

    #[test]
    fn the_longest_answers_fit_a_body() {
        let all = vec![job(JOB_TITLE_LENGTH_MAX, 0); JOBS_MAX + JOBS_ENDED_MAX];
        assert!(size(&JobsReply { jobs: all }) <= 64 << 10);
        let one = job(JOB_TITLE_LENGTH_MAX, JOB_FAILURES_MAX);
        assert!(size(&JobsReply { jobs: vec![one] }) <= 64 << 10);
    }

    #[test]
    fn states_are_numbers_and_two_of_them_are_ends() {
        for code in 1..=4 {
            let state = JobState::from_code(code).expect("a state");
            assert_eq!((state as u8, state.is_ended()), (code, code > 2));
        }
        assert_eq!(JobState::from_code(0), None);
        assert_eq!(JobState::from_code(5), None);
    }
}
