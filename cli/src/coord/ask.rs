//! Asking a running replica: one request of HTTP/1.1 over its socket, or over TCP.
//!
//! Owns the flags that say which replica. Commands go only through the socket in the data directory, so
//! every user who may open that socket may give commands.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_coord::admin::{self, SOCKET};
use serde_json::Value;

use crate::failure::Failure;

/// The longest answer that is taken.
const ANSWER_MAX_BYTES: u64 = 256 << 20;
/// How long a connect, or a page, may take.
const PAGE_TIME: Duration = Duration::from_secs(20);

/// Which replica is asked, over its socket.
#[derive(clap::Args)]
pub(super) struct DataDir {
    /// Data directory of the replica
    #[arg(long = "data", visible_alias = "data-dir", value_name = "DIR")]
    pub(super) directory: PathBuf,
}

/// Which replica is asked, in either way.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Replica {
    /// Data directory of the replica, on this machine
    #[arg(long = "data", visible_alias = "data-dir", value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Its admin endpoint (--admin of the replica), on any machine
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
}

impl Replica {
    /// Asks for a page.
    ///
    /// # Errors
    /// If no replica answers, or it does not have this page.
    pub(super) fn page(&self, path: &str) -> Result<String, Failure> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: replica\r\n\r\n");
        let (answer, from) = match (&self.directory, &self.admin) {
            (Some(directory), _) => {
                let from = directory.join(SOCKET).display().to_string();
                let answer = connect(directory).map_err(|error| nobody(directory, &error))?;
                (exchange(Stream::Unix(answer), &request, Some(PAGE_TIME)), from)
            }
            (None, Some(address)) => {
                let stream = connect_tcp(address)?;
                (exchange(Stream::Tcp(stream), &request, Some(PAGE_TIME)), address.clone())
            }
            (None, None) => return Err(Failure::usage("give --data DIR or --admin HOST:PORT")),
        };
        let (status, body) = answer.map_err(|error| broken(&from, &error))?;
        match status {
            200 => Ok(body),
            404 => Err(Failure::new(format!("{from} has no page {path}"))
                .with_hint("ask the endpoint that --admin of the replica says, not --metrics")),
            _ => Err(Failure::new(format!("{from} answered: {}", told(&body)))),
        }
    }
}

impl DataDir {
    /// Gives a command and waits for its result.
    ///
    /// # Errors
    /// If no replica answers, or it refuses.
    pub(super) fn command(&self, path: &str, argument: &Value) -> Result<String, Failure> {
        let stream = connect(&self.directory).map_err(|error| nobody(&self.directory, &error))?;
        command(stream, &self.directory, path, argument)
    }

    /// As [`DataDir::command`], but `None` where no replica runs.
    ///
    /// # Errors
    /// As [`DataDir::command`].
    pub(super) fn command_if_running(
        &self,
        path: &str,
        argument: &Value,
    ) -> Result<Option<String>, Failure> {
        match connect(&self.directory) {
            Ok(stream) => command(stream, &self.directory, path, argument).map(Some),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(nobody(&self.directory, &error)),
        }
    }
}

fn command(
    stream: std::os::unix::net::UnixStream,
    directory: &Path,
    path: &str,
    argument: &Value,
) -> Result<String, Failure> {
    let from = directory.join(SOCKET).display().to_string();
    let body = argument.to_string();
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: replica\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    // The replica has limits of its own, and a backup may take any time.
    let answer = exchange(Stream::Unix(stream), &request, None);
    let (status, body) = answer.map_err(|error| broken(&from, &error))?;
    let fields: Value = serde_json::from_str(&body).unwrap_or_default();
    match (status, fields["result"].as_str(), fields["error"].as_str()) {
        (200, Some(result), _) => Ok(result.to_owned()),
        (_, _, Some(error)) => Err(Failure::new(error)),
        _ => Err(Failure::new(format!("{from} answered: {}", told(&body)))),
    }
}

enum Stream {
    Unix(std::os::unix::net::UnixStream),
    Tcp(TcpStream),
}

fn connect(directory: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    admin::connect(directory)
}

fn connect_tcp(address: &str) -> Result<TcpStream, Failure> {
    let usage = |error: io::Error| Failure::usage(format!("flag --admin: {address}: {error}"));
    let mut last = io::Error::from(ErrorKind::NotFound);
    for address in address.to_socket_addrs().map_err(usage)? {
        match TcpStream::connect_timeout(&address, PAGE_TIME) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(Failure::new(format!("cannot connect to {address}: {last}"))
        .with_hint("start the replica with --admin IP:PORT, or use --data DIR on its machine"))
}

/// True if no replica runs in a directory.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

fn nobody(directory: &Path, error: &io::Error) -> Failure {
    let shown = directory.display();
    match error.kind() {
        ErrorKind::PermissionDenied => {
            Failure::new(format!("the replica in {shown} may not be asked: {error}"))
                .with_hint("be the user that it runs as")
        }
        _ if !directory.is_dir() => Failure::new(format!("{shown} is not a directory"))
            .with_hint("check --data: the data_dir of the replica, dataDir in zoo.cfg"),
        _ if is_absent(error) => Failure::new(format!("no replica runs in {shown}"))
            .with_hint("check --data, or start it: millrace coord --data DIR"),
        _ => Failure::new(format!("the replica in {shown} cannot be asked: {error}")),
    }
}

fn broken(from: &str, error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            Failure::new(format!("{from} does not answer in time"))
        }
        _ => Failure::new(format!("{from} does not answer: {error}")),
    }
}

/// Sends a request and reads the answer: its status and its body.
fn exchange(stream: Stream, request: &str, time: Option<Duration>) -> io::Result<(u16, String)> {
    let mut answer = Vec::new();
    match stream {
        Stream::Unix(mut stream) => {
            stream.set_read_timeout(time)?;
            stream.write_all(request.as_bytes())?;
            stream.take(ANSWER_MAX_BYTES).read_to_end(&mut answer)?;
        }
        Stream::Tcp(mut stream) => {
            stream.set_read_timeout(time)?;
            stream.write_all(request.as_bytes())?;
            stream.take(ANSWER_MAX_BYTES).read_to_end(&mut answer)?;
        }
    }
    parse(&answer).ok_or_else(|| {
        io::Error::new(ErrorKind::InvalidData, "it sent an incomplete answer of HTTP")
    })
}

/// Returns status and body of an answer that is as long as it says.
fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let status = words.next()?.starts_with("HTTP/1.").then(|| words.next())??.parse().ok()?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map(|(_, value)| value.trim().parse());
    match length {
        Some(length) if length != Ok(body.len()) => None,
        _ => Some((status, body.to_owned())),
    }
}

/// Returns what an answer says, for people: its error if it has one.
fn told(body: &str) -> String {
    let fields: Value = serde_json::from_str(body).unwrap_or_default();
    fields["error"].as_str().unwrap_or(body.trim()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_whole_or_not_at_all() {
        let check = |answer: &str, expect: Option<(u16, &str)>| {
            let expect = expect.map(|(status, body)| (status, body.to_owned()));
            assert_eq!(parse(answer.as_bytes()), expect, "{answer:?}");
        };
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", Some((200, "hi")));
        check("HTTP/1.1 404 Not Found\r\ncontent-length:0\r\n\r\n", Some((404, "")));
        check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", None);
        check("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nhi", None);
        check("HTTP/1.1 200 OK\r\n", None);
        check("SSH-2.0-OpenSSH\r\n\r\n", None);
        check("HTTP/1.1\r\n\r\n", None);
        check("", None);
    }
}
