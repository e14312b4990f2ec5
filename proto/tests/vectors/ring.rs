//! The ring rule.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use millrace_proto::placement::mix;
use millrace_proto::ring::{Ring, RingMember, WEIGHT_MAX, weight_of};

use crate::format::*;

/// Most members of an order that the file lists.
const ORDER_MAX: usize = 5;

/// A ring, and the blocks whose owners are asked for.
struct Asked {
    name: &'static str,
    about: &'static str,
    /// Weights and zones.
    members: Vec<(u32, String)>,
    /// Keys; those that are not given are made up.
    keys: Vec<u64>,
    hashes: Vec<u64>,
}

fn asked(name: &'static str, about: &'static str, members: &[(u32, &str)]) -> Asked {
    let members = members.iter().map(|&(weight, zone)| (weight, zone.to_owned())).collect();
    let hashes = [0, u64::MAX].into_iter().chain((0..8).map(|number| mix(number + 0x5eed)));
    Asked { name, about, members, keys: Vec::new(), hashes: hashes.collect() }
}

impl Asked {
    fn members(&self) -> Vec<RingMember<'_>> {
        let made_up = (0..).map(|number| mix(number + 0xbeef));
        let keys = self.keys.iter().copied().chain(made_up.skip(self.keys.len()));
        let members = self.members.iter().zip(keys);
        members.map(|((weight, zone), key)| RingMember { key, weight: *weight, zone }).collect()
    }
}

fn rings() -> Vec<Asked> {
    let equal = asked("equal", "One weight, no zones.", &[(64, ""); 6]);
    // Two keys that score 0 for the block that is the first of them: see 8.
    let tie = vec![0x89ec_d332_60d8_a974, 0xd5db_48bc_303d_77b9];
    let light_wins = vec![0, 1 << 32];
    let heavy_wins = vec![0x966d_bfc1_6913_c5d2, 0x966d_bfc0_6913_c5d2];
    vec![
        asked("nobody", "Without weight nothing is owned.", &[(0, ""), (0, "a")]),
        asked("one", "Alone with its weight.", &[(0, ""), (7, "a"), (0, "b")]),
        equal,
        asked(
            "weights",
            "Different weights, two of them twice, and none.",
            &[(10, ""), (20, ""), (40, ""), (0, ""), (40, ""), (100, ""), (100, "")],
        ),
        asked(
            "weights_extreme",
            "The least, the largest, and one that counts as the largest.",
            &[(1, ""), (WEIGHT_MAX, ""), (u32::MAX, ""), (1, ""), (WEIGHT_MAX - 1, "")],
        ),
        asked(
            "zones",
            "One weight in three zones, one of which has no name.",
            &[(64, "a"), (64, "a"), (64, "a"), (64, "b"), (64, "b"), (64, ""), (64, "a")],
        ),
        asked(
            "zones_weights",
            "Fewer zones than replicas; that of a member without weight does not count.",
            &[(30, "rack-1"), (60, "rack-1"), (30, "rack-2"), (0, "rack-3"), (80, "rack-2")],
        ),
        zones_many(),
        Asked {
            hashes: vec![tie[0]],
            keys: tie.clone(),
            ..asked("tie", "Two scores of 0: the lower key wins.", &[(64, ""); 2])
        },
        Asked {
            hashes: vec![tie[0]],
            keys: tie.iter().rev().copied().collect(),
            ..asked(
                "tie_of_largest",
                "The same, where weights differ but count as the largest.",
                &[(WEIGHT_MAX, ""), (WEIGHT_MAX + 1, "")],
            )
        },
        Asked {
            hashes: vec![light_wins[1]],
            keys: light_wins,
            ..asked(
                "tie_of_weights",
                "Costs of 32 for a weight of 1, and of 64 for 2: the lower key wins.",
                &[(1, ""), (2, "")],
            )
        },
        Asked {
            hashes: vec![heavy_wins[1]],
            keys: heavy_wins,
            ..asked(
                "tie_of_weights_other",
                "The same, where the heavier one has the lower key.",
                &[(1, ""), (2, "")],
            )
        },
    ]
}

/// Has more zones than are distinguished: those after the 128th count as the first.
fn zones_many() -> Asked {
    let mut many = asked("zones_many", "130 zones: the last two count as the first.", &[]);
    many.members = (0..130).map(|zone| (64, format!("z{zone:03}"))).collect();
    let ring = Ring::new(&many.members());
    let counts_as_first = |member: u32| member == 0 || member >= 128;
    let is_telling = |&hash: &u64| {
        let mut order = [0; 2];
        ring.owners(hash, 1, &mut order);
        order.into_iter().all(counts_as_first)
    };
    many.hashes = (0..).map(|number| mix(number + 0x5eed)).filter(is_telling).take(6).collect();
    many
}

/// Joins numbers by spaces; `-` for none.
fn spaced<T: ToString>(numbers: &[T]) -> String {
    let texts: Vec<String> = numbers.iter().map(T::to_string).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(" ") }
}

fn order(ring: &Ring, hash: u64, replicas: usize) -> String {
    let mut out = [0; ORDER_MAX];
    let count = ring.owners(hash, replicas, &mut out);
    spaced(&out[..count])
}

#[test]
fn ring_is_as_published() {
    let mut built = format!(
        "{FORMAT}# The owners of a block. `members` are key, weight and zone (`-` for the empty \
         one); they are\n# numbered from 0. For each of `hashes`: the owner (`-` for none), and \
         the order with 1, 2 and 3\n# replicas, the first {ORDER_MAX} of it. The last vector: \
         weights of capacities in bytes.\n"
    );
    let rings = rings();
    for asked in &rings {
        let members = asked.members();
        let ring = Ring::new(&members);
        let texts: Vec<String> = members
            .iter()
            .map(|RingMember { key, weight, zone }| {
                format!("{key:016x} {weight} {}", if zone.is_empty() { "-" } else { zone })
            })
            .collect();
        let hashes: Vec<String> = asked.hashes.iter().map(|hash| format!("{hash:016x}")).collect();
        let each = |of: &dyn Fn(u64) -> String| {
            asked.hashes.iter().map(|&hash| of(hash)).collect::<Vec<_>>().join(", ")
        };
        let _ = write!(
            built,
            "\nname: {}\nabout: {}\nmembers: {}\nhashes: {}\nowner: {}\n",
            asked.name,
            asked.about,
            texts.join(", "),
            hashes.join(", "),
            each(&|hash| spaced(ring.owner(hash).as_slice())),
        );
        for replicas in 1..=3 {
            let orders = each(&|hash| order(&ring, hash, replicas));
            let _ = writeln!(built, "replicas_{replicas}: {orders}");
        }
    }
    let mib = [0, 1, 31, 32, 33, 34, 35, 63, 64, 65, 1000, 49_152, 65_535, 1 << 24, 1 << 30];
    let bytes: Vec<u64> =
        mib.iter().map(|mib| mib << 20).chain([(5 << 20) - 1, u64::MAX]).collect();
    let weights: Vec<u32> = bytes.iter().map(|&bytes| weight_of(bytes)).collect();
    let _ = write!(
        built,
        "\nname: weight_of\nabout: Rounded to five bits.\ncapacities: {}\nweights: {}\n",
        spaced(&bytes),
        spaced(&weights),
    );
    let stored = check_file("ring.txt", &built);
    assert_eq!(stored.len(), rings.len() + 1);
    stored[..rings.len()].iter().for_each(check_stored);
}

/// Asks a ring that was read from the file.
fn check_stored(stored: &BTreeMap<String, String>) {
    let number = |text: &str| u64::from_str_radix(text, 16).expect("hex digits");
    let members: Vec<RingMember<'_>> = stored["members"]
        .split(", ")
        .map(|member| {
            let fields: Vec<&str> = member.split(' ').collect();
            let weight = fields[1].parse().expect("a number");
            RingMember { key: number(fields[0]), weight, zone: fields[2].trim_matches('-') }
        })
        .collect();
    let ring = Ring::new(&members);
    let orders = stored["replicas_3"].split(", ");
    for (hash, expect) in stored["hashes"].split(", ").zip(orders) {
        assert_eq!(order(&ring, number(hash), 3), expect, "{}", stored["name"]);
    }
}
