//! A file that was changed from outside is refused, or all of it is still right. There is never a wrong
//! record, and never a crash.
//!
//! Flips are random with fixed seeds, over whole files. Since most of a file is values, there are more
//! flips in the places that LMDB trusts: meta pages, page headers, offsets and node heads.

use std::fs;

use super::*;

const PAGE: usize = 4096;
/// Segments of 64 KiB, so that there are many.
const TINY: Sizes = Sizes { log_bytes_max: 1 << 20, ..SIZES };

/// Everything that a machine has stored.
#[derive(Debug, PartialEq)]
pub(super) struct Everything {
    log: (super::super::LogState, Vec<Entry>),
    state: (Contents, Option<Applied>),
}

fn everything(stores: &Stores) -> Result<Everything, StoreError> {
    let log = (stores.log.reader().initial()?, whole_log(&stores.log)?);
    Ok(Everything { log, state: whole_state(&stores.state)? })
}

/// Builds a directory with a past: replaced, compacted and deleted records, large values, free pages, trees
/// of several levels.
pub(super) fn with_a_past(seed: u64, size: u64) -> (TempDir, Everything) {
    let mut machine = OnDisk::with(TINY);
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
    // This commit makes the older of the two meta pages have other roots.
    let found = everything(machine.stores()).unwrap();
    (machine.close(), found)
}

/// The outcomes of opening a directory with a damaged file.
#[derive(Debug, Default)]
struct Outcomes {
    refused: usize,
    intact: usize,
}

/// Lists the files of a directory with their content.
fn files(path: &Path) -> Vec<(String, Vec<u8>)> {
    let list = fs::read_dir(path.join("log")).unwrap();
    let names = list.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.map(|name| format!("log/{name}")).collect();
    names.push("state/data.mdb".to_owned());
    names.sort();
    let read = |name: String| (fs::read(path.join(&name)).unwrap(), name);
    names.into_iter().map(read).map(|(bytes, name)| (name, bytes)).collect()
}

/// Restores the files.
fn restore(path: &Path, originals: &[(String, Vec<u8>)]) {
    fs::remove_dir_all(path.join("log")).unwrap();
    fs::create_dir(path.join("log")).unwrap();
    originals.iter().for_each(|(name, bytes)| fs::write(path.join(name), bytes).unwrap());
}

/// Replaces a file with `bytes`. Opening it must be refused, or return everything.
fn check(path: &Path, file: &str, bytes: &[u8], expected: &Everything, outcomes: &mut Outcomes) {
    fs::write(path.join(file), bytes).unwrap();
    let opened = open_existing(path, TINY).and_then(|stores| Ok((everything(&stores)?, stores)));
    match opened {
        Ok((found, mut stores)) => {
            assert!(found == *expected, "wrong data was given out");
            outcomes.intact += 1;
            // Unnoticed damage must not hurt the next write.
            let next = found.log.0.last_index + 1;
            stores.log.append(&[append(entries(next, next + 40, 99))]).unwrap();
            let keys: Vec<String> = (0..40).map(|key| format!("more {key}")).collect();
            let changes: Vec<_> = keys.iter().map(|key| (&key[..], Some("value"))).collect();
            commit(&mut stores.state, &changes, 99);
            drop(stores);
            let stores = open_existing(path, TINY).unwrap();
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

/// Flips a byte at each place that `places` gives, one at a time, in the state or in all files.
fn flip(
    seed: u64,
    size: u64,
    only_state: bool,
    places: impl Fn(&[u8], &mut fastrand::Rng) -> Vec<usize>,
) {
    let (directory, expected) = with_a_past(seed, size);
    let path = directory.path();
    let originals = files(path);
    let random = &mut fastrand::Rng::with_seed(seed);
    let mut log = Outcomes::default();
    for (file, original) in &originals {
        let is_state = file.starts_with("state");
        if only_state && !is_state {
            continue;
        }
        let mut outcomes = Outcomes::default();
        let places = places(original, random);
        for &at in &places {
            let mut bytes = original.clone();
            bytes[at] ^= if random.bool() { 1 << random.u8(..8) } else { random.u8(1..) };
            check(path, file, &bytes, &expected, &mut outcomes);
            restore(path, &originals);
        }
        println!("{file}: {} bytes, {} flips, {outcomes:?}", original.len(), places.len());
        assert!(!is_state || outcomes.refused > places.len() / 20, "{outcomes:?}");
        if !is_state {
            log.refused += outcomes.refused;
            log.intact += outcomes.intact;
        }
    }
    // Only the unused ends of segments are zeros.
    assert!(only_state || log.refused > log.intact, "{log:?}");
}

#[test]
fn a_flipped_byte_anywhere_is_noticed_or_harmless() {
    for seed in 0..3 {
        flip(seed, 12, false, |file, random| {
            (0..200).map(|_| random.usize(..file.len())).collect()
        });
    }
}

#[test]
fn a_flipped_byte_in_a_meta_page_is_noticed_or_harmless() {
    flip(4, 8, true, |_, random| {
        // The places are the header and every field of both, then some of the rest.
        let mut places: Vec<usize> =
            (0..152).flat_map(|at| [at, at, PAGE + at, PAGE + at]).collect();
        places.extend((0..20).map(|_| random.usize(152..PAGE)));
        places
    });
}

#[test]
fn a_flipped_byte_in_a_page_header_or_node_is_noticed_or_harmless() {
    flip(5, 12, true, |file, random| {
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
    let originals = files(path);
    for (file, original) in &originals {
        let random = &mut fastrand::Rng::with_seed(6);
        let mut outcomes = Outcomes::default();
        // A segment that was made ready, and not used yet, may have any size.
        let is_used = original.iter().any(|byte| *byte != 0);
        let pages = original.len() / PAGE;
        let cuts = (0..pages).map(|page| page * PAGE);
        for size in cuts.chain((0..60).map(|_| random.usize(..original.len()))) {
            check(path, file, &original[..size], &expected, &mut outcomes);
            restore(path, &originals);
        }
        println!("{file}: {outcomes:?}");
        assert!(!is_used || outcomes.refused > pages / 2);
    }
}

#[test]
fn pages_that_were_never_written_are_noticed_or_harmless() {
    let (directory, expected) = with_a_past(7, 12);
    let path = directory.path();
    let originals = files(path);
    for (file, original) in &originals {
        let mut outcomes = Outcomes::default();
        let is_used = original.iter().any(|byte| *byte != 0);
        for page in 0..original.len().div_ceil(PAGE) {
            // Zeros, and half of a page, are what a cut write leaves.
            for zeroed in [0..PAGE, PAGE / 2..PAGE, 0..PAGE / 2] {
                let mut bytes = original.clone();
                let end = bytes.len();
                let at = |offset: usize| (page * PAGE + offset).min(end);
                bytes[at(zeroed.start)..at(zeroed.end)].fill(0);
                check(path, file, &bytes, &expected, &mut outcomes);
                restore(path, &originals);
            }
        }
        println!("{file}: {outcomes:?}");
        assert!(!is_used || outcomes.refused > outcomes.intact / 4);
    }
}

/// Puts the file of some commits ago, or a mix of two times, as a disk does that lost its last writes.
#[test]
fn an_old_page_among_new_ones_is_noticed_or_harmless() {
    let (directory, _) = with_a_past(8, 12);
    let path = directory.path();
    let old = files(path);
    let mut stores = open_existing(path, TINY).unwrap();
    let last = stores.log.reader().initial().unwrap().last_index;
    for step in 0..6 {
        stores.log.append(&[append(entries(last - step, last + step, 90 + step))]).unwrap();
        commit(&mut stores.state, &[("old", Some("new")), ("x", None)], 90 + step);
    }
    let expected = everything(&stores).unwrap();
    drop(stores);
    let originals = files(path);
    let (mut log, mut state) = (Outcomes::default(), Outcomes::default());
    for (file, original) in &originals {
        let Some((_, old)) = old.iter().find(|(name, _)| name == file) else { continue };
        let outcomes = if file.starts_with("log") { &mut log } else { &mut state };
        for page in 0..original.len().min(old.len()).div_ceil(PAGE) {
            let mut bytes = original.clone();
            let range = page * PAGE..((page + 1) * PAGE).min(bytes.len());
            bytes[range.clone()].copy_from_slice(&old[range]);
            check(path, file, &bytes, &expected, outcomes);
            restore(path, &originals);
        }
    }
    println!("log: {log:?}, state: {state:?}");
    assert!(log.refused >= 1 && state.refused > 2);
}
