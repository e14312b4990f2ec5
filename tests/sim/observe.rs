//! What the checkers get to see of a run, and how they report a violation.
//!
//! The world shows each thing as it happens, in the order of virtual time; at the end it shows what all
//! replicas agreed on. The judgement is left to `check`.

use millrace_coord::command::Command;
use millrace_coord::replica::Replica;
use millrace_coord::state::State;
use millrace_proto::zookeeper::{Reader, ReplyHeader, Stat, opcode};

/// What a client asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// A node that is asked for once in a run and never deleted: `/log/CLIENT-NUMBER`.
    Journal {
        path: String,
    },
    /// An ephemeral node, asked for once in a run.
    Ephemeral {
        path: String,
    },
    /// A sequential node below `/seq`.
    Sequential,
    /// A node that comes and goes; any client may ask.
    Flag {
        path: String,
    },
    Delete {
        path: String,
    },
    /// A write to a register; with `expected`, only at that version.
    Set {
        register: usize,
        value: u64,
        expected: Option<i32>,
    },
    /// In one transaction, a conditional write to a register and a journal node.
    Both {
        register: usize,
        value: u64,
        expected: i32,
        path: String,
    },
    /// A read of a register. With `synced_us`, behind a sync that was asked at that moment.
    Get {
        register: usize,
        watch: bool,
        synced_us: Option<u64>,
    },
    Exists {
        path: String,
        watch: bool,
    },
    Children {
        path: String,
        watch: bool,
    },
    WatchAll,
    Sync,
    Ping,
    SetWatches,
    CloseSession,
}

/// A request on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) xid: i32,
    pub(crate) began_us: u64,
    pub(crate) what: What,
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) header: ReplyHeader,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn is_ok(&self) -> bool {
        self.header.error == 0
    }

    /// Returns the Stat that ends the reply of `what`, where it has one.
    pub(crate) fn stat(&self, what: &What) -> Option<Stat> {
        if !self.is_ok() {
            return None;
        }
        let mut reader = Reader::new(&self.body);
        match what {
            What::Get { .. } => {
                reader.buffer().ok()?;
            }
            What::Children { .. } => {
                reader.list(Reader::path).ok()?;
            }
            What::Set { .. } | What::Exists { .. } => {}
            _ => return None,
        }
        Stat::decode(&mut reader).ok()
    }

    /// Returns the data that a read of a register shows, as a number.
    pub(crate) fn value(&self) -> Option<u64> {
        let data = Reader::new(&self.body).buffer().ok()??;
        std::str::from_utf8(data).ok()?.parse().ok()
    }

    /// Returns the path that a create made.
    pub(crate) fn path(&self) -> Option<String> {
        Reader::new(&self.body).string().ok()?.map(str::to_owned)
    }

    /// Returns the first error in the results of a multi that failed; `None` if it took effect.
    pub(crate) fn multi_error(&self) -> Option<i32> {
        let mut reader = Reader::new(&self.body);
        let mut first = None;
        while let Ok(header) = millrace_proto::zookeeper::MultiHeader::decode(&mut reader) {
            if header.done || header.operation != opcode::ERROR {
                break;
            }
            let error = reader.int().ok()?;
            // Zeroes stand before the one that failed, and what was not tried stands after it.
            if first.is_none() && error != 0 {
                first = Some(error);
            }
        }
        first
    }
}

/// What happened.
pub(crate) enum Seen<'a> {
    /// A replica has ended a turn.
    Turned {
        node: usize,
        life: u32,
        replica: &'a Replica,
    },
    /// A replica leads an ensemble that serves.
    Leads {
        node: usize,
        cluster_id: u64,
    },
    /// A replica without data begins an ensemble, for good if `is_durable`. `data_at` names a replica in
    /// its list that has data.
    Founds {
        node: usize,
        is_durable: bool,
        data_at: Option<u64>,
    },
    /// A leader has put a command of its own term into its log.
    Proposed {
        leader: usize,
        command: &'a Command<'a>,
    },
    /// A client's message was handed to a replica.
    Heard {
        node: usize,
        session: i64,
    },
    /// A fault began or ended at this replica, or one of its streams changed.
    Disturbed {
        node: usize,
    },
    /// A client's session is served, for the first time or again.
    Opened {
        client: usize,
    },
    Asked {
        link: u64,
        asked: &'a Asked,
    },
    /// A reply came that the client takes for the one to `asked`, its oldest request without a reply.
    Answered {
        client: usize,
        link: u64,
        session: i64,
        asked: &'a Asked,
        answer: &'a Answer,
    },
    Notified {
        client: usize,
        link: u64,
        session: i64,
        zxid: i64,
        kind: i32,
        path: &'a str,
    },
    /// A link is gone; what was not answered on it never will be.
    Broke {
        client: usize,
        link: u64,
        unanswered: &'a [Asked],
    },
    /// A client learned that its session is gone.
    Expired {
        client: usize,
    },
}

/// What all replicas agree on when everything is healed.
pub(crate) struct Ending<'a> {
    pub(crate) at_us: u64,
    pub(crate) state: &'a State,
    /// The sessions that clients hold, connected.
    pub(crate) sessions: Vec<i64>,
}

/// A property of a run.
pub(crate) trait Check {
    /// Returns the property in a few words.
    fn property(&self) -> &'static str;

    /// Checks what happened; an error says how the property is broken.
    fn see(&mut self, at_us: u64, seen: &Seen<'_>) -> Result<(), String>;

    /// Returns how many questions it could not decide.
    fn undecided(&self) -> u64 {
        0
    }

    /// Checks the end.
    fn end(&mut self, _ending: &Ending<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// A property that does not hold.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) property: &'static str,
    pub(crate) text: String,
    pub(crate) at_us: u64,
}
