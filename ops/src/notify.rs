//! What a service reports to the manager that started it: sd_notify(3), without its library.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The variable that says where the manager listens.
pub const VARIABLE: &str = "NOTIFY_SOCKET";

/// What the service reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Clients are served.
    Ready,
    /// The service ends.
    Stopping,
}

/// Reports to the manager, if there is one. Where that fails the error is logged and the service goes
/// on.
pub fn tell(notice: Notice) {
    let Some(socket) = std::env::var_os(VARIABLE).filter(|socket| !socket.is_empty()) else {
        return;
    };
    if let Err(error) = send(&socket, notice) {
        tracing::warn!("tell the service manager at {}: {error}", socket.display());
    }
}

fn send(socket: &OsStr, notice: Notice) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        _ => return Err(io::Error::other("it is neither a path nor an abstract name")),
    };
    let text: &[u8] = match notice {
        Notice::Ready => b"READY=1",
        Notice::Stopping => b"STOPPING=1",
    };
    let from = UnixDatagram::unbound()?;
    // A manager that does not read must not stop the service.
    from.set_nonblocking(true)?;
    from.send_to_addr(text, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn received(manager: &UnixDatagram) -> String {
        let mut bytes = [0; 64];
        let count = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_is_told_at_a_path_and_at_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), Notice::Ready).unwrap();
        assert_eq!(received(&manager), "READY=1");
        let name = format!("millrace-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send(&OsString::from(format!("@{name}")), Notice::Stopping).unwrap();
        assert_eq!(received(&manager), "STOPPING=1");
    }

    #[test]
    fn a_manager_that_is_not_there_is_an_error_and_no_more() {
        assert!(send(OsStr::new("/nowhere/notify"), Notice::Ready).is_err());
        assert!(send(OsStr::new("vsock:2:1"), Notice::Ready).is_err());
    }
}
