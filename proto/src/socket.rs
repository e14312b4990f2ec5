//! Abstract names of Unix sockets, which contain the user of the machine that listens there.
//!
//! An abstract name has no file, so no mode and no owner protect it: once the node that had it is gone,
//! any user of the machine may take it. So the name contains the number of the node's user, and a client
//! refuses a listener of another user.

/// How the names of nodes begin.
const PREFIX: &str = "millrace-";

/// Returns the name of a shard's socket, for the node with this run number, which runs as this user.
pub fn name(user: u32, run: u64, shard: usize) -> String {
    format!("{PREFIX}{user}-{run:016x}.{shard}")
}

/// Returns the number of the user in a name; None if the name contains none.
pub fn user_of(name: &str) -> Option<u32> {
    let (user, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let is_number = !user.is_empty() && user.bytes().all(|it| it.is_ascii_digit());
    is_number.then(|| user.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_user() {
        for user in [0, 1000, u32::MAX] {
            assert_eq!(user_of(&name(user, 7, 3)), Some(user));
        }
        for other in
            ["", "millrace-", "millrace-1", "millrace--1", "millrace-+1-2.0", "other-1-2.0"]
        {
            assert_eq!(user_of(other), None, "{other}");
        }
        assert_eq!(user_of("millrace-4294967296-1.0"), None, "no user has such a number");
    }
}
