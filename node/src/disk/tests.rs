//! What is told of a disk that was written here by hand, sound and damaged.

use std::os::unix::fs::FileExt;

use millrace_proto::FileId;

use super::*;
use crate::flash::DiskSize;
use crate::flash::directory::Disk;
use crate::flash::format::{Region, encode_footer};

const BLOCK_SIZE: u32 = 256 << 10;
const PAGE: usize = PAGE_SIZE as usize;
/// Pages of a region: 1 MiB.
const REGION_PAGES: u32 = 256;

/// A disk with a region that is sealed, and one that is written: each has three groups, the second one with a drop.
struct Sample {
    place: tempfile::TempDir,
    /// Bytes of the first shard's file that a checksum covers.
    covered: Vec<std::ops::Range<usize>>,
    /// The last page of a sealed region is before this byte.
    sealed_end: usize,
}

impl Sample {
    fn new() -> Sample {
        let place = tempfile::tempdir().unwrap();
        let size = DiskSize { directory: place.path().join("disk"), bytes: 8 << 20 };
        let disk = Disk::open(&size, 2, BLOCK_SIZE).unwrap();
        assert_eq!(disk.superblock.region_pages, REGION_PAGES);
        let identity = disk.superblock.disk;
        drop(disk);
        let sealed_end = (REGION_PAGES as usize) * PAGE;
        let mut sample = Sample { place, covered: Vec::new(), sealed_end };
        let entries = sample.write_groups(Region { disk: identity, shard: 0, sequence: 1 }, 0);
        let footer = encode_footer(&Region { disk: identity, shard: 0, sequence: 1 }, &entries);
        let start = sealed_end - footer.len();
        sample.file().write_all_at(&footer, start as u64).unwrap();
        sample.covered.push(start..start + entries.len() * 48);
        sample.covered.push(sealed_end - PAGE..sealed_end - PAGE + 64);
        sample.write_groups(Region { disk: identity, shard: 0, sequence: 2 }, 1);
        sample
    }

    fn directory(&self) -> PathBuf {
        self.place.path().join("disk")
    }

    fn file(&self) -> File {
        let path = self.directory().join(file_name(0));
        File::options().read(true).write(true).open(path).unwrap()
    }

    /// Writes three groups into a region; returns what they hold.
    fn write_groups(&mut self, region: Region, number: u32) -> Vec<FooterEntry> {
        let (mut entries, mut page) = (Vec::new(), number * REGION_PAGES);
        for group in 0..3u32 {
            let mut head = Head::default();
            let mut bytes = Vec::new();
            if group == 1 {
                head.drops = vec![FileId(1), FileId(77)];
                entries.extend(head.drops.iter().map(|file| FooterEntry::Drop(*file)));
            } else {
                for run in 0..2 {
                    let key = BlockKey { file: FileId(u128::from(run) + 1), block: group };
                    let chunks = Chunks { first: run, end: run + 1 };
                    // The last page is cut.
                    let block_length = (run + 1) * (64 << 10) - 100;
                    let payload = 1 + run * 16;
                    let stored =
                        Stored { key, version: 9, block_length, chunks, payload, code: None };
                    let mut run_bytes = vec![0; stored.length() as usize];
                    fastrand::Rng::with_seed(u64::from(page + run)).fill(&mut run_bytes);
                    let tag = checksum::tag(key.file, 9, key.block);
                    head.sums.extend(run_bytes.chunks(PAGE).map(|page| checksum::of(page) ^ tag));
                    let start = (page + payload) as usize * PAGE;
                    self.covered.push(start..start + run_bytes.len());
                    run_bytes.resize(16 * PAGE, 0);
                    bytes.extend(run_bytes);
                    head.records.push(stored);
                    entries.push(FooterEntry::Run { head: page, stored });
                }
            }
            let encoded = head.encode(&region, page);
            let length = u32::from_le_bytes(encoded[8..12].try_into().unwrap()) as usize;
            let start = page as usize * PAGE;
            self.covered.push(start..start + length);
            self.file().write_all_at(&[encoded, bytes].concat(), start as u64).unwrap();
            page += head.page_counts().1;
        }
        entries
    }

    fn check(&self) -> DiskCheck {
        OfflineDisk::open(&self.directory()).unwrap().verify(|_| ())
    }

    fn flip(&self, place: usize, bit: u32) {
        let file = self.file();
        let mut byte = [0];
        file.read_exact_at(&mut byte, place as u64).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << bit], place as u64).unwrap();
    }
}

#[test]
fn what_a_disk_holds_is_told() {
    let sample = Sample::new();
    let disk = OfflineDisk::open(&sample.directory()).unwrap();
    assert_eq!(disk.file_bytes(), 8 << 20);
    let contents = disk.inspect().unwrap();
    assert_eq!((contents.format, contents.block_size), (FORMAT_VERSION, BLOCK_SIZE));
    assert_eq!((contents.region_bytes, contents.shards.len()), (1 << 20, 2));
    let shard = &contents.shards[0];
    assert_eq!((shard.file.as_str(), shard.region_count), ("shard-000", 4));
    let told = shard.regions.iter().map(|it| (it.number, it.state, it.sequence, it.run_count));
    let expected = [(0, RegionState::Sealed, 1, 4), (1, RegionState::Open, 2, 4)];
    assert_eq!(told.collect::<Vec<_>>(), expected);
    assert_eq!(shard.regions[0].drop_count, 2);
    // Of file 1 what came behind the last drop; of file 2 one copy of each of two runs.
    assert_eq!(shard.live_run_count, 3);
    let length = (64 << 10) - 100;
    assert_eq!((shard.regions[0].run_bytes, shard.live_bytes), (4 * length, 3 * length));
    assert!(contents.shards[1].regions.is_empty());
}

#[test]
fn a_sound_disk_has_no_faults() {
    let sample = Sample::new();
    let mut seen = 0;
    let check = OfflineDisk::open(&sample.directory()).unwrap().verify(|bytes| seen += bytes);
    assert_eq!(check.faults, []);
    assert_eq!((check.region_count, check.group_count, check.run_count), (2, 6, 8));
    assert_eq!((seen, check.run_bytes), (8 << 20, 8 * ((64 << 10) - 100)));
}

// Each bit that a checksum covers is one that is missed, in the place where it is.
#[test]
fn every_flipped_bit_is_found() {
    let sample = Sample::new();
    let mut random = fastrand::Rng::with_seed(5);
    let mut places = Vec::new();
    for range in &sample.covered {
        // Both ends, and what is between.
        places.extend([range.start, range.end - 1]);
        places.extend((0..20).map(|_| random.usize(range.clone())));
        // All of the fixed part of a head, and of a footer.
        places.extend(range.clone().take(64).filter(|_| range.len() < 4096));
    }
    for place in places {
        let bit = random.u32(0..8);
        sample.flip(place, bit);
        let check = sample.check();
        let page = (place / PAGE) as u32;
        let is_footer = (sample.sealed_end - 2 * PAGE..sample.sealed_end).contains(&place);
        let wanted = if is_footer { sample.sealed_end / PAGE - 1 } else { page as usize };
        let found: Vec<usize> = check.faults.iter().map(|fault| fault.page as usize).collect();
        assert_eq!(found, [wanted], "byte {place}, bit {bit}: {:?}", check.faults);
        sample.flip(place, bit);
    }
    assert_eq!(sample.check().faults, []);
}

#[test]
fn what_is_cut_or_gone_is_told() {
    let sample = Sample::new();
    sample.file().set_len((REGION_PAGES as u64 + 20) * PAGE as u64).unwrap();
    let faults = sample.check().faults;
    assert!(faults[0].what.contains("the file ends after"), "{faults:?}");
    assert!(faults[1].what.contains("the file ends before these bytes do"), "{faults:?}");
    std::fs::remove_file(sample.directory().join(file_name(1))).unwrap();
    let faults = sample.check().faults;
    assert_eq!(faults.last().unwrap().file, "shard-001");
    let disk = OfflineDisk::open(&sample.directory()).unwrap();
    let error = disk.inspect().unwrap_err().to_string();
    assert!(error.contains("shard-001"), "{error}");
}

#[test]
fn a_directory_that_is_in_use_or_not_a_disk_is_refused() {
    let sample = Sample::new();
    let first = OfflineDisk::open(&sample.directory()).unwrap();
    let second = OfflineDisk::open(&sample.directory());
    assert!(matches!(second, Err(DiskError::InUse(_))));
    let size = DiskSize { directory: sample.directory(), bytes: 8 << 20 };
    assert!(matches!(Disk::open(&size, 2, BLOCK_SIZE), Err(DiskError::InUse(_))));
    drop(first);
    let path = sample.directory().join(SUPERBLOCK_NAME);
    let sound = std::fs::read(&path).unwrap();
    for (length, name) in [(0, "empty"), (100, "cut")] {
        std::fs::write(&path, &sound[..length]).unwrap();
        let error = OfflineDisk::open(&sample.directory()).unwrap_err().to_string();
        assert!(error.contains("its superblock is damaged"), "{name}: {error}");
    }
    let mut other = sound[..sound.len() - 4].to_vec();
    other[8] = 9;
    other.extend(crc32fast::hash(&other).to_le_bytes());
    std::fs::write(&path, other).unwrap();
    let error = OfflineDisk::open(&sample.directory()).unwrap_err().to_string();
    assert!(error.contains("format 9"), "{error}");
    let nowhere = OfflineDisk::open(&sample.directory().join("none"));
    assert!(matches!(nowhere, Err(DiskError::Io { .. })));
}
