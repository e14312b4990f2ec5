//! The outcome of a command, and its reply record.

use millrace_proto::zookeeper::record::PASSWORD_SIZE;
use millrace_proto::zookeeper::{Error, MultiHeader, Stat, Writer, opcode};

/// The outcome of a successful command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A delete, or the end of a session: the reply has no record.
    Nothing,
    /// The created node.
    Path(String),
    PathAndStat(String, Stat),
    Stat(Stat),
    /// One result for each operation. If one failed, all are errors and nothing changed.
    Multi(Vec<MultiResult>),
    /// A session was opened.
    Session {
        id: i64,
        timeout_ms: i32,
        password: [u8; PASSWORD_SIZE],
        attach: i64,
    },
    /// A client connected to its session again.
    Attached {
        timeout_ms: i32,
        attach: i64,
    },
}

/// The outcome of one operation of a multi.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MultiResult {
    Create(String),
    CreateAndStat(String, Stat),
    Delete,
    SetData(Stat),
    Check,
    /// A code of [`Error`]; 0 for an operation before the failed one, which would have succeeded.
    Error(i32),
}

impl MultiResult {
    /// Returns the results of a multi of `count` operations, of which the one at `index` failed.
    pub(super) fn failed(count: usize, index: usize, error: Error) -> Vec<MultiResult> {
        let code = |position: usize| match position.cmp(&index) {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => error.code(),
            std::cmp::Ordering::Greater => Error::RuntimeInconsistency.code(),
        };
        (0..count).map(|position| MultiResult::Error(code(position))).collect()
    }

    /// Writes header and body, as ZooKeeper's `MultiResponse` does.
    fn encode(&self, writer: &mut Writer<'_>) {
        let (operation, error) = match self {
            MultiResult::Create(_) => (opcode::CREATE, 0),
            MultiResult::CreateAndStat(..) => (opcode::CREATE2, 0),
            MultiResult::Delete => (opcode::DELETE, 0),
            MultiResult::SetData(_) => (opcode::SET_DATA, 0),
            MultiResult::Check => (opcode::CHECK, 0),
            MultiResult::Error(code) => (opcode::ERROR, *code),
        };
        MultiHeader { operation, done: false, error }.encode(writer);
        match self {
            MultiResult::Create(path) => writer.string(path),
            MultiResult::CreateAndStat(path, stat) => {
                writer.string(path);
                stat.encode(writer);
            }
            MultiResult::SetData(stat) => stat.encode(writer),
            MultiResult::Error(code) => writer.int(*code),
            MultiResult::Delete | MultiResult::Check => {}
        }
    }
}

impl Outcome {
    /// Appends the reply record, without a header. Appends nothing for sessions, because the handshake has
    /// a record of its own.
    pub fn encode(&self, writer: &mut Writer<'_>) {
        match self {
            Outcome::Path(path) => writer.string(path),
            Outcome::PathAndStat(path, stat) => {
                writer.string(path);
                stat.encode(writer);
            }
            Outcome::Stat(stat) => stat.encode(writer),
            Outcome::Multi(results) => {
                for result in results {
                    result.encode(writer);
                }
                MultiHeader::END.encode(writer);
            }
            Outcome::Nothing | Outcome::Session { .. } | Outcome::Attached { .. } => {}
        }
    }
}
