//! What a cluster is at one epoch: what is mounted, which nodes are members, and which of them own a block.
//!
//! Always holds: a layout never changes, because another epoch has another layout. Nodes and clients share
//! it, so both find the same owners. Leaves to them what depends on the node that is asked: the master,
//! and whether coordination was lost.

use crate::cluster::{Member, Mount, mount_of};
use crate::ring::{self, Ring};

/// A cluster at one epoch.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Id of the cluster; empty before it is known.
    pub cluster: String,
    /// Grows with every change of what follows; 0 before anything is known.
    pub epoch: u64,
    /// What is mounted.
    pub mounts: Vec<Mount>,
    /// Members in the order of their ids.
    pub members: Vec<Member>,
    ring: Ring,
    /// Owners of each block, if it is the same number at every mount.
    replicas: Option<usize>,
}

impl Layout {
    /// Makes the ring of these members.
    pub fn new(cluster: String, epoch: u64, mounts: Vec<Mount>, members: Vec<Member>) -> Layout {
        let ring = ring_of(&members, false);
        let mut counts = mounts.iter().map(replicas_of);
        let first = counts.next().unwrap_or(1);
        let replicas = counts.all(|count| count == first).then_some(first);
        Layout { cluster, epoch, mounts, members, ring, replicas }
    }

    /// Returns the ring of the members that own blocks, by their index in `members`.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Makes a ring of all members, also of those that are draining: where a block may still be.
    pub fn ring_of_all(&self) -> Ring {
        ring_of(&self.members, true)
    }

    /// Returns the member with this id.
    pub fn member(&self, id: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// Returns how many owners each block of the file at this path has, at least 1.
    pub fn replicas(&self, path: &str) -> usize {
        self.replicas.unwrap_or_else(|| {
            mount_of(&self.mounts, path).map_or(1, |(index, _)| replicas_of(&self.mounts[index]))
        })
    }
}

fn replicas_of(mount: &Mount) -> usize {
    usize::from(mount.replicas.max(1))
}

fn ring_of(members: &[Member], all: bool) -> Ring {
    let members = members.iter().map(|member| ring::RingMember {
        key: member.key,
        weight: if all || member.is_active() { member.weight } else { 0 },
        zone: &member.zone,
    });
    Ring::new(&members.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::MemberState;

    fn member(id: &str, key: u64, state: MemberState) -> Member {
        Member {
            id: id.to_owned(),
            key,
            weight: 100,
            zone: String::new(),
            state: state as u8,
            address: String::new(),
            shards: Vec::new(),
            local: Vec::new(),
            machine: String::new(),
            run: 0,
            capacity: 0,
            server: String::new(),
        }
    }

    fn mount(prefix: &str, replicas: u8) -> Mount {
        Mount { prefix: prefix.to_owned(), source: String::new(), replicas }
    }

    #[test]
    fn a_draining_member_owns_nothing_and_may_still_have_blocks() {
        let members = vec![
            member("a", 0x9e37_79b9_7f4a_7c15, MemberState::Active),
            member("b", 0xbf58_476d_1ce4_e5b9, MemberState::Draining),
        ];
        let layout = Layout::new("c".to_owned(), 1, Vec::new(), members);
        let everyone = layout.ring_of_all();
        assert_eq!((layout.ring().len(), everyone.len()), (1, 2));
        let hashes = (0..100_u64).map(crate::placement::mix);
        assert!(hashes.clone().all(|hash| layout.ring().owner(hash) == Some(0)));
        assert!(hashes.clone().any(|hash| everyone.owner(hash) == Some(1)));
    }

    #[test]
    fn replicas_are_those_of_the_mount() {
        let replicas = |mounts: &[Mount], path| {
            Layout::new(String::new(), 1, mounts.to_vec(), Vec::new()).replicas(path)
        };
        assert_eq!(replicas(&[], "x"), 1);
        assert_eq!(replicas(&[mount("", 3)], "x"), 3);
        let mixed = [mount("", 0), mount("hot", 2)];
        assert_eq!((replicas(&mixed, "x"), replicas(&mixed, "hot/x")), (1, 2));
    }
}
