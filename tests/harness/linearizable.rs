//! Whether a history of concurrent operations is linearizable: whether one order of them explains
//! every answer and contradicts no clock.
//!
//! The search of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993) with the memory
//! of Lowe ("Testing for Linearizability", 2017): operations are taken one by one, a taken set with
//! the state it led to is never looked at twice. A history over many objects is linearizable if
//! that of each object is (Herlihy and Wing, 1990): check each by itself. Always holds: a verdict
//! is never guessed; a search that takes too long is [`Verdict::Undecided`].

use std::collections::HashSet;
use std::hash::Hash;

#[cfg(test)]
mod tests;

/// What an object does when it is used by one at a time.
pub trait Model {
    type State: Clone + Eq + Hash;
    type Operation;

    /// Appends each state that can follow if `operation` takes effect in `state`, with the answer
    /// that it got; none if it cannot have got it then.
    fn step(&self, state: &Self::State, operation: &Self::Operation, next: &mut Vec<Self::State>);

    /// True if `operation` never changes the state. It only makes the search shorter.
    fn is_read(&self, operation: &Self::Operation) -> bool;
}

/// An operation with the interval in which it took effect, by one clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timed<O> {
    pub operation: O,
    pub began: u64,
    /// [`NEVER`] for one that may take effect at any later time, or not at all.
    pub ended: u64,
}

/// The end of an operation whose end is not known.
pub const NEVER: u64 = u64::MAX;

/// The result of the search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// No order explains it. The longest that does ends before one of these, as indices into the
    /// history.
    Violated {
        explained: usize,
        stuck: Vec<usize>,
    },
    /// The search was given up.
    Undecided,
}

/// A set of taken operations, and what it led to.
struct Frame<S> {
    /// The operations before it, in order of their beginning, are all taken.
    first: usize,
    /// Taken operations from `first` on, sorted.
    beyond: Vec<usize>,
    /// What can be taken next and where it leads.
    choices: Vec<(usize, S)>,
}

/// Looks for an order of `history` that begins in `initial`. `steps_max` bounds the search; a
/// million take a second or so.
pub fn check<M: Model>(
    model: &M,
    initial: M::State,
    history: &[Timed<M::Operation>],
    steps_max: usize,
) -> Verdict {
    let mut order: Vec<usize> = (0..history.len()).collect();
    order.sort_by_key(|&index| (history[index].began, history[index].ended));
    let sorted: Vec<&Timed<M::Operation>> = order.iter().map(|&index| &history[index]).collect();
    let mut seen = HashSet::new();
    let mut best = (0, Vec::new());
    let mut frames = vec![open_frame(model, &sorted, 0, Vec::new(), &initial)];
    for _ in 0..steps_max {
        let Some(frame) = frames.last_mut() else {
            let stuck = best.1.into_iter().map(|place: usize| order[place]).collect();
            return Verdict::Violated { explained: best.0, stuck };
        };
        if is_explained(&sorted, frame.first, &frame.beyond) {
            return Verdict::Linearizable;
        }
        let explained = frame.first + frame.beyond.len();
        if explained >= best.0 {
            best = (explained, waiting(&sorted, frame.first, &frame.beyond));
        }
        let Some((taken, state)) = frame.choices.pop() else {
            frames.pop();
            continue;
        };
        let (first, beyond) = take(frame.first, &frame.beyond, taken);
        let frame = open_frame(model, &sorted, first, beyond.clone(), &state);
        if seen.insert((first, beyond, state)) {
            frames.push(frame);
        }
    }
    Verdict::Undecided
}

fn open_frame<M: Model>(
    model: &M,
    sorted: &[&Timed<M::Operation>],
    first: usize,
    beyond: Vec<usize>,
    state: &M::State,
) -> Frame<M::State> {
    let mut choices = Vec::new();
    let mut next = Vec::new();
    let mut candidates = waiting(sorted, first, &beyond);
    // The one that ended first is tried first: the last choice is popped first.
    candidates.sort_by_key(|&place| std::cmp::Reverse(sorted[place].ended));
    for place in candidates {
        model.step(state, &sorted[place].operation, &mut next);
        choices.extend(next.drain(..).map(|after| (place, after)));
    }
    // A read that fits now is as good now as later: no other choice is needed.
    let read = choices.iter().rposition(|(place, _)| model.is_read(&sorted[*place].operation));
    if let Some(read) = read {
        choices = vec![choices.swap_remove(read)];
    }
    Frame { first, beyond, choices }
}

/// Returns the operations that can be the next: those that began before any other that is left has
/// ended.
fn waiting<O>(sorted: &[&Timed<O>], first: usize, beyond: &[usize]) -> Vec<usize> {
    let mut places = Vec::new();
    let mut earliest_end = NEVER;
    for (place, timed) in sorted.iter().enumerate().skip(first) {
        if timed.began > earliest_end {
            break;
        }
        if beyond.binary_search(&place).is_err() {
            earliest_end = earliest_end.min(timed.ended);
            places.push(place);
        }
    }
    places.retain(|&place| sorted[place].began <= earliest_end);
    places
}

fn take(first: usize, beyond: &[usize], taken: usize) -> (usize, Vec<usize>) {
    let mut beyond = beyond.to_vec();
    let at = beyond.binary_search(&taken).expect_err("nothing is taken twice");
    beyond.insert(at, taken);
    let run = beyond.iter().enumerate().take_while(|(at, place)| **place == first + at).count();
    beyond.drain(..run);
    (first + run, beyond)
}

/// True if none of the operations that are left must have happened.
fn is_explained<O>(sorted: &[&Timed<O>], first: usize, beyond: &[usize]) -> bool {
    (first..sorted.len())
        .filter(|place| beyond.binary_search(place).is_err())
        .all(|place| sorted[place].ended == NEVER)
}

/// A znode used as a register: its data as a number, and its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Register {
    pub value: u64,
    pub version: i32,
}

/// What was done with a register, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterOperation {
    /// A read that saw this.
    Read(Register),
    /// A write without a condition, acknowledged with the version that it made.
    Set(Register),
    /// A write that asked for `expected`, acknowledged.
    Swap { expected: i32, value: u64 },
    /// A write that asked for `expected` and was refused because of it.
    SwapRefused { expected: i32 },
    /// A write of unknown fate; `expected` of `None` is without a condition.
    Maybe { expected: Option<i32>, value: u64 },
}

/// The rule of a register: each write raises the version by one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Registers;

impl Model for Registers {
    type State = Register;
    type Operation = RegisterOperation;

    fn step(&self, state: &Register, operation: &RegisterOperation, next: &mut Vec<Register>) {
        let written = |value| Register { value, version: state.version + 1 };
        match *operation {
            RegisterOperation::Read(seen) if seen == *state => next.push(*state),
            RegisterOperation::Set(made) if made.version == state.version + 1 => next.push(made),
            RegisterOperation::Swap { expected, value } if expected == state.version => {
                next.push(written(value));
            }
            RegisterOperation::SwapRefused { expected } if expected != state.version => {
                next.push(*state);
            }
            RegisterOperation::Maybe { expected, value } => {
                next.push(*state);
                if expected.is_none_or(|expected| expected == state.version) {
                    next.push(written(value));
                }
            }
            _ => {}
        }
    }

    fn is_read(&self, operation: &RegisterOperation) -> bool {
        matches!(operation, RegisterOperation::Read(_) | RegisterOperation::SwapRefused { .. })
    }
}
