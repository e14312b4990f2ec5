//! Unix sockets: the way in for clients on this machine, without TCP's work for each byte.
//!
//! Owns their files: one that a dead node left is replaced, one that is in use is an error, and all are
//! removed when the node ends. Their mode, owner and group say which users may connect. Abstract names
//! have none, so there the node itself checks the user that connects.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use millrace_proto::socket::name as socket_name;
use rustix::fs::{Gid, Mode, Uid};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::geteuid;

use crate::access::Access;

/// The sockets of a node.
#[derive(Default)]
pub(crate) struct LocalSockets {
    /// Listeners of each shard, with its own path last; the first is where clients connect at first.
    pub(crate) listeners: Vec<Vec<OwnedFd>>,
    /// The users that may connect, if the system does not decide it: a path is a file, for which it
    /// checks the same.
    pub(crate) access: Option<Access>,
    /// Where each shard is reached, as clients are told.
    pub(crate) addresses: Vec<String>,
    /// Removes the files when the node ends.
    pub(crate) files: SocketFiles,
}

/// Files of sockets, removed when this is dropped.
#[derive(Default)]
pub(crate) struct SocketFiles(Vec<PathBuf>);

impl Drop for SocketFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            // If it is gone already that is fine.
            let _ = fs::remove_file(path);
        }
    }
}

/// The value of the configuration, in place of a path, for an automatic name.
pub(crate) const AUTOMATIC: &str = "auto";

/// Listens for each shard at an abstract name that this run of the node alone has.
///
/// # Errors
/// As `bind`.
pub(crate) fn listen_automatically(
    node: u64,
    shards: usize,
    backlog: i32,
    access: Access,
) -> io::Result<LocalSockets> {
    let mut sockets = LocalSockets { access: Some(access), ..LocalSockets::default() };
    for shard in 0..shards {
        let name = socket_name(geteuid().as_raw(), node, shard);
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
        sockets.listeners.push(vec![listen_at(&address, backlog)?]);
        sockets.addresses.push(format!("unix:@{name}"));
    }
    Ok(sockets)
}

/// Listens at `path`, and with several shards at `path.0` and so on for each.
///
/// # Errors
/// As `bind`; `AddrInUse` if a node is listening there.
pub(crate) fn listen(
    path: &Path,
    shards: usize,
    backlog: i32,
    access: Access,
) -> io::Result<LocalSockets> {
    let mut files = SocketFiles::default();
    let mut listeners: Vec<Vec<OwnedFd>> = (0..shards).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    listeners[0].push(listen_on(path, backlog, access, &mut files)?);
    if shards == 1 {
        addresses.push(format!("unix:{}", path.display()));
    } else {
        for (shard, sockets) in listeners.iter_mut().enumerate() {
            let mut own = path.as_os_str().to_owned();
            own.push(format!(".{shard}"));
            sockets.push(listen_on(Path::new(&own), backlog, access, &mut files)?);
            addresses.push(format!("unix:{}", Path::new(&own).display()));
        }
    }
    Ok(LocalSockets { listeners, access: None, addresses, files })
}

/// Listens at a path whose file has this mode, owner and group.
///
/// # Errors
/// As `bind`; `AddrInUse` if another process is listening there.
pub(crate) fn listen_on(
    path: &Path,
    backlog: i32,
    access: Access,
    files: &mut SocketFiles,
) -> io::Result<OwnedFd> {
    remove_stale(path)?;
    let socket = socket()?;
    // Linux makes the file with the mode of the socket, less the umask: no other user gets in before the
    // owner and the group are those that may.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    files.0.push(path.to_owned());
    let own = Access::own();
    let user = (access.user != own.user).then(|| Uid::from_raw(access.user));
    let group = (access.group != own.group).then(|| Gid::from_raw(access.group));
    if user.is_some() || group.is_some() {
        rustix::fs::chown(path, user, group)?;
    }
    fs::set_permissions(path, Permissions::from_mode(access.mode))?;
    rustix::net::listen(&socket, backlog)?;
    Ok(UnixListener::from(socket).into())
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

fn listen_at(address: &SocketAddrUnix, backlog: i32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    rustix::net::bind(&socket, address)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(UnixListener::from(socket).into())
}

/// Removes a socket at which no process listens. Anything else is left for `bind` to report.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_has_a_socket_and_the_files_go_with_the_node() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node");
        let sockets = listen(&path, 2, 16, Access::own()).unwrap();
        assert_eq!(sockets.listeners.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        assert!(sockets.addresses[1].ends_with("/node.1"), "{:?}", sockets.addresses);
        UnixStream::connect(&path).unwrap();
        UnixStream::connect(directory.path().join("node.1")).unwrap();
        drop(sockets);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_socket_in_use_is_left_alone_and_a_dead_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node");
        let running = listen(&path, 1, 16, Access::own()).unwrap();
        let second = listen(&path, 1, 16, Access::own()).err().map(|error| error.kind());
        assert_eq!(second, Some(io::ErrorKind::AddrInUse));
        UnixStream::connect(&path).unwrap();
        // This is the state after a kill: the file is there, and no process listens.
        drop(running.listeners);
        listen(&path, 1, 16, Access::own()).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node");
        fs::write(&path, "data").unwrap();
        assert!(listen(&path, 1, 16, Access::own()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }
}
