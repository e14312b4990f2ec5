//! Checks that the process that listens at a Unix socket may be the node that is meant.
//!
//! A node that has ended leaves its name to others: any user of the machine may listen at an abstract
//! name, or where a directory is open to all, and would be believed. So the client asks the system which
//! user listens. Always holds: nothing is sent to, and nothing read from, a listener of a user that is
//! not named here.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use millrace_proto::socket::user_of;
use rustix::process::geteuid;

/// The superuser, which can take any other user's place anyway.
const ROOT: u32 = 0;

/// Checks the user that listens at `path`, an abstract name after an `@` or the path of a file. Allowed
/// are root, this process's own user, the user in an abstract name, and the owner of the directory in
/// which the file lies, because it decides which files are there.
///
/// # Errors
/// `PermissionDenied`, with what to do, if the listener is of another user.
pub(super) fn check(path: &str, user: u32) -> io::Result<()> {
    let expected = match path.strip_prefix('@') {
        Some(name) => user_of(name),
        None => owner_above(Path::new(path)),
    };
    if [Some(ROOT), Some(geteuid().as_raw()), expected].contains(&Some(user)) {
        return Ok(());
    }
    let text = format!(
        "user {user} listens there, which is not root, not this user and not the user whose socket it is: it \
         may be another process than the node. Have the socket in a directory that its user owns, or use TCP"
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// Returns the owner of the directory in which a file lies.
fn owner_above(path: &Path) -> Option<u32> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    fs::metadata(above.unwrap_or(Path::new("."))).ok().map(|it| it.uid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_of_a_user_that_is_expected() {
        let own = geteuid().as_raw();
        let other = own + 4711;
        for path in ["@millrace-7-1.0", "/no/such/directory/node", "@name"] {
            check(path, own).unwrap();
            check(path, ROOT).unwrap();
            let refused = check(path, other).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{path}");
        }
        check(&format!("@millrace-{other}-1.0"), other).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node").display().to_string();
        assert!(check(&path, other).is_err());
        if own == ROOT {
            std::os::unix::fs::chown(directory.path(), Some(other), None).unwrap();
            check(&path, other).unwrap();
            assert!(check(&path, other + 1).is_err());
        }
    }
}
