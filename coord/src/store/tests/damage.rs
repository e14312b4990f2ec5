//! A file that was changed behind our back is refused, or all of it is still right: never a wrong
//! record, never a crash.
//!
//! Flips are random with fixed seeds, over whole files and, since most of a file is values, again
//! over the places that LMDB trusts: meta pages, page headers, offsets and node heads.

use std::fs;

use super::*;

const PAGE: usize = 4096;

/// Everything a machine holds.
#[derive(Debug, PartialEq)]
pub(super) struct Everything {
    log: (super::super::LogState, Vec<Entry>),
    state: (Contents, Option<Applied>),
}

fn everything(stores: &Stores) -> Result<Everything, StoreError> {
    let log = (stores.log.reader().initial()?, whole_log(&stores.log)?);
    Ok(Everything { log, state: whole_state(&stores.state)? })
}

/// A directory with a past: replaced, compacted and deleted records, large values, free pages,
/// trees of several levels.
pub(super) fn with_a_past(seed: u64, size: u64) -> (TempDir, Everything) {
    let mut machine = OnDisk::new();
    let random = &mut fastrand::Rng::with_seed(seed);
    let mut last = 0;
    for step in 1..=30 {
        let first = (last + 1 - last.min(random.u64(..5))).max(1);
        last = first + random.u64(..size);
        let new = (first..=last).map(|at| entry(at, step, &random_value(random))).collect();
        let hard_state = Some(hard_state(step, 1, first));
        machine.log().append(&[Append { hard_state, ..append(new) }]).unwrap();
        let mut changes: Contents = Contents::new();
        for _ in 0..random.u64(..2 * size) {
            changes.insert(random.u16(..999).to_be_bytes().to_vec(), random_value(random));
        }
        let mut changes = changes
            .iter()
            .map(|(key, value)| (&key[..], (value.len() % 5 > 0).then_some(&value[..])));
        machine.state().commit(&mut changes, &applied(step)).unwrap();
        if step == 10 {
            let to = last / 2;
            let term = machine.log().reader().term(to).unwrap().unwrap();
            machine.log().compact(to, term).unwrap();
        }
    }
    // So that the last one replaces: the older of the two meta pages has other roots.
    let found = everything(machine.stores()).unwrap();
    (machine.close(), found)
}

/// What became of a directory with a damaged file.
#[derive(Debug, Default)]
struct Outcomes {
    refused: usize,
    intact: usize,
}

/// Puts `bytes` in the place of a file; opening it must be refused, or give everything.
fn check(path: &Path, file: &str, bytes: &[u8], expected: &Everything, outcomes: &mut Outcomes) {
    fs::write(path.join(file), bytes).unwrap();
    let opened = open_existing(path, SIZES).and_then(|stores| Ok((everything(&stores)?, stores)));
    match opened {
        Ok((found, mut stores)) => {
            assert!(found == *expected, "wrong data was given out");
            outcomes.intact += 1;
            // What was not noticed must not hurt what is written next.
            let next = found.log.0.last_index + 1;
            stores.log.append(&[append(entries(next, next + 40, 99))]).unwrap();
            let keys: Vec<String> = (0..40).map(|key| format!("more {key}")).collect();
            let changes: Vec<_> = keys.iter().map(|key| (&key[..], Some("value"))).collect();
            commit(&mut stores.state, &changes, 99);
            drop(stores);
            let stores = open_existing(path, SIZES).unwrap();
            let mut later = everything(&stores).unwrap();
            later.log.1.truncate(expected.log.1.len());
            later.state.0.retain(|key, _| !key.starts_with(b"more "));
            assert!(later.log.1 == expected.log.1 && later.state.0 == expected.state.0);
        }
        Err(StoreError::Corrupt { what, at }) => {
            assert!(what.contains(path.to_str().unwrap()) && !at.is_empty(), "{what}: {at}");
            outcomes.refused += 1;
        }
        Err(StoreError::Incomplete { .. }) => outcomes.refused += 1,
        Err(error) => panic!("not refused as damage: {error}"),
    }
}

/// Flips a byte at each place that `places` gives, one at a time, in both files.
fn flip(seed: u64, size: u64, places: impl Fn(&[u8], &mut fastrand::Rng) -> Vec<usize>) {
    let (directory, expected) = with_a_past(seed, size);
    let path = directory.path();
    let files = ["raft/data.mdb", "state/data.mdb"];
    let originals = files.map(|file| fs::read(path.join(file)).unwrap());
    let random = &mut fastrand::Rng::with_seed(seed);
    for (file, original) in files.iter().zip(&originals) {
        let mut outcomes = Outcomes::default();
        let places = places(original, random);
        for &at in &places {
            let mut bytes = original.clone();
            bytes[at] ^= if random.bool() { 1 << random.u8(..8) } else { random.u8(1..) };
            check(path, file, &bytes, &expected, &mut outcomes);
            // The other file was written to if this one was found intact.
            for (file, original) in files.iter().zip(&originals) {
                fs::write(path.join(file), original).unwrap();
            }
        }
        println!("{file}: {} bytes, {} flips, {outcomes:?}", original.len(), places.len());
        assert!(outcomes.refused > places.len() / 20, "{outcomes:?}");
    }
}

#[test]
fn a_flipped_byte_anywhere_is_noticed_or_harmless() {
    for seed in 0..3 {
        flip(seed, 12, |file, random| (0..350).map(|_| random.usize(..file.len())).collect());
    }
}

#[test]
fn a_flipped_byte_in_a_meta_page_is_noticed_or_harmless() {
    flip(4, 8, |_, random| {
        // Header, and every field of both; then some of the rest.
        let mut places: Vec<usize> =
            (0..152).flat_map(|at| [at, at, PAGE + at, PAGE + at]).collect();
        places.extend((0..20).map(|_| random.usize(152..PAGE)));
        places
    });
}

#[test]
fn a_flipped_byte_in_a_page_header_or_node_is_noticed_or_harmless() {
    flip(5, 12, |file, random| {
        let mut places = Vec::new();
        for page in 2..file.len() / PAGE {
            let start = page * PAGE;
            let word = |at: usize| usize::from(u16::from_le_bytes([file[at], file[at + 1]]));
            let count = word(start + 12).saturating_sub(16) / 2;
            for _ in 0..6 {
                places.push(start + random.usize(..16));
                let offset = start + 16 + 2 * random.usize(..count.clamp(1, 1000));
                places.push(offset.min(start + PAGE - 2));
                places.push((start + word(offset) % PAGE + random.usize(..9)).min(file.len() - 1));
            }
        }
        random.shuffle(&mut places);
        places.truncate(1500);
        places
    });
}

#[test]
fn a_file_cut_short_is_noticed_or_harmless() {
    let (directory, expected) = with_a_past(6, 12);
    let path = directory.path();
    for file in ["raft/data.mdb", "state/data.mdb"] {
        let original = fs::read(path.join(file)).unwrap();
        let random = &mut fastrand::Rng::with_seed(6);
        let mut outcomes = Outcomes::default();
        let pages = original.len() / PAGE;
        let cuts = (0..pages).map(|page| page * PAGE);
        for size in cuts.chain((0..60).map(|_| random.usize(..original.len()))) {
            let files = ["raft/data.mdb", "state/data.mdb"];
            let before = files.map(|file| fs::read(path.join(file)).unwrap());
            check(path, file, &original[..size], &expected, &mut outcomes);
            for (file, bytes) in files.iter().zip(before) {
                fs::write(path.join(file), bytes).unwrap();
            }
            fs::write(path.join(file), &original).unwrap();
        }
        println!("{file}: {outcomes:?}");
        assert!(outcomes.refused > pages / 2);
    }
}

#[test]
fn pages_that_were_never_written_are_noticed_or_harmless() {
    let (directory, expected) = with_a_past(7, 12);
    let path = directory.path();
    let files = ["raft/data.mdb", "state/data.mdb"];
    let originals = files.map(|file| fs::read(path.join(file)).unwrap());
    for (file, original) in files.iter().zip(&originals) {
        let mut outcomes = Outcomes::default();
        for page in 0..original.len() / PAGE {
            // Zeros, and half of a page: a write that was cut.
            for zeroed in [0..PAGE, PAGE / 2..PAGE, 0..PAGE / 2] {
                let mut bytes = original.clone();
                bytes[page * PAGE..][zeroed].fill(0);
                check(path, file, &bytes, &expected, &mut outcomes);
                for (file, original) in files.iter().zip(&originals) {
                    fs::write(path.join(file), original).unwrap();
                }
            }
        }
        println!("{file}: {outcomes:?}");
        assert!(outcomes.refused > outcomes.intact / 4);
    }
}

/// A disk that lost its last writes: the file as it was some commits ago, or a mix of two times.
#[test]
fn an_old_page_among_new_ones_is_noticed_or_harmless() {
    let (directory, _) = with_a_past(8, 12);
    let path = directory.path();
    let files = ["raft/data.mdb", "state/data.mdb"];
    let old = files.map(|file| fs::read(path.join(file)).unwrap());
    let mut stores = open_existing(path, SIZES).unwrap();
    let last = stores.log.reader().initial().unwrap().last_index;
    for step in 0..6 {
        stores.log.append(&[append(entries(last - step, last + step, 90 + step))]).unwrap();
        commit(&mut stores.state, &[("old", Some("new")), ("x", None)], 90 + step);
    }
    let expected = everything(&stores).unwrap();
    drop(stores);
    let originals = files.map(|file| fs::read(path.join(file)).unwrap());
    for ((file, original), old) in files.iter().zip(&originals).zip(&old) {
        let mut outcomes = Outcomes::default();
        for page in 0..original.len().min(old.len()) / PAGE {
            let mut bytes = original.clone();
            let range = page * PAGE..(page + 1) * PAGE;
            bytes[range.clone()].copy_from_slice(&old[range]);
            check(path, file, &bytes, &expected, &mut outcomes);
            for (file, original) in files.iter().zip(&originals) {
                fs::write(path.join(file), original).unwrap();
            }
        }
        println!("{file}: {outcomes:?}");
        assert!(outcomes.refused > 2);
    }
}
