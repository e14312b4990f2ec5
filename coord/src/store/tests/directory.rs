//! A directory is used by its own replica, by one process, and only if both halves are there.

use std::fs;

use super::*;
use crate::store::files::Lock;

fn error(result: Result<Stores, StoreError>) -> StoreError {
    result.err().expect("it should have been refused")
}

/// Returns the error of opening `machine`'s directory again.
fn refused(machine: OnDisk) -> StoreError {
    let directory = machine.close();
    error(open(directory.path(), IDENTITY, SIZES))
}

/// Builds a machine with data in both halves.
fn used() -> OnDisk {
    let mut machine = OnDisk::new();
    machine.log().append(&[append(entries(1, 3, 1))]).unwrap();
    commit(machine.state(), &[("a", Some("b"))], 1);
    machine
}

#[test]
fn a_directory_in_use_is_refused() {
    let mut machine = used();
    let again = error(open(machine.path(), IDENTITY, SIZES));
    assert_eq!(again, StoreError::Locked { path: machine.path().to_owned() });
    // Any remaining part of the stores keeps the lock.
    let reader = machine.log().reader();
    let path = machine.path().to_owned();
    let directory = machine.close();
    assert!(matches!(error(open(&path, IDENTITY, SIZES)), StoreError::Locked { .. }));
    drop(reader);
    open(directory.path(), IDENTITY, SIZES).unwrap();
}

#[test]
fn a_lock_ends_though_a_forked_process_still_has_its_file() {
    let directory = scratch();
    let lock = Lock::take(directory.path()).unwrap();
    // A process between fork and exec has the same open file.
    let inherited = lock.file.try_clone().unwrap();
    assert!(Lock::take(directory.path()).is_err());
    drop(lock);
    Lock::take(directory.path()).unwrap();
    drop(inherited);
}

#[test]
fn a_directory_of_another_replica_or_cluster_is_refused() {
    let mut machine = used();
    machine.stores = None;
    let other = StoreIdentity { replica_id: 4, ..IDENTITY };
    let refused = error(open(machine.path(), other, SIZES)).to_string();
    assert!(refused.contains("replica 3, but this is replica 4"), "{refused}");
    let other = StoreIdentity { cluster_id: 8, ..IDENTITY };
    let refused = error(open(machine.path(), other, SIZES)).to_string();
    assert!(refused.contains("cluster 0000000000000007"), "{refused}");
    assert!(refused.contains("cluster 0000000000000008"), "{refused}");
    // The random id comes from the directory. An unknown cluster id is replaced by the directory's too.
    let unknown = StoreIdentity { store_id: 1, cluster_id: 0, ..IDENTITY };
    assert_eq!(open(machine.path(), unknown, SIZES).unwrap().identity, IDENTITY);
    assert_eq!(open_existing(machine.path(), SIZES).unwrap().identity, IDENTITY);
}

#[test]
fn a_directory_that_joins_gets_its_cluster_once() {
    let directory = scratch();
    let joining = StoreIdentity { cluster_id: 0, ..IDENTITY };
    let mut stores = open(directory.path(), joining, SIZES).unwrap();
    stores.adopt(7).unwrap();
    assert_eq!(stores.identity, IDENTITY);
    drop(stores);
    assert_eq!(open(directory.path(), joining, SIZES).unwrap().identity, IDENTITY);
    let other = StoreIdentity { cluster_id: 8, ..IDENTITY };
    assert!(matches!(error(open(directory.path(), other, SIZES)), StoreError::Foreign { .. }));
}

#[test]
fn an_adoption_that_was_cut_short_is_finished() {
    for is_log_first in [true, false] {
        let directory = scratch();
        let joining = StoreIdentity { cluster_id: 0, ..IDENTITY };
        let mut stores = open(directory.path(), joining, SIZES).unwrap();
        match is_log_first {
            true => stores.log.adopt(7).unwrap(),
            false => stores.state.adopt(7).unwrap(),
        }
        drop(stores);
        let stores = open(directory.path(), joining, SIZES).unwrap();
        assert_eq!(stores.identity, IDENTITY);
        assert_eq!(stores.log.identity(), stores.state.identity());
    }
}

#[test]
fn halves_of_two_replicas_are_refused() {
    let machine = used();
    let other = scratch();
    let twin = StoreIdentity { store_id: 99, ..IDENTITY };
    drop(open(other.path(), twin, SIZES).unwrap());
    fs::rename(machine.path().join("state"), machine.path().join("mine")).unwrap();
    fs::rename(other.path().join("state"), machine.path().join("state")).unwrap();
    let refused = refused(machine);
    assert!(matches!(refused, StoreError::Foreign { .. }), "{refused}");
    assert!(refused.to_string().contains("store 0000000000000063"), "{refused}");
}

#[test]
fn a_half_in_the_place_of_the_other_is_refused() {
    let mut machine = used();
    machine.stores = None;
    let (log, state) = (machine.path().join("log/00000001.wal"), "state/data.mdb");
    fs::copy(log, machine.path().join(state)).unwrap();
    assert!(matches!(refused(machine), StoreError::Corrupt { .. }));
    let mut machine = used();
    machine.stores = None;
    let log = machine.path().join("log/00000001.wal");
    fs::copy(machine.path().join(state), log).unwrap();
    assert!(matches!(refused(machine), StoreError::Corrupt { .. }));
}

#[test]
fn a_lost_half_is_refused() {
    for half in ["log", "state"] {
        let mut machine = used();
        machine.stores = None;
        fs::remove_dir_all(machine.path().join(half)).unwrap();
        let refused = refused(machine);
        assert!(matches!(refused, StoreError::Incomplete { .. }), "{refused}");
    }
    // Even an untouched state proves that there was a log.
    let machine = OnDisk::new();
    fs::remove_dir_all(machine.path().join("log")).unwrap();
    assert!(matches!(refused(machine), StoreError::Incomplete { .. }));
}

#[test]
fn a_creation_that_was_cut_short_is_done_again() {
    fn truncate(path: &Path, size: u64) {
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(size).unwrap();
    }
    fn cut_log(path: &Path) {
        // The state comes after the log.
        fs::remove_dir_all(path.join("state")).unwrap();
        fs::rename(path.join("log/00000001.wal"), path.join("log/next")).unwrap();
    }
    let cuts: [fn(&Path); 9] = [
        |path| fs::remove_dir_all(path.join("state")).unwrap(),
        |path| truncate(&path.join("state/data.mdb"), 0),
        |path| truncate(&path.join("state/data.mdb"), 100),
        |path| truncate(&path.join("state/data.mdb"), 4096),
        |path| truncate(&path.join("state/data.mdb"), 8192),
        cut_log,
        |path| {
            cut_log(path);
            truncate(&path.join("log/next"), 99);
        },
        |path| {
            cut_log(path);
            truncate(&path.join("log/end"), 0);
        },
        |path| {
            cut_log(path);
            fs::remove_dir_all(path.join("log")).unwrap();
        },
    ];
    for (number, cut) in cuts.into_iter().enumerate() {
        let directory = OnDisk::new().close();
        cut(directory.path());
        let identity = StoreIdentity { store_id: 77, ..IDENTITY };
        let mut stores = open(directory.path(), identity, SIZES).unwrap();
        assert_eq!(stores.identity, identity, "cut {number}");
        commit(&mut stores.state, &[("a", Some("b"))], 1);
        drop(stores);
        assert_eq!(open(directory.path(), IDENTITY, SIZES).unwrap().identity, identity);
    }
}

#[test]
fn nothing_is_created_for_tools() {
    let directory = scratch();
    let refused = error(open_existing(directory.path(), SIZES));
    assert!(matches!(refused, StoreError::Incomplete { .. }), "{refused}");
    let missing = directory.path().join("missing");
    assert!(matches!(error(open_existing(&missing, SIZES)), StoreError::Io { .. }));
    assert!(!missing.exists());
}

#[test]
fn a_snapshot_that_was_not_installed_is_removed() {
    let mut machine = used();
    let sent = chunks(machine.state(), 10);
    machine.state().begin_install().unwrap();
    machine.state().install_chunk(&sent[0]).unwrap();
    assert!(machine.path().join("state.incoming").exists());
    let before = whole_state(machine.state()).unwrap();
    machine.restart();
    assert!(!machine.path().join("state.incoming").exists());
    assert_eq!(whole_state(machine.state()).unwrap(), before);
}

#[test]
fn an_install_that_was_cut_short_leaves_the_old_state_or_the_new() {
    let mut source = OnDisk::new();
    commit(source.state(), &[("new", Some("state"))], 50);
    let sent = chunks(source.state(), 1000);
    // The steps are: before the rename, after it, and after the directory is removed.
    for step in 0..3 {
        let mut machine = used();
        machine.stores = None;
        let old = fs::read(machine.path().join("state/data.mdb")).unwrap();
        machine.restart();
        machine.state().begin_install().unwrap();
        sent.iter().for_each(|chunk| machine.state().install_chunk(chunk).unwrap());
        machine.state().finish_install().unwrap();
        machine.stores = None;
        let new = fs::read(machine.path().join("state/data.mdb")).unwrap();
        let incoming = machine.path().join("state.incoming");
        assert!(!incoming.exists());
        if step < 2 {
            fs::create_dir(&incoming).unwrap();
            fs::write(incoming.join("lock.mdb"), [0; 100]).unwrap();
        }
        if step == 0 {
            fs::write(incoming.join("data.mdb"), new).unwrap();
            fs::write(machine.path().join("state/data.mdb"), old).unwrap();
        }
        machine.restart();
        let index = if step == 0 { 1 } else { 50 };
        assert_eq!(whole_state(machine.state()).unwrap().1, Some(applied(index)));
        assert!(!incoming.exists());
    }
}
