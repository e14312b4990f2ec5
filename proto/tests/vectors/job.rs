//! Requests and replies about load jobs.

use millrace_proto::job::*;
use millrace_proto::{Op, Status};

use crate::format::*;

/// Ids of requests, apart from those of other vectors.
const FIRST: u64 = 80;
const JOB: u64 = 0x0123_4567_89ab_cdef;

pub(crate) fn requests() -> Vec<Vector> {
    let at = |number, op| request(op, FIRST + number);
    vec![
        vector(
            "start_job",
            "Two paths, one of them out of line.",
            at(0, Op::StartJob),
            StartJobRequest {
                id: JOB,
                paths: vec!["datasets/images".into(), "a.tar".into()],
                recursive: 1,
                pin: 1,
                bytes_per_second: 100 << 20,
            },
        ),
        vector("cancel_job", "One number.", at(1, Op::CancelJob), CancelJobRequest { id: JOB }),
        vector("jobs", "All jobs.", at(2, Op::Jobs), JobsRequest { id: 0 }),
        vector("jobs_one", "One job.", at(3, Op::Jobs), JobsRequest { id: JOB }),
        vector(
            "load_part",
            "The second 64 blocks.",
            at(4, Op::LoadPart),
            LoadPartRequest {
                path: "datasets/images/a.tar".into(),
                file: ID,
                version: 7,
                first: 64,
                count: 64,
            },
        ),
    ]
}

pub(crate) fn replies() -> Vec<Vector> {
    let at = |number, op| reply(op, FIRST + number, Status::Ok);
    let job = Job {
        id: JOB,
        state: JobState::Running as u8,
        node: "cache-1.example.org".into(),
        first_path: "datasets/images".into(),
        path_count: 2,
        recursive: 1,
        pin: 1,
        bytes_per_second: 100 << 20,
        begun_ms: 1_700_000_000_000,
        recorded_ms: 1_700_000_001_000,
        file_count: 10,
        total_bytes: 1 << 30,
        block_count: 1030,
        filled_count: 1000,
        failed_count: 2,
        failures: Vec::new(),
    };
    let failures = [("datasets/images/b", "permission denied"), ("b.tar", "not found")];
    let failures =
        failures.map(|(path, reason)| JobFailure { path: path.into(), reason: reason.into() });
    let waiting = Job {
        id: 1,
        state: JobState::Waiting as u8,
        node: String::new(),
        path_count: 1,
        ..job.clone()
    };
    let one = Job { failures: failures.to_vec(), ..job.clone() };
    vec![
        vector("start_job", "No body.", at(0, Op::StartJob), Nothing),
        vector("cancel_job", "No body.", at(1, Op::CancelJob), Nothing),
        vector(
            "jobs",
            "Two jobs, without their failures.",
            at(2, Op::Jobs),
            JobsReply { jobs: vec![job, waiting] },
        ),
        vector(
            "jobs_one",
            "A job with its failures.",
            at(3, Op::Jobs),
            JobsReply { jobs: vec![one] },
        ),
        vector(
            "load_part",
            "Half of the blocks.",
            at(4, Op::LoadPart),
            LoadPartReply { block_count: 32, filled_count: 30, filled_bytes: 30 << 20 },
        ),
    ]
}
