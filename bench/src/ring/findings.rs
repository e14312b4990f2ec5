//! The results of the simulation of rings, how they are judged, and how people read them.

use std::fmt::Write as _;

use serde::Serialize;

use super::cluster::{Rings, Weights};
use super::tally::{Moves, Tally};
use super::{BLOCKS_USUAL, MEMBERS_USUAL_MAX};
use crate::machine::Machine;
use crate::report::{self, Table};

/// Farthest that the share of a member may be from the fair one.
const BALANCE_AIM: f64 = 0.05;
/// Most blocks that may move beyond those that have to, as a part of those.
const MOVEMENT_AIM: f64 = 0.01;
/// Most nanoseconds of a decision.
const DECISION_AIM_NS: f64 = 1000.0;

/// Everything that was found, with what is needed to read it.
#[derive(Clone, Debug, Serialize)]
pub struct RingReport {
    /// The machine.
    pub machine: Machine,
    /// Command line of this run.
    pub command: String,
    /// Commit of the directory it ran in, if that is known.
    pub commit: Option<String>,
    /// Threads that asked rings for blocks; times are of one.
    pub threads: usize,
    /// Rounds of measuring times.
    pub rounds: usize,
    /// Seed of keys and files.
    pub seed: u64,
    /// Each cluster.
    pub clusters: Vec<ClusterReport>,
    /// The aims, and what was found.
    pub aims: Vec<Aim>,
    /// What is needed to read the figures.
    pub notes: Vec<String>,
}

/// The results of one cluster.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterReport {
    /// Members.
    pub members: u64,
    /// How their weights differ.
    pub weights: Weights,
    /// Blocks that its rings were asked for.
    pub blocks: u64,
    /// Shares of the members.
    pub balance: Balance,
    /// What moves when a member joins.
    pub join: Movement,
    /// Share of that member, over its fair one.
    pub joiner_share: f64,
    /// What moves when a member leaves.
    pub leave: Movement,
    /// Shares of the others in what it owned.
    pub heirs: Balance,
    /// What a decision costs.
    pub decision: Decision,
}

/// How evenly blocks are spread: shares over the fair ones, which are those of the weights.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Balance {
    /// The smallest.
    pub smallest: f64,
    /// The largest.
    pub largest: f64,
    /// Standard deviation.
    pub deviation: f64,
    /// What it would be if each block were thrown by chance: the best that a rule can do that does not
    /// know the other blocks.
    pub chance: f64,
}

/// Blocks that move because of one member.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Movement {
    /// Blocks that have to move: those that the member owns, or owned.
    pub minimum: u64,
    /// Blocks that do move.
    pub moved: u64,
    /// Ratio of the blocks that move to those that have to.
    pub ratio: f64,
    /// Blocks that move from one of the other members to another.
    pub between_others: u64,
}

/// Medians over the rounds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Decision {
    /// Time to find the owner of a block, in nanoseconds.
    pub owner_ns: f64,
    /// Time to find three owners, each in another of three zones, in nanoseconds.
    pub owners_ns: f64,
    /// Making the ring, in microseconds.
    pub build_us: f64,
    /// Memory of the ring, in bytes.
    pub size_bytes: u64,
}

/// An aim, and what was found.
#[derive(Clone, Debug, Serialize)]
pub struct Aim {
    /// What is aimed at, and for which cluster.
    pub name: String,
    /// Largest value that reaches it.
    pub limit: f64,
    /// The value.
    pub found: f64,
    /// The unit of both.
    pub unit: &'static str,
    /// True if it is reached.
    pub is_met: bool,
}

impl Balance {
    /// Returns the balance of members with these counts and weights; those without weight do not count.
    pub(super) fn of(counts: &[u64], weights: &[u32]) -> Balance {
        let total = counts.iter().sum::<u64>() as f64;
        let weight_sum = weights.iter().copied().map(f64::from).sum::<f64>();
        let parts = weights.iter().map(|&weight| f64::from(weight) / weight_sum);
        let of_weight = counts.iter().zip(parts).filter(|&(_, part)| part > 0.0);
        let shares =
            of_weight.map(|(&count, part)| (count as f64 / (total * part).max(1e-9), part));
        let zero = Balance { smallest: f64::MAX, largest: 0.0, deviation: 0.0, chance: 0.0 };
        let mut members = 0.0;
        let sums = shares.fold(zero, |sums, (share, part)| {
            members += 1.0;
            Balance {
                smallest: sums.smallest.min(share),
                largest: sums.largest.max(share),
                deviation: sums.deviation + (share - 1.0) * (share - 1.0),
                // A count of n throws that hit with p has a variance of n p (1 - p).
                chance: sums.chance + (1.0 - part) / (total * part).max(1e-9),
            }
        });
        let root = |sum: f64| (sum / members).sqrt();
        Balance { deviation: root(sums.deviation), chance: root(sums.chance), ..sums }
    }

    /// Returns how far the share of a member is from the fair one, at most.
    pub fn error(&self) -> f64 {
        (self.largest - 1.0).max(1.0 - self.smallest)
    }
}

impl Movement {
    fn new(moves: Moves) -> Movement {
        let Moves { minimum, moved, between_others } = moves;
        // If nothing has to move, every move is too much.
        let ratio = if moved == minimum { 1.0 } else { moved as f64 / minimum.max(1) as f64 };
        Movement { minimum, moved, ratio, between_others }
    }

    fn figures(&self) -> [String; 4] {
        [
            self.moved.to_string(),
            self.minimum.to_string(),
            format!("{:.4}", self.ratio),
            self.between_others.to_string(),
        ]
    }
}

impl ClusterReport {
    pub(super) fn new(
        rings: &Rings,
        blocks: u64,
        tally: &Tally,
        decision: Decision,
    ) -> ClusterReport {
        let weights: Vec<u32> = rings.members.iter().map(|member| member.weight).collect();
        let (all, count) = (weights.iter().copied().map(f64::from).sum::<f64>(), rings.count());
        let joiner_part = f64::from(weights[count]) / all;
        let mut heirs = weights[..count].to_vec();
        heirs[rings.leaver] = 0;
        ClusterReport {
            members: count as u64,
            weights: rings.weights,
            blocks,
            balance: Balance::of(&tally.owned, &weights[..count]),
            join: Movement::new(tally.join),
            joiner_share: tally.join.minimum as f64 / (blocks as f64 * joiner_part),
            leave: Movement::new(tally.leave),
            heirs: Balance::of(&tally.inherited, &heirs),
            decision,
        }
    }

    /// Returns the head of its row in every table.
    fn head(&self) -> [String; 2] {
        [self.members.to_string(), self.weights.name().to_owned()]
    }
}

impl RingReport {
    /// Compares with the aims. Balance is judged if there are enough blocks to distinguish it from
    /// chance.
    pub(super) fn judge(&mut self) {
        let mut aims = Vec::new();
        let mut aim = |name: String, limit, found, unit| {
            aims.push(Aim { name, limit, found, unit, is_met: found <= limit });
        };
        let judged = |cluster: &&ClusterReport| cluster.members == MEMBERS_USUAL_MAX as u64;
        for cluster in self.clusters.iter().filter(judged) {
            let [members, weights] = cluster.head();
            let title = format!("{members} members, {weights} weights");
            if cluster.blocks >= BLOCKS_USUAL {
                let name = format!("{title}: farthest share from the fair one");
                aim(name, BALANCE_AIM * 100.0, cluster.balance.error() * 100.0, "%");
            }
            aim(format!("{title}: a decision"), DECISION_AIM_NS, cluster.decision.owner_ns, "ns");
        }
        let moves = self.clusters.iter().flat_map(|cluster| [&cluster.join, &cluster.leave]);
        let excess = moves.map(|moves| (moves.ratio - 1.0).abs()).fold(0.0, f64::max);
        let name = "all clusters: blocks that moved, off those that have to".to_owned();
        aim(name, MOVEMENT_AIM * 100.0, excess * 100.0, "%");
        self.aims = aims;
    }

    /// Returns the report for people.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let machine = &self.machine;
        let _ = writeln!(
            text,
            "{}, {} CPUs, Linux {}; blocks on {}, times on one, {} rounds; seed {}",
            machine.cpu,
            machine.cpu_count,
            machine.kernel,
            report::counted(self.threads, "thread"),
            self.rounds,
            self.seed,
        );
        let commit = self.commit.as_deref().unwrap_or("none");
        let _ = writeln!(text, "command: {}; commit: {commit}", self.command);
        for (title, table) in [
            ("shares of the members, over the fair ones", self.balance()),
            ("one member joins", self.joins()),
            ("one member leaves", self.leaves()),
            ("a decision, and the ring", self.decisions()),
        ] {
            let _ = write!(text, "\n{title}\n{}", table.render());
        }
        text.push('\n');
        for aim in &self.aims {
            let Aim { name, limit, found, unit, is_met } = aim;
            let verdict = if *is_met { "met" } else { "MISSED" };
            let _ =
                writeln!(text, "aim {verdict}: {name}: {found:.1} {unit}, at most {limit} {unit}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }

    fn balance(&self) -> Table {
        let columns =
            ["members", "weights", "blocks", "smallest", "largest", "deviation", "by chance"];
        let mut table = Table::new(&columns);
        for cluster in &self.clusters {
            let Balance { smallest, largest, deviation, chance } = cluster.balance;
            let figures = [
                cluster.blocks.to_string(),
                format!("{smallest:.4}"),
                format!("{largest:.4}"),
                percent(deviation),
                percent(chance),
            ];
            table.row(cluster.head().into_iter().chain(figures));
        }
        table
    }

    fn joins(&self) -> Table {
        let mut table = Table::new(&[
            "members",
            "weights",
            "moved",
            "had to",
            "ratio",
            "between others",
            "its share / fair",
        ]);
        for cluster in &self.clusters {
            let share = format!("{:.4}", cluster.joiner_share);
            table.row(cluster.head().into_iter().chain(cluster.join.figures()).chain([share]));
        }
        table
    }

    fn leaves(&self) -> Table {
        let mut table = Table::new(&[
            "members",
            "weights",
            "moved",
            "had to",
            "ratio",
            "between others",
            "shares of the others deviate",
            "by chance",
        ]);
        for cluster in &self.clusters {
            let heirs = [percent(cluster.heirs.deviation), percent(cluster.heirs.chance)];
            table.row(cluster.head().into_iter().chain(cluster.leave.figures()).chain(heirs));
        }
        table
    }

    fn decisions(&self) -> Table {
        let columns =
            ["members", "weights", "owner", "3 owners in 3 zones", "making the ring", "its memory"];
        let mut table = Table::new(&columns);
        for cluster in &self.clusters {
            let Decision { owner_ns, owners_ns, build_us, size_bytes } = cluster.decision;
            let figures = [
                format!("{owner_ns:.0} ns"),
                format!("{owners_ns:.0} ns"),
                report::latency(build_us),
                report::size(size_bytes),
            ];
            table.row(cluster.head().into_iter().chain(figures));
        }
        table
    }
}

fn percent(part: f64) -> String {
    format!("{:.2} %", part * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_measured_by_the_weights() {
        let balance = Balance::of(&[110, 180, 0, 310], &[1, 2, 0, 3]);
        assert!((balance.largest - 1.1).abs() < 1e-9, "{balance:?}");
        assert!((balance.smallest - 0.9).abs() < 1e-9, "{balance:?}");
        assert!((balance.error() - 0.1).abs() < 1e-9, "{balance:?}");
        // Errors of 1/10, 1/10 and 1/30.
        let deviation = ((0.01 + 0.01 + 1.0 / 900.0) / 3.0_f64).sqrt();
        assert!((balance.deviation - deviation).abs() < 1e-9, "{balance:?}");
        // 600 throws: (5/6) / 100, (4/6) / 200 and (3/6) / 300.
        let chance = ((5.0 / 600.0 + 4.0 / 1200.0 + 3.0 / 1800.0) / 3.0_f64).sqrt();
        assert!((balance.chance - chance).abs() < 1e-9, "{balance:?}");
    }

    #[test]
    fn what_moves_without_need_is_told() {
        let moves = |minimum, moved, between_others| Moves { minimum, moved, between_others };
        assert!((Movement::new(moves(100, 100, 0)).ratio - 1.0).abs() < 1e-9);
        assert!((Movement::new(moves(100, 150, 50)).ratio - 1.5).abs() < 1e-9);
        assert!((Movement::new(moves(0, 0, 0)).ratio - 1.0).abs() < 1e-9);
        assert!((Movement::new(moves(0, 7, 7)).ratio - 7.0).abs() < 1e-9);
    }
}
