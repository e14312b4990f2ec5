//! The state as clients and replicas see it: each test is a claim, and each file a theme.

mod access;
mod containers;
mod events;
mod model;
mod multis;
mod nodes;
mod quotas;
mod reads;
mod records;
mod sessions;

use std::collections::BTreeMap;

use millrace_proto::zookeeper::record::OPEN_ACL;
use millrace_proto::zookeeper::{Acl, CreateKind, Error, Reader, Request, Stat, Writer};

use super::read::read;
use super::{Changes, Loader, MultiResult, Outcome, State};
use crate::command::{Act, Command, Identity, Rules};

pub(super) const PASSWORD: [u8; 16] = *b"a secret of one.";
pub(super) const ADDRESS: Identity<'static> = Identity { scheme: "ip", id: "127.0.0.1" };
pub(super) const ANNA: Identity<'static> = Identity { scheme: "digest", id: "anna:4kzx=" };
pub(super) const SUPER: Identity<'static> = Identity { scheme: "super", id: "" };

/// A replica without a network. It stores what it applies.
pub(super) struct Replica {
    pub(super) state: State,
    pub(super) changes: Changes,
    pub(super) store: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) time_ms: i64,
    pub(super) rules: Rules,
    pub(super) identities: Vec<Identity<'static>>,
    /// Events as `kind path`, since the last call.
    told: Vec<String>,
}

impl Replica {
    pub(super) fn new() -> Replica {
        Replica {
            state: State::new(),
            changes: Changes::new(),
            store: BTreeMap::new(),
            time_ms: 1_000_000,
            rules: Rules { ttl_nodes: true, ..Rules::default() },
            identities: vec![ADDRESS],
            told: Vec::new(),
        }
    }

    /// Applies, collects events, stores records.
    pub(super) fn apply(&mut self, command: &Command<'_>) -> Result<Outcome, Error> {
        let Replica { state, changes, .. } = self;
        let outcome = state.apply(self.time_ms, self.rules, command, changes);
        for event in changes.events() {
            assert_eq!(event.zxid, state.zxid(), "an event has the zxid of its command");
            self.told.push(format!("{} {}", event.kind, event.path));
        }
        changes.clear_events();
        let mut keys = Vec::new();
        state.records(changes, &mut |key, value| {
            keys.push(key.to_vec());
            match value {
                Some(value) => self.store.insert(key.to_vec(), value.to_vec()),
                None => self.store.remove(key),
            };
        });
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count, "each record is handed out once");
        outcome
    }

    pub(super) fn act(
        &mut self,
        session: i64,
        attach: i64,
        act: Act<'_>,
    ) -> Result<Outcome, Error> {
        let identities = self.identities.clone();
        self.apply(&Command { origin: 1, tag: 2, session, attach, identities, act })
    }

    pub(super) fn connect(&mut self) -> i64 {
        let act = Act::CreateSession { timeout_ms: 6000, password: PASSWORD };
        match self.act(0, 0, act) {
            Ok(Outcome::Session { id, .. }) => id,
            other => panic!("a session should be opened: {other:?}"),
        }
    }

    pub(super) fn close(&mut self, session: i64) -> Result<Outcome, Error> {
        self.act(session, 0, Act::CloseSession)
    }

    /// Applies a write of `session`, 0 for none.
    pub(super) fn write(&mut self, session: i64, request: &Request<'_>) -> Result<Outcome, Error> {
        let attach = self.state.session(session).map_or(0, |session| session.attach);
        let mut record = Vec::new();
        request.encode(&mut Writer::new(&mut record));
        self.act(session, attach, Act::Request { code: request.code(), record: &record })
    }

    /// Creates a persistent node with the open ACL and data "x".
    #[track_caller]
    pub(super) fn create(&mut self, path: &str) {
        let created = self.write(0, &create(path, 0));
        assert_eq!(created, Ok(Outcome::Path(path.to_owned())), "create {path}");
    }

    pub(super) fn read(&self, session: i64, request: &Request<'_>) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        let skip = self.rules.skip_acl;
        read(&self.state, request, session, &self.identities, skip, &mut writer)?;
        Ok(out)
    }

    /// Returns the answer of `exists`.
    #[track_caller]
    pub(super) fn stat(&self, path: &str) -> Stat {
        let reply = self.read(0, &Request::Exists { path, watch: false }).expect(path);
        Stat::decode(&mut Reader::new(&reply)).expect("a Stat")
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.state.tree.find(path).is_some()
    }

    pub(super) fn data(&self, path: &str) -> Option<Vec<u8>> {
        let slot = self.state.tree.find(path).expect(path);
        self.state.tree.node(slot).data().map(<[u8]>::to_vec)
    }

    #[track_caller]
    pub(super) fn text(&self, path: &str) -> String {
        String::from_utf8(self.data(path).expect("data")).expect("text")
    }

    /// Lists the names, sorted.
    pub(super) fn children(&self, path: &str) -> Vec<String> {
        let request = Request::GetChildren { path, watch: false };
        let reply = self.read(0, &request).expect(path);
        let mut names: Vec<String> = Reader::new(&reply)
            .list(|reader| Ok(reader.path()?.to_owned()))
            .expect("a list")
            .expect("a list that is not null");
        names.sort();
        names
    }

    pub(super) fn take_events(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }

    /// Builds the state from the stored records.
    pub(super) fn reload(&self) -> State {
        let mut loader = Loader::with_seed(7);
        for (key, value) in &self.store {
            loader.push(key, value).expect("a record");
        }
        loader.finish().expect("records of a state")
    }
}

/// Builds a create by the plain operation.
pub(super) fn create(path: &str, flags: i32) -> Request<'_> {
    create_as(CreateKind::Create, path, flags, 0)
}

pub(super) fn create_as(kind: CreateKind, path: &str, flags: i32, ttl_ms: i64) -> Request<'_> {
    let acl = Some(vec![OPEN_ACL]);
    Request::Create { kind, path, data: Some(b"x"), acl, flags, ttl_ms }
}

pub(super) fn create_acl<'a>(path: &'a str, acl: &[Acl<'a>]) -> Request<'a> {
    let acl = Some(acl.to_vec());
    let kind = CreateKind::Create;
    Request::Create { kind, path, data: Some(b"x"), acl, flags: 0, ttl_ms: 0 }
}

pub(super) fn delete(path: &str) -> Request<'_> {
    Request::Delete { path, version: -1 }
}

pub(super) fn set<'a>(path: &'a str, data: &'a str) -> Request<'a> {
    Request::SetData { path, data: Some(data.as_bytes()), version: -1 }
}

/// Returns the path in the answer of a create.
#[track_caller]
pub(super) fn created(outcome: Result<Outcome, Error>) -> String {
    match outcome {
        Ok(Outcome::Path(path) | Outcome::PathAndStat(path, _)) => path,
        other => panic!("something should be created: {other:?}"),
    }
}

/// Returns the results of a multi.
#[track_caller]
pub(super) fn results(outcome: Result<Outcome, Error>) -> Vec<MultiResult> {
    match outcome {
        Ok(Outcome::Multi(results)) => results,
        other => panic!("a multi should be answered: {other:?}"),
    }
}
