//! What lies in coordination, as JSON: fields may be added, and unknown ones are passed over.

use std::collections::BTreeMap;

use millrace_proto::cluster::{
    MEMBER_BYTES_MAX, Member, MemberState, Mount, NAME_LENGTH_MAX, PIN_SIZE, PINS_BYTES_MAX,
    PINS_MAX, REPLICAS_MAX,
};
use millrace_proto::placement;
use millrace_proto::proof::Secret;
use serde::{Deserialize, Serialize};

use crate::config::SHARDS_MAX;
use crate::store::check_path;

/// What the proof of a member's record is for.
const PURPOSE: &str = "millrace 2 member";
/// Bytes of an archived member without its texts.
const MEMBER_SIZE: usize = 160;
/// Number of the layout that this program writes and reads.
pub(crate) const FORMAT: u32 = 1;

/// `/cluster`: what all nodes have to agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterRecord {
    pub format: u32,
    /// Random id of the cluster.
    pub id: String,
    /// Size of a block in bytes.
    pub block_size: u32,
}

/// `/members/ID`: a node, for as long as its session lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberRecord {
    pub id: String,
    /// As in [`Identity`](super::identity::Identity).
    pub secret: String,
    /// Number of this run, in hex digits: JSON's numbers have 53 bits.
    pub run: String,
    pub weight: u32,
    #[serde(default)]
    pub zone: String,
    pub address: String,
    pub shards: Vec<String>,
    #[serde(default)]
    pub local: Vec<String>,
    #[serde(default)]
    pub machine: String,
    pub capacity: u64,
    #[serde(default)]
    pub server: String,
    /// See [`MemberRecord::proof`]; empty where the cluster has no secret.
    #[serde(default)]
    pub proof: String,
}

/// What a record's proof is bound to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bond<'a> {
    /// Id of the cluster.
    pub cluster: &'a str,
    /// The session with coordination that made the record, and with which it ends: `ephemeralOwner`.
    pub session: i64,
}

impl MemberRecord {
    /// Returns the number of the run; 0 for text that is not a number.
    pub(crate) fn run(&self) -> u64 {
        u64::from_str_radix(&self.run, 16).unwrap_or(0)
    }

    /// Returns the proof that only a node that knows the secret of the cluster could write below this
    /// record, in hex digits. It holds for one session with coordination, so a copy that is written in
    /// another one proves nothing.
    pub(crate) fn proof(&self, secret: &Secret, bond: Bond<'_>) -> String {
        let code = secret.code(PURPOSE, &self.text(bond));
        code.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// True if the record was written by a node that knew the secret of the cluster, in this session.
    pub(crate) fn is_proved(&self, secret: &Secret, bond: Bond<'_>) -> bool {
        let digits = self.proof.as_bytes().chunks(2);
        let code: Option<Vec<u8>> = digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect();
        code.is_some_and(|code| secret.verify(PURPOSE, &self.text(bond), &code))
    }

    /// Returns all that others believe of it, each text after its length.
    fn text(&self, bond: Bond<'_>) -> Vec<u8> {
        let cluster = bond.cluster;
        let numbers = [bond.session, self.weight.into(), self.capacity as i64];
        let numbers = numbers.map(|number: i64| number.to_string());
        let counts = [self.shards.len().to_string(), self.local.len().to_string()];
        let texts = [cluster, &self.id, &self.run, &self.zone, &self.address, &self.machine];
        let texts = texts.into_iter().chain(numbers.iter().chain(&counts).map(String::as_str));
        let lists = self.shards.iter().chain(&self.local).map(String::as_str);
        let mut all = Vec::new();
        for text in texts.chain(lists) {
            all.extend_from_slice(&(text.len() as u32).to_le_bytes());
            all.extend_from_slice(text.as_bytes());
        }
        all
    }

    /// True if it can be passed on to others; one that cannot is ignored.
    pub(crate) fn is_reasonable(&self) -> bool {
        size_of_member(&self.member(false)) <= MEMBER_BYTES_MAX
            && self.id.len() <= NAME_LENGTH_MAX
            && self.zone.len() <= NAME_LENGTH_MAX
            && !self.address.is_empty()
            && !self.shards.is_empty()
            && self.shards.len() <= SHARDS_MAX
            && self.local.len() <= SHARDS_MAX
    }

    /// Returns it as clients see it.
    pub(crate) fn member(&self, is_draining: bool) -> Member {
        let state = if is_draining { MemberState::Draining } else { MemberState::Active };
        Member {
            id: self.id.clone(),
            key: key_of(&self.id),
            weight: self.weight,
            zone: self.zone.clone(),
            state: state as u8,
            address: self.address.clone(),
            shards: self.shards.clone(),
            local: self.local.clone(),
            machine: self.machine.clone(),
            run: self.run(),
            capacity: self.capacity,
            server: self.server.clone(),
        }
    }
}

/// Returns the key of a node on the ring: `mix` of the XXH3-64 of its id.
pub(crate) fn key_of(id: &str) -> u64 {
    placement::mix(twox_hash::XxHash3_64::oneshot(id.as_bytes()))
}

/// `/mounts`: what is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountsRecord {
    pub mounts: Vec<MountRecord>,
}

impl MountsRecord {
    /// Returns about how many bytes they take in a reply, and not less.
    pub(crate) fn size(&self) -> usize {
        self.mounts.iter().map(|mount| mount.prefix.len() + mount.source.len() + 32).sum()
    }
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountRecord {
    pub prefix: String,
    pub source: String,
    pub replicas: u8,
}

impl MountRecord {
    /// Returns it as the protocol has it.
    pub(crate) fn mount(&self) -> Mount {
        Mount {
            prefix: self.prefix.clone(),
            source: self.source.clone(),
            replicas: self.replicas.clamp(1, REPLICAS_MAX),
        }
    }
}

impl From<&Mount> for MountRecord {
    fn from(mount: &Mount) -> MountRecord {
        let Mount { prefix, source, replicas } = mount.clone();
        MountRecord { prefix, source, replicas }
    }
}

/// `/report`: what the members reported when the master last asked them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReportRecord {
    /// How many reports there were, of any master.
    pub number: u64,
    /// The master that asked.
    pub node: String,
    /// Members at that time, and those of them that answered.
    pub member_count: u32,
    pub answered_count: u32,
    /// Memory for blocks that all members registered, in bytes.
    pub registered_bytes: u64,
    /// The counters of those that answered, added up.
    pub counters: BTreeMap<String, u64>,
    /// The same for each zone, only of the figures that show how full it is; empty if the zones are very
    /// many.
    pub zones: BTreeMap<String, ZoneReport>,
}

/// A zone in a report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ZoneReport {
    pub member_count: u32,
    pub answered_count: u32,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    pub pinned_bytes: u64,
}

/// `/pins`: paths whose blocks are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PinsRecord {
    pub pins: Vec<String>,
}

impl PinsRecord {
    /// Returns the paths, sorted, each once. Whatever another client wrote there, a reply has room for
    /// them.
    pub(crate) fn pins(mut self) -> Vec<String> {
        self.pins.retain(|pin| check_path(pin).is_ok());
        self.pins.sort();
        self.pins.dedup();
        self.pins.truncate(PINS_MAX);
        while pins_size(&self.pins) > PINS_BYTES_MAX {
            self.pins.pop();
        }
        self.pins
    }
}

/// Returns the bytes that pins take in a reply.
pub(crate) fn pins_size(pins: &[String]) -> usize {
    pins.iter().map(|pin| pin.len() + PIN_SIZE).sum()
}

/// `/master/term`: the fencing token of the newest master.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TermRecord {
    /// Id of the master.
    pub node: String,
    /// `czxid` of its latch, in decimal digits.
    pub token: String,
}

impl TermRecord {
    pub(crate) fn token(&self) -> i64 {
        self.token.parse().unwrap_or(0)
    }
}

/// Reads a record.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read<'a, T: Deserialize<'a>>(path: &str, data: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(data).map_err(|error| format!("{path} is not readable: {error}"))
}

/// Writes a record.
pub(crate) fn write<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("plain structures have a JSON form")
}

/// Returns about how many bytes a member takes in a reply, and not less.
pub(super) fn size_of_member(member: &Member) -> usize {
    let texts = [&member.id, &member.zone, &member.address, &member.machine, &member.server];
    let texts = texts.into_iter().chain(&member.shards).chain(&member.local);
    MEMBER_SIZE + texts.map(|text| text.len() + 8).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_proved_with_all_that_it_says_and_for_its_cluster() {
        let secret = Secret::parse(b"0123456789abcdef").unwrap();
        let mut record: MemberRecord = read(
            "/members/a",
            br#"{"id":"a","secret":"s","run":"1","weight":64,"address":"a:1","shards":["a:1","a:2"],
                "capacity":9,"new":1}"#,
        )
        .unwrap();
        let bond = |cluster, session| Bond { cluster, session };
        let own = bond("c", 7);
        assert!(!record.is_proved(&secret, own), "nothing is not a proof");
        record.proof = record.proof(&secret, own);
        assert!(record.is_proved(&secret, own));
        assert!(!record.is_proved(&secret, bond("d", 7)));
        assert!(!record.is_proved(&secret, bond("c", 8)), "a copy in another session");
        assert!(!record.is_proved(&secret, bond("c", 0)), "a copy that stays for good");
        assert!(!record.is_proved(&Secret::parse(b"0123456789abcdeF").unwrap(), own));
        let others = [
            MemberRecord { weight: 1 << 24, ..record.clone() },
            MemberRecord { address: "evil:1".into(), ..record.clone() },
            MemberRecord {
                shards: vec!["a:1".into()],
                local: vec!["a:2".into()],
                ..record.clone()
            },
            MemberRecord { run: "2".into(), ..record.clone() },
            MemberRecord { proof: "z".repeat(64), ..record.clone() },
        ];
        for other in others {
            assert!(!other.is_proved(&secret, own), "{other:?}");
        }
    }

    #[test]
    fn pins_that_no_master_wrote_are_passed_over() {
        let read = |text: &str| read::<PinsRecord>("/pins", text.as_bytes()).unwrap().pins();
        assert_eq!(read(r#"{"pins":["b","a","/c","b","a/../b"],"more":1}"#), ["a", "b"]);
        let long = PinsRecord { pins: (0..99).map(|it| format!("{it:04000}")).collect() }.pins();
        assert_eq!(long.len(), PINS_BYTES_MAX / (4000 + PIN_SIZE));
        let many = PinsRecord { pins: (0..99).map(|it| it.to_string()).collect() }.pins();
        assert_eq!(many.len(), PINS_MAX);
    }
}
