//! A peer that speaks raw frames, well or badly.
//!
//! Owns one blocking socket and no rules: it sends the bytes that it is given and checks replies only
//! where the test asks for that.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use millrace_proto::frame::{self, Body, HEADER_SIZE, Header};
use millrace_proto::message::{
    ArchivedErrorReply, ArchivedReadReply, ArchivedStatReply, ArchivedStatusReply, Entry,
    LoadRequest, Range, StatRequest,
};
use millrace_proto::proof::{
    ArchivedChallengeReply, ArchivedProof, ChallengeRequest, Exchange, Proof, Role, Secret, Side,
};
use millrace_proto::{Op, Status, checksum};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::{BLOCK, HANG_GUARD};

/// One connection.
#[derive(Debug)]
pub struct Peer {
    /// The socket, for anything that a test wants to do to it.
    pub stream: TcpStream,
    /// Block size of the node in bytes.
    pub block_size: u32,
    next_id: u64,
}

/// A reply frame.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its header.
    pub header: Header,
    /// Its body.
    pub body: Vec<u8>,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Reply {
    /// Returns the status of the reply.
    pub fn status(&self) -> Status {
        self.header.status()
    }

    /// Returns the message of a refusal.
    pub fn message(&self) -> String {
        frame::body::<ArchivedErrorReply>(&self.body)
            .map(|reply| reply.message.as_str().to_owned())
            .unwrap_or_default()
    }

    /// Returns the payload of a read from `offset` of `entry`, after its checksums were verified.
    ///
    /// # Errors
    /// The node's status.
    ///
    /// # Panics
    /// If the checksums do not match.
    pub fn into_bytes(
        self,
        entry: &Entry,
        offset: u64,
        block_size: u32,
    ) -> Result<Vec<u8>, Status> {
        if self.status() != Status::Ok {
            return Err(self.status());
        }
        let block = u64::from(block_size);
        let reply = frame::body::<ArchivedReadReply>(&self.body).expect("the body of a read");
        let block_length = block.min(entry.length - offset / block * block) as u32;
        let sums = reply.checksums.iter().map(|sum| sum.to_native());
        let tag = match self.header.covers_identity() {
            true => checksum::tag(entry.id, entry.version, (offset / block) as u32),
            false => 0,
        };
        let start = (offset % block) as u32;
        let verified = checksum::verify(&self.payload, start, block_length, tag, sums);
        assert_eq!(verified, Ok(()), "checksums of {} at {offset}", entry.name);
        Ok(self.payload)
    }
}

/// Returns a request frame.
pub fn request<T: Body>(op: Op, request_id: u64, body: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, Header::request(op, request_id, 0), body);
    bytes
}

/// Returns a request frame without a body.
pub fn empty_request(op: Op, request_id: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode_empty(&mut bytes, Header::request(op, request_id, 0));
    bytes
}

/// Returns a frame with this header as it is, except for its own checksum, and these bytes after it.
pub fn raw_frame(header: Header, body: &[u8]) -> Vec<u8> {
    let mut head = [0; HEADER_SIZE];
    header.encode(&mut head);
    [&head, body].concat()
}

/// Returns the range of an entry from `offset`.
pub fn range(entry: &Entry, offset: u64, length: u32) -> Range {
    Range { file: entry.id, version: entry.version, offset, length }
}

impl Peer {
    /// Connects; a read that takes longer than the guard fails.
    ///
    /// # Panics
    /// If nothing listens.
    pub fn connect(address: SocketAddr) -> Peer {
        Peer::over(TcpStream::connect(address).expect("connect to the node"))
    }

    /// Connects from another address of this machine, so that the node takes the peer for another host.
    ///
    /// # Errors
    /// As connect(2).
    pub fn connect_from(source: IpAddr, address: SocketAddr) -> io::Result<Peer> {
        let socket = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
        rustix::net::connect(&socket, &address)?;
        Ok(Peer::over(socket.into()))
    }

    /// Makes a peer of a connection.
    ///
    /// # Panics
    /// If the socket refuses its options.
    pub fn over(stream: TcpStream) -> Peer {
        stream.set_nodelay(true).expect("set TCP_NODELAY");
        stream.set_read_timeout(Some(HANG_GUARD)).expect("set a timeout");
        stream.set_write_timeout(Some(HANG_GUARD)).expect("set a timeout");
        Peer { stream, block_size: BLOCK, next_id: 1 }
    }

    /// Connects to a Unix socket.
    ///
    /// # Panics
    /// If nothing listens.
    pub fn connect_locally(path: &str) -> Peer {
        let stream = UnixStream::connect(path).expect("connect to the node's socket");
        // Bytes still come and go; the system refuses options of TCP.
        let stream = TcpStream::from(OwnedFd::from(stream));
        stream.set_read_timeout(Some(HANG_GUARD)).expect("set a timeout");
        stream.set_write_timeout(Some(HANG_GUARD)).expect("set a timeout");
        Peer { stream, block_size: BLOCK, next_id: 1 }
    }

    /// Proves in this role that the secret is known; returns what the node decided.
    ///
    /// # Panics
    /// If the node does not prove the same.
    pub fn prove(&mut self, role: Role, secret: &Secret) -> Status {
        let client = [7; 32];
        let request = ChallengeRequest { role: role as u8, node: 0, nonce: client };
        let reply = self.ask(Op::Challenge, &request);
        if reply.status() != Status::Ok {
            return reply.status();
        }
        let answer = frame::body::<ArchivedChallengeReply>(&reply.body).expect("a challenge").nonce;
        let exchange = Exchange { role: role as u8, node: 0, client, answer };
        let reply = self.ask(Op::Prove, &Proof { mac: exchange.proof(secret, Side::Client) });
        if reply.status() == Status::Ok {
            let mac = frame::body::<ArchivedProof>(&reply.body).expect("a proof").mac;
            assert!(exchange.verify(secret, Side::Node, &mac), "the node proves itself, too");
        }
        reply.status()
    }

    /// Returns this peer for a node with another block size.
    #[must_use]
    pub fn with_block_size(self, block_size: u32) -> Peer {
        Peer { block_size, ..self }
    }

    /// Returns the id of the next request.
    pub fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// Sends any bytes.
    ///
    /// # Panics
    /// If the socket does not take them.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("send bytes");
    }

    /// Sends a request and returns its id.
    pub fn send<T: Body>(&mut self, op: Op, body: &T) -> u64 {
        let id = self.take_id();
        self.send_raw(&request(op, id, body));
        id
    }

    /// Sends a request without a body and returns its id.
    pub fn send_empty(&mut self, op: Op) -> u64 {
        let id = self.take_id();
        self.send_raw(&empty_request(op, id));
        id
    }

    /// Receives the next frame.
    ///
    /// # Errors
    /// If the connection ended, or nothing came within the guard.
    ///
    /// # Panics
    /// If it is not a valid reply.
    pub fn try_receive(&mut self) -> io::Result<Reply> {
        let mut head = [0; HEADER_SIZE];
        self.stream.read_exact(&mut head)?;
        let header = Header::decode(&head).expect("a valid header");
        assert!(header.is_reply(), "a node sends replies");
        let mut body = vec![0; header.body_length as usize];
        self.stream.read_exact(&mut body)?;
        header.check_body(&body).expect("a valid body");
        let mut payload = vec![0; header.payload_length as usize];
        self.stream.read_exact(&mut payload)?;
        Ok(Reply { header, body, payload })
    }

    /// Receives the next frame.
    ///
    /// # Panics
    /// If none comes.
    pub fn receive(&mut self) -> Reply {
        self.try_receive().expect("receive a reply")
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Panics
    /// If another reply comes.
    pub fn ask<T: Body>(&mut self, op: Op, body: &T) -> Reply {
        let id = self.send(op, body);
        let reply = self.receive();
        assert_eq!(reply.header.request_id, id, "the reply to another request");
        reply
    }

    /// As [`Peer::ask`], with a budget in milliseconds.
    ///
    /// # Panics
    /// If another reply comes.
    pub fn ask_within<T: Body>(&mut self, op: Op, body: &T, budget_ms: u32) -> Reply {
        let id = self.take_id();
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, Header::request(op, id, budget_ms), body);
        self.send_raw(&bytes);
        let reply = self.receive();
        assert_eq!(reply.header.request_id, id, "the reply to another request");
        reply
    }

    /// True if the node answers on this connection.
    pub fn ping(&mut self) -> bool {
        let id = self.send_empty(Op::Ping);
        self.try_receive()
            .is_ok_and(|reply| reply.header.request_id == id && reply.status() == Status::Ok)
    }

    /// Looks a path up.
    ///
    /// # Errors
    /// The node's status.
    pub fn stat(&mut self, path: &str) -> Result<Entry, Status> {
        let reply = self.ask(Op::Stat, &StatRequest { path: path.to_owned() });
        match reply.status() {
            Status::Ok => {
                let body = frame::body::<ArchivedStatReply>(&reply.body).expect("a stat reply");
                Ok((&body.entry).into())
            }
            status => Err(status),
        }
    }

    /// Reads a range of one block; the checksums are verified.
    ///
    /// # Errors
    /// The node's status.
    /// Has a whole file in the node's memory.
    pub fn load(&mut self, path: &str) -> Status {
        self.ask(Op::Load, &LoadRequest { path: path.to_owned() }).status()
    }

    pub fn read(&mut self, entry: &Entry, offset: u64, length: u32) -> Result<Vec<u8>, Status> {
        let reply = self.ask(Op::Read, &range(entry, offset, length));
        reply.into_bytes(entry, offset, self.block_size)
    }

    /// Returns a counter of the node.
    ///
    /// # Panics
    /// If the node has no such counter.
    pub fn counter(&mut self, name: &str) -> u64 {
        self.send_empty(Op::Status);
        let reply = self.receive();
        let body = frame::body::<ArchivedStatusReply>(&reply.body).expect("a status reply");
        let counter = body.counters.iter().find(|counter| counter.name.as_str() == name);
        counter.unwrap_or_else(|| panic!("no counter {name}")).value.to_native()
    }

    /// Reads until the node closes or resets the connection; returns the bytes that came before.
    ///
    /// # Panics
    /// If the node does not close within the guard.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Ok(_) => bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!("the node does not close the connection")
            }
            Err(_) => bytes,
        }
    }

    /// Ends the connection with a reset, as a crashed client does.
    ///
    /// # Panics
    /// If the system refuses.
    pub fn reset(self) {
        let now = Some(std::time::Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(&self.stream, now).expect("set SO_LINGER");
    }
}
