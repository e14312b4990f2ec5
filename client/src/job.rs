//! Load jobs: what a cluster brings in by itself, asked for and looked at from outside.
//!
//! Owns the values of a job and the three requests. They go to administration sockets, as other changes do,
//! and the node that is asked speaks for its cluster. Always holds: a job whose start is asked for again,
//! because no answer came, is not begun twice. Driving jobs is left to the nodes.

use std::fmt;
use std::str::FromStr;

use millrace_proto::frame;
use millrace_proto::job::{
    ArchivedJobsReply, CancelJobRequest, JOB_PATHS_BYTES_MAX, Job, JobState as WireState,
    JobsRequest, StartCopiesJobRequest, StartJobRequest, job_paths_size,
};

use crate::client::{Client, check_path};
use crate::connection::{Body, random};
use crate::error::Error;

/// Name of a load job: 64 bits, written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

impl FromStr for JobId {
    type Err = Error;

    fn from_str(text: &str) -> Result<JobId, Error> {
        let is_id = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = u64::from_str_radix(text, 16).ok().filter(|_| is_id);
        id.map(JobId).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "{text:?} is not the id of a job; it has 16 hexadecimal digits"
            ))
        })
    }
}

/// What a load job is to do besides loading files.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobOptions {
    /// True if all files below directories are loaded, too.
    pub recursive: bool,
    /// True if each path is pinned before it is loaded, so that it stays in memory.
    pub pin: bool,
    /// Most bytes that all nodes together bring in per second; 0 for no limit.
    pub bytes_per_second: u64,
    /// How many nodes are to hold each block, the first of its owners, 1 to as many as its mount has; 0 for all of
    /// them. Reports do not tell it.
    pub replicas: u8,
}

impl JobOptions {
    /// Returns options that load files alone, pin nothing and have no limit.
    pub fn new() -> JobOptions {
        JobOptions::default()
    }
}

/// How far a job is.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// No node has taken it up yet.
    Waiting,
    /// A node drives it.
    Running,
    /// All that could be loaded is loaded.
    Done,
    /// It was ended before.
    Cancelled,
    /// A state that this client does not know.
    Unknown,
}

impl JobState {
    /// True if nothing more happens.
    pub fn is_ended(self) -> bool {
        matches!(self, JobState::Done | JobState::Cancelled)
    }
}

impl From<u8> for JobState {
    fn from(code: u8) -> JobState {
        match WireState::from_code(code) {
            Some(WireState::Waiting) => JobState::Waiting,
            Some(WireState::Running) => JobState::Running,
            Some(WireState::Done) => JobState::Done,
            Some(WireState::Cancelled) => JobState::Cancelled,
            None => JobState::Unknown,
        }
    }
}

/// A load job, and what it has done as far as the cluster has recorded that.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobReport {
    /// Its id.
    pub id: JobId,
    /// How far it is.
    pub state: JobState,
    /// Id of the node that drives it or did so last; empty before.
    pub node: String,
    /// The first of its paths, cut after 256 bytes.
    pub first_path: String,
    /// How many paths it has.
    pub path_count: u32,
    /// What it does besides.
    pub options: JobOptions,
    /// When it was begun, in milliseconds since the Unix epoch.
    pub begun_ms: i64,
    /// When these numbers were recorded, in milliseconds since the Unix epoch.
    pub recorded_ms: i64,
    /// Files of which every block was in memory when they were counted.
    pub file_count: u64,
    /// Their bytes.
    pub total_bytes: u64,
    /// Their blocks, each as often as it has owners.
    pub block_count: u64,
    /// Blocks that had to be read from the source.
    pub filled_count: u64,
    /// Files that could not be loaded, and directories that could not be listed.
    pub failed_count: u64,
    /// The first of them with the reasons, at most 10; none from [`Client::jobs`].
    pub failures: Vec<(String, String)>,
}

impl From<Job> for JobReport {
    fn from(job: Job) -> JobReport {
        let failures = job.failures.into_iter().map(|failure| (failure.path, failure.reason));
        JobReport {
            id: JobId(job.id),
            state: job.state.into(),
            node: job.node,
            first_path: job.first_path,
            path_count: job.path_count,
            options: JobOptions {
                recursive: job.recursive != 0,
                pin: job.pin != 0,
                bytes_per_second: job.bytes_per_second,
                replicas: 0,
            },
            begun_ms: job.begun_ms,
            recorded_ms: job.recorded_ms,
            file_count: job.file_count,
            total_bytes: job.total_bytes,
            block_count: job.block_count,
            filled_count: job.filled_count,
            failed_count: job.failed_count,
            failures: failures.collect(),
        }
    }
}

impl Client {
    /// Has the cluster bring files in by itself, and returns the id of this job at once. The job outlives
    /// this client and restarts of nodes; [`Client::job`] says how far it is. The paths take at most 48 KiB,
    /// 8 bytes for each counted. See [`ClientConfig::admin`](crate::ClientConfig::admin).
    ///
    /// # Errors
    /// [`Error::Status`] with `Busy` while as many jobs have not ended as there can be, with `UnknownOp` from
    /// a node that is older than jobs; [`Error::InvalidArgument`] for no paths, too many, or more `replicas` than
    /// a path can have; those of [`Client::drain`].
    pub async fn start_job(&self, paths: &[String], options: &JobOptions) -> Result<JobId, Error> {
        let size = job_paths_size(paths);
        if paths.is_empty() || size > JOB_PATHS_BYTES_MAX {
            return Err(Error::InvalidArgument(format!(
                "the paths of a job take {size} bytes, and 1 to {JOB_PATHS_BYTES_MAX} can be kept: name \
                 directories, or start several jobs"
            )));
        }
        for path in paths {
            check_path(path)?;
            if options.replicas > 0 {
                self.check_replicas(path, options.replicas)?;
            }
        }
        let drawn =
            random().map_err(|error| Error::InvalidArgument(format!("no random id: {error}")))?;
        // The first eight of the bytes that were drawn; 0 names no job.
        let id = drawn[..8].iter().fold(0, |id, byte| id << 8 | u64::from(*byte)).max(1);
        let request = StartJobRequest {
            id,
            paths: paths.to_vec(),
            recursive: options.recursive.into(),
            pin: options.pin.into(),
            bytes_per_second: options.bytes_per_second,
        };
        let replicas = options.replicas;
        let body = || match replicas {
            0 => Body::StartJob(request.clone()),
            _ => Body::StartCopiesJob(StartCopiesJobRequest { job: request.clone(), replicas }),
        };
        self.ask_administration(&body).await?;
        Ok(JobId(id))
    }

    /// Ends a job. What is loaded stays; a job that has ended stays as it is. See
    /// [`ClientConfig::admin`](crate::ClientConfig::admin).
    ///
    /// # Errors
    /// [`Error::Status`] with `NotFound` if there is no such job; those of [`Client::drain`].
    pub async fn cancel_job(&self, id: JobId) -> Result<(), Error> {
        let request = CancelJobRequest { id: id.0 };
        self.ask_administration(&|| Body::CancelJob(request)).await.map(drop)
    }

    /// Returns the load jobs of the cluster without their failures, in the order in which they were begun.
    /// Those that have ended are listed for a day. See
    /// [`ClientConfig::admin`](crate::ClientConfig::admin).
    ///
    /// # Errors
    /// Those of [`Client::drain`].
    pub async fn jobs(&self) -> Result<Vec<JobReport>, Error> {
        self.ask_jobs(0).await
    }

    /// Returns a job with the failures that are named. See
    /// [`ClientConfig::admin`](crate::ClientConfig::admin).
    ///
    /// # Errors
    /// As [`Client::cancel_job`].
    pub async fn job(&self, id: JobId) -> Result<JobReport, Error> {
        let found = self.ask_jobs(id.0).await?.into_iter().find(|job| job.id == id);
        found.ok_or_else(|| Error::protocol("another job was answered than the one asked for"))
    }

    async fn ask_jobs(&self, id: u64) -> Result<Vec<JobReport>, Error> {
        let reply = self.ask_administration(&|| Body::Jobs(JobsRequest { id })).await?;
        let reply = frame::body::<ArchivedJobsReply>(&reply.body)?;
        Ok(reply.jobs.iter().map(|job| JobReport::from(Job::from(job))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written_and_nothing_else_is() {
        for id in [JobId(1), JobId(u64::MAX), JobId(0x0123_4567_89ab_cdef)] {
            assert_eq!(id.to_string().parse::<JobId>().expect("an id"), id);
        }
        for text in ["", "1", "+123456789abcdef", "0123456789abcdeg", "0123456789abcdef0"] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
    }
}
