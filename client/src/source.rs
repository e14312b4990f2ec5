//! Files of a directory of this machine, as nodes and clients look at them when they read a source.
//!
//! ```text
//!  path ── openat2, O_PATH, beneath the root ──► look: statx, from the server itself ──► Look
//!            nothing is opened that could act           │                 version, length, settle
//!                                                       └── system: what the file system is
//! ```
//!
//! Owns how a path is opened and which content a file has; the sums are `proto`'s. Always holds: nothing
//! outside of the root is opened. Only a regular file is ever opened for reading, because an open of a
//! FIFO or a device acts on it. A version never comes from attributes that the kernel remembers of a
//! server. `docs/SOURCES.md` says which changes each type of file system shows.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millrace_proto::message::Kind;
use millrace_proto::source::{LocalStat, SETTLE, directory_hash, local_version};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec};

mod roots;
mod system;

pub use roots::{Root, Roots};
use system::{System, Times};

/// How often an open is tried again: `openat2` answers EAGAIN when something was renamed meanwhile, and
/// a server may have forgotten what the kernel remembers (ESTALE).
const OPEN_TRIES: usize = 16;
/// A wait for the next tick of the kernel's clock. Derived: a tick is 1 to 10 ms long.
const TICK: Duration = Duration::from_millis(5);

/// Whether the file system is part of the versions of its files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceRule {
    /// Where times do not distinguish contents of the file system from those of another one; its type
    /// decides.
    #[default]
    ByType,
    /// This device, or this mount, counts, also where several machines share a file system.
    Always,
    /// Left out: the operator who says so makes sure that other contents never appear with the same
    /// inodes, sizes and times.
    Never,
}

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// File or directory; `None` for anything else.
    pub kind: Option<Kind>,
    /// Version of the content; 0 unless it is a file.
    pub version: u64,
    /// Length in bytes; 0 unless it is a file.
    pub length: u64,
    /// Time of the last change in milliseconds since the Unix epoch.
    pub modified_ms: i64,
    /// How long to wait until a further change would show in the file's times. Zero if it would now.
    pub settle: Duration,
    /// How long to wait until a change that is made from then on shows in the file's times, whatever becomes of those
    /// that are under way: zero if it does now. `None` if only time to settle makes that sure.
    pub shows_after: Option<Duration>,
    inode: u64,
}

/// Opens the directory that paths are beneath.
///
/// # Errors
/// As open(2).
pub fn open_root(root: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(root, flags, Mode::empty())?)
}

/// Opens a path that may not leave the root; the empty path is the root. The kernel itself refuses every
/// `..` and every symbolic link that leads out, also while others move things about.
///
/// # Errors
/// As openat2(2).
pub fn open_beneath(
    root: impl AsFd,
    path: impl AsRef<Path>,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let path = path.as_ref();
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC;
    let mut result = Err(Errno::AGAIN);
    for _ in 0..OPEN_TRIES {
        result = rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve);
        if !matches!(result, Err(Errno::AGAIN | Errno::INTR | Errno::STALE)) {
            break;
        }
    }
    result
}

/// Finds what a path beneath the root is, without opening it for anything. The descriptor is good for
/// [`look`] and [`open_to_read`].
///
/// # Errors
/// As openat2(2) and statx(2).
pub fn find(root: impl AsFd, path: &str, rule: DeviceRule) -> Result<(OwnedFd, Look), Errno> {
    let mut tries = 0;
    loop {
        let place = open_beneath(&root, path, OFlags::PATH)?;
        match look(&place, rule) {
            // The path leads to another file now, which the kernel has just learned.
            Err(Errno::STALE) if tries < OPEN_TRIES => tries += 1,
            other => return other.map(|look| (place, look)),
        }
    }
}

/// Looks at what was opened, if need be by asking the server that has it.
///
/// # Errors
/// As statx(2) and fstatfs(2).
pub fn look(place: impl AsFd, rule: DeviceRule) -> Result<Look, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | system::MOUNT_ID;
    // This clock gives files their times. It is read first: what changes after the look gets no earlier time.
    let clock = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
    let stat = rustix::fs::statx(&place, "", flags, wanted)?;
    let modified_ms = stat
        .stx_mtime
        .tv_sec
        .saturating_mul(1000)
        .saturating_add(i64::from(stat.stx_mtime.tv_nsec) / 1_000_000);
    let mut look = Look {
        kind: None,
        version: 0,
        length: 0,
        modified_ms,
        settle: Duration::ZERO,
        shows_after: Some(Duration::ZERO),
        inode: stat.stx_ino,
    };
    match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => look.kind = Some(Kind::Directory),
        FileType::RegularFile => {
            let system = system::of(&place, &stat)?;
            look.kind = Some(Kind::File);
            look.version = version(&stat, &system, rule);
            look.length = stat.stx_size;
            look.settle = settle_time(&stat, &system, SystemTime::now());
            look.shows_after = shows_after(&stat, &system, clock, SystemTime::now());
        }
        _ => (),
    }
    Ok(look)
}

/// Returns a number of an open directory that no other one of this machine has, if there is one.
pub fn directory_number(directory: impl AsFd) -> Option<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(directory, "", flags, StatxFlags::INO).ok()?;
    let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    (stat.stx_mask & StatxFlags::INO.bits() != 0).then(|| directory_hash(device, stat.stx_ino))
}

/// Opens for reading the regular file that was found at a path.
///
/// # Errors
/// As open(2); `ESTALE` if the path leads to another file now.
pub fn open_to_read(
    root: impl AsFd,
    path: &str,
    (place, found): (&OwnedFd, &Look),
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // This opens this very file, whatever is at its path by now.
    let link = format!("/proc/self/fd/{}", place.as_raw_fd());
    match rustix::fs::open(link, flags, Mode::empty()) {
        // There is no proc file system, or one that does not show this process to itself.
        Err(Errno::NOENT | Errno::ACCESS) => {
            let file = open_beneath(root, path, flags)?;
            let again = look(&file, DeviceRule::ByType)?;
            let is_it = again.kind == Some(Kind::File) && again.inode == found.inode;
            if is_it { Ok(file) } else { Err(Errno::STALE) }
        }
        other => other,
    }
}

/// Returns the version of a regular file; see [`local_version`].
fn version(stat: &Statx, system: &System, rule: DeviceRule) -> u64 {
    let has_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0 && !system.is_shared;
    let born = (stat.stx_btime.tv_sec as u64, stat.stx_btime.tv_nsec.into());
    let (born, device) = match rule {
        DeviceRule::ByType => (has_birth.then_some(born), system.device),
        DeviceRule::Always => (has_birth.then_some(born), Some(system.instance)),
        DeviceRule::Never => (None, None),
    };
    local_version(&LocalStat {
        inode: stat.stx_ino,
        size: stat.stx_size,
        modified_s: stat.stx_mtime.tv_sec as u64,
        modified_ns: stat.stx_mtime.tv_nsec.into(),
        changed_s: stat.stx_ctime.tv_sec as u64,
        changed_ns: stat.stx_ctime.tv_nsec.into(),
        born,
        device,
    })
}

/// Returns how long to wait until a change of the file would show in its times: twice their granularity
/// and [`SETTLE`], less what has passed since the last change.
fn settle_time(stat: &Statx, system: &System, now: SystemTime) -> Duration {
    let Times { coarsest, finest, is_fixed } = system.times;
    if is_fixed {
        return Duration::ZERO;
    }
    let age = |seconds: i64, nanoseconds: u32| {
        let time = Duration::new(seconds.max(0) as u64, nanoseconds);
        now.duration_since(UNIX_EPOCH + time).ok()
    };
    let (changed, modified) = (stat.stx_ctime, stat.stx_mtime);
    let mut last = (changed, age(changed.tv_sec, changed.tv_nsec));
    if system.is_foreign || system.is_shared {
        // Many stores have only one time, and make the other up. A time ahead of ours was set by hand,
        // or comes from a clock that is ahead: it counts only if there is no other.
        let other = (modified, age(modified.tv_sec, modified.tv_nsec));
        if other.1.is_some_and(|age| last.1.is_none_or(|last| age < last)) {
            last = other;
        }
    }
    let (time, age) = last;
    let coarse =
        millrace_proto::source::granularity(time.tv_sec as u64, time.tv_nsec.into()).min(coarsest);
    // A server's clock may be ahead of ours: then, too, at most the whole time counts.
    (coarse.max(finest) * 2 + SETTLE).saturating_sub(age.unwrap_or_default())
}

/// Returns when a further change of the file would get another time than the last one had, where times are those of the
/// kernel's own clock: once that has moved on since.
fn shows_after(
    stat: &Statx,
    system: &System,
    clock: Timespec,
    now: SystemTime,
) -> Option<Duration> {
    let (seconds, nanoseconds) = (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec);
    let Times { coarsest, finest, .. } = system.times;
    let coarse = millrace_proto::source::granularity(seconds as u64, nanoseconds.into());
    if system.is_foreign || system.is_shared || !coarse.min(coarsest).max(finest).is_zero() {
        return None;
    }
    if (clock.tv_sec, clock.tv_nsec) > (seconds, nanoseconds.into()) {
        return Some(Duration::ZERO);
    }
    // No tick of a clock comes after a time that is ahead of all clocks.
    let changed = UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanoseconds);
    (changed <= now).then_some(TICK)
}

#[cfg(test)]
mod tests;
