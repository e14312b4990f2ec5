//! What a command came to, and the reply record that says so.

use millrace_proto::zookeeper::record::PASSWORD_SIZE;
use millrace_proto::zookeeper::{Error, MultiHeader, Stat, Writer, opcode};

/// What a command that succeeded came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to tell: a delete, or the end of a session.
    Nothing,
    /// The node that was created.
    Path(String),
    PathAndStat(String, Stat),
    Stat(Stat),
    /// One result for each operation; when one failed, all are errors and nothing changed.
    Multi(Vec<MultiResult>),
    /// A session was opened.
    Session {
        id: i64,
        timeout_ms: i32,
        password: [u8; PASSWORD_SIZE],
        attach: i64,
    },
    /// A client came back to its session.
    Attached {
        timeout_ms: i32,
        attach: i64,
    },
}

/// What one operation of a multi came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MultiResult {
    Create(String),
    CreateAndStat(String, Stat),
    Delete,
    SetData(Stat),
    Check,
    /// A code of [`Error`], or 0 for what would have succeeded before the one that failed.
    Error(i32),
}

impl MultiResult {
    /// The results of a multi of `count` operations of which that at `index` failed.
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
    /// Appends the reply record, without a header. Sessions are told in the handshake, which has
    /// a record of its own: nothing is appended for them.
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
