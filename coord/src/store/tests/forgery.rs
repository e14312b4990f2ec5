//! Files with a perfect structure whose content is old or incomplete. A disk leaves such files if it
//! forgets acknowledged writes, and random damage hardly ever makes one.

use std::fs;
use std::sync::Arc;

use super::*;
use crate::store::files::Lock;
use crate::store::lmdb::Environment;
use crate::store::record::{self, HEADER_KEY};

const PAGE: usize = 4096;
/// Offsets in a meta page: what a transaction changes (both trees and the last page), and its number.
const TREES: std::ops::Range<usize> = 40..144;
const TRANSACTION: std::ops::Range<usize> = 144..152;

/// Builds a machine whose last commit replaced something.
fn used() -> OnDisk {
    let mut machine = OnDisk::new();
    for step in 1..=6 {
        let value = step.to_string();
        commit(machine.state(), &[("a", Some(&value)), ("b", Some("b")), ("c", Some("c"))], step);
    }
    machine
}

fn is_refused(directory: &TempDir, because: &str) {
    let opened = open_existing(directory.path(), SIZES);
    let loaded = opened.and_then(|stores| whole_state(&stores.state).map(|_| ()));
    let Err(StoreError::Corrupt { what, at }) = loaded else {
        panic!("{loaded:?} instead of: {because}");
    };
    assert!(at.contains(because), "{what}: {at} instead of: {because}");
}

/// Changes both meta pages: `forge` gets the newer and the older one.
fn forge_meta(forge: impl Fn(&mut [u8], &mut [u8]), because: &str) {
    let directory = used().close();
    let path = directory.path().join("state/data.mdb");
    let mut bytes = fs::read(&path).unwrap();
    let (first, second) = bytes[..2 * PAGE].split_at_mut(PAGE);
    if first[TRANSACTION] > second[TRANSACTION] {
        forge(first, second);
    } else {
        forge(second, first);
    }
    fs::write(&path, bytes).unwrap();
    is_refused(&directory, because);
}

/// The forged file is as LMDB would write it, so its own checks, and ours of the pages, pass.
const OTHER_TRANSACTION: &str = "a header that another transaction wrote";

fn add(meta: &mut [u8], difference: i64) {
    let number = i64::from_le_bytes(meta[TRANSACTION].try_into().unwrap()) + difference;
    meta[TRANSACTION].copy_from_slice(&number.to_le_bytes());
}

#[test]
fn a_meta_page_that_became_older_does_not_bring_back_the_commit_before() {
    forge_meta(|newer, _| add(newer, -2), OTHER_TRANSACTION);
}

#[test]
fn a_meta_page_that_became_newer_does_not_bring_back_the_commit_before() {
    forge_meta(|_, older| add(older, 2), OTHER_TRANSACTION);
}

#[test]
fn a_meta_page_with_the_roots_of_the_commit_before_is_refused() {
    forge_meta(|newer, older| newer[TREES].copy_from_slice(&older[TREES]), OTHER_TRANSACTION);
}

#[test]
fn meta_pages_of_commits_that_do_not_follow_each_other_are_refused() {
    forge_meta(|_, older| add(older, -2), "do not follow each other");
    forge_meta(|newer, _| add(newer, 2), "do not follow each other");
    forge_meta(
        |newer, older| {
            add(newer, 1);
            add(older, 1);
        },
        "do not follow each other",
    );
}

/// Puts a record (`None` removes it) without changing the header.
fn forge_record(key: &[u8], value: Option<&[u8]>) -> TempDir {
    let directory = used().close();
    let lock = Arc::new(Lock::take(directory.path()).unwrap());
    let path = directory.path().join("state");
    let (environment, header) = Environment::open(&path, SIZES.state_bytes_max, lock).unwrap();
    let mut header = header.unwrap();
    // Two commits make both meta pages lead to it.
    for _ in 0..2 {
        environment
            .write(|transaction, records, number| {
                match value {
                    Some(value) => records.put(transaction, key, value).unwrap(),
                    None => drop(records.delete(transaction, key).unwrap()),
                }
                header[5..13].copy_from_slice(&number.to_le_bytes());
                let crc = record::record_crc(HEADER_KEY, &header[4..]);
                header[..4].copy_from_slice(&crc.to_le_bytes());
                records.put(transaction, HEADER_KEY, &header).unwrap();
                Ok(())
            })
            .unwrap();
    }
    environment.close().unwrap();
    directory
}

#[test]
fn forging_itself_is_not_what_is_refused() {
    // This record is there already.
    let mut same = Vec::new();
    record::write_state(b"b", b"b", &mut same);
    let directory = forge_record(&record::state_key(b"b"), Some(&same));
    let stores = open_existing(directory.path(), SIZES).unwrap();
    assert_eq!(whole_state(&stores.state).unwrap().0.len(), 3);
}

#[test]
fn a_record_that_is_missing_old_or_too_many_is_noticed() {
    let forge = |key: &[u8], value: Option<&[u8]>| {
        let mut stored = Vec::new();
        let value = value.map(|value| {
            record::write_state(key, value, &mut stored);
            &stored[..]
        });
        let directory = forge_record(&record::state_key(key), value);
        is_refused(&directory, "are not the 3 that were written");
    };
    forge(b"b", None);
    forge(b"a", Some(b"5"));
    forge(b"d", Some(b"d"));
}
