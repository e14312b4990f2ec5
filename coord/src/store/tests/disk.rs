//! A disk that refuses, is full or forgets loses nothing that was acknowledged.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::store::memory::Part;

/// Set in the processes that tests here start, which run the same test. It names their directory.
const CHILD: &str = "MILLRACE_TEST_STORE_DIRECTORY";

#[test]
fn a_full_log_says_so_and_goes_on_after_compaction() {
    let directory = tempfile::tempdir().unwrap();
    let sizes = Sizes { log_bytes_max: 1 << 20, state_bytes_max: 1 << 20 };
    let mut stores = open(directory.path(), IDENTITY, sizes).unwrap();
    let data = [1; 1000];
    let mut last = 0;
    let full = loop {
        let next: Vec<Entry> = (last + 1..=last + 20).map(|at| entry(at, 1, &data)).collect();
        match stores.log.append(&[append(next)]) {
            Ok(()) => last += 20,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, StoreError::Full { limit_bytes: 0x10_0000, .. }), "{full}");
    assert_eq!(whole_log(&stores.log).unwrap().len() as u64, last, "all or nothing");
    assert!(stores.log.used_bytes() <= stores.log.limit_bytes());
    assert!(stores.log.used_bytes() > stores.log.limit_bytes() * 8 / 10);
    // A full log can still forget.
    assert_eq!(stores.log.compact(last / 2, 1).unwrap(), last / 2);
    assert!(stores.log.used_bytes() < stores.log.limit_bytes() * 6 / 10);
    stores.log.append(&[append(entries(last + 1, last + 50, 1))]).unwrap();
    drop(stores);
    let stores = open(directory.path(), IDENTITY, sizes).unwrap();
    assert_eq!(whole_log(&stores.log).unwrap().len() as u64, last - last / 2 + 50);
}

#[test]
fn a_full_state_keeps_what_it_had() {
    let directory = tempfile::tempdir().unwrap();
    let sizes = Sizes { log_bytes_max: 1 << 20, state_bytes_max: 1 << 20 };
    let mut stores = open(directory.path(), IDENTITY, sizes).unwrap();
    let value = "v".repeat(100_000);
    commit(&mut stores.state, &[("a", Some(&value)), ("b", Some(&value))], 1);
    let before = whole_state(&stores.state).unwrap();
    let huge = vec![7; 2 << 20];
    let mut changes = [(&b"a"[..], Some(&huge[..]))].into_iter();
    let full = stores.state.commit(&mut changes, &applied(2));
    assert!(matches!(full, Err(StoreError::Full { .. })), "{full:?}");
    assert!(whole_state(&stores.state).unwrap() == before);
    commit(&mut stores.state, &[("a", None)], 3);
    drop(stores);
    let stores = open(directory.path(), IDENTITY, sizes).unwrap();
    assert_eq!(whole_state(&stores.state).unwrap().1, Some(applied(3)));
}

/// Starts this test again in a process whose files may not grow beyond 512 KiB.
#[test]
fn a_write_that_fails_is_the_last() {
    if let Some(path) = std::env::var_os(CHILD) {
        return write_until_it_fails(Path::new(&path));
    }
    let directory = tempfile::tempdir().unwrap();
    let name = std::thread::current().name().unwrap().to_owned();
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 1024; exec \"$0\" --exact \"$1\" --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(CHILD, directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let acknowledged = |what: &str| -> u64 {
        let line = text.lines().find_map(|line| line.split_once(what)).expect("it said so").1;
        line.trim().parse().unwrap()
    };
    let mut stores = open(directory.path(), IDENTITY, SIZES).unwrap();
    let found = whole_log(&stores.log).unwrap();
    assert_eq!(found.len() as u64, acknowledged("log acknowledged "));
    let (contents, index) = whole_state(&stores.state).unwrap();
    let index = index.unwrap().index;
    assert_eq!((index, contents.len() as u64), (acknowledged("state acknowledged "), index));
    stores.log.append(&[append(entries(found.len() as u64 + 1, 9999, 1))]).unwrap();
}

fn write_until_it_fails(path: &Path) {
    let mut stores = open(path, IDENTITY, SIZES).unwrap();
    let data = [9; 3000];
    let mut last = 0;
    let first = loop {
        match stores.log.append(&[append(vec![entry(last + 1, 1, &data)])]) {
            Ok(()) => last += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(first, StoreError::Failed { .. }), "{first}");
    let next = append(entries(last + 1, last + 1, 1));
    assert_eq!(stores.log.append(&[next]), Err(first.clone()));
    assert_eq!(stores.log.compact(last, 1), Err(first));
    assert_eq!(whole_log(&stores.log).unwrap().len() as u64, last, "what is there can be read");
    println!("\nlog acknowledged {last}");
    let mut index = 0;
    let first = loop {
        let key = format!("{index:09}");
        let mut changes = [(key.as_bytes(), Some(&data[..]))].into_iter();
        match stores.state.commit(&mut changes, &applied(index + 1)) {
            Ok(()) => index += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(first, StoreError::Failed { .. }), "{first}");
    let mut nothing = std::iter::empty();
    assert_eq!(stores.state.commit(&mut nothing, &applied(index + 2)), Err(first.clone()));
    assert_eq!(stores.state.begin_install(), Err(first));
    println!("\nstate acknowledged {index}");
}

#[test]
fn a_crash_in_memory_drops_what_was_not_synced() {
    let disk = MemoryDisk::new(1);
    let (mut log, mut state) = (disk.log(), disk.state());
    log.append(&[append(entries(1, 3, 1))]).unwrap();
    commit(&mut state, &[("a", Some("1"))], 1);
    disk.hold(true);
    log.append(&[append(entries(3, 5, 2))]).unwrap();
    commit(&mut state, &[("a", Some("2"))], 2);
    assert_eq!(whole_log(&log).unwrap(), entries(1, 3, 1), "no reader sees it before the sync");
    disk.sync(Part::Log).unwrap();
    disk.crash();
    let expected = [entries(1, 2, 1), entries(3, 5, 2)].concat();
    assert_eq!(whole_log(&disk.log()).unwrap(), expected);
    let kept = Contents::from([(b"a".to_vec(), b"1".to_vec())]);
    assert_eq!(whole_state(&disk.state()).unwrap(), (kept, Some(applied(1))));
    disk.sync(Part::State).unwrap();
    assert_eq!(whole_state(&disk.state()).unwrap().1, Some(applied(1)));
}

#[test]
fn a_failed_sync_in_memory_latches_until_the_crash() {
    let disk = MemoryDisk::new(1);
    disk.fail_sync(Part::Log, 2);
    let mut log = disk.log();
    log.append(&[append(entries(1, 1, 1))]).unwrap();
    let first = log.append(&[append(entries(2, 2, 1))]).unwrap_err();
    assert!(matches!(first, StoreError::Failed { .. }));
    assert_eq!(log.append(&[append(entries(2, 2, 1))]), Err(first.clone()));
    assert_eq!(log.compact(1, 1), Err(first));
    commit(&mut disk.state(), &[("the other", Some("part works"))], 1);
    disk.crash();
    assert_eq!(whole_log(&disk.log()).unwrap(), entries(1, 1, 1));
    disk.log().append(&[append(entries(2, 2, 1))]).unwrap();
}

/// Runs this test in a process of its own, many times, and kills it.
#[test]
fn a_kill_at_any_moment_loses_nothing_acknowledged() {
    if let Some(path) = std::env::var_os(CHILD) {
        return write_until_killed(Path::new(&path));
    }
    let directory = scratch();
    let name = std::thread::current().name().unwrap().to_owned();
    let random = &mut fastrand::Rng::with_seed(1);
    let mut acknowledged = (0, 0);
    for _ in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture"])
            .env(CHILD, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut note = |line: std::io::Result<String>| {
            let numbers = line.unwrap().strip_prefix("acknowledged ").map(|numbers| {
                let (log, state) = numbers.split_once(' ').unwrap();
                (log.parse().unwrap(), state.parse().unwrap())
            });
            acknowledged = numbers.unwrap_or(acknowledged);
        };
        lines.by_ref().take(random.usize(4..40)).for_each(&mut note);
        std::thread::sleep(Duration::from_micros(random.u64(..2000)));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), None, "it ended before it was killed: {status}");
        lines.for_each(note);
        let stores = open_existing(directory.path(), SIZES).unwrap();
        let (last, index) = check_promises(&stores);
        assert!((last, index) >= acknowledged && index >= acknowledged.1, "{acknowledged:?}");
    }
    assert!(acknowledged.1 > KILLS, "it wrote: {acknowledged:?}");
}

const KILLS: u64 = 20;

/// Checks the data of the killed process, which the indexes alone determine.
fn check_promises(stores: &Stores) -> (u64, u64) {
    let log = stores.log.reader().initial().unwrap();
    assert!(whole_log(&stores.log).unwrap() == entries(log.compacted_index + 1, log.last_index, 1));
    let (found, applied) = whole_state(&stores.state).unwrap();
    let index = applied.map_or(0, |applied| applied.index);
    let expected: Contents = (index.saturating_sub(49).max(1)..=index)
        .map(|index| (vec![b'k', (index % 50) as u8], vec![index as u8; 500]))
        .collect();
    assert!(found == expected, "the state of {index}");
    (log.last_index, index)
}

fn write_until_killed(path: &Path) {
    let mut stores = open(path, IDENTITY, SIZES).unwrap();
    let (mut last, mut index) = check_promises(&stores);
    loop {
        // Every other append replaces the last entries with the same ones.
        let log = stores.log.reader().initial().unwrap();
        let first = (last + 1).saturating_sub(last % 3).max(log.compacted_index + 1);
        last += 1 + last % 5;
        stores.log.append(&[append(entries(first, last, 1))]).unwrap();
        if last > log.compacted_index + 60 {
            stores.log.compact(last - 20, 1).unwrap();
        }
        index += 1;
        let (key, value) = ([b'k', (index % 50) as u8], vec![index as u8; 500]);
        let mut changes = [(&key[..], Some(&value[..]))].into_iter();
        stores.state.commit(&mut changes, &applied(index)).unwrap();
        if index % 8 == 0 {
            let sent = chunks(&mut stores.state, 10_000);
            stores.state.begin_install().unwrap();
            sent.iter().for_each(|chunk| stores.state.install_chunk(chunk).unwrap());
            stores.state.finish_install().unwrap();
        }
        println!("\nacknowledged {last} {index}");
    }
}
