//! What was read from coordination, and how it is brought up to date.
//!
//! Always holds: what is published belongs to one epoch. Coordination notifies of a change before it
//! answers anything that is newer. So once every notified change has been read again, all of it is of
//! the same moment. The epoch is the number of the last change (`zxid`) to any of it.

use std::collections::{BTreeMap, BTreeSet};

use millrace_proto::cluster::{MEMBERS_MAX, MOUNTS_BYTES_MAX, MOUNTS_MAX, Mount, NAME_LENGTH_MAX};
use millrace_proto::layout::Layout;
use millrace_proto::proof::Secret;
use zookeeper_client::{Client, Error, Stat};

use super::View;
use super::record::{Bond, MemberRecord, MountsRecord, PinsRecord, read};

/// Where things lie below the cluster's path.
pub(crate) mod path {
    pub(crate) const CLUSTER: &str = "/cluster";
    pub(crate) const MEMBERS: &str = millrace_proto::coordination::MEMBERS;
    pub(crate) const DRAINS: &str = "/drains";
    pub(crate) const MOUNTS: &str = "/mounts";
    pub(crate) const PINS: &str = "/pins";
    pub(crate) const REPORT: &str = "/report";
    pub(crate) const JOBS: &str = "/jobs";
    pub(crate) const MASTER: &str = "/master";
    /// Followed by a number of ten digits.
    pub(crate) const LATCH: &str = "/master/latch-";
    pub(crate) const TERM: &str = "/master/term";
}

/// What has to be read again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    all: bool,
    member_list: bool,
    members: BTreeSet<String>,
    drains: bool,
    mounts: bool,
    pins: bool,
    latches: bool,
}

impl Changes {
    /// Returns everything, as after a connection was lost, because what happened meanwhile is not
    /// notified.
    pub(crate) fn all() -> Changes {
        Changes { all: true, ..Changes::default() }
    }

    /// True if everything has to be read.
    pub(crate) fn is_all(&self) -> bool {
        self.all
    }

    /// Takes note of a change at this path.
    pub(crate) fn note(&mut self, path: &str) {
        if let Some(id) = path.strip_prefix(path::MEMBERS) {
            self.member_list = true;
            self.members.extend(id.strip_prefix('/').map(str::to_owned));
        } else if path.starts_with(path::DRAINS) {
            self.drains = true;
        } else if path == path::MOUNTS {
            self.mounts = true;
        } else if path == path::PINS {
            self.pins = true;
        } else if path.starts_with(path::LATCH) || path == path::MASTER {
            self.latches = true;
        }
    }

    /// True if nothing has to be read.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Changes::default()
    }
}

/// What is known of the cluster.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Members with the number of the last change to their record.
    members: BTreeMap<String, (MemberRecord, i64)>,
    members_zxid: i64,
    drains: BTreeSet<String>,
    drains_zxid: i64,
    mounts: Vec<Mount>,
    mounts_zxid: i64,
    /// Version of the mounts for the next write; None if there are none yet.
    mounts_version: Option<i32>,
    /// Paths that are pinned, sorted.
    pins: Vec<String>,
    pins_zxid: i64,
    /// As of the mounts.
    pins_version: Option<i32>,
    /// Names of the latches, in order, and the id of the node that holds each.
    latches: BTreeMap<String, String>,
    /// What every member of the cluster knows, and the cluster's id.
    secret: Option<(Secret, String)>,
}

impl Known {
    /// Sets the secret of this cluster, if it has one: only records of nodes that know it are believed.
    pub(crate) fn expect(&mut self, secret: Option<&Secret>, cluster: &str) {
        self.secret = secret.map(|secret| (secret.clone(), cluster.to_owned()));
    }

    /// Reads again what changed.
    ///
    /// # Errors
    /// As coordination; what was read so far is kept, and the changes are still to be read.
    pub(crate) async fn refresh(
        &mut self,
        client: &Client,
        changes: &Changes,
    ) -> Result<(), Error> {
        if changes.all || changes.member_list {
            self.refresh_members(client, changes).await?;
        }
        if changes.all || changes.drains {
            let (names, stat) = client.get_children(path::DRAINS).await?;
            self.drains = names.into_iter().collect();
            self.drains_zxid = stat.pzxid;
        }
        if changes.all || changes.mounts {
            self.refresh_mounts(client).await?;
        }
        if changes.all || changes.pins {
            self.refresh_pins(client).await?;
        }
        if changes.all || changes.latches {
            self.refresh_latches(client).await?;
        }
        Ok(())
    }

    async fn refresh_members(&mut self, client: &Client, changes: &Changes) -> Result<(), Error> {
        let (names, stat) = client.get_children(path::MEMBERS).await?;
        let names: BTreeSet<String> = names.into_iter().take(MEMBERS_MAX).collect();
        self.members.retain(|id, _| names.contains(id));
        // All are asked for before the first answer is awaited.
        let wanted: Vec<_> = names
            .iter()
            .filter(|id| {
                changes.all || changes.members.contains(*id) || !self.members.contains_key(*id)
            })
            .map(|id| (id, client.get_data(&format!("{}/{id}", path::MEMBERS))))
            .collect();
        for (id, answer) in wanted {
            match answer.await {
                Ok((data, stat)) => self.note_member(id, &data, &stat),
                // The member left meanwhile, and a notification of that will come.
                Err(Error::NoNode) => drop(self.members.remove(id)),
                Err(error) => return Err(error),
            }
        }
        self.members_zxid = stat.pzxid;
        Ok(())
    }

    fn note_member(&mut self, id: &str, data: &[u8], stat: &Stat) {
        match read::<MemberRecord>(id, data) {
            Ok(record) if record.id == id && !record.is_reasonable() => {
                tracing::warn!(
                    "the record of member {id} has no address or is too large: it is left out"
                );
                self.members.remove(id);
            }
            Ok(record) if !self.is_believed(&record, stat) => {
                tracing::warn!(
                    "the record of member {id} is not one that a node with the cluster's secret wrote in \
                     this session: it is left out"
                );
                self.members.remove(id);
            }
            Ok(record) if record.id == id => {
                self.members.insert(id.to_owned(), (record, stat.mzxid));
            }
            Ok(record) => {
                tracing::warn!("member {id} calls itself {}: it is left out", record.id);
                self.members.remove(id);
            }
            Err(error) => {
                tracing::warn!("member {error}: it is left out");
                self.members.remove(id);
            }
        }
    }

    fn is_believed(&self, record: &MemberRecord, stat: &Stat) -> bool {
        let Some((secret, cluster)) = &self.secret else { return true };
        record.is_proved(secret, Bond { cluster, session: stat.ephemeral_owner })
    }

    async fn refresh_mounts(&mut self, client: &Client) -> Result<(), Error> {
        match client.get_data(path::MOUNTS).await {
            Ok((data, stat)) => {
                match read::<MountsRecord>(path::MOUNTS, &data) {
                    Ok(record) if record.size() > MOUNTS_BYTES_MAX => {
                        tracing::error!("the mounts are too many: they stay as they were");
                    }
                    Ok(record) => {
                        let mounts = record.mounts.iter().take(MOUNTS_MAX);
                        self.mounts = mounts.map(|mount| mount.mount()).collect();
                    }
                    Err(error) => tracing::error!("{error}: the mounts stay as they were"),
                }
                self.mounts_zxid = stat.mzxid;
                self.mounts_version = Some(stat.version);
            }
            Err(Error::NoNode) => {
                (self.mounts, self.mounts_zxid, self.mounts_version) = (Vec::new(), 0, None);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn refresh_pins(&mut self, client: &Client) -> Result<(), Error> {
        match client.get_data(path::PINS).await {
            Ok((data, stat)) => {
                match read::<PinsRecord>(path::PINS, &data) {
                    Ok(record) => self.pins = record.pins(),
                    Err(error) => tracing::error!("{error}: the pins stay as they were"),
                }
                self.pins_zxid = stat.mzxid;
                self.pins_version = Some(stat.version);
            }
            Err(Error::NoNode) => {
                (self.pins, self.pins_zxid, self.pins_version) = (Vec::new(), 0, None);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn refresh_latches(&mut self, client: &Client) -> Result<(), Error> {
        let (names, _) = client.get_children(path::MASTER).await?;
        let mut latches = BTreeMap::new();
        for name in names {
            let path = format!("{}/{name}", path::MASTER);
            if !path.starts_with(path::LATCH) {
                continue;
            }
            match self.latches.remove(&path) {
                // What a latch holds never changes.
                Some(id) => drop(latches.insert(path, id)),
                None => match client.get_data(&path).await {
                    Ok((data, _)) => {
                        // A longer one was not written by a node.
                        let data = data.get(..NAME_LENGTH_MAX).unwrap_or(&data);
                        let id = String::from_utf8_lossy(data).into_owned();
                        latches.insert(path, id);
                    }
                    Err(Error::NoNode) => {}
                    Err(error) => return Err(error),
                },
            }
        }
        self.latches = latches;
        Ok(())
    }

    /// Returns the number of the last change.
    pub(crate) fn epoch(&self) -> u64 {
        let members = self.members.values().map(|(_, zxid)| *zxid);
        let others = [self.members_zxid, self.drains_zxid, self.mounts_zxid, self.pins_zxid];
        members.chain(others).max().unwrap_or(0).max(0) as u64
    }

    /// Returns the view as others see it.
    pub(crate) fn view(&self, cluster: &str, me: &str) -> View {
        let members = self.members.iter();
        let members =
            members.map(|(id, (record, _))| record.member(self.drains.contains(id))).collect();
        let mounts = self.mounts.clone();
        let layout = Layout::new(cluster.to_owned(), self.epoch(), mounts, members);
        let mut view = View::new(layout, me);
        view.pins = self.pins.clone();
        // A record is written once.
        view.joined_at = self.members.get(me).map_or(0, |(_, zxid)| *zxid);
        view.master = self.master().map(|(_, id)| id.to_owned()).unwrap_or_default();
        view
    }

    /// Returns the path of the first latch, and the id of the node that is the master by it.
    pub(crate) fn master(&self) -> Option<(&str, &str)> {
        let (path, id) = self.latches.first_key_value()?;
        Some((path, id))
    }

    /// Returns the mounts, and their version for the next write.
    pub(crate) fn mounts(&self) -> (&[Mount], Option<i32>) {
        (&self.mounts, self.mounts_version)
    }

    /// Returns the pins, and their version for the next write.
    pub(crate) fn pins(&self) -> (&[String], Option<i32>) {
        (&self.pins, self.pins_version)
    }

    /// True if a node with this id is in the cluster now.
    pub(crate) fn is_member(&self, id: &str) -> bool {
        self.members.contains_key(id)
    }

    /// True if a member is drained.
    pub(crate) fn is_drained(&self, id: &str) -> bool {
        self.drains.contains(id)
    }

    /// Returns how many members are not drained, besides this one.
    pub(crate) fn others_active(&self, id: &str) -> usize {
        let others = self.members.keys().filter(|other| *other != id);
        others.filter(|other| !self.drains.contains(*other)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_name_what_has_to_be_read() {
        let mut changes = Changes::default();
        changes.note("/members/a");
        changes.note("/master/latch-0000000003");
        let members = BTreeSet::from(["a".to_owned()]);
        let wanted = Changes { member_list: true, members, latches: true, ..Changes::default() };
        assert_eq!(changes, wanted);
        for path in ["/", "/cluster", "/master/term", "/jobs/1", "/else"] {
            let mut changes = Changes::default();
            changes.note(path);
            assert!(changes.is_empty(), "{path}");
        }
        let mut changes = Changes::default();
        changes.note("/drains/a");
        changes.note("/mounts");
        changes.note("/pins");
        let wanted = Changes { drains: true, mounts: true, pins: true, ..Changes::default() };
        assert_eq!(changes, wanted);
    }
}
