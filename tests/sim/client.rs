//! A simulated ZooKeeper client: a session, one connection at a time, requests of chance.
//!
//! Behaves as the Java client does: pings when it has nothing to say, gives a silent connection up after
//! two thirds of its time-out, attaches its session again anywhere, sets its watches again before
//! anything else, forgets a session that has expired. Owns what a client knows; moving bytes and time is
//! the world's.

use std::collections::{BTreeSet, VecDeque};

use fastrand::Rng;
use millrace_proto::zookeeper::record::{OPEN_ACL, PASSWORD_SIZE};
use millrace_proto::zookeeper::{
    ConnectRequest, CreateKind, Request, Writer, add_watch_mode, create_mode, event, xid,
};

use crate::observe::{Answer, Asked, What};
use crate::options::Options;

/// Registers that clients write.
pub(crate) const REGISTERS: usize = 4;
/// Nodes that come and go.
const FLAGS: usize = 3;
/// Most nodes that a client makes for ever, so that a run stays small.
const JOURNAL_MAX: u64 = 60;
/// Most sequential and ephemeral nodes that a client holds at a time.
const HELD_MAX: usize = 6;

/// How far a client has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No connection; the next try at this moment.
    Away {
        until_us: u64,
    },
    /// A connection, and no answer to the handshake yet.
    Connecting,
    Open,
    /// Keeps its connection and says nothing, as a process that hangs.
    Silent {
        until_us: u64,
    },
}

/// Watches that it believes to hold, for setting them again.
#[derive(Debug, Clone, Default)]
struct Watches {
    data: BTreeSet<String>,
    exist: BTreeSet<String>,
    child: BTreeSet<String>,
    is_all: bool,
}

/// See the module.
pub(crate) struct Client {
    pub(crate) index: usize,
    pub(crate) session: i64,
    password: [u8; PASSWORD_SIZE],
    pub(crate) last_zxid: i64,
    pub(crate) phase: Phase,
    pub(crate) link: Option<u64>,
    pub(crate) outstanding: VecDeque<Asked>,
    next_xid: i32,
    pub(crate) sent_us: u64,
    pub(crate) heard_us: u64,
    timeout_us: u64,
    watches: Watches,
    /// Version of each register as last seen.
    versions: [i32; REGISTERS],
    journal: u64,
    counter: u64,
    own: Vec<String>,
    held: Vec<String>,
    /// True if the last batch, which proves that the ensemble healed, was answered to its end.
    pub(crate) is_done: bool,
    last_batch: Option<i32>,
}

pub(crate) fn register_path(register: usize) -> String {
    format!("/reg/{register}")
}

impl Client {
    pub(crate) fn new(index: usize, options: &Options) -> Client {
        Client {
            index,
            session: 0,
            password: [0; PASSWORD_SIZE],
            last_zxid: 0,
            phase: Phase::Away { until_us: 0 },
            link: None,
            outstanding: VecDeque::new(),
            next_xid: 0,
            sent_us: 0,
            heard_us: 0,
            timeout_us: options.session_timeout_ms * 1000,
            watches: Watches::default(),
            versions: [0; REGISTERS],
            journal: 0,
            counter: 0,
            own: Vec::new(),
            held: Vec::new(),
            is_done: false,
            last_batch: None,
        }
    }

    /// Returns the first message on a new connection.
    pub(crate) fn handshake(&self) -> Vec<u8> {
        let mut message = Vec::new();
        ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: self.last_zxid,
            timeout_ms: (self.timeout_us / 1000) as i32,
            session: self.session,
            password: Some(&self.password),
            read_only: Some(false),
        }
        .encode(&mut Writer::new(&mut message));
        message
    }

    /// Notes that the session is open; returns the request that sets the watches again, if there are
    /// any.
    pub(crate) fn opened(&mut self, session: i64, password: [u8; PASSWORD_SIZE]) -> Option<What> {
        self.session = session;
        self.password = password;
        self.phase = Phase::Open;
        let Watches { data, exist, child, is_all } = &self.watches;
        let has_any = !data.is_empty() || !exist.is_empty() || !child.is_empty() || *is_all;
        has_any.then_some(What::SetWatches)
    }

    /// Forgets the session, with its watches and ephemeral nodes.
    pub(crate) fn expired(&mut self) {
        self.session = 0;
        self.password = [0; PASSWORD_SIZE];
        self.watches = Watches::default();
        self.held.clear();
        self.last_batch = None;
    }

    /// Forgets the connection; returns what was not answered.
    pub(crate) fn broke(&mut self, until_us: u64) -> Vec<Asked> {
        self.phase = Phase::Away { until_us };
        self.link = None;
        self.last_batch = None;
        self.outstanding.drain(..).collect()
    }

    pub(crate) fn needs_ping(&self, now_us: u64) -> bool {
        now_us >= self.sent_us + self.timeout_us / 3
    }

    pub(crate) fn is_deserted(&self, now_us: u64) -> bool {
        now_us >= self.heard_us + self.timeout_us * 2 / 3
    }

    /// Returns the nodes that every run begins with.
    pub(crate) fn first_nodes() -> Vec<String> {
        let folders = ["/reg", "/log", "/seq", "/eph", "/flag"].map(str::to_owned);
        folders.into_iter().chain((0..REGISTERS).map(register_path)).collect()
    }

    /// Returns the requests of the end: a write, and a look at everything that a late answer could
    /// spoil.
    pub(crate) fn last_batch(&mut self, now_us: u64) -> Vec<What> {
        if self.last_batch.is_some() {
            return Vec::new();
        }
        self.journal += 1;
        let path = format!("/log/{}-{}", self.index, self.journal);
        let mut batch = vec![What::Journal { path }, What::Sync];
        let synced_us = Some(now_us);
        batch.extend((0..REGISTERS).map(|register| What::Get {
            register,
            watch: false,
            synced_us,
        }));
        self.last_batch = Some(self.next_xid + batch.len() as i32);
        batch
    }

    /// Draws requests.
    pub(crate) fn batch(&mut self, options: &Options, now_us: u64, random: &mut Rng) -> Vec<What> {
        let mut batch = Vec::new();
        for _ in 0..random.usize(1..=options.batch_max) {
            self.request(&mut batch, now_us, random);
        }
        batch
    }

    fn request(&mut self, batch: &mut Vec<What>, now_us: u64, random: &mut Rng) {
        let register = random.usize(0..REGISTERS);
        let watch = random.u8(0..3) == 0;
        let flag = format!("/flag/{}", random.usize(0..FLAGS));
        self.counter += 1;
        let value = (self.index as u64 + 1) * 1_000_000 + self.counter;
        let expected = self.versions[register];
        let what = match random.u8(0..100) {
            0..12 if self.journal < JOURNAL_MAX => What::Journal { path: self.journal_path() },
            12..22 => What::Set { register, value, expected: None },
            22..42 => What::Set { register, value, expected: Some(expected) },
            42..47 if self.journal < JOURNAL_MAX => {
                What::Both { register, value, expected, path: self.journal_path() }
            }
            47..62 => {
                batch.push(What::Sync);
                What::Get { register, watch, synced_us: Some(now_us) }
            }
            62..70 => What::Get { register, watch, synced_us: None },
            70..74 if self.held.len() < HELD_MAX => {
                let path = format!("/eph/{}-{}", self.index, self.counter);
                self.held.push(path.clone());
                What::Ephemeral { path }
            }
            74..78 if self.held.len() < HELD_MAX => What::Sequential,
            78..82 if !self.held.is_empty() => {
                let path = self.held.swap_remove(random.usize(0..self.held.len()));
                What::Delete { path }
            }
            82..86 if !self.own.is_empty() => {
                let path = self.own[random.usize(0..self.own.len())].clone();
                What::Exists { path, watch: false }
            }
            86..89 => What::Flag { path: flag },
            89..92 => What::Delete { path: flag },
            92..95 => What::Exists { path: flag, watch: true },
            95..98 => What::Children { path: "/seq".to_owned(), watch },
            98 if !self.watches.is_all => What::WatchAll,
            99 if random.u8(0..4) == 0 => What::CloseSession,
            _ => What::Get { register, watch: true, synced_us: None },
        };
        batch.push(what);
    }

    fn journal_path(&mut self) -> String {
        self.journal += 1;
        format!("/log/{}-{}", self.index, self.journal)
    }

    /// Writes a request and remembers it.
    pub(crate) fn ask(&mut self, what: What, now_us: u64) -> (Asked, Vec<u8>) {
        let request_xid = match what {
            What::Ping => xid::PING,
            What::SetWatches => xid::SET_WATCHES,
            _ => {
                self.next_xid += 1;
                self.next_xid
            }
        };
        let message = self.encode(request_xid, &what);
        self.sent_us = now_us;
        let asked = Asked { xid: request_xid, began_us: now_us, what };
        self.outstanding.push_back(asked.clone());
        (asked, message)
    }

    fn encode(&self, request_xid: i32, what: &What) -> Vec<u8> {
        let text;
        let path;
        let request = match what {
            What::Journal { path } => create(path, b"j", create_mode::PERSISTENT),
            What::Flag { path } => create(path, b"0", create_mode::PERSISTENT),
            What::Ephemeral { path } => create(path, b"e", create_mode::EPHEMERAL),
            What::Sequential => create("/seq/n-", b"", create_mode::PERSISTENT_SEQUENTIAL),
            What::Delete { path } => Request::Delete { path, version: -1 },
            What::Set { register, value, expected } => {
                (path, text) = (register_path(*register), value.to_string());
                let data = Some(text.as_bytes());
                Request::SetData { path: &path, data, version: expected.unwrap_or(-1) }
            }
            What::Both { register, value, expected, path: journal } => {
                (path, text) = (register_path(*register), value.to_string());
                let data = Some(text.as_bytes());
                Request::Multi(vec![
                    Request::SetData { path: &path, data, version: *expected },
                    create(journal, b"j", create_mode::PERSISTENT),
                ])
            }
            What::Get { register, watch, .. } => {
                path = register_path(*register);
                Request::GetData { path: &path, watch: *watch }
            }
            What::Exists { path, watch } => Request::Exists { path, watch: *watch },
            What::Children { path, watch } => Request::GetChildren2 { path, watch: *watch },
            What::WatchAll => {
                Request::AddWatch { path: "/reg", mode: add_watch_mode::PERSISTENT_RECURSIVE }
            }
            What::Sync => Request::Sync { path: "/reg" },
            What::Ping => Request::Ping,
            What::SetWatches => self.set_watches(),
            What::CloseSession => Request::CloseSession,
        };
        let mut message = Vec::new();
        let mut writer = Writer::new(&mut message);
        writer.int(request_xid);
        writer.int(request.code());
        request.encode(&mut writer);
        message
    }

    fn set_watches(&self) -> Request<'_> {
        let Watches { data, exist, child, is_all } = &self.watches;
        Request::SetWatches {
            relative_zxid: self.last_zxid,
            data: data.iter().map(String::as_str).collect(),
            exist: exist.iter().map(String::as_str).collect(),
            child: child.iter().map(String::as_str).collect(),
            persistent: Vec::new(),
            recursive: if *is_all { vec!["/reg"] } else { Vec::new() },
        }
    }

    /// Learns from a reply to its oldest request.
    pub(crate) fn answered(&mut self, asked: &Asked, answer: &Answer) {
        let stat = answer.stat(&asked.what);
        match &asked.what {
            What::Get { register, watch, .. } => {
                if let Some(stat) = stat {
                    self.versions[*register] = stat.version;
                    if *watch {
                        self.watches.data.insert(register_path(*register));
                    }
                }
            }
            What::Set { register, .. } => {
                if let Some(stat) = stat {
                    self.versions[*register] = stat.version;
                }
            }
            What::Exists { path, watch: true } => {
                let kind =
                    if answer.is_ok() { &mut self.watches.data } else { &mut self.watches.exist };
                kind.insert(path.clone());
            }
            What::Children { path, watch: true } if answer.is_ok() => {
                self.watches.child.insert(path.clone());
            }
            What::WatchAll if answer.is_ok() => self.watches.is_all = true,
            What::Journal { path } if answer.is_ok() => self.own.push(path.clone()),
            What::Sequential => {
                if let Some(path) = answer.path().filter(|_| answer.is_ok()) {
                    self.held.push(path);
                }
            }
            _ => {}
        }
        if self.last_batch == Some(asked.xid) {
            self.is_done = true;
        }
    }

    /// Learns from a watch event: one-shot watches are spent.
    pub(crate) fn notified(&mut self, kind: i32, path: &str) {
        match kind {
            event::CREATED | event::DATA_CHANGED => {
                self.watches.data.remove(path);
                self.watches.exist.remove(path);
            }
            event::CHILDREN_CHANGED => {
                self.watches.child.remove(path);
            }
            _ => {
                self.watches.data.remove(path);
                self.watches.exist.remove(path);
                self.watches.child.remove(path);
            }
        }
    }
}

pub(crate) fn create<'a>(path: &'a str, data: &'a [u8], flags: i32) -> Request<'a> {
    Request::Create {
        kind: CreateKind::Create,
        path,
        data: Some(data),
        acl: Some(vec![OPEN_ACL]),
        flags,
        ttl_ms: 0,
    }
}
