//! Directories made by hand, with logs that say different things about what is committed.

use millrace_proto::zookeeper::record::OPEN_ACL;
use millrace_proto::zookeeper::{CreateKind, Request, Writer};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, HardState};
use tempfile::TempDir;

use super::*;
use crate::command::begin_batch;

const SIZES: Sizes = Sizes { log_bytes_max: 16 << 20, state_bytes_max: 16 << 20 };

/// Builds an entry that creates a node.
fn create(index: u64, path: &str) -> Entry {
    let mut record = Vec::new();
    let acl = Some(vec![OPEN_ACL]);
    let kind = CreateKind::Create;
    let request = Request::Create { kind, path, data: Some(b"x"), acl, flags: 0, ttl_ms: 0 };
    request.encode(&mut Writer::new(&mut record));
    let act = Act::Request { code: request.code(), record: &record };
    let mut data = Vec::new();
    begin_batch(&mut data, 1000, Rules::default());
    Command { origin: 0, tag: 0, session: 0, attach: 0, identities: Vec::new(), act }
        .encode(&mut data);
    entry(index, EntryType::EntryNormal, data)
}

fn entry(index: u64, kind: EntryType, data: Vec<u8>) -> Entry {
    let mut entry = Entry { index, term: 2, data: data.into(), ..Entry::default() };
    entry.set_entry_type(kind);
    entry
}

/// Builds an entry that lets replica 2 vote, and sets the members.
fn add_voter(index: u64) -> Entry {
    let mut single = ConfChangeSingle { node_id: 2, ..ConfChangeSingle::default() };
    single.set_change_type(ConfChangeType::AddNode);
    let mut change = ConfChangeV2::default();
    change.set_changes(vec![single].into());
    let text = "server.1=a:1:2;3\nserver.2=b:1:2;3\n";
    let mut context = Vec::new();
    begin_batch(&mut context, 1000, Rules::default());
    let act = Act::SetConfig { text };
    Command { origin: 0, tag: 0, session: 0, attach: 0, identities: Vec::new(), act }
        .encode(&mut context);
    change.context = context.into();
    entry(index, EntryType::EntryConfChangeV2, change.write_to_bytes().unwrap())
}

/// Makes the directory of a stopped replica 1: its state has entry 1, and its log `entries` from 2 on.
fn directory(voters: &[u64], entries: Vec<Entry>, commit: u64) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let identity = StoreIdentity { cluster_id: 7, replica_id: 1, store_id: 9 };
    let mut stores = store::open(directory.path(), identity, SIZES).unwrap();
    let offline = Offline {
        identity: Some(identity),
        index: 1,
        term: 1,
        state: State::new(),
        log: None,
        unsettled_count: 0,
    };
    let conf_state = ConfState { voters: voters.to_vec(), ..ConfState::default() };
    offline.commit_to(&mut stores.state, conf_state).unwrap();
    let hard_state = Some(HardState { term: 2, vote: 1, commit, ..HardState::default() });
    stores.log.append(&[Append { number: 1, reset: Some((1, 1)), entries, hard_state }]).unwrap();
    directory
}

fn nodes(offline: &Offline) -> Vec<String> {
    let mut paths = Vec::new();
    let shown: Result<(), ()> = walk(&offline.state, |node| {
        paths.push(node.path.to_owned());
        Ok(())
    });
    shown.unwrap();
    paths.retain(|path| path != "/" && !path.starts_with("/zookeeper"));
    paths
}

#[test]
fn what_a_lone_voter_logged_is_committed() {
    let entries = vec![create(2, "/b"), create(3, "/a"), entry(4, EntryType::EntryNormal, vec![])];
    let directory = directory(&[1], entries, 1);
    let offline = open(directory.path()).unwrap();
    assert_eq!(nodes(&offline), ["/a", "/b"]);
    assert_eq!((offline.index, offline.term, offline.log), (4, 2, Some((2, 4))));
    assert_eq!(offline.unsettled_count, 0);
    // The inspection changed nothing.
    assert_eq!(open(directory.path()).unwrap().state.digest(), offline.state.digest());
}

#[test]
fn what_a_member_alone_logged_is_counted_and_not_shown() {
    let entries = vec![create(2, "/b"), create(3, "/a"), create(4, "/c")];
    let directory = directory(&[1, 2, 3], entries, 2);
    let offline = open(directory.path()).unwrap();
    assert_eq!(nodes(&offline), ["/b"]);
    assert_eq!((offline.index, offline.unsettled_count), (2, 2));
}

#[test]
fn a_second_voter_ends_what_one_alone_decides() {
    let entries = vec![create(2, "/b"), add_voter(3), create(4, "/a")];
    let directory = directory(&[1], entries, 2);
    let offline = open(directory.path()).unwrap();
    assert_eq!(nodes(&offline), ["/b"]);
    assert_eq!((offline.index, offline.unsettled_count), (3, 1));
    assert!(offline.state.config_text().contains("server.2=b:1:2"), "its members are applied");
}

#[test]
fn an_entry_that_cannot_be_read_is_named() {
    let garbage = entry(3, EntryType::EntryNormal, b"\xffgarbage".to_vec());
    let directory = directory(&[1], vec![create(2, "/b"), garbage], 1);
    let error = open(directory.path()).err().unwrap().to_string();
    assert!(error.contains("the Raft log is damaged: entry 3"), "{error}");
}

#[test]
fn a_copy_comes_back_as_it_was() {
    let directory = directory(&[1], vec![create(2, "/b"), create(3, "/b/c")], 1);
    let offline = open(directory.path()).unwrap();
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("backup");
    offline.back_up(&file).unwrap();
    assert!(matches!(offline.back_up(&file), Err(OfflineError::Store(StoreError::Io { .. }))));
    let copy = open_backup(&file).unwrap();
    assert_eq!(copy.state.digest(), offline.state.digest());
    let target = root.path().join("new/deep");
    copy.restore(&target, 5, None).unwrap();
    let restored = open(&target).unwrap();
    assert_eq!(nodes(&restored), ["/b", "/b/c"]);
    assert_eq!((restored.index, restored.term), (offline.index, offline.term));
    let identity = restored.identity.unwrap();
    assert_eq!(identity.replica_id, 5);
    assert_ne!(identity.cluster_id, 7, "it belongs to no ensemble of before");
    assert_ne!(identity.store_id, 9);
    assert!(!target.join(RESTORING).exists());
}

/// Builds an entry with one command of session 0.
fn command(index: u64, act: Act<'_>) -> Entry {
    let mut data = Vec::new();
    begin_batch(&mut data, 1000, Rules::default());
    Command { origin: 0, tag: 0, session: 0, attach: 0, identities: Vec::new(), act }
        .encode(&mut data);
    entry(index, EntryType::EntryNormal, data)
}

#[test]
fn what_a_copy_becomes_parts_with_what_came_after_the_copy() {
    let open_session = Act::CreateSession { timeout_ms: 4000, password: [1; 16] };
    let source = directory(&[1], vec![create(2, "/b"), command(3, open_session)], 1);
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("backup");
    let before = open(source.path()).unwrap();
    before.back_up(&file).unwrap();
    assert_eq!(before.state.counts().sessions, 1);
    let mut zxid = before.state.zxid();
    // The second copy is as old as the first, and what the first gave out counts too.
    for name in ["one", "other"] {
        let target = root.path().join(name);
        open_backup(&file).unwrap().restore(&target, 1, None).unwrap();
        let restored = open(&target).unwrap();
        assert_eq!(nodes(&restored), ["/b"]);
        assert_eq!(restored.state.counts().sessions, 0);
        assert!(restored.state.zxid() > zxid + (1 << 20), "{:#x}", restored.state.zxid());
        zxid = restored.state.zxid();
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

#[test]
fn members_of_before_are_forgotten_or_replaced_by_one() {
    let directory = directory(&[1, 2], vec![add_voter(2)], 2);
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("backup");
    open(directory.path()).unwrap().back_up(&file).unwrap();
    let alone = root.path().join("alone");
    open_backup(&file).unwrap().restore(&alone, 1, None).unwrap();
    assert_eq!(open(&alone).unwrap().state.config_text(), "");
    let first = root.path().join("first");
    let member = Member::parse_line("server.9=z:1:2;3").unwrap();
    open_backup(&file).unwrap().restore(&first, 9, Some(&member)).unwrap();
    let state = open(&first).unwrap().state;
    let text = state.config_text();
    let (members, version) = parse_config_text(&text).unwrap();
    assert_eq!(members, [member]);
    assert_eq!(version, state.zxid(), "{text}");
}

#[test]
fn only_an_empty_directory_is_restored_to() {
    let source = directory(&[1], vec![create(2, "/b")], 1);
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("backup");
    open(source.path()).unwrap().back_up(&file).unwrap();
    let target = root.path().join("target");
    fs::create_dir_all(target.join("restoring/raft")).unwrap();
    fs::write(target.join("myid"), "3\n").unwrap();
    open_backup(&file).unwrap().restore(&target, 3, None).unwrap();
    assert_eq!(nodes(&open(&target).unwrap()), ["/b"]);
    let again = open_backup(&file).unwrap().restore(&target, 3, None);
    assert!(matches!(again, Err(OfflineError::NotEmpty { .. })));
    assert_eq!(nodes(&open(&target).unwrap()), ["/b"], "and nothing happened to it");
}

#[test]
fn nothing_is_left_where_there_is_no_data() {
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(open(empty.path()), Err(OfflineError::NoData { .. })));
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
    assert!(matches!(open(&empty.path().join("no")), Err(OfflineError::NoData { .. })));
}

#[test]
fn a_damaged_copy_is_refused_wherever_it_is_damaged() {
    let source = directory(&[1], (2..30).map(|at| create(at, &format!("/n{at}"))).collect(), 1);
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("backup");
    open(source.path()).unwrap().back_up(&file).unwrap();
    let whole = fs::read(&file).unwrap();
    let damaged = root.path().join("damaged");
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&damaged, &bytes).unwrap();
        assert!(open_backup(&damaged).is_err(), "byte {at} was changed");
        fs::write(&damaged, &whole[..at]).unwrap();
        assert!(open_backup(&damaged).is_err(), "cut after byte {at}");
    }
}
