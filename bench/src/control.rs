//! A blocking Millrace connection for requests beside a measurement: `Hello`, `Stat`, `List`, `Status`.
//!
//! Owns one request at a time, except that `Stat` of many paths is pipelined. Waiting is bounded by
//! the stream's timeouts. Speed is left to [`crate::load`].

use std::borrow::BorrowMut;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use millrace_proto::frame::{self, BODY_LENGTH_MAX};
use millrace_proto::message::{
    ArchivedHelloReply, ArchivedListReply, ArchivedStatReply, ArchivedStatusReply, Entry,
    HelloRequest, Kind, ListRequest, StatRequest,
};
use millrace_proto::{HEADER_SIZE, Header, Op, VERSION, feature};

use crate::address::{Address, Stream};
use crate::reply::check_reply;

/// Longest wait for one reply: the first `Stat` of a file may ask a slow source.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// `Stat` requests sent before the first reply is read.
const STATS_IN_FLIGHT_MAX: usize = 64;
/// Deepest directory that is listed.
const DEPTH_MAX: usize = 64;

/// What a node reports of itself.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name and version.
    pub server: String,
    /// Size of a block in bytes.
    pub block_size: u32,
    /// Most ranges in one `ReadMany`.
    pub ranges_max: u32,
    /// Address of each shard, at least one.
    pub shards: Vec<Address>,
}

/// A blocking connection, its own or borrowed.
pub struct Control<S> {
    stream: S,
}

impl Control<Stream> {
    /// Connects, with timeouts.
    ///
    /// # Errors
    /// If nothing answers there.
    pub fn connect(address: &Address) -> Result<Control<Stream>> {
        let stream = Stream::connect(address, REPLY_TIMEOUT)
            .with_context(|| format!("connect to {address}"))?;
        Ok(Control { stream })
    }
}

impl<'a> Control<&'a mut Stream> {
    /// Uses a connection that has another use later.
    pub fn over(stream: &'a mut Stream) -> Control<&'a mut Stream> {
        Control { stream }
    }
}

impl<S: BorrowMut<Stream>> Control<S> {
    /// Negotiates, and learns the limits of the node.
    ///
    /// # Errors If the peer is not a node, or one of a protocol version this build does not speak.
    pub fn hello(&mut self) -> Result<Node> {
        let request = HelloRequest {
            client: concat!("millrace-bench ", env!("CARGO_PKG_VERSION")).into(),
            version_min: VERSION,
            version_max: VERSION,
            features: feature::ALL,
        };
        let mut out = Vec::new();
        frame::encode(&mut out, Header::request(Op::Hello, 1, 0), &request);
        self.stream.borrow_mut().write_all(&out)?;
        let body = self.reply(1).context("say hello to the node")?;
        let reply = frame::body::<ArchivedHelloReply>(&body)?;
        let peer = self.stream.borrow_mut().peer().clone();
        let mut shards = Vec::new();
        for shard in reply.shards.iter() {
            shards.push(shard_address(shard.as_str(), &peer)?);
        }
        if shards.is_empty() {
            shards.push(peer);
        }
        Ok(Node {
            server: reply.server.as_str().to_owned(),
            block_size: reply.block_size.to_native(),
            ranges_max: reply.ranges_max.to_native(),
            shards,
        })
    }

    /// Looks paths up, in order.
    ///
    /// # Errors
    /// Naming the first path that the node does not find.
    pub fn stat_many(&mut self, paths: &[String]) -> Result<Vec<Entry>> {
        let mut entries = Vec::with_capacity(paths.len());
        let mut out = Vec::new();
        for chunk in paths.chunks(STATS_IN_FLIGHT_MAX) {
            out.clear();
            for (index, path) in chunk.iter().enumerate() {
                let request = StatRequest { path: path.clone() };
                let header = Header::request(Op::Stat, index as u64, 0);
                frame::encode(&mut out, header, &request);
            }
            self.stream.borrow_mut().write_all(&out)?;
            let mut found: Vec<Option<Entry>> = vec![None; chunk.len()];
            for _ in chunk {
                let (header, body) = self.receive()?;
                let index = header.request_id as usize;
                let slot = found.get_mut(index).context("a reply with an unknown id")?;
                let path = &chunk[index];
                check_reply(&header, &body).with_context(|| format!("look up {path:?}"))?;
                let reply = frame::body::<ArchivedStatReply>(&body)?;
                *slot = Some(Entry::from(&reply.entry));
            }
            for (entry, path) in found.into_iter().zip(chunk) {
                entries.push(entry.with_context(|| format!("no reply for {path:?}"))?);
            }
        }
        Ok(entries)
    }

    /// Returns all files at or below a path, at most `count_max` of them; `Entry::name` is the full
    /// path.
    ///
    /// # Errors
    /// If the path is not found or directories are nested too deep.
    pub fn find_files(&mut self, path: &str, count_max: usize) -> Result<Vec<Entry>> {
        let mut files = Vec::new();
        if !path.is_empty() {
            let entry = self.stat_many(&[path.to_owned()])?.remove(0);
            if entry.kind == Kind::File {
                return Ok(vec![entry]);
            }
        }
        let mut directories = vec![(path.trim_end_matches('/').to_owned(), 0)];
        while let Some((directory, depth)) = directories.pop() {
            ensure!(
                depth <= DEPTH_MAX,
                "{directory:?} is nested deeper than {DEPTH_MAX} directories"
            );
            let mut token = String::new();
            loop {
                let (entries, next) = self.list(&directory, &token)?;
                for mut entry in entries {
                    if !directory.is_empty() {
                        entry.name = format!("{directory}/{}", entry.name);
                    }
                    match entry.kind {
                        Kind::Directory => directories.push((entry.name, depth + 1)),
                        Kind::File => files.push(entry),
                    }
                    if files.len() == count_max {
                        return Ok(files);
                    }
                }
                if next.is_empty() {
                    break;
                }
                ensure!(next != token, "the node lists {directory:?} without end");
                token = next;
            }
        }
        Ok(files)
    }

    fn list(&mut self, path: &str, token: &str) -> Result<(Vec<Entry>, String)> {
        let request = ListRequest { path: path.to_owned(), token: token.to_owned(), limit: 0 };
        let mut out = Vec::new();
        frame::encode(&mut out, Header::request(Op::List, 2, 0), &request);
        self.stream.borrow_mut().write_all(&out)?;
        let body = self.reply(2).with_context(|| format!("list {path:?}"))?;
        let reply = frame::body::<ArchivedListReply>(&body)?;
        let entries = reply.entries.iter().map(Entry::from).collect();
        Ok((entries, reply.next.as_str().to_owned()))
    }

    /// Returns a counter of the node, or `None` if this node does not count that.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn counter(&mut self, name: &str) -> Result<Option<u64>> {
        let mut out = Vec::new();
        frame::encode_empty(&mut out, Header::request(Op::Status, 3, 0));
        self.stream.borrow_mut().write_all(&out)?;
        let body = self.reply(3).context("ask the node for its counters")?;
        let reply = frame::body::<ArchivedStatusReply>(&body)?;
        let mut counters = reply.counters.iter();
        let found = counters.find(|counter| counter.name.as_str() == name);
        Ok(found.map(|counter| counter.value.to_native()))
    }

    fn reply(&mut self, request_id: u64) -> Result<Vec<u8>> {
        let (header, body) = self.receive()?;
        check_reply(&header, &body)?;
        ensure!(
            header.request_id == request_id,
            "a reply to request {} instead of {request_id}",
            header.request_id
        );
        Ok(body)
    }

    fn receive(&mut self) -> Result<(Header, Vec<u8>)> {
        let stream = self.stream.borrow_mut();
        let mut first = [0; HEADER_SIZE];
        stream.read_exact(&mut first).context("wait for the node's reply")?;
        let header = Header::decode(&first)?;
        header.check_lengths(BODY_LENGTH_MAX, 0)?;
        let mut body = vec![0; header.body_length as usize];
        stream.read_exact(&mut body)?;
        header.check_body(&body)?;
        Ok((header, body))
    }
}

/// Returns the address of a shard as the node says it; an empty host is the host of this connection.
fn shard_address(shard: &str, peer: &Address) -> Result<Address> {
    let Some(port) = shard.strip_prefix(':') else {
        return Address::resolve(shard).context("the node gave a shard address that is none");
    };
    let Address::Tcp(peer) = peer else {
        bail!("the node gave a shard address without a host over a Unix socket: {shard:?}");
    };
    let port = port.parse().with_context(|| format!("shard address {shard:?}"))?;
    Ok(SocketAddr::new(peer.ip(), port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_shard_host_is_the_peer() {
        let peer = Address::resolve("127.0.0.9:1").unwrap();
        let check = |shard: &str, peer: &Address, expected: &str| {
            assert_eq!(shard_address(shard, peer).unwrap().to_string(), expected);
        };
        check(":4000", &peer, "127.0.0.9:4000");
        check("127.0.0.1:5", &peer, "127.0.0.1:5");
        assert!(shard_address("nothing", &peer).is_err());
        assert!(shard_address(":x", &peer).is_err());
        let peer = Address::resolve("unix:/run/node").unwrap();
        check("unix:/run/node.1", &peer, "unix:/run/node.1");
        assert!(shard_address(":4000", &peer).is_err());
    }
}
