//! One writer: its nodes, what it sent, which of it was acknowledged, and what is left of it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use millrace_proto::zookeeper::{Request, create_mode};
use millrace_tests::coord::client::create;
use millrace_tests::coord::{Client, Failure, Session, attach_any};

/// Requests under way at a time.
const DEPTH: usize = 32;
/// Nodes that exist at a time, at most.
const NODES_MAX: usize = 48;
/// Longest data of a node in bytes.
const DATA_MAX: usize = 3000;

/// A write that succeeds whatever the server has done of those before it.
#[derive(Debug, Clone)]
enum Write {
    Create { name: String, data: Vec<u8> },
    Set { name: String, data: Vec<u8> },
    Delete { name: String },
}

type Nodes = BTreeMap<String, Vec<u8>>;

impl Write {
    fn apply(&self, nodes: &mut Nodes) {
        match self {
            Write::Create { name, data } | Write::Set { name, data } => {
                nodes.insert(name.clone(), data.clone());
            }
            Write::Delete { name } => {
                nodes.remove(name);
            }
        }
    }
}

/// See the module.
pub(super) struct Writer {
    folder: String,
    random: fastrand::Rng,
    session: Session,
    client: Option<Client>,
    /// The nodes after all that was acknowledged.
    nodes: Nodes,
    /// The nodes after all that was sent.
    nodes_sent: Nodes,
    unanswered: VecDeque<Write>,
    created: u64,
    pub(super) acknowledged: u64,
    /// How many writes were under way when the replica died, and how many of them it carried out.
    pub(super) unknown: u64,
    pub(super) unknown_done: u64,
}

impl Writer {
    pub(super) fn new(number: usize, random: fastrand::Rng) -> Writer {
        Writer {
            folder: format!("/writer-{number}"),
            random,
            session: Session { id: 0, password: [0; 16], timeout_ms: 10_000, zxid: 0 },
            client: None,
            nodes: Nodes::new(),
            nodes_sent: Nodes::new(),
            unanswered: VecDeque::new(),
            created: 0,
            acknowledged: 0,
            unknown: 0,
            unknown_done: 0,
        }
    }

    fn ephemeral(&self) -> String {
        format!("{}-lives", self.folder)
    }

    /// Takes up the session and looks whether all that was acknowledged is there.
    ///
    /// # Errors
    /// What is not.
    pub(super) fn check(&mut self, address: SocketAddr) -> Result<(), String> {
        let is_first = self.session.id == 0;
        let folder = self.folder.clone();
        let tell = |failure: Failure| format!("{folder}: {failure:?}");
        // It may ask for more patience while it replays its log.
        let mut client = attach_any(&[address], self.session).map_err(tell)?;
        self.session = client.session();
        let ephemeral = self.ephemeral();
        if is_first {
            client.make(&folder, b"").map_err(tell)?;
            client.create(&ephemeral, b"", create_mode::EPHEMERAL).map_err(tell)?;
        }
        let owner = client.exists(&ephemeral, false).map_err(tell)?.ephemeral_owner;
        if owner != self.session.id {
            return Err(format!("{ephemeral} belongs to {owner:#x}"));
        }
        let mut found = Nodes::new();
        for name in client.children(&folder, false).map_err(tell)? {
            let (data, _) = client.get(&format!("{folder}/{name}"), false).map_err(tell)?;
            found.insert(name, data.unwrap_or_default());
        }
        self.client = Some(client);
        self.settle(found)
    }

    /// Finds out up to which write the replica came.
    fn settle(&mut self, found: Nodes) -> Result<(), String> {
        let acknowledged = self.nodes.clone();
        self.unknown += self.unanswered.len() as u64;
        while self.nodes != found {
            let Some(write) = self.unanswered.pop_front() else {
                return Err(self.describe(&acknowledged, &found));
            };
            write.apply(&mut self.nodes);
            self.unknown_done += 1;
        }
        self.unanswered.clear();
        self.nodes_sent = found;
        Ok(())
    }

    fn describe(&self, acknowledged: &Nodes, found: &Nodes) -> String {
        let brief = |nodes: &Nodes| -> Vec<(String, String)> {
            let short = |data: &[u8]| String::from_utf8_lossy(&data[..data.len().min(12)]).into();
            nodes.iter().map(|(name, data)| (name.clone(), short(data))).collect()
        };
        format!(
            "{}: what is there is not what any number of its writes made.\nacknowledged {:?}\n\
             found {:?}\nall that was sent {:?}",
            self.folder,
            brief(acknowledged),
            brief(found),
            brief(&self.nodes_sent)
        )
    }

    fn next(&mut self) -> Write {
        self.created += 1;
        // No two writes have the same data.
        let mut data = format!("{:011} ", self.created).into_bytes();
        data.resize(12 + self.random.usize(..DATA_MAX), b'.');
        let count = self.nodes_sent.len();
        let chance = self.random.usize(..10);
        if count < 8 || (count < NODES_MAX && chance < 3) {
            return Write::Create { name: format!("n{}", self.created), data };
        }
        let place = self.random.usize(..count);
        let name = self.nodes_sent.keys().nth(place).cloned().unwrap_or_default();
        match chance {
            0..5 => Write::Delete { name },
            _ => Write::Set { name, data },
        }
    }

    /// Writes until the connection ends.
    ///
    /// # Errors
    /// A write was refused.
    pub(super) fn write(&mut self) -> Result<(), String> {
        let Some(mut client) = self.client.take() else { return Ok(()) };
        loop {
            while self.unanswered.len() < DEPTH {
                let write = self.next();
                write.apply(&mut self.nodes_sent);
                let sent = send(&mut client, &self.folder, &write);
                self.unanswered.push_back(write);
                if sent.is_err() {
                    return self.drain(client);
                }
            }
            if !self.take_reply(&mut client)? {
                return self.drain(client);
            }
        }
    }

    /// Takes replies that came before the connection ended.
    fn drain(&mut self, mut client: Client) -> Result<(), String> {
        while !self.unanswered.is_empty() && self.take_reply(&mut client)? {}
        self.session = client.session();
        Ok(())
    }

    /// Takes the next reply; false if none comes any more.
    fn take_reply(&mut self, client: &mut Client) -> Result<bool, String> {
        let Ok(reply) = client.receive() else { return Ok(false) };
        let write = self.unanswered.pop_front().ok_or("a reply to nothing")?;
        if reply.header.error != 0 {
            return Err(format!("{}: {write:?} is refused: {:?}", self.folder, reply.header));
        }
        write.apply(&mut self.nodes);
        self.acknowledged += 1;
        Ok(true)
    }
}

fn send(client: &mut Client, folder: &str, write: &Write) -> Result<i32, Failure> {
    match write {
        Write::Create { name, data } => {
            client.send(&create(&format!("{folder}/{name}"), data, create_mode::PERSISTENT))
        }
        Write::Set { name, data } => {
            let path = format!("{folder}/{name}");
            client.send(&Request::SetData { path: &path, data: Some(data), version: -1 })
        }
        Write::Delete { name } => {
            client.send(&Request::Delete { path: &format!("{folder}/{name}"), version: -1 })
        }
    }
}

#[cfg(test)]
mod tests;
