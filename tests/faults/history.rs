//! What clients did with znodes and what came of it: a history for each znode, checked at the end.
//!
//! A znode is a register that may also be absent: created, written on condition of its version, deleted,
//! and read behind a `sync`. Always holds: a write of unknown fate may have taken effect at any time up
//! to the moment at which its session was served again, or was told that it is gone; later it must not,
//! because the service promises that.

use std::time::Instant;

use millrace_tests::linearizable::{Model, NEVER, Timed, Verdict, check};

/// Steps of the search through one history until it is given up.
const STEPS_MAX: usize = 20_000_000;

/// A znode: its value and version, or nothing.
pub(crate) type State = Option<(u64, i32)>;

/// What was done, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// A read that saw this.
    Read(State),
    /// A create that was acknowledged.
    Create(u64),
    /// A create that was refused because the znode is there.
    CreateRefused,
    /// A conditional write that was acknowledged.
    Swap { expected: i32, value: u64 },
    /// A conditional write or delete that was refused because of the version.
    VersionRefused { expected: i32 },
    /// A conditional delete that was acknowledged.
    Delete { expected: i32 },
    /// A write or delete that was refused because there is no znode.
    Absent,
    /// A write of unknown fate.
    Maybe(Attempt),
}

/// A write whose fate is not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    Create(u64),
    Swap { expected: i32, value: u64 },
    Delete { expected: i32 },
}

impl Attempt {
    /// Returns what it makes of a znode, if it takes effect.
    fn apply(self, state: State) -> Option<State> {
        match (self, state) {
            (Attempt::Create(value), None) => Some(Some((value, 0))),
            (Attempt::Swap { expected, value }, Some((_, version))) if version == expected => {
                Some(Some((value, version + 1)))
            }
            (Attempt::Delete { expected }, Some((_, version))) if version == expected => Some(None),
            _ => None,
        }
    }

    /// Returns the same, acknowledged.
    pub(crate) fn acknowledged(self) -> Operation {
        match self {
            Attempt::Create(value) => Operation::Create(value),
            Attempt::Swap { expected, value } => Operation::Swap { expected, value },
            Attempt::Delete { expected } => Operation::Delete { expected },
        }
    }
}

struct Znodes;

impl Model for Znodes {
    type State = State;
    type Operation = Operation;

    fn step(&self, state: &State, operation: &Operation, next: &mut Vec<State>) {
        let attempt = |attempt: Attempt| attempt.apply(*state);
        let same = |holds: bool| holds.then_some(*state);
        match *operation {
            Operation::Read(seen) => next.extend(same(seen == *state)),
            Operation::Create(value) => next.extend(attempt(Attempt::Create(value))),
            Operation::CreateRefused => next.extend(same(state.is_some())),
            Operation::Swap { expected, value } => {
                next.extend(attempt(Attempt::Swap { expected, value }));
            }
            Operation::VersionRefused { expected } => {
                next.extend(same(state.is_some_and(|(_, version)| version != expected)));
            }
            Operation::Delete { expected } => next.extend(attempt(Attempt::Delete { expected })),
            Operation::Absent => next.extend(same(state.is_none())),
            Operation::Maybe(maybe) => {
                next.push(*state);
                next.extend(maybe.apply(*state));
            }
        }
    }

    fn is_read(&self, operation: &Operation) -> bool {
        !matches!(
            operation,
            Operation::Create(_)
                | Operation::Swap { .. }
                | Operation::Delete { .. }
                | Operation::Maybe(_)
        )
    }
}

/// What one client did, by znode.
pub(crate) struct Record {
    began: Instant,
    histories: Vec<Vec<Timed<Operation>>>,
    /// Places of operations whose session has not been served since.
    open: Vec<(usize, usize)>,
    pub(crate) operations: u64,
    pub(crate) unknown: u64,
}

impl Record {
    /// Begins a record; times are counted from `began`, the same moment for all clients.
    pub(crate) fn new(began: Instant, znodes: usize) -> Record {
        Record {
            began,
            histories: vec![Vec::new(); znodes],
            open: Vec::new(),
            operations: 0,
            unknown: 0,
        }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// Adds an operation that was answered now.
    pub(crate) fn answered(&mut self, znode: usize, began: u64, operation: Operation) {
        let ended = self.now_ns();
        self.operations += 1;
        self.histories[znode].push(Timed { operation, began, ended });
    }

    /// Adds a write that was sent and not answered.
    pub(crate) fn lost(&mut self, znode: usize, began: u64, attempt: Attempt) {
        self.unknown += 1;
        self.open.push((znode, self.histories[znode].len()));
        let operation = Operation::Maybe(attempt);
        self.histories[znode].push(Timed { operation, began, ended: NEVER });
    }

    /// Notes that the client's session is served again or gone, so what it asked before has happened or
    /// never will.
    pub(crate) fn settled(&mut self) {
        let now = self.now_ns();
        for (znode, place) in self.open.drain(..) {
            self.histories[znode][place].ended = now;
        }
    }
}

/// Checks that the histories of all clients together are linearizable, znode by znode; all begin absent.
pub(crate) fn judge(records: &[Record], path: impl Fn(usize) -> String) -> Result<(), String> {
    let znodes = records.first().map_or(0, |record| record.histories.len());
    for znode in 0..znodes {
        let history: Vec<Timed<Operation>> =
            records.iter().flat_map(|record| record.histories[znode].iter().cloned()).collect();
        let path = path(znode);
        match check(&Znodes, None, &history, STEPS_MAX) {
            Verdict::Linearizable => {}
            Verdict::Undecided => {
                return Err(format!("{path}: {} operations are too many to judge", history.len()));
            }
            Verdict::Violated { explained, stuck } => {
                let stuck: Vec<_> = stuck.iter().map(|&place| &history[place]).collect();
                return Err(format!(
                    "{path} is not linearizable: {explained} of {} operations are explained, and \
                     none of these can be the next: {stuck:#?}",
                    history.len()
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
