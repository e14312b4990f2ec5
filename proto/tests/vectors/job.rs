//! Requests and replies about load jobs.

use millrace_proto::job::*;
use millrace_proto::message::{Entry, Kind, LoadCopiesRequest, LoadReply};
use millrace_proto::{Op, Status};

use crate::format::*;

/// Ids of requests, apart from those of other vectors.
const FIRST: u64 = 80;
const JOB: u64 = 0x0123_4567_89ab_cdef;

pub(crate) fn requests() -> Vec<Vector> {
    let at = |number, op| request(op, FIRST + number);
    let part = LoadPartRequest {
        path: "datasets/images/a.tar".into(),
        file: ID,
        version: 7,
        first: 64,
        count: 64,
    };
    let job = StartJobRequest {
        id: JOB,
        paths: vec!["a.tar".into()],
        recursive: 0,
        pin: 0,
        bytes_per_second: 0,
    };
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
        vector("load_part", "The second 64 blocks.", at(4, Op::LoadPart), part.clone()),
        vector(
            "load_copies",
            "At the first two owners of each block.",
            at(5, Op::LoadCopies),
            LoadCopiesRequest { path: "datasets/images/a.tar".into(), replicas: 2 },
        ),
        vector(
            "load_part_copies",
            "At all owners, from a member that has the blocks.",
            at(6, Op::LoadPartCopies),
            LoadPartCopiesRequest { part, replicas: 0, holder: "cache-1.example.org".into() },
        ),
        vector(
            "start_copies_job",
            "At the first two owners of each block.",
            at(7, Op::StartCopiesJob),
            StartCopiesJobRequest { job, replicas: 2 },
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
    let file = Entry {
        name: "datasets/images/a.tar".into(),
        kind: Kind::File,
        id: ID,
        version: 7,
        length: 64 << 20,
        modified_ms: 1_700_000_000_000,
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
        vector(
            "load_copies",
            "As of Load.",
            at(5, Op::LoadCopies),
            LoadReply { entry: file, block_count: 128, filled_count: 100 },
        ),
        vector(
            "load_part_copies",
            "As of LoadPart: the member had half of the blocks.",
            at(6, Op::LoadPartCopies),
            LoadPartReply { block_count: 32, filled_count: 0, filled_bytes: 0 },
        ),
        vector("start_copies_job", "No body.", at(7, Op::StartCopiesJob), Nothing),
    ]
}
