//! The files of the log: their names, and how a segment is made ready before it is needed.
//!
//! ```text
//!  log/end                    the last durable batch                               [`Mark`]
//!  log/0000002a.wal           segment 42: batches, then zeros
//!  log/next                   a segment that is being made; removed at open
//! ```
//!
//! Always holds: a segment was filled with zeros and synced before it has its name. So a batch in it needs
//! one flush for its data and none for the file system. Making one in the background leaves half of the
//! disk's time to other work.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::{Buf, BufMut};

use super::super::StoreError;
use super::super::files::{is_zero, remove_if_there, sync_directory};

/// Bytes that are written and synced at a time. Guessed: as much as one small flush takes.
const ZEROS_SIZE: usize = 256 << 10;
const NEXT: &str = "next";
const END: &str = "end";

/// A file of the log.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u32,
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Size of the file in bytes.
    pub(super) size: u64,
}

/// True if a log's directory may have a file of this name; `lost+found` belongs to the file system.
pub(in crate::store) fn is_name_of_log(name: &str) -> bool {
    matches!(name, NEXT | END | "lost+found") || name.ends_with(".wal")
}

impl Segment {
    fn path_of(directory: &Path, number: u32) -> PathBuf {
        directory.join(format!("{number:08x}.wal"))
    }

    /// Opens an existing segment.
    pub(super) fn open(directory: &Path, number: u32) -> Result<Segment, StoreError> {
        let path = Segment::path_of(directory, number);
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let file = opened.map_err(|error| StoreError::io("open", &path, error))?;
        let metadata = file.metadata().map_err(|error| StoreError::io("look at", &path, error))?;
        Ok(Segment { number, path, file, size: metadata.len() })
    }

    /// Lists the numbers of the segments in a directory, in order.
    pub(super) fn numbers(directory: &Path) -> Result<Vec<u32>, StoreError> {
        let list = || -> io::Result<Vec<u32>> {
            let mut numbers = Vec::new();
            for entry in fs::read_dir(directory)? {
                let name = entry?.file_name();
                let stem = name.to_str().and_then(|name| name.strip_suffix(".wal"));
                let digits = stem.filter(|stem| stem.len() == 8);
                numbers.extend(digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()));
            }
            numbers.sort_unstable();
            Ok(numbers)
        };
        list().map_err(|error| StoreError::io("list", directory, error))
    }

    /// Reads all of it. Segments are read as a whole only while the log is opened, one at a time.
    pub(super) fn read(&self) -> Result<Vec<u8>, StoreError> {
        fs::read(&self.path).map_err(|error| StoreError::io("read", &self.path, error))
    }

    /// Removes the file. A reader that has it open can still read it.
    pub(super) fn remove(&self) -> Result<(), StoreError> {
        fs::remove_file(&self.path).map_err(|error| StoreError::io("remove", &self.path, error))
    }
}

/// Makes a segment of zeros, with `head` at its beginning, and names it.
pub(super) fn make(
    directory: &Path,
    number: u32,
    size: u64,
    head: &[u8],
    pace: &Pace,
) -> io::Result<Segment> {
    let path = directory.join(NEXT);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    let zeros = vec![0; ZEROS_SIZE.min(size as usize)];
    let mut at = 0;
    while at < size {
        let began = Instant::now();
        let count = zeros.len().min((size - at) as usize);
        file.write_all_at(&zeros[..count], at)?;
        file.sync_data()?;
        at += count as u64;
        pace.rest(began)?;
    }
    file.write_all_at(head, 0)?;
    file.sync_all()?;
    let named = Segment::path_of(directory, number);
    fs::rename(&path, &named)?;
    File::open(directory)?.sync_all()?;
    Ok(Segment { number, path: named, file, size })
}

/// Removes a segment that was not finished.
pub(super) fn remove_unfinished(directory: &Path) -> Result<(), StoreError> {
    remove_if_there(&directory.join(NEXT))
}

/// The speed of making a segment. Shared with the thread that makes it.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicU8);

impl Pace {
    const HURRY: u8 = 1;
    const STOP: u8 = 2;

    /// Builds the highest pace.
    pub(super) fn hurry() -> Pace {
        Pace(AtomicU8::new(Pace::HURRY))
    }

    /// Waits as long as the step from `began` to now took. Fails if the thread must stop.
    fn rest(&self, began: Instant) -> io::Result<()> {
        // The number guards no other data, so relaxed access is enough.
        match self.0.load(Ordering::Relaxed) {
            Pace::HURRY => {}
            Pace::STOP => return Err(io::ErrorKind::Interrupted.into()),
            _ => std::thread::sleep(began.elapsed()),
        }
        Ok(())
    }
}

/// A segment that a thread makes.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) size: u64,
    pace: Arc<Pace>,
    /// `None` only while this is dropped.
    thread: Option<JoinHandle<io::Result<Segment>>>,
}

impl Spare {
    pub(super) fn start(directory: &Path, number: u32, size: u64) -> io::Result<Spare> {
        let pace = Arc::new(Pace::default());
        let (directory, its_pace) = (directory.to_owned(), pace.clone());
        let thread = std::thread::Builder::new()
            .name("coord-segment".into())
            .spawn(move || make(&directory, number, size, &[], &its_pace))?;
        Ok(Spare { size, pace, thread: Some(thread) })
    }

    /// Lets the thread take all the disk's time.
    pub(super) fn hurry(&self) {
        self.pace.0.store(Pace::HURRY, Ordering::Relaxed);
    }

    /// Waits for the segment.
    pub(super) fn finish(mut self) -> io::Result<Segment> {
        self.join(Pace::HURRY)
    }

    fn join(&mut self, pace: u8) -> io::Result<Segment> {
        self.pace.0.store(pace, Ordering::Relaxed);
        let thread = self.thread.take().ok_or(io::ErrorKind::NotFound)?;
        thread.join().map_err(|_| io::Error::other("making a segment panicked"))?
    }
}

impl Drop for Spare {
    /// Stops the thread, because it must not write to the directory after its lock is released.
    fn drop(&mut self) {
        if self.thread.is_some() {
            // Nothing needs the segment. The next open removes or uses what is left.
            let _ = self.join(Pace::STOP);
        }
    }
}

/// The last durable batch: written after the sync of each batch, but not synced itself.
///
/// ```text
///  ┌ crc ┬ store id ┬ number ┬ link ┐
///  └ u32 ┴ u64 ─────┴ u64 ───┴ u32 ─┘
/// ```
///
/// The end of a process does not lose it; the end of power can leave an older one, never a newer.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    path: PathBuf,
    store_id: u64,
}

const MARK_SIZE: usize = 24;

impl Mark {
    fn path_of(directory: &Path) -> PathBuf {
        directory.join(END)
    }

    /// Makes a mark for a log without batches, durably.
    pub(super) fn create(directory: &Path, store_id: u64) -> Result<Mark, StoreError> {
        let path = Mark::path_of(directory);
        let opened = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = opened.map_err(|error| StoreError::io("create", &path, error))?;
        let mark = Mark { file, path, store_id };
        mark.set(0, 0).map_err(|error| StoreError::io("write", &mark.path, error))?;
        mark.sync()?;
        sync_directory(directory)?;
        Ok(mark)
    }

    /// Opens a mark and returns number and link; `None` if none was written. `name` is the log's.
    pub(super) fn open(
        directory: &Path,
        name: &str,
    ) -> Result<Option<(Mark, u64, u32)>, StoreError> {
        let path = Mark::path_of(directory);
        let bytes = match fs::read(&path) {
            // The creation was cut short.
            Ok(bytes) if is_zero(&bytes) => return Ok(None),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", &path, error)),
        };
        let mut fields = &bytes[..];
        if bytes.len() != MARK_SIZE || fields.get_u32_le() != crc32fast::hash(&bytes[4..]) {
            let at = format!("its end has another checksum (file {})", path.display());
            return Err(StoreError::corrupt(name, at));
        }
        let (store_id, number, link) =
            (fields.get_u64_le(), fields.get_u64_le(), fields.get_u32_le());
        let opened = OpenOptions::new().write(true).open(&path);
        let file = opened.map_err(|error| StoreError::io("open", &path, error))?;
        Ok(Some((Mark { file, path, store_id }, number, link)))
    }

    pub(super) fn store_id(&self) -> u64 {
        self.store_id
    }

    /// Notes that the batch `number` with the checksum `link` is durable.
    pub(super) fn set(&self, number: u64, link: u32) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(MARK_SIZE);
        bytes.put_u32_le(0);
        bytes.put_u64_le(self.store_id);
        bytes.put_u64_le(number);
        bytes.put_u32_le(link);
        let crc = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        self.file.write_all_at(&bytes, 0)
    }

    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let synced = self.file.sync_data();
        synced.map_err(|error| StoreError::io("sync", &self.path, error))
    }
}
