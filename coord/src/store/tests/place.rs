//! A log in a directory of its own: found by the data directory alone, and never taken from another replica.

use std::fs;

use super::*;
use crate::store::place_log;

/// Makes a replica whose log is in `logs`, and leaves something in both halves.
fn begin(data: &Path, logs: &Path) {
    place_log(data, logs).unwrap();
    let mut stores = open(data, IDENTITY, SIZES).unwrap();
    stores.log.append(&[append(entries(1, 3, 1))]).unwrap();
    commit(&mut stores.state, &[("a", Some("b"))], 1);
}

/// Returns the last entry of the log that a data directory has by itself.
fn last_entry(data: &Path) -> u64 {
    open_existing(data, SIZES).unwrap().log.reader().initial().unwrap().last_index
}

fn refused(data: &Path, logs: &Path) -> String {
    place_log(data, logs).expect_err("it should have been refused").to_string()
}

#[test]
fn a_log_of_its_own_directory_is_found_by_the_data_directory() {
    let scratch = scratch();
    let (data, logs) = (scratch.path().join("d"), scratch.path().join("l"));
    begin(&data, &logs);
    assert!(logs.join("log/00000001.wal").is_file() && data.join("log").is_symlink());
    assert_eq!(last_entry(&data), 3);
    place_log(&data, &logs).unwrap();
    open(&data, IDENTITY, SIZES).unwrap();
}

#[test]
fn a_log_elsewhere_is_refused_until_it_is_moved() {
    let scratch = scratch();
    let (data, logs) = (scratch.path().join("d"), scratch.path().join("l"));
    begin(&data, &data);
    let message = refused(&data, &logs);
    assert!(message.contains("while the replica is stopped (mv "), "{message}");
    assert_eq!(last_entry(&data), 3, "it is as before");
    fs::rename(data.join("log"), logs.join("log")).unwrap();
    place_log(&data, &logs).unwrap();
    assert_eq!(last_entry(&data), 3);
    assert!(refused(&data, &scratch.path().join("other")).contains("log_dir names"));
}

#[test]
fn a_log_that_is_another_replicas_is_refused() {
    let scratch = scratch();
    let (data, logs) = (scratch.path().join("d"), scratch.path().join("l"));
    begin(&data, &logs);
    let message = refused(&scratch.path().join("twin"), &logs);
    assert!(message.contains("a log_dir of its own"), "{message}");
    assert_eq!(last_entry(&data), 3);
}

#[test]
fn a_lost_disk_of_the_log_is_told_and_not_replaced() {
    let scratch = scratch();
    let (data, logs) = (scratch.path().join("d"), scratch.path().join("l"));
    begin(&data, &logs);
    fs::rename(&logs, scratch.path().join("away")).unwrap();
    place_log(&data, &logs).unwrap();
    let error = open(&data, IDENTITY, SIZES).err().unwrap().to_string();
    assert!(error.contains("is its disk mounted?"), "{error}");
    // Without the link, too.
    fs::remove_file(data.join("log")).unwrap();
    place_log(&data, &logs).unwrap();
    assert!(open(&data, IDENTITY, SIZES).is_err());
    fs::remove_dir_all(&logs).unwrap();
    fs::rename(scratch.path().join("away"), &logs).unwrap();
    place_log(&data, &logs).unwrap();
    assert_eq!(last_entry(&data), 3);
}

#[test]
fn files_that_are_not_a_logs_are_kept() {
    let scratch = scratch();
    let foreign = scratch.path().join("log/next.txt");
    fs::create_dir(scratch.path().join("log")).unwrap();
    fs::write(&foreign, "of a user").unwrap();
    let error = open(scratch.path(), IDENTITY, SIZES).err().unwrap().to_string();
    assert!(error.contains("has next.txt"), "{error}");
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "of a user");
    let data = scratch.path().join("d");
    assert!(refused(&data, scratch.path()).contains("not empty"));
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "of a user");
}
