//! A disk of the flash tier: a directory with a superblock and one file for each shard.
//!
//! Owns the lock, so that no two nodes use one directory, and how large the files are. Always holds: nothing but files
//! of this tier is ever written to or removed; what was made for another number of shards or another size of blocks is
//! not read, because a disk that begins again has a new identity.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_ops::again;
use millrace_proto::checksum::PAGE_SIZE;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use super::format::{NoSuperblock, SUPERBLOCK_LENGTH, Superblock};

/// Name of the file with the superblock.
pub(crate) const SUPERBLOCK_NAME: &str = "millrace-disk";
/// Largest region in bytes. Guessed: many times what a disk erases at once, and 1/1000 of a small disk of our day.
const REGION_BYTES_MAX: u64 = 64 << 20;
/// Regions of one shard at least: one is written, one is to be written next.
pub(crate) const REGIONS_MIN: u64 = 4;
/// Regions that a file is cut into, if they are not too large or too small then. Guessed: what is written again is a
/// sixteenth at a time.
const REGIONS_WANTED: u64 = 16;

/// A directory with its size, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSize {
    /// The directory.
    pub directory: PathBuf,
    /// Bytes that its files may hold.
    pub bytes: u64,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The directory holds something else.
    #[error(
        "disk {}: the directory holds files that are not of the flash tier ({name}); name an empty directory",
        .directory.display()
    )]
    Foreign { directory: PathBuf, name: String },
    /// Another node uses it.
    #[error(
        "disk {}: another node uses this directory, or `millrace disk` looks at it; give each node one of its own",
        .0.display()
    )]
    InUse(PathBuf),
    /// It is too small for the shards and the blocks.
    #[error(
        "disk {}: {shard_count} shards with blocks of {block_size} bytes need at least {needed} bytes there; \
         give it more, or use fewer shards",
        .directory.display()
    )]
    TooSmall { directory: PathBuf, shard_count: usize, block_size: u32, needed: u64 },
    /// It has no superblock that is read here.
    #[error("disk {}: {why}; a node that is given this directory forgets what it holds", .directory.display())]
    NoDisk { directory: PathBuf, why: String },
    /// The file system refused.
    #[error("disk {}: {what}: {error}", .directory.display())]
    Io { directory: PathBuf, what: &'static str, error: io::Error },
}

/// An open disk.
pub(crate) struct Disk {
    /// The directory.
    pub(crate) directory: PathBuf,
    /// What it was made for.
    pub(crate) superblock: Superblock,
    /// Regions in each file.
    pub(crate) region_count: u32,
    /// The file of each shard.
    pub(crate) files: Vec<Arc<File>>,
    /// Locked as long as it is open.
    _lock: File,
}

/// Returns the bytes of a region for a file of this size. None if it would be too small.
fn region_bytes(file_bytes: u64, block_size: u32) -> Option<u64> {
    // The largest group is one block with its head, and a footer has to fit behind it.
    let least = (u64::from(block_size) * 2).next_power_of_two().max(1 << 20);
    let wanted = file_bytes / REGIONS_WANTED;
    let rounded = if wanted == 0 { 0 } else { 1 << wanted.ilog2() };
    let bytes = rounded.clamp(least, REGION_BYTES_MAX.max(least));
    (file_bytes / bytes >= REGIONS_MIN).then_some(bytes)
}

/// Returns the fewest bytes that a disk has to have.
fn bytes_min(shard_count: usize, block_size: u32) -> u64 {
    (u64::from(block_size) * 2).next_power_of_two().max(1 << 20) * REGIONS_MIN * shard_count as u64
}

/// Returns the name of a shard's file.
pub(crate) fn file_name(shard: usize) -> String {
    format!("shard-{shard:03}")
}

impl Disk {
    /// Opens a disk for the shards of a node; makes it if the directory is empty or not there, and begins again if
    /// it was made for something else.
    ///
    /// # Errors
    /// [`DiskError`].
    pub(crate) fn open(
        DiskSize { directory, bytes }: &DiskSize,
        shard_count: usize,
        block_size: u32,
    ) -> Result<Disk, DiskError> {
        let failed = |what| {
            move |error: io::Error| DiskError::Io { directory: directory.clone(), what, error }
        };
        let file_bytes = bytes / shard_count as u64;
        let region = region_bytes(file_bytes, block_size).ok_or_else(|| DiskError::TooSmall {
            directory: directory.clone(),
            shard_count,
            block_size,
            needed: bytes_min(shard_count, block_size),
        })?;
        match std::fs::create_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make the directory")(error));
            }
            _ => (),
        }
        if let Some(name) = foreign_name(directory).map_err(failed("list it"))? {
            return Err(DiskError::Foreign { directory: directory.clone(), name });
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let lock =
            options.open(directory.join(SUPERBLOCK_NAME)).map_err(failed("open the superblock"))?;
        take_lock(directory, &lock)?;
        let superblock = superblock(directory, &lock, shard_count, block_size, file_bytes, region)
            .map_err(failed("read or write the superblock"))?;
        let region_bytes = u64::from(superblock.region_pages) * u64::from(PAGE_SIZE);
        let region_count = u32::try_from(file_bytes / region_bytes).unwrap_or(u32::MAX);
        // Pages of a file are counted in 32 bits.
        let region_count = region_count.min(u32::MAX / superblock.region_pages);
        let length = u64::from(region_count) * region_bytes;
        let files = (0..shard_count).map(|shard| {
            let path = directory.join(file_name(shard));
            let file = open_direct(&path).map_err(failed("open a shard's file"))?;
            size(&file, length).map_err(failed("take the room for a shard's file"))?;
            Ok(Arc::new(file))
        });
        let files = files.collect::<Result<_, DiskError>>()?;
        remove_surplus(directory, shard_count);
        Ok(Disk { directory: directory.clone(), superblock, region_count, files, _lock: lock })
    }
}

/// Locks the directory by its superblock's file, as long as that is open.
pub(crate) fn take_lock(directory: &Path, superblock: &File) -> Result<(), DiskError> {
    again::while_in_use(
        |error: &Errno| *error == Errno::WOULDBLOCK,
        || rustix::fs::flock(superblock, FlockOperation::NonBlockingLockExclusive),
    )
    .map_err(|_| DiskError::InUse(directory.to_owned()))
}

/// Returns the name of something in a directory that is not of this tier.
fn foreign_name(directory: &Path) -> io::Result<Option<String>> {
    // The superblock is there before any shard's file is.
    let is_disk = directory.join(SUPERBLOCK_NAME).exists();
    let mut foreign = None;
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_ours =
            name == SUPERBLOCK_NAME || is_disk && is_shard_file(&name) || name == "lost+found";
        if !is_ours {
            foreign.get_or_insert(name);
        }
    }
    Ok(foreign)
}

/// True if a file of this name may be a shard's.
fn is_shard_file(name: &str) -> bool {
    let number = name.strip_prefix("shard-").and_then(|number| number.parse().ok());
    number.is_some_and(|number| file_name(number) == name)
}

/// Returns the superblock of a disk; writes a new one if the old one does not fit.
fn superblock(
    directory: &Path,
    file: &File,
    shard_count: usize,
    block_size: u32,
    file_bytes: u64,
    region_bytes: u64,
) -> io::Result<Superblock> {
    let mut bytes = vec![0; SUPERBLOCK_LENGTH];
    let length = file.metadata()?.len();
    let is_read = length > 0 && file.read_exact_at(&mut bytes, 0).is_ok();
    let place = directory.display();
    match Superblock::decode(&bytes) {
        Ok(found) => {
            let region = u64::from(found.region_pages) * u64::from(PAGE_SIZE);
            let fits = found.block_size == block_size
                && found.shard_count as usize == shard_count
                && region > 0
                && file_bytes / region >= REGIONS_MIN;
            if fits {
                return Ok(found);
            }
            tracing::warn!(
                "disk {place}: it begins again, because it was made for {} shards and blocks of {} bytes",
                found.shard_count,
                found.block_size
            );
        }
        Err(NoSuperblock::Version(version)) => tracing::warn!(
            "disk {place}: it begins again, because it has format {version}, which this version does not read"
        ),
        Err(NoSuperblock::Foreign) if is_read => {
            tracing::warn!("disk {place}: it begins again, because its superblock is damaged");
        }
        Err(NoSuperblock::Foreign) => (),
    }
    let superblock = Superblock {
        disk: identity(),
        block_size,
        shard_count: shard_count as u32,
        region_pages: (region_bytes / u64::from(PAGE_SIZE)) as u32,
    };
    file.write_all_at(&superblock.encode(), 0)?;
    file.sync_all()?;
    Ok(superblock)
}

/// Draws an identity.
fn identity() -> [u8; 16] {
    // Keys of this hasher come from the system's random numbers.
    let mut identity = [0; 16];
    for half in identity.chunks_mut(8) {
        half.copy_from_slice(&RandomState::new().build_hasher().finish().to_le_bytes());
    }
    identity
}

/// Opens a file past the page cache, where its file system can.
fn open_direct(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let direct = options.clone().custom_flags(OFlags::DIRECT.bits() as i32).open(path);
    match direct {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            tracing::warn!(
                "{}: this file system has no direct input and output; the kernel keeps a second copy",
                path.display()
            );
            options.open(path)
        }
        opened => opened,
    }
}

/// Gives a file its length, and takes the room for it.
fn size(file: &File, length: u64) -> io::Result<()> {
    if file.metadata()?.len() > length {
        file.set_len(length)?;
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length) {
        // It grows as it is written, then, and a full disk is found late.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(length),
        result => Ok(result?),
    }
}

/// Removes files of shards that are no more.
fn remove_surplus(directory: &Path, shard_count: usize) {
    let mut shard = shard_count;
    while std::fs::remove_file(directory.join(file_name(shard))).is_ok() {
        shard += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of(directory: &Path, mib: u64) -> DiskSize {
        DiskSize { directory: directory.to_owned(), bytes: mib << 20 }
    }

    fn open(size: &DiskSize, shards: usize) -> Result<Disk, DiskError> {
        Disk::open(size, shards, 1 << 20)
    }

    #[test]
    fn a_disk_keeps_its_identity_until_it_is_made_for_something_else() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("disk");
        let first = open(&size_of(&directory, 64), 2).unwrap();
        assert_eq!(first.files.len(), 2);
        assert_eq!(first.files[1].metadata().unwrap().len(), 32 << 20);
        let identity = first.superblock.disk;
        assert!(matches!(open(&size_of(&directory, 64), 2), Err(DiskError::InUse(_))));
        drop(first);
        let larger = open(&size_of(&directory, 128), 2).unwrap();
        assert_eq!((larger.superblock.disk, larger.region_count), (identity, 32));
        drop(larger);
        let other = open(&size_of(&directory, 64), 1).unwrap();
        assert_ne!(other.superblock.disk, identity);
        assert!(!directory.join(file_name(1)).exists());
        drop(other);
        // A damaged superblock costs what was stored, and an older format, too.
        let path = directory.join(SUPERBLOCK_NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[30] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(open(&size_of(&directory, 64), 1).is_ok());
    }

    #[test]
    fn other_directories_are_left_alone() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("thesis.tex"), "x").unwrap();
        let refused = open(&size_of(place.path(), 64), 2).err().unwrap().to_string();
        assert!(refused.contains("thesis.tex"), "{refused}");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
        // Names alone do not make a disk.
        let shards = place.path().join("shards");
        std::fs::create_dir(&shards).unwrap();
        std::fs::write(shards.join("shard-000"), "x").unwrap();
        assert!(matches!(open(&size_of(&shards, 64), 2), Err(DiskError::Foreign { .. })));
        std::fs::rename(shards.join("shard-000"), shards.join("shard-000.tar")).unwrap();
        assert!(matches!(open(&size_of(&shards, 64), 2), Err(DiskError::Foreign { .. })));
        let missing = place.path().join("none/disk");
        assert!(matches!(open(&size_of(&missing, 64), 2), Err(DiskError::Io { .. })));
        let small = size_of(&place.path().join("disk"), 8);
        assert!(
            matches!(open(&small, 2), Err(DiskError::TooSmall { needed, .. }) if needed == 16 << 20)
        );
    }
}
