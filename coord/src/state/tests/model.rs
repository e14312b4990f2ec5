//! Random commands against a naive model: the same outcomes, the same tree, on every replica.
//!
//! The model is a map from paths to nodes that is copied before each multi. It shares no code with
//! the state.

use proptest::prelude::*;

use super::*;
use millrace_proto::zookeeper::perms;

/// What a node is in the model.
#[derive(Debug, Clone)]
struct ModelNode {
    data: Option<Vec<u8>>,
    acl: Vec<(i32, String, String)>,
    stat: Stat,
    creates: i32,
    life: ModelLife,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum ModelLife {
    Stays,
    Session(i64),
    Container,
    Ttl(i64),
}

#[derive(Debug, Clone, Default)]
struct Model {
    nodes: BTreeMap<String, ModelNode>,
    /// Open sessions, in the order of their ids.
    sessions: Vec<i64>,
    zxid: i64,
    time_ms: i64,
    identities: Vec<Identity<'static>>,
}

/// Returns the path of the parent; the model gives the root one name.
fn above(path: &str) -> String {
    let (parent, _) = path.rsplit_once('/').expect("a slash");
    if parent.is_empty() { "/".to_owned() } else { parent.to_owned() }
}

impl Model {
    fn new() -> Model {
        let node = ModelNode {
            data: Some(vec![]),
            acl: vec![(31, "world".into(), "anyone".into())],
            stat: Stat::default(),
            creates: 0,
            life: ModelLife::Stays,
        };
        let paths = ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"];
        let mut nodes: BTreeMap<String, ModelNode> =
            paths.iter().map(|path| ((*path).to_owned(), node.clone())).collect();
        let config = nodes.get_mut("/zookeeper/config").expect("it");
        config.acl[0].0 = 1;
        config.stat.aversion = -1;
        Model { nodes, ..Model::default() }
    }

    fn child_count(&self, path: &str) -> i32 {
        let children = self.nodes.keys().filter(|key| *key != "/" && above(key) == path);
        children.count() as i32
    }

    fn stat(&self, path: &str) -> Stat {
        let node = &self.nodes[path];
        let child_count = self.child_count(path);
        let ephemeral_owner = match node.life {
            ModelLife::Session(id) => id,
            _ => 0,
        };
        Stat {
            child_count,
            ephemeral_owner,
            cversion: node.creates * 2 - child_count,
            data_length: node.data.as_ref().map_or(0, Vec::len) as i32,
            ..node.stat
        }
    }

    fn allow(&self, path: &str, permission: i32) -> Result<(), Error> {
        let node = self.nodes.get(path).ok_or(Error::NoNode)?;
        let allows = |(bits, scheme, id): &(i32, String, String)| {
            let known = self.identities.iter().any(|who| who.scheme == scheme && who.id == id);
            bits & permission != 0 && (scheme == "world" || known)
        };
        if node.acl.iter().any(allows) { Ok(()) } else { Err(Error::NoAuth) }
    }

    fn list(&self, acl: &[Acl<'_>]) -> Result<Vec<(i32, String, String)>, Error> {
        let mut list = Vec::new();
        for acl in acl {
            if acl.scheme != "auth" {
                list.push((acl.perms, acl.scheme.to_owned(), acl.id.to_owned()));
            } else if self.identities.contains(&ANNA) {
                list.push((acl.perms, "digest".to_owned(), ANNA.id.to_owned()));
            }
        }
        if list.is_empty() { Err(Error::InvalidAcl) } else { Ok(list) }
    }

    fn create(&mut self, session: i64, asked: &Request<'_>) -> Result<(String, Stat), Error> {
        let Request::Create { kind, path, data, acl, flags, ttl_ms } = asked else {
            panic!("a create");
        };
        let list = self.list(acl.as_ref().expect("a list"))?;
        let parent = above(path);
        self.allow(&parent, perms::CREATE)?;
        let mut path = (*path).to_owned();
        if matches!(flags, 2 | 3 | 6) {
            path += &format!("{:010}", self.nodes[&parent].creates);
        }
        if path.ends_with('/') && path != "/" {
            return Err(Error::BadArguments);
        }
        if self.nodes.contains_key(&path) {
            return Err(Error::NodeExists);
        }
        if matches!(self.nodes[&parent].life, ModelLife::Session(_)) {
            return Err(Error::NoChildrenForEphemerals);
        }
        let life = match (kind, flags) {
            (CreateKind::Container, _) => ModelLife::Container,
            (CreateKind::Ttl, _) => ModelLife::Ttl(*ttl_ms),
            (_, 1 | 3) => ModelLife::Session(session),
            _ => ModelLife::Stays,
        };
        let (zxid, time) = (self.zxid, self.time_ms);
        let stat = Stat {
            czxid: zxid,
            mzxid: zxid,
            pzxid: zxid,
            ctime: time,
            mtime: time,
            ..Stat::default()
        };
        let data = data.map(<[u8]>::to_vec);
        let node = ModelNode { data, acl: list, stat, creates: 0, life };
        self.nodes.insert(path.clone(), node);
        let parent = self.nodes.get_mut(&parent).expect("checked");
        parent.creates += 1;
        parent.stat.pzxid = zxid;
        let stat = self.stat(&path);
        Ok((path, stat))
    }

    fn remove(&mut self, path: &str) {
        self.nodes.remove(path);
        self.nodes.get_mut(&above(path)).expect("a parent").stat.pzxid = self.zxid;
    }

    fn delete(&mut self, path: &str, version: i32) -> Result<(), Error> {
        self.allow(&above(path), perms::DELETE)?;
        self.check_version(path, version)?;
        if self.child_count(path) > 0 {
            return Err(Error::NotEmpty);
        }
        self.remove(path);
        Ok(())
    }

    fn check_version(&self, path: &str, version: i32) -> Result<(), Error> {
        let node = self.nodes.get(path).ok_or(Error::NoNode)?;
        if version == -1 || node.stat.version == version { Ok(()) } else { Err(Error::BadVersion) }
    }

    fn set_data(&mut self, path: &str, data: Option<&[u8]>, version: i32) -> Result<Stat, Error> {
        self.allow(path, perms::WRITE)?;
        self.check_version(path, version)?;
        let node = self.nodes.get_mut(path).expect("checked");
        node.data = data.map(<[u8]>::to_vec);
        node.stat.version += 1;
        node.stat.mzxid = self.zxid;
        node.stat.mtime = self.time_ms;
        Ok(self.stat(path))
    }

    fn set_acl(&mut self, path: &str, acl: &[Acl<'_>], version: i32) -> Result<Stat, Error> {
        let list = self.list(acl)?;
        self.allow(path, perms::ADMIN)?;
        let node = self.nodes.get_mut(path).expect("checked");
        if version != -1 && node.stat.aversion != version {
            return Err(Error::BadVersion);
        }
        node.acl = list;
        node.stat.aversion += 1;
        Ok(self.stat(path))
    }

    fn one(&mut self, session: i64, request: &Request<'_>) -> Result<MultiResult, Error> {
        match request {
            Request::Create { kind, .. } => {
                let (path, stat) = self.create(session, request)?;
                Ok(match kind {
                    CreateKind::Create => MultiResult::Create(path),
                    _ => MultiResult::CreateAndStat(path, stat),
                })
            }
            Request::Delete { path, version } => {
                self.delete(path, *version).map(|()| MultiResult::Delete)
            }
            Request::SetData { path, data, version } => {
                self.set_data(path, *data, *version).map(MultiResult::SetData)
            }
            Request::SetAcl { path, acl, version } => {
                let acl = acl.as_ref().expect("a list");
                self.set_acl(path, acl, *version).map(MultiResult::SetData)
            }
            Request::Check { path, version } => {
                self.allow(path, perms::READ)?;
                self.check_version(path, *version).map(|()| MultiResult::Check)
            }
            other => panic!("not in the model: {other:?}"),
        }
    }

    fn request(&mut self, session: i64, request: &Request<'_>) -> Result<Outcome, Error> {
        let Request::Multi(operations) = request else {
            return self.one(session, request).map(|result| match result {
                MultiResult::Create(path) => Outcome::Path(path),
                MultiResult::CreateAndStat(path, stat) => Outcome::PathAndStat(path, stat),
                MultiResult::SetData(stat) => Outcome::Stat(stat),
                _ => Outcome::Nothing,
            });
        };
        let before = self.nodes.clone();
        let mut results = Vec::new();
        for operation in operations {
            match self.one(session, operation) {
                Ok(result) => results.push(result),
                Err(error) => {
                    self.nodes = before;
                    let mut codes = vec![0; results.len()];
                    codes.push(error as i32);
                    codes.resize(operations.len(), -2);
                    return Ok(Outcome::Multi(codes.into_iter().map(MultiResult::Error).collect()));
                }
            }
        }
        Ok(Outcome::Multi(results))
    }

    fn close(&mut self, session: i64) {
        let of_session = |node: &ModelNode| node.life == ModelLife::Session(session);
        let gone: Vec<String> = self
            .nodes
            .iter()
            .filter(|(_, node)| of_session(node))
            .map(|(path, _)| path.clone())
            .collect();
        gone.iter().for_each(|path| self.remove(path));
        self.sessions.retain(|id| *id != session);
    }

    fn is_due(&self, path: &str) -> bool {
        let node = &self.nodes[path];
        self.child_count(path) == 0
            && match node.life {
                ModelLife::Container => node.creates > 0,
                ModelLife::Ttl(ttl_ms) => self.time_ms - node.stat.mtime > ttl_ms,
                _ => false,
            }
    }
}

/// A request with owned parts.
#[derive(Debug, Clone)]
enum Operation {
    Create { path: String, flavour: usize, acl: usize, data: Option<Vec<u8>> },
    Delete { path: String, version: i32 },
    SetData { path: String, data: Option<Vec<u8>>, version: i32 },
    SetAcl { path: String, acl: usize, version: i32 },
    Check { path: String, version: i32 },
}

#[derive(Debug, Clone)]
enum Step {
    One(Operation),
    Multi(Vec<Operation>),
    Connect,
    Close(usize),
    Collect,
    Wait(i64),
    /// From here on the client has proved its identity, or not.
    Become(bool),
}

/// Operations with flags that fit them, in a multi too.
const FLAVOURS: [(CreateKind, i32); 8] = [
    (CreateKind::Create, 0),
    (CreateKind::Create, 1),
    (CreateKind::Create, 2),
    (CreateKind::Create, 3),
    (CreateKind::Container, 4),
    (CreateKind::Ttl, 5),
    (CreateKind::Ttl, 6),
    (CreateKind::Create, 0),
];

fn acl_list(index: usize) -> Vec<Acl<'static>> {
    let entry = |perms, scheme, id| Acl { perms, scheme, id };
    match index {
        0 => vec![entry(31, "auth", "")],
        1 => vec![entry(perms::READ | perms::CREATE, "world", "anyone")],
        2 => vec![entry(31, "digest", ANNA.id), entry(1, "world", "anyone")],
        3 => vec![],
        _ => vec![OPEN_ACL],
    }
}

impl Operation {
    fn request(&self) -> Request<'_> {
        match self {
            Operation::Create { path, flavour, acl, data } => {
                let (kind, flags) = FLAVOURS[*flavour];
                let (acl, data) = (Some(acl_list(*acl)), data.as_deref());
                let ttl_ms = if kind == CreateKind::Ttl { 50 } else { 0 };
                Request::Create { kind, path, data, acl, flags, ttl_ms }
            }
            Operation::Delete { path, version } => Request::Delete { path, version: *version },
            Operation::SetData { path, data, version } => {
                Request::SetData { path, data: data.as_deref(), version: *version }
            }
            Operation::SetAcl { path, acl, version } => {
                Request::SetAcl { path, acl: Some(acl_list(*acl)), version: *version }
            }
            Operation::Check { path, version } => Request::Check { path, version: *version },
        }
    }
}

fn any_path() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c"), Just("a0000000000"), Just("")];
    proptest::collection::vec(name, 1..4).prop_map(|names| {
        let mut path = String::new();
        for name in names {
            path.push('/');
            path.push_str(name);
            if name.is_empty() {
                break;
            }
        }
        path
    })
}

/// Draws a path without a slash at its end, except the root.
fn any_node() -> impl Strategy<Value = String> {
    any_path().prop_map(|path| match path.trim_end_matches('/') {
        "" => "/a".to_owned(),
        trimmed => trimmed.to_owned(),
    })
}

fn any_operation(in_multi: bool) -> impl Strategy<Value = Operation> {
    let version = || prop_oneof![4 => Just(-1), 1 => 0..3i32];
    let data = || proptest::option::of(proptest::collection::vec(0u8.., 0..20));
    let set_acl_weight = u32::from(!in_multi);
    prop_oneof![
        5 => (any_path(), 0..FLAVOURS.len(), 0..9usize, data()).prop_map(
            |(path, flavour, acl, data)| Operation::Create { path, flavour, acl, data }
        ),
        2 => (any_node(), version())
            .prop_map(|(path, version)| Operation::Delete { path, version }),
        2 => (any_node(), data(), version())
            .prop_map(|(path, data, version)| Operation::SetData { path, data, version }),
        set_acl_weight => (any_node(), 0..9usize, version())
            .prop_map(|(path, acl, version)| Operation::SetAcl { path, acl, version }),
        1 - set_acl_weight => (any_node(), version())
            .prop_map(|(path, version)| Operation::Check { path, version }),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => any_operation(false).prop_map(Step::One),
        5 => proptest::collection::vec(any_operation(true), 0..6).prop_map(Step::Multi),
        1 => Just(Step::Connect),
        1 => (0..4usize).prop_map(Step::Close),
        1 => Just(Step::Collect),
        1 => (0..60i64).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Become),
    ]
}

/// Applies one step to both, and compares the answers.
fn step(replica: &mut Replica, model: &mut Model, step: &Step) {
    let session = model.sessions.last().copied().expect("one session stays open");
    let mut write = |request: &Request<'_>| {
        model.zxid += 1;
        assert_eq!(replica.write(session, request), model.request(session, request), "{request:?}");
    };
    match step {
        Step::One(operation) => write(&operation.request()),
        Step::Multi(operations) => {
            write(&Request::Multi(operations.iter().map(Operation::request).collect()));
        }
        Step::Connect => {
            model.zxid += 1;
            model.sessions.push(replica.connect());
        }
        Step::Close(index) if *index + 1 < model.sessions.len() => {
            let session = model.sessions[*index];
            model.zxid += 1;
            model.close(session);
            assert_eq!(replica.close(session), Ok(Outcome::Nothing));
        }
        Step::Close(_) => {}
        Step::Collect => {
            let mut due = replica.state.due_containers(model.time_ms, 1000);
            due.sort();
            let paths: Vec<String> = model.nodes.keys().cloned().collect();
            let expected: Vec<String> =
                paths.into_iter().filter(|path| model.is_due(path)).collect();
            assert_eq!(due, expected);
            for path in &due {
                model.zxid += 1;
                model.remove(path);
                let outcome = replica.act(0, 0, Act::DeleteContainer { path });
                assert_eq!(outcome, Ok(Outcome::Nothing));
            }
        }
        Step::Wait(passed_ms) => {
            model.time_ms += passed_ms;
            replica.time_ms += passed_ms;
        }
        Step::Become(known) => {
            replica.identities = if *known { vec![ADDRESS, ANNA] } else { vec![ADDRESS] };
            model.identities.clone_from(&replica.identities);
        }
    }
}

/// Compares the whole tree.
fn compare(replica: &Replica, model: &Model) {
    let state = &replica.state;
    assert_eq!(state.counts().nodes, model.nodes.len());
    assert_eq!(state.zxid(), model.zxid);
    for (path, node) in &model.nodes {
        assert_eq!(replica.stat(path), model.stat(path), "{path}");
        assert_eq!(replica.data(path), node.data, "{path}");
        let slot = state.tree.find(path).expect("just read");
        let list = state.acls.list(state.tree.node(slot).meta.acl);
        let list: Vec<_> = list
            .entries()
            .map(|acl| (acl.perms, acl.scheme.to_owned(), acl.id.to_owned()))
            .collect();
        assert_eq!(list, node.acl, "{path}");
        let children = state.tree.children(slot).count();
        assert_eq!(children as i32, model.child_count(path), "{path}");
    }
    let bytes: usize = model
        .nodes
        .iter()
        .map(|(path, node)| path.len() + node.data.as_ref().map_or(0, Vec::len))
        .sum();
    assert_eq!(state.counts().approximate_data_size, bytes as u64);
    let of_sessions = |node: &&ModelNode| matches!(node.life, ModelLife::Session(_));
    assert_eq!(state.counts().ephemerals, model.nodes.values().filter(of_sessions).count());
}

proptest! {
    #[test]
    fn state_and_model_agree(steps in proptest::collection::vec(any_step(), 1..80)) {
        let mut model = Model::new();
        let (mut replica, mut other) = (Replica::new(), Replica::new());
        for replica in [&mut replica, &mut other] {
            replica.connect();
        }
        model.sessions.push(replica.state.sessions().next().expect("one").0);
        (model.zxid, model.time_ms) = (1, replica.time_ms);
        model.identities = vec![ADDRESS];
        let mut other_model = model.clone();
        for (index, each) in steps.iter().enumerate() {
            step(&mut replica, &mut model, each);
            step(&mut other, &mut other_model, each);
            prop_assert_eq!(replica.state.digest(), other.state.digest());
            if index == steps.len() / 2 {
                // From here on the other replica is one that was loaded from its store.
                other.state = other.reload();
                prop_assert_eq!(replica.state.digest(), other.state.digest());
            }
        }
        compare(&replica, &model);
        compare(&other, &model);
        prop_assert_eq!(replica.reload().digest(), replica.state.digest());
        prop_assert!(replica.take_events() == other.take_events());
    }

    #[test]
    fn stats_of_a_quota_tell_what_is_there(
        steps in proptest::collection::vec(any_step(), 1..60)
    ) {
        let mut replica = Replica::new();
        let session = replica.connect();
        replica.create("/zookeeper/quota/a");
        replica.create("/zookeeper/quota/a/zookeeper_limits");
        replica.create("/zookeeper/quota/a/zookeeper_stats");
        for step in &steps {
            match step {
                Step::One(operation) => drop(replica.write(session, &operation.request())),
                Step::Multi(operations) => {
                    let operations = operations.iter().map(Operation::request).collect();
                    drop(replica.write(session, &Request::Multi(operations)));
                }
                _ => {}
            }
            let expected = super::super::quota::stats_of(&replica.state.tree, "/a");
            prop_assert_eq!(replica.text("/zookeeper/quota/a/zookeeper_stats"), expected);
        }
        prop_assert!(replica.close(session).is_ok());
        let expected = super::super::quota::stats_of(&replica.state.tree, "/a");
        prop_assert_eq!(replica.text("/zookeeper/quota/a/zookeeper_stats"), expected);
    }
}
