//! A whole node in this process, asked over a plain socket, frame by frame.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use millrace_node::{Config, Node};
use millrace_proto::frame::{self, Body, HEADER_SIZE, Header};
use millrace_proto::message::*;
use millrace_proto::{Op, Status, checksum};

struct Peer {
    stream: TcpStream,
    next_id: u64,
}

struct Reply {
    header: Header,
    body: Vec<u8>,
    payload: Vec<u8>,
}

impl Peer {
    fn connect(address: SocketAddr) -> Peer {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Peer { stream, next_id: 1 }
    }

    fn send<T: Body>(&mut self, op: Op, body: &T) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, Header::request(op, id, 0), body);
        self.stream.write_all(&bytes).unwrap();
        id
    }

    fn receive(&mut self) -> Reply {
        let mut head = [0; HEADER_SIZE];
        self.stream.read_exact(&mut head).unwrap();
        let header = Header::decode(&head).unwrap();
        let mut body = vec![0; header.body_length as usize];
        self.stream.read_exact(&mut body).unwrap();
        header.check_body(&body).unwrap();
        let mut payload = vec![0; header.payload_length as usize];
        self.stream.read_exact(&mut payload).unwrap();
        Reply { header, body, payload }
    }

    fn ask<T: Body>(&mut self, op: Op, body: &T) -> Reply {
        let id = self.send(op, body);
        let reply = self.receive();
        assert_eq!(reply.header.request_id, id);
        reply
    }

    fn stat(&mut self, path: &str) -> Result<Entry, Status> {
        let reply = self.ask(Op::Stat, &StatRequest { path: path.to_owned() });
        match reply.header.status() {
            Status::Ok => {
                Ok((&frame::body::<ArchivedStatReply>(&reply.body).unwrap().entry).into())
            }
            status => Err(status),
        }
    }

    fn read(&mut self, entry: &Entry, offset: u64, length: u32) -> Result<Vec<u8>, Status> {
        let range = Range { file: entry.id, version: entry.version, offset, length };
        let reply = self.ask(Op::Read, &range);
        check_read(&reply, entry, offset)
    }
}

const BLOCK: u64 = 64 << 10;

fn check_read(reply: &Reply, entry: &Entry, offset: u64) -> Result<Vec<u8>, Status> {
    if reply.header.status() != Status::Ok {
        return Err(reply.header.status());
    }
    let sums = &frame::body::<ArchivedReadReply>(&reply.body).unwrap().checksums;
    let block_length = BLOCK.min(entry.length - offset / BLOCK * BLOCK) as u32;
    let sums = sums.iter().map(|sum| sum.to_native());
    let offset = (offset % BLOCK) as u32;
    checksum::verify(&reply.payload, offset, block_length, 0, sums).unwrap();
    Ok(reply.payload.clone())
}

fn content(length: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

fn write(root: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(root.join(name), bytes).unwrap();
}

#[test]
fn serves_a_file_and_stops_cleanly() {
    let root = tempfile::tempdir().unwrap();
    let bytes = content(200_000, 1);
    write(root.path(), "a", &bytes);
    let node = Node::start(Config::tiny(root.path().to_owned())).unwrap();
    let mut peer = Peer::connect(node.address());
    let entry = peer.stat("a").unwrap();
    assert_eq!(entry.length, 200_000);
    for _ in 0..2 {
        for (offset, length) in
            [(0, 65536), (4096, 8192), (65536 + 10, 100), (131_072, 65536), (196_608, 65536)]
        {
            let end = (offset as usize + length as usize).min(bytes.len());
            assert_eq!(peer.read(&entry, offset, length).unwrap(), &bytes[offset as usize..end]);
        }
    }
    assert_eq!(peer.read(&entry, 0, 65537), Err(Status::InvalidArgument));
    assert_eq!(peer.read(&entry, 200_000, 1), Err(Status::OutOfRange));
    assert_eq!(peer.stat("b"), Err(Status::NotFound));
    assert!(node.stop().clean);
}
