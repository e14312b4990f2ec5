//! What a file system shows of its files: where their times come from, how coarse these are, and which
//! file system it is.
//!
//! Owns the table of types. Always holds: of one file the answer is the same for as long as it is mounted.
//!
//! Three kinds. **Own**: times are set by this kernel with each change, and the file system may carry a
//! number that stays the same wherever and whenever it is mounted. **Shared**: several machines see the same
//! files, and nothing counts that differs between them. **Foreign**: times come from the maker of the image,
//! or may be set by any user, so the device counts, or, without a device, the mount.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::AsFd;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use millrace_proto::source::device_number;
use rustix::fs::{Statx, StatxFlags};
use rustix::io::Errno;

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8): a number that no other mount of this boot has or will have.
pub(super) const MOUNT_ID: StatxFlags = StatxFlags::from_bits_retain(0x4000);
/// Mounts whose file system is remembered. Guessed: more than a node reads from at a time.
const KNOWN_MAX: usize = 64;
/// Major number of loop devices.
const LOOP_MAJOR: u32 = 7;

/// A file system.
#[derive(Clone, Copy, Debug)]
pub(super) struct System {
    /// True if several machines see it.
    pub(super) is_shared: bool,
    /// True if its times may come from another machine.
    pub(super) is_foreign: bool,
    /// The number of it that versions have where its type decides.
    pub(super) device: Option<u64>,
    /// A number of this device, or this mount, that no other one has.
    pub(super) instance: u64,
    pub(super) times: Times,
}

/// How coarse times are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    /// The times are at most this coarse, however round they look.
    pub(super) coarsest: Duration,
    /// The times are at least this coarse, however fine they look.
    pub(super) finest: Duration,
    /// True if nothing changes while it is mounted.
    pub(super) is_fixed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// It has the number that statfs(2) reports.
    Own,
    /// The number that statfs(2) reports is that of a device, and differs from boot to boot.
    OwnWithoutNumber,
    Shared,
    Foreign,
}

use Class::{Foreign, Own, OwnWithoutNumber, Shared};

/// Nanoseconds, or a tick of the kernel, which [`millrace_proto::source::SETTLE`] covers.
const FINE: Times = times(0, 0);
/// Learned from each time.
const LEARNED: Times = times(2, 0);
/// Whole seconds with small inodes, else nanoseconds: learned from each time.
const SECOND: Times = times(1, 0);
/// Two seconds, whatever they look like.
const TWO_SECONDS: Times = times(2, 2);
/// An image that is never written.
const FIXED: Times = Times { is_fixed: true, ..FINE };

const fn times(coarsest: u64, finest: u64) -> Times {
    Times {
        coarsest: Duration::from_secs(coarsest),
        finest: Duration::from_secs(finest),
        is_fixed: false,
    }
}

/// Types by the `f_type` of statfs(2), each with a name for the reader.
const TYPES: [(u32, &str, Class, Times); 41] = [
    (0xEF53, "ext2, ext3, ext4", Own, SECOND),
    (0x5846_5342, "xfs", OwnWithoutNumber, FINE),
    (0x9123_683E, "btrfs", Own, FINE),
    (0xF2F5_2010, "f2fs", OwnWithoutNumber, FINE),
    (0xCA45_1A4E, "bcachefs", Own, FINE),
    (0x2FC1_2FC1, "zfs", Own, FINE),
    (0x0102_1994, "tmpfs", Own, FINE),
    (0x8584_58F6, "ramfs", OwnWithoutNumber, FINE),
    (0x3153_464A, "jfs", OwnWithoutNumber, LEARNED),
    (0x5265_4973, "reiserfs", OwnWithoutNumber, LEARNED),
    (0x3434, "nilfs2", OwnWithoutNumber, LEARNED),
    (0x482B, "hfsplus", OwnWithoutNumber, LEARNED),
    (0x7366_746E, "ntfs3", OwnWithoutNumber, LEARNED),
    (0x6969, "nfs", Shared, LEARNED),
    (0x0BD0_0BD0, "lustre", Shared, LEARNED),
    (0x00C3_6400, "ceph", Shared, LEARNED),
    (0xFE53_4D42, "smb2", Shared, LEARNED),
    (0xFF53_4D42, "cifs", Shared, LEARNED),
    (0x517B, "smb", Shared, LEARNED),
    (0x0102_1997, "9p", Shared, LEARNED),
    (0x6573_5546, "fuse", Shared, LEARNED),
    (0x4750_4653, "gpfs", Shared, LEARNED),
    (0x7461_636F, "ocfs2", Shared, LEARNED),
    (0x0116_1970, "gfs2", Shared, LEARNED),
    (0x1983_0326, "beegfs", Shared, LEARNED),
    (0x2003_0528, "orangefs", Shared, LEARNED),
    (0xAAD7_AAEA, "panfs", Shared, LEARNED),
    (0x5346_414F, "afs", Shared, LEARNED),
    (0x6B41_4653, "kafs", Shared, LEARNED),
    (0x7375_7245, "coda", Shared, LEARNED),
    (0x7371_7368, "squashfs", Foreign, FIXED),
    (0xE0F5_E1E2, "erofs", Foreign, FIXED),
    (0x9660, "iso9660", Foreign, FIXED),
    (0x28CD_3D45, "cramfs", Foreign, FIXED),
    (0x7275, "romfs", Foreign, FIXED),
    (0x1501_3346, "udf", Foreign, LEARNED),
    (0x4D44, "vfat", Foreign, TWO_SECONDS),
    (0x2011_BAB0, "exfat", Foreign, TWO_SECONDS),
    (0x794C_7630, "overlay", Foreign, LEARNED),
    (0xF15F, "ecryptfs", Foreign, LEARNED),
    (0x6163_6673, "acfs", Shared, LEARNED),
];

/// No type has this number.
const UNKNOWN: u32 = 0;

/// Shared and foreign file systems by the numbers of their mounts, the oldest first.
static KNOWN: Mutex<Vec<(u64, System)>> = Mutex::new(Vec::new());

/// Finds the file system of an open file. `stat` is what statx(2) reported of it, asked for
/// [`MOUNT_ID`].
///
/// # Errors
/// As fstatfs(2), for a file on a device of this machine.
pub(super) fn of(file: impl AsFd, stat: &Statx) -> Result<System, Errno> {
    let mount = (stat.stx_mask & MOUNT_ID.bits() != 0).then_some(stat.stx_mnt_id);
    // A mount without such a number is asked each time: its number may be that of another one by now.
    if let Some(mount) = mount {
        let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, system)) = known.iter().find(|(other, _)| *other == mount) {
            return Ok(*system);
        }
    }
    let told = rustix::fs::fstatfs(&file)
        .and_then(|told| Ok((told.f_type as u32, rustix::fs::fstatvfs(&file)?.f_fsid)));
    let (kind, number) = match told {
        Ok(told) => told,
        // A server does not answer, or not now. What lies on no device of this machine counts as shared
        // anyway, unless its type says otherwise, and the types that do always answer.
        Err(_) if stat.stx_dev_major == 0 => return Ok(judge(UNKNOWN, 0, stat, mount)),
        Err(error) => return Err(error),
    };
    let system = judge(kind, number, stat, mount);
    // File systems of this machine alone answer at once, and one mount may have several numbers (of
    // subvolumes).
    if let Some(mount) = mount.filter(|_| system.is_shared || system.is_foreign) {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() == KNOWN_MAX {
            known.remove(0);
        }
        known.push((mount, system));
    }
    Ok(system)
}

fn judge(kind: u32, number: u64, stat: &Statx, mount: Option<u64>) -> System {
    let (class, times) = class_of(kind, stat.stx_dev_major);
    let instance = instance(stat, mount);
    System {
        is_shared: class == Shared,
        is_foreign: class == Foreign,
        device: match class {
            Own => Some(number),
            OwnWithoutNumber | Shared => None,
            Foreign => Some(instance),
        },
        instance,
        times,
    }
}

/// Returns what a type is, on a device with this major number, which is 0 for types that lie on none.
fn class_of(kind: u32, major: u32) -> (Class, Times) {
    let known = TYPES.iter().find(|(other, ..)| *other == kind);
    let (class, times) = known.map_or((Shared, LEARNED), |(_, _, class, times)| (*class, *times));
    match class {
        // It is on a device of this machine, such as one of fuseblk, or not known here.
        Shared if major != 0 && known.is_none_or(|(_, name, ..)| *name == "fuse") => {
            (Foreign, times)
        }
        // A mounted file is an image, which may be another one tomorrow.
        Own | OwnWithoutNumber if major == LOOP_MAJOR => (Foreign, times),
        _ => (class, times),
    }
}

/// Returns a number of the device or the mount that no other one has, on this machine or another.
fn instance(stat: &Statx, mount: Option<u64>) -> u64 {
    let (major, minor) = (stat.stx_dev_major, stat.stx_dev_minor);
    let boot = &*BOOT;
    if major != 0 {
        // Linux 5.15 counts every medium that is put into a device. A partition has the number of its
        // disk.
        let device = format!("/sys/dev/block/{major}:{minor}");
        let sequence = ["diskseq", "../diskseq"]
            .iter()
            .find_map(|name| std::fs::read_to_string(format!("{device}/{name}")).ok());
        if let Some(sequence) = sequence {
            return device_number(&format!("{boot} disk {} {major}:{minor}", sequence.trim()));
        }
    }
    match mount {
        Some(mount) => device_number(&format!("{boot} mount {mount}")),
        None => device_number(&format!("{boot} device {major}:{minor}")),
    }
}

/// Name of this run of the kernel. If it is hidden no other process gets the same name.
static BOOT: LazyLock<String> = LazyLock::new(|| {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        // Keys of this hasher come from the system's random numbers.
        .unwrap_or_else(|_| format!("{:016x}", RandomState::new().build_hasher().finish()))
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_what_they_are_for_one_reason_each() {
        let class = |name: &str, major| {
            let (kind, ..) = TYPES.iter().find(|(_, other, ..)| *other == name).unwrap();
            class_of(*kind, major).0
        };
        assert_eq!(class("ext2, ext3, ext4", 8), Own);
        assert_eq!(class("xfs", 259), OwnWithoutNumber);
        for image in ["ext2, ext3, ext4", "xfs", "squashfs", "vfat"] {
            assert_eq!(class(image, LOOP_MAJOR), Foreign, "{image}");
        }
        for network in ["nfs", "lustre", "fuse"] {
            assert_eq!(class(network, 0), Shared, "{network}");
        }
        assert_eq!(class("fuse", 8), Foreign, "fuseblk");
        assert_eq!((class_of(1, 0).0, class_of(1, 8).0), (Shared, Foreign), "not known");
        let mut kinds: Vec<u32> = TYPES.iter().map(|(kind, ..)| *kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), TYPES.len(), "each type once");
    }
}
