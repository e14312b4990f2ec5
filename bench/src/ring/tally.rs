//! Counts the blocks of each owner, before and after a member joins or leaves.

use std::ops::Range;

use super::cluster::{Blocks, Rings};

/// Blocks that move because of one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moves {
    /// Blocks that it owns, or owned: all that have to move.
    pub(super) minimum: u64,
    /// Blocks that have another owner than before.
    pub(super) moved: u64,
    /// Those of them that move from one of the others to another one.
    pub(super) between_others: u64,
}

impl Moves {
    fn count(&mut self, is_due: bool, has_moved: bool) {
        self.minimum += u64::from(is_due);
        self.moved += u64::from(has_moved);
        self.between_others += u64::from(has_moved && !is_due);
    }

    fn add(&mut self, other: Moves) {
        self.minimum += other.minimum;
        self.moved += other.moved;
        self.between_others += other.between_others;
    }
}

/// What was counted so far.
pub(super) struct Tally {
    /// Blocks of each member.
    pub(super) owned: Vec<u64>,
    /// Blocks of the member that left, by their owner then.
    pub(super) inherited: Vec<u64>,
    pub(super) join: Moves,
    pub(super) leave: Moves,
}

impl Tally {
    pub(super) fn new(members: usize) -> Tally {
        let none = vec![0; members];
        let (join, leave) = (Moves::default(), Moves::default());
        Tally { owned: none.clone(), inherited: none, join, leave }
    }

    /// Counts some of the blocks, on as many threads.
    pub(super) fn count(
        &mut self,
        rings: &Rings,
        blocks: Blocks,
        numbers: Range<u64>,
        threads: usize,
    ) {
        let share = (numbers.end - numbers.start).div_ceil(threads.max(1) as u64).max(1);
        let found: Vec<Tally> = std::thread::scope(|scope| {
            let starts = numbers.clone().step_by(share as usize);
            let workers: Vec<_> = starts
                .map(|start| {
                    let numbers = start..(start + share).min(numbers.end);
                    scope.spawn(move || Tally::of(rings, blocks, numbers))
                })
                .collect();
            let joined = workers.into_iter().map(|worker| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            joined.collect()
        });
        found.iter().for_each(|found| self.add(found));
    }

    fn of(rings: &Rings, blocks: Blocks, numbers: Range<u64>) -> Tally {
        let (joiner, leaver) = (rings.count(), rings.leaver);
        let mut tally = Tally::new(joiner);
        for number in numbers {
            let hash = blocks.hash(number);
            let owner = |ring: &millrace_proto::ring::Ring| {
                ring.owner(hash).expect("a ring of members that have weight")
            };
            let (before, joined, left) =
                (owner(&rings.before), owner(&rings.joined), owner(&rings.left));
            tally.owned[before] += 1;
            tally.join.count(joined == joiner, joined != before);
            tally.leave.count(before == leaver, left != before);
            if before == leaver {
                tally.inherited[left] += 1;
            }
        }
        tally
    }

    fn add(&mut self, other: &Tally) {
        let add = |ours: &mut Vec<u64>, theirs: &[u64]| {
            ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| *ours += theirs);
        };
        add(&mut self.owned, &other.owned);
        add(&mut self.inherited, &other.inherited);
        self.join.add(other.join);
        self.leave.add(other.leave);
    }
}
