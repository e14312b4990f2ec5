//! Reads of the state for the service itself, beside those of clients.

use super::State;
use super::path;
use crate::command::Identity;

impl State {
    /// Returns the data of `/zookeeper/config`: the members. Empty for a replica by itself.
    pub fn config_text(&self) -> String {
        let slot = self.tree.find(path::CONFIG).expect("it cannot be deleted");
        let data = self.tree.node(slot).data().unwrap_or_default();
        String::from_utf8_lossy(data).into_owned()
    }

    /// Returns the zxids of the last changes of a node's data and children: `mzxid` and `pzxid`.
    pub fn zxids(&self, path: &str) -> Option<(i64, i64)> {
        let stat = self.tree.stat(self.tree.find(path)?);
        Some((stat.mzxid, stat.pzxid))
    }

    /// True if there is a node and its ACL gives these identities the permissions `perms`.
    pub fn allows(&self, path: &str, perms: i32, identities: &[Identity<'_>]) -> bool {
        self.tree.find(path).is_some_and(|slot| {
            let acl = self.tree.node(slot).meta.acl;
            self.acls.allows(acl, perms, identities)
        })
    }
}
