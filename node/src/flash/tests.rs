//! Random histories of a shard's tier over real files, beside a model of what every block contains.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use millrace_proto::Op;
use millrace_proto::frame::Header;
use millrace_proto::message::Range;

use super::*;
use crate::mailbox::Requester;
use crate::memory::{Arena, peek};
use crate::token::Token;

const BLOCK_SIZE: u32 = 256 << 10;
const DISK_MIB: u64 = 4;
const FILES: u32 = 6;
const BLOCKS: u32 = 8;

/// Does a job as the kernel would, with the files as they are.
fn perform(job: &mut DiskJob, directory: &Path) -> io::Result<()> {
    // Past direct input and output, which wants memory that is aligned.
    let file =
        std::fs::OpenOptions::new().read(true).write(true).open(directory.join("shard-000"))?;
    match &mut job.work {
        DiskWork::Read(parts) => parts.iter_mut().try_for_each(|(offset, blank)| {
            let mut bytes = vec![0; blank.held_bytes() as usize];
            file.read_exact_at(&mut bytes, *offset)?;
            blank.empty();
            blank.write(&bytes[..blank.length() as usize]);
            Ok(())
        }),
        DiskWork::Write { offset, own, pinned, .. } => {
            let mut bytes = Vec::new();
            own.whole_pages(|segment| bytes.extend(peek(segment)));
            pinned.iter().for_each(|segment| bytes.extend(peek(*segment)));
            file.write_all_at(&bytes, *offset)
        }
    }
}

struct Bench {
    place: tempfile::TempDir,
    cache: Cache,
    flash: Flash,
    now: u64,
    /// Versions that files have now.
    versions: HashMap<u32, u64>,
    events: Vec<FlashEvent>,
    /// A job that is under way, for faults between its begin and its end.
    under_way: Vec<DiskJob>,
}

fn key(file: u32, block: u32) -> BlockKey {
    BlockKey { file: FileId(u128::from(file) + 1000), block }
}

fn block_length(block: u32) -> u32 {
    // The last one is short, and cuts a page.
    if block == BLOCKS - 1 { 70_000 } else { BLOCK_SIZE }
}

fn content(key: &BlockKey, version: u64) -> Vec<u8> {
    let seed = key.file.0 as u64 * 1_000_003 + u64::from(key.block) * 10_007 + version;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; block_length(key.block) as usize];
    random.fill(&mut bytes);
    bytes
}

fn disk_of(place: &Path) -> Arc<Disk> {
    let size = DiskSize { directory: place.join("disk"), bytes: DISK_MIB << 20 };
    Arc::new(Disk::open(&size, 1, BLOCK_SIZE).unwrap())
}

impl Bench {
    fn new() -> Bench {
        let place = tempfile::tempdir().unwrap();
        let memory = Arena::new(1024).unwrap().cut(1).pop().unwrap();
        let flash = Flash::open(&[disk_of(place.path())], 0, BLOCK_SIZE, 4 << 20);
        let versions = (0..FILES).map(|file| (file, 1)).collect();
        let cache = Cache::new(memory, 50);
        Bench { place, cache, flash, now: 0, versions, events: vec![], under_way: vec![] }
    }

    fn directory(&self) -> PathBuf {
        self.place.path().join("disk")
    }

    /// Puts chunks of a block into memory, as a fill does, and offers the block.
    fn fill(&mut self, file: u32, block: u32, chunks: Chunks) {
        let (key, version) = (key(file, block), self.versions[&file]);
        let length = chunks.length(block_length(block));
        let Some(mut blank) = self.cache.allocate(length) else { return };
        let start = chunks.offset() as usize;
        blank.write(&content(&key, version)[start..start + length as usize]);
        let (part, sums) = blank.freeze();
        let entry = self.cache.insert_part(key, version, block_length(block), chunks, part, &sums);
        self.flash.offer(self.now, entry, key, version);
    }

    /// Begins what disks are to do.
    fn begin(&mut self) {
        while let Some(job) = self.flash.next_job(self.now, &mut self.cache) {
            self.under_way.push(*job);
        }
    }

    /// Does what is under way.
    fn end(&mut self) {
        for mut job in std::mem::take(&mut self.under_way) {
            let result = perform(&mut job, &self.directory());
            self.events.push(self.flash.on_done(&mut self.cache, job, result));
        }
    }

    /// Lets time pass until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.now += 50;
            self.begin();
            self.end();
            if !self.flash.has_to_write() {
                return;
            }
        }
        let (waiting, loose) = (self.flash.candidates.len(), self.flash.loose.len());
        panic!("it goes on for ever: {waiting} blocks wait, {loose} are loose");
    }

    /// Reads chunks of a block from the disk, as far as they are there; returns how many were read. Panics on a wrong
    /// byte.
    fn read(&mut self, file: u32, block: u32, chunks: Chunks) -> u32 {
        let (key, version, block_length) =
            (key(file, block), self.versions[&file], block_length(block));
        let run = Run { key, version, chunks, block_length };
        let mut chunk_count = 0;
        for (chunks, spot) in self.flash.pieces(&run) {
            let Some(spot) = spot else { continue };
            let length = chunks.length(block_length);
            let Some(blank) = self.cache.allocate(length) else { continue };
            let run = Run { chunks, ..run };
            let job = self.flash.read(self.now, &mut self.cache, run, spot, blank);
            let mut job = job.unwrap_or_else(|_| panic!("memory for a head"));
            let result = perform(&mut job, &self.directory());
            match self.flash.on_done(&mut self.cache, *job, result) {
                FlashEvent::Read { result: Ok(arrival), .. } => {
                    let mut bytes = Vec::new();
                    arrival.block.copy(0, length, &mut bytes);
                    let start = chunks.offset() as usize;
                    let wanted = content(&key, version);
                    assert!(bytes == wanted[start..start + length as usize], "wrong bytes");
                    assert_eq!(arrival.sums.block, crc32fast::hash(&bytes));
                    self.cache.release(arrival.block);
                    chunk_count += chunks.end - chunks.first;
                }
                FlashEvent::Read { result: Err(blank), .. } => self.cache.release_blank(blank),
                _ => panic!("a run was read"),
            }
        }
        chunk_count
    }

    /// Reads a small range from the disk, if it is read by itself. True if it was. Panics on a wrong byte.
    fn read_small(&mut self, file: u32, block: u32, offset: u32, length: u32) -> bool {
        let (key, version) = (key(file, block), self.versions[&file]);
        let at = u64::from(block) * u64::from(BLOCK_SIZE) + u64::from(offset);
        let range = Range { file: key.file, version, offset: at, length };
        let requester = Requester {
            shard: 0,
            token: Token { index: 0, generation: 0 },
            header: Header::request(Op::Read, 1, 0),
            part: 0,
            asked: length,
            is_forwarded: false,
            covers_identity: true,
            deadline: None,
        };
        let small = Small { requester, range, key, offset, length };
        let job = self.flash.read_small(self.now, &mut self.cache, small, block_length(block));
        let Some(mut job) = job else { return false };
        let result = perform(&mut job, &self.directory());
        let FlashEvent::Small { bytes, .. } = self.flash.on_done(&mut self.cache, *job, result)
        else {
            panic!("a small range was read");
        };
        let Some((bytes, sums)) = bytes else { return false };
        let wanted = &content(&key, version)[offset as usize..][..length as usize];
        assert!(bytes == wanted, "wrong bytes");
        let tag = checksum::tag(key.file, version, key.block);
        checksum::verify(&bytes, offset, block_length(block), tag, sums).unwrap();
        true
    }

    fn read_all(&mut self, file: u32) -> u32 {
        (0..BLOCKS).map(|block| self.read(file, block, Chunks::all(block_length(block)))).sum()
    }

    /// Ends the node at this moment, without a word, and starts it again.
    fn restart(&mut self) {
        let memory = Arena::new(1024).unwrap().cut(1).pop().unwrap();
        self.under_way.clear();
        // The lock on the directory goes with the tier.
        self.flash = Flash::open(&[], 0, BLOCK_SIZE, 4 << 20);
        self.cache = Cache::new(memory, 50);
        self.flash = Flash::open(&[disk_of(self.place.path())], 0, BLOCK_SIZE, 4 << 20);
    }

    fn drop_file(&mut self, file: u32) -> flume::Receiver<crate::mailbox::Dropped> {
        let file = key(file, 0).file;
        self.cache.remove_of_file(file, u32::MAX);
        self.flash.forget_loose(&mut self.cache, file);
        let mut before = None;
        loop {
            before = self.flash.forget(file, before, 16).1;
            if before.is_none() {
                break;
            }
        }
        let (job, receiver) = crate::mailbox::DropJob::new(file, true);
        if let Some(job) = self.flash.drop_for_good(job) {
            job.reply.send(job.dropped).unwrap();
        }
        receiver
    }
}

#[test]
fn what_is_written_is_read_and_outlives_the_node() {
    let mut bench = Bench::new();
    for block in 0..BLOCKS {
        bench.fill(0, block, Chunks::all(block_length(block)));
    }
    bench.fill(1, 2, Chunks { first: 1, end: 2 });
    bench.fill(1, 2, Chunks { first: 3, end: 4 });
    assert_eq!(bench.read_all(0), 0, "nothing is there before it is written");
    bench.settle();
    let all = (BLOCKS - 1) * 4 + 2;
    assert_eq!(bench.read_all(0), all);
    assert_eq!(bench.read_all(1), 2);
    assert_eq!(bench.read(0, 3, Chunks { first: 1, end: 3 }), 2);
    bench.restart();
    assert_eq!(bench.read_all(0), all);
    assert_eq!(bench.read_all(1), 2);
    // Another version is another block.
    bench.versions.insert(0, 2);
    assert_eq!(bench.read_all(0), 0);
    assert_eq!(bench.flash.take_counts().damaged_count, 0);
}

#[test]
fn what_was_dropped_does_not_come_back() {
    let mut bench = Bench::new();
    bench.fill(0, 0, Chunks::all(BLOCK_SIZE));
    bench.fill(1, 0, Chunks::all(BLOCK_SIZE));
    bench.settle();
    // One that is being written while it is dropped.
    bench.fill(0, 1, Chunks::all(BLOCK_SIZE));
    bench.now += 1000;
    bench.begin();
    let dropped = bench.drop_file(0);
    assert!(dropped.try_recv().is_err(), "the disk does not know yet");
    bench.settle();
    let answered: Vec<_> = bench.flash.take_dropped();
    assert_eq!(answered.len(), 1);
    assert_eq!((bench.read_all(0), bench.read_all(1)), (0, 4));
    bench.restart();
    assert_eq!((bench.read_all(0), bench.read_all(1)), (0, 4));
    // What comes in again is there again.
    bench.fill(0, 0, Chunks::all(BLOCK_SIZE));
    bench.settle();
    bench.restart();
    assert_eq!((bench.read_all(0), bench.read_all(1)), (4, 4));
}

#[test]
fn what_was_dropped_while_it_is_kept_does_not_come_back() {
    let mut bench = Bench::new();
    bench.fill(0, 0, Chunks::all(BLOCK_SIZE));
    bench.settle();
    let is_kept = |bench: &Bench| matches!(bench.flash.doing[0], Doing::Keeping { .. });
    for round in 0..80u64 {
        // It is in no memory, so that it is read from the oldest region when its room is wanted.
        bench.cache.remove_of_file(key(0, 0).file, u32::MAX);
        assert_eq!(bench.read(0, 0, Chunks::all(BLOCK_SIZE)), 4, "round {round}");
        bench.versions.insert(5, 100 + round);
        bench.fill(5, 0, Chunks::all(BLOCK_SIZE));
        while bench.flash.has_to_write() && !is_kept(&bench) {
            bench.now += 50;
            bench.end();
            bench.begin();
        }
        if is_kept(&bench) {
            let dropped = bench.drop_file(0);
            bench.end();
            bench.settle();
            assert_eq!(bench.flash.take_dropped().len(), 1);
            drop(dropped);
            assert_eq!(bench.read_all(0), 0);
            bench.restart();
            assert_eq!(bench.read_all(0), 0);
            return;
        }
        bench.end();
    }
    panic!("it was never kept");
}

#[test]
fn the_oldest_goes_unless_it_is_read() {
    let mut bench = Bench::new();
    for file in 0..FILES {
        bench.versions.insert(file, 1);
    }
    bench.fill(0, 0, Chunks::all(BLOCK_SIZE));
    bench.fill(0, 1, Chunks::all(BLOCK_SIZE));
    bench.settle();
    // Five times what the disk holds, in versions that nothing reads.
    for round in 0..80u64 {
        assert_eq!(bench.read(0, 0, Chunks::all(BLOCK_SIZE)), 4, "round {round}");
        bench.versions.insert(5, 100 + round);
        bench.fill(5, 0, Chunks::all(BLOCK_SIZE));
        bench.settle();
    }
    assert_eq!(bench.read(0, 1, Chunks::all(BLOCK_SIZE)), 0, "it was not read");
    let counts = bench.flash.take_counts();
    assert!(counts.kept_bytes >= u64::from(BLOCK_SIZE), "{counts:?}");
    assert_eq!((counts.damaged_count, counts.error_count), (0, 0));
    bench.restart();
    assert_eq!(bench.read(0, 0, Chunks::all(BLOCK_SIZE)), 4);
}

#[test]
fn a_flipped_bit_is_never_read() {
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bench = Bench::new();
        for file in 0..2 {
            for block in 0..4 {
                bench.fill(file, block, Chunks::all(BLOCK_SIZE));
            }
        }
        bench.settle();
        let path = bench.directory().join("shard-000");
        let mut bytes = std::fs::read(&path).unwrap();
        for _ in 0..20 {
            let place = random.usize(0..(9 * BLOCK_SIZE) as usize);
            bytes[place] ^= 1 << random.u32(0..8);
        }
        std::fs::write(&path, bytes).unwrap();
        if random.bool() {
            bench.restart();
        }
        let first = bench.read_all(0) + bench.read_all(1);
        assert!(first < 32, "twenty bits of nine blocks were flipped");
        // What did not fit is forgotten, and found no more.
        let damaged = bench.flash.take_counts().damaged_count;
        let second = bench.read_all(0) + bench.read_all(1);
        assert!(second <= first);
        assert_eq!(bench.flash.take_counts().damaged_count, 0, "{damaged} before");
    }
}

// The first head of the region that is written says which use of it this is; so do the others.
#[test]
fn a_damaged_first_head_costs_its_group_alone() {
    let mut bench = Bench::new();
    for file in 0..3 {
        bench.fill(file, 0, Chunks::all(BLOCK_SIZE));
        bench.settle();
    }
    bench.drop_file(1);
    bench.settle();
    let path = bench.directory().join("shard-000");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[70] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    bench.restart();
    assert_eq!([0, 1, 2].map(|file| bench.read_all(file)), [0, 0, 4]);
    // What is written now goes behind them.
    bench.fill(3, 0, Chunks::all(BLOCK_SIZE));
    bench.settle();
    bench.restart();
    assert_eq!([0, 1, 2, 3].map(|file| bench.read_all(file)), [0, 0, 4, 4]);
}

#[test]
fn a_disk_that_fails_is_left_out() {
    let mut bench = Bench::new();
    bench.fill(0, 0, Chunks::all(BLOCK_SIZE));
    bench.settle();
    bench.fill(0, 1, Chunks::all(BLOCK_SIZE));
    bench.now += 1000;
    bench.begin();
    for job in std::mem::take(&mut bench.under_way) {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        bench.flash.on_done(&mut bench.cache, job, Err(full));
    }
    assert_eq!(bench.flash.out_count(), 1);
    assert_eq!(bench.read_all(0), 0);
    assert_eq!(bench.flash.capacity_bytes(), 0);
    bench.fill(0, 2, Chunks::all(BLOCK_SIZE));
    bench.settle();
    assert_eq!(bench.cache.in_use_bytes(), 0, "nothing stays pinned");
    let dropped = bench.drop_file(0);
    assert!(dropped.try_recv().is_ok(), "no disk is left that could tell");
}

#[test]
fn a_disk_that_hangs_is_left_out_and_what_waits_is_given_up_once() {
    let mut bench = Bench::new();
    bench.fill(0, 0, Chunks::all(BLOCK_SIZE));
    bench.settle();
    let (key, version, block_length) = (key(0, 0), 1, BLOCK_SIZE);
    let run = Run { key, version, chunks: Chunks::all(BLOCK_SIZE), block_length };
    let spot = bench.flash.pieces(&run)[0].1.unwrap();
    let before = bench.cache.used_bytes();
    let blank = bench.cache.allocate(BLOCK_SIZE).unwrap();
    let job = bench.flash.read(bench.now, &mut bench.cache, run, spot, blank);
    let mut job = job.unwrap_or_else(|_| panic!("memory for a head"));
    bench.now += HANGS_MS;
    assert!(bench.flash.give_up(bench.now).0.is_empty(), "it has a little time left");
    bench.now += 1;
    assert_eq!(bench.flash.give_up(bench.now).0, [run]);
    assert!(bench.flash.give_up(bench.now).0.is_empty(), "once");
    assert_eq!((bench.flash.out_count(), bench.flash.run_count()), (1, 0));
    // It ends after all: its memory comes back, and nothing else happens.
    let result = perform(&mut job, &bench.directory());
    let event = bench.flash.on_done(&mut bench.cache, *job, result);
    assert!(matches!(event, FlashEvent::Nothing));
    assert_eq!(bench.cache.used_bytes(), before);
}

#[test]
fn a_write_that_hangs_takes_the_disk_out_and_drops_are_answered() {
    let mut bench = Bench::new();
    bench.fill(0, 0, Chunks::all(BLOCK_SIZE));
    bench.settle();
    bench.fill(1, 1, Chunks::all(BLOCK_SIZE));
    bench.now += 1000;
    bench.begin();
    bench.drop_file(0);
    assert!(bench.flash.take_dropped().is_empty(), "the disk does not know yet");
    bench.now += WRITE_HANGS_MS + 1;
    bench.flash.give_up(bench.now);
    assert_eq!(bench.flash.out_count(), 1);
    assert_eq!(bench.flash.take_dropped().len(), 1);
    // The write ends after all, and lets go of the memory that it read.
    bench.end();
    assert_eq!(bench.cache.in_use_bytes(), 0);
    assert_eq!(bench.flash.run_count(), 0, "nothing of a disk that is out is found");
}

#[test]
fn small_ranges_come_by_themselves_until_their_chunk_is_wanted() {
    let mut bench = Bench::new();
    bench.fill(0, 0, Chunks::all(BLOCK_SIZE));
    bench.fill(0, BLOCKS - 1, Chunks::all(70_000));
    bench.settle();
    assert!(bench.read_small(0, 0, 4096, 4096));
    assert!(!bench.read_small(0, 0, 8192, 100), "the chunk was read a moment ago");
    assert!(bench.read_small(0, 0, (64 << 10) + 5000, 10_000));
    assert!(bench.read_small(0, BLOCKS - 1, 69_999, 1), "the last byte");
    assert!(!bench.read_small(0, 0, (128 << 10) - 100, 200), "over two chunks");
    assert!(!bench.read_small(0, 0, 128 << 10, 20 << 10), "it is not small");
    assert!(!bench.read_small(1, 0, 0, 10), "it is not there");
    let counts = bench.flash.take_counts();
    assert_eq!((counts.read_count, counts.read_bytes), (3, 4096 + 12_288 + 368));
}

// Random fills, reads, new versions, drops, restarts at any moment, torn writes and flipped bits.
#[test]
fn random_histories_never_give_a_wrong_byte() {
    let runs = std::env::var("MILLRACE_FLASH_RUNS").ok().and_then(|it| it.parse().ok());
    for seed in 0..runs.unwrap_or(25) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bench = Bench::new();
        // Files that were dropped, and of which nothing has come in since.
        let mut gone: HashSet<u32> = HashSet::new();
        let mut next_version = 2;
        let mut read_count = 0;
        // A bit that flips in the record of a drop may bring back what was dropped, right bytes as it is.
        let bits_flip = seed % 2 == 1;
        for _ in 0..300 {
            let (file, block) = (random.u32(0..FILES), random.u32(0..BLOCKS));
            let chunk_count = Chunks::all(block_length(block)).end;
            let first = random.u32(0..chunk_count);
            let chunks = Chunks { first, end: random.u32(first + 1..=chunk_count) };
            match random.u32(0..100) {
                0..45 => {
                    bench.fill(file, block, chunks);
                    gone.remove(&file);
                }
                45..55 => {
                    let length = random.u32(1..=20_000).min(block_length(block));
                    let offset = random.u32(0..=block_length(block) - length);
                    read_count += u32::from(bench.read_small(file, block, offset, length));
                }
                55..75 => read_count += bench.read(file, block, chunks),
                75..80 => {
                    bench.versions.insert(file, next_version);
                    next_version += 1;
                    gone.remove(&file);
                }
                80..84 => {
                    bench.drop_file(file);
                    gone.insert(file);
                    // Answered, so that it has to hold from here on.
                    bench.settle();
                    bench.flash.take_dropped();
                }
                84..92 => {
                    bench.now += random.u64(0..300);
                    bench.begin();
                }
                92..96 => bench.end(),
                96..98 => {
                    // Some of what is under way reaches the disk, and of one job a part.
                    for mut job in std::mem::take(&mut bench.under_way) {
                        if let DiskWork::Write { pinned, .. } = &mut job.work {
                            pinned.truncate(random.usize(0..=pinned.len()));
                        }
                        if random.bool() {
                            let _ = perform(&mut job, &bench.directory());
                        }
                    }
                    bench.restart();
                }
                _ if bits_flip => {
                    let path = bench.directory().join("shard-000");
                    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
                    let place = random.u64(0..DISK_MIB << 20);
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, place).unwrap();
                    file.write_all_at(&[byte[0] ^ 1 << random.u32(0..8)], place).unwrap();
                }
                _ => bench.end(),
            }
            if random.u32(0..10) == 0 {
                bench.end();
            }
            for file in gone.iter().filter(|_| !bits_flip) {
                assert_eq!(bench.read_all(*file), 0, "seed {seed}: it was dropped");
            }
        }
        bench.end();
        bench.settle();
        assert_eq!(bench.cache.in_use_bytes(), 0, "seed {seed}: nothing stays pinned");
        assert!(read_count > 0 || seed > 0, "the histories read something");
    }
}
