//! The few requests of ZooKeeper's protocol that a question needs, in one session.
//!
//! ```text
//!  length │ xid │ code │ path, …        request; all numbers are big-endian, a text is its length and its bytes
//!  length │ xid │ zxid │ error │ body   reply, in the order of the requests
//! ```
//!
//! Owns the connection. It runs on the caller's runtime and has no thread or table of its own, so it works in a
//! child after `fork`. Always holds: no more is read than [`REPLY_MAX`], and what is cut off is an error.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time;

/// Longest reply in bytes. Guessed: the names of a hundred thousand members.
const REPLY_MAX: usize = 8 << 20;

const GET_DATA: i32 = 4;
const GET_CHILDREN: i32 = 8;
const SYNC: i32 = 9;
const CLOSE_SESSION: i32 = -11;

const NO_NODE: i32 = -101;
const NO_AUTH: i32 = -102;
const AUTH_FAILED: i32 = -115;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Cause {
    /// Nothing is at the path.
    NoNode,
    /// The server lets this client read nothing there.
    Denied,
    /// The server has not answered in time.
    Silent,
    Other(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::NoNode => out.write_str("nothing is there"),
            Cause::Denied => out.write_str("the server lets this client read nothing there"),
            Cause::Silent => out.write_str("the server does not answer"),
            Cause::Other(text) => out.write_str(text),
        }
    }
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Cause {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Cause::Other("the server ended the connection".to_owned())
            }
            _ => Cause::Other(error.to_string()),
        }
    }
}

/// A session with one server.
#[derive(Debug)]
pub(super) struct Session {
    stream: TcpStream,
    xid: i32,
    /// How long the server may keep silent.
    patience: Duration,
}

impl Session {
    /// Begins a session, which the server keeps for `timeout` should this process die.
    pub(super) async fn open(
        server: &str,
        timeout: Duration,
        patience: Duration,
    ) -> Result<Session, Cause> {
        let connected = time::timeout(patience, TcpStream::connect(server)).await;
        let stream = connected.map_err(|_| Cause::Silent)??;
        let mut session = Session { stream, xid: 0, patience };
        let mut request = Vec::new();
        put_i32(&mut request, 0); // version of the protocol
        request.extend_from_slice(&0_i64.to_be_bytes()); // the last transaction that was seen
        put_i32(&mut request, i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX));
        request.extend_from_slice(&0_i64.to_be_bytes()); // a new session
        put_bytes(&mut request, &[0; 16]); // its password
        request.push(0); // not with a server that only reads, which may be behind
        session.send(&[request]).await?;
        let reply = session.receive().await?;
        let mut reply = &reply[..];
        take(&mut reply, 4)?;
        if take_i32(&mut reply)? <= 0 {
            return Err(Cause::Other("the server has refused the session".to_owned()));
        }
        Ok(session)
    }

    /// Waits until the server has seen what any other one has acknowledged.
    pub(super) async fn sync(&mut self, path: &str) -> Result<(), Cause> {
        self.ask(SYNC, &[path], |request, path| put_bytes(request, path.as_bytes())).await?;
        self.answer().await.map(drop)
    }

    /// Returns the names of the children of a path.
    pub(super) async fn children(&mut self, path: &str) -> Result<Vec<String>, Cause> {
        self.ask(GET_CHILDREN, &[path], put_path_and_no_watch).await?;
        let body = self.answer().await?;
        let mut body = &body[..];
        let count = usize::try_from(take_i32(&mut body)?).unwrap_or(0);
        // A name is four bytes at least, so a count that is wrong asks for no memory.
        let mut names = Vec::with_capacity(count.min(body.len() / 4));
        for _ in 0..count {
            let name = std::str::from_utf8(take_bytes(&mut body)?);
            names.push(name.map_err(|_| cut_off())?.to_owned());
        }
        Ok(names)
    }

    /// Returns what lies at each of many paths, all of which are asked for before the first answer is awaited.
    /// There is one result for each; the outer error is of the connection.
    pub(super) async fn data(
        &mut self,
        paths: &[String],
    ) -> Result<Vec<Result<Vec<u8>, Cause>>, Cause> {
        self.ask(GET_DATA, paths, put_path_and_no_watch).await?;
        let mut found = Vec::with_capacity(paths.len());
        for _ in paths {
            let answer = self.answer().await;
            found.push(match answer {
                Ok(body) => Ok(take_bytes(&mut &body[..])?.to_owned()),
                Err(error @ (Cause::NoNode | Cause::Denied)) => Err(error),
                Err(error) => return Err(error),
            });
        }
        Ok(found)
    }

    /// Ends the session. The server does so by itself later, if it is not reached any more.
    pub(super) async fn close(mut self) {
        // There is nothing to do if the server is gone.
        let _ = self.ask(CLOSE_SESSION, &[""], |_, _| {}).await;
    }

    /// Sends a request for each path.
    async fn ask<P: AsRef<str>>(
        &mut self,
        code: i32,
        paths: &[P],
        put: impl Fn(&mut Vec<u8>, &str),
    ) -> Result<(), Cause> {
        let requests: Vec<Vec<u8>> = paths
            .iter()
            .map(|path| {
                self.xid += 1;
                let mut request = Vec::new();
                put_i32(&mut request, self.xid);
                put_i32(&mut request, code);
                put(&mut request, path.as_ref());
                request
            })
            .collect();
        self.send(&requests).await
    }

    /// Waits for the body of the next reply.
    async fn answer(&mut self) -> Result<Vec<u8>, Cause> {
        let mut reply = self.receive().await?;
        let mut rest = &reply[..];
        // Without a watch nothing comes but replies, which are in order.
        take(&mut rest, 12)?;
        let error = take_i32(&mut rest)?;
        match error {
            0 => Ok(reply.split_off(16)),
            NO_NODE => Err(Cause::NoNode),
            NO_AUTH | AUTH_FAILED => Err(Cause::Denied),
            _ => Err(Cause::Other(format!("the server answers with the error {error}"))),
        }
    }

    async fn send(&mut self, frames: &[Vec<u8>]) -> Result<(), Cause> {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| put_bytes(&mut bytes, frame));
        let sent = time::timeout(self.patience, self.stream.write_all(&bytes)).await;
        Ok(sent.map_err(|_| Cause::Silent)??)
    }

    async fn receive(&mut self) -> Result<Vec<u8>, Cause> {
        let receive = async {
            let length = self.stream.read_i32().await?;
            let length = usize::try_from(length).ok().filter(|&length| length <= REPLY_MAX);
            let Some(length) = length else {
                return Err(Cause::Other(
                    "the server does not speak ZooKeeper's protocol".to_owned(),
                ));
            };
            let mut reply = vec![0; length];
            self.stream.read_exact(&mut reply).await?;
            Ok(reply)
        };
        time::timeout(self.patience, receive).await.map_err(|_| Cause::Silent)?
    }
}

fn put_path_and_no_watch(request: &mut Vec<u8>, path: &str) {
    put_bytes(request, path.as_bytes());
    request.push(0);
}

fn put_i32(bytes: &mut Vec<u8>, value: i32) {
    bytes.extend_from_slice(&value.to_be_bytes());
}

/// Appends bytes behind their length.
///
/// # Panics
/// If they are longer than 2 GiB, which no path and no request of ours is.
fn put_bytes(bytes: &mut Vec<u8>, value: &[u8]) {
    put_i32(bytes, i32::try_from(value.len()).expect("requests are short"));
    bytes.extend_from_slice(value);
}

fn cut_off() -> Cause {
    Cause::Other("a reply of the server cannot be read".to_owned())
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], Cause> {
    let (front, rest) = bytes.split_at_checked(count).ok_or_else(cut_off)?;
    *bytes = rest;
    Ok(front)
}

fn take_i32(bytes: &mut &[u8]) -> Result<i32, Cause> {
    let value = take(bytes, 4)?.first_chunk().ok_or_else(cut_off)?;
    Ok(i32::from_be_bytes(*value))
}

/// Takes bytes behind their length, which is -1 for none at all.
fn take_bytes<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Cause> {
    let length = take_i32(bytes)?;
    let length = if length == -1 { 0 } else { usize::try_from(length).map_err(|_| cut_off())? };
    take(bytes, length)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Returns what a question comes to at a server that answers it with these frames.
    async fn ask(frames: &[&[u8]]) -> Result<Vec<String>, Cause> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| put_bytes(&mut bytes, frame));
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            stream.write_all(&bytes).await.expect("sent");
            let mut taken = Vec::new();
            stream.read_to_end(&mut taken).await.expect("read");
        });
        let second = Duration::from_secs(1);
        let result = async {
            let mut session = Session::open(&address, second, second).await?;
            let names = session.children("/m").await;
            session.close().await;
            names
        };
        let result = result.await;
        server.await.expect("the server ends with the connection");
        result
    }

    fn session(timeout_ms: i32) -> Vec<u8> {
        let mut frame = Vec::new();
        put_i32(&mut frame, 0);
        put_i32(&mut frame, timeout_ms);
        frame.extend_from_slice(&7_i64.to_be_bytes());
        put_bytes(&mut frame, &[1; 16]);
        frame
    }

    fn reply(error: i32, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        put_i32(&mut frame, error);
        frame.extend_from_slice(body);
        frame
    }

    #[tokio::test]
    async fn names_are_read_and_errors_are_told_apart() {
        let names = reply(0, &[0, 0, 0, 2, 0, 0, 0, 1, b'a', 0, 0, 0, 2, b'b', b'c']);
        assert_eq!(ask(&[&session(4000), &names]).await.expect("names"), ["a", "bc"]);
        let none = ask(&[&session(4000), &reply(NO_NODE, &[])]).await;
        assert!(matches!(none, Err(Cause::NoNode)), "{none:?}");
        let denied = ask(&[&session(4000), &reply(NO_AUTH, &[])]).await;
        assert!(matches!(denied, Err(Cause::Denied)), "{denied:?}");
        let expired = ask(&[&session(4000), &reply(-112, &[])]).await;
        assert!(matches!(expired, Err(Cause::Other(_))), "{expired:?}");
        let refused = ask(&[&session(0)]).await;
        assert!(matches!(refused, Err(Cause::Other(_))), "{refused:?}");
        let silent = ask(&[&session(4000)]).await;
        assert!(matches!(silent, Err(Cause::Silent)), "{silent:?}");
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_an_error_and_takes_no_memory() {
        for body in [
            &[][..],
            &[0, 0, 0],
            &[0x7f, 0xff, 0xff, 0xff],
            &[0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff, b'a'],
            &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xf0],
            &[0, 0, 0, 1, 0, 0, 0, 1, 0xff],
        ] {
            let found = ask(&[&session(4000), &reply(0, body)]).await;
            assert!(matches!(found, Err(Cause::Other(_))), "{body:?}: {found:?}");
        }
        let found = ask(&[&session(4000), &[1, 2, 3]]).await;
        assert!(matches!(found, Err(Cause::Other(_))), "{found:?}");
    }
}
