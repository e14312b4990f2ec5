//! What a run counts, and how a difference is printed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use millrace_proto::zookeeper::Error;

use crate::item::{Item, Kind};
use crate::op::Op;

/// Most operations that are printed before one that differs.
const HISTORY_MAX: usize = 20;
/// Most kinds of differences that are printed in full.
const TOLD_MAX: usize = 20;

/// The number of the client that makes and removes a round's subtree.
pub(crate) const JANITOR: usize = usize::MAX;

/// An operation that was done, and what the left server answered.
struct Done {
    number: u64,
    slot: usize,
    op: Op,
    answer: String,
}

pub(crate) struct Report {
    started: Instant,
    /// Operations chosen by chance.
    pub(crate) ops: u64,
    /// Operations that set a round up, compare its tree and remove it.
    pub(crate) upkeep: u64,
    pub(crate) events: BTreeMap<i64, u64>,
    pub(crate) connects: u64,
    /// Counts by operation and error.
    answers: BTreeMap<(i32, i64), u64>,
    /// Counts of differences by kind.
    pub(crate) differences: BTreeMap<String, u64>,
    history: VecDeque<Done>,
    /// How many replies were altered on purpose, and how many of them were noticed.
    pub(crate) altered: u64,
    pub(crate) noticed: u64,
}

/// Returns the error of a reply, or for a refused multi the one that its results name.
fn failure(item: &Item) -> i64 {
    let error = item.error().unwrap_or(0);
    let unnamed = [0, i64::from(Error::RuntimeInconsistency.code())];
    let mut results = item.numbers("result error");
    if error == 0 { results.find(|error| !unnamed.contains(error)).unwrap_or(0) } else { error }
}

impl Report {
    pub(crate) fn new() -> Report {
        Report {
            started: Instant::now(),
            ops: 0,
            upkeep: 0,
            events: BTreeMap::new(),
            connects: 0,
            answers: BTreeMap::new(),
            differences: BTreeMap::new(),
            history: VecDeque::new(),
            altered: 0,
            noticed: 0,
        }
    }

    /// Counts what the left server said.
    pub(crate) fn count(&mut self, items: &[Item]) {
        for item in items {
            match item.kind {
                Kind::Event => {
                    *self.events.entry(item.number("type").unwrap_or(0)).or_default() += 1;
                }
                Kind::Reply(code) if item.answers.is_some() => {
                    let error = failure(item);
                    *self.answers.entry((code, error)).or_default() += 1;
                }
                _ => {}
            }
        }
    }

    /// Remembers operations that were done, with their answers.
    pub(crate) fn remember(&mut self, slot: usize, ops: Vec<Op>, items: &[Item]) {
        let count = ops.len() as u64;
        if slot == JANITOR {
            self.upkeep += count;
            return;
        }
        let first_number = self.ops;
        self.ops += count;
        let skipped = ops.len().saturating_sub(HISTORY_MAX);
        for (index, op) in ops.into_iter().enumerate().skip(skipped) {
            let answer = items.iter().find(|item| item.answers == Some(index));
            let answer = match answer {
                // Only the error is printed, because a history is for reading.
                Some(item) => format!("error {}", failure(item)),
                None => "no answer".to_owned(),
            };
            if self.history.len() == HISTORY_MAX {
                self.history.pop_front();
            }
            let number = first_number + index as u64;
            self.history.push_back(Done { number, slot, op, answer });
        }
    }

    /// Forgets the operations of the round before.
    pub(crate) fn forget(&mut self) {
        self.history.clear();
    }

    /// Counts a difference, and prints it in full the first time its kind is met.
    pub(crate) fn difference(&mut self, kind: String, tell: impl FnOnce() -> String) {
        let told = self.differences.len();
        let count = self.differences.entry(kind.clone()).or_default();
        *count += 1;
        if *count > 1 || told >= TOLD_MAX {
            return;
        }
        println!("DIFFERENCE {kind}");
        println!("  the last operations:");
        for Done { number, slot, op, answer } in &self.history {
            println!("    #{number} client {slot}: {op} -> {answer}");
        }
        println!("{}", tell());
    }

    pub(crate) fn print(&self) {
        let seconds = self.started.elapsed().as_secs_f64();
        let all = self.ops + self.upkeep;
        println!(
            "operations: {} by chance, {} to check and clean, in {seconds:.1} s, {:.0}/s",
            self.ops,
            self.upkeep,
            all as f64 / seconds
        );
        println!("handshakes: {}", self.connects);
        println!("answers by operation and error:");
        let mut by_code: BTreeMap<i32, Vec<String>> = BTreeMap::new();
        for ((code, error), count) in &self.answers {
            by_code.entry(*code).or_default().push(format!("{error}: {count}"));
        }
        for (code, counts) in by_code {
            println!("  {code:>4}  {}", counts.join("  "));
        }
        let total: u64 = self.answers.values().sum();
        let succeeded: u64 =
            self.answers.iter().filter(|((_, error), _)| *error == 0).map(|(_, count)| count).sum();
        println!("succeeded: {succeeded} of {total}");
        println!("events by type: {:?}", self.events);
        if self.altered > 0 {
            println!("altered on purpose: {}, noticed: {}", self.altered, self.noticed);
        }
        let differences: u64 = self.differences.values().sum();
        println!("differences: {differences}");
        for (kind, count) in &self.differences {
            println!("  {count:>9}  {kind}");
        }
    }
}
