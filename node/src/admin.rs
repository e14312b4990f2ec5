//! The administration socket, at which the node takes orders.
//!
//! Owns where it is found, for the node and for the tools alike: both go by `directories`, which depend on
//! nothing but the user and `XDG_RUNTIME_DIR`. Always holds: the system lets only the node's own user and root
//! connect, which the node looks at once more; a place that another user made is not used by either side.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::access::Access;
use crate::local::{self, AUTOMATIC, SocketFiles};

/// Where systemd and others keep what goes with the machine's run.
const RUN: &str = "/run";
/// Where every user has room. It is not `TMPDIR`, which a node and a tool seldom have in common.
const TEMPORARY: &str = "/tmp";
const DIRECTORY: &str = "millrace";
/// Sockets over TCP, as proc(5) lists them.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// State of a socket that listens.
const LISTENS: &str = "0A";

/// A socket for administrators, and its file.
#[derive(Default)]
pub(crate) struct AdminSocket {
    pub(crate) listeners: Vec<OwnedFd>,
    pub(crate) files: SocketFiles,
}

/// The result of a search for a node's administration socket.
#[derive(Debug, Default)]
pub struct Search {
    /// Sockets where a node listens.
    pub found: Vec<PathBuf>,
    /// Every other place that was looked at, and why it is not one.
    pub tried: Vec<(PathBuf, io::Error)>,
}

/// Looks for the administration socket of a node of this machine that clients reach at this port: at all
/// places where a node puts it by default. Only root may open those of other users' nodes; the system's
/// table of listening sockets says which users these are.
pub fn search(port: u16) -> Search {
    let own = geteuid().as_raw();
    let mut users = vec![own];
    if own == 0 {
        let tables = TABLES.map(|table| fs::read_to_string(table).unwrap_or_default());
        let others = tables.iter().flat_map(|table| listeners_of(table, port));
        users.extend(others.filter(|user| *user != own));
    }
    users.sort_unstable();
    users.dedup();
    let mut search = Search::default();
    for user in users {
        for directory in directories(user) {
            let place = directory.join(name(port));
            let connected = check(&directory, user).and_then(|()| UnixStream::connect(&place));
            match connected {
                Ok(_) if !search.found.contains(&place) => search.found.push(place),
                Ok(_) => (),
                Err(error) => search.tried.push((place, error)),
            }
        }
    }
    search
}

/// Returns the users that listen at a port, by a table of proc(5).
fn listeners_of(table: &str, port: u16) -> impl Iterator<Item = u32> {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace();
        // Number, local address, remote address, state, three more, user.
        let local = fields.nth(1)?;
        let is_port = u16::from_str_radix(local.rsplit_once(':')?.1, 16) == Ok(port);
        let state = fields.nth(1)?;
        let user = fields.nth(3)?.parse().ok()?;
        (is_port && state == LISTENS).then_some(user)
    })
}

fn name(port: u16) -> String {
    format!("admin-{port}.sock")
}

/// Returns the directories in which a node of this user may have its socket, the best first.
fn directories(user: u32) -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = Vec::new();
    let is_own = user == geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime.filter(|directory| is_own && directory.is_absolute());
    for directory in runtime.into_iter().chain([Path::new(RUN).join("user").join(user.to_string())])
    {
        if directory.is_dir() && !directories.contains(&directory.join(DIRECTORY)) {
            directories.push(directory.join(DIRECTORY));
        }
    }
    // This one is root's, or was made by systemd for a user (`RuntimeDirectory=millrace`).
    directories.push(Path::new(RUN).join(DIRECTORY));
    directories.push(Path::new(TEMPORARY).join(format!("{DIRECTORY}-{user}")));
    directories
}

/// Listens at the place of the configuration; `port` is where clients reach the node.
///
/// # Errors As `bind`. If the place was left to the node and none can be had, the log says so.
pub(crate) fn listen(path: &Path, port: u16, backlog: i32) -> io::Result<AdminSocket> {
    if path.as_os_str().is_empty() {
        return Ok(AdminSocket::default());
    }
    if path.as_os_str() != AUTOMATIC {
        return listen_at(path, backlog);
    }
    let mut reason = None;
    for directory in directories(geteuid().as_raw()) {
        match prepare(&directory).and_then(|()| listen_at(&directory.join(name(port)), backlog)) {
            Ok(socket) => return Ok(socket),
            Err(error) => reason = Some(format!("{}: {error}", directory.display())),
        }
    }
    let reason = reason.unwrap_or_default();
    tracing::warn!("no administration socket: {reason}; say with --admin where it may be");
    Ok(AdminSocket::default())
}

/// Makes a directory in which no other user can do anything.
fn prepare(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => (),
    }
    check(directory, geteuid().as_raw())
}

/// Checks that no user but this one can put anything into a directory.
fn check(directory: &Path, user: u32) -> io::Result<()> {
    let found = fs::symlink_metadata(directory)?;
    let is_theirs = found.is_dir() && found.uid() == user && found.mode() & 0o022 == 0;
    match is_theirs {
        true => Ok(()),
        false => Err(io::Error::other(format!("not a directory of user {user} alone to write to"))),
    }
}

fn listen_at(path: &Path, backlog: i32) -> io::Result<AdminSocket> {
    let mut files = SocketFiles::default();
    let listener = local::listen_on(path, backlog, Access::own(), &mut files)?;
    Ok(AdminSocket { listeners: vec![listener], files })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_socket_is_for_its_user_alone_whatever_the_umask_says() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin");
        let socket = listen(&path, 1, 16).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(socket.listeners.len(), 1);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn the_system_tells_who_listens_at_a_port() {
        let table =
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0100007F:1B9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 71 1
   1: 0100007F:1B9E 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1002        0 72 1
   2: 00000000:1B9F 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1003        0 73 1
   3: odd
";
        assert_eq!(listeners_of(table, 7070).collect::<Vec<_>>(), [1001]);
        assert_eq!(listeners_of(table, 7072).count(), 0);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let table = fs::read_to_string(TABLES[0]).unwrap();
        let own = geteuid().as_raw();
        assert_eq!(listeners_of(&table, port).collect::<Vec<_>>(), [own]);
    }

    #[test]
    fn a_directory_of_others_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("millrace");
        prepare(&place).unwrap();
        prepare(&place).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(prepare(&place).is_err(), "others could put a socket of theirs there");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&place, &link).unwrap();
        assert!(prepare(&link).is_err());
    }
}
