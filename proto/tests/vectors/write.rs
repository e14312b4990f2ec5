//! Requests and replies of a write.

use millrace_proto::checksum;
use millrace_proto::message::StatReply;
use millrace_proto::write::*;
use millrace_proto::{Op, Status};

use crate::format::*;

/// Ids of requests, apart from those of other vectors.
const FIRST: u64 = 60;
const UPLOAD: u64 = 0xfedc_ba98_7654_3210;

pub(crate) fn requests() -> Vec<Vector> {
    let bytes = b"ten bytes.".to_vec();
    let part =
        PutPartRequest { upload: UPLOAD, offset: 65_508, checksum: checksum::of(&bytes), bytes };
    let at = |number, op| request(op, FIRST + number);
    vec![
        vector(
            "put",
            "Without a condition.",
            at(0, Op::Put),
            WriteRequest::new("out/model.bin", Condition::None),
        ),
        vector(
            "put_if_absent",
            "Only if nothing has the path.",
            at(1, Op::Put),
            WriteRequest::new("a.tar", Condition::Absent),
        ),
        vector(
            "put_if_version",
            "Only if the file is in this version.",
            at(2, Op::Put),
            WriteRequest::new("a.tar", Condition::Version(u64::MAX)),
        ),
        vector("put_part", "Ten bytes out of line, then the numbers.", at(3, Op::PutPart), part),
        vector(
            "put_end",
            "The length of the whole object.",
            at(4, Op::PutEnd),
            PutEndRequest { upload: UPLOAD, length: 65_518 },
        ),
        vector("put_abort", "One number.", at(5, Op::PutAbort), PutAbortRequest { upload: UPLOAD }),
        vector(
            "delete",
            "Only the version that was looked up.",
            at(6, Op::Delete),
            WriteRequest::new("a.tar", Condition::Version(7)),
        ),
        vector(
            "rename",
            "A file that may be replaced gets out of the way.",
            at(7, Op::Rename),
            RenameRequest { path: "tmp/1".into(), to: "done/1".into(), condition: 0 },
        ),
        vector(
            "rename_if_absent",
            "Only if nothing has the new path.",
            at(8, Op::Rename),
            RenameRequest { path: "tmp".into(), to: "done".into(), condition: 1 },
        ),
    ]
}

pub(crate) fn replies() -> Vec<Vector> {
    let at = |number, op| reply(op, FIRST + number, Status::Ok);
    vec![
        vector(
            "put",
            "64 parts of 64 KiB may be unanswered.",
            at(0, Op::Put),
            PutReply { upload: UPLOAD, credit: 4 << 20 },
        ),
        vector("put_part", "No body: the bytes were taken.", at(3, Op::PutPart), Nothing),
        vector(
            "put_end",
            "What the path has by it.",
            at(4, Op::PutEnd),
            StatReply { entry: file("out/model.bin"), block_size: 1 << 20 },
        ),
        vector("put_abort", "No body.", at(5, Op::PutAbort), Nothing),
        vector("delete", "No body.", at(6, Op::Delete), Nothing),
        vector(
            "rename",
            "What the new path has by it.",
            at(7, Op::Rename),
            StatReply { entry: file("done/1"), block_size: 1 << 20 },
        ),
    ]
}
