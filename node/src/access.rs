//! Which users of the machine may connect to a Unix socket of the node.
//!
//! A socket with a path is a file: the system checks its mode, owner and group. An abstract name has
//! none of these, so the node asks which user connects (`SO_PEERCRED`, unix(7)) and decides as the
//! system would; it sees only the effective one of a user's groups. Always holds: a client that may not
//! connect is told so, and gets neither the node's memory nor a lease.

use std::os::fd::AsFd;
use std::{fs, io};

use rustix::net::sockopt::socket_peercred;

/// Bits of a mode that let owner, group and others connect: write permission, as unix(7) has it.
const CONNECT: [u32; 3] = [0o200, 0o020, 0o002];

/// The users and the groups of the machine, as passwd(5) and group(5) have them.
const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

/// Mode, owner and group of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub mode: u32,
    pub user: u32,
    pub group: u32,
}

impl Access {
    /// Returns access for the node's own user alone.
    pub(crate) fn own() -> Access {
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        Access { mode: 0o600, user: user.as_raw(), group: group.as_raw() }
    }

    /// Returns access with this mode, owner and group, by name or number; empty ones are the node's own.
    ///
    /// # Errors
    /// If there is no user or group of that name.
    pub(crate) fn new(mode: u32, user: &str, group: &str) -> io::Result<Access> {
        let own = Access::own();
        let named = |key, name, table, own| match str::is_empty(name) {
            true => Ok(own),
            false => number_of(name, table).map_err(|error| {
                io::Error::new(error.kind(), format!("--socket-{key} {name}: {error}"))
            }),
        };
        let user = named("user", user, USERS, own.user)?;
        let group = named("group", group, GROUPS, own.group)?;
        Ok(Access { mode, user, group })
    }

    /// Checks the user at the other end of a connection; returns true if it may be there.
    ///
    /// # Errors
    /// As `getsockopt`.
    pub(crate) fn admits(&self, socket: impl AsFd) -> io::Result<bool> {
        let peer = socket_peercred(socket)?;
        Ok(self.admits_user(peer.uid.as_raw(), peer.gid.as_raw()))
    }

    fn admits_user(&self, user: u32, group: u32) -> bool {
        let [owner, of_group, others] = CONNECT;
        let needed = match (user == self.user, group == self.group) {
            _ if user == 0 => return true,
            (true, _) => owner,
            (_, true) => of_group,
            _ => others,
        };
        self.mode & needed != 0
    }
}

/// Returns the number of a user or a group: the third field of its line.
fn number_of(name: &str, table: &str) -> io::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let lines = fs::read_to_string(table)?;
    let line = lines.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut found = line.filter(|fields| fields.first() == Some(&name));
    let number = found.next().and_then(|fields| fields.get(2)?.parse().ok());
    number.ok_or_else(|| {
        io::Error::other(format!("it is not in {table}; give a name that is there, or a number"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_user_is_judged_as_at_a_file() {
        let access = |mode| Access { mode, user: 7, group: 8 };
        assert!(access(0).admits_user(0, 0), "root");
        assert!(access(0o600).admits_user(7, 1));
        assert!(!access(0o660).admits_user(9, 9));
        assert!(access(0o660).admits_user(9, 8));
        assert!(!access(0o066).admits_user(7, 8), "the owner's bits alone count for the owner");
        assert!(access(0o666).admits_user(9, 9));
        assert!(!access(0o644).admits_user(9, 8), "to read is not to connect");
    }

    #[test]
    fn users_and_groups_have_names_and_numbers() {
        let own = Access::own();
        let access = |user: &str, group: &str| Access::new(0o660, user, group);
        assert_eq!(access("", "").unwrap(), Access { mode: 0o660, ..own });
        assert_eq!(access("root", "12").unwrap(), Access { mode: 0o660, user: 0, group: 12 });
        assert!(access("no user of this name", "").is_err());
    }

    #[test]
    fn the_other_end_is_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(Access::own().admits(&one).unwrap());
    }
}
