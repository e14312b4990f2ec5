//! A small blocking client of the ZooKeeper protocol, for tests that look at every reply.
//!
//! Requests may be sent ahead. Replies come in their order; events come at any time and are kept apart.
//! Always holds: after the first trouble with a connection every call fails with [`Failure::Lost`], and
//! the fate of unanswered requests is unknown. Nothing is retried and nothing is sent that the test did
//! not ask for, no ping either.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use millrace_proto::zookeeper::record::{OPEN_ACL, PASSWORD_SIZE};
use millrace_proto::zookeeper::{
    ConnectRequest, ConnectResponse, CreateKind, Error, Reader, ReplyHeader, Request, Stat,
    WatchEvent, create_mode, jute, opcode, xid,
};

use crate::HANG_GUARD;

/// How long a connect to a port of this machine may take.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// Bytes received at once.
const RECEIVE_SIZE: usize = 64 << 10;

/// Why a call has no answer, or a bad one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The server refused, with this code.
    Refused(i32),
    /// The connection ended or the server was silent: it is not known whether the request was carried
    /// out.
    Lost(String),
    /// The session is gone.
    Expired,
}

impl Failure {
    /// True if the server refused with exactly this error.
    pub fn is(&self, error: Error) -> bool {
        *self == Failure::Refused(error.code())
    }
}

/// What a client holds of a session, on whatever connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    pub id: i64,
    pub password: [u8; PASSWORD_SIZE],
    /// The granted time-out in milliseconds.
    pub timeout_ms: i32,
    /// The highest zxid that was seen in it.
    pub zxid: i64,
}

/// An answer: its header, and the record behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub header: ReplyHeader,
    pub body: Vec<u8>,
}

impl Reply {
    /// Returns the reply, if it is not an error.
    ///
    /// # Errors
    /// [`Failure::Refused`].
    pub fn ok(self) -> Result<Reply, Failure> {
        match self.header.error {
            0 => Ok(self),
            code => Err(Failure::Refused(code)),
        }
    }

    /// Returns A reader of the record.
    pub fn reader(&self) -> Reader<'_> {
        Reader::new(&self.body)
    }

    /// Returns the codes of a multi's results, 0 for those that are not errors.
    ///
    /// # Panics
    /// If the record is none.
    pub fn multi_codes(&self) -> Vec<i32> {
        let mut reader = self.reader();
        let mut codes = Vec::new();
        loop {
            let operation = reader.int().expect("a result");
            let is_end = reader.boolean().expect("a result");
            reader.int().expect("a result");
            match operation {
                _ if is_end => return codes,
                opcode::ERROR => codes.push(reader.int().expect("a code")),
                _ => {
                    skip_result(&mut reader, operation);
                    codes.push(0);
                }
            }
        }
    }
}

fn skip_result(reader: &mut Reader<'_>, operation: i32) {
    if matches!(operation, opcode::CREATE | opcode::CREATE2) {
        reader.string().expect("a path");
    }
    if matches!(operation, opcode::CREATE2 | opcode::SET_DATA) {
        Stat::decode(reader).expect("a Stat");
    }
}

/// A watch event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// From the header: the zxid of the change that it reports.
    pub zxid: i64,
    /// A kind of [`millrace_proto::zookeeper::event`].
    pub kind: i32,
    pub path: String,
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    session: Session,
    next_xid: i32,
    patience: Duration,
    inbox: Vec<u8>,
    replies: VecDeque<Reply>,
    events: VecDeque<Event>,
    lost: Option<String>,
}

impl Client {
    /// Opens a new session.
    ///
    /// # Errors
    /// [`Failure::Lost`] if the server is not there or does not serve.
    pub fn connect(address: SocketAddr, timeout_ms: i32) -> Result<Client, Failure> {
        let session = Session { id: 0, password: [0; PASSWORD_SIZE], timeout_ms, zxid: 0 };
        Client::attach(address, session, HANG_GUARD)
    }

    /// Takes up `session`, or opens a new one if its id is 0. No answer may take longer than
    /// `patience`, neither to this nor to later calls.
    ///
    /// # Errors
    /// [`Failure::Expired`] if there is no such session, [`Failure::Lost`] if the server is not
    /// there or does not serve this client.
    pub fn attach(
        address: SocketAddr,
        session: Session,
        patience: Duration,
    ) -> Result<Client, Failure> {
        let lost = |error: std::io::Error| Failure::Lost(format!("connect: {error}"));
        let stream = TcpStream::connect_timeout(&address, CONNECT_WAIT.min(patience));
        let stream = stream.map_err(lost)?;
        stream.set_nodelay(true).map_err(lost)?;
        let mut client = Client {
            stream,
            session,
            next_xid: 0,
            patience,
            inbox: Vec::new(),
            replies: VecDeque::new(),
            events: VecDeque::new(),
            lost: None,
        };
        let mut out = Vec::new();
        let request = ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: session.zxid,
            timeout_ms: session.timeout_ms,
            session: session.id,
            password: Some(&session.password),
            read_only: Some(false),
        };
        jute::message(&mut out, |writer| request.encode(writer));
        client.write(&out)?;
        let frame = client.frame(Instant::now() + patience)?;
        let response = ConnectResponse::decode(&frame)
            .map_err(|error| Failure::Lost(format!("a bad handshake: {error}")))?;
        if response.timeout_ms <= 0 || response.session == 0 {
            return Err(Failure::Expired);
        }
        let ConnectResponse { timeout_ms, session: id, password, .. } = response;
        client.session = Session { id, password, timeout_ms, zxid: session.zxid };
        Ok(client)
    }

    /// Returns the session, to be taken up elsewhere.
    pub fn session(&self) -> Session {
        self.session
    }

    /// Returns the connection, for bytes that no client would send.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// True if every call will fail.
    pub fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    fn lose(&mut self, why: String) -> Failure {
        Failure::Lost(self.lost.get_or_insert(why).clone())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if let Some(why) = &self.lost {
            return Err(Failure::Lost(why.clone()));
        }
        let set = self.stream.set_write_timeout(Some(self.patience));
        set.and_then(|()| self.stream.write_all(bytes))
            .map_err(|error| self.lose(format!("send: {error}")))
    }

    /// Sends a request, does not wait and returns its xid.
    ///
    /// # Errors
    /// [`Failure::Lost`].
    pub fn send(&mut self, request: &Request<'_>) -> Result<i32, Failure> {
        let code = request.code();
        let request_xid = match code {
            opcode::PING => xid::PING,
            opcode::AUTH => xid::AUTH,
            opcode::SET_WATCHES | opcode::SET_WATCHES2 => xid::SET_WATCHES,
            _ => {
                self.next_xid += 1;
                self.next_xid
            }
        };
        let mut out = Vec::new();
        jute::message(&mut out, |writer| {
            writer.int(request_xid);
            writer.int(code);
            request.encode(writer);
        });
        self.write(&out)?;
        Ok(request_xid)
    }

    /// Receives the next message, without its length.
    fn frame(&mut self, deadline: Instant) -> Result<Vec<u8>, Failure> {
        loop {
            if let Some(head) = self.inbox.first_chunk::<4>() {
                let length = i32::from_be_bytes(*head);
                let Ok(length) = usize::try_from(length) else {
                    return Err(self.lose(format!("a length of {length} came")));
                };
                if self.inbox.len() >= 4 + length {
                    let frame = self.inbox[4..4 + length].to_vec();
                    self.inbox.drain(..4 + length);
                    return Ok(frame);
                }
            }
            self.receive_bytes(deadline)?;
        }
    }

    fn receive_bytes(&mut self, deadline: Instant) -> Result<(), Failure> {
        if let Some(why) = &self.lost {
            return Err(Failure::Lost(why.clone()));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.lose("no answer in time".to_owned()));
        }
        let start = self.inbox.len();
        self.inbox.resize(start + RECEIVE_SIZE, 0);
        let set = self.stream.set_read_timeout(Some(left));
        let received = set.and_then(|()| self.stream.read(&mut self.inbox[start..]));
        self.inbox.truncate(start + received.as_ref().map_or(0, |count| *count));
        match received {
            Ok(0) => Err(self.lose("closed by the server".to_owned())),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            // The deadline is looked at above.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(())
            }
            Err(error) => Err(self.lose(format!("receive: {error}"))),
        }
    }

    /// Takes the next message, a reply or an event, into its queue.
    fn take_message(&mut self, deadline: Instant) -> Result<(), Failure> {
        let frame = self.frame(deadline)?;
        let mut reader = Reader::new(&frame);
        let Ok(header) = ReplyHeader::decode(&mut reader) else {
            return Err(self.lose("a message without a header came".to_owned()));
        };
        if header.xid != xid::NOTIFICATION {
            let body = reader.rest().to_vec();
            self.replies.push_back(Reply { header, body });
            return Ok(());
        }
        let Ok(WatchEvent { kind, path, .. }) = WatchEvent::decode(&mut reader) else {
            return Err(self.lose("an event that cannot be read came".to_owned()));
        };
        self.events.push_back(Event { zxid: header.zxid, kind, path: path.to_owned() });
        Ok(())
    }

    /// Receives the next reply.
    ///
    /// # Errors
    /// [`Failure::Lost`].
    ///
    /// # Panics
    /// If the zxid of the session goes backwards.
    pub fn receive(&mut self) -> Result<Reply, Failure> {
        let deadline = Instant::now() + self.patience;
        while self.replies.is_empty() {
            self.take_message(deadline)?;
        }
        let reply = self.replies.pop_front().expect("there is one");
        // Replies to credentials have none.
        if reply.header.zxid != 0 {
            let (seen, zxid) = (self.session.zxid, reply.header.zxid);
            assert!(zxid >= seen, "zxid {zxid:#x} after {seen:#x} in one session");
            self.session.zxid = zxid;
        }
        Ok(reply)
    }

    /// Receives the next event, `None` if none comes within `wait`.
    ///
    /// # Errors
    /// [`Failure::Lost`] if the connection ended.
    pub fn event(&mut self, wait: Duration) -> Result<Option<Event>, Failure> {
        let deadline = Instant::now() + wait;
        while self.events.is_empty() {
            match self.take_message(deadline) {
                Ok(()) => {}
                Err(_) if Instant::now() >= deadline => {
                    // Silence is not an error here.
                    self.lost = None;
                    break;
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(self.events.pop_front())
    }

    /// Sends a request and waits for its reply, which may be an error.
    ///
    /// # Errors
    /// [`Failure::Lost`].
    ///
    /// # Panics
    /// If the reply belongs to another request.
    pub fn call(&mut self, request: &Request<'_>) -> Result<Reply, Failure> {
        let request_xid = self.send(request)?;
        let reply = self.receive()?;
        assert_eq!(reply.header.xid, request_xid, "replies come in the order of requests");
        Ok(reply)
    }

    /// Signs in as a user with a password, `NAME:PASSWORD`, under the scheme `digest`.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn sign_in(&mut self, credentials: &str) -> Result<(), Failure> {
        let auth = credentials.as_bytes();
        self.call(&Request::Auth { scheme: "digest", auth })?.ok().map(drop)
    }

    /// Creates a node that any client may use; `mode` is one of [`create_mode`]. Returns its path.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn create(&mut self, path: &str, data: &[u8], mode: i32) -> Result<String, Failure> {
        let reply = self.call(&create(path, data, mode))?.ok()?;
        Ok(reply.reader().path().expect("a path").to_owned())
    }

    /// Creates a persistent node.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn make(&mut self, path: &str, data: &[u8]) -> Result<(), Failure> {
        self.create(path, data, create_mode::PERSISTENT).map(|_| ())
    }

    /// Writes a node; a `version` of -1 is any.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn set(&mut self, path: &str, data: &[u8], version: i32) -> Result<Stat, Failure> {
        let reply = self.call(&Request::SetData { path, data: Some(data), version })?.ok()?;
        Ok(Stat::decode(&mut reply.reader()).expect("a Stat"))
    }

    /// Deletes a node; a `version` of -1 is any.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn delete(&mut self, path: &str, version: i32) -> Result<(), Failure> {
        self.call(&Request::Delete { path, version })?.ok().map(|_| ())
    }

    /// Reads a node.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn get(&mut self, path: &str, watch: bool) -> Result<(Option<Vec<u8>>, Stat), Failure> {
        let reply = self.call(&Request::GetData { path, watch })?.ok()?;
        let mut reader = reply.reader();
        let data = reader.buffer().expect("data").map(<[u8]>::to_vec);
        Ok((data, Stat::decode(&mut reader).expect("a Stat")))
    }

    /// Reads the Stat of a node.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn exists(&mut self, path: &str, watch: bool) -> Result<Stat, Failure> {
        let reply = self.call(&Request::Exists { path, watch })?.ok()?;
        Ok(Stat::decode(&mut reply.reader()).expect("a Stat"))
    }

    /// Reads the names of a node's children, sorted.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn children(&mut self, path: &str, watch: bool) -> Result<Vec<String>, Failure> {
        let reply = self.call(&Request::GetChildren { path, watch })?.ok()?;
        let mut reader = reply.reader();
        let names = reader.list(|reader| reader.path().map(str::to_owned)).expect("names");
        let mut names = names.unwrap_or_default();
        names.sort_unstable();
        Ok(names)
    }

    /// Waits until this server has all earlier writes to any server.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn sync(&mut self) -> Result<(), Failure> {
        self.call(&Request::Sync { path: "/" })?.ok().map(|_| ())
    }

    /// Reports that the client lives.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn ping(&mut self) -> Result<(), Failure> {
        self.call(&Request::Ping)?.ok().map(|_| ())
    }

    /// Closes the session, and with it deletes its ephemeral nodes.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn close(mut self) -> Result<(), Failure> {
        self.call(&Request::CloseSession)?.ok().map(|_| ())
    }
}

/// Returns a plain create, without a time to live, of a node that any client may use.
pub fn create<'a>(path: &'a str, data: &'a [u8], mode: i32) -> Request<'a> {
    let kind = match mode {
        create_mode::CONTAINER => CreateKind::Container,
        _ => CreateKind::Create,
    };
    Request::Create {
        kind,
        path,
        data: Some(data),
        acl: Some(vec![OPEN_ACL]),
        flags: mode,
        ttl_ms: 0,
    }
}
