//! Which clients may read and write what the cluster has in coordination.
//!
//! ```text
//! the cluster's path, /members and what is in it    all clients read, a client with the secret does
//! everything
//! all else                                          only for clients with the secret
//! ```
//!
//! Clients that look for nodes read addresses and need no secret for that. Always holds: with a secret
//! nothing is believed that could have been written without it. Without one (`insecure`) everything is
//! open to every client.

use millrace_proto::proof::Secret;
use zookeeper_client::{
    Acl, Acls, Client, Connector, CreateMode, CreateOptions, Error, Permission,
};

/// The scheme of ZooKeeper for users with passwords.
const DIGEST: &str = "digest";
/// Name of the user in coordination that every node of a cluster is.
const USER: &str = "millrace";
/// What the password is derived for: a server of coordination that learns it does not learn the secret.
const PURPOSE: &str = "millrace 1 coordination";

static READABLE: [Acl; 2] = [
    Acl::new_const(Permission::READ, "world", "anyone"),
    Acl::new_const(Permission::ALL, "auth", ""),
];

/// Whether only the cluster may use what a node writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    /// Every client may do everything.
    Open,
    /// The secret decides.
    Secret,
}

/// The clients that may read something besides the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readers {
    Nodes,
    World,
}

impl Rights {
    /// Returns the rights of a cluster with this secret, or without one.
    pub(crate) fn of(secret: Option<&Secret>) -> Rights {
        if secret.is_some() { Rights::Secret } else { Rights::Open }
    }

    fn acls(self, readers: Readers) -> Acls<'static> {
        match (self, readers) {
            (Rights::Open, _) => Acls::anyone_all(),
            (Rights::Secret, Readers::Nodes) => Acls::creator_all(),
            (Rights::Secret, Readers::World) => Acls::new(&READABLE),
        }
    }

    /// Returns how something is created.
    pub(crate) fn create(self, mode: CreateMode, readers: Readers) -> CreateOptions<'static> {
        mode.with_acls(self.acls(readers))
    }

    /// Creates the path of the cluster if it is not there yet. The nodes above it, which may be others'
    /// too, are open.
    ///
    /// # Errors
    /// As coordination.
    pub(crate) async fn make_path(self, client: &Client, path: &str) -> Result<(), Error> {
        if let Some((above, _)) = path.rsplit_once('/').filter(|(above, _)| !above.is_empty()) {
            client.mkdir(above, &CreateMode::Persistent.with_acls(Acls::anyone_all())).await?;
        }
        let options = self.create(CreateMode::Persistent, Readers::World);
        match client.create(path, b"", &options).await {
            Ok(_) | Err(Error::NodeExists) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Checks that these directories of a cluster were made with the secret, because another client may
    /// have made them before.
    ///
    /// # Errors
    /// [`Error::NoAuth`] if they are not, and others as coordination.
    pub(crate) async fn check(
        self,
        client: &Client,
        places: &[(&'static str, Readers)],
    ) -> Result<(), Error> {
        if self == Rights::Open {
            return Ok(());
        }
        for &(path, readers) in places {
            let (acls, stat) = client.get_acl(path).await?;
            if !are_ours(&acls) {
                return Err(Error::NoAuth);
            }
            // Only the user in the entry may do so, and it changes nothing.
            client.set_acl(path, &self.acls(readers), Some(stat.aversion)).await?;
        }
        Ok(())
    }
}

/// True if one user may do everything and every other client may read at most.
fn are_ours(acls: &[Acl]) -> bool {
    let (ours, others): (Vec<&Acl>, Vec<&Acl>) =
        acls.iter().partition(|acl| acl.scheme() == DIGEST && acl.permission() == Permission::ALL);
    ours.len() == 1 && others.iter().all(|acl| Permission::READ.has(acl.permission()))
}

/// Returns this connector with the credentials of the secret.
pub(crate) fn identify(connector: Connector, secret: Option<&Secret>) -> Connector {
    let Some(secret) = secret else { return connector };
    connector.with_auth(DIGEST, credentials(secret).as_bytes())
}

/// Returns name and password.
fn credentials(secret: &Secret) -> String {
    let code = secret.code(PURPOSE, b"");
    let password: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{USER}:{password}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_may_write_is_not_ours() {
        let acl = |permission, scheme, id| Acl::new_const(permission, scheme, id);
        let ours = acl(Permission::ALL, "digest", "millrace:x");
        let read = acl(Permission::READ, "world", "anyone");
        assert!(are_ours(std::slice::from_ref(&ours)));
        assert!(are_ours(&[read.clone(), ours.clone()]));
        let others = [
            acl(Permission::ALL, "world", "anyone"),
            acl(Permission::CREATE, "world", "anyone"),
            acl(Permission::ALL, "digest", "rogue:x"),
            acl(Permission::WRITE, "digest", "rogue:x"),
            acl(Permission::ALL, "ip", "10.0.0.1"),
        ];
        for other in others {
            assert!(!are_ours(&[ours.clone(), other.clone()]), "{other:?}");
        }
        assert!(!are_ours(&[read]));
    }

    #[test]
    fn the_password_is_not_the_secret() {
        let secret = Secret::parse(b"0123456789abcdef").unwrap();
        let text = credentials(&secret);
        assert!(text.starts_with("millrace:") && !text.contains("0123456789abcdef"), "{text}");
        assert_eq!(text.len(), "millrace:".len() + 64);
    }
}
