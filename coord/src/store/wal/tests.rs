//! The log after a crash or on a bad disk, batch by batch, and the place of its segments.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::batch::SECTOR;
use super::*;
use raft::eraftpb::Entry;

const IDENTITY: StoreIdentity = StoreIdentity { cluster_id: 7, replica_id: 3, store_id: 0x5eed };
/// A limit that makes segments of 64 KiB.
const LIMIT_BYTES: u64 = 1 << 20;

/// A log in a directory of its own.
struct Scratch {
    directory: TempDir,
    log: Option<Wal>,
}

impl Scratch {
    fn new() -> Scratch {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let lock = Arc::new(Lock::take(directory.path()).unwrap());
        fs::create_dir(directory.path().join("log")).unwrap();
        let path = directory.path().join("log");
        let log = Some(Wal::create(&path, IDENTITY, LIMIT_BYTES, lock).unwrap());
        Scratch { directory, log }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join("log").join(file)
    }

    fn log(&mut self) -> &mut Wal {
        self.log.as_mut().unwrap()
    }

    fn close(&mut self) {
        self.log = None;
    }

    fn open(&mut self) -> Result<&mut Wal, StoreError> {
        self.log = None;
        let lock = Arc::new(Lock::take(self.directory.path()).unwrap());
        let opened = Wal::open(&self.directory.path().join("log"), LIMIT_BYTES, lock)?;
        Ok(self.log.insert(opened.expect("there is a log")))
    }

    /// Appends one entry of `size` bytes to a log that ends with the entry before it.
    fn push(&mut self, index: u64, size: usize) {
        self.log().append(&[append(index, size)]).unwrap();
    }

    /// Opens it and returns the last index.
    fn last(&mut self) -> Result<u64, StoreError> {
        let log = self.open()?;
        let reader = log.reader();
        let state = reader.initial()?;
        let found = reader.entries(state.compacted_index + 1, state.last_index + 1, u64::MAX)?;
        assert_eq!(found.len() as u64, state.last_index - state.compacted_index);
        Ok(state.last_index)
    }

    /// Opens it and returns the reason of the refusal.
    #[track_caller]
    fn refusal(&mut self) -> String {
        match self.last() {
            Err(StoreError::Corrupt { at, .. }) => at,
            other => panic!("{other:?}"),
        }
    }

    fn segments(&self) -> Vec<String> {
        let list = fs::read_dir(self.path("")).unwrap();
        let mut names: Vec<String> =
            list.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "end");
        names.sort();
        names
    }
}

const FIRST: &str = "00000001.wal";

fn entry(index: u64, size: usize) -> Entry {
    let data: Vec<u8> = (0..size).map(|at| (at % 251) as u8 + 1).collect();
    let mut entry = Entry { index, term: 1, ..Entry::default() };
    entry.data = data.into();
    entry
}

fn append(index: u64, size: usize) -> Append {
    Append { entries: vec![entry(index, size)], ..Append::default() }
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Builds a log of three batches, whose last one has several sectors. Returns where that one begins and
/// ends. With `is_acknowledged` false the mark is older, as if the process had ended before its sync.
fn three(is_acknowledged: bool) -> (Scratch, usize, usize) {
    let mut scratch = Scratch::new();
    scratch.push(1, 100);
    scratch.push(2, 100);
    let mark = fs::read(scratch.path("end")).unwrap();
    let begin = scratch.log().offset as usize;
    scratch.push(3, 2000);
    let end = scratch.log().offset as usize;
    assert_eq!(end - begin, 5 * SECTOR);
    scratch.close();
    if !is_acknowledged {
        fs::write(scratch.path("end"), mark).unwrap();
    }
    (scratch, begin, end)
}

#[test]
fn a_batch_cut_short_is_dropped_if_nobody_was_told_of_it() {
    // A disk leaves some of the sectors, in any combination but all.
    for written in 0..31_u32 {
        let (mut scratch, begin, _) = three(false);
        edit(&scratch.path(FIRST), |bytes| {
            for sector in (0..5).filter(|sector| written & 1 << sector == 0) {
                bytes[begin + sector * SECTOR..][..SECTOR].fill(0);
            }
        });
        assert_eq!(scratch.last().unwrap(), 2, "sectors {written:05b}");
        // A shorter one takes its place. Nothing of the old one can be found behind it.
        scratch.push(3, 10);
        scratch.push(4, 10);
        assert_eq!(scratch.last().unwrap(), 4, "sectors {written:05b}");
    }
}

#[test]
fn a_batch_that_a_kill_cut_at_any_byte_is_dropped() {
    for kept in (1..5 * SECTOR - 4).step_by(37).chain([4, 35, 36, 37]) {
        let (mut scratch, begin, end) = three(false);
        edit(&scratch.path(FIRST), |bytes| bytes[begin + kept..end].fill(0));
        assert_eq!(scratch.last().unwrap(), 2, "{kept} bytes");
    }
}

#[test]
fn a_batch_that_was_not_acknowledged_but_is_whole_is_kept() {
    let (mut scratch, ..) = three(false);
    assert_eq!(scratch.last().unwrap(), 3);
}

#[test]
fn an_acknowledged_batch_is_missed_whatever_is_lost_of_it() {
    for written in 0..31_u32 {
        let (mut scratch, begin, _) = three(true);
        edit(&scratch.path(FIRST), |bytes| {
            for sector in (0..5).filter(|sector| written & 1 << sector == 0) {
                bytes[begin + sector * SECTOR..][..SECTOR].fill(0);
            }
        });
        let refusal = scratch.refusal();
        let place = format!("{FIRST}, offset {begin})");
        assert!(refusal.contains(&place) && refusal.contains("durable"), "{refusal}");
    }
}

#[test]
fn a_changed_byte_in_the_last_batch_is_no_torn_tail() {
    // This holds even if the mark is older, after a loss of power.
    for is_acknowledged in [true, false] {
        let (mut scratch, begin, end) = three(is_acknowledged);
        let original = fs::read(scratch.path(FIRST)).unwrap();
        for at in (begin..end).step_by(7).chain(begin..begin + 36).chain(end - 9..end) {
            for flip in [1, 0x80, 0xff, original[at]] {
                if flip == 0 {
                    continue;
                }
                fs::write(scratch.path(FIRST), &original).unwrap();
                edit(&scratch.path(FIRST), |bytes| bytes[at] ^= flip);
                let refusal = scratch.refusal();
                assert!(refusal.contains(&format!("{FIRST}, offset {begin})")), "{refusal}");
            }
        }
    }
}

#[test]
fn zeros_in_an_entry_are_not_taken_for_what_was_not_written() {
    let mut scratch = Scratch::new();
    let mark = fs::read(scratch.path("end")).unwrap();
    let begin = scratch.log().offset as usize;
    let mut zeros = entry(1, 0);
    zeros.data = vec![0; 3000].into();
    scratch.log().append(&[Append { entries: vec![zeros], ..Append::default() }]).unwrap();
    let end = scratch.log().offset as usize;
    scratch.close();
    let original = fs::read(scratch.path(FIRST)).unwrap();
    for at in (begin..end).step_by(5) {
        let mut bytes = original.clone();
        bytes[at] ^= 4;
        fs::write(scratch.path(FIRST), bytes).unwrap();
        fs::write(scratch.path("end"), &mark).unwrap();
        assert!(scratch.refusal().contains("another checksum"));
    }
    for sector in [0, 5] {
        let mut bytes = original.clone();
        bytes[begin + sector * SECTOR..][..SECTOR].fill(0);
        fs::write(scratch.path(FIRST), bytes).unwrap();
        fs::write(scratch.path("end"), &mark).unwrap();
        assert_eq!(scratch.last().unwrap(), 0, "sector {sector}");
    }
}

#[test]
fn a_batch_lost_in_the_middle_is_missed() {
    let (mut scratch, begin, _) = three(false);
    let mark = fs::read(scratch.path("end")).unwrap();
    scratch.open().unwrap();
    scratch.push(4, 10);
    scratch.close();
    fs::write(scratch.path("end"), mark).unwrap();
    edit(&scratch.path(FIRST), |bytes| bytes[begin..begin + 5 * SECTOR].fill(0));
    let refusal = scratch.refusal();
    assert!(refusal.contains("a later one is there"), "{refusal}");
}

#[test]
fn a_damaged_mark_is_refused_and_an_old_one_harmless() {
    let (mut scratch, ..) = three(true);
    let original = fs::read(scratch.path("end")).unwrap();
    for at in 0..original.len() {
        edit(&scratch.path("end"), |bytes| bytes[at] ^= 0x10);
        let refusal = scratch.refusal();
        assert!(refusal.contains("its end has another checksum"), "{refusal}");
        fs::write(scratch.path("end"), &original).unwrap();
    }
    fs::remove_file(scratch.path("end")).unwrap();
    assert!(scratch.refusal().contains("`end` is missing"));
    let (mut scratch, ..) = three(false);
    assert_eq!(scratch.last().unwrap(), 3);
}

#[test]
fn a_history_that_was_put_back_is_noticed() {
    // Two machines from one copy write different batches with the same number.
    let (mut scratch, ..) = three(true);
    let before = fs::read(scratch.path(FIRST)).unwrap();
    scratch.open().unwrap();
    scratch.push(4, 10);
    scratch.close();
    let mark = fs::read(scratch.path("end")).unwrap();
    fs::write(scratch.path(FIRST), &before).unwrap();
    assert!(scratch.refusal().contains("was durable"));
    let mut other = Scratch::new();
    for (index, size) in [(1, 100), (2, 100), (3, 2000), (4, 999)] {
        other.push(index, size);
    }
    other.close();
    fs::copy(other.path(FIRST), scratch.path(FIRST)).unwrap();
    fs::write(scratch.path("end"), mark).unwrap();
    let refusal = scratch.refusal();
    assert!(refusal.contains("not the one that was written last"), "{refusal}");
}

/// Builds a log of several segments.
fn long() -> Scratch {
    let mut scratch = Scratch::new();
    for index in 1..=300 {
        scratch.push(index, 900);
    }
    scratch
}

#[test]
fn a_log_goes_on_in_the_next_segment() {
    let mut scratch = long();
    let segments = scratch.segments().len();
    assert!(segments >= 5, "{segments} segments");
    assert_eq!(scratch.last().unwrap(), 300);
    scratch.push(301, 10);
    assert_eq!(scratch.last().unwrap(), 301);
}

#[test]
fn a_segment_without_entries_is_removed() {
    let mut scratch = long();
    // Files are not counted: an unused one is made in the background.
    let before = scratch.log().shared.index().segments.len();
    let (used, size) = (scratch.log().used_bytes(), scratch.log().current.size);
    let reader = scratch.log().reader();
    assert_eq!(scratch.log().compact(200, 1).unwrap(), 200);
    let after = scratch.log().shared.index().segments.len();
    assert!(after <= before - 3, "{before} segments, then {after}");
    assert!(!scratch.path(FIRST).exists() && !scratch.path("00000002.wal").exists());
    assert!(scratch.log().used_bytes() < used - 3 * size / 2);
    assert_eq!(reader.entries(201, 301, u64::MAX).unwrap().len(), 100);
    drop(reader);
    assert_eq!(scratch.last().unwrap(), 300);
    // Only the current segment is left.
    scratch.log().append(&[Append { reset: Some((900, 2)), ..Append::default() }]).unwrap();
    assert_eq!(scratch.log().shared.index().segments.len(), 1);
    scratch.log().append(&[append(901, 5)]).unwrap();
    assert_eq!(scratch.last().unwrap(), 901);
}

#[test]
fn a_removal_that_a_crash_undid_is_done_again() {
    let mut scratch = long();
    let first = fs::read(scratch.path(FIRST)).unwrap();
    let second = fs::read(scratch.path("00000002.wal")).unwrap();
    scratch.log().compact(200, 1).unwrap();
    let kept = scratch.segments();
    // Both come back, or only the older one.
    for is_second_back in [true, false] {
        scratch.close();
        fs::write(scratch.path(FIRST), &first).unwrap();
        if is_second_back {
            fs::write(scratch.path("00000002.wal"), &second).unwrap();
        }
        assert_eq!(scratch.last().unwrap(), 300);
        assert!(!scratch.path(FIRST).exists() && !scratch.path("00000002.wal").exists());
        let gone = |name: &String| !scratch.segments().contains(name);
        assert!(kept.iter().filter(|name| gone(name)).count() <= 1, "but the unused one");
    }
}

#[test]
fn a_lost_segment_is_noticed() {
    for lost in 0.. {
        let mut scratch = long();
        // The segment that is not used yet does not count.
        let used = scratch.log().shared.index().segments.len();
        if lost == used {
            return assert!(used >= 4);
        }
        scratch.close();
        let segments = scratch.segments();
        fs::remove_file(scratch.path(&segments[lost])).unwrap();
        let refusal = scratch.refusal();
        assert!(!refusal.is_empty(), "{refusal}");
    }
}

#[test]
fn a_crash_at_the_beginning_of_a_segment_leaves_what_was_before() {
    let mut scratch = Scratch::new();
    let mut index = 0;
    let (mark, path) = loop {
        index += 1;
        let mark = fs::read(scratch.path("end")).unwrap();
        scratch.push(index, 900);
        if scratch.log().current.number == 2 {
            break (mark, scratch.log().current.path.clone());
        }
    };
    scratch.close();
    // The segment was begun only after that batch was durable.
    let _ = fs::remove_file(scratch.path("00000003.wal"));
    let original = fs::read(&path).unwrap();
    for sectors in [0..3, 0..1, 1..3] {
        fs::write(scratch.path("end"), &mark).unwrap();
        let mut bytes = original.clone();
        bytes[sectors.start * SECTOR..sectors.end * SECTOR].fill(0);
        fs::write(&path, bytes).unwrap();
        assert_eq!(scratch.last().unwrap(), index - 1);
        scratch.close();
    }
    // Another batch with that number fits where the log ends.
    scratch.open().unwrap();
    scratch.push(index, 10);
    assert_eq!(scratch.log().current.number, 1);
    assert_eq!(scratch.last().unwrap(), index);
    // The mark says that it was durable.
    scratch.push(index + 1, 900);
    assert_eq!(scratch.log().current.number, 2);
    scratch.close();
    edit(&path, |bytes| bytes.fill(0));
    fs::write(scratch.path("00000003.wal"), [0; 4096]).unwrap();
    assert!(scratch.refusal().contains("a later one is there"));
    fs::remove_file(scratch.path("00000003.wal")).unwrap();
    assert!(scratch.refusal().contains("was durable"));
}

#[test]
fn a_batch_larger_than_a_segment_gets_one_of_its_own() {
    let mut scratch = Scratch::new();
    scratch.push(1, 40_000);
    scratch.push(2, 300_000);
    scratch.push(3, 10);
    assert_eq!(scratch.last().unwrap(), 3);
    let full = scratch.log().append(&[append(4, 2 << 20)]);
    assert!(matches!(full, Err(StoreError::Full { .. })), "{full:?}");
    scratch.push(4, 10);
    assert_eq!(scratch.last().unwrap(), 4);
}

#[test]
fn a_full_log_can_be_compacted_entry_by_entry_and_reset() {
    let mut scratch = Scratch::new();
    let mut last = 0;
    while scratch.log().append(&[append(last + 1, 900)]).is_ok() {
        last += 1;
    }
    for to in 1..100 {
        assert_eq!(scratch.log().compact(to, 1).unwrap(), to);
    }
    while scratch.log().append(&[append(last + 1, 900)]).is_ok() {
        last += 1;
    }
    let files: u64 =
        scratch.segments().iter().map(|name| fs::metadata(scratch.path(name)).unwrap().len()).sum();
    assert!(files <= LIMIT_BYTES, "{files} bytes on disk");
    let reset = Append { reset: Some((9999, 3)), ..append(10_000, 900) };
    scratch.log().append(&[reset]).unwrap();
    assert_eq!(scratch.last().unwrap(), 10_000);
}

#[test]
fn an_entry_that_changes_under_a_running_log_is_not_given_out() {
    let mut scratch = long();
    let reader = scratch.log().reader();
    // This writes in place, so that the open file has it.
    let path = scratch.path("00000002.wal");
    let bytes = fs::read(&path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[!bytes[1000]], 1000).unwrap();
    let refused = reader.entries(1, 301, u64::MAX).unwrap_err().to_string();
    assert!(refused.contains("entry") && refused.contains("00000002.wal, offset "), "{refused}");
    assert_eq!(reader.entries(1, 10, u64::MAX).unwrap().len(), 9);
    file.set_len(100).unwrap();
    let refused = reader.entries(1, 301, u64::MAX).unwrap_err().to_string();
    assert!(refused.contains("its file was cut short"), "{refused}");
}

#[test]
fn a_segment_of_another_store_is_refused() {
    let (mut scratch, ..) = three(true);
    let path = scratch.path("other");
    fs::create_dir(&path).unwrap();
    let identity = StoreIdentity { store_id: 9, ..IDENTITY };
    let lock = Arc::new(Lock::take(&path).unwrap());
    let mut twin = Wal::create(&path, identity, LIMIT_BYTES, lock).unwrap();
    for index in 1..=3 {
        twin.append(&[append(index, 100)]).unwrap();
    }
    fs::copy(path.join(FIRST), scratch.path(FIRST)).unwrap();
    let refusal = scratch.refusal();
    assert!(refusal.contains("the head of a batch has another checksum"), "{refusal}");
}
