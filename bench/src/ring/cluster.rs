//! Made-up clusters, and the blocks that they own.
//!
//! Keys are numbers that are mixed well, as those of real members are. Blocks are those of files,
//! so that their hashes come about as real ones do.

use millrace_proto::ring::{Ring, RingMember, weight_of};
use millrace_proto::{FileId, placement};
use serde::Serialize;

/// Memory of the members of a mixed cluster, in GiB. Guessed: machines of some years side by side.
const MIXED_GIB: [u64; 8] = [128, 160, 192, 224, 256, 320, 384, 512];
/// Memory of each member of a cluster of equals.
const EQUAL_GIB: u64 = 256;
/// Zones, of which each has a third of the members.
const ZONES: [&str; 3] = ["a", "b", "c"];
/// Blocks of a file.
const FILE_BLOCKS: u64 = 1000;

/// How the weights of a cluster differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// They do not differ.
    Equal,
    /// There are eight weights, the largest four times the smallest.
    Mixed,
}

impl Weights {
    /// Both, in the order of reports.
    pub const ALL: [Weights; 2] = [Weights::Equal, Weights::Mixed];

    /// Returns the name as in reports.
    pub fn name(self) -> &'static str {
        match self {
            Weights::Equal => "equal",
            Weights::Mixed => "mixed",
        }
    }

    fn weight(self, index: usize) -> u32 {
        let gib = match self {
            Weights::Equal => EQUAL_GIB,
            Weights::Mixed => MIXED_GIB[index % MIXED_GIB.len()],
        };
        weight_of(gib << 30)
    }
}

/// Three rings: a cluster's, the one with one member more, and the one with one less. Members have the
/// same index in all of them.
pub(super) struct Rings {
    pub(super) weights: Weights,
    /// Members of the cluster, and last the one that joins.
    pub(super) members: Vec<RingMember<'static>>,
    /// Index of the member that leaves.
    pub(super) leaver: usize,
    pub(super) before: Ring,
    pub(super) joined: Ring,
    pub(super) left: Ring,
}

impl Rings {
    pub(super) fn new(weights: Weights, count: usize, seed: u64) -> Rings {
        let start = placement::mix(seed);
        let member = |index: usize| RingMember {
            key: placement::mix(start.wrapping_add(index as u64)),
            weight: weights.weight(index),
            zone: ZONES[index % ZONES.len()],
        };
        let members: Vec<RingMember<'static>> = (0..=count).map(member).collect();
        let leaver = count / 2;
        let mut stayed = members[..count].to_vec();
        stayed[leaver].weight = 0;
        Rings {
            weights,
            leaver,
            before: Ring::new(&members[..count]),
            joined: Ring::new(&members),
            left: Ring::new(&stayed),
            members,
        }
    }

    /// Returns how many members there are before one joins or leaves.
    pub(super) fn count(&self) -> usize {
        self.members.len() - 1
    }
}

/// Blocks of made-up files.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    pub(super) count: u64,
    pub(super) seed: u64,
}

impl Blocks {
    /// Returns the hash of the block with this number.
    #[inline]
    pub(super) fn hash(self, number: u64) -> u64 {
        let file = placement::mix(self.seed ^ (number / FILE_BLOCKS));
        let id = u128::from(placement::mix(file)) << 64 | u128::from(file);
        placement::block_hash(FileId(id), number % FILE_BLOCKS)
    }
}
