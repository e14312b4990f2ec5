//! One client: a session after the other, an operation after the other, everything written down.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_proto::zookeeper::{Error, Request, Stat, create_mode};
use millrace_tests::coord::client::{Reply, create};
use millrace_tests::coord::{Client, Failure, Session};

use super::{SESSION_MS, Shared, ZNODES, znode};
use crate::history::{Attempt, Operation, Record, State};

/// Longest wait for an answer; after that its fate is unknown, and another server is asked.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long all servers may fail to serve, all faults together.
const DESPAIR: Duration = Duration::from_secs(90);

const NO_SESSION: Session = Session { id: 0, password: [0; 16], timeout_ms: SESSION_MS, zxid: 0 };

/// See the module.
pub(super) struct Worker {
    number: usize,
    random: fastrand::Rng,
    shared: Arc<Shared>,
    record: Record,
    client: Option<Client>,
    session: Session,
    /// The ephemeral node of the session, once its create was acknowledged.
    ephemeral: Option<String>,
    /// Ephemeral nodes of earlier sessions that must be gone by now.
    gone: VecDeque<String>,
    sessions: u64,
    expired: u64,
    values: u64,
    /// What was last seen of each znode.
    seen: Vec<State>,
}

/// Either the connection goes on, or this must not happen.
type Step = Result<Result<(), Failure>, String>;

impl Worker {
    pub(super) fn new(number: usize, random: fastrand::Rng, shared: Arc<Shared>) -> Worker {
        Worker {
            number,
            random,
            record: Record::new(shared.began, ZNODES),
            shared,
            client: None,
            session: NO_SESSION,
            ephemeral: None,
            gone: VecDeque::new(),
            sessions: 0,
            expired: 0,
            values: 0,
            seen: vec![None; ZNODES],
        }
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    pub(super) fn into_record(self) -> Record {
        self.record
    }

    pub(super) fn expired_count(&self) -> u64 {
        self.expired
    }

    /// Returns the client of its living session, and the session's ephemeral node.
    pub(super) fn living(&mut self) -> Option<(&mut Client, &str)> {
        Some((self.client.as_mut()?, self.ephemeral.as_deref()?))
    }

    /// Works until all is over, and ends with a session that is served and has its node.
    ///
    /// # Errors
    /// What was seen that must not be.
    pub(super) fn run(mut self) -> Result<Worker, String> {
        while !self.shared.is_over() {
            self.connect()?;
            let done = self.step()?;
            self.after(done);
            std::thread::sleep(Duration::from_micros(self.random.u64(..4000)));
        }
        while self.client.is_none() || self.ephemeral.is_none() {
            self.connect()?;
            let done = self.own_node()?;
            self.after(done);
        }
        Ok(self)
    }

    /// Gives up a connection that ended; its session is taken up by the next one.
    fn after(&mut self, done: Result<(), Failure>) {
        if done.is_err() {
            self.keep_session();
            self.client = None;
        }
    }

    fn keep_session(&mut self) {
        if let Some(client) = &self.client {
            self.session = client.session();
        }
    }

    /// Connects, if there is no connection.
    fn connect(&mut self) -> Result<(), String> {
        let start = Instant::now();
        while self.client.is_none() {
            let address = self.shared.addresses[self.random.usize(..self.shared.addresses.len())];
            match Client::attach(address, self.session, PATIENCE) {
                Ok(client) => {
                    self.record.settled();
                    if self.session.id == 0 {
                        self.sessions += 1;
                    }
                    self.session = client.session();
                    self.client = Some(client);
                }
                Err(Failure::Expired) => {
                    if self.session.id == 0 {
                        return Err("a new session was refused as expired".to_owned());
                    }
                    self.expired += 1;
                    self.record.settled();
                    self.leave_session();
                }
                Err(failure) => {
                    if start.elapsed() > DESPAIR {
                        return Err(format!("no server serves for {DESPAIR:?}: {failure:?}"));
                    }
                    std::thread::sleep(Duration::from_millis(self.random.u64(5..50)));
                }
            }
        }
        Ok(())
    }

    /// Leaves the session, which is gone or abandoned: the next one is a new one.
    fn leave_session(&mut self) {
        self.client = None;
        // What this client has seen, its next session must see as well.
        self.session = Session { zxid: self.session.zxid, ..NO_SESSION };
        let path = self.ephemeral.take().unwrap_or_else(|| self.own_path());
        self.shared.abandon(path.clone());
        self.gone.push_back(path);
    }

    fn own_path(&self) -> String {
        format!("/ephemerals/{}-{}", self.number, self.sessions)
    }

    fn step(&mut self) -> Step {
        if self.ephemeral.is_none() {
            return self.own_node();
        }
        match self.random.u16(..1000) {
            0..3 => self.close(),
            3..5 => {
                // The session is abandoned without a word, so its node must go when its time is over.
                self.keep_session();
                let path = self.ephemeral.clone().unwrap_or_default();
                self.leave_session();
                // The moment is not known, but it is not before its time: only the end is judged.
                self.gone.retain(|other| *other != path);
                Ok(Ok(()))
            }
            5..50 => self.check_own(),
            50..100 => self.write_two(),
            100..500 => self.write(),
            _ => self.read(),
        }
    }

    fn call(&mut self, request: &Request<'_>) -> Result<Reply, Failure> {
        let client = self.client.as_mut().ok_or(Failure::Lost("no connection".to_owned()))?;
        client.call(request)
    }

    /// Creates the session's ephemeral node, and looks whether those of earlier ones are gone.
    fn own_node(&mut self) -> Step {
        let path = self.own_path();
        match self.call(&create(&path, b"", create_mode::EPHEMERAL)) {
            Err(failure) => return Ok(Err(failure)),
            // The create before this one, of unknown fate, took effect.
            Ok(reply) if [0, Error::NodeExists.code()].contains(&reply.header.error) => {}
            Ok(reply) => return Err(format!("create {path}: error {}", reply.header.error)),
        }
        self.ephemeral = Some(path);
        while let Some(path) = self.gone.front().cloned() {
            let client = self.client.as_mut().ok_or("no connection".to_owned())?;
            match client.sync().and_then(|()| client.exists(&path, false)) {
                Err(failure) if failure.is(Error::NoNode) => self.gone.pop_front(),
                Ok(stat) => return Err(format!("{path} outlives its session: {stat:?}")),
                Err(failure) => return Ok(Err(failure)),
            };
        }
        Ok(Ok(()))
    }

    /// Checks that the node of a session that is served is there.
    fn check_own(&mut self) -> Step {
        let Some(path) = self.ephemeral.clone() else { return Ok(Ok(())) };
        let reply = match self.call(&Request::Exists { path: &path, watch: false }) {
            Err(failure) => return Ok(Err(failure)),
            Ok(reply) => reply,
        };
        let owner = reply.clone().ok().map(|reply| Stat::decode(&mut reply.reader()));
        match owner {
            Ok(Ok(stat)) if stat.ephemeral_owner == self.session.id => Ok(Ok(())),
            other => Err(format!(
                "{path} of the living session {:#x} is not there: {other:?}, {:?}",
                self.session.id, reply.header
            )),
        }
    }

    fn close(&mut self) -> Step {
        self.keep_session();
        match self.call(&Request::CloseSession) {
            Err(failure) => Ok(Err(failure)),
            Ok(reply) if reply.header.error == 0 => {
                self.leave_session();
                Ok(Ok(()))
            }
            Ok(reply) => Err(format!("a session cannot be closed: {:?}", reply.header)),
        }
    }

    /// Reads a znode behind a sync: nothing that was acknowledged before may be missing.
    fn read(&mut self) -> Step {
        let index = self.random.usize(..ZNODES);
        let path = znode(index);
        let began = self.record.now_ns();
        let Some(client) = &mut self.client else { return Ok(Ok(())) };
        let read = Request::GetData { path: &path, watch: false };
        let sent = client.send(&Request::Sync { path: "/" }).and_then(|_| client.send(&read));
        let replies = sent.and_then(|_| Ok((client.receive()?, client.receive()?)));
        let (synced, reply) = match replies {
            Err(failure) => return Ok(Err(failure)),
            Ok(replies) => replies,
        };
        if synced.header.error != 0 {
            return Err(format!("sync is refused: {:?}", synced.header));
        }
        let state = match reply.header.error {
            0 => Some(decode(&reply)?),
            error if error == Error::NoNode.code() => None,
            _ => return Err(format!("read {path}: {:?}", reply.header)),
        };
        self.seen[index] = state;
        self.record.answered(index, began, Operation::Read(state));
        Ok(Ok(()))
    }

    /// Returns what to try with a znode, going by what was last seen of it.
    fn attempt(&mut self, index: usize) -> Attempt {
        self.values += 1;
        let value = self.values << 8 | self.number as u64;
        match self.seen[index] {
            None => Attempt::Create(value),
            Some((_, version)) => {
                let expected = if self.random.u8(..10) == 0 { version + 1 } else { version };
                match self.random.u8(..8) {
                    0 => Attempt::Delete { expected },
                    _ => Attempt::Swap { expected, value },
                }
            }
        }
    }

    fn write(&mut self) -> Step {
        let index = self.random.usize(..ZNODES);
        let attempt = self.attempt(index);
        let path = znode(index);
        let data = data_of(attempt);
        let began = self.record.now_ns();
        match self.call(&request(attempt, &path, &data)) {
            Err(failure) => {
                self.record.lost(index, began, attempt);
                Ok(Err(failure))
            }
            Ok(reply) => {
                self.took(index, began, attempt, reply.header.error)?;
                Ok(Ok(()))
            }
        }
    }

    /// Writes two znodes in one multi: both are written or none.
    fn write_two(&mut self) -> Step {
        let first = self.random.usize(..ZNODES);
        let second = (first + 1 + self.random.usize(..ZNODES - 1)) % ZNODES;
        let attempts = [(first, self.attempt(first)), (second, self.attempt(second))];
        let parts = attempts.map(|(index, attempt)| (znode(index), data_of(attempt), attempt));
        let operations =
            parts.iter().map(|(path, data, attempt)| request(*attempt, path, data)).collect();
        let began = self.record.now_ns();
        let reply = match self.call(&Request::Multi(operations)) {
            Err(failure) => {
                for (index, attempt) in attempts {
                    self.record.lost(index, began, attempt);
                }
                return Ok(Err(failure));
            }
            Ok(reply) => {
                reply.ok().map_err(|failure| format!("a multi is refused: {failure:?}"))?
            }
        };
        let codes = reply.multi_codes();
        if codes.len() != 2 {
            return Err(format!("a multi of two has {} results", codes.len()));
        }
        // If one fails the other is not carried out: its code is 0 before, and "not tried" after.
        let is_done = codes.iter().all(|code| *code == 0);
        for ((index, attempt), code) in attempts.into_iter().zip(codes) {
            let untried = code == 0 || code == Error::RuntimeInconsistency.code();
            if is_done || !untried {
                self.took(index, began, attempt, code)?;
            }
        }
        Ok(Ok(()))
    }

    /// Writes down an answered write.
    fn took(
        &mut self,
        index: usize,
        began: u64,
        attempt: Attempt,
        error: i32,
    ) -> Result<(), String> {
        let is = |expected: Error| error == expected.code();
        let operation = match attempt {
            _ if error == 0 => attempt.acknowledged(),
            Attempt::Create(_) if is(Error::NodeExists) => Operation::CreateRefused,
            Attempt::Swap { expected, .. } | Attempt::Delete { expected }
                if is(Error::BadVersion) =>
            {
                Operation::VersionRefused { expected }
            }
            Attempt::Swap { .. } | Attempt::Delete { .. } if is(Error::NoNode) => Operation::Absent,
            _ => return Err(format!("{}: {attempt:?} ends with {error}", znode(index))),
        };
        if error == 0 {
            self.shared.wrote();
            self.seen[index] = match attempt {
                Attempt::Create(value) => Some((value, 0)),
                Attempt::Swap { expected, value } => Some((value, expected + 1)),
                Attempt::Delete { .. } => None,
            };
        } else {
            self.seen[index] = match operation {
                Operation::Absent => None,
                _ => self.seen[index].or(Some((0, 0))),
            };
        }
        self.record.answered(index, began, operation);
        Ok(())
    }
}

fn data_of(attempt: Attempt) -> Vec<u8> {
    match attempt {
        Attempt::Create(value) | Attempt::Swap { value, .. } => value.to_string().into_bytes(),
        Attempt::Delete { .. } => Vec::new(),
    }
}

fn request<'a>(attempt: Attempt, path: &'a str, data: &'a [u8]) -> Request<'a> {
    match attempt {
        Attempt::Create(_) => create(path, data, create_mode::PERSISTENT),
        Attempt::Swap { expected, .. } => {
            Request::SetData { path, data: Some(data), version: expected }
        }
        Attempt::Delete { expected } => Request::Delete { path, version: expected },
    }
}

/// Returns value and version of a znode that was read.
fn decode(reply: &Reply) -> Result<(u64, i32), String> {
    let mut reader = reply.reader();
    let data = reader.buffer().ok().flatten();
    let value = data.and_then(|data| std::str::from_utf8(data).ok()?.parse().ok());
    let stat = Stat::decode(&mut reader).ok();
    match (value, stat) {
        (Some(value), Some(stat)) => Ok((value, stat.version)),
        _ => Err(format!("no client wrote what was read: {reply:?}")),
    }
}
